//! The kernels of `cuda/kernels` behind checked launches: one module per kernel file.
//!
//! Start from [`Kernels`], all of them loaded on one device, or from a single one such as [`RmsNorm`]. A launch takes views of
//! device memory and shapes, checks every size, stride, alignment and type, and enqueues the kernel: it neither allocates nor waits.
//! What it refuses is an [`Error::Argument`] that names the argument, its value and what is supported.
//!
//! What a kernel reads as an index from device memory (token ids, page ids, sequence numbers) cannot be checked here; the kernels themselves take
//! none that is out of range, and say what becomes of the row.
//!
//! A decode row's result never depends on how many rows are computed with it, on its slot, the page layout or the device's size: the
//! exactness of speculative decoding rests on that.

mod accept;
mod adamw;
mod attention;
mod attention_decode;
mod attention_prefill;
mod compiled;
mod embed;
mod export;
mod gemm;
mod geometry;
mod linear;
pub mod manifest;
mod pages;
pub mod params;
pub(crate) mod projection;
mod quantize_fp8_rows;
mod rms_norm;
mod rope_append;
pub(crate) mod sample;
pub mod survey;
mod swiglu;

use std::sync::Arc;

pub use accept::{Accept, AcceptArgs, AcceptLogits, BeginArgs};
pub use adamw::{Adamw, AdamwArgs};
#[cfg(feature = "model")]
pub(crate) use attention_decode::most_scratch;
pub use attention_decode::{AttentionDecode, AttentionDecodeArgs, AttentionParts};
pub use attention_prefill::{AttentionPrefill, AttentionPrefillArgs};
pub use compiled::{CUDA_VERSION, FAMILIES};
pub use embed::{Embed, EmbedArgs};
pub use export::export;
pub use gemm::{Gemm, GemmArgs};
pub use linear::{Linear, LinearArgs, LinearNorm};
pub use manifest::{Manifest, manifest};
pub use pages::{PageLayout, PageTable};
pub use projection::{LinearEpilogue, LinearProjection};
pub use quantize_fp8_rows::{QuantizeFp8Rows, QuantizeFp8RowsArgs};
pub use rms_norm::{RmsNorm, RmsNormArgs};
pub use rope_append::{RopeAppend, RopeAppendArgs};
pub use sample::{MAX_DRAFT, MAX_VOCAB, RoundRows, RowTable, Sample, SampleArgs, SamplePass};
pub use swiglu::{Swiglu, SwigluArgs};

pub use crate::dtype::Dtype;
use crate::{
    driver::{self, Driver, Family, Function, View, ViewMut},
    error::{Error, Result},
};

/// Every kernel, loaded on one device.
pub struct Kernels {
    /// Attention of few rows over paged keys and values.
    pub attention_decode: AttentionDecode,
    /// Attention of any number of rows over paged keys and values.
    pub attention_prefill: AttentionPrefill,
    /// Token ids to rows.
    pub embed: Embed,
    /// Products of any number of rows.
    pub gemm: Gemm,
    /// Products of few rows with streamed weights.
    pub linear: Linear,
    /// Rows to e4m3 with a scale each.
    pub quantize_fp8_rows: QuantizeFp8Rows,
    /// RMSNorm, with a residual added first where asked.
    pub rms_norm: RmsNorm,
    /// Rotary positions, and the writing of keys and values to their pages.
    pub rope_append: RopeAppend,
    /// silu(gate) · up.
    pub swiglu: Swiglu,
    /// The choice of tokens.
    pub sample: Sample,
    /// Beginning and end of a speculative round.
    pub accept: Accept,
    /// A step of training, measured.
    pub adamw: Adamw,
}

impl Kernels {
    /// Loads all kernels.
    ///
    /// # Errors
    /// [`Error::Device`] if the device cannot run them.
    pub fn load(driver: &Arc<dyn Driver>) -> Result<Self> {
        Ok(Kernels {
            attention_decode: AttentionDecode::load(driver)?,
            attention_prefill: AttentionPrefill::load(driver)?,
            embed: Embed::load(driver)?,
            gemm: Gemm::load(driver)?,
            linear: Linear::load(driver)?,
            quantize_fp8_rows: QuantizeFp8Rows::load(driver)?,
            rms_norm: RmsNorm::load(driver)?,
            rope_append: RopeAppend::load(driver)?,
            swiglu: Swiglu::load(driver)?,
            sample: Sample::load(driver)?,
            accept: Accept::load(driver)?,
            adamw: Adamw::load(driver)?,
        })
    }
}

