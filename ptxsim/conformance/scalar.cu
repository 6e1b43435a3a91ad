// One-instruction kernels: arithmetic, comparison and bit operations of single threads.
// Operand j of thread i is in[j * n + i]; result j is out[j * n + i]. Registers carry bits, whatever the type.
#include <cstdint>

#define KERNEL(name, word) extern "C" __global__ void name(const word* in, word* out, int n)
#define THREAD                                            \
    const int i = blockIdx.x * blockDim.x + threadIdx.x;  \
    if (i >= n) return
#define UNARY(name, op)                                                            \
    KERNEL(name, uint32_t) {                                                       \
        THREAD;                                                                    \
        asm volatile(op " %0, %1;" : "=r"(out[i]) : "r"(in[i]));                   \
    }
#define BINARY(name, op)                                                           \
    KERNEL(name, uint32_t) {                                                       \
        THREAD;                                                                    \
        asm volatile(op " %0, %1, %2;" : "=r"(out[i]) : "r"(in[i]), "r"(in[n + i])); \
    }
#define TERNARY(name, op, more)                                                                                      \
    KERNEL(name, uint32_t) {                                                                                         \
        THREAD;                                                                                                      \
        asm volatile(op " %0, %1, %2, %3" more ";" : "=r"(out[i]) : "r"(in[i]), "r"(in[n + i]), "r"(in[2 * n + i])); \
    }
#define COMPARE(name, op)                                                                                          \
    KERNEL(name, uint32_t) {                                                                                       \
        THREAD;                                                                                                    \
        asm volatile("{ .reg .pred p; " op " p, %1, %2; selp.u32 %0, 1, 0, p; }"                                   \
                     : "=r"(out[i]) : "r"(in[i]), "r"(in[n + i]));                                                 \
    }
#define UNARY_16(name, op)                                                         \
    KERNEL(name, uint16_t) {                                                       \
        THREAD;                                                                    \
        asm volatile(op " %0, %1;" : "=h"(out[i]) : "h"(in[i]));                   \
    }
#define BINARY_16(name, op)                                                        \
    KERNEL(name, uint16_t) {                                                       \
        THREAD;                                                                    \
        asm volatile(op " %0, %1, %2;" : "=h"(out[i]) : "h"(in[i]), "h"(in[n + i])); \
    }
#define TERNARY_16(name, op)                                                                                        \
    KERNEL(name, uint16_t) {                                                                                        \
        THREAD;                                                                                                     \
        asm volatile(op " %0, %1, %2, %3;" : "=h"(out[i]) : "h"(in[i]), "h"(in[n + i]), "h"(in[2 * n + i]));        \
    }
#define UNARY_64(name, op)                                                         \
    KERNEL(name, uint64_t) {                                                       \
        THREAD;                                                                    \
        asm volatile(op " %0, %1;" : "=l"(out[i]) : "l"(in[i]));                   \
    }
#define BINARY_64(name, op)                                                        \
    KERNEL(name, uint64_t) {                                                       \
        THREAD;                                                                    \
        asm volatile(op " %0, %1, %2;" : "=l"(out[i]) : "l"(in[i]), "l"(in[n + i])); \
    }
// A 64-bit operand and a 32-bit one: the low half of the second word.
#define SHIFT_64(name, op)                                                         \
    KERNEL(name, uint64_t) {                                                       \
        THREAD;                                                                    \
        asm volatile(op " %0, %1, %2;" : "=l"(out[i]) : "l"(in[i]), "r"((uint32_t)in[n + i])); \
    }

// ---- approximations ----
UNARY(ex2_approx_f32, "ex2.approx.f32")
UNARY(ex2_approx_ftz_f32, "ex2.approx.ftz.f32")
UNARY(lg2_approx_f32, "lg2.approx.f32")
UNARY(lg2_approx_ftz_f32, "lg2.approx.ftz.f32")
UNARY(rcp_approx_f32, "rcp.approx.f32")
UNARY(rcp_approx_ftz_f32, "rcp.approx.ftz.f32")
UNARY(rcp_rn_f32, "rcp.rn.f32")
UNARY(rsqrt_approx_f32, "rsqrt.approx.f32")
UNARY(rsqrt_approx_ftz_f32, "rsqrt.approx.ftz.f32")
UNARY(sqrt_approx_f32, "sqrt.approx.f32")
UNARY(sqrt_approx_ftz_f32, "sqrt.approx.ftz.f32")
UNARY(sqrt_rn_f32, "sqrt.rn.f32")
UNARY(sin_approx_f32, "sin.approx.f32")
UNARY(cos_approx_f32, "cos.approx.f32")
UNARY(tanh_approx_f32, "tanh.approx.f32")
UNARY_16(tanh_approx_f16, "tanh.approx.f16")
UNARY_16(ex2_approx_f16, "ex2.approx.f16")
UNARY(ex2_approx_f16x2, "ex2.approx.f16x2")
UNARY(tanh_approx_f16x2, "tanh.approx.f16x2")
BINARY(div_full_f32, "div.full.f32")
BINARY(div_full_ftz_f32, "div.full.ftz.f32")
BINARY(div_approx_f32, "div.approx.f32")
BINARY(div_rn_f32, "div.rn.f32")

