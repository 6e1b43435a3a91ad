//! Attention of few rows over paged keys and values, against its definition in f64.

use ptxsim::Counters;
use warploom::{
    driver::{Buffer, View},
    kernels::{
        AttentionDecode, AttentionDecodeArgs, AttentionParts, Dtype, PageLayout, PageTable, Rows, RowsMut,
    },
    mask::{Mask, Pattern, Visible},
};

use super::harness::{Random, Rig, assert_as_exact_as_naive, bits, encode, rig, rigs, round};

/// One launch: everything that is in memory.
#[derive(Clone, Debug)]
struct Case {
    dtype: Dtype,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    mask: Mask,
    scale: f32,
    softcap: f32,
    sinks: Option<Vec<f64>>,
    sequences: Vec<Sequence>,
    /// Positions are given, though they are those of the last rows.
    positions: bool,
    documents: bool,
    tree: bool,
    page_size: usize,
    slots_first: bool,
    /// Elements between the rows of q, and of out.
    gap: usize,
    max_rows: usize,
    max_keys: usize,
    /// How keys are divided.
    parts: AttentionParts,
    /// Where pages lie.
    shuffle: u64,
}

#[derive(Clone, Debug)]
struct Sequence {
    rows: Vec<Row>,
    /// `[keys][kv_heads][head_dim]`.
    k: Vec<f64>,
    v: Vec<f64>,
    keys: usize,
}

#[derive(Clone, Debug)]
struct Row {
    position: i32,
    document: i32,
    tree: u64,
    /// `[heads][head_dim]`.
    q: Vec<f64>,
}

#[derive(Debug)]
struct Run {
    /// `[tokens][heads][head_dim]`.
    out: Vec<f64>,
    /// `[tokens][heads]`.
    lse: Vec<f64>,
    counters: Vec<Counters>,
}

impl Case {
    fn new(
        random: &mut Random,
        dtype: Dtype,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        mask: Mask,
    ) -> Case {
        Case {
            dtype,
            heads,
            kv_heads,
            head_dim,
            mask,
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap: 0.0,
            sinks: None,
            sequences: vec![],
            positions: false,
            documents: false,
            tree: false,
            page_size: 16,
            slots_first: false,
            gap: 0,
            max_rows: 1,
            max_keys: 1,
            parts: AttentionParts::Auto,
            shuffle: random.range(0, 1 << 20) as u64,
        }
    }

    /// Adds a sequence of so many keys, the last of them those of its rows.
    fn add(&mut self, random: &mut Random, keys: usize, rows: usize) -> &mut Case {
        let kv = keys * self.kv_heads * self.head_dim;
        let spread = random.pick(&[1.0, 1.0, 3.0]);
        let rows = (0..rows).map(|i| Row {
            position: (keys + i) as i32 - rows as i32,
            document: 0,
            tree: u64::MAX,
            q: random.normals(self.heads * self.head_dim, spread, self.dtype),
        });
        let rows: Vec<Row> = rows.collect();
        self.max_rows = self.max_rows.max(rows.len());
        self.max_keys = self.max_keys.max(keys);
        let (k, v) = (random.normals(kv, 1.0, self.dtype), random.normals(kv, 1.0, self.dtype));
        self.sequences.push(Sequence { rows, k, v, keys });
        self
    }

    fn tokens(&self) -> usize {
        self.sequences.iter().map(|s| s.rows.len()).sum()
    }

    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// What a row sees, but for its tree.
    fn visible(&self, s: &Sequence, row: &Row) -> Visible {
        if row.position < 0 {
            return Visible::default();
        }
        let document = if self.documents { row.document.max(0) as usize } else { 0 };
        self.mask.visible(row.position as usize, s.keys, document)
    }

    fn sees(&self, s: &Sequence, row: &Row, key: usize) -> bool {
        let bit = (key + 64).checked_sub(s.keys);
        self.visible(s, row).contains(key) && (!self.tree || bit.is_none_or(|bit| row.tree >> bit & 1 == 1))
    }

    /// Keys from the first to the last of the interval that rows see, and their prefix: what memory must hold.
    fn held(&self, s: &Sequence) -> Vec<bool> {
        let seen: Vec<Visible> = s.rows.iter().map(|row| self.visible(s, row)).collect();
        let intervals = || seen.iter().filter(|v| v.hi > v.lo);
        let lo = intervals().map(|v| v.lo).min().unwrap_or(0);
        let hi = intervals().map(|v| v.hi).max().unwrap_or(0);
        let prefix = seen.iter().map(|v| v.prefix).max().unwrap_or(0);
        (0..s.keys).map(|key| key < prefix || (lo..hi).contains(&key)).collect()
    }

    fn layout(&self, pages: usize) -> PageLayout {
        let layout = if self.slots_first { PageLayout::slots_first } else { PageLayout::heads_first };
        layout(pages, self.page_size, self.kv_heads, self.head_dim)
    }

    /// Page ids of every sequence, and how many pages there are. Pages of which nothing need be held have ids that are
    /// out of range.
    fn table(&self, stride: usize) -> (Vec<i32>, usize) {
        let mut random = Random::new(&format!("pages {}", self.shuffle));
        let mut table = vec![];
        for s in &self.sequences {
            let held = self.held(s);
            for page in 0..stride {
                let keys = held.iter().skip(page * self.page_size).take(self.page_size);
                table.push(if keys.into_iter().any(|held| *held) {
                    0
                } else {
                    random.pick(&[-1, i32::MAX, i32::MIN, 1 << 20])
                });
            }
        }
        let used = table.iter().filter(|id| **id == 0).count();
        let pages = used + 2;
        // A permutation of the pages.
        let mut ids: Vec<i32> = (0..pages as i32).collect();
        (1..pages).rev().for_each(|i| ids.swap(i, random.range(0, i)));
        table.iter_mut().filter(|id| **id == 0).for_each(|id| *id = ids.pop().unwrap());
        (table, pages)
    }

