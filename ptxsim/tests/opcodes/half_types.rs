//! f16, bf16 and their pairs: exact in f64, rounded once.

use crate::{
    compare::{bf16, edges_bf16, edges_f16, f16},
    harness::*,
    rounding::*,
};

struct Type {
    name: &'static str,
    format: Format,
    read: fn(u64) -> f64,
    nan: u64,
    edges: Vec<u64>,
}

fn types() -> [Type; 2] {
    [
        Type { name: "f16", format: F16, read: f16, nan: 0x7fff, edges: edges_f16() },
        Type { name: "bf16", format: BF16, read: bf16, nan: 0x7fff, edges: edges_bf16() },
    ]
}

impl Type {
    fn bits(&self, x: f64) -> u64 {
        match self.name {
            _ if x.is_nan() => self.nan,
            "f16" => u64::from(half::f16::from_f64(x).to_bits()),
            _ => u64::from((x as f32).to_bits() >> 16),
        }
    }

    fn round(&self, x: f64) -> u64 {
        self.bits(round_to(x, self.format, Round::Nearest))
    }

    fn flushed(&self, x: u64, ftz: bool) -> f64 {
        let v = (self.read)(x);
        if ftz && v.abs() < 2f64.powi(self.format.least) { 0f64.copysign(v) } else { v }
    }

    /// Checks an opcode on scalars and on pairs.
    fn check(&self, op: &str, operands: usize, rows: &[Vec<u64>], reference: &dyn Fn(&[u64]) -> u64) {
        let names = &[", $a", ", $b", ", $c"][..operands].concat();
        let (h, r) = ("h".repeat(operands), "r".repeat(operands));
        check(&format!("{op}.{} $d{names};", self.name), &format!("h:{h}"), rows, reference);
        // A pair: this row below and another row above.
        let pairs: Vec<Vec<u64>> = (0..rows.len())
            .map(|i| {
                rows[i]
                    .iter()
                    .zip(&rows[(i * 31 + 7) % rows.len()])
                    .map(|(low, high)| low | high << 16)
                    .collect()
            })
            .collect();
        check(&format!("{op}.{}x2 $d{names};", self.name), &format!("r:{r}"), &pairs, |x| {
            let low: Vec<u64> = x.iter().map(|v| v & 0xffff).collect();
            let high: Vec<u64> = x.iter().map(|v| v >> 16).collect();
            reference(&low) | reference(&high) << 16
        });
    }
}

#[test]
fn arithmetic() {
    for t in types() {
        let e = &t.edges;
        let two = product(&[e, e]);
        let few: Vec<u64> = e.iter().copied().step_by(2).collect();
        let three = product(&[&few, &few, &few]);
        let half = t.name == "f16";
        let flags: &[(&str, bool, bool)] = if half {
            &[
                ("", false, false),
                (".rn", false, false),
                (".ftz", true, false),
                (".sat", false, true),
                (".ftz.sat", true, true),
            ]
        } else {
            &[("", false, false), (".rn", false, false)]
        };
        for (flag, ftz, sat) in flags {
            let finish = |x: f64| {
                let v = round_to(x, t.format, Round::Nearest);
                let v = if *ftz && v.abs() < 2f64.powi(t.format.least) { 0f64.copysign(v) } else { v };
                if *sat { t.bits(if v.is_nan() || v <= 0.0 { 0.0 } else { v.min(1.0) }) } else { t.bits(v) }
            };
            let v = |x: u64| t.flushed(x, *ftz);
            t.check(&format!("add{flag}"), 2, &two, &|x| finish(add_odd(v(x[0]), v(x[1]))));
            t.check(&format!("sub{flag}"), 2, &two, &|x| finish(add_odd(v(x[0]), -v(x[1]))));
            t.check(&format!("mul{flag}"), 2, &two, &|x| finish(v(x[0]) * v(x[1])));
            if !flag.is_empty() {
                let rn = if flag.starts_with(".rn") { "" } else { ".rn" };
                t.check(&format!("fma{rn}{flag}"), 3, &three, &|x| {
                    finish(add_odd(v(x[0]) * v(x[1]), v(x[2])))
                });
            }
        }
        t.check("fma.rn.relu", 3, &three, &|x| {
            let exact = add_odd((t.read)(x[0]) * (t.read)(x[1]), (t.read)(x[2]));
            if exact.is_nan() {
                t.nan
            } else if exact <= 0.0 {
                0
            } else {
                t.round(exact)
            }
        });
    }
}

