/* One step of AdamW on one tensor, and what its monitor measures (arXiv 1711.05101, 2304.09871). With g = scale * gradient:
 *
 *   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
 *   r = m_correction m / (sqrt(v_hat) + epsilon), v_hat = v_correction v
 *   theta -= learning_rate (r + decay theta)
 *
 * Entries wl_adamw_{f32,bf16}, by the type of the gradients. An element whose g^2, v, r or new weight would not be finite is left as
 * it is, and counted. */
#ifndef WL_ADAMW_H
#define WL_ADAMW_H

#include "wl_common.h"

/* Threads of a CTA, and the elements it takes: ceil(count / WL_ADAMW_CHUNK) CTAs along x, one for an empty tensor. */
#define WL_ADAMW_THREADS 256
#define WL_ADAMW_CHUNK 8192
/* Sums of WlAdamwStatistics, and bins of its histogram. */
#define WL_ADAMW_SUMS 10
#define WL_ADAMW_BINS 64
/* Bytes of the scratch: WL_ADAMW_SCRATCH_HEAD + WL_ADAMW_SCRATCH_CTA per CTA. The first WL_ADAMW_SCRATCH_HEAD are zeros before the
 * first launch, and again after each, so that launches one after the other share it, of whatever tensors. */
#define WL_ADAMW_SCRATCH_HEAD 1024
#define WL_ADAMW_SCRATCH_CTA 64

/* What changes from step to step, in device memory: a captured launch reads it anew each time. */
typedef struct WlAdamwStep {
    float learning_rate;
    float gradient_scale;
    float m_correction; /* 1 / (1 - beta1^t), t from 1 */
    float v_correction; /* 1 / (1 - beta2^t) */
} WlAdamwStep;

/* Over the elements that were updated. m and theta are those before the step, v_hat that after it. */
typedef struct WlAdamwStatistics {
    double sums[WL_ADAMW_SUMS]; /* of g^2, r, r^2, r^3, r^4, g r, g m, m^2, g^2 / max(v_hat, epsilon^2), theta^2 */
    double max_ratio;           /* max |r| */
    uint64_t non_finite;        /* elements that were left as they are */
    uint64_t large_ratios;      /* |r| > 0.9 */
    uint64_t small_roots;       /* sqrt(v_hat) < epsilon */
    uint64_t histogram[WL_ADAMW_BINS]; /* bin floor(bins_per_ratio r + WL_ADAMW_BINS / 2), the first and last from there on */
} WlAdamwStatistics;

/*
 * Arrays of f32 may begin at any multiple of 4 bytes, those of bf16 and what else there is at multiples of 16. Where all begin at
 * multiples of 16, it is fastest. No two of them may overlap.
 */
typedef struct WlAdamw {
    uint32_t version;
    uint32_t gradient_type;  /* G: WL_F32 or WL_BF16, that of the entry */
    int64_t count;           /* elements, up to 2^43 */
    float beta1;
    float beta2;
    float epsilon;
    float decay;
    float bins_per_ratio;    /* WL_ADAMW_BINS / (2.5 (1 - beta1) / sqrt((1 - beta2) (1 - beta1^2 / beta2))) */
    uint32_t reserved;
    uint64_t weights;        /* f32 [count], updated */
    uint64_t gradients;      /* G [count] */
    uint64_t m;              /* f32 [count], updated */
    uint64_t v;              /* f32 [count], updated */
    uint64_t copy;           /* bf16 [count]: the new weights, rounded; or 0: none */
    uint64_t step;           /* WlAdamwStep */
    uint64_t statistics;     /* WlAdamwStatistics, written */
    uint64_t scratch;
} WlAdamw;

#endif
