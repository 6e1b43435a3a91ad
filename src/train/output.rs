//! What a run leaves behind: a Hugging Face folder, logs, pictures, and until it is finished its state.

use std::{
    fs::{self, File, TryLockError},
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use half::f16;
use serde::{Deserialize, Serialize};

use super::{
    Validation,
    fingerprint::Fingerprint,
    monitor::{self, Watch},
    plot,
    settings::Settings,
    source::CONFIG,
    state::{self, Origin, Position, STATE},
    tensors::{self, Entry, Values},
    trainer::Trainer,
};
use crate::{
    Error, Result,
    checkpoint::{Dtype, NORM},
};

/// Name of the log of losses, which also tells the trainer's folders from others.
const LOG: &str = "log.csv";
/// Name of the log of the optimizer's monitor.
const MONITOR: &str = "monitor.csv";
/// Name of the log of alarms.
const ALARMS: &str = "alarms.csv";
/// Name of the log of histograms.
const HISTOGRAM: &str = "histogram.csv";
/// Name of the weights.
const MODEL: &str = "model.safetensors";

/// A log by what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogKind {
    /// Losses.
    Losses,
    /// What the optimizer's monitor measured, a line for each layer.
    Monitor,
    /// What it raised alarm about.
    Alarms,
    /// Histograms of r.
    Histograms,
}

/// Name, kind and header of every log that a run writes.
fn kinds(settings: &Settings) -> Vec<(&'static str, LogKind, String)> {
    let mut kinds = vec![
        (LOG, LogKind::Losses, header(settings.layers)),
        (MONITOR, LogKind::Monitor, Watch::header()),
        (ALARMS, LogKind::Alarms, monitor::ALARMS_HEADER.to_owned()),
    ];
    if settings.histogram_every > 0 {
        kinds.push((HISTOGRAM, LogKind::Histograms, Watch::histogram_header()));
    }
    kinds
}

/// Where a log ended when the state was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    name: String,
    bytes: u64,
    /// Hash of those bytes.
    hash: u64,
}

/// A log that grows line by line.
struct Log {
    kind: LogKind,
    path: PathBuf,
    file: File,
    bytes: u64,
    hash: Fingerprint,
}

impl Log {
    /// Opens a log that has at least the bytes that `end` says, and these.
    fn open(folder: &Path, kind: LogKind, end: &LogEnd) -> Result<Self> {
        let path = folder.join(&end.name);
        let io = |error| Error::io(&path, error);
        // Opening a FIFO would wait for somebody at its other end, and a link may lead anywhere.
        if !fs::symlink_metadata(&path).map_err(io)?.is_file() {
            return Err(Error::file(&path, "is no regular file, so not the log that the run has written"));
        }
        let mut file = File::options().read(true).write(true).open(&path).map_err(io)?;
        let (mut hash, mut left) = (Fingerprint::EMPTY, end.bytes);
        let mut block = vec![0; 1 << 16];
        while left > 0 {
            let want = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = file.read(&mut block[..want]).map_err(io)?;
            if count == 0 {
                let reason = format!("is shorter than when the run was saved: {} bytes are missing", left);
                return Err(Error::file(&path, reason));
            }
            hash.take(&block[..count]);
            left -= count as u64;
        }
        if hash.0 != end.hash {
            return Err(Error::file(&path, "is not the log that the run to be resumed has written"));
        }
        Ok(Log { kind, path, file, bytes: end.bytes, hash })
    }

    fn append(&mut self, text: &str) -> Result<()> {
        self.file.write_all(text.as_bytes()).map_err(|error| Error::io(&self.path, error))?;
        self.bytes += text.len() as u64;
        self.hash.take(text.as_bytes());
        Ok(())
    }
}

/// The folder of a run.
pub struct Output {
    folder: PathBuf,
    logs: Vec<Log>,
    /// Held as long as the run goes on.
    _lock: Option<File>,
}

/// Locks a folder against other runs, before anything in it is looked at for good: by a handle of its own, since files are renamed.
/// None where folders cannot be opened or locked; then nothing keeps two runs apart.
fn lock(folder: &Path) -> Result<Option<File>> {
    let Ok(handle) = File::open(folder) else { return Ok(None) };
    match handle.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::file(folder, "is being trained into by another process")),
        other => Ok(other.is_ok().then_some(handle)),
    }
}

