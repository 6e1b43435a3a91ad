//! Choosing tokens from logits, and accepting or replacing drafted ones. Start from [`Sampler`].
//!
//! The steps and their order are those of Hugging Face transformers: repetition penalty, temperature, top-k,
//! top-p, min-p, softmax. To add one, give it a field in [`Sampling`] with its range in
//! [`Sampling::validate`], and a step in [`Sampler::distribution`].
//!
//! Speculative sampling is that of "Fast Inference from Transformers via Speculative Decoding"
//! (arXiv 2211.17192): a draft x drawn from q is kept with probability min(1, p(x)/q(x)), and the first one
//! that is not kept is replaced by a draw from norm(max(p − q, 0)). What comes out is distributed as p.

use std::cmp::Ordering;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::error::{Error, Result};

/// How tokens are chosen. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divisor of the logits; 0 is greedy: the most probable token, always.
    pub temperature: f32,
    /// Keep the `top_k` most probable tokens, and those as probable as the last of them; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest most probable tokens that make up this much probability; 1 keeps all. One is always kept.
    pub top_p: f32,
    /// Keep tokens at least this many times as probable as the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Divide positive and multiply negative logits of tokens seen before (CTRL, arXiv 1909.05858); 1 is off.
    pub repetition_penalty: f32,
    /// Seed of the random numbers: the same seed gives the same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Whether every choice is the most probable token.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks every field's range.
    ///
    /// # Errors
    /// [`Error::Argument`] with the name of the command's option.
    pub fn validate(&self) -> Result<()> {
        let check = |option: &str, value: f32, allowed: bool, range: &str| {
            if allowed {
                return Ok(());
            }
            Err(Error::argument(option, format!("{value} is out of range; {range}")))
        };
        let Sampling { temperature, top_p, min_p, repetition_penalty, .. } = *self;
        // NaN lies in none of the ranges.
        check(
            "--temperature",
            temperature,
            (0.0..=f32::MAX).contains(&temperature),
            "allowed are 0 (greedy) and finite positive numbers",
        )?;
        check("--top-p", top_p, (0.0..=1.0).contains(&top_p), "allowed are 0 to 1 (off)")?;
        check("--min-p", min_p, (0.0..=1.0).contains(&min_p), "allowed are 0 (off) to 1")?;
        check(
            "--repetition-penalty",
            repetition_penalty,
            repetition_penalty > 0.0 && repetition_penalty.is_finite(),
            "allowed are finite positive numbers (1 is off)",
        )
    }
}

/// The largest of `logits` and its id, the lowest id among equals; `None` if one of them is not finite, or if
/// there are none. Shape (vocab).
pub fn argmax(logits: &[f32]) -> Option<(u32, f32)> {
    // Blocks are scanned in independent lanes, which the compiler turns into vector maxima; the id is then
    // looked for in the one block that holds the largest.
    const LANES: usize = 16;
    const BLOCK: usize = 64 * LANES;
    let (mut best, mut start) = (f32::NEG_INFINITY, 0);
    for (index, block) in logits.chunks(BLOCK).enumerate() {
        let mut max = [f32::NEG_INFINITY; LANES];
        // x · 0 is NaN for infinities and NaN, and a sum with NaN stays NaN.
        let mut finite = [0.0f32; LANES];
        let mut rows = block.chunks_exact(LANES);
        for row in &mut rows {
            for lane in 0..LANES {
                max[lane] = if row[lane] > max[lane] { row[lane] } else { max[lane] };
                finite[lane] += row[lane] * 0.0;
            }
        }
        for (lane, &x) in rows.remainder().iter().enumerate() {
            max[lane] = if x > max[lane] { x } else { max[lane] };
            finite[lane] += x * 0.0;
        }
        if finite.iter().any(|x| x.is_nan()) {
            return None;
        }
        let max = max.into_iter().fold(f32::NEG_INFINITY, f32::max);
        if max > best {
            (best, start) = (max, index * BLOCK);
        }
    }
    let offset = logits[start..].iter().position(|&x| x == best)?;
    Some(((start + offset) as u32, best))
}

