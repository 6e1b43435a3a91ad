// Functions of one number, each in one fixed form: the same bits wherever a kernel uses them.
#pragma once
#include <stdint.h>

namespace wl {

// 2^x with 2 ulp; 0 for −∞.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1/x with 1 ulp, for x that are not subnormal.
__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// tanh x within 1e-6 of itself, by a choice where tanhf branches: for many values side by side.
__device__ __forceinline__ float tanh_approx(float x) {
    // Taylor's series to x^9, of which 8e-9 is missing where the two meet.
    const float x2 = __fmul_rn(x, x);
    float small = __fmaf_rn(x2, 62.0f / 2835, -17.0f / 315);
    small = __fmaf_rn(x2, small, 2.0f / 15);
    small = __fmaf_rn(x2, small, -1.0f / 3);
    small = __fmaf_rn(__fmul_rn(x2, small), x, x);
    const float e = exp2_approx(__fmul_rn(fabsf(x), 2 * 1.44269504088896341f));
    const float large = copysignf(__fmaf_rn(-2, reciprocal_approx(__fadd_rn(e, 1)), 1), x);
    return fabsf(x) < 0.25f ? small : large;
}

// e^x for x ≤ 0, within 1 ulp; 0 under −87. Multiplications and additions alone: the same bits on every device, and
// on a host that rounds each of them alike.
__device__ __forceinline__ float exp_portable(float x) {
    if (!(x > -87.0f)) return 0.0f;
    const float n = rintf(__fmul_rn(x, 1.44269504088896341f));
    // ln 2 in two parts, of which the first has few enough bits for n · part to be exact.
    float r = __fmaf_rn(n, -0.693145751953125f, x);
    r = __fmaf_rn(n, -1.42860682030941723e-6f, r);
    // Taylor's series: |r| ≤ 0.35, and the term after the last is 5e-9 of the sum.
    float y = 1.0f / 5040;
    y = __fmaf_rn(y, r, 1.0f / 720);
    y = __fmaf_rn(y, r, 1.0f / 120);
    y = __fmaf_rn(y, r, 1.0f / 24);
    y = __fmaf_rn(y, r, 1.0f / 6);
    y = __fmaf_rn(y, r, 0.5f);
    y = __fmaf_rn(y, r, 1.0f);
    y = __fmaf_rn(y, r, 1.0f);
    return __int_as_float(__float_as_int(y) + (int(n) << 23));
}

constexpr float LOG2_E = 1.44269504088896341f;
constexpr float LN_2 = 0.693147180559945309f;

// silu(gate) · up = gate · up / (1 + e^−gate), to about 1e-5 of itself; 0 for gates under −174. With h =
// e^(−|gate|/2), silu is gate · h² / (1 + h²) under zero and gate / (1 + h²) over it; the second h comes last, or a
// large `up` would meet an underflow.
__device__ __forceinline__ float silu_times(float gate, float up) {
    const float h = exp2_approx(__fmul_rn(fabsf(gate), -0.5f * LOG2_E));
    const float a = gate < 0 ? h : 1;
    const float part = __fmul_rn(__fmul_rn(gate, a), reciprocal_approx(__fmaf_rn(h, h, 1)));
    return __fmul_rn(__fmul_rn(part, up), a);
}

// Cosine and sine of an angle of up to 2^31 radians, rounded from values that are right to 2^-44: for two tables of
// frequencies (θ 1e4 and 5e5, 64 pairs) all of the first 131072 positions have the bits that f64 libraries round to;
// of random angles up to 2^31 one in twenty million is off by a last bit. In f64, because the distance to the nearest
// multiple of π/2 must keep its digits far out; and without the table in local memory that sincosf reduces large
// angles with.
__device__ __forceinline__ float2 cos_sin(float angle) {
    constexpr double HALF_PI = 1.5707963267948966, HALF_PI_REST = 6.123233995736766e-17;
    const double x = angle;
    const double turns = rint(x * 0.63661977236758134);
    const int64_t quadrant = int64_t(turns);
    const double r = fma(-turns, HALF_PI_REST, fma(-turns, HALF_PI, x));
    const double r2 = r * r;
    // Taylor's series to r^13 and r^14, |r| ≤ π/4.
    double s = fma(r2, 1.0 / 6227020800, -1.0 / 39916800);
    s = fma(r2, s, 1.0 / 362880);
    s = fma(r2, s, -1.0 / 5040);
    s = fma(r2, s, 1.0 / 120);
    s = fma(r2, s, -1.0 / 6);
    s = fma(r2 * r, s, r);
    double c = fma(r2, -1.0 / 87178291200, 1.0 / 479001600);
    c = fma(r2, c, -1.0 / 3628800);
    c = fma(r2, c, 1.0 / 40320);
    c = fma(r2, c, -1.0 / 720);
    c = fma(r2, c, 1.0 / 24);
    c = fma(r2, c, -0.5);
    c = fma(r2, c, 1.0);
    const float sine = float(quadrant & 1 ? c : s), cosine = float(quadrant & 1 ? s : c);
    return {(quadrant + 1) & 2 ? -cosine : cosine, quadrant & 2 ? -sine : sine};
}

}  // namespace wl
