//! The linear of many rows against its formula in f64.

use warploom::{
    driver::Buffer,
    kernels::{Dtype, GemmArgs, LinearEpilogue, LinearProjection, Rows, RowsMut, SwigluArgs},
};

use super::{
    harness::{Random, Rig, assert_as_exact_as_naive, encode, numbers, rig, rigs, round},
    quantize_fp8_rows::{from_e4m3, to_e4m3},
};

/// What makes a case, other than its numbers.
#[derive(Clone)]
struct Shape {
    dtype: Dtype,
    /// x and weights of e4m3.
    fp8: bool,
    rows: usize,
    inputs: usize,
    features: Vec<usize>,
    epilogue: LinearEpilogue,
    bias: bool,
    /// Added to the strides of x, weights and out.
    gaps: [usize; 3],
}

/// One launch: shapes and what was in memory.
#[derive(Clone)]
struct Case {
    shape: Shape,
    x_stride: usize,
    out_stride: usize,
    /// Of all weights.
    stride: usize,
    x: Vec<f64>,
    x_scales: Vec<f32>,
    parts: Vec<Part>,
    /// What out holds before.
    out: Vec<f64>,
}

#[derive(Clone)]
struct Part {
    column: usize,
    weight: Vec<f64>,
    scales: Vec<f32>,
    bias: Vec<f64>,
}

struct Run {
    out: Vec<u8>,
    stats: Vec<u8>,
    entry: String,
    counters: Option<ptxsim::Counters>,
}

use LinearEpilogue::{Add, Store, StoreF32, SwiGlu};

const TYPES: [Dtype; 2] = [Dtype::Bf16, Dtype::F16];
const EPILOGUES: [LinearEpilogue; 4] = [Store, StoreF32, Add, SwiGlu];

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

impl Shape {
    /// Without gaps and bias.
    fn plain(
        dtype: Dtype,
        fp8: bool,
        rows: usize,
        inputs: usize,
        features: &[usize],
        epilogue: LinearEpilogue,
    ) -> Shape {
        Shape { dtype, fp8, rows, inputs, features: features.to_vec(), epilogue, bias: false, gaps: [0; 3] }
    }

    fn width(&self) -> usize {
        if self.epilogue == SwiGlu { self.features[0] } else { self.features.iter().sum() }
    }

    fn out_dtype(&self) -> Dtype {
        if self.epilogue == StoreF32 { Dtype::F32 } else { self.dtype }
    }

    /// Rows of `width` numbers of the type of x and weights, `stride` apart, NaN in between and after.
    fn matrix(&self, random: &mut Random, rows: usize, width: usize, stride: usize, scale: f64) -> Vec<f64> {
        let mut x = vec![f64::NAN; rows * stride + 16];
        for row in 0..rows {
            for x in &mut x[row * stride..][..width] {
                let drawn = random.normal() * scale;
                *x = if self.fp8 { from_e4m3(to_e4m3(drawn)) } else { round(drawn, self.dtype) };
            }
        }
        x
    }

    /// Scales that bring numbers of `size` to about 1, NaN after them.
    fn scales(&self, random: &mut Random, count: usize, size: f64) -> Vec<f32> {
        if !self.fp8 {
            return vec![];
        }
        let scales = (0..count).map(|_| (random.uniform() + 0.5) as f32 / size as f32);
        scales.chain([f32::NAN; 4]).collect()
    }

    fn fill(&self, random: &mut Random) -> Case {
        let Shape { dtype, fp8, rows, inputs, ref features, epilogue, bias, gaps } = *self;
        let width = self.width();
        let (x_stride, stride, out_stride) = (inputs + gaps[0], inputs + gaps[1], width + gaps[2]);
        // Codes of all sizes, subnormals among them, where scales do the rest.
        let (x_size, w_size) = if fp8 { (0.5, 30.0) } else { (1.0, 2.0 / (inputs as f64).sqrt()) };
        // The projections lie in the order last, first, second … to tell columns from indices.
        let mut column = 0;
        let mut parts: Vec<Part> = vec![];
        for i in (0..features.len()).rev() {
            let weight = self.matrix(random, features[i], inputs, stride, w_size);
            let scales = self.scales(random, features[i], w_size * (inputs as f64).sqrt() / 2.0);
            let drawn = if bias { random.normals(features[i], 1.0, dtype) } else { vec![] };
            let bias = if bias { [drawn, vec![f64::NAN; 8]].concat() } else { vec![] };
            parts.insert(0, Part { column, weight, scales, bias });
            if epilogue != SwiGlu {
                column += features[i];
            }
        }
        let mut out = vec![f64::NAN; rows * out_stride + 8];
        if epilogue == Add {
            for row in 0..rows {
                out[row * out_stride..][..width].copy_from_slice(&random.normals(width, 1.0, dtype));
            }
        }
        Case {
            x: self.matrix(random, rows, inputs, x_stride, x_size),
            x_scales: self.scales(random, rows, x_size),
            shape: self.clone(),
            x_stride,
            out_stride,
            stride,
            parts,
            out,
        }
    }
}

