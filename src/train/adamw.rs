//! AdamW: Adam with decoupled weight decay (arXiv 1711.05101).

use rayon::prelude::*;

/// Values updated as one unit of parallel work; fixed, so that sums do not depend on the threads.
pub(super) const CHUNK: usize = 1 << 14;

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.95;
const EPSILON: f32 = 1e-8;

/// Moments of every weight.
pub struct AdamW {
    m: Vec<f32>,
    v: Vec<f32>,
    steps: i32,
}

impl AdamW {
    /// Zero moments for `len` weights.
    pub fn new(len: usize) -> Self {
        AdamW { m: vec![0.0; len], v: vec![0.0; len], steps: 0 }
    }

    /// One step: m = β₁m + (1−β₁)g, v = β₂v + (1−β₂)g², r = m̂/(√v̂ + ε), θ −= lr·(r + λθ), with
    /// g = `gradient_scale` · `gradients`, β = (0.9, 0.95), ε = 1e-8. Only the first `decayed` weights decay.
    pub fn step(
        &mut self,
        weights: &mut [f32],
        gradients: &[f32],
        gradient_scale: f32,
        learning_rate: f32,
        decay: f32,
        decayed: usize,
    ) {
        self.steps += 1;
        let m_correction = 1.0 / (1.0 - BETA1.powi(self.steps));
        let v_correction = 1.0 / (1.0 - BETA2.powi(self.steps));
        let moments = self.m.par_chunks_mut(CHUNK).zip(self.v.par_chunks_mut(CHUNK));
        let values = weights.par_chunks_mut(CHUNK).zip(gradients.par_chunks(CHUNK));
        values.zip(moments).enumerate().for_each(|(chunk, ((weights, gradients), (m, v)))| {
            let decayed = decayed.saturating_sub(chunk * CHUNK);
            for i in 0..weights.len() {
                let g = gradients[i] * gradient_scale;
                m[i] = BETA1 * m[i] + (1.0 - BETA1) * g;
                v[i] = BETA2 * v[i] + (1.0 - BETA2) * g * g;
                let r = m[i] * m_correction / ((v[i] * v_correction).sqrt() + EPSILON);
                let decay = if i < decayed { decay } else { 0.0 };
                weights[i] -= learning_rate * (r + decay * weights[i]);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_the_formula() {
        let (lr, decay, scale) = (0.01f64, 0.1f64, 0.5f64);
        let gradients = [[2.0f64, -0.3, 0.0], [-1.0, 0.4, 1e-3], [0.5, 0.5, -1.0]];
        let mut weights = [1.0f32, -2.0, 0.5];
        let mut adam = AdamW::new(3);
        let (mut theta, mut m, mut v) = ([1.0f64, -2.0, 0.5], [0.0f64; 3], [0.0f64; 3]);
        for (t, gradient) in gradients.iter().enumerate() {
            let given: Vec<f32> = gradient.iter().map(|&g| g as f32).collect();
            adam.step(&mut weights, &given, scale as f32, lr as f32, decay as f32, 2);
            for i in 0..3 {
                let g = gradient[i] * scale;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.95 * v[i] + 0.05 * g * g;
                let m_hat = m[i] / (1.0 - 0.9f64.powi(t as i32 + 1));
                let v_hat = v[i] / (1.0 - 0.95f64.powi(t as i32 + 1));
                let r = m_hat / (v_hat.sqrt() + 1e-8);
                theta[i] -= lr * (r + if i < 2 { decay * theta[i] } else { 0.0 });
                assert!((f64::from(weights[i]) - theta[i]).abs() < 1e-6, "step {t}, weight {i}");
            }
        }
    }
}
