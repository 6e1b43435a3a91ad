//! RMSNorm against its formula in f64.

use warploom::{
    driver::{View, ViewMut},
    kernels::{Dtype, E4m3Rows, QuantizeFp8RowsArgs, RmsNormArgs, Rows, RowsMut},
};

use super::harness::{
    Random, Rig, assert_the_same_each_time, assert_within_ulps, bits, encode, rig, rigs, round,
};

/// One launch: shapes and what was in memory.
struct Case {
    dtype: Dtype,
    rows: usize,
    width: usize,
    x_stride: usize,
    y_stride: usize,
    eps: f32,
    x: Vec<f64>,
    residual: Option<Vec<f64>>,
    weight: Vec<f64>,
}

impl Case {
    fn random(random: &mut Random, dtype: Dtype, rows: usize, width: usize, residual: bool) -> Case {
        let (x_stride, y_stride) = (width + random.range(0, 9), width + random.range(0, 9));
        let scale = random.pick(&[1.0, 0.02, 30.0]);
        let mut x = vec![f64::NAN; rows * x_stride + 8];
        for row in 0..rows {
            let values = random.normals(width, scale, dtype);
            x[row * x_stride..][..width].copy_from_slice(&values);
        }
        let weight = [random.normals(width, 1.0, dtype), vec![f64::NAN; 8]].concat();
        let residual = residual.then(|| random.normals(rows * width, scale, dtype));
        Case { dtype, rows, width, x_stride, y_stride, eps: 1e-5, x, residual, weight }
    }

    /// y and the new residual, as the kernel writes them; stats where asked for.
    fn run(&self, rig: &Rig) -> Run {
        let Case { dtype, rows, width, .. } = *self;
        let x = rig.upload(&encode(&self.x, dtype));
        let weight = rig.upload(&encode(&self.weight, dtype));
        let residual = self.residual.as_ref().map(|r| rig.upload(&encode(r, dtype)));
        let mut new = rig.poisoned(rows * width, dtype);
        let mut y = rig.poisoned(rows * self.y_stride, dtype);
        let mut stats = rig.poisoned(rows * width.div_ceil(64), Dtype::F32);
        let args = RmsNormArgs {
            dtype,
            rows,
            width,
            eps: self.eps,
            x: Rows { view: x.view(), stride: self.x_stride },
            residual: residual.as_ref().map(|r| {
                (Rows { view: r.view(), stride: width }, RowsMut { view: new.view_mut(), stride: width })
            }),
            weight: weight.view(),
            y: RowsMut { view: y.view_mut(), stride: self.y_stride },
            stats: Some(stats.view_mut()),
            positions: None,
        };
        let mut reports = rig.reports(|| rig.kernels.rms_norm.launch(&rig.stream, &args));
        Run {
            y: rig.download(&y, dtype),
            new_residual: rig.download(&new, dtype),
            stats: rig.download(&stats, Dtype::F32),
            counters: reports.pop().map(|r| r.counters),
        }
    }

    /// The same with a y of e4m3.
    fn run_e4m3(&self, rig: &Rig, bound: Option<f32>) -> E4m3Run {
        let Case { dtype, rows, width, .. } = *self;
        let x = rig.upload(&encode(&self.x, dtype));
        let weight = rig.upload(&encode(&self.weight, dtype));
        let residual = self.residual.as_ref().map(|r| rig.upload(&encode(r, dtype)));
        let mut new = rig.poisoned(rows * width, dtype);
        let mut q = rig.upload(&vec![0x55u8; rows * self.y_stride + 8]);
        let mut scales = rig.poisoned(rows, Dtype::F32);
        let mut stats = rig.poisoned(rows * width.div_ceil(64), Dtype::F32);
        let args = RmsNormArgs {
            dtype,
            rows,
            width,
            eps: self.eps,
            x: Rows { view: x.view(), stride: self.x_stride },
            residual: residual.as_ref().map(|r| {
                (Rows { view: r.view(), stride: width }, RowsMut { view: new.view_mut(), stride: width })
            }),
            weight: weight.view(),
            y: E4m3Rows {
                q: RowsMut { view: q.view_mut(), stride: self.y_stride },
                scales: scales.view_mut(),
                bound,
            },
            stats: Some(stats.view_mut()),
            positions: None,
        };
        let mut reports = rig.reports(|| rig.kernels.rms_norm.launch_e4m3(&rig.stream, &args));
        E4m3Run {
            q: rig.bytes(&q),
            scales: bits(&rig.download(&scales, Dtype::F32)),
            new_residual: bits(&rig.download(&new, dtype)),
            stats: bits(&rig.download(&stats, Dtype::F32)),
            counters: reports.pop().map(|r| r.counters),
        }
    }

