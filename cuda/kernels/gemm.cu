// The linear of many rows: out[r, n] = sum over k of x[r, k] · W[n, k], a product of matrices on the tensor cores.
//
// Both matrices have k in order along their rows, which is what `mma.cuh` takes: x is A (16 rows), W is B (8 features),
// nothing is transposed. Every sum runs over k from 0 on in steps of 16, in one accumulator: neither the tile's size
// nor where in it a row lies changes that order, so a row has the same bits in any launch, alone or in company.
//
//   CTA        a tile of out, by 4 warps of 64 features each, as many as a chunk of row_statistics.cuh has
//                large  128 rows × 128 features, warps 2 × 2 of 64 × 64, 32 k at a time
//                small   64 rows × 64 features, warps 4 × 1 of 16 × 64, 64 k at a time; where large ones are too few
//                       to fill a GPU, and for `any`
//              With SwiGLU half of the features are gate's and half up's, eight and eight by turns: a lane has both
//              of a pair.
//   order      Neighbouring CTAs share what they read: 16 blocks of rows for one block of features, then the next one.
//              The 264 large tiles that an H100 holds at once, 16 × 16.5, read 528 blocks, and 33 different ones.
//   stage      Tiles of x and of W of the same k in shared memory, 16 KB in all: lines of 64 bytes (large) or 128, with
//              chunks of 16 bytes permuted as `tile.cuh` says, so that neither cp.async nor ldmatrix finds two in a
//              bank. Three stages: while one is used, the copies of two are on their way. A thread copies one column
//              of chunks, zeros past the last row, feature or k; in `any` it loads elements and stores chunks.
//   step       32 bytes of k: 16 of them, or 32 of e4m3. The operands of a step are fetched while those of the step
//              before it are multiplied, over the end of a tile, too.
//   lane       With g = lane / 4, t = lane % 4, and (m, n) the place of a 16 × 8 part of out in its warp's: sums[m][n]
//              as in `mma.cuh`, of rows 16m + g and 16m + g + 8, features 8n + 2t and 8n + 2t + 1. 128 sums and
//              64 operand words are in the registers of a large tile's lane, 32 and 40 in those of a small one's.
//   e4m3       ldmatrix gives a lane four k of a chunk, from 4t on; unpacked to f16 these are both operand words of one
//              mma, in an order of k that is the same in A and B.
//   end        A warp's sums go through its own part of shared memory, 16 rows at a time, so that lanes take 8 features
//              of a row each: scales, bias, SwiGLU, or the residual, which is added before the only rounding; with
//              the statistics of the new residual.
//
// FLOP: 2 · rows · features · K. Bytes: a large CTA copies 256 · 2 K bytes for 2 · 128 · 128 · K FLOP, 64 FLOP a byte.
// Shared memory carries, for 32 k of a large tile, 16 KB of copies and 32 KB of operands: 384 cycles of its 128 bytes,
// for 512 cycles of an A100's tensor cores. In a small one, for 64 k, 16 KB and 40 KB: 448 cycles for 256, so that it
// runs at 57 % of an A100's peak at best.
//
// Llama 3 8B, 4096 rows, large tiles:
//                      features × k     CTAs   GFLOP    copies   x and W once
//   q, k, v             6144 × 4096     1536     206    3.2 GB    84 MB
//   output, add         4096 × 4096     1024     137    2.1 GB    67 MB
//   gate, up, SwiGLU   28672 × 4096     7168     962   15.0 GB   268 MB
//   down, add           4096 × 14336    1024     481    7.5 GB   235 MB
//
// For sm_80: 254 registers in a large tile (e4m3: 244), 48 KB of shared memory, two CTAs an SM: 8 warps, up to 96 KB of
// copies on their way. 127 in a small one (e4m3: 113), four CTAs by registers, which an H100's shared memory has room
// for; three on an A100, two where an SM has 100 KB. `any`: 128 (e4m3: 139).
#include "arch/dependency.cuh"
#include "arch/eight.cuh"
#include "arch/fp8.cuh"
#include "arch/math.cuh"
#include "arch/memory.cuh"
#include "arch/mma.cuh"
#include "arch/row_statistics.cuh"
#include "arch/tile.cuh"
#include "wl_gemm.h"

