//! cvt between every pair of types, and mov that packs and unpacks.

use crate::{
    compare::{bf16, edges_bf16, edges_f16, f16},
    float::{edges_f32, edges_f64},
    harness::*,
    rounding::*,
};

const INTEGERS: [(&str, u32, bool); 8] = [
    ("u8", 8, false),
    ("s8", 8, true),
    ("u16", 16, false),
    ("s16", 16, true),
    ("u32", 32, false),
    ("s32", 32, true),
    ("u64", 64, false),
    ("s64", 64, true),
];

fn value(raw: u64, bits: u32, is_signed: bool) -> i128 {
    if is_signed { signed(raw, bits) } else { unsigned(raw, bits) }
}

fn limits(bits: u32, is_signed: bool) -> (i128, i128) {
    if is_signed { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

/// A result narrower than its register is extended by its sign.
fn extend(v: i128, bits: u32, is_signed: bool) -> u64 {
    let register = bits.max(16);
    let low = wrap(v, bits);
    if is_signed { wrap(signed(low, bits), register) } else { low }
}

struct Float {
    name: &'static str,
    bits: u32,
    read: fn(u64) -> f64,
    edges: Vec<u64>,
    format: Option<Format>,
}

fn floats() -> [Float; 4] {
    [
        Float { name: "f16", bits: 16, read: f16, edges: edges_f16(), format: Some(F16) },
        Float { name: "bf16", bits: 16, read: bf16, edges: edges_bf16(), format: Some(BF16) },
        Float {
            name: "f32",
            bits: 32,
            read: |x| f64::from(f32::from_bits(x as u32)),
            edges: edges_f32(),
            format: Some(F32),
        },
        Float { name: "f64", bits: 64, read: f64::from_bits, edges: edges_f64(), format: None },
    ]
}

impl Float {
    /// Whether these bits are the number (any NaN for a NaN).
    fn is(&self, got: u64, expected: f64) -> bool {
        let v = (self.read)(got);
        if expected.is_nan() {
            v.is_nan()
        } else {
            v == expected && v.is_sign_negative() == expected.is_sign_negative()
        }
    }

    fn round(&self, x: f64, round: Round) -> f64 {
        self.format.map_or(x, |format| round_to(x, format, round))
    }
}

#[test]
fn integers_to_integers() {
    for (from, from_bits, from_signed) in INTEGERS {
        let rows: Vec<_> = edges(from_bits).into_iter().map(|v| vec![v]).collect();
        for (to, to_bits, to_signed) in INTEGERS {
            let signature = format!("{}:{}", letter(to_bits), letter(from_bits));
            check(&format!("cvt.{to}.{from} $d, $a;"), &signature, &rows, |x| {
                extend(value(x[0], from_bits, from_signed), to_bits, to_signed)
            });
            let (low, high) = limits(to_bits, to_signed);
            check(&format!("cvt.sat.{to}.{from} $d, $a;"), &signature, &rows, |x| {
                extend(value(x[0], from_bits, from_signed).clamp(low, high), to_bits, to_signed)
            });
        }
    }
    // Sources may be wider than the type: only the low bits count.
    let rows: Vec<_> = edges(64).into_iter().map(|v| vec![v]).collect();
    check("cvt.s32.s8 $d, $a;", "r:d", &rows, |x| wrap(signed(x[0], 8), 32));
    check("cvt.u32.u8 $d, $a;", "r:d", &rows, |x| x[0] & 0xff);
    check("cvt.u64.u16 $d, $a;", "d:r", &rows, |x| x[0] & 0xffff);
}

#[test]
fn integers_to_floats() {
    for (from, bits, s) in INTEGERS {
        let rows: Vec<_> = edges(bits).into_iter().map(|v| vec![v]).collect();
        for to in floats() {
            for (name, round) in ROUNDS {
                let signature = format!("{}:{}", letter(to.bits), letter(bits));
                check_by(&format!("cvt.{name}.{}.{from} $d, $a;", to.name), &signature, &rows, |x, got| {
                    let v = value(x[0], bits, s);
                    // An integer in two f64 halves, their sum rounded to odd or, for f64 itself, to its side.
                    let (high, low) = ((v >> 32) as f64 * 2f64.powi(32), (v & 0xffff_ffff) as f64);
                    let expected = match to.format {
                        Some(_) => to.round(add_odd(high, low), round),
                        None => direct(high + low, sign_of_rest(high, 1.0, low, high + low), round),
                    };
                    to.is(got, expected)
                });
            }
        }
    }
}

#[test]
fn floats_to_integers() {
    for from in floats() {
        let mut e = from.edges.clone();
        // Halves, and the neighbourhood of every limit.
        if from.bits == 32 {
            e.extend(
                [
                    0.5f32,
                    1.5,
                    2.5,
                    -0.5,
                    -1.5,
                    -2.5,
                    127.5,
                    -128.5,
                    255.5,
                    32767.5,
                    65535.5,
                    2147483500.0,
                    2147483648.0,
                    -2147483648.0,
                    4294967040.0,
                    4294967296.0,
                    9.2e18,
                    -9.3e18,
                    1.9e19,
                ]
                .iter()
                .map(|x| u64::from(x.to_bits())),
            );
        }
        if from.bits == 64 {
            e.extend(
                [
                    0.5,
                    1.5,
                    -2.5,
                    2147483647.5,
                    -2147483648.5,
                    4294967295.5,
                    9.223372036854775e18,
                    -9.3e18,
                    1.9e19,
                ]
                .iter()
                .map(|x: &f64| x.to_bits()),
            );
        }
        let rows: Vec<_> = e.into_iter().map(|v| vec![v]).collect();
        for (to, bits, s) in INTEGERS {
            for (name, round) in ROUNDS {
                let signature = format!("{}:{}", letter(bits), letter(from.bits));
                let (low, high) = limits(bits, s);
                let numbers: Vec<_> = rows.iter().filter(|x| !(from.read)(x[0]).is_nan()).cloned().collect();
                check(&format!("cvt.{name}i.{to}.{} $d, $a;", from.name), &signature, &numbers, |x| {
                    // Conversion of f64 to i128 saturates, and then the type does.
                    extend((integral((from.read)(x[0]), round) as i128).clamp(low, high), bits, s)
                });
            }
        }
    }
    let flushed = [vec![1], vec![0x8000_0001], vec![0x3f00_0000]];
    check("cvt.rpi.ftz.s32.f32 $d, $a;", "r:r", &flushed, |x| u64::from(x[0] == 0x3f00_0000));
    // NaN gives zero.
    check("cvt.rzi.s32.f32 $d, $a;", "r:r", &[vec![0x7fc0_0000]], |_| 0);
    check("cvt.rzi.u32.f32 $d, $a;", "r:r", &[vec![0x7fc0_0000]], |_| 0);
}

#[test]
fn floats_to_floats() {
    for from in floats() {
        let rows: Vec<_> = from.edges.iter().map(|v| vec![*v]).collect();
        for to in floats() {
            let signature = format!("{}:{}", letter(to.bits), letter(from.bits));
            let narrows = to.bits < from.bits || to.bits == 16 && from.name != to.name;
            if narrows {
                for (name, round) in ROUNDS {
                    if to.bits == 16 && from.bits == 16 && name != "rn" {
                        continue;
                    }
                    check_by(
                        &format!("cvt.{name}.{}.{} $d, $a;", to.name, from.name),
                        &signature,
                        &rows,
                        |x, got| to.is(got, to.round((from.read)(x[0]), round)),
                    );
                }
            } else if from.name != to.name {
                check_by(&format!("cvt.{}.{} $d, $a;", to.name, from.name), &signature, &rows, |x, got| {
                    to.is(got, (from.read)(x[0]))
                });
            }
            if from.name == to.name {
                for (name, round) in ROUNDS {
                    check_by(
                        &format!("cvt.{name}i.{}.{} $d, $a;", to.name, from.name),
                        &signature,
                        &rows,
                        |x, got| {
                            let v = (from.read)(x[0]);
                            to.is(got, integral(v, round).copysign(v))
                        },
                    );
                }
            }
        }
    }
    let rows: Vec<_> = edges_f32().iter().map(|v| vec![*v]).collect();
    let v = |x: u64| f64::from(f32::from_bits(x as u32));
    let f32s = &floats()[2];
    let unit = |x: f64| if x.is_nan() || x <= 0.0 { 0.0 } else { x.min(1.0) };
    check_by("cvt.sat.f32.f32 $d, $a;", "r:r", &rows, |x, got| f32s.is(got, unit(v(x[0]))));
    check_by("cvt.ftz.f64.f32 $d, $a;", "d:r", &rows, |x, got| {
        let flushed =
            if v(x[0]).abs() < f64::from(f32::MIN_POSITIVE) { 0f64.copysign(v(x[0])) } else { v(x[0]) };
        floats()[3].is(got, flushed)
    });
    check_by("cvt.rn.sat.f16.f32 $d, $a;", "h:r", &rows, |x, got| {
        floats()[0].is(got, unit(round_to(v(x[0]), F16, Round::Nearest)))
    });
    for (ty, to) in [("f16", &floats()[0]), ("bf16", &floats()[1])] {
        let relu = |x: f64| {
            if x.is_nan() {
                x
            } else if x <= 0.0 {
                0.0
            } else {
                x
            }
        };
        for (name, round) in [ROUNDS[0], ROUNDS[1]] {
            check_by(&format!("cvt.{name}.relu.{ty}.f32 $d, $a;"), "h:r", &rows, |x, got| {
                to.is(got, relu(to.round(v(x[0]), round)))
            });
            let two = product(&[&edges_f32(), &edges_f32()]);
            let pair = |relu: fn(f64) -> f64| {
                move |x: &[u64], got: u64| {
                    to.is(got >> 16, relu(to.round(v(x[0]), round)))
                        && to.is(got & 0xffff, relu(to.round(v(x[1]), round)))
                }
            };
            // The first source becomes the upper half.
            check_by(&format!("cvt.{name}.{ty}x2.f32 $d, $a, $b;"), "r:rr", &two, pair(|x| x));
            check_by(
                &format!("cvt.{name}.relu.{ty}x2.f32 $d, $a, $b;"),
                "r:rr",
                &two,
                pair(|x| {
                    if x.is_nan() {
                        x
                    } else if x <= 0.0 {
                        0.0
                    } else {
                        x
                    }
                }),
            );
        }
    }
}

#[test]
fn tf32() {
    let mut values = edges_f32();
    values.extend((0..200).map(|i| 0x3f80_0000 + i * 0x7ff));
    let rows: Vec<_> =
        values.iter().filter(|v| !f32::from_bits(**v as u32).is_nan()).map(|v| vec![*v]).collect();
    let v = |x: u64| f64::from(f32::from_bits(x as u32));
    let bits = |x: f64| u64::from((x as f32).to_bits());
    // Nearest with ties away from zero: half a unit is added to the magnitude, the rest cut off.
    check("cvt.rna.tf32.f32 $d, $a;", "r:r", &rows, |x| {
        if v(x[0]).is_infinite() {
            x[0]
        } else {
            (x[0] & 0x8000_0000) | ((x[0] & 0x7fff_ffff) + 0x1000) & 0x7fff_e000
        }
    });
    check("cvt.rn.tf32.f32 $d, $a;", "r:r", &rows, |x| bits(round_to(v(x[0]), TF32, Round::Nearest)));
    check("cvt.rz.tf32.f32 $d, $a;", "r:r", &rows, |x| bits(round_to(v(x[0]), TF32, Round::Zero)));
    check("cvt.rn.relu.tf32.f32 $d, $a;", "r:r", &rows, |x| {
        bits(round_to(v(x[0]).max(0.0), TF32, Round::Nearest)) & 0x7fff_ffff
    });
}

fn fp8(ty: &str, bits: u64) -> f64 {
    let (e, m, sign) = if ty == "e4m3" {
        (bits >> 3 & 15, bits & 7, bits >> 7)
    } else {
        (bits >> 2 & 31, bits & 3, bits >> 7)
    };
    let (bias, places) = if ty == "e4m3" { (7, 8.0) } else { (15, 4.0) };
    let size = match (ty, e, m) {
        ("e4m3", 15, 7) => f64::NAN,
        ("e5m2", 31, 0) => f64::INFINITY,
        ("e5m2", 31, _) => f64::NAN,
        (_, 0, m) => m as f64 / places * 2f64.powi(1 - bias),
        (_, e, m) => (1.0 + m as f64 / places) * 2f64.powi(e as i32 - bias),
    };
    if sign == 1 { -size } else { size }
}

#[test]
fn eight_bit_floats() {
    let f16s = &floats()[0];
    for (ty, format) in [("e4m3", E4M3), ("e5m2", E5M2)] {
        let every: Vec<_> = (0..0x1_0000u64).step_by(3).map(|v| vec![v]).collect();
        check_by(&format!("cvt.rn.f16x2.{ty}x2 $d, $a;"), "r:h", &every, |x, got| {
            f16s.is(got & 0xffff, fp8(ty, x[0] & 0xff)) && f16s.is(got >> 16, fp8(ty, x[0] >> 8))
        });
        let is = |got: u64, exact: f64, relu: bool| {
            if exact.is_nan() {
                return fp8(ty, got).is_nan();
            }
            let exact = if relu { exact.max(0.0) } else { exact };
            let rounded = round_to(exact, format, Round::Nearest).clamp(-format.largest, format.largest);
            fp8(ty, got) == rounded
        };
        let v = |x: u64| f64::from(f32::from_bits(x as u32));
        let mut e: Vec<u64> = edges_f32();
        e.extend(
            [
                448f32,
                463.9,
                464.0,
                480.0,
                57344.0,
                61440.0,
                2f32.powi(-10),
                1.5 * 2f32.powi(-10),
                2f32.powi(-17),
            ]
            .map(|x| u64::from(x.to_bits())),
        );
        let two = product(&[&e, &e]);
        for (flag, relu) in [("", false), (".relu", true)] {
            check_by(&format!("cvt.rn.satfinite{flag}.{ty}x2.f32 $d, $a, $b;"), "h:rr", &two, |x, got| {
                is(got >> 8, v(x[0]), relu) && is(got & 0xff, v(x[1]), relu)
            });
            let pairs: Vec<_> =
                (0..0x1_0000u64).step_by(5).map(|v| vec![v << 16 | (v * 31) & 0xffff]).collect();
            check_by(&format!("cvt.rn.satfinite{flag}.{ty}x2.f16x2 $d, $a;"), "h:r", &pairs, |x, got| {
                is(got >> 8, f16(x[0] >> 16), relu) && is(got & 0xff, f16(x[0] & 0xffff), relu)
            });
        }
    }
}

#[test]
fn packed_integers() {
    let e = edges(32);
    for (to, bits, s) in [("s8", 8, true), ("u8", 8, false)] {
        let (low, high) = limits(bits, s);
        let cut = |x: u64| wrap(signed(x, 32).clamp(low, high), bits);
        check(
            &format!("cvt.pack.sat.{to}.s32.b32 $d, $a, $b, $c;"),
            "r:rrr",
            &product(&[&e, &e, &[0, 0x1234_5678]]),
            |x| (x[2] & 0xffff) << 16 | cut(x[0]) << 8 | cut(x[1]),
        );
    }
    for (to, s) in [("s16", true), ("u16", false)] {
        let (low, high) = limits(16, s);
        let cut = |x: u64| wrap(signed(x, 32).clamp(low, high), 16);
        check(&format!("cvt.pack.sat.{to}.s32 $d, $a, $b;"), "r:rr", &product(&[&e, &e]), |x| {
            cut(x[0]) << 16 | cut(x[1])
        });
    }
}

#[test]
fn mov_packs_and_unpacks() {
    let e = edges(64);
    let one: Vec<_> = e.iter().map(|v| vec![*v]).collect();
    let words = product(&[&edges(32), &edges(32)]);
    let halves = product(&[&edges(16), &edges(16)]);
    check("mov.b64 $d, {$a, $b};", "d:rr", &words, |x| x[1] << 32 | x[0]);
    check("mov.b32 $d, {$a, $b};", "r:hh", &halves, |x| x[1] << 16 | x[0]);
    let few: Vec<u64> = edges(16).into_iter().step_by(4).collect();
    check("mov.b64 $d, {$a, $b, $c, $e};", "d:hhhh", &product(&[&few, &few, &few, &few]), |x| {
        x[3] << 48 | x[2] << 32 | x[1] << 16 | x[0]
    });
    check("{ .reg .b32 %x, %y; mov.b64 {%x, %y}, $a; xor.b32 $d, %x, %y; }", "r:d", &one, |x| {
        (x[0] ^ x[0] >> 32) & 0xffff_ffff
    });
    check("mov.b64 {_, $d}, $a;", "r:d", &one, |x| x[0] >> 32);
    check("mov.b64 {$d, _}, $a;", "r:d", &one, |x| x[0] & 0xffff_ffff);
    check("mov.b32 {_, $d}, $a;", "h:r", &one, |x| x[0] >> 16 & 0xffff);
    check(
        "{ .reg .b16 %x<4>; mov.b64 {%x0, %x1, %x2, %x3}, $a; mov.b64 $d, {%x3, %x2, %x1, %x0}; }",
        "d:d",
        &one,
        |x| x[0] >> 48 | x[0] >> 16 & 0xffff_0000 | (x[0] & 0xffff_0000) << 16 | x[0] << 48,
    );
    check(
        "{ .reg .b8 %x<4>; mov.b32 {%x0, %x1, %x2, %x3}, $a; mov.b32 $d, {%x3, %x2, %x1, %x0}; }",
        "r:r",
        &one,
        |x| u64::from((x[0] as u32).swap_bytes()),
    );
    check("mov.b64 $d, {$a, 7};", "d:r", &words.iter().map(|w| w[..1].to_vec()).collect::<Vec<_>>(), |x| {
        7 << 32 | x[0]
    });
}
