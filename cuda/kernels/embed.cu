// out[r] = table[tokens[r]], with the statistics of the row that the first norm wants.
//
// A CTA of 128 threads copies 2048 features of one row: a thread eight of them, and eight more 1024 further on. A
// token that is not in the vocabulary makes its row NaN.
//
// Bytes of a launch: rows · width · 2 · sizeof(T), each moved once, + 4 · rows · width/64 of statistics. FLOP: 2 per
// feature. Registers: 32, 16 CTAs = 64 warps per SM.
#include "arch/dependency.cuh"
#include "arch/eight.cuh"
#include "arch/memory.cuh"
#include "arch/row_statistics.cuh"
#include "wl_embed.h"

namespace wl {

constexpr int THREADS = WL_EMBED_THREADS;
constexpr int STEP = 8 * THREADS;
constexpr int STEPS = WL_EMBED_FEATURES / STEP;
constexpr uint32_t NAN_PAIR = 0x7fff7fff;  // in bf16 and in f16

template <typename T, bool WHOLE>
__device__ __forceinline__ void embed_features(const T* from, T* out, float* stats, int first, int width) {
    Eight<T> x[STEPS];
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        const int column = first + i * STEP;
        x[i] = {};
        if (column < width) {
            if (from) {
                x[i] = load_eight<WHOLE>(from + column, width - column);
            } else {
                x[i] = {NAN_PAIR, NAN_PAIR, NAN_PAIR, NAN_PAIR};
            }
        }
    }
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        const int column = first + i * STEP;
        if (column < width) store_eight<WHOLE>(out + column, x[i], width - column);
        if (stats) {
            float values[8];
            x[i].unpack_to(values);
            const float chunk = chunk_sum(sum_of_squares(values));
            if (threadIdx.x % 8 == 0 && column < width) stats[column / STATISTICS_CHUNK] = chunk;
        }
    }
}

template <typename T> __device__ __forceinline__ void embed(const WlEmbed& p) {
    begin_in_order();
    const uint32_t ctas = (p.width + WL_EMBED_FEATURES - 1) / WL_EMBED_FEATURES;
    const int64_t row = blockIdx.x / ctas;
    const int first = blockIdx.x % ctas * WL_EMBED_FEATURES + 8 * threadIdx.x;
    if (p.positions && global<const int32_t>(p.positions)[row] < 0) return;
    const int32_t token = global<const int32_t>(p.tokens)[row];
    const bool known = uint32_t(token) < uint32_t(p.vocabulary);
    const T* from = known ? global<const T>(p.table) + token * p.table_stride : nullptr;
    T* out = global<T>(p.out) + row * p.out_stride;
    float* stats = p.stats ? global<float>(p.stats) + row * statistics_chunks(p.width) : nullptr;
    if (p.width % 8 == 0 && aligned(from, out)) {
        embed_features<T, true>(from, out, stats, first, p.width);
    } else {
        embed_features<T, false>(from, out, stats, first, p.width);
    }
}

}  // namespace wl

extern "C" __global__ void __launch_bounds__(WL_EMBED_THREADS) wl_embed_bf16(const __grid_constant__ WlEmbed p) {
    wl::embed<wl::bf16>(p);
}
extern "C" __global__ void __launch_bounds__(WL_EMBED_THREADS) wl_embed_f16(const __grid_constant__ WlEmbed p) {
    wl::embed<wl::f16>(p);
}
