//! What happens on a device, in which order: streams, events, graphs, and copies to the host that nobody waits for.

use std::{ops::Range, ptr::NonNull, sync::Arc};

use super::{Driver, Function, Handle, Launch, Recorded, View, ViewMut, Way, together};
use crate::error::{Error, Result};

/// Work that happens in order.
pub struct Stream {
    pub(super) driver: Arc<dyn Driver>,
    handle: Handle,
    programmatic: bool,
    /// Whether it is someone else's.
    foreign: bool,
}

impl Stream {
    /// A stream of its own.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn new(driver: &Arc<dyn Driver>) -> Result<Self> {
        Ok(Stream { handle: driver.stream()?, driver: driver.clone(), programmatic: false, foreign: false })
    }

    /// Whether kernels on this stream may begin while the one before them ends, as [`Launch::programmatic`] says; they may not at first.
    ///
    /// # Safety
    /// The kernels of this crate wait for it before they touch anything but the weights of a [`Linear`](crate::kernels::Linear): a kernel
    /// that writes such weights must have been waited for, by [`Stream::synchronize`] or a copy behind it on the stream.
    pub unsafe fn set_overlapping(&mut self, on: bool) {
        self.programmatic = on;
    }

    /// A stream that was not made here, as a CUstream; 0 is the default stream. It is not given back when this is dropped.
    ///
    /// # Safety
    /// It must be a stream of the context that the driver uses (of a GPU the primary one), and stay there as long as this.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver has no such streams, as the simulator.
    pub unsafe fn from_raw(driver: &Arc<dyn Driver>, stream: u64) -> Result<Self> {
        let handle = driver.foreign_stream(stream)?;
        Ok(Stream { handle, driver: driver.clone(), programmatic: false, foreign: true })
    }

    /// The driver whose stream it is.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// Copies from the host. `data` has been read when it returns.
    ///
    /// # Errors
    /// [`Error::Argument`] if the sizes differ, [`Error::Device`].
    pub fn upload<T: bytemuck::NoUninit>(&self, to: &mut ViewMut, data: &[T]) -> Result<()> {
        same_size(to.bytes, size_of_val(data))?;
        // SAFETY: the handles are this driver's, and there; so is the memory, as long as its view.
        unsafe { self.driver.upload(self.handle, to.address, bytemuck::cast_slice(data)) }
    }

    /// Copies to the host, and waits for it.
    ///
    /// # Errors
    /// [`Error::Argument`] if the sizes differ, [`Error::Device`].
    pub fn download<T: bytemuck::Pod>(&self, from: View, data: &mut [T]) -> Result<()> {
        same_size(from.bytes, size_of_val(data))?;
        // SAFETY: the handles are this driver's, and there; so is the memory, as long as its view.
        unsafe { self.driver.download(self.handle, from.address, bytemuck::cast_slice_mut(data)) }
    }

    /// Copies within the device.
    ///
    /// # Errors
    /// [`Error::Argument`] if the sizes differ, [`Error::Device`].
    pub fn copy(&self, from: View, to: &mut ViewMut) -> Result<()> {
        same_size(to.bytes, from.bytes)?;
        // SAFETY: the handles are this driver's, and there; so is the memory, as long as its view.
        unsafe { self.driver.copy(self.handle, from.address, to.address, from.bytes) }
    }

    /// Copies a part of a range to another place in it.
    ///
    /// # Errors
    /// [`Error::Argument`] if they overlap or do not lie within it, or `from` ends before it begins; [`Error::Device`].
    pub fn copy_within(&self, memory: &mut ViewMut, from: Range<usize>, to: usize) -> Result<()> {
        let (bytes, all) = (from.len(), memory.bytes);
        let inside =
            from.start <= from.end && from.end <= all && to.checked_add(bytes).is_some_and(|end| end <= all);
        if !inside || (to < from.end && from.start < to + bytes) {
            return Err(Error::argument("copy", format!("{from:?} to {to} within {all} bytes")));
        }
        // SAFETY: the handles are this driver's, and there; so is the memory, as long as its view.
        unsafe {
            self.driver.copy(
                self.handle,
                memory.address + from.start as u64,
                memory.address + to as u64,
                bytes,
            )
        }
    }

    /// Sets every byte of a range.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn fill(&self, to: &mut ViewMut, byte: u8) -> Result<()> {
        // SAFETY: the handles are this driver's, and there; so is the memory, as long as its view.
        unsafe { self.driver.fill(self.handle, to.address, byte, to.bytes) }
    }

    /// Launches a kernel.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    ///
    /// # Errors
    /// [`Error::Argument`] for a function of another driver, [`Error::Device`].
    pub unsafe fn launch(&self, function: &Function, launch: &Launch) -> Result<()> {
        together(&self.driver, &function.driver, "kernel")?;
        let launch = Launch { programmatic: launch.programmatic || self.programmatic, ..*launch };
        // SAFETY: the caller's promise.
        unsafe { self.driver.launch(self.handle, function.handle, &launch) }
    }

    /// Enqueues a product by a library.
    ///
    /// # Safety
    /// As [`Way::launch`]: the ranges must hold what its shape says.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub unsafe fn product(&self, way: &dyn Way, x: View, weight: View, out: &mut ViewMut) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { way.launch(self.handle, x.address, weight.address, out.address) }
    }

    /// Waits for everything on the stream.
    ///
    /// # Errors
    /// [`Error::Device`], also for what went wrong in earlier launches.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the handles are this driver's, and there.
        unsafe { self.driver.synchronize(self.handle) }
    }

    /// Lets the stream go on only when `event` has come.
    ///
    /// # Errors
    /// [`Error::Argument`] for an event of another driver, [`Error::Device`].
    pub fn wait(&self, event: &Event) -> Result<()> {
        together(&self.driver, &event.driver, "event")?;
        // SAFETY: the handles are this driver's, and there.
        unsafe { self.driver.wait(self.handle, event.handle) }
    }

    /// Records what `work` enqueues on this stream, without running it.
    ///
    /// # Errors
    /// What `work` returns, and [`Error::Device`] for what cannot be recorded, such as a download.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        /// Ends the capture where `work` panics.
        struct Capturing<'s>(&'s Stream);
        impl Drop for Capturing<'_> {
            fn drop(&mut self) {
                let _ = self.0.end_capture();
            }
        }
        // SAFETY: the handles are this driver's, and there.
        unsafe { self.driver.begin_capture(self.handle)? };
        let capturing = Capturing(self);
        let done = work();
        std::mem::forget(capturing);
        let graph = self.end_capture();
        done.and(graph)
    }

    /// From here on, what is enqueued on this stream is recorded and not run, until [`Stream::end_capture`].
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn begin_capture(&self) -> Result<()> {
        // SAFETY: the handles are this driver's, and there.
        unsafe { self.driver.begin_capture(self.handle) }
    }

    /// What was recorded since [`Stream::begin_capture`].
    ///
    /// # Errors
    /// [`Error::Device`], also for what could not be recorded. The recording has ended then, too.
    pub fn end_capture(&self) -> Result<Graph> {
        // SAFETY: the handles are this driver's, and there.
        let recorded = unsafe { self.driver.end_capture(self.handle) }?;
        Ok(Graph { driver: self.driver.clone(), recorded })
    }

    /// Runs a graph.
    ///
    /// # Safety
    /// Everything that the graph's launches address must still be there.
    ///
    /// # Errors
    /// [`Error::Argument`] for a graph of another driver, [`Error::Device`].
    pub unsafe fn launch_graph(&self, graph: &Graph) -> Result<()> {
        together(&self.driver, &graph.driver, "graph")?;
        // SAFETY: the caller's promise.
        unsafe { self.driver.launch_graph(self.handle, graph.recorded.graph) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.foreign {
            // SAFETY: this driver's, and used by nothing any more.
            unsafe { self.driver.drop_stream(self.handle) };
        }
    }
}

