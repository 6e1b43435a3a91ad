//! Runs CUDA kernels' PTX on a CPU: every instruction that nvcc made, tensor cores and asynchronous copies
//! included, with race checks and exact counters.
//!
//! Start from [`Device`], whose example runs a kernel. [`Module::parse`] reads the text that nvcc hands to ptxas;
//! [`Device::launch`] executes an entry, 32 lanes a decoded instruction, and returns a [`Report`]: [`Finding`]s
//! (what the kernel does wrong), [`Counters`] (what it did, in exact integers) and what it printed. [`Gpu::roofline`] makes of
//! the counters what would bound the kernel on a named GPU.
//!
//! What can be wrong with a kernel is a [`Kind`] of finding; what cannot be run at all is an [`Error`] that
//! names the line. Results, findings and counters are the same for any number of threads.
//!
//! The model covers what nvcc emits for sm_80 to sm_90. The rest of the Hopper device model (mbarrier, TMA, wgmma, clusters) is
//! refused by name.

mod check;
mod counters;
mod decode;
mod device;
mod entry;
mod error;
mod exec;
mod kernel;
mod launch;
mod memory;
pub mod numerics;
pub mod param;
mod parse;
mod roofline;

pub use check::{Finding, Kind};
pub use counters::{Counters, Global, Shared};
pub use device::{Device, Loaded, Memory};
pub use entry::Entry;
pub use error::{Error, Result};
pub use exec::TraceLine;
pub use launch::{Argument, Delivery, Launch, LineProfile, Report, Schedule};
pub use parse::Module;
pub use roofline::{Bound, Gpu, Roofline, TensorRates};
