//! f32 and f64 arithmetic in every rounding, and the approximations within the bounds that the ISA gives.

use crate::{harness::*, rounding::*};

fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

fn d(x: u64) -> f64 {
    f64::from_bits(x)
}

/// Corners of f32 and some numbers between.
pub fn edges_f32() -> Vec<u64> {
    let mut values: Vec<u64> = [
        0.0f32,
        1.0,
        1.5,
        2.0,
        3.0,
        0.1,
        1e-3,
        1e10,
        16_777_217.0,
        f32::MAX,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        f32::from_bits(0x7f_ffff),
        f32::from_bits(0x80_0001),
        f32::EPSILON,
        1.0 + f32::EPSILON,
        1.0 - f32::EPSILON / 2.0,
        f32::INFINITY,
        0.333_333_34,
        1e38,
        2e-38,
    ]
    .iter()
    .flat_map(|x| [x.to_bits(), (-x).to_bits()])
    .map(u64::from)
    .collect();
    values.extend([0x7fc0_0000, 0x7f80_0001, 0xffff_ffff]);
    values.extend(random(6, 77).iter().map(|v| v & 0xffff_ffff));
    values
}

pub fn edges_f64() -> Vec<u64> {
    let mut values: Vec<u64> = [
        0.0f64,
        1.0,
        1.5,
        3.0,
        0.1,
        1e-3,
        1e10,
        9_007_199_254_740_993.0,
        f64::EPSILON,
        1.0 + f64::EPSILON,
        f64::INFINITY,
        1.0 / 3.0,
        1e100,
        3e-100,
    ]
    .iter()
    .flat_map(|x| [x.to_bits(), (-x).to_bits()])
    .collect();
    values.push(f64::NAN.to_bits());
    values.extend(random(6, 78).iter().map(|v| v & !(0x7ff << 52) | (900 + v % 200) << 52));
    values
}

fn flush(x: f64, ftz: bool) -> f64 {
    if ftz && x.abs() < f64::from(f32::MIN_POSITIVE) { 0f64.copysign(x) } else { x }
}

/// The bits of a result in f32: its flags applied, the one NaN.
fn finish(x: f64, ftz: bool, sat: bool) -> u64 {
    let x = flush(x, ftz);
    if sat {
        return u64::from(if x.is_nan() || x <= 0.0 { 0 } else { (x.min(1.0) as f32).to_bits() });
    }
    u64::from(if x.is_nan() { 0x7fff_ffff } else { (x as f32).to_bits() })
}

#[test]
fn f32_in_every_rounding() {
    let e = edges_f32();
    let two = product(&[&e, &e]);
    let one: Vec<_> = e.iter().map(|v| vec![*v]).collect();
    let few: Vec<u64> = e.iter().copied().step_by(2).collect();
    let three = product(&[&few, &few, &few]);
    for (name, round) in ROUNDS {
        for ftz in [false, true] {
            for sat in [false, true] {
                let flags =
                    format!("{name}{}{}", if ftz { ".ftz" } else { "" }, if sat { ".sat" } else { "" });
                let v = |x: u64| flush(f64::from(f(x)), ftz);
                let sum = |a: f64, b: f64| sum_to(a, b, F32, round);
                check(&format!("add.{flags}.f32 $d, $a, $b;"), "r:rr", &two, |x| {
                    finish(sum(v(x[0]), v(x[1])), ftz, sat)
                });
                check(&format!("sub.{flags}.f32 $d, $a, $b;"), "r:rr", &two, |x| {
                    finish(sum(v(x[0]), -v(x[1])), ftz, sat)
                });
                check(&format!("mul.{flags}.f32 $d, $a, $b;"), "r:rr", &two, |x| {
                    finish(round_to(v(x[0]) * v(x[1]), F32, round), ftz, sat)
                });
                check(&format!("fma.{flags}.f32 $d, $a, $b, $c;"), "r:rrr", &three, |x| {
                    finish(sum(v(x[0]) * v(x[1]), v(x[2])), ftz, sat)
                });
            }
            let flags = format!("{name}{}", if ftz { ".ftz" } else { "" });
            let v = |x: u64| flush(f64::from(f(x)), ftz);
            check(&format!("div.{flags}.f32 $d, $a, $b;"), "r:rr", &two, |x| {
                finish(round_to(div_odd(v(x[0]), v(x[1])), F32, round), ftz, false)
            });
            check(&format!("rcp.{flags}.f32 $d, $a;"), "r:r", &one, |x| {
                finish(round_to(div_odd(1.0, v(x[0])), F32, round), ftz, false)
            });
            check(&format!("sqrt.{flags}.f32 $d, $a;"), "r:r", &one, |x| {
                finish(round_to(sqrt_odd(v(x[0])), F32, round), ftz, false)
            });
        }
    }
}

