//! What a device gave, as a file.
//!
//! A recording is one gzip stream: a line of JSON that says whose results these are and lists the cases, then the outputs
//! in the same order. An output is stored by byte planes (the lowest byte of every element, then the next): that packs about
//! a third smaller. `zcat FILE | head -n 1` shows the line.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use flate2::{Compression, bufread::GzDecoder, write::GzEncoder};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Outcome, Result, Runner,
    cases::{Case, Suite},
};

/// A recording's name ends so.
const ENDING: &str = "recording.gz";
const FORMAT: &str = "ptxsim-conformance 1";
/// More than this, unpacked, is no recording.
const MOST_BYTES: u64 = 256 << 20;

/// Whose results a recording holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The device's name as its driver gives it.
    pub device: String,
    /// Such as `9.0`; None for the simulator.
    pub compute_capability: Option<String>,
    /// The driver's version and the newest CUDA that it runs; None for the simulator.
    pub driver: Option<String>,
    /// What was run: the kernels as machine code, or as PTX that the driver compiled.
    pub code: String,
    /// Day of the recording, UTC.
    pub date: String,
}

impl Identity {
    /// The date that an [`Identity`] of now has.
    pub fn today() -> String {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        date(seconds / 86400)
    }

    /// A file name for it.
    pub fn file_name(&self) -> String {
        let mut name = String::new();
        for c in self.device.chars() {
            match c.to_ascii_lowercase() {
                c if c.is_ascii_alphanumeric() => name.push(c),
                _ if !name.ends_with('-') => name.push('-'),
                _ => {}
            }
        }
        format!("{}.{ENDING}", name.trim_matches('-'))
    }
}

/// The Gregorian date so many days after 1970-01-01.
fn date(mut days: u64) -> String {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    format!("{year}-{:02}-{:02}", month + 1, days + 1)
}

/// One device's results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// Whose.
    pub identity: Identity,
    /// By case.
    pub cases: HashMap<String, Recorded>,
}

/// One case's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// [`Case::fingerprint`] of what ran.
    pub fingerprint: u64,
    /// What came out.
    pub outcome: Outcome,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    #[serde(flatten)]
    identity: Identity,
    cases: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    case: String,
    fingerprint: String,
    element_bytes: usize,
    bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    not_run: Option<String>,
}

impl Recording {
    /// Runs all cases.
    ///
    /// # Errors
    /// Those of [`Runner::run`].
    pub fn of(runner: &mut dyn Runner, suite: &Suite) -> Result<Recording> {
        let mut cases = HashMap::new();
        for case in &suite.cases {
            let outcome = runner.run(case)?;
            cases.insert(case.name.clone(), Recorded { fingerprint: case.fingerprint(), outcome });
        }
        Ok(Recording { identity: runner.identity().clone(), cases })
    }

    /// What a case gave; [`Outcome::NotRun`] if it is missing or was recorded in another form.
    pub fn outcome(&self, case: &Case) -> Outcome {
        match self.cases.get(&case.name) {
            None => Outcome::NotRun("added since the recording".into()),
            Some(recorded) if recorded.fingerprint != case.fingerprint() => {
                Outcome::NotRun("changed since the recording".into())
            }
            Some(recorded) => recorded.outcome.clone(),
        }
    }

