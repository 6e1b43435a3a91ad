//! A Llama forward pass in f64, written once more from the formulas: no cache, no blocks, nothing shared with the crate but the
//! reading of files. Default RoPE and causal attention only.

use half::{bf16, f16};
use warploom::checkpoint::{Checkpoint, Dtype, Tensor};

/// A matrix in f64, row after row.
struct Matrix {
    numbers: Vec<f64>,
    columns: usize,
    /// The bound of the activations it meets, if they are quantised.
    bound: Option<f64>,
}

/// The number that a code of e4m3 stands for.
pub fn e4m3(code: u8) -> f64 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match exponent {
        0 => fraction * 2f64.powi(-9),
        _ => (1.0 + fraction / 8.0) * 2f64.powi(exponent - 7),
    };
    if code >= 0x80 { -magnitude } else { magnitude }
}

/// The nearest e4m3, found by looking at all of them; of two as near, the one with the even code.
pub fn nearest_e4m3(x: f64) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let distance = |code: &u8| (e4m3(*code) - x.abs()).abs();
    let best = (0..0x7f_u8).min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2))));
    sign | best.expect("codes")
}

/// A row as products in e4m3 see it.
fn quantised(row: &[f64], bound: f64) -> Vec<f64> {
    let most = row.iter().fold(0f64, |most, x| most.max(x.abs()));
    let scale = (most.min(bound) / 448.0).max(1.0 / (448.0 * 512.0));
    row.iter().map(|x| e4m3(nearest_e4m3(x / scale)) * scale).collect()
}

impl Matrix {
    fn of(tensor: &Tensor) -> Matrix {
        let size = tensor.dtype().size();
        let number = |(i, b): (usize, &[u8])| match tensor.dtype() {
            Dtype::F32 => f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            Dtype::F16 => f16::from_le_bytes([b[0], b[1]]).to_f64(),
            Dtype::Bf16 => bf16::from_le_bytes([b[0], b[1]]).to_f64(),
            Dtype::E4m3 => e4m3(b[0]) * f64::from(tensor.fp8().expect("scales").scales[i / tensor.columns()]),
        };
        let numbers = tensor.bytes().chunks_exact(size).enumerate().map(number).collect();
        let bound = tensor.fp8().map(|fp8| f64::from(fp8.bound));
        Matrix { numbers, columns: tensor.columns(), bound }
    }

    fn times(&self, x: &[f64]) -> Vec<f64> {
        let x = self.bound.map_or_else(|| x.to_vec(), |bound| quantised(x, bound));
        let row = |row: &[f64]| row.iter().zip(&x).map(|(w, x)| w * x).sum();
        self.numbers.chunks_exact(self.columns).map(row).collect()
    }
}

/// Logits of every position of `ids`.
pub fn logits(checkpoint: &Checkpoint, ids: &[u32]) -> Vec<Vec<f64>> {
    let c = &checkpoint.config;
    let shapes: std::collections::HashMap<String, Vec<usize>> = c.tensors().collect();
    let matrix = |name: &str| {
        let shape = shapes.get(name)?;
        Some(Matrix::of(&checkpoint.weight(name, shape).unwrap_or_else(|e| panic!("{e}"))))
    };
    let get = |name: &str| matrix(name).unwrap_or_else(|| panic!("{name}"));
    let norm = |x: &[f64], weight: &Matrix| -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let inverse = 1.0 / (mean + f64::from(c.rms_norm_eps)).sqrt();
        x.iter().zip(&weight.numbers).map(|(x, w)| x * inverse * w).collect()
    };
    let embedding = get("model.embed_tokens.weight");
    let mut hidden: Vec<Vec<f64>> = ids
        .iter()
        .map(|id| embedding.numbers[*id as usize * embedding.columns..][..embedding.columns].to_vec())
        .collect();
    for layer in 0..c.layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let linear = |part: &str| {
            let (weight, bias) =
                (get(&name(&format!("{part}.weight"))), matrix(&name(&format!("{part}.bias"))));
            move |x: &[f64]| -> Vec<f64> {
                let mut y = weight.times(x);
                if let Some(bias) = &bias {
                    y.iter_mut().zip(&bias.numbers).for_each(|(y, b)| *y += b);
                }
                y
            }
        };
        let rotate = |mut x: Vec<f64>, position: usize| {
            for head in x.chunks_exact_mut(c.head_dim) {
                let half = c.head_dim / 2;
                for i in 0..half {
                    let frequency = c.rope.theta.powf(-2.0 * i as f64 / c.head_dim as f64);
                    let (sin, cos) = (position as f64 * frequency).sin_cos();
                    (head[i], head[i + half]) =
                        (head[i] * cos - head[i + half] * sin, head[i + half] * cos + head[i] * sin);
                }
            }
            x
        };
        let [q, k, v, o] =
            ["q_proj", "k_proj", "v_proj", "o_proj"].map(|p| linear(&format!("self_attn.{p}")));
        let before = get(&name("input_layernorm.weight"));
        let normed: Vec<Vec<f64>> = hidden.iter().map(|x| norm(x, &before)).collect();
        let queries: Vec<Vec<f64>> = normed.iter().enumerate().map(|(i, x)| rotate(q(x), i)).collect();
        let keys: Vec<Vec<f64>> = normed.iter().enumerate().map(|(i, x)| rotate(k(x), i)).collect();
        let values: Vec<Vec<f64>> = normed.iter().map(|x| v(x)).collect();
        for row in 0..ids.len() {
            let mut attended = Vec::new();
            for head in 0..c.heads {
                let at = head / (c.heads / c.kv_heads) * c.head_dim;
                let query = &queries[row][head * c.head_dim..][..c.head_dim];
                let score = |key: &Vec<f64>| {
                    let dot: f64 = query.iter().zip(&key[at..]).map(|(q, k)| q * k).sum();
                    (dot / (c.head_dim as f64).sqrt()).exp()
                };
                let weights: Vec<f64> = keys[..=row].iter().map(score).collect();
                let total: f64 = weights.iter().sum();
                for i in at..at + c.head_dim {
                    attended.push(weights.iter().zip(&values).map(|(w, v)| w * v[i]).sum::<f64>() / total);
                }
            }
            hidden[row].iter_mut().zip(o(&attended)).for_each(|(x, y)| *x += y);
        }
        let [gate, up, down] = ["gate_proj", "up_proj", "down_proj"].map(|p| linear(&format!("mlp.{p}")));
        let before = get(&name("post_attention_layernorm.weight"));
        for x in &mut hidden {
            let normed = norm(x, &before);
            let gated: Vec<f64> =
                gate(&normed).iter().zip(up(&normed)).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            x.iter_mut().zip(down(&gated)).for_each(|(x, y)| *x += y);
        }
    }
    let (last, head) = (get("model.norm.weight"), matrix("lm_head.weight").unwrap_or(embedding));
    hidden.iter().map(|x| head.times(&norm(x, &last))).collect()
}
