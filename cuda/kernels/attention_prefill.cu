// Flash attention: any number of query rows over paged keys and values. Prompts, chunks of prompts after a context,
// packed documents.
//
//   out[row, head] = sum over the keys j that the row sees of softmax_j(scale q[row, head] . k[j]) v[j]
//
// It is bound by arithmetic: the tensor cores multiply Q K^T and P V, scores live in registers and nowhere else, and K
// and V come through a ring of tiles while others are computed on.
//
// Rows. The query heads of one kv head read the same keys, so they are packed with the query rows, as in
// attention_decode.cu: packed row r of a sequence is query row r / group, head r % group of its group. A CTA has a tile
// of 128 packed rows (64 at D = 256), each of its 4 warps 32 (16) of them. A tile so has few query rows, hence short
// ragged edges; and a B operand, once read from shared memory, serves two mma.
//
// Keys. A row sees keys [0, prefix) and [lo, hi) (visible.cuh). A CTA goes through the tiles of 64 keys (32 at D = 256)
// that its rows see together, first those of the prefix, then the interval's, in rising order; no other is loaded. A
// warp whose rows see nothing of a tile only waits with the others. Most tiles are seen whole by all rows of a warp: on
// the others, scores of keys that a row does not see become -inf. Tiles lie at absolute multiples, and a tile of which
// a row sees nothing changes no bit of it (it adds 0 and multiplies by 1). So a row's bits follow from what it sees:
// not from the rows of its tile, the other sequences, or the chunk of the prompt that it came in.
//
// Online softmax, a row's: with m the largest score so far (unscaled) and c = scale log2 e, a tile's weights are p =
// 2^(c s - c m), one fused multiplication and exp2 each; where m grows, l and o shrink by 2^(c m_old - c m_new); l +=
// sum of p, o += P V. At the end, out = o / l and lse = ln 2 (c m + log2 l). All weights of a row have the rounding of
// c m as a common factor, which ends in l: 2^16 where c m is 2^28. A softcap, or a scale that is not in (0, 1], is
// applied to the scores first; then c = 1.
//
// What is where, of 16 rows and lane l: scores, weights and o are accumulators of mma (mma.cuh): rows l / 4 and l / 4 +
// 8, of every eight columns 2 (l % 4) and the next. Two such groups of eight keys are, rounded to T, the A operand of P
// V: P does not leave the registers. m and l are held by all four lanes of a row, l of their own keys alone until the
// end. Lane l also holds what row l of the warp sees, which is looked at on the edges.
//
// Shared memory of a CTA: Q [rows][D], later out, each warp its own rows; then the ring: 3 tiles [keys][D], K and V in
// turn. While one is computed on, two are on their way. 16-byte chunks are permuted within rows (tile.cuh), so that
// neither ldmatrix nor the stores of out meet bank conflicts. D is head_dim, padded: what is past it is zeros that are
// not read.
//
// As sm_80 and sm_90a are compiled, without spills:
//    D    rows  keys  shared  registers  CTAs of an SM
//    64    128    64   40 KB    168        3
//    96    128    64   60 KB    255        2
//   128    128    64   80 KB    255        2
//   256     64    32   80 KB    255        2
// Of the registers, o takes D (D / 2 at 256) and the scores 64 (16). On GPUs with 100 KB of shared memory an SM (8.6,
// 8.9, 12.x), that bounds the CTAs to 2, 1, 1, 1.
//
// Grid: one dimension, so many CTAs as the tiles of rows may be at most, times kv_heads. How many rows each sequence
// has is known on the device alone, so that a captured graph serves any: the host bounds the tiles by their total,
// (tokens group + 127 sequences) / 128, and each CTA finds the tile that is its own from offsets and lengths. Tiles are
// numbered by how many keys they may see, from the most on, over all sequences, kv heads side by side: a tile that is
// started last is a short one. CTAs beyond the last tile return; they are at most kv_heads for each sequence.
//
// A layer of Llama 3 8B (32 heads over 8 kv heads of 128, bf16), a prompt of n = 8192, by mask:
//                                                        causal            window 1024
//   FLOP: 4 * heads * D * keys that rows see             550 G             129 G
//   the same in mma, edges included                      554 G             137 G
//   q and out: n * heads * D * 2 * 2 bytes               134 MB            134 MB
//   K and V: n * kv_heads * D * 2 * 2 bytes              34 MB             34 MB
//   K and V to shared memory, by each tile of rows       4.3 GB            1.0 GB
#include "arch/attention.cuh"
#include "arch/cp_async.cuh"
#include "arch/dependency.cuh"
#include "arch/math.cuh"
#include "arch/memory.cuh"
#include "arch/mma.cuh"
#include "arch/tile.cuh"
#include "arch/visible.cuh"
#include "arch/warp.cuh"
#include "wl_attention_prefill.h"