    /// The caches: NaN but for what must be held.
    fn caches(&self, layout: &PageLayout, table: &[i32], stride: usize) -> [Vec<f64>; 2] {
        let elements = layout.pages * self.page_size * self.kv_heads * self.head_dim;
        let mut caches = [vec![f64::NAN; elements], vec![f64::NAN; elements]];
        for (i, s) in self.sequences.iter().enumerate() {
            for key in self.held(s).iter().enumerate().filter(|(_, held)| **held).map(|(key, _)| key) {
                let page = table[i * stride + key / self.page_size] as usize;
                for head in 0..self.kv_heads {
                    let to = page * layout.page_stride
                        + head * layout.head_stride
                        + key % self.page_size * layout.slot_stride;
                    let from = (key * self.kv_heads + head) * self.head_dim;
                    for (cache, x) in caches.iter_mut().zip([&s.k, &s.v]) {
                        cache[to..][..self.head_dim].copy_from_slice(&x[from..][..self.head_dim]);
                    }
                }
            }
        }
        caches
    }

    fn run(&self, rig: &Rig) -> Run {
        self.run_with(rig, |_| ())
    }

    /// `change` has the page table before the launch, and may shorten it.
    fn run_with(&self, rig: &Rig, change: impl FnOnce(&mut Vec<i32>)) -> Run {
        let stride = self.max_keys.div_ceil(self.page_size) + 1;
        let (mut table, pages) = self.table(stride);
        let layout = self.layout(pages);
        let caches = self.caches(&layout, &table, stride).map(|x| rig.upload(&encode(&x, self.dtype)));
        change(&mut table);
        let stride = table.len() / self.sequences.len();
        let memory = Memory::of(self, rig, &table);
        let (width, tokens) = (self.width() + self.gap, self.tokens());
        let mut out = rig.poisoned(tokens * width, self.dtype);
        let mut lse = rig.poisoned(tokens * self.heads, Dtype::F32);
        let kernel = kernel(rig, self.parts);
        let args = AttentionDecodeArgs {
            out: RowsMut { view: out.view_mut(), stride: width },
            lse: Some(lse.view_mut()),
            ..memory.args(self, layout, [&caches[0], &caches[1]], stride)
        };
        let mut scratch = rig.poisoned(kernel.scratch_bytes(&args).div_ceil(4), Dtype::F32);
        let reports = rig.reports(|| kernel.launch(&rig.stream, &args, scratch.view_mut()));
        let out = rig.download(&out, self.dtype);
        let lse = rig.download(&lse, Dtype::F32);
        assert!(
            out.chunks(width).all(|row| row[self.width()..].iter().all(|x| x.is_nan())),
            "wrote past a row"
        );
        Run {
            out: out.chunks(width).flat_map(|row| row[..self.width()].to_vec()).collect(),
            lse: (0..tokens)
                .flat_map(|t| (0..self.heads).map(move |h| h * tokens + t))
                .map(|i| lse[i])
                .collect(),
            counters: reports.into_iter().map(|r| r.counters).collect(),
        }
    }

    /// Scores of a row and head, with their keys.
    fn scores(&self, s: &Sequence, row: &Row, head: usize) -> Vec<(usize, f64)> {
        let d = self.head_dim;
        let kv_head = head / (self.heads / self.kv_heads);
        let q = &row.q[head * d..][..d];
        let keys = (0..s.keys).filter(|key| self.sees(s, row, *key));
        let score = |key: usize| {
            let k = &s.k[(key * self.kv_heads + kv_head) * d..][..d];
            let score = f64::from(self.scale) * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
            match f64::from(self.softcap) {
                0.0 => score,
                cap => cap * (score / cap).tanh(),
            }
        };
        keys.map(|key| (key, score(key))).collect()
    }

    /// Output of a row and head, and its lse: every step rounded by `round`.
    fn attend(
        &self,
        s: &Sequence,
        row: &Row,
        head: usize,
        round: impl Fn(f64) -> f64,
    ) -> (Vec<f64>, f64, f64) {
        let d = self.head_dim;
        let kv_head = head / (self.heads / self.kv_heads);
        let scores: Vec<(usize, f64)> =
            self.scores(s, row, head).into_iter().map(|(key, score)| (key, round(score))).collect();
        let sink = self.sinks.as_ref().filter(|_| !scores.is_empty()).map(|sinks| sinks[head]);
        let largest = scores.iter().map(|s| s.1).chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| s.1).chain(sink).map(|s| (s - largest).exp()).sum();
        let mut out = vec![0.0; d];
        for (key, score) in &scores {
            let weight = round((score - largest).exp() / sum);
            let v = &s.v[(key * self.kv_heads + kv_head) * d..][..d];
            out.iter_mut().zip(v).for_each(|(out, v)| *out += weight * v);
        }
        out.iter_mut().for_each(|x| *x = round(*x));
        let greatest = scores.iter().map(|s| s.1.abs()).fold(1.0, f64::max);
        (out, if scores.is_empty() { f64::NEG_INFINITY } else { largest + sum.ln() }, greatest)
    }

    fn check(&self, rig: &Rig) -> Run {
        let run = self.run(rig);
        let (mut want, mut naive, mut row_index) = (vec![], vec![], 0);
        for s in &self.sequences {
            for row in &s.rows {
                for head in 0..self.heads {
                    let (out, lse, greatest) = self.attend(s, row, head, |x| x);
                    want.extend(out);
                    naive.extend(self.attend(s, row, head, |x| round(x, self.dtype)).0);
                    let got = run.lse[row_index * self.heads + head];
                    assert!(
                        got == lse || (got - lse).abs() <= 1e-5 * greatest,
                        "{}: lse of row {row_index} head {head} is {got}, not {lse}: {self:.0?}",
                        rig.name
                    );
                    let d = self.head_dim;
                    let zero = lse == f64::NEG_INFINITY;
                    let of_head = &run.out[row_index * self.width() + head * d..][..d];
                    assert!(
                        !zero || of_head.iter().all(|x| x.to_bits() == 0),
                        "{}: an empty row is 0",
                        rig.name
                    );
                }
                row_index += 1;
            }
        }
        let factor = if self.softcap == 0.0 { 2.0 } else { 3.0 };
        let what = format!("{} {:?} {} {:?}", rig.name, self.dtype, self.mask, self.parts);
        assert_as_exact_as_naive(&what, &run.out, &want, &naive, factor, self.dtype);
        run
    }

    /// Both ways of dividing the keys are right, and give equal bits.
    fn check_parts(&mut self, rig: &Rig) {
        self.parts = AttentionParts::Splits;
        let splits = self.check(rig);
        self.parts = AttentionParts::Segments;
        let segments = self.run(rig);
        assert_same(&splits, &segments, &format!("splits and segments of {}", self.mask));
    }

    /// One row alone: the sequence ends with it.
    fn alone(&self, sequence: usize, row: usize) -> Case {
        let s = &self.sequences[sequence];
        let row = s.rows[row].clone();
        let keys = if self.mask.is_causal() { row.position as usize + 1 } else { s.keys };
        let elements = keys * self.kv_heads * self.head_dim;
        let alone =
            Sequence { rows: vec![row], k: s.k[..elements].to_vec(), v: s.v[..elements].to_vec(), keys };
        Case { sequences: vec![alone], max_rows: 1, max_keys: keys, ..self.clone() }
    }

    fn row<'r>(&self, run: &'r Run, row: usize) -> (&'r [f64], &'r [f64]) {
        (&run.out[row * self.width()..][..self.width()], &run.lse[row * self.heads..][..self.heads])
    }
}

