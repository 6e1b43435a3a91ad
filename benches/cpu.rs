//! Decode, prefill and rounds on the CPU: `cargo bench --bench cpu`.
//!
//! Random bf16 weights of two shapes, 15M (dim 288, 6 layers) and 110M (dim 768, 12 layers), vocabulary 32,000;
//! rounds on the demo. Throughput is bytes of weights for decode steps, tokens for the rest.

use std::{
    hint::black_box,
    sync::LazyLock,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use warploom::{
    backend::{Cpu, Row},
    cache::Cache,
    checkpoint::{Checkpoint, Config},
    decode::{Generator, Limits, Policy, Request, Sampling},
    model::Llama,
};

/// A model of random weights, tied embeddings, one KV head per query head.
fn random(dim: usize, layers: usize, heads: usize, intermediate: usize) -> Llama<Cpu> {
    let json = format!(
        r#"{{"model_type":"llama","hidden_size":{dim},"intermediate_size":{intermediate},"num_hidden_layers":{layers},
        "num_attention_heads":{heads},"vocab_size":32000,"max_position_embeddings":2048,"tie_word_embeddings":true}}"#
    );
    let config = Config::from_json("config.json".as_ref(), json.as_bytes(), None).expect("a valid config");
    let mut state = 1u64;
    let mut noise = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = config
        .tensors()
        .map(|(name, shape)| {
            let scale = (3.0 / *shape.last().expect("a shape") as f32).sqrt();
            let count: usize = shape.iter().product();
            let value = |noise: f32| if name.contains("norm") { 1.0 } else { noise * scale };
            let bytes = (0..count).flat_map(|_| bf16::from_f32(value(noise())).to_le_bytes()).collect();
            (name.clone(), shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes);
        (name, view.expect("a valid tensor"))
    });
    let bytes = safetensors::serialize(views, None).expect("safetensors").leak();
    let checkpoint = Checkpoint::from_bytes(json.as_bytes(), None, bytes).expect("a valid checkpoint");
    Llama::new(&checkpoint, Cpu::new(), 2048).expect("a model")
}

/// A decode step of 1 to 16 rows after 256 positions, head included; and a prompt of 512.
fn forward(c: &mut Criterion) {
    for (name, dim, layers, heads, intermediate) in [("15M", 288, 6, 6, 768), ("110M", 768, 12, 12, 2048)] {
        let llama = random(dim, layers, heads, intermediate);
        let page = 16;
        let mut cache = Cache::new(64, page, 1, 64).expect("a cache");
        let mut kv = llama.kv(&cache).expect("pages");
        let mut work = llama.work(512, 16).expect("buffers");
        let sequence = cache.create().expect("a sequence");
        cache.append(sequence, 768, &mut Vec::new()).expect("room");
        let rows = |from: usize, count: usize| -> Vec<Row> {
            (from..from + count).map(|position| Row { token: position as u32, position, sequence }).collect()
        };
        let mut group = c.benchmark_group(format!("{name}/prefill"));
        group.sample_size(10).throughput(Throughput::Elements(512));
        let prompt = rows(0, 512);
        group.bench_function("512", |b| {
            b.iter_custom(|n| {
                timed(n, || llama.prefill(&prompt, &mut kv, &cache, &mut work).expect("a pass"))
            });
        });
        group.finish();
        let mut group = c.benchmark_group(format!("{name}/step"));
        group.throughput(Throughput::BytesDecimal((llama.bytes(0..layers) + llama.head_bytes()) as u64));
        for count in [1, 2, 4, 8, 16] {
            let step = rows(256, count);
            group.bench_function(BenchmarkId::new("rows", count), |b| {
                b.iter_custom(|n| {
                    timed(n, || {
                        llama.forward(0..layers, &step, &mut kv, &cache, &mut work).expect("a pass");
                        black_box(llama.head(0, count, &mut work).expect("logits")[0]);
                    })
                });
            });
        }
        group.finish();
    }
}

/// 64 tokens of the demo, plainly and by each policy.
fn rounds(c: &mut Criterion) {
    let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
    let checkpoint = Checkpoint::open(&demo).expect("the demo");
    let llama = Llama::new(&checkpoint, Cpu::new(), 512).expect("the demo");
    let layers = llama.config().layers;
    let mut group = c.benchmark_group("demo/generate 64");
    group.sample_size(20).throughput(Throughput::Elements(64));
    let mut generator =
        Generator::new(&llama, Limits { sequences: 1, context: 512, max_draft: 16 }).expect("a generator");
    for policy in Policy::ALL {
        group.bench_function(policy.name(), |b| {
            b.iter_custom(|n| {
                timed(n, || {
                    let request = Request {
                        prompt: vec![checkpoint.config.bos.expect("a BOS"), 40, 300, 200, 100],
                        max_tokens: 64,
                        sampling: Sampling::default(),
                        policy: policy.build(layers, 3, 4, None).expect("a policy"),
                        eos: vec![],
                    };
                    let slot = generator.start(request).expect("a start");
                    while generator.is_active() {
                        generator.round(&mut |_: usize, _: u32| None).expect("a round");
                    }
                    black_box(generator.finish(slot));
                })
            });
        });
    }
    group.finish();
}

/// Time of `count` runs inside a rayon pool, where the command does its work, too: joins are cheap from within.
fn timed(count: u64, mut run: impl FnMut() + Send) -> Duration {
    static POOL: LazyLock<rayon::ThreadPool> =
        LazyLock::new(|| rayon::ThreadPoolBuilder::new().build().expect("threads"));
    POOL.install(|| {
        let begun = Instant::now();
        (0..count).for_each(|_| run());
        begun.elapsed()
    })
}

criterion_group!(benches, forward, rounds);
criterion_main!(benches);
