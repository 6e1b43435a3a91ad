//! `config.json`: what the model is.

use std::path::Path;

use serde_json::Value;

use super::{
    Dtype, file,
    fp8::ACTIVATION_BOUND,
    json::{self, Fields},
    rope::{self, Rope, RopeScaling},
};
use crate::{
    error::{Error, Result, printable},
    mask::{Mask, Pattern},
};

/// Upper bounds of what a config may ask for: far above any model, far below any overflow.
mod limit {
    pub const LAYERS: usize = 10_000;
    pub const HIDDEN: usize = 1 << 20;
    pub const INTERMEDIATE: usize = 1 << 24;
    pub const HEADS: usize = 1 << 16;
    pub const HEAD_DIM: usize = 1 << 16;
    pub const VOCAB: usize = 1 << 24;
    pub const CONTEXT: usize = 1 << 30;
    pub const PARAMETERS: u64 = 1 << 50;
    pub const EOS_IDS: usize = 1024;
}

/// Which family's graph the checkpoint asks for. Both are the same graph; Mistral adds a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelType {
    /// `"llama"`.
    Llama,
    /// `"mistral"`.
    Mistral,
}

/// A model's shape and settings, checked: a value of this type describes a model that can be run.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Family.
    pub model_type: ModelType,
    /// Number of layers, L.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward block.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// `max_position_embeddings`, times the scaling factor where the RoPE type extends it (dynamic).
    pub context: usize,
    /// `max_position_embeddings` itself: the length that dynamic RoPE scaling starts from.
    pub max_positions: usize,
    /// RMSNorm's ε.
    pub rms_norm_eps: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// q, k, v and o projections have biases.
    pub attention_bias: bool,
    /// gate, up and down projections have biases.
    pub mlp_bias: bool,
    /// The head is the embedding.
    pub tied: bool,
    /// One mask per layer.
    pub masks: Vec<Mask>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// End-of-sequence ids; generation_config.json overrides config.json.
    pub eos: Vec<u32>,
    /// `dtype` or `torch_dtype`, if it is one that can be run: a hint, the tensors' own dtypes decide.
    pub dtype: Option<Dtype>,
    /// Some for `fbgemm_fp8` checkpoints: `activation_scale_ub`, the bound of the activations that are quantised. Which
    /// weights are e4m3, their own dtypes say.
    pub fp8_bound: Option<f32>,
}

