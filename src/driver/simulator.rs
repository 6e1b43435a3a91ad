//! The simulator as a device: the kernels' PTX, executed and checked on the CPU.

use std::{
    collections::HashMap,
    fmt,
    panic::resume_unwind,
    ptr::NonNull,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use half::{bf16, f16};
use ptxsim::{Argument, Counters, Delivery, Device, Finding, Gpu, Kind, Loaded, Module, Schedule};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::{Driver, Family, Handle, Launch, ProductShape, Products, Properties, Recorded, Way};
use crate::{
    dtype::Dtype,
    error::{Error, Result},
    kernels::{FAMILIES, manifest},
};

/// Most memory in use when a launch is rehearsed.
const REHEARSED_BYTES: u64 = 64 << 20;

/// How launches are simulated. The default is one of the orders that a GPU might choose; tests try others.
#[derive(Clone, Debug)]
pub struct Policy {
    /// When asynchronous copies arrive.
    pub delivery: Delivery,
    /// Which warp runs next.
    pub schedule: Schedule,
    /// Whether to look for races, unwritten values, missing waits and partial masks. Bounds, alignment and deadlocks are
    /// always checked.
    pub checked: bool,
    /// Whether to count the distinct sectors that a launch touches without those checks, too.
    pub count_sectors: bool,
    /// The GPU whose sizes the device has.
    pub gpu: Gpu,
    /// Most device memory in bytes, taken from the host as it is allocated.
    pub memory_bytes: u64,
    /// Whether the first launch of each entry in a geometry is rehearsed: run three times before, the second and the third time
    /// beginning before the others have ended ([`Launch::programmatic`]), which finds what a kernel does before it has waited for those
    /// before it, and ways by which it ends without having waited. Memory is then as it was. That takes copies of all of it, and is left
    /// out where more than 64 MiB are allocated.
    pub rehearsed: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            delivery: Delivery::Lazy,
            schedule: Schedule::InOrder,
            checked: true,
            count_sectors: false,
            gpu: Gpu::H100,
            memory_bytes: 16 << 30,
            rehearsed: false,
        }
    }
}

/// What one launch did.
#[derive(Clone, Debug)]
pub struct LaunchReport {
    /// The entry launched.
    pub entry: &'static str,
    /// The parameter's bytes.
    pub parameter: Vec<u8>,
    /// CTAs along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a CTA along x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a CTA in bytes.
    pub shared_bytes: u32,
    /// Whether it might have begun before those before it had ended ([`Launch::programmatic`]).
    pub programmatic: bool,
    /// Exact counts.
    pub counters: Counters,
}

/// How often an entry was launched in one geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launched {
    /// The entry.
    pub entry: &'static str,
    /// CTAs along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a CTA along x, y, z.
    pub block: [u32; 3],
    /// Launches.
    pub count: u64,
    /// What was found wrong in them; such a launch is an error.
    pub findings: u64,
}

/// A device that is simulated. Streams run one after the other, each launch to its end when it is enqueued.
pub struct Simulator {
    policy: Policy,
    properties: Properties,
    state: Mutex<State>,
    launches: AtomicU64,
    instructions: AtomicU64,
}

