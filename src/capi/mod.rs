//! The kernels as functions of C (feature `capi`): `cuda/include/warploom.h` is their documentation.
//!
//! [`abi`] has the header's structs, made from it; `status` makes statuses and words of errors, and lets no panic out; `device` has devices,
//! streams and memory; `kernels` a function for each kernel, which does no more than to put the struct's fields into the arguments of
//! [`crate::kernels`], whose launches check them.

pub mod abi;
mod device;
mod kernels;
mod status;

pub use device::*;
pub use kernels::*;
pub use status::{wl_error, wl_release, wl_version};
