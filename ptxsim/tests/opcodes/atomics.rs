//! Every atomic on every type, in global and shared memory and through generic addresses.

use crate::{
    compare::{bf16, edges_bf16, edges_f16, f16},
    harness::*,
    rounding::*,
};

/// Runs `atom.OP.TYPE` once for each row (what is there, operand, and for cas the new value): what it returns and leaves.
fn check_atomic(
    op: &str,
    ty: &str,
    bits: u32,
    rows: &[Vec<u64>],
    same: impl Fn(u64, u64) -> bool,
    reference: impl Fn(u64, u64, u64) -> u64,
) {
    let l = letter(bits);
    let signature = format!("{l}:{l}{l}{l}");
    let third = if op == "cas" { ", $c" } else { "" };
    let spaces = [
        (".global", "{ .reg .b64 %y; mov.b64 %y, %d11;"),
        ("", "{ .reg .b64 %y; mov.b64 %y, %d11;"),
        (
            ".shared",
            "{ .shared .align 8 .b8 room[256]; .reg .b64 %y; mov.u32 %r14, %laneid; mul.wide.u32 %y, %r14, 8; mov.b64 %d13, room; add.s64 %y, %y, %d13;",
        ),
        (
            "",
            "{ .shared .align 8 .b8 room[256]; .reg .b64 %y; mov.u32 %r14, %laneid; mul.wide.u32 %y, %r14, 8; mov.b64 %d13, room; add.s64 %y, %y, %d13; cvta.shared.u64 %y, %y;",
        ),
    ];
    let f16s = if ty.contains("f16") { ".noftz" } else { "" };
    for (i, (space, place)) in spaces.iter().enumerate() {
        let plain = if i == 2 { ".shared" } else { "" };
        let old = format!(
            "{place} st{plain}.b{bits} [%y], $a; atom{space}.{op}{f16s}.{ty} $d, [%y], $b{third}; }}"
        );
        check_by(&old, &signature, rows, |x, got| got == x[0]);
        let new = format!(
            "{place} .reg .b{bits} %z; st{plain}.b{bits} [%y], $a; atom.relaxed.gpu{space}.{op}{f16s}.{ty} %z, [%y], $b{third}; ld{plain}.b{bits} $d, [%y]; }}"
        );
        check_by(&new, &signature, rows, |x, got| same(reference(x[0], x[1], x[2]), got));
        if op != "cas" && op != "exch" {
            let red = format!(
                "{place} st{plain}.b{bits} [%y], $a; red.release.cta{space}.{op}{f16s}.{ty} [%y], $b; ld{plain}.b{bits} $d, [%y]; }}"
            );
            check_by(&red, &signature, rows, |x, got| same(reference(x[0], x[1], x[2]), got));
        }
        let ignored = format!(
            "{place} st{plain}.b{bits} [%y], $a; atom.acq_rel.sys{space}.{op}{f16s}.{ty} _, [%y], $b{third}; ld{plain}.b{bits} $d, [%y]; }}"
        );
        check_by(&ignored, &signature, rows, |x, got| same(reference(x[0], x[1], x[2]), got));
    }
}

#[test]
fn integers() {
    for bits in [32u32, 64] {
        let e = edges(bits);
        let rows = product(&[&e, &e, &[0]]);
        let equal = |a: u64, b: u64| a == b;
        for s in [false, true] {
            let ty = format!("{}{bits}", if s { 's' } else { 'u' });
            let v = move |x: u64| if s { signed(x, bits) } else { unsigned(x, bits) };
            if !(s && bits == 64) {
                check_atomic("add", &ty, bits, &rows, equal, |a, b, _| wrap(v(a) + v(b), bits));
            }
            check_atomic("min", &ty, bits, &rows, equal, |a, b, _| wrap(v(a).min(v(b)), bits));
            check_atomic("max", &ty, bits, &rows, equal, |a, b, _| wrap(v(a).max(v(b)), bits));
        }
        let ty = format!("b{bits}");
        check_atomic("and", &ty, bits, &rows, equal, |a, b, _| a & b);
        check_atomic("or", &ty, bits, &rows, equal, |a, b, _| a | b);
        check_atomic("xor", &ty, bits, &rows, equal, |a, b, _| a ^ b);
        check_atomic("exch", &ty, bits, &rows, equal, |_, b, _| b);
        let few: Vec<u64> = e.iter().copied().step_by(3).collect();
        let swaps = product(&[&few, &few, &few]);
        check_atomic("cas", &ty, bits, &swaps, equal, |a, b, c| if a == b { c } else { a });
    }
    let e = edges(32);
    let rows = product(&[&e, &e, &[0]]);
    check_atomic("inc", "u32", 32, &rows, |a, b| a == b, |a, b, _| if a >= b { 0 } else { a + 1 });
    check_atomic("dec", "u32", 32, &rows, |a, b| a == b, |a, b, _| if a == 0 || a > b { b } else { a - 1 });
    let e = edges(16);
    let few: Vec<u64> = e.iter().copied().step_by(3).collect();
    check_atomic(
        "cas",
        "b16",
        16,
        &product(&[&few, &few, &few]),
        |a, b| a == b,
        |a, b, c| if a == b { c } else { a },
    );
}

