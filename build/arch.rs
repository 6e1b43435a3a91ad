//! Architectures to compile for: WARPLOOM_CUDA_ARCHS, "80,90a".

use std::fmt;

/// A compute capability as nvcc writes it: 80, 90a, 120.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arch {
    /// Ten times the major version, plus the minor.
    pub number: u32,
    /// `a`: only this architecture, with its own instructions; `f`: only its family.
    pub suffix: Option<char>,
}

/// What the kernels need at least.
pub const BASELINE: Arch = Arch { number: 80, suffix: None };
/// Whose PTX the simulator executes.
pub const SIMULATED: Arch = Arch { number: 90, suffix: None };
/// Hopper with wgmma and TMA.
pub const HOPPER: Arch = Arch { number: 90, suffix: Some('a') };

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number)?;
        self.suffix.map_or(Ok(()), |suffix| write!(f, "{suffix}"))
    }
}

impl Arch {
    /// Reads one.
    pub fn parse(text: &str) -> Option<Arch> {
        let digits = text.trim_end_matches(['a', 'f']);
        let suffix = match &text[digits.len()..] {
            "" => None,
            "a" => Some('a'),
            "f" => Some('f'),
            _ => return None,
        };
        let plain = matches!(digits.len(), 2 | 3) && digits.bytes().all(|b| b.is_ascii_digit());
        let number = digits.parse().ok().filter(|_| plain && !digits.starts_with('0'))?;
        let first = match suffix {
            None => 0,
            Some('a') => 90,
            Some(_) => 100,
        };
        (number >= first).then_some(Arch { number, suffix })
    }

    /// The one that a kernel file is for, if it is for one: its name ends in `_sm90a`.
    pub fn of_file(stem: &str) -> Option<Arch> {
        Arch::parse(stem.rsplit_once("_sm")?.1)
    }
}

/// Reads a list, separated by commas or spaces, in rising order and each once. `known` are the numbers that nvcc knows.
pub fn parse_list(list: &str, known: &[u32]) -> Result<Vec<Arch>, String> {
    let mut archs = Vec::new();
    for word in list.split([',', ' ']).filter(|word| !word.is_empty()) {
        let Some(arch) = Arch::parse(word) else {
            return Err(format!(
                "WARPLOOM_CUDA_ARCHS: \"{word}\" is no architecture; they are written 80, 90a, 120 (compute capability \
                 8.0, 9.0 with its own instructions, 12.0)"
            ));
        };
        if arch.number < BASELINE.number {
            return Err(format!(
                "WARPLOOM_CUDA_ARCHS: {arch} is too old; the kernels need {BASELINE} or later"
            ));
        }
        if !known.contains(&arch.number) {
            let known: Vec<String> =
                known.iter().filter(|&&number| number >= BASELINE.number).map(u32::to_string).collect();
            return Err(format!(
                "WARPLOOM_CUDA_ARCHS: this nvcc does not know {arch}; it knows {} (90 and later also with an a: 90a)",
                known.join(", ")
            ));
        }
        archs.push(arch);
    }
    if archs.is_empty() {
        return Err("WARPLOOM_CUDA_ARCHS is empty; unset it for the GPU at hand (or 80 and 90a), or name some: 80,90a".into());
    }
    archs.sort_unstable();
    archs.dedup();
    Ok(archs)
}

/// The architectures of this machine's GPUs, from nvidia-smi's answer: lines of `9.0`. Those that nvcc or the kernels do not
/// know are left out.
pub fn of_gpus(answer: &str, known: &[u32]) -> Vec<Arch> {
    let number = |line: &str| -> Option<u32> {
        let (major, minor) = line.trim().split_once('.')?;
        Some(
            10 * major.parse::<u32>().ok().filter(|&major| major < 100)?
                + minor.parse::<u32>().ok().filter(|&minor| minor < 10)?,
        )
    };
    let mut archs: Vec<Arch> = answer
        .lines()
        .filter_map(number)
        .filter(|number| *number >= BASELINE.number && known.contains(number))
        .map(|number| if number == HOPPER.number { HOPPER } else { Arch { number, suffix: None } })
        .collect();
    archs.sort_unstable();
    archs.dedup();
    archs
}
