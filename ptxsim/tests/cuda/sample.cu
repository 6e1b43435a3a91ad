// Choosing the next token from logits: the largest, or a draw from the softmax of those that top-p keeps.
//
//   argmax:  grid rows, block 256; logits f32 [rows, vocabulary]; ids u32 [rows]; ties go to the lowest id, NaN never wins
//   philox:  grid n / 256 rounded up, block 256; out u32 [n, 4] = Philox4x32-10 of counter (i, 0, 0, 0) and the key
//   sample:  grid rows, block 256, dynamic shared memory 4 * vocabulary bytes; draws by Philox of (row, step)
//
// The argmax packs value and id into one 64-bit key, so that a single maximum decides both. sample finds the top-p cut by
// bisection on the probability, so it needs no sort, then walks the kept mass with a block-wide prefix sum.
#include "asm.cuh"

// Order-preserving bits of a float; NaN is below everything.
DEVICE uint32_t order(float x) {
    if (x != x) return 0;
    const uint32_t bits = __float_as_uint(x);
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

extern "C" __global__ void __launch_bounds__(256) argmax(const float* logits, uint32_t* ids, int vocabulary) {
    __shared__ unsigned long long best[8];
    const float* row = logits + (size_t)blockIdx.x * vocabulary;
    unsigned long long key = 0;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x)
        key = max(key, (unsigned long long)order(row[i]) << 32 | ~(uint32_t)i);
    for (int distance = 16; distance > 0; distance /= 2) key = max(key, __shfl_down_sync(~0u, key, distance));
    if (threadIdx.x % 32 == 0) best[threadIdx.x / 32] = key;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < 8; warp++) key = max(key, best[warp]);
        ids[blockIdx.x] = ~(uint32_t)key;
    }
}

// Philox4x32-10 (Salmon et al., 2011): ten rounds of two 32 x 32 -> 64 multiplications.
DEVICE uint4 philox4x32(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint32_t high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
        const uint32_t high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
        counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
        key.x += 0x9E3779B9u, key.y += 0xBB67AE85u;
    }
    return counter;
}

extern "C" __global__ void philox(uint4* out, int n, unsigned long long key) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = philox4x32(make_uint4(i, 0, 0, 0), make_uint2((uint32_t)key, (uint32_t)(key >> 32)));
}

DEVICE float block_sum(float x, float* partial) {
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    for (int warp = 0; warp < 8; warp++) sum += partial[warp];
    return sum;
}

extern "C" __global__ void __launch_bounds__(256)
sample(const float* logits, uint32_t* ids, int vocabulary, float inverse_temperature, float top_p, unsigned long long seed,
       uint32_t step) {
    extern __shared__ float weight[];
    __shared__ float partial[8];
    __shared__ uint32_t chosen;
    const float* row = logits + (size_t)blockIdx.x * vocabulary;
    const int each = (vocabulary + blockDim.x - 1) / blockDim.x;  // a thread owns one run of neighbouring ids
    const int first = min(threadIdx.x * each, vocabulary), last = min(first + each, vocabulary);

    float largest = -INFINITY;
    for (int i = first; i < last; i++) largest = fmaxf(largest, row[i]);
    for (int distance = 16; distance > 0; distance /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = largest;
    if (threadIdx.x == 0) chosen = vocabulary - 1;
    __syncthreads();
    for (int warp = 0; warp < 8; warp++) largest = fmaxf(largest, partial[warp]);

    float sum = 0;
    for (int i = first; i < last; i++) sum += weight[i] = exp2f((row[i] - largest) * inverse_temperature * 1.44269504f);
    const float total = block_sum(sum, partial);

    // The largest cut whose kept mass still reaches top_p.
    float low = 0, high = 1;
    for (int halving = 0; halving < 24; halving++) {
        const float cut = 0.5f * (low + high);
        float mass = 0;
        for (int i = first; i < last; i++) mass += weight[i] >= cut ? weight[i] : 0;
        if (block_sum(mass, partial) >= top_p * total) low = cut;
        else high = cut;
    }
    float kept = 0;
    for (int i = first; i < last; i++) kept += weight[i] >= low ? weight[i] : 0;
    const float mass = block_sum(kept, partial);

    // Exclusive prefix over the threads, in id order.
    float inclusive = kept;
    for (int distance = 1; distance < 32; distance *= 2) {
        const float before = __shfl_up_sync(~0u, inclusive, distance);
        if (threadIdx.x % 32 >= distance) inclusive += before;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 31) partial[threadIdx.x / 32] = inclusive;
    __syncthreads();
    float start = inclusive - kept;
    for (int warp = 0; warp < threadIdx.x / 32; warp++) start += partial[warp];

    const uint4 random = philox4x32(make_uint4(blockIdx.x, step, 0, 0), make_uint2((uint32_t)seed, (uint32_t)(seed >> 32)));
    const float target = (random.x >> 8) * (1.f / 16777216) * mass;
    // Rounding may leave a gap between two threads' runs; the lowest id that reaches the target wins.
    for (int i = first; i < last; i++) {
        if (weight[i] < low) continue;
        start += weight[i];
        if (start > target) {
            atomicMin(&chosen, i);
            break;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) ids[blockIdx.x] = chosen;
}
