//! All weights in one flat buffer: where each lies, what it is called on disk, and how it starts.

use std::ops::Range;

use half::{bf16, f16};
use rand_chacha::{ChaCha8Rng, rand_core::Rng};

use crate::{
    Error, Result,
    checkpoint::{self, Checkpoint, Config, Dtype, EMBEDDING, HEAD, NORM},
};

/// One weight as a checkpoint stores it.
pub struct Tensor {
    /// Hugging Face name.
    pub name: String,
    /// `[out, in]`, or `[hidden]` for a norm.
    pub shape: Vec<usize>,
    /// Its values in the flat buffer.
    pub range: Range<usize>,
}

/// Where the weights of one layer lie. Matrices are `[out, in]`, row-major; those that read the same input
/// are neighbours, so that one product serves them all. A bias that the model does not have is empty.
#[derive(Clone)]
pub struct LayerLayout {
    /// q, k and v projections, one above the other: `[(heads + 2·kv_heads)·head_dim, hidden]`.
    pub qkv: Range<usize>,
    /// Output projection: `[hidden, heads·head_dim]`.
    pub output: Range<usize>,
    /// Gate and up projections, one above the other: `[2·intermediate, hidden]`.
    pub gate_up: Range<usize>,
    /// Down projection: `[hidden, intermediate]`.
    pub down: Range<usize>,
    /// Norm before attention: `[hidden]`.
    pub input_norm: Range<usize>,
    /// Norm before the feed-forward block: `[hidden]`.
    pub post_norm: Range<usize>,
    /// Of q, k and v.
    pub qkv_bias: Range<usize>,
    /// Of the output projection: `[hidden]`.
    pub output_bias: Range<usize>,
    /// Of gate and up.
    pub gate_up_bias: Range<usize>,
    /// Of the down projection: `[hidden]`.
    pub down_bias: Range<usize>,
}

/// Where every weight lies. Norms and biases come last, after all matrices.
#[derive(Clone)]
pub struct Layout {
    /// Embedding: `[vocab, hidden]`.
    pub embedding: Range<usize>,
    /// Head: `[vocab, hidden]`; the embedding itself where they are tied.
    pub head: Range<usize>,
    /// Layers, first to last.
    pub layers: Vec<LayerLayout>,
    /// Norm before the head, at every exit: `[hidden]`.
    pub norm: Range<usize>,
    /// Number of values in matrices; those after it belong to norms and biases.
    pub matrices: usize,
    /// Number of values.
    pub len: usize,
}

impl Layout {
    /// The layout of a model.
    pub fn new(config: &Config) -> Self {
        let Config { hidden, intermediate, vocab, .. } = *config;
        let (query, kv) = (config.query_width(), config.kv_width());
        let mut len = 0;
        let mut take = |count: usize| {
            len += count;
            len - count..len
        };
        let embedding = take(vocab * hidden);
        let none = 0..0;
        let mut layers: Vec<LayerLayout> = (0..config.layers)
            .map(|_| LayerLayout {
                qkv: take((query + 2 * kv) * hidden),
                output: take(hidden * query),
                gate_up: take(2 * intermediate * hidden),
                down: take(hidden * intermediate),
                input_norm: none.clone(),
                post_norm: none.clone(),
                qkv_bias: none.clone(),
                output_bias: none.clone(),
                gate_up_bias: none.clone(),
                down_bias: none.clone(),
            })
            .collect();
        let head = if config.tied { embedding.clone() } else { take(vocab * hidden) };
        let matrices = take(0).start;
        for layer in &mut layers {
            layer.input_norm = take(hidden);
            layer.post_norm = take(hidden);
            if config.attention_bias {
                layer.qkv_bias = take(query + 2 * kv);
                layer.output_bias = take(hidden);
            }
            if config.mlp_bias {
                layer.gate_up_bias = take(2 * intermediate);
                layer.down_bias = take(hidden);
            }
        }
        let norm = take(hidden);
        Layout { embedding, head, layers, norm, matrices, len }
    }

    /// Every weight under its checkpoint name, in the order of the buffer.
    pub fn tensors(&self, config: &Config) -> Vec<Tensor> {
        let mut tensors: Vec<Tensor> = config
            .tensors()
            .map(|(name, shape)| {
                let start = self.start(config, &name);
                Tensor { range: start..start + shape.iter().product::<usize>(), name, shape }
            })
            .collect();
        tensors.sort_unstable_by_key(|tensor| tensor.range.start);
        tensors
    }

