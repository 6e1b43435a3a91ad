//! One mask form for every attention pattern: per query row, a prefix and one interval of absolute key
//! positions, `visible(q) = [0, prefix) ∪ [lo, hi)`.
//!
//! Start from [`Mask`]: what a layer's configuration says; [`Mask::visible`] is what one row of it sees.

use std::{fmt, str::FromStr};

use crate::error::Error;

/// Which keys a query row sees, before prefix and documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// Every key up to and including the row's own.
    Causal,
    /// The last `keys` keys, the row's own included (Mistral). FlashAttention calls this `left = keys − 1`.
    Window {
        /// Width of the window in keys, at least 1.
        keys: usize,
    },
    /// Keys of the row's own chunk of `keys` positions, up to its own (Llama 4; "Simple Local Attentions").
    Chunk {
        /// Length of a chunk in positions, at least 1.
        keys: usize,
    },
    /// As [`Pattern::Chunk`], and the whole chunk before.
    Overlap {
        /// Length of a chunk in positions, at least 1.
        keys: usize,
    },
    /// Bidirectional: the row's block and half of each neighbour ("Simple Local Attentions", overlapped).
    Blockwise {
        /// Length of a block in positions, at least 2 and even.
        keys: usize,
    },
    /// Bidirectional: the row's block alone ("Simple Local Attentions", disjoint).
    Block {
        /// Length of a block in positions, at least 1.
        keys: usize,
    },
    /// Bidirectional: every key.
    Full,
}

/// The keys that one query row sees: `[0, prefix) ∪ [lo, hi)`, with `prefix ≤ lo ≤ hi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Visible {
    /// End of the visible prefix.
    pub prefix: usize,
    /// First key of the interval.
    pub lo: usize,
    /// One past the interval's last key.
    pub hi: usize,
}

impl Visible {
    /// The `prefix` first keys and the interval `lo..hi`, with overlaps folded so that no key counts twice.
    pub fn new(prefix: usize, lo: usize, hi: usize) -> Self {
        let lo = lo.min(hi);
        if prefix >= lo {
            // The prefix touches the interval: one run from 0.
            return Visible { prefix: 0, lo: 0, hi: hi.max(prefix) };
        }
        Visible { prefix, lo, hi }
    }

    /// Number of visible keys.
    pub fn count(&self) -> usize {
        self.prefix + (self.hi - self.lo)
    }

    /// Whether key position `k` is visible.
    pub fn contains(&self, k: usize) -> bool {
        k < self.prefix || (self.lo..self.hi).contains(&k)
    }
}

/// A layer's attention mask: a [`Pattern`] and the number of first positions that every row sees
/// (attention sinks of a causal pattern, global tokens of a bidirectional one).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mask {
    /// The pattern without its prefix.
    pub pattern: Pattern,
    /// Number of first positions that every later row sees as well.
    pub prefix: usize,
}

impl Mask {
    /// Plain causal attention.
    pub const CAUSAL: Mask = Mask { pattern: Pattern::Causal, prefix: 0 };

    /// Whether a row sees no key after its own position.
    pub fn is_causal(&self) -> bool {
        matches!(
            self.pattern,
            Pattern::Causal | Pattern::Window { .. } | Pattern::Chunk { .. } | Pattern::Overlap { .. }
        )
    }

    /// The keys that the row at absolute position `q` sees among `keys` keys. A row of a packed document
    /// passes the document's first position as `document`, and sees nothing before it; others pass 0.
    pub fn visible(&self, q: usize, keys: usize, document: usize) -> Visible {
        let (lo, hi) = match self.pattern {
            Pattern::Causal => (0, q + 1),
            Pattern::Window { keys: w } => ((q + 1).saturating_sub(w), q + 1),
            Pattern::Chunk { keys: c } => (q / c * c, q + 1),
            Pattern::Overlap { keys: c } => ((q / c * c).saturating_sub(c), q + 1),
            Pattern::Blockwise { keys: b } => {
                ((q / b * b).saturating_sub(b / 2), (q / b * b).saturating_add(b + b / 2))
            }
            Pattern::Block { keys: b } => (q / b * b, (q / b * b).saturating_add(b)),
            Pattern::Full => (0, keys),
        };
        // A global token of a bidirectional pattern sees everything as a query, too.
        let (lo, hi) = if !self.is_causal() && q < self.prefix { (0, keys) } else { (lo, hi) };
        let hi = hi.min(keys);
        if document > 0 {
            return Visible::new(0, lo.max(document), hi);
        }
        let prefix = if self.is_causal() { self.prefix.min(q + 1) } else { self.prefix };
        Visible::new(prefix.min(keys), lo, hi)
    }

