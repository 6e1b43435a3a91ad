//! AdamW and its monitor: the same bits as on the CPU, in weights, moments and statistics.

use bytemuck::Zeroable;
use half::bf16;
use warploom::{
    driver::Buffer,
    kernels::{
        Adamw, AdamwArgs, Dtype, FAMILIES,
        params::{WL_ADAMW_SCRATCH_HEAD, WL_F32, WL_VERSION, WlAdamw, WlAdamwStatistics, WlAdamwStep},
    },
    optimizer::{AdamW, BINS, CHUNK, Settings, Statistics, Step},
};

use super::harness::{Random, Rig, assert_the_same_each_time, encode, rig, rigs};

const TYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];
const HEAD: usize = WL_ADAMW_SCRATCH_HEAD as usize;

const SETTINGS: [Settings; 4] = [
    Settings { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1 },
    Settings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 },
    Settings { beta1: 0.0, beta2: 0.5, epsilon: 0.3, weight_decay: 1e-3 },
    Settings { beta1: 0.95, beta2: 0.98, epsilon: 1e-18, weight_decay: 0.5 },
];

/// A tensor in some step, f32.
#[derive(Clone)]
struct Case {
    settings: Settings,
    gradient_dtype: Dtype,
    weights: Vec<f32>,
    gradients: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
    /// Steps done.
    steps: u32,
    learning_rate: f32,
    gradient_scale: f32,
    copy: bool,
    /// Elements from an address of 256 to the first of weights, m, v and gradients; the last in f32 alone.
    offsets: [usize; 4],
    /// NaN behind the last element; with none, the memory ends there.
    padding: usize,
}

/// All that a step leaves.
#[derive(Clone, Debug, PartialEq)]
struct Left {
    weights: Vec<u32>,
    m: Vec<u32>,
    v: Vec<u32>,
    copy: Option<Vec<u16>>,
    statistics: Statistics,
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

impl Case {
    fn random(random: &mut Random, gradient_dtype: Dtype, count: usize) -> Case {
        let mut floats = |scale: f64, dtype| -> Vec<f32> {
            random.normals(count, scale, dtype).iter().map(|x| *x as f32).collect()
        };
        let weights = floats(0.02, Dtype::F32);
        let gradients = floats(1.0, gradient_dtype);
        let (m, v) = (floats(0.3, Dtype::F32), floats(1.0, Dtype::F32));
        Case {
            settings: random.pick(&SETTINGS),
            gradient_dtype,
            weights,
            gradients,
            m,
            v: v.iter().map(|x| x * x).collect(),
            steps: random.pick(&[0, 1, 9, 300, 100_000]),
            learning_rate: random.pick(&[1e-4, 3e-3, 0.1]),
            gradient_scale: random.pick(&[1.0, 0.01, 0.37]),
            copy: random.pick(&[false, true]),
            offsets: [0; 4],
            padding: random.pick(&[0, 8]),
        }
    }

    fn count(&self) -> usize {
        self.weights.len()
    }

    /// One chunk of it.
    fn chunk(&self, number: usize) -> Case {
        let of = |x: &[f32]| x[number * CHUNK..][..CHUNK].to_vec();
        let (weights, gradients) = (of(&self.weights), of(&self.gradients));
        Case { weights, gradients, m: of(&self.m), v: of(&self.v), ..self.clone() }
    }

    /// Bins that some element is in.
    fn bins(&self) -> usize {
        self.on_the_cpu().statistics.histogram.iter().filter(|count| **count > 0).count()
    }

    fn step(&self) -> WlAdamwStep {
        Step::new(&self.settings, self.steps + 1, self.learning_rate, self.gradient_scale).into()
    }

    fn on_the_cpu(&self) -> Left {
        let mut adam =
            AdamW::with_moments(self.settings, self.m.clone(), self.v.clone(), self.steps).unwrap();
        let mut weights = self.weights.clone();
        let statistics =
            adam.step(&mut weights, &self.gradients, self.learning_rate, self.gradient_scale).unwrap();
        Left {
            m: bits(adam.moments().0),
            v: bits(adam.moments().1),
            copy: self.copy.then(|| weights.iter().map(|x| bf16::from_f32(*x).to_bits()).collect()),
            weights: bits(&weights),
            statistics,
        }
    }

