//! The CPU backend: plain Rust over rayon, weights used where the file's map holds them.
//!
//! Activations, keys, values and sums are f32 whatever the weights' type. Start from [`Cpu`]; one file per
//! idea: `lanes` (sixteen lanes on three instruction sets), `linear` (products of decode rows), `gemm` (of prompt rows),
//! `attention`, `pointwise`, `crew` (the threads of a decode pass).

mod attention;
mod crew;
mod gemm;
mod lanes;
mod linear;
mod pointwise;

pub use lanes::Isa;

use rayon::prelude::*;

use self::{
    attention::{PAGE, Shape},
    linear::{Matrix, Part, Scales},
};
use super::{Angles, Backend, Epilogue, Heads, Input, Norm, Projection, RoundSizes, Row, RowClass};
use crate::{
    cache::Cache,
    checkpoint::Tensor,
    error::{Error, Result},
    mask::Mask,
    memory::available_memory,
};

/// Rows up to which an operation on each of them is not worth waking another thread.
const SERIAL_ROWS: usize = 64;

/// The processor that this runs on. Work is spread over the current rayon pool; calls come fastest from
/// within it ([`rayon::ThreadPool::install`]).
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    isa: Isa,
    /// At least one. Asked for once: the answer comes out of the system's files.
    cores: usize,
}

impl Cpu {
    /// With the best instruction set of this processor.
    pub fn new() -> Self {
        Cpu { isa: Isa::detect(), cores: cores() }
    }

    /// With a given instruction set.
    ///
    /// # Errors
    /// [`Error::Argument`] if this processor lacks it.
    pub fn with_isa(isa: Isa) -> Result<Self> {
        if Isa::available().contains(&isa) {
            Ok(Cpu { isa, cores: cores() })
        } else {
            Err(Error::argument("isa", format!("this processor has no {}", isa.name())))
        }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Default for Cpu {
    fn default() -> Self {
        Cpu::new()
    }
}

/// Keys and values of every layer: `[layer][page]` of [`Shape::page_floats`] floats.
pub struct Pages {
    floats: Vec<f32>,
    layers: usize,
    pages: usize,
    shape: Shape,
}

impl Pages {
    fn layer(&self, layer: usize) -> &[f32] {
        let floats = self.pages * self.shape.page_floats();
        &self.floats[layer * floats..][..floats]
    }
    fn page(&mut self, layer: usize, page: u32) -> &mut [f32] {
        let floats = self.shape.page_floats();
        &mut self.floats[(layer * self.pages + page as usize) * floats..][..floats]
    }
}

/// One matrix of a product, whose activations have the scales `rows` if they are e4m3.
fn part<'a>(projection: &Projection<'a, Tensor>, rows: Option<&'a [f32]>) -> Part<'a> {
    let &Projection { weight, bias, column } = projection;
    let scales = rows.zip(weight.fp8()).map(|(rows, fp8)| Scales { rows, outputs: &fp8.scales });
    Part { weight: matrix(weight), bias: bias.map(matrix), column, scales }
}

/// The block table of a sequence that the model found to be live before it called.
fn table(cache: &Cache, sequence: usize) -> &[u32] {
    cache.table(sequence).unwrap_or(&[])
}

fn shape(heads: Heads) -> Shape {
    Shape { heads: heads.heads, kv_heads: heads.kv_heads, head_dim: heads.head_dim }
}

fn matrix(tensor: &Tensor) -> Matrix<'_> {
    Matrix { bytes: tensor.bytes(), dtype: tensor.dtype(), rows: tensor.rows(), columns: tensor.columns() }
}

/// `count` zeros, or an error instead of an abort where the allocator has none. The system hands out zeroed
/// pages one by one as they are first touched.
fn zeros(what: &str, count: Option<usize>) -> Result<Vec<f32>> {
    let refuse = |needed: String| Error::Capacity {
        what: what.into(),
        needed,
        available: "that much memory is not to be had: ask for a shorter --context or fewer prompts at once"
            .into(),
    };
    let count = count.ok_or_else(|| refuse("more than the address space".into()))?;
    let bytes = count.checked_mul(4).ok_or_else(|| refuse("more than the address space".into()))?;
    if let Some(free) = available_memory()
        && bytes as u64 > free
    {
        return Err(refuse(format!("{} MiB of {} MiB free", bytes >> 20, free >> 20)));
    }
    let layout =
        std::alloc::Layout::array::<f32>(count).map_err(|_| refuse(format!("{} MiB", bytes >> 20)))?;
    let mut probe: Vec<u8> = Vec::new();
    probe.try_reserve_exact(layout.size()).map_err(|_| refuse(format!("{} MiB", bytes >> 20)))?;
    drop(probe);
    Ok(vec![0.0; count])
}

impl Cpu {
    /// The rows of an input, normalised where asked.
    fn normalised<'a>(&self, input: Input<'a, Cpu>) -> &'a [f32] {
        let Input { x, from, rows, norm, .. } = input;
        let Some(Norm { weight, eps, scratch }) = norm else {
            assert_eq!(from, 0, "a product without a norm begins at the first row");
            return x;
        };
        let weight = matrix(weight);
        let width = weight.rows * weight.columns;
        let one = |(x, out): (&[f32], &mut [f32])| pointwise::rms_norm(self.isa, x, weight, eps, out);
        let x = &x[from * width..][..rows * width];
        let out = &mut scratch[..rows * width];
        if rows <= SERIAL_ROWS {
            x.chunks_exact(width).zip(out.chunks_exact_mut(width)).for_each(one);
        } else {
            x.par_chunks_exact(width).zip(out.par_chunks_exact_mut(width)).for_each(one);
        }
        scratch
    }

    /// The product of `rows` rows of `x`, which are e4m3 numbers if they have `scales`.
    #[allow(clippy::too_many_arguments)]
    fn product(
        &self,
        x: &[f32],
        scales: Option<&[f32]>,
        rows: usize,
        projections: &[Projection<Tensor>],
        out: &mut [f32],
        width: usize,
        epilogue: Epilogue,
        class: RowClass,
    ) {
        let product = match class {
            RowClass::Decode => linear::linear,
            RowClass::Prompt => gemm::gemm,
        };
        let epilogue = match epilogue {
            Epilogue::Store => linear::Epilogue::Store,
            Epilogue::Add => linear::Epilogue::Add,
            Epilogue::SwiGlu => linear::Epilogue::SwiGlu,
        };
        let mut run = |parts: &[Part]| product(self.isa, x, rows, parts, out, width, epilogue);
        let part = |projection| part(projection, scales);
        match projections {
            [a] => run(&[part(a)]),
            [a, b] => run(&[part(a), part(b)]),
            [a, b, c] => run(&[part(a), part(b), part(c)]),
            _ => panic!("one to three projections share an input"),
        }
    }
}

