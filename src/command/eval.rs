//! `warploom eval`: how well every exit predicts a text.

use std::{fmt::Write as _, io::IsTerminal, ops::ControlFlow, path::PathBuf, sync::atomic::Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use warploom::{
    Error, Result,
    backend::Backend,
    decode::exits::{Evaluation, Windows, evaluate},
    model::Llama,
};

use super::{
    input, interrupt,
    model::{Job, Loaded, ModelArgs},
    output,
};

/// Most bytes of a text: it and its ids are kept in memory. The usual test sets have one or two MB.
const TEXT_LIMIT: u64 = 4 << 20;
/// Tokens of a window where `--context` does not say: enough that most tokens have much to go by.
const DEFAULT_WINDOW: usize = 2048;

/// Measure loss, perplexity and agreement with the last layer at every exit, over a text
///
/// The text is cut into windows of --context tokens (2048, or as many as the model has), each of them begun
/// with BOS if the tokenizer adds one. With --fp8 it is measured twice, as stored and quantised, and what that changes is shown.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  warploom eval --text README.md
  warploom eval --text README.md --context 128 --fp8 --json")]
pub struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// UTF-8 text to predict
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Print one JSON object: tokens, windows, context, interrupted, and for each exit its layer, loss (nats a token),
    /// perplexity and agreement; with --fp8 these of the quantised model, and fp8: what that changes
    #[arg(long)]
    json: bool,
}

/// Runs the command. Ctrl-C ends it with what has been measured.
///
/// # Errors
/// Those of reading the text, of loading the model and of [`evaluate`].
pub fn run(args: EvalArgs) -> Result<()> {
    let text = input::read_text(&args.text, TEXT_LIMIT)?;
    if text.is_empty() {
        return Err(Error::file(&args.text, "is empty; there is nothing to predict"));
    }
    let mut loaded = Loaded::open(&args.model)?;
    let tokenizer = loaded.tokenizer()?;
    let (bos, tokens) = (tokenizer.leading_ids().first().copied(), tokenizer.encode_text(&text)?);
    drop(text);
    let windows = Windows { context: loaded.context(DEFAULT_WINDOW)?, bos };

    let stored = match args.model.fp8() {
        false => None,
        true => {
            loaded.checkpoint.set_fp8(false)?;
            let stored = measure(&loaded, &tokens, windows, "as stored ")?;
            loaded.checkpoint.set_fp8(true)?;
            Some(stored)
        }
    };
    let label = if stored.is_some() { "in fp8 " } else { "" };
    // What was interrupted is not gone on with.
    let evaluation = match stored {
        Some(stored) if stored.interrupted => {
            output::note("interrupted before anything was measured in fp8");
            return report(&args, &stored, None, windows.context);
        }
        _ => measure(&loaded, &tokens, windows, label)?,
    };
    // Losses of another number of tokens say nothing of what fp8 changes.
    let change = stored.filter(|_| !evaluation.interrupted).map(|stored| Change::of(&stored, &evaluation));
    report(&args, &evaluation, change, windows.context)
}

/// Evaluates the model as `loaded` has it, with a progress bar on terminals.
fn measure(loaded: &Loaded, tokens: &[u32], windows: Windows, label: &str) -> Result<Evaluation> {
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal { ProgressBar::no_length() } else { ProgressBar::hidden() };
    let template = format!("{label}{{bar:30}} {{pos}}/{{len}} tokens, {{per_sec}}, {{eta}} left");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    let interrupted = interrupt::flag();
    let mut progress = |done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        match interrupted.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let evaluation = loaded.run(DEFAULT_WINDOW, Measure { tokens, windows, progress: &mut progress })?;
    bar.finish_and_clear();
    if evaluation.interrupted {
        output::note(&format!("{label}interrupted after {} of {} tokens", evaluation.tokens, tokens.len()));
    }
    Ok(evaluation)
}

