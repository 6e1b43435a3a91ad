//! What the launches of a model's layer move and compute, counted on the simulator, and how long a GPU takes for them at least.

use std::{fmt::Write as _, path::Path};

use ptxsim::{Counters, Gpu, Roofline};
use serde_json::{Value, json};
use warploom::{
    Error, Result,
    checkpoint::{Config, Dtype, PUBLISHED, Published, resolve_model},
    driver::{Compiled, Entry},
    error::printable,
    kernels::survey::{Shapes, Survey, Surveyed},
};

use super::{Chosen, aligned, entry_json, families_json};
use crate::command::{output, progress};

/// Keys of the decode rows' sequence, if the model takes so many.
const CONTEXT: usize = 4096;
/// Tensor-core work from which the user is told that it takes its time, and what a core simulates in a second.
const LONG_FLOP: f64 = 10e9;
const FLOP_PER_SECOND: f64 = 1.8e9;
/// Seconds of a core that a report may take.
const MOST_SECONDS: f64 = 7200.0;

/// What is launched, and for which GPU it is estimated.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Shapes")]
pub struct ShapeArgs {
    /// Launch what a layer of this model launches, on the simulator: llama3-8b, llama3.1-405b, … (a wrong name lists all), the folder
    /// of a config.json, or a hub name (org/name) in the local Hugging Face cache
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// GPU whose data-sheet rates make times of the counts: h100, h200, a100, l40s, rtx4090
    #[arg(long, value_name = "GPU", default_value = "h100", requires = "model")]
    gpu: String,
    /// Decode rows, 1 to 64, of one sequence
    #[arg(long, value_name = "N", default_value_t = 1, requires = "model")]
    rows: usize,
    /// Keys of that sequence [default: 4096, or the model's limit]
    #[arg(long, value_name = "N", requires = "model")]
    context: Option<usize>,
    /// Rows of a prompt; 0 leaves prompts out
    #[arg(long, value_name = "N", default_value_t = 128, requires = "model")]
    prompt: usize,
    /// Type of weights and activations: bf16 or f16 [default: the model's]
    #[arg(long, value_name = "DTYPE", requires = "model", value_parser = ["bf16", "f16"])]
    dtype: Option<String>,
    /// With the feed-forward weights in e4m3, but for the first and the last layer's; a checkpoint in fbgemm_fp8 has them without this
    #[arg(long, requires = "model")]
    fp8: bool,
}

/// All launches, with what is said about each.
pub struct Report {
    model: String,
    gpu: Gpu,
    shapes: Shapes,
    launches: Vec<Surveyed>,
}

/// Launches the entries of the families that were chosen; None without a model.
///
/// # Errors
/// [`Error::Argument`] for a model or a GPU that there is not, and for sizes that cannot be; [`Error::Capacity`].
pub fn report(args: &ShapeArgs, chosen: &[Chosen]) -> Result<Option<Report>> {
    let Some(model) = &args.model else { return Ok(None) };
    let gpu = Gpu::named(&args.gpu).ok_or_else(|| {
        let names: Vec<&str> = Gpu::ALL.iter().map(|gpu| gpu.name).collect();
        Error::argument("--gpu", format!("'{}' is none of {}", printable(&args.gpu), names.join(", ")))
    })?;
    let config = config(model)?;
    if args.fp8 {
        config.check_quantisable()?;
    }
    let context = args.context.unwrap_or(config.context.min(CONTEXT));
    if context > config.context {
        let reason = format!("{context} is over {}, the model's context", config.context);
        return Err(Error::argument("--context", reason));
    }
    let dtype = match (args.dtype.as_deref(), config.dtype) {
        (Some("f16"), _) | (None, Some(Dtype::F16)) => Dtype::F16,
        _ => Dtype::Bf16,
    };
    let shapes = Shapes {
        dtype,
        hidden: config.hidden,
        intermediate: config.intermediate,
        heads: config.heads,
        kv_heads: config.kv_heads,
        // As the GPU backend lays them out.
        head_dim: config.head_dim.next_multiple_of(8),
        vocab: config.vocab,
        rows: args.rows,
        context,
        prompt: args.prompt,
        fp8: config.layers > 2 && (args.fp8 || config.fp8_bound.is_some()),
        mask: config.masks[0],
    };
    if config.masks.iter().any(|mask| *mask != shapes.mask) {
        output::note(&format!(
            "layers differ in what rows see: attention is that of the first layer, {}",
            shapes.mask
        ));
    }
    let mut survey = Survey::new(shapes).map_err(as_option)?;
    tell_if_long(&shapes, chosen)?;
    let mut launches = vec![];
    {
        let _shown = progress::show(survey.driver());
        for (family, _) in chosen {
            launches.extend(survey.family(family.name)?);
        }
    }
    launches.retain(|launch: &Surveyed| {
        chosen.iter().any(|(_, entries)| entries.iter().any(|entry| entry.name == launch.report.entry))
    });
    Ok(Some(Report { model: printable(model), gpu, shapes, launches }))
}

