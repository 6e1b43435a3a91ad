//! A tiny valid checkpoint, made so that one thing in it can be broken at a time.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Map, Value, json};
use warploom::checkpoint::Config;

/// A tensor to be written to a safetensors file.
#[derive(Clone)]
pub struct Entry {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

/// The files of a checkpoint's folder before they are written.
#[derive(Clone, Default)]
pub struct Folder {
    pub files: BTreeMap<String, Vec<u8>>,
}

/// `config.json` of the tiny model: 2 layers, hidden 8, 2 heads on 1 KV head, feed-forward 12, vocabulary 16.
pub fn tiny_config() -> Map<String, Value> {
    let config = json!({
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 16,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": false,
    });
    config.as_object().expect("an object").clone()
}

/// The tiny model's weights, in f32, all 0.5.
pub fn tiny_tensors() -> Vec<Entry> {
    let config = serde_json::to_vec(&tiny_config()).unwrap();
    let config = Config::from_json(Path::new("config.json"), &config, None).unwrap();
    config
        .tensors()
        .map(|(name, shape)| {
            let count = shape.iter().product::<usize>();
            Entry { name, dtype: "F32", shape, data: 0.5f32.to_le_bytes().repeat(count) }
        })
        .collect()
}

/// The header that describes `tensors` one after the other.
pub fn header(tensors: &[Entry]) -> Map<String, Value> {
    let mut offset = 0;
    let mut header = Map::new();
    for tensor in tensors {
        let end = offset + tensor.data.len();
        header.insert(
            tensor.name.clone(),
            json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    header
}

/// A safetensors file with any header, right or wrong.
pub fn file_with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// A valid safetensors file.
pub fn file_of(tensors: &[Entry]) -> Vec<u8> {
    let data: Vec<u8> = tensors.iter().flat_map(|tensor| tensor.data.clone()).collect();
    file_with_header(&serde_json::to_vec(&header(tensors)).unwrap(), &data)
}

impl Folder {
    /// The tiny checkpoint in one file.
    pub fn single() -> Folder {
        let mut folder = Folder::default();
        folder.set_config(&tiny_config());
        folder.set("model.safetensors", file_of(&tiny_tensors()));
        folder
    }

    /// The tiny checkpoint in two shards.
    pub fn sharded() -> Folder {
        let mut folder = Folder::default();
        folder.set_config(&tiny_config());
        let tensors = tiny_tensors();
        let (first, second) = tensors.split_at(tensors.len() / 2);
        let mut weight_map = Map::new();
        for (shard, tensors) in [("one.safetensors", first), ("two.safetensors", second)] {
            folder.set(shard, file_of(tensors));
            weight_map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), json!(shard))));
        }
        folder.set_index(&weight_map);
        folder
    }

    pub fn set(&mut self, name: &str, bytes: impl Into<Vec<u8>>) {
        self.files.insert(name.to_owned(), bytes.into());
    }

    pub fn set_config(&mut self, config: &Map<String, Value>) {
        self.set("config.json", serde_json::to_vec(config).unwrap());
    }

    pub fn set_index(&mut self, weight_map: &Map<String, Value>) {
        let index = json!({"metadata": {"total_size": 0}, "weight_map": weight_map});
        self.set("model.safetensors.index.json", serde_json::to_vec(&index).unwrap());
    }

    pub fn weight_map(&self) -> Map<String, Value> {
        let index: Value = serde_json::from_slice(&self.files["model.safetensors.index.json"]).unwrap();
        index["weight_map"].as_object().unwrap().clone()
    }

    /// Writes the files into `dir`.
    pub fn write(&self, dir: &Path) {
        for (name, bytes) in &self.files {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
    }
}
