//! Exact values and their one rounding.
//!
//! An operation in a directed mode, or on a format the processor lacks, is computed exactly (or with the lost tail kept as
//! a sticky bit) as an [`Exact`] and rounded once to a [`Format`]. This is the slow form: the callers keep plain
//! processor arithmetic for what it rounds correctly.

/// How a floating-point result is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// `.rn`: to nearest, ties to even.
    Rn,
    /// `.rz`: toward zero.
    Rz,
    /// `.rm`: toward minus infinity.
    Rm,
    /// `.rp`: toward plus infinity.
    Rp,
}

/// A binary floating-point format with IEEE 754's encoding, and PTX's canonical NaN in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// Explicit significand bits.
    pub fraction: u32,
    /// Exponent bits.
    pub exponent: u32,
    /// What a NaN result reads.
    pub nan: u64,
}

impl Format {
    /// f64.
    pub const F64: Format = Format { fraction: 52, exponent: 11, nan: 0x7ff8_0000_0000_0000 };
    /// f32.
    pub const F32: Format = Format { fraction: 23, exponent: 8, nan: 0x7fff_ffff };
    /// f16.
    pub const F16: Format = Format { fraction: 10, exponent: 5, nan: 0x7fff };
    /// bf16.
    pub const BF16: Format = Format { fraction: 7, exponent: 8, nan: 0x7fff };

    /// The bits of +infinity.
    #[inline]
    pub const fn infinity(self) -> u64 {
        ((1 << self.exponent) - 1) << self.fraction
    }

    /// The sign bit.
    #[inline]
    pub const fn sign(self) -> u64 {
        1 << (self.fraction + self.exponent)
    }

    /// The exponent of the smallest normal number.
    #[inline]
    const fn least_exponent(self) -> i32 {
        2 - (1 << (self.exponent - 1))
    }

    /// Whether `bits` is a NaN.
    #[inline]
    pub const fn is_nan(self, bits: u64) -> bool {
        bits & (self.sign() - 1) > self.infinity()
    }

    /// Subnormal numbers become zeros of their sign (`.ftz`).
    #[inline]
    pub const fn flush(self, bits: u64) -> u64 {
        if bits & self.infinity() == 0 { bits & self.sign() } else { bits }
    }

    /// What `bits` stands for.
    #[inline]
    pub fn unpack(self, bits: u64) -> Number {
        let negative = bits & self.sign() != 0;
        let field = (bits & self.infinity()) >> self.fraction;
        let fraction = bits & ((1 << self.fraction) - 1);
        if bits & self.infinity() == self.infinity() {
            return if fraction != 0 { Number::Nan } else { Number::Infinite { negative } };
        }
        let hidden = u64::from(field != 0) << self.fraction;
        let exponent = self.least_exponent() - self.fraction as i32 + (field as i32 - 1).max(0);
        Number::Finite(Exact { negative, exponent, significand: u128::from(fraction | hidden) })
    }
}

/// A decoded floating-point number.
#[derive(Debug, Clone, Copy)]
pub enum Number {
    /// Not a number.
    Nan,
    /// An infinity.
    Infinite {
        /// Whether it is −∞.
        negative: bool,
    },
    /// A finite value; zero keeps its sign.
    Finite(Exact),
}

/// ±significand · 2^exponent. The lowest bit may be a sticky bit (set if anything nonzero was lost below it) as long as
/// it lies at least two bits below the last place of the format that the value is rounded to.
#[derive(Debug, Clone, Copy)]
pub struct Exact {
    /// The sign, also of zero.
    pub negative: bool,
    /// Weight of the significand's lowest bit.
    pub exponent: i32,
    /// The magnitude; below 2^127.
    pub significand: u128,
}

impl Exact {
    /// An integer.
    pub fn integer(value: i128) -> Exact {
        Exact { negative: value < 0, exponent: 0, significand: value.unsigned_abs() }
    }

    /// Shifted so that the highest set bit is bit 125: room for the carry of one sum.
    fn normalised(self) -> Exact {
        let shift = self.significand.leading_zeros() as i32 - 2;
        Exact {
            significand: self.significand << shift.max(0),
            exponent: self.exponent - shift.max(0),
            ..self
        }
    }

