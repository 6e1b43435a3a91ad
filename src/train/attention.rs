//! Grouped-query attention over one sequence, forward and backward. Probabilities are never kept: the
//! backward pass computes them again, a block of query rows at a time.

use super::matrix::{Matrix, MatrixMut, Update, multiply};
use super::ops::{dot, exp_shifted};
use crate::mask::Mask;

/// Query rows whose probabilities are in memory at a time.
pub const BLOCK: usize = 64;

/// Shape of the attention of one layer. Rows of the projections are `[q of every head | k | v]`.
#[derive(Clone, Copy)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Which keys a row sees; a causal pattern.
    pub mask: Mask,
}

/// Work buffers of one call.
pub struct Work {
    probabilities: Vec<f32>,
    d_probabilities: Vec<f32>,
}

impl Work {
    /// Buffers for sequences of up to `sequence` rows.
    pub fn new(sequence: usize) -> Self {
        let len = BLOCK * sequence;
        Work { probabilities: vec![0.0; len], d_probabilities: vec![0.0; len] }
    }
}

impl Attention {
    /// Values of one row of the projections.
    pub fn projected(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Where the query, key and value of `head` begin in a row of the projections.
    fn columns(&self, head: usize) -> (usize, usize, usize) {
        let kv = head / (self.heads / self.kv_heads);
        let k = (self.heads + kv) * self.head_dim;
        (head * self.head_dim, k, k + self.kv_heads * self.head_dim)
    }

    /// Key positions that the query rows `first..end` can see at all.
    fn keys(&self, first: usize, end: usize) -> std::ops::Range<usize> {
        let low = if self.mask.prefix > 0 { 0 } else { self.mask.visible(first, end, 0).lo };
        low..end
    }

    /// Probabilities of the query rows `first..end` of `head` over `keys`, zero where masked.
    fn probabilities(&self, out: &mut [f32], qkv: &[f32], head: usize, first: usize, end: usize) {
        let (stride, width, keys) = (self.projected(), self.head_dim, self.keys(first, end));
        let (q, k, _) = self.columns(head);
        multiply(
            Update::Set,
            MatrixMut::new(out, end - first, keys.len()),
            1.0 / (width as f32).sqrt(),
            Matrix::strided(&qkv[first * stride + q..], end - first, width, stride),
            Matrix::strided(&qkv[keys.start * stride + k..], keys.len(), width, stride).transposed(),
        );
        for (row, out) in (first..end).zip(out.chunks_exact_mut(keys.len())) {
            let visible = self.mask.visible(row, end, 0);
            let (prefix, lo, hi) = (visible.prefix, visible.lo - keys.start, visible.hi - keys.start);
            // With a prefix `keys` begins at 0, and one softmax covers both parts and the gap between them.
            let from = if prefix > 0 { 0 } else { lo };
            if prefix > 0 {
                out[prefix..lo].fill(f32::NEG_INFINITY);
            }
            softmax(&mut out[from..hi]);
            if prefix > 0 {
                out[prefix..lo].fill(0.0);
            }
            out[..from].fill(0.0);
            out[hi..].fill(0.0);
        }
    }

    /// `out[row][head] = Σ p(row, key) · v(key)`; `qkv` holds the projections after RoPE.
    pub fn forward(&self, out: &mut [f32], qkv: &[f32], rows: usize, work: &mut Work) {
        let (stride, width, out_stride) = (self.projected(), self.head_dim, self.heads * self.head_dim);
        for first in (0..rows).step_by(BLOCK) {
            let end = (first + BLOCK).min(rows);
            let keys = self.keys(first, end);
            for head in 0..self.heads {
                let (q, _, v) = self.columns(head);
                let p = &mut work.probabilities[..(end - first) * keys.len()];
                self.probabilities(p, qkv, head, first, end);
                multiply(
                    Update::Set,
                    MatrixMut::strided(&mut out[first * out_stride + q..], end - first, width, out_stride),
                    1.0,
                    Matrix::new(p, end - first, keys.len()),
                    Matrix::strided(&qkv[keys.start * stride + v..], keys.len(), width, stride),
                );
            }
        }
    }

    /// Backward of [`Attention::forward`]: sets `d_qkv` (with respect to the projections after RoPE).
    pub fn backward(&self, d_qkv: &mut [f32], d_out: &[f32], qkv: &[f32], rows: usize, work: &mut Work) {
        let (stride, width, out_stride) = (self.projected(), self.head_dim, self.heads * self.head_dim);
        let scale = 1.0 / (width as f32).sqrt();
        d_qkv[..rows * stride].fill(0.0);
        for first in (0..rows).step_by(BLOCK) {
            let end = (first + BLOCK).min(rows);
            let (count, keys) = (end - first, self.keys(first, end));
            for head in 0..self.heads {
                let (q, k, v) = self.columns(head);
                let p = &mut work.probabilities[..count * keys.len()];
                let d_p = &mut work.d_probabilities[..count * keys.len()];
                let d_head = Matrix::strided(&d_out[first * out_stride + q..], count, width, out_stride);
                self.probabilities(p, qkv, head, first, end);
                let values = Matrix::strided(&qkv[keys.start * stride + v..], keys.len(), width, stride);
                multiply(
                    Update::Set,
                    MatrixMut::new(d_p, count, keys.len()),
                    1.0,
                    d_head,
                    values.transposed(),
                );
                multiply(
                    Update::Add,
                    MatrixMut::strided(&mut d_qkv[keys.start * stride + v..], keys.len(), width, stride),
                    1.0,
                    Matrix::new(p, count, keys.len()).transposed(),
                    d_head,
                );
                // Softmax: ds = p·(dp − Σ p·dp). A masked key has p = 0, hence ds = 0.
                for (p, d_p) in p.chunks_exact(keys.len()).zip(d_p.chunks_exact_mut(keys.len())) {
                    let mean = dot(p, d_p);
                    for i in 0..p.len() {
                        d_p[i] = p[i] * (d_p[i] - mean);
                    }
                }
                let d_scores = Matrix::new(d_p, count, keys.len());
                multiply(
                    Update::Set,
                    MatrixMut::strided(&mut d_qkv[first * stride + q..], count, width, stride),
                    scale,
                    d_scores,
                    Matrix::strided(&qkv[keys.start * stride + k..], keys.len(), width, stride),
                );
                multiply(
                    Update::Add,
                    MatrixMut::strided(&mut d_qkv[keys.start * stride + k..], keys.len(), width, stride),
                    scale,
                    d_scores.transposed(),
                    Matrix::strided(&qkv[first * stride + q..], count, width, stride),
                );
            }
        }
    }
}

/// Softmax of scores. −∞ becomes a number of the order of 1e-38, which the caller clears.
fn softmax(scores: &mut [f32]) {
    let (_, sum) = exp_shifted(scores);
    let inverse = 1.0 / sum;
    for score in scores {
        *score *= inverse;
    }
}
