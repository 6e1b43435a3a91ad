//! f16 and bf16 arithmetic, scalar (`u16`) and as packed pairs (`u32`, the first element in the low half).
//!
//! Sums and products are formed in f32 or f64, where they are exact or wide enough that rounding again to 16 bits gives the
//! one correct rounding. [`pair`] lifts a scalar operation to `f16x2` and `bf16x2`.

use std::cmp::Ordering;

use super::exact::Format;
use super::float::{self, Extremum};

/// One of the two 16-bit formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// IEEE binary16.
    F16,
    /// The upper half of an f32.
    Bf16,
}

/// The canonical NaN of both formats.
pub const NAN: u16 = 0x7fff;

/// The modifiers of a 16-bit operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags {
    /// `.ftz`: subnormal operands and results become zeros of their sign.
    pub ftz: bool,
    /// `.sat`: clamped to [0, 1]; NaN becomes +0.
    pub sat: bool,
    /// `.relu`: negative results become +0; NaN stays.
    pub relu: bool,
}

impl Half {
    /// The format's parameters.
    #[inline]
    pub const fn format(self) -> Format {
        match self {
            Half::F16 => Format::F16,
            Half::Bf16 => Format::BF16,
        }
    }

    /// The bits as f32, exactly. A NaN keeps its payload.
    #[inline]
    pub fn to_f32(self, bits: u16) -> f32 {
        match self {
            Half::F16 => f16_to_f32(bits),
            Half::Bf16 => bf16_to_f32(bits),
        }
    }

    /// `x` rounded to nearest even; NaN becomes canonical.
    #[inline]
    pub fn round_f32(self, x: f32) -> u16 {
        match self {
            Half::F16 => f16_from_f32(x),
            Half::Bf16 => bf16_from_f32(x),
        }
    }

    /// `x` rounded to nearest even, in one step; NaN becomes canonical.
    #[inline]
    pub fn round_f64(self, x: f64) -> u16 {
        let magnitude = x.abs();
        let format = self.format();
        let sign = ((x.to_bits() >> 48) & 0x8000) as u16;
        if x.is_nan() {
            return NAN;
        }
        // Adding 1.5 · 2^52 units of the last place rounds to that place; the exponent is bounded below by that of the
        // subnormal numbers and above so that the unit stays finite.
        let bias = (1i64 << (format.exponent - 1)) - 1;
        let exponent = ((magnitude.to_bits() >> 52) as i64 - 1023).clamp(1 - bias, bias + 1);
        let unit = f64::from_bits(((exponent - i64::from(format.fraction) + 1023) as u64) << 52);
        let places = (magnitude.min(unit * 1_048_576.0) / unit + 6_755_399_441_055_744.0).to_bits() as u32;
        let base = ((exponent - (1 - bias)) as u32) << format.fraction;
        sign | (base + places).min(format.infinity() as u32) as u16
    }

    #[inline]
    fn operand(self, bits: u16, flags: Flags) -> u16 {
        if flags.ftz { self.format().flush(u64::from(bits)) as u16 } else { bits }
    }

    #[inline]
    fn result(self, bits: u16, flags: Flags) -> u16 {
        let bits = self.operand(bits, flags);
        let one = self.round_f32(1.0);
        if flags.sat {
            // As integers, positive numbers are in order; everything negative and NaN is not below one.
            if bits <= one || (bits & 0x8000 == 0 && bits != NAN) { bits.min(one) } else { 0 }
        } else if flags.relu && bits & 0x8000 != 0 {
            0
        } else {
            bits
        }
    }

    /// `add`: a + b.
    #[inline]
    pub fn add(self, a: u16, b: u16, flags: Flags) -> u16 {
        let (a, b) = (self.operand(a, flags), self.operand(b, flags));
        self.result(self.round_f32(self.to_f32(a) + self.to_f32(b)), flags)
    }

    /// `sub`: a − b.
    #[inline]
    pub fn sub(self, a: u16, b: u16, flags: Flags) -> u16 {
        self.add(a, b ^ 0x8000, flags)
    }

