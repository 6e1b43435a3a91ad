//! The skinny linear against its formula in f64.

use warploom::{
    driver::Buffer,
    kernels::{Dtype, LinearArgs, LinearEpilogue, LinearNorm, LinearProjection, RmsNormArgs, Rows, RowsMut},
};

use super::{
    harness::{Random, Rig, assert_as_exact_as_naive, encode, numbers, rig, rigs, round},
    quantize_fp8_rows::{from_e4m3, to_e4m3},
};

/// One launch: shapes and what was in memory.
#[derive(Clone)]
struct Case {
    dtype: Dtype,
    /// x and weights of e4m3.
    fp8: bool,
    rows: usize,
    inputs: usize,
    epilogue: LinearEpilogue,
    x_stride: usize,
    out_stride: usize,
    /// Of all weights.
    stride: usize,
    x: Vec<f64>,
    x_scales: Vec<f32>,
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
    scales: Vec<f32>,
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
    round: impl Fn(f64) -> f64,
) -> Vec<f64> {
    let mut x = vec![f64::NAN; rows * stride + 16];
    for row in 0..rows {
        x[row * stride..][..width].fill_with(|| round(random.normal() * scale));
    }
    x
}

/// Numbers as codes; NaN as the code that counts as 480.
fn codes(x: &[f64]) -> Vec<u8> {
    x.iter().map(|x| if x.is_nan() { 0x7f } else { to_e4m3(*x) }).collect()
}

/// What makes a case, other than its numbers.
struct Shape<'s> {
    dtype: Dtype,
    fp8: bool,
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
        let &Shape { dtype, fp8, rows, inputs, features, epilogue, norm, bias, gaps } = self;
        let swiglu = epilogue == LinearEpilogue::SwiGlu;
        let width = if swiglu { features[0] } else { features.iter().sum() };
        let (x_stride, stride, out_stride) = (inputs + gaps[0], inputs + gaps[1], width + gaps[2]);
        let number = |x: f64| if fp8 { from_e4m3(to_e4m3(x)) } else { round(x, dtype) };
        // Codes of all sizes, subnormals among them, where scales do the rest: they bring sums to about 1.
        let x_size = if fp8 { 0.5 } else { 1.0 };
        let w_size = if fp8 { 30.0 } else { 2.0 / (inputs as f64).sqrt() };
        let scales = |random: &mut Random, count: usize, size: f64| -> Vec<f32> {
            let scales = (0..count).map(|_| (random.uniform() + 0.5) as f32 / size as f32);
            if fp8 { scales.chain([f32::NAN; 4]).collect() } else { vec![] }
        };
        // The projections lie in the order last, first, second … to tell columns from indices.
        let mut column = 0;
        let mut parts: Vec<Part> = vec![];
        for i in (0..features.len()).rev() {
            let mut weight = matrix(random, features[i], inputs, stride, w_size, number);
            if fp8 {
                // Codes past the end would meet zeros of x, and tell nothing: memory ends there.
                weight.truncate(features[i] * stride);
            }
            parts.insert(
                0,
                Part {
                    features: features[i],
                    column,
                    weight,
                    scales: scales(random, features[i], w_size * (inputs as f64).sqrt() / 2.0),
                    bias: bias.then(|| [random.normals(features[i], 1.0, dtype), vec![f64::NAN; 8]].concat()),
                },
            );
            if !swiglu {
                column += features[i];
            }
        }
        Case {
            dtype,
            fp8,
            rows,
            inputs,
            epilogue,
            x_stride,
            out_stride,
            stride,
            x: matrix(random, rows, inputs, x_stride, if norm { 30.0 } else { x_size }, number),
            x_scales: scales(random, rows, x_size),
            norm: norm.then(|| [random.normals(inputs, 1.0, dtype), vec![f64::NAN; 8]].concat()),
            parts,
            out: matrix(random, rows, width, out_stride, 1.0, |x| round(x, dtype)),
        }
    }
}

