//! The operations of a block other than attention and matrix products: each a forward function and its
//! backward twin, over rows of one sequence.

use crate::backend::Angles;

/// Accumulators of a reduction: enough for the compiler to keep the widest registers busy.
const LANES: usize = 16;

/// Σ aᵢ·bᵢ.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for i in 0..LANES {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f32>() + tail
}

/// The largest value; −∞ of an empty slice.
pub fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let tail = chunks.remainder().iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    lanes.iter().fold(tail, |a, &b| if b > a { b } else { a })
}

/// eˣ to about 2 units in the last place, without a call, so that loops over it vectorise.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // x = n·ln 2 + r with |r| ≤ ln 2 / 2; adding 1.5·2²³ rounds to the nearest integer and leaves it in the
    // low bits, from where a shift makes it the exponent of 2ⁿ.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    // The series of eʳ, cut where the next term is below half a unit in the last place.
    let series = 1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0));
    let series = 1.0 / 6.0 + r * (1.0 / 24.0 + r * series);
    let series = 1.0 + r * (1.0 + r * (0.5 + r * series));
    series * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23)
}

/// Replaces `values` by e^(value − their maximum) and returns (maximum, sum). The caller divides.
pub fn exp_shifted(values: &mut [f32]) -> (f32, f32) {
    let top = max(values);
    let mut sums = [0.0f32; LANES];
    let mut chunks = values.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for i in 0..LANES {
            chunk[i] = exp(chunk[i] - top);
            sums[i] += chunk[i];
        }
    }
    let mut sum = 0.0;
    for value in chunks.into_remainder() {
        *value = exp(*value - top);
        sum += *value;
    }
    (top, sum + sums.iter().sum::<f32>())
}

/// Replaces `values` by e^(value − `shift`).
pub fn exp_of(values: &mut [f32], shift: f32) {
    values.iter_mut().for_each(|value| *value = exp(*value - shift));
}

/// RMSNorm of every row: `out = x · rstd · weight`, `rstd = 1/√(mean x² + ε)` kept for the backward pass.
pub fn rms_norm(out: &mut [f32], rstd: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let hidden = weight.len();
    for ((out, x), rstd) in out.chunks_exact_mut(hidden).zip(x.chunks_exact(hidden)).zip(rstd) {
        *rstd = 1.0 / (dot(x, x) / hidden as f32 + eps).sqrt();
        for i in 0..hidden {
            out[i] = x[i] * *rstd * weight[i];
        }
    }
}

/// Backward of [`rms_norm`]: adds to the gradients of `x` and of `weight`.
pub fn rms_norm_backward(
    d_x: &mut [f32],
    d_weight: &mut [f32],
    d_out: &[f32],
    x: &[f32],
    rstd: &[f32],
    weight: &[f32],
) {
    let hidden = weight.len();
    let rows = d_x.chunks_exact_mut(hidden).zip(d_out.chunks_exact(hidden)).zip(x.chunks_exact(hidden));
    for (((d_x, d_out), x), &rstd) in rows.zip(rstd) {
        let mut sums = [0.0f32; LANES];
        for ((d_out, x), weight) in d_out.chunks(LANES).zip(x.chunks(LANES)).zip(weight.chunks(LANES)) {
            for i in 0..x.len() {
                sums[i] += d_out[i] * weight[i] * x[i];
            }
        }
        // d(x·rstd)/dx = rstd·(I − x xᵀ·rstd²/hidden)
        let shared = sums.iter().sum::<f32>() * rstd * rstd * rstd / hidden as f32;
        for i in 0..hidden {
            d_weight[i] += d_out[i] * x[i] * rstd;
            d_x[i] += d_out[i] * weight[i] * rstd - x[i] * shared;
        }
    }
}