fn report(args: &EvalArgs, evaluation: &Evaluation, change: Option<Change>, context: usize) -> Result<()> {
    let text = match args.json {
        true => json_text(evaluation, change, context),
        false => table(evaluation, change),
    };
    output::write(&text).map(drop)
}

/// What quantising changed, after the last layer.
struct Change {
    /// Losses in nats a token, as stored and in fp8.
    losses: [f64; 2],
    perplexities: [f64; 2],
    /// Share of positions where both find the same token most probable.
    agreement: f64,
}

impl Change {
    fn of(stored: &Evaluation, quantised: &Evaluation) -> Change {
        let last =
            |evaluation: &Evaluation| evaluation.exits.last().map(|exit| (exit.loss, exit.perplexity()));
        let pairs = stored.choices.iter().zip(&quantised.choices);
        let (equal, all) = pairs.fold((0, 0), |(equal, all), (a, b)| (equal + usize::from(a == b), all + 1));
        let both = [stored, quantised].map(|e| last(e).unwrap_or((f64::NAN, f64::NAN)));
        Change {
            losses: both.map(|(loss, _)| loss),
            perplexities: both.map(|(_, perplexity)| perplexity),
            agreement: equal as f64 / all.max(1) as f64,
        }
    }
}

/// The evaluation of a text.
struct Measure<'a> {
    tokens: &'a [u32],
    windows: Windows,
    progress: &'a mut (dyn FnMut(usize, usize) -> ControlFlow<()> + Send),
}

impl Job for Measure<'_> {
    type Output = Evaluation;
    fn shows_progress(&self) -> bool {
        true
    }
    fn run<B: Backend>(self, llama: &Llama<B>) -> Result<Evaluation> {
        evaluate(llama, self.tokens, self.windows, self.progress)
    }
}

fn json_text(evaluation: &Evaluation, change: Option<Change>, context: usize) -> String {
    let exits = evaluation.exits.iter().map(|exit| {
        json!({
            "layer": exit.layer,
            "loss": exit.loss,
            "perplexity": exit.perplexity(),
            "agreement": exit.agreement,
        })
    });
    let mut report = json!({
        "tokens": evaluation.tokens,
        "windows": evaluation.windows,
        "context": context,
        "interrupted": evaluation.interrupted,
        "exits": exits.collect::<Vec<_>>(),
    });
    if let Some(Change { losses: [stored, fp8], perplexities, agreement }) = change {
        report["fp8"] = json!({
            "stored_loss": stored,
            "loss_change": fp8 - stored,
            "stored_perplexity": perplexities[0],
            "perplexity_change": perplexities[1] - perplexities[0],
            "agreement": agreement,
        });
    }
    format!("{report}\n")
}

fn table(evaluation: &Evaluation, change: Option<Change>) -> String {
    let Evaluation { tokens, windows, exits, .. } = evaluation;
    let mut out = String::from("layer      loss   perplexity   agreement with the last layer\n");
    for exit in exits {
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{:>5}  {:>8.4}  {:>11.2}  {:>9.2} %",
            exit.layer,
            exit.loss,
            exit.perplexity(),
            100.0 * exit.agreement
        );
    }
    let plural = if *windows == 1 { "" } else { "s" };
    let _ = writeln!(out, "\n{tokens} tokens in {windows} window{plural}; loss in nats a token");
    if let Some(Change { losses, perplexities, agreement }) = change {
        let [loss, perplexity] = [losses, perplexities].map(|[stored, fp8]| (stored, fp8, fp8 - stored));
        let _ = write!(
            out,
            "\n                 stored       fp8    change\n\
             loss           {:>8.4}  {:>8.4}  {:>+8.4}\n\
             perplexity     {:>8.2}  {:>8.2}  {:>+8.3}\n\
             same greedy token at {:.2} % of the positions\n",
            loss.0,
            loss.1,
            loss.2,
            perplexity.0,
            perplexity.1,
            perplexity.2,
            100.0 * agreement
        );
    }
    out
}
