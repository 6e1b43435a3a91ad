// Rows to e4m3 with a scale each, as in the Llama 3 paper, section 6 (arXiv 2407.21783):
//
//   scale = max(min(max|x|, bound) / 448, 1 / (448 · 512)),  q = e4m3(x / scale), saturating
//
// One CTA of 256 threads per row, eight features per thread and step, all loads before the first use. The largest |x|
// is that of the bits without sign, as an integer, so that a NaN is larger than all else. Warps meet in 8 words of
// shared memory, behind the only barrier, and each takes their maximum for itself. A row of up to 16384 features stays
// in registers between its maximum and its result; a wider one is read again, from L2.
//
// Bytes of a launch: rows · (3 · width + 4), each moved once. 21 instructions a feature, 6 FLOP among them; an H100
// takes its 3 bytes in the time of 30. Registers: 57, so an SM holds 4 CTAs, 32 warps.
#include "arch/eight.cuh"
#include "arch/fp8.cuh"
#include "arch/memory.cuh"
#include "arch/warp.cuh"
#include "wl_quantize_fp8_rows.h"

namespace wl {

constexpr int THREADS = WL_QUANTIZE_FP8_ROWS_THREADS;
constexpr int WARPS = THREADS / 32;
constexpr int STEP = 8 * THREADS;
constexpr int HELD = WL_QUANTIZE_FP8_ROWS_HELD / STEP;

// x / scale, rounded once: Newton's step makes the quotient exact, loses the sign of a zero, and makes NaN of
// infinities, which saturate alike. `inverse` is 1 / scale, rounded.
__device__ __forceinline__ float quotient(float x, float scale, float inverse) {
    const float q = __fmul_rn(x, inverse);
    return copysignf(__fmaf_rn(__fmaf_rn(-q, scale, x), inverse, q), x);
}

template <typename T, int HELD, bool WHOLE>
__device__ __forceinline__ void quantize_row(const WlQuantizeFp8Rows& p, const T* x, uint8_t* q, float* to_scale,
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
        for (int i = 0; i < HELD; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int word = h[i].words[j] & 0x7fff7fff;
                largest = max(largest, max(word & 0xffff, word >> 16));
            }
        }
    }
    largest = warp_max(largest);
    if (lane_id() == 0) most[warp_id()] = largest;
    __syncthreads();
    largest = warp_max(most[lane_id() % WARPS]);

    const float row_most = to_float(T{uint16_t(largest)});
    float scale = __fdiv_rn(fminf(row_most, p.bound), E4M3_MOST);
    scale = fmaxf(scale, 1.0f / (448 * 512));
    if (row_most != row_most) scale = row_most;
    if (threadIdx.x == 0) *to_scale = scale;
    const float inverse = __frcp_rn(scale);

    for (int base = 0; base < p.width; base += HELD * STEP) {
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const int column = base + i * STEP + 8 * threadIdx.x;
            if (column >= p.width) break;
            if (p.width > HELD * STEP) h[i] = load_eight<WHOLE>(x + column, p.width - column);
            float values[8];
            h[i].unpack_to(values);
            uint32_t words[2] = {};
#pragma unroll
            for (int j = 0; j < 8; j++) words[j / 4] |= to_e4m3(quotient(values[j], scale, inverse)) << j % 4 * 8;
            if constexpr (WHOLE) {
                *reinterpret_cast<uint2*>(q + column) = make_uint2(words[0], words[1]);
            } else {
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    if (column + j < p.width) q[column + j] = uint8_t(words[j / 4] >> j % 4 * 8);
                }
            }
        }
    }
}

template <typename T> __device__ __forceinline__ void quantize_fp8_rows(const WlQuantizeFp8Rows& p) {
    __shared__ int most[WARPS];
    const int64_t row = blockIdx.x;
    if (p.positions && global<const int32_t>(p.positions)[row] < 0) return;
    const T* x = global<const T>(p.x) + row * p.x_stride;
    uint8_t* q = global<uint8_t>(p.q) + row * p.q_stride;
    float* scale = global<float>(p.scales) + row;
    // A row that may begin anywhere takes its elements one by one, and one step of them at a time: a short program.
    if (p.width % 8 == 0 && aligned(x) && (reinterpret_cast<uintptr_t>(q) & 7) == 0) {
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
