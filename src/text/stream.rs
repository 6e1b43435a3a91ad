//! From ids to text, one id at a time: what is certain comes out at once, the rest is held back.

use tokenizers::DecoderWrapper;

use super::{Tokenizer, text_error};
use crate::Result;

/// Turns ids into text as they are generated. Special tokens are left out.
///
/// The pieces handed out by [`push`](Self::push) and [`flush`](Self::flush), put together, are exactly
/// [`Tokenizer::decode`] of all the ids. So a piece is held back while a later id could still change it: the first
/// bytes of a character and, with Llama 2's byte fallback, a run of byte tokens until it ends (one bad byte makes
/// the whole run U+FFFD).
///
/// ```no_run
/// # fn main() -> warploom::Result<()> {
/// use warploom::text::{TextStream, Tokenizer};
/// let tokenizer = Tokenizer::from_dir("llama".as_ref(), 128_256)?;
/// let mut stream = TextStream::new(&tokenizer);
/// for id in [9906, 11, 1917] {
///     if let Some(text) = stream.push(id) {
///         print!("{text}");
///     }
/// }
/// println!("{}", stream.flush()?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    state: State<'a>,
}

#[derive(Debug)]
enum State<'a> {
    /// Bytes of a character that is not complete.
    ByteLevel { pending: Vec<u8> },
    /// A run of byte tokens, and how many characters may still be stripped from the start of the text.
    ByteFallback { rule: &'a ByteFallback, run: Vec<u8>, strip: usize },
    /// All ids so far: nothing is certain before the end.
    Whole { ids: Vec<u32> },
}

impl<'a> TextStream<'a> {
    /// A stream of a text of its own: together, the pieces are `decode(ids, true)`. With Llama 2 the space before
    /// the first word is left out, as at the start of any text.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        let state = match tokenizer.decoding() {
            Decoding::ByteLevel => State::ByteLevel { pending: Vec::new() },
            Decoding::ByteFallback(rule) => {
                State::ByteFallback { rule, run: Vec::new(), strip: rule.strip.1 }
            }
            Decoding::Whole => State::Whole { ids: Vec::new() },
        };
        Self { tokenizer, state }
    }

    /// A stream that continues `prompt`: together, the pieces are what `decode(prompt + ids, true)` adds to the
    /// certain text of `prompt`. With Llama 2 the space between the prompt and the first generated word is kept.
    ///
    /// A character that the prompt left incomplete comes out with the stream. With a decoder that the stream does
    /// not know (see [`push`](Self::push)) it is a text of its own, as with [`new`](Self::new).
    pub fn after(tokenizer: &'a Tokenizer, prompt: &[u32]) -> Self {
        let mut stream = Self::new(tokenizer);
        if let State::Whole { .. } = stream.state {
            return stream;
        }
        for &id in prompt {
            stream.push(id);
        }
        stream
    }

    /// Takes the next id; returns the text that is now certain, if there is any.
    ///
    /// The decoders of the Llama family stream; with any other the whole text comes out at the end.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let token = self.tokenizer.token(id)?;
        if self.tokenizer.is_special_token(&token) {
            return None;
        }
        let text = match &mut self.state {
            State::ByteLevel { pending } => {
                push_byte_level(&token, pending);
                take_utf8(pending, false)
            }
            State::ByteFallback { rule, run, strip } => {
                let piece = rule.replace(&token);
                if let Some(byte) = byte_token(&piece) {
                    run.push(byte);
                    return None;
                }
                let text = take_run(run) + &piece;
                strip_start(&text, rule.strip.0, strip).to_string()
            }
            State::Whole { ids } => {
                ids.push(id);
                return None;
            }
        };
        (!text.is_empty()).then_some(text)
    }

    /// What is left at the end, incomplete characters as U+FFFD.
    ///
    /// # Errors
    /// Only with a decoder that does not stream: its refusal of the whole text.
    pub fn flush(mut self) -> Result<String> {
        match &mut self.state {
            State::ByteLevel { pending } => Ok(take_utf8(pending, true)),
            State::ByteFallback { rule, run, strip } => {
                Ok(strip_start(&take_run(run), rule.strip.0, strip).to_string())
            }
            State::Whole { ids } => self.tokenizer.decode(ids, true),
        }
    }
}

/// How a tokenizer's decoder turns tokens into text, as far as that can be done token by token.
#[derive(Debug)]
pub(super) enum Decoding {
    /// Each character of a token stands for a byte (GPT-2's table; Llama 3).
    ByteLevel,
    /// Tokens are text, `<0xNN>` tokens are bytes (Llama 2).
    ByteFallback(ByteFallback),
    /// Any other decoder: the crate's own, over all ids at once.
    Whole,
}

