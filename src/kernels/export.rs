//! The kernels as files, for programs that load CUDA modules themselves.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use super::{FAMILIES, Manifest, manifest};
use crate::error::{Error, Result, printable};

/// The name of the manifest, without which a folder is no export.
const MANIFEST: &str = "manifest.json";
/// Where files lie until all of them are written.
const ASIDE: &str = ".warploom-export";

macro_rules! headers {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../cuda/include/", $name)))),*]
    };
}

/// The headers of C, all of them.
pub(super) const HEADERS: &[(&str, &str)] = headers![
    "warploom.h",
    "wl_accept.h",
    "wl_adamw.h",
    "wl_attention_decode.h",
    "wl_attention_prefill.h",
    "wl_common.h",
    "wl_embed.h",
    "wl_gemm.h",
    "wl_linear.h",
    "wl_params.h",
    "wl_quantize_fp8_rows.h",
    "wl_rms_norm.h",
    "wl_rope_append.h",
    "wl_round.h",
    "wl_sample.h",
    "wl_swiglu.h",
];

/// Writes the kernels of this build to a folder: of each module a fatbin and PTX, the headers with the parameter structs,
/// and manifest.json, the [`Manifest`], which is returned.
///
/// The folder is made, or is empty, or holds an earlier export, which is replaced. All files are written aside first,
/// and the manifest comes last: as long as there is none, the folder is no export.
///
/// # Errors
/// [`Error::File`] for a folder that holds anything else or that another export is writing, [`Error::Io`] if it cannot be written,
/// and those of [`manifest()`].
pub fn export(folder: &Path) -> Result<Manifest> {
    let manifest = manifest()?;
    let mut text = serde_json::to_string_pretty(&manifest)
        .map_err(|error| Error::file(folder.join(MANIFEST), error.to_string()))?;
    text.push('\n');
    let mut files: Vec<(String, &[u8])> = vec![];
    for family in FAMILIES {
        files.push((format!("{}.fatbin", family.name), family.fatbin));
        files.push((format!("{}.ptx", family.name), family.ptx.as_bytes()));
    }
    files.extend(HEADERS.iter().map(|(name, text)| (name.to_string(), text.as_bytes())));
    files.push((MANIFEST.into(), text.as_bytes()));

    let names: BTreeSet<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    if folder.is_file() {
        return Err(Error::file(folder, "is a file; name a new folder"));
    }
    let is_new = !folder.exists();
    fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    let _alone = alone(folder)?;
    let old = earlier(folder, &names)?;
    // What this version has no more.
    let mut old: Vec<String> = old.into_iter().collect();
    old.retain(|name| !names.contains(name.as_str()) && name != ASIDE);
    let old: Vec<PathBuf> = old.iter().map(|name| folder.join(name)).collect();
    let aside = folder.join(ASIDE);
    if let Err(error) = write(&aside, &files) {
        // The error at hand matters more than one of the clean-up.
        let _ = fs::remove_dir_all(&aside);
        if is_new {
            let _ = fs::remove_dir(folder);
        }
        return Err(error);
    }
    replace(folder, &aside, &files, &old)?;
    Ok(manifest)
}

/// Keeps other exports out of a folder for as long as what it returns is there. Folders cannot be locked everywhere; where they cannot,
/// it keeps out none.
fn alone(folder: &Path) -> Result<Option<fs::File>> {
    let Ok(file) = fs::File::open(folder) else { return Ok(None) };
    match file.try_lock() {
        Err(fs::TryLockError::WouldBlock) => {
            Err(Error::file(folder, "another export is writing it; wait for that, or name another folder"))
        }
        _ => Ok(Some(file)),
    }
}

/// The files of the export that a folder holds, none of an empty one.
fn earlier(folder: &Path, ours: &BTreeSet<&str>) -> Result<BTreeSet<String>> {
    let name = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry?;
        Ok((entry.file_name().to_string_lossy().into_owned(), entry.file_type()?.is_dir()))
    };
    let entries = fs::read_dir(folder).map_err(|error| Error::io(folder, error))?;
    let entries: Vec<(String, bool)> =
        entries.map(name).collect::<std::io::Result<_>>().map_err(|error| Error::io(folder, error))?;
    if let Some((name, _)) = entries.iter().find(|(name, is_folder)| *is_folder && name != ASIDE) {
        let reason =
            format!("holds the folder {}, which is of no export; name a new folder", printable(name));
        return Err(Error::file(folder, reason));
    }
    let found: BTreeSet<String> = entries.into_iter().map(|(name, _)| name).collect();
    let mut known = listed(&folder.join(MANIFEST));
    // Where one was broken off, it had come to the files that are to be written now.
    if found.contains(ASIDE) {
        known.extend(ours.iter().map(|name| name.to_string()));
    }
    match found.iter().find(|name| !known.contains(*name) && *name != ASIDE) {
        None => Ok(found),
        Some(other) => {
            let reason =
                format!("holds {}, which is of no earlier export; name a new folder", printable(other));
            Err(Error::file(folder, reason))
        }
    }
}

/// The files of the export that a manifest describes, itself included; none of what is no manifest.
fn listed(path: &Path) -> BTreeSet<String> {
    let parsed =
        fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
    let Some(parsed) = parsed.filter(|parsed| parsed["warploom"].is_string()) else { return BTreeSet::new() };
    let array = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let of_modules = array(&parsed["modules"])
        .into_iter()
        .flat_map(|module| [module["fatbin"].clone(), module["ptx"].clone()]);
    let names = of_modules.chain(array(&parsed["headers"]));
    // An export has no other files, whatever its manifest says.
    let ours = |name: &String| [".fatbin", ".ptx", ".h"].iter().any(|ending| name.ends_with(ending));
    names.filter_map(|name| name.as_str().map(String::from)).filter(ours).chain([MANIFEST.into()]).collect()
}

/// Writes all files aside.
fn write(aside: &Path, files: &[(String, &[u8])]) -> Result<()> {
    // Of an export that was broken off, or a link to somewhere else.
    match fs::remove_dir_all(aside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io(aside, error)),
        _ => fs::create_dir(aside).map_err(|error| Error::io(aside, error))?,
    }
    for (name, bytes) in files {
        let path = aside.join(name);
        fs::write(&path, bytes).map_err(|error| Error::io(&path, error))?;
    }
    Ok(())
}

/// Puts them in the places of the old ones. Where that is broken off, the folder that they lie in tells the next export
/// of it.
fn replace(folder: &Path, aside: &Path, files: &[(String, &[u8])], old: &[PathBuf]) -> Result<()> {
    for path in [folder.join(MANIFEST)].iter().chain(old) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io(path, error)),
            _ => {}
        }
    }
    for (name, _) in files {
        let path = folder.join(name);
        fs::rename(aside.join(name), &path).map_err(|error| Error::io(&path, error))?;
    }
    fs::remove_dir_all(aside).map_err(|error| Error::io(aside, error))
}
