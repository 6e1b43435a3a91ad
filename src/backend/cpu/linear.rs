//! y = x · Wᵀ for decode rows, the weights read in the type they are stored in.
//!
//! A weight row and an activation row meet in one dot product: sixteen partial sums over k mod 16, each a
//! chain of fused multiply-adds in order of k, then one fixed tree. A dot product never depends on what is
//! computed beside it, so a row's result has the same bits alone or in a batch, for any number of threads
//! and any instruction set.
//!
//! Data movement: the output columns are shared out among the threads. A thread reads [`BLOCK_BYTES`] of weights
//! from memory once, and they meet all activation rows from the second-level cache: a few activation rows at a
//! time, which stay in the first level, against [`WEIGHT_ROWS`] weight rows after another. One activation row against
//! four weight rows is bound by memory; up to six (AVX-512) or three (AVX2) keep all their sums in registers
//! and are bound by the multiply-adds.

use super::{
    crew,
    lanes::{Bf16, E4m3, Element, F16, F32, Isa, Kernel, LANES, Lanes, Part as _, element, exp},
};
use crate::checkpoint::{Dtype, fp8::E4M3_UNPACKED};

/// Weight rows that meet the activations together.
const WEIGHT_ROWS: usize = 4;
/// Bytes of weights that meet all activation rows before the next ones are read: they stay in the
/// second-level cache.
const BLOCK_BYTES: usize = 192 << 10;
/// Estimated cycles under which a product is not worth another thread's part in it.
const SERIAL: usize = 3_000;

/// A matrix in memory as the file holds it: `rows × columns`, row after row.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub bytes: &'a [u8],
    pub dtype: Dtype,
    pub rows: usize,
    pub columns: usize,
}

/// One weight matrix of a product and where its outputs go.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub weight: Matrix<'a>,
    /// A vector of `weight.rows` elements.
    pub bias: Option<Matrix<'a>>,
    /// Column of the output at which this part's begin.
    pub column: usize,
    /// Of e4m3 weights, which meet activations that are e4m3 numbers.
    pub scales: Option<Scales<'a>>,
}

/// What the sums of a product in e4m3 are multiplied by: row r's of output n by `rows[r] · outputs[n]`.
#[derive(Clone, Copy)]
pub(super) struct Scales<'a> {
    /// Of the activations, `[rows]`.
    pub rows: &'a [f32],
    /// Of the weights, `[weight.rows]`.
    pub outputs: &'a [f32],
}

/// What happens to a finished sum.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Epilogue {
    /// out = y.
    Store,
    /// out += y: the residual stream.
    Add,
    /// Two parts of equal shape, gate and up: out = silu(gate) · up.
    SwiGlu,
}

/// Computes `out[r][part.column + n] ⟵ x[r] · part.weight[n] + part.bias[n]` for every part, row and n.
///
/// `x` is `[rows, columns]` with `columns` that of every weight, `out` is `[rows, width]`.
pub(super) fn linear(
    isa: Isa,
    x: &[f32],
    rows: usize,
    parts: &[Part],
    out: &mut [f32],
    width: usize,
    epilogue: Epilogue,
) {
    let led = check(x, rows, parts, out, width, epilogue);
    let columns = parts[0].weight.columns;
    let tiles = |part: &Part| part.weight.rows.div_ceil(WEIGHT_ROWS);
    let total: usize = led.iter().map(tiles).sum();
    let target = Shared(out.as_mut_ptr());
    let run = |first: usize, last: usize| {
        // The tiles first..last of all parts' tiles in a row, part by part.
        let mut begin = 0;
        for (index, part) in led.iter().enumerate() {
            let end = begin + tiles(part);
            let range = first.clamp(begin, end) - begin..last.clamp(begin, end) - begin;
            begin = end;
            if range.is_empty() {
                continue;
            }
            let up = (epilogue == Epilogue::SwiGlu).then(|| &parts[1]);
            let task =
                Task { x, rows, columns, part: &led[index], up, tiles: range, out: target, width, epilogue };
            match part.weight.dtype {
                Dtype::Bf16 => isa.run(Typed::<Bf16>(task, std::marker::PhantomData)),
                Dtype::F16 => isa.run(Typed::<F16>(task, std::marker::PhantomData)),
                Dtype::F32 => isa.run(Typed::<F32>(task, std::marker::PhantomData)),
                Dtype::E4m3 => isa.run(Typed::<E4m3>(task, std::marker::PhantomData)),
            }
        }
    };
    let weights: usize = parts.iter().map(|p| p.weight.bytes.len()).sum();
    let sums: usize = parts.iter().map(|p| p.weight.rows).sum::<usize>() * columns * rows;
    // Eight bytes of weights or sixteen multiply-adds a cycle, whichever takes longer.
    let cycles = (weights / 8).max(sums / LANES);
    let threads = rayon::current_num_threads();
    if threads == 1 || cycles < SERIAL {
        return run(0, total);
    }
    // One run through memory for each thread: where a run begins, nothing has been asked for ahead, and the tiles
    // prefetched behind its end are another's. Smaller shares, dealt out as threads come free, were slower.
    let shares = threads.min(total);
    crew::for_each(shares, |s| run(total * s / shares, total * (s + 1) / shares));
}

