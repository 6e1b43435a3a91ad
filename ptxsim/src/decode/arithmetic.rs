//! The table of arithmetic: opcode, type and modifiers to a function of lanes.

use super::{
    Decoder, Opcode,
    lanes::{compare, lanes},
};
use crate::{
    error::{Error, Result},
    kernel::{Carry, Class, File, Function, Logic, Op, Pred, Reg},
    numerics::{
        exact::Rounding,
        float::{self, Extremum, Mode, Property},
        half::{self, Flags, Half},
        integer,
    },
    parse::{Operand, Type},
};

/// `$f::<N>` for a number known only when an opcode is decoded.
macro_rules! by_number {
    ($n:expr, $variant:ident, $f:ident: $($i:literal)*) => {
        match $n {
            $($i => Function::$variant($f::<$i>),)*
            _ => return None,
        }
    };
}

/// A function of f32 registers for each of the sixteen combinations of rounding, `.ftz` and `.sat`.
macro_rules! modes {
    ($variant:ident, $mode:expr, |$($x:ident),+; $m:ident| $body:expr) => {{
        #[allow(clippy::needless_range_loop)]
        fn run<const MODE: u32>($($x: &[u32; 32],)+ out: &mut [u32; 32]) {
            let $m = const { mode(MODE) };
            for lane in 0..32 {
                $(let $x = $x[lane];)+
                out[lane] = $body;
            }
        }
        by_number!($mode, $variant, run: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    }};
}

const fn mode(bits: u32) -> Mode {
    let round = match bits & 3 {
        0 => Rounding::Rn,
        1 => Rounding::Rz,
        2 => Rounding::Rm,
        _ => Rounding::Rp,
    };
    Mode { round, ftz: bits & 4 != 0, sat: bits & 8 != 0 }
}

/// The modifiers that floats take, as they were found.
#[derive(Clone, Copy, Default)]
struct Modifiers {
    round: u32,
    rounded: bool,
    ftz: bool,
    sat: bool,
    relu: bool,
    nan: bool,
    xorsign: bool,
    approx: bool,
    full: bool,
}

impl Modifiers {
    fn take(code: &mut Opcode) -> Self {
        let round = code.take_of(&[("rn", 0), ("rz", 1), ("rm", 2), ("rp", 3)]);
        let xorsign = code.take("xorsign");
        Modifiers {
            round: round.unwrap_or(0),
            rounded: round.is_some(),
            ftz: code.take("ftz"),
            sat: code.take("sat"),
            relu: code.take("relu"),
            nan: code.take("NaN"),
            xorsign: xorsign && code.take("abs"),
            approx: code.take("approx"),
            full: code.take("full"),
        }
    }

    fn mode(self) -> u32 {
        self.round | u32::from(self.ftz) << 2 | u32::from(self.sat) << 3
    }

    fn flags(self) -> u32 {
        u32::from(self.ftz) | u32::from(self.sat) << 1 | u32::from(self.relu) << 2
    }
}

const fn flags(bits: u32) -> Flags {
    Flags { ftz: bits & 1 != 0, sat: bits & 2 != 0, relu: bits & 4 != 0 }
}

impl Decoder<'_> {
    /// Decodes arithmetic, comparisons and conversions; None for other opcodes.
    pub(super) fn arithmetic(
        &mut self,
        code: &mut Opcode,
        reads: &mut Vec<Reg>,
    ) -> Result<Option<(Op, Class)>> {
        match code.head {
            "cvt" => return self.convert(code, reads).map(Some),
            "setp" | "set" => return self.comparison(code, reads).map(Some),
            "slct" => return self.slct(code, reads).map(Some),
            "lop3" => return self.lop3(code, reads).map(Some),
            _ => {}
        }
        if let Some(found) = self.carry(code, reads)? {
            return Ok(Some(found));
        }
        let ty = match code.ty() {
            Ok(ty) => ty,
            Err(_) if matches!(code.head, "dp4a" | "dp2a") => Type::S32,
            Err(_) => return Ok(None),
        };
        let found = match ty {
            Type::F32 | Type::F64 if code.types.len() == 1 => float_function(code, ty),
            Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 if code.types.len() == 1 => {
                half_function(code, ty)
            }
            _ => super::integer::function(code, ty),
        };
        let Some((function, class)) = found else { return Ok(None) };
        let (d, sources) = function.signature();
        code.arity(sources.len() + 1..=sources.len() + 1)?;
        let mut s = [0; 4];
        for (i, file) in sources.iter().enumerate() {
            let operand = code.operand(i + 1)?;
            // Counts and positions of 64-bit operations are 32 bits wide, whatever the type.
            s[i] = match file {
                File::D => {
                    let index = self.double(operand, ty)?;
                    reads.push(Reg::D(index));
                    index
                }
                _ => {
                    let narrow = if ty.bits() == 64 { Type::B32 } else { ty };
                    let narrow =
                        if matches!(code.head, "shl" | "shr") && i == 1 { Type::B32 } else { narrow };
                    let index = self.word(operand, narrow)?;
                    reads.push(Reg::W(index));
                    index
                }
            };
        }
        let d = self.destination(code.operand(0)?, d)?;
        Ok(Some((Op::Apply { f: function, d, s }, class)))
    }

    fn lop3(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        if code.ty()? != Type::B32 {
            return Err(code.unsupported());
        }
        code.arity(5..=5)?;
        let mut s = [0; 4];
        for (i, s) in s.iter_mut().enumerate() {
            *s = self.word(code.operand(i + 1)?, Type::B32)?;
            reads.push(Reg::W(*s));
        }
        let Operand::Int(_) = code.operand(4)? else { return Err(code.unsupported()) };
        let d = self.destination(code.operand(0)?, File::W)?;
        let f = lanes!(W4; |a: u32, b: u32, c: u32, table: u32| integer::lop3(a, b, c, table as u8));
        Ok((Op::Apply { f, d, s }, Class::Integer))
    }

    /// slct: c ≥ 0 chooses; as a comparison and a selection would need a predicate, it is a function of three.
    fn slct(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        let ftz = code.take("ftz");
        let [ty, by] = code.types[..] else { return Err(code.unsupported()) };
        if ty.bits() < 16 || ftz && by != Type::F32 {
            return Err(code.unsupported());
        }
        // −0 is not less than 0, NaN is neither greater nor equal, and a flushed subnormal is zero.
        macro_rules! choose {
            ($c:ident: $t:ty, $holds:expr) => {
                if ty.bits() == 64 {
                    lanes!(DfromDDWW; |a: u64, b: u64, $c: $t, unused: u32| {
                        let _ = unused;
                        if $holds { a } else { b }
                    })
                } else {
                    lanes!(W3; |a: u32, b: u32, $c: $t| if $holds { a } else { b })
                }
            };
        }
        let f = match by {
            Type::S32 => choose!(c: i32, c >= 0),
            Type::F32 if ftz => choose!(c: u32, f32::from_bits(float::flush_f32(c)) >= 0.0),
            Type::F32 => choose!(c: u32, f32::from_bits(c) >= 0.0),
            _ => return Err(code.unsupported()),
        };
        code.arity(4..=4)?;
        let mut s = [0; 4];
        for (i, s) in s.iter_mut().enumerate() {
            let operand = code.operand(1 + i.min(2))?;
            let (index, register) = if i < 2 && ty.bits() == 64 {
                let index = self.double(operand, ty)?;
                (index, Reg::D(index))
            } else {
                let index = self.word(operand, if i < 2 { ty } else { by })?;
                (index, Reg::W(index))
            };
            *s = index;
            reads.push(register);
        }
        let file = if ty.bits() == 64 { File::D } else { File::W };
        Ok((Op::Apply { f, d: self.destination(code.operand(0)?, file)?, s }, Class::Integer))
    }

    /// add.cc, addc, sub.cc, subc, mad.cc and madc.
    fn carry(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<Option<(Op, Class)>> {
        let takes = matches!(code.head, "addc" | "subc" | "madc");
        let sets = code.modifiers.contains(&"cc");
        if !takes && !sets {
            return Ok(None);
        }
        code.take("cc");
        let ty = code.ty()?;
        let wide = match ty {
            Type::U32 | Type::S32 => false,
            Type::U64 | Type::S64 => true,
            _ => return Err(code.unsupported()),
        };
        let part = code.take_of(&[("lo", 0), ("hi", 1)]);
        macro_rules! choose {
            ($with:expr, $without:expr, $variant:ident) => {
                if takes { Carry::$variant($with) } else { Carry::$variant($without) }
            };
        }
        let signed = ty.signed();
        let f = match (code.head.trim_end_matches('c'), part, wide) {
            ("add", None, false) => {
                choose!(|a, b, _, c| integer::addc_32(a, b, c), |a, b, _, _| integer::addc_32(a, b, false), W)
            }
            ("add", None, true) => {
                choose!(|a, b, _, c| integer::addc_64(a, b, c), |a, b, _, _| integer::addc_64(a, b, false), D)
            }
            ("sub", None, false) => {
                choose!(|a, b, _, c| integer::subc_32(a, b, c), |a, b, _, _| integer::subc_32(a, b, false), W)
            }
            ("sub", None, true) => {
                choose!(|a, b, _, c| integer::subc_64(a, b, c), |a, b, _, _| integer::subc_64(a, b, false), D)
            }
            ("mad", Some(0), false) => {
                choose!(integer::madc_lo_32, |a, b, c, _| integer::madc_lo_32(a, b, c, false), W)
            }
            ("mad", Some(1), false) if signed => {
                choose!(integer::madc_hi_s32, |a, b, c, _| integer::madc_hi_s32(a, b, c, false), W)
            }
            ("mad", Some(1), false) => {
                choose!(integer::madc_hi_u32, |a, b, c, _| integer::madc_hi_u32(a, b, c, false), W)
            }
            ("mad", Some(0), true) => {
                choose!(integer::madc_lo_64, |a, b, c, _| integer::madc_lo_64(a, b, c, false), D)
            }
            ("mad", Some(1), true) if signed => {
                choose!(integer::madc_hi_s64, |a, b, c, _| integer::madc_hi_s64(a, b, c, false), D)
            }
            ("mad", Some(1), true) => {
                choose!(integer::madc_hi_u64, |a, b, c, _| integer::madc_hi_u64(a, b, c, false), D)
            }
            _ => return Err(code.unsupported()),
        };
        let count = if code.head.starts_with("mad") { 3 } else { 2 };
        code.arity(count + 1..=count + 1)?;
        let mut s = [0; 3];
        for (i, s) in s.iter_mut().enumerate() {
            let operand = code.operand(1 + i.min(count - 1))?;
            *s = if wide {
                let index = self.double(operand, ty)?;
                reads.push(Reg::D(index));
                index
            } else {
                let index = self.word(operand, ty)?;
                reads.push(Reg::W(index));
                index
            };
        }
        let d = self.destination(code.operand(0)?, if wide { File::D } else { File::W })?;
        if takes {
            reads.push(Reg::P(self.carry));
        }
        Ok(Some((Op::Carry { f, d, s, sets }, Class::Integer)))
    }

    /// setp and set.
    fn comparison(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        let ftz = code.take("ftz");
        let relation = [
            "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu",
            "geu", "num", "nan",
        ]
        .into_iter()
        .find(|relation| code.take(relation))
        .ok_or_else(|| code.unsupported())?;
        let logic = code.take_of(&[("and", Logic::And), ("or", Logic::Or), ("xor", Logic::Xor)]);
        let ty = code.ty()?;
        let pair = matches!(ty, Type::F16x2 | Type::Bf16x2);
        let function = |high: bool| comparison(relation, ty, ftz, high).ok_or_else(|| code.unsupported());
        let f = function(false)?;
        code.arity(3 + usize::from(logic.is_some())..=3 + usize::from(logic.is_some()))?;
        let mut s = [0; 2];
        for (i, s) in s.iter_mut().enumerate() {
            let operand = code.operand(i + 1)?;
            *s = if ty.bits() == 64 {
                let index = self.double(operand, ty)?;
                reads.push(Reg::D(index));
                index
            } else {
                let index = self.word(operand, ty)?;
                reads.push(Reg::W(index));
                index
            };
        }
        let with: Option<(Logic, Pred)> = match logic {
            None => None,
            Some(logic) => {
                let p = self.pred(code.operand(3)?)?;
                reads.push(Reg::P(p.register));
                Some((logic, p))
            }
        };
        let class = if matches!(ty, Type::F32) { Class::Float } else { Class::Integer };
        if code.head == "set" {
            let [to, _] = code.types[..] else { return Err(code.unsupported()) };
            let one = match to {
                Type::U32 | Type::S32 => u32::MAX,
                Type::F32 => 1f32.to_bits(),
                Type::F16 | Type::F16x2 => 0x3c00,
                Type::Bf16 | Type::Bf16x2 => 0x3f80,
                Type::U16 | Type::S16 => 0xffff,
                _ => return Err(code.unsupported()),
            };
            if pair {
                // Both halves are compared; the results fill the halves of the destination.
                let one = if to.bits() == 32 && one > 0xffff { 0xffff } else { one };
                if matches!(to, Type::F32) || with.is_some() {
                    return Err(code.unsupported());
                }
                let d = self.destination(code.operand(0)?, File::W)?;
                return Ok((Op::Set2 { low: f, high: function(true)?, d, one, s }, class));
            }
            if matches!(to, Type::F16x2 | Type::Bf16x2) {
                return Err(code.unsupported());
            }
            let d = self.destination(code.operand(0)?, File::W)?;
            return Ok((Op::Set { f, d, one, s, with }, class));
        }
        if code.types.len() != 1 {
            return Err(code.unsupported());
        }
        let (p, q) = match code.operand(0)? {
            Operand::Pair(p, q) => (self.register(p)?, self.register(q)?),
            p => (self.register(p)?, Reg::Sink),
        };
        if !matches!(p, Reg::P(_) | Reg::Sink) || !matches!(q, Reg::P(_) | Reg::Sink) {
            return Err(Error::syntax(code.line(), "setp writes predicates"));
        }
        if pair {
            let high = comparison(relation, ty, ftz, true).ok_or_else(|| code.unsupported())?;
            return Ok((Op::SetP2 { low: f, high, p, q, s, with }, class));
        }
        Ok((Op::SetP { f, p, q, s, with }, class))
    }
}

/// The comparison of two registers; of pairs the lower or the upper halves. Comparisons of floats are false on NaN, those
/// that end in u true.
fn comparison(relation: &str, ty: Type, ftz: bool, high: bool) -> Option<Function> {
    macro_rules! relations {
        ($variant:ident, $t:ty) => {
            Some(match relation {
                "eq" => compare!($variant; |x: $t, y: $t| x == y),
                "ne" => compare!($variant; |x: $t, y: $t| x != y),
                "lt" | "lo" => compare!($variant; |x: $t, y: $t| x < y),
                "le" | "ls" => compare!($variant; |x: $t, y: $t| x <= y),
                "gt" | "hi" => compare!($variant; |x: $t, y: $t| x > y),
                "ge" | "hs" => compare!($variant; |x: $t, y: $t| x >= y),
                _ => return None,
            })
        };
    }
    macro_rules! floats {
        ($variant:ident, $t:ty, $of:path) => {
            Some(match relation {
                "eq" => compare!($variant; |x: $t, y: $t| $of(x) == $of(y)),
                "ne" => compare!($variant; |x: $t, y: $t| differ($of(x), $of(y))),
                "lt" => compare!($variant; |x: $t, y: $t| $of(x) < $of(y)),
                "le" => compare!($variant; |x: $t, y: $t| $of(x) <= $of(y)),
                "gt" => compare!($variant; |x: $t, y: $t| $of(x) > $of(y)),
                "ge" => compare!($variant; |x: $t, y: $t| $of(x) >= $of(y)),
                "neu" => compare!($variant; |x: $t, y: $t| $of(x) != $of(y)),
                "equ" => compare!($variant; |x: $t, y: $t| $of(x) == $of(y) || unordered($of(x), $of(y))),
                "ltu" => compare!($variant; |x: $t, y: $t| $of(x) < $of(y) || unordered($of(x), $of(y))),
                "leu" => compare!($variant; |x: $t, y: $t| $of(x) <= $of(y) || unordered($of(x), $of(y))),
                "gtu" => compare!($variant; |x: $t, y: $t| $of(x) > $of(y) || unordered($of(x), $of(y))),
                "geu" => compare!($variant; |x: $t, y: $t| $of(x) >= $of(y) || unordered($of(x), $of(y))),
                "num" => compare!($variant; |x: $t, y: $t| !unordered($of(x), $of(y))),
                "nan" => compare!($variant; |x: $t, y: $t| unordered($of(x), $of(y))),
                _ => return None,
            })
        };
    }
    use Type::*;
    match ty {
        U16 | B16 => relations!(Compare, u16),
        S16 => relations!(Compare, i16),
        U32 | B32 => relations!(Compare, u32),
        S32 => relations!(Compare, i32),
        U64 | B64 => relations!(CompareD, u64),
        S64 => relations!(CompareD, i64),
        F32 if ftz => floats!(Compare, u32, flushed),
        F32 => floats!(Compare, u32, f32::from_bits),
        F64 => floats!(CompareD, u64, f64::from_bits),
        F16 | F16x2 if ftz && high => floats!(Compare, u32, upper_f16_flushed),
        F16 | F16x2 if ftz => floats!(Compare, u32, lower_f16_flushed),
        F16 | F16x2 if high => floats!(Compare, u32, upper_f16),
        F16 | F16x2 => floats!(Compare, u32, lower_f16),
        Bf16 | Bf16x2 if high => floats!(Compare, u32, upper_bf16),
        Bf16 | Bf16x2 => floats!(Compare, u32, lower_bf16),
        _ => None,
    }
}

/// One of them is NaN.
#[inline(always)]
fn unordered<T: PartialOrd>(x: T, y: T) -> bool {
    x.partial_cmp(&y).is_none()
}

/// Less or greater, which `!=` is not: it holds for NaN.
#[inline(always)]
#[allow(clippy::double_comparisons)]
fn differ<T: PartialOrd>(x: T, y: T) -> bool {
    x < y || x > y
}

#[inline(always)]
fn flushed(bits: u32) -> f32 {
    f32::from_bits(float::flush_f32(bits))
}

#[inline(always)]
fn lower_f16(bits: u32) -> f32 {
    half::f16_to_f32(bits as u16)
}

#[inline(always)]
fn upper_f16(bits: u32) -> f32 {
    half::f16_to_f32((bits >> 16) as u16)
}

#[inline(always)]
fn lower_f16_flushed(bits: u32) -> f32 {
    half::f16_to_f32(flush_f16(bits as u16))
}

#[inline(always)]
fn upper_f16_flushed(bits: u32) -> f32 {
    half::f16_to_f32(flush_f16((bits >> 16) as u16))
}

#[inline(always)]
fn lower_bf16(bits: u32) -> f32 {
    half::bf16_to_f32(bits as u16)
}

#[inline(always)]
fn upper_bf16(bits: u32) -> f32 {
    half::bf16_to_f32((bits >> 16) as u16)
}

/// A subnormal f16 becomes a zero of its sign.
#[inline(always)]
fn flush_f16(bits: u16) -> u16 {
    if bits & 0x7c00 == 0 { bits & 0x8000 } else { bits }
}

fn float_function(code: &mut Opcode, ty: Type) -> Option<(Function, Class)> {
    if code.head == "testp" {
        let property = code.take_of(&[
            ("finite", Property::Finite),
            ("infinite", Property::Infinite),
            ("number", Property::Number),
            ("notanumber", Property::NotANumber),
            ("normal", Property::Normal),
            ("subnormal", Property::Subnormal),
        ])?;
        macro_rules! of {
            ($($p:ident)*) => {
                match (property, ty) {
                    $((Property::$p, Type::F32) => compare!(Test; |a: u32| float::testp_f32(a, Property::$p)),
                    (Property::$p, _) => compare!(TestD; |a: u64| float::testp_f64(a, Property::$p)),)*
                }
            };
        }
        return Some((of!(Finite Infinite Number NotANumber Normal Subnormal), Class::Float));
    }
    let m = Modifiers::take(code);
    if m.relu || (m.nan || m.xorsign) && !matches!(code.head, "min" | "max") {
        return None;
    }
    if ty == Type::F64 { double_function(code, m) } else { single_function(code, m) }
}

fn single_function(code: &mut Opcode, m: Modifiers) -> Option<(Function, Class)> {
    let plain = m.mode() == 0;
    let mut class = Class::Float;
    let approximate = m.approx || m.full;
    let takes_mode = matches!(code.head, "add" | "sub" | "mul" | "fma" | "mad");
    let takes_approx =
        matches!(code.head, "div" | "ex2" | "lg2" | "rcp" | "rsqrt" | "sqrt" | "sin" | "cos" | "tanh");
    if !takes_mode && m.sat
        || !takes_mode && !takes_approx && m.rounded
        || !takes_approx && approximate
        || m.rounded && approximate
    {
        return None;
    }
    let function = match code.head {
        "add" if plain => lanes!(W2; |a: f32, b: f32| a + b),
        "sub" if plain => lanes!(W2; |a: f32, b: f32| a - b),
        "mul" if plain => lanes!(W2; |a: f32, b: f32| a * b),
        "fma" | "mad" if plain && m.rounded => lanes!(W3; |a: f32, b: f32, c: f32| fused(a, b, c)),
        "div" if plain && m.rounded => lanes!(W2; |a: f32, b: f32| a / b),
        "rcp" if plain && m.rounded => lanes!(W1; |a: f32| 1.0 / a),
        "add" => modes!(W2, m.mode(), |a, b; m| float::add_f32(a, b, m)),
        "sub" => modes!(W2, m.mode(), |a, b; m| float::sub_f32(a, b, m)),
        "mul" => modes!(W2, m.mode(), |a, b; m| float::mul_f32(a, b, m)),
        "fma" | "mad" if m.rounded => modes!(W3, m.mode(), |a, b, c; m| float::fma_f32(a, b, c, m)),
        "div" if m.rounded && !m.sat => modes!(W2, m.mode(), |a, b; m| float::div_f32(a, b, m)),
        "rcp" if m.rounded && !m.sat => modes!(W1, m.mode(), |a; m| float::rcp_f32(a, m)),
        "sqrt" if m.rounded && !m.sat => modes!(W1, m.mode(), |a; m| float::sqrt_f32(a, m)),
        "neg" if m.ftz => lanes!(W1; |a: u32| float::neg_f32(float::flush_f32(a))),
        "neg" => lanes!(W1; |a: u32| float::neg_f32(a)),
        "abs" if m.ftz => lanes!(W1; |a: u32| float::abs_f32(float::flush_f32(a))),
        "abs" => lanes!(W1; |a: u32| float::abs_f32(a)),
        "copysign" => lanes!(W2; |a: u32, b: u32| float::copysign_f32(a, b)),
        "min" | "max" => {
            #[allow(clippy::needless_range_loop)]
            fn run<const BITS: u32>(a: &[u32; 32], b: &[u32; 32], out: &mut [u32; 32]) {
                let which = if BITS & 1 != 0 { Extremum::Max } else { Extremum::Min };
                for lane in 0..32 {
                    out[lane] = float::extremum_f32(
                        a[lane],
                        b[lane],
                        which,
                        BITS & 2 != 0,
                        BITS & 4 != 0,
                        BITS & 8 != 0,
                    );
                }
            }
            let bits = u32::from(code.head == "max")
                | u32::from(m.ftz) << 1
                | u32::from(m.nan) << 2
                | u32::from(m.xorsign) << 3;
            by_number!(bits, W2, run: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
        }
        "div" if approximate && !m.sat && !m.rounded => match (m.full, m.ftz) {
            (false, false) => lanes!(W2; |a: u32, b: u32| float::div_approx_f32(a, b, false)),
            (false, true) => lanes!(W2; |a: u32, b: u32| float::div_approx_f32(a, b, true)),
            (true, false) => lanes!(W2; |a: u32, b: u32| float::div_full_f32(a, b, false)),
            (true, true) => lanes!(W2; |a: u32, b: u32| float::div_full_f32(a, b, true)),
        },
        "ex2" | "lg2" | "rcp" | "rsqrt" | "sqrt" | "sin" | "cos" | "tanh" if m.approx && !m.sat => {
            class = Class::Special;
            match (code.head, m.ftz) {
                ("ex2", false) => lanes!(W1; |a: u32| float::ex2_approx_f32(a, false)),
                ("ex2", true) => lanes!(W1; |a: u32| float::ex2_approx_f32(a, true)),
                ("lg2", false) => lanes!(W1; |a: u32| float::lg2_approx_f32(a, false)),
                ("lg2", true) => lanes!(W1; |a: u32| float::lg2_approx_f32(a, true)),
                ("rcp", false) => lanes!(W1; |a: u32| float::rcp_approx_f32(a, false)),
                ("rcp", true) => lanes!(W1; |a: u32| float::rcp_approx_f32(a, true)),
                ("rsqrt", false) => lanes!(W1; |a: u32| float::rsqrt_approx_f32(a, false)),
                ("rsqrt", true) => lanes!(W1; |a: u32| float::rsqrt_approx_f32(a, true)),
                ("sqrt", false) => lanes!(W1; |a: u32| float::sqrt_approx_f32(a, false)),
                ("sqrt", true) => lanes!(W1; |a: u32| float::sqrt_approx_f32(a, true)),
                ("sin", false) => lanes!(W1; |a: u32| float::sin_approx_f32(a, false)),
                ("sin", true) => lanes!(W1; |a: u32| float::sin_approx_f32(a, true)),
                ("cos", false) => lanes!(W1; |a: u32| float::cos_approx_f32(a, false)),
                ("cos", true) => lanes!(W1; |a: u32| float::cos_approx_f32(a, true)),
                ("tanh", false) => lanes!(W1; |a: u32| float::tanh_approx_f32(a)),
                _ => return None,
            }
        }
        _ => return None,
    };
    Some((function, class))
}

/// a · b + c rounded once. The processor's instruction where there is one, else the exact way.
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    f32::from_bits(float::fma_f32(a.to_bits(), b.to_bits(), c.to_bits(), Mode::NEAREST))
}

fn double_function(code: &mut Opcode, m: Modifiers) -> Option<(Function, Class)> {
    let exact = matches!(code.head, "neg" | "abs" | "copysign" | "min" | "max");
    if m.sat || m.xorsign || m.full || exact && m.rounded || m.approx && !matches!(code.head, "rcp" | "rsqrt")
    {
        return None;
    }
    macro_rules! rounded {
        ($variant:ident, |$($x:ident),+; $r:ident| $body:expr) => {
            match m.round {
                0 => { const R: Rounding = Rounding::Rn; lanes!($variant; |$($x: u64),+| { let $r = R; $body }) }
                1 => { const R: Rounding = Rounding::Rz; lanes!($variant; |$($x: u64),+| { let $r = R; $body }) }
                2 => { const R: Rounding = Rounding::Rm; lanes!($variant; |$($x: u64),+| { let $r = R; $body }) }
                _ => { const R: Rounding = Rounding::Rp; lanes!($variant; |$($x: u64),+| { let $r = R; $body }) }
            }
        };
    }
    let function = match code.head {
        "add" if !m.ftz => rounded!(D2, |a, b; r| float::add_f64(a, b, r)),
        "sub" if !m.ftz => rounded!(D2, |a, b; r| float::sub_f64(a, b, r)),
        "mul" if !m.ftz => rounded!(D2, |a, b; r| float::mul_f64(a, b, r)),
        "fma" | "mad" if m.rounded && !m.ftz => rounded!(D3, |a, b, c; r| float::fma_f64(a, b, c, r)),
        "div" if m.rounded && !m.ftz => rounded!(D2, |a, b; r| float::div_f64(a, b, r)),
        "rcp" if m.rounded && !m.ftz => rounded!(D1, |a; r| float::rcp_f64(a, r)),
        "sqrt" if m.rounded && !m.ftz => rounded!(D1, |a; r| float::sqrt_f64(a, r)),
        "rcp" if m.approx && m.ftz => lanes!(D1; |a: u64| float::rcp_approx_f64(a)),
        "rsqrt" if m.approx && m.ftz => lanes!(D1; |a: u64| float::rsqrt_approx_f64(a, true)),
        "rsqrt" if m.approx => lanes!(D1; |a: u64| float::rsqrt_approx_f64(a, false)),
        "neg" if !m.ftz => lanes!(D1; |a: u64| float::neg_f64(a)),
        "abs" if !m.ftz => lanes!(D1; |a: u64| float::abs_f64(a)),
        "copysign" => lanes!(D2; |a: u64, b: u64| float::copysign_f64(a, b)),
        "min" if !m.nan => lanes!(D2; |a: u64, b: u64| float::extremum_f64(a, b, Extremum::Min)),
        "max" if !m.nan => lanes!(D2; |a: u64, b: u64| float::extremum_f64(a, b, Extremum::Max)),
        _ => return None,
    };
    Some((function, Class::Double))
}

fn half_function(code: &mut Opcode, ty: Type) -> Option<(Function, Class)> {
    let m = Modifiers::take(code);
    if m.round != 0 || m.full {
        return None;
    }
    let bf16 = matches!(ty, Type::Bf16 | Type::Bf16x2);
    let two = matches!(ty, Type::F16x2 | Type::Bf16x2);
    // A scalar is a pair whose upper half is dropped again.
    macro_rules! flagged {
        ($variant:ident, $lift:path, |$($x:ident),+; $h:ident, $f:ident| $body:expr) => {{
            #[allow(clippy::needless_range_loop)]
            fn run<const BITS: u32>($($x: &[u32; 32],)+ out: &mut [u32; 32]) {
                let $f = const { flags(BITS) };
                let $h = if BITS & 8 != 0 { Half::Bf16 } else { Half::F16 };
                for lane in 0..32 {
                    let value = $lift($($x[lane],)+ |$($x),+| $body);
                    out[lane] = if BITS & 16 != 0 { value } else { value & 0xffff };
                }
            }
            let bits = m.flags() | u32::from(bf16) << 3 | u32::from(two) << 4;
            by_number!(bits, $variant, run: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
        }};
    }
    let mut class = Class::Half;
    let function = match code.head {
        "add" if !m.relu => flagged!(W2, half::pair, |a, b; h, f| h.add(a, b, f)),
        "sub" if !m.relu => flagged!(W2, half::pair, |a, b; h, f| h.sub(a, b, f)),
        "mul" if !m.relu => flagged!(W2, half::pair, |a, b; h, f| h.mul(a, b, f)),
        "fma" if m.rounded => flagged!(W3, half::pair3, |a, b, c; h, f| h.fma(a, b, c, f)),
        "neg" => flagged!(W1, half::pair1, |a; h, f| h.neg(a, f)),
        "abs" => flagged!(W1, half::pair1, |a; h, f| h.abs(a, f)),
        "min" | "max" => {
            #[allow(clippy::needless_range_loop)]
            fn run<const BITS: u32>(a: &[u32; 32], b: &[u32; 32], out: &mut [u32; 32]) {
                let which = if BITS & 1 != 0 { Extremum::Max } else { Extremum::Min };
                let h = if BITS & 2 != 0 { Half::Bf16 } else { Half::F16 };
                for lane in 0..32 {
                    out[lane] = half::pair(a[lane], b[lane], |a, b| {
                        h.extremum(a, b, which, BITS & 4 != 0, BITS & 8 != 0, BITS & 16 != 0)
                    });
                }
            }
            if m.sat || m.relu {
                return None;
            }
            let bits = u32::from(code.head == "max")
                | u32::from(bf16) << 1
                | u32::from(m.ftz) << 2
                | u32::from(m.nan) << 3
                | u32::from(m.xorsign) << 4;
            by_number!(bits, W2, run: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
        }
        "ex2" if m.approx => {
            class = Class::Special;
            flagged!(W1, half::pair1, |a; h, f| h.ex2_approx(a, f.ftz))
        }
        "tanh" if m.approx && !m.ftz => {
            class = Class::Special;
            flagged!(W1, half::pair1, |a; h, f| { let _ = f; h.tanh_approx(a) })
        }
        _ => return None,
    };
    Some((function, class))
}
