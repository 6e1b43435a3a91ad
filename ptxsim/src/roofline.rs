//! From counters to a time on a named GPU: the slowest of what the kernel asks for.
//!
//! Each bound divides an exact counter by a peak rate of the data sheet: that of all SMs or, where a launch has fewer CTAs, of as
//! many as it has. At those rates, and with nothing in the caches before it, a GPU that does what the PTX says takes no less;
//! latency and uneven CTAs add to it. What
//! ptxas makes of the PTX may hold fewer instructions. The use of the bounds is to say what limits a launch.

use std::fmt;

use crate::{counters::Counters, numerics::matrix::Precision};

/// A GPU's sizes and rates, from its data sheet and the CUDA programming guide.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpu {
    /// Name.
    pub name: &'static str,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub sm_count: u32,
    /// Boost clock in GHz.
    pub clock: f64,
    /// Bandwidth of device memory in GB/s.
    pub bandwidth: f64,
    /// Dense rates of the tensor cores.
    pub tensor: TensorRates,
    /// f32 operations a clock and SM, a fused multiply-add counting as two.
    pub float: f64,
    /// f16 operations a clock and SM, in pairs, counted alike; bf16 is no faster.
    pub half: f64,
    /// f64 operations a clock and SM, counted alike.
    pub double: f64,
    /// Shared memory that one CTA may have, in bytes.
    pub shared_bytes: u64,
    /// Shared memory of an SM, in bytes.
    pub shared_bytes_per_sm: u64,
    /// Threads and CTAs that an SM holds.
    pub threads_per_sm: u32,
    /// CTAs that an SM holds.
    pub ctas_per_sm: u32,
}

/// Dense rates of a GPU's tensor cores in TFLOP/s, or for integers TOP/s. None where its data sheet names no rate: the
/// tensor cores lack the type, or the documents disagree. Such work has no bound.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorRates {
    /// f16 and bf16 summed in f32.
    pub half: f64,
    /// f16 summed in f16.
    pub half_to_half: f64,
    /// tf32.
    pub tf32: f64,
    /// fp8 summed in f32.
    pub fp8: Option<f64>,
    /// fp8 summed in f16.
    pub fp8_to_half: Option<f64>,
    /// 8-bit integers.
    pub int8: f64,
    /// 4-bit integers.
    pub int4: Option<f64>,
    /// f64.
    pub double: Option<f64>,
}

impl TensorRates {
    /// The rate for what an `mma` multiplies.
    pub fn of(&self, precision: Precision) -> Option<f64> {
        match precision {
            Precision::Half => Some(self.half),
            Precision::HalfToHalf => Some(self.half_to_half),
            Precision::Tf32 => Some(self.tf32),
            Precision::Fp8 => self.fp8,
            Precision::Fp8ToHalf => self.fp8_to_half,
            Precision::Int8 => Some(self.int8),
            Precision::Int4 => self.int4,
            Precision::Double => self.double,
        }
    }
}

