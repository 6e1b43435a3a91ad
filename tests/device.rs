//! Whole models through the kernels: on the simulator, or on the GPU that WARPLOOM_DEVICE names.

mod common;
#[allow(dead_code)]
#[path = "../benches/device/random.rs"]
mod random;

use std::{path::Path, ptr::NonNull, sync::Arc};

use common::{
    bits_hash,
    distribution::{Counts, Joint, write_random, write_tiny},
    golden_dir, greedy, ids, json, load, logits, reference, repository, run,
};
use warploom::{
    backend::{Backend, Gpu, LibraryUse, MemoryPlan, Recordings, Row},
    cache::Cache,
    checkpoint::{Checkpoint, Config, Dtype, Published},
    decode::{Finished, Generator, Limits, MAX_DRAFT, Plan, Policy, Request, Sampling, Stop, policy::Fixed},
    driver::{
        self, Driver, Family, Handle, Launch, Policy as Simulation, Products, Properties, Recorded, Simulator,
    },
    error::{Error, Result},
    model::Llama,
};

const GOLDEN: [&str; 6] =
    ["gqa_bf16", "mqa_f16", "tied_bf16_dup", "rope_llama3_v5cfg_bf16", "both_bias_bf16", "odd_all_f16"];

fn device() -> Arc<dyn Driver> {
    let name = std::env::var("WARPLOOM_DEVICE").unwrap_or_else(|_| "sim".into());
    driver::open(&name).unwrap_or_else(|e| panic!("{e}"))
}

fn on_device(dir: &Path, context: usize) -> Llama<Gpu> {
    let checkpoint = Checkpoint::open(dir).unwrap_or_else(|e| panic!("{e}"));
    let gpu = Gpu::new(device(), &checkpoint).unwrap_or_else(|e| panic!("{e}"));
    Llama::new(&checkpoint, gpu, context).unwrap_or_else(|e| panic!("{e}"))
}

fn demo() -> Llama<Gpu> {
    on_device(&repository().join("assets/demo"), 128)
}

/// A prompt of the golden data.
fn prompt(name: &str) -> Vec<u32> {
    let golden = json(&golden_dir(name).join("golden.json"));
    let prompts = golden["prompts"].as_object().unwrap();
    ids(&prompts.values().next().unwrap()["ids"])
}

fn drafting(request: Request, exit_layer: usize, draft: usize, threshold: f32) -> Request {
    Request { policy: Some(Box::new(Fixed { plan: Plan { exit_layer, draft, threshold } })), ..request }
}

/// Ids and rows of logits are those of plain decoding, bit for bit.
fn assert_equal(what: &str, got: &(Finished, Vec<u64>), want: &(Finished, Vec<u64>)) {
    assert_eq!(got.0.ids, want.0.ids, "{what}: ids");
    assert_eq!(got.1, want.1, "{what}: logits");
    assert_eq!(got.0.logits_hash, want.0.logits_hash, "{what}: hash of the last logits");
}

#[test]
fn golden_checkpoints_decode_exactly() {
    for name in GOLDEN {
        let llama = on_device(&golden_dir(name), 256);
        let prompt = prompt(name);
        let plain = run(&llama, vec![greedy(&prompt, 12)], 256).remove(0);
        for exit_layer in 1..llama.config().layers {
            let draft = 1 + 3 * exit_layer % 8;
            // A threshold ends some drafts early; these models are sure of nothing.
            let threshold = if exit_layer % 2 == 0 { 0.02 } else { 0.0 };
            let request = drafting(greedy(&prompt, 12), exit_layer, draft, threshold);
            let what = format!("{name}, exit {exit_layer}, draft {draft}, threshold {threshold}");
            assert_equal(&what, &run(&llama, vec![request], 256)[0], &plain);
        }
    }
}

#[test]
fn every_policy_and_the_demo() {
    let llama = demo();
    let prompt = [440, 258, 414, 268, 436];
    let plain = run(&llama, vec![greedy(&prompt, 16)], 128).remove(0);
    for policy in Policy::ALL {
        let policy_of = || policy.build(llama.config().layers, 4, 4, None).unwrap();
        let request = Request { policy: policy_of(), ..greedy(&prompt, 16) };
        assert_equal(&format!("{policy}"), &run(&llama, vec![request], 128)[0], &plain);
    }
    let fast = run(&llama, vec![drafting(greedy(&prompt, 16), 6, 4, 0.0)], 128).remove(0);
    assert!(fast.0.stats.accepted > 0, "the demo's drafts are accepted now and then");
    assert!(fast.0.stats.rounds < 16);
}

/// Whether tests take the time that a GPU has: not on the simulator, nor under a sanitizer, where they would be days.
fn at_full_size() -> bool {
    let is_set = |name| std::env::var_os(name).is_some();
    is_set("WARPLOOM_DEVICE") && !is_set("WARPLOOM_SMALL")
}

