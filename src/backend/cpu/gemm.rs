//! y = x · Wᵀ for the rows of a prompt: an outer-product GEMM, bound by multiply-adds.
//!
//! Every output is one chain of fused multiply-adds in order of k, cut at multiples of [`DEPTH`], whose
//! pieces are added in order. That says nothing of registers, tiles or threads, so a row has the same bits in any
//! call, for any number of threads and any instruction set. They are not the bits of [`super::linear`],
//! whose sixteen partial sums cost a horizontal sum per output and reload each weight for every few rows.
//!
//! Data movement: a task is [`COLUMNS`] outputs of up to [`ROWS`] rows. It turns [`DEPTH`] columns of their weights into f32
//! panels, k by k, which stay in the second-level cache. Tiles of rows, held by the first level, run along the
//! panels: two vectors of weights meet one broadcast activation a row, and all sums stay in registers.

use std::cell::RefCell;

use rayon::prelude::*;

use super::{
    lanes::{Bf16, E4m3, Element, F16, F32, Isa, Kernel, LANES, Lanes, Part as _},
    linear::{self, Epilogue, Matrix, Part, Shared, check, swiglu},
};
use crate::checkpoint::Dtype;

/// Outputs of one panel of weights.
const PANEL: usize = 32;
/// Outputs of a task: two panels side by side; under SwiGLU, gate and up of one panel's outputs.
const COLUMNS: usize = 2 * PANEL;
/// Most rows of a task.
const ROWS: usize = 512;
/// Length of the pieces of a chain: absolute multiples of k, since every cut is a rounding.
const DEPTH: usize = 512;
/// Estimated cycles under which a product is not worth waking another thread.
const SERIAL: usize = 8_000;
/// Rows and columns of the blocks that [`Lanes::transpose`] takes.
const SQUARE: usize = 8;

/// Computes what [`super::linear::linear`] does, in the order of a prompt's rows.
pub(super) fn gemm(
    isa: Isa,
    x: &[f32],
    rows: usize,
    parts: &[Part],
    out: &mut [f32],
    width: usize,
    epilogue: Epilogue,
) {
    let led = check(x, rows, parts, out, width, epilogue);
    // Under SwiGLU half of a task's columns are of the up projection.
    let step = if epilogue == Epilogue::SwiGlu { PANEL } else { COLUMNS };
    let blocks: usize = led.iter().map(|part| part.weight.rows.div_ceil(step)).sum();
    let threads = rayon::current_num_threads();
    // Packed weights should meet many rows, and every thread should get several tasks.
    let rows_of_task = if blocks < 8 * threads { ROWS / 2 } else { ROWS };
    let target = Shared(out.as_mut_ptr());
    let run = |task: usize| {
        // Column by column of the same rows, which stay in the cache.
        let (first, mut block) = (task / blocks * rows_of_task, task % blocks);
        let mut index = 0;
        while block >= led[index].weight.rows.div_ceil(step) {
            block -= led[index].weight.rows.div_ceil(step);
            index += 1;
        }
        let up = (epilogue == Epilogue::SwiGlu).then(|| &parts[1]);
        let (part, n, rows) = (&led[index], block * step, first..rows.min(first + rows_of_task));
        SCRATCH.with_borrow_mut(|scratch| {
            let line = scratch.as_ptr().align_offset(64);
            let (panels, sums) = scratch[line..].split_at_mut(DEPTH * COLUMNS);
            isa.run(Task { x, rows, part, up, n, out: target, width, epilogue, panels, sums });
        });
    };
    let tasks = blocks * rows.div_ceil(rows_of_task);
    let outputs: usize = parts.iter().map(|part| part.weight.rows).sum();
    // Packing costs a weight about as much as eight rows do.
    let cycles = outputs * parts[0].weight.columns * (rows + 8) / LANES;
    if threads == 1 || cycles < SERIAL {
        (0..tasks).for_each(run);
    } else {
        (0..tasks).into_par_iter().for_each(run);
    }
}

thread_local! {
    /// A thread's panels and sums, made when it first meets a prompt; and what it takes to begin at a cache line.
    static SCRATCH: RefCell<Vec<f32>> = RefCell::new(vec![0.0; (DEPTH + ROWS) * COLUMNS + LANES]);
}

/// Some rows of the outputs from `n` on.
struct Task<'a> {
    x: &'a [f32],
    rows: std::ops::Range<usize>,
    part: &'a Part<'a>,
    up: Option<&'a Part<'a>>,
    n: usize,
    out: Shared,
    width: usize,
    epilogue: Epilogue,
    /// Two panels of `[DEPTH][PANEL]` weights.
    panels: &'a mut [f32],
    /// `[ROWS][COLUMNS]`.
    sums: &'a mut [f32],
}

