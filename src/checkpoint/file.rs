//! Regular files only: bounded reads for JSON, read-only maps for weights.

use std::{fs::File, io::Read, path::Path, sync::Arc};

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Most bytes of `config.json` and `generation_config.json`; real ones have a few thousand.
pub(super) const CONFIG_LIMIT: u64 = 1 << 20;
/// Most bytes of an index or of a safetensors header; Llama 3.1 405B's have about 200 thousand.
pub(super) const HEADER_LIMIT: u64 = 16 << 20;

/// Opens `path` if it leads (through links, perhaps) to a regular file. Returns the file and its length.
///
/// The kind is checked before the file is opened, since opening a FIFO would wait for a writer, and again
/// on the open file, which may have been swapped in between.
pub(super) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let refuse = |metadata: std::fs::Metadata| {
        if metadata.is_file() {
            return Ok(metadata.len());
        }
        let kind = if metadata.is_dir() { "is a directory" } else { "is a device, socket or FIFO" };
        Err(Error::file(path, format!("{kind}; a regular file is needed")))
    };
    refuse(std::fs::metadata(path).map_err(|e| Error::io(path, e))?)?;
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let length = refuse(file.metadata().map_err(|e| Error::io(path, e))?)?;
    Ok((file, length))
}

/// Reads the whole of `path`, which must not have more than `limit` bytes.
pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, length) = open_regular(path)?;
    if length > limit {
        return Err(Error::file(path, format!("has {length} bytes; at most {limit} are read")));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    // `take` holds the bound even if the file grows meanwhile.
    file.take(limit).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    Ok(bytes)
}

/// The bytes of one weights file: mapped, or part of the program; or those of a weight that was made when loaded. Cheap to clone.
#[derive(Clone)]
pub(super) enum Storage {
    Mapped(Arc<Mmap>),
    Static(&'static [u8]),
    Owned(Arc<[u8]>),
}

impl Storage {
    /// Maps `path` for reading. Nothing is read before its pages are touched.
    pub(super) fn map(path: &Path) -> Result<Self> {
        let (file, length) = open_regular(path)?;
        if length == 0 {
            return Err(Error::file(
                path,
                "is empty; a safetensors file begins with the length of its header",
            ));
        }
        if usize::try_from(length).is_err() {
            return Err(Error::file(path, format!("has {length} bytes, more than can be mapped")));
        }
        // SAFETY: the map is private to this value and read only, as bytes, of which every pattern is valid.
        // What Rust cannot rule out is another process that writes to the file meanwhile: changed bytes
        // are read as other weights, and a page past the end of a shortened file raises SIGBUS, which ends
        // the process. SECURITY.md states both; a checkpoint must not change while it is in use.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Storage::Mapped(Arc::new(map)))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Storage::Mapped(map) => map,
            Storage::Static(bytes) => bytes,
            Storage::Owned(bytes) => bytes,
        }
    }

    /// Asks the system to read the file ahead. Advice only: a refusal costs speed and nothing else.
    pub(super) fn will_need(&self) {
        #[cfg(unix)]
        if let Storage::Mapped(map) = self {
            let _ = map.advise(memmap2::Advice::WillNeed);
        }
    }
}
