//! `warploom inspect`: what a checkpoint is, what it weighs and what early exit can gain on it.

use std::{fmt::Write as _, path::Path};

use serde_json::json;
use warploom::{
    Error, Result,
    checkpoint::{
        Checkpoint, Config, Dtype, ModelType, RopeScaling,
        footprint::{Choice, Footprint, MAX_DRAFT, best_draft, best_exit, break_even},
        resolve_model,
    },
    error::printable,
};

use super::{demo, output};

/// Bytes of a cached value on a GPU and in the CPU backend.
const KV_SIZES: [(&str, usize); 2] = [("GPU", 2), ("CPU", 4)];
/// Rows of the speed-up table: the probability that a draft token is right.
const MATCH_RATES: [f64; 5] = [0.5, 0.6, 0.7, 0.8, 0.9];

/// Print a model's shape, weights, KV cache and what early exit can gain on it
#[derive(clap::Args)]
#[command(after_help = "Examples:
  warploom inspect
  warploom inspect --context 256 --json")]
pub struct InspectArgs {
    /// Folder of a checkpoint (config.json alone will do), or a hub name in the local Hugging Face cache
    /// [default: the bundled demo]
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    folder: Option<String>,
    /// The same as MODEL
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Tokens to compute the memory for [default: the model's own limit]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// With the feed-forward weights in fp8, but for the first and the last layer's
    #[arg(long)]
    fp8: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Those of opening the checkpoint; [`Error::Argument`] for a context that the model does not have.
pub fn run(args: InspectArgs) -> Result<()> {
    let name = args.folder.or(args.model);
    let report = match &name {
        Some(name) => Report::of_folder(&resolve_model(name)?, args.context, args.fp8)?,
        None => Report::of_checkpoint(demo::checkpoint()?, args.context, args.fp8)?,
    };
    let text = match args.json {
        true => format!("{:#}\n", report.json()),
        false => report.text(name.as_deref().unwrap_or("demo")),
    };
    output::write(&text).map(drop)
}

/// All that is printed, computed once for both forms.
struct Report {
    config: Config,
    /// The dtypes of the weights, or the one that config.json names.
    dtypes: Vec<Dtype>,
    /// Whether there are weights, and all of them have been checked.
    checked: bool,
    footprint: Footprint,
    context: usize,
}

impl Report {
    fn of_folder(dir: &Path, context: Option<usize>, fp8: bool) -> Result<Report> {
        if !dir.is_dir() || Checkpoint::has_weights(dir) {
            return Report::of_checkpoint(Checkpoint::open(dir)?, context, fp8);
        }
        // A folder without weights is described by its config alone.
        let config = Config::from_dir(dir)?;
        if fp8 {
            config.check_quantisable()?;
        }
        let dtype = config.dtype.unwrap_or(Dtype::F32);
        let footprint = Footprint::of_config(&config, dtype, fp8);
        let has_fp8 = config.layers > 2 && (fp8 || config.fp8_bound.is_some());
        let dtypes = if has_fp8 { vec![dtype, Dtype::E4m3] } else { vec![dtype] };
        Report::new(config, dtypes, false, footprint, context)
    }

    fn of_checkpoint(mut checkpoint: Checkpoint, context: Option<usize>, fp8: bool) -> Result<Report> {
        checkpoint.set_fp8(fp8)?;
        let footprint = Footprint::of_checkpoint(&checkpoint)?;
        let mut dtypes = Vec::new();
        for (name, shape) in checkpoint.config.tensors() {
            let dtype = checkpoint.loaded(&name, &checkpoint.tensor(&name, &shape)?).0;
            if !dtypes.contains(&dtype) {
                dtypes.push(dtype);
            }
        }
        Report::new(checkpoint.config, dtypes, true, footprint, context)
    }

    fn new(
        config: Config,
        dtypes: Vec<Dtype>,
        checked: bool,
        footprint: Footprint,
        context: Option<usize>,
    ) -> Result<Report> {
        let context = context.unwrap_or(config.context);
        if !(1..=config.context).contains(&context) {
            let reason = format!("{context} is not from 1 to {}, the model's context", config.context);
            return Err(Error::argument("--context", reason));
        }
        Ok(Report { config, dtypes, checked, footprint, context })
    }

    /// Exit layers of the table: an eighth to a half of the layers, those published and those between.
    fn exits(&self) -> Vec<usize> {
        let layers = self.config.layers;
        let mut exits: Vec<usize> = [8, 6, 4, 3, 2].iter().map(|part| (layers / part).max(1)).collect();
        exits.dedup();
        exits.retain(|&exit| exit < layers);
        exits
    }

    fn choice(&self, exit: usize, match_rate: f64) -> Choice {
        best_draft(self.config.layers, self.footprint.head_in_layers(), exit, match_rate)
    }

    fn best(&self, match_rate: f64) -> Option<Choice> {
        best_exit(self.config.layers, self.footprint.head_in_layers(), match_rate)
    }

    fn dtype_names(&self) -> Vec<String> {
        self.dtypes.iter().map(Dtype::to_string).collect()
    }

    fn text(&self, name: &str) -> String {
        let (config, footprint) = (&self.config, &self.footprint);
        let mut out = String::new();
        let mut line = |label: &str, text: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{label:<13} {text}");
        };
        let checked = if self.checked {
            "every tensor checked"
        } else {
            "weights not checked: the folder holds config.json alone"
        };
        line("model", format!("{} ({}; {checked})", printable(name), family(config)));
        line("parameters", grouped(footprint.parameters));
        line(
            "layers",
            format!("{} of hidden {}, feed-forward {}", config.layers, config.hidden, config.intermediate),
        );
        line(
            "attention",
            format!(
                "{} query heads on {} KV heads of {} (groups of {}), {}",
                config.heads,
                config.kv_heads,
                config.head_dim,
                config.heads / config.kv_heads,
                mask_names(config)
            ),
        );
        line("biases", biases(config).to_owned());
        let head = if config.tied { "the embedding (tied)" } else { "its own matrix" };
        line("vocabulary", format!("{}, head: {head}", config.vocab));
        line(
            "context",
            format!("{} tokens, RoPE θ {}, {}", config.context, config.rope.theta, scaling(config)),
        );
        line(
            "weights",
            format!("{} in {}", size(footprint.weight_bytes as f64), self.dtype_names().join(" and ")),
        );
        line("  a layer", size(footprint.mean_layer_bytes()));
        line(
            "  the head",
            format!("{}, h = {:.2} layers", size(footprint.head_bytes as f64), footprint.head_in_layers()),
        );
        for (device, bytes) in KV_SIZES {
            let cache = footprint.kv_bytes(self.context, bytes);
            line(
                &format!("KV, {device}"),
                format!(
                    "{}/token in {} bit; context {}: {} + weights = {}",
                    size(footprint.kv_bytes_per_token(bytes) as f64),
                    8 * bytes,
                    self.context,
                    size(cache as f64),
                    size(cache as f64 + footprint.weight_bytes as f64)
                ),
            );
        }
        self.write_speedups(&mut out);
        out
    }

    fn write_speedups(&self, out: &mut String) {
        let (layers, h) = (self.config.layers, self.footprint.head_in_layers());
        let exits = self.exits();
        if exits.is_empty() {
            let _ = writeln!(out, "\nNo early exit: there is only one layer.");
            return;
        }
        let _ = write!(
            out,
            "\nSpeed-up of early-exit self-speculation, (a·d + 1)(L + h) / (d(E + h) + L + h), with the best d ≤ {MAX_DRAFT}.\n\
             p: probability that a draft token is right; a: the share of d drafts that is then kept.\n\
             Later exits are right more often: measure p per exit, then read its row.\n\n"
        );
        let cell = |choice: Choice| format!("{:.2}× d {}", choice.speedup, choice.draft);
        let _ = write!(out, "{:<12}", "p");
        for exit in &exits {
            let _ = write!(out, "{:>13}", format!("E {exit}"));
        }
        let _ = writeln!(out, "{:>18}", "best of all E");
        for rate in MATCH_RATES {
            let _ = write!(out, "{rate:<12}");
            for &exit in &exits {
                let _ = write!(out, "{:>13}", cell(self.choice(exit, rate)));
            }
            let best = self.best(rate).map(|choice| format!("{} E {}", cell(choice), choice.exit));
            let _ = writeln!(out, "{:>18}", best.unwrap_or_default());
        }
        let _ = write!(out, "{:<12}", "pays above a");
        for &exit in &exits {
            let _ = write!(out, "{:>13.2}", break_even(layers, h, exit));
        }
        let _ = writeln!(out);
    }

    fn json(&self) -> serde_json::Value {
        let (config, footprint) = (&self.config, &self.footprint);
        let choice = |choice: Choice| {
            json!({
                "exit_layer": choice.exit,
                "draft": choice.draft,
                "acceptance": choice.acceptance,
                "speedup": choice.speedup,
            })
        };
        let speedups: Vec<_> = MATCH_RATES
            .iter()
            .map(|&rate| {
                json!({
                    "match_rate": rate,
                    "exits": self.exits().iter().map(|&exit| choice(self.choice(exit, rate))).collect::<Vec<_>>(),
                    "best": self.best(rate).map(choice),
                })
            })
            .collect();
        let memory: serde_json::Map<_, _> = KV_SIZES
            .iter()
            .map(|&(device, bytes)| {
                let cache = footprint.kv_bytes(self.context, bytes);
                let report = json!({
                    "kv_bytes_per_token": footprint.kv_bytes_per_token(bytes),
                    "kv_bytes": cache,
                    "total_bytes": cache.saturating_add(footprint.weight_bytes),
                });
                (device.to_lowercase(), report)
            })
            .collect();
        json!({
            "model_type": family(config),
            "weights_checked": self.checked,
            "parameters": footprint.parameters,
            "layers": config.layers,
            "hidden": config.hidden,
            "intermediate": config.intermediate,
            "heads": config.heads,
            "kv_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "vocab": config.vocab,
            "tied": config.tied,
            "attention_bias": config.attention_bias,
            "mlp_bias": config.mlp_bias,
            "masks": config.masks.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "rope_theta": config.rope.theta,
            "rope_scaling": scaling(config),
            "max_context": config.context,
            "eos": config.eos,
            "dtypes": self.dtype_names(),
            "weight_bytes": footprint.weight_bytes,
            "layer_bytes": footprint.mean_layer_bytes(),
            "head_bytes": footprint.head_bytes,
            "h": footprint.head_in_layers(),
            "kv_bytes_per_token": footprint.kv_bytes_per_token(2),
            "context": self.context,
            "memory": memory,
            "speedups": speedups,
        })
    }
}

fn family(config: &Config) -> &'static str {
    match config.model_type {
        ModelType::Llama => "llama",
        ModelType::Mistral => "mistral",
    }
}

