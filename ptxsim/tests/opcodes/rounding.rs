//! Correct rounding by plain f64 arithmetic: a result that is rounded to odd in 53 bits can be rounded again to any narrower
//! format without error.

/// How a result is rounded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Round {
    Nearest,
    Zero,
    Down,
    Up,
}

pub const ROUNDS: [(&str, Round); 4] =
    [("rn", Round::Nearest), ("rz", Round::Zero), ("rm", Round::Down), ("rp", Round::Up)];

/// A binary format: bits of precision, least exponent of a normal number, largest number.
#[derive(Clone, Copy)]
pub struct Format {
    pub precision: i32,
    pub least: i32,
    pub largest: f64,
}

pub const F32: Format = Format { precision: 24, least: -126, largest: f32::MAX as f64 };
pub const F16: Format = Format { precision: 11, least: -14, largest: 65504.0 };
pub const BF16: Format = Format { precision: 8, least: -126, largest: 3.389_531_389_251_535_5e38 };
pub const TF32: Format = Format { precision: 11, least: -126, largest: 3.401_162_134_214_653e38 };
pub const E4M3: Format = Format { precision: 4, least: -6, largest: 448.0 };
pub const E5M2: Format = Format { precision: 3, least: -14, largest: 57344.0 };

fn exponent(x: f64) -> i32 {
    ((x.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(-1022)
}

/// An integral f64 by the mode.
pub fn integral(x: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

/// `x` rounded to a format; what overflows becomes infinite or the largest number, as the mode has it.
pub fn round_to(x: f64, format: Format, round: Round) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let quantum = 2f64.powi(exponent(x).max(format.least) - (format.precision - 1));
    let result = (integral(x / quantum, round) * quantum).copysign(x);
    if result.abs() <= format.largest {
        return result;
    }
    let outward = match round {
        Round::Nearest => true,
        Round::Zero => false,
        Round::Down => x < 0.0,
        Round::Up => x > 0.0,
    };
    if outward { f64::INFINITY.copysign(x) } else { format.largest.copysign(x) }
}

/// `near`, whose exact value differs by `error`, rounded to odd.
fn odd(near: f64, error: f64) -> f64 {
    if error == 0.0 || !near.is_finite() || near.to_bits() & 1 == 1 {
        return near;
    }
    if (error > 0.0) == (near > 0.0) || near == 0.0 {
        f64::from_bits(near.to_bits() + 1)
    } else {
        f64::from_bits(near.to_bits() - 1)
    }
}

/// a + b rounded to odd.
pub fn add_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let t = sum - a;
    odd(sum, (a - (sum - t)) + (b - t))
}

/// a / b rounded to odd.
pub fn div_odd(a: f64, b: f64) -> f64 {
    let q = a / b;
    if !q.is_finite() || q == 0.0 || !b.is_finite() {
        return q;
    }
    let rest = (-q).mul_add(b, a);
    odd(q, if b > 0.0 { rest } else { -rest })
}

/// √a rounded to odd.
pub fn sqrt_odd(a: f64) -> f64 {
    let q = a.sqrt();
    if q.is_finite() && q > 0.0 { odd(q, (-q).mul_add(q, a)) } else { q }
}

/// a + b rounded to a format; where the terms cancel, the zero is negative when rounding down.
pub fn sum_to(a: f64, b: f64, format: Format, round: Round) -> f64 {
    zero_of_sum(a, b, round_to(add_odd(a, b), format, round), add_odd(a, b) == 0.0, round)
}

/// `sum` with the sign that an exact zero has.
pub fn zero_of_sum(a: f64, b: f64, sum: f64, exact_zero: bool, round: Round) -> f64 {
    let cancelled = exact_zero && a.is_sign_negative() != b.is_sign_negative();
    if cancelled && round == Round::Down { -0.0 } else { sum }
}

/// Sign of the exact a · b + c − n: the four terms are summed without error.
pub fn sign_of_rest(a: f64, b: f64, c: f64, n: f64) -> f64 {
    let p = a * b;
    let mut parts = vec![];
    for term in [p, a.mul_add(b, -p), c, -n] {
        let mut carry = term;
        let mut next = vec![];
        for part in &parts {
            let sum = carry + part;
            let t = sum - carry;
            next.push((carry - (sum - t)) + (part - t));
            carry = sum;
        }
        next.push(carry);
        parts = next;
    }
    parts.iter().rev().find(|p| **p != 0.0).copied().unwrap_or(0.0)
}

/// The neighbour of a nearest-rounded f64 that the mode asks for, given the sign of what rounding lost.
pub fn direct(near: f64, rest: f64, round: Round) -> f64 {
    if rest == 0.0 || !near.is_finite() {
        return near;
    }
    let up = |x: f64| {
        if x == 0.0 {
            f64::from_bits(1)
        } else if x > 0.0 {
            f64::from_bits(x.to_bits() + 1)
        } else {
            f64::from_bits(x.to_bits() - 1)
        }
    };
    let down = |x: f64| -up(-x);
    match round {
        Round::Down if rest < 0.0 => down(near),
        Round::Up if rest > 0.0 => up(near),
        Round::Zero if near > 0.0 && rest < 0.0 => down(near),
        Round::Zero if near < 0.0 && rest > 0.0 => up(near),
        _ => near,
    }
}
