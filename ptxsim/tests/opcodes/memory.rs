//! Loads and stores of every width and space, addresses, parameters, variables with initial values, asynchronous copies.

use crate::harness::*;

#[test]
fn every_width_with_its_extension() {
    let values = edges(64);
    let rows: Vec<_> = values.iter().map(|v| vec![*v]).collect();
    let at = "{ .reg .b64 %x; mov.b64 %x, %d10; ";
    for (ty, bits, s) in [
        ("b8", 8, false),
        ("u8", 8, false),
        ("s8", 8, true),
        ("b16", 16, false),
        ("u16", 16, false),
        ("s16", 16, true),
        ("b32", 32, false),
        ("u32", 32, false),
        ("s32", 32, true),
        ("b64", 64, false),
        ("f32", 32, false),
        ("f64", 64, false),
    ] {
        let expected = |x: &[u64], register: u32| {
            if s { wrap(signed(x[0], bits), register) } else { wrap(unsigned(x[0], bits), register) }
        };
        // Every register at least as wide takes it; signed types extend to the width of the register.
        for register in [16, 32, 64] {
            if register >= bits {
                let signature = format!("{}:d", letter(register));
                check(&format!("{at} ld.global.{ty} $d, [%x]; }}"), &signature, &rows, |x| {
                    expected(x, register)
                });
                check(&format!("{at} ld.{ty} $d, [%x]; }}"), &signature, &rows, |x| expected(x, register));
            }
        }
    }
    // Stores keep the low bits and nothing else.
    for bits in [8u32, 16, 32] {
        let text = format!(
            "{{ .reg .b64 %y; .reg .b64 %z; .shared .align 8 .b8 room[256]; mov.u64 %y, room; mul.wide.u32 %z, %r10, 0; mov.u32 %r14, %laneid; mul.wide.u32 %z, %r14, 8; add.s64 %y, %y, %z; st.shared.b64 [%y], 0x1111111111111111; st.shared.b{bits} [%y], $a; ld.shared.b64 $d, [%y]; }}"
        );
        check(&text, "d:d", &rows, |x| {
            0x1111_1111_1111_1111 & !wrap(-1, bits) | wrap(unsigned(x[0], bits), bits)
        });
    }
}

#[test]
fn vectors() {
    let data: Vec<u8> = (0..32 * 32).map(|i| (i * 37 % 251) as u8).collect();
    for (ty, bits, count) in [
        ("u8", 8, 2),
        ("u8", 8, 4),
        ("u16", 16, 2),
        ("u16", 16, 4),
        ("u32", 32, 2),
        ("u32", 32, 4),
        ("u64", 64, 2),
        ("f32", 32, 4),
        ("f64", 64, 2),
        ("b32", 32, 8),
        ("b64", 64, 4),
    ] {
        let bytes = bits / 8 * count;
        let file = match bits {
            64 => "rd",
            32 => "r",
            _ => "h",
        };
        let registers: Vec<String> = (20..20 + count).map(|i| format!("%{file}{i}")).collect();
        let reversed: Vec<String> = registers.iter().rev().cloned().collect();
        let body = format!(
            "mov.u32 %r0, %tid.x; mul.wide.u32 %rd3, %r0, {bytes}; add.s64 %rd0, %rd0, %rd3; add.s64 %rd1, %rd1, %rd3;
             ld.global.v{count}.{ty} {{{}}}, [%rd0]; st.global.v{count}.{ty} [%rd1], {{{}}};",
            registers.join(","),
            reversed.join(",")
        );
        let n = 32 * bytes as usize;
        let out = &Program::new(&body, &[data[..n].to_vec(), vec![0; n]]).run()[1];
        for (from, to) in data[..n].chunks(bytes as usize).zip(out.chunks(bytes as usize)) {
            let expected: Vec<u8> = from.chunks(bits as usize / 8).rev().flatten().copied().collect();
            assert_eq!(to, expected, "v{count}.{ty}");
        }
    }
}