namespace wl {

constexpr int WARPS = 4;
constexpr float NOTHING = -INFINITY;

template <int D> struct Shape {
    static constexpr int BLOCKS = D == 256 ? 1 : 2;  // of 16 packed rows, in a warp
    static constexpr int WARP_ROWS = 16 * BLOCKS, ROWS = WARPS * WARP_ROWS;
    static constexpr int KEYS = D == 256 ? 32 : 64;  // of a tile
    static constexpr int QUERY_BYTES = ROWS * D * 2, TILE_BYTES = KEYS * D * 2;
    static constexpr int SLOTS = 3;                 // of the ring: on one tile it is computed, two are on their way
    static constexpr int CTAS = D == 64 ? 3 : 2;    // of an SM: for so many there are registers
};
static_assert(Shape<128>::ROWS == WL_ATTENTION_PREFILL_ROWS && Shape<256>::ROWS == WL_ATTENTION_PREFILL_ROWS_256, "");

// ---- which tile is whose

// Tiles of query rows of a sequence, and the level of its last: how many tiles' rows there are before its last key. The
// tile before it is one level lower, and so on. The more keys a tile may see, the higher its level.
struct Tiles {
    int count, level;
};
template <int ROWS> __device__ __forceinline__ Tiles tiles_of(const WlAttentionPrefill& p, int index) {
    const int group = p.heads / p.kv_heads;
    const Sequence s = sequence(p, index);
    const int count = (s.rows * group + ROWS - 1) / ROWS;
    return {count, count == 0 ? -1 : max(s.keys / ((ROWS + group - 1) / group), count - 1)};
}

// Tiles of all sequences at a level or above.
template <int ROWS> __device__ __forceinline__ int tiles_from(const WlAttentionPrefill& p, int level) {
    int sum = 0;
    for (int index = lane_id(); index < p.sequences; index += 32) {
        const Tiles tiles = tiles_of<ROWS>(p, index);
        sum += min(max(tiles.level - level + 1, 0), tiles.count);
    }
    return __reduce_add_sync(ALL_LANES, sum);
}

// The tile with this number, when those of all sequences are sorted by level from the highest on, and at one level by
// sequence: the sequence, and the number of the tile in it; -1 if there are not so many.
template <int ROWS> __device__ __forceinline__ int2 find_tile(const WlAttentionPrefill& p, int number) {
    int highest = -1;
    for (int index = lane_id(); index < p.sequences; index += 32) {
        highest = max(highest, tiles_of<ROWS>(p, index).level);
    }
    highest = warp_max(highest);
    // A level has a tile of each sequence at most: this one is no higher than `high`. In sequences of one length it is
    // there. Else lower levels are looked at in longer and longer steps, and then between the last two.
    int high = highest - number / p.sequences, low = high;
    for (int step = 1; low > 0 && tiles_from<ROWS>(p, low) <= number; step *= 2) {
        high = low - 1;
        low -= step;
    }
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (tiles_from<ROWS>(p, middle) > number) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    int rank = number - tiles_from<ROWS>(p, low + 1);
    for (int base = 0; base < p.sequences; base += 32) {
        const int index = base + lane_id();
        const Tiles tiles = index < p.sequences ? tiles_of<ROWS>(p, index) : Tiles{0, -1};
        const bool there = low <= tiles.level && low > tiles.level - tiles.count;
        const uint32_t all = __ballot_sync(ALL_LANES, there);
        const uint32_t it = __ballot_sync(ALL_LANES, there && __popc(all & bits_below(lane_id())) == rank);
        if (it) {
            const int lane = __ffs(it) - 1;
            return {base + lane, __shfl_sync(ALL_LANES, tiles.count - 1 - (tiles.level - low), lane)};
        }
        rank -= __popc(all);
    }
    return {-1, -1};
}

// ---- keys and values on their way into shared memory

// The tiles of K and V that the CTA's rows see.
template <typename T, int D> struct Stream {
    using S = Shape<D>;
    const WlAttentionPrefill& p;
    const int* table;      // of the sequence
    int kv_head;
    Visible seen;          // by any row of the CTA
    int tiles;
    int begin;             // first key of the tile that is copied next; -1: there is none
    int64_t at;            // in lane i: elements from the first of all to key begin + 8 i; -1 if seen and not there

    __device__ __forceinline__ void locate(int number) {
        begin = number < tiles ? seen.part<S::KEYS>(number) * S::KEYS : -1;
        const int key = begin + 8 * lane_id();
        at = 0;
        if (begin >= 0 && lane_id() < S::KEYS / 8 && seen.touches(key, key + 8)) {
            at = offset_in_pages(p.pages, table, key);
            if (at >= 0) at += kv_head * p.pages.head_stride;
        }
    }
    // Bit i: keys 8 i to 8 i + 8 of the tile have no page.
    __device__ __forceinline__ uint32_t missing() const {
        return __ballot_sync(ALL_LANES, at < 0);
    }

    // Starts the copy of the tile of K, or of V. A warp takes every fourth eight keys. What no row sees, and columns
    // past head_dim, become zeros: 0 * NaN would be NaN in an mma. The copy is a group, though there may be no tile:
    // waits count groups.
    __device__ __forceinline__ void copy(uint64_t from, uint32_t to) const {
        using L = Lanes<D>;
        if (begin >= 0) {
#pragma unroll
            for (int i = 0; i < S::KEYS / 8; i += WARPS) {
                const int eight = i + warp_id();
                const int64_t first = __shfl_sync(ALL_LANES, at, eight);
#pragma unroll
                for (int r = 0; r < 8; r += L::DOWN) {
                    const int row = r + L::row();
                    const bool there = first >= 0 && seen.contains(begin + 8 * eight + row);
                    const T* x = global<const T>(from) + first + row * p.pages.slot_stride;
#pragma unroll
                    for (int c = 0; c < L::CHUNKS; c++) {
                        const int chunk = L::chunk(c);
                        copy_async(to + chunk_offset<D>(8 * eight + row, chunk), x + 8 * chunk,
                                   there && 8 * chunk < p.head_dim);
                    }
                }
            }
        }
        commit_copies();
    }
};

// ---- a warp's rows

// Scores of a tile, and later their weights: of row 16 b + lane / 4 + 8 r, keys 8 n + 2 (lane % 4) and the next are
// [b][n][2 r] and [b][n][2 r + 1]. The output's columns lie likewise.
template <int D> using Scores = float[Shape<D>::BLOCKS][Shape<D>::KEYS / 8][4];
template <int D> struct Output {
    float m[Shape<D>::BLOCKS][2];            // largest score so far
    float l[Shape<D>::BLOCKS][2];            // sum of weights, of the lane's own keys
    float o[Shape<D>::BLOCKS][D / 8][4];     // sum of weights * v
};

// Hides from each row what it does not see: its score becomes -inf. Row i's keys are in lane i. Bit i of `missing` says
// that there is no page of keys 8 i to 8 i + 8: a row that sees one of them gets a sum of NaN.
template <int D>
__device__ __forceinline__ void hide(const Visible& of_lane, int begin, uint32_t missing, Scores<D>& s,
                                     Output<D>& out) {
    using S = Shape<D>;
#pragma unroll
    for (int b = 0; b < S::BLOCKS; b++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int lane = 16 * b + 8 * r + lane_id() / 4;
            const Visible row = {__shfl_sync(ALL_LANES, of_lane.prefix, lane), __shfl_sync(ALL_LANES, of_lane.lo, lane),
                                 __shfl_sync(ALL_LANES, of_lane.hi, lane)};
#pragma unroll
            for (int word = 0; word < S::KEYS / 32; word++) {
                uint32_t bits = row.bits<1>(begin + 32 * word);
                // Four bits become four bytes.
                const uint32_t missing_keys = ((missing >> 4 * word & 15) * 0x00204081 & 0x01010101) * 0xff;
                if (bits & missing_keys) out.l[b][r] = NAN;
                bits >>= 2 * (lane_id() % 4);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float* pair = s[b][4 * word + i] + 2 * r;
                    if (!(bits >> 8 * i & 1)) pair[0] = NOTHING;
                    if (!(bits >> (8 * i + 1) & 1)) pair[1] = NOTHING;
                }
            }
        }
    }
}