/// Panics unless the buffers hold `rows` rows and the parts are of one product; returns the parts that lead it:
/// under SwiGLU the second rides along with the first.
pub(super) fn check<'a, 'w>(
    x: &[f32],
    rows: usize,
    parts: &'a [Part<'w>],
    out: &[f32],
    width: usize,
    epilogue: Epilogue,
) -> &'a [Part<'w>] {
    let columns = parts[0].weight.columns;
    assert!(x.len() >= rows * columns && out.len() >= rows * width, "buffers hold the rows");
    let led = if epilogue == Epilogue::SwiGlu { &parts[..1] } else { parts };
    for part in parts {
        let w = part.weight;
        assert!(w.columns == columns && w.bytes.len() == w.rows * w.columns * w.dtype.size(), "weight shape");
        assert!(part.bias.is_none_or(|b| b.bytes.len() == w.rows * b.dtype.size()), "bias shape");
        assert!(part.scales.is_some() == (w.dtype == Dtype::E4m3), "e4m3 has scales");
        let scaled = |s: Scales| s.rows.len() >= rows && s.outputs.len() == w.rows;
        assert!(part.scales.is_none_or(scaled), "scales' shape");
    }
    for part in led {
        assert!(part.column + part.weight.rows <= width, "outputs fit a row");
    }
    if epilogue == Epilogue::SwiGlu {
        assert!(parts.len() == 2 && parts[0].weight.rows == parts[1].weight.rows, "gate and up are alike");
    }
    led
}

/// The output, of which every task writes places of its own.
#[derive(Clone, Copy)]
pub(super) struct Shared(pub *mut f32);
// SAFETY: each task of a product has outputs that no other task has, and the product waits for all.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

struct Task<'a> {
    x: &'a [f32],
    rows: usize,
    columns: usize,
    part: &'a Part<'a>,
    up: Option<&'a Part<'a>>,
    tiles: std::ops::Range<usize>,
    out: Shared,
    width: usize,
    epilogue: Epilogue,
}

struct Typed<'a, E>(Task<'a>, std::marker::PhantomData<E>);

impl<E: Element> Kernel for Typed<'_, E> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let task = self.0;
        let tile_bytes = WEIGHT_ROWS * task.columns * E::SIZE;
        let per_block = (BLOCK_BYTES / tile_bytes).max(1);
        let mut first = task.tiles.start;
        while first < task.tiles.end {
            let block = first..(first + per_block).min(task.tiles.end);
            first = block.end;
            let mut x = 0;
            while x < task.rows {
                let rows = (task.rows - x).min(L::ROWS);
                for tile in block.clone() {
                    let n = tile * WEIGHT_ROWS;
                    match rows {
                        1 => tile_rows::<L, E, 1>(&task, n, x),
                        2 => tile_rows::<L, E, 2>(&task, n, x),
                        3 => tile_rows::<L, E, 3>(&task, n, x),
                        4 if L::ROWS > 3 => tile_rows::<L, E, 4>(&task, n, x),
                        5 if L::ROWS > 3 => tile_rows::<L, E, 5>(&task, n, x),
                        6 if L::ROWS > 3 => tile_rows::<L, E, 6>(&task, n, x),
                        _ => unreachable!("no instruction set takes more rows at a time"),
                    }
                }
                x += rows;
            }
        }
    }
}

