//! The ids of a long text with the memory of a short one: it is encoded piece by piece.
//!
//! Encoding takes some 200 bytes of memory for each byte of text. A text is cut where tokens end whatever lies further
//! away: after a line's end, before a space, after a word. Whether the tokenizer at hand sees a place so
//! is tried out there, on the text around it; so the ids are those of the whole.

use super::text_error;
use crate::Result;

/// Bytes of a piece, for a tokenizer that does not make texts longer before it splits them.
const PIECE: usize = 128 << 10;
/// As many times longer may a piece become in search of a place to cut.
const STRETCH: usize = 4;
/// Bytes on either side of a place over which it is tried out.
const AROUND: usize = 256;
/// Places of a kind that are tried out before the next kind is.
const TRIES: usize = 8;

/// Places to cut at, the best kind first, told by the characters before and after.
const PLACES: [fn(char, char) -> bool; 3] = [
    |before, after| before == '\n' && !after.is_whitespace(),
    |before, after| !before.is_whitespace() && after == ' ',
    |before, after| before.is_alphabetic() && !after.is_alphanumeric() && !after.is_whitespace(),
];

/// A text on its way to ids.
pub(super) struct Pieces<'a, F> {
    /// The text.
    pub text: &'a str,
    /// How many times longer the tokenizer can make a text before it splits it.
    pub growth: f64,
    /// Characters next to which no cut may lie.
    pub bound: char,
    /// Ids of a short text.
    pub encode: F,
}

impl<F: Fn(&str) -> Result<Vec<u32>>> Pieces<'_, F> {
    /// Bytes that a piece should have.
    fn piece(&self) -> usize {
        ((PIECE as f64 / self.growth) as usize).clamp(1 << 10, PIECE)
    }

    /// The ids; None, before all is encoded, where they are more than `most`.
    ///
    /// # Errors
    /// Those of `encode`; a stretch of text that has no place to cut at.
    pub fn ids(&self, most: usize) -> Result<Option<Vec<u32>>> {
        let mut ids = Vec::new();
        let mut start = 0;
        loop {
            let end = self.end(start)?;
            let (before, from) = self.context(start);
            let mut piece = (self.encode)(&self.text[from..end])?;
            // What stood before the cut is there only so that the piece does not look like the beginning of a text.
            let known = if before.is_empty() { Vec::new() } else { (self.encode)(before)? };
            if !piece.starts_with(&known) {
                return Err(uncut(self.piece()));
            }
            ids.extend(piece.drain(known.len()..));
            if ids.len() > most {
                return Ok(None);
            }
            if end == self.text.len() {
                return Ok(Some(ids));
            }
            start = end;
        }
    }

    /// Where the piece that begins at `start` ends.
    fn end(&self, start: usize) -> Result<usize> {
        let (piece, text) = (self.piece(), self.text);
        let longest = piece * STRETCH;
        if text.len() - start <= piece {
            return Ok(text.len());
        }
        let middle = floor(text, start + piece);
        let last = floor(text, start + longest);
        for place in PLACES {
            let back = text[start..middle].char_indices().rev().map(|(at, c)| (start + at, c));
            let forth = text[middle..last].char_indices().map(|(at, c)| (middle + at, c));
            for cuts in
                [&mut back.map(|(at, _)| at) as &mut dyn Iterator<Item = usize>, &mut forth.map(|(at, _)| at)]
            {
                for cut in cuts.filter(|&at| at > start && self.is_place(place, at)).take(TRIES) {
                    if self.holds(cut)? {
                        return Ok(cut);
                    }
                }
            }
        }
        if text.len() - start <= longest { Ok(text.len()) } else { Err(uncut(longest)) }
    }

    fn is_place(&self, place: fn(char, char) -> bool, at: usize) -> bool {
        let (before, after) = (self.text[..at].chars().next_back(), self.text[at..].chars().next());
        before.zip(after).is_some_and(|(before, after)| {
            before != self.bound && after != self.bound && place(before, after)
        })
    }

    /// Whether the text around `cut` gives the same ids in two pieces as in one.
    fn holds(&self, cut: usize) -> Result<bool> {
        let from = floor(self.text, cut.saturating_sub(AROUND));
        let to = floor(self.text, cut + AROUND);
        let (before, context) = self.context(cut);
        let (known, right) = ((self.encode)(before)?, (self.encode)(&self.text[context..to])?);
        let Some(right) = right.strip_prefix(&known[..]) else { return Ok(false) };
        let left = (self.encode)(&self.text[from..cut])?;
        let whole = (self.encode)(&self.text[from..to])?;
        Ok(whole.strip_prefix(&left[..]) == Some(right))
    }

    /// The character before `start`, and where it begins.
    fn context(&self, start: usize) -> (&str, usize) {
        let from = self.text[..start].char_indices().next_back().map_or(0, |(at, _)| at);
        (&self.text[from..start], from)
    }
}

/// The last place at `index` or before it where a character begins, or the text ends.
fn floor(text: &str, index: usize) -> usize {
    let mut at = index.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn uncut(bytes: usize) -> crate::Error {
    let reason = format!(
        "a stretch of {} KiB has no place where it can be cut for encoding: break it into lines or words",
        bytes >> 10
    );
    text_error("text", reason)
}
