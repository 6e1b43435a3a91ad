//! Sampling: `cuda/kernels/sample.cu`. Start from [`Sample`]; what it works on is described in `cuda/include/wl_round.h`.

use std::{ops::Range, sync::Arc};

use super::{
    Check, Module, Rows, RowsMut,
    geometry::{Geometry, geometry},
    manifest::{About, apart, texts},
    params::{
        WL_MAX_DRAFT, WL_SAMPLE_DRAFT, WL_SAMPLE_ROWS, WL_SAMPLE_VERIFY, WL_SAMPLE_VOCAB, WL_VERSION,
        WlChoice, WlRows, WlSample, WlSequence,
    },
};
use crate::{
    driver::{Driver, Function, Stream, ViewMut},
    error::Result,
};

/// The most drafts of a round.
pub const MAX_DRAFT: usize = WL_MAX_DRAFT as usize;

/// The largest vocabulary that is supported.
pub const MAX_VOCAB: usize = WL_SAMPLE_VOCAB as usize;

/// Chooses a token from each row of logits: greedily, or at random after repetition penalty, temperature, top-k, top-p and min-p, by the
/// settings of the row's sequence, as `decode::sampling::Sampler` does on the host.
///
/// Random numbers are Philox4x32-10's at (seed, sequence id, position, use): a row's choice depends on neither its slot nor its company.
pub struct Sample {
    function: Function,
}

// As errors name them.
pub(crate) const DRAFT: [&str; 3] = ["round.draft.tokens", "round.draft.positions", "round.draft.sequences"];
pub(crate) const VERIFY: [&str; 3] =
    ["round.verify.tokens", "round.verify.positions", "round.verify.sequences"];

/// Rows of a forward pass in device memory, three i32 arrays; see `WlRows`.
#[derive(Debug)]
pub struct RowTable<'b> {
    /// i32 `[rows]`: ids.
    pub tokens: ViewMut<'b>,
    /// i32 `[rows]`: positions in the sequence; −1 is a dead row.
    pub positions: ViewMut<'b>,
    /// i32 `[rows]`: slots of sequences.
    pub sequences: ViewMut<'b>,
}

impl RowTable<'_> {
    fn check(&self, names: [&'static str; 3], rows: usize) -> Result<WlRows> {
        let [tokens, positions, sequences] = names.map(Check::of);
        Ok(WlRows {
            tokens: tokens.view_mut(&self.tokens, rows, 4)?,
            positions: positions.view_mut(&self.positions, rows, 4)?,
            sequences: sequences.view_mut(&self.sequences, rows, 4)?,
        })
    }
}

/// The rows of a round: those of every draft step, and those of the verification.
#[derive(Debug)]
pub struct RoundRows<'b> {
    /// Draft steps, the most drafts of a round and one; up to 17.
    pub steps: usize,
    /// Rows of a draft step.
    pub draft_rows: usize,
    /// `[steps, draft_rows]`.
    pub draft: RowTable<'b>,
    /// Rows of the verification.
    pub verify_rows: usize,
    /// `[verify_rows]`.
    pub verify: RowTable<'b>,
}

impl RoundRows<'_> {
    /// Steps, rows of a step, rows of the verification, and the tables of both.
    pub(super) fn check(&self) -> Result<(i32, i32, i32, WlRows, WlRows)> {
        let steps = Check::of("round.steps").count(self.steps, 1..=MAX_DRAFT + 1)?;
        let draft_rows = Check::of("round.draft_rows").count(self.draft_rows, 0..=MAX_ROWS)?;
        let verify_rows = Check::of("round.verify_rows").count(self.verify_rows, 0..=MAX_ROWS)?;
        let draft = self.draft.check(DRAFT, self.steps * self.draft_rows)?;
        Ok((steps, draft_rows, verify_rows, draft, self.verify.check(VERIFY, self.verify_rows)?))
    }
}

/// Most rows of a launch, and of a table of rows.
pub(super) const MAX_ROWS: usize = 65535;

/// What a launch's rows are, and where its choices go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SamplePass {
    /// Rows of this draft step: each choice is its sequence's next draft. It is written to the sequence and, unless it ends the draft, to the
    /// rows of the next step and of the verification.
    Draft {
        /// The step, from 0.
        step: usize,
    },
    /// Rows of the verification, or plain steps: distributions and most probable tokens; the row behind the last draft is drawn from.
    Verify,
}