impl Kernel for Task<'_> {
    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        multiply::<L>(&mut self);
        finish(&mut self);
    }
}

/// `sums[r][c] = x[r] · weight[c]` over the task's rows and both panels' outputs.
#[inline(always)]
fn multiply<L: Lanes>(task: &mut Task) {
    let columns = task.part.weight.columns;
    let rows = task.rows.len();
    let x = &task.x[task.rows.start * columns..task.rows.end * columns];
    // Where the second panel's weights are: the up projection's, or the outputs after the first panel's.
    let (right, right_n) = task.up.map_or((task.part, task.n + PANEL), |up| (up, task.n));
    let halves = if right_n < right.weight.rows { 2 } else { 1 };
    for from in (0..columns).step_by(DEPTH) {
        let depth = (columns - from).min(DEPTH);
        let (left_panel, right_panel) = task.panels.split_at_mut(DEPTH * PANEL);
        pack::<L>(&task.part.weight, task.n, from, &mut left_panel[..depth * PANEL]);
        if halves == 2 {
            pack::<L>(&right.weight, right_n, from, &mut right_panel[..depth * PANEL]);
        }
        let mut row = 0;
        while row < rows {
            let count = match rows - row {
                12.. if L::TILE >= 12 => 12,
                6.. if L::TILE >= 6 => 6,
                2.. => 2,
                _ => 1,
            };
            for column in (0..halves * PANEL).step_by(2 * L::Part::WIDTH) {
                let panel = &task.panels[column / PANEL * (DEPTH * PANEL)..][..depth * PANEL];
                let panel = &panel[column % PANEL..];
                let x = &x[row * columns + from..];
                let sums = &mut task.sums[row * COLUMNS + column..];
                match count {
                    12 if L::TILE >= 12 => tile::<L::Part, 12>(x, columns, panel, depth, sums, from > 0),
                    6 if L::TILE >= 6 => tile::<L::Part, 6>(x, columns, panel, depth, sums, from > 0),
                    2 => tile::<L::Part, 2>(x, columns, panel, depth, sums, from > 0),
                    _ => tile::<L::Part, 1>(x, columns, panel, depth, sums, from > 0),
                }
            }
            row += count;
        }
    }
}

/// `panel[k][i] = weight[n + i][from + k]` in f32, [`PANEL`] outputs a k; those beyond the last are 0.
#[inline(always)]
fn pack<L: Lanes>(weight: &Matrix, n: usize, from: usize, panel: &mut [f32]) {
    match weight.dtype {
        Dtype::Bf16 => pack_as::<L, Bf16>(weight, n, from, panel),
        Dtype::F16 => pack_as::<L, F16>(weight, n, from, panel),
        Dtype::F32 => pack_as::<L, F32>(weight, n, from, panel),
        Dtype::E4m3 => pack_as::<L, E4m3>(weight, n, from, panel),
    }
}

#[inline(always)]
fn pack_as<L: Lanes, E: Element>(weight: &Matrix, n: usize, from: usize, panel: &mut [f32]) {
    let depth = panel.len() / PANEL;
    let row = |i: usize| &weight.bytes[((n + i) * weight.columns + from) * E::SIZE..][..depth * E::SIZE];
    let count = (weight.rows - n).min(PANEL);
    let mut i = 0;
    while i + SQUARE <= count {
        let mut k = 0;
        while k + LANES <= depth {
            let mut block = [[0.0f32; LANES]; SQUARE];
            // SAFETY: the elements k..k + LANES of a row are there; `block` has room for them; the panel
            // has rows k..k + LANES, of which columns i..i + SQUARE are written.
            unsafe {
                for (j, block) in block.iter_mut().enumerate() {
                    let mut lane = 0;
                    while lane < LANES {
                        let values: L::Part = E::load(row(i + j).as_ptr().add((k + lane) * E::SIZE));
                        values.store(block.as_mut_ptr().add(lane));
                        lane += L::Part::WIDTH;
                    }
                }
                for half in (0..LANES).step_by(SQUARE) {
                    let to = panel.as_mut_ptr().add((k + half) * PANEL + i);
                    L::transpose(block.as_ptr().cast::<f32>().add(half), LANES, to, PANEL);
                }
            }
            k += LANES;
        }
        for j in i..i + SQUARE {
            for k in k..depth {
                panel[k * PANEL + j] = E::get(row(j), k);
            }
        }
        i += SQUARE;
    }
    for i in i..PANEL {
        for k in 0..depth {
            panel[k * PANEL + i] = if i < count { E::get(row(i), k) } else { 0.0 };
        }
    }
}

