//! The lines that reports name: of the PTX file, and of the CUDA files that it was made from, where they are found.

use std::{
    collections::HashMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use ptxsim::{Finding, LineProfile, Module};

use super::output::printable;

/// Bytes of the longest PTX or CUDA file that is read.
const LIMIT: u64 = 256 << 20;

/// Reads a text file that a user names.
pub fn read(path: &Path) -> Result<String, String> {
    let error = |reason: String| format!("{}: {reason}", printable(&path.to_string_lossy()));
    let metadata = fs::metadata(path).map_err(|e| error(e.to_string()))?;
    if metadata.is_dir() {
        return Err(error("a folder; name the .ptx file in it".into()));
    }
    // A device or a pipe tells no length.
    let mut bytes = vec![];
    let read = fs::File::open(path).and_then(|file| file.take(LIMIT + 1).read_to_end(&mut bytes));
    if read.map_err(|e| error(e.to_string()))? as u64 > LIMIT {
        return Err(error(format!("more than the {LIMIT} bytes that are read at most")));
    }
    String::from_utf8(bytes).map_err(|_| error("not text; PTX is made by nvcc --ptx".into()))
}

/// The source files of a module, read when they are first needed.
pub struct Sources<'a> {
    module: &'a Module,
    ptx: Vec<&'a str>,
    folders: Vec<PathBuf>,
    files: HashMap<u32, Option<Vec<String>>>,
}

impl<'a> Sources<'a> {
    /// Those of a module whose text was read from `path`. CUDA files are looked for where the module says, beside `path`
    /// and in `folders`.
    pub fn new(module: &'a Module, text: &'a str, path: &Path, folders: &[PathBuf]) -> Self {
        let mut all = vec![path.parent().unwrap_or(Path::new("")).to_path_buf()];
        all.extend_from_slice(folders);
        Sources { module, ptx: text.lines().collect(), folders: all, files: HashMap::new() }
    }

    /// `race.cu:12`, or `PTX line 40` for file 0.
    pub fn name(&self, (file, line): (u32, u32)) -> String {
        match self.module.file(file) {
            Some(name) => {
                let name = Path::new(name).file_name().map_or(name.into(), |n| n.to_string_lossy());
                format!("{}:{line}", printable(&name))
            }
            None => format!("PTX line {line}"),
        }
    }

    /// A line of the PTX file, its blanks made single.
    pub fn ptx(&self, line: u32) -> String {
        let text = (line as usize).checked_sub(1).and_then(|i| self.ptx.get(i));
        printable(&text.map_or(vec![], |text| text.split_whitespace().collect()).join(" "))
    }

    /// A line of a source file, empty if the file is not there; of the PTX file for file 0.
    pub fn text(&mut self, (file, line): (u32, u32)) -> String {
        if file == 0 {
            return self.ptx(line);
        }
        let (module, folders) = (self.module, &self.folders);
        let lines = self.files.entry(file).or_insert_with(|| {
            let name = Path::new(module.file(file)?);
            let beside = folders.iter().flat_map(|folder| {
                let last = name.file_name().map(|last| folder.join(last));
                [Some(folder.join(name)), last].into_iter().flatten()
            });
            let text = std::iter::once(name.to_path_buf()).chain(beside).find_map(|path| read(&path).ok())?;
            Some(text.lines().map(str::to_string).collect())
        });
        let text = lines.as_ref().and_then(|lines| lines.get((line as usize).checked_sub(1)?));
        printable(text.map_or("", |text| text.trim()))
    }

    /// File and line of a finding: the file in which a line of that number ran.
    pub fn place(&self, finding: &Finding, profile: &[LineProfile]) -> (u32, u32) {
        if finding.line == finding.ptx_line {
            return (0, finding.line);
        }
        let file = profile.iter().map(|p| p.source).find(|(file, line)| *file != 0 && *line == finding.line);
        file.unwrap_or((1, finding.line))
    }
}
