/*
 * warploom's kernels as functions of C: one for each kernel, over the caller's device memory and stream.
 *
 *     WlDevice* device;
 *     WlStream* stream;
 *     wl_device_open("cuda:0", &device);
 *     wl_stream_of_cuda(device, cuda_stream, &stream);
 *     WlRmsNormArgs args = {.version = WL_VERSION, .dtype = WL_BF16, .rows = 1, .width = 4096, .eps = 1e-5f, ...};
 *     if (wl_rms_norm(stream, &args) != WL_OK) fprintf(stderr, "%s\n", wl_error());
 *
 * C99 or C++. Every function but wl_version, wl_release and wl_error returns a status, WL_OK or what went wrong; wl_error()
 * has the words for the calling thread's last failure. A launch checks types, shapes, strides, sizes and alignment, enqueues
 * the kernel and returns: it neither allocates nor waits, but for the first use of a kernel on a device, which loads it
 * (wl_device_load loads all). A call that is refused (WL_ERROR_NULL, _VERSION, _ARGUMENT) has done nothing. What fails on
 * the device is WL_ERROR_DEVICE, of this call or of earlier launches, which run later than the call that enqueued them; what
 * they were to write is undefined then, and after a fault of a kernel CUDA lets the process do nothing more on that GPU.
 *
 * Every struct that is passed begins with `version`, WL_VERSION of the header that it was compiled with; another one is
 * refused. Set what is not used, and `reserved`, to zero.
 *
 * Memory is a WlView, a device address (CUdeviceptr) and the bytes that a call may touch there. It stays the caller's,
 * who keeps it allocated until the work is done, and has nothing else write what a kernel reads, or use what it writes, at
 * that time. What a launch writes may overlap nothing else of it unless a comment says so. {0, 0} is none where a comment
 * says "or none", and refused elsewhere. Addresses are multiples of 16 bytes, those of f32, i32 and u32 arrays of 4 unless a
 * comment says more.
 *
 * Any thread may call any function, also for the same device or stream, but for the one that closes or changes it: that one
 * is the last, or the only one at that time, to use its handle. A device and its streams may be closed in any order; work
 * that is on its way goes on. What wl_allocate gave out and nobody freed goes with the device and the last of its streams.
 * wl_free, and what closes the last of these, wait for all work on the GPU. A call leaves the thread in the CUDA context
 * that it found there.
 *
 * A stream may be in capture (cuStreamBeginCapture) while launches, wl_copy and wl_fill are called; wl_upload, wl_download
 * and wl_stream_synchronize are refused then. Load kernels and allocate before.
 *
 * A calling thread needs 64 KiB of stack. Where the host itself has no memory left, the process ends. A process that was
 * forked off may use the simulator, if no call was running when it was; CUDA lets it use no GPU that its parent has opened.
 */
#ifndef WARPLOOM_H
#define WARPLOOM_H

#include "wl_params.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a function returns. */
#define WL_OK 0
#define WL_ERROR_NULL 1     /* a pointer that must not be null is */
#define WL_ERROR_VERSION 2  /* a struct of another version */
#define WL_ERROR_ARGUMENT 3 /* a type, shape, size or address that does not fit */
#define WL_ERROR_DEVICE 4   /* no such device, or it failed */
#define WL_ERROR_MEMORY 5   /* no room */
#define WL_ERROR_INTERNAL 6 /* a fault of this library */

/* Of this library: WL_VERSION, and its release, as "0.1.0". */
uint32_t wl_version(void);
const char* wl_release(void);
/* What went wrong in this thread's last call that failed, empty before; stays until the next one fails. */
const char* wl_error(void);

/* A GPU, or the simulator of one. */
typedef struct WlDevice WlDevice;
/* Work that happens in order. */
typedef struct WlStream WlStream;

typedef struct WlProperties {
    uint32_t version;
    uint32_t capability_major;
    uint32_t capability_minor;
    uint32_t multiprocessors;
    uint64_t memory_bytes;
    uint64_t l2_bytes;
    char name[128]; /* written with its zero */
} WlProperties;

/* Device memory. */
typedef struct WlView {
    uint64_t address;
    uint64_t bytes;
} WlView;

