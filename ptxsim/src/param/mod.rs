//! Kernel parameters as text, in the syntax of `ptxsim run --param`. Start from [`Param`], whose `FromStr` reads one;
//! [`Inputs::load`] reads the files that they name, and [`Inputs::place`] puts them on a [`Device`].
//!
//! | text | parameter |
//! |---|---|
//! | `u32:7`, `f32:0.5`, `bf16:1` | a number: `u8`, `s8` to `u64`, `s64`, `f16`, `bf16`, `f32`, `f64` |
//! | `bytes:00ff…` | bytes, as their hexadecimal digits |
//! | `struct:u32:7,buf:f32:8` | a structure by value of any of these and of buffers, each where C would lay it, or from byte N on with `N@` before it; what lies between is 0 |
//! | `buf:f16:8192` | the address of a buffer that nobody has written: reading it is a finding |
//! | `buf:f16:8192=fill:0` | … of a buffer full of one value |
//! | `buf:f16:8192=random:1` | … of seeded random values: −1 to 1, or integers from 0 to 255 (signed: −128 to 127) |
//! | `buf:f16:8192=x.npy` | … with the values of a NumPy file of that type and number of elements |
//! | `buf:x.npy` | the same, type and number taken from the file |
//! | `buf:…>y.npy` | any of these buffers, saved after the run |
//!
//! NumPy has no bf16: such a buffer is a file of `<u2` that holds its bits, and is named with its type. No file in a structure has a
//! comma in its name.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use ptxsim::{Device, Gpu, param::{Inputs, Param}};
//! let params: Vec<Param> = vec!["buf:f32:64=random:1".parse()?, "u32:64".parse()?];
//! let inputs = Inputs::load(&params, 1 << 20)?;
//! let placed = inputs.place(&mut Device::new(Gpu::H100))?;
//! assert_eq!(placed.arguments.len(), 2);
//! # Ok(())
//! # }
//! ```

mod npy;

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::{Argument, Device};

/// A parameter that cannot be read, or a file of one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct ParamError {
    /// The parameter or the file, control characters escaped.
    what: String,
    /// What is wrong with it, and what to do.
    reason: String,
}

impl ParamError {
    fn new(what: &str, reason: impl Into<String>) -> Self {
        ParamError { what: format!("parameter {:?}", short(what)), reason: reason.into() }
    }

    fn file(path: &Path, reason: impl Into<String>) -> Self {
        ParamError { what: path.to_string_lossy().escape_debug().to_string(), reason: reason.into() }
    }
}

/// As much of a text as a message holds.
fn short(text: &str) -> String {
    const MOST: usize = 200;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}

/// The type of a number or of a buffer's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// 8 bits, unsigned.
    U8,
    /// 8 bits, signed.
    S8,
    /// 16 bits, unsigned.
    U16,
    /// 16 bits, signed.
    S16,
    /// 32 bits, unsigned.
    U32,
    /// 32 bits, signed.
    S32,
    /// 64 bits, unsigned.
    U64,
    /// 64 bits, signed.
    S64,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
}

impl Type {
    /// All of them.
    pub const ALL: [Type; 12] = {
        use Type::*;
        [U8, S8, U16, S16, U32, S32, U64, S64, F16, Bf16, F32, F64]
    };

