//! `warploom train`: from a text to a checkpoint.

use std::{
    io::IsTerminal,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use warploom::{
    Error, Result,
    checkpoint::{Config, Dtype, resolve_model},
    mask::{Mask, Pattern},
    train::{
        Curriculum, Documents, DropoutGrowth, Event, ExitScale, Mitigation, Objective, Plan, Progress,
        Settings, read_text, resume, train,
    },
};

use super::{interrupt, options::value, output};

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

/// What the loss is of.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ObjectiveName {
    /// The next token: a decoder
    Next,
    /// Tokens that are hidden among those on both sides: an encoder, which cannot generate
    Masked,
}

/// S(t) of layer dropout.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum GrowthName {
    /// From 0 to 1 over the run: for training from scratch
    Exponential,
    /// 1 from the first step on: for training a model further
    Constant,
}

/// How documents lie in a training sequence.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum DocumentsName {
    /// Each begins anew, and sees nothing of those before it
    Masked,
    /// They follow each other, and rows look across
    Joined,
}

/// What an alarm of the optimizer's monitor leads to.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum MitigationName {
    /// It is printed and logged, that is all
    Nothing,
    /// The step is left out when a gradient or an update spikes
    Skip,
    /// The learning rate is halved when updates spike, are far too large or have two modes
    LowerRate,
    /// ε is divided by 10 when it rules a tenth of a matrix, or updates spike
    LowerEpsilon,
}

/// Type of the saved weights.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum DtypeName {
    F32,
    F16,
    Bf16,
}

/// Train a small Llama checkpoint with LayerSkip's recipe, from scratch or from another checkpoint
///
/// What is left in --out: an ordinary Hugging Face folder, log.csv (losses at every exit) and loss.svg,
/// monitor.csv (what the optimizer's monitor measured of each layer), alarms.csv and monitor.svg. While the run is not
/// finished there is training.state as well, which --resume goes on from: killed at any moment and resumed, a run ends
/// bit for bit as if it had not been. Ctrl-C saves it first.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  warploom train --text book.txt --out tiny --layers 4 --hidden 32 --heads 4 --vocab 300 --sequence 64 --steps 10
  warploom train --text book.txt --out further --from tiny --sequence 64 --steps 5 --lr 1e-4")]
pub struct TrainArgs {
    /// UTF-8 text to learn from; two blank lines separate documents
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Folder for the checkpoint and the logs: new, empty or the previous output of a finished run
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on with the unfinished run in --out, with the options that it was begun with
    #[arg(long)]
    resume: bool,
    /// Print parameters, memory by part, tokens and operations of the run, and write nothing
    #[arg(long, conflicts_with = "resume")]
    plan: bool,

    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    optimizer: OptimizerArgs,

    /// Steps between checkpoints; 0 keeps only the last
    #[arg(long, value_name = "N", default_value_t = 500)]
    save_every: usize,
    /// Steps between evaluations on the held-out end of the text
    #[arg(long, value_name = "N", default_value_t = 200)]
    validate_every: usize,
    /// Steps between lines of log.csv and monitor.csv
    #[arg(long, value_name = "N", default_value_t = 20)]
    log_every: usize,
    /// Steps between histograms of r of each layer in histogram.csv; 0 writes none
    #[arg(long, value_name = "N", default_value_t = 0)]
    histogram_every: usize,
    /// Threads [default: all cores]; the result does not depend on them
    #[arg(long)]
    threads: Option<usize>,
}

