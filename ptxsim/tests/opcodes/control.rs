//! Special registers, branches, divergence, loops, calls.

use crate::harness::*;

#[test]
fn special_registers_in_three_dimensions() {
    let names = [
        "%tid.x",
        "%tid.y",
        "%tid.z",
        "%ntid.x",
        "%ntid.y",
        "%ntid.z",
        "%ctaid.x",
        "%ctaid.y",
        "%ctaid.z",
        "%nctaid.x",
        "%nctaid.y",
        "%nctaid.z",
        "%laneid",
        "%warpid",
        "%nwarpid",
        "%lanemask_eq",
        "%lanemask_lt",
        "%lanemask_le",
        "%lanemask_gt",
        "%lanemask_ge",
        "%dynamic_smem_size",
        "%total_smem_size",
    ];
    let (grid, block) = ([2u32, 3, 2], [5u32, 4, 3]);
    let stores: String = names
        .iter()
        .enumerate()
        .map(|(i, n)| format!("mov.u32 %r9, {n}; st.global.u32 [%rd0+{}], %r9;\n", 4 * i))
        .collect();
    let body = format!(
        "mov.u32 %r0, %ctaid.z; mad.lo.u32 %r0, %r0, 3, 0; mov.u32 %r1, %ctaid.y; add.u32 %r0, %r0, %r1; mul.lo.u32 %r0, %r0, 2; mov.u32 %r1, %ctaid.x;
        add.u32 %r0, %r0, %r1; mul.lo.u32 %r0, %r0, 60; mov.u32 %r1, %tid.z; mov.u32 %r2, %tid.y; mad.lo.u32 %r1, %r1, 4, %r2; mov.u32 %r2, %tid.x;
        mad.lo.u32 %r1, %r1, 5, %r2; add.u32 %r0, %r0, %r1; mul.wide.u32 %rd1, %r0, {}; add.s64 %rd0, %rd0, %rd1; {stores}",
        4 * names.len()
    );
    let mut program = Program::new(&body, &[vec![0; 720 * 4 * names.len()]]).sized(grid, block);
    program.launch.shared_bytes = 256;
    let out = words(&program.run()[0]);
    for (i, row) in out.chunks(names.len()).enumerate() {
        let (cta, thread) = (i as u32 / 60, i as u32 % 60);
        let lane = thread % 32;
        let below = (1u32 << lane) - 1;
        let expected = [
            thread % 5,
            thread / 5 % 4,
            thread / 20,
            5,
            4,
            3,
            cta % 2,
            cta / 2 % 3,
            cta / 6,
            2,
            3,
            2,
            lane,
            thread / 32,
            row[14],
            1 << lane,
            below,
            below | 1 << lane,
            !(below | 1 << lane),
            !below,
            256,
            row[21],
        ];
        assert_eq!(row, expected, "thread {thread} of CTA {cta}");
        assert!(row[14] >= 2 && row[21] >= 256);
    }
}

#[test]
fn clocks_rise() {
    let body = "mov.u32 %r0, %clock; mov.u64 %rd1, %clock64; add.s32 %r5, %r0, 1; mov.u32 %r1, %clock; mov.u64 %rd2, %clock64; mov.u64 %rd5, %globaltimer;
        mov.u64 %rd6, %globaltimer; st.global.u32 [%rd0], %r0; st.global.u32 [%rd0+4], %r1; st.global.u64 [%rd0+8], %rd1; st.global.u64 [%rd0+16], %rd2;
        st.global.u64 [%rd0+24], %rd5; st.global.u64 [%rd0+32], %rd6;";
    let out = doubles(&Program::new(body, &[vec![0; 40]]).sized([1; 3], [1; 3]).run()[0]);
    assert!((out[0] as u32) < (out[0] >> 32) as u32 && out[1] < out[2] && out[3] <= out[4]);
}

/// A program whose thread i writes word i, on 64 threads.
fn each(declarations: &str, body: &str, expected: impl Fn(u32) -> u32) {
    let body = format!(
        "mov.u32 %r0, %tid.x; mul.wide.u32 %rd1, %r0, 4; add.s64 %rd0, %rd0, %rd1; mov.u32 %r9, 0;\n{body}\nst.global.u32 [%rd0], %r9;"
    );
    for schedule in [ptxsim::Schedule::InOrder, ptxsim::Schedule::Reversed, ptxsim::Schedule::Random(7)] {
        let mut program =
            Program::with_module(declarations, &body, &[vec![0xff; 256]]).sized([1; 3], [64, 1, 1]);
        program.launch.schedule = schedule;
        let out = words(&program.run()[0]);
        for (thread, got) in out.iter().enumerate() {
            assert_eq!(*got, expected(thread as u32), "thread {thread} of\n{body}");
        }
    }
}

