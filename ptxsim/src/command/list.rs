//! `ptxsim list`: the entries of a PTX file.

use std::{fmt::Write as _, path::PathBuf};

use ptxsim::Module;
use serde_json::{Value, json};

use super::{
    output::{self, printable},
    source,
};

/// List a file's entries: parameters, shared memory, and whether each can be run
#[derive(clap::Args)]
#[command(after_help = "Examples:
  ptxsim list race.ptx
  ptxsim list race.ptx --json")]
pub struct ListArgs {
    /// PTX that nvcc made
    #[arg(value_name = "KERNEL.PTX")]
    kernel: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command. An entry that cannot be run is listed with the reason.
///
/// # Errors
/// For a file that cannot be read, or is no PTX.
pub fn run(args: ListArgs) -> Result<(), String> {
    let text = source::read(&args.kernel)?;
    let module =
        Module::parse(&text).map_err(|e| format!("{}: {e}", printable(&args.kernel.to_string_lossy())))?;
    let entries: Vec<&str> = module.entries().collect();
    if args.json {
        let list: Vec<Value> = entries
            .iter()
            .map(|name| match module.entry(name) {
                Ok(entry) => json!({ "name": name, "entry": entry, "refused": null }),
                Err(error) => json!({ "name": name, "entry": null, "refused": error.to_string() }),
            })
            .collect();
        return output::write(&format!("{:#}\n", json!({ "entries": list })));
    }
    let mut out = String::new();
    for name in &entries {
        let _ = writeln!(out, "{}", printable(name));
        let entry = match module.entry(name) {
            Ok(entry) => entry,
            Err(error) => {
                let _ = writeln!(out, "  refused          {}", printable(&error.to_string()));
                continue;
            }
        };
        let sizes: Vec<String> = entry.parameters.iter().map(u32::to_string).collect();
        let parameters = match sizes.len() {
            0 => "none".into(),
            n => format!("{n} of {} bytes", sizes.join(", ")),
        };
        let _ = writeln!(out, "  parameters       {parameters}");
        let _ = writeln!(out, "  static shared    {} bytes", entry.shared_bytes);
        let _ = writeln!(out, "  local            {} bytes a thread", entry.local_bytes);
        let _ = writeln!(out, "  instructions     {}", entry.instructions);
        let block = |[x, y, z]: [u32; 3]| format!("{x} × {y} × {z} threads");
        if let Some(sizes) = entry.required_threads {
            let _ = writeln!(out, "  block            {}, no other", block(sizes));
        } else if let Some(sizes) = entry.max_threads {
            let _ = writeln!(out, "  block            at most {}", block(sizes));
        }
        if entry.communicates {
            let _ = writeln!(out, "  CTAs             may communicate: they run by turns");
        }
    }
    if entries.is_empty() {
        out.push_str("no entries\n");
    }
    output::write(&out)
}
