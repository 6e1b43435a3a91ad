//! The GPU backend: the operations of a forward pass as kernels over a driver, which is a GPU or its simulator.
//!
//! Start from [`Gpu`]. Weights, activations, keys and values are bf16 or f16, sums f32; the residual stream is rounded to that type
//! after every addition. Decode rows stream the weights; their norm is folded into the product that follows it: whoever writes the
//! residual stream leaves the sums of its squares beside it. Prompt rows go through tensor-core products and flash attention, with a
//! norm of its own before.

mod graphs;
mod library;
mod plan;
mod round;
mod rows;
mod script;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use half::{bf16, f16};

use self::{
    library::{Library, Prompt},
    rows::{Place, Rotary},
};
pub use self::{
    library::{LibraryUse, ProductChoice},
    plan::MemoryPlan,
    round::DeviceRound,
    rows::PassRows,
};
use super::{Angles, Backend, Epilogue, HeadSide, Heads, Input, Projection, RoundSizes, Row, RowClass};
use crate::{
    cache::Cache,
    checkpoint::{Checkpoint, Dtype, Tensor},
    driver::{Buffer, Driver, Stream, View, ViewMut},
    error::{Error, Result},
    kernels::{
        AttentionDecodeArgs, AttentionPrefillArgs, E4m3Rows, EmbedArgs, GemmArgs, Kernels, Linear,
        LinearArgs, LinearEpilogue, LinearNorm, LinearProjection, PageLayout, PageTable, QuantizeFp8RowsArgs,
        RmsNormArgs, RopeAppendArgs, Rows as DeviceRows, RowsMut,
    },
    mask::Mask,
};

/// Positions of a page.
const PAGE: usize = 64;
/// Most decode rows of one product, and of one sequence in one attention.
const SLICE: usize = 64;
/// Most rows of one pass of prompts. A product of as many does 1024 FLOP a byte of weights, over three times what an H100 can do in the time
/// that memory takes to bring one, and has tiles enough for all multiprocessors; a multiple of what the library's products come in.
const PROMPT_ROWS: usize = 1024;

/// A device with the kernels loaded.
pub struct Gpu {
    driver: Arc<dyn Driver>,
    kernels: Kernels,
    stream: Stream,
    dtype: Dtype,
    /// Room that products and attention share: the stream runs them one after the other.
    scratch: Mutex<Scratch>,
    /// Whether rounds that come again are recorded.
    graphs: bool,
    /// Bytes of weights that have been sent to the device.
    uploaded: Arc<AtomicU64>,
    /// Drafts that rounds keep whatever the model says; `usize::MAX`: what it says counts.
    scripted: AtomicUsize,
    /// i32: 0, the row that is copied.
    first: Buffer,
    library: Option<Library>,
}

/// Attention's is as large as the largest round asks for; more decode rows than that, which no round has, make it grow.
struct Scratch {
    linear: Buffer,
    attention: Buffer,
    /// Counts its growths: what was recorded before one must not run again.
    generation: u64,
}

/// A matrix or vector in device memory.
pub struct Weight {
    memory: Buffer,
    rows: usize,
    columns: usize,
    /// f32 `[rows]`, of a matrix in e4m3.
    scales: Option<Buffer>,
}

/// Rows of activations in e4m3.
pub struct Quantised {
    /// `[rows, stride]`, of whatever width they were quantised in.
    codes: Buffer,
    /// f32 `[rows]`
    scales: Buffer,
    /// A multiple of 16.
    stride: usize,
    width: usize,
    /// Positions of the rows, where some may be dead.
    live: Option<Place>,
    /// Whether some row is sure to be alive.
    prefetch: bool,
}

/// Rows of activations with the sums of squares that norms go by.
pub struct Activations {
    /// `[rows, stride]`.
    memory: Buffer,
    /// f32 `[rows, ⌈width / 64⌉]`.
    stats: Buffer,
    width: usize,
    stride: usize,
}

/// Logits on the device, and room for them on the host.
pub struct Logits {
    memory: Buffer,
    host: Vec<f32>,
    vocab: usize,
}

