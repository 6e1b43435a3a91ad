// RMSNorm of rows, with the addition to the residual stream before it.
//
//   h = x, or round(x + residual), which is written as the new residual
//   y = round(w · round(h · 1/√(mean(h²) + ε)))                        round: to the storage type T
//   with y as e4m3: what quantize_fp8_rows makes of it (row_e4m3.cuh)
//
// One CTA of 256 threads per row, eight features per thread and step: its 32 groups of eight lanes sum the 32 chunks
// of a step, group g the chunks g, g + 32, g + 64 … in order: the chains of row_statistics.cuh as they stand. They
// meet in 32 floats of shared memory, behind the only barrier, and every warp adds them up for itself. The row stays
// in registers between its sum and its result: HELD steps of 2048 features. A wider row is read again, from L2; each
// thread then reads what it wrote itself. For e4m3 the warps meet once more, over the largest |y|; y takes h's place in
// the registers, and that of a wider row is computed a second time.
//
// Bytes of a launch: rows · width · sizeof(T) · (1 read + 1 written, or 2 + 2 with the residual) + the weights, which
// all but the first CTAs find in L1 or L2, + 4 · rows · width/64 of statistics; of a y of e4m3 width + 4 are written a
// row. FLOP: about 6 per feature. Registers for sm_80 / sm_90: 41 / 45 at HELD 2 (4096 features): 5 CTAs, 40 warps per SM (f32:
// 57 / 58, 4 CTAs; e4m3: 46, 5 CTAs). 107 / 99 at HELD 8 (16384; e4m3: 105 / 110): 2 CTAs, 16 warps. Either way an SM has 40 KB or more of loads on
// their way, over twice what its share of an H100's memory takes at 600 ns.
#include "arch/dependency.cuh"
#include "arch/eight.cuh"
#include "arch/memory.cuh"
#include "arch/row_e4m3.cuh"
#include "arch/row_statistics.cuh"
#include "wl_rms_norm.h"

namespace wl {

constexpr int THREADS = WL_RMS_NORM_THREADS;
constexpr int WARPS = THREADS / 32;
constexpr int STEP = 8 * THREADS;
static_assert(STEP == 32 * STATISTICS_CHUNK, "a step is one chunk of each of the 32 chains");

// What the warps of a CTA meet in.
struct Shared {
    float chains[32];
    int most[WARPS];
};

template <typename T, typename Y, int HELD, bool WHOLE>
__device__ __forceinline__ void norm_row(const WlRmsNorm& p, const T* x, const T* residual, T* new_residual, Y* y,
                                         float* stats, Shared& shared) {
    constexpr bool EARLY_WEIGHTS = HELD <= 2;
    const T* weight = global<const T>(p.weight);
    Eight<T> h[HELD], w[HELD];
    float chain = 0;
    for (int base = 0; base < p.width; base += HELD * STEP) {
        // All loads before the first use.
        Eight<T> r[HELD];
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const int column = base + i * STEP + 8 * threadIdx.x;
            h[i] = r[i] = w[i] = {};
            if (column < p.width) {
                h[i] = load_eight<WHOLE>(x + column, p.width - column);
                if (residual) r[i] = load_eight<WHOLE>(residual + column, p.width - column);
            }
        }
        // The weights too, where there are registers for them and the row is read once.
        if (EARLY_WEIGHTS && p.width <= HELD * STEP) {
#pragma unroll
            for (int i = 0; i < HELD; i++) {
                const int column = base + i * STEP + 8 * threadIdx.x;
                if (column < p.width) w[i] = load_eight<WHOLE>(weight + column, p.width - column);
            }
        }
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const int column = base + i * STEP + 8 * threadIdx.x;
            float values[8];
            h[i].unpack_to(values);
            if (residual) {
                float added[8];
                r[i].unpack_to(added);
#pragma unroll
                for (int j = 0; j < 8; j++) values[j] += added[j];
                h[i].pack_from(values);
                h[i].unpack_to(values);
                if (column < p.width) store_eight<WHOLE>(new_residual + column, h[i], p.width - column);
            }
            const float chunk = chunk_sum(sum_of_squares(values));
            chain += chunk;
            if (stats && threadIdx.x % 8 == 0 && column < p.width) stats[column / STATISTICS_CHUNK] = chunk;
        }
    }

    if (threadIdx.x % 8 == 0) shared.chains[threadIdx.x / 8] = chain;
    __syncthreads();
    const float inverse = inverse_rms(warp_sum(shared.chains[lane_id()]), p.width, p.eps);

    // From here on h is y, HELD steps of it.
    const T* again = residual ? new_residual : x;
    auto norm = [&](int base) {
        const bool twice = p.width > HELD * STEP;
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const int column = base + i * STEP + 8 * threadIdx.x;
            if (column < p.width) {
                if (twice) h[i] = load_eight<WHOLE>(again + column, p.width - column);
                if (twice || !EARLY_WEIGHTS) w[i] = load_eight<WHOLE>(weight + column, p.width - column);
            }
        }
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const int column = base + i * STEP + 8 * threadIdx.x;
            if (column < p.width) {
                float values[8], scale[8];
                h[i].unpack_to(values);
                w[i].unpack_to(scale);
#pragma unroll
                for (int j = 0; j < 8; j++) values[j] = rounded<T>(values[j] * inverse) * scale[j];
                h[i].pack_from(values);
            }
        }
    };
    if constexpr (sizeof(Y) == 1) {
        int largest = 0;
        for (int base = 0; base < p.width; base += HELD * STEP) {
            norm(base);
            // Past the row's end h has zeros, or what was here before.
#pragma unroll
            for (int i = 0; i < HELD; i++) largest = largest_bits(h[i], largest);
        }
        const RowScale scale = row_scale<T>(block_max<WARPS>(largest, shared.most), p.bound);
        if (threadIdx.x == 0) global<float>(p.y_scales)[blockIdx.x] = scale.scale;
        for (int base = 0; base < p.width; base += HELD * STEP) {
            if (p.width > HELD * STEP) norm(base);
#pragma unroll
            for (int i = 0; i < HELD; i++) {
                const int column = base + i * STEP + 8 * threadIdx.x;
                if (column < p.width) store_eight<WHOLE>(y + column, quantized(h[i], scale), p.width - column);
            }
        }
    } else {
        for (int base = 0; base < p.width; base += HELD * STEP) {
            norm(base);
#pragma unroll
            for (int i = 0; i < HELD; i++) {
                const int column = base + i * STEP + 8 * threadIdx.x;
                if (column < p.width) store_eight<WHOLE>(y + column, h[i], p.width - column);
            }
        }
    }
}

