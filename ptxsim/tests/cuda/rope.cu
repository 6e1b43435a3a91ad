// Rotary position embedding in place: pair (i, i + dim / 2) of each head turns by position * frequency[i].
//
//   rope: grid (rows, heads), block dim / 2; x f16 [rows, heads, dim]; positions i32 [rows]; frequency f32 [dim / 2]
//   rope_bf16: the same on bf16, with sine and cosine in fast arithmetic
//
// sincosf reduces large angles through a table in global memory and an array in local memory; __sincosf is two instructions.
#include "asm.cuh"

extern "C" __global__ void rope(__half* x, const int* positions, const float* frequency) {
    const int half_dim = blockDim.x, i = threadIdx.x;
    __half* head = x + ((size_t)blockIdx.x * gridDim.y + blockIdx.y) * half_dim * 2;
    float sine, cosine;
    sincosf(positions[blockIdx.x] * frequency[i], &sine, &cosine);
    const float a = __half2float(head[i]), b = __half2float(head[i + half_dim]);
    head[i] = __float2half_rn(a * cosine - b * sine);
    head[i + half_dim] = __float2half_rn(b * cosine + a * sine);
}

extern "C" __global__ void rope_bf16(__nv_bfloat16* x, const int* positions, const float* frequency) {
    const int half_dim = blockDim.x, i = threadIdx.x;
    __nv_bfloat16* head = x + ((size_t)blockIdx.x * gridDim.y + blockIdx.y) * half_dim * 2;
    float sine, cosine;
    __sincosf(positions[blockIdx.x] * frequency[i], &sine, &cosine);
    const float a = __bfloat162float(head[i]), b = __bfloat162float(head[i + half_dim]);
    head[i] = __float2bfloat16_rn(a * cosine - b * sine);
    head[i + half_dim] = __float2bfloat16_rn(b * cosine + a * sine);
}