/// Inputs in device memory, but the caches.
struct Memory {
    q: Buffer,
    lengths: Buffer,
    offsets: Buffer,
    positions: Buffer,
    documents: Buffer,
    tree: Buffer,
    sinks: Buffer,
    slots: Buffer,
    table: Buffer,
    unused: Buffer,
}

impl Memory {
    fn of(case: &Case, rig: &Rig, table: &[i32]) -> Memory {
        let rows = || case.sequences.iter().flat_map(|s| &s.rows);
        let gap = vec![f64::NAN; case.gap];
        let q: Vec<f64> = rows().flat_map(|row| [row.q.clone(), gap.clone()].concat()).collect();
        let lengths: Vec<i32> = case.sequences.iter().map(|s| s.keys as i32).collect();
        let mut offsets = vec![0];
        case.sequences.iter().for_each(|s| offsets.push(offsets[offsets.len() - 1] + s.rows.len() as i32));
        let column = |f: &dyn Fn(&Row) -> i32| rig.upload(&rows().map(f).collect::<Vec<i32>>());
        Memory {
            q: rig.upload(&encode(&q, case.dtype)),
            lengths: rig.upload(&lengths),
            offsets: rig.upload(&offsets),
            positions: column(&|row| row.position),
            documents: column(&|row| row.document),
            tree: rig.upload(&rows().map(|row| row.tree).collect::<Vec<u64>>()),
            sinks: rig.upload(&encode(case.sinks.as_deref().unwrap_or_default(), Dtype::F32)),
            slots: rig.upload(&(0..case.sequences.len() as i32).collect::<Vec<i32>>()),
            table: rig.upload(table),
            unused: rig.poisoned(0, Dtype::F32),
        }
    }

    /// Arguments without outputs.
    fn args<'b>(
        &'b self,
        case: &Case,
        layout: PageLayout,
        [k, v]: [&'b Buffer; 2],
        stride: usize,
    ) -> AttentionDecodeArgs<'b> {
        // SAFETY: nothing is written to it: the tests put outputs in its place.
        let nowhere = unsafe { warploom::driver::ViewMut::from_raw(self.unused.view().address(), 0) };
        AttentionDecodeArgs {
            dtype: case.dtype,
            tokens: case.tokens(),
            sequences: case.sequences.len(),
            heads: case.heads,
            q: Rows { view: self.q.view(), stride: case.width() + case.gap },
            out: RowsMut { view: nowhere, stride: case.width() },
            lse: None,
            layout,
            k: k.view(),
            v: v.view(),
            table: PageTable { view: self.table.view(), sequences: case.sequences.len(), stride },
            slots: case.slots_first.then(|| self.slots.view()),
            lengths: self.lengths.view(),
            offsets: self.offsets.view(),
            positions: case.positions.then(|| self.positions.view()),
            max_rows: case.max_rows,
            max_keys: case.max_keys,
            mask: case.mask,
            documents: case.documents.then(|| self.documents.view()),
            tree: case.tree.then(|| self.tree.view()),
            scale: case.scale,
            softcap: case.softcap,
            sinks: case.sinks.is_some().then(|| self.sinks.view()),
        }
    }
}

fn kernel(rig: &Rig, parts: AttentionParts) -> AttentionDecode {
    let mut kernel = rig.kernels.attention_decode.clone();
    kernel.parts = parts;
    kernel
}

fn assert_same(a: &Run, b: &Run, what: &str) {
    let first = bits(&a.out).iter().zip(bits(&b.out)).position(|(a, b)| *a != b);
    assert_eq!(first, None, "{what}: first element of out that differs");
    assert!(bits(&a.lse) == bits(&b.lse), "{what}: lse differs");
}

const PATTERNS: [fn(usize) -> Pattern; 7] = [
    |_| Pattern::Causal,
    |keys| Pattern::Window { keys },
    |keys| Pattern::Chunk { keys },
    |keys| Pattern::Overlap { keys },
    |keys| Pattern::Blockwise { keys: 2 * keys },
    |keys| Pattern::Block { keys },
    |_| Pattern::Full,
];

/// Every pattern, at every distance from the edges of windows, chunks, tiles and splits, with and without a prefix.
#[test]
fn masks_at_every_edge() {
    let mut random = Random::new("attention masks");
    let rig = rig();
    for pattern in PATTERNS {
        for (width, prefix) in [(1, 0), (16, 1), (16, 127), (33, 20), (130, 5)] {
            let mask = Mask { pattern: pattern(width), prefix };
            let mut case = Case::new(&mut random, Dtype::Bf16, 3, 1, 8, mask);
            for near in [width, 2 * width, 16, 128] {
                for keys in near.saturating_sub(1)..=near + 1 {
                    case.add(&mut random, keys, 1 + keys % 3);
                }
            }
            let keys = random.range(260, 280);
            // The second begins at the first position, global tokens among its rows.
            case.add(&mut random, keys, 5).add(&mut random, 61, 61);
            case.check_parts(&rig);
        }
    }
}

