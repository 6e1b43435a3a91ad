//! Operands to registers. A constant is a register that every warp starts with.

use super::{Binding, Decoder};
use crate::{
    error::{Error, Result},
    kernel::{Address, File, Pred, Reg, Value},
    parse::{Operand, Space, Type},
};

impl Decoder<'_> {
    fn wrong(&self, message: impl Into<String>) -> Error {
        Error::syntax(self.line, message)
    }

    /// The register that holds `value` from the start, 64 bits wide or 32.
    pub(super) fn preset(&mut self, value: Value, wide: bool) -> Result<u32> {
        if let Some(register) = self.presets.get(&(wide, value)) {
            return Ok(*register);
        }
        let ty = if wide { Type::B64 } else { Type::B32 };
        let (Reg::W(index) | Reg::D(index) | Reg::P(index)) = self.new_register(ty, 1, self.line)? else {
            unreachable!("a new register has a file");
        };
        self.presets.insert((wide, value), index);
        if wide { &mut self.preset_doubles } else { &mut self.preset_words }.push((index, value));
        Ok(index)
    }

    /// A predicate register by name.
    pub(super) fn predicate(&mut self, name: &str) -> Result<u32> {
        match self.lookup(name) {
            Some(Binding::Register(Reg::P(index))) => Ok(index),
            _ => Err(self.wrong(format!("{name:?} is no predicate"))),
        }
    }

    /// A predicate that is always true, for operations that take one and are given none.
    pub(super) fn always(&mut self) -> Pred {
        let register = *self.always.get_or_insert_with(|| {
            let register = self.predicates;
            self.predicates += 1;
            self.preset_predicates.push((register, true));
            register
        });
        Pred { register, negated: false }
    }

    /// A source predicate: `%p`, `!%p`, or 0 and 1.
    pub(super) fn pred(&mut self, operand: &Operand) -> Result<Pred> {
        match operand {
            Operand::Name(name) => Ok(Pred { register: self.predicate(name)?, negated: false }),
            Operand::Not(name) => Ok(Pred { register: self.predicate(name)?, negated: true }),
            Operand::Int(n) => Ok(Pred { negated: *n == 0, ..self.always() }),
            _ => Err(self.wrong("expected a predicate")),
        }
    }

    /// A destination of the given file.
    pub(super) fn destination(&mut self, operand: &Operand, file: File) -> Result<u32> {
        match (self.register(operand)?, file) {
            (Reg::W(i), File::W) | (Reg::D(i), File::D) | (Reg::P(i), File::P) => Ok(i),
            // A result that nobody wants still needs a place.
            (Reg::Sink, File::W) => Ok(self.words_sink()?),
            _ => Err(self.wrong(format!("{} has not the width of the result", describe(operand)))),
        }
    }

    fn words_sink(&mut self) -> Result<u32> {
        match self.new_register(Type::B32, 1, self.line)? {
            Reg::W(index) => Ok(index),
            _ => unreachable!("32 bits live in W"),
        }
    }

    /// A register of any file, or the sink.
    pub(super) fn register(&mut self, operand: &Operand) -> Result<Reg> {
        match operand {
            Operand::Name(name) if name == "_" => Ok(Reg::Sink),
            Operand::Name(name) => match self.lookup(name) {
                Some(Binding::Register(register)) => Ok(register),
                Some(_) => Err(self.wrong(format!("{name:?} is no register"))),
                None => Err(self.wrong(format!("{name:?} is not declared"))),
            },
            _ => Err(self.wrong(format!("expected a register, found {}", describe(operand)))),
        }
    }

    /// A source as a 32-bit register; an immediate is read as `ty`.
    pub(super) fn word(&mut self, operand: &Operand, ty: Type) -> Result<u32> {
        match self.source(operand, ty, false)? {
            Reg::W(index) => Ok(index),
            _ => Err(self.wrong(format!("{} is wider than its instruction", describe(operand)))),
        }
    }

    /// A source as a 64-bit register.
    pub(super) fn double(&mut self, operand: &Operand, ty: Type) -> Result<u32> {
        match self.source(operand, ty, true)? {
            Reg::D(index) => Ok(index),
            _ => Err(self.wrong(format!("{} is narrower than its instruction", describe(operand)))),
        }
    }

    /// A source: a register as it is, or a constant of the file that `wide` names.
    pub(super) fn source(&mut self, operand: &Operand, ty: Type, wide: bool) -> Result<Reg> {
        let constant = |this: &mut Self, value| {
            let index = this.preset(value, wide)?;
            Ok(if wide { Reg::D(index) } else { Reg::W(index) })
        };
        match operand {
            Operand::Int(n) => {
                let bits = match (ty, wide) {
                    (Type::F64, _) | (_, true) => *n,
                    _ if ty.bits() == 16 => u64::from(*n as u16),
                    _ => u64::from(*n as u32),
                };
                constant(self, Value::Bits(bits))
            }
            Operand::F32(bits) if wide => {
                constant(self, Value::Bits(f64::from(f32::from_bits(*bits)).to_bits()))
            }
            Operand::F32(bits) => constant(self, Value::Bits(u64::from(*bits))),
            Operand::F64(bits) if wide => constant(self, Value::Bits(*bits)),
            Operand::F64(bits) => {
                constant(self, Value::Bits(u64::from((f64::from_bits(*bits) as f32).to_bits())))
            }
            Operand::Name(name) => match self.lookup(name) {
                Some(Binding::Register(register)) => Ok(register),
                Some(Binding::Variable(_, value)) => constant(self, value),
                Some(_) => Err(self.wrong(format!("{name:?} is a label"))),
                None => {
                    if name == "WARP_SZ" {
                        return constant(self, Value::Bits(32));
                    }
                    if let Some(value) = special(name) {
                        return constant(self, value);
                    }
                    if let Some(index) = self.routine(name)? {
                        let place = self.routines[index].index;
                        return constant(self, Value::Function(place));
                    }
                    if name.starts_with('%') {
                        return Err(Error::unsupported(self.line, format!("the register {name}")));
                    }
                    Err(self.wrong(format!("{name:?} is not declared")))
                }
            },
            Operand::Offset(name, offset) => match self.lookup(name) {
                Some(Binding::Variable(_, value)) => {
                    let value = match value {
                        Value::Shared(at) => Value::Shared(at.wrapping_add_signed(*offset)),
                        Value::Local(at) => Value::Local(at.wrapping_add_signed(*offset)),
                        Value::Param(at) => Value::Param(at.wrapping_add_signed(*offset)),
                        _ => {
                            return Err(Error::unsupported(
                                self.line,
                                format!("the operand {name}+{offset}"),
                            ));
                        }
                    };
                    constant(self, value)
                }
                _ => Err(self.wrong(format!("{name:?} is no variable"))),
            },
            _ => Err(self.wrong(format!("expected a value, found {}", describe(operand)))),
        }
    }

    /// The registers of `{a, b, c}`, or of a single one.
    pub(super) fn vector(&mut self, operand: &Operand, ty: Type, result: bool) -> Result<Vec<Reg>> {
        let one = |this: &mut Self, operand: &Operand| {
            if result { this.register(operand) } else { this.source(operand, ty, ty.bits() == 64) }
        };
        match operand {
            Operand::Vector(items) if items.is_empty() || items.len() > 128 => {
                Err(self.wrong(format!("a vector of {} registers", items.len())))
            }
            Operand::Vector(items) => items.iter().map(|item| one(self, item)).collect(),
            operand => Ok(vec![one(self, operand)?]),
        }
    }

    /// As many 32-bit registers as the instruction takes.
    pub(super) fn words_of(&mut self, operand: &Operand, count: usize, result: bool) -> Result<Vec<u32>> {
        let registers = self.vector(operand, Type::B32, result)?;
        if registers.len() != count {
            return Err(self.wrong(format!("{} registers where {count} are taken", registers.len())));
        }
        registers
            .into_iter()
            .map(|register| match register {
                Reg::W(index) => Ok(index),
                Reg::Sink if result => self.words_sink(),
                _ => Err(self.wrong("expected 32-bit registers")),
            })
            .collect()
    }

    /// `[base + offset]`
    pub(super) fn address(&mut self, operand: &Operand) -> Result<(Address, Option<Space>)> {
        let Operand::Address(base, offset) = operand else {
            return Err(self.wrong(format!("expected an address, found {}", describe(operand))));
        };
        let mut space = None;
        if let Operand::Name(name) = &**base
            && let Some(Binding::Variable(found, _)) = self.lookup(name)
        {
            space = Some(found);
        }
        let base = self.source(base, Type::B64, true)?;
        if matches!(base, Reg::P(_) | Reg::Sink) {
            return Err(self.wrong("a predicate is no address"));
        }
        Ok((Address { base, offset: *offset }, space))
    }
}

