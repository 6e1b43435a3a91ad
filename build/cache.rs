//! Compiled kernel files, kept by the contents of everything that went into them.
//!
//! A file's key is a hash of the compile options, the compilers' versions and the contents of every file that nvcc read for it, as
//! its dependency file of the last compilation lists them. What is found under a key is never changed; a new entry is written
//! aside and renamed. The cache lies in cargo's target folder, so that builds with other features or profiles find it, too.

use std::{
    collections::HashMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    sync::Mutex,
    time::SystemTime,
};

/// Entries kept of a kernel file: branches and architectures that one goes back and forth between.
const KEPT: usize = 8;

/// What nvcc made of a kernel file.
pub struct Object {
    pub fatbin: Vec<u8>,
    pub ptx: String,
    /// What nvcc wrote.
    pub output: String,
    /// Files that it read.
    pub dependencies: Vec<PathBuf>,
}

pub struct Cache {
    folder: PathBuf,
    /// Hashes of files' contents: headers are read once.
    contents: Mutex<HashMap<PathBuf, u64>>,
}

impl Cache {
    /// Opens the one that belongs to a build.
    pub fn open(out_dir: &Path) -> Result<Cache, String> {
        // Cargo marks its target folder as one that may be deleted.
        let target = out_dir.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
        let folder = target.unwrap_or(out_dir).join("warploom-kernels");
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Cache { folder, contents: Mutex::default() })
    }

    /// What was kept of a file under these options, if nothing that went into it has changed.
    pub fn find(&self, stem: &str, options: &str) -> Option<Object> {
        let list = fs::read_to_string(self.list(stem, options)).ok()?;
        let dependencies: Vec<PathBuf> = list.lines().map(PathBuf::from).collect();
        let entry = self.folder.join(self.key(stem, options, &dependencies)?);
        Some(Object {
            fatbin: fs::read(entry.join("fatbin")).ok()?,
            ptx: fs::read_to_string(entry.join("ptx")).ok()?,
            output: fs::read_to_string(entry.join("output")).ok()?,
            dependencies,
        })
    }

    /// Keeps what was compiled, from sources that have not been written since `begun`.
    pub fn keep(&self, stem: &str, options: &str, object: &Object, begun: SystemTime) -> io::Result<()> {
        // A file written while nvcc ran: which of its contents went into the object is unknown.
        let changed =
            |path: &PathBuf| path.metadata().and_then(|meta| meta.modified()).is_ok_and(|time| time >= begun);
        if object.dependencies.iter().any(changed) {
            return Ok(());
        }
        let Some(key) = self.key(stem, options, &object.dependencies) else { return Ok(()) };
        let part = self.folder.join(format!("{key}.part{}", std::process::id()));
        fs::create_dir_all(&part)?;
        fs::write(part.join("fatbin"), &object.fatbin)?;
        fs::write(part.join("ptx"), &object.ptx)?;
        fs::write(part.join("output"), &object.output)?;
        let entry = self.folder.join(&key);
        if fs::rename(&part, &entry).is_err() {
            // There is one already: of another build at the same time, or damaged, since it was not found.
            let _ = fs::remove_dir_all(&entry);
            if fs::rename(&part, &entry).is_err() {
                fs::remove_dir_all(&part)?;
            }
        }
        let list: String = object.dependencies.iter().map(|path| format!("{}\n", path.display())).collect();
        let part = self.folder.join(format!("{key}.list{}", std::process::id()));
        fs::write(&part, list)?;
        fs::rename(&part, self.list(stem, options))?;
        self.remove_old(stem)
    }

    /// Where the dependencies of the last compilation are listed.
    fn list(&self, stem: &str, options: &str) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        options.hash(&mut hasher);
        self.folder.join(format!("{stem}-{:016x}.dependencies", hasher.finish()))
    }

    fn key(&self, stem: &str, options: &str, dependencies: &[PathBuf]) -> Option<String> {
        let mut hasher = DefaultHasher::new();
        options.hash(&mut hasher);
        for path in dependencies {
            path.hash(&mut hasher);
            self.content(path)?.hash(&mut hasher);
        }
        Some(format!("{stem}-{:016x}", hasher.finish()))
    }

    fn content(&self, path: &Path) -> Option<u64> {
        let mut contents = self.contents.lock().ok()?;
        if let Some(&hash) = contents.get(path) {
            return Some(hash);
        }
        let mut hasher = DefaultHasher::new();
        fs::read(path).ok()?.hash(&mut hasher);
        contents.insert(path.to_owned(), hasher.finish());
        Some(hasher.finish())
    }

    fn remove_old(&self, stem: &str) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            // `stem-0123456789abcdef`
            if name.to_string_lossy().rsplit_once('-').is_some_and(|(s, key)| s == stem && key.len() == 16) {
                entries.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        entries.sort_unstable();
        for (_, path) in entries.iter().rev().skip(KEPT) {
            fs::remove_dir_all(path)?;
        }
        Ok(())
    }
}

/// The files that a dependency file in make's syntax names, in order and each once.
pub fn dependencies(makefile: &str) -> Vec<PathBuf> {
    let joined = makefile.replace("\\\n", " ");
    let (_, list) = joined.split_once(" : ").or_else(|| joined.split_once(": ")).unwrap_or_default();
    let mut names: Vec<String> = Vec::new();
    let mut glue = false;
    for word in list.split_whitespace() {
        let (text, escaped) = word.strip_suffix('\\').map_or((word, false), |text| (text, true));
        match names.last_mut().filter(|_| glue) {
            Some(name) => *name = format!("{name} {text}"),
            None => names.push(text.to_string()),
        }
        glue = escaped;
    }
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(PathBuf::from).collect()
}
