//! Integer arithmetic, logic, shifts, bit fields, carry chains and dot products, in i128.

use crate::harness::*;

const TYPES: [(&str, u32, bool); 6] = [
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

#[test]
fn two_operand_arithmetic() {
    for (ty, bits, s) in TYPES {
        let e = edges(bits);
        let rows = product(&[&e, &e]);
        let l = letter(bits);
        let signature = format!("{l}:{l}{l}");
        let v = |x: u64| value(x, bits, s);
        type Reference = fn(i128, i128, u32) -> i128;
        let table: [(&str, Reference); 6] = [
            ("add", |a, b, _| a + b),
            ("sub", |a, b, _| a - b),
            ("mul.lo", |a, b, _| a.wrapping_mul(b)),
            ("mul.hi", |a, b, bits| {
                // The product of two unsigned 64-bit numbers does not fit i128.
                if a >= 0 && b >= 0 { ((a as u128 * b as u128) >> bits) as i128 } else { (a * b) >> bits }
            }),
            ("min", |a, b, _| a.min(b)),
            ("max", |a, b, _| a.max(b)),
        ];
        for (op, f) in table {
            check(&format!("{op}.{ty} $d, $a, $b;"), &signature, &rows, |x| {
                wrap(f(v(x[0]), v(x[1]), bits), bits)
            });
        }
        let nonzero: Vec<_> = rows.iter().filter(|r| r[1] != 0).cloned().collect();
        check(&format!("div.{ty} $d, $a, $b;"), &signature, &nonzero, |x| wrap(v(x[0]) / v(x[1]), bits));
        check(&format!("rem.{ty} $d, $a, $b;"), &signature, &nonzero, |x| wrap(v(x[0]) % v(x[1]), bits));
        // Divided by zero: a machine-specific value, but one there is.
        apply(&format!("div.{ty} $d, $a, $b;"), &signature, &[vec![5, 0]]);
        if s {
            let one: Vec<_> = e.iter().map(|v| vec![*v]).collect();
            check(&format!("abs.{ty} $d, $a;"), &format!("{l}:{l}"), &one, |x| wrap(v(x[0]).abs(), bits));
            check(&format!("neg.{ty} $d, $a;"), &format!("{l}:{l}"), &one, |x| wrap(-v(x[0]), bits));
        }
    }
    let e = edges(32);
    let rows = product(&[&e, &e]);
    let clamp = |x: i128| wrap(x.clamp(i128::from(i32::MIN), i128::from(i32::MAX)), 32);
    check("add.sat.s32 $d, $a, $b;", "r:rr", &rows, |x| clamp(signed(x[0], 32) + signed(x[1], 32)));
    check("sub.sat.s32 $d, $a, $b;", "r:rr", &rows, |x| clamp(signed(x[0], 32) - signed(x[1], 32)));
    check("min.relu.s32 $d, $a, $b;", "r:rr", &rows, |x| {
        wrap(signed(x[0], 32).min(signed(x[1], 32)).max(0), 32)
    });
    check("max.relu.s32 $d, $a, $b;", "r:rr", &rows, |x| {
        wrap(signed(x[0], 32).max(signed(x[1], 32)).max(0), 32)
    });
}

#[test]
fn three_operand_arithmetic() {
    for (ty, bits, s) in TYPES {
        let e: Vec<u64> = edges(bits).into_iter().step_by(2).collect();
        let rows = product(&[&e, &e, &e]);
        let l = letter(bits);
        let v = |x: u64| value(x, bits, s);
        let signature = format!("{l}:{l}{l}{l}");
        check(&format!("mad.lo.{ty} $d, $a, $b, $c;"), &signature, &rows, |x| {
            x[0].wrapping_mul(x[1]).wrapping_add(x[2]) & wrap(-1, bits)
        });
        check(&format!("mad.hi.{ty} $d, $a, $b, $c;"), &signature, &rows, |x| {
            let (a, b) = (v(x[0]), v(x[1]));
            let high =
                if a >= 0 && b >= 0 { ((a as u128 * b as u128) >> bits) as i128 } else { (a * b) >> bits };
            wrap(high + v(x[2]), bits)
        });
        check(&format!("sad.{ty} $d, $a, $b, $c;"), &signature, &rows, |x| {
            wrap((v(x[0]) - v(x[1])).abs() + v(x[2]), bits)
        });
        if bits < 64 {
            let wide = letter(2 * bits);
            check(
                &format!("mul.wide.{ty} $d, $a, $b;"),
                &format!("{wide}:{l}{l}"),
                &product(&[&e, &e]),
                |x| wrap(v(x[0]) * v(x[1]), 2 * bits),
            );
            let c = edges(2 * bits);
            check(
                &format!("mad.wide.{ty} $d, $a, $b, $c;"),
                &format!("{wide}:{l}{l}{wide}"),
                &product(&[&e, &e, &c]),
                |x| wrap(v(x[0]) * v(x[1]) + value(x[2], 2 * bits, s), 2 * bits),
            );
        }
        if bits == 32 {
            let low = |x: u64| value(x & 0xff_ffff, 24, s);
            for (part, shift) in [("lo", 0), ("hi", 16)] {
                check(&format!("mul24.{part}.{ty} $d, $a, $b;"), "r:rr", &product(&[&e, &e]), |x| {
                    wrap((low(x[0]) * low(x[1])) >> shift, 32)
                });
                check(&format!("mad24.{part}.{ty} $d, $a, $b, $c;"), "r:rrr", &rows, |x| {
                    wrap(((low(x[0]) * low(x[1])) >> shift) + v(x[2]), 32)
                });
            }
        }
    }
    let e: Vec<u64> = edges(32);
    let rows = product(&[&e, &e, &e]);
    check("mad.hi.sat.s32 $d, $a, $b, $c;", "r:rrr", &rows, |x| {
        let sum = ((signed(x[0], 32) * signed(x[1], 32)) >> 32) + signed(x[2], 32);
        wrap(sum.clamp(i128::from(i32::MIN), i128::from(i32::MAX)), 32)
    });
}

#[test]
fn immediates_are_read_at_the_width_of_the_type() {
    let rows: Vec<_> = edges(64).into_iter().map(|v| vec![v]).collect();
    check("add.s64 $d, $a, -1;", "d:d", &rows, |x| x[0].wrapping_sub(1));
    check("add.s32 $d, $a, 0xffffffff;", "r:r", &rows, |x| wrap(unsigned(x[0], 32) - 1, 32));
    check("add.s16 $d, $a, -3;", "h:h", &rows, |x| wrap(unsigned(x[0], 16) - 3, 16));
    check("and.b16 $d, $a, -16;", "h:h", &rows, |x| x[0] & 0xfff0);
    check("mul.wide.s32 $d, $a, -7;", "d:r", &rows, |x| wrap(signed(x[0], 32) * -7, 64));
    check("mul.wide.u16 $d, $a, 65535;", "r:h", &rows, |x| wrap(unsigned(x[0], 16) * 65535, 32));
    check("shl.b64 $d, $a, 33;", "d:d", &rows, |x| x[0] << 33);
    check("add.s32 $d, $a, WARP_SZ;", "r:r", &rows, |x| wrap(unsigned(x[0], 32) + 32, 32));
    check("add.s32 $d, $a, 0b101;", "r:r", &rows, |x| wrap(unsigned(x[0], 32) + 5, 32));
    check("add.u32 $d, $a, 017U;", "r:r", &rows, |x| wrap(unsigned(x[0], 32) + 15, 32));
}

#[test]
fn pairs_of_16_bits() {
    let e = [
        0,
        1,
        0x7fff,
        0x8000,
        0xffff,
        0x1234_8001,
        0x8000_7fff,
        0x7fff_7fff,
        0x8000_8000,
        0xffff_0001,
        0xabcd_1234,
    ];
    let rows = product(&[&e, &e]);
    let both = |x: &[u64], s: bool, f: &dyn Fn(i128, i128) -> i128| {
        let half = |i: u32| wrap(f(value(x[0] >> i, 16, s), value(x[1] >> i, 16, s)), 16);
        half(0) | half(16) << 16
    };
    for (ty, s) in [("u16x2", false), ("s16x2", true)] {
        check(&format!("add.{ty} $d, $a, $b;"), "r:rr", &rows, |x| both(x, s, &|a, b| a + b));
        check(&format!("min.{ty} $d, $a, $b;"), "r:rr", &rows, |x| both(x, s, &|a, b| a.min(b)));
        check(&format!("max.{ty} $d, $a, $b;"), "r:rr", &rows, |x| both(x, s, &|a, b| a.max(b)));
    }
    check("min.relu.s16x2 $d, $a, $b;", "r:rr", &rows, |x| both(x, true, &|a, b| a.min(b).max(0)));
    check("max.relu.s16x2 $d, $a, $b;", "r:rr", &rows, |x| both(x, true, &|a, b| a.max(b).max(0)));
}

#[test]
fn logic_of_every_width() {
    for bits in [16, 32, 64] {
        let e = edges(bits);
        let rows = product(&[&e, &e]);
        let one: Vec<_> = e.iter().map(|v| vec![*v]).collect();
        let l = letter(bits);
        let (two, single) = (format!("{l}:{l}{l}"), format!("{l}:{l}"));
        check(&format!("and.b{bits} $d, $a, $b;"), &two, &rows, |x| x[0] & x[1]);
        check(&format!("or.b{bits} $d, $a, $b;"), &two, &rows, |x| x[0] | x[1]);
        check(&format!("xor.b{bits} $d, $a, $b;"), &two, &rows, |x| x[0] ^ x[1]);
        check(&format!("not.b{bits} $d, $a;"), &single, &one, |x| wrap(i128::from(!x[0]), bits));
        check(&format!("cnot.b{bits} $d, $a;"), &single, &one, |x| u64::from(x[0] == 0));
    }
    let truth = product(&[&[0, 1], &[0, 1]]);
    check("and.pred $d, $a, $b;", "p:pp", &truth, |x| x[0] & x[1]);
    check("or.pred $d, $a, $b;", "p:pp", &truth, |x| x[0] | x[1]);
    check("xor.pred $d, $a, $b;", "p:pp", &truth, |x| x[0] ^ x[1]);
    check("not.pred $d, $a;", "p:p", &[vec![0], vec![1]], |x| x[0] ^ 1);
    check("mov.pred $d, $a;", "p:p", &[vec![0], vec![1]], |x| x[0]);
    check("and.pred $d, $a, !$b;", "p:pp", &truth, |x| x[0] & (x[1] ^ 1));
}

#[test]
fn lop3_with_every_table() {
    let rows = [vec![0xf0f0_f0f0, 0xcccc_cccc, 0xaaaa_aaaa], vec![0x0123_4567, 0x89ab_cdef, 0xdead_beef]];
    for table in 0..256u64 {
        check(&format!("lop3.b32 $d, $a, $b, $c, {table};"), "r:rrr", &rows, |x| {
            (0..32).fold(0, |d, i| {
                let index = (x[0] >> i & 1) << 2 | (x[1] >> i & 1) << 1 | x[2] >> i & 1;
                d | (table >> index & 1) << i
            })
        });
    }
}

#[test]
fn shifts_clamp_at_the_width() {
    let counts = [0u64, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 0x8000_0000, 0xffff_ffff];
    for bits in [16, 32, 64] {
        let rows = product(&[&edges(bits), &counts]);
        let l = letter(bits);
        let signature = format!("{l}:{l}r");
        let count = |n: u64| n.min(u64::from(bits)) as u32;
        check(&format!("shl.b{bits} $d, $a, $b;"), &signature, &rows, |x| {
            wrap(unsigned(x[0], bits) << count(x[1]), bits)
        });
        check(&format!("shr.u{bits} $d, $a, $b;"), &signature, &rows, |x| {
            wrap(unsigned(x[0], bits) >> count(x[1]), bits)
        });
        check(&format!("shr.b{bits} $d, $a, $b;"), &signature, &rows, |x| {
            wrap(unsigned(x[0], bits) >> count(x[1]), bits)
        });
        check(&format!("shr.s{bits} $d, $a, $b;"), &signature, &rows, |x| {
            wrap(signed(x[0], bits) >> count(x[1]), bits)
        });
    }
    let e = edges(32);
    let rows = product(&[&e, &e, &counts]);
    for (mode, wraps) in [("clamp", false), ("wrap", true)] {
        let n = |c: u64| if wraps { c as u32 & 31 } else { (c as u32).min(32) };
        check(&format!("shf.l.{mode}.b32 $d, $a, $b, $c;"), "r:rrr", &rows, |x| {
            wrap(((i128::from(x[1]) << 32 | i128::from(x[0])) << n(x[2])) >> 32, 32)
        });
        check(&format!("shf.r.{mode}.b32 $d, $a, $b, $c;"), "r:rrr", &rows, |x| {
            wrap((i128::from(x[1]) << 32 | i128::from(x[0])) >> n(x[2]), 32)
        });
    }
}

#[test]
fn counts_and_searches_of_bits() {
    for bits in [32u32, 64] {
        let mut values = edges(bits);
        values.extend((0..bits).map(|i| 1 << i));
        let rows: Vec<_> = values.iter().map(|v| vec![*v]).collect();
        let l = letter(bits);
        let bit = |x: u64, i: u32| x >> i & 1;
        let count = format!("r:{l}");
        check(&format!("popc.b{bits} $d, $a;"), &count, &rows, |x| (0..bits).map(|i| bit(x[0], i)).sum());
        check(&format!("clz.b{bits} $d, $a;"), &count, &rows, |x| {
            (0..bits).rev().take_while(|i| bit(x[0], *i) == 0).count() as u64
        });
        check(&format!("brev.b{bits} $d, $a;"), &format!("{l}:{l}"), &rows, |x| {
            (0..bits).fold(0, |d, i| d | bit(x[0], i) << (bits - 1 - i))
        });
        for s in [false, true] {
            let ty = format!("{}{bits}", if s { 's' } else { 'u' });
            let find = |x: u64| {
                let ignored = if s { bit(x, bits - 1) } else { 0 };
                (0..bits).rev().find(|i| bit(x, *i) != ignored)
            };
            check(&format!("bfind.{ty} $d, $a;"), &count, &rows, |x| {
                find(x[0]).map_or(0xffff_ffff, u64::from)
            });
            check(&format!("bfind.shiftamt.{ty} $d, $a;"), &count, &rows, |x| {
                find(x[0]).map_or(0xffff_ffff, |i| u64::from(bits - 1 - i))
            });
        }
    }
    // fns: the n-th set bit from a base, upwards or downwards, the base included.
    let offsets: Vec<u64> =
        [0i32, 1, 2, 3, 5, 40, -1, -2, -3, -40].iter().map(|n| u64::from(*n as u32)).collect();
    let rows =
        product(&[&[0, 1, 0x8000_0000, 0xaaaa_5555, 0xffff_ffff, 0x10], &[0, 1, 4, 15, 16, 31], &offsets]);
    check("fns.b32 $d, $a, $b, $c;", "r:rrr", &rows, |x| {
        let (mask, base, offset) = (x[0] as u32, x[1] as i32, x[2] as u32 as i32);
        let step = if offset < 0 { -1 } else { 1 };
        let wanted = if offset == 0 { 1 } else { offset.abs() };
        let mut seen = 0;
        let mut i = base;
        while (0..32).contains(&i) {
            seen += (mask >> i & 1) as i32;
            if offset == 0 {
                return if mask >> base & 1 == 1 { base as u64 } else { 0xffff_ffff };
            }
            if seen == wanted {
                return i as u64;
            }
            i += step;
        }
        0xffff_ffff
    });
}

#[test]
fn bit_fields() {
    let places = [0u64, 1, 5, 8, 31, 32, 33, 40, 63, 64, 100, 255, 256, 0x105];
    for bits in [32u32, 64] {
        let e: Vec<u64> = edges(bits);
        let l = letter(bits);
        let rows = product(&[&e, &places, &places]);
        for s in [false, true] {
            let ty = format!("{}{bits}", if s { 's' } else { 'u' });
            check(&format!("bfe.{ty} $d, $a, $b, $c;"), &format!("{l}:{l}rr"), &rows, |x| {
                let (pos, len) = ((x[1] & 0xff) as u32, (x[2] & 0xff) as u32);
                // Past the top of the register stand copies of the sign, which is that of the field or of the register.
                let last = (pos + len).saturating_sub(1).min(bits - 1);
                let fill = if !s || len == 0 { 0 } else { x[0] >> last & 1 };
                (0..bits).fold(0, |d, i| {
                    let bit = if i < len && pos + i < bits { x[0] >> (pos + i) & 1 } else { fill };
                    d | bit << i
                })
            });
        }
        let small: Vec<u64> = e.iter().copied().step_by(3).collect();
        let rows = product(&[&small, &small, &places, &places]);
        check(&format!("bfi.b{bits} $d, $a, $b, $c, $e;"), &format!("{l}:{l}{l}rr"), &rows, |x| {
            let (pos, len) = ((x[2] & 0xff) as u32, (x[3] & 0xff) as u32);
            (0..len)
                .filter(|i| pos + i < bits)
                .fold(x[1], |d, i| d & !(1 << (pos + i)) | (x[0] >> i & 1) << (pos + i))
        });
    }
    let places = [0u64, 1, 5, 8, 31, 32, 33, 64, 255, 0x8000_0000, 0xffff_ffff];
    let rows = product(&[&places, &places]);
    for (mode, wraps) in [("clamp", false), ("wrap", true)] {
        let cut = |n: u64| if wraps { n & 31 } else { n.min(32) };
        check(&format!("bmsk.{mode}.b32 $d, $a, $b;"), "r:rr", &rows, |x| {
            let (from, width) = (cut(x[0]), cut(x[1]));
            (from..(from + width).min(32)).fold(0, |d, i| d | 1 << i)
        });
        for s in [false, true] {
            let ty = if s { "s32" } else { "u32" };
            check(&format!("szext.{mode}.{ty} $d, $a, $b;"), "r:rr", &product(&[&edges(32), &places]), |x| {
                let width = cut(x[1]) as u32;
                match width {
                    0 => 0,
                    32.. => x[0],
                    _ => wrap(value(x[0], width, s), 32),
                }
            });
        }
    }
}

#[test]
fn prmt_in_every_mode() {
    let selectors: Vec<u64> =
        (0..16).chain([0x3210, 0x7654, 0x0123, 0x8888, 0xfedc, 0xba98, 0x5140, 0xffff_3210]).collect();
    let rows = product(&[&[0x8070_6050, 0x0123_4567], &[0xf0e0_d0c0, 0x89ab_cdef], &selectors]);
    check("prmt.b32 $d, $a, $b, $c;", "r:rrr", &rows, |x| {
        let pool = x[1] << 32 | x[0];
        (0..4).fold(0, |d, i| {
            let selector = x[2] >> (4 * i) & 15;
            let byte = pool >> (8 * (selector & 7)) & 0xff;
            let byte = if selector & 8 == 0 { byte } else { 0xff * (byte >> 7) };
            d | byte << (8 * i)
        })
    });
    // Bytes chosen from the highest to the lowest of the result, for selectors 0 to 3.
    let tables: [(&str, [[u64; 4]; 4]); 6] = [
        ("f4e", [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]]),
        ("b4e", [[5, 6, 7, 0], [6, 7, 0, 1], [7, 0, 1, 2], [0, 1, 2, 3]]),
        ("rc8", [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]]),
        ("ecl", [[3, 2, 1, 0], [3, 2, 1, 1], [3, 2, 2, 2], [3, 3, 3, 3]]),
        ("ecr", [[0, 0, 0, 0], [1, 1, 1, 0], [2, 2, 1, 0], [3, 2, 1, 0]]),
        ("rc16", [[1, 0, 1, 0], [3, 2, 3, 2], [1, 0, 1, 0], [3, 2, 3, 2]]),
    ];
    for (mode, table) in tables {
        check(&format!("prmt.b32.{mode} $d, $a, $b, $c;"), "r:rrr", &rows, |x| {
            let pool = x[1] << 32 | x[0];
            table[(x[2] & 3) as usize].iter().fold(0, |d, byte| d << 8 | pool >> (8 * byte) & 0xff)
        });
    }
}

