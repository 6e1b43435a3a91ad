//! What can go wrong before or during a launch, other than what a kernel does wrong (see [`crate::Finding`]).

/// An error that names its cause: the PTX line, the argument or the address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not PTX as the grammar has it.
    #[error("line {line}: {message}")]
    Syntax {
        /// Line of the PTX text, from 1.
        line: u32,
        /// What was found and what was expected.
        message: String,
    },
    /// An instruction or a form of one that this simulator does not run. Nothing is ever skipped.
    #[error("line {line}: {what} is not supported{hint}")]
    Unsupported {
        /// Line of the PTX text, from 1.
        line: u32,
        /// The opcode with its modifiers, or the directive.
        what: String,
        /// Why, or what to do; begins with a separator where there is one.
        hint: String,
    },
    /// The module has no such entry.
    #[error("no entry named {name:?}; the module has {available}")]
    NoEntry {
        /// The name asked for.
        name: String,
        /// The names that are there.
        available: String,
    },
    /// A launch that a GPU would refuse too: sizes, parameters, shared memory.
    #[error("launch: {0}")]
    Launch(String),
    /// A copy or an allocation that does not fit the device's memory.
    #[error("memory: {0}")]
    Memory(String),
    /// The kernel executed more instructions than the launch allows.
    #[error(
        "the launch ran {limit} warp instructions without ending (most often line {line}); raise the limit if it is meant to"
    )]
    StepLimit {
        /// The limit.
        limit: u64,
        /// PTX line that it ran most often, or that would have been next.
        line: u32,
    },
}

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn syntax(line: u32, message: impl Into<String>) -> Self {
        Error::Syntax { line, message: message.into() }
    }

    pub(crate) fn unsupported(line: u32, what: impl Into<String>) -> Self {
        Error::Unsupported { line, what: what.into(), hint: String::new() }
    }

    pub(crate) fn unsupported_because(line: u32, what: impl Into<String>, why: &str) -> Self {
        Error::Unsupported { line, what: what.into(), hint: format!(": {why}") }
    }
}