/// The most dynamic shared memory that a launch of this entry asks for, in bytes.
pub fn dynamic_shared_bytes(entry: &str) -> u32 {
    let bytes = match entry {
        entry if entry.starts_with("wl_attention_decode_") => attention_decode::dynamic_shared_bytes(entry),
        entry if entry.starts_with("wl_attention_prefill_") => attention_prefill::dynamic_shared_bytes(entry),
        entry if entry.starts_with("wl_sample_") => sample::dynamic_shared_bytes(),
        _ => 0,
    };
    bytes as u32
}

/// A family while its functions are looked up.
struct Module {
    loaded: driver::Module,
    device: String,
    family: &'static Family,
}

impl Module {
    fn load(driver: &Arc<dyn Driver>, family: &str) -> Result<Self> {
        let device = driver.properties().name.clone();
        let Some(family) = FAMILIES.iter().find(|f| f.name == family) else {
            return Err(Error::device(
                &device,
                format!("the kernels of {family}.cu were not compiled: build with nvcc"),
            ));
        };
        Ok(Module { loaded: driver::Module::load(driver, family)?, device, family })
    }

    fn function(&self, entry: &str) -> Result<Function> {
        match self.family.entries.iter().find(|e| e.name == entry) {
            Some(found) => self.loaded.function(found.name),
            None => Err(Error::device(&self.device, format!("{}.cu has no entry {entry}", self.family.name))),
        }
    }
}

impl Dtype {
    /// As the parameter structs have it.
    fn code(self) -> u32 {
        match self {
            Dtype::Bf16 => params::WL_BF16,
            Dtype::F16 => params::WL_F16,
            Dtype::F32 => params::WL_F32,
            Dtype::E4m3 => params::WL_E4M3,
        }
    }
}

/// The functions of a kernel that is compiled for bf16 and f16.
#[derive(Clone, Copy, Debug)]
struct Half<F> {
    bf16: F,
    f16: F,
}

impl<F> Half<F> {
    fn load(mut function: impl FnMut(&str) -> Result<F>) -> Result<Self> {
        Ok(Half { bf16: function("bf16")?, f16: function("f16")? })
    }

    fn of(&self, dtype: Dtype) -> Result<&F> {
        match dtype {
            Dtype::Bf16 => Ok(&self.bf16),
            Dtype::F16 => Ok(&self.f16),
            other => Err(Error::argument("dtype", format!("{other}; supported are bf16 and f16"))),
        }
    }
}

/// Rows in device memory, to read: `width` elements each, `stride` elements from one row's first to the next one's.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'b> {
    /// The memory from the first element on.
    pub view: View<'b>,
    /// Elements from a row's first to the next row's first.
    pub stride: usize,
}

/// Rows in device memory, to write: `width` elements each, `stride` elements from one row's first to the next one's.
#[derive(Debug)]
pub struct RowsMut<'b> {
    /// The memory from the first element on.
    pub view: ViewMut<'b>,
    /// Elements from a row's first to the next row's first.
    pub stride: usize,
}

/// Rows of e4m3 with a scale each, to write: what [`QuantizeFp8Rows`] makes of rows that a kernel computes and rounds to
/// its type.
#[derive(Debug)]
pub struct E4m3Rows<'b> {
    /// e4m3 `[rows, width]`. It overlaps nothing that the kernel reads.
    pub q: RowsMut<'b>,
    /// f32 `[rows]`.
    pub scales: ViewMut<'b>,
    /// What is larger saturates: 1200 for activations. None: nothing is.
    pub bound: Option<f32>,
}