impl Case {
    fn run(&self, rig: &Rig) -> Run {
        self.repeat(rig, 1).pop().unwrap()
    }

    /// Launches `times`.
    fn repeat(&self, rig: &Rig, times: usize) -> Vec<Run> {
        let Shape { dtype, fp8, rows, inputs, ref features, epilogue, bias, .. } = self.shape;
        let upload = |x: &[f64]| match fp8 {
            true => rig
                .upload(&x.iter().map(|x| if x.is_nan() { 0x7f } else { to_e4m3(*x) }).collect::<Vec<u8>>()),
            false => rig.upload(&encode(x, dtype)),
        };
        let x = upload(&self.x);
        let x_scales = rig.upload(&self.x_scales);
        let parts: Vec<[Buffer; 3]> = self
            .parts
            .iter()
            .map(|p| [upload(&p.weight), rig.upload(&p.scales), rig.upload(&encode(&p.bias, dtype))])
            .collect();
        let mut runs = vec![];
        for _ in 0..times {
            let mut out = match epilogue {
                Add => rig.upload(&encode(&self.out, dtype)),
                _ => rig.poisoned(self.out.len(), self.shape.out_dtype()),
            };
            let mut out_stats = rig.poisoned(rows * self.shape.width().div_ceil(64), Dtype::F32);
            let mut projections = [None; 3];
            for (i, (part, [weight, scales, biases])) in self.parts.iter().zip(&parts).enumerate() {
                projections[i] = Some(LinearProjection {
                    weight: Rows { view: weight.view(), stride: self.stride },
                    scales: fp8.then(|| scales.view()),
                    bias: bias.then(|| biases.view()),
                    features: features[i],
                    column: part.column,
                });
            }
            let args = GemmArgs {
                dtype,
                rows,
                inputs,
                x: Rows { view: x.view(), stride: self.x_stride },
                x_scales: fp8.then(|| x_scales.view()),
                projections,
                epilogue,
                out: RowsMut { view: out.view_mut(), stride: self.out_stride },
                out_stats: (epilogue == Add).then(|| out_stats.view_mut()),
            };
            let report = rig.reports(|| rig.kernels.gemm.launch(&rig.stream, args)).pop();
            runs.push(Run {
                out: rig.bytes(&out),
                stats: if epilogue == Add { rig.bytes(&out_stats) } else { vec![] },
                entry: report.as_ref().map_or(String::new(), |r| r.entry.to_string()),
                counters: report.map(|r| r.counters),
            });
        }
        runs
    }

    /// Row `row` of the result in f64, and as it comes out where each step rounds to the storage type.
    fn expect(&self, row: usize) -> (Vec<f64>, Vec<f64>) {
        let Shape { dtype, fp8, inputs, ref features, epilogue, bias, .. } = self.shape;
        let x = &self.x[row * self.x_stride..][..inputs];
        let at = |i: usize, n: usize| -> f64 {
            let part = &self.parts[i];
            let w = &part.weight[n * self.stride..][..inputs];
            let mut sum = x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
            if fp8 {
                sum *= f64::from(self.x_scales[row]) * f64::from(part.scales[n]);
            }
            sum + if bias { part.bias[n] } else { 0.0 }
        };
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let width = self.shape.width();
        let (mut want, mut rough) = (vec![0.0; width], vec![0.0; width]);
        if epilogue == SwiGlu {
            for n in 0..width {
                let [gate, up] = [at(0, n), at(1, n)];
                want[n] = silu(gate) * up;
                rough[n] = round(round(silu(round(gate, dtype)), dtype) * round(up, dtype), dtype);
            }
            return (want, rough);
        }
        for (i, part) in self.parts.iter().enumerate() {
            for n in 0..features[i] {
                let mut y = at(i, n);
                let mut r = round(y, dtype);
                if epilogue == Add {
                    let before = self.out[row * self.out_stride + part.column + n];
                    (y, r) = (y + before, round(r + before, dtype));
                }
                want[part.column + n] = y;
                rough[part.column + n] = r;
            }
        }
        (want, rough)
    }

