//! Early-exit speculative decoding gives what plain decoding gives: the same ids from the same bits of logits
//! when greedy, the same distribution when sampled.

mod common;

use std::path::Path;

use common::{
    GOLDEN, bits_hash,
    distribution::{Counts, Joint, write_tiny},
    golden_dir, greedy, ids, json, load, run,
};
use rayon::prelude::*;
use warploom::{
    backend::{Cpu, Isa},
    checkpoint::Checkpoint,
    decode::{ExitPolicy, Generator, Limits, MAX_DRAFT, Plan, Policy, Request, Round, Sampling, Stop},
    mask::Mask,
    model::Llama,
};

fn drafting(
    mut request: Request,
    policy: Policy,
    layers: usize,
    exit: usize,
    draft: usize,
    tau: Option<f32>,
) -> Request {
    request.policy = policy.build(layers, exit, draft, tau).unwrap();
    request
}

fn prompts(name: &str) -> Vec<Vec<u32>> {
    let golden = json(&golden_dir(name).join("golden.json"));
    ["short", "mid50", "long300"].iter().map(|p| ids(&golden["prompts"][p]["ids"])).collect()
}

/// Every exit layer, every draft length from 1 to 8 and the longest, every policy: the same ids, from
/// logits whose every bit is the same.
#[test]
fn greedy_rounds_equal_plain_steps() {
    let (mut kept, mut refused) = (0, 0);
    for name in GOLDEN {
        let llama = load(&golden_dir(name), 512);
        let layers = llama.config().layers;
        for prompt in &prompts(name)[..2] {
            let plain = run(&llama, vec![greedy(prompt, 24)], 512).remove(0);
            assert_eq!(plain.0.ids.len(), 24);
            for exit in 1..layers {
                for draft in (1..=8).chain([MAX_DRAFT]) {
                    for policy in [Policy::Fixed, Policy::Length, Policy::Confidence] {
                        let what = format!("{name}, exit {exit}, draft {draft}, {policy}");
                        let request = drafting(greedy(prompt, 24), policy, layers, exit, draft, None);
                        let (done, rows) = run(&llama, vec![request], 512).remove(0);
                        assert_eq!(done.ids, plain.0.ids, "{what}");
                        assert_eq!(rows, plain.1, "{what}: logits");
                        assert_eq!(done.logits_hash, plain.0.logits_hash, "{what}");
                        assert!(
                            done.stats.rounds <= 24 && done.stats.accepted <= done.stats.drafted,
                            "{what}"
                        );
                        assert_eq!(
                            done.stats.rounds + done.stats.accepted,
                            24 + unfinished(&done.stats),
                            "{what}"
                        );
                        kept += done.stats.accepted;
                        refused += done.stats.drafted - done.stats.accepted;
                    }
                }
            }
        }
    }
    assert!(kept > 1000 && refused > 1000, "both happen: {kept} kept, {refused} refused");
}

/// Rounds whose last accepted draft ended them without a token of the verifier's own: those that a threshold
/// ended.
fn unfinished(stats: &warploom::decode::Stats) -> usize {
    stats.rounds + stats.accepted - stats.generated
}

/// A repetition penalty looks at the tokens so far, drafts included while they are drafts and no longer.
#[test]
fn penalised_rounds_equal_plain_steps() {
    let llama = load(&golden_dir("gqa_bf16"), 512);
    let sampling = Sampling { repetition_penalty: 1.3, ..Sampling::default() };
    for prompt in &prompts("gqa_bf16")[..2] {
        let plain = run(&llama, vec![Request { sampling, ..greedy(prompt, 60) }], 512).remove(0);
        for exit in 1..4 {
            for draft in [1, 3, 8] {
                let request = Request { sampling, ..greedy(prompt, 60) };
                let request = drafting(request, Policy::Fixed, 4, exit, draft, None);
                let (done, rows) = run(&llama, vec![request], 512).remove(0);
                assert_eq!((&done.ids, &rows), (&plain.0.ids, &plain.1), "exit {exit}, draft {draft}");
            }
        }
    }
}