/* Rows in device memory, `stride` elements from one row's first to the next one's. */
typedef struct WlMatrix {
    WlView view;
    uint64_t stride;
} WlMatrix;

/* A device by name: "sim", or "cuda:N" for GPU N, from 0, in its primary context, which the runtime API and most libraries
 * use. Each call makes a handle of its own, to be closed. */
int32_t wl_device_open(const char* name, WlDevice** device);
int32_t wl_device_close(WlDevice* device);
int32_t wl_device_properties(const WlDevice* device, WlProperties* properties);
/* Loads all kernels now. */
int32_t wl_device_load(const WlDevice* device);

/* Device memory, aligned to 256 bytes; what it holds is undefined. For those who have no allocator of their own. */
int32_t wl_allocate(const WlDevice* device, uint64_t bytes, WlView* view);
/* Gives back what wl_allocate gave out, by its address, when all work on the GPU is done, for which it waits. */
int32_t wl_free(const WlDevice* device, uint64_t address);

int32_t wl_stream_create(const WlDevice* device, WlStream** stream);
/* A CUstream (cudaStream_t) of the caller's, in the device's primary context; null is the default stream. It stays the
 * caller's, and is there as long as what is made of it. The simulator has none, and answers WL_ERROR_DEVICE. */
int32_t wl_stream_of_cuda(const WlDevice* device, void* cuda_stream, WlStream** stream);
/* 1: kernels on the stream may begin while those before them end (programmatic dependent launch, sm_90 and up); 0, as at
 * first: they may not. They wait before they touch anything but the weights of wl_linear: a kernel that writes such weights
 * must have been waited for, by wl_stream_synchronize or a copy behind it on the stream. */
int32_t wl_stream_set_overlapping(WlStream* stream, uint32_t on);
/* Of a stream of the caller's, what was made of it; the stream itself stays. */
int32_t wl_stream_destroy(WlStream* stream);
/* Waits for everything on it. */
int32_t wl_stream_synchronize(const WlStream* stream);

/* Copies between host and device, of the view's size; `from` has been read, `to` is written when they return. */
int32_t wl_upload(const WlStream* stream, WlView to, const void* from);
int32_t wl_download(const WlStream* stream, void* to, WlView from);
/* Copies within the device; the views are equally large and do not overlap. */
int32_t wl_copy(const WlStream* stream, WlView from, WlView to);
/* Sets every byte. */
int32_t wl_fill(const WlStream* stream, WlView to, uint8_t byte);

/* ---- rows: dtype is WL_BF16 or WL_F16 unless a comment says more */

/* y = w * round(h / sqrt(mean(h^2) + eps)), with h = x or the new residual round(x + residual), rounded to dtype. In place:
 * new_residual may be residual or x, and y may be x or residual, with equal strides, but not both the same; a y of e4m3
 * overlaps none of them. */
typedef struct WlRmsNormArgs {
    uint32_t version;
    uint32_t dtype;        /* of all but y; with a y of the same type also WL_F32 */
    uint64_t rows;
    uint64_t width;
    float eps;
    uint32_t y_dtype;      /* dtype or WL_E4M3 */
    WlMatrix x;            /* [rows, width] */
    WlMatrix residual;     /* [rows, width], or none */
    WlMatrix new_residual; /* [rows, width], with a residual; else none */
    WlView weight;         /* [width] */
    WlMatrix y;            /* [rows, width] */
    WlView y_scales;       /* f32 [rows], with a y of e4m3 */
    WlView stats;          /* f32 [rows, ceil(width / 64)]: sums of squares of h; or none */
    WlView positions;      /* i32 [rows]: a row with a negative one is left out; or none */
    float y_bound;         /* with a y of e4m3: what is larger saturates; 0: nothing is */
    uint32_t reserved;
} WlRmsNormArgs;
int32_t wl_rms_norm(const WlStream* stream, const WlRmsNormArgs* args);

