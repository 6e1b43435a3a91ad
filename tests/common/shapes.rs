//! A small model's, for what launches every kernel once.

use warploom::{
    kernels::{Dtype, survey::Shapes},
    mask::Mask,
};

pub const SMALL: Shapes = Shapes {
    dtype: Dtype::Bf16,
    hidden: 512,
    intermediate: 1024,
    heads: 8,
    kv_heads: 2,
    head_dim: 64,
    vocab: 1000,
    rows: 2,
    context: 320,
    prompt: 64,
    fp8: false,
    mask: Mask::CAUSAL,
};
