// Attention of a few query rows over paged keys and values: decoding, and verification of drafts.
//
//   out[row, head] = sum over the keys j that the row sees of softmax_j(scale q[row, head] . k[j]) v[j]
//
// It is bound by the bytes of K and V: it reads them once, keeps many of them on their way, and computes on what has
// arrived. A row sees keys [0, prefix) and [lo, hi) (visible.cuh); nothing outside what the rows of a CTA see together
// is ever loaded.
//
// Rows. The query heads of one kv head read the same keys, so they are packed with the query rows: packed row r of a
// sequence is query row r / group, head r % group of its group. 16 packed rows are the height of an mma, hence of a
// warp. 1, 2 or 4 warps, as the launch chooses, stand over the same keys: 16, 32 or 64 packed rows (at D = 256 up to
// 32) for one reading of K and V. D is head_dim padded to 64, 128 or 256.
//
// Keys. The order in which they are summed follows from their absolute positions:
//   tile     16 keys: a step of the pipeline, and of an mma over keys;
//   split    128 keys: a warp holds its rows' scores of all of them, so they have one maximum, and o is not rescaled;
//   segment  2048 keys: its splits are merged one after the other, from the first to the last; then so are segments.
// What a CTA or a launch makes of its keys is a part: (m, l, o), the maximum, the sum, and the output before it is
// divided by l. There are two ways:
//   _split    A CTA attends to one split with one column of warps. Its part is that split. This is for few sequences.
//   _segment  A CTA has two columns of warps, which take splits in turn, and merges what they find in shared memory.
//             Its part is a segment.
//   _combine  merges the parts of a row: a segment's in a warp, then the segments.
// Where all keys that there may be are one part, it is written as output, and nothing is combined.
//
// A row's bits depend on what it sees alone, not on the rows beside it, the grid, the pages or a longer context. For a
// key that it does not see adds 0 to its sums, and 0 * v to o, as if the tile had been skipped. A split that it does
// not see makes the part (-inf, 0, 0), and to merge that changes nothing, as if it had not been merged. Splits and
// segments begin at multiples of their size; and whoever merges, in whichever kernel, takes them in the same order and
// by one function, `merged`, whose roundings are spelled out.
//
// Grid of _split and _segment: (parts, kv_heads * blocks of packed rows, sequences). CTA x takes the x-th part that its
// rows see, so that a window's CTAs do not grow in number with its context; should there be more parts, it goes on in
// strides.
//
// Bytes. Of global memory:
//   K and V  A tile is copied past L1 into the ring by one warp, 16 bytes a lane and copy. All warps of the column read
//            it there, each once, as operands of mma. Blocks of packed rows, where there are several, each read it.
//   pages    Each warp reads the ids of a split's pages, a lane those of 8 keys, one split ahead of the first copy.
//   q        The first column copies it, once in a CTA.
//   parts    f32 [rows, heads, parts of max_keys, head_dim], and (m, l) [rows, heads, parts of max_keys]: a part of a
//            row is written by one warp, and read by one of _combine if the row sees any of its keys.
//   out      Written by the CTA whose part is everything, or by _combine.
// A layer of Llama 3 8B (32 heads over 8 kv heads of 128, bf16), per 4096 keys of a sequence:
//                                                     1 row          8 rows
//   K and V: keys * kv_heads * D * 2 * 2 bytes        16.8 MB        16.8 MB
//   q and out: rows * heads * D * 2 * 2 bytes         16 KB          131 KB
//   parts, written and then read by _combine
//     _split: rows * heads * keys / 128 * 520 bytes   532 KB, 3.2%   4.26 MB, 25%
//     _segment: rows * heads * keys / 2048 * 520      33 KB, 0.2%    266 KB, 1.6%
//   FLOP: 4 * rows * heads * D * keys                 67 M           537 M
//   the same in mma, which has tiles of 16 rows       268 M          537 M
//
// Shared memory of a CTA, from its beginning:
//   ring    T [columns][SLOTS][16 keys][D]            tiles of K and V on their way
//   folded  f32 [warps of a column][16 rows][D + 8]   what has been merged: o, and (m, l) once for each lane of a quad
//   query   T [warps of a column][16 rows][D]         where `folded` will be; at D = 256, where it stays, after it
// A row of a tile is 2 D bytes: 16-byte chunk c of row r lies at c ^ (r % 8), and so the eight rows that ldmatrix reads
// in a phase lie in eight different groups of banks. A row of `folded` is 8 floats longer than D, and so the rows of a
// warp's lanes begin in different banks.
//
// Registers of a lane, of its warp's 16 rows: 64 scores of a split, which become 32 pairs of weights before V comes;
// D / 2 elements of o; D / 4 registers of q, but none at D = 256, where q is read from shared memory again for each
// tile. By ptxas for sm_80 / sm_90, with no spill; and the CTAs for which an SM of an A100 / H100 then has room:
//                                 _split                _segment
//             rows    shared      registers    CTAs     registers    CTAs
//   D = 64    16      36.5 KB     189 / 194    4 / 6    220 / 226    4 / 4
//             64      50 KB                    2 / 2                 1 / 1
//   D = 128   16      72.5 KB     196 / 224    2 / 3    226 / 232    2 / 3
//             64      98 KB                    1 / 2                 1 / 1
//   D = 256   16      56.5 KB     254 / 255    2 / 3    252 / 254    2 / 3
//             32      81 KB                    2 / 2                 2 / 2
// _combine has 116 / 115 registers, and 1 KB of shared memory for each of 8 warps.
#include "arch/cp_async.cuh"
#include "arch/dependency.cuh"
#include "arch/ldmatrix.cuh"
#include "arch/math.cuh"
#include "arch/memory.cuh"
#include "arch/mma.cuh"
#include "arch/visible.cuh"
#include "arch/warp.cuh"
#include "wl_attention_decode.h"

