//! Training a Llama checkpoint from scratch with LayerSkip's recipe (arXiv 2404.16710): layer dropout and an
//! early-exit loss, so that the first layers can draft for the last. On the CPU, in f32, with a backward pass
//! written by hand: every operation is a forward function and its backward twin over plain buffers.
//!
//! Start from [`train`], which goes from a text to a checkpoint folder, or from [`Trainer`], one step of it.
//! [`Settings`] says what to train; `model` is the graph, `schedule` the recipe. The optimizer is [`optimizer::AdamW`].

mod attention;
mod data;
mod matrix;
mod model;
mod ops;
mod output;
mod parameters;
mod schedule;
mod settings;
mod tokenizer;

use std::{ops::ControlFlow, path::Path};

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rayon::prelude::*;

pub use data::read_text;
pub use schedule::{Curriculum, ExitScale, dropout_probability, exit_weights, learning_rate};
pub use settings::Settings;

use crate::{
    Error, Result,
    optimizer::{self, AdamW, Statistics},
};
use data::Corpus;
use model::{ExitLoss, Graph, Lane, Sample};
use output::{LogLine, Output};

/// Steps between lines of `log.csv`.
const LOG_EVERY: usize = 20;

/// Held-out sequences of an evaluation.
const VALIDATION_SEQUENCES: usize = 16;

/// Gradients added as one unit of parallel work; fixed, so that sums do not depend on the threads.
const CHUNK: usize = 1 << 14;

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Steps done.
    pub step: usize,
    /// Steps of the run.
    pub steps: usize,
    /// Tokens trained on.
    pub tokens: usize,
    /// Cross-entropy of the last exit in the last step, in nats a token.
    pub loss: f64,
    /// Held-out cross-entropy of the last exit, as of the last evaluation.
    pub validation: Option<f64>,
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

/// Trains on `text` and leaves a Hugging Face checkpoint, `log.csv` and `loss.svg` in `folder`. `observe` is
/// called after every step; when it breaks, the run ends there, with its weights saved.
///
/// Documents of the text are separated by two or more blank lines; its last fiftieth is held out. The result
/// depends on text and settings, not on the number of threads.
///
/// # Errors
/// [`Error::Argument`] and [`Error::Capacity`] for settings that cannot be trained or a loss that diverges,
/// [`Error::File`] for a folder that holds something else, [`Error::Io`]. Nothing is written before the
/// settings, the folder and the text have been found good.
pub fn train(
    text: &str,
    folder: &Path,
    settings: &Settings,
    observe: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Validation> {
    settings.check()?;
    Output::check(folder)?;
    let documents = data::documents(text);
    let tokenizer = tokenizer::learn(&documents, settings.vocab)?;
    let corpus = Corpus::new(&documents, &tokenizer, settings.sequence)?;
    let held_out = corpus.held_out(settings.sequence, VALIDATION_SEQUENCES);
    let mut trainer = Trainer::new(settings.clone())?;
    let mut output = Output::create(folder, settings, &tokenizer)?;

    let (layers, tokens_per_step) = (settings.layers, settings.batch * settings.sequence);
    let mut batch = Batch::new(settings.batch, settings.sequence);
    let mut data_rng = rng(settings.seed, Stream::Data);
    let mut means = Means::new(layers);
    let mut validations = vec![trainer.evaluate(&held_out)];
    log(&mut output, &trainer, &mut means, tokens_per_step, validations.last())?;
    for step in 1..=settings.steps {
        for (inputs, targets) in batch.sequences_mut() {
            corpus.draw(&mut data_rng, inputs, targets);
        }
        let report = trainer.step(&batch)?;
        means.add(&report);
        let progress = Progress {
            step,
            steps: settings.steps,
            tokens: step * tokens_per_step,
            loss: report.exits[layers - 1].unwrap_or(f64::NAN),
            validation: validations.last().map(|v| v.loss[layers - 1]),
        };
        let last = observe(&progress).is_break() || step == settings.steps;
        let validate = last || step % settings.validate_every == 0;
        if validate {
            validations.push(trainer.evaluate(&held_out));
        }
        if validate || step % LOG_EVERY == 0 {
            let validation = if validate { validations.last() } else { None };
            log(&mut output, &trainer, &mut means, tokens_per_step, validation)?;
        }
        if last || (settings.save_every > 0 && step % settings.save_every == 0) {
            output.save(&trainer.graph.layout, settings, &trainer.weights, &validations)?;
        }
        if last {
            break;
        }
    }
    Ok(validations.swap_remove(validations.len() - 1))
}

fn log(
    output: &mut Output,
    trainer: &Trainer,
    means: &mut Means,
    tokens_per_step: usize,
    validation: Option<&Validation>,
) -> Result<()> {
    let (loss, exits) = means.take();
    output.append(&LogLine {
        step: trainer.step,
        tokens: trainer.step * tokens_per_step,
        learning_rate: trainer.learning_rate(trainer.step.saturating_sub(1)),
        loss,
        exits: &exits,
        validation,
    })
}

/// Independent random streams of one seed.
enum Stream {
    Weights,
    Data,
    Dropout,
}

fn rng(seed: u64, stream: Stream) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream as u64);
    rng
}