#[test]
fn dot_products_of_bytes() {
    let e = [0u64, 0x0102_0304, 0x7f80_ff01, 0xffff_ffff, 0x8080_8080, 0x7fff_8000];
    let rows = product(&[&e, &e, &[0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_fff0]]);
    for (a_ty, a_signed) in [("u32", false), ("s32", true)] {
        for (b_ty, b_signed) in [("u32", false), ("s32", true)] {
            let c = |x: u64| value(x, 32, a_signed || b_signed);
            check(&format!("dp4a.{a_ty}.{b_ty} $d, $a, $b, $c;"), "r:rrr", &rows, |x| {
                wrap(
                    (0..4)
                        .map(|i| value(x[0] >> (8 * i), 8, a_signed) * value(x[1] >> (8 * i), 8, b_signed))
                        .sum::<i128>()
                        + c(x[2]),
                    32,
                )
            });
            for (part, first) in [("lo", 0), ("hi", 2)] {
                check(&format!("dp2a.{part}.{a_ty}.{b_ty} $d, $a, $b, $c;"), "r:rrr", &rows, |x| {
                    let sum: i128 = (0..2)
                        .map(|i| {
                            value(x[0] >> (16 * i), 16, a_signed)
                                * value(x[1] >> (8 * (i + first)), 8, b_signed)
                        })
                        .sum();
                    wrap(sum + c(x[2]), 32)
                });
            }
        }
    }
}

