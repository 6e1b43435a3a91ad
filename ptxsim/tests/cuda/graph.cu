// A kernel that decides whether the body of a graph's conditional node runs again: while the counter is above zero.
//   countdown: grid 1, block 32; counter i32 [1]
#include <cuda_runtime.h>

extern "C" __global__ void countdown(cudaGraphConditionalHandle handle, int* counter) {
    if (threadIdx.x != 0) return;
    const int left = --*counter;
    cudaGraphSetConditional(handle, left > 0);
}
