//! The Llama graph over one sequence, forward and backward, in preallocated buffers.
//!
//! Start from [`Lane`]: the activations and the gradient of the sequences that one lane works through.

use super::attention::{Attention, Work};
use super::matrix::{Matrix, MatrixMut, Update, multiply};
use super::objective::UNCOUNTED;
use super::ops::{self, RopeTable};
use super::parameters::Layout;
use crate::{backend::Angles, checkpoint::Config};

/// Rows whose logits are in memory at a time.
pub const LOGIT_ROWS: usize = 128;

/// What one layer keeps for its backward pass; rows are the sequence's tokens.
struct Activations {
    /// RMSNorm of the layer's input, `[rows, hidden]`, and 1/rms of every row.
    normed: Vec<f32>,
    rstd: Vec<f32>,
    /// q, k and v after RoPE.
    qkv: Vec<f32>,
    /// Heads' outputs before the output projection, `[rows, heads·head_dim]`.
    attended: Vec<f32>,
    /// LSE of the scores of each head, `[rows, heads]`.
    lse: Vec<f32>,
    /// Residual stream after attention, `[rows, hidden]`.
    middle: Vec<f32>,
    /// RMSNorm of `middle`, and 1/rms of every row.
    middle_normed: Vec<f32>,
    middle_rstd: Vec<f32>,
    /// gate and up projections, `[rows, 2·intermediate]`.
    gate_up: Vec<f32>,
    /// silu(gate)·up, `[rows, intermediate]`.
    gated: Vec<f32>,
}

/// What all lanes share and none changes during a step.
pub struct Graph {
    /// Where the weights lie.
    pub layout: Layout,
    /// Of each layer; all have the same shape.
    attention: Vec<Attention>,
    rope: RopeTable,
    hidden: usize,
    query: usize,
    intermediate: usize,
    vocab: usize,
    sequence: usize,
    eps: f32,
}

impl Graph {
    /// The graph of a model over sequences of up to `sequence` tokens.
    pub fn new(config: &Config, sequence: usize) -> Self {
        let Config { heads, kv_heads, head_dim, .. } = *config;
        let attention = config.masks.iter().map(|&mask| Attention { heads, kv_heads, head_dim, mask });
        Graph {
            layout: Layout::new(config),
            attention: attention.collect(),
            rope: RopeTable::new(&Angles::new(config, sequence), sequence),
            hidden: config.hidden,
            query: config.query_width(),
            intermediate: config.intermediate,
            vocab: config.vocab,
            sequence,
            eps: config.rms_norm_eps,
        }
    }
}

/// One sequence of a batch.
pub struct Sample<'a> {
    /// Input tokens.
    pub inputs: &'a [u32],
    /// The token that each row is to predict, or [`UNCOUNTED`].
    pub targets: &'a [u32],
    /// Whether each row begins a document, before which it and those after it do not look. The first row
    /// always does.
    pub begins: &'a [bool],
    /// Layers that this sample skips.
    pub dropped: &'a [bool],
}

impl Sample<'_> {
    /// Rows of each document.
    fn documents(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let mut start = 0;
        std::iter::from_fn(move || {
            if start == self.begins.len() {
                return None;
            }
            let rest = &self.begins[start + 1..];
            let end = start + 1 + rest.iter().position(|&begins| begins).unwrap_or(rest.len());
            let document = start..end;
            start = end;
            Some(document)
        })
    }
}

/// Cross-entropies of one exit over one sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ExitLoss {
    /// Sum over the rows, in nats.
    pub sum: f64,
    /// Rows whose most likely token is that of the last exit. Only [`Lane::evaluate`] counts them.
    pub agreed: usize,
}