// ---- f32 ----
BINARY(add_f32, "add.f32")
BINARY(add_ftz_f32, "add.ftz.f32")
BINARY(add_sat_f32, "add.sat.f32")
BINARY(add_rz_f32, "add.rz.f32")
BINARY(add_rm_f32, "add.rm.f32")
BINARY(add_rp_f32, "add.rp.f32")
BINARY(mul_f32, "mul.f32")
BINARY(mul_ftz_f32, "mul.ftz.f32")
BINARY(mul_rz_f32, "mul.rz.f32")
TERNARY(fma_rn_f32, "fma.rn.f32", "")
TERNARY(fma_rn_ftz_f32, "fma.rn.ftz.f32", "")
TERNARY(fma_rn_sat_f32, "fma.rn.sat.f32", "")
TERNARY(fma_rz_f32, "fma.rz.f32", "")
TERNARY(fma_rm_f32, "fma.rm.f32", "")
TERNARY(fma_rp_f32, "fma.rp.f32", "")
BINARY(min_f32, "min.f32")
BINARY(max_f32, "max.f32")
BINARY(min_ftz_f32, "min.ftz.f32")
BINARY(max_nan_f32, "max.NaN.f32")
BINARY(copysign_f32, "copysign.f32")
UNARY(abs_f32, "abs.f32")
UNARY(neg_f32, "neg.f32")
UNARY(abs_ftz_f32, "abs.ftz.f32")
COMPARE(setp_lt_f32, "setp.lt.f32")
COMPARE(setp_ltu_f32, "setp.ltu.f32")
COMPARE(setp_ne_f32, "setp.ne.f32")
COMPARE(setp_equ_ftz_f32, "setp.equ.ftz.f32")
COMPARE(setp_num_f32, "setp.num.f32")
COMPARE(setp_nan_f32, "setp.nan.f32")
KERNEL(testp_subnormal_f32, uint32_t) {
    THREAD;
    asm volatile("{ .reg .pred p; testp.subnormal.f32 p, %1; selp.u32 %0, 1, 0, p; }" : "=r"(out[i]) : "r"(in[i]));
}

// ---- packed and single 16-bit floats ----
TERNARY(fma_rn_f16x2, "fma.rn.f16x2", "")
TERNARY(fma_rn_relu_f16x2, "fma.rn.relu.f16x2", "")
TERNARY(fma_rn_ftz_f16x2, "fma.rn.ftz.f16x2", "")
TERNARY(fma_rn_bf16x2, "fma.rn.bf16x2", "")
TERNARY(fma_rn_relu_bf16x2, "fma.rn.relu.bf16x2", "")
BINARY(add_f16x2, "add.f16x2")
BINARY(add_sat_f16x2, "add.sat.f16x2")
BINARY(mul_f16x2, "mul.f16x2")
BINARY(min_f16x2, "min.f16x2")
BINARY(max_nan_f16x2, "max.NaN.f16x2")
BINARY(max_bf16x2, "max.bf16x2")
BINARY(min_nan_bf16x2, "min.NaN.bf16x2")
BINARY_16(max_f16, "max.f16")
BINARY_16(add_f16, "add.f16")
TERNARY_16(fma_rn_f16, "fma.rn.f16")
TERNARY_16(fma_rn_bf16, "fma.rn.bf16")

// ---- f64 ----
BINARY_64(add_f64, "add.f64")
BINARY_64(mul_rn_f64, "mul.rn.f64")
BINARY_64(div_rn_f64, "div.rn.f64")
BINARY_64(min_f64, "min.f64")
UNARY_64(sqrt_rn_f64, "sqrt.rn.f64")
UNARY_64(rcp_approx_ftz_f64, "rcp.approx.ftz.f64")

