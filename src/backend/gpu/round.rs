//! Rounds that stay on the device: `wl_round.h` tells what passes from kernel to kernel, [`graphs`](super::graphs) how their launches are
//! recorded.

use std::sync::{Arc, atomic::Ordering};

use bytemuck::Zeroable;

use super::{
    Gpu, Paged, SLICE, Weight,
    graphs::Graphs,
    rows::{PassRows, Place, Rotary, padded},
    script::Script,
};
use crate::{
    backend::{
        Angles, IN_FLIGHT, Input, Projection, Recordings, Round, RoundOutcome, RoundPlan, RoundSequence,
        RoundShape, RoundSizes,
    },
    cache::Cache,
    driver::{Buffer, Download},
    error::{Error, Result},
    kernels::{
        AcceptArgs, AcceptLogits, BeginArgs, LinearEpilogue, MAX_DRAFT, RoundRows, RowTable, Rows, RowsMut,
        Sample, SampleArgs, SamplePass,
        params::{WL_MAX_EOS, WL_STOP_NOT_FINITE, WlChoice, WlPlan, WlRound, WlSequence},
    },
};

/// What the rounds of a batch keep on the device, and what the host has of it. Sequences are known by their slots in the cache, which
/// are rows of the page table, too.
pub struct DeviceRound {
    sizes: RoundSizes,
    /// i32: tokens, positions and slots of the draft `[steps, slots]`, then of the verification `[slots · steps]`.
    rows: Arc<Buffer>,
    /// What the host says of a round: see `Layout`.
    planned: Arc<Buffer>,
    host: Vec<i32>,
    plans: Buffer,
    host_plans: Vec<WlPlan>,
    states: Buffer,
    rounds: Buffer,
    /// i32: keys by draft row `[slots]`, then by group of the verification `[slots]`.
    lengths: Arc<Buffer>,
    /// u64 `[slots · steps]`: of the verification's logits.
    hashes: Buffer,
    /// Rounds on their way to the host, in turn.
    mail: [Mail; IN_FLIGHT],
    posted: usize,
    collected: usize,
    graphs: Graphs,
    /// u32 `[slots, ⌈vocab / 32⌉]`.
    seen: Buffer,
    host_seen: Vec<u32>,
    draft_choices: Buffer,
    verify_choices: Buffer,
    /// f32 `[steps, slots, vocab]`: all steps have room; while sequences are greedy, the first one's serves them all, in L2.
    draft_logits: Buffer,
    draws: bool,
    /// f32 `[slots · steps, vocab]`.
    verify_logits: Buffer,
    row: Vec<f32>,
    scratch: Buffer,
    /// The slots and first rows of the verification of the round's plans, in their order.
    order: Vec<(usize, usize)>,
    outcomes: Vec<RoundOutcome>,
    /// Most rows of a sequence in the verification.
    group_rows: usize,
    /// Most keys of a sequence, as the plans have it.
    max_keys: usize,
    /// Whether a draft may end by its confidence.
    ends_early: bool,
    pass: PassRows,
    /// Some in benchmarks alone.
    script: Option<Script>,
}

/// What comes of a round: `WlRound` `[slots]`, the hashes of the verification's rows, and whose they are.
struct Mail {
    rounds: Download,
    hashes: Download,
    order: Vec<(usize, usize)>,
}

/// What the host says of a round, parts of padded length: of draft rows the slots, and where groups of one row begin; of the
/// verification's groups slots and first rows.
enum Layout {
    DraftSlots,
    DraftOffsets,
    VerifySlots,
    VerifyOffsets,
}
const PARTS: usize = 4;