#[test]
fn floats() {
    let e = crate::float::edges_f64();
    check_atomic(
        "add",
        "f64",
        64,
        &product(&[&e, &e, &[0]]),
        |a, b| a == b || f64::from_bits(a).is_nan() && f64::from_bits(b).is_nan(),
        |a, b, _| (f64::from_bits(a) + f64::from_bits(b)).to_bits(),
    );
    // Global f32 atomics flush subnormals on some paths of the hardware; those are left out.
    let e: Vec<u64> = crate::float::edges_f32()
        .into_iter()
        .filter(|v| v & 0x7f80_0000 != 0 || v & 0x7fff_ffff == 0)
        .collect();
    let v = |x: u64| f32::from_bits(x as u32);
    let rows: Vec<_> =
        product(&[&e, &e, &[0]]).into_iter().filter(|x| !(v(x[0]) + v(x[1])).is_subnormal()).collect();
    check_atomic(
        "add",
        "f32",
        32,
        &rows,
        |a, b| a == b || v(a).is_nan() && v(b).is_nan(),
        |a, b, _| u64::from((v(a) + v(b)).to_bits()),
    );
    for (ty, e, read, format) in
        [("f16", edges_f16(), f16 as fn(u64) -> f64, F16), ("bf16", edges_bf16(), bf16, BF16)]
    {
        let same = |expected: u64, got: u64| expected == got || read(expected).is_nan() && read(got).is_nan();
        let bits = |x: f64| {
            u64::from(if ty == "f16" {
                half::f16::from_f64(x).to_bits()
            } else {
                half::bf16::from_f64(x).to_bits()
            })
        };
        let sum = |a: u64, b: u64| bits(round_to(add_odd(read(a), read(b)), format, Round::Nearest));
        check_atomic("add", ty, 16, &product(&[&e, &e, &[0]]), same, |a, b, _| sum(a, b));
        let pairs: Vec<u64> = (0..e.len()).map(|i| e[i] << 16 | e[(i * 5 + 2) % e.len()]).collect();
        let both = |expected: u64, got: u64| {
            same(expected & 0xffff, got & 0xffff) && same(expected >> 16, got >> 16)
        };
        check_atomic("add", &format!("{ty}x2"), 32, &product(&[&pairs, &pairs, &[0]]), both, |a, b, _| {
            sum(a & 0xffff, b & 0xffff) | sum(a >> 16, b >> 16) << 16
        });
    }
}

#[test]
fn all_threads_at_one_address() {
    let body = "mov.u32 %r0, %tid.x; atom.global.add.u32 %r1, [%rd0], 1; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd1, %rd1, %rd2; st.global.u32 [%rd1], 1;
        atom.global.inc.u32 %r2, [%rd0+4], 6; red.global.max.u32 [%rd0+8], %r0; red.global.add.f64 [%rd0+16], 0d3FE0000000000000;";
    for schedule in [ptxsim::Schedule::InOrder, ptxsim::Schedule::Reversed, ptxsim::Schedule::Random(5)] {
        let mut program = Program::new(body, &[vec![0; 24], vec![0; 4 * 384]]).sized([3, 1, 1], [128, 1, 1]);
        program.launch.schedule = schedule;
        let out = program.run();
        assert_eq!(words(&out[0])[..3], [384, 384 % 7, 127]);
        assert_eq!(doubles(&out[0])[2], 192f64.to_bits());
        // Each thread drew another number.
        assert!(words(&out[1]).iter().all(|v| *v == 1));
    }
}

#[test]
fn vectors() {
    let f = |x: f32| x.to_bits();
    for (form, registers, n) in [("v2.f32", "{%f0, %f1}", 2), ("v4.f32", "{%f0, %f1, %f0, %f1}", 4)] {
        let body = format!(
            "mov.f32 %f0, 0f3F800000; mov.f32 %f1, 0f40000000; red.global.add.{form} [%rd0], {registers};"
        );
        let out = words(&Program::new(&body, &[vec![0; 16]]).sized([2, 1, 1], [64, 1, 1]).run()[0]);
        for (i, v) in out.iter().enumerate() {
            assert_eq!(*v, if i < n { f(128.0 * (1 + i % 2) as f32) } else { 0 });
        }
    }
    // What was there comes back, element by element.
    let body = "mov.f32 %f0, 0f3F800000; atom.global.v4.f32.add {%f4, %f5, %f6, %f7}, [%rd0], {%f0, %f0, %f0, %f0}; st.global.v4.f32 [%rd1], {%f4, %f5, %f6, %f7};";
    let start = [1.5f32, -2.0, 1e6, 0.25];
    let out =
        Program::new(body, &[bytes_of(start.map(f32::to_bits)), vec![0; 16]]).sized([1; 3], [1; 3]).run();
    assert_eq!(words(&out[1]), start.map(f));
    assert_eq!(words(&out[0]), start.map(|x| f(x + 1.0)));
    let body = "mov.b32 %r0, 0x40003c00; mov.b32 %r1, 0x3c003c00; red.global.add.noftz.v2.f16x2 [%rd0], {%r0, %r1}; mov.b32 %r2, 0x40003f80; red.global.v2.bf16x2.add.noftz [%rd0+8], {%r2, %r2};";
    let out = words(&Program::new(body, &[vec![0; 16]]).run()[0]);
    assert_eq!(out, [0x5400_5000, 0x5000_5000, 0x4280_4200, 0x4280_4200]);
}