/// Buffers for one sequence at a time and the gradient summed over those it has worked through.
pub struct Lane {
    /// ∂loss/∂weights, in the weights' layout.
    pub gradient: Vec<f32>,
    layers: Vec<Activations>,
    /// Residual stream before each layer and after the last: L + 1 times `[rows, hidden]`.
    residual: Vec<Vec<f32>>,
    /// Gradient of the residual stream.
    d_residual: Vec<f32>,
    /// Final norm of the exit at work, 1/rms, and the gradient of whichever norm is at work.
    exit_normed: Vec<f32>,
    exit_rstd: Vec<f32>,
    d_normed: Vec<f32>,
    d_attended: Vec<f32>,
    d_qkv: Vec<f32>,
    d_gate_up: Vec<f32>,
    d_gated: Vec<f32>,
    logits: Vec<f32>,
    /// Rows of the sample at work that have a target.
    counted: Vec<usize>,
    /// Most likely tokens of the last exit in those rows.
    choices: Vec<usize>,
    work: Work,
}

impl Lane {
    /// Allocates every buffer.
    pub fn new(graph: &Graph) -> Self {
        let rows = graph.sequence;
        let buffer = |width: usize| vec![0.0f32; rows * width];
        let Graph { hidden, query, intermediate, .. } = *graph;
        let qkv = graph.attention[0].projected();
        let activations = || Activations {
            normed: buffer(hidden),
            rstd: buffer(1),
            qkv: buffer(qkv),
            attended: buffer(query),
            lse: buffer(graph.attention[0].heads),
            middle: buffer(hidden),
            middle_normed: buffer(hidden),
            middle_rstd: buffer(1),
            gate_up: buffer(2 * intermediate),
            gated: buffer(intermediate),
        };
        let layers = graph.layout.layers.len();
        Lane {
            gradient: vec![0.0; graph.layout.len],
            layers: (0..layers).map(|_| activations()).collect(),
            residual: (0..=layers).map(|_| buffer(hidden)).collect(),
            d_residual: buffer(hidden),
            exit_normed: buffer(hidden),
            exit_rstd: buffer(1),
            d_normed: buffer(hidden),
            d_attended: buffer(query),
            d_qkv: buffer(qkv),
            d_gate_up: buffer(2 * intermediate),
            d_gated: buffer(intermediate),
            logits: vec![0.0; LOGIT_ROWS.min(rows) * graph.vocab],
            counted: Vec::with_capacity(rows),
            choices: vec![0; rows],
            work: Work::new(&graph.attention[0], rows),
        }
    }

    /// Residual streams of `sample` at every exit.
    fn forward(&mut self, graph: &Graph, weights: &[f32], sample: &Sample<'_>) {
        let (rows, hidden) = (sample.inputs.len(), graph.hidden);
        let embedding = &weights[graph.layout.embedding.clone()];
        for (row, &token) in self.residual[0].chunks_exact_mut(hidden).zip(sample.inputs) {
            row.copy_from_slice(&embedding[token as usize * hidden..][..hidden]);
        }
        for (l, layer) in graph.layout.layers.iter().enumerate() {
            let (before, after) = self.residual.split_at_mut(l + 1);
            let (x, next) = (&before[l][..rows * hidden], &mut after[0][..rows * hidden]);
            if sample.dropped[l] {
                next.copy_from_slice(x);
                continue;
            }
            let a = &mut self.layers[l];
            let Graph { query, intermediate, eps, .. } = *graph;
            ops::rms_norm(&mut a.normed, &mut a.rstd, x, &weights[layer.input_norm.clone()], eps);
            linear(Update::Set, &mut a.qkv, &a.normed, &weights[layer.qkv.clone()], rows, hidden);
            let attention = &graph.attention[l];
            let projected = attention.projected();
            let qkv = &mut a.qkv[..rows * projected];
            add_bias(qkv, &weights[layer.qkv_bias.clone()]);
            let turned = attention.heads + attention.kv_heads;
            for rows in sample.documents() {
                let qkv = &mut qkv[rows.start * projected..rows.end * projected];
                graph.rope.rotate(qkv, projected, turned, false);
                let attended = &mut a.attended[rows.start * query..];
                let lse = &mut a.lse[rows.start * attention.heads..];
                attention.forward(attended, lse, qkv, rows.len(), &mut self.work);
            }
            let middle = &mut a.middle[..rows * hidden];
            middle.copy_from_slice(x);
            linear(Update::Add, middle, &a.attended, &weights[layer.output.clone()], rows, query);
            add_bias(middle, &weights[layer.output_bias.clone()]);
            let post_norm = &weights[layer.post_norm.clone()];
            ops::rms_norm(&mut a.middle_normed, &mut a.middle_rstd, middle, post_norm, eps);
            let gate_up = &mut a.gate_up[..rows * 2 * intermediate];
            let weight = &weights[layer.gate_up.clone()];
            linear(Update::Set, gate_up, &a.middle_normed, weight, rows, hidden);
            add_bias(gate_up, &weights[layer.gate_up_bias.clone()]);
            ops::swiglu(&mut a.gated, gate_up, intermediate);
            next.copy_from_slice(middle);
            linear(Update::Add, next, &a.gated, &weights[layer.down.clone()], rows, intermediate);
            add_bias(next, &weights[layer.down_bias.clone()]);
        }
    }

