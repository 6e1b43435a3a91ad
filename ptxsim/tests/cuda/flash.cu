// Flash attention, forward: O = softmax(Q K^T * scale) V for head dimension 64 in bf16, with the log-sum-exp of each row.
//
//   grid (ceil(length / 64), heads), block 128, dynamic shared memory 40960 bytes
//   q, k, v, out: bf16 [heads, length, 64]; lse: f32 [heads, length], natural logarithm; scale_log2 = scale * log2(e)
//
// A CTA owns 64 query rows, each of its 4 warps 16 of them, and walks over the keys in tiles of 64. cp.async brings tile j + 1
// while tile j is multiplied: K and V have two buffers each, and two commit groups a tile (K, then V), so that "all but the
// two newest groups" is exactly what the next product needs. Rows of 128 bytes are swizzled: 16-byte chunk c of row r lies at
// c ^ (r % 8), so that the eight rows that one ldmatrix phase reads fall into different banks. S stays in registers: the
// accumulator layout of the first product is the A operand layout of the second.
//
// -DFAULT=n plants one fault:
//   1 no wait before K is read            4 last barrier of the tile removed: it is redundant, so this one is clean
//   2 no barrier before K's ldmatrix      5 no swizzle: right, but 8 rows of one phase share their banks
//   3 no wait before V is read            6 no barrier before V's ldmatrix
//                                         7 the next K goes into the buffer that is being read
#include "asm.cuh"

#ifndef FAULT
#define FAULT 0
#endif

constexpr int HEAD_DIM = 64, ROWS = 64, KEYS = 64, THREADS = 128;
constexpr uint32_t TILE_BYTES = 64 * HEAD_DIM * 2;

// Where 16-byte chunk `chunk` of row `row` lies in the tile that starts at `tile`.
DEVICE uint32_t chunk_address(uint32_t tile, int row, int chunk) {
#if FAULT == 5
    return tile + row * 128 + chunk * 16;
#else
    return tile + row * 128 + ((chunk ^ (row & 7)) << 4);
#endif
}

// Starts copying rows first..first+64 of x [length, 64] into a tile; rows past the end become zero.
DEVICE void load_tile(uint32_t tile, const __nv_bfloat16* x, int first, int length) {
#pragma unroll
    for (int i = 0; i < 64 * 8 / THREADS; i++) {
        const int index = threadIdx.x + i * THREADS, row = index >> 3, chunk = index & 7;
        const bool inside = first + row < length;
        const __nv_bfloat16* from = x + (size_t)(inside ? first + row : 0) * HEAD_DIM + chunk * 8;
        cp_async_16(chunk_address(tile, row, chunk), from, inside ? 16 : 0);
    }
}

// The largest value, or the sum, of the four lanes that share a row.
DEVICE float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
DEVICE float row_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

