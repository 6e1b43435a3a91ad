//! What to train and how: [`Settings`], and the checks that make every later step free of surprises.

use super::schedule::{Curriculum, ExitScale};
use crate::{Error, Result, mask::Mask};

/// Sequences of a batch are dealt to this many lanes, each with a gradient of its own; the lanes' gradients
/// are added in order. A fixed number makes the result independent of the number of threads.
pub(super) const LANES: usize = 8;

/// Shape of the model, data, optimizer and LayerSkip recipe.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Layers, L.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward block.
    pub intermediate: usize,
    /// Query heads; divides `hidden`.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Size of the tokenizer and rows of the embedding.
    pub vocab: usize,
    /// `max_position_embeddings` of the checkpoint, at least `sequence`.
    pub context: usize,
    /// Attention pattern of every layer; causal. config.json can name windows and chunks; a checkpoint trained
    /// with overlapping chunks or sinks is to be run with the same `--attention`.
    pub attention: Mask,
    /// Optimizer steps, T.
    pub steps: usize,
    /// Sequences a step.
    pub batch: usize,
    /// Tokens of a sequence.
    pub sequence: usize,
    /// Peak learning rate: linear warm-up, then a cosine down to a twentieth of it.
    pub learning_rate: f32,
    /// Decoupled weight decay of matrices (norms have none).
    pub weight_decay: f32,
    /// Bound of the global gradient norm.
    pub clip: f32,
    /// p_max of layer dropout: the last layer's probability at the last step.
    pub dropout: f64,
    /// How the earlier exits weigh against each other.
    pub exit_form: ExitScale,
    /// s of the early-exit loss: how much the earlier exits weigh.
    pub exit_scale: f64,
    /// Factor on the logits of the saved checkpoint, folded into the final norm's weight. Above 1 it sharpens what
    /// sampling draws from, as a temperature of 1 / `logit_scale` would; greedy choices stay.
    pub logit_scale: f32,
    /// Which exits a step trains.
    pub curriculum: Curriculum,
    /// Seed of initial weights, data order and dropout.
    pub seed: u64,
    /// Steps between evaluations on the held-out text.
    pub validate_every: usize,
    /// Steps between checkpoints; 0 writes only the last.
    pub save_every: usize,
}

impl Default for Settings {
    /// The shape and recipe of the bundled demo.
    fn default() -> Self {
        Settings {
            layers: 12,
            hidden: 160,
            intermediate: 448,
            heads: 10,
            kv_heads: 2,
            vocab: 2048,
            context: 512,
            attention: Mask::CAUSAL,
            steps: 2000,
            batch: 4,
            sequence: 512,
            learning_rate: 3e-3,
            weight_decay: 0.1,
            clip: 1.0,
            dropout: 0.2,
            exit_form: ExitScale::Equal,
            exit_scale: 1.0,
            logit_scale: 1.0,
            curriculum: Curriculum::Rotational { every: 4 },
            seed: 1,
            validate_every: 200,
            save_every: 500,
        }
    }
}

impl Settings {
    /// RMSNorm's ε.
    pub(super) const RMS_NORM_EPS: f64 = 1e-5;
    /// Base of the rotary frequencies.
    pub(super) const ROPE_THETA: f64 = 10000.0;
    /// Memory that buffers may take.
    const MEMORY: usize = 32 << 30;

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// Steps of the linear warm-up: a fiftieth of the run, at most 200.
    pub fn warm_up(&self) -> usize {
        (self.steps / 50).clamp(1, 200)
    }

    /// Lanes that a batch is dealt to.
    pub(super) fn lanes(&self) -> usize {
        self.batch.min(LANES)
    }

