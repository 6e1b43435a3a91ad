//! f32 and f64 arithmetic, comparison helpers and the approximate functions.
//!
//! Operands and results are bits. With `.rn` and no flags the result is the processor's, made canonical, so a loop over
//! lanes vectorises; the directed modes go through [`exact`].

use super::exact::{self, Format, Rounding};

/// The canonical NaN of every f32 result.
pub const NAN_F32: u32 = 0x7fff_ffff;
/// The canonical NaN of every f64 result.
pub const NAN_F64: u64 = 0x7ff8_0000_0000_0000;
/// What the fast f64 approximations (`.approx.ftz.f64`) return for NaN: only the high word is computed.
pub const NAN_F64_HIGH: u64 = 0x7fff_ffff_0000_0000;

/// The modifiers of an f32 or f64 operation. PTX has `.ftz` and `.sat` for f32 only; for f64 they are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// Rounding of the result.
    pub round: Rounding,
    /// Subnormal operands and results become zeros of their sign.
    pub ftz: bool,
    /// The result is clamped to [0, 1]; NaN becomes +0.
    pub sat: bool,
}

impl Mode {
    /// `.rn` without flags.
    pub const NEAREST: Mode = Mode { round: Rounding::Rn, ftz: false, sat: false };

    #[inline]
    fn operand(self, bits: u32) -> u32 {
        if self.ftz { flush_f32(bits) } else { bits }
    }

    #[inline]
    fn result(self, bits: u32) -> u32 {
        let bits = self.operand(bits);
        if self.sat { saturate_f32(bits) } else { bits }
    }
}

/// The bits of `x`, canonical if NaN.
#[inline]
pub fn bits_f32(x: f32) -> u32 {
    canonical_f32(x.to_bits())
}

/// The bits of `x`, canonical if NaN.
#[inline]
pub fn bits_f64(x: f64) -> u64 {
    canonical_f64(x.to_bits())
}

/// NaN made canonical.
#[inline]
pub fn canonical_f32(bits: u32) -> u32 {
    if is_nan_f32(bits) { NAN_F32 } else { bits }
}

/// NaN made canonical.
#[inline]
pub fn canonical_f64(bits: u64) -> u64 {
    if is_nan_f64(bits) { NAN_F64 } else { bits }
}

/// Whether the bits are a NaN.
#[inline]
pub fn is_nan_f32(bits: u32) -> bool {
    bits & 0x7fff_ffff > 0x7f80_0000
}

/// Whether the bits are a NaN.
#[inline]
pub fn is_nan_f64(bits: u64) -> bool {
    bits & !(1 << 63) > 0x7ff0_0000_0000_0000
}

