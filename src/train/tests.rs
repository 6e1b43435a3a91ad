//! Gradients against finite differences, and what a trainer promises, on small models.

use std::path::Path;

use super::{trainer::Trainer, *};
use crate::{
    backend::Cpu,
    checkpoint::{Checkpoint, Config},
    decode::exits::{Windows, evaluate},
    mask::Mask,
    model::Llama,
    optimizer::{self, AdamW, Statistics},
};

/// A model small enough for finite differences, with every kind of parameter and two query heads a group.
fn tiny() -> Settings {
    Settings {
        layers: 3,
        hidden: 8,
        intermediate: 12,
        heads: 4,
        kv_heads: 2,
        vocab: 258,
        context: 80,
        steps: 10,
        batch: 2,
        // More than one block of query rows and of logits.
        sequence: 70,
        dropout: 0.0,
        exit_form: ExitScale::Depth,
        exit_scale: 1.0,
        curriculum: Curriculum::Off,
        ..Settings::default()
    }
}

/// Tokens that repeat often enough to have something to learn.
fn batch(settings: &Settings) -> Batch {
    let mut batch = Batch::new(settings.batch, settings.sequence);
    let masking = Masking::new(settings);
    for (i, Sequence { inputs, targets, .. }) in batch.sequences_mut().enumerate() {
        for t in 0..inputs.len() {
            inputs[t] = ((t * t + 7 * i) % 23) as u32;
            targets[t] = (((t + 1) * (t + 1) + 7 * i) % 23) as u32;
        }
        if let Some(masking) = &masking {
            masking.hide(i, inputs, targets);
        }
    }
    batch
}

/// A trainer whose weights are large enough for every operation to be far from linear.
fn lively(settings: &Settings) -> Trainer {
    enliven(Trainer::new(settings.clone()).expect("valid settings"))
}

fn enliven(mut trainer: Trainer) -> Trainer {
    let mut rng = rng(9, Stream::Weights);
    let matrices = trainer.graph.layout.matrices;
    for (i, weight) in trainer.weights.iter_mut().enumerate() {
        let noise = 2.0 * parameters::uniform(&mut rng) as f32 - 1.0;
        *weight = if i < matrices { 0.6 * noise } else { 1.0 + 0.4 * noise };
    }
    trainer
}

/// Compares the whole exit loss's gradient with central differences: for every tensor, along its gradient's
/// own direction, along a random one, and for single weights.
fn check_gradient(settings: &Settings, dropped: &[bool], exit_weights: &[f64]) {
    check_gradient_of(lively(settings), &batch(settings), dropped, exit_weights);
}

fn check_gradient_of(mut trainer: Trainer, batch: &Batch, dropped: &[bool], exit_weights: &[f64]) {
    let tokens = batch.counted() as f64;
    trainer.gradient(batch, dropped, exit_weights);
    let norm = trainer.reduce();
    assert!(norm > 0.1, "a gradient of {norm} tests nothing");
    let gradient = trainer.lanes[0].gradient.clone();
    let weights = trainer.weights.clone();
    let loss_at = |trainer: &mut Trainer, direction: &[(usize, f64)], step: f64| -> f64 {
        trainer.weights.copy_from_slice(&weights);
        for &(i, amount) in direction {
            trainer.weights[i] = (f64::from(weights[i]) + step * amount) as f32;
        }
        let exits = trainer.gradient(batch, dropped, exit_weights);
        exits.iter().zip(exit_weights).map(|(exit, weight)| exit.sum * weight).sum::<f64>() / tokens
    };
    let mut rng = rng(5, Stream::Data);
    for tensor in trainer.graph.layout.tensors(&trainer.config) {
        let range = tensor.range.clone();
        let length = |values: &[(usize, f64)]| values.iter().map(|(_, x)| x * x).sum::<f64>().sqrt();
        let own: Vec<(usize, f64)> = range.clone().map(|i| (i, f64::from(gradient[i]))).collect();
        let random: Vec<(usize, f64)> =
            range.clone().map(|i| (i, 2.0 * parameters::uniform(&mut rng) - 1.0)).collect();
        let largest = range.clone().max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs()));
        let single = vec![(largest.expect("no tensor is empty"), 1.0)];
        for (kind, mut direction) in [("gradient", own), ("random", random), ("largest", single)] {
            let scale = length(&direction);
            if scale == 0.0 {
                continue; // Dropped in every sample.
            }
            direction.iter_mut().for_each(|(_, amount)| *amount /= scale);
            let analytic: f64 = direction.iter().map(|&(i, amount)| amount * f64::from(gradient[i])).sum();
            // Fourth-order central differences, with a step that is large enough for f32 and one that is small enough
            // where the loss of few rows bends: the gradient is right if either says so.
            let difference = |trainer: &mut Trainer, h: f64| {
                let mut at = |steps: f64| loss_at(trainer, &direction, steps * h);
                (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * h)
            };
            let mut numeric = difference(&mut trainer, 0.004);
            let tolerance = 2e-3 * analytic.abs() + 2e-4;
            if (numeric - analytic).abs() >= tolerance {
                numeric = difference(&mut trainer, 0.001);
            }
            assert!(
                (numeric - analytic).abs() < tolerance,
                "{}, {kind}: {analytic} by the backward pass, {numeric} by differences",
                tensor.name
            );
        }
    }
}

