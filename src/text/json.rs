//! The `tojson` filter of chat templates: Python's `json.dumps`, whose spacing models were trained on.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Longest output; a template can share one value many times, so the input's size does not bound it.
const LENGTH_LIMIT: usize = 16 << 20;
/// Deepest nesting, as for JSON that is read.
const DEPTH_LIMIT: usize = 128;

/// `value | tojson(indent=…, separators=(…, …), ensure_ascii=…, sort_keys=…)`.
///
/// As in transformers, and unlike in Jinja itself, nothing is escaped for HTML and non-ASCII is kept. Without
/// `indent` the separators are `", "` and `": "`.
pub(super) fn tojson(value: Value, indent: Option<Value>, options: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    let indent = match indent {
        Some(value) if !value.is_none() && !value.is_undefined() => {
            Some(usize::try_from(value).map_err(|_| refuse("indent must be a small whole number"))?)
        }
        _ => None,
    };
    if indent.is_some_and(|width| width > 32) {
        return Err(refuse("indent must be a small whole number"));
    }
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(refuse("separators must be a pair of strings")),
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
    };
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut writer = Writer { out: String::new(), indent, item, key, ascii, sorted };
    writer.value(&value, 0)?;
    Ok(writer.out)
}

fn refuse(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {reason}"))
}

struct Writer {
    out: String,
    indent: Option<usize>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_LIMIT {
            return Err(refuse("the value is nested too deep"));
        }
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => self.out.push_str("null"),
            // As text, a Jinja value is written in Python's way: True.
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&value.to_string()),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let mut count = 0;
                self.out.push('[');
                for element in value.try_iter()? {
                    self.separate(count, depth + 1)?;
                    self.value(&element, depth + 1)?;
                    count += 1;
                }
                self.close(count, depth, ']');
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                let count = keys.len();
                self.out.push('{');
                for (index, key) in keys.into_iter().enumerate() {
                    self.separate(index, depth + 1)?;
                    self.string(&key.to_string());
                    self.out.push_str(&self.key);
                    self.value(&value.get_item(&key)?, depth + 1)?;
                }
                self.close(count, depth, '}');
            }
            kind => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("tojson: cannot write a {kind}"),
                ));
            }
        }
        if self.out.len() > LENGTH_LIMIT {
            return Err(refuse("the output is too long"));
        }
        Ok(())
    }

    /// Before the element with index `index`: the comma, and the line break.
    fn separate(&mut self, index: usize, depth: usize) -> Result<(), Error> {
        if index > 0 {
            self.out.push_str(&self.item);
        }
        self.line(depth);
        if self.out.len() > LENGTH_LIMIT { Err(refuse("the output is too long")) } else { Ok(()) }
    }

    fn close(&mut self, count: usize, depth: usize, bracket: char) {
        if count > 0 {
            self.line(depth);
        }
        self.out.push(bracket);
    }

    fn line(&mut self, depth: usize) {
        if let Some(width) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', width * depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a String does not fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}
