//! Grouped-query attention over one sequence, forward and backward, for every [`Mask`].
//!
//! Query rows go in blocks, the query heads of a group stacked, so that their products share the keys and are large. A block
//! meets only keys that some row of it sees: time follows the visible keys, not the sequence. Probabilities are never kept: the
//! forward pass leaves the logarithm of each row's sum (LSE), from which the backward pass computes them again.

use std::ops::Range;

use super::matrix::{Matrix, MatrixMut, Update, multiply};
use super::ops::{dot, exp_of, exp_shifted};
use crate::mask::{Mask, Visible};

/// Rows of a stacked block, query heads of a group times positions, that are worth a product.
const STACKED: usize = 128;
/// Most and fewest positions of a block: more waste keys that only some rows see, fewer make small products.
const POSITIONS: Range<usize> = 16..64;

/// Shape of the attention of one layer. Rows of the projections are `[q of every head | k | v]`.
#[derive(Clone, Copy)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Which keys a row sees.
    pub mask: Mask,
}

/// Rows of a stacked block, query heads of a group times positions: at most.
pub fn stacked_rows(heads: usize, kv_heads: usize) -> usize {
    let group = heads / kv_heads;
    group * (STACKED / group).clamp(POSITIONS.start, POSITIONS.end)
}

/// Work buffers of one call. Rows are those of a stacked block: positions, and within one the heads of a group.
pub struct Work {
    /// `[stacked, keys]`
    probabilities: Vec<f32>,
    d_probabilities: Vec<f32>,
    /// `[stacked, head_dim]`
    queries: Vec<f32>,
    outputs: Vec<f32>,
}

impl Work {
    /// Buffers for sequences of up to `sequence` rows.
    pub fn new(attention: &Attention, sequence: usize) -> Self {
        let stacked = stacked_rows(attention.heads, attention.kv_heads);
        let scores = || vec![0.0; stacked * sequence];
        let rows = || vec![0.0; stacked * attention.head_dim];
        Work { probabilities: scores(), d_probabilities: scores(), queries: rows(), outputs: rows() }
    }
}

/// Query positions that are computed together and the keys that any of them sees: a prefix and an interval after it.
struct Block {
    rows: Range<usize>,
    prefix: usize,
    interval: Range<usize>,
}

impl Block {
    /// Keys of the block, columns of its scores.
    fn keys(&self) -> usize {
        self.prefix + self.interval.len()
    }

    /// The two runs of keys, each with its first column.
    fn segments(&self) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let segments = [(0, 0..self.prefix), (self.prefix, self.interval.clone())];
        segments.into_iter().filter(|(_, keys)| !keys.is_empty())
    }

    /// Columns of the keys that a row sees: a prefix and an interval.
    fn columns(&self, visible: Visible) -> (usize, Range<usize>) {
        let shift = self.interval.start - self.prefix;
        (visible.prefix, visible.lo - shift..visible.hi - shift)
    }
}

impl Attention {
    /// Values of one row of the projections.
    pub fn projected(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Query heads of a key/value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Most positions of a block.
    fn positions(&self) -> usize {
        stacked_rows(self.heads, self.kv_heads) / self.group()
    }

    /// The blocks of a sequence of `rows` rows. None crosses the end of the prefix or a border of chunks that are worth it, on
    /// the two sides of which rows see other keys.
    fn blocks(&self, rows: usize) -> impl Iterator<Item = Block> + use<'_> {
        let chunk = self.mask.chunk().filter(|&chunk| chunk >= POSITIONS.start);
        let mut first = 0;
        std::iter::from_fn(move || {
            let mut end = (first + self.positions()).min(rows);
            if let Some(chunk) = chunk {
                end = end.min((first / chunk + 1) * chunk);
            }
            if first < self.mask.prefix {
                end = end.min(self.mask.prefix);
            }
            let block = (first < rows).then(|| self.block(first..end, rows));
            first = end;
            block
        })
    }

    fn block(&self, rows: Range<usize>, keys: usize) -> Block {
        let (mut prefix, mut lo, mut hi) = (0, usize::MAX, 0);
        for row in rows.clone() {
            let visible = self.mask.visible(row, keys, 0);
            (prefix, lo, hi) = (prefix.max(visible.prefix), lo.min(visible.lo), hi.max(visible.hi));
        }
        // A prefix that reaches the interval is part of it.
        let (prefix, lo) = if prefix >= lo { (0, 0) } else { (prefix, lo) };
        Block { rows, prefix, interval: lo..hi }
    }

    /// Where in a row of the projections the queries of key/value head `kv`, its key and its value begin.
    fn places(&self, kv: usize) -> (usize, usize, usize) {
        let k = (self.heads + kv) * self.head_dim;
        (kv * self.group() * self.head_dim, k, k + self.kv_heads * self.head_dim)
    }

