//! RMSNorm: `cuda/kernels/rms_norm.cu`.

use std::sync::Arc;

use super::{
    Check, Dtype, E4m3Rows, Half, Module, Rows, RowsMut,
    geometry::{Geometry, geometry},
    manifest::{About, apart, texts, type_of},
    params::{WL_E4M3, WL_RMS_NORM_HELD, WL_RMS_NORM_HELD_WIDE, WL_VERSION, WlRmsNorm},
};
use crate::{
    driver::{Driver, Function, Stream, View, ViewMut},
    error::Result,
};

/// y = round(w · round(h / √(mean(h²) + ε))), with h = x or the new residual round(x + residual).
///
/// Llama 2, section 2.2, after arXiv 1910.07467; rounded where Hugging Face's `LlamaRMSNorm` rounds.
pub struct RmsNorm {
    /// For rows of up to [`WL_RMS_NORM_HELD`] features, and for wider ones; bf16, f16, f32.
    functions: [[Function; 2]; 3],
    /// The same two for rows of e4m3.
    e4m3: Half<[Function; 2]>,
}

/// What [`RmsNorm::launch`] takes, and, with [`E4m3Rows`] for `y`, [`RmsNorm::launch_e4m3`].
#[derive(Debug)]
pub struct RmsNormArgs<'b, Y = RowsMut<'b>> {
    /// Type of x, residual, weight and y: bf16, f16 or f32; with a y of e4m3, bf16 or f16.
    pub dtype: Dtype,
    /// Number of rows.
    pub rows: usize,
    /// Features of a row.
    pub width: usize,
    /// Added to the mean of squares.
    pub eps: f32,
    /// `[rows, width]`.
    pub x: Rows<'b>,
    /// `[rows, width]`, and where the sum x + residual goes, which is then normed in place of x.
    pub residual: Option<(Rows<'b>, RowsMut<'b>)>,
    /// `[width]`.
    pub weight: View<'b>,
    /// `[rows, width]`.
    pub y: Y,
    /// f32 `[rows, ⌈width / 64⌉]`: sums of squares of what is normed, for kernels that norm for themselves.
    pub stats: Option<ViewMut<'b>>,
    /// i32 `[rows]`: rows with a negative position are left out. None: there are none.
    pub positions: Option<View<'b>>,
}

const ROWS: Geometry<WlRmsNorm> = geometry! {
    WlRmsNorm { rows } [WL_RMS_NORM_THREADS]
    grid: [rows, 1, 1],
    block: WL_RMS_NORM_THREADS,
    shared: 0,
};

/// For the manifest.
pub(super) fn about(entry: &str) -> About {
    let mut requires = vec![type_of(entry)];
    requires.extend(texts(&["1 <= rows", "1 <= width", "width <= 1073741824"]));
    // Those of a residual that is none are 0.
    requires.extend(apart("rows", "width", &["x_stride", "y_stride"]));
    let e4m3 = entry.contains("_e4m3");
    requires.push(format!("y_type == {}", if e4m3 { "WL_E4M3" } else { "type" }));
    let what = if e4m3 {
        "RMSNorm of rows, with a residual added first where there is one, to e4m3 with a scale for each row"
    } else {
        "RMSNorm of rows, with a residual added first where there is one"
    };
    let when = if entry.ends_with("_wide") {
        "the faster one for rows over WL_RMS_NORM_HELD and up to WL_RMS_NORM_HELD_WIDE wide; right for any"
    } else {
        "the faster one for rows up to WL_RMS_NORM_HELD wide, and over WL_RMS_NORM_HELD_WIDE; right for any"
    };
    // Of f32 there is one.
    let when = if type_of(entry).ends_with("F32") { "" } else { when };
    About { when, requires, ..About::new("WlRmsNorm", what, ROWS.text) }
}