#[test]
fn f32_without_rounding() {
    let e = edges_f32();
    let two = product(&[&e, &e]);
    let one: Vec<_> = e.iter().map(|v| vec![*v]).collect();
    for (flag, ftz) in [("", false), (".ftz", true)] {
        let v = |x: u64| flush(f64::from(f(x)), ftz) as f32;
        // Without a rounding, add and mul round to nearest.
        check(&format!("add{flag}.f32 $d, $a, $b;"), "r:rr", &two, |x| {
            finish(f64::from(v(x[0]) + v(x[1])), ftz, false)
        });
        check(&format!("mul{flag}.f32 $d, $a, $b;"), "r:rr", &two, |x| {
            finish(round_to(f64::from(v(x[0])) * f64::from(v(x[1])), F32, Round::Nearest), ftz, false)
        });
        check_by(&format!("neg{flag}.f32 $d, $a;"), "r:r", &one, |x, got| {
            if f(x[0]).is_nan() { f(got).is_nan() } else { got as u32 == (-v(x[0])).to_bits() }
        });
        check_by(&format!("abs{flag}.f32 $d, $a;"), "r:r", &one, |x, got| {
            if f(x[0]).is_nan() { f(got).is_nan() } else { got as u32 == v(x[0]).abs().to_bits() }
        });
        for max in [false, true] {
            let op = if max { "max" } else { "min" };
            // −0 is below +0; a NaN loses, or wins with .NaN.
            let extremum = |a: f32, b: f32| match (a.is_nan(), b.is_nan()) {
                (true, true) => f32::NAN,
                (true, false) => b,
                (false, true) => a,
                _ => {
                    let less = a < b || a == b && a.is_sign_negative();
                    if less != max { a } else { b }
                }
            };
            let bits = |x: f32| u64::from(if x.is_nan() { 0x7fff_ffff } else { x.to_bits() });
            check(&format!("{op}{flag}.f32 $d, $a, $b;"), "r:rr", &two, |x| bits(extremum(v(x[0]), v(x[1]))));
            check(&format!("{op}{flag}.NaN.f32 $d, $a, $b;"), "r:rr", &two, |x| {
                let (a, b) = (v(x[0]), v(x[1]));
                bits(if a.is_nan() || b.is_nan() { f32::NAN } else { extremum(a, b) })
            });
            check_by(&format!("{op}{flag}.xorsign.abs.f32 $d, $a, $b;"), "r:rr", &two, |x, got| {
                let (a, b) = (v(x[0]), v(x[1]));
                let sign = (x[0] ^ x[1]) as u32 & 1 << 31;
                let size = extremum(a.abs(), b.abs());
                if size.is_nan() { f(got).is_nan() } else { got as u32 == size.to_bits() | sign }
            });
        }
    }
    // The sign is that of the first operand.
    check("copysign.f32 $d, $a, $b;", "r:rr", &two, |x| x[0] & 0x8000_0000 | x[1] & 0x7fff_ffff);
    type Property = fn(f32) -> bool;
    let properties: [(&str, Property); 6] = [
        ("finite", |x| x.is_finite()),
        ("infinite", |x| x.is_infinite()),
        ("number", |x| !x.is_nan()),
        ("notanumber", |x| x.is_nan()),
        // Zero counts as normal.
        ("normal", |x| x.is_normal() || x == 0.0),
        ("subnormal", |x| x.is_subnormal()),
    ];
    for (name, holds) in properties {
        check(&format!("testp.{name}.f32 $d, $a;"), "p:r", &one, |x| u64::from(holds(f(x[0]))));
    }
}

fn same(expected: f64, got: u64) -> bool {
    if expected.is_nan() { d(got).is_nan() } else { expected.to_bits() == got }
}

