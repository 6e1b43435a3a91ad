// Chooses a token from each row of logits f32 [rows, vocab]: greedily, or at random after repetition penalty,
// temperature, top-k, top-p and min-p, in this order. What it finds out of a row is a WlChoice (sampling.cuh); the
// distribution itself is never stored.
//
// A row has ceil(vocab / 8192) CTAs of 512 threads. Each finds the largest score of its part, 16 logits per thread; the
// last one to arrive, by ticket, has the row's. For a greedy choice that is all: the logits are read once, by as many
// SMs as there are parts. To sample, the last CTA goes on alone, from L2:
//   1. With a filter: takes tokens of weight over 2^-14 to shared memory, the candidates. If they settle all filters,
//      which is so but for nearly flat distributions, steps 2 and 3 read them in place of the row.
//   2. top-k, then top-p: radix selection over 64-bit ranks (weight, then score or id), most significant digit first. A
//      digit's histogram has counts and masses; 13 bits, 16 bins to a factor of 2 in weight, come first, and the bin
//      that holds the last token to be kept mostly has few: up to 256 are ranked one against the other, more go on to
//      the next digit. min-p is a bound on the rank.
//   3. Masses of what is left, in each of the warps' 16 parts of the vocabulary.
//   4. The draw: a number under their sum picks a part, then a part of that, and one warp finds the token there.
// All sums are of integers (weight · 2^42), all maxima and minima of integers: no order of arrival shows.
//
// Reads of a row: greedy 1; with a threshold 2 (its softmax); sampled 2 + 1/16 + 1/256; where the candidates do not
// settle the filters, 2 more per top-k and top-p, one per further digit, and 1. The first comes from memory, the others
// from L2 by one SM: at about 64 bytes a clock, 128256 logits take 5 µs a read, 32000 take 1.2. FLOP: about 20 per
// logit and read, for its weight. Registers: 85, for sm_90 88. Shared memory: 59 KB. One CTA, 16 warps per SM.
#include "arch/dependency.cuh"
#include "arch/philox.cuh"
#include "arch/ticket.cuh"
#include "arch/sampling.cuh"
#include "wl_sample.h"

namespace wl {

static_assert(ROW_THREADS == WL_SAMPLE_THREADS, "one CTA of a row");

constexpr int PART_STEPS = WL_SAMPLE_PART / (4 * ROW_THREADS);
constexpr int BINS = 2048;
constexpr int BINS_HELD = BINS / ROW_THREADS;
constexpr int CANDIDATES = 4096;
constexpr int RIVALS = 256;  // that are ranked one against the other
// A candidate's weight at least. It decides what is fast, never what is chosen.
constexpr float CANDIDATE_WEIGHT = 1.0f / 16384;

// Lowest bits of the digits of a rank, a byte each: widths 13 (2033 bins, as weights are 1 at most), 10, 9, 11, 11, 10.
constexpr uint64_t DIGITS = 0x00'0a'15'20'29'33;

struct Found {
    uint32_t bin;
    uint32_t count;
    uint64_t need;
};

struct Shared {
    uint64_t reduce[ROW_WARPS];
    uint64_t rivals[RIVALS];
    Found found[2];
    uint64_t cut;
    // Sums of 64 bits in two halves, for the atomics of 32.
    uint32_t part_low[ROW_WARPS];
    uint32_t part_high[ROW_WARPS];
    uint64_t part[ROW_WARPS];
    uint64_t finer[ROW_WARPS];
    uint32_t count[BINS];
    uint32_t mass_low[BINS];
    uint32_t mass_high[BINS];
    float score[CANDIDATES];
    int32_t id[CANDIDATES];
    int32_t candidates;
    int32_t rivals_count;
    int32_t picked;
    uint32_t last;
};
static_assert(sizeof(Shared) <= WL_SAMPLE_SHARED, "WL_SAMPLE_SHARED is too small");

// Adds to a sum in two halves: the first half's old value tells whether this addition carries.
__device__ __forceinline__ void add(uint32_t* low, uint32_t* high, uint64_t x) {
    const uint32_t old = atomicAdd(low, uint32_t(x));
    const uint32_t carried = uint32_t(x >> 32) + (old + uint32_t(x) < old);
    if (carried) atomicAdd(high, carried);
}

// Maximum over a warp, in every lane.
__device__ __forceinline__ uint64_t warp_max(uint64_t x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x = max(x, uint64_t(__shfl_xor_sync(ALL_LANES, x, distance)));
    return x;
}
// Sum and maximum over the CTA, in every thread. `scratch` holds ROW_WARPS numbers; it may be in use until the first
// barrier.
__device__ __forceinline__ uint64_t block_sum(uint64_t x, uint64_t* scratch) {
    x = warp_sum(x);
    __syncthreads();
    if (lane_id() == 0) scratch[warp_id()] = x;
    __syncthreads();
    return warp_sum(lane_id() < ROW_WARPS ? scratch[lane_id()] : 0);
}
__device__ __forceinline__ uint64_t block_max(uint64_t x, uint64_t* scratch) {
    x = warp_max(x);
    __syncthreads();
    if (lane_id() == 0) scratch[warp_id()] = x;
    __syncthreads();
    return warp_max(lane_id() < ROW_WARPS ? scratch[lane_id()] : 0);
}

// The distribution of a row, worked out by one CTA.
struct Distribution {
    Shared& shared;
    const Scores& scores;
    const Weights& weights;
    WlChoice& choice;
    bool listed = false;  // the candidates settle all filters

