//! What lanes do together: shuffles, votes, barriers, matrices.

use super::{Decoder, Opcode, memory::hopper};
use crate::{
    error::{Error, Result},
    kernel::{Barrier, BarrierKind, Class, File, Logic, Op, Reduce, Reg, Shuffle, Vote},
    numerics::matrix::{Accumulator, Element, Mma},
    parse::{Operand, Type},
};

impl Decoder<'_> {
    /// Decodes warp-wide and CTA-wide opcodes; None for others.
    pub(super) fn warp(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<Option<(Op, Class)>> {
        let found = match code.head {
            "shfl" => self.shuffle(code, reads)?,
            "vote" => self.vote(code, reads)?,
            "match" => self.match_lanes(code, reads)?,
            "redux" => self.redux(code, reads)?,
            "activemask" => {
                code.arity(1..=1)?;
                (Op::Activemask { d: self.destination(code.operand(0)?, File::W)? }, Class::Warp)
            }
            "elect" => {
                self.sync(code)?;
                code.arity(2..=2)?;
                let Operand::Pair(d, p) = code.operand(0)? else { return Err(code.unsupported()) };
                let d = self.register(d)?;
                let p = self.destination(p, File::P)?;
                let mask = self.word(code.operand(1)?, Type::B32)?;
                reads.push(Reg::W(mask));
                (Op::Elect { d, p, mask }, Class::Warp)
            }
            "bar" | "barrier" => self.barrier(code, reads)?,
            "ldmatrix" | "stmatrix" => self.matrix_access(code, reads)?,
            "movmatrix" => {
                let known = ["sync", "aligned", "m8n8", "trans"].map(|m| code.take(m));
                if known.contains(&false) || code.ty()? != Type::B16 {
                    return Err(code.unsupported());
                }
                code.arity(2..=2)?;
                let a = self.word(code.operand(1)?, Type::B32)?;
                reads.push(Reg::W(a));
                (Op::MoveMatrix { d: self.destination(code.operand(0)?, File::W)?, a }, Class::Matrix)
            }
            "mma" => self.mma(code, reads)?,
            "wmma" => {
                return Err(Error::unsupported_because(
                    code.line(),
                    code.instruction.name(),
                    "the fragment layout of wmma is not specified; compile with mma.sync",
                ));
            }
            _ => return Ok(None),
        };
        Ok(Some(found))
    }

    /// `.sync`, without which these opcodes have not existed since sm_70.
    fn sync(&self, code: &mut Opcode) -> Result<()> {
        if code.take("sync") { Ok(()) } else { Err(code.unsupported()) }
    }

    fn shuffle(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        self.sync(code)?;
        code.arity(5..=5)?;
        let mode = code
            .take_of(&[
                ("up", Shuffle::Up),
                ("down", Shuffle::Down),
                ("bfly", Shuffle::Butterfly),
                ("idx", Shuffle::Index),
            ])
            .ok_or_else(|| code.unsupported())?;
        if code.ty()?.bits() != 32 {
            return Err(code.unsupported());
        }
        let (d, p) = self.with_predicate(code.operand(0)?)?;
        let a = self.word(code.operand(1)?, Type::B32)?;
        let b = self.word(code.operand(2)?, Type::B32)?;
        let c = self.word(code.operand(3)?, Type::B32)?;
        let mask = self.word(code.operand(4)?, Type::B32)?;
        reads.extend([Reg::W(b), Reg::W(c), Reg::W(mask)]);
        Ok((Op::Shuffle { mode, d, p, a, b, c, mask }, Class::Warp))
    }

    /// `d` or `d|p`.
    fn with_predicate(&mut self, operand: &Operand) -> Result<(u32, Reg)> {
        match operand {
            Operand::Pair(d, p) => {
                let p = match self.register(p)? {
                    p @ (Reg::P(_) | Reg::Sink) => p,
                    _ => return Err(Error::syntax(self.line, "expected a predicate after '|'")),
                };
                Ok((self.destination(d, File::W)?, p))
            }
            d => Ok((self.destination(d, File::W)?, Reg::Sink)),
        }
    }

    fn vote(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        self.sync(code)?;
        code.arity(3..=3)?;
        let mode = code
            .take_of(&[
                ("all", Vote::All),
                ("any", Vote::Any),
                ("uni", Vote::Uniform),
                ("ballot", Vote::Ballot),
            ])
            .ok_or_else(|| code.unsupported())?;
        let file = if mode == Vote::Ballot { File::W } else { File::P };
        let d = match (self.destination(code.operand(0)?, file)?, file) {
            (d, File::W) => Reg::W(d),
            (d, _) => Reg::P(d),
        };
        let a = self.pred(code.operand(1)?)?;
        let mask = self.word(code.operand(2)?, Type::B32)?;
        reads.extend([Reg::P(a.register), Reg::W(mask)]);
        Ok((Op::Vote { mode, d, a, mask }, Class::Warp))
    }

    fn match_lanes(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        self.sync(code)?;
        code.arity(3..=3)?;
        let all = code.take("all");
        if !all && !code.take("any") {
            return Err(code.unsupported());
        }
        let ty = code.ty()?;
        if !matches!(ty.bits(), 32 | 64) {
            return Err(code.unsupported());
        }
        let (d, p) = self.with_predicate(code.operand(0)?)?;
        let a = self.source(code.operand(1)?, ty, ty.bits() == 64)?;
        let mask = self.word(code.operand(2)?, Type::B32)?;
        reads.extend([a, Reg::W(mask)]);
        Ok((Op::Match { all, d, p, a, mask }, Class::Warp))
    }

    fn redux(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        self.sync(code)?;
        code.arity(3..=3)?;
        let ty = code.ty()?;
        let op = match (
            code.take_of(&[("add", 0), ("min", 1), ("max", 2), ("and", 3), ("or", 4), ("xor", 5)]),
            ty,
        ) {
            (Some(0), Type::U32 | Type::S32) => Reduce::Add,
            (Some(1), Type::U32) => Reduce::MinU,
            (Some(1), Type::S32) => Reduce::MinS,
            (Some(2), Type::U32) => Reduce::MaxU,
            (Some(2), Type::S32) => Reduce::MaxS,
            (Some(3), Type::B32) => Reduce::And,
            (Some(4), Type::B32) => Reduce::Or,
            (Some(5), Type::B32) => Reduce::Xor,
            _ => return Err(code.unsupported()),
        };
        let a = self.word(code.operand(1)?, ty)?;
        let mask = self.word(code.operand(2)?, Type::B32)?;
        reads.extend([Reg::W(a), Reg::W(mask)]);
        Ok((Op::Reduce { op, d: self.destination(code.operand(0)?, File::W)?, a, mask }, Class::Warp))
    }

    fn barrier(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        if code.take("cluster") {
            return Err(hopper(code, "clusters"));
        }
        if code.take("warp") {
            self.sync(code)?;
            code.arity(1..=1)?;
            let mask = self.word(code.operand(0)?, Type::B32)?;
            reads.push(Reg::W(mask));
            return Ok((Op::SyncWarp { mask }, Class::Barrier));
        }
        code.take("cta");
        let aligned = code.take("aligned") || code.head == "bar";
        let mut operands = code.operands();
        let (mut input, mut output) = (None, Reg::Sink);
        let kind = if code.take("sync") {
            BarrierKind::Sync
        } else if code.take("arrive") {
            BarrierKind::Arrive
        } else if code.take("red") {
            code.arity(3..=4)?;
            let kind = match code.take_of(&[("popc", 0), ("and", 1), ("or", 2)]) {
                Some(0) => BarrierKind::Count,
                Some(1) => BarrierKind::Reduce(Logic::And),
                Some(2) => BarrierKind::Reduce(Logic::Or),
                _ => return Err(code.unsupported()),
            };
            output = self.register(&operands[0])?;
            let (last, rest) = operands[1..].split_last().expect("three operands or more");
            let p = self.pred(last)?;
            reads.push(Reg::P(p.register));
            input = Some(p);
            operands = rest;
            let fits = match kind {
                BarrierKind::Count => matches!(output, Reg::W(_)),
                _ => matches!(output, Reg::P(_)),
            };
            if !fits {
                return Err(Error::syntax(code.line(), "a barrier's result of the wrong kind"));
            }
            kind
        } else {
            return Err(code.unsupported());
        };
        if operands.is_empty() || operands.len() > 2 {
            return Err(Error::syntax(code.line(), "a barrier needs its number and may have a count"));
        }
        let id = Reg::W(self.word(&operands[0], Type::U32)?);
        reads.push(id);
        let threads = match operands.get(1) {
            Some(operand) => Some(Reg::W(self.word(operand, Type::U32)?)),
            None if kind == BarrierKind::Arrive => {
                return Err(Error::syntax(code.line(), "bar.arrive needs a thread count"));
            }
            None => None,
        };
        reads.extend(threads);
        Ok((Op::Barrier(Barrier { kind, id, threads, aligned, input, output }), Class::Barrier))
    }

    fn matrix_access(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        for modifier in ["sync", "aligned"] {
            if !code.take(modifier) {
                return Err(code.unsupported());
            }
        }
        if !code.take("m8n8") || code.ty()? != Type::B16 || code.types.len() != 1 {
            return Err(code.unsupported());
        }
        let count = code.take_of(&[("x1", 1), ("x2", 2), ("x4", 4)]).ok_or_else(|| code.unsupported())?;
        let transposed = code.take("trans");
        if !code.take("shared") && !code.take("shared::cta") {
            return Err(code.unsupported());
        }
        code.arity(2..=2)?;
        let load = code.head == "ldmatrix";
        let (data, place) = if load { (0, 1) } else { (1, 0) };
        let registers = self.words_of(code.operand(data)?, count, load)?;
        let (address, _) = self.address(code.operand(place)?)?;
        reads.push(address.base);
        if load {
            return Ok((Op::LoadMatrix { address, d: registers, transposed }, Class::Matrix));
        }
        reads.extend(registers.iter().map(|r| Reg::W(*r)));
        Ok((Op::StoreMatrix { address, s: registers, transposed }, Class::Matrix))
    }

    fn mma(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        if code.modifiers.iter().any(|m| m.starts_with("sp") || m.starts_with("block_scale")) {
            return Err(code.unsupported());
        }
        for modifier in ["sync", "aligned", "row", "col"] {
            if !code.take(modifier) {
                return Err(code.unsupported());
            }
        }
        let shape = code
            .modifiers
            .iter()
            .position(|m| m.starts_with('m') && m[1..].starts_with(|c: char| c.is_ascii_digit()));
        let Some(shape) = shape else { return Err(code.unsupported()) };
        let shape = code.modifiers.remove(shape);
        let saturate = code.take("satfinite");
        code.take("kind::f8f6f4");
        code.arity(4..=4)?;
        let [d, a, b, c] = code.types[..] else { return Err(code.unsupported()) };
        let mma = form(shape, [d, a, b, c], saturate).ok_or_else(|| code.unsupported())?;
        let (na, nb, nc, nd) = mma.registers();
        if d == Type::F64 {
            let of = |this: &mut Self, index: usize, count: usize, result: bool| -> Result<Vec<u32>> {
                let registers = this.vector(code.operand(index)?, Type::F64, result)?;
                let doubles: Vec<u32> = registers
                    .iter()
                    .filter_map(|r| if let Reg::D(i) = r { Some(*i) } else { None })
                    .collect();
                if doubles.len() != count || registers.len() != count {
                    return Err(Error::syntax(code.line(), "a fragment of another size"));
                }
                Ok(doubles)
            };
            let (a, b, c) = (of(self, 1, na, false)?, of(self, 2, nb, false)?, of(self, 3, nc, false)?);
            let d = of(self, 0, nd, true)?;
            reads.extend([&a, &b, &c].into_iter().flatten().map(|r| Reg::D(*r)));
            return Ok((Op::MmaD { mma, d, a, b, c }, Class::Tensor));
        }
        let a = self.words_of(code.operand(1)?, na, false)?;
        let b = self.words_of(code.operand(2)?, nb, false)?;
        let c = self.words_of(code.operand(3)?, nc, false)?;
        let d = self.words_of(code.operand(0)?, nd, true)?;
        reads.extend([&a, &b, &c].into_iter().flatten().map(|r| Reg::W(*r)));
        Ok((Op::Mma { mma, d, a, b, c }, Class::Tensor))
    }
}

/// `m16n8k16` and the types of d, a, b and c.
fn form(shape: &str, [d, a, b, c]: [Type; 4], saturate: bool) -> Option<Mma> {
    let (m, rest) = shape.strip_prefix('m')?.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    let shape = (m.parse().ok()?, n.parse().ok()?, k.parse().ok()?);
    let element = |ty| {
        Some(match ty {
            Type::F16 => Element::F16,
            Type::Bf16 => Element::Bf16,
            Type::Tf32 => Element::Tf32,
            Type::E4m3 => Element::E4m3,
            Type::E5m2 => Element::E5m2,
            Type::S8 => Element::S8,
            Type::U8 => Element::U8,
            Type::S4 => Element::S4,
            Type::U4 => Element::U4,
            Type::F64 => Element::F64,
            _ => return None,
        })
    };
    let accumulator = |ty| {
        Some(match ty {
            Type::F16 => Accumulator::F16,
            Type::F32 => Accumulator::F32,
            Type::S32 => Accumulator::S32,
            Type::F64 => Accumulator::F64,
            _ => return None,
        })
    };
    Mma::new(shape, element(a)?, element(b)?, accumulator(c)?, accumulator(d)?, saturate)
}