impl DeviceRound {
    pub(super) fn new(gpu: &Gpu, sizes: RoundSizes, angles: &Angles, kv: &Paged) -> Result<Self> {
        let RoundSizes { slots, max_draft, vocab } = sizes;
        if max_draft > MAX_DRAFT {
            return Err(Error::argument(
                "--draft",
                format!("{max_draft}; a device drafts {MAX_DRAFT} at most"),
            ));
        }
        let steps = max_draft + 1;
        let part = padded(slots * steps);
        let buffer = |bytes: usize| Buffer::new(&gpu.driver, bytes);
        let logits = |rows: usize| {
            let bytes = rows.checked_mul(vocab).and_then(|n| n.checked_mul(4));
            buffer(bytes.ok_or_else(|| Error::argument("--draft", "the logits exceed the address space"))?)
        };
        let rows = Arc::new(buffer(4 * 6 * part)?);
        let planned = Arc::new(buffer(4 * PARTS * padded(slots + 1))?);
        let lengths = Arc::new(buffer(4 * 2 * padded(slots))?);
        let words = vocab.div_ceil(32);
        let mail = || {
            Ok(Mail {
                rounds: Download::new(&gpu.driver, slots * size_of::<WlRound>())?,
                hashes: Download::new(&gpu.driver, slots * steps * size_of::<u64>())?,
                order: Vec::with_capacity(slots),
            })
        };
        let mut scratch = buffer(Sample::scratch_bytes(slots * steps, vocab))?;
        gpu.stream.fill(&mut scratch.view_mut(), 0)?;
        let nothing = Place::new(&rows, 0, 0);
        let pass = PassRows::at(
            nothing.clone(),
            nothing.clone(),
            nothing.clone(),
            nothing.clone(),
            nothing.clone(),
            nothing,
            Rotary::new(&gpu.stream, kv.heads, angles)?,
        );
        Ok(DeviceRound {
            sizes,
            rows,
            planned,
            host: vec![0; PARTS * padded(slots + 1)],
            plans: buffer(slots * size_of::<WlPlan>())?,
            host_plans: vec![WlPlan::zeroed(); slots],
            states: Buffer::from_slice(&gpu.stream, &vec![WlSequence::zeroed(); slots])?,
            rounds: Buffer::from_slice(&gpu.stream, &vec![WlRound::zeroed(); slots])?,
            lengths,
            // Those of dead rows are sent along.
            hashes: Buffer::from_slice(&gpu.stream, &vec![0u64; slots * steps])?,
            mail: [mail()?, mail()?],
            posted: 0,
            collected: 0,
            graphs: Graphs::new(gpu.graphs),
            seen: Buffer::from_slice(&gpu.stream, &vec![0u32; slots * words])?,
            host_seen: vec![0; words],
            draft_choices: buffer(slots * MAX_DRAFT * size_of::<WlChoice>())?,
            verify_choices: buffer(slots * steps * size_of::<WlChoice>())?,
            draft_logits: logits(slots * max_draft.max(1))?,
            draws: false,
            verify_logits: logits(slots * steps)?,
            row: vec![0.0; vocab],
            scratch,
            order: Vec::with_capacity(slots),
            outcomes: (0..slots)
                .map(|_| RoundOutcome {
                    ids: Vec::with_capacity(steps),
                    hashes: Vec::with_capacity(steps),
                    ..RoundOutcome::default()
                })
                .collect(),
            group_rows: 0,
            max_keys: 0,
            ends_early: false,
            pass,
            script: match gpu.scripted.load(Ordering::Relaxed) {
                usize::MAX => None,
                kept => Some(Script::new(&gpu.stream, sizes, kept)?),
            },
        })
    }

    fn steps(&self) -> usize {
        self.sizes.max_draft + 1
    }

    /// Table 0 to 2 of the draft's rows, 3 to 5 of the verification's, from row `begin` on.
    fn table(&self, index: usize, begin: usize, count: usize) -> Place {
        Place::new(&self.rows, index * padded(self.sizes.slots * self.steps()) + begin, count)
    }

    fn part(&self, part: Layout, begin: usize, count: usize) -> Place {
        Place::new(&self.planned, part as usize * padded(self.sizes.slots + 1) + begin, count)
    }

    /// Where the host writes a part.
    fn host(&mut self, part: Layout) -> &mut [i32] {
        let length = padded(self.sizes.slots + 1);
        &mut self.host[part as usize * length..][..length]
    }

    /// Elements of a step of the draft's logits, and of the step at which one begins.
    fn draft_logits_at(&self, step: usize) -> usize {
        if self.draws { step * self.sizes.slots * self.sizes.vocab } else { 0 }
    }
}

/// The round's rows as the kernels take them.
fn round_rows(rows: &Buffer, sizes: RoundSizes) -> RoundRows<'_> {
    let steps = sizes.max_draft + 1;
    let all = sizes.slots * steps;
    let table = |first: usize| {
        let view = |index: usize| {
            let begin = 4 * index * padded(all);
            rows.view_to_share().part(begin..begin + 4 * all)
        };
        RowTable { tokens: view(first), positions: view(first + 1), sequences: view(first + 2) }
    };
    RoundRows { steps, draft_rows: sizes.slots, draft: table(0), verify_rows: all, verify: table(3) }
}

