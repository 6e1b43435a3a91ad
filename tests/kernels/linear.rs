//! The skinny linear against its formula in f64.

use warploom::{
    driver::Buffer,
    kernels::{Dtype, LinearArgs, LinearEpilogue, LinearNorm, LinearProjection, RmsNormArgs, Rows, RowsMut},
};

use super::harness::{Random, Rig, assert_as_exact_as_naive, encode, numbers, rig, rigs, round};

/// One launch: shapes and what was in memory.
#[derive(Clone)]
struct Case {
    dtype: Dtype,
    rows: usize,
    inputs: usize,
    epilogue: LinearEpilogue,
    x_stride: usize,
    out_stride: usize,
    /// Of all weights.
    stride: usize,
    x: Vec<f64>,
    norm: Option<Vec<f64>>,
    parts: Vec<Part>,
    /// What out holds before.
    out: Vec<f64>,
}

#[derive(Clone)]
struct Part {
    features: usize,
    column: usize,
    weight: Vec<f64>,
    bias: Option<Vec<f64>>,
}

struct Run {
    out: Vec<u8>,
    stats: Vec<u8>,
    /// The scratch's counters.
    tickets: Vec<u8>,
    counters: Option<ptxsim::Counters>,
}

const EPS: f32 = 1e-5;
const TYPES: [Dtype; 2] = [Dtype::Bf16, Dtype::F16];

/// Rows of `width` numbers, `stride` apart, NaN in between and after.
fn matrix(
    random: &mut Random,
    rows: usize,
    width: usize,
    stride: usize,
    scale: f64,
    dtype: Dtype,
) -> Vec<f64> {
    let mut x = vec![f64::NAN; rows * stride + 8];
    for row in 0..rows {
        x[row * stride..][..width].copy_from_slice(&random.normals(width, scale, dtype));
    }
    x
}

/// What makes a case, other than its numbers.
struct Shape<'s> {
    dtype: Dtype,
    rows: usize,
    inputs: usize,
    features: &'s [usize],
    epilogue: LinearEpilogue,
    norm: bool,
    bias: bool,
    /// Added to the strides of x, weights and out.
    gaps: [usize; 3],
}

impl Shape<'_> {
    fn fill(&self, random: &mut Random) -> Case {
        let &Shape { dtype, rows, inputs, features, epilogue, norm, bias, gaps } = self;
        let swiglu = epilogue == LinearEpilogue::SwiGlu;
        let width = if swiglu { features[0] } else { features.iter().sum() };
        let (x_stride, stride, out_stride) = (inputs + gaps[0], inputs + gaps[1], width + gaps[2]);
        let scale = 2.0 / (inputs as f64).sqrt();
        // The projections lie in the order last, first, second … to tell columns from indices.
        let mut column = 0;
        let mut parts: Vec<Part> = vec![];
        for i in (0..features.len()).rev() {
            parts.insert(
                0,
                Part {
                    features: features[i],
                    column,
                    weight: matrix(random, features[i], inputs, stride, scale, dtype),
                    bias: bias.then(|| [random.normals(features[i], 1.0, dtype), vec![f64::NAN; 8]].concat()),
                },
            );
            if !swiglu {
                column += features[i];
            }
        }
        Case {
            dtype,
            rows,
            inputs,
            epilogue,
            x_stride,
            out_stride,
            stride,
            x: matrix(random, rows, inputs, x_stride, if norm { 30.0 } else { 1.0 }, dtype),
            norm: norm.then(|| [random.normals(inputs, 1.0, dtype), vec![f64::NAN; 8]].concat()),
            parts,
            out: matrix(random, rows, width, out_stride, 1.0, dtype),
        }
    }
}

impl<'s> Shape<'s> {
    /// Without gaps, norm and bias.
    fn plain(
        dtype: Dtype,
        rows: usize,
        inputs: usize,
        features: &'s [usize],
        epilogue: LinearEpilogue,
    ) -> Self {
        Shape { dtype, rows, inputs, features, epilogue, norm: false, bias: false, gaps: [0; 3] }
    }
}

/// Sums of squares of 64 features, in the order of `row_statistics.cuh`.
fn statistics(row: &[f64]) -> impl Iterator<Item = f32> {
    row.chunks(64).map(|chunk| {
        let mut p = [0f32; 8];
        for (i, x) in chunk.iter().enumerate() {
            p[i / 8] = (*x as f32).mul_add(*x as f32, p[i / 8]);
        }
        ((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7]))
    })
}

