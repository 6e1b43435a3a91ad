//! NumPy's `.npy` files: a plain array of numbers, in C order, little-endian.
//!
//! The header is a Python dictionary with three known keys, so it is read by a parser of just that: a general one of Python
//! literals recurses and counts without bounds, which a hostile file would use.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use super::{ParamError, Type};

/// Bytes of the longest header that is read; NumPy writes 118 for a plain array.
const HEADER: usize = 4096;
/// Dimensions that NumPy allows.
const DIMENSIONS: usize = 64;
const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// A file whose header has been read.
pub(super) struct Npy {
    path: PathBuf,
    file: File,
    descr: String,
    pub shape: Vec<u64>,
    /// Bytes behind the header.
    data: u64,
}

/// Opens a file and reads its header.
pub(super) fn open(path: &Path) -> Result<Npy, ParamError> {
    let error = |reason: String| ParamError::file(path, reason);
    let cut = |e: io::Error| match e.kind() {
        io::ErrorKind::UnexpectedEof => error("not a .npy file: it ends within its header".into()),
        _ => error(e.to_string()),
    };
    let metadata = fs::metadata(path).map_err(|e| error(e.to_string()))?;
    if !metadata.is_file() {
        return Err(error("not a file".into()));
    }
    let mut file = File::open(path).map_err(|e| error(e.to_string()))?;
    let mut start = [0; 10];
    file.read_exact(&mut start).map_err(cut)?;
    if &start[..6] != MAGIC {
        return Err(error("not a .npy file: it does not begin with NumPy's mark".into()));
    }
    let (before, length) = match start[6] {
        1 => (10, usize::from(u16::from_le_bytes([start[8], start[9]]))),
        2 | 3 => {
            let mut high = [0; 2];
            file.read_exact(&mut high).map_err(cut)?;
            (12, u32::from_le_bytes([start[8], start[9], high[0], high[1]]) as usize)
        }
        version => return Err(error(format!("version {version} of the .npy format; 1 to 3 are known"))),
    };
    if length > HEADER {
        return Err(error(format!(
            "a header of {length} bytes; {HEADER} are the most that a plain array needs"
        )));
    }
    let mut header = vec![0; length];
    file.read_exact(&mut header).map_err(cut)?;
    let header = std::str::from_utf8(&header).map_err(|_| error("a header that is not text".into()))?;
    let header = Header::parse(header).map_err(error)?;
    if header.fortran {
        return Err(error("an array in Fortran order; save it with numpy.ascontiguousarray".into()));
    }
    let data = metadata.len().saturating_sub(before + length as u64);
    Ok(Npy { path: path.into(), file, descr: header.descr, shape: header.shape, data })
}

impl Npy {
    /// The type of its elements, which must be `wanted` if that is given.
    pub fn element_type(&self, wanted: Option<Type>) -> Result<Type, ParamError> {
        let descr = &self.descr;
        let error = |reason: String| Err(ParamError::file(&self.path, reason));
        if descr.starts_with('>') {
            return error(format!("big-endian values ({descr:?}); convert them with numpy's newbyteorder"));
        }
        // NumPy writes "|" or "<" for single bytes, and "|b1" for bool.
        let plain = descr.trim_start_matches(['|', '<', '=']);
        let is = |ty: &Type| ty.descr()[1..] == *plain;
        match wanted {
            Some(ty) if is(&ty) => Ok(ty),
            Some(ty) => {
                error(format!("values of type {descr:?}; a buffer of {} takes {:?}", ty.name(), ty.descr()))
            }
            None => match Type::ALL.iter().find(|ty| is(ty)) {
                Some(ty) => Ok(*ty),
                None => error(format!("values of type {descr:?}, which no buffer takes")),
            },
        }
    }

    /// The number of its elements, which must be `wanted` if that is given.
    pub fn count(&self, wanted: Option<u64>) -> Result<u64, ParamError> {
        let error = |reason: String| ParamError::file(&self.path, reason);
        let count = self.shape.iter().try_fold(1u64, |n, size| n.checked_mul(*size));
        let count =
            count.ok_or_else(|| error(format!("the shape {:?} has more than 2^64 elements", self.shape)))?;
        match wanted {
            Some(wanted) if wanted != count => Err(error(format!("{count} values; the buffer has {wanted}"))),
            _ => Ok(count),
        }
    }

    /// The data, which must be so many bytes.
    pub fn read(mut self, bytes: u64) -> Result<Vec<u8>, ParamError> {
        let error = |reason: String| ParamError::file(&self.path, reason);
        if self.data != bytes {
            return Err(error(format!("{} bytes of data; its header promises {bytes}", self.data)));
        }
        let mut data = super::room(bytes).map_err(error)?;
        data.resize(bytes as usize, 0);
        self.file.read_exact(&mut data).map_err(|e| error(e.to_string()))?;
        Ok(data)
    }
}

#[derive(Debug, PartialEq)]
struct Header {
    descr: String,
    fortran: bool,
    shape: Vec<u64>,
}

