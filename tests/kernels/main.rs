//! Every kernel against f64 references, through the simulator or, where WARPLOOM_DEVICE names one, on a GPU.
#![cfg(feature = "cuda")]

mod accept;
mod attention;
mod attention_decode;
mod attention_prefill;
mod embed;
mod harness;
mod linear;
mod rms_norm;
mod rope_append;
mod sample;
mod swiglu;
