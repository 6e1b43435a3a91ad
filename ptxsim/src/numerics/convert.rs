//! Every `cvt`: between integers, between floats, from one to the other, and into the narrow tensor-core formats.
//!
//! A type is a value here ([`Integer`], [`Format`]), so one function serves all type pairs; the frequent pairs take the
//! processor's own conversion inside. Float bits travel in the low bits of a `u64`.

use super::exact::{self, Exact, Format, Number, Rounding};
use super::float::flush_f32;
use super::half::{self, Half};

/// An integer type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Integer {
    /// Width: 8, 16, 32 or 64.
    pub bits: u32,
    /// Two's complement or unsigned.
    pub signed: bool,
}

impl Integer {
    /// The number that the low `bits` bits of `raw` stand for.
    #[inline]
    fn value(self, raw: u64) -> i128 {
        let shift = 64 - self.bits;
        if self.signed {
            i128::from((raw << shift) as i64 >> shift)
        } else {
            i128::from(raw << shift >> shift)
        }
    }

    #[inline]
    fn range(self) -> (i128, i128) {
        if self.signed {
            (-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1)
        } else {
            (0, (1 << self.bits) - 1)
        }
    }
}

/// Integer to integer. The result is extended to 64 bits by the destination's sign, ready for a register wider than the
/// type. With `sat` values out of range clamp, otherwise the high bits are dropped.
#[inline]
pub fn integer_to_integer(raw: u64, from: Integer, to: Integer, sat: bool) -> u64 {
    let value = from.value(raw);
    let (least, greatest) = to.range();
    if sat { value.clamp(least, greatest) as u64 } else { to.value(value as u64) as u64 }
}

/// Integer to float.
#[inline]
pub fn integer_to_float(raw: u64, from: Integer, to: Format, round: Rounding) -> u64 {
    let value = from.value(raw);
    match (to, round) {
        (Format::F32, Rounding::Rn) if from.signed => u64::from((value as i64 as f32).to_bits()),
        (Format::F32, Rounding::Rn) => u64::from((value as u64 as f32).to_bits()),
        (Format::F64, Rounding::Rn) if from.signed => (value as i64 as f64).to_bits(),
        (Format::F64, Rounding::Rn) => (value as u64 as f64).to_bits(),
        _ => Exact::integer(value).round(to, round),
    }
}

/// Any of the four float formats as f64, exactly.
#[inline]
fn widen(bits: u64, from: Format) -> f64 {
    match from {
        Format::F64 => f64::from_bits(bits),
        Format::F32 => f64::from(f32::from_bits(bits as u32)),
        Format::F16 => f64::from(half::f16_to_f32(bits as u16)),
        _ => f64::from(half::bf16_to_f32(bits as u16)),
    }
}

#[inline]
fn integral(x: f64, round: Rounding) -> f64 {
    match round {
        Rounding::Rn => x.round_ties_even(),
        Rounding::Rz => x.trunc(),
        Rounding::Rm => x.floor(),
        Rounding::Rp => x.ceil(),
    }
}

/// Float to integer (`round`: `.rni`, `.rzi`, `.rmi` or `.rpi`). Values out of range clamp. NaN gives 0, or, where the source
/// is f64 or the destination has 64 bits, the top bit alone. Extended to 64 bits as in [`integer_to_integer`].
#[inline]
pub fn float_to_integer(bits: u64, from: Format, to: Integer, round: Rounding, ftz: bool) -> u64 {
    let bits = flush_if_f32(bits, from, ftz);
    let x = widen(bits, from);
    if x.is_nan() {
        return if from == Format::F64 || to.bits == 64 { to.value(1 << (to.bits - 1)) as u64 } else { 0 };
    }
    let x = integral(x, round);
    if to.signed {
        let least = i64::MIN >> (64 - to.bits);
        (x as i64).clamp(least, !least) as u64
    } else {
        (x as u64).min(u64::MAX >> (64 - to.bits))
    }
}

#[inline]
fn flush_if_f32(bits: u64, format: Format, ftz: bool) -> u64 {
    if ftz && format == Format::F32 { u64::from(flush_f32(bits as u32)) } else { bits }
}

