// The sum of squares of a row, in one order wherever it is made: a norm has the same bits whether `rms_norm` computes
// it from the row, or a linear kernel's prologue from statistics that an earlier kernel left.
//
// The rule, for a row x of `width` features (those past the width count as zeros):
//   partials   p[j] of eight consecutive features: fmaf(x7, x7, … fmaf(x1, x1, fmaf(x0, x0, 0)))
//   chunks     s[c] of 64 features, from their eight partials: ((p0+p4) + (p2+p6)) + ((p1+p5) + (p3+p7)),
//              what a butterfly over eight lanes with distances 4, 2, 1 makes
//   statistics f32 [rows, ceil(width / 64)], the s[c] of every row
//   chains     t[l] = ((0 + s[l]) + s[l+32]) + s[l+64] …, for l in 0..32; 0 where there is no such chunk
//   row        the butterfly over 32 lanes of the t[l], with distances 16, 8, 4, 2, 1
// Squares are of the values as stored in T.
#pragma once
#include "warp.cuh"

namespace wl {

constexpr int STATISTICS_CHUNK = 64;

__host__ __device__ constexpr int statistics_chunks(int width) {
    return width / STATISTICS_CHUNK + (width % STATISTICS_CHUNK != 0);
}

// A partial.
__device__ __forceinline__ float sum_of_squares(const float (&x)[8]) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) sum = __fmaf_rn(x[i], x[i], sum);
    return sum;
}

// A chunk, in all of its eight lanes, from the partial of each. All lanes of the warp must call it.
__device__ __forceinline__ float chunk_sum(float partial) {
    return warp_sum<8>(partial);
}

// The row's sum in every lane of a warp, from its chunks. All lanes must call it.
__device__ __forceinline__ float row_sum(const float* statistics, int chunks) {
    float chain = 0;
    for (int c = lane_id(); c < chunks; c += 32) chain += statistics[c];
    return warp_sum<32>(chain);
}

// 1 / √(mean + ε), each operation rounded once.
__device__ __forceinline__ float inverse_rms(float sum, int width, float eps) {
    return __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(sum, float(width)), eps)));
}

}  // namespace wl