    /// The first position that no row at `q` or later sees again, were it not for the prefix: pages wholly
    /// between the prefix and this position can be released. 0 for patterns that look back without bound.
    pub fn horizon(&self, q: usize) -> usize {
        match self.pattern {
            Pattern::Causal | Pattern::Full => 0,
            Pattern::Window { .. } | Pattern::Chunk { .. } | Pattern::Overlap { .. } => {
                self.visible(q, q + 1, 0).lo
            }
            Pattern::Blockwise { keys: b } => (q / b * b).saturating_sub(b / 2),
            Pattern::Block { keys: b } => q / b * b,
        }
    }
}

impl Mask {
    /// Most positions that a row can see besides the prefix, its own included; None without bound.
    pub fn span(&self) -> Option<usize> {
        match self.pattern {
            Pattern::Causal | Pattern::Full => None,
            Pattern::Window { keys } | Pattern::Chunk { keys } | Pattern::Block { keys } => Some(keys),
            Pattern::Overlap { keys } | Pattern::Blockwise { keys } => keys.checked_mul(2),
        }
    }
}

impl Mask {
    /// Length of the chunks or blocks at whose borders what rows see changes; None for patterns without borders.
    pub fn chunk(&self) -> Option<usize> {
        match self.pattern {
            Pattern::Causal | Pattern::Full | Pattern::Window { .. } => None,
            Pattern::Chunk { keys }
            | Pattern::Overlap { keys }
            | Pattern::Blockwise { keys }
            | Pattern::Block { keys } => Some(keys),
        }
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pattern {
            Pattern::Causal => write!(f, "full")?,
            Pattern::Window { keys } => write!(f, "window:{keys}")?,
            Pattern::Chunk { keys } => write!(f, "chunk:{keys}")?,
            Pattern::Overlap { keys } => write!(f, "overlap:{keys}")?,
            Pattern::Blockwise { keys } => write!(f, "blockwise:{keys}")?,
            Pattern::Block { keys } => write!(f, "block:{keys}")?,
            Pattern::Full => write!(f, "bidirectional")?,
        }
        match self.prefix {
            0 => Ok(()),
            prefix if self.is_causal() => write!(f, "+sinks:{prefix}"),
            prefix => write!(f, "+globals:{prefix}"),
        }
    }
}

impl FromStr for Mask {
    type Err = Error;

