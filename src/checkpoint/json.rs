//! JSON out of untrusted files: duplicate keys are refused, and every field is read with its type and range.

use std::{fmt, ops::RangeInclusive, path::Path};

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::{Error, Result, printable};

/// Parses `bytes` as one JSON object. Depth is bounded by serde_json (128 levels).
pub(super) fn parse_object(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>> {
    match parse::<Unique>(path, bytes)?.0 {
        Value::Object(map) => Ok(map),
        _ => Err(Error::file(path, "is JSON, but no object")),
    }
}

/// Parses `bytes` as JSON of type `T`, with UTF-8 and syntax errors that name the file.
pub(super) fn parse<'de, T: Deserialize<'de>>(path: &Path, bytes: &'de [u8]) -> Result<T> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| Error::file(path, format!("is not UTF-8 (byte {})", e.valid_up_to())))?;
    serde_json::from_str(text)
        .map_err(|e| Error::file(path, format!("is not the JSON expected: {}", printable(&e.to_string()))))
}

/// A JSON value none of whose objects names a key twice. Readers differ in which one they keep.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Unique)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }
    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(value.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> std::result::Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unique(value)) = access.next_element()? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> std::result::Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(de::Error::custom(format_args!("key \"{key}\" occurs twice")));
            }
            let Unique(value) = access.next_value()?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// The fields of one JSON object of a config file, read with checks. `null` counts as absent, as in
/// Hugging Face's own files.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    pub(super) path: &'a Path,
    /// Where the object is in the file: `""` at the top, else for example `"rope_scaling."`.
    pub(super) prefix: &'a str,
    pub(super) map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn error(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::Config {
            path: self.path.to_owned(),
            field: printable(&format!("{}{name}", self.prefix)),
            reason: reason.into(),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// A whole number within `range`, `default` if absent; required if there is no default.
    pub(super) fn whole(
        &self,
        name: &str,
        default: Option<usize>,
        range: RangeInclusive<usize>,
    ) -> Result<usize> {
        let value = match (self.get(name), default) {
            (Some(value), _) => {
                value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n))
            }
            (None, Some(default)) => Some(default),
            (None, None) => return Err(self.error(name, "is missing")),
        };
        value.ok_or_else(|| {
            self.error(
                name,
                format!("{} is no whole number from {} to {}", self.shown(name), range.start(), range.end()),
            )
        })
    }

    /// A finite number within `range`, `default` if absent; required if there is no default.
    pub(super) fn number(&self, name: &str, default: Option<f64>, range: RangeInclusive<f64>) -> Result<f64> {
        let value = match (self.get(name), default) {
            (Some(value), _) => value.as_f64().filter(|n| range.contains(n)),
            (None, Some(default)) => Some(default),
            (None, None) => return Err(self.error(name, "is missing")),
        };
        value.ok_or_else(|| {
            self.error(
                name,
                format!("{} is no number from {} to {}", self.shown(name), range.start(), range.end()),
            )
        })
    }

    /// A flag, `default` if absent.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => Err(self.error(name, format!("{} is neither true nor false", self.shown(name)))),
        }
    }

    /// A string, if present.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.error(name, format!("{} is no string", self.shown(name)))),
        }
    }

    /// The fields of the object called `name`, if present; `prefix` must be where it is.
    pub(super) fn object(&self, name: &str, prefix: &'a str) -> Result<Option<Fields<'a>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { path: self.path, prefix, map })),
            Some(_) => Err(self.error(name, format!("{} is no object", self.shown(name)))),
        }
    }

    /// The value as the file has it, cut and escaped for an error's text.
    pub(super) fn shown(&self, name: &str) -> String {
        match self.map.get(name) {
            Some(Value::Array(_)) => "a list".to_owned(),
            Some(Value::Object(_)) => "an object".to_owned(),
            Some(value) => printable(&value.to_string()),
            None => "nothing".to_owned(),
        }
    }
}
