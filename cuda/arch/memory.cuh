// Global memory: addresses from parameter structs, and loads that say what the caches should make of them.
#pragma once
#include <stdint.h>

namespace wl {

// A device address as a pointer of which the compiler knows that it is global memory. (A conversion, __cvta_global_to_generic, would say it
// too, but nvcc 13.0 does not come to an end over some uses of it.)
template <typename T> __device__ __forceinline__ T* global(uint64_t address) {
    T* p = reinterpret_cast<T*>(address);
    __builtin_assume(__isGlobal(p));
    return p;
}

// 16 bytes that are read once in a launch, such as weights: they leave no trace in L1, where what is used again stays. Where not `valid`,
// nothing is read and zeros come back: `p` need then not point to anything. One predicated load and no branch, so that several stay in
// flight. Volatile, and an ordinary load: what stands before `await_dependencies` stays there, while ptxas moves loads of the
// read-only path (.nc) behind it.
__device__ __forceinline__ uint4 load_once(const void* p, bool valid) {
    uint4 x;
    asm volatile("{\n\t.reg .pred valid;\n\t"
                 "setp.ne.s32 valid, %5, 0;\n\t"
                 "mov.b32 %0, 0;\n\tmov.b32 %1, 0;\n\tmov.b32 %2, 0;\n\tmov.b32 %3, 0;\n\t"
                 "@valid ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
                 : "=&r"(x.x), "=&r"(x.y), "=&r"(x.z), "=&r"(x.w)
                 : "l"(__cvta_generic_to_global(p)), "r"(int(valid)));
    return x;
}

// Has the line around `p` brought to L2.
__device__ __forceinline__ void prefetch_to_l2(const void* p) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(p)));
}

}  // namespace wl
