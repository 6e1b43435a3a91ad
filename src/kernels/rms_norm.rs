//! RMSNorm: `cuda/kernels/rms_norm.cu`.

use std::sync::Arc;

use super::{
    Check, Dtype, Module, Rows, RowsMut,
    params::{WL_RMS_NORM_HELD, WL_RMS_NORM_HELD_WIDE, WL_RMS_NORM_THREADS, WL_VERSION, WlRmsNorm},
};
use crate::{
    driver::{Driver, Handle, Launch, Stream, View, ViewMut},
    error::Result,
};

/// y = round(w · round(h / √(mean(h²) + ε))), with h = x or the new residual round(x + residual).
///
/// Llama 2, section 2.2, after arXiv 1910.07467; rounded where Hugging Face's `LlamaRMSNorm` rounds.
pub struct RmsNorm {
    /// For rows of up to [`WL_RMS_NORM_HELD`] features, and for wider ones; bf16, f16, f32.
    functions: [[Handle; 2]; 3],
}

/// What [`RmsNorm::launch`] takes.
#[derive(Debug)]
pub struct RmsNormArgs<'b> {
    /// Type of x, residual, weight and y: bf16, f16 or f32.
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
    pub y: RowsMut<'b>,
    /// f32 `[rows, ⌈width / 64⌉]`: sums of squares of what is normed, for kernels that norm for themselves.
    pub stats: Option<ViewMut<'b>>,
    /// i32 `[rows]`: rows with a negative position are left out. None: there are none.
    pub positions: Option<View<'b>>,
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
        Ok(RmsNorm { functions: [bf16?, f16?, f32?] })
    }

    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for shapes, sizes and addresses that do not fit;
    /// [`Error::Device`](crate::Error::Device).
    pub fn launch(&self, stream: &Stream, args: &RmsNormArgs) -> Result<()> {
        let &RmsNormArgs { dtype, rows, width, eps, .. } = args;
        let size = dtype.size();
        if !(eps >= 0.0 && eps.is_finite()) {
            return Check::of("eps").refuse(format!("{eps}; supported are finite numbers from 0"));
        }
        let mut p = WlRmsNorm {
            version: WL_VERSION,
            type_: dtype.code(),
            y_type: dtype.code(),
            rows: Check::of("rows").count(rows, 0..=i32::MAX as usize)?,
            width: Check::of("width").count(width, 1..=1 << 30)?,
            eps,
            weight: Check::of("weight").view(args.weight, width, size)?,
            ..WlRmsNorm::default()
        };
        (p.x, p.x_stride) = Check::of("x").rows(&args.x, rows, width, size)?;
        (p.y, p.y_stride) = Check::of("y").rows_mut(&args.y, rows, width, size)?;
        if let Some((residual, new)) = &args.residual {
            (p.residual, p.residual_stride) = Check::of("residual").rows(residual, rows, width, size)?;
            (p.new_residual, p.new_residual_stride) =
                Check::of("new_residual").rows_mut(new, rows, width, size)?;
        }
        if let Some(stats) = &args.stats {
            p.stats = Check::of("stats").view_mut(stats, rows.saturating_mul(width.div_ceil(64)), 4)?;
        }
        if let Some(positions) = args.positions {
            p.positions = Check::of("positions").view(positions, rows, 4)?;
        }
        if rows == 0 {
            return Ok(());
        }
        let held =
            if width > WL_RMS_NORM_HELD as usize && width <= WL_RMS_NORM_HELD_WIDE as usize { 1 } else { 0 };
        let function = self.functions[dtype.code() as usize][held];
        let launch = Launch {
            grid: [p.rows as u32, 1, 1],
            block: [WL_RMS_NORM_THREADS, 1, 1],
            ..Launch::new(bytemuck::bytes_of(&p))
        };
        // SAFETY: the sizes above cover all that the kernel touches of `rows` rows.
        unsafe { stream.launch(function, &launch) }
    }
}
