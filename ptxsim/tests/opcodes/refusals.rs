//! What is not run is refused by name and line, never skipped.

use ptxsim::{Device, Error, Gpu, Launch, Module};

use crate::harness::HEADER;

/// The error that a kernel with this one instruction, on line 7, ends in.
fn refused(instruction: &str) -> Error {
    let text = format!(
        "{HEADER}.global .texref texture;\n.visible .entry t()\n{{ .reg .b32 %r<90>; .reg .b64 %rd<9>; .reg .f32 %f<90>; .reg .pred %p<5>; .reg .b16 %h<5>; .reg .b128 %q<2>;\n{instruction}\nret; }}\n"
    )
    .replace(".global .texref texture;", if instruction.starts_with("tex") { ".global .texref texture;" } else { "" })
    .replace(" .reg .b128 %q<2>;", if instruction.contains("%q") { " .reg .b128 %q<2>;" } else { "" });
    let mut device = Device::with_memory(Gpu::H100, 1 << 20);
    let loaded = match Module::parse(&text).and_then(|module| device.load(module)) {
        Ok(loaded) => loaded,
        Err(error) => return error,
    };
    device.launch(&loaded, "t", &Launch::default()).expect_err(instruction)
}

#[test]
fn hopper_and_graphics_opcodes() {
    let list = [
        "mbarrier.init.shared::cta.b64 [%rd0], 1;",
        "mbarrier.arrive.shared::cta.b64 %rd1, [%rd0];",
        "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%rd0], 16;",
        "mbarrier.try_wait.parity.shared::cta.b64 %p0, [%rd0], %r0;",
        "mbarrier.test_wait.shared::cta.b64 %p0, [%rd0], %rd1;",
        "mbarrier.inval.shared::cta.b64 [%rd0];",
        "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%rd0];",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%rd0], [%rd1], 16, [%rd2];",
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%rd0], [%rd1, {%r0, %r1}], [%rd2];",
        "cp.async.bulk.commit_group;",
        "cp.async.bulk.wait_group 0;",
        "cp.async.bulk.wait_group.read 0;",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%rd0], [%rd1], 16;",
        "cp.async.bulk.prefetch.L2.global [%rd0], 16;",
        "wgmma.fence.sync.aligned;",
        "wgmma.commit_group.sync.aligned;",
        "wgmma.wait_group.sync.aligned 0;",
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0, %f1, %f2, %f3}, %rd0, %rd1, %p0, 1, 1, 0, 0;",
        "setmaxnreg.inc.sync.aligned.u32 240;",
        "setmaxnreg.dec.sync.aligned.u32 40;",
        "mapa.shared::cluster.u32 %r0, %r1, %r2;",
        "mapa.u64 %rd0, %rd1, %r2;",
        "getctarank.shared::cluster.u32 %r0, %r1;",
        "barrier.cluster.arrive.release.aligned;",
        "barrier.cluster.wait.acquire.aligned;",
        "fence.proxy.async;",
        "fence.proxy.async.shared::cta;",
        "fence.proxy.tensormap::generic.acquire.gpu [%rd0], 128;",
        "fence.mbarrier_init.release.cluster;",
        "tensormap.replace.tile.global_address.global.b1024.b64 [%rd0], %rd1;",
        "prefetch.tensormap [%rd0];",
        "ld.shared::cluster.u32 %r0, [%rd0];",
        "st.shared::cluster.u32 [%rd0], %r0;",
        "atom.shared::cluster.add.u32 %r0, [%rd0], %r1;",
        "isspacep.shared::cluster %p0, %rd0;",
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%rd0], %r0, [%rd1];",
        "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%rd0], %r0, [%rd1];",
        "multimem.ld_reduce.relaxed.sys.global.add.f32 %f0, [%rd0];",
        "multimem.st.relaxed.sys.global.f32 [%rd0], %f0;",
        "multimem.red.relaxed.sys.global.add.f32 [%rd0], %f0;",
        "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%rd0], 32;",
        "tcgen05.mma.cta_group::1.kind::f16 [%r0], %rd0, %rd1, %r1, %p0;",
        "clusterlaunchcontrol.try_cancel.async.shared::cta.mbarrier::complete_tx::bytes.b128 [%rd0], [%rd1];",
        "wmma.load.a.sync.aligned.row.m16n16k16.f16 {%r0, %r1, %r2, %r3, %r4, %r5, %r6, %r7}, [%rd0];",
        "wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {%f0}, {%r0}, {%r1}, {%f1};",
        "tex.2d.v4.f32.f32 {%f0, %f1, %f2, %f3}, [texture, {%f4, %f5}];",
        "tld4.r.2d.v4.f32.f32 {%f0, %f1, %f2, %f3}, [%rd0, {%f4, %f5}];",
        "txq.width.b32 %r0, [%rd0];",
        "suld.b.2d.b32.trap %r0, [%rd0, {%r1, %r2}];",
        "sust.b.2d.b32.trap [%rd0, {%r1, %r2}], %r0;",
        "sured.b.add.2d.u32.trap [%rd0, {%r1, %r2}], %r0;",
        "suq.width.b32 %r0, [%rd0];",
        "mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%f0, %f1, %f2, %f3}, {%r0, %r1, %r2, %r3}, {%r4, %r5, %r6, %r7}, {%f4, %f5, %f6, %f7}, %r8, 0;",
        "mma.sync.aligned.m8n8k128.row.col.s32.b1.b1.s32.xor.popc {%r0, %r1}, {%r2}, {%r3}, {%r4, %r5};",
        "vadd.s32.s32.s32 %r0, %r1, %r2;",
        "vote.ballot.b32 %r0, %p0;",
        "shfl.up.b32 %r0, %r1, 1, 0;",
        "alloca.u64 %rd0, 16;",
        "stacksave.u64 %rd0;",
        "nonesuch.u32 %r0, %r1;",
    ];
    let mut bad = vec![];
    for instruction in list {
        let name = instruction.split([' ', ';']).next().unwrap();
        let head = name.split('.').next().unwrap();
        let error = refused(instruction);
        let told = match &error {
            Error::Unsupported { line, what, .. } => *line == 7 && what.contains(name),
            // A texture reference is refused where it is declared.
            _ if head == "tex" => error.to_string().contains("texref"),
            _ => false,
        };
        if !told {
            bad.push(format!("{instruction} {error}"));
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// A modifier that means nothing here is not passed over.
#[test]
fn forms_that_do_not_exist() {
    for instruction in [
        "add.sat.u32 %r0, %r1, %r2;",
        "add.rn.s32 %r0, %r1, %r2;",
        "mul.u32 %r0, %r1, %r2;",
        "mul.lo.wide.u32 %r0, %r1, %r2;",
        "cvt.f32.s32 %f0, %r0;",
        "cvt.s32.f32 %r0, %f0;",
        "fma.f32 %f0, %f1, %f2, %f3;",
        "div.f32 %f0, %f1, %f2;",
        "ex2.f32 %f0, %f1;",
        "setp.foo.s32 %p0, %r0, %r1;",
        "atom.global.add.b32 %r0, [%rd0], %r1;",
        "ld.global.v3.u32 {%r0, %r1, %r2}, [%rd0];",
        "bar.foo 0;",
        "mov.b128 %q0, {%rd0, %rd1};",
        "mma.sync.aligned.m16n8k16.row.row.f32.f16.f16.f32 {%f0, %f1, %f2, %f3}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%f4, %f5, %f6, %f7};",
        "ldmatrix.sync.aligned.m8n8.x3.shared.b16 {%r0, %r1, %r2}, [%rd0];",
        "min.sat.f32 %f0, %f1, %f2;",
        "lop3.b64 %rd0, %rd1, %rd2, %rd3, 7;",
    ] {
        let error = refused(instruction);
        let line = match &error {
            Error::Unsupported { line, .. } | Error::Syntax { line, .. } => *line,
            other => panic!("{instruction} {other}"),
        };
        assert!(line == 7 || instruction.contains("%q") && line == 6, "{instruction} {error}");
    }
}
