//! The Llama graph over one sequence, forward and backward, in preallocated buffers.
//!
//! Start from [`Lane`]: the activations and the gradient of the sequences that one lane works through.

use super::attention::{Attention, Work};
use super::matrix::{Matrix, MatrixMut, Update, multiply};
use super::ops::{self, RopeTable};
use super::parameters::Layout;
use super::settings::Settings;

/// Rows whose logits are in memory at a time.
const LOGIT_ROWS: usize = 128;

/// What one layer keeps for its backward pass; rows are the sequence's tokens.
struct Activations {
    /// RMSNorm of the layer's input, `[rows, hidden]`, and 1/rms of every row.
    normed: Vec<f32>,
    rstd: Vec<f32>,
    /// q, k and v after RoPE.
    qkv: Vec<f32>,
    /// Heads' outputs before the output projection, `[rows, hidden]`.
    attended: Vec<f32>,
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
    attention: Attention,
    rope: RopeTable,
    hidden: usize,
    intermediate: usize,
    vocab: usize,
    sequence: usize,
}

impl Graph {
    /// The graph of `settings`, which must have passed [`Settings::check`].
    pub fn new(settings: &Settings) -> Self {
        let attention = Attention {
            heads: settings.heads,
            kv_heads: settings.kv_heads,
            head_dim: settings.head_dim(),
            mask: settings.attention,
        };
        Graph {
            layout: Layout::new(settings),
            attention,
            rope: RopeTable::new(settings.sequence, settings.head_dim(), Settings::ROPE_THETA),
            hidden: settings.hidden,
            intermediate: settings.intermediate,
            vocab: settings.vocab,
            sequence: settings.sequence,
        }
    }
}

/// One sequence of a batch.
pub struct Sample<'a> {
    /// Input tokens.
    pub inputs: &'a [u32],
    /// The token after each input.
    pub targets: &'a [u32],
    /// Layers that this sample skips.
    pub dropped: &'a [bool],
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
    /// Most likely tokens of the last exit.
    choices: Vec<usize>,
    work: Work,
}

