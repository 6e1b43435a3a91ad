/* out[r, n] = sum over k of x[r, k] * W[n, k], for 1 to 64 decode rows. Entries
 * wl_linear_{bf16,f16}[_e4m3]_{16,32,64} for up to so many rows, which begin at multiples of 16 bytes, and
 * wl_linear_{bf16,f16}[_e4m3]_any. */
#ifndef WL_LINEAR_H
#define WL_LINEAR_H

#include "wl_common.h"

/* Threads of a CTA. Grid: one CTA per block of features along x, `segments` along y. Dynamic shared memory: none. */
#define WL_LINEAR_THREADS 256
/* Features of a block; with WL_LINEAR_SWIGLU half as many of gate and the same of up. A projection begins a new block. */
#define WL_LINEAR_FEATURES 128
/* Most rows of a launch. */
#define WL_LINEAR_ROWS 64
/* Most inputs, and features and columns of a projection. */
#define WL_LINEAR_MOST 536870912
/* The most scratch that any launch needs, in bytes. */
#define WL_LINEAR_MOST_SCRATCH 8389632
/* Most projections of a launch. */
#define WL_LINEAR_PROJECTIONS 3
/* Most segments of k. */
#define WL_LINEAR_SEGMENTS 8
/* Segments begin at multiples of it. */
#define WL_LINEAR_SEGMENT_STEP 128
/* Counters at the beginning of the scratch; with more blocks of features than that, there is one segment. */
#define WL_LINEAR_TICKETS 128

/* What happens to y = x W^T + bias, in f32. */
#define WL_LINEAR_STORE 0     /* out T = y */
#define WL_LINEAR_STORE_F32 1 /* out f32 = y */
#define WL_LINEAR_ADD 2       /* out T = out + y, into the residual stream, and its statistics */
#define WL_LINEAR_SWIGLU 3    /* out T = silu(y0) * y1, of projections 0 (gate) and 1 (up) */

typedef struct WlProjection {
    uint64_t weight;  /* E [features, inputs] */
    uint64_t bias;    /* T [features], or 0 */
    uint64_t scales;  /* f32 [features] of e4m3 weights, at a multiple of 16 bytes; or 0 */
    int64_t stride;   /* elements from feature to feature of weight */
    int32_t features; /* 1 or more */
    int32_t column;   /* of out, at which this projection's outputs begin */
} WlProjection;

/*
 * Of e4m3, y = x_scales[r] * scales[n] * (x W^T) + bias, multiplied from left to right. The codes 0x7f and 0xff, NaN,
 * are not made by quantize_fp8_rows, and count as 480 and -480.
 */
typedef struct WlLinear {
    uint32_t version;
    uint32_t type;           /* T: WL_BF16 or WL_F16, that of the entry */
    uint32_t weight_type;    /* E: type, or WL_E4M3; that of the entry */
    uint32_t epilogue;       /* WL_LINEAR_STORE .. */
    int32_t rows;            /* 1 to what the entry's name says; 64 for `any` */
    int32_t inputs;          /* K, 1 or more */
    int32_t projections;     /* 1 to 3; 2 with WL_LINEAR_SWIGLU, of equal features and column; 1 with WL_LINEAR_ADD, column 0 */
    int32_t segments;        /* CTAs that share the sum over k, 1 to WL_LINEAR_SEGMENTS, none of them empty */
    int32_t segment_length;  /* their share of k, a multiple of WL_LINEAR_SEGMENT_STEP; the last may have less */
    float eps;               /* of the norm */
    uint32_t prefetch;       /* 1: on an overlapping stream, more weights go to L2 before it is known whether a row is alive */
    uint32_t reserved;
    uint64_t x;              /* E [rows, inputs] */
    uint64_t x_scales;       /* f32 [rows] with E = e4m3; 0 */
    uint64_t positions;      /* i32 [rows], or 0: with all of them under 0, dead, the launch ends at once and writes nothing */
    uint64_t norm;           /* T [inputs]: x is normalised first, with this weight; or 0, as with E = e4m3 */
    uint64_t stats;          /* f32 [rows, ceil(inputs / 64)]: sums of squares of x (row_statistics.cuh); 0 without norm */
    uint64_t out;            /* T or f32 [rows, out_stride] */
    uint64_t out_stats;      /* f32 [rows, ceil(features / 64)]: those of out, with WL_LINEAR_ADD; or 0 */
    uint64_t scratch;        /* u32 [WL_LINEAR_TICKETS], 0 before and after every launch; then
                                f32 [blocks, segments, rows, WL_LINEAR_FEATURES]; at a multiple of 16 bytes; not used with
                                one segment */
    int64_t x_stride;        /* elements from row to row */
    int64_t out_stride;
    WlProjection projection[WL_LINEAR_PROJECTIONS];
} WlLinear;

#endif
