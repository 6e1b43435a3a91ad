//! Results, findings and counters are the same for any number of threads, also where a kernel has races.

use ptxsim::{
    Delivery, Device, Gpu, Launch, Module, Report, Schedule,
    param::{Inputs, Param},
};

/// The report, and the bytes of every buffer.
fn run(
    module: &str,
    entry: &str,
    grid: u32,
    block: u32,
    shared: u32,
    params: &str,
) -> (Report, Vec<Vec<u8>>) {
    let path = format!("{}/tests/ptx/{module}.ptx", env!("CARGO_MANIFEST_DIR"));
    let mut device = Device::new(Gpu::A100);
    let text = std::fs::read_to_string(path).expect(module);
    let module = device.load(Module::parse(&text).expect("parses")).expect("loads");
    let params: Vec<Param> = params.split_whitespace().map(|p| p.parse().expect(p)).collect();
    let placed = Inputs::load(&params, 1 << 24).expect("loads").place(&mut device).expect("fits");
    let launch = Launch {
        grid: [grid, 1, 1],
        block: [block, 1, 1],
        shared_bytes: shared,
        arguments: placed.arguments.clone(),
        delivery: Delivery::Random(5),
        schedule: Schedule::Random(6),
        ..Default::default()
    };
    let report = device.launch(&module, entry, &launch).expect("runs");
    let buffers = placed
        .arguments
        .iter()
        .filter_map(|argument| Some(u64::from_le_bytes(argument.0.as_slice().try_into().ok()?)))
        .filter_map(|address| device.read(address, 128).ok())
        .collect();
    (report, buffers)
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let flash = "buf:bf16:16384=random:1 buf:bf16:16384=random:2 buf:bf16:16384=random:3 buf:bf16:16384 buf:f32:256 \
                 u32:256 f32:0.18 u32:1";
    let adamw = "buf:bf16:1000=random:1 buf:f32:1000=random:2 buf:f32:1000=fill:0 buf:f32:1000=fill:0 \
                 buf:u32:64=fill:0 buf:f64:1=fill:0 u32:1000 f32:0.001 f32:0.9 f32:0.999 f32:0.00000001 f32:0.1 u32:1";
    let cases = [
        ("flash", "flash_forward", 4, 128, 40960, flash),
        ("adamw", "adamw", 4, 256, 0, adamw),
        // More CTAs than a wave, all racing for one word.
        ("faults", "race_global_write", 150, 32, 0, "buf:u32:32=fill:0"),
        ("faults", "race_global_read", 150, 1, 0, "buf:u32:150=fill:0 buf:u32:150=fill:0"),
    ];
    for (module, entry, grid, block, shared, params) in cases {
        let mut first: Option<(Report, Vec<Vec<u8>>)> = None;
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let (report, buffers) = pool.install(|| run(module, entry, grid, block, shared, params));
            let Some((one, bytes)) = &first else {
                assert_eq!(report.findings.is_empty(), module != "faults", "{entry}: {:?}", report.findings);
                assert!(!buffers.is_empty());
                first = Some((report, buffers));
                continue;
            };
            assert_eq!(&buffers, bytes, "{entry} on {threads} threads");
            assert_eq!(report.findings, one.findings, "{entry} on {threads} threads");
            assert_eq!(report.counters, one.counters, "{entry} on {threads} threads");
        }
    }
}