namespace wl {

constexpr int TILE = 16, SPLIT = WL_ATTENTION_SPLIT_KEYS, SEGMENT = WL_ATTENTION_SEGMENT_KEYS;
constexpr int TILES = SPLIT / TILE;
constexpr int STEPS = 2 * TILES;  // of a split: its tiles of K, then those of V
constexpr float NOTHING = -INFINITY;

template <int D, int PART> struct Shape {
    static constexpr int COLUMNS = PART == SPLIT ? 1 : 2;
    static constexpr int MOST_WARPS = COLUMNS * (D == 256 ? 2 : 4);
    // Tiles of a column. All but one are on their way while one is computed on: at D = 128 up to 60 KB in a CTA. At 700
    // ns, an SM's share of an H100's bandwidth takes 18 KB.
    static constexpr int SLOTS = (D == 256 ? 4 : 16) / COLUMNS;
    static constexpr int TILE_BYTES = TILE * D * 2;
    static constexpr int RING_BYTES = COLUMNS * SLOTS * TILE_BYTES;
    static constexpr int FOLDED_STRIDE = D + 8;
    static constexpr bool QUERY_IN_REGISTERS = D <= 128;
};

// ---- rows

// The rows of a sequence, the number of its keys, and its page table; no rows if a number is out of range.
struct Sequence {
    int first, rows, keys;
    const int* table;
};
__device__ __forceinline__ Sequence sequence(const WlAttentionDecode& p, int index) {
    const int begin = global<const int>(p.offsets)[index], end = global<const int>(p.offsets)[index + 1];
    const int keys = global<const int>(p.lengths)[index];
    const int slot = p.slots ? global<const int>(p.slots)[index] : index;
    const bool valid = uint32_t(begin) <= uint32_t(end) && uint32_t(end) <= uint32_t(p.tokens) &&
                       end - begin <= p.max_rows && uint32_t(keys) <= uint32_t(p.max_keys) &&
                       uint32_t(slot) < uint32_t(p.table_rows);
    const int* table = global<const int>(p.pages.table) + int64_t(slot) * p.pages.table_stride;
    return {begin, valid ? end - begin : 0, keys, table};
}

__device__ __forceinline__ int position(const WlAttentionDecode& p, const Sequence& s, int row) {
    return p.positions ? global<const int>(p.positions)[s.first + row] : s.keys - s.rows + row;
}

__device__ __forceinline__ Visible visible(const WlAttentionDecode& p, const Sequence& s, int row) {
    const int document = p.documents ? global<const int>(p.documents)[s.first + row] : 0;
    return visible(p.mask, position(p, s, row), s.keys, document);
}

// What rows first to last see together.
__device__ __forceinline__ Visible visible_to_any(const WlAttentionDecode& p, const Sequence& s, int first, int last) {
    int prefix = 0, lo = INT_MAX, hi = 0;
    for (int row = first + lane_id(); row <= last; row += 32) {
        const Visible of_row = visible(p, s, row);
        prefix = max(prefix, of_row.prefix);
        if (of_row.hi > of_row.lo) lo = min(lo, of_row.lo), hi = max(hi, of_row.hi);
    }
    hi = warp_max(hi);
    return {warp_max(prefix), hi > 0 ? warp_min(lo) : 0, hi};
}

// ---- keys and values on their way into shared memory

// Where 16-byte chunk `chunk` of row `row` of a tile lies in it.
template <int D> __device__ __forceinline__ uint32_t chunk_offset(int row, int chunk) {
    return row * (2 * D) + ((chunk ^ (row & 7)) << 4);
}

// The stream of tiles that the warps of a column compute on: of each split 8 of K and then 8 of V. A column takes every
// COLUMNS-th split. A tile is copied by one of the warps, in turn: a lane takes 16 bytes of every fourth row, eight
// lanes 128 bytes of one.
template <typename T, int D, int PART> struct Stream {
    using S = Shape<D, PART>;
    const WlAttentionDecode& p;
    const int* table;  // of the sequence
    const T *k, *v;    // of the kv head, in page 0
    Visible seen;      // by any row of the CTA
    uint32_t ring;     // of the column
    int column, warps, warp;

    // Where the keys of a split lie. Eight keys lie together, for a page holds a multiple of eight.
    struct Place {
        uint32_t eights;  // bit i: rows see some of keys 8 i to 8 i + 8
        uint32_t keys;    // bit i: rows see key lane / 8 + 4 i, which this lane copies
        int64_t at;       // in lane i: elements from the head's first to key 8 i; -1 if there is no such page

        __device__ __forceinline__ bool has_tile(int tile) const {
            return eights >> 2 * tile & 3;
        }
    };
    int split, last;   // the split that is computed on, and the end of the part
    Place here, next;  // of that split, and of the column's next one, whose first tiles are copied meanwhile

    __device__ __forceinline__ Place place(int split) const {
        const int key = split * SPLIT + 8 * lane_id();
        const bool needed = split < last && lane_id() < SPLIT / 8 && seen.touches(key, key + 8);
        const uint32_t keys = seen.bits<4>(split * SPLIT + lane_id() / 8);
        return {__ballot_sync(ALL_LANES, needed), keys, needed ? locate(key) : 0};
    }
    __device__ __forceinline__ int64_t locate(int key) const {
        const int index = key / p.pages.page_size;
        if (index >= p.pages.table_stride) return -1;
        const uint32_t page = table[index];
        if (page >= uint32_t(p.pages.pages)) return -1;
        return int64_t(page) * p.pages.page_stride + key % p.pages.page_size * p.pages.slot_stride;
    }

    // 32 D bytes, D of each lane. What no row sees, and columns past head_dim, become zeros: 0 * NaN would be NaN in an
    // mma.
    __device__ __forceinline__ void copy_tile(uint32_t to, const T* head, const Place& from, int tile) const {
        const int64_t eighths[2] = {__shfl_sync(ALL_LANES, from.at, 2 * tile),
                                    __shfl_sync(ALL_LANES, from.at, 2 * tile + 1)};
        const uint32_t keys = from.keys >> 4 * tile;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = lane_id() / 8 + 4 * i;
            const bool there = (keys >> i & 1) && eighths[i / 2] >= 0;
            const T* x = head + eighths[i / 2] + row % 8 * p.pages.slot_stride + lane_id() % 8 * 8;
#pragma unroll
            for (int c = 0; c < D / 64; c++) {
                const int chunk = lane_id() % 8 + 8 * c;
                copy_async(to + chunk_offset<D>(row, chunk), x + 64 * c, there && chunk * 8 < p.head_dim);
            }
        }
    }

