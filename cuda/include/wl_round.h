/*
 * What a round of speculative decoding keeps in device memory. Between two rounds' launches the host reads WlRound,
 * late, and writes WlPlan; everything else passes from kernel to kernel:
 *
 *   wl_round_begin  plan, sequence      -> sequence's round, keys, first row of the draft and of the verification
 *   wl_sample       logits of a draft   -> draft, confidence, next row of the draft and of the verification
 *   wl_sample       logits of all rows  -> a WlChoice per row of the verification
 *   wl_accept       choices             -> WlRound, sequence: length, token, remaining, stop, seen
 *
 * Row i of a sequence's round, i = 0 .. limit, holds the last token (i = 0) or draft i - 1, at position length + i. It
 * is row draft_row of draft step i and row verify_row + i of the verification. A draft that closes the draft has no row
 * of its own. A plain step has asked = 0 and no row in the draft.
 */
#ifndef WL_ROUND_H
#define WL_ROUND_H

#include "wl_common.h"

/* Most drafts of a round, and most ids that end a sequence. */
#define WL_MAX_DRAFT 16
#define WL_MAX_EOS 16

/* Why a sequence ended. */
#define WL_RUNNING 0
#define WL_STOP_EOS 1
#define WL_STOP_LENGTH 2     /* `remaining` tokens were generated */
#define WL_STOP_NOT_FINITE 3 /* a logit was NaN or infinite, or a WlChoice no distribution; see failed_position */
#define WL_STOP_NO_LOGITS 4  /* its drafts were drawn, but wl_accept was not given the logits they were drawn from */

/* Rows of a forward pass, as every kernel of it reads them. */
typedef struct WlRows {
    uint64_t tokens;    /* i32 [rows] */
    uint64_t positions; /* i32 [rows]; -1: dead */
    uint64_t sequences; /* i32 [rows], slots */
} WlRows;

/* What the host asks of a sequence's next round. */
typedef struct WlPlan {
    int32_t verify_row; /* its first row of the verification; -1: it sits the round out */
    int32_t draft_row;  /* its row in every draft step; not read with asked = 0 */
    int32_t asked;      /* tokens to draft at most; 0 is a plain step */
    int32_t exit_layer; /* passed through to WlRound */
    float threshold;    /* a draft less probable than this ends the draft; 0 never does */
    int32_t verify_group; /* its entry in WlRoundBegin.verify_lengths */
} WlPlan;

/* A sequence, by slot. The host writes all of it when the sequence starts. */
typedef struct WlSequence {
    uint64_t seed;
    uint64_t id;              /* tells random numbers of sequences apart, in place of the slot */
    float temperature;        /* 0 is greedy, as is all that is not over 0 */
    int32_t top_k;            /* 0 keeps all */
    float top_p;              /* 1 keeps all */
    float min_p;              /* 0 keeps all; over 1 it is 1 */
    float repetition_penalty; /* 1 is off */
    int32_t eos_count;        /* 0 to WL_MAX_EOS */
    int32_t eos[WL_MAX_EOS];
    /* Progress. */
    int32_t length;           /* positions whose keys and values are final; the position of `token` */
    int32_t token;            /* the last token, not yet in the cache */
    int32_t remaining;        /* tokens that may still be generated */
    uint32_t stop;            /* WL_RUNNING .. */
    int32_t failed_position;  /* with WL_STOP_NOT_FINITE: the row whose logits were */
    uint32_t rounds;          /* rounds so far */
    /* The round, begun by wl_round_begin. */
    int32_t verify_row;       /* as in WlPlan; -1 outside a round */
    int32_t draft_row;
    int32_t asked;
    int32_t exit_layer;
    float threshold;
    int32_t limit;            /* most drafts: asked, within `remaining` */
    int32_t drafted;          /* drafts so far */
    int32_t rows;             /* rows of the verification so far */
    uint32_t closed;          /* 1: no more drafts */
    int32_t reserved;
    int32_t drafts[WL_MAX_DRAFT];
    float confidence[WL_MAX_DRAFT]; /* with a threshold: probability of each draft step's most probable token; else 0 */
} WlSequence;

/*
 * A row's distribution, without its vocabulary: a token's weight is exp((score - max) / temperature), score being its
 * logit after the penalty; the token is kept if score >= least and (weight's bits << 32 | ~id) >= cut, and then has
 * probability weight * inverse.
 */
typedef struct WlChoice {
    uint64_t cut;
    float max;         /* the largest score */
    float least;
    float inverse;
    float probability; /* of `id`; 0 where nobody asked for it: a greedy choice without a threshold */
    int32_t id;        /* drawn, or the most probable; -1: a logit was not finite */
    int32_t reserved;
} WlChoice;

/* A finished round, by slot. What a sequence that was not in the round has there stays. */
typedef struct WlRound {
    uint32_t rounds;          /* WlSequence.rounds after it: tells rounds apart */
    uint32_t stop;            /* WL_RUNNING .. */
    int32_t length;           /* WlSequence.length after it */
    int32_t failed_position;
    int32_t exit_layer;       /* of the plan */
    int32_t asked;            /* of the plan */
    int32_t drafted;          /* drafts that were verified */
    int32_t accepted;         /* drafts that were kept */
    float matched;            /* sum of the kept drafts' confidence */
    float mismatched;         /* confidence of the first draft that was not kept, or 0 */
    int32_t emitted;          /* 0 to WL_MAX_DRAFT + 1 */
    int32_t ids[WL_MAX_DRAFT + 1];
} WlRound;

#endif