/// Every instruction set and any number of threads: the same bits of logits, prompts included.
#[test]
fn machines_and_threads_do_not_show() {
    for name in ["gqa_bf16", "odd_all_f16", "both_bias_bf16"] {
        let checkpoint = Checkpoint::open(&golden_dir(name)).unwrap();
        let prompt = &prompts(name)[2];
        let mut first = None;
        for isa in Isa::available() {
            let llama = Llama::new(&checkpoint, Cpu::with_isa(isa).unwrap(), 512).unwrap();
            for threads in [1, 2, 3, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let (done, rows) = pool.install(|| run(&llama, vec![greedy(prompt, 12)], 512).remove(0));
                let first = first.get_or_insert_with(|| (done.ids.clone(), rows.clone()));
                assert_eq!((&done.ids, &rows), (&first.0, &first.1), "{name}, {isa:?}, {threads} threads");
            }
        }
    }
}

/// Generations at once in one pool, and in tasks of the caller's own: none waits for another, and the bits stay.
#[test]
fn generations_share_a_pool() {
    let llama = load(&golden_dir("gqa_bf16"), 512);
    let prompt = &prompts("gqa_bf16")[1];
    let generate = || {
        let request = drafting(greedy(prompt, 40), Policy::Fixed, 4, 1, 4, None);
        let (done, rows) = run(&llama, vec![request], 512).remove(0);
        (done.ids, rows)
    };
    let alone = generate();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    std::thread::scope(|scope| {
        let at_once = [0; 3].map(|_| scope.spawn(|| pool.install(generate)));
        at_once.into_iter().for_each(|one| assert_eq!(one.join().unwrap(), alone));
    });
    pool.install(|| (0..6).into_par_iter().for_each(|_| assert_eq!(generate(), alone)));
}

/// The demo, by every exit layer.
#[test]
fn the_demo_decodes_exactly() {
    let llama = load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo"), 256);
    let layers = llama.config().layers;
    let (bos, words) = (llama.config().bos.unwrap(), llama.config().vocab as u32 - 2);
    let prompt: Vec<u32> = [bos].into_iter().chain((300..340).map(|i| i * 7 % words)).collect();
    let plain = run(&llama, vec![greedy(&prompt, 60)], 256).remove(0);
    for exit in 1..layers {
        for (policy, draft) in [(Policy::Fixed, 1 + exit % 8), (Policy::Length, 4), (Policy::Confidence, 8)] {
            let request = drafting(greedy(&prompt, 60), policy, layers, exit, draft, None);
            let (done, rows) = run(&llama, vec![request], 256).remove(0);
            assert_eq!((&done.ids, &rows), (&plain.0.ids, &plain.1), "exit {exit}, {policy}");
        }
    }
    let requests =
        (1..layers).map(|exit| drafting(greedy(&prompt, 60), Policy::Length, layers, exit, 4, None));
    for (i, (done, rows)) in run(&llama, requests.collect(), 256).into_iter().enumerate() {
        assert_eq!((done.ids, rows), (plain.0.ids.clone(), plain.1.clone()), "sequence {i} of a batch");
    }
}

/// Sequences of different lengths, policies, exit layers and sampling in one batch: each as it is alone, drafts
/// and statistics included.
#[test]
fn a_batch_equals_its_sequences_alone() {
    for name in ["gqa_bf16", "odd_all_f16"] {
        let llama = load(&golden_dir(name), 400);
        let prompts = prompts(name);
        let make = |i: usize| {
            let sampling = if i % 3 == 2 {
                Sampling {
                    temperature: 0.9,
                    top_k: 40,
                    top_p: 0.95,
                    repetition_penalty: 1.1,
                    seed: 7,
                    ..Sampling::default()
                }
            } else {
                Sampling {
                    repetition_penalty: if i.is_multiple_of(2) { 1.0 } else { 1.2 },
                    ..Sampling::default()
                }
            };
            let request = Request { sampling, ..greedy(&prompts[i % 3], 10 + 5 * i) };
            let policy = [Policy::Fixed, Policy::Off, Policy::Length, Policy::Confidence][i % 4];
            drafting(request, policy, 4, 1 + i % 3, 1 + i, Some(0.3))
        };
        let alone: Vec<_> = (0..8).map(|i| run(&llama, vec![make(i)], 400).remove(0)).collect();
        let batch = run(&llama, (0..8).map(make).collect(), 400);
        for (i, (alone, batch)) in alone.iter().zip(&batch).enumerate() {
            assert_eq!(batch.0.ids, alone.0.ids, "{name} {i}");
            assert_eq!(batch.1, alone.1, "{name} {i}: logits");
            let counts = |s: &warploom::decode::Stats| (s.rounds, s.drafted, s.accepted, s.histogram);
            assert_eq!(counts(&batch.0.stats), counts(&alone.0.stats), "{name} {i}");
        }
    }
}