    // Starts the copy for a step of this split or, from STEPS on, of the next. A step is a group, though it may copy
    // nothing: waits count groups.
    __device__ __forceinline__ void copy(int step) const {
        const bool of_next = step >= STEPS, of_k = step % STEPS < TILES;
        const int tile = step % TILES;
        const Place& from = of_next ? next : here;
        if (from.has_tile(tile) && (step & (warps - 1)) == warp) {
            copy_tile(ring + step % S::SLOTS * S::TILE_BYTES, of_k ? k : v, from, tile);
        }
        commit_copies();
    }

    // Before the first split of a part.
    __device__ __forceinline__ void begin(int first, int end) {
        split = first + column;
        last = end;
        here = place(split);
#pragma unroll 1
        for (int step = 0; step < S::SLOTS - 1; step++) copy(step);
        look_ahead();
    }
    __device__ __forceinline__ void advance() {
        split += S::COLUMNS;
        here = next;
        look_ahead();
    }
    __device__ __forceinline__ void look_ahead() {
        next = PART == SPLIT ? Place{} : place(split + S::COLUMNS);
    }

    // The tile of a step, when it has come. All warps of the column have then left the tile before, and its slot is
    // filled anew.
    __device__ __forceinline__ uint32_t tile(int step) const {
        wait_copies<S::SLOTS - 2>();
        if (warps == 1) {
            __syncwarp();
        } else if (S::COLUMNS == 1 || column == 0) {
            barrier<1>(32 * warps);
        } else {
            barrier<2>(32 * warps);
        }
        copy(step + S::SLOTS - 1);
        return ring + step % S::SLOTS * S::TILE_BYTES;
    }
};