    __device__ __forceinline__ Distribution(Shared& shared, const Scores& scores, const Weights& weights,
                                            WlChoice& choice)
        : shared(shared), scores(scores), weights(weights), choice(choice) {}

    // Calls f(id, score, weight) for every token, or candidate where those will do.
    template <typename F> __device__ __forceinline__ void each(F f) const {
        const int span = span_of(scores.vocab);
        int at = listed ? int(threadIdx.x) : warp_id() * span + 4 * lane_id();
        const int end = listed ? shared.candidates : min((warp_id() + 1) * span, scores.vocab);
        const int step = listed ? ROW_THREADS : 128;
#pragma unroll 1
        for (; at < end; at += step) {
            float x[4];
            int id = at, last = min(at + 4, scores.vocab);
            if (listed) {
                id = shared.id[at];
                x[0] = shared.score[at];
                last = id + 1;
            } else {
                scores(id, x);
            }
            // One copy of f: programs stay short.
#pragma unroll 1
            for (; id < last; id++) {
                f(id, x[0], weights(x[0]));
                x[0] = x[1], x[1] = x[2], x[2] = x[3];
            }
        }
    }

    // Masses of four tokens, of those that are kept.
    __device__ __forceinline__ Masses masses(int id) const {
        float x[4];
        scores(id, x);
        Masses m;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float weight = weights(x[j]);
            m.x[j] = id + j < scores.vocab && kept(choice, x[j], weight, id + j) ? mass(weight) : 0;
        }
        return m;
    }

    // Gathers the candidates; `complete` says, of their number and mass and the mass of all, whether they settle the
    // filters.
    template <typename F> __device__ __forceinline__ uint64_t gather(F complete) {
        if (threadIdx.x == 0) shared.candidates = 0;
        __syncthreads();
        uint64_t all = 0, gathered = 0;
        each([&](int id, float score, float weight) {
            all += mass(weight);
            if (weight >= CANDIDATE_WEIGHT) {
                const int i = atomicAdd(&shared.candidates, 1);
                if (i < CANDIDATES) {
                    shared.id[i] = id;
                    shared.score[i] = score;
                }
                gathered += mass(weight);
            }
        });
        all = block_sum(all, shared.reduce);
        gathered = block_sum(gathered, shared.reduce);
        listed = shared.candidates <= CANDIDATES && complete(shared.candidates, gathered, all);
        return all;
    }

