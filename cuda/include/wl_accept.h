/* Begins a round, and ends it: the drafts that are kept, and one token. Entries wl_round_begin, wl_accept_f32. */
#ifndef WL_ACCEPT_H
#define WL_ACCEPT_H

#include "wl_round.h"

/* Threads of the one CTA of wl_round_begin, and of each CTA of wl_accept_f32, one per slot along x. */
#define WL_ROUND_BEGIN_THREADS 256
#define WL_ACCEPT_THREADS 512

/*
 * Starts the round of every sequence that has a plan and has not ended; all other rows of `draft` and `verify` become
 * dead, and lengths 0. A plan whose rows lie outside of them leaves its sequence out. No two plans may have a row, or a
 * group, in common.
 */
typedef struct WlRoundBegin {
    uint32_t version;
    int32_t slots;
    int32_t steps;      /* of `draft`: the most drafts of a plan, and one */
    int32_t draft_rows;
    int32_t verify_rows;
    int32_t reserved;
    uint64_t plans;     /* WlPlan [slots] */
    uint64_t states;    /* WlSequence [slots] */
    WlRows draft;       /* [steps, draft_rows] */
    WlRows verify;      /* [verify_rows] */
    uint64_t draft_lengths;  /* i32 [draft_rows], or 0: keys of the row's sequence, with those of the round's rows */
    uint64_t verify_lengths; /* i32 [slots], or 0: the same, by the plan's verify_group */
} WlRoundBegin;

typedef struct WlAccept {
    uint32_t version;
    int32_t slots;
    int32_t vocab;
    int32_t steps;               /* of draft_logits */
    int32_t draft_rows;          /* of a step of draft_logits */
    int32_t verify_first;        /* row of the verification that verify_choices and verify_logits begin with */
    int32_t verify_rows;         /* rows there; sequences with others are left for another launch */
    int32_t reserved;
    uint64_t states;             /* WlSequence [slots] */
    uint64_t rounds;             /* WlRound [slots] */
    uint64_t seen;               /* u32 [slots, seen_stride], or 0 */
    int64_t seen_stride;
    uint64_t draft_choices;      /* WlChoice [slots, WL_MAX_DRAFT] */
    uint64_t verify_choices;     /* WlChoice [verify_rows] */
    uint64_t draft_logits;       /* f32 [steps, draft_rows, vocab]; 0 if all that draft are greedy */
    int64_t draft_step_stride;   /* elements from step to step */
    int64_t draft_stride;        /* elements from row to row */
    uint64_t verify_logits;      /* f32 [verify_rows, vocab], or 0 likewise */
    int64_t verify_stride;
} WlAccept;

#endif