// ---- 16 packed rows, one split

// A warp's query rows as operands of mma.
template <typename T, int D, int PART> struct Query {
    using S = Shape<D, PART>;
    uint32_t address;
    uint32_t held[S::QUERY_IN_REGISTERS ? D / 16 : 1][4];

    __device__ __forceinline__ void read(uint32_t (&x)[4], int step) const {
        ldmatrix(x, address + chunk_offset<D>(lane_id() % 16, 2 * step + lane_id() / 16));
    }
    __device__ __forceinline__ void hold() {
        if constexpr (S::QUERY_IN_REGISTERS) {
#pragma unroll
            for (int step = 0; step < D / 16; step++) read(held[step], step);
        }
    }
    __device__ __forceinline__ void operand(uint32_t (&x)[4], int step) const {
        if constexpr (S::QUERY_IN_REGISTERS) {
#pragma unroll
            for (int i = 0; i < 4; i++) x[i] = held[step][i];
        } else {
            read(x, step);
        }
    }
};

// What a warp has of its rows: lane l has rows l / 4 and l / 4 + 8, and of these columns 8 n + 2 (l % 4) and the next
// of o.
template <int D> struct Part {
    float m[2], l[2], o[D / 8][4];
};

// The two packed rows of a lane. Those past the sequence's see everything: they are no reason to mask, and are not
// written.
struct Rows {
    Visible visible[2];
    int token[2];
};

// A row's tree on 32 keys, the first of them n keys before those that have a bit; such keys need none.
__device__ __forceinline__ uint32_t tree_bits(uint64_t tree, int n) {
    return n > 0 ? uint32_t(tree << min(n, 32)) | bits_below(n) : uint32_t(tree >> min(-n, 63));
}

// Hides from each row what it does not see: its score becomes -inf. Bit i of `missing` says that there is no page of
// keys 8 i to 8 i + 8: a row that sees one of them gets a sum of NaN.
__device__ __forceinline__ void hide(const WlAttentionDecode& p, const Rows& rows, int split, int keys,
                                     uint32_t missing, float (&s)[TILES][2][4], float (&l)[2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const uint64_t tree = p.tree && rows.token[r] >= 0 ? global<const uint64_t>(p.tree)[rows.token[r]] : 0;
#pragma unroll
        for (int word = 0; word < SPLIT / 32; word++) {
            const int begin = split * SPLIT + 32 * word;
            uint32_t seen = rows.visible[r].bits<1>(begin);
            if (p.tree) seen &= tree_bits(tree, keys - 64 - begin);
            // Four bits become four bytes.
            const uint32_t missing_keys = ((missing >> 4 * word & 15) * 0x00204081 & 0x01010101) * 0xff;
            if (seen & missing_keys) l[r] = NAN;
            // Key of s[tile][n][e]: 16 tile + 8 n + 2 (lane % 4) + e % 2, row e / 2.
            seen >>= 2 * (lane_id() % 4);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float* of_eight = s[2 * word + i / 2][i % 2] + 2 * r;
                if (!(seen >> 8 * i & 1)) of_eight[0] = NOTHING;
                if (!(seen >> (8 * i + 1) & 1)) of_eight[1] = NOTHING;
            }
        }
    }
}