/// Keys and values, `[layer][k, v][pages, kv_heads, PAGE, padded]`, and the page table of every sequence.
pub struct Paged {
    memory: Buffer,
    layout: PageLayout,
    heads: Heads,
    /// i32 `[sequences, entries]`.
    tables: Buffer,
    /// What the device holds of them.
    mirror: Vec<i32>,
    sequences: usize,
    entries: usize,
}

impl Gpu {
    /// The kernels on `driver`, computing in the type of the checkpoint's embedding: bf16 or f16, and bf16 for f32. Tensors of another
    /// type are converted.
    ///
    /// # Errors
    /// [`Error::Device`] if the device cannot run the kernels; those of [`Checkpoint::tensor`].
    pub fn new(driver: Arc<dyn Driver>, checkpoint: &Checkpoint) -> Result<Self> {
        let config = &checkpoint.config;
        let embedding = checkpoint.tensor("model.embed_tokens.weight", &[config.vocab, config.hidden])?;
        let dtype = if embedding.dtype() == Dtype::F16 { Dtype::F16 } else { Dtype::Bf16 };
        let mut stream = Stream::new(&driver)?;
        // SAFETY: weights are uploaded by copies, and no kernel writes any.
        unsafe { stream.set_overlapping(true) };
        // The products' counters begin at zero and return to it.
        let mut linear = Buffer::new(&driver, Linear::MOST_SCRATCH)?;
        stream.fill(&mut linear.view_mut(), 0)?;
        let scratch = Mutex::new(Scratch { linear, attention: Buffer::new(&driver, 0)?, generation: 0 });
        let first = Buffer::from_slice(&stream, &[0i32])?;
        Ok(Gpu {
            kernels: Kernels::load(&driver)?,
            stream,
            dtype,
            scratch,
            graphs: true,
            uploaded: Arc::default(),
            scripted: AtomicUsize::new(usize::MAX),
            first,
            library: None,
            driver,
        })
    }

    /// Whether rounds whose launches come again are recorded as graphs, as they are unless this says otherwise: for measurements of what
    /// that saves, and profiles of launch after launch. It holds for generators that are made from now on.
    pub fn set_graphs(&mut self, on: bool) {
        self.graphs = on;
    }

    /// Whether kernels begin while those before them end, on GPUs that can (Hopper and later), as they do unless this says otherwise: for
    /// measurements of what that saves, and profiles in which a kernel's time is its own.
    pub fn set_overlap(&mut self, on: bool) {
        // SAFETY: as in `new`.
        unsafe { self.stream.set_overlapping(on) }
    }

    /// Lets the library that comes with the device, cuBLASLt, compute the products of prompts where it is faster than the kernels. That is
    /// measured for each shape when it comes first, and then stays. Rows of a prompt have other bits then than by the kernels, and than in
    /// pieces of other sizes; drafts stay exact, since what verifies them follows the same prompt. Measuring takes device memory, room for
    /// a product, and gives it back but for that of gate and up: the first prompt of a shape is no place to count allocations.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such library.
    pub fn use_library(&mut self, when: LibraryUse) -> Result<()> {
        self.library = Some(Library::new(self.driver.clone().products()?, when));
        Ok(())
    }

    /// The library's name, and what was measured so far; None without [`Gpu::use_library`].
    pub fn library(&self) -> Option<(&'static str, Vec<ProductChoice>)> {
        self.library.as_ref().map(|library| (library.name(), library.choices()))
    }

    /// Counts the bytes of weights that are sent to the device: of [`MemoryPlan::weights`], while a model is made.
    pub fn uploaded(&self) -> Arc<AtomicU64> {
        self.uploaded.clone()
    }

    /// A buffer that holds a part of a weight.
    fn upload<T: bytemuck::NoUninit>(&self, numbers: &[T]) -> Result<Buffer> {
        let buffer = Buffer::from_slice(&self.stream, numbers)?;
        self.uploaded.fetch_add(buffer.bytes() as u64, Ordering::Relaxed);
        Ok(buffer)
    }

