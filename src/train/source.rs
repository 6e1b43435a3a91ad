//! What a run begins with: a model's configuration, its tokenizer, and its weights if it has been trained
//! before. From scratch the first two are made, with `--from` they are another checkpoint's.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    Plan,
    data::{Corpus, Marks},
    objective::Objective,
    parameters::Layout,
    settings::Settings,
    tokenizer,
};
use crate::{
    Error, Result,
    checkpoint::{Checkpoint, Config, Dtype, EMBEDDING, ENCODER},
    mask::{Mask, Pattern},
    text::Tokenizer,
};

/// Largest file beside the weights that is taken over.
const LARGEST_FILE: u64 = 64 << 20;

pub(super) const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Other files of a checkpoint's folder that belong to it and say nothing of the weights.
const OTHERS: [&str; 3] = ["special_tokens_map.json", "chat_template.jinja", "chat_template.json"];

/// The model and tokenizer of a run.
pub struct Source {
    /// What the model is.
    pub config: Config,
    /// The checkpoint's tokenizer.
    pub tokenizer: Tokenizer,
    /// The tokens between documents.
    pub marks: Marks,
    /// Type of the weights to be saved.
    pub dtype: Dtype,
    /// Every file of the folder but the weights: name and content.
    pub files: Vec<(String, Vec<u8>)>,
    checkpoint: Option<Checkpoint>,
}

impl Source {
    /// The tokens of `documents` to train on.
    ///
    /// # Errors
    /// Those of [`Corpus::new`].
    pub fn corpus(&self, documents: &[&str], settings: &Settings) -> Result<Corpus> {
        Corpus::new(documents, &self.tokenizer, self.marks, settings.sequence, settings.documents)
    }

    /// A new model, with a tokenizer learned from `documents`.
    ///
    /// # Errors
    /// Those of [`tokenizer::learn`], and [`Error::Argument`] or [`Error::Config`] for a shape that no model has.
    pub fn scratch(documents: &[&str], settings: &Settings) -> Result<Self> {
        let learned = tokenizer::learn(documents, settings.vocab, settings.objective)?;
        let text = learned
            .to_string(false)
            .map_err(|error| Error::Text { what: TOKENIZER.into(), reason: error.to_string() })?;
        let dtype = settings.dtype.unwrap_or(Dtype::Bf16);
        let files = vec![
            (CONFIG.to_owned(), pretty(&config_json(settings, dtype))),
            (GENERATION_CONFIG.to_owned(), pretty(&generation_config(settings))),
            (TOKENIZER_CONFIG.to_owned(), pretty(&tokenizer_config(settings))),
            (TOKENIZER.to_owned(), text.into_bytes()),
        ];
        Self::of_files(files, dtype, settings)
    }

    /// The model in the folder `dir`, to be trained further.
    ///
    /// # Errors
    /// Those of the checkpoint's and the tokenizer's loader; [`Error::Argument`] for settings of another shape;
    /// [`Error::Config`] for weights in fp8.
    pub fn open(dir: &Path, settings: &Settings) -> Result<Self> {
        let checkpoint = Checkpoint::open(dir)?;
        let config = &checkpoint.config;
        if config.fp8_bound.is_some() {
            return Err(Error::Config {
                path: dir.join(CONFIG),
                field: "quantization_config".into(),
                reason: "weights in fp8 cannot be trained; give the checkpoint in f32, f16 or bf16".into(),
            });
        }
        settings.fits(config, dir)?;
        Plan::new(settings, Some(config)).check()?;
        let stored = checkpoint.tensor(EMBEDDING, &[config.vocab, config.hidden])?.dtype();
        let dtype = settings.dtype.unwrap_or(stored);
        let mut files = read_files(dir)?;
        for (_, bytes) in files.iter_mut().filter(|(name, _)| name == CONFIG) {
            *bytes = patched(dir, bytes, config, dtype, settings.attention)?;
        }
        let mut source = Self::of_files(files, dtype, settings)?;
        source.checkpoint = Some(checkpoint);
        Ok(source)
    }

