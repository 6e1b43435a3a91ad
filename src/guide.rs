//! Four ways to use and to extend warploom, step by step. The programs in them are tests.
//!
//! - [`link_the_kernels`]: the CUDA kernels in your own Rust, C or Python program, over your memory and your stream.
//! - [`run_a_checkpoint`]: from a Hugging Face folder to tokens, with the command and with the library.
//! - [`add_a_kernel`]: from a `.cu` file to a checked, tested, measured launch.
//! - [`add_an_exit_policy`]: how rounds draft, by a rule of your own.
//!
//! They are the files of `docs/guide`.

// Programs that a build cannot run are left out of its tests, not of its pages.

#[cfg_attr(any(feature = "cuda", not(doctest)), doc = include_str!("../docs/guide/link-the-kernels.md"))]
#[cfg_attr(feature = "cuda", doc = "")]
#[cfg_attr(
    feature = "cuda",
    doc = "More: [`crate::kernels`], [`crate::driver`], [`crate::driver::interop`]."
)]
pub mod link_the_kernels {}

#[cfg_attr(any(feature = "cli", not(doctest)), doc = include_str!("../docs/guide/run-a-checkpoint.md"))]
#[cfg_attr(feature = "model", doc = "")]
#[cfg_attr(feature = "model", doc = "More: [`crate::checkpoint`], [`crate::model`], [`crate::decode`].")]
pub mod run_a_checkpoint {}

#[doc = include_str!("../docs/guide/add-a-kernel.md")]
pub mod add_a_kernel {}

#[cfg_attr(any(feature = "model", not(doctest)), doc = include_str!("../docs/guide/add-an-exit-policy.md"))]
#[cfg_attr(feature = "model", doc = "")]
#[cfg_attr(feature = "model", doc = "More: [`crate::decode::policy`].")]
pub mod add_an_exit_policy {}
