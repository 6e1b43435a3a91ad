//! The optimizer's monitor in a run (arXiv 2304.09871): every tensor is watched in every step, alarms are
//! logged once, and an alarm can have a consequence.
//!
//! Start from [`Watch`]. Its lines are those of `monitor.csv`, `histogram.csv` and `alarms.csv`.

use std::fmt::{self, Write as _};

use crate::{
    checkpoint::{EMBEDDING, HEAD, NORM},
    optimizer::{self, Alarms, Monitor, Statistics, Thresholds, WINDOW},
};

/// What an alarm leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mitigation {
    /// A step in which a matrix's gradient, r or g/√v spikes over its last 128 steps is measured, but not made:
    /// weights and moments stay, and the run goes on with the next batch. At most 8 steps in a row. The update
    /// is measured by a pass of its own, before it is made.
    Skip,
    /// When a matrix's r spikes, has two modes or is far larger than that of independent gradients, the
    /// learning rate is halved for the rest of the run; at most once in 20 steps, and down to 1/1024.
    LowerRate,
    /// When √v̂ lies under ε in over a tenth of a matrix, or its r spikes, ε is divided by 10 for the rest of the
    /// run; at most once in 20 steps, and down to 1e-18.
    LowerEpsilon,
}

impl fmt::Display for Mitigation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Mitigation::Skip => "skip",
            Mitigation::LowerRate => "lower-rate",
            Mitigation::LowerEpsilon => "lower-epsilon",
        })
    }
}

/// Steps that may be left out in a row.
const SKIPS: u32 = 8;
/// Steps between two lowerings: about as long as the momentum remembers, so that what one did can be seen.
const REST: u64 = 20;
/// The learning rate is not lowered under this share.
const LOWEST_RATE: f32 = 1.0 / 1024.0;
/// Share of a matrix whose √v̂ may lie under ε.
const SMALL_ROOTS: f64 = 0.1;
/// The smallest ε that the optimizer takes.
const LOWEST_EPSILON: f32 = 1e-18;

/// Names of the alarms, in the order of [`flags`].
const KINDS: [&str; 6] =
    ["non_finite", "bimodal", "large_updates", "small_updates", "stale_second_moment", "spike"];

fn flags(alarms: &Alarms) -> [bool; KINDS.len()] {
    let &Alarms { non_finite, bimodal, large_updates, small_updates, stale_second_moment, spike } = alarms;
    [non_finite, bimodal, large_updates, small_updates, stale_second_moment, spike]
}

/// The number that an alarm is about.
fn value(kind: usize, statistics: &Statistics) -> f64 {
    match KINDS[kind] {
        "non_finite" => statistics.non_finite as f64,
        "bimodal" => statistics.bimodality(),
        "large_updates" | "small_updates" => statistics.rms_ratio(),
        "stale_second_moment" => statistics.rms_relative_gradient(),
        _ => statistics.rms_gradient(),
    }
}

/// Something to tell: an alarm that a tensor had not had for 128 steps, or what followed from one.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Steps done when it came, that one included.
    pub step: usize,
    /// The tensor at fault; empty for a consequence, which concerns all.
    pub tensor: String,
    /// `non_finite`, `bimodal`, `large_updates`, `small_updates`, `stale_second_moment`, `spike`; or `skip`,
    /// `lower_rate`, `lower_epsilon`.
    pub what: &'static str,
    /// The count, bimodality, RMS of r, RMS of g/√v or RMS of g that it is about; of a consequence, the steps
    /// skipped in a row, the factor on the learning rate, or ε.
    pub value: f64,
    /// Whether the tensor never had this alarm before.
    pub first: bool,
}

/// Header of `alarms.csv`.
pub const ALARMS_HEADER: &str = "step,tensor,event,value\n";

impl Event {
    /// Its line in `alarms.csv`.
    pub fn line(&self) -> String {
        format!("{},{},{},{:.5e}\n", self.step, self.tensor, self.what, self.value)
    }
}

/// What follows from a step's alarms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The step is not to be made.
    pub skip: bool,
    /// ε of every tensor is to be set anew.
    pub new_epsilon: bool,
}

/// One tensor's monitor.
struct Watched {
    name: String,
    /// Index of its line in `monitor.csv`.
    group: usize,
    /// Whether alarms of it have consequences: norms and biases are too small to tell anything.
    matrix: bool,
    monitor: Monitor,
    /// The last step with each alarm; 0 for none.
    last: [u64; KINDS.len()],
}

/// Monitors of all tensors.
pub struct Watch {
    tensors: Vec<Watched>,
    /// Labels of the lines in `monitor.csv`.
    groups: Vec<String>,
    mitigation: Option<Mitigation>,
    /// Steps with each alarm since the last line, by group.
    counts: Vec<[u64; KINDS.len()]>,
    /// Steps left out in a row.
    skipped: u32,
    /// Steps left out since the last line.
    skips: u64,
    /// The step of the last lowering; 0 for none.
    lowered: u64,
    rate: f32,
    epsilon: f32,
}

