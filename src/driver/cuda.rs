//! A GPU, through the driver API (libcuda, which is looked for when the first GPU is opened).
//!
//! Handles are the driver's own pointers. Sections named here are of NVIDIA's CUDA driver API reference, 13.0.
//!
//! - Uploads go through pinned memory of ours, because a copy from pageable memory is neither sure to have read it
//!   when the call returns nor sure not to wait for the stream ("API synchronization behavior"). `upload` waits only
//!   when all of that memory is on its way.
//! - Allocations are cuMemAlloc's: any stream may use them at once. cuMemFree only "may" wait for work that uses
//!   them, so `free` waits for the context first. Buffers are made and dropped at the start and the end of a run, not
//!   between launches.
//! - A context with a stream in capture cannot be waited for, so what is freed meanwhile is given back when the last
//!   capture has ended.
//! - Captures are relaxed: they may end on another thread, and allocating beside them is allowed. Nothing that is
//!   recorded here depends on an allocation.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CStr, CString, c_void},
    ptr::{self, NonNull},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    thread,
};

use cudarc::driver::{
    DriverError, result,
    sys::{
        self, CUcontext, CUdevice, CUdevice_attribute as DeviceAttribute, CUevent,
        CUevent_flags as EventFlags, CUevent_record_flags as EventRecordFlags,
        CUevent_wait_flags as EventWaitFlags, CUfunction, CUfunction_attribute as FunctionAttribute,
        CUgraphExec, CUlaunchAttribute, CUlaunchAttributeID as LaunchAttribute, CUlaunchAttributeValue,
        CUmodule, CUresult as Code, CUstream,
    },
};

use super::{
    Driver, Family, Handle, Launch, Products, Properties, Recorded, cublaslt::CublasLt, is_library_present,
};
use crate::{
    error::{Error, Result},
    kernels::{CUDA_VERSION, FAMILIES},
};

/// The functions called here are those of CUDA 13.0, as cuDriverGetVersion counts.
const OLDEST_CUDA: i32 = 13000;
/// The first driver package that has them.
const OLDEST_PACKAGE: &str = "580.65.06";
/// Its names, of which cudarc takes the first that is there.
const LIBRARY: [&str; 3] = ["libcuda.so", "libcuda.so.1", "nvcuda.dll"];
/// `mma` with bf16, cp.async.
const OLDEST_CAPABILITY: (u32, u32) = (8, 0);
/// Programmatic dependent launch came with Hopper.
const PROGRAMMATIC_CAPABILITY: (u32, u32) = (9, 0);

/// PTX from which kernels have their waits, as CU_FUNC_ATTRIBUTE_PTX_VERSION counts.
const PROGRAMMATIC_PTX: i32 = 90;

/// Pinned memory for uploads: pieces enough that DMA of some goes on while others are filled. One core fills them at some 10 GB/s, a fifth of
/// what PCIe 5 takes, so that large uploads have several, each with a ring of pieces.
const RINGS: usize = 6;
const PIECES: usize = 8;
const PIECE_BYTES: usize = 256 << 10;
/// From so many bytes on an upload is worth the making of threads.
const MANY_BYTES: usize = 16 << 20;

type Answer<T> = std::result::Result<T, DriverError>;

/// A GPU.
pub struct Cuda {
    /// Its name on the command line.
    name: String,
    ordinal: usize,
    device: CUdevice,
    /// The device's primary context: the one that the runtime API and other libraries use.
    context: CUcontext,
    properties: Properties,
    /// Whether it lets kernels begin early.
    programmatic: bool,
    /// Functions that may not, sorted: those of PTX for older GPUs do not wait for the kernels before them. Others may begin while one of
    /// them runs: it gives no leave, and so has ended by then.
    waitless: RwLock<Vec<u64>>,
    staging: Mutex<Vec<Ring>>,
    /// Of the context, so shared by all that open the same GPU.
    captures: &'static Mutex<Captures>,
    /// Held while an executable graph is used: "graph objects are not internally synchronized" ("Graph object thread
    /// safety").
    graphs: Mutex<()>,
    modules: Mutex<Vec<CUmodule>>,
}

/// Pinned memory that uploads pass through, piece by piece in turn.
struct Ring {
    memory: *mut u8,
    /// Of each piece, the end of the last copy out of it.
    copied: Vec<CUevent>,
    next: usize,
}

