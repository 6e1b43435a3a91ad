//! The command as a user and a script meet it: `generate` and `compare`, their output, and how they fail.
#![cfg(feature = "cli")]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use serde_json::{Value, json};

const GOLDEN: [&str; 6] =
    ["both_bias_bf16", "gqa_bf16", "mqa_f16", "odd_all_f16", "rope_llama3_v5cfg_bf16", "tied_bf16_dup"];

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warploom"));
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the command starts")
}

/// stdout of a run that must succeed.
fn stdout(arguments: &[&str]) -> String {
    let output = output(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn objects(arguments: &[&str]) -> Vec<Value> {
    let text = stdout(&[arguments, &["--json"]].concat());
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
}

fn generate(arguments: &[&str]) -> Value {
    let mut objects = objects(&[&["generate"], arguments].concat());
    assert_eq!(objects.len(), 1);
    objects.remove(0)
}

fn model(name: &str) -> String {
    format!("tests/golden/{name}")
}

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(model(name)).join("golden.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn prompts(golden: &Value) -> impl Iterator<Item = &Value> {
    golden["prompts"].as_object().unwrap().values()
}

fn comma_separated(ids: &Value) -> String {
    ids.as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>().join(",")
}

/// A copy of a golden checkpoint, to be changed.
fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(model(name));
    for file in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        fs::copy(from.join(file), dir.path().join(file)).unwrap();
    }
    dir
}

fn path(dir: &tempfile::TempDir) -> &str {
    dir.path().to_str().unwrap()
}

#[test]
fn greedy_ids_and_texts_are_the_golden_ones() {
    for name in GOLDEN {
        let golden = golden(name);
        for prompt in prompts(&golden) {
            let expected = &prompt["greedy"];
            let n = expected["ids"].as_array().unwrap().len().to_string();
            let options = ["--model", &model(name), "-n", &n];
            let by_ids =
                generate(&[&options[..], &["--prompt-ids", &comma_separated(&prompt["ids"])]].concat());
            let text = prompt["text"].as_str().unwrap();
            let by_text = generate(&[&options[..], &["--prompt", text]].concat());
            for result in [by_ids, by_text] {
                assert_eq!(result["prompt_ids"], prompt["ids"], "{name}");
                assert_eq!(result["ids"], expected["ids"], "{name}");
                assert_eq!(result["text"], expected["text_skip_special"], "{name}");
                assert_eq!(result["stop"], "length");
                assert_eq!(result["rounds"].to_string(), n, "plain decoding verifies token by token");
                assert_eq!((&result["drafted"], &result["accepted"]), (&json!(0), &json!(0)));
                assert!(result["decode_tokens_per_s"].as_f64().unwrap() > 0.0);
                assert!(result["prefill_tokens_per_s"].as_f64().unwrap() > 0.0);
            }
            // Without --json the text goes on from the prompt.
            let continued = stdout(&[&["generate"], &options[..], &["--prompt", text]].concat());
            assert_eq!(format!("{text}{continued}"), expected["text_with_prompt_skip_special"], "{name}");
        }
    }
}

#[test]
fn drafting_changes_nothing_but_the_rounds() {
    for name in ["gqa_bf16", "odd_all_f16"] {
        let golden = golden(name);
        let prompt = &golden["prompts"]["mid50"];
        let ids = comma_separated(&prompt["ids"]);
        let base = ["--model", &model(name), "-n", "64", "--prompt-ids", &ids];
        let plain = generate(&base);
        for exit in 1..golden["layers"].as_u64().unwrap() {
            for (draft, policy) in [("1", "fixed"), ("4", "length"), ("8", "confidence"), ("16", "fixed")] {
                let exit = exit.to_string();
                let options = ["--exit-layer", &exit, "--draft", draft, "--policy", policy];
                let result = generate(&[&base[..], &options].concat());
                for field in ["ids", "text", "stop", "logits_hash"] {
                    assert_eq!(result[field], plain[field], "{name} {options:?}");
                }
                let number = |field: &str| result[field].as_u64().unwrap();
                // A round gives its accepted drafts and one token more; not so where τ ended the draft.
                let most = number("rounds") + number("accepted");
                assert!(most == 64 || policy == "confidence" && most > 64, "{name} {options:?}: {most}");
                assert!(number("drafted") >= number("accepted"));
            }
        }
        let off = generate(&[&base[..], &["--exit-layer", "2", "--policy", "off"]].concat());
        assert_eq!((&off["ids"], &off["drafted"]), (&plain["ids"], &json!(0)));
    }
}

