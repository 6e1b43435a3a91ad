//! Embedding: rows of the table, bit for bit.

use warploom::{
    driver::{View, ViewMut},
    kernels::{Dtype, EmbedArgs, Rows, RowsMut},
};

use super::harness::{Random, Rig, assert_the_same_each_time, bits, encode, rig, rigs};

const TYPES: [Dtype; 2] = [Dtype::Bf16, Dtype::F16];

/// One launch: shapes and what was in memory.
struct Case {
    dtype: Dtype,
    width: usize,
    vocabulary: usize,
    table_stride: usize,
    out_stride: usize,
    table: Vec<f64>,
    tokens: Vec<i32>,
    positions: Option<Vec<i32>>,
    stats: bool,
}

struct Run {
    out: Vec<f64>,
    stats: Vec<f64>,
    counters: Option<ptxsim::Counters>,
}

impl Case {
    fn random(random: &mut Random, dtype: Dtype, rows: usize, width: usize) -> Case {
        let vocabulary = random.range(1, 20);
        let (table_stride, out_stride) =
            (width + random.pick(&[0, 0, 3, 8]), width + random.pick(&[0, 0, 5, 8]));
        let mut table = vec![f64::NAN; vocabulary * table_stride];
        for row in table.chunks_mut(table_stride) {
            row[..width].copy_from_slice(&random.normals(width, 1.0, dtype));
        }
        let strange = [-1, i32::MIN, i32::MAX, vocabulary as i32];
        let tokens = (0..rows)
            .map(|_| match random.uniform() < 0.2 {
                true => random.pick(&strange),
                false => random.range(0, vocabulary - 1) as i32,
            })
            .collect();
        let positions = random
            .pick(&[false, true])
            .then(|| (0..rows).map(|_| if random.uniform() < 0.2 { -1 } else { 131_071 }).collect());
        let stats = random.pick(&[false, true]);
        Case { dtype, width, vocabulary, table_stride, out_stride, table, tokens, positions, stats }
    }

    fn run(&self, rig: &Rig) -> Run {
        let Case { dtype, width, .. } = *self;
        let rows = self.tokens.len();
        let table = rig.upload(&encode(&self.table, dtype));
        let tokens = rig.upload(&self.tokens);
        let positions = self.positions.as_ref().map(|p| rig.upload(p));
        let mut out = rig.poisoned(rows * self.out_stride, dtype);
        let mut stats = rig.poisoned(rows * width.div_ceil(64), Dtype::F32);
        let args = EmbedArgs {
            dtype,
            rows,
            width,
            vocabulary: self.vocabulary,
            table: Rows { view: table.view(), stride: self.table_stride },
            tokens: tokens.view(),
            positions: positions.as_ref().map(|p| p.view()),
            out: RowsMut { view: out.view_mut(), stride: self.out_stride },
            stats: self.stats.then(|| stats.view_mut()),
        };
        let mut reports = rig.reports(|| rig.kernels.embed.launch(&rig.stream, &args));
        let (out, stats) = (rig.download(&out, dtype), rig.download(&stats, Dtype::F32));
        Run { out, stats, counters: reports.pop().map(|r| r.counters) }
    }

    fn check(&self, rig: &Rig) {
        let run = self.run(rig);
        let chunks = self.width.div_ceil(64);
        for (row, &token) in self.tokens.iter().enumerate() {
            let what = format!("{} {:?} width {} row {row} token {token}", rig.name, self.dtype, self.width);
            let out = &run.out[row * self.out_stride..][..self.out_stride];
            let stats = &run.stats[row * chunks..][..chunks];
            let dead = self.positions.as_ref().is_some_and(|p| p[row] < 0);
            if dead || !(0..self.vocabulary as i32).contains(&token) {
                // Poison is NaN, too: what tells the two apart is that nothing is written past a row's end, and the
                // test of `dead_rows_are_left_alone`.
                assert!(out.iter().chain(stats).all(|x| x.is_nan()), "{what}: not NaN");
                continue;
            }
            let want = &self.table[token as usize * self.table_stride..][..self.width];
            assert_eq!(&out[..self.width], want, "{what}");
            assert!(out[self.width..].iter().all(|x| x.is_nan()), "{what}: wrote past its row");
            for (chunk, got) in want.chunks(64).zip(stats) {
                if self.stats {
                    assert_eq!(*got as f32, statistic(chunk), "{what}: statistics");
                } else {
                    assert!(got.is_nan(), "{what}: statistics that nobody asked for");
                }
            }
        }
    }
}

