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
/// with BOS if the tokenizer adds one.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  warploom eval --text README.md
  warploom eval --text README.md --context 128 --json")]
pub struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// UTF-8 text to predict
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Print one JSON object: tokens, windows, context, interrupted, and for each exit its layer, loss (nats a token),
    /// perplexity and agreement
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
    let loaded = Loaded::open(&args.model)?;
    let tokenizer = loaded.tokenizer()?;
    let (bos, tokens) = (tokenizer.leading_ids().first().copied(), tokenizer.encode_text(&text)?);
    drop(text);
    let windows = Windows { context: loaded.context(DEFAULT_WINDOW)?, bos };

    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal { ProgressBar::no_length() } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} tokens, {per_sec}, {eta} left") {
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
    let evaluation =
        loaded.run(DEFAULT_WINDOW, Measure { tokens: &tokens, windows, progress: &mut progress })?;
    bar.finish_and_clear();
    if evaluation.interrupted {
        output::note(&format!("interrupted after {} of {} tokens", evaluation.tokens, tokens.len()));
    }
    let text = if args.json { json_text(&evaluation, windows.context) } else { table(&evaluation) };
    output::write(&text).map(drop)
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

fn json_text(evaluation: &Evaluation, context: usize) -> String {
    let exits = evaluation.exits.iter().map(|exit| {
        json!({
            "layer": exit.layer,
            "loss": exit.loss,
            "perplexity": exit.perplexity(),
            "agreement": exit.agreement,
        })
    });
    let report = json!({
        "tokens": evaluation.tokens,
        "windows": evaluation.windows,
        "context": context,
        "interrupted": evaluation.interrupted,
        "exits": exits.collect::<Vec<_>>(),
    });
    format!("{report}\n")
}

fn table(evaluation: &Evaluation) -> String {
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
    out
}
