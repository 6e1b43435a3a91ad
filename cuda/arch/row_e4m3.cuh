// A row as e4m3 with one scale: what kernels share whose results are such rows. As in the Llama 3 paper, section 6
// (arXiv 2407.21783), each operation rounded once:
//
//   scale = max(min(max|x|, bound) / 448, 1 / (448 · 512)),  q = e4m3(x / scale), saturating
#pragma once
#include "fp8.cuh"
#include "warp.cuh"

namespace wl {

// The largest |x| of eight and of `largest`, as bits without sign, as an integer: a NaN is larger than all else.
template <typename T> __device__ __forceinline__ int largest_bits(const Eight<T>& x, int largest) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int word = x.words[j] & 0x7fff7fff;
        largest = max(largest, max(word & 0xffff, word >> 16));
    }
    return largest;
}

// The largest of a CTA of WARPS warps, in every thread. `scratch` holds WARPS words of shared memory, which nothing
// else uses.
template <int WARPS> __device__ __forceinline__ int block_max(int x, int* scratch) {
    x = warp_max(x);
    if (lane_id() == 0) scratch[warp_id()] = x;
    __syncthreads();
    return warp_max(scratch[lane_id() % WARPS]);
}

// A row's scale, and its inverse, rounded.
struct RowScale {
    float scale, inverse;
};

// The scale of a row whose largest |x| has these bits; NaN if that is a NaN.
template <typename T> __device__ __forceinline__ RowScale row_scale(int largest, float bound) {
    const float most = to_float(T{uint16_t(largest)});
    float scale = __fdiv_rn(fminf(most, bound), E4M3_MOST);
    scale = fmaxf(scale, 1.0f / (448 * 512));
    if (most != most) scale = most;
    return {scale, __frcp_rn(scale)};
}

// x / scale, rounded once: Newton's step makes the quotient exact, loses the sign of a zero, and makes NaN of
// infinities, which saturate alike.
__device__ __forceinline__ float quotient(float x, RowScale s) {
    const float q = __fmul_rn(x, s.inverse);
    return copysignf(__fmaf_rn(__fmaf_rn(-q, s.scale, x), s.inverse, q), x);
}

template <typename T> __device__ __forceinline__ Eight<e4m3> quantized(const Eight<T>& x, RowScale s) {
    float values[8];
    x.unpack_to(values);
    Eight<e4m3> q = {};
#pragma unroll
    for (int j = 0; j < 8; j++) q.words[j / 4] |= to_e4m3(quotient(values[j], s)) << j % 4 * 8;
    return q;
}

// Whether eight elements from here on are whole accesses, of 8 bytes in e4m3.
template <typename T> __device__ __forceinline__ bool aligned_eight(const T* p) {
    return reinterpret_cast<uintptr_t>(p) % (sizeof(T) == 1 ? 8 : 16) == 0;
}

}  // namespace wl
