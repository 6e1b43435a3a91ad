//! Exit policies: how deep and how far the next round drafts. Start from [`ExitPolicy`].
//!
//! # Adding a policy
//! A program's own needs no more than a struct that implements [`ExitPolicy`] (take [`Length`] as the pattern: a
//! dozen lines). For one that the command knows, too, add a variant to [`Policy`] with its name and its place in
//! [`Policy::ALL`], and a line to [`Policy::build`]: the command, `compare` and the tests that walk [`Policy::ALL`]
//! then have it. [The guide](crate::guide::add_an_exit_policy) goes through it.

use std::{fmt, str::FromStr};

use crate::error::{Error, Result, printable};

/// The longest draft of a round, in tokens. Buffers are sized for it.
pub const MAX_DRAFT: usize = 16;

/// What a policy asks of the next round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Layers 0..`exit_layer` draft, the rest verify.
    pub exit_layer: usize,
    /// Tokens to draft at most.
    pub draft: usize,
    /// τ: a draft whose probability falls under it is the round's last one. 0 never ends a draft.
    pub threshold: f32,
}

/// What a finished round was.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Round {
    /// The exit layer it drafted with.
    pub exit_layer: usize,
    /// Tokens its plan asked for.
    pub asked: usize,
    /// Drafts that were verified: fewer than asked where τ, an end of sequence or the token limit ended the draft.
    pub drafted: usize,
    /// Drafts that were accepted.
    pub accepted: usize,
    /// Sum of the accepted drafts' confidences, each the draft's probability in its own draft distribution.
    /// Measured in rounds whose plan has a threshold above 0; 0 in others.
    pub matched_confidence: f32,
    /// Confidence of the first draft that was not accepted; 0 if all were, or if it was not measured. Drafts
    /// behind it were drafted from a wrong token and say nothing.
    pub mismatched_confidence: f32,
}

impl Round {
    /// Whether every verified draft was accepted.
    pub fn all_accepted(&self) -> bool {
        self.accepted == self.drafted
    }
}

/// A function from statistics of finished rounds to the next [`Plan`].
///
/// On a device the next round is launched before the last one's statistics are read: `finished` may be older
/// than the plan returned last, so a policy goes by what the round itself says it was.
pub trait ExitPolicy: Send {
    /// The name as the command line writes it.
    fn name(&self) -> &'static str;

    /// The longest draft that any of its plans asks for.
    fn max_draft(&self) -> usize;

    /// The next round's plan. `finished` is a round that finished since the last call, if one did.
    fn plan(&mut self, finished: Option<&Round>) -> Plan;
}

/// The same exit layer and draft length in every round.
#[derive(Clone, Debug)]
pub struct Fixed {
    /// The plan of every round.
    pub plan: Plan,
}

impl ExitPolicy for Fixed {
    fn name(&self) -> &'static str {
        Policy::Fixed.name()
    }

    fn max_draft(&self) -> usize {
        self.plan.draft
    }

    fn plan(&mut self, _finished: Option<&Round>) -> Plan {
        self.plan
    }
}

/// Drafts one token more after a round that accepted all it was asked for, and one less after a rejection.
#[derive(Clone, Debug)]
pub struct Length {
    /// The next plan; its draft length stays between 1 and `max`.
    pub plan: Plan,
    /// The longest draft.
    pub max: usize,
}

impl ExitPolicy for Length {
    fn name(&self) -> &'static str {
        Policy::Length.name()
    }

    fn max_draft(&self) -> usize {
        self.max
    }

    fn plan(&mut self, finished: Option<&Round>) -> Plan {
        if let Some(round) = finished {
            // From the length that round was asked for, not from the last plan: two rounds under one plan
            // must not count twice.
            let draft = match round.all_accepted() {
                true if round.drafted == round.asked => round.asked + 1,
                // Cut short, but not by a rejection: no reason to change.
                true => round.asked,
                false => round.asked.saturating_sub(1),
            };
            self.plan.draft = draft.clamp(1, self.max);
        }
        self.plan
    }
}

/// Drafts until the draft is unsure of itself.
///
/// With a fixed τ (0.6 to 0.8 are usual), or with τ halfway between the running means of the confidences of
/// accepted and of rejected drafts (DEL, arXiv 2504.05598): where a draft is as likely to be the one as the other.
#[derive(Clone, Debug)]
pub struct Confidence {
    plan: Plan,
    /// Running means of the confidences of accepted and of rejected drafts; `None` with a fixed τ.
    means: Option<[Mean; 2]>,
}

impl Confidence {
    /// τ until both means exist.
    pub const FIRST_THRESHOLD: f32 = 0.7;