impl Round<Gpu> for DeviceRound {
    fn begin_sequence(&mut self, gpu: &Gpu, sequence: &RoundSequence) -> Result<()> {
        let slot = sequence.cached;
        let &RoundSequence { tokens, remaining, eos, repetition_penalty, .. } = sequence;
        if eos.len() > WL_MAX_EOS as usize {
            let reason = format!("{} ids end a sequence; a device takes {WL_MAX_EOS}", eos.len());
            return Err(Error::argument("eos_token_id", reason));
        }
        let Some(token) = tokens.last() else {
            return Err(Error::argument("prompt", "is empty: give at least one token"));
        };
        if self.script.is_some() && sequence.temperature > 0.0 {
            return Err(Error::argument(
                "--temperature",
                "acceptance is scripted for greedy sequences alone",
            ));
        }
        let mut state = WlSequence {
            seed: sequence.seed,
            temperature: sequence.temperature,
            top_k: i32::try_from(sequence.top_k).unwrap_or(i32::MAX),
            top_p: sequence.top_p,
            min_p: sequence.min_p,
            repetition_penalty,
            eos_count: eos.len() as i32,
            length: tokens.len() as i32 - 1,
            token: *token as i32,
            remaining: i32::try_from(remaining).unwrap_or(i32::MAX),
            verify_row: -1,
            ..WlSequence::zeroed()
        };
        for (to, id) in state.eos.iter_mut().zip(eos) {
            *to = *id as i32;
        }
        let bytes = size_of::<WlSequence>();
        let to = slot * bytes..(slot + 1) * bytes;
        gpu.stream.upload(&mut self.states.view_mut().part(to), &[state])?;
        if repetition_penalty != 1.0 {
            self.host_seen.fill(0);
            for id in tokens {
                self.host_seen[*id as usize / 32] |= 1 << (id % 32);
            }
            let bytes = 4 * self.host_seen.len();
            let to = slot * bytes..(slot + 1) * bytes;
            gpu.stream.upload(&mut self.seen.view_mut().part(to), &self.host_seen)?;
        }
        if sequence.temperature > 0.0 && !self.draws && self.sizes.max_draft > 0 {
            // Steps then have logits of their own, which graphs do not know of.
            self.graphs.clear();
            self.draws = true;
        }
        Ok(())
    }

    fn plan(&mut self, gpu: &Gpu, plans: &[RoundPlan], kv: &mut Paged, cache: &Cache) -> Result<()> {
        self.host_plans.fill(WlPlan { verify_row: -1, ..WlPlan::zeroed() });
        self.order.clear();
        (self.group_rows, self.max_keys, self.ends_early) = (0, 0, false);
        for (i, plan) in plans.iter().enumerate() {
            self.group_rows = self.group_rows.max(plan.draft + 1);
            self.max_keys = self.max_keys.max(plan.keys);
            self.ends_early |= plan.ends_early();
            self.order.push((plan.cached, plan.verify_row));
            self.host_plans[plan.cached] = WlPlan {
                verify_row: plan.verify_row as i32,
                draft_row: plan.draft_row as i32,
                asked: plan.draft as i32,
                exit_layer: plan.exit_layer as i32,
                threshold: plan.threshold,
                verify_group: i as i32,
            };
            self.host(Layout::VerifySlots)[i] = plan.cached as i32;
            self.host(Layout::VerifyOffsets)[i] = plan.verify_row as i32;
            self.host(Layout::VerifyOffsets)[i + 1] = (plan.verify_row + plan.draft + 1) as i32;
            if plan.draft > 0 {
                self.host(Layout::DraftSlots)[plan.draft_row] = plan.cached as i32;
            }
            gpu.set_table(kv, cache, plan.cached)?;
        }
        for (i, offset) in self.host(Layout::DraftOffsets).iter_mut().enumerate() {
            *offset = i as i32;
        }
        gpu.stream.upload(&mut self.planned.view_to_share(), &self.host)?;
        gpu.stream.upload(&mut self.plans.view_mut(), &self.host_plans)
    }

    fn replay(&mut self, gpu: &Gpu, shape: &[RoundShape]) -> Result<bool> {
        // SAFETY: what a round launches addresses the generator's buffers, which live as long as this does, the model's, which outlive
        // the generator, and the backend's scratch, whose generation `Graphs` looks at.
        unsafe { self.graphs.replay(gpu, shape) }
    }