/// cos and sin of the rotary angles, `[positions][head_dim / 2]` each.
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl RopeTable {
    /// The table for positions 0..`positions`.
    pub fn new(angles: &Angles, positions: usize) -> Self {
        let half = angles.frequencies().len();
        let (mut cos, mut sin) = (vec![0.0; positions * half], vec![0.0; positions * half]);
        let mut both = vec![0.0; 2 * half];
        for (position, (cos, sin)) in cos.chunks_exact_mut(half).zip(sin.chunks_exact_mut(half)).enumerate() {
            angles.write(position, &mut both);
            cos.copy_from_slice(&both[..half]);
            sin.copy_from_slice(&both[half..]);
        }
        RopeTable { cos, sin, half }
    }

    /// Turns the first `heads` heads of every row of `rows` (row stride `stride`) by the row's angle, pairs
    /// (i, i + head_dim/2); `back` is the backward pass: it turns the other way.
    pub fn rotate(&self, rows: &mut [f32], stride: usize, heads: usize, back: bool) {
        let half = self.half;
        for (position, row) in rows.chunks_exact_mut(stride).enumerate() {
            let cos = &self.cos[position * half..][..half];
            let sin = &self.sin[position * half..][..half];
            for head in row[..heads * 2 * half].chunks_exact_mut(2 * half) {
                let (a, b) = head.split_at_mut(half);
                for i in 0..half {
                    let sin = if back { -sin[i] } else { sin[i] };
                    (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin, b[i] * cos[i] + a[i] * sin);
                }
            }
        }
    }
}

/// SwiGLU: `out = silu(gate) · up`, gate and up side by side in rows of `gate_up`.
pub fn swiglu(out: &mut [f32], gate_up: &[f32], width: usize) {
    for (out, gate_up) in out.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
        let (gate, up) = gate_up.split_at(width);
        for i in 0..width {
            out[i] = gate[i] / (1.0 + exp(-gate[i])) * up[i];
        }
    }
}

/// Backward of [`swiglu`]: sets the gradient of `gate_up`.
pub fn swiglu_backward(d_gate_up: &mut [f32], d_out: &[f32], gate_up: &[f32], width: usize) {
    let rows = d_gate_up.chunks_exact_mut(2 * width).zip(gate_up.chunks_exact(2 * width));
    for ((d_gate_up, gate_up), d_out) in rows.zip(d_out.chunks_exact(width)) {
        let (d_gate, d_up) = d_gate_up.split_at_mut(width);
        let (gate, up) = gate_up.split_at(width);
        for i in 0..width {
            let sigmoid = 1.0 / (1.0 + exp(-gate[i]));
            let silu = gate[i] * sigmoid;
            d_up[i] = d_out[i] * silu;
            d_gate[i] = d_out[i] * up[i] * (sigmoid + silu * (1.0 - sigmoid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let relative = (f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs();
            assert!(relative < 4e-7, "exp({x}): relative error {relative}");
        }
        assert!(exp(-1e30) < 1e-37 && exp(-f32::INFINITY) < 1e-37);
    }

    #[test]
    fn reductions_count_their_tails() {
        let values: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(dot(&values, &values), (0..37).map(|i| i * i).sum::<i32>() as f32);
        assert_eq!(max(&values), 36.0);
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }

    #[test]
    fn rope_turns_pairs_half_a_head_apart() {
        let table = RopeTable::new(&Angles::from_frequencies(vec![1.0, 0.01], 1.0), 2);
        let mut rows = vec![1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0];
        table.rotate(&mut rows, 4, 1, false);
        assert_eq!(rows[..4], [1.0, 2.0, 3.0, 4.0], "position 0 stays");
        let (sin, cos) = 1f32.sin_cos();
        assert!((rows[4] - (cos - 3.0 * sin)).abs() < 1e-6 && (rows[6] - (3.0 * cos + sin)).abs() < 1e-6);
        let (sin, cos) = 0.01f32.sin_cos();
        assert!(
            (rows[5] - (2.0 * cos - 4.0 * sin)).abs() < 1e-6
                && (rows[7] - (4.0 * cos + 2.0 * sin)).abs() < 1e-6
        );
        table.rotate(&mut rows, 4, 1, true);
        assert!(rows[4..].iter().zip([1.0, 2.0, 3.0, 4.0]).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