/// Each prompt of random ids in one batch: plain, and with drafts from every exit layer. Rounds' rows are those of plain decoding. Every
/// fourth prompt has any length up to `most`, the others are short.
fn assert_exact_from_every_exit(what: &str, llama: &Llama<Gpu>, prompts: usize, tokens: usize, most: usize) {
    let (layers, vocab) = (llama.config().layers, llama.config().vocab as u64);
    let mut state = 9_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % below as u64) as usize
    };
    let mut drafted = 0;
    for i in 0..prompts {
        let length = 1 + random(if i % 4 == 3 { most } else { most.min(24) });
        let prompt: Vec<u32> = (0..length).map(|_| random(vocab as usize) as u32).collect();
        let mut requests = vec![greedy(&prompt, tokens)];
        for exit_layer in 1..layers {
            let threshold = if exit_layer % 3 == 0 { 0.5 } else { 0.0 };
            requests.push(drafting(
                greedy(&prompt, tokens),
                exit_layer,
                1 + random(tokens.min(8)),
                threshold,
            ));
        }
        let done = run(llama, requests, most + 32);
        for (exit_layer, got) in done.iter().enumerate().skip(1) {
            drafted += got.0.stats.drafted;
            assert_equal(&format!("{what}, prompt {i}, exit {exit_layer}"), got, &done[0]);
        }
    }
    assert!(drafted > prompts);
}

/// On a GPU 1,000 prompts of 16 tokens each; on the simulator, to which they are hours, one.
#[test]
fn a_thousand_prompts_are_exact() {
    let llama = on_device(&repository().join("assets/demo"), 512);
    let (prompts, tokens, most) = if at_full_size() { (1000, 16, 480) } else { (1, 3, 24) };
    assert_exact_from_every_exit("demo", &llama, prompts, tokens, most);
}

/// Two layers of random weights as wide as those of Llama 3 8B and 70B: the first drafts. On the simulator a sixteenth of the width.
#[test]
fn wide_layers_are_exact() {
    for name in ["llama3-8b", "llama3-70b"] {
        let mut json: serde_json::Value =
            serde_json::from_str(Published::named(name).unwrap().json()).unwrap();
        let shrink = if at_full_size() { 1 } else { 16 };
        for key in ["hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"] {
            json[key] = (json[key].as_u64().unwrap() / shrink).max(1).into();
        }
        json["head_dim"] = 128.into();
        json["num_hidden_layers"] = 2.into();
        json["vocab_size"] = (32000 / shrink).into();
        let json = json.to_string();
        let config = Config::from_json(Path::new(name), json.as_bytes(), None).unwrap();
        let checkpoint = random::checkpoint(&config, &json).unwrap();
        // A second segment of keys, and pieces of a prompt.
        let (prompts, tokens, most) = if at_full_size() { (1000, 16, 2500) } else { (2, 4, 24) };
        let gpu = Gpu::new(device(), &checkpoint).unwrap();
        let llama = Llama::new(&checkpoint, gpu, most + 32).unwrap();
        assert_exact_from_every_exit(name, &llama, prompts, tokens, most);
    }
}

/// Ragged sequences, plain ones and ones with other exit layers and draft lengths, in one batch.
#[test]
fn a_batch_equals_its_sequences_alone() {
    let llama = on_device(&golden_dir("gqa_bf16"), 256);
    let whole = prompt("gqa_bf16");
    let layers = llama.config().layers;
    let request = |i: usize| {
        let request = greedy(&whole[..whole.len() - i], 6 + i);
        match i {
            0 => request,
            _ => drafting(request, 1 + i % (layers - 1), 2 * i, 0.0),
        }
    };
    let together = run(&llama, (0..4).map(request).collect(), 256);
    for (i, got) in together.iter().enumerate() {
        assert_equal(&format!("sequence {i}"), got, &run(&llama, vec![request(i)], 256)[0]);
        let plain = Request { policy: None, ..request(i) };
        assert_equal(&format!("sequence {i}, plain"), got, &run(&llama, vec![plain], 256)[0]);
    }
}

/// Sequences end where the CPU's would, and penalties see the drafts before a row.
#[test]
fn ends_and_penalties() {
    let llama = on_device(&golden_dir("gqa_bf16"), 64);
    let prompt = prompt("gqa_bf16");
    let penalised = || Request {
        sampling: Sampling { repetition_penalty: 1.7, ..Sampling::default() },
        ..greedy(&prompt, 14)
    };
    let plain = run(&llama, vec![penalised()], 64).remove(0);
    assert_equal("penalty", &run(&llama, vec![drafting(penalised(), 2, 5, 0.0)], 64)[0], &plain);
    assert_ne!(
        plain.0.ids,
        run(&llama, vec![greedy(&prompt, 14)], 64)[0].0.ids,
        "the penalty changes something"
    );

    let eos = plain.0.ids[5];
    for drafts in [0, 4] {
        let request = |request: Request| match drafts {
            0 => request,
            _ => drafting(request, 2, drafts, 0.0),
        };
        let ended = run(&llama, vec![request(Request { eos: vec![eos], ..penalised() })], 64).remove(0).0;
        assert_eq!(ended.stop, Some(Stop::Eos));
        let first = plain.0.ids.iter().position(|id| *id == eos).unwrap();
        assert_eq!(ended.ids, plain.0.ids[..=first]);
        let full = run(&llama, vec![request(greedy(&prompt, 1000))], 64).remove(0).0;
        assert_eq!(full.stop, Some(Stop::Context));
        assert_eq!(prompt.len() + full.ids.len(), 64);
    }
}

#[test]
fn sampled_rounds_reproduce() {
    let llama = on_device(&golden_dir("gqa_bf16"), 128);
    let prompt = prompt("gqa_bf16");
    let request = |seed: u64| {
        let sampling = Sampling { temperature: 0.9, top_k: 40, top_p: 0.95, seed, ..Sampling::default() };
        drafting(Request { sampling, ..greedy(&prompt, 12) }, 2, 3, 0.0)
    };
    let alone = run(&llama, vec![request(5)], 128).remove(0).0;
    let other = run(&llama, vec![request(6)], 128).remove(0).0;
    assert_ne!(alone.ids, other.ids, "another seed, other tokens");
    let batch = run(&llama, vec![request(6), request(5)], 128);
    assert_eq!(batch[1].0.ids, alone.ids, "slot and company do not matter");
    assert_eq!(batch[0].0.ids, other.ids);
}

