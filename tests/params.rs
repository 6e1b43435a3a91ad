//! The parameter structs are laid out alike on both sides: the offsets that rustc has checked in `src/kernels/params.rs` are
//! asserted of the headers by a C and by a C++ compiler, and the entries' parameters have the structs' sizes.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Output},
};

use warploom::kernels::{self, FAMILIES};

const GENERATED: &str = include_str!("../src/kernels/params.rs");

#[derive(Default)]
struct Struct {
    size: usize,
    alignment: usize,
    /// Name, type and offset.
    fields: Vec<(String, String, usize)>,
}

/// The structs with the numbers of their compile-time assertions, which the compiler has found true.
fn structs() -> BTreeMap<String, Struct> {
    let mut structs: BTreeMap<String, Struct> = BTreeMap::new();
    let mut types = BTreeMap::new();
    let mut current = "";
    for line in GENERATED.lines() {
        if let Some(rest) = line.strip_prefix("pub struct ") {
            current = rest.trim_end_matches(" {");
            structs.insert(current.into(), Struct::default());
        } else if let Some((name, kind)) =
            line.strip_prefix("    pub ").and_then(|rest| rest.trim_end_matches(',').split_once(": "))
        {
            types.insert(format!("{current}::{name}"), kind.to_string());
        }
    }
    // `["Size of X"][size_of::<X>() - 16usize];`, broken into lines as it comes.
    for assertion in GENERATED.split("[\"").skip(1) {
        let (label, rest) = assertion.split_once("\"]").expect("a label");
        let (expression, _) = rest.split_once("usize];").expect("an expression");
        let number = expression.rsplit_once("- ").expect("a difference").1.parse().expect("a number");
        let (what, of) = label.rsplit_once(' ').expect("what and of what");
        let (name, field) = of.split_once("::").unwrap_or((of, ""));
        let found = structs.get_mut(name).unwrap_or_else(|| panic!("no struct {name}"));
        match what {
            "Size of" => found.size = number,
            "Alignment of" => found.alignment = number,
            "Offset of field:" => {
                let kind = types.remove(of).unwrap_or_else(|| panic!("no field {of}"));
                found.fields.push((field.into(), kind, number));
            }
            _ => panic!("unknown assertion: {label}"),
        }
    }
    assert!(types.is_empty(), "fields without an asserted offset: {types:?}");
    assert!(structs.values().all(|s| s.size > 0 && s.alignment > 0), "a struct without an asserted size");
    assert!(!structs.is_empty());
    structs
}

/// A source that only compiles if the headers agree. The same text is C and C++.
fn assertions(structs: &BTreeMap<String, Struct>) -> String {
    let mut text = String::from(
        "#include <stddef.h>
#include \"wl_params.h\"
#ifdef __cplusplus
#include <type_traits>
#define ASSERT(what) static_assert(what, #what)
#define IS(type, name, field) std::is_same<decltype(name::field), type>::value
#define ALIGNMENT(name) alignof(name)
#else
#define ASSERT(what) _Static_assert(what, #what)
#define IS(type, name, field) _Generic(((name *)0)->field, type: 1, default: 0)
#define ALIGNMENT(name) _Alignof(name)
#endif
",
    );
    for (name, Struct { size, alignment, fields }) in structs {
        writeln!(text, "ASSERT(sizeof({name}) == {size});\nASSERT(ALIGNMENT({name}) == {alignment});")
            .unwrap();
        for (field, kind, offset) in fields {
            // What is a word of Rust has an underscore there.
            let field = field.trim_end_matches('_');
            writeln!(text, "ASSERT(offsetof({name}, {field}) == {offset});").unwrap();
            let kind = match kind.as_str() {
                "f32" => "float".into(),
                "f64" => "double".into(),
                array if array.starts_with('[') => continue,
                name if name.starts_with("Wl") => name.into(),
                signed if signed.starts_with('i') => format!("int{}_t", &signed[1..]),
                unsigned => format!("uint{}_t", &unsigned[1..]),
            };
            writeln!(text, "ASSERT(IS({kind}, {name}, {field}));").unwrap();
        }
    }
    for line in GENERATED.lines() {
        let Some((name, rest)) = line.strip_prefix("pub const ").and_then(|rest| rest.split_once(": "))
        else {
            continue;
        };
        let value = rest.split_once("= ").unwrap().1.trim_end_matches(';');
        writeln!(text, "ASSERT({name} == {value});").unwrap();
    }
    text
}

