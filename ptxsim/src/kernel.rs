//! A decoded kernel: what the executor runs. Registers are indices, labels are program counters, constants and special
//! registers are registers that a warp's start fills.
//!
//! Registers live in three files: 32 bits a lane (`W`; narrower types use the low bits), 64 bits a lane (`D`), and
//! predicates (`P`), one bit a lane in a `u32`.

use crate::{
    numerics::{
        convert::{Clamp, Fp8, Integer, Tf32Rounding},
        exact::{Format, Rounding},
        half::Half,
    },
    parse::Space,
};

/// One 32-bit value a lane.
pub(crate) type Lanes = [u32; 32];
/// One 64-bit value a lane.
pub(crate) type Lanes64 = [u64; 32];

/// A register of one of the files, or none: the `_` of PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reg {
    W(u32),
    D(u32),
    P(u32),
    Sink,
}

/// A predicate operand, possibly negated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pred {
    pub register: u32,
    pub negated: bool,
}

/// What a register holds when a warp starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Value {
    Bits(u64),
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    LaneId,
    WarpId,
    Nwarpid,
    LanemaskEq,
    LanemaskLt,
    LanemaskLe,
    LanemaskGt,
    LanemaskGe,
    GridId,
    /// The upper or lower half of the address of the grid's workspace, by which a cooperative launch synchronises.
    Workspace(bool),
    SmId,
    NsmId,
    /// Offset in the CTA's static shared memory, from where the launch places it.
    Shared(u64),
    /// Where dynamic shared memory begins.
    DynamicShared,
    DynamicSharedBytes,
    TotalSharedBytes,
    /// Address of a module variable, by its place in the module.
    Global(usize),
    Local(u64),
    Param(u64),
    /// Address of a function, by its place in the module.
    Function(usize),
}

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident: $d:ident <- $($s:ident)*;)*) => {
        /// An operation on all lanes at once, by the files of its destination and sources.
        #[derive(Clone, Copy)]
        pub(crate) enum Function {
            $($(#[$doc])* $name(functions!(@type $d; $($s)*)),)*
        }
        impl Function {
            /// Files of the destination and of the sources.
            pub fn signature(&self) -> (File, &'static [File]) {
                match self {
                    $(Function::$name(_) => (File::$d, &[$(File::$s),*]),)*
                }
            }
        }
    };
    (@type P; W W) => { fn(&Lanes, &Lanes) -> u32 };
    (@type P; D D) => { fn(&Lanes64, &Lanes64) -> u32 };
    (@type P; W) => { fn(&Lanes) -> u32 };
    (@type P; D) => { fn(&Lanes64) -> u32 };
    (@type $d:ident; $($s:ident)*) => { fn($(&functions!(@lanes $s),)* &mut functions!(@lanes $d)) };
    (@lanes W) => { Lanes };
    (@lanes D) => { Lanes64 };
}

/// A register file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum File {
    W,
    D,
    P,
}

functions! {
    W1: W <- W;
    W2: W <- W W;
    W3: W <- W W W;
    W4: W <- W W W W;
    D1: D <- D;
    D2: D <- D D;
    D3: D <- D D D;
    /// cvt to a wider type
    DfromW: D <- W;
    /// mul.wide
    DfromWW: D <- W W;
    /// mad.wide
    DfromWWD: D <- W W D;
    WfromD: W <- D;
    /// shifts
    DfromDW: D <- D W;
    /// bfe
    DfromDWW: D <- D W W;
    /// bfi
    DfromDDWW: D <- D D W W;
    /// setp
    Compare: P <- W W;
    CompareD: P <- D D;
    /// testp
    Test: P <- W;
    TestD: P <- D;
}

/// Addition with the carry flag and its kin: operands and carry in, result and carry out.
#[derive(Clone, Copy)]
pub(crate) enum Carry {
    W(fn(u32, u32, u32, bool) -> (u32, bool)),
    D(fn(u64, u64, u64, bool) -> (u64, bool)),
}

/// What a cvt converts from and to, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Conversion {
    Integers { from: Integer, to: Integer, sat: bool },
    ToFloat { from: Integer, to: Format, round: Rounding, sat: bool },
    ToInteger { from: Format, to: Integer, round: Rounding, ftz: bool },
    Floats { from: Format, to: Format, round: Rounding, ftz: bool, sat: bool },
    Integral { format: Format, round: Rounding, ftz: bool, sat: bool },
    Narrow { to: Half, round: Rounding, clamp: Clamp },
    Tf32 { round: Tf32Rounding, clamp: Clamp },
    Pack { to: Half, round: Rounding, clamp: Clamp },
    PackFp8 { to: Fp8, relu: bool },
    Fp8FromHalf { to: Fp8, relu: bool },
    HalfFromFp8 { from: Fp8, relu: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}

impl Logic {
    pub fn apply(self, a: u32, b: u32) -> u32 {
        match self {
            Logic::And => a & b,
            Logic::Or => a | b,
            Logic::Xor => a ^ b,
        }
    }
}

