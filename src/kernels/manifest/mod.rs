//! What a program must know that loads the kernels' modules and launches them itself: see [`manifest`].
//!
//! Each kernel's module says of its entries what is in no table of the compiler's, in a function `about`. Geometry is
//! the very definition that launches here follow; layouts are those of `cuda/include`.

mod structs;

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    CUDA_VERSION, FAMILIES, accept, adamw, attention_decode, attention_prefill, dynamic_shared_bytes, embed,
    gemm, geometry, linear, quantize_fp8_rows, rms_norm, rope_append, sample, swiglu,
};
use crate::{
    driver::{Entry, Family},
    error::{Error, Result},
};

/// Version of [`Manifest`]: it changes where a program that knows the older fields would launch something wrong.
pub const FORMAT: u32 = 1;

/// Scratch is read in vectors.
const SCRATCH_ALIGNMENT: u32 = 16;

/// How expressions are read.
const EXPRESSIONS: &str = "Integers of 64 bits. Operands: numbers; constants; fields of the parameter, with .name and \
    [index] into structs and arrays; values of the launch by name. In the order of precedence: ( ); * and /, which drops \
    the remainder; + and -; < <= ==, which give 1 or 0. Functions: ceil_div(a, b), the quotient rounded up; min(a, b); \
    max(a, b); pow2_ceil(a), the next power of two from a on; select(c, a, b), a if c is not 0, else b. What an \
    entry requires is looked at in its order, to the first that is 0: what comes first keeps what follows, and the values \
    that it names, from dividing by 0. Where all of it holds, nothing is negative.";

/// What holds of every entry's launch.
const LAUNCHES: &str = "One parameter, the struct, by value (__grid_constant__). Who fills it in sets version to \
    WL_VERSION, reserved fields and what is not used to 0, and sees to it that no expression of the entry's requires is 0. \
    Addresses are device addresses. Arrays of numbers of 4 bytes begin at multiples of 4, all others, scratch of whatever \
    type, and what a field's comment says so of at multiples of 16 bytes. Numbers of type f32 are within what their \
    comments say. A grid with a 0 in it is not launched: there is nothing to do. Nothing checks a parameter on the \
    device. CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION is for functions whose code waits: those for which \
    cuFuncGetAttribute says CU_FUNC_ATTRIBUTE_PTX_VERSION >= 90. That of a fatbin's PTX, which a driver compiles for \
    GPUs without code of their own, does not, and a launch with the attribute would run before its input is there.";

/// Everything about the kernels of this build.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of this crate.
    pub warploom: &'static str,
    /// Version of CUDA that compiled the kernels, as "13.0". A driver is to be as new, within its major version.
    pub cuda: String,
    /// How expressions are read, in words.
    pub expressions: &'static str,
    /// What holds of every launch, in words.
    pub launches: &'static str,
    /// Headers of C that define the structs.
    pub headers: Vec<&'static str>,
    /// The numbers that expressions and comments name.
    pub constants: BTreeMap<&'static str, u64>,
    /// Parameter structs, and those that they hold or that lie in buffers, by name.
    pub structs: BTreeMap<&'static str, Struct>,
    /// The modules.
    pub modules: Vec<Module>,
}

/// A struct of `cuda/include`, little-endian.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Struct {
    /// What the header says of it.
    pub about: String,
    /// Its size.
    pub bytes: usize,
    /// The multiple at which it begins.
    pub alignment: usize,
    /// In the order of their offsets, without gaps.
    pub fields: Vec<Field>,
}

/// A field of a [`Struct`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Field {
    /// As in C.
    pub name: &'static str,
    /// u32, i32, u64, i64, f32, f64, or the name of a struct.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Elements of an array; None for what is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// From the struct's first byte.
    pub offset: usize,
    /// Its size, an array's as a whole.
    pub bytes: usize,
    /// What the header says of it; nothing where its name says it.
    pub about: String,
}

/// A module, of one file of `cuda/kernels`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Module {
    /// Name of the file without its ending.
    pub name: &'static str,
    /// File name of the machine code, for cuModuleLoadData or cuLibraryLoadData.
    pub fatbin: String,
    /// What machine code it has, as "sm_90a".
    pub architectures: Vec<String>,
    /// The PTX in it from which a driver makes code for other GPUs, as "compute_80".
    pub fatbin_ptx: String,
    /// File name of PTX as text: for simulators, and for GPUs from its target on.
    pub ptx: String,
    /// Version of the PTX instruction set of that text.
    pub ptx_version: &'static str,
    /// Its target, as "sm_90".
    pub ptx_target: &'static str,
    /// Variables of the module that the host could set or read.
    pub globals: Vec<&'static str>,
    /// What can be launched.
    pub entries: Vec<EntryPoint>,
}