#[test]
fn generic_addresses_reach_every_space() {
    let body = "
        .shared .align 8 .b8 room[512]; .local .align 8 .b8 own[64];
        mov.u32 %r0, %tid.x; mul.wide.u32 %rd2, %r0, 8; add.s64 %rd0, %rd0, %rd2;
        mul.wide.u32 %rd2, %r0, 64; add.s64 %rd1, %rd1, %rd2;
        ld.global.b64 %rd10, [%rd0];
        // Shared: a window address to a generic one and back.
        mov.u64 %rd3, room; mul.wide.u32 %rd4, %r0, 8; add.s64 %rd3, %rd3, %rd4;
        cvta.shared.u64 %rd5, %rd3; st.b64 [%rd5], %rd10; ld.shared.b64 %rd11, [%rd3]; st.global.b64 [%rd1], %rd11;
        cvta.to.shared.u64 %rd6, %rd5; sub.s64 %rd6, %rd6, %rd3; st.global.b64 [%rd1+8], %rd6;
        // Local.
        mov.u64 %rd3, own; cvta.local.u64 %rd7, %rd3; st.b64 [%rd7+16], %rd10; ld.local.b64 %rd11, [own+16];
        st.global.b64 [%rd1+16], %rd11;
        // Global: the same address.
        cvta.to.global.u64 %rd8, %rd0; ld.global.b64 %rd11, [%rd8]; st.global.b64 [%rd1+24], %rd11;
        // A parameter of the entry.
        mov.b64 %rd12, p0; cvta.param.u64 %rd12, %rd12; ld.b64 %rd11, [%rd12]; ld.param.b64 %rd13, [p0]; sub.s64 %rd11, %rd11, %rd13;
        st.global.b64 [%rd1+32], %rd11;
        isspacep.shared %p0, %rd5; isspacep.shared %p1, %rd7; isspacep.local %p2, %rd7; isspacep.local %p3, %rd0;
        isspacep.global %p4, %rd0; isspacep.global %p5, %rd5; isspacep.param %p6, %rd12; isspacep.const %p7, %rd0;
        selp.u32 %r1, 1, 0, %p0; selp.u32 %r2, 2, 0, %p1; or.b32 %r1, %r1, %r2; selp.u32 %r2, 4, 0, %p2; or.b32 %r1, %r1, %r2;
        selp.u32 %r2, 8, 0, %p3; or.b32 %r1, %r1, %r2; selp.u32 %r2, 16, 0, %p4; or.b32 %r1, %r1, %r2; selp.u32 %r2, 32, 0, %p5;
        or.b32 %r1, %r1, %r2; selp.u32 %r2, 64, 0, %p6; or.b32 %r1, %r1, %r2; selp.u32 %r2, 128, 0, %p7; or.b32 %r1, %r1, %r2;
        cvt.u64.u32 %rd11, %r1; st.global.b64 [%rd1+40], %rd11;
        // 32-bit window addresses.
        cvt.u32.u64 %r3, %rd6; cvta.to.shared.u64 %rd9, %rd5; cvt.u32.u64 %r3, %rd9; ld.shared.b64 %rd11, [%r3]; st.global.b64 [%rd1+48], %rd11;
        add.s64 %rd11, %rd0, 64; ld.global.b64 %rd11, [%rd11+-64]; st.global.b64 [%rd1+56], %rd11;";
    let values = random(32, 9);
    let input: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let out = doubles(&Program::new(body, &[input, vec![0; 32 * 64]]).run()[1]);
    for (v, row) in values.iter().zip(out.chunks(8)) {
        assert_eq!(row, [*v, 0, *v, *v, 0, 1 + 4 + 16 + 64, *v, *v]);
    }
}

#[test]
fn local_memory_belongs_to_its_thread() {
    // Each thread writes 8 words in its own order, then reads them by a runtime index.
    let body = "
        .local .align 4 .b8 own[32];
        mov.u32 %r0, %tid.x; mov.u32 %r1, 0; mov.u64 %rd2, own;
        loop: add.s32 %r2, %r1, %r0; and.b32 %r2, %r2, 7; mul.wide.u32 %rd3, %r2, 4; add.s64 %rd3, %rd2, %rd3;
        mad.lo.s32 %r3, %r0, 100, %r1; st.local.u32 [%rd3], %r3; add.s32 %r1, %r1, 1; setp.lt.u32 %p0, %r1, 8; @%p0 bra loop;
        mul.wide.u32 %rd4, %r0, 32; add.s64 %rd0, %rd0, %rd4;
        ld.local.v4.u32 {%r10, %r11, %r12, %r13}, [own]; st.global.v4.u32 [%rd0], {%r10, %r11, %r12, %r13};
        ld.local.v4.u32 {%r10, %r11, %r12, %r13}, [own+16]; st.global.v4.u32 [%rd0+16], {%r10, %r11, %r12, %r13};";
    let out = words(&Program::new(body, &[vec![0; 64 * 32]]).sized([1; 3], [64, 1, 1]).run()[0]);
    for (thread, row) in out.chunks(8).enumerate() {
        for (place, v) in row.iter().enumerate() {
            let step = (place + 8 - thread % 8) % 8;
            assert_eq!(*v, (thread * 100 + step) as u32);
        }
    }
}