    /// Parses what [`Display`](fmt::Display) writes: the causal patterns `full | window:W | chunk:C | overlap:C`, each with an
    /// optional `+sinks:S`, and the bidirectional ones `bidirectional | block:B | blockwise:B`, each with an optional
    /// `+globals:G`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || {
            Error::argument(
                "--attention",
                format!(
                    "'{}' is none of full, window:W, chunk:C, overlap:C, each with an optional +sinks:S (W, C ≥ 1), \
                     and bidirectional, block:B, blockwise:B, each with an optional +globals:G (B ≥ 1, blockwise: even)",
                    crate::error::printable(text)
                ),
            )
        };
        let number = |s: &str| s.parse::<usize>().ok().filter(|n| (1..=1 << 40).contains(n)).ok_or_else(bad);
        let (pattern, prefix) = match text.split_once('+') {
            Some((pattern, prefix)) => (pattern, Some(prefix)),
            None => (text, None),
        };
        let pattern = match pattern.split_once(':') {
            None if pattern == "full" => Pattern::Causal,
            None if pattern == "bidirectional" => Pattern::Full,
            Some(("window", keys)) => Pattern::Window { keys: number(keys)? },
            Some(("chunk", keys)) => Pattern::Chunk { keys: number(keys)? },
            Some(("overlap", keys)) => Pattern::Overlap { keys: number(keys)? },
            Some(("block", keys)) => Pattern::Block { keys: number(keys)? },
            Some(("blockwise", keys)) => match number(keys)? {
                keys if keys % 2 == 0 => Pattern::Blockwise { keys },
                _ => return Err(bad()),
            },
            _ => return Err(bad()),
        };
        let mask = Mask { pattern, prefix: 0 };
        let Some(prefix) = prefix else { return Ok(mask) };
        let word = if mask.is_causal() { "sinks:" } else { "globals:" };
        Ok(Mask { prefix: number(prefix.strip_prefix(word).ok_or_else(bad)?)?, ..mask })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition of each pattern, key by key.
    fn sees(pattern: Pattern, prefix: usize, q: usize, k: usize, keys: usize) -> bool {
        let (qi, ki) = (q as i64, k as i64);
        let block = |c: usize| (q / c * c) as i64;
        let causal = match pattern {
            Pattern::Causal => ki <= qi,
            Pattern::Window { keys } => ki <= qi && qi - ki < keys as i64,
            Pattern::Chunk { keys } => ki <= qi && k / keys == q / keys,
            Pattern::Overlap { keys } => ki <= qi && q / keys - k.min(q) / keys <= 1,
            Pattern::Blockwise { keys } => {
                let half = keys as i64 / 2;
                (block(keys) - half..block(keys) + keys as i64 + half).contains(&ki)
            }
            Pattern::Block { keys } => k / keys == q / keys,
            Pattern::Full => true,
        };
        let bidirectional =
            matches!(pattern, Pattern::Blockwise { .. } | Pattern::Block { .. } | Pattern::Full);
        let global = k < prefix && (bidirectional || k <= q) || bidirectional && q < prefix;
        k < keys && (causal || global)
    }

    #[test]
    fn visible_keys_of_every_pattern() {
        for size in [1, 2, 7, 8, 16] {
            let patterns = [
                Pattern::Causal,
                Pattern::Window { keys: size },
                Pattern::Window { keys: size + 1 },
                Pattern::Chunk { keys: size },
                Pattern::Overlap { keys: size },
                Pattern::Blockwise { keys: 2 * size },
                Pattern::Block { keys: size },
                Pattern::Full,
            ];
            for pattern in patterns {
                for prefix in [0, 1, 3, 20] {
                    let mask = Mask { pattern, prefix };
                    for keys in [1, 5, 40] {
                        for q in 0..keys {
                            let visible = mask.visible(q, keys, 0);
                            let count = (0..keys).filter(|k| sees(pattern, prefix, q, *k, keys)).count();
                            assert_eq!(visible.count(), count, "{mask} at {q} of {keys}");
                            for k in 0..keys + 3 {
                                let want = sees(pattern, prefix, q, k, keys);
                                assert_eq!(visible.contains(k), want, "{mask}: {q} sees {k} of {keys}");
                            }
                            // Nothing before the horizon but the prefix is seen from here on.
                            for later in q..keys {
                                let seen = mask.visible(later, keys, 0);
                                let first = (0..keys).find(|k| *k >= prefix && seen.contains(*k));
                                assert!(
                                    later < prefix || first.is_none_or(|k| k >= mask.horizon(q)),
                                    "{mask} from {q}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn documents_hide_what_came_before() {
        let visible = Mask { pattern: Pattern::Window { keys: 8 }, prefix: 2 }.visible(20, 40, 17);
        assert_eq!(visible, Visible { prefix: 0, lo: 17, hi: 21 });
        assert_eq!(Mask::CAUSAL.visible(20, 40, 17), Visible { prefix: 0, lo: 17, hi: 21 });
    }

    /// Mean visible keys per query at n = 8192, W = C = 1024.
    #[test]
    fn mean_visible_keys() {
        let mean = |text: &str| {
            let mask: Mask = text.parse().unwrap();
            (0..8192).map(|q| mask.visible(q, 8192, 0).count()).sum::<usize>() as f64 / 8192.0
        };
        for (text, want) in
            [("full", 4096.5), ("window:1024", 960.0625), ("chunk:1024", 512.5), ("overlap:1024", 1408.5)]
        {
            assert_eq!(mean(text), want, "{text}");
        }
    }

    #[test]
    fn text_round_trips_and_nonsense_is_refused() {
        for text in [
            "full",
            "window:4096",
            "chunk:8",
            "overlap:3",
            "window:5+sinks:4",
            "full+sinks:2",
            "bidirectional",
            "bidirectional+globals:3",
            "block:7",
            "blockwise:64+globals:1",
        ] {
            assert_eq!(text.parse::<Mask>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "window",
            "window:",
            "window:0",
            "window:-1",
            "window:5+",
            "window:5+sinks",
            "window:5+sinks:0",
            "chunk:x",
            "causal:1",
            "window:99999999999999999999",
            "full:3",
            "bidirectional:3",
            "block:0",
            "blockwise:5",
            "blockwise:8+sinks:1",
            "window:8+globals:1",
            "block:4+globals:0",
        ] {
            let error = text.parse::<Mask>().expect_err(text).to_string();
            assert!(error.starts_with("--attention: "), "{error}");
        }
    }
}
