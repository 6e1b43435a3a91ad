// Sums, prefix sums, counts and transposition: the classic patterns of shared memory and shuffles.
//
//   sum_f64:   grid any, block 256; x f64 [n]; out f64 [1], zero
//   scan:      grid 1, block 1024; x, out u32 [n], n up to 4096: inclusive prefix sums
//   histogram: grid any, block 256; x u8 [n]; bins u32 [256], zero
//   transpose, transpose_conflicts: grid (columns / 32, rows / 32), block (32, 8); x, out f32 [rows, columns], [columns, rows]
//              the first pads its tile to 33 words a row, the second reads columns of 32 words: 32 conflicts a read
#include <cstdint>

extern "C" __global__ void __launch_bounds__(256) sum_f64(const double* x, double* out, int n) {
    __shared__ double partial[256];
    double sum = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
    partial[threadIdx.x] = sum;
    __syncthreads();
    for (int width = 128; width > 0; width /= 2) {
        if (threadIdx.x < width) partial[threadIdx.x] += partial[threadIdx.x + width];
        __syncthreads();
    }
    if (threadIdx.x == 0) atomicAdd(out, partial[0]);
}

__device__ uint32_t warp_scan(uint32_t x) {
    const int lane = threadIdx.x % 32;
    for (int distance = 1; distance < 32; distance *= 2) {
        const uint32_t before = __shfl_up_sync(~0u, x, distance);
        if (lane >= distance) x += before;
    }
    return x;
}

extern "C" __global__ void __launch_bounds__(1024) scan(const uint32_t* x, uint32_t* out, int n) {
    __shared__ uint32_t warp_total[32];
    uint32_t own[4], sum = 0;
    for (int i = 0; i < 4; i++) {
        const int index = threadIdx.x * 4 + i;
        own[i] = sum += index < n ? x[index] : 0;
    }
    const uint32_t inclusive = warp_scan(sum);
    if (threadIdx.x % 32 == 31) warp_total[threadIdx.x / 32] = inclusive;
    __syncthreads();
    if (threadIdx.x < 32) warp_total[threadIdx.x] = warp_scan(warp_total[threadIdx.x]);
    __syncthreads();
    const uint32_t before = inclusive - sum + (threadIdx.x < 32 ? 0 : warp_total[threadIdx.x / 32 - 1]);
    for (int i = 0; i < 4; i++)
        if (threadIdx.x * 4 + i < n) out[threadIdx.x * 4 + i] = before + own[i];
}

extern "C" __global__ void __launch_bounds__(256) histogram(const uint8_t* x, uint32_t* bins, int n) {
    __shared__ uint32_t counts[256];
    counts[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&counts[x[i]], 1);
    __syncthreads();
    if (counts[threadIdx.x] != 0) atomicAdd(bins + threadIdx.x, counts[threadIdx.x]);
}

template <int PITCH> __device__ void transpose_tile(const float* x, float* out) {
    __shared__ float tile[32 * PITCH];
    const int rows = gridDim.y * 32, columns = gridDim.x * 32;
    const int row = blockIdx.y * 32, column = blockIdx.x * 32;
    for (int r = threadIdx.y; r < 32; r += 8) tile[r * PITCH + threadIdx.x] = x[(row + r) * columns + column + threadIdx.x];
    __syncthreads();
    for (int r = threadIdx.y; r < 32; r += 8) out[(column + r) * rows + row + threadIdx.x] = tile[threadIdx.x * PITCH + r];
}
extern "C" __global__ void transpose(const float* x, float* out) { transpose_tile<33>(x, out); }
extern "C" __global__ void transpose_conflicts(const float* x, float* out) { transpose_tile<32>(x, out); }
