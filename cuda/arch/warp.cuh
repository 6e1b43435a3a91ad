// The 32 lanes of a warp together, and the warps of a CTA.
//
// Sums run in one fixed order (a butterfly: lane distance 16, 8, 4, 2, 1), so equal inputs give equal bits.
#pragma once
#include <stdint.h>

namespace wl {

constexpr uint32_t ALL_LANES = 0xffffffff;

__device__ __forceinline__ int lane_id() {
    return threadIdx.x % 32;
}
__device__ __forceinline__ int warp_id() {
    return threadIdx.x / 32;
}

// Sum and maximum over groups of WIDTH neighbouring lanes, in every lane.
template <int WIDTH = 32> __device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int distance = WIDTH / 2; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    }
    return x;
}
template <int WIDTH = 32> __device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int distance = WIDTH / 2; distance > 0; distance /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    }
    return x;
}

// Least and greatest over a warp, in every lane.
__device__ __forceinline__ int warp_min(int x) {
    return __reduce_min_sync(ALL_LANES, x);
}
__device__ __forceinline__ int warp_max(int x) {
    return __reduce_max_sync(ALL_LANES, x);
}

// A barrier of some warps of a CTA, `threads` in all, by a number from 1 to 15; 0 is that of __syncthreads. Numbers are
// constants, for a kernel that computes one takes all sixteen, and from Hopper on an SM has few.
template <int NUMBER> __device__ __forceinline__ void barrier(int threads) {
    asm volatile("bar.sync %0, %1;" ::"n"(NUMBER), "r"(threads) : "memory");
}

// Sum over a CTA of WARPS warps, in every thread: first within warps, then over warps in their order. `scratch` holds WARPS
// floats of shared memory; the caller synchronises before it uses them again.
template <int WARPS> __device__ __forceinline__ float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    if (lane_id() == 0) scratch[warp_id()] = x;
    __syncthreads();
    float sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += scratch[w];
    return sum;
}

}  // namespace wl
