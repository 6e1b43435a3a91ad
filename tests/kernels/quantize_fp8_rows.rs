//! Rows to e4m3 against the definition, bit for bit; and the numbers of e4m3 for other tests.

use warploom::kernels::{Dtype, QuantizeFp8RowsArgs, Rows, RowsMut};

use super::harness::{Random, Rig, encode, rig, rigs, round};

const TYPES: [Dtype; 2] = [Dtype::Bf16, Dtype::F16];

/// The number of a code.
pub fn from_e4m3(code: u8) -> f64 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let size = match exponent {
        15 if code & 7 == 7 => f64::NAN,
        0 => fraction * 2f64.powi(-9),
        _ => (8.0 + fraction) * 2f64.powi(exponent - 10),
    };
    if code & 0x80 == 0 { size } else { -size }
}

/// The code of the nearest number, the even one of two; 448 for what is larger.
pub fn to_e4m3(x: f64) -> u8 {
    let size = x.abs().min(448.0);
    // The last code that is not larger.
    let (mut low, mut high) = (0u8, 0x7f);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if from_e4m3(middle) <= size { low = middle } else { high = middle }
    }
    let above = if low < 0x7e { from_e4m3(low + 1) - size } else { f64::INFINITY };
    let below = size - from_e4m3(low);
    let code = if above < below || (above == below && low % 2 == 1) { low + 1 } else { low };
    if x.is_sign_negative() { code | 0x80 } else { code }
}

/// Scale and codes of a row, by the definition.
pub fn quantized(row: &[f64], bound: f32) -> (f32, Vec<u8>) {
    let largest = row.iter().map(|x| x.abs() as f32).fold(0.0, f32::max);
    let scale = (largest.min(bound) / 448.0).max(1.0 / (448.0 * 512.0));
    (scale, row.iter().map(|x| to_e4m3(f64::from(*x as f32 / scale))).collect())
}

struct Case {
    dtype: Dtype,
    rows: usize,
    width: usize,
    stride: usize,
    q_stride: usize,
    x: Vec<f64>,
    bound: Option<f32>,
    positions: Option<Vec<i32>>,
}

struct Run {
    q: Vec<u8>,
    scales: Vec<f32>,
    counters: Option<ptxsim::Counters>,
}

impl Case {
    fn random(random: &mut Random, dtype: Dtype, rows: usize, width: usize) -> Case {
        let stride = width + random.pick(&[0, 0, 1, 8]);
        let mut x = vec![f64::NAN; rows * stride + 8];
        for row in 0..rows {
            let scale = random.pick(&[1e-7, 1e-4, 0.02, 1.0, 30.0, 800.0, 10_000.0]);
            x[row * stride..][..width].copy_from_slice(&random.normals(width, scale, dtype));
        }
        let positions = random.pick(&[false, true]).then(|| {
            (0..rows)
                .map(|_| if random.uniform() < 0.2 { -1 - random.range(0, 9) as i32 } else { 7 })
                .collect()
        });
        let q_stride = width + random.pick(&[0, 0, 3, 8]);
        let bound = random.pick(&[None, Some(1200.0), Some(1200.0), Some(0.5)]);
        Case { dtype, rows, width, stride, q_stride, x, bound, positions }
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.x[row * self.stride..][..self.width]
    }

    fn run(&self, rig: &Rig) -> Run {
        let x = rig.upload(&encode(&self.x, self.dtype));
        let positions = self.positions.as_ref().map(|p| rig.upload(p));
        let mut q = rig.upload(&vec![0xffu8; self.rows * self.q_stride + 8]);
        let mut scales = rig.poisoned(self.rows, Dtype::F32);
        let args = QuantizeFp8RowsArgs {
            dtype: self.dtype,
            rows: self.rows,
            width: self.width,
            bound: self.bound,
            x: Rows { view: x.view(), stride: self.stride },
            q: RowsMut { view: q.view_mut(), stride: self.q_stride },
            scales: scales.view_mut(),
            positions: positions.as_ref().map(|p| p.view()),
        };
        let mut reports = rig.reports(|| rig.kernels.quantize_fp8_rows.launch(&rig.stream, args));
        Run {
            q: rig.bytes(&q),
            scales: rig.download(&scales, Dtype::F32).iter().map(|x| *x as f32).collect(),
            counters: reports.pop().map(|r| r.counters),
        }
    }

    fn check(&self, rig: &Rig) {
        let run = self.run(rig);
        for row in 0..self.rows {
            let what = format!("{} {:?} [{}, {}] row {row}", rig.name, self.dtype, self.rows, self.width);
            let q = &run.q[row * self.q_stride..][..self.q_stride];
            if self.positions.as_ref().is_some_and(|p| p[row] < 0) {
                assert!(q.iter().all(|q| *q == 0xff) && run.scales[row].is_nan(), "{what}: it is dead");
                continue;
            }
            let (scale, want) = quantized(self.row(row), self.bound.unwrap_or(f32::INFINITY));
            assert_eq!(run.scales[row], scale, "{what}: scale");
            for (i, (q, want)) in q.iter().zip(&want).enumerate() {
                let x = self.row(row)[i];
                assert_eq!(q, want, "{what}: {x} / {scale} at {i}");
            }
            assert!(q[self.width..].iter().all(|q| *q == 0xff), "{what}: wrote past its end");
        }
        assert!(run.q[self.rows * self.q_stride..].iter().all(|q| *q == 0xff), "wrote past the last row");
    }
}

