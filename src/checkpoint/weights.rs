//! A checkpoint's weights: where each tensor lies, in one file or in shards, checked once when opened.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

use super::{
    Config, EMBEDDING, HEAD,
    file::{self, Storage},
    safetensors,
};
use crate::error::{Error, Result};

/// Bytes that [`Checkpoint::prefetch`] reads between two reports.
const PREFETCH_STEP: usize = 16 << 20;
/// Smallest page size of the supported systems: reading one byte in each touches every page.
const PAGE: usize = 4096;

/// Name of the one file of weights that is not sharded.
const SINGLE: &str = "model.safetensors";
/// Name of the list of the files of weights that are.
const INDEX: &str = "model.safetensors.index.json";

/// Whether there is anything at `path`; a dangling link counts, so that opening it gives the system's error.
fn exists(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

/// Type of a tensor's elements as stored, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16: the upper half of a single.
    Bf16,
}

impl Dtype {
    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// The dtype that `config.json` calls `name`, for example `bfloat16` or `torch.bfloat16`.
    pub(super) fn from_torch(name: &str) -> Option<Dtype> {
        match name.strip_prefix("torch.").unwrap_or(name) {
            "float32" => Some(Dtype::F32),
            "float16" => Some(Dtype::F16),
            "bfloat16" => Some(Dtype::Bf16),
            _ => None,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        })
    }
}

/// One weight where it lies in its file. Cheap to clone: clones share the file's map.
#[derive(Clone)]
pub struct Tensor {
    dtype: Dtype,
    rows: usize,
    columns: usize,
    storage: Storage,
    range: Range<usize>,
}

impl Tensor {
    /// Type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Rows of a matrix (output features of a projection); 1 for a vector.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of a matrix (input features of a projection); the length of a vector.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The elements, row by row, little-endian: `rows · columns · dtype.size()` bytes.
    ///
    /// They start wherever the file has them, so do not assume an alignment.
    pub fn bytes(&self) -> &[u8] {
        &self.storage.bytes()[self.range.clone()]
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {}×{})", self.dtype, self.rows, self.columns)
    }
}

/// A model's configuration and its weights, all of which are present and of the right shape.
pub struct Checkpoint {
    /// What the model is.
    pub config: Config,
    /// The folder, or a name for weights that are part of the program; for errors.
    path: PathBuf,
    files: Vec<WeightFile>,
    /// File (index into `files`) of each tensor of the model.
    places: HashMap<String, usize>,
}

/// An opened safetensors file.
struct WeightFile {
    path: PathBuf,
    storage: Storage,
    /// Where the data begins; offsets in `metadata` count from here.
    data: usize,
    metadata: ::safetensors::tensor::Metadata,
}

impl WeightFile {
    fn new(path: PathBuf, storage: Storage) -> Result<Self> {
        let (data, metadata) = safetensors::parse(&path, storage.bytes())?;
        Ok(WeightFile { path, storage, data, metadata })
    }
}

