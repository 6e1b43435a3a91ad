//! One round of early-exit self-speculative decoding (LayerSkip, arXiv 2404.16710), for a whole batch.
//!
//! 1. **Draft.** The last token, then each draft, goes through layers 0..E, which append their keys and
//!    values. The residual stream after layer E − 1 is kept, before any norm; final norm and head turn it into the
//!    next draft.
//! 2. **Verify.** The kept rows go through layers E..L together. Nothing of layers 0..E is computed twice.
//! 3. **Accept.** Greedy: the drafts that equal the verifier's choices, and one token more. Sampled: each draft
//!    with probability min(1, p/q), at the first refusal a draw from norm(max(p − q, 0)).
//! 4. **Crop** the cache to the kept tokens.
//!
//! A draft that ends the drafting early, an end-of-sequence id or one under the policy's threshold, is verified but has no
//! row of its own: if it is accepted, the round ends with it, without a token of the verifier's own.
//!
//! A plain step is a round without a draft: one row through layers 0..L. Exit layers may differ within
//! a batch: rows join the verification at theirs.

use std::{sync::atomic::Ordering, time::Instant};

use super::{
    generator::Generator,
    policy::Round as Finished,
    sampling::confidence,
    sequence::{Drafting, Sequence, Stop},
};
use crate::{
    backend::{Backend, Row},
    error::{Error, Result},
    range,
};

/// What the caller of [`Generator::round`] sees of it.
pub trait Observer {
    /// `id` was generated in `slot`. Some ends the sequence; what the round accepted after it is dropped.
    fn token(&mut self, slot: usize, id: u32) -> Option<Stop>;

    /// The logits that a token of `slot` is chosen from: one row, `[vocab]`, for each token in order. Plain and speculative
    /// decoding show the same rows, bit for bit.
    fn logits(&mut self, slot: usize, logits: &[f32]) {
        let _ = (slot, logits);
    }

    /// Whether [`Observer::logits`] is to be called for every token: from a device each row has to be copied. Otherwise it may be called
    /// for some.
    fn wants_logits(&self) -> bool {
        true
    }
}

/// An observer of the tokens alone.
impl<F: FnMut(usize, u32) -> Option<Stop>> Observer for F {
    fn token(&mut self, slot: usize, id: u32) -> Option<Stop> {
        self(slot, id)
    }

    fn wants_logits(&self) -> bool {
        false
    }
}