/// How strong a memory access is, as in the PTX memory model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Weak,
    /// `.volatile`, `.relaxed`, and atomics without more.
    Relaxed,
    Acquire,
    Release,
    AcquireRelease,
}

impl Order {
    pub fn acquires(self) -> bool {
        matches!(self, Order::Acquire | Order::AcquireRelease)
    }
    pub fn releases(self) -> bool {
        matches!(self, Order::Release | Order::AcquireRelease)
    }
}

/// Who takes part in a strong access or a fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Cta,
    Cluster,
    Gpu,
    System,
}

/// Where an address comes from: a register plus an offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub base: Reg,
    pub offset: i64,
}

/// A load or store of `count` elements of `bytes` bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub space: Space,
    pub address: Address,
    pub bytes: u32,
    pub count: u32,
    pub order: Order,
    pub scope: Scope,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Atomic {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    CompareExchange,
    Increment,
    Decrement,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduce {
    Add,
    MinU,
    MinS,
    MaxU,
    MaxS,
    And,
    Or,
    Xor,
}

/// The functions that the CUDA runtime offers to device code and that this simulator provides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Builtin {
    Vprintf,
    AssertFail,
    GraphSetConditional,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callee {
    Function(usize),
    /// A register that holds a function's address.
    Register(u32),
    Builtin(Builtin),
}

/// A call's arguments and results as places in call memory: offset and bytes.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub callee: Callee,
    pub arguments: Vec<(u32, u32)>,
    pub results: Vec<(u32, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarrierKind {
    Sync,
    Arrive,
    /// bar.red: and, or over a predicate.
    Reduce(Logic),
    Count,
}

/// A CTA barrier.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Barrier {
    pub kind: BarrierKind,
    pub id: Reg,
    /// Threads that take part; the whole CTA where none is given.
    pub threads: Option<Reg>,
    /// Every lane of the warp must arrive with the same instruction.
    pub aligned: bool,
    /// Input and output of a reduction.
    pub input: Option<Pred>,
    pub output: Reg,
}

#[derive(Clone)]
pub(crate) enum Op {
    /// d = f(a, …), all operands in the files of the function's signature.
    Apply {
        f: Function,
        d: u32,
        s: [u32; 4],
    },
    /// cvt in its less frequent forms.
    Convert {
        conversion: Conversion,
        d: Reg,
        a: Reg,
        b: Reg,
    },
    Carry {
        f: Carry,
        d: u32,
        s: [u32; 3],
        sets: bool,
    },
    MoveW {
        d: u32,
        a: u32,
    },
    MoveD {
        d: u32,
        a: u32,
    },
    MoveP {
        d: u32,
        a: Pred,
    },
    /// d = p ? a : b
    SelectW {
        d: u32,
        a: u32,
        b: u32,
        p: Pred,
    },
    SelectD {
        d: u32,
        a: u32,
        b: u32,
        p: Pred,
    },
    /// mov of several narrow registers into a wide one, lowest first.
    Pack {
        d: Reg,
        parts: Vec<Reg>,
        bits: u32,
    },
    Unpack {
        parts: Vec<Reg>,
        a: Reg,
        bits: u32,
    },
    /// p = f(a, b) and its opposite q, each combined with a predicate.
    SetP {
        f: Function,
        p: Reg,
        q: Reg,
        s: [u32; 2],
        with: Option<(Logic, Pred)>,
    },
    /// setp on pairs: p of the low halves, q of the high ones.
    SetP2 {
        low: Function,
        high: Function,
        p: Reg,
        q: Reg,
        s: [u32; 2],
        with: Option<(Logic, Pred)>,
    },
    /// set: all ones (or 1.0) where the comparison holds.
    Set {
        f: Function,
        d: u32,
        one: u32,
        s: [u32; 2],
        with: Option<(Logic, Pred)>,
    },
    /// set on pairs: in each half ones (or 1.0) where the comparison of the halves holds.
    Set2 {
        low: Function,
        high: Function,
        d: u32,
        one: u32,
        s: [u32; 2],
    },
    LogicP {
        op: Logic,
        d: u32,
        a: Pred,
        b: Pred,
    },
    /// %clock and kin: the warp's count of executed instructions.
    Clock {
        d: Reg,
    },
    Activemask {
        d: u32,
    },

    /// Address in one space to or from a generic address.
    ToGeneric {
        d: Reg,
        a: Reg,
        space: Space,
    },
    FromGeneric {
        d: Reg,
        a: Reg,
        space: Space,
    },
    IsSpace {
        d: u32,
        a: Reg,
        space: Space,
    },
    Load {
        access: Access,
        d: Vec<Reg>,
        signed: bool,
    },
    Store {
        access: Access,
        s: Vec<Reg>,
    },
    Atomic {
        access: Access,
        op: Atomic,
        ty: crate::parse::Type,
        d: Vec<Reg>,
        b: Vec<Reg>,
        c: Option<Reg>,
    },
    Fence {
        scope: Scope,
    },
    /// Prefetches and cache hints: checked for nothing but their operands' names.
    Hint,

    Shuffle {
        mode: Shuffle,
        d: u32,
        p: Reg,
        a: u32,
        b: u32,
        c: u32,
        mask: u32,
    },
    Vote {
        mode: Vote,
        d: Reg,
        a: Pred,
        mask: u32,
    },
    /// match.any, and match.all with its predicate.
    Match {
        all: bool,
        d: u32,
        p: Reg,
        a: Reg,
        mask: u32,
    },
    Reduce {
        op: Reduce,
        d: u32,
        a: u32,
        mask: u32,
    },
    Elect {
        d: Reg,
        p: u32,
        mask: u32,
    },
    SyncWarp {
        mask: u32,
    },
    Barrier(Barrier),

    CopyAsync {
        shared: Address,
        global: Address,
        bytes: u32,
        size: Option<u32>,
        ignore: Option<Pred>,
    },
    CommitGroup,
    /// Waits until at most so many groups are under way; all copies for None.
    WaitGroup {
        left: Option<u32>,
    },

    LoadMatrix {
        address: Address,
        d: Vec<u32>,
        transposed: bool,
    },
    StoreMatrix {
        address: Address,
        s: Vec<u32>,
        transposed: bool,
    },
    MoveMatrix {
        d: u32,
        a: u32,
    },
    Mma {
        mma: crate::numerics::matrix::Mma,
        d: Vec<u32>,
        a: Vec<u32>,
        b: Vec<u32>,
        c: Vec<u32>,
    },
    /// Double precision.
    MmaD {
        mma: crate::numerics::matrix::Mma,
        d: Vec<u32>,
        a: Vec<u32>,
        b: Vec<u32>,
        c: Vec<u32>,
    },

    Branch {
        target: u32,
    },
    BranchTable {
        index: u32,
        targets: Vec<u32>,
    },
    Call(Box<Call>),
    Return,
    Exit,
    Trap,
    Breakpoint,
    /// The warp gives way.
    Sleep,
    LaunchDependents,
    GridWait,
}

impl Op {
    /// The register that names the lanes which execute the operation together.
    pub fn member_mask(&self) -> Option<u32> {
        match self {
            Op::Shuffle { mask, .. }
            | Op::Vote { mask, .. }
            | Op::Match { mask, .. }
            | Op::Reduce { mask, .. }
            | Op::Elect { mask, .. }
            | Op::SyncWarp { mask } => Some(*mask),
            _ => None,
        }
    }
}

/// What an instruction counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Class {
    Integer,
    Float,
    Half,
    Double,
    /// ex2, rcp, sin and their like, which run at a quarter of the rate.
    Special,
    Convert,
    Move,
    Global,
    Shared,
    Local,
    Parameter,
    Atomic,
    Warp,
    Barrier,
    Copy,
    Matrix,
    Tensor,
    Control,
}