#[test]
fn predication_and_nested_divergence() {
    each("", "setp.lt.u32 %p0, %r0, 10; @%p0 mov.u32 %r9, 5; @!%p0 mov.u32 %r9, 7;", |t| {
        if t < 10 { 5 } else { 7 }
    });
    let body = "
        and.b32 %r1, %r0, 1; setp.eq.u32 %p0, %r1, 1; @%p0 bra odd;
        and.b32 %r2, %r0, 2; setp.eq.u32 %p1, %r2, 2; @%p1 bra even_two; mov.u32 %r9, 100; bra.uni join;
        even_two: mov.u32 %r9, 200; bra join;
        odd: setp.gt.u32 %p2, %r0, 20; @!%p2 bra small; mov.u32 %r9, 300; bra join;
        small: mov.u32 %r9, 400;
        join: add.s32 %r9, %r9, %r0;";
    each("", body, |t| {
        t + match (t % 2, t & 2, t > 20) {
            (0, 0, _) => 100,
            (0, ..) => 200,
            (_, _, true) => 300,
            _ => 400,
        }
    });
}

#[test]
fn loops_with_different_trip_counts() {
    // Each lane sums 0..lane, inside a loop that each lane runs lane % 3 + 1 times.
    let body = "
        rem.u32 %r1, %r0, 3; add.s32 %r1, %r1, 1;
        outer: mov.u32 %r2, 0;
        inner: setp.ge.u32 %p0, %r2, %r0; @%p0 bra done; add.s32 %r9, %r9, %r2; add.s32 %r2, %r2, 1; bra inner;
        done: add.s32 %r1, %r1, -1; setp.ne.s32 %p1, %r1, 0; @%p1 bra outer;";
    each("", body, |t| (t % 3 + 1) * (t * t.saturating_sub(1) / 2));
    // Lanes leave a loop from its middle; all meet again behind it and vote together.
    let body = "
        mov.u32 %r1, 0; loop: setp.eq.u32 %p0, %r1, %r0; @%p0 bra out; add.s32 %r1, %r1, 1; bra loop;
        out: bar.warp.sync -1; vote.sync.ballot.b32 %r2, %p0, -1; popc.b32 %r3, %r2; add.s32 %r9, %r3, %r1;";
    each("", body, |t| t + 32);
}

#[test]
fn early_exits_leave_the_others_running() {
    let body = "mov.u32 %r0, %tid.x; mul.wide.u32 %rd1, %r0, 4; add.s64 %rd0, %rd0, %rd1; and.b32 %r1, %r0, 3; setp.eq.u32 %p0, %r1, 0; @%p0 exit;
        setp.eq.u32 %p1, %r1, 1; @%p1 ret; activemask.b32 %r2; st.global.u32 [%rd0], %r2;";
    let out = words(&Program::new(body, &[vec![0; 256]]).sized([1; 3], [64, 1, 1]).run()[0]);
    for (thread, got) in out.iter().enumerate() {
        assert_eq!(*got, if thread % 4 < 2 { 0 } else { 0xcccc_cccc });
    }
}

#[test]
fn branch_tables() {
    let body = "and.b32 %r1, %r0, 3; ts: .branchtargets one, two, three, one; brx.idx %r1, ts;
        one: mov.u32 %r9, 1; bra end; two: mov.u32 %r9, 2; bra end; three: mov.u32 %r9, 3; end:";
    each("", body, |t| [1, 2, 3, 1][t as usize % 4]);
}

const FUNCTIONS: &str = "
    .func (.param .b32 result) double(.param .b32 x) { .reg .b32 %a; ld.param.b32 %a, [x]; add.s32 %a, %a, %a; st.param.b32 [result], %a; ret; }
    .func (.param .b32 result) triple(.param .b32 x) { .reg .b32 %a<3>; ld.param.b32 %a0, [x]; mul.lo.s32 %a1, %a0, 3; st.param.b32 [result], %a1; ret; }
    .func (.param .b32 result) early(.param .b32 x) { .reg .b32 %a; .reg .pred %q; ld.param.b32 %a, [x]; st.param.b32 [result], %a;
        setp.lt.u32 %q, %a, 40; @%q ret; add.s32 %a, %a, 1000; st.param.b32 [result], %a; ret; }
    .func (.param .align 8 .b8 result[16]) twist(.param .align 8 .b8 x[16]) { .reg .b64 %a<2>; ld.param.v2.b64 {%a0, %a1}, [x];
        st.param.b64 [result], %a1; st.param.b64 [result+8], %a0; ret; }
    .func nothing() { ret; }";

