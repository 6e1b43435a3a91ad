//! SwiGLU against its formula in f64.

use warploom::{
    driver::{View, ViewMut},
    kernels::{Dtype, E4m3Rows, QuantizeFp8RowsArgs, Rows, RowsMut, SwigluArgs},
};

use super::harness::{Random, Rig, assert_the_same_each_time, assert_within_ulps, bits, encode, rig, rigs};

const TYPES: [Dtype; 2] = [Dtype::Bf16, Dtype::F16];

/// One launch: shapes and what was in memory. Gate and up lie in one matrix, NaN around them.
struct Case {
    dtype: Dtype,
    rows: usize,
    width: usize,
    stride: usize,
    /// Where up begins in the first row, a multiple of 8.
    up: usize,
    out_stride: usize,
    x: Vec<f64>,
    positions: Option<Vec<i32>>,
}

struct Run {
    out: Vec<f64>,
    counters: Option<ptxsim::Counters>,
}

struct E4m3Run {
    q: Vec<u8>,
    scales: Vec<u64>,
    counters: Option<ptxsim::Counters>,
}

impl Case {
    fn random(random: &mut Random, dtype: Dtype, rows: usize, width: usize) -> Case {
        // Now side by side without a gap, now with one.
        let up = (width + random.pick(&[0, 3, 8])).next_multiple_of(8);
        let stride = up + width + random.pick(&[0, 0, 1, 8]);
        let out_stride = width + random.pick(&[0, 0, 5, 8]);
        let mut x = vec![f64::NAN; rows * stride];
        for row in 0..rows {
            let scale = random.pick(&[0.1, 1.0, 10.0, 30.0]);
            x[row * stride..][..width].copy_from_slice(&random.normals(width, scale, dtype));
            x[row * stride + up..][..width].copy_from_slice(&random.normals(width, scale, dtype));
        }
        let positions = random.pick(&[false, true]).then(|| {
            (0..rows)
                .map(|_| if random.uniform() < 0.2 { -1 - random.range(0, 9) as i32 } else { 7 })
                .collect()
        });
        Case { dtype, rows, width, stride, up, out_stride, x, positions }
    }

    fn run(&self, rig: &Rig) -> Run {
        let x = rig.upload(&encode(&self.x, self.dtype));
        let positions = self.positions.as_ref().map(|p| rig.upload(p));
        let mut out = rig.poisoned(self.rows * self.out_stride, self.dtype);
        let args = SwigluArgs {
            dtype: self.dtype,
            rows: self.rows,
            width: self.width,
            gate: Rows { view: x.view(), stride: self.stride },
            up: Rows { view: x.view().slice(self.up * self.dtype.size()..x.bytes()), stride: self.stride },
            out: RowsMut { view: out.view_mut(), stride: self.out_stride },
            positions: positions.as_ref().map(|p| p.view()),
        };
        let mut reports = rig.reports(|| rig.kernels.swiglu.launch(&rig.stream, &args));
        Run { out: rig.download(&out, self.dtype), counters: reports.pop().map(|r| r.counters) }
    }

    /// The same with an out of e4m3: codes, and the scales by their bits.
    fn run_e4m3(&self, rig: &Rig, bound: Option<f32>) -> E4m3Run {
        let x = rig.upload(&encode(&self.x, self.dtype));
        let positions = self.positions.as_ref().map(|p| rig.upload(p));
        let mut q = rig.upload(&vec![0x55u8; self.rows * self.out_stride + 8]);
        let mut scales = rig.poisoned(self.rows, Dtype::F32);
        let args = SwigluArgs {
            dtype: self.dtype,
            rows: self.rows,
            width: self.width,
            gate: Rows { view: x.view(), stride: self.stride },
            up: Rows { view: x.view().slice(self.up * self.dtype.size()..x.bytes()), stride: self.stride },
            out: E4m3Rows {
                q: RowsMut { view: q.view_mut(), stride: self.out_stride },
                scales: scales.view_mut(),
                bound,
            },
            positions: positions.as_ref().map(|p| p.view()),
        };
        let mut reports = rig.reports(|| rig.kernels.swiglu.launch_e4m3(&rig.stream, &args));
        let (q, scales) = (rig.bytes(&q), bits(&rig.download(&scales, Dtype::F32)));
        E4m3Run { q, scales, counters: reports.pop().map(|r| r.counters) }
    }

