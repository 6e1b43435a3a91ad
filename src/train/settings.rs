//! What to train and how: [`Settings`], and the checks that make every later step free of surprises.

use std::path::PathBuf;

use super::{
    Documents, Mitigation, Plan,
    objective::Objective,
    schedule::{Curriculum, DropoutGrowth, ExitScale},
};
use crate::{
    Error, Result,
    checkpoint::{Config, Dtype},
    mask::Mask,
    optimizer,
};

/// Sequences of a batch are dealt to this many lanes, each with a gradient of its own; the lanes' gradients
/// are added in order. A fixed number makes the result independent of the number of threads.
pub(super) const LANES: usize = 8;

/// Shape of the model, data, optimizer and LayerSkip recipe.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A Hugging Face folder whose model is trained further: its weights, tokenizer and config.json are what
    /// the run begins with. The shape below must then be that model's ([`Settings::adopt`]).
    pub from: Option<PathBuf>,
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
    /// What the loss is of. An encoder, which [`Objective::Masked`] makes, begins from scratch.
    pub objective: Objective,
    /// Attention pattern of every layer; causal where the next token is to be predicted, else bidirectional. config.json can name windows and chunks; a checkpoint trained
    /// with overlapping chunks or sinks is to be run with the same `--attention`. In a model whose layers
    /// differ, that of the first; another one replaces all.
    pub attention: Mask,
    /// Optimizer steps, T.
    pub steps: usize,
    /// Sequences of a micro-batch.
    pub batch: usize,
    /// Micro-batches whose gradients make one step. From 8 sequences a micro-batch on, the step is bit for bit
    /// that of one batch as large; under 8, sums are taken in another order.
    pub accumulate: usize,
    /// Tokens of a sequence.
    pub sequence: usize,
    /// How documents lie in a sequence.
    pub documents: Documents,
    /// Peak learning rate: linear warm-up, then a cosine down to a twentieth of it.
    pub learning_rate: f32,
    /// Steps of the linear warm-up; None for a fiftieth of the run, at most 200.
    pub warm_up: Option<usize>,
    /// Decoupled weight decay of matrices (norms and biases have none).
    pub weight_decay: f32,
    /// β₁ of AdamW.
    pub beta1: f32,
    /// β₂ of AdamW.
    pub beta2: f32,
    /// ε of AdamW.
    pub epsilon: f32,
    /// Bound of the global gradient norm; infinity for none.
    pub clip: f32,
    /// What an alarm of the optimizer's monitor leads to, beside being logged.
    pub on_alarm: Option<Mitigation>,
    /// p_max of layer dropout: the last layer's probability at the last step.
    pub dropout: f64,
    /// S(t) of layer dropout; None for exponential growth from scratch, and for 1 where a model is trained further.
    pub dropout_growth: Option<DropoutGrowth>,
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
    /// Steps between lines of `log.csv` and `monitor.csv`.
    pub log_every: usize,
    /// Steps between histograms of r in `histogram.csv`; 0 writes none.
    pub histogram_every: usize,
    /// Steps between checkpoints; 0 writes only the last.
    pub save_every: usize,
    /// Type of the saved weights: f32, f16 or bf16; None for bf16 from scratch, and for what the embedding had
    /// where a model is trained further.
    pub dtype: Option<Dtype>,
}

impl Default for Settings {
    /// The shape and recipe of the bundled demo, but that its documents were joined.
    fn default() -> Self {
        Settings {
            from: None,
            layers: 12,
            hidden: 160,
            intermediate: 448,
            heads: 10,
            kv_heads: 2,
            vocab: 2048,
            context: 512,
            objective: Objective::Next,
            attention: Mask::CAUSAL,
            steps: 2000,
            batch: 4,
            accumulate: 1,
            sequence: 512,
            documents: Documents::Masked,
            learning_rate: 3e-3,
            warm_up: None,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            clip: 1.0,
            on_alarm: None,
            dropout: 0.2,
            dropout_growth: None,
            exit_form: ExitScale::Equal,
            exit_scale: 1.0,
            logit_scale: 1.0,
            curriculum: Curriculum::Rotational { every: 4 },
            seed: 1,
            validate_every: 200,
            log_every: 20,
            histogram_every: 0,
            save_every: 500,
            dtype: None,
        }
    }
}