/// With windows and chunks pages are released on the way; the rows must still equal those of one pass over
/// the whole text, where nothing was released, and those of speculation.
#[test]
fn masks_and_released_pages() {
    for text in [
        "window:1",
        "window:15",
        "window:16",
        "window:17",
        "window:63+sinks:3",
        "chunk:16",
        "chunk:33",
        "overlap:20",
        "overlap:16+sinks:20",
        "full",
    ] {
        let mask: Mask = text.parse().unwrap();
        let mut llama = load(&golden_dir("gqa_bf16"), 512);
        llama.set_mask(mask);
        let prompt = &prompts("gqa_bf16")[1];
        let plain = run(&llama, vec![greedy(prompt, 150)], 512).remove(0);
        let request = drafting(greedy(prompt, 150), Policy::Length, 4, 2, 5, None);
        let speculative = run(&llama, vec![request], 512).remove(0);
        assert_eq!(speculative.0.ids, plain.0.ids, "{text}");
        assert_eq!(speculative.1, plain.1, "{text}: logits");
        assert_eq!(in_one_pass(&llama, prompt, &plain.0.ids), plain.1, "{text}: one pass");
    }
}

/// Hashes of the logits that each of `generated` comes from, all decode rows in one pass.
fn in_one_pass(llama: &Llama<Cpu>, prompt: &[u32], generated: &[u32]) -> Vec<u64> {
    use warploom::{backend::Row, cache::Cache};
    let ids = [prompt, generated].concat();
    let (first, end) = (prompt.len() - 1, ids.len() - 1);
    let pages = end.div_ceil(16);
    let mut cache = Cache::new(pages, 16, 1, pages).unwrap();
    let mut kv = llama.kv(&cache).unwrap();
    let mut work = llama.work(end, generated.len()).unwrap();
    let sequence = cache.create().unwrap();
    cache.append(sequence, end, &mut Vec::new()).unwrap();
    let row = |position: usize| Row { token: ids[position], position, sequence };
    let (prompt, decoded): (Vec<Row>, Vec<Row>) =
        ((0..first).map(row).collect(), (first..end).map(row).collect());
    llama.prefill(&prompt, &mut kv, &cache, &mut work).unwrap();
    llama.forward(0..llama.config().layers, &decoded, &mut kv, &cache, &mut work).unwrap();
    let logits = llama.head(0, decoded.len(), &mut work).unwrap();
    logits.chunks(llama.config().vocab).map(bits_hash).collect()
}

#[test]
fn a_window_bounds_the_cache() {
    let mut llama = load(&golden_dir("gqa_bf16"), 512);
    let limits = Limits { sequences: 1, context: 512, max_draft: 4 };
    let full = Generator::new(&llama, limits).unwrap().cache_bytes();
    llama.set_mask("window:16".parse().unwrap());
    let windowed = Generator::new(&llama, limits).unwrap().cache_bytes();
    assert!(windowed * 10 < full * 8, "{windowed} of {full}");
}

/// Each way to end: as many tokens as asked for, the context full, an EOS id drafted or chosen, the caller's word.
#[test]
fn ends() {
    let llama = load(&golden_dir("gqa_bf16"), 64);
    let prompt = &prompts("gqa_bf16")[0];
    let plain = run(&llama, vec![greedy(prompt, 40)], 64).remove(0).0.ids;
    for policy in Policy::ALL {
        let request = |n| drafting(greedy(prompt, n), policy, 4, 3, 6, None);
        for n in 0..12 {
            let done = run(&llama, vec![request(n)], 64).remove(0).0;
            assert_eq!((&done.ids[..], done.stop), (&plain[..n], Some(Stop::Length)), "{policy}");
            let most = done.stats.rounds * n.saturating_sub(1);
            assert!(
                done.stats.drafted <= most,
                "{policy}: a round drafts at most what its last token leaves room for"
            );
        }
        let done = run(&llama, vec![request(1000)], 64).remove(0).0;
        assert_eq!((done.ids.len() + prompt.len(), done.stop), (64, Some(Stop::Context)), "{policy}");
        for end in 0..20 {
            let first = plain.iter().position(|id| *id == plain[end]).unwrap();
            let done =
                run(&llama, vec![Request { eos: vec![9999, plain[end]], ..request(40) }], 64).remove(0).0;
            assert_eq!(
                (&done.ids[..], done.stop),
                (&plain[..=first], Some(Stop::Eos)),
                "{policy}, end {end}"
            );
        }
        let limits = Limits { sequences: 1, context: 64, max_draft: MAX_DRAFT };
        let mut generator = Generator::new(&llama, limits).unwrap();
        let slot = generator.start(request(40)).unwrap();
        let mut seen = 0;
        while generator.is_active() {
            let mut stop = |_: usize, _: u32| {
                seen += 1;
                (seen == 7).then_some(Stop::String)
            };
            generator.round(&mut stop).unwrap();
        }
        let done = generator.finish(slot).unwrap();
        assert_eq!((&done.ids[..], done.stop), (&plain[..7], Some(Stop::String)), "{policy}");
    }
}

