//! Rounds of speculative decoding that stay on a device: between two accepted tokens the host only launches.
//!
//! Start from [`Round`], what a backend keeps of the rounds of a batch. Rows of a round lie where the plan puts them: row i of a sequence
//! (its last token, then its drafts) is row `draft_row` of draft step i and row `verify_row + i` of the verification. How many of them live
//! is known on the device alone, until [`Round::collect`] asks. Up to [`IN_FLIGHT`] rounds may be on their way at a time, each going on
//! where the one before it ends, so that the device need not wait for the host.
//!
//! What a round launches depends on its [`RoundShape`]s alone: everything else is in device memory. Launches of a shape that comes again
//! can be recorded, and then run at one call.

use std::convert::Infallible;

use super::{Backend, Input};
use crate::{cache::Cache, error::Result};

/// Sizes of a [`Round`], all allocated when it is made.
#[derive(Clone, Copy, Debug)]
pub struct RoundSizes {
    /// Slots of sequences.
    pub slots: usize,
    /// Most drafts of a sequence's round.
    pub max_draft: usize,
    /// Ids of the vocabulary.
    pub vocab: usize,
}

/// How a sequence's tokens are chosen, and what ends it.
#[derive(Clone, Copy, Debug)]
pub struct RoundSequence<'a> {
    /// Its slot.
    pub slot: usize,
    /// Its slot in the cache.
    pub cached: usize,
    /// Ids so far. The last one is not in the cache yet.
    pub tokens: &'a [u32],
    /// Most ids to generate, at least 1.
    pub remaining: usize,
    /// Ids that end it.
    pub eos: &'a [u32],
    /// Divisor of the logits; 0 is greedy.
    pub temperature: f32,
    /// Keep the `top_k` most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest tokens that make up so much probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least so many times as probable as the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Penalty of tokens seen before; 1 is off.
    pub repetition_penalty: f32,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// What is asked of one sequence's round.
#[derive(Clone, Copy, Debug)]
pub struct RoundPlan {
    /// Its slot.
    pub slot: usize,
    /// Its slot in the cache.
    pub cached: usize,
    /// Its row in every draft step.
    pub draft_row: usize,
    /// Its first row of the verification.
    pub verify_row: usize,
    /// Most drafts; 0 is a plain step.
    pub draft: usize,
    /// Layers that draft.
    pub exit_layer: usize,
    /// A draft less probable than this ends the draft.
    pub threshold: f32,
    /// Most keys that its rows see: a power of two, since a graph has it in it.
    pub keys: usize,
}

impl RoundPlan {
    /// Whether the draft may end by its confidence.
    pub fn ends_early(&self) -> bool {
        self.draft > 0 && self.threshold > 0.0
    }
}

/// Rounds that may be on their way at a time.
pub const IN_FLIGHT: usize = 2;

/// What the launches of a round depend on, for each of its plans in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundShape {
    /// Most drafts.
    pub draft: usize,
    /// Layers that draft.
    pub exit_layer: usize,
    /// Most keys of all plans, which attention is launched for.
    pub keys: usize,
    /// Whether any draft may end by its confidence: its passes then fetch no more weights ahead than they must.
    pub ends_early: bool,
}

/// What a backend has recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recordings {
    /// Graphs, one a shape.
    pub graphs: usize,
    /// How many there may be: for another one, that which has not been used the longest makes room.
    pub most: usize,
    /// Launches and copies of all of them.
    pub nodes: usize,
    /// Device memory that they take in bytes, as far as the device tells.
    pub bytes: u64,
    /// Rounds that were one launch of a graph.
    pub replayed: u64,
}

/// What came of one sequence's round.
#[derive(Clone, Debug, Default)]
pub struct RoundOutcome {
    /// Ids in order: accepted drafts, then the verifier's own.
    pub ids: Vec<u32>,
    /// Drafts that were verified.
    pub drafted: usize,
    /// Drafts that were kept.
    pub accepted: usize,
    /// Sum of the kept drafts' confidences.
    pub matched: f32,
    /// Confidence of the first draft that was not kept, or 0.
    pub mismatched: f32,
    /// Position of a row whose logits were not finite.
    pub not_finite: Option<usize>,
    /// Hashes of the logits that the ids were chosen from ([`logits_hash`](crate::decode::logits_hash)).
    pub hashes: Vec<u64>,
}

