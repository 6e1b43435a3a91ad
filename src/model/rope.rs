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

    /// Frequencies of every scaling are those of the formulas as Hugging Face's code has them, rounded once; and the
    /// angle of a position is the f32 product, whose cosine and sine are rounded once, to the end of 128k.
    #[test]
    fn every_scaling_at_128k() {
        let (dim, theta, context) = (128usize, 5e5f64, 131_072usize);
        let inverse = |base: f64, i: usize| 1.0 / base.powf((2 * i) as f64 / dim as f64);
        let llama3 = |i: usize| {
            let (f, wavelength) = (inverse(theta, i), 2.0 * PI * theta.powf((2 * i) as f64 / dim as f64));
            let smooth = ((8192.0 / wavelength - 1.0) / (4.0 - 1.0)).clamp(0.0, 1.0);
            (1.0 - smooth) * f / 8.0 + smooth * f
        };
        let yarn = |i: usize| {
            let turns = |n: f64| dim as f64 * (4096.0 / (n * 2.0 * PI)).ln() / (2.0 * theta.ln());
            let (low, high) = (turns(32.0).floor(), turns(1.0).ceil());
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            inverse(theta, i) / 16.0 * ramp + inverse(theta, i) * (1.0 - ramp)
        };
        // Of max_position_embeddings, 64.
        let stretched = theta * (2.0 * context as f64 / 64.0 - 1.0).powf(dim as f64 / (dim as f64 - 2.0));
        let yarn_scale = f64::from(0.1 * 16f32.ln() + 1.0);
        type Formula<'a> = &'a dyn Fn(usize) -> f64;
        let cases: [(&str, Formula, f64); 5] = [
            ("null", &|i| inverse(theta, i), 1.0),
            (r#"{"type":"linear","factor":4}"#, &|i| inverse(theta, i) / 4.0, 1.0),
            (r#"{"type":"dynamic","factor":2}"#, &|i| inverse(stretched, i), 1.0),
            (&self::llama3(8), &llama3, 1.0),
            (
                r#"{"rope_type":"yarn","factor":16,"original_max_position_embeddings":4096}"#,
                &yarn,
                yarn_scale,
            ),
        ];
        let mut out = vec![0.0; dim];
        for (scaling, formula, magnitude) in cases {
            let angles = Angles::new(&config(dim, theta, scaling), context);
            for (i, f) in angles.frequencies().iter().enumerate() {
                let want = formula(i);
                assert!((f64::from(*f) / want - 1.0).abs() <= 6e-8, "{scaling}: {f} for {want}, pair {i}");
            }
            assert!((f64::from(angles.magnitude()) - magnitude).abs() < 2e-7, "{scaling}");
            for position in [1, 32_767, 65_535, 131_071] {
                angles.write(position, &mut out);
                for (i, f) in angles.frequencies().iter().enumerate() {
                    let (sin, cos) = f64::from(position as f32 * f).sin_cos();
                    for (got, want) in [(out[i], cos), (out[dim / 2 + i], sin)] {
                        let off = (f64::from(got) - want * magnitude).abs();
                        assert!(off <= 2.5e-7, "{scaling}: {got} for {want} at {position}, pair {i}");
                    }
                }
            }
        }
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
