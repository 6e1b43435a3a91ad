// Tensor cores by mma.sync (sm_80 and up): D[16, 8] += A[16, 16] · B[16, 8], 16-bit operands, f32 sums.
//
// With g = lane / 4 and t = lane % 4, a lane holds
//   a: A[g][2t, 2t+1]  A[g+8][2t, 2t+1]  A[g][2t+8, 2t+9]  A[g+8][2t+8, 2t+9]     (four words)
//   b: B[2t, 2t+1][g]  B[2t+8, 2t+9][g]                                           (two words)
//   d: D[g][2t]  D[g][2t+1]  D[g+8][2t]  D[g+8][2t+1]                             (four floats)
// A column of D depends on no other column of B, a row on no other row of A: what exactness rests on.
#pragma once
#include "element.cuh"

namespace wl {

template <typename T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <> __device__ __forceinline__ void mma<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <> __device__ __forceinline__ void mma<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace wl