    /// Runs `sample` forward and backward, adds `scale · ∂(Σ_l exit_weights[l]·CE_l)/∂weights` to the gradient
    /// and each trained exit's cross-entropies, unweighted, to `losses`. Untrained exits cost nothing.
    pub fn train(
        &mut self,
        graph: &Graph,
        weights: &[f32],
        sample: &Sample<'_>,
        exit_weights: &[f64],
        scale: f64,
        losses: &mut [ExitLoss],
    ) {
        self.forward(graph, weights, sample);
        self.count(sample.targets);
        let rows = sample.inputs.len();
        self.d_residual[..rows * graph.hidden].fill(0.0);
        for l in (0..graph.layout.layers.len()).rev() {
            if exit_weights[l] > 0.0 {
                let gradient_scale = (exit_weights[l] * scale) as f32;
                losses[l].sum += self.exit_backward(graph, weights, sample.targets, l, gradient_scale);
            }
            if !sample.dropped[l] {
                self.block_backward(graph, weights, sample, l);
            }
        }
        let d_embedding = &mut self.gradient[graph.layout.embedding.clone()];
        for (d_row, &token) in self.d_residual.chunks_exact(graph.hidden).zip(sample.inputs) {
            add(&mut d_embedding[token as usize * graph.hidden..][..graph.hidden], d_row);
        }
    }

    /// Cross-entropy of every exit over `sample`, added to `losses`, with the rows that agree with the last.
    pub fn evaluate(&mut self, graph: &Graph, weights: &[f32], sample: &Sample<'_>, losses: &mut [ExitLoss]) {
        self.forward(graph, weights, sample);
        self.count(sample.targets);
        let last = graph.layout.layers.len() - 1;
        for l in (0..=last).rev() {
            self.exit_norm(graph, weights, l);
            for first in (0..self.counted.len()).step_by(LOGIT_ROWS) {
                let count = LOGIT_ROWS.min(self.counted.len() - first);
                self.exit_logits(graph, weights, first, count);
                for (i, logits) in self.logits.chunks_exact_mut(graph.vocab).take(count).enumerate() {
                    let top = ops::max(logits);
                    if l == last {
                        // A NaN equals nothing; it shows in the loss.
                        self.choices[first + i] = logits.iter().position(|&x| x == top).unwrap_or(0);
                    }
                    losses[l].agreed += usize::from(logits[self.choices[first + i]] == top);
                    let target = sample.targets[self.counted[first + i]];
                    let logit = f64::from(logits[target as usize]);
                    let (top, sum) = ops::exp_shifted(logits);
                    losses[l].sum += f64::from(sum).ln() + f64::from(top) - logit;
                }
            }
        }
    }

    /// Finds the rows that have a target.
    fn count(&mut self, targets: &[u32]) {
        self.counted.clear();
        self.counted.extend((0..targets.len()).filter(|&row| targets[row] != UNCOUNTED));
    }