    /// Uploads the tensor, with NaN before and after it.
    fn place(&self, rig: &Rig) -> Placed {
        let padded = |x: &[f32], offset: usize, dtype| {
            let nan = vec![f64::NAN; offset];
            let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            rig.upload(&encode(&[&nan, &x[..], &vec![f64::NAN; self.padding]].concat(), dtype))
        };
        let [weights, m, v, gradients] = self.offsets;
        let mut scratch = rig.poisoned(Adamw::scratch_bytes(self.count()) / 4, Dtype::F32);
        rig.stream.fill(&mut scratch.view_mut().slice(0..HEAD), 0).unwrap();
        Placed {
            weights: padded(&self.weights, weights, Dtype::F32),
            m: padded(&self.m, m, Dtype::F32),
            v: padded(&self.v, v, Dtype::F32),
            gradients: padded(&self.gradients, gradients, self.gradient_dtype),
            copy: rig.poisoned(self.count() + self.padding, Dtype::Bf16),
            step: rig.upload(&[self.step()]),
            statistics: rig.poisoned(size_of::<WlAdamwStatistics>() / 4, Dtype::F32),
            scratch,
        }
    }

    /// What the step leaves on a device, and what it cost.
    fn run(&self, rig: &Rig) -> (Left, Option<ptxsim::Counters>) {
        let mut placed = self.place(rig);
        let mut reports = rig.reports(|| placed.launch(self, rig));
        (placed.left(self, rig), reports.pop().map(|r| r.counters))
    }

    fn check(&self, rig: &Rig) {
        let (left, want) = (self.run(rig).0, self.on_the_cpu());
        let what = format!("{}, {:?}, {} elements", rig.name, self.gradient_dtype, self.count());
        assert_eq!(left.statistics, want.statistics, "{what}");
        assert!(left == want, "{what}: weights, moments or copy differ");
    }
}

/// A tensor in device memory.
struct Placed {
    weights: Buffer,
    m: Buffer,
    v: Buffer,
    gradients: Buffer,
    copy: Buffer,
    step: Buffer,
    statistics: Buffer,
    scratch: Buffer,
}

impl Placed {
    fn launch(&mut self, case: &Case, rig: &Rig) -> warploom::Result<()> {
        let count = case.count();
        let span = |offset: usize, size: usize| size * offset..size * (offset + count);
        let [weights, m, v, gradients] = case.offsets;
        let args = AdamwArgs {
            settings: case.settings,
            count,
            weights: self.weights.view_mut().part(span(weights, 4)),
            gradient_dtype: case.gradient_dtype,
            gradients: self.gradients.view().slice(span(gradients, case.gradient_dtype.size())),
            m: self.m.view_mut().part(span(m, 4)),
            v: self.v.view_mut().part(span(v, 4)),
            copy: case.copy.then(|| self.copy.view_mut().part(span(0, 2))),
            step: self.step.view(),
            statistics: self.statistics.view_mut(),
            scratch: self.scratch.view_mut(),
        };
        rig.kernels.adamw.launch(&rig.stream, args)
    }

