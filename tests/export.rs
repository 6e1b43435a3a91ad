//! The kernels as files: what is written, that its manifest says how every launch here is made, and that a program which
//! has nothing but these files launches kernels with the right results.

#[path = "common/manifest.rs"]
mod manifest;
#[path = "common/shapes.rs"]
mod shapes;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output},
    sync::Arc,
};

use ptxsim::{
    Argument, Device, Gpu, Module,
    param::{Inputs, Placed},
};
use serde_json::{Value, json};
use warploom::{
    driver::{Buffer, Driver, Policy, Simulator, Stream},
    kernels::{
        self, Dtype, FAMILIES, RmsNorm, RmsNormArgs, Rows, RowsMut,
        params::{WL_LINEAR_STORE_F32, WL_VERSION, WlRmsNorm},
        survey::{Shapes, Survey},
    },
};

use manifest::{Launch, Manifest, Sizes, array, number, text};

/// A few rows more than one, and a vocabulary of two parts.
const SHAPES: Shapes = Shapes { vocab: 9000, rows: 5, ..shapes::SMALL };

fn export(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warploom"));
    command.arg("export").args(arguments).output().expect("the command starts")
}

/// The manifest of a folder, read as a foreign program does.
fn read(folder: &Path) -> Manifest {
    Manifest(serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap())
}

/// Names and contents of a folder.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
    let mut files: Vec<_> = entries.map(|path| (name(&path), fs::read(&path).unwrap_or_default())).collect();
    files.sort();
    files
}

#[test]
fn a_folder_has_all_that_its_manifest_names() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("a/kernels");
    let output = export(&["--out", folder.to_str().unwrap(), "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let manifest = read(&folder);
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), manifest.0);
    assert_eq!(serde_json::to_value(kernels::manifest().unwrap()).unwrap(), manifest.0);
    assert_eq!(
        (&manifest.0["format"], &manifest.0["warploom"]),
        (&json!(1), &json!(env!("CARGO_PKG_VERSION")))
    );

    let mut named = BTreeSet::from(["manifest.json".to_string()]);
    let mut holds = |name: &Value, bytes: &[u8]| {
        assert!(fs::read(folder.join(text(name))).unwrap() == bytes, "{name}");
        named.insert(text(name).into());
    };
    for (module, family) in array(&manifest.0["modules"]).iter().zip(FAMILIES) {
        assert_eq!(module["name"], family.name);
        holds(&module["fatbin"], family.fatbin);
        holds(&module["ptx"], family.ptx.as_bytes());
        assert_eq!((&module["ptx_target"], &module["fatbin_ptx"]), (&json!("sm_90"), &json!("compute_80")));
        assert!(text(&module["ptx_version"]).parse::<f32>().unwrap() >= 8.0);
        let compiled: Vec<String> =
            family.entries[0].compiled.iter().map(|compiled| format!("sm_{}", compiled.arch)).collect();
        assert_eq!(module["architectures"], json!(compiled));
        let ptx = Module::parse(family.ptx).unwrap();
        for (entry, compiled) in array(&module["entries"]).iter().zip(family.entries) {
            let name = text(&entry["name"]);
            assert_eq!(name, compiled.name);
            assert!(!text(&entry["about"]).is_empty());
            assert!(!entry["launch"].to_string().contains("\\n"), "{name}: expressions are one line each");
            let parameter = &manifest.0["structs"][text(&entry["parameter"])];
            assert_eq!(parameter["bytes"], entry["parameter_bytes"], "{name}");
            assert_eq!(ptx.entry(name).unwrap().parameters, [number(&entry["parameter_bytes"]) as u32]);
            // Every kernel of this project does; arch/dependency.cuh says why.
            assert_eq!(
                (&entry["programmatic"]["waits"], &entry["programmatic"]["releases"]),
                (&json!(true), &json!(true))
            );
        }
        // None has any so far: one that has is to say in the manifest who sets them.
        assert_eq!(module["globals"], json!([]));
    }
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/include");
    for header in array(&manifest.0["headers"]) {
        holds(header, &fs::read(include.join(text(header))).unwrap());
    }
    assert_eq!(
        array(&manifest.0["headers"]).len(),
        fs::read_dir(include).unwrap().count(),
        "a header is left out"
    );
    let written: BTreeSet<String> = contents(&folder).into_iter().map(|(name, _)| name).collect();
    assert_eq!(written, named);

    let output = export(&["--out", folder.to_str().unwrap()]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.lines().count(), FAMILIES.len() + 1, "{said}");
    for family in FAMILIES {
        let line = said.lines().find(|line| line.starts_with(family.name)).unwrap();
        assert!(line.contains(&family.entries.len().to_string()) && line.contains("compute_80"), "{line}");
    }
}

