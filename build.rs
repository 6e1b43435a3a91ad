//! Compiles the CUDA kernels (feature `cuda`) and makes the parameter structs from the C header (feature `bindgen`).
//! Without these features it does nothing and needs nothing.
//!
//! `build/kernels.rs` is the compilation as a whole; `nvcc.rs` finds and calls the compiler, `arch.rs` reads the list of
//! architectures, `ptxas.rs` the compiler's reports, `cache.rs` keeps what was compiled; `params.rs` calls bindgen.

#[cfg(feature = "cuda")]
#[path = "build/arch.rs"]
mod arch;
#[cfg(feature = "cuda")]
#[path = "build/cache.rs"]
mod cache;
#[cfg(feature = "cuda")]
#[path = "build/kernels.rs"]
mod kernels;
#[cfg(feature = "cuda")]
#[path = "build/nvcc.rs"]
mod nvcc;
#[cfg(feature = "bindgen")]
#[path = "build/params.rs"]
mod params;
#[cfg(feature = "cuda")]
#[path = "build/ptxas.rs"]
mod ptxas;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    report(headers());
    #[cfg(feature = "cuda")]
    report(kernels::build());
    #[cfg(feature = "bindgen")]
    report(params::generate());
}

/// For build scripts of dependents: DEP_WARPLOOM_INCLUDE is a folder with warploom/warploom.h, whose functions are in the crate with the
/// feature `capi`. DEP_WARPLOOM_KERNELS, with the feature `cuda`, has a .fatbin and a .ptx of each file of kernels.
fn headers() -> Result<(), String> {
    let include =
        PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: cargo runs this")?).join("include");
    let folder = include.join("warploom");
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    // What has no header any more is there no more.
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|error| failed(&folder, error))?;
    }
    fs::create_dir_all(&folder).map_err(|error| failed(&folder, error))?;
    println!("cargo::rerun-if-changed=cuda/include");
    // A checkout without kernels has none.
    let headers = match Path::new("cuda/include") {
        path if path.exists() => Some(fs::read_dir(path).map_err(|error| failed(path, error))?),
        _ => None,
    };
    for entry in headers.into_iter().flatten() {
        let entry = entry.map_err(|error| failed(Path::new("cuda/include"), error))?;
        let (from, to) = (entry.path(), folder.join(entry.file_name()));
        // Not with the permissions of a source that may be read-only: it is written again.
        let text = fs::read(&from).map_err(|error| failed(&from, error))?;
        fs::write(&to, text).map_err(|error| failed(&to, error))?;
    }
    println!("cargo::metadata=include={}", include.display());
    Ok(())
}

/// Fails the build with the whole message, which may have many lines.
fn report(result: Result<(), String>) {
    let Err(message) = result else { return };
    for line in message.lines() {
        println!("cargo::error={line}");
    }
}
