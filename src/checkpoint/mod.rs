//! Hugging Face checkpoint folders: `config.json`, safetensors files through memory maps, shards.
//!
//! Start from [`Checkpoint`]: a model whose configuration and weights have all been checked. [`Config`] is
//! what the model is, [`Tensor`] one of its weights where it lies in the file. [`resolve_model`] finds the
//! folder of a hub name. What is trusted of a file, and what is not, is in SECURITY.md.
mod config;
mod file;
pub mod footprint;
pub mod fp8;
mod hub;
mod json;
mod published;
mod rope;
mod safetensors;
mod weights;

pub use crate::dtype::Dtype;
pub use config::{Config, EMBEDDING, ENCODER, HEAD, ModelType, NORM};
pub use hub::resolve_model;
pub use published::{PUBLISHED, Published};
pub use rope::{Rope, RopeScaling};
pub use safetensors::{check_index, check_safetensors};
#[cfg(feature = "train")]
pub(crate) use weights::TensorFile;
pub use weights::{Checkpoint, Tensor};
