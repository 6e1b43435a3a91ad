//! The two ends of a round: `cuda/kernels/accept.cu`. Start from [`Accept`]; what it works on is described in
//! `cuda/include/wl_round.h`.

use std::sync::Arc;

use super::{
    Check, Module, Rows, RowsMut,
    geometry::{Geometry, geometry},
    manifest::{About, texts},
    params::{WL_VERSION, WlAccept, WlChoice, WlPlan, WlRound, WlRoundBegin, WlSequence},
    sample::{MAX_DRAFT, MAX_ROWS, MAX_VOCAB, RoundRows},
};
use crate::{
    driver::{Driver, Function, Stream, View, ViewMut},
    error::Result,
};

/// Begins rounds, and ends them: keeps the longest prefix of drafts that the verifier agrees with (greedy), or each with probability
/// min(1, p/q) (sampled, arXiv 2211.17192), and one token of the verifier's after them.
pub struct Accept {
    begin: Function,
    accept: Function,
}

/// What [`Accept::begin`] takes.
#[derive(Debug)]
pub struct BeginArgs<'b> {
    /// Number of sequences.
    pub slots: usize,
    /// `WlPlan` `[slots]`.
    pub plans: View<'b>,
    /// `WlSequence` `[slots]`.
    pub states: ViewMut<'b>,
    /// Where the rows of the round go; those that no plan names become dead.
    pub round: RoundRows<'b>,
    /// i32 `[draft_rows]`: the keys of each row's sequence, those of the round's rows included; 0 where no plan has the row.
    pub draft_lengths: Option<ViewMut<'b>>,
    /// i32 `[slots]`: the same by the plans' `verify_group`.
    pub verify_lengths: Option<ViewMut<'b>>,
}

/// The logits that drafts were drawn from, and those of the verification.
#[derive(Debug)]
pub struct AcceptLogits<'b> {
    /// Draft steps whose logits there are.
    pub steps: usize,
    /// Rows of a step.
    pub draft_rows: usize,
    /// f32 `[steps, draft_rows, vocab]`.
    pub draft: Rows<'b>,
    /// Elements from a step's first to the next one's.
    pub draft_step_stride: usize,
    /// f32 `[verify_rows, vocab]`.
    pub verify: Rows<'b>,
}

/// What [`Accept::launch`] takes.
#[derive(Debug)]
pub struct AcceptArgs<'b> {
    /// Number of sequences.
    pub slots: usize,
    /// Tokens of the vocabulary, up to [`MAX_VOCAB`].
    pub vocab: usize,
    /// `WlSequence` `[slots]`.
    pub states: ViewMut<'b>,
    /// `WlRound` `[slots]`: what came of the round, for the host.
    pub rounds: ViewMut<'b>,
    /// u32 `[slots, ⌈vocab / 32⌉]`, as for sampling; the round's tokens are added.
    pub seen: Option<RowsMut<'b>>,
    /// `WlChoice` `[slots, MAX_DRAFT]`.
    pub draft_choices: View<'b>,
    /// The row of the verification that the choices and logits begin with.
    pub verify_first: usize,
    /// Their number; sequences that have other rows are left for another launch.
    pub verify_rows: usize,
    /// `WlChoice` `[verify_rows]`.
    pub verify_choices: View<'b>,
    /// None where all sequences that draft are greedy; one that is not ends with `WL_STOP_NO_LOGITS`.
    pub logits: Option<AcceptLogits<'b>>,
}

const BEGIN: Geometry<WlRoundBegin> = geometry! {
    WlRoundBegin {} [WL_ROUND_BEGIN_THREADS]
    grid: [1, 1, 1],
    block: WL_ROUND_BEGIN_THREADS,
    shared: 0,
};

const ACCEPT: Geometry<WlAccept> = geometry! {
    WlAccept { slots } [WL_ACCEPT_THREADS]
    grid: [slots, 1, 1],
    block: WL_ACCEPT_THREADS,
    shared: 0,
};

/// For the manifest.
pub(super) fn about(entry: &str) -> About {
    match entry {
        "wl_round_begin" => About {
            requires: texts(&[
                "0 <= slots",
                "1 <= steps",
                "steps <= WL_MAX_DRAFT + 1",
                "0 <= draft_rows",
                "0 <= verify_rows",
            ]),
            ..About::new(
                "WlRoundBegin",
                "begins a speculative round of every sequence that has a plan",
                BEGIN.text,
            )
        },
        _ => About {
            when: "after the choices of the round's drafts and of its verification",
            requires: texts(&[
                "1 <= slots",
                "1 <= vocab",
                "vocab <= WL_SAMPLE_VOCAB",
                "0 <= steps",
                "steps <= WL_MAX_DRAFT",
                "0 <= draft_rows",
                "0 <= verify_first",
                "0 <= verify_rows",
            ]),
            ..About::new(
                "WlAccept",
                "ends a speculative round: keeps the accepted drafts and one token more",
                ACCEPT.text,
            )
        },
    }
}

