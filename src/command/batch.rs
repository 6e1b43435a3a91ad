//! Decoding a list of prompts as one batch, with their texts as they come. Start from [`Batch::run`].

use std::{ops::Range, time::Instant};

use warploom::{
    Result,
    backend::{Backend, Recordings},
    decode::{Finished, Generator, Limits, Observer, Request, Sampling, Stop},
    model::Llama,
    text::{StopStrings, TextStream, Tokenizer},
};

use super::{interrupt, options::Drafting};

/// Most sequences at a time: the next prompt begins when one of them ends.
const MAX_SEQUENCES: usize = 16;

/// Prompts and what to make of each.
pub struct Batch<'a> {
    /// Ids of each prompt.
    pub prompts: &'a [Vec<u32>],
    /// Most tokens for each.
    pub max_tokens: usize,
    /// How tokens are chosen; every sequence draws from random numbers of its own, begun at the same seed.
    pub sampling: Sampling,
    /// How rounds draft.
    pub drafting: Drafting,
    /// Strings that end a text.
    pub stops: &'a [String],
    /// Turns ids into text, if there is one.
    pub tokenizer: Option<&'a Tokenizer>,
}

/// What came of one prompt.
pub struct Outcome {
    /// Its ids, its end and its cost.
    pub finished: Finished,
    /// Its text by itself, special tokens left out, up to a stop string; None without a tokenizer.
    pub text: Option<String>,
    /// The same as it goes on from the prompt: a leading space is kept.
    pub continuation: Option<String>,
}

/// Who is told of progress.
pub trait Listener {
    /// `text` is certain to come next in the continuation of prompt `index`. False ends everything.
    fn text(&mut self, index: usize, text: &str) -> Result<bool>;
    /// `ids` come next for prompt `index`. False ends everything.
    fn ids(&mut self, index: usize, ids: &[u32]) -> Result<bool>;
    /// Prompt `index` has ended. False ends everything.
    fn ended(&mut self, index: usize, outcome: Outcome) -> Result<bool>;
}

impl Batch<'_> {
    /// The positions that the longest of its sequences can take.
    pub fn needed(&self) -> usize {
        let longest = self.prompts.iter().map(Vec::len).max().unwrap_or(0);
        longest.saturating_add(self.max_tokens.max(1))
    }

    /// Decodes all prompts, in order, as many at a time as there is room for. Returns the seconds that decoding took, prefill apart, and on
    /// a device what was recorded. Ctrl-C ends every sequence with what there is.
    ///
    /// # Errors
    /// Those of [`Generator`] and of `listener`.
    pub fn run<B: Backend>(
        &self,
        llama: &Llama<B>,
        context: usize,
        listener: &mut dyn Listener,
    ) -> Result<(f64, Option<Recordings>)> {
        let limits = Limits {
            sequences: self.prompts.len().clamp(1, MAX_SEQUENCES),
            context: context.min(self.needed()),
            max_draft: self.drafting.max_draft(llama.config().layers)?,
        };
        let mut generator = Generator::new(llama, limits)?;
        generator.interrupt_with(interrupt::flag());
        let mut live = Live((0..limits.sequences).map(|_| None).collect());
        let mut waiting = 0..self.prompts.len();
        let mut seconds = 0.0;
        loop {
            self.begin(llama, &mut generator, &mut live, &mut waiting)?;
            if generator.is_active() {
                let begun = Instant::now();
                generator.round(&mut live)?;
                seconds += begun.elapsed().as_secs_f64();
            }
            if !live.tell(&mut generator, listener)? {
                return Ok((seconds, generator.recordings()));
            }
            if waiting.is_empty() && live.0.iter().all(Option::is_none) {
                return Ok((seconds, generator.recordings()));
            }
        }
    }

    /// Starts as many prompts as there are free slots, together.
    fn begin<'s, B: Backend>(
        &'s self,
        llama: &Llama<B>,
        generator: &mut Generator<B>,
        live: &mut Live<'s>,
        waiting: &mut Range<usize>,
    ) -> Result<()> {
        let free = live.0.iter().filter(|slot| slot.is_none()).count();
        let next: Vec<usize> = waiting.take(free).collect();
        let request = |index: &usize| {
            Ok(Request {
                prompt: self.prompts[*index].clone(),
                max_tokens: self.max_tokens,
                sampling: self.sampling,
                policy: self.drafting.build(llama.config().layers)?,
                eos: llama.config().eos.clone(),
            })
        };
        let slots = generator.start_all(next.iter().map(request).collect::<Result<_>>()?)?;
        for (slot, index) in slots.into_iter().zip(next) {
            let prompt = &self.prompts[index];
            live.0[slot] = Some(Sequence {
                index,
                stream: self.tokenizer.map(|tokenizer| TextStream::after(tokenizer, prompt)),
                tokenizer: self.tokenizer,
                stops: StopStrings::new(self.stops.to_vec())?,
                continuation: String::new(),
                certain: 0,
                told: 0,
                ids_told: 0,
            });
        }
        Ok(())
    }
}

