//! Weights in e4m3 with a scale for each output row, as the Llama 3 paper runs its feed-forward matrices (arXiv 2407.21783,
//! section 6): read from `fbgemm_fp8` checkpoints, or made of wider weights when a model is loaded.
//!
//! e4m3 has a sign, four bits of exponent with the bias 7 and three of fraction: up to ±448, subnormals down to 2⁻⁹, no
//! infinities, and one NaN of each sign. Activations are quantised alike, a row (a token) at a time: [`row_scale`] with a bound,
//! beyond which they saturate.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Dtype, Tensor, file::Storage};
use crate::error::{Error, Result};

/// The largest e4m3.
pub const E4M3_MOST: f32 = 448.0;
/// What an activation's magnitude is taken for at most, where a checkpoint names no other bound.
pub const ACTIVATION_BOUND: f32 = 1200.0;
/// The smallest scale: a row of zeros has this one.
const LEAST_SCALE: f32 = 1.0 / (448.0 * 512.0);
/// The code without its sign of what is no number.
const NAN: u8 = 0x7f;

/// The scales of a matrix in e4m3.
#[derive(Clone, Debug)]
pub struct Fp8 {
    /// What each row's codes are multiplied by, `[rows]`.
    pub scales: Arc<[f32]>,
    /// The bound of the activations that meet this matrix.
    pub bound: f32,
}

/// The e4m3 nearest to `x`, to even between two; ±448 for what is beyond.
pub fn to_e4m3(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = x.abs().min(E4M3_MOST);
    let bits = magnitude.to_bits();
    // Under 2⁻⁶ codes are multiples of 2⁻⁹, the last place of a float by 2¹⁴.
    let code = match magnitude < 0.015625 {
        true => (magnitude + 16384.0).to_bits() & 0xff,
        false => ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - ((127 - 7) << 3),
    };
    sign | code as u8
}

/// The number of the code [`to_e4m3`]`(x)`. In operations that vectors have.
#[inline(always)]
pub(crate) fn round_e4m3(x: f32) -> f32 {
    let magnitude = x.abs().min(E4M3_MOST);
    let bits = magnitude.to_bits();
    let normal = f32::from_bits((bits + 0x7ffff + (bits >> 20 & 1)) & 0xfff0_0000);
    let subnormal = (magnitude + 16384.0) - 16384.0;
    (if magnitude < 0.015625 { subnormal } else { normal }).copysign(x)
}

/// The number that `code` stands for, times 2⁻⁸: the bits of an f16 whose exponent and fraction are one place further down.
/// NaN become ±480, so they are refused where weights are loaded ([`check_numbers`]).
pub(crate) fn e4m3_bits(code: u8) -> u16 {
    u16::from(code & 0x80) << 8 | u16::from(code & 0x7f) << 7
}

/// What [`e4m3_bits`] leaves out of each number.
pub(crate) const E4M3_UNPACKED: f32 = 1.0 / 256.0;

/// max(min(`most`, `bound`) / 448, 1 / (448 · 512)): the scale of a row whose largest magnitude is `most`. NaN for NaN.
#[inline(always)]
pub fn row_scale(most: f32, bound: f32) -> f32 {
    if most.is_nan() {
        return most;
    }
    (most.min(bound) / E4M3_MOST).max(LEAST_SCALE)
}

/// The largest magnitude in a row; NaN if it has one.
#[inline(always)]
pub(crate) fn largest(row: impl Iterator<Item = f32>) -> f32 {
    // As bits without sign, NaN are larger than all else.
    f32::from_bits(row.fold(0, |most, x| most.max(x.abs().to_bits())))
}

/// Whether no code of `tensor`, of e4m3, is NaN.
pub(crate) fn check_numbers(tensor: &Tensor) -> bool {
    tensor.bytes().par_chunks(1 << 16).all(|codes| codes.iter().all(|code| code & 0x7f != NAN))
}

/// `tensor` in e4m3, each row with the scale that makes its largest magnitude 448; activations that meet it are bounded by
/// `bound`.
///
/// # Errors
/// The reason, if a weight is not finite or there is no memory for the codes.
pub(super) fn quantise(tensor: &Tensor, bound: f32) -> std::result::Result<Tensor, String> {
    let (rows, columns) = (tensor.rows(), tensor.columns());
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    let memory = codes.try_reserve_exact(rows * columns).and_then(|()| scales.try_reserve_exact(rows));
    memory.map_err(|_| format!("cannot be quantised: no memory for {} MiB", (rows * columns) >> 20))?;
    codes.resize(rows * columns, 0);
    scales.resize(rows, 0.0);
    let row = columns * tensor.dtype().size();
    let finite = codes
        .par_chunks_exact_mut(columns)
        .zip(&mut scales)
        .zip(tensor.bytes().par_chunks_exact(row))
        .map(|((codes, scale), bytes)| {
            *scale = row_scale(largest(numbers(tensor.dtype(), bytes)), f32::INFINITY);
            for (code, x) in codes.iter_mut().zip(numbers(tensor.dtype(), bytes)) {
                *code = to_e4m3(x / *scale);
            }
            scale.is_finite()
        })
        .reduce(|| true, |a, b| a && b);
    if !finite {
        return Err("cannot be quantised: a weight is infinite or NaN".into());
    }
    let fp8 = Fp8 { scales: scales.into(), bound };
    Ok(Tensor::e4m3(Storage::Owned(codes.into()), 0..rows * columns, rows, columns, fp8))
}

