//! Attention over paged keys and values.
//!
//! A page holds [`PAGE`] positions of one layer and KV head: keys transposed, `[head_dim][PAGE]`, so that sixteen
//! scores grow side by side and no lane is ever summed across; values `[PAGE][head_dim]`, each row filled
//! up to whole lanes. A task is a few rows and one KV head; rows of one sequence run along its keys and values together,
//! where the instruction set has the registers.
//!
//! Softmax is online over blocks of [`BLOCK`] absolute positions: block by block the running maximum, sum
//! and output are rescaled. The blocks depend on the mask alone, so a row's result has the same bits
//! whatever else is computed. Blocks without a visible key are skipped and their pages never touched;
//! positions outside the mask may hold anything, NaN included.

use super::{
    crew,
    lanes::{Isa, Kernel, LANES, Lanes, exp},
    linear::Shared,
};
use crate::mask::Visible;

/// Positions per page: one per lane.
pub(super) const PAGE: usize = LANES;
/// Pages per step of the online softmax: four independent chains of multiply-adds.
const PAGES: usize = 4;
/// Products of a query and a key or value number under which a pass is not worth another thread's part in it.
const SERIAL: usize = 1 << 13;
/// Positions per step of the online softmax.
const BLOCK: usize = PAGE * PAGES;
/// Rows of a task: each key and value, once loaded, meets them all.
const TILE: usize = 6;

/// One layer's keys and values: `[page][kv_head]` of [`Shape::head_floats`] floats each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl Shape {
    /// `head_dim` filled up to whole lanes.
    pub fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }
    /// Floats of one page of one KV head: keys, then values.
    pub fn head_floats(&self) -> usize {
        PAGE * (self.head_dim + self.padded())
    }
    /// Floats of one page of a layer.
    pub fn page_floats(&self) -> usize {
        self.kv_heads * self.head_floats()
    }
    /// Width of a row of q, k and v side by side.
    pub fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// Writes the key and value of one row, `[kv_heads · head_dim]` each, to `slot` of `page`.
pub(super) fn append(shape: Shape, page: &mut [f32], slot: usize, key: &[f32], value: &[f32]) {
    let (d, padded) = (shape.head_dim, shape.padded());
    for (head, page) in page.chunks_exact_mut(shape.head_floats()).enumerate() {
        let (keys, values) = page.split_at_mut(d * PAGE);
        for (i, k) in key[head * d..][..d].iter().enumerate() {
            keys[i * PAGE + slot] = *k;
        }
        values[slot * padded..][..d].copy_from_slice(&value[head * d..][..d]);
    }
}

/// What one query row attends to.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    /// Page of each block of [`PAGE`] positions.
    pub table: &'a [u32],
    /// Its visible keys.
    pub visible: Visible,
}

/// `out[r][head] = softmax(q[r][head] · Kᵀ / √head_dim) · V` for every row and head; `qkv` is `[rows, qkv]`,
/// `out` `[rows, heads · head_dim]`, `pages` one layer's `[page][page_floats]`.
pub(super) fn attention<'a>(
    isa: Isa,
    shape: Shape,
    qkv: &[f32],
    rows: usize,
    row: impl Fn(usize) -> Row<'a> + Sync,
    pages: &[f32],
    out: &mut [f32],
) {
    let width = shape.heads * shape.head_dim;
    assert!(qkv.len() >= rows * shape.qkv() && out.len() >= rows * width, "buffers hold the rows");
    let mut work = 0;
    for r in 0..rows {
        work += row(r).visible.count() * width;
    }
    let threads = rayon::current_num_threads();
    // Few rows are shared out one by one.
    let tile = if rows.div_ceil(TILE) * shape.kv_heads < 2 * threads { 1 } else { TILE };
    let tiles = rows.div_ceil(tile);
    let tasks = tiles * shape.kv_heads;
    let out = Shared(out.as_mut_ptr());
    let task = |i: usize| {
        // Row by row of the same head, whose keys and values stay in the cache.
        let (head, first) = (i / tiles, i % tiles * tile);
        let count = (rows - first).min(tile);
        let rows = std::array::from_fn(|r| row(first + r.min(count - 1)));
        isa.run(Task { shape, qkv, first, count, rows, head, pages, out });
    };
    if work < SERIAL || threads == 1 {
        (0..tasks).for_each(task);
    } else {
        crew::for_each(tasks, task);
    }
}

/// All query heads of one KV head, for `count` rows from `first` on.
struct Task<'a> {
    shape: Shape,
    qkv: &'a [f32],
    first: usize,
    count: usize,
    rows: [Row<'a>; TILE],
    head: usize,
    pages: &'a [f32],
    out: Shared,
}

