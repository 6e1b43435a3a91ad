//! Early exits read out: against transformers' numbers, and evaluation against the plain definition of the loss.

use std::{ops::ControlFlow, path::Path};

use serde_json::Value;
use warploom::{
    Error,
    backend::Cpu,
    checkpoint::Checkpoint,
    decode::exits::{Evaluation, Exit, Windows, evaluate, exit_logits},
    model::Llama,
};

const TOLERANCE: f64 = 1e-3;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folders of `tests/<set>` with their `golden.json`, in order.
fn goldens(set: &str) -> Vec<(String, Value)> {
    let mut found: Vec<_> = std::fs::read_dir(root().join("tests").join(set))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("golden.json").is_file())
        .map(|path| {
            let golden = std::fs::read(path.join("golden.json")).unwrap();
            (path.to_str().unwrap().to_owned(), serde_json::from_slice(&golden).unwrap())
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(!found.is_empty());
    found
}

fn load(dir: &str, context: usize) -> Llama<Cpu> {
    Llama::new(&Checkpoint::open(Path::new(dir)).unwrap(), Cpu::new(), context).unwrap()
}

fn gqa() -> Llama<Cpu> {
    load(root().join("tests/golden/gqa_bf16").to_str().unwrap(), 512)
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn close(found: f64, expected: &Value, what: &str) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() < TOLERANCE, "{what}: {found} instead of {expected}");
}

/// Compares logits by id, and the order wherever it is wider than the tolerance.
fn same_top(exit: &Exit, expected: &Value, what: &str) {
    let expected = expected.as_array().unwrap();
    assert!(expected.len() > 1);
    for (place, pair) in expected.iter().enumerate() {
        let what = format!("{what}, exit {}, place {place}", exit.layer);
        close(exit.top[place].1.into(), &pair[1], &what);
        let found = exit.top.iter().find(|(id, _)| u64::from(*id) == pair[0].as_u64().unwrap());
        // The last places may be taken by ids whose logits are as good as equal.
        if let Some((_, logit)) = found {
            close((*logit).into(), &pair[1], &what);
        } else {
            let lowest: f64 = exit.top.last().unwrap().1.into();
            assert!(pair[1].as_f64().unwrap() < lowest + TOLERANCE, "{what}: id {} is missing", pair[0]);
        }
    }
}

#[test]
fn every_exit_of_the_golden_checkpoints() {
    for (dir, golden) in goldens("golden") {
        let llama = load(&dir, 512);
        for (name, prompt) in golden["prompts"].as_object().unwrap() {
            let what = format!("{dir}, {name}");
            let exits = exit_logits(&llama, &ids(&prompt["ids"]), 20).unwrap();
            assert_eq!(exits.len() as u64, golden["layers"].as_u64().unwrap());
            for (exit, layer) in exits.iter().zip(1..) {
                assert_eq!(exit.layer, layer);
                same_top(exit, &prompt["early_exit_last"][layer.to_string()]["top20"], &what);
            }
            let last = exits.last().unwrap();
            same_top(last, &prompt["last_top20"], &what);
            close(last.mean, &prompt["last_mean"], &what);
            close(last.std, &prompt["last_std"], &what);
        }
    }
}

#[test]
fn every_exit_of_the_further_checkpoints() {
    for (dir, golden) in goldens("golden_extra") {
        for prompt in golden["prompts"].as_array().unwrap() {
            // Dynamic RoPE has other angles in another context.
            let llama = load(&dir, prompt["context"].as_u64().unwrap() as usize);
            let exits = exit_logits(&llama, &ids(&prompt["ids"]), 20).unwrap();
            for (layer, expected) in prompt["early_exit_last"].as_object().unwrap() {
                same_top(&exits[layer.parse::<usize>().unwrap() - 1], expected, &dir);
            }
        }
    }
}

