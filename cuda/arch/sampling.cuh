// What sample.cu and accept.cu share: a row's scores, its distribution as a function of them, and draws from masses
// over the vocabulary. A distribution is never written out: its logits and the 32 bytes of a WlChoice give any token's
// probability, with the same bits in both kernels.
//
// A CTA of 512 threads works on one row. Each of its 16 warps has a part of the ids, in order; a lane has four
// neighbours at a time, a warp 128, 512 bytes. Masses are integers, weight · 2^42: their sums have no order, so that
// neither schedules nor the number of threads can show.
#pragma once
#include "math.cuh"
#include "memory.cuh"
#include "warp.cuh"
#include "wl_round.h"

namespace wl {

constexpr int ROW_THREADS = 512;
constexpr int ROW_WARPS = ROW_THREADS / 32;
constexpr float LARGEST = 3.402823466e+38f;

// Sum over a warp, in every lane.
__device__ __forceinline__ uint64_t warp_sum(uint64_t x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}
// Sum over the lanes up to this one.
__device__ __forceinline__ uint64_t warp_scan(uint64_t x) {
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const uint64_t left = __shfl_up_sync(ALL_LANES, x, distance);
        if (lane_id() >= distance) x += left;
    }
    return x;
}

__device__ __forceinline__ bool is_finite(float x) {
    return fabsf(x) <= LARGEST;
}

// Bits that order as the floats do, the two zeros being one. No finite score has 0 or ~0.
__device__ __forceinline__ uint32_t order(float score) {
    const uint32_t bits = __float_as_uint(__fadd_rn(score, 0.0f));
    return bits ^ (int32_t(bits) < 0 ? 0xffffffff : 0x80000000);
}
__device__ __forceinline__ float unorder(uint32_t order) {
    return __uint_as_float(order ^ (int32_t(order) < 0 ? 0x80000000 : 0xffffffff));
}

// One row of logits, seen through the penalty: tokens of the history, and the drafts before this row.
struct Scores {
    const float* logits;
    int vocab;
    int before;               // drafts before this row
    const uint32_t* seen;     // a bit per id; nullptr without a penalty
    const WlSequence* state;  // has the drafts and the penalty

    __device__ __forceinline__ float penalised(float logit) const {
        const float penalty = state->repetition_penalty;
        const float score = logit < 0 ? __fmul_rn(logit, penalty) : __fdiv_rn(logit, penalty);
        // An extreme penalty must not turn a finite logit into an infinity.
        return fminf(fmaxf(score, -LARGEST), LARGEST);
    }
    // Logits of id .. id + 3, id being a multiple of 4; zeros past the vocabulary.
    __device__ __forceinline__ void load(int id, float (&x)[4]) const {
        if (id + 4 <= vocab && (reinterpret_cast<uintptr_t>(logits) & 15) == 0) {
            const float4 v = *reinterpret_cast<const float4*>(logits + id);
            x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
        } else {
#pragma unroll
            for (int j = 0; j < 4; j++) x[j] = id + j < vocab ? logits[id + j] : 0.0f;
        }
    }
    __device__ __forceinline__ void penalise(int id, float (&x)[4]) const {
        if (!seen) return;
        uint32_t bits = seen[id / 32] >> id % 32 & 15;
        for (int i = 0; i < before; i++) {
            const uint32_t offset = uint32_t(state->drafts[i] - id);
            if (offset < 4) bits |= 1u << offset;
        }
        // Rare: one copy of the division.
        if (bits == 0) return;
#pragma unroll 1
        for (int j = 0; j < 4; j++, bits >>= 1) {
            const float score = bits & 1 ? penalised(x[0]) : x[0];
            x[0] = x[1], x[1] = x[2], x[2] = x[3], x[3] = score;
        }
    }
    // Scores of id .. id + 3.
    __device__ __forceinline__ void operator()(int id, float (&x)[4]) const {
        load(id, x);
        penalise(id, x);
    }
    __device__ __forceinline__ float one(int id) const {
        float x[4];
        (*this)(id & ~3, x);
        return id % 4 == 0 ? x[0] : id % 4 == 1 ? x[1] : id % 4 == 2 ? x[2] : x[3];
    }
};

// Scores of row `before` of a sequence's round.
__device__ __forceinline__ Scores scores_of(const float* logits, int vocab, const WlSequence& state,
                                            const uint32_t* seen, int before) {
    return {logits, vocab, before, state.repetition_penalty == 1.0f ? nullptr : seen, &state};
}

// The temperature of a sequence, whatever the memory holds: 0, greedy, if it is not over 0, and finite.
__device__ __forceinline__ float temperature_of(const WlSequence& state) {
    return fminf(fmaxf(state.temperature, 0.0f), LARGEST);
}

// Weights relative to the most probable token's, which is 1.
struct Weights {
    float max, temperature, inverse;

    __device__ __forceinline__ Weights(float max, float temperature)
        : max(max), temperature(temperature), inverse(fminf(__fdiv_rn(1.0f, temperature), LARGEST)) {}