#[test]
fn parameters_by_value() {
    // A struct of 24 bytes between scalars of other alignments, one field by a runtime index.
    let text = format!(
        "{HEADER}.visible .entry t(.param .u8 small, .param .align 8 .b8 block[24], .param .f32 scale, .param .u16 short, .param .u64 out)
        {{ .reg .b32 %r<20>; .reg .b64 %rd<20>; .reg .f32 %f<4>; .reg .b16 %h<4>;
        ld.param.u64 %rd0, [out]; mov.u32 %r0, %tid.x; mul.wide.u32 %rd1, %r0, 32; add.s64 %rd0, %rd0, %rd1;
        ld.param.u8 %r1, [small]; st.global.u32 [%rd0], %r1;
        ld.param.f32 %f1, [scale]; st.global.f32 [%rd0+4], %f1;
        ld.param.u16 %h1, [short]; cvt.u32.u16 %r2, %h1; st.global.u32 [%rd0+8], %r2;
        rem.u32 %r3, %r0, 6; mul.wide.u32 %rd2, %r3, 4; mov.b64 %rd3, block; add.s64 %rd3, %rd3, %rd2; ld.param.u32 %r4, [%rd3];
        st.global.u32 [%rd0+12], %r4;
        ld.param.v4.u32 {{%r5, %r6, %r7, %r8}}, [block+8]; add.s32 %r5, %r5, %r8; st.global.u32 [%rd0+16], %r5;
        ld.param.u64 %rd6, [block+8]; st.global.u64 [%rd0+24], %rd6; mov.u32 %r9, 0; st.global.u32 [%rd0+20], %r9; ret; }}"
    );
    let mut device = ptxsim::Device::new(ptxsim::Gpu::A100);
    let module = device.load(ptxsim::Module::parse(&text).unwrap()).unwrap();
    let out = device.allocate(32 * 32).unwrap();
    let block: Vec<u8> = (0..6u32).flat_map(|i| (i * 1111 + 5).to_le_bytes()).collect();
    let arguments = vec![200u8.into(), ptxsim::Argument(block), 2.5f32.into(), 40_000u16.into(), out.into()];
    let report = device.launch(&module, "t", &ptxsim::Launch { arguments, ..Default::default() }).unwrap();
    assert!(report.findings.is_empty(), "{}", report.findings[0]);
    let w = |i: u32| i * 1111 + 5;
    for (thread, row) in words(&device.read(out, 32 * 32).unwrap()).chunks(8).enumerate() {
        let expected = [200, 2.5f32.to_bits(), 40_000, w(thread as u32 % 6), w(2) + w(5), 0, w(2), w(3)];
        assert_eq!(row, expected, "thread {thread}");
    }
}