    /// The type of activations, keys and values.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// For benchmarks alone: rounds of generators that are made from now on keep `kept` drafts each, whatever the model says, so that
    /// their time can be measured on weights that were never trained. Their tokens mean nothing; sequences that draw theirs are refused.
    /// None, which it is from the start: what the model says counts.
    #[doc(hidden)]
    pub fn script_acceptance(&self, kept: Option<usize>) {
        self.scripted.store(kept.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    fn scratch(&self) -> std::sync::MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// One layer's keys or values.
    fn pages(&self, kv: &Paged, layer: usize, part: usize) -> std::ops::Range<usize> {
        let bytes = kv.layout.pages * kv.layout.page_stride * self.dtype.size();
        let begin = (2 * layer + part) * bytes;
        begin..begin + bytes
    }
}

impl Scratch {
    /// Makes attention's at least so large. What it held is lost.
    fn grow(&mut self, driver: &Arc<dyn Driver>, bytes: usize) -> Result<()> {
        if self.attention.bytes() < bytes {
            self.attention = Buffer::new(driver, bytes)?;
            self.generation += 1;
        }
        Ok(())
    }
}

impl Activations {
    fn all(&mut self) -> RowsMut<'_> {
        RowsMut { stride: self.stride, view: self.memory.view_mut() }
    }

    fn rows(&self, from: usize, rows: usize, size: usize) -> DeviceRows<'_> {
        let begin = from * self.stride * size;
        DeviceRows {
            view: self.memory.view().slice(begin..begin + rows * self.stride * size),
            stride: self.stride,
        }
    }

    fn stats(&self, from: usize, rows: usize) -> View<'_> {
        let bytes = self.width.div_ceil(64) * 4;
        self.stats.view().slice(from * bytes..(from + rows) * bytes)
    }
}

impl Backend for Gpu {
    type Weight = Weight;
    type Buffer = Activations;
    type Logits = Logits;
    type Kv = Paged;
    type Quantised = Quantised;
    type Rows = PassRows;
    type Round = DeviceRound;

    fn name(&self) -> String {
        self.driver.properties().name.clone()
    }

    fn page_size(&self) -> usize {
        PAGE
    }

    fn prompt_rows(&self, _row_bytes: usize) -> usize {
        PROMPT_ROWS
    }

    fn synchronize(&self) -> Result<()> {
        self.stream.synchronize()
    }

    fn page_bytes(&self, heads: Heads, layers: usize) -> usize {
        2 * layers * heads.kv_heads * PAGE * heads.padded * self.dtype.size()
    }

    fn padded(&self, head_dim: usize) -> usize {
        head_dim.next_multiple_of(8)
    }

    fn weight(&self, tensor: &Tensor) -> Result<Weight> {
        let (rows, columns) = (tensor.rows(), tensor.columns());
        if let Some(fp8) = tensor.fp8() {
            let (memory, scales) = (self.upload(tensor.bytes())?, self.upload(&fp8.scales)?);
            return Ok(Weight { memory, rows, columns, scales: Some(scales) });
        }
        let memory = match tensor.dtype() == self.dtype {
            true => self.upload(tensor.bytes())?,
            false => self.upload(&converted(tensor, self.dtype))?,
        };
        Ok(Weight { memory, rows, columns, scales: None })
    }

