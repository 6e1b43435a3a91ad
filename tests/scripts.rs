//! The scripts for a GPU, by running them beside stand-ins for the tools that they call: what is called, how it is read, what is said when
//! something is missing. No real capture is made here.
#![cfg(unix)]

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

/// A folder of stand-ins, alone on the PATH beside the system's own tools.
struct Tools {
    folder: TempDir,
}

impl Tools {
    /// None, with a line, where there is no Python, which half of the scripts are written in.
    fn new() -> Option<Tools> {
        let tools = Tools { folder: tempfile::tempdir().unwrap() };
        // By their paths: what they are may go by how they are called.
        let python = "import sys; print(sys.executable)";
        let Ok(found) = Command::new("python3").args(["-c", python]).output() else {
            let _ = writeln!(std::io::stderr(), "skipped: the scripts for a GPU: no python3");
            return None;
        };
        let python = String::from_utf8(found.stdout).unwrap();
        tools.write("python3", &format!("exec {} \"$@\"", python.trim()));
        for name in [
            "ls", "tee", "sed", "grep", "tr", "basename", "dirname", "date", "realpath", "mkdir", "cat",
            "env", "sh", "bash", "rm", "mv",
        ] {
            let path = ["/usr/bin", "/bin"]
                .map(|folder| Path::new(folder).join(name))
                .into_iter()
                .find(|p| p.exists());
            std::os::unix::fs::symlink(path.unwrap_or_else(|| panic!("no {name}")), tools.path(name))
                .unwrap();
        }
        Some(tools)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A stand-in that notes its arguments in `calls`, then does what `body` says.
    fn add(&self, name: &str, body: &str) -> &Tools {
        let calls = self.path("calls");
        self.write(name, &format!("echo \"{name} $*\" >>{}\n{body}", calls.display()));
        self
    }

    fn write(&self, name: &str, body: &str) {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }

    fn run(&self, script: &str, arguments: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(script);
        let path = self.folder.path().to_str().unwrap();
        let mut command = Command::new(script);
        command
            .args(arguments)
            .env("PATH", path)
            .env("WARPLOOM_COMMIT", "0123456789ab")
            .current_dir(&self.folder);
        command.output().expect("the script starts")
    }

    /// Runs a script that is to fail; what it says.
    fn refusal(&self, script: &str, arguments: &[&str], code: i32) -> String {
        let output = self.run(script, arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{script} {arguments:?}: {text}");
        text
    }
}

fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

const GPU: &str = r#"case "$*" in -L) echo "GPU 0: Made-up GPU" ;; *) echo "Made-up GPU 80GB" ;; esac"#;

#[test]
fn every_script_tells_how_it_is_used() {
    let Some(tools) = Tools::new() else { return };
    for script in ["profile-nsys", "profile-ncu", "sanitize", "bench-gpu", "compare-torch", "pack-gpu"] {
        let text = stdout(tools.run(script, &["--help"]));
        assert!(text.contains(&format!("scripts/{script}")), "{script}: {text}");
        let wrong = tools.run(script, &["--nonsense"]);
        assert!(!wrong.status.success(), "{script}");
    }
}

#[test]
fn missing_tools_are_named() {
    let Some(tools) = Tools::new() else { return };
    for (script, arguments, part) in [
        ("profile-nsys", &["--", "true"][..], "no nsys on the PATH: install Nsight Systems"),
        ("profile-ncu", &["--", "true"], "no ncu on the PATH: install Nsight Compute"),
        ("sanitize", &[], "no compute-sanitizer on the PATH: install a CUDA toolkit"),
        ("bench-gpu", &[], "no GPU (nvidia-smi names none)"),
    ] {
        let text = tools.refusal(script, arguments, 1);
        assert!(text.contains(part), "{script}: {text}");
        assert_eq!(text.lines().count(), 1, "{script}: {text}");
    }
    tools.add("compute-sanitizer", "");
    assert!(tools.refusal("sanitize", &[], 1).contains("no GPU"));
    tools.add("nvidia-smi", GPU);
    assert!(tools.refusal("sanitize", &[], 1).contains("no cargo"));
    assert!(tools.refusal("bench-gpu", &[], 1).contains("no cargo"));
    assert!(tools.refusal("sanitize", &["--tool", "leakcheck"], 2).contains("none of memcheck racecheck"));
    assert!(tools.refusal("sanitize", &["--device", "sim"], 2).contains("needs a GPU"));
}

const NSYS: &str = r#"
case $1 in
    profile)
        for argument; do case $argument in --output=*) echo >"${argument#--output=}.nsys-rep" ;; esac; done
        ;;
    stats)
        echo "Processing..."
        echo "Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name"
        echo "75.0,300000,100,3000.0,2900.0,2800,4000,100.0,wl_linear_bf16_16"
        echo "25.0,100000,50,2000.0,2000.0,1900,2200,10.0,\"wl_odd<int, 3>\""
        ;;