impl Lane {
    /// Allocates every buffer.
    pub fn new(graph: &Graph) -> Self {
        let rows = graph.sequence;
        let buffer = |width: usize| vec![0.0f32; rows * width];
        let (hidden, intermediate, qkv) = (graph.hidden, graph.intermediate, graph.attention.projected());
        let activations = || Activations {
            normed: buffer(hidden),
            rstd: buffer(1),
            qkv: buffer(qkv),
            attended: buffer(hidden),
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
            d_attended: buffer(hidden),
            d_qkv: buffer(qkv),
            d_gate_up: buffer(2 * intermediate),
            d_gated: buffer(intermediate),
            logits: vec![0.0; LOGIT_ROWS.min(rows) * graph.vocab],
            choices: vec![0; rows],
            work: Work::new(rows),
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
            let eps = Settings::RMS_NORM_EPS as f32;
            ops::rms_norm(&mut a.normed, &mut a.rstd, x, &weights[layer.input_norm.clone()], eps);
            linear(Update::Set, &mut a.qkv, &a.normed, &weights[layer.qkv.clone()], rows, hidden);
            let attention = &graph.attention;
            let turned = attention.heads + attention.kv_heads;
            graph.rope.rotate(
                &mut a.qkv[..rows * attention.projected()],
                attention.projected(),
                turned,
                false,
            );
            attention.forward(&mut a.attended, &a.qkv, rows, &mut self.work);
            a.middle[..rows * hidden].copy_from_slice(x);
            linear(Update::Add, &mut a.middle, &a.attended, &weights[layer.output.clone()], rows, hidden);
            let post_norm = &weights[layer.post_norm.clone()];
            let middle = &a.middle[..rows * hidden];
            ops::rms_norm(&mut a.middle_normed, &mut a.middle_rstd, middle, post_norm, eps);
            linear(
                Update::Set,
                &mut a.gate_up,
                &a.middle_normed,
                &weights[layer.gate_up.clone()],
                rows,
                hidden,
            );
            let intermediate = graph.intermediate;
            ops::swiglu(&mut a.gated, &a.gate_up[..rows * 2 * intermediate], intermediate);
            next.copy_from_slice(middle);
            linear(Update::Add, next, &a.gated, &weights[layer.down.clone()], rows, intermediate);
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
        let rows = sample.inputs.len();
        self.d_residual[..rows * graph.hidden].fill(0.0);
        for l in (0..graph.layout.layers.len()).rev() {
            if exit_weights[l] > 0.0 {
                let gradient_scale = (exit_weights[l] * scale) as f32;
                losses[l].sum += self.exit_backward(graph, weights, sample.targets, l, gradient_scale);
            }
            if !sample.dropped[l] {
                self.block_backward(graph, weights, l, rows);
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
        let last = graph.layout.layers.len() - 1;
        for l in (0..=last).rev() {
            self.exit_norm(graph, weights, l, sample.targets.len());
            for (block, targets) in sample.targets.chunks(LOGIT_ROWS).enumerate() {
                let first = block * LOGIT_ROWS;
                self.exit_logits(graph, weights, first, targets.len());
                for (i, logits) in self.logits.chunks_exact_mut(graph.vocab).take(targets.len()).enumerate() {
                    let top = ops::max(logits);
                    if l == last {
                        // A NaN equals nothing; it shows in the loss.
                        self.choices[first + i] = logits.iter().position(|&x| x == top).unwrap_or(0);
                    }
                    losses[l].agreed += usize::from(logits[self.choices[first + i]] == top);
                    let logit = f64::from(logits[targets[i] as usize]);
                    let (top, sum) = ops::exp_shifted(logits);
                    losses[l].sum += f64::from(sum).ln() + f64::from(top) - logit;
                }
            }
        }
    }

    /// The final norm of the residual stream after layer `l`.
    fn exit_norm(&mut self, graph: &Graph, weights: &[f32], l: usize, rows: usize) {
        let x = &self.residual[l + 1][..rows * graph.hidden];
        let weight = &weights[graph.layout.norm.clone()];
        ops::rms_norm(&mut self.exit_normed, &mut self.exit_rstd, x, weight, Settings::RMS_NORM_EPS as f32);
    }

    /// Logits of `count` rows from `first` on.
    fn exit_logits(&mut self, graph: &Graph, weights: &[f32], first: usize, count: usize) {
        let normed = &self.exit_normed[first * graph.hidden..];
        let embedding = &weights[graph.layout.embedding.clone()];
        linear(Update::Set, &mut self.logits, normed, embedding, count, graph.hidden);
    }

    /// Head and cross-entropy of the exit after layer `l`, forward and backward: sets this exit's share in
    /// `d_residual`, times `scale`, and returns the sum of the rows' cross-entropies.
    fn exit_backward(
        &mut self,
        graph: &Graph,
        weights: &[f32],
        targets: &[u32],
        l: usize,
        scale: f32,
    ) -> f64 {
        let (rows, hidden, vocab) = (targets.len(), graph.hidden, graph.vocab);
        let embedding = &weights[graph.layout.embedding.clone()];
        self.exit_norm(graph, weights, l, rows);
        let mut loss = 0.0;
        for (block, targets) in targets.chunks(LOGIT_ROWS).enumerate() {
            let (first, count) = (block * LOGIT_ROWS, targets.len());
            self.exit_logits(graph, weights, first, count);
            for (logits, &target) in self.logits.chunks_exact_mut(vocab).zip(targets) {
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
                Matrix::new(embedding, vocab, hidden),
            );
            multiply(
                Update::Add,
                MatrixMut::new(&mut self.gradient[graph.layout.embedding.clone()], vocab, hidden),
                1.0,
                d_logits.transposed(),
                Matrix::new(&self.exit_normed[span], count, hidden),
            );
        }
        let norm = graph.layout.norm.clone();
        ops::rms_norm_backward(
            &mut self.d_residual[..rows * hidden],
            &mut self.gradient[norm.clone()],
            &self.d_normed,
            &self.residual[l + 1],
            &self.exit_rstd,
            &weights[norm],
        );
        loss
    }

    /// Backward of layer `l`: `d_residual` goes from its output to its input.
    fn block_backward(&mut self, graph: &Graph, weights: &[f32], l: usize, rows: usize) {
        let (hidden, intermediate) = (graph.hidden, graph.intermediate);
        let (layer, a) = (&graph.layout.layers[l], &self.layers[l]);
        let dx = &mut self.d_residual[..rows * hidden];
        let gradient = &mut self.gradient;

        // Feed-forward block.
        let down = layer.down.clone();
        linear_backward(
            &mut self.d_gated,
            &mut gradient[down.clone()],
            dx,
            &a.gated,
            &weights[down],
            rows,
            intermediate,
        );
        let gate_up = &a.gate_up[..rows * 2 * intermediate];
        ops::swiglu_backward(&mut self.d_gate_up, &self.d_gated, gate_up, intermediate);
        let range = layer.gate_up.clone();
        linear_backward(
            &mut self.d_normed,
            &mut gradient[range.clone()],
            &self.d_gate_up,
            &a.middle_normed,
            &weights[range],
            rows,
            hidden,
        );
        let norm = layer.post_norm.clone();
        ops::rms_norm_backward(
            dx,
            &mut gradient[norm.clone()],
            &self.d_normed,
            &a.middle,
            &a.middle_rstd,
            &weights[norm],
        );

        // Attention.
        let range = layer.output.clone();
        linear_backward(
            &mut self.d_attended,
            &mut gradient[range.clone()],
            dx,
            &a.attended,
            &weights[range],
            rows,
            hidden,
        );
        let attention = &graph.attention;
        attention.backward(&mut self.d_qkv, &self.d_attended, &a.qkv, rows, &mut self.work);
        let turned = attention.heads + attention.kv_heads;
        graph.rope.rotate(
            &mut self.d_qkv[..rows * attention.projected()],
            attention.projected(),
            turned,
            true,
        );
        let range = layer.qkv.clone();
        linear_backward(
            &mut self.d_normed,
            &mut gradient[range.clone()],
            &self.d_qkv,
            &a.normed,
            &weights[range],
            rows,
            hidden,
        );
        let norm = layer.input_norm.clone();
        ops::rms_norm_backward(
            dx,
            &mut gradient[norm.clone()],
            &self.d_normed,
            &self.residual[l],
            &a.rstd,
            &weights[norm],
        );
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