/// What [`Sample::launch`] takes.
#[derive(Debug)]
pub struct SampleArgs<'b> {
    /// What the rows are.
    pub pass: SamplePass,
    /// Which rows of the draft step or of the verification, up to 4096; the others are left alone.
    pub rows: Range<usize>,
    /// Tokens of the vocabulary, up to [`MAX_VOCAB`].
    pub vocab: usize,
    /// f32 `[rows, vocab]`; row 0 is that of `rows.start`. Rows that begin at multiples of 16 bytes are the fast ones.
    pub logits: Rows<'b>,
    /// The rows of the round.
    pub round: RoundRows<'b>,
    /// Number of sequences.
    pub slots: usize,
    /// `WlSequence` `[slots]`.
    pub states: ViewMut<'b>,
    /// u32 `[slots, ⌈vocab / 32⌉]`: bit `id` of a row is set if the sequence has seen `id`. None leaves penalties out.
    pub seen: Option<Rows<'b>>,
    /// `WlChoice` `[slots, MAX_DRAFT]` for a draft, `[verify_rows]` for the verification.
    pub choices: ViewMut<'b>,
    /// f32 `[rows, vocab]`: the distributions in full, for those who ask.
    pub probabilities: Option<RowsMut<'b>>,
    /// u64, one for each row of the verification: the hash of its logits ([`logits_hash`](crate::decode::logits_hash)). Those of dead rows
    /// stay as they are.
    pub hashes: Option<ViewMut<'b>>,
    /// [`Sample::scratch_bytes`] bytes: zeros before the first launch, then any launches that do not run at the same time.
    pub scratch: ViewMut<'b>,
}

/// Tickets come first in the scratch, and are as many for all launches: one launch's partial results must not lie where another
/// one's tickets are.
const PARTS: Geometry<WlSample> = geometry! {
    WlSample { rows, vocab } [WL_SAMPLE_PART, WL_SAMPLE_THREADS, WL_SAMPLE_SHARED, WL_SAMPLE_ROWS]
    let parts = ceil_div(vocab, WL_SAMPLE_PART);
    grid: [parts, rows, 1],
    block: WL_SAMPLE_THREADS,
    shared: WL_SAMPLE_SHARED,
    scratch: {
        tickets: 4 * WL_SAMPLE_ROWS, 4 * WL_SAMPLE_ROWS;
        partial: 16 * rows * parts, 0;
    },
};

/// For the manifest.
pub(super) fn about(_entry: &str) -> About {
    let mut requires = texts(&[
        "mode <= WL_SAMPLE_VERIFY",
        "1 <= rows",
        "rows <= WL_SAMPLE_ROWS",
        "1 <= vocab",
        "vocab <= WL_SAMPLE_VOCAB",
        "0 <= slots",
        "1 <= steps",
        "steps <= WL_MAX_DRAFT + 1",
        "0 <= draft_rows",
        "0 <= verify_rows",
    ]);
    requires.extend(apart("rows", "vocab", &["logits_stride"]));
    About {
        requires,
        ..About::new("WlSample", "chooses a token from each row of logits, greedily or at random", PARTS.text)
    }
}

/// Dynamic shared memory of the kernel's entry.
pub(super) fn dynamic_shared_bytes() -> usize {
    PARTS.shared_bytes(&WlSample::default())
}

