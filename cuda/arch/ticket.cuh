// Tickets: how CTAs that share a result find out which of them is the last to arrive, without waiting for each other.
#pragma once
#include <stdint.h>

namespace wl {

// Takes the next number, 0 to `last`, and after `last` begins at 0 again, so that a launch leaves the counter as it
// found it. It releases what the caller has written before, and acquires what the callers before it have released; a
// barrier before it and one after it make that hold for the whole CTA.
__device__ __forceinline__ uint32_t take_ticket(uint32_t* counter, uint32_t last) {
    uint32_t ticket;
    asm volatile("atom.global.acq_rel.gpu.inc.u32 %0, [%1], %2;"
                 : "=r"(ticket)
                 : "l"(__cvta_generic_to_global(counter)), "r"(last)
                 : "memory");
    return ticket;
}

}  // namespace wl