/// An entry of a module.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct EntryPoint {
    /// Name for cuModuleGetFunction.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// When it is the one to launch; nothing where its name and what it requires say it.
    pub when: &'static str,
    /// Name of its parameter's struct.
    pub parameter: &'static str,
    /// Size of the parameter.
    pub parameter_bytes: u32,
    /// Expressions that are not 0 for a parameter that it takes, in the order in which they are looked at. Those at the end may name
    /// values of the launch, too.
    pub requires: Vec<String>,
    /// Fields whose value the caller chooses.
    pub chosen: Vec<Choice>,
    /// Sizes of the launch.
    pub launch: LaunchSizes,
    /// Memory of the caller's that it uses for itself.
    pub scratch: Vec<Scratch>,
    /// The most that a launch asks for. Over 49152, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES is to be set to it
    /// before the first launch. No other attribute is needed: no carve-out, no cluster.
    pub max_dynamic_shared_bytes: u32,
    /// Most threads of a CTA.
    pub max_threads: u32,
    /// Programmatic dependent launch.
    pub programmatic: Programmatic,
    /// What the compiler says of it.
    pub compiled: Vec<Code>,
}

/// Fields of a parameter that nothing else settles.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct Choice {
    /// Their names.
    pub fields: &'static [&'static str],
    /// What they may be, and what they are here.
    pub rule: &'static str,
}

/// Sizes of a launch, as expressions.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct LaunchSizes {
    /// Values with names, each of fields, constants and values before it.
    pub values: Vec<Value>,
    /// CTAs along x, y, z.
    pub grid: [String; 3],
    /// Threads of a CTA along x, y, z.
    pub block: [String; 3],
    /// CTAs of a cluster along x, y, z.
    pub cluster: [String; 3],
    /// Dynamic shared memory of a CTA in bytes.
    pub dynamic_shared_bytes: String,
}

/// A value that other expressions name.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Value {
    /// Its name.
    pub name: &'static str,
    /// The expression.
    pub value: String,
}

/// A range of device memory that a kernel uses for itself.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Scratch {
    /// The field that has its address.
    pub field: &'static str,
    /// The multiple of bytes at which it begins.
    pub alignment: u32,
    /// Its size in bytes, an expression. With 0, the address may be 0.
    pub bytes: String,
    /// How many of its first bytes must be zeros before the first launch, an expression; every launch leaves them
    /// zeros. What the others hold does not matter. Launches that run at the same time must not share it.
    pub zeros: String,
}

/// Programmatic dependent launch (CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION), for functions whose
/// CU_FUNC_ATTRIBUTE_PTX_VERSION is 90 or more: code that was compiled for less neither waits nor releases.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct Programmatic {
    /// Every CTA waits for the launches before it (griddepcontrol.wait), so that the attribute may be set.
    pub waits: bool,
    /// Every CTA lets the launch after it begin (griddepcontrol.launch_dependents).
    pub releases: bool,
    /// It is set here at every launch; else where a stream is asked to overlap.
    pub always: bool,
    /// What it reads before it waits; nothing for most.
    pub ahead: &'static str,
}

/// What ptxas made of an entry for one architecture.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Code {
    /// As "sm_90a".
    pub architecture: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a CTA in bytes.
    pub static_shared_bytes: u32,
    /// Named barriers of a CTA.
    pub barriers: u32,
}

/// Describes the kernels of this build for programs that launch them without it: as JSON it is the manifest.json that
/// [`export`](super::export()) writes.
///
/// # Errors
/// [`Error::Argument`] in a build without kernels, as those for documentation are.
pub fn manifest() -> Result<Manifest> {
    if FAMILIES.is_empty() {
        let reason =
            "there are none in this build, for documentation (DOCS_RS was set): build it again with nvcc";
        return Err(Error::argument("kernels", reason));
    }
    Ok(Manifest {
        format: FORMAT,
        warploom: env!("CARGO_PKG_VERSION"),
        cuda: format!("{}.{}", CUDA_VERSION / 1000, CUDA_VERSION % 1000 / 10),
        expressions: EXPRESSIONS,
        launches: LAUNCHES,
        headers: super::export::HEADERS.iter().map(|(name, _)| *name).collect(),
        constants: structs::constants()?,
        structs: structs::structs()?,
        modules: FAMILIES.iter().map(module).collect::<Result<_>>()?,
    })
}