namespace wl {

constexpr int THREADS = WL_GEMM_THREADS;
constexpr int STAGES = 3;
// Blocks of rows that follow each other in the grid.
constexpr int GROUP = 16;
// Row of a warp's finished sums in shared memory, in floats: 32 bytes more than its features, so that four rows' worth
// of an mma's results fill the line of banks.
constexpr int WARP_FEATURES = 64;
constexpr int Y_PITCH = WARP_FEATURES + 8;

// A tile of out, the part of it that a warp has, and a stage's row in units of 2 bytes.
struct Large {
    static constexpr int ROWS = WL_GEMM_LARGE, FEATURES = WL_GEMM_LARGE, WARP_ROWS = 64, WIDTH = 32;
};
struct Small {
    static constexpr int ROWS = WL_GEMM_SMALL, FEATURES = WL_GEMM_SMALL, WARP_ROWS = 16, WIDTH = 64;
};

// The 16 bytes at `from` to shared memory, those from `bytes` on as zeros.
template <typename E, bool ALIGNED>
__device__ __forceinline__ void copy_chunk(unsigned char* to, const unsigned char* from, int bytes) {
    if constexpr (ALIGNED) {
        copy_async_part(shared_address(to), from, bytes);
    } else {
        uint32_t words[4] = {};
#pragma unroll
        for (int i = 0; i < 16; i += sizeof(E)) {
            uint32_t element = 0;
            if (i < bytes) {
                if constexpr (sizeof(E) == 2) {
                    element = *reinterpret_cast<const uint16_t*>(from + i);
                } else {
                    element = *reinterpret_cast<const uint8_t*>(from + i);
                }
            }
            words[i / 4] |= element << i % 4 * 8;
        }
        *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
    }
}

// Operands of a warp for 32 bytes of k.
template <int M> struct Operands {
    uint32_t a[M][4];
    uint32_t b[WARP_FEATURES / 16][2][2];

    template <int WIDTH>
    __device__ __forceinline__ void load(uint32_t x_tile, uint32_t w_tile, int row, int feature, int step) {
#pragma unroll
        for (int m = 0; m < M; m++) load_a<WIDTH>(a[m], x_tile, row + 16 * m, step);
#pragma unroll
        for (int n = 0; n < WARP_FEATURES / 16; n++) load_b<WIDTH>(b[n], w_tile, feature + 16 * n, step);
    }

    template <typename E> __device__ __forceinline__ void multiply(float (&sums)[M][WARP_FEATURES / 8][4]) const {
        if constexpr (sizeof(E) == 2) {
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int n = 0; n < WARP_FEATURES / 8; n++) mma<E>(sums[m][n], a[m], b[n / 2][n % 2]);
            }
        } else {
            // Words 0 and 1 of `a`, word 0 of `b` have the first 16 k; the others the next 16.
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t features[WARP_FEATURES / 8][2];
#pragma unroll
                for (int n = 0; n < WARP_FEATURES / 8; n++) {
                    unpack_e4m3(b[n / 2][n % 2][half], features[n][0], features[n][1]);
                }
#pragma unroll
                for (int m = 0; m < M; m++) {
                    uint32_t rows[4];
                    unpack_e4m3(a[m][2 * half], rows[0], rows[2]);
                    unpack_e4m3(a[m][2 * half + 1], rows[1], rows[3]);
#pragma unroll
                    for (int n = 0; n < WARP_FEATURES / 8; n++) mma<f16>(sums[m][n], rows, features[n]);
                }
            }
        }
    }
};

// Eight sums of a lane from shared memory. The lanes of a quarter warp whose neighbours have taken their banks take
// their two halves in the other order.
__device__ __forceinline__ void load_sums(float (&y)[8], const float* from) {
    const int swap = threadIdx.x & 4;
    const float4 first = *reinterpret_cast<const float4*>(from + swap);
    const float4 second = *reinterpret_cast<const float4*>(from + (swap ^ 4));
    const float4 low = swap ? second : first, high = swap ? first : second;
    y[0] = low.x, y[1] = low.y, y[2] = low.z, y[3] = low.w;
    y[4] = high.x, y[5] = high.y, y[6] = high.z, y[7] = high.w;
}

