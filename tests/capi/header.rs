//! What `warploom.h` says: its functions, which are those of the library, and of each view of a struct where it lies and what its comment
//! asks for.

use std::collections::BTreeMap;

const ABI: &str = include_str!("../../src/capi/abi.rs");
const HEADER: &str = include_str!("../../cuda/include/warploom.h");
const SOURCES: [&str; 3] = [
    include_str!("../../src/capi/device.rs"),
    include_str!("../../src/capi/kernels.rs"),
    include_str!("../../src/capi/status.rs"),
];

/// A view in a struct.
pub struct View {
    /// As errors name it: `layout` and `view` are left out.
    pub name: String,
    pub offset: usize,
    /// It may be none, says the header.
    pub is_optional: bool,
    /// The multiple of bytes at which it begins.
    pub alignment: u64,
}

/// Name and type of each field of a struct, as bindgen has it.
fn fields(of: &str) -> Vec<(String, String)> {
    let body = ABI.split(&format!("pub struct {of} {{")).nth(1).expect("a struct of that name");
    let lines = body.split('}').next().unwrap().lines();
    let field = |line: &str| {
        let (name, kind) = line.trim().strip_prefix("pub ")?.trim_end_matches(',').split_once(": ")?;
        Some((name.to_string(), kind.to_string()))
    };
    lines.filter_map(field).collect()
}

/// What the header's comment says of a field.
fn comment(of: &str, field: &str) -> &'static str {
    let body = HEADER.split(&format!("typedef struct {of} {{")).nth(1).expect("a struct of that name");
    let lines = body.split("\n}").next().unwrap().lines();
    let is_it = |line: &&str| {
        let declared = line.split(';').next().unwrap_or_default();
        declared.split_whitespace().last().is_some_and(|name| name.split('[').next() == Some(field))
    };
    let mut found: Vec<&str> = lines.filter(is_it).collect();
    assert_eq!(found.len(), 1, "{of}.{field}");
    found.remove(0).split_once("/*").map_or("", |(_, comment)| comment.trim_end_matches("*/").trim())
}

/// The views of a struct; of the projections those of the first.
pub fn views(of: &str) -> Vec<View> {
    let offset = |name: &str, field: &str| -> usize {
        let rest = ABI.split(&format!("[\"Offset of field: {name}::{field}\"]")).nth(1).expect("an offset");
        let number = rest.split("- ").nth(1).unwrap().split("usize").next().unwrap();
        number.parse().unwrap()
    };
    let mut found = vec![];
    let mut open = vec![(String::new(), of.to_string(), 0, "")];
    while let Some((path, name, base, outer)) = open.pop() {
        for (field, kind) in fields(&name) {
            let own = comment(&name, &field);
            // That of the innermost with a comment.
            let said = if own.is_empty() { outer } else { own };
            let dot = if path.is_empty() { "" } else { "." };
            let at = base + offset(&name, &field);
            match kind.as_str() {
                "WlView" => {
                    let name = if field == "view" { path.clone() } else { format!("{path}{dot}{field}") };
                    let small = ["f32", "i32", "u32", "of f32"].iter().any(|kind| said.starts_with(kind));
                    let even = said.contains("multiple of 16") || !(small || name.starts_with("round."));
                    let is_optional = said.contains("none");
                    let alignment = if even { 16 } else { 4 };
                    found.push(View { name, offset: at, is_optional, alignment });
                }
                "WlMatrix" | "WlPageTable" | "WlRowTable" | "WlRoundRows" => {
                    open.push((format!("{path}{dot}{field}"), kind, at, said));
                }
                "[WlProjectionArgs; 3usize]" => {
                    open.push(("projections[0]".into(), "WlProjectionArgs".into(), at, said));
                }
                _ => {}
            }
        }
    }
    found
}

/// A type of C as Rust spells it.
fn rust(kind: &str) -> String {
    let kind = kind.trim();
    if let Some(to) = kind.strip_suffix('*') {
        return match to.trim().strip_prefix("const ") {
            Some(to) => format!("*const {}", rust(to)),
            None => format!("*mut {}", rust(to)),
        };
    }
    match kind {
        "int32_t" => "i32",
        "uint32_t" => "u32",
        "uint64_t" => "u64",
        "uint8_t" => "u8",
        "char" => "c_char",
        "void" => "c_void",
        other => other,
    }
    .into()
}

/// Types of the arguments and the result of every function of the header.
fn declared() -> BTreeMap<String, (Vec<String>, String)> {
    let mut text = String::new();
    let mut rest = HEADER;
    while let Some((before, after)) = rest.split_once("/*") {
        text += before;
        rest = after.split_once("*/").unwrap().1;
    }
    text += rest;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let text = lines.collect::<Vec<_>>().join(" ");
    let mut found = BTreeMap::new();
    for statement in text.split(';') {
        // Behind the end of a struct or function.
        let statement = statement.rsplit(['}', '{']).next().unwrap().trim();
        let Some((head, arguments)) = statement.strip_suffix(')').and_then(|s| s.split_once('(')) else {
            continue;
        };
        let (result, name) = head.rsplit_once(' ').unwrap();
        let arguments = arguments.split(',').filter(|argument| argument.trim() != "void").map(|argument| {
            let argument = argument.trim();
            let name = argument.rfind([' ', '*']).unwrap() + 1;
            rust(&argument[..name])
        });
        found.insert(name.to_string(), (arguments.collect(), rust(result)));
    }
    found
}

/// The same of the library.
fn defined() -> BTreeMap<String, (Vec<String>, String)> {
    let mut found = BTreeMap::new();
    for part in SOURCES.iter().flat_map(|source| source.split("extern \"C\" fn ").skip(1)) {
        let (name, rest) = part.split_once('(').unwrap();
        if name.starts_with('$') {
            continue;
        }
        let (arguments, rest) = rest.split_once(')').unwrap();
        let arguments =
            arguments.split(',').filter_map(|argument| Some(argument.split_once(':')?.1.trim().into()));
        let result = rest.split_once("-> ").unwrap().1.split_once(" {").unwrap().0;
        found.insert(name.into(), (arguments.collect(), result.into()));
    }
    // Those of one form.
    for line in SOURCES[1].lines() {
        let Some((name, kind)) = line.trim().strip_suffix(") {").and_then(|line| line.split_once("(on, a: "))
        else {
            continue;
        };
        let arguments = vec!["*const WlStream".into(), format!("*const {kind}")];
        found.insert(name.into(), (arguments, "i32".into()));
    }
    found
}

#[test]
fn the_header_declares_what_there_is() {
    let (declared, defined) = (declared(), defined());
    assert!(declared.len() > 30, "{declared:?}");
    for (name, found) in &declared {
        assert_eq!(Some(found), defined.get(name), "{name} of the header");
    }
    for name in defined.keys() {
        assert!(declared.contains_key(name), "{name} is not in the header");
    }
}