/// Tokens of sampled rounds are distributed as the model's own probabilities say.
#[test]
fn sampled_rounds_keep_the_distribution() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny(dir.path());
    let llama = on_device(dir.path(), 64);
    let sampling = Sampling { temperature: 0.7, ..Sampling::default() };
    let known = Joint::new(&llama, &[4], 2, 1, sampling.temperature);
    // A token more than is counted: the limit leaves room for two drafts.
    let request =
        |seed| drafting(Request { sampling: Sampling { seed, ..sampling }, ..greedy(&[4], 3) }, 1, 2, 0.0);
    let limits = Limits { sequences: 64, context: 16, max_draft: 2 };
    let counts = Counts::new(&llama, limits, 2, (0..384).map(request));
    known.assert_right(&counts, "two drafts by one layer");
    let share = counts.accepted as f64 / counts.drafted as f64;
    assert!((0.2..0.9).contains(&share), "{share} of the drafts were accepted");
}

/// Where the most likely token is another than on the CPU, which computes in f32, the CPU's is ahead by less than twice
/// what the logits of the other positions are off by in the mean; and that is rare.
#[test]
fn choices_are_the_cpus_but_for_ties() {
    let demo = repository().join("assets/demo");
    let mut texts: Vec<_> = GOLDEN.iter().map(|name| (golden_dir(name), prompt(name), 48)).collect();
    texts.extend([[440, 258, 414], [268, 258, 610], [11, 296, 494]].map(|p| (demo.clone(), p.to_vec(), 90)));
    let (mut positions, mut different) = (0, 0);
    for (dir, prompt, tokens) in texts {
        let what = dir.display();
        let cpu = load(&dir, 256);
        let generated = run(&cpu, vec![greedy(&prompt, tokens)], 256).remove(0).0.ids;
        let ids = [prompt, generated].concat();
        let device = on_device(&dir, 256);
        // bf16 has 8 bits, f16 has 11: each of some ten roundings costs half a unit of what it rounds.
        let bound = if device.backend().dtype() == Dtype::F16 { 0.0125 } else { 0.1 };
        let (want, got) =
            (logits(&cpu, &ids, cpu.config().layers), logits(&device, &ids, cpu.config().layers));
        let off = |(want, got): (&Vec<f32>, &Vec<f32>)| {
            want.iter().zip(got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        let errors: Vec<f32> = want.iter().zip(&got).map(off).collect();
        for (position, (want, got)) in want.iter().zip(&got).enumerate() {
            let best = |x: &[f32]| (0..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best });
            let (theirs, ours) = (best(want), best(got));
            let error = errors[position];
            let scale = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            assert!(
                error < bound * scale,
                "{what}, position {position}: logits are off by {error} of {scale}"
            );
            positions += 1;
            if theirs != ours {
                different += 1;
                // Not against its own error, which no gap could exceed.
                let others = (errors.iter().sum::<f32>() - error) / (errors.len() - 1) as f32;
                let gap = want[theirs] - want[ours];
                assert!(gap < 2.0 * others, "{what}, position {position}: {ours} for {theirs}, {gap} ahead");
            }
        }
    }
    println!("{different} of {positions} choices differ from the CPU's");
    assert!(different * 100 <= positions, "{different} of {positions} choices differ");
}

/// Prompts of a batch go through the layers together: in as many launches as one of them, and in the same bits.
#[test]
fn prompts_of_a_batch_share_their_passes() {
    let checkpoint = Checkpoint::open(&golden_dir("gqa_bf16")).unwrap();
    let simulator = Arc::new(Simulator::new(Simulation::default()));
    let llama = Llama::new(&checkpoint, Gpu::new(simulator.clone(), &checkpoint).unwrap(), 128).unwrap();
    let vocab = llama.config().vocab as u32;
    let prompts: Vec<Vec<u32>> = [5, 70, 1, 40]
        .iter()
        .map(|length| (0..*length).map(|i| (7919 * (i + 3 * length)) % vocab).collect())
        .collect();
    let launches = |name: &str| -> u64 {
        simulator.launched().iter().filter(|l| l.entry.contains(name)).map(|l| l.count).sum()
    };
    let launches = || [launches("gemm"), launches("attention_prefill")];
    let mut before = [0, 0];
    let mut run = |prompts: &[Vec<u32>]| {
        let done = run(&llama, prompts.iter().map(|ids| greedy(ids, 2)).collect(), 128);
        let after = launches();
        let new = [after[0] - before[0], after[1] - before[1]];
        before = after;
        (done, new)
    };
    let (together, launched) = run(&prompts);
    for (ids, together) in prompts.iter().zip(&together) {
        let (alone, of_one) = run(std::slice::from_ref(ids));
        assert_equal(&format!("{} tokens", ids.len()), together, &alone[0]);
        assert_eq!(of_one, if ids.len() > 1 { launched } else { [0, 0] });
    }
    assert!(launched[1] > 0);
}

/// Logits of the last of `ids`, at positions `from` on of a sequence whose other positions no row sees.
fn far_out<B: Backend>(llama: &Llama<B>, ids: &[u32], from: usize) -> Vec<f32> {
    let page = llama.backend().page_size();
    let pages = (from + ids.len()).div_ceil(page);
    let mut cache = Cache::new(pages, page, 1, pages).unwrap();
    let mut kv = llama.kv(&cache).unwrap();
    let mut work = llama.work(ids.len(), 1).unwrap();
    let sequence = cache.create().unwrap();
    cache.append(sequence, from + ids.len(), &mut Vec::new()).unwrap();
    let row = |(i, token): (usize, &u32)| Row { token: *token, position: from + i, sequence };
    let rows: Vec<Row> = ids.iter().enumerate().map(row).collect();
    let (prompt, last) = rows.split_at(rows.len() - 1);
    llama.prefill(prompt, &mut kv, &cache, &mut work).unwrap();
    llama.forward(0..llama.config().layers, last, &mut kv, &cache, &mut work).unwrap();
    llama.head(0, 1, &mut work).unwrap().to_vec()
}

/// Whether logits are the CPU's, but for bf16's rounding.
fn assert_near(what: &str, got: &[f32], cpu: &[f32]) {
    let scale = cpu.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    for (got, cpu) in got.iter().zip(cpu) {
        assert!((got - cpu).abs() < 0.05 * scale, "{what}: {got} for {cpu} of {scale}");
    }
}

/// A small model's `config.json`.
fn long_config(layers: usize, context: usize) -> String {
    format!(
        r#"{{"model_type":"llama","hidden_size":32,"intermediate_size":32,"num_hidden_layers":{layers},
        "num_attention_heads":2,"num_key_value_heads":1,"vocab_size":40,"max_position_embeddings":{context},
        "rms_norm_eps":1e-5,"rope_theta":500000.0,"rope_scaling":{{"rope_type":"llama3","factor":8,
        "low_freq_factor":1,"high_freq_factor":4,"original_max_position_embeddings":8192}}}}"#
    )
}

