//! Memory of one CTA, or of one warp's threads: bytes and which of them were written.

use super::{Bits, POISON};

pub(crate) struct Window {
    pub bytes: Vec<u8>,
    pub written: Bits,
}

impl Window {
    pub fn new(bytes: usize) -> Self {
        Window { bytes: vec![POISON; bytes], written: Bits::new(bytes) }
    }

    pub fn write(&mut self, at: usize, data: &[u8], written: bool) {
        self.bytes[at..at + data.len()].copy_from_slice(data);
        self.written.fill(at, data.len(), written);
    }

    /// Back to what nobody wrote.
    pub fn poison(&mut self, at: usize, bytes: usize) {
        self.bytes[at..at + bytes].fill(POISON);
        self.written.fill(at, bytes, false);
    }
}