impl Accept {
    /// Loads the kernels.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn load(driver: &Arc<dyn Driver>) -> Result<Self> {
        let module = Module::load(driver, "accept")?;
        Ok(Accept { begin: module.function("wl_round_begin")?, accept: module.function("wl_accept_f32")? })
    }

    /// Enqueues the beginning of a round: the first rows of every sequence that has a plan and has not ended.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for shapes, sizes and addresses that do not fit;
    /// [`Error::Device`](crate::Error::Device).
    pub fn begin(&self, stream: &Stream, args: &BeginArgs) -> Result<()> {
        let (steps, draft_rows, verify_rows, draft, verify) = args.round.check()?;
        let slots = Check::of("slots").count(args.slots, 0..=MAX_ROWS)?;
        let mut p = WlRoundBegin {
            version: WL_VERSION,
            slots,
            steps,
            draft_rows,
            verify_rows,
            plans: Check::of("plans").view(args.plans, args.slots, size_of::<WlPlan>())?,
            states: Check::of("states").view_mut(&args.states, args.slots, size_of::<WlSequence>())?,
            draft,
            verify,
            ..WlRoundBegin::default()
        };
        if let Some(lengths) = &args.draft_lengths {
            p.draft_lengths = Check::of("draft_lengths").view_mut(lengths, draft_rows as usize, 4)?;
        }
        if let Some(lengths) = &args.verify_lengths {
            p.verify_lengths = Check::of("verify_lengths").view_mut(lengths, args.slots, 4)?;
        }
        // SAFETY: the sizes above cover all that the kernel touches; rows that plans name, it checks.
        unsafe { stream.launch(&self.begin, &BEGIN.launch(&p)) }
    }

    /// Enqueues the end of a round.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for shapes, sizes and addresses that do not fit;
    /// [`Error::Device`](crate::Error::Device).
    pub fn launch(&self, stream: &Stream, args: &AcceptArgs) -> Result<()> {
        let &AcceptArgs { slots, vocab, verify_rows, .. } = args;
        let mut p = WlAccept {
            version: WL_VERSION,
            slots: Check::of("slots").count(slots, 0..=MAX_ROWS)?,
            vocab: Check::of("vocab").count(vocab, 1..=MAX_VOCAB)?,
            verify_first: Check::of("verify_first").count(args.verify_first, 0..=MAX_ROWS)?,
            verify_rows: Check::of("verify_rows").count(verify_rows, 0..=MAX_ROWS)?,
            states: Check::of("states").view_mut(&args.states, slots, size_of::<WlSequence>())?,
            rounds: Check::of("rounds").view_mut(&args.rounds, slots, size_of::<WlRound>())?,
            draft_choices: Check::of("draft_choices").view(
                args.draft_choices,
                slots * MAX_DRAFT,
                size_of::<WlChoice>(),
            )?,
            verify_choices: Check::of("verify_choices").view(
                args.verify_choices,
                verify_rows,
                size_of::<WlChoice>(),
            )?,
            ..WlAccept::default()
        };
        if let Some(seen) = &args.seen {
            (p.seen, p.seen_stride) = Check::of("seen").rows_mut(seen, slots, vocab.div_ceil(32), 4)?;
        }
        if let Some(logits) = &args.logits {
            p.steps = Check::of("draft_steps").count(logits.steps, 0..=MAX_DRAFT)?;
            p.draft_rows = Check::of("draft_rows").count(logits.draft_rows, 0..=MAX_ROWS)?;
            let check = Check::of("draft_logits");
            let step = check.matrix(logits.draft.stride, logits.draft_rows, vocab)?;
            let all = Check::of("draft_step_stride").matrix(logits.draft_step_stride, logits.steps, step)?;
            p.draft_logits = check.view(logits.draft.view, all, 4)?;
            p.draft_stride = logits.draft.stride as i64;
            p.draft_step_stride = logits.draft_step_stride as i64;
            (p.verify_logits, p.verify_stride) =
                Check::of("verify_logits").rows(&logits.verify, verify_rows, vocab, 4)?;
        }
        if slots == 0 {
            return Ok(());
        }
        // SAFETY: the sizes above cover all that the kernel touches; rows and tokens that it reads from memory, it checks.
        unsafe { stream.launch(&self.accept, &ACCEPT.launch(&p)) }
    }
}
