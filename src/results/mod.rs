//! What benchmarks measured, as JSON files, one per device and date: written by the benchmarks and `scripts/compare-torch`, read by
//! `warploom report`.
//!
//! Start from [`Run`], the content of a file, and [`Row`], one measurement; [`Folder`] reads all of them. `benches/results/README.md`
//! documents the format. What is read is checked, down to shares that must follow from bytes and times: a file that somebody
//! edited or cut ends in one [`Error::File`].

mod cpu;
pub mod shapes;
pub mod targets;

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use cpu::{CpuModel, CpuRow, CpuRun};

use crate::error::{Error, Result, printable};

/// The format's version, in every file.
pub const SCHEMA: u32 = 1;
/// Most bytes of a file; real ones have a few hundred thousand.
const MOST_BYTES: u64 = 64 << 20;
/// How far a share may be from what its bytes and time say: decimal digits of another writer.
const ROUNDING: f64 = 1e-6;
/// The engine of this project's own rows.
pub const OURS: &str = "warploom";

/// One run of the benchmarks on one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The day on which it began, `YYYY-MM-DD`, UTC.
    pub date: String,
    /// The commit that was measured.
    pub commit: String,
    /// Whether the sources differed from it.
    pub dirty: bool,
    /// Whether it was a short run, of fewer shapes.
    pub quick: bool,
    /// What it ran on.
    pub device: Device,
    /// Clocks before the first measurement and after the last one; None where nothing tells them.
    pub clocks: Span,
    /// What the device can do: copies, reads, products of the vendor's library.
    pub ceilings: Vec<Row>,
    /// Single launches.
    pub kernels: Vec<Row>,
    /// Whole models.
    pub models: Vec<Row>,
    /// The same work by other libraries.
    pub peers: Vec<Row>,
}

/// What a run ran on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// What drives it.
    pub kind: Kind,
    /// Its name, as its driver has it.
    pub name: String,
    /// Compute capability, e.g. `9.0`; empty for a CPU.
    pub capability: String,
    /// Multiprocessors, or cores.
    pub multiprocessors: u32,
    /// Memory in bytes; 0 where it was not asked for.
    pub memory_bytes: u64,
    /// L2 cache in bytes; 0 where it was not asked for.
    pub l2_bytes: u64,
    /// Version of the driver.
    pub driver: Option<String>,
    /// Version of CUDA that the kernels were compiled with.
    pub cuda: Option<String>,
}

/// What drives a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A GPU.
    Cuda,
    /// The simulator: its times are the host's and say nothing.
    Sim,
    /// A CPU that stood in for a GPU, to try a script.
    Cpu,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Cuda => "cuda",
            Kind::Sim => "sim",
            Kind::Cpu => "cpu",
        }
    }
}

/// Clocks at both ends of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// Before the first measurement.
    pub before: Option<Clocks>,
    /// After the last one.
    pub after: Option<Clocks>,
}

/// What `nvidia-smi` says of clocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clocks {
    /// Of the multiprocessors, MHz.
    pub sm_mhz: f64,
    /// Of the memory, MHz.
    pub memory_mhz: f64,
    /// Power limit, W.
    pub power_limit_w: f64,
    /// Temperature, °C.
    pub temperature_c: f64,
    /// What holds the clocks down, as a bit mask of the driver's; `0x0000000000000000` for nothing.
    pub throttle: String,
}

/// One measurement: what was done, how often, how long it took, and which share of a ceiling that is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// What was done: a kernel, a kind of decoding, a ceiling.
    pub name: String,
    /// With which sizes. Rows of one name and shape did the same work.
    pub shape: String,
    /// Who did it: `warploom`, or a peer's name.
    pub engine: String,
    /// Measurements.
    pub samples: u32,
    /// How long one took; None where it failed.
    pub seconds: Option<Spread>,
    /// Bytes of device memory that it cannot do without moving.
    pub bytes: Option<u64>,
    /// Floating-point operations.
    pub flop: Option<u64>,
    /// Tokens that it gave.
    pub tokens: Option<u64>,
    /// Name of the row of [`Run::ceilings`] that its share is of.
    pub ceiling: Option<String>,
    /// Its rate over that of the ceiling.
    pub share: Option<f64>,
    /// What else must be known: `scripted` acceptance, for one.
    pub note: Option<String>,
    /// Why there is no time.
    pub error: Option<String>,
}

