//! One round on a device: the steps of `round`, with drafts, choices and acceptance left to the backend's [`Round`]. Between the plan and
//! the accepted ids the host only launches; it does not know how far the drafts went.

use std::time::Instant;

use super::{
    generator::Generator,
    round::{Observer, live, logits_hash},
    sequence::{Sequence, Stop},
};
use crate::{
    backend::{Backend, Round, RoundOutcome, RoundPlan, RoundSequence, Row},
    error::{Error, Result},
};

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

    /// One round for every sequence that has not ended; [`Generator::plan`] has planned it.
    pub(super) fn round_on_device(
        &mut self,
        round: &mut B::Round,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let begun = Instant::now();
        let mut bytes = 0;
        self.plan_rows();
        round.begin(self.llama.backend(), &self.plans, &mut self.kv, &self.cache)?;
        self.draft_on_device(round, &mut bytes)?;
        self.verify_on_device(round, &mut bytes)?;
        round.finish(self.llama.backend())?;
        let seconds = begun.elapsed().as_secs_f64();
        for i in 0..self.plans.len() {
            let plan = self.plans[i];
            let sequence = live(&mut self.slots, plan.slot);
            sequence.stats.decode_seconds += seconds;
            sequence.stats.decode_bytes += bytes;
            let outcome = round.outcome(i);
            if let Some(position) = outcome.not_finite {
                return Err(Error::NotFinite { position });
            }
            let before = sequence.tokens.len();
            take_over(sequence, plan.slot, outcome, self.limits.context, observer);
            let rows = sequence.tokens.len() - before;
            for k in 0..rows {
                // The host looks at logits where someone asks for them, and at the last ones of a sequence.
                let last = k + 1 == rows && sequence.stop.is_some();
                if observer.wants_logits() || last {
                    let logits = round.logits(self.llama.backend(), plan.verify_row + k)?;
                    sequence.logits_hash = logits_hash(logits);
                    observer.logits(plan.slot, logits);
                }
            }
            let (cached, length) = (sequence.cached, sequence.tokens.len() - 1);
            self.cache.truncate(cached, length)?;
            self.release(cached, length)?;
        }
        Ok(())
    }

    /// Lays out the rows of the plans in `order`: the verification's in that order, the draft steps' as well.
    fn plan_rows(&mut self) {
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
            });
            drafting += usize::from(planned.limit > 0);
        }
    }

    /// Step 1, exit layer by exit layer.
    fn draft_on_device(&mut self, round: &mut B::Round, bytes: &mut u64) -> Result<()> {
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
                self.count_rows(group.clone(), step..step + 1);
                *bytes += self.read_bytes(0..exit);
                for plan in &self.plans[group.clone()] {
                    if step <= plan.draft {
                        self.llama.backend().copy_row(
                            self.work.hidden(),
                            plan.draft_row - from,
                            &mut self.exit_hidden,
                            plan.verify_row + step,
                            self.llama.config().hidden,
                        )?;
                    }
                }
                if step < steps {
                    let backend = self.llama.backend();
                    self.llama.with_head(0, to - from, &mut self.work, |input, head| {
                        round.draft(backend, step, from, input, head)
                    })?;
                    *bytes += self.llama.head_bytes() as u64;
                }
            }
            next = end;
        }
        Ok(())
    }

    /// Steps 2 and 3: rows join at their exit layer.
    fn verify_on_device(&mut self, round: &mut B::Round, bytes: &mut u64) -> Result<()> {
        let layers = self.llama.config().layers;
        // The kept rows lie where the verification wants them.
        std::mem::swap(self.work.hidden_mut(), &mut self.exit_hidden);
        let verified = self.verify_layers(round, layers, bytes);
        let rows = self.plans.last().map_or(0, |plan| plan.verify_row + plan.draft + 1);
        let backend = self.llama.backend();
        let accepted = verified.and_then(|()| {
            self.llama.with_head(0, rows, &mut self.work, |input, head| round.accept(backend, input, head))
        });
        std::mem::swap(self.work.hidden_mut(), &mut self.exit_hidden);
        *bytes += self.llama.head_bytes() as u64;
        accepted
    }

    fn verify_layers(&mut self, round: &mut B::Round, layers: usize, bytes: &mut u64) -> Result<()> {
        let (mut from, mut joined) = (0, 0);
        while from < layers {
            while joined < self.plans.len() && self.plans[joined].exit_layer <= from {
                joined += 1;
            }
            let to = self.plans.get(joined).map_or(layers, |plan| plan.exit_layer);
            if joined > 0 {
                let last = self.plans[joined - 1];
                let count = last.verify_row + last.draft + 1;
                let rows = round.verify_rows(count)?;
                self.llama.forward_rows(from..to, rows, count, &mut self.kv, &self.cache, &mut self.work)?;
                self.count_rows(0..joined, 0..usize::MAX);
                *bytes += self.read_bytes(from..to);
            }
            from = to;
        }
        Ok(())
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
fn take_over(
    sequence: &mut Sequence,
    slot: usize,
    outcome: &RoundOutcome,
    context: usize,
    observer: &mut dyn Observer,
) {
    let before = sequence.tokens.len();
    for id in &outcome.ids {
        sequence.tokens.push(*id);
        sequence.stop = if sequence.eos.contains(id) { Some(Stop::Eos) } else { observer.token(slot, *id) };
        if sequence.stop.is_none() && sequence.remaining(context) == 0 {
            sequence.stop = Some(sequence.limit_reached());
        }
        if sequence.stop.is_some() {
            break;
        }
    }
    let kept = sequence.tokens.len() - before;
    let accepted = outcome.accepted.min(kept);
    sequence.settle(kept, outcome.drafted, accepted, outcome.matched, outcome.mismatched);
}
