//! setp, set, selp and slct with every relation, combination and NaN.

use crate::{
    float::{edges_f32, edges_f64},
    harness::*,
};

type Holds = fn(std::cmp::Ordering) -> bool;

/// The relations of numbers, with their names for unsigned integers where those differ.
const RELATIONS: [(&str, Holds); 6] = [
    ("eq", |o| o.is_eq()),
    ("ne", |o| o.is_ne()),
    ("lt", |o| o.is_lt()),
    ("le", |o| o.is_le()),
    ("gt", |o| o.is_gt()),
    ("ge", |o| o.is_ge()),
];

#[test]
fn integers() {
    for bits in [16, 32, 64] {
        let e = edges(bits);
        let rows = product(&[&e, &e]);
        let l = letter(bits);
        let signature = format!("p:{l}{l}");
        for (name, holds) in RELATIONS {
            check(&format!("setp.{name}.s{bits} $d, $a, $b;"), &signature, &rows, |x| {
                u64::from(holds(signed(x[0], bits).cmp(&signed(x[1], bits))))
            });
            check(&format!("setp.{name}.u{bits} $d, $a, $b;"), &signature, &rows, |x| {
                u64::from(holds(x[0].cmp(&x[1])))
            });
            check(&format!("set.{name}.u32.s{bits} $d, $a, $b;"), &format!("r:{l}{l}"), &rows, |x| {
                if holds(signed(x[0], bits).cmp(&signed(x[1], bits))) { 0xffff_ffff } else { 0 }
            });
            check(&format!("set.{name}.f32.u{bits} $d, $a, $b;"), &format!("r:{l}{l}"), &rows, |x| {
                if holds(x[0].cmp(&x[1])) { 0x3f80_0000 } else { 0 }
            });
        }
        for (name, holds) in [("eq", RELATIONS[0].1), ("ne", RELATIONS[1].1)] {
            check(&format!("setp.{name}.b{bits} $d, $a, $b;"), &signature, &rows, |x| {
                u64::from(holds(x[0].cmp(&x[1])))
            });
        }
        for (name, holds) in
            [("lo", RELATIONS[2].1), ("ls", RELATIONS[3].1), ("hi", RELATIONS[4].1), ("hs", RELATIONS[5].1)]
        {
            check(&format!("setp.{name}.u{bits} $d, $a, $b;"), &signature, &rows, |x| {
                u64::from(holds(x[0].cmp(&x[1])))
            });
        }
    }
}

type Relation = Box<dyn Fn(f64, f64) -> bool>;

/// Ordered relations are false on NaN, those with `u` true; num and nan ask only that.
fn float_relations() -> Vec<(String, Relation)> {
    let mut out: Vec<(String, Relation)> = vec![];
    for (name, holds) in RELATIONS {
        out.push((name.into(), Box::new(move |a, b| a.partial_cmp(&b).is_some_and(holds))));
        out.push((format!("{name}u"), Box::new(move |a, b| a.partial_cmp(&b).is_none_or(holds))));
    }
    out.push(("num".into(), Box::new(|a, b| !a.is_nan() && !b.is_nan())));
    out.push(("nan".into(), Box::new(|a, b| a.is_nan() || b.is_nan())));
    out
}

pub fn f16(x: u64) -> f64 {
    half::f16::from_bits(x as u16).to_f64()
}

pub fn bf16(x: u64) -> f64 {
    half::bf16::from_bits(x as u16).to_f64()
}

pub fn edges_f16() -> Vec<u64> {
    let mut v = vec![
        0, 0x8000, 1, 0x8001, 0x3ff, 0x400, 0x8400, 0x3c00, 0xbc00, 0x3c01, 0x3555, 0x4200, 0x7bff, 0xfbff,
        0x7c00, 0xfc00, 0x7e00, 0xfe01, 0x7c01,
    ];
    v.extend(random(8, 16).iter().map(|v| v & 0xffff));
    v
}

pub fn edges_bf16() -> Vec<u64> {
    let mut v = vec![
        0, 0x8000, 1, 0x8001, 0x7f, 0x80, 0x8080, 0x3f80, 0xbf80, 0x3f81, 0x3eab, 0x4040, 0x7f7f, 0xff7f,
        0x7f80, 0xff80, 0x7fc0, 0xffc1, 0x7f81,
    ];
    v.extend(random(8, 17).iter().map(|v| v & 0xffff));
    v
}