/// Weight rows n.. (up to [`WEIGHT_ROWS`]) against `X` activation rows from `x`.
#[inline(always)]
fn tile_rows<L: Lanes, E: Element, const X: usize>(task: &Task, n: usize, x: usize) {
    let count = (task.part.weight.rows - n).min(WEIGHT_ROWS);
    let mut sums = dots::<L, E, X>(task, &task.part.weight, n, count, x);
    for (j, sums) in sums.iter_mut().enumerate() {
        finish(&mut sums[..count], task.part, n, x + j);
    }
    if let Some(up) = task.up {
        let mut ups = match up.weight.dtype {
            // Gate and up nearly always share a type, which this compiles to the same code.
            Dtype::Bf16 => dots::<L, Bf16, X>(task, &up.weight, n, count, x),
            Dtype::F16 => dots::<L, F16, X>(task, &up.weight, n, count, x),
            Dtype::F32 => dots::<L, F32, X>(task, &up.weight, n, count, x),
            Dtype::E4m3 => dots::<L, E4m3, X>(task, &up.weight, n, count, x),
        };
        for (j, ups) in ups.iter_mut().enumerate() {
            finish(&mut ups[..count], up, n, x + j);
        }
        swiglu(sums.as_flattened_mut(), ups.as_flattened());
    }
    for (j, sums) in sums.iter().enumerate() {
        let first = (x + j) * task.width + task.part.column + n;
        // SAFETY: `linear` checked that rows · width floats are there and that the part's columns lie
        // within a row; no other task has these columns.
        let out = unsafe { std::slice::from_raw_parts_mut(task.out.0.add(first), count) };
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = if task.epilogue == Epilogue::Add { *out + sum } else { *sum };
        }
    }
}

/// gate ⟵ silu(gate) · up, in whole vectors.
#[inline(always)]
pub(super) fn swiglu(gates: &mut [f32], ups: &[f32]) {
    for (gates, ups) in gates.chunks_mut(LANES).zip(ups.chunks(LANES)) {
        let (mut gate, mut up) = ([0.0; LANES], [0.0; LANES]);
        gate[..gates.len()].copy_from_slice(gates);
        up[..ups.len()].copy_from_slice(ups);
        for (gate, up) in gate.iter_mut().zip(&up) {
            *gate = *gate / (1.0 + exp(-*gate)) * up;
        }
        gates.copy_from_slice(&gate[..gates.len()]);
    }
}

/// Multiplies the sums of row `row` for outputs n.. of `part` by their scales and adds their biases.
#[inline(always)]
pub(super) fn finish(sums: &mut [f32], part: &Part, n: usize, row: usize) {
    if let Some(scales) = part.scales {
        let of_row = scales.rows[row];
        for (sum, scale) in sums.iter_mut().zip(&scales.outputs[n..]) {
            *sum = of_row * scale * (*sum / E4M3_UNPACKED);
        }
    }
    if let Some(bias) = part.bias {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum += element(bias.dtype, bias.bytes, n + i);
        }
    }
}

