// Loads and stores that say how long their bytes are wanted. None of it changes a value: out = x + 1.
//   hints: grid any, block 32; x, out f32 [grid * 32 * 4]
#include "asm.cuh"

extern "C" __global__ void hints(const float4* x, float4* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    uint64_t keep, drop;
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(keep));
    asm volatile("createpolicy.fractional.L2::evict_first.L2::evict_unchanged.b64 %0, 0.5;" : "=l"(drop));
    asm volatile("prefetch.global.L2 [%0];" ::"l"(x + i));
    asm volatile("prefetch.global.L1 [%0];" ::"l"(x + i));
    float4 a, b, c;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.L2::256B.v4.f32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=f"(a.x), "=f"(a.y), "=f"(a.z), "=f"(a.w) : "l"(x + i), "l"(keep));
    asm volatile("ld.global.L1::evict_last.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(b.x), "=f"(b.y), "=f"(b.z), "=f"(b.w) : "l"(x + i));
    c = __ldcs(x + i);
    const float4 d = __ldcg(x + i), e = __ldca(x + i);
    a = make_float4((a.x + b.x + c.x + d.x - e.x) * 0.5f - b.x * 0.5f + 1, a.y + 1, b.z + 1, c.w + 1);
    asm volatile("st.global.L1::no_allocate.L2::cache_hint.v4.f32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(out + i), "f"(a.x), "f"(a.y), "f"(a.z),
                 "f"(a.w), "l"(drop) : "memory");
    if (i == 0) __stwt((float*)out + 3, a.w);
}
