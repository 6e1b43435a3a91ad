//! Writing to stdout and stderr without the panics of `println!`.

use std::io::{ErrorKind, IsTerminal, Write};

use warploom::{Error, Result};

use super::progress;

/// Writes `text` to stdout at once. False if the reader has closed the pipe, as `head` does when it has seen
/// enough: no error, but no reason to go on.
///
/// # Errors
/// Any other failure to write, for example a full disk.
pub fn write(text: &str) -> Result<bool> {
    let mut stdout = std::io::stdout().lock();
    let at_line_start = text.is_empty() || text.ends_with('\n') || !stdout.is_terminal();
    let written = progress::make_room(at_line_start, || {
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
    });
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io("stdout", error)),
    }
}

/// Writes a line to stderr; where that fails there is nobody to tell.
pub fn note(line: &str) {
    let _ = progress::make_room(true, || writeln!(std::io::stderr().lock(), "{line}"));
}
