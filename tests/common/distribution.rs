//! How the tokens of many generations are distributed, against the probabilities of a model so small that all its
//! continuations can be counted.

use std::{collections::HashMap, path::Path};

use warploom::{
    backend::Backend,
    checkpoint::Config,
    decode::{Generator, Limits, Request},
    model::Llama,
};

use super::logits;

/// Tokens of the tiny model's vocabulary.
const VOCAB: usize = 5;

/// Writes a checkpoint of three layers with random weights in f32.
pub fn write_tiny(dir: &Path) {
    let config = r#"{"model_type":"llama","hidden_size":16,"intermediate_size":24,"num_hidden_layers":3,
        "num_attention_heads":2,"num_key_value_heads":1,"vocab_size":5,"max_position_embeddings":64,
        "rms_norm_eps":1e-5}"#;
    assert_eq!(write_random(dir, config).vocab, VOCAB);
}

/// Writes a checkpoint with this `config.json` and random weights in f32.
pub fn write_random(dir: &Path, config: &str) -> Config {
    std::fs::write(dir.join("config.json"), config).unwrap();
    let config = Config::from_dir(dir).unwrap();
    let mut state = 12345u64;
    let mut tensors = Vec::new();
    for (name, shape) in config.tensors() {
        let count: usize = shape.iter().product();
        let bytes: Vec<u8> = (0..count)
            .flat_map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let noise = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
                let value = if name.contains("norm") { 1.0 + 0.3 * noise } else { 0.6 * noise };
                value.to_le_bytes()
            })
            .collect();
        tensors.push((name, shape, bytes));
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (
            name.clone(),
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    config
}

/// Probabilities of continuations by their tokens.
type Probabilities = HashMap<Vec<u32>, f64>;

/// The joint distribution of the tiny model's next tokens, and the one that rounds would give which replace a refused
/// draft by a draw from p itself, not from the residual. (Of the first token, that is; further ones add to it.)
pub struct Joint {
    right: Probabilities,
    without_residual: Probabilities,
}

impl Joint {
    /// Of `tokens` tokens after `prompt`, drafted by the first `exit_layer` layers.
    pub fn new<B: Backend>(
        llama: &Llama<B>,
        prompt: &[u32],
        tokens: usize,
        exit_layer: usize,
        temperature: f32,
    ) -> Joint {
        let next = |ids: &[u32], layers| {
            let rows = logits(llama, &[prompt, ids].concat(), layers);
            softmax(rows.last().unwrap(), temperature)
        };
        let (p, q) = (next(&[], llama.config().layers), next(&[], exit_layer));
        let kept: Vec<f64> = p.iter().zip(&q).map(|(p, q)| p.min(*q)).collect();
        let refused = 1.0 - kept.iter().sum::<f64>();
        let mut joint = Joint { right: HashMap::new(), without_residual: HashMap::new() };
        for (id, (p, kept)) in p.iter().zip(&kept).enumerate() {
            joint.right.insert(vec![id as u32], *p);
            joint.without_residual.insert(vec![id as u32], kept + refused * p);
        }
        for _ in 1..tokens {
            let (right, without) =
                (std::mem::take(&mut joint.right), std::mem::take(&mut joint.without_residual));
            for (ids, probability) in right {
                for (id, p) in next(&ids, llama.config().layers).iter().enumerate() {
                    let more = [&ids[..], &[id as u32]].concat();
                    joint.without_residual.insert(more.clone(), without[&ids] * p);
                    joint.right.insert(more, probability * p);
                }
            }
        }
        joint
    }

    /// Asserts that counts come from this distribution, and that they would tell it from the one without residual.
    pub fn assert_right(&self, counts: &Counts, what: &str) {
        let (right, other) = (counts.chi_squared(&self.right), counts.chi_squared(&self.without_residual));
        assert!(!too_large(right), "{what}: {right:?}");
        assert!(too_large(other), "{what}: the test has no teeth: {other:?}");
    }
}

fn softmax(logits: &[f32], temperature: f32) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|l| (f64::from(*l) / f64::from(temperature)).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// How often each continuation came about.
pub struct Counts {
    observed: Probabilities,
    total: f64,
    pub drafted: usize,
    pub accepted: usize,
}

impl Counts {
    /// Of the first `tokens` tokens of `requests`, as many at a time as `limits` says.
    pub fn new<B: Backend>(
        llama: &Llama<B>,
        limits: Limits,
        tokens: usize,
        requests: impl Iterator<Item = Request>,
    ) -> Counts {
        let mut counts = Counts { observed: HashMap::new(), total: 0.0, drafted: 0, accepted: 0 };
        let mut generator = Generator::new(llama, limits).unwrap();
        let mut requests = requests.peekable();
        while requests.peek().is_some() {
            let slots: Vec<usize> = requests
                .by_ref()
                .take(limits.sequences)
                .map(|request| generator.start(request).unwrap())
                .collect();
            while generator.is_active() {
                generator.round(&mut |_: usize, _: u32| None).unwrap();
            }
            for slot in slots {
                let done = generator.finish(slot).unwrap();
                counts.drafted += done.stats.drafted;
                counts.accepted += done.stats.accepted;
                counts.total += 1.0;
                *counts.observed.entry(done.ids[..tokens].to_vec()).or_default() += 1.0;
            }
        }
        counts
    }

    /// Chi-squared against `expected`, cells under 8 merged; and the degrees of freedom.
    fn chi_squared(&self, expected: &Probabilities) -> (f64, f64) {
        let (mut statistic, mut cells) = (0.0, 0.0);
        let (mut rest_observed, mut rest_expected) = (0.0, 0.0);
        for (key, p) in expected {
            let (o, e) = (self.observed.get(key).copied().unwrap_or(0.0), p * self.total);
            if e < 8.0 {
                rest_observed += o;
                rest_expected += e;
            } else {
                statistic += (o - e) * (o - e) / e;
                cells += 1.0;
            }
        }
        if rest_expected > 0.0 {
            statistic += (rest_observed - rest_expected) * (rest_observed - rest_expected) / rest_expected;
            cells += 1.0;
        }
        (statistic, cells - 1.0)
    }
}

/// Whether a chi-squared statistic is beyond what chance gives once in some 10,000 trials (Wilson–Hilferty).
fn too_large((statistic, freedom): (f64, f64)) -> bool {
    let z = ((statistic / freedom).cbrt() - (1.0 - 2.0 / (9.0 * freedom))) / (2.0 / (9.0 * freedom)).sqrt();
    z > 3.8
}