#[test]
fn gradient_of_the_exit_loss_is_exact() {
    check_gradient(&tiny(), &[false; 6], &[0.2, 0.3, 0.5]);
}

#[test]
fn gradient_is_exact_with_layer_dropout_and_a_sparse_curriculum() {
    check_gradient(&tiny(), &[false, true, false, true, false, false], &[0.4, 0.0, 0.6]);
}

/// An encoder under the masked-token loss, whose vocabulary has a mask token.
fn encoder(mask: &str) -> Settings {
    let attention = mask.parse().expect("a mask");
    Settings { objective: Objective::Masked, attention, vocab: 259, ..tiny() }
}

/// Every kind of parameter under every pattern, all exits weighted; and once with layers dropped and an exit left out.
#[test]
fn gradient_is_exact_under_every_causal_mask() {
    for mask in ["window:5", "chunk:16", "overlap:16", "window:5+sinks:2", "chunk:70", "overlap:33+sinks:5"] {
        let settings = Settings { attention: mask.parse().expect("a mask"), ..tiny() };
        check_gradient(&settings, &[false; 6], &[0.2, 0.3, 0.5]);
    }
    let settings = Settings { attention: "window:20+sinks:3".parse().expect("a mask"), ..tiny() };
    check_gradient(&settings, &[false, true, false, true, false, false], &[0.4, 0.0, 0.6]);
}

#[test]
fn gradient_of_the_masked_token_loss_is_exact_under_every_bidirectional_mask() {
    for mask in [
        "bidirectional",
        "bidirectional+globals:2",
        "block:16",
        "block:7+globals:3",
        "blockwise:16",
        "blockwise:8+globals:2",
    ] {
        check_gradient(&encoder(mask), &[false; 6], &[0.2, 0.3, 0.5]);
    }
    check_gradient(
        &encoder("blockwise:16+globals:1"),
        &[false, true, false, true, false, false],
        &[0.4, 0.0, 0.6],
    );
}

/// A row without a target adds nothing: the loss of the others, and its gradient, are what they are without it.
#[test]
fn rows_without_a_target_do_not_count() {
    let settings = tiny();
    let mut trainer = lively(&settings);
    let mut all = batch(&settings);
    // The last row is seen by none, so that its tokens change nothing else.
    let mut changed = all.clone();
    for batch in [&mut all, &mut changed] {
        let rows = settings.sequence;
        batch.sequences_mut().for_each(|sequence| sequence.targets[rows - 1] = UNCOUNTED);
    }
    changed.sequences_mut().for_each(|sequence| sequence.inputs[settings.sequence - 1] = 200);
    let first = trainer.backward(&all).expect("a pass");
    let gradient = trainer.lanes[0].gradient.clone();
    let second = trainer.backward(&changed).expect("a pass");
    assert_eq!(first.loss, second.loss);
    assert!(gradient == trainer.lanes[0].gradient);
    all.sequences_mut().for_each(|sequence| sequence.targets.fill(UNCOUNTED));
    assert!(trainer.backward(&all).expect_err("no target").to_string().contains("no target"));
}

