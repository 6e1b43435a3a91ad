/* out[r, n] = sum over k of x[r, k] * W[n, k], for any number of rows. Entries wl_gemm_{bf16,f16}[_e4m3]_{128,64,any}:
 * large tiles, small ones, and small ones of rows of x or W that do not begin at multiples of 16 bytes. */
#ifndef WL_GEMM_H
#define WL_GEMM_H

#include "wl_common.h"
#include "wl_linear.h"

/* Threads of a CTA. Grid: along x, blocks of rows times blocks of features. Dynamic shared memory: none. */
#define WL_GEMM_THREADS 128
/* Rows and features of a CTA of wl_gemm_*_128, and of the others. With WL_LINEAR_SWIGLU half as many features, of gate
 * and of up. A projection begins a new block. */
#define WL_GEMM_LARGE 128
#define WL_GEMM_SMALL 64
/* Most projections of a launch. */
#define WL_GEMM_PROJECTIONS WL_LINEAR_PROJECTIONS

/*
 * y = x W^T + bias in f32; the epilogues are those of wl_linear.h. Of e4m3, y = x_scales[r] * scales[n] * (x W^T) +
 * bias, multiplied from left to right. The codes 0x7f and 0xff, NaN, are not made by quantize_fp8_rows, and
 * count as 480 and -480.
 */
typedef struct WlGemm {
    uint32_t version;
    uint32_t type;        /* T: WL_BF16 or WL_F16, that of the entry */
    uint32_t weight_type; /* E: type, or WL_E4M3; that of the entry */
    uint32_t epilogue;    /* WL_LINEAR_STORE .. */
    int32_t rows;         /* 1 or more */
    int32_t inputs;       /* K, 1 or more */
    int32_t projections;  /* 1 to 3; 2 with WL_LINEAR_SWIGLU, of equal features and column; 1 with WL_LINEAR_ADD */
    uint32_t reserved;
    uint64_t x;           /* E [rows, inputs] */
    uint64_t x_scales;    /* f32 [rows] with E = e4m3; 0 */
    uint64_t out;         /* T or f32 [rows, out_stride] */
    uint64_t out_stats;   /* f32 [rows, ceil(features / 64)]: those of out, with WL_LINEAR_ADD; or 0 */
    int64_t x_stride;     /* elements from row to row */
    int64_t out_stride;
    WlProjection projection[WL_GEMM_PROJECTIONS]; /* W of E; scales f32 [features] with E = e4m3, or 0 */
} WlGemm;

#endif
