//! Training a Llama checkpoint, from scratch or further, with LayerSkip's recipe (arXiv 2404.16710): layer
//! dropout and an early-exit loss, so that the first layers can draft for the last. On the CPU, in f32, with a backward pass
//! written by hand: every operation is a forward function and its backward twin over plain buffers.
//!
//! Start from [`train`], which goes from a text to a checkpoint folder, or from [`Trainer`], one step of it.
//! [`Settings`] says what to train; `model` is the graph, `schedule` the recipe, `source` what a run begins with, `state` what
//! [`resume`] goes on from. The optimizer is [`crate::optimizer::AdamW`], and `monitor` what its measures lead to.

mod attention;
mod data;
mod fingerprint;
mod matrix;
mod model;
mod monitor;
mod objective;
mod ops;
mod output;
mod parameters;
mod plan;
mod plot;
mod schedule;
mod settings;
mod source;
mod state;
mod tensors;
mod tokenizer;
mod trainer;

use std::{ops::ControlFlow, path::Path};

use rand_chacha::ChaCha8Rng;

pub use data::{Documents, read_text};
pub use monitor::{Event, Mitigation};
pub use objective::{Objective, UNCOUNTED};
pub use plan::Plan;
pub use schedule::{Curriculum, DropoutGrowth, ExitScale, dropout_probability, exit_weights, learning_rate};
pub use settings::Settings;
pub use trainer::{Batch, Sequence, StepReport, Trainer};

use crate::{Error, Result};
use data::Corpus;
use objective::Masking;
use output::{LogKind, LogLine, Output};
use source::{CONFIG, Source};
use state::{Origin, Position, Sums};
use trainer::{Stream, rng};

/// Held-out sequences of an evaluation.
const VALIDATION_SEQUENCES: usize = 16;

/// Times that each of them is masked anew, where the loss is of masked tokens: 15 in 100 count at a time.
const MASKINGS: usize = 6;

/// Gradients added as one unit of parallel work; fixed, so that sums do not depend on the threads.
const CHUNK: usize = 1 << 14;

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Steps done.
    pub step: usize,
    /// Steps of the run.
    pub steps: usize,
    /// Tokens trained on.
    pub tokens: usize,
    /// Cross-entropy of the last exit in the last step, in nats a token.
    pub loss: f64,
    /// Held-out cross-entropy of the last exit, as of the last evaluation since the run began or was resumed.
    pub validation: Option<f64>,
    /// Alarms of the optimizer's monitor that are new, and what followed from them.
    pub events: &'a [Event],
}

/// An evaluation on the held-out end of the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Validation {
    /// Steps done before it.
    pub step: usize,
    /// Cross-entropy after each layer, in nats a token.
    pub loss: Vec<f64>,
    /// Share of the tokens for which the exit after each layer and the last one find the same token likeliest.
    pub agreement: Vec<f64>,
}

/// Trains on `text` and leaves a Hugging Face checkpoint, `log.csv`, `monitor.csv`, `alarms.csv` and pictures of
/// the first two in `folder`. `observe` is called after every step; when it breaks, the run ends there, with its
/// weights saved and a state that [`resume`] goes on from.
///
/// Documents of the text are separated by two or more blank lines; its last fiftieth is held out. The result
/// depends on text and settings, not on the number of threads, nor on when the run was broken off and resumed.
///
/// # Errors
/// [`Error::Argument`] and [`Error::Capacity`] for settings that cannot be trained or a loss that diverges,
/// [`Error::File`] for a folder that holds something else, [`Error::Io`]; where a model is trained further, those
/// of its loader. Nothing is written before the settings, the folder and the text have been found good.
pub fn train(
    text: &str,
    folder: &Path,
    settings: &Settings,
    observe: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
) -> Result<Validation> {
    settings.check()?;
    if let Some(dir) = &settings.from
        && let (Ok(from), Ok(to)) = (dir.canonicalize(), folder.canonicalize())
        && from == to
    {
        let reason = "is the output folder, whose weights the run would replace; give --out another one";
        return Err(Error::argument("--from", reason));
    }
    Output::check(folder)?;
    let documents = data::documents(text);
    let (source, weights) = match &settings.from {
        None => (Source::scratch(&documents, settings)?, None),
        Some(dir) => {
            let source = Source::open(dir, settings)?;
            let weights = source.weights(dir)?;
            (source, Some(weights))
        }
    };
    let corpus = source.corpus(&documents, settings)?;
    let trainer = Trainer::with_config(source.config, settings.clone(), weights)?;
    let origin = Origin::new(settings, text, corpus.tokens(), &source.files);
    let output = Output::create(folder, settings, &source.files)?;
    let mut run = Run {
        data: rng(settings.seed, Stream::Data),
        means: Means::new(settings.layers),
        held_out: held_out(&corpus, settings),
        dtype: source.dtype,
        corpus,
        trainer,
        origin,
        output,
    };
    let validation = run.trainer.evaluate(&run.held_out);
    run.log(Some(&validation))?;
    run.save_state()?;
    run.go_on(Some(validation), observe)
}

