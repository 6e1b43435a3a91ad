//! What the tests of all kernels share: devices under every policy, random inputs, poisoned outputs, f64 references.

use std::sync::{Arc, OnceLock};

use half::{bf16, f16};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use warploom::{
    driver::{Buffer, Cuda, Driver, LaunchReport, Launched, Policy, Simulator, Stream},
    kernels::{self, Dtype, Kernels},
};

use ptxsim::{Delivery, Schedule};

use super::manifest::Manifest;

/// A device with all kernels loaded.
pub struct Rig {
    pub driver: Arc<dyn Driver>,
    simulator: Option<Arc<Simulator>>,
    pub kernels: Kernels,
    pub stream: Stream,
    pub name: String,
}

impl Rig {
    fn simulated(delivery: Delivery, schedule: Schedule) -> Rig {
        let rehearsed = matches!(delivery, Delivery::Eager);
        let policy = Policy { delivery, schedule, rehearsed, ..Policy::default() };
        let simulator = Arc::new(Simulator::new(policy));
        let driver: Arc<dyn Driver> = simulator.clone();
        Rig::new(driver, Some(simulator), format!("sim, {delivery:?}, {schedule:?}"))
    }

    fn new(driver: Arc<dyn Driver>, simulator: Option<Arc<Simulator>>, name: String) -> Rig {
        let kernels = Kernels::load(&driver).expect("the kernels load");
        let stream = Stream::new(&driver).expect("a stream");
        Rig { driver, simulator, kernels, stream, name }
    }

    /// A device with these numbers, whose bytes past the end hold NaN.
    pub fn upload<T: bytemuck::NoUninit>(&self, data: &[T]) -> Buffer {
        Buffer::from_slice(&self.stream, data).expect("upload")
    }

    /// Room for `count` elements of `dtype`, all NaN and, in the simulator, a finding if they are read before they are
    /// written.
    pub fn poisoned(&self, count: usize, dtype: Dtype) -> Buffer {
        let mut buffer = Buffer::new(&self.driver, count * dtype.size()).expect("allocation");
        match &self.simulator {
            Some(simulator) => simulator.poison(&mut buffer.view_mut()).expect("poison"),
            None => self.stream.fill(&mut buffer.view_mut(), 0xff).expect("fill"),
        }
        buffer
    }

    /// The elements of a buffer as numbers.
    pub fn download(&self, buffer: &Buffer, dtype: Dtype) -> Vec<f64> {
        let mut bytes = vec![0u8; buffer.bytes()];
        self.stream.download(buffer.view(), &mut bytes).expect("download");
        numbers(&bytes, dtype)
    }

    /// A buffer's bytes as they are.
    pub fn bytes(&self, buffer: &Buffer) -> Vec<u8> {
        let mut bytes = vec![0u8; buffer.bytes()];
        self.stream.download(buffer.view(), &mut bytes).expect("download");
        bytes
    }

    /// Runs `work` and returns its launches with their counters, each as the manifest says that it is made; none on a GPU.
    pub fn reports(&self, work: impl FnOnce() -> warploom::Result<()>) -> Vec<LaunchReport> {
        match &self.simulator {
            Some(simulator) => {
                let reports = simulator.reports(work).expect("clean launches");
                reports.iter().for_each(|report| manifest().check(report));
                reports
            }
            None => {
                work().expect("launches");
                self.stream.synchronize().expect("synchronisation");
                vec![]
            }
        }
    }
}

fn manifest() -> &'static Manifest {
    static MANIFEST: OnceLock<Manifest> = OnceLock::new();
    MANIFEST
        .get_or_init(|| Manifest(serde_json::to_value(kernels::manifest().expect("kernels")).expect("JSON")))
}

/// Notes in the file that WARPLOOM_TALLY names what was launched and what was found wrong, for scripts/test to sum up.
impl Drop for Rig {
    fn drop(&mut self) {
        let (Some(path), Some(simulator)) = (std::env::var_os("WARPLOOM_TALLY"), &self.simulator) else {
            return;
        };
        let lines: String = simulator
            .launched()
            .iter()
            .map(|l| {
                let Launched { entry, grid, block, count, findings } = l;
                format!("{entry} {grid:?}{block:?} {count} {findings}\n").replace(", ", ",")
            })
            .collect();
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        // One write: tests run beside each other.
        let _ = file.and_then(|mut file| std::io::Write::write_all(&mut file, lines.as_bytes()));
    }
}

/// The devices that a test runs on: the simulator under every delivery of asynchronous copies, each with another schedule;
/// or the GPU that WARPLOOM_DEVICE names.
pub fn rigs() -> Vec<Rig> {
    if let Some(gpu) = gpu() {
        return vec![gpu];
    }
    let random = seed();
    vec![
        Rig::simulated(Delivery::Lazy, Schedule::InOrder),
        Rig::simulated(Delivery::Eager, Schedule::Reversed),
        Rig::simulated(Delivery::Random(random), Schedule::Random(random)),
    ]
}

/// One device, for what need not be tried under every policy.
pub fn rig() -> Rig {
    gpu().unwrap_or_else(|| Rig::simulated(Delivery::Lazy, Schedule::InOrder))
}

pub fn gpu() -> Option<Rig> {
    let name = std::env::var("WARPLOOM_DEVICE").ok()?;
    let ordinal = name.strip_prefix("cuda:").and_then(|n| n.parse().ok()).expect("WARPLOOM_DEVICE is cuda:N");
    let driver: Arc<dyn Driver> = Arc::new(Cuda::new(ordinal).expect("the GPU that WARPLOOM_DEVICE names"));
    Some(Rig::new(driver, None, name))
}

