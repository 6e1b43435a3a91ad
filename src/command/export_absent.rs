//! `warploom export` in a build without the feature `cuda`: says how to get it.

use std::ffi::OsString;

use warploom::{Error, Result};

/// Write the CUDA kernels as files for programs that load modules themselves (not in this build: it needs the feature cuda)
#[derive(clap::Args, Debug)]
#[command(disable_help_flag = true)]
pub struct ExportArgs {
    /// The options of a build that has it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _options: Vec<OsString>,
}

/// Fails.
///
/// # Errors
/// Always, with the command that builds it.
pub fn run(_args: ExportArgs) -> Result<()> {
    let reason = "is not in this build; with nvcc (scripts/setup-cuda installs one), build it with: \
                  cargo install --path . --features cuda \
                  (or run it with: cargo run --release --features cuda -- export …)";
    Err(Error::argument("export", reason))
}