#[test]
fn the_demo_drafts_by_itself() {
    let result = generate(&["--prompt", "In the beginning", "-n", "48"]);
    assert!(result["drafted"].as_u64().unwrap() > 0);
    let plain = generate(&["--prompt", "In the beginning", "-n", "48", "--policy", "off", "--threads", "1"]);
    assert_eq!((&result["ids"], &result["logits_hash"]), (&plain["ids"], &plain["logits_hash"]));
    assert_eq!(plain["threads"], 1);
    assert_eq!(plain["drafted"], 0);
}

#[test]
fn no_round_drafts_beyond_the_limit() {
    for n in 1..6 {
        let result =
            generate(&["--prompt", "And", "-n", &n.to_string(), "--exit-layer", "9", "--draft", "8"]);
        assert_eq!(result["ids"].as_array().unwrap().len(), n);
        // The last token of what is left to generate is always the verifier's own.
        let most = result["rounds"].as_u64().unwrap() * (n as u64 - 1);
        assert!(result["drafted"].as_u64().unwrap() <= most, "{result}");
    }
    let none = generate(&["--prompt", "And", "-n", "0"]);
    assert_eq!((&none["ids"], &none["stop"], &none["text"]), (&json!([]), &json!("length"), &json!("")));
}

#[test]
fn a_batch_gives_what_each_prompt_gives_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompts.txt");
    let words = ["light", "a", "the lamp of the king", "wind", "And it came to pass in those days, that"];
    // More prompts than sequences at a time, some of which begin alike.
    let lines: Vec<String> = (0..20).map(|i| format!("{} {}", words[i % 5], words[i * 3 % 4])).collect();
    fs::write(&file, lines.join("\n")).unwrap();
    let file = file.to_str().unwrap();
    let demo: &[&str] = &[];
    let gqa: &[&str] = &["--model", "tests/golden/gqa_bf16"];
    let sampled: &[&str] = &["--temperature", "0.9", "--top-k", "40", "--seed", "11"];
    let spoken: &[&str] = &["--exit-layer", "2", "--draft", "5"];
    for options in [
        [demo, spoken].concat(),
        [demo, sampled].concat(),
        [gqa, &["--policy", "off", "--stop", "m"]].concat(),
        [gqa, &["--policy", "length"], sampled].concat(),
    ] {
        let options = [&options[..], &["-n", "24"]].concat();
        let batch = objects(&[&["generate", "--prompts", file], &options[..]].concat());
        assert_eq!(batch.len(), lines.len());
        for (line, result) in lines.iter().zip(&batch) {
            let alone = generate(&[&["--prompt", line], &options[..]].concat());
            for field in ["prompt_ids", "ids", "text", "stop", "rounds", "drafted", "accepted", "logits_hash"]
            {
                assert_eq!(result[field], alone[field], "{field} of '{line}' with {options:?}");
            }
        }
    }
    let texts = stdout(&["generate", "--prompts", file, "-n", "4"]);
    assert!(texts.lines().count() >= lines.len());
}

#[test]
fn seeds_reproduce() {
    let sampled = |seed: &str| {
        generate(&["--prompt", "And", "-n", "40", "--temperature", "1.2", "--seed", seed])["ids"].clone()
    };
    assert_eq!(sampled("5"), sampled("5"));
    assert_ne!(sampled("5"), sampled("6"));
    // A penalty, and filters that leave one token.
    let greedy = generate(&["--prompt", "And", "-n", "40"]);
    for filter in [["--top-k", "1"], ["--top-p", "0"], ["--min-p", "1"]] {
        let options = ["--prompt", "And", "-n", "40", "--temperature", "0.7"];
        assert_eq!(generate(&[&options[..], &filter].concat())["ids"], greedy["ids"], "{filter:?}");
    }
    let penalised = generate(&["--prompt", "And", "-n", "40", "--repetition-penalty", "1.5"]);
    assert_ne!(penalised["ids"], greedy["ids"]);
}

