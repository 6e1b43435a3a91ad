//! The sequences of a batch and their prompts. What happens in a round is in `round`.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use super::{
    device::Flights,
    policy::MAX_DRAFT,
    sampling::Sampler,
    sequence::{Drafting, Request, Sequence, Stats, Stop},
};
use crate::{
    backend::{Backend, Recordings, Round, RoundPlan, RoundShape, RoundSizes, Row},
    cache::{Cache, PageCopy},
    error::{Error, Result},
    model::{Llama, Work},
    range,
};

/// Sizes of a [`Generator`], all allocated when it is made.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most sequences at a time.
    pub sequences: usize,
    /// Most positions of a sequence, prompt and generated tokens together.
    pub context: usize,
    /// Longest draft of a policy, at most [`MAX_DRAFT`].
    pub max_draft: usize,
}

/// Room for logits of one pass of the head; a long verification takes several.
const LOGIT_BYTES: usize = 8 << 20;

/// Rows of one pass of the head, of rounds that have `round` rows for a sequence and passes of `rows`.
pub(crate) fn logit_rows(vocab: usize, round: usize, rows: usize) -> usize {
    (LOGIT_BYTES / (4 * vocab)).clamp(round, rows.max(round))
}

/// Generates text for up to [`Limits::sequences`] sequences in one batch, plainly or in rounds of early-exit
/// speculation.
///
/// Each token depends on its own sequence alone: the same request gives the same tokens in any company.
pub struct Generator<'m, B: Backend> {
    pub(super) llama: &'m Llama<B>,
    pub(super) limits: Limits,
    pub(super) cache: Cache,
    pub(super) kv: B::Kv,
    pub(super) work: Work<B>,
    pub(super) slots: Vec<Option<Sequence>>,
    /// The residual stream after the exit layer, before any norm: `[sequences · (max_draft + 1), hidden]`.
    pub(super) exit_hidden: B::Buffer,
    pub(super) rows: Vec<Row>,
    /// Slots in the order of the verification's rows.
    pub(super) order: Vec<usize>,
    pub(super) copies: Vec<PageCopy>,
    /// The distribution that a token is drawn from, `[vocab]`.
    pub(super) p: Vec<f32>,
    /// Most rows of one prefill pass, of one prompt or of several.
    prefill_rows: usize,
    pub(super) interrupt: Option<&'m AtomicBool>,
    /// Rounds that stay on the device; None where the host drives them.
    pub(super) device: Option<B::Round>,
    pub(super) plans: Vec<RoundPlan>,
    pub(super) shape: Vec<RoundShape>,
    /// Rounds that were launched and not looked at yet.
    pub(super) flights: Flights,
    /// Slot and epoch of the sequences that a round's time is counted for.
    pub(super) timed: Vec<(usize, u64)>,
    /// Sequences so far.
    epochs: u64,
    /// From the first round to that in which the last sequence ends.
    pub(super) decoding: Option<range::Span>,
}

