//! Finds nvcc, asks what it is, calls it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::arch::{self, Arch, BASELINE, HOPPER};

/// What nvcc reads of the environment besides PATH.
const ENVIRONMENT: [&str; 3] = ["NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"];

/// The compiler.
pub struct Nvcc {
    pub path: PathBuf,
    /// Everything about it and its C++ compiler that may change what comes out.
    pub identity: String,
    /// Its CUDA version as the driver counts: 13000 is 13.0.
    pub version: u32,
    /// Architectures it knows: 80, 90.
    known: Vec<u32>,
}

impl Nvcc {
    /// Finds it, in the order of scripts/find-nvcc, and sees that it and its C++ compiler work.
    pub fn find(out_dir: &Path) -> Result<Nvcc, String> {
        for name in ["NVCC", "CUDA_HOME"].iter().chain(&ENVIRONMENT) {
            println!("cargo::rerun-if-env-changed={name}");
        }
        let path = find().ok_or_else(|| match named() {
            Some(name) => format!("NVCC names {}, which cannot be run: correct or unset it", name.display()),
            None => "the feature `cuda` needs nvcc, and there is none in $NVCC, $CUDA_HOME/bin, PATH, /usr/local/cuda/bin or \
                     .cuda/bin: run scripts/setup-cuda, which installs one into .cuda/ (no root, no GPU), or build without the \
                     feature"
                .into(),
        })?;
        println!("cargo::rerun-if-changed={}", path.display());
        let mut nvcc = Nvcc { path, identity: String::new(), version: 0, known: Vec::new() };
        let version = nvcc.ask(&["--version"])?;
        nvcc.version = release(&version)
            .ok_or_else(|| {
                let said: String = version.chars().filter(|c| !c.is_control()).take(200).collect();
                let path = nvcc.path.display();
                format!("{path} --version tells no release, and so is not CUDA's nvcc: \"{said}\"; name that one by NVCC")
            })?;
        let compiler = nvcc.host_compiler(out_dir)?;
        nvcc.known = nvcc
            .ask(&["--list-gpu-code"])?
            .lines()
            .filter_map(|line| line.strip_prefix("sm_")?.parse().ok())
            .collect();
        nvcc.known.sort_unstable();
        let environment = ENVIRONMENT.map(|name| env::var(name).unwrap_or_default()).join("\n");
        nvcc.identity = format!("{version}\n{compiler}\n{environment}");
        Ok(nvcc)
    }

    /// WARPLOOM_CUDA_ARCHS, else the GPUs of this machine, else the two that the kernels are written for.
    pub fn architectures(&self) -> Result<Vec<Arch>, String> {
        println!("cargo::rerun-if-env-changed=WARPLOOM_CUDA_ARCHS");
        if let Some(list) = env::var_os("WARPLOOM_CUDA_ARCHS") {
            // What is no Unicode is no architecture, and refused as such.
            return arch::parse_list(&list.to_string_lossy(), &self.known);
        }
        let asked =
            Command::new("nvidia-smi").args(["--query-gpu=compute_cap", "--format=csv,noheader"]).output();
        let gpus = asked
            .map(|answer| arch::of_gpus(&String::from_utf8_lossy(&answer.stdout), &self.known))
            .unwrap_or_default();
        Ok(if gpus.is_empty() { vec![BASELINE, HOPPER] } else { gpus })
    }

    /// Runs it. Returns all that it wrote; as the error, if it failed.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Result<String, String> {
        let answer = Command::new(&self.path).args(arguments).output();
        let answer = answer.map_err(|error| format!("{} cannot be run: {error}", self.path.display()))?;
        let text =
            [answer.stdout, answer.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        if answer.status.success() { Ok(text) } else { Err(format!("{text}nvcc: {}", answer.status)) }
    }

    fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        self.run(arguments).map_err(|text| {
            let advice = match named() {
                Some(_) => "correct or unset NVCC, which names it",
                None => "scripts/setup-cuda installs another",
            };
            format!(
                "{} does not work: it fails on {}; {advice}\n{text}",
                self.path.display(),
                arguments.join(" ")
            )
        })
    }

    /// The version of the C++ compiler that nvcc calls. Found by nvcc itself, so that it is the one.
    fn host_compiler(&self, out_dir: &Path) -> Result<String, String> {
        let probe = out_dir.join("probe.cu");
        fs::write(&probe, "wl_compiler __VERSION__\n")
            .map_err(|error| format!("{}: {error}", probe.display()))?;
        let source = probe.to_string_lossy();
        let text = self.run(&["-E", "-std=c++17", &source]).map_err(|text| {
            let advice = if text.contains("unsupported GNU version") || text.contains("unsupported clang version") {
                "is newer than this nvcc accepts (its message says which it does): install an older one beside it (Debian, Ubuntu: \
                 apt install g++-13) and name it: NVCC_CCBIN=g++-13"
            } else if env::var_os("NVCC_CCBIN").is_some() {
                "does not work: correct NVCC_CCBIN, which names it"
            } else {
                "is missing or does not work: install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++), or name \
                 another in NVCC_CCBIN"
            };
            format!("the C++ compiler that nvcc calls for every file {advice}\n{text}")
        })?;
        Ok(text.lines().rfind(|line| line.starts_with("wl_compiler")).unwrap_or_default().to_string())
    }
}

/// From "Cuda compilation tools, release 13.0, V13.0.88".
fn release(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("release ")?;
    let (major, rest) = rest.split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some(1000 * major.parse::<u32>().ok()? + 10 * minor.parse::<u32>().ok()?)
}

/// $NVCC, where it is set to something.
fn named() -> Option<PathBuf> {
    env::var_os("NVCC").filter(|name| !name.is_empty()).map(PathBuf::from)
}

fn find() -> Option<PathBuf> {
    let home = env::var_os("CUDA_HOME")
        .filter(|name| !name.is_empty())
        .map(|home| Path::new(&home).join("bin/nvcc"));
    if let Some(name) = named() {
        return executable(name);
    }
    if let Some(path) = home.and_then(executable) {
        return Some(path);
    }
    if let Some(path) = executable("nvcc".into()) {
        // Only now does PATH decide; otherwise another shell would not need another build.
        println!("cargo::rerun-if-env-changed=PATH");
        return Some(path);
    }
    let own = env::current_dir().ok().map(|root| root.join(".cuda/bin/nvcc"));
    executable("/usr/local/cuda/bin/nvcc".into()).or(own.and_then(executable))
}

/// The program of that path, or of that name in PATH.
fn executable(name: PathBuf) -> Option<PathBuf> {
    let folders = match name.components().count() {
        1 => env::split_paths(&env::var_os("PATH")?).collect(),
        _ => vec![env::current_dir().ok()?],
    };
    folders.iter().map(|folder| folder.join(&name)).find(|path| is_executable(path))
}

#[cfg(unix)]
fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(path: &Path) -> bool {
    path.is_file()
}
