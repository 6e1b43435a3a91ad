//! The parameter structs and constants out of the text of `params.rs`, whose offsets rustc has checked.

use std::collections::BTreeMap;

use super::{Field, Struct};
use crate::error::{Error, Result};

const PARAMS: &str = include_str!("../params.rs");

/// All constants by name.
pub(super) fn constants() -> Result<BTreeMap<&'static str, u64>> {
    let constant = |line: &'static str| {
        let (name, rest) = line.strip_prefix("pub const ")?.split_once(": ")?;
        let (_, value) = rest.split_once(" = ")?;
        Some((name, value.strip_suffix(';')?))
    };
    let number = |(name, value): (&'static str, &str)| {
        value.parse().map(|value| (name, value)).map_err(|_| unknown(value))
    };
    PARAMS.lines().filter_map(constant).map(number).collect()
}

/// All structs, those that others hold before them.
pub(super) fn structs() -> Result<BTreeMap<&'static str, Struct>> {
    let mut structs: BTreeMap<&str, Struct> = BTreeMap::new();
    let mut current = "";
    let mut comment = Comment::default();
    for line in PARAMS.lines() {
        if comment.takes(line) {
            continue;
        }
        if let Some(name) = line.strip_prefix("pub struct ").and_then(|rest| rest.strip_suffix(" {")) {
            current = name;
            let about = comment.take();
            structs.insert(name, Struct { about, bytes: 0, alignment: 0, fields: vec![] });
        } else if let Some((name, kind)) = field(line) {
            let (kind, count) = match kind.strip_prefix('[').and_then(|kind| kind.strip_suffix("usize]")) {
                None => (kind, None),
                Some(array) => {
                    let (kind, count) = array.split_once("; ").ok_or_else(|| unknown(line))?;
                    (kind, Some(count.parse().map_err(|_| unknown(line))?))
                }
            };
            let each = match kind {
                "f64" | "i64" | "u64" => 8,
                "f32" | "i32" | "u32" => 4,
                held => structs.get(held).ok_or_else(|| unknown(line))?.bytes,
            };
            let bytes = each * count.unwrap_or(1);
            // What is a word of Rust has an underscore there.
            let name = name.trim_end_matches('_');
            let field = Field { name, kind, count, offset: 0, bytes, about: comment.take() };
            structs.get_mut(current).ok_or_else(|| unknown(line))?.fields.push(field);
        } else if line == "};" {
            assertions(current, &mut structs)?;
        }
    }
    Ok(structs)
}

/// Name and type of a field.
fn field(line: &'static str) -> Option<(&'static str, &'static str)> {
    line.strip_prefix("    pub ")?.strip_suffix(',')?.split_once(": ")
}

/// Takes size, alignment and offsets of a struct from what is asserted of it,
/// `["Size of X"][size_of::<X>() - 16usize];`, broken into lines as it comes.
fn assertions(name: &str, structs: &mut BTreeMap<&'static str, Struct>) -> Result<()> {
    let number = |label: String| {
        let (_, rest) = PARAMS.split_once(&label)?;
        let (expression, _) = rest.split_once("usize];")?;
        expression.rsplit_once("- ")?.1.parse::<usize>().ok()
    };
    let asserted = |label: String| number(format!("[\"{label}\"]")).ok_or_else(|| unknown(&label));
    let Some(found) = structs.get_mut(name) else { return Ok(()) };
    found.bytes = asserted(format!("Size of {name}"))?;
    found.alignment = asserted(format!("Alignment of {name}"))?;
    for field in &mut found.fields {
        let offset = |rust: &str| number(format!("[\"Offset of field: {name}::{rust}\"]"));
        field.offset = offset(field.name)
            .or_else(|| offset(&format!("{}_", field.name)))
            .ok_or_else(|| unknown(field.name))?;
    }
    Ok(())
}

fn unknown(text: &str) -> Error {
    Error::file("src/kernels/params.rs", format!("'{}' is not as bindgen writes it", text.trim()))
}

/// What comments say, which come before what they are of.
#[derive(Default)]
struct Comment {
    words: Vec<&'static str>,
    /// In one of several lines.
    open: bool,
}

impl Comment {
    /// Whether a line is of a comment.
    fn takes(&mut self, line: &'static str) -> bool {
        let line = line.trim_start();
        let text = if self.open {
            line
        } else if let Some(text) = line.strip_prefix("///") {
            text
        } else if let Some(text) = line.strip_prefix("/**") {
            self.open = true;
            text
        } else {
            return false;
        };
        self.open &= !text.ends_with("*/");
        self.words.extend(text.trim_end_matches("*/").split_whitespace());
        true
    }

    /// In one line; brackets are escaped there.
    fn take(&mut self) -> String {
        std::mem::take(&mut self.words).join(" ").replace("\\[", "[").replace("\\]", "]")
    }
}