    /// The final norm of the residual stream after layer `l`, of the rows that have a target.
    fn exit_norm(&mut self, graph: &Graph, weights: &[f32], l: usize) {
        let hidden = graph.hidden;
        let weight = &weights[graph.layout.norm.clone()];
        let outs = self.exit_normed.chunks_exact_mut(hidden).zip(&mut self.exit_rstd);
        for ((out, rstd), &row) in outs.zip(&self.counted) {
            let x = &self.residual[l + 1][row * hidden..][..hidden];
            ops::rms_norm(out, std::slice::from_mut(rstd), x, weight, graph.eps);
        }
    }

    /// Logits of `count` rows with a target, from the `first`-th of them on.
    fn exit_logits(&mut self, graph: &Graph, weights: &[f32], first: usize, count: usize) {
        let normed = &self.exit_normed[first * graph.hidden..];
        let head = &weights[graph.layout.head.clone()];
        linear(Update::Set, &mut self.logits, normed, head, count, graph.hidden);
    }

    /// Head and cross-entropy of the exit after layer `l`, forward and backward: adds this exit's share to
    /// `d_residual`, times `scale`, and returns the sum of the rows' cross-entropies.
    fn exit_backward(
        &mut self,
        graph: &Graph,
        weights: &[f32],
        targets: &[u32],
        l: usize,
        scale: f32,
    ) -> f64 {
        let (hidden, vocab) = (graph.hidden, graph.vocab);
        let head = &weights[graph.layout.head.clone()];
        self.exit_norm(graph, weights, l);
        let mut loss = 0.0;
        for first in (0..self.counted.len()).step_by(LOGIT_ROWS) {
            let count = LOGIT_ROWS.min(self.counted.len() - first);
            self.exit_logits(graph, weights, first, count);
            let rows = &self.counted[first..][..count];
            for (logits, &row) in self.logits.chunks_exact_mut(vocab).zip(rows) {
                let target = targets[row];
                let logit = f64::from(logits[target as usize]);
                let (top, sum) = ops::exp_shifted(logits);
                loss += f64::from(sum).ln() + f64::from(top) - logit;
                // ∂CE/∂logits = p − onehot(target)
                let scale_by_sum = scale / sum;
                logits.iter_mut().for_each(|value| *value *= scale_by_sum);
                logits[target as usize] -= scale;
            }
            let d_logits = Matrix::new(&self.logits, count, vocab);
            let span = first * hidden..(first + count) * hidden;
            multiply(
                Update::Set,
                MatrixMut::new(&mut self.d_normed[span.clone()], count, hidden),
                1.0,
                d_logits,
                Matrix::new(head, vocab, hidden),
            );
            multiply(
                Update::Add,
                MatrixMut::new(&mut self.gradient[graph.layout.head.clone()], vocab, hidden),
                1.0,
                d_logits.transposed(),
                Matrix::new(&self.exit_normed[span], count, hidden),
            );
        }
        let norm = graph.layout.norm.clone();
        let d_rows = self.d_normed.chunks_exact(hidden).zip(&self.exit_rstd);
        for ((d_normed, rstd), &row) in d_rows.zip(&self.counted) {
            let place = row * hidden..(row + 1) * hidden;
            ops::rms_norm_backward(
                &mut self.d_residual[place.clone()],
                &mut self.gradient[norm.clone()],
                d_normed,
                &self.residual[l + 1][place],
                std::slice::from_ref(rstd),
                &weights[norm.clone()],
            );
        }
        loss
    }

