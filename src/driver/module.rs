//! Kernels that are loaded.

use std::{fmt, sync::Arc};

use super::{Driver, Family, Handle};
use crate::error::Result;

/// A family that is loaded, with the driver that it is loaded by.
#[derive(Clone)]
pub struct Module {
    driver: Arc<dyn Driver>,
    handle: Handle,
}

impl Module {
    /// Loads the kernels of a file.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the device cannot run them.
    pub fn load(driver: &Arc<dyn Driver>, family: &Family) -> Result<Self> {
        Ok(Module { handle: driver.load(family)?, driver: driver.clone() })
    }

    /// One of its entries.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if it has no such entry.
    pub fn function(&self, entry: &'static str) -> Result<Function> {
        // SAFETY: this driver's, and there as long as it.
        let handle = unsafe { self.driver.function(self.handle, entry) }?;
        Ok(Function { handle, driver: self.driver.clone() })
    }
}

/// An entry of a [`Module`], ready for any launch on a stream of the same driver, which it keeps.
#[derive(Clone)]
pub struct Function {
    pub(super) driver: Arc<dyn Driver>,
    pub(super) handle: Handle,
}

impl Function {
    /// CTAs of it that one multiprocessor holds at a time.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    pub fn resident(&self, threads: u32, shared_bytes: u32) -> Result<u32> {
        // SAFETY: this driver's, and there as long as it.
        unsafe { self.driver.resident(self.handle, threads, shared_bytes) }
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Function({:#x})", self.handle.0)
    }
}
