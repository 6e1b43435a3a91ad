//! AdamW with a monitor of its stability (arXiv 1711.05101, 2304.09871): one pass over a tensor updates it and measures how.
//!
//! Start from [`AdamW`], the moments of one tensor, whose [`step`](AdamW::step) works on plain slices. Each step yields [`Statistics`];
//! a [`Monitor`] fed with them raises [`Alarms`]. On a device, `kernels::Adamw` (feature `cuda`) does the same with the same bits.
//!
//! ```
//! use warploom::{Result, optimizer::*};
//!
//! fn main() -> Result<()> {
//!     let (mut weights, gradients) = (vec![0.5f32; 1000], vec![0.1f32; 1000]);
//!     let mut adam = AdamW::new(Settings::default(), weights.len())?;
//!     let mut monitor = Monitor::new(Thresholds::default());
//!     let statistics = adam.step(&mut weights, &gradients, 3e-4, 1.0)?;
//!     let alarms = monitor.observe(adam.settings(), adam.steps(), &statistics);
//!     if alarms.any() {
//!         println!("{alarms:?}: RMS of r {}, of g/√v̂ {}", statistics.rms_ratio(), statistics.rms_relative_gradient());
//!     }
//!     Ok(())
//! }
//! ```

mod adamw;
mod monitor;

pub use adamw::{AdamW, CHUNK, Settings, Step};
pub use monitor::{Alarms, BINS, Monitor, Statistics, Thresholds, WINDOW};
#[cfg(feature = "cuda")]
pub(crate) use monitor::{Measured, SUMS};
