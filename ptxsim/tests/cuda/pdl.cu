// Programmatic dependent launch: a kernel that may start before the one before it has ended.
//
//   produce: grid any, block 32; x, weight u32 [grid * 32]: writes x, lets dependents start, then writes weight
//   consume: same grid; out[i] = x[i] + weight[i], after griddepcontrol.wait: right whatever produce does after its trigger
//   consume_early: reads weight before the wait, as a prefetch of constants would, but the predecessor writes it: a race
//   consume_never: does not wait at all
//   consume_constant: reads before the wait only what nobody writes: right
//   release_early, release_late: as consume_constant, letting dependents start before its wait, and behind it
#include <cstdint>

extern "C" __global__ void produce(uint32_t* x, uint32_t* weight) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    asm volatile("griddepcontrol.wait;" ::: "memory");
    x[i] = i * 3;
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    weight[i] = i * 5;
}
extern "C" __global__ void consume(const uint32_t* x, const uint32_t* weight, uint32_t* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    asm volatile("griddepcontrol.wait;" ::: "memory");
    out[i] = x[i] + weight[i];
}
extern "C" __global__ void consume_early(const uint32_t* x, const uint32_t* weight, uint32_t* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t early = *(volatile const uint32_t*)(weight + i);  // fault
    asm volatile("griddepcontrol.wait;" ::: "memory");
    out[i] = x[i] + early;
}
extern "C" __global__ void consume_never(const uint32_t* x, const uint32_t* weight, uint32_t* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = x[i] + weight[i];  // fault
}
extern "C" __global__ void consume_constant(const uint32_t* x, const uint32_t* constant, uint32_t* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t early = *(volatile const uint32_t*)(constant + i);
    asm volatile("griddepcontrol.wait;" ::: "memory");
    out[i] = x[i] + early;
}
extern "C" __global__ void release_early(const uint32_t* x, const uint32_t* constant, uint32_t* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
    out[i] = x[i] + constant[i];
}
extern "C" __global__ void release_late(const uint32_t* x, const uint32_t* constant, uint32_t* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    out[i] = x[i] + constant[i];
}
