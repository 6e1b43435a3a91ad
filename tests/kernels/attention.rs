//! What the tests of attention share: cases in memory, with NaN wherever nothing is read, and their definition in f64.

use ptxsim::Counters;
use warploom::{
    driver::{Buffer, View, ViewMut},
    kernels::{Dtype, PageLayout, PageTable, Rows, RowsMut},
    mask::{Mask, Pattern, Visible},
};

use super::harness::{Random, Rig, assert_as_exact_as_naive, bits, encode, round};

/// One launch: everything that is in memory.
#[derive(Clone, Debug)]
pub struct Case {
    pub dtype: Dtype,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub mask: Mask,
    pub scale: f32,
    pub softcap: f32,
    pub sinks: Option<Vec<f64>>,
    pub sequences: Vec<Sequence>,
    /// Positions are given, though they may be those of the last rows.
    pub positions: bool,
    pub documents: bool,
    pub tree: bool,
    pub page_size: usize,
    pub slots_first: bool,
    /// Sequences have other rows of the page table than their own numbers.
    pub slots: bool,
    /// Elements between the rows of q, and of out.
    pub gap: usize,
    pub max_rows: usize,
    pub max_keys: usize,
    /// Where pages lie.
    pub shuffle: u64,
}

#[derive(Clone, Debug)]
pub struct Sequence {
    pub rows: Vec<Row>,
    /// `[keys][kv_heads][head_dim]`.
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub keys: usize,
}

#[derive(Clone, Debug)]
pub struct Row {
    pub position: i32,
    pub document: i32,
    pub tree: u64,
    /// `[heads][head_dim]`.
    pub q: Vec<f64>,
}

/// What a launch gave.
pub struct Run {
    /// `[tokens][heads][head_dim]`.
    pub out: Vec<f64>,
    /// `[tokens][heads]`.
    pub lse: Vec<f64>,
    /// Of each kernel; none on a GPU.
    pub counters: Vec<Counters>,
}