/// `.ftz`: a subnormal number becomes a zero of its sign.
#[inline]
pub fn flush_f32(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// `.sat`: clamped to [0, 1]; NaN becomes +0.
#[inline]
pub fn saturate_f32(bits: u32) -> u32 {
    let x = f32::from_bits(bits);
    // Both comparisons fail for NaN, and −0 becomes +0.
    if x >= 1.0 {
        1f32.to_bits()
    } else if x > 0.0 {
        bits
    } else {
        0
    }
}

macro_rules! f32_operations {
    ($($(#[$doc:meta])* $name:ident($($x:ident),+) = $fast:expr, $exact:ident;)+) => {$(
        $(#[$doc])*
        #[inline]
        pub fn $name($($x: u32,)+ mode: Mode) -> u32 {
            $(let $x = mode.operand($x);)+
            let bits = if mode.round == Rounding::Rn {
                let fast: fn($($x: f32),+) -> u32 = $fast;
                fast($(f32::from_bits($x)),+)
            } else {
                exact::$exact($(u64::from($x),)+ Format::F32, mode.round) as u32
            };
            mode.result(bits)
        }
    )+};
}

f32_operations! {
    /// `add.f32`: a + b.
    add_f32(a, b) = |a, b| bits_f32(a + b), add;
    /// `mul.f32`: a · b.
    mul_f32(a, b) = |a, b| bits_f32(a * b), mul;
    /// `fma.f32` and `mad.f32`: a · b + c, rounded once.
    fma_f32(a, b, c) = fma_nearest_f32, fma;
    /// `div.rnd.f32`: a / b.
    div_f32(a, b) = |a, b| bits_f32(a / b), div;
    /// `sqrt.rnd.f32`: √a.
    sqrt_f32(a) = |a| root_f32(a), sqrt;
}

/// √a, NaN below zero. Decided on the operand: a test of the root for NaN is something optimisers get wrong.
#[inline]
fn root_f32(a: f32) -> u32 {
    if a >= 0.0 { a.sqrt().to_bits() } else { NAN_F32 }
}

/// `sub.f32`: a − b.
#[inline]
pub fn sub_f32(a: u32, b: u32, mode: Mode) -> u32 {
    add_f32(a, neg_f32(b), mode)
}

/// `rcp.rnd.f32`: 1 / a.
#[inline]
pub fn rcp_f32(a: u32, mode: Mode) -> u32 {
    div_f32(1f32.to_bits(), a, mode)
}

/// a · b + c for operands of at most 24 significant bits, rounded to odd at 53: rounding the result again, to f32 or less,
/// gives what one rounding would have given.
#[inline]
pub fn fma_to_odd(a: f32, b: f32, c: f32) -> f64 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    // The exact error of the sum (Knuth's two-sum); NaN, and so ignored, where the sum is not finite.
    let of_product = sum - c;
    let error = (product - of_product) + (c - (sum - of_product));
    let bits = sum.to_bits();
    let step = if (error > 0.0) == (sum > 0.0) { 1 } else { u64::MAX };
    let inexact = !error.is_nan() && error != 0.0;
    f64::from_bits(if inexact && bits & 1 == 0 { bits.wrapping_add(step) } else { bits })
}

#[inline]
fn fma_nearest_f32(a: f32, b: f32, c: f32) -> u32 {
    bits_f32(fma_to_odd(a, b, c) as f32)
}

/// `add.f64`: a + b.
#[inline]
pub fn add_f64(a: u64, b: u64, round: Rounding) -> u64 {
    match round {
        Rounding::Rn => bits_f64(f64::from_bits(a) + f64::from_bits(b)),
        _ => exact::add(a, b, Format::F64, round),
    }
}

/// `sub.f64`: a − b.
#[inline]
pub fn sub_f64(a: u64, b: u64, round: Rounding) -> u64 {
    add_f64(a, neg_f64(b), round)
}

/// `mul.f64`: a · b.
#[inline]
pub fn mul_f64(a: u64, b: u64, round: Rounding) -> u64 {
    match round {
        Rounding::Rn => bits_f64(f64::from_bits(a) * f64::from_bits(b)),
        _ => exact::mul(a, b, Format::F64, round),
    }
}

/// `fma.f64` and `mad.f64`: a · b + c, rounded once.
#[inline]
pub fn fma_f64(a: u64, b: u64, c: u64, round: Rounding) -> u64 {
    match round {
        Rounding::Rn => bits_f64(libm::fma(f64::from_bits(a), f64::from_bits(b), f64::from_bits(c))),
        _ => exact::fma(a, b, c, Format::F64, round),
    }
}

/// `div.rnd.f64`: a / b.
#[inline]
pub fn div_f64(a: u64, b: u64, round: Rounding) -> u64 {
    match round {
        Rounding::Rn => bits_f64(f64::from_bits(a) / f64::from_bits(b)),
        _ => exact::div(a, b, Format::F64, round),
    }
}

/// `rcp.rnd.f64`: 1 / a.
#[inline]
pub fn rcp_f64(a: u64, round: Rounding) -> u64 {
    div_f64(1f64.to_bits(), a, round)
}

/// `sqrt.rnd.f64`: √a.
#[inline]
pub fn sqrt_f64(a: u64, round: Rounding) -> u64 {
    let x = f64::from_bits(a);
    match round {
        Rounding::Rn if x >= 0.0 => x.sqrt().to_bits(),
        Rounding::Rn => NAN_F64,
        _ => exact::sqrt(a, Format::F64, round),
    }
}

/// `neg.f32`; NaN becomes canonical.
#[inline]
pub fn neg_f32(a: u32) -> u32 {
    canonical_f32(a ^ 0x8000_0000)
}

/// `abs.f32`; NaN becomes canonical.
#[inline]
pub fn abs_f32(a: u32) -> u32 {
    canonical_f32(a & 0x7fff_ffff)
}

/// `copysign.f32`: the magnitude of `b` with the sign of `a`.
#[inline]
pub fn copysign_f32(a: u32, b: u32) -> u32 {
    (b & 0x7fff_ffff) | (a & 0x8000_0000)
}

/// `neg.f64`; NaN becomes canonical.
#[inline]
pub fn neg_f64(a: u64) -> u64 {
    canonical_f64(a ^ 1 << 63)
}

/// `abs.f64`; NaN becomes canonical.
#[inline]
pub fn abs_f64(a: u64) -> u64 {
    canonical_f64(a & !(1 << 63))
}

/// `copysign.f64`: the magnitude of `b` with the sign of `a`.
#[inline]
pub fn copysign_f64(a: u64, b: u64) -> u64 {
    (b & !(1 << 63)) | (a & 1 << 63)
}

/// Which of two numbers `min` and `max` keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extremum {
    /// `min`.
    Min,
    /// `max`.
    Max,
}

/// `min` and `max` on the bits of any format, −0 below +0. One NaN gives the other operand, or (`nan`, the modifier
/// `.NaN`) NaN; `xorsign_abs` compares magnitudes and gives the result the exclusive or of both signs.
#[inline]
pub(super) fn extremum(a: u64, b: u64, format: Format, which: Extremum, nan: bool, xorsign_abs: bool) -> u64 {
    let sign = (a ^ b) & format.sign();
    let (a, b) = if xorsign_abs { (a & !format.sign(), b & !format.sign()) } else { (a, b) };
    let (a_nan, b_nan) = (format.is_nan(a), format.is_nan(b));
    if (a_nan && b_nan) || (nan && (a_nan || b_nan)) {
        return format.nan;
    }
    // Sign and magnitude as a two's complement order.
    let key = |x: u64| {
        let magnitude = (x & (format.sign() - 1)) as i64;
        if x & format.sign() != 0 { -1 - magnitude } else { magnitude }
    };
    let first = if a_nan {
        false
    } else if b_nan {
        true
    } else if which == Extremum::Min {
        key(a) <= key(b)
    } else {
        key(a) >= key(b)
    };
    let result = if first { a } else { b };
    if xorsign_abs { result | sign } else { result }
}

/// `min.f32` and `max.f32` with their modifiers `.ftz`, `.NaN` and `.xorsign.abs`.
#[inline]
pub fn extremum_f32(a: u32, b: u32, which: Extremum, ftz: bool, nan: bool, xorsign_abs: bool) -> u32 {
    let (a, b) = if ftz { (flush_f32(a), flush_f32(b)) } else { (a, b) };
    extremum(u64::from(a), u64::from(b), Format::F32, which, nan, xorsign_abs) as u32
}

/// `min.f64` and `max.f64`.
#[inline]
pub fn extremum_f64(a: u64, b: u64, which: Extremum) -> u64 {
    extremum(a, b, Format::F64, which, false, false)
}

/// The properties that `testp` tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Property {
    /// Neither infinite nor NaN.
    Finite,
    /// ±∞.
    Infinite,
    /// Not NaN.
    Number,
    /// NaN.
    NotANumber,
    /// Normal; zeros count as normal.
    Normal,
    /// Subnormal; zeros do not count.
    Subnormal,
}

