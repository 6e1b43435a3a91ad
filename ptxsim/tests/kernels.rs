//! The CUDA kernels of tests/cuda by value: each against a reference in plain Rust, under every delivery policy and several
//! schedules, which must agree in every byte and every counter.

use half::{bf16, f16};
use ptxsim::{
    Argument, Counters, Delivery, Device, Gpu, Launch, Module, Schedule, numerics::matrix::Precision,
};

/// What a launch is given.
enum Given {
    Buffer(Vec<u8>),
    Value(Argument),
}

fn value(v: impl Into<Argument>) -> Given {
    Given::Value(v.into())
}

/// With the checks and, at last, without them.
const POLICIES: [(Delivery, Schedule, bool); 6] = [
    (Delivery::Eager, Schedule::InOrder, true),
    (Delivery::Lazy, Schedule::Reversed, true),
    (Delivery::Lazy, Schedule::InOrder, true),
    (Delivery::Random(1), Schedule::Random(2), true),
    (Delivery::Random(3), Schedule::Random(4), true),
    (Delivery::Eager, Schedule::InOrder, false),
];

/// Runs a kernel under all policies and gives its buffers and counters.
fn run(
    module: &str,
    entry: &str,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    given: &[Given],
) -> (Vec<Vec<u8>>, Counters) {
    let text =
        std::fs::read_to_string(format!("{}/tests/ptx/{module}.ptx", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let mut first: Option<(Vec<Vec<u8>>, Counters)> = None;
    for (delivery, schedule, checked) in POLICIES {
        let mut device = Device::with_memory(Gpu::H100, 1 << 28);
        let module = device.load(Module::parse(&text).unwrap()).unwrap();
        let (mut arguments, mut buffers) = (vec![], vec![]);
        for given in given {
            match given {
                Given::Value(v) => arguments.push(v.clone()),
                Given::Buffer(bytes) => {
                    let at = device.allocate(bytes.len() as u64).unwrap();
                    device.write(at, bytes).unwrap();
                    arguments.push(at.into());
                    buffers.push((at, bytes.len()));
                }
            }
        }
        let launch = Launch {
            grid,
            block,
            shared_bytes,
            arguments,
            delivery,
            schedule,
            checked,
            count_sectors: true,
            ..Default::default()
        };
        let report = device.launch(&module, entry, &launch).unwrap_or_else(|e| panic!("{entry}: {e}"));
        assert!(report.findings.is_empty(), "{entry} {delivery:?} {schedule:?}: {}", report.findings[0]);
        let out: Vec<Vec<u8>> = buffers.iter().map(|(at, n)| device.read(*at, *n).unwrap()).collect();
        match &first {
            None => first = Some((out, report.counters)),
            Some((expected, counters)) => {
                assert!(out == *expected, "{entry}: other bytes under {delivery:?} {schedule:?}");
                // How often a waiting CTA looks is left to the schedule.
                if !matches!(entry, "pipeline" | "grid_barrier") {
                    assert_eq!(report.counters, *counters, "{entry} {delivery:?} {schedule:?}");
                }
            }
        }
    }
    first.unwrap()
}

/// Numbers between −1 and 1.
fn noise(count: usize, seed: u64) -> Vec<f64> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

fn bf16s(values: &[f64]) -> Given {
    Given::Buffer(values.iter().flat_map(|v| bf16::from_f64(*v).to_le_bytes()).collect())
}

fn f16s(values: &[f64]) -> Given {
    Given::Buffer(values.iter().flat_map(|v| f16::from_f64(*v).to_le_bytes()).collect())
}

fn f32s(values: &[f64]) -> Given {
    Given::Buffer(values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect())
}

fn u32s(values: &[u32]) -> Given {
    Given::Buffer(values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn zeros(bytes: usize) -> Given {
    Given::Buffer(vec![0; bytes])
}

fn read<const N: usize, T>(bytes: &[u8], of: fn([u8; N]) -> T) -> Vec<T> {
    bytes.chunks_exact(N).map(|c| of(c.try_into().unwrap())).collect()
}

fn read_bf16(bytes: &[u8]) -> Vec<f64> {
    read(bytes, |b| bf16::from_le_bytes(b).to_f64())
}

fn read_f32(bytes: &[u8]) -> Vec<f64> {
    read(bytes, |b| f64::from(f32::from_le_bytes(b)))
}

fn read_u32(bytes: &[u8]) -> Vec<u32> {
    read(bytes, u32::from_le_bytes)
}

fn rounded(values: &[f64]) -> Vec<f64> {
    values.iter().map(|v| bf16::from_f64(*v).to_f64()).collect()
}

#[track_caller]
fn near(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= tolerance * e.abs().max(1.0), "element {i}: {g}, not {e}");
    }
}

#[test]
fn flash_attention() {
    const DIM: usize = 64;
    for (length, heads, causal) in [
        (128usize, 2usize, false),
        (128, 1, true),
        (65, 1, false),
        (1, 2, true),
        (130, 1, true),
        (193, 1, false),
    ] {
        let q: Vec<f64> = noise(heads * length * DIM, 1).iter().map(|v| 3.0 * v).collect();
        let (k, v) = (noise(heads * length * DIM, 2), noise(heads * length * DIM, 3));
        let scale = 0.125;
        let given = [
            bf16s(&q),
            bf16s(&k),
            bf16s(&v),
            zeros(2 * q.len()),
            zeros(4 * heads * length),
            value(length as u32),
            value((scale * std::f64::consts::LOG2_E) as f32),
            value(u32::from(causal)),
        ];
        let (out, counters) = run(
            "flash",
            "flash_forward",
            [length.div_ceil(64) as u32, heads as u32, 1],
            [128, 1, 1],
            40960,
            &given,
        );
        let (q, k, v) = (rounded(&q), rounded(&k), rounded(&v));
        let (mut expected, mut lse) = (vec![], vec![]);
        for head in 0..heads {
            let row = |x: &[f64], i: usize| x[(head * length + i) * DIM..][..DIM].to_vec();
            for i in 0..length {
                let keys = if causal { i + 1 } else { length };
                let query = row(&q, i);
                let scores: Vec<f64> = (0..keys)
                    .map(|j| scale * query.iter().zip(row(&k, j)).map(|(a, b)| a * b).sum::<f64>())
                    .collect();
                let sum: f64 = scores.iter().map(|s| s.exp()).sum();
                lse.push(sum.ln());
                let values: Vec<Vec<f64>> = (0..keys).map(|j| row(&v, j)).collect();
                expected.extend(
                    (0..DIM)
                        .map(|d| scores.iter().zip(&values).map(|(s, v)| s.exp() * v[d]).sum::<f64>() / sum),
                );
            }
        }
        // P and O are rounded to bf16.
        near(&read_bf16(&out[3]), &expected, 0.012);
        near(&read_f32(&out[4]), &lse, 1e-3);
        assert_eq!(counters.mma_flop, counters.mma * 2 * 16 * 8 * 16);
    }
}

#[test]
fn matrix_products() {
    for (m, n, k, half) in
        [(80usize, 72usize, 256usize, false), (64, 64, 64, true), (1, 2, 128, false), (130, 66, 192, true)]
    {
        let (a, b) = (noise(m * k, 4), noise(n * k, 5));
        let encode = if half { f16s } else { bf16s };
        let round = |x: &[f64]| {
            if half { x.iter().map(|v| f16::from_f64(*v).to_f64()).collect() } else { rounded(x) }
        };
        let given =
            [encode(&a), encode(&b), zeros(2 * m * n), value(m as u32), value(n as u32), value(k as u32)];
        let grid = [n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1];
        let (out, counters) =
            run("gemm", if half { "gemm_f16" } else { "gemm_bf16" }, grid, [128, 1, 1], 49152, &given);
        let (a, b) = (round(&a), round(&b));
        let expected: Vec<f64> =
            (0..m * n).map(|i| (0..k).map(|j| a[i / n * k + j] * b[i % n * k + j]).sum()).collect();
        let got = if half { read(&out[2], |b| f16::from_le_bytes(b).to_f64()) } else { read_bf16(&out[2]) };
        near(&got, &expected, if half { 1e-3 } else { 8e-3 });
        // Whole tiles are multiplied, rows past the end being zero.
        assert_eq!(counters.mma_flop, u64::from(grid[0] * grid[1]) * 2 * 64 * 64 * k as u64);
        assert_eq!(counters.mma, counters.mma_flop / (2 * 16 * 8 * 16));
        assert_eq!(counters.mma_flop_by_precision, [(Precision::Half, counters.mma_flop)].into());
        // Tiles share rows and columns: read more than once, they count once.
        let sectors = [m * k, n * k, m * n].map(|elements| (2 * elements).div_ceil(32) as u64);
        assert_eq!(counters.distinct_sectors, Some(sectors.iter().sum()));
        assert!(
            counters.mma_flop_useful <= counters.mma_flop
                && counters.mma_flop_useful >= 2 * (m * n * k) as u64
        );
    }
}

#[test]
fn rms_norm() {
    for width in [8usize, 2048, 1000] {
        let rows = 3;
        let (x, residual, weight) = (noise(rows * width, 6), noise(rows * width, 7), noise(width, 8));
        let given = [
            bf16s(&x),
            bf16s(&residual),
            bf16s(&weight),
            zeros(2 * rows * width),
            value(width as u32),
            value(1e-5f32),
        ];
        let (out, _) = run("norm", "rms_norm", [rows as u32, 1, 1], [128, 1, 1], 0, &given);
        let h: Vec<f64> = rounded(&x)
            .iter()
            .zip(rounded(&residual))
            .map(|(a, b)| bf16::from_f32((a + b) as f32).to_f64())
            .collect();
        assert_eq!(read_bf16(&out[1]), h);
        let weight = rounded(&weight);
        let expected: Vec<f64> = (0..rows * width)
            .map(|i| {
                let row = &h[i / width * width..][..width];
                let mean = row.iter().map(|v| v * v).sum::<f64>() / width as f64;
                h[i] / (mean + 1e-5).sqrt() * weight[i % width]
            })
            .collect();
        near(&read_bf16(&out[3]), &expected, 0.01);
    }
}

#[test]
fn softmax() {
    for (rows, width) in [(5usize, 100usize), (1, 1), (4, 31), (9, 257)] {
        let x: Vec<f64> = noise(rows * width, 9).iter().map(|v| f64::from((20.0 * v) as f32)).collect();
        let given = [f32s(&x), zeros(4 * x.len()), value(rows as u32), value(width as u32)];
        let (out, _) = run("softmax", "softmax", [rows.div_ceil(4) as u32, 1, 1], [128, 1, 1], 0, &given);
        let expected: Vec<f64> = (0..x.len())
            .map(|i| x[i].exp() / x[i / width * width..][..width].iter().map(|v| v.exp()).sum::<f64>())
            .collect();
        near(&read_f32(&out[1]), &expected, 1e-5);
    }
}

#[test]
fn rotary_embedding() {
    let (rows, heads, half) = (3usize, 2usize, 32usize);
    let x = noise(rows * heads * 2 * half, 10);
    let frequency: Vec<f64> =
        (0..half).map(|i| f64::from(10_000f32.powf(-(i as f32) / half as f32))).collect();
    // The last position makes sincosf reduce a large angle through its table.
    for (entry, positions, tolerance) in
        [("rope", [0u32, 5, 1_000_003], 2e-3), ("rope_bf16", [0, 1, 3], 1.2e-2)]
    {
        let encode = if entry == "rope" { f16s } else { bf16s };
        let round = |v: f64| {
            if entry == "rope" { f16::from_f64(v).to_f64() } else { bf16::from_f64(v).to_f64() }
        };
        let given = [encode(&x), u32s(&positions), f32s(&frequency)];
        let (out, _) = run("rope", entry, [rows as u32, heads as u32, 1], [half as u32, 1, 1], 0, &given);
        let got = if entry == "rope" {
            read(&out[0], |b| f16::from_le_bytes(b).to_f64())
        } else {
            read_bf16(&out[0])
        };
        let mut expected = vec![0.0; x.len()];
        for head in 0..rows * heads {
            for i in 0..half {
                let angle = f64::from(positions[head / heads] as f32 * frequency[i] as f32);
                let (a, b) = (round(x[head * 2 * half + i]), round(x[head * 2 * half + half + i]));
                expected[head * 2 * half + i] = a * angle.cos() - b * angle.sin();
                expected[head * 2 * half + half + i] = b * angle.cos() + a * angle.sin();
            }
        }
        near(&got, &expected, tolerance);
    }
}

/// Philox4x32-10 with 64-bit products.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (p, q) = (0xd251_1f53u64 * u64::from(counter[0]), 0xcd9e_8d57u64 * u64::from(counter[2]));
        counter = [
            (q >> 32) as u32 ^ counter[1] ^ key[0],
            q as u32,
            (p >> 32) as u32 ^ counter[3] ^ key[1],
            p as u32,
        ];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

#[test]
fn random_numbers() {
    let (out, _) = run("sample", "philox", [1; 3], [256, 1, 1], 0, &[zeros(16), value(1u32), value(0u64)]);
    // The vector that its authors published for counter 0 and key 0.
    assert_eq!(read_u32(&out[0]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    let key = 0x0123_4567_89ab_cdefu64;
    let (out, _) =
        run("sample", "philox", [2, 1, 1], [256, 1, 1], 0, &[zeros(4800), value(300u32), value(key)]);
    let expected: Vec<u32> =
        (0..300).flat_map(|i| philox([i, 0, 0, 0], [key as u32, (key >> 32) as u32])).collect();
    assert_eq!(read_u32(&out[0]), expected);
}

#[test]
fn token_choice() {
    let vocabulary = 1000usize;
    let mut logits: Vec<f64> =
        noise(2 * vocabulary, 11).iter().map(|v| f64::from((4.0 * v) as f32)).collect();
    // A tie, and a NaN that must not win.
    (logits[17], logits[400], logits[1100]) = (9.0, 9.0, f64::NAN);
    let (out, _) = run(
        "sample",
        "argmax",
        [2, 1, 1],
        [256, 1, 1],
        0,
        &[f32s(&logits), zeros(8), value(vocabulary as u32)],
    );
    let largest = (0..vocabulary)
        .filter(|i| !logits[vocabulary + i].is_nan())
        .max_by(|a, b| logits[vocabulary + a].total_cmp(&logits[vocabulary + b]));
    assert_eq!(read_u32(&out[1]), [17, largest.unwrap() as u32]);

    logits[1100] = 0.0;
    for step in 0..6u32 {
        let given = [
            f32s(&logits),
            zeros(8),
            value(vocabulary as u32),
            value(1.25f32),
            value(0.9f32),
            value(42u64),
            value(step),
        ];
        let (out, _) = run("sample", "sample", [2, 1, 1], [256, 1, 1], 4 * vocabulary as u32, &given);
        for (row, id) in read_u32(&out[1]).iter().enumerate() {
            let x = &logits[row * vocabulary..][..vocabulary];
            let most = x.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = x.iter().map(|v| ((v - most) * 1.25).exp()).collect();
            let total: f64 = weights.iter().sum();
            // The nucleus: the heaviest until their mass reaches top-p.
            let mut order: Vec<f64> = weights.clone();
            order.sort_by(|a, b| b.total_cmp(a));
            let mut mass = 0.0;
            let cut = *order
                .iter()
                .find(|w| {
                    mass += **w;
                    mass >= 0.9 * total
                })
                .unwrap();
            let target = f64::from(philox([row as u32, step, 0, 0], [42, 0])[0] >> 8) / 16_777_216.0 * mass;
            let mut start = 0.0;
            let expected = (0..vocabulary)
                .find(|i| {
                    if weights[*i] >= cut {
                        start += weights[*i];
                    }
                    start > target
                })
                .unwrap();
            // f32 sums may move the target across a border by one kept id.
            let kept = |range: std::ops::Range<usize>| range.filter(|i| weights[*i] >= cut).count();
            let (low, high) = (expected.min(*id as usize), expected.max(*id as usize));
            assert!(
                weights[*id as usize] >= cut * (1.0 - 1e-5) && kept(low..high) <= 1,
                "row {row} step {step}: {id}, not {expected}"
            );
        }
    }
}

#[test]
fn split_sum() {
    let (rows, splits, width) = (2usize, 4u32, 1000usize);
    let x = noise(rows * width, 12);
    let given =
        [f32s(&x), zeros(4 * rows * splits as usize), zeros(4 * rows), zeros(4 * rows), value(width as u32)];
    let (out, counters) = run("combine", "split_sum", [splits, rows as u32, 1], [128, 1, 1], 0, &given);
    let expected: Vec<f64> = x.chunks(width).map(|row| row.iter().sum()).collect();
    near(&read_f32(&out[3]), &expected, 1e-5);
    // The tickets are ready for the next launch.
    assert_eq!(read_u32(&out[2]), [0, 0]);
    assert_eq!(counters.global_atomic.requests, 8);
}

#[test]
fn adamw_step() {
    let n = 1000usize;
    let (w, g) = (noise(n, 13), noise(n, 14));
    let (m, v): (Vec<f64>, Vec<f64>) = (noise(n, 15), noise(n, 16).iter().map(|x| x * x).collect());
    for step in [1u32, 7] {
        let given = [
            bf16s(&w),
            f32s(&g),
            f32s(&m),
            f32s(&v),
            zeros(256),
            zeros(8),
            value(n as u32),
            value(1e-3f32),
            value(0.9f32),
            value(0.999f32),
            value(1e-8f32),
            value(0.1f32),
            value(step),
        ];
        let (out, _) = run("adamw", "adamw", [2, 1, 1], [256, 1, 1], 0, &given);
        let (beta1, beta2, rate) = (f64::from(0.9f32), f64::from(0.999f32), f64::from(1e-3f32));
        let (correct1, correct2) = (1.0 - beta1.powi(step as i32), 1.0 - beta2.powi(step as i32));
        let (mut first, mut second, mut weight, mut loss) = (vec![], vec![], vec![], 0.0);
        for i in 0..n {
            let (g, w) = (f64::from(g[i] as f32), bf16::from_f64(w[i]).to_f64());
            loss += g * g;
            first.push(beta1 * f64::from(m[i] as f32) + (1.0 - beta1) * g);
            second.push(beta2 * f64::from(v[i] as f32) + (1.0 - beta2) * g * g);
            weight.push(
                w - rate
                    * (first[i] / correct1 / ((second[i] / correct2).sqrt() + 1e-8) + f64::from(0.1f32) * w),
            );
        }
        near(&read_f32(&out[2]), &first, 1e-6);
        near(&read_f32(&out[3]), &second, 1e-6);
        near(&read_bf16(&out[0]), &weight, 4e-3);
        near(&read(&out[5], f64::from_le_bytes), &[loss], 1e-12);
        assert_eq!(read_u32(&out[4]).iter().sum::<u32>(), n as u32);
    }
}

#[test]
fn reductions_and_scans() {
    let n = 1000usize;
    let x: Vec<f64> = (0..n).map(|i| (i * i % 977) as f64).collect();
    let given = [Given::Buffer(x.iter().flat_map(|v| v.to_le_bytes()).collect()), zeros(8), value(n as u32)];
    let (out, _) = run("reduce", "sum_f64", [2, 1, 1], [256, 1, 1], 0, &given);
    assert_eq!(read(&out[1], f64::from_le_bytes), [x.iter().sum::<f64>()]);

    for n in [1usize, 3000, 4096] {
        let x: Vec<u32> = (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        let (out, _) =
            run("reduce", "scan", [1; 3], [1024, 1, 1], 0, &[u32s(&x), zeros(4 * n), value(n as u32)]);
        let mut sum = 0u32;
        let expected: Vec<u32> = x
            .iter()
            .map(|v| {
                sum = sum.wrapping_add(*v);
                sum
            })
            .collect();
        assert_eq!(read_u32(&out[1]), expected);
    }

    let x: Vec<u8> = noise(5000, 17).iter().map(|v| (v * v * 255.0) as u8).collect();
    let mut bins = [0u32; 256];
    x.iter().for_each(|v| bins[usize::from(*v)] += 1);
    let (out, counters) = run(
        "reduce",
        "histogram",
        [2, 1, 1],
        [256, 1, 1],
        0,
        &[Given::Buffer(x), zeros(1024), value(5000u32)],
    );
    assert_eq!(read_u32(&out[1]), bins);
    // 5000 bytes in warps of 32: 156 whole requests of one sector each and one of 8 lanes.
    assert_eq!(
        (counters.global_load.requests, counters.global_load.sectors, counters.global_load.bytes),
        (157, 157, 5000)
    );
}

#[test]
fn transposition_and_its_bank_conflicts() {
    let (rows, columns) = (96usize, 64usize);
    let x = noise(rows * columns, 18);
    for (entry, conflict) in [("transpose", 1), ("transpose_conflicts", 32)] {
        let (out, counters) = run("reduce", entry, [2, 3, 1], [32, 8, 1], 0, &[f32s(&x), zeros(4 * x.len())]);
        let expected: Vec<f64> =
            (0..x.len()).map(|i| f64::from(x[i % rows * columns + i / rows] as f32)).collect();
        assert_eq!(read_f32(&out[1]), expected);
        // Each of 192 warp accesses moves 128 bytes: four sectors, one wavefront at best.
        let accesses = (rows * columns / 32) as u64;
        for global in [counters.global_load, counters.global_store] {
            assert_eq!(
                (global.requests, global.sectors, global.bytes),
                (accesses, 4 * accesses, 128 * accesses)
            );
        }
        assert_eq!((counters.shared_store.requests, counters.shared_store.wavefronts), (accesses, accesses));
        assert_eq!(
            (counters.shared_load.requests, counters.shared_load.wavefronts, counters.shared_load.ideal),
            (accesses, conflict * accesses, accesses)
        );
        assert_eq!((counters.ctas, counters.mma, counters.flop), (6, 0, 0));
    }
}

#[test]
fn ctas_that_communicate() {
    let (out, _) =
        run("persistent", "work_queue", [3, 1, 1], [64, 1, 1], 0, &[zeros(4), zeros(2560), value(10u32)]);
    assert_eq!(read_u32(&out[1]), (0..640).collect::<Vec<u32>>());
    assert_eq!(read_u32(&out[0]), [13]);

    let given = [zeros(256), zeros(4), zeros(4), zeros(1280), value(10u32), value(2u32)];
    let (out, _) = run("persistent", "pipeline", [2, 1, 1], [32, 1, 1], 0, &given);
    assert_eq!(read_u32(&out[3]), (0..320).map(|i| i / 32 * 1000 + 31 - i % 32).collect::<Vec<u32>>());

    let (out, _) =
        run("persistent", "grid_barrier", [4, 1, 1], [64, 1, 1], 0, &[zeros(1024), zeros(1024), zeros(4)]);
    assert_eq!(read_u32(&out[1]), (0..256u32).map(|i| ((i + 128) % 256).pow(2)).collect::<Vec<u32>>());
}

fn launch_on(entry: &str, x: Given, bytes: usize) -> Vec<u8> {
    run("language", entry, [1; 3], [64, 1, 1], 0, &[x, zeros(bytes)]).0.swap_remove(1)
}

#[test]
fn language_features() {
    let x: Vec<u32> = (0..64u32).map(|i| i.wrapping_mul(2_246_822_519) ^ 0x55).collect();
    let expected: Vec<u32> = x
        .iter()
        .enumerate()
        .map(|(i, v)| {
            let mut values: Vec<u32> =
                (0..16u32).map(|j| v.wrapping_add(j.wrapping_mul(2_654_435_761)) >> 8).collect();
            values.sort();
            values[i % 16]
        })
        .collect();
    assert_eq!(read_u32(&launch_on("local_sort", u32s(&x), 256)), expected);

    let functions: [fn(u32) -> u32; 3] = [|x| x.wrapping_mul(2), |x| x.wrapping_mul(x), |x| !x];
    let expected: Vec<u32> = x.iter().enumerate().map(|(i, v)| functions[i % 3](*v)).collect();
    assert_eq!(read_u32(&launch_on("indirect_call", u32s(&x), 256)), expected);

    let f: Vec<f64> = (0..64).map(|i| f64::from(i) / 4.0 - 5.0).collect();
    let expected: Vec<f64> =
        f.iter().enumerate().map(|(i, v)| if i % 2 == 1 { 3.0 * v * v } else { v * v }).collect();
    assert_eq!(read_f32(&launch_on("virtual_call", f32s(&f), 256)), expected);

    let expected: Vec<u32> = x
        .iter()
        .enumerate()
        .map(|(i, v)| match i {
            0 => v.wrapping_add(3),
            1 => v.wrapping_mul(5),
            2 => v ^ 77,
            3 => v.count_ones(),
            4 => v.reverse_bits(),
            5 => v / 3,
            6 => v.leading_zeros(),
            7 => v.trailing_zeros() + 1,
            8 => (v & 0xff) | 7 << 8 | (v >> 8 & 0xff) << 16,
            _ => 0,
        })
        .collect();
    assert_eq!(read_u32(&launch_on("many_cases", u32s(&x), 256)), expected);
    let three: Vec<u32> = (0..64).map(|i| i % 3).collect();
    assert_eq!(
        read_u32(&launch_on("jump_table", u32s(&three), 256)),
        three.iter().map(|v| 10 * (v + 1)).collect::<Vec<u32>>()
    );

    let b: Vec<i32> = (0..64).map(|i| if i == 20 { -1 } else { (i - 30) * 12_345 + 1 }).collect();
    let expected: Vec<i64> = b
        .iter()
        .enumerate()
        .map(|(i, b)| {
            let a = 1_000_003 * (i as i32 - 31);
            let (wide, by) = (i64::from(a).wrapping_mul(4_294_967_311), i64::from(*b) * i64::from(*b) + 1);
            // The sum starts in 32 bits: int, int, then unsigned.
            let narrow = (a.wrapping_div(*b).wrapping_add(a.wrapping_rem(*b)) as u32)
                .wrapping_add(a as u32 / *b as u32)
                .wrapping_add(a as u32 % *b as u32);
            i64::from(narrow)
                .wrapping_add(wide / by)
                .wrapping_add(wide % by)
                .wrapping_add((wide as u64 / by as u64) as i64)
        })
        .collect();
    let bytes = b.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(read(&launch_on("divide", Given::Buffer(bytes), 512), i64::from_le_bytes), expected);

    let wide: Vec<u64> = (0..64u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    let expected: Vec<u64> = wide
        .iter()
        .zip(0u128..)
        .map(|(x, i)| {
            let square = (u128::from(*x) * u128::from(*x)).wrapping_add(i);
            let b = square.wrapping_mul(3).wrapping_sub(u128::from(*x));
            let high = ((u128::from(*x) * u128::from(b as u64)) >> 64) as u64;
            // The funnel shift takes the low word below the high one.
            let funnel = x << 7 >> 32;
            (b >> 64) as u64
                ^ b as u64
                ^ high
                ^ u64::from(x.count_ones())
                ^ u64::from(x.leading_zeros()) << 8
                ^ x.reverse_bits()
                ^ (funnel & 0xffff_ffff)
        })
        .collect();
    let bytes = wide.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(read(&launch_on("wide_integers", Given::Buffer(bytes), 512), u64::from_le_bytes), expected);

    // Steps of the Collatz sequence, forty-one at most, and a struct by value.
    let expected: Vec<u64> = x
        .iter()
        .map(|x| {
            let (mut n, mut steps) = (x % 100, 0u32);
            while n > 1 && steps <= 40 {
                n = if n % 2 == 1 { 3 * n + 1 } else { n / 2 };
                steps += 1;
            }
            u64::from(x % 100).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(steps))
        })
        .collect();
    assert_eq!(read(&launch_on("calls", u32s(&x), 512), u64::from_le_bytes), expected);

    let f: Vec<f64> = (0..64).map(|i| f64::from(((f64::from(i) - 32.0) * 1.7) as f32)).collect();
    let bytes = f.iter().flat_map(|v| v.to_le_bytes()).collect();
    let expected: Vec<f64> = f
        .iter()
        .map(|v| {
            v.abs().sqrt()
                + 1.0 / (v.abs() + 1.0)
                + v.mul_add(*v, 1.0)
                + (v * 0.01).exp()
                + (v.abs() + 1.0).ln()
                + v.sin()
                + v.round_ties_even()
                + v.min(0.5)
        })
        .collect();
    near(
        &read(&launch_on("mathematics_f64", Given::Buffer(bytes), 512), f64::from_le_bytes),
        &expected,
        1e-13,
    );
}

#[test]
fn lanes_of_a_warp_together() {
    let x: Vec<u32> = (0..32).map(|i| i * 7 % 32 + 40).collect();
    let (out, _) = run("warp", "aggregate", [1; 3], [32, 1, 1], 0, &[u32s(&x), zeros(4), zeros(128)]);
    let mut rank = 0;
    let expected: Vec<u32> = x
        .iter()
        .map(|v| {
            let counts = u32::from(v % 3 != 0);
            rank += counts;
            rank * counts
        })
        .collect();
    assert_eq!(read_u32(&out[2]), expected);
    assert_eq!(read_u32(&out[1]), [rank]);

    let (out, _) = run("warp", "halves", [1; 3], [32, 1, 1], 0, &[u32s(&x), zeros(768)]);
    let out = read_u32(&out[1]);
    for lane in 0..32usize {
        let half = lane / 16 * 16;
        let members = half..half + 16;
        let expected = [
            x[half + 3],
            if lane % 8 >= 2 { x[lane - 2] } else { x[lane] },
            if lane % 16 + 5 < 16 { x[lane + 5] } else { x[lane] },
            x[lane ^ 4],
            x[members.clone()].iter().sum(),
            members.fold(0, |m, l| m | (x[l] & 1) << l),
        ];
        let got: Vec<u32> = (0..6).map(|i| out[32 * i + lane]).collect();
        assert_eq!(got, expected, "lane {lane}");
    }

    let x: Vec<u32> = (0..96).map(|i| i % 5).collect();
    let odd = x.iter().filter(|v| *v % 2 == 1).count() as u32;
    let (out, counters) = run("warp", "counting_barriers", [1; 3], [96, 1, 1], 0, &[u32s(&x), zeros(1152)]);
    for results in read_u32(&out[1]).chunks(3) {
        assert_eq!((results[0], results[1] != 0, results[2] != 0), (odd, false, true));
    }
    assert_eq!(counters.barriers, 9);
}

#[test]
fn cache_hints_change_nothing() {
    let x: Vec<f64> = noise(256, 19).iter().map(|v| f64::from((v * 64.0).round() as f32 / 64.0)).collect();
    let (out, counters) = run("cache", "hints", [2, 1, 1], [32, 1, 1], 0, &[f32s(&x), zeros(1024)]);
    let expected: Vec<f64> = x.iter().map(|v| v + 1.0).collect();
    let got = read_f32(&out[1]);
    // The last store of thread 0 repeats another element.
    near(&got[4..], &expected[4..], 1e-6);
    // Two warps store 512 bytes each, and one lane 4 more.
    let store = counters.global_store;
    assert_eq!((store.requests, store.sectors, store.bytes), (3, 33, 1028));
}
