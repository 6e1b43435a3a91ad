//! From a text file to training sequences.
//!
//! Start from [`Corpus`]. A text is a list of documents with two or more blank lines between them.

use std::path::Path;

use rand_chacha::{ChaCha8Rng, rand_core::Rng};
use rayon::prelude::*;

use super::Sequence;
use crate::{Error, Result, text::Tokenizer};

/// Largest text that is read into memory.
const LARGEST_TEXT: u64 = 1 << 30;

/// One part in this many of the tokens, at the end of the text, is held out for validation.
const HELD_OUT: usize = 50;

/// How documents lie in a training sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Documents {
    /// Each begins anew: with the begin token, at position 0, and without a look at those before it, as if it
    /// were alone (the document mask of the Llama 3 paper, arXiv 2407.21783, section 3.2).
    Masked,
    /// They follow each other, end token on begin token, and rows look across.
    Joined,
}

/// Reads a text, refusing what is none.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::File`] if it is no regular file, larger than 1 GiB, empty,
/// binary or not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let metadata = std::fs::metadata(path).map_err(|error| Error::io(path, error))?;
    if !metadata.is_file() {
        return Err(Error::file(path, "is not a regular file; give a text file"));
    }
    if metadata.len() > LARGEST_TEXT {
        return Err(Error::file(
            path,
            "is larger than 1 GiB, which is more than this trainer keeps in memory",
        ));
    }
    let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
    if bytes.contains(&0) {
        return Err(Error::file(path, "holds NUL bytes, so it is a binary file; give plain UTF-8 text"));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        Error::file(path, format!("is not UTF-8 from byte {} on", error.utf8_error().valid_up_to()))
    })?;
    if text.trim().is_empty() {
        return Err(Error::file(path, "holds no text"));
    }
    Ok(text)
}

/// The documents of a text: what stands between runs of two or more blank lines.
pub fn documents(text: &str) -> Vec<&str> {
    text.split("\n\n\n").map(|document| document.trim_matches('\n')).filter(|d| !d.is_empty()).collect()
}

/// The tokens that documents begin and end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Before a document, and first in every sequence.
    pub begin: u32,
    /// After a document.
    pub end: u32,
}

/// Tokens of a text and where sequences may begin.
pub struct Corpus {
    /// Documents one after the other, each between begin and end token.
    tokens: Vec<u32>,
    /// Where in `tokens` each document's end token is.
    ends: Vec<usize>,
    /// Tokens of `tokens` that sequences are drawn from; the rest is held out.
    training: usize,
    /// Positions in `tokens` where a line begins and a whole sequence of the training part follows.
    lines: Vec<usize>,
    begin: u32,
    mode: Documents,
}

