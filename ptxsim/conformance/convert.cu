// One-instruction kernels: conversions. Operand j of thread i is in[j * n + i], the result is out[i].
#include <cstdint>

#define CONVERT(name, op, from, in_letter, to, out_letter)                                \
    extern "C" __global__ void name(const from* in, to* out, int n) {                     \
        const int i = blockIdx.x * blockDim.x + threadIdx.x;                              \
        if (i >= n) return;                                                               \
        to d;                                                                             \
        asm volatile(op " %0, %1;" : "=" out_letter(d) : in_letter(in[i]));               \
        out[i] = d;                                                                       \
    }
#define C_16_16(name, op) CONVERT(name, op, uint16_t, "h", uint16_t, "h")
#define C_16_32(name, op) CONVERT(name, op, uint16_t, "h", uint32_t, "r")
#define C_32_16(name, op) CONVERT(name, op, uint32_t, "r", uint16_t, "h")
#define C_32_32(name, op) CONVERT(name, op, uint32_t, "r", uint32_t, "r")
#define C_32_64(name, op) CONVERT(name, op, uint32_t, "r", uint64_t, "l")
#define C_64_32(name, op) CONVERT(name, op, uint64_t, "l", uint32_t, "r")
#define C_64_64(name, op) CONVERT(name, op, uint64_t, "l", uint64_t, "l")
// Two f32 into one packed register: the first operand becomes the high half.
#define PACK(name, op)                                                                                   \
    extern "C" __global__ void name(const uint32_t* in, uint32_t* out, int n) {                          \
        const int i = blockIdx.x * blockDim.x + threadIdx.x;                                             \
        if (i < n) asm volatile(op " %0, %1, %2;" : "=r"(out[i]) : "r"(in[i]), "r"(in[n + i]));          \
    }

// ---- f32 to 16 bits ----
C_32_16(cvt_rn_f16_f32, "cvt.rn.f16.f32")
C_32_16(cvt_rz_f16_f32, "cvt.rz.f16.f32")
C_32_16(cvt_rm_f16_f32, "cvt.rm.f16.f32")
C_32_16(cvt_rp_f16_f32, "cvt.rp.f16.f32")
C_32_16(cvt_rn_sat_f16_f32, "cvt.rn.sat.f16.f32")
C_32_16(cvt_rn_bf16_f32, "cvt.rn.bf16.f32")
C_32_16(cvt_rz_bf16_f32, "cvt.rz.bf16.f32")
C_32_16(cvt_rn_relu_bf16_f32, "cvt.rn.relu.bf16.f32")
PACK(cvt_rn_bf16x2_f32, "cvt.rn.bf16x2.f32")
PACK(cvt_rz_bf16x2_f32, "cvt.rz.bf16x2.f32")
PACK(cvt_rn_relu_bf16x2_f32, "cvt.rn.relu.bf16x2.f32")
PACK(cvt_rn_f16x2_f32, "cvt.rn.f16x2.f32")
PACK(cvt_rz_f16x2_f32, "cvt.rz.f16x2.f32")
PACK(cvt_rn_relu_f16x2_f32, "cvt.rn.relu.f16x2.f32")
C_32_32(cvt_rna_tf32_f32, "cvt.rna.tf32.f32")
// ---- 16 bits to f32 ----
C_16_32(cvt_f32_f16, "cvt.f32.f16")
C_16_32(cvt_ftz_f32_f16, "cvt.ftz.f32.f16")
// ---- within a type: rounding to an integer, saturation ----
C_32_32(cvt_rni_f32_f32, "cvt.rni.f32.f32")
C_32_32(cvt_rzi_f32_f32, "cvt.rzi.f32.f32")
C_32_32(cvt_rmi_f32_f32, "cvt.rmi.f32.f32")
C_32_32(cvt_rpi_f32_f32, "cvt.rpi.f32.f32")
C_32_32(cvt_sat_f32_f32, "cvt.sat.f32.f32")
C_32_32(cvt_ftz_sat_f32_f32, "cvt.ftz.sat.f32.f32")
C_16_16(cvt_rni_f16_f16, "cvt.rni.f16.f16")
// ---- f32 to integers: out of range saturates, NaN becomes 0 ----
C_32_32(cvt_rni_s32_f32, "cvt.rni.s32.f32")
C_32_32(cvt_rzi_s32_f32, "cvt.rzi.s32.f32")
C_32_32(cvt_rmi_s32_f32, "cvt.rmi.s32.f32")
C_32_32(cvt_rpi_s32_f32, "cvt.rpi.s32.f32")
C_32_32(cvt_rzi_u32_f32, "cvt.rzi.u32.f32")
C_32_32(cvt_rni_ftz_u32_f32, "cvt.rni.ftz.u32.f32")
C_32_64(cvt_rzi_s64_f32, "cvt.rzi.s64.f32")
C_32_64(cvt_rzi_u64_f32, "cvt.rzi.u64.f32")
C_32_16(cvt_rzi_s16_f32, "cvt.rzi.s16.f32")
C_32_32(cvt_rni_sat_s8_f32, "cvt.rni.sat.s8.f32")
C_32_32(cvt_rzi_u8_f32, "cvt.rzi.u8.f32")
C_16_32(cvt_rni_s32_f16, "cvt.rni.s32.f16")
// ---- integers to floats ----
C_32_32(cvt_rn_f32_s32, "cvt.rn.f32.s32")
C_32_32(cvt_rn_f32_u32, "cvt.rn.f32.u32")
C_32_32(cvt_rz_f32_u32, "cvt.rz.f32.u32")
C_32_32(cvt_rp_f32_s32, "cvt.rp.f32.s32")
C_64_32(cvt_rn_f32_s64, "cvt.rn.f32.s64")
C_64_32(cvt_rn_f32_u64, "cvt.rn.f32.u64")
C_32_16(cvt_rn_f16_s32, "cvt.rn.f16.s32")
C_64_64(cvt_rn_f64_u64, "cvt.rn.f64.u64")
// ---- f64 ----
C_64_32(cvt_rn_f32_f64, "cvt.rn.f32.f64")
C_64_32(cvt_rz_f32_f64, "cvt.rz.f32.f64")
C_32_64(cvt_f64_f32, "cvt.f64.f32")
C_64_32(cvt_rzi_s32_f64, "cvt.rzi.s32.f64")
C_64_64(cvt_rni_s64_f64, "cvt.rni.s64.f64")
// ---- integers: width, sign, saturation ----
C_32_32(cvt_s32_s8, "cvt.s32.s8")
C_32_32(cvt_u32_u8, "cvt.u32.u8")
C_32_32(cvt_sat_s8_s32, "cvt.sat.s8.s32")
C_32_32(cvt_sat_u8_s32, "cvt.sat.u8.s32")
C_32_16(cvt_sat_u16_s32, "cvt.sat.u16.s32")
C_64_32(cvt_sat_u32_s64, "cvt.sat.u32.s64")
C_32_64(cvt_s64_s32, "cvt.s64.s32")
