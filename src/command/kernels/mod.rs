//! `warploom kernels`: the compiled CUDA kernels and what the compiler says of them; and [`shapes`], what their launches do.

mod shapes;

use std::fmt::Write as _;

use serde_json::{Value, json};
use warploom::{
    Error, Result,
    driver::{Compiled, Entry, Family},
    error::printable,
    kernels::{FAMILIES, dynamic_shared_bytes},
};

use super::output;

/// Print the compiled CUDA kernels: registers, shared memory and CTAs per SM; with --model what their launches move and compute,
/// and an estimate of their times
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  warploom kernels
  warploom kernels --model llama3-8b --gpu h200 --rows 5 attention_decode rope_append")]
pub struct KernelsArgs {
    /// Names of kernels, or of entries as far as they tell them apart [default: all]
    #[arg(value_name = "KERNEL")]
    kernels: Vec<String>,
    #[command(flatten)]
    shapes: shapes::ShapeArgs,
    /// Dynamic shared memory of a CTA, for CTAs per SM [default: of each entry, the most that a launch asks for]
    #[arg(long, value_name = "BYTES", conflicts_with = "model")]
    dynamic_shared: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// [`Error::Argument`] for names of no kernel, model or GPU and for shapes that cannot be launched, [`Error::Capacity`] for shapes
/// that take too much memory, [`Error::Io`] if stdout cannot be written.
pub fn run(args: KernelsArgs) -> Result<()> {
    let chosen = chosen(&args.kernels)?;
    let text = match (shapes::report(&args.shapes, &chosen)?, args.json) {
        (Some(report), true) => format!("{:#}\n", report.json(&chosen)),
        (Some(report), false) => report.text(&chosen),
        (None, true) => format!("{:#}\n", as_json(&chosen, args.dynamic_shared)),
        (None, false) => as_table(&chosen, args.dynamic_shared),
    };
    output::write(&text).map(drop)
}

/// A family and those of its entries that were asked for.
type Chosen = (&'static Family, Vec<&'static Entry>);

fn chosen(names: &[String]) -> Result<Vec<Chosen>> {
    let asked = |family: &Family, entry: &Entry, name: &str| {
        let plain = |s: &str| s.trim_start_matches("wl_").to_string();
        family.name == name || (!name.is_empty() && plain(entry.name).starts_with(&plain(name)))
    };
    let any =
        |name: &str| FAMILIES.iter().any(|family| family.entries.iter().any(|e| asked(family, e, name)));
    if let Some(none) = names.iter().find(|name| !any(name)) {
        let families: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
        let reason =
            format!("'{}' is none of {}, and begins no entry's name", printable(none), families.join(", "));
        return Err(Error::argument("KERNEL", reason));
    }
    let entries = |family: &'static Family| {
        let asked = |entry: &&Entry| names.is_empty() || names.iter().any(|name| asked(family, entry, name));
        (family, family.entries.iter().filter(asked).collect())
    };
    Ok(FAMILIES.iter().map(entries).filter(|(_, entries): &Chosen| !entries.is_empty()).collect())
}

fn as_json(chosen: &[Chosen], dynamic_shared: Option<u32>) -> Value {
    families_json(chosen, |entry| entry_json(entry, dynamic_shared))
}

fn families_json(chosen: &[Chosen], entry: impl Fn(&Entry) -> Value) -> Value {
    let family = |(family, entries): &Chosen| {
        let entries: Vec<Value> = entries.iter().map(|e| entry(e)).collect();
        json!({
            "name": family.name,
            "fatbin_bytes": family.fatbin.len(),
            "ptx_bytes": family.ptx.len(),
            "entries": entries,
        })
    };
    json!({ "families": chosen.iter().map(family).collect::<Vec<_>>() })
}

fn entry_json(entry: &Entry, dynamic_shared: Option<u32>) -> Value {
    let dynamic = dynamic_shared.unwrap_or_else(|| dynamic_shared_bytes(entry.name));
    let compiled = |c: &Compiled| {
        json!({
            "arch": c.arch,
            "registers": c.registers,
            "static_shared_bytes": c.shared_bytes,
            "barriers": c.barriers,
            "ctas_per_sm": c.resident(entry.threads, dynamic),
        })
    };
    json!({
        "name": entry.name,
        "threads": entry.threads,
        "dynamic_shared_bytes": dynamic,
        "parameter_bytes": entry.parameter_bytes,
        "compiled": entry.compiled.iter().map(compiled).collect::<Vec<_>>(),
    })
}

/// A row for each entry and architecture.
fn as_table(chosen: &[Chosen], dynamic_shared: Option<u32>) -> String {
    const HEAD: [&str; 8] =
        ["family", "entry", "arch", "registers", "static", "dynamic", "threads", "CTAs/SM"];
    let mut rows = vec![HEAD.map(String::from)];
    let (mut count, mut bytes) = (0, 0);
    for (family, entries) in chosen {
        count += entries.len();
        bytes += family.fatbin.len();
        for entry in entries {
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
    let mut text = aligned(&rows, 2);
    let _ = writeln!(
        text,
        "\n{count} entries in {} files, {} kB of machine code and PTX. static, dynamic: shared memory in bytes, and \
         threads, of the largest CTA that is launched. CTAs/SM: so many of these an SM has room for",
        chosen.len(),
        bytes.div_ceil(1000),
    );
    text
}

/// Rows of cells under each other: the first `names` columns to the left, numbers to the right.
fn aligned<const N: usize>(rows: &[[String; N]], names: usize) -> String {
    let length = |cell: &String| cell.chars().count();
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| length(&row[column])).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            // Writing to a string cannot fail.
            let _ = match column < names {
                true => write!(text, "{gap}{cell:<width$}"),
                false => write!(text, "{gap}{cell:>width$}"),
            };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}