/// The sequences being decoded, by slot.
struct Live<'a>(Vec<Option<Sequence<'a>>>);

struct Sequence<'a> {
    /// Which prompt it goes on from.
    index: usize,
    stream: Option<TextStream<'a>>,
    tokenizer: Option<&'a Tokenizer>,
    stops: StopStrings,
    /// Text so far, without what a stop string might still take away.
    continuation: String,
    /// Bytes of text that the stream has given, withheld ones and those behind a stop string included.
    certain: usize,
    /// Bytes of `continuation` that the listener knows.
    told: usize,
    ids_told: usize,
}

impl Observer for Live<'_> {
    fn token(&mut self, slot: usize, id: u32) -> Option<Stop> {
        let sequence = self.0[slot].as_mut()?;
        let text = sequence.stream.as_mut()?.push(id)?;
        sequence.take(&text)
    }

    fn wants_logits(&self) -> bool {
        false
    }
}

impl Live<'_> {
    /// Tells `listener` what the last round brought, and finishes the sequences that have ended.
    fn tell<B: Backend>(
        &mut self,
        generator: &mut Generator<B>,
        listener: &mut dyn Listener,
    ) -> Result<bool> {
        for (slot, entry) in self.0.iter_mut().enumerate() {
            let Some(sequence) = entry else { continue };
            let stopped = generator.stopped(slot).is_some();
            let peeked = match sequence.stream {
                Some(_) => None,
                None => generator.peek(slot),
            };
            if let Some(peeked) = peeked {
                let new = &peeked.ids[sequence.ids_told..];
                if !new.is_empty() && !listener.ids(sequence.index, new)? {
                    return Ok(false);
                }
                sequence.ids_told = peeked.ids.len();
            }
            if !stopped {
                if !sequence.tell(listener)? {
                    return Ok(false);
                }
                continue;
            }
            let (Some(mut sequence), Some(finished)) = (entry.take(), generator.finish(slot)) else {
                continue;
            };
            let outcome = sequence.end(finished)?;
            if let Some(text) = &outcome.continuation
                && text.len() > sequence.told
                && !listener.text(sequence.index, &text[sequence.told..])?
            {
                return Ok(false);
            }
            if !listener.ended(sequence.index, outcome)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Sequence<'_> {
    fn take(&mut self, text: &str) -> Option<Stop> {
        self.certain += text.len();
        let step = self.stops.push(text);
        self.continuation += &step.text;
        step.stop.map(|_| Stop::String)
    }

    fn tell(&mut self, listener: &mut dyn Listener) -> Result<bool> {
        if self.continuation.len() == self.told {
            return Ok(true);
        }
        let from = std::mem::replace(&mut self.told, self.continuation.len());
        listener.text(self.index, &self.continuation[from..])
    }

    /// The outcome, with the text that was held back.
    fn end(&mut self, mut finished: Finished) -> Result<Outcome> {
        let (Some(mut stream), Some(tokenizer)) = (self.stream.take(), self.tokenizer) else {
            return Ok(Outcome { finished, text: None, continuation: None });
        };
        // An EOS that is an ordinary word of the tokenizer belongs to the text; the observer is not told of it.
        if finished.stop == Some(Stop::Eos)
            && let Some(text) = finished.ids.last().and_then(|eos| stream.push(*eos))
        {
            self.take(&text);
        }
        let rest = stream.flush()?;
        if let Some(stop) = self.take(&rest) {
            // A decoder that gives its text at the end alone.
            finished.stop = Some(stop);
        }
        self.continuation += &self.stops.flush();
        let mut text = tokenizer.decode(&finished.ids, true)?;
        if finished.stop == Some(Stop::String) {
            // Both texts end alike, so what a stop string cut from the one is cut from the other.
            let cut = self.certain - self.continuation.len();
            let mut kept = text.len().saturating_sub(cut);
            while !text.is_char_boundary(kept) {
                kept -= 1;
            }
            text.truncate(kept);
        }
        Ok(Outcome { finished, text: Some(text), continuation: Some(std::mem::take(&mut self.continuation)) })
    }
}