impl Config {
    /// Reads `config.json`, and `generation_config.json` if there is one, from a checkpoint's folder.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`] if the folder or the files cannot be read as JSON,
    /// [`Error::Config`] naming the field that describes no model that can be run.
    pub fn from_dir(dir: &Path) -> Result<Config> {
        let metadata = std::fs::metadata(dir).map_err(|e| Error::io(dir, e))?;
        if !metadata.is_dir() {
            return Err(Error::file(dir, "is no folder; give the folder that holds config.json"));
        }
        let path = dir.join("config.json");
        let bytes = file::read_bounded(&path, file::CONFIG_LIMIT)?;
        let generation = match file::read_bounded(&dir.join("generation_config.json"), file::CONFIG_LIMIT) {
            Ok(bytes) => Some(bytes),
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Config::from_json(&path, &bytes, generation.as_deref())
    }

    /// Parses the bytes of a `config.json` and, if given, of a `generation_config.json`. `path` is the
    /// name of the former in errors; nothing is read from it.
    ///
    /// # Errors
    /// As [`Config::from_dir`].
    pub fn from_json(path: &Path, bytes: &[u8], generation_config: Option<&[u8]>) -> Result<Config> {
        let map = json::parse_object(path, bytes)?;
        let fields = Fields { path, prefix: "", map: &map };
        let generation_path = path.with_file_name("generation_config.json");
        let generation = generation_config.map(|b| json::parse_object(&generation_path, b)).transpose()?;
        let generation = generation.as_ref().map(|map| Fields { path: &generation_path, prefix: "", map });
        Config::from_fields(&fields, generation.as_ref())
    }

    fn from_fields(fields: &Fields, generation: Option<&Fields>) -> Result<Config> {
        let model_type = match fields.text("model_type")? {
            Some("llama") => ModelType::Llama,
            Some("mistral") => ModelType::Mistral,
            Some(ENCODER) => {
                let reason = "is an encoder, trained to fill in masked tokens; it predicts no next token, so that there is nothing \
                              to decode: train with --objective next for that";
                return Err(fields.error("model_type", reason));
            }
            Some(other) => {
                let reason = format!("'{}' is not supported; it must be llama or mistral", printable(other));
                return Err(fields.error("model_type", reason));
            }
            None => return Err(fields.error("model_type", "is missing; it must be llama or mistral")),
        };
        let quantization = fields.object("quantization_config", "quantization_config.")?;
        let fp8_bound = quantization.as_ref().map(fp8_bound).transpose()?;
        match fields.text("hidden_act")? {
            None | Some("silu") => {}
            Some(other) => {
                let reason = format!("'{}' is not supported; it must be silu", printable(other));
                return Err(fields.error("hidden_act", reason));
            }
        }

        let layers = fields.whole("num_hidden_layers", None, 1..=limit::LAYERS)?;
        let hidden = fields.whole("hidden_size", None, 1..=limit::HIDDEN)?;
        let intermediate = fields.whole("intermediate_size", None, 1..=limit::INTERMEDIATE)?;
        let heads = fields.whole("num_attention_heads", None, 1..=limit::HEADS)?;
        let kv_heads = fields.whole("num_key_value_heads", Some(heads), 1..=limit::HEADS)?;
        if !heads.is_multiple_of(kv_heads) {
            let reason = format!("{kv_heads} does not divide num_attention_heads, {heads}");
            return Err(fields.error("num_key_value_heads", reason));
        }
        let head_dim = match fields.get("head_dim") {
            Some(_) => fields.whole("head_dim", None, 1..=limit::HEAD_DIM)?,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let reason =
                    format!("{heads} does not divide hidden_size, {hidden}, and there is no head_dim");
                return Err(fields.error("num_attention_heads", reason));
            }
        };
        if !head_dim.is_multiple_of(2) {
            let reason = format!("{head_dim} is odd; rotary embedding turns pairs");
            return Err(fields.error("head_dim", reason));
        }
        let vocab = fields.whole("vocab_size", None, 1..=limit::VOCAB)?;
        let max_positions = fields.whole("max_position_embeddings", Some(2048), 1..=limit::CONTEXT)?;
        let eps = fields.number("rms_norm_eps", Some(1e-6), 0.0..=1.0)?;
        // As f32, since a value that rounds to 0 there divides a row of zeros by 0.
        let rms_norm_eps = eps as f32;
        if rms_norm_eps <= 0.0 {
            return Err(fields.error("rms_norm_eps", format!("{eps} must be above 0")));
        }
        let rope = rope::parse(fields, head_dim, max_positions)?;
        let context = match rope.scaling {
            RopeScaling::Dynamic { factor } => ((max_positions as f64 * factor) as usize).min(limit::CONTEXT),
            _ => max_positions,
        };
        let eos = match generation.map(|g| token_ids(g, "eos_token_id")).transpose()?.flatten() {
            Some(ids) => ids,
            None => match fields.map.get("eos_token_id") {
                None => vec![2],
                Some(_) => token_ids(fields, "eos_token_id")?.unwrap_or_default(),
            },
        };
        let bos = match fields.map.get("bos_token_id") {
            None => Some(1),
            Some(Value::Null) => None,
            Some(value) => Some(token_id(fields, "bos_token_id", value)?),
        };
        let config = Config {
            model_type,
            layers,
            hidden,
            intermediate,
            heads,
            kv_heads,
            head_dim,
            vocab,
            context,
            max_positions,
            rms_norm_eps,
            rope,
            attention_bias: fields.flag("attention_bias", false)?,
            mlp_bias: fields.flag("mlp_bias", false)?,
            tied: fields.flag("tie_word_embeddings", false)?,
            masks: masks(fields, model_type, layers)?,
            bos,
            eos,
            dtype: ["dtype", "torch_dtype"]
                .iter()
                .find_map(|name| fields.get(name)?.as_str().and_then(dtype)),
            fp8_bound,
        };
        match config.checked_parameters() {
            Some(count) if count <= limit::PARAMETERS => Ok(config),
            _ => Err(fields.error("hidden_size", "the sizes multiply to more parameters than any model has")),
        }
    }

