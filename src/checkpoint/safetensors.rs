//! One safetensors file: its header, checked, and where each tensor lies.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use safetensors::{SafeTensors, tensor::Metadata};
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{file::HEADER_LIMIT, json};
use crate::error::{Error, Result, printable};

/// Bytes before the header: its length, little-endian.
const PREFIX: usize = 8;

/// Parses the header of the safetensors file `bytes`. Returns it with the position of the data, to which
/// its offsets are relative.
///
/// The `safetensors` crate checks that the offsets have neither holes nor overlaps, fit the shapes and end
/// with the file. Here, before it: that the length is within the file and within reason, and that no tensor
/// is described twice.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<(usize, Metadata)> {
    let fail = |reason: String| Error::file(path, reason);
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else {
        return Err(fail(format!("is truncated: {} bytes are no safetensors file", bytes.len())));
    };
    let length = u64::from_le_bytes(*prefix);
    if length > HEADER_LIMIT {
        return Err(fail(format!("claims a header of {length} bytes; at most {HEADER_LIMIT} are read")));
    }
    let end = PREFIX + length as usize;
    let header = bytes.get(PREFIX..end).ok_or_else(|| {
        fail(format!("is truncated: it has {} bytes, its header alone ends at {end}", bytes.len()))
    })?;
    json::parse::<DistinctKeys>(path, header)?;
    let (_, metadata) = catch_unwind(AssertUnwindSafe(|| SafeTensors::read_metadata(bytes)))
        .map_err(|_| fail("makes the safetensors crate panic: its header is damaged".to_owned()))?
        .map_err(|e| {
            fail(format!("has a header that is not valid: {}", printable(&explain(&e, bytes.len()))))
        })?;
    Ok((end, metadata))
}

/// Checks that `bytes` are a whole safetensors file, with whatever tensors, and returns their number.
/// `path` is its name in errors.
///
/// # Errors
/// [`Error::File`] if the header lies about the file in any way.
pub fn check_safetensors(path: &Path, bytes: &[u8]) -> Result<usize> {
    parse(path, bytes).map(|(_, metadata)| metadata.offset_keys().len())
}

/// Checks that `bytes` are a `model.safetensors.index.json` whose files all lie beside it, and returns the
/// number of tensors in it. `path` is its name in errors.
///
/// # Errors
/// [`Error::File`] if they are not such JSON, [`Error::Tensor`] if a file name could lead elsewhere.
pub fn check_index(path: &Path, bytes: &[u8]) -> Result<usize> {
    parse_index(path, bytes).map(|index| index.weight_map.len())
}

fn explain(error: &safetensors::SafeTensorError, file: usize) -> String {
    use safetensors::SafeTensorError as E;
    match error {
        E::MetadataIncompleteBuffer => {
            format!("its tensors do not end where the file does, at byte {file} (truncated or lengthened)")
        }
        E::InvalidOffset(name) => {
            format!("the data_offsets of tensor {name} overlap its neighbour, leave a hole or run backwards")
        }
        E::TensorInvalidInfo => "a tensor's data_offsets do not fit its shape and dtype".to_owned(),
        E::ValidationOverflow => "a tensor's shape overflows".to_owned(),
        other => other.to_string(),
    }
}

/// A JSON object whose keys differ from one another; the values are only skipped.
struct DistinctKeys;

impl<'de> Deserialize<'de> for DistinctKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = DistinctKeys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object that describes tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<DistinctKeys, A::Error> {
                let mut seen = HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    map.next_value::<IgnoredAny>()?;
                    if let Some(key) = seen.replace(key) {
                        return Err(de::Error::custom(format_args!("tensor {key} is described twice")));
                    }
                }
                Ok(DistinctKeys)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// The `weight_map` of an index: tensor → file name.
pub(super) struct Index {
    pub(super) weight_map: HashMap<String, String>,
}

/// Parses `model.safetensors.index.json` and checks that each file name in it is a plain name of a file
/// beside the index: names are untrusted, and could otherwise lead anywhere.
pub(super) fn parse_index(path: &Path, bytes: &[u8]) -> Result<Index> {
    let index: Index = json::parse(path, bytes)?;
    if index.weight_map.is_empty() {
        return Err(Error::file(path, "has an empty weight_map"));
    }
    for (tensor, shard) in &index.weight_map {
        if !is_plain_name(shard) {
            return Err(Error::Tensor {
                path: path.to_owned(),
                tensor: tensor.clone(),
                reason: format!("its file '{}' is not a plain file name", printable(shard)),
            });
        }
    }
    Ok(index)
}

/// Whether `name` is the name of a file in the same folder on every system: no separators, no `..`, no
/// drive, no control characters.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\' | ':'))
}

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct IndexVisitor;
        impl<'de> Visitor<'de> for IndexVisitor {
            type Value = Index;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a weight_map")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Index, A::Error> {
                let mut index = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key != "weight_map" {
                        map.next_value::<IgnoredAny>()?;
                    } else if index.replace(map.next_value::<WeightMap>()?).is_some() {
                        return Err(de::Error::duplicate_field("weight_map"));
                    }
                }
                let WeightMap(weight_map) = index.ok_or_else(|| de::Error::missing_field("weight_map"))?;
                Ok(Index { weight_map })
            }
        }
        deserializer.deserialize_map(IndexVisitor)
    }
}

struct WeightMap(HashMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct WeightMapVisitor;
        impl<'de> Visitor<'de> for WeightMapVisitor {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a weight_map from tensor names to file names")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<WeightMap, A::Error> {
                let mut files = HashMap::new();
                while let Some((tensor, file)) = map.next_entry::<String, String>()? {
                    if files.insert(tensor, file).is_some() {
                        return Err(de::Error::custom("the weight_map lists a tensor twice"));
                    }
                }
                Ok(WeightMap(files))
            }
        }
        deserializer.deserialize_map(WeightMapVisitor)
    }
}