/// Where measurements lie, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// Half are at most this.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// A quarter are at most this.
    pub q1: f64,
    /// Three quarters are at most this.
    pub q3: f64,
}

impl Spread {
    /// Of times, in seconds; None of none.
    pub fn of(samples: &[f64]) -> Option<Spread> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        // Linear between the nearest two.
        let at = |share: f64| {
            let place = share * last as f64;
            let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Some(Spread { median: at(0.5), min: sorted[0], max: sorted[last], q1: at(0.25), q3: at(0.75) })
    }

    /// The distance of the quartiles over the median.
    pub fn relative_iqr(&self) -> f64 {
        (self.q3 - self.q1) / self.median
    }

    fn is_sound(&self) -> bool {
        let order = [self.min, self.q1, self.median, self.q3, self.max];
        order.iter().all(|x| x.is_finite() && *x > 0.0) && order.is_sorted()
    }
}

impl Row {
    /// A row of this project's with nothing measured yet.
    pub fn new(name: impl Into<String>, shape: impl Into<String>) -> Row {
        Row {
            name: name.into(),
            shape: shape.into(),
            engine: OURS.into(),
            samples: 0,
            seconds: None,
            bytes: None,
            flop: None,
            tokens: None,
            ceiling: None,
            share: None,
            note: None,
            error: None,
        }
    }

    /// What tells it from others of its section.
    fn key(&self) -> (&str, &str, &str) {
        (&self.engine, &self.name, &self.shape)
    }

    /// Bytes or FLOP in a second, of the median; of FLOP where the ceiling counts them.
    fn rate_against(&self, ceiling: &Row) -> Option<f64> {
        let work = if ceiling.flop.is_some() { self.flop } else { self.bytes };
        Some(work? as f64 / self.seconds?.median)
    }

    /// Bytes in a second.
    pub fn bytes_per_s(&self) -> Option<f64> {
        Some(self.bytes? as f64 / self.seconds?.median)
    }

    /// Floating-point operations in a second.
    pub fn flop_per_s(&self) -> Option<f64> {
        Some(self.flop? as f64 / self.seconds?.median)
    }

    /// Tokens in a second.
    pub fn tokens_per_s(&self) -> Option<f64> {
        Some(self.tokens? as f64 / self.seconds?.median)
    }

    /// Sets the share from the ceiling that it names, if that was measured.
    pub fn settle(&mut self, ceilings: &[Row]) {
        let ceiling = self.ceiling.as_deref().and_then(|name| find_ceiling(ceilings, name));
        self.share =
            ceiling.and_then(|ceiling| Some(self.rate_against(ceiling)? / ceiling.rate_against(ceiling)?));
    }

    /// What is wrong with it.
    fn fault(&self, ceilings: &[Row]) -> Option<String> {
        if [&self.name, &self.shape, &self.engine].iter().any(|text| text.is_empty()) {
            return Some("has no name, shape or engine".into());
        }
        match (&self.seconds, &self.error) {
            (None, None) => return Some("has neither a time nor an error".into()),
            (Some(_), Some(_)) => return Some("has both a time and an error".into()),
            (Some(spread), None) if !spread.is_sound() => {
                return Some("its seconds are not min ≤ q1 ≤ median ≤ q3 ≤ max, all over 0".into());
            }
            (Some(_), None) if self.samples == 0 => return Some("has a time of no samples".into()),
            _ => {}
        }
        let mut again = self.clone();
        again.settle(ceilings);
        match (self.share, again.share) {
            (None, None) => None,
            (Some(share), Some(follows)) if (share - follows).abs() <= ROUNDING * follows => None,
            (share, follows) => {
                let text = |share: Option<f64>| share.map_or("none".into(), |share| format!("{share:.6}"));
                Some(format!(
                    "its share is {}, but bytes or flop, seconds and ceiling give {}",
                    text(share),
                    text(follows)
                ))
            }
        }
    }
}