impl Kernel for Task<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Shape { heads, kv_heads, head_dim } = self.shape;
        let group = heads / kv_heads;
        for head in self.head * group..(self.head + 1) * group {
            let mut row = 0;
            while row < self.count {
                let table = self.rows[row].table;
                let mut same = 1;
                while row + same < self.count && std::ptr::eq(self.rows[row + same].table, table) {
                    same += 1;
                }
                let many = same == TILE && L::QUERIES >= TILE;
                let mut queries: [Query; TILE] = std::array::from_fn(|_| Query::default());
                let count = if many { TILE } else { 1 };
                for (i, query) in queries[..count].iter_mut().enumerate() {
                    let r = self.first + row + i;
                    let at = r * heads * head_dim + head * head_dim;
                    *query = Query {
                        q: &self.qkv[r * self.shape.qkv() + head * head_dim..][..head_dim],
                        visible: self.rows[row + i].visible,
                        maximum: f32::NEG_INFINITY,
                        total: 0.0,
                        // SAFETY: `attention` checked that the output holds every row; no other task has
                        // this row of this head.
                        out: unsafe { std::slice::from_raw_parts_mut(self.out.0.add(at), head_dim) },
                    };
                }
                let keys = Keys { shape: self.shape, pages: self.pages, head: self.head, table };
                if many {
                    attend::<L, TILE>(&keys, &mut queries);
                } else {
                    attend::<L, 1>(&keys, &mut queries[..1]);
                }
                row += count;
            }
        }
    }
}

/// One query row of one head, and what has come of it so far.
#[derive(Default)]
struct Query<'a> {
    q: &'a [f32],
    visible: Visible,
    /// Largest score of the blocks before.
    maximum: f32,
    /// Sum of their weights, relative to it.
    total: f32,
    /// Weighted sum of their values.
    out: &'a mut [f32],
}

/// Keys and values of one sequence and KV head.
struct Keys<'a> {
    shape: Shape,
    pages: &'a [f32],
    head: usize,
    table: &'a [u32],
}

impl<'a> Keys<'a> {
    /// The keys and values of positions `index · PAGE` on.
    #[inline(always)]
    fn page(&self, index: usize) -> &'a [f32] {
        let floats = self.shape.head_floats();
        let page = self.table[index] as usize;
        &self.pages[page * self.shape.page_floats() + self.head * floats..][..floats]
    }
}

/// The attention of `R` queries of one sequence, block by block.
#[inline(always)]
fn attend<L: Lanes, const R: usize>(keys: &Keys, queries: &mut [Query]) {
    // What any of them sees: the prefix's blocks, then the interval's that the prefix did not reach.
    let (mut prefix, mut lo, mut hi) = (0, usize::MAX, 0);
    for query in queries.iter_mut() {
        query.out.fill(0.0);
        prefix = prefix.max(query.visible.prefix);
        lo = lo.min(query.visible.lo);
        hi = hi.max(query.visible.hi);
    }
    let prefix_end = prefix.div_ceil(BLOCK);
    for block in (0..prefix_end).chain((lo / BLOCK).max(prefix_end)..hi.div_ceil(BLOCK)) {
        let mut visible = [0; R];
        let mut all = true;
        for (visible, query) in visible.iter_mut().zip(queries.iter()) {
            let Visible { prefix, lo, hi } = query.visible;
            *visible = slots(0, prefix, block) | slots(lo, hi, block);
            all &= *visible != 0;
        }
        if !(all && add_block::<L, R>(keys, queries, block, visible)) {
            for r in 0..R {
                if visible[r] != 0 {
                    add_block::<L, 1>(keys, &mut queries[r..=r], block, [visible[r]]);
                }
            }
        }
    }
    for query in queries {
        if query.total > 0.0 || query.total.is_nan() {
            let inverse = 1.0 / query.total;
            query.out.iter_mut().for_each(|o| *o *= inverse);
        }
    }
}