    /// Up to `draft` tokens by layers 0..`exit_layer`, with τ = `threshold`, or with a running τ.
    pub fn new(exit_layer: usize, draft: usize, threshold: Option<f32>) -> Self {
        Confidence {
            plan: Plan { exit_layer, draft, threshold: threshold.unwrap_or(Self::FIRST_THRESHOLD) },
            means: threshold.is_none().then(Default::default),
        }
    }
}

impl ExitPolicy for Confidence {
    fn name(&self) -> &'static str {
        Policy::Confidence.name()
    }

    fn max_draft(&self) -> usize {
        self.plan.draft
    }

    fn plan(&mut self, finished: Option<&Round>) -> Plan {
        if let (Some([matched, mismatched]), Some(round)) = (&mut self.means, finished) {
            matched.add(round.matched_confidence, round.accepted);
            mismatched.add(round.mismatched_confidence, usize::from(!round.all_accepted()));
            if let (Some(matched), Some(mismatched)) = (matched.get(), mismatched.get()) {
                self.plan.threshold = (matched + mismatched) / 2.0;
            }
        }
        self.plan
    }
}

/// A mean that forgets: what was seen `n` observations ago counts `DECAY`ⁿ.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f32,
    count: f32,
}

impl Mean {
    /// DEL's, for the averages it keeps per exit layer.
    const DECAY: f32 = 0.95;

    /// Adds `count` observations that add up to `sum`.
    fn add(&mut self, sum: f32, count: usize) {
        let decay = Self::DECAY.powi(count as i32);
        self.sum = self.sum * decay + sum;
        self.count = self.count * decay + count as f32;
    }

    fn get(&self) -> Option<f32> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }
}

/// The policies by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// [`Fixed`].
    Fixed,
    /// [`Length`].
    Length,
    /// [`Confidence`].
    Confidence,
    /// No drafts: plain decoding.
    Off,
}

impl Policy {
    /// Every policy, in the order that help and errors list them.
    pub const ALL: [Policy; 4] = [Policy::Fixed, Policy::Length, Policy::Confidence, Policy::Off];