/// Structs are as C lays them out, which tests/params.rs has compilers confirm; here that nothing is missing between fields.
#[test]
fn structs_have_no_gaps() {
    let manifest = kernels::manifest().unwrap();
    assert!(manifest.structs.len() >= 20, "{:?}", manifest.structs.keys());
    for (name, of) in &manifest.structs {
        let mut end = 0;
        for field in &of.fields {
            assert_eq!(field.offset, end, "{name}.{}", field.name);
            end += field.bytes;
        }
        assert_eq!(end.next_multiple_of(of.alignment), of.bytes, "{name}");
    }
    let norm = &manifest.structs["WlRmsNorm"];
    assert_eq!((norm.bytes, norm.alignment), (size_of::<WlRmsNorm>(), align_of::<WlRmsNorm>()));
    let field = |name: &str| norm.fields.iter().find(|field| field.name == name).unwrap();
    assert_eq!(field("type").about, "T: WL_BF16, WL_F16 or WL_F32, that of the entry");
    assert_eq!(field("weight").about, "T [width]");
    assert_eq!(field("y_stride").offset, std::mem::offset_of!(WlRmsNorm, y_stride));
    let projection = manifest.structs["WlLinear"].fields.last().unwrap();
    assert_eq!((projection.kind, projection.count, projection.bytes), ("WlProjection", Some(3), 3 * 40));
    assert!(
        norm.about.starts_with("Any row may begin anywhere") && norm.about.ends_with("of y in T."),
        "{}",
        norm.about
    );
    assert_eq!(manifest.constants["WL_ATTENTION_MAX_KEYS"], 1 << 28);
}

