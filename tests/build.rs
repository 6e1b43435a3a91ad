//! What build.rs reads: lists of architectures, ptxas' reports, PTX, dependency files; and the table that it writes.
#![allow(dead_code)]

#[path = "../build/arch.rs"]
mod arch;
#[path = "../build/cache.rs"]
mod cache;
#[path = "../build/ptxas.rs"]
mod ptxas;

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use arch::{Arch, of_gpus, parse_list};
use cache::{Cache, Object, dependencies};
use ptxas::{Entry, Report, diagnostics, entries, faults, parse};
use warploom::kernels::FAMILIES;

const KNOWN: [u32; 7] = [75, 80, 86, 89, 90, 100, 120];

fn archs(list: &str) -> Result<String, String> {
    let archs = parse_list(list, &KNOWN)?;
    Ok(archs.iter().map(Arch::to_string).collect::<Vec<_>>().join(" "))
}

#[test]
fn lists_of_architectures() {
    for (list, read) in
        [("80", "80"), ("90a,80", "80 90a"), (" 120 , 86,,86 ", "86 120"), ("90 90a 100f", "90 90a 100f")]
    {
        assert_eq!(archs(list).as_deref(), Ok(read), "{list}");
    }
    for (list, part) in [
        ("", "is empty"),
        (" , ", "is empty"),
        ("sm_80", "\"sm_80\" is no architecture"),
        ("8.0", "is no architecture"),
        ("80a", "is no architecture"),
        ("90f", "is no architecture"),
        ("90aa", "is no architecture"),
        ("90b", "is no architecture"),
        ("080", "is no architecture"),
        ("8", "is no architecture"),
        ("-80", "is no architecture"),
        ("all", "is no architecture"),
        ("80;90", "is no architecture"),
        ("٨٠", "is no architecture"),
        ("75", "75 is too old"),
        ("95", "does not know 95; it knows 80, 86, 89, 90, 100, 120"),
    ] {
        let error = archs(list).unwrap_err();
        assert!(error.contains(part) && error.starts_with("WARPLOOM_CUDA_ARCHS"), "{list}: {error}");
    }
}

