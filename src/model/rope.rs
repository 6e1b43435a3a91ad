//! Rotary position embedding: the frequencies of a configuration.

use std::f64::consts::PI;

use crate::{
    backend::Angles,
    checkpoint::{Config, RopeScaling},
};

impl Angles {
    /// The angles of `config`. `context` is the number of positions that will be used; only the dynamic
    /// scaling depends on it: its base is fixed here, or a row's angle would depend on its company.
    ///
    /// Formulas: Llama 3.1's as in Meta's reference code, dynamic NTK and YaRN (arXiv 2309.00071) as in
    /// Hugging Face's `modeling_rope_utils`.
    pub fn new(config: &Config, context: usize) -> Self {
        let dim = config.head_dim as f64;
        let base_frequency = |base: f64, i: usize| base.powf(-2.0 * i as f64 / dim);
        let theta = config.rope.theta;
        let mut magnitude = 1.0;
        let frequency: Box<dyn Fn(usize) -> f64> = match config.rope.scaling {
            RopeScaling::Default => Box::new(move |i| base_frequency(theta, i)),
            RopeScaling::Linear { factor } => Box::new(move |i| base_frequency(theta, i) / factor),
            RopeScaling::Dynamic { factor } => {
                let original = config.max_positions as f64;
                let used = (context as f64).max(original);
                let stretch = factor * used / original - (factor - 1.0);
                let base = if dim > 2.0 { theta * stretch.powf(dim / (dim - 2.0)) } else { theta };
                Box::new(move |i| base_frequency(base, i))
            }
            RopeScaling::Llama3 { factor, low, high, original } => Box::new(move |i| {
                let f = base_frequency(theta, i);
                let wavelength = 2.0 * PI / f;
                if wavelength < original / high {
                    f
                } else if wavelength > original / low {
                    f / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            }),
            RopeScaling::Yarn { factor, original, beta_fast, beta_slow, attention_factor, truncate } => {
                magnitude = attention_factor;
                // The dimension that turns `rotations` times over the original context.
                let dimension =
                    |rotations: f64| dim * (original / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
                let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                Box::new(move |i| {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    let f = base_frequency(theta, i);
                    f / factor * ramp + f * (1.0 - ramp)
                })
            }
        };
        let frequencies = (0..config.head_dim / 2).map(|i| frequency(i) as f32).collect();
        Angles::from_frequencies(frequencies, magnitude as f32)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(head_dim: usize, theta: f64, scaling: &str) -> Config {
        let json = format!(
            r#"{{"model_type":"llama","hidden_size":{head_dim},"intermediate_size":8,"num_hidden_layers":1,
            "num_attention_heads":1,"vocab_size":8,"max_position_embeddings":64,"rope_theta":{theta},"rope_scaling":{scaling}}}"#
        );
        Config::from_json(Path::new("config.json"), json.as_bytes(), None).unwrap()
    }

    fn llama3(factor: u32) -> String {
        format!(
            r#"{{"rope_type":"llama3","factor":{factor},"low_freq_factor":1,"high_freq_factor":4,"original_max_position_embeddings":8192}}"#
        )
    }

    fn near(got: f32, want: f64) {
        assert!((f64::from(got) - want).abs() < want * 2e-6, "{got} for {want}");
    }

    #[test]
    fn llama3_scaling() {
        let scaled = Angles::new(&config(128, 5e5, &llama3(8)), 64);
        let plain = Angles::new(&config(128, 5e5, "null"), 64);
        let (scaled, plain) = (scaled.frequencies(), plain.frequencies());
        assert_eq!(scaled[..29], plain[..29], "short wavelengths are kept");
        for i in 35..64 {
            near(scaled[i], f64::from(plain[i]) / 8.0);
        }
        for (i, want) in [(29, 2.16657e-3), (34, 1.785078e-4), (35, 9.556212e-5), (63, 3.068926e-7)] {
            near(scaled[i], want);
        }
        let scaled = Angles::new(&config(64, 5e5, &llama3(32)), 64);
        for (i, want) in [(15, 1.290548e-3), (17, 9.708286e-5), (18, 1.946164e-5), (31, 9.418306e-8)] {
            near(scaled.frequencies()[i], want);
        }
    }

    #[test]
    fn linear_and_dynamic_scaling() {
        let plain = Angles::new(&config(32, 1e4, "null"), 64);
        let linear = Angles::new(&config(32, 1e4, r#"{"type":"linear","factor":4}"#), 64);
        for (a, b) in linear.frequencies().iter().zip(plain.frequencies()) {
            near(*a, f64::from(*b) / 4.0);
        }
        let dynamic = config(32, 1e4, r#"{"type":"dynamic","factor":2}"#);
        assert_eq!(Angles::new(&dynamic, 64), plain, "no longer than the model was made for");
        let base = 1e4 * (2.0f64 * 128.0 / 64.0 - 1.0).powf(32.0 / 30.0);
        near(Angles::new(&dynamic, 128).frequencies()[5], base.powf(-10.0 / 32.0));
    }

    /// Far out in a long context the angle is that of the f32 product, and its cosine is right.
    #[test]
    fn angles_at_128k() {
        let angles = Angles::new(&config(128, 5e5, &llama3(8)), 64);
        let mut out = vec![0.0; 128];
        for position in [0, 1, 4095, 131_071] {
            angles.write(position, &mut out);
            for (i, f) in angles.frequencies().iter().enumerate() {
                let angle = f64::from(position as f32 * f);
                assert!(
                    (f64::from(out[i]) - angle.cos()).abs() < 1e-7
                        && (f64::from(out[64 + i]) - angle.sin()).abs() < 1e-7
                );
            }
        }
    }
}
