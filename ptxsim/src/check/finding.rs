//! Findings: what, where, how often.

use std::{collections::BTreeMap, fmt};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// An access outside every allocation, or outside a CTA's shared or a thread's local memory.
    OutOfBounds,
    /// An address that is no multiple of the access's size.
    Misaligned,
    /// A computation with a register, or bytes of memory, that nobody wrote.
    Uninitialised,
    /// Two accesses, one of them a write, that nothing orders.
    Race,
    /// A use of memory that an asynchronous copy may still be writing.
    MissingWait,
    /// A `.sync` or `.aligned` operation that not all the lanes it names execute together.
    PartialMask,
    /// Nothing can run any more.
    Deadlock,
    /// `assert` failed, or the kernel executed `trap`.
    Assertion,
    /// An access without the proxy fence that it needs.
    MissingProxyFence,
    /// A wrong use of warpgroup products.
    WgmmaMisuse,
    /// A wrong use of an mbarrier object.
    MbarrierMisuse,
}

impl Kind {
    /// Its name in reports: `out_of_bounds`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::OutOfBounds => "out_of_bounds",
            Kind::Misaligned => "misaligned",
            Kind::Uninitialised => "uninitialised",
            Kind::Race => "race",
            Kind::MissingWait => "missing_wait",
            Kind::PartialMask => "partial_mask",
            Kind::Deadlock => "deadlock",
            Kind::Assertion => "assertion",
            Kind::MissingProxyFence => "missing_proxy_fence",
            Kind::WgmmaMisuse => "wgmma_misuse",
            Kind::MbarrierMisuse => "mbarrier_misuse",
        }
    }
}

/// One thing that is wrong, told once for each pair of lines however often it happens.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// Line of the source file where the module has line information, else of the PTX text.
    pub line: u32,
    /// Line of the PTX text.
    pub ptx_line: u32,
    /// The first occurrence in full: thread, address, the other access.
    pub message: String,
    /// How often it happened.
    pub count: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} at line {}: {}", self.kind.name(), self.line, self.message)?;
        if self.count > 1 {
            write!(f, " ({} times)", self.count)?;
        }
        Ok(())
    }
}

/// Findings by kind and instructions, bounded in number.
#[derive(Default)]
pub(crate) struct Findings {
    found: BTreeMap<(Kind, u32, u32), (String, u64)>,
}

/// Different findings that a launch keeps.
const LIMIT: usize = 1000;

impl Findings {
    /// Adds one of instruction `pc`, `other` being the instruction that it is at odds with. The message is made only for
    /// the first.
    pub fn add(&mut self, kind: Kind, pc: u32, other: u32, message: impl FnOnce() -> String) {
        if let Some((_, count)) = self.found.get_mut(&(kind, pc, other)) {
            *count += 1;
        } else if self.found.len() < LIMIT {
            self.found.insert((kind, pc, other), (message(), 1));
        }
    }

    /// Adds the races that nothing has excused.
    pub fn convict(&mut self, shadow: &mut super::shadow::Shadow) {
        for suspect in shadow.convicted() {
            self.add(Kind::Race, suspect.pc, suspect.other, || suspect.message);
        }
    }

    /// Adds those of another part of the launch, which comes later.
    pub fn merge(&mut self, later: Findings) {
        for (key, (message, count)) in later.found {
            if let Some((_, sum)) = self.found.get_mut(&key) {
                *sum += count;
            } else if self.found.len() < LIMIT {
                self.found.insert(key, (message, count));
            }
        }
    }

    /// Whether the launch must end: a GPU would have stopped the kernel, or nothing can run.
    pub fn stops(&self) -> bool {
        self.found.keys().any(|(kind, ..)| matches!(kind, Kind::Assertion | Kind::Deadlock))
    }

    /// The report, in order of the instructions.
    pub fn report(self, code: &[crate::kernel::Inst]) -> Vec<Finding> {
        let mut out: Vec<_> = self.found.into_iter().collect();
        out.sort_by_key(|((kind, pc, other), _)| (*pc, *kind, *other));
        out.into_iter()
            .map(|((kind, pc, _), (message, count))| {
                let (line, ptx_line) = match code.get(pc as usize) {
                    Some(inst) if inst.source.1 != 0 => (inst.source.1, inst.line),
                    Some(inst) => (inst.line, inst.line),
                    None => (0, 0),
                };
                Finding { kind, line, ptx_line, message, count }
            })
            .collect()
    }
}