    /// The sum, sticky where the smaller operand reaches below 126 bits. Operands must have at most 106 significant bits.
    /// A sum of exact zero has the sign that `round` prescribes.
    pub fn plus(self, other: Exact, round: Rounding) -> Exact {
        if self.significand == 0 || other.significand == 0 {
            return match (self.significand, other.significand) {
                (0, 0) if self.negative != other.negative => {
                    Exact { negative: round == Rounding::Rm, ..self }
                }
                (0, _) => other,
                _ => self,
            };
        }
        let (x, y) = (self.normalised(), other.normalised());
        let (large, small) =
            if (x.exponent, x.significand) >= (y.exponent, y.significand) { (x, y) } else { (y, x) };
        // Bits are lost only at distances where the difference cannot cancel more than one bit.
        let distance = (large.exponent - small.exponent).min(127);
        let lost = small.significand & ((1 << distance) - 1) != 0;
        let aligned = small.significand >> distance | u128::from(lost);
        if large.negative == small.negative {
            return Exact { significand: large.significand + aligned, ..large };
        }
        match large.significand - aligned {
            0 => Exact { negative: round == Rounding::Rm, exponent: 0, significand: 0 },
            significand => Exact { significand, ..large },
        }
    }

    /// The product, exact for operands of at most 53 bits.
    pub fn times(self, other: Exact) -> Exact {
        Exact {
            negative: self.negative != other.negative,
            exponent: self.exponent + other.exponent,
            significand: self.significand * other.significand,
        }
    }

    /// The quotient of operands of at most 53 bits, sticky below at least 60 bits. The divisor is not zero.
    fn divided_by(self, other: Exact) -> Exact {
        let (x, y) = (self.normalised(), other.normalised());
        // A 126-bit dividend over a 62-bit divisor: 64 or 65 bits of quotient.
        let divisor = y.significand >> 64;
        let (quotient, rest) = (x.significand / divisor, x.significand % divisor);
        Exact {
            negative: self.negative != other.negative,
            exponent: x.exponent - y.exponent - 64,
            significand: quotient | u128::from(rest != 0),
        }
    }

    /// The square root of a positive value of at most 53 bits, sticky below at least 60 bits.
    fn square_root(self) -> Exact {
        let mut x = self.normalised();
        if x.exponent % 2 != 0 {
            x = Exact { significand: x.significand >> 1, exponent: x.exponent + 1, ..x };
        }
        let root = x.significand.isqrt();
        Exact {
            negative: false,
            exponent: x.exponent / 2 - 1,
            significand: root << 1 | u128::from(root * root != x.significand),
        }
    }

    /// The value in `format`, rounded once. Overflow gives infinity or the largest finite number, as `round` says.
    pub fn round(self, format: Format, round: Rounding) -> u64 {
        let sign = if self.negative { format.sign() } else { 0 };
        if self.significand == 0 {
            return sign;
        }
        let top = 127 - self.significand.leading_zeros() as i32;
        let least = format.least_exponent();
        let leading = (self.exponent + top).max(least);
        let shift = leading - format.fraction as i32 - self.exponent;
        let (kept, up) = if shift <= 0 {
            (self.significand << -shift, false)
        } else {
            let shift = shift.min(127);
            let kept = self.significand >> shift;
            let (rest, half) = (self.significand & ((1 << shift) - 1), 1 << (shift - 1));
            let up = match round {
                Rounding::Rn => rest > half || (rest == half && kept & 1 == 1),
                Rounding::Rz => false,
                Rounding::Rm => rest != 0 && self.negative,
                Rounding::Rp => rest != 0 && !self.negative,
            };
            (kept, up)
        };
        if leading > -least + 1 {
            return sign | overflow(self.negative, format, round);
        }
        // The hidden bit adds one to the exponent field, and so does a carry out of the fraction.
        let bits = (((leading - least) as u64) << format.fraction) + kept as u64 + u64::from(up);
        sign | if bits >= format.infinity() { overflow(self.negative, format, round) } else { bits }
    }
}

