//! One step of AdamW, measured: `cuda/kernels/adamw.cu`.

use std::sync::Arc;

use super::{
    Check, Dtype, Module,
    geometry::{Geometry, geometry},
    manifest::About,
    params::{
        WL_ADAMW_BINS, WL_ADAMW_CHUNK, WL_ADAMW_SUMS, WL_VERSION, WlAdamw, WlAdamwStatistics, WlAdamwStep,
    },
};
use crate::{
    driver::{Driver, Function, Stream, View, ViewMut},
    error::Result,
    optimizer::{self, BINS, CHUNK, Measured, SUMS, Settings, Statistics},
};

const _: () = assert!(WL_ADAMW_CHUNK as usize == CHUNK);
const _: () = assert!(WL_ADAMW_SUMS as usize == SUMS && WL_ADAMW_BINS as usize == BINS);

/// One step of AdamW on one tensor, which is measured in the same pass; see [`optimizer::AdamW`], whose bits are the same.
pub struct Adamw {
    f32: Function,
    bf16: Function,
}

/// What [`Adamw::launch`] takes.
#[derive(Debug)]
pub struct AdamwArgs<'b> {
    /// β, ε and λ.
    pub settings: Settings,
    /// Elements of the tensor, up to 2^43.
    pub count: usize,
    /// f32 `[count]`, updated.
    pub weights: ViewMut<'b>,
    /// Type of the gradients: f32 or bf16.
    pub gradient_dtype: Dtype,
    /// `[count]`.
    pub gradients: View<'b>,
    /// f32 `[count]`, updated.
    pub m: ViewMut<'b>,
    /// f32 `[count]`, updated.
    pub v: ViewMut<'b>,
    /// bf16 `[count]`: where the new weights go once more, rounded, for the next forward pass.
    pub copy: Option<ViewMut<'b>>,
    /// `WlAdamwStep`: learning rate, scale and corrections of this step, read when the kernel runs. All tensors may share it.
    pub step: View<'b>,
    /// `WlAdamwStatistics`, written.
    pub statistics: ViewMut<'b>,
    /// [`Adamw::scratch_bytes`] bytes: zeros before the first launch, then any launches that do not run at the same time.
    pub scratch: ViewMut<'b>,
}

const CHUNKS: Geometry<WlAdamw> = geometry! {
    WlAdamw { count } [WL_ADAMW_THREADS, WL_ADAMW_CHUNK, WL_ADAMW_SCRATCH_HEAD, WL_ADAMW_SCRATCH_CTA]
    let chunks = max(ceil_div(count, WL_ADAMW_CHUNK), 1);
    grid: [chunks, 1, 1],
    block: WL_ADAMW_THREADS,
    shared: 0,
    scratch: { scratch: WL_ADAMW_SCRATCH_HEAD + WL_ADAMW_SCRATCH_CTA * chunks, WL_ADAMW_SCRATCH_HEAD; },
};

/// For the manifest.
pub(super) fn about(entry: &str) -> About {
    let gradients = if entry.ends_with("_bf16") { "WL_BF16" } else { "WL_F32" };
    About {
        requires: vec![
            format!("gradient_type == {gradients}"),
            "0 <= count".into(),
            "count <= 8796093022208".into(),
        ],
        ..About::new("WlAdamw", "a step of AdamW on one tensor, measured in the same pass", CHUNKS.text)
    }
}

impl Adamw {
    /// Loads the kernel.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn load(driver: &Arc<dyn Driver>) -> Result<Self> {
        let module = Module::load(driver, "adamw")?;
        Ok(Adamw { f32: module.function("wl_adamw_f32")?, bf16: module.function("wl_adamw_bf16")? })
    }

    /// Bytes of scratch that a tensor of `count` elements needs.
    pub fn scratch_bytes(count: usize) -> usize {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let ranges = CHUNKS.scratch(&WlAdamw { count, ..WlAdamw::default() });
        ranges.map_or(usize::MAX, |[scratch, _]| scratch)
    }

    /// Bytes of scratch of a launch with so many elements, if there can be one.
    pub(crate) fn check_count(count: usize) -> Result<usize> {
        if count > MOST {
            return Check::of("count").refuse(format!("{count}; supported are 0 to {MOST}"));
        }
        Ok(Adamw::scratch_bytes(count))
    }

    /// Enqueues the kernel. An empty tensor is measured, too: all zeros.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for settings, types, sizes and addresses that do not fit;
    /// [`Error::Device`](crate::Error::Device).
    pub fn launch(&self, stream: &Stream, args: AdamwArgs) -> Result<()> {
        let AdamwArgs { settings, count, gradient_dtype, .. } = args;
        settings.validate()?;
        let function = match gradient_dtype {
            Dtype::F32 => &self.f32,
            Dtype::Bf16 => &self.bf16,
            other => {
                return Check::of("gradient_dtype").refuse(format!("{other}; supported are f32 and bf16"));
            }
        };
        Adamw::check_count(count)?;
        let copy = match &args.copy {
            Some(copy) => Check::of("copy").view_mut(copy, count, 2)?,
            None => 0,
        };
        let p = WlAdamw {
            version: WL_VERSION,
            gradient_type: gradient_dtype.code(),
            count: count as i64,
            beta1: settings.beta1,
            beta2: settings.beta2,
            epsilon: settings.epsilon,
            decay: settings.weight_decay,
            bins_per_ratio: settings.bins_per_ratio(),
            reserved: 0,
            weights: Check::of("weights").view_mut(&args.weights, count, 4)?,
            gradients: Check::of("gradients").view(args.gradients, count, gradient_dtype.size())?,
            m: Check::of("m").view_mut(&args.m, count, 4)?,
            v: Check::of("v").view_mut(&args.v, count, 4)?,
            copy,
            step: Check::of("step").view(args.step, 1, size_of::<WlAdamwStep>())?,
            statistics: Check::of("statistics").view_mut(
                &args.statistics,
                1,
                size_of::<WlAdamwStatistics>(),
            )?,
            scratch: Check::of("scratch").bytes(&args.scratch, Adamw::scratch_bytes(count))?,
        };
        // SAFETY: the sizes above cover all that the kernel touches: `count` elements, the step, the statistics, the scratch.
        unsafe { stream.launch(function, &CHUNKS.launch(&p)) }
    }
}

/// Most elements: their chunks are a grid.
const MOST: usize = 1 << 43;

impl From<optimizer::Step> for WlAdamwStep {
    fn from(step: optimizer::Step) -> Self {
        let optimizer::Step { learning_rate, gradient_scale, m_correction, v_correction } = step;
        WlAdamwStep { learning_rate, gradient_scale, m_correction, v_correction }
    }
}

impl WlAdamwStatistics {
    /// As the monitor takes them: of a tensor of `count` elements, in a step of this learning rate.
    pub fn measured(&self, count: usize, learning_rate: f32) -> Statistics {
        let measured = Measured {
            sums: self.sums,
            max_ratio: self.max_ratio as f32,
            non_finite: self.non_finite,
            large_ratios: self.large_ratios,
            small_roots: self.small_roots,
            histogram: self.histogram,
        };
        Statistics::new(count as u64, learning_rate, &measured)
    }
}
