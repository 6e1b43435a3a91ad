//! AdamW and its monitor on the CPU: the formula in f64, the reference values, the same bits for any number of threads.

use std::time::{SystemTime, UNIX_EPOCH};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use warploom::{
    Error, Result,
    optimizer::{AdamW, Alarms, BINS, CHUNK, Monitor, Settings, Statistics, Thresholds, WINDOW},
};

/// Random numbers of one test. WARPLOOM_SEED repeats a run.
struct Random(ChaCha8Rng);

impl Random {
    fn new() -> Self {
        let fresh = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64);
        let seed = std::env::var("WARPLOOM_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(fresh);
        println!("WARPLOOM_SEED={seed} replays this run");
        Random(ChaCha8Rng::seed_from_u64(seed))
    }

    fn uniform(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    /// Standard normal numbers, in pairs.
    fn fill(&mut self, numbers: &mut [f32]) {
        for pair in numbers.chunks_mut(2) {
            let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
            let (sine, cosine) = (std::f32::consts::TAU * self.uniform()).sin_cos();
            pair.iter_mut().zip([sine, cosine]).for_each(|(x, part)| *x = radius * part);
        }
    }

    fn normals(&mut self, count: usize) -> Vec<f32> {
        let mut numbers = vec![0.0; count];
        self.fill(&mut numbers);
        numbers
    }
}

/// What a step should do and measure, in f64 from the moments before it.
fn reference(
    adam: &AdamW,
    weights: &[f32],
    gradients: &[f32],
    rate: f32,
    scale: f32,
) -> (Vec<f64>, Statistics) {
    let settings = adam.settings();
    let [beta1, beta2, epsilon, decay] =
        [settings.beta1, settings.beta2, settings.epsilon, settings.weight_decay].map(f64::from);
    let (rate, scale, t) = (f64::from(rate), f64::from(scale), adam.steps() as i32 + 1);
    let (m, v) = adam.moments();
    let mut s = Statistics {
        count: weights.len() as u64,
        non_finite: 0,
        gradient_squared: 0.0,
        ratio_powers: [0.0; 4],
        max_ratio: 0.0,
        large_ratios: 0,
        small_roots: 0,
        gradient_ratio: 0.0,
        gradient_momentum: 0.0,
        momentum_squared: 0.0,
        relative_gradient_squared: 0.0,
        weight_squared: 0.0,
        update_squared: 0.0,
        histogram: [0; BINS],
    };
    let mut new = Vec::new();
    for i in 0..weights.len() {
        let [theta, g, m, v] = [weights[i], gradients[i], m[i], v[i]].map(f64::from);
        let g = g * scale;
        if !g.is_finite() {
            s.non_finite += 1;
            new.push(theta);
            continue;
        }
        let m_hat = (beta1 * m + (1.0 - beta1) * g) / (1.0 - beta1.powi(t));
        let v_hat = (beta2 * v + (1.0 - beta2) * g * g) / (1.0 - beta2.powi(t));
        let r = m_hat / (v_hat.sqrt() + epsilon);
        s.gradient_squared += g * g;
        s.ratio_powers.iter_mut().enumerate().for_each(|(k, sum)| *sum += r.powi(k as i32 + 1));
        s.max_ratio = s.max_ratio.max(r.abs() as f32);
        s.large_ratios += u64::from(r.abs() > 0.9);
        s.small_roots += u64::from(v_hat.sqrt() < epsilon);
        s.gradient_ratio += g * r;
        s.gradient_momentum += g * m;
        s.momentum_squared += m * m;
        s.relative_gradient_squared += g * g / v_hat.max(epsilon * epsilon);
        s.weight_squared += theta * theta;
        s.update_squared += (rate * r) * (rate * r);
        let bin = (r / (2.5 * settings.ratio_bound()) + 0.5) * BINS as f64;
        s.histogram[bin.clamp(0.0, BINS as f64 - 1.0) as usize] += 1;
        new.push(theta - rate * (r + decay * theta));
    }
    (new, s)
}

/// Sums are near those of the reference; a few elements may lie on the other side of a bound.
fn assert_near(got: &Statistics, want: &Statistics) {
    assert_eq!((got.count, got.non_finite), (want.count, want.non_finite));
    let count = want.count as f64;
    let near = |what: &str, got: f64, want: f64, size: f64| {
        assert!((got - want).abs() <= 1e-4 * size.abs() + 1e-30, "{what}: {got}, not {want} (of {size})");
    };
    let [r_1, r_2, r_3, r_4] = want.ratio_powers;
    let product = |a: f64, b: f64| (a * b).sqrt();
    near("g²", got.gradient_squared, want.gradient_squared, want.gradient_squared);
    near("r", got.ratio_powers[0], r_1, product(r_2, count));
    near("r²", got.ratio_powers[1], r_2, r_2);
    near("r³", got.ratio_powers[2], r_3, product(r_2, r_4));
    near("r⁴", got.ratio_powers[3], r_4, r_4);
    near("max", got.max_ratio.into(), want.max_ratio.into(), want.max_ratio.into());
    near("g·r", got.gradient_ratio, want.gradient_ratio, product(want.gradient_squared, r_2));
    let product = product(want.gradient_squared, want.momentum_squared);
    near("g·m", got.gradient_momentum, want.gradient_momentum, product);
    near("m²", got.momentum_squared, want.momentum_squared, want.momentum_squared);
    let relative = want.relative_gradient_squared;
    near("g²/v", got.relative_gradient_squared, relative, relative);
    near("θ²", got.weight_squared, want.weight_squared, want.weight_squared);
    near("(lr·r)²", got.update_squared, want.update_squared, want.update_squared);
    let few = 2 + want.count / 10_000;
    assert!(got.large_ratios.abs_diff(want.large_ratios) <= few);
    assert!(got.small_roots.abs_diff(want.small_roots) <= few);
    assert_eq!(got.histogram.iter().sum::<u64>(), want.count - want.non_finite);
    for (i, (got, want)) in got.histogram.iter().zip(&want.histogram).enumerate() {
        assert!(got.abs_diff(*want) <= few, "bin {i} has {got}, not {want}");
    }
}

#[test]
fn steps_follow_the_formula() -> Result<()> {
    let mut random = Random::new();
    let many = [
        Settings::default(),
        Settings { beta2: 0.999, weight_decay: 0.0, ..Settings::default() },
        Settings { beta1: 0.0, beta2: 0.5, epsilon: 1e-3, weight_decay: 0.3 },
        Settings { beta1: 0.95, beta2: 0.98, epsilon: 0.3, weight_decay: 1e-3 },
    ];
    for len in
        [0, 1, 2, 3, 31, 127, 128, 129, 1023, 1025, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 769, 20 * CHUNK]
    {
        for settings in many {
            let mut weights = random.normals(len);
            let mut adam = AdamW::new(settings, len)?;
            for step in 0..4 {
                let mut gradients = random.normals(len);
                gradients.iter_mut().for_each(|g| *g *= [1.0, 0.2, 50.0][step % 3]);
                let (rate, scale) = (0.01 / (1.0 + step as f32), [1.0, 0.37][step % 2]);
                let (want, measured) = reference(&adam, &weights, &gradients, rate, scale);
                assert_near(&adam.step(&mut weights, &gradients, rate, scale)?, &measured);
                for (i, (got, want)) in weights.iter().zip(&want).enumerate() {
                    let error = (f64::from(*got) - want).abs();
                    assert!(error < 2e-7 * want.abs() + 1e-6, "{len}, step {step}, {i}: {got}, not {want}");
                }
            }
        }
    }
    Ok(())
}

/// To the last bit, weights are those of the formula's operations one by one, the corrections by repeated squaring.
#[test]
fn weights_have_the_bits_of_the_plain_loop() -> Result<()> {
    let mut random = Random::new();
    let (len, settings) = (CHUNK + 1000, Settings::default());
    let Settings { beta1, beta2, epsilon, weight_decay } = settings;
    let mut weights = random.normals(len);
    let (mut plain, mut m, mut v) = (weights.clone(), vec![0.0f32; len], vec![0.0f32; len]);
    let mut adam = AdamW::new(settings, len)?;
    for step in 1..=40 {
        let gradients = random.normals(len);
        let corrections = [beta1, beta2].map(|beta| 1.0 / (1.0 - beta.powi(step)));
        for i in 0..len {
            let g = gradients[i] * 0.7;
            m[i] = beta1 * m[i] + (1.0 - beta1) * g;
            v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
            let r = m[i] * corrections[0] / ((v[i] * corrections[1]).sqrt() + epsilon);
            plain[i] -= 0.01 * (r + weight_decay * plain[i]);
        }
        adam.step(&mut weights, &gradients, 0.01, 0.7)?;
        assert!(weights == plain, "step {step}");
    }
    Ok(())
}

/// What cannot be finite is counted and left alone, and so is all else about it.
#[test]
fn what_is_not_finite_is_left_as_it_is() -> Result<()> {
    let mut random = Random::new();
    let len = CHUNK + 300;
    let mut weights = random.normals(len);
    let mut adam = AdamW::new(Settings::default(), len)?;
    adam.step(&mut weights, &random.normals(len), 0.01, 1.0)?;
    let mut gradients = random.normals(len);
    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 2e19, -3e38];
    let places = [0, 1, 127, 128, 1024, CHUNK - 1, CHUNK, len - 1];
    for (i, &place) in places.iter().enumerate() {
        gradients[place] = bad[i % bad.len()];
    }
    let (before, (m, v)) = (weights.clone(), adam.moments());
    let (m, v) = (m.to_vec(), v.to_vec());
    let statistics = adam.step(&mut weights, &gradients, 0.01, 1.0)?;
    assert_eq!(statistics.non_finite, places.len() as u64);
    assert!(statistics.gradient_squared.is_finite() && statistics.rms_relative_gradient() < 2.0);
    for i in 0..len {
        let same = weights[i] == before[i] && adam.moments().0[i] == m[i] && adam.moments().1[i] == v[i];
        assert_eq!(same, places.contains(&i), "{i}");
    }
    // The others' measures are those of a tensor without these elements' numbers.
    let kept = |x: &[f32]| (0..len).map(|i| if places.contains(&i) { 0.0 } else { x[i] }).collect::<Vec<_>>();
    let mut others = AdamW::with_moments(Settings::default(), kept(&m), kept(&v), 1)?;
    let clean = others.step(&mut kept(&before), &kept(&gradients), 0.01, 1.0)?;
    assert_eq!(clean.ratio_powers, statistics.ratio_powers);
    assert_eq!(clean.weight_squared, statistics.weight_squared);
    assert_eq!(clean.relative_gradient_squared, statistics.relative_gradient_squared);
    assert_eq!(clean.small_roots, places.len() as u64);