/// The magnitude of an overflowed result.
fn overflow(negative: bool, format: Format, round: Rounding) -> u64 {
    let finite = match round {
        Rounding::Rn => false,
        Rounding::Rz => true,
        Rounding::Rm => !negative,
        Rounding::Rp => negative,
    };
    format.infinity() - u64::from(finite)
}

/// a + b.
pub fn add(a: u64, b: u64, format: Format, round: Rounding) -> u64 {
    sum(format.unpack(a), format.unpack(b), format, round)
}

fn sum(a: Number, b: Number, format: Format, round: Rounding) -> u64 {
    match (a, b) {
        (Number::Nan, _) | (_, Number::Nan) => format.nan,
        (Number::Infinite { negative: x }, Number::Infinite { negative: y }) if x != y => format.nan,
        (Number::Infinite { negative }, _) | (_, Number::Infinite { negative }) => {
            signed(format.infinity(), negative, format)
        }
        (Number::Finite(x), Number::Finite(y)) => x.plus(y, round).round(format, round),
    }
}

fn signed(bits: u64, negative: bool, format: Format) -> u64 {
    bits | if negative { format.sign() } else { 0 }
}

/// The exact product as a number, NaN for 0 · ∞.
fn product(a: Number, b: Number) -> Number {
    match (a, b) {
        (Number::Nan, _) | (_, Number::Nan) => Number::Nan,
        (Number::Finite(x), Number::Finite(y)) => Number::Finite(x.times(y)),
        (Number::Infinite { negative }, Number::Finite(x))
        | (Number::Finite(x), Number::Infinite { negative }) => {
            if x.significand == 0 {
                Number::Nan
            } else {
                Number::Infinite { negative: negative != x.negative }
            }
        }
        (Number::Infinite { negative: x }, Number::Infinite { negative: y }) => {
            Number::Infinite { negative: x != y }
        }
    }
}

fn encode(value: Number, format: Format, round: Rounding) -> u64 {
    match value {
        Number::Nan => format.nan,
        Number::Infinite { negative } => signed(format.infinity(), negative, format),
        Number::Finite(x) => x.round(format, round),
    }
}

/// a · b.
pub fn mul(a: u64, b: u64, format: Format, round: Rounding) -> u64 {
    encode(product(format.unpack(a), format.unpack(b)), format, round)
}

/// a · b + c, rounded once.
pub fn fma(a: u64, b: u64, c: u64, format: Format, round: Rounding) -> u64 {
    sum(product(format.unpack(a), format.unpack(b)), format.unpack(c), format, round)
}

/// a / b.
pub fn div(a: u64, b: u64, format: Format, round: Rounding) -> u64 {
    let sign = (a ^ b) & format.sign();
    match (format.unpack(a), format.unpack(b)) {
        (Number::Nan, _) | (_, Number::Nan) | (Number::Infinite { .. }, Number::Infinite { .. }) => {
            format.nan
        }
        (Number::Infinite { .. }, _) => sign | format.infinity(),
        (_, Number::Infinite { .. }) => sign,
        (Number::Finite(x), Number::Finite(y)) => match (x.significand, y.significand) {
            (0, 0) => format.nan,
            (_, 0) => sign | format.infinity(),
            (0, _) => sign,
            _ => x.divided_by(y).round(format, round),
        },
    }
}

/// √a.
pub fn sqrt(a: u64, format: Format, round: Rounding) -> u64 {
    match format.unpack(a) {
        Number::Finite(x) if x.significand == 0 => a,
        Number::Finite(x) if !x.negative => x.square_root().round(format, round),
        Number::Infinite { negative: false } => a,
        _ => format.nan,
    }
}

