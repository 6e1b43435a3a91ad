//! The operations of a forward pass over some device's memory.
//!
//! Start from [`Backend`], what a device must offer; [`Cpu`] is the reference and the default, `Gpu` (feature `cuda`) the
//! kernels over a GPU or its simulator.
//! `src/model` writes the forward pass once, over this trait.

mod angles;
mod cpu;
#[cfg(feature = "cuda")]
mod gpu;
mod round;

pub use angles::Angles;
pub use cpu::{Cpu, Isa};
#[cfg(feature = "cuda")]
pub use gpu::{Gpu, LibraryUse, MemoryPlan, ProductChoice};
pub use round::{
    IN_FLIGHT, Recordings, Round, RoundOutcome, RoundPlan, RoundSequence, RoundShape, RoundSizes,
};

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
    /// Width that a head has in the backend's memory, [`Backend::padded`]: each half of it is followed by zeros.
    pub padded: usize,
}

/// Which side of a projection of attention is divided by heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadSide {
    /// The outputs: a query, key or value projection or its bias.
    Outputs,
    /// The inputs: the output projection.
    Inputs,
}

impl Heads {
    /// Width of a row of q, k and v side by side.
    pub fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.padded
    }
}

/// What a product reads: rows `from..from + rows` of a buffer, normalised first where a norm is given.
pub struct Input<'a, B: Backend + ?Sized> {
    /// `[_, width]`.
    pub x: &'a B::Buffer,
    /// First row.
    pub from: usize,
    /// Number of rows.
    pub rows: usize,
    /// RMSNorm of each row before the product.
    pub norm: Option<Norm<'a, B>>,
    /// Where some are known to be dead: the rows of the pass, from `from` on. Where all are, a product may leave its outputs as they are.
    pub live: Option<&'a B::Rows>,
}

/// RMSNorm: x / √(mean(x²) + ε) · weight.
pub struct Norm<'a, B: Backend + ?Sized> {
    /// `[width]`.
    pub weight: &'a B::Weight,
    /// ε.
    pub eps: f32,
    /// Room for the normalised rows, for backends that do not fold the norm into the product.
    pub scratch: &'a mut B::Buffer,
}

/// What a device offers to a forward pass.
///
/// Buffers are matrices of activations, `[rows, width]` row after row. No operation on decode rows allocates, and a
/// row of any result has the same bits whatever other rows are computed with it; a product's depend on the
/// [`RowClass`], those of all other operations do not. Arguments are checked by
/// `src/model`; an operation may panic on buffers that are too small, which the model never passes.
///
/// # Errors
/// Operations fail where a device does ([`Error::Device`](crate::Error::Device)); the CPU's never do. What allocates fails with
/// [`Error::Capacity`](crate::Error::Capacity) where memory is short.
pub trait Backend: Send + Sync {
    /// A weight matrix or vector, in the type it is stored in.
    type Weight: Send + Sync;
    /// A matrix of activations.
    type Buffer: Send + Sync;
    /// A matrix of logits in f32, which the host reads.
    type Logits: Send + Sync;
    /// The keys and values of every layer, in pages.
    type Kv: Send + Sync;
    /// A matrix of activations in e4m3, with a scale for each row.
    type Quantised: Send + Sync;
    /// The rows of a pass, where the operations want them.
    type Rows: Send + Sync;
    /// Rounds that stay on the device; [`Infallible`](std::convert::Infallible) where the host drives them.
    type Round: Round<Self>;

    /// A name for reports: the instruction set, or the GPU's.
    fn name(&self) -> String;
    /// Positions per page of [`Backend::Kv`].
    fn page_size(&self) -> usize;
    /// Most rows of one pass of prompts whose activations take `row_bytes` each in f32: enough that each weight meets many rows, and no more
    /// than caches hold, which is what counts on a CPU.
    fn prompt_rows(&self, row_bytes: usize) -> usize {
        ((24 << 20) / row_bytes.max(1)).clamp(16, 512)
    }
    /// Bytes that [`Backend::kv`] takes per page.
    fn page_bytes(&self, heads: Heads, layers: usize) -> usize;

    /// Width that heads of `head_dim` have in this backend's memory; `head_dim` unless its kernels ask for more.
    fn padded(&self, head_dim: usize) -> usize {
        head_dim
    }