/// The sum of squares of one chunk in the order that all kernels keep: eight chains of eight, then pairs of chains 4,
/// 2 and 1 apart.
fn statistic(chunk: &[f64]) -> f32 {
    let mut sums = [0.0f32; 8];
    for (i, x) in chunk.iter().enumerate() {
        let x = *x as f32;
        sums[i / 8] = x.mul_add(x, sums[i / 8]);
    }
    for distance in [4, 2, 1] {
        for i in 0..distance {
            sums[i] += sums[i + distance];
        }
    }
    sums[0]
}

#[test]
fn any_shape() {
    let mut random = Random::new("embed shapes");
    let rigs = rigs();
    for width in [1, 7, 8, 63, 64, 65, 769, 2048, 2056, 4096, 5125] {
        for dtype in TYPES {
            let rows = random.range(1, 4);
            let case = Case::random(&mut random, dtype, rows, width);
            rigs.iter().for_each(|rig| case.check(rig));
        }
    }
    for rows in [1, 2, 17, 63, 64, 400] {
        let (dtype, width) = (random.pick(&TYPES), random.range(1, 150));
        let rig = &rigs[random.range(0, rigs.len() - 1)];
        Case::random(&mut random, dtype, rows, width).check(rig);
    }
}

/// A row has the same bits in any company.
#[test]
fn a_row_depends_on_itself_alone() {
    let rig = rig();
    let case = Case {
        positions: None,
        stats: true,
        ..Case::random(&mut Random::new("embed exact"), Dtype::F16, 9, 200)
    };
    let whole = case.run(&rig);
    for row in [0, 4, 8] {
        let alone =
            Case { tokens: vec![case.tokens[row]], table: case.table.clone(), positions: None, ..case };
        let run = alone.run(&rig);
        assert_eq!(bits(&run.out[..200]), bits(&whole.out[row * case.out_stride..][..200]));
        assert_eq!(bits(&run.stats), bits(&whole.stats[row * 4..][..4]));
    }
}

#[test]
fn the_same_launch_gives_the_same_bits() {
    let case = Case { stats: true, ..Case::random(&mut Random::new("embed repeats"), Dtype::Bf16, 3, 2100) };
    assert_the_same_each_time(&rigs(), |rig| {
        let run = case.run(rig);
        (bits(&run.out), bits(&run.stats))
    });
}

/// Dead rows keep what was in them; rows of unknown tokens do not.
#[test]
fn dead_rows_are_left_alone() {
    let rig = rig();
    let dtype = Dtype::Bf16;
    for width in [64, 65] {
        let table = rig.upload(&encode(&vec![2.0; width], dtype));
        let (tokens, positions) = (rig.upload(&[0, 0, 1, 1]), rig.upload(&[-1, 0, -1, 0]));
        let mut out = rig.upload(&encode(&vec![1.0; 4 * width], dtype));
        let mut stats = rig.upload(&encode(&vec![1.0; 4 * width.div_ceil(64)], Dtype::F32));
        let args = EmbedArgs {
            dtype,
            rows: 4,
            width,
            vocabulary: 1,
            table: Rows { view: table.view(), stride: width },
            tokens: tokens.view(),
            positions: Some(positions.view()),
            out: RowsMut { view: out.view_mut(), stride: width },
            stats: Some(stats.view_mut()),
        };
        rig.reports(|| rig.kernels.embed.launch(&rig.stream, &args));
        let (out, stats) = (rig.download(&out, dtype), rig.download(&stats, Dtype::F32));
        for (row, (out, stats)) in out.chunks(width).zip(stats.chunks(width.div_ceil(64))).enumerate() {
            assert!(
                out.iter().all(|x| [*x == 1.0, *x == 2.0, *x == 1.0, x.is_nan()][row]),
                "row {row}: {out:?}"
            );
            let full = if width == 64 { 256.0 } else { 4.0 };
            let last = *stats.last().unwrap();
            assert!([last == 1.0, last == full, last == 1.0, last.is_nan()][row], "row {row}: {stats:?}");
        }
    }
}

