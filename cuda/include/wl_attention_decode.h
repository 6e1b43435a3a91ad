/* Attention of 1 to 64 query rows per sequence over paged keys and values; attention_decode.cu tells how. Entries, by
 * what head_dim is padded to and what a CTA attends to, wl_attention_decode_{bf16,f16}_{64,128,256}_{split,segment};
 * and then, unless `max_keys` are one part, wl_attention_decode_{bf16,f16}_combine. */
#ifndef WL_ATTENTION_DECODE_H
#define WL_ATTENTION_DECODE_H

#include "wl_common.h"

/* Keys of a split, what a warp attends to at a time, and of a segment, what a CTA of `_segment` folds into one part. */
#define WL_ATTENTION_SPLIT_KEYS 128
#define WL_ATTENTION_SEGMENT_KEYS 2048
/* Most keys of a sequence, and most query rows of one in a launch. */
#define WL_ATTENTION_MAX_KEYS (1 << 28)
#define WL_ATTENTION_DECODE_MAX_ROWS 64
/* Most warps of the combine step. */
#define WL_ATTENTION_COMBINE_WARPS 8

/*
 * Rows of all sequences are packed: those of sequence s are offsets[s] .. offsets[s + 1]. Row i of n sees, of the
 * `length` keys of its sequence, what `mask` shows to position q = positions[row] or, without positions, length - n +
 * i: the last row has the last key. A row with q < 0 is dead: nothing of it is loaded, and its result is that of a row
 * that sees no key, output 0 and lse -infinity.
 *
 * With `tree`, bit j of a row's word permits key length - 64 + j: of the last 64 keys a row sees those that the mask
 * shows and whose bit is set; of the keys before, those that the mask shows. (Drafts in a tree lie in slots, not at the
 * positions that they have been rotated to: q is then the slot.)
 *
 * A sequence is skipped, and nothing written for its rows, if its offsets are not within 0 .. tokens or do not ascend,
 * if it has more than max_rows rows, if its length is not within 0 .. max_keys, or its slot is none of the page
 * table's. Offsets that come back, as 0, 4, 2, 6 do, take out the sequence between them alone: those beside it have
 * rows in common, and which of them writes such a row last is not defined. A row that sees a key whose page is not
 * within 0 .. pages, or past the table, is NaN. Between the first and the last key that rows of a sequence see, other
 * than the prefix, pages must hold what was written, or have no valid id. Values that are infinite or NaN reach all
 * rows that are computed beside one that sees them.
 */
typedef struct WlAttentionDecode {
    uint32_t version;
    uint32_t type;        /* T: WL_BF16 or WL_F16, that of the entry */
    int32_t tokens;       /* rows of all sequences */
    int32_t sequences;
    int32_t max_rows;     /* most rows of a sequence, 1 to WL_ATTENTION_DECODE_MAX_ROWS */
    int32_t max_keys;     /* most keys of a sequence, 1 to WL_ATTENTION_MAX_KEYS: with it the number of parts grows */
    int32_t heads;        /* a multiple of kv_heads */
    int32_t kv_heads;
    int32_t head_dim;     /* a multiple of 8 to 256 */
    int32_t part_keys;    /* WL_ATTENTION_SPLIT_KEYS or WL_ATTENTION_SEGMENT_KEYS, that of the entry */
    int32_t table_rows;   /* sequences that the page table has */
    int32_t reserved;
    float scale;          /* factor of q . k, commonly 1 / sqrt(head_dim); to 1e30 in magnitude */
    float softcap;        /* scores become softcap * tanh(score / softcap), 1e-6 to 1e30; or 0: they stay */
    uint64_t q;           /* T [tokens, heads, head_dim] */
    uint64_t out;         /* T [tokens, heads, head_dim] */
    uint64_t lse;         /* f32 [heads, tokens]: ln of the sum of exp(score), the sink's included; or 0 */
    uint64_t slots;       /* i32 [sequences]: each sequence's row of the page table, or 0: its own number */
    uint64_t lengths;     /* i32 [sequences]: keys, those of the rows included */
    uint64_t offsets;     /* i32 [sequences + 1] */
    uint64_t positions;   /* i32 [tokens], or 0 */
    uint64_t documents;   /* i32 [tokens]: first position of the row's document, or 0 */
    uint64_t tree;        /* u64 [tokens], or 0 */
    uint64_t sinks;       /* f32 [heads]: logits that join the softmax without a value, to 2e38 in magnitude; or 0 */
    uint64_t parts;       /* f32 [tokens, heads, ceil(max_keys / part_keys), head_dim], at a multiple of 16 bytes; 0 if there is one part */
    uint64_t sums;        /* f32 [tokens, heads, ceil(max_keys / part_keys), 2]: maximum and sum, likewise */
    int64_t q_stride;     /* elements from row to row, a multiple of 8, as all strides here */
    int64_t out_stride;
    WlMask mask;
    WlPages pages;
} WlAttentionDecode;

#endif