/// Entry, grid and block.
type Shape = (&'static str, [u32; 3], [u32; 3]);

struct State {
    device: Device,
    next_handle: u64,
    modules: HashMap<Handle, Loaded>,
    functions: HashMap<Handle, (Handle, &'static str)>,
    events: HashMap<Handle, Option<Instant>>,
    /// What streams in capture have recorded.
    captures: HashMap<Handle, Vec<Command>>,
    graphs: HashMap<Handle, Vec<Command>>,
    /// Launches, and findings in them.
    launched: HashMap<Shape, (u64, u64)>,
    /// Some while reports are asked for.
    reports: Option<Vec<LaunchReport>>,
}

/// What a stream can be given.
#[derive(Clone)]
enum Command {
    Copy { from: u64, to: u64, bytes: usize },
    Fill { to: u64, byte: u8, bytes: usize },
    Launch { module: Handle, entry: &'static str, launch: ptxsim::Launch },
    Record { event: Handle },
}

/// So many were made: each has addresses of its own, as GPUs have, so that memory of one that is given to another is found.
static OPENED: AtomicU16 = AtomicU16::new(0);

impl Simulator {
    /// A device without memory in use.
    pub fn new(policy: Policy) -> Self {
        let gpu = &policy.gpu;
        let properties = Properties {
            name: format!("simulated {}", gpu.name),
            capability: (9, 0),
            multiprocessors: gpu.sm_count,
            shared_bytes: gpu.shared_bytes as u32,
            memory_bytes: policy.memory_bytes,
            l2_bytes: 0,
        };
        let state = State {
            device: Device::numbered(
                OPENED.fetch_add(1, Ordering::Relaxed),
                policy.gpu.clone(),
                policy.memory_bytes,
            ),
            next_handle: 1,
            modules: HashMap::new(),
            functions: HashMap::new(),
            events: HashMap::new(),
            captures: HashMap::new(),
            graphs: HashMap::new(),
            launched: HashMap::new(),
            reports: None,
        };
        Simulator {
            policy,
            properties,
            state: Mutex::new(state),
            launches: AtomicU64::new(0),
            instructions: AtomicU64::new(0),
        }
    }

    /// What has been launched so far, in no order.
    pub fn launched(&self) -> Vec<Launched> {
        let state = self.state();
        let launched = |(key, counts): (&Shape, &(u64, u64))| {
            let (&(entry, grid, block), &(count, findings)) = (key, counts);
            Launched { entry, grid, block, count, findings }
        };
        state.launched.iter().map(launched).collect()
    }

    /// Runs `work` and returns what it launched, in order.
    ///
    /// # Errors
    /// What `work` returns.
    pub fn reports(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<LaunchReport>> {
        let before = self.state().reports.replace(vec![]);
        let done = work();
        let reports = std::mem::replace(&mut self.state().reports, before);
        done.map(|()| reports.unwrap_or_default())
    }

    /// Makes a range of memory unwritten again: NaN in every type, and a finding if a launch reads it.
    ///
    /// # Errors
    /// [`Error::Device`] if the range does not lie in one allocation.
    pub fn poison(&self, range: &mut super::ViewMut) -> Result<()> {
        self.state().device.poison(range.address(), range.bytes()).map_err(refused)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Runs a command, or records it if the stream is in capture.
    fn enqueue(&self, stream: Handle, command: Command) -> Result<()> {
        let mut state = self.state();
        if let Some(recorded) = state.captures.get_mut(&stream) {
            recorded.push(command);
            return Ok(());
        }
        self.execute(&mut state, &command)
    }

    fn execute(&self, state: &mut State, command: &Command) -> Result<()> {
        match command {
            Command::Copy { bytes: 0, .. } | Command::Fill { bytes: 0, .. } => Ok(()),
            Command::Copy { from, to, bytes } => {
                let data = state.device.read(*from, *bytes).map_err(refused)?;
                state.device.write(*to, &data).map_err(refused)
            }
            Command::Fill { to, byte, bytes } => {
                // Nothing is written of a range that is none.
                state.device.is_written(*to, *bytes).map_err(refused)?;
                // Piece by piece: a weight may be larger than what the host has left.
                const PIECE: usize = 1 << 20;
                let piece = vec![*byte; PIECE.min(*bytes)];
                (0..*bytes).step_by(PIECE).try_for_each(|at| {
                    let piece = &piece[..PIECE.min(bytes - at)];
                    state.device.write(to + at as u64, piece).map_err(refused)
                })
            }
            Command::Launch { module, entry, launch } => self.execute_launch(state, *module, entry, launch),
            Command::Record { event } => {
                state.events.insert(*event, Some(Instant::now()));
                Ok(())
            }
        }
    }

    fn execute_launch(
        &self,
        state: &mut State,
        module: Handle,
        entry: &'static str,
        launch: &ptxsim::Launch,
    ) -> Result<()> {
        let loaded = state.modules.get(&module).ok_or_else(|| unknown("module"))?;
        let failed = |e| Error::device("sim", format!("launching {entry}: {e}"));
        let first = !state.launched.contains_key(&(entry, launch.grid, launch.block));
        if self.policy.rehearsed && first && state.device.allocated() <= REHEARSED_BYTES {
            let memory = state.device.save();
            for programmatic in [false, true, true] {
                let rehearsal = ptxsim::Launch { programmatic, ..launch.clone() };
                let report = crew(|| state.device.launch(loaded, entry, &rehearsal))?.map_err(failed)?;
                if !report.findings.is_empty() {
                    return Err(Error::device(
                        "sim",
                        describe(&state.device, entry, launch, &report.findings),
                    ));
                }
            }
            state.device.restore(memory);
        }
        let report = crew(|| state.device.launch(loaded, entry, launch))?.map_err(failed)?;
        let counts = state.launched.entry((entry, launch.grid, launch.block)).or_default();
        counts.0 += 1;
        counts.1 += report.findings.len() as u64;
        self.launches.fetch_add(1, Ordering::Relaxed);
        self.instructions.fetch_add(report.counters.instructions, Ordering::Relaxed);
        if !report.findings.is_empty() {
            return Err(Error::device("sim", describe(&state.device, entry, launch, &report.findings)));
        }
        if let Some(reports) = &mut state.reports {
            reports.push(LaunchReport {
                entry,
                // Every entry has one.
                parameter: launch.arguments.iter().flat_map(|argument| argument.0.clone()).collect(),
                grid: launch.grid,
                block: launch.block,
                shared_bytes: launch.shared_bytes,
                programmatic: launch.programmatic,
                counters: report.counters,
            });
        }
        Ok(())
    }
}

/// What stands for a library of matrix products.
struct HostProducts(Arc<Simulator>);

struct HostProduct {
    simulator: Arc<Simulator>,
    shape: ProductShape,
}

impl Products for HostProducts {
    fn name(&self) -> &'static str {
        "the host"
    }

    fn ways(&self, shape: &ProductShape, most: usize) -> Result<Vec<Box<dyn Way>>> {
        let way = HostProduct { simulator: self.0.clone(), shape: *shape };
        let supported = matches!(shape.dtype, Dtype::Bf16 | Dtype::F16) && most > 0;
        Ok(if supported { vec![Box::new(way)] } else { vec![] })
    }
}

impl Way for HostProduct {
    unsafe fn launch(&self, stream: Handle, x: u64, weight: u64, out: u64) -> Result<()> {
        let &ProductShape { dtype, rows, inputs, features, x_stride, weight_stride, out_stride, add } =
            &self.shape;
        let mut state = self.simulator.state();
        if state.captures.contains_key(&stream) {
            return Err(Error::device("sim", "a product of the host cannot be captured"));
        }
        let to_f32 = |bytes: &[u8]| -> Vec<f32> {
            let half = |pair: &[u8]| u16::from_le_bytes([pair[0], pair[1]]);
            let number = |pair| match dtype {
                Dtype::F16 => f16::from_bits(half(pair)).to_f32(),
                _ => bf16::from_bits(half(pair)).to_f32(),
            };
            bytes.chunks_exact(2).map(number).collect()
        };
        let read = |device: &mut Device, address: u64, width: usize| -> Result<Vec<f32>> {
            Ok(to_f32(&device.read(address, 2 * width).map_err(refused)?))
        };
        let at = |address: u64, row: usize, stride: usize| address + 2 * (row * stride) as u64;
        let device = &mut state.device;
        let row_of_weights = |n| read(device, at(weight, n, weight_stride), inputs);
        let weights: Vec<_> = (0..features).map(row_of_weights).collect::<Result<_>>()?;
        for row in 0..rows {
            let (x, to) = (read(device, at(x, row, x_stride), inputs)?, at(out, row, out_stride));
            let before = if add { read(device, to, features)? } else { vec![0.0; features] };
            let dot = |weight: &Vec<f32>| x.iter().zip(weight).map(|(x, w)| x * w).sum::<f32>();
            let sums = weights.iter().zip(before).map(|(weight, before)| dot(weight) + before);
            let bytes: Vec<u8> = match dtype {
                Dtype::F16 => sums.flat_map(|y| f16::from_f32(y).to_le_bytes()).collect(),
                _ => sums.flat_map(|y| bf16::from_f32(y).to_le_bytes()).collect(),
            };
            device.write(to, &bytes).map_err(refused)?;
        }
        Ok(())
    }
}

impl State {
    fn handle(&mut self) -> Handle {
        self.next_handle += 1;
        Handle(self.next_handle)
    }
}

impl Driver for Simulator {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn simulated(&self) -> Option<(u64, u64)> {
        Some((self.launches.load(Ordering::Relaxed), self.instructions.load(Ordering::Relaxed)))
    }

    fn products(self: Arc<Self>) -> Result<Arc<dyn Products>> {
        Ok(Arc::new(HostProducts(self)))
    }

    fn load(&self, family: &Family) -> Result<Handle> {
        let other = other_ptx(family.name)?;
        let module = Module::parse(other.as_deref().unwrap_or(family.ptx))
            .map_err(|e| Error::device("sim", format!("PTX of {}: {e}", family.name)))?;
        let mut state = self.state();
        let loaded = state.device.load(module).map_err(refused)?;
        let handle = state.handle();
        state.modules.insert(handle, loaded);
        Ok(handle)
    }

    unsafe fn function(&self, module: Handle, entry: &'static str) -> Result<Handle> {
        let mut state = self.state();
        let loaded = state.modules.get(&module).ok_or_else(|| unknown("module"))?;
        loaded.parameters(entry).map_err(|e| Error::device("sim", format!("{entry}: {e}")))?;
        let handle = state.handle();
        state.functions.insert(handle, (module, entry));
        Ok(handle)
    }

    unsafe fn resident(&self, _function: Handle, threads: u32, shared_bytes: u32) -> Result<u32> {
        Ok(self.policy.gpu.resident(threads, u64::from(shared_bytes)) as u32
            / self.policy.gpu.sm_count.max(1))
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.state().device.allocate(bytes as u64).map_err(|e| Error::Capacity {
            what: "a buffer on the simulated device".into(),
            needed: format!("{bytes} bytes"),
            available: e.to_string(),
        })
    }

    fn free_memory(&self) -> Result<u64> {
        Ok(self.policy.memory_bytes.saturating_sub(self.state().device.allocated()))
    }

    unsafe fn free(&self, address: u64) {
        // Launches have ended when they return, so nothing uses it.
        let _ = self.state().device.free(address);
    }

    unsafe fn upload(&self, stream: Handle, to: u64, data: &[u8]) -> Result<()> {
        let mut state = self.state();
        if state.captures.contains_key(&stream) {
            return Err(Error::device("sim", "an upload cannot be captured: do it before or after"));
        }
        match data.is_empty() {
            true => Ok(()),
            false => state.device.write(to, data).map_err(refused),
        }
    }

    unsafe fn download(&self, stream: Handle, from: u64, data: &mut [u8]) -> Result<()> {
        let mut state = self.state();
        if state.captures.contains_key(&stream) {
            return Err(Error::device("sim", "a download waits for its stream and cannot be captured"));
        }
        if !data.is_empty() {
            data.copy_from_slice(&state.device.read(from, data.len()).map_err(refused)?);
        }
        Ok(())
    }

    fn pin(&self, bytes: usize) -> Result<NonNull<u8>> {
        let words = bytes.div_ceil(8);
        let mut memory = Vec::new();
        if memory.try_reserve_exact(words).is_err() {
            return Err(Error::Capacity {
                what: "page-locked memory".into(),
                needed: format!("{bytes} bytes"),
                available: "the host has no room for them".into(),
            });
        }
        memory.resize(words, 0u64);
        Ok(NonNull::from(Box::leak(memory.into_boxed_slice())).cast())
    }

    unsafe fn unpin(&self, memory: NonNull<u8>, bytes: usize) {
        let memory = std::ptr::slice_from_raw_parts_mut(memory.cast::<u64>().as_ptr(), bytes.div_ceil(8));
        // SAFETY: leaked by `pin` with as many numbers, says the caller.
        drop(unsafe { Box::from_raw(memory) });
    }

    unsafe fn download_later(&self, stream: Handle, from: u64, to: NonNull<u8>, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise; all that the stream was given has been done.
        unsafe { self.download(stream, from, std::slice::from_raw_parts_mut(to.as_ptr(), bytes)) }
    }

    unsafe fn copy(&self, stream: Handle, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.enqueue(stream, Command::Copy { from, to, bytes })
    }

    unsafe fn fill(&self, stream: Handle, to: u64, byte: u8, bytes: usize) -> Result<()> {
        self.enqueue(stream, Command::Fill { to, byte, bytes })
    }

    unsafe fn launch(&self, stream: Handle, function: Handle, launch: &Launch) -> Result<()> {
        let (module, entry) = *self.state().functions.get(&function).ok_or_else(|| unknown("function"))?;
        let launch = ptxsim::Launch {
            grid: launch.grid,
            block: launch.block,
            cluster: launch.cluster,
            shared_bytes: launch.shared_bytes,
            arguments: vec![Argument(launch.parameter.to_vec())],
            programmatic: launch.programmatic,
            checked: self.policy.checked,
            count_sectors: self.policy.count_sectors,
            delivery: self.policy.delivery,
            schedule: self.policy.schedule,
            ..Default::default()
        };
        self.enqueue(stream, Command::Launch { module, entry, launch })
    }

    fn stream(&self) -> Result<Handle> {
        Ok(self.state().handle())
    }

    unsafe fn drop_stream(&self, stream: Handle) {
        self.state().captures.remove(&stream);
    }

    unsafe fn synchronize(&self, stream: Handle) -> Result<()> {
        let mut state = self.state();
        if state.captures.contains_key(&stream) {
            return Err(Error::device("sim", "a stream that is being captured cannot be waited for"));
        }
        state.device.synchronise();
        Ok(())
    }

    fn event(&self) -> Result<Handle> {
        let mut state = self.state();
        let handle = state.handle();
        state.events.insert(handle, None);
        Ok(handle)
    }

    unsafe fn drop_event(&self, event: Handle) {
        self.state().events.remove(&event);
    }

    unsafe fn record(&self, event: Handle, stream: Handle) -> Result<()> {
        self.enqueue(stream, Command::Record { event })
    }

    unsafe fn wait(&self, _stream: Handle, event: Handle) -> Result<()> {
        // Whatever was enqueued before has run.
        self.state().events.get(&event).map(|_| ()).ok_or_else(|| unknown("event"))
    }

    unsafe fn synchronize_event(&self, event: Handle) -> Result<()> {
        // SAFETY: no stream is looked at; of the event, the caller's promise.
        unsafe { self.wait(Handle(0), event) }
    }

    unsafe fn elapsed_ms(&self, from: Handle, to: Handle) -> Result<f32> {
        let state = self.state();
        let time = |event: &Handle| {
            let time = state.events.get(event).ok_or_else(|| unknown("event"))?;
            time.ok_or_else(|| Error::device("sim", "the event has not been recorded"))
        };
        Ok(time(&to)?.saturating_duration_since(time(&from)?).as_secs_f32() * 1e3)
    }

    unsafe fn begin_capture(&self, stream: Handle) -> Result<()> {
        let mut state = self.state();
        if state.captures.contains_key(&stream) {
            return Err(Error::device("sim", "the stream is being captured already"));
        }
        state.captures.insert(stream, vec![]);
        Ok(())
    }

    unsafe fn end_capture(&self, stream: Handle) -> Result<Recorded> {
        let mut state = self.state();
        let recorded = state
            .captures
            .remove(&stream)
            .ok_or_else(|| Error::device("sim", "the stream is not being captured"))?;
        let (graph, nodes) = (state.handle(), recorded.len());
        state.graphs.insert(graph, recorded);
        Ok(Recorded { graph, nodes, bytes: 0 })
    }

    unsafe fn drop_graph(&self, graph: Handle) {
        self.state().graphs.remove(&graph);
    }

    unsafe fn launch_graph(&self, stream: Handle, graph: Handle) -> Result<()> {
        let mut state = self.state();
        let commands = state.graphs.get(&graph).ok_or_else(|| unknown("graph"))?.clone();
        if let Some(recorded) = state.captures.get_mut(&stream) {
            recorded.extend(commands);
            return Ok(());
        }
        commands.iter().try_for_each(|command| self.execute(&mut state, command))
    }
}

/// The PTX of a family in the folder that WARPLOOM_PTX names, if there is one: kernels can be tried without building this crate again.
fn other_ptx(family: &str) -> Result<Option<String>> {
    let Some(folder) = std::env::var_os("WARPLOOM_PTX") else { return Ok(None) };
    let path = std::path::Path::new(&folder).join(family).with_extension("ptx");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, e)),
    }
}

/// Findings with the lines of the kernel's file that they name.
fn describe(device: &Device, entry: &str, launch: &ptxsim::Launch, findings: &[Finding]) -> String {
    const SHOWN: usize = 4;
    let family = FAMILIES.iter().find(|family| family.entries.iter().any(|e| e.name == entry));
    let file = family.map_or(String::new(), |family| format!("{}.cu, ", family.name));
    let mut text = format!("{entry}, or what it was given, is wrong:");
    for finding in findings.iter().take(SHOWN) {
        text += &format!("\n  {} at {file}line {}: {}", finding.kind.name(), finding.line, finding.message);
    }
    if findings.len() > SHOWN {
        text += &format!("\n  and {} findings more", findings.len() - SHOWN);
    }
    // Which of the arguments it was, the kernel's code does not know.
    let parameter = launch.arguments.first().map_or(&[][..], |argument| &argument.0);
    let ranges: Vec<_> = manifest::addresses(entry, parameter)
        .into_iter()
        .filter_map(|(name, address)| {
            let (begin, bytes) = device.allocation(address)?;
            Some((name, address, (begin + bytes - address) as usize))
        })
        .collect();
    let is = |kind: Kind| findings.iter().any(|finding| finding.kind == kind);
    if is(Kind::Uninitialised) {
        let first = |(name, address, bytes): &(String, u64, usize)| {
            let unwritten = device.unwritten(*address, *bytes).ok()??;
            Some(format!("{name} from byte {}", unwritten - address))
        };
        let unwritten: Vec<_> = ranges.iter().filter_map(first).collect();
        text += &format!("\n  not written yet, to the end of their allocations: {}", unwritten.join(", "));
    }
    if is(Kind::OutOfBounds) {
        let place = |(name, address, bytes): &(String, u64, usize)| format!("{name} {bytes} at {address:#x}");
        let places: Vec<_> = ranges.iter().map(place).collect();
        text += &format!("\n  bytes of its arguments to the end of their allocations: {}", places.join(", "));
    }
    text
}

/// Runs a launch on threads that do nothing else. The device is locked meanwhile, and a thread of rayon's that waits for others takes
/// up whatever its pool has to do, so perhaps a launch on the same device, which would wait for itself: this one only waits.
fn crew<T: Send>(launch: impl FnOnce() -> T + Send) -> Result<T> {
    // With the process that its threads are of: one that was forked off has none of them.
    static CREW: Mutex<Option<(u32, Arc<ThreadPool>)>> = Mutex::new(None);
    let refused = |e: &dyn fmt::Display| {
        Error::device(
            "sim",
            format!("it has no threads to run on: {e}; let the process have more (ulimit -u)"),
        )
    };
    let (worker, process) = (rayon::current_thread_index().is_some(), std::process::id());
    let mut kept = CREW.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = match &*kept {
        Some((of, pool)) if *of == process => pool.clone(),
        _ => {
            // As many as the caller's own pool has; 0 stands for what rayon takes.
            let threads = if worker { rayon::current_num_threads() } else { 0 };
            let pool =
                Arc::new(ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| refused(&e))?);
            // A pool of another process cannot be ended.
            std::mem::forget(kept.replace((process, pool.clone())));
            pool
        }
    };
    drop(kept);
    if !worker {
        return Ok(pool.install(launch));
    }
    thread::scope(|scope| {
        let waiting =
            thread::Builder::new().spawn_scoped(scope, || pool.install(launch)).map_err(|e| refused(&e))?;
        waiting.join().map_err(|panic| resume_unwind(panic))
    })
}

fn refused(e: ptxsim::Error) -> Error {
    Error::device("sim", e.to_string())
}

fn unknown(what: &str) -> Error {
    Error::device("sim", format!("there is no such {what} on this device"))
}