/* out[r] = table[tokens[r]]; an id out of range makes its row NaN. */
typedef struct WlEmbedArgs {
    uint32_t version;
    uint32_t dtype;
    uint64_t rows;
    uint64_t width;
    uint64_t vocabulary;
    WlMatrix table;   /* [vocabulary, width] */
    WlView tokens;    /* i32 [rows] */
    WlView positions; /* i32 [rows]: a row with a negative one is left out; or none */
    WlMatrix out;     /* [rows, width] */
    WlView stats;     /* f32 [rows, ceil(width / 64)]: sums of squares of out; or none */
} WlEmbedArgs;
int32_t wl_embed(const WlStream* stream, const WlEmbedArgs* args);

/* out = round(silu(gate) * up). In place: out may be gate or up, with equal strides; an out of e4m3 overlaps neither. */
typedef struct WlSwigluArgs {
    uint32_t version;
    uint32_t dtype;    /* of gate and up */
    uint64_t rows;
    uint64_t width;
    WlMatrix gate;     /* [rows, width] */
    WlMatrix up;       /* [rows, width] */
    WlMatrix out;      /* [rows, width] */
    WlView out_scales; /* f32 [rows], with an out of e4m3 */
    WlView positions;  /* i32 [rows]: a row with a negative one is left out; or none */
    uint32_t out_dtype; /* dtype or WL_E4M3 */
    float out_bound;   /* with an out of e4m3: what is larger saturates; 0: nothing is */
} WlSwigluArgs;
int32_t wl_swiglu(const WlStream* stream, const WlSwigluArgs* args);

/* Rows to e4m3 with a scale each: x is about q * scale. */
typedef struct WlQuantizeFp8RowsArgs {
    uint32_t version;
    uint32_t dtype;
    uint64_t rows;
    uint64_t width;
    WlMatrix x;       /* [rows, width] */
    WlMatrix q;       /* e4m3 [rows, width] */
    WlView scales;    /* f32 [rows] */
    WlView positions; /* i32 [rows]: a row with a negative one is left out; or none */
    float bound;      /* what is larger saturates; 0: nothing is */
    uint32_t reserved;
} WlQuantizeFp8RowsArgs;
int32_t wl_quantize_fp8_rows(const WlStream* stream, const WlQuantizeFp8RowsArgs* args);

/* ---- paged keys and values */

/* Element (page, head, slot, i) of k, and of v, is at page * page_stride + head * head_stride + slot * slot_stride + i. */
typedef struct WlPageLayout {
    uint64_t pages;
    uint64_t page_size;   /* positions, a multiple of 8 */
    uint64_t kv_heads;
    uint64_t head_dim;
    uint64_t page_stride; /* strides in elements */
    uint64_t head_stride;
    uint64_t slot_stride;
} WlPageLayout;

/* [pages, kv_heads, page_size, head_dim], and [pages, page_size, kv_heads, head_dim]. */
static inline WlPageLayout wl_heads_first(uint64_t pages, uint64_t page_size, uint64_t kv_heads, uint64_t head_dim) {
    WlPageLayout layout = {pages, page_size, kv_heads, head_dim, kv_heads * page_size * head_dim, page_size * head_dim, head_dim};
    return layout;
}
static inline WlPageLayout wl_slots_first(uint64_t pages, uint64_t page_size, uint64_t kv_heads, uint64_t head_dim) {
    WlPageLayout layout = {pages, page_size, kv_heads, head_dim, page_size * kv_heads * head_dim, head_dim, kv_heads * head_dim};
    return layout;
}

/* The pages of each sequence, in the order of its positions. */
typedef struct WlPageTable {
    WlView view;        /* i32 [sequences, stride]: page ids */
    uint64_t sequences;
    uint64_t stride;    /* entries of a row */
} WlPageTable;