    fn head_weight(&self, tensor: &Tensor, heads: Heads, side: HeadSide) -> Result<Weight> {
        let Heads { head_dim, padded, .. } = heads;
        if head_dim == padded {
            return self.weight(tensor);
        }
        let (rows, columns) = (tensor.rows(), tensor.columns());
        let wider = |width: usize| width / head_dim * padded;
        // A bias is one row, its columns are outputs.
        let (rows, columns, inner) = match side {
            HeadSide::Outputs if rows > 1 => (wider(rows), columns, columns),
            _ => (rows, wider(columns), 1),
        };
        let numbers = converted(tensor, self.dtype);
        let mut spread = vec![0; rows * columns];
        let halves = numbers.chunks_exact(head_dim / 2 * inner);
        for (to, from) in spread.chunks_exact_mut(padded / 2 * inner).zip(halves) {
            to[..from.len()].copy_from_slice(from);
        }
        Ok(Weight { memory: self.upload(&spread)?, rows, columns, scales: None })
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<Activations> {
        // Every row begins at a multiple of 16 bytes.
        let stride = width.next_multiple_of(8);
        let elements = rows.checked_mul(stride).and_then(|n| n.checked_mul(self.dtype.size()));
        let Some(bytes) = elements else {
            return Err(Error::argument("rows", format!("{rows} of {width} exceed the address space")));
        };
        let mut memory = Buffer::new(&self.driver, bytes)?;
        let mut stats = Buffer::new(&self.driver, rows * width.div_ceil(64) * 4)?;
        // Dead rows are multiplied beside others, whatever they hold.
        self.stream.fill(&mut memory.view_mut(), 0)?;
        self.stream.fill(&mut stats.view_mut(), 0)?;
        Ok(Activations { memory, stats, width, stride })
    }

    fn quantised(&self, rows: usize, width: usize) -> Result<Quantised> {
        let stride = width.next_multiple_of(16);
        let Some(bytes) = rows.checked_mul(stride) else {
            return Err(Error::argument("rows", format!("{rows} of {width} exceed the address space")));
        };
        let (mut codes, mut scales) =
            (Buffer::new(&self.driver, bytes)?, Buffer::new(&self.driver, rows * 4)?);
        // As in `buffer`.
        self.stream.fill(&mut codes.view_mut(), 0)?;
        self.stream.fill(&mut scales.view_mut(), 0)?;
        Ok(Quantised { codes, scales, stride, width: 0, live: None, prefetch: true })
    }

    fn logits(&self, rows: usize, vocab: usize) -> Result<Logits> {
        let elements = rows.saturating_mul(vocab);
        Ok(Logits {
            memory: Buffer::new(&self.driver, elements.saturating_mul(4))?,
            host: vec![0.0; elements],
            vocab,
        })
    }

    fn kv(&self, heads: Heads, layers: usize, cache: &Cache) -> Result<Paged> {
        if heads.padded > 256 {
            let reason = format!("{}; a device takes up to 256: use --device cpu", heads.head_dim);
            return Err(Error::argument("head_dim", reason));
        }
        let pages = cache.pages();
        let bytes = (heads.kv_heads * heads.padded)
            .checked_mul(2 * layers * PAGE * self.dtype.size())
            .and_then(|bytes| bytes.checked_mul(pages));
        let Some(bytes) = bytes else {
            return Err(Error::argument("--context", "the KV cache exceeds the address space"));
        };
        let (sequences, entries) = (cache.sequences(), cache.positions_per_sequence() / PAGE);
        Ok(Paged {
            memory: Buffer::new(&self.driver, bytes)?,
            layout: PageLayout::heads_first(pages, PAGE, heads.kv_heads, heads.padded),
            heads,
            tables: Buffer::new(&self.driver, 4 * sequences * entries)?,
            // No page has this number, so the first rows are uploaded.
            mirror: vec![i32::MIN; sequences * entries],
            sequences,
            entries,
        })
    }

    fn rows(&self, rows: usize, heads: Heads, angles: &Angles) -> Result<PassRows> {
        PassRows::new(&self.driver, rows, Rotary::new(&self.stream, heads, angles)?)
    }

    fn round(&self, sizes: RoundSizes, angles: &Angles, kv: &Paged) -> Result<Option<DeviceRound>> {
        let attention = &self.kernels.attention_decode;
        let (rows, keys) = (sizes.max_draft + 1, kv.entries * PAGE);
        let needed = attention.most_scratch(sizes.slots, rows, kv.heads.heads, &kv.layout, keys);
        self.scratch().grow(&self.driver, needed)?;
        DeviceRound::new(self, sizes, angles, kv).map(Some)
    }

    fn set_rows(
        &self,
        rows: &mut PassRows,
        list: &[Row],
        class: RowClass,
        kv: &mut Paged,
        cache: &Cache,
    ) -> Result<()> {
        for (i, row) in list.iter().enumerate() {
            if i == 0 || list[i - 1].sequence != row.sequence {
                self.set_table(kv, cache, row.sequence)?;
            }
        }
        rows.set(&self.stream, list, class, cache)
    }

    fn embed(&self, table: &Weight, rows: &PassRows, out: &mut Activations) -> Result<()> {
        let Activations { memory, stats, width, stride } = out;
        self.kernels.embed.launch(
            &self.stream,
            &EmbedArgs {
                dtype: self.dtype,
                rows: rows.count,
                width: *width,
                vocabulary: table.rows,
                table: DeviceRows { view: table.memory.view(), stride: table.columns },
                tokens: rows.tokens.view(),
                positions: Some(rows.positions.view()),
                out: RowsMut { view: memory.view_mut(), stride: *stride },
                stats: Some(stats.view_mut()),
            },
        )
    }

    fn linear(
        &self,
        input: Input<Gpu>,
        projections: &[Projection<Weight>],
        out: &mut Activations,
        _width: usize,
        epilogue: Epilogue,
        class: RowClass,
    ) -> Result<()> {
        if class == RowClass::Prompt {
            return self.gemm(input, projections, out, epilogue);
        }
        let stats = epilogue == Epilogue::Add;
        let epilogue = of_kernel(epilogue);
        let size = self.dtype.size();
        let (row, stat) = (out.stride * size, out.width.div_ceil(64) * 4);
        for begin in (0..input.rows).step_by(SLICE) {
            let rows = SLICE.min(input.rows - begin);
            let target = RowsMut {
                view: out.memory.view_mut().part(begin * row..(begin + rows) * row),
                stride: out.stride,
            };
            let stats = stats.then(|| out.stats.view_mut().part(begin * stat..(begin + rows) * stat));
            self.product(&input, begin, rows, projections, target, stats, epilogue)?;
        }
        Ok(())
    }

    fn quantise(&self, input: Input<Gpu>, width: usize, bound: f32, out: &mut Quantised) -> Result<()> {
        let (dtype, size) = (self.dtype, self.dtype.size());
        let Input { x, from, rows, norm, live } = input;
        let x = x.rows(from, rows, size);
        out.width = width;
        out.live = live.map(|live| live.positions.part(from, rows));
        out.prefetch = live.is_none_or(|live| !live.may_be_dead);
        let positions = out.live.as_ref().map(Place::view);
        let (q, scales, bound) =
            (RowsMut { stride: out.stride, view: out.codes.view_mut() }, out.scales.view_mut(), Some(bound));
        match norm {
            Some(norm) => {
                let (weight, y) = (norm.weight.memory.view(), E4m3Rows { q, scales, bound });
                let (residual, stats, eps) = (None, None, norm.eps);
                let args = RmsNormArgs { dtype, rows, width, eps, x, residual, weight, y, stats, positions };
                self.kernels.rms_norm.launch_e4m3(&self.stream, &args)
            }
            None => {
                let args = QuantizeFp8RowsArgs { dtype, rows, width, bound, x, q, scales, positions };
                self.kernels.quantize_fp8_rows.launch(&self.stream, args)
            }
        }
    }

    fn linear_fp8(
        &self,
        x: &Quantised,
        rows: usize,
        projections: &[Projection<Weight>],
        out: &mut Activations,
        _width: usize,
        epilogue: Epilogue,
        class: RowClass,
    ) -> Result<()> {
        let inputs = x.width;
        if class == RowClass::Prompt {
            let args = GemmArgs {
                dtype: self.dtype,
                rows,
                inputs,
                x: x.rows(0, rows),
                x_scales: Some(x.scales(0, rows)),
                projections: linear_projections(projections),
                epilogue: of_kernel(epilogue),
                out: RowsMut { stride: out.stride, view: out.memory.view_mut() },
                out_stats: None,
            };
            return self.kernels.gemm.launch(&self.stream, args);
        }
        let (row, stat) = (out.stride * self.dtype.size(), out.width.div_ceil(64) * 4);
        let mut scratch = self.scratch();
        for begin in (0..rows).step_by(SLICE) {
            let rows = SLICE.min(rows - begin);
            let target = begin * row..(begin + rows) * row;
            let stats = begin * stat..(begin + rows) * stat;
            let args = LinearArgs {
                dtype: self.dtype,
                rows,
                inputs,
                x: x.rows(begin, rows),
                x_scales: Some(x.scales(begin, rows)),
                positions: x.live.as_ref().map(|live| live.view_of(begin..begin + rows)),
                prefetch: x.prefetch,
                norm: None,
                projections: linear_projections(projections),
                epilogue: of_kernel(epilogue),
                out: RowsMut { view: out.memory.view_mut().part(target), stride: out.stride },
                out_stats: (epilogue == Epilogue::Add).then(|| out.stats.view_mut().part(stats)),
            };
            self.kernels.linear.launch(&self.stream, args, scratch.linear.view_mut())?;
        }
        Ok(())
    }

    fn head(&self, input: Input<Gpu>, weight: &Weight, out: &mut Logits) -> Result<()> {
        let head = [Projection { weight, bias: None, column: 0 }];
        let row = 4 * out.vocab;
        for begin in (0..input.rows).step_by(SLICE) {
            let rows = SLICE.min(input.rows - begin);
            let target = RowsMut {
                view: out.memory.view_mut().part(begin * row..(begin + rows) * row),
                stride: out.vocab,
            };
            self.product(&input, begin, rows, &head, target, None, LinearEpilogue::StoreF32)?;
        }
        Ok(())
    }

    fn rope_append(
        &self,
        qkv: &mut Activations,
        rows: &PassRows,
        kv: &mut Paged,
        layer: usize,
        _cache: &Cache,
    ) -> Result<()> {
        let (keys, values) = (self.pages(kv, layer, 0), self.pages(kv, layer, 1));
        let (k, v) = kv.memory.view_mut().parts(keys, values);
        self.kernels.rope_append.launch(
            &self.stream,
            &RopeAppendArgs {
                dtype: self.dtype,
                rows: rows.count,
                heads: kv.heads.heads,
                qkv: RowsMut { stride: qkv.stride, view: qkv.memory.view_mut() },
                positions: rows.positions.view(),
                slots: rows.slots.view(),
                frequencies: rows.rotary.frequencies.view(),
                magnitude: rows.rotary.magnitude,
                layout: kv.layout,
                k,
                v,
                table: PageTable { view: kv.tables.view(), sequences: kv.sequences, stride: kv.entries },
            },
        )
    }

    fn attention(
        &self,
        qkv: &Activations,
        rows: &PassRows,
        mask: &Mask,
        kv: &Paged,
        layer: usize,
        _cache: &Cache,
        out: &mut Activations,
    ) -> Result<()> {
        let Heads { heads, head_dim, .. } = kv.heads;
        let (k, v) = (self.pages(kv, layer, 0), self.pages(kv, layer, 1));
        let (k, v) = (kv.memory.view().slice(k), kv.memory.view().slice(v));
        let q = DeviceRows { view: qkv.memory.view(), stride: qkv.stride };
        let out = RowsMut { stride: out.stride, view: out.memory.view_mut() };
        let table = PageTable { view: kv.tables.view(), sequences: kv.sequences, stride: kv.entries };
        let scale = 1.0 / (head_dim as f32).sqrt();
        if rows.class == RowClass::Prompt {
            let args = AttentionPrefillArgs {
                dtype: self.dtype,
                tokens: rows.count,
                sequences: rows.groups,
                heads,
                q,
                out,
                lse: None,
                layout: kv.layout,
                k,
                v,
                table,
                slots: Some(rows.group_slots.view()),
                lengths: rows.lengths.view(),
                offsets: rows.offsets.view(),
                positions: Some(rows.positions.view()),
                max_rows: rows.group_rows,
                max_keys: rows.max_keys.min(kv.entries * PAGE).max(1),
                mask: *mask,
                documents: None,
                scale,
                softcap: 0.0,
                sinks: None,
            };
            return self.kernels.attention_prefill.launch(&self.stream, &args);
        }
        let mut scratch = self.scratch();
        let args = AttentionDecodeArgs {
            dtype: self.dtype,
            tokens: rows.count,
            sequences: rows.groups,
            heads,
            q,
            out,
            lse: None,
            layout: kv.layout,
            k,
            v,
            table,
            slots: Some(rows.group_slots.view()),
            lengths: rows.lengths.view(),
            offsets: rows.offsets.view(),
            positions: Some(rows.positions.view()),
            max_rows: rows.group_rows,
            // Of the cache, not of the rows: a generation has one cut, and its scratch does not grow with the context.
            max_keys: rows.max_keys.min(kv.entries * PAGE).max(1),
            mask: *mask,
            documents: None,
            tree: None,
            scale,
            softcap: 0.0,
            sinks: None,
        };
        let needed = self.kernels.attention_decode.scratch_bytes(&args);
        scratch.grow(&self.driver, needed)?;
        self.kernels.attention_decode.launch(&self.stream, &args, scratch.attention.view_mut())
    }

    fn copy_row(
        &self,
        source: &Activations,
        from: usize,
        target: &mut Activations,
        to: usize,
        _width: usize,
        rows: Option<&PassRows>,
    ) -> Result<()> {
        let (size, width, stride) = (self.dtype.size(), source.width, source.stride);
        let row = to * stride * size..(to + 1) * stride * size;
        let bytes = width.div_ceil(64) * 4;
        // A lookup in a table of this one row. Two copies, of it and of its statistics, would cost more, and stand between kernels that
        // overlap.
        self.kernels.embed.launch(
            &self.stream,
            &EmbedArgs {
                dtype: self.dtype,
                rows: 1,
                width,
                vocabulary: 1,
                table: source.rows(from, 1, size),
                tokens: self.first.view(),
                positions: rows.map(|rows| rows.positions.view_of(from..from + 1)),
                out: RowsMut { view: target.memory.view_mut().part(row), stride },
                stats: Some(target.stats.view_mut().part(to * bytes..(to + 1) * bytes)),
            },
        )
    }

    fn copy_page(&self, kv: &mut Paged, from: u32, to: u32) -> Result<()> {
        let page = kv.layout.page_stride * self.dtype.size();
        let parts = kv.memory.bytes() / (page * kv.layout.pages);
        for part in 0..parts {
            let base = part * kv.layout.pages;
            let at = |id: u32| (base + id as usize) * page;
            self.stream.copy_within(&mut kv.memory.view_mut(), at(from)..at(from) + page, at(to))?;
        }
        Ok(())
    }

    fn read<'b>(&self, logits: &'b mut Logits, rows: usize) -> Result<&'b [f32]> {
        let count = rows * logits.vocab;
        let host = &mut logits.host[..count];
        self.stream.download(logits.memory.view().slice(0..4 * count), host)?;
        Ok(host)
    }
}