impl Case {
    pub fn new(
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
            slots: false,
            gap: 0,
            max_rows: 1,
            max_keys: 1,
            shuffle: random.range(0, 1 << 20) as u64,
        }
    }

    /// Adds a sequence of so many keys, the last of them those of its rows.
    pub fn add(&mut self, random: &mut Random, keys: usize, rows: usize) -> &mut Case {
        let kv = keys * self.kv_heads * self.head_dim;
        let spread = random.pick(&[1.0, 1.0, 3.0]);
        let rows = (0..rows).map(|i| Row {
            position: (keys + i) as i32 - rows as i32,
            document: 0,
            tree: u64::MAX,
            q: random.normals(self.heads * self.head_dim, spread, self.dtype),
        });
        let rows: Vec<Row> = rows.collect();
        let (k, v) = (random.normals(kv, 1.0, self.dtype), random.normals(kv, 1.0, self.dtype));
        self.push(Sequence { rows, k, v, keys })
    }

    /// Adds a sequence.
    pub fn push(&mut self, sequence: Sequence) -> &mut Case {
        self.max_rows = self.max_rows.max(sequence.rows.len());
        self.max_keys = self.max_keys.max(sequence.keys);
        self.sequences.push(sequence);
        self
    }

    /// The same without sequences.
    pub fn empty(&self) -> Case {
        Case { sequences: vec![], max_rows: 1, max_keys: 1, ..self.clone() }
    }

    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(|s| s.rows.len()).sum()
    }

    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// What a row sees, but for its tree.
    pub fn visible(&self, s: &Sequence, row: &Row) -> Visible {
        if row.position < 0 {
            return Visible::default();
        }
        let document = if self.documents { row.document.max(0) as usize } else { 0 };
        self.mask.visible(row.position as usize, s.keys, document)
    }

    fn sees(&self, s: &Sequence, row: &Row, key: usize) -> bool {
        let bit = (key + 64).checked_sub(s.keys);
        !self.tree || bit.is_none_or(|bit| row.tree >> bit & 1 == 1)
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

    pub fn layout(&self, pages: usize) -> PageLayout {
        let layout = if self.slots_first { PageLayout::slots_first } else { PageLayout::heads_first };
        layout(pages, self.page_size, self.kv_heads, self.head_dim)
    }

    /// Page ids of every sequence, `stride` each, and how many pages there are. Pages of which nothing need be held
    /// have ids that are out of range, or none.
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
                    random.pick(&[-1, i32::MAX, i32::MIN, 1 << 20, UNWRITTEN, UNWRITTEN])
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
    pub fn caches(&self, layout: &PageLayout, table: &[i32], stride: usize) -> [Vec<f64>; 2] {
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

    /// Runs `launch` on poisoned outputs. `change` has the page table before it, `stride` entries a sequence, and may
    /// shorten it.
    pub fn run_with(
        &self,
        rig: &Rig,
        change: impl FnOnce(&mut Vec<i32>),
        launch: impl FnOnce(&Memory, RowsMut, ViewMut) -> warploom::Result<()>,
    ) -> Run {
        let memory = Memory::of(self, rig, change);
        let (width, tokens) = (self.width() + self.gap, self.tokens());
        let mut out = rig.poisoned(tokens * width, self.dtype);
        let mut lse = rig.poisoned(tokens * self.heads, Dtype::F32);
        let reports =
            rig.reports(|| launch(&memory, RowsMut { view: out.view_mut(), stride: width }, lse.view_mut()));
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
        let seen = self.visible(s, row);
        let keys = (0..seen.prefix).chain(seen.lo..seen.hi).filter(|key| self.sees(s, row, *key));
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

    /// Output of a row and head with these scores, and its lse: every step rounded by `round`.
    fn attend(
        &self,
        s: &Sequence,
        scores: &[(usize, f64)],
        head: usize,
        round: impl Fn(f64) -> f64,
    ) -> (Vec<f64>, f64) {
        let d = self.head_dim;
        let kv_head = head / (self.heads / self.kv_heads);
        let scores: Vec<(usize, f64)> = scores.iter().map(|(key, score)| (*key, round(*score))).collect();
        let sink = self.sinks.as_ref().filter(|_| !scores.is_empty()).map(|sinks| sinks[head]);
        let largest = scores.iter().map(|s| s.1).chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s.1 - largest).exp()).collect();
        let sum = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - largest).exp());
        let mut out = vec![0.0; d];
        for ((key, _), weight) in scores.iter().zip(weights) {
            let weight = round(weight / sum);
            let v = &s.v[(key * self.kv_heads + kv_head) * d..][..d];
            out.iter_mut().zip(v).for_each(|(out, v)| *out += weight * v);
        }
        out.iter_mut().for_each(|x| *x = round(*x));
        (out, if scores.is_empty() { f64::NEG_INFINITY } else { largest + sum.ln() })
    }

    /// Asserts that `run` is as exact as it should be.
    pub fn check(&self, rig: &Rig, run: &Run) {
        let (mut want, mut naive, mut row_index) = (vec![], vec![], 0);
        for s in &self.sequences {
            for row in &s.rows {
                for head in 0..self.heads {
                    let scores = self.scores(s, row, head);
                    let (out, lse) = self.attend(s, &scores, head, |x| x);
                    want.extend(out);
                    naive.extend(self.attend(s, &scores, head, |x| round(x, self.dtype)).0);
                    let sink = self.sinks.as_ref().map_or(0.0, |sinks| sinks[head].abs());
                    let greatest = scores.iter().map(|s| s.1.abs()).fold(sink.max(1.0), f64::max);
                    let got = run.lse[row_index * self.heads + head];
                    assert!(
                        got == lse || (got - lse).abs() <= 1e-5 * greatest,
                        "{}: lse of row {row_index} head {head} is {got}, not {lse}: {self}",
                        rig.name
                    );
                    let d = self.head_dim;
                    let zero = lse == f64::NEG_INFINITY;
                    let of_head = &run.out[row_index * self.width() + head * d..][..d];
                    assert!(
                        !zero || of_head.iter().all(|x| x.to_bits() == 0),
                        "{}: an empty row is 0: {self}",
                        rig.name
                    );
                }
                row_index += 1;
            }
        }
        let factor = if self.softcap == 0.0 { 2.0 } else { 3.0 };
        let what = format!("{}: {self}", rig.name);
        assert_as_exact_as_naive(&what, &run.out, &want, &naive, factor, self.dtype);
    }

    /// One row alone: the sequence ends with it.
    pub fn alone(&self, sequence: usize, row: usize) -> Case {
        let s = &self.sequences[sequence];
        let row = s.rows[row].clone();
        let keys = if self.mask.is_causal() { row.position as usize + 1 } else { s.keys };
        let elements = keys * self.kv_heads * self.head_dim;
        let alone =
            Sequence { rows: vec![row], k: s.k[..elements].to_vec(), v: s.v[..elements].to_vec(), keys };
        Case { sequences: vec![alone], max_rows: 1, max_keys: keys, ..self.clone() }
    }

    /// A row of the packed ones: its output and lse.
    pub fn row<'r>(&self, run: &'r Run, row: usize) -> (&'r [f64], &'r [f64]) {
        (&run.out[row * self.width()..][..self.width()], &run.lse[row * self.heads..][..self.heads])
    }
}

