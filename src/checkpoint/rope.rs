//! `rope_scaling` and `rope_parameters`: how positions become angles.

use serde_json::Value;

use super::json::Fields;
use crate::error::{Result, printable};

/// How rotary frequencies are scaled for contexts longer than the model was trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as they are.
    Default,
    /// Every frequency divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// NTK-aware: the base grows with the context. The base is fixed once, for the context asked for at load.
    Dynamic {
        /// Scaling factor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, blended between.
    Llama3 {
        /// Divisor of long wavelengths.
        factor: f64,
        /// `low_freq_factor`.
        low: f64,
        /// `high_freq_factor`.
        high: f64,
        /// `original_max_position_embeddings`.
        original: f64,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn {
        /// Scaling factor.
        factor: f64,
        /// `original_max_position_embeddings`.
        original: f64,
        /// `beta_fast`.
        beta_fast: f64,
        /// `beta_slow`.
        beta_slow: f64,
        /// Multiplier of cos and sin.
        attention_factor: f64,
        /// Whether correction bounds are rounded to whole dimensions.
        truncate: bool,
    },
}

/// Rotary position embedding parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Scaling for long contexts.
    pub scaling: RopeScaling,
}

/// Reads `rope_scaling` (the older form) or `rope_parameters` (which holds `rope_theta` too). As in
/// transformers, `rope_scaling` wins if both are given. `max_positions` is `max_position_embeddings`.
pub(super) fn parse(config: &Fields, head_dim: usize, max_positions: usize) -> Result<Rope> {
    let scaling = config.object("rope_scaling", "rope_scaling.")?.filter(|fields| !fields.map.is_empty());
    let parameters = config.object("rope_parameters", "rope_parameters.")?;
    let (name, fields) = match (scaling, parameters) {
        (Some(fields), _) => ("rope_scaling", fields),
        (None, Some(fields)) => ("rope_parameters", fields),
        (None, None) => return parse_one(config, None, head_dim, max_positions),
    };
    // One set of parameters per layer type: `{"full_attention": {…}, "sliding_attention": {…}}`.
    if fields.map.is_empty()
        || !fields.map.values().all(|value| matches!(value, Value::Object(_) | Value::Null))
    {
        return parse_one(config, Some(fields), head_dim, max_positions);
    }
    let mut agreed: Option<(String, Rope)> = None;
    for (layer_type, value) in fields.map {
        let Value::Object(map) = value else { continue };
        let prefix = format!("{name}.{layer_type}.");
        let nested = Fields { path: config.path, prefix: &prefix, map };
        let rope = parse_one(config, Some(nested), head_dim, max_positions)?;
        match &agreed {
            Some((first, other)) if *other != rope => {
                return Err(config.error(
                    name,
                    format!(
                        "differs between {} and {}; only one rotary embedding for all layers is supported",
                        printable(first),
                        printable(layer_type)
                    ),
                ));
            }
            _ => agreed = Some((layer_type.clone(), rope)),
        }
    }
    match agreed {
        Some((_, rope)) => Ok(rope),
        None => parse_one(config, None, head_dim, max_positions),
    }
}