    /// What it has to be: the norm, and then the kernel that makes e4m3 of it.
    fn run_apart(&self, rig: &Rig, bound: Option<f32>) -> E4m3Run {
        let Case { dtype, rows, width, .. } = *self;
        let run = self.run(rig);
        let y = rig.upload(&encode(&run.y, dtype));
        let mut q = rig.upload(&vec![0x55u8; rows * self.y_stride + 8]);
        let mut scales = rig.poisoned(rows, Dtype::F32);
        let args = QuantizeFp8RowsArgs {
            dtype,
            rows,
            width,
            bound,
            x: Rows { view: y.view(), stride: self.y_stride },
            q: RowsMut { view: q.view_mut(), stride: self.y_stride },
            scales: scales.view_mut(),
            positions: None,
        };
        rig.reports(|| rig.kernels.quantize_fp8_rows.launch(&rig.stream, args));
        E4m3Run {
            q: rig.bytes(&q),
            scales: bits(&rig.download(&scales, Dtype::F32)),
            new_residual: bits(&run.new_residual),
            stats: bits(&run.stats),
            counters: None,
        }
    }

    /// What is normed, row by row.
    fn normed(&self, row: usize) -> Vec<f64> {
        let x = &self.x[row * self.x_stride..][..self.width];
        match &self.residual {
            None => x.to_vec(),
            Some(residual) => {
                let residual = &residual[row * self.width..][..self.width];
                x.iter().zip(residual).map(|(x, r)| round(x + r, self.dtype)).collect()
            }
        }
    }

    fn check(&self, rig: &Rig) {
        let run = self.run(rig);
        for row in 0..self.rows {
            let what = format!("{} {:?} [{}, {}] row {row}", rig.name, self.dtype, self.rows, self.width);
            let h = self.normed(row);
            let mean = h.iter().map(|x| x * x).sum::<f64>() / self.width as f64;
            let inverse = 1.0 / (mean + f64::from(self.eps)).sqrt();
            let y = &run.y[row * self.y_stride..][..self.width];
            // The inner rounding may fall to the other side of a tie, and the weight makes of one unit up to two, before the last rounding. In f32 each of
            // the steps to 1/√ rounds, too.
            let ulps = if self.dtype == Dtype::F32 { 6.0 } else { 2.5 };
            let want: Vec<f64> =
                h.iter().zip(&self.weight).map(|(h, w)| round(h * inverse, self.dtype) * w).collect();
            assert_within_ulps(&what, y, &want, ulps, self.dtype);
            if self.residual.is_some() {
                assert_eq!(&run.new_residual[row * self.width..][..self.width], &h[..], "{what}: residual");
            }
            for (c, chunk) in h.chunks(64).enumerate() {
                let want: f64 = chunk.iter().map(|x| x * x).sum();
                let got = run.stats[row * self.width.div_ceil(64) + c];
                assert!((got - want).abs() <= 1e-5 * want, "{what}: statistics {c}: {got}, not {want}");
            }
            let gap = &run.y[row * self.y_stride + self.width..(row + 1) * self.y_stride];
            assert!(gap.iter().all(|x| x.is_nan()), "{what}: wrote past its row");
        }
    }
}

