// out = round(silu(gate) · up), for rows of gate and up that lie anywhere: as two matrices, or as the halves of one.
//
// A CTA of 128 threads takes 2048 features of one row: a thread eight of them, and eight more 1024 further on, four
// loads of 16 bytes before the first use.
//
// Bytes of a launch: rows · width · 3 · sizeof(T), each moved once. FLOP: 8 per feature, and 2 special functions; a
// feature's 6 bytes take an H100 as long as 60 instructions of a lane or 6 special functions. Registers: 32, 16 CTAs
// = 64 warps per SM, which has up to 128 KB of loads on their way.
#include "arch/eight.cuh"
#include "arch/math.cuh"
#include "arch/memory.cuh"
#include "wl_swiglu.h"

namespace wl {

constexpr int THREADS = WL_SWIGLU_THREADS;
constexpr int STEP = 8 * THREADS;
constexpr int STEPS = WL_SWIGLU_FEATURES / STEP;

template <typename T, bool WHOLE>
__device__ __forceinline__ void swiglu_features(const T* gate, const T* up, T* out, int first, int width) {
    Eight<T> g[STEPS], u[STEPS];
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        const int column = first + i * STEP;
        if (column < width) {
            g[i] = load_eight<WHOLE>(gate + column, width - column);
            u[i] = load_eight<WHOLE>(up + column, width - column);
        }
    }
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        const int column = first + i * STEP;
        if (column < width) {
            float x[8], y[8];
            g[i].unpack_to(x);
            u[i].unpack_to(y);
#pragma unroll
            for (int j = 0; j < 8; j++) x[j] = silu_times(x[j], y[j]);
            g[i].pack_from(x);
            store_eight<WHOLE>(out + column, g[i], width - column);
        }
    }
}

template <typename T> __device__ __forceinline__ void swiglu(const WlSwiglu& p) {
    const uint32_t ctas = (p.width + WL_SWIGLU_FEATURES - 1) / WL_SWIGLU_FEATURES;
    const int64_t row = blockIdx.x / ctas;
    const int first = blockIdx.x % ctas * WL_SWIGLU_FEATURES + 8 * threadIdx.x;
    if (p.positions && global<const int32_t>(p.positions)[row] < 0) return;
    const T* gate = global<const T>(p.gate) + row * p.gate_stride;
    const T* up = global<const T>(p.up) + row * p.up_stride;
    T* out = global<T>(p.out) + row * p.out_stride;
    if (p.width % 8 == 0 && aligned(gate, up, out)) {
        swiglu_features<T, true>(gate, up, out, first, p.width);
    } else {
        swiglu_features<T, false>(gate, up, out, first, p.width);
    }
}

}  // namespace wl

extern "C" __global__ void __launch_bounds__(WL_SWIGLU_THREADS) wl_swiglu_bf16(const __grid_constant__ WlSwiglu p) {
    wl::swiglu<wl::bf16>(p);
}
extern "C" __global__ void __launch_bounds__(WL_SWIGLU_THREADS) wl_swiglu_f16(const __grid_constant__ WlSwiglu p) {
    wl::swiglu<wl::f16>(p);
}