/// `bits` of one format in another, rounded once. NaN becomes canonical.
pub fn convert(bits: u64, from: Format, to: Format, round: Rounding) -> u64 {
    encode(from.unpack(bits), to, round)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Finite f32 and f64 bits of every magnitude, with many small integers and powers of two among them.
    fn f64s() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<u64>().prop_map(f64::from_bits),
            (-40i32..40, 0i32..64).prop_map(|(e, m)| f64::from(m) * 2f64.powi(e)),
            (any::<u64>(), 1013u64..1033)
                .prop_map(|(m, e)| f64::from_bits(m << 12 >> 12 | e << 52 | m & 1 << 63)),
            prop::sample::select(vec![
                0.0,
                -0.0,
                f64::INFINITY,
                f64::NAN,
                f64::MAX,
                -f64::MAX,
                f64::MIN_POSITIVE,
                5e-324
            ]),
        ]
    }

    fn canonical(x: f64) -> u64 {
        if x.is_nan() { Format::F64.nan } else { x.to_bits() }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn nearest_f64_matches_the_processor(a in f64s(), b in f64s(), c in f64s()) {
            let (x, y, z) = (a.to_bits(), b.to_bits(), c.to_bits());
            prop_assert_eq!(add(x, y, Format::F64, Rounding::Rn), canonical(a + b));
            prop_assert_eq!(mul(x, y, Format::F64, Rounding::Rn), canonical(a * b));
            prop_assert_eq!(div(x, y, Format::F64, Rounding::Rn), canonical(a / b));
            // Asked of the operand: optimisers have been seen to take a NaN root for a number.
            let root = if a < 0.0 { Format::F64.nan } else { canonical(a.sqrt()) };
            prop_assert_eq!(sqrt(x, Format::F64, Rounding::Rn), root);
            prop_assert_eq!(fma(x, y, z, Format::F64, Rounding::Rn), canonical(libm::fma(a, b, c)));
            let narrow = a as f32;
            let expected = if a.is_nan() { 0x7fff_ffff } else { u64::from(narrow.to_bits()) };
            prop_assert_eq!(convert(x, Format::F64, Format::F32, Rounding::Rn), expected);
        }

        /// The directed results enclose the exact one: equal to the nearest where that is exact, else one place apart.
        #[test]
        fn directed_results_enclose_the_nearest(a in f64s(), b in f64s(), c in f64s()) {
            let (x, y, z) = (a.to_bits(), b.to_bits(), c.to_bits());
            let ops: [&dyn Fn(Rounding) -> u64; 4] = [
                &|r| add(x, y, Format::F64, r), &|r| mul(x, y, Format::F64, r),
                &|r| div(x, y, Format::F64, r), &|r| fma(x, y, z, Format::F64, r),
            ];
            for op in ops {
                let [near, zero, down, up] =
                    [Rounding::Rn, Rounding::Rz, Rounding::Rm, Rounding::Rp].map(|r| f64::from_bits(op(r)));
                if near.is_nan() {
                    prop_assert!(zero.is_nan() && down.is_nan() && up.is_nan());
                    continue;
                }
                prop_assert!(down <= near && near <= up);
                prop_assert!(down == up || down.next_up() == up, "{down} {up}");
                prop_assert_eq!(zero, if near > 0.0 || (near == 0.0 && up > 0.0) { down } else { up });
            }
        }
    }

    #[test]
    fn directed_sums_of_tiny_and_large() {
        let (one, tiny) = (1f64.to_bits(), 5e-324f64.to_bits());
        assert_eq!(add(one, tiny, Format::F64, Rounding::Rp), one + 1);
        assert_eq!(add(one, tiny | 1 << 63, Format::F64, Rounding::Rz), one - 1);
        assert_eq!(fma(one, one, tiny | 1 << 63, Format::F64, Rounding::Rm), one - 1);
        assert_eq!(add(one, one | 1 << 63, Format::F64, Rounding::Rm), 1 << 63);
        assert_eq!(
            mul(f64::MAX.to_bits(), f64::MAX.to_bits(), Format::F64, Rounding::Rz),
            f64::MAX.to_bits()
        );
        assert_eq!(mul(tiny, tiny, Format::F64, Rounding::Rp), 1);
        assert_eq!(mul(tiny, tiny, Format::F64, Rounding::Rn), 0);
        assert_eq!(sqrt(2f64.to_bits(), Format::F64, Rounding::Rp), 2f64.sqrt().to_bits());
        assert_eq!(sqrt(2f64.to_bits(), Format::F64, Rounding::Rz), 2f64.sqrt().to_bits() - 1);
    }
}