// S = Q K^T of one tile.
template <typename T, int D>
__device__ __forceinline__ void multiply_keys(uint32_t query, uint32_t k, Scores<D>& s) {
    using S = Shape<D>;
#pragma unroll
    for (int i = 0; i < S::BLOCKS * S::KEYS / 8 * 4; i++) s[i / 4 / (S::KEYS / 8)][i / 4 % (S::KEYS / 8)][i % 4] = 0;
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        uint32_t a[S::BLOCKS][4];
#pragma unroll
        for (int b = 0; b < S::BLOCKS; b++) load_a<D>(a[b], query, 16 * b, step);
#pragma unroll
        for (int n = 0; n < S::KEYS / 16; n++) {
            uint32_t keys[2][2];
            load_b<D>(keys, k, 16 * n, step);
#pragma unroll
            for (int b = 0; b < S::BLOCKS; b++) {
                mma<T>(s[b][2 * n], a[b], keys[0]);
                mma<T>(s[b][2 * n + 1], a[b], keys[1]);
            }
        }
    }
}

// Scores become exponents of 2, where a factor alone cannot make them such.
template <int D> __device__ __forceinline__ void make_exponents(const WlAttentionPrefill& p, Scores<D>& s) {
    using S = Shape<D>;
    const float scale = p.softcap == 0 ? p.scale * LOG2_E : p.scale / p.softcap;
#pragma unroll
    for (int i = 0; i < S::BLOCKS * S::KEYS / 8; i++) {
        float (&x)[4] = s[i / (S::KEYS / 8)][i % (S::KEYS / 8)];
#pragma unroll
        for (int e = 0; e < 4; e++) x[e] = __fmul_rn(x[e], scale);
        // The branch parts them: there are no registers for all of them at once.
        if (p.softcap == 0) continue;
#pragma unroll
        for (int e = 0; e < 4; e++) x[e] = __fmul_rn(tanh_approx(x[e]), p.softcap * LOG2_E);
    }
}