// The rows' part of a split. For each 16 keys that rows see: 64 D bytes of K and V arrive; each warp reads them once
// from shared memory, by D / 8 ldmatrix of 512 bytes, and makes D / 4 mma of them, 1024 D FLOP. Besides, 256 exp2. Of
// both halves of bytes and FLOP, K's are in the first loop and V's in the last.
template <typename T, int D, int PART>
__device__ __forceinline__ void attend(const WlAttentionDecode& p, const Stream<T, D, PART>& stream,
                                       const Query<T, D, PART>& query, const Rows& rows, int keys, Part<D>& part) {
    float s[TILES][2][4] = {};
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        const uint32_t k = stream.tile(tile);
        if (stream.here.has_tile(tile)) {
            // Even and odd steps over D in sums of their own: chains of mma half as long.
            float odd[2][4] = {};
#pragma unroll
            for (int step = 0; step < D / 16; step++) {
                uint32_t a[4], b[4];
                query.operand(a, step);
                ldmatrix(b, k + chunk_offset<D>(lane_id() / 16 * 8 + lane_id() % 8, 2 * step + lane_id() / 8 % 2));
                const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
                mma<T>(step % 2 ? odd[0] : s[tile][0], a, low);
                mma<T>(step % 2 ? odd[1] : s[tile][1], a, high);
            }
#pragma unroll
            for (int e = 0; e < 8; e++) s[tile][e / 4][e % 4] += odd[e / 4][e % 4];
        }
    }

    // From here on scores are times log2 e, for exp2.
    const float scale = p.softcap == 0 ? p.scale * LOG2_E : p.scale / p.softcap;
#pragma unroll
    for (int i = 0; i < 8 * TILES; i++) s[i / 8][i / 4 % 2][i % 4] = __fmul_rn(s[i / 8][i / 4 % 2][i % 4], scale);
    if (p.softcap != 0) {
#pragma unroll
        for (int i = 0; i < 8 * TILES; i++) {
            s[i / 8][i / 4 % 2][i % 4] = __fmul_rn(tanhf(s[i / 8][i / 4 % 2][i % 4]), p.softcap * LOG2_E);
        }
    }

    part.l[0] = part.l[1] = 0;
    const uint32_t missing = __ballot_sync(ALL_LANES, stream.here.at < 0);
    const int begin = stream.split * SPLIT, end = begin + SPLIT;
    const bool whole = rows.visible[0].covers(begin, end) && rows.visible[1].covers(begin, end) &&
                       !(p.tree && end > keys - 64);
    if (missing || !__all_sync(ALL_LANES, whole)) hide(p, rows, stream.split, keys, missing, s, part.l);

    uint32_t weights[TILES][4];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float m = NOTHING;
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) m = fmaxf(m, fmaxf(s[i / 2][i % 2][2 * r], s[i / 2][i % 2][2 * r + 1]));
        m = warp_max<4>(m);
        const float base = m == NOTHING ? 0 : m;
        float l = part.l[r];
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) {
            const float low = exp2_approx(s[i / 2][i % 2][2 * r] - base);
            const float high = exp2_approx(s[i / 2][i % 2][2 * r + 1] - base);
            l += low;
            l += high;
            weights[i / 2][i % 2 * 2 + r] = pack<T>(low, high);
        }
        part.m[r] = m;
        part.l[r] = warp_sum<4>(l);
    }

#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) part.o[n][e] = 0;
    }
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        const uint32_t v = stream.tile(TILES + tile);
        if (stream.here.has_tile(tile)) {
#pragma unroll
            for (int n = 0; n < D / 16; n++) {
                uint32_t b[4];
                ldmatrix_transposed(b, v + chunk_offset<D>(lane_id() % 16, 2 * n + lane_id() / 16));
                const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
                mma<T>(part.o[2 * n], weights[tile], low);
                mma<T>(part.o[2 * n + 1], weights[tile], high);
            }
        }
    }
}

// ---- merging

// How two parts with maxima a and b, in this order, make one with maximum m.
struct Merge {
    float m, keep, add;
};
__device__ __forceinline__ Merge merge(float a, float b) {
    const float m = fmaxf(a, b);
    const float base = m == NOTHING ? 0 : m;
    return {m, exp2_approx(a - base), exp2_approx(b - base)};
}
// Their sums, and elements of o. A part without keys is (-inf, 0, 0): it adds 0 * 0 to 1 * a, or leaves 1 * b of the
// two.
__device__ __forceinline__ float merged(float a, float b, const Merge& by) {
    return __fmaf_rn(b, by.add, __fmul_rn(a, by.keep));
}

