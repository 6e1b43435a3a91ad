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
/// [`Error::File`] for a folder that holds anything else, [`Error::Io`] if it cannot be written, and those of
/// [`manifest()`].
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
    let old = earlier(folder, &names)?;
    let is_new = old.is_none();
    // What this version has no more.
    let mut old: Vec<String> = old.into_iter().flatten().collect();
    old.retain(|name| !names.contains(name.as_str()) && name != ASIDE);
    let old: Vec<PathBuf> = old.iter().map(|name| folder.join(name)).collect();
    let aside = folder.join(ASIDE);
    if let Err(error) = write(folder, &aside, &files) {
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

/// The files of the export that a folder holds, none of an empty one; None where there is no folder.
fn earlier(folder: &Path, ours: &BTreeSet<&str>) -> Result<Option<BTreeSet<String>>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(_) if folder.is_file() => return Err(Error::file(folder, "is a file; name a new folder")),
        entries => entries.map_err(|error| Error::io(folder, error))?,
    };
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    let found: BTreeSet<String> =
        entries.map(name).collect::<std::io::Result<_>>().map_err(|error| Error::io(folder, error))?;
    let mut known = listed(&folder.join(MANIFEST));
    // Where one was broken off, it had come to the files that are to be written now.
    if found.contains(ASIDE) {
        known.extend(ours.iter().map(|name| name.to_string()));
    }
    match found.iter().find(|name| !known.contains(*name) && *name != ASIDE) {
        None => Ok(Some(found)),
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
    let names = of_modules.chain(array(&parsed["headers"])).chain([MANIFEST.into()]);
    names.filter_map(|name| name.as_str().map(String::from)).collect()
}

/// Writes all files aside.
fn write(folder: &Path, aside: &Path, files: &[(String, &[u8])]) -> Result<()> {
    fs::create_dir_all(aside).map_err(|error| Error::io(folder, error))?;
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
