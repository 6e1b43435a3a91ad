//! Compiles every file of `cuda/kernels` that has changed, judges what ptxas says of it, and writes the table
//! `OUT_DIR/kernels.rs` that src/kernels/compiled.rs includes.
//!
//! Of a file come one fatbin, with machine code for each architecture and PTX for later ones, compute_80, and the PTX that the simulator
//! executes: compute_90, which has all that compute_80 has and programmatic dependent launches. Of a file whose name ends in one
//! architecture (`_sm90a`) both are for that.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::SystemTime,
};

use crate::{
    arch::{Arch, BASELINE, SIMULATED},
    cache::{self, Cache, Object},
    nvcc::Nvcc,
    ptxas,
};

const SOURCES: &str = "cuda/kernels";
const OPTIONS: [&str; 5] = ["-O3", "-std=c++17", "-lineinfo", "-Icuda/include", "-Icuda"];

/// A kernel file.
struct Source {
    /// Its name without the ending.
    stem: String,
    /// From the root of the repository.
    path: String,
    /// Options of the two calls of nvcc, without what names files.
    calls: [Vec<String>; 2],
    /// Architectures that it is compiled to machine code for.
    archs: Vec<Arch>,
    /// That of the PTX beside it.
    later: Arch,
}

/// Builds all.
pub fn build() -> Result<(), String> {
    println!("cargo::rerun-if-env-changed=DOCS_RS");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=cuda");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: cargo runs this")?);
    println!("cargo::metadata=kernels={}", out_dir.display());
    // Documentation is built where there is no nvcc, and tells nothing of machine code.
    if env::var_os("DOCS_RS").is_some() {
        return write(&out_dir.join("kernels.rs"), table(&[], 0)?.as_bytes());
    }
    let nvcc = Nvcc::find(&out_dir)?;
    let archs = nvcc.architectures()?;
    let sources = sources(&archs)?;
    let objects = compile(&nvcc, &sources, &out_dir)?;

    let mut faults = String::new();
    for (source, object) in sources.iter().zip(&objects) {
        judge(source, object, &mut faults);
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    for (source, object) in sources.iter().zip(&objects) {
        for line in ptxas::diagnostics(&object.output) {
            println!("cargo::warning={line}");
        }
        write(&out_dir.join(format!("{}.fatbin", source.stem)), &object.fatbin)?;
        write(&out_dir.join(format!("{}.ptx", source.stem)), object.ptx.as_bytes())?;
        for path in &object.dependencies {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    let compiled: Vec<(&Source, &Object)> = sources.iter().zip(&objects).collect();
    write(&out_dir.join("kernels.rs"), table(&compiled, nvcc.version)?.as_bytes())
}

/// The kernel files, by name.
fn sources(archs: &[Arch]) -> Result<Vec<Source>, String> {
    // A checkout without kernels has no folder for them.
    let Ok(folder) = fs::read_dir(SOURCES) else { return Ok(Vec::new()) };
    let mut paths = Vec::new();
    for entry in folder {
        let path = entry.map_err(|error| format!("{SOURCES}: {error}"))?.path();
        if path.extension().is_some_and(|ending| ending == "cu") {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    let source = |path: &PathBuf| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let only = Arch::of_file(&stem);
        let archs: Vec<Arch> =
            archs.iter().copied().filter(|&arch| only.is_none_or(|only| only == arch)).collect();
        let (later, simulated) = (only.unwrap_or(BASELINE), only.unwrap_or(SIMULATED));
        let gencode = |virtual_arch: Arch, code: String| {
            ["-gencode".into(), format!("arch=compute_{virtual_arch},code={code}")]
        };
        let options = || OPTIONS.iter().map(|option| option.to_string());
        let mut fatbin: Vec<String> = options()
            .chain(["-fatbin", "-Xfatbin", "-compress-all", "-Xptxas", "-v,-warn-spills"].map(String::from))
            .collect();
        for &arch in &archs {
            fatbin.extend(gencode(arch, format!("sm_{arch}")));
        }
        fatbin.extend(gencode(later, format!("compute_{later}")));
        let ptx = gencode(simulated, format!("compute_{simulated}"));
        let ptx: Vec<String> = options().chain(["-ptx".into()]).chain(ptx).collect();
        Source { stem, path: path.to_string_lossy().into_owned(), calls: [fatbin, ptx], archs, later }
    };
    let sources: Vec<Source> = paths.iter().map(source).collect();
    // Its name becomes that of a static in Rust.
    match sources.iter().find(|source| !source.stem.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')) {
        Some(source) => {
            Err(format!("{}: rename it: letters, digits and _ make a kernel file's name", source.path))
        }
        None => Ok(sources),
    }
}

/// Finds each file's object, or makes it.
fn compile(nvcc: &Nvcc, sources: &[Source], out_dir: &Path) -> Result<Vec<Object>, String> {
    let cache = Cache::open(out_dir)?;
    let options = |source: &Source| format!("{}\n{:?}", nvcc.identity, source.calls);
    let mut objects: Vec<Option<Object>> =
        sources.iter().map(|source| cache.find(&source.stem, &options(source)).filter(is_compiled)).collect();

    // The fatbin takes longer, by as much as there are architectures: those first.
    let missing: Vec<usize> = (0..sources.len()).filter(|&index| objects[index].is_none()).collect();
    let calls: Vec<(usize, usize)> =
        [0, 1].iter().flat_map(|&call| missing.iter().map(move |&index| (index, call))).collect();
    let begun = SystemTime::now();
    let outputs = parallel(&calls, |&(index, call)| {
        let source = &sources[index];
        let outputs = ["fatbin", "ptx"].map(|ending| out_dir.join(format!("{}.{ending}.new", source.stem)));
        let mut arguments = source.calls[call].clone();
        if call == 0 {
            arguments.extend([
                "-MMD".into(),
                "-MF".into(),
                out_dir.join(format!("{}.d", source.stem)).display().to_string(),
            ]);
        }
        arguments.extend(["-o".into(), outputs[call].display().to_string(), source.path.clone()]);
        nvcc.run(&arguments)
    });

    let mut failed = String::new();
    for (place, &index) in missing.iter().enumerate() {
        let source = &sources[index];
        // The other call says the same of a file that does not compile.
        let output = match (&outputs[place], &outputs[missing.len() + place]) {
            (Ok(output), Ok(_)) => output.clone(),
            (Err(text), _) | (_, Err(text)) => {
                let text = ptxas::diagnostics(text).join("\n");
                let _ = writeln!(failed, "{}: nvcc does not compile it:\n{text}", source.path);
                continue;
            }
        };
        let file = |ending: &str| {
            let path = out_dir.join(format!("{}.{ending}", source.stem));
            fs::read(&path).map_err(|error| format!("{}: nvcc wrote no such file: {error}", path.display()))
        };
        let ptx = String::from_utf8_lossy(&file("ptx.new")?).into_owned();
        let dependencies = cache::dependencies(&String::from_utf8_lossy(&file("d")?));
        let object = Object { fatbin: file("fatbin.new")?, ptx, output, dependencies };
        if !is_compiled(&object) {
            let nvcc = nvcc.path.display();
            let _ = writeln!(
                failed,
                "{}: {nvcc} made no fatbin with PTX of it: is it CUDA's compiler, or does it call that? NVCC names another",
                source.path
            );
            continue;
        }
        if let Err(error) = cache.keep(&source.stem, &options(source), &object, begun) {
            println!("cargo::warning={} was compiled but not kept: {error}", source.path);
        }
        for ending in ["fatbin.new", "ptx.new", "d"] {
            let _ = fs::remove_file(out_dir.join(format!("{}.{ending}", source.stem)));
        }
        objects[index] = Some(object);
    }
    if failed.is_empty() { Ok(objects.into_iter().flatten().collect()) } else { Err(failed) }
}

/// Runs `work` on every item, as many at a time as cargo allows.
fn parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = env::var("NUM_JOBS")
        .ok()
        .and_then(|jobs| jobs.parse().ok())
        .unwrap_or(1)
        .clamp(1, items.len().max(1));
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((index, item)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, items.get(i)?)))
                {
                    let result = work(item);
                    results.lock().unwrap().push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort_unstable_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Whether it is what nvcc makes of a file of kernels, whatever they are.
fn is_compiled(object: &Object) -> bool {
    const MAGIC: [u8; 4] = 0xba55_ed50_u32.to_le_bytes();
    object.fatbin.starts_with(&MAGIC) && !ptxas::entries(&object.ptx).is_empty()
}

/// Adds to `faults` what must not be in a kernel.
fn judge(source: &Source, object: &Object, faults: &mut String) {
    let mut found = ptxas::faults(&object.output);
    let reports = ptxas::parse(&object.output);
    for entry in ptxas::entries(&object.ptx) {
        let name = &entry.name;
        if !name.starts_with("wl_") {
            found.push(format!("{name} is no name of an entry: they are extern \"C\" and begin with wl_"));
        }
        if entry.parameters.len() != 1 {
            let count = entry.parameters.len();
            found.push(format!("{name} has {count} parameters; an entry has one, a struct of cuda/include"));
        }
        for arch in &source.archs {
            if !reports.iter().any(|report| report.entry == *name && report.arch == arch.to_string()) {
                found.push(format!("ptxas reported nothing of {name} for sm_{arch}"));
            }
        }
    }
    for fault in found {
        let _ = writeln!(faults, "{}: {fault}", source.path);
    }
}

/// The Rust source of the table.
fn table(compiled: &[(&Source, &Object)], cuda: u32) -> Result<String, String> {
    let mut text = String::from(
        "/// The compiled kernels: a family for each file of `cuda/kernels`, by name.\npub static FAMILIES: &[crate::driver::Family] = &[\n",
    );
    let say = |_| String::from("the table of kernels cannot be written");
    text.insert_str(
        0,
        &format!(
            "/// CUDA version of what compiled the kernels, as cuDriverGetVersion counts: 13000 is 13.0.\n\
             pub const CUDA_VERSION: u32 = {cuda};\n\n"
        ),
    );
    for (source, object) in compiled {
        let stem = &source.stem;
        let reports = ptxas::parse(&object.output);
        writeln!(text, "    crate::driver::Family {{\n        name: {stem:?},").map_err(say)?;
        writeln!(text, "        fatbin: &FATBIN_{}.0,", stem.to_uppercase()).map_err(say)?;
        writeln!(text, "        fatbin_ptx: \"{}\",", source.later).map_err(say)?;
        writeln!(
            text,
            "        ptx: include_str!(concat!(env!(\"OUT_DIR\"), \"/{stem}.ptx\")),\n        entries: &["
        )
        .map_err(say)?;
        for entry in ptxas::entries(&object.ptx) {
            let parameter = entry.parameters.iter().sum::<u32>();
            writeln!(
                text,
                "            crate::driver::Entry {{\n                name: {:?},\n                threads: {},\n                \
                 parameter_bytes: {parameter},\n                compiled: &[",
                entry.name, entry.threads
            )
            .map_err(say)?;
            for report in reports.iter().filter(|report| report.entry == entry.name) {
                writeln!(
                    text,
                    "                    crate::driver::Compiled {{ arch: {:?}, registers: {}, shared_bytes: {}, barriers: {} }},",
                    report.arch, report.registers, report.shared_bytes, report.barriers
                )
                .map_err(say)?;
            }
            text.push_str("                ],\n            },\n");
        }
        text.push_str("        ],\n    },\n");
    }
    text.push_str("];\n");
    if !compiled.is_empty() {
        text.push_str(
            "\n/// As nvcc aligns them in a program.\n#[repr(C, align(16))]\nstruct Aligned<Bytes>(Bytes);\n",
        );
    }
    for (source, object) in compiled {
        let (name, size) = (source.stem.to_uppercase(), object.fatbin.len());
        writeln!(
            text,
            "static FATBIN_{name}: Aligned<[u8; {size}]> =\n    Aligned(*include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{}.fatbin\")));",
            source.stem
        )
        .map_err(say)?;
    }
    Ok(text)
}

/// Writes a file that rustc reads, whole or not at all.
fn write(path: &Path, contents: &[u8]) -> Result<(), String> {
    if fs::read(path).is_ok_and(|old| old == contents) {
        return Ok(());
    }
    let part = path.with_extension("part");
    fs::write(&part, contents)
        .and_then(|()| fs::rename(&part, path))
        .map_err(|error| format!("{}: {error}", path.display()))
}