/// Goes on with a run of [`train`] that was broken off, by its observer, a signal or the power: from the last
/// checkpoint in `folder`, with the same text and settings. What the run leaves in the end is bit for bit what it
/// would have left without a break. Only [`Settings::save_every`] and [`Settings::dtype`] may differ.
///
/// # Errors
/// As [`train`]; [`Error::File`] for a state or a log that is missing, cut or of another run, [`Error::Argument`]
/// that names the first setting that differs. Nothing has been written then.
pub fn resume(
    text: &str,
    folder: &Path,
    settings: &Settings,
    observe: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
) -> Result<Validation> {
    settings.check()?;
    state::check(folder)?;
    let documents = data::documents(text);
    let source = Source::resumed(folder, settings)?;
    let corpus = source.corpus(&documents, settings)?;
    let origin = Origin::new(settings, text, corpus.tokens(), &source.files);
    // The weights are those of the state, whatever stands here before.
    let none = vec![0.0; parameters::Layout::new(&source.config).len];
    let mut trainer = Trainer::with_config(source.config, settings.clone(), Some(none))?;
    let Position { data: position, sums, logs } = state::read(folder, &mut trainer, &origin)?;
    let output = Output::open(folder, settings, &logs)?;
    for (_, bytes) in source.files.iter().filter(|(name, _)| name == CONFIG) {
        output.write_config(bytes)?;
    }
    let mut data = rng(settings.seed, Stream::Data);
    data.set_word_pos(position.into());
    let run = Run {
        data,
        means: Means::of(&sums),
        held_out: held_out(&corpus, settings),
        dtype: source.dtype,
        corpus,
        trainer,
        origin,
        output,
    };
    run.go_on(None, observe)
}

/// The sequences of an evaluation.
fn held_out(corpus: &Corpus, settings: &Settings) -> Batch {
    let batch = corpus.held_out(settings.sequence, VALIDATION_SEQUENCES);
    let Some(masking) = Masking::held_out(settings) else { return batch };
    let mut all = batch.repeated(MASKINGS);
    all.sequences_mut()
        .enumerate()
        .for_each(|(i, sequence)| masking.hide(i, sequence.inputs, sequence.targets));
    all
}

/// A run between two steps.
struct Run {
    corpus: Corpus,
    held_out: Batch,
    trainer: Trainer,
    data: ChaCha8Rng,
    means: Means,
    origin: Origin,
    output: Output,
    dtype: crate::checkpoint::Dtype,
}

