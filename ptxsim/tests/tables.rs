//! Every kernel of tests/cuda as the tables there launch it: from the PTX that is kept, and compiled afresh where there is
//! an nvcc.

use std::path::{Path, PathBuf};

use ptxsim::{
    Delivery, Device, Gpu, Launch, Module, Schedule,
    param::{Inputs, Param},
};

fn text(path: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/{path}", env!("CARGO_MANIFEST_DIR"))).expect(path)
}

/// The folder of the PTX that is kept.
fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ptx")
}

fn sizes(text: &str) -> [u32; 3] {
    let mut out = [1; 3];
    for (out, n) in out.iter_mut().zip(text.split(',')) {
        *out = n.trim().parse().unwrap();
    }
    out
}

fn run(
    ptx: &Path,
    module: &str,
    entry: &str,
    fields: &[&str],
    delivery: Delivery,
    schedule: Schedule,
) -> Result<Vec<ptxsim::Finding>, String> {
    let mut device = Device::new(Gpu::H100);
    let text =
        std::fs::read_to_string(ptx.join(format!("{module}.ptx"))).map_err(|e| format!("{module}: {e}"))?;
    let module = Module::parse(&text).map_err(|e| format!("{module}: {e}"))?;
    let module = device.load(module).map_err(|e| e.to_string())?;
    let params: Result<Vec<Param>, _> = fields[3].split_whitespace().map(str::parse).collect();
    let inputs = Inputs::load(&params.map_err(|e| e.to_string())?, 1 << 28).map_err(|e| e.to_string())?;
    let arguments = inputs.place(&mut device).map_err(|e| e.to_string())?.arguments;
    let launch = Launch {
        grid: sizes(fields[0]),
        block: sizes(fields[1]),
        shared_bytes: fields[2].trim().parse().unwrap(),
        arguments,
        delivery,
        schedule,
        step_limit: 20_000_000,
        ..Default::default()
    };
    device.launch(&module, entry, &launch).map(|r| r.findings).map_err(|e| e.to_string())
}

const POLICIES: [(Delivery, Schedule); 4] = [
    (Delivery::Eager, Schedule::InOrder),
    (Delivery::Lazy, Schedule::Reversed),
    (Delivery::Random(1), Schedule::Random(2)),
    (Delivery::Random(3), Schedule::InOrder),
];

fn kernels_are_clean(ptx: &Path) {
    let mut bad = vec![];
    for line in text("cuda/kernels.txt").lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty()) {
        let f: Vec<&str> = line.split('|').map(str::trim).collect();
        for (delivery, schedule) in POLICIES {
            match run(ptx, f[0], f[1], &f[2..], delivery, schedule) {
                Ok(findings) if findings.is_empty() => {}
                Ok(findings) => {
                    bad.push(format!("{} {} {delivery:?} {schedule:?}: {}", f[0], f[1], findings[0]))
                }
                Err(error) => bad.push(format!("{} {}: {error}", f[0], f[1])),
            }
        }
    }
    assert!(bad.is_empty(), "{} bad:\n{}", bad.len(), bad.join("\n"));
}

fn faults_are_found(ptx: &Path) {
    let source = text("cuda/faults.cu");
    let lines: Vec<&str> = source.lines().collect();
    let mut bad = vec![];
    for line in text("cuda/faults.txt").lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty()) {
        let f: Vec<&str> = line.split('|').map(str::trim).collect();
        for (delivery, schedule) in POLICIES {
            match run(ptx, "faults", f[0], &f[2..], delivery, schedule) {
                Err(error) => bad.push(format!("{}: {error}", f[0])),
                Ok(findings) if f[1] == "clean" => {
                    if let Some(finding) = findings.first() {
                        bad.push(format!("{} {delivery:?} {schedule:?}: {finding}", f[0]));
                    }
                }
                Ok(findings) => {
                    let found = findings.iter().find(|x| x.kind.name() == f[1]);
                    match found {
                        None => bad
                            .push(format!("{} {delivery:?} {schedule:?}: no {} in {findings:?}", f[0], f[1])),
                        Some(x) if !lines[x.line as usize - 1].contains("// fault") => {
                            bad.push(format!("{}: wrong line: {x}", f[0]))
                        }
                        Some(_) => {}
                    }
                }
            }
        }
    }
    assert!(bad.is_empty(), "{} bad:\n{}", bad.len(), bad.join("\n"));
}

#[test]
fn kept_kernels_are_clean() {
    kernels_are_clean(&kept());
}

#[test]
fn planted_faults_are_found() {
    faults_are_found(&kept());
}

/// The kept PTX may lag behind its sources, and another nvcc writes other instructions.
#[test]
fn kernels_compiled_afresh_behave_alike() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let found = std::process::Command::new(root.join("scripts/find-nvcc")).output().expect("runs");
    if !found.status.success() {
        println!("skipped: {}", String::from_utf8_lossy(&found.stderr).trim());
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let build = std::process::Command::new(root.join("ptxsim/tests/cuda/build"))
        .arg(folder.path())
        .output()
        .expect("runs");
    assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    kernels_are_clean(folder.path());
    faults_are_found(folder.path());
}