    // The lowest rank that is kept when tokens are taken from the top until their measure reaches `need`: a rank is
    // kept if the measure of all ranks above it is under `need`. By mass: measure and rank of top-p; else their number,
    // and (weight, score): equal scores go together. Tokens without weight do not count; 0 if all others are kept.
    __device__ __forceinline__ uint64_t select(bool by_mass, uint64_t need) {
        const auto ranked = [&](int id, float score, float weight) {
            return by_mass ? rank(weight, id) : uint64_t(__float_as_uint(weight)) << 32 | order(score);
        };
        uint64_t prefix = 0;
        int low = 64;
#pragma unroll 1
        for (int digit = 0;; digit++) {
            const int next = DIGITS >> 8 * digit & 63;
            Found& found = shared.found[digit % 2];
            for (int bin = threadIdx.x; bin < BINS; bin += ROW_THREADS) {
                shared.count[bin] = 0;
                if (by_mass) shared.mass_low[bin] = shared.mass_high[bin] = 0;
            }
            if (threadIdx.x == 0) {
                found.count = 0;
                shared.rivals_count = 0;
                shared.cut = ~uint64_t(0);
            }
            __syncthreads();
            each([&](int id, float score, float weight) {
                const uint64_t key = ranked(id, score, weight);
                if (weight > 0 && score >= choice.least && (digit == 0 || key >> low == prefix)) {
                    // Where a digit is shorter, with the last bits of the prefix, which all have.
                    const uint32_t bin = uint32_t(key >> next) & (BINS - 1);
                    atomicAdd(&shared.count[bin], 1);
                    if (by_mass) add(&shared.mass_low[bin], &shared.mass_high[bin], mass(weight));
                }
            });
            __syncthreads();
            // A few bins per thread, from the top, and the measure of all above them.
            const int top = BINS - 1 - BINS_HELD * threadIdx.x;
            uint64_t measures[BINS_HELD], held = 0;
#pragma unroll
            for (int k = 0; k < BINS_HELD; k++) {
                const int bin = top - k;
                measures[k] = shared.count[bin];
                if (by_mass) measures[k] = uint64_t(shared.mass_high[bin]) << 32 | shared.mass_low[bin];
                held += measures[k];
            }
            const uint64_t up_to = warp_scan(held);
            if (lane_id() == 31) shared.reduce[warp_id()] = up_to;
            __syncthreads();
            uint64_t above = warp_sum(lane_id() < warp_id() ? shared.reduce[lane_id()] : 0) + up_to - held;
#pragma unroll
            for (int k = 0; k < BINS_HELD; k++) {
                if (above < need && need <= above + measures[k]) {
                    found = {uint32_t(top - k), shared.count[top - k], need - above};
                }
                above += measures[k];
            }
            __syncthreads();
            if (found.count == 0) return 0;
            need = found.need;
            prefix = (digit == 0 ? 0 : prefix << (low - next)) | found.bin;
            low = next;
            if (low == 0) return prefix;
            if (found.count <= RIVALS) break;
        }
        each([&](int id, float score, float weight) {
            const uint64_t key = ranked(id, score, weight);
            if (score >= choice.least && key >> low == prefix) {
                shared.rivals[atomicAdd(&shared.rivals_count, 1)] = key;
            }
        });
        __syncthreads();
        const int count = shared.rivals_count;
        if (threadIdx.x < count) {
            const uint64_t mine = shared.rivals[threadIdx.x];
            uint64_t above = 0;
            for (int i = 0; i < count; i++) {
                const uint64_t other = shared.rivals[i];
                if (other > mine) above += by_mass ? mass(__uint_as_float(uint32_t(other >> 32))) : 1;
            }
            if (above < need) atomicMin(reinterpret_cast<unsigned long long*>(&shared.cut), mine);
        }
        __syncthreads();
        return shared.cut;
    }

    // Fills in the choice but for its token; returns the mass of what is kept, and leaves that of the warps' parts. It
    // is never 0: under any settings the largest score has weight 1 and is kept.
    __device__ __forceinline__ uint64_t work_out(const WlSequence& state) {
        choice.least = -LARGEST;
        choice.cut = 0;
        const bool top_k = state.top_k > 0 && state.top_k < scores.vocab;
        const bool top_p = state.top_p < 1.0f;
        const bool min_p = state.min_p > 0.0f;
        // top_p · mass, rounded up: 63 bits of fraction are enough for any float from 2^-40 on, and smaller ones keep
        // one token as well.
        const uint64_t fraction = __float2ull_rz(state.top_p * 9223372036854775808.0f) << 1;
        const auto enough = [&](uint64_t all) -> uint64_t {
            return __umul64hi(fraction, all) + (fraction == 0 || fraction * all != 0);
        };
        if (top_k || top_p || min_p) {
            uint64_t all = gather([&](int count, uint64_t gathered, uint64_t all) {
                if (top_k) return count >= state.top_k;
                if (top_p) return gathered >= enough(all);
                return state.min_p >= CANDIDATE_WEIGHT;
            });
            if (top_k) {
                const uint64_t cut = select(false, state.top_k);
                if (cut) choice.least = unorder(uint32_t(cut));
            }
            if (top_p) {
                if (top_k) {
                    all = 0;
                    each([&](int id, float score, float weight) { all += score >= choice.least ? mass(weight) : 0; });
                    all = block_sum(all, shared.reduce);
                }
                choice.cut = select(true, enough(all));
            }
            if (min_p) choice.cut = max(choice.cut, uint64_t(__float_as_uint(fminf(state.min_p, 1.0f))) << 32);
        }
        if (listed) {
            if (threadIdx.x < ROW_WARPS) shared.part_low[threadIdx.x] = shared.part_high[threadIdx.x] = 0;
            __syncthreads();
            const int span = span_of(scores.vocab);
            each([&](int id, float score, float weight) {
                const int part = id / span;
                if (kept(choice, score, weight, id)) add(&shared.part_low[part], &shared.part_high[part], mass(weight));
            });
            __syncthreads();
            if (threadIdx.x < ROW_WARPS) {
                shared.part[threadIdx.x] = uint64_t(shared.part_high[threadIdx.x]) << 32 | shared.part_low[threadIdx.x];
            }
        } else {
            sum_parts(0, scores.vocab, shared.part, [&](int id) { return masses(id); });
        }
        __syncthreads();
        const uint64_t total = sum_of_parts(shared.part);
        choice.inverse = inverse_of(total);
        return total;
    }