impl<'s> Shape<'s> {
    /// Without gaps, norm and bias, and not of e4m3.
    fn plain(
        dtype: Dtype,
        rows: usize,
        inputs: usize,
        features: &'s [usize],
        epilogue: LinearEpilogue,
    ) -> Self {
        let fp8 = false;
        Shape { dtype, fp8, rows, inputs, features, epilogue, norm: false, bias: false, gaps: [0; 3] }
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
        self.repeat_at(rig, times, None)
    }

    fn repeat_at(&self, rig: &Rig, times: usize, positions: Option<&[i32]>) -> Vec<Run> {
        let positions = positions.map(|positions| rig.upload(positions));
        let Case { dtype, fp8, rows, inputs, epilogue, .. } = *self;
        let upload = |x: &Vec<f64>| rig.upload(&encode(x, dtype));
        let upload_factor = |x: &Vec<f64>| if fp8 { rig.upload(&codes(x)) } else { upload(x) };
        let (x, x_scales) = (upload_factor(&self.x), rig.upload(&self.x_scales));
        let norm = self.norm.as_ref().map(&upload);
        let stats: Vec<f32> = (0..rows).flat_map(|row| statistics(self.x_row(row))).collect();
        let stats = rig.upload(&stats);
        let parts: Vec<(Buffer, Buffer, Option<Buffer>)> = self
            .parts
            .iter()
            .map(|p| (upload_factor(&p.weight), rig.upload(&p.scales), p.bias.as_ref().map(&upload)))
            .collect();
        let mut scratch: Option<Buffer> = None;
        let mut runs = vec![];
        for _ in 0..times {
            let mut out = match epilogue {
                LinearEpilogue::Add => upload(&self.out),
                _ => rig.poisoned(self.out.len(), self.out_dtype()),
            };
            let mut out_stats = rig.poisoned(rows * self.width().div_ceil(64), Dtype::F32);
            let mut projections = [None; 3];
            for (to, (part, (weight, scales, bias))) in
                projections.iter_mut().zip(self.parts.iter().zip(&parts))
            {
                *to = Some(LinearProjection {
                    weight: Rows { view: weight.view(), stride: self.stride },
                    scales: fp8.then(|| scales.view()),
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
                x_scales: fp8.then(|| x_scales.view()),
                positions: positions.as_ref().map(Buffer::view),
                prefetch: true,
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
            let sum = x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
            let scale =
                if self.fp8 { f64::from(self.x_scales[row]) * f64::from(part.scales[n]) } else { 1.0 };
            sum * scale + part.bias.as_ref().map_or(0.0, |b| b[n])
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
            "{} {:?}{} {} rows, {features:?} × {}, {:?}{}",
            rig.name,
            self.dtype,
            if self.fp8 { " e4m3" } else { "" },
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
            assert!(out[..width].iter().all(|x| !x.is_nan()), "{what}: row {row} has a NaN");
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
        let (dtype, fp8) = (TYPES[i % 2], false);
        let case = Shape { dtype, fp8, rows, inputs, features, epilogue, norm, bias, gaps }.fill(&mut random);
        rigs.iter().for_each(|rig| case.check(rig));
    }
    for _ in 0..24 {
        let rig = random.one_of(&rigs);
        random_shape(&mut random, false, rig);
    }
}

fn random_shape(random: &mut Random, fp8: bool, rig: &Rig) {
    let epilogue = random.pick(&[Store, StoreF32, Add, SwiGlu]);
    let n = random.range(1, 300);
    let features = match epilogue {
        Add => vec![n],
        SwiGlu => vec![n, n],
        _ => (0..random.range(1, 3)).map(|_| random.range(1, 200)).collect(),
    };
    let n = features.iter().sum::<usize>();
    // Elements of 16 bytes, twice of three times one: rows that begin anywhere.
    let vector = if fp8 { 16 } else { 8 };
    let vector = random.pick(&[1, 1, vector]);
    let inputs = random.range(1, 1500 / vector) * vector;
    let gaps = [0, 1, 2].map(|_| random.range(0, 2) * vector);
    let (rows, dtype) = (random.range(64usize.div_ceil(n), 64), random.pick(&TYPES));
    let (norm, bias) = (!fp8 && random.pick(&[true, false]), random.pick(&[true, false]));
    let shape = Shape { dtype, fp8, rows, inputs, features: &features, epilogue, norm, bias, gaps };
    shape.fill(random).check(rig);
}

#[test]
fn any_shape_of_e4m3() {
    let mut random = Random::new("linear e4m3 shapes");
    let rigs = rigs();
    // Rows, inputs, features, epilogue, bias, gaps.
    type Named = (usize, usize, &'static [usize], LinearEpilogue, bool, [usize; 3]);
    let named: &[Named] = &[
        (1, 1, &[1], Store, false, [0; 3]),
        (3, 15, &[7], StoreF32, true, [0; 3]),
        (2, 16, &[9, 9], SwiGlu, true, [0, 16, 3]),
        (17, 17, &[130], Add, true, [0; 3]),
        (5, 63, &[129, 1, 127], Store, true, [0; 3]),
        (8, 65, &[65, 65], SwiGlu, true, [15, 15, 1]),
        (64, 64, &[72], Add, true, [0; 3]),
        (31, 80, &[40], StoreF32, true, [16, 0, 5]),
        (9, 769, &[130], Add, false, [0; 3]),
        (33, 1040, &[24, 8], Store, false, [0; 3]),
        (16, 2080, &[136], Add, false, [0; 3]),
        (64, 1088, &[100, 100], SwiGlu, true, [0, 16, 16]),
        (17, 5125, &[3], StoreF32, false, [3, 0, 1]),
        (4, 14336, &[16], StoreF32, false, [0; 3]),
    ];
    for (i, &(rows, inputs, features, epilogue, bias, gaps)) in named.iter().enumerate() {
        let (dtype, fp8, norm) = (TYPES[i % 2], true, false);
        let case = Shape { dtype, fp8, rows, inputs, features, epilogue, norm, bias, gaps }.fill(&mut random);
        case.check(&rigs[i % rigs.len()]);
    }
    for _ in 0..8 {
        let rig = random.one_of(&rigs);
        random_shape(&mut random, true, rig);
    }
}

/// Products of any two codes are exact, before the scales: subnormals, the largest, and what would be NaN.
#[test]
fn any_code_times_any_other() {
    let mut random = Random::new("linear codes");
    let rig = rig();
    let number = |code: usize| match code & 0x7f {
        0x7f => 480.0 * if code < 0x80 { 1.0 } else { -1.0 },
        _ => from_e4m3(code as u8),
    };
    let weights: Vec<u8> = (0..256).flat_map(|code| [code as u8; 64]).collect();
    let scales: Vec<f32> = (0..256).map(|_| random.uniform() as f32 + 0.5).collect();
    let (weights, scales_there) = (rig.upload(&weights), rig.upload(&scales));
    for begin in [0, 64, 128, 192] {
        // Row r has one number, at a place of its own.
        let mut x = vec![0u8; 64 * 64];
        for row in 0..64 {
            x[row * 64 + (5 * row + 3) % 64] = (begin + row) as u8;
        }
        let x_scales: Vec<f32> = (0..64).map(|_| random.uniform() as f32 + 0.5).collect();
        let (x, x_scales_there) = (rig.upload(&x), rig.upload(&x_scales));
        let mut out = rig.poisoned(64 * 256, Dtype::F32);
        let projection = LinearProjection {
            weight: Rows { view: weights.view(), stride: 64 },
            scales: Some(scales_there.view()),
            bias: None,
            features: 256,
            column: 0,
        };
        let args = LinearArgs {
            dtype: Dtype::F16,
            rows: 64,
            inputs: 64,
            x: Rows { view: x.view(), stride: 64 },
            x_scales: Some(x_scales_there.view()),
            positions: None,
            prefetch: true,
            norm: None,
            projections: [Some(projection), None, None],
            epilogue: StoreF32,
            out: RowsMut { view: out.view_mut(), stride: 256 },
            out_stats: None,
        };
        let mut nothing = rig.poisoned(0, Dtype::F32);
        rig.reports(|| rig.kernels.linear.launch(&rig.stream, args, nothing.view_mut()));
        for (i, got) in rig.download(&out, Dtype::F32).into_iter().enumerate() {
            let (row, code) = (i / 256, i % 256);
            let product = (number(begin + row) * number(code)) as f32;
            let want = x_scales[row] * scales[code] * product;
            assert_eq!(got, f64::from(want), "code {} times {code}", begin + row);
        }
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
            x_scales: (0..if self.fp8 { rows } else { 0 })
                .map(|other| if other == slot { self.x_scales[row] } else { f32::NAN })
                .collect(),
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
        Shape { fp8: true, bias: true, ..Shape::plain(Dtype::Bf16, 64, 2064, &[80], Add) },
        Shape { fp8: true, ..Shape::plain(Dtype::F16, 64, 336, &[72, 72], SwiGlu) },
    ];
    for shape in shapes {
        let all = shape.fill(&mut random);
        let whole = all.run(&rigs[0]);
        let row_bytes = all.out_stride * all.out_dtype().size();
        let stat_bytes = 4 * all.width().div_ceil(64);
        let counts = [1, 8, 16, 17, 33, 64, 2, 7, 9, 32];
        for rows in counts.into_iter().take(if all.fp8 { 6 } else { counts.len() }) {
            let (row, slot) = (random.range(0, 63), random.range(0, rows - 1));
            for gap in [0, 3] {
                let rig = random.one_of(&rigs);
                let run = all.among_nans(row, rows, slot, gap).run(rig);
                let what = format!(
                    "{:?}, e4m3 {}: row {row} as {slot} of {rows}, gap {gap}, {}",
                    all.epilogue, all.fp8, rig.name
                );
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
/// With all rows dead nothing is written; one that is alive, wherever it is, has all computed.
#[test]
fn dead_rows() {
    let mut random = Random::new("linear dead rows");
    for (rows, epilogue, fp8) in [
        (5, LinearEpilogue::Add, false),
        (20, LinearEpilogue::StoreF32, false),
        (64, LinearEpilogue::Add, true),
        (33, LinearEpilogue::Store, true),
    ] {
        // Few features, so that k has segments.
        let shape = Shape { fp8, ..Shape::plain(Dtype::Bf16, rows, 2048, &[72], epilogue) };
        let case = shape.fill(&mut random);
        for rig in rigs() {
            let whole = case.run(&rig);
            let what = format!("{}, {rows} rows, {epilogue:?}", rig.name);
            let dead = &case.repeat_at(&rig, 1, Some(&vec![-1; rows]))[0];
            let untouched = |bytes: &[u8], dtype| numbers(bytes, dtype).iter().all(|x| x.is_nan());
            match epilogue {
                LinearEpilogue::Add => {
                    assert_eq!(dead.out, encode(&case.out, case.dtype), "{what}: the residual stays");
                    assert!(untouched(&dead.stats, Dtype::F32), "{what}: statistics");
                }
                _ => assert!(untouched(&dead.out, case.out_dtype()), "{what}: outputs"),
            }
            assert!(dead.tickets.iter().all(|byte| *byte == 0), "{what}: tickets");
            for alive in [0, rows / 2, rows - 1] {
                let mut positions = vec![i32::MIN; rows];
                positions[alive] = 0;
                let run = &case.repeat_at(&rig, 1, Some(&positions))[0];
                assert_eq!(
                    (&run.out, &run.stats),
                    (&whole.out, &whole.stats),
                    "{what}: row {alive} is alive"
                );
            }
        }
    }
}

#[test]
fn the_same_launch_gives_the_same_bits() {
    let mut random = Random::new("linear repeats");
    let rigs = rigs();
    let shapes = [
        Shape { norm: true, ..Shape::plain(Dtype::Bf16, 3, 1544, &[136], Add) },
        Shape { fp8: true, ..Shape::plain(Dtype::F16, 3, 2064, &[72], Add) },
    ];
    for shape in shapes {
        let case = shape.fill(&mut random);
        let first = case.run(&rigs[0]);
        for rig in &rigs {
            for run in case.repeat(rig, 34) {
                assert_eq!((&run.out, &run.stats), (&first.out, &first.stats), "{}", rig.name);
                assert!(run.tickets.iter().all(|b| *b == 0), "the scratch's counters are not zero again");
            }
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
    // Llama 3 8B: the output projection, with its four segments; narrower than there, gate and up and the head; of e4m3,
    // down, with more segments than there, and gate and up.
    let shapes = [
        (Shape::plain(dtype, 16, 4096, &[4096], Add), 4),
        (Shape { norm: true, ..Shape::plain(dtype, 16, 640, &[896, 896], SwiGlu) }, 1),
        (Shape { norm: true, ..Shape::plain(dtype, 16, 1008, &[1280], StoreF32) }, 1),
        (Shape { fp8: true, ..Shape::plain(dtype, 16, 14336, &[512], Add) }, 8),
        (Shape { fp8: true, ..Shape::plain(dtype, 16, 2016, &[896, 896], SwiGlu) }, 1),
    ];
    for (shape, segments) in shapes {
        let &Shape { fp8, rows, inputs, features, epilogue, norm, .. } = &shape;
        // Numbers that repeat: bytes alone count.
        let mut case = Shape { features: &vec![1; features.len()], ..shape }.fill(&mut random);
        for (i, part) in case.parts.iter_mut().enumerate() {
            part.features = features[i];
            part.weight = part.weight[..inputs].repeat(features[i]);
            part.scales = vec![1.0; if fp8 { features[i] } else { 0 }];
        }
        case.out_stride = features[0];
        case.out = vec![1.0; rows * features[0] + 8];
        let Some(counters) = case.run(&rig).counters else { return };
        let all: usize = features.iter().sum();
        let size = if fp8 { 1 } else { 2 };
        let weights = size * inputs * all;
        let ctas = all / 128 * segments;
        let x = ctas / segments * rows * inputs * size;
        let partials = if segments > 1 { ctas * 128 * rows * 4 } else { 0 };
        // A thread brings four rows of x; as many groups of threads read the norm's weights each for themselves.
        let prologue = if norm { ctas * (rows / 4 * inputs * 2 + rows * inputs.div_ceil(64) * 4) } else { 0 };
        let out = rows * features[0] * case.out_dtype().size();
        // A thread reads the scales of eight features, with SwiGLU of two times eight, and that of its row.
        let lanes = if epilogue == SwiGlu { 8 } else { 16 };
        let scales = if fp8 { all / 128 * rows * (512 + 4 * lanes) } else { 0 };
        let (residual, stats) = if epilogue == Add { (out, rows * features[0] / 64 * 4) } else { (0, 0) };
        let (load, store) = (counters.global_load, counters.global_store);
        assert_eq!(
            load.bytes as usize,
            weights + x + partials + prologue + scales + residual,
            "{epilogue:?}: loads"
        );
        assert_eq!(store.bytes as usize, partials + out + stats, "{epilogue:?}: stores");
        // Nothing is multiplied beyond the turn of loads in which k ends.
        let k = inputs.next_multiple_of(256 / size);
        assert_eq!(counters.mma_flop as usize, 2 * rows * all * k, "{epilogue:?}: FLOP");
        let moved = 32 * (load.sectors + store.sectors + counters.global_atomic.sectors) as usize;
        let others = moved - weights;
        assert!(4 * others <= weights, "{epilogue:?}: {others} bytes beside {weights} of weights");
        // All efficient but 8 bytes of statistics a row and CTA, and a ticket.
        let waste = moved.saturating_sub((load.bytes + store.bytes) as usize);
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
    for (fp8, inputs) in [(false, 520), (false, 1160), (true, 528), (true, 2064)] {
        for (rows, gap) in [(16, 0), (32, 0), (64, 0), (64, 1)] {
            for (epilogue, features) in [(Add, &[130][..]), (SwiGlu, &[72, 72]), (StoreF32, &[40, 40])] {
                let plain = Shape::plain(Dtype::Bf16, rows, inputs, features, epilogue);
                let shape = Shape { fp8, norm: !fp8, gaps: [gap, 0, 0], ..plain };
                let Some(counters) = shape.fill(&mut random).run(&rig).counters else { return };
                let what = format!("{epilogue:?}, e4m3 {fp8}, {rows} × {inputs}, gap {gap}");
                assert_no_bank_conflicts(&counters, &what);
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
        x_scales: None,
        positions: None,
        prefetch: true,
        norm: None,
        projections: [
            Some(LinearProjection { weight, scales: None, bias: None, features: 2, column: 0 }),
            None,
            None,
        ],
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
                Some(LinearProjection { weight, scales: None, bias: None, features: 64, column })
            };
            let mut args = LinearArgs {
                dtype,
                rows: 4,
                inputs: 1024,
                x: Rows { view: x.view(), stride: 1024 },
                x_scales: None,
                positions: None,
                prefetch: true,
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
        "norm_weight: 2046 bytes",
    );
    refused(
        false,
        all,
        &|a| a.norm.as_mut().unwrap().stats = a.x.view.slice(0..252),
        "stats: 252 bytes do not hold 64",
    );
    refused(false, all, &|a| a.norm.as_mut().unwrap().stats = a.x.view.slice(2..300), "stats: address");
    refused(
        false,
        all,
        &|a| a.projections = [None; 3],
        "projections: 0 with the epilogue Store; supported are 1 to 3",
    );
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
    refused(false, all, &|a| a.epilogue = Add, "projections: 3 with the epilogue Add; supported is 1");
    refused(
        false,
        all,
        &|a| a.epilogue = SwiGlu,
        "projections: 3 with the epilogue SwiGlu; supported are 2, gate and up",
    );
    let pair = |a: &mut LinearArgs| (a.epilogue, a.projections[2]) = (SwiGlu, None);
    refused(false, all, &pair, "projections: gate and up have 64 and 64 features at columns 0 and 64");
    let one = |a: &mut LinearArgs| (a.epilogue, a.projections) = (Add, [a.projections[1], None, None]);
    refused(false, all, &one, "column: 64; supported is 0 where out is added to");
    let one = |a: &mut LinearArgs| (a.epilogue, a.projections) = (Add, [a.projections[0], None, None]);
    refused(false, 512, &one, "scratch: 512 bytes; 4608 are needed");
    refused(true, all, &|_| (), "out_stats: of an epilogue that does not add to out");
    refused(true, all, &one, "out_stats: 12 bytes do not hold 4 elements");
    let fp8 = |a: &mut LinearArgs| {
        (a.x_scales, a.norm) = (Some(a.x.view.slice(0..16)), None);
        a.projections.iter_mut().flatten().for_each(|p| p.scales = Some(p.weight.view.slice(0..256)));
    };
    let with_norm = |a: &mut LinearArgs| {
        let norm = a.norm;
        fp8(a);
        a.norm = norm;
    };
    refused(false, all, &with_norm, "norm_weight: given with x_scales");
    let of_weights = |a: &mut LinearArgs| part(a, 1, &|p| p.scales = Some(p.weight.view));
    refused(false, all, &of_weights, "scales: given without x_scales");
    let mut refused_fp8 = |change: &dyn Fn(&mut LinearArgs), wanted: &str| {
        let changed = |a: &mut LinearArgs| {
            fp8(a);
            change(a);
        };
        refused(false, all, &changed, wanted);
    };
    let part_fp8 = |a: &mut LinearArgs, begin: usize, end: usize| {
        part(a, 2, &|p| p.scales = Some(p.weight.view.slice(begin..end)));
    };
    refused_fp8(&|a| part(a, 2, &|p| p.scales = None), "scales: none; needed with x_scales");
    refused_fp8(&|a| part_fp8(a, 0, 252), "scales: 252 bytes do not hold 64 elements");
    refused_fp8(&|a| part_fp8(a, 4, 260), "scales: address");
    refused_fp8(&|a| a.x_scales = Some(a.x.view.slice(0..12)), "x_scales: 12 bytes do not hold 4 elements");
    refused_fp8(&|a| a.inputs = 2048, "x: rows 1024 elements apart overlap; 2048 at least");
    refused_fp8(&|a| a.dtype = Dtype::F32, "dtype: f32; supported are bf16 and f16");
    refused(false, all - 4, &|_| (), "scratch: 12796 bytes; 12800 are needed");
}