    /// What is there now; and sees that nothing else was written.
    fn left(&self, case: &Case, rig: &Rig) -> Left {
        let count = case.count();
        let floats = |buffer: &Buffer, offset: usize| {
            let all: Vec<u32> = rig
                .bytes(buffer)
                .chunks_exact(4)
                .map(|x| u32::from_le_bytes(x.try_into().unwrap()))
                .collect();
            let outside = [&all[..offset], &all[offset + count..]].concat();
            assert!(outside.iter().all(|x| f32::from_bits(*x).is_nan()), "written outside the tensor");
            all[offset..][..count].to_vec()
        };
        let mut statistics = [WlAdamwStatistics::zeroed()];
        rig.stream.download(self.statistics.view(), &mut statistics).unwrap();
        let head = &rig.bytes(&self.scratch)[..HEAD];
        assert!(head.iter().all(|x| *x == 0), "the head of the scratch is as it was");
        let copy: Vec<u16> =
            rig.bytes(&self.copy).chunks_exact(2).map(|x| u16::from_le_bytes([x[0], x[1]])).collect();
        let written = if case.copy { count } else { 0 };
        assert!(copy[written..].iter().all(|x| bf16::from_bits(*x).is_nan()), "written past the copy");
        Left {
            weights: floats(&self.weights, case.offsets[0]),
            m: floats(&self.m, case.offsets[1]),
            v: floats(&self.v, case.offsets[2]),
            copy: case.copy.then(|| copy[..count].to_vec()),
            statistics: statistics[0].measured(count, case.learning_rate),
        }
    }
}

#[test]
fn any_size() {
    let mut random = Random::new("adamw sizes");
    let rigs = rigs();
    for count in
        [0, 1, 2, 3, 4, 5, 31, 127, 128, 129, 769, 1023, 1024, 1028, 5125, CHUNK - 1, CHUNK, CHUNK + 1]
    {
        for dtype in TYPES {
            let case = Case::random(&mut random, dtype, count);
            rigs.iter().for_each(|rig| case.check(rig));
        }
    }
    // More chunks than chains, and random sizes.
    for count in [18 * CHUNK + 5, 33 * CHUNK + 772, random.range(1, 3 * CHUNK), 4 * random.range(1, CHUNK)] {
        let dtype = random.pick(&TYPES);
        Case::random(&mut random, dtype, count).check(random.one_of(&rigs));
    }
}

#[test]
fn tensors_that_begin_anywhere() {
    let mut random = Random::new("adamw offsets");
    let rig = rig();
    for dtype in TYPES {
        for array in 0..4 {
            let mut case = Case::random(&mut random, dtype, 1284);
            case.offsets[array] = random.range(1, 3);
            if dtype == Dtype::Bf16 {
                case.offsets[3] = 8 * (case.offsets[3] / 2);
            }
            case.check(&rig);
        }
    }
}

/// Gradients, moments and weights that are not finite, or make something that is not; in the middle and at the end.
#[test]
fn what_is_not_finite_is_left_as_it_is() {
    let mut random = Random::new("adamw not finite");
    let rig = rig();
    for dtype in TYPES {
        for count in [1284, CHUNK + 770] {
            let mut case = Case { gradient_scale: 1.0, ..Case::random(&mut random, dtype, count) };
            let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 2e19, -3e38];
            for (i, at) in [0, 1, 127, 1022, 1024, count - 1].into_iter().enumerate() {
                case.gradients[at] = bf16::from_f32(bad[i % bad.len()]).to_f32();
            }
            case.m[200] = f32::INFINITY;
            case.v[201] = f32::INFINITY;
            case.v[202] = -1e30;
            case.weights[203] = f32::NEG_INFINITY;
            case.weights[204] = f32::MAX;
            case.m[204] = -3e38;
            // Numbers that do not differ from NaN by chance alone.
            case.v[205] = 0.0;
            case.gradients[205] = 0.0;
            case.check(&rig);
            assert!((10..=11).contains(&case.run(&rig).0.statistics.non_finite));
            let (rate, scale) = random.pick(&[(f32::NAN, 1.0), (f32::INFINITY, 1.0), (0.1, f32::INFINITY)]);
            let all = Case { learning_rate: rate, gradient_scale: scale, ..case };
            let left = all.run(&rig).0;
            assert_eq!(left.statistics.non_finite, count as u64);
            assert!(left.weights == bits(&all.weights) && left.m == bits(&all.m) && left.v == bits(&all.v));
        }
    }
}

/// Ratios beyond both ends of the histogram, roots under ε, subnormal numbers.
#[test]
fn extremes() {
    let mut random = Random::new("adamw extremes");
    let rig = rig();
    for settings in SETTINGS {
        let mut case = Case { settings, steps: 500, ..Case::random(&mut random, Dtype::F32, 2048) };
        for i in 0..2048 {
            let scale = random.pick(&[1e-30f32, 1e-22, 1e-9, 1e-4, 1.0, 1e9]);
            (case.m[i], case.gradients[i]) = (case.m[i] * scale, case.gradients[i] * scale);
            case.v[i] = random.pick(&[0.0, 1e-40, 1e-20, 1e-3, 1.0, 1e12]);
        }
        case.check(&rig);
        let s = case.on_the_cpu().statistics;
        let beyond = 1.25 * case.settings.ratio_bound();
        if case.settings.beta1 > 0.0 {
            assert!(f64::from(s.max_ratio) > beyond && s.histogram[0] > 0 && s.histogram[BINS - 1] > 0);
        }
        assert!(
            s.small_roots > 0 && s.small_roots < s.count && s.large_ratios > 0 && s.large_ratios < s.count
        );
    }
}

