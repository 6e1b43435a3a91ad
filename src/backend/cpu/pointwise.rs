//! The operations between the products: embedding rows, RMSNorm, rotary embedding, quantising.

use super::lanes::{Isa, Kernel, LANES, Lanes, element};
use super::linear::Matrix;
use crate::checkpoint::fp8::{largest, round_e4m3, row_scale};

/// `out = table[token]`, `[table.columns]`.
pub(super) fn embed(table: Matrix, token: usize, out: &mut [f32]) {
    let row = &table.bytes[token * table.columns * table.dtype.size()..];
    for (i, out) in out.iter_mut().enumerate() {
        *out = element(table.dtype, row, i);
    }
}

/// `out = x / √(mean(x²) + ε) · weight` for one row; the squares are summed as a dot product is.
pub(super) fn rms_norm(isa: Isa, x: &[f32], weight: Matrix, eps: f32, out: &mut [f32]) {
    isa.run(Norm { x, weight, eps, out });
}

struct Norm<'a> {
    x: &'a [f32],
    weight: Matrix<'a>,
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for Norm<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (whole, rest) = self.x.as_chunks::<LANES>();
        let mut squares = L::splat(0.0);
        for x in whole {
            squares = L::load(x).mul_add(L::load(x), squares);
        }
        let mut padded = [0.0; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        squares = L::load(&padded).mul_add(L::load(&padded), squares);
        let scale = 1.0 / (squares.sum() / self.x.len() as f32 + self.eps).sqrt();
        for (i, (out, x)) in self.out.iter_mut().zip(self.x).enumerate() {
            *out = x * scale * element(self.weight.dtype, self.weight.bytes, i);
        }
    }
}

/// `numbers` = the e4m3 nearest to x / scale for one row; returns the scale.
pub(super) fn quantise(isa: Isa, x: &[f32], bound: f32, numbers: &mut [f32]) -> f32 {
    let mut scale = 0.0;
    isa.run(Quantise { x, bound, numbers, scale: &mut scale });
    scale
}

struct Quantise<'a> {
    x: &'a [f32],
    bound: f32,
    numbers: &'a mut [f32],
    scale: &'a mut f32,
}

impl Kernel for Quantise<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let scale = row_scale(largest(self.x.iter().copied()), self.bound);
        *self.scale = scale;
        for (number, x) in self.numbers.iter_mut().zip(self.x) {
            *number = round_e4m3(x / scale);
        }
    }
}

/// Rotates `head` in place: pairs (i, i + head_dim/2) by the angles whose cosines and sines are given.
pub(super) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
