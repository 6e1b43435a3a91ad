//! Faults that must be caught: each is planted in a kernel, and its correct twin must be clean. Under every delivery of
//! asynchronous copies and every schedule of warps, and where the values happen to come out right too.

use half::bf16;
use ptxsim::{Argument, Delivery, Device, Finding, Gpu, Kind, Launch, Module, Report, Schedule};

const DELIVERIES: [Delivery; 3] = [Delivery::Eager, Delivery::Lazy, Delivery::Random(11)];
const SCHEDULES: [Schedule; 4] =
    [Schedule::InOrder, Schedule::Reversed, Schedule::Random(1), Schedule::Random(2)];

fn ptx(name: &str) -> Module {
    let path = format!("{}/tests/ptx/{name}.ptx", env!("CARGO_MANIFEST_DIR"));
    Module::parse(&std::fs::read_to_string(path).expect(name)).expect(name)
}

/// Numbers in [−1, 1) from a small generator.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

const D: usize = 64;
const S: usize = 192;

/// Flash attention on three query tiles and three key tiles of one head: the report, the largest error of the output (NaN if
/// there is one in it), and the output's bits.
fn flash(module: &str, delivery: Delivery, schedule: Schedule) -> (Report, f64, Vec<u8>) {
    let mut device = Device::new(Gpu::A100);
    let module = device.load(ptx(module)).expect("loads");
    let inputs: Vec<Vec<f32>> = (1..4)
        .map(|seed| noise(S * D, seed).into_iter().map(|v| bf16::from_f32(v).to_f32()).collect())
        .collect();
    let mut arguments: Vec<Argument> = vec![];
    for input in &inputs {
        let buffer = device.allocate(2 * (S * D) as u64).expect("room");
        let bytes: Vec<u8> = input.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        device.write(buffer, &bytes).expect("fits");
        arguments.push(buffer.into());
    }
    let out = device.allocate(2 * (S * D) as u64).expect("room");
    let lse = device.allocate(4 * S as u64).expect("room");
    let scale = 0.125 * std::f32::consts::LOG2_E;
    arguments.extend([out.into(), lse.into(), (S as u32).into(), scale.into(), 0u32.into()]);
    let launch = Launch {
        grid: [3, 1, 1],
        block: [128, 1, 1],
        shared_bytes: 40960,
        arguments,
        delivery,
        schedule,
        ..Default::default()
    };
    let report = device.launch(&module, "flash_forward", &launch).expect("runs");
    let bytes = device.read(out, 2 * S * D).expect("is there");
    let got: Vec<f64> = bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect();
    let [q, k, v] = &inputs[..] else { unreachable!("three inputs") };
    let mut error = 0f64;
    for i in 0..S {
        let dot = |j: usize| (0..D).map(|c| f64::from(q[i * D + c]) * f64::from(k[j * D + c])).sum::<f64>();
        let weights: Vec<f64> = (0..S).map(|j| (dot(j) * 0.125).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for c in 0..D {
            let exact: f64 = (0..S).map(|j| weights[j] / sum * f64::from(v[j * D + c])).sum();
            let off = (exact - got[i * D + c]).abs();
            if off.is_nan() || off > error {
                error = off;
            }
            if error.is_nan() {
                return (report, error, bytes);
            }
        }
    }
    (report, error, bytes)
}

fn kinds(findings: &[Finding]) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = findings.iter().map(|f| f.kind).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

#[test]
fn the_correct_kernel_is_clean_and_the_same_under_every_policy() {
    let mut first: Option<(Vec<u8>, ptxsim::Counters)> = None;
    for delivery in DELIVERIES {
        for schedule in SCHEDULES {
            let (report, error, bytes) = flash("flash", delivery, schedule);
            assert_eq!(report.findings, [], "{delivery:?} {schedule:?}");
            assert!(error < 4e-3, "{delivery:?} {schedule:?}: {error}");
            assert_eq!(report.counters.matrix.wavefronts, report.counters.matrix.ideal, "no bank conflicts");
            let (bits, counters) = first.get_or_insert_with(|| (bytes.clone(), report.counters.clone()));
            assert_eq!((&bytes, &report.counters), (&*bits, &*counters), "{delivery:?} {schedule:?}");
        }
    }
}

#[test]
fn a_missing_wait_is_named_however_the_copies_arrive() {
    for module in ["flash_fault1", "flash_fault3"] {
        for schedule in SCHEDULES {
            // Eager copies hide it from the values; late ones show it as NaN.
            let (report, error, _) = flash(module, Delivery::Eager, schedule);
            assert!(error < 4e-3, "{module} {schedule:?}: {error}");
            assert!(kinds(&report.findings).contains(&Kind::MissingWait), "{module} {schedule:?}");
            let (report, error, _) = flash(module, Delivery::Lazy, schedule);
            assert!(error.is_nan(), "{module} {schedule:?}: {error}");
            let found = report.findings.iter().find(|f| f.kind == Kind::MissingWait).expect("found");
            assert!(found.message.contains("cp.async.wait"), "{found}");
        }
    }
}

#[test]
fn a_missing_barrier_is_a_race_in_either_order() {
    for module in ["flash_fault2", "flash_fault6", "flash_fault7"] {
        for delivery in DELIVERIES {
            for schedule in SCHEDULES {
                let (report, ..) = flash(module, delivery, schedule);
                let kinds = kinds(&report.findings);
                // Without the barrier, other threads' copies may also not have been waited for.
                assert!(
                    kinds.contains(&Kind::Race) || kinds.contains(&Kind::MissingWait),
                    "{module} {delivery:?} {schedule:?}: {kinds:?}"
                );
            }
        }
        // The buffer that is read while a copy fills it again is told as what it is.
        let wanted = if module == "flash_fault7" { Kind::MissingWait } else { Kind::Race };
        let (report, ..) = flash(module, Delivery::Eager, Schedule::InOrder);
        assert!(kinds(&report.findings).contains(&wanted), "{module}");
    }
}

#[test]
fn a_redundant_barrier_may_go_and_a_bank_conflict_is_no_fault() {
    for schedule in SCHEDULES {
        let (report, error, _) = flash("flash_fault4", Delivery::Lazy, schedule);
        assert_eq!(report.findings, [], "{schedule:?}");
        assert!(error < 4e-3, "{error}");
    }
    let (report, error, _) = flash("flash_fault5", Delivery::Lazy, Schedule::InOrder);
    assert_eq!(report.findings, []);
    assert!(error < 4e-3, "{error}");
    // Rows of 128 bytes without a swizzle: the eight rows of a matrix share four banks.
    assert_eq!(report.counters.matrix.wavefronts, 8 * report.counters.matrix.ideal);
}

/// `produce` and then `entry`, both programmatic; the second's findings and its output.
fn pair(entry: &str, between: Option<&str>, third_buffer: bool) -> (Vec<Finding>, Vec<u32>) {
    let mut device = Device::new(Gpu::H100);
    let module = device.load(ptx("pdl")).expect("loads");
    let mut buffer = |value: Option<u32>| {
        let at = device.allocate(256).expect("room");
        if let Some(value) = value {
            device.write(at, &value.to_le_bytes().repeat(64)).expect("fits");
        }
        at
    };
    let (x, weight, constant, out, other) =
        (buffer(None), buffer(None), buffer(Some(7)), buffer(None), buffer(None));
    let launch = |arguments: Vec<Argument>| Launch {
        grid: [2, 1, 1],
        block: [32, 1, 1],
        programmatic: true,
        arguments,
        ..Default::default()
    };
    let first = device.launch(&module, "produce", &launch(vec![x.into(), weight.into()])).expect("runs");
    assert_eq!(first.findings, []);
    if let Some(between) = between {
        let arguments = vec![constant.into(), constant.into(), other.into()];
        let report = device.launch(&module, between, &launch(arguments)).expect("runs");
        assert_eq!(report.findings, [], "it touches nothing of the first");
    }
    let second = if third_buffer { constant } else { weight };
    let report =
        device.launch(&module, entry, &launch(vec![x.into(), second.into(), out.into()])).expect("runs");
    let out = device.read(out, 256).expect("is there");
    (report.findings, out.chunks(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

#[test]
fn dependent_launches_must_wait_before_they_touch() {
    let (findings, out) = pair("consume", None, false);
    assert_eq!(findings, []);
    assert!(out.iter().zip(0..).all(|(v, i)| *v == i * 8));
    let (findings, out) = pair("consume_constant", None, true);
    assert_eq!(findings, []);
    assert!(out.iter().zip(0..).all(|(v, i)| *v == i * 3 + 7));
    // A weight that the launch before writes, prefetched before the wait; and no wait at all. The values are right.
    for entry in ["consume_early", "consume_never"] {
        let (findings, out) = pair(entry, None, false);
        assert_eq!(kinds(&findings), [Kind::Race], "{entry}");
        assert!(findings[0].message.contains("griddepcontrol.wait"), "{}", findings[0]);
        assert!(out.iter().zip(0..).all(|(v, i)| *v == i * 8));
    }
}

/// A launch that lets the next one begin before it has waited leaves those before it running, too.
#[test]
fn overlap_is_transitive() {
    for (between, races) in [("release_early", true), ("release_late", false)] {
        let (findings, _) = pair("consume_early", Some(between), false);
        assert_eq!(kinds(&findings), if races { vec![Kind::Race] } else { vec![] }, "{between}");
        assert_eq!(pair("consume", Some(between), false).0, [], "{between}");
    }
}

#[test]
fn a_launch_that_does_not_wait_leaves_those_before_it_running() {
    // The one between waits: so has all that came before it ended when the last one's wait returns.
    assert_eq!(pair("consume", Some("consume"), false).0, []);
    // It does not: the last one's wait covers it alone.
    let (findings, _) = pair("consume", Some("consume_never"), false);
    assert_eq!(kinds(&findings), [Kind::Race]);
    assert!(findings[0].message.contains("does not cover"), "{}", findings[0]);
}

#[test]
fn a_launch_in_order_waits_for_all() {
    let mut device = Device::new(Gpu::H100);
    let module = device.load(ptx("pdl")).expect("loads");
    let [x, weight, out] = [0; 3].map(|_| device.allocate(256).expect("room"));
    let mut launch =
        Launch { grid: [2, 1, 1], arguments: vec![x.into(), weight.into()], ..Default::default() };
    device.launch(&module, "produce", &launch).expect("runs");
    launch.arguments.push(out.into());
    let report = device.launch(&module, "consume_never", &launch).expect("runs");
    assert_eq!(report.findings, []);
}