    /// `mul`: a · b.
    #[inline]
    pub fn mul(self, a: u16, b: u16, flags: Flags) -> u16 {
        let (a, b) = (self.operand(a, flags), self.operand(b, flags));
        let rounded = match self {
            Half::F16 => f16_from_f32(f16_to_f32(a) * f16_to_f32(b)),
            // The exact product may lie below f32's range.
            Half::Bf16 => self.round_f64(f64::from(bf16_to_f32(a)) * f64::from(bf16_to_f32(b))),
        };
        self.result(rounded, flags)
    }

    /// `fma`: a · b + c, rounded once.
    #[inline]
    pub fn fma(self, a: u16, b: u16, c: u16, flags: Flags) -> u16 {
        let [a, b, c] = [a, b, c].map(|x| self.to_f32(self.operand(x, flags)));
        self.result(self.round_f64(float::fma_to_odd(a, b, c)), flags)
    }

    /// `neg`; NaN becomes canonical.
    #[inline]
    pub fn neg(self, a: u16, flags: Flags) -> u16 {
        self.canonical(self.operand(a ^ 0x8000, flags))
    }

    /// `abs`; NaN becomes canonical.
    #[inline]
    pub fn abs(self, a: u16, flags: Flags) -> u16 {
        self.canonical(self.operand(a & 0x7fff, flags))
    }

    /// NaN made canonical.
    #[inline]
    pub fn canonical(self, a: u16) -> u16 {
        if u64::from(a & 0x7fff) > self.format().infinity() { NAN } else { a }
    }

    /// `min` and `max` with `.ftz`, `.NaN` and `.xorsign.abs`.
    #[inline]
    pub fn extremum(self, a: u16, b: u16, which: Extremum, ftz: bool, nan: bool, xorsign_abs: bool) -> u16 {
        let flags = Flags { ftz, ..Flags::default() };
        let [a, b] = [a, b].map(|x| u64::from(self.operand(x, flags)));
        float::extremum(a, b, self.format(), which, nan, xorsign_abs) as u16
    }

    /// The order of two numbers for `setp` and `set`; `None` if either is NaN.
    #[inline]
    pub fn compare(self, a: u16, b: u16, ftz: bool) -> Option<Ordering> {
        let flags = Flags { ftz, ..Flags::default() };
        self.to_f32(self.operand(a, flags)).partial_cmp(&self.to_f32(self.operand(b, flags)))
    }

    /// `ex2.approx`: 2^a (for bf16 the form is `.ftz`). Within the ISA's error bound, not the hardware's bits.
    #[inline]
    pub fn ex2_approx(self, a: u16, ftz: bool) -> u16 {
        let flags = Flags { ftz, ..Flags::default() };
        let x = f64::from(self.to_f32(self.operand(a, flags)));
        self.result(if x.is_nan() { NAN } else { self.round_f64(float::exp2(x)) }, flags)
    }

    /// `tanh.approx`. Within the ISA's error bound, not the hardware's bits.
    #[inline]
    pub fn tanh_approx(self, a: u16) -> u16 {
        self.round_f32(libm::tanhf(self.to_f32(a)))
    }
}

/// f16 to f32, exactly.
#[inline]
pub fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // Moved into f32's place the number is 2^112 too small; the product is exact, also for subnormal numbers.
    let scaled = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
    let special = if magnitude >= 0x0f80_0000 { 0x7f80_0000 | magnitude } else { scaled.to_bits() };
    f32::from_bits(special | u32::from(bits & 0x8000) << 16)
}

/// bf16 to f32, exactly.
#[inline]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// f32 to f16, to nearest even; NaN becomes canonical.
#[inline]
pub fn f16_from_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // Below 2^-14: adding 0.5 puts f16's last place, 2^-24, at f32's.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let normal = magnitude.wrapping_sub(0x3800_0000).wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13;
    let rounded = if magnitude < 0x3880_0000 { subnormal } else { normal.min(0x7c00) };
    if magnitude > 0x7f80_0000 { NAN } else { rounded as u16 | (bits >> 16) as u16 & 0x8000 }
}

/// f32 to bf16, to nearest even; NaN becomes canonical.
#[inline]
pub fn bf16_from_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    // For infinities the addend never carries: their low half is 0.
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { NAN } else { rounded }
}