esac"#;

#[test]
fn a_timeline_is_captured_summed_up_and_compared() {
    let Some(tools) = Tools::new() else { return };
    tools.add("nsys", NSYS);
    let text =
        stdout(tools.run(
            "profile-nsys",
            &["--out", "a", "--range", "round", "--times", "3", "--", "prog", "-n", "4"],
        ));
    let calls = tools.calls();
    for part in [
        "--trace=cuda,nvtx",
        "--capture-range=nvtx --nvtx-capture=round",
        "--capture-range-end=repeat:3 prog -n 4\n",
        "nsys stats --report=cuda_gpu_kern_sum --format=csv",
    ] {
        assert!(calls.contains(part), "{part}: {calls}");
    }
    assert!(text.contains(" 75.0%       100       300.0       2.90  wl_linear_bf16_16"), "{text}");
    assert!(text.contains("wl_odd<int, 3>"), "{text}");
    assert!(tools.path("a.nsys-rep").exists());
    // The other capture has twice the time of one kernel, and lacks the other.
    let kept = fs::read_to_string(tools.path("a.csv")).unwrap();
    assert_eq!(kept.lines().count(), 3);
    let other = kept.replace("300000", "600000").lines().take(2).collect::<Vec<_>>().join("\n");
    fs::write(tools.path("b.csv"), other).unwrap();
    let text = stdout(tools.run("profile-nsys", &["--compare", "a.csv", "b.csv"]));
    assert!(text.contains("      3.00       6.00   2.00  wl_linear_bf16_16"), "{text}");
    assert!(text.contains("wl_odd<int, 3>: before alone"), "{text}");
    // By the clock, in whole seconds without a point.
    stdout(tools.run("profile-nsys", &["--out", "c", "--skip", "2", "--seconds", "1.5", "--", "prog"]));
    assert!(tools.calls().contains("--delay=2 --duration=1.5 prog\n"), "{}", tools.calls());
    // Nothing of the GPU was captured; no report; a command that failed.
    let head = "Time (%),Total Time (ns),Instances,Med (ns),Min (ns),Max (ns),Name";
    for said in ["SKIPPED", head] {
        tools.add("nsys", &format!("[ $1 = stats ] && echo '{said}' || echo >x.nsys-rep"));
        let text = tools.refusal("profile-nsys", &["--out", "x", "--", "true"], 1);
        assert!(text.contains("holds no kernels"), "{text}");
    }
    tools.add("nsys", "exit 3");
    // What is there from before is not taken for new, another capture's is left.
    let old = ["y.nsys-rep", "y.1.nsys-rep", "y.csv", "y.z.1.nsys-rep"].map(|name| tools.path(name));
    old.iter().for_each(|path| fs::write(path, "").unwrap());
    let text = tools.refusal("profile-nsys", &["--out", "y", "--range", "round", "--", "true"], 1);
    assert!(text.contains("left no y.nsys-rep (exit code 3); did no range \"round\" begin?"), "{text}");
    assert_eq!(old.map(|path| path.exists()), [false, false, false, true]);
    let text = tools.refusal("profile-nsys", &["--out", "none/y", "--", "true"], 1);
    assert!(text.contains("there is no folder none"), "{text}");
}