fn module(family: &'static Family) -> Result<Module> {
    let head = |directive: &str| {
        let line = family.ptx.lines().find_map(|line| line.strip_prefix(directive));
        line.unwrap_or_default().trim()
    };
    let mut architectures: Vec<String> = vec![];
    for compiled in family.entries.iter().flat_map(|entry| entry.compiled) {
        let name = format!("sm_{}", compiled.arch);
        if !architectures.contains(&name) {
            architectures.push(name);
        }
    }
    let programmatic = programmatic(family.ptx);
    let entry = |entry| entry_point(family, entry, &programmatic);
    Ok(Module {
        name: family.name,
        fatbin: format!("{}.fatbin", family.name),
        architectures,
        fatbin_ptx: format!("compute_{}", family.fatbin_ptx),
        ptx: format!("{}.ptx", family.name),
        ptx_version: head(".version "),
        ptx_target: head(".target ").split(',').next().unwrap_or_default(),
        globals: family.ptx.lines().filter_map(global).collect(),
        entries: family.entries.iter().map(entry).collect::<Result<_>>()?,
    })
}

fn entry_point(
    family: &Family,
    entry: &'static Entry,
    programmatic: &BTreeMap<&str, (bool, bool)>,
) -> Result<EntryPoint> {
    let about = about_of(family.name)?;
    let About { parameter, what, when, requires, chosen, sizes, always, ahead } = about(entry.name);
    let &(waits, releases) = programmatic.get(entry.name).unwrap_or(&(false, false));
    Ok(EntryPoint {
        name: entry.name,
        about: what,
        when,
        parameter,
        parameter_bytes: entry.parameter_bytes,
        requires: [vec!["version == WL_VERSION".to_string()], requires].concat(),
        chosen: chosen.iter().map(|&(fields, rule)| Choice { fields, rule }).collect(),
        launch: LaunchSizes {
            values: sizes.values.iter().map(|&(name, value)| Value { name, value: tidy(value) }).collect(),
            grid: sizes.grid.map(tidy),
            block: [sizes.block, "1", "1"].map(tidy),
            cluster: ["1"; 3].map(tidy),
            dynamic_shared_bytes: tidy(sizes.shared),
        },
        scratch: sizes
            .scratch
            .iter()
            .map(|&(field, bytes, zeros)| Scratch {
                field,
                alignment: SCRATCH_ALIGNMENT,
                bytes: tidy(bytes),
                zeros: tidy(zeros),
            })
            .collect(),
        max_dynamic_shared_bytes: dynamic_shared_bytes(entry.name),
        max_threads: entry.threads,
        programmatic: Programmatic { waits, releases, always, ahead },
        compiled: entry
            .compiled
            .iter()
            .map(|compiled| Code {
                architecture: format!("sm_{}", compiled.arch),
                registers: compiled.registers,
                static_shared_bytes: compiled.shared_bytes,
                barriers: compiled.barriers,
            })
            .collect(),
    })
}

/// What a family's module says of its entries.
fn about_of(family: &str) -> Result<fn(&str) -> About> {
    Ok(match family {
        "accept" => accept::about,
        "adamw" => adamw::about,
        "attention_decode" => attention_decode::about,
        "attention_prefill" => attention_prefill::about,
        "embed" => embed::about,
        "gemm" => gemm::about,
        "linear" => linear::about,
        "quantize_fp8_rows" => quantize_fp8_rows::about,
        "rms_norm" => rms_norm::about,
        "rope_append" => rope_append::about,
        "sample" => sample::about,
        "swiglu" => swiglu::about,
        other => {
            let reason = format!("nothing is said of them: add {other}::about to src/kernels/manifest");
            return Err(Error::argument(other, reason));
        }
    })
}

