//! The trainer beside the machine's matrix products: `cargo bench --features train --bench train`.
//!
//! A batch forward and backward, and a whole step with its update, for two widths; then a table of what share of the machine's
//! f32 rate they reach. That rate is the fastest of several products measured in the same run on all cores: the trainer's
//! own way of multiplying, one large product on each core at once, and the CPU backend's product of a prompt.
//!
//! Operations are counted, not estimated: two for each multiply-add of every matrix product, attention's by the keys that its
//! rows see; the backward pass of a product is two products of the same size. What norms, softmax, SwiGLU, the optimizer and the
//! probabilities computed again cost is in the time and not in the count.
//!
//! Then a table of attention masks, in turns at the same model: keys that a row sees and time of a step (docs/local-attention.md).
//! `-- hidden` and `-- masks` run one of the two.

use std::{
    hint::black_box,
    sync::LazyLock,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rayon::prelude::*;
use warploom::{
    backend::{Backend, Cpu, Epilogue, Input, Projection, RowClass},
    checkpoint::Checkpoint,
    mask::Mask,
    train::{Batch, Curriculum, Objective, Settings, Trainer, UNCOUNTED, exit_weights},
};

/// Four layers of LayerSkip's recipe, batches of two sequences.
fn settings(hidden: usize, sequence: usize) -> Settings {
    Settings {
        layers: 4,
        hidden,
        intermediate: (hidden * 8 / 3).next_multiple_of(32),
        heads: hidden / 64,
        kv_heads: hidden / 128,
        vocab: 2048,
        context: sequence,
        sequence,
        batch: 2,
        dropout: 0.0,
        ..Settings::default()
    }
}

/// Floating-point operations of the products of one batch, forward and backward, with the exits of the first step.
fn operations(settings: &Settings) -> u64 {
    let Settings { layers, hidden, intermediate, heads, kv_heads, vocab, sequence, .. } = *settings;
    let head_dim = settings.head_dim();
    let mut weights = vec![0.0; layers];
    exit_weights(
        &mut weights,
        settings.exit_form,
        settings.exit_scale,
        settings.curriculum,
        0,
        settings.steps,
    );
    let exits = weights.iter().filter(|&&weight| weight > 0.0).count();
    let seen: usize = (0..sequence).map(|row| settings.attention.visible(row, sequence, 0).count()).sum();
    let linear = hidden * ((heads + 2 * kv_heads) * head_dim + heads * head_dim + 3 * intermediate);
    // Scores and their sums of values, for every query head.
    let attention = 2 * seen * heads * head_dim;
    let forward = layers * (sequence * linear + attention) + exits * sequence * hidden * vocab;
    (2 * 3 * settings.batch * forward) as u64
}

/// A batch with no pattern to it.
fn batch(settings: &Settings) -> Batch {
    let mut batch = Batch::new(settings.batch, settings.sequence);
    let mut state = 1u32;
    for sequence in batch.sequences_mut() {
        for token in sequence.inputs.iter_mut().chain(sequence.targets) {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *token = (state >> 8) % settings.vocab as u32;
        }
    }
    batch
}

/// Seconds that one of `count` runs takes at best, after one to warm up.
fn best(count: usize, mut run: impl FnMut() + Send) -> f64 {
    POOL.install(|| {
        run();
        let time = |run: &mut dyn FnMut()| {
            let begun = Instant::now();
            run();
            begun.elapsed().as_secs_f64()
        };
        (0..count).map(|_| time(&mut run)).fold(f64::INFINITY, f64::min)
    })
}

/// The products that compete for the machine's rate: what they are and operations per second on all cores.
fn products() -> Vec<(String, f64)> {
    let mut rates = Vec::new();
    for n in [512, 1024, 2048] {
        let threads = POOL.current_num_threads();
        let (a, b) = (vec![0.5f32; n * n], vec![0.25f32; n * n]);
        let mut outs = vec![vec![0.0f32; n * n]; threads];
        let seconds = best(5, || {
            outs.par_iter_mut().for_each(|out| {
                let side = n as isize;
                // SAFETY: the three are n × n, row-major, and no other thread has `out`.
                unsafe {
                    matrixmultiply::sgemm(
                        n,
                        n,
                        n,
                        1.0,
                        a.as_ptr(),
                        side,
                        1,
                        b.as_ptr(),
                        side,
                        1,
                        0.0,
                        out.as_mut_ptr(),
                        side,
                        1,
                    );
                }
            });
        });
        black_box(&outs);
        rates
            .push((format!("matrixmultiply, {n}³ on each core"), (threads * 2 * n * n * n) as f64 / seconds));

        let checkpoint = weight(n);
        let cpu = Cpu::new();
        let weight = cpu
            .weight(&checkpoint.tensor("model.embed_tokens.weight", &[n, n]).expect("it is there"))
            .expect("a weight");
        let x = vec![0.5f32; n * n];
        let mut out = cpu.buffer(n, n).expect("memory");
        let seconds = best(5, || {
            let input = Input { x: &x, from: 0, rows: n, norm: None, live: None };
            let projection = [Projection { weight: &weight, bias: None, column: 0 }];
            cpu.linear(input, &projection, &mut out, n, Epilogue::Store, RowClass::Prompt)
                .expect("a product");
        });
        black_box(&out);
        rates.push((format!("the CPU backend's product, {n}³"), (2 * n * n * n) as f64 / seconds));
    }
    rates
}

/// A checkpoint whose embedding is an n × n matrix in f32.
fn weight(n: usize) -> Checkpoint {
    let json = format!(
        r#"{{"model_type":"llama","hidden_size":{n},"intermediate_size":2,"num_hidden_layers":1,"head_dim":2,
        "num_attention_heads":1,"vocab_size":{n},"tie_word_embeddings":true}}"#
    );
    let config = warploom::checkpoint::Config::from_json("config.json".as_ref(), json.as_bytes(), None)
        .expect("a config");
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = config
        .tensors()
        .map(|(name, shape)| {
            let count: usize = shape.iter().product();
            (name, shape, 0.25f32.to_le_bytes().repeat(count))
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (
            name,
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes)
                .expect("a tensor"),
        )
    });
    let bytes = safetensors::serialize(views, None).expect("safetensors").leak();
    Checkpoint::from_bytes(json.as_bytes(), None, bytes).expect("a checkpoint")
}

