// Tensor-core matrix product: c = a b^T, a [m, k], b [n, k], c [m, n], row-major, f32 accumulation.
//
//   gemm_bf16, gemm_f16: grid (n / 64 rounded up, m / 64 rounded up), block 128, dynamic shared memory 3 * 16384 bytes
//   k is a multiple of 64; m and n are any: rows past the end are zero and are not stored; n is even
//
// Each CTA makes a 64 x 64 tile of c, its warps 32 x 32 each. A ring of three stages of 64 columns of k: cp.async fills two
// stages ahead of the one that is multiplied, one commit group a stage (empty ones at the end keep the count), and one
// barrier a stage both publishes the new stage and frees the oldest.
#include "asm.cuh"

constexpr int TILE = 64, STAGES = 3, THREADS = 128;
constexpr uint32_t TILE_BYTES = TILE * TILE * 2, STAGE_BYTES = 2 * TILE_BYTES;

DEVICE uint32_t chunk_address(uint32_t tile, int row, int chunk) { return tile + row * 128 + ((chunk ^ (row & 7)) << 4); }

// Starts copying 64 rows from `first`, 64 columns from `column`, of x [rows, k].
template <typename T> DEVICE void load_tile(uint32_t tile, const T* x, int first, int rows, int column, int k) {
#pragma unroll
    for (int i = 0; i < TILE * 8 / THREADS; i++) {
        const int index = threadIdx.x + i * THREADS, row = index >> 3, chunk = index & 7;
        const bool inside = first + row < rows;
        cp_async_16(chunk_address(tile, row, chunk), x + (size_t)(inside ? first + row : 0) * k + column + chunk * 8,
                    inside ? 16 : 0);
    }
}

DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __nv_bfloat16) { mma_bf16(d, a, b0, b1); }
DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) { mma_f16(d, a, b0, b1); }
DEVICE uint32_t pack(float low, float high, __nv_bfloat16) { return pack_bf16(low, high); }
DEVICE uint32_t pack(float low, float high, __half) { return pack_f16(low, high); }

template <typename T> DEVICE void gemm(const T* a, const T* b, T* c, int m, int n, int k) {
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32_t ring = shared_address(shared);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;
    const int warp_row = (warp >> 1) * 32, warp_column = (warp & 1) * 32;
    const int steps = k / TILE;

    const auto fill = [&](int step) {
        if (step < steps) {
            const uint32_t stage = ring + step % STAGES * STAGE_BYTES;
            load_tile(stage, a, first_row, m, step * TILE, k);
            load_tile(stage + TILE_BYTES, b, first_column, n, step * TILE, k);
        }
        cp_async_commit();
    };
    fill(0);
    fill(1);

    float sum[2][4][4] = {};
    for (int step = 0; step < steps; step++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        fill(step + STAGES - 1);
        const uint32_t a_tile = ring + step % STAGES * STAGE_BYTES, b_tile = a_tile + TILE_BYTES;
#pragma unroll
        for (int part = 0; part < 4; part++) {
            uint32_t a_frag[2][4], b_frag[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                ldmatrix_x4(a_frag[i], chunk_address(a_tile, warp_row + i * 16 + (lane & 15), part * 2 + (lane >> 4)));
                ldmatrix_x4(b_frag[i], chunk_address(b_tile, warp_column + i * 16 + (lane & 7) + ((lane >> 4) << 3),
                                                     part * 2 + (lane >> 3 & 1)));
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++)
                    multiply(sum[i][j], a_frag[i], b_frag[j >> 1][j % 2 * 2], b_frag[j >> 1][j % 2 * 2 + 1], T());
            }
        }
    }

    const int group = lane >> 2, quad = lane & 3;
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = first_row + warp_row + i * 16 + group + half * 8;
                const int column = first_column + warp_column + j * 8 + quad * 2;
                if (row < m && column < n)
                    *(uint32_t*)(c + (size_t)row * n + column) = pack(sum[i][j][half * 2], sum[i][j][half * 2 + 1], T());
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
gemm_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, __nv_bfloat16* c, int m, int n, int k) { gemm(a, b, c, m, n, k); }
extern "C" __global__ void __launch_bounds__(THREADS)
gemm_f16(const __half* a, const __half* b, __half* c, int m, int n, int k) { gemm(a, b, c, m, n, k); }