fn find_ceiling<'r>(ceilings: &'r [Row], name: &str) -> Option<&'r Row> {
    ceilings.iter().find(|row| row.name == name && row.seconds.is_some())
}

impl Run {
    /// The file of `device` and `date` below `results`.
    pub fn path(results: &Path, device: &str, date: &str) -> PathBuf {
        results.join(folder_name(device)).join(format!("{date}.json"))
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for what is no whole result of this format.
    pub fn read(path: &Path) -> Result<Run> {
        let bytes = read_bounded(path)?;
        Run::parse(path, &bytes)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Run> {
        let fail = |reason: String| {
            Err(Error::file(path, format!("is no result of this format: {reason}; {REMEDY}")))
        };
        let run: Run = match serde_json::from_slice(bytes) {
            Ok(run) => run,
            Err(error) => return fail(printable(&error.to_string())),
        };
        match run.fault() {
            Some(fault) => fail(printable(&fault)),
            None => Ok(run),
        }
    }

    fn fault(&self) -> Option<String> {
        if self.schema != SCHEMA {
            return Some(format!("schema {}; this version reads {SCHEMA}", self.schema));
        }
        if !is_date(&self.date) {
            return Some(format!("date \"{}\" is not YYYY-MM-DD", self.date));
        }
        if self.commit.is_empty() || self.device.name.is_empty() {
            return Some("the commit or the device has no name".into());
        }
        let sections = [
            ("ceilings", &self.ceilings),
            ("kernels", &self.kernels),
            ("models", &self.models),
            ("peers", &self.peers),
        ];
        for (name, rows) in sections {
            let mut seen = HashSet::new();
            for row in rows {
                let fault = match seen.insert(row.key()) {
                    true => row.fault(&self.ceilings),
                    false => Some("stands there twice".into()),
                };
                if let Some(fault) = fault {
                    return Some(format!("{name}: {} of {} on {}: {fault}", row.name, row.shape, row.engine));
                }
            }
        }
        None
    }

    /// Writes it to `path`, aside first, with the folders above it. Shares are settled anew.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, path: &Path) -> Result<()> {
        let ceilings = self.ceilings.clone();
        let rows = [&mut self.ceilings, &mut self.kernels, &mut self.models, &mut self.peers];
        rows.into_iter().flatten().for_each(|row| row.settle(&ceilings));
        let mut text = serde_json::to_string_pretty(self).map_err(|e| Error::file(path, e.to_string()))?;
        text.push('\n');
        write_aside(path, &text)
    }

    /// The rows of `section` of the same names, shapes and engines are replaced, others stay.
    pub fn put(section: &mut Vec<Row>, rows: impl IntoIterator<Item = Row>) {
        for row in rows {
            match section.iter_mut().find(|old| old.key() == row.key()) {
                Some(old) => *old = row,
                None => section.push(row),
            }
        }
    }

    /// Our row of that name and shape, if it was measured.
    pub fn ours<'r>(rows: &'r [Row], name: &str, shape: &str) -> Option<&'r Row> {
        rows.iter()
            .find(|row| row.engine == OURS && row.name == name && row.shape == shape && row.seconds.is_some())
    }

    /// The peers' rows of that name and shape that were measured.
    pub fn peers_of<'r>(&'r self, name: &'r str, shape: &'r str) -> impl Iterator<Item = &'r Row> {
        self.peers.iter().filter(move |row| row.name == name && row.shape == shape && row.seconds.is_some())
    }
}

