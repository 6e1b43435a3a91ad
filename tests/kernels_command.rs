//! `warploom kernels`, by running it.
#![cfg(all(feature = "cli", feature = "cuda"))]

use std::process::{Command, Output};

use serde_json::Value;
use warploom::kernels::FAMILIES;

fn kernels(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_warploom"))
        .arg("kernels")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("the command starts")
}

fn stdout(arguments: &[&str]) -> String {
    let output = kernels(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&stdout(&[arguments, &["--json"]].concat())).expect("one JSON object")
}

/// Hidden 128, 8 heads on 2 of 16, feed-forward 256, vocabulary 512, bf16.
const MODEL: &str = "tests/golden/gqa_bf16";

#[test]
fn without_a_model_there_is_what_the_compiler_says() {
    let text = stdout(&[]);
    for entry in FAMILIES.iter().flat_map(|family| family.entries) {
        assert!(text.contains(entry.name), "no {}", entry.name);
    }
    let report = json(&["swiglu", "wl_gemm_bf16_1"]);
    let families: Vec<&Value> = report["families"].as_array().unwrap().iter().collect();
    assert_eq!(families.iter().map(|f| f["name"].as_str().unwrap()).collect::<Vec<_>>(), ["gemm", "swiglu"]);
    assert_eq!(families[0]["entries"].as_array().unwrap().len(), 1);
    assert!(families[0]["entries"][0].get("launches").is_none());
}

#[test]
fn every_entry_has_its_launches_or_the_reason() {
    let report =
        json(&["--model", MODEL, "--gpu", "A100", "--rows", "3", "--context", "200", "--prompt", "64"]);
    assert_eq!(report["gpu"], "A100 SXM");
    assert!(report["times"].as_str().unwrap().contains("not measured"));
    assert_eq!((&report["shapes"]["head_dim"], &report["shapes"]["rows"]), (&16.into(), &3.into()));
    let families = report["families"].as_array().unwrap();
    let mut listed = 0;
    for entry in families.iter().flat_map(|family| family["entries"].as_array().unwrap()) {
        listed += 1;
        let name = entry["name"].as_str().unwrap();
        let launches = entry["launches"].as_array().unwrap();
        if launches.is_empty() {
            assert!(name.contains("_f16"), "{name} is not launched");
            assert_eq!(entry["not_launched"], "of f16: launched with --dtype f16");
        }
        for launch in launches {
            let number = |field: &str| launch[field].as_f64().unwrap();
            assert!(number("estimated_seconds") > 0.0, "{name}: {launch}");
            // The bound is the largest of its bounds.
            let bounds = launch["bounds"].as_array().unwrap();
            let slowest = bounds.iter().map(|bound| bound["seconds"].as_f64().unwrap()).fold(0.0, f64::max);
            assert_eq!(number("estimated_seconds"), slowest);
            assert!(launch["memory_bytes"]["read"].as_u64() >= launch["needed_bytes"]["read"].as_u64());
            assert!(number("ctas_per_sm") >= 1.0, "{name}: {launch}");
        }
    }
    assert_eq!(listed, FAMILIES.iter().map(|family| family.entries.len()).sum::<usize>());
}

/// A product of decode rows streams its weights once, and device memory is what it waits for.
#[test]
fn times_are_bytes_over_the_bandwidth_of_the_gpu() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 1024, "intermediate_size": 4096,
        "num_attention_heads": 8, "vocab_size": 1000}"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    for (gpu, bandwidth) in [("h200", 4800e9), ("rtx4090", 1008e9)] {
        let model = folder.path().to_str().unwrap();
        let report = json(&["--model", model, "--gpu", gpu, "--prompt", "0", "wl_linear_bf16_16"]);
        let launches = report["families"][0]["entries"][0]["launches"].as_array().unwrap();
        let gate = launches.iter().find(|launch| launch["what"] == "gate, up: 1 × 1024 → 2 · 4096").unwrap();
        // 64 blocks of 128 features, in two segments whose sums meet in memory, with a ticket each.
        let (weights, row, sums, tickets, out) =
            (2 * 4096 * 1024 * 2, 2 * 1024 * 2 + 4 * 16, 64 * 2 * 128 * 4, 64 * 4, 2 * 4096);
        assert_eq!(gate["ctas"], 128);
        assert_eq!(gate["needed_bytes"], serde_json::json!({ "read": weights + row, "written": out }));
        let moved = serde_json::json!({ "read": weights + row + sums, "written": out + sums + tickets });
        assert_eq!(gate["memory_bytes"], moved);
        assert_eq!((&gate["bound_by"], &gate["bank_conflicts"]), (&"device memory".into(), &0.into()));
        let seconds = f64::from(weights + row + sums + tickets + out) / bandwidth;
        assert!((gate["estimated_seconds"].as_f64().unwrap() / seconds - 1.0).abs() < 1e-9);
    }
}

#[test]
fn the_text_says_that_nothing_was_measured() {
    let text = stdout(&["--model", MODEL, "--context", "200", "rope_append", "accept"]);
    for part in [
        "Estimated, not measured",
        "bf16 on H100 SXM: 1 decode row over 200 keys, a prompt of 128 rows",
        "wl_rope_append_bf16",
        "128 × 192, 8 heads on 2 of 16",
        "of f16: launched with --dtype f16",
        "1 sequence, 4 drafts",
    ] {
        assert!(text.contains(part), "no '{part}' in:\n{text}");
    }
    assert!(!text.contains("wl_gemm"), "{text}");
}

#[test]
fn mistakes_end_in_one_error() {
    let fails = |arguments: &[&str], code: i32, parts: &[&str]| {
        let output = kernels(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(parts.iter().all(|part| stderr.contains(part)), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty());
        assert!(code == 2 || stderr.lines().count() == 1, "{stderr}");
    };
    fails(&["--model", "llama9"], 1, &["--model: 'llama9'", "llama2-7b, ", "llama3.1-405b"]);
    fails(&["--model", "no-org/no-model"], 1, &["--model: 'no-org/no-model'", "llama3-8b"]);
    fails(&["--model", "src"], 1, &["config.json"]);
    fails(&["--model", MODEL, "--gpu", "b1000"], 1, &["--gpu: 'b1000' is none of H100 SXM, ", "RTX 4090"]);
    fails(&["nothing"], 1, &["KERNEL: 'nothing' is none of accept, ", "swiglu"]);
    fails(&["--model", MODEL, "--rows", "0"], 1, &["--rows: 0; supported are 1 to 64"]);
    fails(&["--model", MODEL, "--context", "513"], 1, &["--context: 513 is over 512"]);
    fails(&["--model", MODEL, "--prompt", "99999999999"], 1, &["--prompt: "]);
    // 131072 keys, but a prompt's activations in f16.
    fails(
        &["--model", "llama3.1-405b", "--prompt", "1000000"],
        1,
        &["GiB of host memory", "a shorter prompt"],
    );
    fails(&["--gpu", "h100"], 2, &["--model"]);
    fails(&["--model", MODEL, "--dtype", "f32"], 2, &["f32", "bf16, f16"]);
    fails(&["--model", MODEL, "--dynamic-shared", "5"], 2, &["--dynamic-shared"]);
}