    /// Its name in PTX: `u32`.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        self.row().1
    }

    /// Its name in a NumPy file, little-endian.
    pub fn descr(self) -> &'static str {
        self.row().2
    }

    fn row(self) -> (&'static str, u64, &'static str) {
        match self {
            Type::U8 => ("u8", 1, "|u1"),
            Type::S8 => ("s8", 1, "|i1"),
            Type::U16 => ("u16", 2, "<u2"),
            Type::S16 => ("s16", 2, "<i2"),
            Type::U32 => ("u32", 4, "<u4"),
            Type::S32 => ("s32", 4, "<i4"),
            Type::U64 => ("u64", 8, "<u8"),
            Type::S64 => ("s64", 8, "<i8"),
            Type::F16 => ("f16", 2, "<f2"),
            Type::Bf16 => ("bf16", 2, "<u2"),
            Type::F32 => ("f32", 4, "<f4"),
            Type::F64 => ("f64", 8, "<f8"),
        }
    }

    fn named(name: &str) -> Option<Type> {
        Type::ALL.into_iter().find(|ty| ty.name() == name)
    }

    fn is_float(self) -> bool {
        matches!(self, Type::F16 | Type::Bf16 | Type::F32 | Type::F64)
    }

    fn is_signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64)
    }

    /// The bytes of a number: decimal, `0x…` for integers, `nan` and `inf` for floating point.
    fn number(self, text: &str) -> Result<Vec<u8>, String> {
        let refuse = || format!("{text:?} is no {}", self.name());
        if self.is_float() {
            let value: f64 = text.parse().map_err(|_| refuse())?;
            let (bytes, finite) = self.float(value, text);
            // Digits that no f64 holds are read as infinity, too.
            if !finite && !value.is_nan() && text.contains(|c: char| c.is_ascii_digit()) {
                return Err(format!("{text} is beyond the largest {}", self.name()));
            }
            return Ok(bytes);
        }
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let magnitude = match digits.strip_prefix("0x") {
            Some(hex) if !hex.starts_with('+') => u64::from_str_radix(hex, 16),
            _ if negative && digits.starts_with('+') => return Err(refuse()),
            _ => digits.parse(),
        };
        let magnitude = i128::from(magnitude.map_err(|_| refuse())?);
        let value = if negative { -magnitude } else { magnitude };
        let bits = 8 * self.bytes() as u32;
        let range = if self.is_signed() { -(1i128 << (bits - 1))..1 << (bits - 1) } else { 0..1i128 << bits };
        if !range.contains(&value) {
            return Err(format!("{text} does not fit {}: {} to {}", self.name(), range.start, range.end - 1));
        }
        Ok(value.to_le_bytes()[..self.bytes() as usize].to_vec())
    }

    /// A floating-point value's bytes, and whether it is finite in that type. f32 is read from the text, where there is
    /// one, so that it is rounded once.
    fn float(self, value: f64, text: &str) -> (Vec<u8>, bool) {
        match self {
            Type::F16 => {
                let value = half::f16::from_f64(value);
                (value.to_le_bytes().into(), value.is_finite())
            }
            Type::Bf16 => {
                let value = half::bf16::from_f64(value);
                (value.to_le_bytes().into(), value.is_finite())
            }
            Type::F32 => {
                let value = text.parse().unwrap_or(value as f32);
                (value.to_le_bytes().into(), value.is_finite())
            }
            _ => (value.to_le_bytes().into(), value.is_finite()),
        }
    }

    /// The next of a sequence of random values.
    fn random(self, state: &mut crate::exec::Random) -> Vec<u8> {
        let bits = state.next();
        if self.is_float() {
            let unit = (bits >> 11) as f64 / (1u64 << 53) as f64;
            return self.float(unit * 2.0 - 1.0, "").0;
        }
        let small = (bits >> 56) as u8;
        let value = if self.is_signed() { i64::from(small as i8) } else { i64::from(small) };
        value.to_le_bytes()[..self.bytes() as usize].to_vec()
    }
}

/// One parameter of a kernel as its text says; files are not read yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    text: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Member(Member),
    Struct {
        /// With the byte that each begins at, ascending.
        members: Vec<(usize, Member)>,
        bytes: usize,
    },
}

#[derive(Clone, Debug, PartialEq)]
enum Member {
    Value(Vec<u8>),
    Buffer {
        /// Type and number of elements; None where a file tells.
        layout: Option<(Type, u64)>,
        contents: Contents,
        save: Option<PathBuf>,
    },
}

#[derive(Clone, Debug, PartialEq)]
enum Contents {
    Unwritten,
    Fill(Vec<u8>),
    Random(u64),
    File(PathBuf),
}

impl FromStr for Param {
    type Err = ParamError;

    fn from_str(text: &str) -> Result<Self, ParamError> {
        let kind = kind(text).map_err(|reason| ParamError::new(text, reason))?;
        Ok(Param { text: text.into(), kind })
    }
}

fn kind(text: &str) -> Result<Kind, String> {
    match text.strip_prefix("struct:") {
        Some(members) => structure(members),
        None => member(text).map(|(member, _)| Kind::Member(member)),
    }
}

/// Bytes of all parameters of a kernel, of which a structure may be one: from sm_70 on, says the PTX ISA.
const MOST_BYTES: usize = 32_764;

