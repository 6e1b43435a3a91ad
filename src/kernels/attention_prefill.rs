//! Attention of any number of query rows over paged keys and values: `cuda/kernels/attention_prefill.cu`.

use std::sync::Arc;

use super::{
    Check, Dtype, Half, Module, PageLayout, PageTable, Rows, RowsMut,
    attention::{self, Shape, mask},
    geometry::{Geometry, geometry},
    manifest::{About, texts},
    pages,
    params::{WL_ATTENTION_MAX_KEYS, WL_VERSION, WlAttentionPrefill},
};
use crate::{
    driver::{Driver, Function, Stream, View, ViewMut},
    error::Result,
    mask::Mask,
};

/// Widths of a head that there are kernels for: others are computed as the next of these.
const WIDTHS: [usize; 4] = [64, 96, 128, 256];

/// Of a width, the packed rows of a CTA and the keys of a tile: as many tiles of rows as the sequences have, whatever their lengths, and
/// a few more; in shared memory a CTA's rows of q, and three tiles of k and v.
macro_rules! tiles {
    ($width:literal, $rows:ident, $keys:literal) => {
        geometry! {
            WlAttentionPrefill { tokens, sequences, max_rows, heads, kv_heads } [$rows]
            let group = heads / kv_heads;
            let of_tokens = (tokens * group + min(sequences, tokens) * ($rows - 1)) / $rows;
            let of_sequences = sequences * ceil_div(max_rows * group, $rows);
            grid: [min(of_tokens, of_sequences) * kv_heads, 1, 1],
            block: 128,
            shared: ($rows + 3 * $keys) * $width * 2,
        }
    };
}

/// For each of [`WIDTHS`].
const TILES: [Geometry<WlAttentionPrefill>; 4] = [
    tiles!(64, WL_ATTENTION_PREFILL_ROWS, 64),
    tiles!(96, WL_ATTENTION_PREFILL_ROWS, 64),
    tiles!(128, WL_ATTENTION_PREFILL_ROWS, 64),
    tiles!(256, WL_ATTENTION_PREFILL_ROWS_256, 32),
];

/// out = softmax(scale · q kᵀ) v over the keys that each row sees, for any number of rows per sequence: prompts, whole
/// or in chunks, and packed documents. FlashAttention-2, arXiv 2307.08691.
///
/// A row's bits depend on what it sees alone: not on the rows beside it, its slot, the pages, or where a chunk of the
/// prompt begins. (They are not those of [`AttentionDecode`](super::AttentionDecode), which sums in another order.)
///
/// What the device memory must hold, and what becomes of rows where it does not, is told at
/// [`WlAttentionPrefill`](super::params::WlAttentionPrefill).
#[derive(Clone, Debug)]
pub struct AttentionPrefill {
    /// For each of [`WIDTHS`].
    functions: Half<[Function; 4]>,
}

/// What [`AttentionPrefill::launch`] takes.
#[derive(Debug)]
pub struct AttentionPrefillArgs<'b> {
    /// Type of q, k, v and out: bf16 or f16.
    pub dtype: Dtype,
    /// Rows of all sequences together, or more: the device has the true numbers. Of all heads they are up to 2^30.
    pub tokens: usize,
    /// Number of sequences, to 65535.
    pub sequences: usize,
    /// Query heads, a multiple of the layout's kv_heads.
    pub heads: usize,
    /// `[tokens, heads, head_dim]`, rows of a multiple of 8 elements: of a fused qkv, say.
    pub q: Rows<'b>,
    /// `[tokens, heads, head_dim]`, rows of a multiple of 8 elements. A row that sees nothing becomes 0.
    pub out: RowsMut<'b>,
    /// f32 `[heads, tokens]`: ln Σ exp(score) of each row, the sink's included; −∞ for a row that sees nothing.
    pub lse: Option<ViewMut<'b>>,
    /// Shape of k and of v. head_dim is a multiple of 8 up to 256: 64, 96, 128 and 256 are whole tiles, others are
    /// computed as the next of these, with zeros that are not read. Strides are multiples of 8.
    pub layout: PageLayout,
    /// Keys of all pages.
    pub k: View<'b>,
    /// Values of all pages.
    pub v: View<'b>,
    /// The pages of each sequence.
    pub table: PageTable<'b>,
    /// i32 `[sequences]`: each sequence's row of `table`. None: its own number.
    pub slots: Option<View<'b>>,
    /// i32 `[sequences]`: keys of each sequence, those of its rows included.
    pub lengths: View<'b>,
    /// i32 `[sequences + 1]`: the rows of sequence s are `offsets[s]..offsets[s + 1]`.
    pub offsets: View<'b>,
    /// i32 `[tokens]`: absolute position of each row; negative for one that is dead. None: a sequence's last row has
    /// its last key.
    pub positions: Option<View<'b>>,
    /// Most rows of a sequence: with it, as with `tokens`, grows the grid.
    pub max_rows: usize,
    /// Most keys of a sequence. The device has the true numbers; this one bounds them.
    pub max_keys: usize,
    /// What rows see.
    pub mask: Mask,
    /// i32 `[tokens]`: first position of each row's document, before which it sees nothing. It bounds from below alone: with
    /// patterns that look ahead, documents are sequences of their own (`offsets`).
    pub documents: Option<View<'b>>,
    /// Factor of q · k, commonly 1/√head_dim; to 1e30 in magnitude. With one of up to 1, scores beyond 1e8 may
    /// overflow.
    pub scale: f32,
    /// Scores become softcap · tanh(score / softcap), for 1e-6 to 1e30; 0 leaves them.
    pub softcap: f32,
    /// f32 `[heads]`: logits that join the softmax without a value, to 2e38 in magnitude.
    pub sinks: Option<View<'b>>,
}