#[test]
fn differences_of_bytes() {
    let e = [0u64, 0x0102_0304, 0x7f80_ff01, 0xffff_ffff, 0x8080_8080, 0x00ff_00ff];
    let rows = product(&[&e, &e, &[0, 5, 0xffff_fff0]]);
    let byte = |x: u64, i: u64| i128::from(x >> (8 * i) & 0xff);
    let difference = |x: &[u64], i: u64| (byte(x[0], i) - byte(x[1], i)).abs();
    check("vabsdiff4.u32.u32.u32 $d, $a, $b, $c;", "r:rrr", &rows, |x| {
        (0..4).fold(0, |d, i| d | (difference(x, i) as u64) << (8 * i))
    });
    check("vabsdiff4.u32.u32.u32.add $d, $a, $b, $c;", "r:rrr", &rows, |x| {
        wrap(i128::from(x[2]) + (0..4).map(|i| difference(x, i)).sum::<i128>(), 32)
    });
}

#[test]
fn carry_chains() {
    let e = edges(32);
    let rows = product(&[&e, &e, &e]);
    let wide = |low: u64, high: u64| high << 32 | low;
    // Two words added as one number of 64 bits.
    let chain = |first: &str, second: &str| {
        format!(
            "{{ .reg .b32 %t<4>; .reg .b64 %w; {first} %t0, $a, $b; {second} %t1, $b, $c; mov.b64 $d, {{%t0, %t1}}; }}"
        )
    };
    check(&chain("add.cc.u32", "addc.u32"), "d:rrr", &rows, |x| {
        wide(x[0], x[1]).wrapping_add(wide(x[1], x[2]))
    });
    check(&chain("sub.cc.u32", "subc.u32"), "d:rrr", &rows, |x| {
        wide(x[0], x[1]).wrapping_sub(wide(x[1], x[2]))
    });
    check(&chain("add.cc.s32", "addc.cc.s32"), "d:rrr", &rows, |x| {
        wide(x[0], x[1]).wrapping_add(wide(x[1], x[2]))
    });
    // a · b + (c, c) of 64 bits.
    for (ty, s) in [("u32", false), ("s32", true)] {
        let text = format!(
            "{{ .reg .b32 %t<4>; mad.lo.cc.{ty} %t0, $a, $b, $c; madc.hi.{ty} %t1, $a, $b, $c; mov.b64 $d, {{%t0, %t1}}; }}"
        );
        check(&text, "d:rrr", &rows, |x| {
            wrap(value(x[0], 32, s) * value(x[1], 32, s), 64).wrapping_add(wide(x[2], x[2]))
        });
    }
    let e = edges(64);
    let rows = product(&[&e, &e]);
    // The carry out of 64 bits, and that of 64-bit subtraction.
    let text = "{ .reg .b64 %t; add.cc.u64 %t, $a, $b; addc.u64 $d, 0, 0; }";
    check(text, "d:dd", &rows, |x| u64::from(u128::from(x[0]) + u128::from(x[1]) > u128::from(u64::MAX)));
    let text = "{ .reg .b64 %t; sub.cc.u64 %t, $a, $b; subc.u64 $d, 0, 0; }";
    check(text, "d:dd", &rows, |x| if x[0] < x[1] { u64::MAX } else { 0 });
    let text = "{ .reg .b64 %t; mad.lo.cc.u64 %t, $a, $b, $b; madc.hi.u64 $d, $a, $b, 0; }";
    check(text, "d:dd", &rows, |x| ((u128::from(x[0]) * u128::from(x[1]) + u128::from(x[1])) >> 64) as u64);
}
