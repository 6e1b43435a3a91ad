//! All that a run needs to go on: `training.state`, a safetensors file with the weights in f32, both moments,
//! the monitors' windows and, as JSON in its metadata, counters, random positions and where the logs end.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    fingerprint::Fingerprint,
    output::LogEnd,
    settings::Settings,
    source::{CONFIG, retyped},
    tensors::{self, Entry, Values},
    trainer::Trainer,
};
use crate::{
    Error, Result,
    checkpoint::{Dtype, TensorFile},
    optimizer::AdamW,
};

/// Name of the file.
pub const STATE: &str = "training.state";

/// Bumped when the meaning of the file changes.
const FORMAT: u32 = 1;

/// Key of the JSON in the file's metadata.
const KEY: &str = "warploom.training";

/// Name of the tensor with the monitors' windows; no weight is called so.
const WINDOWS: &str = "windows";

/// What a run was begun with: it can only go on with the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Options and their values.
    pub recipe: Vec<(String, String)>,
    /// Hash of the text.
    pub text: u64,
    /// Hash of its tokens.
    pub tokens: u64,
    /// Hash of config.json and tokenizer.json as the run has written them, whatever the type of the weights.
    pub files: u64,
}

impl Origin {
    /// Of a run.
    pub fn new(settings: &Settings, text: &str, tokens: &[u32], files: &[(String, Vec<u8>)]) -> Self {
        let recipe = settings.recipe().into_iter().map(|(option, value)| (option.to_owned(), value));
        let mut hashes = [Fingerprint::EMPTY; 2];
        tokens.iter().for_each(|token| hashes[0].take(&token.to_le_bytes()));
        let mut files: Vec<_> = files.iter().collect();
        files.sort_unstable();
        for (name, bytes) in files {
            hashes[1].take(name.as_bytes());
            match name == CONFIG {
                true => hashes[1].take(&retyped(bytes, Dtype::Bf16)),
                false => hashes[1].take(bytes),
            }
        }
        Origin {
            recipe: recipe.collect(),
            text: Fingerprint::of(text.as_bytes()).0,
            tokens: hashes[0].0,
            files: hashes[1].0,
        }
    }

    /// Refuses to go on with anything but `self`.
    fn check(&self, now: &Origin, folder: &Path) -> Result<()> {
        for ((option, then), (_, value)) in self.recipe.iter().zip(&now.recipe) {
            if then != value {
                let reason = format!(
                    "is {value}, but the run in {} was begun with {then}; resume with what it was begun with \
                     (--threads, --save-every and --dtype may differ)",
                    folder.display()
                );
                return Err(Error::argument(option, reason));
            }
        }
        let differs = |what: &str| {
            let reason = format!("{what} is not the one that the run in {} was begun with", folder.display());
            Error::argument("--resume", reason)
        };
        if self.text != now.text {
            return Err(Error::argument(
                "--text",
                format!("is not the text that the run in {} was begun with", folder.display()),
            ));
        }
        if self.files != now.files {
            return Err(differs("config.json or a tokenizer file in the folder"));
        }
        if self.tokens != now.tokens || self.recipe.len() != now.recipe.len() {
            return Err(differs("the tokenization by this version of the program"));
        }
        Ok(())
    }
}

/// Sums of what was measured since the last line of the log, as bits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Steps, and the bits of the loss's sum.
    pub loss: (u64, u64),
    /// The same of each exit.
    pub exits: Vec<(u64, u64)>,
}

/// The JSON of the file.
#[derive(Clone, Serialize, Deserialize)]
struct Header {
    format: u32,
    origin: Origin,
    step: usize,
    adam_steps: u32,
    /// Positions in the random streams, in words.
    data: u64,
    dropout: u64,
    sums: Sums,
    counters: Vec<u64>,
    logs: Vec<LogEnd>,
    /// Hash of this, with 0 in its own place, and of all numbers in the file.
    digest: u64,
}

impl Header {
    /// The hash of this header, to which those of the numbers are to be added.
    fn begin_digest(&self, path: &Path) -> Result<Fingerprint> {
        let text = serde_json::to_string(&Header { digest: 0, ..self.clone() });
        Ok(Fingerprint::of(text.map_err(|error| Error::file(path, error.to_string()))?.as_bytes()))
    }
}

/// What a run goes on from beside its trainer.
pub struct Position {
    /// Words that the stream of data has given.
    pub data: u64,
    /// Of the log's next line.
    pub sums: Sums,
    /// Where each log ended.
    pub logs: Vec<LogEnd>,
}

/// Whether `folder` holds an unfinished run.
pub fn exists(folder: &Path) -> bool {
    fs::symlink_metadata(folder.join(STATE)).is_ok()
}

