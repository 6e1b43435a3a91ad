//! AdamW: Adam with decoupled weight decay (arXiv 1711.05101), and the measures of its monitor in the same pass.
//!
//! Every operation rounds once to f32, products and sums apart, and every sum has one order, which neither the number of threads nor
//! the device decides. That order is:
//!
//! - A tensor is cut into chunks of [`CHUNK`] elements, a chunk into 8 spans of 1024, a span into 8 rows of 128.
//! - Lane l of 32 adds elements 4l to 4l + 3 of each row of its span, one after the other, in f32.
//! - The lanes of a span add up in pairs 16, 8, 4, 2 and 1 apart; the spans of a chunk in their order.
//! - In f64, chain c of 16 adds chunks c, c + 16, c + 32 …; the chains add up in their order.

use rayon::prelude::*;

use super::monitor::{BINS, Measured, SUMS, Statistics};
use crate::{Error, Result};

/// Elements whose sums make one partial result in f32; also the unit of parallel work.
pub const CHUNK: usize = 8192;

/// Elements that a warp of the kernel takes of a chunk.
const SPAN: usize = 1024;
/// Elements that it takes at a time: four each lane.
const ROW: usize = 4 * LANES;
const LANES: usize = 32;
/// Chains of partial results.
const CHAINS: usize = 16;

/// What does not change from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// β₁: how much of the mean of gradients a step keeps. From 0, below 1.
    pub beta1: f32,
    /// β₂: the same of the mean of their squares. Over β₁², or r had no bound; below 1.
    pub beta2: f32,
    /// ε, added to √v̂. From 1e-18, so that ε² is a normal number, to 1.
    pub epsilon: f32,
    /// λ: decoupled weight decay, finite and not under 0.
    pub weight_decay: f32,
}

impl Default for Settings {
    /// β = (0.9, 0.95), ε = 1e-8, λ = 0.1.
    fn default() -> Self {
        Settings { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1 }
    }
}

impl Settings {
    /// Checks every field's range.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the field.
    pub fn validate(&self) -> Result<()> {
        let Settings { beta1, beta2, epsilon, weight_decay } = *self;
        let check = |name: &str, value: f32, allowed: bool, range: &str| match allowed {
            true => Ok(()),
            false => Err(Error::argument(name, format!("{value}; supported are {range}"))),
        };
        // NaN lies in none of the ranges.
        check("beta1", beta1, (0.0..1.0).contains(&beta1), "numbers from 0 to below 1")?;
        let over = beta1 * beta1 < beta2 && beta2 < 1.0;
        check("beta2", beta2, over, "numbers over beta1² and below 1")?;
        check("epsilon", epsilon, (1e-18..=1.0).contains(&epsilon), "numbers from 1e-18 to 1")?;
        let decays = weight_decay >= 0.0 && weight_decay.is_finite();
        check("weight_decay", weight_decay, decays, "finite numbers from 0")
    }

    /// The bound of |r| after many steps: (1−β₁) / √((1−β₂)(1−β₁²/β₂)).
    pub fn ratio_bound(&self) -> f64 {
        let (beta1, beta2) = (f64::from(self.beta1), f64::from(self.beta2));
        (1.0 - beta1) / ((1.0 - beta2) * (1.0 - beta1 * beta1 / beta2)).sqrt()
    }

    /// RMS of r in step `step`, counted from 1, of gradients that are independent in time:
    /// √((1−β₁)(1+β₁ᵗ) / ((1+β₁)(1−β₁ᵗ))), which comes down from 1 to √((1−β₁)/(1+β₁)).
    pub fn independent_rms_ratio(&self, step: u32) -> f64 {
        let beta1 = f64::from(self.beta1);
        let power = beta1.powf(f64::from(step));
        ((1.0 - beta1) * (1.0 + power) / ((1.0 + beta1) * (1.0 - power))).sqrt()
    }

    /// Bins of the histogram to a unit of r.
    pub(crate) fn bins_per_ratio(&self) -> f32 {
        (BINS as f64 / (2.0 * 1.25 * self.ratio_bound())) as f32
    }
}

/// What a step takes beside weights and gradients. On a device it lies in device memory, as `WlAdamwStep`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// lr.
    pub learning_rate: f32,
    /// What gradients are multiplied by before all else: for clipping, for the mean of a sum.
    pub gradient_scale: f32,
    /// 1 / (1 − β₁ᵗ).
    pub m_correction: f32,
    /// 1 / (1 − β₂ᵗ).
    pub v_correction: f32,
}

