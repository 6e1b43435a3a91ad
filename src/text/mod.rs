//! Text in and out: the checkpoint's tokenizer, its chat template, and the streaming way back from ids to text.
//!
//! Start from [`Tokenizer`]: `encode_prompt` for text typed by a user, `encode_chat` for a conversation under a
//! [`ChatTemplate`], and a [`TextStream`] (with [`StopStrings`] behind it) for the ids as they are generated.
//!
//! **What a user typed never becomes a control token.** The `tokenizers` crate parses the names of added tokens
//! wherever it meets them, in a question as in the template around it. So text from outside is escaped first: a
//! noncharacter is put inside every occurrence of a control token's name, which hides the name from that search,
//! and is taken out again before the text is split and merged. The ids are those of the plain characters, as if
//! the name were not a token. Only the template's own text keeps its control tokens.

mod chat;
mod json;
mod pieces;
mod stop;
mod stream;
mod tokenizer;

pub use chat::{ChatInput, ChatTemplate, Message, ToolCall};
pub use stop::{StopStrings, Stopped};
pub use stream::TextStream;
pub use tokenizer::Tokenizer;

use std::any::Any;
use std::cell::Cell;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

use crate::error::printable;
use crate::{Error, Result};

/// Reads a regular file of at most `limit` bytes; `None` if there is no such file.
fn read_file(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path, error)),
    };
    if !metadata.is_file() {
        return Err(Error::file(path, "is not a regular file"));
    }
    let too_large =
        || Error::file(path, format!("is larger than {} MiB, the bound for this file", limit >> 20));
    if metadata.len() > limit {
        return Err(too_large());
    }
    let file = std::fs::File::open(path).map_err(|error| Error::io(path, error))?;
    let mut bytes = Vec::new();
    // One byte more than allowed, so that a file that grew after the check is noticed and not cut.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| Error::io(path, error))?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(Some(bytes))
}

/// An [`Error::Text`] whose reason came from a dependency or a file.
fn text_error(what: impl AsRef<str>, reason: impl std::fmt::Display) -> Error {
    Error::Text { what: printable(what.as_ref()), reason: printable(&reason.to_string()) }
}

thread_local! {
    static SILENT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `call`, which hands untrusted data to a dependency, and turns a panic in it into an [`Error::Text`]
/// about `what`. The panic's message goes into the error instead of to stderr.
fn guarded<T>(what: &str, call: impl FnOnce() -> Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !SILENT.get() {
                previous(info);
            }
        }));
    });
    let before = SILENT.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    SILENT.set(before);
    outcome.unwrap_or_else(|panic| Err(text_error(what, panic_message(&*panic))))
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let message = panic.downcast_ref::<&str>().map(|text| text.to_string());
    let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("the library that reads it gave up: {}", message.as_deref().unwrap_or("no reason given"))
}