fn biases(config: &Config) -> &'static str {
    match (config.attention_bias, config.mlp_bias) {
        (false, false) => "none",
        (true, false) => "attention",
        (false, true) => "feed-forward",
        (true, true) => "attention and feed-forward",
    }
}

/// The masks that occur, each with the number of its layers if there are several.
fn mask_names(config: &Config) -> String {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for mask in config.masks.iter().map(ToString::to_string) {
        match counts.iter_mut().find(|(name, _)| *name == mask) {
            Some((_, count)) => *count += 1,
            None => counts.push((mask, 1)),
        }
    }
    match &counts[..] {
        [(name, _)] => name.clone(),
        several => {
            several.iter().map(|(name, n)| format!("{name} in {n} layers")).collect::<Vec<_>>().join(", ")
        }
    }
}

fn scaling(config: &Config) -> String {
    match config.rope.scaling {
        RopeScaling::Default => "default".to_owned(),
        RopeScaling::Linear { factor } => format!("linear ×{factor}"),
        RopeScaling::Dynamic { factor } => format!("dynamic ×{factor}"),
        RopeScaling::Llama3 { factor, original, .. } => format!("llama3 ×{factor} from {original}"),
        RopeScaling::Yarn { factor, original, .. } => format!("yarn ×{factor} from {original}"),
    }
}

/// `8030261248` as `8,030,261,248`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in the largest binary unit of which there is at least one.
fn size(bytes: f64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value.fract() == 0.0 { 0 } else { 2 };
    format!("{value:.decimals$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_printed_for_people() {
        assert_eq!(grouped(8_030_261_248), "8,030,261,248");
        assert_eq!((grouped(0), grouped(999), grouped(1000)), ("0".into(), "999".into(), "1,000".into()));
        assert_eq!((size(512.0), size(131_072.0)), ("512 B".into(), "128 KiB".into()));
        assert_eq!(size(1.5 * 1024.0 * 1024.0 * 1024.0), "1.50 GiB");
    }
}