/// Adds a block of which each of `R` queries sees some position. Returns false, and changes nothing, if the
/// scores of one of them are all −∞.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn add_block<L: Lanes, const R: usize>(
    keys: &Keys,
    queries: &mut [Query],
    block: usize,
    visible: [u64; R],
) -> bool {
    let scale = 1.0 / (keys.shape.head_dim as f32).sqrt();
    let mut weights = [[[f32::NEG_INFINITY; PAGE]; PAGES]; R];
    for p in 0..PAGES {
        let mut any = 0;
        for r in 0..R {
            any |= page_slots(visible[r], p);
        }
        if any == 0 {
            continue;
        }
        let dots = page_scores::<L, R>(queries, keys.page(block * PAGES + p));
        for r in 0..R {
            let visible = page_slots(visible[r], p);
            for slot in 0..PAGE {
                weights[r][p][slot] = dots[r][slot] * scale;
            }
            if visible != u16::MAX {
                for slot in 0..PAGE {
                    let seen = visible >> slot & 1 == 1;
                    weights[r][p][slot] = if seen { weights[r][p][slot] } else { f32::NEG_INFINITY };
                }
            }
        }
    }
    let mut highest = [0.0; R];
    for r in 0..R {
        highest[r] = largest(queries[r].maximum, &weights[r]);
        if highest[r] == f32::NEG_INFINITY {
            return false;
        }
    }
    let mut rescale = [0.0; R];
    for r in 0..R {
        let mut lanes = [0.0f32; PAGE];
        for page in &mut weights[r] {
            for (weight, sum) in page.iter_mut().zip(&mut lanes) {
                *weight = exp(*weight - highest[r]);
                *sum += *weight;
            }
        }
        let query = &mut queries[r];
        rescale[r] = exp(query.maximum - highest[r]);
        query.maximum = highest[r];
        query.total = query.total.mul_add(rescale[r], L::load(&lanes).sum());
    }
    add_values::<L, R>(keys, queries, &weights, visible, block, rescale);
    true
}

/// The positions of `from..to` that lie in `block`, a bit each.
#[inline(always)]
fn slots(from: usize, to: usize, block: usize) -> u64 {
    let first = block * BLOCK;
    let below = |end: usize| match end.saturating_sub(first) {
        n if n >= BLOCK => u64::MAX,
        n => (1 << n) - 1,
    };
    below(to) & !below(from)
}

/// The bits of page `p` of a block.
#[inline(always)]
fn page_slots(visible: u64, p: usize) -> u16 {
    (visible >> (p * PAGE)) as u16
}

