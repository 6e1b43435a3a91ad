// One AdamW step, and a histogram of the update's exponents gathered on the way.
//
//   adamw: grid any, block 256; weight bf16 [n]; gradient f32 [n]; m, v f32 [n]; histogram u32 [64], zero; loss f64 [1], zero
//   step >= 1 sets the bias corrections; histogram[e] counts updates with 2^(e - 48) <= |update| < 2^(e - 47), ends included
//
// The histogram is counted in shared memory first; loss collects the sum of squared gradients in f64 with one atomic a CTA.
#include "asm.cuh"

extern "C" __global__ void __launch_bounds__(256)
adamw(__nv_bfloat16* weight, const float* gradient, float* m, float* v, uint32_t* histogram, double* loss, int n, float rate,
      float beta1, float beta2, float eps, float decay, int step) {
    __shared__ uint32_t counts[64];
    __shared__ double squares[8];
    if (threadIdx.x < 64) counts[threadIdx.x] = 0;
    __syncthreads();
    const float correct1 = 1 - powf(beta1, step), correct2 = 1 - powf(beta2, step);
    double sum = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const float g = gradient[i], w = __bfloat162float(weight[i]);
        sum += (double)g * g;
        const float first = m[i] = fmaf(beta1, m[i] - g, g);
        const float second = v[i] = fmaf(beta2, v[i] - g * g, g * g);
        const float update = rate * (first / correct1 / (sqrtf(second / correct2) + eps) + decay * w);
        weight[i] = __float2bfloat16_rn(w - update);
        const int exponent = (int)(__float_as_uint(update) >> 23 & 255) - 127;
        atomicAdd(&counts[min(max(exponent + 48, 0), 63)], 1);
    }
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 64 && counts[threadIdx.x] != 0) atomicAdd(histogram + threadIdx.x, counts[threadIdx.x]);
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < 8; warp++) sum += squares[warp];
        atomicAdd(loss, sum);
    }
}
