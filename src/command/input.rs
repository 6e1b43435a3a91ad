//! Files that the user names: read whole, within a bound, as text.

use std::{fs::File, io::Read, path::Path};

use warploom::{Error, Result};

/// The text of `path`, a regular file of at most `limit` bytes.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::File`] if it is something else, longer, or no UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    // Asked before it is opened: opening a FIFO would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(|error| Error::io(path, error))?;
    if !metadata.is_file() {
        let kind = if metadata.is_dir() { "is a directory" } else { "is a device, socket or FIFO" };
        return Err(Error::file(path, format!("{kind}; a regular file is needed")));
    }
    let file = File::open(path).map_err(|error| Error::io(path, error))?;
    let mut bytes = Vec::new();
    // One byte more than allowed shows a file that is too long, even one that grew after it was looked at.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| Error::io(path, error))?;
    if bytes.len() as u64 > limit {
        return Err(Error::file(path, format!("has more than {} MiB, the most that is read", limit >> 20)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let byte = error.utf8_error().valid_up_to();
        Error::file(path, format!("is not UTF-8 (byte {byte})"))
    })
}
