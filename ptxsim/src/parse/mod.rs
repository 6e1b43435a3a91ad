//! PTX text to a [`Module`]: names still names, nothing executed. Start from [`Module::parse`].
//!
//! The grammar is that of PTX ISA 8 and 9 as nvcc writes it, inline assembly's scopes and one-line blocks included.
//! What an instruction means is decided when an entry is first launched (`decode`), so a module may hold
//! kernels that this simulator cannot run beside those that it can.

mod grammar;
mod lexer;

/// A parsed PTX module.
#[derive(Debug)]
pub struct Module {
    pub(crate) target: String,
    pub(crate) variables: Vec<Variable>,
    pub(crate) functions: Vec<Function>,
    pub(crate) files: Vec<(u64, String)>,
}

/// A state space of variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    Generic,
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// A fundamental type, as declared or as the last modifier of an opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Type {
    Pred,
    B8,
    U8,
    S8,
    B16,
    U16,
    S16,
    F16,
    Bf16,
    B32,
    U32,
    S32,
    F32,
    F16x2,
    Bf16x2,
    U16x2,
    S16x2,
    Tf32,
    E4m3,
    E5m2,
    S4,
    U4,
    E4m3x2,
    E5m2x2,
    B64,
    U64,
    S64,
    F64,
    B128,
}

impl Type {
    pub fn named(name: &str) -> Option<Type> {
        use Type::*;
        Some(match name {
            "pred" => Pred,
            "b8" => B8,
            "u8" => U8,
            "s8" => S8,
            "b16" => B16,
            "u16" => U16,
            "s16" => S16,
            "f16" => F16,
            "bf16" => Bf16,
            "b32" => B32,
            "u32" => U32,
            "s32" => S32,
            "f32" => F32,
            "f16x2" => F16x2,
            "bf16x2" => Bf16x2,
            "u16x2" => U16x2,
            "s16x2" => S16x2,
            "tf32" => Tf32,
            "e4m3" => E4m3,
            "e5m2" => E5m2,
            "s4" => S4,
            "u4" => U4,
            "e4m3x2" => E4m3x2,
            "e5m2x2" => E5m2x2,
            "b64" => B64,
            "u64" => U64,
            "s64" => S64,
            "f64" => F64,
            "b128" => B128,
            _ => return None,
        })
    }

    /// Size in bits; a predicate counts as 1.
    pub fn bits(self) -> u32 {
        use Type::*;
        match self {
            Pred => 1,
            S4 | U4 => 4,
            B8 | U8 | S8 | E4m3 | E5m2 => 8,
            B16 | U16 | S16 | F16 | Bf16 | E4m3x2 | E5m2x2 => 16,
            B32 | U32 | S32 | F32 | F16x2 | Bf16x2 | U16x2 | S16x2 | Tf32 => 32,
            B64 | U64 | S64 | F64 => 64,
            B128 => 128,
        }
    }

    pub fn bytes(self) -> u32 {
        self.bits().div_ceil(8)
    }

    pub fn signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64)
    }
}

/// A variable in memory, of a module, a function or a scope.
#[derive(Debug, Clone)]
pub(crate) struct Variable {
    pub name: String,
    pub space: Space,
    pub align: u64,
    /// Bytes; 0 for an array whose size the launch gives.
    pub bytes: u64,
    /// Initial bytes, shorter than the variable where the rest is zero, and addresses to fill in.
    pub init: Vec<u8>,
    pub links: Vec<Link>,
    pub line: u32,
}

/// At `offset` of a variable's initial value stands the address of `symbol` plus `addend`.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub offset: usize,
    pub symbol: String,
    pub addend: u64,
    pub bytes: usize,
}

/// An entry or a device function.
#[derive(Debug)]
pub(crate) struct Function {
    pub name: String,
    pub entry: bool,
    pub parameters: Vec<Variable>,
    pub returns: Vec<Variable>,
    /// None for a declaration.
    pub body: Option<Vec<Statement>>,
    pub max_threads: Option<[u32; 3]>,
    pub required_threads: Option<[u32; 3]>,
    pub required_cluster: Option<[u32; 3]>,
    pub line: u32,
}

#[derive(Debug)]
pub(crate) enum Statement {
    Label(String, u32),
    Instruction(Instruction),
    Block(Vec<Statement>),
    Registers {
        ty: Type,
        names: Vec<(String, Option<u32>)>,
        line: u32,
    },
    Variable(Variable),
    /// Source file, line and column of what follows, and of the call that it was inlined for.
    Loc {
        place: (u32, u32, u32),
        inlined: Option<(u32, u32, u32)>,
    },
    /// `label: .branchtargets a, b;`, and `.calltargets`, `.callprototype`, which tell ptxas what this
    /// simulator learns from the call itself.
    Targets(String, Vec<String>),
}

#[derive(Debug)]
pub(crate) struct Instruction {
    pub guard: Option<Guard>,
    /// `ld.global.v4.f32` in its parts.
    pub opcode: Vec<String>,
    pub operands: Vec<Operand>,
    /// Line of the PTX text.
    pub line: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Guard {
    pub register: String,
    pub negated: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    Name(String),
    /// `!%p`
    Not(String),
    Int(u64),
    F32(u32),
    F64(u64),
    /// `[base + offset]`, base a register, a name or a number.
    Address(Box<Operand>, i64),
    /// `name + offset` outside brackets.
    Offset(String, i64),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `a|b`
    Pair(Box<Operand>, Box<Operand>),
    /// `(a, b)` of a call.
    List(Vec<Operand>),
    /// `[a, {x, y}]`: a place in a tensor or a texture. No opcode that is run takes one.
    Coordinates,
}

impl Module {
    /// The place of a device function: of its definition, or else of a declaration.
    pub(crate) fn function(&self, name: &str) -> Option<usize> {
        let named = |f: &&Function| !f.entry && f.name == name;
        let defined = self.functions.iter().position(|f| named(&f) && f.body.is_some());
        defined.or_else(|| self.functions.iter().position(|f| named(&f)))
    }
}

impl Instruction {
    /// The opcode as written.
    pub fn name(&self) -> String {
        self.opcode.join(".")
    }
}
