//! Every kernel against f64 references, through the simulator or, where WARPLOOM_DEVICE names one, on a GPU.
#![cfg(feature = "cuda")]

mod accept;
mod adamw;
mod attention;
mod attention_decode;
mod attention_prefill;
mod embed;
mod gemm;
mod harness;
mod linear;
#[path = "../common/manifest.rs"]
mod manifest;
mod quantize_fp8_rows;
mod rms_norm;
mod rope_append;
mod sample;
#[path = "../common/shapes.rs"]
mod shapes;
mod survey;
mod swiglu;