// The `count` numbers from `from` on, a multiple of eight of them after an address of 16 bytes.
template <typename T> __device__ __forceinline__ void load_factors(float (&y)[8], const T* from, int count) {
    Eight<T> values;
    if (count == 8) {
        values = load_eight<true>(from, count);
    } else {
        values = load_eight<false>(from, count);
    }
    values.unpack_to(y);
}

// y = x_scale · scales · y + bias, of eight features, of which there are `count`.
template <typename T, typename E>
__device__ __forceinline__ void finish(float (&y)[8], float x_scale, const WlProjection& a, int feature, int count) {
    float values[8];
    if constexpr (sizeof(E) == 1) {
        load_factors(values, global<const float>(a.scales) + feature, count);
#pragma unroll
        for (int i = 0; i < 8; i++) y[i] = scaled(y[i], x_scale, values[i]);
    }
    if (a.bias) {
        load_factors(values, global<const T>(a.bias) + feature, count);
#pragma unroll
        for (int i = 0; i < 8; i++) y[i] = __fadd_rn(y[i], values[i]);
    }
}

template <typename T, typename E, typename S, bool ALIGNED> __device__ __forceinline__ void gemm(const WlGemm& p) {
    begin_in_order();
    constexpr int M = S::WARP_ROWS / 16;
    constexpr int PITCH = 2 * S::WIDTH, STEPS = PITCH / 32;
    constexpr int X_TILE = S::ROWS * PITCH, STAGE = X_TILE + S::FEATURES * PITCH;
    static_assert(THREADS / 32 * S::WARP_ROWS * WARP_FEATURES == S::ROWS * S::FEATURES, "warps cover a tile");
    static_assert(THREADS / 32 * 16 * Y_PITCH * 4 <= STAGES * STAGE, "sums go where the stages were");
    __shared__ __align__(128) unsigned char shared[STAGES * STAGE];

    // Which tile of out.
    const bool pair = p.epilogue == WL_LINEAR_SWIGLU;
    const int block_features = pair ? S::FEATURES / 2 : S::FEATURES;
    const uint32_t row_blocks = (p.rows + S::ROWS - 1) / S::ROWS, feature_blocks = gridDim.x / row_blocks;
    const uint32_t group = blockIdx.x / (GROUP * feature_blocks), in_group = blockIdx.x % (GROUP * feature_blocks);
    const uint32_t group_rows = min(row_blocks - group * GROUP, uint32_t(GROUP));
    const int first_row = (group * GROUP + in_group % group_rows) * S::ROWS;
    int block = in_group / group_rows;
    WlProjection a = p.projection[0];
#pragma unroll
    for (int i = 1; i < WL_GEMM_PROJECTIONS; i++) {
        const int blocks = (a.features + S::FEATURES - 1) / S::FEATURES;
        if (!pair && i < p.projections && block >= blocks) {
            block -= blocks;
            a = p.projection[i];
        }
    }
    const int first_feature = block * block_features;

    // What this thread copies: one column of chunks, of rows and features DOWN lines of a tile apart. With SwiGLU lines
    // 16 n to 16 n + 8 are gate's features 8 n and on, the next eight up's, and a thread stays with one of the two.
    constexpr int ACROSS = PITCH / 16, DOWN = THREADS / ACROSS;
    static_assert(DOWN % 16 == 0, "lines of gate and up by turns of 8");
    const int line = threadIdx.x / ACROSS, chunk = threadIdx.x % ACROSS;
    const bool up = pair && line / 8 % 2;
    const int feature = first_feature + (pair ? line / 16 * 8 + line % 8 : line);
    const int64_t x_pitch = p.x_stride * sizeof(E);
    const int64_t w_pitch = (up ? p.projection[1].stride : a.stride) * sizeof(E);
    const int64_t w_down = (pair ? DOWN / 2 : DOWN) * w_pitch;
    const unsigned char* x = global<const unsigned char>(p.x) + (first_row + line) * x_pitch + 16 * chunk;
    const unsigned char* w = global<const unsigned char>(up ? p.projection[1].weight : a.weight) + feature * w_pitch;
    w += 16 * chunk;
    const int rows_left = p.rows - first_row - line;
    const int features_left = pair ? 2 * (a.features - feature) : a.features - feature;
    int bytes_left = p.inputs * int(sizeof(E)) - 16 * chunk;
    unsigned char* const place = shared + chunk_offset<S::WIDTH>(line, chunk);
    // Loads of elements, eight for a chunk, make long programs.
    constexpr int UNROLLED = ALIGNED ? S::ROWS / DOWN : 2;
    auto copy = [&](int stage) {
        const int bytes = max(min(bytes_left, 16), 0);
        unsigned char* const to = place + stage * STAGE;
#pragma unroll UNROLLED
        for (int i = 0; i < S::ROWS / DOWN; i++) {
            copy_chunk<E, ALIGNED>(to + i * DOWN * PITCH, x + i * DOWN * x_pitch, i * DOWN < rows_left ? bytes : 0);
        }
#pragma unroll UNROLLED
        for (int i = 0; i < S::FEATURES / DOWN; i++) {
            const int some = i * DOWN < features_left ? bytes : 0;
            copy_chunk<E, ALIGNED>(to + X_TILE + i * DOWN * PITCH, w + i * w_down, some);
        }
        x += PITCH, w += PITCH, bytes_left -= PITCH;
    };

    const int warp = warp_id(), lane = lane_id(), g = lane / 4, t = lane % 4;
    constexpr int WARPS_ACROSS = S::FEATURES / WARP_FEATURES;
    const int warp_row = warp / WARPS_ACROSS * S::WARP_ROWS, warp_feature = warp % WARPS_ACROSS * WARP_FEATURES;
    const uint32_t stages = shared_address(shared);
    Operands<M> operands[2];
    auto load = [&](int stage, int step) {
        const uint32_t x_tile = stages + stage * STAGE;
        operands[step % 2].template load<S::WIDTH>(x_tile, x_tile + X_TILE, warp_row, warp_feature, step);
    };

    const int tiles = (p.inputs * int(sizeof(E)) + PITCH - 1) / PITCH;
#pragma unroll(ALIGNED ? STAGES : 1)
    for (int stage = 0; stage < STAGES; stage++) {
        copy(stage);
        commit_copies();
    }
    wait_copies<STAGES - 1>();
    __syncthreads();
    load(0, 0);

    // The main loop. Per tile of a stage, a warp of a large one has 16 ldmatrix (8 KB) and 64 mma (2^18 FLOP), one of a
    // small one 20 (10 KB) and 32 (2^17 FLOP); either 8 cp.async (4 KB) and one barrier. A large one's 202 instructions
    // take half as long to issue as an A100's tensor cores take for their share. With e4m3 there are twice as many mma,
    // and 7 more instructions for each operand word to unpack it: 448, or 560.
    float sums[M][WARP_FEATURES / 8][4] = {};
    int stage = 0;
#pragma unroll 1
    for (int tile = 0; tile < tiles; tile++) {
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            if (step < STEPS - 1) {
                load(stage, step + 1);
            } else {
                // The next tile has arrived, and all warps have this one's operands: its stage takes another.
                wait_copies<STAGES - 2>();
                __syncthreads();
                if (tile + STAGES < tiles) copy(stage);
                commit_copies();
                stage = stage == STAGES - 1 ? 0 : stage + 1;
                if (tile + 1 < tiles) load(stage, 0);
            }
            operands[step % 2].template multiply<E>(sums);
        }
    }

    // The last tile's barrier was behind the last ldmatrix: a warp takes its part of the stages, for 16 rows of sums at
    // a time. With SwiGLU their first half is gate's.
    float* const y_tile = reinterpret_cast<float*>(shared) + warp * 16 * Y_PITCH;
    float2* const y_lane = reinterpret_cast<float2*>(y_tile + g * Y_PITCH) + t;
    const int begin = first_feature + (pair ? warp_feature / 2 : warp_feature);
    const int lanes = pair ? 4 : 8;  // of a row
    const int column = lane % lanes * 8;
    const int count = min(8, a.features - begin - column);
    const bool to_f32 = p.epilogue == WL_LINEAR_STORE_F32;