impl Gpu {
    /// Rows `begin..begin + rows` of an input through one launch.
    #[allow(clippy::too_many_arguments)]
    fn product(
        &self,
        input: &Input<Gpu>,
        begin: usize,
        rows: usize,
        projections: &[Projection<Weight>],
        out: RowsMut,
        out_stats: Option<ViewMut>,
        epilogue: LinearEpilogue,
    ) -> Result<()> {
        let from = input.from + begin;
        let norm = input.norm.as_ref().map(|norm| LinearNorm {
            weight: norm.weight.memory.view(),
            eps: norm.eps,
            stats: input.x.stats(from, rows),
        });
        let mut scratch = self.scratch();
        let args = LinearArgs {
            dtype: self.dtype,
            rows,
            inputs: input.x.width,
            x: input.x.rows(from, rows, self.dtype.size()),
            x_scales: None,
            positions: input.live.map(|live| live.positions.view_of(from..from + rows)),
            prefetch: input.live.is_none_or(|rows| !rows.may_be_dead),
            norm,
            projections: linear_projections(projections),
            epilogue,
            out,
            out_stats,
        };
        self.kernels.linear.launch(&self.stream, args, scratch.linear.view_mut())
    }

    /// A product of prompt rows, from row 0 on.
    fn gemm(
        &self,
        input: Input<Gpu>,
        projections: &[Projection<Weight>],
        out: &mut Activations,
        epilogue: Epilogue,
    ) -> Result<()> {
        let (dtype, size) = (self.dtype, self.dtype.size());
        let Input { mut x, from, rows, norm, .. } = input;
        let normed;
        if let Some(norm) = norm {
            let scratch = norm.scratch;
            let args = RmsNormArgs {
                dtype,
                rows,
                width: x.width,
                eps: norm.eps,
                x: x.rows(from, rows, size),
                residual: None,
                weight: norm.weight.memory.view(),
                y: RowsMut { stride: scratch.stride, view: scratch.memory.view_mut() },
                stats: None,
                positions: None,
            };
            self.kernels.rms_norm.launch(&self.stream, &args)?;
            normed = &*scratch;
            x = normed;
        }
        let prompt = Prompt { x: x.rows(0, rows, size), rows, inputs: x.width, projections, epilogue };
        match &self.library {
            Some(library) => library.launch(self, &prompt, out),
            None => prompt.launch(self, out.all()),
        }
    }

