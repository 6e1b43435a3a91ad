/* Chooses a token from each row of logits. Entry wl_sample_f32. */
#ifndef WL_SAMPLE_H
#define WL_SAMPLE_H

#include "wl_round.h"

/* Threads of a CTA. A row has ceil(vocab / WL_SAMPLE_PART) CTAs along x; rows along y. */
#define WL_SAMPLE_THREADS 512
#define WL_SAMPLE_PART 8192
/* Most rows of a launch. */
#define WL_SAMPLE_ROWS 4096
/* Dynamic shared memory in bytes. */
#define WL_SAMPLE_SHARED 60416
/* The largest vocabulary: sums of masses stay under 2^63. */
#define WL_SAMPLE_VOCAB 2097152

/* Modes. */
#define WL_SAMPLE_DRAFT 0  /* a row is row i of its sequence's draft: the choice is draft i */
#define WL_SAMPLE_VERIFY 1 /* rows of the verification, or plain steps: the one behind the last draft is drawn from */

/*
 * Rows that are dead, or that the sequence's round has no use for, are left alone: their choices stay as they were. No
 * two live rows of a draft may have the same sequence and position: both would be its next draft.
 */
typedef struct WlSample {
    uint32_t version;
    uint32_t mode;
    int32_t rows;
    int32_t vocab;
    int32_t slots;
    int32_t steps;               /* of `draft` */
    int32_t draft_rows;          /* of a step of `draft` */
    int32_t verify_rows;         /* of `verify` */
    uint64_t logits;             /* f32 [rows, vocab] */
    int64_t logits_stride;       /* elements from row to row */
    uint64_t positions;          /* i32 [rows] */
    uint64_t sequences;          /* i32 [rows] */
    uint64_t states;             /* WlSequence [slots] */
    uint64_t seen;               /* u32 [slots, seen_stride]: bit id is set if the sequence has seen id; 0: no penalties */
    int64_t seen_stride;
    uint64_t choices;            /* WlChoice: draft [slots, WL_MAX_DRAFT], verify [rows] */
    WlRows draft;                /* [steps, draft_rows]; draft mode writes the next step's row here */
    WlRows verify;               /* [verify_rows]; and here */
    uint64_t probabilities;      /* f32 [rows, vocab]: the distributions in full, or 0 */
    int64_t probabilities_stride;
    uint64_t hashes;             /* u64 [rows], or 0: of all bits of each row's logits, see logit_hash in sample.cu */
    uint64_t partial;            /* u64 [rows, ceil(vocab / WL_SAMPLE_PART), 2], scratch */
    uint64_t tickets;            /* u32 [rows], zeros before the first launch; launches leave zeros */
} WlSample;

#endif