// Merges a warp's part into its 16 rows of `folded`, or begins them with it. A lane touches its own columns of o, and
// after the columns its own copy of (m, l): nothing of another lane. Of a split, 64 D bytes are read and 64 D written;
// its K and V have 512 D.
template <int D> __device__ __forceinline__ void fold(float* folded, bool first, const Part<D>& part) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float* row = folded + (lane_id() / 4 + 8 * r) * (D + 8) + 2 * (lane_id() % 4);
        float2* sums = reinterpret_cast<float2*>(row + D);
        const float2 before = first ? float2{NOTHING, 0} : *sums;
        const Merge by = merge(before.x, part.m[r]);
        *sums = {by.m, merged(before.y, part.l[r], by)};
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            float2* at = reinterpret_cast<float2*>(row + 8 * n);
            const float2 o = first ? float2{0, 0} : *at;
            *at = {merged(o.x, part.o[n][2 * r], by), merged(o.y, part.o[n][2 * r + 1], by)};
        }
    }
}

// Writes columns `column` to `column` + 4 of a row that all parts have been merged to, and its lse. Products are
// rounded as they are written: here, too, two kernels must not differ in what the compiler contracts.
template <typename T>
__device__ __forceinline__ void finish(const WlAttentionDecode& p, int64_t token, int head, int column, float m,
                                       float l, float4 o) {
    if (p.sinks && l != 0) {
        const Merge by = merge(m, __fmul_rn(global<const float>(p.sinks)[head], LOG2_E));
        m = by.m;
        l = merged(l, 1, by);
        o = {merged(o.x, 0, by), merged(o.y, 0, by), merged(o.z, 0, by), merged(o.w, 0, by)};
    }
    const float inverse = l == 0 ? 0 : __frcp_rn(l);
    if (column < p.head_dim) {
        T* out = global<T>(p.out) + token * p.out_stride + int64_t(head) * p.head_dim + column;
        // Whether a sum is -0 or +0 depends on what was skipped. Here either becomes +0.
        *reinterpret_cast<uint2*>(out) = {pack<T>(__fmaf_rn(o.x, inverse, 0), __fmaf_rn(o.y, inverse, 0)),
                                          pack<T>(__fmaf_rn(o.z, inverse, 0), __fmaf_rn(o.w, inverse, 0))};
    }
    if (p.lse && column == 0) {
        global<float>(p.lse)[int64_t(head) * p.tokens + token] = __fmul_rn(LN_2, __fadd_rn(m, log2f(l)));
    }
}

// ---- a CTA

// The packed rows of a CTA.
struct Block {
    int first, end;  // of the sequence's
    int group, kv_head;

    __device__ __forceinline__ bool has(int packed) const {
        return packed < end;
    }
    // Of the sequence's query rows, and of all heads.
    __device__ __forceinline__ int row(int packed) const {
        return packed / group;
    }
    __device__ __forceinline__ int head(int packed) const {
        return kv_head * group + packed % group;
    }
};

// Starts the copy of a warp's query rows, 16 packed rows from `first` on. Those past the sequence's, and dead ones, are
// zeros.
template <typename T, int D>
__device__ __forceinline__ void copy_query(const WlAttentionDecode& p, const Sequence& s, const Block& block,
                                           int first, uint32_t to) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = lane_id() / 8 + 4 * i, at = first + row;
        const bool live = block.has(at) && position(p, s, block.row(at)) >= 0;
        const T* from =
            global<const T>(p.q) + (s.first + block.row(at)) * p.q_stride + int64_t(block.head(at)) * p.head_dim;
#pragma unroll
        for (int c = 0; c < D / 64; c++) {
            const int chunk = lane_id() % 8 + 8 * c;
            copy_async(to + chunk_offset<D>(row, chunk), from + chunk * 8, live && chunk * 8 < p.head_dim);
        }
    }
}

// Writes what the columns have merged, a row by each warp: part `index` of `most_parts`, or the output if it is the
// only one.
template <typename T, int D>
__device__ __forceinline__ void write_part(const WlAttentionDecode& p, const Sequence& s, const Block& block,
                                           int most_parts, int index, const float* folded) {
    for (int row = warp_id(); block.has(block.first + row); row += blockDim.x / 32) {
        const int64_t token = s.first + block.row(block.first + row);
        const int head = block.head(block.first + row);
        const float* from = folded + row * (D + 8);
        const float m = from[D], l = from[D + 1];
        const int64_t part = (token * p.heads + head) * most_parts + index;
#pragma unroll
        for (int at = 4 * lane_id(); at < D; at += 128) {
            const float4 o = *reinterpret_cast<const float4*>(from + at);
            if (most_parts == 1) {
                finish<T>(p, token, head, at, m, l, o);
            } else if (at < p.head_dim) {
                *reinterpret_cast<float4*>(global<float>(p.parts) + part * p.head_dim + at) = o;
            }
        }
        if (most_parts > 1 && lane_id() == 0) global<float2>(p.sums)[part] = {m, l};
    }
}