/// `R` rows of `x`, `stride` apart, against the two vectors of outputs at the front of `panel`; added to `sums`,
/// `[_][COLUMNS]`, from the second piece of the chains on.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn tile<P: super::lanes::Part, const R: usize>(
    x: &[f32],
    stride: usize,
    panel: &[f32],
    depth: usize,
    sums: &mut [f32],
    add: bool,
) {
    assert!(x.len() >= (R - 1) * stride + depth, "rows");
    assert!(panel.len() >= (depth - 1) * PANEL + 2 * P::WIDTH, "panel");
    assert!(sums.len() >= (R - 1) * COLUMNS + 2 * P::WIDTH, "sums");
    // SAFETY: the lengths above.
    unsafe {
        let mut rows = [x.as_ptr(); R];
        for r in 0..R {
            rows[r] = x.as_ptr().add(r * stride);
        }
        let mut chains = [[P::zero(); 2]; R];
        for k in 0..depth {
            let left = P::load(panel.as_ptr().add(k * PANEL));
            let right = P::load(panel.as_ptr().add(k * PANEL + P::WIDTH));
            for r in 0..R {
                let x = P::splat(*rows[r].add(k));
                chains[r][0] = left.mul_add(x, chains[r][0]);
                chains[r][1] = right.mul_add(x, chains[r][1]);
            }
        }
        let one = P::splat(1.0);
        for r in 0..R {
            for half in 0..2 {
                let to = sums.as_mut_ptr().add(r * COLUMNS + half * P::WIDTH);
                let chain = chains[r][half];
                (if add { one.mul_add(P::load(to), chain) } else { chain }).store(to);
            }
        }
    }
}