impl Watch {
    /// Has seen nothing yet of the tensors `names` of a model of `layers` layers; `matrices` says which of them
    /// are matrices.
    pub fn new(
        names: &[(String, bool)],
        layers: usize,
        tied: bool,
        epsilon: f32,
        mitigation: Option<Mitigation>,
    ) -> Self {
        let mut groups = vec!["embedding".to_owned()];
        groups.extend((1..=layers).map(|layer| layer.to_string()));
        groups.push("norm".to_owned());
        if !tied {
            groups.push("head".to_owned());
        }
        let tensors = names.iter().map(|(name, matrix)| Watched {
            group: group(name, layers),
            name: name.clone(),
            matrix: *matrix,
            monitor: Monitor::new(Thresholds::default()),
            last: [0; KINDS.len()],
        });
        Watch {
            tensors: tensors.collect(),
            counts: vec![[0; KINDS.len()]; groups.len()],
            groups,
            mitigation,
            skipped: 0,
            skips: 0,
            lowered: 0,
            rate: 1.0,
            epsilon,
        }
    }

    /// The factor on the learning rate.
    pub fn rate(&self) -> f32 {
        self.rate
    }

    /// ε of every tensor.
    pub fn epsilon(&self) -> f32 {
        self.epsilon
    }

    /// Whether steps are to be measured before they are made.
    pub fn measures_first(&self) -> bool {
        self.mitigation == Some(Mitigation::Skip)
    }

    /// Takes in what step `step` of the run, step `t` of the optimizer, measured (or would measure) of each
    /// tensor; adds what is to be told to `events`.
    pub fn observe(
        &mut self,
        step: usize,
        t: u32,
        settings: &optimizer::Settings,
        statistics: &[Statistics],
        events: &mut Vec<Event>,
    ) -> Verdict {
        let step64 = step as u64;
        let mut matrices = Alarms::default();
        let mut small_roots = false;
        for (tensor, statistics) in self.tensors.iter_mut().zip(statistics) {
            let alarms = tensor.monitor.observe(settings, t, statistics);
            for (kind, _) in flags(&alarms).iter().enumerate().filter(|(_, on)| **on) {
                self.counts[tensor.group][kind] += 1;
                let last = std::mem::replace(&mut tensor.last[kind], step64);
                if last == 0 || step64 - last > WINDOW as u64 {
                    events.push(Event {
                        step,
                        tensor: tensor.name.clone(),
                        what: KINDS[kind],
                        value: value(kind, statistics),
                        first: last == 0,
                    });
                }
            }
            if tensor.matrix {
                matrices.bimodal |= alarms.bimodal;
                matrices.large_updates |= alarms.large_updates;
                matrices.spike |= alarms.spike;
                small_roots |= statistics.share_of_small_roots() > SMALL_ROOTS;
            }
        }
        self.verdict(step, &matrices, small_roots, events)
    }

    fn verdict(
        &mut self,
        step: usize,
        alarms: &Alarms,
        small_roots: bool,
        events: &mut Vec<Event>,
    ) -> Verdict {
        let mut verdict = Verdict::default();
        let mut tell = |what, value| {
            events.push(Event { step, tensor: String::new(), what, value, first: true });
        };
        let rested = self.lowered == 0 || step as u64 - self.lowered > REST;
        let unstable = alarms.spike || alarms.bimodal || alarms.large_updates;
        let ruled = small_roots || alarms.spike;
        match self.mitigation {
            Some(Mitigation::Skip) => {
                verdict.skip = alarms.spike && self.skipped < SKIPS;
                self.skipped = if verdict.skip { self.skipped + 1 } else { 0 };
                if verdict.skip {
                    self.skips += 1;
                    tell("skip", f64::from(self.skipped));
                }
            }
            Some(Mitigation::LowerRate) if rested && unstable && self.rate > LOWEST_RATE => {
                self.rate /= 2.0;
                self.lowered = step as u64;
                tell("lower_rate", f64::from(self.rate));
            }
            Some(Mitigation::LowerEpsilon) if rested && ruled && self.epsilon > LOWEST_EPSILON => {
                self.epsilon = (self.epsilon / 10.0).max(LOWEST_EPSILON);
                self.lowered = step as u64;
                verdict.new_epsilon = true;
                tell("lower_epsilon", f64::from(self.epsilon));
            }
            _ => {}
        }
        verdict
    }

    /// Header of `monitor.csv`.
    pub fn header() -> String {
        let mut header = String::from(
            "step,layer,parameters,gradient_norm,weight_norm,relative_update,mean_r,rms_r,mean_r3,mean_r4,max_r,\
             share_r_over_0.9,bimodality,share_root_under_epsilon,rms_g_over_root,rms_momentum,corr_g_momentum,\
             corr_g_r,epsilon,rate_factor,skipped",
        );
        KINDS.iter().for_each(|kind| header.extend([",", kind]));
        header.push('\n');
        header
    }

