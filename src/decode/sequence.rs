//! One sequence of a batch: what was asked for, what has come of it, what it cost.

use super::{
    policy::{ExitPolicy, MAX_DRAFT, Round},
    sampling::{Sampler, Sampling},
};

/// What to generate.
pub struct Request {
    /// Ids to go on from, at least one. Taken as they are.
    pub prompt: Vec<u32>,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// How rounds draft; None decodes plainly.
    pub policy: Option<Box<dyn ExitPolicy>>,
    /// Ids that end the sequence.
    pub eos: Vec<u32>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// An end-of-sequence id was generated; it is the last id.
    Eos,
    /// As many tokens as asked for.
    Length,
    /// Prompt and generated tokens fill the context.
    Context,
    /// A stop string appeared.
    String,
    /// The caller or the user asked to end.
    Interrupted,
}

impl Stop {
    /// The name as `--json` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Stop::Eos => "eos",
            Stop::Length => "length",
            Stop::Context => "context",
            Stop::String => "string",
            Stop::Interrupted => "interrupted",
        }
    }
}

/// What a sequence cost so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Prompt tokens that were computed: all but the last, less what was shared with another sequence.
    pub prefill_tokens: usize,
    /// Seconds that the prompt took: of passes with rows of several prompts, the share of its own.
    pub prefill_seconds: f64,
    /// Seconds of the rounds this sequence took part in.
    pub decode_seconds: f64,
    /// Tokens generated.
    pub generated: usize,
    /// Verifications: passes through the last layer. In plain decoding one per token.
    pub rounds: usize,
    /// Drafts that were verified.
    pub drafted: usize,
    /// Drafts that were kept.
    pub accepted: usize,
    /// Rounds by number of accepted drafts; rounds without a draft are not counted.
    pub histogram: [usize; MAX_DRAFT + 1],
    /// Bytes of weights and cached keys and values that decoding read. In a batch, every sequence counts the whole
    /// round's weights.
    pub decode_bytes: u64,
    /// Exit layer of the last round that drafted; 0 before there is one.
    pub exit_layer: usize,
    /// Draft length that the last round asked for.
    pub draft: usize,
}

impl Stats {
    /// Prompt tokens per second, 0 for a prompt of one token.
    pub fn prefill_tokens_per_s(&self) -> f64 {
        per_second(self.prefill_tokens, self.prefill_seconds)
    }

    /// Generated tokens per second.
    pub fn decode_tokens_per_s(&self) -> f64 {
        per_second(self.generated, self.decode_seconds)
    }

    /// Share of the verified drafts that were kept; None before there are any.
    pub fn acceptance(&self) -> Option<f64> {
        (self.drafted > 0).then(|| self.accepted as f64 / self.drafted as f64)
    }

    /// Tokens per verification.
    pub fn tokens_per_round(&self) -> f64 {
        if self.rounds == 0 { 0.0 } else { self.generated as f64 / self.rounds as f64 }
    }

    /// Bytes per second that decoding read.
    pub fn bytes_per_s(&self) -> f64 {
        if self.decode_seconds > 0.0 { self.decode_bytes as f64 / self.decode_seconds } else { 0.0 }
    }
}

fn per_second(tokens: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}

/// A live sequence. Between rounds the cache holds the keys and values of all its tokens but the last.
pub(super) struct Sequence {
    /// Tells sequences apart that had the same slot one after the other.
    pub epoch: u64,
    /// Slot in the cache.
    pub cached: usize,
    /// Prompt and generated ids.
    pub tokens: Vec<u32>,
    /// Length of the prompt in `tokens`.
    pub prompt: usize,
    /// Leading tokens that were computed as prompt rows: all of the prompt but its last, less what
    /// [`super::Generator::resume`] kept of generated ones.
    pub prefilled: usize,
    pub max_tokens: usize,
    pub sampler: Sampler,
    pub policy: Option<Box<dyn ExitPolicy>>,
    pub eos: Vec<u32>,
    pub stop: Option<Stop>,
    pub stats: Stats,
    /// The round in progress.
    pub round: Drafting,
    /// Statistics of the last round, until the policy has seen them.
    pub finished: Option<Round>,
    /// Draft distributions, `[max_draft, vocab]`; empty when greedy.
    pub q: Vec<f32>,
    /// Hash of the logits that the last token was chosen from.
    pub logits_hash: u64,
}

/// A round in progress of one sequence.
#[derive(Clone, Debug, Default)]
pub(super) struct Drafting {
    /// Exit layer, 0 for a plain step.
    pub exit_layer: usize,
    /// Draft length asked for by the policy.
    pub asked: usize,
    /// Most drafts of this round, after all limits.
    pub limit: usize,
    pub threshold: f32,
    /// Drafted ids.
    pub drafts: Vec<u32>,
    /// Confidence of each draft; only where a threshold asks for it.
    pub confidence: Vec<f32>,
    /// Rows that went through the first layers: the last token's and the drafts' but those that end a draft.
    pub rows: usize,
    /// No more drafts in this round.
    pub closed: bool,
    /// First row in the exit-hidden buffer, and later in the verification.
    pub base: usize,
}

impl Sequence {
    /// How many more tokens there may be.
    pub fn remaining(&self, context: usize) -> usize {
        let generated = self.tokens.len() - self.prompt;
        (self.max_tokens - generated).min(context - self.tokens.len())
    }

    /// Which limit it is that [`Sequence::remaining`] has come to.
    pub fn limit_reached(&self) -> Stop {
        let generated = self.tokens.len() - self.prompt;
        if generated == self.max_tokens { Stop::Length } else { Stop::Context }
    }

    /// Takes down a finished round that generated so many tokens.
    pub fn settle(&mut self, generated: usize, round: Round) {
        let stats = &mut self.stats;
        stats.generated += generated;
        stats.rounds += 1;
        stats.drafted += round.drafted;
        stats.accepted += round.accepted;
        if round.drafted > 0 {
            stats.histogram[round.accepted] += 1;
            self.finished = Some(round);
        }
    }

    /// The token at index `i` of the round: the last one, then the drafts.
    pub fn round_token(&self, i: usize) -> u32 {
        if i == 0 { self.tokens[self.tokens.len() - 1] } else { self.round.drafts[i - 1] }
    }
}
