// One-instruction kernels: exchange between lanes, and atomics. Block 32, n a multiple of 32.
// Operand j of thread i is in[j * n + i]; result j is out[j * n + i].
#include <cstdint>

#define KERNEL(name) extern "C" __global__ void name(const uint32_t* in, uint32_t* out, int n)
#define THREAD const int i = blockIdx.x * blockDim.x + threadIdx.x

// Operands: value, b (lane, distance or mask), c (clamp and segment mask). Results: value, and whether the source was in range.
#define SHFL(mode)                                                                                                       \
    KERNEL(shfl_##mode) {                                                                                                \
        THREAD;                                                                                                          \
        uint32_t d, in_range;                                                                                            \
        asm volatile("{ .reg .pred p; shfl.sync." #mode ".b32 %0|p, %2, %3, %4, 0xffffffff; selp.u32 %1, 1, 0, p; }"     \
                     : "=&r"(d), "=r"(in_range) : "r"(in[i]), "r"(in[n + i]), "r"(in[2 * n + i]));                       \
        out[i] = d, out[n + i] = in_range;                                                                               \
    }
SHFL(idx)
SHFL(up)
SHFL(down)
SHFL(bfly)

// Operand: whether its lowest bit is set.
#define VOTE(mode)                                                                                                       \
    KERNEL(vote_##mode) {                                                                                                \
        THREAD;                                                                                                          \
        uint32_t d;                                                                                                      \
        asm volatile("{ .reg .pred p, q; setp.ne.u32 p, %1, 0; vote.sync." #mode ".pred q, p, 0xffffffff; selp.u32 %0, 1, 0, q; }" \
                     : "=r"(d) : "r"(in[i] & 1));                                                                        \
        out[i] = d;                                                                                                      \
    }
VOTE(all)
VOTE(any)
VOTE(uni)
KERNEL(vote_ballot) {
    THREAD;
    uint32_t d;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %1, 0; vote.sync.ballot.b32 %0, p, 0xffffffff; }" : "=r"(d) : "r"(in[i] & 1));
    out[i] = d;
}
KERNEL(match_any_b32) {
    THREAD;
    uint32_t d;
    asm volatile("match.any.sync.b32 %0, %1, 0xffffffff;" : "=r"(d) : "r"(in[i] & 7));
    out[i] = d;
}
// The warps of blocks 0, 2, ... hold one value in all lanes. Results: mask, and whether all matched.
KERNEL(match_all_b32) {
    THREAD;
    uint32_t d, all;
    asm volatile("{ .reg .pred p; match.all.sync.b32 %0|p, %2, 0xffffffff; selp.u32 %1, 1, 0, p; }"
                 : "=&r"(d), "=r"(all) : "r"(blockIdx.x % 2 ? in[i] : in[blockIdx.x * 32]));
    out[i] = d, out[n + i] = all;
}
#define REDUX(name, op)                                                                             \
    KERNEL(name) {                                                                                  \
        THREAD;                                                                                     \
        uint32_t d;                                                                                 \
        asm volatile("redux.sync." op " %0, %1, 0xffffffff;" : "=r"(d) : "r"(in[i]));               \
        out[i] = d;                                                                                 \
    }
REDUX(redux_add_s32, "add.s32")
REDUX(redux_min_s32, "min.s32")
REDUX(redux_max_s32, "max.s32")
REDUX(redux_min_u32, "min.u32")
REDUX(redux_max_u32, "max.u32")
REDUX(redux_and_b32, "and.b32")
REDUX(redux_or_b32, "or.b32")
REDUX(redux_xor_b32, "xor.b32")

// One thread at a time on one shared word, in lane order, so that the result is defined: out[i] is the old value, out[32] what
// remains. Launched with one block of 32 and n = 32: in[0] is the word's start, in[32 + i] the operand of thread i.
#define ATOM(name, op)                                                                              \
    KERNEL(name) {                                                                                  \
        __shared__ uint32_t word;                                                                   \
        if (threadIdx.x == 0) word = in[0];                                                         \
        _Pragma("unroll 1") for (int turn = 0; turn < 32; turn++) {                                 \
            __syncthreads();                                                                        \
            if (threadIdx.x != turn) continue;                                                      \
            uint32_t old;                                                                           \
            asm volatile("atom.shared." op " %0, [%1], %2;"                                         \
                         : "=r"(old) : "r"((uint32_t)__cvta_generic_to_shared(&word)), "r"(in[n + turn]) : "memory"); \
            out[turn] = old;                                                                        \
        }                                                                                           \
        __syncthreads();                                                                            \
        if (threadIdx.x == 0) out[n] = word;                                                        \
    }
ATOM(atom_add_f32, "add.f32")
ATOM(atom_add_u32, "add.u32")
ATOM(atom_min_s32, "min.s32")
ATOM(atom_max_u32, "max.u32")
ATOM(atom_inc_u32, "inc.u32")
ATOM(atom_dec_u32, "dec.u32")
ATOM(atom_exch_b32, "exch.b32")
ATOM(atom_xor_b32, "xor.b32")
ATOM(atom_add_noftz_f16x2, "add.noftz.f16x2")