// A tile's scores become weights, relative to the largest score so far; what has been summed is brought to that one.
template <typename T, int D>
__device__ __forceinline__ void soften(const Scores<D>& s, float factor, Output<D>& out,
                                       uint32_t (&weights)[Shape<D>::BLOCKS][Shape<D>::KEYS / 16][4]) {
    using S = Shape<D>;
    float shrink[S::BLOCKS][2];
#pragma unroll
    for (int b = 0; b < S::BLOCKS; b++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float m = out.m[b][r];
#pragma unroll
            for (int n = 0; n < S::KEYS / 8; n++) m = fmaxf(m, fmaxf(s[b][n][2 * r], s[b][n][2 * r + 1]));
            m = warp_max<4>(m);
            const float base = m == NOTHING ? 0 : __fmul_rn(m, factor);
            shrink[b][r] = exp2_approx(__fmul_rn(out.m[b][r], factor) - base);
            out.m[b][r] = m;
            float l = __fmul_rn(out.l[b][r], shrink[b][r]);
#pragma unroll
            for (int n = 0; n < S::KEYS / 8; n++) {
                const float low = exp2_approx(__fmaf_rn(s[b][n][2 * r], factor, -base));
                const float high = exp2_approx(__fmaf_rn(s[b][n][2 * r + 1], factor, -base));
                l += low;
                l += high;
                weights[b][n / 2][n % 2 * 2 + r] = pack<T>(low, high);
            }
            out.l[b][r] = l;
        }
    }
    // Mostly no row has found a larger score, and a multiplication by 1 changes nothing.
    bool shrinks = false;
#pragma unroll
    for (int b = 0; b < S::BLOCKS; b++) shrinks |= shrink[b][0] != 1 || shrink[b][1] != 1;
    if (__any_sync(ALL_LANES, shrinks)) {
#pragma unroll
        for (int b = 0; b < S::BLOCKS; b++) {
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) out.o[b][n][e] = __fmul_rn(out.o[b][n][e], shrink[b][e / 2]);
            }
        }
    }
}

