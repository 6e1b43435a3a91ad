//! What a launch did, in exact integers: instructions by class, memory transactions, bank conflicts, tensor work.

use std::collections::BTreeMap;

use crate::{
    exec::Footprint,
    kernel::{Class, Kernel},
    memory::sectors::Sectors,
    numerics::matrix::Precision,
    parse::Space,
};

/// Accesses to device memory: one request is one warp instruction, a sector is 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Global {
    /// Warp instructions.
    pub requests: u64,
    /// Sectors of 32 bytes that the requests touched.
    pub sectors: u64,
    /// Bytes that lanes asked for; sectors · 32 is what moved.
    pub bytes: u64,
}

/// Accesses to shared memory: a wavefront serves each of 32 banks of 4 bytes once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Shared {
    /// Warp instructions; for ldmatrix and stmatrix, matrices.
    pub requests: u64,
    /// Wavefronts that they took.
    pub wavefronts: u64,
    /// Wavefronts that they would have taken without bank conflicts.
    pub ideal: u64,
    /// Bytes that lanes asked for.
    pub bytes: u64,
}

/// The counters of a launch.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Counters {
    /// CTAs that ran.
    pub ctas: u64,
    /// Warp instructions executed.
    pub instructions: u64,
    /// The same, summed over the lanes that executed each.
    pub lane_instructions: u64,
    /// Warp instructions by class: integer, float, half, double, special, convert, move, global, shared, local,
    /// parameter, atomic, warp, barrier, copy, matrix, tensor, control.
    pub by_class: BTreeMap<&'static str, u64>,
    /// Multiplications and additions outside the tensor cores, summed over lanes: of f32, f16, bf16 and f64.
    pub flop: u64,
    /// Those of them that are of f16 and bf16.
    pub flop_half: u64,
    /// Those of them that are of f64.
    pub flop_double: u64,
    /// Distinct sectors of 32 bytes of device memory that the launch read or wrote, however often: what has to come from
    /// device memory, or to go there, when no cache holds any of it before. None where it is not known: an unchecked
    /// launch keeps track if it is asked to.
    pub distinct_sectors: Option<u64>,
    /// Those of them that were read; one that was written, too, is among both.
    pub distinct_sectors_read: Option<u64>,
    /// Those of them that were written; an atomic's are among these.
    pub distinct_sectors_written: Option<u64>,
    /// Loads from device memory.
    pub global_load: Global,
    /// Stores to device memory.
    pub global_store: Global,
    /// Atomics on device memory.
    pub global_atomic: Global,
    /// Loads and stores of local memory.
    pub local: Global,
    /// Loads from shared memory.
    pub shared_load: Shared,
    /// Stores to shared memory.
    pub shared_store: Shared,
    /// Atomics on shared memory.
    pub shared_atomic: Shared,
    /// Matrices that ldmatrix and stmatrix moved.
    pub matrix: Shared,
    /// What cp.async read from device memory.
    pub copy: Global,
    /// Bytes that cp.async wrote to shared memory, zero fill included.
    pub copy_bytes_written: u64,
    /// mma instructions.
    pub mma: u64,
    /// Their floating-point (or integer) operations, two for a multiplication with its addition.
    pub mma_flop: u64,
    /// The same by what is multiplied: a key for each [`Precision`] that occurs.
    pub mma_flop_by_precision: BTreeMap<Precision, u64>,
    /// Those whose row of A and column of B are not all zero: the rest is padding.
    pub mma_flop_useful: u64,
    /// Arrivals of warps at CTA barriers.
    pub barriers: u64,
    /// Largest shared memory of a CTA in bytes, static and dynamic.
    pub shared_bytes: u64,
}

impl Global {
    fn add(&mut self, other: &Global) {
        self.requests += other.requests;
        self.sectors += other.sectors;
        self.bytes += other.bytes;
    }

    /// Bytes asked for over bytes moved; 1 when nothing was.
    pub fn efficiency(&self) -> f64 {
        if self.sectors == 0 { 1.0 } else { self.bytes as f64 / (self.sectors * 32) as f64 }
    }
}

impl Shared {
    fn add(&mut self, other: &Shared) {
        self.requests += other.requests;
        self.wavefronts += other.wavefronts;
        self.ideal += other.ideal;
        self.bytes += other.bytes;
    }
}

impl Counters {
    pub(crate) fn add(&mut self, other: &Counters) {
        self.ctas += other.ctas;
        self.global_load.add(&other.global_load);
        self.global_store.add(&other.global_store);
        self.global_atomic.add(&other.global_atomic);
        self.local.add(&other.local);
        self.shared_load.add(&other.shared_load);
        self.shared_store.add(&other.shared_store);
        self.shared_atomic.add(&other.shared_atomic);
        self.matrix.add(&other.matrix);
        self.copy.add(&other.copy);
        self.copy_bytes_written += other.copy_bytes_written;
        self.mma += other.mma;
        self.mma_flop += other.mma_flop;
        for (precision, flop) in &other.mma_flop_by_precision {
            *self.mma_flop_by_precision.entry(*precision).or_insert(0) += flop;
        }
        self.mma_flop_useful += other.mma_flop_useful;
        self.barriers += other.barriers;
        self.shared_bytes = self.shared_bytes.max(other.shared_bytes);
    }