// SAFETY: pinned memory and events belong to no thread.
unsafe impl Send for Ring {}

/// Captures that have begun in a context.
#[derive(Default)]
struct Captures {
    streams: BTreeSet<u64>,
    /// What is to be freed when they have ended.
    freed: Vec<u64>,
}

/// By GPU. They stay for good; a process has few.
static CAPTURES: Mutex<BTreeMap<CUdevice, &'static Mutex<Captures>>> = Mutex::new(BTreeMap::new());

// SAFETY: the driver API may be called from any thread, and contexts, modules and events may be shared by them;
// graphs, which may not, and the pinned memory are behind mutexes. Every call makes the context current on its own
// thread first.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

impl Cuda {
    /// The GPU with that number, as the driver counts (CUDA_VISIBLE_DEVICES selects).
    ///
    /// # Errors
    /// [`Error::Device`] if there is no driver, one that is older than the kernels, no such GPU, or one below compute
    /// capability 8.0.
    pub fn new(ordinal: usize) -> Result<Cuda> {
        let name = format!("cuda:{ordinal}");
        let refuse = |reason: String| Error::device(&name, reason);
        let failed = |what: &str, e: DriverError| match e.0 {
            Code::CUDA_ERROR_OUT_OF_MEMORY => no_room(&name, what),
            _ => refuse(format!("{what}: {}", words(e))),
        };
        // Without the library the first call of cudarc panics.
        if !is_library_present(&LIBRARY) {
            let advice = "run on a machine with one, or on the device sim";
            return Err(refuse(format!("no NVIDIA driver: libcuda.so.1 cannot be loaded; {advice}")));
        }
        let mut version = 0;
        // SAFETY: writes one int, and may be called before anything else.
        unsafe { sys::cuDriverGetVersion(&mut version) }
            .result()
            .map_err(|e| failed("the driver's version", e))?;
        // A driver runs machine code that any CUDA of its major version has compiled.
        let compiled = CUDA_VERSION as i32;
        let oldest = OLDEST_CUDA.max(compiled / 1000 * 1000);
        if version < oldest {
            let package = if oldest == OLDEST_CUDA { OLDEST_PACKAGE } else { "of that version" };
            return Err(refuse(format!(
                "its driver runs CUDA {} at most; the kernels need {}, so driver {package} or newer",
                cuda_version(version),
                cuda_version(oldest)
            )));
        }
        let count = match result::init() {
            Err(DriverError(Code::CUDA_ERROR_NO_DEVICE)) => 0,
            Err(e) => return Err(failed("starting the driver", e)),
            Ok(()) => result::device::get_count().map_err(|e| failed("counting GPUs", e))?,
        };
        let index = i32::try_from(ordinal).ok().filter(|index| *index < count);
        let index = index.ok_or_else(|| refuse(format!("there is no such GPU; the driver sees {count}")))?;
        let device = result::device::get(index).map_err(|e| failed("the GPU", e))?;
        let properties = properties(device).map_err(|e| failed("the GPU's properties", e))?;
        let (major, minor) = properties.capability;
        if properties.capability < OLDEST_CAPABILITY {
            return Err(refuse(format!(
                "{} has compute capability {major}.{minor}; the kernels need {}.{} or higher",
                properties.name, OLDEST_CAPABILITY.0, OLDEST_CAPABILITY.1
            )));
        }
        if version < compiled && !has_machine_code(properties.capability) {
            return Err(refuse(format!(
                "its driver runs CUDA {} at most, and so no PTX of CUDA {}, by which the kernels were compiled without machine code \
                 for {major}.{minor}: update the driver, or build with WARPLOOM_CUDA_ARCHS={major}{minor}",
                cuda_version(version),
                cuda_version(compiled)
            )));
        }
        // SAFETY: the device is the driver's. Released in drop.
        let context = unsafe { result::primary_ctx::retain(device) };
        let context = context.map_err(|e| failed("making a context", e))?;
        let cuda = Cuda {
            name,
            ordinal,
            device,
            context,
            programmatic: properties.capability >= PROGRAMMATIC_CAPABILITY,
            waitless: RwLock::default(),
            properties,
            staging: Mutex::default(),
            captures: lock(&CAPTURES).entry(device).or_insert_with(|| Box::leak(Box::default())),
            graphs: Mutex::default(),
            modules: Mutex::default(),
        };
        cuda.call("allocating pinned memory", || {
            let mut rings = lock(&cuda.staging);
            (0..RINGS).try_for_each(|_| Ring::add_to(&mut rings))
        })?;
        Ok(cuda)
    }

