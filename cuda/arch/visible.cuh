// Which keys a query row sees: `Mask::visible` of src/mask.rs on the device.
#pragma once
#include <stdint.h>
#include "wl_common.h"

namespace wl {

// Bits 0 to n - 1, for any n.
__device__ __forceinline__ uint32_t bits_below(int n) {
    return uint32_t((uint64_t(1) << min(max(n, 0), 32)) - 1);
}

// The keys [0, prefix) and [lo, hi), which may overlap; hi = 0 where there is no interval. `lo` may be negative. Also
// what several rows see together.
struct Visible {
    int prefix, lo, hi;

    // Without && and ||, of which the compiler makes branches.
    __device__ __forceinline__ bool contains(int key) const {
        return (key < prefix) | ((key >= lo) & (key < hi));
    }
    // Any, or all, of the keys begin to end.
    __device__ __forceinline__ bool touches(int begin, int end) const {
        return (begin < prefix) | ((begin < hi) & (end > lo));
    }
    __device__ __forceinline__ bool covers(int begin, int end) const {
        return (end <= prefix) | ((begin >= lo) & (end <= hi));
    }

    // Whether it has the 32 keys begin, begin + STEP, ..., a bit each.
    template <int STEP> __device__ __forceinline__ uint32_t bits(int begin) const {
        static_assert(STEP == 1 || STEP == 4, "a shift");
        const auto before = [&](int end) { return bits_below((end - begin + STEP - 1) >> STEP / 2); };
        return before(prefix) | (before(hi) & ~before(lo));
    }

    // Parts of SIZE keys that hold a visible key, numbered in order of their keys: first those of the prefix.
    template <int SIZE> __device__ __forceinline__ int first_part() const {
        return max(lo / SIZE, (prefix + SIZE - 1) / SIZE);
    }
    template <int SIZE> __device__ __forceinline__ int parts() const {
        return (prefix + SIZE - 1) / SIZE + max((hi + SIZE - 1) / SIZE - first_part<SIZE>(), 0);
    }
    template <int SIZE> __device__ __forceinline__ int part(int number) const {
        const int of_prefix = (prefix + SIZE - 1) / SIZE;
        return number < of_prefix ? number : number - of_prefix + first_part<SIZE>();
    }
};

// What the row at position q sees of `keys` keys; nothing for q < 0. With `document` > 0 it sees nothing before that.
// No number in `mask` is over 2^28, nor is `keys`, so that sums stay within int.
__device__ __forceinline__ Visible visible(const WlMask& mask, int q, int keys, int document) {
    if (q < 0) return {0, 0, 0};
    q = min(q, 1 << 28);
    const int begin = mask.keys > 0 ? q / mask.keys * mask.keys : 0;
    int lo = 0, hi = q + 1;
    switch (mask.pattern) {
        case WL_WINDOW: lo = q - mask.keys + 1; break;
        case WL_CHUNK: lo = begin; break;
        case WL_OVERLAP: lo = begin - mask.keys; break;
        case WL_BLOCKWISE: lo = begin - mask.keys / 2, hi = begin + mask.keys + mask.keys / 2; break;
        case WL_BLOCK: lo = begin, hi = begin + mask.keys; break;
        case WL_FULL: hi = keys; break;
    }
    const bool causal = mask.pattern <= WL_OVERLAP;
    // A global token of a bidirectional pattern sees everything as a query, too.
    if (!causal && q < mask.prefix) lo = 0, hi = keys;
    hi = min(hi, keys);
    int prefix = min(causal ? min(mask.prefix, q + 1) : mask.prefix, keys);
    if (document > 0) prefix = 0, lo = max(lo, document);
    return lo < hi ? Visible{prefix, lo, hi} : Visible{prefix, 0, 0};
}

}  // namespace wl