// ---- integers ----
BINARY(add_sat_s32, "add.sat.s32")
BINARY(sub_sat_s32, "sub.sat.s32")
BINARY(mul_hi_u32, "mul.hi.u32")
BINARY(mul_hi_s32, "mul.hi.s32")
BINARY(mul24_lo_u32, "mul24.lo.u32")
BINARY(mul24_hi_s32, "mul24.hi.s32")
BINARY(div_s32, "div.s32")
BINARY(div_u32, "div.u32")
BINARY(rem_s32, "rem.s32")
BINARY(rem_u32, "rem.u32")
TERNARY(mad_hi_sat_s32, "mad.hi.sat.s32", "")
TERNARY(sad_s32, "sad.s32", "")
BINARY_64(mul_hi_u64, "mul.hi.u64")
BINARY_64(mul_hi_s64, "mul.hi.s64")
BINARY_64(rem_s64, "rem.s64")
BINARY(shl_b32, "shl.b32")
BINARY(shr_u32, "shr.u32")
BINARY(shr_s32, "shr.s32")
SHIFT_64(shl_b64, "shl.b64")
SHIFT_64(shr_u64, "shr.u64")
SHIFT_64(shr_s64, "shr.s64")
TERNARY(shf_l_wrap_b32, "shf.l.wrap.b32", "")
TERNARY(shf_l_clamp_b32, "shf.l.clamp.b32", "")
TERNARY(shf_r_wrap_b32, "shf.r.wrap.b32", "")
TERNARY(shf_r_clamp_b32, "shf.r.clamp.b32", "")
TERNARY(bfe_u32, "bfe.u32", "")
TERNARY(bfe_s32, "bfe.s32", "")
BINARY(bmsk_clamp_b32, "bmsk.clamp.b32")
BINARY(bmsk_wrap_b32, "bmsk.wrap.b32")
BINARY(szext_clamp_s32, "szext.clamp.s32")
BINARY(szext_wrap_u32, "szext.wrap.u32")
UNARY(bfind_u32, "bfind.u32")
UNARY(bfind_s32, "bfind.s32")
UNARY(bfind_shiftamt_u32, "bfind.shiftamt.u32")
UNARY(brev_b32, "brev.b32")
UNARY(clz_b32, "clz.b32")
UNARY(popc_b32, "popc.b32")
UNARY(abs_s32, "abs.s32")
TERNARY(fns_b32, "fns.b32", "")
TERNARY(prmt_b32, "prmt.b32", "")
TERNARY(prmt_f4e_b32, "prmt.b32.f4e", "")
TERNARY(prmt_b4e_b32, "prmt.b32.b4e", "")
TERNARY(prmt_rc8_b32, "prmt.b32.rc8", "")
TERNARY(prmt_ecl_b32, "prmt.b32.ecl", "")
TERNARY(prmt_ecr_b32, "prmt.b32.ecr", "")
TERNARY(prmt_rc16_b32, "prmt.b32.rc16", "")
TERNARY(lop3_b32_96, "lop3.b32", ", 0x96")
TERNARY(lop3_b32_e8, "lop3.b32", ", 0xe8")
TERNARY(lop3_b32_1d, "lop3.b32", ", 0x1d")
TERNARY(dp4a_s32_s32, "dp4a.s32.s32", "")
TERNARY(dp4a_u32_u32, "dp4a.u32.u32", "")
TERNARY(dp4a_s32_u32, "dp4a.s32.u32", "")
TERNARY(dp2a_lo_s32_s32, "dp2a.lo.s32.s32", "")
TERNARY(dp2a_hi_u32_u32, "dp2a.hi.u32.u32", "")

KERNEL(bfi_b32, uint32_t) {
    THREAD;
    asm volatile("bfi.b32 %0, %1, %2, %3, %4;" : "=r"(out[i]) : "r"(in[i]), "r"(in[n + i]), "r"(in[2 * n + i]), "r"(in[3 * n + i]));
}
// 64 x 64 -> 128 bits by a chain of carries, as compilers write it. Four operands (low, high of each), four results.
KERNEL(mad_carry_chain, uint32_t) {
    THREAD;
    uint32_t r0, r1, r2, r3;
    asm volatile("{\n\t"
                 "mul.lo.u32 %0, %4, %6;\n\t"
                 "mul.hi.u32 %1, %4, %6;\n\t"
                 "mad.lo.cc.u32 %1, %4, %7, %1;\n\t"
                 "madc.hi.u32 %2, %4, %7, 0;\n\t"
                 "mad.lo.cc.u32 %1, %5, %6, %1;\n\t"
                 "madc.hi.cc.u32 %2, %5, %6, %2;\n\t"
                 "madc.hi.u32 %3, %5, %7, 0;\n\t"
                 "mad.lo.cc.u32 %2, %5, %7, %2;\n\t"
                 "addc.u32 %3, %3, 0;\n\t"
                 "}" : "=&r"(r0), "=&r"(r1), "=&r"(r2), "=&r"(r3) : "r"(in[i]), "r"(in[n + i]), "r"(in[2 * n + i]), "r"(in[3 * n + i]));
    out[i] = r0, out[n + i] = r1, out[2 * n + i] = r2, out[3 * n + i] = r3;
}
// a - b over 64 bits with borrow, and the borrow out.
KERNEL(sub_borrow_chain, uint32_t) {
    THREAD;
    uint32_t low, high, borrow;
    asm volatile("{ sub.cc.u32 %0, %3, %5; subc.cc.u32 %1, %4, %6; subc.u32 %2, 0, 0; }"
                 : "=&r"(low), "=&r"(high), "=r"(borrow) : "r"(in[i]), "r"(in[n + i]), "r"(in[2 * n + i]), "r"(in[3 * n + i]));
    out[i] = low, out[n + i] = high, out[2 * n + i] = borrow;
}
