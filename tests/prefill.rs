//! Prompt rows: what they give does not depend on how a prompt is cut into calls, on its company, on threads or the
//! instruction set.

mod common;

use common::{GOLDEN, golden_dir, greedy, ids, json, load, run};
use warploom::{
    backend::{Cpu, Isa, Row},
    cache::Cache,
    checkpoint::Checkpoint,
    decode::{Policy, Request},
    model::Llama,
};

fn prompt(length: usize, vocab: usize) -> Vec<u32> {
    (0..length).map(|i| ((7919 * (i + 1)) % vocab) as u32).collect()
}

/// Bits of the logits after each of `prompts`, whose tokens but the last are prefilled side by side, at most `cut` of each
/// prompt in a call.
fn logits(llama: &Llama<Cpu>, prompts: &[&[u32]], cut: usize) -> Vec<Vec<u32>> {
    let pages = prompts.iter().map(|ids| ids.len().div_ceil(16)).max().unwrap();
    let mut cache = Cache::new(pages * prompts.len(), 16, prompts.len(), pages).unwrap();
    let mut kv = llama.kv(&cache).unwrap();
    let most = prompts.iter().map(|ids| ids.len()).sum::<usize>();
    let mut work = llama.work(most, prompts.len()).unwrap();
    let row = |ids: &[u32], position: usize, sequence| Row { token: ids[position], position, sequence };
    let sequences: Vec<usize> = prompts.iter().map(|_| cache.create().unwrap()).collect();
    for (ids, sequence) in prompts.iter().zip(&sequences) {
        cache.append(*sequence, ids.len(), &mut Vec::new()).unwrap();
    }
    for from in (0..most).step_by(cut) {
        let mut rows = Vec::new();
        for (ids, sequence) in prompts.iter().zip(&sequences) {
            let end = ids.len() - 1;
            rows.extend((from.min(end)..end.min(from + cut)).map(|at| row(ids, at, *sequence)));
        }
        if !rows.is_empty() {
            llama.prefill(&rows, &mut kv, &cache, &mut work).unwrap();
        }
    }
    let last: Vec<Row> =
        prompts.iter().zip(&sequences).map(|(ids, sequence)| row(ids, ids.len() - 1, *sequence)).collect();
    llama.forward(0..llama.config().layers, &last, &mut kv, &cache, &mut work).unwrap();
    let logits = llama.head(0, prompts.len(), &mut work).unwrap();
    logits.chunks(llama.config().vocab).map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
}

#[test]
fn golden_logits_after_a_prefill() {
    for name in GOLDEN {
        let golden = json(&golden_dir(name).join("golden.json"));
        let llama = load(&golden_dir(name), 512);
        for (prompt_name, prompt) in golden["prompts"].as_object().unwrap() {
            let got = logits(&llama, &[&ids(&prompt["ids"])], 512).remove(0);
            for pair in prompt["last_top20"].as_array().unwrap() {
                let (id, want) = (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap());
                let got = f64::from(f32::from_bits(got[id]));
                assert!((got - want).abs() < 2e-4, "{name}/{prompt_name}, id {id}: {got} for {want}");
            }
        }
    }
}

#[test]
fn cuts_company_and_threads_do_not_show() {
    let pools = [1, 2, 5].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
    for name in ["gqa_bf16", "odd_all_f16", "both_bias_bf16"] {
        let llama = load(&golden_dir(name), 512);
        let prompts: Vec<Vec<u32>> =
            [1, 2, 3, 13, 16, 17, 64, 65, 130, 301].map(|n| prompt(n, llama.config().vocab)).into();
        let alone: Vec<Vec<u32>> = prompts.iter().map(|ids| logits(&llama, &[ids], 512).remove(0)).collect();
        for (ids, alone) in prompts.iter().zip(&alone) {
            for cut in [1, 7, 12, 64] {
                assert!(logits(&llama, &[ids], cut)[0] == *alone, "{name}, {} by {cut}", ids.len());
            }
        }
        let all: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        for (pool, cut) in pools.iter().zip([512, 31, 100]) {
            assert!(pool.install(|| logits(&llama, &all, cut)) == alone, "{name}, all by {cut}");
        }
        for isa in Isa::available() {
            let checkpoint = Checkpoint::open(&golden_dir(name)).unwrap();
            let other = Llama::new(&checkpoint, Cpu::with_isa(isa).unwrap(), 512).unwrap();
            assert!(logits(&other, &all[..8], 512) == alone[..8], "{name}, {isa:?}");
        }
    }
}

