//! The kernels' PTX, carried in the program.

/// One file of kernels.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Its name in `list.json`, such as `scalar.cu`.
    pub name: &'static str,
    /// What nvcc made of it.
    pub ptx: &'static str,
}

macro_rules! sources {
    ($($stem:literal),*) => {
        [$(Source { name: concat!($stem, ".cu"), ptx: include_str!(concat!("../ptx/", $stem, ".ptx")) }),*]
    };
}

/// Every file of kernels; a test holds it against `list.json`.
pub const SOURCES: [Source; 8] =
    sources!["convert", "convert_sm89", "matrix", "matrix_sm90", "mma", "mma_sm89", "scalar", "warp"];

impl Source {
    /// The file of that name.
    pub fn named(name: &str) -> Option<Source> {
        SOURCES.into_iter().find(|s| s.name == name)
    }

    /// The name without its ending.
    pub fn stem(&self) -> &'static str {
        self.name.trim_end_matches(".cu")
    }

    /// The compute capability that it needs, times ten: 80 for sm_80.
    pub fn target(&self) -> u32 {
        let target = self.ptx.lines().find_map(|line| line.strip_prefix(".target sm_"));
        let digits = target.unwrap_or_default().trim_end_matches(|c: char| !c.is_ascii_digit());
        digits.parse().unwrap_or(u32::MAX)
    }

    /// What an entry is about: its inline assembly on one line. None if there is no such entry.
    pub fn instruction(&self, entry: &str) -> Option<String> {
        let asm = self.body(entry)?.split("// begin inline asm").nth(1)?.split("// end inline asm").next()?;
        Some(asm.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Bits of what an entry loads from global memory first: an element of its `in`.
    pub fn loaded_bits(&self, entry: &str) -> Option<u32> {
        let load = self.body(entry)?.split_whitespace().find(|word| word.starts_with("ld.global"))?;
        load.rsplit('.').next()?.get(1..)?.parse().ok()
    }

    fn body(&self, entry: &str) -> Option<&'static str> {
        let body = &self.ptx[self.ptx.find(&format!(".entry {entry}("))?..];
        body.split("\n}").next()
    }
}
