//! `warploom inspect`: what it prints, as text and as JSON, and how it fails.
#![cfg(feature = "cli")]

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

fn inspect(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_warploom"))
        .arg("inspect")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("the command starts")
}

fn json(arguments: &[&str]) -> Value {
    let output = inspect(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

fn config_only(config: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    dir
}

const LLAMA_3_8B: &str = r#"{"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096,
    "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 8192, "rope_theta": 500000.0, "torch_dtype": "bfloat16"}"#;

#[test]
fn a_checkpoint_is_described() {
    let report = json(&["tests/golden/gqa_bf16", "--json", "--context", "100"]);
    assert_eq!(report["parameters"], 689_280);
    assert_eq!(report["weights_checked"], true);
    assert_eq!(report["dtypes"], serde_json::json!(["bf16"]));
    assert_eq!(report["weight_bytes"], 2 * 689_280);
    // 4 layers of 2 KV heads of 16: keys and values.
    assert_eq!(report["memory"]["gpu"]["kv_bytes_per_token"], 2 * 4 * 2 * 16 * 2);
    assert_eq!(report["memory"]["cpu"]["kv_bytes"], 2 * 4 * 2 * 16 * 4 * 100);
    let text = String::from_utf8(inspect(&["--model", "tests/golden/gqa_bf16"]).stdout).unwrap();
    for part in ["689,280", "4 of hidden 128", "every tensor checked", "bf16", "best of all E"] {
        assert!(text.contains(part), "no '{part}' in:\n{text}");
    }
}

#[test]
fn without_a_model_it_is_the_demo() {
    let report = json(&["--json"]);
    assert_eq!(report["weights_checked"], true);
    assert!((2_000_000..6_000_000).contains(&report["parameters"].as_u64().unwrap()));
}

#[test]
fn a_config_alone_will_do() {
    let dir = config_only(LLAMA_3_8B);
    let path = dir.path().to_str().unwrap();
    let report = json(&[path, "--json"]);
    assert_eq!(report["parameters"], 8_030_261_248u64);
    assert_eq!(report["weights_checked"], false);
    assert_eq!(report["kv_bytes_per_token"], 128 * 1024);
    assert!((report["h"].as_f64().unwrap() - 2.41).abs() < 0.005);
    let text = String::from_utf8(inspect(&[path]).stdout).unwrap();
    assert!(text.contains("not checked") && text.contains("8,030,261,248"), "{text}");
}

#[test]
fn each_choice_has_the_speed_up_of_the_formula() {
    let dir = config_only(LLAMA_3_8B);
    let report = json(&[dir.path().to_str().unwrap(), "--json"]);
    let (layers, h) = (32.0, report["h"].as_f64().unwrap());
    let rows = report["speedups"].as_array().unwrap();
    assert_eq!(rows.len(), 5);
    for row in rows {
        for choice in row["exits"].as_array().unwrap().iter().chain([&row["best"]]) {
            let number = |field: &str| choice[field].as_f64().unwrap();
            let (exit, draft, kept) = (number("exit_layer"), number("draft"), number("acceptance"));
            let expected = (kept * draft + 1.0) * (layers + h) / (draft * (exit + h) + layers + h);
            assert!((number("speedup") - expected).abs() < 1e-9);
        }
    }
}

#[test]
fn mistakes_end_in_one_error() {
    let failed = |arguments: &[&str], code: i32, part: &str| {
        let output = inspect(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(part), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty());
        if code == 1 {
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
        }
    };
    failed(&["no-such-org/no-such-model"], 1, "hf download no-such-org/no-such-model");
    failed(&["/no/such/folder"], 1, "/no/such/folder");
    failed(&["src"], 1, "config.json");
    failed(&["tests/golden/gqa_bf16", "--context", "513"], 1, "--context: 513");
    failed(&["tests/golden/gqa_bf16", "--context", "0"], 1, "--context: 0");
    failed(&["tests/golden/gqa_bf16", "--model", "tests/golden/gqa_bf16"], 2, "MODEL");
    failed(&["tests/golden/gqa_bf16", "--context", "x"], 2, "--context");
}

#[test]
fn weights_that_are_there_are_checked() {
    let dir = config_only(LLAMA_3_8B);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gqa_bf16/model.safetensors");
    std::fs::copy(golden, dir.path().join("model.safetensors")).unwrap();
    let output = inspect(&[dir.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("model.embed_tokens.weight: has shape [512, 128]")
    );
}