    /// The name as the command line writes it.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Fixed => "fixed",
            Policy::Length => "length",
            Policy::Confidence => "confidence",
            Policy::Off => "off",
        }
    }

    /// The policy for a model of `layers` layers whose layers 0..`exit_layer` draft; `None` for [`Policy::Off`].
    ///
    /// `draft` is the draft length: of every round (fixed), of the first one (length, which then goes up to
    /// [`MAX_DRAFT`]), or the longest (confidence). `threshold` is τ; without it `confidence` adapts τ and the
    /// others never end a draft.
    ///
    /// # Errors
    /// [`Error::Argument`] unless `exit_layer` is 1 to `layers` − 1, `draft` is 1 to [`MAX_DRAFT`] and
    /// `threshold` lies in 0 to 1. [`Policy::Off`] looks at none of them.
    pub fn build(
        self,
        layers: usize,
        exit_layer: usize,
        draft: usize,
        threshold: Option<f32>,
    ) -> Result<Option<Box<dyn ExitPolicy>>> {
        if self == Policy::Off {
            return Ok(None);
        }
        if exit_layer == 0 || exit_layer >= layers {
            return Err(Error::argument(
                "--exit-layer",
                match layers {
                    0 | 1 => {
                        format!("a model of {layers} layers has no layer to draft with; use --policy off")
                    }
                    _ => format!(
                        "{exit_layer} is out of range; of {layers} layers 1 to {} can draft, the others verify",
                        layers - 1
                    ),
                },
            ));
        }
        if !(1..=MAX_DRAFT).contains(&draft) {
            return Err(Error::argument(
                "--draft",
                format!("{draft} is out of range; a round drafts 1 to {MAX_DRAFT} tokens"),
            ));
        }
        if threshold.is_some_and(|threshold| !(0.0..=1.0).contains(&threshold)) {
            return Err(Error::argument(
                "--threshold",
                format!("{} is out of range; a probability is 0 to 1", threshold.unwrap_or_default()),
            ));
        }
        let plan = Plan { exit_layer, draft, threshold: threshold.unwrap_or(0.0) };
        Ok(match self {
            Policy::Fixed => Some(Box::new(Fixed { plan })),
            Policy::Length => Some(Box::new(Length { plan, max: MAX_DRAFT })),
            Policy::Confidence => Some(Box::new(Confidence::new(exit_layer, draft, threshold))),
            Policy::Off => None,
        })
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Policy::ALL.into_iter().find(|policy| policy.name() == text).ok_or_else(|| {
            let names = Policy::ALL.map(Policy::name).join(", ");
            Error::argument("--policy", format!("'{}' is none of {names}", printable(text)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(asked: usize, drafted: usize, accepted: usize) -> Round {
        Round { exit_layer: 2, asked, drafted, accepted, ..Round::default() }
    }

    /// The policy's plan after `rounds`, one after the other.
    fn after(policy: &mut dyn ExitPolicy, rounds: &[Round]) -> Plan {
        rounds.iter().fold(policy.plan(None), |_, round| policy.plan(Some(round)))
    }

    #[test]
    fn names_round_trip_and_every_policy_can_be_built() {
        for policy in Policy::ALL {
            assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
            match policy.build(8, 3, 4, None).unwrap() {
                Some(mut built) => {
                    assert_eq!(built.name(), policy.name());
                    let plan = built.plan(None);
                    assert_eq!((plan.exit_layer, plan.draft), (3, 4));
                    assert!(built.max_draft() <= MAX_DRAFT);
                }
                None => assert_eq!(policy, Policy::Off),
            }
        }
        let error = "fix\u{1b}ed".parse::<Policy>().unwrap_err().to_string();
        assert_eq!(error, "--policy: 'fix\\u{1b}ed' is none of fixed, length, confidence, off");
    }

    #[test]
    fn settings_out_of_range_are_refused_by_their_option() {
        let refused = |layers, exit_layer, draft, threshold| match Policy::Fixed
            .build(layers, exit_layer, draft, threshold)
        {
            Err(Error::Argument { argument, .. }) => argument,
            _ => "accepted".to_string(),
        };
        for exit_layer in [0, 8, usize::MAX] {
            assert_eq!(refused(8, exit_layer, 4, None), "--exit-layer");
        }
        assert_eq!(refused(1, 1, 4, None), "--exit-layer");
        for draft in [0, MAX_DRAFT + 1] {
            assert_eq!(refused(8, 3, draft, None), "--draft");
        }
        for threshold in [-0.1, 1.1, f32::NAN] {
            assert_eq!(refused(8, 3, 4, Some(threshold)), "--threshold");
        }
        for (exit_layer, draft) in [(1, 1), (7, MAX_DRAFT)] {
            assert_eq!(refused(8, exit_layer, draft, Some(0.5)), "accepted");
        }
        assert!(Policy::Off.build(1, 0, 0, None).unwrap().is_none());
    }

    #[test]
    fn fixed_never_changes() {
        let plan = Plan { exit_layer: 3, draft: 4, threshold: 0.0 };
        assert_eq!(after(&mut Fixed { plan }, &[round(4, 4, 4), round(4, 4, 0), round(4, 1, 1)]), plan);
    }

    #[test]
    fn length_grows_after_full_acceptance_and_shrinks_after_a_rejection() {
        let draft = |rounds: &[Round]| {
            let plan = Plan { exit_layer: 2, draft: 4, threshold: 0.0 };
            after(&mut Length { plan, max: 6 }, rounds).draft
        };
        assert_eq!(draft(&[]), 4);
        assert_eq!(draft(&[round(4, 4, 4)]), 5);
        assert_eq!(draft(&[round(4, 4, 3)]), 3);
        assert_eq!(draft(&[round(4, 2, 2)]), 4, "cut short by the token limit, not by a rejection");
        assert_eq!(draft(&[round(4, 4, 4), round(4, 4, 4)]), 5, "two rounds under one plan count once");
        assert_eq!(draft(&[round(6, 6, 6)]), 6);
        assert_eq!(draft(&[round(1, 1, 0)]), 1);
    }

    #[test]
    fn a_running_threshold_lies_between_the_means() {
        let confident = |accepted, matched_confidence, mismatched_confidence| Round {
            matched_confidence,
            mismatched_confidence,
            ..round(4, 4, accepted)
        };
        let mut policy = Confidence::new(2, 4, None);
        assert_eq!(policy.plan(None).threshold, Confidence::FIRST_THRESHOLD);
        // Nothing was rejected yet: there is no second mean.
        assert_eq!(policy.plan(Some(&confident(4, 3.6, 0.0))).threshold, Confidence::FIRST_THRESHOLD);
        let threshold = policy.plan(Some(&confident(2, 1.8, 0.3))).threshold;
        assert!((threshold - (0.9 + 0.3) / 2.0).abs() < 1e-6, "{threshold}");
        // Recent rounds count more: the means move to where the text has become harder.
        let rounds = [confident(2, 1.0, 0.1); 50];
        let threshold = after(&mut policy, &rounds).threshold;
        assert!((threshold - (0.5 + 0.1) / 2.0).abs() < 0.02, "{threshold}");
        assert_eq!(policy.plan(None).draft, 4);

        let mut policy = Confidence::new(2, 4, Some(0.6));
        assert_eq!(after(&mut policy, &rounds).threshold, 0.6);
    }
}