#[test]
fn masks_and_objectives_that_do_not_fit_are_refused() {
    let causal = Settings { attention: Mask::CAUSAL, ..encoder("block:4") };
    let error = causal.check().expect_err("rows see nothing that follows").to_string();
    assert!(error.contains("--attention") && error.contains("blockwise:B"), "{error}");
    let next = Settings { objective: Objective::Next, ..encoder("block:4") };
    let error = next.check().expect_err("rows see their targets").to_string();
    assert!(error.contains("--attention") && error.contains("--objective masked"), "{error}");
    let small = Settings { vocab: 258, ..encoder("block:4") };
    assert!(small.check().expect_err("no room for the mask").to_string().contains("259"));
}

#[test]
fn a_layer_dropped_in_every_sample_has_no_gradient() {
    let settings = tiny();
    let mut trainer = lively(&settings);
    trainer.gradient(&batch(&settings), &[false, true, false, false, true, false], &[0.5, 0.0, 0.5]);
    trainer.reduce();
    let gradient = &trainer.lanes[0].gradient;
    for (l, layer) in trainer.graph.layout.layers.iter().enumerate() {
        for range in
            [&layer.qkv, &layer.output, &layer.gate_up, &layer.down, &layer.input_norm, &layer.post_norm]
        {
            assert_eq!(gradient[range.clone()].iter().all(|&g| g == 0.0), l == 1, "layer {l}");
        }
    }
}

#[test]
fn one_batch_can_be_learned_by_heart() {
    let settings = Settings {
        hidden: 32,
        intermediate: 64,
        sequence: 24,
        context: 24,
        steps: 300,
        learning_rate: 1e-2,
        ..tiny()
    };
    let mut trainer = Trainer::new(settings.clone()).expect("valid settings");
    // The first token tells the two sequences apart, so that every target can be known.
    let mut batch = batch(&settings);
    batch.inputs[0] = 100;
    batch.inputs[settings.sequence] = 101;
    let mut report = trainer.step(&batch).expect("a step");
    let uniform = (settings.vocab as f64).ln();
    assert!((report.loss - uniform).abs() < 0.1, "untrained, every token is as likely: {}", report.loss);
    for _ in 1..settings.steps {
        report = trainer.step(&batch).expect("a step");
    }
    let last = report.exits[settings.layers - 1].expect("the last exit is always trained");
    assert!(last < 0.02, "a cross-entropy of {last} is left");
}

#[test]
fn the_result_does_not_depend_on_the_threads() {
    let settings =
        Settings { batch: 11, dropout: 0.5, curriculum: Curriculum::Rotational { every: 2 }, ..tiny() };
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| {
            let mut trainer = Trainer::new(settings.clone()).expect("valid settings");
            for _ in 0..settings.steps {
                trainer.step(&batch(&settings)).expect("a step");
            }
            trainer.weights
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3), "weights differ");
}

#[test]
fn dropout_follows_its_probability() {
    let settings = Settings { dropout: 0.8, batch: 64, steps: 2, sequence: 2, context: 2, ..tiny() };
    let mut trainer = Trainer::new(settings.clone()).expect("valid settings");
    assert!(trainer.draw_dropout().iter().all(|&dropped| !dropped), "S(0) = 0");
    trainer.step = 1;
    let draws: Vec<bool> = (0..200).flat_map(|_| trainer.draw_dropout()).collect();
    for (l, p) in [(0, 0.0), (1, 0.8 * (2f64.sqrt() - 1.0)), (2, 0.8)] {
        let share =
            draws.iter().skip(l).step_by(3).filter(|&&dropped| dropped).count() as f64 / (200.0 * 64.0);
        assert!((share - p).abs() < 0.02, "layer {l} was dropped in {share} of the samples, not in {p}");
    }
}

#[test]
fn a_batch_that_does_not_fit_is_refused() {
    let settings = tiny();
    let mut trainer = Trainer::new(settings.clone()).expect("valid settings");
    assert!(trainer.step(&Batch::new(1, settings.sequence)).is_err());
    assert!(trainer.step(&Batch::new(2, settings.sequence + 1)).is_err());
    let mut batch = batch(&settings);
    batch.targets[3] = settings.vocab as u32;
    assert!(trainer.step(&batch).is_err());
}