/// The addresses in a parameter of an entry, by the names of their fields; those that are 0 are left out.
pub(crate) fn addresses(entry: &str, parameter: &[u8]) -> Vec<(String, u64)> {
    fn add(
        found: &mut Vec<(String, u64)>,
        structs: &BTreeMap<&str, Struct>,
        of: &str,
        path: &str,
        bytes: &[u8],
    ) {
        for field in structs.get(of).into_iter().flat_map(|of| &of.fields) {
            let count = field.count.unwrap_or(1);
            let all = bytes.get(field.offset..field.offset + field.bytes).unwrap_or_default();
            for (i, bytes) in all.chunks(field.bytes / count.max(1)).enumerate() {
                let name = match field.count {
                    Some(_) => format!("{path}{}[{i}]", field.name),
                    None => format!("{path}{}", field.name),
                };
                match (field.kind, bytes.try_into()) {
                    ("u64", Ok(eight)) => found.push((name, u64::from_le_bytes(eight))),
                    // They are arguments by themselves.
                    ("WlPages", _) => add(found, structs, field.kind, "", bytes),
                    _ => add(found, structs, field.kind, &format!("{name}."), bytes),
                }
            }
        }
    }
    let mut found = vec![];
    let family = FAMILIES.iter().find(|family| family.entries.iter().any(|e| e.name == entry));
    if let (Some(Ok(about)), Ok(structs)) = (family.map(|family| about_of(family.name)), structs::structs()) {
        add(&mut found, &structs, about(entry).parameter, "", parameter);
    }
    found.retain(|(_, address)| *address != 0);
    found
}

/// An expression in one line, with the spaces of this one: where the compiler breaks it, and whether it sets indices
/// apart, is its own affair.
fn tidy(expression: &str) -> String {
    expression.split_whitespace().collect::<Vec<_>>().join(" ").replace(" [", "[")
}

/// Of every entry in a text of PTX, whether it waits for launches before it, and releases those after it.
fn programmatic(ptx: &str) -> BTreeMap<&str, (bool, bool)> {
    let mut found = BTreeMap::new();
    let mut current = "";
    for line in ptx.lines().map(str::trim_start) {
        if let Some((_, rest)) = line.split_once(".entry ") {
            current = rest.split(['(', ' ']).next().unwrap_or_default();
        } else if let Some(what) = line.strip_prefix("griddepcontrol.") {
            let (waits, releases) = found.entry(current).or_insert((false, false));
            *waits |= what.starts_with("wait");
            *releases |= what.starts_with("launch_dependents");
        }
    }
    found
}

/// The name of a variable of the module that a line of PTX defines. Those of functions stand indented.
fn global(line: &'static str) -> Option<&'static str> {
    let definition = line.strip_prefix(".visible ").unwrap_or(line);
    let rest = definition.strip_prefix(".global ").or_else(|| definition.strip_prefix(".const "))?;
    rest.split(['[', '=', ';']).next()?.split_whitespace().last()
}

/// What a kernel's module says of an entry.
pub(super) struct About {
    pub parameter: &'static str,
    pub what: &'static str,
    pub sizes: geometry::Text,
    pub when: &'static str,
    pub requires: Vec<String>,
    /// Fields, and the rule.
    pub chosen: &'static [(&'static [&'static str], &'static str)],
    /// Whether launches always are programmatic.
    pub always: bool,
    pub ahead: &'static str,
}

impl About {
    pub fn new(parameter: &'static str, what: &'static str, sizes: geometry::Text) -> Self {
        About { parameter, what, sizes, when: "", requires: vec![], chosen: &[], always: false, ahead: "" }
    }
}

pub(super) fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| text.to_string()).collect()
}

/// For what is required: that something holds under a condition.
pub(super) fn when(condition: &str, holds: &str) -> String {
    format!("select({condition}, {holds}, 1)")
}

/// That something holds unless a condition does.
pub(super) fn unless(condition: &str, holds: &str) -> String {
    format!("select({condition}, 1, {holds})")
}

/// That a number is a multiple of another.
pub(super) fn multiple(of: u32, value: &str) -> String {
    format!("{value} / {of} * {of} == {value}")
}

/// That rows as wide do not overlap.
pub(super) fn apart(rows: &str, width: &str, strides: &[&str]) -> Vec<String> {
    strides.iter().map(|stride| unless(&format!("{rows} == 1"), &format!("{width} <= {stride}"))).collect()
}

/// The type that an entry's name says it is for.
pub(super) fn type_of(entry: &str) -> String {
    let has = |name: &str| entry.split('_').any(|part| part == name);
    let code = ["bf16", "f16", "f32"].into_iter().find(|name| has(name)).unwrap_or_default();
    format!("type == WL_{}", code.to_uppercase())
}

/// The type of its weights.
pub(super) fn weight_type_of(entry: &str) -> String {
    let code = if entry.contains("_e4m3") { "WL_E4M3" } else { "type" };
    format!("weight_type == {code}")
}
