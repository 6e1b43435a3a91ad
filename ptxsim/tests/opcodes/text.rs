//! What a kernel tells the outside: printf, assert, trap, and the conditions of graph nodes.

use crate::harness::*;

const VPRINTF: &str = ".extern .func (.param .b32 r) vprintf(.param .b64 f, .param .b64 a);";

/// Prints `format` with arguments given as (bytes, value), and returns the text.
fn print(format: &str, arguments: &[(u64, u64)], strings: &[&str]) -> String {
    let bytes = |text: &str| text.bytes().chain([0]).map(|b| b.to_string()).collect::<Vec<_>>().join(", ");
    let mut declarations =
        format!("{VPRINTF}\n.global .align 1 .b8 format[{}] = {{{}}};\n", format.len() + 1, bytes(format));
    for (i, text) in strings.iter().enumerate() {
        declarations += &format!(".global .align 1 .b8 s{i}[{}] = {{{}}};\n", text.len() + 1, bytes(text));
    }
    let mut body =
        String::from(".local .align 8 .b8 depot[64]; mov.u64 %rd1, depot; cvta.local.u64 %rd2, %rd1;\n");
    let mut at = 0u64;
    for (i, (size, value)) in arguments.iter().enumerate() {
        at = at.next_multiple_of(*size);
        if *size == 8 && (*value as usize) < strings.len() && !strings.is_empty() {
            body += &format!(
                "mov.u64 %rd{}, s{value}; cvta.global.u64 %rd{0}, %rd{0}; st.local.u64 [%rd1+{at}], %rd{0};\n",
                10 + i
            );
        } else {
            body += &format!("mov.b64 %rd9, {value}; st.local.b{} [%rd1+{at}], %rd9;\n", 8 * size);
        }
        at += size;
    }
    body += "mov.u64 %rd3, format; cvta.global.u64 %rd4, %rd3;
        { .param .b64 a; .param .b64 b; .param .b32 r; st.param.b64 [a], %rd4; st.param.b64 [b], %rd2; call.uni (r), vprintf, (a, b); ld.param.b32 %r1, [r]; }";
    let mut program = Program::with_module(&declarations, &body, &[]).sized([1; 3], [1; 3]);
    let report = program.report();
    assert!(report.findings.is_empty(), "{}", report.findings[0]);
    report.output
}

#[test]
fn printf_formats() {
    let f = |x: f64| (8, x.to_bits());
    assert_eq!(print("plain 100%%\n", &[], &[]), "plain 100%\n");
    assert_eq!(
        print("%d|%5d|%-5d|%05d|%+d", &[(4, 7), (4, 7), (4, 7), (4, 7), (4, 7)], &[]),
        "7|    7|7    |00007|+7"
    );
    assert_eq!(
        print("%d %i %u", &[(4, 0xffff_ffff), (4, 0x8000_0000), (4, 0xffff_ffff)], &[]),
        "-1 -2147483648 4294967295"
    );
    assert_eq!(
        print("%x %X %#x %o %08x", &[(4, 0xbeef), (4, 0xbeef), (4, 255), (4, 8), (4, 0xabc)], &[]),
        "beef BEEF 0xff 10 00000abc"
    );
    assert_eq!(
        print("%lld %llu %lx", &[(8, u64::MAX), (8, u64::MAX), (8, 1 << 40)], &[]),
        "-1 18446744073709551615 10000000000"
    );
    assert_eq!(
        print("%f|%.2f|%8.3f|%-8.1f|%+.0f", &[f(1.5), f(2.345), f(-1.25), f(9.96), f(3.0)], &[]),
        "1.500000|2.35|  -1.250|10.0    |+3"
    );
    assert_eq!(
        print("%e|%.1e|%g|%g|%g", &[f(12345.678), f(0.00051), f(0.0001), f(1e10), f(100_000.0)], &[]),
        "1.234568e+04|5.1e-04|0.0001|1e+10|100000"
    );
    assert_eq!(
        print("%f %f %f", &[f(f64::INFINITY), f(f64::NEG_INFINITY), f(f64::NAN)], &[]),
        "inf -inf nan"
    );
    assert_eq!(
        print("%c%c%5s|%-6s|%.2s", &[(4, 65), (4, 66), (8, 0), (8, 1), (8, 0)], &["abc", "xy"]),
        "AB  abc|xy    |ab"
    );
    assert_eq!(print("%*d|%.*f", &[(4, 6), (4, 42), (4, 1), f(2.25)], &[]), "    42|2.2");
    // An int before a double leaves a hole for alignment.
    assert_eq!(print("%d %f %d", &[(4, 1), f(0.5), (4, 2)], &[]), "1 0.500000 2");
}

#[test]
fn assertions_name_their_place() {
    let declarations = r#".extern .func __assertfail(.param .b64 m, .param .b64 f, .param .b32 l, .param .b64 n, .param .b64 s);
        .global .align 1 .b8 m[6] = {120, 32, 60, 32, 53, 0}; .global .align 1 .b8 f[5] = {97, 46, 99, 117, 0}; .global .align 1 .b8 n[2] = {107, 0};"#;
    let body = "mov.u32 %r0, %tid.x; setp.lt.u32 %p0, %r0, 5; @%p0 bra fine; mov.u64 %rd1, m; cvta.global.u64 %rd1, %rd1; mov.u64 %rd2, f; cvta.global.u64 %rd2, %rd2;
        mov.u64 %rd3, n; cvta.global.u64 %rd3, %rd3; { .param .b64 a; .param .b64 b; .param .b32 c; .param .b64 d; .param .b64 e; st.param.b64 [a], %rd1; st.param.b64 [b], %rd2;
        st.param.b32 [c], 17; st.param.b64 [d], %rd3; st.param.b64 [e], 1; call.uni __assertfail, (a, b, c, d, e); } fine:";
    let report = Program::with_module(declarations, body, &[]).report();
    let finding = &report.findings[0];
    assert_eq!((finding.kind, report.findings.len()), (ptxsim::Kind::Assertion, 1));
    for part in ["a.cu:17", "k", "x < 5", "lane 5"] {
        assert!(finding.message.contains(part), "{finding}");
    }
    let report = Program::new("mov.u32 %r0, %tid.x; setp.eq.u32 %p0, %r0, 40; @%p0 trap;", &[])
        .sized([1; 3], [64, 1, 1])
        .report();
    assert!(
        report.findings.len() == 1 && report.findings[0].kind == ptxsim::Kind::Assertion,
        "{:?}",
        report.findings
    );
}

#[test]
fn conditions_of_graph_nodes() {
    let declarations = ".extern .func cudaGraphSetConditional(.param .b64 h, .param .b32 v);";
    let body = "mov.u32 %r0, %tid.x; setp.gt.u32 %p0, %r0, 1; @%p0 exit; { .param .b64 a; .param .b32 b; st.param.b64 [a], 99; st.param.b32 [b], %r0;
        call.uni cudaGraphSetConditional, (a, b); }";
    assert_eq!(Program::with_module(declarations, body, &[]).report().conditions, [(99, 0), (99, 1)]);
}