/// A point in a stream's work.
pub struct Event {
    driver: Arc<dyn Driver>,
    handle: Handle,
}

impl Event {
    /// An event that has not been recorded.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn new(driver: &Arc<dyn Driver>) -> Result<Self> {
        Ok(Event { handle: driver.event()?, driver: driver.clone() })
    }

    /// Sets it at the end of what the stream has been given.
    ///
    /// # Errors
    /// [`Error::Argument`] for a stream of another driver, [`Error::Device`].
    pub fn record(&self, stream: &Stream) -> Result<()> {
        together(&stream.driver, &self.driver, "event")?;
        // SAFETY: the handles are this driver's, and there.
        unsafe { self.driver.record(self.handle, stream.handle) }
    }

    /// Waits until it has come.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the handles are this driver's, and there.
        unsafe { self.driver.synchronize_event(self.handle) }
    }

    /// Milliseconds since an earlier event.
    ///
    /// # Errors
    /// [`Error::Argument`] for an event of another driver, [`Error::Device`] unless both have been recorded and have come.
    pub fn elapsed_ms(&self, since: &Event) -> Result<f32> {
        together(&self.driver, &since.driver, "event")?;
        // SAFETY: the handles are this driver's, and there.
        unsafe { self.driver.elapsed_ms(since.handle, self.handle) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: this driver's, and used by nothing any more.
        unsafe { self.driver.drop_event(self.handle) };
    }
}

