//! One optimizer step and what it needs: weights, moments, and the lanes that gradients are summed in.

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rayon::prelude::*;

use super::{
    CHUNK, Validation,
    model::{ExitLoss, Graph, Lane, Sample},
    monitor::{Event, Verdict, Watch},
    objective::UNCOUNTED,
    ops, parameters,
    schedule::{dropout_probability, exit_weights, learning_rate},
    settings::Settings,
    source,
};
use crate::{
    Error, Result,
    checkpoint::Config,
    optimizer::{self, AdamW, Statistics},
};

/// Independent random streams of one seed.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    Weights,
    Data,
    Dropout,
}

pub(super) fn rng(seed: u64, stream: Stream) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream as u64);
    rng
}

/// The sequences of one step.
#[derive(Clone, Debug)]
pub struct Batch {
    pub(super) inputs: Vec<u32>,
    pub(super) targets: Vec<u32>,
    pub(super) begins: Vec<bool>,
    pub(super) sequence: usize,
}

/// One sequence of a batch, for filling in.
pub struct Sequence<'a> {
    /// Input tokens.
    pub inputs: &'a mut [u32],
    /// The token that each row is to predict; [`UNCOUNTED`] where there is none.
    pub targets: &'a mut [u32],
    /// Whether a row begins a document of its own, which sees nothing of those before it and has its positions
    /// counted from 0. The first row always does.
    pub begins: &'a mut [bool],
}

impl Batch {
    /// `batch` sequences of `sequence` tokens, all 0, each one document.
    pub fn new(batch: usize, sequence: usize) -> Self {
        let tokens = batch * sequence;
        let begins = (0..tokens).map(|row| row % sequence == 0).collect();
        Batch { inputs: vec![0; tokens], targets: vec![0; tokens], begins, sequence }
    }

    /// Every sequence, for filling in.
    pub fn sequences_mut(&mut self) -> impl Iterator<Item = Sequence<'_>> {
        let inputs = self.inputs.chunks_exact_mut(self.sequence);
        let targets = self.targets.chunks_exact_mut(self.sequence);
        let begins = self.begins.chunks_exact_mut(self.sequence);
        let all = inputs.zip(targets).zip(begins);
        all.map(|((inputs, targets), begins)| Sequence { inputs, targets, begins })
    }

    /// All sequences, `times` times over.
    pub(super) fn repeated(self, times: usize) -> Self {
        Batch {
            inputs: self.inputs.repeat(times),
            targets: self.targets.repeat(times),
            begins: self.begins.repeat(times),
            sequence: self.sequence,
        }
    }

    /// Rows that have a target.
    pub(super) fn counted(&self) -> usize {
        self.targets.iter().filter(|&&target| target != UNCOUNTED).count()
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.inputs.len() / self.sequence
    }

    /// Whether it has no sequence.
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    /// Sequence `i`, whose layers `dropped` are skipped.
    fn sample<'a>(&'a self, i: usize, dropped: &'a [bool]) -> Sample<'a> {
        let span = i * self.sequence..(i + 1) * self.sequence;
        Sample {
            inputs: &self.inputs[span.clone()],
            targets: &self.targets[span.clone()],
            begins: &self.begins[span],
            dropped,
        }
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
    /// Whether the update was left out ([`Mitigation::Skip`](super::Mitigation::Skip)).
    pub skipped: bool,
    /// Alarms that tensors had not had for a while, and what followed from them.
    pub events: Vec<Event>,
}

/// A weight of the checkpoint and its optimizer.
pub(super) struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub adam: AdamW,
}

/// Weights, optimizer state and buffers of a run.
pub struct Trainer {
    pub(super) settings: Settings,
    pub(super) config: Config,
    pub(super) graph: Graph,
    pub(super) weights: Vec<f32>,
    pub(super) lanes: Vec<Lane>,
    /// In the order of the weights.
    pub(super) tensors: Vec<Tensor>,
    pub(super) watch: Watch,
    pub(super) dropout_rng: ChaCha8Rng,
    pub(super) step: usize,
    /// Learning rate of the last step; of the first one before it.
    pub(super) rate: f32,
}

impl Trainer {
    /// Initial weights, or those of [`Settings::from`], and every buffer that the run will use.
    ///
    /// # Errors
    /// Those of [`Settings::check`] and, where a model is trained further, of opening it; [`Error::Capacity`] if
    /// there is no memory.
    pub fn new(settings: Settings) -> Result<Self> {
        settings.check()?;
        match &settings.from {
            None => Self::with_config(source::config(&settings)?, settings, None),
            Some(dir) => {
                let source = source::Source::open(dir, &settings)?;
                let weights = source.weights(dir)?;
                Self::with_config(source.config, settings, Some(weights))
            }
        }
    }

