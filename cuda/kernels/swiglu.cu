// out = round(silu(gate) · up), for rows of gate and up that lie anywhere: as two matrices, or as the halves of one.
//
// A CTA of 128 threads takes 2048 features of one row: a thread eight of them, and eight more 1024 further on, four
// loads of 16 bytes before the first use.
//
// Bytes of a launch: rows · width · 3 · sizeof(T), each moved once. FLOP: 8 per feature, and 2 special functions; a
// feature's 6 bytes take an H100 as long as 60 instructions of a lane or 6 special functions. Registers: 32, 16 CTAs
// = 64 warps per SM, which has up to 128 KB of loads on their way.
//
// As e4m3, what quantize_fp8_rows makes of out (row_e4m3.cuh): one CTA of 256 threads takes a row, whose warps meet
// over the largest |out|. A row of up to 16384 features stays in registers until then; a wider one is read and computed
// again. Bytes: rows · (5 · width + 4), where apart they were rows · (9 · width + 4). Registers: up to 100, 2 CTAs =
// 16 warps.
#include "arch/dependency.cuh"
#include "arch/eight.cuh"
#include "arch/math.cuh"
#include "arch/memory.cuh"
#include "arch/row_e4m3.cuh"
#include "wl_swiglu.h"

namespace wl {

// What a thread computes: STEPS times eight features, STEP apart, those past the width as zeros.
template <typename T, int STEPS, int STEP, bool WHOLE>
__device__ __forceinline__ void swiglu_features(Eight<T> (&out)[STEPS], const T* gate, const T* up, int first,
                                                int width) {
    Eight<T> u[STEPS];
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        const int column = first + i * STEP;
        out[i] = {};
        if (column < width) {
            out[i] = load_eight<WHOLE>(gate + column, width - column);
            u[i] = load_eight<WHOLE>(up + column, width - column);
        }
    }
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        if (first + i * STEP < width) {
            float x[8], y[8];
            out[i].unpack_to(x);
            u[i].unpack_to(y);
#pragma unroll
            for (int j = 0; j < 8; j++) x[j] = silu_times(x[j], y[j]);
            out[i].pack_from(x);
        }
    }
}

template <typename T, bool WHOLE>
__device__ __forceinline__ void swiglu_part(const T* gate, const T* up, T* out, int first, int width) {
    constexpr int STEP = 8 * WL_SWIGLU_THREADS, STEPS = WL_SWIGLU_FEATURES / STEP;
    Eight<T> y[STEPS];
    swiglu_features<T, STEPS, STEP, WHOLE>(y, gate, up, first, width);
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        const int column = first + i * STEP;
        if (column < width) store_eight<WHOLE>(out + column, y[i], width - column);
    }
}

template <typename T> __device__ __forceinline__ void swiglu(const WlSwiglu& p) {
    begin_in_order();
    const uint32_t ctas = (p.width + WL_SWIGLU_FEATURES - 1) / WL_SWIGLU_FEATURES;
    const int64_t row = blockIdx.x / ctas;
    const int first = blockIdx.x % ctas * WL_SWIGLU_FEATURES + 8 * threadIdx.x;
    if (p.positions && global<const int32_t>(p.positions)[row] < 0) return;
    const T* gate = global<const T>(p.gate) + row * p.gate_stride;
    const T* up = global<const T>(p.up) + row * p.up_stride;
    T* out = global<T>(p.out) + row * p.out_stride;
    if (p.width % 8 == 0 && aligned(gate, up, out)) {
        swiglu_part<T, true>(gate, up, out, first, p.width);
    } else {
        swiglu_part<T, false>(gate, up, out, first, p.width);
    }
}

template <typename T, int STEPS, bool WHOLE>
__device__ __forceinline__ void swiglu_row(const WlSwiglu& p, const T* gate, const T* up, e4m3* out, int* most) {
    constexpr int STEP = 8 * WL_SWIGLU_E4M3_THREADS;
    Eight<T> y[STEPS];
    int largest = 0;
    for (int base = 8 * threadIdx.x; base < p.width; base += STEPS * STEP) {
        swiglu_features<T, STEPS, STEP, WHOLE>(y, gate, up, base, p.width);
#pragma unroll
        for (int i = 0; i < STEPS; i++) largest = largest_bits(y[i], largest);
    }
    const RowScale scale = row_scale<T>(block_max<WL_SWIGLU_E4M3_THREADS / 32>(largest, most), p.bound);
    if (threadIdx.x == 0) global<float>(p.out_scales)[blockIdx.x] = scale.scale;
    for (int base = 8 * threadIdx.x; base < p.width; base += STEPS * STEP) {
        if (p.width > STEPS * STEP) swiglu_features<T, STEPS, STEP, WHOLE>(y, gate, up, base, p.width);
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            const int column = base + i * STEP;
            if (column < p.width) store_eight<WHOLE>(out + column, quantized(y[i], scale), p.width - column);
        }
    }
}

template <typename T> __device__ __forceinline__ void swiglu_e4m3(const WlSwiglu& p) {
    begin_in_order();
    __shared__ int most[WL_SWIGLU_E4M3_THREADS / 32];
    const int64_t row = blockIdx.x;
    if (p.positions && global<const int32_t>(p.positions)[row] < 0) return;
    const T* gate = global<const T>(p.gate) + row * p.gate_stride;
    const T* up = global<const T>(p.up) + row * p.up_stride;
    e4m3* out = global<e4m3>(p.out) + row * p.out_stride;
    // A row that may begin anywhere takes its elements one by one, and one step of them at a time: a short program.
    if (p.width % 8 == 0 && aligned(gate, up) && aligned_eight(out)) {
        swiglu_row<T, WL_SWIGLU_E4M3_HELD / (8 * WL_SWIGLU_E4M3_THREADS), true>(p, gate, up, out, most);
    } else {
        swiglu_row<T, 1, false>(p, gate, up, out, most);
    }
}

}  // namespace wl

#define WL_ENTRIES(T, NAME)                                                                                     \
    extern "C" __global__ void __launch_bounds__(WL_SWIGLU_THREADS) NAME(const __grid_constant__ WlSwiglu p) {  \
        wl::swiglu<wl::T>(p);                                                                                   \
    }                                                                                                           \
    extern "C" __global__ void __launch_bounds__(WL_SWIGLU_E4M3_THREADS) NAME##_e4m3(                           \
        const __grid_constant__ WlSwiglu p) {                                                                   \
        wl::swiglu_e4m3<wl::T>(p);                                                                              \
    }
WL_ENTRIES(bf16, wl_swiglu_bf16)
WL_ENTRIES(f16, wl_swiglu_f16)