template <typename T, int D, int PART>
__device__ __forceinline__ void attention_decode(const WlAttentionDecode& p) {
    using S = Shape<D, PART>;
    extern __shared__ __align__(128) unsigned char shared[];
    begin_in_order();
    const int warps = blockDim.x / 32 / S::COLUMNS, column = warp_id() / warps, warp = warp_id() % warps;

    // Which rows, what they see together, and in how many parts.
    const Sequence s = sequence(p, blockIdx.z);
    const int group = p.heads / p.kv_heads, packed = blockIdx.y / p.kv_heads * 16 * warps;
    const Block block = {packed, min(packed + 16 * warps, s.rows * group), group, int(blockIdx.y % p.kv_heads)};
    if (block.first >= block.end) return;
    const Visible seen = visible_to_any(p, s, block.row(block.first), block.row(block.end - 1));
    const int most_parts = (p.max_keys + PART - 1) / PART;
    const int parts = most_parts == 1 ? 1 : seen.parts<PART>();
    if (blockIdx.x >= parts) return;

    const uint32_t ring = shared_address(shared) + column * S::SLOTS * S::TILE_BYTES;
    float* folded = reinterpret_cast<float*>(shared + S::RING_BYTES);
    const uint32_t query_bytes = S::QUERY_IN_REGISTERS ? 0 : 16 * warps * S::FOLDED_STRIDE * sizeof(float);
    Query<T, D, PART> query = {shared_address(folded) + query_bytes + warp * S::TILE_BYTES};
    if (column == 0) copy_query<T, D>(p, s, block, block.first + 16 * warp, query.address);
    commit_copies();

    Rows rows;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int at = block.first + 16 * warp + lane_id() / 4 + 8 * r;
        rows.token[r] = block.has(at) ? s.first + block.row(at) : -1;
        rows.visible[r] = block.has(at) ? visible(p, s, block.row(at)) : Visible{0, 0, INT_MAX};
    }
    const T* k = global<const T>(p.pages.k) + block.kv_head * p.pages.head_stride;
    const T* v = global<const T>(p.pages.v) + block.kv_head * p.pages.head_stride;
    Stream<T, D, PART> stream = {p, s.table, k, v, seen, ring, column, warps, warp};

    for (int number = blockIdx.x; number < parts; number += gridDim.x) {
        const int index = most_parts == 1 ? 0 : seen.part<PART>(number);
        // Its splits, from the first to the last that rows see, but one at least: a row that sees nothing has a part,
        // too.
        int first = index * (PART / SPLIT), last = first + PART / SPLIT;
        if (first * SPLIT >= seen.prefix) first = max(first, seen.lo / SPLIT);
        last = max(min(last, (max(seen.prefix, seen.hi) + SPLIT - 1) / SPLIT), first + 1);

        stream.begin(first, last);
        if (number == blockIdx.x) {
            wait_copies<S::SLOTS - 1>();
            __syncthreads();
            query.hold();
        }
        for (int round = first; round < last; round += S::COLUMNS) {
            Part<D> part;
            attend<T, D, PART>(p, stream, query, rows, s.keys, part);
            // One column after the other, in the order of their splits. Behind a barrier, a column merges into what
            // those before it have left, while they go on to their next split.
#pragma unroll 1
            for (int turn = 0; turn < S::COLUMNS; turn++) {
                __syncthreads();
                const bool begins = round == first && turn == 0;
                if (turn == column && (begins || stream.here.eights)) {
                    fold<D>(folded + 16 * warp * S::FOLDED_STRIDE, begins, part);
                }
            }
            stream.advance();
        }
        __syncthreads();
        write_part<T, D>(p, s, block, most_parts, index, folded);
    }
}

// ---- the parts of a row

// Four columns of a row: what has been merged so far.
struct Columns {
    float m = NOTHING, l = 0;
    float4 o = {};

    __device__ __forceinline__ void add(float part_m, float part_l, float4 part) {
        const Merge by = merge(m, part_m);
        m = by.m;
        l = merged(l, part_l, by);
        o = {merged(o.x, part.x, by), merged(o.y, part.y, by), merged(o.z, part.z, by), merged(o.w, part.w, by)};
    }
};