/// Of a published model, or of a folder or hub name.
fn config(model: &str) -> Result<Config> {
    if let Ok(published) = Published::named(model) {
        return Ok(published.config());
    }
    if Path::new(model).exists() {
        return Config::from_dir(Path::new(model));
    }
    match resolve_model(model) {
        Ok(folder) if folder.exists() => Config::from_dir(&folder),
        _ => {
            let names = PUBLISHED.map(|published| published.name).join(", ");
            let reason = format!(
                "'{}' is no folder, no hub name in the local Hugging Face cache, and none of {names}",
                printable(model)
            );
            Err(Error::argument("--model", reason))
        }
    }
}

/// Sizes have the names of options.
fn as_option(error: Error) -> Error {
    match error {
        Error::Argument { argument, reason }
            if ["rows", "context", "prompt"].contains(&argument.as_str()) =>
        {
            Error::argument(format!("--{argument}"), reason)
        }
        error => error,
    }
}

/// A prompt's products and its attention are most of the work.
///
/// # Errors
/// [`Error::Argument`] for a prompt that would take hours.
fn tell_if_long(shapes: &Shapes, chosen: &[Chosen]) -> Result<()> {
    let Shapes { hidden, intermediate, heads, kv_heads, head_dim, prompt, fp8, .. } = *shapes;
    let is_chosen = |name: &str| chosen.iter().any(|(family, _)| family.name == name);
    let rows = prompt.next_multiple_of(64) as f64;
    let mut flop = 0.0;
    if is_chosen("gemm") {
        let feed_forward = hidden * 3 * intermediate;
        let weights = hidden * 2 * (heads + kv_heads) * head_dim + feed_forward;
        flop += 2.0 * rows * weights as f64;
        // Once more in e4m3.
        flop += 2.0 * if fp8 { rows } else { rows.min(64.0) } * feed_forward as f64;
    }
    if is_chosen("attention_prefill") {
        flop += 2.0 * rows * rows * (heads * head_dim) as f64;
    }
    // Rows by themselves: some instructions a feature, of which a mma has thousands of FLOP.
    flop += rows * (hidden + intermediate) as f64 * 1e3;
    let seconds = flop / FLOP_PER_SECOND;
    if seconds > MOST_SECONDS {
        let reason =
            format!("{prompt} rows take some {:.0} hours of a core: ask for fewer", seconds / 3600.0);
        return Err(Error::argument("--prompt", reason));
    }
    if flop > LONG_FLOP {
        output::note(&format!(
            "simulating {:.0} GFLOP for {prompt} prompt rows: some {seconds:.0} s of a core; --prompt 0 leaves them out",
            flop / 1e9
        ));
    }
    Ok(())
}

impl Report {
    fn of<'r>(&'r self, entry: &'r Entry) -> impl Iterator<Item = &'r Surveyed> {
        self.launches.iter().filter(|launch| launch.report.entry == entry.name)
    }