/// `.sat` in any format: clamped to [0, 1]; NaN becomes +0.
#[inline]
fn saturate(bits: u64, format: Format) -> u64 {
    let one = ((1 << (format.exponent - 1)) - 1) << format.fraction;
    if bits & format.sign() != 0 || format.is_nan(bits) { 0 } else { bits.min(one) }
}

/// Float to float. `ftz` flushes f32 operands and f32 results, as PTX has it; NaN becomes canonical.
#[inline]
pub fn float_to_float(bits: u64, from: Format, to: Format, round: Rounding, ftz: bool, sat: bool) -> u64 {
    let bits = flush_if_f32(bits, from, ftz);
    let converted = match (from, to, round) {
        _ if from.is_nan(bits) => to.nan,
        (Format::F64, Format::F32, Rounding::Rn) => u64::from((f64::from_bits(bits) as f32).to_bits()),
        (_, Format::F64, _) => widen(bits, from).to_bits(),
        (Format::F16, Format::F32, _) => u64::from(half::f16_to_f32(bits as u16).to_bits()),
        (Format::BF16, Format::F32, _) => bits << 16,
        (Format::F32, Format::F16, Rounding::Rn) => {
            u64::from(half::f16_from_f32(f32::from_bits(bits as u32)))
        }
        (Format::F32, Format::BF16, Rounding::Rn) => {
            u64::from(half::bf16_from_f32(f32::from_bits(bits as u32)))
        }
        _ => exact::convert(bits, from, to, round),
    };
    let converted = flush_if_f32(converted, to, ftz);
    if sat { saturate(converted, to) } else { converted }
}

/// A float rounded to an integral value of its own format (`.rni`, `.rzi`, `.rmi`, `.rpi`). Zeros keep the operand's sign.
#[inline]
pub fn float_to_integral(bits: u64, format: Format, round: Rounding, ftz: bool, sat: bool) -> u64 {
    let bits = flush_if_f32(bits, format, ftz);
    let rounded = integral(widen(bits, format), round);
    // An integral value of the same magnitude, or the next power of two: always representable.
    float_to_float(rounded.to_bits(), Format::F64, format, Rounding::Rn, false, sat)
}

/// The range modifiers of the conversions into 16 bits, tf32 and fp8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Clamp {
    /// `.relu`: negative results become +0.
    pub relu: bool,
    /// `.satfinite`: magnitudes beyond the format's range, infinity too, become its largest number.
    pub satfinite: bool,
}

impl Clamp {
    /// Applied to a number that is not NaN, given the format's sign bit, infinity and largest number.
    #[inline]
    fn apply(self, bits: u32, sign: u32, infinity: u32, greatest: u32) -> u32 {
        if self.relu && bits & sign != 0 {
            0
        } else if self.satfinite && bits & !sign == infinity {
            bits & sign | greatest
        } else {
            bits
        }
    }
}

/// `cvt.{rn,rz}{.relu}{.satfinite}.{f16,bf16}.f32`.
#[inline]
pub fn f32_to_half(a: u32, to: Half, round: Rounding, clamp: Clamp) -> u16 {
    let bits = float_to_float(u64::from(a), Format::F32, to.format(), round, false, false) as u32;
    let infinity = to.format().infinity() as u32;
    if bits & 0x7fff > infinity {
        half::NAN
    } else {
        clamp.apply(bits, 0x8000, infinity, infinity - 1) as u16
    }
}

/// `cvt.{rn,rz}{.relu}{.satfinite}.{f16x2,bf16x2}.f32`: `a` in the upper half, `b` in the lower.
#[inline]
pub fn f32_to_half_x2(a: u32, b: u32, to: Half, round: Rounding, clamp: Clamp) -> u32 {
    u32::from(f32_to_half(a, to, round, clamp)) << 16 | u32::from(f32_to_half(b, to, round, clamp))
}

/// Rounding to tf32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tf32Rounding {
    /// `.rna`: to nearest, ties away from zero.
    Rna,
    /// `.rn`: to nearest, ties to even.
    Rn,
    /// `.rz`: toward zero.
    Rz,
}

