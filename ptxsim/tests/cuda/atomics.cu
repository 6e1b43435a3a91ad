// Atomics in every form: operation, type, scope and order. Each kernel: grid any, block any; see the one line above it.
// Words start as given; the result does not depend on the order.
#include "asm.cuh"

#define KERNEL extern "C" __global__ void

DEVICE uint32_t thread() { return blockIdx.x * blockDim.x + threadIdx.x; }

// w u32 [8]: add, min, max, and, or, xor, inc (wraps at 99), dec (wraps at 99) of x[i].
KERNEL integer(uint32_t* w, const uint32_t* x) {
    const uint32_t v = x[thread()];
    atomicAdd(w, v), atomicMin(w + 1, v), atomicMax((int*)w + 2, (int)v), atomicAnd(w + 3, v);
    atomicOr(w + 4, v), atomicXor(w + 5, v), atomicInc(w + 6, 99), atomicDec(w + 7, 99);
}
// w u64 [4]: add, max, exch (of equal values), cas (adds by hand).
KERNEL integer_64(unsigned long long* w, const unsigned long long* x) {
    const unsigned long long v = x[thread()];
    atomicAdd(w, v), atomicMax(w + 1, v), atomicExch(w + 2, 42ull);
    unsigned long long seen = atomicAdd(w + 3, 0ull), expected;
    do {
        expected = seen;
        seen = atomicCAS(w + 3, expected, expected + v);
    } while (seen != expected);
}
// f32 [1], f64 [1], f16x2 [1], bf16x2 [1], all zero: sums of small integers, so that every order gives the same.
KERNEL floating(float* f32, double* f64, __half2* f16, __nv_bfloat162* bf16) {
    const int v = thread() % 4;
    atomicAdd(f32, (float)v), atomicAdd(f64, (double)v);
    atomicAdd(f16, __floats2half2_rn(v % 2, 1)), atomicAdd(bf16, __floats2bfloat162_rn(v % 2, 1));
}
// The same in shared memory, and through an address of unknown space: even CTAs count in shared, odd ones in global memory.
KERNEL generic(uint32_t* total, uint32_t* direct) {
    __shared__ uint32_t count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    atomicAdd(blockIdx.x % 2 ? direct : &count, 1);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(total, count);
}
// w u32 [4], out u32 [1]: order and scope written out; out[0] = 1.
KERNEL ordered(uint32_t* w, uint32_t* out) {
    uint32_t old[3];
    asm volatile("atom.relaxed.sys.global.add.u32 %0, [%1], 1;" : "=r"(old[0]) : "l"(w) : "memory");
    asm volatile("atom.acquire.gpu.global.add.u32 %0, [%1], 1;" : "=r"(old[1]) : "l"(w + 1) : "memory");
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(old[2]) : "l"(w + 2) : "memory");
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(w + 3) : "memory");
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
    asm volatile("fence.sc.sys;" ::: "memory");
    if (old[0] + old[1] + old[2] < 3 * gridDim.x * blockDim.x) atomicMax(out, 1);
}
#if __CUDA_ARCH__ >= 900
// Vectors (sm_90): sum f32 [4], zero: adds (1, 2, 3, 4); half f16 [8], zero: adds 8 ones; out u32 [1]: 1 if sums only grow.
KERNEL vectors(float* sum, __half* half, uint32_t* out) {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(sum), "f"(1.f), "f"(2.f), "f"(3.f), "f"(4.f) : "memory");
    const uint32_t ones = 0x3c003c00;
    asm volatile("red.global.add.noftz.v4.f16x2 [%0], {%1, %1, %1, %1};" ::"l"(half), "r"(ones) : "memory");
    float4 old;
    asm volatile("atom.global.add.v4.f32 {%0, %1, %2, %3}, [%4], {%5, %5, %5, %5};"
                 : "=f"(old.x), "=f"(old.y), "=f"(old.z), "=f"(old.w) : "l"(sum), "f"(0.f) : "memory");
    if (old.x >= 1 && old.y >= 2 && old.z >= 3 && old.w >= 4) atomicMax(out, 1);
}
#endif
