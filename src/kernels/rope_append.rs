//! Rotary positions and the writing of keys and values: `cuda/kernels/rope_append.cu`.

use std::sync::Arc;

use super::{
    Check, Dtype, Half, Module, PageLayout, PageTable, RowsMut,
    geometry::{Geometry, geometry},
    manifest::{About, apart, multiple, texts, type_of},
    pages,
    params::{WL_ROPE_APPEND_HEAD_DIM, WL_ROPE_APPEND_THREADS, WL_VERSION, WlRopeAppend},
};
use crate::{
    driver::{Driver, Function, Stream, View, ViewMut},
    error::Result,
};

/// Rotates q and k of every row to the row's position, and writes k and v to its place in the pages.
///
/// The pair (i, i + head_dim/2) of a head turns by `f32(position) · frequencies[i]`, an f32 product: (x1, x2) ⟵
/// (x1·cos − x2·sin, x2·cos + x1·sin), rounded once. RoFormer, arXiv 2104.09864, pairs as in Hugging Face's
/// checkpoints; frequencies and magnitude of every variant are those of [`Angles`](crate::model::Angles).
///
/// q is rotated in place; k and v stay as they are in qkv. k and v of a row whose sequence or page id is out of
/// range, or whose position lies beyond the page table, are written nowhere. No two live rows of a launch may have
/// the same sequence and position, nor sequences that share a page write to it.
pub struct RopeAppend {
    functions: Half<Function>,
}

/// What [`RopeAppend::launch`] takes.
#[derive(Debug)]
pub struct RopeAppendArgs<'b> {
    /// Type of qkv, k and v: bf16 or f16.
    pub dtype: Dtype,
    /// Number of rows.
    pub rows: usize,
    /// Query heads.
    pub heads: usize,
    /// `[rows, (heads + 2 · kv_heads) · head_dim]`: q, k and v side by side.
    pub qkv: RowsMut<'b>,
    /// i32 `[rows]`: nothing is read or written of rows with a negative position.
    pub positions: View<'b>,
    /// i32 `[rows]`: each row's sequence, a row of `table`.
    pub slots: View<'b>,
    /// f32 `[head_dim / 2]`: radians per position, up to 1.
    pub frequencies: View<'b>,
    /// Cosines and sines are multiplied with it.
    pub magnitude: f32,
    /// Shape of k and of v. Their head_dim is even and at most [`WL_ROPE_APPEND_HEAD_DIM`].
    pub layout: PageLayout,
    /// Keys of all pages.
    pub k: ViewMut<'b>,
    /// Values of all pages.
    pub v: ViewMut<'b>,
    /// The pages of each sequence.
    pub table: PageTable<'b>,
}

const HEADS: Geometry<WlRopeAppend> = geometry! {
    WlRopeAppend { rows, heads, kv_heads, head_dim } [WL_ROPE_APPEND_THREADS]
    let threads = (heads + 2 * kv_heads) * ceil_div(head_dim, 16);
    grid: [rows * ceil_div(threads, WL_ROPE_APPEND_THREADS), 1, 1],
    block: WL_ROPE_APPEND_THREADS,
    shared: 0,
};

/// For the manifest.
pub(super) fn about(entry: &str) -> About {
    let mut requires = vec![type_of(entry), multiple(2, "head_dim")];
    requires.extend(texts(&[
        "1 <= rows",
        "1 <= heads",
        "heads <= 65536",
        "1 <= kv_heads",
        "kv_heads <= 65536",
        "2 <= head_dim",
        "head_dim <= WL_ROPE_APPEND_HEAD_DIM",
        "0 <= sequences",
    ]));
    requires.extend(apart("rows", "(heads + 2 * kv_heads) * head_dim", &["qkv_stride"]));
    requires.extend(pages::requires());
    About {
        requires,
        ..About::new(
            "WlRopeAppend",
            "turns q and k to their positions, and writes k and v to their pages",
            HEADS.text,
        )
    }
}

impl RopeAppend {
    /// Loads the kernel.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn load(driver: &Arc<dyn Driver>) -> Result<Self> {
        let module = Module::load(driver, "rope_append")?;
        Ok(RopeAppend { functions: Half::load(|t| module.function(&format!("wl_rope_append_{t}")))? })
    }

    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for types, shapes, sizes and addresses that do not fit;
    /// [`Error::Device`](crate::Error::Device).
    pub fn launch(&self, stream: &Stream, args: &RopeAppendArgs) -> Result<()> {
        let &RopeAppendArgs { dtype, rows, heads, magnitude, layout, table, .. } = args;
        let PageLayout { kv_heads, head_dim, .. } = layout;
        let function = self.functions.of(dtype)?;
        if !magnitude.is_finite() || magnitude == 0.0 {
            return Check::of("magnitude")
                .refuse(format!("{magnitude}; supported are finite numbers other than 0, commonly 1"));
        }
        if !head_dim.is_multiple_of(2) {
            return Check::of("head_dim").refuse(format!("{head_dim}; supported are even numbers"));
        }
        let mut p = WlRopeAppend {
            version: WL_VERSION,
            type_: dtype.code(),
            heads: Check::of("heads").count(heads, 1..=1 << 16)?,
            kv_heads: Check::of("kv_heads").count(kv_heads, 1..=1 << 16)?,
            head_dim: Check::of("head_dim").count(head_dim, 2..=WL_ROPE_APPEND_HEAD_DIM as usize)?,
            sequences: Check::of("table.sequences").count(table.sequences, 0..=i32::MAX as usize)?,
            magnitude,
            positions: Check::of("positions").view(args.positions, rows, 4)?,
            slots: Check::of("slots").view(args.slots, rows, 4)?,
            frequencies: Check::of("frequencies").view(args.frequencies, head_dim / 2, 4)?,
            pages: pages::check(
                &layout,
                &table,
                dtype,
                usize::MAX,
                (args.k.address(), args.k.bytes()),
                (args.v.address(), args.v.bytes()),
            )?,
            ..WlRopeAppend::default()
        };
        let all_heads = heads + 2 * kv_heads;
        let ctas = (all_heads * head_dim.div_ceil(16)).div_ceil(WL_ROPE_APPEND_THREADS as usize);
        p.rows = Check::of("rows").count(rows, 0..=i32::MAX as usize / ctas)?;
        (p.qkv, p.qkv_stride) =
            Check::of("qkv").rows_mut(&args.qkv, rows, all_heads * head_dim, dtype.size())?;
        if rows == 0 {
            return Ok(());
        }
        // SAFETY: the sizes above cover all that the kernel touches of `rows` rows; it writes to no page, and reads
        // no entry of the table, that is out of range.
        unsafe { stream.launch(function, &HEADS.launch(&p)) }
    }
}
