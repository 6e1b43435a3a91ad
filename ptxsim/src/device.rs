//! A GPU as programs see it: memory, modules, launches on one stream.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use crate::{
    decode,
    error::{Error, Result},
    exec::{Context, Footprint, grid},
    kernel::{Kernel, Value},
    launch::{Launch, LineProfile, Report, Schedule},
    memory::{DEVICE_BYTES, FUNCTION_BASE, GLOBAL_BASE, arena::Arena, sectors::Sectors, view::merge},
    parse::{Module, Space},
    roofline::Gpu,
};

/// Shared memory begins here in its window: the first kilobyte is the system's.
const SHARED_START: u64 = 1024;
/// Bytes of the workspace by which the CTAs of a cooperative launch synchronise.
const WORKSPACE: u64 = 256;

/// A simulated GPU with one stream: launches and copies happen in order.
///
/// # Example
/// ```
/// # fn main() -> ptxsim::Result<()> {
/// let ptx = "
/// .version 8.0
/// .target sm_80
/// .address_size 64
/// .visible .entry double(.param .u64 data) {
///     .reg .b32 %r<3>;
///     .reg .b64 %rd<4>;
///     ld.param.u64 %rd1, [data];
///     mov.u32 %r1, %tid.x;
///     mul.wide.u32 %rd2, %r1, 4;
///     add.s64 %rd3, %rd1, %rd2;
///     ld.global.u32 %r2, [%rd3];
///     add.s32 %r2, %r2, %r2;
///     st.global.u32 [%rd3], %r2;
///     ret;
/// }";
/// let mut device = ptxsim::Device::new(ptxsim::Gpu::A100);
/// let module = device.load(ptxsim::Module::parse(ptx)?)?;
/// let data = device.allocate(128)?;
/// device.write(data, &[1; 128])?;
/// let launch = ptxsim::Launch { arguments: vec![data.into()], ..Default::default() };
/// let report = device.launch(&module, "double", &launch)?;
/// assert!(report.findings.is_empty());
/// assert_eq!(device.read(data, 128)?, [2; 128]);
/// assert_eq!(report.counters.global_load.sectors, 4);
/// # Ok(())
/// # }
/// ```
pub struct Device {
    arena: Arena,
    gpu: Gpu,
    launches: u64,
    /// What launches touched that may still run when a programmatic launch begins. One that released its dependents before it waited
    /// leaves those before it among them, and theirs.
    running: Footprint,
    /// What those of them touched that the launch's `griddepcontrol.wait` does not wait for: one between did not wait for them.
    uncovered: Footprint,
}

/// A device's memory at one time.
pub struct Memory(Arena);

/// A module on a device: its variables have addresses.
pub struct Loaded {
    module: Module,
    addresses: Vec<u64>,
    kernels: Mutex<HashMap<String, Arc<Kernel>>>,
}

impl Loaded {
    /// Address and bytes of a variable of the module, as cuModuleGetGlobal gives them.
    pub fn variable(&self, name: &str) -> Option<(u64, u64)> {
        let index = self.module.variables.iter().position(|v| v.name == name)?;
        let variable = &self.module.variables[index];
        matches!(variable.space, Space::Global | Space::Const)
            .then(|| (self.addresses[index], variable.bytes))
    }

    /// The module as parsed.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// Bytes of each parameter of an entry, in order.
    ///
    /// # Errors
    /// As for [`Device::launch`] when the entry cannot be decoded.
    pub fn parameters(&self, entry: &str) -> Result<Vec<u32>> {
        Ok(self.kernel(entry)?.parameters.iter().map(|p| p.bytes).collect())
    }

    fn kernel(&self, entry: &str) -> Result<Arc<Kernel>> {
        let mut kernels = self.kernels.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(kernel) = kernels.get(entry) {
            return Ok(kernel.clone());
        }
        let kernel = Arc::new(decode::kernel(&self.module, entry)?);
        kernels.insert(entry.into(), kernel.clone());
        Ok(kernel)
    }
}

impl Device {
    /// A device with the sizes of a named GPU and up to 16 GiB of memory, taken from the host as it is allocated.
    pub fn new(gpu: Gpu) -> Self {
        Device::with_memory(gpu, 16 << 30)
    }

    /// A device with so many bytes of memory at most.
    pub fn with_memory(gpu: Gpu, bytes: u64) -> Self {
        Device::numbered(0, gpu, bytes)
    }

    /// One of several devices, each with a number of its own: its memory, which has less than 2 TiB, has addresses that no other's has. A kernel that is
    /// given memory of another device then touches what is in no allocation, which is found.
    pub fn numbered(number: u16, gpu: Gpu, bytes: u64) -> Self {
        let base = GLOBAL_BASE + u64::from(number) * DEVICE_BYTES;
        Device {
            arena: Arena::new(base, bytes.min(DEVICE_BYTES)),
            gpu,
            launches: 0,
            running: Footprint::new(),
            uncovered: Footprint::new(),
        }
    }