impl Gpu {
    /// NVIDIA H100 SXM5 80 GB.
    pub const H100: Gpu = Gpu {
        name: "H100 SXM",
        capability: (9, 0),
        sm_count: 132,
        clock: 1.98,
        bandwidth: 3352.0,
        tensor: TensorRates {
            half: 989.4,
            half_to_half: 989.4,
            tf32: 494.7,
            fp8: Some(1978.9),
            fp8_to_half: Some(1978.9),
            int8: 1978.9,
            int4: None,
            double: Some(66.9),
        },
        float: 256.0,
        half: 512.0,
        double: 128.0,
        shared_bytes: 227 << 10,
        shared_bytes_per_sm: 228 << 10,
        threads_per_sm: 2048,
        ctas_per_sm: 32,
    };
    /// NVIDIA H200 SXM 141 GB.
    pub const H200: Gpu = Gpu { name: "H200 SXM", bandwidth: 4800.0, ..Gpu::H100 };
    /// NVIDIA A100 SXM4 80 GB.
    pub const A100: Gpu = Gpu {
        name: "A100 SXM",
        capability: (8, 0),
        sm_count: 108,
        clock: 1.41,
        bandwidth: 2039.0,
        tensor: TensorRates {
            half: 312.0,
            half_to_half: 312.0,
            tf32: 156.0,
            fp8: None,
            fp8_to_half: None,
            int8: 624.0,
            int4: Some(1248.0),
            double: Some(19.5),
        },
        float: 128.0,
        half: 512.0,
        double: 64.0,
        shared_bytes: 163 << 10,
        shared_bytes_per_sm: 164 << 10,
        threads_per_sm: 2048,
        ctas_per_sm: 32,
    };
    /// NVIDIA L40S.
    pub const L40S: Gpu = Gpu {
        name: "L40S",
        capability: (8, 9),
        sm_count: 142,
        clock: 2.52,
        bandwidth: 864.0,
        // Its data sheet has the same rate for 4-bit as for 8-bit integers, the architecture's paper twice that.
        tensor: TensorRates {
            half: 362.05,
            half_to_half: 362.05,
            tf32: 183.0,
            fp8: Some(733.0),
            fp8_to_half: Some(733.0),
            int8: 733.0,
            int4: None,
            double: None,
        },
        float: 256.0,
        half: 256.0,
        double: 4.0,
        shared_bytes: 99 << 10,
        shared_bytes_per_sm: 100 << 10,
        threads_per_sm: 1536,
        ctas_per_sm: 24,
    };
    /// NVIDIA GeForce RTX 4090.
    pub const RTX4090: Gpu = Gpu {
        name: "RTX 4090",
        sm_count: 128,
        bandwidth: 1008.0,
        tensor: TensorRates {
            half: 165.2,
            half_to_half: 330.3,
            tf32: 82.6,
            fp8: Some(330.3),
            fp8_to_half: Some(660.6),
            int8: 660.6,
            int4: Some(1321.2),
            double: None,
        },
        ..Gpu::L40S
    };

    /// Those known by name.
    pub const ALL: [Gpu; 5] = [Gpu::H100, Gpu::H200, Gpu::A100, Gpu::L40S, Gpu::RTX4090];

    /// The GPU of that name, upper or lower case, its maker's suffix left out or not.
    pub fn named(name: &str) -> Option<Gpu> {
        let plain = |s: &str| s.to_lowercase().replace([' ', '-', '_'], "");
        let wanted = plain(name);
        Gpu::ALL
            .into_iter()
            .find(|gpu| plain(gpu.name) == wanted || plain(gpu.name).trim_end_matches("sxm") == wanted)
    }

    /// CTAs of this size that it holds at once, as far as threads and shared memory go.
    pub fn resident(&self, threads: u32, shared_bytes: u64) -> u64 {
        let by_threads =
            self.threads_per_sm / threads.max(1).checked_next_multiple_of(32).unwrap_or(u32::MAX);
        // Each CTA takes a kilobyte beside its own.
        let by_shared = self.shared_bytes_per_sm / shared_bytes.saturating_add(1024);
        let per_sm = u64::from(by_threads.min(self.ctas_per_sm)).min(by_shared).max(1);
        per_sm * u64::from(self.sm_count)
    }