    /// Scores of the stacked block `queries` with the block's keys.
    fn scores(&self, scores: &mut [f32], queries: &[f32], qkv: &[f32], block: &Block, k: usize) {
        let (stride, width, keys) = (self.projected(), self.head_dim, block.keys());
        let stacked = block.rows.len() * self.group();
        for (column, segment) in block.segments() {
            multiply(
                Update::Set,
                MatrixMut::strided(&mut scores[column..], stacked, segment.len(), keys),
                1.0 / (width as f32).sqrt(),
                Matrix::new(queries, stacked, width),
                Matrix::strided(&qkv[segment.start * stride + k..], segment.len(), width, stride)
                    .transposed(),
            );
        }
    }

    /// `out[row][head] = Σ p(row, key) · v(key)`, and the LSE of each row's scores to `lse`, `[rows, heads]`; `qkv` holds the
    /// projections after RoPE.
    pub fn forward(&self, out: &mut [f32], lse: &mut [f32], qkv: &[f32], rows: usize, work: &mut Work) {
        let (stride, width, group) = (self.projected(), self.head_dim, self.group());
        for block in self.blocks(rows) {
            let (stacked, keys) = (block.rows.len() * group, block.keys());
            for kv in 0..self.kv_heads {
                let (q, k, v) = self.places(kv);
                let p = &mut work.probabilities[..stacked * keys];
                gather(&mut work.queries, qkv, &block.rows, stride, q, group * width);
                self.scores(p, &work.queries, qkv, &block, k);
                for (i, p) in p.chunks_exact_mut(keys).enumerate() {
                    let row = block.rows.start + i / group;
                    let columns = block.columns(self.mask.visible(row, rows, 0));
                    lse[row * self.heads + kv * group + i % group] = softmax(p, columns);
                }
                for (column, segment) in block.segments() {
                    multiply(
                        if column == 0 { Update::Set } else { Update::Add },
                        MatrixMut::new(&mut work.outputs, stacked, width),
                        1.0,
                        Matrix::strided(&p[column..], stacked, segment.len(), keys),
                        Matrix::strided(&qkv[segment.start * stride + v..], segment.len(), width, stride),
                    );
                }
                scatter(out, &work.outputs, &block.rows, self.heads * width, q, group * width);
            }
        }
    }

    /// Backward of [`Attention::forward`], whose results are `out` and `lse`: sets `d_qkv` (with respect to the projections after
    /// RoPE).
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        d_qkv: &mut [f32],
        d_out: &[f32],
        out: &[f32],
        lse: &[f32],
        qkv: &[f32],
        rows: usize,
        work: &mut Work,
    ) {
        let (stride, width, group) = (self.projected(), self.head_dim, self.group());
        let out_stride = self.heads * width;
        let scale = 1.0 / (width as f32).sqrt();
        d_qkv[..rows * stride].fill(0.0);
        for block in self.blocks(rows) {
            let (stacked, keys) = (block.rows.len() * group, block.keys());
            for kv in 0..self.kv_heads {
                let (q, k, v) = self.places(kv);
                let p = &mut work.probabilities[..stacked * keys];
                let d_p = &mut work.d_probabilities[..stacked * keys];
                gather(&mut work.queries, qkv, &block.rows, stride, q, group * width);
                gather(&mut work.outputs, d_out, &block.rows, out_stride, q, group * width);
                let (queries, d_outputs) =
                    (Matrix::new(&work.queries, stacked, width), Matrix::new(&work.outputs, stacked, width));
                self.scores(p, &work.queries, qkv, &block, k);
                for (column, segment) in block.segments() {
                    let values =
                        Matrix::strided(&qkv[segment.start * stride + v..], segment.len(), width, stride);
                    let d_p = MatrixMut::strided(&mut d_p[column..], stacked, segment.len(), keys);
                    multiply(Update::Set, d_p, 1.0, d_outputs, values.transposed());
                }
                // Softmax: ds = p·(dp − Σ p·dp), and Σ p·dp = out·d_out. A masked key has p = 0, hence ds = 0.
                let pairs = p.chunks_exact_mut(keys).zip(d_p.chunks_exact_mut(keys));
                for (i, (p, d_p)) in pairs.enumerate() {
                    let (row, head) = (block.rows.start + i / group, kv * group + i % group);
                    let (prefix, interval) = block.columns(self.mask.visible(row, rows, 0));
                    let place = row * out_stride + head * width;
                    let mean = dot(&out[place..][..width], &d_out[place..][..width]);
                    let lse = lse[row * self.heads + head];
                    for gap in [prefix..interval.start, interval.end..keys] {
                        p[gap.clone()].fill(0.0);
                        d_p[gap].fill(0.0);
                    }
                    for seen in [0..prefix, interval] {
                        let (p, d_p) = (&mut p[seen.clone()], &mut d_p[seen]);
                        exp_of(p, lse);
                        for (d_p, p) in d_p.iter_mut().zip(p) {
                            *d_p = *p * (*d_p - mean);
                        }
                    }
                }
                let (p, d_p) = (&*p, &*d_p);
                for (column, segment) in block.segments() {
                    let p = Matrix::strided(&p[column..], stacked, segment.len(), keys);
                    let d_scores = Matrix::strided(&d_p[column..], stacked, segment.len(), keys);
                    let (start, count) = (segment.start * stride, segment.len());
                    let d_values = MatrixMut::strided(&mut d_qkv[start + v..], count, width, stride);
                    multiply(Update::Add, d_values, 1.0, p.transposed(), d_outputs);
                    let d_keys = MatrixMut::strided(&mut d_qkv[start + k..], count, width, stride);
                    multiply(Update::Add, d_keys, scale, d_scores.transposed(), queries);
                }
                // d_outputs have done their part: their place takes the gradient of the queries.
                for (column, segment) in block.segments() {
                    multiply(
                        if column == 0 { Update::Set } else { Update::Add },
                        MatrixMut::new(&mut work.outputs, stacked, width),
                        scale,
                        Matrix::strided(&d_p[column..], stacked, segment.len(), keys),
                        Matrix::strided(&qkv[segment.start * stride + k..], segment.len(), width, stride),
                    );
                }
                scatter(d_qkv, &work.outputs, &block.rows, stride, q, group * width);
            }
        }
    }
}

