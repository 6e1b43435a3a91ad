//! Every kernel against f64 references, through the simulator or, where WARPLOOM_DEVICE names one, on a GPU.
#![cfg(feature = "cuda")]

mod accept;
mod attention_decode;
mod embed;
mod harness;
mod linear;
mod rms_norm;
mod rope_append;
mod sample;
mod swiglu;