impl Case {
    fn width(&self) -> usize {
        self.parts.iter().map(|p| p.column + p.features).max().unwrap()
    }

    fn out_dtype(&self) -> Dtype {
        if self.epilogue == LinearEpilogue::StoreF32 { Dtype::F32 } else { self.dtype }
    }

    fn x_row(&self, row: usize) -> &[f64] {
        &self.x[row * self.x_stride..][..self.inputs]
    }

    fn run(&self, rig: &Rig) -> Run {
        self.repeat(rig, 1).pop().unwrap()
    }

    /// Launches `times`, with the scratch as the launch before left it.
    fn repeat(&self, rig: &Rig, times: usize) -> Vec<Run> {
        let Case { dtype, rows, inputs, epilogue, .. } = *self;
        let upload = |x: &Vec<f64>| rig.upload(&encode(x, dtype));
        let x = upload(&self.x);
        let norm = self.norm.as_ref().map(&upload);
        let stats: Vec<f32> = (0..rows).flat_map(|row| statistics(self.x_row(row))).collect();
        let stats = rig.upload(&stats);
        let parts: Vec<(Buffer, Option<Buffer>)> =
            self.parts.iter().map(|p| (upload(&p.weight), p.bias.as_ref().map(&upload))).collect();
        let mut scratch: Option<Buffer> = None;
        let mut runs = vec![];
        for _ in 0..times {
            let mut out = match epilogue {
                LinearEpilogue::Add => upload(&self.out),
                _ => rig.poisoned(self.out.len(), self.out_dtype()),
            };
            let mut out_stats = rig.poisoned(rows * self.width().div_ceil(64), Dtype::F32);
            let mut projections = [None; 3];
            for (to, (part, (weight, bias))) in projections.iter_mut().zip(self.parts.iter().zip(&parts)) {
                *to = Some(LinearProjection {
                    weight: Rows { view: weight.view(), stride: self.stride },
                    bias: bias.as_ref().map(Buffer::view),
                    features: part.features,
                    column: part.column,
                });
            }
            let args = LinearArgs {
                dtype,
                rows,
                inputs,
                x: Rows { view: x.view(), stride: self.x_stride },
                norm: norm.as_ref().map(|w| LinearNorm { weight: w.view(), eps: EPS, stats: stats.view() }),
                projections,
                epilogue,
                out: RowsMut { view: out.view_mut(), stride: self.out_stride },
                out_stats: (epilogue == LinearEpilogue::Add).then(|| out_stats.view_mut()),
            };
            let linear = &rig.kernels.linear;
            let scratch = scratch.get_or_insert_with(|| {
                let bytes = linear.scratch_bytes(&args);
                let mut scratch = rig.poisoned(bytes.div_ceil(4), Dtype::F32);
                rig.stream.fill(&mut scratch.view_mut().slice(0..bytes.min(512)), 0).unwrap();
                scratch
            });
            let mut reports = rig.reports(|| linear.launch(&rig.stream, args, scratch.view_mut()));
            let mut tickets = rig.bytes(scratch);
            tickets.truncate(512);
            runs.push(Run {
                out: rig.bytes(&out),
                stats: if epilogue == LinearEpilogue::Add { rig.bytes(&out_stats) } else { vec![] },
                tickets,
                counters: reports.pop().map(|r| r.counters),
            });
        }
        runs
    }

    /// Row `row` of the result in f64, and as it comes out where each step rounds to the storage type.
    fn expect(&self, row: usize) -> (Vec<f64>, Vec<f64>) {
        let dtype = self.dtype;
        let x = self.x_row(row);
        let (mut exact, mut naive) = (x.to_vec(), x.to_vec());
        if let Some(norm) = &self.norm {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let inverse = 1.0 / (mean + f64::from(EPS)).sqrt();
            for (((exact, naive), x), w) in exact.iter_mut().zip(&mut naive).zip(x).zip(norm) {
                *exact = x * inverse * w;
                *naive = round(round(x * inverse, dtype) * w, dtype);
            }
        }
        let at = |part: &Part, n: usize, x: &[f64]| -> f64 {
            let w = &part.weight[n * self.stride..][..self.inputs];
            x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() + part.bias.as_ref().map_or(0.0, |b| b[n])
        };
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let (mut want, mut rough) = (vec![0.0; self.width()], vec![0.0; self.width()]);
        if self.epilogue == LinearEpilogue::SwiGlu {
            for n in 0..self.width() {
                let [gate, up] = [0, 1].map(|i| at(&self.parts[i], n, &exact));
                want[n] = silu(gate) * up;
                let [gate, up] = [0, 1].map(|i| round(at(&self.parts[i], n, &naive), dtype));
                rough[n] = round(round(silu(gate), dtype) * up, dtype);
            }
            return (want, rough);
        }
        for part in &self.parts {
            for n in 0..part.features {
                let (mut y, mut r) = (at(part, n, &exact), round(at(part, n, &naive), dtype));
                if self.epilogue == LinearEpilogue::Add {
                    let before = self.out[row * self.out_stride + part.column + n];
                    (y, r) = (y + before, round(r + before, dtype));
                }
                want[part.column + n] = y;
                rough[part.column + n] = r;
            }
        }
        (want, rough)
    }

