// A sum split over CTAs and finished by whichever ends last: out[row] = sum of x[row].
//
//   split_sum: grid (splits, rows), block 128; x f32 [rows, width]; partial f32 [rows, splits]; ticket u32 [rows], zero
//
// Each CTA writes its partial, fences, and draws a ticket with an atomic; the holder of the last ticket sees all partials, adds
// them in their order (so the result does not depend on who is last), and sets the ticket back to zero for the next launch.
#include "asm.cuh"

extern "C" __global__ void __launch_bounds__(128) split_sum(const float* x, float* partial, uint32_t* ticket, float* out, int width) {
    __shared__ float warp_sum[4];
    __shared__ bool last;
    const int splits = gridDim.x, row = blockIdx.y;
    const int each = (width + splits - 1) / splits, first = blockIdx.x * each, end = min(first + each, width);
    float sum = 0;
    for (int i = first + threadIdx.x; i < end; i += blockDim.x) sum += x[(size_t)row * width + i];
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    if (threadIdx.x % 32 == 0) warp_sum[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        partial[row * splits + blockIdx.x] = warp_sum[0] + warp_sum[1] + warp_sum[2] + warp_sum[3];
        __threadfence();
        last = atomicAdd(ticket + row, 1) == splits - 1;
    }
    __syncthreads();
    if (!last || threadIdx.x != 0) return;
    __threadfence();
    float total = 0;
    for (int split = 0; split < splits; split++) total += partial[row * splits + split];
    out[row] = total;
    ticket[row] = 0;
}
