//! Running a kernel. [`grid`] shares CTAs out, [`cta`] schedules the warps of one, [`fragment`] the lanes of a warp, [`warp`]
//! executes instructions for 32 lanes;
//! `access`, `atomic`, `copies`, `sync`, `shuffle`, `matrix` and `calls` are the instructions that are more than a lane function.

mod access;
mod atomic;
mod calls;
mod copies;
mod cta;
mod fragment;
pub(crate) mod grid;
mod lanes;
mod matrix;
mod shuffle;
mod sync;
mod warp;

use crate::{
    check::finding::Findings,
    counters::Counters,
    error::Error,
    kernel::Kernel,
    launch::{Delivery, Schedule},
    memory::{sectors::Sectors, view::Touched},
    numerics::matrix::Exact,
};
use std::collections::HashMap;

/// What is the same for every CTA of a launch.
pub(crate) struct Context<'k> {
    pub kernel: &'k Kernel,
    pub parameters: Vec<u8>,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Offsets in the shared window: of static and dynamic variables, and of the end.
    pub static_base: u64,
    pub dynamic_base: u64,
    pub shared_end: u64,
    /// Where device memory begins.
    pub global_base: u64,
    /// Addresses of the module's variables.
    pub globals: Vec<u64>,
    pub grid_id: u64,
    /// Address of the grid's workspace, zero where the kernel has no use for one.
    pub workspace: u64,
    pub sm_count: u32,
    pub checked: bool,
    /// Where distinct sectors are noted, if an unchecked launch counts them.
    pub sectors: Option<Sectors>,
    pub delivery: Delivery,
    pub schedule: Schedule,
    pub exact: Option<Exact>,
    pub step_limit: u64,
    /// CTA and warp whose instructions are recorded, and how many at most.
    pub trace: Option<(u32, u32, usize)>,
    /// What unfinished launches before this one touched, for a launch that may overlap them; and what those touched that
    /// even its griddepcontrol.wait does not wait for, because a launch between did not wait for them.
    pub overlap: Option<&'k Footprint>,
    pub overlap_waited: Option<&'k Footprint>,
}

impl Context<'_> {
    pub fn threads(&self) -> u32 {
        self.block.iter().product()
    }
    pub fn warps(&self) -> u32 {
        self.threads().div_ceil(32)
    }
    /// Coordinates of a CTA.
    pub fn place(&self, cta: u64) -> [u32; 3] {
        let (x, y) = (u64::from(self.grid[0]), u64::from(self.grid[1]));
        [(cta % x) as u32, (cta / x % y) as u32, (cta / (x * y)) as u32]
    }
}

/// Bytes of device memory that a launch read and wrote, by page.
pub(crate) type Footprint = HashMap<u32, Box<Touched>>;

/// What a CTA, or a whole launch, adds up to.
#[derive(Default)]
pub(crate) struct Outcome {
    pub findings: Findings,
    pub counters: Counters,
    /// Executions of each instruction by warps, and by lanes.
    pub hits: Vec<u64>,
    pub lanes: Vec<u64>,
    pub output: String,
    pub conditions: Vec<(u64, u32)>,
    pub trace: Vec<TraceLine>,
    pub steps: u64,
    /// CTAs of which a thread executed griddepcontrol.wait.
    pub waited: u64,
    /// A warp executed griddepcontrol.launch_dependents before it had waited.
    pub released_early: bool,
}

impl Outcome {
    pub fn new(kernel: &Kernel) -> Self {
        Outcome { hits: vec![0; kernel.code.len()], lanes: vec![0; kernel.code.len()], ..Default::default() }
    }

    /// The error of a launch that does not end, naming what it did most.
    pub fn beyond(&self, context: &Context) -> Error {
        let busiest = self.hits.iter().enumerate().max_by_key(|(_, hits)| **hits).map_or(0, |(pc, _)| pc);
        let line = context.kernel.code.get(busiest).map_or(0, |inst| inst.line);
        Error::StepLimit { limit: context.step_limit, line }
    }

    pub fn merge(&mut self, later: Outcome) {
        self.findings.merge(later.findings);
        self.counters.add(&later.counters);
        for (sum, n) in self.hits.iter_mut().zip(&later.hits) {
            *sum += n;
        }
        for (sum, n) in self.lanes.iter_mut().zip(&later.lanes) {
            *sum += n;
        }
        // printf's buffer on a GPU is bounded too.
        if self.output.len() < OUTPUT {
            self.output.push_str(&later.output);
        }
        self.conditions.extend(later.conditions);
        self.trace.extend(later.trace);
        self.steps += later.steps;
        self.waited += later.waited;
        self.released_early |= later.released_early;
    }
}

/// Bytes of printf output that a CTA keeps, and after which a launch adds that of no further CTA.
pub(crate) const OUTPUT: usize = 1 << 20;

/// One executed instruction of the traced warp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceLine {
    /// Line of the PTX text.
    pub ptx_line: u32,
    /// Number of the source file in the module and line there; 0 where unknown.
    pub source: (u32, u32),
    /// Lanes that executed it.
    pub lanes: u32,
}

/// splitmix64: a small generator for schedules and deliveries, the same everywhere.
#[derive(Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// The order in which a schedule takes `n` things.
    pub fn order(&mut self, schedule: Schedule, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        match schedule {
            Schedule::InOrder => {}
            Schedule::Reversed => order.reverse(),
            Schedule::Random(_) => {
                for i in (1..n).rev() {
                    order.swap(i, self.below(i as u64 + 1) as usize);
                }
            }
        }
        order
    }
}
