//! Llama inference with exact early-exit self-speculative decoding.
pub mod checkpoint;
pub mod error;
pub mod mask;
#[cfg(feature = "cli")]
pub mod text;

pub use error::{Error, Result};
