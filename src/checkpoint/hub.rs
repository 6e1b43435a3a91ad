//! Hub names: `org/name` as a folder of the local Hugging Face cache. Nothing is downloaded.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::file;
use crate::error::{Error, Result, printable};

/// The folder of the model that `name_or_path` means: a path that exists, as it is; else a hub name,
/// `org/name`, as the Hugging Face tools cached it (`$HF_HUB_CACHE`, `$HF_HOME/hub`,
/// `$XDG_CACHE_HOME/huggingface/hub`, `~/.cache/huggingface/hub`; the first that is set).
///
/// # Errors
/// [`Error::Argument`] with the command that downloads the model, if the cache does not have it;
/// [`Error::Io`] if it is neither a path that exists nor a hub name.
pub fn resolve_model(name_or_path: &str) -> Result<PathBuf> {
    resolve_in(name_or_path, cache_folder(|variable| std::env::var_os(variable)).as_deref())
}

/// The cache folder that the environment asks for.
fn cache_folder(environment: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |variable: &str| environment(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("HF_HUB_CACHE")
        .or_else(|| Some(folder("HF_HOME")?.join("hub")))
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| Some(folder("HOME")?.join(".cache/huggingface/hub")))
}

fn resolve_in(name_or_path: &str, cache: Option<&Path>) -> Result<PathBuf> {
    let path = Path::new(name_or_path);
    let absent = match std::fs::symlink_metadata(path) {
        Ok(_) => return Ok(path.to_owned()),
        Err(error) => error,
    };
    let Some((org, name)) = hub_name(name_or_path) else {
        return Err(Error::io(path, absent));
    };
    let missing = |what: String| {
        Error::argument(
            "--model",
            format!(
                "'{}' is no folder, and as a hub name {what}; download it with: hf download {org}/{name}",
                printable(name_or_path)
            ),
        )
    };
    let Some(cache) = cache else {
        return Err(missing(
            "it cannot be looked up: neither HF_HUB_CACHE, HF_HOME nor HOME is set".to_owned(),
        ));
    };
    let model = cache.join(format!("models--{org}--{name}"));
    // A link to the current snapshot's folder, in the form of a small text file.
    let Ok(reference) = file::read_bounded(&model.join("refs/main"), 256) else {
        return Err(missing(format!("it is not in the cache {}", printable(&cache.to_string_lossy()))));
    };
    let revision = String::from_utf8_lossy(&reference);
    let revision = revision.trim();
    if revision.is_empty() || !revision.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(Error::file(model.join("refs/main"), "does not hold the name of a snapshot"));
    }
    let snapshot = model.join("snapshots").join(revision);
    if snapshot.is_dir() {
        return Ok(snapshot);
    }
    Err(missing(format!("its snapshot {revision} is not in the cache")))
}

/// Splits `org/name`, if `text` is one: two words of letters, digits, `.`, `-` and `_`, none of which
/// begins with a dot or holds two in a row, so that it cannot lead out of the cache.
fn hub_name(text: &str) -> Option<(&str, &str)> {
    let (org, name) = text.split_once('/')?;
    let plain = |word: &str| {
        (1..=96).contains(&word.len())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
            && !word.starts_with(['.', '-'])
            && !word.contains("..")
            && !word.contains("--")
    };
    (plain(org) && plain(name)).then_some((org, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_hub_name_leads_to_its_snapshot() {
        let cache = tempfile::tempdir().unwrap();
        let model = cache.path().join("models--facebook--layerskip-llama3.2-1B");
        let snapshot = model.join("snapshots/0123abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(model.join("refs")).unwrap();
        std::fs::write(model.join("refs/main"), "0123abc\n").unwrap();
        let found = resolve_in("facebook/layerskip-llama3.2-1B", Some(cache.path())).unwrap();
        assert_eq!(found, snapshot);

        let error = resolve_in("facebook/opt", Some(cache.path())).unwrap_err().to_string();
        assert!(error.contains("hf download facebook/opt"), "{error}");
        std::fs::write(model.join("refs/main"), "../../../../etc").unwrap();
        let error = resolve_in("facebook/layerskip-llama3.2-1B", Some(cache.path())).unwrap_err();
        assert!(error.to_string().contains("refs/main"), "{error}");
    }

    #[test]
    fn an_existing_path_is_taken_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        assert_eq!(resolve_in(path, None).unwrap(), folder.path());
    }

    #[test]
    fn names_that_could_lead_out_of_the_cache_are_no_hub_names() {
        for name in
            ["../x", "x/..", "..", "a/b/c", "/etc", "a/", "/b", "a/.b", "-a/b", "a/b--c", "a/b\u{1b}", "a"]
        {
            assert!(hub_name(name).is_none(), "{name}");
        }
        let error = resolve_in("../no-such-folder", None).unwrap_err().to_string();
        assert!(!error.contains("download"), "{error}");
        assert_eq!(hub_name("org/Name-1.5_b"), Some(("org", "Name-1.5_b")));
    }

    #[test]
    fn the_first_variable_that_is_set_names_the_cache() {
        let folder = |set: &[(&str, &str)]| {
            cache_folder(|variable| {
                set.iter().find(|(name, _)| *name == variable).map(|(_, value)| value.into())
            })
        };
        let home = ("HOME", "/h");
        assert_eq!(folder(&[]), None);
        assert_eq!(folder(&[home]), Some("/h/.cache/huggingface/hub".into()));
        assert_eq!(folder(&[home, ("XDG_CACHE_HOME", "/x")]), Some("/x/huggingface/hub".into()));
        assert_eq!(folder(&[home, ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/f")]), Some("/f/hub".into()));
        assert_eq!(folder(&[home, ("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), Some("/c".into()));
        assert_eq!(folder(&[home, ("HF_HUB_CACHE", "")]), Some("/h/.cache/huggingface/hub".into()));
    }
}