pub(super) fn describe(operand: &Operand) -> String {
    match operand {
        Operand::Name(name) | Operand::Not(name) | Operand::Offset(name, _) => format!("{name:?}"),
        Operand::Int(n) => format!("the number {n}"),
        Operand::F32(_) | Operand::F64(_) => "a float".into(),
        Operand::Address(..) => "an address".into(),
        Operand::Vector(_) => "a vector".into(),
        Operand::Pair(..) => "a pair".into(),
        Operand::List(_) => "a list".into(),
        Operand::Coordinates => "coordinates".into(),
    }
}

/// The special registers that keep their value through a launch.
fn special(name: &str) -> Option<Value> {
    let axis = |prefix: &str| match name.strip_prefix(prefix)? {
        ".x" => Some(0),
        ".y" => Some(1),
        ".z" => Some(2),
        _ => None,
    };
    if let Some(i) = axis("%tid") {
        return Some(Value::Tid(i));
    }
    if let Some(i) = axis("%ntid") {
        return Some(Value::Ntid(i));
    }
    if let Some(i) = axis("%ctaid") {
        return Some(Value::Ctaid(i));
    }
    if let Some(i) = axis("%nctaid") {
        return Some(Value::Nctaid(i));
    }
    Some(match name {
        "%laneid" => Value::LaneId,
        "%warpid" => Value::WarpId,
        "%nwarpid" => Value::Nwarpid,
        "%lanemask_eq" => Value::LanemaskEq,
        "%lanemask_lt" => Value::LanemaskLt,
        "%lanemask_le" => Value::LanemaskLe,
        "%lanemask_gt" => Value::LanemaskGt,
        "%lanemask_ge" => Value::LanemaskGe,
        "%gridid" => Value::GridId,
        "%smid" => Value::SmId,
        "%nsmid" => Value::NsmId,
        "%envreg1" => Value::Workspace(true),
        "%envreg2" => Value::Workspace(false),
        "%dynamic_smem_size" => Value::DynamicSharedBytes,
        "%total_smem_size" => Value::TotalSharedBytes,
        _ => return None,
    })
}