impl<'m, B: Backend> Generator<'m, B> {
    /// A generator whose cache holds `limits.sequences` sequences of `limits.context` positions; where every
    /// layer's mask is a window or a chunk, only the positions that it can see.
    ///
    /// # Errors
    /// [`Error::Capacity`] if the memory for it is not there; [`Error::Argument`] for limits of 0.
    pub fn new(llama: &'m Llama<B>, limits: Limits) -> Result<Self> {
        if limits.sequences == 0 || limits.context == 0 || limits.context > llama.config().context {
            return Err(Error::argument(
                "--context",
                format!("{} is outside 1..={}", limits.context, llama.config().context),
            ));
        }
        let config = llama.config();
        let page = llama.backend().page_size();
        let per_sequence = limits.context.div_ceil(page);
        let row_bytes = 4 * (3 * config.hidden + 3 * config.heads * config.head_dim + config.intermediate);
        let window = Self::window(llama);
        // Behind a short window a pass must not hold many more positions than are seen.
        let most = window.map_or(usize::MAX, |window| window.max(256));
        let prompts = limits.sequences.saturating_mul(limits.context);
        let prefill_rows = llama.backend().prompt_rows(row_bytes).min(most).min(prompts);
        let rows_per_round = limits.max_draft.min(MAX_DRAFT) + 1;
        let held = match window {
            // What is seen, what one pass adds, or two rounds, and a page at either end that is held in part.
            Some(window) => (window.div_ceil(page) + prefill_rows.max(2 * rows_per_round).div_ceil(page) + 2)
                .min(per_sequence),
            None => per_sequence,
        };
        // A page more per sequence for a shared one that is written to.
        let pages = limits.sequences.saturating_mul(held + 1);
        let round_rows = limits.sequences * rows_per_round;
        let rows = round_rows.max(prefill_rows);
        let logit_rows = logit_rows(config.vocab, rows_per_round, rows);
        let cache = Cache::new(pages, page, limits.sequences, per_sequence)?;
        let kv = llama.kv(&cache)?;
        let sizes =
            RoundSizes { slots: limits.sequences, max_draft: rows_per_round - 1, vocab: config.vocab };
        Ok(Generator {
            device: llama.round(sizes, &kv)?,
            kv,
            cache,
            work: llama.work(rows, logit_rows)?,
            exit_hidden: llama.backend().buffer(round_rows, config.hidden)?,
            slots: (0..limits.sequences).map(|_| None).collect(),
            rows: Vec::with_capacity(rows),
            order: Vec::with_capacity(limits.sequences),
            copies: Vec::with_capacity(1),
            p: vec![0.0; config.vocab],
            prefill_rows,
            interrupt: None,
            plans: Vec::with_capacity(limits.sequences),
            shape: Vec::with_capacity(limits.sequences),
            flights: Flights::new(limits.sequences),
            timed: Vec::with_capacity(2 * limits.sequences),
            epochs: 0,
            decoding: None,
            llama,
            limits,
        })
    }

    /// Bytes of the KV cache that [`Generator::new`] would allocate.
    pub fn cache_bytes(&self) -> usize {
        self.cache.pages() * self.cache.page_size() * self.llama.kv_bytes()
    }

    /// What has been recorded of rounds on a device; None where the host drives them.
    pub fn recordings(&self) -> Option<Recordings> {
        self.device.as_ref().map(Round::recordings)
    }

    /// Once `flag` is set, every sequence ends with [`Stop::Interrupted`] before its next round.
    pub fn interrupt_with(&mut self, flag: &'m AtomicBool) {
        self.interrupt = Some(flag);
    }