/// Which of [`WIDTHS`] an entry is for.
fn class(entry: &str) -> usize {
    WIDTHS.iter().position(|width| entry.ends_with(&format!("_{width}"))).unwrap_or(0)
}

/// Dynamic shared memory of the kernel's entries.
pub(super) fn dynamic_shared_bytes(entry: &str) -> usize {
    // It depends on no field.
    let p = WlAttentionPrefill { heads: 1, kv_heads: 1, ..WlAttentionPrefill::default() };
    TILES[class(entry)].shared_bytes(&p)
}

/// For the manifest.
pub(super) fn about(entry: &str) -> About {
    let class = class(entry);
    let width = format!("head_dim <= {}", WIDTHS[class]);
    let bounds = ["max_rows <= 268435456", "tokens * heads <= 1073741824"];
    About {
        when: "with the smallest width that holds head_dim; any number of CTAs from the grid's on is right",
        requires: [attention::requires(entry), vec![width], texts(&bounds)].concat(),
        ..About::new(
            "WlAttentionPrefill",
            "attention of any number of rows over paged keys and values",
            TILES[class].text,
        )
    }
}

impl AttentionPrefill {
    /// Loads the kernel.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn load(driver: &Arc<dyn Driver>) -> Result<Self> {
        let module = Module::load(driver, "attention_prefill")?;
        let functions = Half::load(|t| {
            let of = |width: usize| module.function(&format!("wl_attention_prefill_{t}_{width}"));
            Ok([of(WIDTHS[0])?, of(WIDTHS[1])?, of(WIDTHS[2])?, of(WIDTHS[3])?])
        })?;
        Ok(AttentionPrefill { functions })
    }

    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for types, shapes, sizes and addresses that do not fit;
    /// [`Error::Device`](crate::Error::Device).
    pub fn launch(&self, stream: &Stream, args: &AttentionPrefillArgs) -> Result<()> {
        let &AttentionPrefillArgs {
            dtype, tokens, sequences, heads, max_rows, max_keys, layout, table, ..
        } = args;
        let PageLayout { kv_heads, head_dim, .. } = layout;
        let shape = Shape {
            tokens,
            sequences,
            heads,
            q_stride: args.q.stride,
            out_stride: args.out.stride,
            layout: &layout,
            mask: &args.mask,
            scale: args.scale,
            softcap: args.softcap,
        };
        shape.check()?;
        Check::of("max_rows").count(max_rows, 1..=1 << 28)?;
        Check::of("max_keys").count(max_keys, 1..=WL_ATTENTION_MAX_KEYS as usize)?;
        if tokens * heads > 1 << 30 {
            return Check::of("tokens")
                .refuse(format!("{tokens} of {heads} heads; supported are 2^30 together"));
        }
        let functions = self.functions.of(dtype)?;
        if args.slots.is_none() && table.sequences < sequences {
            return Check::of("table").refuse(format!("{} rows for {sequences} sequences", table.sequences));
        }
        let array = |name, view: Option<View>, count: usize| match view {
            Some(view) => Check::of(name).view(view, count, 4),
            None => Ok(0),
        };
        let (k, v) = ((args.k.address(), args.k.bytes()), (args.v.address(), args.v.bytes()));
        let mut p = WlAttentionPrefill {
            version: WL_VERSION,
            type_: dtype.code(),
            tokens: tokens as i32,
            sequences: sequences as i32,
            max_rows: max_rows as i32,
            max_keys: max_keys as i32,
            heads: heads as i32,
            kv_heads: kv_heads as i32,
            head_dim: head_dim as i32,
            scale: args.scale,
            softcap: args.softcap,
            slots: array("slots", args.slots, sequences)?,
            lengths: Check::of("lengths").view(args.lengths, sequences, 4)?,
            offsets: Check::of("offsets").view(args.offsets, sequences + 1, 4)?,
            positions: array("positions", args.positions, tokens)?,
            documents: array("documents", args.documents, tokens)?,
            sinks: array("sinks", args.sinks, heads)?,
            mask: mask(&args.mask),
            pages: pages::check(&layout, &table, dtype, max_keys, k, v)?,
            ..WlAttentionPrefill::default()
        };
        p.table_rows = table.sequences as i32;
        (p.q, p.q_stride) = Check::of("q").rows(&args.q, tokens, heads * head_dim, dtype.size())?;
        (p.out, p.out_stride) =
            Check::of("out").rows_mut(&args.out, tokens, heads * head_dim, dtype.size())?;
        if let Some(lse) = &args.lse {
            p.lse = Check::of("lse").view_mut(lse, heads * tokens, 4)?;
        }
        let class = WIDTHS.iter().position(|width| head_dim <= *width).unwrap_or(WIDTHS.len() - 1);
        let launch = TILES[class].launch(&p);
        if launch.grid[0] > i32::MAX as u32 {
            return Check::of("tokens").refuse(format!("{tokens} of {heads} heads; too many for a grid"));
        }
        if launch.grid[0] == 0 {
            return Ok(());
        }
        // SAFETY: the sizes above cover all rows and pages; of what it reads as an index from memory, the kernel takes
        // nothing that is out of range.
        unsafe { stream.launch(&functions[class], &launch) }
    }
}