/// A chat's next turn keeps what the cache holds; a batch shares the pages of a common beginning. Neither
/// shows in the tokens.
#[test]
fn kept_and_shared_prefixes() {
    for mask in ["full", "window:20"] {
        let mut llama = load(&golden_dir("gqa_bf16"), 512);
        llama.set_mask(mask.parse().unwrap());
        let long = &prompts("gqa_bf16")[2];
        let limits = Limits { sequences: 3, context: 512, max_draft: 4 };
        let mut generator = Generator::new(&llama, limits).unwrap();
        let finish = |generator: &mut Generator<Cpu>| {
            while generator.is_active() {
                generator.round(&mut |_: usize, _: u32| None).unwrap();
            }
        };
        let slot = generator.start(greedy(&long[..100], 30)).unwrap();
        finish(&mut generator);
        let first = generator.peek(slot).unwrap();
        // The next turn repeats prompt and answer and adds to them; the one after changes its mind midway.
        for (shared, kept_at_least) in [(130, 100), (90, if mask == "full" { 80 } else { 0 }), (0, 0)] {
            let mut turn: Vec<u32> = long[..100].iter().chain(&first.ids).copied().collect();
            turn.truncate(shared);
            turn.extend(&long[150..190]);
            generator.resume(slot, drafting(greedy(&turn, 20), Policy::Fixed, 4, 2, 4, None)).unwrap();
            finish(&mut generator);
            let resumed = generator.peek(slot).unwrap();
            let fresh = run(&llama, vec![greedy(&turn, 20)], 512).remove(0).0;
            assert_eq!(resumed.ids, fresh.ids, "{mask}, {shared} shared");
            assert!(
                resumed.stats.prefill_tokens <= turn.len() - 1 - kept_at_least,
                "{mask}: the prefix was kept"
            );
            // Back to the first turn, so that each case starts alike.
            generator.resume(slot, greedy(&long[..100], 30)).unwrap();
            finish(&mut generator);
        }
        let with: Vec<u32> = long[..90].iter().chain(&long[200..220]).copied().collect();
        let other = generator.start(greedy(&with, 20)).unwrap();
        finish(&mut generator);
        let forked = generator.finish(other).unwrap();
        assert_eq!(forked.ids, run(&llama, vec![greedy(&with, 20)], 512).remove(0).0.ids, "{mask}");
        if mask == "full" {
            assert_eq!(forked.stats.prefill_tokens, with.len() - 1 - 90, "the first 90 tokens were shared");
        }
    }
}

/// Policies are anybody's: what one asks for beyond its own word is cut, and layers that there are not are refused.
#[test]
fn a_policy_that_asks_for_too_much_does_no_harm() {
    struct Wild(usize);
    impl ExitPolicy for Wild {
        fn name(&self) -> &'static str {
            "wild"
        }
        fn max_draft(&self) -> usize {
            2
        }
        fn plan(&mut self, _: Option<&Round>) -> Plan {
            Plan { exit_layer: self.0, draft: 9, threshold: 0.0 }
        }
    }
    let llama = load(&golden_dir("gqa_bf16"), 64);
    let layers = llama.config().layers;
    for temperature in [0.0, 0.7] {
        let request = |exit_layer| Request {
            sampling: Sampling { temperature, ..Sampling::default() },
            policy: Some(Box::new(Wild(exit_layer))),
            ..greedy(&[1, 2], 20)
        };
        let limits = Limits { sequences: 1, context: 64, max_draft: 4 };
        let mut generator = Generator::new(&llama, limits).unwrap();
        let slot = generator.start(request(1)).unwrap();
        while generator.is_active() {
            generator.round(&mut |_: usize, _: u32| None).unwrap();
        }
        let stats = generator.finish(slot).unwrap().stats;
        assert_eq!(stats.generated, 20);
        assert!(stats.drafted > 0 && stats.histogram[3..].iter().all(|rounds| *rounds == 0), "{stats:?}");
        for exit_layer in [0, layers, usize::MAX] {
            let mut generator = Generator::new(&llama, limits).unwrap();
            generator.start(request(exit_layer)).unwrap();
            let error = generator.round(&mut |_: usize, _: u32| None).expect_err("no such layer").to_string();
            assert_eq!(
                error,
                format!(
                    "policy: wild asks for exit layer {exit_layer}; of {layers} layers 1 to {} can draft",
                    layers - 1
                )
            );
        }
    }
}

