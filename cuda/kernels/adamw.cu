// One step of AdamW on one tensor, which is measured in the same pass: wl_adamw.h says what, and src/optimizer/adamw.rs does the same
// on the CPU, with the same bits. So each operation rounds once, none is contracted, and sums have one order:
//
//   a CTA of 8 warps takes a chunk of 8192 elements, a warp a span of 1024 of it, 128 at a time, a lane four of those
//   partials  a lane adds up its elements in order, the butterfly over 32 lanes the span (distances 16, 8, 4, 2, 1), and the
//             spans of a chunk add up in their order, all in f32
//   totals    chain c of 16 adds up chunks c, c + 16, c + 32 …, and the chains add up in their order, in f64
//
// A chunk leaves 64 bytes of partials in the scratch; the CTA that arrives last, by ticket, makes the totals. Counts are integers. The
// histogram of a CTA has a column for each lane, so that lanes never meet in a bin or a bank; its 64 sums go to the scratch by atomics.
//
// Bytes: 28 an element with gradients in f32 (weights and moments read and written), 26 in bf16, 2 more with the copy; and of
// partials 64 written, 64 read a CTA, 0.05 %. A lane has four loads of 16 bytes (one of 8 in bf16) on their way before the first use.
// An H100 takes 28 bytes in the time of 250 instructions of a lane; there are about 120. Registers: 68 to 72, so an SM
// holds 3 CTAs, 24 warps, with 48 KB of loads on their way. Shared memory: 11 KB.
#include <stddef.h>

#include "arch/dependency.cuh"
#include "arch/eight.cuh"
#include "arch/memory.cuh"
#include "arch/ticket.cuh"
#include "arch/warp.cuh"
#include "wl_adamw.h"

namespace wl {

constexpr int THREADS = WL_ADAMW_THREADS;
constexpr int WARPS = THREADS / 32;
constexpr int SPAN = WL_ADAMW_CHUNK / WARPS;
constexpr int ROW = 4 * 32;
constexpr int SUMS = WL_ADAMW_SUMS;
constexpr int BINS = WL_ADAMW_BINS;

// Words of a chunk's partials: the sums in f32, the largest |r| as bits, counts; two are zero.
constexpr int MOST = SUMS, NON_FINITE = SUMS + 1, LARGE = SUMS + 2, SMALL = SUMS + 3, WORDS = 16;
static_assert(4 * WORDS == WL_ADAMW_SCRATCH_CTA, "");
constexpr int CHAINS = THREADS / WORDS;

// Where a chunk begins: past 2^31 in a large tensor.
__host__ __device__ constexpr int64_t first_of(uint32_t chunk) {
    return int64_t(chunk) * WL_ADAMW_CHUNK;
}
static_assert(first_of(0x40000) == int64_t(1) << 31 && first_of(0x7fffffff) == (int64_t(1) << 44) - 8192, "");

// The head of the scratch; partials follow it.
struct Head {
    uint32_t ticket;
    uint32_t reserved[31];
    unsigned long long histogram[BINS];
};
static_assert(sizeof(Head) <= WL_ADAMW_SCRATCH_HEAD, "");
static_assert(offsetof(WlAdamwStatistics, max_ratio) == 8 * MOST && offsetof(WlAdamwStatistics, small_roots) == 8 * SMALL, "");

struct Shared {
    uint32_t histogram[BINS][32];
    uint32_t words[WARPS][WORDS];
    double chains[CHAINS][WORDS];
    bool is_last;
};

template <bool WHOLE, typename T> __device__ __forceinline__ void load_four(float (&x)[4], const T* from, int count) {
    if constexpr (!WHOLE) {
#pragma unroll
        for (int j = 0; j < 4; j++) x[j] = j < count ? to_float(from[j]) : 0;
    } else if constexpr (sizeof(T) == 4) {
        const float4 y = *reinterpret_cast<const float4*>(from);
        x[0] = y.x, x[1] = y.y, x[2] = y.z, x[3] = y.w;
    } else {
        const uint2 y = *reinterpret_cast<const uint2*>(from);
        const float2 low = unpack<T>(y.x), high = unpack<T>(y.y);
        x[0] = low.x, x[1] = low.y, x[2] = high.x, x[3] = high.y;
    }
}

template <bool WHOLE, typename T> __device__ __forceinline__ void store_four(T* to, const float (&x)[4], int count) {
    if constexpr (!WHOLE) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (j < count) to[j] = from_float<T>(x[j]);
        }
    } else if constexpr (sizeof(T) == 4) {
        *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
    } else {
        *reinterpret_cast<uint2*>(to) = make_uint2(pack<T>(x[0], x[1]), pack<T>(x[2], x[3]));
    }
}

__device__ __forceinline__ bool is_finite(float x) {
    return fabsf(x) < __int_as_float(0x7f800000);
}