// O += P V of one tile.
template <typename T, int D>
__device__ __forceinline__ void multiply_values(const uint32_t (&weights)[Shape<D>::BLOCKS][Shape<D>::KEYS / 16][4],
                                                uint32_t v, Output<D>& out) {
    using S = Shape<D>;
#pragma unroll
    for (int step = 0; step < S::KEYS / 16; step++) {
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32_t values[2][2];
            load_b_rows<D>(values, v, 16 * step, n);
#pragma unroll
            for (int b = 0; b < S::BLOCKS; b++) {
                mma<T>(out.o[b][2 * n], weights[b][step], values[0]);
                mma<T>(out.o[b][2 * n + 1], weights[b][step], values[1]);
            }
        }
    }
}

template <typename T, int D> __device__ __forceinline__ void attention_prefill(const WlAttentionPrefill& p) {
    using S = Shape<D>;
    using L = Lanes<D>;
    extern __shared__ __align__(128) unsigned char shared[];
    begin_in_order();
    const int group = p.heads / p.kv_heads, kv_head = blockIdx.x % p.kv_heads;
    const int2 tile = find_tile<S::ROWS>(p, blockIdx.x / p.kv_heads);
    if (tile.x < 0) return;
    const Sequence sequence = wl::sequence(p, tile.x);
    // The packed rows of the warp.
    const int first_of_tile = tile.y * S::ROWS, first = first_of_tile + warp_id() * S::WARP_ROWS;
    const int end = min(first_of_tile + S::ROWS, sequence.rows * group);

    const uint32_t query = shared_address(shared) + warp_id() * S::WARP_ROWS * D * 2;
#pragma unroll 1
    for (int r = 0; r < S::WARP_ROWS; r += L::DOWN) {
        const int row = r + L::row(), at = first + row;
        const bool live = at < end && position(p, sequence, at / group) >= 0;
        const T* x = global<const T>(p.q) + int64_t(sequence.first + at / group) * p.q_stride +
                     (kv_head * group + at % group) * p.head_dim;
#pragma unroll
        for (int c = 0; c < L::CHUNKS; c++) {
            const int chunk = L::chunk(c);
            copy_async(query + chunk_offset<D>(row, chunk), x + 8 * chunk, live && 8 * chunk < p.head_dim);
        }
    }

    Stream<T, D> stream = {p, sequence.table, kv_head,
                           visible_to_any(p, sequence, first_of_tile / group, (end - 1) / group)};
    stream.tiles = stream.seen.template parts<S::KEYS>();
    uint32_t k = shared_address(shared) + S::QUERY_BYTES, v = k + S::TILE_BYTES, left = v + S::TILE_BYTES;
    stream.locate(0);
    stream.copy(p.pages.k, k);
    stream.copy(p.pages.v, v);
    uint32_t missing = stream.missing();
    stream.locate(1);

    // What row lane % WARP_ROWS sees. Rows past the last see what that one sees.
    Visible of_lane = {0, 0, 0};
    if (first < end) of_lane = visible(p, sequence, min(first + lane_id() % S::WARP_ROWS, end - 1) / group);

    Output<D> out;
#pragma unroll
    for (int b = 0; b < S::BLOCKS; b++) {
        out.m[b][0] = out.m[b][1] = NOTHING;
        out.l[b][0] = out.l[b][1] = 0;
#pragma unroll
        for (int i = 0; i < D / 2; i++) out.o[b][i / 4][i % 4] = 0;
    }
    // Scores times `factor` are exponents of 2. Where a multiplication cannot make them such, where 0 * -inf might come
    // up, or where the rounding of the largest exponent would be seen, they are made so beforehand.
    const bool plain = p.softcap == 0 && p.scale > 1e-20f && p.scale <= 1;
    const float factor = plain ? p.scale * LOG2_E : 1;

    // At D = 128, a tile: 32 KB of K and V arrive; 64 ex2 a lane; 4.2 MFLOP in 1024 mma, 2048 cycles of an A100's SM.
    // Their operands are 160 KB that ldmatrix reads from shared memory, 1280 cycles. (At D = 256, where an operand
    // serves one mma, 1280 cycles as well, for 1024 of mma.)
    for (int number = 0; number < stream.tiles; number++) {
        const int begin = stream.seen.template part<S::KEYS>(number) * S::KEYS;
        const bool busy = __any_sync(ALL_LANES, of_lane.touches(begin, begin + S::KEYS));
        uint32_t weights[S::BLOCKS][S::KEYS / 16][4];

        wait_copies<1>();
        __syncthreads();
        stream.copy(p.pages.k, left);
        if (busy) {
            Scores<D> s;
            multiply_keys<T, D>(query, k, s);
            if (!plain) make_exponents<D>(p, s);
            const bool whole = of_lane.covers(begin, begin + S::KEYS);
            if (missing || !__all_sync(ALL_LANES, whole)) hide<D>(of_lane, begin, missing, s, out);
            soften<T, D>(s, factor, out, weights);
        }

        wait_copies<1>();
        __syncthreads();
        stream.copy(p.pages.v, k);
        missing = stream.missing();
        stream.locate(number + 2);
        if (busy) multiply_values<T, D>(weights, v, out);

        const uint32_t next = left;
        left = v, v = k, k = next;
    }
    wait_copies<0>();
    __syncwarp();

#pragma unroll
    for (int b = 0; b < S::BLOCKS; b++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = 16 * b + 8 * r + lane_id() / 4, at = first + row;
            const int head = kv_head * group + at % group;
            float m = __fmul_rn(out.m[b][r], factor), l = warp_sum<4>(out.l[b][r]), keep = 1;
            if (p.sinks && l != 0) {
                const float sink = __fmul_rn(global<const float>(p.sinks)[head], LOG2_E), most = fmaxf(m, sink);
                keep = exp2_approx(m - most);
                l = __fmaf_rn(l, keep, exp2_approx(sink - most));
                m = most;
            }
            const float inverse = l == 0 ? 0 : __fmul_rn(keep, __frcp_rn(l));
            if (p.lse && at < end && lane_id() % 4 == 0) {
                // All heads' rows are up to 2^30.
                global<float>(p.lse)[head * p.tokens + sequence.first + at / group] =
                    __fmul_rn(LN_2, __fadd_rn(m, log2f(l)));
            }
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                const uint32_t to = warp_id() * S::WARP_ROWS * D * 2 + chunk_offset<D>(row, n) + 4 * (lane_id() % 4);
                *reinterpret_cast<uint32_t*>(shared + to) = pack<T>(__fmul_rn(out.o[b][n][2 * r], inverse),
                                                                   __fmul_rn(out.o[b][n][2 * r + 1], inverse));
            }
        }
    }
    __syncwarp();
