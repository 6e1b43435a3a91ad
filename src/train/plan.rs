//! What a run will take: memory by part, tokens and operations, known before anything is allocated.

use std::fmt;

use super::{
    attention::stacked_rows,
    model::LOGIT_ROWS,
    objective::{Masking, Objective},
    schedule::Curriculum,
    settings::Settings,
};
use crate::{
    Error, Result,
    checkpoint::{Config, Dtype},
    mask::Mask,
    memory::available_memory,
};

/// Memory that a run may take where the system does not say what it has.
const BOUND: f64 = (32u64 << 30) as f64;

/// Memory and work of a run. Bytes are exact for the buffers that training holds. On top come the text, about ten bytes for each of its own
/// while its tokenizer is learned, and the process with its threads, some 20 to 50 MiB; and where a run is resumed, pages of the mapped
/// state that the system takes back as it needs them. In f64, which no shape overflows.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Parameters of the model; a tied head counts once.
    pub parameters: f64,
    /// Bytes of each part.
    pub memory: Vec<(&'static str, f64)>,
    /// Steps of the run.
    pub steps: usize,
    /// Tokens of a step.
    pub tokens_per_step: f64,
    /// Floating-point operations of a step, forward and backward, when no layer is dropped and every sequence
    /// is one document; a product and its addition are two.
    pub operations_per_step: f64,
}

impl Plan {
    /// The plan of a run, of the shape of `config` if a model is trained further. Nothing of the settings need
    /// have been checked.
    pub fn new(settings: &Settings, config: Option<&Config>) -> Self {
        let of = |value: usize| value as f64;
        let Settings { layers, hidden, intermediate, vocab, sequence, steps, .. } = *settings;
        let (l, h, i, v, s) = (of(layers), of(hidden), of(intermediate), of(vocab), of(sequence));
        let (query, kv) = match config {
            Some(config) => (of(config.query_width()), of(config.kv_width())),
            None => (h, h / of(settings.heads.max(1)) * of(settings.kv_heads)),
        };
        let qkv = query + 2.0 * kv;
        let flag = |f: fn(&Config) -> bool| f64::from(u8::from(config.is_some_and(f)));
        let matrices = (qkv + query + 3.0 * i) * h;
        let heads = 1.0 + flag(|config| !config.tied);
        let parameters = l * (matrices + 2.0 * h)
            + l * flag(|config| config.attention_bias) * (qkv + h)
            + l * flag(|config| config.mlp_bias) * (2.0 * i + h)
            + heads * v * h
            + h;
        let lanes = of(settings.lanes());
        let sequences = of(settings.batch) * of(settings.accumulate);
        let tokens_per_step = sequences * s;

        // As `Lane` allocates them; a row of what each layer keeps, and one of what all share.
        let (heads_q, heads_kv) = match config {
            Some(config) => (config.heads, config.kv_heads),
            None => (settings.heads.max(1), settings.kv_heads.clamp(1, settings.heads.max(1))),
        };
        let layer_row = 3.0 * h + qkv + query + of(heads_q) + 3.0 * i + 2.0;
        let row = l * layer_row + (l + 1.0) * h + 3.0 * h + query + qkv + 3.0 * i + 1.0;
        let work = 2.0 * of(stacked_rows(heads_q, heads_kv)) * (s + query / of(heads_q));
        let memory = vec![
            ("weights", 4.0 * parameters),
            ("moments", 8.0 * parameters),
            ("gradients", 4.0 * lanes * parameters),
            ("activations", lanes * (4.0 * (row * s + work) + 16.0 * s)),
            ("logits", 4.0 * lanes * of(LOGIT_ROWS.min(sequence)) * v),
            ("batch and angles", 9.0 * tokens_per_step + 4.0 * s * query / of(settings.heads.max(1))),
        ];

        let keys = |mask: Mask| -> f64 {
            // Enough positions to tell, however long the sequence.
            let step = (sequence / 4096).max(1);
            let seen = (0..sequence).step_by(step).map(|q| of(mask.visible(q, sequence, 0).count()));
            seen.sum::<f64>() * of(step)
        };
        let keys = match config {
            Some(config) => config.masks.iter().map(|&mask| keys(mask)).sum(),
            None => l * keys(settings.attention),
        };
        let exits = match settings.curriculum {
            // The last exit is trained besides, unless its turn has come.
            Curriculum::Rotational { every } => {
                let turn = 1.0 / of(every.max(1));
                l * turn + 1.0 - turn
            }
            Curriculum::Gradual => {
                let points = 256;
                let trained = |t: usize| {
                    let exits = (0..layers.min(1 << 14))
                        .filter(|&exit| settings.curriculum.trains(exit, layers, t, points));
                    of(exits.count())
                };
                (0..points).map(trained).sum::<f64>() / of(points)
            }
            Curriculum::Off => l,
        };
        let counted = match settings.objective {
            Objective::Next => 1.0,
            Objective::Masked => Masking::SHARE,
        };
        // Of each product one forward and two backward; attention computes its scores once more.
        let operations_per_step = 6.0 * tokens_per_step * (l * matrices + counted * exits * v * h)
            + 14.0 * sequences * query * keys;
        Plan { parameters, memory, steps, tokens_per_step, operations_per_step }
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> f64 {
        self.memory.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Adds what the text and its tokens take.
    pub fn with_text(mut self, bytes: u64) -> Self {
        // Llama's tokenizers make about a token of four bytes, small vocabularies one of two or three.
        self.memory.push(("text and tokens", bytes as f64 * (1.0 + 4.0 / 3.0)));
        self
    }

    /// Refuses a run that the machine has no memory for.
    ///
    /// # Errors
    /// [`Error::Capacity`].
    pub fn check(&self) -> Result<()> {
        let bound = available_memory().map_or(BOUND, |bytes| bytes as f64);
        if self.bytes() <= bound {
            return Ok(());
        }
        Err(Error::Capacity {
            what: "training".into(),
            needed: mib(self.bytes()),
            available: format!(
                "{} are free: lower --layers, --hidden, --intermediate, --vocab, --batch or --sequence",
                mib(bound)
            ),
        })
    }

    /// Bytes of the checkpoint and of the state that resuming needs.
    pub fn disk(&self, dtype: Dtype) -> (f64, f64) {
        (self.parameters * dtype.size() as f64, 12.0 * self.parameters)
    }
}

fn mib(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<20}{:>14}", "parameters", self.parameters)?;
        for (part, bytes) in &self.memory {
            writeln!(f, "{part:<20}{:>14}", mib(*bytes))?;
        }
        writeln!(f, "{:<20}{:>14}", "memory in all", mib(self.bytes()))?;
        let tokens = self.tokens_per_step * self.steps as f64;
        writeln!(f, "{:<20}{:>14}", "steps", self.steps)?;
        writeln!(f, "{:<20}{:>14}  {:.4e} in all", "tokens a step", self.tokens_per_step, tokens)?;
        let operations = self.operations_per_step;
        let all = operations * self.steps as f64;
        writeln!(f, "{:<20}{operations:>14.4e}  {all:.4e} in all", "operations a step")
    }
}