fn structure(text: &str) -> Result<Kind, String> {
    let mut members = vec![];
    let (mut end, mut largest) = (0, 1);
    for text in text.split(',') {
        let (offset, text) = match text.split_once('@') {
            Some((offset, text)) if !offset.contains(':') => (Some(offset), text),
            _ => (None, text),
        };
        let (member, align) = member(text).map_err(|reason| format!("member {:?}: {reason}", short(text)))?;
        let begin = match offset {
            None => usize::next_multiple_of(end, align),
            Some(offset) => {
                let begin: usize = offset.parse().map_err(|_| format!("{offset:?} is no number of bytes"))?;
                if begin < end {
                    return Err(format!("{begin}@{text}: what is before it ends at byte {end}"));
                }
                begin
            }
        };
        largest = largest.max(align);
        end = begin.saturating_add(member.bytes());
        if end > MOST_BYTES || end.next_multiple_of(largest) > MOST_BYTES {
            return Err(format!("a kernel takes {MOST_BYTES} bytes of parameters at most"));
        }
        members.push((begin, member));
    }
    Ok(Kind::Struct { members, bytes: end.next_multiple_of(largest) })
}

/// A parameter that is no structure, and its alignment as a member of one.
fn member(text: &str) -> Result<(Member, usize), String> {
    let forms = "write TYPE:VALUE, bytes:HEX, buf:TYPE:COUNT or struct:MEMBER,MEMBER";
    let (head, rest) = text.split_once(':').ok_or(forms)?;
    match head {
        "buf" => Ok((buffer(rest)?, 8)),
        "bytes" => Ok((Member::Value(hex(rest)?), 1)),
        "struct" => Err("a structure has no structures: name their members".into()),
        _ => match Type::named(head) {
            Some(ty) => Ok((Member::Value(ty.number(rest)?), ty.bytes() as usize)),
            None => {
                Err(format!("no type is called {head:?}; there are {}, bytes, buf and struct", type_names()))
            }
        },
    }
}

impl Member {
    /// Of the parameter: 8 of a buffer's address.
    fn bytes(&self) -> usize {
        match self {
            Member::Value(value) => value.len(),
            Member::Buffer { .. } => 8,
        }
    }
}

/// An empty vector for so many bytes, if the host has them.
fn room(bytes: u64) -> Result<Vec<u8>, String> {
    let mut data = Vec::new();
    let reserved = usize::try_from(bytes).map(|bytes| data.try_reserve_exact(bytes));
    match reserved {
        Ok(Ok(())) => Ok(data),
        _ => Err(format!("the host has no room for its {bytes} bytes")),
    }
}

fn type_names() -> String {
    Type::ALL.map(Type::name).join(", ")
}

fn hex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    match digits {
        Some(digits) if !digits.is_empty() && digits.len() % 2 == 0 => {
            Ok(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
        }
        _ => Err("bytes are two hexadecimal digits each".into()),
    }
}

fn is_npy(text: &str) -> bool {
    text.len() > 4 && text.ends_with(".npy")
}

fn buffer(text: &str) -> Result<Member, String> {
    let (text, save) = match text.rsplit_once('>') {
        Some((_, path)) if !is_npy(path) => {
            return Err(format!("what is saved is a FILE.npy, not {path:?}"));
        }
        Some((text, path)) => (text, Some(PathBuf::from(path))),
        None => (text, None),
    };
    let (layout, contents) = match text.split_once('=') {
        Some((layout, contents)) => (layout, Some(contents)),
        None => (text, None),
    };
    if contents.is_none() && is_npy(layout) {
        return Ok(Member::Buffer { layout: None, contents: Contents::File(layout.into()), save });
    }
    let (ty, count) = layout.split_once(':').ok_or("a buffer is buf:TYPE:COUNT or buf:FILE.npy")?;
    let ty =
        Type::named(ty).ok_or_else(|| format!("no type is called {ty:?}; there are {}", type_names()))?;
    let count: u64 = count.parse().map_err(|_| format!("{count:?} is no number of elements"))?;
    let contents = match contents {
        None => Contents::Unwritten,
        Some(path) if is_npy(path) => Contents::File(path.into()),
        Some(contents) => match contents.split_once(':') {
            Some(("fill", value)) => Contents::Fill(ty.number(value)?),
            Some(("random", seed)) => {
                Contents::Random(seed.parse().map_err(|_| format!("{seed:?} is no seed: a number from 0"))?)
            }
            _ => return Err(format!("contents are fill:VALUE, random:SEED or a FILE.npy, not {contents:?}")),
        },
    };
    Ok(Member::Buffer { layout: Some((ty, count)), contents, save })
}

/// The parameters of a launch with the contents of their buffers.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Bytes of each parameter.
    parameters: Vec<usize>,
    inputs: Vec<Input>,
}