/* Rotates q in place and writes rotated keys, and values, to their pages; WlRopeAppend in wl_rope_append.h tells more. */
typedef struct WlRopeAppendArgs {
    uint32_t version;
    uint32_t dtype;
    uint64_t rows;
    uint64_t heads;      /* of q */
    WlMatrix qkv;        /* [rows, (heads + 2 * kv_heads) * head_dim], q rotated */
    WlView positions;    /* i32 [rows]: a row with a negative one is left out */
    WlView slots;        /* i32 [rows] (of attention [sequences]): each row's sequence, a row of the table */
    WlView frequencies;  /* f32 [head_dim / 2]: radians per position, up to 1 */
    WlPageLayout layout; /* head_dim even, to 256 */
    WlView k;            /* written */
    WlView v;            /* written */
    WlPageTable table;
    float magnitude;     /* of cosines and sines, 1 unless a RoPE variant has another; not 0 */
    uint32_t reserved;
} WlRopeAppendArgs;
int32_t wl_rope_append(const WlStream* stream, const WlRopeAppendArgs* args);

/* Attention of 1 to 64 rows per sequence: decoding and verification. What memory must hold is told at WlAttentionDecode in
 * wl_attention_decode.h. */
typedef struct WlAttentionDecodeArgs {
    uint32_t version;
    uint32_t dtype;
    uint64_t tokens;     /* rows of all sequences */
    uint64_t sequences;  /* to 65535 */
    uint64_t heads;      /* a multiple of kv_heads */
    uint64_t max_rows;   /* most rows of a sequence, 1 to 64 */
    uint64_t max_keys;   /* most keys of a sequence */
    float scale;         /* of q . k, commonly 1 / sqrt(head_dim) */
    float softcap;       /* or 0 */
    WlMatrix q;          /* [tokens, heads, head_dim] */
    WlMatrix out;        /* [tokens, heads, head_dim] */
    WlView lse;          /* f32 [heads, tokens]; or none */
    WlPageLayout layout; /* head_dim a multiple of 8, to 256 */
    WlView k;
    WlView v;
    WlPageTable table;
    WlView slots;        /* i32 [sequences]: each sequence's row of the table; or none: its own number */
    WlView lengths;      /* i32 [sequences]: keys, those of the rows included */
    WlView offsets;      /* i32 [sequences + 1]: the rows of sequence s are offsets[s] .. offsets[s + 1] */
    WlView positions;    /* i32 [tokens], a negative one of a dead row; or none: a sequence's last row has its last key */
    WlView documents;    /* i32 [tokens]: first position of the row's document; or none */
    WlView tree;         /* u64 [tokens]: bit j permits key length - 64 + j; or none */
    WlView sinks;        /* f32 [heads]: logits that join the softmax without a value, neither scaled nor capped; or none */
    WlMask mask;
    WlView scratch;      /* of wl_attention_decode_scratch bytes, whatever they hold; or none where that is 0 */
} WlAttentionDecodeArgs;
int32_t wl_attention_decode(const WlStream* stream, const WlAttentionDecodeArgs* args);
/* Bytes of scratch that such a launch needs; refused as the launch would be. Memory that a launch must have, scratch
 * included, need not be there yet; what is optional counts as given where its address is not 0. */
int32_t wl_attention_decode_scratch(const WlStream* stream, const WlAttentionDecodeArgs* args, uint64_t* bytes);
/* The most that any launch needs of up to so many sequences, rows of each and keys. */
int32_t wl_attention_decode_most_scratch(const WlStream* stream, uint64_t sequences, uint64_t max_rows, uint64_t heads,
                                         uint64_t head_dim, uint64_t kv_heads, uint64_t max_keys, uint64_t* bytes);

/* Attention of any number of rows per sequence: prompts and training. */
typedef struct WlAttentionPrefillArgs {
    uint32_t version;
    uint32_t dtype;
    uint64_t tokens;     /* rows of all sequences; tokens * heads to 2^30 */
    uint64_t sequences;  /* to 65535 */
    uint64_t heads;      /* a multiple of kv_heads */
    uint64_t max_rows;   /* most rows of a sequence */
    uint64_t max_keys;   /* most keys of a sequence */
    float scale;
    float softcap;       /* or 0 */
    WlMatrix q;          /* [tokens, heads, head_dim] */
    WlMatrix out;        /* [tokens, heads, head_dim] */
    WlView lse;          /* f32 [heads, tokens]; or none */
    WlPageLayout layout; /* as above, and all that follows */
    WlView k;
    WlView v;
    WlPageTable table;
    WlView slots;        /* i32 [sequences]; or none */
    WlView lengths;      /* i32 [sequences] */
    WlView offsets;      /* i32 [sequences + 1] */
    WlView positions;    /* i32 [tokens]; or none */
    WlView documents;    /* i32 [tokens]; or none */
    WlView sinks;        /* f32 [heads]; or none */
    WlMask mask;
} WlAttentionPrefillArgs;
int32_t wl_attention_prefill(const WlStream* stream, const WlAttentionPrefillArgs* args);