/// Writes the finished sums to the output.
#[inline(always)]
fn finish(task: &mut Task) {
    let part = task.part;
    let step = if task.up.is_some() { PANEL } else { COLUMNS };
    let count = (part.weight.rows - task.n).min(step);
    for (i, r) in task.rows.clone().enumerate() {
        let (sums, ups) = task.sums[i * COLUMNS..][..COLUMNS].split_at_mut(step);
        let sums = &mut sums[..count];
        linear::finish(sums, part, task.n, r);
        if let Some(up) = task.up {
            linear::finish(&mut ups[..count], up, task.n, r);
            swiglu(sums, &ups[..count]);
        }
        let first = r * task.width + part.column + task.n;
        // SAFETY: `check` saw that rows · width floats are there and that the part's columns lie within a
        // row; no other task has these rows of these columns.
        let out = unsafe { std::slice::from_raw_parts_mut(task.out.0.add(first), count) };
        if task.epilogue == Epilogue::Add {
            for (out, sum) in out.iter_mut().zip(sums) {
                *out += *sum;
            }
        } else {
            out.copy_from_slice(sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            lanes::element,
            linear::{
                Scales,
                tests::{noise, stored},
            },
        },
        *,
    };

    /// x · w in the one order, and within rounding of it in f64.
    fn dot(x: &[f32], w: &[f32]) -> f32 {
        let mut sum = None;
        for (x, w) in x.chunks(DEPTH).zip(w.chunks(DEPTH)) {
            let piece = x.iter().zip(w).fold(0.0f32, |sum, (x, w)| w.mul_add(*x, sum));
            sum = Some(sum.map_or(piece, |sum: f32| sum + piece));
        }
        let sum = sum.expect("a column");
        let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
        let (exact, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
        assert!((f64::from(sum) - exact).abs() <= 4e-6 * size, "{sum} for {exact}");
        sum
    }

    /// Every width, type, instruction set, number of rows and threads: the bits of the chains as the module's first lines
    /// say them. The output is poisoned, and so are the activations past the end.
    #[test]
    fn every_output_is_one_chain() {
        const MOST: usize = ROWS + 45;
        let pools = [1, 3].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
        for (case, &(columns, outputs)) in
            [(1, 1), (15, 3), (16, 8), (17, 31), (52, 131), (288, 33), (512, 64), (513, 7), (1043, 65)]
                .iter()
                .enumerate()
        {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::E4m3] {
                let bytes = stored(&noise(columns * outputs, 3 + case as u64), dtype);
                let bias_bytes = stored(&noise(outputs, 77), Dtype::F16);
                let weight = Matrix { bytes: &bytes, dtype, rows: outputs, columns };
                let bias = Matrix { bytes: &bias_bytes, dtype: Dtype::F16, rows: outputs, columns: 1 };
                let (row_scales, output_scales) = (noise(MOST, 12), noise(outputs, 13));
                let scales = Scales { rows: &row_scales, outputs: &output_scales };
                let scales = (dtype == Dtype::E4m3).then_some(scales);
                let parts = [Part { weight, bias: Some(bias), column: 2, scales }];
                let width = outputs + 3;
                let mut x = noise(MOST * columns, 9);
                let values: Vec<f32> = (0..columns * outputs).map(|i| element(dtype, &bytes, i)).collect();
                let expected: Vec<f32> = (0..MOST * outputs)
                    .map(|i| {
                        let (row, n) = (i / outputs, i % outputs);
                        let sum = dot(&x[row * columns..][..columns], &values[n * columns..][..columns]);
                        let scaled = |s: Scales| s.rows[row] * s.outputs[n] * (256.0 * sum);
                        scales.map_or(sum, scaled) + element(Dtype::F16, &bias_bytes, n)
                    })
                    .collect();
                x.extend([f32::NAN; 16]);
                for isa in Isa::available() {
                    for rows in [1, 2, 3, 5, 12, 25, ROWS / 2 + 1, ROWS, MOST] {
                        if rows > 25 && (isa == Isa::Portable || matches!(dtype, Dtype::F16 | Dtype::E4m3)) {
                            continue;
                        }
                        for pool in &pools {
                            let mut out = vec![f32::NAN; rows * width];
                            let x = &x[..rows * columns + usize::from(rows == MOST) * 16];
                            pool.install(|| gemm(isa, x, rows, &parts, &mut out, width, Epilogue::Store));
                            for (i, got) in out.iter().enumerate() {
                                let (row, n) = (i / width, i % width);
                                let what = || {
                                    format!("{isa:?} {dtype:?} {columns}x{outputs}, {rows} rows: {row}, {n}")
                                };
                                if (2..2 + outputs).contains(&n) {
                                    let want = expected[row * outputs + n - 2];
                                    assert_eq!(got.to_bits(), want.to_bits(), "{}", what());
                                } else {
                                    assert!(got.is_nan(), "{}", what());
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Three parts side by side, the residual stream, and SwiGLU of parts in two types with biases.
    #[test]
    fn epilogues_add_and_gate() {
        let (columns, outputs, rows) = (40, 70, 29);
        let bytes = [1, 2, 3].map(|seed| stored(&noise(columns * outputs, seed), Dtype::Bf16));
        let wide = stored(&noise(columns * outputs, 4), Dtype::F32);
        let bias = stored(&noise(outputs, 5), Dtype::Bf16);
        let part = |bytes, dtype, column| Part {
            weight: Matrix { bytes, dtype, rows: outputs, columns },
            bias: Some(Matrix { bytes: &bias, dtype: Dtype::Bf16, rows: outputs, columns: 1 }),
            column,
            scales: None,
        };
        let x = noise(rows * columns, 6);
        let product = |isa, parts: &[Part], width, epilogue, mut out: Vec<f32>| {
            gemm(isa, &x, rows, parts, &mut out, width, epilogue);
            out
        };
        let alone = |bytes, dtype| {
            let empty = vec![f32::NAN; rows * outputs];
            product(Isa::Portable, &[part(bytes, dtype, 0)], outputs, Epilogue::Store, empty)
        };
        let all = [0, 1, 2].map(|i| alone(&bytes[i], Dtype::Bf16));
        let ups = alone(&wide, Dtype::F32);
        let mut gated = None;
        for isa in Isa::available() {
            let parts = [0, 1, 2].map(|i| part(&bytes[i], Dtype::Bf16, i * outputs));
            let side_by_side =
                product(isa, &parts, 3 * outputs, Epilogue::Store, vec![f32::NAN; 3 * rows * outputs]);
            for (i, got) in side_by_side.iter().enumerate() {
                let (row, n) = (i / (3 * outputs), i % (3 * outputs));
                assert_eq!(*got, all[n / outputs][row * outputs + n % outputs], "{isa:?} {row}, {n}");
            }
            let sum = product(isa, &parts[..1], outputs, Epilogue::Add, ups.clone());
            assert!((0..sum.len()).all(|i| sum[i] == ups[i] + all[0][i]), "{isa:?}");
            let parts = [part(&bytes[0], Dtype::Bf16, 0), part(&wide, Dtype::F32, 0)];
            let out = product(isa, &parts, outputs, Epilogue::SwiGlu, vec![f32::NAN; rows * outputs]);
            for (i, got) in out.iter().enumerate() {
                let gate = f64::from(all[0][i]);
                let exact = gate / (1.0 + (-gate).exp()) * f64::from(ups[i]);
                assert!((f64::from(*got) - exact).abs() < 1e-5, "{isa:?} {got} for {exact}");
            }
            assert_eq!(gated.get_or_insert_with(|| out.clone()), &out, "{isa:?}");
        }
    }
}