struct Run {
    y: Vec<f64>,
    new_residual: Vec<f64>,
    stats: Vec<f64>,
    counters: Option<ptxsim::Counters>,
}

/// Floats by their bits.
struct E4m3Run {
    q: Vec<u8>,
    scales: Vec<u64>,
    new_residual: Vec<u64>,
    stats: Vec<u64>,
    counters: Option<ptxsim::Counters>,
}

/// All but the counters.
impl PartialEq for E4m3Run {
    fn eq(&self, other: &Self) -> bool {
        let all = |run: &Self| {
            let E4m3Run { q, scales, new_residual, stats, .. } = run;
            [q.iter().map(|q| u64::from(*q)).collect(), scales.clone(), new_residual.clone(), stats.clone()]
        };
        all(self) == all(other)
    }
}

const TYPES: [Dtype; 3] = [Dtype::Bf16, Dtype::F16, Dtype::F32];

#[test]
fn any_shape() {
    let mut random = Random::new("rms_norm shapes");
    let rigs = rigs();
    for (i, width) in [1, 7, 8, 63, 64, 65, 769, 2048, 4096, 4104, 5125, 16384, 16392].into_iter().enumerate()
    {
        for dtype in TYPES {
            let case = Case::random(&mut random, dtype, 1 + i % 3, width, i % 2 == 0);
            rigs.iter().for_each(|rig| case.check(rig));
        }
    }
    for _ in 0..12 {
        let (rows, width) = (random.range(1, 70), random.range(1, 900));
        let (dtype, residual) = (random.pick(&TYPES), random.pick(&[true, false]));
        Case::random(&mut random, dtype, rows, width, residual).check(random.one_of(&rigs));
    }
}

/// A y of e4m3 has the bits that rms_norm and quantize_fp8_rows give one after the other.
#[test]
fn e4m3_is_that_of_quantize_fp8_rows() {
    let mut random = Random::new("rms_norm e4m3");
    let rigs = rigs();
    let check = |case: &Case, bound: Option<f32>, rig: &Rig| {
        let (got, want) = (case.run_e4m3(rig, bound), case.run_apart(rig, bound));
        let what = format!("{} {:?} [{}, {}], {bound:?}", rig.name, case.dtype, case.rows, case.width);
        assert_eq!(got.q, want.q, "{what}: q");
        assert_eq!(got.scales, want.scales, "{what}: scales");
        assert!(got == want, "{what}: residual or statistics");
    };
    let bounds = [None, Some(1200.0), Some(0.5)];
    let widths = [1, 7, 8, 15, 63, 64, 65, 769, 2048, 2056, 4096, 4104, 5125, 14336, 16384, 16392];
    for (i, width) in widths.into_iter().enumerate() {
        let mut case = Case::random(&mut random, TYPES[i % 2], 1 + i % 3, width, i % 2 == 0);
        // Over the bound in some.
        case.weight.iter_mut().for_each(|w| *w = round(*w * [1.0, 0.01, 700.0][i % 3], case.dtype));
        rigs.iter().for_each(|rig| check(&case, bounds[i / 2 % 3], rig));
    }
    for _ in 0..12 {
        let (rows, width) = (random.range(1, 40), random.range(1, 600));
        let (dtype, residual) = (random.pick(&TYPES[..2]), random.pick(&[true, false]));
        let mut case = Case::random(&mut random, dtype, rows, width, residual);
        // Whole vectors in one of two.
        if random.pick(&[true, false]) {
            let width = case.width.next_multiple_of(8);
            let zeros = Case::random(&mut random, dtype, rows, width, residual);
            case = Case { x_stride: width, y_stride: width, ..zeros };
        }
        check(&case, random.pick(&bounds), random.one_of(&rigs));
    }
    // The largest in one step and in another.
    for (width, largest) in [(4096, 100), (4096, 3000), (16384, 9000), (20000, 18000)] {
        let mut case = Case::random(&mut random, Dtype::Bf16, 1, width, false);
        (case.x[largest], case.weight[largest]) = (round(1000.0, case.dtype), 1.0);
        check(&case, None, &rigs[0]);
    }
    // Rows of zeros, and with a NaN, whose scale is NaN.
    for width in [64, 65] {
        let mut case = Case::random(&mut random, Dtype::Bf16, 3, width, false);
        case.x[..width].fill(0.0);
        case.x[case.x_stride + width - 1] = f64::NAN;
        check(&case, Some(1200.0), &rigs[0]);
        let scales = case.run_e4m3(&rigs[0], Some(1200.0)).scales;
        assert_eq!(f64::from_bits(scales[0]), f64::from(1f32 / (448.0 * 512.0)));
        assert!(f64::from_bits(scales[1]).is_nan() && f64::from_bits(scales[2]) > 1e-4);
    }
}