/// Activations in e4m3.
pub struct Quantised {
    /// What the codes stand for, `[rows, width]`, row after row of whatever width they were quantised in.
    numbers: Vec<f32>,
    /// `[rows]`
    scales: Vec<f32>,
}

/// The rows of a pass, and their angles: `[rows, head_dim]`, cosines, then sines.
pub struct Rows {
    list: Vec<Row>,
    cos_sin: Vec<f32>,
    angles: Angles,
}

impl Backend for Cpu {
    type Weight = Tensor;
    type Buffer = Vec<f32>;
    type Logits = (Vec<f32>, usize);
    type Kv = Pages;
    type Quantised = Quantised;
    type Rows = Rows;
    type Round = std::convert::Infallible;

    fn name(&self) -> String {
        self.isa.name().into()
    }

    fn page_size(&self) -> usize {
        PAGE
    }

    fn page_bytes(&self, heads: Heads, layers: usize) -> usize {
        shape(heads).page_floats().saturating_mul(layers).saturating_mul(4)
    }

    fn weight(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<Vec<f32>> {
        zeros("a buffer of activations", rows.checked_mul(width))
    }

    fn quantised(&self, rows: usize, width: usize) -> Result<Quantised> {
        let numbers = zeros("a buffer of activations", rows.checked_mul(width))?;
        Ok(Quantised { numbers, scales: vec![0.0; rows] })
    }

    fn logits(&self, rows: usize, vocab: usize) -> Result<(Vec<f32>, usize)> {
        Ok((zeros("a buffer of logits", rows.checked_mul(vocab))?, vocab))
    }

    fn kv(&self, heads: Heads, layers: usize, cache: &Cache) -> Result<Pages> {
        let (shape, pages) = (shape(heads), cache.pages());
        let floats = shape.page_floats().checked_mul(layers).and_then(|n| n.checked_mul(pages));
        Ok(Pages { floats: zeros("the KV cache", floats)?, layers, pages, shape })
    }

    fn rows(&self, rows: usize, heads: Heads, angles: &Angles) -> Result<Rows> {
        let cos_sin = zeros("the angles of rows", rows.checked_mul(heads.head_dim))?;
        Ok(Rows { list: Vec::with_capacity(rows), cos_sin, angles: angles.clone() })
    }

    fn round(&self, _sizes: RoundSizes, _angles: &Angles, _kv: &Self::Kv) -> Result<Option<Self::Round>> {
        Ok(None)
    }

    fn pass<R: Send>(&self, operations: impl FnOnce() -> R + Send) -> R {
        crew::muster(self.cores, operations)
    }

    fn set_rows(
        &self,
        rows: &mut Rows,
        list: &[Row],
        _class: RowClass,
        kv: &mut Pages,
        _cache: &Cache,
    ) -> Result<()> {
        rows.list.clear();
        rows.list.extend_from_slice(list);
        for (row, cos_sin) in list.iter().zip(rows.cos_sin.chunks_exact_mut(kv.shape.head_dim)) {
            rows.angles.write(row.position, cos_sin);
        }
        Ok(())
    }

    fn embed(&self, table: &Tensor, rows: &Rows, out: &mut Vec<f32>) -> Result<()> {
        let table = matrix(table);
        for (row, out) in rows.list.iter().zip(out.chunks_exact_mut(table.columns)) {
            pointwise::embed(table, row.token as usize, out);
        }
        Ok(())
    }

    fn linear(
        &self,
        input: Input<Cpu>,
        projections: &[Projection<Tensor>],
        out: &mut Vec<f32>,
        width: usize,
        epilogue: Epilogue,
        class: RowClass,
    ) -> Result<()> {
        let rows = input.rows;
        let x = self.normalised(input);
        self.product(x, None, rows, projections, out, width, epilogue, class);
        Ok(())
    }

    fn quantise(&self, input: Input<Cpu>, width: usize, bound: f32, out: &mut Quantised) -> Result<()> {
        let rows = input.rows;
        let x = self.normalised(input);
        let one = |((x, numbers), scale): ((&[f32], &mut [f32]), &mut f32)| {
            *scale = pointwise::quantise(self.isa, x, bound, numbers);
        };
        let (x, numbers) = (&x[..rows * width], &mut out.numbers[..rows * width]);
        let scales = &mut out.scales[..rows];
        if rows <= SERIAL_ROWS {
            x.chunks_exact(width).zip(numbers.chunks_exact_mut(width)).zip(scales).for_each(one);
        } else {
            x.par_chunks_exact(width).zip(numbers.par_chunks_exact_mut(width)).zip(scales).for_each(one);
        }
        Ok(())
    }

    fn linear_fp8(
        &self,
        x: &Quantised,
        rows: usize,
        projections: &[Projection<Tensor>],
        out: &mut Vec<f32>,
        width: usize,
        epilogue: Epilogue,
        class: RowClass,
    ) -> Result<()> {
        self.product(&x.numbers, Some(&x.scales), rows, projections, out, width, epilogue, class);
        Ok(())
    }

    fn head(&self, input: Input<Cpu>, weight: &Tensor, out: &mut (Vec<f32>, usize)) -> Result<()> {
        let head = Projection { weight, bias: None, column: 0 };
        let (logits, vocab) = out;
        self.linear(input, &[head], logits, *vocab, Epilogue::Store, RowClass::Decode)
    }

    fn rope_append(
        &self,
        qkv: &mut Vec<f32>,
        rows: &Rows,
        kv: &mut Pages,
        layer: usize,
        cache: &Cache,
    ) -> Result<()> {
        let shape = kv.shape;
        let Shape { heads, kv_heads, head_dim } = shape;
        let rotated = (heads + kv_heads) * head_dim;
        let rotate = |(qkv, cos_sin): (&mut [f32], &[f32])| {
            let (cos, sin) = cos_sin.split_at(head_dim / 2);
            for head in qkv[..rotated].chunks_exact_mut(head_dim) {
                pointwise::rotate(head, cos, sin);
            }
        };
        let count = rows.list.len();
        let qkv = &mut qkv[..count * shape.qkv()];
        let cos_sin = &rows.cos_sin[..count * head_dim];
        if count <= SERIAL_ROWS {
            qkv.chunks_exact_mut(shape.qkv()).zip(cos_sin.chunks_exact(head_dim)).for_each(rotate);
        } else {
            qkv.par_chunks_exact_mut(shape.qkv()).zip(cos_sin.par_chunks_exact(head_dim)).for_each(rotate);
        }
        for (row, qkv) in rows.list.iter().zip(qkv.chunks_exact(shape.qkv())) {
            let (key, value) = qkv[heads * head_dim..].split_at(kv_heads * head_dim);
            let page = table(cache, row.sequence)[row.position / PAGE];
            attention::append(shape, kv.page(layer, page), row.position % PAGE, key, value);
        }
        Ok(())
    }

    fn attention(
        &self,
        qkv: &Vec<f32>,
        rows: &Rows,
        mask: &Mask,
        kv: &Pages,
        layer: usize,
        cache: &Cache,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let row = |r: usize| {
            let row = rows.list[r];
            attention::Row {
                table: table(cache, row.sequence),
                visible: mask.visible(row.position, cache.len(row.sequence).unwrap_or(0), 0),
            }
        };
        attention::attention(self.isa, kv.shape, qkv, rows.list.len(), row, kv.layer(layer), out);
        Ok(())
    }

    fn copy_row(
        &self,
        source: &Vec<f32>,
        from: usize,
        target: &mut Vec<f32>,
        to: usize,
        width: usize,
        _rows: Option<&Self::Rows>,
    ) -> Result<()> {
        target[to * width..][..width].copy_from_slice(&source[from * width..][..width]);
        Ok(())
    }

    fn copy_page(&self, kv: &mut Pages, from: u32, to: u32) -> Result<()> {
        let floats = kv.shape.page_floats();
        for layer in 0..kv.layers {
            let base = layer * kv.pages;
            let from = (base + from as usize) * floats;
            kv.floats.copy_within(from..from + floats, (base + to as usize) * floats);
        }
        Ok(())
    }

    fn read<'b>(&self, logits: &'b mut (Vec<f32>, usize), rows: usize) -> Result<&'b [f32]> {
        Ok(&logits.0[..rows * logits.1])
    }
}
