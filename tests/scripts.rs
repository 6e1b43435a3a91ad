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

use serde_json::{Value, json};
use tempfile::TempDir;
use warploom::results::{Kind, Row, Run, Spread};

#[path = "../benches/device/host.rs"]
mod host;

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
        let script = repository().join("scripts").join(script);
        let path = self.folder.path().to_str().unwrap();
        let mut command = Command::new(script);
        command
            .args(arguments)
            .env("PATH", path)
            .env("WARPLOOM_COMMIT", "0123456789ab")
            .current_dir(&self.folder);
        command.output().expect("the script starts")
    }

    /// Runs Python code that finds scripts/compare-torch, or a copy of it, as the module `peers`.
    fn python(&self, script: &Path, code: &str) -> Command {
        let load = "import importlib.machinery, importlib.util, sys
loader = importlib.machinery.SourceFileLoader('peers', sys.argv[1])
peers = importlib.util.module_from_spec(importlib.util.spec_from_loader('peers', loader))
loader.exec_module(peers)
";
        let mut command = Command::new(self.path("python3"));
        command.args(["-c", &format!("{load}{code}")]).arg(script).env("PYTHONDONTWRITEBYTECODE", "1");
        command
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

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

const GPU: &str = r#"case "$*" in -L) echo "GPU 0: Made-up GPU" ;; *) echo "Made-up GPU 80GB" ;; esac"#;

#[test]
fn every_script_tells_how_it_is_used() {
    let Some(tools) = Tools::new() else { return };
    for script in ["profile-nsys", "profile-ncu", "sanitize", "bench-gpu", "compare-torch", "pack-gpu"] {
        let text = stdout(tools.run(script, &["--help"]));
        assert!(text.contains(&format!("scripts/{script}")), "{script}: {text}");
        tools.refusal(script, &["--nonsense"], 2);
    }
    assert!(tools.refusal("pack-gpu", &["a.tar.gz", "b.tar.gz"], 2).contains("one file, not 2"));
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
        let script = repository().join("scripts/bench-gpu");
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
fn a_run_that_cannot_be_kept_is_refused_before_anything_is_built() {
    let Some(tools) = Tools::new() else { return };
    tools.add("nvidia-smi", GPU).add("cargo", "");
    let refusal = |arguments: &[&str]| {
        let text = tools.refusal("bench-gpu", arguments, 1);
        assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
        assert!(!tools.calls().contains("cargo"), "{arguments:?}: {}", tools.calls());
        text
    };
    assert!(refusal(&["--bins", "nowhere"]).contains("nowhere/bench-kernels\n"));
    fs::write(tools.path("taken"), "").unwrap();
    assert!(refusal(&["--results", "taken"]).contains("cannot be made or written"));
    // The command has the kernels, which the profilers need, with peers or without.
    let arguments = ["--without-peers", "--results", "results"];
    let text = stdout(tools.run("bench-gpu", &arguments));
    assert!(tools.calls().contains("cargo build --release --features cuda\n"), "{}", tools.calls());
    // A file of the same day.
    let file = PathBuf::from(text.lines().last().unwrap().split_once("done: ").unwrap().1);
    let of = |commit: &str, dirty: bool, quick: bool| {
        let run = json!({ "schema": 1, "commit": commit, "dirty": dirty, "quick": quick, "device": { "name": "a" } });
        fs::write(&file, serde_json::to_string_pretty(&run).unwrap()).unwrap();
        fs::remove_file(tools.path("calls")).unwrap();
    };
    of("0123456789ab", false, false);
    stdout(tools.run("bench-gpu", &arguments));
    for (commit, dirty, quick, part) in [
        ("ba9876543210", false, false, "is of ba9876543210, and this is 0123456789ab: move it away"),
        ("0123456789ab", true, false, "is of 0123456789ab, changed, and this is 0123456789ab: move"),
        ("0123456789ab", false, true, "is of 0123456789ab, --quick, and this is 0123456789ab: move"),
    ] {
        of(commit, dirty, quick);
        let text = refusal(&arguments);
        assert!(text.contains(part), "{text}");
    }
    fs::write(&file, "{").unwrap();
    assert!(refusal(&arguments).contains("is no results file"));
}

/// A command that the texts name beside the benchmarks makes none that lacks the kernels.
#[test]
fn what_is_documented_for_a_gpu_builds_with_the_kernels() {
    for page in ["README.md", "docs/performance.md"] {
        let text = fs::read_to_string(repository().join(page)).unwrap();
        let block: Vec<&str> = text
            .lines()
            .skip_while(|line| !line.starts_with("    scripts/bench-gpu"))
            .take_while(|line| line.starts_with("    "))
            .collect();
        let builds: Vec<&&str> = block.iter().filter(|line| line.contains("cargo ")).collect();
        assert!(!builds.is_empty(), "{page}");
        assert!(builds.iter().all(|line| line.contains("--features cuda")), "{page}: {builds:?}");
    }
}

/// For the two tests below, which run it with other tools on the PATH and in other folders.
#[test]
#[ignore = "shows what the benchmarks would find; others call it"]
fn show_the_host() {
    let clocks = host::clocks("cuda:1").map(|clocks| format!("{} {}", clocks.temperature_c, clocks.throttle));
    println!("\nhost: {}", clocks.unwrap_or("None".into()));
    println!("commit: {:?}", host::commit());
}

fn show_the_host_command() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "show_the_host", "--ignored", "--nocapture"]);
    command
}

