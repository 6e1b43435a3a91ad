//! Rotary positions and appended keys and values, against the angles of the model and rotation in f64.

use std::{collections::HashMap, path::Path};

use half::f16;
use warploom::{
    checkpoint::Config,
    driver::ViewMut,
    kernels::{Dtype, PageLayout, PageTable, RopeAppendArgs, RowsMut},
    model::Angles,
};

use super::harness::{Random, Rig, assert_the_same_each_time, bits, encode, rig, rigs, ulp};

const TYPES: [Dtype; 2] = [Dtype::Bf16, Dtype::F16];

/// One launch: shapes and what was in memory.
#[derive(Clone)]
struct Case {
    dtype: Dtype,
    heads: usize,
    layout: PageLayout,
    angles: Angles,
    magnitude: f32,
    positions: Vec<i32>,
    slots: Vec<i32>,
    table: Vec<i32>,
    sequences: usize,
    stride: usize,
    qkv: Vec<f64>,
}

struct Run {
    qkv: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    counters: Option<ptxsim::Counters>,
}

/// The rotary variants of `config.json`.
const VARIANTS: [&str; 5] = [
    "null",
    r#"{"type":"linear","factor":4}"#,
    r#"{"type":"dynamic","factor":2}"#,
    r#"{"rope_type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4,"original_max_position_embeddings":8192}"#,
    r#"{"rope_type":"yarn","factor":16,"original_max_position_embeddings":4096}"#,
];

fn angles(head_dim: usize, variant: &str) -> Angles {
    // Dynamic scaling takes the root of what would be the 0th power.
    let variant = if head_dim == 2 { "null" } else { variant };
    let json = format!(
        r#"{{"model_type":"llama","hidden_size":{head_dim},"intermediate_size":8,"num_hidden_layers":1,"num_attention_heads":1,
        "vocab_size":8,"max_position_embeddings":65536,"rope_theta":500000.0,"rope_scaling":{variant}}}"#
    );
    Angles::new(
        &Config::from_json(Path::new("config.json"), json.as_bytes(), None).expect("a configuration"),
        131_072,
    )
}

/// Elements of k, and of v.
fn elements(l: &PageLayout) -> usize {
    (l.pages - 1) * l.page_stride
        + (l.kv_heads - 1) * l.head_stride
        + (l.page_size - 1) * l.slot_stride
        + l.head_dim
}

