//! `warploom report`, by running it over results that were made up.
#![cfg(feature = "cli")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};
use warploom::results::{
    Run, shapes,
    targets::{D128, GENERATION, LLAMA3_8B_PRODUCTS, PROMPT_ROWS, SCRIPTED, scripted_exit},
};

fn report(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_warploom"))
        .arg("report")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("the command starts")
}

/// Runs it over a folder; the page.
fn page(results: &Path, page: &Path) -> String {
    let output = report(&["--results", results.to_str().unwrap(), "--page", page.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read_to_string(page).unwrap()
}

/// Runs it over a folder that is not right: one line, and no page.
fn refusal(results: &Path) -> String {
    let page = results.join("page.md");
    let output = report(&["--results", results.to_str().unwrap(), "--page", page.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!page.exists());
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

/// A row that takes `seconds`.
fn row(name: &str, shape: &str, seconds: f64, bytes: u64) -> Value {
    json!({
        "name": name, "shape": shape, "engine": "warploom", "samples": 30,
        "seconds": {
            "median": seconds, "min": 0.9 * seconds, "max": 1.2 * seconds, "q1": 0.98 * seconds, "q3": 1.02 * seconds
        },
        "bytes": bytes, "flop": null, "tokens": null, "ceiling": null, "share": null, "note": null, "error": null
    })
}

fn with(mut row: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        row[name] = value.clone();
    }
    row
}

/// A GPU that copies and reads 2 TB/s and multiplies 800 TFLOP/s.
fn run() -> Value {
    let copy = with(row("copy", "2 GiB", 1e-3, 2_000_000_000), json!({ "ceiling": "copy", "share": 1.0 }));
    let read = with(row("read", "4 GiB", 2e-3, 4_000_000_000), json!({ "ceiling": "read", "share": 1.0 }));
    let matmul = with(
        row("matmul bf16", "8192^3", 1e-3, 1),
        json!({ "engine": "torch", "bytes": null, "flop": 800_000_000_000u64, "ceiling": "matmul bf16", "share": 1.0 }),
    );
    json!({
        "schema": 1, "date": "2026-12-01", "commit": "0123456789ab", "dirty": false, "quick": false,
        "device": {
            "kind": "cuda", "name": "Made-up GPU 80GB", "capability": "9.0", "multiprocessors": 132,
            "memory_bytes": 80_000_000_000u64, "l2_bytes": 50_000_000, "driver": "580.1", "cuda": "13.0"
        },
        "clocks": { "before": null, "after": null },
        "ceilings": [copy, read, matmul], "kernels": [], "models": [], "peers": []
    })
}

fn write(folder: &Path, device: &str, date: &str, run: &Value) {
    let folder = folder.join(device);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(format!("{date}.json")), serde_json::to_string(run).unwrap()).unwrap();
}

fn push(run: &mut Value, section: &str, row: Value) {
    run[section].as_array_mut().unwrap().push(row);
}

/// The line of the targets' table that begins so.
fn line<'p>(page: &'p str, what: &str) -> &'p str {
    page.lines()
        .find(|line| line.starts_with(&format!("| {what}")))
        .unwrap_or_else(|| panic!("no line {what}"))
}

