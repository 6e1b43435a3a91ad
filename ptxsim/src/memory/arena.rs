//! Device memory: allocations with gaps between them, so that a step too far hits nothing.

use std::collections::BTreeMap;

use super::{Bits, PAGE, POISON};
use crate::error::{Error, Result};

/// Alignment of allocations, as cudaMalloc gives it, and the gap after each.
const ALIGN: u64 = 256;

/// The device's memory.
#[derive(Clone)]
pub(crate) struct Arena {
    /// Address of the first byte.
    pub base: u64,
    /// In whole pages.
    pub bytes: Vec<u8>,
    /// Which bytes were written.
    pub written: Bits,
    blocks: BTreeMap<u64, u64>,
    /// Something was freed.
    gaps: bool,
    limit: u64,
}

impl Arena {
    pub fn new(base: u64, limit: u64) -> Self {
        Arena { base, bytes: vec![], written: Bits::default(), blocks: BTreeMap::new(), gaps: false, limit }
    }

    pub fn allocate(&mut self, bytes: u64) -> Result<u64> {
        let size = bytes.max(1);
        // First fit among the gaps that frees have left, else behind the last block.
        let last =
            self.blocks.last_key_value().map_or(ALIGN, |(b, n)| (b + n + ALIGN).next_multiple_of(ALIGN));
        let mut at = if self.gaps { ALIGN } else { last };
        for (begin, length) in self.blocks.iter().take(if self.gaps { usize::MAX } else { 0 }) {
            if at.saturating_add(size).saturating_add(ALIGN) <= *begin {
                break;
            }
            at = (begin + length + ALIGN).next_multiple_of(ALIGN);
        }
        let end =
            at.checked_add(size).and_then(|e| e.checked_add(ALIGN)).filter(|e| *e <= self.limit).ok_or_else(
                || Error::Memory(format!("no room for {bytes} bytes in {} of the device", self.limit)),
            )?;
        let pages = (end as usize).next_multiple_of(PAGE);
        if pages > self.bytes.len() {
            let more = pages - self.bytes.len();
            self.bytes
                .try_reserve(more)
                .map_err(|_| Error::Memory(format!("the host has no room for {bytes} bytes")))?;
            self.bytes.resize(pages, POISON);
            self.written.resize(pages);
        }
        self.bytes[at as usize..(at + size) as usize].fill(POISON);
        self.written.fill(at as usize, size as usize, false);
        self.blocks.insert(at, bytes);
        Ok(self.base + at)
    }

    /// Bytes of all allocations.
    pub fn allocated(&self) -> u64 {
        self.blocks.values().sum()
    }

    pub fn free(&mut self, address: u64) -> Result<()> {
        match address.checked_sub(self.base).and_then(|at| self.blocks.remove(&at)) {
            Some(_) => {
                self.gaps = !self.blocks.is_empty();
                Ok(())
            }
            None => Err(Error::Memory(format!("{address:#x} is not the start of an allocation"))),
        }
    }

    /// The allocation around an offset: its first byte and the one after its last.
    pub fn block(&self, at: u64) -> Option<(u64, u64)> {
        let (begin, length) = self.blocks.range(..=at).next_back()?;
        (at < begin + length).then_some((*begin, begin + length))
    }

    /// Offset of a range that lies within one allocation.
    fn range(&self, address: u64, bytes: usize) -> Result<usize> {
        let inside = address.checked_sub(self.base).and_then(|at| {
            if bytes == 0 {
                return Some(at);
            }
            let (_, end) = self.block(at)?;
            (at.checked_add(bytes as u64)? <= end).then_some(at)
        });
        inside.map(|at| at as usize).ok_or_else(|| {
            Error::Memory(format!("the {bytes} bytes at {address:#x} do not lie within one allocation"))
        })
    }

    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<()> {
        let at = self.range(address, data.len())?;
        if !data.is_empty() {
            self.bytes[at..at + data.len()].copy_from_slice(data);
            self.written.fill(at, data.len(), true);
        }
        Ok(())
    }

    pub fn read(&self, address: u64, bytes: usize) -> Result<&[u8]> {
        let at = self.range(address, bytes)?;
        Ok(if bytes == 0 { &[] } else { &self.bytes[at..at + bytes] })
    }

    /// Whether the host or a kernel wrote every byte of the range.
    pub fn is_written(&self, address: u64, bytes: usize) -> Result<bool> {
        let at = self.range(address, bytes)?;
        Ok(bytes == 0 || self.written.all(at, bytes))
    }

    /// The first address of the range that nobody wrote.
    pub fn unwritten(&self, address: u64, bytes: usize) -> Result<Option<u64>> {
        let at = self.range(address, bytes)?;
        let first = if bytes == 0 { None } else { self.written.first_without(at, bytes) };
        Ok(first.map(|at| self.base + at as u64))
    }

    /// Address and size of the allocation around an address.
    pub fn allocation(&self, address: u64) -> Option<(u64, u64)> {
        let (begin, end) = self.block(address.checked_sub(self.base)?)?;
        Some((self.base + begin, end - begin))
    }

    /// Fills a range with what fresh memory holds, and takes it for unwritten.
    pub fn poison(&mut self, address: u64, bytes: usize) -> Result<()> {
        let at = self.range(address, bytes)?;
        if bytes > 0 {
            self.bytes[at..at + bytes].fill(POISON);
            self.written.fill(at, bytes, false);
        }
        Ok(())
    }
}