    /// The GPU whose sizes it has.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Allocates bytes, aligned to 256. They hold NaN, and reading them before they are written is a finding.
    ///
    /// # Errors
    /// [`Error::Memory`] if the device or the host has no room.
    pub fn allocate(&mut self, bytes: u64) -> Result<u64> {
        self.arena.allocate(bytes)
    }

    /// Bytes of all allocations.
    pub fn allocated(&self) -> u64 {
        self.arena.allocated()
    }

    /// Frees an allocation.
    ///
    /// # Errors
    /// [`Error::Memory`] if the address is not the start of one.
    pub fn free(&mut self, address: u64) -> Result<()> {
        self.arena.free(address)
    }

    /// Copies from the host.
    ///
    /// # Errors
    /// [`Error::Memory`] if the range does not lie within one allocation.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<()> {
        self.synchronise();
        self.arena.write(address, data)
    }

    /// Copies to the host.
    ///
    /// # Errors
    /// [`Error::Memory`] if the range does not lie within one allocation, or the host has no room for the copy.
    pub fn read(&mut self, address: u64, bytes: usize) -> Result<Vec<u8>> {
        self.synchronise();
        let found = self.arena.read(address, bytes)?;
        let mut copy = Vec::new();
        copy.try_reserve_exact(bytes)
            .map_err(|_| Error::Memory(format!("the host has no room for a copy of {bytes} bytes")))?;
        copy.extend_from_slice(found);
        Ok(copy)
    }

    /// Whether the host or a kernel has written every byte of a range.
    ///
    /// # Errors
    /// [`Error::Memory`] if the range does not lie within one allocation.
    pub fn is_written(&self, address: u64, bytes: usize) -> Result<bool> {
        self.arena.is_written(address, bytes)
    }

    /// The first address of a range that neither the host nor a kernel has written; None if all of it was.
    ///
    /// # Errors
    /// [`Error::Memory`] if the range does not lie within one allocation.
    pub fn unwritten(&self, address: u64, bytes: usize) -> Result<Option<u64>> {
        self.arena.unwritten(address, bytes)
    }

    /// Address and size of the allocation around an address; None where there is none.
    pub fn allocation(&self, address: u64) -> Option<(u64, u64)> {
        self.arena.allocation(address)
    }

    /// Makes a range unwritten again.
    ///
    /// # Errors
    /// [`Error::Memory`] if the range does not lie within one allocation.
    pub fn poison(&mut self, address: u64, bytes: usize) -> Result<()> {
        self.synchronise();
        self.arena.poison(address, bytes)
    }

    /// All of its memory, to come back to: what is allocated, what it holds, and what has been written.
    pub fn save(&self) -> Memory {
        Memory(self.arena.clone())
    }

    /// Makes its memory what it was when `memory` was saved. Waits for every launch.
    pub fn restore(&mut self, memory: Memory) {
        self.synchronise();
        self.arena = memory.0;
    }

    /// Waits for every launch: none that follows can overlap them.
    pub fn synchronise(&mut self) {
        self.running.clear();
        self.uncovered.clear();
    }

    /// Places a module's variables in memory.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is no room, [`Error::Syntax`] if an initial value names what does not exist.
    pub fn load(&mut self, module: Module) -> Result<Loaded> {
        let mut addresses = vec![0; module.variables.len()];
        for (variable, address) in module.variables.iter().zip(&mut addresses) {
            if !matches!(variable.space, Space::Global | Space::Const) {
                continue;
            }
            *address = self.arena.allocate(variable.bytes)?;
            // Variables without an initial value are zero.
            let mut bytes = variable.init.clone();
            bytes.resize(variable.bytes as usize, 0);
            self.arena.write(*address, &bytes)?;
        }
        for (index, variable) in module.variables.iter().enumerate() {
            for link in &variable.links {
                let target = module.variables.iter().position(|v| v.name == link.symbol);
                let value = match target {
                    Some(target) => addresses[target].wrapping_add(link.addend),
                    None => match module.function(&link.symbol) {
                        Some(place) => FUNCTION_BASE + place as u64 * 16,
                        None => {
                            return Err(Error::syntax(
                                variable.line,
                                format!("{:?} is not declared", link.symbol),
                            ));
                        }
                    },
                };
                let at = addresses[index] + link.offset as u64;
                self.arena.write(at, &value.to_le_bytes()[..link.bytes.min(8)])?;
            }
        }
        Ok(Loaded { module, addresses, kernels: Mutex::default() })
    }

    /// Runs an entry to its end.
    ///
    /// What the kernel does wrong is in [`Report::findings`]; memory then holds what a simulator can make of it.
    ///
    /// # Errors
    /// [`Error::NoEntry`], [`Error::Syntax`] or [`Error::Unsupported`] if the entry cannot be decoded, [`Error::Launch`]
    /// for what a GPU would refuse too, [`Error::StepLimit`] if it does not end.
    pub fn launch(&mut self, module: &Loaded, entry: &str, launch: &Launch) -> Result<Report> {
        let kernel = module.kernel(entry)?;
        launch.check(&kernel, &self.gpu)?;
        let mut parameters = vec![0; kernel.parameter_bytes as usize];
        for (argument, parameter) in launch.arguments.iter().zip(&kernel.parameters) {
            let at = parameter.offset as usize;
            parameters[at..at + argument.0.len()].copy_from_slice(&argument.0);
        }
        // Code that needs more alignment than it asks for works by luck: the random schedule takes the luck away.
        let place = |at: u64, align: u64| {
            let at = at.next_multiple_of(align);
            match launch.schedule {
                Schedule::Random(_) if at.is_multiple_of(2 * align) => at + align,
                _ => at,
            }
        };
        let static_base = place(SHARED_START, kernel.shared_align);
        let static_end = static_base + kernel.shared_bytes;
        let dynamic_base =
            if kernel.shared_bytes == 0 { static_base } else { place(static_end, kernel.dynamic_align) };
        let shared_end = dynamic_base.max(static_end) + u64::from(launch.shared_bytes);
        if !launch.programmatic {
            self.synchronise();
        }
        let cooperative = kernel.preset_words.iter().any(|(_, value)| matches!(value, Value::Workspace(_)));
        let workspace = if cooperative { self.arena.allocate(WORKSPACE)? } else { 0 };
        if cooperative {
            self.arena.write(workspace, &[0; WORKSPACE as usize])?;
        }
        self.launches += 1;
        let context = Context {
            kernel: &kernel,
            parameters,
            grid: launch.grid,
            block: launch.block,
            static_base,
            dynamic_base,
            shared_end,
            global_base: self.arena.base,
            globals: module.addresses.clone(),
            grid_id: self.launches,
            workspace,
            sm_count: self.gpu.sm_count,
            checked: launch.checked,
            sectors: (launch.count_sectors && !launch.checked).then(|| Sectors::new(self.arena.bytes.len())),
            delivery: launch.delivery,
            schedule: launch.schedule,
            exact: launch.exact,
            step_limit: launch.step_limit,
            trace: launch.trace,
            overlap: (!self.running.is_empty()).then_some(&self.running),
            overlap_waited: (!self.uncovered.is_empty()).then_some(&self.uncovered),
        };
        let resident = self.gpu.resident(context.threads(), shared_end - static_base);
        let result = grid::run(&context, &mut self.arena, resident);
        if cooperative {
            self.arena.free(workspace)?;
        }
        let (outcome, footprint) = result?;
        let ctas: u64 = launch.grid.iter().map(|n| u64::from(*n)).product();
        let mut counters = outcome.counters;
        if launch.checked {
            counters.touched(&footprint);
        } else if let Some(sectors) = &context.sectors {
            counters.noted(sectors);
        }
        if outcome.waited != ctas {
            // When it has ended, those before it may still run.
            self.uncovered = self.running.clone();
        } else if !outcome.released_early {
            // When the next one begins, those that this one has waited for have ended.
            self.running = self.uncovered.clone();
        }
        add(&mut self.running, &footprint);
        counters.count(&kernel, &outcome.hits, &outcome.lanes);
        counters.ctas = ctas;
        counters.shared_bytes = kernel.shared_bytes + u64::from(launch.shared_bytes);
        let mut lines: BTreeMap<(u32, u32), (u64, u64)> = BTreeMap::new();
        for ((inst, hits), lanes) in kernel.code.iter().zip(&outcome.hits).zip(&outcome.lanes) {
            let source = if inst.source.1 != 0 { inst.source } else { (0, inst.line) };
            let line = lines.entry(source).or_default();
            line.0 += hits;
            line.1 += lanes;
        }
        let profile = lines
            .into_iter()
            .filter(|(_, (hits, _))| *hits > 0)
            .map(|(source, (instructions, lanes))| LineProfile { source, instructions, lanes })
            .collect();
        Ok(Report {
            findings: outcome.findings.report(&kernel.code),
            counters,
            output: outcome.output,
            conditions: outcome.conditions,
            trace: outcome.trace,
            profile,
        })
    }
}

/// Adds one launch's accesses to others'.
fn add(into: &mut Footprint, from: &Footprint) {
    for (page, touched) in from {
        match into.get_mut(page) {
            Some(there) => merge(there, touched),
            None => {
                into.insert(*page, touched.clone());
            }
        }
    }
}