    /// Width of all query heads together: rows of `q_proj`, columns of `o_proj`.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads together, and of all value heads: rows of `k_proj` and of `v_proj`.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Refuses models without a layer whose feed-forward weights are quantised to fp8: the first and the last keep theirs.
    ///
    /// # Errors
    /// [`Error::Argument`].
    pub fn check_quantisable(&self) -> Result<()> {
        if self.layers > 2 {
            return Ok(());
        }
        let kept =
            format!("the first and the last layer stay as they are, and this model has {}", self.layers);
        Err(Error::argument("--fp8", format!("there is nothing to quantise: {kept}")))
    }

    /// The weights of the model, name and shape (`[rows, columns]` or `[length]`), in the order of a
    /// forward pass. A tied head is not among them. A checkpoint may hold other tensors; they are ignored.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> + '_ {
        let head = (!self.tied).then(|| (HEAD.to_owned(), vec![self.vocab, self.hidden]));
        std::iter::once((EMBEDDING.to_owned(), vec![self.vocab, self.hidden]))
            .chain((0..self.layers).flat_map(|layer| self.layer_tensors(layer)))
            .chain([(NORM.to_owned(), vec![self.hidden])])
            .chain(head)
    }

    /// The weights of one layer, as [`Config::tensors`] lists them.
    pub fn layer_tensors(&self, layer: usize) -> Vec<(String, Vec<usize>)> {
        let (hidden, query, kv, wide) = (self.hidden, self.query_width(), self.kv_width(), self.intermediate);
        let mut list = Vec::with_capacity(16);
        let mut norm = |name: &str| {
            list.push((format!("model.layers.{layer}.{name}.weight"), vec![hidden]));
        };
        norm("input_layernorm");
        norm("post_attention_layernorm");
        let mut linear = |name: &str, rows: usize, columns: usize, bias: bool| {
            list.push((format!("model.layers.{layer}.{name}.weight"), vec![rows, columns]));
            if bias {
                list.push((format!("model.layers.{layer}.{name}.bias"), vec![rows]));
            }
        };
        linear("self_attn.q_proj", query, hidden, self.attention_bias);
        linear("self_attn.k_proj", kv, hidden, self.attention_bias);
        linear("self_attn.v_proj", kv, hidden, self.attention_bias);
        linear("self_attn.o_proj", hidden, query, self.attention_bias);
        linear("mlp.gate_proj", wide, hidden, self.mlp_bias);
        linear("mlp.up_proj", wide, hidden, self.mlp_bias);
        linear("mlp.down_proj", hidden, wide, self.mlp_bias);
        list
    }

    /// Number of parameters. A tied head counts once.
    pub fn parameters(&self) -> u64 {
        self.checked_parameters().expect("bounded when the config was parsed")
    }

    fn checked_parameters(&self) -> Option<u64> {
        let mut layer = 0u64;
        for (_, shape) in self.layer_tensors(0) {
            layer = layer.checked_add(elements(&shape)?)?;
        }
        let heads = if self.tied { 1 } else { 2 };
        let vocabulary = elements(&[self.vocab, self.hidden, heads])?;
        layer.checked_mul(self.layers as u64)?.checked_add(vocabulary)?.checked_add(self.hidden as u64)
    }
}

/// `model_type` of the encoders that `warploom train --objective masked` leaves.
pub const ENCODER: &str = "llama_encoder";
/// Name of the token embedding.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the final norm.
pub const NORM: &str = "model.norm.weight";
/// Name of the head, where it is not the embedding.
pub const HEAD: &str = "lm_head.weight";

fn elements(shape: &[usize]) -> Option<u64> {
    shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n as u64))
}

