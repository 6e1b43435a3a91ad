// What the lanes of a warp can ask each other. All: grid 1, block 32; thread i reads x[i].
#include <cstdint>

#define KERNEL extern "C" __global__ void

// out[k * 32 + i]: sum, minimum, maximum (signed), and, or, exclusive or over the warp.
KERNEL reduce(const uint32_t* x, uint32_t* out) {
    const uint32_t v = x[threadIdx.x];
    uint32_t* o = out + threadIdx.x;
    o[0] = __reduce_add_sync(~0u, v), o[32] = __reduce_min_sync(~0u, v), o[64] = __reduce_max_sync(~0u, (int)v);
    o[96] = __reduce_and_sync(~0u, v), o[128] = __reduce_or_sync(~0u, v), o[160] = __reduce_xor_sync(~0u, v);
}
// Lanes with the same value of x % 4, all lanes if x is equal everywhere, and the votes.
KERNEL match_and_vote(const uint32_t* x, uint32_t* out) {
    const uint32_t v = x[threadIdx.x];
    uint32_t* o = out + threadIdx.x;
    int all_equal;
    o[0] = __match_any_sync(~0u, v % 4), o[32] = __match_any_sync(~0u, (uint64_t)(v % 2) << 40);
    o[64] = __match_all_sync(~0u, v / 1024, &all_equal), o[96] = all_equal;
    o[128] = __ballot_sync(~0u, v & 1), o[160] = __any_sync(~0u, v == 7), o[192] = __all_sync(~0u, v > 0);
}
// Half of the lanes at a time: the masks differ, the code does not.
KERNEL halves(const uint32_t* x, uint32_t* out) {
    const uint32_t mask = threadIdx.x < 16 ? 0xffffu : 0xffff0000u, v = x[threadIdx.x];
    uint32_t* o = out + threadIdx.x;
    o[0] = __shfl_sync(mask, v, 3, 16), o[32] = __shfl_up_sync(mask, v, 2, 8), o[64] = __shfl_down_sync(mask, v, 5, 16);
    o[96] = __shfl_xor_sync(mask, v, 4), o[128] = __reduce_add_sync(mask, v), o[160] = __ballot_sync(mask, v & 1);
}
// One atomic for all the lanes that came: their leader adds the count, the others learn their rank.
KERNEL aggregate(const uint32_t* x, uint32_t* counter, uint32_t* out) {
    out[threadIdx.x] = 0;
    if (x[threadIdx.x] % 3 == 0) return;
    const uint32_t active = __activemask(), lane = threadIdx.x % 32;
    uint32_t below;
    asm("mov.u32 %0, %lanemask_lt;" : "=r"(below));
    const int leader = __ffs(active) - 1;
    uint32_t base = 0;
    if (lane == leader) base = atomicAdd(counter, __popc(active));
    base = __shfl_sync(active, base, leader);
    out[threadIdx.x] = base + __popc(active & below) + 1;
}
// Barriers that also count: how many threads, whether all, whether any has an odd x. Block 96.
KERNEL counting_barriers(const uint32_t* x, uint32_t* out) {
    const int odd = x[threadIdx.x] & 1;
    uint32_t* o = out + threadIdx.x * 3;
    o[0] = __syncthreads_count(odd), o[1] = __syncthreads_and(odd), o[2] = __syncthreads_or(odd);
}
