//! Device memory: allocations, and ranges of them.

use std::{fmt, marker::PhantomData, ops::Range, sync::Arc};

use super::{Driver, Stream};
use crate::error::Result;

/// Device memory; given back when it is dropped.
pub struct Buffer {
    driver: Arc<dyn Driver>,
    address: u64,
    bytes: usize,
}

impl Buffer {
    /// Allocates `bytes`, aligned to 256. What they hold is undefined until they are written.
    ///
    /// # Errors
    /// [`Error::Capacity`](crate::Error::Capacity) if the device has no room, [`Error::Device`](crate::Error::Device).
    pub fn new(driver: &Arc<dyn Driver>, bytes: usize) -> Result<Self> {
        // An empty buffer has an address, too: kernels are given none that points nowhere.
        let address = driver.allocate(bytes.max(1))?;
        Ok(Buffer { driver: driver.clone(), address, bytes })
    }

    /// A buffer that holds `data`.
    ///
    /// # Errors
    /// As [`Buffer::new`].
    pub fn from_slice<T: bytemuck::NoUninit>(stream: &Stream, data: &[T]) -> Result<Self> {
        let mut buffer = Buffer::new(&stream.driver, size_of_val(data))?;
        stream.upload(&mut buffer.view_mut(), data)?;
        Ok(buffer)
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it, to read.
    pub fn view(&self) -> View<'_> {
        View { address: self.address, bytes: self.bytes, buffer: PhantomData }
    }

    /// All of it, to write, beside views to read: for memory that kernels pass on to each other.
    pub fn view_to_share(&self) -> ViewMut<'_> {
        ViewMut { address: self.address, bytes: self.bytes, buffer: PhantomData }
    }

    /// All of it, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        ViewMut { address: self.address, bytes: self.bytes, buffer: PhantomData }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: this driver's, and used by nothing any more.
        unsafe { self.driver.free(self.address) };
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({:#x}, {} bytes)", self.address, self.bytes)
    }
}

/// A range of device memory that a kernel reads.
#[derive(Clone, Copy, Debug)]
pub struct View<'b> {
    pub(super) address: u64,
    pub(super) bytes: usize,
    buffer: PhantomData<&'b Buffer>,
}

/// A range of device memory that a kernel writes.
#[derive(Debug)]
pub struct ViewMut<'b> {
    pub(super) address: u64,
    pub(super) bytes: usize,
    buffer: PhantomData<&'b mut Buffer>,
}

impl<'b> View<'b> {
    /// A range that was not allocated here, as a CUdeviceptr and its size.
    ///
    /// # Safety
    /// The range must stay allocated on the device for as long as work that uses it may run.
    pub unsafe fn from_raw(address: u64, bytes: usize) -> Self {
        View { address, bytes, buffer: PhantomData }
    }

    /// A part of it, in bytes.
    ///
    /// # Panics
    /// If the range does not lie within it.
    pub fn slice(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.bytes, "{range:?} of {} bytes", self.bytes);
        View { address: self.address + range.start as u64, bytes: range.len(), buffer: PhantomData }
    }

    /// Device address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<'b> ViewMut<'b> {
    /// A range that was not allocated here, as a CUdeviceptr and its size.
    ///
    /// # Safety
    /// The range must stay allocated on the device for as long as work that uses it may run, and nothing else may use it at that time.
    pub unsafe fn from_raw(address: u64, bytes: usize) -> Self {
        ViewMut { address, bytes, buffer: PhantomData }
    }

    /// A part of it, in bytes.
    ///
    /// # Panics
    /// If the range does not lie within it.
    pub fn slice(&mut self, range: Range<usize>) -> ViewMut<'_> {
        assert!(range.start <= range.end && range.end <= self.bytes, "{range:?} of {} bytes", self.bytes);
        ViewMut { address: self.address + range.start as u64, bytes: range.len(), buffer: PhantomData }
    }

    /// A part of it, in bytes, for as long as all of it.
    ///
    /// # Panics
    /// If the range does not lie within it.
    pub fn part(self, range: Range<usize>) -> ViewMut<'b> {
        assert!(range.start <= range.end && range.end <= self.bytes, "{range:?} of {} bytes", self.bytes);
        ViewMut { address: self.address + range.start as u64, bytes: range.len(), buffer: PhantomData }
    }

    /// Two parts of it, in bytes.
    ///
    /// # Panics
    /// If the ranges do not lie within it, or overlap.
    pub fn parts(self, first: Range<usize>, second: Range<usize>) -> (ViewMut<'b>, ViewMut<'b>) {
        assert!(first.end <= second.start || second.end <= first.start, "{first:?} and {second:?} overlap");
        let all = |range| self.copied().part(range);
        (all(first), all(second))
    }

    /// The caller sees to it that no byte is written through both.
    fn copied(&self) -> ViewMut<'b> {
        ViewMut { address: self.address, bytes: self.bytes, buffer: PhantomData }
    }

    /// The same range, to read.
    pub fn view(&self) -> View<'_> {
        View { address: self.address, bytes: self.bytes, buffer: PhantomData }
    }

    /// Device address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
