//! Sampling against naive implementations, and speculative acceptance against the distribution it must keep.

use proptest::prelude::*;
use warploom::Error;
use warploom::decode::sampling::{Sampler, Sampling, argmax, confidence};

/// The distribution by sorting everything, in f64; `None` where rounding decides what top-p or min-p keeps.
fn naive(sampling: &Sampling, logits: &[f32], seen: &[u32]) -> Option<Vec<f64>> {
    let penalty = sampling.repetition_penalty;
    let scores: Vec<f64> = logits
        .iter()
        .enumerate()
        .map(|(id, &logit)| match (seen.contains(&(id as u32)), logit < 0.0) {
            (true, true) => logit * penalty,
            (true, false) => logit / penalty,
            (false, _) => logit,
        })
        .map(f64::from)
        .collect();
    let max = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    let mut p: Vec<f64> =
        scores.iter().map(|score| ((score - max) / f64::from(sampling.temperature)).exp()).collect();
    let mut ranked: Vec<usize> = (0..p.len()).collect();
    ranked.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    if sampling.top_k > 0 && sampling.top_k < p.len() {
        let last = scores[ranked[sampling.top_k - 1]];
        (0..p.len()).filter(|&id| scores[id] < last).for_each(|id| p[id] = 0.0);
    }
    normalise(&mut p);
    if sampling.top_p < 1.0 {
        let top_p = f64::from(sampling.top_p);
        let mut mass = 0.0;
        for (rank, &id) in ranked.iter().enumerate() {
            if (mass - top_p).abs() < 1e-5 {
                return None;
            }
            let before = mass;
            mass += p[id];
            if rank > 0 && before >= top_p {
                p[id] = 0.0;
            }
        }
        normalise(&mut p);
    }
    let top = p.iter().fold(0.0, |a: f64, &b| a.max(b));
    let least = f64::from(sampling.min_p) * top;
    if p.iter().any(|&p| p != top && (p - least).abs() < 1e-5) && least > 0.0 {
        return None;
    }
    p.iter_mut().filter(|p| **p < least).for_each(|p| *p = 0.0);
    normalise(&mut p);
    Some(p)
}

fn normalise(p: &mut [f64]) {
    let total: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= total);
}

/// Logits with many ties: multiples of a quarter.
fn logits(max: usize) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec((-24..24i32).prop_map(|x| x as f32 / 4.0), 1..max)
}

fn sampling() -> impl Strategy<Value = Sampling> {
    let temperature = (1..30u32).prop_map(|t| t as f32 / 10.0);
    let top_k = prop_oneof![Just(0), 1..12usize, Just(10_000)];
    let top_p = prop_oneof![Just(1.0f32), Just(0.0f32), 0.01..1.0f32];
    let min_p = prop_oneof![Just(0.0f32), Just(1.0f32), 0.001..0.9f32];
    let repetition_penalty = prop_oneof![Just(1.0f32), 0.5..2.0f32];
    (temperature, top_k, top_p, min_p, repetition_penalty).prop_map(
        |(temperature, top_k, top_p, min_p, repetition_penalty)| Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            seed: 7,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_distribution_equals_the_naive_one(
        sampling in sampling(),
        logits in logits(700),
        seen in prop::collection::vec(0..700u32, 0..8),
    ) {
        let Some(expected) = naive(&sampling, &logits, &seen) else { return Ok(()) };
        let mut sampler = Sampler::new(sampling, logits.len()).unwrap();
        for &id in &seen {
            sampler.see(id);
            // Drafts that were withdrawn leave no trace.
            sampler.see(id / 2);
            sampler.unsee(id / 2);
        }
        let mut p = vec![f32::NAN; logits.len()];
        let (top, probability) = sampler.distribution(&logits, &mut p).unwrap();
        for (id, (&p, &expected)) in p.iter().zip(&expected).enumerate() {
            prop_assert!((f64::from(p) - expected).abs() < 1e-5, "token {id}: {p} instead of {expected}");
            // What is filtered out is exactly 0, and nothing else but underflow is.
            prop_assert!(if expected == 0.0 { p == 0.0 } else { p > 0.0 || expected < 1e-30 }, "token {id}: {p} instead of {expected}");
        }
        prop_assert_eq!(p[top as usize], probability);
        prop_assert!(p.iter().all(|&p| p <= probability));
    }

    #[test]
    fn argmax_and_confidence_equal_the_naive_ones(logits in logits(3000), index in any::<prop::sample::Index>()) {
        let index = index.index(logits.len());
        let (mut id, mut max) = (0, logits[0]);
        for (i, &logit) in logits.iter().enumerate() {
            if logit > max {
                (id, max) = (i, logit);
            }
        }
        prop_assert_eq!(argmax(&logits), Some((id as u32, max)));

        let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let expected = f64::from(logits[index]).exp() / total;
        prop_assert!((f64::from(confidence(&logits, index as u32)) - expected).abs() < 1e-6);

        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut logits = logits.clone();
            logits[index] = value;
            prop_assert_eq!(argmax(&logits), None);
        }
    }
}

