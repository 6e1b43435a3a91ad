/* Attention of any number of query rows per sequence over paged keys and values; attention_prefill.cu tells how.
 * Entries, by what head_dim is padded to: wl_attention_prefill_{bf16,f16}_{64,96,128,256}. */
#ifndef WL_ATTENTION_PREFILL_H
#define WL_ATTENTION_PREFILL_H

#include "wl_common.h"

/* Packed rows (query rows times query heads of a kv head) of a CTA: to head_dim 128, and beyond. */
#define WL_ATTENTION_PREFILL_ROWS 128
#define WL_ATTENTION_PREFILL_ROWS_256 64

/*
 * Rows of all sequences are packed: those of sequence s are offsets[s] .. offsets[s + 1]. Row i of n sees, of the
 * `length` keys of its sequence, what `mask` shows to position q = positions[row] or, without positions, length - n +
 * i: the last row has the last key, and a prompt that comes in chunks has its earlier ones before its rows. A row with
 * q < 0 is dead: nothing of it is loaded, and its result is that of a row that sees no key, output 0 and lse -infinity.
 *
 * A sequence is skipped, and nothing written for its rows, if its offsets are not within 0 .. tokens or do not ascend,
 * if it has more than max_rows rows, if its length is not within 0 .. max_keys, or its slot is none of the page
 * table's. (Where offsets go back, so that valid sequences share rows, some rows may stay unwritten.) A row that sees a
 * key whose page is not within 0 .. pages, or past the table, is NaN. Between the first and the last key that rows of a
 * sequence see, other than the prefix, pages must hold what was written, or have no valid id. Values that are infinite
 * or NaN reach all rows that are computed beside one that sees them.
 */
typedef struct WlAttentionPrefill {
    uint32_t version;
    uint32_t type;        /* T: WL_BF16 or WL_F16, that of the entry */
    int32_t tokens;       /* rows of all sequences; tokens * heads is up to 2^30 */
    int32_t sequences;
    int32_t max_rows;     /* most rows of a sequence */
    int32_t max_keys;     /* most keys of a sequence, to WL_ATTENTION_MAX_KEYS */
    int32_t heads;        /* a multiple of kv_heads */
    int32_t kv_heads;
    int32_t head_dim;     /* a multiple of 8 to 256 */
    int32_t table_rows;   /* sequences that the page table has */
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
    uint64_t sinks;       /* f32 [heads]: logits that join the softmax without a value, to 2e38 in magnitude; or 0 */
    int64_t q_stride;     /* elements from row to row, a multiple of 8, as all strides here */
    int64_t out_stride;
    WlMask mask;
    WlPages pages;
} WlAttentionPrefill;

#endif