/// The update by the formula, in f64.
#[test]
fn the_formula() {
    let mut random = Random::new("adamw formula");
    let rig = rig();
    for dtype in TYPES {
        let case = Case { steps: 40, ..Case::random(&mut random, dtype, 3000) };
        let (left, step) = (case.run(&rig).0, case.step());
        let [beta1, beta2, epsilon, decay, rate, scale, m_correction, v_correction] = [
            case.settings.beta1,
            case.settings.beta2,
            case.settings.epsilon,
            case.settings.weight_decay,
            step.learning_rate,
            step.gradient_scale,
            step.m_correction,
            step.v_correction,
        ]
        .map(f64::from);
        let (mut r_2, mut g_g) = (0.0, 0.0);
        for i in 0..case.count() {
            let [w, g, m, v] = [case.weights[i], case.gradients[i], case.m[i], case.v[i]].map(f64::from);
            let g = g * scale;
            let (m, v) = (beta1 * m + (1.0 - beta1) * g, beta2 * v + (1.0 - beta2) * g * g);
            let r = m * m_correction / ((v * v_correction).sqrt() + epsilon);
            let want = w - rate * (r + decay * w);
            let got = f64::from(f32::from_bits(left.weights[i]));
            let bound = 1e-6 * (w.abs() + rate * (r.abs() + 1.0));
            assert!((got - want).abs() <= bound, "{i}: {got}, not {want} (± {bound})");
            (r_2, g_g) = (r_2 + r * r, g_g + g * g);
        }
        for (got, want) in [(left.statistics.ratio_powers[1], r_2), (left.statistics.gradient_squared, g_g)] {
            assert!((got / want - 1.0).abs() < 1e-5, "{got}, not {want}");
        }
    }
}

/// A captured launch takes each step's scalars from device memory.
#[test]
fn a_graph_goes_on_from_step_to_step() {
    let mut random = Random::new("adamw graph");
    let rig = rig();
    let mut case = Case::random(&mut random, Dtype::F32, CHUNK + 1000);
    case.steps = 0;
    let mut placed = case.place(&rig);
    let graph = rig.stream.capture(|| placed.launch(&case, &rig)).expect("a capture");
    for step in 0..3 {
        case.learning_rate = 0.1 / (1.0 + step as f32);
        case.gradient_scale = 0.5 + step as f32;
        rig.stream.upload(&mut placed.step.view_mut(), &[case.step()]).unwrap();
        rig.reports(|| {
            // SAFETY: all buffers of the launch are there.
            unsafe { rig.stream.launch_graph(&graph) }
        });
        let want = case.on_the_cpu();
        assert!(placed.left(&case, &rig) == want, "step {step}");
        let floats = |x: &[u32]| x.iter().map(|x| f32::from_bits(*x)).collect();
        (case.weights, case.m, case.v) = (floats(&want.weights), floats(&want.m), floats(&want.v));
        case.steps += 1;
    }
}

/// Tensors of any size share a scratch, one after the other.
#[test]
fn one_scratch_serves_all() {
    let mut random = Random::new("adamw scratch");
    let rig = rig();
    let large = Case::random(&mut random, Dtype::F32, 3 * CHUNK + 5);
    let mut scratch = Some(large.place(&rig).scratch);
    for count in [3 * CHUNK + 5, 5, 2 * CHUNK, 0, 3 * CHUNK] {
        let case = Case::random(&mut random, Dtype::F32, count);
        let mut placed = Placed { scratch: scratch.take().unwrap(), ..case.place(&rig) };
        rig.reports(|| placed.launch(&case, &rig));
        assert!(placed.left(&case, &rig) == case.on_the_cpu(), "{count} elements");
        scratch = Some(placed.scratch);
    }
}

#[test]
fn the_same_each_time() {
    let mut random = Random::new("adamw repeats");
    let case = Case::random(&mut random, Dtype::Bf16, CHUNK + 4 * 33);
    assert_the_same_each_time(&rigs(), |rig| case.run(rig).0);
}

