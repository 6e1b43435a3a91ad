//! Where keys and values lie in device memory, for the kernels that write and read them.

use super::{
    Check, Dtype,
    manifest::{multiple, texts},
    params::WlPages,
};
use crate::{driver::View, error::Result};

/// Position j of a sequence lies in the page that its row of the page table names at j / page_size, at slot
/// j % page_size.
///
/// Element (page, head, slot, i) of k, and of v, is at
/// `page · page_stride + head · head_stride + slot · slot_stride + i`. The strides serve `[pages, kv_heads, page_size, head_dim]`, `[pages, page_size, kv_heads, head_dim]` and
/// layers that lie between each other. A contiguous cache is one page per sequence.
///
/// Where a kernel is told that no sequence has more than `max_keys` positions, pages need not hold more of them: those of a contiguous
/// cache of 33 keys may have a page_size of 40, and the next sequence where the 33 end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLayout {
    /// Number of pages: ids from 0. Ids outside are allowed in the table; they are never read or written.
    pub pages: usize,
    /// Positions of a page, a multiple of 8.
    pub page_size: usize,
    /// Heads of k, and of v.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Elements from page to page.
    pub page_stride: usize,
    /// Elements from head to head.
    pub head_stride: usize,
    /// Elements from position to position.
    pub slot_stride: usize,
}

impl PageLayout {
    /// `[pages, kv_heads, page_size, head_dim]`.
    pub fn heads_first(pages: usize, page_size: usize, kv_heads: usize, head_dim: usize) -> Self {
        let slots = page_size.saturating_mul(head_dim);
        PageLayout {
            pages,
            page_size,
            kv_heads,
            head_dim,
            page_stride: slots.saturating_mul(kv_heads),
            head_stride: slots,
            slot_stride: head_dim,
        }
    }

    /// `[pages, page_size, kv_heads, head_dim]`, as other runtimes have it.
    pub fn slots_first(pages: usize, page_size: usize, kv_heads: usize, head_dim: usize) -> Self {
        let heads = kv_heads.saturating_mul(head_dim);
        PageLayout {
            pages,
            page_size,
            kv_heads,
            head_dim,
            page_stride: heads.saturating_mul(page_size),
            head_stride: head_dim,
            slot_stride: heads,
        }
    }

    /// Elements from the first to the last of k, or of v, of sequences with so many positions at most.
    fn elements(&self, positions: usize) -> Result<usize> {
        let mut dims = [
            ("head_stride", self.kv_heads, self.head_stride),
            ("slot_stride", self.page_size.min(positions), self.slot_stride),
            ("page_stride", self.pages, self.page_stride),
        ];
        dims.sort_by_key(|(_, _, stride)| *stride);
        let mut extent = self.head_dim;
        for (name, count, stride) in dims {
            let check = Check::of(name);
            if count > 1 && stride < extent {
                return check.refuse(format!("{stride}; elements overlap unless it is {extent} at least"));
            }
            extent = match stride.checked_mul(count.saturating_sub(1)).and_then(|e| e.checked_add(extent)) {
                Some(extent) if i64::try_from(extent).is_ok() => extent,
                _ => return check.refuse(format!("{stride}; the pages exceed the address space")),
            };
        }
        Ok(if self.pages == 0 { 0 } else { extent })
    }
}

/// The pages of each sequence.
#[derive(Clone, Copy, Debug)]
pub struct PageTable<'b> {
    /// i32 `[sequences, stride]`: page ids, in the order of the positions.
    pub view: View<'b>,
    /// Sequences that have a row.
    pub sequences: usize,
    /// Entries of a row.
    pub stride: usize,
}

/// Checks keys and values of `dtype` at addresses with so many bytes each, and makes the parameter struct of them. The kernel touches no
/// position from `positions` on.
pub(super) fn check(
    layout: &PageLayout,
    table: &PageTable,
    dtype: Dtype,
    positions: usize,
    k: (u64, usize),
    v: (u64, usize),
) -> Result<WlPages> {
    let count = |name, value, bounds| Check::of(name).count(value, bounds);
    if !layout.page_size.is_multiple_of(8) {
        return Check::of("page_size").refuse(format!("{}; supported are multiples of 8", layout.page_size));
    }
    count("kv_heads", layout.kv_heads, 1..=1 << 16)?;
    let mut pages = WlPages {
        type_: dtype.code(),
        pages: count("pages", layout.pages, 0..=i32::MAX as usize)?,
        page_size: count("page_size", layout.page_size, 8..=1 << 30)?,
        table_stride: count("table.stride", table.stride, 0..=i32::MAX as usize)?,
        ..WlPages::default()
    };
    count("table.sequences", table.sequences, 0..=i32::MAX as usize)?;
    pages.table = Check::of("table").view(table.view, table.sequences.saturating_mul(table.stride), 4)?;
    let elements = layout.elements(positions)?;
    pages.k = Check::of("k").array(k.0, k.1, elements, dtype.size())?;
    pages.v = Check::of("v").array(v.0, v.1, elements, dtype.size())?;
    // A stride over a single page, head or slot is not used: it may be anything.
    let stride = |count, stride: usize| if count > 1 { stride as i64 } else { 0 };
    pages.page_stride = stride(layout.pages, layout.page_stride);
    pages.head_stride = stride(layout.kv_heads, layout.head_stride);
    pages.slot_stride = stride(layout.page_size, layout.slot_stride);
    Ok(pages)
}

/// For the manifest: what a struct of pages must be for the checks.
pub(super) fn requires() -> Vec<String> {
    let mut requires = texts(&[
        "pages.type == type",
        "1 <= pages.pages",
        "0 <= pages.table_stride",
        "8 <= pages.page_size",
        "pages.page_size <= 1073741824",
    ]);
    requires.push(multiple(8, "pages.page_size"));
    requires
}