/// Sees that `folder` holds an unfinished run.
///
/// # Errors
/// [`Error::File`].
pub fn check(folder: &Path) -> Result<()> {
    match exists(folder) {
        true => Ok(()),
        false => Err(Error::file(
            folder.join(STATE),
            "does not exist: there is no run to resume (a finished one leaves none); begin one without --resume",
        )),
    }
}

/// Writes the state to `path`, which is renamed by the caller.
///
/// # Errors
/// [`Error::Io`].
pub fn write(path: &Path, trainer: &Trainer, origin: &Origin, position: Position) -> Result<()> {
    let mut header = Header {
        format: FORMAT,
        origin: origin.clone(),
        step: trainer.step,
        adam_steps: trainer.tensors[0].adam.steps(),
        data: position.data,
        dropout: words(&trainer.dropout_rng),
        sums: position.sums,
        counters: trainer.watch.counters(),
        logs: position.logs,
        digest: 0,
    };
    let mut digest = header.begin_digest(path)?;
    let windows = trainer.watch.numbers();
    digest.take(bytemuck::cast_slice(&windows));
    let mut entries =
        vec![Entry { name: WINDOWS.into(), shape: vec![windows.len()], values: Values::F64(&windows) }];
    let mut weights = &trainer.weights[..];
    for tensor in &trainer.tensors {
        let (m, v) = tensor.adam.moments();
        let (own, rest) = weights.split_at(m.len());
        weights = rest;
        for (kind, values) in [("weight", own), ("m", m), ("v", v)] {
            digest.take(bytemuck::cast_slice(values));
            entries.push(Entry {
                name: format!("{kind} {}", tensor.name),
                shape: tensor.shape.clone(),
                values: Values::F32(values),
            });
        }
    }
    header.digest = digest.0;
    let text = serde_json::to_string(&header).map_err(|error| Error::file(path, error.to_string()))?;
    tensors::write(path, &entries, &[(KEY, text)])
}

/// Reads the state of `folder` into `trainer`, which is that of a run from `origin`.
///
/// # Errors
/// [`Error::File`] for a file that is missing, cut or of another model, [`Error::Argument`] for one of another
/// run; the trainer must not be used then.
pub fn read(folder: &Path, trainer: &mut Trainer, origin: &Origin) -> Result<Position> {
    let path = folder.join(STATE);
    let file = TensorFile::open(&path)?;
    let bad = |reason: &str| Error::file(&path, format!("{reason}; it cannot be resumed from"));
    let text = file.text(KEY).ok_or_else(|| bad("is no state of a training run"))?;
    let header: Header = serde_json::from_str(text)
        .map_err(|error| bad(&format!("is a state that this version does not know ({error})")))?;
    if header.format != FORMAT {
        return Err(bad(&format!("is a state in format {}, this version has {FORMAT}", header.format)));
    }
    header.origin.check(origin, folder)?;
    if header.step > trainer.settings.steps {
        return Err(bad("is further than the run is long"));
    }
    let mut digest = header.begin_digest(&path)?;
    let windows = trainer.watch.numbers().len();
    let windows = file.bytes(WINDOWS, safetensors::Dtype::F64, &[windows]);
    let windows = windows.ok_or_else(|| bad("holds no windows of the monitors"))?;
    digest.take(windows);
    let mut values = |name: &str, shape: &[usize]| -> Result<Vec<f32>> {
        let bytes = file.bytes(name, safetensors::Dtype::F32, shape);
        let bytes = bytes.ok_or_else(|| bad(&format!("holds no {name} of the shape {shape:?}")))?;
        digest.take(bytes);
        Ok(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
    };
    let mut start = 0;
    for tensor in &mut trainer.tensors {
        let mut named = |kind: &str| values(&format!("{kind} {}", tensor.name), &tensor.shape);
        let weights = named("weight")?;
        trainer.weights[start..][..weights.len()].copy_from_slice(&weights);
        start += weights.len();
        let (m, v) = (named("m")?, named("v")?);
        tensor.adam = AdamW::with_moments(*tensor.adam.settings(), m, v, header.adam_steps)?;
    }
    if digest.0 != header.digest {
        return Err(bad("holds other numbers than were saved in it"));
    }
    let windows: Vec<f64> = windows.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b)).collect();
    if !trainer.watch.restore(&header.counters, &windows) {
        return Err(bad("has counters of other tensors"));
    }
    trainer.set_epsilon(trainer.watch.epsilon())?;
    if header.sums.exits.len() != trainer.config.layers {
        return Err(bad("has sums of other exits"));
    }
    trainer.step = header.step;
    trainer.dropout_rng.set_word_pos(header.dropout.into());
    Ok(Position { data: header.data, sums: header.sums, logs: header.logs })
}

/// Words that a stream has given; far below what 64 bits count.
pub fn words(rng: &rand_chacha::ChaCha8Rng) -> u64 {
    rng.get_word_pos() as u64
}
