/* out = round(silu(gate) * up), silu(x) = x / (1 + exp(-x)). Entries wl_swiglu_{bf16,f16}, and
 * wl_swiglu_{bf16,f16}_e4m3, whose out is e4m3 with a scale for each row. */
#ifndef WL_SWIGLU_H
#define WL_SWIGLU_H

#include "wl_common.h"

/* Threads of a CTA, and the features it computes: ceil(width / WL_SWIGLU_FEATURES) CTAs per row, row after row
 * along x. */
#define WL_SWIGLU_THREADS 128
#define WL_SWIGLU_FEATURES 2048
/* Of the e4m3 entries: threads of a CTA, one CTA per row; the widest row that is kept in registers, wider ones are
 * read and computed twice. */
#define WL_SWIGLU_E4M3_THREADS 256
#define WL_SWIGLU_E4M3_HELD 16384

/*
 * Any row may begin anywhere; rows of a multiple of 8 elements that all begin at multiples of 16 bytes are the fast
 * ones (of e4m3, 8 bytes). `out` may be `gate` or `up`, with equal strides; an out of e4m3 overlaps neither. It and its
 * scales are what quantize_fp8_rows makes of out in T.
 */
typedef struct WlSwiglu {
    uint32_t version;
    uint32_t type;       /* T: WL_BF16 or WL_F16, that of the entry */
    uint32_t out_type;   /* type, or WL_E4M3; that of the entry */
    int32_t rows;
    int32_t width;       /* features of a row, 1 to 2^26 */
    float bound;         /* of the scales, with e4m3: 1200 for activations, or infinity; 0 */
    uint64_t gate;       /* T [rows, width] */
    uint64_t up;         /* T [rows, width] */
    uint64_t out;        /* T or e4m3 [rows, width] */
    uint64_t out_scales; /* f32 [rows] with e4m3; 0 */
    uint64_t positions;  /* i32 [rows]: rows under 0 are dead, nothing of them is read or written; or 0: all live */
    int64_t gate_stride; /* elements from row to row */
    int64_t up_stride;
    int64_t out_stride;
} WlSwiglu;

#endif