#[test]
fn architectures_of_gpus_and_of_files() {
    let of = |answer: &str| of_gpus(answer, &KNOWN).iter().map(Arch::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(of("9.0\n8.6\n9.0\n"), "86 90a");
    assert_eq!(of("12.0\n"), "120");
    // Too old, unknown to nvcc, and what nvidia-smi says where it cannot tell.
    assert_eq!(of("7.5\n19.5\n[N/A]\nNo devices were found\n"), "");
    assert_eq!(of("99999999999.1\n429496730.0\n8.99\n"), "");
    assert_eq!(Arch::of_file("attention_sm90a").map(|arch| arch.to_string()).as_deref(), Some("90a"));
    assert_eq!(Arch::of_file("attention_small"), None);
    assert_eq!(Arch::of_file("rms_norm"), None);
}

/// As ptxas 13.0 writes it.
const CLEAN: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'wl_one' for 'sm_80'
ptxas info    : Function properties for wl_one
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 1 barriers, 512 bytes smem, 432 bytes cmem[0]
ptxas info    : Compile time = 1.753 ms
ptxas info    : Compiling entry function 'wl_one' for 'sm_90a'
ptxas info    : Function properties for wl_one
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
ptxas info    : Compile time = 2.072 ms
";
const SPILLS: &str = "\
ptxas warning : Registers are spilled to local memory in function 'wl_two', 516 bytes spill stores, 512 bytes spill loads
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'wl_two' for 'sm_80'
ptxas info    : Function properties for wl_two
    456 bytes stack frame, 516 bytes spill stores, 512 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 456 bytes cumulative stack size, 360 bytes cmem[0]
ptxas info    : Compile time = 19.526 ms
";
/// The function that is called has the local memory.
const CALLS: &str = "\
ptxas info    : Compiling entry function 'wl_three' for 'sm_90a'
ptxas info    : Function properties for wl_three
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
ptxas info    : Compile time = 17.724 ms
ptxas info    : Function properties for _Z6helperPfi
    128 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
";
const LOSSES: &str = "\
ptxas info    : (C7519) warpgroup.arrive is injected in around line 129 by compiler to allow use of registers in GMMA in function 'wl_f'
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to non wgmma instructions \
defining accumulator registers of a wgmma between start and end of the pipeline stage in the function 'wl_f'
ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to determine register count at entry.
ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to determine register count at entry.
";

#[test]
fn reports_are_read() {
    let report = |arch: &str, registers, barriers, shared_bytes| Report {
        entry: "wl_one".into(),
        arch: arch.into(),
        registers,
        barriers,
        shared_bytes,
        ..Report::default()
    };
    assert_eq!(parse(CLEAN), [report("80", 12, 1, 512), report("90a", 8, 0, 0)]);
    assert_eq!(faults(CLEAN), Vec::<String>::new());
    assert!(diagnostics(CLEAN).is_empty());
    assert!(parse("").is_empty() && faults("").is_empty());
}

#[test]
fn faults_are_found_and_named() {
    let one = |output: &str, parts: &[&str]| {
        let found = faults(output);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(parts.iter().all(|part| found[0].contains(part)), "{found:?}");
    };
    one(SPILLS, &["wl_two", "sm_80", "spills 516 bytes"]);
    one(CALLS, &["wl_three", "sm_90a", "128 bytes of local memory"]);
    one(
        &CLEAN.replacen("0 bytes spill loads", "4 bytes spill loads", 1),
        &["wl_one", "sm_80", "spills 4 bytes"],
    );
    one(
        &CLEAN.replacen("0 bytes stack", "8 bytes stack", 2).replacen("8 bytes stack", "0 bytes stack", 1),
        &["sm_90a", "8 bytes"],
    );
    let lost = faults(LOSSES);
    assert_eq!(lost.len(), 2, "{lost:?}");
    assert!(lost[0].contains("(C7510)") && lost[0].contains("'wl_f'"), "{lost:?}");
    assert!(lost[1].contains("(C7508)"), "{lost:?}");
    // Warnings are shown as they are.
    assert_eq!(diagnostics(SPILLS).len(), 1);
    assert_eq!(diagnostics("x.cu(3): warning #177-D: unused\n      int x;\n          ^\n\n").len(), 3);
}

#[test]
fn heads_of_entries_are_read() {
    let ptx = "\
.version 9.0
.target sm_80
\t// .globl\twl_one
.visible .entry wl_one(
\t.param .align 8 .b8 wl_one_param_0[120]
)
.maxntid 32, 4, 2
.minnctapersm 4
{
\tld.param.u64 %rd1, [wl_one_param_0];
\t.param .b64 param0;
}
.func helper(.param .b64 x) { ret; }
.visible .entry wl_two(
\t.param .u64 wl_two_param_0,
\t.param .f32 wl_two_param_1
)
{
}
.entry wl_three()
.reqntid 64
{
}
";
    let entry = |name: &str, threads, parameters: &[u32]| Entry {
        name: name.into(),
        threads,
        parameters: parameters.into(),
    };
    assert_eq!(
        entries(ptx),
        [entry("wl_one", 256, &[120]), entry("wl_two", 1024, &[8, 4]), entry("wl_three", 64, &[])]
    );
    assert!(entries("").is_empty());
}

#[test]
fn dependency_files_are_read() {
    let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
    let makefile = "out/x.fatbin : cuda/kernels/x.cu \\\n    /cu\\ da/a.h \\\n    b.h \\\n    b.h\n";
    assert_eq!(dependencies(makefile), paths(&["/cu da/a.h", "b.h", "cuda/kernels/x.cu"]));
    assert!(dependencies("").is_empty());
}

/// A cache in a folder of its own, and a source and a header that objects depend on.
struct Kept {
    folder: tempfile::TempDir,
    begun: SystemTime,
}

impl Kept {
    fn new() -> Kept {
        let kept =
            Kept { folder: tempfile::tempdir().unwrap(), begun: SystemTime::now() + Duration::from_secs(60) };
        kept.write("x.cu", "one");
        kept.write("x.h", "two");
        kept
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// A fresh build.
    fn cache(&self) -> Cache {
        Cache::open(self.folder.path()).unwrap()
    }

    fn keep(&self, options: &str, ptx: &str) {
        let dependencies = vec![self.path("x.cu"), self.path("x.h")];
        let object = Object { fatbin: vec![1, 2], ptx: ptx.into(), output: "said".into(), dependencies };
        self.cache().keep("x", options, &object, self.begun).unwrap();
    }

    fn find(&self, options: &str) -> Option<String> {
        let object = self.cache().find("x", options)?;
        assert_eq!((&object.fatbin[..], object.output.as_str()), (&[1u8, 2][..], "said"));
        Some(object.ptx)
    }
}

#[test]
fn only_what_changed_is_compiled_again() {
    let kept = Kept::new();
    assert_eq!(kept.find("-O3"), None);
    kept.keep("-O3", "first");
    assert_eq!(kept.find("-O3").as_deref(), Some("first"));
    assert_eq!(kept.find("-O2"), None, "other options");
    kept.write("x.h", "three");
    assert_eq!(kept.find("-O3"), None, "a header changed");
    kept.keep("-O3", "second");
    assert_eq!(kept.find("-O3").as_deref(), Some("second"));
    kept.write("x.h", "two");
    assert_eq!(kept.find("-O3").as_deref(), Some("first"), "back at another branch");
    fs::remove_file(kept.path("x.h")).unwrap();
    assert_eq!(kept.find("-O3"), None, "a header is gone");
}

#[test]
fn what_changes_while_nvcc_runs_is_not_kept() {
    let mut kept = Kept::new();
    kept.begun = SystemTime::now() - Duration::from_secs(60);
    kept.keep("-O3", "doubtful");
    assert_eq!(kept.find("-O3"), None);
}

#[test]
fn damage_is_compiled_again_and_old_entries_go() {
    let kept = Kept::new();
    kept.keep("-O3", "first");
    let entries = |kept: &Kept| {
        let folder = fs::read_dir(kept.path("warploom-kernels")).unwrap().map(|entry| entry.unwrap().path());
        folder.filter(|path| path.is_dir()).collect::<Vec<_>>()
    };
    fs::remove_file(entries(&kept)[0].join("ptx")).unwrap();
    assert_eq!(kept.find("-O3"), None);
    kept.keep("-O3", "again");
    assert_eq!(kept.find("-O3").as_deref(), Some("again"));
    for version in 0..20 {
        kept.write("x.h", &version.to_string());
        kept.keep("-O3", &version.to_string());
    }
    assert_eq!(entries(&kept).len(), 8);
    assert_eq!(kept.find("-O3").as_deref(), Some("19"));
}

#[test]
fn the_table_is_whole() {
    let mut names = HashSet::new();
    for family in FAMILIES {
        let source =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/kernels").join(family.name).with_extension("cu");
        assert!(source.is_file(), "{}", source.display());
        assert!(
            family.ptx.contains(".target sm_90") || Arch::of_file(family.name).is_some(),
            "{}",
            family.name
        );
        assert!(!family.entries.is_empty(), "{} has no entries", family.name);
        // The magic number of a fatbin.
        assert_eq!(family.fatbin.get(..4), Some(&0xba55_ed50u32.to_le_bytes()[..]), "{}", family.name);
        assert_eq!(family.fatbin.as_ptr() as usize % 16, 0);
        for entry in family.entries {
            assert!(names.insert(entry.name), "two entries {}", entry.name);
            assert!((1..=1024).contains(&entry.threads), "{entry:?}");
            for compiled in entry.compiled {
                assert!(
                    (1..=255).contains(&compiled.registers) && compiled.shared_bytes <= 48 << 10,
                    "{entry:?}"
                );
                assert_ne!(compiled.resident(entry.threads, 0), Some(0), "{entry:?} fits no SM");
            }
        }
    }
}

/// What a product gains where its launch begins early: ptxas has been seen to move such loads behind the wait.
#[test]
fn weights_are_loaded_before_the_wait() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let nvcc = Command::new(root.join("scripts/find-nvcc")).output().unwrap();
    let nvcc = PathBuf::from(String::from_utf8(nvcc.stdout).unwrap().trim());
    let folder = tempfile::tempdir().unwrap();
    let fatbin = folder.path().join("linear.fatbin");
    let family = FAMILIES.iter().find(|family| family.name == "linear").expect("the family linear");
    fs::write(&fatbin, family.fatbin).unwrap();
    let path = std::env::join_paths(
        nvcc.parent()
            .map(Path::to_path_buf)
            .into_iter()
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let sass = Command::new("cuobjdump").env("PATH", path.unwrap()).arg("-sass").arg(&fatbin).output();
    let Ok(sass) = sass else {
        println!("skipped: no cuobjdump");
        return;
    };
    let text = String::from_utf8_lossy(&sass.stdout);
    // Loads of global memory before the wait, by entry; None until there is a wait.
    let (mut entry, mut loads, mut met) = ("", 0, 0);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("Function : ") {
            (entry, loads) = (name, 0);
        } else if line.contains(" LDG.") {
            loads += 1;
        } else if line.contains("ACQBULK") && !entry.ends_with("_any") {
            // Of 64 rows in e4m3 half as much is in flight.
            assert!(loads >= 4, "{entry}: {loads} loads before the wait");
            met += 1;
        }
    }
    if met == 0 {
        println!(
            "skipped: no machine code for Hopper and later ({})",
            String::from_utf8_lossy(&sass.stderr).trim()
        );
    }
}
