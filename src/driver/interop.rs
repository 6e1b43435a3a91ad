//! Other crates' streams and memory, as the kernels take them.
//!
//! **cudarc**, the version that is exported here as [`cudarc`]: [`device`] of its context, [`stream`] of its stream, [`read`] and [`write()`] of
//! its slices, which also see to it that its own bookkeeping stays right. `examples/cudarc.rs` is a whole program.
//!
//! **Everything else** hands out a CUstream and device pointers: [`Stream::from_raw`], [`View::from_raw`] and [`ViewMut::from_raw`] say what the
//! caller promises. [The guide](crate::guide::link_the_kernels) shows cust.
//!
//! Work that is enqueued on a foreign stream is ordered with the rest of it; nothing of this crate waits for it. A call leaves the thread in
//! the CUDA context that it found there.

use std::{marker::PhantomData, ops::Deref, sync::Arc};

pub use cudarc;
use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};

use super::{Cuda, Driver, Stream, View, ViewMut};
use crate::error::{Error, Result};

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
/// [`Error::Argument`] if the driver is of another GPU, or of none.
pub fn stream<'s>(driver: &Arc<dyn Driver>, stream: &'s CudaStream) -> Result<Borrowed<'s>> {
    let ordinal = stream.context().ordinal();
    if driver.ordinal() != Some(ordinal) {
        let reason = format!(
            "of GPU {ordinal}, and the driver is one of {}",
            match driver.ordinal() {
                Some(other) => format!("GPU {other}"),
                None => "the simulator".into(),
            }
        );
        return Err(Error::argument("stream", reason));
    }
    // SAFETY: cudarc's contexts are the primary ones, and the stream is borrowed for as long as the result.
    let stream = unsafe { Stream::from_raw(driver, stream.cu_stream() as u64)? };
    Ok(Borrowed { stream, of: PhantomData })
}

/// A slice of cudarc's while it is read. When this is dropped, cudarc notes the read for the streams that use the slice later.
pub struct Reading<'a> {
    view: View<'a>,
    _noted: SyncOnDrop<'a>,
}

impl Reading<'_> {
    /// All of it.
    pub fn view(&self) -> View<'_> {
        self.view
    }
}

/// A slice of cudarc's while it is written, as [`Reading`].
pub struct Writing<'a> {
    view: ViewMut<'a>,
    _noted: SyncOnDrop<'a>,
}

impl Writing<'_> {
    /// All of it.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        let bytes = self.view.bytes();
        self.view.slice(0..bytes)
    }
}

/// Has a slice of cudarc's read by what is enqueued on `stream` as long as the result is there.
pub fn read<'a, T, S: DevicePtr<T>>(slice: &'a S, stream: &'a CudaStream) -> Reading<'a> {
    let bytes = slice.num_bytes();
    let (address, noted) = slice.device_ptr(stream);
    // SAFETY: the slice is borrowed for as long as the view, and cudarc frees memory in the order of the streams that used it.
    Reading { view: unsafe { View::from_raw(address, bytes) }, _noted: noted }
}

/// Has a slice of cudarc's written by what is enqueued on `stream` as long as the result is there.
pub fn write<'a, T, S: DevicePtrMut<T>>(slice: &'a mut S, stream: &'a CudaStream) -> Writing<'a> {
    let bytes = slice.num_bytes();
    let (address, noted) = slice.device_ptr_mut(stream);
    // SAFETY: as in `read`, and the slice is borrowed to be written.
    Writing { view: unsafe { ViewMut::from_raw(address, bytes) }, _noted: noted }
}