#[test]
fn refused_requests_leave_the_generator_as_it_was() {
    let llama = load(&golden_dir("gqa_bf16"), 64);
    let mut generator = Generator::new(&llama, Limits { sequences: 1, context: 64, max_draft: 4 }).unwrap();
    let refused = |generator: &mut Generator<Cpu>, request: Request, part: &str| {
        let error = generator.start(request).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(&mut generator, greedy(&[], 4), "empty");
    refused(&mut generator, greedy(&[512], 4), "vocabulary");
    refused(&mut generator, greedy(&[1; 64], 4), "--context");
    refused(&mut generator, drafting(greedy(&[1], 4), Policy::Fixed, 4, 1, 5, None), "--draft");
    refused(
        &mut generator,
        Request { sampling: Sampling { temperature: f32::NAN, ..Sampling::default() }, ..greedy(&[1], 4) },
        "--temperature",
    );
    generator.start(greedy(&[1], 4)).unwrap();
    refused(&mut generator, greedy(&[1], 4), "slot");
    assert!(Generator::new(&llama, Limits { sequences: 1, context: 513, max_draft: 0 }).is_err());
    assert!(Generator::new(&llama, Limits { sequences: 0, context: 5, max_draft: 0 }).is_err());
}

/// Joint three-token continuations over many seeds against the model's exact probabilities. Without the
/// residual distribution the counts would follow another distribution, which the same test must reject.
#[test]
fn sampled_rounds_keep_the_distribution() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny(dir.path());
    let llama = load(dir.path(), 64);
    let prompt = [1u32, 4, 2];
    let sampling = Sampling { temperature: 1.3, ..Sampling::default() };
    let known = Joint::new(&llama, &prompt, 3, 1, sampling.temperature);
    let limits = Limits { sequences: 1, context: 16, max_draft: MAX_DRAFT };
    const SEEDS: u64 = 20_000;
    for (draft, policy) in
        [(0, Policy::Off), (2, Policy::Fixed), (4, Policy::Length), (4, Policy::Confidence)]
    {
        // Five tokens, so that the drafts of the first three are not cut short by the limit.
        let request = |seed| {
            let request = Request { sampling: Sampling { seed, ..sampling }, ..greedy(&prompt, 5) };
            drafting(request, policy, 3, 1, draft, Some(0.35))
        };
        let counts = Counts::new(&llama, limits, 3, (0..SEEDS).map(request));
        known.assert_right(&counts, &format!("{policy}"));
        if draft > 0 {
            let share = counts.accepted as f64 / counts.drafted as f64;
            assert!((0.2..0.9).contains(&share), "{policy}: {share} of the drafts were accepted");
        }
    }
}

/// NaN in a weight ends in an error that says so, not in tokens.
#[test]
fn weights_that_are_not_finite() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny(dir.path());
    let path = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let llama = Llama::new(&Checkpoint::open(dir.path()).unwrap(), Cpu::new(), 64).unwrap();
    for policy in [Policy::Off, Policy::Fixed] {
        for temperature in [0.0, 1.0] {
            let sampling = Sampling { temperature, ..Sampling::default() };
            let request = drafting(Request { sampling, ..greedy(&[1, 2], 5) }, policy, 3, 1, 2, None);
            let mut generator =
                Generator::new(&llama, Limits { sequences: 1, context: 16, max_draft: 4 }).unwrap();
            generator.start(request).unwrap();
            let error = generator.round(&mut |_: usize, _: u32| None).expect_err("NaN").to_string();
            assert!(error.contains("not finite"), "{error}");
        }
    }
}