#[test]
fn a_diverged_run_is_an_error_and_keeps_its_weights() {
    let settings = tiny();
    let mut trainer = Trainer::new(settings.clone()).expect("valid settings");
    trainer.weights[0] = f32::NAN;
    let before = trainer.weights.clone();
    let error = trainer.step(&batch(&settings)).expect_err("the loss is not a number").to_string();
    assert!(error.contains("--lr") && error.contains("diverged"), "{error}");
    assert!(before[1..] == trainer.weights[1..]);
}

/// A trainer for a configuration of its own.
fn of_config(json: &str, settings: &Settings) -> Trainer {
    let config = Config::from_json(Path::new("config.json"), json.as_bytes(), None).expect("a config");
    let mut settings = settings.clone();
    settings.adopt(&config);
    Trainer::with_config(config, settings, None).expect("a trainer")
}

#[test]
fn gradient_is_exact_with_biases_a_head_of_its_own_wide_heads_and_scaled_angles() {
    // Heads wider than hidden / heads, YaRN's magnitude, a mask of its own for each layer.
    let json = r#"{"model_type": "llama", "num_hidden_layers": 3, "hidden_size": 8, "intermediate_size": 12,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 40, "max_position_embeddings": 80,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 20},
        "attention_bias": true, "mlp_bias": true, "tie_word_embeddings": false, "rms_norm_eps": 1e-3,
        "sliding_window": 9, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}"#;
    let settings = tiny();
    let trainer = enliven(of_config(json, &settings));
    assert_eq!(trainer.tensors().count(), 3 + 3 * (9 + 7));
    let mut batch = batch(&settings);
    batch.begins[20] = true;
    batch.begins[settings.sequence + 1] = true;
    check_gradient_of(trainer, &batch, &[false, false, false, false, true, false], &[0.2, 0.3, 0.5]);
}

#[test]
fn exit_losses_are_those_of_the_inference_graph() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut seen = 0;
    for set in ["golden", "golden_extra"] {
        for dir in std::fs::read_dir(tests.join(set)).expect("golden checkpoints") {
            let dir = dir.expect("an entry").path();
            if !dir.join("config.json").is_file() {
                continue;
            }
            let checkpoint = Checkpoint::open(&dir).expect("a checkpoint");
            let config = checkpoint.config.clone();
            let weights = parameters::Layout::new(&config).read(&checkpoint, &dir).expect("float weights");
            let rows = 60.min(config.context);
            let mut settings = Settings { batch: 1, sequence: rows, ..tiny() };
            settings.adopt(&config);
            let vocab = config.vocab as u32;
            let mut trainer = Trainer::with_config(config, settings, Some(weights)).expect("a trainer");
            let tokens: Vec<u32> = (0..=rows as u32).map(|i| (i * i * 7 + i + 3) % vocab).collect();
            let mut batch = Batch::new(1, rows);
            batch.inputs.copy_from_slice(&tokens[..rows]);
            batch.targets.copy_from_slice(&tokens[1..]);
            let exits = trainer.evaluate(&batch);

            let llama = Llama::new(&checkpoint, Cpu::new(), rows).expect("a model");
            let windows = Windows { context: rows, bos: Some(tokens[0]) };
            let expected = evaluate(&llama, &tokens[1..], windows, &mut |_, _| ControlFlow::Continue(()));
            for (exit, expected) in expected.expect("an evaluation").exits.iter().enumerate() {
                let (found, wanted) = (exits.loss[exit], expected.loss);
                assert!(
                    (found - wanted).abs() < 2e-4 * wanted,
                    "{}, exit {exit}: {found}, not {wanted}",
                    dir.display()
                );
            }
            seen += 1;
        }
    }
    assert!(seen >= 15, "only {seen} checkpoints");
}

