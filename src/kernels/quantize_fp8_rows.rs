//! Rows to e4m3: `cuda/kernels/quantize_fp8_rows.cu`.

use std::sync::Arc;

use super::{
    Check, Dtype, Half, Module, Rows, RowsMut,
    geometry::{Geometry, geometry},
    manifest::{About, apart, texts, type_of},
    params::{WL_VERSION, WlQuantizeFp8Rows},
};
use crate::{
    driver::{Driver, Function, Stream, View, ViewMut},
    error::Result,
};

/// scale = max(min(max|x|, bound) / 448, 1 / (448 · 512)) and q = e4m3(x / scale), for each row.
///
/// arXiv 2407.21783, section 6. A row with a NaN gets the scale NaN.
pub struct QuantizeFp8Rows {
    functions: Half<Function>,
}

/// What [`QuantizeFp8Rows::launch`] takes.
#[derive(Debug)]
pub struct QuantizeFp8RowsArgs<'b> {
    /// Type of x: bf16 or f16.
    pub dtype: Dtype,
    /// Number of rows.
    pub rows: usize,
    /// Features of a row, up to 2^30.
    pub width: usize,
    /// What is larger saturates: 1200 for activations. None, for weights: nothing is.
    pub bound: Option<f32>,
    /// `[rows, width]`.
    pub x: Rows<'b>,
    /// e4m3 `[rows, width]`.
    pub q: RowsMut<'b>,
    /// f32 `[rows]`.
    pub scales: ViewMut<'b>,
    /// i32 `[rows]`: rows with a negative position are left out. None: there are none.
    pub positions: Option<View<'b>>,
}

const ROWS: Geometry<WlQuantizeFp8Rows> = geometry! {
    WlQuantizeFp8Rows { rows } [WL_QUANTIZE_FP8_ROWS_THREADS]
    grid: [rows, 1, 1],
    block: WL_QUANTIZE_FP8_ROWS_THREADS,
    shared: 0,
};

/// For the manifest.
pub(super) fn about(entry: &str) -> About {
    let mut requires = vec![type_of(entry)];
    requires.extend(texts(&["1 <= rows", "1 <= width", "width <= 1073741824"]));
    requires.extend(apart("rows", "width", &["x_stride", "q_stride"]));
    About { requires, ..About::new("WlQuantizeFp8Rows", "rows to e4m3 with a scale for each row", ROWS.text) }
}

impl QuantizeFp8Rows {
    /// Loads the kernel.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn load(driver: &Arc<dyn Driver>) -> Result<Self> {
        let module = Module::load(driver, "quantize_fp8_rows")?;
        let functions = Half::load(|t| module.function(&format!("wl_quantize_fp8_rows_{t}")))?;
        Ok(QuantizeFp8Rows { functions })
    }

    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for types, shapes, sizes and addresses that do not fit;
    /// [`Error::Device`](crate::Error::Device).
    pub fn launch(&self, stream: &Stream, args: QuantizeFp8RowsArgs) -> Result<()> {
        let QuantizeFp8RowsArgs { dtype, rows, width, .. } = args;
        let function = self.functions.of(dtype)?;
        let bound = args.bound.unwrap_or(f32::INFINITY);
        if bound.is_nan() || bound <= 0.0 {
            return Check::of("bound").refuse(format!("{bound}; supported are numbers over 0"));
        }
        let mut p = WlQuantizeFp8Rows {
            version: WL_VERSION,
            type_: dtype.code(),
            rows: Check::of("rows").count(rows, 0..=i32::MAX as usize)?,
            width: Check::of("width").count(width, 1..=1 << 30)?,
            bound,
            scales: Check::of("scales").view_mut(&args.scales, rows, 4)?,
            ..WlQuantizeFp8Rows::default()
        };
        (p.x, p.x_stride) = Check::of("x").rows(&args.x, rows, width, dtype.size())?;
        (p.q, p.q_stride) = Check::of("q").rows_mut(&args.q, rows, width, 1)?;
        if let Some(positions) = args.positions {
            p.positions = Check::of("positions").view(positions, rows, 4)?;
        }
        if rows == 0 {
            return Ok(());
        }
        // SAFETY: the sizes above cover all that the kernel touches of `rows` rows.
        unsafe { stream.launch(function, &ROWS.launch(&p)) }
    }
}