/// The last chunk of contexts of 32k and 128k.
#[test]
fn the_last_chunk_of_a_long_context() {
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<u32> = (0..128).map(|i| (i * i + 7 * i) % 40).collect();
    for context in [1 << 15, 1 << 17] {
        write_random(dir.path(), &long_config(2, context));
        let (mut cpu, mut device) = (load(dir.path(), context), on_device(dir.path(), context));
        cpu.set_mask("chunk:128".parse().unwrap());
        device.set_mask("chunk:128".parse().unwrap());
        let from = context - 128;
        let got = far_out(&device, &ids, from);
        assert_near(&format!("{context}"), &got, &far_out(&cpu, &ids, from));
        // The rows turn by other angles in the first chunk.
        assert_ne!(got, far_out(&device, &ids, 0));
    }
}

/// The logits of the last of `ids`, a decode row, after the others came as prompts of these lengths.
fn after_prompts(llama: &Llama<Gpu>, ids: &[u32], lengths: &[usize]) -> Vec<f32> {
    let page = llama.backend().page_size();
    let pages = ids.len().div_ceil(page);
    let mut cache = Cache::new(pages, page, 1, pages).unwrap();
    let mut kv = llama.kv(&cache).unwrap();
    let mut work = llama.work(ids.len(), 1).unwrap();
    let sequence = cache.create().unwrap();
    let mut position = 0;
    let mut next = |cache: &mut Cache, count: usize| -> Vec<Row> {
        cache.append(sequence, count, &mut Vec::new()).unwrap();
        position += count;
        (position - count..position).map(|at| Row { token: ids[at], position: at, sequence }).collect()
    };
    for length in lengths {
        let rows = next(&mut cache, *length);
        llama.prefill(&rows, &mut kv, &cache, &mut work).unwrap();
    }
    let last = next(&mut cache, 1);
    assert_eq!(position, ids.len(), "the prompts are all but the last");
    llama.forward(0..llama.config().layers, &last, &mut kv, &cache, &mut work).unwrap();
    llama.head(0, 1, &mut work).unwrap().to_vec()
}

/// A prompt is computed in the same bits however it is cut, and shared prefixes are kept.
#[test]
fn prompts_in_pieces_and_shared_prefixes() {
    let llama = on_device(&golden_dir("gqa_bf16"), 256);
    let prompt: Vec<u32> = prompt("gqa_bf16").iter().cycle().take(150).copied().collect();
    let alone = run(&llama, vec![greedy(&prompt, 4)], 256).remove(0);
    let both = run(&llama, vec![greedy(&prompt[..140], 4), greedy(&prompt, 4)], 256);
    assert_equal("with a shared prefix", &both[1], &alone);
    for lengths in [&[149][..], &[1, 63, 64, 21], &[65, 84], &[148, 1]] {
        let cut = after_prompts(&llama, &prompt, lengths);
        assert_eq!(bits_hash(&cut), alone.1[0], "a prompt in pieces of {lengths:?}");
    }
}

