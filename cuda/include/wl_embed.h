/* out[r] = table[tokens[r]]. Entries wl_embed_{bf16,f16}. */
#ifndef WL_EMBED_H
#define WL_EMBED_H

#include "wl_common.h"

/* Threads of a CTA, and the features it copies: ceil(width / WL_EMBED_FEATURES) CTAs per row, row after row along x. */
#define WL_EMBED_THREADS 128
#define WL_EMBED_FEATURES 2048

/*
 * The row of a token outside the vocabulary is NaN, its statistics too. Any row may begin anywhere; rows of a
 * multiple of 8 elements that all begin at multiples of 16 bytes are the fast ones.
 */
typedef struct WlEmbed {
    uint32_t version;
    uint32_t type;        /* T: WL_BF16 or WL_F16, that of the entry */
    uint32_t table_type;  /* type; no entry has another so far */
    int32_t rows;
    int32_t width;        /* features of a row, 1 to 2^26 */
    int32_t vocabulary;   /* rows of the table */
    uint64_t table;       /* T [vocabulary, width] */
    uint64_t table_scales; /* f32 [vocabulary] with an 8-bit table_type; 0 */
    uint64_t tokens;      /* i32 [rows] */
    uint64_t positions;   /* i32 [rows]: rows under 0 are dead, nothing of them is written; or 0: all live */
    uint64_t out;         /* T [rows, width] */
    uint64_t stats;       /* f32 [rows, ceil(width / 64)] sums of squares (row_statistics.cuh), or 0 */
    int64_t table_stride; /* elements from row to row */
    int64_t out_stride;
} WlEmbed;

#endif
