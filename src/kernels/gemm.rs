//! Products of any number of rows: `cuda/kernels/gemm.cu`.

use std::sync::Arc;

use super::{
    Check, Dtype, Half, LinearEpilogue, Module, Rows, RowsMut,
    geometry::{Geometry, geometry},
    manifest::{About, texts, type_of, weight_type_of},
    params::{WL_E4M3, WL_GEMM_LARGE, WL_VERSION, WlGemm, WlProjection},
};
use crate::{
    driver::{Driver, Handle, Stream, View, ViewMut},
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
#[derive(Clone, Copy, Debug)]
struct Functions {
    large: Handle,
    small: Handle,
    any: Handle,
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
    pub projections: [Option<GemmProjection<'b>>; 3],
    /// What happens to the finished sums.
    pub epilogue: LinearEpilogue,
    /// `[rows, _]`: as wide as the projections' columns and features reach.
    pub out: RowsMut<'b>,
    /// f32 `[rows, ⌈features / 64⌉]`: sums of squares of the new residual, for the norm after it; with
    /// [`LinearEpilogue::Add`] alone.
    pub out_stats: Option<ViewMut<'b>>,
}

/// One matrix and where its outputs go.
#[derive(Clone, Copy, Debug)]
pub struct GemmProjection<'b> {
    /// `[features, inputs]`.
    pub weight: Rows<'b>,
    /// f32 `[features]`, of e4m3 weights.
    pub scales: Option<View<'b>>,
    /// `[features]`.
    pub bias: Option<View<'b>>,
    /// Number of outputs.
    pub features: usize,
    /// Column of out at which they begin.
    pub column: usize,
}

/// Most features and inputs: bytes of a row and sums of a few features stay within an i32.
const MOST: usize = 1 << 29;

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
    let bounds = ["1 <= rows", "1 <= inputs", "1 <= projections", "projections <= WL_GEMM_PROJECTIONS"];
    About {
        when,
        requires: [vec![type_of(entry), weight_type_of(entry)], texts(&bounds)].concat(),
        ..About::new(
            "WlGemm",
            "product of any number of rows with up to three matrices, and its epilogue",
            text,
        )
    }
}

impl GemmArgs<'_> {
    fn size(&self) -> usize {
        if self.x_scales.is_some() { 1 } else { self.dtype.size() }
    }

    /// Whether all rows of x and weights begin at multiples of 16 bytes.
    fn whole(&self) -> bool {
        let whole = |rows: &Rows, count: usize| count <= 1 || (rows.stride * self.size()).is_multiple_of(16);
        whole(&self.x, self.rows) && self.projections.iter().flatten().all(|p| whole(&p.weight, p.features))
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
        (p.x, p.x_stride) = Check::of("x").rows(&args.x, rows, inputs, args.size())?;
        if let Some(scales) = args.x_scales {
            p.x_scales = Check::of("x_scales").view(scales, rows, 4)?;
        }
        let width = self.check_projections(&args, &mut p)?;
        let out_size = if epilogue == LinearEpilogue::StoreF32 { 4 } else { dtype.size() };
        (p.out, p.out_stride) = Check::of("out").rows_mut(&args.out, rows, width, out_size)?;
        if let Some(stats) = &args.out_stats {
            let check = Check::of("out_stats");
            if epilogue != LinearEpilogue::Add {
                return check.refuse(format!("with {epilogue:?}; supported is Add"));
            }
            let chunks = rows.saturating_mul(width.div_ceil(64));
            p.out_stats = check.floats(stats.address(), stats.bytes(), chunks)?;
        }
        let (function, geometry) = match args.whole() {
            false => (functions.any, SMALL),
            true if LARGE.grid(&p)[0] < LARGE_TILES => (functions.small, SMALL),
            true => (functions.large, LARGE),
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

    /// Fills in the projections; the width of out.
    fn check_projections(&self, args: &GemmArgs, p: &mut WlGemm) -> Result<usize> {
        let check = Check::of("projections");
        let GemmArgs { dtype, inputs, epilogue, .. } = *args;
        let mut width = 0;
        let given = || args.projections.iter().flatten();
        let wanted = match epilogue {
            LinearEpilogue::Store | LinearEpilogue::StoreF32 => 1..=3,
            LinearEpilogue::Add => 1..=1,
            LinearEpilogue::SwiGlu => 2..=2,
        };
        p.projections = check.count(given().count(), wanted)?;
        for (i, projection) in given().enumerate() {
            let GemmProjection { features, column, .. } = *projection;
            let (weight, stride) =
                Check::of("weight").rows(&projection.weight, features, inputs, args.size())?;
            let bias = match projection.bias {
                Some(bias) => Check::of("bias").view(bias, features, dtype.size())?,
                None => 0,
            };
            let scales = match (projection.scales, args.x_scales) {
                (None, None) => 0,
                // In vectors of 16 bytes.
                (Some(scales), Some(_)) if !scales.address().is_multiple_of(16) => {
                    return Check::of("scales")
                        .refuse(format!("address {:#x} is not a multiple of 16 bytes", scales.address()));
                }
                (Some(scales), Some(_)) => Check::of("scales").view(scales, features, 4)?,
                (Some(_), None) => {
                    return Check::of("scales").refuse("of weights without those of x".to_string());
                }
                (None, Some(_)) => {
                    return Check::of("scales").refuse("none of weights with those of x".to_string());
                }
            };
            p.projection[i] = WlProjection {
                weight,
                bias,
                scales,
                stride,
                features: Check::of("features").count(features, 1..=MOST)?,
                column: Check::of("column").count(column, 0..=MOST)?,
            };
            width = width.max(column + features);
            for other in given().take(i) {
                let apart = column >= other.column + other.features || other.column >= column + features;
                let same = column == other.column && features == other.features;
                match epilogue {
                    LinearEpilogue::SwiGlu if !same => {
                        return check.refuse(format!(
                            "gate and up have {} and {features} features at columns {} and {column}; \
                             supported are equal ones",
                            other.features, other.column,
                        ));
                    }
                    LinearEpilogue::Store | LinearEpilogue::StoreF32 if !apart => {
                        return check.refuse(format!(
                            "{} features at column {} overlap {features} at column {column}",
                            other.features, other.column,
                        ));
                    }
                    _ => {}
                }
            }
            if epilogue == LinearEpilogue::Add && column != 0 {
                return Check::of("column").refuse(format!("{column}; supported is 0 with Add"));
            }
        }
        Ok(width)
    }
}