#[inline]
fn has(bits: u64, format: Format, property: Property) -> bool {
    let magnitude = bits & (format.sign() - 1);
    let subnormal = magnitude != 0 && magnitude < 1 << format.fraction;
    match property {
        Property::Finite => magnitude < format.infinity(),
        Property::Infinite => magnitude == format.infinity(),
        Property::Number => magnitude <= format.infinity(),
        Property::NotANumber => magnitude > format.infinity(),
        Property::Normal => magnitude < format.infinity() && !subnormal,
        Property::Subnormal => subnormal,
    }
}

/// `testp.f32`.
#[inline]
pub fn testp_f32(a: u32, property: Property) -> bool {
    has(u64::from(a), Format::F32, property)
}

/// `testp.f64`.
#[inline]
pub fn testp_f64(a: u64, property: Property) -> bool {
    has(a, Format::F64, property)
}

/// 2^x in f64 for |x| clamped to 1000, within 2^-36 relative: a polynomial of basic operations, alike on every machine and
/// free of branches.
#[inline]
pub(super) fn exp2(x: f64) -> f64 {
    let x = x.clamp(-1000.0, 1000.0);
    // Adding 1.5 · 2^52 rounds to the nearest integer, which then stands in the low bits.
    let shifted = x + 6_755_399_441_055_744.0;
    let whole = shifted.to_bits() << 52;
    let t = (x - (shifted - 6_755_399_441_055_744.0)) * std::f64::consts::LN_2;
    // Taylor's series of e^t to t^9 on |t| ≤ ln 2 / 2.
    let mut sum = 1.0 / 362_880.0;
    for coefficient in
        [1.0 / 40320.0, 1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0]
    {
        sum = sum * t + coefficient;
    }
    f64::from_bits(sum.to_bits().wrapping_add(whole))
}

