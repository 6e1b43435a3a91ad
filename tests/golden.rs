//! The forward pass and plain decoding against what transformers computed in float32.

mod common;

use common::{GOLDEN, extra_dir, golden_dir, greedy, ids, json, load, run};
use serde_json::Value;
use warploom::{
    backend::{Cpu, Row},
    cache::Cache,
    model::Llama,
};

/// Tolerance on a logit; transformers' own float32 noise on these checkpoints is about 1e-5.
const TOLERANCE: f64 = 2e-4;

/// Logits after `layers` layers for every position of `ids`.
fn logits(llama: &Llama<Cpu>, ids: &[u32], layers: usize) -> Vec<Vec<f32>> {
    let page = 16;
    let pages = ids.len().div_ceil(page);
    let mut cache = Cache::new(pages, page, 1, pages).unwrap();
    let mut kv = llama.kv(&cache).unwrap();
    let mut work = llama.work(ids.len(), ids.len()).unwrap();
    let sequence = cache.create().unwrap();
    cache.append(sequence, ids.len(), &mut Vec::new()).unwrap();
    let rows: Vec<Row> =
        ids.iter().enumerate().map(|(position, token)| Row { token: *token, position, sequence }).collect();
    llama.forward(0..layers, &rows, &mut kv, &cache, &mut work).unwrap();
    let vocab = llama.config().vocab;
    llama.head(0, ids.len(), &mut work).unwrap().chunks(vocab).map(<[f32]>::to_vec).collect()
}

fn close(name: &str, got: f32, want: &Value) {
    let want = want.as_f64().unwrap();
    assert!((f64::from(got) - want).abs() < TOLERANCE, "{name}: {got} for {want}");
}

fn top(name: &str, logits: &[f32], want: &Value) {
    for pair in want.as_array().unwrap() {
        let id = pair[0].as_u64().unwrap() as usize;
        close(&format!("{name}, id {id}"), logits[id], &pair[1]);
    }
}

fn argmax(logits: &[f32]) -> u64 {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|l| *l == best).unwrap() as u64
}

#[test]
fn golden_logits_at_every_exit_and_position() {
    for name in GOLDEN {
        let golden = json(&golden_dir(name).join("golden.json"));
        let llama = load(&golden_dir(name), 512);
        for (prompt_name, prompt) in golden["prompts"].as_object().unwrap() {
            let what = format!("{name}/{prompt_name}");
            let ids = ids(&prompt["ids"]);
            let all = logits(&llama, &ids, llama.config().layers);
            let last = all.last().unwrap();
            top(&what, last, &prompt["last_top20"]);
            let mean = last.iter().map(|l| f64::from(*l)).sum::<f64>() / last.len() as f64;
            close(&format!("{what} mean"), mean as f32, &prompt["last_mean"]);
            for (position, want) in prompt["argmax_each_position"].as_array().unwrap().iter().enumerate() {
                assert_eq!(argmax(&all[position]), want.as_u64().unwrap(), "{what}, position {position}");
            }
            for (layers, exit) in prompt["early_exit_last"].as_object().unwrap() {
                let layers: usize = layers.parse().unwrap();
                top(
                    &format!("{what} exit {layers}"),
                    logits(&llama, &ids, layers).last().unwrap(),
                    &exit["top20"],
                );
            }
        }
        let full = &golden["full_logits"];
        let prompt = ids(&golden["prompts"][full["prompt"].as_str().unwrap()]["ids"]);
        let all = logits(&llama, &prompt, llama.config().layers);
        for (i, (got, want)) in all.iter().flatten().zip(full["data"].as_array().unwrap()).enumerate() {
            close(&format!("{name} full {i}"), *got, want);
        }
    }
}

#[test]
fn golden_greedy_ids() {
    for name in GOLDEN {
        let golden = json(&golden_dir(name).join("golden.json"));
        let llama = load(&golden_dir(name), 512);
        for (prompt_name, prompt) in golden["prompts"].as_object().unwrap() {
            let want = ids(&prompt["greedy"]["ids"]);
            let (done, _) = run(&llama, vec![greedy(&ids(&prompt["ids"]), want.len())], 512).remove(0);
            assert_eq!(done.ids, want, "{name}/{prompt_name}");
        }
    }
}

#[test]
fn golden_extra_variants() {
    let mut seen = 0;
    for entry in std::fs::read_dir(extra_dir("")).unwrap() {
        let dir = entry.unwrap().path();
        if !dir.is_dir() {
            continue;
        }
        seen += 1;
        let golden = json(&dir.join("golden.json"));
        for (i, prompt) in golden["prompts"].as_array().unwrap().iter().enumerate() {
            let what = format!("{} prompt {i}", dir.file_name().unwrap().to_string_lossy());
            let context = prompt["context"].as_u64().map_or(96, |c| c as usize);
            let llama = load(&dir, context);
            let prompt_ids = ids(&prompt["ids"]);
            let last = logits(&llama, &prompt_ids, llama.config().layers).pop().unwrap();
            for (id, want) in prompt["last_logits"].as_array().unwrap().iter().enumerate() {
                close(&format!("{what} id {id}"), last[id], want);
            }
            for (layers, exit) in prompt["early_exit_last"].as_object().unwrap() {
                let logits = logits(&llama, &prompt_ids, layers.parse().unwrap()).pop().unwrap();
                top(&format!("{what} exit {layers}"), &logits, exit);
            }
            let want = ids(&prompt["greedy_ids"]);
            let room = want.len().min(context - prompt_ids.len());
            let (done, _) = run(&llama, vec![greedy(&prompt_ids, room)], context).remove(0);
            assert_eq!(done.ids, want[..room], "{what}");
        }
    }
    assert!(seen >= 12, "{seen} variants");
}