/// Where the rounds of a batch are kept.
///
/// # Errors
/// Every method fails where the device does.
pub trait Round<B: Backend + ?Sized>: Send + Sized {
    /// Begins a sequence in a slot.
    fn begin_sequence(&mut self, backend: &B, sequence: &RoundSequence) -> Result<()>;
    /// Takes a round's plans and page tables to the device.
    fn plan(&mut self, backend: &B, plans: &[RoundPlan], kv: &mut B::Kv, cache: &Cache) -> Result<()>;
    /// Runs the recorded launches of a round of this shape. False if there are none: they are to be launched one by one.
    fn replay(&mut self, backend: &B, shape: &[RoundShape]) -> Result<bool>;
    /// Whether the launches of the round to come are recorded, and not run yet; [`Round::end_recording`] must follow them then.
    fn begin_recording(&mut self, backend: &B, shape: &[RoundShape]) -> Result<bool>;
    /// Keeps what was recorded, and runs it. False if nothing of it runs: without `whole`, and where the device cannot.
    fn end_recording(&mut self, backend: &B, shape: &[RoundShape], whole: bool) -> Result<bool>;
    /// Begins a round: rows and lengths are where the passes want them.
    fn begin(&mut self, backend: &B) -> Result<()>;
    /// Rows `from..to` of draft step `step`.
    fn draft_rows(&mut self, step: usize, from: usize, to: usize) -> Result<&B::Rows>;
    /// The first `rows` rows of the verification.
    fn verify_rows(&mut self, rows: usize) -> Result<&B::Rows>;
    /// Drafts from rows `from..` of draft step `step`, of which `input` is the residual stream: the next step's rows follow from it.
    fn draft(
        &mut self,
        backend: &B,
        step: usize,
        from: usize,
        input: Input<B>,
        head: &B::Weight,
    ) -> Result<()>;
    /// Keeps drafts, or replaces the first that does not hold; `input` is the residual stream of the verification.
    fn accept(&mut self, backend: &B, input: Input<B>, head: &B::Weight) -> Result<()>;
    /// Sends what comes of the plans to the host. Up to [`IN_FLIGHT`] rounds may be posted that have not been collected.
    fn post(&mut self, backend: &B) -> Result<()>;
    /// Waits for the oldest round that was posted, and takes what came of it.
    fn collect(&mut self, backend: &B) -> Result<()>;
    /// What came of the collected round's plan with this index.
    fn outcome(&self, index: usize) -> &RoundOutcome;
    /// The logits of a row of the last round's verification, on the host.
    fn logits(&mut self, backend: &B, row: usize) -> Result<&[f32]>;
    /// What has been recorded.
    fn recordings(&self) -> Recordings;
}

/// Of backends whose rounds the host drives.
impl<B: Backend + ?Sized> Round<B> for Infallible {
    fn begin_sequence(&mut self, _: &B, _: &RoundSequence) -> Result<()> {
        match *self {}
    }
    fn plan(&mut self, _: &B, _: &[RoundPlan], _: &mut B::Kv, _: &Cache) -> Result<()> {
        match *self {}
    }
    fn replay(&mut self, _: &B, _: &[RoundShape]) -> Result<bool> {
        match *self {}
    }
    fn begin_recording(&mut self, _: &B, _: &[RoundShape]) -> Result<bool> {
        match *self {}
    }
    fn end_recording(&mut self, _: &B, _: &[RoundShape], _: bool) -> Result<bool> {
        match *self {}
    }
    fn begin(&mut self, _: &B) -> Result<()> {
        match *self {}
    }
    fn draft_rows(&mut self, _: usize, _: usize, _: usize) -> Result<&B::Rows> {
        match *self {}
    }
    fn verify_rows(&mut self, _: usize) -> Result<&B::Rows> {
        match *self {}
    }
    fn draft(&mut self, _: &B, _: usize, _: usize, _: Input<B>, _: &B::Weight) -> Result<()> {
        match *self {}
    }
    fn accept(&mut self, _: &B, _: Input<B>, _: &B::Weight) -> Result<()> {
        match *self {}
    }
    fn post(&mut self, _: &B) -> Result<()> {
        match *self {}
    }
    fn collect(&mut self, _: &B) -> Result<()> {
        match *self {}
    }
    fn outcome(&self, _: usize) -> &RoundOutcome {
        match *self {}
    }
    fn logits(&mut self, _: &B, _: usize) -> Result<&[f32]> {
        match *self {}
    }
    fn recordings(&self) -> Recordings {
        match *self {}
    }
}