impl Case {
    /// Rows at distinct places, in pages that lie about in any order; some dead, some with nowhere to go.
    fn random(
        random: &mut Random,
        dtype: Dtype,
        rows: usize,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Case {
        let page_size = random.pick(&[8, 16, 24, 64]);
        let sequences = random.range(1, 4);
        let places: Vec<(i32, i32)> = (0..rows)
            .map(|row| {
                // 512 positions are as many as there are rows, or more.
                let position = random.pick(&[0, 4096, 130_560]) + (row as i32 * 37) % 512;
                (random.range(0, sequences - 1) as i32, position)
            })
            .collect();
        let mut case = Case::at(random, dtype, heads, &places, page_size, kv_heads, head_dim);
        for row in 0..rows {
            match random.range(0, 19) {
                0 | 1 => case.positions[row] = -1 - random.range(0, 3) as i32,
                2 => case.slots[row] = random.pick(&[-1, case.sequences as i32, i32::MAX, i32::MIN]),
                3 => case.positions[row] = random.pick(&[200_000, i32::MAX]),
                4 => {
                    let entry = case.positions[row] as usize / page_size;
                    let stride = case.table.len() / case.sequences;
                    if let Some(id) = case.table.get_mut(case.slots[row].max(0) as usize * stride + entry) {
                        *id = random.pick(&[-1, case.layout.pages as i32, i32::MAX, i32::MIN]);
                    }
                }
                _ => {}
            }
        }
        case
    }

    /// Live rows at these sequences and positions.
    fn at(
        random: &mut Random,
        dtype: Dtype,
        heads: usize,
        places: &[(i32, i32)],
        page_size: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Case {
        let sequences = places.iter().map(|p| p.0 + 1).max().unwrap_or(1) as usize;
        let entries = places.iter().map(|p| p.1 as usize / page_size + 1).max().unwrap_or(1);
        let mut used: Vec<usize> =
            places.iter().map(|p| p.0 as usize * entries + p.1 as usize / page_size).collect();
        used.sort_unstable();
        used.dedup();
        let pages = used.len() + random.range(0, 2);
        let mut ids: Vec<i32> = (0..pages as i32).collect();
        for i in (1..pages).rev() {
            ids.swap(i, random.range(0, i));
        }
        let mut table = vec![i32::MIN; sequences * entries];
        for (place, id) in used.iter().zip(ids) {
            table[*place] = id;
        }
        let angles = angles(head_dim, random.pick(&VARIANTS));
        let mut layout = match random.range(0, 1) {
            0 => PageLayout::heads_first(pages, page_size, kv_heads, head_dim),
            _ => PageLayout::slots_first(pages, page_size, kv_heads, head_dim),
        };
        // Pages of other layers in between; or what makes every address odd.
        layout.page_stride += random.pick(&[0, 0, 8, 1]);
        let width = (heads + 2 * kv_heads) * head_dim;
        let stride = width + random.pick(&[0, 0, 8, 3]);
        let mut qkv = vec![f64::NAN; places.len() * stride];
        for row in qkv.chunks_mut(stride) {
            row[..width].copy_from_slice(&random.normals(width, 1.0, dtype));
        }
        Case {
            dtype,
            heads,
            layout,
            magnitude: angles.magnitude(),
            angles,
            positions: places.iter().map(|p| p.1).collect(),
            slots: places.iter().map(|p| p.0).collect(),
            table,
            sequences,
            stride,
            qkv,
        }
    }

    fn with(self, angles: Angles) -> Case {
        Case { magnitude: angles.magnitude(), angles, ..self }
    }

    fn run(&self, rig: &Rig) -> Run {
        let qkv_bytes = encode(&self.qkv, self.dtype);
        let mut qkv = rig.upload(&qkv_bytes);
        let frequencies = rig.upload(&[self.angles.frequencies(), &[f32::NAN; 4]].concat());
        let (positions, slots, table) =
            (rig.upload(&self.positions), rig.upload(&self.slots), rig.upload(&self.table));
        let (mut k, mut v) = (
            rig.poisoned(elements(&self.layout), self.dtype),
            rig.poisoned(elements(&self.layout), self.dtype),
        );
        let args = RopeAppendArgs {
            dtype: self.dtype,
            rows: self.positions.len(),
            heads: self.heads,
            qkv: RowsMut { view: qkv.view_mut(), stride: self.stride },
            positions: positions.view(),
            slots: slots.view(),
            frequencies: frequencies.view(),
            magnitude: self.magnitude,
            layout: self.layout,
            k: k.view_mut(),
            v: v.view_mut(),
            table: PageTable {
                view: table.view(),
                sequences: self.sequences,
                stride: self.table.len() / self.sequences,
            },
        };
        let mut reports = rig.reports(|| rig.kernels.rope_append.launch(&rig.stream, &args));
        Run {
            qkv: rig.download(&qkv, self.dtype),
            k: rig.download(&k, self.dtype),
            v: rig.download(&v, self.dtype),
            counters: reports.pop().map(|r| r.counters),
        }
    }

    /// Where a row's k and v go: element of head 0.
    fn place(&self, row: usize) -> Option<usize> {
        let (l, entries) = (&self.layout, self.table.len() / self.sequences);
        let position = usize::try_from(self.positions[row]).ok()?;
        let slot = usize::try_from(self.slots[row]).ok().filter(|s| *s < self.sequences)?;
        let entry = Some(position / l.page_size).filter(|e| *e < entries)?;
        let page = usize::try_from(self.table[slot * entries + entry]).ok().filter(|p| *p < l.pages)?;
        Some(page * l.page_stride + position % l.page_size * l.slot_stride)
    }

    fn check(&self, rig: &Rig) {
        let run = self.run(rig);
        let l = &self.layout;
        let (d, width) = (l.head_dim, (self.heads + 2 * l.kv_heads) * l.head_dim);
        // What ought to be where in the pages, and with which tolerance.
        let (mut k, mut v) = (HashMap::new(), HashMap::new());
        let mut turns = vec![0.0; d];
        for row in 0..self.positions.len() {
            let what = format!(
                "{} {:?} {} heads {l:?} row {row} of {} at {}",
                rig.name,
                self.dtype,
                self.heads,
                self.positions.len(),
                self.positions[row]
            );
            let before = &self.qkv[row * self.stride..][..self.stride];
            let after = &run.qkv[row * self.stride..][..self.stride];
            assert!(after[width..].iter().all(|x| x.is_nan()), "{what}: wrote past its row");
            assert_eq!(after[self.heads * d..width], before[self.heads * d..width], "{what}: k and v of qkv");
            if self.positions[row] < 0 {
                assert_eq!(after[..self.heads * d], before[..self.heads * d], "{what}: dead");
                continue;
            }
            self.angles.write(self.positions[row] as usize, &mut turns);
            for head in 0..self.heads + l.kv_heads {
                for i in 0..d / 2 {
                    let (cos, sin) = (f64::from(turns[i]), f64::from(turns[d / 2 + i]));
                    let (a, b) = (before[head * d + i], before[head * d + d / 2 + i]);
                    // Where the two products cancel, what their own rounding, and that of cosine and sine, leaves.
                    let rest = 2f64.powi(-22)
                        * ((a * cos).abs() + (b * sin).abs() + (b * cos).abs() + (a * sin).abs());
                    let rotated = [a * cos - b * sin, b * cos + a * sin];
                    for (at, want) in [i, i + d / 2].into_iter().zip(rotated) {
                        let bound = ulp(want, self.dtype) + rest;
                        if head < self.heads {
                            let got = after[head * d + at];
                            assert!(
                                (got - want).abs() <= bound,
                                "{what}: q head {head} [{at}] is {got}, not {want}"
                            );
                        } else if let Some(place) = self.place(row) {
                            k.insert(place + (head - self.heads) * l.head_stride + at, (want, bound));
                        }
                    }
                }
            }
            if let Some(place) = self.place(row) {
                for head in 0..l.kv_heads {
                    for i in 0..d {
                        let value = before[(self.heads + l.kv_heads + head) * d + i];
                        v.insert(place + head * l.head_stride + i, (value, 0.0));
                    }
                }
            }
        }
        for (name, got, want) in [("k", &run.k, &k), ("v", &run.v, &v)] {
            for (at, got) in got.iter().enumerate() {
                match want.get(&at) {
                    Some((want, bound)) => assert!(
                        (got - want).abs() <= *bound,
                        "{} {l:?}: {name}[{at}] is {got}, not {want}",
                        rig.name
                    ),
                    None => assert!(got.is_nan(), "{} {l:?}: {name}[{at}] was written", rig.name),
                }
            }
        }
    }
}

#[test]
fn any_shape() {
    let mut random = Random::new("rope_append shapes");
    let rigs = rigs();
    // Heads of q, of k, width: Llama 3 8B's and 3.2 1B's and 3B's ratios, then what is odd.
    for (i, (heads, kv_heads, head_dim)) in [
        (32, 8, 128),
        (8, 2, 64),
        (3, 1, 128),
        (2, 1, 256),
        (3, 3, 96),
        (5, 2, 80),
        (1, 1, 2),
        (7, 1, 6),
        (3, 2, 30),
        (2, 2, 250),
        (1, 1, 16),
        (130, 1, 16),
    ]
    .into_iter()
    .enumerate()
    {
        let rows = random.range(1, 4);
        let case = Case::random(&mut random, TYPES[i % 2], rows, heads, kv_heads, head_dim);
        rigs.iter().for_each(|rig| case.check(rig));
    }
    for rows in [1, 7, 33, 63, 64, 200] {
        let (dtype, kv_heads, group) = (random.pick(&TYPES), random.range(1, 2), random.range(1, 3));
        let head_dim = 2 * random.range(1, if rows > 64 { 16 } else { 64 });
        let rig = &rigs[random.range(0, rigs.len() - 1)];
        Case::random(&mut random, dtype, rows, group * kv_heads, kv_heads, head_dim).check(rig);
    }
}

/// Sequences, positions and page ids that are out of range: q is rotated, k and v are written nowhere.
#[test]
fn rows_with_nowhere_to_go() {
    let rig = rig();
    let places: Vec<(i32, i32)> = (0..9).map(|i| (i, 3)).collect();
    let case = Case::at(&mut Random::new("rope_append nowhere"), Dtype::F16, 2, &places, 8, 1, 64);
    let pages = case.layout.pages;
    // In the second layout slots are further apart than pages: a page before the first would lie within the others.
    for layout in [
        PageLayout::heads_first(pages, 8, 1, 64),
        PageLayout { page_stride: 64, slot_stride: 64 * pages, ..PageLayout::heads_first(pages, 8, 1, 64) },
    ] {
        let mut case = Case { layout, ..case.clone() };
        case.table[1..5].copy_from_slice(&[-1, i32::MIN, pages as i32, i32::MAX]);
        case.slots[5..8].copy_from_slice(&[-1, i32::MIN, 9]);
        case.positions[8] = 8;
        assert_eq!((0..9).filter(|row| case.place(*row).is_some()).count(), 1);
        case.check(&rig);
    }
}

/// Every variant, from the first to the last position of a context of 128k, in a contiguous cache too.
#[test]
fn every_variant_far_out() {
    let mut random = Random::new("rope_append variants");
    let rig = rig();
    for variant in VARIANTS {
        for head_dim in [64, 128] {
            let places = [(0, 0), (0, 1), (1, 4095), (0, 65_537), (1, 131_071)];
            let case = Case::at(&mut random, random_type(head_dim), 2, &places, 64, 1, head_dim);
            case.with(angles(head_dim, variant)).check(&rig);
        }
    }
    let (layout, positions) = (PageLayout::heads_first(2, 4096, 1, 8), vec![4095, 17]);
    let case = Case::at(&mut random, Dtype::Bf16, 1, &[(0, 0), (1, 8)], 8, 1, 8);
    Case { layout, positions, table: vec![0, 1], ..case }.check(&rig);
}

fn random_type(head_dim: usize) -> Dtype {
    TYPES[head_dim / 64 % 2]
}

/// Cosine and sine are those of the CPU, to the last bit. The products of f16 numbers with them hide all but eleven
/// bits, so each pair is given the two numbers whose products all but cancel: what is left has the last bits, if the
/// magnitude makes it large enough.
#[test]
fn cosine_and_sine_to_the_last_bit() {
    let mut random = Random::new("rope_append bits");
    let rig = rig();
    // 103993 and 104348 radians end whole turns but for some 1e-5: what is left shows the rounding of π first.
    let positions = [1, 2, 777, 4097, 32_768, 103_993, 104_348, 131_071];
    let places: Vec<(i32, i32)> = positions.map(|p| (0, p)).to_vec();
    let rotated = |(a, b): (f32, f32), (cos, sin): (f32, f32)| {
        [a.mul_add(cos, -(b * sin)), b.mul_add(cos, a * sin)].map(|x| f64::from(f16::from_f32(x)))
    };
    for variant in VARIANTS {
        let case = Case::at(&mut random, Dtype::F16, 1, &places, 64, 1, 128).with(angles(128, variant));
        let mut case = Case { stride: 384, qkv: vec![0.0; 384 * places.len()], ..case };
        let mut pairs = vec![];
        let mut turns = vec![0.0; 128];
        for (row, place) in places.iter().enumerate() {
            case.angles.write(place.1 as usize, &mut turns);
            for i in 0..64 {
                let turn @ (cos, sin) = (turns[i], turns[64 + i]);
                let mut best = ((0.0, 0.0), f32::MAX);
                for step in 0..1024 {
                    let one = 16384.0 + 16.0 * step as f32;
                    let (a, b) =
                        if cos.abs() < sin.abs() { (one, one * cos / sin) } else { (one * sin / cos, one) };
                    let (a, b) = (f16::from_f32(a).to_f32(), f16::from_f32(b).to_f32());
                    let rest = a.mul_add(cos, -(b * sin)).abs();
                    if 0.0 < rest && rest < best.1 {
                        best = ((a, b), rest);
                    }
                }
                case.qkv[row * 384 + i] = f64::from(best.0.0);
                case.qkv[row * 384 + 64 + i] = f64::from(best.0.1);
                pairs.push((row * 384 + i, best.0, turn, false));
            }
        }
        for scale in [0, 12, 28].map(|n| 2f32.powi(n)) {
            case.magnitude = case.angles.magnitude() * scale;
            let got = case.run(&rig).qkv;
            for (at, numbers, (cos, sin), seen) in &mut pairs {
                let next = |x: f32| f32::from_bits(x.to_bits() + 1) * scale;
                let (cos, sin, other_cos, other_sin) = (*cos * scale, *sin * scale, next(*cos), next(*sin));
                let want = rotated(*numbers, (cos, sin));
                assert_eq!([got[*at], got[*at + 64]], want, "{variant} at {at}: {cos} {sin}");
                // Whether another last bit would have shown.
                *seen |= rotated(*numbers, (other_cos, sin)) != want
                    && rotated(*numbers, (cos, other_sin)) != want;
            }
        }
        let seen = pairs.iter().filter(|p| p.3).count();
        assert!(
            seen * 5 > pairs.len() * 4,
            "{variant}: the last bits of {seen} in {} pairs show",
            pairs.len()
        );
    }
}

/// A row has the same bits alone, in company, at any place, in any layout, and on any alignment.
#[test]
fn a_row_depends_on_itself_alone() {
    let mut random = Random::new("rope_append exact");
    let rig = rig();
    let places: Vec<(i32, i32)> = (0..9).map(|i| (i % 2, 1000 + 5 * i)).collect();
    let case = Case::at(&mut random, Dtype::Bf16, 6, &places, 16, 2, 64);
    let whole = case.run(&rig);
    let cached = |case: &Case, run: &Run, row: usize| -> Vec<f64> {
        let place = case.place(row).expect("a live row");
        let head = |x: &[f64], h: usize| x[place + h * case.layout.head_stride..][..64].to_vec();
        [head(&run.k, 0), head(&run.k, 1), head(&run.v, 0), head(&run.v, 1)].concat()
    };
    for row in [0, 4, 8] {
        let qkv = case.qkv[row * case.stride..][..10 * 64].to_vec();
        for (layout, stride) in [
            (PageLayout::heads_first(1, 2048, 2, 64), 640),
            (PageLayout::slots_first(1, 2048, 2, 64), 640),
            (PageLayout { head_stride: 131_073, ..PageLayout::heads_first(1, 2048, 2, 64) }, 640),
            (PageLayout { slot_stride: 131, ..PageLayout::slots_first(1, 2048, 2, 64) }, 641),
        ] {
            let alone = Case {
                layout,
                stride,
                qkv: [&qkv[..], &vec![f64::NAN; stride - 640]].concat(),
                positions: vec![case.positions[row]],
                slots: vec![0],
                table: vec![0],
                sequences: 1,
                ..case.clone()
            };
            let run = alone.run(&rig);
            assert_eq!(run.qkv[..6 * 64], whole.qkv[row * case.stride..][..6 * 64]);
            assert_eq!(cached(&alone, &run, 0), cached(&case, &whole, row));
        }
    }
}

#[test]
fn the_same_launch_gives_the_same_bits() {
    let case = Case::random(&mut Random::new("rope_append repeats"), Dtype::Bf16, 5, 6, 2, 80);
    assert_the_same_each_time(&rigs(), |rig| {
        let run = case.run(rig);
        [bits(&run.qkv), bits(&run.k), bits(&run.v)]
    });
}

/// Each q, k and v is read once and written once; the rest is some words a warp, and the frequencies.
#[test]
fn every_byte_moves_once() {
    let rig = rig();
    let mut random = Random::new("rope_append bytes");
    let case = Case::at(&mut random, Dtype::Bf16, 32, &[(0, 5), (0, 6), (1, 100), (1, 131_000)], 64, 8, 128);
    let width = 48 * 128;
    for layout in [
        PageLayout::heads_first(case.layout.pages, 64, 8, 128),
        PageLayout::slots_first(case.layout.pages, 64, 8, 128),
    ] {
        let case =
            Case { layout, stride: width, qkv: random.normals(4 * width, 1.0, Dtype::Bf16), ..case.clone() };
        let Some(counters) = case.run(&rig).counters else { return };
        let (bytes, ctas) = ((4 * width * 2) as u64, 12);
        assert_eq!(counters.ctas, ctas);
        assert_eq!(counters.global_store.bytes, bytes);
        assert_eq!(counters.global_store.sectors * 32, bytes, "coalesced");
        // By warp: the position; of k and v, sequence and entry of the table; and the frequencies, once a CTA.
        let rest = 4 * 3 * 4 + 4 * 4 * 2 + ctas * 64 * 4 / 32;
        assert_eq!(counters.global_load.sectors, bytes / 32 + rest, "coalesced");
        assert_eq!(counters.shared_load.wavefronts, counters.shared_load.ideal, "no bank conflicts");
        assert_eq!(counters.shared_store.wavefronts, counters.shared_store.ideal, "no bank conflicts");
    }
}

/// Row 1 of qkv and page 1 begin beyond 2^31 elements; row 0, which is dead, and page 0, which is not used, would lie
/// in memory that there is not.
#[test]
fn rows_and_pages_beyond_31_bits() {
    let rig = rig();
    let mut random = Random::new("rope_append far");
    let far = (1usize << 31) + 8;
    let near = Case {
        layout: PageLayout::heads_first(1, 8, 1, 64),
        table: vec![0],
        stride: 256,
        qkv: random.normals(256, 1.0, Dtype::F16),
        ..Case::at(&mut random, Dtype::F16, 2, &[(0, 3)], 8, 1, 64)
    };
    let want = near.run(&rig);
    let mut qkv = rig.upload(&encode(&near.qkv, near.dtype));
    let (mut k, mut v) = (rig.poisoned(512, near.dtype), rig.poisoned(512, near.dtype));
    let frequencies = rig.upload(near.angles.frequencies());
    let (positions, slots, table) = (rig.upload(&[-1, 3]), rig.upload(&[0, 0]), rig.upload(&[1]));
    // SAFETY: the kernel touches row 1 and page 1 alone, which are all of the buffers.
    let before = |x: &mut warploom::driver::Buffer, elements: usize| unsafe {
        ViewMut::from_raw(x.view_mut().address() - far as u64 * 2, (far + elements) * 2)
    };
    let args = RopeAppendArgs {
        dtype: near.dtype,
        rows: 2,
        heads: 2,
        qkv: RowsMut { view: before(&mut qkv, 256), stride: far },
        positions: positions.view(),
        slots: slots.view(),
        frequencies: frequencies.view(),
        magnitude: near.magnitude,
        layout: PageLayout { pages: 2, page_stride: far, ..near.layout },
        k: before(&mut k, 512),
        v: before(&mut v, 512),
        table: PageTable { view: table.view(), sequences: 1, stride: 1 },
    };
    rig.reports(|| rig.kernels.rope_append.launch(&rig.stream, &args));
    for (got, want) in [(qkv, want.qkv), (k, want.k), (v, want.v)] {
        assert_eq!(bits(&rig.download(&got, near.dtype)), bits(&want));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let rig = rig();
    let dtype = Dtype::Bf16;
    let (mut qkv, mut k, mut v) =
        (rig.poisoned(128, dtype), rig.poisoned(512, dtype), rig.poisoned(512, dtype));
    let (positions, slots, table) = (rig.upload(&[0, 1]), rig.upload(&[0, 0]), rig.upload(&[0, 1]));
    let frequencies = rig.upload(&[1.0f32; 8]);
    let mut refused = |change: &dyn Fn(&mut RopeAppendArgs), wanted: &str| {
        let mut args = RopeAppendArgs {
            dtype,
            rows: 2,
            heads: 2,
            qkv: RowsMut { view: qkv.view_mut(), stride: 64 },
            positions: positions.view(),
            slots: slots.view(),
            frequencies: frequencies.view(),
            magnitude: 1.0,
            layout: PageLayout::heads_first(4, 8, 1, 16),
            k: k.view_mut(),
            v: v.view_mut(),
            table: PageTable { view: table.view(), sequences: 1, stride: 2 },
        };
        change(&mut args);
        let error = rig.kernels.rope_append.launch(&rig.stream, &args).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    };
    refused(&|a| a.dtype = Dtype::F32, "dtype: f32");
    refused(&|a| a.rows = 3, "positions: 8 bytes do not hold 3 elements");
    refused(&|a| a.slots = a.slots.slice(0..4), "slots: 4 bytes do not hold 2 elements");
    refused(&|a| a.heads = 0, "heads: 0");
    refused(&|a| a.heads = 3, "qkv: rows 64 elements apart overlap");
    refused(&|a| a.heads = usize::MAX, "heads: ");
    refused(&|a| a.qkv.stride = 66, "qkv: 256 bytes do not hold 130 elements");
    refused(&|a| a.magnitude = f32::INFINITY, "magnitude: inf");
    refused(&|a| a.magnitude = 0.0, "magnitude: 0");
    refused(&|a| a.layout.head_dim = 15, "head_dim: 15");
    refused(&|a| a.layout.head_dim = 0, "head_dim: 0");
    refused(&|a| a.layout.head_dim = 258, "head_dim: 258");
    refused(&|a| a.layout.head_dim = 18, "frequencies: 32 bytes do not hold 9 elements");
    refused(&|a| a.layout.kv_heads = 0, "kv_heads: 0");
    refused(&|a| a.layout.page_size = 12, "page_size: 12; supported are multiples of 8");
    refused(&|a| a.layout.page_size = 0, "page_size: 0");
    refused(&|a| a.layout.pages = 5, "k: 1024 bytes do not hold 640 elements");
    refused(&|a| a.layout.pages = 1 << 31, "pages: 2147483648");
    refused(&|a| a.layout.slot_stride = 15, "slot_stride: 15; elements overlap");
    refused(&|a| a.layout.page_stride = 64, "page_stride: 64; elements overlap");
    refused(&|a| a.layout.page_stride = usize::MAX / 2, "page_stride: ");
    refused(&|a| a.table.stride = 3, "table: 8 bytes do not hold 3 elements");
    refused(&|a| a.table.sequences = 1 << 31, "sequences: 2147483648");
}