    /// What bounds a launch with these counters. Device memory is among it when the counters know the distinct sectors, a
    /// kind of tensor work when the GPU has a rate for it.
    pub fn roofline(&self, counters: &Counters) -> Roofline {
        // A CTA has one SM. Counters without CTAs are of no launch, and get them all.
        let sms = match counters.ctas {
            0 => f64::from(self.sm_count),
            ctas => ctas.min(u64::from(self.sm_count)) as f64,
        };
        let clocks = |per_sm: f64| per_sm / sms / (self.clock * 1e9);
        let wavefronts = counters.shared_load.wavefronts
            + counters.shared_store.wavefronts
            + counters.shared_atomic.wavefronts
            + counters.matrix.wavefronts
            + counters.copy_bytes_written.div_ceil(128);
        let special = counters.by_class.get("special").copied().unwrap_or(0);
        let mut bounds = vec![];
        if let Some(sectors) = counters.distinct_sectors {
            // Re-reads may hit a cache, but each sector comes from memory, or goes there, once.
            bounds.push(Bound {
                name: "device memory",
                amount: sectors * 32,
                unit: "bytes",
                seconds: (sectors * 32) as f64 / (self.bandwidth * 1e9),
            });
        }
        // All kinds of tensor work take turns on the same cores, so their times add up.
        let tensor = |(precision, flop): (&Precision, &u64)| {
            self.tensor.of(*precision).map(|rate| (*flop, *flop as f64 / (rate * 1e12)))
        };
        let (flop, seconds) = counters
            .mma_flop_by_precision
            .iter()
            .filter_map(tensor)
            .fold((0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let seconds = seconds * f64::from(self.sm_count) / sms;
        bounds.push(Bound { name: "tensor cores", amount: flop, unit: "FLOP", seconds });
        let single = counters.flop - counters.flop_half - counters.flop_double;
        for (name, flop, rate) in [
            ("f32 arithmetic", single, self.float),
            ("f16 arithmetic", counters.flop_half, self.half),
            ("f64 arithmetic", counters.flop_double, self.double),
        ] {
            bounds.push(Bound { name, amount: flop, unit: "FLOP", seconds: clocks(flop as f64 / rate) });
        }
        bounds.extend([
            Bound {
                name: "special functions",
                amount: special,
                unit: "instructions",
                // 16 lanes a clock.
                seconds: clocks(special as f64 * 2.0),
            },
            Bound {
                name: "shared memory",
                amount: wavefronts,
                unit: "wavefronts",
                seconds: clocks(wavefronts as f64),
            },
            Bound {
                name: "issue",
                amount: counters.instructions,
                unit: "instructions",
                seconds: clocks(counters.instructions as f64 / 4.0),
            },
        ]);
        Roofline { gpu: self.name, bounds }
    }
}

/// One thing that a launch asks for, and the time that it takes at the GPU's peak rate.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Bound {
    /// What delivers it.
    pub name: &'static str,
    /// How much of it; of tensor work, that which the GPU has a rate for.
    pub amount: u64,
    /// Of what.
    pub unit: &'static str,
    /// It takes no less.
    pub seconds: f64,
}

/// The bounds of a launch on a GPU. [`fmt::Display`] prints them as a table, slowest first.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Roofline {
    /// The GPU's name.
    pub gpu: &'static str,
    /// In a fixed order.
    pub bounds: Vec<Bound>,
}

impl Roofline {
    /// No less than this many seconds does the launch take, caches cold: the time of its slowest bound.
    pub fn seconds(&self) -> f64 {
        self.bounds.iter().map(|b| b.seconds).fold(0.0, f64::max)
    }

    /// What bounds the launch.
    pub fn bound(&self) -> &Bound {
        self.bounds.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds)).expect("there are always bounds")
    }
}

/// A time in the unit that leaves one to three digits before the point.
fn time(seconds: f64) -> String {
    let (scale, unit) = match seconds {
        s if s < 1e-6 => (1e9, "ns"),
        s if s < 1e-3 => (1e6, "µs"),
        s if s < 1.0 => (1e3, "ms"),
        _ => (1.0, "s"),
    };
    format!("{:.3} {unit}", seconds * scale)
}

