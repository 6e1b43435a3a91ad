/* What all parameter structs share. Plain C, so that C programs, device code and bindgen read the same text. */
#ifndef WL_COMMON_H
#define WL_COMMON_H

#include <stdint.h>

/* Version of every parameter struct. Who fills one in sets it, and its types, which are those of the entry. The Rust
 * functions refuse types that no entry has, before a launch; the kernels themselves look at neither. */
#define WL_VERSION 1

/* Storage types. */
#define WL_BF16 0
#define WL_F16 1
#define WL_F32 2
#define WL_E4M3 3 /* OCP's e4m3fn, a byte: largest 448, NaN 0x7f and 0xff, no infinities; rows with a scale in f32 each */

/* Attention patterns: per query row at absolute position q the visible keys are [0, prefix) and [lo, hi), within the
 * sequence. With the first four, which are causal, the prefix ends with the row itself, at min(prefix, q + 1); with the
 * others, rows with q < prefix see all keys. A row whose document begins after 0 has no prefix. */
#define WL_CAUSAL 0    /* lo = 0, hi = q + 1 */
#define WL_WINDOW 1    /* lo = q - keys + 1, hi = q + 1 */
#define WL_CHUNK 2     /* lo = keys * (q / keys), hi = q + 1 */
#define WL_OVERLAP 3   /* lo = keys * (q / keys) - keys, hi = q + 1 */
#define WL_BLOCKWISE 4 /* lo = keys * (q / keys) - keys / 2, hi = keys * (q / keys) + 3 * keys / 2 */
#define WL_BLOCK 5     /* lo = keys * (q / keys), hi = lo + keys */
#define WL_FULL 6      /* lo = 0, hi = number of keys */

typedef struct WlMask {
    uint32_t pattern; /* WL_CAUSAL .. WL_FULL */
    int32_t keys;     /* width of the window, chunk or block, even with WL_BLOCKWISE; 0 for patterns without one */
    int32_t prefix;   /* first positions that rows see on top of it: sinks, global tokens */
    int32_t reserved;
} WlMask;

/*
 * Where keys and values lie: position j of sequence s in page table[s * table_stride + j / page_size], at slot j % page_size.
 * Element (page, head, slot, i) is at page * page_stride + head * head_stride + slot * slot_stride + i: strides in elements serve
 * [pages, heads, page_size, D] and [pages, page_size, heads, D] alike. Contiguous caches are one page per sequence.
 */
typedef struct WlPages {
    uint64_t k;             /* T [pages, ...] */
    uint64_t v;             /* T [pages, ...], the same strides */
    uint64_t table;         /* i32 [sequences, table_stride] */
    int64_t page_stride;
    int64_t head_stride;
    int64_t slot_stride;
    int32_t table_stride;   /* entries of a sequence in `table` */
    int32_t pages;          /* ids from 0; entries outside are released or wrong, and never read */
    int32_t page_size;      /* positions of a page, a multiple of 8 */
    uint32_t type;          /* WL_BF16 or WL_F16, that of the entry */
    uint64_t k_scales;      /* 0; for 8-bit types later */
    uint64_t v_scales;      /* 0; for 8-bit types later */
} WlPages;

#endif
