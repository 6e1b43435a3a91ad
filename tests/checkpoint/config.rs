//! Every field of `config.json`: what is read, what its absence means, and what is refused.

use std::path::Path;

use serde_json::{Value, json};
use warploom::{
    Result,
    checkpoint::{Config, Dtype, RopeScaling},
    mask::{Mask, Pattern},
};

use super::folder::tiny_config;

/// The tiny config with `changes` made; `null` stays `null`.
fn parse(changes: Value) -> Result<Config> {
    parse_with(changes, None)
}

fn parse_with(changes: Value, generation: Option<Value>) -> Result<Config> {
    let mut config = tiny_config();
    config.extend(changes.as_object().unwrap().clone());
    let generation = generation.map(|value| value.to_string());
    Config::from_json(
        Path::new("config.json"),
        &serde_json::to_vec(&config).unwrap(),
        generation.as_deref().map(str::as_bytes),
    )
}

fn without(field: &str) -> Result<Config> {
    let mut config = tiny_config();
    config.remove(field).expect("present");
    Config::from_json(Path::new("config.json"), &serde_json::to_vec(&config).unwrap(), None)
}

fn scaling(changes: Value) -> RopeScaling {
    parse(json!({ "rope_scaling": changes })).unwrap().rope.scaling
}

#[test]
fn absent_fields_have_their_defaults() {
    let config = parse(json!({})).unwrap();
    assert_eq!((config.rope.theta, config.rope.scaling), (10_000.0, RopeScaling::Default));
    assert_eq!((config.bos, config.eos), (Some(1), vec![2]));
    assert_eq!((config.head_dim, config.dtype), (4, None));
    assert!(!config.attention_bias && !config.mlp_bias);
    assert_eq!(config.masks, [Mask::CAUSAL; 2]);
    assert_eq!(without("num_key_value_heads").unwrap().kv_heads, 2);
    assert_eq!(without("rms_norm_eps").unwrap().rms_norm_eps, 1e-6);
    assert_eq!(without("max_position_embeddings").unwrap().context, 2048);
    assert!(!without("tie_word_embeddings").unwrap().tied);
    assert!(without("hidden_act").is_ok());
    assert_eq!(parse(json!({"num_key_value_heads": null, "head_dim": null})).unwrap().kv_heads, 2);
}

#[test]
fn head_dim_need_not_be_hidden_over_heads() {
    let config = parse(json!({"head_dim": 6, "num_attention_heads": 3})).unwrap();
    assert_eq!((config.query_width(), config.kv_width()), (18, 6));
    let shape = |name: &str| config.tensors().find(|(tensor, _)| tensor.contains(name)).unwrap().1;
    assert_eq!(shape("q_proj"), [18, 8]);
    assert_eq!(shape("v_proj"), [6, 8]);
    assert_eq!(shape("o_proj"), [8, 18]);
}

#[test]
fn biases_add_tensors() {
    let names = |changes| -> Vec<String> {
        let config = parse(changes).unwrap();
        config.tensors().map(|(name, _)| name).filter(|name| name.ends_with("bias")).collect()
    };
    assert_eq!(names(json!({"attention_bias": true})).len(), 2 * 4);
    assert_eq!(names(json!({"mlp_bias": true})).len(), 2 * 3);
    assert!(names(json!({"attention_bias": true})).contains(&"model.layers.1.self_attn.o_proj.bias".into()));
}

#[test]
fn end_of_sequence_is_one_id_or_several_and_generation_config_wins() {
    let eos = |config: Value, generation: Option<Value>| parse_with(config, generation).unwrap().eos;
    assert_eq!(eos(json!({"eos_token_id": 5}), None), [5]);
    assert_eq!(eos(json!({"eos_token_id": [5, 6]}), None), [5, 6]);
    assert_eq!(eos(json!({"eos_token_id": null}), None), Vec::<u32>::new());
    assert_eq!(eos(json!({"eos_token_id": 5}), Some(json!({"eos_token_id": [7, 8, 9]}))), [7, 8, 9]);
    assert_eq!(eos(json!({"eos_token_id": 5}), Some(json!({"eos_token_id": null}))), [5]);
    assert_eq!(eos(json!({"eos_token_id": 5}), Some(json!({}))), [5]);
    assert_eq!(parse(json!({"bos_token_id": null})).unwrap().bos, None);
}

#[test]
fn a_dtype_is_a_hint_under_either_name() {
    assert_eq!(parse(json!({"torch_dtype": "bfloat16"})).unwrap().dtype, Some(Dtype::Bf16));
    assert_eq!(parse(json!({"dtype": "float16"})).unwrap().dtype, Some(Dtype::F16));
    assert_eq!(parse(json!({"torch_dtype": "float8_e4m3fn"})).unwrap().dtype, None);
}