impl Step {
    /// Of step `step`, counted from 1.
    pub fn new(settings: &Settings, step: u32, learning_rate: f32, gradient_scale: f32) -> Self {
        let correction = |beta| 1.0 / (1.0 - power(beta, step));
        Step {
            learning_rate,
            gradient_scale,
            m_correction: correction(settings.beta1),
            v_correction: correction(settings.beta2),
        }
    }
}

/// baseˣ by squaring: `powi` may have other bits elsewhere.
fn power(mut base: f32, mut exponent: u32) -> f32 {
    let mut power = 1.0;
    loop {
        if exponent % 2 == 1 {
            power *= base;
        }
        exponent /= 2;
        if exponent == 0 {
            return power;
        }
        base *= base;
    }
}

/// The moments of one tensor.
///
/// A step is, with g = scale · gradient,
///
/// m = β₁m + (1−β₁)g; v = β₂v + (1−β₂)g²; r = (m/(1−β₁ᵗ)) / (√(v/(1−β₂ᵗ)) + ε); θ −= lr·(r + λθ).
///
/// **What is not finite:** an element whose g², v, r or new weight would be NaN or infinite is left as it is, weight and moments,
/// and counted in [`Statistics::non_finite`]; no other measure takes it. So a bad gradient spoils no later step.
pub struct AdamW {
    settings: Settings,
    m: Vec<f32>,
    v: Vec<f32>,
    steps: u32,
    partials: Vec<Partial>,
}

impl AdamW {
    /// Zero moments for `len` weights.
    ///
    /// # Errors
    /// Those of [`Settings::validate`]; [`Error::Capacity`] if there is no memory for them.
    pub fn new(settings: Settings, len: usize) -> Result<Self> {
        settings.validate()?;
        AdamW::with_moments(settings, zeros(len)?, zeros(len)?, 0)
    }

    /// The moments m and v after `steps` steps, to go on from.
    ///
    /// # Errors
    /// As [`AdamW::new`], and [`Error::Argument`] if m and v differ in length.
    pub fn with_moments(settings: Settings, m: Vec<f32>, v: Vec<f32>, steps: u32) -> Result<Self> {
        settings.validate()?;
        same_length("v", v.len(), m.len())?;
        let chunks = m.len().div_ceil(CHUNK);
        let mut partials = Vec::new();
        partials.try_reserve_exact(chunks).map_err(|_| no_memory::<Partial>(chunks))?;
        partials.resize(chunks, Partial::default());
        Ok(AdamW { settings, m, v, steps, partials })
    }

    /// One step on the tensor's weights, in parallel; what it measured.
    ///
    /// A learning rate or scale that is not finite leaves every element as it is, and counts the step.
    ///
    /// # Errors
    /// [`Error::Argument`] if weights, gradients and moments differ in length; nothing has happened then.
    pub fn step(
        &mut self,
        weights: &mut [f32],
        gradients: &[f32],
        learning_rate: f32,
        gradient_scale: f32,
    ) -> Result<Statistics> {
        same_length("weights", weights.len(), self.m.len())?;
        same_length("gradients", gradients.len(), self.m.len())?;
        self.steps = self.steps.saturating_add(1);
        let step = Step::new(&self.settings, self.steps, learning_rate, gradient_scale);
        let rule = Rule::new(&self.settings, step);
        let moments = self.m.par_chunks_mut(CHUNK).zip(self.v.par_chunks_mut(CHUNK));
        let values = weights.par_chunks_mut(CHUNK).zip(gradients.par_chunks(CHUNK));
        let chunks = values.zip(moments).zip(&mut self.partials);
        chunks.for_each(|(((weights, gradients), (m, v)), partial)| {
            *partial = rule.update_chunk(weights, gradients, m, v);
        });
        Ok(Statistics::new(weights.len() as u64, learning_rate, &total(&self.partials)))
    }