/// The sequences of one step.
#[derive(Clone, Debug)]
pub struct Batch {
    inputs: Vec<u32>,
    targets: Vec<u32>,
    sequence: usize,
}

impl Batch {
    /// `batch` sequences of `sequence` tokens, all 0.
    pub fn new(batch: usize, sequence: usize) -> Self {
        Batch { inputs: vec![0; batch * sequence], targets: vec![0; batch * sequence], sequence }
    }

    /// Inputs of every sequence and the tokens after them, for filling in.
    pub fn sequences_mut(&mut self) -> impl Iterator<Item = (&mut [u32], &mut [u32])> {
        self.inputs.chunks_exact_mut(self.sequence).zip(self.targets.chunks_exact_mut(self.sequence))
    }

    /// Inputs and targets of sequence `i`.
    fn get(&self, i: usize) -> (&[u32], &[u32]) {
        let span = i * self.sequence..(i + 1) * self.sequence;
        (&self.inputs[span.clone()], &self.targets[span])
    }
}

/// What one step measured, before its update.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Σ_l ẽ(t, l)·CE_l, in nats a token: what the step minimises.
    pub loss: f64,
    /// Cross-entropy after each layer in nats a token; `None` where the curriculum trained no exit.
    pub exits: Vec<Option<f64>>,
    /// Euclidean norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// What the update measured of each tensor, in the order of [`Trainer::tensors`].
    pub tensors: Vec<Statistics>,
}

/// A weight of the checkpoint and its optimizer.
struct Tensor {
    name: String,
    adam: AdamW,
}

/// Weights, optimizer state and buffers of a run.
pub struct Trainer {
    settings: Settings,
    graph: Graph,
    weights: Vec<f32>,
    lanes: Vec<Lane>,
    /// In the order of the weights.
    tensors: Vec<Tensor>,
    dropout_rng: ChaCha8Rng,
    step: usize,
}

impl Trainer {
    /// Initial weights, and every buffer that the run will use.
    ///
    /// # Errors
    /// Those of [`Settings::check`]; [`Error::Capacity`] if there is no memory for the optimizer.
    pub fn new(settings: Settings) -> Result<Self> {
        settings.check()?;
        let graph = Graph::new(&settings);
        let mut tensors = graph.layout.tensors(&settings);
        tensors.sort_unstable_by_key(|tensor| tensor.range.start);
        let tensors = tensors.into_iter().map(|parameters::Tensor { name, range, .. }| {
            let decays = range.start < graph.layout.matrices;
            let weight_decay = if decays { settings.weight_decay } else { 0.0 };
            let settings = optimizer::Settings { weight_decay, ..optimizer::Settings::default() };
            Ok(Tensor { name, adam: AdamW::new(settings, range.len())? })
        });
        Ok(Trainer {
            tensors: tensors.collect::<Result<_>>()?,
            weights: graph.layout.initial(&mut rng(settings.seed, Stream::Weights)),
            lanes: (0..settings.lanes()).map(|_| Lane::new(&graph)).collect(),
            dropout_rng: rng(settings.seed, Stream::Dropout),
            step: 0,
            graph,
            settings,
        })
    }

