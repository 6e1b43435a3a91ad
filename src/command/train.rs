//! `warploom train`: from a text to a checkpoint.

use std::{
    io::IsTerminal,
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use warploom::{
    Error, Result,
    mask::Mask,
    train::{Curriculum, ExitScale, Progress, Settings, read_text, train},
};

use super::options::value;

/// How a step chooses the exits that it trains.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum CurriculumName {
    /// Every R-th layer, shifting each step (see --rotation)
    Rotational,
    /// From the last layer down, one more every T/(2L) steps
    Gradual,
    /// Every exit in every step
    Off,
}

/// How the earlier exits weigh against each other.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ExitWeightsName {
    /// LayerSkip's: in proportion to the sum of the layers up to the exit
    Depth,
    /// All alike: for small models that draft with their first layers
    Equal,
}

/// Train a small Llama checkpoint from scratch with LayerSkip's recipe
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  warploom train --text book.txt --out tiny --layers 4 --hidden 32 --heads 4 --vocab 300 --sequence 64 --steps 10
  warploom train --text book.txt --out smaller --layers 2 --hidden 32 --heads 2 --vocab 300 --sequence 64 --steps 5")]
pub struct TrainArgs {
    /// UTF-8 text to learn from; two blank lines separate documents
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Folder for the checkpoint, log.csv and loss.svg: new, empty or a previous output
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Layers
    #[arg(long, default_value_t = 12)]
    layers: usize,
    /// Width of the residual stream
    #[arg(long, default_value_t = 160)]
    hidden: usize,
    /// Query heads
    #[arg(long, default_value_t = 10)]
    heads: usize,
    /// Key/value heads
    #[arg(long, default_value_t = 2)]
    kv_heads: usize,
    /// Width of the feed-forward block [default: 8/3 of --hidden, rounded up to a multiple of 32]
    #[arg(long)]
    intermediate: Option<usize>,
    /// Tokens of the tokenizer that is learned from the text
    #[arg(long, default_value_t = 3072)]
    vocab: usize,
    /// Longest context of the checkpoint [default: --sequence]
    #[arg(long)]
    context: Option<usize>,
    /// Optimizer steps
    #[arg(long, default_value_t = 5000)]
    steps: usize,
    /// Sequences a step
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Tokens of a sequence
    #[arg(long, default_value_t = 512)]
    sequence: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 3e-3)]
    lr: f32,
    /// Seed of initial weights, data order and dropout
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Layer dropout: the last layer's probability at the last step
    #[arg(long, value_name = "P", default_value_t = 0.1)]
    dropout: f64,
    /// How much the earlier exits weigh in the loss
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    exit_scale: f64,
    /// How the earlier exits weigh against each other
    #[arg(long, value_enum, default_value = "depth")]
    exit_weights: ExitWeightsName,
    /// Factor on the saved checkpoint's logits: above 1, sampling draws from a sharper distribution
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    logit_scale: f32,
    /// Which exits a step trains
    #[arg(long, value_enum, default_value = "rotational")]
    curriculum: CurriculumName,
    /// Rotational curriculum: distance between the exits of one step [default: 4, or --layers if fewer]
    #[arg(long, value_name = "R")]
    rotation: Option<usize>,
    /// Attention pattern: full, window:W, chunk:C or overlap:C
    #[arg(long, default_value = "full", value_parser = value::<Mask>)]
    attention: Mask,
    /// Steps between checkpoints; 0 keeps only the last
    #[arg(long, value_name = "N", default_value_t = 500)]
    save_every: usize,
    /// Steps between evaluations on the held-out end of the text
    #[arg(long, value_name = "N", default_value_t = 200)]
    validate_every: usize,
    /// Threads [default: all cores]; the result does not depend on them
    #[arg(long)]
    threads: Option<usize>,
}