    /// A trainer of the model `config`; from initial weights, unless there are others.
    pub(super) fn with_config(config: Config, settings: Settings, weights: Option<Vec<f32>>) -> Result<Self> {
        let graph = Graph::new(&config, settings.sequence);
        let layout = &graph.layout;
        let weights = weights.unwrap_or_else(|| layout.initial(&mut rng(settings.seed, Stream::Weights)));
        let mut names = Vec::new();
        let tensors = layout.tensors(&config).into_iter().map(|parameters::Tensor { name, shape, range }| {
            let matrix = range.start < layout.matrices;
            names.push((name.clone(), matrix));
            let weight_decay = if matrix { settings.weight_decay } else { 0.0 };
            let adam = optimizer::Settings { weight_decay, ..settings.adam() };
            Ok(Tensor { name, shape, adam: AdamW::new(adam, range.len())? })
        });
        let tensors = tensors.collect::<Result<_>>()?;
        Ok(Trainer {
            tensors,
            watch: Watch::new(&names, config.layers, config.tied, settings.epsilon, settings.on_alarm),
            weights,
            lanes: (0..settings.lanes()).map(|_| Lane::new(&graph)).collect(),
            dropout_rng: rng(settings.seed, Stream::Dropout),
            step: 0,
            rate: learning_rate(settings.learning_rate, 0, settings.warm_up(), settings.steps),
            graph,
            config,
            settings,
        })
    }

    /// One optimizer step on `batch`.
    ///
    /// # Errors
    /// [`Error::Argument`] if the batch does not have the shape of the settings or holds a token outside the
    /// vocabulary, or if the gradient is not finite; the weights are then those before the step.
    pub fn step(&mut self, batch: &Batch) -> Result<StepReport> {
        let report = self.backward(batch)?;
        let clip = (f64::from(self.settings.clip) / report.gradient_norm).min(1.0) as f32;
        let (tensors, skipped, events) = self.watched_update(clip)?;
        self.step += 1;
        Ok(StepReport { tensors, skipped, events, ..report })
    }

    /// What [`Trainer::step`] does before its update: `batch` forward and backward, with the dropout and the exits of
    /// the coming step. Leaves the weights as they are; the report has no tensors and no events.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn backward(&mut self, batch: &Batch) -> Result<StepReport> {
        let Settings { sequence, vocab, .. } = self.settings;
        let sequences = self.settings.sequences();
        if batch.sequence != sequence || batch.inputs.len() != sequences * sequence {
            let reason = format!("must hold {sequences} sequences of {sequence} tokens, as the settings say");
            return Err(Error::argument("batch", reason));
        }
        let targets = batch.targets.iter().filter(|&&target| target != UNCOUNTED);
        if batch.inputs.iter().chain(targets).any(|&token| token as usize >= vocab) {
            return Err(Error::argument("batch", format!("holds a token that is not below {vocab}")));
        }
        let counted = batch.counted() as f64;
        if counted == 0.0 {
            return Err(Error::argument("batch", "has no target in any row"));
        }
        if batch.begins.iter().step_by(sequence).any(|&begins| !begins) {
            return Err(Error::argument("batch", "has a sequence whose first row begins no document"));
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
        Ok(StepReport {
            loss: exits.iter().zip(&weights).map(|(exit, weight)| exit.sum * weight).sum::<f64>() / counted,
            exits: exits
                .iter()
                .zip(&weights)
                .map(|(exit, &w)| (w > 0.0).then_some(exit.sum / counted))
                .collect(),
            gradient_norm,
            tensors: Vec::new(),
            skipped: false,
            events: Vec::new(),
        })
    }

    /// Names of the weights, in the order of [`StepReport::tensors`].
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    /// Updates every tensor by the gradient in the first lane, unless the monitor says to leave that out.
    fn watched_update(&mut self, clip: f32) -> Result<(Vec<Statistics>, bool, Vec<Event>)> {
        let rate = self.learning_rate(self.step);
        self.rate = rate;
        let first = self.watch.measures_first();
        let mut statistics = self.update(rate, clip, first)?;
        let mut events = Vec::new();
        let adam = &self.tensors[0].adam;
        let (t, settings) = (adam.steps() + u32::from(first), *adam.settings());
        let Verdict { skip, new_epsilon } =
            self.watch.observe(self.step + 1, t, &settings, &statistics, &mut events);
        if first && !skip {
            statistics = self.update(rate, clip, false)?;
        }
        if new_epsilon {
            self.set_epsilon(self.watch.epsilon())?;
        }
        Ok((statistics, skip, events))
    }