/// What the functions of Rust refuse before a launch, the manifest lets nobody launch.
#[test]
fn what_is_refused_is_not_required() {
    let manifest = Manifest(serde_json::to_value(kernels::manifest().unwrap()).unwrap());
    let heads = [
        ("head_dim", -8.0),
        ("head_dim", 0.0),
        ("head_dim", 60.0),
        ("heads", 7.0),
        ("heads", 8192.0),
        ("kv_heads", 0.0),
        ("kv_heads", 3.0),
        ("table_rows", 0.0),
        ("max_keys", 0.0),
        ("max_keys", f64::from(1 << 30)),
        ("max_rows", 0.0),
        ("sequences", 65536.0),
        ("tokens", 0.0),
        ("q_stride", 260.0),
        ("out_stride", 1.0),
        ("mask.pattern", 7.0),
        ("mask.pattern", 1.0), // a window of 0 keys
        ("mask.keys", -1000.0),
        ("mask.prefix", -1.0),
        ("pages.page_size", 12.0),
        ("pages.slot_stride", 12.0),
        ("pages.type", 2.0),
    ];
    let products = [
        ("rows", 0.0),
        ("inputs", 0.0),
        ("inputs", f64::from(1 << 30)),
        ("epilogue", 4.0),
        ("projections", 0.0),
        ("projections", 4.0),
        ("projection[0].features", 0.0),
        ("projection[0].column", -1.0),
        ("projection[0].column", f64::from(1 << 28)),
        ("projection[0].stride", 1.0),
        ("out_stride", 1.0),
        ("x_stride", 1.0),
        ("weight_type", 2.0),
    ];
    let wrong: &[(&str, &[(&str, f64)])] = &[
        ("wl_attention", &heads),
        ("wl_attention_decode", &[("max_rows", 65.0), ("part_keys", 0.0), ("part_keys", 100.0)]),
        ("wl_linear", &products),
        (
            "wl_linear",
            &[
                ("rows", 65.0),
                ("segments", 0.0),
                ("segments", 9.0),
                ("segment_length", 100.0),
                ("segment_length", 0.0),
            ],
        ),
        ("wl_gemm", &products),
        (
            "wl_rope_append",
            &[
                ("head_dim", 63.0),
                ("head_dim", 258.0),
                ("kv_heads", 0.0),
                ("qkv_stride", 1.0),
                ("pages.page_size", 12.0),
            ],
        ),
        (
            "wl_rms_norm",
            &[("width", 0.0), ("width", 1.5e9), ("x_stride", 1.0), ("y_stride", 1.0), ("y_type", 7.0)],
        ),
        ("wl_swiglu", &[("width", 0.0), ("width", 1e8), ("gate_stride", 1.0), ("out_type", 7.0)]),
        ("wl_embed", &[("width", 0.0), ("width", 1e8), ("out_stride", 1.0), ("vocabulary", -1.0)]),
        ("wl_quantize_fp8_rows", &[("width", 0.0), ("q_stride", 1.0)]),
        ("wl_sample", &[("mode", 2.0), ("rows", 4097.0), ("vocab", 3e6), ("steps", 18.0)]),
        ("wl_round_begin", &[("steps", 0.0), ("steps", 18.0), ("slots", -1.0)]),
        ("wl_accept", &[("vocab", 0.0), ("vocab", 3e6), ("steps", 17.0), ("verify_rows", -1.0)]),
        ("wl_adamw", &[("count", -1.0), ("count", 1e13), ("gradient_type", 7.0)]),
    ];
    // Where there is one row or page, nothing is read of a stride.
    let several: &[(&str, [(&str, f64); 2])] = &[
        ("wl_attention", [("pages.pages", 4.0), ("pages.page_stride", 12.0)]),
        ("wl_sample", [("rows", 2.0), ("logits_stride", 1.0)]),
    ];
    let families: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
    let mut survey = Survey::new(SHAPES).unwrap();
    let mut tried = BTreeSet::new();
    for family in families {
        for launch in survey.family(family).unwrap() {
            let report = launch.report;
            let every = [("version", 2.0), ("type", 7.0)];
            let of_entry = wrong.iter().filter(|(prefix, _)| report.entry.starts_with(prefix));
            let fields = of_entry.flat_map(|(_, fields)| fields.iter()).chain(&every);
            for (field, value) in fields {
                // An entry without the field, as rounds have no type.
                let Some(parameter) = manifest.with(report.entry, &report.parameter, field, *value) else {
                    continue;
                };
                let taken = manifest.try_launch(report.entry, &parameter);
                assert!(taken.is_err(), "{} with {field} {value}", report.entry);
                tried.insert((report.entry, *field));
            }
            for (_, fields) in several.iter().filter(|(prefix, _)| report.entry.starts_with(prefix)) {
                let set = |parameter: Vec<u8>, &(field, value): &(&str, f64)| {
                    manifest.with(report.entry, &parameter, field, value).expect(field)
                };
                let parameter = fields.iter().fold(report.parameter.clone(), set);
                assert!(
                    manifest.try_launch(report.entry, &parameter).is_err(),
                    "{} {fields:?}",
                    report.entry
                );
                // What they were changed from is taken.
                assert!(manifest.try_launch(report.entry, &report.parameter).is_ok(), "{}", report.entry);
            }
        }
    }
    assert!(tried.len() > 300, "{}", tried.len());
}

