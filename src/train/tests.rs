//! Gradients against finite differences, and what a trainer promises, on small models.

use super::*;

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
    for (i, (inputs, targets)) in batch.sequences_mut().enumerate() {
        for t in 0..inputs.len() {
            inputs[t] = ((t * t + 7 * i) % 23) as u32;
            targets[t] = (((t + 1) * (t + 1) + 7 * i) % 23) as u32;
        }
    }
    batch
}

/// A trainer whose weights are large enough for every operation to be far from linear.
fn lively(settings: &Settings) -> Trainer {
    let mut trainer = Trainer::new(settings.clone()).expect("valid settings");
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
    let batch = batch(settings);
    let mut trainer = lively(settings);
    let tokens = (settings.batch * settings.sequence) as f64;
    trainer.gradient(&batch, dropped, exit_weights);
    let norm = trainer.reduce();
    assert!(norm > 0.1, "a gradient of {norm} tests nothing");
    let gradient = trainer.lanes[0].gradient.clone();
    let weights = trainer.weights.clone();
    let loss_at = |trainer: &mut Trainer, direction: &[(usize, f64)], step: f64| -> f64 {
        trainer.weights.copy_from_slice(&weights);
        for &(i, amount) in direction {
            trainer.weights[i] = (f64::from(weights[i]) + step * amount) as f32;
        }
        let exits = trainer.gradient(&batch, dropped, exit_weights);
        exits.iter().zip(exit_weights).map(|(exit, weight)| exit.sum * weight).sum::<f64>() / tokens
    };
    let mut rng = rng(5, Stream::Data);
    for tensor in trainer.graph.layout.tensors(settings) {
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
            // Fourth-order central difference; steps large enough for f32.
            let h = 0.004;
            let mut at = |steps: f64| loss_at(&mut trainer, &direction, steps * h);
            let numeric = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * h);
            let tolerance = 2e-3 * analytic.abs() + 2e-4;
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

#[test]
fn gradient_is_exact_under_every_mask() {
    for mask in ["window:5", "chunk:16", "overlap:16", "window:5+sinks:2", "chunk:70"] {
        let settings = Settings { attention: mask.parse().expect("a mask"), ..tiny() };
        check_gradient(&settings, &[false; 6], &[0.2, 0.3, 0.5]);
    }
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