#[test]
fn packed_documents_are_as_if_alone() {
    let settings = Settings { batch: 1, attention: "chunk:9".parse().expect("a mask"), ..tiny() };
    let weights = [0.2, 0.3, 0.5];
    let dropped = [false; 3];
    let mut trainer = lively(&settings);
    let mut packed = batch(&settings);
    let ends = [23, 24, 70];
    packed.begins[23] = true;
    packed.begins[24] = true;
    let together = trainer.gradient(&packed, &dropped, &weights);
    trainer.reduce();
    let gradient = trainer.lanes[0].gradient.clone();

    let mut sums = vec![0.0f64; gradient.len()];
    let mut losses = [0.0; 3];
    let mut start = 0;
    for end in ends {
        let mut alone = Batch::new(1, end - start);
        alone.inputs.copy_from_slice(&packed.inputs[start..end]);
        alone.targets.copy_from_slice(&packed.targets[start..end]);
        let exits = trainer.gradient(&alone, &dropped, &weights);
        trainer.reduce();
        let share = (end - start) as f64 / settings.sequence as f64;
        for (sum, &g) in sums.iter_mut().zip(&trainer.lanes[0].gradient) {
            *sum += share * f64::from(g);
        }
        losses.iter_mut().zip(exits).for_each(|(sum, exit)| *sum += exit.sum);
        start = end;
    }
    for (exit, loss) in together.iter().zip(losses) {
        assert!((exit.sum - loss).abs() < 1e-4 * loss, "{} together, {loss} alone", exit.sum);
    }
    let norm = sums.iter().map(|g| g * g).sum::<f64>().sqrt();
    let apart = sums.iter().zip(&gradient).map(|(a, &b)| (a - f64::from(b)).powi(2)).sum::<f64>().sqrt();
    assert!(norm > 0.1 && apart < 1e-5 * norm, "gradients of norm {norm} are {apart} apart");

    // And joined they are another thing.
    packed.begins[23..25].fill(false);
    let joined = trainer.gradient(&packed, &dropped, &weights);
    assert!((joined[2].sum - together[2].sum).abs() > 1e-3 * together[2].sum);
}

#[test]
fn micro_batches_add_up_to_one_batch() {
    let weights = |batch_size: usize, accumulate: usize| {
        let settings =
            Settings { batch: batch_size, accumulate, dropout: 0.4, sequence: 10, context: 10, ..tiny() };
        let all = batch(&Settings { batch: settings.sequences(), ..settings.clone() });
        let mut trainer = Trainer::new(settings).expect("valid settings");
        for _ in 0..3 {
            trainer.step(&all).expect("a step");
        }
        trainer.weights
    };
    assert!(weights(24, 1) == weights(8, 3), "eight or more sequences a micro-batch: bit for bit");
    let (one, four) = (weights(8, 1), weights(2, 4));
    let apart = one.iter().zip(&four).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-3, "{apart} apart");
}

#[test]
fn masked_sequences_hold_whole_documents_that_begin_anew() {
    let documents: Vec<String> =
        (0..30).map(|i| format!("Tale {i}: the cat sat on mat {}.\nThe end.", i * i)).collect();
    let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
    let settings = Settings { vocab: 280, sequence: 90, context: 90, ..tiny() };
    let source = Source::scratch(&documents, &settings).expect("a tokenizer");
    let (begin, end) = (source.marks.begin, source.marks.end);
    assert_eq!((begin, end), (278, 279));
    let corpus = |mode| Corpus::new(&documents, &source.tokenizer, source.marks, 90, mode).expect("a corpus");
    let corpora = (corpus(Documents::Masked), corpus(Documents::Joined));
    let mut batches = (Batch::new(64, 90), Batch::new(64, 90));
    for (corpus, batch) in [(&corpora.0, &mut batches.0), (&corpora.1, &mut batches.1)] {
        let mut rng = rng(4, Stream::Data);
        batch.sequences_mut().for_each(|sequence| corpus.draw(&mut rng, sequence));
    }
    let (masked, joined) = batches;
    assert!(!masked.inputs.contains(&end), "nothing follows a document's end");
    assert!(joined.inputs.contains(&end) && joined.begins.iter().filter(|&&begins| begins).count() == 64);
    for row in 0..masked.inputs.len() {
        let first = masked.begins[row];
        assert_eq!(first, masked.inputs[row] == begin, "row {row}");
        if !first {
            assert_eq!(masked.inputs[row], masked.targets[row - 1]);
        } else if row % 90 > 0 {
            // The document before is over, or its part of the text is.
            let target = masked.targets[row - 1];
            assert!(target == end || corpora.0.tokens().last() == Some(&end), "row {row}");
        }
    }
    // Up to the first document's end both draw the same.
    for sequence in 0..64 {
        let span = sequence * 90..(sequence + 1) * 90;
        let until = masked.targets[span.clone()].iter().position(|&target| target == end).unwrap_or(89) + 1;
        if joined.targets[span.start] != begin {
            assert_eq!(masked.targets[span.clone()][..until], joined.targets[span][..until]);
        }
    }
}