impl fmt::Display for Roofline {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let slowest = self.seconds();
        writeln!(
            f,
            "{:<18} {:>14} {:<13} {:>12} {:>6}",
            format!("on {}", self.gpu),
            "amount",
            "",
            "no less than",
            "share"
        )?;
        let mut order: Vec<&Bound> = self.bounds.iter().collect();
        order.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        for bound in order {
            let share = if slowest > 0.0 { bound.seconds / slowest * 100.0 } else { 0.0 };
            writeln!(
                f,
                "{:<18} {:>14} {:<13} {:>12} {:>5.0}%",
                bound.name,
                bound.amount,
                bound.unit,
                time(bound.seconds),
                share
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(roofline: &Roofline, name: &str) -> Option<f64> {
        roofline.bounds.iter().find(|bound| bound.name == name).map(|bound| bound.seconds)
    }

    #[test]
    fn rates_are_those_of_the_data_sheets() {
        // TFLOP/s of f32, f16 and f64 outside the tensor cores.
        for (gpu, rates) in [
            (Gpu::H100, [66.9, 133.8, 33.5]),
            (Gpu::H200, [66.9, 133.8, 33.5]),
            (Gpu::A100, [19.5, 78.0, 9.7]),
            (Gpu::L40S, [91.6, 91.6, 1.43]),
            (Gpu::RTX4090, [82.6, 82.6, 1.29]),
        ] {
            let clocks = f64::from(gpu.sm_count) * gpu.clock * 1e-3;
            for (per_clock, rate) in [gpu.float, gpu.half, gpu.double].into_iter().zip(rates) {
                assert!((per_clock * clocks / rate - 1.0).abs() < 0.01, "{}: {rate}", gpu.name);
            }
        }
    }

    #[test]
    fn each_kind_of_work_has_its_rate() {
        let mut counters =
            Counters { flop: 10_000, flop_half: 2_000, flop_double: 1_000, ..Default::default() };
        let tensor = [(Precision::Half, 9_894), (Precision::Tf32, 4_947), (Precision::Int4, 1)];
        counters.mma_flop_by_precision.extend(tensor);
        let roofline = Gpu::H100.roofline(&counters);
        let clock = 1.0 / (132.0 * 1.98e9);
        let near = |name, expected: f64| {
            let seconds = seconds(&roofline, name).expect(name);
            assert!((seconds / expected - 1.0).abs() < 1e-12, "{name}: {seconds} {expected}");
        };
        near("f32 arithmetic", 7_000.0 / 256.0 * clock);
        near("f16 arithmetic", 2_000.0 / 512.0 * clock);
        near("f64 arithmetic", 1_000.0 / 128.0 * clock);
        // The two kinds take ten picoseconds each; Hopper has no 4-bit tensor cores, so that adds nothing.
        near("tensor cores", 20e-12);
    }

    #[test]
    fn sms_without_a_cta_do_nothing() {
        let mut counters = Counters { flop: 10_000, distinct_sectors: Some(100), ..Default::default() };
        counters.mma_flop_by_precision.insert(Precision::Half, 10_000);
        let times = |ctas| {
            let roofline = Gpu::H100.roofline(&Counters { ctas, ..counters.clone() });
            ["f32 arithmetic", "tensor cores", "device memory"].map(|name| seconds(&roofline, name).unwrap())
        };
        let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-12, "{a} {b}");
        let [float, tensor, memory] = times(132);
        for (ctas, slower) in [(1, 132.0), (33, 4.0), (132, 1.0), (1000, 1.0)] {
            let few = times(ctas);
            near(few[0], slower * float);
            near(few[1], slower * tensor);
            near(few[2], memory);
        }
    }

    #[test]
    fn device_memory_bounds_only_when_its_sectors_are_known() {
        let mut counters = Counters::default();
        counters.global_load.sectors = 1_000;
        assert_eq!(seconds(&Gpu::A100.roofline(&counters), "device memory"), None);
        counters.distinct_sectors = Some(10);
        let expected = 320.0 / 2039e9;
        assert_eq!(seconds(&Gpu::A100.roofline(&counters), "device memory"), Some(expected));
    }
}
