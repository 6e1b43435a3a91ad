//! Attention over paged keys and values, one query row at a time.
//!
//! A page holds [`PAGE`] positions of one layer and KV head: keys transposed, `[head_dim][PAGE]`, so that sixteen
//! scores grow side by side and no lane is ever summed across; values `[PAGE][head_dim]`, each row filled
//! up to whole lanes. A task is one row and one KV head: the keys and values are read once for all query
//! heads of the group.
//!
//! Softmax is online over blocks of [`BLOCK`] absolute positions: block by block the running maximum, sum
//! and output are rescaled. The blocks depend on the mask alone, so a row's result has the same bits
//! whatever else is computed. Blocks without a visible key are skipped and their pages never touched;
//! positions outside the mask may hold anything, NaN included.

use rayon::prelude::*;

use super::lanes::{Isa, Kernel, LANES, Lanes, exp};
use crate::mask::Visible;

/// Positions per page: one per lane.
pub(super) const PAGE: usize = LANES;
/// Pages per step of the online softmax: four independent chains of multiply-adds.
const PAGES: usize = 4;
/// Products of a query and a key or value number under which a pass is not worth waking another thread.
const SERIAL: usize = 1 << 14;
/// Positions per step of the online softmax.
const BLOCK: usize = PAGE * PAGES;

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
    let scale = 1.0 / (shape.head_dim as f32).sqrt();
    let group = shape.heads / shape.kv_heads * shape.head_dim;
    let mut work = 0;
    for r in 0..rows {
        work += row(r).visible.count() * shape.heads * shape.head_dim;
    }
    let task = |i: usize, out: &mut [f32]| {
        let (r, head) = (i / shape.kv_heads, i % shape.kv_heads);
        let q = &qkv[r * shape.qkv() + head * group..][..group];
        isa.run(HeadTask { shape, scale, q, row: row(r), head, pages, out });
    };
    let out = &mut out[..rows * shape.heads * shape.head_dim];
    if work < SERIAL || rayon::current_num_threads() == 1 {
        out.chunks_exact_mut(group).enumerate().for_each(|(i, out)| task(i, out));
    } else {
        out.par_chunks_exact_mut(group).enumerate().for_each(|(i, out)| task(i, out));
    }
}

/// All query heads of one KV head, for one row.
struct HeadTask<'a> {
    shape: Shape,
    scale: f32,
    q: &'a [f32],
    row: Row<'a>,
    head: usize,
    pages: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for HeadTask<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let d = self.shape.head_dim;
        for (q, out) in self.q.chunks_exact(d).zip(self.out.chunks_exact_mut(d)) {
            one_head::<L>(self.shape, self.scale, q, self.row, self.head, self.pages, out);
        }
    }
}