/// Recorded work that runs at one call.
pub struct Graph {
    driver: Arc<dyn Driver>,
    recorded: Recorded,
}

impl Graph {
    /// Its launches, copies and fills.
    pub fn nodes(&self) -> usize {
        self.recorded.nodes
    }

    /// Device memory that it took in bytes, as far as the device tells.
    pub fn bytes(&self) -> u64 {
        self.recorded.bytes
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: this driver's, and used by nothing any more.
        unsafe { self.driver.drop_graph(self.recorded.graph) };
    }
}

/// Copies to the host that nobody waits for until they are looked at: page-locked memory for one at a time.
pub struct Download {
    driver: Arc<dyn Driver>,
    memory: NonNull<u8>,
    bytes: usize,
    copied: Event,
    /// Whether `copied` is still to come.
    under_way: bool,
}

// SAFETY: the memory is this value's own, and the driver may be called from any thread.
unsafe impl Send for Download {}

impl Download {
    /// Room for `bytes` bytes.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::Capacity`].
    pub fn new(driver: &Arc<dyn Driver>, bytes: usize) -> Result<Self> {
        let copied = Event::new(driver)?;
        let memory = driver.pin(bytes.max(1))?;
        Ok(Download { driver: driver.clone(), memory, bytes: bytes.max(1), copied, under_way: false })
    }

    /// Copies `from`, which must be as large as the room, once `stream` has come to it. What was copied before is lost.
    ///
    /// # Errors
    /// [`Error::Argument`] if the sizes differ, or for a stream of another driver; [`Error::Device`].
    pub fn start(&mut self, stream: &Stream, from: View) -> Result<()> {
        together(&stream.driver, &self.driver, "download")?;
        same_size(self.bytes, from.bytes)?;
        self.wait_for_copy()?;
        // SAFETY: pinned in `new`; `wait` gives nobody access until the event has come.
        unsafe { self.driver.download_later(stream.handle, from.address, self.memory, self.bytes)? };
        self.under_way = true;
        self.copied.record(stream)
    }

    /// What was copied last, once it is there; zeros before the first copy.
    ///
    /// # Errors
    /// [`Error::Argument`] if so many bytes are no whole number of T, [`Error::Device`], also for what went wrong in the stream before.
    pub fn wait<T: bytemuck::AnyBitPattern>(&mut self) -> Result<&[T]> {
        self.wait_for_copy()?;
        // SAFETY: pinned in `new`, with so many bytes, which began as zeros; no copy is on its way, and none begins while the slice is
        // borrowed.
        let bytes = unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.bytes) };
        bytemuck::try_cast_slice(bytes).map_err(|e| {
            let kind = std::any::type_name::<T>();
            Error::argument(
                "download",
                format!("{} bytes as {kind}: {e}; ask for what was copied", self.bytes),
            )
        })
    }

    fn wait_for_copy(&mut self) -> Result<()> {
        if self.under_way {
            self.copied.synchronize()?;
            self.under_way = false;
        }
        Ok(())
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // Of a context that is lost nothing more is copied.
        let _ = self.wait_for_copy();
        // SAFETY: of `new`, with the same size, and nothing is on its way.
        unsafe { self.driver.unpin(self.memory, self.bytes) };
    }
}

fn same_size(to: usize, from: usize) -> Result<()> {
    if to == from {
        return Ok(());
    }
    Err(Error::argument("copy", format!("{from} bytes into {to}; the sizes must be equal")))
}