#[test]
fn clocks_are_those_of_the_gpu_that_cuda_counts() {
    let Some(tools) = Tools::new() else { return };
    let compare = repository().join("scripts/compare-torch");
    let code = "clocks = peers.clocks('cuda:1')
print('host:', clocks and f\"{clocks['temperature_c']:.0f} {clocks['throttle']}\")";
    for (visible, unknown, expected) in [
        (None, "throttle", "1 0x0000000000000004"),
        (None, "event", "1 0x0000000000000004"),
        (Some("3,7"), "throttle", "7 0x0000000000000004"),
        (Some("GPU-12, GPU-34"), "event", "34 0x0000000000000004"),
        (Some("3"), "event", "None"),
    ] {
        // The temperature is the number at the end of what is asked for.
        let body = format!(
            "case $* in *{unknown}*) exit 2 ;; esac\necho \"1980, 2619, 700.00, ${{4##*-}}, 0x0000000000000004\""
        );
        tools.write("nvidia-smi", &body);
        for mut command in [show_the_host_command(), tools.python(&compare, code)] {
            command.env("PATH", tools.folder.path()).env_remove("CUDA_VISIBLE_DEVICES");
            command.envs(visible.map(|visible| ("CUDA_VISIBLE_DEVICES", visible)));
            let text = stdout(command.output().unwrap());
            assert!(text.lines().any(|line| line == format!("host: {expected}")), "{visible:?}: {text}");
        }
    }
}

/// Reports and results, which measuring changes, are no other sources.
#[test]
fn a_commit_is_changed_by_its_sources_alone() {
    let Some(tools) = Tools::new() else { return };
    let root = tools.folder.path().join("repository");
    let write = |name: &str, text: &str| {
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs::write(root.join(name), text).unwrap();
    };
    for name in ["src/lib.rs", "docs/performance.md", "benches/results/gpu/2026-12-01.json"] {
        write(name, "before\n");
    }
    fs::create_dir(root.join("scripts")).unwrap();
    for script in ["find-commit", "compare-torch"] {
        fs::copy(repository().join("scripts").join(script), root.join("scripts").join(script)).unwrap();
    }
    let clean = |mut command: Command| {
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "WARPLOOM_COMMIT"] {
            command.env_remove(name);
        }
        for role in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{role}_NAME"), "a").env(format!("GIT_{role}_EMAIL"), "a@example.com");
        }
        command.current_dir(&root).output()
    };
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.args(arguments);
        clean(command)
    };
    if git(&["init", "--quiet"]).is_err() {
        let _ = writeln!(std::io::stderr(), "skipped: names of commits: no git");
        return;
    }
    stdout(git(&["add", "."]).unwrap());
    stdout(git(&["commit", "--quiet", "--no-gpg-sign", "--message", "a"]).unwrap());
    let commit = stdout(git(&["rev-parse", "--short=12", "HEAD"]).unwrap()).trim().to_string();
    let check = |dirty: bool| {
        let named = stdout(clean(Command::new(root.join("scripts/find-commit"))).unwrap());
        assert_eq!(named.trim(), format!("{commit}{}", if dirty { "-dirty" } else { "" }));
        let code = "name, dirty = peers.commit()\nprint(f'commit: (\"{name}\", {str(dirty).lower()})')";
        for command in [show_the_host_command(), tools.python(&root.join("scripts/compare-torch"), code)] {
            let text = stdout(clean(command).unwrap());
            assert!(text.contains(&format!("commit: (\"{commit}\", {dirty})")), "{text}");
        }
    };
    check(false);
    write("docs/performance.md", "after\n");
    write("benches/results/gpu/2026-12-01.json", "after\n");
    write("src/unknown.rs", "after\n");
    check(false);
    write("src/lib.rs", "after\n");
    check(true);
}

