//! What every entry does at the shapes of a model: its launches, run on the simulator, which counts what they move and compute.
//!
//! Start from [`Survey`]. The launches are one layer's, the embedding's, the head's and a round's, as the GPU backend makes them
//! (without biases); entries that such a model does not launch are launched at a shape that they are for. Numbers in memory are
//! finite and mean nothing: no count depends on them but those of the choice of tokens, which gets random logits.
//!
//! A kernel's launches are a function in one of this folder's files, and a line of `CASES`; a test names entries that none launches.

mod attention;
mod products;
mod round;
mod rows;
mod training;

use std::sync::Arc;

use super::{Dtype, FAMILIES, Kernels, Rows, RowsMut};
use crate::{
    driver::{Buffer, Driver, LaunchReport, Policy, Simulator, Stream},
    error::{Error, Result},
    mask::Mask,
    memory::available_memory,
};

/// The launches of a family.
type Cases = fn(&mut Survey) -> Result<()>;

/// For each family of kernels the function that launches its entries.
const CASES: [(&str, Cases); 12] = [
    ("accept", round::cases),
    ("adamw", training::adamw),
    ("attention_decode", attention::decode),
    ("attention_prefill", attention::prefill),
    ("embed", rows::embed),
    ("gemm", products::gemm),
    ("linear", products::linear),
    ("quantize_fp8_rows", products::quantize_fp8_rows),
    ("rms_norm", rows::rms_norm),
    ("rope_append", attention::rope_append),
    ("sample", round::cases),
    ("swiglu", rows::swiglu),
];

/// Most memory of the simulated device in bytes: the largest weights of a 405B model fit.
const MEMORY: u64 = 8 << 30;
/// Every byte of what a launch reads, where it does not matter: a small positive number in bf16, f16, f32 and e4m3.
const FILLED: u8 = 0x3c;
/// Positions of a page.
const PAGE: usize = 64;

/// The sizes that launches follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shapes {
    /// Type of weights, activations, keys and values: bf16 or f16.
    pub dtype: Dtype,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward block.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head: a multiple of 8, to 256.
    pub head_dim: usize,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// Decode rows, 1 to 64: those of one sequence, the last token and the drafts that are verified with it.
    pub rows: usize,
    /// Keys of that sequence, its rows' included.
    pub context: usize,
    /// Rows of a prompt, which begins at position 0; 0 leaves prompts out.
    pub prompt: usize,
    /// Whether the model's layers but the first and the last have feed-forward weights in e4m3. Where they do not, the kernels for it are
    /// launched at the same shapes, as what such a model does not launch.
    pub fp8: bool,
    /// What rows see, with the model's heads.
    pub mask: Mask,
}

/// Bytes of device memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// To be read.
    pub read: u64,
    /// To be written.
    pub written: u64,
}

/// A launch and what it did.
#[derive(Clone, Debug)]
pub struct Surveyed {
    /// The family that its entry is of.
    pub family: &'static str,
    /// What it computed, with its shape.
    pub what: String,
    /// Whether a forward pass of such a model launches it; if not, the shape is one that the entry is for.
    pub of_model: bool,
    /// What it cannot do without: its operands, each once. Partial results are none of it.
    pub compulsory: Bytes,
    /// The entry, and the counters with distinct sectors of device memory.
    pub report: LaunchReport,
}

/// Launches kernels on a simulator of its own and keeps what they did.
pub struct Survey {
    simulator: Arc<Simulator>,
    driver: Arc<dyn Driver>,
    kernels: Kernels,
    stream: Stream,
    shapes: Shapes,
    /// The family whose launches are kept.
    family: &'static str,
    launches: Vec<Surveyed>,
}

impl Shapes {
    /// Bytes of q, k and v of a row together, of q, and of k.
    fn widths(&self) -> (usize, usize, usize) {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        (q + 2 * kv, q, kv)
    }

    /// Device memory that the largest of the launches takes, in bytes, or a little more.
    fn memory(&self) -> u64 {
        let product = |a: usize, b: usize| (a as u64).saturating_mul(b as u64);
        let size = self.dtype.size() as u64;
        let (qkv, q, kv) = self.widths();
        let rows = self.rows.max(self.prompt);
        let weights = [product(self.vocab, self.hidden), product(2 * self.intermediate, self.hidden)];
        let keys = self.context.max(self.prompt).next_multiple_of(PAGE);
        // Other widths of a head are tried over fewer keys.
        let caches =
            [product(2 * kv, keys), product(2 * 256 * self.kv_heads, keys.min(attention::MOST_OTHER_KEYS))];
        let activations = product(rows, qkv + q + 2 * self.intermediate + 4 * self.hidden);
        let largest = weights.into_iter().chain(caches).max().unwrap_or(0);
        let logits = product(3 * self.rows.max(round::DRAFTS + 1), 4 * self.vocab);
        // Beside it products' scratch and parts of attention.
        let parts = product(self.rows, self.heads * keys.div_ceil(128)).saturating_mul(4 * 256 + 8);
        largest
            .saturating_add(activations)
            .saturating_mul(size)
            .saturating_add(logits)
            .saturating_add(parts + (64 << 20))
    }