    /// What [`AdamW::step`] with the same arguments would measure, bit for bit; weights and moments stay as they
    /// are. A second pass: for whoever must know before an update is made, to leave it out.
    ///
    /// # Errors
    /// As [`AdamW::step`].
    pub fn measure(
        &mut self,
        weights: &[f32],
        gradients: &[f32],
        learning_rate: f32,
        gradient_scale: f32,
    ) -> Result<Statistics> {
        same_length("weights", weights.len(), self.m.len())?;
        same_length("gradients", gradients.len(), self.m.len())?;
        let step = Step::new(&self.settings, self.steps.saturating_add(1), learning_rate, gradient_scale);
        let rule = Rule::new(&self.settings, step);
        let moments = self.m.par_chunks(CHUNK).zip(self.v.par_chunks(CHUNK));
        let values = weights.par_chunks(CHUNK).zip(gradients.par_chunks(CHUNK));
        let chunks = values.zip(moments).zip(&mut self.partials);
        // Each thread updates copies.
        let copies = || [const { Vec::new() }; 3];
        chunks.for_each_init(
            copies,
            |copies: &mut [Vec<f32>; 3], (((weights, gradients), (m, v)), partial)| {
                for (copy, values) in copies.iter_mut().zip([weights, m, v]) {
                    copy.clear();
                    copy.extend_from_slice(values);
                }
                let [weights, m, v] = copies;
                *partial = rule.update_chunk(weights, gradients, m, v);
            },
        );
        Ok(Statistics::new(weights.len() as u64, learning_rate, &total(&self.partials)))
    }

    /// β, ε and λ.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Other settings from the next step on: a lower ε, say.
    ///
    /// # Errors
    /// Those of [`Settings::validate`]; nothing has changed then.
    pub fn set_settings(&mut self, settings: Settings) -> Result<()> {
        settings.validate()?;
        self.settings = settings;
        Ok(())
    }

    /// Steps done.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// The moments m and v, not corrected.
    pub fn moments(&self) -> (&[f32], &[f32]) {
        (&self.m, &self.v)
    }
}

fn zeros(len: usize) -> Result<Vec<f32>> {
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(len).map_err(|_| no_memory::<f32>(len))?;
    zeros.resize(len, 0.0);
    Ok(zeros)
}

fn no_memory<T>(len: usize) -> Error {
    Error::Capacity {
        what: "the optimizer's state".into(),
        needed: format!("{len} times {} bytes", size_of::<T>()),
        available: "the system has no memory for it".into(),
    }
}

fn same_length(argument: &str, len: usize, wanted: usize) -> Result<()> {
    match len == wanted {
        true => Ok(()),
        false => Err(Error::argument(argument, format!("{len} elements; the moments have {wanted}"))),
    }
}

/// What was measured of one chunk.
type Partial = Measured<f32, u32>;

/// One step's arithmetic.
struct Rule {
    settings: Settings,
    step: Step,
    bins_per_ratio: f32,
}

/// What the elements of a row add to the sums, and their bins; [`BINS`] is that of elements that are left out.
struct Row {
    terms: [[f32; ROW]; SUMS],
    bins: [i32; ROW],
}

impl Rule {
    fn new(settings: &Settings, step: Step) -> Self {
        Rule { settings: *settings, step, bins_per_ratio: settings.bins_per_ratio() }
    }

    fn update_chunk(&self, weights: &mut [f32], gradients: &[f32], m: &mut [f32], v: &mut [f32]) -> Partial {
        let mut partial = Partial::default();
        let mut row = Row { terms: [[0.0; ROW]; SUMS], bins: [0; ROW] };
        let mut counts = [0u32; BINS + 1];
        let moments = m.chunks_mut(SPAN).zip(v.chunks_mut(SPAN));
        let spans = weights.chunks_mut(SPAN).zip(gradients.chunks(SPAN)).zip(moments);
        for ((weights, gradients), (m, v)) in spans {
            let mut lanes = [[0.0f32; LANES]; SUMS];
            let moments = m.chunks_mut(ROW).zip(v.chunks_mut(ROW));
            let rows = weights.chunks_mut(ROW).zip(gradients.chunks(ROW)).zip(moments);
            for ((weights, gradients), (m, v)) in rows {
                self.update_row(weights, gradients, m, v, &mut row, &mut partial);
                for (lanes, terms) in lanes.iter_mut().zip(&row.terms) {
                    for (lane, terms) in lanes.iter_mut().zip(terms.as_chunks::<4>().0) {
                        terms.iter().for_each(|term| *lane += term);
                    }
                }
                row.bins[..weights.len()].iter().for_each(|&bin| counts[bin as usize] += 1);
            }
            for (sum, lanes) in partial.sums.iter_mut().zip(&mut lanes) {
                *sum += butterfly(lanes);
            }
        }
        partial.histogram.copy_from_slice(&counts[..BINS]);
        partial
    }

