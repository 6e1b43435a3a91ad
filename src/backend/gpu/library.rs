//! Products of prompts by the device's library where it beats the kernels.
//!
//! Start from [`Library`]. What is faster is measured when a shape comes first, and stays: a shape has the same bits from then on. They are
//! not those of the kernels, whose rows have the same bits in pieces of any size; so a library is used only where it is asked for.

use std::sync::{Arc, Mutex, MutexGuard};

use super::{Activations, Gpu, Weight, linear_projections, of_kernel};
use crate::{
    backend::{Epilogue, Projection},
    driver::{Buffer, Event, ProductShape, Products, View, ViewMut, Way},
    error::{Error, Result},
    kernels::{GemmArgs, Rows as DeviceRows, RowsMut, SwigluArgs},
};

/// Rows in which prompts come to the library: of pieces that are no multiple, each would be a shape of its own.
const ROWS: usize = 128;
const _: () = assert!(super::PROMPT_ROWS.is_multiple_of(ROWS), "whole passes come to the library");
/// Most shapes that are measured, and most ways that are tried for one.
const SHAPES: usize = 64;
const WAYS: usize = 8;
/// Launches of a way between two events, and how often that is done; the middle time counts.
const LAUNCHES: usize = 5;
const SAMPLES: usize = 5;
/// What the library's time must be under, as a share of the kernel's: a choice that chance makes would be another one next time.
const MARGIN: f32 = 0.95;

/// When the device's library computes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LibraryUse {
    /// Where it was measured to be faster than the kernel.
    Faster,
    /// Wherever it can, to see what it does.
    Always,
}

/// The device's library, and what was found out about it.
pub(super) struct Library {
    products: Arc<dyn Products>,
    when: LibraryUse,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    choices: Vec<Choice>,
    /// Gate and up before they meet.
    halves: Option<Buffer>,
}

/// What computes a shape.
struct Choice {
    shape: Shape,
    /// A way for each projection; None: the kernel, which is faster.
    ways: Option<Vec<Box<dyn Way>>>,
    kernel_ms: f32,
    /// Of the library's fastest, if it has any.
    library_ms: Option<f32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    rows: usize,
    inputs: usize,
    features: [usize; 3],
    epilogue: Epilogue,
    strides: (usize, usize),
}

/// What was measured for one shape of product, and is pinned: see [`Gpu::use_library`].
#[derive(Clone, Debug)]
pub struct ProductChoice {
    /// Rows, inputs and features of all projections.
    pub shape: (usize, usize, usize),
    /// Milliseconds of a launch of the kernel.
    pub kernel_ms: f32,
    /// Milliseconds of the library's fastest way, where it has one.
    pub library_ms: Option<f32>,
    /// Whether the library computes it from then on.
    pub library: bool,
}

/// A product of prompt rows.
pub(super) struct Prompt<'a> {
    pub x: DeviceRows<'a>,
    pub rows: usize,
    pub inputs: usize,
    pub projections: &'a [Projection<'a, Weight>],
    pub epilogue: Epilogue,
}

impl Prompt<'_> {
    /// By the kernel.
    pub fn launch(&self, gpu: &Gpu, out: RowsMut) -> Result<()> {
        let args = GemmArgs {
            dtype: gpu.dtype,
            rows: self.rows,
            inputs: self.inputs,
            x: self.x,
            x_scales: None,
            projections: linear_projections(self.projections),
            epilogue: of_kernel(self.epilogue),
            out,
            // Prompts' norms make sums of their own.
            out_stats: None,
        };
        gpu.kernels.gemm.launch(&gpu.stream, args)
    }

    /// The shape, if the library may compute it.
    fn shape(&self, out: &Activations) -> Option<Shape> {
        let plain = |p: &Projection<Weight>| p.bias.is_none() && p.weight.scales.is_none();
        let aligned =
            |p: &Projection<Weight>| p.column.is_multiple_of(8) && p.weight.columns.is_multiple_of(8);
        let fits = self.rows > 0 && self.rows.is_multiple_of(ROWS) && self.projections.len() <= 3;
        let all = fits && self.projections.iter().all(|p| plain(p) && aligned(p));
        let feature = |i: usize| self.projections.get(i).map_or(0, |p| p.weight.rows);
        all.then(|| Shape {
            rows: self.rows,
            inputs: self.inputs,
            features: std::array::from_fn(feature),
            epilogue: self.epilogue,
            strides: (self.x.stride, out.stride),
        })
    }
}

impl Library {
    pub fn new(products: Arc<dyn Products>, when: LibraryUse) -> Self {
        Library { products, when, state: Mutex::default() }
    }

    pub fn name(&self) -> &'static str {
        self.products.name()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What has been measured so far.
    pub fn choices(&self) -> Vec<ProductChoice> {
        let choice = |choice: &Choice| ProductChoice {
            shape: (choice.shape.rows, choice.shape.inputs, choice.shape.features.iter().sum()),
            kernel_ms: choice.kernel_ms,
            library_ms: choice.library_ms,
            library: choice.ways.is_some(),
        };
        self.state().choices.iter().map(choice).collect()
    }

    /// Computes a product by what is faster for its shape.
    pub fn launch(&self, gpu: &Gpu, prompt: &Prompt, out: &mut Activations) -> Result<()> {
        let Some(shape) = prompt.shape(out) else { return prompt.launch(gpu, out.all()) };
        let state = &mut *self.state();
        let known = state.choices.iter().position(|choice| choice.shape == shape);
        let at = match known {
            Some(at) => at,
            None if state.choices.len() == SHAPES => return prompt.launch(gpu, out.all()),
            None => {
                let choice = self.measure(gpu, prompt, shape, &mut state.halves)?;
                state.choices.push(choice);
                state.choices.len() - 1
            }
        };
        let State { choices, halves } = state;
        match &choices[at].ways {
            None => prompt.launch(gpu, out.all()),
            Some(ways) => run(gpu, prompt, ways, out.all(), halves),
        }
    }

