// What the attention kernels read from device memory to find their work: sequences, what rows see, pages. `P` is a
// kernel's parameter struct.
//
// All that is read is checked before it is used as an index: a number out of range makes a sequence without rows, or a
// page that is not there.
#pragma once
#include "memory.cuh"
#include "visible.cuh"
#include "warp.cuh"

namespace wl {

// The rows of a sequence, the number of its keys, and its page table; no rows if a number is out of range.
struct Sequence {
    int first, rows, keys;
    const int* table;
};
template <typename P> __device__ __forceinline__ Sequence sequence(const P& p, int index) {
    const int begin = global<const int>(p.offsets)[index], end = global<const int>(p.offsets)[index + 1];
    const int keys = global<const int>(p.lengths)[index];
    const int slot = p.slots ? global<const int>(p.slots)[index] : index;
    const bool valid = uint32_t(begin) <= uint32_t(end) && uint32_t(end) <= uint32_t(p.tokens) &&
                       end - begin <= p.max_rows && uint32_t(keys) <= uint32_t(p.max_keys) &&
                       uint32_t(slot) < uint32_t(p.table_rows);
    const int* table = global<const int>(p.pages.table) + int64_t(slot) * p.pages.table_stride;
    return {begin, valid ? end - begin : 0, keys, table};
}

template <typename P> __device__ __forceinline__ int position(const P& p, const Sequence& s, int row) {
    return p.positions ? global<const int>(p.positions)[s.first + row] : s.keys - s.rows + row;
}

template <typename P> __device__ __forceinline__ Visible visible(const P& p, const Sequence& s, int row) {
    const int document = p.documents ? global<const int>(p.documents)[s.first + row] : 0;
    return visible(p.mask, position(p, s, row), s.keys, document);
}

// What rows first to last see together.
template <typename P>
__device__ __forceinline__ Visible visible_to_any(const P& p, const Sequence& s, int first, int last) {
    int prefix = 0, lo = INT_MAX, hi = 0;
    for (int row = first + lane_id(); row <= last; row += 32) {
        const Visible of_row = visible(p, s, row);
        prefix = max(prefix, of_row.prefix);
        if (of_row.hi > of_row.lo) lo = min(lo, of_row.lo), hi = max(hi, of_row.hi);
    }
    return {warp_max(prefix), warp_min(lo), warp_max(hi)};
}

// Elements from a kv head's first to those of position `key`, -1 if there is no page with it. The seven positions after
// a multiple of eight follow at slot_stride each: a page holds a multiple of eight.
__device__ __forceinline__ int64_t offset_in_pages(const WlPages& pages, const int* table, int key) {
    const int index = key / pages.page_size;
    if (index >= pages.table_stride) return -1;
    const uint32_t page = table[index];
    if (page >= uint32_t(pages.pages)) return -1;
    return int64_t(page) * pages.page_stride + key % pages.page_size * pages.slot_stride;
}

}  // namespace wl