/// The decoder sequence of Llama 2: Replace, ByteFallback, Fuse, Strip.
#[derive(Debug)]
pub(super) struct ByteFallback {
    /// What stands for a space (`▁`), and the space.
    space: (String, String),
    /// The character to strip from the start of the text, and how often at most.
    strip: (char, usize),
}

impl ByteFallback {
    fn replace(&self, token: &str) -> String {
        token.replace(&self.space.0, &self.space.1)
    }
}

impl Decoding {
    /// Reads the decoder's settings from its JSON form: the crate keeps some of them private.
    pub(super) fn of(decoder: Option<&DecoderWrapper>) -> Result<Self> {
        let settings =
            serde_json::to_value(decoder).map_err(|error| text_error("tokenizer.json: decoder", error))?;
        let steps = match settings["decoders"].as_array() {
            Some(steps) => steps.as_slice(),
            None => std::slice::from_ref(&settings),
        };
        let kinds: Vec<_> = steps.iter().map(|step| step["type"].as_str().unwrap_or_default()).collect();
        let strip = match kinds.as_slice() {
            ["ByteLevel"] => return Ok(Decoding::ByteLevel),
            ["Replace", "ByteFallback", "Fuse"] => Some((' ', 0)),
            ["Replace", "ByteFallback", "Fuse", "Strip"] => strip_setting(&steps[3]),
            _ => None,
        };
        let pattern = steps.first().and_then(|step| step["pattern"]["String"].as_str());
        let content = steps.first().and_then(|step| step["content"].as_str());
        Ok(match (pattern, content, strip) {
            (Some(pattern), Some(content), Some(strip)) if !pattern.is_empty() => {
                Decoding::ByteFallback(ByteFallback { space: (pattern.into(), content.into()), strip })
            }
            _ => Decoding::Whole,
        })
    }

    /// One token as text, without regard to its neighbours.
    pub(super) fn token_text(&self, token: &str) -> String {
        match self {
            Decoding::ByteLevel => {
                let mut bytes = Vec::new();
                push_byte_level(token, &mut bytes);
                take_utf8(&mut bytes, true)
            }
            Decoding::ByteFallback(rule) => {
                let piece = rule.replace(token);
                match byte_token(&piece) {
                    Some(byte) => take_run(&mut vec![byte]),
                    None => piece,
                }
            }
            Decoding::Whole => token.to_string(),
        }
    }
}

/// The character and count of a Strip that touches the start of the text only.
fn strip_setting(step: &serde_json::Value) -> Option<(char, usize)> {
    if step["stop"].as_u64()? != 0 {
        return None;
    }
    Some((step["content"].as_str()?.chars().next()?, usize::try_from(step["start"].as_u64()?).ok()?))
}

/// Appends the bytes of a token whose characters stand for bytes. A token with any other character (an added
/// token) is its own text.
fn push_byte_level(token: &str, bytes: &mut Vec<u8>) {
    let before = bytes.len();
    for c in token.chars() {
        match byte_of(c) {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(before);
                bytes.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// The byte that `c` stands for in byte-level BPE: the printable characters of Latin-1 stand for themselves, the
/// other 68 bytes are, in order, the characters from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    let code = c as u32;
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    Some(byte as u8)
}

/// The byte of a `<0xNN>` token.
fn byte_token(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Takes the text of a run of byte tokens: UTF-8 as a whole, or U+FFFD for each byte.
fn take_run(run: &mut Vec<u8>) -> String {
    match String::from_utf8(std::mem::take(run)) {
        Ok(text) => text,
        Err(error) => "\u{fffd}".repeat(error.as_bytes().len()),
    }
}

/// Takes the certain part of `bytes`: all but an incomplete character at the end, or everything if this is the
/// end. Bytes that are no UTF-8 become U+FFFD as in [`String::from_utf8_lossy`].
fn take_utf8(bytes: &mut Vec<u8>, end: bool) -> String {
    let mut certain = bytes.len();
    if !end {
        let mut at = 0;
        while let Err(error) = std::str::from_utf8(&bytes[at..]) {
            match error.error_len() {
                Some(invalid) => at += error.valid_up_to() + invalid,
                None => {
                    certain = at + error.valid_up_to();
                    break;
                }
            }
        }
    }
    let text = String::from_utf8_lossy(&bytes[..certain]).into_owned();
    bytes.drain(..certain);
    text
}

/// `text` without up to `left` leading characters `c`, counted down; the first other character ends the stripping.
fn strip_start<'t>(mut text: &'t str, c: char, left: &mut usize) -> &'t str {
    while *left > 0 && !text.is_empty() {
        match text.strip_prefix(c) {
            Some(rest) => {
                text = rest;
                *left -= 1;
            }
            None => *left = 0,
        }
    }
    text
}
