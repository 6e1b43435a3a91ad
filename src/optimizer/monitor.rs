//! What a step of AdamW measures, what follows from it, and when to worry (arXiv 2304.09871).
//!
//! The ratio r = m̂/(√v̂ + ε) is bell-shaped while gradients are independent in time, and has two modes near ±1 when they are not:
//! then an update is large and need not lead downhill. A layer whose gradients fall to the size of ε stalls, until one batch moves all
//! of it at once.

use super::Settings;
use crate::{Error, Result};

/// Bins of the histogram of r.
pub const BINS: usize = 64;

/// Steps that a rolling mean looks back on.
pub const WINDOW: usize = 128;

/// Sums of a step, in the order of the kernel: g², r, r², r³, r⁴, g·r, g·m, m², g²/max(v̂, ε²), θ².
pub(crate) const SUMS: usize = 10;

/// What was measured, of a chunk in f32 and of a tensor in f64.
#[derive(Clone, Copy)]
pub(crate) struct Measured<Sum, Count> {
    pub sums: [Sum; SUMS],
    pub max_ratio: f32,
    pub non_finite: Count,
    pub large_ratios: Count,
    pub small_roots: Count,
    pub histogram: [Count; BINS],
}

impl<Sum: Copy + Default, Count: Copy + Default> Default for Measured<Sum, Count> {
    fn default() -> Self {
        let (sum, count) = (Sum::default(), Count::default());
        Measured {
            sums: [sum; SUMS],
            max_ratio: 0.0,
            non_finite: count,
            large_ratios: count,
            small_roots: count,
            histogram: [count; BINS],
        }
    }
}

/// What one step measured of one tensor. All sums are over the elements that were updated; g is the scaled gradient, m and θ are
/// those before the step, v̂ that after it.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// Elements of the tensor.
    pub count: u64,
    /// Elements that were left as they are, because their update would not have been finite.
    pub non_finite: u64,
    /// Σg².
    pub gradient_squared: f64,
    /// Σr, Σr², Σr³, Σr⁴.
    pub ratio_powers: [f64; 4],
    /// max|r|.
    pub max_ratio: f32,
    /// Elements with |r| > 0.9.
    pub large_ratios: u64,
    /// Elements with √v̂ < ε.
    pub small_roots: u64,
    /// Σg·r.
    pub gradient_ratio: f64,
    /// Σg·m₍ₜ₋₁₎.
    pub gradient_momentum: f64,
    /// Σm²₍ₜ₋₁₎.
    pub momentum_squared: f64,
    /// Σg²/max(v̂, ε²).
    pub relative_gradient_squared: f64,
    /// Σθ².
    pub weight_squared: f64,
    /// Σ(lr·r)², as lr²·Σr².
    pub update_squared: f64,
    /// Of r, over ±1.25 times [`Settings::ratio_bound`]; the first and last bin have what lies beyond, too.
    pub histogram: [u64; BINS],
}

impl Statistics {
    pub(crate) fn new(count: u64, learning_rate: f32, measured: &Measured<f64, u64>) -> Self {
        let &Measured { sums, max_ratio, non_finite, large_ratios, small_roots, histogram } = measured;
        let [
            gradient_squared,
            r_1,
            r_2,
            r_3,
            r_4,
            gradient_ratio,
            gradient_momentum,
            momentum_squared,
            relative_gradient_squared,
            weight_squared,
        ] = sums;
        let learning_rate = f64::from(learning_rate);
        Statistics {
            count,
            non_finite,
            gradient_squared,
            ratio_powers: [r_1, r_2, r_3, r_4],
            max_ratio,
            large_ratios,
            small_roots,
            gradient_ratio,
            gradient_momentum,
            momentum_squared,
            relative_gradient_squared,
            weight_squared,
            update_squared: learning_rate * learning_rate * r_2,
            histogram,
        }
    }

    /// Adds what was measured of another tensor in the same step, as if both were one.
    pub fn merge(&mut self, other: &Statistics) {
        self.count += other.count;
        self.non_finite += other.non_finite;
        self.gradient_squared += other.gradient_squared;
        self.ratio_powers.iter_mut().zip(other.ratio_powers).for_each(|(sum, x)| *sum += x);
        self.max_ratio = self.max_ratio.max(other.max_ratio);
        self.large_ratios += other.large_ratios;
        self.small_roots += other.small_roots;
        self.gradient_ratio += other.gradient_ratio;
        self.gradient_momentum += other.gradient_momentum;
        self.momentum_squared += other.momentum_squared;
        self.relative_gradient_squared += other.relative_gradient_squared;
        self.weight_squared += other.weight_squared;
        self.update_squared += other.update_squared;
        self.histogram.iter_mut().zip(other.histogram).for_each(|(sum, x)| *sum += x);
    }

