//! What a model is trained to do: to predict the next token, or the tokens that were hidden from it.
//!
//! Start from [`Objective`]; [`Masking`] hides tokens.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use super::settings::Settings;

/// Target of a row that the loss leaves out.
pub const UNCOUNTED: u32 = u32::MAX;

/// What the loss is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Objective {
    /// The token after each row, which rows must not see: for causal patterns.
    #[default]
    Next,
    /// Tokens that were chosen and mostly hidden, from what stands on both sides of them: for bidirectional patterns, in an
    /// encoder (BERT, arXiv 1810.04805). Other rows have no loss.
    Masked,
}

impl Objective {
    /// Special tokens of a vocabulary, its last: the mask, if there is one, begin and end.
    pub fn specials(self) -> usize {
        match self {
            Objective::Next => 2,
            Objective::Masked => 3,
        }
    }
}

/// Hides tokens of sequences, as BERT does (section 3.1 there): of the ordinary tokens 15 in 100 are chosen, of which 8 in 10
/// become the mask token, 1 in 10 another token and 1 in 10 stays. Which they are is drawn anew each time (RoBERTa,
/// arXiv 1907.11692).
pub struct Masking {
    seed: u64,
    /// Ordinary tokens, those below the special ones; the first special one is the mask.
    ordinary: u32,
}

impl Masking {
    /// Share of the ordinary tokens that are chosen.
    pub const SHARE: f64 = 0.15;
    /// Of a hundred chosen ones, those that become the mask token, and those that stay.
    const HIDDEN: u32 = 80;
    const STAYING: u32 = 10;
    /// The random stream of a seed that this draws from; weights, data and dropout have the first ones.
    const STREAM: u64 = 16;

    /// For the vocabulary of `settings`; None where nothing is to be hidden.
    pub fn new(settings: &Settings) -> Option<Self> {
        Masking::with_seed(settings, settings.seed)
    }

    /// For held-out text: what is hidden does not depend on the run's seed, so that losses of runs compare.
    pub fn held_out(settings: &Settings) -> Option<Self> {
        Masking::with_seed(settings, 0)
    }

    fn with_seed(settings: &Settings, seed: u64) -> Option<Self> {
        let ordinary = (settings.vocab - settings.objective.specials()) as u32;
        (settings.objective == Objective::Masked).then_some(Masking { seed, ordinary })
    }

    /// Hides tokens of `inputs` and makes them the targets; all other targets become [`UNCOUNTED`]. What is hidden depends on the
    /// seed and on `number`, which is to differ from sequence to sequence, and on nothing drawn before.
    pub fn hide(&self, number: usize, inputs: &mut [u32], targets: &mut [u32]) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(Masking::STREAM);
        // No sequence draws so many words.
        rng.set_word_pos((number as u128) << 32);
        let mut below = |bound: u32| ((u64::from(rng.next_u32()) * u64::from(bound)) >> 32) as u32;
        targets.fill(UNCOUNTED);
        let mut rows: Vec<usize> = (0..inputs.len()).filter(|&row| inputs[row] < self.ordinary).collect();
        // A sequence of nothing but special tokens has a loss all the same: its last one's.
        if rows.is_empty() {
            rows.push(inputs.len() - 1);
        }
        let chosen = ((rows.len() as f64 * Masking::SHARE).round() as usize).max(1);
        for i in 0..chosen {
            let other = i + below((rows.len() - i) as u32) as usize;
            rows.swap(i, other);
            let row = rows[i];
            targets[row] = inputs[row];
            match below(100) {
                draw if draw < Masking::HIDDEN => inputs[row] = self.ordinary,
                draw if draw < Masking::HIDDEN + Masking::STAYING => {}
                _ => inputs[row] = below(self.ordinary),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_hidden_in_their_shares() {
        let settings = Settings { vocab: 303, objective: Objective::Masked, ..Settings::default() };
        let masking = Masking::new(&settings).expect("an objective that hides");
        let (mut chosen, mut hidden, mut kept) = (0, 0, 0);
        for number in 0..200 {
            let original: Vec<u32> = (0..101).map(|i| if i == 0 { 301 } else { i * 2 }).collect();
            let (mut inputs, mut targets) = (original.clone(), vec![7; 101]);
            masking.hide(number, &mut inputs, &mut targets);
            assert_eq!(targets.iter().filter(|&&target| target != UNCOUNTED).count(), 15);
            assert_eq!((inputs[0], targets[0]), (301, UNCOUNTED), "special tokens are not chosen");
            for ((input, target), original) in inputs.iter().zip(&targets).zip(&original) {
                if *target == UNCOUNTED {
                    assert_eq!(input, original);
                } else {
                    assert_eq!(target, original);
                    assert!(*input <= 300);
                    chosen += 1;
                    hidden += usize::from(*input == 300);
                    kept += usize::from(input == original);
                }
            }
        }
        let share = |count: usize| count as f64 / chosen as f64;
        assert!((share(hidden) - 0.8).abs() < 0.03, "{}", share(hidden));
        assert!((share(kept) - 0.1).abs() < 0.03, "{}", share(kept));
    }

    #[test]
    fn what_is_hidden_depends_on_seed_and_number() {
        let settings = Settings { objective: Objective::Masked, ..Settings::default() };
        let hide = |seed: u64, number: usize| {
            let masking = Masking::with_seed(&settings, seed).expect("an objective that hides");
            let (mut inputs, mut targets) = ((0..100).collect::<Vec<u32>>(), vec![0; 100]);
            masking.hide(number, &mut inputs, &mut targets);
            (inputs, targets)
        };
        assert_eq!(hide(1, 5), hide(1, 5));
        assert_ne!(hide(1, 5), hide(1, 6));
        assert_ne!(hide(1, 5), hide(2, 5));
        assert!(Masking::new(&Settings::default()).is_none());
    }

    #[test]
    fn a_sequence_of_special_tokens_has_a_target() {
        let settings = Settings { vocab: 303, objective: Objective::Masked, ..Settings::default() };
        let (mut inputs, mut targets) = ([301, 302], [0, 0]);
        Masking::new(&settings).expect("an objective that hides").hide(0, &mut inputs, &mut targets);
        assert_eq!(targets, [UNCOUNTED, 302]);
    }
}