    /// What it has to be: out, and then the kernel that makes e4m3 of it.
    fn run_apart(&self, rig: &Rig, bound: Option<f32>) -> E4m3Run {
        let out = rig.upload(&encode(&self.run(rig).out, self.dtype));
        let positions = self.positions.as_ref().map(|p| rig.upload(p));
        let mut q = rig.upload(&vec![0x55u8; self.rows * self.out_stride + 8]);
        let mut scales = rig.poisoned(self.rows, Dtype::F32);
        let args = QuantizeFp8RowsArgs {
            dtype: self.dtype,
            rows: self.rows,
            width: self.width,
            bound,
            x: Rows { view: out.view(), stride: self.out_stride },
            q: RowsMut { view: q.view_mut(), stride: self.out_stride },
            scales: scales.view_mut(),
            positions: positions.as_ref().map(|p| p.view()),
        };
        rig.reports(|| rig.kernels.quantize_fp8_rows.launch(&rig.stream, args));
        E4m3Run { q: rig.bytes(&q), scales: bits(&rig.download(&scales, Dtype::F32)), counters: None }
    }

    fn check_e4m3(&self, rig: &Rig, bound: Option<f32>) {
        let (got, want) = (self.run_e4m3(rig, bound), self.run_apart(rig, bound));
        let what = format!("{} {:?} [{}, {}], {bound:?}", rig.name, self.dtype, self.rows, self.width);
        assert_eq!(got.q, want.q, "{what}: q");
        assert_eq!(got.scales, want.scales, "{what}: scales");
    }

    fn check(&self, rig: &Rig) {
        let run = self.run(rig);
        for row in 0..self.rows {
            let what = format!("{} {:?} [{}, {}] row {row}", rig.name, self.dtype, self.rows, self.width);
            let out = &run.out[row * self.out_stride..][..self.out_stride];
            if self.positions.as_ref().is_some_and(|p| p[row] < 0) {
                assert!(out.iter().all(|x| x.is_nan()), "{what}: a dead row was written");
                continue;
            }
            let x = &self.x[row * self.stride..];
            let want: Vec<f64> = x[..self.width]
                .iter()
                .zip(&x[self.up..])
                .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
                .collect();
            assert_within_ulps(&what, &out[..self.width], &want, 1.0, self.dtype);
            assert!(out[self.width..].iter().all(|x| x.is_nan()), "{what}: wrote past its row");
        }
    }
}

#[test]
fn any_shape() {
    let mut random = Random::new("swiglu shapes");
    let rigs = rigs();
    for width in [1, 7, 8, 64, 769, 1024, 2048, 2056, 4096, 5125, 14336] {
        for dtype in TYPES {
            let rows = random.range(1, 3);
            let case = Case::random(&mut random, dtype, rows, width);
            rigs.iter().for_each(|rig| case.check(rig));
        }
    }
    for rows in [1, 2, 17, 63, 64, 300] {
        let (dtype, width) = (random.pick(&TYPES), random.range(1, 150));
        let rig = &rigs[random.range(0, rigs.len() - 1)];
        Case::random(&mut random, dtype, rows, width).check(rig);
    }
}

/// An out of e4m3 has the bits that swiglu and quantize_fp8_rows give one after the other; of dead rows nothing is read
/// or written.
#[test]
fn e4m3_is_that_of_quantize_fp8_rows() {
    let mut random = Random::new("swiglu e4m3");
    let rigs = rigs();
    let bounds = [None, Some(1200.0), Some(0.5)];
    let widths = [1, 7, 8, 15, 64, 769, 2048, 2056, 4096, 5125, 14336, 16384, 16392];
    for (i, width) in widths.into_iter().enumerate() {
        let rows = random.range(1, 3);
        let case = Case::random(&mut random, TYPES[i % 2], rows, width);
        rigs.iter().for_each(|rig| case.check_e4m3(rig, bounds[i / 2 % 3]));
    }
    for rows in [1, 2, 17, 63, 64, 300] {
        let (dtype, eights) = (random.pick(&TYPES), random.pick(&[1, 8]));
        let width = random.range(1, 150 / eights) * eights;
        Case::random(&mut random, dtype, rows, width).check_e4m3(random.one_of(&rigs), random.pick(&bounds));
    }
    // Whole vectors of gate and up, and rows of out that begin anywhere.
    let mut case = Case::random(&mut random, Dtype::Bf16, 3, 64);
    while !case.stride.is_multiple_of(8) {
        case = Case::random(&mut random, Dtype::Bf16, 3, 64);
    }
    Case { positions: None, out_stride: 69, ..case }.check_e4m3(&rigs[0], None);
    // And the other way round.
    let mut case = Case::random(&mut random, Dtype::Bf16, 3, 64);
    while case.stride.is_multiple_of(8) {
        case = Case::random(&mut random, Dtype::Bf16, 3, 64);
    }
    Case { positions: None, out_stride: 80, ..case }.check_e4m3(&rigs[0], None);
    // Rows of zeros, and with a NaN, whose scale is NaN.
    for width in [64, 65] {
        let mut case = Case { positions: None, ..Case::random(&mut random, Dtype::Bf16, 3, width) };
        case.x[..width].fill(0.0);
        case.x[case.stride + width - 1] = f64::NAN;
        case.check_e4m3(&rigs[0], Some(1200.0));
        let scales = case.run_e4m3(&rigs[0], Some(1200.0)).scales;
        assert_eq!(f64::from_bits(scales[0]), f64::from(1f32 / (448.0 * 512.0)));
        assert!(f64::from_bits(scales[1]).is_nan() && f64::from_bits(scales[2]) > 1e-6);
    }
}

