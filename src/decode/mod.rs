//! From logits to ids: sampling, rounds of drafting and verifying, and the policies that steer them.
//!
//! Start from [`Generator`]: requests go in, [`Generator::round`] gives tokens. To add an exit policy see
//! [`policy`], to add a step of sampling see [`sampling`]. What each layer alone would say is read in [`exits`].

mod device;
pub mod exits;
mod generator;
pub mod policy;
mod round;
pub mod sampling;
mod sequence;

#[cfg(feature = "cuda")]
pub(crate) use generator::logit_rows;
pub use generator::{Finished, Generator, Limits};
pub use policy::{ExitPolicy, MAX_DRAFT, Plan, Policy, Round};
pub use round::{Observer, logits_hash};
pub use sampling::Sampling;
pub use sequence::{Request, Stats, Stop};
