//! What a model weighs, and what follows from it for speculative decoding.
//!
//! Start from [`Footprint`]: bytes of layers, head and KV cache. [`speedup`] is the cost formula of one
//! self-speculative round; [`best_draft`] and [`best_exit`] search it.

use super::{Checkpoint, Config, Dtype, weights::feed_forward_layer};
use crate::{
    error::Result,
    mask::{Mask, Pattern},
};

/// Longest draft that [`best_draft`] and [`best_exit`] consider.
pub const MAX_DRAFT: usize = 16;

/// Bytes of a model's weights and of its KV cache.
#[derive(Clone, Debug, PartialEq)]
pub struct Footprint {
    /// Number of parameters; a tied head counts once.
    pub parameters: u64,
    /// Bytes of all weights; a tied head counts once.
    pub weight_bytes: u64,
    /// Bytes of the weights of each layer.
    pub layer_bytes: Vec<u64>,
    /// Bytes of the head, which are also the embedding's if they are tied.
    pub head_bytes: u64,
    /// Values that the KV cache gains with each token: 2 · layers · KV heads · head_dim.
    pub kv_values_per_token: u64,
    /// Tokens after which the cache stops growing, where every layer has a window or chunks.
    pub reach: Option<u64>,
}

impl Footprint {
    /// The footprint of a model whose weights have `dtype`, but for the feed-forward weights that are e4m3 with `fp8`, or
    /// because the checkpoint is in `fbgemm_fp8`: those of the inner layers.
    pub fn of_config(config: &Config, dtype: Dtype, fp8: bool) -> Footprint {
        let fp8 = fp8 || config.fp8_bound.is_some();
        let bytes = |shape: &[usize]| bytes_of(shape, dtype);
        let layer = |index: usize| -> u64 {
            let inner = fp8 && index > 0 && index + 1 < config.layers;
            let of = |(name, shape): &(String, Vec<usize>)| match inner && feed_forward_layer(name).is_some()
            {
                true => bytes_of(shape, Dtype::E4m3) + 4 * shape[0] as u64,
                false => bytes(shape),
            };
            config.layer_tensors(index).iter().map(of).sum()
        };
        let layers: Vec<u64> = (0..config.layers).map(layer).collect();
        let head = bytes(&[config.vocab, config.hidden]);
        let tables = if config.tied { head } else { 2 * head };
        let weights = layers.iter().sum::<u64>() + tables + bytes(&[config.hidden]);
        Footprint::new(config, weights, layers, head)
    }

    /// The footprint of an opened checkpoint, with the dtypes in which a model takes its tensors.
    ///
    /// # Errors
    /// None for a checkpoint whose `config` was not changed after it was opened.
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Footprint> {
        let config = &checkpoint.config;
        let bytes = |tensors: &mut dyn Iterator<Item = (String, Vec<usize>)>| -> Result<u64> {
            let mut sum = 0;
            for (name, shape) in tensors {
                sum += checkpoint.loaded(&name, &checkpoint.tensor(&name, &shape)?).1 as u64;
            }
            Ok(sum)
        };
        let weights = bytes(&mut config.tensors())?;
        let layers = (0..config.layers)
            .map(|layer| bytes(&mut config.layer_tensors(layer).into_iter()))
            .collect::<Result<_>>()?;
        Ok(Footprint::new(config, weights, layers, checkpoint.head()?.size() as u64))
    }

    fn new(config: &Config, weight_bytes: u64, layer_bytes: Vec<u64>, head_bytes: u64) -> Footprint {
        Footprint {
            parameters: config.parameters(),
            weight_bytes,
            layer_bytes,
            head_bytes,
            kv_values_per_token: 2 * config.layers as u64 * config.kv_width() as u64,
            reach: config.masks.iter().map(reach).try_fold(0, |widest, keys| Some(keys?.max(widest))),
        }
    }

    /// Number of layers, L.
    pub fn layers(&self) -> usize {
        self.layer_bytes.len()
    }

    /// Mean bytes of a layer's weights; layers differ only where their dtypes do.
    pub fn mean_layer_bytes(&self) -> f64 {
        self.layer_bytes.iter().sum::<u64>() as f64 / self.layers() as f64
    }

    /// h: what the head costs, in layers (head bytes / mean layer bytes).
    pub fn head_in_layers(&self) -> f64 {
        self.head_bytes as f64 / self.mean_layer_bytes()
    }

    /// Bytes that the KV cache gains with each token if its values have `size` bytes.
    pub fn kv_bytes_per_token(&self, size: usize) -> u64 {
        self.kv_values_per_token * size as u64
    }

    /// Bytes of the KV cache of one sequence of `context` tokens. Where every layer looks back over a
    /// bounded distance, what lies before it is not kept.
    pub fn kv_bytes(&self, context: usize, size: usize) -> u64 {
        let tokens = self.reach.unwrap_or(u64::MAX).min(context as u64);
        self.kv_bytes_per_token(size).saturating_mul(tokens)
    }
}