    /// `entry` is the end of the name of the entry that has to run.
    fn check(&self, rig: &Rig, entry: &str) {
        let Shape { dtype, fp8, rows, inputs, ref features, epilogue, .. } = self.shape;
        let run = self.run(rig);
        let what =
            format!("{} {dtype:?} fp8 {fp8} {rows} rows, {features:?} × {inputs}, {epilogue:?}", rig.name);
        assert!(run.entry.is_empty() || run.entry.ends_with(entry), "{what}: {}", run.entry);
        let (width, out_dtype) = (self.shape.width(), self.shape.out_dtype());
        let out = numbers(&run.out, out_dtype);
        let stats = numbers(&run.stats, Dtype::F32);
        // Of large products, some rows: the first and the last of a tile, and others as they come.
        let step = (rows * width * inputs / 6_000_000).max(1);
        let (mut got, mut want, mut naive) = (vec![], vec![], vec![]);
        for (row, out) in out.chunks(self.out_stride).take(rows).enumerate() {
            assert!(out[..width].iter().all(|x| !x.is_nan()), "{what}: row {row} has a NaN");
            assert!(out[width..].iter().all(|x| x.is_nan()), "{what}: row {row} wrote past its end");
            if epilogue == Add {
                let chunks = width.div_ceil(64);
                let wanted: Vec<f64> = statistics(&out[..width]).map(f64::from).collect();
                assert_eq!(&stats[row * chunks..][..chunks], &wanted[..], "{what}: statistics of row {row}");
            }
            if row % step == 0 || row + 1 == rows || (step < 32 && row % 64 == 63) {
                got.extend_from_slice(&out[..width]);
                let (exact, rough) = self.expect(row);
                want.extend(exact);
                naive.extend(rough);
            }
        }
        assert!(out[rows * self.out_stride..].iter().all(|x| x.is_nan()), "{what}: wrote past the last row");
        assert_as_exact_as_naive(&what, &got, &want, &naive, 2.0, dtype);
        // Sums in f32 can be held to far more: a single product that is missing shows.
        if out_dtype == Dtype::F32 {
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!((got - want).abs() < 5e-4, "{what}: element {i} is {got}, not {want}");
            }
        }
    }
}

