//! `warploom kernels`: the compiled CUDA kernels and what the compiler says of them.

use std::fmt::Write as _;

use serde_json::{Value, json};
use warploom::{
    Result,
    driver::{Compiled, Entry, Family},
    kernels::{FAMILIES, dynamic_shared_bytes},
};

use super::output;

/// Print the compiled CUDA kernels: registers, shared memory and CTAs per SM
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  warploom kernels
  warploom kernels --json")]
pub struct KernelsArgs {
    /// Dynamic shared memory of a CTA, for CTAs per SM [default: of each entry, the most that a launch asks for]
    #[arg(long, value_name = "BYTES")]
    dynamic_shared: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// [`Error::Io`](warploom::Error::Io) if stdout cannot be written.
pub fn run(args: KernelsArgs) -> Result<()> {
    let text = match args.json {
        true => format!("{:#}\n", as_json(FAMILIES, args.dynamic_shared)),
        false => as_table(FAMILIES, args.dynamic_shared),
    };
    output::write(&text).map(drop)
}

fn as_json(families: &[Family], dynamic_shared: Option<u32>) -> Value {
    let dynamic = |entry: &Entry| dynamic_shared.unwrap_or_else(|| dynamic_shared_bytes(entry.name));
    let compiled = |entry: &Entry, c: &Compiled| {
        json!({
            "arch": c.arch,
            "registers": c.registers,
            "static_shared_bytes": c.shared_bytes,
            "barriers": c.barriers,
            "ctas_per_sm": c.resident(entry.threads, dynamic(entry)),
        })
    };
    let entry = |entry: &Entry| {
        let compiled: Vec<Value> = entry.compiled.iter().map(|c| compiled(entry, c)).collect();
        json!({
            "name": entry.name,
            "threads": entry.threads,
            "dynamic_shared_bytes": dynamic(entry),
            "parameter_bytes": entry.parameter_bytes,
            "compiled": compiled,
        })
    };
    let family = |family: &Family| {
        let entries: Vec<Value> = family.entries.iter().map(entry).collect();
        json!({
            "name": family.name,
            "fatbin_bytes": family.fatbin.len(),
            "ptx_bytes": family.ptx.len(),
            "entries": entries,
        })
    };
    json!({ "families": families.iter().map(family).collect::<Vec<_>>() })
}

/// A row for each entry and architecture.
fn as_table(families: &[Family], dynamic_shared: Option<u32>) -> String {
    const HEAD: [&str; 8] =
        ["family", "entry", "arch", "registers", "static", "dynamic", "threads", "CTAs/SM"];
    let mut rows = vec![HEAD.map(String::from)];
    let (mut entries, mut bytes) = (0, 0);
    for family in families {
        entries += family.entries.len();
        bytes += family.fatbin.len();
        for entry in family.entries {
            let dynamic = dynamic_shared.unwrap_or_else(|| dynamic_shared_bytes(entry.name));
            let row = |arch: &str, [registers, shared, ctas]: [String; 3]| {
                let names = [family.name, entry.name, arch].map(String::from);
                let [dynamic, threads] = [dynamic, entry.threads].map(|n| n.to_string());
                let [family, entry, arch] = names;
                [family, entry, arch, registers, shared, dynamic, threads, ctas]
            };
            // Compiled to PTX only, of which registers are not known.
            if entry.compiled.is_empty() {
                rows.push(row("PTX", ["-".into(), "-".into(), "-".into()]));
            }
            for c in entry.compiled {
                let ctas = c.resident(entry.threads, dynamic).map_or("-".into(), |ctas| ctas.to_string());
                rows.push(row(c.arch, [c.registers.to_string(), c.shared_bytes.to_string(), ctas]));
            }
        }
    }
    let widths: [usize; 8] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    let mut text = String::new();
    for row in &rows {
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            // Names to the left, numbers to the right. Writing to a string cannot fail.
            let _ = match column {
                0 => write!(text, "{cell:<width$}"),
                1 => write!(text, "  {cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "\n{entries} entries in {} files, {} kB of machine code and PTX. static, dynamic: shared memory in bytes, and \
         threads, of the largest CTA that is launched. CTAs/SM: so many of these an SM has room for",
        families.len(),
        bytes.div_ceil(1000),
    );
    text
}
