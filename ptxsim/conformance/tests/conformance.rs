//! The simulator on every case, alone and against what GPUs gave.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use ptxsim::{Schedule, numerics::matrix::Exact};
use ptxsim_conformance::{
    Outcome, Recording, Runner, SOURCES, Simulator, Suite, Summary, Verdict, compare, recordings,
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).into()
}

fn simulate(suite: &Suite, exact: Option<Exact>, schedule: Schedule) -> Recording {
    Recording::of(&mut Simulator::new(exact, schedule), suite).unwrap()
}

/// Seen although the test passes.
#[expect(clippy::explicit_write, reason = "print macros are held back while a test passes")]
fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").unwrap();
}

#[test]
fn the_simulator_runs_every_case_and_order_does_not_matter() {
    let suite = Suite::carried().unwrap();
    let reference = simulate(&suite, None, Schedule::InOrder);
    let refused: Vec<_> = suite
        .cases
        .iter()
        .filter_map(|case| match reference.outcome(case) {
            Outcome::NotRun(why) => Some(format!("{}: {why}", case.name)),
            Outcome::Output(output) => (output.len() != case.output_bytes())
                .then(|| format!("{}: {} bytes", case.name, output.len())),
        })
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for other in [
        simulate(&suite, None, Schedule::Reversed),
        simulate(&suite, None, Schedule::Random(7)),
        one_thread.install(|| simulate(&suite, None, Schedule::InOrder)),
    ] {
        assert_eq!(reference.cases, other.cases);
    }
}

#[test]
fn exact_tensor_core_arithmetic_changes_float_products_alone() {
    let suite = Suite::carried().unwrap();
    let reference = simulate(&suite, None, Schedule::InOrder);
    for exact in [Exact::Ampere, Exact::Hopper] {
        let other = simulate(&suite, Some(exact), Schedule::InOrder);
        for case in &suite.cases {
            assert!(matches!(other.outcome(case), Outcome::Output(_)), "{exact:?} {}", case.name);
            let mma = case.instruction.starts_with("mma.sync") && !case.instruction.contains(".s32.");
            assert!(mma || reference.outcome(case) == other.outcome(case), "{exact:?} {}", case.name);
        }
    }
}

#[test]
fn the_simulator_gives_what_gpus_gave() {
    let suite = Suite::carried().unwrap();
    let found = recordings(&folder().join("recorded")).unwrap();
    if found.is_empty() {
        say("conformance: no GPU has been recorded yet, so nothing here was compared with hardware");
    }
    let mut agrees = true;
    for (path, recording) in found {
        assert!(recording.identity.compute_capability.is_some(), "{}: not from a GPU", path.display());
        let got = Recording::of(&mut Simulator::like(&recording.identity), &suite).unwrap();
        let mut summary = Summary {
            expected: recording.identity.device.clone(),
            got: got.identity.code.clone(),
            ..Summary::default()
        };
        for case in &suite.cases {
            summary.add(case, &recording.outcome(case), &got.outcome(case));
        }
        say(&format!("conformance: {summary}"));
        agrees &= summary.agrees();
    }
    assert!(agrees, "the simulator differs from hardware: see the cases above");
}

#[test]
fn the_list_has_every_kernel() {
    let suite = Suite::carried().unwrap();
    let listed: BTreeSet<_> = suite.cases.iter().map(|c| (c.source.name, c.entry.as_str())).collect();
    let mut kernels = BTreeSet::new();
    for source in &SOURCES {
        assert!(folder().join(source.name).is_file(), "{}", source.name);
        assert!(matches!(source.target(), 80 | 89 | 90), "{} {}", source.name, source.target());
        let entries = source.ptx.split(".entry ").skip(1).filter_map(|text| text.split('(').next());
        kernels.extend(entries.map(|entry| (source.name, entry)));
    }
    assert_eq!(listed, kernels);
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let files: BTreeSet<_> = files.filter(|p| p.extension().is_some_and(|e| e == "cu")).collect();
    assert_eq!(files, SOURCES.iter().map(|s| folder().join(s.name)).collect());
    let fingerprints: BTreeSet<_> = suite.cases.iter().map(|c| (&c.entry, c.fingerprint())).collect();
    assert_eq!(fingerprints.len(), suite.cases.len());
}

/// The first output of a case on the simulator, with one element changed.
fn with_element(name: &str, element: usize, change: impl Fn(u32) -> u32) -> Verdict {
    let suite = Suite::carried().unwrap();
    let case = suite.cases.iter().find(|c| c.name == name).unwrap();
    let outcome = Simulator::new(None, Schedule::InOrder).run(case).unwrap();
    let Outcome::Output(mut output) = outcome.clone() else { panic!("{outcome:?}") };
    let bytes = &mut output[element * 4..][..4];
    let value = u32::from_le_bytes(bytes.try_into().unwrap());
    bytes.copy_from_slice(&change(value).to_le_bytes());
    compare(case, &outcome, &Outcome::Output(output))
}

