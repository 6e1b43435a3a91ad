// Softmax of f32 rows, one warp a row, in one pass over the row: each lane keeps a running maximum and a sum relative to it,
// and the lanes merge theirs by shuffles.
//
//   softmax: grid rows / 4 rounded up, block 128; x, y f32 [rows, width], any width of at least 1
extern "C" __global__ void softmax(const float* x, float* y, int rows, int width) {
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    x += (size_t)row * width, y += (size_t)row * width;
    float largest = -INFINITY, sum = 0;
    for (int i = lane; i < width; i += 32) {
        const float value = x[i], next = fmaxf(largest, value);
        sum = sum * __expf(largest - next) + __expf(value - next);
        largest = next;
    }
    for (int distance = 16; distance > 0; distance /= 2) {
        const float other = __shfl_xor_sync(~0u, largest, distance), other_sum = __shfl_xor_sync(~0u, sum, distance);
        const float next = fmaxf(largest, other);
        // Lanes that saw nothing have a maximum of -inf and a sum of 0; two of them must not make a NaN.
        sum = next == -INFINITY ? 0 : sum * __expf(largest - next) + other_sum * __expf(other - next);
        largest = next;
    }
    for (int i = lane; i < width; i += 32) y[i] = __fdividef(__expf(x[i] - largest), sum);
}