    /// Backward of layer `l`: `d_residual` goes from its output to its input.
    fn block_backward(&mut self, graph: &Graph, weights: &[f32], sample: &Sample<'_>, l: usize) {
        let Graph { hidden, query, intermediate, .. } = *graph;
        let rows = sample.inputs.len();
        let (layer, a) = (&graph.layout.layers[l], &self.layers[l]);
        let dx = &mut self.d_residual[..rows * hidden];
        let gradient = &mut self.gradient;

        // Feed-forward block.
        let down = layer.down.clone();
        let d_down = &mut gradient[down.clone()];
        linear_backward(&mut self.d_gated, d_down, dx, &a.gated, &weights[down], rows, intermediate);
        bias_backward(&mut gradient[layer.down_bias.clone()], dx);
        let d_gate_up = &mut self.d_gate_up[..rows * 2 * intermediate];
        ops::swiglu_backward(d_gate_up, &self.d_gated, &a.gate_up[..rows * 2 * intermediate], intermediate);
        let range = layer.gate_up.clone();
        let d_weight = &mut gradient[range.clone()];
        let normed = &a.middle_normed;
        linear_backward(&mut self.d_normed, d_weight, d_gate_up, normed, &weights[range], rows, hidden);
        bias_backward(&mut gradient[layer.gate_up_bias.clone()], d_gate_up);
        let norm = layer.post_norm.clone();
        let d_norm = &mut gradient[norm.clone()];
        ops::rms_norm_backward(dx, d_norm, &self.d_normed, &a.middle, &a.middle_rstd, &weights[norm]);

        // Attention.
        let range = layer.output.clone();
        let d_weight = &mut gradient[range.clone()];
        linear_backward(&mut self.d_attended, d_weight, dx, &a.attended, &weights[range], rows, query);
        bias_backward(&mut gradient[layer.output_bias.clone()], dx);
        let attention = &graph.attention[l];
        let projected = attention.projected();
        let turned = attention.heads + attention.kv_heads;
        let d_qkv = &mut self.d_qkv[..rows * projected];
        for rows in sample.documents() {
            let span = rows.start * projected..rows.end * projected;
            let d_qkv = &mut d_qkv[span.clone()];
            let d_attended = &self.d_attended[rows.start * query..];
            let (attended, lse) = (&a.attended[rows.start * query..], &a.lse[rows.start * attention.heads..]);
            attention.backward(d_qkv, d_attended, attended, lse, &a.qkv[span], rows.len(), &mut self.work);
            graph.rope.rotate(d_qkv, projected, turned, true);
        }
        let range = layer.qkv.clone();
        let d_weight = &mut gradient[range.clone()];
        linear_backward(&mut self.d_normed, d_weight, d_qkv, &a.normed, &weights[range], rows, hidden);
        bias_backward(&mut gradient[layer.qkv_bias.clone()], d_qkv);
        let norm = layer.input_norm.clone();
        let d_norm = &mut gradient[norm.clone()];
        ops::rms_norm_backward(dx, d_norm, &self.d_normed, &self.residual[l], &a.rstd, &weights[norm]);
    }
}

/// Adds `bias`, unless it is empty, to every row.
fn add_bias(rows: &mut [f32], bias: &[f32]) {
    if !bias.is_empty() {
        rows.chunks_exact_mut(bias.len()).for_each(|row| add(row, bias));
    }
}

/// Backward of [`add_bias`]: adds the rows of `d_rows` to `d_bias`.
fn bias_backward(d_bias: &mut [f32], d_rows: &[f32]) {
    if !d_bias.is_empty() {
        d_rows.chunks_exact(d_bias.len()).for_each(|row| add(d_bias, row));
    }
}

/// `out (+)= x · weightᵀ` for `rows` rows of `x`, `inner` wide; `weight` is `[out, inner]`.
fn linear(update: Update, out: &mut [f32], x: &[f32], weight: &[f32], rows: usize, inner: usize) {
    let width = weight.len() / inner;
    let weight = Matrix::new(weight, width, inner).transposed();
    multiply(update, MatrixMut::new(out, rows, width), 1.0, Matrix::new(x, rows, inner), weight);
}

/// Backward of [`linear`]: sets `d_x = d_out · weight` and adds `d_outᵀ · x` to `d_weight`.
fn linear_backward(
    d_x: &mut [f32],
    d_weight: &mut [f32],
    d_out: &[f32],
    x: &[f32],
    weight: &[f32],
    rows: usize,
    inner: usize,
) {
    let width = weight.len() / inner;
    let d_out = Matrix::new(d_out, rows, width);
    multiply(Update::Set, MatrixMut::new(d_x, rows, inner), 1.0, d_out, Matrix::new(weight, width, inner));
    let x = Matrix::new(x, rows, inner);
    multiply(Update::Add, MatrixMut::new(d_weight, width, inner), 1.0, d_out.transposed(), x);
}

fn add(sum: &mut [f32], values: &[f32]) {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}