#[test]
fn stop_strings_end_the_text_before_them() {
    let gqa = model("gqa_bf16");
    let base = ["--model", &gqa, "--prompt", "Once upon a time the lamp", "-n", "64"];
    let whole = generate(&base);
    let (text, ids) = (whole["text"].as_str().unwrap(), whole["ids"].as_array().unwrap());
    assert!(text.starts_with("mpmpmpW2 fapt"), "{text}");
    for options in [&[][..], &["--exit-layer", "2", "--draft", "6"]] {
        // Spans five tokens; of several strings the one that is complete first counts.
        let options = [&base[..], options, &["--stop", "pW2 f", "--stop", "no such text"]].concat();
        let result = generate(&options);
        assert_eq!((&result["text"], &result["stop"]), (&json!("mpmpm"), &json!("string")));
        let kept = result["ids"].as_array().unwrap();
        assert_eq!(kept[..], ids[..kept.len()]);
        assert!(kept.len() > 3 && kept.len() < 10, "{kept:?}");
        assert_eq!(stdout(&[&["generate"], &options[..]].concat()), "mpmpm");
    }
    // What only begins like a stop string is shown in the end.
    let result = generate(&[&base[..4], &["-n", "3", "--stop", "mpX"]].concat());
    assert_eq!((&result["text"], &result["stop"]), (&json!("mpmpmp"), &json!("length")));
}

#[test]
fn generation_ends_with_eos_or_the_context() {
    let dir = copy("gqa_bf16");
    // 54 is the fourth greedy id; a list is allowed.
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [505, 54]}"#).unwrap();
    let base = ["--model", path(&dir), "--prompt", "Once upon a time the lamp"];
    for options in [&[][..], &["--exit-layer", "3", "--draft", "8"]] {
        let result = generate(&[&base[..], options].concat());
        assert_eq!(result["ids"], json!([337, 337, 337, 54]));
        assert_eq!((&result["stop"], &result["text"]), (&json!("eos"), &json!("mpmpmpW")));
        let gqa = model("gqa_bf16");
        let short = ["--model", &gqa, "--prompt", "Once upon a time the lamp", "--context", "16"];
        let result = generate(&[&short[..], options].concat());
        assert_eq!(result["stop"], "context");
        assert_eq!(result["ids"].as_array().unwrap().len(), 6, "ten of the prompt, six more");
    }
}

#[test]
fn a_checkpoint_without_tokenizer_works_on_ids() {
    let dir = copy("gqa_bf16");
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let ids = "504,482,316,425,79,320,259,427,258,367";
    let base = ["generate", "--model", path(&dir), "-n", "5"];
    let result = &objects(&[&base[..], &["--prompt-ids", ids]].concat())[0];
    assert_eq!((&result["text"], &result["ids"]), (&Value::Null, &json!([337, 337, 337, 54, 17])));
    assert_eq!(stdout(&[&base[..], &["--prompt-ids", ids]].concat()), "337,337,337,54,17");
    let output = output(&[&base[..], &["--prompt", "x"]].concat());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--prompt-ids"));
}

#[test]
fn attention_can_be_replaced() {
    let gqa = model("gqa_bf16");
    let golden = golden("gqa_bf16");
    let ids = comma_separated(&golden["prompts"]["mid50"]["ids"]);
    let run = |mask: &str, options: &[&str]| {
        let base = ["--model", &gqa, "--prompt-ids", &ids, "-n", "40", "--attention", mask];
        generate(&[&base[..], options].concat())["ids"].clone()
    };
    let full = run("full", &[]);
    for mask in ["window:200", "chunk:512", "overlap:100"] {
        assert_eq!(run(mask, &[]), full, "{mask} covers everything");
    }
    for mask in ["window:8", "chunk:16", "overlap:8", "window:8+sinks:4"] {
        let plain = run(mask, &[]);
        assert_ne!(plain, full, "{mask}");
        assert_eq!(run(mask, &["--exit-layer", "2", "--draft", "7"]), plain, "{mask}");
    }
}

#[test]
fn the_summary_goes_to_stderr() {
    let output = output(&["generate", "--prompt", "In the beginning", "-n", "20"]);
    let summary = String::from_utf8(output.stderr).unwrap();
    for part in
        ["prefill", "tokens/s", "GB/s", "stop: length", "rounds", "exit layer", "accepted", "logits", "cpu"]
    {
        assert!(summary.contains(part), "no '{part}' in:\n{summary}");
    }
    assert!(!String::from_utf8(output.stdout).unwrap().contains("tokens/s"));
}