impl Header {
    /// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`, keys in any order.
    fn parse(text: &str) -> Result<Header, String> {
        let mut rest = Cursor(text.trim());
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        rest.expect('{')?;
        while !rest.take('}') {
            let key = rest.string()?;
            rest.expect(':')?;
            let repeated = match key {
                "descr" if rest.0.starts_with('[') => {
                    return Err("records; only arrays of plain numbers can be buffers".into());
                }
                "descr" => descr.replace(rest.string()?.to_string()).is_some(),
                "fortran_order" => fortran.replace(rest.boolean()?).is_some(),
                "shape" => shape.replace(rest.shape()?).is_some(),
                _ => return Err(format!("an unknown key {key:?} in the header")),
            };
            if repeated {
                return Err(format!("the key {key:?} twice in the header"));
            }
            if !rest.take(',') {
                rest.expect('}')?;
                break;
            }
        }
        if !rest.0.is_empty() {
            return Err("text behind the header's dictionary".into());
        }
        match (descr, fortran, shape) {
            (Some(descr), Some(fortran), Some(shape)) => Ok(Header { descr, fortran, shape }),
            _ => Err("a header without descr, fortran_order or shape".into()),
        }
    }
}

/// What is left of a header, without leading blanks.
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn skip(&mut self, bytes: usize) {
        self.0 = self.0[bytes..].trim_start();
    }

    fn take(&mut self, c: char) -> bool {
        let there = self.0.starts_with(c);
        if there {
            self.skip(c.len_utf8());
        }
        there
    }

    fn expect(&mut self, c: char) -> Result<(), String> {
        if self.take(c) { Ok(()) } else { Err(format!("a damaged header: {c:?} is missing")) }
    }

    fn string(&mut self) -> Result<&'a str, String> {
        let quote = self.0.chars().next().filter(|c| matches!(c, '\'' | '"'));
        let quote = quote.ok_or("a damaged header: a string is missing")?;
        let end = self.0[1..].find(quote).ok_or("a damaged header: a string does not end")?;
        let text = &self.0[1..=end];
        self.skip(end + 2);
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        for (word, value) in [("False", false), ("True", true)] {
            if self.0.starts_with(word) {
                self.skip(word.len());
                return Ok(value);
            }
        }
        Err("a damaged header: fortran_order is neither True nor False".into())
    }

    fn shape(&mut self) -> Result<Vec<u64>, String> {
        let mut shape = vec![];
        self.expect('(')?;
        while !self.take(')') {
            let end = self.0.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.0.len());
            let size =
                self.0[..end].parse().map_err(|_| "a damaged header: the shape is no list of sizes")?;
            if shape.len() == DIMENSIONS {
                return Err(format!("more than {DIMENSIONS} dimensions"));
            }
            shape.push(size);
            self.skip(end);
            if !self.take(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(shape)
    }
}

/// Whether a file can be put there, as far as can be seen without writing it.
pub(super) fn check_target(path: &Path) -> Result<(), ParamError> {
    if path.is_dir() {
        return Err(ParamError::file(path, "a folder is there; name a file"));
    }
    let folder = folder(path);
    if !folder.is_dir() {
        return Err(ParamError::file(
            path,
            format!("no folder {:?} to write it to", folder.display().to_string()),
        ));
    }
    Ok(())
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file written aside, which [`Aside::keep`] puts in its place; dropped otherwise.
pub(super) struct Aside {
    part: PathBuf,
    path: PathBuf,
    kept: bool,
}

impl Aside {
    pub fn keep(mut self) -> Result<(), ParamError> {
        fs::rename(&self.part, &self.path).map_err(|e| ParamError::file(&self.path, e.to_string()))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing more can be done about it.
            let _ = fs::remove_file(&self.part);
        }
    }
}

/// Writes an array beside `path`.
pub(super) fn write(path: &Path, ty: Type, shape: &[u64], data: &[u8]) -> Result<Aside, ParamError> {
    let error = |e: io::Error| ParamError::file(path, e.to_string());
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.part", std::process::id()));
    let part = folder(path).join(name);
    let mut file = File::create(&part).map_err(error)?;
    let aside = Aside { part, path: path.into(), kept: false };
    let mut sizes: String = shape.iter().map(|n| format!("{n}, ")).collect();
    if shape.len() > 1 {
        sizes.truncate(sizes.len() - 2);
    }
    let mut header =
        format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", ty.descr(), sizes.trim_end());
    // The data begins at a multiple of 64.
    let length = (10 + header.len() + 1).next_multiple_of(64) - 10;
    header.extend(std::iter::repeat_n(' ', length - header.len() - 1));
    header.push('\n');
    file.write_all(MAGIC).map_err(error)?;
    file.write_all(&[1, 0]).map_err(error)?;
    file.write_all(&(length as u16).to_le_bytes()).map_err(error)?;
    file.write_all(header.as_bytes()).map_err(error)?;
    file.write_all(data).map_err(error)?;
    file.sync_all().map_err(error)?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_as_numpy_writes_them() {
        let parse = |text| Header::parse(text).expect(text);
        let header = parse("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }          \n");
        assert_eq!(header, Header { descr: "<f4".into(), fortran: false, shape: vec![2, 3] });
        assert_eq!(parse("{'descr': '|u1', 'fortran_order': True, 'shape': (5,), }").shape, [5]);
        assert_eq!(parse("{\"shape\":(),\"fortran_order\":False,\"descr\":\"<u2\"}").shape, [0u64; 0]);
    }

    #[test]
    fn damaged_headers_are_refused() {
        for text in [
            "",
            "{",
            "{}",
            "[]",
            "{'descr': '<f4'}",
            "{'descr': <f4, 'fortran_order': False, 'shape': (2,)}",
            "{'descr': '<f4, 'fortran_order': False, 'shape': (2,)}",
            "{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': 2}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
            "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}",
            "{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (2,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 1}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} more",
            "{'descr': 'é', 'fortran_order': False, 'shape': (é,)}",
            &"(".repeat(4000),
        ] {
            assert!(Header::parse(text).is_err(), "{text}");
        }
    }
}