/// What a reader can do about a file that is not right.
const REMEDY: &str = "restore it from version control, or delete it and measure again";

/// All results of a folder: the newest of each device.
#[derive(Clone, Debug, Default)]
pub struct Folder {
    /// Runs on GPUs.
    pub gpus: Vec<Run>,
    /// What `scripts/compare-transformers` measured on CPUs.
    pub cpus: Vec<CpuRun>,
}

impl Folder {
    /// Reads `results/<device>/<date>.json`, of each device the newest.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for any file, also an older one, that is no result, or a smoke run's.
    pub fn read(results: &Path) -> Result<Folder> {
        let mut folder = Folder::default();
        for device in sorted(results)?.into_iter().filter(|path| path.is_dir()) {
            let files =
                sorted(&device)?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "json"));
            let mut newest = None;
            for path in files {
                if path.file_stem().and_then(|name| name.to_str()).is_none_or(|name| !is_date(name)) {
                    return Err(Error::file(path, format!("is not named YYYY-MM-DD.json; {REMEDY}")));
                }
                newest = Some(read_either(&path)?);
            }
            match newest {
                Some(Either::Gpu(run)) => folder.gpus.push(*run),
                Some(Either::Cpu(run)) => folder.cpus.push(run),
                None => {}
            }
        }
        Ok(folder)
    }
}

enum Either {
    Gpu(Box<Run>),
    Cpu(CpuRun),
}

fn read_either(path: &Path) -> Result<Either> {
    let bytes = read_bounded(path)?;
    // What `scripts/compare-transformers` writes has a machine, not a device.
    let peek: Option<serde_json::Map<String, serde_json::Value>> = serde_json::from_slice(&bytes).ok();
    if peek.is_some_and(|object| object.contains_key("machine")) {
        return CpuRun::parse(path, &bytes).map(Either::Cpu);
    }
    let run = Run::parse(path, &bytes)?;
    if run.device.kind != Kind::Cuda {
        let kind = run.device.kind.name();
        let reason =
            format!("was written by a smoke run on {kind}, whose times say nothing of a GPU: delete it");
        return Err(Error::file(path, reason));
    }
    Ok(Either::Gpu(Box::new(run)))
}

fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let metadata = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !metadata.is_file() {
        return Err(Error::file(path, format!("is no regular file; {REMEDY}")));
    }
    let length = metadata.len();
    if length > MOST_BYTES {
        return Err(Error::file(
            path,
            format!("has {length} bytes; at most {MOST_BYTES} are read; {REMEDY}"),
        ));
    }
    fs::read(path).map_err(|e| Error::io(path, e))
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let io = |e| Error::io(folder, e);
    let entries = fs::read_dir(folder).map_err(io)?;
    let mut paths =
        entries.map(|entry| entry.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>().map_err(io)?;
    paths.sort();
    Ok(paths)
}

/// Writes a file aside and renames it, so that a reader never meets half of it; folders are made.
///
/// # Errors
/// [`Error::Io`].
pub fn write_aside(path: &Path, text: &str) -> Result<()> {
    let io = |e| Error::io(path, e);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(io)?;
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(".part");
    let aside = PathBuf::from(aside);
    fs::write(&aside, text).and_then(|()| fs::rename(&aside, path)).map_err(io)
}

/// A device's name as a folder's: `NVIDIA H100 80GB HBM3` is `nvidia-h100-80gb-hbm3`.
pub fn folder_name(device: &str) -> String {
    let mut name = String::new();
    for c in device.chars() {
        match c {
            c if c.is_ascii_alphanumeric() => name.push(c.to_ascii_lowercase()),
            _ if !name.ends_with('-') && !name.is_empty() => name.push('-'),
            _ => {}
        }
    }
    name.trim_end_matches('-').into()
}

fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 10
        && bytes
            .iter()
            .enumerate()
            .all(|(i, b)| if i == 4 || i == 7 { *b == b'-' } else { b.is_ascii_digit() })
}