    __device__ __forceinline__ float operator()(float score) const {
        const float difference = __fadd_rn(score, -max);
        const float x = __fmul_rn(difference, inverse);
        // One step of Newton's makes the quotient exact. Where it overflows, to -infinity or NaN, the weight is 0.
        return exp_portable(__fmaf_rn(__fmaf_rn(-x, temperature, difference), inverse, x));
    }
};

constexpr float MASS_ONE = 4398046511104.0f;  // 2^42

__device__ __forceinline__ uint64_t mass(float weight) {
    return __float2ull_rz(__fmul_rn(weight, MASS_ONE));
}

// Masses of four neighbouring ids; 0 past the vocabulary.
struct Masses {
    uint64_t x[4];
};

// The rank of a token: more probable first, lower ids first among equals.
__device__ __forceinline__ uint64_t rank(float weight, int id) {
    return uint64_t(__float_as_uint(weight)) << 32 | ~uint32_t(id);
}

__device__ __forceinline__ bool kept(const WlChoice& choice, float score, float weight, int id) {
    return score >= choice.least && rank(weight, id) >= choice.cut;
}

__device__ __forceinline__ float probability(const WlChoice& choice, const Weights& weights, float score, int id) {
    const float weight = weights(score);
    return kept(choice, score, weight, id) ? __fmul_rn(weight, choice.inverse) : 0.0f;
}

// A range of ids among the warps: each has `span` of them, a multiple of 128, in order.
__device__ __forceinline__ int span_of(int ids) {
    return (ids + 128 * ROW_WARPS - 1) / (128 * ROW_WARPS) * 128;
}

// Calls f with four ids at a time: all of this warp's part of [begin, end).
template <typename F> __device__ __forceinline__ void each_four(int begin, int end, F f) {
    const int span = span_of(end - begin);
    begin += warp_id() * span;
    end = min(begin + span, end);
#pragma unroll 1
    for (int id = begin + 4 * lane_id(); id < end; id += 128) f(id);
}

// Masses of the warps' parts of [begin, end); `masses(id)` is that of four ids. The caller synchronises.
template <typename F> __device__ __forceinline__ void sum_parts(int begin, int end, uint64_t* parts, F masses) {
    uint64_t sum = 0;
    each_four(begin, end, [&](int id) {
        const Masses m = masses(id);
        sum += m.x[0] + m.x[1] + m.x[2] + m.x[3];
    });
    sum = warp_sum(sum);
    if (lane_id() == 0) parts[warp_id()] = sum;
}

__device__ __forceinline__ uint64_t sum_of_parts(const uint64_t* parts) {
    return warp_sum(lane_id() < ROW_WARPS ? parts[lane_id()] : 0);
}

// The part that `target` falls on when masses lie one after the other, in the order of ids; `target` becomes what is
// left of it there.
__device__ __forceinline__ int find_part(const uint64_t* parts, uint64_t& target) {
    const uint64_t mine = lane_id() < ROW_WARPS ? parts[lane_id()] : 0;
    const uint64_t up_to = warp_scan(mine);
    const int part = __ffs(__ballot_sync(ALL_LANES, target < up_to)) - 1;
    target -= __shfl_sync(ALL_LANES, up_to - mine, part);
    return part;
}

// The id that `target` falls on when the tokens' masses lie one after the other, in the order of ids, in every thread.
// `parts` holds the masses of the warps' parts of the vocabulary, target is under their sum, which is not 0. 1/16 of
// the vocabulary is read again, by all warps; then 1/256 by one.
template <typename F>
__device__ __forceinline__ int pick(int vocab, uint64_t target, const uint64_t* parts, uint64_t* finer, int* picked,
                                    F masses) {
    int span = span_of(vocab);
    int begin = find_part(parts, target) * span;
    const int end = min(begin + span, vocab);
    sum_parts(begin, end, finer, masses);
    __syncthreads();
    span = span_of(end - begin);
    const int part = find_part(finer, target);
    if (part == warp_id()) {
        for (begin += part * span; begin < end; begin += 128) {
            const int id = begin + 4 * lane_id();
            Masses m = id < end ? masses(id) : Masses{};
            const uint64_t sum = m.x[0] + m.x[1] + m.x[2] + m.x[3];
            const uint64_t up_to = warp_scan(sum);
            if (__any_sync(ALL_LANES, target < up_to)) {
                if (target >= up_to - sum && target < up_to) {
                    uint64_t left = target - (up_to - sum);
                    int j = 0;
#pragma unroll 1
                    for (; j < 3 && left >= m.x[0]; j++) {
                        left -= m.x[0];
                        m.x[0] = m.x[1], m.x[1] = m.x[2], m.x[2] = m.x[3];
                    }
                    *picked = id + j;
                }
                break;
            }
            target -= __shfl_sync(ALL_LANES, up_to, 31);
        }
    }
    __syncthreads();
    return *picked;
}

// A number under `total`, from 64 random bits.
__device__ __forceinline__ uint64_t below(uint64_t total, uint64_t bits) {
    return __umul64hi(bits, total);
}

}  // namespace wl
