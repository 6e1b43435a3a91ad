//! The published Llama models: parameters, KV cache per token and the head's cost, from their configs.

use std::path::Path;

use serde_json::json;
use warploom::checkpoint::{Config, Dtype, PUBLISHED, Published, RopeScaling, footprint::Footprint};

/// What is known of a published model: its parameters, and KiB of KV cache per token with 16-bit values.
const KNOWN: [(&str, u64, u64); 9] = [
    ("llama2-7b", 6_738_415_616, 512),
    ("llama2-13b", 13_015_864_320, 800),
    ("codellama-34b", 33_743_970_304, 192),
    ("llama2-70b", 68_976_648_192, 320),
    ("llama3-8b", 8_030_261_248, 128),
    ("llama3-70b", 70_553_706_496, 320),
    ("llama3.1-405b", 405_853_388_800, 504),
    ("llama3.2-1b", 1_235_814_400, 32),
    ("llama3.2-3b", 3_212_749_824, 112),
];

fn config(name: &str) -> Config {
    Published::named(name).unwrap().config()
}

#[test]
fn published_models_have_their_parameters_and_cache() {
    assert_eq!(KNOWN.map(|(name, ..)| name), PUBLISHED.map(|published| published.name));
    for (name, parameters, kv_kib) in KNOWN {
        let config = config(name);
        let footprint = Footprint::of_config(&config, config.dtype.unwrap(), false);
        assert_eq!(footprint.parameters, parameters, "{name}");
        assert_eq!(footprint.weight_bytes, 2 * parameters, "{name}");
        assert_eq!(footprint.kv_bytes_per_token(2), kv_kib * 1024, "{name}");
        let listed: usize = config.tensors().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(listed as u64, parameters, "{name}");
    }
}

#[test]
fn a_name_that_is_none_is_refused_with_those_there_are() {
    assert_eq!(Published::named("LLAMA3-8B").unwrap().name, "llama3-8b");
    let error = Published::named("llama4-8b\n").unwrap_err().to_string();
    assert!(
        error.contains("'llama4-8b\\n' is none of llama2-7b, ") && error.contains("llama3.2-3b"),
        "{error}"
    );
}

#[test]
fn the_head_costs_what_early_exit_counts_for_it() {
    for (name, h) in [("llama2-7b", 0.65), ("llama2-13b", 0.52), ("llama3-8b", 2.41), ("llama3.2-1b", 4.32)] {
        let footprint = Footprint::of_config(&config(name), Dtype::Bf16, false);
        assert!((footprint.head_in_layers() - h).abs() < 0.005, "{name}: {}", footprint.head_in_layers());
    }
}

#[test]
fn published_rope_scaling_is_read() {
    let large = config("llama3.1-405b");
    let llama3 = |factor| RopeScaling::Llama3 { factor, low: 1.0, high: 4.0, original: 8192.0 };
    assert_eq!((large.rope.theta, large.rope.scaling), (500_000.0, llama3(8.0)));
    assert_eq!(config("llama3.2-1b").rope.scaling, llama3(32.0));
    assert_eq!((config("codellama-34b").rope.theta, config("llama2-7b").rope.theta), (1e6, 1e4));
}

#[test]
fn a_window_in_every_layer_bounds_the_cache() {
    let mut fields = json!({"model_type": "mistral", "num_hidden_layers": 32, "hidden_size": 4096,
        "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
        "max_position_embeddings": 32768, "sliding_window": 4096});
    let footprint = |fields: &serde_json::Value| {
        let config =
            Config::from_json(Path::new("config.json"), fields.to_string().as_bytes(), None).unwrap();
        Footprint::of_config(&config, Dtype::Bf16, false)
    };
    let windowed = footprint(&fields);
    assert_eq!(windowed.parameters, 7_241_732_096);
    assert_eq!(windowed.kv_bytes(32_768, 2), 4096 * 128 * 1024);
    assert_eq!(windowed.kv_bytes(100, 2), 100 * 128 * 1024);
    fields["sliding_window"] = json!(null);
    assert_eq!(footprint(&fields).kv_bytes(32_768, 2), 32_768 * 128 * 1024);
}