    // Weights and moments that came with NaN, and rates that are not finite.
    weights[7] = f32::NAN;
    assert_eq!(adam.step(&mut weights, &kept(&gradients), 0.01, 1.0)?.non_finite, 1);
    let before = kept(&weights);
    for (rate, scale) in [(f32::NAN, 1.0), (f32::INFINITY, 1.0), (0.1, f32::NAN)] {
        assert_eq!(adam.step(&mut weights, &gradients, rate, scale)?.non_finite, len as u64);
    }
    assert_eq!(before[8..], kept(&weights)[8..]);
    Ok(())
}

/// Of any length, all bits are the same for any number of threads.
#[test]
fn threads_change_no_bit() -> Result<()> {
    let mut random = Random::new();
    for len in [1, 769, 5125, 2 * CHUNK, 37 * CHUNK + 4321] {
        let (weights, gradients) = (random.normals(len), random.normals(len));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| {
                let (mut weights, mut adam) = (weights.clone(), AdamW::new(Settings::default(), len)?);
                let measured: Result<Vec<_>> =
                    (0..3).map(|_| adam.step(&mut weights, &gradients, 0.01, 0.5)).collect();
                Ok::<_, Error>((weights, measured?, adam.moments().0.to_vec(), adam.moments().1.to_vec()))
            })
        };
        let one = run(1)?;
        assert!(one == run(2)? && one == run(5)?, "{len} elements");
    }
    Ok(())
}