/// The dot products of weight rows n..n + count with activation rows x..x + X. Rows of the tile beyond
/// `count` repeat the last one and are not used.
///
/// Plain loops over indices, no closures: what passes through a closure is not sure to be inlined, and then compiled
/// without the vector instructions.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn dots<L: Lanes, E: Element, const X: usize>(
    task: &Task,
    weight: &Matrix,
    n: usize,
    count: usize,
    x: usize,
) -> [[f32; WEIGHT_ROWS]; X] {
    let columns = task.columns;
    let bytes = columns * E::SIZE;
    let mut w = [&weight.bytes[..0]; WEIGHT_ROWS];
    for i in 0..WEIGHT_ROWS {
        w[i] = &weight.bytes[(n + i.min(count - 1)) * bytes..][..bytes];
    }
    let mut a = [&task.x[..0]; X];
    for j in 0..X {
        a[j] = &task.x[(x + j) * columns..][..columns];
    }
    let whole = columns / LANES * LANES;
    // Four rows side by side are four short streams, which the processor's own prefetcher follows at half the
    // memory's speed. So the tile after the next is asked for in the order in which it lies, when the
    // first activation rows read this one from memory.
    let stream = x == 0;
    let ahead = w[0].as_ptr().wrapping_add(2 * WEIGHT_ROWS * bytes);
    let mut sums = [[[0.0; LANES]; X]; WEIGHT_ROWS];
    // The lanes that one register holds, over all of k, then the next ones: every sum stays in a register.
    let mut lane = 0;
    while lane < LANES {
        let mut part = [[L::Part::zero(); X]; WEIGHT_ROWS];
        let mut k = lane;
        while k < whole {
            // SAFETY: k + WIDTH ≤ whole ≤ columns, the length in elements of every slice in `w` and `a`.
            unsafe {
                if stream && lane == 0 {
                    let step = WEIGHT_ROWS * LANES * E::SIZE;
                    let mut line = 0;
                    while line < step {
                        L::Part::prefetch(ahead.wrapping_add(k / LANES * step + line));
                        line += 64;
                    }
                }
                let mut values = [L::Part::zero(); X];
                for j in 0..X {
                    values[j] = L::Part::load(a[j].as_ptr().add(k));
                }
                for i in 0..WEIGHT_ROWS {
                    let weight: L::Part = E::load(w[i].as_ptr().add(k * E::SIZE));
                    for j in 0..X {
                        part[i][j] = weight.mul_add(values[j], part[i][j]);
                    }
                }
            }
            k += LANES;
        }
        for i in 0..WEIGHT_ROWS {
            for j in 0..X {
                // SAFETY: lane + WIDTH ≤ LANES.
                unsafe { part[i][j].store(sums[i][j].as_mut_ptr().add(lane)) }
            }
        }
        lane += L::Part::WIDTH;
    }
    let mut lanes = [[L::splat(0.0); WEIGHT_ROWS]; X];
    for i in 0..WEIGHT_ROWS {
        for j in 0..X {
            lanes[j][i] = L::load(&sums[i][j]);
        }
    }
    if whole < columns {
        // The rest of a row, filled up with zeros: 0 · 0 leaves the other partial sums as they are.
        for i in 0..WEIGHT_ROWS {
            let mut rest = [0.0; LANES];
            for k in whole..columns {
                rest[k - whole] = E::get(w[i], k);
            }
            for j in 0..X {
                let mut values = [0.0; LANES];
                values[..columns - whole].copy_from_slice(&a[j][whole..]);
                lanes[j][i] = L::load(&rest).mul_add(L::load(&values), lanes[j][i]);
            }
        }
    }
    let mut out = [[0.0; WEIGHT_ROWS]; X];
    for j in 0..X {
        out[j] = L::sum4(lanes[j]);
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Numbers that are not round, from a small generator.
    pub(in super::super) fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
            })
            .collect()
    }

    /// `values` as a file holds them.
    pub(in super::super) fn stored(values: &[f32], dtype: Dtype) -> Vec<u8> {
        match dtype {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::E4m3 => values.iter().map(|v| crate::checkpoint::fp8::to_e4m3(*v)).collect(),
        }
    }

    /// Every width, type, instruction set and number of rows: within rounding of an f64 sum, and the same bits as
    /// one row alone in plain Rust. The output is poisoned, and the activations past the end are NaN.
    #[test]
    fn dot_products_have_one_order() {
        for (case, &(columns, outputs)) in
            [(1, 1), (15, 3), (16, 4), (17, 5), (52, 131), (288, 33), (1003, 7)].iter().enumerate()
        {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::E4m3] {
                let bytes = stored(&noise(columns * outputs, 3 + case as u64), dtype);
                let bias_bytes = stored(&noise(outputs, 77), Dtype::F16);
                let weight = Matrix { bytes: &bytes, dtype, rows: outputs, columns };
                let bias = Matrix { bytes: &bias_bytes, dtype: Dtype::F16, rows: outputs, columns: 1 };
                let (row_scales, output_scales) = (noise(37, 12), noise(outputs, 13));
                let scales = Scales { rows: &row_scales, outputs: &output_scales };
                let scales = (dtype == Dtype::E4m3).then_some(scales);
                let parts = [Part { weight, bias: Some(bias), column: 2, scales }];
                let width = outputs + 3;
                let mut x = noise(37 * columns, 9);
                x.extend([f32::NAN; 16]);
                let mut alone = vec![f32::NAN; 37 * width];
                for r in 0..37 {
                    let row = &x[r * columns..][..columns];
                    let of_row = |s| Scales { rows: &row_scales[r..], ..s };
                    let parts = parts.map(|part| Part { scales: part.scales.map(of_row), ..part });
                    linear(
                        Isa::Portable,
                        row,
                        1,
                        &parts,
                        &mut alone[r * width..][..width],
                        width,
                        Epilogue::Store,
                    );
                    for n in 0..outputs {
                        let sum: f64 = (0..columns)
                            .map(|k| f64::from(row[k]) * f64::from(element(dtype, &bytes, n * columns + k)))
                            .sum();
                        let scale =
                            scales.map_or(1.0, |s| 256.0 * f64::from(s.rows[r]) * f64::from(s.outputs[n]));
                        let exact = scale * sum + f64::from(element(Dtype::F16, &bias_bytes, n));
                        let got = f64::from(alone[r * width + 2 + n]);
                        assert!(
                            (got - exact).abs() < 1e-4,
                            "{columns}x{outputs} {dtype:?}: {got} for {exact}"
                        );
                    }
                }
                for isa in Isa::available() {
                    for rows in [1, 2, 3, 4, 5, 16, 37] {
                        let mut out = vec![f32::NAN; rows * width];
                        linear(isa, &x, rows, &parts, &mut out, width, Epilogue::Store);
                        for (i, (a, b)) in out.iter().zip(&alone).enumerate() {
                            assert_eq!(
                                a.to_bits(),
                                b.to_bits(),
                                "{isa:?} {dtype:?} {columns}x{outputs}, {rows} rows, at {i}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn epilogues_add_and_gate() {
        let (columns, outputs, rows) = (40, 70, 5);
        let (gate, up) = (
            stored(&noise(columns * outputs, 1), Dtype::Bf16),
            stored(&noise(columns * outputs, 2), Dtype::F32),
        );
        let part = |bytes, dtype| Part {
            weight: Matrix { bytes, dtype, rows: outputs, columns },
            bias: None,
            column: 0,
            scales: None,
        };
        let parts = [part(&gate[..], Dtype::Bf16), part(&up[..], Dtype::F32)];
        let x = noise(rows * columns, 5);
        let product = |p: &Part| {
            let mut out = vec![f32::NAN; rows * outputs];
            linear(Isa::Portable, &x, rows, &[*p], &mut out, outputs, Epilogue::Store);
            out
        };
        let (gates, ups) = (product(&parts[0]), product(&parts[1]));
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; rows * outputs];
            linear(isa, &x, rows, &parts, &mut out, outputs, Epilogue::SwiGlu);
            for i in 0..out.len() {
                let exact = f64::from(gates[i]) / (1.0 + (-f64::from(gates[i])).exp()) * f64::from(ups[i]);
                assert!((f64::from(out[i]) - exact).abs() < 1e-5, "{isa:?} {}", out[i]);
            }
            let mut sum = ups.clone();
            linear(isa, &x, rows, &parts[..1], &mut sum, outputs, Epilogue::Add);
            assert!((0..sum.len()).all(|i| sum[i] == ups[i] + gates[i]), "{isa:?}");
        }
    }
}
