//! Llama inference with exact early-exit self-speculative decoding.
pub mod backend;
pub mod cache;
pub mod checkpoint;
pub mod decode;
pub mod error;
pub mod mask;
pub mod model;
#[cfg(feature = "cli")]
pub mod text;
#[cfg(feature = "train")]
pub mod train;

pub use error::{Error, Result};
