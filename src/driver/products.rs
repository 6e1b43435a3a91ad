//! Matrix products by the library that comes with a device, for sizes at which it is faster than the kernels of this crate.
//!
//! Start from [`Driver::products`](super::Driver::products). For a GPU the library is cuBLASLt, for the simulator plain loops on the host.

use super::Handle;
use crate::{dtype::Dtype, error::Result};

/// A product out\[r, n\] = Σ x\[r, k\] · weight\[n, k\], or with `add` the sum of that and what out holds; sums in f32, rounded once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductShape {
    /// Type of x, weight and out: bf16 or f16.
    pub dtype: Dtype,
    /// Rows of x and out.
    pub rows: usize,
    /// Elements of a row of x and of weight.
    pub inputs: usize,
    /// Rows of weight.
    pub features: usize,
    /// Elements from row to row of x.
    pub x_stride: usize,
    /// Elements from row to row of weight.
    pub weight_stride: usize,
    /// Elements from row to row of out.
    pub out_stride: usize,
    /// Whether out is added to.
    pub add: bool,
}

/// A device's library of matrix products.
pub trait Products: Send + Sync {
    /// The library's name.
    fn name(&self) -> &'static str;

    /// Up to `most` ways in which it would compute a product, the one that it takes for the fastest first; none if it cannot.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if it fails.
    fn ways(&self, shape: &ProductShape, most: usize) -> Result<Vec<Box<dyn Way>>>;
}

/// One way to compute a product: the same algorithm, and so the same bits, each time.
pub trait Way: Send + Sync {
    /// Enqueues it. One stream at a time may run products of a library: they share its workspace.
    ///
    /// # Safety
    /// The addresses, multiples of 16, and the sizes that follow from the shape must lie in live allocations of the driver's; out must
    /// overlap neither x nor weight.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    unsafe fn launch(&self, stream: Handle, x: u64, weight: u64, out: u64) -> Result<()>;
}
