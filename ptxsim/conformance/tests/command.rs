//! The command, as its users see it.

use std::{
    io::Write,
    process::{Command, Output},
};

use ptxsim_conformance::{Outcome, Recording, Suite};

fn conformance(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_ptxsim-conformance")).args(arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn lists_records_and_compares() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name).to_str().unwrap().to_string();
    let (code, list, _) = conformance(&["list"]);
    assert_eq!(code, Some(0));
    assert!(list.starts_with("ex2_approx_f32:table\tscalar.cu\t81 threads"), "{list}");
    let (code, said, error) = conformance(&["record", "--device", "sim", "--out", &path("")]);
    assert_eq!((code, error.as_str()), (Some(0), ""), "{said}");
    let (code, said, error) =
        conformance(&["compare", "--against", &path(""), "--json", &path("result.json")]);
    assert_eq!((code, error.as_str()), (Some(0), ""), "{said}");
    assert!(said.contains(" 0 differ"), "{said}");
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path("result.json")).unwrap()).unwrap();
    assert_eq!(json[0]["equal"], list.lines().count());
    let (code, said, _) = conformance(&["compare", "--device", "sim"]);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn refuses_in_one_line() {
    let home = tempfile::tempdir().unwrap();
    let empty = home.path().to_str().unwrap();
    for (arguments, cause) in [
        (vec!["compare", "--against", empty], "no GPU has been recorded yet"),
        (vec!["compare", "--against", "/nowhere"], "/nowhere: "),
        (
            vec!["compare", "--against", env!("CARGO_BIN_EXE_ptxsim-conformance")],
            "not a conformance recording",
        ),
        // No machine has so many; without a driver, that is said.
        (vec!["record", "--device", "cuda:4000", "--out", empty], "cuda:4000: "),
        (vec!["record", "--device", "sim", "--out", "/dev/null/x"], "/dev/null/x"),
    ] {
        let (code, said, error) = conformance(&arguments);
        assert_eq!((code, said.as_str()), (Some(1), ""), "{arguments:?}: {error}");
        assert!(error.starts_with("error: ") && error.contains(cause), "{arguments:?}: {error}");
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    }
    for arguments in
        [vec![], vec!["compare"], vec!["record"], vec!["record", "--device", "gpu", "--out", empty]]
    {
        let (code, said, _) = conformance(&arguments);
        assert_eq!((code, said.as_str()), (Some(2), ""), "{arguments:?}");
    }
}

/// A GPU's part is played by a driver that launches nothing: all else of a recording is real.
#[test]
fn talks_to_a_driver() {
    let home = tempfile::tempdir().unwrap();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stub/driver.c");
    let library = home.path().join("libcuda.so.1");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
    if !cfg!(target_os = "linux") || compiled.is_err() {
        skipped("the stub driver's test: no C compiler named cc, or not Linux");
        return;
    }
    assert!(compiled.unwrap().success());
    let out = home.path().join("out");
    let record = |stub: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ptxsim-conformance"));
        command.env("LD_LIBRARY_PATH", home.path()).env("STUB", stub);
        let Output { status, stdout, stderr } =
            command.args(["record", "--out"]).arg(&out).args(more).output().unwrap();
        (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    };
    for (stub, more, cause) in [
        ("old", vec![], "CUDA 12.8 at most; the kernels need 13.0, so driver 580 or newer"),
        ("no_device", vec![], "CUDA_ERROR_NO_DEVICE (the stub's words)"),
        ("bad_image", vec![], "loading scalar.cu: CUDA_ERROR_UNSUPPORTED_PTX_VERSION"),
        ("fault", vec![], "case ex2_approx_f32:table on the GPU: CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("", vec!["--device", "cuda:1"], "cuda:1: there is no such GPU; the driver sees 1"),
        ("", vec!["--fatbins", "/nowhere"], "/nowhere/scalar.fatbin: "),
    ] {
        let (code, said, error) = record(stub, &more);
        assert_eq!((code, said.as_str()), (Some(1), ""), "{stub}: {error}");
        assert!(error.starts_with("error: ") && error.contains(cause), "{stub}: {error}");
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
        assert!(!out.exists(), "{stub}");
    }
    let (code, said, error) = record("", &[]);
    assert_eq!(code, Some(0), "{error}");
    let path = out.join("stub-gpu-80-gb.recording.gz");
    assert!(said.starts_with(path.to_str().unwrap()), "{said}");
    let recording = Recording::read(&path).unwrap();
    assert_eq!(recording.identity.device, "Stub GPU (80 GB)");
    assert_eq!(recording.identity.compute_capability.as_deref(), Some("8.0"));
    for case in Suite::carried().unwrap().cases {
        match recording.outcome(&case) {
            Outcome::Output(output) => assert_eq!(output, vec![0xff; case.output_bytes()], "{}", case.name),
            Outcome::NotRun(why) => assert!(case.source.target() > 80 && why.contains("sm_80"), "{why}"),
        }
    }
    let (code, said, _) = conformance(&["compare", "--against", path.to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(said.contains("34 not recorded (it needs sm_89, the GPU is sm_80)"), "{said}");
}

#[expect(clippy::explicit_write, reason = "print macros are held back while a test passes")]
fn skipped(what: &str) {
    writeln!(std::io::stderr(), "skipped: {what}").unwrap();
}