/// `cvt.{rna,rn,rz}{.relu}{.satfinite}.tf32.f32`: an f32 with the low 13 fraction bits zero.
#[inline]
pub fn f32_to_tf32(a: u32, round: Tf32Rounding, clamp: Clamp) -> u32 {
    if a & 0x7fff_ffff > 0x7f80_0000 {
        return 0x7fff_ffff;
    }
    let addend = match round {
        Tf32Rounding::Rna => 0x1000,
        Tf32Rounding::Rn => 0xfff + (a >> 13 & 1),
        Tf32Rounding::Rz => 0,
    };
    clamp.apply(a.wrapping_add(addend) & !0x1fff, 0x8000_0000, 0x7f80_0000, 0x7f7f_e000)
}

/// The two 8-bit float formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fp8 {
    /// 4 exponent bits, 3 fraction bits; no infinity, NaN is 0x7f, the largest number 448.
    E4m3,
    /// 5 exponent bits, 2 fraction bits, IEEE encoding; the largest number 57344.
    E5m2,
}

impl Fp8 {
    /// `x` to nearest even and always finite (`.rn.satfinite`, the only form PTX has); NaN becomes 0x7f.
    #[inline]
    fn encode(self, x: Number, relu: bool) -> u8 {
        // e4m3 has no infinity: with five exponent bits and the value scaled by 2^-8 the bits are the same, and the range
        // goes on past them.
        let (format, scale, greatest) = match self {
            Fp8::E4m3 => (Format { fraction: 3, exponent: 5, nan: 0 }, -8, 0x7e),
            Fp8::E5m2 => (Format { fraction: 2, exponent: 5, nan: 0 }, 0, 0x7b),
        };
        let (negative, magnitude) = match x {
            Number::Nan => return 0x7f,
            Number::Infinite { negative } => (negative, greatest),
            Number::Finite(x) => {
                let scaled = Exact { negative: false, exponent: x.exponent + scale, ..x };
                (x.negative, scaled.round(format, Rounding::Rn).min(greatest))
            }
        };
        match (negative, relu) {
            (true, true) => 0,
            (true, false) => 0x80 | magnitude as u8,
            (false, _) => magnitude as u8,
        }
    }

    /// The value as f32, exactly.
    #[inline]
    pub fn to_f32(self, bits: u8) -> f32 {
        half::f16_to_f32(self.to_f16(bits))
    }

    /// The value as f16 bits, exactly; NaN becomes canonical.
    #[inline]
    pub fn to_f16(self, bits: u8) -> u16 {
        match self {
            Fp8::E5m2 => Half::F16.canonical(u16::from(bits) << 8),
            Fp8::E4m3 if bits & 0x7f == 0x7f => half::NAN,
            Fp8::E4m3 => {
                let shifted = u16::from(bits & 0x80) << 8 | u16::from(bits & 0x7f) << 7;
                half::f16_from_f32(half::f16_to_f32(shifted) * 256.0)
            }
        }
    }
}

/// `cvt.rn.satfinite{.relu}.{e4m3x2,e5m2x2}.f32`: `a` in the upper byte, `b` in the lower.
#[inline]
pub fn f32_to_fp8_x2(a: u32, b: u32, to: Fp8, relu: bool) -> u16 {
    let convert = |x: u32| u16::from(to.encode(Format::F32.unpack(u64::from(x)), relu));
    convert(a) << 8 | convert(b)
}

/// `cvt.rn.satfinite{.relu}.{e4m3x2,e5m2x2}.f16x2`.
#[inline]
pub fn f16x2_to_fp8_x2(a: u32, to: Fp8, relu: bool) -> u16 {
    let convert = |x: u32| u16::from(to.encode(Format::F16.unpack(u64::from(x & 0xffff)), relu));
    convert(a >> 16) << 8 | convert(a)
}