fn call(target: &str) -> String {
    format!(
        "{{ .param .b32 argument; .param .b32 back; st.param.b32 [argument], %r0; {target} ld.param.b32 %r9, [back]; }}"
    )
}

#[test]
fn direct_calls() {
    each(FUNCTIONS, &call("call.uni (back), double, (argument);"), |t| 2 * t);
    each(FUNCTIONS, &call("call (back), early, (argument);"), |t| if t < 40 { t } else { t + 1000 });
    // Lanes that call different functions at the same time.
    let body = format!(
        "and.b32 %r1, %r0, 1; setp.eq.u32 %p0, %r1, 1; @%p0 bra other; {} bra end; other: {} end: call nothing;",
        call("call.uni (back), double, (argument);"),
        call("call.uni (back), triple, (argument);")
    );
    each(FUNCTIONS, &body, |t| if t % 2 == 1 { 3 * t } else { 2 * t });
    let body = "{ .param .align 8 .b8 a[16]; .param .align 8 .b8 b[16]; cvt.u64.u32 %rd2, %r0; st.param.b64 [a], %rd2; mov.u64 %rd3, 500; st.param.b64 [a+8], %rd3;
        call.uni (b), twist, (a); ld.param.b64 %rd4, [b]; ld.param.b64 %rd5, [b+8]; sub.s64 %rd4, %rd4, %rd5; cvt.u32.u64 %r9, %rd4; }";
    each(FUNCTIONS, body, |t| 500 - t);
}

#[test]
fn indirect_calls() {
    // The lanes of a warp call two functions through one instruction.
    let body = "and.b32 %r1, %r0, 1; setp.eq.u32 %p0, %r1, 1; mov.u64 %rd2, double; mov.u64 %rd3, triple; selp.b64 %rd4, %rd2, %rd3, %p0;
        { .param .b32 argument; .param .b32 back; st.param.b32 [argument], %r0;
        shape: .callprototype (.param .b32 _) _ (.param .b32 _); call (back), %rd4, (argument), shape; ld.param.b32 %r9, [back]; }";
    each(FUNCTIONS, body, |t| if t % 2 == 1 { 2 * t } else { 3 * t });
    // Through a table in memory.
    let table = format!("{FUNCTIONS}\n.global .align 8 .u64 table[2] = {{triple, double}};");
    let body = "and.b32 %r1, %r0, 1; mul.wide.u32 %rd2, %r1, 8; mov.u64 %rd3, table; add.s64 %rd3, %rd3, %rd2; ld.global.u64 %rd4, [%rd3];
        { .param .b32 argument; .param .b32 back; st.param.b32 [argument], %r0;
        shape: .callprototype (.param .b32 _) _ (.param .b32 _); call (back), %rd4, (argument), shape; ld.param.b32 %r9, [back]; }";
    each(&table, body, |t| if t % 2 == 1 { 2 * t } else { 3 * t });
}

#[test]
fn recursion_is_refused_by_name() {
    let declarations = ".func (.param .b32 r) again(.param .b32 x) { .reg .b32 %a; .param .b32 p; .param .b32 q; ld.param.b32 %a, [x]; st.param.b32 [p], %a;
        call (q), again, (p); ld.param.b32 %a, [q]; st.param.b32 [r], %a; ret; }";
    let body =
        "{ .param .b32 a; .param .b32 b; st.param.b32 [a], 3; call (b), again, (a); ld.param.b32 %r0, [b]; }";
    let mut program = Program::with_module(declarations, body, &[]);
    let error = program.device.launch(&program.module, "t", &program.launch).unwrap_err().to_string();
    assert!(error.contains("recursive") && error.contains("again") && error.starts_with("line "), "{error}");
}

#[test]
fn endless_loops_stop_at_the_limit() {
    let mut program = Program::new("forever: bra forever;", &[]);
    program.launch.step_limit = 10_000;
    let error = program.device.launch(&program.module, "t", &program.launch).unwrap_err();
    assert!(matches!(error, ptxsim::Error::StepLimit { limit: 10_000, .. }), "{error}");
}

#[test]
fn waits_without_effect_on_values() {
    each(
        "",
        "nanosleep.u32 20; nanosleep.u32 %r0; griddepcontrol.wait; griddepcontrol.launch_dependents; pmevent 3; mov.u32 %r9, %r0;",
        |t| t,
    );
}