    /// Where the weight `name`, one of [`Config::tensors`], begins.
    fn start(&self, config: &Config, name: &str) -> usize {
        let Some(rest) = name.strip_prefix("model.layers.") else {
            return match name {
                EMBEDDING => self.embedding.start,
                NORM => self.norm.start,
                HEAD => self.head.start,
                other => unreachable!("{other} is no weight of a Llama model"),
            };
        };
        let (layer, part) = rest.split_once('.').unwrap_or((rest, ""));
        let layer = &self.layers[layer.parse::<usize>().expect("layers have numbers")];
        let (query, kv, wide) = (config.query_width(), config.kv_width(), config.intermediate);
        let hidden = config.hidden;
        match part {
            "self_attn.q_proj.weight" => layer.qkv.start,
            "self_attn.k_proj.weight" => layer.qkv.start + query * hidden,
            "self_attn.v_proj.weight" => layer.qkv.start + (query + kv) * hidden,
            "self_attn.o_proj.weight" => layer.output.start,
            "mlp.gate_proj.weight" => layer.gate_up.start,
            "mlp.up_proj.weight" => layer.gate_up.start + wide * hidden,
            "mlp.down_proj.weight" => layer.down.start,
            "input_layernorm.weight" => layer.input_norm.start,
            "post_attention_layernorm.weight" => layer.post_norm.start,
            "self_attn.q_proj.bias" => layer.qkv_bias.start,
            "self_attn.k_proj.bias" => layer.qkv_bias.start + query,
            "self_attn.v_proj.bias" => layer.qkv_bias.start + query + kv,
            "self_attn.o_proj.bias" => layer.output_bias.start,
            "mlp.gate_proj.bias" => layer.gate_up_bias.start,
            "mlp.up_proj.bias" => layer.gate_up_bias.start + wide,
            "mlp.down_proj.bias" => layer.down_bias.start,
            other => unreachable!("{other} is no weight of a Llama layer"),
        }
    }

    /// Initial weights: norms 1, biases 0, matrices normal with deviation 0.02, and those that write into the
    /// residual stream divided by √(2L), so that its variance does not grow with depth (GPT-2).
    pub fn initial(&self, rng: &mut ChaCha8Rng) -> Vec<f32> {
        let mut weights = vec![1.0f32; self.len];
        for weight in &mut weights[..self.matrices] {
            *weight = 0.02 * normal(rng);
        }
        let residual = 1.0 / (2.0 * self.layers.len() as f32).sqrt();
        for layer in &self.layers {
            for range in [&layer.output, &layer.down] {
                weights[range.clone()].iter_mut().for_each(|weight| *weight *= residual);
            }
            for range in [&layer.qkv_bias, &layer.output_bias, &layer.gate_up_bias, &layer.down_bias] {
                weights[range.clone()].fill(0.0);
            }
        }
        weights
    }

    /// The weights of a checkpoint, in f32.
    ///
    /// # Errors
    /// [`Error::Tensor`] for weights in fp8, which have no gradients, and for those that are not finite.
    pub fn read(&self, checkpoint: &Checkpoint, dir: &std::path::Path) -> Result<Vec<f32>> {
        let mut weights = vec![0.0f32; self.len];
        for Tensor { name, shape, range } in self.tensors(&checkpoint.config) {
            let tensor = checkpoint.tensor(&name, &shape)?;
            let fail = |reason: &str| Error::Tensor {
                path: dir.to_owned(),
                tensor: name.clone(),
                reason: reason.to_owned(),
            };
            let weights = &mut weights[range];
            if !widen(&tensor, weights) {
                return Err(fail(
                    "is in fp8, which cannot be trained; give the checkpoint in f32, f16 or bf16",
                ));
            }
            if weights.iter().any(|weight| !weight.is_finite()) {
                return Err(fail("holds NaN or infinity"));
            }
        }
        Ok(weights)
    }
}

/// Writes a tensor's elements as f32; false for types that are none of the three float types.
fn widen(tensor: &checkpoint::Tensor, out: &mut [f32]) -> bool {
    let bytes = tensor.bytes();
    let (halves, singles) = (bytes.as_chunks::<2>().0, bytes.as_chunks::<4>().0);
    match tensor.dtype() {
        Dtype::F32 => out.iter_mut().zip(singles).for_each(|(out, &b)| *out = f32::from_le_bytes(b)),
        Dtype::F16 => out.iter_mut().zip(halves).for_each(|(out, &b)| *out = f16::from_le_bytes(b).to_f32()),
        Dtype::Bf16 => {
            out.iter_mut().zip(halves).for_each(|(out, &b)| *out = bf16::from_le_bytes(b).to_f32());
        }
        Dtype::E4m3 => return false,
    }
    true
}

/// A uniform number in [0, 1).
pub fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// A standard normal number (Box–Muller).
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let radius = (-2.0 * (1.0 - uniform(rng)).ln()).sqrt();
    (radius * (std::f64::consts::TAU * uniform(rng)).cos()) as f32
}