/// Whole pieces of a prompt by the device's library: near the kernels' logits, in the same bits each time, and drafts as exact as ever.
#[test]
fn prompts_by_the_library() {
    for name in ["gqa_bf16", "mqa_f16"] {
        let checkpoint = Checkpoint::open(&golden_dir(name)).unwrap();
        let prompt: Vec<u32> = prompt(name).iter().cycle().take(129).copied().collect();
        let by_kernels = after_prompts(&on_device(&golden_dir(name), 256), &prompt, &[128]);
        let mut gpu = Gpu::new(device(), &checkpoint).unwrap();
        if let Err(e) = gpu.use_library(LibraryUse::Always) {
            assert!(e.to_string().contains("there is no cuBLASLt"), "{e}");
            continue;
        }
        let llama = Llama::new(&checkpoint, gpu, 256).unwrap();
        let choices = || llama.backend().library().unwrap().1;
        let piecewise = after_prompts(&llama, &prompt, &[1, 127]);
        assert_eq!(piecewise, by_kernels, "pieces that are not whole");
        assert!(choices().is_empty());
        let got = after_prompts(&llama, &prompt, &[128]);
        let measured = choices().len();
        // q, k and v, the output, gate and up, down, and k and v of the last layer, all that the next tokens need of it.
        assert_eq!(measured, 5);
        assert!(choices().iter().all(|choice| choice.library_ms.is_some()));
        assert!(choices().iter().all(|choice| choice.library));
        assert_eq!(after_prompts(&llama, &prompt, &[128]), got, "the same bits each time");
        assert_eq!(choices().len(), measured, "measured once");
        let most = by_kernels.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
        for (got, want) in got.iter().zip(&by_kernels) {
            assert!((got - want).abs() < 0.03 * most, "{name}: {got} is not {want}");
        }
        let plain = run(&llama, vec![greedy(&prompt, 6)], 256).remove(0);
        let request = drafting(greedy(&prompt, 6), 1, 4, 0.0);
        assert_equal(name, &run(&llama, vec![request], 256)[0], &plain);
    }
}

/// With feed-forward weights in e4m3: drafts, prompts in pieces and batches in the bits of plain decoding, and logits
/// that an f64 pass with the same quantising has, but for the rounding of activations.
#[test]
fn fp8_is_exact_and_as_the_formula() {
    for name in ["gqa_bf16", "both_bias_bf16", "odd_all_f16"] {
        let mut checkpoint = Checkpoint::open(&golden_dir(name)).unwrap();
        let prompt: Vec<u32> = prompt(name).iter().cycle().take(20).copied().collect();
        let stored = reference::logits(&checkpoint, &prompt);
        // So that quantising changes much, most of it without regard to what lies between two codes, and may fall to either.
        checkpoint.config.fp8_bound = Some(0.3);
        checkpoint.set_fp8(true).unwrap();
        let gpu = Gpu::new(device(), &checkpoint).unwrap();
        let llama = Llama::new(&checkpoint, gpu, 64).unwrap();
        let (got, want) = (logits(&llama, &prompt, 4), reference::logits(&checkpoint, &prompt));
        let rms = |of: &dyn Fn(usize, usize) -> f64| {
            let all = (0..want.len()).flat_map(|r| (0..want[r].len()).map(move |i| (r, i)));
            all.map(|(r, i)| of(r, i).powi(2)).sum::<f64>().sqrt()
        };
        let error = rms(&|r, i| f64::from(got[r][i]) - want[r][i]);
        let effect = rms(&|r, i| want[r][i] - stored[r][i]);
        println!("{name}: off by {error} where quantising changes {effect}");
        assert!(error < 0.05 * effect, "{name}: off by {error} where quantising changes {effect}");

        let plain = run(&llama, vec![greedy(&prompt, 6)], 64).remove(0);
        for (exit_layer, draft) in [(1, 5), (3, 2)] {
            let request = drafting(greedy(&prompt, 6), exit_layer, draft, 0.0);
            assert_equal(&format!("{name}, exit {exit_layer}"), &run(&llama, vec![request], 64)[0], &plain);
        }
        let batch = vec![greedy(&prompt[..7], 3), drafting(greedy(&prompt, 6), 2, 4, 0.0)];
        assert_equal(&format!("{name}, in a batch"), &run(&llama, batch, 64)[1], &plain);
        let cut = after_prompts(&llama, &prompt, &[1, 11, 7]);
        assert_eq!(bits_hash(&cut), plain.1[0], "{name}: a prompt in pieces");
    }
}

/// What came of `requests`, told one round late; and what was recorded for it. `stop` may end a sequence at a token.
fn run_late(
    llama: &Llama<Gpu>,
    requests: Vec<Request>,
    context: usize,
    stop: &mut dyn FnMut(usize, u32) -> Option<Stop>,
) -> (Vec<Finished>, Recordings) {
    let drafts = requests.iter().filter_map(|r| r.policy.as_ref().map(|p| p.max_draft()));
    let limits = Limits { sequences: requests.len(), context, max_draft: drafts.max().unwrap_or(0) };
    let mut generator = Generator::new(llama, limits).unwrap_or_else(|e| panic!("{e}"));
    let slots = generator.start_all(requests).unwrap_or_else(|e| panic!("{e}"));
    while generator.is_active() {
        let mut observer = |slot, id| stop(slot, id);
        generator.round(&mut observer).unwrap_or_else(|e| panic!("{e}"));
    }
    let recordings = generator.recordings().expect("rounds are on the device");
    (slots.into_iter().map(|slot| generator.finish(slot).expect("a sequence")).collect(), recordings)
}