/// Launches of every entry at two shapes and under other masks; tests/kernels checks those of its random shapes.
#[test]
fn every_launch_is_as_the_manifest_says() {
    let manifest = Manifest(serde_json::to_value(kernels::manifest().unwrap()).unwrap());
    let mut launched = BTreeSet::new();
    let mut survey = |shapes: Shapes, families: &[&str]| {
        let mut survey = Survey::new(shapes).unwrap();
        for family in families {
            for launch in survey.family(family).unwrap_or_else(|e| panic!("{e}")) {
                let report = launch.report;
                manifest.check(&report);
                let (_, entry) = manifest.entry(report.entry);
                assert_eq!(entry["programmatic"]["always"], report.programmatic, "{}", report.entry);
                launched.insert(report.entry);
            }
        }
    };
    let families: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
    survey(SHAPES, &families);
    survey(Shapes { dtype: Dtype::F16, ..SHAPES }, &families);
    for mask in ["window:64", "chunk:100", "blockwise:200"] {
        let mask = mask.parse().unwrap();
        survey(Shapes { mask, context: 2500, rows: 2, ..SHAPES }, &["attention_decode"]);
    }
    let known: BTreeSet<&str> = FAMILIES.iter().flat_map(|f| f.entries).map(|entry| entry.name).collect();
    assert_eq!(launched, known);

    // Names stand for one thing.
    for module in array(&manifest.0["modules"]) {
        for entry in array(&module["entries"]) {
            let fields = array(&manifest.0["structs"][text(&entry["parameter"])]["fields"]);
            for value in array(&entry["launch"]["values"]) {
                let same = |field: &&Value| field["name"] == value["name"];
                assert_eq!(fields.iter().find(same), None, "{}", entry["name"]);
                assert_eq!(manifest.0["constants"].get(text(&value["name"])), None, "{}", entry["name"]);
            }
        }
    }

    // What is compared can differ.
    let launches = Survey::new(SHAPES).unwrap().family("embed").unwrap();
    let report = &launches[0].report;
    for (place, wrong) in [
        ("/launch/grid/0", "rows * ceil_div(width, WL_EMBED_FEATURES) + 1"),
        ("/launch/block/0", "WL_EMBED_THREADS / 2"),
        ("/launch/dynamic_shared_bytes", "width"),
        ("/requires/0", "rows < 1"),
    ] {
        let mut other = Manifest(manifest.0.clone());
        let modules = other.0["modules"].as_array_mut().unwrap();
        let entries = modules.iter_mut().flat_map(|module| module["entries"].as_array_mut().unwrap());
        let entry = entries.into_iter().find(|entry| entry["name"] == report.entry).unwrap();
        *entry.pointer_mut(place).unwrap() = json!(wrong);
        assert!(std::panic::catch_unwind(|| other.check(report)).is_err(), "{wrong}");
    }
}

/// A device that has what an export holds, and nothing else of this crate's.
struct Foreign {
    folder: tempfile::TempDir,
    manifest: Manifest,
    device: Device,
}

impl Foreign {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        kernels::export(folder.path()).unwrap();
        let manifest = read(folder.path());
        Foreign { folder, manifest, device: Device::new(Gpu::H100) }
    }

    fn upload(&mut self, numbers: &[f32]) -> f64 {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let address = self.device.allocate(bytes.len() as u64).unwrap();
        self.device.write(address, &bytes).unwrap();
        address as f64
    }

    fn floats(&mut self, address: f64, count: usize) -> Vec<f32> {
        let bytes = self.device.read(address as u64, 4 * count).unwrap();
        bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
    }

    /// Runs the PTX that was written, with the parameter and sizes of the manifest.
    fn launch(&mut self, entry: &str, parameter: &[u8]) {
        let (module, _) = self.manifest.entry(entry);
        let ptx = fs::read_to_string(self.folder.path().join(text(&module["ptx"]))).unwrap();
        let loaded = self.device.load(Module::parse(&ptx).unwrap()).unwrap();
        let Sizes { grid, block, cluster, shared_bytes } = self.manifest.launch(entry, parameter).sizes();
        let arguments = vec![Argument(parameter.to_vec())];
        let launch = ptxsim::Launch { grid, block, cluster, shared_bytes, arguments, ..Default::default() };
        let report = self.device.launch(&loaded, entry, &launch).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
    }
}

/// Numbers between −1 and 1 that bf16 has, no two neighbours alike.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + seed * 11) % 251) as f32 / 128.0 - 0.98046875).collect()
}