// Merges the parts of one row and head, 128 columns of them: grid (heads * ceil(head_dim / 128), max_rows, sequences),
// 1 to 8 warps; a lane has four columns. A warp reads all parts of a segment at once, 16 * 520 bytes at D = 128, and
// merges them by 3 FLOP for each element; the first warp merges the segments. Which parts there are follows from what
// the row itself sees.
template <typename T> __device__ __forceinline__ void combine(const WlAttentionDecode& p) {
    begin_in_order();
    constexpr int SPLITS = SEGMENT / SPLIT;
    __shared__ Columns of_segments[WL_ATTENTION_COMBINE_WARPS][32];
    const int head = blockIdx.x % p.heads, column = blockIdx.x / p.heads * 128 + 4 * lane_id();
    const Sequence s = sequence(p, blockIdx.z);
    const int row = blockIdx.y, warps = blockDim.x / 32;
    if (row >= s.rows) return;
    const int64_t token = s.first + row;
    const Visible seen = visible(p, s, row);
    const int most_parts = (p.max_keys + p.part_keys - 1) / p.part_keys;
    const float2* sums = global<const float2>(p.sums) + (token * p.heads + head) * most_parts;
    const float* parts = global<const float>(p.parts) + (token * p.heads + head) * most_parts * p.head_dim + column;
    const auto part_o = [&](int index, bool there) {
        there = there && column < p.head_dim;
        return there ? *reinterpret_cast<const float4*>(parts + int64_t(index) * p.head_dim) : float4{};
    };

    Columns all;
    const int segments = seen.parts<SEGMENT>();
    for (int base = 0; base < segments; base += warps) {
        if (base + warp_id() < segments) {
            const int segment = seen.part<SEGMENT>(base + warp_id());
            Columns& folded = of_segments[warp_id()][lane_id()];
            if (p.part_keys == SEGMENT) {
                const float2 sum = sums[segment];
                folded.m = sum.x, folded.l = sum.y, folded.o = part_o(segment, true);
            } else {
                const int first = segment * SPLITS, mine = first + lane_id() % SPLITS;
                const float2 sum = seen.touches(mine * SPLIT, (mine + 1) * SPLIT) ? sums[mine] : float2{NOTHING, 0};
                float4 o[SPLITS];
#pragma unroll
                for (int i = 0; i < SPLITS; i++) {
                    o[i] = part_o(first + i, seen.touches((first + i) * SPLIT, (first + i + 1) * SPLIT));
                }
                Columns merging;
#pragma unroll
                for (int i = 0; i < SPLITS; i++) {
                    merging.add(__shfl_sync(ALL_LANES, sum.x, i), __shfl_sync(ALL_LANES, sum.y, i), o[i]);
                }
                folded = merging;
            }
        }
        __syncthreads();
        if (warp_id() == 0) {
            for (int i = 0; i < min(warps, segments - base); i++) {
                const Columns& segment = of_segments[i][lane_id()];
                all.add(segment.m, segment.l, segment.o);
            }
        }
        __syncthreads();
    }
    if (warp_id() == 0) finish<T>(p, token, head, column, all.m, all.l, all.o);
}

}  // namespace wl

#define WL_ENTRY(T, D)                                                                                                \
    extern "C" __global__ void __launch_bounds__(32 * wl::Shape<D, wl::SPLIT>::MOST_WARPS)                            \
        wl_attention_decode_##T##_##D##_split(const __grid_constant__ WlAttentionDecode p) {                          \
        wl::attention_decode<wl::T, D, wl::SPLIT>(p);                                                                 \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(32 * wl::Shape<D, wl::SEGMENT>::MOST_WARPS)                          \
        wl_attention_decode_##T##_##D##_segment(const __grid_constant__ WlAttentionDecode p) {                        \
        wl::attention_decode<wl::T, D, wl::SEGMENT>(p);                                                               \
    }
#define WL_COMBINE(T)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(32 * WL_ATTENTION_COMBINE_WARPS)                                     \
        wl_attention_decode_##T##_combine(const __grid_constant__ WlAttentionDecode p) {                              \
        wl::combine<wl::T>(p);                                                                                        \
    }
WL_ENTRY(bf16, 64)
WL_ENTRY(bf16, 128)
WL_ENTRY(bf16, 256)
WL_ENTRY(f16, 64)
WL_ENTRY(f16, 128)
WL_ENTRY(f16, 256)
WL_COMBINE(bf16)
WL_COMBINE(f16)
