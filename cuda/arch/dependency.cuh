// Programmatic dependent launch: how a kernel begins while the one before it in the stream ends.
//
// A kernel that has called `release_dependents` in every CTA lets the next one's CTAs take the places that its own
// leave; the next one then does what needs nothing of those before, and calls `await_dependencies` ahead of the first
// access to anything that they write, or read before it is written here. Every CTA of every kernel must call it, also
// one that has nothing to do: the kernel after next trusts that a kernel that has ended has seen those before it end.
//
// Where the launch does not ask for it, and in machine code for GPUs before Hopper, which do not have it, both are
// nothing.
#pragma once

namespace wl {

__device__ __forceinline__ void release_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// All that was written before is there when it returns.
__device__ __forceinline__ void await_dependencies() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// For a kernel that can do nothing ahead: its launch, and that of the next one, are out of the way at least.
__device__ __forceinline__ void begin_in_order() {
    release_dependents();
    await_dependencies();
}

}  // namespace wl