/// One set of parameters, `fields`, beside the fields at the top of the file, `config`.
fn parse_one(config: &Fields, fields: Option<Fields>, head_dim: usize, max_positions: usize) -> Result<Rope> {
    // Above 1, so that later pairs turn slower and a logarithm of it can be divided by.
    const THETA: std::ops::RangeInclusive<f64> = 1.000_001..=1e12;
    const FACTOR: std::ops::RangeInclusive<f64> = 1.0..=1e6;
    let top_theta = config.number("rope_theta", Some(10_000.0), THETA)?;
    for fields in [Some(*config), fields].into_iter().flatten() {
        if fields.number("partial_rotary_factor", Some(1.0), 0.0..=1.0)? != 1.0 {
            return Err(
                fields.error("partial_rotary_factor", "only 1 is supported: all of a head is rotated")
            );
        }
    }
    let Some(fields) = fields else {
        return Ok(Rope { theta: top_theta, scaling: RopeScaling::Default });
    };
    let theta = fields.number("rope_theta", Some(top_theta), THETA)?;
    let (type_field, rope_type) = match (fields.text("rope_type")?, fields.text("type")?) {
        (Some(rope_type), _) => ("rope_type", rope_type),
        (None, Some(rope_type)) => ("type", rope_type),
        (None, None) if fields.get("factor").is_some() => {
            return Err(fields.error("rope_type", "is missing, though there is a factor"));
        }
        (None, None) => ("rope_type", "default"),
    };
    // The length before scaling. Some files keep it outside the scaling's own object, where it wins; where
    // it is given nowhere, transformers takes max_position_embeddings.
    let original = || {
        const RANGE: std::ops::RangeInclusive<f64> = 1.0..=(1u64 << 30) as f64;
        const NAME: &str = "original_max_position_embeddings";
        let inner = fields.number(NAME, Some(max_positions as f64), RANGE)?;
        config.number(NAME, Some(inner), RANGE)
    };
    let scaling = match rope_type {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: fields.number("factor", None, FACTOR)? },
        "dynamic" => {
            if head_dim <= 2 {
                return Err(fields.error(type_field, "dynamic scaling needs a head_dim above 2"));
            }
            RopeScaling::Dynamic { factor: fields.number("factor", None, FACTOR)? }
        }
        "llama3" => {
            let low = fields.number("low_freq_factor", None, 1e-6..=1e6)?;
            let high = fields.number("high_freq_factor", None, 1e-6..=1e6)?;
            if high <= low {
                return Err(
                    fields.error("high_freq_factor", format!("{high} must be above low_freq_factor, {low}"))
                );
            }
            RopeScaling::Llama3 {
                factor: fields.number("factor", None, FACTOR)?,
                low,
                high,
                original: original()?,
            }
        }
        "yarn" => parse_yarn(&fields, original()?, max_positions)?,
        other => {
            return Err(fields.error(
                type_field,
                format!(
                    "'{}' is not supported; it must be default, linear, dynamic, llama3 or yarn",
                    printable(other)
                ),
            ));
        }
    };
    Ok(Rope { theta, scaling })
}

/// YaRN with the defaults of its paper and of transformers: an absent `factor` is the ratio of the lengths,
/// an absent `attention_factor` 0.1·ln(factor) + 1, or the ratio of two such terms if both `mscale` and
/// `mscale_all_dim` are given.
fn parse_yarn(fields: &Fields, original: f64, max_positions: usize) -> Result<RopeScaling> {
    let ratio = (max_positions as f64 / original).max(1.0);
    let implied = fields.get("original_max_position_embeddings").map(|_| ratio);
    let factor = fields.number("factor", implied, 1.0..=1e6)?;
    // Zero means unset, as in transformers.
    let or_default = |name: &str, default: f64| -> Result<f64> {
        let value = fields.number(name, Some(default), 0.0..=1e6)?;
        Ok(if value == 0.0 { default } else { value })
    };
    let beta_fast = or_default("beta_fast", 32.0)?;
    let beta_slow = or_default("beta_slow", 1.0)?;
    if beta_fast < beta_slow {
        return Err(
            fields.error("beta_fast", format!("{beta_fast} must not be below beta_slow, {beta_slow}"))
        );
    }
    let magnitude = |scale: f64| 0.1 * scale * factor.ln() + 1.0;
    let (mscale, all) = (or_default("mscale", 0.0)?, or_default("mscale_all_dim", 0.0)?);
    let derived =
        if mscale != 0.0 && all != 0.0 { magnitude(mscale) / magnitude(all) } else { magnitude(1.0) };
    let attention_factor = fields.number("attention_factor", Some(derived), 1e-6..=1e6)?;
    let truncate = fields.flag("truncate", true)?;
    Ok(RopeScaling::Yarn { factor, original, beta_fast, beta_slow, attention_factor, truncate })
}