/// Runs the same thing 100 times, on the devices in turn: it must give what it gave the first time.
pub fn assert_the_same_each_time<R: PartialEq>(rigs: &[Rig], mut run: impl FnMut(&Rig) -> R) {
    let first = run(&rigs[0]);
    for i in 1..100 {
        let rig = &rigs[i % rigs.len()];
        assert!(run(rig) == first, "run {i}, on {}, differs", rig.name);
    }
}

/// Numbers by their bits, so that NaN equals NaN and the zeros differ.
pub fn bits(x: &[f64]) -> Vec<u64> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The seed of this run: WARPLOOM_SEED, or a fresh one, printed.
pub fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let seed = match std::env::var("WARPLOOM_SEED") {
            Ok(text) => text.parse().expect("WARPLOOM_SEED is a number"),
            Err(_) => std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |t| t.as_nanos() as u64 % 1_000_000_007),
        };
        println!("WARPLOOM_SEED={seed} replays this run");
        seed
    })
}

/// Random numbers of one test: its own stream of the run's seed.
pub struct Random(ChaCha8Rng);

impl Random {
    /// `test` tells tests apart.
    pub fn new(test: &str) -> Self {
        let name = test.bytes().fold(0u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        Random(ChaCha8Rng::seed_from_u64(seed() ^ name))
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `low..=high`.
    pub fn range(&mut self, low: usize, high: usize) -> usize {
        low + (self.0.next_u64() % (high - low + 1) as u64) as usize
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        *self.one_of(of)
    }

    /// One of them, where it is.
    pub fn one_of<'t, T>(&mut self, of: &'t [T]) -> &'t T {
        &of[self.range(0, of.len() - 1)]
    }

    /// Standard normal.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// `count` normal numbers times `scale`, rounded to `dtype`.
    pub fn normals(&mut self, count: usize, scale: f64, dtype: Dtype) -> Vec<f64> {
        (0..count).map(|_| round(self.normal() * scale, dtype)).collect()
    }
}

/// The nearest number that `dtype` has.
pub fn round(x: f64, dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => f64::from(x as f32),
        Dtype::F16 => f16::from_f64(x).to_f64(),
        Dtype::Bf16 => bf16::from_f64(x).to_f64(),
        Dtype::E4m3 => unreachable!("e4m3 comes with scales, and from its own tests"),
    }
}

/// Distance from |x| to the next number of `dtype` away from zero.
pub fn ulp(x: f64, dtype: Dtype) -> f64 {
    let (digits, least) = match dtype {
        Dtype::F32 => (23, -126),
        Dtype::F16 => (10, -14),
        Dtype::Bf16 => (7, -126),
        Dtype::E4m3 => (3, -6),
    };
    let exponent = if x == 0.0 { least } else { (x.abs().log2().floor() as i32).max(least) };
    2f64.powi(exponent - digits)
}

/// Numbers as the bytes of `dtype`.
pub fn encode(x: &[f64], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => x.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect(),
        Dtype::F16 => x.iter().flat_map(|x| f16::from_f64(*x).to_le_bytes()).collect(),
        Dtype::Bf16 => x.iter().flat_map(|x| bf16::from_f64(*x).to_le_bytes()).collect(),
        Dtype::E4m3 => unreachable!("e4m3 comes with scales, and from its own tests"),
    }
}

/// Bytes of `dtype` as numbers.
pub fn numbers(bytes: &[u8], dtype: Dtype) -> Vec<f64> {
    match dtype {
        Dtype::F32 => {
            bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
        }
        Dtype::F16 => {
            bytes.chunks_exact(2).map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect()
        }
        Dtype::Bf16 => {
            bytes.chunks_exact(2).map(|b| bf16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect()
        }
        Dtype::E4m3 => unreachable!("e4m3 comes with scales, and from its own tests"),
    }
}

/// Asserts that every element is within `ulps` of its f64 reference, in units of `dtype`.
pub fn assert_within_ulps(what: &str, got: &[f64], want: &[f64], ulps: f64, dtype: Dtype) {
    assert_eq!(got.len(), want.len(), "{what}: count");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        // Half a unit more: the reference itself is not rounded.
        let bound = ulps * ulp(*want, dtype);
        assert!((got - want).abs() <= bound, "{what}: element {i} is {got}, not {want} (± {bound})");
    }
}

/// FlashAttention's rule: max|out − ref| ≤ factor·max|naive − ref| + 2·max|(ref + 0.3 − 0.3) − ref|, where `naive` is the
/// unfused computation in the storage type.
pub fn assert_as_exact_as_naive(
    what: &str,
    out: &[f64],
    reference: &[f64],
    naive: &[f64],
    factor: f64,
    dtype: Dtype,
) {
    assert_eq!(out.len(), reference.len(), "{what}: count");
    let worst = |x: &[f64]| x.iter().zip(reference).map(|(x, r)| (x - r).abs()).fold(0.0, f64::max);
    let shifted: Vec<f64> =
        reference.iter().map(|r| round(round(round(*r, dtype) + 0.3, dtype) - 0.3, dtype)).collect();
    let mut bound = factor * worst(naive) + 2.0 * worst(&shifted);
    if out.len() < 64 {
        // Of few results the naive ones may all happen to be rounded to the right number.
        let unit = if dtype == Dtype::F16 { 2f64.powi(-11) } else { 2f64.powi(-8) };
        bound += 2.0 * unit * reference.iter().fold(0.0, |most: f64, r| most.max(r.abs()));
    }
    for (i, (out, r)) in out.iter().zip(reference).enumerate() {
        assert!((out - r).abs() <= bound, "{what}: element {i} is {out}, not {r} (± {bound})");
    }
}