/// Far from zero silu is 0, the gate, or a product that must not underflow on its way.
#[test]
fn extremes() {
    let rig = rig();
    for (dtype, gates, ups) in [
        (
            Dtype::Bf16,
            vec![-300.0, -170.0, -120.0, -100.0, -88.0, -80.0, -0.0, 0.0, 1e-30, 90.0, 1e20, 3e38],
            vec![1.0, -1e30, 1e-30, 3e38],
        ),
        (
            Dtype::F16,
            vec![-65504.0, -20.0, -17.0, -12.0, -0.0, 6e-8, 20.0, 60000.0],
            vec![1.0, -1.0, 300.0, 1e-5],
        ),
    ] {
        for up in ups {
            let (width, most) = (gates.len(), if dtype == Dtype::F16 { 65504.0 } else { 3.38e38 });
            let gates: Vec<f64> = gates.iter().map(|g| super::harness::round(*g, dtype)).collect();
            let up = super::harness::round(up, dtype);
            let offset = width.next_multiple_of(8);
            let mut x = gates.clone();
            x.resize(offset, f64::NAN);
            x.extend(vec![up; width]);
            let case = Case {
                dtype,
                rows: 1,
                width,
                stride: x.len(),
                up: offset,
                out_stride: width,
                x,
                positions: None,
            };
            for (gate, got) in gates.iter().zip(case.run(&rig).out) {
                let want = gate / (1.0 + (-gate).exp()) * up;
                if want.abs() > most {
                    assert!(got.is_infinite() || got.abs() >= most, "{gate} {up}: {got}");
                } else {
                    assert_within_ulps(&format!("{dtype:?} {gate} {up}"), &[got], &[want], 1.0, dtype);
                }
            }
        }
    }
}

/// A row has the same bits alone, in company, in any place, and on any alignment.
#[test]
fn a_row_depends_on_itself_alone() {
    let mut random = Random::new("swiglu exact");
    let rig = rig();
    let case = Case { positions: None, ..Case::random(&mut random, Dtype::Bf16, 9, 1000) };
    let whole = case.run(&rig).out;
    for row in [0, 4, 8] {
        for shift in [0, 1] {
            // One element further on, no row is aligned: the scalar path.
            let mut x = case.x[row * case.stride..][..case.up + case.width].to_vec();
            x.extend(vec![f64::NAN; shift]);
            let alone = Case {
                rows: 2 * shift + 1,
                stride: x.len(),
                x: x.repeat(2 * shift + 1),
                positions: None,
                ..case
            };
            let at = shift * alone.out_stride;
            let out = alone.run(&rig).out;
            assert_eq!(&out[at..][..case.width], &whole[row * case.out_stride..][..case.width]);
        }
    }
}

#[test]
fn the_same_launch_gives_the_same_bits() {
    let case = Case::random(&mut Random::new("swiglu repeats"), Dtype::F16, 3, 2100);
    assert_the_same_each_time(&rigs(), |rig| bits(&case.run(rig).out));
    assert_the_same_each_time(&rigs(), |rig| {
        let run = case.run_e4m3(rig, Some(1200.0));
        (run.q, run.scales)
    });
}

#[test]
fn every_byte_moves_once() {
    let rig = rig();
    let x = Random::new("swiglu bytes").normals(4 * 8192, 1.0, Dtype::Bf16);
    let case = Case {
        dtype: Dtype::Bf16,
        rows: 4,
        width: 4096,
        stride: 8192,
        up: 4096,
        out_stride: 4096,
        x,
        positions: None,
    };
    let Some(counters) = case.run(&rig).counters else { return };
    assert_eq!(counters.global_load.bytes, 4 * 8192 * 2);
    assert_eq!(counters.global_store.bytes, 4 * 4096 * 2);
    assert_eq!(counters.global_load.sectors * 32, counters.global_load.bytes, "coalesced");
    assert_eq!(counters.global_store.sectors * 32, counters.global_store.bytes, "coalesced");

    let counters = case.run_e4m3(&rig, Some(1200.0)).counters.expect("counters");
    assert_eq!(counters.global_load.bytes, 4 * 8192 * 2);
    assert_eq!(counters.global_store.bytes, 4 * (4096 + 4));
    assert_eq!(counters.global_load.sectors * 32, counters.global_load.bytes, "coalesced");
    assert_eq!(counters.global_store.sectors, 4 * (4096 / 32 + 1), "coalesced");
    assert_eq!(counters.shared_load.wavefronts, counters.shared_load.ideal, "no bank conflicts");
}

