//! The options that choose a model, and what they load. Start from [`ModelArgs`]; [`Loaded::open`] gives the
//! checkpoint and its tokenizer, [`Loaded::llama`] the model.

use std::{io::IsTerminal, path::PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use rayon::{ThreadPool, ThreadPoolBuilder};
#[cfg(feature = "cuda")]
use warploom::backend::{Gpu, LibraryUse, MemoryPlan};
use warploom::{
    Error, Result,
    backend::{Backend, Cpu},
    checkpoint::{Checkpoint, footprint::Footprint, resolve_model},
    mask::Mask,
    model::Llama,
    text::{ChatTemplate, Tokenizer},
};

#[cfg(feature = "cuda")]
use super::output;
use super::{
    demo,
    options::{Drafting, value},
};

/// Most threads that `--threads` gives.
const MAX_THREADS: usize = 1024;
/// Weights in bytes from which they are read ahead of use, with a progress bar: less is read in a moment.
const PREFETCH_BYTES: u64 = 64 << 20;

/// Which model runs, where, and over how much text.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Checkpoint folder, or a hub name (org/name) in the local Hugging Face cache [default: the bundled demo]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Where it runs: cpu; with the feature `cuda` also sim (the CUDA kernels, simulated and checked) and cuda:N (the N-th GPU).
    /// auto is the CPU
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Threads; 0 is all cores. Results do not depend on them
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Most positions, prompt and generated tokens together [default: as many as needed, up to the model's own]. With
    /// dynamic RoPE scaling, angles depend on it beyond the length the model was trained for
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Attention of every layer: full, window:W, chunk:C or overlap:C, each with +sinks:S if wanted [default:
    /// the checkpoint's]
    #[arg(long, value_name = "MASK", value_parser = causal)]
    attention: Option<Mask>,
    /// Quantise the feed-forward weights to fp8 (e4m3, a scale for each row) when they are loaded, but for the first and the
    /// last layer's; activations that meet them are quantised row by row
    #[arg(long)]
    fp8: bool,
    /// On a device, launch every round kernel by kernel, not as a graph where its shape comes again: for profiles, and to see what graphs save
    #[arg(long)]
    no_graphs: bool,
    /// On a GPU, begin each kernel when the one before it has ended, not while it ends: for profiles, and to see what overlap saves
    #[arg(long)]
    no_overlap: bool,
    /// On a GPU, let cuBLASLt compute products of prompts: those for which it is faster than warploom's kernels, by measurements when they come
    /// first, or always, where it can
    #[arg(long, value_name = "WHEN", num_args = 0..=1, default_missing_value = "faster")]
    cublaslt: Option<Library>,
}

/// When cuBLASLt computes a product.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Library {
    Faster,
    Always,
}

/// Parses a mask of a decoder, in which no row sees what comes after it.
fn causal(text: &str) -> std::result::Result<Mask, String> {
    match value::<Mask>(text)? {
        mask if mask.is_causal() => Ok(mask),
        mask => Err(format!("{mask} lets rows see what comes after them, and a decoder has nothing there")),
    }
}

impl ModelArgs {
    /// Whether `--fp8` was given.
    pub fn fp8(&self) -> bool {
        self.fp8
    }

    fn pool(&self) -> Result<ThreadPool> {
        if self.threads > MAX_THREADS {
            let reason = format!(
                "{} is out of range; allowed are 1 to {MAX_THREADS}, and 0 for all cores",
                self.threads
            );
            return Err(Error::argument("--threads", reason));
        }
        let pool = ThreadPoolBuilder::new().num_threads(self.threads).build();
        pool.map_err(|error| Error::argument("--threads", error.to_string()))
    }

    /// The device, opened: what is wrong with it should come before the weights are read.
    fn device(&self) -> Result<Device> {
        match self.device.as_str() {
            "auto" | "cpu" => Ok(Device::Cpu),
            #[cfg(feature = "cuda")]
            other => {
                let driver = warploom::driver::open(other).map_err(|error| match error {
                    Error::Argument { .. } => {
                        let name = warploom::error::printable(other);
                        Error::argument(
                            "--device",
                            format!("'{name}' is none of auto, cpu, sim, cuda, cuda:N"),
                        )
                    }
                    other => other,
                })?;
                Ok(Device::Driver { name: other.into(), driver })
            }
            #[cfg(not(feature = "cuda"))]
            other => {
                let reason = format!(
                    "'{}' is not there; this build has auto and cpu (with --features cuda also sim and cuda:N)",
                    warploom::error::printable(other)
                );
                Err(Error::argument("--device", reason))
            }
        }
    }
}

/// What a model runs on.
enum Device {
    Cpu,
    /// A GPU, or the simulator.
    #[cfg(feature = "cuda")]
    Driver {
        name: String,
        driver: std::sync::Arc<dyn warploom::driver::Driver>,
    },
}

/// What a command does with its model, whatever the model runs on.
pub trait Job: Send {
    /// What comes of it.
    type Output: Send;
    /// Whether it shows by itself how far it is, in a line on stderr.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    fn shows_progress(&self) -> bool {
        false
    }
    /// Does it.
    ///
    /// # Errors
    /// Those of decoding.
    fn run<B: Backend>(self, llama: &Llama<B>) -> Result<Self::Output>;
}

