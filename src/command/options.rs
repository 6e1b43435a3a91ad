//! Options that several subcommands share: the prompt, how tokens are chosen, how rounds draft; [`DecodeArgs`] is
//! all of them.

use std::str::FromStr;

use warploom::{
    Error, Result,
    decode::{ExitPolicy, Policy, Sampling},
    error::printable,
};

use super::model::{Loaded, ModelArgs};

/// The draft length where neither an option nor the model says another.
const DEFAULT_DRAFT: usize = 4;

/// What to decode and how: the options of `generate` and `compare` alike.
#[derive(clap::Args, Clone, Debug)]
pub struct DecodeArgs {
    /// What to go on from.
    #[command(flatten)]
    pub prompt: PromptArgs,
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    pub max_tokens: usize,
    /// How rounds draft.
    #[command(flatten)]
    pub drafting: DraftArgs,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Which model runs.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// Parses an option's value for clap, which names the option itself.
///
/// # Errors
/// The reason alone.
pub fn value<T: FromStr<Err = Error>>(text: &str) -> std::result::Result<T, String> {
    text.parse().map_err(|error| match error {
        Error::Argument { reason, .. } => reason,
        other => other.to_string(),
    })
}

/// How tokens are chosen.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Divisor of the logits; 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Sample from the K most probable tokens; 0 is off
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Sample from the fewest tokens that have probability P together; 1 is off
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f32,
    /// Sample from tokens at least P times as probable as the most probable one; 0 is off
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f32,
    /// Make tokens that occurred before less probable; 1 is off
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f32,
    /// Seed of the random numbers: the same seed gives the same text
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    /// The settings, each checked to be in its range.
    pub fn sampling(&self) -> Result<Sampling> {
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        };
        sampling.validate()?;
        Ok(sampling)
    }
}

/// How rounds draft.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Early exit")]
pub struct DraftArgs {
    /// Draft with layers 0..E, verify with the rest [default: the demo's own; a checkpoint decodes plainly, or
    /// with a quarter of its layers if --policy asks for drafts]
    #[arg(long, value_name = "E")]
    exit_layer: Option<usize>,
    /// Draft length: of each round (fixed), of the first (length), or the longest (confidence) [default: 4]
    #[arg(long, value_name = "D")]
    draft: Option<usize>,
    /// How (E, D) change from round to round: fixed, length, confidence, or off for plain decoding [default:
    /// fixed if --exit-layer is given]
    #[arg(long, value_name = "POLICY", value_parser = value::<Policy>)]
    policy: Option<Policy>,
    /// End a draft at a token less probable than τ [default: 0; confidence adapts its own]
    #[arg(long, value_name = "τ", allow_negative_numbers = true)]
    threshold: Option<f32>,
}

impl DraftArgs {
    /// What the options ask for on a model of `layers` layers that drafts as `default` by itself, if it does.
    ///
    /// # Errors
    /// [`Error::Argument`] for an option out of its range, even where nothing is drafted.
    pub fn drafting(&self, layers: usize, default: Option<Drafting>) -> Result<Drafting> {
        let policy = match (self.policy, self.exit_layer, default) {
            (Some(policy), _, _) => policy,
            (None, Some(_), _) => Policy::Fixed,
            (None, None, Some(default)) => default.policy,
            (None, None, None) => Policy::Off,
        };
        let is_default = self.policy.is_none() && self.exit_layer.is_none();
        let drafting = Drafting {
            policy,
            exit_layer: self.exit_layer.or(default.map(|d| d.exit_layer)).unwrap_or((layers / 4).max(1)),
            draft: self.draft.or(default.map(|d| d.draft)).unwrap_or(DEFAULT_DRAFT),
            // The model's own belongs to its own policy and exit.
            threshold: self.threshold.or(default.filter(|_| is_default).and_then(|d| d.threshold)),
        };
        if drafting.policy == Policy::Off {
            // What is not used must still make sense: a typing error should not go unnoticed.
            let draftable = layers.max(2);
            let exit_layer = self.exit_layer.unwrap_or(1);
            Policy::Fixed.build(draftable, exit_layer, drafting.draft, drafting.threshold)?;
        }
        drafting.build(layers)?;
        Ok(drafting)
    }
}

/// A choice of policy with its settings; each sequence gets a policy of its own from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drafting {
    /// The policy; [`Policy::Off`] decodes plainly.
    pub policy: Policy,
    /// Exit layer, E.
    pub exit_layer: usize,
    /// Draft length, d.
    pub draft: usize,
    /// Confidence under which a draft ends, τ.
    pub threshold: Option<f32>,
}

impl Drafting {
    /// A policy for one sequence of a model of `layers` layers; None decodes plainly.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range.
    pub fn build(&self, layers: usize) -> Result<Option<Box<dyn ExitPolicy>>> {
        self.policy.build(layers, self.exit_layer, self.draft, self.threshold)
    }

    /// The longest draft that it asks of a model of `layers` layers: what a generator's buffers must hold.
    ///
    /// # Errors
    /// As [`Drafting::build`].
    pub fn max_draft(&self, layers: usize) -> Result<usize> {
        Ok(self.build(layers)?.map_or(0, |policy| policy.max_draft()))
    }
}

/// One prompt, as text or as ids.
#[derive(clap::Args, Clone, Debug)]
#[group(id = "one_prompt", multiple = false)]
pub struct PromptArgs {
    /// Text to go on from; BOS is added if the tokenizer adds it
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Token ids to go on from, taken as they are: 1,2,3
    #[arg(long, value_name = "IDS", allow_hyphen_values = true)]
    prompt_ids: Option<String>,
}

impl PromptArgs {
    /// Whether no prompt was given.
    pub fn is_none(&self) -> bool {
        self.prompt.is_none() && self.prompt_ids.is_none()
    }

    /// The prompt's ids; None if there is no prompt.
    ///
    /// # Errors
    /// An empty prompt, ids that are none, or no tokenizer for a text.
    pub fn ids(&self, loaded: &Loaded) -> Result<Option<Vec<u32>>> {
        match (&self.prompt, &self.prompt_ids) {
            (Some(text), _) if text.is_empty() => {
                Err(Error::argument("--prompt", "is empty: give some text to go on from"))
            }
            (Some(text), _) => loaded.encode("--prompt", "", text).map(Some),
            (None, Some(ids)) => parse_ids(ids).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// Parses `1,2,3`.
fn parse_ids(text: &str) -> Result<Vec<u32>> {
    let id = |word: &str| {
        word.trim().parse::<u32>().map_err(|_| {
            Error::argument(
                "--prompt-ids",
                format!("'{}' is no token id; give ids as in 1,2,3", printable(word)),
            )
        })
    };
    text.split(',').map(id).collect()
}
