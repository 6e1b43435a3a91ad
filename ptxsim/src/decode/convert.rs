//! cvt: the frequent forms as functions of lanes, all others through one description.

use super::{Decoder, Opcode, lanes::lanes};
use crate::{
    error::Result,
    kernel::{Class, Conversion, File, Function, Op, Reg},
    numerics::{
        convert::{self, Clamp, Fp8, Integer, Tf32Rounding},
        exact::{Format, Rounding},
        half::{self, Half},
    },
    parse::Type,
};

impl Decoder<'_> {
    pub(super) fn convert(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        if code.take("pack") {
            return self.pack(code, reads);
        }
        let [to, from] = code.types[..] else { return Err(code.unsupported()) };
        let round = code.take_of(&[
            ("rn", Rounding::Rn),
            ("rz", Rounding::Rz),
            ("rm", Rounding::Rm),
            ("rp", Rounding::Rp),
        ]);
        let integral = code.take_of(&[
            ("rni", Rounding::Rn),
            ("rzi", Rounding::Rz),
            ("rmi", Rounding::Rm),
            ("rpi", Rounding::Rp),
        ]);
        let rna = code.take("rna");
        let (ftz, sat) = (code.take("ftz"), code.take("sat"));
        let clamp = Clamp { relu: code.take("relu"), satfinite: code.take("satfinite") };
        let clamps = clamp != Clamp::default();
        use Type::*;
        // Two sources packed into one register, or one unpacked.
        let packed = match (to, from) {
            (F16x2 | Bf16x2, F32) => {
                let to = if to == F16x2 { Half::F16 } else { Half::Bf16 };
                round.map(|round| Conversion::Pack { to, round, clamp })
            }
            (E4m3x2 | E5m2x2, F32) if clamp.satfinite && round == Some(Rounding::Rn) => {
                Some(Conversion::PackFp8 { to: fp8(to), relu: clamp.relu })
            }
            _ => None,
        };
        if let Some(conversion) = packed {
            code.arity(3..=3)?;
            let a = self.word(code.operand(1)?, F32)?;
            let b = self.word(code.operand(2)?, F32)?;
            reads.extend([Reg::W(a), Reg::W(b)]);
            let d = Reg::W(self.destination(code.operand(0)?, File::W)?);
            if let Conversion::Pack { to: Half::Bf16, round: Rounding::Rn, clamp } = conversion
                && clamp == Clamp::default()
            {
                let Reg::W(d) = d else { return Err(code.unsupported()) };
                let f = lanes!(W2; |a: f32, b: f32| {
                    u32::from(half::bf16_from_f32(a)) << 16 | u32::from(half::bf16_from_f32(b))
                });
                return Ok((Op::Apply { f, d, s: [a, b, 0, 0] }, Class::Convert));
            }
            return Ok((Op::Convert { conversion, d, a: Reg::W(a), b: Reg::W(b) }, Class::Convert));
        }
        code.arity(2..=2)?;
        let a = self.source(code.operand(1)?, from, from.bits() == 64)?;
        let d = self.register(code.operand(0)?)?;
        let fits = |register: Reg, ty: Type| match register {
            Reg::W(_) => ty.bits() <= 32,
            Reg::D(_) => true,
            _ => false,
        };
        if !fits(a, from) || !fits(d, to) {
            return Err(code.unsupported());
        }
        reads.push(a);
        let float = |ty: Type| match ty {
            F32 => Some(Format::F32),
            F64 => Some(Format::F64),
            F16 => Some(Format::F16),
            Bf16 => Some(Format::BF16),
            _ => None,
        };
        let integer = |ty: Type| match ty {
            U8 | U16 | U32 | U64 | S8 | S16 | S32 | S64 => {
                Some(Integer { bits: ty.bits(), signed: ty.signed() })
            }
            _ => None,
        };
        if let Some(f) = frequent(to, from, round, integral, ftz || sat || clamps || rna, d, a) {
            let (d, a) = (index(d), index(a));
            return Ok((Op::Apply { f, d, s: [a, 0, 0, 0] }, Class::Convert));
        }
        let conversion = match (integer(from), float(from), integer(to), float(to)) {
            _ if to == Tf32 && from == F32 => {
                let round = match (rna, round) {
                    (true, None) => Tf32Rounding::Rna,
                    (false, Some(Rounding::Rn)) => Tf32Rounding::Rn,
                    (false, Some(Rounding::Rz)) => Tf32Rounding::Rz,
                    _ => return Err(code.unsupported()),
                };
                Conversion::Tf32 { round, clamp }
            }
            _ if rna => return Err(code.unsupported()),
            _ if matches!(to, E4m3x2 | E5m2x2) && from == F16x2 && clamp.satfinite => {
                Conversion::Fp8FromHalf { to: fp8(to), relu: clamp.relu }
            }
            _ if matches!(from, E4m3x2 | E5m2x2) && to == F16x2 && !clamp.satfinite => {
                Conversion::HalfFromFp8 { from: fp8(from), relu: clamp.relu }
            }
            (Some(from), _, Some(to), _) if round.is_none() && integral.is_none() && !ftz && !clamps => {
                Conversion::Integers { from, to, sat }
            }
            (Some(from), _, _, Some(to)) if integral.is_none() && !clamps && !ftz => {
                let Some(round) = round else { return Err(code.unsupported()) };
                Conversion::ToFloat { from, to, round, sat }
            }
            (_, Some(from), Some(to), _) if round.is_none() && !clamps => {
                let Some(round) = integral else { return Err(code.unsupported()) };
                Conversion::ToInteger { from, to, round, ftz }
            }
            (_, Some(_), _, Some(_)) if from == F32 && to.bits() == 16 && clamps && !ftz && !sat => {
                let to = if to == F16 { Half::F16 } else { Half::Bf16 };
                let Some(round) = round else { return Err(code.unsupported()) };
                Conversion::Narrow { to, round, clamp }
            }
            (_, Some(from), _, Some(to)) if !clamps => match integral {
                Some(round) if from == to => Conversion::Integral { format: from, round, ftz, sat },
                Some(_) => return Err(code.unsupported()),
                // Narrowing says how to round; widening and the same width need not.
                None if round.is_none() && code.types[0].bits() < code.types[1].bits() => {
                    return Err(code.unsupported());
                }
                None => Conversion::Floats { from, to, round: round.unwrap_or(Rounding::Rn), ftz, sat },
            },
            _ => return Err(code.unsupported()),
        };
        Ok((Op::Convert { conversion, d, a, b: Reg::Sink }, Class::Convert))
    }

    /// cvt.pack: two integers clamped to a narrower type, the first above the second; bytes push `c` up before them.
    fn pack(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        use Type::*;
        if !code.take("sat") {
            return Err(code.unsupported());
        }
        let f = match code.types[..] {
            [S16, S32] => lanes!(W2; |a: i32, b: i32| {
                let cut = |x: i32| x.clamp(-0x8000, 0x7fff) as u32 & 0xffff;
                cut(a) << 16 | cut(b)
            }),
            [U16, S32] => lanes!(W2; |a: i32, b: i32| {
                let cut = |x: i32| x.clamp(0, 0xffff) as u32;
                cut(a) << 16 | cut(b)
            }),
            [S8, S32, B32] => lanes!(W3; |a: i32, b: i32, c: u32| {
                let cut = |x: i32| x.clamp(-0x80, 0x7f) as u32 & 0xff;
                c << 16 | cut(a) << 8 | cut(b)
            }),
            [U8, S32, B32] => lanes!(W3; |a: i32, b: i32, c: u32| {
                let cut = |x: i32| x.clamp(0, 0xff) as u32;
                c << 16 | cut(a) << 8 | cut(b)
            }),
            _ => return Err(code.unsupported()),
        };
        let count = code.types.len();
        code.arity(count + 1..=count + 1)?;
        let mut s = [0; 4];
        for (i, s) in s.iter_mut().take(count).enumerate() {
            *s = self.word(code.operand(i + 1)?, B32)?;
            reads.push(Reg::W(*s));
        }
        Ok((Op::Apply { f, d: self.destination(code.operand(0)?, File::W)?, s }, Class::Convert))
    }
}