/// A checkpoint with what belongs to it, opened and checked.
pub struct Loaded {
    /// Configuration and weights.
    pub checkpoint: Checkpoint,
    /// None if the folder has no `tokenizer.json`; [`Loaded::tokenizer`] then says what to do.
    pub optional_tokenizer: Option<Tokenizer>,
    /// None for the demo.
    folder: Option<PathBuf>,
    context: Option<usize>,
    attention: Option<Mask>,
    /// The threads that the model runs on.
    pool: ThreadPool,
    device: Device,
    /// Whether a device's rounds may be graphs.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    graphs: bool,
    /// Whether a GPU's kernels may overlap.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    overlap: bool,
    /// Whether the device's library may compute products of prompts.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    library: Option<Library>,
}

impl Loaded {
    /// Opens what `args` name. With a progress bar on stderr where that is a terminal and the weights are large.
    ///
    /// # Errors
    /// Those of the checkpoint and the tokenizer; [`Error::Argument`] for an option out of range.
    pub fn open(args: &ModelArgs) -> Result<Loaded> {
        let device = args.device()?;
        if args.cublaslt.is_some() && matches!(device, Device::Cpu) {
            let reason = "computes on a GPU: add --device cuda:0, in a build with the feature cuda";
            return Err(Error::argument("--cublaslt", reason));
        }
        let pool = args.pool()?;
        let folder = args.model.as_deref().map(resolve_model).transpose()?;
        let (mut checkpoint, optional_tokenizer) = match &folder {
            None => {
                let checkpoint = demo::checkpoint()?;
                let tokenizer = demo::tokenizer(checkpoint.config.vocab)?;
                (checkpoint, Some(tokenizer))
            }
            Some(folder) => {
                let checkpoint = Checkpoint::open(folder)?;
                // A dangling link counts as there, so that the system's error is shown.
                let tokenizer = match std::fs::symlink_metadata(folder.join("tokenizer.json")) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                    _ => Some(Tokenizer::from_dir(folder, checkpoint.config.vocab)?),
                };
                (checkpoint, tokenizer)
            }
        };
        checkpoint.set_fp8(args.fp8)?;
        let loaded = Loaded {
            checkpoint,
            optional_tokenizer,
            folder,
            context: args.context,
            attention: args.attention,
            pool,
            device,
            graphs: !args.no_graphs,
            overlap: !args.no_overlap,
            library: args.cublaslt,
        };
        // A context out of range is refused before the weights are read.
        loaded.context(1)?;
        prefetch(&loaded.checkpoint)?;
        Ok(loaded)
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`Error::File`] if the checkpoint has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.optional_tokenizer.as_ref().ok_or_else(|| {
            let folder = self.folder.clone().unwrap_or_default();
            Error::file(folder.join("tokenizer.json"), "does not exist; without it give ids (--prompt-ids)")
        })
    }

    /// The ids of a prompt that `option` gave, `place` of it (empty, or `line 3: `).
    ///
    /// # Errors
    /// Those of the tokenizer; [`Error::Argument`] for a text that is too long for the model, before all of it is
    /// encoded.
    pub fn encode(&self, option: &str, place: &str, text: &str) -> Result<Vec<u32>> {
        let most = self.checkpoint.config.context;
        self.tokenizer()?.encode_prompt_within(text, most)?.ok_or_else(|| {
            let reason =
                format!("{place}its tokens, more than {most}, leave no room in the model's context of {most}: shorten it");
            Error::argument(option, reason)
        })
    }

    /// The checkpoint's chat template, if it has one.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        match &self.folder {
            None => demo::chat_template(),
            Some(folder) => ChatTemplate::from_dir(folder),
        }
    }

    /// How the model drafts by itself; only the demo does.
    pub fn default_drafting(&self) -> Option<Drafting> {
        self.folder.is_none().then_some(demo::DRAFTING)
    }

    /// The context to run with if `needed` positions are asked for: `--context`, or as many as needed, up to
    /// the model's own. A generator takes the smaller of this and `needed` for its memory.
    ///
    /// # Errors
    /// [`Error::Argument`] for a `--context` that the model does not have.
    pub fn context(&self, needed: usize) -> Result<usize> {
        let most = self.checkpoint.config.context;
        match self.context {
            Some(context) if !(1..=most).contains(&context) => {
                let reason = format!("{context} is not from 1 to {most}, the model's context");
                Err(Error::argument("--context", reason))
            }
            Some(context) => Ok(context),
            None => Ok(needed.clamp(1, most)),
        }
    }

    /// Whether `--context` was given.
    pub fn has_context(&self) -> bool {
        self.context.is_some()
    }

    /// Threads that the model runs on.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// The device's name as `--device` takes it.
    pub fn device(&self) -> &str {
        match &self.device {
            Device::Cpu => "cpu",
            #[cfg(feature = "cuda")]
            Device::Driver { name, .. } => name,
        }
    }

    /// Puts the model on its device, for sequences of up to [`Loaded::context`]`(needed)` positions and with the attention that
    /// `--attention` asks for, and does `job` with it on the model's threads, where handing out work is cheapest.
    ///
    /// # Errors
    /// Those of [`Llama::new`] and of the job.
    pub fn run<J: Job>(&self, needed: usize, job: J) -> Result<J::Output> {
        match &self.device {
            Device::Cpu => {
                let model = self.model(Cpu::new(), needed)?;
                self.pool.install(|| job.run(&model))
            }
            #[cfg(feature = "cuda")]
            Device::Driver { driver, .. } => {
                let library = self.library.is_some();
                let plan = MemoryPlan::new(&**driver, &self.checkpoint, self.context(needed)?, library)?;
                plan.check()?;
                // The simulator's memory is the host's.
                if driver.simulated().is_none() {
                    output::note(&plan.to_string());
                }
                let shown = (!job.shows_progress()).then(|| super::progress::show(driver));
                let mut backend = Gpu::new(driver.clone(), &self.checkpoint)?;
                backend.set_graphs(self.graphs);
                backend.set_overlap(self.overlap);
                match self.library {
                    Some(Library::Faster) => backend.use_library(LibraryUse::Faster)?,
                    Some(Library::Always) => backend.use_library(LibraryUse::Always)?,
                    None => {}
                }
                let bar = super::progress::uploading(plan.weights, backend.uploaded());
                let model = self.model(backend, needed)?;
                drop(bar);
                let done = self.pool.install(|| job.run(&model));
                drop(shown);
                if let Some((name, choices)) = model.backend().library() {
                    for choice in choices {
                        let (rows, inputs, features) = choice.shape;
                        let by = if choice.library { name } else { "ours" };
                        let library = choice.library_ms.map_or("none".into(), |ms| format!("{ms:.3} ms"));
                        output::note(&format!(
                            "{rows} × {inputs} → {features} by {by}: {name} {library}, ours {:.3} ms",
                            choice.kernel_ms
                        ));
                    }
                }
                done
            }
        }
    }

    fn model<B: Backend>(&self, backend: B, needed: usize) -> Result<Llama<B>> {
        let context = self.context(needed)?;
        let mut llama = self.pool.install(|| Llama::new(&self.checkpoint, backend, context))?;
        if let Some(mask) = self.attention {
            llama.set_mask(mask);
        }
        Ok(llama)
    }
}

/// Reads the weights once, so that the first tokens do not wait for the disk.
fn prefetch(checkpoint: &Checkpoint) -> Result<()> {
    if Footprint::of_checkpoint(checkpoint)?.weight_bytes < PREFETCH_BYTES {
        return Ok(());
    }
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal { ProgressBar::no_length() } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("loading {bar:30} {bytes}/{total_bytes}") {
        bar.set_style(style);
    }
    checkpoint.prefetch(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    Ok(())
}
