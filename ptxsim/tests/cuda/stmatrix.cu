// Transposes a 16 x 16 tile of 16-bit elements through shared memory: out[i][j] = x[j][i].
//   transpose_tile: grid 1, block 32; x, out b16 [16, 16]; the tile's rows are 16 bytes further apart than they are long, so
//   that neither the stores nor the loads conflict
#include "asm.cuh"

extern "C" __global__ void transpose_tile(const uint16_t* x, uint16_t* out) {
    __shared__ __align__(16) unsigned char tile[16 * 48];
    const uint32_t row = shared_address(tile) + (threadIdx.x & 15) * 48 + (threadIdx.x >> 4) * 16;
    const int group = threadIdx.x >> 2, quad = threadIdx.x & 3;
    const uint32_t* words = (const uint32_t*)x;
    // The four 8 x 8 tiles in the order of the addresses: top left, bottom left, top right, bottom right.
    const uint32_t r[4] = {words[group * 8 + quad], words[(group + 8) * 8 + quad], words[group * 8 + quad + 4],
                           words[(group + 8) * 8 + quad + 4]};
    stmatrix_x4(row, r);
    __syncwarp();
    uint32_t t[4];
    ldmatrix_x4_trans(t, row);
    uint32_t* to = (uint32_t*)out;
    to[group * 8 + quad] = t[0], to[(group + 8) * 8 + quad] = t[2];
    to[group * 8 + quad + 4] = t[1], to[(group + 8) * 8 + quad + 4] = t[3];
}