    /// Gives every tensor another ε from the next step on.
    pub(super) fn set_epsilon(&mut self, epsilon: f32) -> Result<()> {
        self.tensors.iter_mut().try_for_each(|tensor| {
            let settings = optimizer::Settings { epsilon, ..*tensor.adam.settings() };
            tensor.adam.set_settings(settings)
        })
    }

    /// Updates every tensor by the gradient in the first lane; or, if `dry`, measures what that would be.
    fn update(&mut self, learning_rate: f32, gradient_scale: f32, dry: bool) -> Result<Vec<Statistics>> {
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
        parts
            .map(|(adam, part, gradient)| match dry {
                true => adam.measure(part, gradient, learning_rate, gradient_scale),
                false => adam.step(part, gradient, learning_rate, gradient_scale),
            })
            .collect()
    }

    /// Cross-entropy and agreement at every exit over all sequences of `batch`, without dropout.
    pub fn evaluate(&mut self, batch: &Batch) -> Validation {
        let layers = self.config.layers;
        let (graph, weights, dropped) = (&self.graph, &self.weights, vec![false; layers]);
        let lanes = self.lanes.len();
        let sums = self.lanes.par_iter_mut().enumerate().map(|(first, lane)| {
            let mut losses = vec![ExitLoss::default(); layers];
            for i in (first..batch.len()).step_by(lanes) {
                lane.evaluate(graph, weights, &batch.sample(i, &dropped), &mut losses);
            }
            losses
        });
        let sums = total(layers, sums.collect());
        let tokens = batch.counted() as f64;
        Validation {
            step: self.step,
            loss: sums.iter().map(|exit| exit.sum / tokens).collect(),
            agreement: sums.iter().map(|exit| exit.agreed as f64 / tokens).collect(),
        }
    }

    /// Learning rate of step `step`, counted from 0.
    pub(super) fn learning_rate(&self, step: usize) -> f32 {
        let Settings { learning_rate: peak, steps, .. } = self.settings;
        self.watch.rate() * learning_rate(peak, step, self.settings.warm_up(), steps)
    }

    /// ẽ(t, l) of the coming step.
    fn exit_weights(&self) -> Vec<f64> {
        let mut weights = vec![0.0; self.config.layers];
        let Settings { exit_form, exit_scale, curriculum, steps, .. } = self.settings;
        exit_weights(&mut weights, exit_form, exit_scale, curriculum, self.step, steps);
        weights
    }

    /// Which layers each sample of the coming step skips, `[sequences][layers]`.
    pub(super) fn draw_dropout(&mut self) -> Vec<bool> {
        let Settings { layers, dropout, steps, .. } = self.settings;
        let growth = self.settings.dropout_growth();
        let probability = |l| dropout_probability(dropout, growth, l, layers, self.step, steps);
        let probabilities: Vec<f64> = (0..layers).map(probability).collect();
        let (rng, count) = (&mut self.dropout_rng, self.settings.sequences() * layers);
        (0..count).map(|i| parameters::uniform(rng) < probabilities[i % layers]).collect()
    }

    /// Leaves the gradient of the batch's mean loss in the lanes, each lane's share in its own; returns every
    /// exit's cross-entropy summed over the batch.
    pub(super) fn gradient(
        &mut self,
        batch: &Batch,
        dropped: &[bool],
        exit_weights: &[f64],
    ) -> Vec<ExitLoss> {
        let layers = self.config.layers;
        let sequences = batch.len();
        let scale = 1.0 / batch.counted() as f64;
        let (graph, weights, lanes) = (&self.graph, &self.weights, self.lanes.len());
        // Micro-batch follows micro-batch within each lane.
        let sums = self.lanes.par_iter_mut().enumerate().map(|(first, lane)| {
            lane.gradient.fill(0.0);
            let mut losses = vec![ExitLoss::default(); layers];
            for i in (first..sequences).step_by(lanes) {
                let sample = batch.sample(i, &dropped[i * layers..][..layers]);
                lane.train(graph, weights, &sample, exit_weights, scale, &mut losses);
            }
            losses
        });
        total(layers, sums.collect())
    }

    /// Adds all lanes' gradients into the first lane's, in order; returns the norm of the sum.
    pub(super) fn reduce(&mut self) -> f64 {
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
