//! The subcommands of `warploom`, one file each: its arguments and a `run` function.
//!
//! What they share: `model` (which model, loaded how), `options` (prompt, sampling, drafting), `batch` (decoding
//! prompts to texts), `report` (what it cost; the command of that name is `performance`), `input` (files that the user names), `interrupt` (Ctrl-C), `output`, and `progress` of what is simulated.
mod batch;
pub mod chat;
pub mod compare;
mod demo;
pub mod eval;
#[cfg_attr(not(feature = "cuda"), path = "export_absent.rs")]
pub mod export;
pub mod generate;
mod input;
pub mod inspect;
mod interrupt;
#[cfg_attr(not(feature = "cuda"), path = "kernels_absent.rs")]
pub mod kernels;
pub mod logits;
mod model;
mod options;
pub mod output;
pub mod performance;
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
mod progress;
mod report;
#[cfg_attr(not(feature = "train"), path = "train_absent.rs")]
pub mod train;