fn index(register: Reg) -> u32 {
    match register {
        Reg::W(i) | Reg::D(i) | Reg::P(i) => i,
        Reg::Sink => 0,
    }
}

fn fp8(ty: Type) -> Fp8 {
    if matches!(ty, Type::E4m3x2 | Type::E4m3) { Fp8::E4m3 } else { Fp8::E5m2 }
}

/// The forms that kernels are full of.
fn frequent(
    to: Type,
    from: Type,
    round: Option<Rounding>,
    integral: Option<Rounding>,
    modified: bool,
    d: Reg,
    a: Reg,
) -> Option<Function> {
    use Type::*;
    if modified {
        return None;
    }
    let wide = |r: Reg| matches!(r, Reg::D(_));
    let f = match (to, from, round, integral, wide(d), wide(a)) {
        (F32, S32, Some(Rounding::Rn), None, false, false) => lanes!(W1; |a: i32| a as f32),
        (F32, U32, Some(Rounding::Rn), None, false, false) => lanes!(W1; |a: u32| a as f32),
        (F32, Bf16, None, None, false, false) => lanes!(W1; |a: u16| half::bf16_to_f32(a)),
        (F32, F16, None, None, false, false) => lanes!(W1; |a: u16| half::f16_to_f32(a)),
        (Bf16, F32, Some(Rounding::Rn), None, false, false) => lanes!(W1; |a: f32| half::bf16_from_f32(a)),
        (F16, F32, Some(Rounding::Rn), None, false, false) => lanes!(W1; |a: f32| half::f16_from_f32(a)),
        (F64, F32, None, None, true, false) => lanes!(DfromW; |a: f32| f64::from(a)),
        (U64 | S64, U32, None, None, true, false) => lanes!(DfromW; |a: u32| u64::from(a)),
        (U64 | S64, S32, None, None, true, false) => lanes!(DfromW; |a: i32| i64::from(a)),
        (U32 | S32, U64 | S64, None, None, false, true) => lanes!(WfromD; |a: u64| a as u32),
        (U32 | S32, U16, None, None, false, false) => lanes!(W1; |a: u16| u32::from(a)),
        (U32 | S32, S16, None, None, false, false) => lanes!(W1; |a: i16| i32::from(a)),
        (U32 | S32, U8, None, None, false, false) => lanes!(W1; |a: u8| u32::from(a)),
        (U32 | S32, S8, None, None, false, false) => lanes!(W1; |a: i8| i32::from(a)),
        (U16 | S16, U32 | S32, None, None, false, false) => lanes!(W1; |a: u16| a),
        (S32, F32, None, Some(Rounding::Rz), false, false) => lanes!(W1; |a: f32| a as i32),
        (U32, F32, None, Some(Rounding::Rz), false, false) => lanes!(W1; |a: f32| a as u32),
        _ => return None,
    };
    Some(f)
}