impl Settings {
    /// RMSNorm's ε.
    pub(super) const RMS_NORM_EPS: f64 = 1e-5;
    /// Base of the rotary frequencies.
    pub(super) const ROPE_THETA: f64 = 10000.0;

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// Steps of the linear warm-up.
    pub fn warm_up(&self) -> usize {
        self.warm_up.unwrap_or_else(|| (self.steps / 50).clamp(1, 200))
    }

    /// S(t) of layer dropout.
    pub fn dropout_growth(&self) -> DropoutGrowth {
        self.dropout_growth.unwrap_or(match self.from {
            None => DropoutGrowth::Exponential,
            Some(_) => DropoutGrowth::Constant,
        })
    }

    /// Sequences of one step.
    pub fn sequences(&self) -> usize {
        self.batch * self.accumulate
    }

    /// Lanes that a micro-batch is dealt to.
    pub(super) fn lanes(&self) -> usize {
        self.batch.min(LANES)
    }

    /// The optimizer's settings for matrices.
    pub(super) fn adam(&self) -> optimizer::Settings {
        let Settings { beta1, beta2, epsilon, weight_decay, .. } = *self;
        optimizer::Settings { beta1, beta2, epsilon, weight_decay }
    }

    /// Takes over the shape of a model that is to be trained further.
    pub fn adopt(&mut self, config: &Config) {
        self.layers = config.layers;
        self.hidden = config.hidden;
        self.intermediate = config.intermediate;
        self.heads = config.heads;
        self.kv_heads = config.kv_heads;
        self.vocab = config.vocab;
        self.context = config.context;
        self.attention = config.masks[0];
        if let Curriculum::Rotational { every } = &mut self.curriculum {
            *every = (*every).min(config.layers);
        }
    }

    /// Sees that the shape is that of `config`, the model in the folder `of`.
    pub(super) fn fits(&self, config: &Config, of: &std::path::Path) -> Result<()> {
        let pairs = [
            ("--layers", self.layers, config.layers),
            ("--hidden", self.hidden, config.hidden),
            ("--intermediate", self.intermediate, config.intermediate),
            ("--heads", self.heads, config.heads),
            ("--kv-heads", self.kv_heads, config.kv_heads),
            ("--vocab", self.vocab, config.vocab),
            ("--context", self.context, config.context),
        ];
        for (option, mine, theirs) in pairs {
            ensure(mine == theirs, option, || {
                format!("is {mine}, but the model in {} has {theirs}", of.display())
            })?;
        }
        Ok(())
    }

    /// What decides the outcome of a run, by option: two runs with the same text and the same values end alike.
    pub(super) fn recipe(&self) -> Vec<(&'static str, String)> {
        let Settings { curriculum, documents, exit_form, .. } = self;
        let on_alarm = self.on_alarm.map_or("nothing".to_owned(), |mitigation| mitigation.to_string());
        vec![
            ("--from", if self.from.is_some() { "a folder" } else { "nothing" }.to_owned()),
            ("--layers", self.layers.to_string()),
            ("--hidden", self.hidden.to_string()),
            ("--intermediate", self.intermediate.to_string()),
            ("--heads", self.heads.to_string()),
            ("--kv-heads", self.kv_heads.to_string()),
            ("--vocab", self.vocab.to_string()),
            ("--context", self.context.to_string()),
            ("--objective", format!("{:?}", self.objective).to_lowercase()),
            ("--attention", self.attention.to_string()),
            ("--steps", self.steps.to_string()),
            ("--batch", self.batch.to_string()),
            ("--accumulate", self.accumulate.to_string()),
            ("--sequence", self.sequence.to_string()),
            ("--documents", format!("{documents:?}").to_lowercase()),
            ("--lr", format!("{:?}", self.learning_rate)),
            ("--warm-up", self.warm_up().to_string()),
            ("--weight-decay", format!("{:?}", self.weight_decay)),
            ("--beta1", format!("{:?}", self.beta1)),
            ("--beta2", format!("{:?}", self.beta2)),
            ("--epsilon", format!("{:?}", self.epsilon)),
            ("--clip", format!("{:?}", self.clip)),
            ("--on-alarm", on_alarm),
            ("--dropout", format!("{:?}", self.dropout)),
            ("--dropout-growth", format!("{:?}", self.dropout_growth()).to_lowercase()),
            ("--exit-weights", format!("{exit_form:?}").to_lowercase()),
            ("--exit-scale", format!("{:?}", self.exit_scale)),
            ("--logit-scale", format!("{:?}", self.logit_scale)),
            (
                "--curriculum",
                match curriculum {
                    Curriculum::Rotational { every } => format!("rotational, --rotation {every}"),
                    other => format!("{other:?}").to_lowercase(),
                },
            ),
            ("--seed", self.seed.to_string()),
            ("--validate-every", self.validate_every.to_string()),
            ("--log-every", self.log_every.to_string()),
            ("--histogram-every", self.histogram_every.to_string()),
        ]
    }