#pragma unroll 1
    for (int m = 0; m < M; m++) {
        __syncwarp();
#pragma unroll
        for (int n = 0; n < WARP_FEATURES / 8; n++) {
            float2* const to = y_lane + n / 2 * (pair ? 4 : 8) + n % 2 * (pair ? WARP_FEATURES / 4 : 4);
            to[0] = make_float2(sums[0][n][0], sums[0][n][1]);
            to[8 * Y_PITCH / 2] = make_float2(sums[0][n][2], sums[0][n][3]);
#pragma unroll
            for (int i = 1; i < M; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i - 1][n][j] = sums[i][n][j];
            }
        }
        __syncwarp();
        const int tile_row = first_row + warp_row + 16 * m;
        if (to_f32) {
            for (int i = lane; i < min(WARP_FEATURES, a.features - begin); i += 32) {
                const int feature = begin + i;
                const float bias = a.bias ? to_float(global<const T>(a.bias)[feature]) : 0;
                const float scale = sizeof(E) == 1 ? global<const float>(a.scales)[feature] : 0;
                float* out = global<float>(p.out) + tile_row * p.out_stride + a.column + feature;
                for (int row = 0; row < min(16, p.rows - tile_row); row++, out += p.out_stride) {
                    float y = y_tile[row * Y_PITCH + i];
                    if (sizeof(E) == 1) y = scaled(y, global<const float>(p.x_scales)[tile_row + row], scale);
                    *out = a.bias ? __fadd_rn(y, bias) : y;
                }
            }
            continue;
        }
        // Features past the projection's last are zeros throughout, in the statistics, too.
