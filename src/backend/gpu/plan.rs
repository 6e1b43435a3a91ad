//! What a model will take of a device's memory, before anything of it is there.

use std::fmt;

use super::{PAGE, PROMPT_ROWS};
use crate::{
    backend::Heads,
    checkpoint::{Checkpoint, Dtype, footprint::Footprint},
    decode::{MAX_DRAFT, logit_rows},
    driver::Driver,
    error::{Error, Result},
    kernels::{AttentionParts, Linear, PageLayout, most_scratch},
};

/// For machine code, graphs, and buffers of a few bytes a row.
const RESERVE: u64 = 64 << 20;

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
    /// Set aside for machine code, graphs, and buffers of a few bytes a row.
    pub reserve: u64,
    /// What is free now.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

impl MemoryPlan {
    /// For a checkpoint on a device, with one sequence of `context` positions. `library`: with room for what [`Gpu::use_library`](super::Gpu::use_library)
    /// takes.
    ///
    /// # Errors
    /// [`Error::Device`]; those of [`Checkpoint::tensor`].
    pub fn new(
        driver: &dyn Driver,
        checkpoint: &Checkpoint,
        context: usize,
        library: bool,
    ) -> Result<MemoryPlan> {
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
        let (mut weights, mut fp8) = (0, false);
        for (name, shape) in config.tensors() {
            let (dtype, bytes) = checkpoint.loaded(&name, &checkpoint.tensor(&name, &shape)?);
            fp8 |= dtype == Dtype::E4m3;
            let elements: u64 = shape.iter().map(|n| *n as u64).product();
            let bytes = if dtype == Dtype::E4m3 { bytes as u64 } else { elements * size };
            let is_of_heads = name.contains("self_attn.");
            weights += (if is_of_heads { of_heads(bytes) } else { bytes }).next_multiple_of(256);
        }
        let footprint = Footprint::of_checkpoint(checkpoint)?;
        let cache = of_heads(footprint.kv_bytes(context.next_multiple_of(PAGE), size as usize));
        let (hidden, intermediate) = (config.hidden as u64, config.intermediate as u64);
        let row = size * (3 * hidden + (heads.qkv() + heads.heads * heads.padded) as u64 + intermediate);
        let rows = PROMPT_ROWS.min(context) as u64;
        // Products in e4m3 read rows of their own.
        let codes = if fp8 { rows * (hidden.max(intermediate) + 4) } else { 0 };
        let round = MAX_DRAFT + 1;
        // Of the head's pass, and a round's own: of its drafts and of its verification.
        let logit_rows = logit_rows(config.vocab, round, rows as usize) + MAX_DRAFT + round;
        let logits = 4 * (logit_rows * config.vocab) as u64;
        let properties = driver.properties();
        let layout = PageLayout::heads_first(1, PAGE, heads.kv_heads, heads.padded);
        let attention = most_scratch(
            AttentionParts::Auto,
            properties.multiprocessors as usize,
            1,
            round,
            heads.heads,
            &layout,
            context.next_multiple_of(PAGE),
        ) as u64;
        // The products' workspace, gate and up, and a product to measure.
        let widest = (heads.qkv() as u64).max(hidden).max(intermediate);
        let library = if library { (32 << 20) + rows * size * (2 * intermediate + widest) } else { 0 };
        let workspace = rows * row + codes + logits + Linear::MOST_SCRATCH as u64 + attention + library;
        Ok(MemoryPlan {
            device: properties.name.clone(),
            weights,
            cache,
            context,
            workspace,
            reserve: RESERVE,
            free: driver.free_memory()?,
            total: properties.memory_bytes,
        })
    }

    /// All of it.
    pub fn needed(&self) -> u64 {
        [self.cache, self.workspace, self.reserve].into_iter().fold(self.weights, u64::saturating_add)
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
                gib(self.workspace.saturating_add(self.reserve))
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
            gib(self.workspace.saturating_add(self.reserve)),
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
