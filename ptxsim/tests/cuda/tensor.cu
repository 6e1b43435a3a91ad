// One product of each tensor-core type, operands loaded in the layout of the instruction: out = a b, f32 or s32 [16, 8].
// All: grid 1, block 32. a [16, K] and b [8, K] (b is given by columns), row-major.
#include "asm.cuh"

// An operand word is 4 bytes of one row; `width` words make a row.
DEVICE void load_a(uint32_t (&r)[4], const uint32_t* a, int width) {
    const int group = threadIdx.x >> 2, quad = threadIdx.x & 3;
    r[0] = a[group * width + quad], r[1] = a[(group + 8) * width + quad];
    r[2] = a[group * width + quad + 4], r[3] = a[(group + 8) * width + quad + 4];
}
template <typename T> DEVICE void store(T* out, const T (&d)[4]) {
    const int group = threadIdx.x >> 2, quad = threadIdx.x & 3;
    for (int e = 0; e < 4; e++) out[(group + (e >> 1) * 8) * 8 + quad * 2 + (e & 1)] = d[e];
}
#define PRODUCT(name, multiply, type)                                                             \
    extern "C" __global__ void name(const uint32_t* a, const uint32_t* b, type* out) {            \
        const int group = threadIdx.x >> 2, quad = threadIdx.x & 3;                               \
        uint32_t r[4];                                                                            \
        type d[4] = {};                                                                           \
        load_a(r, a, 8);                                                                          \
        multiply(d, r, b[group * 8 + quad], b[group * 8 + quad + 4]);                             \
        store(out, d);                                                                            \
    }
PRODUCT(product_bf16, mma_bf16, float)  // K = 16
PRODUCT(product_f16, mma_f16, float)    // K = 16
PRODUCT(product_tf32, mma_tf32, float)  // K = 8
PRODUCT(product_s8, mma_s8, int)        // K = 32
#if __CUDA_ARCH__ >= 890
PRODUCT(product_e4m3, mma_e4m3, float)  // K = 32
#endif