    fn check(&self) -> Result<()> {
        let refuse = |name, value: usize, wanted: &str| {
            Err(Error::argument(name, format!("{value}; supported are {wanted}")))
        };
        if !(1..=64).contains(&self.rows) {
            return refuse("rows", self.rows, "1 to 64");
        }
        if self.context < self.rows || self.context > 1 << 28 {
            return refuse("context", self.context, &format!("{}, the rows, to {}", self.rows, 1 << 28));
        }
        if self.prompt > 1 << 20 {
            return refuse("prompt", self.prompt, &format!("0 to {}", 1 << 20));
        }
        if !self.head_dim.is_multiple_of(8) || !(8..=256).contains(&self.head_dim) {
            return refuse("head_dim", self.head_dim, "multiples of 8 to 256");
        }
        let needed = self.memory();
        // Of every byte the simulator notes whether somebody wrote it, and of every 32 whether they were touched.
        let host = needed.saturating_add(needed / 6);
        let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64);
        let refuse = |available| {
            let what = "the largest launch of this survey".into();
            Err(Error::Capacity { what, needed: format!("{} of host memory", gib(host)), available })
        };
        match available_memory() {
            _ if needed > MEMORY => refuse(format!(
                "no more than {} are taken: ask for fewer keys, a shorter prompt or a smaller model",
                gib(MEMORY)
            )),
            Some(free) if host > free => refuse(format!(
                "{} are free: ask for fewer keys, a shorter prompt or a smaller model",
                gib(free)
            )),
            _ => Ok(()),
        }
    }
}

impl Survey {
    /// Loads all kernels.
    ///
    /// # Errors
    /// [`Error::Argument`] for shapes that no launch takes, [`Error::Capacity`] for those that take too much memory.
    pub fn new(shapes: Shapes) -> Result<Self> {
        shapes.check()?;
        let policy =
            Policy { checked: false, count_sectors: true, memory_bytes: MEMORY, ..Policy::default() };
        // Copies that arrive at once are the fastest to simulate.
        let policy = Policy { delivery: ptxsim::Delivery::Eager, ..policy };
        let simulator = Arc::new(Simulator::new(policy));
        let driver: Arc<dyn Driver> = simulator.clone();
        let kernels = Kernels::load(&driver)?;
        let stream = Stream::new(&driver)?;
        Ok(Survey { simulator, driver, kernels, stream, shapes, family: "", launches: vec![] })
    }

    /// The simulator, which counts instructions as it goes.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// Launches every entry of a family that is for the shapes' type or for any, once at least; in the order of the launches.
    ///
    /// # Errors
    /// [`Error::Argument`] for the name of no family, and for shapes that its kernels refuse; [`Error::Device`].
    pub fn family(&mut self, name: &str) -> Result<Vec<Surveyed>> {
        let Some((family, cases)) = CASES.iter().find(|(family, _)| *family == name) else {
            return Err(Error::argument("family", format!("{name} has no launches in src/kernels/survey")));
        };
        self.family = family;
        self.launches.clear();
        cases(self)?;
        Ok(std::mem::take(&mut self.launches))
    }

    /// Runs `work` and keeps its launches of the family. Launch n is to move `compulsory[n]`.
    fn launch(
        &mut self,
        what: &str,
        of_model: bool,
        compulsory: &[Bytes],
        work: impl FnOnce(&Kernels, &Stream) -> Result<()>,
    ) -> Result<()> {
        let reports = self.simulator.reports(|| work(&self.kernels, &self.stream))?;
        let family = FAMILIES.iter().find(|family| family.name == self.family);
        for (i, report) in reports.into_iter().enumerate() {
            if family.is_some_and(|family| family.entries.iter().any(|entry| entry.name == report.entry)) {
                let compulsory = compulsory.get(i).copied().unwrap_or_default();
                let (family, what) = (self.family, what.to_string());
                self.launches.push(Surveyed { family, what, of_model, compulsory, report });
            }
        }
        Ok(())
    }

    /// Whether an entry whose name ends so has been launched.
    fn launched(&self, ending: &str) -> bool {
        self.launches.iter().any(|launch| launch.report.entry.ends_with(ending))
    }

    /// Bytes that hold small numbers, whatever their type.
    fn filled(&self, bytes: usize) -> Result<Buffer> {
        let mut buffer = Buffer::new(&self.driver, bytes)?;
        self.stream.fill(&mut buffer.view_mut(), FILLED)?;
        Ok(buffer)
    }

    fn zeros(&self, bytes: usize) -> Result<Buffer> {
        let mut buffer = Buffer::new(&self.driver, bytes)?;
        self.stream.fill(&mut buffer.view_mut(), 0)?;
        Ok(buffer)
    }

    fn numbers(&self, numbers: impl IntoIterator<Item = usize>) -> Result<Buffer> {
        let numbers: Vec<i32> = numbers.into_iter().map(|n| n as i32).collect();
        Buffer::from_slice(&self.stream, &numbers)
    }

    /// Rows of the shapes' type.
    fn matrix(&self, rows: usize, stride: usize) -> Result<Matrix> {
        Ok(Matrix { memory: self.filled(rows * stride * self.shapes.dtype.size())?, stride })
    }
}

/// Rows in device memory.
struct Matrix {
    memory: Buffer,
    stride: usize,
}

impl Matrix {
    fn rows(&self) -> Rows<'_> {
        Rows { view: self.memory.view(), stride: self.stride }
    }

    fn rows_mut(&mut self) -> RowsMut<'_> {
        RowsMut { view: self.memory.view_mut(), stride: self.stride }
    }
}

fn bytes(read: usize, written: usize) -> Bytes {
    Bytes { read: read as u64, written: written as u64 }
}

/// Sums of squares of rows: f32, one for 64 features.
fn statistics_bytes(rows: usize, width: usize) -> usize {
    4 * rows * width.div_ceil(64)
}