/// A torch that multiplies nothing.
const TORCH: &str = "
__version__ = 'stand-in'
bfloat16 = None
class Tensor:
    def __matmul__(self, other):
        return self
def randn(*shape, **options):
    return Tensor()
def set_num_threads(count):
    pass
";

/// One file through both writers, as scripts/bench-gpu lets them write it.
#[test]
fn benchmarks_and_peers_share_a_file() {
    let Some(tools) = Tools::new() else { return };
    fs::write(tools.path("torch.py"), TORCH).unwrap();
    let path = tools.path("results/cpu/2026-12-01.json");
    let compare = |options: &[&str]| {
        let arguments =
            ["--device", "cpu", "--smoke", "--part", "ceilings", "--into", path.to_str().unwrap()];
        Command::new(repository().join("scripts/compare-torch"))
            .args([&arguments[..], options].concat())
            .env("PATH", tools.folder.path())
            .env("PYTHONPATH", tools.folder.path())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("WARPLOOM_COMMIT", "0123456789ab")
            .output()
            .unwrap()
    };
    stdout(compare(&[]));
    let mut run = Run::read(&path).unwrap();
    // What the device copies and reads is ours to measure.
    assert_eq!(run.ceilings.iter().map(|row| &row.name[..]).collect::<Vec<_>>(), ["matmul bf16"]);
    let row = |name: &str, engine: &str, ceiling: &str, seconds: f64| Row {
        engine: engine.into(),
        samples: 1,
        seconds: Spread::of(&[seconds]),
        bytes: Some(1 << 30),
        flop: Some(1 << 20),
        ceiling: Some(ceiling.into()),
        ..Row::new(name, "some")
    };
    let moved = |name: &str, engine: &str, seconds| Row { flop: None, ..row(name, engine, name, seconds) };
    // Two of one name, as earlier versions left them: the first counts for both.
    Run::put(
        &mut run.ceilings,
        [moved("copy", "torch", 2e-3), moved("copy", "warploom", 1e-3), moved("read", "warploom", 1e-3)],
    );
    Run::put(
        &mut run.kernels,
        [row("rms_norm", "warploom", "copy", 3e-3), row("gemm", "warploom", "matmul bf16", 1e-3)],
    );
    // The command takes no smoke run's.
    run.device.kind = Kind::Cuda;
    run.write(&path).unwrap();
    stdout(compare(&[]));
    let run = Run::read(&path).unwrap();
    assert!((run.kernels[0].share.unwrap() - 2.0 / 3.0).abs() < 1e-9);
    assert!(run.kernels[1].share.is_some() && run.ceilings.len() == 4);
    #[cfg(feature = "cli")]
    {
        let mut report = Command::new(env!("CARGO_BIN_EXE_warploom"));
        report.arg("report").arg("--results").arg(tools.path("results"));
        stdout(report.arg("--page").arg(tools.path("page.md")).output().unwrap());
    }
    // A short run is another.
    let output = compare(&["--quick"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("is of 0123456789ab on cpu, and this is 0123456789ab, --quick on cpu"), "{text}");
}

/// Each of the calls that take turns has inputs of its own, so that they do not stay in L2.
#[test]
fn attention_of_peers_rotates_over_its_inputs() {
    let Some(tools) = Tools::new() else { return };
    let code = r#"
import contextlib
from types import SimpleNamespace as module
seen = []
attend = lambda q, k, v, **options: seen.extend((q, k, v))
attention = module(SDPBackend=module(MATH=0), sdpa_kernel=lambda backend: contextlib.nullcontext())
flex = module(create_block_mask=lambda *sizes, **options: object(), flex_attention=attend)
functional = module(scaled_dot_product_attention=attend)
torch = module(nn=module(functional=functional), bfloat16=None, randn=lambda *shape, **options: module(shape=shape))
sys.modules.update({"torch": torch, "torch.nn": torch.nn, "torch.nn.attention": attention, "torch.nn.attention.flex_attention": flex,
                    "flash_attn": module(flash_attn_func=attend), "flashinfer": module(single_prefill_with_kv_cache=attend)})
for shape in "D16 H4/2 causal B1 S32", "D16 H4/2 window 8 B1 S32":
    list_, footprint = peers.Peers(torch, "cpu", True, {}).of("attention_prefill", peers.parse("attention_prefill", shape))
    for engine, make in list_:
        seen.clear()
        for call in [make(), make()]:
            call()
        print(engine, len({id(tensor) for tensor in seen}), footprint)
"#;
    let text = stdout(tools.python(&repository().join("scripts/compare-torch"), code).output().unwrap());
    // q, k and v of two calls; bytes with the output's.
    let bytes = 2 * 32 * 16 * (4 + 2 + 2 + 4);
    let of = |engine: &str| format!("{engine} 6 {bytes}\n");
    let expected = ["sdpa math", "flash-attn", "flashinfer", "flex", "flash-attn", "flashinfer"].map(of);
    assert_eq!(text, expected.concat());
}

#[test]
fn peers_are_those_of_our_rows() {
    let Some(tools) = Tools::new() else { return };
    // Whatever Python has installed: this one cannot be imported.
    fs::write(tools.path("torch.py"), "raise ImportError('there is none')\n").unwrap();
    let (script, here) = (repository().join("scripts/compare-torch"), tools.folder.path());
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&script);
        command.args(arguments).env("PATH", here).env("PYTHONPATH", here).env("PYTHONDONTWRITEBYTECODE", "1");
        command.output().unwrap()
    };
    let text = stdout(run(&["--list"]));
    // 4 · 8192 · pairs · 64 of 32 heads, twice; bytes of q, k, v and out.
    assert!(text.contains("attention_prefill D64 H32/32 causal B2 S8192: sdpa flash"), "{text}");
    assert!(text.contains(&format!("{} FLOP", 4u64 * 2 * 32 * 64 * (8192 * 8193 / 2))), "{text}");
    assert!(!text.contains("no peer"), "{text}");
    let row = |name: &str, shape: &str| {
        json!({
            "name": name, "shape": shape, "engine": "warploom", "samples": 0, "seconds": null, "bytes": null, "flop": null, "tokens": null,
            "ceiling": null, "share": null, "note": null, "error": "not measured"
        })
    };
    let good = json!({
        "schema": 1, "date": "2026-12-01", "commit": "0123456789ab", "dirty": false, "quick": false, "device": { "name": "cpu" },
        "clocks": { "before": null, "after": null }, "ceilings": [],
        "kernels": [row("linear", "M16 N6144 K4096"), row("accept", "4 drafts")], "models": [], "peers": []
    });
    fs::write(tools.path("run.json"), good.to_string()).unwrap();
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
    // A file that is none, or not whole: the same line whatever it is read for.
    fs::write(tools.path("torch.py"), TORCH).unwrap();
    let into = |path: &Path, part: &str| {
        let into = ["--into", path.to_str().unwrap()];
        for arguments in [&["--list"][..], &["--device", "cpu", "--smoke", "--part", "ceilings"]] {
            let output = run(&[arguments, &into].concat());
            let text = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.code() == Some(1) && text.contains(part), "{arguments:?}: {text}");
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    };
    into(here, "cannot be read: Is a directory");
    for (part, change) in [
        (
            "the run has no peers",
            &(|run: &mut Value| drop(run.as_object_mut().unwrap().remove("peers"))) as &dyn Fn(&mut Value),
        ),
        ("schema 2; this script reads 1", &|run| run["schema"] = json!(2)),
        ("the device has no name", &|run| run["device"] = json!({})),
        ("row 1 of kernels has no shape, or one of another type", &|run| {
            run["kernels"][1]["shape"] = json!(4)
        }),
        ("row 0 of kernels has no ceiling", &|run| {
            drop(run["kernels"][0].as_object_mut().unwrap().remove("ceiling"))
        }),
        ("row 0 of kernels is no object", &|run| run["kernels"][0] = json!(1)),
        ("has a median of 0 s", &|run| run["kernels"][0]["seconds"] = json!({ "median": 0 })),
    ] {
        let mut run = good.clone();
        change(&mut run);
        fs::write(&path, run.to_string()).unwrap();
        into(&path, part);
    }
    for bytes in [&b"{"[..], b"[]", b"\xff"] {
        fs::write(&path, bytes).unwrap();
        into(&path, "is no results file");
    }
    let smoke = ["--device", "cpu", "--smoke", "--part", "ceilings", "--into"];
    let below = path.join("run.json");
    refused(&[&smoke[..], &[below.to_str().unwrap()]].concat(), 1, "cannot be made: File exists");
}

/// The archive of scripts/pack-gpu, with stand-ins for its programs.
#[test]
fn an_archive_runs_all_of_its_steps() {
    let Some(tools) = Tools::new() else { return };
    let (gpu, here) = (repository().join("scripts/gpu"), tools.folder.path());
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