impl Corpus {
    /// Encodes `documents` for sequences of `sequence` tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are too few tokens for one training and one held-out sequence; those of the
    /// tokenizer.
    pub fn new(
        documents: &[&str],
        tokenizer: &Tokenizer,
        marks: Marks,
        sequence: usize,
        mode: Documents,
    ) -> Result<Self> {
        let encoded: Vec<Vec<u32>> =
            documents.par_iter().map(|document| tokenizer.encode_text(document)).collect::<Result<_>>()?;
        let (mut tokens, mut lines, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        let mut edges = Edges { tokenizer, known: Vec::new() };
        for ids in encoded {
            tokens.push(marks.begin);
            let mut after_line = true;
            for (i, &id) in ids.iter().enumerate() {
                let edge = edges.of(id);
                if i == 0 || after_line && !edge.begins_blank {
                    lines.push(tokens.len());
                }
                after_line = edge.ends_line;
                tokens.push(id);
            }
            ends.push(tokens.len());
            tokens.push(marks.end);
        }
        let held_out = (tokens.len() / HELD_OUT).max(sequence);
        let training = tokens.len().saturating_sub(held_out);
        if training < sequence {
            return Err(Error::argument(
                "--sequence",
                format!(
                    "the text has {} tokens: too few for one training and one held-out sequence of {sequence}",
                    tokens.len()
                ),
            ));
        }
        lines.retain(|&line| line + sequence <= training);
        Ok(Corpus { tokens, ends, training, lines, begin: marks.begin, mode })
    }

    /// All tokens, the held-out ones too.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Draws a training sequence: the begin token, then the text from the start of some line (every second
    /// sequence) or from any token on, as a prompt would follow it.
    pub fn draw(&self, rng: &mut ChaCha8Rng, sequence: Sequence<'_>) {
        let from_line = rng.next_u32() & 1 == 0 && !self.lines.is_empty();
        let pick = |rng: &mut ChaCha8Rng, n: usize| (rng.next_u64() % n as u64) as usize;
        let start = if from_line {
            self.lines[pick(rng, self.lines.len())]
        } else {
            pick(rng, self.training - sequence.inputs.len() + 1)
        };
        self.fill(start, 0..self.training, sequence);
    }

    /// Up to `limit` held-out sequences of `sequence` tokens, spread evenly.
    pub fn held_out(&self, sequence: usize, limit: usize) -> super::Batch {
        let room = self.tokens.len() - self.training;
        let count = (room / sequence).min(limit);
        let mut batch = super::Batch::new(count, sequence);
        for (i, sequence) in batch.sequences_mut().enumerate() {
            let last = room - sequence.inputs.len();
            let start = self.training + last * i / count.max(2).saturating_sub(1);
            self.fill(start, self.training..self.tokens.len(), sequence);
        }
        batch
    }

    /// Fills a sequence with the tokens from `start` on, which lies in `part`.
    fn fill(&self, start: usize, part: std::ops::Range<usize>, sequence: Sequence<'_>) {
        let Sequence { inputs, targets, begins } = sequence;
        begins.fill(false);
        begins[0] = true;
        if self.mode == Documents::Joined {
            let count = inputs.len();
            targets.copy_from_slice(&self.tokens[start..start + count]);
            inputs[0] = self.begin;
            inputs[1..].copy_from_slice(&targets[..count - 1]);
            return;
        }
        // Whoever starts at a begin token would predict it from itself.
        let mut end = self.ends.partition_point(|&end| end < start);
        let mut at = if self.begins_document(start, end) { start + 1 } else { start };
        let mut previous = self.begin;
        for row in 0..inputs.len() {
            // The end token predicts nothing: what follows it is another document. Past the part's last token
            // comes its first.
            let ended = self.ends.get(end).is_some_and(|&end| at > end);
            if ended || at >= part.end {
                if at >= part.end {
                    at = part.start;
                    end = self.ends.partition_point(|&end| end < at);
                } else {
                    end += 1;
                }
                if at + 1 < part.end && self.begins_document(at, end) {
                    at += 1;
                }
                begins[row] = true;
                previous = self.begin;
            }
            (inputs[row], targets[row]) = (previous, self.tokens[at]);
            previous = targets[row];
            at += 1;
        }
    }

    /// Whether `at`, which lies in the document that `ends[document]` ends, is its begin token.
    fn begins_document(&self, at: usize, document: usize) -> bool {
        at == document.checked_sub(1).map_or(0, |before| self.ends[before] + 1)
    }
}

/// What tokens begin and end with, looked up once each.
struct Edges<'a> {
    tokenizer: &'a Tokenizer,
    known: Vec<Option<Edge>>,
}

#[derive(Clone, Copy)]
struct Edge {
    begins_blank: bool,
    ends_line: bool,
}

impl Edges<'_> {
    fn of(&mut self, id: u32) -> Edge {
        let index = id as usize;
        if self.known.len() <= index {
            self.known.resize(index + 1, None);
        }
        *self.known[index].get_or_insert_with(|| {
            let text = self.tokenizer.token_text(id);
            Edge {
                begins_blank: text.starts_with(|c: char| c.is_ascii_whitespace()),
                ends_line: text.ends_with('\n'),
            }
        })
    }
}
