//! SwiGLU of rows: `cuda/kernels/swiglu.cu`.

use std::sync::Arc;

use super::{
    Check, Dtype, E4m3Rows, Half, Module, Rows, RowsMut,
    geometry::{Geometry, geometry},
    manifest::{About, apart, texts, type_of},
    params::{WL_E4M3, WL_SWIGLU_FEATURES, WL_VERSION, WlSwiglu},
};
use crate::{
    driver::{Driver, Function, Stream, View},
    error::Result,
};

/// out = round(silu(gate) · up), silu(x) = x / (1 + e^−x).
///
/// arXiv 2002.05202. Products of gates under −174 are 0.
pub struct Swiglu {
    functions: Half<Function>,
    e4m3: Half<Function>,
}

/// What [`Swiglu::launch`] takes, and, with [`E4m3Rows`] for `out`, [`Swiglu::launch_e4m3`].
#[derive(Debug)]
pub struct SwigluArgs<'b, O = RowsMut<'b>> {
    /// Type of gate, up and out: bf16 or f16.
    pub dtype: Dtype,
    /// Number of rows.
    pub rows: usize,
    /// Features of a row, up to 2^26.
    pub width: usize,
    /// `[rows, width]`.
    pub gate: Rows<'b>,
    /// `[rows, width]`; with gate's stride, it may be the other half of the same matrix.
    pub up: Rows<'b>,
    /// `[rows, width]`.
    pub out: O,
    /// i32 `[rows]`: rows with a negative position are left out. None: there are none.
    pub positions: Option<View<'b>>,
}

const FEATURES: Geometry<WlSwiglu> = geometry! {
    WlSwiglu { rows, width } [WL_SWIGLU_THREADS, WL_SWIGLU_FEATURES]
    grid: [rows * ceil_div(width, WL_SWIGLU_FEATURES), 1, 1],
    block: WL_SWIGLU_THREADS,
    shared: 0,
};

/// Of e4m3: a row's scale follows from all of it.
const ROWS: Geometry<WlSwiglu> = geometry! {
    WlSwiglu { rows } [WL_SWIGLU_E4M3_THREADS]
    grid: [rows, 1, 1],
    block: WL_SWIGLU_E4M3_THREADS,
    shared: 0,
};

/// For the manifest.
pub(super) fn about(entry: &str) -> About {
    let mut requires = vec![type_of(entry)];
    requires.extend(texts(&["1 <= rows", "1 <= width", "width <= 67108864"]));
    requires.extend(apart("rows", "width", &["gate_stride", "up_stride", "out_stride"]));
    let (what, text) = if entry.ends_with("_e4m3") {
        requires.push("out_type == WL_E4M3".into());
        ("silu(gate) * up, to e4m3 with a scale for each row", ROWS.text)
    } else {
        requires.push("out_type == type".into());
        ("silu(gate) * up", FEATURES.text)
    };
    About { requires, ..About::new("WlSwiglu", what, text) }
}

impl Swiglu {
    /// Loads the kernel.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn load(driver: &Arc<dyn Driver>) -> Result<Self> {
        let module = Module::load(driver, "swiglu")?;
        Ok(Swiglu {
            functions: Half::load(|t| module.function(&format!("wl_swiglu_{t}")))?,
            e4m3: Half::load(|t| module.function(&format!("wl_swiglu_{t}_e4m3")))?,
        })
    }

    /// Enqueues the kernel.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for types, shapes, sizes and addresses that do not fit;
    /// [`Error::Device`](crate::Error::Device).
    pub fn launch(&self, stream: &Stream, args: &SwigluArgs) -> Result<()> {
        let &SwigluArgs { dtype, rows, width, .. } = args;
        let function = self.functions.of(dtype)?;
        let mut p = args.params()?;
        p.out_type = dtype.code();
        (p.out, p.out_stride) = Check::of("out").rows_mut(&args.out, rows, width, dtype.size())?;
        if rows == 0 {
            return Ok(());
        }
        // SAFETY: the sizes that were checked cover all that the kernel touches of `rows` rows.
        unsafe { stream.launch(function, &FEATURES.launch(&p)) }
    }

    /// Enqueues the kernel that makes e4m3 of out: what [`QuantizeFp8Rows`](super::QuantizeFp8Rows) makes of the out of
    /// [`Swiglu::launch`], bit for bit.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for types, shapes, sizes and addresses that do not fit;
    /// [`Error::Device`](crate::Error::Device).
    pub fn launch_e4m3<'b>(&self, stream: &Stream, args: &SwigluArgs<'b, E4m3Rows<'b>>) -> Result<()> {
        let function = self.e4m3.of(args.dtype)?;
        let mut p = args.params()?;
        p.out_type = WL_E4M3;
        (p.out, p.out_stride, p.out_scales, p.bound) =
            args.out.check(["out", "out_scales", "out_bound"], args.rows, args.width)?;
        if args.rows == 0 {
            return Ok(());
        }
        // SAFETY: the sizes that were checked cover all that the kernel touches of `rows` rows.
        unsafe { stream.launch(function, &ROWS.launch(&p)) }
    }
}

#[cfg(feature = "capi")]
impl<'b> SwigluArgs<'b, ()> {
    /// The same with an out.
    pub(crate) fn with<O>(self, out: O) -> SwigluArgs<'b, O> {
        let SwigluArgs { dtype, rows, width, gate, up, out: (), positions } = self;
        SwigluArgs { dtype, rows, width, gate, up, out, positions }
    }
}

impl<O> SwigluArgs<'_, O> {
    /// All but out.
    fn params(&self) -> Result<WlSwiglu> {
        let &SwigluArgs { dtype, rows, width, .. } = self;
        let size = dtype.size();
        let mut p = WlSwiglu {
            version: WL_VERSION,
            type_: dtype.code(),
            width: Check::of("width").count(width, 1..=1 << 26)?,
            ..WlSwiglu::default()
        };
        let ctas = width.div_ceil(WL_SWIGLU_FEATURES as usize);
        p.rows = Check::of("rows").count(rows, 0..=i32::MAX as usize / ctas)?;
        (p.gate, p.gate_stride) = Check::of("gate").rows(&self.gate, rows, width, size)?;
        (p.up, p.up_stride) = Check::of("up").rows(&self.up, rows, width, size)?;
        if let Some(positions) = self.positions {
            p.positions = Check::of("positions").view(positions, rows, 4)?;
        }
        Ok(p)
    }
}
