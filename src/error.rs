//! One error type for the whole crate: a variant per cause, each naming the file, tensor or argument at fault.

use std::path::PathBuf;

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong. The text of each variant names the cause and, where there is one, the remedy.
///
/// Names that come from files are printed with control characters escaped (see [`printable`]).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory could not be read or written.
    #[error("{}: {source}", printable_path(path))]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file was read, but its content is not what it must be.
    #[error("{}: {reason}", printable_path(path))]
    File {
        /// The file at fault.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// `config.json` describes a model that cannot be run.
    #[error("{}: {field}: {reason}", printable_path(path))]
    Config {
        /// The config file.
        path: PathBuf,
        /// The field at fault.
        field: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// A weight is missing or does not fit the model.
    #[error("{}: tensor {}: {reason}", printable_path(path), printable(tensor))]
    Tensor {
        /// The safetensors file, or the folder if no file holds the tensor.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer or chat template refused its input.
    #[error("{what}: {reason}")]
    Text {
        /// The file or step at fault.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// An argument of a call or an option of the command is out of range.
    #[error("{argument}: {reason}")]
    Argument {
        /// The argument's name as the caller wrote it.
        argument: String,
        /// What is wrong and which values are allowed.
        reason: String,
    },
    /// A bound on memory, checked before the allocation, would be broken.
    #[error("{what} needs {needed}, but {available}")]
    Capacity {
        /// What was to be allocated.
        what: String,
        /// How much it needs, with a unit.
        needed: String,
        /// How much there is, and how to get more.
        available: String,
    },
    /// A GPU, its driver or the simulator refused or failed.
    #[error("device {device}: {reason}")]
    Device {
        /// The device's name.
        device: String,
        /// What happened, and what to do.
        reason: String,
    },
    /// Logits that are not finite: weights with NaN or infinity, or an overflow.
    #[error(
        "the logits of position {position} are not finite: the weights hold NaN or infinity, or an activation overflowed (check the checkpoint's tensors)"
    )]
    NotFinite {
        /// Absolute position of the row whose logits are not finite.
        position: usize,
    },
}

impl Error {
    /// An [`Error::Io`] for `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::Io { path: path.into(), source }
    }
    /// An [`Error::File`] for `path`.
    pub fn file(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Error::File { path: path.into(), reason: reason.into() }
    }
    /// An [`Error::Device`] for `device`.
    pub fn device(device: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Device { device: device.into(), reason: reason.into() }
    }
    /// An [`Error::Argument`] for `argument`.
    pub fn argument(argument: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Argument { argument: argument.into(), reason: reason.into() }
    }
}

/// `text` with control characters escaped and cut to 200 characters, so that a name out of a file can
/// neither drive a terminal nor flood it.
pub fn printable(text: &str) -> String {
    const LIMIT: usize = 200;
    let mut out = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == LIMIT {
            out.push('…');
            break;
        }
        if c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

fn printable_path(path: &std::path::Path) -> String {
    printable(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_long_names_cut() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(printable(&"x".repeat(500)).chars().count(), 201);
        let error = Error::file("dir/\u{7}bell", "bad");
        assert_eq!(error.to_string(), "dir/\\u{7}bell: bad");
    }
}