#[test]
fn variables_with_initial_values() {
    let declarations = r#"
        .const .align 4 .u32 table[4] = {10, 20, 0x1e, 40};
        .global .align 8 .u64 pointers[3] = {generic(number), generic(text)+2, number};
        .global .align 4 .u32 number = 77;
        .global .align 1 .b8 text[6] = {104, 101, 108, 108, 111, 0};
        .global .align 4 .f32 floats[3] = {0f3F800000, 2.5, -1.0};
        .global .align 2 .b16 shorts[4] = {-1, 2};
        .global .align 8 .f64 wide[1] = {0d4008000000000000};
        .global .align 4 .b32 rows[2][2] = {{1, 2}, {3, 4}};
        .global .align 4 .u32 zero[2];
        .visible .global .align 4 .u32 counter;"#;
    let body = "
        ld.const.u32 %r0, [table+8]; st.global.u32 [%rd0], %r0;
        mov.u32 %r1, %tid.x; and.b32 %r1, %r1, 3; mul.wide.u32 %rd2, %r1, 4; mov.u64 %rd3, table; add.s64 %rd3, %rd3, %rd2; ld.const.u32 %r2, [%rd3];
        st.global.u32 [%rd0+4], %r2;
        ld.global.u64 %rd4, [pointers]; ld.u32 %r3, [%rd4]; st.global.u32 [%rd0+8], %r3;
        ld.global.u64 %rd4, [pointers+8]; ld.u8 %r3, [%rd4]; st.global.u32 [%rd0+12], %r3;
        ld.global.u64 %rd4, [pointers+16]; ld.global.u32 %r3, [%rd4]; st.global.u32 [%rd0+16], %r3;
        ld.global.f32 %f0, [floats+4]; st.global.f32 [%rd0+20], %f0; ld.global.s16 %r4, [shorts]; st.global.u32 [%rd0+24], %r4;
        ld.global.u16 %r4, [shorts+4]; st.global.u32 [%rd0+28], %r4; ld.global.f64 %fd0, [wide]; cvt.rn.f32.f64 %f1, %fd0; st.global.f32 [%rd0+32], %f1;
        ld.global.u32 %r5, [rows+8]; st.global.u32 [%rd0+36], %r5; ld.global.u32 %r5, [zero+4]; st.global.u32 [%rd0+40], %r5;
        mov.u64 %rd5, number; cvta.global.u64 %rd6, %rd5; ld.u32 %r6, [%rd6]; st.global.u32 [%rd0+44], %r6;
        ld.global.u32 %r7, [counter]; add.s32 %r7, %r7, 5; st.global.u32 [counter], %r7;
        cvta.const.u64 %rd7, %rd3; ld.u32 %r8, [%rd7]; st.global.u32 [%rd0+48], %r8; ld.global.f32 %f0, [floats+8]; st.global.f32 [%rd0+52], %f0;";
    let mut program = Program::with_module(declarations, body, &[vec![0; 56]]).sized([1; 3], [1; 3]);
    for launch in 1..3u32 {
        let out = words(&program.run()[0]);
        let f = f32::to_bits;
        assert_eq!(out, [30, 10, 77, 108, 77, f(2.5), 0xffff_ffff, 0, f(3.0), 3, 0, 77, 10, f(-1.0)]);
        // A variable keeps its value from launch to launch.
        let (at, bytes) = program.module.variable("counter").unwrap();
        assert_eq!((words(&program.device.read(at, 4).unwrap()), bytes), (vec![5 * launch], 4));
    }
}

#[test]
fn strong_and_hinted_accesses_move_the_same_bytes() {
    let values = random(32, 3);
    let rows: Vec<_> = values.iter().map(|v| vec![*v]).collect();
    for load in [
        "ld.volatile.global",
        "ld.relaxed.gpu.global",
        "ld.acquire.sys.global",
        "ld.acquire.cta.global",
        "ld.weak.global",
        "ld.global.ca",
        "ld.global.cg",
        "ld.global.cs",
        "ld.global.lu",
        "ld.global.cv",
        "ld.global.nc",
        "ld.global.L1::no_allocate",
        "ld.global.L1::evict_last.L2::128B",
        "ld.global.nc.L1::no_allocate.L2::256B",
        "ld.volatile",
        "ld.mmio.relaxed.sys.global",
        "ldu.global",
        "ld.relaxed.cluster.global",
    ] {
        check(&format!("{load}.b64 $d, [%d10];"), "d:d", &rows, |x| x[0]);
    }
    for store in [
        "st.volatile.global",
        "st.relaxed.gpu.global",
        "st.release.sys.global",
        "st.release.cta",
        "st.weak.global",
        "st.global.wb",
        "st.global.cg",
        "st.global.cs",
        "st.global.wt",
        "st.mmio.relaxed.sys.global",
    ] {
        check(&format!("{store}.b64 [%d11], $a; ld.volatile.global.b64 $d, [%d11];"), "d:d", &rows, |x| x[0]);
    }
    for hint in [
        "prefetch.global.L1 [%d10];",
        "prefetch.global.L2 [%d10];",
        "prefetch.L1 [%d10];",
        "prefetch.global.L2::evict_last [%d10];",
        "prefetchu.L1 [%d10];",
        "applypriority.global.L2::evict_normal [%d10], 128;",
        "discard.global.L2 [%d11], 128;",
    ] {
        check(&format!("{hint} mov.b64 $d, $a;"), "d:d", &rows, |x| x[0]);
    }
    for fence in [
        "membar.cta;",
        "membar.gl;",
        "membar.sys;",
        "fence.sc.cta;",
        "fence.acq_rel.gpu;",
        "fence.sc.sys;",
        "fence.acq_rel.cluster;",
    ] {
        check(&format!("{fence} mov.b64 $d, $a;"), "d:d", &rows, |x| x[0]);
    }
}