    /// What an earlier run of the same settings has left in `folder`.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn resumed(folder: &Path, settings: &Settings) -> Result<Self> {
        let mut files = read_files(folder)?;
        let bytes = read_file(&folder.join(CONFIG))?.unwrap_or_default();
        let config = parse(&folder.join(CONFIG), &bytes, None)?;
        settings.fits(&config, folder)?;
        Plan::new(settings, Some(&config)).check()?;
        let dtype = settings.dtype.or(config.dtype).unwrap_or(Dtype::Bf16);
        for (_, bytes) in files.iter_mut().filter(|(name, _)| name == CONFIG) {
            *bytes = retyped(bytes, dtype);
        }
        Self::of_files(files, dtype, settings)
    }

    fn of_files(files: Vec<(String, Vec<u8>)>, dtype: Dtype, settings: &Settings) -> Result<Self> {
        let find = |name: &str| files.iter().find(|(file, _)| file == name).map(|(_, bytes)| &bytes[..]);
        let missing = |name: &str| Error::Text {
            what: name.to_owned(),
            reason: "does not exist; a model is trained further with its own tokenizer".to_owned(),
        };
        let bytes = find(CONFIG).ok_or_else(|| missing(CONFIG))?;
        let mut config = parse(Path::new(CONFIG), bytes, find(GENERATION_CONFIG))?;
        mask_all(&mut config, settings.attention);
        let json = find(TOKENIZER).ok_or_else(|| missing(TOKENIZER))?;
        let tokenizer = Tokenizer::from_bytes(json, find(TOKENIZER_CONFIG), config.vocab)?;
        let marks = marks(&config, &tokenizer)?;
        Ok(Source { config, tokenizer, marks, dtype, files, checkpoint: None })
    }

    /// The weights that training begins with, in f32.
    ///
    /// # Errors
    /// Those of [`Layout::read`]; none to begin with is an [`Error::File`].
    pub fn weights(&self, dir: &Path) -> Result<Vec<f32>> {
        let checkpoint = self.checkpoint.as_ref().ok_or_else(|| Error::file(dir, "holds no weights"))?;
        Layout::new(&self.config).read(checkpoint, dir)
    }
}

/// The configuration of a model from scratch.
///
/// # Errors
/// [`Error::Config`] for a shape that no model has.
pub fn config(settings: &Settings) -> Result<Config> {
    let json = pretty(&config_json(settings, Dtype::Bf16));
    let mut config = parse(Path::new(CONFIG), &json, None)?;
    mask_all(&mut config, settings.attention);
    Ok(config)
}

/// A model's configuration; of an encoder, which nothing but the trainer runs, as of the Llama whose shape it has.
fn parse(path: &Path, bytes: &[u8], generation: Option<&[u8]>) -> Result<Config> {
    match serde_json::from_slice::<Value>(bytes) {
        Ok(mut json) if json["model_type"] == ENCODER => {
            json["model_type"] = json!("llama");
            Config::from_json(path, &pretty(&json), generation)
        }
        // What is no JSON, the loader says best.
        _ => Config::from_json(path, bytes, generation),
    }
}

/// Gives every layer the mask `mask`, unless it is the model's own: overlapping chunks and sinks have no field
/// in config.json, and a model that is trained further may get another one.
fn mask_all(config: &mut Config, mask: Mask) {
    if config.masks[0] != mask {
        config.masks.fill(mask);
    }
}

/// The tokens between documents: what the tokenizer begins a text with and the first end of sequence, one
/// standing in for the other where a model has only one.
fn marks(config: &Config, tokenizer: &Tokenizer) -> Result<Marks> {
    let known = |id: &u32| (*id as usize) < config.vocab;
    let end = config.eos.iter().copied().find(known);
    let begin = tokenizer.leading_ids().first().copied().or(config.bos).filter(known).or(end);
    let end = end.or(begin);
    match (begin, end) {
        (Some(begin), Some(end)) => Ok(Marks { begin, end }),
        _ => Err(Error::Config {
            path: CONFIG.into(),
            field: "bos_token_id".into(),
            reason: "there is neither a begin nor an end token, and documents need one between them".into(),
        }),
    }
}

/// The files of `dir` that a run takes over.
fn read_files(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let names = [CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG].into_iter().chain(OTHERS);
    let mut files = Vec::new();
    for name in names {
        if let Some(bytes) = read_file(&dir.join(name))? {
            files.push((name.to_owned(), bytes));
        }
    }
    for needed in [CONFIG, TOKENIZER] {
        if !files.iter().any(|(name, _)| name == needed) {
            let reason =
                "does not exist; a model is trained further with its own configuration and tokenizer";
            return Err(Error::file(dir.join(needed), reason));
        }
    }
    Ok(files)
}

/// A regular file of bounded size; None if there is no such file.
fn read_file(path: &PathBuf) -> Result<Option<Vec<u8>>> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| Error::io(path, error))?,
    };
    if !metadata.is_file() || metadata.len() > LARGEST_FILE {
        return Err(Error::file(path, format!("is no regular file of at most {} MiB", LARGEST_FILE >> 20)));
    }
    let file = fs::File::open(path).map_err(|error| Error::io(path, error))?;
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE).read_to_end(&mut bytes).map_err(|error| Error::io(path, error))?;
    Ok(Some(bytes))
}

