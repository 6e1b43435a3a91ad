//! Which sectors of device memory a launch has read and written: two bits for each, that all CTAs set.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes of a sector.
const SECTOR: u64 = 32;

/// One bit a sector of the arena.
pub(crate) struct Sectors {
    read: Vec<AtomicU64>,
    written: Vec<AtomicU64>,
}

/// How many sectors were touched at all, read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Touches {
    pub all: u64,
    pub read: u64,
    pub written: u64,
}

impl Sectors {
    /// None of an arena of so many bytes.
    pub fn new(bytes: usize) -> Self {
        let bits = || (0..bytes.div_ceil(64 * SECTOR as usize)).map(|_| AtomicU64::new(0)).collect();
        Sectors { read: bits(), written: bits() }
    }

    /// Notes that `bytes` bytes at an offset were read or written.
    #[inline]
    pub fn note(&self, at: u64, bytes: u64, write: bool) {
        let map = if write { &self.written } else { &self.read };
        for sector in at / SECTOR..=(at + bytes - 1) / SECTOR {
            let (word, bit) = (&map[sector as usize / 64], 1 << (sector % 64));
            // Most sectors are touched by many lanes: looking is cheaper than setting.
            if word.load(Relaxed) & bit == 0 {
                word.fetch_or(bit, Relaxed);
            }
        }
    }

    pub fn count(&self) -> Touches {
        let mut touches = Touches { all: 0, read: 0, written: 0 };
        for (read, written) in self.read.iter().zip(&self.written) {
            let (read, written) = (read.load(Relaxed), written.load(Relaxed));
            touches.all += u64::from((read | written).count_ones());
            touches.read += u64::from(read.count_ones());
            touches.written += u64::from(written.count_ones());
        }
        touches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sector_counts_once() {
        let sectors = Sectors::new(4096);
        for at in [0, 4, 28, 64, 4064] {
            sectors.note(at, 4, false);
        }
        sectors.note(60, 16, true);
        sectors.note(2048, 32, true);
        assert_eq!(sectors.count(), Touches { all: 5, read: 3, written: 3 });
    }
}