    static __device__ __forceinline__ float inverse_of(uint64_t total) {
        return __fdiv_rn(MASS_ONE, __ull2float_rn(total));
    }
};

// Probability of `score` under the softmax of the logits as they are: how sure a greedy draft is of itself.
__device__ __forceinline__ float confidence(Scores scores, float score, int id, Shared& shared) {
    float max = score;
    if (scores.seen) {
        scores.seen = nullptr;
        uint64_t largest = 0;
        each_four(0, scores.vocab, [&](int id) {
            float x[4];
            scores(id, x);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (id + j < scores.vocab) largest = ::max(largest, uint64_t(order(x[j])));
            }
        });
        max = unorder(uint32_t(block_max(largest, shared.reduce)));
    }
    const Weights weights(max, 1.0f);
    uint64_t sum = 0;
    each_four(0, scores.vocab, [&](int id) {
        float x[4];
        scores(id, x);
#pragma unroll
        for (int j = 0; j < 4; j++) sum += id + j < scores.vocab ? mass(weights(x[j])) : 0;
    });
    const uint64_t total = block_sum(sum, shared.reduce);
    return __fmul_rn(weights(scores.one(id)), Distribution::inverse_of(total));
}

// A logit's share of its row's hash. The sum over a row, modulo 2^64, shows any change of any bit, and has no order. The
// constants are those of MurmurHash3's finaliser.
__device__ __forceinline__ uint64_t logit_hash(int id, float logit) {
    uint64_t x = uint64_t(uint32_t(id)) << 32 | __float_as_uint(logit);
    x = (x ^ x >> 33) * 0xff51afd7ed558ccd;
    x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53;
    return x ^ x >> 33;
}

// A draft and what follows from it: by one thread.
__device__ __forceinline__ void add_draft(const WlSample& p, WlSequence& state, int sequence, int i, int draft,
                                          float sure) {
    state.drafts[i] = draft;
    state.confidence[i] = state.threshold > 0 ? sure : 0.0f;
    state.drafted = i + 1;
    bool closed = sure < state.threshold;
    for (int e = 0; e < min(state.eos_count, WL_MAX_EOS); e++) closed |= draft == state.eos[e];
    if (closed) {
        // Should this draft be kept, the round ends with it: it needs no row.
        state.closed = 1;
        return;
    }
    state.rows = i + 2;
    const int64_t next[2] = {int64_t(i + 1) * p.draft_rows + state.draft_row, state.verify_row + i + 1};
    const WlRows rows[2] = {p.draft, p.verify};
#pragma unroll
    for (int k = 0; k < 2; k++) {
        global<int32_t>(rows[k].tokens)[next[k]] = draft;
        global<int32_t>(rows[k].positions)[next[k]] = state.length + i + 1;
        global<int32_t>(rows[k].sequences)[next[k]] = sequence;
    }
}

