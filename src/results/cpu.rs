//! What `scripts/compare-transformers` writes: decoding and prompts on a CPU, beside peers.

use std::path::Path;

use serde::Deserialize;

use super::{REMEDY, is_date};
use crate::error::{Error, Result, printable};

/// One comparison on one machine.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuRun {
    /// The day, from the file's name.
    pub date: String,
    /// The folder's name.
    pub device: String,
    /// The processor and its cores.
    pub machine: String,
    /// Type of the weights.
    pub dtype: String,
    /// Threads of every engine.
    pub threads: u64,
    /// Versions of the peers: name and version.
    pub versions: Vec<(String, String)>,
    /// In the file's order.
    pub models: Vec<CpuModel>,
}

/// A model of random weights.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuModel {
    /// `15M` or `110M`.
    pub name: String,
    /// In the file's order.
    pub rows: Vec<CpuRow>,
}

/// What an engine reached.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuRow {
    /// `decode 128`, `prefill 512`, …
    pub task: String,
    /// `warploom`, or a peer's name.
    pub engine: String,
    /// Tokens per second: median, smallest, largest.
    pub tokens_per_s: [f64; 3],
}

#[derive(Deserialize)]
struct File {
    machine: Machine,
    versions: serde_json::Map<String, serde_json::Value>,
    dtype: String,
    threads: u64,
    models: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Machine {
    cpu: String,
    cores: u64,
}

#[derive(Deserialize)]
struct Model {
    rows: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Entry {
    tokens_per_s: Vec<f64>,
    median: f64,
    smallest: f64,
    largest: f64,
}

impl Entry {
    /// The median is of these numbers, and so are the ends.
    fn is_sound(&self) -> bool {
        let mut all = self.tokens_per_s.clone();
        all.sort_by(f64::total_cmp);
        let (Some(first), Some(last)) = (all.first(), all.last()) else { return false };
        let middle = (all[(all.len() - 1) / 2] + all[all.len() / 2]) / 2.0;
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b;
        let finite = all.iter().all(|x| x.is_finite() && *x > 0.0);
        finite && near(self.median, middle) && near(self.smallest, *first) && near(self.largest, *last)
    }
}

impl CpuRun {
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<CpuRun> {
        let fail = |reason: &str| {
            let reason = printable(reason);
            Error::file(path, format!("is no result of scripts/compare-transformers: {reason}; {REMEDY}"))
        };
        let wrong = |error: serde_json::Error| fail(&error.to_string());
        let file: File = serde_json::from_slice(bytes).map_err(wrong)?;
        let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let mut models = vec![];
        for (name, model) in file.models {
            let Model { rows } = serde_json::from_value(model).map_err(wrong)?;
            let mut list = vec![];
            for (key, entry) in rows {
                let entry: Entry = serde_json::from_value(entry).map_err(wrong)?;
                let Some((engine, task)) = key.split_once(" | ") else {
                    return Err(fail(&format!("{name}: row \"{key}\" is not \"engine | task\"")));
                };
                if !entry.is_sound() {
                    return Err(fail(&format!(
                        "{name}: {key}: its median and ends are not those of its tokens_per_s"
                    )));
                }
                list.push(CpuRow {
                    task: task.into(),
                    engine: engine.into(),
                    tokens_per_s: [entry.median, entry.smallest, entry.largest],
                });
            }
            models.push(CpuModel { name, rows: list });
        }
        let versions =
            file.versions.into_iter().map(|(name, version)| (name, version.as_str().unwrap_or("?").into()));
        let date = text(path.file_stem());
        debug_assert!(is_date(&date));
        Ok(CpuRun {
            date,
            device: text(path.parent().and_then(Path::file_name)),
            machine: format!("{}, {} cores", file.machine.cpu, file.machine.cores),
            dtype: file.dtype,
            threads: file.threads,
            versions: versions.collect(),
            models,
        })
    }
}
