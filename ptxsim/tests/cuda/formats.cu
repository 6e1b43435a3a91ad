// Number formats: packed halves, bf16 and fp8, and their conversions. All: grid 1, block 32.
// fp8 conversions in one instruction need sm_89; for less, the header does them with integers, which is the same result.
#include "asm.cuh"
#include <cuda_fp8.h>

#define KERNEL extern "C" __global__ void

// Two numbers at a time: out[i] = relu(x * y + x), min, max, comparison as a mask.
KERNEL half2_arithmetic(const __half2* x, const __half2* y, __half2* out) {
    const __half2 a = x[threadIdx.x], b = y[threadIdx.x];
    out[threadIdx.x * 4] = __hfma2_relu(a, b, a);
    out[threadIdx.x * 4 + 1] = __hmin2(a, b);
    out[threadIdx.x * 4 + 2] = __hmax2_nan(a, __hsub2(b, a));
    out[threadIdx.x * 4 + 3] = __hgt2(a, b);
}
KERNEL bf162_arithmetic(const __nv_bfloat162* x, const __nv_bfloat162* y, __nv_bfloat162* out) {
    const __nv_bfloat162 a = x[threadIdx.x], b = y[threadIdx.x];
    out[threadIdx.x * 4] = __hfma2_relu(a, b, a);
    out[threadIdx.x * 4 + 1] = __hmin2(a, b);
    out[threadIdx.x * 4 + 2] = __hmax2_nan(a, __hadd2(b, a));
    out[threadIdx.x * 4 + 3] = __hneg2(__habs2(a));
}
KERNEL half_functions(const __half* x, __half* out) {
    const __half v = x[threadIdx.x];
    out[threadIdx.x] = hexp2(v) + hsin(v) + htanh_approx(v) + hrcp(v + __float2half(9.f)) + hsqrt(__habs(v));
}
// Quantising a row to e4m3 by its largest value, and back.
KERNEL fp8_round_trip(const float* x, uint16_t* packed, __half2* out) {
    float largest = fmaxf(fabsf(x[threadIdx.x * 2]), fabsf(x[threadIdx.x * 2 + 1]));
    for (int distance = 16; distance > 0; distance /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
    const float scale = largest > 0 ? 448.f / largest : 1.f;
    const __nv_fp8x2_storage_t e4m3 =
        __nv_cvt_float2_to_fp8x2(make_float2(x[threadIdx.x * 2] * scale, x[threadIdx.x * 2 + 1] * scale), __NV_SATFINITE, __NV_E4M3);
    packed[threadIdx.x] = e4m3;
    out[threadIdx.x] = __half2(__nv_cvt_fp8x2_to_halfraw2(e4m3, __NV_E4M3));
}
KERNEL fp8_e5m2(const __half2* x, uint16_t* packed, __half2* out) {
    const __nv_fp8x2_storage_t e5m2 = __nv_cvt_halfraw2_to_fp8x2(x[threadIdx.x], __NV_NOSAT, __NV_E5M2);
    packed[threadIdx.x] = e5m2;
    out[threadIdx.x] = __half2(__nv_cvt_fp8x2_to_halfraw2(e5m2, __NV_E5M2));
}
// Integers and floats, each rounding.
KERNEL integer_conversions(const float* x, int32_t* out) {
    const float v = x[threadIdx.x];
    int32_t* o = out + threadIdx.x * 10;
    o[0] = __float2int_rn(v), o[1] = __float2int_rz(v), o[2] = __float2int_ru(v), o[3] = __float2int_rd(v);
    o[4] = (int32_t)__float2uint_rz(v);
    o[5] = (int32_t)(__float2ll_rn(v * 65536.f) >> 16);
    o[6] = __float_as_int(__int2float_rz(o[0] * 16777259)), o[7] = __float_as_int(__uint2float_ru(o[4] * 16777259u));
    o[8] = (int8_t)(int)v, o[9] = __float_as_int((float)(uint8_t)(int)v);
}
