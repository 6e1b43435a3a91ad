// RMS norm of bf16 rows with the residual added first: h = x + residual, y = weight * bf16(h / sqrt(mean(h^2) + eps)).
//
//   rms_norm: grid rows, block 128; x, residual, y bf16 [rows, width]; weight bf16 [width]; width is a multiple of 8
//
// 16-byte loads and stores; the sum of squares goes through the warp by shuffles, then through 4 words of shared memory.
// The residual is replaced by h, rounded to bf16.
#include "asm.cuh"

DEVICE float block_sum(float x) {
    __shared__ float partial[32];
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) sum += partial[warp];
    return sum;
}

extern "C" __global__ void __launch_bounds__(128)
rms_norm(const __nv_bfloat16* x, __nv_bfloat16* residual, const __nv_bfloat16* weight, __nv_bfloat16* y, int width, float eps) {
    const size_t row = (size_t)blockIdx.x * width;
    float squares = 0;
    for (int i = threadIdx.x * 8; i < width; i += blockDim.x * 8) {
        uint4 a = *(const uint4*)(x + row + i), b = *(const uint4*)(residual + row + i);
        __nv_bfloat162 *pa = (__nv_bfloat162*)&a, *pb = (__nv_bfloat162*)&b;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 u = __bfloat1622float2(pa[j]), v = __bfloat1622float2(pb[j]);
            pb[j] = __floats2bfloat162_rn(u.x + v.x, u.y + v.y);
            const float2 h = __bfloat1622float2(pb[j]);
            squares += h.x * h.x + h.y * h.y;
        }
        *(uint4*)(residual + row + i) = b;
    }
    const float scale = rsqrtf(block_sum(squares) / width + eps);
    for (int i = threadIdx.x * 8; i < width; i += blockDim.x * 8) {
        uint4 h = *(const uint4*)(residual + row + i);  // this thread's own stores
        const uint4 w = __ldg((const uint4*)(weight + i));
        __nv_bfloat162* ph = (__nv_bfloat162*)&h;
        const __nv_bfloat162* pw = (const __nv_bfloat162*)&w;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 f = __bfloat1622float2(ph[j]);
            ph[j] = __hmul2(__floats2bfloat162_rn(f.x * scale, f.y * scale), pw[j]);
        }
        *(uint4*)(y + row + i) = h;
    }
}