impl<B: Backend> Generator<'_, B> {
    /// Runs one round for every sequence that has not ended, and tells `observer` each token. Allocates nothing.
    ///
    /// On a device a round is told by the call after the one that began it, while the next one runs, unless the observer wants logits:
    /// the first call tells nothing, and what a sequence generated beyond its end is dropped. Policies see a round that much later, too.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a logit is NaN or infinite; [`Error::Capacity`] if the cache has no page left. A round that fails
    /// leaves its sequences between two tokens: what they have generated can be read, but they cannot go on.
    pub fn round(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if self.decoding.is_none() && self.is_active() {
            self.decoding = Some(range::span("decode"));
        }
        let done = self.next_round(observer);
        // What a round gave is read by then, and so its launches have ended.
        if !self.is_active() {
            self.decoding = None;
        }
        done
    }

    fn next_round(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if self.interrupt.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            for sequence in self.slots.iter_mut().flatten() {
                sequence.stop.get_or_insert(Stop::Interrupted);
            }
            return Ok(());
        }
        let begun = Instant::now();
        if let Some(mut device) = self.device.take() {
            let done = self.round_on_device(&mut device, observer);
            self.device = Some(device);
            return done;
        }
        let mut bytes = 0;
        self.plan()?;
        if self.order.is_empty() {
            return Ok(());
        }
        self.llama.backend().pass(|| {
            self.draft(&mut bytes)?;
            self.verify(&mut bytes)
        })?;
        self.accept(observer, &mut bytes)?;
        let seconds = begun.elapsed().as_secs_f64();
        for i in 0..self.order.len() {
            let slot = self.order[i];
            let sequence = live(&mut self.slots, slot);
            sequence.stats.decode_seconds += seconds;
            sequence.stats.decode_bytes += bytes;
        }
        Ok(())
    }

    /// Asks every policy for a plan, cuts it to the limits, and makes the round's positions writable: also those that the round in
    /// flight may come to. Leaves the live slots in `order`, the lowest exit layer first.
    pub(super) fn plan(&mut self) -> Result<()> {
        self.order.clear();
        let context = self.limits.context;
        for slot in 0..self.slots.len() {
            let Some(sequence) = self.slots[slot].as_mut().filter(|s| s.stop.is_none()) else { continue };
            // A round emits its drafts and one token more; that in flight emits one at least.
            let in_flight = self.flights.rows(slot, sequence.epoch);
            let remaining = sequence.remaining(context) - in_flight.min(1);
            if remaining == 0 {
                continue;
            }
            let finished = sequence.finished.take();
            let room = (remaining - 1).min(self.limits.max_draft);
            let round = &mut sequence.round;
            (round.exit_layer, round.asked, round.limit, round.threshold) = (0, 0, 0, 0.0);
            if let Some(policy) = &mut sequence.policy {
                let plan = policy.plan(finished.as_ref());
                round.asked = plan.draft;
                round.limit = plan.draft.min(policy.max_draft()).min(room);
                round.threshold = plan.threshold;
                if round.limit > 0 {
                    let layers = self.llama.config().layers;
                    if !(1..layers).contains(&plan.exit_layer) {
                        let reason = format!(
                            "{} asks for exit layer {}; of {layers} layers 1 to {} can draft",
                            policy.name(),
                            plan.exit_layer,
                            layers.saturating_sub(1)
                        );
                        return Err(Error::argument("policy", reason));
                    }
                    round.exit_layer = plan.exit_layer;
                    sequence.stats.exit_layer = plan.exit_layer;
                    sequence.stats.draft = plan.draft;
                }
            }
            round.drafts.clear();
            round.confidence.clear();
            round.closed = round.limit == 0;
            // A plain step has its one row, which joins at layer 0.
            round.rows = usize::from(round.limit == 0);
            let positions = sequence.tokens.len() - 1 + in_flight + round.limit + 1;
            let cached = sequence.cached;
            let more = positions.min(context).saturating_sub(self.cache.len(cached)?);
            self.append(cached, more)?;
            self.order.push(slot);
        }
        // Those of one draft length together: fewer orders are fewer shapes of rounds.
        let slots = &self.slots;
        self.order.sort_unstable_by_key(|slot| {
            slots[*slot].as_ref().map_or((0, 0, *slot), |s| (s.round.exit_layer, s.round.limit, *slot))
        });
        let mut base = 0;
        for slot in &self.order {
            let round = &mut live(&mut self.slots, *slot).round;
            round.base = base;
            base += round.limit + 1;
        }
        Ok(())
    }

    /// Step 1 of the round, exit layer by exit layer.
    fn draft(&mut self, bytes: &mut u64) -> Result<()> {
        let mut done = 0;
        while let Some(exit) = self.next_exit(done) {
            done = exit;
            let mut step = 0;
            loop {
                // Rows that need the head come first, so that they lie together.
                self.rows.clear();
                for heads in [true, false] {
                    for slot in &self.order {
                        let sequence = live(&mut self.slots, *slot);
                        let round = &sequence.round;
                        if round.exit_layer == exit && !round.closed && heads == (step < round.limit) {
                            let position = sequence.tokens.len() - 1 + step;
                            self.rows.push(Row {
                                token: sequence.round_token(step),
                                position,
                                sequence: sequence.cached,
                            });
                        }
                    }
                }
                if self.rows.is_empty() {
                    break;
                }
                self.llama.forward(0..exit, &self.rows, &mut self.kv, &self.cache, &mut self.work)?;
                *bytes += self.read_bytes(0..exit);
                let drafting = self.keep_exit_rows(exit, step)?;
                let mut from = 0;
                while from < drafting {
                    let count = (drafting - from).min(self.work.logit_rows());
                    self.choose_drafts(exit, step, from, count)?;
                    *bytes += self.llama.head_bytes() as u64;
                    from += count;
                }
                for slot in &self.order {
                    let round = &mut live(&mut self.slots, *slot).round;
                    if round.exit_layer == exit && !round.closed && step >= round.limit {
                        round.closed = true;
                    }
                }
                step += 1;
            }
        }
        Ok(())
    }

    /// The lowest exit layer above `above` that a sequence drafts with.
    fn next_exit(&self, above: usize) -> Option<usize> {
        let exits =
            self.order.iter().filter_map(|slot| self.slots[*slot].as_ref()).map(|s| s.round.exit_layer);
        exits.filter(|exit| *exit > above).min()
    }

    /// Copies the rows just computed to the exit-hidden buffer; returns how many of them go on to the head.
    fn keep_exit_rows(&mut self, exit: usize, step: usize) -> Result<usize> {
        let width = self.llama.config().hidden;
        let (mut row, mut drafting) = (0, 0);
        for heads in [true, false] {
            for slot in &self.order {
                let round = &mut live(&mut self.slots, *slot).round;
                if round.exit_layer == exit && !round.closed && heads == (step < round.limit) {
                    let to = round.base + step;
                    let backend = self.llama.backend();
                    backend.copy_row(self.work.hidden(), row, &mut self.exit_hidden, to, width, None)?;
                    round.rows = step + 1;
                    row += 1;
                    drafting += usize::from(heads);
                }
            }
        }
        Ok(drafting)
    }

    /// Drafts the next token of the `count` sequences whose rows begin at `from`, and ends the drafts that
    /// are not to go on. A draft that ends here needs no row of its own: should it be accepted, nothing
    /// comes after it in this round.
    fn choose_drafts(&mut self, exit: usize, step: usize, from: usize, count: usize) -> Result<()> {
        let vocab = self.llama.config().vocab;
        let logits = self.llama.head(from, count, &mut self.work)?;
        let mut row = 0;
        for slot in &self.order {
            let sequence = live(&mut self.slots, *slot);
            let round = &mut sequence.round;
            if round.exit_layer != exit || round.closed || step >= round.limit {
                continue;
            }
            let here = row;
            row += 1;
            if here < from || here >= from + count {
                continue;
            }
            let logits = &logits[(here - from) * vocab..][..vocab];
            let position = sequence.tokens.len() - 1 + step;
            let (draft, top) = if sequence.sampler.sampling().is_greedy() {
                let (draft, _) = sequence.sampler.argmax(logits).ok_or(Error::NotFinite { position })?;
                let sure = if round.threshold > 0.0 { confidence(logits, draft) } else { 0.0 };
                (draft, sure)
            } else {
                let q = &mut sequence.q[step * vocab..][..vocab];
                let (_, top) =
                    sequence.sampler.distribution(logits, q).ok_or(Error::NotFinite { position })?;
                (sequence.sampler.draw(q), top)
            };
            round.drafts.push(draft);
            sequence.sampler.see(draft);
            if round.threshold > 0.0 {
                round.confidence.push(top);
            }
            if sequence.eos.contains(&draft) || top < round.threshold {
                round.closed = true;
            }
        }
        Ok(())
    }

    /// Step 2: all rows through the layers that they have not been through, joining at their exit layer.
    fn verify(&mut self, bytes: &mut u64) -> Result<()> {
        let layers = self.llama.config().layers;
        let width = self.llama.config().hidden;
        self.rows.clear();
        let mut joined = 0;
        let mut from = 0;
        loop {
            // `order` has the lowest exit layers first: those at `from` come next.
            while joined < self.order.len() {
                let sequence = live(&mut self.slots, self.order[joined]);
                if sequence.round.exit_layer != from {
                    break;
                }
                let first = self.rows.len();
                for i in 0..sequence.round.rows {
                    let position = sequence.tokens.len() - 1 + i;
                    self.rows.push(Row {
                        token: sequence.round_token(i),
                        position,
                        sequence: sequence.cached,
                    });
                    if from > 0 {
                        let kept = sequence.round.base + i;
                        self.llama.backend().copy_row(
                            &self.exit_hidden,
                            kept,
                            self.work.hidden_mut(),
                            first + i,
                            width,
                            None,
                        )?;
                    }
                }
                sequence.round.base = first;
                joined += 1;
            }
            let to = self.next_exit(from).unwrap_or(layers);
            if !self.rows.is_empty() {
                self.llama.forward(from..to, &self.rows, &mut self.kv, &self.cache, &mut self.work)?;
                *bytes += self.read_bytes(from..to);
            }
            from = to;
            if from == layers {
                return Ok(());
            }
        }
    }

    /// Steps 3 and 4.
    fn accept(&mut self, observer: &mut dyn Observer, bytes: &mut u64) -> Result<()> {
        let vocab = self.llama.config().vocab;
        let mut next = 0;
        while next < self.order.len() {
            // As many whole sequences as the logits have room for.
            let first = live(&mut self.slots, self.order[next]).round.base;
            let (mut end, mut rows) = (next, 0);
            while end < self.order.len() {
                let more = live(&mut self.slots, self.order[end]).round.rows;
                if rows + more > self.work.logit_rows() {
                    break;
                }
                rows += more;
                end += 1;
            }
            let logits = self.llama.head(first, rows, &mut self.work)?;
            *bytes += self.llama.head_bytes() as u64;
            for slot in &self.order[next..end] {
                let sequence = live(&mut self.slots, *slot);
                let logits = &logits[(sequence.round.base - first) * vocab..][..sequence.round.rows * vocab];
                accept_drafts(sequence, *slot, logits, self.limits.context, &mut self.p, observer)?;
            }
            next = end;
        }
        for i in 0..self.order.len() {
            let sequence = live(&mut self.slots, self.order[i]);
            let (cached, length) = (sequence.cached, sequence.tokens.len() - 1);
            self.cache.truncate(cached, length)?;
            self.release(cached, length)?;
        }
        Ok(())
    }

    /// Bytes that a pass of `rows` through `layers` reads: the weights once, and the visible keys and values.
    pub(super) fn read_bytes(&self, layers: std::ops::Range<usize>) -> u64 {
        let config = self.llama.config();
        let per_key = (self.llama.kv_bytes() / config.layers) as u64;
        let visible = |mask: &crate::mask::Mask| -> u64 {
            self.rows.iter().map(|row| mask.visible(row.position, row.position + 1, 0).count() as u64).sum()
        };
        // Layers mostly share one mask.
        let mut keys = 0;
        let mut last = None;
        for mask in &config.masks[layers.clone()] {
            let count = match last {
                Some((known, count)) if known == *mask => count,
                _ => visible(mask),
            };
            last = Some((*mask, count));
            keys += count;
        }
        self.llama.bytes(layers) as u64 + keys * per_key
    }
}

