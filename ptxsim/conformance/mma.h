// One mma a warp; thread i is lane i % 32 of product i / 32. Registers are given and returned as they are: register r of
// operand a of thread i is in[r * n + i]; b follows a, c follows b, and the result is out[r * n + i].
#pragma once
#include <cstdint>

#define MMA_BODY(A, B, D, code)                                                    \
    const int i = blockIdx.x * blockDim.x + threadIdx.x;                           \
    if (i >= n) return;                                                            \
    uint32_t a[A], b[B], c[D], d[D];                                               \
    for (int r = 0; r < A; r++) a[r] = in[r * n + i];                              \
    for (int r = 0; r < B; r++) b[r] = in[(A + r) * n + i];                        \
    for (int r = 0; r < D; r++) c[r] = in[(A + B + r) * n + i];                    \
    code;                                                                          \
    for (int r = 0; r < D; r++) out[r * n + i] = d[r]
#define MMA_KERNEL(name, A, B, D, code) \
    extern "C" __global__ void name(const uint32_t* in, uint32_t* out, int n) { MMA_BODY(A, B, D, code); }

// The letters are the numbers of 32-bit registers of a, b, and c or d.
#define MMA_4_2_4(name, op)                                                                                           \
    MMA_KERNEL(name, 4, 2, 4,                                                                                         \
               asm volatile(op " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"                           \
                            : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])                                          \
                            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), \
                              "r"(c[2]), "r"(c[3])))
#define MMA_2_1_4(name, op)                                                                                           \
    MMA_KERNEL(name, 2, 1, 4,                                                                                         \
               asm volatile(op " {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"                                       \
                            : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])                                          \
                            : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3])))
#define MMA_4_2_2(name, op)                                                                                           \
    MMA_KERNEL(name, 4, 2, 2,                                                                                         \
               asm volatile(op " {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, {%8,%9};"                                           \
                            : "=r"(d[0]), "=r"(d[1])                                                                  \
                            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1])))
#define MMA_2_1_2(name, op)                                                                                           \
    MMA_KERNEL(name, 2, 1, 2,                                                                                         \
               asm volatile(op " {%0,%1}, {%2,%3}, {%4}, {%5,%6};"                                                    \
                            : "=r"(d[0]), "=r"(d[1]) : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(c[0]), "r"(c[1])))
