//! The command as its users meet it: options, errors, exit codes, files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;
use tempfile::TempDir;

/// Copies bytes, one a thread.
const COPY: &str = ".version 8.0
.target sm_80
.address_size 64
.visible .entry copy(.param .u64 from, .param .u64 to) {
    .reg .b16 %h<2>;
    .reg .b32 %r<5>;
    .reg .b64 %rd<6>;
    ld.param.u64 %rd1, [from];
    ld.param.u64 %rd2, [to];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mad.lo.u32 %r4, %r2, %r3, %r1;
    cvt.u64.u32 %rd3, %r4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.u8 %h1, [%rd4];
    st.global.u8 [%rd5], %h1;
    ret;
}
";

/// Stores a parameter of 12 bytes.
const STRUCTURE: &str = ".version 8.0
.target sm_80
.address_size 64
.visible .entry structure(.param .align 4 .b8 s[12], .param .u64 to) {
    .reg .b32 %r<4>;
    .reg .b64 %rd<2>;
    ld.param.u64 %rd1, [to];
    ld.param.u32 %r1, [s];
    ld.param.u32 %r2, [s+4];
    ld.param.u32 %r3, [s+8];
    st.global.u32 [%rd1], %r1;
    st.global.u32 [%rd1+4], %r2;
    st.global.u32 [%rd1+8], %r3;
    ret;
}
";

/// Stores the first word of a parameter, and the thread's number added, where the address behind it says.
const ADDRESS: &str = ".version 8.0
.target sm_80
.address_size 64
.visible .entry address(.param .align 8 .b8 s[16]) {
    .reg .b32 %r<4>;
    .reg .b64 %rd<2>;
    ld.param.u32 %r1, [s];
    ld.param.u64 %rd1, [s+8];
    mov.u32 %r2, %tid.x;
    add.u32 %r3, %r1, %r2;
    st.global.u32 [%rd1], %r3;
    ret;
}
";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn ptx(name: &str) -> String {
    root().join("tests/ptx").join(name).to_str().expect("UTF-8").into()
}

/// A folder with the example's files and the kernels above.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let dir = TempDir::new().expect("a folder");
        for name in ["race.ptx", "race.cu", "fixed.ptx"] {
            fs::copy(root().join("examples").join(name), dir.path().join(name)).expect(name);
        }
        fs::write(dir.path().join("copy.ptx"), COPY).expect("copy.ptx");
        fs::write(dir.path().join("structure.ptx"), STRUCTURE).expect("structure.ptx");
        fs::write(dir.path().join("address.ptx"), ADDRESS).expect("address.ptx");
        Folder(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).expect(name);
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ptxsim"));
        command.args(arguments).current_dir(self.0.path()).output().expect("the command")
    }

    /// Standard output of a command that ends well.
    fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.good(&[arguments, &["--json"]].concat())).expect("JSON")
    }

    /// The one line of error of a command that fails.
    fn bad(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("error: "), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(!stderr.contains("internal error"), "{arguments:?}: {stderr}");
        if code == 1 {
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
        }
        stderr
    }
}

const RACE: [&str; 6] = ["--block", "128", "--param", "buf:f32:128=random:1", "--param", "buf:f32:1"];

fn race<'a>(command: &'a str, file: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&[command, file][..], &RACE, more].concat()
}

/// A `.npy` file with this header and data.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), data].concat()
}