    /// Why nothing launches the entry.
    fn reason(&self, entry: &Entry) -> &'static str {
        let of = |dtype: &str| entry.name.split('_').any(|part| part == dtype);
        match self.shapes.dtype {
            Dtype::Bf16 if of("f16") => "of f16: launched with --dtype f16",
            Dtype::F16 if of("bf16") => "of bf16: launched with --dtype bf16",
            _ => "no launch of it in src/kernels/survey",
        }
    }

    /// What the compiler made of an entry for this GPU.
    fn compiled(&self, entry: &Entry) -> Option<&'static Compiled> {
        let (major, minor) = self.gpu.capability;
        let number = |c: &Compiled| c.arch.trim_end_matches(['a', 'f']).parse::<u32>().unwrap_or(0);
        let own = 10 * major + minor;
        // Code of a letter runs on its own architecture alone.
        let runs = |c: &&Compiled| {
            let n = number(c);
            n == own || n / 10 == major && n < own && c.arch.ends_with(|c: char| c.is_ascii_digit())
        };
        entry.compiled.iter().filter(runs).max_by_key(|c| (number(c), c.arch.len()))
    }

    /// The launches under their entries.
    pub fn text(&self, chosen: &[Chosen]) -> String {
        const HEAD: [&str; 12] = [
            "launch",
            "bound by",
            "at least",
            "read",
            "written",
            "needed",
            "ratio",
            "tensor",
            "other",
            "CTAs",
            "conflicts",
            "scattered",
        ];
        let Shapes { dtype, rows, context, prompt, fp8, .. } = self.shapes;
        let dtype = if fp8 { format!("{dtype} and e4m3") } else { dtype.to_string() };
        let row = if rows == 1 { "row" } else { "rows" };
        let mut text = format!(
            "{} in {dtype} on {}: {rows} decode {row} over {context} keys, a prompt of {prompt} rows. Estimated, not measured: counts are the\n\
             simulator's and exact; the time is that of the slowest bound at the data sheet's rates, every SM that has a CTA at work, caches cold.\n\
             Latency, uneven CTAs and the launch itself come on top.\n",
            self.model, self.gpu.name
        );
        let mut table = vec![HEAD.map(String::from)];
        let mut titles = vec![];
        let mut left_out = vec![];
        let mut others = false;
        for entry in chosen.iter().flat_map(|(_, entries)| entries) {
            if self.of(entry).next().is_none() {
                left_out.push(format!("  {}  {}\n", entry.name, self.reason(entry)));
                continue;
            }
            titles.push((table.len(), self.title(entry)));
            for launch in self.of(entry) {
                others |= !launch.of_model;
                table.push(self.row(entry, launch));
            }
        }
        let lines = aligned(&table, 2);
        let mut titles = titles.into_iter().peekable();
        for (i, line) in lines.lines().enumerate() {
            if let Some((_, title)) = titles.next_if(|(at, _)| *at == i) {
                let _ = writeln!(text, "\n{title}");
            }
            let _ = writeln!(text, "{}{line}", if i == 0 { "\n" } else { "" });
        }
        text += "\nread, written: distinct sectors of device memory, 32 bytes each. needed: what the operands hold, each once; ratio: read and\n\
                 written over it. tensor, other: FLOP, on tensor cores and off them. CTAs / those that all SMs hold at a time. conflicts: wavefronts\n\
                 of shared memory beyond the least; scattered: sectors asked for beyond what their bytes fill.\n";
        if others {
            text += "* such a model does not launch it: a shape that the entry is for\n";
        }
        if !left_out.is_empty() {
            text += "\nnot launched\n";
            text.extend(left_out);
        }
        text
    }

    fn title(&self, entry: &Entry) -> String {
        match self.compiled(entry) {
            Some(c) => format!(
                "{}  sm_{}, {} registers, {} + {} bytes of shared memory",
                entry.name,
                c.arch,
                c.registers,
                c.shared_bytes,
                self.of(entry).map(|launch| launch.report.shared_bytes).max().unwrap_or(0)
            ),
            None => format!("{}  no machine code for {} in this build", entry.name, self.gpu.name),
        }
    }

    fn row(&self, entry: &Entry, launch: &Surveyed) -> [String; 12] {
        let c = &launch.report.counters;
        let roofline = self.gpu.roofline(c);
        let [read, written] = memory(c);
        let needed = launch.compulsory.read + launch.compulsory.written;
        let star = if launch.of_model { "" } else { " *" };
        let ratio =
            if needed == 0 { "-".into() } else { format!("{:.2}", (read + written) as f64 / needed as f64) };
        let held = self.resident(entry, launch).map_or("-".into(), |n| (n * self.gpu.sm_count).to_string());
        [
            format!("  {}{star}", launch.what),
            roofline.bound().name.into(),
            time(roofline.seconds()),
            amount(read),
            amount(written),
            amount(needed),
            ratio,
            amount(c.mma_flop),
            amount(c.flop),
            format!("{} / {held}", c.ctas),
            conflicts(c).to_string(),
            scattered(c).to_string(),
        ]
    }

    /// CTAs of a launch that an SM holds.
    fn resident(&self, entry: &Entry, launch: &Surveyed) -> Option<u32> {
        let threads: u32 = launch.report.block.iter().product();
        // Of the GPU's SM, whatever smaller one the code was made for.
        let arch = match self.gpu.capability {
            (8, 9) => "89",
            (9, _) => "90",
            _ => "80",
        };
        let compiled = Compiled { arch, ..*self.compiled(entry)? };
        compiled.resident(threads, launch.report.shared_bytes)
    }

    /// The same in exact numbers.
    pub fn json(&self, chosen: &[Chosen]) -> Value {
        let Shapes {
            dtype,
            hidden,
            intermediate,
            heads,
            kv_heads,
            head_dim,
            vocab,
            rows,
            context,
            prompt,
            fp8,
            mask,
        } = self.shapes;
        let mut all = families_json(chosen, |entry| {
            let mut object = entry_json(entry, None);
            let launches: Vec<Value> = self.of(entry).map(|launch| self.launch_json(entry, launch)).collect();
            object["not_launched"] =
                if launches.is_empty() { json!(self.reason(entry)) } else { Value::Null };
            object["launches"] = json!(launches);
            object
        });
        all["model"] = json!(self.model);
        all["gpu"] = json!(self.gpu.name);
        all["times"] = json!("estimated from exact counters and data-sheet rates, not measured");
        all["shapes"] = json!({
            "dtype": dtype.to_string(),
            "hidden": hidden,
            "intermediate": intermediate,
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "vocab": vocab,
            "rows": rows,
            "context": context,
            "prompt": prompt,
            "fp8": fp8,
            "mask": mask.to_string(),
        });
        all
    }

    fn launch_json(&self, entry: &Entry, launch: &Surveyed) -> Value {
        let report = &launch.report;
        let c = &report.counters;
        let roofline: Roofline = self.gpu.roofline(c);
        let [read, written] = memory(c);
        json!({
            "what": launch.what,
            "of_model": launch.of_model,
            "threads": report.block.iter().product::<u32>(),
            "dynamic_shared_bytes": report.shared_bytes,
            "ctas": c.ctas,
            "ctas_per_sm": self.resident(entry, launch),
            "needed_bytes": { "read": launch.compulsory.read, "written": launch.compulsory.written },
            "memory_bytes": { "read": read, "written": written },
            "tensor_flop": c.mma_flop,
            "other_flop": c.flop,
            "bank_conflicts": conflicts(c),
            "scattered_sectors": scattered(c),
            "bound_by": roofline.bound().name,
            "estimated_seconds": roofline.seconds(),
            "bounds": roofline.bounds,
            "counters": c,
        })
    }
}

/// Bytes that a launch reads from device memory and writes to it, each sector once.
fn memory(c: &Counters) -> [u64; 2] {
    [c.distinct_sectors_read, c.distinct_sectors_written].map(|sectors| 32 * sectors.unwrap_or(0))
}

/// Wavefronts of shared memory beyond those without bank conflicts.
fn conflicts(c: &Counters) -> u64 {
    [c.shared_load, c.shared_store, c.shared_atomic, c.matrix].iter().map(|s| s.wavefronts - s.ideal).sum()
}

/// Sectors that requests touched beyond those that their bytes fill.
fn scattered(c: &Counters) -> u64 {
    let all = [c.global_load, c.global_store, c.global_atomic, c.copy];
    all.iter().map(|g| g.sectors.saturating_sub(g.bytes.div_ceil(32))).sum()
}

/// A number with a prefix: three digits or more of it.
fn amount(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..10_000_000 => format!("{:.1} k", n as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.1} G", n as f64 / 1e9),
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-6 => format!("{:.1} ns", s * 1e9),
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s => format!("{:.2} ms", s * 1e3),
    }
}
