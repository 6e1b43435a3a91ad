//! What a model will take of a device's memory, before anything of it is there.

use std::fmt;

use crate::{
    backend::Heads,
    checkpoint::{Checkpoint, Dtype, footprint::Footprint},
    driver::Driver,
    error::{Error, Result},
    kernels::Linear,
};

/// Rows that activations are counted for, as many as one pass of a prompt has at most, and rows of logits beside them.
const ROWS: u64 = 512;
const LOGIT_ROWS: u64 = 64;

/// Device memory that a model takes for one sequence, in bytes: weights and KV cache within a few percent, the rest at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The device's name.
    pub device: String,
    /// Weights as they will lie there.
    pub weights: u64,
    /// Keys and values of a sequence that fills the context.
    pub cache: u64,
    /// Positions of that context.
    pub context: usize,
    /// Activations, logits and scratch.
    pub workspace: u64,
    /// What is free now.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

impl MemoryPlan {
    /// For a checkpoint on a device, with one sequence of `context` positions.
    ///
    /// # Errors
    /// [`Error::Device`]; those of [`Checkpoint::tensor`].
    pub fn new(driver: &dyn Driver, checkpoint: &Checkpoint, context: usize) -> Result<MemoryPlan> {
        let config = &checkpoint.config;
        let head_dim = config.head_dim;
        let heads = Heads {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim,
            padded: head_dim.next_multiple_of(8),
        };
        let of_heads = |bytes: u64| bytes / head_dim as u64 * heads.padded as u64;
        let size = Dtype::Bf16.size() as u64;
        let mut weights = 0;
        for (name, shape) in config.tensors() {
            let (dtype, bytes) = checkpoint.loaded(&name, &checkpoint.tensor(&name, &shape)?);
            let elements: u64 = shape.iter().map(|n| *n as u64).product();
            let bytes = if dtype == Dtype::E4m3 { bytes as u64 } else { elements * size };
            let is_of_heads = name.contains("self_attn.");
            weights += (if is_of_heads { of_heads(bytes) } else { bytes }).next_multiple_of(256);
        }
        let footprint = Footprint::of_checkpoint(checkpoint)?;
        let cache = of_heads(footprint.kv_bytes(context.next_multiple_of(super::PAGE), size as usize));
        let (hidden, intermediate) = (config.hidden as u64, config.intermediate as u64);
        let row = size * (3 * hidden + (heads.qkv() + heads.heads * heads.padded) as u64 + intermediate);
        let logits = 4 * LOGIT_ROWS * config.vocab as u64;
        let workspace = ROWS.min(context as u64) * row + logits + Linear::MOST_SCRATCH as u64;
        let properties = driver.properties();
        Ok(MemoryPlan {
            device: properties.name.clone(),
            weights,
            cache,
            context,
            workspace,
            free: driver.free_memory()?,
            total: properties.memory_bytes,
        })
    }

    /// All of it.
    pub fn needed(&self) -> u64 {
        self.weights.saturating_add(self.cache).saturating_add(self.workspace)
    }

    /// Refuses what will not fit.
    ///
    /// # Errors
    /// [`Error::Capacity`].
    pub fn check(&self) -> Result<()> {
        if self.needed() <= self.free {
            return Ok(());
        }
        Err(Error::Capacity {
            what: format!("the model on {}", self.device),
            needed: format!(
                "{} of weights, {} for the keys and values of {} positions and {} of workspace",
                gib(self.weights),
                gib(self.cache),
                self.context,
                gib(self.workspace)
            ),
            available: format!(
                "{} of its {} are free: ask for a shorter --context, quantise with --fp8, or use --device cpu",
                gib(self.free),
                gib(self.total)
            ),
        })
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} of weights, {} for a sequence of {} positions, up to {} of workspace; {} of {} are free",
            self.device,
            gib(self.weights),
            gib(self.cache),
            self.context,
            gib(self.workspace),
            gib(self.free),
            gib(self.total)
        )
    }
}

/// Bytes with a unit.
fn gib(bytes: u64) -> String {
    match bytes {
        0..0x1000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}