    /// Makes `tensor` usable by the operations.
    fn weight(&self, tensor: &Tensor) -> Result<Self::Weight>;
    /// Makes a projection of attention, or its bias, usable: with zeros for what heads are padded by.
    fn head_weight(&self, tensor: &Tensor, _heads: Heads, _side: HeadSide) -> Result<Self::Weight> {
        self.weight(tensor)
    }
    /// A buffer of `rows × width` numbers.
    fn buffer(&self, rows: usize, width: usize) -> Result<Self::Buffer>;
    /// Room for `rows × width` numbers in e4m3, and a scale for each row.
    fn quantised(&self, rows: usize, width: usize) -> Result<Self::Quantised>;
    /// Logits of `rows` rows.
    fn logits(&self, rows: usize, vocab: usize) -> Result<Self::Logits>;
    /// Room for the pages that `cache` keeps book of, in each of `layers` layers.
    fn kv(&self, heads: Heads, layers: usize, cache: &Cache) -> Result<Self::Kv>;
    /// Room for at most `rows` rows, whose heads are rotated by `angles`.
    fn rows(&self, rows: usize, heads: Heads, angles: &Angles) -> Result<Self::Rows>;

    /// Room for rounds on the device over the cache `kv`; None where the host drives them.
    fn round(&self, sizes: RoundSizes, angles: &Angles, kv: &Self::Kv) -> Result<Option<Self::Round>>;

    /// Runs `operations` on decode rows, which follow each other closely, in whatever makes many short ones cheap: on
    /// the CPU, threads that stay awake in between. Changes no result; may be nested.
    fn pass<R: Send>(&self, operations: impl FnOnce() -> R + Send) -> R {
        operations()
    }

    /// Waits until everything has been done that was asked for, so that a clock on the host tells its time.
    ///
    /// # Errors
    /// What went wrong on the device.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    /// Makes `list`, rows of one class, those of the operations that follow.
    fn set_rows(
        &self,
        rows: &mut Self::Rows,
        list: &[Row],
        class: RowClass,
        kv: &mut Self::Kv,
        cache: &Cache,
    ) -> Result<()>;
    /// `out[r] = table[rows[r].token]`; `out` is `[rows, width]`.
    fn embed(&self, table: &Self::Weight, rows: &Self::Rows, out: &mut Self::Buffer) -> Result<()>;
    /// `out[r, column + n] ⟵ input[r] · weight[n] + bias[n]` for each projection; `out` is `[rows, width]`. All
    /// rows are of one class.
    fn linear(
        &self,
        input: Input<Self>,
        projections: &[Projection<Self::Weight>],
        out: &mut Self::Buffer,
        width: usize,
        epilogue: Epilogue,
        class: RowClass,
    ) -> Result<()>;
    /// The rows of `input` in e4m3: of each, scale = max(min(max|x|, `bound`) / 448, 1 / (448 · 512)) and the numbers
    /// nearest to x / scale (arXiv 2407.21783, section 6). Rows of `input` are `width` wide.
    fn quantise(&self, input: Input<Self>, width: usize, bound: f32, out: &mut Self::Quantised)
    -> Result<()>;
    /// [`Backend::linear`] of the first `rows` rows that [`Backend::quantise`] left in `x`, by weights in e4m3: sums are
    /// multiplied by the scale of the row and that of the output before the bias is added.
    #[allow(clippy::too_many_arguments)]
    fn linear_fp8(
        &self,
        x: &Self::Quantised,
        rows: usize,
        projections: &[Projection<Self::Weight>],
        out: &mut Self::Buffer,
        width: usize,
        epilogue: Epilogue,
        class: RowClass,
    ) -> Result<()>;
    /// `out[r] = input[r] · weightᵀ`, on decode rows: `[rows, vocab]`.
    fn head(&self, input: Input<Self>, weight: &Self::Weight, out: &mut Self::Logits) -> Result<()>;
    /// Rotates q and k of every row by its angles and writes k and v to the row's place in the cache.
    /// `qkv` is `[rows, Heads::qkv()]`.
    fn rope_append(
        &self,
        qkv: &mut Self::Buffer,
        rows: &Self::Rows,
        kv: &mut Self::Kv,
        layer: usize,
        cache: &Cache,
    ) -> Result<()>;
    /// `out[r] = softmax(q · Kᵀ / √head_dim) · V` over the keys that `mask` lets the row see;
    /// `out` is `[rows, heads · padded]`.
    #[allow(clippy::too_many_arguments)]
    fn attention(
        &self,
        qkv: &Self::Buffer,
        rows: &Self::Rows,
        mask: &Mask,
        kv: &Self::Kv,
        layer: usize,
        cache: &Cache,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// Copies row `from` of `source` to row `to` of `target`, both `[_, width]`; nothing if it is a dead one of `rows`.
    fn copy_row(
        &self,
        source: &Self::Buffer,
        from: usize,
        target: &mut Self::Buffer,
        to: usize,
        width: usize,
        rows: Option<&Self::Rows>,
    ) -> Result<()>;
    /// Copies page `from` to page `to` in every layer.
    fn copy_page(&self, kv: &mut Self::Kv, from: u32, to: u32) -> Result<()>;
    /// The first `rows` rows of logits, on the host: waits until they are computed.
    fn read<'b>(&self, logits: &'b mut Self::Logits, rows: usize) -> Result<&'b [f32]>;
}