/// A binary operation on both halves.
#[inline]
pub fn pair(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16 | u32::from(f(a as u16, b as u16))
}

/// A unary operation on both halves.
#[inline]
pub fn pair1(a: u32, f: impl Fn(u16) -> u16) -> u32 {
    pair(a, a, |x, _| f(x))
}

/// A ternary operation on both halves.
#[inline]
pub fn pair3(a: u32, b: u32, c: u32, f: impl Fn(u16, u16, u16) -> u16) -> u32 {
    u32::from(f((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16)) << 16
        | u32::from(f(a as u16, b as u16, c as u16))
}

#[cfg(test)]
mod tests {
    use super::super::exact::{self, Rounding};
    use super::*;
    use proptest::prelude::*;

    const FORMATS: [Half; 2] = [Half::F16, Half::Bf16];
    const PLAIN: Flags = Flags { ftz: false, sat: false, relu: false };

    fn halves() -> impl Strategy<Value = u16> {
        prop_oneof![
            any::<u16>(),
            any::<u16>().prop_map(|x| x & 0x83ff | 0x3800),
            any::<u16>().prop_map(|x| x & 0x81ff)
        ]
    }

    #[test]
    fn every_half_survives_the_round_trip() {
        for bits in 0..=u16::MAX {
            let reference = [::half::f16::from_bits(bits).to_f32(), ::half::bf16::from_bits(bits).to_f32()];
            for (half, reference) in FORMATS.into_iter().zip(reference) {
                let wide = half.to_f32(bits);
                assert!(wide.to_bits() == reference.to_bits() || wide.is_nan() && reference.is_nan());
                let back = half.canonical(bits);
                assert_eq!(
                    (half.round_f32(wide), half.round_f64(f64::from(wide))),
                    (back, back),
                    "{half:?} {bits:x}"
                );
                // The midpoint to the next number, and its neighbours, in f64.
                let next = half.to_f32(bits.wrapping_add(1));
                if (wide.is_finite() && next.is_finite()) && bits & 0x7fff != 0x7fff {
                    let middle = (f64::from(wide) + f64::from(next)) / 2.0;
                    for x in [middle, middle.next_up(), middle.next_down()] {
                        let expected =
                            exact::convert(x.to_bits(), Format::F64, half.format(), Rounding::Rn) as u16;
                        assert_eq!(half.round_f64(x), expected, "{half:?} {x:e}");
                        let narrow = x as f32;
                        let expected = exact::convert(
                            u64::from(narrow.to_bits()),
                            Format::F32,
                            half.format(),
                            Rounding::Rn,
                        );
                        assert_eq!(half.round_f32(narrow), expected as u16, "{half:?} {narrow:e}");
                    }
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40_000))]

        #[test]
        fn operations_round_once(a in halves(), b in halves(), c in halves()) {
            for half in FORMATS {
                let (x, y, z, format, rn) = (u64::from(a), u64::from(b), u64::from(c), half.format(), Rounding::Rn);
                prop_assert_eq!(u64::from(half.add(a, b, PLAIN)), exact::add(x, y, format, rn));
                prop_assert_eq!(u64::from(half.sub(a, b, PLAIN)), exact::add(x, y ^ 0x8000, format, rn));
                prop_assert_eq!(u64::from(half.mul(a, b, PLAIN)), exact::mul(x, y, format, rn));
                prop_assert_eq!(u64::from(half.fma(a, b, c, PLAIN)), exact::fma(x, y, z, format, rn));
            }
        }

        #[test]
        fn conversions_from_any_float_round_once(bits: u64) {
            for half in FORMATS {
                let expected = exact::convert(bits, Format::F64, half.format(), Rounding::Rn);
                prop_assert_eq!(u64::from(half.round_f64(f64::from_bits(bits))), expected);
                let narrow = bits as u32;
                let expected = exact::convert(u64::from(narrow), Format::F32, half.format(), Rounding::Rn);
                prop_assert_eq!(u64::from(half.round_f32(f32::from_bits(narrow))), expected);
            }
        }
    }

    #[test]
    fn extremes_of_the_conversions() {
        for x in [
            0.0,
            65504.0,
            65519.99,
            65520.0,
            1e300,
            3.3895e38,
            3.3961775e38,
            f64::INFINITY,
            2f64.powi(-25),
            5e-324,
            2f64.powi(-134),
        ] {
            for x in [x, -x] {
                for half in FORMATS {
                    let expected =
                        exact::convert(x.to_bits(), Format::F64, half.format(), Rounding::Rn) as u16;
                    assert_eq!(half.round_f64(x), expected, "{half:?} {x:e}");
                }
            }
        }
    }

    #[test]
    fn flags_flush_clamp_and_rectify() {
        let f16 = Half::F16;
        let (sat, relu, ftz) =
            (Flags { sat: true, ..PLAIN }, Flags { relu: true, ..PLAIN }, Flags { ftz: true, ..PLAIN });
        assert_eq!(
            (f16.add(0x3c00, 0x3c00, sat), f16.add(0xbc00, 0, sat), f16.add(0x7e00, 0, sat)),
            (0x3c00, 0, 0)
        );
        assert_eq!(
            (f16.add(0x7c00, 0, sat), f16.add(0x3400, 0, sat), f16.add(0x8000, 0x8000, sat)),
            (0x3c00, 0x3400, 0)
        );
        assert_eq!((f16.fma(0xbc00, 0x3c00, 0, relu), f16.fma(0xfe00, 0x3c00, 0, relu)), (0, NAN));
        assert_eq!(
            (f16.add(0x8001, 0x8001, ftz), f16.mul(0x0400, 0xb800, ftz), f16.mul(0x0400, 0xb800, PLAIN)),
            (0x8000, 0x8000, 0x8200)
        );
        assert_eq!(
            (f16.neg(0xfc01, PLAIN), f16.abs(0xbc00, PLAIN), Half::Bf16.neg(0x3f80, PLAIN)),
            (NAN, 0x3c00, 0xbf80)
        );
    }

    #[test]
    fn extremes_comparisons_and_pairs() {
        let (f16, min) = (Half::F16, Extremum::Min);
        assert_eq!(f16.extremum(0, 0x8000, min, false, false, false), 0x8000);
        assert_eq!(f16.extremum(0x7e00, 0x3c00, min, false, false, false), 0x3c00);
        assert_eq!(f16.extremum(0x7e00, 0x3c00, min, false, true, false), NAN);
        assert_eq!(f16.extremum(0xc000, 0x3c00, Extremum::Max, false, false, true), 0xc000);
        assert_eq!(
            (f16.compare(0, 0x8000, false), f16.compare(0x7e00, 0, false)),
            (Some(Ordering::Equal), None)
        );
        assert_eq!(
            (f16.compare(1, 0, false), f16.compare(1, 0, true)),
            (Some(Ordering::Greater), Some(Ordering::Equal))
        );
        let add = |a, b| f16.add(a, b, PLAIN);
        assert_eq!(pair(0x3c00_4000, 0x3c00_3c00, add), 0x4000_4200);
        assert_eq!(pair1(0x3c00_4000, |x| f16.neg(x, PLAIN)), 0xbc00_c000);
        assert_eq!(
            pair3(0x3c00_4000, 0x4000_4000, 0x3c00_0000, |a, b, c| f16.fma(a, b, c, PLAIN)),
            0x4200_4400
        );
    }

    #[test]
    fn approximations_are_correctly_rounded_nearly_everywhere() {
        for bits in 0..=u16::MAX {
            for half in FORMATS {
                let x = f64::from(half.to_f32(bits));
                for (got, expected) in
                    [(half.ex2_approx(bits, false), libm::exp2(x)), (half.tanh_approx(bits), libm::tanh(x))]
                {
                    let expected =
                        exact::convert(expected.to_bits(), Format::F64, half.format(), Rounding::Rn) as u16;
                    assert!(got.abs_diff(expected) <= 1, "{half:?} {bits:x} {got:x} {expected:x}");
                }
            }
        }
        assert_eq!(
            (
                Half::F16.ex2_approx(0xfc00, false),
                Half::Bf16.ex2_approx(0x7f80, true),
                Half::F16.tanh_approx(0x8000)
            ),
            (0, 0x7f80, 0x8000)
        );
    }
}