/// The command of docs/export.md, without the command.
#[test]
fn a_launch_is_checked_as_documented() {
    let foreign = Foreign::new();
    let lines = include_str!("../docs/export.md").lines();
    let words: Vec<&str> =
        lines.map(str::trim).find(|line| line.starts_with("ptxsim check")).unwrap().split(' ').collect();
    let after = |option: &str| words[words.iter().position(|word| *word == option).unwrap() + 1];
    let file = words[2].strip_prefix("kernels/").unwrap();
    let ptx = fs::read_to_string(foreign.folder.path().join(file)).unwrap();
    let (entry, param) = (after("--entry"), after("--param"));
    let size = |option| [after(option).parse().unwrap(), 1, 1];
    for (param, findings) in [(param.to_string(), false), (param.replacen("1024", "1000", 1), true)] {
        let inputs = Inputs::load(&[param.parse().unwrap()], 1 << 20).unwrap();
        let mut device = Device::new(Gpu::H100);
        let loaded = device.load(Module::parse(&ptx).unwrap()).unwrap();
        let Placed { arguments, .. } = inputs.place(&mut device).unwrap();
        let sizes = foreign.manifest.launch(entry, &arguments[0].0).sizes();
        assert_eq!((sizes.grid, sizes.block), (size("--grid"), size("--block")));
        let Sizes { grid, block, cluster, shared_bytes } = sizes;
        let launch = ptxsim::Launch { grid, block, cluster, shared_bytes, arguments, ..Default::default() };
        let report = device.launch(&loaded, entry, &launch).unwrap();
        assert_eq!(!report.findings.is_empty(), findings, "{:?}", report.findings);
    }
}

#[test]
fn rms_norm_runs_from_the_files_alone() {
    let mut foreign = Foreign::new();
    let (rows, width, stride) = (5, 300, 301);
    let (x, weight) = (numbers(rows * stride, 1), numbers(width, 2));
    let addresses =
        [foreign.upload(&x), foreign.upload(&weight), foreign.upload(&vec![f32::NAN; rows * width])];
    let fields = [
        ("version", WL_VERSION.into()),
        ("type", 2.0),
        ("y_type", 2.0),
        ("rows", rows as f64),
        ("width", width as f64),
        ("eps", 1e-5),
        ("x", addresses[0]),
        ("weight", addresses[1]),
        ("y", addresses[2]),
        ("x_stride", stride as f64),
        ("y_stride", width as f64),
    ];
    let parameter = foreign.manifest.pack("wl_rms_norm_f32", &fields);
    foreign.launch("wl_rms_norm_f32", &parameter);
    let y = foreign.floats(addresses[2], rows * width);
    for row in 0..rows {
        let x = &x[row * stride..][..width];
        let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
        let scale = 1.0 / (squares / width as f64 + 1e-5).sqrt();
        for i in 0..width {
            let expected = f64::from(weight[i]) * f64::from(x[i]) * scale;
            assert!((f64::from(y[row * width + i]) - expected).abs() < 1e-5, "row {row}, feature {i}");
        }
    }
}

/// A product in several segments, with fields in an array of structs, and scratch of which no more is zeroed than the
/// manifest asks for.
#[test]
fn a_product_runs_from_the_files_alone() {
    let mut foreign = Foreign::new();
    let (rows, inputs, features) = (3, 1024, 200);
    let (x, weight) = (numbers(rows * inputs, 3), numbers(features * inputs, 4));
    let bf16 = |numbers: &[f32]| -> Vec<f32> {
        // Two in the place of an f32.
        let halves: Vec<u32> = numbers.iter().map(|number| number.to_bits() >> 16).collect();
        halves.chunks_exact(2).map(|pair| f32::from_bits(pair[1] << 16 | pair[0])).collect()
    };
    let out = foreign.upload(&vec![f32::NAN; rows * features]);
    let mut fields = vec![
        ("version", WL_VERSION.into()),
        ("epilogue", WL_LINEAR_STORE_F32.into()),
        ("rows", rows as f64),
        ("inputs", inputs as f64),
        ("projections", 1.0),
        ("segments", 4.0),
        ("segment_length", 256.0),
        ("x", foreign.upload(&bf16(&x))),
        ("out", out),
        ("x_stride", inputs as f64),
        ("out_stride", features as f64),
        ("projection[0].weight", foreign.upload(&bf16(&weight))),
        ("projection[0].stride", inputs as f64),
        ("projection[0].features", features as f64),
    ];
    let entry = "wl_linear_bf16_16";
    let parameter = foreign.manifest.pack(entry, &fields);
    let launch: Launch = foreign.manifest.launch(entry, &parameter);
    let [range] = array(&launch.entry["scratch"]) else { panic!("one range") };
    let (bytes, zeros) = (launch.evaluate(text(&range["bytes"])), launch.evaluate(text(&range["zeros"])));
    assert!(0 < zeros && zeros < bytes);
    let scratch = foreign.device.allocate(bytes as u64).unwrap();
    foreign.device.write(scratch, &vec![0; zeros as usize]).unwrap();
    assert_eq!(range["field"], "scratch");
    fields.push(("scratch", scratch as f64));
    let parameter = foreign.manifest.pack(entry, &fields);
    // They are left as they were found.
    for _ in 0..2 {
        foreign.launch(entry, &parameter);
        assert!(foreign.device.read(scratch, zeros as usize).unwrap().iter().all(|byte| *byte == 0));
    }
    let y = foreign.floats(out, rows * features);
    for row in 0..rows {
        for feature in 0..features {
            let pairs = x[row * inputs..][..inputs].iter().zip(&weight[feature * inputs..]);
            let expected: f64 = pairs.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            let found = f64::from(y[row * features + feature]);
            assert!((found - expected).abs() < 1e-2, "{row}, {feature}: {found}, {expected}");
        }
    }
}