#[test]
fn compare_finds_both_equal() {
    let gqa = model("gqa_bf16");
    let base =
        ["compare", "--model", &gqa, "--prompt", "Once upon a time the lamp", "-n", "40", "--runs", "1"];
    let report: Value =
        serde_json::from_str(&stdout(&[&base[..], &["--exit-layer", "3", "--json"]].concat())).unwrap();
    assert_eq!(report["equal"], true);
    assert_eq!(report["plain"]["ids"], report["speculative"]["ids"]);
    assert_eq!(report["plain"]["logits_hash"], report["speculative"]["logits_hash"]);
    assert_eq!(report["plain"]["drafted"], 0);
    assert!(report["speculative"]["drafted"].as_u64().unwrap() > 0);
    assert!(report["predicted_speedup"].as_f64().unwrap() > 0.0);
    assert!(report["speedup"].as_f64().unwrap() > 0.0);
    let text = stdout(&base);
    for part in ["plain", "speculative", "by the formula", "acceptance", "equal: 40 ids"] {
        assert!(text.contains(part), "no '{part}' in:\n{text}");
    }
    // Samples are draws from one distribution, not the same draws: no failure.
    let sampled = stdout(&[&base[..], &["--temperature", "1.5"]].concat());
    assert!(sampled.contains("sampled") || sampled.contains("equal"), "{sampled}");
}

#[test]
fn every_help_ends_with_two_examples_that_run() {
    let help = stdout(&["--help"]);
    let commands =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names: Vec<&str> = commands.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(
        names.contains(&"generate") && names.contains(&"compare") && names.contains(&"inspect"),
        "{names:?}"
    );
    let dir = tempfile::tempdir().unwrap();
    // What `train` learns from.
    fs::write(dir.path().join("book.txt"), include_str!("command.rs").repeat(4)).unwrap();
    // What `eval` reads, and what a user says to `chat`.
    fs::write(dir.path().join("README.md"), "In the beginning God created the heaven and the earth.")
        .unwrap();
    fs::write(dir.path().join("said"), "And God said\n").unwrap();
    // What `report` draws, and where.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::create_dir(dir.path().join("docs")).unwrap();
    for device in fs::read_dir(root.join("benches/results")).unwrap() {
        let device = device.unwrap();
        if device.path().is_dir() {
            let to = dir.path().join("benches/results").join(device.file_name());
            fs::create_dir_all(&to).unwrap();
            for file in fs::read_dir(device.path()).unwrap() {
                let file = file.unwrap();
                fs::copy(file.path(), to.join(file.file_name())).unwrap();
            }
        }
    }
    for name in names.iter().filter(|name| **name != "help") {
        let absent = [
            ("train", cfg!(feature = "train")),
            ("kernels", cfg!(feature = "cuda")),
            ("export", cfg!(feature = "cuda")),
        ];
        if absent.contains(&(*name, false)) {
            continue;
        }
        let help = stdout(&[name, "--help"]);
        let (_, examples) = help.split_once("\nExamples:\n").expect("examples end the help");
        let examples: Vec<&str> = examples.lines().map(str::trim).collect();
        assert_eq!(examples.len(), 2, "{examples:?}");
        for example in examples {
            let arguments = example.strip_prefix("warploom ").expect("examples are commands");
            let line = format!("'{}' {arguments}", env!("CARGO_BIN_EXE_warploom"));
            let mut shell = Command::new("sh");
            shell
                .args(["-c", &line])
                .current_dir(dir.path())
                .stdin(fs::File::open(dir.path().join("said")).unwrap());
            let output = shell.output().unwrap();
            assert!(output.status.success(), "{example}: {}", String::from_utf8_lossy(&output.stderr));
            assert!(!(output.stdout.is_empty() && output.stderr.is_empty()), "{example}");
        }
    }
}