/// Rows, heads, widths, pages, masks, and everything optional, drawn at random.
#[test]
fn any_shape() {
    let mut random = Random::new("attention shapes");
    let rigs = rigs();
    let dims = [8, 40, 64, 72, 80, 96, 112, 128, 136, 192, 256];
    let groups = [(1, 1), (3, 1), (4, 2), (5, 1), (8, 1), (16, 1), (6, 2), (4, 4)];
    for i in 0..33 {
        let dtype = [Dtype::Bf16, Dtype::F16][i % 2];
        let (heads, kv_heads) = random.pick(&groups);
        let pattern = random.one_of(&PATTERNS)(random.range(1, 200));
        let mask = Mask { pattern, prefix: random.pick(&[0, 0, 1, 9, 70]) };
        let mut case = Case::new(&mut random, dtype, heads, kv_heads, dims[i % dims.len()], mask);
        let most_rows = [1, 4, 8, 16, 64][i % 5];
        for _ in 0..random.range(1, 4) {
            let keys = random.range(0, 330);
            let rows = random.range(0, most_rows);
            case.add(&mut random, keys, rows);
        }
        case.page_size = random.pick(&[8, 16, 24, 64, 336]);
        case.slots_first = random.pick(&[true, false]);
        case.gap = random.pick(&[0, 8, 24]);
        case.max_keys += random.pick(&[0, 0, 1, 300]);
        case.max_rows = (case.max_rows + random.pick(&[0, 0, 5])).min(64);
        case.softcap = random.pick(&[0.0, 0.0, 2.0, 50.0]);
        case.scale *= random.pick(&[1.0, 1.0, 0.3, -1.0]);
        case.sinks = random.pick(&[true, false]).then(|| random.normals(heads, 1.0, Dtype::F32));
        case.positions = random.pick(&[true, false]);
        case.documents = random.pick(&[true, false]);
        for s in &mut case.sequences {
            for row in &mut s.rows {
                if case.positions && random.range(0, 5) == 0 {
                    row.position = -1 - random.range(0, 3) as i32;
                }
                let any = random.range(0, s.keys.max(1)) as i32;
                row.document = random.pick(&[0, 0, -7, any]);
            }
        }
        case.check_parts(random.one_of(&rigs));
    }
}

/// Under every delivery of copies and order of warps: the shapes of warps that share tiles, and of columns that merge
/// in turn.
#[test]
fn any_order_of_events() {
    let mut random = Random::new("attention events");
    for rig in rigs() {
        for (rows, head_dim) in [(1, 64), (3, 128), (5, 256), (8, 64)] {
            let mask = Mask { pattern: Pattern::Window { keys: 400 }, prefix: 3 };
            let mut case = Case::new(&mut random, Dtype::F16, 8, 1, head_dim, mask);
            case.add(&mut random, 300, 1).add(&mut random, 700, rows);
            case.check_parts(&rig);
        }
    }
}

/// A row has the same bits alone and in company, over splits and segments, though later keys have then been written.
#[test]
fn a_verified_row_is_the_decoded_row() {
    let mut random = Random::new("attention exact");
    let rig = rig();
    let masks = ["full", "window:100+sinks:4", "chunk:131", "overlap:70", "window:2100"];
    for (i, text) in masks.into_iter().enumerate() {
        let mut case =
            Case::new(&mut random, [Dtype::Bf16, Dtype::F16][i % 2], 2, 1, 64, text.parse().unwrap());
        case.add(&mut random, 4100, 9).add(&mut random, 130, 2 + i).add(&mut random, 0, 0);
        case.parts = AttentionParts::Segments;
        let whole = case.check(&rig);
        for (sequence, row, token) in [(0, 0, 0), (0, 3, 3), (0, 4, 4), (0, 8, 8), (1, 0, 9), (1, 1, 10)] {
            let mut alone = case.alone(sequence, row);
            for parts in [AttentionParts::Splits, AttentionParts::Segments] {
                alone.parts = parts;
                alone.page_size = [8, 64, 16][token % 3];
                alone.shuffle += 1;
                let run = alone.run(&rig);
                let (out, lse) = case.row(&whole, token);
                let what = format!("{text}: row {row} of sequence {sequence}, alone by {parts:?}");
                assert!(bits(&run.out) == bits(out) && bits(&run.lse) == bits(lse), "{what}");
            }
        }
    }
}

/// More segments than the combine step has warps, those of the last row at the end of the scratch; and contexts of 32k
/// and 128k.
#[test]
fn long_contexts() {
    let mut random = Random::new("attention long");
    let rig = rigs().pop().unwrap();
    let mut case = Case::new(&mut random, Dtype::F16, 2, 1, 8, Mask::CAUSAL);
    case.add(&mut random, 2049, 1).add(&mut random, 9 * 2048 + 100, 1);
    case.check_parts(&rig);
    for (mask, keys) in [("full", 1 << 15), ("window:300+sinks:4", 1 << 17), ("chunk:2048", (1 << 17) - 1)] {
        let mut case = Case::new(&mut random, Dtype::Bf16, 1, 1, 8, mask.parse().unwrap());
        case.page_size = 64;
        case.add(&mut random, keys, 2);
        case.check_parts(&rig);
    }
}

/// Pages of any size, in either layout, and one page per sequence.
#[test]
fn pages_do_not_matter() {
    let mut random = Random::new("attention pages");
    let rig = rig();
    let mut case = Case::new(&mut random, Dtype::Bf16, 4, 2, 64, "window:150+sinks:9".parse().unwrap());
    case.add(&mut random, 300, 3).add(&mut random, 77, 1);
    let first = case.check(&rig);
    for page_size in [8, 16, 24, 64, 128, 304] {
        for slots_first in [true, false] {
            let other = Case { page_size, slots_first, shuffle: case.shuffle + 1, ..case.clone() };
            assert_same(&first, &other.run(&rig), "pages");
        }
    }
}

#[test]
fn again_and_again() {
    let mut random = Random::new("attention again");
    let rig = rigs().pop().unwrap();
    let mut case = Case::new(&mut random, Dtype::F16, 4, 1, 8, Mask::CAUSAL);
    case.add(&mut random, 140, 5);
    let first = case.run(&rig);
    for i in 0..100 {
        case.parts = if i % 2 == 0 { AttentionParts::Splits } else { AttentionParts::Segments };
        assert_same(&first, &case.run(&rig), "repeats");
    }
}