#[test]
fn any_shape() {
    let mut random = Random::new("gemm shapes");
    let rigs = rigs();
    // Rows, inputs, features, epilogue, bias, gaps.
    type Named = (usize, usize, &'static [usize], LinearEpilogue, bool, [usize; 3]);
    let named: &[Named] = &[
        (1, 1, &[1], Store, false, [0; 3]),
        (63, 8, &[7], StoreF32, true, [0; 3]),
        (65, 17, &[9, 9], SwiGlu, true, [7, 15, 3]),
        (127, 17, &[130], Add, true, [0; 3]),
        (129, 24, &[129, 1, 127], Store, true, [8, 0, 0]),
        (769, 72, &[7], Add, false, [0; 3]),
        (3, 769, &[130], Add, true, [15, 15, 1]),
        (2, 5125, &[3], StoreF32, false, [0; 3]),
        (64, 200, &[64, 64], SwiGlu, false, [0; 3]),
        (66, 1032, &[40, 8], StoreF32, true, [0, 8, 8]),
    ];
    for (i, &(rows, inputs, features, epilogue, bias, gaps)) in named.iter().enumerate() {
        for fp8 in [false, true] {
            let dtype = TYPES[(i + usize::from(fp8)) % 2];
            let features = features.to_vec();
            let shape = Shape { dtype, fp8, rows, inputs, features, epilogue, bias, gaps };
            let case = shape.fill(&mut random);
            rigs.iter().for_each(|rig| case.check(rig, ""));
        }
    }
    for _ in 0..24 {
        let epilogue = random.pick(&EPILOGUES);
        let n = random.range(1, 200);
        let features = match epilogue {
            Add => vec![n],
            SwiGlu => vec![n, n],
            _ => (0..random.range(1, 3)).map(|_| random.range(1, 130)).collect(),
        };
        let (rows, fp8) = (random.range(1, 200), random.pick(&[true, false]));
        let sixteens = random.pick(&[1, 8, 16]);
        let inputs = random.range(1, 700 / sixteens) * sixteens;
        let gaps = [0, 1, 2].map(|_| random.range(0, 2) * sixteens);
        let (dtype, bias) = (random.pick(&TYPES), random.pick(&[true, false]));
        let shape = Shape { dtype, fp8, rows, inputs, features, epilogue, bias, gaps };
        shape.fill(&mut random).check(random.one_of(&rigs), "");
    }
}

/// Shapes of many tiles.
#[test]
fn any_large_shape() {
    let mut random = Random::new("gemm large");
    let rigs = rigs();
    // Rows, inputs, features, epilogue, bias, gaps. More than 16 blocks of rows in the third and the fifth.
    type Named = (usize, usize, &'static [usize], LinearEpilogue, bool, [usize; 3]);
    let named: &[Named] = &[
        (3, 50, &[128 * 94 + 3, 1, 7], StoreF32, true, [14, 30, 1]),
        (129, 129, &[64 * 47 + 3, 64 * 47 + 3], SwiGlu, true, [15, 15, 3]),
        (128 * 17 + 1, 16, &[5 * 128 + 1], Add, true, [0; 3]),
        (70, 72, &[6100, 6100], SwiGlu, false, [8, 8, 4]),
        (128 * 31 + 64, 8, &[130, 60], Store, false, [8, 24, 2]),
        (2, 200, &[12200], Add, false, [8, 8, 8]),
    ];
    for (i, &(rows, inputs, features, epilogue, bias, gaps)) in named.iter().enumerate() {
        // Either type, and both of the first two.
        for fp8 in [false, true].into_iter().filter(|fp8| i < 2 || (i % 2 == 1) == *fp8) {
            let dtype = TYPES[(i + usize::from(fp8)) % 2];
            let to = |stride: usize| stride.next_multiple_of(if fp8 { 16 } else { 8 }) - inputs;
            let gaps = [to(inputs + gaps[0]), to(inputs + gaps[1]), gaps[2]];
            let features = features.to_vec();
            let shape = Shape { dtype, fp8, rows, inputs, features, epilogue, bias, gaps };
            shape.fill(&mut random).check(&rigs[i % 3], "128");
        }
    }
}

impl Case {
    /// This case's `row` as row `slot` of `rows`, the others NaN; rows of x `gap` further apart.
    fn among_nans(&self, row: usize, rows: usize, slot: usize, gap: usize) -> Case {
        let alone = |from: &[f64], width: usize, stride: usize, gap: usize| {
            let mut to = vec![f64::NAN; rows * (stride + gap) + 16];
            to[slot * (stride + gap)..][..width].copy_from_slice(&from[row * stride..][..width]);
            to
        };
        let mut x_scales = vec![f32::NAN; rows];
        if self.shape.fp8 {
            x_scales[slot] = self.x_scales[row];
        }
        Case {
            shape: Shape { rows, ..self.shape.clone() },
            x: alone(&self.x, self.shape.inputs, self.x_stride, gap),
            x_stride: self.x_stride + gap,
            x_scales,
            out: alone(&self.out, self.shape.width(), self.out_stride, 0),
            ..self.clone()
        }
    }
}

/// A row has the same bits alone and among many, in any slot, beside anything, however it is aligned: in large tiles
/// and in small ones.
#[test]
fn a_row_depends_on_itself_alone() {
    let mut random = Random::new("gemm exact");
    let rigs = rigs();
    for (i, epilogue) in EPILOGUES.into_iter().enumerate() {
        for fp8 in [false, true] {
            let features = if epilogue == SwiGlu { vec![100, 100] } else { vec![200] };
            let shape = Shape::plain(TYPES[(i + usize::from(fp8)) % 2], fp8, 129, 112, &features, epilogue);
            let all = Shape { bias: true, ..shape }.fill(&mut random);
            // Large tiles: with rows of NaN, so many that they are taken.
            let (row, slot) = (random.range(0, 128), random.range(0, 6138));
            let whole = all.among_nans(row, 6139, slot, 0).run(&rigs[i % 3]);
            assert!(whole.entry.is_empty() || whole.entry.ends_with("128"), "{}", whole.entry);
            let row_bytes = all.out_stride * all.shape.out_dtype().size();
            let stat_bytes = 4 * all.shape.width().div_ceil(64);
            for rows in [1, 64, 65, 129] {
                let other = random.range(0, rows - 1);
                for gap in [0, 3] {
                    let rig = random.one_of(&rigs);
                    let run = all.among_nans(row, rows, other, gap).run(rig);
                    let what = format!("{epilogue:?} {fp8}: row {row} as {other} of {rows}, {}", rig.name);
                    assert!(
                        run.entry.is_empty()
                            || run.entry.ends_with(if gap == 0 || rows == 1 { "64" } else { "any" })
                    );
                    let bits = |run: &Run, row: usize| run.out[row * row_bytes..][..row_bytes].to_vec();
                    assert_eq!(bits(&run, other), bits(&whole, slot), "{what}");
                    if epilogue == Add {
                        let stats =
                            |run: &Run, row: usize| run.stats[row * stat_bytes..][..stat_bytes].to_vec();
                        assert_eq!(stats(&run, other), stats(&whole, slot), "{what}");
                    }
                }
            }
        }
    }
}

/// 100 launches under every schedule.
#[test]
fn the_same_launch_gives_the_same_bits() {
    let mut random = Random::new("gemm repeats");
    let rigs = rigs();
    for fp8 in [false, true] {
        let case = Shape::plain(Dtype::Bf16, fp8, 67, 208, &[72], Add).fill(&mut random);
        let first = case.run(&rigs[0]);
        for rig in &rigs {
            for run in case.repeat(rig, 34) {
                assert_eq!((&run.out, &run.stats), (&first.out, &first.stats), "{}", rig.name);
            }
        }
    }
}

/// Where gate and up are numbers of T, the epilogue has the bits of the kernel `swiglu`.
#[test]
fn swiglu_has_the_bits_of_the_kernel() {
    let mut random = Random::new("gemm swiglu");
    let rig = rig();
    for dtype in TYPES {
        let (n, width) = (72, 72);
        let mut case = Shape::plain(dtype, false, n, n, &[width, width], SwiGlu).fill(&mut random);
        for row in 0..n {
            for (k, x) in case.x[row * n..][..n].iter_mut().enumerate() {
                *x = f64::from(u8::from(k == row));
            }
        }
        // Weights transposed, as rows of gate and up.
        let [gate, up] = [0, 1].map(|i| {
            let scale = if i == 0 { 8.0 } else { 1.0 };
            let values = random.normals(n * width, scale, dtype);
            for row in 0..n {
                for k in 0..n {
                    case.parts[i].weight[row * n + k] = values[k * width + row];
                }
            }
            rig.upload(&encode(&values, dtype))
        });
        let mut out = rig.poisoned(n * width, dtype);
        let args = SwigluArgs {
            dtype,
            rows: n,
            width,
            gate: Rows { view: gate.view(), stride: width },
            up: Rows { view: up.view(), stride: width },
            out: RowsMut { view: out.view_mut(), stride: width },
            positions: None,
        };
        rig.kernels.swiglu.launch(&rig.stream, &args).unwrap();
        assert_eq!(case.run(&rig).out[..n * width * 2], rig.bytes(&out), "{dtype:?}");
    }
}

/// What a tile moves and computes, as the kernel's first lines say.
#[test]
fn every_tile_moves_once() {
    let mut random = Random::new("gemm counters");
    let rig = rig();
    for (fp8, epilogue, large) in [
        (false, Add, true),
        (true, Store, true),
        (false, SwiGlu, true),
        (false, StoreF32, false),
        (true, SwiGlu, false),
        (false, Add, false),
    ] {
        let size = if fp8 { 1 } else { 2 };
        let (side, pitch) = if large { (128, 64) } else { (64, 128) };
        let inputs = 4 * 128 / size;
        let (rows, features) = if large { (8 * side, 12 * side) } else { (3 * side, 12 * side) };
        let swiglu = epilogue == SwiGlu;
        let parts = if swiglu { vec![features / 2; 2] } else { vec![features] };
        let case = Shape::plain(Dtype::Bf16, fp8, rows, inputs, &parts, epilogue).fill(&mut random);
        let run = case.run(&rig);
        let Some(counters) = run.counters else { return };
        let what = format!("{} {epilogue:?}", run.entry);
        assert!(run.entry.ends_with(if large { "128" } else { "64" }), "{what}");
        let (rows, features, inputs, side) = (rows as u64, features as u64, inputs as u64, side as u64);
        let size = size as u64;
        let ctas = rows / side * features / side;
        assert_eq!(counters.ctas, ctas, "{what}");
        // x and W: once per tile, whole sectors, no more into shared memory than out of device memory.
        assert_eq!(counters.copy.bytes, ctas * 2 * side * inputs * size, "{what}");
        assert_eq!(counters.copy.sectors * 32, counters.copy.bytes, "{what}");
        assert_eq!(counters.copy_bytes_written, counters.copy.bytes, "{what}");
        // Every product once.
        assert_eq!(counters.mma, rows / 16 * features / 8 * inputs / 16, "{what}");
        assert_eq!(counters.mma_flop_useful, 2 * rows * features * inputs, "{what}");
        // Operands: a warp's 64 or 16 rows and 64 features.
        let warp_rows = if large { 64 } else { 16 };
        assert_eq!(counters.matrix.bytes, 4 * ctas * (warp_rows + 64) * inputs * size, "{what}");
        assert_eq!(counters.matrix.wavefronts, counters.matrix.ideal, "{what}: bank conflicts of ldmatrix");
        assert_eq!(counters.shared_load.wavefronts, counters.shared_load.ideal, "{what}: bank conflicts");
        assert_eq!(counters.shared_store.wavefronts, counters.shared_store.ideal, "{what}: bank conflicts");
        // Sums: to shared memory and back, once.
        assert_eq!(counters.shared_store.bytes, 4 * rows * features, "{what}");
        assert_eq!(counters.shared_load.bytes, 4 * rows * features, "{what}");
        assert_eq!(counters.barriers, ctas * 4 * (1 + inputs * size / pitch), "{what}");
        // out, once; and the residual, and what scales it.
        let width = case.shape.width() as u64;
        let out = rows * width * case.shape.out_dtype().size() as u64;
        let chunks = rows * width / 64;
        let (store, load) = (counters.global_store, counters.global_load);
        let stats = if epilogue == Add { 4 * chunks } else { 0 };
        assert_eq!(store.bytes, out + stats, "{what}: stores");
        assert_eq!(store.sectors, (out + 8 * stats) / 32, "{what}: sectors of stores");
        if !fp8 {
            assert_eq!(load.bytes, if epilogue == Add { out } else { 0 }, "{what}: loads");
            assert_eq!(32 * load.sectors, load.bytes, "{what}: sectors of loads");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let rig = rig();
    let dtype = Dtype::Bf16;
    let [x, weight] = [4 * 1024, 64 * 1024].map(|count| rig.poisoned(count, dtype));
    let (mut out, mut out_stats) = (rig.poisoned(4 * 192, dtype), rig.poisoned(3, Dtype::F32));
    let mut refused = |with_stats: bool, change: &dyn Fn(&mut GemmArgs), wanted: &str| {
        let part = |column| {
            let weight = Rows { view: weight.view(), stride: 1024 };
            Some(LinearProjection { weight, scales: None, bias: None, features: 64, column })
        };
        let mut args = GemmArgs {
            dtype,
            rows: 4,
            inputs: 1024,
            x: Rows { view: x.view(), stride: 1024 },
            x_scales: None,
            projections: [part(0), part(64), part(128)],
            epilogue: Store,
            out: RowsMut { view: out.view_mut(), stride: 192 },
            out_stats: with_stats.then(|| out_stats.view_mut()),
        };
        change(&mut args);
        let error = rig.kernels.gemm.launch(&rig.stream, args).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    };
    let part = |a: &mut GemmArgs, i: usize, change: &dyn Fn(&mut LinearProjection)| {
        change(a.projections[i].as_mut().unwrap());
    };
    refused(false, &|a| a.dtype = Dtype::F32, "dtype: f32; supported are bf16 and f16");
    refused(false, &|a| a.rows = usize::MAX, "rows: ");
    refused(false, &|a| a.rows = 5, "x: 8192 bytes do not hold 5120 elements");
    refused(false, &|a| a.inputs = 0, "inputs: 0");
    refused(false, &|a| a.inputs = usize::MAX, "inputs: ");
    refused(false, &|a| a.x.stride = 1023, "x: rows 1023 elements apart overlap");
    refused(false, &|a| a.x.view = a.x.view.slice(2..4096), "x: address");
    refused(
        false,
        &|a| a.projections = [None; 3],
        "projections: 0 with the epilogue Store; supported are 1 to 3",
    );
    let overlap = "projections: 64 features at column 0 overlap 64 at column 63";
    refused(false, &|a| part(a, 1, &|p| p.column = 63), overlap);
    let short = "weight: 131072 bytes do not hold 66560 elements";
    refused(false, &|a| part(a, 1, &|p| p.features = 65), short);
    refused(false, &|a| part(a, 1, &|p| p.features = 0), "features: 0");
    let narrow = "out: rows 192 elements apart overlap; 193 at least";
    refused(false, &|a| part(a, 2, &|p| p.column = 129), narrow);
    refused(false, &|a| part(a, 2, &|p| p.column = usize::MAX), "column: ");
    refused(false, &|a| part(a, 0, &|p| p.weight.stride = 1016), "weight: rows 1016 elements apart overlap");
    refused(false, &|a| part(a, 0, &|p| p.bias = Some(p.weight.view.slice(0..126))), "bias: 126 bytes");
    refused(false, &|a| a.epilogue = StoreF32, "out: 1536 bytes do not hold 768 elements of 4 bytes");
    refused(false, &|a| a.epilogue = Add, "projections: 3 with the epilogue Add; supported is 1");
    refused(
        false,
        &|a| a.epilogue = SwiGlu,
        "projections: 3 with the epilogue SwiGlu; supported are 2, gate and up",
    );
    let pair = |a: &mut GemmArgs| (a.epilogue, a.projections[2]) = (SwiGlu, None);
    refused(false, &pair, "projections: gate and up have 64 and 64 features at columns 0 and 64");
    let one = |a: &mut GemmArgs| (a.epilogue, a.projections) = (Add, [a.projections[1], None, None]);
    refused(false, &one, "column: 64; supported is 0 where out is added to");
    refused(true, &|_| (), "out_stats: of an epilogue that does not add to out");
    let one = |a: &mut GemmArgs| (a.epilogue, a.projections) = (Add, [a.projections[0], None, None]);
    refused(true, &one, "out_stats: 12 bytes do not hold 4 elements");
    // e4m3: scales of x and of every projection, or of none.
    let scaled = |a: &mut GemmArgs| {
        a.x_scales = Some(a.x.view.slice(0..16));
        let scales = a.x.view.slice(0..256);
        a.projections.iter_mut().flatten().for_each(|p| p.scales = Some(scales));
    };
    let change = |a: &mut GemmArgs, change: &dyn Fn(&mut GemmArgs)| {
        scaled(a);
        change(a);
    };
    let none = |a: &mut GemmArgs| part(a, 1, &|p| p.scales = None);
    refused(false, &|a| change(a, &none), "scales: none; needed with x_scales");
    refused(false, &|a| change(a, &|a| a.x_scales = None), "scales: given without x_scales");
    let short = |a: &mut GemmArgs| a.x_scales = Some(a.x.view.slice(0..12));
    refused(false, &|a| change(a, &short), "x_scales: 12 bytes do not hold 4 elements");
    let short = |a: &mut GemmArgs| part(a, 2, &|p| p.scales = Some(p.scales.unwrap().slice(0..252)));
    refused(false, &|a| change(a, &short), "scales: 252 bytes do not hold 64 elements");
    let unaligned = |a: &mut GemmArgs| part(a, 2, &|p| p.scales = Some(p.weight.view.slice(4..512)));
    refused(false, &|a| change(a, &unaligned), "scales: address");
}

/// No rows are no work.
#[test]
fn no_rows() {
    let mut random = Random::new("gemm none");
    let rig = rig();
    let case = Shape::plain(Dtype::F16, false, 0, 16, &[24], Store).fill(&mut random);
    let run = case.run(&rig);
    assert!(run.entry.is_empty() && numbers(&run.out, Dtype::F16).iter().all(|x| x.is_nan()));
}