    /// Refuses settings that cannot be trained.
    ///
    /// # Errors
    /// [`Error::Argument`] names the first setting at fault by its option; [`Error::Capacity`] if there is no
    /// memory for the run's buffers.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("--layers", self.layers),
            ("--hidden", self.hidden),
            ("--intermediate", self.intermediate),
            ("--heads", self.heads),
            ("--kv-heads", self.kv_heads),
            ("--steps", self.steps),
            ("--batch", self.batch),
            ("--accumulate", self.accumulate),
            ("--validate-every", self.validate_every),
            ("--log-every", self.log_every),
        ];
        for (option, value) in positive {
            ensure(value > 0, option, || "must be at least 1".into())?;
        }
        ensure(self.sequence >= 2, "--sequence", || "must be at least 2 tokens".into())?;
        if self.from.is_none() {
            self.check_shape()?;
        }
        ensure(self.context >= self.sequence, "--context", || {
            format!("{} is shorter than the training sequences of {}", self.context, self.sequence)
        })?;
        match self.objective {
            Objective::Next => ensure(self.attention.is_causal(), "--attention", || {
                let attention = self.attention;
                format!(
                    "in {attention} rows see the token that they are to predict; such patterns need --objective masked"
                )
            })?,
            Objective::Masked => ensure(!self.attention.is_causal(), "--attention", || {
                let patterns = "bidirectional, block:B or blockwise:B, each with +globals:G if wanted";
                format!("with --objective masked rows must see what follows them; give {patterns}")
            })?,
        }
        ensure(self.objective == Objective::Next || self.from.is_none(), "--objective", || {
            "masked trains from scratch: the tokenizer of --from has no mask token".into()
        })?;
        let rate = self.learning_rate;
        ensure(rate > 0.0 && rate.is_finite(), "--lr", || "must be a positive number".into())?;
        if let Some(steps) = self.warm_up {
            ensure((1..=self.steps).contains(&steps), "--warm-up", || {
                format!("must be 1 to the number of steps, {}", self.steps)
            })?;
        }
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
        ensure((0.0..=10.0).contains(&decay), "--weight-decay", || "must be 0 to 10".into())?;
        ensure(self.clip > 0.0, "--clip", || "must be positive".into())?;
        self.adam().validate().map_err(|error| match error {
            Error::Argument { argument, reason } => Error::argument(format!("--{argument}"), reason),
            other => other,
        })?;
        ensure(self.dtype != Some(Dtype::E4m3), "--dtype", || "must be f32, f16 or bf16".into())?;
        Plan::new(self, None).check()
    }

    /// Refuses a shape that is no model's.
    fn check_shape(&self) -> Result<()> {
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
        let specials = self.objective.specials();
        ensure((256 + specials..=1 << 20).contains(&self.vocab), "--vocab", || {
            format!("must be {} (256 bytes and {specials} special tokens) to 1048576", 256 + specials)
        })
    }
}

fn ensure(holds: bool, option: &str, reason: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::argument(option, reason())) }
}