/// The model. Where one is trained further, all of its shape is that model's.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Model")]
struct ModelArgs {
    /// Train the model in this Hugging Face folder further (any Llama or Mistral in f32, f16 or bf16), with its tokenizer
    #[arg(long, value_name = "DIR")]
    from: Option<String>,
    /// Layers [default: 12]
    #[arg(long)]
    layers: Option<usize>,
    /// Width of the residual stream [default: 160]
    #[arg(long)]
    hidden: Option<usize>,
    /// Query heads [default: 10]
    #[arg(long)]
    heads: Option<usize>,
    /// Key/value heads [default: 2]
    #[arg(long)]
    kv_heads: Option<usize>,
    /// Width of the feed-forward block [default: 8/3 of --hidden, rounded up to a multiple of 32]
    #[arg(long)]
    intermediate: Option<usize>,
    /// Tokens of the tokenizer that is learned from the text [default: 3072]
    #[arg(long)]
    vocab: Option<usize>,
    /// Longest context of the checkpoint [default: --sequence]
    #[arg(long)]
    context: Option<usize>,
    /// What the loss is of
    #[arg(long, value_enum, default_value = "next")]
    objective: ObjectiveName,
    /// Attention pattern: full, window:W, chunk:C or overlap:C, each with +sinks:S if wanted [default: full, or that of --from]; with
    /// --objective masked: bidirectional, block:B or blockwise:B, each with +globals:G if wanted [default: bidirectional]
    #[arg(long, value_name = "MASK", value_parser = value::<Mask>)]
    attention: Option<Mask>,
    /// Type of the saved weights [default: bf16, or that of --from]
    #[arg(long, value_enum)]
    dtype: Option<DtypeName>,
    /// Factor on the saved checkpoint's logits: above 1, sampling draws from a sharper distribution
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    logit_scale: f32,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Data")]
struct DataArgs {
    /// Optimizer steps
    #[arg(long, default_value_t = 5000)]
    steps: usize,
    /// Sequences of a micro-batch
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Micro-batches whose gradients make one step
    #[arg(long, value_name = "N", default_value_t = 1)]
    accumulate: usize,
    /// Tokens of a sequence
    #[arg(long, default_value_t = 512)]
    sequence: usize,
    /// How documents lie in a sequence
    #[arg(long, value_enum, default_value = "masked")]
    documents: DocumentsName,
    /// Seed of initial weights, data order and dropout
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Early exits")]
struct RecipeArgs {
    /// Layer dropout: the last layer's probability at its most
    #[arg(long, value_name = "P", default_value_t = 0.1)]
    dropout: f64,
    /// How layer dropout grows over the run [default: exponential from scratch, constant with --from]
    #[arg(long, value_enum)]
    dropout_growth: Option<GrowthName>,
    /// How much the earlier exits weigh in the loss
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    exit_scale: f64,
    /// How the earlier exits weigh against each other
    #[arg(long, value_enum, default_value = "depth")]
    exit_weights: ExitWeightsName,
    /// Which exits a step trains
    #[arg(long, value_enum, default_value = "rotational")]
    curriculum: CurriculumName,
    /// Rotational curriculum: distance between the exits of one step [default: 4, or --layers if fewer]
    #[arg(long, value_name = "R")]
    rotation: Option<usize>,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Optimizer")]
struct OptimizerArgs {
    /// Peak learning rate
    #[arg(long, default_value_t = 3e-3)]
    lr: f32,
    /// Steps of the linear warm-up; a cosine down to a twentieth of --lr follows [default: a fiftieth of --steps, at most 200]
    #[arg(long, value_name = "N")]
    warm_up: Option<usize>,
    /// Decoupled weight decay of matrices
    #[arg(long, value_name = "X", default_value_t = 0.1)]
    weight_decay: f32,
    /// β₁ of AdamW
    #[arg(long, value_name = "X", default_value_t = 0.9)]
    beta1: f32,
    /// β₂ of AdamW
    #[arg(long, value_name = "X", default_value_t = 0.95)]
    beta2: f32,
    /// ε of AdamW
    #[arg(long, value_name = "X", default_value_t = 1e-8)]
    epsilon: f32,
    /// Bound of the gradient's norm; inf for none
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    clip: f32,
    /// What an alarm of the optimizer's monitor leads to
    #[arg(long, value_enum, default_value = "nothing")]
    on_alarm: MitigationName,
}

impl TrainArgs {
    /// The settings of the run, and the configuration of the model that is trained further.
    fn settings(&self) -> Result<(Settings, Option<Config>)> {
        let TrainArgs { model, data, recipe, optimizer, .. } = self;
        let hidden = model.hidden.unwrap_or(160);
        let layers = model.layers.unwrap_or(12);
        let mut settings = Settings {
            from: model.from.as_deref().map(resolve_model).transpose()?,
            layers,
            hidden,
            intermediate: default_intermediate(hidden),
            heads: 10,
            kv_heads: 2,
            vocab: 3072,
            context: data.sequence,
            objective: match model.objective {
                ObjectiveName::Next => Objective::Next,
                ObjectiveName::Masked => Objective::Masked,
            },
            attention: match model.objective {
                ObjectiveName::Next => Mask::CAUSAL,
                ObjectiveName::Masked => Mask { pattern: Pattern::Full, prefix: 0 },
            },
            steps: data.steps,
            batch: data.batch,
            accumulate: data.accumulate,
            sequence: data.sequence,
            documents: match data.documents {
                DocumentsName::Masked => Documents::Masked,
                DocumentsName::Joined => Documents::Joined,
            },
            learning_rate: optimizer.lr,
            warm_up: optimizer.warm_up,
            weight_decay: optimizer.weight_decay,
            beta1: optimizer.beta1,
            beta2: optimizer.beta2,
            epsilon: optimizer.epsilon,
            clip: optimizer.clip,
            on_alarm: match optimizer.on_alarm {
                MitigationName::Nothing => None,
                MitigationName::Skip => Some(Mitigation::Skip),
                MitigationName::LowerRate => Some(Mitigation::LowerRate),
                MitigationName::LowerEpsilon => Some(Mitigation::LowerEpsilon),
            },
            dropout: recipe.dropout,
            dropout_growth: recipe.dropout_growth.map(|name| match name {
                GrowthName::Exponential => DropoutGrowth::Exponential,
                GrowthName::Constant => DropoutGrowth::Constant,
            }),
            exit_form: match recipe.exit_weights {
                ExitWeightsName::Depth => ExitScale::Depth,
                ExitWeightsName::Equal => ExitScale::Equal,
            },
            exit_scale: recipe.exit_scale,
            logit_scale: model.logit_scale,
            curriculum: Curriculum::Off,
            seed: data.seed,
            validate_every: self.validate_every,
            log_every: self.log_every,
            histogram_every: self.histogram_every,
            save_every: self.save_every,
            dtype: model.dtype.map(|name| match name {
                DtypeName::F32 => Dtype::F32,
                DtypeName::F16 => Dtype::F16,
                DtypeName::Bf16 => Dtype::Bf16,
            }),
        };
        // What has begun already is in --out, and the folder that it came from may be gone.
        let source = if self.resume { Some(&self.out) } else { settings.from.as_ref() };
        let config = match source.filter(|_| settings.from.is_some()) {
            Some(dir) => Some(Config::from_dir(dir)?),
            None => None,
        };
        if let Some(config) = &config {
            settings.adopt(config);
        }
        // What is given must be what the model has, or `train` refuses it.
        let shape = [
            (&mut settings.layers, model.layers),
            (&mut settings.hidden, model.hidden),
            (&mut settings.intermediate, model.intermediate),
            (&mut settings.heads, model.heads),
            (&mut settings.kv_heads, model.kv_heads),
            (&mut settings.vocab, model.vocab),
            (&mut settings.context, model.context),
        ];
        for (setting, given) in shape {
            *setting = given.unwrap_or(*setting);
        }
        settings.attention = model.attention.unwrap_or(settings.attention);
        settings.curriculum = match recipe.curriculum {
            CurriculumName::Rotational => {
                Curriculum::Rotational { every: recipe.rotation.unwrap_or(settings.layers.min(4)) }
            }
            CurriculumName::Gradual => Curriculum::Gradual,
            CurriculumName::Off => Curriculum::Off,
        };
        Ok((settings, config))
    }
}

/// 8/3 of `hidden`, rounded up to a multiple of 32: SwiGLU's three matrices then hold as much as two of 4·hidden.
fn default_intermediate(hidden: usize) -> usize {
    (hidden / 3).saturating_mul(8).div_ceil(32).max(1).saturating_mul(32)
}

/// Runs the command. Ctrl-C ends the run early, with its weights and its state saved.
///
/// # Errors
/// Those of [`train`], of [`resume`], of [`read_text`], and [`Error::Argument`] for a number of threads that cannot be had.
pub fn run(args: TrainArgs) -> Result<()> {
    let (settings, config) = args.settings()?;
    let plan = Plan::new(&settings, config.as_ref());
    if args.plan {
        return show(&args.text, &settings, config.as_ref());
    }
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
    let interrupted = interrupt::flag();
    let mut display = Display::new(settings.steps);
    display.note(&format!(
        "{} parameters, {} steps of {} tokens, {:.0} MiB beside text and process (--plan says for what)",
        plan.parameters,
        plan.steps,
        plan.tokens_per_step,
        plan.bytes() / f64::from(1 << 20)
    ));
    let last = pool.install(|| {
        let begin = if args.resume { resume } else { train };
        begin(&text, &args.out, &settings, &mut |progress| {
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
    let (folder, step) = (args.out.display(), last.step);
    let rest = if step < settings.steps { "; the same command with --resume goes on" } else { "" };
    output::note(&format!("{folder}: held-out loss {loss:.3} after {step} steps{rest}"));
    let mask = settings.attention;
    if mask.is_causal() && (mask.prefix > 0 || matches!(mask.pattern, Pattern::Overlap { .. })) {
        output::note(&format!("config.json has no field for {mask}: run the model with --attention {mask}"));
    }
    Ok(())
}

/// Prints what a run would take.
fn show(text: &Path, settings: &Settings, config: Option<&Config>) -> Result<()> {
    let metadata = std::fs::metadata(text).map_err(|error| Error::io(text, error))?;
    if let Err(error @ Error::Argument { .. }) = settings.check() {
        return Err(error);
    }
    let plan = Plan::new(settings, config).with_text(metadata.len());
    let (model, state) = plan.disk(settings.dtype.unwrap_or(Dtype::Bf16));
    let mib = |bytes: f64| format!("{:.1} MiB", bytes / f64::from(1 << 20));
    let disk = format!("{:<20}{:>14}  and {} until the run is finished\n", "on disk", mib(model), mib(state));
    output::write(&format!("{plan}{disk}"))?;
    // What does not fit is said after the numbers that show why.
    plan.check()
}

/// A bar when stderr is a terminal, otherwise a line every half minute.
struct Display {
    bar: ProgressBar,
    terminal: bool,
    /// When the first step was done, its number and the tokens up to it.
    start: Option<(Instant, usize, usize)>,
    next_line: Instant,
    /// Kinds of alarms that have been told of.
    told: Vec<&'static str>,
}

impl Display {
    const LINE_EVERY: Duration = Duration::from_secs(30);

    fn new(steps: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal { ProgressBar::new(steps as u64) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} steps, {msg}, {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Display { bar, terminal, start: None, next_line: Instant::now(), told: Vec::new() }
    }

    /// A line of its own.
    fn note(&self, line: &str) {
        self.bar.suspend(|| output::note(line));
    }

    /// What the optimizer's monitor has to say: each kind of alarm once, each consequence.
    fn alarms(&mut self, events: &[Event]) {
        for event in events.iter().filter(|event| event.first) {
            let Event { step, tensor, what, value, .. } = event;
            if tensor.is_empty() {
                self.note(&format!("step {step}: {what} {value:.3e}"));
            } else if !self.told.contains(what) {
                self.told.push(what);
                let more = events.iter().filter(|other| other.first && other.what == *what).count() - 1;
                let more = if more > 0 { format!(" and {more} more tensors") } else { String::new() };
                self.note(&format!(
                    "step {step}: {what} ({value:.3}) in {tensor}{more}; the next go to alarms.csv alone"
                ));
            }
        }
    }

    fn show(&mut self, progress: &Progress<'_>) {
        self.alarms(progress.events);
        // The clock starts after the first step: before it lie the tokenizer and the first evaluation.
        let begun = (Instant::now(), progress.step, progress.tokens);
        let (start, first, tokens) = *self.start.get_or_insert(begun);
        let seconds = start.elapsed().as_secs_f64();
        let rate = (progress.tokens - tokens) as f64 / seconds.max(1e-9);
        let held_out = progress.validation.map_or(String::new(), |loss| format!(", held out {loss:.3}"));
        let message = format!("loss {:.3}{held_out}, {rate:.0} tokens/s", progress.loss);
        if self.terminal {
            self.bar.set_message(message);
            self.bar.set_position(progress.step as u64);
        } else if Instant::now() >= self.next_line && progress.step > first {
            let left =
                seconds / (progress.step - first).max(1) as f64 * (progress.steps - progress.step) as f64;
            let Progress { step, steps, .. } = progress;
            self.note(&format!("step {step}/{steps}: {message}, {:.1} min left", left / 60.0));
            self.next_line = Instant::now() + Self::LINE_EVERY;
        }
    }
}
