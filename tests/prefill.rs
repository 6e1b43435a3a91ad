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
