//! Attention of any number of query rows over paged keys and values: `cuda/kernels/attention_prefill.cu`.

use std::sync::Arc;

use super::{
    Check, Dtype, Half, Module, PageLayout, PageTable, Rows, RowsMut,
    attention::{Shape, mask},
    pages,
    params::{
        WL_ATTENTION_MAX_KEYS, WL_ATTENTION_PREFILL_ROWS, WL_ATTENTION_PREFILL_ROWS_256, WL_VERSION,
        WlAttentionPrefill,
    },
};
use crate::{
    driver::{Driver, Handle, Launch, Stream, View, ViewMut},
    error::Result,
    mask::Mask,
};

/// Widths of a head that there are kernels for: others are computed as the next of these.
const WIDTHS: [usize; 4] = [64, 96, 128, 256];
const THREADS: u32 = 128;
/// Tiles of k and v that are in shared memory at once.
const SLOTS: usize = 3;

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
    functions: Half<[Handle; 4]>,
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

/// Packed rows of a CTA, and keys of a tile.
fn tile(width: usize) -> (usize, usize) {
    match width {
        256 => (WL_ATTENTION_PREFILL_ROWS_256 as usize, 32),
        _ => (WL_ATTENTION_PREFILL_ROWS as usize, 64),
    }
}

/// Shared memory of a CTA: its rows of q, and the ring of tiles.
fn shared_bytes(width: usize) -> usize {
    let (rows, keys) = tile(width);
    (rows + SLOTS * keys) * width * 2
}

/// Dynamic shared memory of the kernel's entries.
pub(super) fn dynamic_shared_bytes(entry: &str) -> usize {
    let width = WIDTHS.iter().find(|width| entry.ends_with(&format!("_{width}")));
    width.map_or(0, |width| shared_bytes(*width))
}

/// How a launch is divided, of shapes that have been checked.
struct Plan {
    /// Which of [`WIDTHS`].
    class: usize,
    /// At least as many tiles of rows as the sequences have, whatever their lengths.
    tiles: usize,
    shared_bytes: usize,
}

impl Plan {
    fn of(args: &AttentionPrefillArgs) -> Plan {
        let PageLayout { kv_heads, head_dim, .. } = args.layout;
        let class = WIDTHS.iter().position(|width| head_dim <= *width).unwrap_or(WIDTHS.len() - 1);
        let (rows, _) = tile(WIDTHS[class]);
        let group = args.heads / kv_heads;
        // All tiles of a sequence but its last are full.
        let sequences = args.sequences.min(args.tokens);
        let of_tokens = (args.tokens * group + sequences * (rows - 1)) / rows;
        let of_sequences = args.sequences * (args.max_rows * group).div_ceil(rows);
        Plan { class, tiles: of_tokens.min(of_sequences), shared_bytes: shared_bytes(WIDTHS[class]) }
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
            return Check::of("page table")
                .refuse(format!("{} rows for {sequences} sequences", table.sequences));
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
        let plan = Plan::of(args);
        let Some(grid) = u32::try_from(plan.tiles * kv_heads).ok().filter(|grid| *grid <= i32::MAX as u32)
        else {
            return Check::of("tokens").refuse(format!("{tokens} of {heads} heads; too many for a grid"));
        };
        if grid == 0 {
            return Ok(());
        }
        let launch = Launch {
            grid: [grid, 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: plan.shared_bytes as u32,
            ..Launch::new(bytemuck::bytes_of(&p))
        };
        // SAFETY: the sizes above cover all rows and pages; of what it reads as an index from memory, the kernel takes
        // nothing that is out of range.
        unsafe { stream.launch(functions[plan.class], &launch) }
    }
}
