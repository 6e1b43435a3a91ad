//! The device under the kernels: memory, modules, launches, streams, events, graphs.
//!
//! Start from [`Driver`], what a device must offer. Two do: [`Simulator`] executes the kernels' PTX on the CPU and checks each
//! launch for races, unwritten values and accesses out of bounds; [`Cuda`] is a GPU. Both run the same compiled kernels through the same launch
//! code. [`open`] finds one by the name that `--device` takes.
//!
//! What a driver hands out is wrapped here into types that give it back when they are dropped: [`Buffer`], [`Stream`], [`Event`],
//! [`Graph`], [`Download`]. Work on one stream happens in order; nothing but [`Stream::synchronize`], [`Stream::download`],
//! [`Event::synchronize`], [`Download::wait`] and the dropping of a [`Buffer`] or of a [`Download`] makes the host wait.

mod cublaslt;
mod cuda;
pub mod interop;
mod occupancy;
mod products;
mod simulator;

use std::{fmt, marker::PhantomData, ops::Range, ptr::NonNull, sync::Arc};

pub use cuda::Cuda;
pub use products::{ProductShape, Products, Way};
pub use simulator::{LaunchReport, Launched, Policy, Simulator};

use crate::error::{Error, Result};

/// The kernels of one file, compiled.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Name of the file under `cuda/kernels`, without its ending.
    pub name: &'static str,
    /// Machine code of the architectures it was compiled for, and PTX for later ones.
    pub fatbin: &'static [u8],
    /// The virtual architecture of that PTX, e.g. "80".
    pub fatbin_ptx: &'static str,
    /// The PTX that the simulator executes.
    pub ptx: &'static str,
    /// Its entries, with what the compiler says of each.
    pub entries: &'static [Entry],
}

/// One entry of a [`Family`] and what ptxas reports of it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Name to launch it by.
    pub name: &'static str,
    /// Most threads of a CTA.
    pub threads: u32,
    /// Size of its parameter, a struct.
    pub parameter_bytes: u32,
    /// Reports by architecture; none for a file that was compiled to PTX only.
    pub compiled: &'static [Compiled],
}

/// What ptxas made of an entry for one architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// Compute capability, e.g. "80" or "90a".
    pub arch: &'static str,
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a CTA in bytes.
    pub shared_bytes: u32,
    /// Named barriers of a CTA.
    pub barriers: u32,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq)]
pub struct Properties {
    /// Its name, for reports.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Most shared memory of a CTA in bytes, dynamic and static.
    pub shared_bytes: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// L2 cache in bytes.
    pub l2_bytes: u64,
}

/// A module, function, stream, event or graph of a driver: meaningful to it alone, and as long as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(pub(crate) u64);

/// One launch, as cuLaunchKernelEx takes it. Every entry has one parameter, a struct.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'p> {
    /// CTAs along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a CTA along x, y, z.
    pub block: [u32; 3],
    /// CTAs of a cluster; `[1, 1, 1]` for none.
    pub cluster: [u32; 3],
    /// Dynamic shared memory of a CTA in bytes.
    pub shared_bytes: u32,
    /// It may begin before those before it on the stream have ended, and waits for them itself: programmatic dependent launch. A GPU that
    /// is older than Hopper, or has no machine code for itself, makes nothing of it.
    pub programmatic: bool,
    /// The parameter's bytes.
    pub parameter: &'p [u8],
}

impl<'p> Launch<'p> {
    /// One CTA of one warp, no cluster, no dynamic shared memory: what a kernel's launch starts from.
    pub fn new(parameter: &'p [u8]) -> Self {
        Launch {
            grid: [1; 3],
            block: [32, 1, 1],
            cluster: [1; 3],
            shared_bytes: 0,
            programmatic: false,
            parameter,
        }
    }
}

/// A graph that has been recorded.
#[derive(Clone, Copy, Debug)]
pub struct Recorded {
    /// The graph.
    pub graph: Handle,
    /// Its launches, copies and fills.
    pub nodes: usize,
    /// Device memory that it took, as far as the device tells.
    pub bytes: u64,
}

/// What a device must offer.
///
/// Every method may be called from any thread.
///
/// # Safety
/// Handles and addresses that a caller passes must come from the same driver and still exist, and memory that is copied or filled must
/// lie in live allocations; the wrappers in this module see to it. Functions ask for no more where they do not say so.
///
/// # Errors
/// Every method returns [`Error::Device`] with what the device's own driver says of the failure, and [`Error::Capacity`] where memory is
/// short.
pub trait Driver: Send + Sync {
    /// What the device is.
    fn properties(&self) -> &Properties;

    /// Which GPU it is, from 0 as the driver counts them; None for a device that is none.
    fn ordinal(&self) -> Option<usize> {
        None
    }