#pragma unroll 1
    for (int r = 0; r < S::WARP_ROWS; r += L::DOWN) {
        const int row = r + L::row(), at = first + row;
        if (at >= end) continue;
        T* to = global<T>(p.out) + int64_t(sequence.first + at / group) * p.out_stride +
                (kv_head * group + at % group) * p.head_dim;
#pragma unroll
        for (int c = 0; c < L::CHUNKS; c++) {
            const int chunk = L::chunk(c);
            const uint32_t from = warp_id() * S::WARP_ROWS * D * 2 + chunk_offset<D>(row, chunk);
            if (8 * chunk < p.head_dim) {
                *reinterpret_cast<uint4*>(to + 8 * chunk) = *reinterpret_cast<const uint4*>(shared + from);
            }
        }
    }
}

}  // namespace wl

#define WL_ENTRY(T, D)                                                                                                \
    extern "C" __global__ void __launch_bounds__(32 * wl::WARPS, wl::Shape<D>::CTAS)                                  \
        wl_attention_prefill_##T##_##D(const __grid_constant__ WlAttentionPrefill p) {                                \
        wl::attention_prefill<wl::T, D>(p);                                                                           \
    }
WL_ENTRY(bf16, 64)
WL_ENTRY(bf16, 96)
WL_ENTRY(bf16, 128)
WL_ENTRY(bf16, 256)
WL_ENTRY(f16, 64)
WL_ENTRY(f16, 96)
WL_ENTRY(f16, 128)
WL_ENTRY(f16, 256)
