/* y = w * round(h / sqrt(mean(h^2) + eps)), h = x or the new residual x + residual. Entries
 * wl_rms_norm_{bf16,f16,f32}; wl_rms_norm_{bf16,f16}_e4m3, whose y is e4m3 with a scale for each row; and, for wide
 * rows, wl_rms_norm_{bf16,f16}[_e4m3]_wide. */
#ifndef WL_RMS_NORM_H
#define WL_RMS_NORM_H

#include "wl_common.h"

/* Threads of a CTA; one CTA per row. Dynamic shared memory: none. */
#define WL_RMS_NORM_THREADS 256
/* The widest row that an entry keeps in registers; any entry takes any width, but reads wider ones twice, with e4m3
 * three times. */
#define WL_RMS_NORM_HELD 4096       /* wl_rms_norm_T, wl_rms_norm_T_e4m3 */
#define WL_RMS_NORM_HELD_WIDE 16384 /* wl_rms_norm_T_wide, wl_rms_norm_T_e4m3_wide */

/*
 * Any row may begin anywhere; rows of a multiple of 8 elements that all begin at multiples of 16 bytes are the fast
 * ones (of e4m3, 8 bytes). `new_residual` may be `residual` or `x`, and `y` may be `x` or `residual`, with equal
 * strides, but not both the same; a y of e4m3 overlaps none of them. It and its scales are what quantize_fp8_rows makes of
 * y in T.
 */
typedef struct WlRmsNorm {
    uint32_t version;
    uint32_t type;                /* T: WL_BF16, WL_F16 or WL_F32, that of the entry */
    uint32_t y_type;              /* type, or WL_E4M3; that of the entry */
    int32_t rows;
    int32_t width;                /* features of a row, 1 to 2^30 */
    float eps;
    float bound;                  /* of the scales, with e4m3: 1200 for activations, or infinity; 0 */
    uint32_t reserved;
    uint64_t x;                   /* T [rows, width] */
    uint64_t residual;            /* T [rows, width], or 0: none is added */
    uint64_t new_residual;        /* T [rows, width]: round(x + residual); 0 with residual 0 */
    uint64_t weight;              /* T [width] */
    uint64_t y;                   /* T or e4m3 [rows, width] */
    uint64_t y_scales;            /* f32 [rows] with e4m3; 0 */
    uint64_t stats;               /* f32 [rows, ceil(width / 64)] sums of squares (row_statistics.cuh), or 0 */
    uint64_t positions;           /* i32 [rows]: rows under 0 are dead, neither read nor written; or 0: all live */
    int64_t x_stride;             /* elements from row to row */
    int64_t residual_stride;
    int64_t new_residual_stride;
    int64_t y_stride;
} WlRmsNorm;

#endif