/// A parameter or a member of one.
#[derive(Clone, Debug)]
struct Input {
    parameter: usize,
    /// Of its first byte in the parameter.
    offset: usize,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Value(Vec<u8>),
    Buffer { ty: Type, shape: Vec<u64>, bytes: u64, data: Option<Vec<u8>>, save: Option<PathBuf> },
}

/// A launch's parameters on a device.
#[derive(Clone, Debug)]
pub struct Placed {
    /// As [`crate::Launch::arguments`] takes them.
    pub arguments: Vec<Argument>,
    /// In the order of the text.
    pub buffers: Vec<PlacedBuffer>,
}

/// A buffer that a parameter names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedBuffer {
    /// Which, from 0.
    pub parameter: usize,
    /// Where its address begins in the parameter: 0, but for members of structures.
    pub offset: usize,
    /// On the device.
    pub address: u64,
    /// Of the buffer.
    pub bytes: u64,
}

impl Inputs {
    /// Reads or makes the contents of every buffer, at most `limit` bytes in all.
    ///
    /// # Errors
    /// For a file that cannot be read, is no NumPy file, or holds another type or number of elements than the
    /// parameter says; for buffers beyond the limit, before any is made; and for a place where nothing can be
    /// saved, so that it is known before the run.
    pub fn load(params: &[Param], limit: u64) -> Result<Inputs, ParamError> {
        let mut left = limit;
        let mut saved: Vec<PathBuf> = vec![];
        let mut inputs = vec![];
        let mut parameters = vec![];
        let mut members = vec![];
        for (index, param) in params.iter().enumerate() {
            let (bytes, found): (usize, &[(usize, Member)]) = match &param.kind {
                Kind::Member(member) => (member.bytes(), &[(0, member.clone())]),
                Kind::Struct { members, bytes } => (*bytes, members),
            };
            parameters.push(bytes);
            members.extend(found.iter().map(|(offset, member)| (index, *offset, member.clone())));
        }
        for (parameter, offset, member) in &members {
            let error = |reason: String| ParamError::new(&params[*parameter].text, reason);
            let mut add = |what| inputs.push(Input { parameter: *parameter, offset: *offset, what });
            let (layout, contents, save) = match member {
                Member::Value(value) => {
                    add(What::Value(value.clone()));
                    continue;
                }
                Member::Buffer { layout, contents, save } => (layout, contents, save),
            };
            if let Some(path) = save {
                npy::check_target(path)?;
                // However it is written.
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                let folder = folder.unwrap_or(Path::new(".")).canonicalize().unwrap_or_default();
                let place = path.file_name().map_or_else(|| path.clone(), |name| folder.join(name));
                if saved.contains(&place) {
                    return Err(error("another buffer is saved to the same file".into()));
                }
                saved.push(place);
            }
            let mut take = |ty: Type, count: u64| {
                let bytes = count.checked_mul(ty.bytes()).filter(|bytes| *bytes <= left);
                let bytes = bytes.ok_or_else(|| {
                    error(format!("more than the {limit} bytes that all buffers may have together"))
                })?;
                left -= bytes;
                Ok::<u64, ParamError>(bytes)
            };
            let (ty, shape, bytes, data) = match (contents, layout) {
                (Contents::File(path), _) => {
                    let file = npy::open(path)?;
                    let ty = file.element_type(layout.map(|l| l.0))?;
                    let count = file.count(layout.map(|l| l.1))?;
                    let bytes = take(ty, count)?;
                    (ty, file.shape.clone(), bytes, Some(file.read(bytes)?))
                }
                (Contents::Unwritten, Some((ty, count))) => (*ty, vec![*count], take(*ty, *count)?, None),
                (Contents::Fill(value), Some((ty, count))) => {
                    let bytes = take(*ty, *count)?;
                    let mut data = room(bytes).map_err(error)?;
                    (0..*count).for_each(|_| data.extend_from_slice(value));
                    (*ty, vec![*count], bytes, Some(data))
                }
                (Contents::Random(seed), Some((ty, count))) => {
                    let bytes = take(*ty, *count)?;
                    let mut state = crate::exec::Random::new(*seed);
                    let mut data = room(bytes).map_err(error)?;
                    for _ in 0..*count {
                        data.extend(ty.random(&mut state));
                    }
                    (*ty, vec![*count], bytes, Some(data))
                }
                (_, None) => return Err(error("a buffer without a file needs its type and size".into())),
            };
            add(What::Buffer { ty, shape, bytes, data, save: save.clone() });
        }
        Ok(Inputs { parameters, inputs })
    }