/// Every byte moves once: 28 an element, 26 with gradients in bf16, 2 more with the copy. Nothing of shared memory is asked for twice.
#[test]
fn every_byte_moves_once() {
    let mut random = Random::new("adamw bytes");
    let rig = rig();
    let chunks = 3;
    for (dtype, copy) in [(Dtype::F32, false), (Dtype::Bf16, true)] {
        let case = Case { copy, ..Case::random(&mut random, dtype, chunks * CHUNK) };
        let (_, counters) = case.run(&rig);
        let Some(counters) = counters else { return };
        let (load, store) = (counters.global_load, counters.global_store);
        let (elements, copy) = (case.count(), if copy { 2 } else { 0 });
        // Every thread takes the step; the last CTA partials, a line of 128 B two chunks of them, and the histogram.
        let step = 16 * 256 * chunks;
        let total = 64 * chunks + 8 * BINS;
        assert_eq!(load.bytes as usize, (12 + dtype.size()) * elements + step + total);
        let warps = 8 * chunks;
        assert_eq!(32 * load.sectors as usize, (12 + dtype.size()) * elements + 32 * warps + total);
        // The statistics, and the histogram's zeros.
        assert_eq!(
            store.bytes as usize,
            (12 + copy) * elements + 64 * chunks + size_of::<WlAdamwStatistics>() + 8 * BINS
        );
        let whole = (12 + copy) * elements + 64 * chunks + 8 * BINS + 8 * BINS;
        assert!(32 * store.sectors as usize - whole <= 8 * 32, "{} sectors", store.sectors);
        // A CTA adds what it has counted of its chunk, and draws a ticket.
        let filled: usize = (0..chunks).map(|chunk| case.chunk(chunk).bins()).sum();
        assert_eq!(counters.global_atomic.bytes as usize, 8 * filled + 4 * chunks);
        for shared in [counters.shared_load, counters.shared_store, counters.shared_atomic] {
            assert!(shared.requests > 0);
            assert_eq!(shared.wavefronts, shared.ideal, "no bank conflicts");
        }
        assert_eq!(counters.shared_atomic.bytes as usize, 4 * elements);
        assert_eq!(counters.local.bytes, 0);
    }
}

