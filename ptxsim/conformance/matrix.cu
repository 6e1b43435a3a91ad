// One-instruction kernels: ldmatrix layouts. Each warp (block 32) fills 32 rows of 16 bytes from in, row r from words 4 r to
// 4 r + 3; lane l gives the address of row (7 l + 3) % 32. Register r of thread i is out[r * n + i].
#include <cstdint>

#define LDMATRIX(name, op, count, registers, outputs)                                                      \
    extern "C" __global__ void name(const uint32_t* in, uint32_t* out, int n) {                            \
        __shared__ __align__(16) uint32_t rows[128];                                                       \
        const int lane = threadIdx.x, i = blockIdx.x * 32 + lane;                                          \
        for (int w = lane; w < 128; w += 32) rows[w] = in[blockIdx.x * 128 + w];                           \
        __syncwarp();                                                                                      \
        const uint32_t row = (uint32_t)__cvta_generic_to_shared(rows) + (7 * lane + 3) % 32 * 16;          \
        uint32_t d[4];                                                                                     \
        asm volatile(op " " registers ", [%" #count "];" : outputs : "r"(row) : "memory");                 \
        for (int r = 0; r < count; r++) out[r * n + i] = d[r];                                             \
    }
#define OUT_1 "=r"(d[0])
#define OUT_2 "=r"(d[0]), "=r"(d[1])
#define OUT_4 "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
#define AS_LIST(...) __VA_ARGS__
LDMATRIX(ldmatrix_x1, "ldmatrix.sync.aligned.m8n8.x1.shared.b16", 1, "{%0}", AS_LIST(OUT_1))
LDMATRIX(ldmatrix_x2, "ldmatrix.sync.aligned.m8n8.x2.shared.b16", 2, "{%0, %1}", AS_LIST(OUT_2))
LDMATRIX(ldmatrix_x4, "ldmatrix.sync.aligned.m8n8.x4.shared.b16", 4, "{%0, %1, %2, %3}", AS_LIST(OUT_4))
LDMATRIX(ldmatrix_x1_trans, "ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16", 1, "{%0}", AS_LIST(OUT_1))
LDMATRIX(ldmatrix_x2_trans, "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16", 2, "{%0, %1}", AS_LIST(OUT_2))
LDMATRIX(ldmatrix_x4_trans, "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", 4, "{%0, %1, %2, %3}", AS_LIST(OUT_4))

// movmatrix transposes one 8 x 8 tile within the registers.
extern "C" __global__ void movmatrix_trans(const uint32_t* in, uint32_t* out, int n) {
    const int i = blockIdx.x * 32 + threadIdx.x;
    uint32_t d;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(in[i]));
    out[i] = d;
}
