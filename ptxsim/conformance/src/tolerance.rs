//! The errors that the PTX instruction set allows its approximations. Everything else is exact.

use crate::cases::Case;

/// What an approximation may be wrong by, against the true value: relative · |value| + absolute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Which bound applies.
    opcode: Opcode,
    /// Bits of each float in an element: an f16x2 holds two of 16.
    pub lane_bits: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Opcode {
    Ex2,
    Ex2Half,
    Lg2,
    Reciprocal,
    ReciprocalDouble,
    ReciprocalRoot,
    Root,
    Sine,
    Tanh,
    TanhHalf,
    Division,
}

impl Tolerance {
    /// The tolerance of the first approximation in a piece of PTX; None if all of it is exact.
    pub fn of(instruction: &str) -> Option<Tolerance> {
        let opcode =
            instruction.split_whitespace().find(|w| w.contains(".approx") || w.starts_with("div.full"))?;
        let half = opcode.ends_with(".f16") || opcode.ends_with(".f16x2");
        let double = opcode.ends_with(".f64");
        let lane_bits = if half {
            16
        } else if double {
            64
        } else {
            32
        };
        let opcode = match (opcode.split('.').next()?, half, double) {
            ("ex2", false, false) => Opcode::Ex2,
            ("ex2", true, _) => Opcode::Ex2Half,
            ("lg2", false, false) => Opcode::Lg2,
            ("rcp", false, false) => Opcode::Reciprocal,
            ("rcp", false, true) => Opcode::ReciprocalDouble,
            ("rsqrt", false, false) => Opcode::ReciprocalRoot,
            ("sqrt", false, false) => Opcode::Root,
            ("sin" | "cos", false, false) => Opcode::Sine,
            ("tanh", false, false) => Opcode::Tanh,
            ("tanh", true, _) => Opcode::TanhHalf,
            ("div", false, false) => Opcode::Division,
            _ => return None,
        };
        Some(Tolerance { opcode, lane_bits })
    }

    /// Relative and absolute error for the true value of a first operand; None where the instruction set sets no bound.
    ///
    /// PTX ISA 9.0, "Floating Point Instructions"; errors given in units in the last place are one or two times 2^-23.
    pub fn bounds(&self, operand: f64) -> Option<(f64, f64)> {
        let relative = |bits: f64| Some(((-bits).exp2(), 0.0));
        let absolute = |bits: f64| Some((0.0, (-bits).exp2()));
        match self.opcode {
            Opcode::Ex2 => relative(22.0),
            Opcode::Ex2Half => relative(9.9),
            Opcode::Lg2 if (0.5..=2.0).contains(&operand) => absolute(22.0),
            Opcode::Lg2 => relative(22.0),
            Opcode::Reciprocal => relative(23.0),
            Opcode::ReciprocalDouble => relative(20.0),
            Opcode::ReciprocalRoot => relative(22.9),
            Opcode::Root => relative(23.0),
            Opcode::Sine if operand.abs() <= std::f64::consts::TAU => absolute(20.5),
            Opcode::Sine if operand.abs() <= 100.0 * std::f64::consts::PI => absolute(14.7),
            Opcode::Sine => None,
            Opcode::Tanh => relative(11.0),
            Opcode::TanhHalf => absolute(10.987),
            Opcode::Division => relative(22.0),
        }
    }

    /// Whether two results of an element can both be right: each may err by the bound, to either side. Infinities, NaN
    /// and (but for absolute bounds) zeros are exact.
    pub fn admits(&self, case: &Case, element: usize, expected: u64, got: u64) -> bool {
        let operand = case.operands(element % case.n as usize).first().copied().unwrap_or_default();
        (0..case.output_bits / self.lane_bits).all(|lane| {
            let part = |value: u64| value >> (lane * self.lane_bits) & (u64::MAX >> (64 - self.lane_bits));
            self.admits_lane(part(operand), part(expected), part(got))
        })
    }

    fn admits_lane(&self, operand: u64, expected: u64, got: u64) -> bool {
        if expected == got {
            return true;
        }
        let (x, y) = (self.value(expected), self.value(got));
        if !x.is_finite() || !y.is_finite() {
            return false;
        }
        let Some((relative, absolute)) = self.bounds(self.value(operand)) else {
            // Of the sine of a large number, at least the range is known.
            return x.abs() <= 1.001 && y.abs() <= 1.001;
        };
        let difference = (x - y).abs();
        if difference <= 2.0 * absolute {
            return true;
        }
        let (least_normal, last_place) = match self.lane_bits {
            16 => (f64::exp2(-14.0), f64::exp2(-24.0)),
            32 => (f64::exp2(-126.0), f64::exp2(-149.0)),
            _ => (f64::MIN_POSITIVE, f64::from_bits(1)),
        };
        // The bounds of 16-bit approximations are close to a last place, so their rounding counts; so does that of subnormals.
        let rounding = if self.lane_bits == 16 { x.abs() * f64::exp2(-11.0) } else { 0.0 };
        let subnormal = if x.abs() < least_normal { last_place } else { 0.0 };
        let allowed = 2.0 * (relative * x.abs() + absolute + rounding) + subnormal;
        difference <= allowed && (x == 0.0) == (y == 0.0)
    }

    /// The value of a float of the instruction's format.
    pub fn value(&self, bits: u64) -> f64 {
        match self.lane_bits {
            16 => half::f16::from_bits(bits as u16).to_f64(),
            32 => f64::from(f32::from_bits(bits as u32)),
            _ => f64::from_bits(bits),
        }
    }
}
