//! From a text file to training sequences.
//!
//! Start from [`Corpus`]. A text is a list of documents with two or more blank lines between them.

use std::path::Path;

use rand_chacha::{ChaCha8Rng, rand_core::Rng};
use tokenizers::Tokenizer;

use crate::{Error, Result};

/// Largest text that is read into memory.
const LARGEST_TEXT: u64 = 1 << 30;

/// One part in this many of the tokens, at the end of the text, is held out for validation.
const HELD_OUT: usize = 50;

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

/// Tokens of a text and where sequences may begin.
pub struct Corpus {
    /// Documents one after the other, each between begin and end token.
    tokens: Vec<u32>,
    /// Tokens of `tokens` that sequences are drawn from; the rest is held out.
    training: usize,
    /// Positions in `tokens` where a line begins and a whole sequence of the training part follows.
    lines: Vec<usize>,
    begin: u32,
}

impl Corpus {
    /// Encodes `documents` for sequences of `sequence` tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are too few tokens for one training and one held-out sequence.
    pub fn new(documents: &[&str], tokenizer: &Tokenizer, sequence: usize) -> Result<Self> {
        let encodings = tokenizer.encode_batch(documents.to_vec(), false);
        let encodings = encodings
            .map_err(|error| Error::Text { what: "encoding the text".into(), reason: error.to_string() })?;
        let id = |token: &str| {
            tokenizer.token_to_id(token).ok_or_else(|| Error::Text {
                what: "the tokenizer".into(),
                reason: format!("has no token {token}"),
            })
        };
        let (begin, end) = (id(super::tokenizer::BEGIN)?, id(super::tokenizer::END)?);
        let (mut tokens, mut lines) = (Vec::new(), Vec::new());
        for (document, encoding) in documents.iter().zip(&encodings) {
            tokens.push(begin);
            for (&token, &(start, _)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
                let bytes = document.as_bytes();
                if start == 0 || (bytes[start - 1] == b'\n' && !bytes[start].is_ascii_whitespace()) {
                    lines.push(tokens.len());
                }
                tokens.push(token);
            }
            tokens.push(end);
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
        Ok(Corpus { tokens, training, lines, begin })
    }

    /// Draws a training sequence: the begin token, then the text from the start of some line (every second
    /// sequence) or from any token on, as a prompt would follow it.
    pub fn draw(&self, rng: &mut ChaCha8Rng, inputs: &mut [u32], targets: &mut [u32]) {
        let from_line = rng.next_u32() & 1 == 0 && !self.lines.is_empty();
        let pick = |rng: &mut ChaCha8Rng, n: usize| (rng.next_u64() % n as u64) as usize;
        let start = if from_line {
            self.lines[pick(rng, self.lines.len())]
        } else {
            pick(rng, self.training - inputs.len() + 1)
        };
        self.fill(start, inputs, targets);
    }

    /// Up to `limit` held-out sequences of `sequence` tokens, spread evenly: inputs and targets.
    pub fn held_out(&self, sequence: usize, limit: usize) -> Vec<(Vec<u32>, Vec<u32>)> {
        let room = self.tokens.len() - self.training;
        let count = (room / sequence).min(limit);
        let starts =
            (0..count).map(|i| self.training + (room - sequence) * i / count.max(2).saturating_sub(1));
        starts
            .map(|start| {
                let (mut inputs, mut targets) = (vec![0; sequence], vec![0; sequence]);
                self.fill(start, &mut inputs, &mut targets);
                (inputs, targets)
            })
            .collect()
    }

    fn fill(&self, start: usize, inputs: &mut [u32], targets: &mut [u32]) {
        let count = inputs.len();
        targets.copy_from_slice(&self.tokens[start..start + count]);
        inputs[0] = self.begin;
        inputs[1..].copy_from_slice(&targets[..count - 1]);
    }
}
