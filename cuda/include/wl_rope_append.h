/*
 * Rotates q and k to their positions and writes k and v to their pages. Entries wl_rope_append_{bf16,f16}.
 *
 * The pair (i, i + D/2) of a head turns by the angle f32(position) * frequencies[i], an f32 product:
 *   x1' = round(x1 * cos - x2 * sin), x2' = round(x2 * cos + x1 * sin), cos and sin times `magnitude` in f32.
 */
#ifndef WL_ROPE_APPEND_H
#define WL_ROPE_APPEND_H

#include "wl_common.h"

/* Threads of a CTA. A thread has 8 pairs of a head: ceil(D / 16) threads per head, ceil(heads of q, k and v * that /
 * WL_ROPE_APPEND_THREADS) CTAs per row, row after row along x. */
#define WL_ROPE_APPEND_THREADS 128
#define WL_ROPE_APPEND_HEAD_DIM 256 /* the largest */

/*
 * q is rotated in place. k and v go to the row's place in the pages and stay as they are in qkv. They are written
 * nowhere if the sequence or the page id is out of range or the position lies beyond the table; q is rotated all the
 * same. No two live rows may have the same place. Heads of a multiple of 16 elements that all begin at multiples of
 * 16 bytes, in qkv and in the pages, are the fast ones.
 */
typedef struct WlRopeAppend {
    uint32_t version;
    uint32_t type;        /* T: WL_BF16 or WL_F16, that of the entry */
    int32_t rows;
    int32_t heads;        /* of q */
    int32_t kv_heads;     /* of k and of v */
    int32_t head_dim;     /* D, even, up to WL_ROPE_APPEND_HEAD_DIM */
    int32_t sequences;    /* rows of the page table */
    float magnitude;      /* 1 but for YaRN */
    uint64_t qkv;         /* T [rows, (heads + 2 kv_heads) * D]: q, k and v side by side */
    uint64_t positions;   /* i32 [rows]: rows under 0 are dead, nothing of them is read or written */
    uint64_t slots;       /* i32 [rows]: each row's sequence */
    uint64_t frequencies; /* f32 [D / 2], radians per position, up to 1 */
    int64_t qkv_stride;   /* elements from row to row */
    WlPages pages;
} WlRopeAppend;

#endif