/// examples/python/load_module.py, up to the launch.
#[test]
fn the_example_in_python_makes_the_launch_that_is_made_here() {
    let folder = tempfile::tempdir().unwrap();
    kernels::export(folder.path()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python/load_module.py");
    let Ok(output) = Command::new("python3").arg(&script).arg(folder.path()).arg("--dry-run").output() else {
        println!("skipped: no python3");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    if std::env::var_os("WARPLOOM_DEVICE").is_some() {
        let output = Command::new("python3").arg(&script).arg(folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();

    let simulator = Arc::new(Simulator::new(Policy::default()));
    let driver: Arc<dyn Driver> = simulator.clone();
    let (stream, norm) = (Stream::new(&driver).unwrap(), RmsNorm::load(&driver).unwrap());
    let (rows, width) = (5, 300);
    let x = Buffer::from_slice(&stream, &numbers(rows * width, 1)).unwrap();
    let weight = Buffer::from_slice(&stream, &numbers(width, 2)).unwrap();
    let mut y = Buffer::new(&driver, 4 * rows * width).unwrap();
    let args = RmsNormArgs {
        dtype: Dtype::F32,
        rows,
        width,
        eps: 1e-5,
        x: Rows { view: x.view(), stride: width },
        residual: None,
        weight: weight.view(),
        y: RowsMut { view: y.view_mut(), stride: width },
        stats: None,
        positions: None,
    };
    let reports = simulator.reports(|| norm.launch(&stream, &args)).unwrap();
    let [report] = &reports[..] else { panic!("one launch") };
    assert_eq!((text(&said["entry"]), text(&said["fatbin"])), (report.entry, "rms_norm.fatbin"));
    assert_eq!((&said["grid"], &said["block"]), (&json!(report.grid), &json!(report.block)));
    assert_eq!(said["shared_bytes"], report.shared_bytes);
    let hex = text(&said["parameter"]);
    let bytes: Vec<u8> =
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
    let theirs: WlRmsNorm = bytemuck::pod_read_unaligned(&bytes);
    let ours: WlRmsNorm = bytemuck::pod_read_unaligned(&report.parameter);
    let addresses = [theirs.x, theirs.weight, theirs.y];
    assert!(
        addresses.iter().all(|address| *address >= 1 << 32 && address.is_multiple_of(256)),
        "{addresses:x?}"
    );
    assert_eq!(BTreeSet::from(addresses).len(), 3);
    // Memory lies elsewhere; all else is the same.
    let [x, weight, y] = addresses;
    assert_eq!(bytes, bytemuck::bytes_of(&WlRmsNorm { x, weight, y, ..ours }));
}

#[test]
fn an_earlier_export_is_replaced() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path();
    kernels::export(folder).unwrap();
    let first = contents(folder);
    // Of another version, with a module more, and another text for a header.
    let path = folder.join("manifest.json");
    let mut older: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    older["modules"].as_array_mut().unwrap().push(json!({"fatbin": "older.fatbin", "ptx": "older.ptx"}));
    fs::write(&path, older.to_string()).unwrap();
    for name in ["older.fatbin", "older.ptx", "wl_common.h"] {
        fs::write(folder.join(name), "older").unwrap();
    }
    kernels::export(folder).unwrap();
    assert!(contents(folder) == first);
    // Broken off, before the manifest came.
    fs::remove_file(&path).unwrap();
    fs::create_dir(folder.join(".warploom-export")).unwrap();
    fs::write(folder.join(".warploom-export/manifest.json"), "half").unwrap();
    kernels::export(folder).unwrap();
    assert!(contents(folder) == first);
}

/// Another one that is under way, a manifest that names what no export has, and a link where files are written aside.
#[cfg(target_os = "linux")]
#[test]
fn nothing_but_an_export_is_written_over() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("kernels");
    kernels::export(&folder).unwrap();
    let first = contents(&folder);
    let writing = fs::File::open(&folder).unwrap();
    writing.lock().unwrap();
    let error = kernels::export(&folder).unwrap_err().to_string();
    assert!(error.contains("another export is writing it"), "{error}");
    drop(writing);
    let elsewhere = parent.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("accept.ptx"), "mine").unwrap();
    std::os::unix::fs::symlink(&elsewhere, folder.join(".warploom-export")).unwrap();
    kernels::export(&folder).unwrap();
    assert!(contents(&folder) == first);
    assert_eq!(fs::read(elsewhere.join("accept.ptx")).unwrap(), b"mine");
    let path = folder.join("manifest.json");
    let mut forged: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    forged["headers"].as_array_mut().unwrap().push("precious.txt".into());
    fs::write(&path, forged.to_string()).unwrap();
    fs::write(folder.join("precious.txt"), "mine").unwrap();
    assert!(kernels::export(&folder).unwrap_err().to_string().contains("holds precious.txt"));
    // Many at once: each succeeds or says why not, and what is left is whole.
    fs::remove_file(folder.join("precious.txt")).unwrap();
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let exports: Vec<_> = (0..8).map(|_| scope.spawn(|| kernels::export(&folder).map(drop))).collect();
        exports.into_iter().map(|export| export.join().unwrap()).collect()
    });
    assert!(outcomes.iter().any(Result::is_ok));
    for error in outcomes.into_iter().filter_map(Result::err) {
        assert!(error.to_string().contains("another export is writing it"), "{error}");
    }
    assert!(contents(&folder) == first);
}