impl Output {
    /// Refuses a folder that holds anything but the previous output of a finished run.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Io`].
    pub fn check(folder: &Path) -> Result<()> {
        let metadata = match fs::metadata(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| Error::io(folder, error))?,
        };
        if !metadata.is_dir() {
            return Err(Error::file(folder, "is no folder; give --out a new one"));
        }
        let mut entries = fs::read_dir(folder).map_err(|error| Error::io(folder, error))?;
        if entries.next().is_none() {
            return Ok(());
        }
        if !is_log(&folder.join(LOG)) {
            let reason = "is not empty and was not written by this command; give --out a new folder";
            return Err(Error::file(folder, reason));
        }
        if state::exists(folder) {
            let reason = "holds an unfinished run: go on with it by --resume, give --out a new folder, or remove this one";
            return Err(Error::file(folder, reason));
        }
        Ok(())
    }

    /// Creates the folder, or empties it of the previous output's logs and weights, and writes everything but
    /// the weights.
    ///
    /// # Errors
    /// [`Error::Io`], and those of [`Output::check`].
    pub fn create(folder: &Path, settings: &Settings, files: &[(String, Vec<u8>)]) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        let lock = lock(folder)?;
        Self::check(folder)?;
        // Old weights beside a new configuration would be a broken checkpoint. The log is written first: it
        // is what tells this folder from others, whenever the run is broken off.
        let mut ends = Vec::new();
        for (name, _, header) in kinds(settings) {
            write(folder, name, header.as_bytes())?;
            if name == LOG {
                for old in [MODEL, "loss.svg", "monitor.svg", HISTOGRAM] {
                    remove(&folder.join(old))?;
                }
            }
            let hash = Fingerprint::of(header.as_bytes()).0;
            ends.push(LogEnd { name: name.to_owned(), bytes: header.len() as u64, hash });
        }
        for (name, bytes) in files {
            write(folder, name, bytes)?;
        }
        Self::locked(folder, settings, &ends, lock)
    }

    /// The folder of a run that goes on: its logs are cut back to where they were when it was saved.
    ///
    /// # Errors
    /// [`Error::File`] for logs that are not those of the run; none has been cut then.
    pub fn open(folder: &Path, settings: &Settings, ends: &[LogEnd]) -> Result<Self> {
        Self::locked(folder, settings, ends, lock(folder)?)
    }

    fn locked(folder: &Path, settings: &Settings, ends: &[LogEnd], lock: Option<File>) -> Result<Self> {
        let mut logs = Vec::new();
        for (name, kind, _) in kinds(settings) {
            let end = ends.iter().find(|end| end.name == name);
            let end = end.ok_or_else(|| Error::file(folder.join(STATE), format!("knows of no {name}")))?;
            logs.push(Log::open(folder, kind, end)?);
        }
        for log in &mut logs {
            let cut = log.file.set_len(log.bytes).and_then(|()| log.file.seek(SeekFrom::Start(log.bytes)));
            cut.map_err(|error| Error::io(&log.path, error))?;
        }
        Ok(Output { folder: folder.to_path_buf(), logs, _lock: lock })
    }

    /// Writes config.json anew.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_config(&self, bytes: &[u8]) -> Result<()> {
        write(&self.folder, CONFIG, bytes)
    }

    /// Appends lines to a log; to one that the run does not write, nothing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&mut self, kind: LogKind, lines: &str) -> Result<()> {
        self.logs.iter_mut().filter(|log| log.kind == kind).try_for_each(|log| log.append(lines))
    }

    /// Where the logs end.
    pub fn ends(&self) -> Vec<LogEnd> {
        let end = |log: &Log| LogEnd {
            name: log.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            bytes: log.bytes,
            hash: log.hash.0,
        };
        self.logs.iter().map(end).collect()
    }

    /// Writes the state. From its renaming on, the run goes on from here; before, from the state before.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save_state(&self, trainer: &Trainer, origin: &Origin, position: Position) -> Result<()> {
        for log in &self.logs {
            log.file.sync_data().map_err(|error| Error::io(&log.path, error))?;
        }
        aside(&self.folder, STATE, |path| state::write(path, trainer, origin, position))
    }

    /// Writes the weights and the pictures, which follow from state and logs.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`].
    pub fn save_model(&self, trainer: &Trainer, dtype: Dtype) -> Result<()> {
        let tensors = trainer.graph.layout.tensors(&trainer.config);
        // The final norm's weight multiplies every logit of every exit.
        let factor = |name: &str| if name == NORM { trainer.settings.logit_scale } else { 1.0 };
        for tensor in tensors.iter().filter(|_| dtype == Dtype::F16) {
            let weights = &trainer.weights[tensor.range.clone()];
            let largest =
                factor(&tensor.name) * weights.iter().fold(0.0, |most: f32, weight| most.max(weight.abs()));
            if f16::from_f32(largest).is_infinite() {
                let reason = format!(
                    "f16 has no number as large as {largest} in {}; go on with --resume --dtype bf16 or f32",
                    tensor.name
                );
                return Err(Error::argument("--dtype", reason));
            }
        }
        let entries: Vec<Entry<'_>> = tensors
            .into_iter()
            .map(|tensor| {
                let factor = factor(&tensor.name);
                let values = Values::Rounded(&trainer.weights[tensor.range], factor, dtype);
                Entry { name: tensor.name, shape: tensor.shape, values }
            })
            .collect();
        let metadata = [("format", "pt".to_owned())];
        aside(&self.folder, MODEL, |path| tensors::write(path, &entries, &metadata))?;
        for (name, log, draw) in [
            ("loss.svg", LOG, plot::losses as fn(&str) -> Result<Option<String>>),
            ("monitor.svg", MONITOR, plot::monitor),
        ] {
            let path = self.folder.join(log);
            let text = fs::read_to_string(&path).map_err(|error| Error::io(&path, error))?;
            if let Some(svg) = draw(&text)? {
                write(&self.folder, name, svg.as_bytes())?;
            }
        }
        Ok(())
    }

    /// Removes the state of a run that is finished.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self) -> Result<()> {
        remove(&self.folder.join(STATE))
    }
}