const NCU: &str = r#"
case $1 in
    --import=*)
        echo '"ID","Kernel Name","gpu__time_duration.sum","dram__throughput.avg.pct_of_peak_sustained_elapsed"'
        echo '"","","nsecond","%"'
        echo '"0","wl_linear_bf16_16","1,000","90.5"'
        echo '"1","wl_linear_bf16_16","3,000","80.5"'
        ;;
    *) for argument; do case $argument in --export=*) echo >"${argument#--export=}.ncu-rep" ;; esac; done ;;
esac"#;

#[test]
fn launches_are_profiled_summed_up_and_compared() {
    let Some(tools) = Tools::new() else { return };
    tools.add("ncu", NCU);
    let text = stdout(tools.run(
        "profile-ncu",
        &["--out", "a", "--kernel", "linear", "--skip", "4", "--launches", "2", "--", "prog"],
    ));
    let calls = tools.calls();
    for part in ["--launch-skip=4 --launch-count=2", "--kernel-name=regex:linear prog\n", "--csv --page=raw"]
    {
        assert!(calls.contains(part), "{part}: {calls}");
    }
    // Means, in µs.
    assert_eq!(
        fs::read_to_string(tools.path("a.csv")).unwrap().lines().nth(1),
        Some("wl_linear_bf16_16,2,2.0,85.5,,,,")
    );
    assert!(text.contains("wl_linear_bf16_16"), "{text}");
    for (name, bytes) in [("bytes.csv", &b"\x80\xff\0"[..]), ("half.csv", b"kernel\nwl_linear\n")] {
        fs::write(tools.path(name), bytes).unwrap();
        for script in ["profile-ncu", "profile-nsys"] {
            let said = tools.refusal(script, &["--compare", name, name], 1);
            assert!(said.starts_with(script) && said.lines().count() == 1, "{script}: {said}");
        }
    }
    let text = stdout(tools.run("profile-ncu", &["--compare", "a.csv", "a.csv"]));
    assert!(text.contains("2.0 → 2.0") && text.contains("85.5 → 85.5"), "{text}");
    for (name, content) in [("empty.csv", ""), ("head.csv", "kernel,launches,µs\n")] {
        fs::write(tools.path(name), content).unwrap();
        let text = tools.refusal("profile-ncu", &["--compare", "a.csv", name], 1);
        assert!(text.contains(&format!("{name} holds no kernels")), "{text}");
    }
    // Units without a launch; and what ncu says where nothing matched, beside what an earlier run left.
    let head = r#""ID","Kernel Name","gpu__time_duration.sum""#;
    tools.add(
        "ncu",
        &format!("case $1 in --import=*) printf '{head}\n\"\",\"\",\"ns\"\n' ;; *) echo >c.ncu-rep ;; esac"),
    );
    let text = tools.refusal("profile-ncu", &["--out", "c", "--", "true"], 1);
    assert!(text.contains("c.ncu-rep holds no launches"), "{text}");
    for code in [0, 1] {
        tools.add("ncu", &format!("echo '==WARNING== No kernels were profiled.'; exit {code}"));
        fs::write(tools.path("b.ncu-rep"), "").unwrap();
        fs::write(tools.path("b.csv"), "").unwrap();
        let text = tools.refusal("profile-ncu", &["--out", "b", "--", "true"], 1);
        assert!(text.contains(&format!("left no b.ncu-rep (exit code {code})")), "{text}");
        assert!(!tools.path("b.csv").exists());
    }
    let text = tools.refusal("profile-ncu", &["--out", "none/b", "--", "true"], 1);
    assert!(text.contains("there is no folder none"), "{text}");
}

