//! `warploom train` in a build without the feature `train`: says how to get it.

use std::ffi::OsString;

use warploom::{Error, Result};

/// Train a small Llama checkpoint from scratch (not in this build: it needs the feature train)
#[derive(clap::Args, Debug)]
#[command(disable_help_flag = true)]
pub struct TrainArgs {
    /// The options of a build that has it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _options: Vec<OsString>,
}

/// Fails.
///
/// # Errors
/// Always, with the command that builds it.
pub fn run(_args: TrainArgs) -> Result<()> {
    let reason = "is not in this build; build it with: cargo install --path . --features train \
                  (or run it with: cargo run --release --features train -- train …)";
    Err(Error::argument("train", reason))
}
