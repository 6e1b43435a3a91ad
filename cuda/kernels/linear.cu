// The skinny linear: out[r, n] = sum over k of x[r, k] · W[n, k], for 1 to 64 decode rows, every weight read once.
//
// The weights are all that counts: they go from device memory to registers and from there into the tensor cores,
// past shared memory. Rows and features are as in `mma.cuh` with x as A (16 rows, those that are absent zero) and W
// as B (8 features). A row of D depends on no other row of A, and neither the order of k nor its segments follow
// from the number of rows: a row has the same bits alone and among 64.
//
//   CTA          128 features (SwiGLU: 64 of gate, the same 64 of up) and one segment of k; grid [blocks of
//                features, segments].
//   warp         16 features, all rows and all k of the segment: the sums over k stay in its registers, and no warps
//                have to meet.
//   lane (g, t)  of a k-block of 32 it loads the 8 weights from k = 8t on of features g and g + 8: 16 bytes each, 64
//                a feature and quad. The sum may take k in any fixed order, so words 0, 1 are the B operand of one
//                mma and words 2, 3 that of the next: nothing moves between lanes, and no weight is stored in
//                another order. With SwiGLU the two features are gate's and up's, and meet when the sums are
//                finished. Four k-blocks, 8 loads, are in flight per lane: 32 KB per CTA.
//   e4m3         unpacked to f16 (fp8.cuh), whatever T is: 16 bytes are 16 weights, from k = 16t on of a quad's 64. A
//                word of four k becomes both operand words of one mma, k and k + 2, k + 1 and k + 3, so that a load
//                is for four mma, two k-blocks of x. x is unpacked alike when it is put down; the scales come at the
//                end. Up to 64 rows two loads of each feature are in flight: a tile has 128 k.
//   x            16 KB tiles of all rows in shared memory, twice: the next one is fetched to registers while this
//                one is used, normalised there if there is a norm, and put down in the order in which lanes take A
//                operands, 16 bytes at a time (`x_place`).
//   before       On a stream with programmatic launches (dependency.cuh) all that comes before the wait for the kernel
//                ahead is weights: 32 KB per CTA into registers (e4m3: 16), and with `prefetch` 64 KB more into
//                L2, which is lost where no row turns out to be alive.
//   segments     Few features make few CTAs, so k is cut (in src/kernels/linear.rs, by the shapes of the weights
//                alone). Every CTA then leaves its sums in the scratch, f32 [rows, 128]; the last of a block to
//                arrive, by a ticket, adds them up in the order of k.
//   end          Finished sums lie in shared memory, [rows, 128]; threads take 8 features of a row each: bias,
//                SwiGLU, or the residual, which is added before the only rounding; with statistics of the new
//                residual for the norm of the next linear (row_statistics.cuh).
//
// Llama 3 8B, in launches of 16 rows (of 1 row), FLOP = 2 · rows · weights:
//                 features × k      CTAs      segment  weights   other bytes, most of them from L2        GFLOP
//   q, k, v, norm    6144 × 4096    48 × 4    1024      50 MB    23.8 % (2.1 %)                             0.8
//   output, add      4096 × 4096    32 × 4    1024      34 MB    19.6 % (1.2 %)                             0.5
//   gate, up, norm  28672 × 4096   224 × 1    4096     235 MB    16.2 % (1.6 %)                             3.8
//   down, add        4096 × 14336   32 × 8    1792     117 MB    16.3 % (1.0 %)                             1.9
//   head, norm     128256 × 4096  1002 × 1    4096    1051 MB    16.8 % (1.6 %)                            16.8
//   e4m3: gate, up  28672 × 4096   224 × 1    4096     117 MB    13.7 % (0.9 %)                             3.8
//   e4m3: down, add  4096 × 14336   32 × 7    2048      59 MB    19.7 % (1.2 %)                             1.9
// Of the other bytes x has 12.5 points (rows · 2 bytes a k, against 256 of weights; with e4m3 half of both), the
// partial sums 6.2 at segments of 1024 (e4m3: 2048), norm weights 3.1 (a thread reads them for its four rows),
// statistics up to 1.6, scales 0.8.
//
// For sm_80, up to 16, 32, 64 rows: 96, 114, 122 registers (e4m3: 126, 125, 126, for sm_90a 126, 128, 126), 33, 33, 35
// KB of shared memory, two CTAs an SM: 16 warps, 64 KB of weights in flight (e4m3 at 64 rows: 32). `any` takes its
// elements one by one: 188 registers (e4m3: 152).
#include "arch/dependency.cuh"
#include "arch/eight.cuh"
#include "arch/fp8.cuh"
#include "arch/math.cuh"
#include "arch/memory.cuh"
#include "arch/mma.cuh"
#include "arch/row_statistics.cuh"
#include "arch/ticket.cuh"
#include "wl_linear.h"

