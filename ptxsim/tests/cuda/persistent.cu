// CTAs that live until the work is done, and CTAs that talk to each other.
//
//   work_queue: grid any, block 64; next u32 [1], zero; out u32 [items, 64]: item i is filled with i * 64 + thread
//               CTAs draw items from one atomic counter; which CTA takes which item is left to chance, the result is not
//   pipeline:   grid 2, block 32; ring u32 [slots, 32]; head, tail u32 [1], zero; out u32 [items, 32]
//               CTA 0 produces items into a ring of slots, CTA 1 consumes them; each waits for the other's counter
//   grid_barrier: grid up to what fits at once, block 64; a, b u32 [grid * 64]; count u32 [1], zero
//               two phases with a barrier across the grid: b[i] = a value that another CTA wrote in the first
#include "asm.cuh"

DEVICE uint32_t load_acquire(const uint32_t* p) {
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
    return value;
}
DEVICE void store_release(uint32_t* p, uint32_t value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

extern "C" __global__ void work_queue(uint32_t* next, uint32_t* out, uint32_t items) {
    __shared__ uint32_t item;
    for (;;) {
        if (threadIdx.x == 0) item = atomicAdd(next, 1);
        __syncthreads();
        const uint32_t mine = item;
        if (mine >= items) return;
        out[mine * blockDim.x + threadIdx.x] = mine * blockDim.x + threadIdx.x;
        __syncthreads();  // everyone has read `item` before the next one is drawn
    }
}

extern "C" __global__ void pipeline(uint32_t* ring, uint32_t* head, uint32_t* tail, uint32_t* out, uint32_t items, uint32_t slots) {
    for (uint32_t i = 0; i < items; i++) {
        uint32_t* slot = ring + i % slots * 32 + threadIdx.x;
        if (blockIdx.x == 0) {
            if (threadIdx.x == 0)
                while (i - load_acquire(tail) >= slots) __nanosleep(100);
            __syncthreads();
            *slot = i * 1000 + threadIdx.x;
            __syncthreads();
            if (threadIdx.x == 0) store_release(head, i + 1);
        } else {
            if (threadIdx.x == 0)
                while (load_acquire(head) <= i) __nanosleep(100);
            __syncthreads();
            out[i * 32 + 31 - threadIdx.x] = *slot;
            __syncthreads();
            if (threadIdx.x == 0) store_release(tail, i + 1);
        }
    }
}

extern "C" __global__ void grid_barrier(uint32_t* a, uint32_t* b, uint32_t* count) {
    const uint32_t n = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
    a[i] = i * i;
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(count) : "memory");
        while (load_acquire(count) < gridDim.x) {}
    }
    __syncthreads();
    b[i] = a[(i + n / 2) % n];
}