/// Trees of drafts: every row sees its ancestors among the last keys.
#[test]
fn trees() {
    let mut random = Random::new("attention trees");
    let rig = rig();
    let sizes = [(5, 5), (63, 9), (64, 64), (65, 30), (150, 64), (150, 12), (191, 12), (192, 12), (193, 20)];
    for (i, (keys, rows)) in (0..).zip(sizes.into_iter().flat_map(|size| [size; 2])) {
        let mask: Mask = ["full", "window:40"][i % 2].parse().unwrap();
        let prefix = random.pick(&[0, 0, 3]);
        let mut case = Case::new(&mut random, Dtype::Bf16, 2, 1, 8, Mask { prefix, ..mask });
        case.add(&mut random, keys, rows).add(&mut random, 20, 3);
        case.tree = true;
        for s in &mut case.sequences {
            let first = s.keys - s.rows.len();
            let bit = |key: usize| (key + 64).checked_sub(s.keys).map_or(0, |bit| 1u64 << bit);
            // Of the prompt's keys, too, some are hidden, the first that has a bit among them.
            let prompt = (0..first).filter(|_| random.range(0, 3) > 0).map(bit).sum::<u64>() & !1;
            for i in 0..s.rows.len() {
                let above = match i {
                    0 => prompt,
                    _ => s.rows[random.range(0, i - 1)].tree,
                };
                s.rows[i].tree = above | bit(first + i);
            }
        }
        case.check_parts(&rig);
    }
}

/// Rows of one sequence that are far apart: CTAs take more parts than the window alone would fill.
#[test]
fn positions_far_apart() {
    let mut random = Random::new("attention apart");
    let rig = rig();
    let mut case = Case::new(&mut random, Dtype::Bf16, 1, 1, 8, "window:40".parse().unwrap());
    case.add(&mut random, 2900, 3);
    case.positions = true;
    (case.sequences[0].rows[0].position, case.sequences[0].rows[1].position) = (7, 2050);
    case.check_parts(&rig);
    // Beyond the last key, and where the sum with a window would not fit.
    (case.sequences[0].rows[0].position, case.sequences[0].rows[1].position) = (2905, i32::MAX);
    for mask in ["window:40", "window:40+sinks:4", "full"] {
        case.mask = mask.parse().unwrap();
        case.check_parts(&rig);
    }
}

/// A sum that underflows to −0, and a part that the row does not see after it: +0 with and without.
#[test]
fn a_zero_has_one_sign() {
    let mut random = Random::new("attention zero");
    let rig = rig();
    let mut case = Case::new(&mut random, Dtype::Bf16, 1, 1, 8, Mask::CAUSAL);
    case.add(&mut random, 257, 2);
    case.scale = 1.0;
    let s = &mut case.sequences[0];
    s.rows.iter_mut().for_each(|row| row.q = vec![1.0; 8]);
    // Weights of the second split are near 2^-120, its values -2^-40.
    s.k = (0..257 * 8).map(|i| if i < 128 * 8 { 10.375 } else { 0.0 }).collect();
    s.v = (0..257 * 8).map(|i| if i < 128 * 8 { 0.0 } else { -(2f64.powi(-40)) }).collect();
    for parts in [AttentionParts::Splits, AttentionParts::Segments] {
        case.parts = parts;
        let (run, alone) = (case.run(&rig), case.alone(0, 0).run(&rig));
        assert!(bits(&alone.out).iter().all(|bits| *bits == 0));
        assert_eq!(bits(&run.out[..8]), bits(&alone.out));
    }
}

/// Rows that see nothing, alive and dead, all of a CTA: where there is one part, and where there are several.
#[test]
fn rows_that_see_nothing() {
    let mut random = Random::new("attention nothing");
    let rig = rig();
    let bidirectional = Mask { pattern: Pattern::Full, prefix: 9 };
    let window = Mask { pattern: Pattern::Window { keys: 3 }, prefix: 0 };
    for (head_dim, max_keys, mask) in
        [(64, 64, Mask::CAUSAL), (256, 64, Mask::CAUSAL), (64, 64, bidirectional), (64, 3000, window)]
    {
        let mut case = Case::new(&mut random, Dtype::Bf16, 4, 1, head_dim, mask);
        case.add(&mut random, 20, 3).add(&mut random, 30, 2).add(&mut random, 25, 2);
        (case.max_keys, case.documents, case.positions) = (max_keys, true, true);
        case.sinks = Some(vec![0.5; 4]);
        case.sequences[0].rows.iter_mut().for_each(|row| row.document = 20);
        case.sequences[1].rows.iter_mut().for_each(|row| row.position = -3);
        case.check_parts(&rig);
    }
}

/// A row that sees a key without a page is NaN; others are as they were.
#[test]
fn missing_pages() {
    let mut random = Random::new("attention missing");
    let rig = rig();
    let mut case = Case::new(&mut random, Dtype::Bf16, 2, 1, 64, "window:20".parse().unwrap());
    case.add(&mut random, 300, 60);
    for parts in [AttentionParts::Splits, AttentionParts::Segments] {
        case.parts = parts;
        let right = case.run(&rig);
        let check = |first: usize, last: usize, change: &dyn Fn(&mut Vec<i32>)| {
            let run = case.run_with(&rig, change);
            for row in 0..60 {
                let (out, lse) = case.row(&run, row);
                let position = 240 + row;
                if position >= 16 * first && position - 19 <= 16 * last + 15 {
                    assert!(
                        out.iter().chain(lse).all(|x| x.is_nan()),
                        "row {row} sees page {first} or {last}"
                    );
                } else {
                    assert_eq!((out, lse), case.row(&right, row), "row {row} sees neither");
                }
            }
        };
        for (page, id) in [(16, -1), (17, i32::MAX), (18, 1 << 20)] {
            check(page, page, &|table| table[page] = id);
        }
        check(17, 18, &|table| table.truncate(17));
    }

    // In a split that needs no mask.
    let mut case = Case::new(&mut random, Dtype::Bf16, 2, 1, 64, Mask::CAUSAL);
    case.add(&mut random, 300, 2);
    for parts in [AttentionParts::Splits, AttentionParts::Segments] {
        case.parts = parts;
        let run = case.run_with(&rig, |table| table[3] = -1);
        assert!(run.out.iter().chain(&run.lse).all(|x| x.is_nan()));
    }
}

