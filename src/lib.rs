//! Llama inference with exact early-exit self-speculative decoding: the first layers draft, the rest verify, and the
//! output equals plain decoding bit for bit.
//!
//! From a checkpoint to tokens: `checkpoint::Checkpoint` opens a Hugging Face folder, `model::Llama` puts it on a
//! `backend`, `decode::Generator` decodes requests in rounds. [`mask`] has the attention patterns, `cache` the
//! pages of keys and values.
//!
//! For runtimes of others: `kernels` are the CUDA kernels, each a function with checked arguments over memory and streams of the caller's, on a
//! `driver`, a GPU or the simulator of one; `capi` is the same for C.
//!
//! [`optimizer`] stands for itself: AdamW that measures how stable it is. [`results`] is what benchmarks wrote.
//! [`guide`] has whole programs: linking the kernels, running a checkpoint, adding a kernel or an exit policy.
//!
//! | feature | what it adds | needs |
//! |---|---|---|
//! | `cli` (default) | the command, and `text`: tokenizers, chat templates | |
//! | `model` (of `cli`) | `checkpoint`, `model`, `backend`, `cache`, `decode` | |
//! | `train` | the trainer | |
//! | `cuda` | `kernels` and `driver`; with `model` the backend on devices | nvcc and its C++ compiler |
//! | `capi` | `capi`: the kernels as functions of C | as `cuda` |
//! | `nvtx` | ranges for Nsight Systems | libclang |
//!
//! ```no_run
//! use warploom::{Result, backend::Cpu, checkpoint::Checkpoint, decode::*, model::Llama};
//!
//! fn main() -> Result<()> {
//!     let checkpoint = Checkpoint::open("model".as_ref())?;
//!     let llama = Llama::new(&checkpoint, Cpu::new(), 2048)?;
//!     let mut generator = Generator::new(&llama, Limits { sequences: 1, context: 2048, max_draft: MAX_DRAFT })?;
//!     let policy = Policy::Length.build(llama.config().layers, 4, 6, None)?;
//!     let prompt = vec![1, 2, 3];
//!     let eos = checkpoint.config.eos.clone();
//!     generator.start(Request { prompt, max_tokens: 64, sampling: Sampling::default(), policy, eos })?;
//!     while generator.is_active() {
//!         generator.round(&mut |_slot: usize, id: u32| {
//!             println!("{id}");
//!             None
//!         })?;
//!     }
//!     Ok(())
//! }
//! ```
#[cfg(feature = "model")]
pub mod backend;
#[cfg(feature = "model")]
pub mod cache;
#[cfg(feature = "capi")]
pub mod capi;
#[cfg(feature = "model")]
pub mod checkpoint;
#[cfg(feature = "model")]
pub mod decode;
#[cfg(feature = "cuda")]
pub mod driver;
#[cfg(any(feature = "cuda", feature = "model"))]
mod dtype;
pub mod error;
pub mod guide;
#[cfg(feature = "cuda")]
pub mod kernels;
pub mod mask;
#[cfg(any(feature = "cuda", feature = "model"))]
mod memory;
#[cfg(feature = "model")]
pub mod model;
pub mod optimizer;
#[cfg(feature = "model")]
mod range;
pub mod results;
#[cfg(feature = "cli")]
pub mod text;
#[cfg(feature = "train")]
pub mod train;

pub use error::{Error, Result};