    /// Updates up to [`ROW`] elements. No branch depends on a value, so that the loop vectorises.
    fn update_row(
        &self,
        weights: &mut [f32],
        gradients: &[f32],
        m: &mut [f32],
        v: &mut [f32],
        row: &mut Row,
        partial: &mut Partial,
    ) {
        let Settings { beta1, beta2, epsilon, weight_decay } = self.settings;
        let Step { learning_rate, gradient_scale, m_correction, v_correction } = self.step;
        let len = weights.len().min(ROW);
        let (weights, gradients) = (&mut weights[..len], &gradients[..len]);
        let (m, v) = (&mut m[..len], &mut v[..len]);
        let [g_g, r_1, r_2, r_3, r_4, g_r, g_m, m_m, g_g_v, w_w] = &mut row.terms;
        let mut most = partial.max_ratio.to_bits();
        let (mut non_finite, mut large, mut small) = (0u32, 0u32, 0u32);
        for i in 0..len {
            let g = gradients[i] * gradient_scale;
            let square = g * g;
            let new_m = beta1 * m[i] + (1.0 - beta1) * g;
            let new_v = beta2 * v[i] + (1.0 - beta2) * g * g;
            let v_hat = new_v * v_correction;
            let root = v_hat.sqrt();
            let r = new_m * m_correction / (root + epsilon);
            let weight = weights[i] - learning_rate * (r + weight_decay * weights[i]);
            // r is finite where the weight is.
            let finite = square.is_finite() & new_v.is_finite() & weight.is_finite();

            // An element that is left out adds zeros.
            let kept = |x: f32| if finite { x } else { 0.0 };
            let (g, r, old_m, old) = (kept(g), kept(r), kept(m[i]), kept(weights[i]));
            g_g[i] = g * g;
            r_1[i] = r;
            r_2[i] = r * r;
            r_3[i] = r_2[i] * r;
            r_4[i] = r_2[i] * r_2[i];
            g_r[i] = g * r;
            g_m[i] = g * old_m;
            m_m[i] = old_m * old_m;
            g_g_v[i] = g_g[i] / v_hat.max(epsilon * epsilon);
            w_w[i] = old * old;
            // The bits of numbers from 0 are in their order.
            most = most.max(r.abs().to_bits());
            non_finite += u32::from(!finite);
            large += u32::from(r.abs() > 0.9);
            small += u32::from(finite & (root < epsilon));
            let bin = (r * self.bins_per_ratio + (BINS / 2) as f32).clamp(0.0, (BINS - 1) as f32) as i32;
            row.bins[i] = if finite { bin } else { BINS as i32 };

            m[i] = if finite { new_m } else { m[i] };
            v[i] = if finite { new_v } else { v[i] };
            weights[i] = if finite { weight } else { weights[i] };
        }
        row.terms.iter_mut().for_each(|terms| terms[len..].fill(0.0));
        partial.max_ratio = f32::from_bits(most);
        partial.non_finite += non_finite;
        partial.large_ratios += large;
        partial.small_roots += small;
    }
}

/// Sum of 32 lanes, in pairs 16, 8, 4, 2 and 1 apart.
fn butterfly(lanes: &mut [f32; LANES]) -> f32 {
    let mut distance = LANES / 2;
    while distance > 0 {
        for i in 0..distance {
            lanes[i] += lanes[i + distance];
        }
        distance /= 2;
    }
    lanes[0]
}

/// What was measured of all chunks.
fn total(partials: &[Partial]) -> Measured<f64, u64> {
    let mut total = Measured::default();
    let mut chains = [[0.0f64; SUMS]; CHAINS];
    for (i, partial) in partials.iter().enumerate() {
        let chain = &mut chains[i % CHAINS];
        chain.iter_mut().zip(&partial.sums).for_each(|(sum, &x)| *sum += f64::from(x));
        total.max_ratio = f32::max(total.max_ratio, partial.max_ratio);
        total.non_finite += u64::from(partial.non_finite);
        total.large_ratios += u64::from(partial.large_ratios);
        total.small_roots += u64::from(partial.small_roots);
        total.histogram.iter_mut().zip(&partial.histogram).for_each(|(sum, &x)| *sum += u64::from(x));
    }
    for chain in &chains {
        total.sums.iter_mut().zip(chain).for_each(|(sum, x)| *sum += x);
    }
    total
}