/// Sequences whose numbers are out of range are left alone, and others are not disturbed.
#[test]
fn numbers_out_of_range() {
    let mut random = Random::new("attention range");
    let rig = rig();
    let mut case = Case::new(&mut random, Dtype::Bf16, 2, 1, 8, Mask::CAUSAL);
    case.add(&mut random, 30, 2).add(&mut random, 140, 2).add(&mut random, 9, 2);
    let stride = case.max_keys.div_ceil(16) + 1;
    let (table, pages) = case.table(stride);
    let layout = case.layout(pages);
    let caches = case.caches(&layout, &table, stride).map(|x| rig.upload(&encode(&x, case.dtype)));
    let memory = Memory::of(&case, &rig, &table);
    for parts in [AttentionParts::Splits, AttentionParts::Segments] {
        case.parts = parts;
        let right = case.run(&rig);
        let kernel = kernel(&rig, parts);
        let launch = |lengths: [i32; 3], offsets: [i32; 4], slots: [i32; 3], whole: &[usize]| {
            let (lengths, offsets, slots) = (rig.upload(&lengths), rig.upload(&offsets), rig.upload(&slots));
            let mut out = rig.poisoned(6 * 16, case.dtype);
            let args = AttentionDecodeArgs {
                out: RowsMut { view: out.view_mut(), stride: 16 },
                lengths: lengths.view(),
                offsets: offsets.view(),
                slots: Some(slots.view()),
                ..memory.args(&case, layout, [&caches[0], &caches[1]], stride)
            };
            let mut scratch = rig.poisoned(kernel.scratch_bytes(&args).div_ceil(4), Dtype::F32);
            rig.reports(|| kernel.launch(&rig.stream, &args, scratch.view_mut()));
            let out = rig.download(&out, case.dtype);
            for row in 0..6 {
                let got = &out[16 * row..][..16];
                if whole.contains(&(row / 2)) {
                    assert_eq!(got, case.row(&right, row).0, "row {row}");
                } else {
                    assert!(got.iter().all(|x| x.is_nan()), "row {row} of {lengths:?} {offsets:?} {slots:?}");
                }
            }
        };
        let (lengths, offsets, slots) = ([30, 140, 9], [0, 2, 4, 6], [0, 1, 2]);
        launch(lengths, offsets, slots, &[0, 1, 2]);
        launch([-1, 140, 9], offsets, slots, &[1, 2]);
        launch([30, 141, i32::MAX], offsets, slots, &[0]);
        launch(lengths, [0, 2, 4, 7], slots, &[0, 1]);
        launch(lengths, [0, 2, 5, 7], slots, &[0]);
        launch(lengths, [0, 3, 3, 6], slots, &[]);
        launch(lengths, [-1, 2, 4, 6], slots, &[1, 2]);
        launch(lengths, [-1, 1, 4, 6], slots, &[2]);
        launch(lengths, [0, 2, i32::MIN, 6], slots, &[0]);
        launch(lengths, [2, 0, -2, 6], slots, &[]);
        launch(lengths, offsets, [0, -1, 2], &[0, 2]);
        launch(lengths, offsets, [0, 1, 3], &[0, 1]);
    }
}

/// Row 1 of q and page 1 begin beyond 2^31 elements; row 0, which is dead, and page 0, which is not used, would lie in
/// memory that there is not.
#[test]
fn rows_and_pages_beyond_31_bits() {
    let mut random = Random::new("attention far");
    let rig = rig();
    let stride = (1usize << 31) + 8;
    let mut case = Case::new(&mut random, Dtype::F16, 2, 1, 64, Mask::CAUSAL);
    (case.page_size, case.positions) = (304, true);
    case.add(&mut random, 300, 2);
    case.sequences[0].rows[0].position = -1;
    for parts in [AttentionParts::Splits, AttentionParts::Segments] {
        case.parts = parts;
        let want = case.run(&rig);
        let near = case.layout(1);
        let caches = case.caches(&near, &[0], 1).map(|x| rig.upload(&encode(&x, case.dtype)));
        let memory = Memory::of(&case, &rig, &[1]);
        let q = rig.upload(&encode(&case.sequences[0].rows[1].q, case.dtype));
        // SAFETY: the kernel touches row 1 and page 1 alone, which are all of the buffers.
        let far = |x: &Buffer| unsafe {
            View::from_raw(x.view().address() - 2 * stride as u64, 2 * stride + x.bytes())
        };
        let mut out = rig.poisoned(2 * case.width(), case.dtype);
        let args = AttentionDecodeArgs {
            q: Rows { view: far(&q), stride },
            out: RowsMut { view: out.view_mut(), stride: case.width() },
            k: far(&caches[0]),
            v: far(&caches[1]),
            ..memory.args(
                &case,
                PageLayout { pages: 2, page_stride: stride, ..near },
                [&caches[0], &caches[1]],
                1,
            )
        };
        let kernel = kernel(&rig, parts);
        let mut scratch = rig.poisoned(kernel.scratch_bytes(&args).div_ceil(4), Dtype::F32);
        rig.reports(|| kernel.launch(&rig.stream, &args, scratch.view_mut()));
        assert_eq!(bits(&rig.download(&out, case.dtype)), bits(&want.out), "{parts:?}");
    }
}

/// The largest factors and sinks that are taken, and the smallest cap.
#[test]
fn numbers_at_the_ends_of_their_ranges() {
    let mut random = Random::new("attention ends");
    let rig = rig();
    for (scale, softcap, sink) in
        [(1e30, 0.0, 0.0), (-1e30, 1e-6, 0.0), (1.0, 1e30, 1.0), (1.0, 0.0, 2e38), (0.0, 1e-6, -2e38)]
    {
        let mut case = Case::new(&mut random, Dtype::Bf16, 2, 1, 8, Mask::CAUSAL);
        (case.scale, case.softcap, case.sinks) = (scale, softcap, Some(vec![sink; 2]));
        case.add(&mut random, 150, 2);
        for parts in [AttentionParts::Splits, AttentionParts::Segments] {
            case.parts = parts;
            let run = case.run(&rig);
            let finite = run.out.iter().chain(&run.lse).all(|x| x.is_finite());
            assert!(finite, "scale {scale}, softcap {softcap}, sinks {sink}: {run:?}");
        }
    }
}