/* ---- products */

/* Weights with what belongs to them. */
typedef struct WlProjectionArgs {
    WlMatrix weight;   /* [features, inputs], of dtype or, with x_scales, e4m3; all zeros: there are no more projections */
    WlView scales;     /* f32 [features] at a multiple of 16 bytes, with x_scales; else none */
    WlView bias;       /* [features]; or none */
    uint64_t features;
    uint64_t column;   /* of out, where its features go */
} WlProjectionArgs;

/* Products of 1 to 64 rows with weights that are read once. */
typedef struct WlLinearArgs {
    uint32_t version;
    uint32_t dtype;
    uint64_t rows;
    uint64_t inputs;
    WlMatrix x;          /* [rows, inputs], e4m3 with x_scales */
    WlView x_scales;     /* f32 [rows]; or none */
    WlView positions;    /* i32 [rows]: where all are negative nothing is done; or none */
    WlView norm_weight;  /* [inputs]: RMSNorm of x before the product; or none */
    WlView norm_stats;   /* f32 [rows, ceil(inputs / 64)], with norm_weight: sums of squares of x */
    float norm_eps;
    uint32_t prefetch;   /* 1: on an overlapping stream more weights go to L2 before it is known whether a row is alive; or 0 */
    uint32_t reserved;
    uint32_t epilogue;   /* WL_LINEAR_STORE, _STORE_F32, _ADD: out is added to, _SWIGLU: gate, up are the projections */
    WlProjectionArgs projections[3];
    WlMatrix out;        /* [rows, ...], of dtype or f32 */
    WlView out_stats;    /* f32 [rows, ceil(features / 64)], with WL_LINEAR_ADD: sums of squares of out; or none */
    WlView scratch;      /* of wl_linear_scratch bytes, zeros before the first launch, and after each; or none where that is 0 */
} WlLinearArgs;
int32_t wl_linear(const WlStream* stream, const WlLinearArgs* args);
/* As wl_attention_decode_scratch. No launch needs more than WL_LINEAR_MOST_SCRATCH. */
int32_t wl_linear_scratch(const WlStream* stream, const WlLinearArgs* args, uint64_t* bytes);

/* Products of any number of rows on tensor cores; all as in WlLinearArgs. */
typedef struct WlGemmArgs {
    uint32_t version;
    uint32_t dtype;
    uint64_t rows;
    uint64_t inputs;
    WlMatrix x;          /* [rows, inputs], e4m3 with x_scales */
    WlView x_scales;     /* f32 [rows]; or none */
    uint32_t epilogue;   /* WL_LINEAR_STORE .. WL_LINEAR_SWIGLU */
    uint32_t reserved;
    WlProjectionArgs projections[3];
    WlMatrix out;        /* [rows, ...], of dtype or f32 */
    WlView out_stats;    /* f32 [rows, ceil(features / 64)], with WL_LINEAR_ADD; or none */
} WlGemmArgs;
int32_t wl_gemm(const WlStream* stream, const WlGemmArgs* args);

/* ---- rounds of speculative decoding; wl_round.h tells how the kernels work together */

/* Three i32 arrays of rows. */
typedef struct WlRowTable {
    WlView tokens;
    WlView positions;
    WlView sequences;
} WlRowTable;

/* The rows of a round. */
typedef struct WlRoundRows {
    uint64_t steps;       /* draft steps, to WL_MAX_DRAFT + 1 */
    uint64_t draft_rows;  /* of a step */
    uint64_t verify_rows;
    WlRowTable draft;     /* [steps, draft_rows]; or none where these are 0 */
    WlRowTable verify;    /* [verify_rows]; or none where these are 0 */
} WlRoundRows;

