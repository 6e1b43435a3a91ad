// Copies from global to shared memory that go on while the thread computes (sm_80 and up).
//
// A thread's copies are gathered in groups: `copy` any number, `commit` closes the group, `wait<N>` returns when at
// most the N youngest groups are still on their way. It speaks for the calling thread alone: a barrier makes the bytes
// known to others.
#pragma once
#include "ldmatrix.cuh"

namespace wl {

// 16 bytes past L1. With `valid` false nothing is read and zeros are written: `from` need then not point to anything.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
// The same of the first `bytes`, 0 to 16, with zeros after them.
__device__ __forceinline__ void copy_async_part(uint32_t to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N> __device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

}  // namespace wl