/// Llama 3 8B's heads. K and V are read once, whatever the rows; a window's bytes do not grow with its context.
#[test]
fn every_byte_moves_once() {
    let mut random = Random::new("attention bytes");
    let rig = rig();
    let mut case = Case::new(&mut random, Dtype::Bf16, 32, 8, 128, Mask::CAUSAL);
    case.page_size = 64;
    for rows in [1, 8, 16] {
        case.sequences.clear();
        case.add(&mut random, 300, rows);
        for parts in [AttentionParts::Splits, AttentionParts::Segments] {
            case.parts = parts;
            let run = case.run(&rig);
            let Some(counters) = run.counters.first() else { return };
            // Each CTA reads its rows: three splits or one segment of them.
            let ctas = if parts == AttentionParts::Splits { 3 } else { 1 };
            let (kv, q) = (300 * 8 * 128 * 2 * 2, ctas * rows as u64 * 32 * 128 * 2);
            assert_eq!(counters.copy.bytes, kv + q, "K, V and q");
            assert_eq!(counters.copy.sectors * 32, counters.copy.bytes, "coalesced");
            let matrix = &counters.matrix;
            assert_eq!(matrix.wavefronts, matrix.ideal, "no bank conflicts of ldmatrix");
            let shared = [&counters.shared_load, &counters.shared_store];
            assert!(shared.iter().all(|s| s.wavefronts == s.ideal), "no bank conflicts");
            let part = if parts == AttentionParts::Splits { 3 * (128 * 4 + 8) } else { 128 * 2 };
            let lse = if parts == AttentionParts::Splits { 0 } else { 4 };
            assert_eq!(counters.global_store.bytes, rows as u64 * 32 * (part + lse), "parts or output");
            let besides = counters.global_load.sectors * 32;
            assert!(besides < (kv + q) / 50, "{besides} bytes of numbers and page tables");
            assert_eq!(run.counters.len(), if parts == AttentionParts::Splits { 2 } else { 1 });
            for combine in &run.counters[1..] {
                assert_eq!(combine.global_store.bytes, rows as u64 * 32 * (128 * 2 + 4), "output");
                let parts = rows as u64 * 32 * 3 * (128 * 4 + 8);
                let read = combine.global_load.sectors * 32;
                assert!((parts..parts * 5 / 4).contains(&read), "{read} bytes read for parts of {parts}");
            }
        }
    }

    // Nothing of a dead row is read.
    case.sequences.clear();
    case.add(&mut random, 100, 4);
    case.positions = true;
    (case.sequences[0].rows[0].position, case.sequences[0].rows[3].position) = (-1, -1);
    case.parts = AttentionParts::Segments;
    assert_eq!(case.run(&rig).counters[0].copy.bytes, 99 * 8 * 128 * 2 * 2 + 2 * 32 * 128 * 2);

    // 301 keys of two rows and a prefix of 4, and q for each of four CTAs, the prefix's among them.
    let mut bytes = |keys: usize| {
        let mut case = Case::new(&mut random, Dtype::Bf16, 4, 1, 8, "window:300+sinks:4".parse().unwrap());
        (case.page_size, case.parts) = (64, AttentionParts::Splits);
        case.add(&mut random, keys, 2);
        case.run(&rig).counters[0].clone()
    };
    let (short, long) = (bytes(128 * 9), bytes(128 * 900));
    assert_eq!(short.copy.bytes, (301 + 4) * 8 * 2 * 2 + 4 * 2 * 4 * 8 * 2);
    assert_eq!(short.copy, long.copy);
    assert_eq!((short.ctas, short.instructions), (long.ctas, long.instructions));

    // Nor does a segment's work grow with the splits that nobody sees before the window, or after it.
    let mut instructions = |keys: usize| {
        let mut case = Case::new(&mut random, Dtype::Bf16, 4, 1, 8, "window:100".parse().unwrap());
        (case.max_keys, case.parts) = (2048, AttentionParts::Segments);
        case.add(&mut random, keys, 2).run(&rig).counters[0].instructions
    };
    assert_eq!(instructions(128 * 3), instructions(128 * 13));

    // Splits are masked where rows do not see all of them, and not where there are no rows.
    let mut instructions = |heads: usize, mask: &str| {
        let mut case = Case::new(&mut random, Dtype::Bf16, heads, 1, 64, mask.parse().unwrap());
        case.parts = AttentionParts::Splits;
        case.add(&mut random, 512, 1).run(&rig).counters[0].instructions
    };
    assert!(instructions(15, "full") <= instructions(16, "full"));
    assert!(instructions(16, "window:128") < instructions(16, "window:127"));
    assert!(instructions(16, "window:128+sinks:256") < instructions(16, "window:128+sinks:250"));
}

/// With work for every multiprocessor, parts are at most 5 % of K and V for up to 64 packed rows; and none for one
/// segment.
#[test]
fn parts_are_few() {
    let mut random = Random::new("attention parts");
    let rig = rig();
    let case = Case::new(&mut random, Dtype::Bf16, 32, 8, 128, Mask::CAUSAL);
    let (memory, nothing) = (Memory::of(&case, &rig, &[]), rig.poisoned(0, case.dtype));
    let sequences = (rig.driver.properties().multiprocessors as usize).div_ceil(8);
    for rows in [1, 4, 8, 16] {
        for keys in [100, 2048, 4096, 5000, 100_000] {
            let args = AttentionDecodeArgs {
                sequences,
                tokens: sequences * rows,
                max_rows: rows,
                max_keys: keys,
                ..memory.args(&case, case.layout(1), [&nothing, &nothing], 1)
            };
            let bytes = rig.kernels.attention_decode.scratch_bytes(&args);
            let kv = sequences * keys * 8 * 128 * 2 * 2;
            assert!(
                bytes <= if keys <= 2048 { 0 } else { kv / 20 },
                "{bytes} for {rows} rows and {keys} keys: {kv}"
            );
        }
    }
}