#[test]
fn a_difference_names_the_element_and_its_inputs() {
    let verdict = with_element("add_f32:cross", 20, |v| v ^ 1);
    let Verdict::Differs(difference) = verdict else { panic!("{verdict:?}") };
    // Tuple 20 of 18 × 18: −0 + the smallest subnormal number.
    assert_eq!((difference.element, difference.differing, difference.elements), (20, 1, 324));
    assert_eq!(difference.operands, ["80000000", "00000001"]);
    assert_eq!((difference.expected.as_str(), difference.got.as_str()), ("00000001", "00000000"));
    assert!(difference.to_string().contains("add.f32"), "{difference}");
}

#[test]
fn only_approximations_may_differ_and_only_a_little() {
    // Element 40 of the table is 5.0 or 100.0 or like; its results are normal numbers.
    assert_eq!(with_element("rcp_approx_f32:table", 40, |v| v + 1), Verdict::Within(1));
    assert!(matches!(with_element("rcp_approx_f32:table", 40, |v| v + 4), Verdict::Differs(_)));
    assert!(matches!(with_element("rcp_rn_f32:table", 40, |v| v + 1), Verdict::Differs(_)));
    // 1 / 0 is infinite, 1 / NaN is NaN: nothing is near those.
    assert!(matches!(with_element("rcp_approx_f32:table", 0, |v| v - 1), Verdict::Differs(_)));
    assert!(matches!(with_element("rcp_approx_f32:table", 64, |v| v - 1), Verdict::Differs(_)));
    assert_eq!(with_element("sin_approx_f32:table", 23, |v| v + 8), Verdict::Within(1));
    assert!(matches!(with_element("sin_approx_f32:table", 23, |v| v + 80), Verdict::Differs(_)));
}

#[test]
fn a_recording_reads_back_and_damage_is_named() {
    let suite = Suite::carried().unwrap();
    let mut recording = simulate(&suite, None, Schedule::InOrder);
    recording.cases.get_mut("stmatrix_x1").unwrap().outcome = Outcome::NotRun("it needs sm_90".into());
    let home = tempfile::tempdir().unwrap();
    let path = recording.write(&suite, &home.path().join("new")).unwrap();
    assert_eq!(Recording::read(&path).unwrap(), recording);
    let bytes = fs::read(&path).unwrap();
    assert!(bytes.len() < 2 << 20, "{} bytes", bytes.len());
    assert_eq!(fs::read_dir(home.path().join("new")).unwrap().count(), 1);
    for length in [0, 1, 10, 1000, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        let error = Recording::read(&path).unwrap_err().to_string();
        assert!(error.contains("damaged"), "{length}: {error}");
    }
    for at in [0, 3, 500, bytes.len() / 2] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0xff;
        fs::write(&path, damaged).unwrap();
        // A flag of gzip's header may change without harm; everything else is an error.
        assert!(Recording::read(&path).is_err() || at < 10, "{at}");
    }
    let case = &suite.cases[0];
    recording.cases.get_mut(&case.name).unwrap().fingerprint ^= 1;
    assert_eq!(recording.outcome(case), Outcome::NotRun("changed since the recording".into()));
    recording.cases.remove(&case.name);
    assert_eq!(recording.outcome(case), Outcome::NotRun("added since the recording".into()));
}

#[test]
fn a_broken_list_is_named() {
    let list = |input: &str, n: &str| {
        format!(
            r#"{{"tables": {{"t": {{"bits": 32, "values": ["0", "ff"]}}}}, "cases": [{{"case": "c", "source": "scalar.cu",
            "entry": "abs_f32", "n": {n}, "in": [{input}], "out": {{"bits": 32, "count": 4}}}}]}}"#
        )
    };
    Suite::parse(&list(r#"{"table": "t", "count": 4}"#, "4")).unwrap();
    for (input, n, cause) in [
        (r#"{"table": "u", "count": 4}"#, "4", "no table"),
        (r#"{"table": "t", "count": 99999999999}"#, "4", "more than"),
        (r#"{"table": "t", "count": 4}"#, "0", "threads"),
        (r#"{"cross": "t", "arity": 63}"#, "4", "too many tuples"),
        (r#"{"cross": "t", "arity": 4294967295}"#, "4", "too many tuples"),
        (r#"{"values": 33, "hex": ["0"], "count": 4}"#, "4", "33 bits"),
        (r#"{"values": 8, "hex": ["100"], "count": 4}"#, "4", "more than 8 bits"),
        (r#"{"values": 8, "hex": [], "count": 4}"#, "4", "no values"),
        (r#"{"values": 8, "hex": ["0"], "count": 3}"#, "4", "3 bytes of input"),
        (r#"{"bits": 0, "seed": 1, "count": 3}"#, "4", "0 bits"),
        (r#"{"float": "f32", "exponents": [5, 4], "seed": 1, "count": 4}"#, "4", "exponents"),
        (
            r#"{"float": "f32", "exponents": [-2147483648, 2147483647], "seed": 1, "count": 4}"#,
            "4",
            "exponents",
        ),
        (r#"{"word": 3}"#, "4", "did not match"),
        ("", "4", "0 bytes of input"),
    ] {
        let error = Suite::parse(&list(input, n)).unwrap_err().to_string();
        assert!(error.contains(cause), "{input}: {error}");
    }
    let error = Suite::parse(&list("", "1").replace("abs_f32", "abs_f3")).unwrap_err().to_string();
    assert!(error.contains("no entry"), "{error}");
}