#[inline(always)]
fn one_head<L: Lanes>(
    shape: Shape,
    scale: f32,
    q: &[f32],
    row: Row,
    head: usize,
    pages: &[f32],
    out: &mut [f32],
) {
    let Visible { prefix, lo, hi } = row.visible;
    let head_floats = shape.head_floats();
    let page_of = |index: usize| {
        let page = row.table[index] as usize;
        &pages[page * shape.page_floats() + head * head_floats..][..head_floats]
    };
    let mut maximum = f32::NEG_INFINITY;
    let mut total = 0.0f32;
    out.fill(0.0);
    // The prefix's blocks, then the interval's that the prefix did not reach.
    let prefix_end = prefix.div_ceil(BLOCK);
    let blocks = (0..prefix_end).chain((lo / BLOCK).max(prefix_end)..hi.div_ceil(BLOCK));
    for block in blocks {
        let visible = slots(0, prefix, block) | slots(lo, hi, block);
        let mut scores = [[f32::NEG_INFINITY; PAGE]; PAGES];
        for (p, scores) in scores.iter_mut().enumerate() {
            let visible = page_slots(visible, p);
            if visible == 0 {
                continue;
            }
            let dots = page_scores::<L>(q, &page_of(block * PAGES + p)[..q.len() * PAGE]);
            for slot in 0..PAGE {
                let seen = visible >> slot & 1 == 1;
                scores[slot] = if seen { dots[slot] * scale } else { f32::NEG_INFINITY };
            }
        }
        let highest = highest(maximum, &scores);
        if highest == f32::NEG_INFINITY {
            continue;
        }
        let mut weights = scores;
        let mut lanes = [0.0f32; PAGE];
        for page in &mut weights {
            for (weight, sum) in page.iter_mut().zip(&mut lanes) {
                *weight = exp(*weight - highest);
                *sum += *weight;
            }
        }
        let rescale = exp(maximum - highest);
        maximum = highest;
        total = total.mul_add(rescale, L::load(&lanes).sum());
        add_values::<L>(shape, &weights, visible, block, rescale, out, page_of);
    }
    if total > 0.0 || total.is_nan() {
        let inverse = 1.0 / total;
        out.iter_mut().for_each(|o| *o *= inverse);
    }
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
fn highest(maximum: f32, scores: &[[f32; PAGE]; PAGES]) -> f32 {
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

/// The scores of one page's sixteen keys. Four chains over every fourth dimension hide the latency of
/// the multiply-adds; they are added in pairs at the end.
#[inline(always)]
fn page_scores<L: Lanes>(q: &[f32], keys: &[f32]) -> [f32; PAGE] {
    let mut sums = [L::splat(0.0); 4];
    let one = L::splat(1.0);
    let (quads, rest) = q.as_chunks::<4>();
    let (key_rows, _) = keys.as_chunks::<PAGE>();
    for (i, quad) in quads.iter().enumerate() {
        for c in 0..4 {
            sums[c] = L::splat(quad[c]).mul_add(L::load(&key_rows[4 * i + c]), sums[c]);
        }
    }
    for (c, q) in rest.iter().enumerate() {
        sums[c] = L::splat(*q).mul_add(L::load(&key_rows[4 * quads.len() + c]), sums[c]);
    }
    let sum = one.mul_add(one.mul_add(sums[0], sums[1]), one.mul_add(sums[2], sums[3]));
    let mut out = [0.0; PAGE];
    sum.store(&mut out);
    out
}

/// `out = rescale · out + Σ weights[k] · V[k]` over the block's visible keys. Every fourth key goes to the same one of four
/// sums, which hide each other's latency.
#[inline(always)]
fn add_values<'a, L: Lanes>(
    shape: Shape,
    weights: &[[f32; PAGE]; PAGES],
    visible: u64,
    block: usize,
    rescale: f32,
    out: &mut [f32],
    page_of: impl Fn(usize) -> &'a [f32],
) {
    const CHAINS: usize = 4;
    let padded = shape.padded();
    let one = L::splat(1.0);
    for first in (0..padded).step_by(LANES) {
        let mut sums = [L::splat(0.0); CHAINS];
        for (p, weights) in weights.iter().enumerate() {
            let visible = page_slots(visible, p);
            if visible == 0 {
                continue;
            }
            let values = &page_of(block * PAGES + p)[shape.head_dim * PAGE..];
            let value = |slot: usize| -> &[f32; LANES] {
                values[slot * padded + first..].first_chunk().expect("a row is whole lanes")
            };
            for (slot, weight) in weights.iter().enumerate() {
                // What is not visible is skipped, not weighed with 0: it may be NaN.
                if visible == u16::MAX || visible >> slot & 1 == 1 {
                    let chain = slot % CHAINS;
                    sums[chain] = L::splat(*weight).mul_add(L::load(value(slot)), sums[chain]);
                }
            }
        }
        let sum = one.mul_add(one.mul_add(sums[0], sums[1]), one.mul_add(sums[2], sums[3]));
        let kept = out.len().min(first + LANES) - first;
        let mut lanes = [0.0f32; LANES];
        lanes[..kept].copy_from_slice(&out[first..first + kept]);
        L::splat(rescale).mul_add(L::load(&lanes), sum).store(&mut lanes);
        out[first..first + kept].copy_from_slice(&lanes[..kept]);
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
