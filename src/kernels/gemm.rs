//! Products of any number of rows: `cuda/kernels/gemm.cu`.

use std::sync::Arc;

use super::{
    Check, Dtype, Half, Module, Rows, RowsMut,
    geometry::{Geometry, geometry},
    manifest::{About, type_of, weight_type_of},
    params::{WL_E4M3, WL_GEMM_LARGE, WL_VERSION, WlGemm},
    projection::{self, LinearEpilogue, LinearProjection, MOST, Product},
};
use crate::{
    driver::{Driver, Function, Stream, View, ViewMut},
    error::Result,
};

/// out ⟵ x · Wᵀ + bias for any number of rows, on the tensor cores, and what follows.
///
/// A row's bits depend on its own numbers and the weights, and on nothing else. They are other bits than those of
/// [`Linear`](super::Linear), which sums in another order.
pub struct Gemm {
    /// By type of x and weights, T or e4m3.
    functions: [Half<Functions>; 2],
}

/// For large tiles, for small ones, and for rows that begin anywhere.
#[derive(Clone, Debug)]
struct Functions {
    large: Function,
    small: Function,
    any: Function,
}

/// What [`Gemm::launch`] takes.
#[derive(Debug)]
pub struct GemmArgs<'b> {
    /// Type of x, weights, biases, and of out except with [`LinearEpilogue::StoreF32`]: bf16 or f16.
    pub dtype: Dtype,
    /// Number of rows.
    pub rows: usize,
    /// Features of a row of x.
    pub inputs: usize,
    /// `[rows, inputs]`, of e4m3 if there are `x_scales`.
    pub x: Rows<'b>,
    /// f32 `[rows]`: x and the weights are e4m3 with a scale for each row, as
    /// [`QuantizeFp8Rows`](super::QuantizeFp8Rows) makes them. Sums are multiplied by the product of the two scales.
    pub x_scales: Option<View<'b>>,
    /// Up to three matrices, whose outputs lie side by side.
    pub projections: [Option<LinearProjection<'b>>; 3],
    /// What happens to the finished sums.
    pub epilogue: LinearEpilogue,
    /// `[rows, _]`: as wide as the projections' columns and features reach.
    pub out: RowsMut<'b>,
    /// f32 `[rows, ⌈features / 64⌉]`: sums of squares of the new residual, for the norm after it; with
    /// [`LinearEpilogue::Add`] alone.
    pub out_stats: Option<ViewMut<'b>>,
}

/// Large tiles are taken where there are so many. With fewer, an SM has one of them, and most of its time goes into
/// waiting; four times as many small ones then fill more SMs, though each of them is slower.
const LARGE_TILES: u32 = 96;

/// Tiles of out with so many rows and features; gate and up share one.
macro_rules! tiles {
    ($side:ident) => {
        geometry! {
            WlGemm { rows, epilogue, projections, projection } [WL_GEMM_THREADS, WL_LINEAR_SWIGLU, $side]
            let first = projection[0].features;
            let second = select(1 < projections, projection[1].features, 0);
            let third = select(2 < projections, projection[2].features, 0);
            let blocks = ceil_div(first, $side) + ceil_div(second, $side) + ceil_div(third, $side);
            let pairs = ceil_div(first, $side / 2);
            let tiles = ceil_div(rows, $side) * select(epilogue == WL_LINEAR_SWIGLU, pairs, blocks);
            grid: [tiles, 1, 1],
            block: WL_GEMM_THREADS,
            shared: 0,
        }
    };
}

const LARGE: Geometry<WlGemm> = tiles!(WL_GEMM_LARGE);
const SMALL: Geometry<WlGemm> = tiles!(WL_GEMM_SMALL);

/// For the manifest.
pub(super) fn about(entry: &str) -> About {
    let (when, text) = match entry.rsplit('_').next() {
        Some("128") => ("for 96 tiles and more; its rows begin at multiples of 16 bytes", LARGE.text),
        Some("64") => (
            "for fewer than 96 tiles of wl_gemm_*_128, of the same bits; rows begin at multiples of 16 bytes",
            SMALL.text,
        ),
        _ => ("for rows of x or of weights that do not begin at multiples of 16 bytes", SMALL.text),
    };
    let mut requires = vec![type_of(entry), weight_type_of(entry)];
    requires.extend(projection::requires());
    if !entry.ends_with("_any") {
        requires.extend(projection::requires_whole_rows());
    }
    About {
        when,
        requires,
        ..About::new(
            "WlGemm",
            "product of any number of rows with up to three matrices, and its epilogue",
            text,
        )
    }
}

impl Gemm {
    /// Loads the kernel.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn load(driver: &Arc<dyn Driver>) -> Result<Self> {
        let module = Module::load(driver, "gemm")?;
        let load = |kind: &str| {
            Half::load(|dtype| {
                let load = |tile: &str| module.function(&format!("wl_gemm_{dtype}{kind}_{tile}"));
                Ok(Functions { large: load("128")?, small: load("64")?, any: load("any")? })
            })
        };
        Ok(Gemm { functions: [load("")?, load("_e4m3")?] })
    }

    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for shapes, sizes and addresses that do not fit;
    /// [`Error::Device`](crate::Error::Device).
    pub fn launch(&self, stream: &Stream, args: GemmArgs) -> Result<()> {
        let GemmArgs { dtype, rows, inputs, epilogue, .. } = args;
        let fp8 = args.x_scales.is_some();
        let product =
            Product { dtype, rows, inputs, has_scales: fp8, projections: &args.projections, epilogue };
        let functions = self.functions[usize::from(fp8)].of(dtype)?;
        let mut p = WlGemm {
            version: WL_VERSION,
            type_: dtype.code(),
            weight_type: if fp8 { WL_E4M3 } else { dtype.code() },
            epilogue: epilogue.code(),
            rows: Check::of("rows").count(rows, 0..=i32::MAX as usize - WL_GEMM_LARGE as usize)?,
            inputs: Check::of("inputs").count(inputs, 1..=MOST)?,
            ..WlGemm::default()
        };
        (p.x, p.x_stride) = Check::of("x").rows(&args.x, rows, inputs, product.size())?;
        if let Some(scales) = args.x_scales {
            p.x_scales = Check::of("x_scales").view(scales, rows, 4)?;
        }
        let width;
        (p.projections, width) = product.check(&mut p.projection)?;
        let out_size = if epilogue == LinearEpilogue::StoreF32 { 4 } else { dtype.size() };
        (p.out, p.out_stride) = Check::of("out").rows_mut(&args.out, rows, width, out_size)?;
        p.out_stats = product.check_stats(args.out_stats.as_ref(), width)?;
        let (function, geometry) = match product.rows_are_whole(&args.x) {
            false => (&functions.any, SMALL),
            true if LARGE.grid(&p)[0] < LARGE_TILES => (&functions.small, SMALL),
            true => (&functions.large, LARGE),
        };
        let launch = geometry.launch(&p);
        let tiles = launch.grid[0];
        if i32::try_from(tiles).is_err() {
            return Check::of("rows")
                .refuse(format!("{rows} with these features make {tiles} tiles; {} at most", i32::MAX));
        }
        if rows == 0 {
            return Ok(());
        }
        // SAFETY: the sizes above cover all that the kernel touches: `rows` rows of x, its scales, out and statistics,
        // and the projections' features.
        unsafe { stream.launch(function, &launch) }
    }
}