    /// Launches so far and the warp instructions that they executed; None for a device that does not count them, as a GPU.
    fn simulated(&self) -> Option<(u64, u64)> {
        None
    }

    /// Matrix products by the library that comes with the device, which is looked for now.
    fn products(self: Arc<Self>) -> Result<Arc<dyn Products>>;

    /// Loads the kernels of a file.
    fn load(&self, family: &Family) -> Result<Handle>;
    /// An entry of a loaded module, ready for any launch: its limit on dynamic shared memory is the device's.
    ///
    /// # Safety
    /// As [`Driver`] says.
    unsafe fn function(&self, module: Handle, entry: &'static str) -> Result<Handle>;
    /// CTAs of a function that one multiprocessor holds at a time.
    ///
    /// # Safety
    /// As [`Driver`] says.
    unsafe fn resident(&self, function: Handle, threads: u32, shared_bytes: u32) -> Result<u32>;

    /// Allocates device memory, aligned to 256 bytes. What it holds is undefined until it is written.
    fn allocate(&self, bytes: usize) -> Result<u64>;
    /// Device memory that is not allocated by anybody, in bytes.
    fn free_memory(&self) -> Result<u64>;
    /// Gives an allocation back once all work that was enqueued before is done.
    ///
    /// # Safety
    /// As [`Driver`] says.
    unsafe fn free(&self, address: u64);

    /// Copies from the host, in the stream's order. `data` has been read when it returns. Refused during a capture: a graph would read
    /// the same memory again each time.
    ///
    /// # Safety
    /// As [`Driver`] says.
    unsafe fn upload(&self, stream: Handle, to: u64, data: &[u8]) -> Result<()>;
    /// Copies to the host when the stream has come to it; waits for that.
    ///
    /// # Safety
    /// As [`Driver`] says.
    unsafe fn download(&self, stream: Handle, from: u64, data: &mut [u8]) -> Result<()>;
    /// Page-locked host memory, aligned to 8 bytes, all zeros.
    fn pin(&self, bytes: usize) -> Result<NonNull<u8>>;
    /// Gives page-locked memory back.
    ///
    /// # Safety
    /// It must be of [`Driver::pin`] with the same size, and no copy to it on its way.
    unsafe fn unpin(&self, memory: NonNull<u8>, bytes: usize);
    /// Copies to page-locked memory when the stream has come to it, and does not wait for that. Refused during a capture, as
    /// [`Driver::upload`].
    ///
    /// # Safety
    /// `to` must be of [`Driver::pin`], as large, and nobody may touch it until the stream has done the copy.
    unsafe fn download_later(&self, stream: Handle, from: u64, to: NonNull<u8>, bytes: usize) -> Result<()>;
    /// Copies within the device, between ranges that do not overlap.
    ///
    /// # Safety
    /// As [`Driver`] says.
    unsafe fn copy(&self, stream: Handle, from: u64, to: u64, bytes: usize) -> Result<()>;
    /// Sets every byte of a range.
    ///
    /// # Safety
    /// As [`Driver`] says.
    unsafe fn fill(&self, stream: Handle, to: u64, byte: u8, bytes: usize) -> Result<()>;
    /// Launches a kernel.
    ///
    /// # Safety
    /// The parameter must be what the entry expects, and its addresses and sizes must lie in live allocations: the checks of
    /// `src/kernels` see to it.
    unsafe fn launch(&self, stream: Handle, function: Handle, launch: &Launch) -> Result<()>;

    /// A stream of its own.
    fn stream(&self) -> Result<Handle>;
    /// The handle of a stream that somebody else made in the driver's context.
    fn foreign_stream(&self, stream: u64) -> Result<Handle> {
        Err(Error::device(
            &self.properties().name,
            format!(
                "it has no CUstreams, and so not {stream:#x}: make a stream of its own (Stream::new, wl_stream_create)"
            ),
        ))
    }
    /// Gives a stream back.
    ///
    /// # Safety
    /// As [`Driver`] says.
    unsafe fn drop_stream(&self, stream: Handle);
    /// Waits for everything on a stream.
    ///
    /// # Safety
    /// As [`Driver`] says.
    unsafe fn synchronize(&self, stream: Handle) -> Result<()>;

    /// A point in a stream's work, with its time.
    fn event(&self) -> Result<Handle>;
    /// Gives an event back.
    ///
    /// # Safety
    /// As [`Driver`] says.
    unsafe fn drop_event(&self, event: Handle);
    /// Sets the event at the end of what the stream has been given.
    ///
    /// # Safety
    /// As [`Driver`] says.
    unsafe fn record(&self, event: Handle, stream: Handle) -> Result<()>;
    /// Lets a stream go on only when an event has come.
    ///
    /// # Safety
    /// As [`Driver`] says.
    unsafe fn wait(&self, stream: Handle, event: Handle) -> Result<()>;
    /// Lets the host go on only when an event has come.
    ///
    /// # Safety
    /// As [`Driver`] says.
    unsafe fn synchronize_event(&self, event: Handle) -> Result<()>;
    /// Milliseconds from one recorded event to another. On the simulator, of the host's clock.
    ///
    /// # Safety
    /// As [`Driver`] says.
    unsafe fn elapsed_ms(&self, from: Handle, to: Handle) -> Result<f32>;

    /// From here on, what is enqueued on a stream is recorded and not run.
    ///
    /// # Safety
    /// As [`Driver`] says.
    unsafe fn begin_capture(&self, stream: Handle) -> Result<()>;
    /// Ends the recording and makes it a graph that can be run.
    ///
    /// # Safety
    /// As [`Driver`] says.
    unsafe fn end_capture(&self, stream: Handle) -> Result<Recorded>;
    /// Gives a graph back.
    ///
    /// # Safety
    /// As [`Driver`] says.
    unsafe fn drop_graph(&self, graph: Handle);
    /// Runs a graph.
    ///
    /// # Safety
    /// As [`Driver::launch`], for everything in the graph: what its launches address must still be there.
    unsafe fn launch_graph(&self, stream: Handle, graph: Handle) -> Result<()>;
}

/// What is used together is of one driver, as [`Driver`] demands: to another one its handles mean something else, or nothing.
fn together(one: &Arc<dyn Driver>, other: &Arc<dyn Driver>, what: &'static str) -> Result<()> {
    if Arc::ptr_eq(one, other) {
        return Ok(());
    }
    let [one, other] = [one, other].map(|driver| &driver.properties().name);
    Err(Error::argument(
        what,
        format!(
            "it is of another device ({other}) than the stream ({one}), or of the same one opened another time: use what one `open` gave"
        ),
    ))
}

/// Whether a library of one of these names can be loaded, or is already.
fn is_library_present(names: &[&str]) -> bool {
    // SAFETY: NVIDIA's run nothing of ours when they are loaded or let go.
    names.iter().any(|name| unsafe { libloading::Library::new(*name) }.is_ok())
}

/// Opens a device by the name that `--device` takes: `sim`, or `cuda` or `cuda:N` for the N-th GPU.
///
/// # Errors
/// [`Error::Argument`] for another name, [`Error::Device`] where there is no such GPU, no driver, or one that is too old.
pub fn open(name: &str) -> Result<Arc<dyn Driver>> {
    if name == "sim" {
        return Ok(Arc::new(Simulator::new(Policy::default())));
    }
    let ordinal = match name.strip_prefix("cuda") {
        Some("") => Some(0),
        Some(rest) => rest
            .strip_prefix(':')
            .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|number| number.parse().ok()),
        None => None,
    };
    match ordinal {
        Some(ordinal) => Ok(Arc::new(Cuda::new(ordinal)?)),
        None => Err(Error::argument(
            "device",
            format!("'{}'; supported are sim, cuda and cuda:N", crate::error::printable(name)),
        )),
    }
}