impl Run {
    /// Makes the steps that are left.
    fn go_on(
        mut self,
        mut validation: Option<Validation>,
        observe: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Validation> {
        let settings = self.trainer.settings.clone();
        let Settings { layers, steps, sequence, save_every, .. } = settings;
        let mut batch = Batch::new(settings.sequences(), sequence);
        let masking = Masking::new(&settings);
        while self.trainer.step < steps {
            batch.sequences_mut().for_each(|sequence| self.corpus.draw(&mut self.data, sequence));
            if let Some(masking) = &masking {
                let before = self.trainer.step * settings.sequences();
                let sequences = batch.sequences_mut().enumerate();
                sequences
                    .for_each(|(i, sequence)| masking.hide(before + i, sequence.inputs, sequence.targets));
            }
            let report = self.trainer.step(&batch)?;
            let step = self.trainer.step;
            self.means.add(&report);
            for event in &report.events {
                self.output.append(LogKind::Alarms, &event.line())?;
            }
            if settings.histogram_every > 0
                && (step.is_multiple_of(settings.histogram_every) || step == steps)
            {
                let bound = settings.adam().ratio_bound();
                let lines = self.trainer.watch.histograms(step, &report.tensors, bound);
                self.output.append(LogKind::Histograms, &lines)?;
            }
            let validate = step == steps || step.is_multiple_of(settings.validate_every);
            if validate {
                validation = Some(self.trainer.evaluate(&self.held_out));
            }
            if validate || step.is_multiple_of(settings.log_every) {
                self.log(validation.as_ref().filter(|_| validate))?;
                let lines = self.trainer.watch.lines(step, &report.tensors);
                self.output.append(LogKind::Monitor, &lines)?;
            }
            let progress = Progress {
                step,
                steps,
                tokens: step * settings.sequences() * sequence,
                loss: report.exits[layers - 1].unwrap_or(f64::NAN),
                validation: validation.as_ref().map(|v| v.loss[layers - 1]),
                events: &report.events,
            };
            let broken = observe(&progress).is_break() && step < steps;
            if broken || step == steps || save_every > 0 && step.is_multiple_of(save_every) {
                self.save_state()?;
                self.output.save_model(&self.trainer, self.dtype)?;
            }
            if broken {
                // An evaluation that the unbroken run would not have made is not logged.
                return Ok(self.trainer.evaluate(&self.held_out));
            }
        }
        let last = match validation {
            Some(validation) if validation.step == steps => validation,
            // The run was resumed after its last step.
            _ => {
                self.output.save_model(&self.trainer, self.dtype)?;
                self.trainer.evaluate(&self.held_out)
            }
        };
        self.output.finish()?;
        Ok(last)
    }

    fn log(&mut self, validation: Option<&Validation>) -> Result<()> {
        let (loss, exits) = self.means.take();
        let Trainer { step, ref settings, .. } = self.trainer;
        let line = LogLine {
            step,
            tokens: step * settings.sequences() * settings.sequence,
            learning_rate: self.trainer.rate,
            loss,
            exits: &exits,
            validation,
        };
        self.output.append(LogKind::Losses, &line.text())
    }

    fn save_state(&self) -> Result<()> {
        let position =
            Position { data: state::words(&self.data), sums: self.means.sums(), logs: self.output.ends() };
        self.output.save_state(&self.trainer, &self.origin, position)
    }
}

/// Means of what was measured since the last line of the log.
struct Means {
    steps: usize,
    loss: f64,
    exits: Vec<(usize, f64)>,
}

impl Means {
    fn new(layers: usize) -> Self {
        Means { steps: 0, loss: 0.0, exits: vec![(0, 0.0); layers] }
    }

    fn add(&mut self, report: &StepReport) {
        self.steps += 1;
        self.loss += report.loss;
        for (mean, exit) in self.exits.iter_mut().zip(&report.exits) {
            if let Some(exit) = exit {
                *mean = (mean.0 + 1, mean.1 + exit);
            }
        }
    }

    /// The means, which begin anew.
    fn take(&mut self) -> (Option<f64>, Vec<Option<f64>>) {
        let mean = |count: usize, sum: f64| (count > 0).then(|| sum / count as f64);
        let exits = self.exits.iter().map(|&(count, sum)| mean(count, sum)).collect();
        let loss = mean(self.steps, self.loss);
        *self = Means::new(self.exits.len());
        (loss, exits)
    }

    /// The sums to the last bit.
    fn sums(&self) -> Sums {
        let bits = |count: usize, sum: f64| (count as u64, sum.to_bits());
        let exits = self.exits.iter().map(|&(count, sum)| bits(count, sum)).collect();
        Sums { loss: bits(self.steps, self.loss), exits }
    }

    /// Means that go on from these sums.
    fn of(sums: &Sums) -> Self {
        let values = |&(count, bits): &(u64, u64)| (count as usize, f64::from_bits(bits));
        let (steps, loss) = values(&sums.loss);
        Means { steps, loss, exits: sums.exits.iter().map(values).collect() }
    }
}

#[cfg(test)]
mod tests;