/// Row 1 begins beyond 2^31 elements; row 0, which is dead, would lie in memory that there is not.
#[test]
fn rows_beyond_31_bits() {
    let rig = rig();
    let (dtype, width, stride) = (Dtype::F16, 40, (1 << 31) + 8);
    let gate = Random::new("swiglu far").normals(width, 1.0, dtype);
    let x = rig.upload(&encode(&gate, dtype));
    let mut out = rig.poisoned(width, dtype);
    let positions = rig.upload(&[-1, 0]);
    let (before, bytes) = (stride as u64 * 2, (stride + width) * 2);
    // SAFETY: the kernel touches row 1 alone, which is all of the buffer.
    let (x, far) = unsafe {
        (
            View::from_raw(x.view().address() - before, bytes),
            ViewMut::from_raw(out.view_mut().address() - before, bytes),
        )
    };
    let rows = Rows { view: x, stride };
    let args = SwigluArgs {
        dtype,
        rows: 2,
        width,
        gate: rows,
        up: rows,
        out: RowsMut { view: far, stride },
        positions: Some(positions.view()),
    };
    rig.reports(|| rig.kernels.swiglu.launch(&rig.stream, &args));
    let want: Vec<f64> = gate.iter().map(|g| g / (1.0 + (-g).exp()) * g).collect();
    assert_within_ulps("beyond 2^31", &rig.download(&out, dtype), &want, 1.0, dtype);
    drop(out);
}

#[test]
fn what_does_not_fit_is_refused() {
    let rig = rig();
    let x = rig.poisoned(64, Dtype::Bf16);
    let mut out = rig.poisoned(64, Dtype::Bf16);
    let mut refused = |change: &dyn Fn(&mut SwigluArgs), wanted: &str| {
        let rows = Rows { view: x.view(), stride: 32 };
        let mut args = SwigluArgs {
            dtype: Dtype::Bf16,
            rows: 2,
            width: 32,
            gate: rows,
            up: rows,
            out: RowsMut { view: out.view_mut(), stride: 32 },
            positions: None,
        };
        change(&mut args);
        let error = rig.kernels.swiglu.launch(&rig.stream, &args).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    };
    refused(&|a| a.dtype = Dtype::F32, "dtype: f32");
    refused(&|a| a.width = 0, "width: 0");
    refused(&|a| a.width = (1 << 26) + 1, "width: 67108865");
    refused(&|a| a.width = 33, "gate: rows 32 elements apart overlap");
    refused(&|a| a.rows = 3, "gate: 128 bytes do not hold 96 elements");
    refused(&|a| a.rows = usize::MAX, "rows: ");
    refused(&|a| a.up.stride = 31, "up: rows 31 elements apart overlap");
    refused(&|a| a.up.view = a.up.view.slice(0..126), "up: 126 bytes do not hold 64 elements");
    refused(&|a| a.gate.view = a.gate.view.slice(2..128), "gate: address");
    refused(&|a| a.out.stride = 33, "out: 128 bytes do not hold 65 elements");
    refused(&|a| a.positions = Some(a.gate.view.slice(0..4)), "positions: 4 bytes do not hold 2 elements");

    let (mut q, mut scales) = (rig.poisoned(32, Dtype::Bf16), rig.poisoned(2, Dtype::F32));
    let mut refused = |change: &dyn Fn(&mut SwigluArgs<E4m3Rows>), wanted: &str| {
        let rows = Rows { view: x.view(), stride: 32 };
        let mut args = SwigluArgs {
            dtype: Dtype::Bf16,
            rows: 2,
            width: 32,
            gate: rows,
            up: rows,
            out: E4m3Rows {
                q: RowsMut { view: q.view_mut(), stride: 32 },
                scales: scales.view_mut(),
                bound: None,
            },
            positions: None,
        };
        change(&mut args);
        let error = rig.kernels.swiglu.launch_e4m3(&rig.stream, &args).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    };
    refused(&|a| a.dtype = Dtype::F32, "dtype: f32");
    refused(&|a| a.width = 33, "gate: rows 32 elements apart overlap");
    refused(&|a| a.out.q.stride = 31, "out: rows 31 elements apart overlap");
    refused(&|a| a.out.q.stride = 33, "out: 64 bytes do not hold 65 elements");
    refused(
        &|a| (a.rows, a.width, a.gate.stride, a.up.stride, a.out.q.stride) = (3, 8, 8, 8, 8),
        "scales: 8 bytes do not hold 3 elements",
    );
    refused(&|a| a.out.bound = Some(0.0), "bound: 0; supported are numbers over 0");
}
