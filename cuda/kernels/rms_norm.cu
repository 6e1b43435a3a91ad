// RMSNorm of rows, with the addition to the residual stream before it.
//
//   h = x, or round(x + residual), which is written as the new residual
//   y = round(w · round(h · 1/√(mean(h²) + ε)))                        round: to the storage type T
//
// One CTA of 256 threads per row, eight features per thread and step: its 32 groups of eight lanes sum the 32 chunks
// of a step, group g the chunks g, g + 32, g + 64 … in order: the chains of row_statistics.cuh as they stand. They
// meet in 32 floats of shared memory, behind the only barrier, and every warp adds them up for itself. The row stays
// in registers between its sum and its result: HELD steps of 2048 features. A wider row is read again, from L2; each
// thread then reads what it wrote itself.
//
// Bytes of a launch: rows · width · sizeof(T) · (1 read + 1 written, or 2 + 2 with the residual) + the weights, which
// all but the first CTAs find in L1 or L2, + 4 · rows · width/64 of statistics. FLOP: about 6 per feature. Registers:
// 41 at HELD 2 (4096 features): 5 CTAs, 40 warps per SM (f32: 57, 4 CTAs). 106 at HELD 8 (16384): 2 CTAs, 16 warps.
// Either way an SM has 40 KB or more of loads on their way, over twice what its share of an H100's memory takes at
// 600 ns.
#include "arch/eight.cuh"
#include "arch/memory.cuh"
#include "arch/row_statistics.cuh"
#include "wl_rms_norm.h"

namespace wl {

constexpr int THREADS = WL_RMS_NORM_THREADS;
constexpr int STEP = 8 * THREADS;
static_assert(STEP == 32 * STATISTICS_CHUNK, "a step is one chunk of each of the 32 chains");

template <typename T, int HELD, bool WHOLE>
__device__ __forceinline__ void norm_row(const WlRmsNorm& p, const T* x, const T* residual, T* new_residual, T* y,
                                         float* stats, float* chains) {
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

    if (threadIdx.x % 8 == 0) chains[threadIdx.x / 8] = chain;
    __syncthreads();
    const float inverse = inverse_rms(warp_sum(chains[lane_id()]), p.width, p.eps);

    const T* again = residual ? new_residual : x;
    for (int base = 0; base < p.width; base += HELD * STEP) {
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
                Eight<T> out;
                out.pack_from(values);
                store_eight<WHOLE>(y + column, out, p.width - column);
            }
        }
    }
}

template <typename T, int HELD> __device__ __forceinline__ void rms_norm(const WlRmsNorm& p) {
    __shared__ float chains[32];
    const int64_t row = blockIdx.x;
    if (p.positions && global<const int32_t>(p.positions)[row] < 0) return;
    const T* x = global<const T>(p.x) + row * p.x_stride;
    const T* residual = p.residual ? global<const T>(p.residual) + row * p.residual_stride : nullptr;
    T* new_residual = p.residual ? global<T>(p.new_residual) + row * p.new_residual_stride : nullptr;
    T* y = global<T>(p.y) + row * p.y_stride;
    float* stats = p.stats ? global<float>(p.stats) + row * statistics_chunks(p.width) : nullptr;
    // A row that may begin anywhere takes its elements one by one, and one step of them at a time: a short program.
    if (p.width % 8 == 0 && aligned(x, residual, new_residual) && aligned(y, global<const T>(p.weight))) {
        norm_row<T, HELD, true>(p, x, residual, new_residual, y, stats, chains);
    } else {
        norm_row<T, 1, false>(p, x, residual, new_residual, y, stats, chains);
    }
}

using f32 = float;

}  // namespace wl

#define WL_ENTRY(T, NAME, HELD)                                                                    \
    extern "C" __global__ void __launch_bounds__(wl::THREADS) NAME(const __grid_constant__ WlRmsNorm p) { \
        wl::rms_norm<wl::T, HELD / wl::STEP>(p);                                                   \
    }
WL_ENTRY(bf16, wl_rms_norm_bf16, WL_RMS_NORM_HELD)
WL_ENTRY(f16, wl_rms_norm_f16, WL_RMS_NORM_HELD)
WL_ENTRY(f32, wl_rms_norm_f32, WL_RMS_NORM_HELD)
WL_ENTRY(bf16, wl_rms_norm_bf16_wide, WL_RMS_NORM_HELD_WIDE)
WL_ENTRY(f16, wl_rms_norm_f16_wide, WL_RMS_NORM_HELD_WIDE)