/// Gradients of many coordinates, step by step.
struct Gradients {
    random: Random,
    /// Correlation in time.
    rho: f32,
    scale: f32,
    state: Vec<f32>,
    noise: Vec<f32>,
}

const COORDINATES: usize = 200_000;

impl Gradients {
    fn new(rho: f32, scale: f32, coordinates: usize) -> Self {
        let mut random = Random::new();
        let state = random.normals(coordinates);
        Gradients { random, rho, scale, state, noise: vec![0.0; coordinates] }
    }

    fn next(&mut self) -> Vec<f32> {
        self.random.fill(&mut self.noise);
        let fresh = (1.0 - self.rho * self.rho).sqrt();
        self.state.iter_mut().zip(&self.noise).for_each(|(x, noise)| *x = self.rho * *x + fresh * noise);
        self.state.iter().map(|x| x * self.scale).collect()
    }
}

/// A run of `steps` steps: the last one's statistics and alarms, and whether there was one before it.
fn run(
    adam: &mut AdamW,
    monitor: &mut Monitor,
    gradients: &mut Gradients,
    steps: usize,
) -> Result<(Statistics, Alarms, bool)> {
    let (mut weights, mut before) = (vec![0.0; gradients.state.len()], false);
    let mut last = None;
    for _ in 0..steps {
        before |= last.as_ref().is_some_and(|(_, alarms): &(Statistics, Alarms)| alarms.any());
        let statistics = adam.step(&mut weights, &gradients.next(), 1e-3, 1.0)?;
        let alarms = monitor.observe(adam.settings(), adam.steps(), &statistics);
        last = Some((statistics, alarms));
    }
    let (statistics, alarms) = last.expect("a step");
    Ok((statistics, alarms, before))
}