macro_rules! approximations {
    ($($(#[$doc:meta])* $name:ident = |$x:ident| $value:expr;)+) => {$(
        $(#[$doc])*
        ///
        /// Within the ISA's error bound, not the hardware's bits.
        #[inline]
        pub fn $name(a: u32, ftz: bool) -> u32 {
            let mode = Mode { ftz, ..Mode::NEAREST };
            let $x = f32::from_bits(mode.operand(a));
            mode.result($value)
        }
    )+};
}

approximations! {
    /// `ex2.approx.f32`: 2^a; 0 for −∞, 1 for ±0 and subnormal operands.
    ex2_approx_f32 = |x| if x.is_nan() { NAN_F32 } else { bits_f32(exp2(f64::from(x)) as f32) };
    /// `lg2.approx.f32`: log₂ a; −∞ for ±0, NaN below zero.
    lg2_approx_f32 = |x| if x >= 0.0 { bits_f32(libm::log2(f64::from(x)) as f32) } else { NAN_F32 };
    /// `rcp.approx.f32`: 1 / a; ±∞ for ±0, ±0 for ±∞.
    rcp_approx_f32 = |x| bits_f32(1.0 / x);
    /// `rsqrt.approx.f32`: 1 / √a; ±∞ for ±0, +0 for +∞, NaN below zero.
    rsqrt_approx_f32 = |x| if x >= 0.0 { bits_f32((1.0 / f64::from(x).sqrt()) as f32) } else { NAN_F32 };
    /// `sqrt.approx.f32`: √a; −0 for −0, NaN below zero.
    sqrt_approx_f32 = |x| root_f32(x);
    /// `sin.approx.f32`; ±0 for ±0, NaN for ±∞.
    sin_approx_f32 = |x| if x.is_finite() { libm::sinf(x).to_bits() } else { NAN_F32 };
    /// `cos.approx.f32`; 1 for ±0, NaN for ±∞.
    cos_approx_f32 = |x| if x.is_finite() { libm::cosf(x).to_bits() } else { NAN_F32 };
}

/// `tanh.approx.f32`; ±1 for ±∞. Subnormal operands are kept.
///
/// Within the ISA's error bound, not the hardware's bits.
#[inline]
pub fn tanh_approx_f32(a: u32) -> u32 {
    bits_f32(libm::tanhf(f32::from_bits(a)))
}

/// `div.approx.f32`: a times the reciprocal of b. As PTX documents, |b| above 2^126 gives a zero of the quotient's sign, or
/// NaN if a is infinite.
///
/// Within the ISA's error bound, not the hardware's bits.
#[inline]
pub fn div_approx_f32(a: u32, b: u32, ftz: bool) -> u32 {
    let mode = Mode { ftz, ..Mode::NEAREST };
    let (a, b) = (mode.operand(a), mode.operand(b));
    let magnitude = b & 0x7fff_ffff;
    // 2^126 is 0x7e800000. Such a divisor's reciprocal is subnormal, which the hardware takes for zero.
    if magnitude > 0x7e80_0000 && magnitude < 0x7f80_0000 {
        let zero = f32::from_bits(b & 0x8000_0000);
        return mode.result(bits_f32(f32::from_bits(a) * zero));
    }
    mode.result(bits_f32(f32::from_bits(a) / f32::from_bits(b)))
}

/// `div.full.f32`: a / b over the whole range.
///
/// Within the ISA's error bound, not the hardware's bits.
#[inline]
pub fn div_full_f32(a: u32, b: u32, ftz: bool) -> u32 {
    div_f32(a, b, Mode { ftz, ..Mode::NEAREST })
}

/// Subnormal numbers flushed, the low word cleared: the operand and result format of the fast f64 approximations.
#[inline]
fn high_word(bits: u64) -> u64 {
    Format::F64.flush(bits) & 0xffff_ffff_0000_0000
}

/// `rcp.approx.ftz.f64`: 1 / a from the high word of a; the low word of the result is 0, NaN is [`NAN_F64_HIGH`].
///
/// Within the ISA's error bound, not the hardware's bits.
#[inline]
pub fn rcp_approx_f64(a: u64) -> u64 {
    if is_nan_f64(a) {
        return NAN_F64_HIGH;
    }
    high_word((1.0 / f64::from_bits(high_word(a))).to_bits())
}

/// `rsqrt.approx.ftz.f64` (`ftz`): 1 / √a from the high word of a, the low word of the result 0, NaN [`NAN_F64_HIGH`].
/// `rsqrt.approx.f64` (not `ftz`) sees the whole operand and subnormal numbers.
///
/// Within the ISA's error bound, not the hardware's bits.
#[inline]
pub fn rsqrt_approx_f64(a: u64, ftz: bool) -> u64 {
    let x = f64::from_bits(if ftz && !is_nan_f64(a) { high_word(a) } else { a });
    match (x >= 0.0, ftz) {
        (true, true) => high_word((1.0 / x.sqrt()).to_bits()),
        (true, false) => (1.0 / x.sqrt()).to_bits(),
        (false, true) => NAN_F64_HIGH,
        (false, false) => NAN_F64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROUNDINGS: [Rounding; 4] = [Rounding::Rn, Rounding::Rz, Rounding::Rm, Rounding::Rp];
    const INFINITY: u32 = 0x7f80_0000;
    const MINUS: u32 = 0x8000_0000;
    const ONE: u32 = 0x3f80_0000;
    const FTZ: Mode = Mode { ftz: true, ..Mode::NEAREST };
    const SAT: Mode = Mode { sat: true, ..Mode::NEAREST };

    fn f32s() -> impl Strategy<Value = u32> {
        prop_oneof![
            any::<u32>(),
            (any::<u32>(), 120u32..134).prop_map(|(m, e)| m & 0x807f_ffff | e << 23),
            any::<u32>().prop_map(|m| m & 0x80ff_ffff),
            prop::sample::select(vec![
                0,
                MINUS,
                INFINITY,
                MINUS | INFINITY,
                0x7fc0_1234,
                1,
                0x007f_ffff,
                0x0080_0000,
                0x7f7f_ffff,
                ONE
            ]),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn fast_paths_equal_the_exact_path(a in f32s(), b in f32s(), c in f32s()) {
            let (x, y, z) = (u64::from(a), u64::from(b), u64::from(c));
            let (format, rn) = (Format::F32, Rounding::Rn);
            prop_assert_eq!(u64::from(add_f32(a, b, Mode::NEAREST)), exact::add(x, y, format, rn));
            prop_assert_eq!(u64::from(mul_f32(a, b, Mode::NEAREST)), exact::mul(x, y, format, rn));
            prop_assert_eq!(u64::from(fma_f32(a, b, c, Mode::NEAREST)), exact::fma(x, y, z, format, rn));
            prop_assert_eq!(u64::from(div_f32(a, b, Mode::NEAREST)), exact::div(x, y, format, rn));
            prop_assert_eq!(u64::from(sqrt_f32(a, Mode::NEAREST)), exact::sqrt(x, format, rn));
        }

        /// A product of two f32 is exact in f64, so f64's comparison says which neighbour each mode must choose.
        #[test]
        fn directed_products_stand_on_their_side(a in f32s(), b in f32s()) {
            let exact = f64::from(f32::from_bits(a)) * f64::from(f32::from_bits(b));
            let [_, zero, down, up] =
                ROUNDINGS.map(|round| f64::from(f32::from_bits(mul_f32(a, b, Mode { round, ..Mode::NEAREST }))));
            if exact.is_nan() {
                prop_assert!(zero.is_nan() && down.is_nan() && up.is_nan());
            } else {
                prop_assert!(down <= exact && exact <= up && zero.abs() <= exact.abs());
                prop_assert!((down as f32).next_up() >= up as f32);
            }
        }

        #[test]
        fn approximations_are_near(a in f32s()) {
            let x = f64::from(f32::from_bits(a));
            let near = |got: u32, expected: f64| {
                let (got, expected) = (f64::from(f32::from_bits(got)), expected as f32 as f64);
                got == expected || (got.is_nan() && expected.is_nan()) || (got - expected).abs() <= expected.abs() * 2.4e-7
                    || (got - expected).abs() < 3e-45
            };
            prop_assert!(near(ex2_approx_f32(a, false), libm::exp2(x)));
            prop_assert!(near(lg2_approx_f32(a, false), libm::log2(x)));
            prop_assert!(near(rsqrt_approx_f32(a, false), 1.0 / libm::sqrt(x)));
            prop_assert!(near(tanh_approx_f32(a), libm::tanh(x)));
            prop_assert!(near(sin_approx_f32(a, false), libm::sin(x)));
            prop_assert!(near(cos_approx_f32(a, false), libm::cos(x)));
        }
    }

    #[test]
    fn flags_flush_and_clamp() {
        assert_eq!((add_f32(1, 1, FTZ), add_f32(MINUS | 1, MINUS | 1, FTZ)), (0, MINUS));
        // The smallest normal number, halved.
        assert_eq!(
            (mul_f32(0x0080_0000, 0xbf00_0000, FTZ), mul_f32(0x0080_0000, 0xbf00_0000, Mode::NEAREST)),
            (MINUS, 0x8040_0000)
        );
        assert_eq!(
            (add_f32(ONE, ONE, SAT), add_f32(MINUS, MINUS, SAT), add_f32(INFINITY, MINUS | INFINITY, SAT)),
            (ONE, 0, 0)
        );
        assert_eq!(
            (add_f32(0x7f80_0001, ONE, Mode::NEAREST), neg_f32(0xffc0_0000), abs_f32(0xffff_ffff)),
            (NAN_F32, NAN_F32, NAN_F32)
        );
        assert_eq!(fma_f32(0, INFINITY, ONE, Mode::NEAREST), NAN_F32);
        assert_eq!(add_f32(ONE, MINUS | ONE, Mode { round: Rounding::Rm, ..Mode::NEAREST }), MINUS);
        assert_eq!(sqrt_f32(MINUS | 1, Mode::NEAREST), NAN_F32);
        assert_eq!((sqrt_f32(MINUS | 1, FTZ), rcp_f32(MINUS, Mode::NEAREST)), (MINUS, MINUS | INFINITY));
    }

    #[test]
    fn extremes_order_zeros_and_drop_nan() {
        let (min, max) = (Extremum::Min, Extremum::Max);
        let plain = |a, b, which| extremum_f32(a, b, which, false, false, false);
        assert_eq!(
            (plain(0, MINUS, min), plain(MINUS, 0, max), plain(MINUS | ONE, MINUS, min)),
            (MINUS, 0, MINUS | ONE)
        );
        assert_eq!(
            (
                plain(0x7fc0_0000, ONE, min),
                plain(ONE, 0xffc0_0000, max),
                plain(0xffc0_0000, 0x7fc0_0000, max)
            ),
            (ONE, ONE, NAN_F32)
        );
        assert_eq!(extremum_f32(0x7fc0_0000, ONE, min, false, true, false), NAN_F32);
        assert_eq!(extremum_f32(MINUS | 1, MINUS, min, true, false, false), MINUS);
        let two = 0x4000_0000;
        assert_eq!(extremum_f32(MINUS | two, ONE, max, false, false, true), MINUS | two);
        assert_eq!(extremum_f32(MINUS | two, MINUS | ONE, min, false, false, true), ONE);
        assert_eq!(extremum_f64(NAN_F64, 1 << 63, min), 1 << 63);
    }

    #[test]
    fn properties() {
        use Property::*;
        for (bits, yes) in [
            (0, vec![Finite, Number, Normal]),
            (1, vec![Finite, Number, Subnormal]),
            (ONE, vec![Finite, Number, Normal]),
            (INFINITY, vec![Infinite, Number]),
            (0xffc0_0000, vec![NotANumber]),
        ] {
            for property in [Finite, Infinite, Number, NotANumber, Normal, Subnormal] {
                assert_eq!(testp_f32(bits, property), yes.contains(&property), "{bits:x} {property:?}");
            }
        }
        assert!(testp_f64(5, Subnormal) && testp_f64(1 << 63, Normal));
    }

    #[test]
    fn special_values_of_the_approximations() {
        let nan = 0x7fc0_0000;
        for (f, table) in [
            (ex2_approx_f32 as fn(u32, bool) -> u32, [0, ONE, ONE, INFINITY, NAN_F32]),
            (lg2_approx_f32, [NAN_F32, MINUS | INFINITY, MINUS | INFINITY, INFINITY, NAN_F32]),
            (rcp_approx_f32, [MINUS, MINUS | INFINITY, INFINITY, 0, NAN_F32]),
            (rsqrt_approx_f32, [NAN_F32, MINUS | INFINITY, INFINITY, 0, NAN_F32]),
            (sqrt_approx_f32, [NAN_F32, MINUS, 0, INFINITY, NAN_F32]),
            (sin_approx_f32, [NAN_F32, MINUS, 0, NAN_F32, NAN_F32]),
            (cos_approx_f32, [NAN_F32, ONE, ONE, NAN_F32, NAN_F32]),
        ] {
            assert_eq!([MINUS | INFINITY, MINUS, 0, INFINITY, nan].map(|x| f(x, true)), table);
            // A subnormal operand acts as a zero of its sign.
            assert_eq!([f(MINUS | 5, true), f(5, true)], [table[1], table[2]]);
        }
        assert_eq!((ex2_approx_f32(0xc315_0000, false), ex2_approx_f32(0xc315_0000, true)), (1, 0));
        assert_eq!(
            (tanh_approx_f32(INFINITY), tanh_approx_f32(MINUS | INFINITY), tanh_approx_f32(MINUS)),
            (ONE, MINUS | ONE, MINUS)
        );
        let large = 0x7e80_0001;
        assert_eq!(
            (div_approx_f32(0x7f00_0000, MINUS | large, false), div_approx_f32(INFINITY, large, false)),
            (MINUS, NAN_F32)
        );
        assert_eq!(
            (div_approx_f32(0x40c0_0000, 0x4000_0000, false), div_full_f32(large, large, true)),
            (0x4040_0000, ONE)
        );
        assert_eq!(
            (rcp_approx_f64(4f64.to_bits() | 5), rcp_approx_f64(1 << 63 | 5)),
            (0.25f64.to_bits(), 0xfff0 << 48)
        );
        assert_eq!(
            (rcp_approx_f64(NAN_F64), rsqrt_approx_f64((-1f64).to_bits(), true)),
            (NAN_F64_HIGH, NAN_F64_HIGH)
        );
        assert_eq!(
            (rsqrt_approx_f64(4f64.to_bits(), true), rsqrt_approx_f64(1 << 63 | 5, true)),
            (0.5f64.to_bits(), 0xfff0 << 48)
        );
        assert_eq!(
            (rsqrt_approx_f64(1, false), rsqrt_approx_f64(1 << 63 | 1, false)),
            ((1.0 / 5e-324f64.sqrt()).to_bits(), NAN_F64)
        );
    }

    #[test]
    fn f64_operations_take_their_rounding() {
        let (one, three) = (1f64.to_bits(), 3f64.to_bits());
        assert_eq!(div_f64(one, three, Rounding::Rn), (1f64 / 3.0).to_bits());
        assert_eq!(rcp_f64(three, Rounding::Rp), (1f64 / 3.0).to_bits() + 1);
        assert_eq!(
            (sub_f64(one, three, Rounding::Rn), mul_f64(three, three, Rounding::Rz)),
            ((-2f64).to_bits(), 9f64.to_bits())
        );
        assert_eq!(
            (fma_f64(three, three, one, Rounding::Rn), fma_f64(three, three, one, Rounding::Rm)),
            (10f64.to_bits(), 10f64.to_bits())
        );
        assert_eq!(
            (sqrt_f64((-1f64).to_bits(), Rounding::Rn), sqrt_f64(1 << 63, Rounding::Rn)),
            (NAN_F64, 1 << 63)
        );
        assert_eq!(
            (neg_f64(u64::MAX), abs_f64(1 << 63), copysign_f64(1 << 63, one)),
            (NAN_F64, 0, one | 1 << 63)
        );
        assert_eq!((copysign_f32(MINUS, ONE), add_f64(one, u64::MAX, Rounding::Rn)), (MINUS | ONE, NAN_F64));
    }
}
