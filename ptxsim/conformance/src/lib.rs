//! One-instruction kernels, run on the simulator and on GPUs alike, so that hardware settles what a kernel and a simulator
//! could misread alike.
//!
//! Start from [`Suite`], the cases of `list.json`. A [`Runner`] runs a [`Case`] and gives its output bits: [`Simulator`] or
//! [`Gpu`]. What a GPU gave is kept as a [`Recording`]; [`compare()`] holds one output against another, with the error that the
//! instruction set allows an approximation ([`Tolerance`]) and equality everywhere else.

mod cases;
mod compare;
mod gpu;
mod kernels;
mod recording;
mod simulator;
mod tolerance;

use std::path::PathBuf;

pub use cases::{Case, Suite};
pub use compare::{Difference, Summary, Verdict, compare};
pub use gpu::{Gpu, Image};
pub use kernels::{SOURCES, Source};
pub use recording::{Identity, Recorded, Recording, recordings};
pub use simulator::Simulator;
pub use tolerance::Tolerance;

/// What stops the whole run; a case that a device cannot run is an [`Outcome`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `list.json` says something that makes no sense.
    #[error("list.json: {0}")]
    List(String),
    /// There is no GPU to use, or its driver does not do.
    #[error("{device}: {message}")]
    Driver {
        /// The device asked for.
        device: String,
        /// What is the matter and what to do.
        message: String,
    },
    /// A kernel failed on the GPU. Its context does not recover, so nothing after it ran.
    #[error("case {case} on the GPU: {message}; the cases after it did not run")]
    Kernel {
        /// The case.
        case: String,
        /// The driver's words.
        message: String,
    },
    /// A recording that cannot be used.
    #[error("{}: {message}", path.display())]
    Recording {
        /// The file.
        path: PathBuf,
        /// What is the matter and what to do.
        message: String,
    },
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
}

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What a device made of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The output's bytes.
    Output(Vec<u8>),
    /// It did not run, and why.
    NotRun(String),
}

/// What runs cases.
pub trait Runner {
    /// Whose results these are.
    fn identity(&self) -> &Identity;

    /// Runs one case.
    ///
    /// # Errors
    /// [`Error::Driver`] or [`Error::Kernel`] where no other case can run either.
    fn run(&mut self, case: &Case) -> Result<Outcome>;
}