/// A row has the same bits alone, in company, and in any place.
#[test]
fn a_row_depends_on_itself_alone() {
    let mut random = Random::new("rms_norm exact");
    let rig = rig();
    let case = Case::random(&mut random, Dtype::Bf16, 9, 1000, true);
    let whole = case.run(&rig);
    for row in [0, 4, 8] {
        let alone = Case {
            rows: 1,
            x: case.x[row * case.x_stride..][..case.width].to_vec(),
            residual: case.residual.as_ref().map(|r| r[row * case.width..][..case.width].to_vec()),
            weight: case.weight.clone(),
            ..case
        };
        let run = alone.run(&rig);
        assert_eq!(&run.y[..case.width], &whole.y[row * case.y_stride..][..case.width]);
        assert_eq!(run.stats, &whole.stats[row * 16..][..16]);
    }
}

#[test]
fn the_same_launch_gives_the_same_bits() {
    let case = Case::random(&mut Random::new("rms_norm repeats"), Dtype::F16, 3, 2100, true);
    assert_the_same_each_time(&rigs(), |rig| {
        let run = case.run(rig);
        [bits(&run.y), bits(&run.new_residual), bits(&run.stats)]
    });
    assert_the_same_each_time(&rigs(), |rig| case.run_e4m3(rig, Some(1200.0)));
}

/// Row 1 of everything begins beyond 2^31 elements; row 0, which is dead, would lie in memory that there is not.
#[test]
fn rows_beyond_31_bits() {
    let rig = rig();
    let (dtype, width, stride) = (Dtype::Bf16, 40, (1usize << 31) + 8);
    let near = Case {
        x_stride: width,
        y_stride: width,
        ..Case::random(&mut Random::new("rms_norm far"), dtype, 1, width, true)
    };
    let want = near.run(&rig);
    let [x, weight, residual] = [&near.x[..width], &near.weight, near.residual.as_ref().unwrap()]
        .map(|x| rig.upload(&encode(x, dtype)));
    let [mut new, mut y] = [(); 2].map(|()| rig.poisoned(width, dtype));
    let mut stats = rig.poisoned(2, Dtype::F32);
    let positions = rig.upload(&[-1, 0]);
    let (before, bytes) = (stride as u64 * 2, (stride + width) * 2);
    let far = |x: View<'_>| {
        // SAFETY: the kernel touches row 1 alone, which is all of each buffer.
        Rows { view: unsafe { View::from_raw(x.address() - before, bytes) }, stride }
    };
    let far_mut = |x: ViewMut<'_>| {
        // SAFETY: as above.
        RowsMut { view: unsafe { ViewMut::from_raw(x.address() - before, bytes) }, stride }
    };
    let args = RmsNormArgs {
        dtype,
        rows: 2,
        width,
        eps: near.eps,
        x: far(x.view()),
        residual: Some((far(residual.view()), far_mut(new.view_mut()))),
        weight: weight.view(),
        y: far_mut(y.view_mut()),
        stats: Some(stats.view_mut()),
        positions: Some(positions.view()),
    };
    rig.reports(|| rig.kernels.rms_norm.launch(&rig.stream, &args));
    assert_eq!(rig.download(&y, dtype), want.y);
    assert_eq!(rig.download(&new, dtype), want.new_residual);
    assert_eq!(rig.download(&stats, Dtype::F32)[1..], want.stats);
}