/// All but the numbers.
impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let shapes: Vec<_> = self.sequences.iter().map(|s| (s.keys, s.rows.len())).collect();
        let Case { dtype, heads, kv_heads, head_dim, mask, softcap, page_size, .. } = self;
        write!(f, "{dtype:?} {heads}/{kv_heads} heads of {head_dim}, {mask}, softcap {softcap}, ")?;
        write!(f, "pages of {page_size}, (keys, rows) {shapes:?}")
    }
}

/// An entry of the page table that is not written at all: the simulator reports who reads it.
const UNWRITTEN: i32 = i32::MIN + 1;

/// Inputs in device memory.
pub struct Memory {
    pub q: Buffer,
    pub k: Buffer,
    pub v: Buffer,
    pub layout: PageLayout,
    pub lengths: Buffer,
    pub offsets: Buffer,
    pub positions: Buffer,
    pub documents: Buffer,
    pub sinks: Buffer,
    pub slots: Buffer,
    table: Buffer,
    table_rows: usize,
    table_stride: usize,
    q_stride: usize,
}

impl Memory {
    /// `change` sees the page table, before it is uploaded.
    pub fn of(case: &Case, rig: &Rig, change: impl FnOnce(&mut Vec<i32>)) -> Memory {
        let stride = case.max_keys.div_ceil(case.page_size) + 1;
        let (mut table, pages) = case.table(stride);
        let layout = case.layout(pages);
        let [k, v] = case.caches(&layout, &table, stride).map(|x| rig.upload(&encode(&x, case.dtype)));
        change(&mut table);
        let sequences = case.sequences.len();
        let table_stride = table.len() / sequences.max(1);
        let mut slots: Vec<i32> = (0..sequences as i32).collect();
        if case.slots {
            // From the last row back to the second: the first is nobody's.
            slots = (1..=sequences as i32).rev().collect();
            let rows = table.chunks(table_stride).rev();
            table = std::iter::repeat_n(-1, table_stride).chain(rows.flatten().copied()).collect();
        }
        let mut written = rig.poisoned(table.len(), Dtype::F32);
        let mut at = 0;
        for part in table.chunk_by(|a, b| (*a == UNWRITTEN) == (*b == UNWRITTEN)) {
            if part[0] != UNWRITTEN {
                let bytes = 4 * at..4 * (at + part.len());
                rig.stream.upload(&mut written.view_mut().part(bytes), part).expect("upload");
            }
            at += part.len();
        }
        let rows = || case.sequences.iter().flat_map(|s| &s.rows);
        let gap = vec![f64::NAN; case.gap];
        let q: Vec<f64> = rows().flat_map(|row| [&row.q[..], &gap].concat()).collect();
        let lengths: Vec<i32> = case.sequences.iter().map(|s| s.keys as i32).collect();
        let mut offsets = vec![0];
        case.sequences.iter().for_each(|s| offsets.push(offsets[offsets.len() - 1] + s.rows.len() as i32));
        let column = |f: &dyn Fn(&Row) -> i32| rig.upload(&rows().map(f).collect::<Vec<i32>>());
        Memory {
            q: rig.upload(&encode(&q, case.dtype)),
            k,
            v,
            layout,
            lengths: rig.upload(&lengths),
            offsets: rig.upload(&offsets),
            positions: column(&|row| row.position),
            documents: column(&|row| row.document),
            sinks: rig.upload(&encode(case.sinks.as_deref().unwrap_or_default(), Dtype::F32)),
            slots: rig.upload(&slots),
            table: written,
            table_rows: sequences + usize::from(case.slots),
            table_stride,
            q_stride: case.width() + case.gap,
        }
    }

    pub fn q(&self) -> Rows<'_> {
        Rows { view: self.q.view(), stride: self.q_stride }
    }

    pub fn table(&self) -> PageTable<'_> {
        PageTable { view: self.table.view(), sequences: self.table_rows, stride: self.table_stride }
    }

    /// `buffer`'s view where the case has what it holds.
    pub fn given<'b>(&self, given: bool, buffer: &'b Buffer) -> Option<View<'b>> {
        given.then(|| buffer.view())
    }
}

pub fn assert_same(a: &Run, b: &Run, what: &str) {
    let first = bits(&a.out).iter().zip(bits(&b.out)).position(|(a, b)| *a != b);
    assert_eq!(first, None, "{what}: first element of out that differs");
    assert!(bits(&a.lse) == bits(&b.lse), "{what}: lse differs");
}

pub const PATTERNS: [fn(usize) -> Pattern; 7] = [
    |_| Pattern::Causal,
    |keys| Pattern::Window { keys },
    |keys| Pattern::Chunk { keys },
    |keys| Pattern::Overlap { keys },
    |keys| Pattern::Blockwise { keys: 2 * keys },
    |keys| Pattern::Block { keys },
    |_| Pattern::Full,
];