#[test]
fn the_page_in_the_repository_is_what_its_results_give() {
    let output = report(&["--check"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn targets_are_met_short_or_not_measured() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = run();
    // RMSNorm: 96 % of the copy ceiling, and 94 %.
    for (width, share) in [(4096, 0.96), (8192, 0.94)] {
        let bytes = 4 * PROMPT_ROWS as u64 * width;
        let seconds = bytes as f64 / 2e12 / share;
        let row = row("rms_norm", &shapes::matrix(PROMPT_ROWS, width as usize), seconds, bytes);
        push(&mut run, "kernels", with(row, json!({ "ceiling": "copy", "share": share })));
    }
    // Every skinny product at 95 % of reading, whatever the rows.
    for (outputs, inputs) in LLAMA3_8B_PRODUCTS {
        for rows in [1, 2, 4, 8, 16] {
            let bytes = 2 * (outputs * inputs) as u64;
            let row =
                row("linear", &shapes::product(rows, outputs, inputs), bytes as f64 / 2e12 / 0.95, bytes);
            push(&mut run, "kernels", with(row, json!({ "ceiling": "read", "share": 0.95 })));
        }
    }
    // Causal attention in 550 TFLOP/s against 500 and 520.
    for rows in [4096, 8192, 16384] {
        let shape = shapes::prompt("causal", D128, PROMPT_ROWS / rows, rows);
        let ours = with(
            row("attention_prefill", &shape, 1e-3, 1 << 20),
            json!({ "flop": 550_000_000_000u64, "ceiling": "matmul bf16", "share": 0.6875 }),
        );
        push(&mut run, "kernels", ours);
        for (engine, seconds) in [("sdpa flash", 1.1e-3), ("sdpa cudnn", 1.05e-3)] {
            let peer = row("attention_prefill", &shape, seconds, 1 << 20);
            push(&mut run, "peers", with(peer, json!({ "engine": engine })));
        }
    }
    // Plain decoding at 90 % of the roofline; rounds at 96 %, of which one is slow.
    let generation = shapes::generation("llama3-8b", 1, GENERATION.0, GENERATION.1);
    let tokens = |share: f64| json!({ "tokens": 128, "ceiling": "read", "share": share });
    let plain = row("plain decode", &generation, 2e12 / 2e12 / 0.9, 2_000_000_000_000);
    push(&mut run, "models", with(plain, tokens(0.9)));
    let (draft, kept) = SCRIPTED;
    for kept in kept {
        let shape = shapes::rounds(&generation, scripted_exit(32), draft, kept);
        let share = if kept == 2 { 0.7 } else { 0.96 };
        let row = row("speculative decode", &shape, 0.5 / share, 1_000_000_000_000);
        push(&mut run, "models", with(row, tokens(share)));
    }
    write(folder.path(), "made-up", "2026-12-01", &run);
    // An older one does not count.
    let mut older = run.clone();
    older["date"] = "2026-11-01".into();
    older["kernels"] = json!([]);
    write(folder.path(), "made-up", "2026-11-01", &older);
    let file = folder.path().join("made-up/2026-12-01.json");
    assert_eq!(Run::read(&file).unwrap().kernels.len(), 30);

    let page = page(folder.path(), &folder.path().join("page.md"));
    let ends = |what: &str, end: &str| {
        let line = line(&page, what);
        assert!(line.ends_with(end), "{line}");
    };
    ends("RMSNorm", "| 96 %, 94 % | short |");
    ends("skinny linear", "| 95 % at least, 16 rows 1.00 × 1 row at most | met |");
    ends("attention, prompts, D 128 causal", "| 1.05×, 1.05×, 1.05× | met |");
    ends("attention, prompts, sm_80", "| 1.10× | met |");
    ends("attention, prompts, D 128 not causal", "|  |  | not measured |");
    ends("Llama 3 8B shape, bf16", "| 90 %, 115 tokens/s | met |");
    ends("a speculative round", "| 96 %, 70 %, 96 %, 96 % | short |");
    ends(
        "self-speculative speed-up",
        "| 2.13× of 2.00×, 1.56× of 2.00×, 2.13× of 2.00×, 2.13× of 2.00×, plain decoding met | short |",
    );
    ends("on a CPU", "|  |  | not measured |");
    assert!(page.contains("![Roofline](roofline-made-up-gpu-80gb.svg)"));
    assert!(page.contains("| D128 H16/16 causal B1 S16384 | 1.00 ms | ± 2.0 % | 550.0 TFLOP/s | 69 % of matmul bf16 | sdpa cudnn: 1.05× |"));
    assert!(page.contains("| read | 4 GiB | warploom | 2000 GB/s | ± 2.0 % |"));
    let svg = fs::read_to_string(folder.path().join("roofline-made-up-gpu-80gb.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    // One point for each row with FLOP, and one of the legend.
    assert_eq!(svg.matches("<circle").count(), 4);
    assert!(svg.contains("attention_prefill") && svg.contains("measured ceilings"));
    // A second run changes nothing, and what stands around the tables stays.
    let path = folder.path().join("page.md");
    fs::write(&path, format!("before\n{page}after\n")).unwrap();
    assert_eq!(self::page(folder.path(), &path), format!("before\n{page}after\n"));
}

#[test]
fn without_results_nothing_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let page = page(folder.path(), &folder.path().join("page.md"));
    assert_eq!(page.matches("| not measured |").count(), 15);
    assert!(!page.contains("| met |") && page.contains("No GPU has been measured."));
}

#[test]
fn files_that_were_edited_or_cut_are_one_error() {
    let of = |run: &Value| {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "made-up", "2026-12-01", run);
        refusal(folder.path())
    };
    let good = run();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut run = good.clone();
        change(&mut run);
        of(&run)
    };
    for (part, change) in [
        (
            "its share is 0.900000, but",
            &(|run: &mut Value| run["ceilings"][0]["share"] = json!(0.9)) as &dyn Fn(&mut Value),
        ),
        ("are not min ≤ q1 ≤ median", &|run| run["ceilings"][1]["seconds"]["median"] = json!(1e-9)),
        ("stands there twice", &|run| {
            let row = run["ceilings"][0].clone();
            push(run, "ceilings", row);
        }),
        ("unknown field `speed`", &|run| run["speed"] = json!(1)),
        ("schema 2; this version reads 1", &|run| run["schema"] = json!(2)),
        ("neither a time nor an error", &|run| run["ceilings"][0]["seconds"] = Value::Null),
        ("is not YYYY-MM-DD", &|run| run["date"] = json!("yesterday")),
        ("missing field `peers`", &|run| drop(run.as_object_mut().unwrap().remove("peers"))),
        ("was written by a smoke run on sim", &|run| run["device"]["kind"] = json!("sim")),
    ] {
        let text = changed(change);
        assert!(text.contains(part) && text.contains("2026-12-01.json"), "{part}: {text}");
    }
    // Cut in the middle.
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "made-up", "2026-12-01", &good);
    let path = folder.path().join("made-up/2026-12-01.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    assert!(refusal(folder.path()).contains("EOF while parsing"), "{}", refusal(folder.path()));
    // A CPU's, whose median is none of its numbers.
    let folder = tempfile::tempdir().unwrap();
    let cpu = json!({
        "machine": { "cpu": "a CPU", "cores": 2 }, "versions": {}, "dtype": "bf16", "threads": 2,
        "models": { "15M": { "rows": { "warploom | decode 128": {
            "tokens_per_s": [1.0, 2.0, 3.0], "median": 2.5, "smallest": 1.0, "largest": 3.0
        } } } }
    });
    write(folder.path(), "cpu", "2026-12-01", &cpu);
    assert!(refusal(folder.path()).contains("warploom | decode 128"));
    // A name that is no date.
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "made-up", "best", &good);
    assert!(refusal(folder.path()).contains("is not named YYYY-MM-DD.json"));
}

#[test]
fn a_page_without_its_lines_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("page.md");
    fs::write(&path, "# Mine\n").unwrap();
    let results = folder.path().join("results");
    fs::create_dir(&results).unwrap();
    let output = report(&["--results", results.to_str().unwrap(), "--page", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("has no line <!-- report: targets -->"), "{text}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "# Mine\n");
}