fn plain(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    npy(&format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n"), data)
}

#[test]
fn run_prints_counters_roofline_and_findings() {
    let folder = Folder::new();
    let text = folder.good(&race("run", "race.ptx", &["--profile"]));
    for part in [
        "warp instructions               189 with",
        "global loads                      4           16            512    100.0 %",
        "shared stores                     4            4             16          0",
        "on H100 SXM",
        "hottest lines",
        "race.cu:10  s += __shfl_down_sync(0xffffffff, s, offset);",
        "race at race.cu:12 (PTX line ",
        "    > part[threadIdx.x / 32] = s;",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let text = folder.good(&race("run", "fixed.ptx", &["--gpu", "a100"]));
    assert!(text.contains("on A100 SXM") && text.ends_with("no findings\n"), "{text}");
}

#[test]
fn json_is_one_object() {
    let folder = Folder::new();
    let object = folder.json(&race("run", "race.ptx", &["--trace", "0,1,5", "--profile"]));
    let finding = &object["findings"][0];
    assert_eq!(finding["kind"], "race");
    assert_eq!(finding["line"], 12);
    assert!(finding["ptx_line"].is_u64() && finding["count"].is_u64() && finding["message"].is_string());
    assert_eq!(object["counters"]["instructions"], 189);
    assert_eq!(object["counters"]["global_load"]["sectors"], 16);
    assert_eq!(object["roofline"]["gpu"], "H100 SXM");
    assert_eq!(object["output"], "");
    assert_eq!(object["trace"].as_array().expect("a list").len(), 5);
    assert_eq!(object["profile"][0]["place"], "race.cu:10");
    let plain = folder.json(&race("run", "fixed.ptx", &[]));
    let keys: Vec<&String> = plain.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["findings", "counters", "roofline", "output"]);
    let object: Value = {
        let output = folder.run(&race("check", "race.ptx", &["--json"]));
        assert_eq!(output.status.code(), Some(1));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    assert_eq!(object["findings"][0]["kind"], "race");
    assert_eq!(object["launches"], 9);
}

#[test]
fn check_fails_for_findings_alone() {
    let folder = Folder::new();
    let output = folder.run(&race("check", "race.ptx", &[]));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(output.stderr.is_empty());
    assert!(text.contains("race at race.cu:12") && text.contains("of 9 launches"), "{text}");
    assert!(text.contains("parameter 1 ends differently under"), "{text}");
    let text = folder.good(&race("check", "fixed.ptx", &[]));
    assert!(text.starts_with("no findings\n9 launches"), "{text}");
    let few = ["--delivery", "lazy", "--schedule", "random:3", "--schedule", "reversed"];
    let text = folder.good(&race("check", "fixed.ptx", &few));
    assert!(text.contains("2 launches"), "{text}");
}

#[test]
fn a_missing_wait_that_eager_copies_hide_is_found_by_check() {
    let folder = Folder::new();
    let (faults, entry) = (ptx("faults.ptx"), ["--entry", "missing_wait"]);
    let params = ["--param", "buf:u32:32=fill:0", "--param", "buf:u32:128=fill:1"];
    let output = folder.run(&[&["check", &faults][..], &entry, &params].concat());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("missing_wait at faults.cu:"), "{text}");
    // The source is elsewhere, and can be named.
    let sources = root().join("tests/cuda");
    let sources = ["--source", sources.to_str().expect("UTF-8")];
    let text = folder.run(&[&["check", &faults][..], &entry, &params, &sources].concat());
    assert!(String::from_utf8_lossy(&text.stdout).contains("// fault"));
}

#[test]
fn trace_shows_ptx_and_source_lines_of_one_warp() {
    let folder = Folder::new();
    let text = folder.good(&race("run", "race.ptx", &["--trace", "0,1"]));
    assert!(text.contains("race.cu:8  float s = x[threadIdx.x];"), "{text}");
    assert!(text.contains("ffffffff") && text.contains("mov.u32 %r1, %tid.x;"), "{text}");
    let short = folder.good(&race("run", "race.ptx", &["--trace", "0,3,2"]));
    assert!(short.contains("the first 2;"), "{short}");
    let error = folder.bad(1, &race("run", "race.ptx", &["--trace", "1,0"]));
    assert!(error.contains("there are 1 CTAs of 4 warps"), "{error}");
    folder.bad(1, &race("run", "race.ptx", &["--trace", "0,4"]));
    folder.bad(2, &race("run", "race.ptx", &["--trace", "0"]));
}

#[test]
fn what_the_kernel_prints_comes_first() {
    let folder = Folder::new();
    let params = ["--entry", "print", "--block", "4", "--param", "buf:f32:4=fill:1"];
    let text = folder.good(&[&["run", &ptx("strings.ptx")][..], &params].concat());
    let (printed, _) = text.split_once("CTAs  ").expect("counters");
    assert!(!printed.trim().is_empty(), "{text}");
    let object = folder.json(&[&["run", &ptx("strings.ptx")][..], &params].concat());
    assert_eq!(object["output"], printed);
}

#[test]
fn options_of_the_launch_are_passed_on() {
    let folder = Folder::new();
    let counters = |more: &[&str]| folder.json(&race("run", "fixed.ptx", more))["counters"].clone();
    let base = counters(&[]);
    // 16 sectors of numbers and one of the sum; unchecked launches keep no track of them.
    assert_eq!(base["distinct_sectors"], 17);
    let mut unchecked = counters(&["--unchecked"]);
    assert_eq!(unchecked["distinct_sectors"], Value::Null);
    for counter in ["distinct_sectors", "distinct_sectors_read", "distinct_sectors_written"] {
        unchecked[counter] = base[counter].clone();
    }
    assert_eq!(unchecked, base);
    for same in [
        &["--delivery", "lazy"][..],
        &["--delivery", "random:5"],
        &["--schedule", "reversed"],
        &["--schedule", "random:5"],
        &["--threads", "1"],
        &["--exact", "ampere"],
        &["--exact", "hopper"],
        &["--memory", "1"],
        &["--cluster", "1,1,1"],
        &["--entry", "block_sum"],
        &["--grid", "1,1,1"],
    ] {
        assert_eq!(counters(same), base, "{same:?}");
    }
    assert_eq!(counters(&["--shared", "512"])["shared_bytes"], 528);
    // Every CTA writes the same element, which is a race; run tells it and does not fail.
    assert_eq!(counters(&["--grid", "2,3"])["ctas"], 6);
    let unchecked = folder.json(&race("run", "race.ptx", &["--unchecked"]));
    assert_eq!(unchecked["findings"], serde_json::json!([]));
    let error = folder.bad(1, &race("run", "fixed.ptx", &["--steps", "50"]));
    assert!(error.contains("50 warp instructions"), "{error}");
}

#[test]
fn gpus_are_listed() {
    let folder = Folder::new();
    let text = folder.good(&["run", "--gpu", "list"]);
    assert!(text.contains("H100 SXM") && text.contains("RTX 4090"), "{text}");
    assert_eq!(folder.json(&["run", "--gpu", "list"])["gpus"][0]["name"], "H100 SXM");
    let error = folder.bad(2, &["run", "race.ptx", "--gpu", "h1000"]);
    assert!(error.contains("H100 SXM"), "{error}");
}

#[test]
fn entries_are_listed_with_the_reason_of_those_that_are_refused() {
    let folder = Folder::new();
    let text = folder.good(&["list", "race.ptx"]);
    assert!(text.starts_with("block_sum\n  parameters       2 of 8, 8 bytes\n"), "{text}");
    assert!(text.contains("16 bytes"), "{text}");
    let two =
        format!("{COPY}.visible .entry odd() {{\n.reg .b32 %r<2>;\nwgmma.fence.sync.aligned;\nret;\n}}\n");
    folder.write("two.ptx", two.as_bytes());
    let text = folder.good(&["list", "two.ptx"]);
    assert!(
        text.contains("copy\n") && text.contains("odd\n  refused          line 23: wgmma.fence"),
        "{text}"
    );
    let object = folder.json(&["list", "two.ptx"]);
    assert_eq!(object["entries"][0]["entry"]["parameters"], serde_json::json!([8, 8]));
    assert!(object["entries"][1]["refused"].as_str().is_some_and(|why| why.contains("wgmma")));
    // The other entry runs.
    let params = ["--param", "buf:u8:32=fill:1", "--param", "buf:u8:32"];
    folder.good(&[&["run", "two.ptx", "--entry", "copy"][..], &params].concat());
    let error = folder.bad(1, &[&["run", "two.ptx"][..], &params].concat());
    assert!(error.contains("--entry: copy, odd"), "{error}");
    let error = folder.bad(1, &["run", "two.ptx", "--entry", "odd"]);
    assert!(error.contains("two.ptx: line 23: wgmma"), "{error}");
    assert!(folder.bad(1, &["list", "race.cu"]).contains("race.cu: line "), "CUDA is no PTX");
}

#[test]
fn buffers_of_every_type_are_loaded_and_saved() {
    let folder = Folder::new();
    for (ty, descr, bytes) in [
        ("u8", "|u1", 1),
        ("s8", "|i1", 1),
        ("u16", "<u2", 2),
        ("s16", "<i2", 2),
        ("u32", "<u4", 4),
        ("s32", "<i4", 4),
        ("u64", "<u8", 8),
        ("s64", "<i8", 8),
        ("f16", "<f2", 2),
        ("bf16", "<u2", 2),
        ("f32", "<f4", 4),
        ("f64", "<f8", 8),
    ] {
        let data: Vec<u8> = (0..24 * bytes).map(|i| (i * 37 + 11) as u8).collect();
        folder.write("in.npy", &plain(descr, "(4, 6)", &data));
        let block = data.len().to_string();
        let from = format!("buf:{ty}:24=in.npy>same.npy");
        let to = format!("buf:{ty}:24>out.npy");
        folder.good(&["run", "copy.ptx", "--block", &block, "--param", &from, "--param", &to]);
        let saved = fs::read(folder.path("out.npy")).expect("out.npy");
        assert!(saved.ends_with(&data), "{ty}");
        assert_eq!((saved.len() - data.len()) % 64, 0);
        let header = String::from_utf8_lossy(&saved[10..saved.len() - data.len()]).into_owned();
        assert!(
            header.contains(&format!("'descr': '{descr}'")) && header.contains("'shape': (24,)"),
            "{header}"
        );
        // A file keeps its shape.
        let same = fs::read(folder.path("same.npy")).expect("same.npy");
        assert!(same.ends_with(&data) && String::from_utf8_lossy(&same).contains("'shape': (4, 6)"), "{ty}");
        // What was saved can be loaded, type and size taken from the file.
        if ty != "bf16" {
            folder.good(&[
                "run",
                "copy.ptx",
                "--block",
                &block,
                "--param",
                "buf:out.npy",
                "--param",
                "buf:in.npy>again.npy",
            ]);
            assert!(fs::read(folder.path("again.npy")).expect("again.npy").ends_with(&data), "{ty}");
        }
    }
    let parts = fs::read_dir(folder.0.path()).expect("the folder");
    assert!(parts.flatten().all(|entry| !entry.file_name().to_string_lossy().ends_with(".part")));
}

#[test]
fn parameters_of_every_kind_reach_the_kernel() {
    let folder = Folder::new();
    let out = ["--param", "buf:u8:12>out.npy"];
    let bytes = "bytes:000102030405060708090a0b";
    folder.good(&[&["run", "structure.ptx", "--block", "1", "--param", bytes][..], &out].concat());
    let saved = fs::read(folder.path("out.npy")).expect("out.npy");
    assert!(saved.ends_with(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]));
    // Fill and random values, as NumPy would read them.
    let fill = ["--param", "buf:f16:16=fill:-0.5", "--param", "buf:f16:16>out.npy"];
    folder.good(&[&["run", "copy.ptx"][..], &fill].concat());
    let saved = fs::read(folder.path("out.npy")).expect("out.npy");
    assert!(saved.ends_with(&[0x00, 0xb8].repeat(16)));
    let random = ["--param", "buf:u32:8=random:9", "--param", "buf:u32:8>out.npy"];
    folder.good(&[&["run", "copy.ptx"][..], &random].concat());
    let first = fs::read(folder.path("out.npy")).expect("out.npy");
    folder.good(&[&["run", "copy.ptx"][..], &random].concat());
    assert_eq!(fs::read(folder.path("out.npy")).expect("out.npy"), first);
}

