//! The published Llama models by name: their configs, without weights, for what asks for shapes alone.

use std::path::Path;

use super::Config;
use crate::error::{Error, Result, printable};

/// A published model. The config of a checkpoint always wins over what is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its name, in small letters and without spaces: `llama3-8b`. Llama 3 and 3.1 of one size have the same shapes.
    pub name: &'static str,
    /// Its config.json, as far as it matters.
    json: &'static str,
}

impl Published {
    /// The model of that name.
    ///
    /// # Errors
    /// [`Error::Argument`] that lists the names there are.
    pub fn named(name: &str) -> Result<Published> {
        let found = PUBLISHED.into_iter().find(|published| published.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            let names: Vec<&str> = PUBLISHED.iter().map(|published| published.name).collect();
            Error::argument("model", format!("'{}' is none of {}", printable(name), names.join(", ")))
        })
    }

    /// Its config.json, as far as it matters.
    pub fn json(&self) -> &'static str {
        self.json
    }

    /// What the model is.
    pub fn config(&self) -> Config {
        Config::from_json(Path::new(self.name), self.json.as_bytes(), None)
            .expect("a test reads each of these configs")
    }
}

/// All that are known by name.
pub const PUBLISHED: [Published; 9] = [
    Published {
        name: "llama2-7b",
        json: r#"{"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008,
            "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096, "rope_scaling": null, "torch_dtype": "float16"}"#,
    },
    Published {
        name: "llama2-13b",
        json: r#"{"model_type": "llama", "num_hidden_layers": 40, "hidden_size": 5120, "intermediate_size": 13824,
            "num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 32000, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096, "torch_dtype": "float16"}"#,
    },
    Published {
        name: "codellama-34b",
        json: r#"{"model_type": "llama", "num_hidden_layers": 48, "hidden_size": 8192, "intermediate_size": 22016,
            "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 16384, "rope_theta": 1000000, "torch_dtype": "bfloat16"}"#,
    },
    Published {
        name: "llama2-70b",
        json: r#"{"model_type": "llama", "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672,
            "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096, "torch_dtype": "float16"}"#,
    },
    Published {
        name: "llama3-8b",
        json: r#"{"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192, "rope_theta": 500000.0, "torch_dtype": "bfloat16"}"#,
    },
    Published {
        name: "llama3-70b",
        json: r#"{"model_type": "llama", "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672,
            "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192, "rope_theta": 500000.0, "torch_dtype": "bfloat16"}"#,
    },
    Published {
        name: "llama3.1-405b",
        json: r#"{"model_type": "llama", "num_hidden_layers": 126, "hidden_size": 16384, "intermediate_size": 53248,
            "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
            "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3"}}"#,
    },
    Published {
        name: "llama3.2-1b",
        json: r#"{"model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "rope_theta": 500000.0,
            "tie_word_embeddings": true, "torch_dtype": "bfloat16",
            "rope_scaling": {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3"}}"#,
    },
    Published {
        name: "llama3.2-3b",
        json: r#"{"model_type": "llama", "num_hidden_layers": 28, "hidden_size": 3072, "intermediate_size": 8192,
            "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "rope_theta": 500000.0,
            "tie_word_embeddings": true, "torch_dtype": "bfloat16",
            "rope_scaling": {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3"}}"#,
    },
];