/// `cp.async` in all sizes; what is not copied becomes zero.
#[test]
fn asynchronous_copies() {
    let data: Vec<u8> = (0..32 * 16).map(|i| (i % 255 + 1) as u8).collect();
    for bytes in [4usize, 8, 16] {
        for kind in if bytes == 16 { &["ca", "cg"][..] } else { &["ca"][..] } {
            for (extra, copied) in [
                (String::new(), Box::new(move |_: usize| bytes) as Box<dyn Fn(usize) -> usize>),
                (", %r5".into(), Box::new(move |lane| lane % (bytes + 1))),
                (", 0".into(), Box::new(|_| 0)),
                (", %p0".into(), Box::new(move |lane| if lane % 2 == 1 { 0 } else { bytes })),
            ] {
                for wait in ["cp.async.wait_all;", "cp.async.commit_group; cp.async.wait_group 0;"] {
                    let hint = if *kind == "cg" { ".L2::128B" } else { "" };
                    let body = format!(
                        ".shared .align 16 .b8 room[512];
                        mov.u32 %r0, %tid.x; mul.wide.u32 %rd2, %r0, 16; add.s64 %rd0, %rd0, %rd2; add.s64 %rd1, %rd1, %rd2;
                        mov.u32 %r1, room; shl.b32 %r2, %r0, 4; add.s32 %r1, %r1, %r2; rem.u32 %r5, %r0, {}; and.b32 %r6, %r0, 1; setp.eq.u32 %p0, %r6, 1;
                        mov.u32 %r7, -1; st.shared.v4.u32 [%r1], {{%r7, %r7, %r7, %r7}};
                        cp.async.{kind}.shared.global{hint} [%r1], [%rd0], {bytes}{extra}; {wait}
                        ld.shared.v4.u32 {{%r10, %r11, %r12, %r13}}, [%r1]; st.global.v4.u32 [%rd1], {{%r10, %r11, %r12, %r13}};",
                        bytes + 1
                    );
                    for delivery in
                        [ptxsim::Delivery::Eager, ptxsim::Delivery::Lazy, ptxsim::Delivery::Random(4)]
                    {
                        let mut program = Program::new(&body, &[data.clone(), vec![0; 512]]);
                        program.launch.delivery = delivery;
                        let out = program.run().swap_remove(1);
                        for lane in 0..32 {
                            let expected: Vec<u8> = (0..16)
                                .map(|i| {
                                    if i >= bytes {
                                        0xff
                                    } else if i < copied(lane) {
                                        data[16 * lane + i]
                                    } else {
                                        0
                                    }
                                })
                                .collect();
                            assert_eq!(
                                out[16 * lane..16 * lane + 16],
                                expected,
                                "{kind} {bytes}{extra} lane {lane}"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Groups complete in order: after `wait_group 1` the first of two is there, whatever the policy.
#[test]
fn copy_groups_complete_in_order() {
    let body = "
        .shared .align 16 .b8 room[1024]; mov.u32 %r0, %tid.x; mul.wide.u32 %rd2, %r0, 4; add.s64 %rd0, %rd0, %rd2; add.s64 %rd1, %rd1, %rd2;
        mov.u32 %r1, room; shl.b32 %r2, %r0, 2; add.s32 %r1, %r1, %r2;
        cp.async.ca.shared.global [%r1], [%rd0], 4; cp.async.commit_group;
        cp.async.ca.shared.global [%r1+128], [%rd0+128], 4; cp.async.commit_group;
        cp.async.wait_group 1; ld.shared.u32 %r3, [%r1]; st.global.u32 [%rd1], %r3;
        cp.async.wait_group 0; ld.shared.u32 %r3, [%r1+128]; st.global.u32 [%rd1+128], %r3;";
    let data = bytes_of((0..64).map(|i| i * 3 + 1));
    for delivery in [
        ptxsim::Delivery::Eager,
        ptxsim::Delivery::Lazy,
        ptxsim::Delivery::Random(1),
        ptxsim::Delivery::Random(2),
    ] {
        let mut program = Program::new(body, &[data.clone(), vec![0; 256]]);
        program.launch.delivery = delivery;
        assert_eq!(program.run()[1], data);
    }
}