/// Copies `width` values from column `at` of the rows `rows` of a matrix to the beginning of `to`, row after row.
fn gather(to: &mut [f32], from: &[f32], rows: &Range<usize>, stride: usize, at: usize, width: usize) {
    for (to, row) in to.chunks_exact_mut(width).zip(rows.clone()) {
        to.copy_from_slice(&from[row * stride + at..][..width]);
    }
}

/// The way back of [`gather`].
fn scatter(to: &mut [f32], from: &[f32], rows: &Range<usize>, stride: usize, at: usize, width: usize) {
    for (from, row) in from.chunks_exact(width).zip(rows.clone()) {
        to[row * stride + at..][..width].copy_from_slice(from);
    }
}

/// Softmax of the scores in the columns `[0, prefix) ∪ interval`, zero elsewhere; returns the LSE.
fn softmax(scores: &mut [f32], (prefix, interval): (usize, Range<usize>)) -> f32 {
    // One softmax covers both parts and what lies between them, where −∞ becomes a number of the order of 1e-38.
    let first = if prefix > 0 { 0 } else { interval.start };
    let gap = if prefix > 0 { prefix..interval.start } else { 0..0 };
    scores[gap.clone()].fill(f32::NEG_INFINITY);
    let (top, sum) = exp_shifted(&mut scores[first..interval.end]);
    let inverse = 1.0 / sum;
    scores[first..interval.end].iter_mut().for_each(|score| *score *= inverse);
    for masked in [gap, 0..first, interval.end..scores.len()] {
        scores[masked].fill(0.0);
    }
    top + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pattern of `src/mask.rs`, with borders on, before and after those of blocks, and prefixes that end in and between them.
    const MASKS: [&str; 24] = [
        "full",
        "full+sinks:3",
        "window:1",
        "window:7",
        "window:64",
        "window:65",
        "window:500",
        "window:7+sinks:2",
        "window:20+sinks:70",
        "chunk:1",
        "chunk:5",
        "chunk:64",
        "chunk:50+sinks:3",
        "overlap:5",
        "overlap:33",
        "overlap:33+sinks:4",
        "bidirectional",
        "bidirectional+globals:2",
        "block:5",
        "block:48",
        "block:48+globals:2",
        "blockwise:6",
        "blockwise:32+globals:1",
        "blockwise:32+globals:70",
    ];

    fn noise(count: usize, mut state: u64) -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| 2.0 * next()).collect()
    }

    /// Outputs in f64, key by key.
    fn reference(a: &Attention, qkv: &[f64], rows: usize) -> Vec<f64> {
        let (stride, width) = (a.projected(), a.head_dim);
        let mut out = vec![0.0; rows * a.heads * width];
        for (row, head) in (0..rows).flat_map(|row| (0..a.heads).map(move |head| (row, head))) {
            let kv = head / a.group();
            let part = |row: usize, place: usize| &qkv[row * stride + place * width..][..width];
            let visible = a.mask.visible(row, rows, 0);
            let seen: Vec<usize> = (0..rows).filter(|&key| visible.contains(key)).collect();
            let score = |key: usize| -> f64 {
                let (q, k) = (part(row, head), part(key, a.heads + kv));
                q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (width as f64).sqrt()
            };
            let weights: Vec<f64> = seen.iter().map(|&key| score(key).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let out = &mut out[(row * a.heads + head) * width..][..width];
            for (weight, key) in weights.iter().zip(seen) {
                let value = part(key, a.heads + a.kv_heads + kv);
                out.iter_mut().zip(value).for_each(|(out, value)| *out += weight / sum * value);
            }
        }
        out
    }

    /// Outputs against f64, and the gradient against differences of f64: for every value of some rows, wherever they lie in blocks
    /// and chunks, and for all values at once in a random direction.
    #[test]
    fn outputs_and_gradients_are_exact_under_every_mask() {
        for (heads, kv_heads, rows) in [(4, 2, 131), (3, 1, 97), (2, 2, 1)] {
            for mask in MASKS {
                let a = Attention { heads, kv_heads, head_dim: 6, mask: mask.parse().expect("a mask") };
                let (len, out_len) = (rows * a.projected(), rows * heads * a.head_dim);
                let (qkv, d_out) = (noise(len, 1), noise(out_len, 2));
                let wide: Vec<f64> = qkv.iter().map(|&x| f64::from(x)).collect();
                // What no block writes must not show.
                let (mut out, mut lse, mut d_qkv) =
                    (vec![f32::NAN; out_len], vec![f32::NAN; rows * heads], vec![f32::NAN; len]);
                let mut work = Work::new(&a, rows);
                work.probabilities.fill(f32::NAN);
                work.d_probabilities.fill(f32::NAN);
                a.forward(&mut out, &mut lse, &qkv, rows, &mut work);
                for (i, (got, want)) in out.iter().zip(reference(&a, &wide, rows)).enumerate() {
                    assert!((f64::from(*got) - want).abs() < 2e-5, "{mask}: output {i} is {got}, not {want}");
                }
                work.probabilities.fill(f32::NAN);
                work.d_probabilities.fill(f32::NAN);
                a.backward(&mut d_qkv, &d_out, &out, &lse, &qkv, rows, &mut work);
                let loss = |direction: &dyn Fn(usize) -> f64, step: f64| -> f64 {
                    let moved: Vec<f64> =
                        wide.iter().enumerate().map(|(i, x)| x + step * direction(i)).collect();
                    reference(&a, &moved, rows).iter().zip(&d_out).map(|(x, &d)| x * f64::from(d)).sum()
                };
                let slope = |direction: &dyn Fn(usize) -> f64| {
                    (loss(direction, 1e-5) - loss(direction, -1e-5)) / 2e-5
                };
                // A value of a query, a key and a value of rows at the ends and around the borders.
                for row in [0, 1, 2, 4, 47, 48, 63, 64, 69, 70, 95, 96, 130].into_iter().filter(|r| *r < rows)
                {
                    for place in [0, heads, heads + kv_heads] {
                        let at = row * a.projected() + place * a.head_dim + row % a.head_dim;
                        let want = slope(&|i| f64::from(u8::from(i == at)));
                        let got = f64::from(d_qkv[at]);
                        let tolerance = 2e-5 + 2e-5 * want.abs();
                        assert!(
                            (got - want).abs() < tolerance,
                            "{mask}: row {row}, place {place}: {got}, not {want}"
                        );
                    }
                }
                let direction = noise(len, 3);
                let want = slope(&|i| f64::from(direction[i]));
                let got: f64 = d_qkv.iter().zip(&direction).map(|(d, x)| f64::from(*d) * f64::from(*x)).sum();
                assert!((got - want).abs() < 1e-4 * (1.0 + want.abs()), "{mask}: {got}, not {want}");
            }
        }
    }

    /// Keys that products take against keys that rows see.
    #[test]
    fn work_follows_the_visible_keys() {
        let rows = 4096;
        for (mask, most) in [
            ("full", 1.02),
            ("window:512", 1.13),
            ("window:64", 2.0),
            ("window:512+sinks:4", 1.13),
            ("chunk:512", 1.13),
            ("chunk:64", 2.0),
            ("overlap:256", 1.09),
            ("bidirectional", 1.0),
            ("block:64", 1.0),
            ("block:512+globals:4", 1.02),
            ("blockwise:128", 1.0),
            ("blockwise:128+globals:1", 1.02),
        ] {
            let a = Attention { heads: 1, kv_heads: 1, head_dim: 2, mask: mask.parse().expect("a mask") };
            let seen: usize = (0..rows).map(|row| a.mask.visible(row, rows, 0).count()).sum();
            let taken: usize = a.blocks(rows).map(|block| block.rows.len() * block.keys()).sum();
            let ratio = taken as f64 / seen as f64;
            assert!((1.0..=most).contains(&ratio), "{mask}: {ratio} times the visible keys");
            assert!(a.blocks(rows).map(|block| block.rows.len()).sum::<usize>() == rows, "{mask}");
        }
    }
}
