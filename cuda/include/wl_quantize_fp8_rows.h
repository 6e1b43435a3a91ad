/* Rows to e4m3 with a scale each. Entries wl_quantize_fp8_rows_{bf16,f16}. */
#ifndef WL_QUANTIZE_FP8_ROWS_H
#define WL_QUANTIZE_FP8_ROWS_H

#include "wl_common.h"

/* Threads of a CTA; one CTA per row. Dynamic shared memory: none. */
#define WL_QUANTIZE_FP8_ROWS_THREADS 256
/* The widest row that is kept in registers; wider ones are read twice. */
#define WL_QUANTIZE_FP8_ROWS_HELD 16384

/*
 * scale = max(min(largest |x| of the row, bound) / 448, 1 / (448 * 512)), q = e4m3(x / scale), each operation rounded
 * once; what is over 448 becomes 448. A row with a NaN has the scale NaN. Any row may begin anywhere; rows of a
 * multiple of 8 elements that all begin at multiples of 8 of them are the fast ones.
 */
typedef struct WlQuantizeFp8Rows {
    uint32_t version;
    uint32_t type;      /* T: WL_BF16 or WL_F16, that of the entry */
    int32_t rows;
    int32_t width;      /* features of a row, 1 to 2^30 */
    float bound;        /* 1200 for activations, infinity for weights */
    uint32_t reserved;
    uint64_t x;         /* T [rows, width] */
    uint64_t q;         /* e4m3 [rows, width] */
    uint64_t scales;    /* f32 [rows] */
    uint64_t positions; /* i32 [rows]: rows under 0 are dead, neither read nor written; or 0: all live */
    int64_t x_stride;   /* elements from row to row */
    int64_t q_stride;
} WlQuantizeFp8Rows;

#endif