#[test]
fn any_shape() {
    let mut random = Random::new("quantize shapes");
    let rigs = rigs();
    for width in [1, 7, 8, 769, 2048, 2056, 4096, 5125, 14336, 16384, 16392, 20480] {
        for dtype in TYPES {
            let rows = random.range(1, 3);
            let case = Case::random(&mut random, dtype, rows, width);
            rigs.iter().for_each(|rig| case.check(rig));
        }
    }
    for rows in [1, 2, 17, 64, 300] {
        let (dtype, width) = (random.pick(&TYPES), random.range(1, 150));
        Case::random(&mut random, dtype, rows, width).check(random.one_of(&rigs));
    }
}

/// Every number of f16 up to 448, over one scale and another; halves between codes, and both zeros, among them.
#[test]
fn every_quotient() {
    let rig = rig();
    let all: Vec<f64> = (0u16..=0x5f00)
        .flat_map(|bits| [bits, bits | 0x8000])
        .map(|b| half::f16::from_bits(b).to_f64())
        .collect();
    for most in [448.0, 511.75, 60_000.0, 1.0] {
        let x: Vec<f64> = all.chunks(8192).flat_map(|row| [row, &[most; 8]].concat()).collect();
        let rows = x.len().div_ceil(8200);
        let x = [x, vec![0.0; 8200]].concat()[..rows * 8200].to_vec();
        let (dtype, width, stride, q_stride) = (Dtype::F16, 8200, 8200, 8200);
        for bound in [None, Some(300.0)] {
            let x = x.clone();
            Case { dtype, rows, width, stride, q_stride, x, bound, positions: None }.check(&rig);
        }
    }
}

/// Zeros have the least scale; infinities are bounded; a NaN is seen in the scale.
#[test]
fn extremes() {
    let rig = rig();
    for dtype in TYPES {
        let mut case = Case {
            dtype,
            rows: 5,
            width: 300,
            stride: 304,
            q_stride: 304,
            x: vec![0.0; 5 * 304],
            bound: Some(1200.0),
            positions: None,
        };
        case.x[304 + 5] = round(-1e-7, dtype);
        case.x[2 * 304 + 299] = f64::NEG_INFINITY;
        case.x[2 * 304 + 298] = 1000.0;
        case.x[3 * 304 + 17] = f64::NAN;
        case.x[3 * 304 + 18] = f64::INFINITY;
        case.x[4 * 304] = round(1e-3, dtype);
        let run = case.run(&rig);
        let least = 1.0f32 / (448.0 * 512.0);
        assert_eq!(run.scales[..3], [least, least, 1200.0 / 448.0]);
        assert!(run.scales[3].is_nan());
        assert_eq!(run.q[..300], [0; 300]);
        assert_eq!(run.q[2 * 304 + 299], 0xfe);
        assert_eq!(run.q[2 * 304 + 298], to_e4m3(1000.0 * 448.0 / 1200.0));
        case.rows = 3;
        case.check(&rig);
    }
}

/// Three bytes a feature and four a row; the same bits each time.
#[test]
fn every_byte_moves_once() {
    let mut random = Random::new("quantize bytes");
    let rigs = rigs();
    let (rows, width) = (3, 4096);
    let x = random.normals(rows * width, 1.0, Dtype::Bf16);
    let (stride, q_stride) = (width, width);
    let case =
        Case { dtype: Dtype::Bf16, rows, width, stride, q_stride, x, bound: Some(1200.0), positions: None };
    let first = case.run(&rigs[0]);
    for run in (0..100).map(|i| case.run(&rigs[i % rigs.len()])) {
        assert_eq!((&run.q, &run.scales), (&first.q, &first.scales));
    }
    let Some(counters) = first.counters else { return };
    let (load, store) = (counters.global_load, counters.global_store);
    assert_eq!(load.bytes as usize, 2 * rows * width);
    assert_eq!(store.bytes as usize, rows * width + 4 * rows);
    assert_eq!(32 * load.sectors, load.bytes);
    assert_eq!(store.sectors as usize, rows * width / 32 + rows);
    assert_eq!(counters.shared_load.wavefronts, counters.shared_load.ideal);
}

#[test]
fn what_does_not_fit_is_refused() {
    let rig = rig();
    let x = rig.poisoned(4 * 64, Dtype::Bf16);
    let (mut q, mut scales) = (rig.poisoned(64, Dtype::F32), rig.poisoned(4, Dtype::F32));
    let mut refused = |change: &dyn Fn(&mut QuantizeFp8RowsArgs), wanted: &str| {
        let mut args = QuantizeFp8RowsArgs {
            dtype: Dtype::Bf16,
            rows: 4,
            width: 64,
            bound: None,
            x: Rows { view: x.view(), stride: 64 },
            q: RowsMut { view: q.view_mut(), stride: 64 },
            scales: scales.view_mut(),
            positions: None,
        };
        change(&mut args);
        let error = rig.kernels.quantize_fp8_rows.launch(&rig.stream, args).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    };
    refused(&|a| a.dtype = Dtype::F32, "dtype: f32; supported are bf16 and f16");
    refused(&|a| a.rows = 5, "scales: 16 bytes do not hold 5 elements");
    refused(&|a| a.width = 0, "width: 0");
    refused(&|a| a.width = 65, "x: rows 64 elements apart overlap; 65 at least");
    refused(&|a| a.q.stride = 63, "q: rows 63 elements apart overlap");
    refused(&|a| a.q.stride = 65, "q: 256 bytes do not hold 259 elements");
    refused(&|a| a.x.stride = 65, "x: 512 bytes do not hold 259 elements");
    refused(&|a| a.x.view = a.x.view.slice(2..512), "x: address");
    refused(&|a| a.bound = Some(0.0), "bound: 0; supported are numbers over 0");
    refused(&|a| a.bound = Some(f32::NAN), "bound: NaN");
    refused(&|a| a.positions = Some(a.x.view.slice(0..12)), "positions: 12 bytes");
}
