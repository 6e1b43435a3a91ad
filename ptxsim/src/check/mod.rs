//! What a kernel does wrong: [`finding`] says it, [`clock`] knows what happened before what, [`shadow`] remembers
//! who touched each byte last.

pub(crate) mod clock;
pub(crate) mod finding;
pub(crate) mod shadow;

pub use finding::{Finding, Kind};
