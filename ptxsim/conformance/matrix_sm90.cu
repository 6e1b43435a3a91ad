// One-instruction kernels: stmatrix layouts, which need sm_90. Register r of thread i is in[r * n + i]; lane l gives the address
// of row (7 l + 3) % 32; each warp's 32 rows of 16 bytes, zero before, are returned as out[warp * 128 ..].
#include <cstdint>

#define STMATRIX(name, op, registers, ...)                                                                 \
    extern "C" __global__ void name(const uint32_t* in, uint32_t* out, int n) {                            \
        __shared__ __align__(16) uint32_t rows[128];                                                       \
        const int lane = threadIdx.x, i = blockIdx.x * 32 + lane;                                          \
        for (int w = lane; w < 128; w += 32) rows[w] = 0;                                                  \
        __syncwarp();                                                                                      \
        const uint32_t row = (uint32_t)__cvta_generic_to_shared(rows) + (7 * lane + 3) % 32 * 16;          \
        asm volatile(op " [%0], " registers ";" ::"r"(row), __VA_ARGS__ : "memory");                       \
        __syncwarp();                                                                                      \
        for (int w = lane; w < 128; w += 32) out[blockIdx.x * 128 + w] = rows[w];                          \
    }
#define R(r) "r"(in[r * n + i])
STMATRIX(stmatrix_x1, "stmatrix.sync.aligned.m8n8.x1.shared.b16", "{%1}", R(0))
STMATRIX(stmatrix_x2, "stmatrix.sync.aligned.m8n8.x2.shared.b16", "{%1, %2}", R(0), R(1))
STMATRIX(stmatrix_x4, "stmatrix.sync.aligned.m8n8.x4.shared.b16", "{%1, %2, %3, %4}", R(0), R(1), R(2), R(3))
STMATRIX(stmatrix_x1_trans, "stmatrix.sync.aligned.m8n8.x1.trans.shared.b16", "{%1}", R(0))
STMATRIX(stmatrix_x2_trans, "stmatrix.sync.aligned.m8n8.x2.trans.shared.b16", "{%1, %2}", R(0), R(1))
STMATRIX(stmatrix_x4_trans, "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16", "{%1, %2, %3, %4}", R(0), R(1), R(2), R(3))