impl Checkpoint {
    /// Opens a folder with `config.json` and either `model.safetensors` or
    /// `model.safetensors.index.json` and its shards.
    ///
    /// Weights are mapped, not read; see [`Checkpoint::prefetch`]. The files must not change while the
    /// checkpoint is in use: reading a file that was shortened ends the process with SIGBUS.
    ///
    /// # Errors
    /// As [`Config::from_dir`]; [`Error::File`] for a file that is no valid safetensors or index;
    /// [`Error::Tensor`] for a weight that is missing, misshapen or of a type that cannot be run.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        let config = Config::from_dir(dir)?;
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if exists(&single) {
            let file = WeightFile::new(single.clone(), Storage::map(&single)?)?;
            let places = file.metadata.offset_keys().into_iter().map(|name| (name, 0)).collect();
            return Checkpoint::checked(config, dir.to_owned(), vec![file], places);
        }
        if !exists(&index) {
            let reason = "holds neither model.safetensors nor model.safetensors.index.json; \
                          only safetensors weights are read (convert others with transformers' save_pretrained)";
            return Err(Error::file(dir, reason));
        }
        let weight_map =
            safetensors::parse_index(&index, &file::read_bounded(&index, file::HEADER_LIMIT)?)?.weight_map;
        let shards: BTreeSet<&String> = weight_map.values().collect();
        let mut files = Vec::new();
        let mut numbers = HashMap::new();
        for shard in shards {
            let path = dir.join(shard);
            numbers.insert(shard.clone(), files.len());
            files.push(WeightFile::new(path.clone(), Storage::map(&path)?)?);
        }
        let places = weight_map.into_iter().map(|(tensor, shard)| (tensor, numbers[&shard])).collect();
        Checkpoint::checked(config, dir.to_owned(), files, places)
    }

    /// Whether `dir` holds weights, valid or not; a folder may hold a `config.json` alone.
    pub fn has_weights(dir: &Path) -> bool {
        exists(&dir.join(SINGLE)) || exists(&dir.join(INDEX))
    }

    /// A checkpoint that is part of the program: the bytes of its `config.json`,
    /// `generation_config.json` and `model.safetensors`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(
        config: &[u8],
        generation_config: Option<&[u8]>,
        weights: &'static [u8],
    ) -> Result<Checkpoint> {
        let path = PathBuf::from("(built-in model)");
        let config = Config::from_json(&path.join("config.json"), config, generation_config)?;
        let file = WeightFile::new(path.join("model.safetensors"), Storage::Static(weights))?;
        let places = file.metadata.offset_keys().into_iter().map(|name| (name, 0)).collect();
        Checkpoint::checked(config, path, vec![file], places)
    }

    /// Checks every weight of the model, so that none can fail later, and forgets stray tensors.
    fn checked(
        config: Config,
        path: PathBuf,
        files: Vec<WeightFile>,
        mut places: HashMap<String, usize>,
    ) -> Result<Checkpoint> {
        let mut known = HashMap::new();
        for (name, _) in config.tensors() {
            if let Some((name, file)) = places.remove_entry(&name) {
                known.insert(name, file);
            }
        }
        let checkpoint = Checkpoint { config, path, files, places: known };
        for (name, shape) in checkpoint.config.tensors() {
            checkpoint.tensor(&name, &shape)?;
        }
        Ok(checkpoint)
    }

    /// The weight `name`, which must have exactly `shape`: one or two dimensions.
    ///
    /// Weights that [`Config::tensors`] lists cannot fail; others are not kept.
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is missing, of another shape, or neither f32, f16 nor bf16.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let fail = |path: &Path, reason: String| Error::Tensor {
            path: path.to_owned(),
            tensor: name.to_owned(),
            reason,
        };
        let missing = |path: &Path| {
            let hint = if name == HEAD {
                ", and tie_word_embeddings is not true in config.json, so the embedding cannot stand in"
            } else {
                ""
            };
            fail(path, format!("is missing{hint}"))
        };
        let file = self.places.get(name).map(|&file| &self.files[file]).ok_or_else(|| {
            // A single file is the one at fault; of several, their folder.
            missing(if let [file] = &self.files[..] { &file.path } else { &self.path })
        })?;
        let info = file.metadata.info(name).ok_or_else(|| missing(&file.path))?;
        if info.shape != shape {
            // A hostile header may list any number of dimensions: show the first few.
            let dots = if info.shape.len() > 8 { ", …" } else { "" };
            let found: Vec<String> = info.shape.iter().take(8).map(ToString::to_string).collect();
            return Err(fail(
                &file.path,
                format!("has shape [{}{dots}], but config.json asks for {shape:?}", found.join(", ")),
            ));
        }
        let dtype = match info.dtype {
            ::safetensors::Dtype::F32 => Dtype::F32,
            ::safetensors::Dtype::F16 => Dtype::F16,
            ::safetensors::Dtype::BF16 => Dtype::Bf16,
            other => {
                return Err(fail(
                    &file.path,
                    format!("has dtype {other:?}, which is not supported; it must be F32, F16 or BF16"),
                ));
            }
        };
        let (rows, columns) = match *shape {
            [columns] => (1, columns),
            [rows, columns] => (rows, columns),
            _ => return Err(fail(&file.path, format!("has {} dimensions instead of 1 or 2", shape.len()))),
        };
        // The header's parser has held offsets to the file's length and to the shape.
        let range = file.data + info.data_offsets.0..file.data + info.data_offsets.1;
        Ok(Tensor { dtype, rows, columns, storage: file.storage.clone(), range })
    }

    /// The head, `[vocab, hidden]`: `lm_head.weight`, or the embedding if they are tied.
    pub fn head(&self) -> Result<Tensor> {
        let name = if self.config.tied { EMBEDDING } else { HEAD };
        self.tensor(name, &[self.config.vocab, self.config.hidden])
    }

    /// Reads all weight files once, so that the first tokens do not wait for the disk. Reports the bytes
    /// read so far and those of all files to `progress`.
    pub fn prefetch(&self, progress: &mut dyn FnMut(u64, u64)) {
        let total = self.files.iter().map(|file| file.storage.bytes().len() as u64).sum();
        let mut done = 0;
        progress(done, total);
        for file in &self.files {
            file.storage.will_need();
            for step in file.storage.bytes().chunks(PREFETCH_STEP) {
                for page in step.chunks(PAGE) {
                    std::hint::black_box(page[0]);
                }
                done += step.len() as u64;
                progress(done, total);
            }
        }
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
