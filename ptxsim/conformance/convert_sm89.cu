// One-instruction kernels: fp8 conversions, which need sm_89. Pairs: the first operand becomes the high half.
#include <cstdint>

#define KERNEL(name, from, to) extern "C" __global__ void name(const from* in, to* out, int n)
#define THREAD                                            \
    const int i = blockIdx.x * blockDim.x + threadIdx.x;  \
    if (i >= n) return
#define PACK_F32(name, op)                                                                      \
    KERNEL(name, uint32_t, uint16_t) {                                                          \
        THREAD;                                                                                 \
        asm volatile(op " %0, %1, %2;" : "=h"(out[i]) : "f"(__uint_as_float(in[i])), "f"(__uint_as_float(in[n + i]))); \
    }
#define PACK_16X2(name, op)                                                                     \
    KERNEL(name, uint32_t, uint16_t) {                                                          \
        THREAD;                                                                                 \
        asm volatile(op " %0, %1;" : "=h"(out[i]) : "r"(in[i]));                                \
    }
#define UNPACK(name, op)                                                                        \
    KERNEL(name, uint16_t, uint32_t) {                                                          \
        THREAD;                                                                                 \
        asm volatile(op " %0, %1;" : "=r"(out[i]) : "h"(in[i]));                                \
    }
PACK_F32(cvt_rn_satfinite_e4m3x2_f32, "cvt.rn.satfinite.e4m3x2.f32")
PACK_F32(cvt_rn_satfinite_relu_e4m3x2_f32, "cvt.rn.satfinite.relu.e4m3x2.f32")
PACK_F32(cvt_rn_satfinite_e5m2x2_f32, "cvt.rn.satfinite.e5m2x2.f32")
PACK_16X2(cvt_rn_satfinite_e4m3x2_f16x2, "cvt.rn.satfinite.e4m3x2.f16x2")
PACK_16X2(cvt_rn_satfinite_e5m2x2_f16x2, "cvt.rn.satfinite.e5m2x2.f16x2")
UNPACK(cvt_rn_f16x2_e4m3x2, "cvt.rn.f16x2.e4m3x2")
UNPACK(cvt_rn_f16x2_e5m2x2, "cvt.rn.f16x2.e5m2x2")