/// A chunk beyond 2^31 elements, alone: its number is written into the PTX, and what lies before it would be in memory that there is
/// not.
#[test]
fn a_chunk_beyond_31_bits() -> ptxsim::Result<()> {
    let chunk = (1usize << 31) / CHUNK + 1;
    let case = Case { copy: true, ..Case::random(&mut Random::new("adamw far"), Dtype::F32, 1000) };
    let family = FAMILIES.iter().find(|family| family.name == "adamw").unwrap();
    // As the simulator's driver has it.
    let tried =
        std::env::var_os("WARPLOOM_PTX").map(|folder| std::path::Path::new(&folder).join("adamw.ptx"));
    let ptx = tried.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or(family.ptx.into());
    let ptx = ptx.replace("%ctaid.x;", &format!("{chunk};"));
    let mut device = ptxsim::Device::new(ptxsim::Gpu::A100);
    let module = device.load(ptxsim::Module::parse(&ptx)?)?;
    let mut place = |bytes: &[u8], before: usize| {
        let address = device.allocate(bytes.len() as u64)?;
        device.write(address, bytes)?;
        ptxsim::Result::Ok(address.wrapping_sub(before as u64))
    };
    let before = chunk * CHUNK;
    let p = WlAdamw {
        version: WL_VERSION,
        gradient_type: WL_F32,
        count: (before + case.count()) as i64,
        beta1: case.settings.beta1,
        beta2: case.settings.beta2,
        epsilon: case.settings.epsilon,
        decay: case.settings.weight_decay,
        bins_per_ratio: (BINS as f64 / (2.5 * case.settings.ratio_bound())) as f32,
        reserved: 0,
        weights: place(bytemuck::cast_slice(&case.weights), 4 * before)?,
        gradients: place(bytemuck::cast_slice(&case.gradients), 4 * before)?,
        m: place(bytemuck::cast_slice(&case.m), 4 * before)?,
        v: place(bytemuck::cast_slice(&case.v), 4 * before)?,
        copy: place(&[0xff; 2000], 2 * before)?,
        step: place(bytemuck::bytes_of(&case.step()), 0)?,
        statistics: place(&[0xff; size_of::<WlAdamwStatistics>()], 0)?,
        // The last CTA, which is the only one of the grid, adds up the partials of chunk 0.
        scratch: place(&vec![0; Adamw::scratch_bytes(before + 1)], 0)?,
    };
    let launch = ptxsim::Launch {
        block: [256, 1, 1],
        arguments: vec![ptxsim::Argument(bytemuck::bytes_of(&p).into())],
        ..ptxsim::Launch::default()
    };
    let report = device.launch(&module, "wl_adamw_f32", &launch)?;
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    let mut floats = |address: u64, count: usize| -> ptxsim::Result<Vec<u32>> {
        let bytes = device.read(address, 4 * count)?;
        Ok(bytes.chunks_exact(4).map(|x| u32::from_le_bytes(x.try_into().unwrap())).collect())
    };
    let (want, far) = (case.on_the_cpu(), 4 * before as u64);
    assert!(floats(p.weights.wrapping_add(far), 1000)? == want.weights);
    assert!(floats(p.m.wrapping_add(far), 1000)? == want.m && floats(p.v.wrapping_add(far), 1000)? == want.v);
    let partials = floats(p.scratch + Adamw::scratch_bytes(before) as u64, 1)?;
    assert_eq!(f64::from(f32::from_bits(partials[0])), want.statistics.gradient_squared);
    let copy = device.read(p.copy.wrapping_add(2 * before as u64), 2000)?;
    assert!(copy.chunks_exact(2).map(|x| u16::from_le_bytes([x[0], x[1]])).eq(want.copy.unwrap()));
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() {
    let rig = rig();
    let case = Case::random(&mut Random::new("adamw refusals"), Dtype::F32, CHUNK + 1);
    let case = Case { copy: true, padding: 0, ..case };
    let mut placed = case.place(&rig);
    let mut refused = |change: &dyn Fn(&mut AdamwArgs), wanted: &str| {
        let Placed { weights, m, v, gradients, copy, step, statistics, scratch } = &mut placed;
        let mut args = AdamwArgs {
            settings: Settings::default(),
            count: CHUNK + 1,
            weights: weights.view_mut(),
            gradient_dtype: Dtype::F32,
            gradients: gradients.view(),
            m: m.view_mut(),
            v: v.view_mut(),
            copy: Some(copy.view_mut()),
            step: step.view(),
            statistics: statistics.view_mut(),
            scratch: scratch.view_mut(),
        };
        change(&mut args);
        let error = rig.kernels.adamw.launch(&rig.stream, args).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    };
    refused(&|a| a.settings.beta1 = 1.0, "beta1: 1; supported are numbers from 0 to below 1");
    refused(&|a| a.settings.beta1 = f32::NAN, "beta1: NaN");
    refused(&|a| a.settings.beta2 = 0.8, "beta2: 0.8; supported are numbers over beta1² and below 1");
    refused(&|a| a.settings.beta2 = 1.0, "beta2: 1;");
    refused(&|a| a.settings.epsilon = 0.0, "epsilon: 0; supported are numbers from 1e-18 to 1");
    refused(&|a| a.settings.weight_decay = -0.1, "weight_decay: -0.1");
    refused(&|a| a.settings.weight_decay = f32::INFINITY, "weight_decay: inf");
    refused(&|a| a.gradient_dtype = Dtype::F16, "gradient_dtype: f16; supported are f32 and bf16");
    refused(&|a| a.count = (1 << 43) + 1, "count: 8796093022209");
    refused(&|a| a.count = CHUNK + 10, "copy: 16386 bytes do not hold 8202 elements");
    refused(
        &|a| (a.count, a.copy) = (CHUNK + 10, None),
        "weights: 32772 bytes do not hold 8202 elements of 4",
    );
    let short = 4 * CHUNK..4 * CHUNK + 4;
    refused(
        &|a| a.gradients = a.gradients.slice(short.clone()),
        "gradients: 4 bytes do not hold 8193 elements",
    );
    refused(&|a| (a.count, a.gradients) = (CHUNK, a.gradients.slice(2..4 * CHUNK + 2)), "gradients: address");
    refused(&|a| a.gradients = a.step, "gradients: 16 bytes");
    refused(&|a| a.step = a.step.slice(0..12), "step: 12 bytes do not hold 1 elements of 16");
    refused(&|a| a.step = a.gradients.slice(4..20), "step: address");
    let bytes = size_of::<WlAdamwStatistics>();
    fn cut<'b>(view: &mut warploom::driver::ViewMut<'b>, range: std::ops::Range<usize>) {
        // SAFETY: a part of the same range, for as long.
        *view =
            unsafe { warploom::driver::ViewMut::from_raw(view.address() + range.start as u64, range.len()) };
    }
    refused(&|a| cut(&mut a.m, 0..8), "m: 8 bytes do not hold 8193 elements");
    refused(&|a| cut(&mut a.v, 2..4 * CHUNK + 6), "v: address");
    refused(&|a| cut(a.copy.as_mut().unwrap(), 2..2 * CHUNK + 4), "copy: address");
    refused(&|a| cut(&mut a.statistics, 0..bytes - 8), "statistics: 616 bytes do not hold 1 elements of 624");
    refused(&|a| cut(&mut a.scratch, 0..1151), "scratch: 1151 bytes; 1152 are needed");
    assert_eq!(Adamw::scratch_bytes(0), 1024 + 64);
    assert_eq!(Adamw::scratch_bytes(1 << 40), 1024 + 64 * (1 << 27));
}
