// The two ends of a round (wl_round.h). Neither waits for the host: lengths, rows and tokens pass from round to round
// in device memory.
//
// wl_round_begin: one CTA. Marks all rows of the draft and of the verification dead, then gives every sequence with a
// plan its first ones, and tells attention how many keys there will be.
//
// wl_accept_f32: one CTA of 512 threads per slot. Lane i of warp 0 judges draft i, all at once:
//   greedy   it is kept if it is the verifier's choice
//   sampled  it is kept with probability min(1, p / q), both of the one token; "Fast Inference from Transformers via
//            Speculative Decoding" (arXiv 2211.17192)
// The first draft that is not kept, or ends the sequence, ends the round; so does the verifier's own token behind the
// last draft. In the place of a refused draft comes a draw from norm(max(p − q, 0)): the only work over the vocabulary,
// by all warps, once per sequence at most. Draws are as in sampling.cuh: masses of the 16 parts of the vocabulary, one
// part in finer parts, and one warp finds the token.
//
// Bytes: a few hundred per sequence. With a refusal the two rows of logits that p and q come from, read 1 + 1/16 times,
// by one SM: 8 · vocab bytes at about 64 a clock, 10 µs for 128256. Bound by latency otherwise: three dependent reads
// of memory. Registers: 95 (wl_round_begin: 28, for sm_90 32), static shared memory 272 bytes, 16 warps per SM.
#include "arch/dependency.cuh"
#include "arch/philox.cuh"
#include "arch/sampling.cuh"
#include "wl_accept.h"

namespace wl {

static_assert(ROW_THREADS == WL_ACCEPT_THREADS, "one CTA of a row");
static_assert(WL_MAX_DRAFT < 32, "a lane per row");

// A row of a pass, or its absence with position -1.
__device__ __forceinline__ void write_row(const WlRows& rows, int64_t row, int token, int position, int sequence) {
    global<int32_t>(rows.tokens)[row] = token;
    global<int32_t>(rows.positions)[row] = position;
    global<int32_t>(rows.sequences)[row] = sequence;
}

__device__ __forceinline__ void round_begin(const WlRoundBegin& p) {
    begin_in_order();
    const int64_t draft_rows = int64_t(p.steps) * p.draft_rows;
    for (int64_t row = threadIdx.x; row < draft_rows; row += WL_ROUND_BEGIN_THREADS) write_row(p.draft, row, 0, -1, 0);
    for (int row = threadIdx.x; row < p.verify_rows; row += WL_ROUND_BEGIN_THREADS) write_row(p.verify, row, 0, -1, 0);
    int32_t* draft_lengths = global<int32_t>(p.draft_lengths);
    int32_t* verify_lengths = global<int32_t>(p.verify_lengths);
    for (int i = threadIdx.x; draft_lengths && i < p.draft_rows; i += WL_ROUND_BEGIN_THREADS) draft_lengths[i] = 0;
    for (int i = threadIdx.x; verify_lengths && i < p.slots; i += WL_ROUND_BEGIN_THREADS) verify_lengths[i] = 0;
    __syncthreads();
    for (int slot = threadIdx.x; slot < p.slots; slot += WL_ROUND_BEGIN_THREADS) {
        const WlPlan plan = global<const WlPlan>(p.plans)[slot];
        WlSequence& state = global<WlSequence>(p.states)[slot];
        state.verify_row = -1;
        const int asked = min(max(plan.asked, 0), p.steps - 1);
        // A round emits its drafts and one token more.
        const int limit = min(asked, state.remaining - 1);
        if (plan.verify_row < 0 || plan.verify_row > p.verify_rows - (asked + 1)) continue;
        if (asked > 0 && uint32_t(plan.draft_row) >= uint32_t(p.draft_rows)) continue;
        if (verify_lengths && uint32_t(plan.verify_group) >= uint32_t(p.slots)) continue;
        if (state.stop != WL_RUNNING || limit < 0) continue;
        state.verify_row = plan.verify_row;
        state.draft_row = plan.draft_row;
        state.asked = plan.asked;
        state.exit_layer = plan.exit_layer;
        state.threshold = plan.threshold;
        state.limit = limit;
        state.drafted = 0;
        state.rows = 1;
        state.closed = limit == 0;
        // With a draft asked for and no room for it, the row still goes through the layers of the draft.
        if (asked > 0) write_row(p.draft, plan.draft_row, state.token, state.length, slot);
        const int keys = state.length + limit + 1;
        if (asked > 0 && draft_lengths) draft_lengths[plan.draft_row] = keys;
        if (verify_lengths) verify_lengths[plan.verify_group] = keys;
        write_row(p.verify, plan.verify_row, state.token, state.length, slot);
    }
}

// What warp 0 tells the others.
struct Verdict {
    int end;          // the row that the round ends with
    uint32_t refused; // its draft was not kept: its token is to be drawn from the residual
};

struct Shared {
    uint64_t part[ROW_WARPS];
    uint64_t finer[ROW_WARPS];
    Verdict verdict;
    int32_t picked;
};

// Draws from norm(max(p − q, 0)), or from p where they differ by rounding alone; -1 if p is no distribution. Choices
// come from memory and may hold anything: masses of 1 at most keep sums under 2^63.
__device__ __forceinline__ int draw_residual(const Scores& p_scores, WlChoice p, const Scores& q_scores, WlChoice q,
                                             float temperature, uint64_t bits, Shared& shared) {
    const Weights p_weights(p.max, temperature), q_weights(q.max, temperature);
    const int vocab = p_scores.vocab;
    bool subtract = true;
    const auto masses = [&](int id) {
        float x[4], y[4] = {};
        p_scores(id, x);
        if (subtract) q_scores(id, y);
        Masses m;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float kept = probability(p, p_weights, x[j], id + j);
            const float taken = subtract ? probability(q, q_weights, y[j], id + j) : 0.0f;
            m.x[j] = id + j < vocab ? mass(fminf(fmaxf(__fadd_rn(kept, -taken), 0.0f), 1.0f)) : 0;
        }
        return m;
    };
    uint64_t total = 0;
#pragma unroll 1
    for (int attempt = 0; attempt < 2 && total == 0; attempt++) {
        subtract = attempt == 0;
        __syncthreads();
        sum_parts(0, vocab, shared.part, masses);
        __syncthreads();
        total = sum_of_parts(shared.part);
    }
    if (total == 0) return -1;
    return pick(vocab, below(total, bits), shared.part, shared.finer, &shared.picked, masses);
}

