//! The Llama graph over a backend: shapes, weights, rotary angles, and one forward pass with four uses.
//!
//! Start from [`Llama`]. [`Llama::forward`] runs layers a..b over some rows: 0..E is a draft, E..L a verification,
//! 0..L plain decoding, and 0..L over many rows prefill. [`Llama::head`] turns rows of the residual stream
//! into logits, after any layer.

mod llama;
mod rope;

pub use crate::backend::Angles;
pub use llama::{Llama, Work};
