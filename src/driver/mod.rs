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
mod memory;
mod module;
mod occupancy;
mod products;
mod simulator;
mod stream;

use std::{ptr::NonNull, sync::Arc};

pub use cuda::Cuda;
pub use memory::{Buffer, View, ViewMut};
pub use module::{Function, Module};
pub use products::{ProductShape, Products, Way};
pub use simulator::{LaunchReport, Launched, Policy, Simulator};
pub use stream::{Download, Event, Graph, Stream};

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