impl Conversion {
    /// The result's bits; `b` is the second source of those that pack two.
    pub(crate) fn run(&self, a: u64, b: u64) -> u64 {
        match *self {
            Conversion::Integers { from, to, sat } => convert::integer_to_integer(a, from, to, sat),
            Conversion::ToFloat { from, to, round, sat } => {
                let bits = convert::integer_to_float(a, from, to, round);
                if sat { convert::float_to_float(bits, to, to, Rounding::Rn, false, true) } else { bits }
            }
            Conversion::ToInteger { from, to, round, ftz } => {
                convert::float_to_integer(a, from, to, round, ftz)
            }
            Conversion::Floats { from, to, round, ftz, sat } => {
                convert::float_to_float(a, from, to, round, ftz, sat)
            }
            Conversion::Integral { format, round, ftz, sat } => {
                convert::float_to_integral(a, format, round, ftz, sat)
            }
            Conversion::Narrow { to, round, clamp } => {
                u64::from(convert::f32_to_half(a as u32, to, round, clamp))
            }
            Conversion::Tf32 { round, clamp } => u64::from(convert::f32_to_tf32(a as u32, round, clamp)),
            Conversion::Pack { to, round, clamp } => {
                u64::from(convert::f32_to_half_x2(a as u32, b as u32, to, round, clamp))
            }
            Conversion::PackFp8 { to, relu } => {
                u64::from(convert::f32_to_fp8_x2(a as u32, b as u32, to, relu))
            }
            Conversion::Fp8FromHalf { to, relu } => u64::from(convert::f16x2_to_fp8_x2(a as u32, to, relu)),
            Conversion::HalfFromFp8 { from, relu } => {
                u64::from(convert::fp8_x2_to_f16x2(a as u16, from, relu))
            }
        }
    }
}
