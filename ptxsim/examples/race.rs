//! A kernel test in Rust: sums 128 numbers with the kernel of race.cu, once as it is and once with its barrier.
//!
//!     cargo run --release -p ptxsim --example race
use ptxsim::{Delivery, Device, Gpu, Kind, Launch, Module, Report, Schedule};

/// Launches `block_sum` on 0, 1, … 127; the sum that it left, and its report.
fn block_sum(ptx: &str, delivery: Delivery, schedule: Schedule) -> ptxsim::Result<(f32, Report)> {
    let mut device = Device::new(Gpu::H100);
    let module = device.load(Module::parse(ptx)?)?;
    let x = device.allocate(128 * 4)?;
    let sum = device.allocate(4)?;
    let numbers: Vec<u8> = (0..128u32).flat_map(|i| (i as f32).to_le_bytes()).collect();
    device.write(x, &numbers)?;
    let launch = Launch {
        block: [128, 1, 1],
        arguments: vec![x.into(), sum.into()],
        delivery,
        schedule,
        ..Default::default()
    };
    let report = device.launch(&module, "block_sum", &launch)?;
    let bytes = device.read(sum, 4)?;
    Ok((f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]), report))
}

/// What the example shows, as a test would have it.
pub fn check() -> ptxsim::Result<()> {
    let (sum, report) = block_sum(include_str!("race.ptx"), Delivery::Eager, Schedule::InOrder)?;
    println!("without the barrier: {sum}, {} findings, among them", report.findings.len());
    let race = report.findings.iter().find(|finding| finding.kind == Kind::Race);
    println!("{}", race.expect("the barrier is missing"));

    // A kernel is right if it is clean, and gives the same, however late its copies and in whatever order its warps come.
    for delivery in [Delivery::Eager, Delivery::Lazy, Delivery::Random(1)] {
        for schedule in [Schedule::InOrder, Schedule::Reversed, Schedule::Random(1)] {
            let (sum, report) = block_sum(include_str!("fixed.ptx"), delivery, schedule)?;
            assert_eq!(report.findings, []);
            assert_eq!(sum, 8128.0);
        }
    }
    println!("with the barrier: 8128, no findings");
    Ok(())
}

fn main() -> ptxsim::Result<()> {
    check()
}