/// Rounds that are launched before the host knows what came of the last one, as graphs from the third of a shape on.
#[test]
fn rounds_are_told_late_and_recorded() {
    let checkpoint = Checkpoint::open(&golden_dir("gqa_bf16")).unwrap();
    let mut gpu = Gpu::new(device(), &checkpoint).unwrap();
    let prompt = prompt("gqa_bf16");
    let request = |i: usize| {
        let request = greedy(&prompt[prompt.len() - 8 + i..], 10 + 3 * i);
        match i {
            0 => request,
            _ => drafting(request, i, 2 * i, 0.0),
        }
    };
    let batch = || (0..3).map(request).collect::<Vec<_>>();
    for graphs in [true, false] {
        gpu.set_graphs(graphs);
        let llama = Llama::new(&checkpoint, gpu, 64).unwrap();
        for (i, requests) in [batch(), vec![request(0)], vec![request(2)]].into_iter().enumerate() {
            let told = run(&llama, if i == 0 { batch() } else { vec![request(2 * (i - 1))] }, 64);
            let (late, recordings) = run_late(&llama, requests, 64, &mut |_, _| None);
            for (late, (told, rows)) in late.iter().zip(&told) {
                assert_eq!((&late.ids, late.stop), (&told.ids, told.stop));
                assert_eq!(late.logits_hash, told.logits_hash, "hash of the last logits");
                assert_eq!(late.stats.generated, rows.len());
                assert!(late.stats.decode_seconds > 0.0 && late.stats.decode_bytes > 0);
            }
            assert_eq!(recordings.graphs > 0 && recordings.replayed > 3, graphs, "{recordings:?}");
            assert_eq!(recordings.nodes > 20 * recordings.graphs, graphs, "{recordings:?}");
        }
        // Sampling draws the same whenever the host looks.
        let sampled = || {
            let sampling = Sampling { temperature: 0.9, top_p: 0.95, seed: 3, ..Sampling::default() };
            vec![Request { sampling, ..request(2) }]
        };
        let (late, _) = run_late(&llama, sampled(), 64, &mut |_, _| None);
        assert_eq!(late[0].ids, run(&llama, sampled(), 64)[0].0.ids);

        // What was generated behind a token at which the host stops is dropped.
        let whole = run(&llama, vec![request(2)], 64).remove(0).0.ids;
        for kept in [1, 2, 5] {
            let mut told = 0;
            let mut stop = |_: usize, _: u32| {
                told += 1;
                (told == kept).then_some(Stop::String)
            };
            let (late, _) = run_late(&llama, vec![request(2)], 64, &mut stop);
            assert_eq!((&late[0].ids[..], late[0].stop), (&whole[..kept], Some(Stop::String)));
        }
        gpu = Gpu::new(device(), &checkpoint).unwrap();
    }
}

/// A slot goes on after the host has stopped it, while a round of its is still in flight; so does one that was given to another sequence.
#[test]
fn slots_are_used_again_while_a_round_is_in_flight() {
    let llama = on_device(&golden_dir("gqa_bf16"), 128);
    let prompt = prompt("gqa_bf16");
    let request = |prompt: &[u32], tokens| drafting(greedy(prompt, tokens), 2, 3, 0.0);
    let whole = run(&llama, vec![request(&prompt, 20)], 128).remove(0).0.ids;
    let limits = Limits { sequences: 2, context: 128, max_draft: 3 };
    let mut generator = Generator::new(&llama, limits).unwrap();
    let other = run(&llama, vec![request(&prompt[3..], 9)], 128).remove(0).0.ids;
    let slot = generator.start(request(&prompt, 100)).unwrap();
    let mut told = 0;
    let mut until = |_: usize, _: u32| {
        told += 1;
        (told == 7).then_some(Stop::String)
    };
    while generator.is_active() {
        generator.round(&mut until).unwrap();
    }
    let go_on = [&prompt[..], &whole[..7]].concat();
    generator.resume(slot, request(&go_on, 13)).unwrap();
    let mut silent = |_: usize, _: u32| None;
    generator.round(&mut silent).unwrap();
    let second = generator.start(request(&prompt[3..], 9)).unwrap();
    while generator.is_active() {
        generator.round(&mut silent).unwrap();
    }
    assert_eq!(generator.finish(slot).unwrap().ids, whole[7..20]);
    assert_eq!(generator.finish(second).unwrap().ids, other);
    // A slot that is given up in the middle, and taken at once.
    generator.start(request(&prompt, 30)).unwrap();
    (0..2).for_each(|_| generator.round(&mut silent).unwrap());
    generator.finish(slot).unwrap();
    let third = generator.start(request(&prompt[3..], 9)).unwrap();
    while generator.is_active() {
        generator.round(&mut silent).unwrap();
    }
    assert_eq!(generator.finish(third).unwrap().ids, other);
}

/// What graphs address goes: the logits of drafts, when the first sequence draws its tokens, and the room for attention, when more rows
/// than a round has are computed in between. The rounds after it are as right as without graphs.
#[test]
fn graphs_go_with_what_they_address() {
    let checkpoint = Checkpoint::open(&golden_dir("gqa_bf16")).unwrap();
    let prompt = &prompt("gqa_bf16")[..9];
    let sampling = Sampling { temperature: 0.9, top_p: 0.95, seed: 3, ..Sampling::default() };
    let all = |graphs: bool| {
        let mut gpu = Gpu::new(device(), &checkpoint).unwrap();
        gpu.set_graphs(graphs);
        let llama = Llama::new(&checkpoint, gpu, 256).unwrap();
        let limits = Limits { sequences: 1, context: 64, max_draft: 3 };
        let mut generator = Generator::new(&llama, limits).unwrap();
        let mut ids = |request: Request, between: bool| {
            let slot = generator.start(drafting(request, 2, 3, 0.0)).unwrap();
            let mut rounds = 0;
            while generator.is_active() {
                generator.round(&mut |_: usize, _: u32| None).unwrap();
                rounds += 1;
                if between && rounds == 4 {
                    let many: Vec<u32> = (0..200).map(|i| i % 50).collect();
                    logits(&llama, &many, llama.config().layers);
                }
            }
            (generator.finish(slot).unwrap().ids, generator.recordings().unwrap())
        };
        let (first, before) = ids(greedy(prompt, 20), true);
        let (drawn, _) = ids(Request { sampling, ..greedy(prompt, 20) }, false);
        let (last, after) = ids(greedy(prompt, 20), false);
        assert_eq!(first, last);
        assert_eq!(before.replayed > 0 && after.replayed > before.replayed, graphs);
        (first, drawn)
    };
    assert_eq!(all(true), all(false));
}