template <typename T, typename Y, int HELD> __device__ __forceinline__ void rms_norm(const WlRmsNorm& p) {
    begin_in_order();
    __shared__ Shared shared;
    const int64_t row = blockIdx.x;
    if (p.positions && global<const int32_t>(p.positions)[row] < 0) return;
    const T* x = global<const T>(p.x) + row * p.x_stride;
    const T* residual = p.residual ? global<const T>(p.residual) + row * p.residual_stride : nullptr;
    T* new_residual = p.residual ? global<T>(p.new_residual) + row * p.new_residual_stride : nullptr;
    Y* y = global<Y>(p.y) + row * p.y_stride;
    float* stats = p.stats ? global<float>(p.stats) + row * statistics_chunks(p.width) : nullptr;
    // A row that may begin anywhere takes its elements one by one, and one step of them at a time: a short program.
    const bool whole_inputs = aligned(x, residual, new_residual) && aligned(global<const T>(p.weight));
    if (p.width % 8 == 0 && whole_inputs && aligned_eight(y)) {
        norm_row<T, Y, HELD, true>(p, x, residual, new_residual, y, stats, shared);
    } else {
        norm_row<T, Y, 1, false>(p, x, residual, new_residual, y, stats, shared);
    }
}

using f32 = float;

}  // namespace wl

#define WL_ENTRY(T, Y, NAME, HELD)                                                                        \
    extern "C" __global__ void __launch_bounds__(wl::THREADS) NAME(const __grid_constant__ WlRmsNorm p) { \
        wl::rms_norm<wl::T, wl::Y, HELD / wl::STEP>(p);                                                   \
    }
WL_ENTRY(bf16, bf16, wl_rms_norm_bf16, WL_RMS_NORM_HELD)
WL_ENTRY(f16, f16, wl_rms_norm_f16, WL_RMS_NORM_HELD)
WL_ENTRY(f32, f32, wl_rms_norm_f32, WL_RMS_NORM_HELD)
WL_ENTRY(bf16, bf16, wl_rms_norm_bf16_wide, WL_RMS_NORM_HELD_WIDE)
WL_ENTRY(f16, f16, wl_rms_norm_f16_wide, WL_RMS_NORM_HELD_WIDE)
WL_ENTRY(bf16, e4m3, wl_rms_norm_bf16_e4m3, WL_RMS_NORM_HELD)
WL_ENTRY(f16, e4m3, wl_rms_norm_f16_e4m3, WL_RMS_NORM_HELD)
WL_ENTRY(bf16, e4m3, wl_rms_norm_bf16_e4m3_wide, WL_RMS_NORM_HELD_WIDE)
WL_ENTRY(f16, e4m3, wl_rms_norm_f16_e4m3_wide, WL_RMS_NORM_HELD_WIDE)