    /// Whether a function waits for the kernels before it.
    fn waits(&self, function: Handle) -> bool {
        let waitless = self.waitless.read().unwrap_or_else(PoisonError::into_inner);
        waitless.binary_search(&function.0).is_err()
    }

    /// Calls the driver in the context, and says what was attempted if it fails.
    fn call<T>(&self, what: &str, work: impl FnOnce() -> Answer<T>) -> Result<T> {
        self.bound(work).map_err(|e| self.failed(what, e))
    }

    /// Does `work` in the context, and leaves the thread in the one that it was in: what others do next on this thread
    /// would else go to this GPU. Both are reads and writes of thread-local memory.
    fn bound<T>(&self, work: impl FnOnce() -> Answer<T>) -> Answer<T> {
        struct Left(CUcontext);
        impl Drop for Left {
            fn drop(&mut self) {
                // SAFETY: it was current before.
                let _ = unsafe { result::ctx::set_current(self.0) };
            }
        }
        let current = result::ctx::get_current()?.unwrap_or(ptr::null_mut());
        if current == self.context {
            return work();
        }
        let _left = Left(current);
        // SAFETY: the context is retained for as long as `self` is.
        unsafe { result::ctx::set_current(self.context) }?;
        work()
    }

    /// Its name on the command line.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Does `work` in the context, which the libraries on top of the driver find current.
    pub(super) fn in_context<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        self.call("making the context current", || Ok(work()))
    }

    /// Calls one of the driver's functions that take a handle and nothing else.
    fn with<H, T>(&self, what: &str, handle: Handle, work: unsafe fn(*mut H) -> Answer<T>) -> Result<T> {
        // SAFETY: as `Driver` demands, the handle is this driver's and there; every method below passes a function
        // for its kind.
        self.call(what, || unsafe { work(handle.0 as *mut H) })
    }

    fn refused(&self, reason: String) -> Error {
        Error::device(&self.name, reason)
    }

    fn failed(&self, what: &str, e: DriverError) -> Error {
        if e.0 == Code::CUDA_ERROR_OUT_OF_MEMORY {
            return no_room(&self.name, what);
        }
        let mut reason = format!("{what}: {}", words(e));
        if is_sticky(e) {
            reason += "; a launch before this call went wrong, and the process's context is lost with it: start anew \
                       (the device sim or compute-sanitizer find the cause)";
        }
        Error::device(&self.name, reason)
    }

    /// Why the kernels of a file cannot run on this GPU, and how to compile them for it.
    fn not_loaded(&self, family: &Family, e: DriverError) -> Error {
        let what = format!("loading the kernels of {}.cu", family.name);
        let (major, minor) = self.properties.capability;
        // From 9.0 on, what a generation has of its own is compiled in with an `a`.
        let arch = format!("{major}{minor}{}", if major >= 9 { "a" } else { "" });
        let compiled: BTreeSet<_> =
            family.entries.iter().flat_map(|entry| entry.compiled).map(|compiled| compiled.arch).collect();
        let compiled = match compiled.len() {
            0 => "nothing that is known".into(),
            _ => Vec::from_iter(compiled).join(", "),
        };
        let advice = format!("build with WARPLOOM_CUDA_ARCHS={arch} for this GPU");
        let advice = match e.0 {
            Code::CUDA_ERROR_NO_BINARY_FOR_GPU => {
                format!("they were compiled for {compiled}, and this GPU is {major}.{minor}; {advice}")
            }
            Code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | Code::CUDA_ERROR_INVALID_PTX
            | Code::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
            | Code::CUDA_ERROR_JIT_COMPILATION_DISABLED => format!(
                "they were compiled for {compiled}, and the driver cannot compile their PTX for {major}.{minor}; \
                 {advice}, or update the driver"
            ),
            _ => return self.failed(&what, e),
        };
        Error::device(&self.name, format!("{what}: {}: {advice}", words(e)))
    }

    fn is_capturing(&self, stream: Handle) -> Result<bool> {
        let status = self.with("asking whether a stream captures", stream, result::stream::is_capturing)?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Refuses a copy whose host memory would be gone when a graph of it ran.
    fn refuse_in_capture(&self, stream: Handle, what: &str) -> Result<()> {
        if self.is_capturing(stream)? {
            let reason = format!("{what} cannot be captured: do it before or after");
            return Err(Error::device(&self.name, reason));
        }
        Ok(())
    }

    /// Gives memory back once the GPU has done all it was given. If that cannot be waited for, the memory is kept:
    /// the context is lost, or someone else captures in it.
    fn give_back(&self, address: u64) {
        let _ = self.bound(|| {
            result::ctx::synchronize()?;
            // SAFETY: an allocation of `allocate`, as `Driver` demands, and nothing uses it any more.
            unsafe { result::free_sync(address) }
        });
    }

    /// Notes that a stream captures no more.
    fn captured(&self, captures: &mut Captures, stream: Handle) {
        captures.streams.remove(&stream.0);
        if captures.streams.is_empty() {
            captures.freed.drain(..).for_each(|address| self.give_back(address));
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let captures = lock(self.captures);
        let idle = self.bound(|| match captures.streams.is_empty() {
            true => result::ctx::synchronize(),
            false => Err(DriverError(Code::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)),
        });
        lock(&self.staging).drain(..).for_each(Ring::free);
        // Kernels may still run where that could not be waited for; the context keeps their modules then.
        for module in lock(&self.modules).drain(..).filter(|_| idle.is_ok()) {
            // SAFETY: loaded once by `load`, and the GPU is idle.
            let _ = unsafe { result::module::unload(module) };
        }
        // SAFETY: retained once by `new`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

impl Driver for Cuda {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn ordinal(&self) -> Option<usize> {
        Some(self.ordinal)
    }

    fn products(self: Arc<Self>) -> Result<Arc<dyn Products>> {
        Ok(Arc::new(CublasLt::new(self)?))
    }

    fn load(&self, family: &Family) -> Result<Handle> {
        // Aligned, and with a zero at its end, which PTX text needs and machine code does not mind.
        let mut image = vec![0_u64; family.fatbin.len() / 8 + 1];
        bytemuck::cast_slice_mut(&mut image)[..family.fatbin.len()].copy_from_slice(family.fatbin);
        // Not cuLibraryLoadData: with eager loading that loads into every context of the process, also those of other
        // GPUs.
        // SAFETY: a whole image from the build; the driver keeps a copy.
        let module = self.bound(|| unsafe { result::module::load_data(image.as_ptr().cast()) });
        let module = module.map_err(|e| self.not_loaded(family, e))?;
        lock(&self.modules).push(module);
        Ok(Handle(module as u64))
    }

    unsafe fn function(&self, module: Handle, entry: &'static str) -> Result<Handle> {
        let name = CString::new(entry).map_err(|_| {
            Error::argument("entry", format!("'{}' holds a zero", crate::error::printable(entry)))
        })?;
        self.call(&format!("looking up {entry}"), || {
            // SAFETY: a module of this driver, as `Driver` demands; functions live as long as their module.
            unsafe {
                let function = result::module::get_function(module.0 as CUmodule, name)?;
                // Loaded now rather than at its first launch, which may be recorded.
                sys::cuFuncLoad(function).result()?;
                let fixed = FunctionAttribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
                let dynamic = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                let fixed = result::function::get_function_attribute(function, fixed)?;
                let limit = self.properties.shared_bytes as i32 - fixed;
                result::function::set_function_attribute(function, dynamic, limit)?;
                // Ten times the version that it was compiled for first.
                let virtual_arch = FunctionAttribute::CU_FUNC_ATTRIBUTE_PTX_VERSION;
                let waits =
                    result::function::get_function_attribute(function, virtual_arch)? >= PROGRAMMATIC_PTX;
                let mut waitless = self.waitless.write().unwrap_or_else(PoisonError::into_inner);
                if let (false, Err(at)) = (waits, waitless.binary_search(&(function as u64))) {
                    waitless.insert(at, function as u64);
                }
                Ok(Handle(function as u64))
            }
        })
    }

    unsafe fn resident(&self, function: Handle, threads: u32, shared_bytes: u32) -> Result<u32> {
        use result::occupancy::max_active_block_per_multiprocessor as resident;
        let (function, threads, bytes) = (function.0 as CUfunction, threads as i32, shared_bytes as usize);
        // SAFETY: a function of this driver, as `Driver` demands.
        let ctas = self.call("a function's occupancy", || unsafe { resident(function, threads, bytes) })?;
        Ok(ctas as u32)
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        // SAFETY: its content is undefined, as `Driver` says. Aligned to 256 bytes (CUDA programming guide, "Device
        // Memory Accesses").
        let address = self.bound(|| unsafe { result::malloc_sync(bytes) });
        address.map_err(|e| match e.0 {
            Code::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) =
                    self.bound(result::mem_get_info).unwrap_or((0, self.properties.memory_bytes as usize));
                Error::Capacity {
                    what: format!("a buffer on {} ({})", self.name, self.properties.name),
                    needed: format!("{bytes} bytes"),
                    available: format!("{free} of its {total} bytes are free"),
                }
            }
            _ => self.failed(&format!("allocating {bytes} bytes"), e),
        })
    }

    fn free_memory(&self) -> Result<u64> {
        self.call("asking for free memory", result::mem_get_info).map(|(free, _)| free as u64)
    }

    unsafe fn free(&self, address: u64) {
        // Held throughout, so that no capture begins while the context is waited for.
        let mut captures = lock(self.captures);
        if captures.streams.is_empty() {
            self.give_back(address);
        } else {
            captures.freed.push(address);
        }
    }

    unsafe fn upload(&self, stream: Handle, to: u64, data: &[u8]) -> Result<()> {
        self.refuse_in_capture(stream, "an upload")?;
        let mut rings = lock(&self.staging);
        let used = if data.len() < MANY_BYTES { 1 } else { rings.len() };
        let copy = |first: usize, ring: &mut Ring| {
            self.call("an upload", || {
                for (i, piece) in data.chunks(PIECE_BYTES).enumerate().skip(first).step_by(used) {
                    // SAFETY: `Driver` demands that stream and range are there.
                    unsafe { ring.copy(piece, to + (i * PIECE_BYTES) as u64, stream.0 as CUstream) }?;
                }
                Ok(())
            })
        };
        if let [ring] = &mut rings[..used] {
            return copy(0, ring);
        }
        thread::scope(|scope| {
            let copy = &copy;
            let rings = rings.iter_mut().enumerate();
            let spawn = |(first, ring)| {
                let thread = thread::Builder::new().spawn_scoped(scope, move || copy(first, ring));
                thread.map_err(|error| self.refused(format!("an upload: no thread for it: {error}")))
            };
            let copies: Vec<_> = rings.map(spawn).collect();
            let done = |copy: Result<thread::ScopedJoinHandle<Result<()>>>| {
                copy?.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            copies.into_iter().try_for_each(done)
        })
    }

    unsafe fn download(&self, stream: Handle, from: u64, data: &mut [u8]) -> Result<()> {
        self.refuse_in_capture(stream, "a download")?;
        if data.is_empty() {
            // SAFETY: the caller's promise.
            return unsafe { self.synchronize(stream) };
        }
        self.call("a download", || {
            let stream = stream.0 as CUstream;
            // SAFETY: `Driver` demands that stream and range are there; `data` is borrowed until the copy is done.
            unsafe {
                result::memcpy_dtoh_async(data, from, stream)?;
                result::stream::synchronize(stream)
            }
        })
    }

    fn pin(&self, bytes: usize) -> Result<NonNull<u8>> {
        let pinned = self.bound(|| {
            // SAFETY: freed in `unpin`; as many bytes are written as there are.
            unsafe {
                let memory = result::malloc_host(bytes, 0)?.cast::<u8>();
                ptr::write_bytes(memory, 0, bytes);
                Ok(memory)
            }
        });
        let what = format!("allocating {bytes} bytes of page-locked memory");
        let memory = pinned.map_err(|e| self.failed(&what, e))?;
        NonNull::new(memory).ok_or_else(|| Error::device(&self.name, format!("{what}: there is none")))
    }

    unsafe fn unpin(&self, memory: NonNull<u8>, _bytes: usize) {
        // SAFETY: the caller's promise.
        let _ = self.bound(|| unsafe { result::free_host(memory.as_ptr().cast()) });
    }

    unsafe fn download_later(&self, stream: Handle, from: u64, to: NonNull<u8>, bytes: usize) -> Result<()> {
        self.refuse_in_capture(stream, "a download")?;
        self.call("a download", || {
            // SAFETY: the caller's promise.
            unsafe {
                let to = std::slice::from_raw_parts_mut(to.as_ptr(), bytes);
                result::memcpy_dtoh_async(to, from, stream.0 as CUstream)
            }
        })
    }

    unsafe fn copy(&self, stream: Handle, from: u64, to: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: `Driver` demands that stream and ranges are there.
        self.call("a copy", || unsafe { result::memcpy_dtod_async(to, from, bytes, stream.0 as CUstream) })
    }

    unsafe fn fill(&self, stream: Handle, to: u64, byte: u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: `Driver` demands that stream and range are there.
        self.call("a fill", || unsafe { result::memset_d8_async(to, byte, bytes, stream.0 as CUstream) })
    }

    unsafe fn launch(&self, stream: Handle, function: Handle, launch: &Launch) -> Result<()> {
        let Launch { grid, block, cluster: [x, y, z], .. } = *launch;
        let mut attributes = vec![];
        if [x, y, z] != [1; 3] {
            let id = LaunchAttribute::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            let cluster_dim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z };
            let value = CUlaunchAttributeValue { clusterDim: cluster_dim };
            attributes.push(CUlaunchAttribute { id, pad: [0; 4], value });
        }
        // A permission: without it, the launch begins when those before it have ended.
        if launch.programmatic && self.programmatic && self.waits(function) {
            let id = LaunchAttribute::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            let value = CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
            attributes.push(CUlaunchAttribute { id, pad: [0; 4], value });
        }
        let config = sys::CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: block[0],
            blockDimY: block[1],
            blockDimZ: block[2],
            sharedMemBytes: launch.shared_bytes,
            hStream: stream.0 as CUstream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // One parameter, which the call copies.
        let mut parameters = [launch.parameter.as_ptr().cast_mut().cast::<c_void>()];
        let function = function.0 as CUfunction;
        let launched = self.bound(|| {
            // SAFETY: the caller's promise; what `config` points at outlives the call.
            unsafe { sys::cuLaunchKernelEx(&config, function, parameters.as_mut_ptr(), ptr::null_mut()) }
                .result()
        });
        launched.map_err(|e| {
            let what = format!(
                "launching {} with {grid:?} CTAs of {block:?} threads in clusters of {:?}, {} bytes of shared memory",
                name_of(function),
                launch.cluster,
                launch.shared_bytes
            );
            self.failed(&what, e)
        })
    }

    fn stream(&self) -> Result<Handle> {
        // Non-blocking: nothing here is ordered by the default stream.
        let stream =
            self.call("making a stream", || result::stream::create(result::stream::StreamKind::NonBlocking))?;
        Ok(Handle(stream as u64))
    }

    fn foreign_stream(&self, stream: u64) -> Result<Handle> {
        Ok(Handle(stream))
    }

    unsafe fn drop_stream(&self, stream: Handle) {
        // What it was given still runs to its end (cuStreamDestroy).
        let _ = self.with("dropping a stream", stream, result::stream::destroy);
        let mut captures = lock(self.captures);
        if captures.streams.contains(&stream.0) {
            self.captured(&mut captures, stream);
        }
    }

    unsafe fn synchronize(&self, stream: Handle) -> Result<()> {
        self.with("waiting for a stream", stream, result::stream::synchronize)
    }

    fn event(&self) -> Result<Handle> {
        let event = self.call("making an event", || result::event::create(EventFlags::CU_EVENT_DEFAULT))?;
        Ok(Handle(event as u64))
    }

    unsafe fn drop_event(&self, event: Handle) {
        let _ = self.with("dropping an event", event, result::event::destroy);
    }

    unsafe fn record(&self, event: Handle, stream: Handle) -> Result<()> {
        // In a capture: a node that sets the event whenever the graph runs, so that parts of a graph can be timed.
        let flags = match self.is_capturing(stream)? {
            true => EventRecordFlags::CU_EVENT_RECORD_EXTERNAL,
            false => EventRecordFlags::CU_EVENT_RECORD_DEFAULT,
        };
        self.call("recording an event", || {
            let (event, stream) = (event.0 as CUevent, stream.0 as CUstream);
            // SAFETY: handles of this driver, as `Driver` demands.
            unsafe { sys::cuEventRecordWithFlags(event, stream, flags as u32) }.result()
        })
    }

    unsafe fn wait(&self, stream: Handle, event: Handle) -> Result<()> {
        let flags = match self.is_capturing(stream)? {
            true => EventWaitFlags::CU_EVENT_WAIT_EXTERNAL,
            false => EventWaitFlags::CU_EVENT_WAIT_DEFAULT,
        };
        self.call("letting a stream wait", || {
            // SAFETY: handles of this driver, as `Driver` demands.
            unsafe { result::stream::wait_event(stream.0 as CUstream, event.0 as CUevent, flags) }
        })
    }

    unsafe fn synchronize_event(&self, event: Handle) -> Result<()> {
        self.with("waiting for an event", event, result::event::synchronize)
    }

    unsafe fn elapsed_ms(&self, from: Handle, to: Handle) -> Result<f32> {
        self.call("the time between events", || {
            // SAFETY: events of this driver, as `Driver` demands, made with their time.
            unsafe { result::event::elapsed(from.0 as CUevent, to.0 as CUevent) }
        })
    }

    unsafe fn begin_capture(&self, stream: Handle) -> Result<()> {
        let mut captures = lock(self.captures);
        self.call("beginning a capture", || {
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
            // SAFETY: a stream of this driver, as `Driver` demands.
            unsafe { result::stream::begin_capture(stream.0 as CUstream, mode) }
        })?;
        captures.streams.insert(stream.0);
        Ok(())
    }

    unsafe fn end_capture(&self, stream: Handle) -> Result<Recorded> {
        let mut captures = lock(self.captures);
        let graph = self.with("ending a capture", stream, result::stream::end_capture);
        // Also after an error: it ends the capture, unless there was none.
        self.captured(&mut captures, stream);
        let graph = graph?;
        if graph.is_null() {
            // "If capture was invalidated, […] a NULL graph will be returned" (cuStreamEndCapture).
            let e = DriverError(Code::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
            return Err(self.failed("ending a capture", e));
        }
        let free = || result::mem_get_info().map_or(0, |(free, _)| free as u64);
        let (executable, nodes, bytes) = self.call("making a graph", || {
            // SAFETY: the graph is whole and nobody else's; what is made of it does without it. Without room for them, nodes are only
            // counted.
            unsafe {
                let (before, mut nodes) = (free(), 0);
                let counted = sys::cuGraphGetNodes(graph, ptr::null_mut(), &mut nodes).result();
                let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
                result::graph::destroy(graph)?;
                counted?;
                Ok((executable?, nodes, before.saturating_sub(free())))
            }
        })?;
        let handle = Handle(executable as u64);
        // Or the first launch would do it.
        let uploaded = self.call("uploading a graph", || {
            // SAFETY: both are there, and nobody else has the graph yet.
            unsafe { result::graph::upload(executable, stream.0 as CUstream) }
        });
        // SAFETY: made above, and nobody else has it.
        uploaded.inspect_err(|_| unsafe { self.drop_graph(handle) })?;
        Ok(Recorded { graph: handle, nodes, bytes })
    }

    unsafe fn drop_graph(&self, graph: Handle) {
        let _serial = lock(&self.graphs);
        // One that runs is "freed asynchronously on completion" (cuGraphExecDestroy).
        let _ = self.with("dropping a graph", graph, result::graph::exec_destroy);
    }

    unsafe fn launch_graph(&self, stream: Handle, graph: Handle) -> Result<()> {
        let _serial = lock(&self.graphs);
        self.call("launching a graph", || {
            // SAFETY: handles of this driver, as `Driver` demands, and the caller's promise of what the graph
            // addresses.
            unsafe { result::graph::launch(graph.0 as CUgraphExec, stream.0 as CUstream) }
        })
    }
}

impl Ring {
    /// Allocates one, in the current context.
    fn add_to(rings: &mut Vec<Ring>) -> Answer<()> {
        // Without CU_MEMHOSTALLOC_WRITECOMBINED, which has been seen to halve the speed of uploads where CPU and GPU
        // are coherent.
        // SAFETY: freed once, in `free`.
        let memory = unsafe { result::malloc_host(PIECES * PIECE_BYTES, 0) }?.cast();
        rings.push(Ring { memory, copied: Vec::with_capacity(PIECES), next: 0 });
        let Some(ring) = rings.last_mut() else { return Ok(()) };
        while ring.copied.len() < PIECES {
            ring.copied.push(result::event::create(EventFlags::CU_EVENT_DISABLE_TIMING)?);
        }
        Ok(())
    }

    /// Copies at most a piece's size to the device.
    ///
    /// # Safety
    /// The context must be current, the stream one of its, not in capture, and the range allocated.
    unsafe fn copy(&mut self, data: &[u8], to: u64, stream: CUstream) -> Answer<()> {
        let (memory, copied) = (self.memory.wrapping_add(self.next * PIECE_BYTES), self.copied[self.next]);
        self.next = (self.next + 1) % PIECES;
        // SAFETY: once the event has come (at once if it was never recorded), nothing reads the piece; it holds as
        // many bytes.
        unsafe {
            result::event::synchronize(copied)?;
            ptr::copy_nonoverlapping(data.as_ptr(), memory, data.len());
            result::memcpy_htod_async(to, std::slice::from_raw_parts(memory, data.len()), stream)?;
            result::event::record(copied, stream)
        }
    }

    /// Gives it back once its copies are done, in the current context.
    fn free(self) {
        let mut idle = true;
        for event in self.copied {
            // SAFETY: made in `add_to`.
            idle &= unsafe { result::event::synchronize(event).and(result::event::destroy(event)) }.is_ok();
        }
        if idle {
            // SAFETY: made in `add_to`, and nothing reads it any more.
            let _ = unsafe { result::free_host(self.memory.cast()) };
        }
    }
}

fn properties(device: CUdevice) -> Answer<Properties> {
    use DeviceAttribute as A;
    // SAFETY: the device is the driver's.
    let attribute =
        |which| unsafe { result::device::get_attribute(device, which) }.map(|value| value.max(0) as u32);
    Ok(Properties {
        name: result::device::get_name(device)?,
        capability: (
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        // SAFETY: the device is the driver's.
        memory_bytes: unsafe { result::device::total_mem(device) }? as u64,
        l2_bytes: attribute(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.into(),
    })
}

/// What CUDA_ERROR_OUT_OF_MEMORY says: of the GPU's memory, or of the host's.
fn no_room(device: &str, what: &str) -> Error {
    Error::Capacity {
        what: format!("device {device}: {what}"),
        needed: "memory".into(),
        available:
            "the GPU or the host has too little left: give back what is not needed, also in other processes"
                .into(),
    }
}

/// The entry's name.
fn name_of(function: CUfunction) -> String {
    let mut name = ptr::null();
    // SAFETY: a function of the driver's; its name lives as long as its module.
    match unsafe { sys::cuFuncGetName(&mut name, function) }.result() {
        // SAFETY: the driver's text.
        Ok(()) if !name.is_null() => unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(),
        _ => "a kernel".into(),
    }
}

/// Whether the driver says of an error that it leaves the process "in an inconsistent state" in which all further
/// work fails ("Data types used by CUDA driver", CUresult).
fn is_sticky(e: DriverError) -> bool {
    matches!(
        e.0,
        Code::CUDA_ERROR_ECC_UNCORRECTABLE
            | Code::CUDA_ERROR_CONTAINED
            | Code::CUDA_ERROR_ILLEGAL_ADDRESS
            | Code::CUDA_ERROR_LAUNCH_TIMEOUT
            | Code::CUDA_ERROR_ASSERT
            | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
            | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | Code::CUDA_ERROR_MISALIGNED_ADDRESS
            | Code::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | Code::CUDA_ERROR_INVALID_PC
            | Code::CUDA_ERROR_LAUNCH_FAILED
            | Code::CUDA_ERROR_TENSOR_MEMORY_LEAK
    )
}

/// The driver's name for an error and what it says of it.
fn words(e: DriverError) -> String {
    let said = e.error_string().ok().map(|text| format!(" ({})", text.to_string_lossy()));
    format!("{:?}{}", e.0, said.unwrap_or_default())
}

/// Whether every kernel was compiled for an architecture whose machine code this one runs: the same major version, a minor one that
/// is no higher.
fn has_machine_code((major, minor): (u32, u32)) -> bool {
    let runs = |arch: &str| {
        let number: Option<u32> = arch.trim_end_matches(['a', 'f']).parse().ok();
        // What a generation has of its own runs on no later one.
        let later = !arch.ends_with('a');
        let runs = |number| number / 10 == major && (number % 10 == minor || later && number % 10 < minor);
        number.is_some_and(runs)
    };
    let mut entries = FAMILIES.iter().flat_map(|family| family.entries);
    entries.all(|entry| entry.compiled.iter().any(|compiled| runs(compiled.arch)))
}

fn cuda_version(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing of ours panics with one held, and what they guard is whole after every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