/// Prompts of many lengths, plainly and speculatively, alone and in one batch where they share prefixes: the same ids from
/// the same bits of logits.
#[test]
fn prompts_of_any_length_in_any_company() {
    let llama = load(&golden_dir("gqa_bf16"), 512);
    let request = |ids: &[u32], policy: Policy| Request {
        policy: policy.build(llama.config().layers, 1, 4, None).unwrap(),
        ..greedy(ids, 8)
    };
    let prompts: Vec<Vec<u32>> =
        [1, 2, 17, 18, 33, 128, 257, 300].map(|n| prompt(n, llama.config().vocab)).into();
    let alone: Vec<_> =
        prompts.iter().map(|ids| run(&llama, vec![request(ids, Policy::Off)], 512).remove(0)).collect();
    for policy in [Policy::Off, Policy::Fixed] {
        let batch = run(&llama, prompts.iter().map(|ids| request(ids, policy)).collect(), 512);
        for ((done, logits), (expected, expected_logits)) in batch.iter().zip(&alone) {
            assert_eq!((&done.ids, logits), (&expected.ids, expected_logits), "{policy}");
        }
        for (ids, (_, expected)) in prompts.iter().zip(&alone) {
            let (_, logits) = run(&llama, vec![request(ids, policy)], 512).remove(0);
            assert_eq!(&logits, expected, "{policy}, {}", ids.len());
        }
    }
}

/// Prompts that start together are cut into passes wherever these are full, share prefixes with each other, and have the
/// ids and logits that they have alone; behind a window, too, where pages are given back in between.
#[test]
fn prompts_that_start_together() {
    for mask in [None, Some("window:40+sinks:3")] {
        let mut llama = load(&golden_dir("gqa_bf16"), 512);
        if let Some(mask) = mask {
            llama.set_mask(mask.parse().unwrap());
        }
        let vocab = llama.config().vocab as u32;
        // Every seventh is a beginning of another.
        let of = |i: usize, length| -> Vec<u32> {
            prompt(length, vocab as usize).iter().map(|id| (id + 13 * (i as u32 % 7)) % vocab).collect()
        };
        let lengths = [300, 1, 250, 17, 490, 2, 90, 300, 33, 270, 64];
        let prompts: Vec<_> = lengths.iter().enumerate().map(|(i, length)| of(i, *length)).collect();
        let together = run(&llama, prompts.iter().map(|ids| greedy(ids, 6)).collect(), 512);
        for (i, (ids, (done, logits))) in prompts.iter().zip(&together).enumerate() {
            let (alone, expected) = run(&llama, vec![greedy(ids, 6)], 512).remove(0);
            assert_eq!((&done.ids, logits), (&alone.ids, &expected), "prompt {i}, {mask:?}");
            assert_eq!(alone.stats.prefill_tokens, ids.len() - 1);
            let shared = match (i, mask) {
                // With the seventh before it; behind a window with one whose pages are all there.
                (7, None) => 299,
                (9, None) => 249,
                (10, _) => 16,
                _ => 0,
            };
            assert_eq!(done.stats.prefill_tokens, ids.len() - 1 - shared, "prompt {i}, {mask:?}");
            assert!(done.stats.prefill_seconds > 0.0 || ids.len() == 1 || shared + 1 == ids.len());
        }
    }
}

/// Of requests that start together all begin, or none; and the first that is wrong is named.
#[test]
fn all_begin_or_none() {
    use warploom::decode::{Generator, Limits};
    let llama = load(&golden_dir("gqa_bf16"), 512);
    let mut generator = Generator::new(&llama, Limits { sequences: 3, context: 64, max_draft: 0 }).unwrap();
    let of = |length| greedy(&prompt(length, llama.config().vocab), 4);
    let error = generator.start_all(vec![of(5), of(64), of(0)]).expect_err("too long").to_string();
    assert!(error.starts_with("request 2: prompt: its 64 tokens"), "{error}");
    let error = generator.start_all(vec![of(5), of(6), of(7), of(8)]).expect_err("too many").to_string();
    assert!(error.contains("4 more sequences") && error.contains("0 of 3 are taken"), "{error}");
    assert!(!generator.is_active());
    assert!(generator.start_all(vec![]).unwrap().is_empty());
    assert_eq!(generator.start(of(20)).unwrap(), 0);
    let error = generator.start_all(vec![of(5), of(6), of(7)]).expect_err("too many").to_string();
    assert!(error.contains("1 of 3 are taken"), "{error}");
    assert_eq!(generator.start_all(vec![of(5), of(6)]).unwrap(), [1, 2]);
    let error = generator.start(of(5)).expect_err("full").to_string();
    assert_eq!(error, "another sequence needs a free slot, but all 3 are taken");
    generator.finish(1);
    assert_eq!(generator.start_all(vec![of(60)]).unwrap(), [1]);
}