fn bytes_of(shape: &[usize], dtype: Dtype) -> u64 {
    shape.iter().map(|&n| n as u64).product::<u64>() * dtype.size() as u64
}

/// How many keys a layer needs kept, if that is bounded.
fn reach(mask: &Mask) -> Option<u64> {
    let keys = match mask.pattern {
        Pattern::Window { keys } | Pattern::Chunk { keys } => keys as u64,
        Pattern::Overlap { keys } => 2 * keys as u64,
        _ => return None,
    };
    Some(keys + mask.prefix as u64)
}

/// Speed-up of self-speculative over plain decoding where the weights' bytes bound both: with exit layer
/// E, draft length d, acceptance a, L layers and a head that costs as much as h layers,
///
/// (a·d + 1)(L + h) / (d(E + h) + L + h)
///
/// A round reads E layers and the head d times for its drafts, all layers and the head once to verify them,
/// and yields a·d + 1 tokens. `draft` is d, a mean where rounds differ; `acceptance` is a, the share of the drafted
/// tokens that is kept.
pub fn speedup(layers: usize, h: f64, exit: usize, draft: f64, acceptance: f64) -> f64 {
    let (whole, d) = (layers as f64 + h, draft);
    (acceptance * d + 1.0) * whole / (d * (exit as f64 + h) + whole)
}

/// Share of the drafts of a round that is kept if each is right with probability `match_rate` after those
/// before it were: the mean length of the run of right ones among `draft`, over `draft`.
///
/// With it the formula's acceptance falls as drafts get longer, as it does in practice; were it held
/// fixed, the longest draft would always be the best.
pub fn kept_share(match_rate: f64, draft: usize) -> f64 {
    let mut run = 0.0;
    let mut probability = 1.0;
    for _ in 0..draft {
        probability *= match_rate;
        run += probability;
    }
    run / draft as f64
}

/// A choice of exit layer and draft length with what [`speedup`] promises for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Exit layer, E: drafts run layers 0..E.
    pub exit: usize,
    /// Draft length, d.
    pub draft: usize,
    /// Share of the drafts that is kept, a.
    pub acceptance: f64,
    /// Speed-up over plain decoding.
    pub speedup: f64,
}

/// The best draft length up to [`MAX_DRAFT`] for one exit layer and one probability that a draft is right.
pub fn best_draft(layers: usize, h: f64, exit: usize, match_rate: f64) -> Choice {
    let choice = |draft: usize| {
        let acceptance = kept_share(match_rate, draft);
        Choice { exit, draft, acceptance, speedup: speedup(layers, h, exit, draft as f64, acceptance) }
    };
    (2..=MAX_DRAFT)
        .map(choice)
        .fold(choice(1), |best, other| if other.speedup > best.speedup { other } else { best })
}

/// The best exit layer below the last, with its best draft length, if drafts of every exit were right with
/// the same probability; `None` for a model of one layer. Real exits differ: later ones are right more often.
pub fn best_exit(layers: usize, h: f64, match_rate: f64) -> Option<Choice> {
    (1..layers)
        .map(|exit| best_draft(layers, h, exit, match_rate))
        .reduce(|best, other| if other.speedup > best.speedup { other } else { best })
}

/// The acceptance above which a longer draft pays: (E + h) / (L + h).
pub fn break_even(layers: usize, h: f64, exit: usize) -> f64 {
    (exit as f64 + h) / (layers as f64 + h)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formula_gives_the_worked_example() {
        // Llama 3.2 1B (16 layers, h 4.32), E 3, d 6, a .6; and with a draft head at a quarter of the cost.
        assert!((speedup(16, 4.32, 3, 6.0, 0.6) - 1.455).abs() < 1e-3);
        // Drafts that cost nothing are pure gain, drafts that are never kept pure loss.
        assert_eq!(speedup(10, 0.0, 0, 4.0, 1.0), 5.0);
        assert!(speedup(32, 0.65, 8, 4.0, 0.0) < 1.0);
        // At break-even acceptance every draft length does as well as none.
        let a = break_even(32, 0.65, 8);
        for draft in 1..=MAX_DRAFT as u32 {
            assert!((speedup(32, 0.65, 8, f64::from(draft), a) - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn the_kept_share_is_the_mean_run() {
        assert_eq!(kept_share(0.5, 1), 0.5);
        assert_eq!(kept_share(0.5, 2), (0.5 + 0.25) / 2.0);
        assert_eq!(kept_share(1.0, 7), 1.0);
    }

    #[test]
    fn the_best_choice_is_no_worse_than_any_other() {
        let (layers, h) = (32, 2.41);
        for match_rate in [0.5, 0.7, 0.9] {
            let best = best_exit(layers, h, match_rate).unwrap();
            for exit in 1..layers {
                for draft in 1..=MAX_DRAFT {
                    let other = speedup(layers, h, exit, draft as f64, kept_share(match_rate, draft));
                    assert!(other <= best.speedup);
                }
            }
        }
        assert_eq!(best_exit(1, h, 0.9), None);
    }
}
