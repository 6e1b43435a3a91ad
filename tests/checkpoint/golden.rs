//! Every golden checkpoint opens, with the parameters that its makers counted.

use std::path::{Path, PathBuf};

use serde_json::Value;
use warploom::checkpoint::{Checkpoint, Config, Dtype, HEAD};

fn golden_folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut folders: Vec<PathBuf> = std::fs::read_dir(root)
        .expect("tests/golden")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    assert_eq!(folders.len(), 6);
    folders
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("readable")).expect("JSON")
}

#[test]
fn golden_checkpoints_open_with_their_parameters() {
    for folder in golden_folders() {
        let golden = read_json(&folder.join("golden.json"));
        let checkpoint = Checkpoint::open(&folder).unwrap_or_else(|e| panic!("{e}"));
        let config = &checkpoint.config;
        assert_eq!(Some(config.parameters()), golden["params"].as_u64(), "{}", folder.display());
        assert_eq!(Some(config.layers as u64), golden["layers"].as_u64());
        assert_eq!(Some(config.vocab as u64), golden["vocab_size"].as_u64());
        assert_eq!(Some(config.head_dim as u64), golden["head_dim"].as_u64());
        let dtype = if folder.ends_with("mqa_f16") || folder.ends_with("odd_all_f16") {
            Dtype::F16
        } else {
            Dtype::Bf16
        };
        let mut bytes = 0;
        for (name, shape) in config.tensors() {
            let tensor = checkpoint.tensor(&name, &shape).expect("checked when opened");
            assert_eq!(tensor.dtype(), dtype);
            assert_eq!(tensor.rows() * tensor.columns(), shape.iter().product::<usize>());
            assert_eq!(tensor.bytes().len(), tensor.rows() * tensor.columns() * dtype.size());
            bytes += tensor.bytes().len() as u64;
        }
        assert_eq!(bytes, config.parameters() * dtype.size() as u64);
        assert_eq!(checkpoint.head().expect("head").rows(), config.vocab);
    }
}

#[test]
fn a_tied_head_is_the_embedding_even_if_the_file_has_a_copy() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tied_bf16_dup");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    assert!(checkpoint.config.tied);
    assert!(checkpoint.config.tensors().all(|(name, _)| name != HEAD));
    let embedding = checkpoint.tensor("model.embed_tokens.weight", &[512, 64]).unwrap();
    assert!(std::ptr::eq(embedding.bytes(), checkpoint.head().unwrap().bytes()));
}

#[test]
fn tensors_are_the_bytes_of_the_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gqa_bf16");
    let file: &'static [u8] =
        Box::leak(std::fs::read(folder.join("model.safetensors")).unwrap().into_boxed_slice());
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let generation = std::fs::read(folder.join("generation_config.json")).unwrap();
    let mapped = Checkpoint::open(&folder).unwrap();
    let built_in = Checkpoint::from_bytes(&config, Some(&generation), file).unwrap();
    assert_eq!(mapped.config, built_in.config);
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let description: Value = serde_json::from_slice(&file[8..8 + header]).unwrap();
    for (name, shape) in mapped.config.tensors() {
        let offset = |i: usize| 8 + header + description[&name]["data_offsets"][i].as_u64().unwrap() as usize;
        let tensor = mapped.tensor(&name, &shape).unwrap();
        assert_eq!(tensor.bytes(), &file[offset(0)..offset(1)], "{name}");
        assert_eq!(built_in.tensor(&name, &shape).unwrap().bytes(), tensor.bytes(), "{name}");
    }
}

#[test]
fn prefetch_reports_every_byte_once() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mqa_f16");
    let length = std::fs::metadata(folder.join("model.safetensors")).unwrap().len();
    let mut reports = Vec::new();
    Checkpoint::open(&folder).unwrap().prefetch(&mut |done, total| reports.push((done, total)));
    assert_eq!(reports.first(), Some(&(0, length)));
    assert_eq!(reports.last(), Some(&(length, length)));
    assert!(reports.windows(2).all(|pair| pair[0].0 <= pair[1].0));
}

#[test]
fn golden_configs_are_read_as_written() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let config = Config::from_dir(&root.join("gqa_bf16")).unwrap();
    assert_eq!((config.heads, config.kv_heads, config.rope.theta), (8, 2, 500_000.0));
    assert_eq!((config.bos, &config.eos[..]), (Some(504), &[505][..]));
    assert_eq!(config.dtype, Some(Dtype::Bf16));
    let config = Config::from_dir(&root.join("both_bias_bf16")).unwrap();
    assert!(config.attention_bias && config.mlp_bias);
}