__device__ __forceinline__ void sample(const WlSample& p) {
    begin_in_order();
    extern __shared__ __align__(16) unsigned char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int64_t row = blockIdx.y;
    const int part = blockIdx.x, parts = gridDim.x;
    const int position = global<const int32_t>(p.positions)[row];
    if (position < 0) return;
    const int sequence = global<const int32_t>(p.sequences)[row];
    if (uint32_t(sequence) >= uint32_t(p.slots)) return;
    WlSequence& state = global<WlSequence>(p.states)[sequence];
    const bool drafting = p.mode == WL_SAMPLE_DRAFT;
    const int i = position - state.length;
    if (uint32_t(i) > WL_MAX_DRAFT || state.verify_row < 0 || state.stop != WL_RUNNING) return;
    if (drafting) {
        if (state.closed || i >= state.limit || i != state.drafted || i + 1 >= p.steps) return;
        if (uint32_t(state.draft_row) >= uint32_t(p.draft_rows) || state.verify_row >= p.verify_rows - (i + 1)) return;
    } else if (i >= state.rows) {
        return;
    }

    const uint32_t* seen = p.seen ? global<const uint32_t>(p.seen) + sequence * p.seen_stride : nullptr;
    const Scores scores = scores_of(global<const float>(p.logits) + row * p.logits_stride, p.vocab, state, seen, i);

    // The largest score of this part and the lowest id that has it, as one number; ~0 if a logit is not finite. And the
    // part's share of the hash.
    uint64_t best = 0, hash = 0;
    float x[PART_STEPS][4];
    const int begin = part * WL_SAMPLE_PART + 4 * threadIdx.x;
#pragma unroll
    for (int k = 0; k < PART_STEPS; k++) scores.load(begin + k * 4 * ROW_THREADS, x[k]);
#pragma unroll
    for (int k = 0; k < PART_STEPS; k++) {
        const int id = begin + k * 4 * ROW_THREADS;
        if (id >= p.vocab) break;
        const bool finite = is_finite(x[k][0]) && is_finite(x[k][1]) && is_finite(x[k][2]) && is_finite(x[k][3]);
        if (p.hashes) {
#pragma unroll
            for (int j = 0; j < 4; j++) hash += id + j < p.vocab ? logit_hash(id + j, x[k][j]) : 0;
        }
        scores.penalise(id, x[k]);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (id + j < p.vocab) best = max(best, uint64_t(order(x[k][j])) << 32 | ~uint32_t(id + j));
        }
        if (!finite) best = ~uint64_t(0);
    }
    best = block_max(best, shared.reduce);
    if (p.hashes) hash = block_sum(hash, shared.reduce);
    if (parts > 1) {
        uint64_t* partial = global<uint64_t>(p.partial) + 2 * row * parts;
        if (threadIdx.x == 0) {
            partial[part] = best;
            if (p.hashes) partial[parts + part] = hash;
            shared.last = take_ticket(global<uint32_t>(p.tickets) + row, parts - 1) == uint32_t(parts - 1);
        }
        __syncthreads();
        if (!shared.last) return;
        best = 0, hash = 0;
        for (int k = threadIdx.x; k < parts; k += ROW_THREADS) {
            best = max(best, partial[k]);
            if (p.hashes) hash += partial[parts + k];
        }
        best = block_max(best, shared.reduce);
        if (p.hashes) hash = block_sum(hash, shared.reduce);
    }
    if (p.hashes && threadIdx.x == 0) global<uint64_t>(p.hashes)[row] = hash;

    WlChoice* out = global<WlChoice>(p.choices) + (drafting ? int64_t(sequence) * WL_MAX_DRAFT + i : row);
    if (best == ~uint64_t(0)) {
        if (threadIdx.x == 0) {
            *out = {0, 0, 0, 0, 0, -1, 0};
            if (drafting) {
                state.closed = 1;
                state.stop = WL_STOP_NOT_FINITE;
                state.failed_position = position;
            }
        }
        return;
    }

    WlChoice choice = {};
    choice.max = unorder(uint32_t(best >> 32));
    choice.id = int32_t(~uint32_t(best));
    const float temperature = temperature_of(state);
    const bool greedy = temperature == 0.0f;
    const Weights weights(choice.max, greedy ? 1.0f : temperature);
    float sure = 0;  // probability of the most probable token
    if (greedy) {
        choice.least = choice.max;
        choice.cut = rank(1.0f, choice.id);
        choice.inverse = 1.0f;
        if (drafting && state.threshold > 0) sure = confidence(scores, choice.max, choice.id, shared);
        choice.probability = sure;
    } else {
        Distribution distribution(shared, scores, weights, choice);
        const uint64_t total = distribution.work_out(state);
        sure = choice.inverse;
        // Rows whose draft is to be judged are only described.
        if (drafting || i == state.drafted) {
            const uint64_t bits = random_bits(state.seed, state.id, position, drafting ? Use::draft : Use::plain);
            choice.id = pick(p.vocab, below(total, bits), shared.part, shared.finer, &shared.picked,
                             [&](int id) { return distribution.masses(id); });
            choice.probability = probability(choice, weights, scores.one(choice.id), choice.id);
        }
    }
    if (p.probabilities) {
        float* full = global<float>(p.probabilities) + row * p.probabilities_stride;
        each_four(0, p.vocab, [&](int id) {
            float x[4];
            scores(id, x);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (id + j < p.vocab) full[id + j] = probability(choice, weights, x[j], id + j);
            }
        });
    }
    // Of the state, what this writes was read by all before the first barrier.
    if (threadIdx.x == 0) {
        *out = choice;
        if (drafting) add_draft(p, state, sequence, i, choice.id, sure);
    }
}

}  // namespace wl

extern "C" __global__ void __launch_bounds__(WL_SAMPLE_THREADS, 1) wl_sample_f32(const __grid_constant__ WlSample p) {
    wl::sample(p);
}
