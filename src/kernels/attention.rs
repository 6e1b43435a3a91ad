//! What attention of few rows and of many have in common: which shapes they take, and masks as the kernels read them.

use super::{
    Check, PageLayout,
    manifest::{apart, multiple, texts, type_of, unless, when},
    pages,
    params::{
        WL_ATTENTION_MAX_KEYS, WL_BLOCK, WL_BLOCKWISE, WL_CAUSAL, WL_CHUNK, WL_FULL, WL_OVERLAP, WL_WINDOW,
        WlMask,
    },
};
use crate::{
    error::Result,
    mask::{Mask, Pattern},
};

/// The part of the arguments that both check alike.
pub(super) struct Shape<'a> {
    pub tokens: usize,
    pub sequences: usize,
    pub heads: usize,
    pub q_stride: usize,
    pub out_stride: usize,
    pub layout: &'a PageLayout,
    pub mask: &'a Mask,
    pub scale: f32,
    pub softcap: f32,
}

impl Shape<'_> {
    /// Refuses what no launch can have.
    pub(super) fn check(&self) -> Result<()> {
        let count = |name, value, bounds| Check::of(name).count(value, bounds);
        let &PageLayout { kv_heads, head_dim, .. } = self.layout;
        count("tokens", self.tokens, 0..=1 << 28)?;
        count("sequences", self.sequences, 0..=65535)?;
        count("heads", self.heads, 1..=1 << 12)?;
        count("kv_heads", kv_heads, 1..=1 << 12)?;
        count("head_dim", head_dim, 8..=256)?;
        let strides = [
            ("head_dim", head_dim, true),
            ("q.stride", self.q_stride, self.tokens > 1),
            ("out.stride", self.out_stride, self.tokens > 1),
            ("page_stride", self.layout.page_stride, self.layout.pages > 1),
            ("head_stride", self.layout.head_stride, kv_heads > 1),
            ("slot_stride", self.layout.slot_stride, true),
        ];
        for (name, stride, used) in strides {
            if used && !stride.is_multiple_of(8) {
                let most = if name == "head_dim" { " to 256" } else { "" };
                return Check::of(name).refuse(format!("{stride}; supported are multiples of 8{most}"));
            }
        }
        if !self.heads.is_multiple_of(kv_heads) {
            let reason = format!("{}; supported are multiples of kv_heads, {kv_heads}", self.heads);
            return Check::of("heads").refuse(reason);
        }
        match self.mask.pattern {
            Pattern::Window { keys: 0 }
            | Pattern::Chunk { keys: 0 }
            | Pattern::Overlap { keys: 0 }
            | Pattern::Block { keys: 0 } => {
                return Check::of("mask.keys").refuse("0; supported are 1 and more".into());
            }
            Pattern::Blockwise { keys } if keys == 0 || !keys.is_multiple_of(2) => {
                let reason = format!("{keys}; supported are even numbers from 2, with blockwise");
                return Check::of("mask.keys").refuse(reason);
            }
            _ => {}
        }
        // Beyond these, what is made of them and of finite scores may overflow.
        if !(-1e30..=1e30).contains(&self.scale) {
            return Check::of("scale").refuse(format!("{}; supported are -1e30 to 1e30", self.scale));
        }
        if !(self.softcap == 0.0 || (1e-6..=1e30).contains(&self.softcap)) {
            return Check::of("softcap")
                .refuse(format!("{}; supported are 0 and 1e-6 to 1e30", self.softcap));
        }
        Ok(())
    }
}

/// For the manifest: what a struct of these shapes, of this type, must be for the checks.
pub(super) fn requires(entry: &str) -> Vec<String> {
    let mut requires = vec![type_of(entry)];
    requires.extend(texts(&[
        "1 <= tokens",
        "tokens <= 268435456",
        "1 <= sequences",
        "sequences <= 65535",
        "1 <= table_rows",
        "1 <= max_rows",
        "1 <= max_keys",
        "max_keys <= WL_ATTENTION_MAX_KEYS",
        "1 <= heads",
        "heads <= 4096",
        "1 <= kv_heads",
        "heads / kv_heads * kv_heads == heads",
        "8 <= head_dim",
        "mask.pattern <= WL_FULL",
        "0 <= mask.keys",
        "0 <= mask.prefix",
        "mask.prefix <= WL_ATTENTION_MAX_KEYS",
        "mask.keys <= WL_ATTENTION_MAX_KEYS",
    ]));
    requires.push(multiple(8, "head_dim"));
    requires.push(unless("(mask.pattern == WL_CAUSAL) + (mask.pattern == WL_FULL)", "1 <= mask.keys"));
    requires.push(when("mask.pattern == WL_BLOCKWISE", &multiple(2, "mask.keys")));
    requires.extend(apart("tokens", "heads * head_dim", &["q_stride", "out_stride"]));
    for stride in ["q_stride", "out_stride"] {
        requires.push(unless("tokens == 1", &multiple(8, stride)));
    }
    requires.extend(pages::requires());
    // A stride over one page, head or slot is not used.
    for (count, stride) in [
        ("pages.pages", "pages.page_stride"),
        ("kv_heads", "pages.head_stride"),
        ("pages.page_size", "pages.slot_stride"),
    ] {
        requires.push(unless(&format!("{count} == 1"), &multiple(8, stride)));
    }
    requires
}

/// Numbers beyond [`WL_ATTENTION_MAX_KEYS`] mean what that one means.
pub(super) fn mask(mask: &Mask) -> WlMask {
    let (pattern, keys) = match mask.pattern {
        Pattern::Causal => (WL_CAUSAL, 0),
        Pattern::Window { keys } => (WL_WINDOW, keys),
        Pattern::Chunk { keys } => (WL_CHUNK, keys),
        Pattern::Overlap { keys } => (WL_OVERLAP, keys),
        Pattern::Blockwise { keys } => (WL_BLOCKWISE, keys),
        Pattern::Block { keys } => (WL_BLOCK, keys),
        Pattern::Full => (WL_FULL, 0),
    };
    let limit = |n: usize| n.min(WL_ATTENTION_MAX_KEYS as usize) as i32;
    WlMask { pattern, keys: limit(keys), prefix: limit(mask.prefix), reserved: 0 }
}