#[test]
fn floats() {
    let f32s = |x: u64| f64::from(f32::from_bits(x as u32));
    let flushed = |x: u64| {
        let v = f64::from(f32::from_bits(x as u32));
        if v.abs() < f64::from(f32::MIN_POSITIVE) { 0.0 } else { v }
    };
    let flushed_half = |x: u64| if f16(x).abs() < 2f64.powi(-14) { 0.0 } else { f16(x) };
    type Read = fn(u64) -> f64;
    let table: [(&str, &str, Vec<u64>, Read); 6] = [
        ("f32", "rr", edges_f32(), f32s),
        ("ftz.f32", "rr", edges_f32(), flushed),
        ("f64", "dd", edges_f64(), f64::from_bits),
        ("f16", "hh", edges_f16(), f16),
        ("ftz.f16", "hh", edges_f16(), flushed_half),
        ("bf16", "hh", edges_bf16(), bf16),
    ];
    for (ty, operands, e, read) in table {
        let rows = product(&[&e, &e]);
        for (name, holds) in float_relations() {
            check(&format!("setp.{name}.{ty} $d, $a, $b;"), &format!("p:{operands}"), &rows, |x| {
                u64::from(holds(read(x[0]), read(x[1])))
            });
            let (flag, plain) = ty.split_once('.').map_or(("", ty), |(_, plain)| (".ftz", plain));
            check(
                &format!("set.{name}{flag}.u32.{plain} $d, $a, $b;"),
                &format!("r:{operands}"),
                &rows,
                |x| {
                    if holds(read(x[0]), read(x[1])) { 0xffff_ffff } else { 0 }
                },
            );
            if plain == "f32" {
                check(
                    &format!("set.{name}{flag}.f32.{plain} $d, $a, $b;"),
                    &format!("r:{operands}"),
                    &rows,
                    |x| {
                        if holds(read(x[0]), read(x[1])) { 0x3f80_0000 } else { 0 }
                    },
                );
            }
            if plain == "f16" || plain == "bf16" {
                let one = if plain == "f16" { 0x3c00 } else { 0x3f80 };
                check(
                    &format!("set.{name}{flag}.{plain}.{plain} $d, $a, $b;"),
                    &format!("h:{operands}"),
                    &rows,
                    |x| {
                        if holds(read(x[0]), read(x[1])) { one } else { 0 }
                    },
                );
                check(
                    &format!("set.{name}{flag}.u16.{plain} $d, $a, $b;"),
                    &format!("h:{operands}"),
                    &rows,
                    |x| {
                        if holds(read(x[0]), read(x[1])) { 0xffff } else { 0 }
                    },
                );
            }
        }
    }
}

#[test]
fn pairs_of_halves() {
    for (ty, e, read, one) in
        [("f16x2", edges_f16(), f16 as fn(u64) -> f64, 0x3c00u64), ("bf16x2", edges_bf16(), bf16, 0x3f80)]
    {
        let pairs: Vec<u64> = (0..e.len()).map(|i| e[i] << 16 | e[(i * 7 + 3) % e.len()]).collect();
        let rows = product(&[&pairs, &pairs]);
        for (name, holds) in float_relations() {
            let both = |x: &[u64]| {
                (holds(read(x[0] & 0xffff), read(x[1] & 0xffff)), holds(read(x[0] >> 16), read(x[1] >> 16)))
            };
            let text = format!(
                "{{ .reg .pred %x<2>; .reg .b32 %y<2>; setp.{name}.{ty} %x0|%x1, $a, $b; selp.u32 %y0, 1, 0, %x0; selp.u32 %y1, 2, 0, %x1; or.b32 $d, %y0, %y1; }}"
            );
            check(&text, "r:rr", &rows, |x| u64::from(both(x).0) | u64::from(both(x).1) << 1);
            check(&format!("set.{name}.{ty}.{ty} $d, $a, $b;"), "r:rr", &rows, |x| {
                (if both(x).0 { one } else { 0 }) | (if both(x).1 { one << 16 } else { 0 })
            });
            check(&format!("set.{name}.u32.{ty} $d, $a, $b;"), "r:rr", &rows, |x| {
                (if both(x).0 { 0xffff } else { 0 }) | (if both(x).1 { 0xffff_0000 } else { 0 })
            });
        }
    }
}