/// A family that is loaded, with the driver that it is loaded by.
#[derive(Clone)]
pub struct Module {
    driver: Arc<dyn Driver>,
    handle: Handle,
}

impl Module {
    /// Loads the kernels of a file.
    ///
    /// # Errors
    /// [`Error::Device`] if the device cannot run them.
    pub fn load(driver: &Arc<dyn Driver>, family: &Family) -> Result<Self> {
        Ok(Module { handle: driver.load(family)?, driver: driver.clone() })
    }

    /// One of its entries.
    ///
    /// # Errors
    /// [`Error::Device`] if it has no such entry.
    pub fn function(&self, entry: &'static str) -> Result<Function> {
        // SAFETY: this driver's, and there as long as it.
        let handle = unsafe { self.driver.function(self.handle, entry) }?;
        Ok(Function { handle, driver: self.driver.clone() })
    }
}

/// An entry of a [`Module`], ready for any launch on a stream of the same driver, which it keeps.
#[derive(Clone)]
pub struct Function {
    driver: Arc<dyn Driver>,
    handle: Handle,
}

impl Function {
    /// CTAs of it that one multiprocessor holds at a time.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn resident(&self, threads: u32, shared_bytes: u32) -> Result<u32> {
        // SAFETY: this driver's, and there as long as it.
        unsafe { self.driver.resident(self.handle, threads, shared_bytes) }
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Function({:#x})", self.handle.0)
    }
}

/// Device memory; given back when it is dropped.
pub struct Buffer {
    driver: Arc<dyn Driver>,
    address: u64,
    bytes: usize,
}

impl Buffer {
    /// Allocates `bytes`, aligned to 256. What they hold is undefined until they are written.
    ///
    /// # Errors
    /// [`Error::Capacity`] if the device has no room, [`Error::Device`].
    pub fn new(driver: &Arc<dyn Driver>, bytes: usize) -> Result<Self> {
        // An empty buffer has an address, too: kernels are given none that points nowhere.
        let address = driver.allocate(bytes.max(1))?;
        Ok(Buffer { driver: driver.clone(), address, bytes })
    }