/// The probability of `id` under softmax(`logits`), e.g. how sure a greedy draft is of its own choice. 0 if a
/// logit is not finite. Shape of `logits` (vocab).
pub fn confidence(logits: &[f32], id: u32) -> f32 {
    let Some((_, max)) = argmax(logits) else { return 0.0 };
    let total: f64 = logits.iter().map(|&x| f64::from((x - max).exp())).sum();
    (f64::from((logits[id as usize] - max).exp()) / total) as f32
}

/// Turns one sequence's logits into distributions and draws from them. Allocates at construction only.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    vocab: usize,
    rng: ChaCha8Rng,
    /// (vocab): how often a token was seen. Empty without a repetition penalty.
    seen: Vec<u32>,
    /// Ids in the order of their rank, as far as needed. Capacity (vocab); 0 without top-k and top-p.
    ranked: Vec<u32>,
}

impl Sampler {
    /// A sampler for logits of `vocab` tokens, with nothing seen.
    ///
    /// # Errors
    /// [`Error::Argument`] as [`Sampling::validate`].
    pub fn new(sampling: Sampling, vocab: usize) -> Result<Self> {
        sampling.validate()?;
        let penalised = sampling.repetition_penalty != 1.0;
        let ranks = !sampling.is_greedy() && (sampling.top_k > 0 || sampling.top_p < 1.0);
        Ok(Sampler {
            sampling,
            vocab,
            rng: ChaCha8Rng::seed_from_u64(sampling.seed),
            seen: vec![0; if penalised { vocab } else { 0 }],
            ranked: Vec::with_capacity(if ranks { vocab } else { 0 }),
        })
    }

