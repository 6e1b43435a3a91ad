//! How fast kernels are simulated, on one thread: `cargo bench -p ptxsim --bench speed`.
//!
//! `loop` is integer and f32 arithmetic, in warp instructions a second; `flash` is the attention of tests/cuda/flash.cu for one
//! head of 128 tokens and 64 dimensions, in time. Both run without the checks and with all of them.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ptxsim::{
    Device, Gpu, Launch, Loaded, Module, Report,
    param::{Inputs, Param},
};

const LOOP: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry loop(.param .u64 out, .param .u32 turns) {
    .reg .b32 %r<8>;
    .reg .b64 %rd<4>;
    .reg .f32 %f<4>;
    .reg .pred %p<2>;
    ld.param.u64 %rd1, [out];
    ld.param.u32 %r1, [turns];
    mov.u32 %r2, %tid.x;
    mov.u32 %r3, 0;
    cvt.rn.f32.u32 %f1, %r2;
    mov.f32 %f2, 0f3F800000;
    mov.u32 %r4, %r2;
again:
    mad.lo.s32 %r4, %r4, 1664525, 1013904223;
    shr.u32 %r5, %r4, 9;
    xor.b32 %r6, %r5, %r4;
    and.b32 %r6, %r6, 1023;
    add.s32 %r4, %r4, %r6;
    fma.rn.f32 %f1, %f1, %f2, 0f3F000000;
    mul.f32 %f3, %f1, 0f3F7FFFFF;
    add.f32 %f1, %f3, 0fBF000000;
    add.s32 %r3, %r3, 1;
    setp.lt.u32 %p1, %r3, %r1;
    @%p1 bra again;
    cvt.rzi.u32.f32 %r5, %f1;
    add.s32 %r4, %r4, %r5;
    mul.wide.u32 %rd2, %r2, 4;
    add.s64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r4;
    ret;
}";

/// A kernel on a device, ready to be launched again and again.
struct Case {
    device: Device,
    module: Loaded,
    entry: &'static str,
    launch: Launch,
}

impl Case {
    fn new(text: &str, entry: &'static str, params: &[&str], launch: Launch) -> Self {
        let params: Vec<Param> = params.iter().map(|p| p.parse().expect(p)).collect();
        let mut device = Device::new(Gpu::H100);
        let module = device.load(Module::parse(text).expect("PTX")).expect("memory");
        let inputs = Inputs::load(&params, 1 << 28).expect("parameters");
        let arguments = inputs.place(&mut device).expect("memory").arguments;
        Case { device, module, entry, launch: Launch { arguments, ..launch } }
    }

    fn run(&mut self, checked: bool) -> Report {
        self.launch.checked = checked;
        let report = self.device.launch(&self.module, self.entry, &self.launch).expect("a launch");
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        report
    }
}

fn speed(c: &mut Criterion) {
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().expect("a pool");
    let launch = Launch { block: [128, 1, 1], ..Default::default() };
    let integer = Case::new(LOOP, "loop", &["buf:u32:128", "u32:2000"], launch);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ptx/flash.ptx");
    let flash = std::fs::read_to_string(path).expect("flash.ptx");
    let params = [
        "buf:bf16:8192=random:1",
        "buf:bf16:8192=random:2",
        "buf:bf16:8192=random:3",
        "buf:bf16:8192",
        "buf:f32:128",
        "u32:128",
        "f32:0.18033688",
        "u32:0",
    ];
    let launch = Launch { grid: [2, 1, 1], block: [128, 1, 1], shared_bytes: 40960, ..Default::default() };
    let flash = Case::new(&flash, "flash_forward", &params, launch);
    for (name, mut case) in [("loop", integer), ("flash", flash)] {
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(case.run(true).counters.instructions));
        for (kind, checked) in [("unchecked", false), ("checked", true)] {
            group.bench_function(kind, |bencher| bencher.iter(|| case.run(checked)));
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(3));
    targets = speed
}
criterion_main!(benches);
