//! Compiles `norm.c`, with the header where warploom's build script says that it is.
use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=norm.c");
    let told = |name: &str| PathBuf::from(env::var_os(name).unwrap_or_else(|| panic!("{name} is not set")));
    cc::Build::new().file("norm.c").include(told("DEP_WARPLOOM_INCLUDE")).compile("norm");

    // For those who launch the kernels themselves: machine code, and PTX.
    let kernels = told("DEP_WARPLOOM_KERNELS");
    assert!(kernels.join("rms_norm.fatbin").is_file(), "{}: no machine code", kernels.display());
    println!("cargo::rustc-env=RMS_NORM_PTX={}", kernels.join("rms_norm.ptx").display());
}