/// Of rows with a negative position nothing is read, nor written.
#[test]
fn dead_rows_are_left_alone() {
    let rig = rig();
    let dtype = Dtype::Bf16;
    for width in [64, 65] {
        let mut random = Random::new("rms_norm dead");
        let (live, weight) =
            (random.normals(width, 1.0, dtype), rig.upload(&encode(&vec![1.0; width], dtype)));
        let mut x = rig.poisoned(2 * width, dtype);
        let row = encode(&live, dtype);
        rig.stream.upload(&mut x.view_mut().slice(2 * width..4 * width), &row).expect("upload");
        let positions = rig.upload(&[-1, 0]);
        let mut y = rig.upload(&encode(&vec![9.0; 2 * width], dtype));
        let mut stats = rig.upload(&encode(&vec![9.0; 2 * width.div_ceil(64)], Dtype::F32));
        let args = RmsNormArgs {
            dtype,
            rows: 2,
            width,
            eps: 1e-5,
            x: Rows { view: x.view(), stride: width },
            residual: None,
            weight: weight.view(),
            y: RowsMut { view: y.view_mut(), stride: width },
            stats: Some(stats.view_mut()),
            positions: Some(positions.view()),
        };
        rig.reports(|| rig.kernels.rms_norm.launch(&rig.stream, &args));
        let (y, stats) = (rig.download(&y, dtype), rig.download(&stats, Dtype::F32));
        assert!(
            y[..width].iter().chain(&stats[..stats.len() / 2]).all(|x| *x == 9.0),
            "a dead row was written"
        );
        assert!(
            y[width..].iter().all(|y| *y != 9.0) && stats[stats.len() - 1] != 9.0,
            "the live row was not"
        );

        let mut q = rig.upload(&vec![0xffu8; 2 * width]);
        let mut scales = rig.upload(&[9f32; 2]);
        let args = RmsNormArgs {
            dtype,
            rows: 2,
            width,
            eps: 1e-5,
            x: Rows { view: x.view(), stride: width },
            residual: None,
            weight: weight.view(),
            y: E4m3Rows {
                q: RowsMut { view: q.view_mut(), stride: width },
                scales: scales.view_mut(),
                bound: None,
            },
            stats: None,
            positions: Some(positions.view()),
        };
        rig.reports(|| rig.kernels.rms_norm.launch_e4m3(&rig.stream, &args));
        let (q, scales) = (rig.bytes(&q), rig.download(&scales, Dtype::F32));
        assert!(q[..width].iter().all(|q| *q == 0xff) && scales[0] == 9.0, "a dead row was written");
        assert!(q[width..].iter().all(|q| *q != 0xff) && scales[1] != 9.0, "the live row was not");
    }
}

/// Each input is read once and each output written once; of the weights, one copy a row.
#[test]
fn every_byte_moves_once() {
    let rig = rig();
    let case = Case {
        x_stride: 4096,
        y_stride: 4096,
        ..Case::random(&mut Random::new("rms_norm bytes"), Dtype::Bf16, 4, 4096, false)
    };
    let case = Case { x: Random::new("x").normals(4 * 4096, 1.0, Dtype::Bf16), ..case };
    let Some(counters) = case.run(&rig).counters else { return };
    assert_eq!(counters.global_load.bytes, 4 * 4096 * 2 * 2, "x and weights");
    assert_eq!(counters.global_load.sectors * 32, counters.global_load.bytes, "coalesced");
    assert_eq!(counters.global_store.bytes, 4 * (4096 * 2 + 64 * 4), "y and statistics");
    assert_eq!(counters.shared_load.wavefronts, counters.shared_load.ideal, "no bank conflicts");

    let counters = case.run_e4m3(&rig, Some(1200.0)).counters.expect("counters");
    assert_eq!(counters.global_load.bytes, 4 * 4096 * 2 * 2, "x and weights");
    assert_eq!(counters.global_load.sectors * 32, counters.global_load.bytes, "coalesced");
    assert_eq!(counters.global_store.bytes, 4 * (4096 + 4 + 64 * 4), "q, scales and statistics");
    assert_eq!(counters.shared_load.wavefronts, counters.shared_load.ideal, "no bank conflicts");
}