#[test]
fn each_sanitizer_runs_over_each_test() {
    let Some(tools) = Tools::new() else { return };
    tools.add("nvidia-smi", GPU);
    tools.add(
        "compute-sanitizer",
        "echo found ${WARPLOOM_SMALL-all}; case $* in *racecheck*driver*) exit 97 ;; esac",
    );
    for test in ["kernels", "device", "driver"] {
        tools.add(test, "");
    }
    let here = tools.folder.path().to_str().unwrap();
    let output = tools.run("sanitize", &["--bins", here, "--logs", "logs", "--", "linear"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 12, "{text}");
    assert_eq!(text.matches("found nothing in").count(), 11);
    assert!(text.contains("racecheck found something in driver"), "{text}");
    let calls = tools.calls();
    assert!(calls.contains("--tool initcheck --error-exitcode 97"), "{calls}");
    assert!(calls.contains("/kernels --test-threads 1 linear\n"), "{calls}");
    assert_eq!(fs::read_to_string(tools.path("logs/racecheck-driver.log")).unwrap(), "found 1\n");
    let output = tools.run("sanitize", &["--bins", here, "--logs", "logs", "--tool", "memcheck"]);
    assert_eq!(stdout(output).lines().count(), 3);
    fs::write(tools.path("taken"), "").unwrap();
    let text = tools.refusal("sanitize", &["--bins", here, "--logs", "taken/logs"], 1);
    assert!(text.ends_with("taken/logs cannot be made or written\n") && text.lines().count() == 1, "{text}");
}

#[test]
fn a_run_measures_ceilings_kernels_models_and_peers() {
    let Some(tools) = Tools::new() else { return };
    tools.add("nvidia-smi", GPU);
    tools.add("bench-kernels", "").add("bench-models", "").add("warploom", "");
    let here = tools.folder.path().to_str().unwrap();
    // A Python that has torch, and one that has none.
    tools.add("with-torch", "");
    tools.add("without-torch", "echo \"No module named 'torch'\" >&2; exit 1");
    let run = |python: &str, options: &[&str]| {
        let _ = fs::remove_file(tools.path("calls"));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/bench-gpu");
        let arguments = [&["--bins", here, "--results", "results"], options].concat();
        let path = tools.folder.path();
        let output = Command::new(script)
            .args(arguments)
            .env("PATH", path)
            .env("PYTHON", python)
            .current_dir(path)
            .output()
            .unwrap();
        (output, tools.calls())
    };
    let (output, calls) = run("with-torch", &["--quick"]);
    let text = stdout(output);
    let steps: Vec<&str> = text.lines().filter_map(|line| line.split("  ").nth(1)).collect();
    assert_eq!(steps[..4], ["ceilings", "kernels", "models", "peers"], "{text}");
    assert!(text.contains("results/made-up-gpu-80gb/20"), "{text}");
    assert!(calls.contains("--part ceilings") && calls.contains("--part kernels --part models"), "{calls}");
    assert!(
        calls.contains("bench-kernels --device cuda:0 --results ") && calls.contains(" --quick\n"),
        "{calls}"
    );
    let (output, calls) = run("without-torch", &[]);
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(said.contains("without peers") && said.contains("No module named 'torch'"), "{said}");
    assert!(stdout(output).contains("models") && !calls.contains("--part"), "{calls}");
    tools.add("bench-models", "exit 1");
    let (output, _) = run("with-torch", &["--without-peers"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("not everything was measured: models;"));
}

#[test]
fn peers_are_those_of_our_rows() {
    let Some(tools) = Tools::new() else { return };
    // Whatever Python has installed: this one cannot be imported.
    fs::write(tools.path("torch.py"), "raise ImportError('there is none')\n").unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/compare-torch");
    let run = |arguments: &[&str]| {
        let path = tools.folder.path();
        Command::new(&script).args(arguments).env("PATH", path).env("PYTHONPATH", path).output().unwrap()
    };
    let text = stdout(run(&["--list"]));
    // 4 · 8192 · pairs · 64 of 32 heads, twice; bytes of q, k, v and out.
    assert!(text.contains("attention_prefill D64 H32/32 causal B2 S8192: sdpa flash"), "{text}");
    assert!(text.contains(&format!("{} FLOP", 4u64 * 2 * 32 * 64 * (8192 * 8193 / 2))), "{text}");
    assert!(!text.contains("no peer"), "{text}");
    let row = |name: &str, shape: &str| {
        format!(r#"{{"name": "{name}", "shape": "{shape}", "engine": "warploom"}}"#)
    };
    let rows = [row("linear", "M16 N6144 K4096"), row("accept", "4 drafts")].join(",");
    fs::write(tools.path("run.json"), format!(r#"{{"kernels": [{rows}]}}"#)).unwrap();
    let path = tools.path("run.json");
    let text = stdout(run(&["--list", "--into", path.to_str().unwrap()]));
    let expected = format!(
        "linear M16 N6144 K4096: cublas; {} bytes, {} FLOP\naccept 4 drafts: no peer\n",
        2 * (6144 * 4096 + 16 * (6144 + 4096)),
        2 * 16 * 6144 * 4096
    );
    assert_eq!(text, expected);
    let refused = |arguments: &[&str], code: i32, part: &str| {
        let output = run(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && text.contains(part), "{arguments:?}: {text}");
    };
    refused(&[], 1, "torch cannot be imported (there is none): pip install torch");
    refused(&["--device", "cpu"], 2, "with --smoke alone");
    refused(&["--device", "tpu"], 2, "cpu, cuda or cuda:N");
    fs::write(&path, "{").unwrap();
    refused(&["--list", "--into", path.to_str().unwrap()], 1, "is no results file");
}

/// The archive of scripts/pack-gpu, with stand-ins for its programs.
#[test]
fn an_archive_runs_all_of_its_steps() {
    let Some(tools) = Tools::new() else { return };
    let (gpu, here) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu"), tools.folder.path());
    fs::create_dir(here.join("bin")).unwrap();
    fs::create_dir(here.join("steps")).unwrap();
    fs::copy(gpu.join("run-all"), here.join("run-all")).unwrap();
    for step in fs::read_dir(gpu.join("steps")).unwrap() {
        let step = step.unwrap();
        fs::copy(step.path(), here.join("steps").join(step.file_name())).unwrap();
    }
    fs::write(here.join("COMMIT"), "0123456\n").unwrap();
    for program in ["driver", "kernels", "device", "ptxsim-conformance", "bench-kernels", "bench-models"] {
        tools.add(&format!("bin/{program}"), "echo \"$WARPLOOM_COMMIT $DEVICE\"");
    }
    let run = |arguments: &[&str]| {
        let mut command = Command::new(here.join("run-all"));
        command
            .args(arguments)
            .env("PATH", here)
            .env_remove("WARPLOOM_DEVICE")
            .current_dir(here)
            .output()
            .unwrap()
    };
    let text = stdout(run(&["--device", "sim", "--results", "out"]));
    let last = "== passed: tests conformance benchmarks; failed: nothing; skipped: sanitizer; results in ";
    assert!(text.lines().last().unwrap().starts_with(last), "{text}");
    assert!(text.contains("0123456 sim\n"), "{text}");
    let calls = tools.calls();
    for part in [
        "bin/device --exact scripted_rounds_keep_what_the_script_says\n",
        "bin/ptxsim-conformance record --device sim --out ",
        "bin/bench-models --smoke --results ",
    ] {
        assert!(calls.contains(part), "{part}: {calls}");
    }
    let summary = fs::read_to_string(here.join("out/summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["commit"], "0123456");
    let codes: Vec<_> =
        summary["steps"].as_array().unwrap().iter().map(|step| step["exit_code"].as_i64()).collect();
    assert_eq!(codes, [Some(0), Some(0), Some(0), Some(77)]);
    // A step that fails does not stop those after it.
    tools.add("bin/kernels", "exit 101");
    let output = run(&["--device", "sim", "--results", "out"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("== passed: conformance benchmarks; failed: tests; skipped: sanitizer"), "{text}");
    let text = stdout(run(&["--device", "sim", "--results", "out", "--only", "benchmarks"]));
    assert!(text.contains("== passed: benchmarks; failed: nothing; skipped: nothing"), "{text}");
    for wrong in [&["--only", "nothing"][..], &["--device", "gpu"], &["--fast"]] {
        let output = run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1, "{wrong:?}");
    }
}