/// A run over so many prompts that it does not end by itself within a test.
fn long_run(dir: &tempfile::TempDir, options: &[&str]) -> Child {
    let file = dir.path().join("prompts.txt");
    // Different prompts: where drafts fare differently, sequences do not all end at the same time.
    fs::write(&file, "And\nthe king of Israel\nIn the beginning God\nwind\nsaid unto him,\n".repeat(1000))
        .unwrap();
    let base = ["generate", "--prompts", file.to_str().unwrap(), "-n", "200"];
    let mut command = command(&[&base[..], options].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_with_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = long_run(&dir, &["--json", "--temperature", "1"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_ne!(first["stop"], "interrupted");
    // The next prompts get time to begin.
    std::thread::sleep(std::time::Duration::from_millis(100));
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let rest: Vec<Value> = lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert!(child.wait().unwrap().success());
    assert_eq!(rest.len(), 4999, "every prompt has its line");
    assert_eq!(rest.last().unwrap()["stop"], "interrupted");
    let mut interrupted = rest.iter().filter(|object| object["stop"] == "interrupted");
    assert!(
        interrupted.any(|object| !object["ids"].as_array().unwrap().is_empty()),
        "those begun keep their ids"
    );
}

/// Ctrl-C in the middle of the timed runs, and before there is anything to compare.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_comparison_with_what_was_measured() {
    let run = |milliseconds: u64| {
        let mut command = command(&["compare", "-n", "400", "--runs", "1000", "--json"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let child_id = child.id().to_string();
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        let interrupt = || Command::new("kill").args(["-INT", &child_id]).status().unwrap();
        interrupt();
        // Who started the tests may have had the signal ignored, which holds until there is a handler: then it comes again.
        let begun = std::time::Instant::now();
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if begun.elapsed().as_secs() >= 20 => {
                    interrupt();
                    std::thread::sleep(std::time::Duration::from_secs(5));
                }
                None => {}
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        let (mut stdout, mut stderr) = (String::new(), String::new());
        child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (status, stdout, stderr)
    };
    let (status, stdout, stderr) = run(4000);
    assert!(status.success(), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&report["equal"], &report["interrupted"]), (&json!(true), &json!(true)));
    assert!(report["plain"]["runs"].as_array().unwrap().len() < 1000);
    assert_eq!(report["plain"]["ids"], report["speculative"]["ids"]);
    assert_eq!(report["plain"]["logits_hash"], report["speculative"]["logits_hash"]);
    // However early it comes, it ends in a report, in a word on why there is none, or, before there is a handler, at once.
    for milliseconds in [0, 5, 20, 60, 150, 300] {
        let (status, stdout, stderr) = run(milliseconds);
        match status.code() {
            Some(0) => assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["equal"], true),
            Some(_) => assert!(stdout.is_empty() && stderr.starts_with("interrupted before"), "{stderr}"),
            None => assert!(stdout.is_empty() && stderr.is_empty(), "{stderr}"),
        }
    }
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let dir = tempfile::tempdir().unwrap();
    for options in [&["--json"][..], &[]] {
        let mut child = long_run(&dir, options);
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 10]).unwrap();
        drop(stdout);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{:?}", output.status);
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    }
}