// What a lane has measured.
struct Lane {
    float sums[SUMS] = {};
    uint32_t most = 0;
    uint32_t non_finite = 0;
    uint32_t large = 0;
    uint32_t small = 0;

    __device__ __forceinline__ void add(int sum, float x, float y) {
        sums[sum] = __fadd_rn(sums[sum], __fmul_rn(x, y));
    }
};

// Updates an element and adds it to the lane's measures and to its column of the histogram.
__device__ __forceinline__ void update(const WlAdamw& p, const WlAdamwStep& step, float gradient, float& weight, float& m, float& v,
                                       Lane& lane, uint32_t* column) {
    float g = __fmul_rn(gradient, step.gradient_scale);
    const float new_m = __fadd_rn(__fmul_rn(p.beta1, m), __fmul_rn(__fsub_rn(1, p.beta1), g));
    const float new_v = __fadd_rn(__fmul_rn(p.beta2, v), __fmul_rn(__fmul_rn(__fsub_rn(1, p.beta2), g), g));
    const float v_hat = __fmul_rn(new_v, step.v_correction);
    const float root = __fsqrt_rn(v_hat);
    float r = __fdiv_rn(__fmul_rn(new_m, step.m_correction), __fadd_rn(root, p.epsilon));
    const float decayed = __fadd_rn(r, __fmul_rn(p.decay, weight));
    const float new_weight = __fsub_rn(weight, __fmul_rn(step.learning_rate, decayed));
    // r is finite where the weight is.
    const bool finite = is_finite(__fmul_rn(g, g)) && is_finite(new_v) && is_finite(new_weight);

    // An element that is left out adds zeros.
    g = finite ? g : 0;
    r = finite ? r : 0;
    const float old_m = finite ? m : 0, old = finite ? weight : 0;
    const float r_2 = __fmul_rn(r, r);
    lane.add(0, g, g);
    lane.sums[1] = __fadd_rn(lane.sums[1], r);
    lane.sums[2] = __fadd_rn(lane.sums[2], r_2);
    lane.add(3, r_2, r);
    lane.add(4, r_2, r_2);
    lane.add(5, g, r);
    lane.add(6, g, old_m);
    lane.add(7, old_m, old_m);
    const float least = __fmul_rn(p.epsilon, p.epsilon);
    lane.sums[8] = __fadd_rn(lane.sums[8], __fdiv_rn(__fmul_rn(g, g), fmaxf(v_hat, least)));
    lane.add(9, old, old);
    // The bits of numbers from 0 are in their order.
    lane.most = max(lane.most, __float_as_uint(fabsf(r)));
    lane.non_finite += !finite;
    lane.large += fabsf(r) > 0.9f;
    lane.small += finite && root < p.epsilon;
    const float bin = __fadd_rn(__fmul_rn(r, p.bins_per_ratio), BINS / 2);
    if (finite) atomicAdd(column + 32 * int(fminf(fmaxf(bin, 0), BINS - 1)), 1);

    m = finite ? new_m : m;
    v = finite ? new_v : v;
    weight = finite ? new_weight : weight;
}

// A warp's span, of which `left` elements are there. WHOLE: those are a multiple of 4, and all arrays begin where they can be accessed
// four elements at a time.
template <bool WHOLE, typename G>
__device__ __forceinline__ void update_span(const WlAdamw& p, const WlAdamwStep& step, int64_t first, int left, Lane& lane,
                                            uint32_t* column) {
    float* const weights = global<float>(p.weights) + first;
    float* const ms = global<float>(p.m) + first;
    float* const vs = global<float>(p.v) + first;
    const G* const gradients = global<const G>(p.gradients) + first;
    bf16* const copy = p.copy ? global<bf16>(p.copy) + first : nullptr;
#pragma unroll 1
    for (int at = 4 * lane_id(); at < left; at += ROW) {
        const int count = left - at;
        float w[4], g[4], m[4], v[4];
        load_four<WHOLE>(w, weights + at, count);
        load_four<WHOLE>(m, ms + at, count);
        load_four<WHOLE>(v, vs + at, count);
        load_four<WHOLE>(g, gradients + at, count);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (WHOLE || j < count) update(p, step, g[j], w[j], m[j], v[j], lane, column);
        }
        store_four<WHOLE>(weights + at, w, count);
        store_four<WHOLE>(ms + at, m, count);
        store_four<WHOLE>(vs + at, v, count);
        if (copy) store_four<WHOLE>(copy + at, w, count);
    }
}

