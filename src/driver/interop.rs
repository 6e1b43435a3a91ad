//! Other crates' streams and memory, as the kernels take them.
//!
//! **cudarc**, the version that is exported here as [`cudarc`]: [`device`] of its context, [`stream`] of its stream, [`view`] and [`view_mut`] of
//! its slices, which also see to it that its own bookkeeping of reads and writes stays right. `examples/cudarc.rs` is a whole program.
//!
//! **Everything else** hands out a CUstream and device pointers. With cust 0.3, for one, whose stream and buffers belong to the primary context:
//!
//! ```ignore
//! let driver = warploom::driver::open("cuda:0")?;
//! let stream = unsafe { Stream::from_raw(&driver, cust_stream.as_inner() as u64)? };
//! let x = unsafe { View::from_raw(buffer.as_device_ptr().as_raw(), size_of_val(&host)) };
//! ```
//!
//! [`Stream::from_raw`], [`View::from_raw`] and [`ViewMut::from_raw`] say what the caller promises. Work that is enqueued on a foreign stream is
//! ordered with the rest of it; nothing of this crate waits for it.

use std::{marker::PhantomData, ops::Deref, sync::Arc};

pub use cudarc;
use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};

use super::{Cuda, Driver, Stream, View, ViewMut};
use crate::error::Result;

/// The GPU of a cudarc context, which is its primary one.
///
/// # Errors
/// Those of [`Cuda::new`].
pub fn device(context: &CudaContext) -> Result<Arc<dyn Driver>> {
    Ok(Arc::new(Cuda::new(context.ordinal())?))
}

/// A stream of cudarc's, to launch kernels on.
pub struct Borrowed<'s> {
    stream: Stream,
    of: PhantomData<&'s CudaStream>,
}

impl Deref for Borrowed<'_> {
    type Target = Stream;

    fn deref(&self) -> &Stream {
        &self.stream
    }
}

/// A stream of cudarc's as the kernels take it. `driver` is [`device`] of the stream's context.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) if the driver is none of a GPU.
pub fn stream<'s>(driver: &Arc<dyn Driver>, stream: &'s CudaStream) -> Result<Borrowed<'s>> {
    // SAFETY: cudarc's contexts are the primary ones, and the stream is borrowed for as long as the result.
    let stream = unsafe { Stream::from_raw(driver, stream.cu_stream() as u64)? };
    Ok(Borrowed { stream, of: PhantomData })
}

/// A slice of cudarc's, to read. Drop the guard when the launch has been enqueued (so do not name it `_`): it notes the read for cudarc.
pub fn view<'a, T, S: DevicePtr<T>>(slice: &'a S, stream: &'a CudaStream) -> (View<'a>, SyncOnDrop<'a>) {
    let bytes = slice.num_bytes();
    let (address, guard) = slice.device_ptr(stream);
    // SAFETY: the slice is borrowed for as long as the view, and cudarc frees memory in the order of the streams that used it.
    (unsafe { View::from_raw(address, bytes) }, guard)
}

/// A slice of cudarc's, to write, with a guard as [`view`] has it.
pub fn view_mut<'a, T, S: DevicePtrMut<T>>(
    slice: &'a mut S,
    stream: &'a CudaStream,
) -> (ViewMut<'a>, SyncOnDrop<'a>) {
    let bytes = slice.num_bytes();
    let (address, guard) = slice.device_ptr_mut(stream);
    // SAFETY: as in `view`, and the slice is borrowed to be written.
    (unsafe { ViewMut::from_raw(address, bytes) }, guard)
}