/// Writes a file aside and renames it, so that a reader never meets half of it.
fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    aside(folder, name, |path| fs::write(path, bytes).map_err(|error| Error::io(path, error)))
}

/// Has a file written aside and renames it.
fn aside(folder: &Path, name: &str, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (aside, path) = (folder.join(format!(".{name}.part")), folder.join(name));
    let renamed =
        write(&aside).and_then(|()| fs::rename(&aside, &path).map_err(|error| Error::io(&path, error)));
    // The name lasts when the folder is on the disk; not every system has folders that can be synchronised.
    if renamed.is_ok()
        && let Ok(folder) = File::open(folder)
    {
        let _ = folder.sync_all();
    }
    renamed.inspect_err(|_| {
        // The error at hand matters more than one of the clean-up.
        let _ = fs::remove_file(&aside);
    })
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}

/// One line of `log.csv`: means since the line before; exits that no step trained are left blank.
pub struct LogLine<'a> {
    /// Steps done.
    pub step: usize,
    /// Tokens trained on.
    pub tokens: usize,
    /// Learning rate of the last step.
    pub learning_rate: f32,
    /// The loss that is minimised, in nats a token.
    pub loss: Option<f64>,
    /// Cross-entropy at each exit, in nats a token.
    pub exits: &'a [Option<f64>],
    /// Evaluation on the held-out text at this step.
    pub validation: Option<&'a Validation>,
}

impl LogLine<'_> {
    /// The line.
    pub fn text(&self) -> String {
        let mut text = format!("{},{},{:.6}", self.step, self.tokens, self.learning_rate);
        let number = |value: Option<f64>| value.map_or(String::from(","), |value| format!(",{value:.4}"));
        text += &number(self.loss);
        self.exits.iter().for_each(|&exit| text += &number(exit));
        for l in 0..self.exits.len() {
            text += &number(self.validation.map(|v| v.loss[l]));
        }
        for l in 0..self.exits.len() {
            text += &number(self.validation.map(|v| v.agreement[l]));
        }
        text.push('\n');
        text
    }
}

fn header(layers: usize) -> String {
    let columns = |name: &str| (1..=layers).map(|l| format!(",{name}_{l}")).collect::<String>();
    let (exits, validation, agreement) = (columns("exit"), columns("validation"), columns("agreement"));
    format!("step,tokens,learning_rate,loss{exits}{validation}{agreement}\n")
}

/// Whether `path` is a log of this trainer.
fn is_log(path: &Path) -> bool {
    let mut line = String::new();
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
        && File::open(path)
            .and_then(|file| BufReader::new(file.take(1 << 16)).read_line(&mut line))
            .is_ok_and(|_| line.starts_with("step,tokens,learning_rate,loss,exit_1"))
}
