/* Parameter structs of every kernel: for programs that launch the kernels themselves, and what the Rust ones are
 * generated from. */
#ifndef WL_PARAMS_H
#define WL_PARAMS_H

#include "wl_accept.h"
#include "wl_common.h"
#include "wl_adamw.h"
#include "wl_attention_decode.h"
#include "wl_attention_prefill.h"
#include "wl_embed.h"
#include "wl_gemm.h"
#include "wl_linear.h"
#include "wl_quantize_fp8_rows.h"
#include "wl_rms_norm.h"
#include "wl_rope_append.h"
#include "wl_round.h"
#include "wl_sample.h"
#include "wl_swiglu.h"

#endif