    /// Positions that the masks hold on to, prefix included; None if some layer looks back without bound.
    fn window(llama: &Llama<B>) -> Option<usize> {
        let masks = &llama.config().masks;
        let spans = masks.iter().map(|mask| mask.span().map(|span| span + mask.prefix));
        spans.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// Begins `request`: computes its prompt, except what a sequence that is live shares with it, and returns
    /// its slot. The first token comes from the next round.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty prompt, one that leaves no room in the context, ids outside the vocabulary, a
    /// policy that drafts more than [`Limits::max_draft`]; [`Error::Capacity`] if every slot is taken. Nothing has begun
    /// then.
    pub fn start(&mut self, request: Request) -> Result<usize> {
        self.check(&request)?;
        let slot = self.free_slots(1)?[0];
        self.begin_all(vec![request], &[slot])?;
        Ok(slot)
    }

    /// Begins several requests as [`Generator::start`] does one, and returns their slots in the same order. The rows of
    /// their prompts are computed together, so that many short prompts read the weights once. Each is computed in the
    /// bits that it would have alone.
    ///
    /// # Errors
    /// Those of [`Generator::start`], of the first request that has one, with its number, from 1, where there are
    /// several. None has begun then.
    pub fn start_all(&mut self, requests: Vec<Request>) -> Result<Vec<usize>> {
        for (i, request) in requests.iter().enumerate() {
            self.check(request).map_err(|error| match error {
                Error::Argument { argument, reason } if requests.len() > 1 => {
                    Error::Argument { argument: format!("request {}: {argument}", i + 1), reason }
                }
                other => other,
            })?;
        }
        let slots = self.free_slots(requests.len())?;
        self.begin_all(requests, &slots)?;
        Ok(slots)
    }

    /// Goes on in `slot` with a new request whose prompt repeats some of the slot's tokens, as a chat does:
    /// what the cache holds of them is kept. What was generated stays as decode rows computed it, in the same bits
    /// plainly and speculatively; a fresh run would compute it as a part of its prompt, and differ in the last bits.
    ///
    /// # Errors
    /// As [`Generator::start`]; the slot is as it was then, but where the prompt cannot be computed: its sequence has
    /// ended.
    pub fn resume(&mut self, slot: usize, request: Request) -> Result<()> {
        self.check(&request)?;
        let Some(sequence) = self.slots.get(slot).and_then(Option::as_ref) else {
            return Err(Error::argument("slot", format!("{slot} holds no sequence")));
        };
        let cached = sequence.cached;
        // The cache may have room for more than there is.
        let mut kept = common_prefix(&sequence.tokens, &request.prompt)
            .min(self.cache.len(cached)?)
            .min(sequence.tokens.len() - 1)
            .min(request.prompt.len() - 1);
        if self.cache.truncate(cached, kept).is_err() || self.looks_back_at_released(cached, kept)? {
            kept = 0;
            self.cache.truncate(cached, 0)?;
        }
        debug_assert_eq!(self.cache.len(cached)?, kept);
        // What is kept beyond the slot's own prompt was generated.
        let prefilled = if kept > sequence.prefilled { sequence.prefilled } else { request.prompt.len() - 1 };
        self.slots[slot] = Some(self.sequence(cached, prefilled, request)?);
        self.rows.clear();
        let begun = self.queue_prompt(slot).and_then(|()| self.prefill());
        let begun = begun.and_then(|()| self.begin_on_device(slot));
        if begun.is_err() {
            self.rows.clear();
            self.interrupt_prompt(cached);
            self.cache.truncate(cached, kept)?;
        }
        begun
    }

    /// Ends the sequence of `slot` and gives its pages back.
    pub fn finish(&mut self, slot: usize) -> Option<Finished> {
        let sequence = self.slots.get_mut(slot)?.take()?;
        let _ = self.cache.drop_sequence(sequence.cached);
        Some(Finished::of(&sequence))
    }

    /// What has come of the sequence in `slot` so far; it stays where it is.
    pub fn peek(&self, slot: usize) -> Option<Finished> {
        self.slots.get(slot)?.as_ref().map(Finished::of)
    }

    /// Whether the sequence of `slot` has ended, and why.
    pub fn stopped(&self, slot: usize) -> Option<Stop> {
        self.slots.get(slot)?.as_ref()?.stop
    }

    /// Whether any sequence has not ended.
    pub fn is_active(&self) -> bool {
        self.slots.iter().flatten().any(|s| s.stop.is_none())
    }

    fn check(&self, request: &Request) -> Result<()> {
        let (prompt, context) = (&request.prompt, self.limits.context);
        let vocab = self.llama.config().vocab;
        if prompt.is_empty() {
            return Err(Error::argument("prompt", "is empty: give at least one token to go on from"));
        }
        if let Some(id) = prompt.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::argument("prompt", format!("id {id} is outside the vocabulary of {vocab}")));
        }
        if prompt.len() >= context {
            return Err(Error::argument(
                "prompt",
                format!(
                    "its {} tokens leave no room in a context of {context}: shorten it or raise --context (at most {})",
                    prompt.len(),
                    self.llama.config().context
                ),
            ));
        }
        let asked = request.policy.as_ref().map_or(0, |p| p.max_draft());
        if asked > self.limits.max_draft {
            return Err(Error::argument(
                "--draft",
                format!("{asked} is more than the {} that buffers are made for", self.limits.max_draft),
            ));
        }
        request.sampling.validate()
    }

    /// The live sequence that shares most of `prompt` with its prefilled tokens, by at least a page. What it
    /// generated is not shared: those were decode rows, and `prompt` alone would be computed as prompt rows.
    fn longest_shared(&self, prompt: &[u32]) -> Option<(usize, usize)> {
        let shared = |s: &Sequence| {
            let cached = self.cache.len(s.cached).unwrap_or(0);
            common_prefix(&s.tokens[..cached.min(s.prefilled)], &prompt[..prompt.len() - 1])
        };
        let whole =
            |s: &&Sequence| !self.cache.table(s.cached).unwrap_or(&[]).contains(&crate::cache::RELEASED);
        let best = self
            .slots
            .iter()
            .flatten()
            .filter(whole)
            .map(|s| (s.cached, shared(s)))
            .max_by_key(|(_, n)| *n)?;
        (best.1 >= self.cache.page_size()).then_some(best)
    }

    /// Whether a row at `position` would see positions whose pages are gone.
    fn looks_back_at_released(&self, cached: usize, position: usize) -> Result<bool> {
        let page = self.cache.page_size();
        let table = self.cache.table(cached)?;
        Ok(self.llama.config().masks.iter().any(|mask| {
            let seen = mask.visible(position, position + 1, 0);
            let pages = (0..seen.prefix.div_ceil(page)).chain(seen.lo / page..seen.hi.div_ceil(page));
            pages.into_iter().any(|p| table.get(p) == Some(&crate::cache::RELEASED))
        }))
    }

    /// The first `count` slots that are free.
    fn free_slots(&self, count: usize) -> Result<Vec<usize>> {
        let free = || (0..self.slots.len()).filter(|slot| self.slots[*slot].is_none());
        if free().count() < count {
            let (what, needed) = match count {
                1 => ("another sequence".into(), "a free slot".into()),
                _ => (format!("{count} more sequences"), format!("{count} free slots")),
            };
            let taken = self.limits.sequences - free().count();
            let available = match taken == self.limits.sequences {
                true => format!("all {taken} are taken"),
                false => format!("{taken} of {} are taken", self.limits.sequences),
            };
            return Err(Error::Capacity { what, needed, available });
        }
        Ok(free().take(count).collect())
    }

    /// Puts each request, which has been checked, into its slot, which is free, and computes the prompts.
    fn begin_all(&mut self, requests: Vec<Request>, slots: &[usize]) -> Result<()> {
        self.rows.clear();
        let begun =
            requests.into_iter().zip(slots).try_for_each(|(request, slot)| self.queue(*slot, request));
        let begun = begun.and_then(|()| self.prefill());
        let begun = begun.and_then(|()| slots.iter().try_for_each(|slot| self.begin_on_device(*slot)));
        begun.inspect_err(|_| {
            self.rows.clear();
            for slot in slots {
                self.finish(*slot);
            }
        })
    }

    /// Puts `request` into `slot` with what it shares with a live sequence, and adds the rest of its prompt to the rows
    /// that wait.
    fn queue(&mut self, slot: usize, request: Request) -> Result<()> {
        let mut shared = self.longest_shared(&request.prompt);
        let waits =
            |(other, count)| self.rows.iter().any(|row| row.sequence == other && row.position < count);
        if shared.is_some_and(waits) {
            // A page that is to be copied must have been written.
            self.prefill()?;
            shared = self.longest_shared(&request.prompt);
        }
        let cached = match shared {
            Some((other, count)) => self.cache.fork(other, count)?,
            None => self.cache.create()?,
        };
        let sequence = self.sequence(cached, request.prompt.len() - 1, request).inspect_err(|_| {
            let _ = self.cache.drop_sequence(cached);
        })?;
        self.slots[slot] = Some(sequence);
        self.queue_prompt(slot)
    }

    /// A sequence with nothing generated. The leading `prefilled` tokens of its prompt are prompt rows.
    fn sequence(&mut self, cached: usize, prefilled: usize, request: Request) -> Result<Sequence> {
        let vocab = self.llama.config().vocab;
        let context = self.limits.context;
        let Request { prompt, max_tokens, sampling, policy, eos } = request;
        let max_tokens = max_tokens.min(context);
        let drafts = policy.as_ref().map_or(0, |p| p.max_draft());
        let mut sampler = Sampler::new(sampling, vocab)?;
        prompt.iter().for_each(|id| sampler.see(*id));
        let length = prompt.len();
        let mut tokens = prompt;
        tokens.reserve_exact(max_tokens.min(context - length));
        self.epochs += 1;
        Ok(Sequence {
            epoch: self.epochs,
            cached,
            tokens,
            prompt: length,
            prefilled,
            max_tokens,
            sampler,
            policy,
            eos,
            stop: (max_tokens == 0).then_some(Stop::Length),
            stats: Stats::default(),
            round: Drafting {
                drafts: Vec::with_capacity(drafts),
                confidence: Vec::with_capacity(drafts),
                ..Drafting::default()
            },
            finished: None,
            q: if sampling.is_greedy() { Vec::new() } else { vec![0.0; drafts * vocab] },
            logits_hash: 0,
        })
    }

    /// Adds the prompt of `slot` but for its last token, from where the cache ends, to the rows that wait. Whenever
    /// these are as many as a pass takes, they are computed.
    fn queue_prompt(&mut self, slot: usize) -> Result<()> {
        let Some(sequence) = &self.slots[slot] else { return Ok(()) };
        let (cached, end) = (sequence.cached, sequence.prompt - 1);
        let mut next = self.cache.len(cached)?;
        while next < end && !self.interrupted() {
            let count = (end - next).min(self.prefill_rows - self.rows.len());
            self.append(cached, count)?;
            let row = |(position, token): (usize, &u32)| Row { token: *token, position, sequence: cached };
            if let Some(sequence) = &self.slots[slot] {
                self.rows.extend(sequence.tokens.iter().enumerate().skip(next).take(count).map(row));
            }
            next += count;
            if self.rows.len() == self.prefill_rows {
                self.prefill()?;
            }
        }
        if next < end {
            self.interrupt_prompt(cached);
        }
        Ok(())
    }

    /// Computes the keys and values of the rows that wait. If that fails or the user has interrupted it, the cache holds
    /// none of them.
    fn prefill(&mut self) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        let begun = Instant::now();
        let interrupted = self.interrupted();
        let done = match interrupted {
            true => Ok(()),
            // A prompt's time is that of its rows, not of their launches.
            false => self
                .llama
                .prefill(&rows, &mut self.kv, &self.cache, &mut self.work)
                .and_then(|()| self.llama.backend().synchronize()),
        };
        let seconds = begun.elapsed().as_secs_f64() / rows.len() as f64;
        let settled = rows.chunk_by(|a, b| a.sequence == b.sequence).try_for_each(|of_prompt| {
            let (cached, first, count) = (of_prompt[0].sequence, of_prompt[0].position, of_prompt.len());
            if interrupted || done.is_err() {
                self.interrupt_prompt(cached);
                return self.cache.truncate(cached, first);
            }
            if let Some(sequence) = self.slots.iter_mut().flatten().find(|s| s.cached == cached) {
                sequence.stats.prefill_tokens += count;
                sequence.stats.prefill_seconds += seconds * count as f64;
            }
            self.release(cached, first + count)
        });
        self.rows = rows;
        self.rows.clear();
        done.and(settled)
    }

    fn interrupted(&self) -> bool {
        self.interrupt.is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// Ends a sequence whose prompt is not computed to its end.
    fn interrupt_prompt(&mut self, cached: usize) {
        if let Some(sequence) = self.slots.iter_mut().flatten().find(|s| s.cached == cached) {
            sequence.stop = Some(Stop::Interrupted);
        }
    }

    /// Makes `n` more positions of a sequence writable.
    pub(super) fn append(&mut self, cached: usize, n: usize) -> Result<()> {
        self.copies.clear();
        self.cache.append(cached, n, &mut self.copies)?;
        for copy in &self.copies {
            self.llama.backend().copy_page(&mut self.kv, copy.from, copy.to)?;
        }
        Ok(())
    }

    /// Gives back the pages that no row from `position` on can see.
    pub(super) fn release(&mut self, cached: usize, position: usize) -> Result<()> {
        let masks = &self.llama.config().masks;
        let horizon = masks.iter().map(|m| m.horizon(position)).min().unwrap_or(0);
        let prefix = masks.iter().map(|m| m.prefix).max().unwrap_or(0);
        if horizon > 0 { self.cache.release(cached, prefix, horizon) } else { Ok(()) }
    }
}

/// What came of a sequence.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Generated ids, a closing EOS included.
    pub ids: Vec<u32>,
    /// Why it ended; None if it could go on.
    pub stop: Option<Stop>,
    /// What it cost.
    pub stats: Stats,
    /// Hash of the logits that the last id was chosen from; 0 before there is one.
    pub logits_hash: u64,
}

impl Finished {
    fn of(sequence: &Sequence) -> Self {
        Finished {
            ids: sequence.tokens[sequence.prompt..].to_vec(),
            stop: sequence.stop,
            stats: sequence.stats.clone(),
            logits_hash: sequence.logits_hash,
        }
    }
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