/// `cvt.rn{.relu}.f16x2.{e4m3x2,e5m2x2}`.
#[inline]
pub fn fp8_x2_to_f16x2(a: u16, from: Fp8, relu: bool) -> u32 {
    let convert = |x: u8| {
        let bits = from.to_f16(x);
        u32::from(if relu && bits & 0x8000 != 0 { 0 } else { bits })
    };
    convert((a >> 8) as u8) << 16 | convert(a as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROUNDINGS: [Rounding; 4] = [Rounding::Rn, Rounding::Rz, Rounding::Rm, Rounding::Rp];
    const FORMATS: [Format; 4] = [Format::F16, Format::BF16, Format::F32, Format::F64];
    const NONE: Clamp = Clamp { relu: false, satfinite: false };
    const RELU: Clamp = Clamp { relu: true, satfinite: false };
    const FINITE: Clamp = Clamp { relu: false, satfinite: true };

    const fn int(bits: u32, signed: bool) -> Integer {
        Integer { bits, signed }
    }

    fn integers() -> Vec<Integer> {
        [8, 16, 32, 64].into_iter().flat_map(|bits| [int(bits, false), int(bits, true)]).collect()
    }

    #[test]
    fn integers_clamp_or_wrap() {
        let (s8, u8, s32, u16, u64) =
            (int(8, true), int(8, false), int(32, true), int(16, false), int(64, false));
        assert_eq!(integer_to_integer(300, s32, u8, true), 255);
        assert_eq!(integer_to_integer(300, s32, u8, false), 44);
        assert_eq!(integer_to_integer(0xffff_ffff, s32, u16, true), 0);
        assert_eq!(integer_to_integer(0x80, s8, s32, false), -128i64 as u64);
        assert_eq!(integer_to_integer(200, s32, s8, false), -56i64 as u64);
        assert_eq!(integer_to_integer(u64::MAX, u64, s32, true), i32::MAX as u64);
        assert_eq!(integer_to_integer(0xffff_ffff, s32, u64, true), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        /// Into an integer and back, against arithmetic on i128 and f64.
        #[test]
        fn floats_to_integers_match_wide_arithmetic(raw: u64, small in -3000i32..3000) {
            for format in FORMATS {
                for bits in [raw & (2 * format.sign()).wrapping_sub(1), exact::convert((f64::from(small) / 8.0).to_bits(), Format::F64, format, Rounding::Rn)] {
                    let Number::Finite(value) = format.unpack(bits) else { continue };
                    // floor, and whether anything or exactly half is left, from the exact value.
                    let (floor, rest) = if value.exponent >= 0 {
                        (value.significand.checked_shl(value.exponent as u32).filter(|_| value.exponent < 70).unwrap_or(1 << 120), 0)
                    } else {
                        let shift = (-value.exponent).min(120) as u32;
                        let tail = value.significand << (120 - shift) & ((1 << 120) - 1);
                        (value.significand >> shift, tail)
                    };
                    for round in ROUNDINGS {
                        let up = match round {
                            Rounding::Rn => rest > 1 << 119 || (rest == 1 << 119 && floor & 1 == 1),
                            Rounding::Rz => false,
                            Rounding::Rm => rest != 0 && value.negative,
                            Rounding::Rp => rest != 0 && !value.negative,
                        };
                        let magnitude = (floor + u128::from(up)) as i128;
                        let expected = if value.negative { -magnitude } else { magnitude };
                        for to in integers() {
                            let (least, greatest) = to.range();
                            prop_assert_eq!(
                                float_to_integer(bits, format, to, round, false),
                                expected.clamp(least, greatest) as u64,
                                "{:x} {:?} {:?} {:?}", bits, format, to, round
                            );
                        }
                    }
                }
            }
        }

        #[test]
        fn integers_to_floats_round_toward_their_side(raw: u64) {
            for from in integers() {
                let value = from.value(raw);
                for to in [Format::F32, Format::F64, Format::F16, Format::BF16] {
                    let [near, zero, down, up] = ROUNDINGS.map(|round| integer_to_float(raw, from, to, round));
                    prop_assert_eq!(near, Exact::integer(value).round(to, Rounding::Rn));
                    let floor = |bits| widen(bits, to) as i128;
                    if widen(down, to).is_finite() && widen(up, to).is_finite() {
                        prop_assert!(floor(down) <= value && value <= floor(up));
                        prop_assert_eq!(zero, if value < 0 { up } else { down });
                    }
                }
            }
        }

        #[test]
        fn floats_to_floats_round_once(raw: u64) {
            for from in FORMATS {
                let bits = raw & (2 * from.sign()).wrapping_sub(1);
                for to in FORMATS {
                    for round in ROUNDINGS {
                        prop_assert_eq!(float_to_float(bits, from, to, round, false, false), exact::convert(bits, from, to, round));
                    }
                }
            }
        }
    }

    #[test]
    fn nan_and_range_follow_the_type_pair() {
        let nan = 0x7fc0_0000;
        for (from, bits) in [(Format::F32, nan), (Format::F16, 0x7e00), (Format::BF16, 0x7fc0)] {
            assert_eq!(float_to_integer(bits, from, int(32, true), Rounding::Rz, false), 0);
            assert_eq!(float_to_integer(bits, from, int(64, false), Rounding::Rz, false), 1 << 63);
        }
        let nan = f64::NAN.to_bits();
        assert_eq!(
            float_to_integer(nan, Format::F64, int(32, true), Rounding::Rz, false),
            i64::from(i32::MIN) as u64
        );
        assert_eq!(float_to_integer(nan, Format::F64, int(32, false), Rounding::Rz, false), 1 << 31);
        assert_eq!(float_to_integer(0x7f80_0000, Format::F32, int(8, true), Rounding::Rz, false), 127);
        assert_eq!(float_to_integer(0xff80_0000, Format::F32, int(32, false), Rounding::Rz, false), 0);
        assert_eq!(
            (
                float_to_integer(1, Format::F32, int(32, true), Rounding::Rp, false),
                float_to_integer(1, Format::F32, int(32, true), Rounding::Rp, true)
            ),
            (1, 0)
        );
    }

    #[test]
    fn flush_saturate_and_integral_values() {
        let rn = Rounding::Rn;
        assert_eq!(float_to_float(1e-40f64.to_bits(), Format::F64, Format::F32, rn, true, false), 0);
        assert_eq!(float_to_float(0x8000_0001, Format::F32, Format::F64, rn, true, false), 1 << 63);
        assert_eq!(float_to_float(0x4000_0000, Format::F32, Format::F32, rn, false, true), 0x3f80_0000);
        assert_eq!(
            (
                float_to_float(0x7fc0, Format::BF16, Format::F32, rn, false, true),
                float_to_float(0xbc00, Format::F16, Format::F32, rn, false, true)
            ),
            (0, 0)
        );
        for (x, near, zero, down, up) in [
            (2.5f32, 2.0f32, 2.0f32, 2.0f32, 3.0f32),
            (-0.5, -0.0, -0.0, -1.0, -0.0),
            (1e30, 1e30, 1e30, 1e30, 1e30),
            (3.5, 4.0, 3.0, 3.0, 4.0),
        ] {
            let got = ROUNDINGS
                .map(|round| float_to_integral(u64::from(x.to_bits()), Format::F32, round, false, false));
            assert_eq!(got, [near, zero, down, up].map(|y| u64::from(y.to_bits())));
        }
        assert_eq!(float_to_integral(0xffc0_0001, Format::F32, rn, false, false), 0x7fff_ffff);
        assert_eq!(float_to_integral(0x3e00, Format::F16, Rounding::Rp, false, false), 0x4000);
    }

    #[test]
    fn packed_halves_clamp() {
        let (f16, bf16) = (Half::F16, Half::Bf16);
        let bits = f32::to_bits;
        assert_eq!(f32_to_half_x2(bits(1.0), bits(-2.0), f16, Rounding::Rn, NONE), 0x3c00_c000);
        assert_eq!(f32_to_half_x2(bits(1.0), bits(-2.0), bf16, Rounding::Rn, RELU), 0x3f80_0000);
        assert_eq!(
            (
                f32_to_half(bits(-1e9), f16, Rounding::Rn, NONE),
                f32_to_half(bits(-1e9), f16, Rounding::Rn, FINITE)
            ),
            (0xfc00, 0xfbff)
        );
        assert_eq!(
            (
                f32_to_half(bits(1e9), f16, Rounding::Rz, NONE),
                f32_to_half(0x7f80_0000, f16, Rounding::Rz, FINITE)
            ),
            (0x7bff, 0x7bff)
        );
        assert_eq!(
            (
                f32_to_half(0xffc0_0000, f16, Rounding::Rn, RELU),
                f32_to_half(0x3fff_ffff, bf16, Rounding::Rz, NONE)
            ),
            (half::NAN, 0x3fff)
        );
    }

    #[test]
    fn tf32_ties_and_range() {
        let tie = 0x3f80_1000;
        assert_eq!(
            [Tf32Rounding::Rna, Tf32Rounding::Rn, Tf32Rounding::Rz].map(|r| f32_to_tf32(tie, r, NONE)),
            [0x3f80_2000, 0x3f80_0000, 0x3f80_0000]
        );
        assert_eq!(f32_to_tf32(tie | 0x2000, Tf32Rounding::Rn, NONE), 0x3f80_4000);
        assert_eq!(
            (
                f32_to_tf32(0x7f7f_ffff, Tf32Rounding::Rna, NONE),
                f32_to_tf32(0xff80_0000, Tf32Rounding::Rna, FINITE)
            ),
            (0x7f80_0000, 0xff7f_e000)
        );
        assert_eq!(
            (
                f32_to_tf32(0xffc0_0001, Tf32Rounding::Rn, RELU),
                f32_to_tf32(0xbf80_0000, Tf32Rounding::Rn, RELU)
            ),
            (0x7fff_ffff, 0)
        );
    }

    /// The value of fp8 bits by the definition of the format.
    fn fp8_value(bits: u8, fp8: Fp8) -> f64 {
        let (fraction, bias) = if fp8 == Fp8::E4m3 { (3, 7) } else { (2, 15) };
        let (field, rest) = (i32::from(bits & 0x7f) >> fraction, f64::from(bits & ((1 << fraction) - 1)));
        let one = f64::from(1 << fraction);
        let magnitude = match (fp8, bits & 0x7f) {
            (Fp8::E4m3, 0x7f) | (Fp8::E5m2, 0x7d..) => f64::NAN,
            (Fp8::E5m2, 0x7c) => f64::INFINITY,
            _ if field == 0 => rest / one * 2f64.powi(1 - bias),
            _ => (1.0 + rest / one) * 2f64.powi(field - bias),
        };
        if bits & 0x80 != 0 { -magnitude } else { magnitude }
    }

    #[test]
    fn fp8_matches_a_search_for_the_nearest() {
        for fp8 in [Fp8::E4m3, Fp8::E5m2] {
            for bits in 0..=u8::MAX {
                let (got, expected) = (f64::from(fp8.to_f32(bits)), fp8_value(bits, fp8));
                assert!(
                    got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(),
                    "{fp8:?} {bits:x}"
                );
            }
            let finite: Vec<u8> = (0..0x80).filter(|&b| fp8_value(b, fp8).is_finite()).collect();
            for bits in 0..=u16::MAX {
                let x = f64::from(half::f16_to_f32(bits));
                let expected = if x.is_nan() {
                    0x7f
                } else {
                    // Nearest, and of two the one with the even last bit.
                    let distance = |b: u8| (fp8_value(b, fp8) - x.abs().min(1e9)).abs();
                    let best = finite
                        .iter()
                        .copied()
                        .min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))));
                    best.unwrap() | if bits & 0x8000 != 0 { 0x80 } else { 0 }
                };
                assert_eq!(f16x2_to_fp8_x2(u32::from(bits), fp8, false) as u8, expected, "{fp8:?} {x}");
                let wide = half::f16_to_f32(bits).to_bits();
                assert_eq!((f32_to_fp8_x2(wide, 0, fp8, false) >> 8) as u8, expected);
                if bits & 0x8000 != 0 && !x.is_nan() {
                    assert_eq!(f16x2_to_fp8_x2(u32::from(bits) << 16, fp8, true), 0);
                }
            }
        }
        assert_eq!(fp8_x2_to_f16x2(0x38b8, Fp8::E4m3, false), 0x3c00_bc00);
        assert_eq!(fp8_x2_to_f16x2(0x3cbc, Fp8::E5m2, true), 0x3c00_0000);
        assert_eq!(f32_to_fp8_x2(f32::INFINITY.to_bits(), f32::NAN.to_bits(), Fp8::E5m2, false), 0x7b7f);
    }
}