impl RmsNorm {
    /// Loads the kernel.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn load(driver: &Arc<dyn Driver>) -> Result<Self> {
        let module = Module::load(driver, "rms_norm")?;
        let functions = [
            ["wl_rms_norm_bf16", "wl_rms_norm_bf16_wide"],
            ["wl_rms_norm_f16", "wl_rms_norm_f16_wide"],
            // Registers for a wide row in f32 would leave room for few CTAs: it is read twice.
            ["wl_rms_norm_f32", "wl_rms_norm_f32"],
        ];
        let load = |pair: [&str; 2]| Ok([module.function(pair[0])?, module.function(pair[1])?]);
        let [bf16, f16, f32] = functions.map(load);
        let e4m3 = Half::load(|t| {
            let name = format!("wl_rms_norm_{t}_e4m3");
            load([&name, &format!("{name}_wide")])
        })?;
        Ok(RmsNorm { functions: [bf16?, f16?, f32?], e4m3 })
    }

    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for shapes, sizes and addresses that do not fit;
    /// [`Error::Device`](crate::Error::Device).
    pub fn launch(&self, stream: &Stream, args: &RmsNormArgs) -> Result<()> {
        let &RmsNormArgs { dtype, rows, width, .. } = args;
        let Some(functions) = self.functions.get(dtype.code() as usize) else {
            return Check::of("dtype").refuse(format!("{dtype}; supported are bf16, f16 and f32"));
        };
        let mut p = args.params()?;
        p.y_type = dtype.code();
        (p.y, p.y_stride) = Check::of("y").rows_mut(&args.y, rows, width, dtype.size())?;
        if p.residual != 0 && p.y == p.new_residual {
            return Check::of("y").refuse("it is new_residual, which would be lost; write them apart".into());
        }
        // SAFETY: the sizes that were checked cover all that the kernel touches of `rows` rows.
        unsafe { enqueue(stream, functions, &p) }
    }

    /// Enqueues the kernel that makes e4m3 of y: what [`QuantizeFp8Rows`](super::QuantizeFp8Rows) makes of the y of
    /// [`RmsNorm::launch`], bit for bit.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for types, shapes, sizes and addresses that do not fit;
    /// [`Error::Device`](crate::Error::Device).
    pub fn launch_e4m3<'b>(&self, stream: &Stream, args: &RmsNormArgs<'b, E4m3Rows<'b>>) -> Result<()> {
        let functions = self.e4m3.of(args.dtype)?;
        let mut p = args.params()?;
        p.y_type = WL_E4M3;
        (p.y, p.y_stride, p.y_scales, p.bound) =
            args.y.check(["y", "y_scales", "y_bound"], args.rows, args.width)?;
        // SAFETY: the sizes that were checked cover all that the kernel touches of `rows` rows.
        unsafe { enqueue(stream, functions, &p) }
    }
}

/// Launches the one of `functions` that fits the width.
///
/// # Safety
/// `p` describes memory that the kernel may touch.
unsafe fn enqueue(stream: &Stream, functions: &[Function; 2], p: &WlRmsNorm) -> Result<()> {
    if p.rows == 0 {
        return Ok(());
    }
    let wide = p.width as u32 > WL_RMS_NORM_HELD && p.width as u32 <= WL_RMS_NORM_HELD_WIDE;
    // SAFETY: the caller's.
    unsafe { stream.launch(&functions[usize::from(wide)], &ROWS.launch(p)) }
}

#[cfg(feature = "capi")]
impl<'b> RmsNormArgs<'b, ()> {
    /// The same with a y.
    pub(crate) fn with<Y>(self, y: Y) -> RmsNormArgs<'b, Y> {
        let RmsNormArgs { dtype, rows, width, eps, x, residual, weight, y: (), stats, positions } = self;
        RmsNormArgs { dtype, rows, width, eps, x, residual, weight, y, stats, positions }
    }
}

impl<Y> RmsNormArgs<'_, Y> {
    /// All but y.
    fn params(&self) -> Result<WlRmsNorm> {
        let &RmsNormArgs { dtype, rows, width, eps, .. } = self;
        let size = dtype.size();
        if !(eps >= 0.0 && eps.is_finite()) {
            return Check::of("eps").refuse(format!("{eps}; supported are finite numbers from 0"));
        }
        let mut p = WlRmsNorm {
            version: WL_VERSION,
            type_: dtype.code(),
            rows: Check::of("rows").count(rows, 0..=i32::MAX as usize)?,
            width: Check::of("width").count(width, 1..=1 << 30)?,
            eps,
            weight: Check::of("weight").view(self.weight, width, size)?,
            ..WlRmsNorm::default()
        };
        (p.x, p.x_stride) = Check::of("x").rows(&self.x, rows, width, size)?;
        if let Some((residual, new)) = &self.residual {
            (p.residual, p.residual_stride) = Check::of("residual").rows(residual, rows, width, size)?;
            (p.new_residual, p.new_residual_stride) =
                Check::of("new_residual").rows_mut(new, rows, width, size)?;
        }
        if let Some(stats) = &self.stats {
            p.stats = Check::of("stats").view_mut(stats, rows.saturating_mul(width.div_ceil(64)), 4)?;
        }
        if let Some(positions) = self.positions {
            p.positions = Check::of("positions").view(positions, rows, 4)?;
        }
        Ok(p)
    }
}