#[test]
fn what_does_not_fit_is_refused() {
    let rig = rig();
    let dtype = Dtype::Bf16;
    let (x, weight) = (rig.poisoned(64, dtype), rig.poisoned(32, dtype));
    let mut y = rig.poisoned(64, dtype);
    let mut refused = |change: &dyn Fn(&mut RmsNormArgs), wanted: &str| {
        let mut args = RmsNormArgs {
            dtype,
            rows: 2,
            width: 32,
            eps: 1e-5,
            x: Rows { view: x.view(), stride: 32 },
            residual: None,
            weight: weight.view(),
            y: RowsMut { view: y.view_mut(), stride: 32 },
            stats: None,
            positions: None,
        };
        change(&mut args);
        let error = rig.kernels.rms_norm.launch(&rig.stream, &args).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    };
    refused(&|a| a.width = 0, "width: 0");
    refused(&|a| a.width = 33, "weight: 64 bytes do not hold 33 elements");
    refused(&|a| a.rows = 3, "x: 128 bytes do not hold 96 elements");
    refused(&|a| a.rows = usize::MAX, "rows: ");
    refused(&|a| a.x.stride = 31, "x: rows 31 elements apart overlap");
    refused(&|a| a.x.stride = usize::MAX / 2, "x: ");
    refused(&|a| a.x.view = a.x.view.slice(2..128), "x: address");
    refused(&|a| a.eps = f32::NAN, "eps: NaN");

    let (mut q, mut scales) = (rig.poisoned(32, dtype), rig.poisoned(2, Dtype::F32));
    let mut refused = |change: &dyn Fn(&mut RmsNormArgs<E4m3Rows>), wanted: &str| {
        let mut args = RmsNormArgs {
            dtype,
            rows: 2,
            width: 32,
            eps: 1e-5,
            x: Rows { view: x.view(), stride: 32 },
            residual: None,
            weight: weight.view(),
            y: E4m3Rows {
                q: RowsMut { view: q.view_mut(), stride: 32 },
                scales: scales.view_mut(),
                bound: None,
            },
            stats: None,
            positions: None,
        };
        change(&mut args);
        let error = rig.kernels.rms_norm.launch_e4m3(&rig.stream, &args).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    };
    refused(&|a| a.dtype = Dtype::F32, "dtype: f32; supported are bf16 and f16");
    refused(&|a| a.rows = 3, "x: 128 bytes do not hold 96 elements");
    refused(&|a| a.y.q.stride = 31, "y: rows 31 elements apart overlap");
    refused(&|a| a.y.q.stride = 33, "y: 64 bytes do not hold 65 elements");
    refused(&|a| (a.rows, a.x.stride, a.y.q.stride) = (3, 8, 8), "x: rows 8 elements apart overlap");
    refused(&|a| (a.rows, a.width) = (4, 8), "x: 128 bytes do not hold 104 elements");
    refused(
        &|a| (a.rows, a.width, a.x.stride, a.y.q.stride) = (3, 8, 8, 8),
        "scales: 8 bytes do not hold 3 elements",
    );
    refused(&|a| a.y.bound = Some(-1.0), "bound: -1; supported are numbers over 0");
    refused(&|a| a.y.bound = Some(f32::NAN), "bound: NaN");
}