#[test]
fn signs_and_extrema() {
    for t in types() {
        let e = &t.edges;
        let two = product(&[e, e]);
        let number: Vec<_> = e.iter().filter(|v| !(t.read)(**v).is_nan()).map(|v| vec![*v]).collect();
        t.check("neg", 1, &number, &|x| x[0] ^ 0x8000);
        t.check("abs", 1, &number, &|x| x[0] & 0x7fff);
        for max in [false, true] {
            let op = if max { "max" } else { "min" };
            let extremum = |a: u64, b: u64| {
                let (x, y) = ((t.read)(a), (t.read)(b));
                match (x.is_nan(), y.is_nan()) {
                    (true, true) => t.nan,
                    (true, _) => b,
                    (_, true) => a,
                    _ if (x < y || x == y && x.is_sign_negative()) != max => a,
                    _ => b,
                }
            };
            let any_nan = |x: &[u64]| (t.read)(x[0]).is_nan() || (t.read)(x[1]).is_nan();
            t.check(op, 2, &two, &|x| extremum(x[0], x[1]));
            t.check(&format!("{op}.NaN"), 2, &two, &|x| {
                if any_nan(x) { t.nan } else { extremum(x[0], x[1]) }
            });
            let numbers: Vec<_> = two.iter().filter(|x| !any_nan(x)).cloned().collect();
            t.check(&format!("{op}.xorsign.abs"), 2, &numbers, &|x| {
                extremum(x[0] & 0x7fff, x[1] & 0x7fff) | (x[0] ^ x[1]) & 0x8000
            });
            if t.name == "f16" {
                t.check(&format!("{op}.ftz"), 2, &two, &|x| {
                    let flush = |v: u64| if v & 0x7c00 == 0 { v & 0x8000 } else { v };
                    extremum(flush(x[0]), flush(x[1]))
                });
            }
        }
    }
}

#[test]
fn approximations_keep_their_bounds() {
    for t in types() {
        let half = t.name == "f16";
        let rows: Vec<Vec<u64>> = (0..0x1_0000).step_by(7).map(|v| vec![v]).collect();
        type Op = (&'static str, fn(f64) -> f64, f64, f64);
        let ops: [Op; 2] = if half {
            [
                ("ex2.approx", f64::exp2, 2f64.powf(-9.9), 2f64.powi(-24)),
                ("tanh.approx", f64::tanh, 0.0, 2f64.powf(-10.987)),
            ]
        } else {
            [
                ("ex2.approx.ftz", f64::exp2, 2f64.powi(-7), 2f64.powi(-126)),
                ("tanh.approx", f64::tanh, 0.0, 2f64.powi(-8)),
            ]
        };
        for (op, exact, relative, absolute) in ops {
            check_by(&format!("{op}.{} $d, $a;", t.name), "h:h", &rows, |x, got| {
                let (x, got) = ((t.read)(x[0]), (t.read)(got));
                let exact = exact(x);
                if exact.is_nan() {
                    return got.is_nan();
                }
                let rounded = round_to(exact, t.format, Round::Nearest);
                got == rounded || (got - exact).abs() <= (exact * relative).max(absolute)
            });
        }
        let pairs: Vec<Vec<u64>> = (0..0x8000).step_by(13).map(|v| vec![v << 16 | 0x3c00]).collect();
        check_by(&format!("tanh.approx.{}x2 $d, $a;", t.name), "r:r", &pairs, |x, got| {
            let near =
                |x: f64, got: f64| x.is_nan() && got.is_nan() || (x.tanh() - got).abs() <= 2f64.powi(-8);
            near((t.read)(x[0] & 0xffff), (t.read)(got & 0xffff))
                && near((t.read)(x[0] >> 16), (t.read)(got >> 16))
        });
    }
}