    /// Lines of `monitor.csv`, one for each layer: what the step measured, and how many steps since the last
    /// lines had each alarm in one of the layer's tensors.
    pub fn lines(&mut self, step: usize, statistics: &[Statistics]) -> String {
        let mut text = String::new();
        let skips = std::mem::take(&mut self.skips);
        for (group, statistics) in self.by_group(statistics).iter().enumerate() {
            let s = statistics;
            let n = s.updated() as f64;
            let _ = write!(text, "{step},{},{}", self.groups[group], s.count);
            let [mean, _, third, fourth] = s.ratio_powers.map(|sum| sum / n);
            for value in [
                s.gradient_squared.sqrt(),
                s.weight_squared.sqrt(),
                s.relative_update(),
                mean,
                s.rms_ratio(),
                third,
                fourth,
                f64::from(s.max_ratio),
                s.share_of_large_ratios(),
                s.bimodality(),
                s.share_of_small_roots(),
                s.rms_relative_gradient(),
                (s.momentum_squared / n).sqrt(),
                s.gradient_momentum_correlation(),
                s.gradient_ratio_correlation(),
                f64::from(self.epsilon),
                f64::from(self.rate),
            ] {
                // What is not a number is left blank.
                let _ = if value.is_finite() { write!(text, ",{value:.4e}") } else { write!(text, ",") };
            }
            let _ = write!(text, ",{skips}");
            for count in std::mem::take(&mut self.counts[group]) {
                let _ = write!(text, ",{count}");
            }
            text.push('\n');
        }
        text
    }

    /// Header of `histogram.csv`.
    pub fn histogram_header() -> String {
        let mut header = String::from("step,layer,low,high");
        (0..optimizer::BINS).for_each(|bin| {
            let _ = write!(header, ",{bin}");
        });
        header.push('\n');
        header
    }

    /// Lines of `histogram.csv`, one for each layer: the range of r, and counts in equal bins of it.
    pub fn histograms(&self, step: usize, statistics: &[Statistics], bound: f64) -> String {
        let mut text = String::new();
        for (label, statistics) in self.groups.iter().zip(self.by_group(statistics)) {
            let _ = write!(text, "{step},{label},{:.4},{:.4}", -1.25 * bound, 1.25 * bound);
            for count in statistics.histogram {
                let _ = write!(text, ",{count}");
            }
            text.push('\n');
        }
        text
    }

    fn by_group(&self, statistics: &[Statistics]) -> Vec<Statistics> {
        let mut sums: Vec<Option<Statistics>> = vec![None; self.groups.len()];
        for (tensor, statistics) in self.tensors.iter().zip(statistics) {
            match &mut sums[tensor.group] {
                Some(sum) => sum.merge(statistics),
                none => *none = Some(statistics.clone()),
            }
        }
        sums.into_iter().flatten().collect()
    }

    /// All whole numbers that it looks back on; with [`Watch::numbers`] they are all of it.
    pub fn counters(&self) -> Vec<u64> {
        let mut counters = vec![
            u64::from(self.skipped),
            self.skips,
            self.lowered,
            u64::from(self.rate.to_bits()),
            u64::from(self.epsilon.to_bits()),
        ];
        counters.extend(self.tensors.iter().flat_map(|tensor| tensor.last));
        counters.extend(self.counts.iter().flatten());
        counters
    }

    /// Of all monitors.
    pub fn numbers(&self) -> Vec<f64> {
        self.tensors.iter().flat_map(|tensor| tensor.monitor.state()).collect()
    }

    /// Goes on from what [`Watch::counters`] and [`Watch::numbers`] gave; false if they are of other tensors.
    #[must_use]
    pub fn restore(&mut self, counters: &[u64], numbers: &[f64]) -> bool {
        let per_tensor = KINDS.len() * self.tensors.len();
        if counters.len() != 5 + per_tensor + KINDS.len() * self.groups.len()
            || numbers.len() != Monitor::STATE * self.tensors.len()
        {
            return false;
        }
        let (first, rest) = counters.split_at(5);
        let (last, counts) = rest.split_at(per_tensor);
        let bits = |value: u64| u32::try_from(value).ok().map(f32::from_bits);
        let (Ok(skipped), Some(rate), Some(epsilon)) =
            (u32::try_from(first[0]), bits(first[3]), bits(first[4]))
        else {
            return false;
        };
        (self.skipped, self.skips, self.lowered) = (skipped, first[1], first[2]);
        (self.rate, self.epsilon) = (rate, epsilon);
        for (count, saved) in self.counts.iter_mut().zip(counts.chunks_exact(KINDS.len())) {
            count.copy_from_slice(saved);
        }
        let states = numbers.chunks_exact(Monitor::STATE);
        for ((tensor, last), state) in self.tensors.iter_mut().zip(last.chunks_exact(KINDS.len())).zip(states)
        {
            tensor.last.copy_from_slice(last);
            let Ok(monitor) = Monitor::with_state(Thresholds::default(), state) else { return false };
            tensor.monitor = monitor;
        }
        true
    }
}

/// The line of `monitor.csv` that a tensor counts in.
fn group(name: &str, layers: usize) -> usize {
    match name {
        EMBEDDING => 0,
        NORM => layers + 1,
        HEAD => layers + 2,
        _ => {
            let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
            layer.and_then(|(layer, _)| layer.parse::<usize>().ok()).map_or(0, |layer| layer + 1)
        }
    }
}
