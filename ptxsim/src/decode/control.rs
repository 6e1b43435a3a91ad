//! Branches, calls, moves of data between registers, predicates.

use super::{Binding, CALL_BASE, Decoder, Opcode};
use crate::{
    error::{Error, Result},
    kernel::{Builtin, Call, Callee, Class, File, Logic, Op, Reg, Value},
    parse::{Operand, Space, Type},
};

impl Decoder<'_> {
    /// Decodes control flow, `mov`, `selp` and logic on predicates; None for other opcodes.
    pub(super) fn control(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<Option<(Op, Class)>> {
        let line = code.line();
        let op = match code.head {
            "bra" => {
                code.take("uni");
                code.arity(1..=1)?;
                let Operand::Name(name) = code.operand(0)? else { return Err(code.unsupported()) };
                Op::Branch { target: self.label(name)? }
            }
            "brx" => {
                code.take("uni");
                if !code.take("idx") {
                    return Err(code.unsupported());
                }
                code.arity(2..=2)?;
                let index = self.word(code.operand(0)?, Type::U32)?;
                reads.push(Reg::W(index));
                let Operand::Name(list) = code.operand(1)? else { return Err(code.unsupported()) };
                let Some(Binding::Targets(list)) = self.lookup(list) else {
                    return Err(Error::syntax(line, format!("{list:?} is no list of branch targets")));
                };
                let names = self.targets[list].clone();
                let targets = names.iter().map(|name| self.label(name)).collect::<Result<_>>()?;
                Op::BranchTable { index, targets }
            }
            "ret" => {
                code.take("uni");
                Op::Return
            }
            "exit" => Op::Exit,
            "trap" => Op::Trap,
            "brkpt" => Op::Breakpoint,
            "nanosleep" => Op::Sleep,
            "pmevent" => Op::Hint,
            "call" => return self.call(code, reads).map(Some),
            "griddepcontrol" => {
                if code.take("wait") {
                    Op::GridWait
                } else if code.take("launch_dependents") {
                    Op::LaunchDependents
                } else {
                    return Err(code.unsupported());
                }
            }
            "mov" => return self.mov(code).map(|op| Some((op, Class::Move))),
            "selp" => {
                code.arity(4..=4)?;
                let ty = code.ty()?;
                let p = self.pred(code.operand(3)?)?;
                reads.push(Reg::P(p.register));
                let op = if ty.bits() == 64 {
                    let (a, b) = (self.double(code.operand(1)?, ty)?, self.double(code.operand(2)?, ty)?);
                    Op::SelectD { d: self.destination(code.operand(0)?, File::D)?, a, b, p }
                } else {
                    let (a, b) = (self.word(code.operand(1)?, ty)?, self.word(code.operand(2)?, ty)?);
                    Op::SelectW { d: self.destination(code.operand(0)?, File::W)?, a, b, p }
                };
                return Ok(Some((op, Class::Integer)));
            }
            "and" | "or" | "xor" if code.ty()? == Type::Pred => {
                code.arity(3..=3)?;
                let op = match code.head {
                    "and" => Logic::And,
                    "or" => Logic::Or,
                    _ => Logic::Xor,
                };
                let (a, b) = (self.pred(code.operand(1)?)?, self.pred(code.operand(2)?)?);
                reads.extend([Reg::P(a.register), Reg::P(b.register)]);
                let d = self.destination(code.operand(0)?, File::P)?;
                return Ok(Some((Op::LogicP { op, d, a, b }, Class::Integer)));
            }
            "not" if code.ty()? == Type::Pred => {
                code.arity(2..=2)?;
                let mut a = self.pred(code.operand(1)?)?;
                a.negated = !a.negated;
                let d = self.destination(code.operand(0)?, File::P)?;
                return Ok(Some((Op::MoveP { d, a }, Class::Integer)));
            }
            _ => return Ok(None),
        };
        Ok(Some((op, Class::Control)))
    }

    fn label(&mut self, name: &str) -> Result<u32> {
        match self.lookup(name) {
            Some(Binding::Label(label)) => Ok(label as u32),
            _ => Err(Error::syntax(self.line, format!("there is no label {name:?} in reach"))),
        }
    }

    fn mov(&mut self, code: &mut Opcode) -> Result<Op> {
        code.arity(2..=2)?;
        let ty = code.ty()?;
        let (d, a) = (code.operand(0)?, code.operand(1)?);
        if let Operand::Name(name) = a
            && let Some(wide) = clock(name)
        {
            if wide != (ty.bits() == 64) {
                return Err(code.unsupported());
            }
            let d = self.register(d)?;
            return Ok(Op::Clock { d });
        }
        match (d, a) {
            (Operand::Vector(_), _) => {
                let parts = self.vector(d, ty, true)?;
                let a = self.source(a, ty, ty.bits() == 64)?;
                let bits = self.part_bits(ty, parts.len())?;
                Ok(Op::Unpack { parts, a, bits })
            }
            (_, Operand::Vector(_)) => {
                // Each part is a fraction of the whole; constants are read at that width.
                let Operand::Vector(items) = a else { return Err(code.unsupported()) };
                let bits = self.part_bits(ty, items.len())?;
                let part = match bits {
                    32 => Type::B32,
                    16 => Type::B16,
                    _ => Type::B8,
                };
                let parts = self.vector(a, part, false)?;
                let d = self.register(d)?;
                Ok(Op::Pack { d, parts, bits })
            }
            _ if ty == Type::Pred => {
                let a = self.pred(a)?;
                Ok(Op::MoveP { d: self.destination(d, File::P)?, a })
            }
            _ if ty.bits() == 64 => {
                let a = self.double(a, ty)?;
                Ok(Op::MoveD { d: self.destination(d, File::D)?, a })
            }
            _ => {
                let a = self.word(a, ty)?;
                Ok(Op::MoveW { d: self.destination(d, File::W)?, a })
            }
        }
    }

    fn part_bits(&self, ty: Type, count: usize) -> Result<u32> {
        let bits = ty.bits();
        match (bits, count) {
            (64, 2) | (32, 2) | (16, 2) | (64, 4) | (32, 4) => Ok(bits / count as u32),
            _ => Err(Error::unsupported(self.line, format!("mov of {count} parts of {bits} bits"))),
        }
    }

    fn call(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        code.take("uni");
        let line = code.line();
        let mut rest = code.operands();
        let mut results = vec![];
        if let [Operand::List(names), after @ ..] = rest {
            results = self.call_places(names)?;
            rest = after;
        }
        let [Operand::Name(target), after @ ..] = rest else { return Err(code.unsupported()) };
        let mut arguments = vec![];
        if let [Operand::List(names), ..] = after {
            arguments = self.call_places(names)?;
        }
        let callee = match target.as_str() {
            "vprintf" => Callee::Builtin(Builtin::Vprintf),
            "__assertfail" => Callee::Builtin(Builtin::AssertFail),
            "cudaGraphSetConditional" => Callee::Builtin(Builtin::GraphSetConditional),
            name => match self.lookup(name) {
                Some(Binding::Register(Reg::D(register))) => {
                    reads.push(Reg::D(register));
                    // Whoever stands in a table can be called through it.
                    let module = self.module;
                    for link in module.variables.iter().flat_map(|v| &v.links) {
                        self.routine(&link.symbol)?;
                    }
                    Callee::Register(register)
                }
                Some(_) => return Err(Error::syntax(line, format!("{name:?} is no function"))),
                None => match self.routine(name)? {
                    Some(index) => {
                        let routine = &self.routines[index];
                        let bytes = |places: &[(u32, u32)]| places.iter().map(|p| p.1).collect::<Vec<_>>();
                        if bytes(&routine.formals) != bytes(&arguments)
                            || (!results.is_empty() && bytes(&routine.results) != bytes(&results))
                        {
                            return Err(Error::syntax(
                                line,
                                format!("the call of {name:?} and its declaration differ"),
                            ));
                        }
                        Callee::Function(index)
                    }
                    None => {
                        return Err(Error::unsupported(line, format!("the function {name:?}")));
                    }
                },
            },
        };
        let wanted: &[u32] = match callee {
            Callee::Builtin(Builtin::Vprintf) => &[8, 8],
            Callee::Builtin(Builtin::AssertFail) => &[8, 8, 4, 8, 8],
            Callee::Builtin(Builtin::GraphSetConditional) => &[8, 4],
            _ => &[],
        };
        if matches!(callee, Callee::Builtin(_)) && !arguments.iter().map(|a| a.1).eq(wanted.iter().copied()) {
            return Err(Error::syntax(line, format!("{target} takes other arguments")));
        }
        Ok((Op::Call(Box::new(Call { callee, arguments, results })), Class::Control))
    }

    /// Places in call memory of a call's arguments or results.
    fn call_places(&mut self, names: &[Operand]) -> Result<Vec<(u32, u32)>> {
        names
            .iter()
            .map(|name| {
                let Operand::Name(name) = name else {
                    return Err(Error::unsupported(self.line, "a call with an immediate argument"));
                };
                match self.lookup(name) {
                    Some(Binding::Variable(Space::Param, Value::Param(offset))) if offset >= CALL_BASE => {
                        let place = (offset - CALL_BASE) as u32;
                        let bytes = self.call_sizes.get(&place).copied().unwrap_or(0);
                        Ok((place, bytes))
                    }
                    _ => Err(Error::unsupported(self.line, format!("the call argument {name:?}"))),
                }
            })
            .collect()
    }
}

/// Whether the name is a clock, and whether that is one of 64 bits.
fn clock(name: &str) -> Option<bool> {
    match name {
        "%clock" | "%clock_hi" | "%globaltimer_lo" | "%globaltimer_hi" => Some(false),
        "%clock64" | "%globaltimer" => Some(true),
        _ => None,
    }
}