fn assert_row(what: &str, got: [f64; 5], want: [Option<f64>; 5], tolerances: [f64; 5]) {
    println!("{what}: {got:.4?}");
    for ((got, want), tolerance) in got.iter().zip(want).zip(tolerances) {
        if let Some(want) = want {
            assert!((got - want).abs() <= tolerance, "{what}: {got}, not {want} (± {tolerance})");
        }
    }
}

/// RMS of r, share of |r| over 0.9, bimodality, correlation of gradient and momentum, RMS of g/√v.
fn row(s: &Statistics) -> [f64; 5] {
    let correlation = s.gradient_momentum_correlation();
    [s.rms_ratio(), s.share_of_large_ratios(), s.bimodality(), correlation, s.rms_relative_gradient()]
}

/// The reference values of the specification of the monitor, and the alarms that belong to them.
#[test]
fn reference_values_and_alarms() -> Result<()> {
    let new = |coordinates| {
        Ok::<_, Error>((AdamW::new(Settings::default(), coordinates)?, Monitor::new(Thresholds::default())))
    };
    let tolerances = [0.003, 0.003, 0.01, 0.01, 0.01];

    let (mut adam, mut monitor) = new(COORDINATES)?;
    let mut independent = Gradients::new(0.0, 1.0, COORDINATES);
    let (s, alarms, before) = run(&mut adam, &mut monitor, &mut independent, WINDOW + 20)?;
    assert_row(
        "independent",
        row(&s),
        [Some(0.226), Some(0.0), Some(0.370), Some(0.0), Some(0.98)],
        tolerances,
    );
    assert!(!alarms.any() && !before, "{alarms:?} of independent gradients");
    assert!(f64::from(s.max_ratio) <= adam.settings().ratio_bound());

    // ×100 burst, first step.
    independent.scale = 100.0;
    let (s, alarms, _) = run(&mut adam, &mut monitor, &mut independent, 1)?;
    let loose = [0.005, 0.0, 0.01, 0.0, 0.01];
    assert_row("burst", row(&s), [Some(0.44), None, Some(0.96), None, Some(4.35)], loose);
    let wanted = Alarms {
        bimodal: true,
        large_updates: true,
        stale_second_moment: true,
        spike: true,
        ..Alarms::default()
    };
    assert_eq!(alarms, wanted);

    // Of gradients that agree in time, a share near a half of 200,000 coordinates has a standard deviation of 0.0013: too much beside the
    // tolerance, as is 0.001 that the reference, of as many, is off by.
    let many = 9 * COORDINATES;
    for (rho, want) in [(0.9, [0.619, 0.141, 0.576, 0.669, 0.98]), (0.99, [0.841, 0.485, 0.770, 0.950, 0.99])]
    {
        let (mut adam, mut monitor) = new(many)?;
        let (s, alarms, _) = run(&mut adam, &mut monitor, &mut Gradients::new(rho, 1.0, many), 120)?;
        assert_row(&format!("AR(1) {rho}"), row(&s), want.map(Some), tolerances);
        assert_eq!(alarms, Alarms { bimodal: true, large_updates: true, ..Alarms::default() });
    }

    let (mut adam, mut monitor) = new(COORDINATES)?;
    let mut tiny = Gradients::new(0.0, 1e-9, COORDINATES);
    let (s, alarms, _) = run(&mut adam, &mut monitor, &mut tiny, 120)?;
    assert_row("σ = ε/10", row(&s), [Some(0.021), Some(0.0), Some(0.338), Some(0.0), None], tolerances);
    assert_eq!(alarms, Alarms { small_updates: true, ..Alarms::default() });
    assert_eq!(s.share_of_small_roots(), 1.0);
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let refused = |done: Result<()>, wanted: &str| {
        let error = done.expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    };
    let settings = |change: &dyn Fn(&mut Settings)| {
        let mut settings = Settings::default();
        change(&mut settings);
        AdamW::new(settings, 1).map(|_| ())
    };
    refused(settings(&|s| s.beta1 = -0.1), "beta1: -0.1; supported are numbers from 0 to below 1");
    refused(settings(&|s| s.beta2 = 0.8), "beta2: 0.8; supported are numbers over beta1² and below 1");
    refused(settings(&|s| s.epsilon = f32::NAN), "epsilon: NaN; supported are numbers from 1e-18 to 1");
    refused(
        settings(&|s| s.weight_decay = f32::NAN),
        "weight_decay: NaN; supported are finite numbers from 0",
    );
    let default = Settings::default();
    refused(AdamW::new(default, usize::MAX / 8).map(|_| ()), "the optimizer's state needs");
    refused(AdamW::with_moments(default, vec![0.0; 3], vec![0.0; 2], 0).map(|_| ()), "v: 2 elements");
    let (mut adam, mut weights) = (AdamW::new(default, 3)?, [1.0f32; 4]);
    refused(
        adam.step(&mut weights, &[0.0; 3], 0.1, 1.0).map(|_| ()),
        "weights: 4 elements; the moments have 3",
    );
    refused(adam.step(&mut weights[..3], &[0.0; 4], 0.1, 1.0).map(|_| ()), "gradients: 4 elements");
    refused(adam.set_settings(Settings { beta1: 2.0, ..default }), "beta1: 2");
    assert_eq!((weights, adam.steps(), *adam.settings()), ([1.0; 4], 0, default));
    Ok(())
}