    /// One optimizer step on `batch`.
    ///
    /// # Errors
    /// [`Error::Argument`] if the batch does not have the shape of the settings or holds a token outside the
    /// vocabulary, or if the gradient is not finite; the weights are then those before the step.
    pub fn step(&mut self, batch: &Batch) -> Result<StepReport> {
        let Settings { batch: sequences, sequence, vocab, .. } = self.settings;
        if batch.sequence != sequence || batch.inputs.len() != sequences * sequence {
            let reason = format!("must hold {sequences} sequences of {sequence} tokens, as the settings say");
            return Err(Error::argument("batch", reason));
        }
        if batch.inputs.iter().chain(&batch.targets).any(|&token| token as usize >= vocab) {
            return Err(Error::argument("batch", format!("holds a token that is not below {vocab}")));
        }
        let dropped = self.draw_dropout();
        let weights = self.exit_weights();
        let exits = self.gradient(batch, &dropped, &weights);
        let gradient_norm = self.reduce();
        if !gradient_norm.is_finite() {
            return Err(Error::argument(
                "--lr",
                format!(
                    "training diverged in step {}: the gradient is not finite; lower the learning rate",
                    self.step + 1
                ),
            ));
        }
        let clip = (f64::from(self.settings.clip) / gradient_norm).min(1.0) as f32;
        let rate = self.learning_rate(self.step);
        let updated = self.update(rate, clip)?;
        self.step += 1;
        let tokens = (sequences * sequence) as f64;
        Ok(StepReport {
            loss: exits.iter().zip(&weights).map(|(exit, weight)| exit.sum * weight).sum::<f64>() / tokens,
            exits: exits
                .iter()
                .zip(&weights)
                .map(|(exit, &w)| (w > 0.0).then_some(exit.sum / tokens))
                .collect(),
            gradient_norm,
            tensors: updated,
        })
    }

    /// Names of the weights, in the order of [`StepReport::tensors`].
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    /// Updates every tensor by the gradient in the first lane.
    fn update(&mut self, learning_rate: f32, gradient_scale: f32) -> Result<Vec<Statistics>> {
        let (mut weights, mut gradients) = (&mut self.weights[..], &self.lanes[0].gradient[..]);
        let mut parts = Vec::with_capacity(self.tensors.len());
        for Tensor { adam, .. } in &mut self.tensors {
            let len = adam.moments().0.len();
            let (part, rest) = weights.split_at_mut(len);
            let (gradient, others) = gradients.split_at(len);
            parts.push((adam, part, gradient));
            (weights, gradients) = (rest, others);
        }
        let parts = parts.into_par_iter();
        parts.map(|(adam, part, gradient)| adam.step(part, gradient, learning_rate, gradient_scale)).collect()
    }