/// Σ (observed − expected)² / expected. A token that cannot be drawn must not have been.
fn chi_squared(counts: &[usize], p: &[f32]) -> f64 {
    let draws: usize = counts.iter().sum();
    counts
        .iter()
        .zip(p)
        .map(|(&count, &p)| {
            let expected = f64::from(p) * draws as f64;
            if p == 0.0 {
                if count == 0 { 0.0 } else { f64::INFINITY }
            } else {
                (count as f64 - expected).powi(2) / expected
            }
        })
        .sum()
}

/// Above this with 7 degrees of freedom or fewer: a chance of about 1 in 10¹⁰.
const UNLIKELY: f64 = 60.0;
const SEEDS: u64 = 20_000;

/// The distribution of one speculative step, counted over seeds: draft from q, accept or replace with `replace`.
fn speculate(p: &[f32], q: &[f32], replace: impl Fn(&mut Sampler, &[f32], &[f32]) -> u32) -> Vec<usize> {
    let mut counts = vec![0; p.len()];
    for seed in 0..SEEDS {
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, p.len()).unwrap();
        let draft = sampler.draw(q);
        let kept = if sampler.accept(draft, p, q) { draft } else { replace(&mut sampler, p, q) };
        counts[kept as usize] += 1;
    }
    counts
}

