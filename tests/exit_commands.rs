//! `warploom logits` and `warploom eval`: what they print, as text and as JSON, and how they fail.
#![cfg(feature = "cli")]

use std::{
    ops::ControlFlow,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use warploom::{
    backend::Cpu,
    checkpoint::Checkpoint,
    decode::exits::{Windows, evaluate},
    model::Llama,
    text::Tokenizer,
};

const GQA: &str = "tests/golden/gqa_bf16";
const TEXT: &str = "Once upon a time the lamp went out.\nNobody saw who had done it, and nobody asked.\n";

fn warploom(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_warploom"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .output()
        .expect("the command starts")
}

fn stdout(arguments: &[&str]) -> String {
    let output = warploom(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    // Nothing but the result: no progress bar where stderr is no terminal.
    assert_eq!(stderr, "", "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let text = stdout(arguments);
    assert_eq!(text.lines().count(), 1, "one object: {text}");
    serde_json::from_str(&text).unwrap()
}

fn failed(arguments: &[&str], code: i32, part: &str) {
    let output = warploom(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert!(stderr.contains(part), "{arguments:?}: no '{part}' in: {stderr}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    if code == 1 {
        assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
    }
}

fn file(name: &str, content: &[u8]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn logits_are_those_of_transformers_at_every_exit() {
    let golden: Value =
        serde_json::from_slice(&std::fs::read(Path::new(GQA).join("golden.json")).unwrap()).unwrap();
    let prompt = &golden["prompts"]["short"];
    let text = prompt["text"].as_str().unwrap();
    let report = json(&["logits", "--model", GQA, "--prompt", text, "--top", "20", "--json"]);
    assert_eq!(report["ids"], prompt["ids"], "BOS included");
    let exits = report["exits"].as_array().unwrap();
    assert_eq!(exits.len(), 4);
    for (exit, layer) in exits.iter().zip(1..) {
        assert_eq!(exit["layer"], layer);
        let expected = &prompt["early_exit_last"][layer.to_string()]["top20"];
        assert_eq!(exit["top"].as_array().unwrap().len(), 20);
        for place in 0..20 {
            assert_eq!(exit["top"][place][0], expected[place][0], "exit {layer}, place {place}");
            let difference = number(&exit["top"][place][1]) - number(&expected[place][1]);
            assert!(difference.abs() < 1e-3, "exit {layer}, place {place}: {difference}");
        }
        assert!(number(&exit["std"]) > 0.0 && exit["mean"].is_f64());
    }
    assert!((number(&exits[3]["mean"]) - number(&prompt["last_mean"])).abs() < 1e-3);
    assert!((number(&exits[3]["std"]) - number(&prompt["last_std"])).abs() < 1e-3);

    let ids = report["ids"].as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>().join(",");
    let by_ids = json(&["logits", "--model", GQA, "--prompt-ids", &ids, "--top", "20", "--json"]);
    assert_eq!(by_ids, report);
    // Taken as they are: no BOS.
    assert_eq!(
        json(&["logits", "--model", GQA, "--prompt-ids", "7,8", "--json"])["ids"],
        serde_json::json!([7, 8])
    );
}

#[test]
fn the_table_of_logits_has_a_row_for_each_layer_and_says_where_the_token_is_decided() {
    let text = stdout(&["logits", "--model", GQA, "--prompt", "Once upon a time the lamp", "--top", "3"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1 + 4 + 2, "{text}");
    for (line, layer) in lines[1..5].iter().zip(1..) {
        assert!(line.trim_start().starts_with(&layer.to_string()), "{text}");
        assert_eq!(line.matches('.').count(), 3, "three logits: {text}");
    }
    // The golden exits choose 134, 337, 337, 337.
    let tokenizer = Tokenizer::from_dir(Path::new(GQA), 512).unwrap();
    let token = warploom::error::printable(&tokenizer.token_text(337));
    assert_eq!(lines[6], format!("'{token}' is decided from layer 2 on"));
}

#[test]
fn eval_reports_what_the_library_measures() {
    let (_dir, path) = file("text.txt", TEXT.as_bytes());
    let llama = Llama::new(&Checkpoint::open(Path::new(GQA)).unwrap(), Cpu::new(), 512).unwrap();
    let ids = Tokenizer::from_dir(Path::new(GQA), 512).unwrap().encode_prompt(TEXT).unwrap();
    assert_eq!(ids[0], 504, "this tokenizer begins with BOS");
    for (context, arguments) in [(512, &[] as &[&str]), (16, &["--context", "16"])] {
        let report = json(&[&["eval", "--model", GQA, "--text", &path, "--json"], arguments].concat());
        let windows = Windows { context, bos: Some(504) };
        let expected = evaluate(&llama, &ids[1..], windows, &mut |_, _| ControlFlow::Continue(())).unwrap();
        assert_eq!(report["tokens"], ids.len() - 1);
        assert_eq!(report["context"], context);
        assert_eq!(report["windows"], (ids.len() - 1).div_ceil(context));
        assert_eq!(report["interrupted"], false);
        let exits = report["exits"].as_array().unwrap();
        assert_eq!(exits.len(), 4);
        for (exit, expected) in exits.iter().zip(&expected.exits) {
            assert_eq!(exit["layer"], expected.layer);
            assert_eq!(exit["agreement"], expected.agreement);
            assert!((number(&exit["loss"]) - expected.loss).abs() < 1e-12);
            assert!((number(&exit["perplexity"]) / expected.perplexity() - 1.0).abs() < 1e-9);
        }
        assert_eq!(exits[3]["agreement"], 1.0);
    }
    let table = stdout(&["eval", "--model", GQA, "--text", &path]);
    assert!(table.lines().nth(4).unwrap().trim_start().starts_with('4'), "{table}");
    assert!(table.contains("100.00 %") && table.contains("in 1 window;"), "{table}");
}

/// With `--fp8`: the quantised model's exits, and what the library measures of both.
#[test]
fn eval_shows_what_fp8_changes() {
    let (_dir, path) = file("text", TEXT.as_bytes());
    let stored = json(&["eval", "--model", GQA, "--text", &path, "--json"]);
    let report = json(&["eval", "--model", GQA, "--text", &path, "--fp8", "--json"]);
    let evaluation = |fp8| {
        let mut checkpoint = Checkpoint::open(Path::new(GQA)).unwrap();
        checkpoint.set_fp8(fp8).unwrap();
        let tokenizer = Tokenizer::from_dir(Path::new(GQA), checkpoint.config.vocab).unwrap();
        let ids = tokenizer.encode_text(TEXT).unwrap();
        let context = checkpoint.config.context.min(2048);
        let windows = Windows { context, bos: tokenizer.leading_ids().first().copied() };
        let llama = Llama::new(&checkpoint, Cpu::new(), context).unwrap();
        evaluate(&llama, &ids, windows, &mut |_, _| ControlFlow::Continue(())).unwrap()
    };
    let (before, after) = (evaluation(false), evaluation(true));
    let last = |report: &Value| number(&report["exits"].as_array().unwrap().last().unwrap()["loss"]);
    assert_eq!(last(&stored), before.exits[3].loss);
    assert_eq!(last(&report), after.exits[3].loss);
    assert_ne!(last(&report), last(&stored));
    let fp8 = &report["fp8"];
    assert_eq!(number(&fp8["stored_loss"]), before.exits[3].loss);
    assert!((number(&fp8["loss_change"]) - (last(&report) - last(&stored))).abs() < 1e-12);
    let change = after.exits[3].perplexity() - before.exits[3].perplexity();
    assert!((number(&fp8["perplexity_change"]) - change).abs() < 1e-9);
    let equal = before.choices.iter().zip(&after.choices).filter(|(a, b)| a == b).count();
    assert_eq!(number(&fp8["agreement"]), equal as f64 / before.choices.len() as f64);
    assert_eq!(before.choices.len(), before.tokens);

    let table = stdout(&["eval", "--model", GQA, "--text", &path, "--fp8"]);
    assert!(table.contains("stored") && table.contains("same greedy token at"), "{table}");
    failed(&["eval", "--model", "tests/golden_extra/f32", "--text", &path, "--fp8"], 1, "--fp8");
}

#[test]
fn without_a_model_both_use_the_demo() {
    let exits = json(&["logits", "--prompt", "In the beginning", "--json"]);
    let layers = exits["exits"].as_array().unwrap().len();
    assert!(layers >= 8);
    let (_dir, path) = file("text.txt", b"In the beginning God created the heaven and the earth.");
    let report = json(&["eval", "--text", &path, "--json"]);
    assert_eq!(report["exits"].as_array().unwrap().len(), layers);
    // Better than guessing among its 3,072 tokens.
    assert!(number(&report["exits"][layers - 1]["loss"]) < 3072f64.ln());
}

#[test]
fn mistakes_end_in_one_error() {
    let logits = |arguments: &[&str], code, part: &str| {
        failed(&[&["logits", "--model", GQA], arguments].concat(), code, part);
    };
    logits(&[], 2, "--prompt");
    logits(&["--prompt", "a", "--prompt-ids", "1"], 2, "--prompt");
    logits(&["--prompt", "a", "--top", "x"], 2, "--top");
    logits(&["--prompt", ""], 1, "--prompt: is empty");
    logits(&["--prompt-ids", ""], 1, "--prompt-ids");
    logits(&["--prompt-ids", "1,x"], 1, "'x' is no token id");
    logits(&["--prompt-ids", "1,512"], 1, "id 512 is outside the vocabulary of 512");
    logits(&["--prompt", "a", "--top", "0"], 1, "--top: 0 is outside 1..=512");
    logits(&["--prompt", "a", "--top", "513"], 1, "--top: 513 is outside 1..=512");
    logits(&["--prompt-ids", "1,2,3", "--context", "2"], 1, "its 3 tokens are more than the context of 2");
    logits(&["--prompt", "a", "--context", "513"], 1, "--context");
    logits(&["--prompt", "a", "--device", "gpu"], 1, "--device");
    logits(&["--prompt", "a", "--attention", "spiral"], 2, "--attention");
    failed(&["logits", "--model", "/no/such/folder", "--prompt", "a"], 1, "/no/such/folder");

    let eval = |path: &str, part: &str| failed(&["eval", "--model", GQA, "--text", path], 1, part);
    eval("/no/such/file", "/no/such/file");
    eval("src", "is a directory");
    let (_empty, path) = file("empty.txt", b"");
    eval(&path, "is empty");
    let (_latin, path) = file("latin.txt", b"caf\xe9");
    eval(&path, "is not UTF-8 (byte 3)");
    let (_large, path) = file("large.txt", &vec![b'a'; (4 << 20) + 1]);
    eval(&path, "more than 4 MiB");
    let (_text, path) = file("text.txt", TEXT.as_bytes());
    failed(&["eval", "--model", GQA, "--text", &path, "--context", "0"], 1, "--context");
    failed(&["eval", "--model", GQA, "--text", &path, "--threads", "100000"], 1, "--threads");
    failed(&["eval", "--model", GQA], 2, "--text");
    failed(&["eval", "--model", "tests/golden_extra/f32", "--text", &path], 1, "tokenizer.json");
    #[cfg(unix)]
    {
        eval("/dev/zero", "is a device, socket or FIFO");
        let fifo = tempfile::tempdir().unwrap();
        let path = fifo.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        eval(path.to_str().unwrap(), "is a device, socket or FIFO");
    }
}

#[test]
fn the_examples_in_the_help_run() {
    for command in ["logits", "eval", "chat"] {
        let help = String::from_utf8(warploom(&[command, "--help"]).stdout).unwrap();
        let (_, examples) = help.split_once("Examples:\n").expect("examples");
        assert_eq!(examples.lines().count(), 2, "{help}");
        // A text for those that read one, and an end of stdin for those that wait for turns.
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("README.md"), TEXT).unwrap();
        for example in examples.lines() {
            let rest = example.trim().strip_prefix("warploom ").expect("a command");
            // Every second piece between quotes is one argument.
            let pieces = rest.split('"').enumerate();
            let arguments = pieces.flat_map(|(index, piece)| match index % 2 {
                0 => piece.split_whitespace().collect(),
                _ => vec![piece],
            });
            let output = Command::new(env!("CARGO_BIN_EXE_warploom"))
                .args(arguments)
                .current_dir(dir.path())
                .stdin(Stdio::null())
                .output()
                .unwrap();
            assert!(output.status.success(), "{example}: {}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(output.stdout.is_empty(), command == "chat", "{example}");
        }
    }
}