/// What is set aside for the largest launch is enough for every smaller one.
#[test]
fn the_most_scratch() {
    let mut random = Random::new("attention most scratch");
    let rig = rig();
    let mut attention = rig.kernels.attention_decode.clone();
    for parts in [AttentionParts::Auto, AttentionParts::Splits, AttentionParts::Segments] {
        attention.parts = parts;
        for (heads, kv_heads) in [(32, 8), (6, 1), (300, 300)] {
            let mask = random.pick(&["full", "window:40", "chunk:3000"]).parse().unwrap();
            let case = Case::new(&mut random, Dtype::Bf16, heads, kv_heads, 64, mask);
            let (memory, nothing) = (Memory::of(&case, &rig, &[]), rig.poisoned(0, case.dtype));
            for (most_sequences, most_rows, max_keys) in
                [(1, 1, 1000), (40, 9, 10_000), (200, 2, 129), (3, 64, 128)]
            {
                let most =
                    attention.most_scratch(most_sequences, most_rows, heads, &case.layout(1), max_keys);
                let needed = (1..=most_sequences).flat_map(|sequences| {
                    let of = |max_rows| AttentionDecodeArgs {
                        sequences,
                        tokens: sequences * max_rows,
                        max_rows,
                        max_keys,
                        ..memory.args(&case, case.layout(1), [&nothing, &nothing], 1)
                    };
                    [1, most_rows].map(|rows| attention.scratch_bytes(&of(rows)))
                });
                let needed = needed.max().unwrap();
                assert!(
                    needed <= most,
                    "{needed} of {most}: {most_sequences} × {most_rows}, {max_keys} keys"
                );
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut random = Random::new("attention refusals");
    let rig = rig();
    let mut case = Case::new(&mut random, Dtype::Bf16, 4, 2, 16, Mask::CAUSAL);
    case.add(&mut random, 20, 2).add(&mut random, 300, 1);
    let (table, pages) = case.table(20);
    let layout = case.layout(pages);
    let caches = case.caches(&layout, &table, 20).map(|x| rig.upload(&encode(&x, case.dtype)));
    let memory = Memory::of(&case, &rig, &table);
    let mut out = rig.poisoned(3 * 64, case.dtype);
    let mut scratch = rig.poisoned(3 * 4 * 3 * 18, Dtype::F32);
    let kernel = kernel(&rig, AttentionParts::Auto);
    let mut refused = |change: &dyn Fn(&mut AttentionDecodeArgs), wanted: &str| {
        let mut args = AttentionDecodeArgs {
            out: RowsMut { view: out.view_mut(), stride: 64 },
            ..memory.args(&case, layout, [&caches[0], &caches[1]], 20)
        };
        change(&mut args);
        let launched = kernel.launch(&rig.stream, &args, scratch.view_mut());
        match launched {
            Ok(()) => assert_eq!(wanted, ""),
            Err(error) => {
                let error = error.to_string();
                assert!(!wanted.is_empty() && error.contains(wanted), "{error}, not {wanted}");
            }
        }
    };
    refused(&|_| (), "");
    refused(&|a| a.sequences = 0, "");
    refused(&|a| a.dtype = Dtype::F32, "dtype: f32");
    refused(&|a| a.tokens = 4, "q: ");
    refused(&|a| a.tokens = usize::MAX, "tokens: ");
    refused(&|a| a.sequences = 3, "table: 2 rows for 3 sequences");
    refused(&|a| a.sequences = 65536, "sequences: 65536");
    refused(&|a| a.max_rows = 0, "max_rows: 0");
    refused(&|a| a.max_rows = 65, "max_rows: 65; supported are 1 to 64");
    refused(&|a| a.max_keys = 0, "max_keys: 0");
    refused(&|a| a.max_keys = 1 << 29, "max_keys: ");
    refused(&|a| a.max_keys = 1000, "scratch: ");
    refused(&|a| a.heads = 3, "heads: 3; supported are multiples of kv_heads, 2");
    refused(&|a| a.heads = 0, "heads: 0");
    refused(&|a| a.layout.kv_heads = 0, "kv_heads: 0");
    refused(&|a| a.layout.head_dim = 12, "head_dim: 12; supported are multiples of 8");
    refused(&|a| a.layout.head_dim = 264, "head_dim: 264");
    refused(&|a| a.layout.page_size = 12, "page_size: 12");
    refused(&|a| a.layout.slot_stride = 20, "slot_stride: 20; supported are multiples of 8");
    refused(&|a| a.layout.pages += 1, "k: ");
    // A page of 312 positions, of which 304 are there.
    fn cut(args: &mut AttentionDecodeArgs, max_keys: usize) {
        (args.layout, args.max_keys) = (PageLayout::slots_first(1, 312, 2, 16), max_keys);
        let bytes = 304 * 2 * 16 * 2;
        (args.k, args.v) = (args.k.slice(0..bytes), args.v.slice(0..bytes));
    }
    refused(&|a| cut(a, 304), "");
    refused(&|a| cut(a, 305), "k: ");
    refused(&|a| a.v = a.v.slice(0..a.v.bytes() - 2), "v: ");
    refused(&|a| a.k = a.k.slice(2..a.k.bytes()), "k: address");
    refused(&|a| a.q.stride = 68, "q.stride: 68; supported are multiples of 8");
    refused(&|a| a.out.stride = 56, "out: rows 56 elements apart overlap");
    refused(&|a| a.q.view = a.q.view.slice(0..64), "q: 64 bytes do not hold");
    refused(&|a| a.lengths = a.lengths.slice(0..4), "lengths: ");
    refused(&|a| a.offsets = a.offsets.slice(0..8), "offsets: ");
    refused(&|a| a.slots = Some(a.lengths.slice(0..4)), "slots: ");
    refused(&|a| a.positions = Some(a.lengths.slice(0..4)), "positions: ");
    refused(&|a| a.documents = Some(a.lengths.slice(0..4)), "documents: ");
    refused(&|a| a.tree = Some(a.lengths), "tree: ");
    refused(&|a| a.sinks = Some(a.lengths), "sinks: ");
    refused(&|a| a.mask = Mask { pattern: Pattern::Window { keys: 0 }, prefix: 0 }, "mask.keys: 0");
    refused(
        &|a| a.mask = Mask { pattern: Pattern::Blockwise { keys: 3 }, prefix: 0 },
        "mask.keys: 3; supported are even",
    );
    refused(&|a| a.mask = Mask { pattern: Pattern::Window { keys: usize::MAX }, prefix: usize::MAX }, "");
    refused(&|a| a.scale = f32::NAN, "scale: NaN; supported are -1e30 to 1e30");
    refused(&|a| a.scale = 3e38, "scale: 3");
    refused(&|a| a.scale = -3e38, "scale: -3");
    refused(&|a| a.softcap = -1.0, "softcap: -1; supported are 0 and 1e-6 to 1e30");
    refused(&|a| a.softcap = f32::NAN, "softcap: NaN");
    refused(&|a| a.softcap = 3e38, "softcap: 3");
    refused(&|a| a.softcap = 1e-30, "softcap: 0.0");
    let layout = PageLayout { head_dim: usize::MAX, ..layout };
    assert_eq!(rig.kernels.attention_decode.most_scratch(1, 1, 1, &layout, 1000), usize::MAX);
}