    /// Elements that were updated; what the means below are of. Without one they are NaN.
    pub fn updated(&self) -> u64 {
        self.count - self.non_finite
    }

    /// RMS of the gradient.
    pub fn rms_gradient(&self) -> f64 {
        self.mean(self.gradient_squared).sqrt()
    }

    /// RMS of r.
    pub fn rms_ratio(&self) -> f64 {
        self.mean(self.ratio_powers[1]).sqrt()
    }

    /// RMS of g/√v, where √v is no less than ε. Over 1, the second moment lags behind the gradients.
    pub fn rms_relative_gradient(&self) -> f64 {
        self.mean(self.relative_gradient_squared).sqrt()
    }

    /// Share of elements with |r| > 0.9.
    pub fn share_of_large_ratios(&self) -> f64 {
        self.mean(self.large_ratios as f64)
    }

    /// Share of elements with √v̂ < ε.
    pub fn share_of_small_roots(&self) -> f64 {
        self.mean(self.small_roots as f64)
    }

    /// (skewness² + 1) / kurtosis of r: 1/3 of a normal distribution, 5/9 of a uniform one, 1 of two points. NaN where r varies less
    /// than its sums can tell.
    pub fn bimodality(&self) -> f64 {
        let [mean, second, third, fourth] = self.ratio_powers.map(|sum| self.mean(sum));
        let variance = second - mean * mean;
        if variance <= 1e-5 * second || fourth < 1e-30 {
            return f64::NAN;
        }
        let third_central = third - 3.0 * mean * second + 2.0 * mean.powi(3);
        let fourth_central = fourth - 4.0 * mean * third + 6.0 * mean * mean * second - 3.0 * mean.powi(4);
        (third_central * third_central / variance + variance * variance) / fourth_central
    }

    /// Cosine between the gradient and the momentum before it: near 0 if gradients are independent in time.
    pub fn gradient_momentum_correlation(&self) -> f64 {
        self.gradient_momentum / (self.gradient_squared * self.momentum_squared).sqrt()
    }

    /// Cosine between the gradient and r, the direction of the update: near 0 if the update does not lead downhill.
    pub fn gradient_ratio_correlation(&self) -> f64 {
        self.gradient_ratio / (self.gradient_squared * self.ratio_powers[1]).sqrt()
    }

    /// √(Σ(lr·r)² / Σθ²): the size of the update against that of the weights.
    pub fn relative_update(&self) -> f64 {
        (self.update_squared / self.weight_squared).sqrt()
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.updated() as f64
    }
}

/// Where alarms begin. Among n elements chance alone makes a difference of about 1/√n; each bound but the last is 3/√n further out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Of [`Statistics::bimodality`].
    pub bimodality: f64,
    /// RMS of r, in units of that of independent gradients ([`Settings::independent_rms_ratio`]), over which updates are too large.
    pub large_updates: f64,
    /// The same, under which they are too small.
    pub small_updates: f64,
    /// Of [`Statistics::rms_relative_gradient`].
    pub relative_gradient: f64,
    /// Standard deviations over the rolling mean. One is counted as at least a thousandth of the mean.
    pub deviations: f64,
}

impl Default for Thresholds {
    /// Bimodality 5/9, RMS of r 1.75 and 0.25 times that of independent gradients, RMS of g/√v 1, and 6 standard deviations.
    fn default() -> Self {
        Thresholds {
            bimodality: 5.0 / 9.0,
            large_updates: 1.75,
            small_updates: 0.25,
            relative_gradient: 1.0,
            deviations: 6.0,
        }
    }
}

/// What is wrong with a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alarms {
    /// Elements had NaN or infinity, and were not updated.
    pub non_finite: bool,
    /// r has two modes: gradients depend on those before them.
    pub bimodal: bool,
    /// RMS of r is far over that of independent gradients: a burst, or gradients that agree in time.
    pub large_updates: bool,
    /// RMS of r is far under it: ε rules the tensor.
    pub small_updates: bool,
    /// RMS of g/√v is over 1: the second moment is stale.
    pub stale_second_moment: bool,
    /// RMS of g, r or g/√v is far over its mean of the last [`WINDOW`] steps.
    pub spike: bool,
}

