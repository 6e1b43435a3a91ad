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
    fp8::{self, ACTIVATION_BOUND, Fp8},
    safetensors,
};
use crate::{
    dtype::Dtype,
    error::{Error, Result},
};

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

/// One weight where it lies in its file. Cheap to clone: clones share the file's map.
#[derive(Clone)]
pub struct Tensor {
    dtype: Dtype,
    rows: usize,
    columns: usize,
    storage: Storage,
    range: Range<usize>,
    /// Of e4m3 alone.
    fp8: Option<Fp8>,
}

impl Tensor {
    /// A matrix of e4m3 codes.
    pub(super) fn e4m3(storage: Storage, range: Range<usize>, rows: usize, columns: usize, fp8: Fp8) -> Self {
        Tensor { dtype: Dtype::E4m3, rows, columns, storage, range, fp8: Some(fp8) }
    }

    /// The scales of a matrix in e4m3; None for other types.
    pub fn fp8(&self) -> Option<&Fp8> {
        self.fp8.as_ref()
    }

    /// Bytes that a pass reads of it: elements and scales.
    pub fn size(&self) -> usize {
        self.range.len() + self.fp8.as_ref().map_or(0, |fp8| 4 * fp8.scales.len())
    }

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
    /// Whether feed-forward weights are quantised when a model takes them.
    to_fp8: bool,
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

/// Any safetensors file, by name: for files that are no checkpoints.
#[cfg(feature = "train")]
pub(crate) struct TensorFile(WeightFile);

#[cfg(feature = "train")]
impl TensorFile {
    /// Maps a file and checks its header; see [`Checkpoint::open`] for what must not happen to it meanwhile.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::File`] for a file that is no whole safetensors file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(TensorFile(WeightFile::new(path.to_owned(), Storage::map(path)?)?))
    }

