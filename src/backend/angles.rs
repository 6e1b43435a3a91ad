//! Angles of rotary position embedding.

/// The frequencies of one model, for rotate-half pairs (i, i + head_dim/2). [`Angles::new`] scales them as a
/// configuration says.
#[derive(Clone, Debug, PartialEq)]
pub struct Angles {
    frequencies: Vec<f32>,
    magnitude: f32,
}

impl Angles {
    /// From the angle per position of each pair, in radians, and what cosines and sines are multiplied by.
    pub fn from_frequencies(frequencies: Vec<f32>, magnitude: f32) -> Self {
        Angles { frequencies, magnitude }
    }

    /// Angle per position of each pair, in radians.
    pub fn frequencies(&self) -> &[f32] {
        &self.frequencies
    }

    /// What cosines and sines are multiplied by: 1 but for YaRN.
    pub fn magnitude(&self) -> f32 {
        self.magnitude
    }

    /// Writes the cosines, then the sines of `position` to `out`, `[head_dim]`. The angle is the f32 product
    /// of position and frequency, as in the checkpoints' own code.
    pub fn write(&self, position: usize, out: &mut [f32]) {
        let (cos, sin) = out.split_at_mut(self.frequencies.len());
        for ((cos, sin), f) in cos.iter_mut().zip(sin).zip(&self.frequencies) {
            let (s, c) = f64::from(position as f32 * f).sin_cos();
            *cos = c as f32 * self.magnitude;
            *sin = s as f32 * self.magnitude;
        }
    }
}
