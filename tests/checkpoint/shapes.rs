//! The published Llama models: parameters, KV cache per token and the head's cost, from their configs.

use std::path::Path;

use serde_json::json;
use warploom::checkpoint::{Config, Dtype, RopeScaling, footprint::Footprint};

/// A published model: its config and what is known of it.
struct Published {
    name: &'static str,
    config: &'static str,
    parameters: u64,
    /// KiB of KV cache per token with 16-bit values.
    kv_kib: u64,
}

const PUBLISHED: [Published; 9] = [
    Published {
        name: "Llama 2 7B",
        config: r#"{"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008,
            "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096, "rope_scaling": null, "torch_dtype": "float16"}"#,
        parameters: 6_738_415_616,
        kv_kib: 512,
    },
    Published {
        name: "Llama 2 13B",
        config: r#"{"model_type": "llama", "num_hidden_layers": 40, "hidden_size": 5120, "intermediate_size": 13824,
            "num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 32000, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096, "torch_dtype": "float16"}"#,
        parameters: 13_015_864_320,
        kv_kib: 800,
    },
    Published {
        name: "CodeLlama 34B",
        config: r#"{"model_type": "llama", "num_hidden_layers": 48, "hidden_size": 8192, "intermediate_size": 22016,
            "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 16384, "rope_theta": 1000000, "torch_dtype": "bfloat16"}"#,
        parameters: 33_743_970_304,
        kv_kib: 192,
    },
    Published {
        name: "Llama 2 70B",
        config: r#"{"model_type": "llama", "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672,
            "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096, "torch_dtype": "float16"}"#,
        parameters: 68_976_648_192,
        kv_kib: 320,
    },
    Published {
        name: "Llama 3 8B",
        config: r#"{"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192, "rope_theta": 500000.0, "torch_dtype": "bfloat16"}"#,
        parameters: 8_030_261_248,
        kv_kib: 128,
    },
    Published {
        name: "Llama 3 70B",
        config: r#"{"model_type": "llama", "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672,
            "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192, "rope_theta": 500000.0, "torch_dtype": "bfloat16"}"#,
        parameters: 70_553_706_496,
        kv_kib: 320,
    },
    Published {
        name: "Llama 3.1 405B",
        config: r#"{"model_type": "llama", "num_hidden_layers": 126, "hidden_size": 16384, "intermediate_size": 53248,
            "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
            "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3"}}"#,
        parameters: 405_853_388_800,
        kv_kib: 504,
    },
    Published {
        name: "Llama 3.2 1B",
        config: r#"{"model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "rope_theta": 500000.0,
            "tie_word_embeddings": true, "torch_dtype": "bfloat16",
            "rope_scaling": {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3"}}"#,
        parameters: 1_235_814_400,
        kv_kib: 32,
    },
    Published {
        name: "Llama 3.2 3B",
        config: r#"{"model_type": "llama", "num_hidden_layers": 28, "hidden_size": 3072, "intermediate_size": 8192,
            "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "rope_theta": 500000.0,
            "tie_word_embeddings": true, "torch_dtype": "bfloat16",
            "rope_scaling": {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3"}}"#,
        parameters: 3_212_749_824,
        kv_kib: 112,
    },
];

fn config(published: &Published) -> Config {
    Config::from_json(Path::new("config.json"), published.config.as_bytes(), None)
        .unwrap_or_else(|e| panic!("{}: {e}", published.name))
}

#[test]
fn published_models_have_their_parameters_and_cache() {
    for published in &PUBLISHED {
        let config = config(published);
        let footprint = Footprint::of_config(&config, config.dtype.unwrap(), false);
        assert_eq!(footprint.parameters, published.parameters, "{}", published.name);
        assert_eq!(footprint.weight_bytes, 2 * published.parameters, "{}", published.name);
        assert_eq!(footprint.kv_bytes_per_token(2), published.kv_kib * 1024, "{}", published.name);
        let listed: usize = config.tensors().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(listed as u64, published.parameters, "{}", published.name);
    }
}

#[test]
fn the_head_costs_what_early_exit_counts_for_it() {
    for (name, h) in
        [("Llama 2 7B", 0.65), ("Llama 2 13B", 0.52), ("Llama 3 8B", 2.41), ("Llama 3.2 1B", 4.32)]
    {
        let published = PUBLISHED.iter().find(|published| published.name == name).unwrap();
        let footprint = Footprint::of_config(&config(published), Dtype::Bf16, false);
        assert!((footprint.head_in_layers() - h).abs() < 0.005, "{name}: {}", footprint.head_in_layers());
    }
}

#[test]
fn published_rope_scaling_is_read() {
    let large = config(&PUBLISHED[6]);
    let llama3 = |factor| RopeScaling::Llama3 { factor, low: 1.0, high: 4.0, original: 8192.0 };
    assert_eq!((large.rope.theta, large.rope.scaling), (500_000.0, llama3(8.0)));
    assert_eq!(config(&PUBLISHED[7]).rope.scaling, llama3(32.0));
    assert_eq!((config(&PUBLISHED[2]).rope.theta, config(&PUBLISHED[0]).rope.theta), (1e6, 1e4));
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
