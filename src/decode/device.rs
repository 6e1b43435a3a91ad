//! One round on a device: the steps of `round`, with drafts, choices and acceptance left to the backend's [`Round`]. Between the plan and
//! the accepted ids the host only launches; it does not know how far the drafts went. It is one round late: while it looks at what came
//! of a round, the device is at work on the next.

use std::{ops::Range, time::Instant};

use super::{
    generator::Generator,
    policy::Round as Finished,
    round::{Observer, live},
    sequence::{Sequence, Stop},
};
use crate::{
    backend::{Backend, IN_FLIGHT, Round, RoundOutcome, RoundPlan, RoundSequence, RoundShape, Row},
    error::{Error, Result},
    range,
};

/// Sequences with fewer keys than this have rounds of one shape.
const LEAST_KEYS: usize = 256;

impl<B: Backend> Generator<'_, B> {
    /// Tells the device of the sequence in `slot`.
    pub(super) fn begin_on_device(&mut self, slot: usize) -> Result<()> {
        let context = self.limits.context;
        let (Some(round), Some(sequence)) = (&mut self.device, &self.slots[slot]) else { return Ok(()) };
        let remaining = sequence.remaining(context);
        if remaining == 0 {
            return Ok(());
        }
        let sampling = sequence.sampler.sampling();
        round.begin_sequence(
            self.llama.backend(),
            &RoundSequence {
                slot,
                cached: sequence.cached,
                tokens: &sequence.tokens,
                remaining,
                eos: &sequence.eos,
                temperature: sampling.temperature,
                top_k: sampling.top_k,
                top_p: sampling.top_p,
                min_p: sampling.min_p,
                repetition_penalty: sampling.repetition_penalty,
                seed: sampling.seed,
            },
        )
    }

    /// Launches a round for every sequence that has not ended, and looks at the one before it; at its own, if the observer wants logits,
    /// which the next round would overwrite.
    pub(super) fn round_on_device(
        &mut self,
        round: &mut B::Round,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let _range = range::range("round");
        let begun = Instant::now();
        let late = !observer.wants_logits();
        if !late && self.flights.count > 0 {
            self.collect(round, observer)?;
        }
        self.plan()?;
        let launched = !self.order.is_empty();
        if launched {
            self.launch(round)?;
        }
        // What this call takes is the time of all that go on in a round which it launches or waits for.
        self.timed.clear();
        for flight in self.flights.rounds.iter().flatten() {
            let going = |s: &&Sequence| s.epoch == flight.epoch && s.stop.is_none();
            if self.slots[flight.plan.slot].as_ref().filter(going).is_some() {
                self.timed.push((flight.plan.slot, flight.epoch));
            }
        }
        self.timed.sort_unstable();
        self.timed.dedup();
        let left = usize::from(late && launched);
        let mut collected = Ok(());
        while collected.is_ok() && self.flights.count > left {
            collected = self.collect(round, observer);
        }
        let seconds = begun.elapsed().as_secs_f64();
        for (slot, epoch) in &self.timed {
            if let Some(sequence) = self.slots[*slot].as_mut().filter(|s| s.epoch == *epoch) {
                sequence.stats.decode_seconds += seconds;
            }
        }
        collected
    }

    /// Plans are taken to the device and launched, and what comes of them is posted.
    fn launch(&mut self, round: &mut B::Round) -> Result<()> {
        if self.flights.count == IN_FLIGHT {
            let reason = "earlier ones have failed on the device: make a new generator";
            return Err(Error::argument("round", reason));
        }
        self.plan_rows()?;
        let bytes = self.planned_bytes();
        round.plan(self.llama.backend(), &self.plans, &mut self.kv, &self.cache)?;
        let mut shape = std::mem::take(&mut self.shape);
        shape.clear();
        let keys = self.plans.iter().map(|plan| plan.keys).max().unwrap_or(0);
        let ends_early = self.plans.iter().any(RoundPlan::ends_early);
        shape.extend(self.plans.iter().map(|plan| {
            let &RoundPlan { draft, exit_layer, .. } = plan;
            RoundShape { draft, exit_layer, keys, ends_early }
        }));
        let launched = self.launch_shape(round, &shape);
        self.shape = shape;
        launched?;
        round.post(self.llama.backend())?;
        let flight = self.flights.push();
        for plan in &self.plans {
            let sequence = live(&mut self.slots, plan.slot);
            sequence.stats.decode_bytes += bytes;
            flight.push(Flight { plan: *plan, asked: sequence.round.asked, epoch: sequence.epoch });
        }
        Ok(())
    }

    fn launch_shape(&mut self, round: &mut B::Round, shape: &[RoundShape]) -> Result<()> {
        let backend = self.llama.backend();
        if round.replay(backend, shape)? {
            return Ok(());
        }
        if round.begin_recording(backend, shape)? {
            let recorded = self.launch_phases(round);
            if round.end_recording(backend, shape, recorded.is_ok())? {
                return Ok(());
            }
            // Nothing of it has run. What cannot be recorded may yet be launched, or fails again and says why.
        }
        self.launch_phases(round)
    }

    fn launch_phases(&mut self, round: &mut B::Round) -> Result<()> {
        round.begin(self.llama.backend())?;
        self.draft_on_device(round)?;
        self.verify_on_device(round)
    }

    /// Waits for the oldest round in flight, and tells the observer its tokens. What sequences that have ended, or are others than those
    /// it was planned for, generated in it is dropped.
    /// One whose logits were not finite ends there; the others are told before the error returns.
    fn collect(&mut self, round: &mut B::Round, observer: &mut dyn Observer) -> Result<()> {
        let _range = range::range("outcome");
        round.collect(self.llama.backend())?;
        let flight = self.flights.pop();
        let mut collected = Ok(());
        for (i, flight) in flight.iter().enumerate() {
            collected = collected.and(self.take_over(round, i, flight, observer));
        }
        self.flights.put_back(flight);
        collected
    }

    fn take_over(
        &mut self,
        round: &mut B::Round,
        index: usize,
        flight: &Flight,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let &Flight { plan, asked, epoch } = flight;
        let going = |s: &&mut Sequence| s.epoch == epoch && s.stop.is_none();
        let Some(sequence) = self.slots[plan.slot].as_mut().filter(going) else { return Ok(()) };
        let outcome = round.outcome(index);
        if let Some(position) = outcome.not_finite {
            sequence.stop = Some(Stop::Interrupted);
            return Err(Error::NotFinite { position });
        }
        let before = sequence.tokens.len();
        append_outcome(sequence, plan, asked, outcome, self.limits.context, observer);
        let kept = sequence.tokens.len() - before;
        if kept > 0 {
            sequence.logits_hash = outcome.hashes[kept - 1];
        }
        if observer.wants_logits() {
            for k in 0..kept {
                observer.logits(plan.slot, round.logits(self.llama.backend(), plan.verify_row + k)?);
            }
        }
        // A round that is still in flight needs its positions.
        let (cached, length) = (sequence.cached, sequence.tokens.len() - 1);
        let in_flight = if sequence.stop.is_none() { self.flights.rows(plan.slot, epoch) } else { 0 };
        self.cache.truncate(cached, (length + in_flight).min(self.cache.len(cached)?))?;
        self.release(cached, length)
    }

    /// Lays out the rows of the plans in `order`: the verification's in that order, the draft steps' as well.
    fn plan_rows(&mut self) -> Result<()> {
        self.plans.clear();
        let mut drafting = 0;
        for slot in &self.order {
            let sequence = live(&mut self.slots, *slot);
            let planned = &sequence.round;
            self.plans.push(RoundPlan {
                slot: *slot,
                cached: sequence.cached,
                draft_row: drafting,
                verify_row: planned.base,
                draft: planned.limit,
                exit_layer: planned.exit_layer,
                threshold: planned.threshold,
                keys: self.cache.len(sequence.cached)?.next_power_of_two().max(LEAST_KEYS),
            });
            drafting += usize::from(planned.limit > 0);
        }
        Ok(())
    }

    /// Step 1, exit layer by exit layer.
    fn draft_on_device(&mut self, round: &mut B::Round) -> Result<()> {
        let _range = range::range("draft");
        let mut next = self.plans.iter().position(|plan| plan.draft > 0).unwrap_or(self.plans.len());
        while next < self.plans.len() {
            let exit = self.plans[next].exit_layer;
            let end = next + self.plans[next..].iter().take_while(|plan| plan.exit_layer == exit).count();
            let group = next..end;
            let (from, to) = (self.plans[next].draft_row, self.plans[end - 1].draft_row + 1);
            let steps = self.plans[group.clone()].iter().map(|plan| plan.draft).max().unwrap_or(0);
            // The last draft has a row, too, but no head.
            for step in 0..=steps {
                let rows = round.draft_rows(step, from, to)?;
                self.llama.forward_rows(
                    0..exit,
                    rows,
                    to - from,
                    &mut self.kv,
                    &self.cache,
                    &mut self.work,
                )?;
                for plan in &self.plans[group.clone()] {
                    if step <= plan.draft {
                        self.llama.backend().copy_row(
                            self.work.hidden(),
                            plan.draft_row - from,
                            &mut self.exit_hidden,
                            plan.verify_row + step,
                            self.llama.config().hidden,
                            Some(rows),
                        )?;
                    }
                }
                if step < steps {
                    let backend = self.llama.backend();
                    self.llama.with_head(0, to - from, &mut self.work, |input, head| {
                        round.draft(backend, step, from, input, head)
                    })?;
                }
            }
            next = end;
        }
        Ok(())
    }

    /// Steps 2 and 3: rows join at their exit layer.
    fn verify_on_device(&mut self, round: &mut B::Round) -> Result<()> {
        let _range = range::range("verify");
        let layers = self.llama.config().layers;
        // The kept rows lie where the verification wants them.
        std::mem::swap(self.work.hidden_mut(), &mut self.exit_hidden);
        let verified = self.verify_layers(round, layers);
        let rows = self.plans.last().map_or(0, |plan| plan.verify_row + plan.draft + 1);
        let backend = self.llama.backend();
        let accepted = verified.and_then(|()| {
            self.llama.with_head(0, rows, &mut self.work, |input, head| round.accept(backend, input, head))
        });
        std::mem::swap(self.work.hidden_mut(), &mut self.exit_hidden);
        accepted
    }

    fn verify_layers(&mut self, round: &mut B::Round, layers: usize) -> Result<()> {
        let mut next = 0;
        while next < layers {
            let (joined, range) = self.joined(next, layers);
            next = range.end;
            if joined > 0 {
                let last = self.plans[joined - 1];
                let count = last.verify_row + last.draft + 1;
                let rows = round.verify_rows(count)?;
                self.llama.forward_rows(range, rows, count, &mut self.kv, &self.cache, &mut self.work)?;
            }
        }
        Ok(())
    }

    /// How many of the plans have joined the verification at layer `from`, and the layers up to where the next one does.
    fn joined(&self, from: usize, layers: usize) -> (usize, Range<usize>) {
        let joined = self.plans.iter().take_while(|plan| plan.exit_layer <= from).count();
        (joined, from..self.plans.get(joined).map_or(layers, |plan| plan.exit_layer))
    }

    /// Bytes that the planned round reads at most: weights once a pass, and the keys and values that its rows see.
    fn planned_bytes(&mut self) -> u64 {
        let (layers, head) = (self.llama.config().layers, self.llama.head_bytes() as u64);
        let mut bytes = head;
        let mut next = self.plans.iter().position(|plan| plan.draft > 0).unwrap_or(self.plans.len());
        while next < self.plans.len() {
            let exit = self.plans[next].exit_layer;
            let end = next + self.plans[next..].iter().take_while(|plan| plan.exit_layer == exit).count();
            let steps = self.plans[next..end].iter().map(|plan| plan.draft).max().unwrap_or(0);
            for step in 0..=steps {
                self.count_rows(next..end, step..step + 1);
                bytes += self.read_bytes(0..exit) + if step < steps { head } else { 0 };
            }
            next = end;
        }
        let mut next = 0;
        while next < layers {
            let (joined, range) = self.joined(next, layers);
            next = range.end;
            if joined > 0 {
                self.count_rows(0..joined, 0..usize::MAX);
                bytes += self.read_bytes(range);
            }
        }
        bytes
    }

    /// Leaves rows `steps` of the plans in `rows`, for what their pass reads: as many as planned, which may be more than live.
    fn count_rows(&mut self, plans: std::ops::Range<usize>, steps: std::ops::Range<usize>) {
        self.rows.clear();
        for plan in &self.plans[plans] {
            let length = self.slots[plan.slot].as_ref().map_or(1, |sequence| sequence.tokens.len());
            for i in steps.start..steps.end.min(plan.draft + 1) {
                self.rows.push(Row { token: 0, position: length - 1 + i, sequence: plan.cached });
            }
        }
    }
}