#[test]
fn a_spike_is_skipped_and_leaves_weights_and_moments() {
    let settings = optimizer::Settings::default();
    let names =
        [("model.layers.0.mlp.up_proj.weight".to_owned(), true), ("model.norm.weight".to_owned(), false)];
    let watch = |mitigation| monitor::Watch::new(&names, 1, true, settings.epsilon, Some(mitigation));
    let mut rng = rng(3, Stream::Data);
    let mut noise = |scale: f32| -> Vec<f32> {
        (0..4000).map(|_| scale * (parameters::uniform(&mut rng) as f32 - 0.5)).collect()
    };
    let mut gradients: Vec<Vec<f32>> = (0..140).map(|_| noise(1.0)).collect();
    gradients.extend((0..12).map(|_| noise(300.0)));
    let measures = |mitigation| {
        let mut watch = watch(mitigation);
        let mut adam = AdamW::new(settings, 4000).expect("moments");
        let (mut weights, mut events) = (vec![0.1f32; 4000], Vec::new());
        let mut skipped = Vec::new();
        for (step, gradient) in gradients.iter().enumerate() {
            let statistics = adam.measure(&weights, gradient, 1e-3, 1.0).expect("a measure");
            let both: [Statistics; 2] = [statistics.clone(), statistics];
            let t = adam.steps() + 1;
            let verdict = watch.observe(step + 1, t, &settings, &both, &mut events);
            if verdict.skip {
                skipped.push(step);
            } else {
                adam.step(&mut weights, gradient, watch.rate() * 1e-3, 1.0).expect("a step");
            }
        }
        (skipped, events, watch)
    };
    let (skipped, events, _) = measures(Mitigation::Skip);
    // The windows take in the burst as they go, so that it is a spike no more after a few steps.
    assert_eq!(skipped.first(), Some(&140), "{skipped:?}");
    assert!(skipped.len() < 12 && skipped.windows(2).all(|pair| pair[1] == pair[0] + 1), "{skipped:?}");
    assert!(events.iter().any(|event| event.what == "spike" && event.step == 141 && event.first));
    let (skipped, events, watch) = measures(Mitigation::LowerRate);
    assert!(skipped.is_empty() && watch.rate() <= 0.5);
    assert!(events.iter().any(|event| event.what == "lower_rate" && event.step == 141), "{events:?}");
}

#[test]
fn a_batch_out_of_the_ordinary_is_left_out() {
    let settings = Settings {
        steps: 200,
        sequence: 24,
        context: 24,
        learning_rate: 3e-3,
        clip: f32::INFINITY,
        on_alarm: Some(Mitigation::Skip),
        ..tiny()
    };
    let mut trainer = Trainer::new(settings.clone()).expect("valid settings");
    let mut plain = Trainer::new(Settings { on_alarm: None, ..settings.clone() }).expect("valid settings");
    let ordinary = batch(&settings);
    for step in 0..150 {
        let report = trainer.step(&ordinary).expect("a step");
        if !report.skipped {
            let other = plain.step(&ordinary).expect("a step");
            assert!(
                report.tensors == other.tensors,
                "step {step}: the measure before a step is that of the step"
            );
        }
    }
    assert!(trainer.weights == plain.weights);
    // What has been learned by heart, with other ends.
    let mut odd = ordinary.clone();
    odd.targets.iter_mut().for_each(|target| *target = 250 - *target);
    let (step, steps) = (trainer.step, trainer.tensors[0].adam.steps());
    let report = trainer.step(&odd).expect("a step");
    assert!(report.skipped, "{:?}", report.events);
    assert!(report.events.iter().any(|event| event.what == "skip" && event.step == step + 1));
    assert!(trainer.weights == plain.weights && trainer.tensors[0].adam.steps() == steps);
    assert_eq!(trainer.step, step + 1, "the schedule goes on");
}