/// The largest of `maximum` and the scores. A NaN may win or lose; the weights become NaN either way.
#[inline(always)]
fn largest(maximum: f32, scores: &[[f32; PAGE]; PAGES]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [maximum; PAGE];
    for page in scores {
        for (lane, score) in lanes.iter_mut().zip(page) {
            *lane = larger(*lane, *score);
        }
    }
    let mut width = PAGE / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = larger(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The scores of one page's sixteen keys against each query. Four chains over every fourth dimension hide the
/// latency of the multiply-adds; they are added in pairs at the end.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn page_scores<L: Lanes, const R: usize>(queries: &[Query], page: &[f32]) -> [[f32; PAGE]; R] {
    let mut q = [queries[0].q; R];
    for r in 0..R {
        q[r] = &queries[r].q[..q[0].len()];
    }
    let (rows, _) = page.as_chunks::<PAGE>();
    let rows = &rows[..q[0].len()];
    let mut sums = [[L::splat(0.0); 4]; R];
    let quads = rows.len() / 4;
    for quad in 0..quads {
        for c in 0..4 {
            let key = L::load(&rows[4 * quad + c]);
            for r in 0..R {
                sums[r][c] = L::splat(q[r][4 * quad + c]).mul_add(key, sums[r][c]);
            }
        }
    }
    for c in 0..rows.len() - 4 * quads {
        let key = L::load(&rows[4 * quads + c]);
        for r in 0..R {
            sums[r][c] = L::splat(q[r][4 * quads + c]).mul_add(key, sums[r][c]);
        }
    }
    let mut out = [[0.0; PAGE]; R];
    for r in 0..R {
        pairwise(sums[r]).store(&mut out[r]);
    }
    out
}

/// The sum of four chains.
#[inline(always)]
fn pairwise<L: Lanes>([a, b, c, d]: [L; 4]) -> L {
    let one = L::splat(1.0);
    one.mul_add(one.mul_add(a, b), one.mul_add(c, d))
}

/// `out = rescale · out + Σ weights[k] · V[k]` for each query over the block's keys that it sees. Every fourth key goes to
/// the same one of four sums, which hide each other's latency.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn add_values<L: Lanes, const R: usize>(
    keys: &Keys,
    queries: &mut [Query],
    weights: &[[[f32; PAGE]; PAGES]; R],
    visible: [u64; R],
    block: usize,
    rescale: [f32; R],
) {
    const CHAINS: usize = 4;
    let (d, padded) = (keys.shape.head_dim, keys.shape.padded());
    for first in (0..padded).step_by(LANES) {
        let mut sums = [[L::splat(0.0); CHAINS]; R];
        for p in 0..PAGES {
            let (mut any, mut all) = (0, u16::MAX);
            for r in 0..R {
                any |= page_slots(visible[r], p);
                all &= page_slots(visible[r], p);
            }
            if any == 0 {
                continue;
            }
            let values = &keys.page(block * PAGES + p)[d * PAGE..][..PAGE * padded];
            for quad in 0..PAGE / CHAINS {
                for c in 0..CHAINS {
                    let slot = quad * CHAINS + c;
                    let value: &[f32; LANES] =
                        values[slot * padded + first..].first_chunk().expect("a row is whole lanes");
                    if all == u16::MAX {
                        let value = L::load(value);
                        for r in 0..R {
                            sums[r][c] = L::splat(weights[r][p][slot]).mul_add(value, sums[r][c]);
                        }
                        continue;
                    }
                    for r in 0..R {
                        // What is not visible is skipped, not weighed with 0: it may be NaN.
                        if page_slots(visible[r], p) >> slot & 1 == 1 {
                            sums[r][c] = L::splat(weights[r][p][slot]).mul_add(L::load(value), sums[r][c]);
                        }
                    }
                }
            }
        }
        for r in 0..R {
            let (scale, sum) = (L::splat(rescale[r]), pairwise(sums[r]));
            let out = &mut queries[r].out[first..d.min(first + LANES)];
            if let Ok(out) = <&mut [f32; LANES]>::try_from(&mut *out) {
                scale.mul_add(L::load(out), sum).store(out);
            } else {
                let mut lanes = [0.0f32; LANES];
                lanes[..out.len()].copy_from_slice(out);
                scale.mul_add(L::load(&lanes), sum).store(&mut lanes);
                out.copy_from_slice(&lanes[..out.len()]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::Mask;

    fn noise(state: &mut u64) -> f32 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((*state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 2.0
    }

    /// Every pattern, off-by-one widths, odd head sizes, any group, scattered pages, NaN in every place that is
    /// not visible: within rounding of a naive f64 softmax, and the same bits on every instruction set.
    #[test]
    fn attention_is_a_masked_softmax() {
        let mut state = 11;
        let masks = [
            "full",
            "window:1",
            "window:15",
            "window:16",
            "window:17",
            "window:64",
            "window:65+sinks:1",
            "chunk:16",
            "chunk:17+sinks:70",
            "overlap:30",
            "overlap:64+sinks:5",
        ];
        for (heads, kv_heads, head_dim) in
            [(1, 1, 2), (6, 2, 16), (4, 4, 26), (8, 1, 64), (3, 1, 80), (2, 1, 130)]
        {
            let shape = Shape { heads, kv_heads, head_dim };
            for positions in [1, 16, 17, 63, 64, 65, 150] {
                for mask in masks {
                    let mask: Mask = mask.parse().unwrap();
                    check(shape, positions, &mask, &mut state);
                }
            }
        }
    }

    fn check(shape: Shape, positions: usize, mask: &Mask, state: &mut u64) {
        let Shape { heads, kv_heads, head_dim } = shape;
        let width = kv_heads * head_dim;
        let visible = mask.visible(positions - 1, positions, 0);
        let keys: Vec<f32> = (0..positions * width).map(|_| noise(state)).collect();
        let values: Vec<f32> = (0..positions * width).map(|_| noise(state)).collect();
        let qkv: Vec<f32> = (0..shape.qkv()).map(|_| noise(state)).collect();
        // Pages in reverse order, and more of them than are used, all NaN to begin with.
        let count = positions.div_ceil(PAGE);
        let table: Vec<u32> = (0..count as u32).rev().map(|p| p + 1).collect();
        let mut pages = vec![f32::NAN; (count + 2) * shape.page_floats()];
        for position in (0..positions).filter(|p| visible.contains(*p)) {
            let page = table[position / PAGE] as usize * shape.page_floats();
            let (key, value) = (&keys[position * width..][..width], &values[position * width..][..width]);
            append(shape, &mut pages[page..][..shape.page_floats()], position % PAGE, key, value);
        }
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; heads * head_dim];
            let row = |_| Row { table: &table, visible };
            attention(isa, shape, &qkv, 1, row, &pages, &mut out);
            for head in 0..heads {
                let kv = head / (heads / kv_heads);
                let q = &qkv[head * head_dim..][..head_dim];
                let at = |from: &[f32], p: usize| from[p * width + kv * head_dim..][..head_dim].to_vec();
                let seen: Vec<usize> = (0..positions).filter(|p| visible.contains(*p)).collect();
                let dot = |p: usize| -> f64 {
                    q.iter().zip(at(&keys, p)).map(|(a, b)| f64::from(*a) * f64::from(b)).sum::<f64>()
                        * f64::from(scale)
                };
                let weights: Vec<f64> = seen.iter().map(|p| dot(*p).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..head_dim {
                    let exact: f64 = seen
                        .iter()
                        .zip(&weights)
                        .map(|(p, w)| w / total * f64::from(at(&values, *p)[d]))
                        .sum();
                    let got = f64::from(out[head * head_dim + d]);
                    assert!(
                        (got - exact).abs() < 2e-5,
                        "{isa:?} {shape:?} {mask} at {positions}: {got} for {exact}"
                    );
                }
            }
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let first = first.get_or_insert_with(|| out.clone());
            assert_eq!(bits(first), bits(&out), "{isa:?} {shape:?} {mask} at {positions}");
        }
    }

    /// Rows of two sequences in one call, at positions that sit anywhere in a block and with NaN where no row sees: each has the
    /// bits that it has alone, on any instruction set, for one thread and several.
    #[test]
    fn company_does_not_show() {
        let mut state = 5;
        let pools = [1, 3].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
        for (heads, kv_heads, head_dim) in [(6, 2, 16), (2, 1, 26), (4, 4, 80)] {
            let shape = Shape { heads, kv_heads, head_dim };
            for mask in ["full", "window:5", "window:66+sinks:3", "chunk:17"] {
                let mask: Mask = mask.parse().unwrap();
                const POSITIONS: usize = 150;
                let count = POSITIONS.div_ceil(PAGE) as u32;
                let tables: [Vec<u32>; 2] = [(0..count).collect(), (count..2 * count).rev().collect()];
                let mut pages = vec![f32::NAN; 2 * count as usize * shape.page_floats()];
                for table in &tables {
                    for position in 0..POSITIONS {
                        let vector: Vec<f32> =
                            (0..2 * kv_heads * head_dim).map(|_| noise(&mut state)).collect();
                        let (key, value) = vector.split_at(kv_heads * head_dim);
                        let page = table[position / PAGE] as usize * shape.page_floats();
                        append(shape, &mut pages[page..][..shape.page_floats()], position % PAGE, key, value);
                    }
                }
                // Runs of 34 and 41 rows, then single ones of either sequence in turns.
                let places: Vec<(usize, usize)> = (50..84)
                    .map(|position| (0, position))
                    .chain((0..41).map(|position| (1, position)))
                    .chain((60..70).map(|position| (position % 2, position)))
                    .chain((140..150).map(|position| (1, position)))
                    .collect();
                let row = |r: usize| {
                    let (sequence, position) = places[r];
                    Row { table: &tables[sequence], visible: mask.visible(position, POSITIONS, 0) }
                };
                let width = heads * head_dim;
                let qkv: Vec<f32> = (0..places.len() * shape.qkv()).map(|_| noise(&mut state)).collect();
                let mut alone = vec![f32::NAN; places.len() * width];
                for (r, out) in alone.chunks_exact_mut(width).enumerate() {
                    let qkv = &qkv[r * shape.qkv()..][..shape.qkv()];
                    attention(Isa::Portable, shape, qkv, 1, |_| row(r), &pages, out);
                }
                assert!(alone.iter().all(|x| x.is_finite()));
                for isa in Isa::available() {
                    for pool in &pools {
                        let mut out = vec![f32::NAN; places.len() * width];
                        pool.install(|| attention(isa, shape, &qkv, places.len(), row, &pages, &mut out));
                        let same = out.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{isa:?} {shape:?} {mask}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_that_sees_nothing_is_zero() {
        let shape = Shape { heads: 2, kv_heads: 1, head_dim: 8 };
        let mut out = vec![f32::NAN; 16];
        let row = |_| Row { table: &[], visible: Visible::default() };
        attention(Isa::detect(), shape, &[1.0; 32], 1, row, &[], &mut out);
        assert_eq!(out, [0.0; 16]);
    }

    /// The exponential against f64 over its whole range: within 2 units in the last place.
    #[test]
    fn exponential() {
        let mut x = -87.0f32;
        while x < 88.0 {
            let (got, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got - exact).abs() <= exact * 2.4e-7, "e^{x}: {got} for {exact}");
            x += 0.003_7;
        }
        assert_eq!((exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }
}