#[test]
fn every_rope_type_is_read_in_both_forms() {
    for key in ["rope_type", "type"] {
        assert_eq!(scaling(json!({key: "default"})), RopeScaling::Default);
        assert_eq!(scaling(json!({key: "linear", "factor": 4})), RopeScaling::Linear { factor: 4.0 });
    }
    assert_eq!(
        scaling(
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32})
        ),
        RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 32.0 }
    );
    let config =
        parse(json!({"rope_theta": 1e4, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}))
            .unwrap();
    assert_eq!((config.rope.theta, config.rope.scaling), (5e5, RopeScaling::Linear { factor: 2.0 }));
    assert_eq!(parse(json!({"rope_theta": 2e4, "rope_scaling": {}})).unwrap().rope.theta, 2e4);
}

#[test]
fn dynamic_scaling_extends_the_context() {
    let config = parse(json!({"rope_scaling": {"type": "dynamic", "factor": 2.5}})).unwrap();
    assert_eq!(config.rope.scaling, RopeScaling::Dynamic { factor: 2.5 });
    assert_eq!((config.max_positions, config.context), (64, 160));
    assert_eq!(parse(json!({"rope_scaling": {"type": "linear", "factor": 2.5}})).unwrap().context, 64);
}

#[test]
fn yarn_has_the_defaults_of_its_paper() {
    let yarn = |changes: Value| {
        let mut fields = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16});
        fields.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        scaling(fields)
    };
    let expected = |attention_factor: f64| RopeScaling::Yarn {
        factor: 4.0,
        original: 16.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor,
        truncate: true,
    };
    assert_eq!(yarn(json!({})), expected(0.1 * 4f64.ln() + 1.0));
    assert_eq!(yarn(json!({"attention_factor": 1.5})), expected(1.5));
    assert_eq!(yarn(json!({"mscale": 1.0, "mscale_all_dim": 1.0})), expected(1.0));
    assert_eq!(yarn(json!({"mscale": 1.0})), expected(0.1 * 4f64.ln() + 1.0));
    assert_eq!(yarn(json!({"beta_fast": null, "beta_slow": 0})), expected(0.1 * 4f64.ln() + 1.0));
    assert_eq!(
        yarn(json!({"mscale": 2.0, "mscale_all_dim": 0.5})),
        expected((0.2 * 4f64.ln() + 1.0) / (0.05 * 4f64.ln() + 1.0))
    );
    let RopeScaling::Yarn { truncate, .. } = yarn(json!({"truncate": false})) else { panic!() };
    assert!(!truncate);
    // An absent factor is the ratio of the two lengths, an absent original length the model's own.
    assert_eq!(yarn(json!({"factor": null})), expected(0.1 * 4f64.ln() + 1.0));
    let RopeScaling::Yarn { original, .. } = yarn(json!({"original_max_position_embeddings": null})) else {
        panic!()
    };
    assert_eq!(original, 64.0);
}

#[test]
fn rope_parameters_per_layer_type_must_agree() {
    let nested = |theta: f64| {
        parse(json!({"rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": theta},
        }}))
    };
    assert_eq!(nested(5e5).unwrap().rope.theta, 5e5);
    let error = nested(1e4).unwrap_err().to_string();
    assert!(error.contains("rope_parameters") && error.contains("sliding_attention"), "{error}");
}

#[test]
fn windows_and_chunks_become_masks() {
    let masks = |changes| parse(changes).unwrap().masks;
    let window = Mask { pattern: Pattern::Window { keys: 5 }, prefix: 0 };
    let chunk = Mask { pattern: Pattern::Chunk { keys: 7 }, prefix: 0 };
    assert_eq!(masks(json!({"model_type": "mistral", "sliding_window": 5})), [window; 2]);
    assert_eq!(masks(json!({"model_type": "mistral", "sliding_window": null})), [Mask::CAUSAL; 2]);
    // Llama's graph has no window of its own.
    assert_eq!(masks(json!({"sliding_window": 5})), [Mask::CAUSAL; 2]);
    let types = json!(["sliding_attention", "full_attention"]);
    assert_eq!(masks(json!({"sliding_window": 5, "layer_types": types})), [window, Mask::CAUSAL]);
    let types = json!(["full_attention", "chunked_attention"]);
    assert_eq!(masks(json!({"attention_chunk_size": 7, "layer_types": types})), [Mask::CAUSAL, chunk]);
}