/// Whether a filter on the command line lets `name` through.
fn wanted(name: &str) -> bool {
    std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'))
        .is_none_or(|filter| name.contains(&filter))
}

/// Steps of the decoder and encoder of docs/local-attention.md, 4096 tokens each, under every kind of mask: medians of rounds in
/// each of which every mask has its turn.
fn masks(_: &mut Criterion) {
    const ROUNDS: usize = 7;
    if !wanted("masks") {
        return;
    }
    println!(
        "\n| attention | keys a row sees, of 512 | ms a step | µs a token | of 2048 | ms a step | µs a token |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let names = [
        "full",
        "window:64",
        "chunk:64",
        "overlap:64",
        "bidirectional",
        "block:64",
        "block:64+globals:4",
        "blockwise:64",
        "blockwise:64+globals:4",
    ];
    let mut rows: Vec<String> = names.iter().map(|name| format!("| {name} |")).collect();
    for sequence in [512, 2048] {
        let mut runs: Vec<_> = names
            .iter()
            .map(|name| {
                let attention: Mask = name.parse().expect("a mask");
                let objective = if attention.is_causal() { Objective::Next } else { Objective::Masked };
                let recipe =
                    Settings { exit_scale: 0.0, curriculum: Curriculum::Off, ..settings(128, sequence) };
                let batch = 4096 / sequence;
                let settings =
                    Settings { vocab: 512, heads: 4, kv_heads: 2, batch, attention, objective, ..recipe };
                let seen: usize = (0..sequence).map(|row| attention.visible(row, sequence, 0).count()).sum();
                let mut tokens = self::batch(&settings);
                if objective == Objective::Masked {
                    // As many targets as are hidden in training, 3 in 20.
                    for sequence in tokens.sequences_mut() {
                        let targets = sequence.targets.iter_mut().enumerate();
                        targets
                            .filter(|(i, _)| ![3, 9, 16].contains(&(i % 20)))
                            .for_each(|(_, t)| *t = UNCOUNTED);
                    }
                }
                let trainer = Trainer::new(settings).expect("valid settings");
                (trainer, tokens, seen as f64 / sequence as f64, Vec::new())
            })
            .collect();
        for round in 0..=ROUNDS {
            for (trainer, tokens, _, times) in &mut runs {
                let time = timed(1, || drop(black_box(trainer.step(tokens).expect("a step"))));
                if round > 0 {
                    times.push(time.as_secs_f64());
                }
            }
        }
        for ((_, _, seen, times), row) in runs.iter_mut().zip(&mut rows) {
            times.sort_by(f64::total_cmp);
            let median = times[ROUNDS / 2];
            *row += &format!(" {seen:.1} | {:.0} | {:.1} |", 1e3 * median, 1e6 * median / 4096.0);
        }
    }
    rows.iter().for_each(|row| println!("{row}"));
}

fn training(c: &mut Criterion) {
    if !wanted("hidden") {
        return;
    }
    let mut table = Vec::new();
    for (hidden, sequence) in [(256, 512), (512, 512), (256, 2048)] {
        let settings = settings(hidden, sequence);
        let (batch, operations) = (batch(&settings), operations(&settings));
        let mut trainer = Trainer::new(settings.clone()).expect("valid settings");
        let name = format!("train/hidden {hidden}, sequence {sequence}");
        let both = best(3, || drop(black_box(trainer.backward(&batch).expect("a pass"))));
        let step = best(3, || drop(black_box(trainer.step(&batch).expect("a step"))));
        table.push((name.clone(), operations as f64 / both, operations as f64 / step));
        if sequence > 512 {
            continue;
        }
        let mut group = c.benchmark_group(&name);
        group.sample_size(10).warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_secs(1));
        group.throughput(Throughput::Elements(operations));
        group.bench_function(BenchmarkId::from_parameter("forward and backward"), |b| {
            b.iter_custom(|n| timed(n, || drop(black_box(trainer.backward(&batch).expect("a pass")))));
        });
        group.finish();
    }
    let products = products();
    let peak = products.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
    println!(
        "\n{} threads; the machine's rate: {:.1} GFLOP/s, the best of",
        POOL.current_num_threads(),
        peak / 1e9
    );
    products.iter().for_each(|(name, rate)| println!("    {:7.1} GFLOP/s  {name}", rate / 1e9));
    for (name, both, step) in table {
        println!(
            "{name}: forward and backward {:.1} GFLOP/s, {:.0} %; whole step {:.1} GFLOP/s, {:.0} %",
            both / 1e9,
            100.0 * both / peak,
            step / 1e9,
            100.0 * step / peak
        );
    }
}

static POOL: LazyLock<rayon::ThreadPool> =
    LazyLock::new(|| rayon::ThreadPoolBuilder::new().build().expect("threads"));

/// Time of `count` runs inside the pool, as the command does its work.
fn timed(count: u64, mut run: impl FnMut() + Send) -> Duration {
    POOL.install(|| {
        let begun = Instant::now();
        (0..count).for_each(|_| run());
        begun.elapsed()
    })
}

criterion_group!(benches, training, masks);
criterion_main!(benches);