/// One instruction.
#[derive(Clone)]
pub(crate) struct Inst {
    pub op: Op,
    /// Lanes that execute it; all for None.
    pub guard: Option<Pred>,
    pub class: Class,
    /// Floating-point operations of a lane.
    pub flop: u8,
    /// Registers whose values it computes with, in [`Kernel::reads`].
    pub reads: (u32, u32),
    /// Line of the PTX text.
    pub line: u32,
    /// Number of the source file and line there; 0 where the text has none.
    pub source: (u32, u32),
}

/// A parameter of an entry: its place in the parameter buffer.
#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    pub offset: u32,
    pub bytes: u32,
}

/// A device function of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Routine {
    pub name: String,
    /// Place in the module, from which its address follows.
    pub index: usize,
    pub entry: u32,
    /// Places in call memory of what it takes and returns.
    pub formals: Vec<(u32, u32)>,
    pub results: Vec<(u32, u32)>,
}

/// A kernel, ready to run.
pub(crate) struct Kernel {
    pub name: String,
    pub code: Vec<Inst>,
    pub reads: Vec<Reg>,
    /// Registers of each file, constants included.
    pub words: u32,
    pub doubles: u32,
    pub predicates: u32,
    /// What stands in which register at the start.
    pub preset_words: Vec<(u32, Value)>,
    pub preset_doubles: Vec<(u32, Value)>,
    pub preset_predicates: Vec<(u32, bool)>,
    /// The carry flag's predicate register.
    pub carry: u32,
    pub parameters: Vec<Parameter>,
    pub parameter_bytes: u32,
    /// Static shared memory in bytes, and the largest alignment that static or dynamic variables ask for.
    pub shared_bytes: u64,
    pub shared_align: u64,
    pub dynamic_align: u64,
    pub local_bytes: u64,
    pub call_bytes: u32,
    pub routines: Vec<Routine>,
    pub required_threads: Option<[u32; 3]>,
    pub max_threads: Option<[u32; 3]>,
    pub required_cluster: Option<[u32; 3]>,
    /// Its CTAs may talk to each other: it has atomics, strong accesses or fences beyond the CTA.
    pub communicates: bool,
}