/// The numbers of a row as stored.
fn numbers(dtype: Dtype, bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(dtype.size()).map(move |b| match dtype {
        Dtype::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        Dtype::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
        Dtype::Bf16 => half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        Dtype::E4m3 => half::f16::from_bits(e4m3_bits(b[0])).to_f32() / E4M3_UNPACKED,
    })
}

/// The scales on disk, `[rows]` or `[rows, 1]` in any type, as f32.
///
/// # Errors
/// The reason, if one is not a finite number over 0.
pub(super) fn read_scales(tensor: &Tensor) -> std::result::Result<Arc<[f32]>, String> {
    let scales: Arc<[f32]> = numbers(tensor.dtype(), tensor.bytes()).collect();
    match scales.iter().position(|scale| !(scale.is_finite() && *scale > 0.0)) {
        Some(row) => Err(format!("has the scale {} for row {row}; scales are numbers over 0", scales[row])),
        None => Ok(scales),
    }
}

/// The error for a weight that cannot be used.
pub(super) fn refuse(path: &std::path::Path, tensor: &str, reason: String) -> Error {
    Error::Tensor { path: path.to_owned(), tensor: tensor.to_owned(), reason }
}

/// An [`Error::Tensor`] instead of a reason.
pub(super) fn named<T>(
    path: &std::path::Path,
    tensor: &str,
    result: std::result::Result<T, String>,
) -> Result<T> {
    result.map_err(|reason| refuse(path, tensor, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(code: u8) -> f64 {
        let (sign, exponent, fraction) = (code >> 7, i32::from(code >> 3 & 15), f64::from(code & 7));
        let magnitude = match exponent {
            0 => fraction * 2f64.powi(-9),
            _ => (1.0 + fraction / 8.0) * 2f64.powi(exponent - 7),
        };
        if sign == 1 { -magnitude } else { magnitude }
    }

    #[test]
    fn every_code_is_its_number() {
        for code in (0..=255u8).filter(|code| code & 0x7f != NAN) {
            let number = numbers(Dtype::E4m3, &[code]).next().unwrap();
            assert_eq!(f64::from(number), value(code), "{code:#x}");
            assert_eq!(to_e4m3(number), code, "{code:#x}");
        }
    }

    #[test]
    fn the_nearest_code_is_taken_and_ties_go_to_even() {
        for low in 0..0x7e_u8 {
            let (a, b) = (value(low), value(low + 1));
            let middle = ((a + b) / 2.0) as f32;
            let even = if low % 2 == 0 { low } else { low + 1 };
            assert_eq!(to_e4m3(middle), even);
            assert_eq!(to_e4m3(middle.next_down()), low);
            assert_eq!(to_e4m3(-middle.next_up()), 0x80 | (low + 1));
            for x in [a as f32, middle, middle.next_down(), -middle.next_up()] {
                let number = numbers(Dtype::E4m3, &[to_e4m3(x)]).next().unwrap();
                assert_eq!(round_e4m3(x).to_bits(), number.to_bits(), "{x}");
            }
        }
        assert_eq!(to_e4m3(449.0), 0x7e);
        assert_eq!(to_e4m3(f32::NEG_INFINITY), 0xfe);
        assert_eq!((to_e4m3(0.0), to_e4m3(-0.0)), (0, 0x80));
    }

    #[test]
    fn scales_follow_the_paper() {
        assert_eq!(row_scale(448.0, 1200.0), 1.0);
        assert_eq!(row_scale(5000.0, 1200.0), 1200.0 / 448.0);
        assert_eq!(row_scale(5000.0, f32::INFINITY), 5000.0 / 448.0);
        assert_eq!(row_scale(0.0, 1200.0), 1.0 / (448.0 * 512.0));
        assert!(row_scale(f32::NAN, 1200.0).is_nan());
        assert!(largest([1.0, f32::NAN, f32::INFINITY].into_iter()).is_nan());
        assert_eq!(largest([1.0, -3.0, 2.0].into_iter()), 3.0);
    }
}
