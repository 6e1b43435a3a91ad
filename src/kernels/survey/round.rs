//! A round of speculative decoding but for its forward passes: beginning, choices, acceptance.

use bytemuck::Zeroable;

use super::{Bytes, Survey, bytes};
use crate::{
    driver::{Buffer, ViewMut},
    error::Result,
    kernels::{
        AcceptArgs, AcceptLogits, BeginArgs, MAX_DRAFT, RoundRows, RowTable, Rows, Sample, SampleArgs,
        SamplePass,
        params::{WlChoice, WlPlan, WlRound, WlSequence},
    },
};

/// Drafts of the round whose tokens are drawn.
pub(super) const DRAFTS: usize = 4;

/// A round of as many rows as there are decode rows, greedy; and one of [`DRAFTS`] drafts that are drawn.
pub(super) fn cases(survey: &mut Survey) -> Result<()> {
    let drafts = (survey.shapes.rows - 1).min(MAX_DRAFT);
    round(survey, "greedy", drafts, 0.0)?;
    round(survey, "temperature 0.8, top-p 0.9", DRAFTS, 0.8)
}

/// A round of one sequence.
fn round(survey: &mut Survey, sampling: &str, drafts: usize, temperature: f32) -> Result<()> {
    let vocab = survey.shapes.vocab;
    let (steps, rows) = (drafts + 1, drafts + 1);
    let state = WlSequence {
        temperature,
        top_p: if temperature > 0.0 { 0.9 } else { 1.0 },
        repetition_penalty: 1.0,
        remaining: 1 << 20,
        length: 1,
        verify_row: -1,
        ..WlSequence::zeroed()
    };
    let plan = WlPlan { asked: drafts as i32, ..WlPlan::zeroed() };
    let plans = Buffer::from_slice(&survey.stream, &[plan])?;
    let states = Buffer::from_slice(&survey.stream, &[state])?;
    let rounds = Buffer::from_slice(&survey.stream, &[WlRound::zeroed()])?;
    let tables: Vec<Buffer> = (0..6).map(|_| survey.numbers(0..steps)).collect::<Result<_>>()?;
    let draft_logits = logits(survey, drafts.max(1), vocab, 1)?;
    let verify_logits = logits(survey, rows, vocab, 2)?;
    let draft_choices = survey.filled(MAX_DRAFT * size_of::<WlChoice>())?;
    let verify_choices = survey.filled(rows * size_of::<WlChoice>())?;
    let scratch = survey.zeros(Sample::scratch_bytes(rows, vocab))?;
    let hashes = survey.filled(8 * rows)?;
    let round_rows = || {
        let view = |i: usize| tables[i].view_to_share();
        let table = |i: usize| RowTable { tokens: view(i), positions: view(i + 1), sequences: view(i + 2) };
        RoundRows { steps, draft_rows: 1, draft: table(0), verify_rows: rows, verify: table(3) }
    };
    // Of the sequence four numbers are read, and ten are written; all rows are.
    let (lengths, verify_lengths) = (survey.numbers([0])?, survey.numbers([0])?);
    let begun = bytes(size_of::<WlPlan>() + 16, 40 + 8 + 12 * (steps + rows));
    survey.launch(&format!("1 sequence, {drafts} drafts"), true, &[begun], |kernels, stream| {
        let (plans, states) = (plans.view(), states.view_to_share());
        let (draft_lengths, verify_lengths) =
            (Some(lengths.view_to_share()), Some(verify_lengths.view_to_share()));
        let args = BeginArgs { slots: 1, plans, states, round: round_rows(), draft_lengths, verify_lengths };
        kernels.accept.begin(stream, &args)
    })?;
    let row = 4 * vocab;
    let choose = |survey: &mut Survey, pass: SamplePass, count: usize, logits: Rows, choices: ViewMut| {
        let name = if pass == SamplePass::Verify { "verify" } else { "draft" };
        let hashed = if pass == SamplePass::Verify { 8 } else { 0 };
        let compulsory = bytes(count * row, count * (size_of::<WlChoice>() + hashed));
        survey.launch(
            &format!("{name}: {count} × {vocab}, {sampling}"),
            true,
            &[compulsory],
            |kernels, stream| {
                let args = SampleArgs {
                    pass,
                    rows: 0..count,
                    vocab,
                    logits,
                    round: round_rows(),
                    slots: 1,
                    states: states.view_to_share(),
                    seen: None,
                    choices,
                    probabilities: None,
                    hashes: (pass == SamplePass::Verify).then(|| hashes.view_to_share()),
                    scratch: scratch.view_to_share(),
                };
                kernels.sample.launch(stream, &args)
            },
        )
    };
    // Every step is as the first one: it is noted once.
    let noted = survey.launches.len();
    for step in 0..drafts {
        let logits = Rows { view: draft_logits.view().slice(step * row..(step + 1) * row), stride: vocab };
        choose(survey, SamplePass::Draft { step }, 1, logits, draft_choices.view_to_share())?;
    }
    survey.launches.truncate(noted + 1);
    let logits = Rows { view: verify_logits.view(), stride: vocab };
    choose(survey, SamplePass::Verify, rows, logits, verify_choices.view_to_share())?;
    let drawn = (temperature > 0.0).then(|| AcceptLogits {
        steps: drafts,
        draft_rows: 1,
        draft: Rows { view: draft_logits.view(), stride: vocab },
        draft_step_stride: vocab,
        verify: logits,
    });
    // With random logits a draft is refused: then the two rows in question are read.
    let refused = if temperature > 0.0 { 2 * row } else { 0 };
    let choices = (drafts + rows) * size_of::<WlChoice>();
    let compulsory = Bytes { read: (choices + refused) as u64, written: 4 * rows as u64 };
    survey.launch(&format!("{drafts} drafts, {sampling}"), true, &[compulsory], |kernels, stream| {
        let args = AcceptArgs {
            slots: 1,
            vocab,
            states: states.view_to_share(),
            rounds: rounds.view_to_share(),
            seen: None,
            draft_choices: draft_choices.view(),
            verify_first: 0,
            verify_rows: rows,
            verify_choices: verify_choices.view(),
            logits: drawn,
        };
        kernels.accept.launch(stream, &args)
    })
}

/// Logits between −8 and 8, no two rows alike.
fn logits(survey: &Survey, rows: usize, vocab: usize, seed: u64) -> Result<Buffer> {
    let mut x = seed;
    let numbers: Vec<f32> = (0..rows * vocab)
        .map(|_| {
            // Knuth's MMIX generator, its upper bits.
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 40) as f32 / (1 << 20) as f32 - 8.0
        })
        .collect();
    Buffer::from_slice(&survey.stream, &numbers)
}
