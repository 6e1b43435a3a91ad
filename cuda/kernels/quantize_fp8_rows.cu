// Rows to e4m3 with a scale each (row_e4m3.cuh).
//
// One CTA of 256 threads per row, eight features per thread and step, all loads before the first use. Warps meet in 8
// words of shared memory, behind the only barrier, and each takes their maximum for itself. A row of up to 16384
// features stays in registers between its maximum and its result; a wider one is read again, from L2.
//
// Bytes of a launch: rows · (3 · width + 4), each moved once. 21 instructions a feature, 6 FLOP among them; an H100
// takes its 3 bytes in the time of 30. Registers: up to 57, so an SM holds 4 CTAs, 32 warps.
#include "arch/dependency.cuh"
#include "arch/eight.cuh"
#include "arch/memory.cuh"
#include "arch/row_e4m3.cuh"
#include "wl_quantize_fp8_rows.h"

namespace wl {

constexpr int THREADS = WL_QUANTIZE_FP8_ROWS_THREADS;
constexpr int WARPS = THREADS / 32;
constexpr int STEP = 8 * THREADS;
constexpr int HELD = WL_QUANTIZE_FP8_ROWS_HELD / STEP;

template <typename T, int HELD, bool WHOLE>
__device__ __forceinline__ void quantize_row(const WlQuantizeFp8Rows& p, const T* x, e4m3* q, float* to_scale,
                                             int* most) {
    Eight<T> h[HELD];
    int largest = 0;
    for (int base = 0; base < p.width; base += HELD * STEP) {
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const int column = base + i * STEP + 8 * threadIdx.x;
            h[i] = {};
            if (column < p.width) h[i] = load_eight<WHOLE>(x + column, p.width - column);
        }
#pragma unroll
        for (int i = 0; i < HELD; i++) largest = largest_bits(h[i], largest);
    }
    const RowScale scale = row_scale<T>(block_max<WARPS>(largest, most), p.bound);
    if (threadIdx.x == 0) *to_scale = scale.scale;

    for (int base = 0; base < p.width; base += HELD * STEP) {
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const int column = base + i * STEP + 8 * threadIdx.x;
            if (column >= p.width) break;
            if (p.width > HELD * STEP) h[i] = load_eight<WHOLE>(x + column, p.width - column);
            store_eight<WHOLE>(q + column, quantized(h[i], scale), p.width - column);
        }
    }
}

template <typename T> __device__ __forceinline__ void quantize_fp8_rows(const WlQuantizeFp8Rows& p) {
    begin_in_order();
    __shared__ int most[WARPS];
    const int64_t row = blockIdx.x;
    if (p.positions && global<const int32_t>(p.positions)[row] < 0) return;
    const T* x = global<const T>(p.x) + row * p.x_stride;
    e4m3* q = global<e4m3>(p.q) + row * p.q_stride;
    float* scale = global<float>(p.scales) + row;
    // A row that may begin anywhere takes its elements one by one, and one step of them at a time: a short program.
    if (p.width % 8 == 0 && aligned(x) && aligned_eight(q)) {
        quantize_row<T, HELD, true>(p, x, q, scale, most);
    } else {
        quantize_row<T, 1, false>(p, x, q, scale, most);
    }
}

}  // namespace wl

#define WL_ENTRY(T, NAME)                                                                                              \
    extern "C" __global__ void __launch_bounds__(wl::THREADS) NAME(const __grid_constant__ WlQuantizeFp8Rows p) {      \
        wl::quantize_fp8_rows<wl::T>(p);                                                                               \
    }
WL_ENTRY(bf16, wl_quantize_fp8_rows_bf16)
WL_ENTRY(f16, wl_quantize_fp8_rows_f16)