/// The compilers for C and C++, where they are there, with the options that make them strict.
fn compilers() -> Vec<(&'static str, String, &'static str)> {
    let named = |variable: &str, default: &str| env::var(variable).unwrap_or(default.into());
    let all = [("c", named("CC", "cc"), "-std=c11"), ("cpp", named("CXX", "c++"), "-std=c++17")];
    let works = |command: &str| {
        Command::new(command).arg("--version").output().is_ok_and(|answer| answer.status.success())
    };
    all.into_iter()
        .filter(|(_, command, _)| {
            let there = works(command);
            if !there {
                println!("skipped: there is no compiler {command}");
            }
            there
        })
        .collect()
}

/// What the compilers say of a source.
fn compile(text: &str) -> Vec<(String, Output)> {
    let folder = tempfile::tempdir().unwrap();
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/include");
    let compile = |(ending, command, standard): (&str, String, &str)| {
        let path = folder.path().join("layout").with_extension(ending);
        fs::write(&path, text).unwrap();
        let output = Command::new(&command)
            .args([standard, "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"])
            .args([&include, &path])
            .output()
            .unwrap();
        (format!("{command} {standard}"), output)
    };
    compilers().into_iter().map(compile).collect()
}

#[test]
fn c_and_rust_agree() {
    let text = assertions(&structs());
    for (compiler, output) in compile(&text) {
        assert!(output.status.success(), "{compiler}:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    // The assertions are able to fail.
    for wrong in [
        text.replacen("offsetof(WlMask, keys) == 4", "offsetof(WlMask, keys) == 8", 1),
        text.replacen("IS(int32_t, WlMask, keys)", "IS(uint32_t, WlMask, keys)", 1),
        text.replacen("ASSERT(WL_VERSION == ", "ASSERT(WL_VERSION == 1 + ", 1),
    ] {
        assert_ne!(wrong, text);
        for (compiler, output) in compile(&wrong) {
            assert!(!output.status.success(), "{compiler} compiles what is wrong");
        }
    }
}

#[test]
fn every_header_stands_alone_and_is_in_the_common_one() {
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/include");
    let common = fs::read_to_string(include.join("wl_params.h")).unwrap();
    for entry in fs::read_dir(&include).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.ends_with(".h") {
            continue;
        }
        assert!(
            matches!(&*name, "warploom.h" | "wl_params.h")
                || common.contains(&format!("#include \"{name}\"")),
            "wl_params.h lacks {name}"
        );
        for (compiler, output) in compile(&format!("#include \"{name}\"\nint nothing;\n")) {
            assert!(
                output.status.success(),
                "{compiler}, {name}:\n{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}

/// Fields fill their struct, so that it has no padding on any side; bytemuck's Pod says so of the Rust one.
#[test]
fn sizes_are_multiples_of_eight_and_fields_aligned() {
    for (name, Struct { size, fields, .. }) in structs() {
        assert_eq!(size % 8, 0, "{name}");
        let mut offsets: Vec<usize> = fields.iter().map(|field| field.2).collect();
        offsets.sort_unstable();
        offsets.dedup();
        assert_eq!(offsets.len(), fields.len(), "{name}");
    }
}

/// What others are told is the same.
#[test]
fn the_manifest_has_the_same_layouts() {
    let (told, structs) = (kernels::manifest().unwrap().structs, structs());
    assert!(told.keys().eq(structs.keys()));
    for (name, Struct { size, alignment, fields }) in structs {
        let told = &told[name.as_str()];
        assert_eq!((told.bytes, told.alignment), (size, alignment), "{name}");
        let kind = |field: &kernels::manifest::Field| match field.count {
            Some(count) => format!("[{}; {count}usize]", field.kind),
            None => field.kind.to_string(),
        };
        let told: Vec<_> =
            told.fields.iter().map(|field| (field.name.to_string(), kind(field), field.offset)).collect();
        let name_in_c = |name: &str| name.trim_end_matches('_').to_string();
        let fields: Vec<_> =
            fields.into_iter().map(|(field, kind, at)| (name_in_c(&field), kind, at)).collect();
        assert_eq!(told, fields, "{name}");
    }
}

/// Device code agrees, too: the parameter of wl_rms_norm_bf16 is as large as WlRmsNorm.
#[test]
fn entries_take_the_structs() {
    let structs = structs();
    let snake = |name: &str| {
        let lower = |c: char| if c.is_uppercase() { format!("_{}", c.to_lowercase()) } else { c.to_string() };
        name.chars().map(lower).collect::<String>().trim_start_matches('_').to_string()
    };
    for entry in FAMILIES.iter().flat_map(|family| family.entries) {
        let bytes = entry.parameter_bytes as usize;
        let of_its_name =
            structs.keys().filter(|name| entry.name.starts_with(&snake(name))).max_by_key(|name| name.len());
        match of_its_name {
            Some(name) => assert_eq!(bytes, structs[name].size, "{} takes {name}", entry.name),
            None => assert!(
                structs.values().any(|s| s.size == bytes),
                "{} takes no struct of cuda/include",
                entry.name
            ),
        }
    }
}