    /// Writes it into a folder, which is made if need be, and returns the file's path. A file that was there is replaced.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write(&self, suite: &Suite, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(self.identity.file_name());
        let part = path.with_extension("part");
        let written = fs::create_dir_all(folder).and_then(|()| fs::write(&part, self.pack(suite)?));
        let written = written.and_then(|()| fs::rename(&part, &path));
        match written {
            Ok(()) => Ok(path),
            Err(source) => {
                let _ = fs::remove_file(&part);
                Err(Error::File { path, source })
            }
        }
    }

    fn pack(&self, suite: &Suite) -> std::io::Result<Vec<u8>> {
        let mut planes = vec![];
        let mut cases = vec![];
        for case in &suite.cases {
            let Some(recorded) = self.cases.get(&case.name) else { continue };
            let element_bytes = case.output_bits as usize / 8;
            let (bytes, not_run) = match &recorded.outcome {
                Outcome::Output(output) => {
                    for plane in 0..element_bytes {
                        planes.extend(output.iter().skip(plane).step_by(element_bytes));
                    }
                    (output.len(), None)
                }
                Outcome::NotRun(why) => (0, Some(why.clone())),
            };
            let fingerprint = format!("{:016x}", recorded.fingerprint);
            cases.push(Entry { case: case.name.clone(), fingerprint, element_bytes, bytes, not_run });
        }
        let header = Header { format: FORMAT.into(), identity: self.identity.clone(), cases };
        let mut encoder = GzEncoder::new(vec![], Compression::best());
        serde_json::to_writer(&mut encoder, &header)?;
        encoder.write_all(b"\n")?;
        encoder.write_all(&planes)?;
        encoder.finish()
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Error::File`], or [`Error::Recording`] if it is none.
    pub fn read(path: &Path) -> Result<Recording> {
        let file = File::open(path).map_err(|source| Error::File { path: path.into(), source })?;
        Recording::unpack(file).map_err(|message| Error::Recording { path: path.into(), message })
    }

    fn unpack(file: File) -> std::result::Result<Recording, String> {
        let broken =
            |what: &dyn std::fmt::Display| format!("not a conformance recording, or a damaged one: {what}");
        let mut stream = BufReader::new(GzDecoder::new(BufReader::new(file)).take(MOST_BYTES));
        let mut line = vec![];
        stream.read_until(b'\n', &mut line).map_err(|e| broken(&e))?;
        let header: Header = serde_json::from_slice(&line).map_err(|e| broken(&e))?;
        if header.format != FORMAT {
            return Err(format!("format {:?}; this program reads {FORMAT:?}", header.format));
        }
        let mut rest = vec![];
        stream.read_to_end(&mut rest).map_err(|e| broken(&e))?;
        let mut planes = rest.as_slice();
        let mut cases = HashMap::new();
        for entry in header.cases {
            let (bytes, size) = (entry.bytes, entry.element_bytes);
            let fingerprint = u64::from_str_radix(&entry.fingerprint, 16).map_err(|e| broken(&e))?;
            let outcome = match entry.not_run {
                Some(why) => Outcome::NotRun(why),
                None => {
                    let shape = size != 0 && bytes.is_multiple_of(size);
                    let output = planes.split_off(..bytes).filter(|_| shape);
                    let output = output
                        .ok_or_else(|| broken(&format!("the output of {:?} is cut off", entry.case)))?;
                    let count = bytes / size;
                    Outcome::Output((0..bytes).map(|i| output[i % size * count + i / size]).collect())
                }
            };
            cases.insert(entry.case, Recorded { fingerprint, outcome });
        }
        if !planes.is_empty() {
            return Err(broken(&format!("{} bytes too many", planes.len())));
        }
        Ok(Recording { identity: header.identity, cases })
    }
}

/// The recordings of a folder, by name; none if it does not exist.
///
/// # Errors
/// Those of [`Recording::read`].
pub fn recordings(folder: &Path) -> Result<Vec<(PathBuf, Recording)>> {
    let failed = |source| Error::File { path: folder.into(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(failed(e)),
    };
    let mut paths = vec![];
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(ENDING)) {
            paths.push(path);
        }
    }
    paths.sort();
    paths.into_iter().map(|path| Recording::read(&path).map(|recording| (path, recording))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let days = [0, 58, 59, 10956, 11015, 11016, 20779];
        let expected = [
            "1970-01-01",
            "1970-02-28",
            "1970-03-01",
            "1999-12-31",
            "2000-02-28",
            "2000-02-29",
            "2026-11-22",
        ];
        assert_eq!(days.map(date), expected);
    }
}