    fn begin_recording(&mut self, gpu: &Gpu, shape: &[RoundShape]) -> Result<bool> {
        self.graphs.begin(gpu, shape)
    }

    fn end_recording(&mut self, gpu: &Gpu, shape: &[RoundShape], whole: bool) -> Result<bool> {
        // SAFETY: as in `replay`.
        unsafe { self.graphs.end(gpu, shape, whole) }
    }

    fn begin(&mut self, gpu: &Gpu) -> Result<()> {
        let part = 4 * padded(self.sizes.slots);
        let lengths =
            |i: usize| Some(self.lengths.view_to_share().part(i * part..i * part + 4 * self.sizes.slots));
        gpu.kernels.accept.begin(
            &gpu.stream,
            &BeginArgs {
                slots: self.sizes.slots,
                plans: self.plans.view(),
                states: self.states.view_to_share(),
                round: round_rows(&self.rows, self.sizes),
                draft_lengths: lengths(0),
                verify_lengths: lengths(1),
            },
        )
    }

    fn draft_rows(&mut self, step: usize, from: usize, to: usize) -> Result<&PassRows> {
        let (begin, count) = (step * self.sizes.slots + from, to - from);
        self.pass.tokens = self.table(0, begin, count);
        self.pass.positions = self.table(1, begin, count);
        self.pass.slots = self.table(2, begin, count);
        self.pass.offsets = self.part(Layout::DraftOffsets, 0, count + 1);
        self.pass.lengths = Place::new(&self.lengths, from, count);
        self.pass.group_slots = self.part(Layout::DraftSlots, from, count);
        (self.pass.count, self.pass.groups, self.pass.group_rows) = (count, count, 1);
        (self.pass.max_keys, self.pass.may_be_dead) = (self.max_keys, step > 0 && self.ends_early);
        Ok(&self.pass)
    }

    fn verify_rows(&mut self, rows: usize) -> Result<&PassRows> {
        // Groups lie in the order of the plans, each behind the one before it.
        let groups = self.host(Layout::VerifyOffsets).iter().position(|offset| *offset as usize == rows);
        let groups = groups.unwrap_or(self.order.len());
        self.pass.tokens = self.table(3, 0, rows);
        self.pass.positions = self.table(4, 0, rows);
        self.pass.slots = self.table(5, 0, rows);
        self.pass.offsets = self.part(Layout::VerifyOffsets, 0, groups + 1);
        self.pass.lengths = Place::new(&self.lengths, padded(self.sizes.slots), groups);
        self.pass.group_slots = self.part(Layout::VerifySlots, 0, groups);
        (self.pass.count, self.pass.groups, self.pass.group_rows) = (rows, groups, self.group_rows);
        (self.pass.max_keys, self.pass.may_be_dead) = (self.max_keys, false);
        Ok(&self.pass)
    }

    fn draft(&mut self, gpu: &Gpu, step: usize, from: usize, input: Input<Gpu>, head: &Weight) -> Result<()> {
        let RoundSizes { slots, vocab, .. } = self.sizes;
        let rows = from..from + input.rows;
        let begin = 4 * (self.draft_logits_at(step) + from * vocab);
        let bytes = begin..begin + 4 * input.rows * vocab;
        let input = Input { live: Some(&self.pass), ..input };
        gpu.logits_of(&input, head, &mut self.draft_logits, bytes.start)?;
        gpu.kernels.sample.launch(
            &gpu.stream,
            &SampleArgs {
                pass: SamplePass::Draft { step },
                rows,
                vocab,
                logits: Rows { view: self.draft_logits.view().slice(bytes), stride: vocab },
                round: round_rows(&self.rows, self.sizes),
                slots,
                states: self.states.view_mut(),
                seen: Some(Rows { view: self.seen.view(), stride: vocab.div_ceil(32) }),
                choices: self.draft_choices.view_mut(),
                probabilities: None,
                hashes: None,
                scratch: self.scratch.view_mut(),
            },
        )
    }