impl E4m3Rows<'_> {
    /// Address and stride of q, address of the scales, and the bound, by these names.
    fn check(&self, names: [&'static str; 3], rows: usize, width: usize) -> Result<(u64, i64, u64, f32)> {
        let [q, scales, bound] = names.map(Check::of);
        let value = self.bound.unwrap_or(f32::INFINITY);
        if value.is_nan() || value <= 0.0 {
            return bound.refuse(format!("{value}; supported are numbers over 0"));
        }
        let (q, stride) = q.rows_mut(&self.q, rows, width, 1)?;
        Ok((q, stride, scales.view_mut(&self.scales, rows, 4)?, value))
    }
}

/// What every check of an argument goes by.
struct Check {
    argument: &'static str,
}

impl Check {
    const fn of(argument: &'static str) -> Self {
        Check { argument }
    }

    fn refuse<T>(&self, reason: String) -> Result<T> {
        Err(Error::argument(self.argument, reason))
    }

    /// A count within bounds, as the parameter structs have it.
    fn count(&self, value: usize, bounds: std::ops::RangeInclusive<usize>) -> Result<i32> {
        match i32::try_from(value) {
            Ok(count) if bounds.contains(&value) => Ok(count),
            _ => self.refuse(format!("{value}; supported are {} to {}", bounds.start(), bounds.end())),
        }
    }

    /// The address of an array of `elements` numbers of `size` bytes. Those of 4 bytes are read one by one, or in vectors where they
    /// lie so, and may begin anywhere; others begin at multiples of 16 bytes.
    fn array(&self, address: u64, bytes: usize, elements: usize, size: usize) -> Result<u64> {
        let alignment = if size == 4 { 4 } else { 16 };
        if !address.is_multiple_of(alignment) {
            return self.refuse(format!("address {address:#x} is not a multiple of {alignment} bytes"));
        }
        match elements.checked_mul(size) {
            Some(needed) if needed <= bytes => Ok(address),
            _ => self.refuse(format!("{bytes} bytes do not hold {elements} elements of {size} bytes")),
        }
    }

    /// The address of an array of f32 that is read in vectors of 16 bytes.
    fn vectors(&self, view: View, elements: usize) -> Result<u64> {
        if !view.address().is_multiple_of(16) {
            return self.refuse(format!("address {:#x} is not a multiple of 16 bytes", view.address()));
        }
        self.view(view, elements, 4)
    }

    /// The address of an array to read.
    fn view(&self, view: View, elements: usize, size: usize) -> Result<u64> {
        self.array(view.address(), view.bytes(), elements, size)
    }

    /// The address of so many bytes of scratch.
    fn bytes(&self, scratch: &ViewMut, needed: usize) -> Result<u64> {
        let (address, bytes) = (scratch.address(), scratch.bytes());
        if bytes < needed {
            return self.refuse(format!("{bytes} bytes; {needed} are needed"));
        }
        self.array(address, bytes, needed, 1)
    }

    /// The address of an array to write.
    fn view_mut(&self, view: &ViewMut, elements: usize, size: usize) -> Result<u64> {
        self.array(view.address(), view.bytes(), elements, size)
    }

    /// Address and stride of rows to read.
    fn rows(&self, x: &Rows, rows: usize, width: usize, size: usize) -> Result<(u64, i64)> {
        let elements = self.matrix(x.stride, rows, width)?;
        Ok((self.view(x.view, elements, size)?, x.stride as i64))
    }

    /// Address and stride of rows to write.
    fn rows_mut(&self, x: &RowsMut, rows: usize, width: usize, size: usize) -> Result<(u64, i64)> {
        let elements = self.matrix(x.stride, rows, width)?;
        Ok((self.view_mut(&x.view, elements, size)?, x.stride as i64))
    }

    /// Elements from the first row's first to the last row's last.
    fn matrix(&self, stride: usize, rows: usize, width: usize) -> Result<usize> {
        if rows > 1 && stride < width {
            return self.refuse(format!("rows {stride} elements apart overlap; {width} at least"));
        }
        let last = rows.saturating_sub(1).checked_mul(stride).and_then(|begin| begin.checked_add(width));
        match last {
            Some(elements) if i64::try_from(elements).is_ok() => Ok(if rows == 0 { 0 } else { elements }),
            _ => self.refuse(format!("{rows} rows of stride {stride} exceed the address space")),
        }
    }
}