#[test]
fn combined_with_a_predicate() {
    let rows = product(&[&[0, 5, 9], &[0, 5, 9], &[0, 1]]);
    let truth = |name: &str, p: bool, q: bool| match name {
        "and" => p && q,
        "or" => p || q,
        _ => p != q,
    };
    for logic in ["and", "or", "xor"] {
        for negated in [false, true] {
            let c = |x: &[u64]| (x[2] != 0) != negated;
            let bang = if negated { "!" } else { "" };
            check(&format!("setp.lt.{logic}.s32 $d, $a, $b, {bang}$c;"), "p:rrp", &rows, |x| {
                u64::from(truth(logic, x[0] < x[1], c(x)))
            });
            // The second predicate is the opposite relation, combined in the same way.
            let text = format!("{{ .reg .pred %x; setp.lt.{logic}.s32 %x|$d, $a, $b, {bang}$c; }}");
            check(&text, "p:rrp", &rows, |x| u64::from(truth(logic, x[0] >= x[1], c(x))));
            check(&format!("setp.lt.{logic}.s32 _|$d, $a, $b, {bang}$c;"), "p:rrp", &rows, |x| {
                u64::from(truth(logic, x[0] >= x[1], c(x)))
            });
            check(&format!("set.eq.{logic}.u32.u32 $d, $a, $b, {bang}$c;"), "r:rrp", &rows, |x| {
                if truth(logic, x[0] == x[1], c(x)) { 0xffff_ffff } else { 0 }
            });
            let floats: Vec<_> =
                product(&[&[0, 0x3f80_0000, 0x7fc0_0000], &[0, 0x3f80_0000, 0x7fc0_0000], &[0, 1]]);
            check(&format!("setp.gtu.{logic}.f32 $d, $a, $b, {bang}$c;"), "p:rrp", &floats, |x| {
                let (a, b) = (f32::from_bits(x[0] as u32), f32::from_bits(x[1] as u32));
                u64::from(truth(logic, a > b || a.is_nan() || b.is_nan(), c(x)))
            });
        }
    }
}

#[test]
fn selections() {
    for bits in [16, 32, 64] {
        let e = edges(bits);
        let rows = product(&[&e, &e, &[0, 1]]);
        let l = letter(bits);
        let kinds: &[char] = if bits == 16 { &['b', 'u', 's'] } else { &['b', 'u', 's', 'f'] };
        for kind in kinds {
            check(&format!("selp.{kind}{bits} $d, $a, $b, $c;"), &format!("{l}:{l}{l}p"), &rows, |x| {
                if x[2] != 0 { x[0] } else { x[1] }
            });
            let by = product(&[&[1, 2], &[3, 4], &edges(32)]);
            check(&format!("slct.{kind}{bits}.s32 $d, $a, $b, $c;"), &format!("{l}:{l}{l}r"), &by, |x| {
                if signed(x[2], 32) >= 0 { x[0] } else { x[1] }
            });
            let by = product(&[&[1, 2], &[3, 4], &edges_f32()]);
            check(&format!("slct.{kind}{bits}.f32 $d, $a, $b, $c;"), &format!("{l}:{l}{l}r"), &by, |x| {
                if f32::from_bits(x[2] as u32) >= 0.0 { x[0] } else { x[1] }
            });
        }
        check(&format!("selp.b{bits} $d, 7, -1, $c;"), &format!("{l}:{l}{l}p"), &rows, |x| {
            if x[2] != 0 { 7 } else { wrap(-1, bits) }
        });
    }
    let by = product(&[&[1], &[3], &edges_f32()]);
    check("slct.ftz.u32.f32 $d, $a, $b, $c;", "r:rrr", &by, |x| {
        let c = f32::from_bits(x[2] as u32);
        if c >= 0.0 || c.is_subnormal() { x[0] } else { x[1] }
    });
}
