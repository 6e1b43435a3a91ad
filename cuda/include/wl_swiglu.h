/* out = round(silu(gate) * up), silu(x) = x / (1 + exp(-x)). Entries wl_swiglu_{bf16,f16}. */
#ifndef WL_SWIGLU_H
#define WL_SWIGLU_H

#include "wl_common.h"

/* Threads of a CTA, and the features it computes: ceil(width / WL_SWIGLU_FEATURES) CTAs per row, row after row
 * along x. */
#define WL_SWIGLU_THREADS 128
#define WL_SWIGLU_FEATURES 2048

/*
 * Any row may begin anywhere; rows of a multiple of 8 elements that all begin at multiples of 16 bytes are the fast
 * ones. `out` may be `gate` or `up`, with equal strides.
 */
typedef struct WlSwiglu {
    uint32_t version;
    uint32_t type;       /* T: WL_BF16 or WL_F16, that of the entry */
    uint32_t out_type;   /* type; no entry has another so far */
    int32_t rows;
    int32_t width;       /* features of a row, 1 to 2^26 */
    uint32_t reserved;
    uint64_t gate;       /* T [rows, width] */
    uint64_t up;         /* T [rows, width] */
    uint64_t out;        /* T [rows, width] */
    uint64_t out_scales; /* f32 [rows] with an 8-bit out_type; 0 */
    uint64_t positions;  /* i32 [rows]: rows under 0 are dead, nothing of them is read or written; or 0: all live */
    int64_t gate_stride; /* elements from row to row */
    int64_t up_stride;
    int64_t out_stride;
} WlSwiglu;

#endif
