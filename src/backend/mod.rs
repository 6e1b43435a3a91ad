//! The operations of a forward pass over some device's memory.
//!
//! Start from [`Backend`], what a device must offer; [`Cpu`] is the reference and the default.
//! `src/model` writes the forward pass once, over this trait.

mod cpu;

pub use cpu::{Cpu, Isa};

use crate::{cache::Cache, checkpoint::Tensor, error::Result, mask::Mask};

/// One row of a forward pass: a token at a place in a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The token's id, under the vocabulary's size.
    pub token: u32,
    /// Absolute position in its sequence.
    pub position: usize,
    /// The sequence's slot in the cache.
    pub sequence: usize,
}

/// What a row is for, which fixes the order of its sums. The caller names it; it never follows from the number of
/// rows.
///
/// Within a class a row's result has the same bits whatever other rows are computed with it, so a prompt may be
/// cut into any calls, and drafts may be verified in any company. Between the classes the last bits differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowClass {
    /// A plain step, a draft or its verification: few rows, bound by reading the weights.
    Decode,
    /// A token of a prompt, whose keys and values alone are wanted: many rows, bound by arithmetic.
    Prompt,
}

/// One matrix of a product and where its outputs go.
pub struct Projection<'a, W> {
    /// `[outputs, inputs]`.
    pub weight: &'a W,
    /// `[outputs]`.
    pub bias: Option<&'a W>,
    /// Column of the output row at which this projection's outputs begin.
    pub column: usize,
}

impl<W> Clone for Projection<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<W> Copy for Projection<'_, W> {}

/// What happens to the finished sums of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// out = y.
    Store,
    /// out += y, into the residual stream.
    Add,
    /// The two projections are gate and up: out = silu(gate) · up.
    SwiGlu,
}

/// Sizes of attention, the same in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
}

impl Heads {
    /// Width of a row of q, k and v side by side.
    pub fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// What a device offers to a forward pass.
///
/// Buffers are matrices of activations, `[rows, width]` row after row. No operation on decode rows allocates, and a
/// row of any result has the same bits whatever other rows are computed with it; a product's depend on the
/// [`RowClass`], those of all other operations do not. Arguments are checked by
/// `src/model`; an operation may panic on buffers that are too small, which the model never passes.
pub trait Backend: Send + Sync {
    /// A weight matrix or vector, in the type it is stored in.
    type Weight: Send + Sync;
    /// A matrix of activations.
    type Buffer: Send + Sync;
    /// The keys and values of every layer, in pages.
    type Kv: Send + Sync;

    /// Positions per page of [`Backend::Kv`].
    fn page_size(&self) -> usize;
    /// Bytes that [`Backend::kv`] takes per page.
    fn page_bytes(&self, heads: Heads, layers: usize) -> usize;

    /// Makes `tensor` usable by the operations.
    fn weight(&self, tensor: &Tensor) -> Result<Self::Weight>;
    /// A buffer of `rows × width` numbers.
    fn buffer(&self, rows: usize, width: usize) -> Result<Self::Buffer>;
    /// Room for `pages` pages in each of `layers` layers.
    fn kv(&self, heads: Heads, layers: usize, pages: usize) -> Result<Self::Kv>;

    /// Runs `operations` on decode rows, which follow each other closely, in whatever makes many short ones cheap: on
    /// the CPU, threads that stay awake in between. Changes no result; may be nested.
    fn pass<R: Send>(&self, operations: impl FnOnce() -> R + Send) -> R {
        operations()
    }

    /// `out[r] = table[rows[r].token]`; `out` is `[rows, width]`.
    fn embed(&self, table: &Self::Weight, rows: &[Row], out: &mut Self::Buffer);
    /// `out[r] = x[from + r] / √(mean(x²) + ε) · weight`, both `[_, width]`.
    fn rms_norm(
        &self,
        x: &Self::Buffer,
        from: usize,
        rows: usize,
        weight: &Self::Weight,
        eps: f32,
        out: &mut Self::Buffer,
    );
    /// `out[r, column + n] ⟵ x[r] · weight[n] + bias[n]` for each projection; `out` is `[rows, width]`. All
    /// rows are of one class.
    fn linear(
        &self,
        x: &Self::Buffer,
        rows: usize,
        projections: &[Projection<Self::Weight>],
        out: &mut Self::Buffer,
        width: usize,
        epilogue: Epilogue,
        class: RowClass,
    );
    /// Rotates q and k of every row by its angles and writes k and v to the row's place in the cache.
    /// `qkv` is `[rows, Heads::qkv()]`; `angles` is `[rows, head_dim]`: cosines, then sines.
    fn rope_append(
        &self,
        qkv: &mut Self::Buffer,
        rows: &[Row],
        angles: &[f32],
        kv: &mut Self::Kv,
        layer: usize,
        cache: &Cache,
    );
    /// `out[r] = softmax(q · Kᵀ / √head_dim) · V` over the keys that `mask` lets the row see;
    /// `out` is `[rows, heads · head_dim]`.
    fn attention(
        &self,
        qkv: &Self::Buffer,
        rows: &[Row],
        mask: &Mask,
        kv: &Self::Kv,
        layer: usize,
        cache: &Cache,
        out: &mut Self::Buffer,
    );
    /// Copies row `from` of `source` to row `to` of `target`, both `[_, width]`.
    fn copy_row(
        &self,
        source: &Self::Buffer,
        from: usize,
        target: &mut Self::Buffer,
        to: usize,
        width: usize,
    );
    /// Copies page `from` to page `to` in every layer.
    fn copy_page(&self, kv: &mut Self::Kv, from: u32, to: u32);
    /// Rows `from..from + rows` of a buffer of this width, on the host.
    fn read<'b>(&self, buffer: &'b Self::Buffer, from: usize, rows: usize, width: usize) -> &'b [f32];
}