#[test]
fn every_byte_moves_once() {
    let rig = rig();
    let table = Random::new("embed bytes").normals(4 * 4096, 1.0, Dtype::Bf16);
    let case = Case {
        dtype: Dtype::Bf16,
        width: 4096,
        vocabulary: 4,
        table_stride: 4096,
        out_stride: 4096,
        table,
        tokens: vec![3, 1, 2, 0],
        positions: None,
        stats: true,
    };
    let Some(counters) = case.run(&rig).counters else { return };
    let bytes = 4 * 4096 * 2;
    assert_eq!(counters.global_store.bytes, bytes + 4 * 64 * 4, "rows and statistics");
    // Each of the warps reads its token, and statistics are written four a warp.
    let scattered = 4 * 8;
    assert_eq!(counters.global_load.sectors, bytes / 32 + scattered, "coalesced");
    assert_eq!(counters.global_store.sectors, bytes / 32 + 2 * scattered, "coalesced");
}

/// Row 1 of the table and of out begins beyond 2^31 elements; rows 0, which are not used, would lie in memory that
/// there is not.
#[test]
fn rows_beyond_31_bits() {
    let rig = rig();
    let (dtype, width, stride) = (Dtype::F16, 40, (1 << 31) + 8);
    let row = Random::new("embed far").normals(width, 1.0, dtype);
    let table = rig.upload(&encode(&row, dtype));
    let mut out = rig.poisoned(width, dtype);
    let (tokens, positions) = (rig.upload(&[0, 1]), rig.upload(&[-1, 0]));
    let (before, bytes) = (stride as u64 * 2, (stride + width) * 2);
    // SAFETY: the kernel touches row 1 alone, which is all of the buffer.
    let (far_table, far_out) = unsafe {
        (
            View::from_raw(table.view().address() - before, bytes),
            ViewMut::from_raw(out.view_mut().address() - before, bytes),
        )
    };
    let args = EmbedArgs {
        dtype,
        rows: 2,
        width,
        vocabulary: 2,
        table: Rows { view: far_table, stride },
        tokens: tokens.view(),
        positions: Some(positions.view()),
        out: RowsMut { view: far_out, stride },
        stats: None,
    };
    rig.reports(|| rig.kernels.embed.launch(&rig.stream, &args));
    assert_eq!(rig.download(&out, dtype), row);
}

#[test]
fn what_does_not_fit_is_refused() {
    let rig = rig();
    let dtype = Dtype::Bf16;
    let table = rig.poisoned(96, dtype);
    let tokens = rig.upload(&[0, 1]);
    let (mut out, mut stats) = (rig.poisoned(64, dtype), rig.poisoned(2, Dtype::F32));
    let mut refused = |change: &dyn Fn(&mut EmbedArgs), wanted: &str| {
        let mut args = EmbedArgs {
            dtype,
            rows: 2,
            width: 32,
            vocabulary: 3,
            table: Rows { view: table.view(), stride: 32 },
            tokens: tokens.view(),
            positions: None,
            out: RowsMut { view: out.view_mut(), stride: 32 },
            stats: Some(stats.view_mut()),
        };
        change(&mut args);
        let error = rig.kernels.embed.launch(&rig.stream, &args).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    };
    refused(&|a| a.dtype = Dtype::F32, "dtype: f32");
    refused(&|a| a.width = 0, "width: 0");
    refused(&|a| a.width = (1 << 26) + 1, "width: 67108865");
    refused(&|a| a.rows = 3, "tokens: 8 bytes do not hold 3 elements");
    refused(&|a| a.rows = usize::MAX, "tokens: ");
    refused(&|a| a.vocabulary = 4, "table: 192 bytes do not hold 128 elements");
    refused(&|a| a.vocabulary = 1 << 31, "vocabulary: 2147483648");
    refused(&|a| a.table.stride = 31, "table: rows 31 elements apart overlap");
    refused(&|a| a.table.view = a.table.view.slice(2..192), "table: address");
    refused(&|a| a.out.stride = 33, "out: 128 bytes do not hold 65 elements");
    refused(
        // SAFETY: a part of the same memory, which is launched with nothing.
        &|a| a.stats = a.stats.as_mut().map(|s| unsafe { ViewMut::from_raw(s.address(), 4) }),
        "stats: 4 bytes",
    );
    refused(&|a| a.positions = Some(a.tokens.slice(0..4)), "positions: 4 bytes do not hold 2 elements");
}