#[test]
fn f64_in_every_rounding() {
    let e = edges_f64();
    let two = product(&[&e, &e]);
    let one: Vec<_> = e.iter().map(|v| vec![*v]).collect();
    let few: Vec<u64> = e.iter().copied().step_by(2).collect();
    let three = product(&[&few, &few, &few]);
    for (name, round) in ROUNDS {
        // a · b + c from the nearest result and the sign of what it lost.
        let fused = |a: f64, b: f64, c: f64| {
            let near = a.mul_add(b, c);
            let rest = if near.is_finite() { sign_of_rest(a, b, c, near) } else { 0.0 };
            let exact_zero = near == 0.0 && rest == 0.0;
            zero_of_sum(a * b, c, direct(near, rest, round), exact_zero, round)
        };
        check_by(&format!("add.{name}.f64 $d, $a, $b;"), "d:dd", &two, |x, got| {
            same(fused(d(x[0]), 1.0, d(x[1])), got)
        });
        check_by(&format!("sub.{name}.f64 $d, $a, $b;"), "d:dd", &two, |x, got| {
            same(fused(d(x[0]), 1.0, -d(x[1])), got)
        });
        check_by(&format!("mul.{name}.f64 $d, $a, $b;"), "d:dd", &two, |x, got| {
            let (a, b) = (d(x[0]), d(x[1]));
            let near = a * b;
            same(direct(near, if near.is_finite() { a.mul_add(b, -near) } else { 0.0 }, round), got)
        });
        check_by(&format!("fma.{name}.f64 $d, $a, $b, $c;"), "d:ddd", &three, |x, got| {
            same(fused(d(x[0]), d(x[1]), d(x[2])), got)
        });
        let quotient = |a: f64, b: f64| {
            let q = a / b;
            let rest = if q.is_finite() && b.is_finite() && q != 0.0 { (-q).mul_add(b, a) } else { 0.0 };
            direct(q, if b > 0.0 { rest } else { -rest }, round)
        };
        check_by(&format!("div.{name}.f64 $d, $a, $b;"), "d:dd", &two, |x, got| {
            same(quotient(d(x[0]), d(x[1])), got)
        });
        check_by(&format!("rcp.{name}.f64 $d, $a;"), "d:d", &one, |x, got| same(quotient(1.0, d(x[0])), got));
        check_by(&format!("sqrt.{name}.f64 $d, $a;"), "d:d", &one, |x, got| {
            let q = d(x[0]).sqrt();
            let rest = if q.is_finite() && q > 0.0 { (-q).mul_add(q, d(x[0])) } else { 0.0 };
            same(direct(q, rest, round), got)
        });
    }
    check_by("add.f64 $d, $a, $b;", "d:dd", &two, |x, got| same(d(x[0]) + d(x[1]), got));
    check_by("neg.f64 $d, $a;", "d:d", &one, |x, got| same(-d(x[0]), got));
    check_by("abs.f64 $d, $a;", "d:d", &one, |x, got| same(d(x[0]).abs(), got));
    check("copysign.f64 $d, $a, $b;", "d:dd", &two, |x| x[0] & 1 << 63 | x[1] & !(1 << 63));
    for max in [false, true] {
        let op = if max { "max" } else { "min" };
        check_by(&format!("{op}.f64 $d, $a, $b;"), "d:dd", &two, |x, got| {
            let (a, b) = (d(x[0]), d(x[1]));
            let expected = match (a.is_nan(), b.is_nan()) {
                (true, _) => b,
                (_, true) => a,
                _ if (a < b || a == b && a.is_sign_negative()) != max => a,
                _ => b,
            };
            same(expected, got)
        });
    }
    for (name, holds) in [
        ("finite", f64::is_finite as fn(f64) -> bool),
        ("infinite", f64::is_infinite),
        ("notanumber", f64::is_nan),
        ("normal", |x| x.is_normal() || x == 0.0),
        ("subnormal", f64::is_subnormal),
    ] {
        check(&format!("testp.{name}.f64 $d, $a;"), "p:d", &one, |x| u64::from(holds(d(x[0]))));
    }
}

#[test]
fn immediates_of_floats() {
    let rows: Vec<_> = edges_f32().into_iter().map(|v| vec![v]).collect();
    let sum = |x: u64, c: f32| finish(f64::from(f(x) + c), false, false);
    check("add.f32 $d, $a, 0f3F800000;", "r:r", &rows, |x| sum(x[0], 1.0));
    check("add.f32 $d, $a, 0fBF000000;", "r:r", &rows, |x| sum(x[0], -0.5));
    check("add.f32 $d, $a, 1.0;", "r:r", &rows, |x| sum(x[0], 1.0));
    let rows: Vec<_> = edges_f64().into_iter().map(|v| vec![v]).collect();
    check_by("add.f64 $d, $a, 0d3FB999999999999A;", "d:d", &rows, |x, got| same(d(x[0]) + 0.1, got));
    check_by("add.f64 $d, $a, 2.5e1;", "d:d", &rows, |x, got| same(d(x[0]) + 25.0, got));
    // A 32-bit pattern given for an f64 is that number.
    check("mov.f64 $d, 0d4000000000000000;", "d:d", &rows, |_| 2f64.to_bits());
}