/// config.json of a model that is trained further: its own, with the new type of the weights and, where it
/// changes, the new mask.
fn patched(dir: &Path, bytes: &[u8], config: &Config, dtype: Dtype, mask: Mask) -> Result<Vec<u8>> {
    let path = dir.join(CONFIG);
    let mut json: Value = serde_json::from_slice(bytes)
        .map_err(|error| Error::file(&path, format!("is not the JSON expected: {error}")))?;
    let Some(fields) = json.as_object_mut() else {
        return Err(Error::file(&path, "is JSON, but no object"));
    };
    set_dtype(fields, dtype);
    if config.masks[0] != mask {
        for field in ["sliding_window", "attention_chunk_size", "layer_types"] {
            fields.remove(field);
        }
        fields.extend(mask_fields(mask, config.layers));
    }
    Ok(pretty(&json))
}

/// A config.json that says so of the type of the weights; one that is none is as it was.
pub(super) fn retyped(bytes: &[u8], dtype: Dtype) -> Vec<u8> {
    let Ok(mut json) = serde_json::from_slice::<Value>(bytes) else { return bytes.to_vec() };
    if let Some(fields) = json.as_object_mut() {
        set_dtype(fields, dtype);
    }
    pretty(&json)
}

/// transformers 5 writes `dtype`, earlier ones `torch_dtype`.
fn set_dtype(fields: &mut serde_json::Map<String, Value>, dtype: Dtype) {
    let field = if fields.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    fields.insert(field.to_owned(), json!(torch_name(dtype)));
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        _ => "bfloat16",
    }
}

/// The fields of config.json that say which mask the layers have; none for what has no field.
fn mask_fields(mask: Mask, layers: usize) -> serde_json::Map<String, Value> {
    let mut fields = serde_json::Map::new();
    if mask.prefix > 0 {
        return fields;
    }
    let (name, kind, keys) = match mask.pattern {
        Pattern::Window { keys } => ("sliding_window", "sliding_attention", keys),
        Pattern::Chunk { keys } => ("attention_chunk_size", "chunked_attention", keys),
        _ => return fields,
    };
    fields.insert(name.to_owned(), json!(keys));
    fields.insert("layer_types".to_owned(), json!(vec![kind; layers]));
    fields
}

fn config_json(settings: &Settings, dtype: Dtype) -> Value {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": settings.layers,
        "hidden_size": settings.hidden,
        "intermediate_size": settings.intermediate,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.kv_heads,
        "head_dim": settings.head_dim(),
        "vocab_size": settings.vocab,
        "max_position_embeddings": settings.context,
        "rms_norm_eps": Settings::RMS_NORM_EPS,
        "rope_theta": Settings::ROPE_THETA,
        "rope_scaling": null,
        "hidden_act": "silu",
        "attention_bias": false,
        "attention_dropout": 0.0,
        "mlp_bias": false,
        "tie_word_embeddings": true,
        "initializer_range": 0.02,
        "bos_token_id": settings.vocab - 2,
        "eos_token_id": settings.vocab - 1,
        "torch_dtype": torch_name(dtype),
        "use_cache": true,
    });
    if let Some(fields) = config.as_object_mut() {
        fields.extend(mask_fields(settings.attention, settings.layers));
    }
    if settings.objective == Objective::Masked {
        // A name of its own: what runs Llamas would run this one causally, and be wrong without a word.
        config["architectures"] = json!(["LlamaForMaskedLM"]);
        config["model_type"] = json!(ENCODER);
        config["is_decoder"] = json!(false);
        config["use_cache"] = json!(false);
        config["mask_token_id"] = json!(settings.vocab - 3);
        config["attention"] = json!(settings.attention.to_string());
    }
    config
}

fn generation_config(settings: &Settings) -> Value {
    json!({ "bos_token_id": settings.vocab - 2, "eos_token_id": settings.vocab - 1 })
}

fn tokenizer_config(settings: &Settings) -> Value {
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer::BEGIN,
        "eos_token": tokenizer::END,
        "clean_up_tokenization_spaces": false,
        "model_max_length": settings.context,
    });
    match settings.objective {
        // The model has seen no dialogue: turns are paragraphs for it to continue.
        Objective::Next => {
            config["chat_template"] = json!(
                "{{ bos_token }}{% for message in messages %}{{ message['content'] | trim }}\n\n{% endfor %}"
            );
        }
        Objective::Masked => config["mask_token"] = json!(tokenizer::MASK),
    }
    config
}