    /// Refuses settings that cannot be trained.
    ///
    /// # Errors
    /// [`Error::Argument`] names the first setting at fault by its option; [`Error::Capacity`] if the buffers
    /// would not fit in 32 GiB.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("--layers", self.layers),
            ("--hidden", self.hidden),
            ("--intermediate", self.intermediate),
            ("--heads", self.heads),
            ("--kv-heads", self.kv_heads),
            ("--steps", self.steps),
            ("--batch", self.batch),
        ];
        for (option, value) in positive {
            ensure(value > 0, option, || "must be at least 1".into())?;
        }
        ensure(self.sequence >= 2, "--sequence", || "must be at least 2 tokens".into())?;
        ensure(self.hidden.is_multiple_of(self.heads), "--heads", || {
            format!("{} heads do not divide a hidden width of {}", self.heads, self.hidden)
        })?;
        ensure(self.head_dim().is_multiple_of(2), "--heads", || {
            format!(
                "a head would be {} wide, but rotary embedding turns pairs: hidden / heads must be even",
                self.head_dim()
            )
        })?;
        ensure(self.heads.is_multiple_of(self.kv_heads), "--kv-heads", || {
            format!("{} key/value heads do not divide {} query heads", self.kv_heads, self.heads)
        })?;
        ensure((258..=1 << 20).contains(&self.vocab), "--vocab", || {
            "must be 258 (256 bytes and 2 special tokens) to 1048576".into()
        })?;
        ensure(self.context >= self.sequence, "--context", || {
            format!("{} is shorter than the training sequences of {}", self.context, self.sequence)
        })?;
        ensure(self.attention.is_causal(), "--attention", || "must be a causal pattern".into())?;
        let rate = self.learning_rate;
        ensure(rate > 0.0 && rate.is_finite(), "--lr", || "must be a positive number".into())?;
        ensure((0.0..1.0).contains(&self.dropout), "--dropout", || "must be at least 0 and below 1".into())?;
        let scale = self.exit_scale;
        ensure((0.0..=1e6).contains(&scale), "--exit-scale", || "must be 0 to 1000000".into())?;
        let logits = self.logit_scale;
        ensure((0.01..=100.0).contains(&logits), "--logit-scale", || "must be 0.01 to 100".into())?;
        if let Curriculum::Rotational { every } = self.curriculum {
            ensure((1..=self.layers).contains(&every), "--rotation", || {
                format!("must be 1 to the number of layers, {}", self.layers)
            })?;
        }
        let decay = self.weight_decay;
        ensure((0.0..=10.0).contains(&decay), "weight_decay", || "must be 0 to 10".into())?;
        ensure(self.clip > 0.0, "clip", || "must be positive".into())?;
        ensure(self.validate_every > 0, "--validate-every", || "must be at least 1".into())?;
        match self.memory() {
            Some(bytes) if bytes <= Self::MEMORY => Ok(()),
            bytes => Err(Error::Capacity {
                what: "training".into(),
                needed: bytes.map_or("more than can be counted".into(), |b| format!("{} MiB", b >> 20)),
                available: format!(
                    "{} MiB is the bound: lower --layers, --hidden, --intermediate, --vocab, --batch or --sequence",
                    Self::MEMORY >> 20
                ),
            }),
        }
    }

    /// Bytes of all buffers; `None` when they overflow.
    fn memory(&self) -> Option<usize> {
        let qkv = self.hidden.checked_mul(3)?;
        let matrices = self.intermediate.checked_mul(3)?.checked_add(qkv)?.checked_add(self.hidden)?;
        let parameters = matrices
            .checked_mul(self.layers)?
            .checked_add(self.vocab)?
            .checked_add(self.layers.checked_mul(2)?)?
            .checked_mul(self.hidden)?;
        // A row of activations of every layer, and once more that much for gradients.
        let row = self.intermediate.checked_mul(3)?.checked_add(self.hidden.checked_mul(8)?)?;
        let row = row.checked_mul(self.layers.checked_add(1)?)?;
        let lane = row.checked_add(256)?.checked_mul(self.sequence)?;
        let lane = lane.checked_add(self.vocab.checked_mul(256)?)?.checked_add(parameters)?;
        let state = parameters.checked_mul(3)?;
        let batch = self.batch.checked_mul(self.sequence)?.checked_mul(8)?;
        lane.checked_mul(self.lanes())?.checked_add(state)?.checked_mul(4)?.checked_add(batch)
    }
}

fn ensure(holds: bool, option: &str, reason: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::argument(option, reason())) }
}