#[test]
fn a_buffer_with_bytes_that_nobody_wrote_is_saved_with_a_warning() {
    let folder = Folder::new();
    let params = ["--param", "buf:u8:32=fill:7", "--param", "buf:u8:40>out.npy"];
    let output = folder.run(&[&["run", "copy.ptx"][..], &params].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(stderr, "warning: out.npy holds bytes that nobody wrote; they are saved as 0xff\n");
    let saved = fs::read(folder.path("out.npy")).expect("out.npy");
    assert!(saved.ends_with(&[&[7u8; 32][..], &[255; 8]].concat()));
}

#[test]
fn damaged_npy_files_are_one_clear_error() {
    let folder = Folder::new();
    let good = plain("<f4", "(8,)", &[0; 32]);
    let mut long = b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec();
    long.extend([b' '; 100]);
    let nested = npy(&"(".repeat(4000), &[]);
    let version = [b"\x93NUMPY\x09\x00", &good[8..]].concat();
    let fortran = npy("{'descr': '<f4', 'fortran_order': True, 'shape': (8,), }", &[0; 32]);
    let record = npy("{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (8,), }", &[0; 32]);
    for (bytes, reason) in [
        (vec![], "ends within its header"),
        (b"\x93NUMPY\x01".to_vec(), "ends within its header"),
        (good[..20].to_vec(), "ends within its header"),
        (b"PK\x03\x04 a zip archive".to_vec(), "does not begin with NumPy's mark"),
        (version, "version 9"),
        (long, "a header of 4294967295 bytes"),
        (nested, "damaged header"),
        (fortran, "Fortran order"),
        (record, "records"),
        (plain(">f4", "(8,)", &[0; 32]), "big-endian"),
        (plain("|O", "(8,)", &[0; 64]), "'f32'"),
        (plain("<f8", "(8,)", &[0; 64]), "\"<f8\""),
        (plain("<c8", "(8,)", &[0; 64]), "\"<c8\""),
        (plain("|b1", "(8,)", &[0; 8]), "\"|b1\""),
        (plain("<f4", "(9,)", &[0; 36]), "9 values; the buffer has 8"),
        (plain("<f4", "()", &[0; 4]), "1 values"),
        (plain("<f4", "(8,)", &[0; 31]), "31 bytes of data; its header promises 32"),
        (plain("<f4", "(8,)", &[0; 33]), "33 bytes of data"),
        (plain("<f4", "(-8,)", &[0; 32]), "no list of sizes"),
        (plain("<f4", "(4294967296, 4294967296, 2)", &[0; 32]), "more than 2^64"),
        (npy("{'descr': '<f4', 'fortran_order': False}", &[0; 32]), "without descr"),
        (npy("{'\u{e9}': '\u{1b}[2J'}", &[0; 32]), "unknown key"),
        ([b"\x93NUMPY\x01\x00\x02\x00\xff\xfe".to_vec(), vec![0; 32]].concat(), "not text"),
    ] {
        folder.write("in.npy", &bytes);
        let params = ["--param", "buf:f32:8=in.npy", "--param", "buf:f32:8"];
        let error = folder.bad(1, &[&["run", "copy.ptx"][..], &params].concat());
        let reason = reason.replace("'f32'", "f32");
        assert!(error.starts_with("error: in.npy: ") && error.contains(&reason), "no {reason:?} in {error}");
        assert!(!error.contains('\u{1b}'), "{error:?}");
    }
    folder.write("in.npy", &good);
    folder.good(&["run", "copy.ptx", "--param", "buf:f32:8=in.npy", "--param", "buf:f32:8"]);
    // Without a type, what no buffer takes is refused as well.
    folder.write("in.npy", &plain("<c16", "(2,)", &[0; 32]));
    let error = folder.bad(1, &["run", "copy.ptx", "--param", "buf:in.npy", "--param", "buf:f32:8"]);
    assert!(error.contains("which no buffer takes"), "{error}");
    // A header that promises more than there may be.
    folder.write("in.npy", &plain("<f4", "(1099511627776,)", &[0; 32]));
    let error = folder.bad(1, &["run", "copy.ptx", "--param", "buf:in.npy", "--param", "buf:f32:8"]);
    assert!(error.contains("more than the 4294967296 bytes"), "{error}");
}

#[test]
fn files_that_are_not_there_or_no_files_are_named() {
    let folder = Folder::new();
    let b = ["--param", "buf:u8:32"];
    for (arguments, reason) in [
        (vec!["run", "none.ptx"], "none.ptx: No such file"),
        (vec!["run", "."], ".: a folder"),
        (vec!["list", "none.ptx"], "none.ptx: No such file"),
        (vec!["run", "copy.ptx", "--param", "buf:u8:32=none.npy"], "none.npy: No such file"),
        (vec!["run", "copy.ptx", "--param", "buf:none.npy"], "none.npy: No such file"),
        (vec!["run", "copy.ptx", "--param", "buf:u8:32>none/out.npy"], "no folder \"none\""),
        (vec!["run", "copy.ptx", "--param", "buf:u8:32>folder.npy"], "a folder is there"),
        (vec!["run", "copy.ptx", "--param", "buf:u8:32=folder.npy"], "not a file"),
        (vec!["run", "copy.ptx", "--param", "buf:u8:9999999999"], "4294967296 bytes"),
        (vec!["run", "copy.ptx", "--memory", "1", "--param", "buf:u8:1048577=fill:0"], "1048576 bytes"),
        (vec!["run", "copy.ptx", "--memory", "1", "--param", "buf:u8:1048544=fill:0"], "--memory"),
        (vec!["run", "bytes.ptx"], "bytes.ptx: not text"),
        (vec!["run", "empty.ptx"], "empty.ptx"),
        (vec!["run", "esc\u{1b}ape.ptx"], "esc\\u{1b}ape.ptx"),
    ] {
        fs::create_dir_all(folder.path("folder.npy")).expect("a folder");
        folder.write("bytes.ptx", &[0xff, 0xfe, 0]);
        folder.write("empty.ptx", b"");
        let error = folder.bad(
            1,
            &[&arguments[..], &b].concat()[..arguments.len() + if arguments[0] == "list" { 0 } else { 2 }],
        );
        assert!(error.contains(reason), "no {reason:?} in {error}");
    }
    let twice = ["--param", "buf:u8:32=fill:1>o.npy", "--param", "buf:u8:32>o.npy"];
    let error = folder.bad(1, &[&["run", "copy.ptx"][..], &twice].concat());
    assert!(error.contains("the same file"), "{error}");
    assert!(!folder.path("o.npy").exists());
}

#[test]
fn launches_that_a_gpu_would_refuse_are_refused() {
    let folder = Folder::new();
    let two = ["--param", "buf:u8:32=fill:1", "--param", "buf:u8:32"];
    let run = |more: &[&str]| folder.bad(1, &[&["run", "copy.ptx"][..], more].concat());
    let with = |more: &[&str]| run(&[&two[..], more].concat());
    assert!(with(&["--entry", "none"]).contains("no entry named \"none\"; the module has copy"));
    assert!(run(&["--param", "buf:u8:32"]).contains("takes 2 parameters, 1 are given"));
    assert!(with(&["--param", "u32:1"]).contains("takes 2 parameters, 3 are given"));
    assert!(run(&["--param", "u32:1", "--param", "buf:u8:4"]).contains("has 8 bytes, the argument 4"));
    assert!(with(&["--grid", "0"]).contains("grid"));
    assert!(with(&["--block", "1025"]).contains("block"));
    assert!(with(&["--block", "64,64"]).contains("1024 is the most"));
    assert!(with(&["--shared", "999999"]).contains("shared memory"));
    assert!(with(&["--cluster", "2"]).contains("launch: clusters of [2, 1, 1] CTAs are not supported"));
    for delivery in
        [["--delivery", "lazy", "--delivery", "eager"], ["--schedule", "reversed", "--schedule", "in-order"]]
    {
        assert!(with(&delivery).contains("use check"));
    }
}

#[test]
fn arguments_that_cannot_be_read_are_usage_errors() {
    let folder = Folder::new();
    for more in [
        &["--grid", "1,2,3,4"][..],
        &["--grid", "x"],
        &["--grid", "-1"],
        &["--grid", "99999999999"],
        &["--block", ""],
        &["--shared", "many"],
        &["--delivery", "late"],
        &["--schedule", "random:"],
        &["--exact", "volta"],
        &["--steps", "-1"],
        &["--threads", "0"],
        &["--memory", "0"],
        &["--param", "u32"],
        &["--param", "u9:1"],
        &["--param", "u8:256"],
        &["--param", "buf:f32:8=fil:3"],
        &["--nonsense"],
    ] {
        folder.bad(2, &race("run", "race.ptx", more));
        folder.bad(2, &race("check", "race.ptx", more));
    }
    folder.bad(2, &race("check", "race.ptx", &["--unchecked"]));
    folder.bad(2, &["run"]);
    folder.bad(2, &["list"]);
    let error = folder.bad(2, &["run", "race.ptx", "--param", "f32:\u{1b}[31m"]);
    assert!(!error.contains("\u{1b}[31m\""), "{error:?}");
}

#[test]
fn names_from_files_cannot_write_to_the_terminal() {
    let folder = Folder::new();
    let text = fs::read_to_string(folder.path("race.ptx")).expect("race.ptx");
    folder.write("race.ptx", text.replace("\"race.cu\"", "\"ra\u{1b}[2Jce.cu\"").as_bytes());
    let text = folder.good(&race("run", "race.ptx", &["--trace", "0,0", "--profile"]));
    assert!(text.contains("ra\\u{1b}[2Jce.cu:12"), "{text}");
    assert!(!text.contains('\u{1b}'));
    folder.write("copy.ptx", format!("{COPY}// \u{1b}[2J\n.\u{1b}").as_bytes());
    assert!(!folder.bad(1, &["run", "copy.ptx"]).contains('\u{1b}'));
}

#[test]
fn the_examples_in_every_help_run() {
    let folder = Folder::new();
    for command in ["run", "check", "list"] {
        let help = folder.good(&[command, "--help"]);
        let (_, examples) = help.split_once("Examples:\n").expect("examples");
        assert_eq!(examples.trim().lines().count(), 2, "{examples}");
        for example in examples.trim().lines() {
            let arguments = example.trim().strip_prefix("ptxsim ").expect("a command");
            let line = format!("'{}' {arguments}", env!("CARGO_BIN_EXE_ptxsim"));
            let output =
                Command::new("sh").args(["-c", &line]).current_dir(folder.0.path()).output().expect("sh");
            assert!(output.status.success(), "{example}: {}", String::from_utf8_lossy(&output.stderr));
            assert!(!output.stdout.is_empty());
        }
    }
    assert!(folder.path("sum.npy").exists());
}

#[test]
fn buffers_lie_in_structures() {
    let folder = Folder::new();
    let address = |command, param| [command, "address.ptx", "--block", "1", "--param", param];
    folder.good(&address("run", "struct:u32:0x01020304,buf:u32:1>out.npy"));
    let file = fs::read(folder.path("out.npy")).expect("the buffer");
    assert_eq!(file[file.len() - 4..], [4, 3, 2, 1]);
    let text = folder.good(&address("check", "struct:u32:7,8@buf:u32:1"));
    assert!(text.starts_with("no findings"), "{text}");
    let text = folder.good(&address("check", "struct:u32:7,8@buf:u32:2"));
    assert!(
        text.contains(
            "note: parameter 0's buffer at byte 8 ends with bytes that nobody wrote, from byte 4 on"
        )
    );
    // A buffer that is too short, and a structure that is too long.
    let output = folder.run(&address("check", "struct:u32:7,buf:u16:1"));
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.contains("out_of_bounds") && text.contains("allocation of 2 bytes"), "{text}");
    let text = folder.bad(1, &address("check", "struct:u32:7,buf:u32:1,u32:0"));
    assert!(text.contains("has 16 bytes, the argument 24"), "{text}");
    // Its order of warps decides what is in it.
    let racing = ["check", "address.ptx", "--block", "64", "--param", "struct:u32:7,buf:u32:1"];
    let text = String::from_utf8(folder.run(&racing).stdout).expect("UTF-8");
    assert!(text.contains("note: parameter 0's buffer at byte 8 ends differently"), "{text}");
    let text = folder.bad(2, &address("run", "struct:u32:7,2@buf:u32:1"));
    assert!(text.contains("ends at byte 4"), "{text}");
}
