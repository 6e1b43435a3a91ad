//! `warploom export`: the kernels as files.

use std::{fmt::Write as _, path::PathBuf};

use warploom::{Error, Result, kernels};

use super::output;

/// Write the CUDA kernels as files for programs that load modules themselves: fatbins, PTX, headers, and a manifest with
/// parameter structs and launch geometry
#[derive(clap::Args, Debug)]
#[command(after_help = "docs/export.md says what manifest.json has, and how its expressions are read.

Examples:
  warploom export --out kernels
  warploom export --out kernels --json")]
pub struct ExportArgs {
    /// Folder to write: a new or empty one, or one with an earlier export, which is replaced
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Print the manifest, one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Those of [`kernels::export()`]; [`Error::Io`] if stdout cannot be written.
pub fn run(args: ExportArgs) -> Result<()> {
    let manifest = kernels::export(&args.out)?;
    if args.json {
        let json =
            serde_json::to_value(&manifest).map_err(|error| Error::argument("--json", error.to_string()))?;
        return output::write(&format!("{json:#}\n")).map(drop);
    }
    let mut text = String::new();
    for module in &manifest.modules {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<18} {:>2} {:<7}  {} + {} PTX; PTX {} for {}",
            module.name,
            module.entries.len(),
            if module.entries.len() == 1 { "entry" } else { "entries" },
            module.architectures.join(", "),
            module.fatbin_ptx,
            module.ptx_version,
            module.ptx_target,
        );
    }
    let (modules, headers) = (manifest.modules.len(), manifest.headers.len());
    let folder = warploom::error::printable(&args.out.to_string_lossy());
    let _ = writeln!(text, "{modules} modules, {headers} headers and manifest.json in {folder}");
    output::write(&text).map(drop)
}