/// However many shapes there are, there are few graphs.
#[test]
fn graphs_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny(dir.path());
    let llama = on_device(dir.path(), 64);
    let limits = Limits { sequences: 2, context: 64, max_draft: 8 };
    let mut generator = Generator::new(&llama, limits).unwrap();
    let mut most = 0;
    for (a, b) in (1..=8).flat_map(|a| (a..=8).map(move |b| (a, b))) {
        let request = |draft| drafting(greedy(&[4, 2], 40), 1, draft, 0.0);
        let slots = generator.start_all(vec![request(a), request(b)]).unwrap();
        // The second one is recorded.
        for _ in 0..2 {
            generator.round(&mut |_: usize, _: u32| None).unwrap();
        }
        slots.into_iter().for_each(|slot| drop(generator.finish(slot)));
        most = most.max(generator.recordings().unwrap().graphs);
    }
    let recordings = generator.recordings().unwrap();
    assert_eq!((most, recordings.graphs), (recordings.most, recordings.most));
}

/// A simulator that makes no graph of what was recorded, as a GPU may not.
struct Graphless(Simulator);

macro_rules! as_the_simulator {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty),*; $($of:ident($($what:ident: $kind:ty),*) -> $done:ty),*) => {
        $(fn $name(&self, $($argument: $type),*) -> $result { self.0.$name($($argument),*) })*
        // SAFETY: the caller's promise.
        $(unsafe fn $of(&self, $($what: $kind),*) -> $done { unsafe { self.0.$of($($what),*) } })*
    };
}

impl Driver for Graphless {
    as_the_simulator! {
        properties() -> &Properties, load(family: &Family) -> Result<Handle>, free_memory() -> Result<u64>, allocate(bytes: usize) -> Result<u64>,
        pin(bytes: usize) -> Result<NonNull<u8>>, stream() -> Result<Handle>, event() -> Result<Handle>;
        function(module: Handle, entry: &'static str) -> Result<Handle>, free(address: u64) -> (),
        resident(function: Handle, threads: u32, shared_bytes: u32) -> Result<u32>,
        upload(stream: Handle, to: u64, data: &[u8]) -> Result<()>, download(stream: Handle, from: u64, data: &mut [u8]) -> Result<()>,
        copy(stream: Handle, from: u64, to: u64, bytes: usize) -> Result<()>, fill(stream: Handle, to: u64, byte: u8, bytes: usize) -> Result<()>,
        drop_stream(stream: Handle) -> (), synchronize(stream: Handle) -> Result<()>,
        drop_event(event: Handle) -> (), record(event: Handle, stream: Handle) -> Result<()>, wait(stream: Handle, event: Handle) -> Result<()>,
        synchronize_event(event: Handle) -> Result<()>, elapsed_ms(from: Handle, to: Handle) -> Result<f32>,
        begin_capture(stream: Handle) -> Result<()>, drop_graph(graph: Handle) -> ()
    }

    fn products(self: Arc<Self>) -> Result<Arc<dyn Products>> {
        Err(Error::Device { device: self.properties().name.clone(), reason: "no library".into() })
    }

    unsafe fn unpin(&self, memory: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller's promise, as below.
        unsafe { self.0.unpin(memory, bytes) }
    }

    unsafe fn download_later(&self, stream: Handle, from: u64, to: NonNull<u8>, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.0.download_later(stream, from, to, bytes) }
    }

    unsafe fn launch(&self, stream: Handle, function: Handle, launch: &Launch) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.0.launch(stream, function, launch) }
    }

    unsafe fn end_capture(&self, stream: Handle) -> Result<Recorded> {
        // SAFETY: the caller's promise; nobody else has the graph.
        unsafe { self.0.drop_graph(self.0.end_capture(stream)?.graph) };
        Err(Error::Device { device: self.properties().name.clone(), reason: "no room for a graph".into() })
    }

    unsafe fn launch_graph(&self, _: Handle, _: Handle) -> Result<()> {
        unreachable!("there is none")
    }
}

/// Where no graph can be made of a round, its launches run one by one, and no other is recorded.
#[test]
fn rounds_run_without_graphs_where_there_can_be_none() {
    let checkpoint = Checkpoint::open(&golden_dir("gqa_bf16")).unwrap();
    let ids = |driver: Arc<dyn Driver>| {
        let llama = Llama::new(&checkpoint, Gpu::new(driver, &checkpoint).unwrap(), 64).unwrap();
        let request = drafting(greedy(&prompt("gqa_bf16")[..9], 16), 2, 3, 0.0);
        let (finished, recordings) = run_late(&llama, vec![request], 64, &mut |_, _| None);
        (finished[0].ids.clone(), finished[0].logits_hash, recordings.graphs > 0)
    };
    let graphless = ids(Arc::new(Graphless(Simulator::new(Simulation::default()))));
    let (with, hash, graphs) = ids(Arc::new(Simulator::new(Simulation::default())));
    assert!(graphs);
    assert_eq!(graphless, (with, hash, false));
}

/// What is taken of a device is at most what is planned, the reserve hardly touched.
fn assert_planned(name: &str, plan: &MemoryPlan, driver: &dyn Driver) {
    let taken = plan.total - driver.free_memory().unwrap();
    let planned = plan.needed() - plan.reserve + (2 << 20);
    assert!(taken <= planned, "{name}: {planned} bytes are planned, and {taken} taken");
}