#pragma unroll 2
        for (int base = 0; base < 16; base += 32 / lanes) {
            const int in_tile = base + lane / lanes, row = tile_row + in_tile;
            T* const to = global<T>(p.out) + row * p.out_stride + a.column + begin + column;
            float y[8] = {};
            Eight<T> out = {};
            const bool some = row < p.rows && count > 0;
            const bool whole = count == 8 && aligned(to);
            if (some) {
                if (p.epilogue == WL_LINEAR_ADD) {
                    if (whole) {
                        out = load_eight<true>(static_cast<const T*>(to), count);
                    } else {
                        out = load_eight<false>(static_cast<const T*>(to), count);
                    }
                }
                const float* const from = y_tile + in_tile * Y_PITCH + column;
                const float x_scale = sizeof(E) == 1 ? global<const float>(p.x_scales)[row] : 0;
                load_sums(y, from);
                finish<T, E>(y, x_scale, a, begin + column, count);
                if (pair) {
                    float z[8];
                    load_sums(z, from + WARP_FEATURES / 2);
                    finish<T, E>(z, x_scale, p.projection[1], begin + column, count);
#pragma unroll
                    for (int i = 0; i < 8; i++) y[i] = silu_times(y[i], z[i]);
                } else if (p.epilogue == WL_LINEAR_ADD) {
                    float before[8];
                    out.unpack_to(before);
#pragma unroll
                    for (int i = 0; i < 8; i++) y[i] = __fadd_rn(y[i], before[i]);
                }
                out.pack_from(y);
                if (whole) {
                    store_eight<true>(to, out, count);
                } else {
                    store_eight<false>(to, out, count);
                }
            }
            if (p.out_stats) {
                out.unpack_to(y);
                const float sum = chunk_sum(sum_of_squares(y));
                if (some && lane % 8 == 0) {
                    const int64_t chunks = statistics_chunks(a.features);
                    global<float>(p.out_stats)[row * chunks + begin / STATISTICS_CHUNK] = sum;
                }
            }
        }
    }
}

}  // namespace wl

#define WL_ENTRIES(T, E, NAME)                                                                                         \
    extern "C" __global__ void __launch_bounds__(wl::THREADS, 2) NAME##_128(const __grid_constant__ WlGemm p) {        \
        wl::gemm<wl::T, wl::E, wl::Large, true>(p);                                                                    \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(wl::THREADS, 4) NAME##_64(const __grid_constant__ WlGemm p) {         \
        wl::gemm<wl::T, wl::E, wl::Small, true>(p);                                                                    \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(wl::THREADS, 3) NAME##_any(const __grid_constant__ WlGemm p) {        \
        wl::gemm<wl::T, wl::E, wl::Small, false>(p);                                                                   \
    }
WL_ENTRIES(bf16, bf16, wl_gemm_bf16)
WL_ENTRIES(f16, f16, wl_gemm_f16)
WL_ENTRIES(bf16, e4m3, wl_gemm_bf16_e4m3)
WL_ENTRIES(f16, e4m3, wl_gemm_f16_e4m3)