/// Appends what the device accepted, up to where the sequence ends.
fn append_outcome(
    sequence: &mut Sequence,
    plan: RoundPlan,
    asked: usize,
    outcome: &RoundOutcome,
    context: usize,
    observer: &mut dyn Observer,
) {
    let before = sequence.tokens.len();
    for id in &outcome.ids {
        sequence.tokens.push(*id);
        sequence.stop =
            if sequence.eos.contains(id) { Some(Stop::Eos) } else { observer.token(plan.slot, *id) };
        if sequence.stop.is_none() && sequence.remaining(context) == 0 {
            sequence.stop = Some(sequence.limit_reached());
        }
        if sequence.stop.is_some() {
            break;
        }
    }
    let kept = sequence.tokens.len() - before;
    let round = Finished {
        exit_layer: plan.exit_layer,
        asked,
        drafted: outcome.drafted,
        accepted: outcome.accepted.min(kept),
        matched_confidence: outcome.matched,
        mismatched_confidence: outcome.mismatched,
    };
    sequence.settle(kept, round);
}

/// A sequence's part in a round that is on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    plan: RoundPlan,
    /// Draft length that the policy asked for.
    asked: usize,
    epoch: u64,
}

/// Rounds that were launched and whose outcomes the host has not looked at: the device is one ahead of it.
pub(super) struct Flights {
    /// The oldest first, `count` of them; the others are empty.
    rounds: [Vec<Flight>; IN_FLIGHT],
    count: usize,
}

impl Flights {
    pub fn new(sequences: usize) -> Self {
        Flights { rounds: std::array::from_fn(|_| Vec::with_capacity(sequences)), count: 0 }
    }

    /// Most rows that rounds in flight append to a sequence, 0 if it is in none.
    pub fn rows(&self, slot: usize, epoch: u64) -> usize {
        let flights = self.rounds[..self.count].iter().flatten();
        flights.filter(|f| f.plan.slot == slot && f.epoch == epoch).map(|f| f.plan.draft + 1).sum()
    }

    /// Room for one more.
    fn push(&mut self) -> &mut Vec<Flight> {
        self.count += 1;
        &mut self.rounds[self.count - 1]
    }

    /// Takes the oldest out; [`Flights::put_back`] wants its memory again.
    fn pop(&mut self) -> Vec<Flight> {
        self.count -= 1;
        self.rounds.rotate_left(1);
        std::mem::take(&mut self.rounds[IN_FLIGHT - 1])
    }

    fn put_back(&mut self, mut flight: Vec<Flight>) {
        flight.clear();
        self.rounds[IN_FLIGHT - 1] = flight;
    }
}
