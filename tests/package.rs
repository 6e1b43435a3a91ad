//! What others get: the crates that the kernels bring along, and the package.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// What `cargo` says in the workspace, without the network.
fn cargo(arguments: &[&str]) -> Option<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).arg("--offline");
    let Ok(Output { status, stdout, stderr }) = command.output() else {
        println!("skipped: no cargo");
        return None;
    };
    assert!(status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&stderr));
    Some(String::from_utf8(stdout).unwrap())
}

/// Everything that a build of the kernels alone compiles: a new crate is written down here, with a reason.
const KERNELS: [&str; 29] = [
    // The simulator, and the driver's functions.
    "ptxsim",
    "cudarc",
    "libloading",
    "cfg-if",
    // Numbers in memory.
    "bytemuck",
    "bytemuck_derive",
    "half",
    "libm",
    "zerocopy",
    "zerocopy-derive",
    // The manifest.
    "serde",
    "serde_core",
    "serde_derive",
    "serde_json",
    "itoa",
    "zmij",
    "memchr",
    // Threads of the simulator.
    "rayon",
    "rayon-core",
    "crossbeam-deque",
    "crossbeam-epoch",
    "crossbeam-utils",
    "either",
    // Errors.
    "thiserror",
    "thiserror-impl",
    // Macros at build time.
    "proc-macro2",
    "quote",
    "syn",
    "unicode-ident",
];

#[test]
fn the_kernels_bring_few_crates_along() {
    for features in ["cuda", "capi"] {
        let arguments =
            ["--no-default-features", "--features", features, "--prefix", "none", "--format", "{p}"];
        let edges = ["tree", "--edges", "normal,build"];
        let Some(tree) = cargo(&[&edges, &arguments[..]].concat()) else { return };
        let found: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        let known: BTreeSet<&str> = KERNELS.into_iter().chain(["warploom"]).collect();
        let new: Vec<_> = found.difference(&known).collect();
        let gone: Vec<_> = known.difference(&found).collect();
        // On another system there are others, or fewer.
        println!("{features}: new {new:?}, gone {gone:?}");
        assert!(new.is_empty(), "{features} brings new crates along: {new:?}");
    }
}

/// The golden data and the integrations stay out, and headers, kernels, demo and licences are in.
#[test]
fn the_package_has_what_it_needs() {
    let Some(list) = cargo(&["package", "--list", "--allow-dirty", "-p", "warploom"]) else { return };
    let files: BTreeSet<&str> = list.lines().collect();
    assert!(
        !files
            .iter()
            .any(|file| file.starts_with("tests/golden/") || file.starts_with("tests/golden_extra/")),
        "golden data are in the package"
    );
    assert!(
        !files.iter().any(|file| file.starts_with("integrations/")),
        "crates of their own are in the package"
    );
    for needed in [
        "cuda/include/warploom.h",
        "cuda/kernels/linear.cu",
        "build/kernels.rs",
        "src/kernels/params.rs",
        "src/capi/abi.rs",
        "assets/demo/model.safetensors",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "README.md",
        "docs/guide/link-the-kernels.md",
    ] {
        assert!(files.contains(needed), "{needed} is not in the package");
    }
    // Text is packed to a quarter; weights hardly.
    let size = |file: &&str| {
        let bytes = std::fs::metadata(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file))
            .map_or(0, |m| m.len());
        if file.ends_with(".safetensors") { bytes } else { bytes / 3 }
    };
    let packed: u64 = files.iter().map(size).sum();
    assert!(packed < 10 << 20, "about {packed} bytes; a registry takes ten megabytes");
}

/// Files that the pages name by a link, from the page's own folder.
#[test]
fn links_lead_to_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "ptxsim/README.md"]
        .map(|page| root.join(page))
        .into();
    for folder in ["docs", "docs/guide", "ptxsim/conformance", "integrations/candle", "fuzz"] {
        let files = fs::read_dir(root.join(folder)).into_iter().flatten().flatten().map(|file| file.path());
        pages.extend(files.filter(|path| path.extension().is_some_and(|ending| ending == "md")));
    }
    let mut links = 0;
    for page in pages {
        let Ok(text) = fs::read_to_string(&page) else { continue };
        let targets =
            text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        for target in targets
            .filter(|target| !target.contains(':') && !target.contains(' ') && !target.starts_with('#'))
        {
            let file = target.split('#').next().unwrap();
            // Links to items are rustdoc's to check.
            if !file.contains(['.', '/']) {
                continue;
            }
            assert!(
                page.with_file_name(file).exists(),
                "{} links to {target}, which is not there",
                page.display()
            );
            links += 1;
        }
    }
    assert!(links > 10, "{links}");
}