    /// Allocates and writes the buffers.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] if the device has no room.
    pub fn place(&self, device: &mut Device) -> crate::Result<Placed> {
        let mut arguments: Vec<_> = self.parameters.iter().map(|bytes| Argument(vec![0; *bytes])).collect();
        let mut buffers = vec![];
        for &Input { parameter, offset, ref what } in &self.inputs {
            let address;
            let value = match what {
                What::Value(value) => &value[..],
                What::Buffer { bytes, data, .. } => {
                    let place = device.allocate(*bytes)?;
                    if let Some(data) = data {
                        device.write(place, data)?;
                    }
                    buffers.push(PlacedBuffer { parameter, offset, address: place, bytes: *bytes });
                    address = place.to_le_bytes();
                    &address
                }
            };
            arguments[parameter].0[offset..offset + value.len()].copy_from_slice(value);
        }
        Ok(Placed { arguments, buffers })
    }

    /// Saves the buffers that are to be saved. Each file is whole or as it was before. The answer names the files
    /// that hold bytes which nobody wrote.
    ///
    /// # Errors
    /// For a file that cannot be written.
    pub fn save(&self, device: &mut Device, placed: &Placed) -> Result<Vec<PathBuf>, ParamError> {
        let mut unwritten = vec![];
        let mut written = vec![];
        let buffers = self.inputs.iter().filter(|input| matches!(input.what, What::Buffer { .. }));
        for (input, PlacedBuffer { address, bytes, .. }) in buffers.zip(&placed.buffers) {
            let What::Buffer { ty, shape, save: Some(path), .. } = &input.what else { continue };
            let error = |e: crate::Error| ParamError::file(path, e.to_string());
            if !device.is_written(*address, *bytes as usize).map_err(error)? {
                unwritten.push(path.clone());
            }
            let data = device.read(*address, *bytes as usize).map_err(error)?;
            written.push(npy::write(path, *ty, shape, &data)?);
        }
        for file in written {
            file.keep()?;
        }
        Ok(unwritten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Vec<u8> {
        match text.parse::<Param>().expect(text).kind {
            Kind::Member(Member::Value(bytes)) => bytes,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn numbers_of_every_type_become_their_bytes() {
        assert_eq!(value("u8:255"), [255]);
        assert_eq!(value("s8:-128"), [128]);
        assert_eq!(value("u16:0xabcd"), [0xcd, 0xab]);
        assert_eq!(value("s16:-2"), [0xfe, 0xff]);
        assert_eq!(value("u32:7"), [7, 0, 0, 0]);
        assert_eq!(value("s32:-0x10"), (-16i32).to_le_bytes());
        assert_eq!(value("u64:18446744073709551615"), [255; 8]);
        assert_eq!(value("s64:-9223372036854775808"), i64::MIN.to_le_bytes());
        assert_eq!(value("f16:0.5"), [0, 0x38]);
        assert_eq!(value("bf16:1"), [0x80, 0x3f]);
        assert_eq!(value("f32:0.1"), 0.1f32.to_le_bytes());
        assert_eq!(value("f64:-0.1"), (-0.1f64).to_le_bytes());
        assert_eq!(value("f32:inf"), f32::INFINITY.to_le_bytes());
        assert!(f32::from_le_bytes(value("f32:nan").try_into().expect("4 bytes")).is_nan());
        assert_eq!(value("bytes:00fFa1"), [0, 255, 0xa1]);
    }

    #[test]
    fn what_is_no_parameter_is_refused_with_the_reason() {
        for (text, reason) in [
            ("7", "TYPE:VALUE"),
            ("i32:7", "there are u8"),
            ("u8:256", "does not fit u8: 0 to 255"),
            ("s8:128", "-128 to 127"),
            ("u32:-1", "does not fit"),
            ("u32:1.5", "is no u32"),
            ("u32:", "is no u32"),
            ("u32:0x", "is no u32"),
            ("u32:99999999999999999999999", "is no u32"),
            ("f16:1e6", "beyond the largest f16"),
            ("f32:1e39", "beyond the largest f32"),
            ("f32:one", "is no f32"),
            ("f32:1e400", "beyond the largest f32"),
            ("f64:-1e400", "beyond the largest f64"),
            ("s32:-+5", "is no s32"),
            ("struct:32756@u64:1", "32764 bytes"),
            ("bytes:", "hexadecimal"),
            ("bytes:abc", "hexadecimal"),
            ("bytes:zz", "hexadecimal"),
            ("buf:f32", "buf:TYPE:COUNT"),
            ("buf:f33:4", "no type"),
            ("buf:f32:-4", "number of elements"),
            ("buf:f32:4=3", "fill:VALUE"),
            ("buf:f32:4=fill:x", "is no f32"),
            ("buf:f32:4=random:-1", "seed"),
            ("buf:f32:4>out.txt", "FILE.npy"),
            ("buf:f32:4>", "FILE.npy"),
            ("buf:.npy", "buf:TYPE:COUNT"),
            ("struct:", "write TYPE:VALUE"),
            ("struct:u32:1,", "member \"\""),
            ("struct:u32:1,u9:1", "no type"),
            ("struct:u32:1,struct:u32:2", "no structures"),
            ("struct:u32:1,2@u32:1", "ends at byte 4"),
            ("struct:x@u32:1", "is no number of bytes"),
            ("struct:-1@u32:1", "is no number of bytes"),
            ("struct:32761@u32:1", "32764 bytes"),
            ("struct:18446744073709551615@u32:1", "32764 bytes"),
            ("struct:buf:f32:4>out.txt", "FILE.npy"),
        ] {
            let error = text.parse::<Param>().expect_err(text).to_string();
            assert!(error.contains(reason), "{error}");
        }
        let error = "u8:\u{1b}[2J".parse::<Param>().expect_err("an escape").to_string();
        assert!(!error.contains('\u{1b}'), "{error:?}");
    }

    #[test]
    fn structures_are_laid_out_as_c_does() {
        let text = "struct:u8:1,u16:2,buf:f32:3=fill:1,u8:4,bytes:0506,f64:0.5,40@u32:7";
        let params = [text.parse().expect(text), "buf:u8:5".parse().expect("a buffer")];
        let inputs = Inputs::load(&params, 1 << 20).expect(text);
        let mut device = Device::new(crate::Gpu::H100);
        let placed = inputs.place(&mut device).expect("room");
        let [first, second] = placed.buffers[..] else { panic!("{:?}", placed.buffers) };
        assert_eq!((first.parameter, first.offset, first.bytes), (0, 8, 12));
        assert_eq!((second.parameter, second.offset, second.bytes), (1, 0, 5));
        let mut want = vec![1, 0, 2, 0, 0, 0, 0, 0];
        want.extend(first.address.to_le_bytes());
        want.extend([4, 5, 6, 0, 0, 0, 0, 0]);
        want.extend(0.5f64.to_le_bytes());
        want.extend([0; 8]);
        want.extend([7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(placed.arguments[0].0, want);
        assert_eq!(placed.arguments[1].0, second.address.to_le_bytes());
        assert_eq!(device.read(first.address, 12).expect("the buffer"), 1f32.to_le_bytes().repeat(3));
    }

    #[test]
    fn buffers_are_bounded_before_they_are_made() {
        for texts in [
            vec!["buf:u8:18446744073709551615=fill:0"],
            vec!["buf:f64:18446744073709551615=random:1"],
            vec!["buf:u8:1025"],
            vec!["buf:u8:1000", "buf:u8:25=fill:0"],
            vec!["struct:buf:u8:1000,buf:u8:25=fill:0"],
        ] {
            let params: Vec<Param> = texts.iter().map(|t| t.parse().expect(t)).collect();
            let error = Inputs::load(&params, 1024).expect_err("too much").to_string();
            assert!(error.contains("1024 bytes"), "{error}");
        }
    }

    #[test]
    fn random_values_lie_in_their_range_and_follow_from_the_seed() {
        let data = |text: &str| match &Inputs::load(&[text.parse().expect(text)], 1 << 20).expect(text).inputs
            [0]
        .what
        {
            What::Buffer { data: Some(data), .. } => data.clone(),
            other => panic!("{other:?}"),
        };
        let floats = data("buf:f32:1000=random:1");
        assert_eq!(floats, data("buf:f32:1000=random:1"));
        assert_ne!(floats, data("buf:f32:1000=random:2"));
        let values: Vec<f32> =
            floats.chunks(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect();
        assert!(values.iter().all(|v| (-1.0..=1.0).contains(v)));
        assert!(values.iter().any(|v| *v < -0.9) && values.iter().any(|v| *v > 0.9));
        let words = data("buf:u32:1000=random:1");
        assert!(words.chunks(4).all(|b| b[1..] == [0; 3]));
        let words = data("buf:s32:1000=random:1");
        assert!(words.chunks(4).any(|b| b[1..] == [255; 3]));
    }
}