__device__ __forceinline__ void accept(const WlAccept& p) {
    begin_in_order();
    __shared__ Shared shared;
    const int slot = blockIdx.x;
    WlSequence& state = global<WlSequence>(p.states)[slot];
    if (state.verify_row < p.verify_first) return;
    const int verify_row = state.verify_row - p.verify_first;
    const int rows = state.rows, drafted = min(state.drafted, WL_MAX_DRAFT);
    if (rows < 1 || verify_row > p.verify_rows - rows) return;
    const float temperature = temperature_of(state);
    const bool greedy = temperature == 0.0f;
    // Without the logits of its drafts, a sequence that draws tokens cannot judge them.
    const bool unjudged =
        !greedy && drafted > 0 && (drafted > p.steps || uint32_t(state.draft_row) >= uint32_t(p.draft_rows));
    uint32_t* seen = p.seen ? global<uint32_t>(p.seen) + slot * p.seen_stride : nullptr;
    const auto p_scores = [&](int i) {
        const float* logits = global<const float>(p.verify_logits) + (verify_row + i) * p.verify_stride;
        return scores_of(logits, p.vocab, state, seen, i);
    };
    const auto q_scores = [&](int i) {
        const float* logits =
            global<const float>(p.draft_logits) + i * p.draft_step_stride + state.draft_row * p.draft_stride;
        return scores_of(logits, p.vocab, state, seen, i);
    };
    const WlChoice* p_choices = global<const WlChoice>(p.verify_choices) + verify_row;
    const WlChoice* q_choices = global<const WlChoice>(p.draft_choices) + int64_t(slot) * WL_MAX_DRAFT;

    // Lane i: row i and draft i. The round ends with the first lane that says so.
    const int i = lane_id();
    int token = -1;
    bool failed = state.stop != WL_RUNNING, kept = false;
    if (warp_id() == 0) {
        bool ends = failed;
        if (i < rows && !failed) {
            const WlChoice choice = p_choices[i];
            const int draft = i < drafted ? state.drafts[i] : -1;
            failed = uint32_t(choice.id) >= uint32_t(p.vocab);
            token = choice.id;
            if (greedy) {
                kept = choice.id == draft;
            } else if (!unjudged && uint32_t(draft) < uint32_t(p.vocab)) {
                const WlChoice q_choice = q_choices[i];
                const Weights p_weights(choice.max, temperature), q_weights(q_choice.max, temperature);
                const float accepted = probability(choice, p_weights, p_scores(i).one(draft), draft);
                const float drawn = probability(q_choice, q_weights, q_scores(i).one(draft), draft);
                const uint64_t bits = random_bits(state.seed, state.id, state.length + i, Use::accept);
                // u in [0, 1) by steps of 2^-53, times q, exactly.
                const double u = double(bits >> 11) * (1.0 / 9007199254740992.0);
                kept = u * double(drawn) < double(accepted);
            }
            if (kept) token = draft;
            // A draft that ends the sequence has no row behind it, and `remaining` has room for all rows.
            ends = failed || !kept || i + 1 >= rows;
        }
        const int end = __ffs(__ballot_sync(ALL_LANES, ends)) - 1;
        if (i == end) shared.verdict = {end, !greedy && !failed && !kept && i < drafted && !unjudged};
    }
    __syncthreads();
    const int end = shared.verdict.end;
    if (shared.verdict.refused) {
        const uint64_t bits = random_bits(state.seed, state.id, state.length + end, Use::residual);
        const int drawn = draw_residual(p_scores(end), p_choices[end], q_scores(end), q_choices[end], temperature,
                                        bits, shared);
        if (i == end) token = drawn, failed = drawn < 0;
    }
    // The last barrier, here or in the draw, lies behind all that the others read of the state.
    if (warp_id() > 0) return;

    // Emitted: rows 0 to end, without the last where it failed.
    const bool lost = unjudged || __shfl_sync(ALL_LANES, int(failed), end);
    const int emitted = end + !lost;
    const int accepted = lost ? end : end + __shfl_sync(ALL_LANES, int(kept), end);
    const int last = __shfl_sync(ALL_LANES, token, max(emitted - 1, 0));
    bool eos = false;
    for (int e = 0; e < min(state.eos_count, WL_MAX_EOS); e++) eos |= last == state.eos[e];
    WlRound& round = global<WlRound>(p.rounds)[slot];
    if (i < emitted) {
        round.ids[i] = token;
        if (seen) atomicOr(&seen[token / 32], 1u << token % 32);
    }
    if (i == 0) {
        const int remaining = state.remaining - emitted;
        if (state.stop == WL_RUNNING) {
            if (lost) {
                state.stop = unjudged ? WL_STOP_NO_LOGITS : WL_STOP_NOT_FINITE;
                state.failed_position = state.length + end;
            } else if (eos) {
                state.stop = WL_STOP_EOS;
            } else if (remaining <= 0) {
                state.stop = WL_STOP_LENGTH;
            }
        }
        float matched = 0;
        for (int k = 0; k < accepted; k++) matched = __fadd_rn(matched, state.confidence[k]);
        state.remaining = remaining;
        state.length += emitted;
        if (emitted > 0) state.token = last;
        state.rounds++;
        state.verify_row = -1;
        round.rounds = state.rounds;
        round.stop = state.stop;
        round.length = state.length;
        round.failed_position = state.failed_position;
        round.exit_layer = state.exit_layer;
        round.asked = state.asked;
        round.drafted = drafted;
        round.accepted = accepted;
        round.matched = matched;
        round.mismatched = accepted < drafted ? state.confidence[accepted] : 0.0f;
        round.emitted = emitted;
    }
}

}  // namespace wl

extern "C" __global__ void __launch_bounds__(WL_ROUND_BEGIN_THREADS)
    wl_round_begin(const __grid_constant__ WlRoundBegin p) {
    wl::round_begin(p);
}
extern "C" __global__ void __launch_bounds__(WL_ACCEPT_THREADS, 1) wl_accept_f32(const __grid_constant__ WlAccept p) {
    wl::accept(p);
}