/* Begins a round. */
typedef struct WlRoundBeginArgs {
    uint32_t version;
    uint32_t reserved;
    uint64_t slots;
    WlView plans;          /* WlPlan [slots] */
    WlView states;         /* WlSequence [slots] */
    WlRoundRows round;
    WlView draft_lengths;  /* i32 [draft_rows]; or none */
    WlView verify_lengths; /* i32 [slots]; or none */
} WlRoundBeginArgs;
int32_t wl_round_begin(const WlStream* stream, const WlRoundBeginArgs* args);

/* Chooses a token from each row of logits. */
typedef struct WlSampleArgs {
    uint32_t version;
    uint32_t mode;           /* WL_SAMPLE_DRAFT or WL_SAMPLE_VERIFY */
    uint64_t step;           /* of the draft, with WL_SAMPLE_DRAFT; else 0 */
    uint64_t first_row;      /* rows of the step, or of the verification, that are computed */
    uint64_t rows;           /* to 4096 */
    uint64_t vocab;
    uint64_t slots;
    WlMatrix logits;         /* f32 [rows, vocab] */
    WlRoundRows round;
    WlView states;           /* WlSequence [slots] */
    WlMatrix seen;           /* u32 [slots, ceil(vocab / 32)]: bit id is set if the sequence has seen id; or none */
    WlView choices;          /* WlChoice [slots, WL_MAX_DRAFT] of a draft, [verify_rows] of the verification */
    WlMatrix probabilities;  /* f32 [rows, vocab]: the distributions in full; or none */
    WlView hashes;           /* u64 [verify_rows]; or none */
    WlView scratch;          /* of wl_sample_scratch bytes, zeros before the first launch, and after each */
} WlSampleArgs;
int32_t wl_sample(const WlStream* stream, const WlSampleArgs* args);
int32_t wl_sample_scratch(uint64_t rows, uint64_t vocab, uint64_t* bytes);

/* Ends a round: which drafts stay, and the token after them. */
typedef struct WlAcceptArgs {
    uint32_t version;
    uint32_t reserved;
    uint64_t slots;
    uint64_t vocab;
    uint64_t verify_first;      /* row of the verification that choices and logits begin with */
    uint64_t verify_rows;       /* their number */
    WlView states;              /* WlSequence [slots] */
    WlView rounds;              /* WlRound [slots] */
    WlMatrix seen;              /* u32 [slots, ceil(vocab / 32)], as in WlSampleArgs, written; or none */
    WlView draft_choices;       /* WlChoice [slots, WL_MAX_DRAFT] */
    WlView verify_choices;      /* WlChoice [verify_rows] */
    WlMatrix draft_logits;      /* f32 [draft_steps, draft_rows, vocab]; or none where all that draft are greedy */
    uint64_t draft_steps;
    uint64_t draft_rows;
    uint64_t draft_step_stride; /* elements from step to step */
    WlMatrix verify_logits;     /* f32 [verify_rows, vocab], with draft_logits; else none */
} WlAcceptArgs;
int32_t wl_accept(const WlStream* stream, const WlAcceptArgs* args);

/* ---- training */

/* A step of AdamW on one tensor, measured in the same pass. */
typedef struct WlAdamwArgs {
    uint32_t version;
    uint32_t gradient_dtype; /* WL_F32 or WL_BF16 */
    uint64_t count;
    float beta1;
    float beta2;
    float epsilon;
    float weight_decay;
    WlView weights;          /* f32 [count], updated */
    WlView gradients;        /* of f32 or bf16 [count] */
    WlView m;                /* f32 [count], updated */
    WlView v;                /* f32 [count], updated */
    WlView copy;             /* bf16 [count], the new weights rounded; or none */
    WlView step;             /* WlAdamwStep */
    WlView statistics;       /* WlAdamwStatistics, written */
    WlView scratch;          /* of wl_adamw_scratch bytes, zeros before the first launch, and after each */
} WlAdamwArgs;
int32_t wl_adamw(const WlStream* stream, const WlAdamwArgs* args);
int32_t wl_adamw_scratch(uint64_t count, uint64_t* bytes);

#ifdef __cplusplus
}
#endif

#endif