impl TrainArgs {
    fn settings(&self) -> Settings {
        Settings {
            layers: self.layers,
            hidden: self.hidden,
            intermediate: self.intermediate.unwrap_or_else(|| default_intermediate(self.hidden)),
            heads: self.heads,
            kv_heads: self.kv_heads,
            vocab: self.vocab,
            context: self.context.unwrap_or(self.sequence),
            attention: self.attention,
            steps: self.steps,
            batch: self.batch,
            sequence: self.sequence,
            learning_rate: self.lr,
            dropout: self.dropout,
            exit_form: match self.exit_weights {
                ExitWeightsName::Depth => ExitScale::Depth,
                ExitWeightsName::Equal => ExitScale::Equal,
            },
            exit_scale: self.exit_scale,
            logit_scale: self.logit_scale,
            curriculum: match self.curriculum {
                CurriculumName::Rotational => {
                    Curriculum::Rotational { every: self.rotation.unwrap_or(self.layers.min(4)) }
                }
                CurriculumName::Gradual => Curriculum::Gradual,
                CurriculumName::Off => Curriculum::Off,
            },
            seed: self.seed,
            validate_every: self.validate_every,
            save_every: self.save_every,
            ..Settings::default()
        }
    }
}

/// 8/3 of `hidden`, rounded up to a multiple of 32: SwiGLU's three matrices then hold as much as two of 4·hidden.
fn default_intermediate(hidden: usize) -> usize {
    (hidden / 3).saturating_mul(8).div_ceil(32).max(1).saturating_mul(32)
}

/// Runs the command. Ctrl-C ends the run early, with its weights saved.
///
/// # Errors
/// Those of [`train`], of [`read_text`], and [`Error::Argument`] for a number of threads that cannot be had.
pub fn run(args: TrainArgs) -> Result<()> {
    let settings = args.settings();
    settings.check()?;
    let text = read_text(&args.text)?;
    let mut threads = rayon::ThreadPoolBuilder::new();
    if let Some(count) = args.threads {
        if !(1..=1024).contains(&count) {
            return Err(Error::argument("--threads", "must be 1 to 1024"));
        }
        threads = threads.num_threads(count);
    }
    let pool = threads.build().map_err(|error| Error::argument("--threads", error.to_string()))?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    // Without a handler Ctrl-C ends the process at once, and the last checkpoint stays.
    let _ = ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed));
    let mut display = Display::new(settings.steps);
    let last = pool.install(|| {
        train(&text, &args.out, &settings, &mut |progress| {
            display.show(progress);
            if interrupted.load(Ordering::Relaxed) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
    })?;
    display.bar.finish();
    let loss = last.loss.last().copied().unwrap_or(f64::NAN);
    eprintln!("{}: held-out loss {loss:.3} after {} steps", args.out.display(), last.step);
    Ok(())
}

/// A bar when stderr is a terminal, otherwise a line every half minute.
struct Display {
    bar: ProgressBar,
    terminal: bool,
    start: Option<(Instant, usize)>,
    next_line: Instant,
}

impl Display {
    const LINE_EVERY: Duration = Duration::from_secs(30);

    fn new(steps: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal { ProgressBar::new(steps as u64) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} steps, {msg}, {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Display { bar, terminal, start: None, next_line: Instant::now() }
    }

    fn show(&mut self, progress: &Progress) {
        // The clock starts after the first step: before it lie the tokenizer and the first evaluation.
        let (start, tokens) = *self.start.get_or_insert((Instant::now(), progress.tokens));
        let seconds = start.elapsed().as_secs_f64();
        let rate = (progress.tokens - tokens) as f64 / seconds.max(1e-9);
        let held_out = progress.validation.map_or(String::new(), |loss| format!(", held out {loss:.3}"));
        let message = format!("loss {:.3}{held_out}, {rate:.0} tokens/s", progress.loss);
        if self.terminal {
            self.bar.set_message(message);
            self.bar.set_position(progress.step as u64);
        } else if Instant::now() >= self.next_line {
            let left = seconds / (progress.step - 1).max(1) as f64 * (progress.steps - progress.step) as f64;
            eprintln!("step {}/{}: {message}, {:.1} min left", progress.step, progress.steps, left / 60.0);
            self.next_line = Instant::now() + Self::LINE_EVERY;
        }
    }
}