    /// Fills in what follows from how often each instruction ran.
    pub(crate) fn count(&mut self, kernel: &Kernel, hits: &[u64], lanes: &[u64]) {
        for ((inst, hits), lanes) in kernel.code.iter().zip(hits).zip(lanes) {
            if *hits == 0 {
                continue;
            }
            self.instructions += hits;
            self.lane_instructions += lanes;
            *self.by_class.entry(inst.class.name()).or_insert(0) += hits;
            let flop = lanes * u64::from(inst.flop);
            self.flop += flop;
            match inst.class {
                Class::Half => self.flop_half += flop,
                Class::Double => self.flop_double += flop,
                _ => {}
            }
        }
    }

    /// Fills in the distinct sectors from the bytes that a checked launch touched.
    pub(crate) fn touched(&mut self, footprint: &Footprint) {
        let sum = |read, written| Some(footprint.values().map(|page| page.sectors(read, written)).sum());
        self.distinct_sectors = sum(true, true);
        self.distinct_sectors_read = sum(true, false);
        self.distinct_sectors_written = sum(false, true);
    }

    /// The same of a launch without the checks.
    pub(crate) fn noted(&mut self, sectors: &Sectors) {
        let touches = sectors.count();
        self.distinct_sectors = Some(touches.all);
        self.distinct_sectors_read = Some(touches.read);
        self.distinct_sectors_written = Some(touches.written);
    }

    pub(crate) fn load(&mut self, traffic: &Traffic) {
        let Counters { global_load, shared_load, local, .. } = self;
        traffic.count(global_load, shared_load, local);
    }

    pub(crate) fn store(&mut self, traffic: &Traffic) {
        let Counters { global_store, shared_store, local, .. } = self;
        traffic.count(global_store, shared_store, local);
    }

    pub(crate) fn atomic(&mut self, traffic: &Traffic) {
        let Counters { global_atomic, shared_atomic, local, .. } = self;
        traffic.count(global_atomic, shared_atomic, local);
    }

    pub(crate) fn copy(&mut self, read: &Traffic, write: &Traffic) {
        let (mut shared, mut local) = (Shared::default(), Global::default());
        read.count(&mut self.copy, &mut shared, &mut local);
        self.copy_bytes_written += u64::from(write.bytes) * write.shared_count as u64;
    }

    /// One matrix of ldmatrix or stmatrix: eight rows of 16 bytes, one wavefront if their banks differ.
    pub(crate) fn matrix_phase(&mut self, rows: &[Option<usize>; 8]) {
        // Rows are aligned to 16 bytes, so each lies in one of eight groups of four banks.
        let mut most = 1;
        let groups = rows.iter().flatten().fold(0u8, |groups, at| groups | 1 << (at / 16 % 8));
        let conflicts = groups.count_ones() as usize != rows.iter().flatten().count();
        for (i, at) in rows.iter().enumerate() {
            let Some(at) = at.filter(|_| conflicts) else { continue };
            let same = rows[..=i].iter().enumerate().filter(|(j, other)| {
                other.is_some_and(|o| o / 16 % 8 == at / 16 % 8 && (*j == i || o != at))
                    && !rows[..*j].contains(other)
            });
            most = most.max(same.count() as u64);
        }
        self.matrix.requests += 1;
        self.matrix.ideal += 1;
        self.matrix.wavefronts += most;
        self.matrix.bytes += 128;
    }

    pub(crate) fn tensor(&mut self, precision: Precision, flop: u64, useful: u64) {
        self.mma += 1;
        self.mma_flop += flop;
        *self.mma_flop_by_precision.entry(precision).or_insert(0) += flop;
        self.mma_flop_useful += useful;
    }
}

impl Class {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Class::Integer => "integer",
            Class::Float => "float",
            Class::Half => "half",
            Class::Double => "double",
            Class::Special => "special",
            Class::Convert => "convert",
            Class::Move => "move",
            Class::Global => "global",
            Class::Shared => "shared",
            Class::Local => "local",
            Class::Parameter => "parameter",
            Class::Atomic => "atomic",
            Class::Warp => "warp",
            Class::Barrier => "barrier",
            Class::Copy => "copy",
            Class::Matrix => "matrix",
            Class::Tensor => "tensor",
            Class::Control => "control",
        }
    }
}

/// The addresses of one memory instruction.
pub(crate) struct Traffic {
    /// Bytes a lane.
    bytes: u32,
    global: [u64; 32],
    global_count: usize,
    /// Address and lane.
    shared: [(u64, u8); 32],
    shared_count: usize,
    local: u32,
}

impl Traffic {
    pub fn new(bytes: u32) -> Self {
        Traffic { bytes, global: [0; 32], global_count: 0, shared: [(0, 0); 32], shared_count: 0, local: 0 }
    }