extern "C" __global__ void __launch_bounds__(THREADS)
flash_forward(const __nv_bfloat16* q, const __nv_bfloat16* k, const __nv_bfloat16* v, __nv_bfloat16* out, float* lse,
              int length, float scale_log2, int causal) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t q_tile = shared_address(shared);
    const uint32_t k_tiles = q_tile + TILE_BYTES, v_tiles = k_tiles + 2 * TILE_BYTES;

    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int group = lane >> 2, quad = lane & 3;  // accumulators: rows group, group + 8; columns 2 * quad, 2 * quad + 1
    const int first_row = blockIdx.x * ROWS;
    const size_t head = (size_t)blockIdx.y * length;
    q += head * HEAD_DIM, k += head * HEAD_DIM, v += head * HEAD_DIM, out += head * HEAD_DIM, lse += head;

    const int keys = causal ? min(length, first_row + ROWS) : length;
    const int tiles = (keys + KEYS - 1) / KEYS;

    load_tile(q_tile, q, first_row, length);
    load_tile(k_tiles, k, 0, length);
    cp_async_commit();
    load_tile(v_tiles, v, 0, length);
    cp_async_commit();

    uint32_t q_frag[4][4];
    float o[8][4] = {};
    float row_maximum[2] = {-INFINITY, -INFINITY}, row_total[2] = {};

    for (int j = 0; j < tiles; j++) {
        const uint32_t k_tile = k_tiles + (j & 1) * TILE_BYTES, v_tile = v_tiles + (j & 1) * TILE_BYTES;
#if FAULT == 7
        const uint32_t next_k_tile = k_tile;
#else
        const uint32_t next_k_tile = k_tiles + (j + 1 & 1) * TILE_BYTES;
#endif
        const uint32_t next_v_tile = v_tiles + (j + 1 & 1) * TILE_BYTES;

        if (j + 1 < tiles) load_tile(next_k_tile, k, (j + 1) * KEYS, length);
        cp_async_commit();
#if FAULT != 1
        cp_async_wait<2>();  // Q and K of tile j are here; V of j and K of j + 1 may be in flight
#endif
#if FAULT != 2
        __syncthreads();
#endif
        if (j == 0) {
#pragma unroll
            for (int step = 0; step < 4; step++)
                ldmatrix_x4(q_frag[step], chunk_address(q_tile, warp * 16 + (lane & 15), step * 2 + (lane >> 4)));
        }

        // S = Q K^T: 16 rows by 64 keys a warp.
        float s[8][4] = {};
#pragma unroll
        for (int step = 0; step < 4; step++) {
#pragma unroll
            for (int n = 0; n < 4; n++) {
                uint32_t b[4];
                ldmatrix_x4(b, chunk_address(k_tile, n * 16 + (lane & 7) + ((lane >> 4) << 3), step * 2 + (lane >> 3 & 1)));
                mma_bf16(s[2 * n], q_frag[step], b[0], b[1]);
                mma_bf16(s[2 * n + 1], q_frag[step], b[2], b[3]);
            }
        }

        // Online softmax in base 2.
        float maximum[2] = {row_maximum[0], row_maximum[1]};
#pragma unroll
        for (int n = 0; n < 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int key = j * KEYS + n * 8 + quad * 2 + (e & 1), row = first_row + warp * 16 + group + (e >> 1) * 8;
                const bool masked = key >= length || (causal && key > row);
                s[n][e] = masked ? -INFINITY : s[n][e] * scale_log2;
                maximum[e >> 1] = fmaxf(maximum[e >> 1], s[n][e]);
            }
        }
        float rescale[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float now = row_max(maximum[r]);
            maximum[r] = now == -INFINITY ? 0.f : now;  // a row with no key yet: exp2(-inf - 0) = 0
            rescale[r] = exp2_approx(row_maximum[r] - maximum[r]);
            row_maximum[r] = now;
            row_total[r] *= rescale[r];
        }
#pragma unroll
        for (int n = 0; n < 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[n][e] = exp2_approx(s[n][e] - maximum[e >> 1]);
                row_total[e >> 1] += s[n][e];
                o[n][e] *= rescale[e >> 1];
            }
        }

        if (j + 1 < tiles) load_tile(next_v_tile, v, (j + 1) * KEYS, length);
        cp_async_commit();
#if FAULT != 3
        cp_async_wait<2>();  // V of tile j is here
#endif
#if FAULT != 6
        __syncthreads();
#endif
        // O += P V, with P rounded to bf16.
#pragma unroll
        for (int step = 0; step < 4; step++) {
            const uint32_t p[4] = {pack_bf16(s[2 * step][0], s[2 * step][1]), pack_bf16(s[2 * step][2], s[2 * step][3]),
                                   pack_bf16(s[2 * step + 1][0], s[2 * step + 1][1]),
                                   pack_bf16(s[2 * step + 1][2], s[2 * step + 1][3])};
#pragma unroll
            for (int n = 0; n < 4; n++) {
                uint32_t b[4];
                ldmatrix_x4_trans(b, chunk_address(v_tile, step * 16 + (lane & 15), n * 2 + (lane >> 4)));
                mma_bf16(o[2 * n], p, b[0], b[1]);
                mma_bf16(o[2 * n + 1], p, b[2], b[3]);
            }
        }
#if FAULT != 4
        // Redundant: K of tile j was last read before the barrier above, and V of tile j + 2 is requested only after the
        // first barrier of the next tile. A checker must stay silent without it.
        __syncthreads();
#endif
    }

#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float total = row_sum(row_total[r]), inverse = 1.f / total;
        const int row = first_row + warp * 16 + group + r * 8;
        if (row >= length) continue;
#pragma unroll
        for (int n = 0; n < 8; n++)
            *(uint32_t*)(out + (size_t)row * HEAD_DIM + n * 8 + quad * 2) =
                pack_bf16(o[n][2 * r] * inverse, o[n][2 * r + 1] * inverse);
        if (quad == 0) lse[row] = (row_maximum[r] + log2f(total)) * 0.69314718056f;
    }
}