    /// An entry of the header's metadata.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.0.metadata.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// The elements of a tensor of this type and shape, little-endian.
    pub(crate) fn bytes(&self, name: &str, dtype: ::safetensors::Dtype, shape: &[usize]) -> Option<&[u8]> {
        let info = self.0.metadata.info(name).filter(|info| info.dtype == dtype && info.shape == shape)?;
        let (start, end) = info.data_offsets;
        self.0.storage.bytes().get(self.0.data + start..self.0.data + end)
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
            let scales = scales_of(&name);
            for name in [name, scales] {
                if let Some((name, file)) = places.remove_entry(&name) {
                    known.insert(name, file);
                }
            }
        }
        let checkpoint = Checkpoint { config, path, files, places: known, to_fp8: false };
        for (name, shape) in checkpoint.config.tensors() {
            checkpoint.tensor(&name, &shape)?;
        }
        Ok(checkpoint)
    }

    /// Whether models take the feed-forward weights in e4m3, quantised when they are loaded, but for those of the first and of
    /// the last layer (arXiv 2407.21783, section 6). Weights that are e4m3 on disk are so either way.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is nothing to quantise: in a model of fewer than three layers, or where all is e4m3 on
    /// disk.
    pub fn set_fp8(&mut self, fp8: bool) -> Result<()> {
        self.to_fp8 = false;
        if !fp8 {
            return Ok(());
        }
        self.config.check_quantisable()?;
        self.to_fp8 = true;
        for (name, shape) in self.config.tensors() {
            if self.quantises(&name) && self.tensor(&name, &shape)?.dtype != Dtype::E4m3 {
                return Ok(());
            }
        }
        self.to_fp8 = false;
        let reason =
            "there is nothing to quantise: the feed-forward weights of this checkpoint are fp8 already";
        Err(Error::argument("--fp8", reason))
    }

    /// The weight `name` as a model takes it: as it is stored, or quantised ([`Checkpoint::set_fp8`]). The codes of
    /// e4m3 are looked through for NaN.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`]; [`Error::Tensor`] for e4m3 that holds NaN, and for a weight to quantise that is not finite
    /// or finds no memory.
    pub fn weight(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.tensor(name, shape)?;
        let named = |result| fp8::named(&self.path, name, result);
        if tensor.dtype == Dtype::E4m3 {
            let numbers = fp8::check_numbers(&tensor);
            return named(if numbers { Ok(tensor) } else { Err("holds NaN".into()) });
        }
        if self.quantises(name) {
            let bound = self.config.fp8_bound.unwrap_or(ACTIVATION_BOUND);
            return named(fp8::quantise(&tensor, bound));
        }
        Ok(tensor)
    }

    /// What [`Checkpoint::weight`] will give of `tensor`, the weight `name`: its type and what a pass reads of it in bytes.
    pub fn loaded(&self, name: &str, tensor: &Tensor) -> (Dtype, usize) {
        match tensor.dtype != Dtype::E4m3 && self.quantises(name) {
            true => (Dtype::E4m3, tensor.rows * (tensor.columns + 4)),
            false => (tensor.dtype, tensor.size()),
        }
    }

    fn quantises(&self, name: &str) -> bool {
        self.to_fp8
            && feed_forward_layer(name).is_some_and(|layer| layer > 0 && layer + 1 < self.config.layers)
    }

    /// The weight `name`, which must have exactly `shape`: one or two dimensions.
    ///
    /// Weights that [`Config::tensors`] lists cannot fail; others are not kept.
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is missing, of another shape, or neither f32, f16 nor bf16; nor e4m3, in a feed-forward
    /// matrix of an `fbgemm_fp8` checkpoint, with a scale over 0 for each row in `weight_scale`.
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
            ::safetensors::Dtype::F8_E4M3 => {
                let fp8 = self.fp8_of(name, file, shape)?;
                let range = file.data + info.data_offsets.0..file.data + info.data_offsets.1;
                return Ok(Tensor::e4m3(file.storage.clone(), range, shape[0], shape[1], fp8));
            }
            other => {
                return Err(fail(
                    &file.path,
                    format!(
                        "has dtype {other:?}, which is not supported; it must be F32, F16 or BF16, or F8_E4M3 with scales"
                    ),
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
        Ok(Tensor { dtype, rows, columns, storage: file.storage.clone(), range, fp8: None })
    }

    /// What belongs to `name`, which `file` holds in e4m3.
    fn fp8_of(&self, name: &str, file: &WeightFile, shape: &[usize]) -> Result<Fp8> {
        let fail = |reason: &str| fp8::refuse(&file.path, name, reason.into());
        let Some(bound) = self.config.fp8_bound else {
            return Err(fail(
                "has dtype F8_E4M3, but config.json has no quantization_config that says how to read it",
            ));
        };
        if feed_forward_layer(name).is_none() || shape.len() != 2 {
            return Err(fail(
                "has dtype F8_E4M3, which is supported for gate_proj, up_proj and down_proj alone (the others belong in \
                 modules_to_not_convert)",
            ));
        }
        let scales_name = scales_of(name);
        let Some(&index) = self.places.get(&scales_name) else {
            return Err(fail("has dtype F8_E4M3, but its scales, weight_scale, are missing"));
        };
        let of_file = &self.files[index];
        let found = of_file.metadata.info(&scales_name).map(|info| info.shape.as_slice());
        let shape = if found == Some(&[shape[0]]) { vec![shape[0]] } else { vec![shape[0], 1] };
        let tensor = self.tensor(&scales_name, &shape)?;
        let scales = fp8::named(&of_file.path, &scales_name, fp8::read_scales(&tensor))?;
        Ok(Fp8 { scales, bound })
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

/// The name of the scales of `weight`.
fn scales_of(weight: &str) -> String {
    format!("{weight}_scale")
}

/// The layer whose feed-forward matrix `name` is; None for other weights.
pub(super) fn feed_forward_layer(name: &str) -> Option<usize> {
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let matrix = rest.strip_prefix("mlp.")?;
    let is_matrix = ["gate_proj.weight", "up_proj.weight", "down_proj.weight"].contains(&matrix);
    layer.parse().ok().filter(|_| is_matrix)
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