    /// The settings.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Counts `id` as seen: a token of the prompt, a generated one, or a draft.
    pub fn see(&mut self, id: u32) {
        if let Some(count) = self.seen.get_mut(id as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// Takes one [`see`](Sampler::see) of `id` back: a draft that was not accepted.
    pub fn unsee(&mut self, id: u32) {
        if let Some(count) = self.seen.get_mut(id as usize) {
            *count = count.saturating_sub(1);
        }
    }

    /// The greedy choice: [`argmax`] after the repetition penalty. `None` if a logit is not finite. Shape of
    /// `logits` (vocab).
    pub fn argmax(&self, logits: &[f32]) -> Option<(u32, f32)> {
        let plain = argmax(logits)?;
        if self.seen.is_empty() {
            return Some(plain);
        }
        let mut best = (0, f32::NEG_INFINITY);
        for (id, &logit) in logits.iter().enumerate() {
            let score = self.penalise(id, logit);
            if score > best.1 {
                best = (id as u32, score);
            }
        }
        Some(best)
    }

    fn penalise(&self, id: usize, logit: f32) -> f32 {
        if self.seen.get(id).is_none_or(|&count| count == 0) {
            return logit;
        }
        let penalty = self.sampling.repetition_penalty;
        // An extreme penalty must not turn a finite logit into an infinity.
        (if logit < 0.0 { logit * penalty } else { logit / penalty }).clamp(f32::MIN, f32::MAX)
    }

    /// Writes the distribution that the next token is drawn from to `out`, and returns the most probable token
    /// and its probability; `None` if a logit is not finite. Greedy settings put everything on
    /// [`Sampler::argmax`]. Shapes of `logits` and `out` (vocab).
    ///
    /// # Panics
    /// If a length is not the vocabulary's.
    pub fn distribution(&mut self, logits: &[f32], out: &mut [f32]) -> Option<(u32, f32)> {
        assert_eq!((logits.len(), out.len()), (self.vocab, self.vocab), "one logit per token");
        let (top, max) = self.argmax(logits)?;
        if self.sampling.is_greedy() {
            out.fill(0.0);
            out[top as usize] = 1.0;
            return Some((top, 1.0));
        }
        for (id, (score, &logit)) in out.iter_mut().zip(logits).enumerate() {
            *score = self.penalise(id, logit);
        }
        // Weights are relative to the largest, which is 1. Dividing by the temperature does not change ranks,
        // so top-k comes first and spares the exponentials of what it removes.
        let least = self.top_k_score(out);
        let Sampling { temperature, min_p, .. } = self.sampling;
        for weight in out.iter_mut() {
            *weight = if *weight < least { 0.0 } else { ((*weight - max) / temperature).exp() };
        }
        self.keep_top_p(out);
        let mut total = 0.0f64;
        for weight in out.iter_mut() {
            if *weight < min_p {
                *weight = 0.0;
            }
            total += f64::from(*weight);
        }
        for weight in out.iter_mut() {
            *weight = (f64::from(*weight) / total) as f32;
        }
        argmax(out)
    }

    /// The lowest score that top-k keeps.
    fn top_k_score(&mut self, scores: &[f32]) -> f32 {
        let k = self.sampling.top_k;
        if k == 0 || k >= self.vocab {
            return f32::NEG_INFINITY;
        }
        self.ranked.clear();
        self.ranked.extend(0..self.vocab as u32);
        let (_, &mut last, _) = self.ranked.select_nth_unstable_by(k - 1, by_rank(scores));
        scores[last as usize]
    }

    /// Zeroes the weights that top-p removes: those that come, in rank, after a mass of `top_p` is reached.
    fn keep_top_p(&mut self, weights: &mut [f32]) {
        if self.sampling.top_p >= 1.0 {
            return;
        }
        let ranked = &mut self.ranked;
        ranked.clear();
        ranked.extend((0..weights.len() as u32).filter(|&id| weights[id as usize] > 0.0));
        let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
        let enough = f64::from(self.sampling.top_p) * total;
        let (mut mass, mut sorted) = (0.0, 0);
        // A few tokens usually hold the mass: rank piece by piece rather than sort the vocabulary.
        while sorted < ranked.len() {
            let end = (8 * sorted).max(64).min(ranked.len());
            if end < ranked.len() {
                ranked[sorted..].select_nth_unstable_by(end - sorted, by_rank(weights));
            }
            ranked[sorted..end].sort_unstable_by(by_rank(weights));
            for rank in sorted..end {
                if rank > 0 && mass >= enough {
                    ranked[rank..].iter().for_each(|&id| weights[id as usize] = 0.0);
                    return;
                }
                mass += f64::from(weights[ranked[rank] as usize]);
            }
            sorted = end;
        }
    }

    /// Draws a token from `p`, of shape (vocab), which need not add up to exactly 1.
    pub fn draw(&mut self, p: &[f32]) -> u32 {
        self.draw_weighted(p.iter().map(|&p| f64::from(p)))
    }

    /// Whether to keep `draft`, drawn from `q` by the draft and to be distributed as `p`: yes with probability
    /// min(1, p/q). Shapes (vocab).
    pub fn accept(&mut self, draft: u32, p: &[f32], q: &[f32]) -> bool {
        let (p, q) = (p[draft as usize], q[draft as usize]);
        self.uniform() * f64::from(q) < f64::from(p)
    }

    /// Draws the token that replaces a draft which [`accept`](Sampler::accept) refused, from
    /// norm(max(p − q, 0)). Shapes (vocab).
    pub fn draw_residual(&mut self, p: &[f32], q: &[f32]) -> u32 {
        let residual = || p.iter().zip(q).map(|(&p, &q)| (f64::from(p) - f64::from(q)).max(0.0));
        if residual().sum::<f64>() > 0.0 {
            self.draw_weighted(residual())
        } else {
            // p and q differ by rounding alone.
            self.draw(p)
        }
    }

    fn draw_weighted(&mut self, weights: impl Iterator<Item = f64> + Clone) -> u32 {
        let target = self.uniform() * weights.clone().sum::<f64>();
        let (mut mass, mut last) = (0.0, 0);
        for (id, weight) in weights.enumerate() {
            if weight > 0.0 {
                mass += weight;
                last = id as u32;
                if mass > target {
                    break;
                }
            }
        }
        // Where `target` was rounded up to the whole mass, the last token that has any.
        last
    }

    /// Uniform in [0, 1), in steps of 2⁻⁵³.
    fn uniform(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

/// Larger values first, lower ids first among equals: a total order, so that unstable sorts are deterministic.
fn by_rank(values: &[f32]) -> impl Fn(&u32, &u32) -> Ordering + '_ {
    move |&a, &b| values[b as usize].total_cmp(&values[a as usize]).then(a.cmp(&b))
}