/// Distributions over `tokens` tokens, some of them impossible and none very rare.
fn distribution(tokens: usize) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(0..10u32, tokens).prop_filter_map("no mass", |weights| {
        let total: u32 = weights.iter().sum();
        (total > 0).then(|| weights.iter().map(|&weight| weight as f32 / total as f32).collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn accepted_and_replaced_drafts_are_distributed_as_p(
        (p, q) in (2..=8usize).prop_flat_map(|tokens| (distribution(tokens), distribution(tokens))),
    ) {
        let statistic = chi_squared(&speculate(&p, &q, Sampler::draw_residual), &p);
        prop_assert!(statistic < UNLIKELY, "chi-squared {statistic}");
    }
}

#[test]
fn without_the_residual_the_distribution_is_another() {
    let (p, q) = ([0.5, 0.3, 0.2], [0.2, 0.2, 0.6]);
    assert!(chi_squared(&speculate(&p, &q, Sampler::draw_residual), &p) < UNLIKELY);
    let statistic = chi_squared(&speculate(&p, &q, |sampler, p, _| sampler.draw(p)), &p);
    assert!(statistic > 10.0 * UNLIKELY, "chi-squared {statistic}");
}

#[test]
fn the_residual_of_equal_distributions_falls_back_to_p() {
    let p = [0.25, 0.0, 0.75];
    let mut counts = [0; 3];
    let mut sampler = Sampler::new(Sampling::default(), 3).unwrap();
    for _ in 0..SEEDS {
        counts[sampler.draw_residual(&p, &p) as usize] += 1;
    }
    assert!(chi_squared(&counts, &p) < UNLIKELY, "{counts:?}");
}

/// Ids with probability, for `logits` under `sampling` at temperature 1.
fn kept(sampling: Sampling, logits: &[f32]) -> Vec<u32> {
    let mut sampler = Sampler::new(Sampling { temperature: 1.0, ..sampling }, logits.len()).unwrap();
    let mut p = vec![0.0; logits.len()];
    sampler.distribution(logits, &mut p).unwrap();
    (0..logits.len() as u32).filter(|&id| p[id as usize] > 0.0).collect()
}

#[test]
fn filters_at_their_edges() {
    let off = Sampling::default();
    let logits = [1.0, 3.0, 2.0, 3.0, 2.0];
    for top_k in [0, 5, 6, usize::MAX] {
        assert_eq!(kept(Sampling { top_k, ..off }, &logits), [0, 1, 2, 3, 4]);
    }
    assert_eq!(kept(Sampling { top_k: 1, ..off }, &logits), [1, 3], "ties with the last token kept are kept");
    assert_eq!(kept(Sampling { top_k: 3, ..off }, &logits), [1, 2, 3, 4]);

    assert_eq!(kept(Sampling { top_p: 1.0, ..off }, &logits), [0, 1, 2, 3, 4]);
    for top_p in [0.0, f32::MIN_POSITIVE, 1e-6] {
        assert_eq!(
            kept(Sampling { top_p, ..off }, &logits),
            [1],
            "one token is left, the lowest id among equals"
        );
    }
    // Four equal tokens: half the mass is two of them, a little more is three.
    assert_eq!(kept(Sampling { top_p: 0.5, ..off }, &[0.0; 4]), [0, 1]);
    assert_eq!(kept(Sampling { top_p: 0.51, ..off }, &[0.0; 4]), [0, 1, 2]);
    // top-p is a share of what top-k left.
    assert_eq!(kept(Sampling { top_k: 2, top_p: 0.6, ..off }, &[0.0, 0.0, -0.1, -0.1]), [0, 1]);

    assert_eq!(kept(Sampling { min_p: 1.0, ..off }, &logits), [1, 3]);
    assert_eq!(kept(Sampling { min_p: 0.36, ..off }, &logits), [1, 2, 3, 4], "e⁻¹ is 0.368");
    assert_eq!(kept(Sampling { min_p: 0.37, ..off }, &logits), [1, 3]);
}

#[test]
fn extreme_logits_and_temperatures_give_a_distribution() {
    let mut p = [0.0; 3];
    for temperature in [f32::from_bits(1), 1e-30, 1.0, f32::MAX] {
        for repetition_penalty in [1.0, f32::from_bits(1), f32::MAX] {
            let sampling = Sampling { temperature, repetition_penalty, ..Sampling::default() };
            let mut sampler = Sampler::new(sampling, 3).unwrap();
            (0..3).for_each(|id| sampler.see(id));
            for logits in [[f32::MAX, f32::MIN, 0.0], [f32::MIN; 3], [f32::MAX; 3], [0.0, -0.0, 1e-40]] {
                sampler.distribution(&logits, &mut p).unwrap();
                let total: f32 = p.iter().sum();
                assert!((total - 1.0).abs() < 1e-5, "{sampling:?} {logits:?}: {p:?}");
            }
            assert_eq!(sampler.distribution(&[0.0, f32::NAN, 0.0], &mut p), None);
        }
    }
}

#[test]
fn greedy_is_argmax_after_the_penalty() {
    let logits = [1.0, 3.0, 2.0, 3.0];
    let mut p = [0.0; 4];
    let mut sampler = Sampler::new(Sampling::default(), 4).unwrap();
    sampler.see(1);
    assert_eq!(sampler.distribution(&logits, &mut p), Some((1, 1.0)));
    assert_eq!(p, [0.0, 1.0, 0.0, 0.0]);

    let mut sampler = Sampler::new(Sampling { repetition_penalty: 2.0, ..Sampling::default() }, 4).unwrap();
    assert_eq!(sampler.argmax(&logits), Some((1, 3.0)));
    sampler.see(1);
    assert_eq!(sampler.argmax(&logits), Some((3, 3.0)));
    sampler.see(3);
    sampler.see(3);
    sampler.unsee(3);
    assert_eq!(sampler.argmax(&logits), Some((2, 2.0)), "seen twice, withdrawn once: still seen");
    sampler.see(2);
    assert_eq!(sampler.distribution(&logits, &mut p), Some((1, 1.0)));
    assert_eq!(sampler.argmax(&[-1.0, -0.6, -2.0, -3.0]), Some((0, -1.0)), "a negative logit is multiplied");
    // An id that the vocabulary lacks is nobody's.
    sampler.see(4);
    sampler.unsee(u32::MAX);
}

#[test]
fn a_seed_gives_the_same_draws_again() {
    let draws = |seed| {
        let mut sampler =
            Sampler::new(Sampling { temperature: 1.0, seed, ..Sampling::default() }, 16).unwrap();
        (0..32).map(|_| sampler.draw(&[0.0625; 16])).collect::<Vec<u32>>()
    };
    assert_eq!(draws(3), draws(3));
    assert_ne!(draws(3), draws(4));
}

#[test]
fn values_out_of_range_are_refused_by_their_option() {
    let good =
        Sampling { temperature: 0.8, top_p: 0.9, min_p: 0.1, repetition_penalty: 1.1, top_k: 40, seed: 1 };
    good.validate().unwrap();
    Sampling::default().validate().unwrap();
    for bad in [f32::NAN, f32::INFINITY, -0.5] {
        for (option, sampling) in [
            ("--temperature", Sampling { temperature: bad, ..good }),
            ("--top-p", Sampling { top_p: bad, ..good }),
            ("--min-p", Sampling { min_p: bad, ..good }),
            ("--repetition-penalty", Sampling { repetition_penalty: bad, ..good }),
        ] {
            match sampling.validate() {
                Err(Error::Argument { argument, .. }) => assert_eq!(argument, option),
                other => panic!("{option} {bad}: {other:?}"),
            }
            assert!(Sampler::new(sampling, 8).is_err());
        }
    }
    assert!(Sampling { repetition_penalty: 0.0, ..good }.validate().is_err());
    assert!(Sampling { top_p: 1.5, ..good }.validate().is_err());
}
