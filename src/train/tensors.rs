//! Writing safetensors files of any size with the memory of a small one. The `safetensors` crate's own writers
//! want the file whole in memory, or leave a file of a random name behind where they are killed.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use half::{bf16, f16};
use serde_json::{Map, Value, json};

use crate::{Error, Result, checkpoint::Dtype};

/// Values rounded at a time.
const BLOCK: usize = 1 << 13;

/// The values of a tensor.
pub enum Values<'a> {
    /// Written as they are.
    F32(&'a [f32]),
    /// Written as they are.
    F64(&'a [f64]),
    /// Multiplied by a factor, then rounded to a type.
    Rounded(&'a [f32], f32, Dtype),
}

impl Values<'_> {
    fn dtype(&self) -> &'static str {
        match self {
            Values::F32(_) | Values::Rounded(_, _, Dtype::F32 | Dtype::E4m3) => "F32",
            Values::F64(_) => "F64",
            Values::Rounded(_, _, Dtype::F16) => "F16",
            Values::Rounded(_, _, Dtype::Bf16) => "BF16",
        }
    }

    fn size(&self) -> usize {
        match self {
            Values::F32(values) => 4 * values.len(),
            Values::F64(values) => 8 * values.len(),
            Values::Rounded(values, _, Dtype::F16 | Dtype::Bf16) => 2 * values.len(),
            Values::Rounded(values, ..) => 4 * values.len(),
        }
    }

    fn write(&self, to: &mut impl Write) -> std::io::Result<()> {
        let singles = |to: &mut dyn Write, values: &[f32], factor: f32| {
            let mut bytes = Vec::with_capacity(4 * BLOCK);
            values.chunks(BLOCK).try_for_each(|block| {
                bytes.clear();
                bytes.extend(block.iter().flat_map(|value| (value * factor).to_le_bytes()));
                to.write_all(&bytes)
            })
        };
        let halves = |to: &mut dyn Write, values: &[f32], round: &dyn Fn(f32) -> [u8; 2]| {
            let mut bytes = Vec::with_capacity(2 * BLOCK);
            values.chunks(BLOCK).try_for_each(|block| {
                bytes.clear();
                bytes.extend(block.iter().flat_map(|&value| round(value)));
                to.write_all(&bytes)
            })
        };
        match *self {
            Values::F32(values) => singles(to, values, 1.0),
            Values::F64(values) => values.iter().try_for_each(|value| to.write_all(&value.to_le_bytes())),
            Values::Rounded(values, factor, Dtype::F16) => {
                halves(to, values, &|value| f16::from_f32(value * factor).to_le_bytes())
            }
            Values::Rounded(values, factor, Dtype::Bf16) => {
                halves(to, values, &|value| bf16::from_f32(value * factor).to_le_bytes())
            }
            Values::Rounded(values, factor, _) => singles(to, values, factor),
        }
    }
}

/// One tensor of a file.
pub struct Entry<'a> {
    /// Its name.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its values, row by row.
    pub values: Values<'a>,
}

/// Writes `entries` to the file `path`, and waits until the disk has them.
///
/// # Errors
/// [`Error::Io`]; the file may then be half-written.
pub fn write(path: &Path, entries: &[Entry<'_>], metadata: &[(&str, String)]) -> Result<()> {
    let mut header = Map::new();
    let metadata: Map<String, Value> =
        metadata.iter().map(|(key, text)| ((*key).into(), json!(text))).collect();
    header.insert("__metadata__".into(), Value::Object(metadata));
    let mut end = 0;
    for Entry { name, shape, values } in entries {
        let start = end;
        end += values.size();
        let entry = json!({ "dtype": values.dtype(), "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string();
    // Data begin at a multiple of 8, as the format advises.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let write = || {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        entries.iter().try_for_each(|entry| entry.values.write(&mut file))?;
        file.into_inner().map_err(|error| error.into_error())?.sync_all()
    };
    write().map_err(|error| Error::io(path, error))
}