// Adds up all chunks' partials and writes the statistics; leaves the head as it was before the launch.
__device__ __forceinline__ void finish(const WlAdamw& p, Head* head, const uint32_t* partials, Shared& shared) {
    WlAdamwStatistics* const statistics = global<WlAdamwStatistics>(p.statistics);
    const int word = threadIdx.x % WORDS, chain = threadIdx.x / WORDS;
    double total = 0;
#pragma unroll 8
    for (uint32_t chunk = chain; chunk < gridDim.x; chunk += CHAINS) {
        const uint32_t bits = __ldcg(partials + int64_t(chunk) * WORDS + word);
        const double x = word <= MOST ? double(__uint_as_float(bits)) : double(bits);
        total = word == MOST ? fmax(total, x) : total + x;
    }
    shared.chains[chain][word] = total;
    if (threadIdx.x < BINS) {
        statistics->histogram[threadIdx.x] = __ldcg(head->histogram + threadIdx.x);
        head->histogram[threadIdx.x] = 0;
    }
    __syncthreads();
    if (threadIdx.x >= WORDS) return;
    total = 0;
#pragma unroll
    for (int c = 0; c < CHAINS; c++) {
        const double x = shared.chains[c][word];
        total = word == MOST ? fmax(total, x) : total + x;
    }
    // Doubles and, after them, counts, of 8 bytes each.
    uint64_t* const words = global<uint64_t>(p.statistics);
    if (word <= SMALL) words[word] = word <= MOST ? uint64_t(__double_as_longlong(total)) : uint64_t(total);
}

template <typename G> __device__ __forceinline__ void adamw(const WlAdamw& p) {
    begin_in_order();
    __shared__ Shared shared;
    const int64_t first = first_of(blockIdx.x) + warp_id() * SPAN;
    const int left = int(min(p.count - first, int64_t(SPAN)));
    const float4 now = *global<const float4>(p.step);
    const WlAdamwStep step = {now.x, now.y, now.z, now.w};
    for (int i = threadIdx.x; i < BINS * 32 / 4; i += THREADS) {
        reinterpret_cast<uint4*>(shared.histogram)[i] = {};
    }
    __syncthreads();

    Lane lane;
    uint32_t* const column = &shared.histogram[0][lane_id()];
    const auto at = [](uint64_t address) { return reinterpret_cast<const void*>(address); };
    if (left % 4 == 0 && aligned(at(p.weights), at(p.m), at(p.v)) && aligned(at(p.gradients), at(p.copy))) {
        update_span<true, G>(p, step, first, left, lane, column);
    } else {
        update_span<false, G>(p, step, first, left, lane, column);
    }

    uint32_t* const words = shared.words[warp_id()];
#pragma unroll
    for (int i = 0; i < SUMS; i++) {
        const float sum = warp_sum(lane.sums[i]);
        if (lane_id() == 0) words[i] = __float_as_uint(sum);
    }
    const uint32_t most = __reduce_max_sync(ALL_LANES, lane.most);
    const uint32_t non_finite = __reduce_add_sync(ALL_LANES, lane.non_finite);
    const uint32_t large = __reduce_add_sync(ALL_LANES, lane.large);
    const uint32_t small = __reduce_add_sync(ALL_LANES, lane.small);
    if (lane_id() == 0) words[MOST] = most, words[NON_FINITE] = non_finite, words[LARGE] = large, words[SMALL] = small;
    __syncthreads();

    Head* const head = global<Head>(p.scratch);
    uint32_t* const partials = global<uint32_t>(p.scratch + WL_ADAMW_SCRATCH_HEAD);
    constexpr int WARP_BINS = BINS / WARPS;
    uint32_t in_bin = 0;
#pragma unroll
    for (int i = 0; i < WARP_BINS; i++) {
        const uint32_t sum = __reduce_add_sync(ALL_LANES, shared.histogram[warp_id() * WARP_BINS + i][lane_id()]);
        if (lane_id() == i) in_bin = sum;
    }
    if (in_bin) atomicAdd(head->histogram + warp_id() * WARP_BINS + lane_id(), in_bin);
    if (threadIdx.x < WORDS) {
        const int word = threadIdx.x;
        float sum = 0;
        uint32_t whole = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const uint32_t bits = word <= SMALL ? shared.words[w][word] : 0;
            sum = __fadd_rn(sum, __uint_as_float(bits));
            whole = word == MOST ? max(whole, bits) : whole + bits;
        }
        partials[int64_t(blockIdx.x) * WORDS + word] = word < SUMS ? __float_as_uint(sum) : whole;
    }
    __syncthreads();
    if (threadIdx.x == 0) shared.is_last = take_ticket(&head->ticket, gridDim.x - 1) == gridDim.x - 1;
    __syncthreads();
    if (shared.is_last) finish(p, head, partials, shared);
}

using f32 = float;

}  // namespace wl

#define WL_ENTRY(G, NAME)                                                                                              \
    extern "C" __global__ void __launch_bounds__(wl::THREADS) NAME(const __grid_constant__ WlAdamw p) {                \
        wl::adamw<wl::G>(p);                                                                                           \
    }
WL_ENTRY(f32, wl_adamw_f32)
WL_ENTRY(bf16, wl_adamw_bf16)