/// The sequence of a slot that is in `order`.
pub(super) fn live(slots: &mut [Option<Sequence>], slot: usize) -> &mut Sequence {
    slots[slot].as_mut().expect("slots in `order` hold sequences for the whole round")
}

/// Takes drafts from the front while they hold, then one token of the verifier's own. `logits` is
/// `[rows, vocab]`: row i is what comes after the last token and i drafts.
fn accept_drafts(
    sequence: &mut Sequence,
    slot: usize,
    logits: &[f32],
    context: usize,
    p: &mut [f32],
    observer: &mut dyn Observer,
) -> Result<()> {
    let vocab = p.len();
    let before = sequence.tokens.len();
    let greedy = sequence.sampler.sampling().is_greedy();
    // The history that the penalty looks at grows again, draft by draft.
    for i in 0..sequence.round.drafts.len() {
        sequence.sampler.unsee(sequence.round.drafts[i]);
    }
    let mut accepted = 0;
    let mut last_row = 0;
    for (i, logits) in logits.chunks_exact(vocab).enumerate() {
        last_row = i;
        let position = before - 1 + i;
        let draft = sequence.round.drafts.get(i).copied();
        let id = if greedy {
            sequence.sampler.argmax(logits).ok_or(Error::NotFinite { position })?.0
        } else {
            sequence.sampler.distribution(logits, p).ok_or(Error::NotFinite { position })?;
            match draft {
                None => sequence.sampler.draw(p),
                Some(draft) => {
                    let q = &sequence.q[i * vocab..][..vocab];
                    if sequence.sampler.accept(draft, p, q) {
                        draft
                    } else {
                        sequence.sampler.draw_residual(p, q)
                    }
                }
            }
        };
        let kept = draft == Some(id);
        accepted += usize::from(kept);
        observer.logits(slot, logits);
        sequence.tokens.push(id);
        sequence.sampler.see(id);
        sequence.stop = if sequence.eos.contains(&id) { Some(Stop::Eos) } else { observer.token(slot, id) };
        if sequence.stop.is_none() && sequence.remaining(context) == 0 {
            sequence.stop = Some(sequence.limit_reached());
        }
        if !kept || sequence.stop.is_some() {
            break;
        }
    }
    sequence.logits_hash = logits_hash(&logits[last_row * vocab..][..vocab]);
    let Drafting { drafts, confidence, exit_layer, asked, .. } = &sequence.round;
    let round = Finished {
        exit_layer: *exit_layer,
        asked: *asked,
        drafted: drafts.len(),
        accepted,
        matched_confidence: confidence.iter().take(accepted).sum(),
        mismatched_confidence: confidence.get(accepted).copied().unwrap_or(0.0),
    };
    sequence.settle(sequence.tokens.len() - before, round);
    Ok(())
}

/// Hash of the bits of `logits`: any change in a result shows. It is a sum over the ids, so that a device may add it up in any order
/// (`cuda/kernels/sample.cu`); each share is id and bits through MurmurHash3's finaliser.
pub fn logits_hash(logits: &[f32]) -> u64 {
    let share = |(id, x): (usize, &f32)| {
        let x = (id as u64) << 32 | u64::from(x.to_bits());
        let x = (x ^ x >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let x = (x ^ x >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        x ^ x >> 33
    };
    logits.iter().enumerate().map(share).fold(0, u64::wrapping_add)
}
