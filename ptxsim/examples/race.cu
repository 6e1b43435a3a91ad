// Sums 128 numbers: each warp its 32 by shuffles, then thread 0 the four warps' sums from shared memory.
// The barrier between the two is missing, as is easily forgotten: it only works when the warps happen to run in step.
//
//   nvcc -O3 --ptx -lineinfo -arch=sm_80 race.cu              -> race.ptx
//   nvcc -O3 --ptx -lineinfo -arch=sm_80 -DFIXED race.cu      -> fixed.ptx
extern "C" __global__ void block_sum(const float* x, float* sum) {
    __shared__ float part[4];
    float s = x[threadIdx.x];
    for (int offset = 16; offset > 0; offset /= 2)
        s += __shfl_down_sync(0xffffffff, s, offset);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = s;
#ifdef FIXED
    __syncthreads();
#endif
    if (threadIdx.x == 0)
        *sum = part[0] + part[1] + part[2] + part[3];
}
