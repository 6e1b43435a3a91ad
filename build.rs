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

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // For build scripts of dependents: DEP_WARPLOOM_INCLUDE is where warploom.h is; its functions are in the crate, with the feature `capi`.
    // DEP_WARPLOOM_KERNELS, with the feature `cuda`, has a .fatbin and a .ptx of each file of kernels.
    if let Some(folder) = std::env::var_os("CARGO_MANIFEST_DIR") {
        println!("cargo::metadata=include={}", std::path::Path::new(&folder).join("cuda/include").display());
    }
    #[cfg(feature = "cuda")]
    report(kernels::build());
    #[cfg(feature = "bindgen")]
    report(params::generate());
}

/// Fails the build with the whole message, which may have many lines.
#[cfg(any(feature = "cuda", feature = "bindgen"))]
fn report(result: Result<(), String>) {
    let Err(message) = result else { return };
    for line in message.lines() {
        println!("cargo::error={line}");
    }
}