    #[inline]
    pub fn add(&mut self, lane: usize, space: Space, at: u64) {
        match space {
            Space::Global => {
                self.global[self.global_count] = at;
                self.global_count += 1;
            }
            Space::Shared => {
                self.shared[self.shared_count] = (at, lane as u8);
                self.shared_count += 1;
            }
            Space::Local => self.local += 1,
            _ => {}
        }
    }

    /// Notes the sectors of device memory.
    #[inline]
    pub fn note(&self, sectors: &Sectors, write: bool) {
        for at in &self.global[..self.global_count] {
            sectors.note(*at, u64::from(self.bytes), write);
        }
    }

    fn count(&self, global: &mut Global, shared: &mut Shared, local: &mut Global) {
        let n = u64::from(self.bytes);
        if self.global_count > 0 {
            global.requests += 1;
            global.bytes += n * self.global_count as u64;
            global.sectors += self.sectors();
        }
        if self.shared_count > 0 {
            shared.requests += 1;
            shared.bytes += n * self.shared_count as u64;
            // 4 bytes: the whole warp at once; 8: its halves; 16: its quarters.
            let group = 32 / (n / 4).clamp(1, 8) as usize;
            let mut i = 0;
            while i < self.shared_count {
                let which = usize::from(self.shared[i].1) / group;
                let mut banks = Banks::default();
                while i < self.shared_count && usize::from(self.shared[i].1) / group == which {
                    banks.add(self.shared[i].0, n);
                    i += 1;
                }
                shared.ideal += 1;
                shared.wavefronts += banks.wavefronts();
            }
        }
        if self.local > 0 {
            // Local memory is interleaved by words over the lanes, so a uniform access is whole sectors.
            local.requests += 1;
            local.bytes += n * u64::from(self.local);
            local.sectors += (n * u64::from(self.local)).div_ceil(32);
        }
    }

    /// Distinct sectors of 32 bytes.
    fn sectors(&self) -> u64 {
        let n = u64::from(self.bytes);
        let mut seen = [0u64; 64];
        let mut count = 0;
        for at in &self.global[..self.global_count] {
            let mut sector = at / 32;
            while sector <= (at + n - 1) / 32 {
                // Neighbouring lanes mostly share the sector that came last.
                if !seen[..count].iter().rev().any(|s| *s == sector) {
                    seen[count] = sector;
                    count += 1;
                }
                sector += 1;
            }
        }
        count as u64
    }
}

/// Words that each bank has to deliver.
#[derive(Default)]
struct Banks {
    words: [[u64; 8]; 32],
    counts: [u8; 32],
    /// A bank with more than eight words.
    more: Vec<(u8, u64)>,
}

impl Banks {
    fn add(&mut self, at: u64, bytes: u64) {
        let mut word = at / 4;
        while word <= (at + bytes - 1) / 4 {
            let bank = (word % 32) as usize;
            let count = usize::from(self.counts[bank]);
            let known = self.words[bank][..count.min(8)].contains(&word)
                || count > 8 && self.more.contains(&(bank as u8, word));
            if !known {
                if count < 8 {
                    self.words[bank][count] = word;
                } else {
                    self.more.push((bank as u8, word));
                }
                self.counts[bank] += 1;
            }
            word += 1;
        }
    }

    fn wavefronts(&self) -> u64 {
        u64::from(*self.counts.iter().max().unwrap_or(&0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(bytes: u32, address: impl Fn(u64) -> u64) -> Shared {
        let mut traffic = Traffic::new(bytes);
        for lane in 0..32 {
            traffic.add(lane, Space::Shared, address(lane as u64));
        }
        let (mut global, mut shared, mut local) = Default::default();
        traffic.count(&mut global, &mut shared, &mut local);
        shared
    }

    #[test]
    fn banks_conflict_as_on_hardware() {
        // One word a lane in a row, all lanes one word, stride of 2, of 32, of 33 words.
        for (stride, wavefronts) in [(4, 1), (0, 1), (8, 2), (128, 32), (132, 1)] {
            assert_eq!(shared(4, |lane| lane * stride).wavefronts, wavefronts, "stride {stride}");
        }
        // Eight and sixteen bytes a lane take two and four wavefronts at best.
        assert_eq!(shared(8, |lane| lane * 8).wavefronts, 2);
        assert_eq!(shared(16, |lane| lane * 16).wavefronts, 4);
        // 128-byte rows read by columns of 16 bytes: eight lanes of a quarter meet in four banks.
        assert_eq!(shared(16, |lane| lane * 128).wavefronts, 32);
        assert_eq!(shared(16, |lane| lane * 128).ideal, 4);
    }

    #[test]
    fn sectors_are_distinct_pieces_of_32_bytes() {
        for (bytes, stride, sectors) in [(4, 4, 4), (4, 32, 32), (4, 0, 1), (16, 16, 16), (2, 2, 2)] {
            let mut traffic = Traffic::new(bytes);
            for lane in 0..32 {
                traffic.add(lane, Space::Global, 4096 + lane as u64 * stride);
            }
            assert_eq!(traffic.sectors(), sectors, "{bytes} bytes, stride {stride}");
        }
    }
}