/// Overwrites a tensor's bytes in a safetensors file.
fn fill(file: &Path, tensor: &str, byte: u8) {
    let mut bytes = fs::read(file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let offset = |i: usize| 8 + header + json[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
    bytes[offset(0)..offset(1)].fill(byte);
    fs::write(file, bytes).unwrap();
}

/// Runs the command and checks that it ends in one error that contains `part`.
fn fails(arguments: &[&str], code: i32, part: &str) {
    let output = output(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert!(
        stderr.starts_with("error: ") && stderr.contains(part),
        "{arguments:?}: no '{part}' in: {stderr}"
    );
    assert!(!stderr.contains("panicked") && !stderr.contains("internal error"), "{arguments:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    if code == 1 {
        assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
    }
}

fn dir_with(name: &str, content: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(name), content).unwrap();
    dir
}

#[test]
fn options_that_cannot_be_are_refused() {
    let gqa = model("gqa_bf16");
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--prompt", ""], 1, "--prompt: is empty"),
        (&["--prompt-ids", ""], 1, "no token id"),
        (&["--prompt-ids", "1,,2"], 1, "no token id"),
        (&["--prompt-ids", "1,x\u{1b}[2J"], 1, "\\u{1b}"),
        (&["--prompt-ids", "-1"], 1, "no token id"),
        (&["--prompt-ids", "4294967296"], 1, "no token id"),
        (&["--prompt-ids", "512"], 1, "vocabulary of 512"),
        (&["--prompt", "a", "--prompt-ids", "1"], 2, "cannot be used with"),
        (&["--prompt", "a", "--prompts", "README.md"], 2, "cannot be used with"),
        (&[], 2, "warploom generate --prompt"),
        (&["--prompt", "a", "--exit-layer", "0"], 1, "--exit-layer: 0"),
        (&["--prompt", "a", "--exit-layer", "4"], 1, "--exit-layer: 4"),
        (&["--prompt", "a", "--exit-layer", "18446744073709551615"], 1, "--exit-layer"),
        (&["--prompt", "a", "--exit-layer", "x"], 2, "--exit-layer"),
        (&["--prompt", "a", "--exit-layer", "9", "--policy", "off"], 1, "--exit-layer"),
        (&["--prompt", "a", "--exit-layer", "2", "--draft", "0"], 1, "--draft: 0"),
        (&["--prompt", "a", "--exit-layer", "2", "--draft", "17"], 1, "--draft: 17"),
        (&["--prompt", "a", "--draft", "17"], 1, "--draft: 17"),
        (&["--prompt", "a", "--exit-layer", "2", "--threshold", "1.5"], 1, "--threshold: 1.5"),
        (&["--prompt", "a", "--threshold", "NaN"], 1, "--threshold: NaN"),
        (&["--prompt", "a", "--policy", "sometimes"], 2, "fixed, length, confidence, off"),
        (&["--prompt", "a", "--temperature", "-1"], 1, "--temperature: -1"),
        (&["--prompt", "a", "--temperature", "NaN"], 1, "--temperature: NaN"),
        (&["--prompt", "a", "--temperature", "inf"], 1, "--temperature: inf"),
        (&["--prompt", "a", "--top-p", "1.1"], 1, "--top-p: 1.1"),
        (&["--prompt", "a", "--top-k", "x"], 2, "--top-k"),
        (&["--prompt", "a", "--min-p", "2"], 1, "--min-p: 2"),
        (&["--prompt", "a", "--repetition-penalty", "0"], 1, "--repetition-penalty: 0"),
        (&["--prompt", "a", "--seed", "x"], 2, "--seed"),
        (&["--prompt", "a", "-n", "-3"], 2, "-3"),
        (&["--prompt", "a", "--stop", ""], 1, "--stop"),
        (&["--prompt", "a", "--device", "tpu"], 1, "--device: 'tpu'"),
        (&["--prompt", "a", "--cublaslt"], 1, "--cublaslt: computes on a GPU"),
        (&["--prompt", "a", "--threads", "1025"], 1, "--threads: 1025"),
        (&["--prompt", "a", "--context", "0"], 1, "--context: 0"),
        (&["--prompt", "a", "--context", "513"], 1, "--context: 513"),
        (&["--prompt", "Once upon a time the lamp", "--context", "10"], 1, "leave no room"),
        (&["--prompt", "a", "--attention", "window:0"], 2, "--attention"),
        (&["--prompt", "a", "--attention", "stripes"], 2, "window:W"),
        (&["--prompt", "a", "--no-such-option"], 2, "--no-such-option"),
    ];
    for (options, code, part) in cases {
        fails(&[&["generate", "--model", &gqa], *options].concat(), *code, part);
    }
    fails(
        &["generate", "--model", &gqa, "--prompt", &"word ".repeat(2000)],
        1,
        "leave no room in the model's context of 512",
    );
    // Known to be too long before it is encoded: a prompt of a megabyte.
    let long = dir_with("prompts.txt", &format!("light\n{}\n", "word ".repeat(200_000)));
    let file = long.path().join("prompts.txt");
    fails(
        &["generate", "--model", &gqa, "--prompts", file.to_str().unwrap()],
        1,
        "--prompts: line 2: its tokens, more than 512, leave no room",
    );
    fails(
        &["compare", "--model", &gqa, "--prompt", &"word ".repeat(2000)],
        1,
        "--prompt: its tokens, more than 512",
    );
    fails(
        &["logits", "--model", &gqa, "--prompt", &"word ".repeat(2000)],
        1,
        "--prompt: its tokens, more than 512",
    );
    let large = dir_with("prompts.txt", &"And God said\n".repeat(700_000));
    fails(
        &["generate", "--prompts", large.path().join("prompts.txt").to_str().unwrap()],
        1,
        "is larger than 8 MiB",
    );
    // The parser of the command line names the option; the reason does not name it again.
    for (option, value) in
        [("--policy", "sometimes"), ("--attention", "stripes"), ("--attention", "window:0")]
    {
        let stderr = String::from_utf8(output(&["generate", "--prompt", "a", option, value]).stderr).unwrap();
        assert_eq!(stderr.lines().next().unwrap().matches(option).count(), 1, "{stderr}");
    }
    fails(&["no-such-command"], 2, "no-such-command");
    fails(&["compare", "--policy", "off"], 1, "--policy");
    fails(&["compare", "--runs", "0"], 1, "--runs");
    fails(&["compare", "-n", "0"], 1, "-n");
    #[cfg(not(feature = "train"))]
    fails(&["train", "--text", "x", "--help"], 1, "--features train");
    #[cfg(not(feature = "cuda"))]
    for name in ["kernels", "export"] {
        fails(&[name, "--json", "--help"], 1, "--features cuda");
    }
}

#[test]
fn files_that_cannot_be_are_refused() {
    let generate = |model: &str, part: &str| fails(&["generate", "--model", model, "--prompt", "a"], 1, part);
    generate("/no/such/folder", "/no/such/folder");
    generate("no-org/no-model", "hf download no-org/no-model");
    generate("src", "config.json");
    generate("Cargo.toml", "Cargo.toml");
    generate("", "error: ");

    let broken = |change: &dyn Fn(PathBuf), part: &str| {
        let dir = copy("gqa_bf16");
        change(dir.path().to_owned());
        generate(path(&dir), part);
    };
    broken(&|dir| fs::remove_file(dir.join("config.json")).unwrap(), "config.json");
    broken(&|dir| fs::write(dir.join("config.json"), "{").unwrap(), "config.json");
    broken(&|dir| fs::write(dir.join("config.json"), [b'{', 0xff]).unwrap(), "config.json");
    broken(&|dir| fs::remove_file(dir.join("model.safetensors")).unwrap(), "model.safetensors");
    broken(&|dir| fs::write(dir.join("model.safetensors"), [0xff; 64]).unwrap(), "model.safetensors");
    broken(
        &|dir| {
            let file = dir.join("model.safetensors");
            let bytes = fs::read(&file).unwrap();
            fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
        },
        "model.safetensors",
    );
    broken(&|dir| fs::write(dir.join("tokenizer.json"), "[]").unwrap(), "tokenizer.json");
    broken(
        &|dir| {
            fs::remove_file(dir.join("tokenizer.json")).unwrap();
            fs::create_dir(dir.join("tokenizer.json")).unwrap();
        },
        "tokenizer.json",
    );
    broken(
        &|dir| {
            let config = fs::read_to_string(dir.join("config.json")).unwrap();
            fs::write(dir.join("config.json"), config.replace("\"llama\"", "\"mamba\"")).unwrap();
        },
        "model_type",
    );
    // bf16 0xffff is a NaN.
    broken(&|dir| fill(&dir.join("model.safetensors"), "model.norm.weight", 0xff), "not finite");
    let dir = copy("gqa_bf16");
    fill(&dir.path().join("model.safetensors"), "model.layers.3.mlp.down_proj.weight", 0xff);
    for options in [&["--exit-layer", "2"][..], &["--temperature", "1"], &[]] {
        let base = ["generate", "--model", path(&dir), "--prompt", "a", "--json"];
        fails(&[&base[..], options].concat(), 1, "not finite");
    }

    let folder = tempfile::tempdir().unwrap();
    let prompts = |content: &[u8], part: &str| {
        let file = folder.path().join("prompts.txt");
        fs::write(&file, content).unwrap();
        fails(&["generate", "--prompts", file.to_str().unwrap()], 1, part);
    };
    prompts(b"", "holds no prompt");
    prompts(b"one\n\ntwo\n", "line 2 is empty");
    prompts(b"one\n\xff\n", "not UTF-8 at byte 4");
    prompts(&b"word ".repeat(2000), "line 1");
    fails(&["generate", "--prompts", "/no/such/file"], 1, "/no/such/file");
    fails(&["generate", "--prompts", "src"], 1, "not a regular file");
}

#[test]
fn help_names_every_policy() {
    let help = stdout(&["generate", "--help"]);
    for policy in warploom::decode::Policy::ALL {
        assert!(help.contains(policy.name()), "{} is not in the help of --policy", policy.name());
    }
}