namespace wl {

constexpr int THREADS = WL_LINEAR_THREADS;
constexpr int WARPS = THREADS / 32;
constexpr int FEATURES = WL_LINEAR_FEATURES;
static_assert(FEATURES == 16 * WARPS, "a warp has the features of two mma");
// A k-block of x is that of two mma.
constexpr int K_BLOCK = 32;
// Pairs of 16-byte vectors of x, of rows 8 apart, that a thread brings to a tile.
constexpr int X_PAIRS = 2;
// Elements of a tile of x: ROWS rows, and as many k as make 16 KB.
constexpr int X_ELEMENTS = 16 * X_PAIRS * THREADS;
// Row of finished sums in shared memory, in floats: 32 bytes more than its features, so that four rows' worth of an
// mma's results fill the line of banks.
constexpr int Y_PITCH = FEATURES + 8;

// 16 bytes of weights, those from `count` on as zeros.
template <typename E, bool WHOLE> __device__ __forceinline__ uint4 load_weights(const E* from, int count) {
    if constexpr (WHOLE) {
        return load_once(from, count > 0);
    } else if constexpr (sizeof(E) == 2) {
        const Eight<E> w = load_eight<false>(from, count);
        return make_uint4(w.words[0], w.words[1], w.words[2], w.words[3]);
    } else {
        const Eight<E> low = load_eight<false>(from, count), high = load_eight<false>(from + 8, count - 8);
        return make_uint4(low.words[0], low.words[1], high.words[0], high.words[1]);
    }
}

// What an mma multiplies: x and weights of T themselves, or e4m3 unpacked to f16.
template <typename T, typename E> struct OperandOf {
    using Type = T;
};
template <typename T> struct OperandOf<T, e4m3> {
    using Type = f16;
};
template <typename T, typename E> using Operand = typename OperandOf<T, E>::Type;

// Operand words of an mma: with e4m3, both words of one come of one word of four k, 0 and 2, 1 and 3. First those of
// eight k of x, of two mma; then those of a lane's weights.
template <typename T> __device__ __forceinline__ void operands(uint32_t (&words)[4], const Eight<T>& x) {
    if constexpr (sizeof(T) == 2) {
#pragma unroll
        for (int i = 0; i < 4; i++) words[i] = x.words[i];
    } else {
        unpack_e4m3(x.words[0], words[0], words[1]);
        unpack_e4m3(x.words[1], words[2], words[3]);
    }
}
template <typename E, int MMAS>
__device__ __forceinline__ void operands(uint32_t (&words)[MMAS][2], const uint4& w) {
    const uint32_t packed[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < MMAS; i++) {
        if constexpr (sizeof(E) == 2) {
            words[i][0] = packed[2 * i], words[i][1] = packed[2 * i + 1];
        } else {
            unpack_e4m3(packed[i], words[i][0], words[i][1]);
        }
    }
}

// Where the 16 bytes of `lane` lie in a tile of x, in units of 16 bytes. What a lane needs for one mma, {x[g] x[g+8]
// x[g] x[g+8]}, lies together, and all of a warp's in 512 bytes; odd k-blocks swap neighbouring g, so that a warp
// that fills a tile, with consecutive k-blocks of one g, also finds eight different 16-byte columns of the line of
// banks.
template <int ROWS> __device__ __forceinline__ int x_place(int row_tile, int k_block, int half, int lane) {
    constexpr int K_BLOCKS = X_ELEMENTS / ROWS / K_BLOCK;
    return ((row_tile * K_BLOCKS + k_block) * 2 + half) * 32 + (lane ^ (k_block % 2 * 4));
}

// Eight sums of a thread from shared memory. The lanes of a quarter warp whose neighbours have taken their banks
// take their two halves in the other order.
__device__ __forceinline__ void load_sums(float (&y)[8], const float* from) {
    const int swap = threadIdx.x & 4;
    const float4 first = *reinterpret_cast<const float4*>(from + swap);
    const float4 second = *reinterpret_cast<const float4*>(from + (swap ^ 4));
    const float4 low = swap ? second : first, high = swap ? first : second;
    y[0] = low.x, y[1] = low.y, y[2] = low.z, y[3] = low.w;
    y[4] = high.x, y[5] = high.y, y[6] = high.z, y[7] = high.w;
}

// As a number of 8 bytes: some stores of a float2 the compiler divides in two, which then meet in the banks.
__device__ __forceinline__ void store_two(float* to, float x, float y) {
    *reinterpret_cast<double*>(to) = __hiloint2double(__float_as_int(y), __float_as_int(x));
}

// y = x_scale · scales · y, of eight features.
__device__ __forceinline__ void scale_sums(float (&y)[8], float x_scale, uint64_t scales, int feature, int count) {
    Eight<float> values;
    if (count == 8) {
        values = load_eight<true>(global<const float>(scales) + feature, count);
    } else {
        values = load_eight<false>(global<const float>(scales) + feature, count);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) y[i] = scaled(y[i], x_scale, __uint_as_float(values.words[i]));
}

template <typename T> __device__ __forceinline__ void add_bias(float (&y)[8], uint64_t bias, int feature, int count) {
    if (bias == 0) return;
    float values[8];
    load_eight<false>(global<const T>(bias) + feature, count).unpack_to(values);
#pragma unroll
    for (int i = 0; i < 8; i++) y[i] += values[i];
}

template <typename T, typename E, int ROWS, bool WHOLE> __device__ __forceinline__ void linear(const WlLinear& p) {
    constexpr bool FP8 = sizeof(E) == 1;
    constexpr int ROW_TILES = ROWS / 16;
    constexpr int TILE = X_ELEMENTS / ROWS;
    // Weights of a lane's load, k of a quad's, and the mma that they are for. A turn is the loads in flight.
    constexpr int LOAD = 16 / sizeof(E), QUAD = 4 * LOAD, MMAS = QUAD / 16;
    constexpr int AHEAD = TILE / QUAD < 4 ? TILE / QUAD : 4;
    constexpr int TURN = QUAD * AHEAD;
    static_assert(TILE % TURN == 0 && TURN % (2 * K_BLOCK) == 0, "tiles are whole turns, those of even k-blocks");
    static_assert(WL_LINEAR_SEGMENT_STEP % QUAD == 0, "segments are whole loads");
    constexpr int X_BYTES = 2 * X_ELEMENTS * 2, Y_BYTES = ROWS * Y_PITCH * 4;
    __shared__ __align__(16) unsigned char shared[X_BYTES > Y_BYTES ? X_BYTES : Y_BYTES];
    __shared__ float inverse[ROWS];
    __shared__ bool is_last;
    uint4* const x_tiles = reinterpret_cast<uint4*>(shared);
    float* const y_tile = reinterpret_cast<float*>(shared);

    const int warp = warp_id(), lane = lane_id(), g = lane / 4, t = lane % 4;
    const bool pair = p.epilogue == WL_LINEAR_SWIGLU;

    // Which features: `a`'s are the first mma's of a warp, `b`'s the second's.
    int block = blockIdx.x;
    WlProjection a = p.projection[0];
    WlProjection b = a;
    if (pair) {
        b = p.projection[1];
    } else {
#pragma unroll
        for (int i = 1; i < WL_LINEAR_PROJECTIONS; i++) {
            const int blocks = (a.features + FEATURES - 1) / FEATURES;
            if (i < p.projections && block >= blocks) {
                block -= blocks;
                a = b = p.projection[i];
            }
        }
    }
    const int block_features = pair ? FEATURES / 2 : FEATURES;
    const int first = block * block_features;
    const int feature_a = first + block_features / WARPS * warp + g;
    const int feature_b = pair ? feature_a : feature_a + 8;

    // Which part of k.
    const int begin = blockIdx.y * p.segment_length;
    const int end = min(p.inputs, begin + p.segment_length);

    // The first turn of weights is under way before anything else, and lines of the next turns on their way to L2: a
    // launch that begins while the one before it ends spends the time in between on what that one does not write.
    release_dependents();
    const E* const weight_a = global<const E>(a.weight) + feature_a * a.stride + begin + LOAD * t;
    const E* const weight_b = global<const E>(b.weight) + feature_b * b.stride + begin + LOAD * t;
    const int count_a = feature_a < a.features ? end - begin - LOAD * t : 0;
    const int count_b = feature_b < a.features ? end - begin - LOAD * t : 0;
    uint4 w[AHEAD][2];
    auto load = [&](int j, int k) {
        w[j][0] = load_weights<E, WHOLE>(weight_a + k + QUAD * j, count_a - k - QUAD * j);
        w[j][1] = load_weights<E, WHOLE>(weight_b + k + QUAD * j, count_b - k - QUAD * j);
    };
#pragma unroll
    for (int j = 0; j < AHEAD; j++) load(j, 0);
    if (WHOLE && p.prefetch) {
        // Four lines of each feature, one a lane of the quad.
        constexpr int LINE = 128 / sizeof(E);
        const int k = TURN + LINE * t;
        if (count_a > k) prefetch_to_l2(weight_a + k);
        if (count_b > k) prefetch_to_l2(weight_b + k);
    }
    await_dependencies();

    // Tiles of x. A thread brings eight k of two rows, 8 apart as an mma has them, X_PAIRS times.
    constexpr int COLUMNS = TILE / 8, PAIR_STEP = THREADS / COLUMNS;
    const int x_column = threadIdx.x % COLUMNS, x_pair = threadIdx.x / COLUMNS;
    auto x_row = [&](int i, int half) {
        const int x = x_pair + i * PAIR_STEP;
        return x / 8 * 16 + x % 8 + 8 * half;
    };
    const E* const x = global<const E>(p.x) + 8 * x_column;
    Eight<E> x_next[X_PAIRS][2];
    Eight<T> norm_next;
    auto fetch = [&](int k) {
        const int count = end - k - 8 * x_column;
#pragma unroll
        for (int i = 0; i < X_PAIRS; i++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                x_next[i][half] = {};
                const int row = x_row(i, half);
                if (row < p.rows && count > 0) x_next[i][half] = load_eight<WHOLE>(x + row * p.x_stride + k, count);
            }
        }
        norm_next = {};
        if (!FP8 && p.norm && x_row(0, 0) < p.rows && count > 0) {
            norm_next = load_eight<WHOLE>(global<const T>(p.norm) + k + 8 * x_column, count);
        }
    };
    auto put = [&](int buffer) {
        float scale[8];
        norm_next.unpack_to(scale);
#pragma unroll
        for (int i = 0; i < X_PAIRS; i++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = x_row(i, half);
                if constexpr (!FP8) {
                    if (p.norm && row < p.rows) {
                        float values[8];
                        x_next[i][half].unpack_to(values);
#pragma unroll
                        for (int j = 0; j < 8; j++) values[j] = rounded<T>(values[j] * inverse[row]) * scale[j];
                        x_next[i][half].pack_from(values);
                    }
                }
            }
            const int row = x_row(i, 0);
            uint32_t low[4], high[4];
            operands(low, x_next[i][0]);
            operands(high, x_next[i][1]);
            // The lane and the k-block of these eight k.
            const int x_lane = row % 8 * 4 + (FP8 ? x_column % 8 / 2 : x_column % 4);
            const int k_block = FP8 ? x_column / 8 * 2 + x_column % 2 : x_column / 4;
            uint4* const to = x_tiles + buffer * (X_ELEMENTS / 8);
            to[x_place<ROWS>(row / 16, k_block, 0, x_lane)] = make_uint4(low[0], high[0], low[1], high[1]);
            to[x_place<ROWS>(row / 16, k_block, 1, x_lane)] = make_uint4(low[2], high[2], low[3], high[3]);
        }
    };

    fetch(begin);
    // Of a draft that has ended no row is alive. What says so arrives no later than the weights.
    if (p.positions) {
        bool alive = false;
        for (int row = lane; row < p.rows; row += 32) alive |= global<const int32_t>(p.positions)[row] >= 0;
        if (!__any_sync(ALL_LANES, alive)) return;
    }
    if (!FP8 && p.norm) {
        const int chunks = statistics_chunks(p.inputs);
        for (int row = warp; row < p.rows; row += WARPS) {
            const float sum = row_sum(global<const float>(p.stats) + int64_t(row) * chunks, chunks);
            if (lane == 0) inverse[row] = inverse_rms(sum, p.inputs, p.eps);
        }
        __syncthreads();
    }
    put(0);
    __syncthreads();

    // The main loop. Per KiB of weights, a k-block of a warp: 2 loads of weights, 2 loads of x and 4 mma (16 KFLOP)
    // for each 16 rows, and 11 others: 19 instructions at 16 rows, 24 at 32, 41 at 64. Of e4m3, half of four k-blocks:
    // 4 loads of x and 8 mma for each 16 rows, and 7 instructions for each of 8 words to unpack it: 81, 93, 118. An
    // H100's share of bandwidth brings an SM a KiB in 70 cycles, which could issue 280.
    float sums[ROW_TILES][2][4] = {};
    int buffer = 0;
    for (int tile = begin; tile < end; tile += TILE) {
        const bool more = tile + TILE < end;
        if (more) fetch(tile + TILE);
        const uint4* const x_tile = x_tiles + buffer * (X_ELEMENTS / 8);
        const int stop = min(TILE, end - tile);
#pragma unroll 1
        for (int k = 0; k < stop; k += TURN) {
#pragma unroll
            for (int j = 0; j < AHEAD; j++) {
                uint32_t weights[2][MMAS][2];
                operands<E>(weights[0], w[j][0]);
                operands<E>(weights[1], w[j][1]);
#pragma unroll
                for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
                    for (int i = 0; i < MMAS; i++) {
                        // k / K_BLOCK is even: which lanes swap is known here.
                        const int place = x_place<ROWS>(m, j * (MMAS / 2) + i / 2, i % 2, lane);
                        const uint4 v = x_tile[k / K_BLOCK * 64 + place];
                        const uint32_t rows[4] = {v.x, v.y, v.z, v.w};
                        mma<Operand<T, E>>(sums[m][0], rows, weights[0][i]);
                        mma<Operand<T, E>>(sums[m][1], rows, weights[1][i]);
                    }
                }
                load(j, tile - begin + k + TURN);
            }
        }
        if (more) {
            buffer ^= 1;
            put(buffer);
            __syncthreads();
        }
    }

    // Sums go where a thread can take eight features of a row: to shared memory, over the tiles of x. If the sum
    // over k has more segments, they go through the scratch: the CTA that comes last adds them up, in the order of
    // k. The features of `b` with SwiGLU are the second half of a row.
    const int column_a = block_features / WARPS * warp + 2 * t;
    const int column_b = pair ? column_a + FEATURES / 2 : column_a + 8;
    auto put_sums = [&](float* to, int pitch) {
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = 16 * m + 8 * half + g;
                if (row < p.rows) {
                    float* const y = to + row * pitch;
                    store_two(y + column_a, sums[m][0][2 * half], sums[m][0][2 * half + 1]);
                    store_two(y + column_b, sums[m][1][2 * half], sums[m][1][2 * half + 1]);
                }
            }
        }
    };
    if (p.segments == 1) {
        __syncthreads();
        put_sums(y_tile, Y_PITCH);
    } else {
        const int64_t part = int64_t(p.rows) * FEATURES;
        float* const parts =
            reinterpret_cast<float*>(global<uint32_t>(p.scratch) + WL_LINEAR_TICKETS) + blockIdx.x * p.segments * part;
        put_sums(parts + blockIdx.y * part, FEATURES);
        __syncthreads();
        if (threadIdx.x == 0) {
            const uint32_t last = p.segments - 1;
            is_last = take_ticket(global<uint32_t>(p.scratch) + blockIdx.x, last) == last;
        }
        __syncthreads();
        if (!is_last) return;
        for (int i = threadIdx.x; i < p.rows * (FEATURES / 4); i += THREADS) {
            float4 y[WL_LINEAR_SEGMENTS];
#pragma unroll
            for (int s = 0; s < WL_LINEAR_SEGMENTS; s++) {
                y[s] = {};
                if (s < p.segments) y[s] = __ldcg(reinterpret_cast<const float4*>(parts + s * part) + i);
            }
#pragma unroll
            for (int s = 1; s < WL_LINEAR_SEGMENTS; s++) {
                y[0].x += y[s].x, y[0].y += y[s].y, y[0].z += y[s].z, y[0].w += y[s].w;
            }
            *reinterpret_cast<float4*>(y_tile + i / (FEATURES / 4) * Y_PITCH + i % (FEATURES / 4) * 4) = y[0];
        }
    }
    __syncthreads();

    if (p.epilogue == WL_LINEAR_STORE_F32) {
        for (int row = warp; row < p.rows; row += WARPS) {
            float* const out = global<float>(p.out) + row * p.out_stride + a.column + first;
            for (int column = lane; column < min(FEATURES, a.features - first); column += 32) {
                float y = y_tile[row * Y_PITCH + column];
                if (FP8) {
                    const float scale = global<const float>(a.scales)[first + column];
                    y = scaled(y, global<const float>(p.x_scales)[row], scale);
                }
                if (a.bias) y += to_float(global<const T>(a.bias)[first + column]);
                out[column] = y;
            }
        }
        return;
    }
    const int lanes = block_features / 8;  // of a row
    const int column = threadIdx.x % lanes * 8;
    const int feature = first + column;
    // Features past the projection's last are zeros throughout, in the statistics, too.
    for (int base = 0; base < p.rows; base += THREADS / lanes) {
        const int row = base + threadIdx.x / lanes;
        const int count = row < p.rows ? min(8, a.features - feature) : 0;
        float y[8] = {};
        if (count > 0) {
            const float* const sum = y_tile + row * Y_PITCH + column;
            const float x_scale = FP8 ? global<const float>(p.x_scales)[row] : 0;
            load_sums(y, sum);
            if (FP8) scale_sums(y, x_scale, a.scales, feature, count);
            add_bias<T>(y, a.bias, feature, count);
            if (pair) {
                float up[8];
                load_sums(up, sum + FEATURES / 2);
                if (FP8) scale_sums(up, x_scale, b.scales, feature, count);
                add_bias<T>(up, b.bias, feature, count);
#pragma unroll
                for (int i = 0; i < 8; i++) y[i] = silu_times(y[i], up[i]);
            }
        }
        T* const to = global<T>(p.out) + row * p.out_stride + a.column + feature;
        const bool whole = count == 8 && aligned(to);
        Eight<T> out = {};
        if (p.epilogue == WL_LINEAR_ADD) {
            if (whole) {
                out = load_eight<true>(static_cast<const T*>(to), count);
            } else {
                out = load_eight<false>(static_cast<const T*>(to), count);
            }
            float before[8];
            out.unpack_to(before);
#pragma unroll
            for (int i = 0; i < 8; i++) y[i] += before[i];
        }
        out.pack_from(y);
        if (whole) {
            store_eight<true>(to, out, count);
        } else {
            store_eight<false>(to, out, count);
        }
        if (p.out_stats) {
            out.unpack_to(y);
            const float sum = chunk_sum(sum_of_squares(y));
            if (count > 0 && lane % 8 == 0) {
                const int64_t chunks = statistics_chunks(a.features);
                global<float>(p.out_stats)[row * chunks + feature / STATISTICS_CHUNK] = sum;
            }
        }
    }
}

}  // namespace wl

#define WL_ENTRY(T, E, NAME, ROWS, WHOLE)                                                    \
    extern "C" __global__ void __launch_bounds__(wl::THREADS, WHOLE ? 2 : 1) NAME(           \
        const __grid_constant__ WlLinear p) {                                                \
        wl::linear<wl::T, wl::E, ROWS, WHOLE>(p);                                            \
    }
#define WL_ENTRIES(T, E, NAME)           \
    WL_ENTRY(T, E, NAME##_16, 16, true)  \
    WL_ENTRY(T, E, NAME##_32, 32, true)  \
    WL_ENTRY(T, E, NAME##_64, 64, true)  \
    WL_ENTRY(T, E, NAME##_any, 64, false)
WL_ENTRIES(bf16, bf16, wl_linear_bf16)
WL_ENTRIES(f16, f16, wl_linear_f16)
WL_ENTRIES(bf16, e4m3, wl_linear_bf16_e4m3)
WL_ENTRIES(f16, e4m3, wl_linear_f16_e4m3)