#[test]
fn other_files_are_left_alone() {
    let parent = tempfile::tempdir().unwrap();
    let refused = |folder: &Path, parts: &[&str]| {
        let before = folder.is_dir().then(|| contents(folder));
        let output = export(&["--out", folder.to_str().unwrap()]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(output.stdout.is_empty());
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
        assert!(folder.is_dir().then(|| contents(folder)) == before);
    };
    let folder = |name: &str| {
        let path = parent.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let mine = folder("mine");
    fs::write(mine.join("notes.txt"), "mine").unwrap();
    refused(&mine, &["mine: ", "holds notes.txt, which is of no earlier export"]);
    // Of our names, in a folder that was no export.
    let named = folder("named");
    fs::write(named.join("rms_norm.ptx"), "mine").unwrap();
    refused(&named, &["holds rms_norm.ptx"]);
    let beside = folder("beside");
    kernels::export(&beside).unwrap();
    fs::write(beside.join("mine.cu"), "mine").unwrap();
    refused(&beside, &["holds mine.cu"]);
    let stranger = folder("stranger");
    fs::write(stranger.join("manifest.json"), r#"{"name": "an extension"}"#).unwrap();
    refused(&stranger, &["holds manifest.json"]);
    let file = parent.path().join("file");
    fs::write(&file, "mine").unwrap();
    refused(&file, &["file: is a file; name a new folder"]);
    refused(&file.join("below"), &["below: "]);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    // A folder in a file's place.
    let taken = folder("taken");
    kernels::export(&taken).unwrap();
    fs::remove_file(taken.join("linear.ptx")).unwrap();
    fs::create_dir(taken.join("linear.ptx")).unwrap();
    let error = kernels::export(&taken).unwrap_err().to_string();
    assert!(error.contains("holds the folder linear.ptx, which is of no export"), "{error}");
    assert!(taken.join("manifest.json").exists());
    fs::remove_dir_all(taken.join("linear.ptx")).unwrap();
    kernels::export(&taken).unwrap();
    assert!(
        contents(&taken)
            == contents(&beside).into_iter().filter(|(name, _)| name != "mine.cu").collect::<Vec<_>>()
    );
}
