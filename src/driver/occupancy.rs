//! How many CTAs of a kernel an SM holds, from what ptxas reports.
//!
//! The formula is that of NVIDIA's cuda_occupancy.h (CUDA 13.0): registers are given to a warp in units of 256 from the quarter of
//! the SM that runs it, shared memory to a CTA in units of 128 bytes with 1 KB more for the system.

use super::Compiled;

/// What an SM holds. Numbers of the CUDA C++ Programming Guide 13.0, "Technical Specifications per Compute Capability", and of
/// cuda_occupancy.h.
struct Sm {
    warps: u64,
    ctas: u64,
    /// Of shared memory, all CTAs together.
    shared_bytes: u64,
    /// Named barriers, all CTAs together, where they count: from Hopper on.
    barriers: u64,
}

const REGISTERS: u64 = 65536;
const REGISTER_UNIT: u64 = 256;
const QUARTERS: u64 = 4;
const SHARED_UNIT: u64 = 128;
const SHARED_OF_SYSTEM: u64 = 1024;

impl Sm {
    /// Of a compute capability as nvcc writes it, e.g. "90a".
    fn of(arch: &str) -> Option<Sm> {
        const NONE: u64 = u64::MAX;
        let (warps, ctas, shared_kb, barriers) = match arch.trim_end_matches(['a', 'f']) {
            "80" => (64, 32, 164, NONE),
            "86" => (48, 16, 100, NONE),
            "87" => (48, 16, 164, NONE),
            "89" => (48, 24, 100, NONE),
            "90" | "100" | "103" => (64, 32, 228, 64),
            "110" => (48, 24, 228, 24),
            "120" | "121" => (48, 24, 100, 24),
            _ => return None,
        };
        Some(Sm { warps, ctas, shared_bytes: shared_kb << 10, barriers })
    }
}

impl Compiled {
    /// CTAs of `threads` threads and `dynamic_bytes` of dynamic shared memory that an SM holds at a time; 0 if it cannot hold
    /// one, None for an architecture whose sizes are not known here.
    pub fn resident(&self, threads: u32, dynamic_bytes: u32) -> Option<u32> {
        let sm = Sm::of(self.arch)?;
        let warps = u64::from(threads.div_ceil(32).max(1));
        let registers = (32 * u64::from(self.registers.max(1))).next_multiple_of(REGISTER_UNIT);
        // The hardware refuses a CTA whose warps, rounded up to a multiple of four, have more than all registers.
        if registers * warps.next_multiple_of(QUARTERS) > REGISTERS {
            return Some(0);
        }
        let by_registers = QUARTERS * (REGISTERS / QUARTERS / registers) / warps;
        let shared = u64::from(self.shared_bytes) + u64::from(dynamic_bytes) + SHARED_OF_SYSTEM;
        let by_shared = sm.shared_bytes / shared.next_multiple_of(SHARED_UNIT);
        let by_barriers = sm.barriers.checked_div(u64::from(self.barriers)).unwrap_or(u64::MAX);
        let ctas =
            [sm.warps / warps, by_registers, by_shared, by_barriers].into_iter().fold(sm.ctas, u64::min);
        Some(ctas as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident(
        arch: &'static str,
        registers: u32,
        threads: u32,
        shared_bytes: u32,
        dynamic_bytes: u32,
    ) -> Option<u32> {
        Compiled { arch, registers, shared_bytes, barriers: 1 }.resident(threads, dynamic_bytes)
    }

    /// Each bound in its turn.
    #[test]
    fn the_smallest_bound_counts() {
        assert_eq!(resident("80", 16, 32, 0, 0), Some(32), "CTAs");
        assert_eq!(resident("86", 16, 32, 0, 0), Some(16), "CTAs");
        assert_eq!(resident("80", 32, 256, 0, 0), Some(8), "warps");
        assert_eq!(resident("89", 32, 1024, 0, 0), Some(1), "warps");
        assert_eq!(resident("90a", 128, 256, 0, 0), Some(2), "registers");
        assert_eq!(resident("90a", 129, 256, 0, 0), Some(1), "registers, rounded up to 136");
        assert_eq!(resident("90a", 40, 384, 0, 0), Some(4), "registers in whole warps of a quarter");
        assert_eq!(resident("80", 32, 128, 0, 81 << 10), Some(2), "shared memory");
        assert_eq!(
            resident("80", 32, 128, 0, (81 << 10) + 1),
            Some(1),
            "shared memory, with what is the system's"
        );
        assert_eq!(resident("120", 32, 128, 1 << 10, 98 << 10), Some(1), "static and dynamic");
        let barriers = |arch| Compiled { arch, registers: 32, shared_bytes: 0, barriers: 5 }.resident(128, 0);
        assert_eq!((barriers("120"), barriers("86")), (Some(4), Some(12)), "named barriers");
    }

    #[test]
    fn what_does_not_fit_is_none_at_all() {
        assert_eq!(resident("90a", 168, 384, 0, 0), Some(1));
        assert_eq!(resident("90a", 176, 384, 0, 0), Some(0));
        assert_eq!(resident("80", 32, 128, 0, 164 << 10), Some(0));
        assert_eq!(resident("80", u32::MAX >> 6, 1024, 0, u32::MAX), Some(0));
        assert_eq!(resident("75", 32, 128, 0, 0), None);
    }
}