    fn accept(&mut self, gpu: &Gpu, input: Input<Gpu>, head: &Weight) -> Result<()> {
        let RoundSizes { slots, max_draft, vocab } = self.sizes;
        let rows = input.rows;
        let input = Input { live: Some(&self.pass), ..input };
        gpu.logits_of(&input, head, &mut self.verify_logits, 0)?;
        let logits = Rows { view: self.verify_logits.view(), stride: vocab };
        let seen = vocab.div_ceil(32);
        gpu.kernels.sample.launch(
            &gpu.stream,
            &SampleArgs {
                pass: SamplePass::Verify,
                rows: 0..rows,
                vocab,
                logits,
                round: round_rows(&self.rows, self.sizes),
                slots,
                states: self.states.view_mut(),
                seen: Some(Rows { view: self.seen.view(), stride: seen }),
                choices: self.verify_choices.view_mut(),
                probabilities: None,
                hashes: Some(self.hashes.view_mut()),
                scratch: self.scratch.view_mut(),
            },
        )?;
        if let Some(script) = &self.script {
            let (states, choices) = (&mut self.states, &mut self.verify_choices);
            script.overwrite(&gpu.stream, states, rows, choices)?;
        }
        let drawn = self.draws.then(|| AcceptLogits {
            steps: max_draft,
            draft_rows: slots,
            draft: Rows { view: self.draft_logits.view(), stride: vocab },
            draft_step_stride: slots * vocab,
            verify: logits,
        });
        gpu.kernels.accept.launch(
            &gpu.stream,
            &AcceptArgs {
                slots,
                vocab,
                states: self.states.view_mut(),
                rounds: self.rounds.view_mut(),
                seen: Some(RowsMut { view: self.seen.view_mut(), stride: seen }),
                draft_choices: self.draft_choices.view(),
                verify_first: 0,
                verify_rows: rows,
                verify_choices: self.verify_choices.view(),
                logits: drawn,
            },
        )
    }

    fn post(&mut self, gpu: &Gpu) -> Result<()> {
        debug_assert!(self.posted - self.collected < IN_FLIGHT, "more rounds than there is mail for");
        let mail = &mut self.mail[self.posted % IN_FLIGHT];
        mail.order.clone_from(&self.order);
        mail.rounds.start(&gpu.stream, self.rounds.view())?;
        mail.hashes.start(&gpu.stream, self.hashes.view())?;
        self.posted += 1;
        Ok(())
    }

    fn collect(&mut self, _: &Gpu) -> Result<()> {
        debug_assert!(self.collected < self.posted, "nothing was posted");
        let Mail { rounds, hashes, order } = &mut self.mail[self.collected % IN_FLIGHT];
        let (rounds, hashes) = (rounds.wait::<WlRound>()?, hashes.wait::<u64>()?);
        self.collected += 1;
        for (&(slot, verify_row), outcome) in order.iter().zip(&mut self.outcomes) {
            let round = &rounds[slot];
            outcome.ids.clear();
            outcome.hashes.clear();
            let emitted = (round.emitted.max(0) as usize).min(round.ids.len());
            outcome.ids.extend(round.ids[..emitted].iter().map(|id| *id as u32));
            outcome.hashes.extend_from_slice(&hashes[verify_row..verify_row + emitted]);
            outcome.drafted = round.drafted.max(0) as usize;
            outcome.accepted = round.accepted.max(0) as usize;
            outcome.matched = round.matched;
            outcome.mismatched = round.mismatched;
            let failed = round.stop == WL_STOP_NOT_FINITE;
            outcome.not_finite = failed.then_some(round.failed_position.max(0) as usize);
        }
        Ok(())
    }

    fn outcome(&self, index: usize) -> &RoundOutcome {
        &self.outcomes[index]
    }

    fn logits(&mut self, gpu: &Gpu, row: usize) -> Result<&[f32]> {
        let bytes = 4 * self.sizes.vocab;
        let view = self.verify_logits.view().slice(row * bytes..(row + 1) * bytes);
        gpu.stream.download(view, &mut self.row)?;
        Ok(&self.row)
    }

    fn recordings(&self) -> Recordings {
        self.graphs.recordings()
    }
}

impl Gpu {
    /// The logits of an input's rows, f32 `[rows, vocab]` from byte `begin` on.
    fn logits_of(&self, input: &Input<Gpu>, head: &Weight, out: &mut Buffer, begin: usize) -> Result<()> {
        let vocab = head.rows;
        let parts = [Projection { weight: head, bias: None, column: 0 }];
        for first in (0..input.rows).step_by(SLICE) {
            let rows = SLICE.min(input.rows - first);
            let bytes = begin + 4 * first * vocab..begin + 4 * (first + rows) * vocab;
            let target = RowsMut { view: out.view_mut().part(bytes), stride: vocab };
            self.product(input, first, rows, &parts, target, None, LinearEpilogue::StoreF32)?;
        }
        Ok(())
    }
}