    fn check(&self, rig: &Rig) {
        let run = self.run(rig);
        let features: Vec<usize> = self.parts.iter().map(|p| p.features).collect();
        let what = format!(
            "{} {:?} {} rows, {features:?} × {}, {:?}{}",
            rig.name,
            self.dtype,
            self.rows,
            self.inputs,
            self.epilogue,
            if self.norm.is_some() { ", norm" } else { "" },
        );
        let (width, dtype) = (self.width(), self.out_dtype());
        let out = numbers(&run.out, dtype);
        let stats = numbers(&run.stats, Dtype::F32);
        let (mut got, mut want, mut naive) = (vec![], vec![], vec![]);
        for (row, out) in out.chunks(self.out_stride).take(self.rows).enumerate() {
            got.extend_from_slice(&out[..width]);
            assert!(out[width..].iter().all(|x| x.is_nan()), "{what}: row {row} wrote past its end");
            let (exact, rough) = self.expect(row);
            want.extend(exact);
            naive.extend(rough);
            if self.epilogue == LinearEpilogue::Add {
                let chunks = width.div_ceil(64);
                let wanted: Vec<f64> = statistics(&out[..width]).map(f64::from).collect();
                assert_eq!(&stats[row * chunks..][..chunks], &wanted[..], "{what}: statistics of row {row}");
            }
        }
        assert!(
            out[self.rows * self.out_stride..].iter().all(|x| x.is_nan()),
            "{what}: wrote past the last row"
        );
        assert!(run.tickets.iter().all(|b| *b == 0), "{what}: the scratch's counters are not zero again");
        assert_as_exact_as_naive(&what, &got, &want, &naive, 2.0, self.dtype);
        // Sums in f32 can be held to far more: a single product that is missing shows.
        if dtype == Dtype::F32 && self.norm.is_none() {
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!((got - want).abs() < 5e-4, "{what}: element {i} is {got}, not {want}");
            }
        }
    }
}

use LinearEpilogue::{Add, Store, StoreF32, SwiGlu};