/// An interrupt between the passes of prompts ends those that are not computed to their end; what there is of them is
/// gone on from in the same bits.
#[test]
fn interrupted_prompts() {
    use std::sync::atomic::{AtomicBool, Ordering};
    use warploom::decode::{Generator, Limits, Stop};
    let llama = load(&golden_dir("gqa_bf16"), 512);
    let vocab = llama.config().vocab as u32;
    let prompts: Vec<Vec<u32>> = (1..5)
        .map(|i| prompt(500 - i, vocab as usize).iter().map(|id| (id + 7 * i as u32) % vocab).collect())
        .collect();
    let alone: Vec<_> = prompts.iter().map(|ids| run(&llama, vec![greedy(ids, 3)], 512).remove(0)).collect();
    // Before the first pass, and some time in between.
    for wait in [None, Some(std::time::Duration::from_millis(3))] {
        let flag = AtomicBool::new(wait.is_none());
        let limits = Limits { sequences: 4, context: 512, max_draft: 0 };
        let mut generator = Generator::new(&llama, limits).unwrap();
        generator.interrupt_with(&flag);
        std::thread::scope(|scope| {
            if let Some(wait) = wait {
                let flag = &flag;
                scope.spawn(move || {
                    std::thread::sleep(wait);
                    flag.store(true, Ordering::Relaxed);
                });
            }
            generator.start_all(prompts.iter().map(|ids| greedy(ids, 3)).collect()).unwrap();
        });
        for (slot, ids) in prompts.iter().enumerate() {
            let computed = generator.peek(slot).unwrap().stats.prefill_tokens;
            let stop = (computed < ids.len() - 1).then_some(Stop::Interrupted);
            assert_eq!(generator.stopped(slot), stop, "{computed} tokens");
            assert!(wait.is_some() || computed == 0);
        }
        flag.store(false, Ordering::Relaxed);
        for (slot, ids) in prompts.iter().enumerate() {
            let before = generator.peek(slot).unwrap().stats.prefill_tokens;
            generator.resume(slot, greedy(ids, 3)).unwrap();
            assert_eq!(generator.peek(slot).unwrap().stats.prefill_tokens, ids.len() - 1 - before);
        }
        while generator.is_active() {
            generator.round(&mut |_: usize, _: u32| None).unwrap();
        }
        for (slot, (alone, _)) in alone.iter().enumerate() {
            let done = generator.finish(slot).unwrap();
            assert_eq!((done.ids, done.logits_hash), (alone.ids.clone(), alone.logits_hash));
        }
    }
}

/// A prompt that goes on from what another sequence generated is computed as it would be alone.
#[test]
fn generated_tokens_are_not_shared() {
    use warploom::decode::{Generator, Limits};
    let llama = load(&golden_dir("gqa_bf16"), 512);
    let mut generator = Generator::new(&llama, Limits { sequences: 2, context: 256, max_draft: 0 }).unwrap();
    let first = generator.start(greedy(&prompt(40, llama.config().vocab), 60)).unwrap();
    while generator.is_active() {
        generator.round(&mut |_: usize, _: u32| None).unwrap();
    }
    let longer = [prompt(40, llama.config().vocab), generator.peek(first).unwrap().ids].concat();
    let second = generator.start(greedy(&longer, 20)).unwrap();
    while generator.is_active() {
        generator.round(&mut |_: usize, _: u32| None).unwrap();
    }
    let shared = generator.finish(second).unwrap();
    assert_eq!(shared.stats.prefill_tokens, longer.len() - 1 - 39, "the prompt is shared");
    let (alone, _) = run(&llama, vec![greedy(&longer, 20)], 256).remove(0);
    assert_eq!((shared.ids, shared.logits_hash), (alone.ids, alone.logits_hash));
}