    /// A buffer that holds `data`.
    ///
    /// # Errors
    /// As [`Buffer::new`].
    pub fn from_slice<T: bytemuck::NoUninit>(stream: &Stream, data: &[T]) -> Result<Self> {
        let mut buffer = Buffer::new(&stream.driver, size_of_val(data))?;
        stream.upload(&mut buffer.view_mut(), data)?;
        Ok(buffer)
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it, to read.
    pub fn view(&self) -> View<'_> {
        View { address: self.address, bytes: self.bytes, buffer: PhantomData }
    }

    /// All of it, to write, beside views to read: for memory that kernels pass on to each other.
    pub fn view_to_share(&self) -> ViewMut<'_> {
        ViewMut { address: self.address, bytes: self.bytes, buffer: PhantomData }
    }

    /// All of it, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        ViewMut { address: self.address, bytes: self.bytes, buffer: PhantomData }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: this driver's, and used by nothing any more.
        unsafe { self.driver.free(self.address) };
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({:#x}, {} bytes)", self.address, self.bytes)
    }
}

/// A range of device memory that a kernel reads.
#[derive(Clone, Copy, Debug)]
pub struct View<'b> {
    address: u64,
    bytes: usize,
    buffer: PhantomData<&'b Buffer>,
}

/// A range of device memory that a kernel writes.
#[derive(Debug)]
pub struct ViewMut<'b> {
    address: u64,
    bytes: usize,
    buffer: PhantomData<&'b mut Buffer>,
}

impl<'b> View<'b> {
    /// A range that was not allocated here, as a CUdeviceptr and its size.
    ///
    /// # Safety
    /// The range must stay allocated on the device for as long as work that uses it may run.
    pub unsafe fn from_raw(address: u64, bytes: usize) -> Self {
        View { address, bytes, buffer: PhantomData }
    }

    /// A part of it, in bytes.
    ///
    /// # Panics
    /// If the range does not lie within it.
    pub fn slice(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.bytes, "{range:?} of {} bytes", self.bytes);
        View { address: self.address + range.start as u64, bytes: range.len(), buffer: PhantomData }
    }

    /// Device address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<'b> ViewMut<'b> {
    /// A range that was not allocated here, as a CUdeviceptr and its size.
    ///
    /// # Safety
    /// The range must stay allocated on the device for as long as work that uses it may run, and nothing else may use it at that time.
    pub unsafe fn from_raw(address: u64, bytes: usize) -> Self {
        ViewMut { address, bytes, buffer: PhantomData }
    }

    /// A part of it, in bytes.
    ///
    /// # Panics
    /// If the range does not lie within it.
    pub fn slice(&mut self, range: Range<usize>) -> ViewMut<'_> {
        assert!(range.start <= range.end && range.end <= self.bytes, "{range:?} of {} bytes", self.bytes);
        ViewMut { address: self.address + range.start as u64, bytes: range.len(), buffer: PhantomData }
    }

    /// A part of it, in bytes, for as long as all of it.
    ///
    /// # Panics
    /// If the range does not lie within it.
    pub fn part(self, range: Range<usize>) -> ViewMut<'b> {
        assert!(range.start <= range.end && range.end <= self.bytes, "{range:?} of {} bytes", self.bytes);
        ViewMut { address: self.address + range.start as u64, bytes: range.len(), buffer: PhantomData }
    }

    /// Two parts of it, in bytes.
    ///
    /// # Panics
    /// If the ranges do not lie within it, or overlap.
    pub fn parts(self, first: Range<usize>, second: Range<usize>) -> (ViewMut<'b>, ViewMut<'b>) {
        assert!(first.end <= second.start || second.end <= first.start, "{first:?} and {second:?} overlap");
        let all = |range| self.copied().part(range);
        (all(first), all(second))
    }

    /// The caller sees to it that no byte is written through both.
    fn copied(&self) -> ViewMut<'b> {
        ViewMut { address: self.address, bytes: self.bytes, buffer: PhantomData }
    }

    /// The same range, to read.
    pub fn view(&self) -> View<'_> {
        View { address: self.address, bytes: self.bytes, buffer: PhantomData }
    }

    /// Device address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Work that happens in order.
pub struct Stream {
    driver: Arc<dyn Driver>,
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
