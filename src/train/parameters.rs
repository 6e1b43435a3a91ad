//! All weights in one flat buffer: where each lies, what it is called on disk, and how it starts.

use std::ops::Range;

use rand_chacha::{ChaCha8Rng, rand_core::Rng};

use super::settings::Settings;

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
/// are neighbours, so that one product serves them all.
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
}

/// Where every weight lies. Norms come last, after all matrices.
#[derive(Clone)]
pub struct Layout {
    /// Embedding and head: `[vocab, hidden]`.
    pub embedding: Range<usize>,
    /// Layers, first to last.
    pub layers: Vec<LayerLayout>,
    /// Norm before the head, at every exit: `[hidden]`.
    pub norm: Range<usize>,
    /// Number of values in matrices; those after it belong to norms.
    pub matrices: usize,
    /// Number of values.
    pub len: usize,
}

impl Layout {
    /// The layout for `settings`, which must have passed [`Settings::check`].
    pub fn new(settings: &Settings) -> Self {
        let (hidden, intermediate) = (settings.hidden, settings.intermediate);
        let qkv = (settings.heads + 2 * settings.kv_heads) * settings.head_dim();
        let mut len = 0;
        let mut take = |count: usize| {
            len += count;
            len - count..len
        };
        let embedding = take(settings.vocab * hidden);
        let mut layers: Vec<LayerLayout> = (0..settings.layers)
            .map(|_| LayerLayout {
                qkv: take(qkv * hidden),
                output: take(hidden * hidden),
                gate_up: take(2 * intermediate * hidden),
                down: take(hidden * intermediate),
                input_norm: 0..0,
                post_norm: 0..0,
            })
            .collect();
        let matrices = take(0).start;
        for layer in &mut layers {
            layer.input_norm = take(hidden);
            layer.post_norm = take(hidden);
        }
        let norm = take(hidden);
        Layout { embedding, layers, norm, matrices, len }
    }

    /// Every weight under its checkpoint name.
    pub fn tensors(&self, settings: &Settings) -> Vec<Tensor> {
        let (hidden, intermediate) = (settings.hidden, settings.intermediate);
        let kv = settings.kv_heads * settings.head_dim();
        let mut tensors = Vec::new();
        let mut add = |name: String, start: usize, shape: &[usize]| {
            let range = start..start + shape.iter().product::<usize>();
            tensors.push(Tensor { name, shape: shape.to_vec(), range });
        };
        add("model.embed_tokens.weight".into(), self.embedding.start, &[settings.vocab, hidden]);
        for (i, layer) in self.layers.iter().enumerate() {
            let (qkv, gate_up) = (layer.qkv.start, layer.gate_up.start);
            let name = |part: &str| format!("model.layers.{i}.{part}.weight");
            add(name("self_attn.q_proj"), qkv, &[hidden, hidden]);
            add(name("self_attn.k_proj"), qkv + hidden * hidden, &[kv, hidden]);
            add(name("self_attn.v_proj"), qkv + (hidden + kv) * hidden, &[kv, hidden]);
            add(name("self_attn.o_proj"), layer.output.start, &[hidden, hidden]);
            add(name("mlp.gate_proj"), gate_up, &[intermediate, hidden]);
            add(name("mlp.up_proj"), gate_up + intermediate * hidden, &[intermediate, hidden]);
            add(name("mlp.down_proj"), layer.down.start, &[hidden, intermediate]);
            add(name("input_layernorm"), layer.input_norm.start, &[hidden]);
            add(name("post_attention_layernorm"), layer.post_norm.start, &[hidden]);
        }
        add("model.norm.weight".into(), self.norm.start, &[hidden]);
        tensors
    }

    /// Initial weights: norms 1, matrices normal with deviation 0.02, and those that write into the residual
    /// stream divided by √(2L), so that its variance does not grow with depth (GPT-2).
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
        }
        weights
    }
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