/// The bound of activations of a `quantization_config`, which must be one that can be run.
fn fp8_bound(quantization: &Fields) -> Result<f32> {
    match quantization.text("quant_method")? {
        Some("fbgemm_fp8") => {}
        method => {
            let reason = format!(
                "quantisation '{}' is not supported; use a checkpoint in fbgemm_fp8 or with f32, f16 or bf16 weights",
                printable(method.unwrap_or("without a quant_method"))
            );
            return Err(quantization.error("quant_method", reason));
        }
    }
    let bound = quantization.number("activation_scale_ub", Some(f64::from(ACTIVATION_BOUND)), 1e-3..=1e30)?;
    match quantization.get("modules_to_not_convert") {
        None => {}
        Some(Value::Array(names)) if names.iter().all(Value::is_string) => {}
        Some(_) => return Err(quantization.error("modules_to_not_convert", "is no list of names")),
    }
    Ok(bound as f32)
}

/// A token id: a whole number that fits 32 bits.
fn token_id(fields: &Fields, name: &str, value: &Value) -> Result<u32> {
    value
        .as_u64()
        .and_then(|id| u32::try_from(id).ok())
        .ok_or_else(|| fields.error(name, format!("{} is no token id", printable(&value.to_string()))))
}

/// One token id or a list of them, if present and not `null`.
fn token_ids(fields: &Fields, name: &str) -> Result<Option<Vec<u32>>> {
    match fields.get(name) {
        None => Ok(None),
        Some(Value::Array(list)) if list.len() > limit::EOS_IDS => {
            Err(fields.error(name, format!("has {} ids; at most {} are taken", list.len(), limit::EOS_IDS)))
        }
        Some(Value::Array(list)) => {
            list.iter().map(|value| token_id(fields, name, value)).collect::<Result<_>>().map(Some)
        }
        Some(value) => Ok(Some(vec![token_id(fields, name, value)?])),
    }
}

/// The dtype of a name of torch's, for example `bfloat16` or `torch.bfloat16`.
fn dtype(name: &str) -> Option<Dtype> {
    match name.strip_prefix("torch.").unwrap_or(name) {
        "float32" => Some(Dtype::F32),
        "float16" => Some(Dtype::F16),
        "bfloat16" => Some(Dtype::Bf16),
        _ => None,
    }
}

/// The mask of each layer. `layer_types` says which layers have a window or chunks; without it Mistral's
/// `sliding_window` holds for all layers, and Llama's, as in transformers, for none.
fn masks(fields: &Fields, model_type: ModelType, layers: usize) -> Result<Vec<Mask>> {
    let width = |name: &str| -> Result<Option<usize>> {
        fields.get(name).map(|_| fields.whole(name, None, 1..=limit::CONTEXT)).transpose()
    };
    let window = width("sliding_window")?.map(|keys| Pattern::Window { keys });
    let chunk = width("attention_chunk_size")?.map(|keys| Pattern::Chunk { keys });
    let mask = |pattern| Mask { pattern, prefix: 0 };
    let Some(types) = fields.get("layer_types") else {
        let all = if model_type == ModelType::Mistral { window } else { None };
        return Ok(vec![mask(all.unwrap_or(Pattern::Causal)); layers]);
    };
    let Value::Array(types) = types else {
        return Err(fields.error("layer_types", format!("{} is no list", fields.shown("layer_types"))));
    };
    if types.len() != layers {
        let reason = format!("has {} entries for {layers} layers", types.len());
        return Err(fields.error("layer_types", reason));
    }
    let needs = |pattern: Option<Pattern>, kind: &str, name: &str| {
        pattern.ok_or_else(|| fields.error(name, format!("is missing, though layer_types has {kind}")))
    };
    types
        .iter()
        .map(|value| match value.as_str() {
            Some("full_attention") => Ok(Mask::CAUSAL),
            Some(kind @ "sliding_attention") => Ok(mask(needs(window, kind, "sliding_window")?)),
            Some(kind @ "chunked_attention") => Ok(mask(needs(chunk, kind, "attention_chunk_size")?)),
            _ => Err(fields.error(
                "layer_types",
                format!(
                    "{} is not supported; it must be full_attention, sliding_attention or chunked_attention",
                    printable(&value.to_string())
                ),
            )),
        })
        .collect()
}
