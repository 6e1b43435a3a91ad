//! What an entry of a module needs, before it is launched.

use crate::{decode, error::Result, parse::Module};

/// An entry as its text declares it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Entry {
    /// Bytes of each parameter, in order.
    pub parameters: Vec<u32>,
    /// Static shared memory in bytes; a launch may add dynamic.
    pub shared_bytes: u64,
    /// Local memory of a thread in bytes.
    pub local_bytes: u64,
    /// Instructions, those of the functions that it calls included.
    pub instructions: usize,
    /// The only block size that it takes (`.reqntid`).
    pub required_threads: Option<[u32; 3]>,
    /// The largest block size that it takes (`.maxntid`): the product counts.
    pub max_threads: Option<[u32; 3]>,
    /// Its CTAs may talk to each other: it has atomics, strong accesses or fences beyond the CTA.
    pub communicates: bool,
}

impl Module {
    /// Name of the source file of that number in the module's line information.
    pub fn file(&self, number: u32) -> Option<&str> {
        self.files.iter().find(|(n, _)| *n == u64::from(number)).map(|(_, name)| name.as_str())
    }

    /// What an entry needs.
    ///
    /// # Errors
    /// As for [`crate::Device::launch`] when the entry cannot be decoded.
    pub fn entry(&self, name: &str) -> Result<Entry> {
        let kernel = decode::kernel(self, name)?;
        Ok(Entry {
            parameters: kernel.parameters.iter().map(|p| p.bytes).collect(),
            shared_bytes: kernel.shared_bytes,
            local_bytes: kernel.local_bytes,
            instructions: kernel.code.len(),
            required_threads: kernel.required_threads,
            max_threads: kernel.max_threads,
            communicates: kernel.communicates,
        })
    }
}
