//! Loads, stores, atomics, fences, copies, addresses.

use super::{Decoder, Opcode};
use crate::{
    error::{Error, Result},
    kernel::{Access, Atomic, Class, File, Op, Order, Reg, Scope},
    parse::{Operand, Space, Type},
};

const SPACES: &[(&str, Space)] = &[
    ("global", Space::Global),
    ("const", Space::Const),
    ("shared", Space::Shared),
    ("shared::cta", Space::Shared),
    ("local", Space::Local),
    ("param", Space::Param),
    ("param::entry", Space::Param),
    ("param::func", Space::Param),
];

const SCOPES: &[(&str, Scope)] =
    &[("cta", Scope::Cta), ("cluster", Scope::Cluster), ("gpu", Scope::Gpu), ("sys", Scope::System)];

impl Decoder<'_> {
    /// Decodes what touches memory; None for other opcodes.
    pub(super) fn memory(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<Option<(Op, Class)>> {
        match code.head {
            "ld" | "ldu" => self.load(code, reads).map(Some),
            "st" => self.store(code, reads).map(Some),
            "atom" | "red" => self.atomic(code, reads).map(Some),
            "membar" | "fence" => self.fence(code).map(Some),
            "cvta" => self.cvta(code, reads).map(Some),
            "isspacep" => {
                code.arity(2..=2)?;
                let space = code.take_of(SPACES).ok_or_else(|| code.unsupported())?;
                let a = self.source(code.operand(1)?, Type::B64, true)?;
                reads.push(a);
                let d = self.destination(code.operand(0)?, File::P)?;
                Ok(Some((Op::IsSpace { d, a, space }, Class::Integer)))
            }
            "prefetch" | "prefetchu" | "applypriority" | "discard" => {
                code.take_of(SPACES);
                if code.modifiers.contains(&"tensormap") {
                    return Err(hopper(code, "tensor maps"));
                }
                // What is discarded may keep its value: that is one of the outcomes a program must expect.
                code.modifiers.retain(|m| !matches!(*m, "L1" | "L2" | "L2::evict_last" | "L2::evict_normal"));
                self.address(code.operand(0)?)?;
                Ok(Some((Op::Hint, Class::Move)))
            }
            "createpolicy" => {
                // A policy is an opaque hint: its register holds zero.
                code.modifiers.clear();
                let d = self.destination(code.operand(0)?, File::D)?;
                let zero = self.preset(crate::kernel::Value::Bits(0), true)?;
                Ok(Some((Op::MoveD { d, a: zero }, Class::Move)))
            }
            "cp" => self.copy(code, reads).map(Some),
            "mbarrier" => Err(hopper(code, "mbarrier objects")),
            "mapa" | "getctarank" => Err(hopper(code, "clusters")),
            "tensormap" => Err(hopper(code, "tensor maps")),
            "wgmma" => Err(hopper(code, "warpgroup products")),
            "setmaxnreg" => Err(hopper(code, "register reallocation")),
            "multimem" | "clusterlaunchcontrol" | "tcgen05" => Err(code.unsupported()),
            _ => Ok(None),
        }
    }

    /// Order and scope of an access, with the hints that do not change its result taken away.
    fn strength(&self, code: &mut Opcode) -> (Order, Scope) {
        let order = if code.take("volatile") {
            Order::Relaxed
        } else if code.take("mmio") {
            code.take("relaxed");
            Order::Relaxed
        } else if code.take("acq_rel") {
            Order::AcquireRelease
        } else if code.take("acquire") {
            Order::Acquire
        } else if code.take("release") {
            Order::Release
        } else if code.take("relaxed") {
            Order::Relaxed
        } else {
            code.take("weak");
            Order::Weak
        };
        let scope = code.take_of(SCOPES).unwrap_or(Scope::Gpu);
        (order, scope)
    }

    fn hints(code: &mut Opcode) {
        code.modifiers.retain(|m| {
            !(matches!(*m, "nc" | "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "coop" | "unified")
                || m.starts_with("L1::")
                || m.starts_with("L2::"))
        });
    }

    /// Vector width, and registers of the operand.
    fn elements(&mut self, code: &mut Opcode, operand: &Operand, ty: Type, result: bool) -> Result<Vec<Reg>> {
        let count = code.take_of(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1);
        let registers = self.vector(operand, ty, result)?;
        if registers.len() != count {
            return Err(Error::syntax(
                code.line(),
                format!("{} with {} registers", code.instruction.name(), registers.len()),
            ));
        }
        for register in &registers {
            let fits = match register {
                Reg::W(_) => ty.bits() <= 32,
                Reg::D(_) => ty.bits() <= 64,
                Reg::P(_) => false,
                Reg::Sink => result,
            };
            if !fits {
                return Err(Error::syntax(
                    code.line(),
                    format!("a register of {} has not the width of its type", code.instruction.name()),
                ));
            }
        }
        Ok(registers)
    }

    fn load(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        let ty = code.ty()?;
        if code.types.len() != 1 || matches!(ty, Type::Pred | Type::B128) {
            return Err(code.unsupported());
        }
        let (order, scope) = self.strength(code);
        Self::hints(code);
        let mut space = code.take_of(SPACES).unwrap_or(Space::Generic);
        code.arity(2..=3)?;
        let d = self.elements(code, code.operand(0)?, ty, true)?;
        let (address, found) = self.address(code.operand(1)?)?;
        if space == Space::Generic && matches!(found, Some(Space::Shared | Space::Local | Space::Param)) {
            // ld without a space from a named variable means that variable's window.
            space = found.unwrap_or(space);
        }
        reads.push(address.base);
        let access = Access { space, address, bytes: ty.bytes(), count: d.len() as u32, order, scope };
        self.note_strength(&access);
        Ok((Op::Load { access, d, signed: ty.signed() }, class_of(space)))
    }

    fn store(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        if code.take("async") || code.take("bulk") {
            return Err(hopper(code, "asynchronous stores"));
        }
        let ty = code.ty()?;
        if code.types.len() != 1 || matches!(ty, Type::Pred | Type::B128) {
            return Err(code.unsupported());
        }
        let (order, scope) = self.strength(code);
        Self::hints(code);
        let mut space = code.take_of(SPACES).unwrap_or(Space::Generic);
        code.arity(2..=3)?;
        let (address, found) = self.address(code.operand(0)?)?;
        if space == Space::Generic && matches!(found, Some(Space::Shared | Space::Local | Space::Param)) {
            space = found.unwrap_or(space);
        }
        let s = self.elements(code, code.operand(1)?, ty, false)?;
        reads.push(address.base);
        let access = Access { space, address, bytes: ty.bytes(), count: s.len() as u32, order, scope };
        self.note_strength(&access);
        Ok((Op::Store { access, s }, class_of(space)))
    }

    /// A strong access beyond the CTA makes the kernel one whose CTAs may talk to each other.
    fn note_strength(&mut self, access: &Access) {
        if access.order != Order::Weak
            && access.scope > Scope::Cta
            && matches!(access.space, Space::Global | Space::Generic)
        {
            self.communicates = true;
        }
    }

    fn atomic(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        if code.take("async") {
            return Err(hopper(code, "asynchronous reductions"));
        }
        let ty = code.ty()?;
        let (mut order, scope) = self.strength(code);
        if order == Order::Weak {
            order = Order::Relaxed;
        }
        Self::hints(code);
        let mut space = code.take_of(SPACES).unwrap_or(Space::Generic);
        code.take("noftz");
        let op = code
            .take_of(&[
                ("add", Atomic::Add),
                ("min", Atomic::Min),
                ("max", Atomic::Max),
                ("and", Atomic::And),
                ("or", Atomic::Or),
                ("xor", Atomic::Xor),
                ("exch", Atomic::Exchange),
                ("cas", Atomic::CompareExchange),
                ("inc", Atomic::Increment),
                ("dec", Atomic::Decrement),
            ])
            .ok_or_else(|| code.unsupported())?;
        use Type::*;
        let known = match op {
            Atomic::Add => matches!(ty, U32 | S32 | U64 | S64 | F32 | F64 | F16 | Bf16 | F16x2 | Bf16x2),
            Atomic::Min | Atomic::Max => {
                matches!(ty, U32 | S32 | U64 | S64 | F16 | Bf16 | F16x2 | Bf16x2)
            }
            Atomic::And | Atomic::Or | Atomic::Xor => matches!(ty, B32 | B64),
            Atomic::Exchange => matches!(ty, B32 | B64 | U32 | S32 | U64 | S64 | F32 | F64),
            Atomic::CompareExchange => matches!(ty, B16 | B32 | B64 | U32 | S32 | U64 | S64),
            Atomic::Increment | Atomic::Decrement => ty == U32,
        };
        if !known || code.types.len() != 1 {
            return Err(code.unsupported());
        }
        let atom = code.head == "atom";
        let at = usize::from(atom);
        let takes = at + 2 + usize::from(op == Atomic::CompareExchange);
        // A cache policy may follow.
        code.arity(takes..=takes + 1)?;
        let (address, found) = self.address(code.operand(at)?)?;
        if space == Space::Generic && found == Some(Space::Shared) {
            space = Space::Shared;
        }
        if !matches!(space, Space::Generic | Space::Global | Space::Shared) {
            return Err(code.unsupported());
        }
        let count_before = code.modifiers.len();
        let b = self.elements(code, code.operand(at + 1)?, ty, false)?;
        let vector = code.modifiers.len() != count_before;
        if vector && (op == Atomic::CompareExchange || op == Atomic::Exchange) {
            return Err(code.unsupported());
        }
        let d = if atom { self.vector(code.operand(0)?, ty, true)? } else { vec![Reg::Sink; b.len()] };
        if d.len() != b.len() {
            return Err(Error::syntax(code.line(), "an atomic whose result has another width"));
        }
        let c = match op {
            Atomic::CompareExchange => Some(self.source(code.operand(at + 2)?, ty, ty.bits() == 64)?),
            _ => None,
        };
        reads.push(address.base);
        reads.extend(b.iter().copied().chain(c));
        let access = Access { space, address, bytes: ty.bytes(), count: b.len() as u32, order, scope };
        self.note_strength(&access);
        Ok((Op::Atomic { access, op, ty, d, b, c }, Class::Atomic))
    }

    fn fence(&mut self, code: &mut Opcode) -> Result<(Op, Class)> {
        if code.modifiers.iter().any(|m| m.starts_with("proxy") || m.starts_with("mbarrier_init")) {
            return Err(hopper(code, "proxy fences"));
        }
        let membar = code.take_of(&[("cta", Scope::Cta), ("gl", Scope::Gpu), ("sys", Scope::System)]);
        let scope = match (code.head, membar) {
            ("membar", Some(scope)) => scope,
            ("membar", None) => return Err(code.unsupported()),
            (_, scope) => {
                for order in ["sc", "acq_rel", "acquire", "release"] {
                    if code.take(order) {
                        break;
                    }
                }
                scope.or_else(|| code.take_of(SCOPES)).ok_or_else(|| code.unsupported())?
            }
        };
        code.arity(0..=0)?;
        if scope > Scope::Cta {
            self.communicates = true;
        }
        Ok((Op::Fence { scope }, Class::Barrier))
    }

    fn cvta(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        code.arity(2..=2)?;
        let to = code.take("to");
        let space = code.take_of(SPACES).ok_or_else(|| code.unsupported())?;
        let ty = code.ty()?;
        let wide = ty.bits() == 64;
        let a = self.source(code.operand(1)?, ty, wide)?;
        reads.push(a);
        let d = self.register(code.operand(0)?)?;
        match (wide, d, a) {
            (true, Reg::D(_), Reg::D(_)) | (false, Reg::W(_), Reg::W(_)) => {}
            _ => return Err(Error::syntax(code.line(), "cvta between registers of different widths")),
        }
        let op = if to { Op::FromGeneric { d, a, space } } else { Op::ToGeneric { d, a, space } };
        Ok((op, Class::Integer))
    }

    fn copy(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        if !code.take("async") {
            return Err(hopper(code, "bulk copies"));
        }
        if code.take("commit_group") {
            code.arity(0..=0)?;
            return Ok((Op::CommitGroup, Class::Copy));
        }
        if code.take("wait_all") {
            code.arity(0..=0)?;
            return Ok((Op::WaitGroup { left: None }, Class::Copy));
        }
        if code.take("wait_group") {
            code.arity(1..=1)?;
            let Operand::Int(left) = code.operand(0)? else { return Err(code.unsupported()) };
            return Ok((Op::WaitGroup { left: Some((*left).min(1 << 20) as u32) }, Class::Copy));
        }
        if code.modifiers.iter().any(|m| *m == "bulk" || m.starts_with("mbarrier")) {
            return Err(hopper(code, "bulk copies and mbarrier objects"));
        }
        let all = code.take("cg");
        if !all && !code.take("ca") {
            return Err(code.unsupported());
        }
        let shared = code.take("shared") || code.take("shared::cta");
        if !shared || !code.take("global") {
            return Err(code.unsupported());
        }
        Self::hints(code);
        code.arity(3..=5)?;
        let (target, _) = self.address(code.operand(0)?)?;
        let (source, _) = self.address(code.operand(1)?)?;
        let Operand::Int(bytes) = code.operand(2)? else { return Err(code.unsupported()) };
        let fits = if all { *bytes == 16 } else { matches!(bytes, 4 | 8 | 16) };
        if !fits {
            return Err(Error::syntax(code.line(), format!("{} of {bytes} bytes", code.instruction.name())));
        }
        reads.extend([target.base, source.base]);
        let (mut size, mut ignore) = (None, None);
        if let Some(operand) = code.operands().get(3) {
            match operand {
                Operand::Name(name)
                    if matches!(self.lookup(name), Some(super::Binding::Register(Reg::P(_)))) =>
                {
                    let p = self.pred(operand)?;
                    reads.push(Reg::P(p.register));
                    ignore = Some(p);
                }
                // A 64-bit register here is a cache policy.
                Operand::Name(name)
                    if matches!(self.lookup(name), Some(super::Binding::Register(Reg::D(_)))) => {}
                operand => {
                    let register = self.word(operand, Type::U32)?;
                    reads.push(Reg::W(register));
                    size = Some(register);
                }
            }
        }
        Ok((
            Op::CopyAsync { shared: target, global: source, bytes: *bytes as u32, size, ignore },
            Class::Copy,
        ))
    }
}

fn class_of(space: Space) -> Class {
    match space {
        Space::Shared => Class::Shared,
        Space::Local => Class::Local,
        Space::Param | Space::Const => Class::Parameter,
        Space::Global | Space::Generic => Class::Global,
    }
}

/// The refusal of an opcode of the Hopper device model.
pub(super) fn hopper(code: &Opcode, what: &str) -> Error {
    Error::unsupported_because(
        code.line(),
        code.instruction.name(),
        &format!("{what} need the sm_90 device model"),
    )
}