    /// Times the kernel and the library's ways, into memory of their own.
    fn measure(
        &self,
        gpu: &Gpu,
        prompt: &Prompt,
        shape: Shape,
        halves: &mut Option<Buffer>,
    ) -> Result<Choice> {
        let size = gpu.dtype.size();
        let (_, stride) = shape.strides;
        let mut out = Buffer::new(&gpu.driver, shape.rows * stride * size)?;
        gpu.stream.fill(&mut out.view_mut(), 0)?;
        if prompt.epilogue == Epilogue::SwiGlu {
            let bytes = 2 * shape.rows * half_stride(shape.features[0]) * size;
            if halves.as_ref().is_none_or(|halves| halves.bytes() < bytes) {
                *halves = Some(Buffer::new(&gpu.driver, bytes)?);
            }
        }
        let kernel_ms = time(gpu, || prompt.launch(gpu, RowsMut { view: out.view_mut(), stride }))?;
        let mut best: Option<(f32, Vec<Box<dyn Way>>)> = None;
        let mut ways = Vec::with_capacity(prompt.projections.len());
        for projection in prompt.projections {
            let swiglu = prompt.epilogue == Epilogue::SwiGlu;
            ways.push(self.products.ways(
                &ProductShape {
                    dtype: gpu.dtype,
                    rows: shape.rows,
                    inputs: shape.inputs,
                    features: projection.weight.rows,
                    x_stride: prompt.x.stride,
                    weight_stride: projection.weight.columns,
                    out_stride: if swiglu { half_stride(projection.weight.rows) } else { stride },
                    add: prompt.epilogue == Epilogue::Add,
                },
                WAYS,
            )?);
        }
        // The first ways of all projections together, then the second ones: their shapes are much alike.
        let most = ways.iter().map(Vec::len).min().unwrap_or(0);
        let mut ways: Vec<_> = ways.into_iter().map(Vec::into_iter).collect();
        for _ in 0..most {
            let these: Vec<_> = ways.iter_mut().filter_map(Iterator::next).collect();
            // A way that fails is none.
            let Ok(ms) = time(gpu, || {
                let out = RowsMut { view: out.view_mut(), stride };
                run(gpu, prompt, &these, out, halves)
            }) else {
                continue;
            };
            if best.as_ref().is_none_or(|(least, _)| ms < *least) {
                best = Some((ms, these));
            }
        }
        let library_ms = best.as_ref().map(|(ms, _)| *ms);
        let taken = |ms: f32| self.when == LibraryUse::Always || ms < MARGIN * kernel_ms;
        let ways = best.filter(|(ms, _)| taken(*ms)).map(|(_, ways)| ways);
        Ok(Choice { shape, ways, kernel_ms, library_ms })
    }
}

/// Elements between rows of gate, and of up.
fn half_stride(features: usize) -> usize {
    features.next_multiple_of(8)
}

/// Milliseconds of one of several launches.
fn time(gpu: &Gpu, mut work: impl FnMut() -> Result<()>) -> Result<f32> {
    work()?;
    let [begin, end] = [Event::new(&gpu.driver)?, Event::new(&gpu.driver)?];
    let mut samples = [0.0; SAMPLES];
    for sample in &mut samples {
        begin.record(&gpu.stream)?;
        for _ in 0..LAUNCHES {
            work()?;
        }
        end.record(&gpu.stream)?;
        end.synchronize()?;
        *sample = end.elapsed_ms(&begin)? / LAUNCHES as f32;
    }
    samples.sort_by(f32::total_cmp);
    Ok(samples[SAMPLES / 2])
}

/// Enqueues a product in the ways of its projections.
fn run(
    gpu: &Gpu,
    prompt: &Prompt,
    ways: &[Box<dyn Way>],
    mut out: RowsMut,
    halves: &mut Option<Buffer>,
) -> Result<()> {
    let (rows, size) = (prompt.rows, gpu.dtype.size());
    let product = |way: &dyn Way, weight: View, out: &mut ViewMut| {
        // SAFETY: x has the rows and inputs, the weight is a matrix of the model's with the features, and out has room for both, as it has
        // for the kernel, whose launch checks the same sizes before the first time.
        unsafe { gpu.stream.product(way, prompt.x.view, weight, out) }
    };
    if prompt.epilogue != Epilogue::SwiGlu {
        for (way, Projection { weight, column, .. }) in ways.iter().zip(prompt.projections) {
            let all = out.view.bytes();
            product(&**way, weight.memory.view(), &mut out.view.slice(column * size..all))?;
        }
        return Ok(());
    }
    let width = prompt.projections[0].weight.rows;
    let stride = half_stride(width);
    let bytes = rows * stride * size;
    let Some(halves) = halves else {
        return Err(Error::argument("products", "were not measured: there is no room for gate and up"));
    };
    let (mut gate, mut up) = halves.view_mut().parts(0..bytes, bytes..2 * bytes);
    product(&*ways[0], prompt.projections[0].weight.memory.view(), &mut gate)?;
    product(&*ways[1], prompt.projections[1].weight.memory.view(), &mut up)?;
    gpu.kernels.swiglu.launch(
        &gpu.stream,
        &SwigluArgs {
            dtype: gpu.dtype,
            rows,
            width,
            gate: DeviceRows { view: gate.view(), stride },
            up: DeviceRows { view: up.view(), stride },
            out,
            positions: None,
        },
    )
}