    /// Uploads the page table of a sequence where the device's differs.
    fn set_table(&self, kv: &mut Paged, cache: &Cache, sequence: usize) -> Result<()> {
        let table = cache.table(sequence)?;
        let begin = sequence * kv.entries;
        let mirror = &mut kv.mirror[begin..begin + table.len()];
        if mirror.iter().zip(table).all(|(there, page)| *there == *page as i32) {
            return Ok(());
        }
        for (there, page) in mirror.iter_mut().zip(table) {
            *there = *page as i32;
        }
        let bytes = 4 * begin..4 * (begin + table.len());
        self.stream.upload(&mut kv.tables.view_mut().part(bytes), mirror)
    }
}

impl Quantised {
    fn rows(&self, from: usize, rows: usize) -> DeviceRows<'_> {
        let view = self.codes.view().slice(from * self.stride..(from + rows) * self.stride);
        DeviceRows { view, stride: self.stride }
    }

    fn scales(&self, from: usize, rows: usize) -> View<'_> {
        self.scales.view().slice(4 * from..4 * (from + rows))
    }
}

fn of_kernel(epilogue: Epilogue) -> LinearEpilogue {
    match epilogue {
        Epilogue::Store => LinearEpilogue::Store,
        Epilogue::Add => LinearEpilogue::Add,
        Epilogue::SwiGlu => LinearEpilogue::SwiGlu,
    }
}

