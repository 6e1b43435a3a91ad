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
    linear::{Matrix, Part},
};
use super::{Backend, Epilogue, Heads, Projection, Row, RowClass};
use crate::{
    cache::Cache,
    checkpoint::Tensor,
    error::{Error, Result},
    mask::Mask,
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

fn part<'a>(projection: &Projection<'a, Tensor>) -> Part<'a> {
    Part { weight: matrix(projection.weight), bias: projection.bias.map(matrix), column: projection.column }
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

/// Bytes that the system says can still be allocated, where it says so.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

impl Backend for Cpu {
    type Weight = Tensor;
    type Buffer = Vec<f32>;
    type Kv = Pages;

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

    fn kv(&self, heads: Heads, layers: usize, pages: usize) -> Result<Pages> {
        let shape = shape(heads);
        let floats = shape.page_floats().checked_mul(layers).and_then(|n| n.checked_mul(pages));
        Ok(Pages { floats: zeros("the KV cache", floats)?, layers, pages, shape })
    }

    fn pass<R: Send>(&self, operations: impl FnOnce() -> R + Send) -> R {
        crew::muster(self.cores, operations)
    }

    fn embed(&self, table: &Tensor, rows: &[Row], out: &mut Vec<f32>) {
        let table = matrix(table);
        for (row, out) in rows.iter().zip(out.chunks_exact_mut(table.columns)) {
            pointwise::embed(table, row.token as usize, out);
        }
    }

    fn rms_norm(
        &self,
        x: &Vec<f32>,
        from: usize,
        rows: usize,
        weight: &Tensor,
        eps: f32,
        out: &mut Vec<f32>,
    ) {
        let weight = matrix(weight);
        let width = weight.rows * weight.columns;
        let one = |(x, out): (&[f32], &mut [f32])| pointwise::rms_norm(self.isa, x, weight, eps, out);
        let x = &x[from * width..][..rows * width];
        let out = &mut out[..rows * width];
        if rows <= SERIAL_ROWS {
            x.chunks_exact(width).zip(out.chunks_exact_mut(width)).for_each(one);
        } else {
            x.par_chunks_exact(width).zip(out.par_chunks_exact_mut(width)).for_each(one);
        }
    }

    fn linear(
        &self,
        x: &Vec<f32>,
        rows: usize,
        projections: &[Projection<Tensor>],
        out: &mut Vec<f32>,
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
        match projections {
            [a] => run(&[part(a)]),
            [a, b] => run(&[part(a), part(b)]),
            [a, b, c] => run(&[part(a), part(b), part(c)]),
            _ => panic!("one to three projections share an input"),
        }
    }

    fn rope_append(
        &self,
        qkv: &mut Vec<f32>,
        rows: &[Row],
        angles: &[f32],
        kv: &mut Pages,
        layer: usize,
        cache: &Cache,
    ) {
        let shape = kv.shape;
        let Shape { heads, kv_heads, head_dim } = shape;
        let rotated = (heads + kv_heads) * head_dim;
        let rotate = |(qkv, angles): (&mut [f32], &[f32])| {
            let (cos, sin) = angles.split_at(head_dim / 2);
            for head in qkv[..rotated].chunks_exact_mut(head_dim) {
                pointwise::rotate(head, cos, sin);
            }
        };
        let qkv = &mut qkv[..rows.len() * shape.qkv()];
        let angles = &angles[..rows.len() * head_dim];
        if rows.len() <= SERIAL_ROWS {
            qkv.chunks_exact_mut(shape.qkv()).zip(angles.chunks_exact(head_dim)).for_each(rotate);
        } else {
            qkv.par_chunks_exact_mut(shape.qkv()).zip(angles.par_chunks_exact(head_dim)).for_each(rotate);
        }
        for (row, qkv) in rows.iter().zip(qkv.chunks_exact(shape.qkv())) {
            let (key, value) = qkv[heads * head_dim..].split_at(kv_heads * head_dim);
            let page = table(cache, row.sequence)[row.position / PAGE];
            attention::append(shape, kv.page(layer, page), row.position % PAGE, key, value);
        }
    }

    fn attention(
        &self,
        qkv: &Vec<f32>,
        rows: &[Row],
        mask: &Mask,
        kv: &Pages,
        layer: usize,
        cache: &Cache,
        out: &mut Vec<f32>,
    ) {
        let row = |r: usize| {
            let row = rows[r];
            attention::Row {
                table: table(cache, row.sequence),
                visible: mask.visible(row.position, cache.len(row.sequence).unwrap_or(0), 0),
            }
        };
        attention::attention(self.isa, kv.shape, qkv, rows.len(), row, kv.layer(layer), out);
    }

    fn copy_row(&self, source: &Vec<f32>, from: usize, target: &mut Vec<f32>, to: usize, width: usize) {
        target[to * width..][..width].copy_from_slice(&source[from * width..][..width]);
    }

    fn copy_page(&self, kv: &mut Pages, from: u32, to: u32) {
        let floats = kv.shape.page_floats();
        for layer in 0..kv.layers {
            let base = layer * kv.pages;
            let from = (base + from as usize) * floats;
            kv.floats.copy_within(from..from + floats, (base + to as usize) * floats);
        }
    }

    fn read<'b>(&self, buffer: &'b Vec<f32>, from: usize, rows: usize, width: usize) -> &'b [f32] {
        &buffer[from * width..][..rows * width]
    }
}