/// Where activations and the attention's scratch are most of it.
#[test]
fn workspace_is_planned() {
    let json = r#"{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 512, "intermediate_size": 4096,
        "num_attention_heads": 16, "num_key_value_heads": 1, "vocab_size": 4096, "max_position_embeddings": 16384}"#;
    let config = Config::from_json(Path::new("wide"), json.as_bytes(), None).unwrap();
    let checkpoint = random::checkpoint(&config, json).unwrap();
    for context in [64, 1024, 16384] {
        let driver: Arc<dyn Driver> = Arc::new(Simulator::new(Simulation::default()));
        let plan = MemoryPlan::new(&*driver, &checkpoint, context, false).unwrap();
        let llama = Llama::new(&checkpoint, Gpu::new(driver.clone(), &checkpoint).unwrap(), context).unwrap();
        let limits = Limits { sequences: 1, context, max_draft: MAX_DRAFT };
        let generator = Generator::new(&llama, limits).unwrap();
        assert_planned(&format!("context {context}"), &plan, &*driver);
        drop(generator);
    }
}

/// What a model is said to take is what it takes, and too much is refused before anything is there.
#[test]
fn memory_is_planned() {
    for (name, fp8) in
        [("gqa_bf16", false), ("gqa_bf16", true), ("odd_all_f16", false), ("tied_bf16_dup", false)]
    {
        let mut checkpoint = Checkpoint::open(&golden_dir(name)).unwrap();
        checkpoint.set_fp8(fp8).unwrap();
        let driver: Arc<dyn Driver> = Arc::new(Simulator::new(Simulation::default()));
        let plan = MemoryPlan::new(&*driver, &checkpoint, 128, false).unwrap();
        assert_eq!((plan.free, plan.context), (plan.total, 128));
        plan.check().unwrap();
        let gpu = Gpu::new(driver.clone(), &checkpoint).unwrap();
        let (before, uploaded) = (driver.free_memory().unwrap(), gpu.uploaded());
        let llama = Llama::new(&checkpoint, gpu, 128).unwrap();
        let weights = before - driver.free_memory().unwrap();
        assert_eq!(uploaded.load(std::sync::atomic::Ordering::Relaxed), weights, "{name}");
        let off = plan.weights.abs_diff(weights) as f64 / weights as f64;
        assert!(off < 0.1, "{name}: {} of weights are planned, and {weights} taken", plan.weights);
        let before = driver.free_memory().unwrap();
        let cache = Cache::new(2, llama.backend().page_size(), 1, 2).unwrap();
        let kv = llama.kv(&cache).unwrap();
        let taken = before - driver.free_memory().unwrap();
        // Beside it a page table.
        assert!((plan.cache..plan.cache + 64).contains(&taken), "{name}: {} and {taken}", plan.cache);
        drop(kv);
        let limits = Limits { sequences: 1, context: 128, max_draft: MAX_DRAFT };
        let generator = Generator::new(&llama, limits).unwrap();
        assert_planned(name, &plan, &*driver);
        drop(generator);

        let small = Simulation { memory_bytes: plan.weights + plan.cache - 1, ..Simulation::default() };
        let plan = MemoryPlan::new(&Simulator::new(small), &checkpoint, 128, false).unwrap();
        let error = plan.check().unwrap_err().to_string();
        assert!(error.contains("the model on simulated H100") && error.contains("--context"), "{error}");
        assert!(plan.to_string().contains("for a sequence of 128 positions"), "{plan}");
    }
}

#[test]
fn what_the_kernels_cannot_run_is_refused() {
    let error = driver::open("cuda:99").err().expect("there is no such GPU").to_string();
    assert!(error.contains("cuda:99"), "{error}");
    let error = driver::open("gpu").err().expect("no such name").to_string();
    assert!(error.contains("sim"), "{error}");
}

/// What benchmarks rest on: every round keeps as many drafts as the script says, and without one the model decides again.
#[test]
fn scripted_rounds_keep_what_the_script_says() {
    let llama = on_device(&golden_dir("gqa_bf16"), 256);
    let prompt = prompt("gqa_bf16");
    let plain = run(&llama, vec![greedy(&prompt, 4)], 256).remove(0);
    for kept in [0, 2] {
        llama.backend().script_acceptance(Some(kept));
        let requests = (0..2).map(|_| drafting(greedy(&prompt, 7), 1, 3, 0.0)).collect();
        for (finished, _) in run(&llama, requests, 256) {
            // The last round may have room for fewer.
            let histogram = finished.stats.histogram;
            let rounds: usize = histogram.iter().sum();
            assert!(histogram[kept] + 1 >= rounds && histogram[kept] >= 2, "{kept}: {histogram:?}");
            assert_eq!(finished.ids.len(), 7);
        }
    }
    let drawn =
        Request { sampling: Sampling { temperature: 1.0, ..Sampling::default() }, ..greedy(&prompt, 2) };
    let limits = Limits { sequences: 1, context: 256, max_draft: 0 };
    let mut generator = warploom::decode::Generator::new(&llama, limits).unwrap();
    let refused = generator.start(drawn).unwrap_err().to_string();
    assert!(refused.starts_with("--temperature: acceptance is scripted"), "{refused}");
    llama.backend().script_acceptance(None);
    let again = run(&llama, vec![drafting(greedy(&prompt, 4), 1, 3, 0.0)], 256).remove(0);
    assert_equal("after a script", &again, &plain);
}