impl Sample {
    /// Loads the kernel.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn load(driver: &Arc<dyn Driver>) -> Result<Self> {
        Ok(Sample { function: Module::load(driver, "sample")?.function("wl_sample_f32")? })
    }

    /// Bytes of scratch that a launch needs.
    pub fn scratch_bytes(rows: usize, vocab: usize) -> usize {
        let [tickets, partial] = ranges(rows, vocab);
        tickets + partial
    }

    /// Bytes of scratch of a launch of this size, if there can be one.
    #[cfg(feature = "capi")]
    pub(crate) fn check_sizes(rows: usize, vocab: usize) -> Result<usize> {
        Check::of("rows").count(rows, 0..=WL_SAMPLE_ROWS as usize)?;
        Check::of("vocab").count(vocab, 1..=MAX_VOCAB)?;
        Ok(Sample::scratch_bytes(rows, vocab))
    }

    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for shapes, sizes and addresses that do not fit;
    /// [`Error::Device`](crate::Error::Device).
    pub fn launch(&self, stream: &Stream, args: &SampleArgs) -> Result<()> {
        let &SampleArgs { pass, vocab, slots: sequences, .. } = args;
        let slots = Check::of("slots").count(sequences, 0..=MAX_ROWS)?;
        let (steps, draft_rows, verify_rows, draft, verify) = args.round.check()?;
        let (mode, first_step, table, most, choices) = match pass {
            SamplePass::Draft { step } => {
                // The last step's rows have no head: nothing comes after them.
                Check::of("step").count(step, 0..=args.round.steps.saturating_sub(2))?;
                (
                    WL_SAMPLE_DRAFT,
                    step * args.round.draft_rows,
                    draft,
                    args.round.draft_rows,
                    sequences * MAX_DRAFT,
                )
            }
            SamplePass::Verify => {
                (WL_SAMPLE_VERIFY, 0, verify, args.round.verify_rows, args.round.verify_rows)
            }
        };
        if args.rows.start > args.rows.end || args.rows.end > most {
            let std::ops::Range { start, end } = args.rows;
            return Check::of("rows").refuse(format!("from {start} to before {end}; there are {most}"));
        }
        let rows = args.rows.len();
        Check::of("rows").count(rows, 0..=WL_SAMPLE_ROWS as usize)?;
        let offset = 4 * (first_step + args.rows.start) as u64;
        let mut p = WlSample {
            version: WL_VERSION,
            mode,
            rows: rows as i32,
            vocab: Check::of("vocab").count(vocab, 1..=MAX_VOCAB)?,
            slots,
            steps,
            draft_rows,
            verify_rows,
            positions: table.positions + offset,
            sequences: table.sequences + offset,
            states: Check::of("states").view_mut(&args.states, sequences, size_of::<WlSequence>())?,
            choices: Check::of("choices").view_mut(&args.choices, choices, size_of::<WlChoice>())?,
            draft,
            verify,
            ..WlSample::default()
        };
        if pass == SamplePass::Verify {
            p.choices += (args.rows.start * size_of::<WlChoice>()) as u64;
        }
        (p.logits, p.logits_stride) = Check::of("logits").rows(&args.logits, rows, vocab, 4)?;
        (p.seen, p.seen_stride) = check_seen(args.seen.as_ref(), sequences, vocab)?;
        if let Some(full) = &args.probabilities {
            (p.probabilities, p.probabilities_stride) =
                Check::of("probabilities").rows_mut(full, rows, vocab, 4)?;
        }
        if let Some(hashes) = &args.hashes {
            if pass != SamplePass::Verify {
                return Check::of("hashes")
                    .refuse("are of rows of the verification, and this is a draft".into());
            }
            let all = Check::of("hashes").view_mut(hashes, verify_rows as usize, size_of::<u64>())?;
            p.hashes = all + (args.rows.start * size_of::<u64>()) as u64;
        }
        let [tickets, partial] = ranges(rows, vocab);
        p.tickets = Check::of("scratch").bytes(&args.scratch, tickets + partial)?;
        p.partial = p.tickets + tickets as u64;
        if rows == 0 {
            return Ok(());
        }
        // SAFETY: the sizes above cover all that the kernel touches; sequences, positions and rows that it reads from memory, it checks.
        unsafe { stream.launch(&self.function, &PARTS.launch(&p)) }
    }
}

/// Bytes of the tickets, and of the partial results.
fn ranges(rows: usize, vocab: usize) -> [usize; 2] {
    let [rows, vocab] = [rows, vocab].map(|count| i32::try_from(count).unwrap_or(i32::MAX));
    // Of two such counts they fit.
    PARTS.scratch(&WlSample { rows, vocab, ..WlSample::default() }).unwrap_or_default()
}

/// Address and stride of the bits of what sequences have seen; zeros for None.
pub(super) fn check_seen(seen: Option<&Rows>, slots: usize, vocab: usize) -> Result<(u64, i64)> {
    match seen {
        None => Ok((0, 0)),
        Some(seen) => Check::of("seen").rows(seen, slots, vocab.div_ceil(32), 4),
    }
}