/// Whether `got` approximates `exact`: within a relative error, or within an absolute one.
fn near(got: f32, exact: f64, relative: f64, absolute: f64) -> bool {
    if exact.is_nan() {
        return got.is_nan();
    }
    let rounded = exact as f32;
    if rounded.is_infinite() {
        return got == rounded || f64::from(got.abs()) >= f64::from(f32::MAX) * (1.0 - relative);
    }
    (f64::from(got) - exact).abs() <= (exact.abs() * relative).max(absolute)
}

#[test]
fn approximations_keep_their_bounds() {
    let mut values = edges_f32();
    values.extend((0..2000).map(|i| u64::from((i as f32 * 0.05 - 50.0).to_bits())));
    values.extend(random(2000, 5).iter().map(|v| v & 0xffff_ffff));
    let rows: Vec<_> = values.iter().map(|v| vec![*v]).collect();
    for (flag, ftz) in [("", false), (".ftz", true)] {
        let v = |x: u64| flush(f64::from(f(x)), ftz);
        // Results below the least normal number may be flushed by one form, or rounded on the coarse grid there.
        let least = if ftz { f64::from(f32::MIN_POSITIVE) } else { 2f64.powi(-148) };
        let all = |op: &str, exact: &dyn Fn(f64) -> f64, relative: f64, absolute: f64| {
            check_by(&format!("{op}.approx{flag}.f32 $d, $a;"), "r:r", &rows, |x, got| {
                near(f(got), exact(v(x[0])), relative, absolute.max(least))
            });
        };
        all("ex2", &f64::exp2, 2f64.powi(-22), 0.0);
        all("rcp", &|x| 1.0 / x, 2f64.powi(-23), 0.0);
        all("rsqrt", &|x| 1.0 / x.sqrt(), 2f64.powf(-22.9), 0.0);
        all("sqrt", &f64::sqrt, 2f64.powi(-23), 0.0);
        check_by(&format!("lg2.approx{flag}.f32 $d, $a;"), "r:r", &rows, |x, got| {
            let x = v(x[0]);
            let between = x > 0.5 && x < 2.0;
            near(
                f(got),
                x.log2(),
                if between { 0.0 } else { 2f64.powi(-22) },
                if between { 2f64.powi(-22) } else { 0.0 },
            )
        });
        for (op, exact) in [("sin", f64::sin as fn(f64) -> f64), ("cos", f64::cos)] {
            check_by(&format!("{op}.approx{flag}.f32 $d, $a;"), "r:r", &rows, |x, got| {
                let x = v(x[0]);
                if !x.is_finite() {
                    return f(got).is_nan();
                }
                // The bound holds within a period around zero; outside, the result is still a sine.
                if x.abs() > std::f64::consts::PI {
                    f(got).abs() <= 1.0
                } else {
                    near(f(got), exact(x), 0.0, 2f64.powf(-20.5))
                }
            });
        }
    }
    check_by("tanh.approx.f32 $d, $a;", "r:r", &rows, |x, got| {
        near(f(got), f64::from(f(x[0])).tanh(), 2f64.powi(-11), 2f64.powi(-148))
    });
    let e = edges_f32();
    let two = product(&[&e, &e]);
    for op in ["div.approx", "div.full"] {
        for (flag, ftz) in [("", false), (".ftz", true)] {
            check_by(&format!("{op}{flag}.f32 $d, $a, $b;"), "r:rr", &two, |x, got| {
                let (a, b) = (flush(f64::from(f(x[0])), ftz), flush(f64::from(f(x[1])), ftz));
                let inside = b.abs() >= 2f64.powi(-126) && b.abs() <= 2f64.powi(126);
                let exact = a / b;
                // Two units in the last place where the divisor is neither tiny nor huge.
                !inside
                    || f64::from(f(got)) == flush(exact, ftz)
                    || near(f(got), exact, 2f64.powi(-22), f64::from(f32::MIN_POSITIVE))
            });
        }
    }
    let rows: Vec<_> = edges_f64().into_iter().map(|v| vec![v]).collect();
    // The approximations of f64 see 20 bits of fraction.
    check_by("rcp.approx.ftz.f64 $d, $a;", "d:d", &rows, |x, got| {
        let exact = 1.0 / d(x[0]);
        if exact.is_nan() {
            d(got).is_nan()
        } else {
            d(got) == exact || (d(got) / exact - 1.0).abs() < 2f64.powi(-18)
        }
    });
    check_by("rsqrt.approx.f64 $d, $a;", "d:d", &rows, |x, got| {
        let exact = 1.0 / d(x[0]).sqrt();
        if exact.is_nan() {
            d(got).is_nan()
        } else {
            d(got) == exact || (d(got) / exact - 1.0).abs() < 2f64.powi(-18)
        }
    });
}
