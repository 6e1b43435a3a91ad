//! What a launch is given and what it gives back.

use crate::{
    check::Finding,
    counters::Counters,
    error::{Error, Result},
    exec::TraceLine,
    kernel::Kernel,
    numerics::matrix::Exact,
};

/// When the bytes of an asynchronous copy arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// At once: what hardware may do at best.
    Eager,
    /// As late as the waits permit; until then the destination holds NaN.
    Lazy,
    /// Each at a time that the seed chooses.
    Random(u64),
}

/// Which warp runs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Warps and CTAs by number.
    InOrder,
    /// From the last to the first.
    Reversed,
    /// In an order and for turns that the seed chooses, shared memory at the least alignment that is asked for.
    Random(u64),
}

/// One argument as its bytes, in the layout of the parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument(pub Vec<u8>);

macro_rules! argument {
    ($($ty:ty),*) => {
        $(impl From<$ty> for Argument {
            fn from(value: $ty) -> Self {
                Argument(value.to_le_bytes().to_vec())
            }
        })*
    };
}
argument!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

/// A launch, as cuLaunchKernel takes it, and how it is simulated.
#[derive(Clone, Debug)]
pub struct Launch {
    /// CTAs along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a CTA along x, y, z.
    pub block: [u32; 3],
    /// CTAs of a cluster; only `[1, 1, 1]` until the Hopper device model.
    pub cluster: [u32; 3],
    /// Dynamic shared memory of a CTA in bytes.
    pub shared_bytes: u32,
    /// One for each parameter of the entry.
    pub arguments: Vec<Argument>,
    /// Programmatic dependent launch: it may begin before the launches before it have ended.
    pub programmatic: bool,
    /// Look for races, unwritten values, missing waits and partial masks. Bounds, alignment and deadlocks are always
    /// checked.
    pub checked: bool,
    /// Counts the distinct sectors of device memory without the checks, too.
    pub count_sectors: bool,
    /// When asynchronous copies arrive.
    pub delivery: Delivery,
    /// Which warp runs next.
    pub schedule: Schedule,
    /// Tensor-core arithmetic: f32 accumulation for None.
    pub exact: Option<Exact>,
    /// Warp instructions after which the launch is given up.
    pub step_limit: u64,
    /// Records the instructions of one warp: CTA, warp, and how many at most.
    pub trace: Option<(u32, u32, usize)>,
}

impl Default for Launch {
    fn default() -> Self {
        Launch {
            grid: [1; 3],
            block: [32, 1, 1],
            cluster: [1; 3],
            shared_bytes: 0,
            arguments: vec![],
            programmatic: false,
            checked: true,
            count_sectors: false,
            delivery: Delivery::Eager,
            schedule: Schedule::InOrder,
            exact: None,
            step_limit: 10_000_000_000,
            trace: None,
        }
    }
}

/// What a launch did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// What is wrong with it; empty for a clean launch.
    pub findings: Vec<Finding>,
    /// Exact counts.
    pub counters: Counters,
    /// What it printed.
    pub output: String,
    /// Values of `cudaGraphSetConditional`, in order: handle and value.
    pub conditions: Vec<(u64, u32)>,
    /// The recorded instructions.
    pub trace: Vec<TraceLine>,
    /// Warp and lane executions of each source line (file number, line), in order.
    pub profile: Vec<LineProfile>,
}

/// How often a line ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineProfile {
    /// Number of the source file and line there, or 0 and a PTX line.
    pub source: (u32, u32),
    /// Warp instructions.
    pub instructions: u64,
    /// Summed over lanes.
    pub lanes: u64,
}

impl Launch {
    /// Refuses what a GPU would refuse.
    pub(crate) fn check(&self, kernel: &Kernel, gpu: &crate::Gpu) -> Result<()> {
        let refuse = |message: String| Err(Error::Launch(message));
        let limits =
            [("grid", self.grid, [i32::MAX as u32, 65535, 65535]), ("block", self.block, [1024, 1024, 64])];
        for (what, sizes, limit) in limits {
            for i in 0..3 {
                if sizes[i] == 0 || sizes[i] > limit[i] {
                    return refuse(format!("{what} {sizes:?}: each size is 1 to {limit:?}"));
                }
            }
        }
        let threads: u64 = self.block.iter().map(|n| u64::from(*n)).product();
        if threads > 1024 {
            return refuse(format!("a block of {threads} threads; 1024 is the most"));
        }
        if self.cluster != [1; 3] || kernel.required_cluster.is_some_and(|c| c != [1; 3]) {
            let cluster = kernel.required_cluster.filter(|_| self.cluster == [1; 3]).unwrap_or(self.cluster);
            return refuse(format!("clusters of {cluster:?} CTAs are not supported; only [1, 1, 1] is"));
        }
        if let Some(required) = kernel.required_threads
            && required != self.block
        {
            return refuse(format!("{} requires blocks of {required:?}, not {:?}", kernel.name, self.block));
        }
        if let Some(most) = kernel.max_threads {
            let most: u64 = most.iter().map(|n| u64::from(*n)).product();
            if threads > most {
                return refuse(format!(
                    "{} takes blocks of at most {most} threads, not {threads}",
                    kernel.name
                ));
            }
        }
        let registers = u64::from(kernel.words) * 128 + u64::from(kernel.doubles) * 256;
        let warps = threads.div_ceil(32);
        if registers * warps > 4 << 30 {
            return refuse(format!(
                "the registers of {warps} warps take {} MiB of the host",
                (registers * warps) >> 20
            ));
        }
        let shared = kernel.shared_bytes + u64::from(self.shared_bytes);
        if shared > gpu.shared_bytes {
            return refuse(format!(
                "{shared} bytes of shared memory (static {}, dynamic {}); {} has {}",
                kernel.shared_bytes, self.shared_bytes, gpu.name, gpu.shared_bytes
            ));
        }
        if self.arguments.len() != kernel.parameters.len() {
            return refuse(format!(
                "{} takes {} parameters, {} are given",
                kernel.name,
                kernel.parameters.len(),
                self.arguments.len()
            ));
        }
        for (i, (argument, parameter)) in self.arguments.iter().zip(&kernel.parameters).enumerate() {
            if argument.0.len() != parameter.bytes as usize {
                return refuse(format!(
                    "parameter {i} of {} has {} bytes, the argument {}",
                    kernel.name,
                    parameter.bytes,
                    argument.0.len()
                ));
            }
        }
        Ok(())
    }
}
