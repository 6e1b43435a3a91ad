//! Named ranges on a profiler's timeline (NVTX), with the feature `nvtx`: phases of a generation, and the layers in them. Without the
//! feature nothing is left of them.
//!
//! A range covers what the host launches; that of all rounds, `decode`, also ends when the device has done it. A round that is one launch of a graph has one for all of it: `--no-graphs` shows the parts.

#[cfg(feature = "nvtx")]
mod on {
    /// Ends the range when it is dropped.
    pub(crate) struct Range(#[allow(dead_code)] nvtx::LocalRange);

    pub(crate) fn range(name: &str) -> Range {
        Range(nvtx::LocalRange::new(nvtx::Str::from_str_lossy(name)))
    }

    /// Ends the range when it is dropped, wherever that is: across calls and threads.
    pub(crate) struct Span(#[allow(dead_code)] nvtx::Range);

    pub(crate) fn span(name: &str) -> Span {
        Span(nvtx::Range::new(nvtx::Str::from_str_lossy(name)))
    }

    pub(crate) fn layer(index: usize) -> Range {
        Range(nvtx::LocalRange::new(nvtx::Str::from_string_lossy(format!("layer {index}"))))
    }
}

#[cfg(not(feature = "nvtx"))]
mod off {
    pub(crate) struct Range;

    pub(crate) fn range(_: &str) -> Range {
        Range
    }

    pub(crate) struct Span;

    pub(crate) fn span(_: &str) -> Span {
        Span
    }

    pub(crate) fn layer(_: usize) -> Range {
        Range
    }
}

#[cfg(not(feature = "nvtx"))]
pub(crate) use off::{Span, layer, range, span};
#[cfg(feature = "nvtx")]
pub(crate) use on::{Span, layer, range, span};