impl Alarms {
    /// Whether there is one.
    pub fn any(&self) -> bool {
        *self != Alarms::default()
    }
}

/// Watches one tensor, step by step.
#[derive(Clone, Debug)]
pub struct Monitor {
    thresholds: Thresholds,
    /// RMS of g, r and g/√v of the last steps.
    windows: [Window; 3],
}

impl Monitor {
    /// Has seen nothing yet.
    pub fn new(thresholds: Thresholds) -> Self {
        Monitor { thresholds, windows: [Window::default(); 3] }
    }

    /// Numbers of [`Monitor::state`].
    pub const STATE: usize = 3 * (WINDOW + 1);

    /// All that it has seen and still looks back on, to go on from later.
    pub fn state(&self) -> [f64; Self::STATE] {
        let mut state = [0.0; Self::STATE];
        for (part, window) in state.chunks_exact_mut(WINDOW + 1).zip(&self.windows) {
            part[..WINDOW].copy_from_slice(&window.values);
            part[WINDOW] = window.pushed as f64;
        }
        state
    }

    /// A monitor that goes on from `state`.
    ///
    /// # Errors
    /// [`Error::Argument`] if the numbers are none of [`Monitor::state`]'s.
    pub fn with_state(thresholds: Thresholds, state: &[f64]) -> Result<Self> {
        let wrong = || Error::argument("state", "is none that a monitor has left");
        if state.len() != Self::STATE || !state.iter().all(|x| x.is_finite()) {
            return Err(wrong());
        }
        let mut monitor = Monitor::new(thresholds);
        for (part, window) in state.chunks_exact(WINDOW + 1).zip(&mut monitor.windows) {
            window.values.copy_from_slice(&part[..WINDOW]);
            window.pushed = part[WINDOW] as usize;
            if window.pushed as f64 != part[WINDOW] {
                return Err(wrong());
            }
        }
        Ok(monitor)
    }

    /// The alarms of step `step`, counted from 1, which is to come after those observed before it. It allocates nothing.
    ///
    /// Bimodality is no sign in the first 2/(1−β₁) steps, when r depends on few gradients, and a spike none before [`WINDOW`] steps
    /// have been observed.
    pub fn observe(&mut self, settings: &Settings, step: u32, statistics: &Statistics) -> Alarms {
        let thresholds = self.thresholds;
        let margin = 3.0 / (statistics.updated() as f64).sqrt();
        let warm = f64::from(step) >= 2.0 / (1.0 - f64::from(settings.beta1));
        let ratio = statistics.rms_ratio() / settings.independent_rms_ratio(step);
        let watched = [statistics.rms_gradient(), statistics.rms_ratio(), statistics.rms_relative_gradient()];
        let mut spike = false;
        for (window, x) in self.windows.iter_mut().zip(watched) {
            spike |= window.is_far_over(x, thresholds.deviations);
            window.push(x);
        }
        Alarms {
            non_finite: statistics.non_finite > 0,
            bimodal: warm && statistics.bimodality() > thresholds.bimodality + margin,
            large_updates: ratio > thresholds.large_updates * (1.0 + margin),
            small_updates: ratio < thresholds.small_updates * (1.0 - margin),
            stale_second_moment: statistics.rms_relative_gradient() > thresholds.relative_gradient + margin,
            spike,
        }
    }
}

/// The last values of a series.
#[derive(Clone, Copy, Debug)]
struct Window {
    values: [f64; WINDOW],
    pushed: usize,
}

impl Default for Window {
    fn default() -> Self {
        Window { values: [0.0; WINDOW], pushed: 0 }
    }
}

impl Window {
    /// What is not finite leaves no trace.
    fn push(&mut self, x: f64) {
        if x.is_finite() {
            self.values[self.pushed % WINDOW] = x;
            self.pushed += 1;
        }
    }

    fn is_far_over(&self, x: f64, deviations: f64) -> bool {
        if self.pushed < WINDOW {
            return false;
        }
        let mean = |f: &dyn Fn(f64) -> f64| self.values.iter().map(|&x| f(x)).sum::<f64>() / WINDOW as f64;
        let center = mean(&|x| x);
        let deviation = mean(&|x| (x - center) * (x - center)).sqrt();
        x > center + deviations * deviation.max(1e-3 * center)
    }
}