fn whole(llama: &Llama<Cpu>, tokens: &[u32], context: usize, bos: Option<u32>) -> Evaluation {
    evaluate(llama, tokens, Windows { context, bos }, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

#[test]
fn the_loss_is_that_of_the_golden_logits() {
    for (dir, golden) in goldens("golden") {
        let full = &golden["full_logits"];
        let tokens = ids(&golden["prompts"][full["prompt"].as_str().unwrap()]["ids"]);
        let data: Vec<f64> = full["data"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        let rows: Vec<&[f64]> = data.chunks(golden["vocab_size"].as_u64().unwrap() as usize).collect();
        let losses = rows
            .iter()
            .zip(&tokens[1..])
            .map(|(row, next)| row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[*next as usize]);
        let expected = losses.sum::<f64>() / (tokens.len() - 1) as f64;
        // Without BOS the first id only predicts; given as BOS, it does the same.
        for found in [
            whole(&load(&dir, 512), &tokens, 512, None),
            whole(&load(&dir, 512), &tokens[1..], 512, Some(tokens[0])),
        ] {
            assert_eq!((found.tokens, found.windows), (tokens.len() - 1, 1));
            let last = found.exits.last().unwrap();
            close(last.loss, &expected.into(), &dir);
            assert!((last.perplexity() - last.loss.exp()).abs() < 1e-9);
            assert_eq!(last.agreement, 1.0);
        }
    }
}

#[test]
fn agreement_counts_the_positions_where_an_exit_chooses_as_the_last_layer() {
    let (llama, tokens) = (gqa(), [504, 482, 316, 425, 79, 320, 259, 427, 258, 367]);
    let found = whole(&llama, &tokens, 512, None);
    let choices: Vec<Vec<u32>> = (1..tokens.len())
        .map(|n| exit_logits(&llama, &tokens[..n], 1).unwrap().iter().map(|exit| exit.top[0].0).collect())
        .collect();
    for exit in &found.exits {
        let agreed = choices.iter().filter(|choice| choice[exit.layer - 1] == choice[3]).count();
        assert!((exit.agreement - agreed as f64 / 9.0).abs() < 1e-12, "exit {}", exit.layer);
    }
    assert!(found.exits[0].agreement < 1.0, "nothing is shown if every exit agrees");
}

#[test]
fn windows_know_nothing_of_each_other_and_predict_every_token_once() {
    let llama = gqa();
    let tokens: Vec<u32> = (0..300).map(|i| (i * 37 + i * i) % 500).collect();
    let parts = |windows: Vec<Evaluation>| {
        let tokens: usize = windows.iter().map(|w| w.tokens).sum();
        (0..4)
            .map(|i| windows.iter().map(|w| w.exits[i].loss * w.tokens as f64).sum::<f64>() / tokens as f64)
            .collect::<Vec<_>>()
    };
    // More rows than one pass takes, and a last window that is not full.
    for context in [70, 100, 299] {
        let found = whole(&llama, &tokens, context, Some(504));
        assert_eq!((found.tokens, found.windows), (300, 300usize.div_ceil(context)));
        let alone = parts(tokens.chunks(context).map(|part| whole(&llama, part, 512, Some(504))).collect());

        let without = whole(&llama, &tokens, context, None);
        assert_eq!((without.tokens, without.windows), (299, 299usize.div_ceil(context)));
        let starts = (0..299).step_by(context);
        let each = starts.map(|start| whole(&llama, &tokens[start..300.min(start + context + 1)], 512, None));
        let overlapping = parts(each.collect());
        for i in 0..4 {
            assert!((found.exits[i].loss - alone[i]).abs() < 1e-9);
            assert!((without.exits[i].loss - overlapping[i]).abs() < 1e-9);
        }
    }
}

#[test]
fn progress_counts_to_the_end_and_can_end_it() {
    let llama = gqa();
    let tokens: Vec<u32> = (0..200).collect();
    let windows = Windows { context: 50, bos: Some(504) };
    let mut seen = Vec::new();
    let mut progress = |done, all| {
        seen.push((done, all));
        if done == 100 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let found = evaluate(&llama, &tokens, windows, &mut progress).unwrap();
    assert_eq!(seen, [(50, 200), (100, 200)]);
    assert!(found.interrupted);
    assert_eq!((found.tokens, found.windows), (100, 2));
    assert_eq!(found.exits, whole(&llama, &tokens[..100], 50, Some(504)).exits);
}

#[test]
fn arguments_out_of_range_are_refused() {
    let llama = gqa();
    let argument = |error| match error {
        Error::Argument { argument, .. } => argument,
        other => panic!("{other}"),
    };
    let logits = |prompt: &[u32], top| argument(exit_logits(&llama, prompt, top).unwrap_err());
    assert_eq!(logits(&[], 1), "prompt");
    assert_eq!(logits(&[512], 1), "prompt");
    assert_eq!(logits(&[1; 513], 1), "prompt");
    assert_eq!(logits(&[1], 0), "--top");
    assert_eq!(logits(&[1], 513), "--top");
    assert_eq!(exit_logits(&llama, &[1], 512).unwrap()[0].top.len(), 512);

    let refused = |tokens: &[u32], context, bos| {
        let windows = Windows { context, bos };
        argument(evaluate(&llama, tokens, windows, &mut |_, _| ControlFlow::Continue(())).unwrap_err())
    };
    assert_eq!(refused(&[], 8, Some(504)), "text");
    assert_eq!(refused(&[1], 8, None), "text");
    assert_eq!(refused(&[1, 512], 8, None), "text");
    assert_eq!(refused(&[1, 2], 8, Some(512)), "BOS");
    assert_eq!(refused(&[1, 2], 0, None), "--context");
    assert_eq!(refused(&[1, 2], 513, None), "--context");
}

#[test]
fn weights_that_are_not_finite_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let golden = root().join("tests/golden/gqa_bf16");
    std::fs::copy(golden.join("config.json"), dir.path().join("config.json")).unwrap();
    let mut bytes = std::fs::read(golden.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let start = header["model.norm.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[8 + length + start..][..2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let llama = load(dir.path().to_str().unwrap(), 512);
    assert!(matches!(exit_logits(&llama, &[1, 2, 3], 5), Err(Error::NotFinite { position: 2 })));
    let windows = Windows { context: 8, bos: None };
    let found = evaluate(&llama, &[1, 2, 3], windows, &mut |_, _| ControlFlow::Continue(()));
    assert!(matches!(found, Err(Error::NotFinite { position: 0 })));
}