    /// Cross-entropy and agreement at every exit over sequences of inputs and targets, without dropout.
    fn evaluate(&mut self, sequences: &[(Vec<u32>, Vec<u32>)]) -> Validation {
        let layers = self.settings.layers;
        let (graph, weights, dropped) = (&self.graph, &self.weights, vec![false; layers]);
        let lanes = self.lanes.len();
        let sums = self.lanes.par_iter_mut().enumerate().map(|(first, lane)| {
            let mut losses = vec![ExitLoss::default(); layers];
            for (inputs, targets) in sequences.iter().skip(first).step_by(lanes) {
                lane.evaluate(graph, weights, &Sample { inputs, targets, dropped: &dropped }, &mut losses);
            }
            losses
        });
        let sums = total(layers, sums.collect());
        let tokens: usize = sequences.iter().map(|(inputs, _)| inputs.len()).sum();
        Validation {
            step: self.step,
            loss: sums.iter().map(|exit| exit.sum / tokens as f64).collect(),
            agreement: sums.iter().map(|exit| exit.agreed as f64 / tokens as f64).collect(),
        }
    }

    /// Learning rate of step `step`, counted from 0.
    fn learning_rate(&self, step: usize) -> f32 {
        learning_rate(self.settings.learning_rate, step, self.settings.warm_up(), self.settings.steps)
    }

    /// ẽ(t, l) of the coming step.
    fn exit_weights(&self) -> Vec<f64> {
        let mut weights = vec![0.0; self.settings.layers];
        let Settings { exit_form, exit_scale, curriculum, steps, .. } = self.settings;
        exit_weights(&mut weights, exit_form, exit_scale, curriculum, self.step, steps);
        weights
    }

    /// Which layers each sample of the coming step skips, `[batch][layers]`.
    fn draw_dropout(&mut self) -> Vec<bool> {
        let Settings { layers, batch, dropout, steps, .. } = self.settings;
        let probability = |l| dropout_probability(dropout, l, layers, self.step, steps);
        let probabilities: Vec<f64> = (0..layers).map(probability).collect();
        let rng = &mut self.dropout_rng;
        (0..batch * layers).map(|i| parameters::uniform(rng) < probabilities[i % layers]).collect()
    }

    /// Leaves the gradient of the batch's mean loss in the lanes, each lane's share in its own; returns every
    /// exit's cross-entropy summed over the batch.
    fn gradient(&mut self, batch: &Batch, dropped: &[bool], exit_weights: &[f64]) -> Vec<ExitLoss> {
        let Settings { layers, batch: sequences, sequence, .. } = self.settings;
        let scale = 1.0 / (sequences * sequence) as f64;
        let (graph, weights, lanes) = (&self.graph, &self.weights, self.lanes.len());
        let sums = self.lanes.par_iter_mut().enumerate().map(|(first, lane)| {
            lane.gradient.fill(0.0);
            let mut losses = vec![ExitLoss::default(); layers];
            for i in (first..sequences).step_by(lanes) {
                let (inputs, targets) = batch.get(i);
                let sample = Sample { inputs, targets, dropped: &dropped[i * layers..][..layers] };
                lane.train(graph, weights, &sample, exit_weights, scale, &mut losses);
            }
            losses
        });
        total(layers, sums.collect())
    }

    /// Adds all lanes' gradients into the first lane's, in order; returns the norm of the sum.
    fn reduce(&mut self) -> f64 {
        let Some((first, others)) = self.lanes.split_first_mut() else { return 0.0 };
        let others = &*others;
        let squares = first.gradient.par_chunks_mut(CHUNK).enumerate().map(|(chunk, sum)| {
            for lane in others {
                let share = &lane.gradient[chunk * CHUNK..][..sum.len()];
                sum.iter_mut().zip(share).for_each(|(sum, share)| *sum += share);
            }
            f64::from(ops::dot(sum, sum))
        });
        squares.collect::<Vec<_>>().iter().sum::<f64>().sqrt()
    }
}

/// Sums the lanes' losses in order.
fn total(layers: usize, lanes: Vec<Vec<ExitLoss>>) -> Vec<ExitLoss> {
    let mut sums = vec![ExitLoss::default(); layers];
    for lane in lanes {
        for (sum, loss) in sums.iter_mut().zip(lane) {
            sum.sum += loss.sum;
            sum.agreed += loss.agreed;
        }
    }
    sums
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
}

#[cfg(test)]
mod tests;