fn linear_projections<'a>(projections: &[Projection<'a, Weight>]) -> [Option<LinearProjection<'a>>; 3] {
    let one = |&Projection { weight, bias, column }: &Projection<'a, Weight>| LinearProjection {
        weight: DeviceRows { view: weight.memory.view(), stride: weight.columns },
        scales: weight.scales.as_ref().map(Buffer::view),
        bias: bias.map(|bias| bias.memory.view()),
        features: weight.rows,
        column,
    };
    std::array::from_fn(|i| projections.get(i).map(one))
}

/// A tensor's numbers in another type.
fn converted(tensor: &Tensor, dtype: Dtype) -> Vec<u16> {
    let bytes = tensor.bytes();
    let round = |x: f32| match dtype {
        Dtype::F16 => f16::from_f32(x).to_bits(),
        _ => bf16::from_f32(x).to_bits(),
    };
    match tensor.dtype() {
        Dtype::F32 => {
            bytes.chunks_exact(4).map(|b| round(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
        }
        Dtype::F16 => {
            bytes.chunks_exact(2).map(|b| round(f16::from_le_bytes([b[0], b[1]]).to_f32())).collect()
        }
        Dtype::Bf16 => {
            bytes.chunks_exact(2).map(|b| round(bf16::from_le_bytes([b[0], b[1]]).to_f32())).collect()
        }
        Dtype::E4m3 => unreachable!("codes are used as they are"),
    }
}
