#![doc = include_str!("../README.md")]

mod attention;
mod device;
mod layout;
mod rms_norm;

pub use attention::{Attention, DECODE_ROWS, Pages, attention, paged_attention};
pub use rms_norm::{RmsNorm, rms_norm};
pub use warploom::mask::{Mask, Pattern};
