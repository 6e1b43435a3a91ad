// Tiles of 16-bit elements: [rows][WIDTH] in shared memory as cp.async fills them, 16 by 16 in registers as mma takes
// them.
//
// A row is cut into chunks of 16 bytes, and these are permuted so that the chunks of one column in eight rows that
// follow each other, which ldmatrix reads at once, lie in eight different 16-byte columns of the 128-byte line of
// banks. Rows of a multiple of 128 bytes all begin in the same column: chunk c of row r lies at c ^ r % 8. Rows of 64
// or 192 bytes begin in the first column and in the fifth by turns: there, it lies at c ^ r / 2 % 4, among the four
// chunks of its 64 bytes.
#pragma once
#include "cp_async.cuh"
#include "ldmatrix.cuh"
#include "warp.cuh"

namespace wl {

// Bytes from a tile's first to 16-byte chunk `chunk` of row `row`.
template <int WIDTH> __device__ __forceinline__ uint32_t chunk_offset(int row, int chunk) {
    static_assert(WIDTH % 32 == 0, "whole halves of a line of banks");
    return row * (2 * WIDTH) + ((WIDTH % 64 == 0 ? chunk ^ row % 8 : chunk ^ row / 2 % 4) << 4);
}

// How a warp goes through 8 rows of a tile, 16 bytes a lane: whole lines of 128 bytes, or of 64, and of DOWN rows at a
// time.
template <int WIDTH> struct Lanes {
    static constexpr int ACROSS = WIDTH % 64 == 0 ? 8 : 4, DOWN = 32 / ACROSS, CHUNKS = WIDTH / 8 / ACROSS;
    static __device__ __forceinline__ int row() {
        return lane_id() / ACROSS;
    }
    static __device__ __forceinline__ int chunk(int i) {
        return lane_id() % ACROSS + ACROSS * i;
    }
};

// A[16, 16]: 16 rows from `row`, columns 16 k to 16 k + 16.
template <int WIDTH> __device__ __forceinline__ void load_a(uint32_t (&a)[4], uint32_t tile, int row, int k) {
    ldmatrix(a, tile + chunk_offset<WIDTH>(row + lane_id() % 16, 2 * k + lane_id() / 16));
}
// Two B[16, 8] of which the tile has the transpose: 16 rows from `row` are the columns of the two, columns 16 k to 16 k
// + 16 their rows.
template <int WIDTH> __device__ __forceinline__ void load_b(uint32_t (&b)[2][2], uint32_t tile, int row, int k) {
    uint32_t x[4];
    ldmatrix(x, tile + chunk_offset<WIDTH>(row + lane_id() / 16 * 8 + lane_id() % 8, 2 * k + lane_id() / 8 % 2));
    b[0][0] = x[0], b[0][1] = x[1], b[1][0] = x[2], b[1][1] = x[3];
}
// Two B[16, 8] as they are: 16 rows from `row`, columns 16 n to 16 n + 8 and on to 16 n + 16.
template <int WIDTH> __device__ __forceinline__ void load_b_rows(uint32_t (&b)[2][2], uint32_t tile, int row, int n) {
    uint32_t x[4];
    ldmatrix_transposed(x, tile + chunk_offset<WIDTH>(row + lane_id() % 16, 2 * n + lane_id() / 16));
    b[0][0] = x[0], b[0][1] = x[1], b[1][0] = x[2], b[1][1] = x[3];
}

}  // namespace wl