#[test]
fn any_shape() {
    let mut random = Random::new("linear shapes");
    let rigs = rigs();
    // Rows, inputs, features, epilogue, norm, bias, gaps.
    type Named = (usize, usize, &'static [usize], LinearEpilogue, bool, bool, [usize; 3]);
    let named: &[Named] = &[
        (1, 1, &[1], Store, false, false, [0; 3]),
        (3, 7, &[7], StoreF32, false, true, [0; 3]),
        (2, 8, &[9, 9], SwiGlu, true, true, [0, 8, 3]),
        (1, 64, &[129, 1, 127], Store, true, true, [0; 3]),
        (5, 769, &[130], Add, true, true, [0; 3]),
        (8, 136, &[65, 65], SwiGlu, true, false, [8, 0, 8]),
        (9, 2056, &[136], Add, false, false, [0; 3]),
        (16, 2048, &[64, 16, 16], Store, true, false, [0; 3]),
        (17, 5125, &[3], StoreF32, false, false, [3, 0, 1]),
        (31, 776, &[40], StoreF32, false, true, [0, 0, 5]),
        (33, 1032, &[24, 8], Store, false, false, [0; 3]),
        (64, 1024, &[72], Add, true, true, [0; 3]),
        (64, 512, &[200, 200], SwiGlu, false, true, [0; 3]),
        (2, 4096, &[24], StoreF32, false, false, [0; 3]),
        (4, 14336, &[16], StoreF32, false, false, [0; 3]),
    ];
    for (i, &(rows, inputs, features, epilogue, norm, bias, gaps)) in named.iter().enumerate() {
        let dtype = TYPES[i % 2];
        let case = Shape { dtype, rows, inputs, features, epilogue, norm, bias, gaps }.fill(&mut random);
        rigs.iter().for_each(|rig| case.check(rig));
    }
    for _ in 0..24 {
        let epilogue = random.pick(&[Store, StoreF32, Add, SwiGlu]);
        let n = random.range(1, 300);
        let features = match epilogue {
            Add => vec![n],
            SwiGlu => vec![n, n],
            _ => (0..random.range(1, 3)).map(|_| random.range(1, 200)).collect(),
        };
        let n = features.iter().sum::<usize>();
        let eights = random.pick(&[1, 1, 8]);
        let inputs = random.range(1, 1500 / eights) * eights;
        let gaps = [0, 1, 2].map(|_| random.range(0, 2) * eights);
        let (rows, dtype) = (random.range(64usize.div_ceil(n), 64), random.pick(&TYPES));
        let (norm, bias) = (random.pick(&[true, false]), random.pick(&[true, false]));
        let shape = Shape { dtype, rows, inputs, features: &features, epilogue, norm, bias, gaps };
        shape.fill(&mut random).check(random.one_of(&rigs));
    }
}

impl Case {
    /// `rows` rows, all NaN but `slot`, which is this case's `row`; rows of x `gap` further apart.
    fn among_nans(&self, row: usize, rows: usize, slot: usize, gap: usize) -> Case {
        let alone = |from: &[f64], width: usize, stride: usize, gap: usize| {
            let mut to = vec![f64::NAN; rows * (stride + gap) + 8];
            to[slot * (stride + gap)..][..width].copy_from_slice(&from[row * stride..][..width]);
            to
        };
        Case {
            rows,
            x: alone(&self.x, self.inputs, self.x_stride, gap),
            x_stride: self.x_stride + gap,
            out: alone(&self.out, self.width(), self.out_stride, 0),
            ..self.clone()
        }
    }
}

/// A row has the same bits alone and among 64, in any slot, beside anything, however it is aligned.
#[test]
fn a_row_depends_on_itself_alone() {
    let mut random = Random::new("linear exact");
    let rigs = rigs();
    let shapes = [
        Shape { norm: true, bias: true, ..Shape::plain(Dtype::Bf16, 64, 1160, &[80], Add) },
        Shape { norm: true, ..Shape::plain(Dtype::F16, 64, 648, &[72, 72], SwiGlu) },
        Shape::plain(Dtype::Bf16, 64, 2096, &[24], StoreF32),
    ];
    for shape in shapes {
        let all = shape.fill(&mut random);
        let whole = all.run(&rigs[0]);
        let row_bytes = all.out_stride * all.out_dtype().size();
        let stat_bytes = 4 * all.width().div_ceil(64);
        for rows in [1, 2, 7, 8, 9, 16, 17, 32, 33, 64] {
            let (row, slot) = (random.range(0, 63), random.range(0, rows - 1));
            for gap in [0, 3] {
                let rig = random.one_of(&rigs);
                let run = all.among_nans(row, rows, slot, gap).run(rig);
                let what =
                    format!("{:?}: row {row} as {slot} of {rows}, gap {gap}, {}", all.epilogue, rig.name);
                assert_eq!(
                    run.out[slot * row_bytes..][..row_bytes],
                    whole.out[row * row_bytes..][..row_bytes],
                    "{what}"
                );
                if all.epilogue == Add {
                    let stats = |run: &Run, row: usize| run.stats[row * stat_bytes..][..stat_bytes].to_vec();
                    assert_eq!(stats(&run, slot), stats(&whole, row), "{what}");
                }
            }
        }
    }
}

/// 100 launches over one scratch, under every schedule.
#[test]
fn the_same_launch_gives_the_same_bits() {
    let mut random = Random::new("linear repeats");
    let rigs = rigs();
    let shape = Shape { norm: true, ..Shape::plain(Dtype::Bf16, 3, 1544, &[136], Add) };
    let case = shape.fill(&mut random);
    let first = case.run(&rigs[0]);
    for rig in &rigs {
        for run in case.repeat(rig, 34) {
            assert_eq!((&run.out, &run.stats), (&first.out, &first.stats), "{}", rig.name);
            assert!(run.tickets.iter().all(|b| *b == 0), "the scratch's counters are not zero again");
        }
    }
}

/// The norm before the product is that of the kernel `rms_norm`.
#[test]
fn the_norm_has_the_bits_of_rms_norm() {
    let mut random = Random::new("linear norm");
    let rig = rig();
    for (dtype, inputs) in [(Dtype::Bf16, 2120), (Dtype::F16, 769)] {
        let shape = Shape { norm: true, ..Shape::plain(dtype, 5, inputs, &[40], StoreF32) };
        let case = shape.fill(&mut random);
        let fused = case.run(&rig);
        let x = rig.upload(&encode(&case.x, dtype));
        let weight = rig.upload(&encode(case.norm.as_ref().unwrap(), dtype));
        let mut y = rig.poisoned(5 * inputs, dtype);
        let args = RmsNormArgs {
            dtype,
            rows: 5,
            width: inputs,
            eps: EPS,
            x: Rows { view: x.view(), stride: inputs },
            residual: None,
            weight: weight.view(),
            y: RowsMut { view: y.view_mut(), stride: inputs },
            stats: None,
            positions: None,
        };
        rig.kernels.rms_norm.launch(&rig.stream, &args).unwrap();
        let apart = Case { x: rig.download(&y, dtype), norm: None, ..case }.run(&rig);
        assert_eq!(fused.out, apart.out, "{dtype:?}");
    }
}

/// Every weight is read once; all else of a launch of 16 rows is a quarter of that at most.
#[test]
fn every_weight_moves_once() {
    let mut random = Random::new("linear bytes");
    let rig = rig();
    let dtype = Dtype::Bf16;
    // Llama 3 8B: the output projection, with its four segments; narrower than there, gate and up and the head.
    let shapes = [
        (Shape::plain(dtype, 16, 4096, &[4096], Add), 4),
        (Shape { norm: true, ..Shape::plain(dtype, 16, 512, &[896, 896], SwiGlu) }, 1),
        (Shape { norm: true, ..Shape::plain(dtype, 16, 1008, &[1280], StoreF32) }, 1),
    ];
    for (shape, segments) in shapes {
        let &Shape { rows, inputs, features, epilogue, norm, .. } = &shape;
        // Numbers that repeat: bytes alone count.
        let mut case = Shape { features: &vec![1; features.len()], ..shape }.fill(&mut random);
        for (i, part) in case.parts.iter_mut().enumerate() {
            part.features = features[i];
            part.weight = part.weight[..inputs].repeat(features[i]);
        }
        case.out_stride = features[0];
        case.out = vec![1.0; rows * features[0] + 8];
        let Some(counters) = case.run(&rig).counters else { return };
        let all: usize = features.iter().sum();
        let weights = 2 * inputs * all;
        let ctas = all / 128 * segments;
        let x = ctas / segments * rows * inputs * 2;
        let partials = if segments > 1 { ctas * 128 * rows * 4 } else { 0 };
        // A thread brings four rows of x; as many groups of threads read the norm's weights each for themselves.
        let prologue = if norm { ctas * (rows / 4 * inputs * 2 + rows * inputs.div_ceil(64) * 4) } else { 0 };
        let out = rows * features[0] * case.out_dtype().size();
        let (residual, stats) = if epilogue == Add { (out, rows * features[0] / 64 * 4) } else { (0, 0) };
        let (load, store) = (counters.global_load, counters.global_store);
        assert_eq!(load.bytes as usize, weights + x + partials + prologue + residual, "{epilogue:?}: loads");
        assert_eq!(store.bytes as usize, partials + out + stats, "{epilogue:?}: stores");
        let moved = 32 * (load.sectors + store.sectors + counters.global_atomic.sectors) as usize;
        let others = moved - weights;
        assert!(4 * others <= weights, "{epilogue:?}: {others} bytes beside {weights} of weights");
        // All efficient but 8 bytes of statistics a row and CTA, and a ticket.
        let waste = moved - load.bytes as usize - store.bytes as usize;
        assert!(waste <= all / 128 * rows * 24 + 32 * ctas, "{epilogue:?}: {waste} bytes moved for nothing");
        assert_no_bank_conflicts(&counters, &format!("{epilogue:?}"));
        let distinct = 32 * counters.distinct_sectors.unwrap() as usize;
        assert!(
            distinct >= weights && 4 * (distinct - weights) <= weights,
            "{epilogue:?}: {distinct} distinct bytes"
        );
    }
}

fn assert_no_bank_conflicts(counters: &ptxsim::Counters, what: &str) {
    let (load, store) = (&counters.shared_load, &counters.shared_store);
    assert_eq!(load.wavefronts, load.ideal, "{what}: bank conflicts of loads");
    assert_eq!(store.wavefronts, store.ideal, "{what}: bank conflicts of stores");
}

/// Tiles of x and finished sums go to shared memory and come from it without conflicts, in all functions.
#[test]
fn banks_do_not_conflict() {
    let mut random = Random::new("linear banks");
    let rig = rig();
    // One segment, and two.
    for inputs in [520, 1160] {
        for (rows, gap) in [(16, 0), (32, 0), (64, 0), (64, 1)] {
            for (epilogue, features) in [(Add, &[130][..]), (SwiGlu, &[72, 72]), (StoreF32, &[40, 40])] {
                let plain = Shape::plain(Dtype::Bf16, rows, inputs, features, epilogue);
                let shape = Shape { norm: true, gaps: [gap, 0, 0], ..plain };
                let Some(counters) = shape.fill(&mut random).run(&rig).counters else { return };
                assert_no_bank_conflicts(&counters, &format!("{epilogue:?}, {rows} × {inputs}, gap {gap}"));
            }
        }
    }
}

/// Row 1 of x, of the weights and of out begins beyond 2^31 elements. All rows are read, so that there must be 12 GiB
/// of memory: on a GPU.
#[test]
fn rows_beyond_31_bits() {
    if std::env::var_os("WARPLOOM_DEVICE").is_none() {
        return;
    }
    let (rig, dtype) = (rig(), Dtype::Bf16);
    let near = Shape::plain(dtype, 2, 64, &[2], Store).fill(&mut Random::new("linear far"));
    let want = near.run(&rig);
    let stride = (1 << 31) + 8;
    // Two rows, a stride apart.
    let far = |rows: &[f64], width: usize| {
        let mut buffer = Buffer::new(&rig.driver, (stride + width) * 2).expect("4 GiB");
        for (row, at) in rows.chunks(width).take(2).zip([0, 2 * stride]) {
            let mut to = buffer.view_mut();
            rig.stream.upload(&mut to.slice(at..at + 2 * width), &encode(row, dtype)).expect("upload");
        }
        buffer
    };
    let (x, weight, mut out) = (far(&near.x, 64), far(&near.parts[0].weight, 64), far(&[f64::NAN; 4], 2));
    let weight = Rows { view: weight.view(), stride };
    let args = LinearArgs {
        dtype,
        rows: 2,
        inputs: 64,
        x: Rows { view: x.view(), stride },
        norm: None,
        projections: [Some(LinearProjection { weight, bias: None, features: 2, column: 0 }), None, None],
        epilogue: Store,
        out: RowsMut { view: out.view_mut(), stride },
        out_stats: None,
    };
    let mut nothing = rig.poisoned(0, dtype);
    rig.reports(|| rig.kernels.linear.launch(&rig.stream, args, nothing.view_mut()));
    let mut got = [0u8; 8];
    for (row, at) in got.chunks_exact_mut(4).zip([0, 2 * stride]) {
        rig.stream.download(out.view().slice(at..at + 4), row).expect("download");
    }
    assert_eq!(got, want.out[..8]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let rig = rig();
    let dtype = Dtype::Bf16;
    let [x, weight, norm, stats] =
        [4 * 1024, 64 * 1024, 1024, 4 * 32].map(|count| rig.poisoned(count, dtype));
    let (mut out, mut out_stats) = (rig.poisoned(4 * 192, dtype), rig.poisoned(3, Dtype::F32));
    let mut scratch = rig.poisoned(128 + 3 * 2 * 4 * 128, Dtype::F32);
    let mut refused =
        |with_stats: bool, scratch_bytes: usize, change: &dyn Fn(&mut LinearArgs), wanted: &str| {
            let part = |column| {
                let weight = Rows { view: weight.view(), stride: 1024 };
                Some(LinearProjection { weight, bias: None, features: 64, column })
            };
            let mut args = LinearArgs {
                dtype,
                rows: 4,
                inputs: 1024,
                x: Rows { view: x.view(), stride: 1024 },
                norm: Some(LinearNorm { weight: norm.view(), eps: EPS, stats: stats.view() }),
                projections: [part(0), part(64), part(128)],
                epilogue: Store,
                out: RowsMut { view: out.view_mut(), stride: 192 },
                out_stats: with_stats.then(|| out_stats.view_mut()),
            };
            change(&mut args);
            // Whatever is asked, there is an answer.
            rig.kernels.linear.scratch_bytes(&args);
            let mut scratch = scratch.view_mut();
            let scratch = scratch.slice(0..scratch_bytes);
            let error = rig.kernels.linear.launch(&rig.stream, args, scratch).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{error}");
        };
    let all = 12_800;
    let part = |a: &mut LinearArgs, i: usize, change: &dyn Fn(&mut LinearProjection)| {
        change(a.projections[i].as_mut().unwrap());
    };
    refused(false, all, &|a| a.dtype = Dtype::F32, "dtype: f32; supported are bf16 and f16");
    refused(false, all, &|a| a.rows = 65, "rows: 65; supported are 0 to 64");
    refused(false, all, &|a| a.rows = 5, "x: 8192 bytes do not hold 5120 elements");
    refused(false, all, &|a| a.inputs = 0, "inputs: 0");
    refused(false, all, &|a| a.inputs = usize::MAX, "inputs: ");
    refused(false, all, &|a| a.x.stride = 1023, "x: rows 1023 elements apart overlap");
    refused(false, all, &|a| a.x.view = a.x.view.slice(2..4096), "x: address");
    refused(false, all, &|a| a.norm.as_mut().unwrap().eps = -1.0, "eps: -1");
    refused(
        false,
        all,
        &|a| a.norm.as_mut().unwrap().weight = a.x.view.slice(0..2046),
        "norm weight: 2046 bytes",
    );
    refused(
        false,
        all,
        &|a| a.norm.as_mut().unwrap().stats = a.x.view.slice(0..252),
        "stats: 252 bytes do not hold 64",
    );
    refused(false, all, &|a| a.norm.as_mut().unwrap().stats = a.x.view.slice(2..300), "stats: address");
    refused(false, all, &|a| a.projections = [None; 3], "projections: 0; supported are 1 to 3");
    refused(
        false,
        all,
        &|a| part(a, 1, &|p| p.column = 63),
        "projections: 64 features at column 0 overlap 64 at column 63",
    );
    refused(
        false,
        all,
        &|a| part(a, 1, &|p| p.features = 65),
        "weight: 131072 bytes do not hold 66560 elements",
    );
    refused(false, all, &|a| part(a, 1, &|p| p.features = 0), "features: 0");
    refused(
        false,
        all,
        &|a| part(a, 2, &|p| p.column = 129),
        "out: rows 192 elements apart overlap; 193 at least",
    );
    refused(false, all, &|a| part(a, 2, &|p| p.column = usize::MAX), "column: ");
    refused(
        false,
        all,
        &|a| part(a, 0, &|p| p.weight.stride = 1016),
        "weight: rows 1016 elements apart overlap",
    );
    refused(false, all, &|a| part(a, 0, &|p| p.bias = Some(p.weight.view.slice(0..126))), "bias: 126 bytes");
    refused(false, all, &|a| a.epilogue = StoreF32, "out: 1536 bytes do not hold 768 elements of 4 bytes");
    refused(false, all, &|a| a.epilogue = Add, "projections: 3; supported are 1 to 1");
    refused(false, all, &|a| a.epilogue = SwiGlu, "projections: 3; supported are 2 to 2");
    let pair = |a: &mut LinearArgs| (a.epilogue, a.projections[2]) = (SwiGlu, None);
    refused(false, all, &pair, "projections: gate and up have 64 and 64 features at columns 0 and 64");
    let one = |a: &mut LinearArgs| (a.epilogue, a.projections) = (Add, [a.projections[1], None, None]);
    refused(false, all, &one, "column: 64; supported is 0 with Add");
    let one = |a: &mut LinearArgs| (a.epilogue, a.projections) = (Add, [a.projections[0], None, None]);
    refused(false, 512, &one, "scratch: 512 bytes do not hold 4608 elements of 1 bytes");
    refused(true, all, &|_| (), "out_stats: with Store; supported is Add");
    refused(true, all, &one, "out_stats: 12 bytes do not hold 4 elements");
    refused(false, all - 4, &|_| (), "scratch: 12796 bytes do not hold 12800 elements");
}
