// Rotates q and k to their positions and writes k and v to their pages.
//
// The heads of q, k and v of a row lie side by side. A thread has eight pairs (i, i + D/2) of one head: two loads of
// 16 bytes, one from each half, and two stores, in place for q, to the page for k and v. At D = 128 eight lanes have
// a head, a CTA of 128 threads 16 heads: three CTAs for a row of Llama 3 8B. Each computes the row's D/2 cosines and
// sines once, in f64 while the loads are on their way, and all its heads read them from shared memory behind the only
// barrier.
//
// Bytes of a launch: rows · (heads + 2 kv_heads) · D · 2 · sizeof(T), each moved once; besides, per CTA, D/2
// frequencies, position, sequence and page from L2. FLOP: 6 per pair, and 45 in f64 per pair of a CTA: a tenth of
// what an H100 can do in the time of the bytes. Shared memory: 1280 bytes. Registers: 40, 12 CTAs = 48 warps per SM,
// which has 48 KB of loads on their way.
#include "arch/dependency.cuh"
#include "arch/eight.cuh"
#include "arch/math.cuh"
#include "arch/memory.cuh"
#include "wl_rope_append.h"

namespace wl {

constexpr int THREADS = WL_ROPE_APPEND_THREADS;
constexpr int MAX_EIGHTS = WL_ROPE_APPEND_HEAD_DIM / 16;

// Cosines and sines of a row, where neither the threads of a head nor those that write them collide in a bank:
// quarter q has floats 4q to 4q+3 of each thread's sixteen (eight cosines, eight sines), side by side for
// neighbouring threads.
struct Turns {
    static constexpr int QUARTER = (4 * MAX_EIGHTS + 31) / 32 * 32 + 16;
    alignas(16) float values[4 * QUARTER];

    __device__ __forceinline__ void put(int pair, float2 cos_sin) {
        const int at = pair % 8 / 4 * QUARTER + pair / 8 * 4 + pair % 4;
        values[at] = cos_sin.x;
        values[at + 2 * QUARTER] = cos_sin.y;
    }
    __device__ __forceinline__ void get(int eight, float (&cos)[8], float (&sin)[8]) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float4 c = *reinterpret_cast<const float4*>(&values[half * QUARTER + 4 * eight]);
            const float4 s = *reinterpret_cast<const float4*>(&values[(2 + half) * QUARTER + 4 * eight]);
            cos[4 * half] = c.x, cos[4 * half + 1] = c.y, cos[4 * half + 2] = c.z, cos[4 * half + 3] = c.w;
            sin[4 * half] = s.x, sin[4 * half + 1] = s.y, sin[4 * half + 2] = s.z, sin[4 * half + 3] = s.w;
        }
    }
};

// Where the row's k and v of head 0 go, in elements from the first page; negative for nowhere.
__device__ __forceinline__ int64_t place(const WlRopeAppend& p, int64_t row, int32_t position) {
    const WlPages& pages = p.pages;
    const int32_t sequence = global<const int32_t>(p.slots)[row];
    const int32_t entry = position / pages.page_size;
    // As unsigned numbers: those under zero are out of range, too.
    if (uint32_t(sequence) >= uint32_t(p.sequences) || entry >= pages.table_stride) return -1;
    const int32_t page = global<const int32_t>(pages.table)[int64_t(sequence) * pages.table_stride + entry];
    if (uint32_t(page) >= uint32_t(pages.pages)) return -1;
    return page * pages.page_stride + position % pages.page_size * pages.slot_stride;
}

template <typename T, bool WHOLE>
__device__ __forceinline__ void rope_append_row(const WlRopeAppend& p, T* qkv, int64_t row, int32_t position, int item,
                                                Turns& turns) {
    const int pairs = p.head_dim / 2, eights = (pairs + 7) / 8;
    const int head = item / eights, eight = item % eights, count = pairs - 8 * eight;
    const bool mine = head < p.heads + 2 * p.kv_heads;
    T* x = qkv + int64_t(head) * p.head_dim + 8 * eight;
    Eight<T> low, high;
    int64_t at = -1;
    if (mine) {
        low = load_eight<WHOLE>(x, count);
        high = load_eight<WHOLE>(x + pairs, count);
        if (head >= p.heads) at = place(p, row, position);
    }

    // Up to whole eights: what lies past the last pair is computed with, too, but stored nowhere.
    for (int i = threadIdx.x; i < 8 * eights; i += THREADS) {
        float2 turn = {0, 0};
        if (i < pairs) turn = cos_sin(__fmul_rn(float(position), global<const float>(p.frequencies)[i]));
        turns.put(i, {__fmul_rn(turn.x, p.magnitude), __fmul_rn(turn.y, p.magnitude)});
    }
    __syncthreads();

    T* to = x;
    if (head >= p.heads) {
        if (at < 0) return;  // threads past the last head, too
        const bool is_k = head < p.heads + p.kv_heads;
        const int kv_head = head - p.heads - (is_k ? 0 : p.kv_heads);
        to = global<T>(is_k ? p.pages.k : p.pages.v) + at + kv_head * p.pages.head_stride + 8 * eight;
    }
    if (head < p.heads + p.kv_heads) {
        float a[8], b[8], cos[8], sin[8], c[8], d[8];
        low.unpack_to(a);
        high.unpack_to(b);
        turns.get(eight, cos, sin);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            c[i] = __fmaf_rn(a[i], cos[i], -__fmul_rn(b[i], sin[i]));
            d[i] = __fmaf_rn(b[i], cos[i], __fmul_rn(a[i], sin[i]));
        }
        low.pack_from(c);
        high.pack_from(d);
    }
    store_eight<WHOLE>(to, low, count);
    store_eight<WHOLE>(to + pairs, high, count);
}

template <typename T> __device__ __forceinline__ void rope_append(const WlRopeAppend& p) {
    begin_in_order();
    __shared__ Turns turns;
    const uint32_t items = (p.heads + 2 * p.kv_heads) * ((p.head_dim + 15) / 16);
    const uint32_t ctas = (items + THREADS - 1) / THREADS;
    const int64_t row = blockIdx.x / ctas;
    const int item = blockIdx.x % ctas * THREADS + threadIdx.x;
    const int32_t position = global<const int32_t>(p.positions)[row];
    if (position < 0) return;
    T* qkv = global<T>(p.qkv) + row * p.qkv_stride;
    const WlPages& pages = p.pages;
    const int64_t strides = p.head_dim / 2 | pages.page_stride | pages.head_stride | pages.slot_stride;
    if (strides % 8 == 0 && aligned(qkv, global<T>(pages.k), global<T>(pages.v))) {
        rope_append_row<T, true>(p, qkv, row, position, item, turns);
    } else {
        rope_append_row<T, false>(p, qkv, row, position, item, turns);
    }
}

}  // namespace wl

extern "C" __global__ void __launch_bounds__(WL_ROPE_APPEND_THREADS)
    wl_rope_append_bf16(const __grid_constant__ WlRopeAppend p) {
    wl::rope_append<wl::bf16>(p);
}
extern "C" __global__ void __launch_bounds__(WL_ROPE_APPEND_THREADS)
    wl_rope_append_f16(const __grid_constant__ WlRopeAppend p) {
    wl::rope_append<wl::f16>(p);
}