#[test]
fn a_measure_is_that_of_the_step_and_changes_nothing() -> Result<()> {
    let mut random = Random::new();
    let len = 2 * CHUNK + 77;
    let mut adam = AdamW::new(Settings::default(), len)?;
    let mut weights = random.normals(len);
    for step in 0..3 {
        let mut gradients = random.normals(len);
        gradients[step] = f32::NAN;
        let (m, v) = adam.moments();
        let before = (weights.clone(), m.to_vec(), v.to_vec(), adam.steps());
        let measured = adam.measure(&weights, &gradients, 1e-3, 0.5)?;
        let (m, v) = adam.moments();
        assert!((weights.clone(), m.to_vec(), v.to_vec(), adam.steps()) == before);
        assert_eq!(measured, adam.step(&mut weights, &gradients, 1e-3, 0.5)?);
    }
    assert!(adam.measure(&weights[1..], &weights, 1e-3, 1.0).is_err());
    Ok(())
}

#[test]
fn a_monitor_goes_on_from_its_state() -> Result<()> {
    let mut random = Random::new();
    let settings = Settings::default();
    let mut adam = AdamW::new(settings, 1000)?;
    let mut weights = vec![0.1; 1000];
    let mut whole = Monitor::new(Thresholds::default());
    let mut broken = whole.clone();
    for step in 0..200 {
        let mut gradients = random.normals(1000);
        if step > 150 {
            gradients.iter_mut().for_each(|g| *g *= 50.0);
        }
        let statistics = adam.step(&mut weights, &gradients, 1e-3, 1.0)?;
        let alarms = whole.observe(&settings, adam.steps(), &statistics);
        broken = Monitor::with_state(Thresholds::default(), &broken.state())?;
        assert_eq!(broken.observe(&settings, adam.steps(), &statistics), alarms);
        assert!(alarms.spike == (step == 151) || step > 151, "step {step}: {alarms:?}");
    }
    for wrong in [&whole.state()[1..], &[f64::NAN; Monitor::STATE], &[0.5; Monitor::STATE]] {
        assert!(matches!(Monitor::with_state(Thresholds::default(), wrong), Err(Error::Argument { .. })));
    }
    Ok(())
}

#[test]
fn merged_measures_are_those_of_one_tensor() -> Result<()> {
    let mut random = Random::new();
    let (settings, parts) = (Settings::default(), [CHUNK, 3 * CHUNK]);
    let gradients = random.normals(4 * CHUNK);
    let step = |gradients: &[f32]| {
        let mut weights = vec![0.5; gradients.len()];
        AdamW::new(settings, gradients.len())?.step(&mut weights, gradients, 1e-3, 1.0)
    };
    let whole = step(&gradients)?;
    let mut merged = step(&gradients[..parts[0]])?;
    merged.merge(&step(&gradients[parts[0]..])?);
    assert_eq!(
        (merged.count, merged.large_ratios, merged.histogram),
        (whole.count, whole.large_ratios, whole.histogram)
    );
    assert_eq!(merged.max_ratio, whole.max_ratio);
    for (a, b) in [
        (merged.rms_gradient(), whole.rms_gradient()),
        (merged.rms_ratio(), whole.rms_ratio()),
        (merged.bimodality(), whole.bimodality()),
        (merged.relative_update(), whole.relative_update()),
        (merged.rms_relative_gradient(), whole.rms_relative_gradient()),
        (merged.gradient_ratio_correlation(), whole.gradient_ratio_correlation()),
    ] {
        assert!((a - b).abs() < 1e-9 * b.abs(), "{a} merged, {b} whole");
    }
    Ok(())
}
