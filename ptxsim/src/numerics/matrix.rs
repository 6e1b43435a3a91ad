//! `mma.sync`: fragments over the 32 lanes of a warp, and their product.
//!
//! All dense shapes with 32-bit operand words share one layout. With P elements to a word, lane l, g = l / 4, t = l % 4:
//! word w of A holds row g + 8 · (w mod 2), columns 4P · (w / 2) + P · t onwards (shapes with 8 rows: row g, one word);
//! word w of B holds rows 4P · w + P · t onwards of column g; the accumulators hold row g + 8 · h, columns 2t and 2t + 1.
//!
//! Sums are taken in f32 over k in rising order by default. [`Exact`] gives the order and truncation of the hardware.
//! Not modelled: `.b1`, the 8×8×4 f16 shape of Volta, sparse and block-scaled forms.

use super::convert::Fp8;
use super::exact::{self, Format, Rounding};
use super::float::{bits_f32, fma_f64};
use super::half::{bf16_to_f32, f16_from_f32, f16_to_f32};

/// The type of a multiplied element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// f16, two to a word.
    F16,
    /// bf16, two to a word.
    Bf16,
    /// tf32, one to a word; the low 13 bits are ignored.
    Tf32,
    /// e4m3, four to a word.
    E4m3,
    /// e5m2, four to a word.
    E5m2,
    /// Signed bytes, four to a word.
    S8,
    /// Unsigned bytes, four to a word.
    U8,
    /// Signed nibbles, eight to a word.
    S4,
    /// Unsigned nibbles, eight to a word.
    U4,
    /// f64, one to a 64-bit register.
    F64,
}

impl Element {
    /// Elements in a register.
    #[inline]
    fn per_word(self) -> usize {
        match self {
            Element::Tf32 | Element::F64 => 1,
            Element::F16 | Element::Bf16 => 2,
            Element::E4m3 | Element::E5m2 | Element::S8 | Element::U8 => 4,
            Element::S4 | Element::U4 => 8,
        }
    }

    /// The exponent of the smallest normal number of a float type of at most 32 bits.
    fn least_exponent(self) -> i32 {
        match self {
            Element::F16 | Element::E5m2 => -14,
            Element::E4m3 => -6,
            _ => -126,
        }
    }
}

/// The type of an accumulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accumulator {
    /// f16, two to a word. Sums are kept in f32 and rounded once at the end.
    F16,
    /// f32.
    F32,
    /// s32.
    S32,
    /// f64.
    F64,
}

/// The tensor core whose float arithmetic is reproduced: in each step, all exact products and the addend are aligned to the
/// largest exponent among them, truncated, added exactly and rounded toward zero. The step is 16 bytes of operand on Ampere
/// and 32 on Hopper, so k8 and k16 for 16-bit types.
///
/// Reported for f16 and bf16; the same rule for tf32, 14 fraction bits for fp8 and the final rounding of f16 accumulators
/// are not confirmed on hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exact {
    /// sm_80 to sm_89: 24 fraction bits.
    Ampere,
    /// sm_90: 25 fraction bits.
    Hopper,
}

/// What tensor cores have a rate of their own for: the types that are multiplied and, as some GPUs are faster with it, f16 sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// f16 or bf16, summed in f32.
    Half,
    /// f16, with an addend or a result of f16.
    HalfToHalf,
    /// tf32.
    Tf32,
    /// e4m3 and e5m2, summed in f32.
    Fp8,
    /// e4m3 and e5m2, summed in f16.
    Fp8ToHalf,
    /// Bytes.
    Int8,
    /// Nibbles.
    Int4,
    /// f64.
    Double,
}

impl Precision {
    /// All of them.
    pub const ALL: [Precision; 8] = {
        use Precision::*;
        [Half, HalfToHalf, Tf32, Fp8, Fp8ToHalf, Int8, Int4, Double]
    };
}

/// One form of `mma.sync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mma {
    m: usize,
    k: usize,
    a: Element,
    b: Element,
    c: Accumulator,
    d: Accumulator,
    saturate: bool,
}

type Word = [u32; 32];

impl Mma {
    /// The form `mma.sync.m{M}n{N}k{K}.row.col.d.a.b.c`, `shape` = (M, N, K); `saturate` is `.satfinite` on integers.
    /// `None` if PTX has no such form or it is not modelled.
    pub fn new(
        shape: (usize, usize, usize),
        a: Element,
        b: Element,
        c: Accumulator,
        d: Accumulator,
        saturate: bool,
    ) -> Option<Mma> {
        use Element::*;
        let floats = match (a, b) {
            (F16, F16) => matches!(shape, (16, 8, 8 | 16)),
            (Bf16, Bf16) => matches!(shape, (16, 8, 8 | 16)) && c == Accumulator::F32,
            (Tf32, Tf32) => matches!(shape, (16, 8, 4 | 8)) && c == Accumulator::F32,
            (E4m3 | E5m2, E4m3 | E5m2) => matches!(shape, (16, 8, 16 | 32)),
            _ => false,
        };
        let integers = match (a, b) {
            (S8 | U8, S8 | U8) => matches!(shape, (8, 8, 16) | (16, 8, 16 | 32)),
            (S4 | U4, S4 | U4) => matches!(shape, (8, 8, 32) | (16, 8, 32 | 64)),
            _ => false,
        };
        let valid = match (c, d) {
            (Accumulator::S32, Accumulator::S32) => integers,
            (Accumulator::F64, Accumulator::F64) => {
                (a, b) == (F64, F64) && matches!(shape, (8, 8, 4) | (16, 8, 4 | 8 | 16)) && !saturate
            }
            (Accumulator::F32, Accumulator::F32) | (Accumulator::F16, Accumulator::F16) => {
                floats && !saturate
            }
            (Accumulator::F16, Accumulator::F32) | (Accumulator::F32, Accumulator::F16) => {
                floats && a == F16 && shape.2 == 16 && !saturate
            }
            _ => false,
        };
        valid.then_some(Mma { m: shape.0, k: shape.2, a, b, c, d, saturate })
    }

    /// Registers of a, b, c and d in each lane: 32-bit ones, or 64-bit ones for f64.
    pub fn registers(&self) -> (usize, usize, usize, usize) {
        let operand = |element: Element| self.k / (4 * element.per_word());
        let accumulator = |kind| self.m / 8 * if kind == Accumulator::F16 { 1 } else { 2 };
        (self.m / 8 * operand(self.a), operand(self.b), accumulator(self.c), accumulator(self.d))
    }

    /// Multiply-adds of one instruction: m · n · k.
    pub fn multiply_adds(&self) -> u64 {
        (self.m * 8 * self.k) as u64
    }

    /// What its rate depends on.
    pub fn precision(&self) -> Precision {
        let to_half = self.c == Accumulator::F16 || self.d == Accumulator::F16;
        match self.a {
            Element::F16 | Element::Bf16 if to_half => Precision::HalfToHalf,
            Element::F16 | Element::Bf16 => Precision::Half,
            Element::Tf32 => Precision::Tf32,
            Element::E4m3 | Element::E5m2 if to_half => Precision::Fp8ToHalf,
            Element::E4m3 | Element::E5m2 => Precision::Fp8,
            Element::S8 | Element::U8 => Precision::Int8,
            Element::S4 | Element::U4 => Precision::Int4,
            Element::F64 => Precision::Double,
        }
    }

    /// Those of the multiply-adds whose row of A and column of B are not all zero; the rest is padding.
    pub fn useful(&self, a: &[Word], b: &[Word]) -> u64 {
        let (mut rows, mut columns) = (0u32, 0u32);
        for (i, word) in a.iter().enumerate() {
            for (lane, value) in word.iter().enumerate() {
                rows |= u32::from(*value != 0) << (lane / 4 + 8 * (i & 1) * (self.m / 16));
            }
        }
        for word in b {
            for (lane, value) in word.iter().enumerate() {
                columns |= u32::from(*value != 0) << (lane / 4);
            }
        }
        u64::from(rows.count_ones() * columns.count_ones()) * self.k as u64
    }

    /// d = a · b + c for all types but f64. The slices hold as many registers as [`registers`](Self::registers) says, each
    /// with its 32 lanes; `exact` asks for a tensor core's float arithmetic in place of plain f32 sums.
    pub fn run(&self, exact: Option<Exact>, a: &[Word], b: &[Word], c: &[Word], d: &mut [Word]) {
        match (self.c, self.k) {
            (Accumulator::S32, 16) => self.integers::<16>(a, b, c, d),
            (Accumulator::S32, 32) => self.integers::<32>(a, b, c, d),
            (Accumulator::S32, _) => self.integers::<64>(a, b, c, d),
            (_, 4) => self.floats::<4>(exact, a, b, c, d),
            (_, 8) => self.floats::<8>(exact, a, b, c, d),
            (_, 16) => self.floats::<16>(exact, a, b, c, d),
            _ => self.floats::<32>(exact, a, b, c, d),
        }
    }

    /// d = a · b + c for f64, each step one fused multiply-add, k rising.
    pub fn run_f64(&self, a: &[[u64; 32]], b: &[[u64; 32]], c: &[[u64; 32]], d: &mut [[u64; 32]]) {
        for half in 0..self.m / 8 {
            for lane in 0..32 {
                for column in 0..2 {
                    let (g, n) = (lane / 4, 2 * (lane % 4) + column);
                    let sum = (0..self.k).fold(c[2 * half + column][lane], |sum, k| {
                        let x = a[self.m / 8 * (k / 4) + half][4 * g + k % 4];
                        fma_f64(x, b[k / 4][4 * n + k % 4], sum, Rounding::Rn)
                    });
                    d[2 * half + column][lane] = sum;
                }
            }
        }
    }

    fn floats<const K: usize>(
        &self,
        exact: Option<Exact>,
        a: &[Word],
        b: &[Word],
        c: &[Word],
        d: &mut [Word],
    ) {
        let left: [[f32; K]; 16] = match self.a {
            Element::F16 => left_of(a, self.m, unpack_f16),
            Element::Bf16 => left_of(a, self.m, unpack_bf16),
            Element::Tf32 => left_of(a, self.m, unpack_tf32),
            Element::E4m3 => left_of(a, self.m, |w| unpack_fp8(w, Fp8::E4m3)),
            _ => left_of(a, self.m, |w| unpack_fp8(w, Fp8::E5m2)),
        };
        let right: [[f32; 8]; K] = match self.b {
            Element::F16 => right_of(b, unpack_f16),
            Element::Bf16 => right_of(b, unpack_bf16),
            Element::Tf32 => right_of(b, unpack_tf32),
            Element::E4m3 => right_of(b, |w| unpack_fp8(w, Fp8::E4m3)),
            _ => right_of(b, |w| unpack_fp8(w, Fp8::E5m2)),
        };
        let mut sums = accumulators(c, self.c == Accumulator::F16);
        match exact {
            None => multiply(&left, &right, &mut sums),
            Some(core) => self.tensor_core(core, &left, &right, &mut sums),
        }
        store(&sums, d, self.d == Accumulator::F16);
    }

    /// The products of `left` and `right` added to `sums` as a tensor core does it.
    fn tensor_core<const K: usize>(
        &self,
        core: Exact,
        left: &[[f32; K]; 16],
        right: &[[f32; 8]; K],
        sums: &mut [[f32; 8]; 16],
    ) {
        let fp8 = self.a.per_word() == 4;
        let (bytes, fraction) = match core {
            Exact::Ampere => (16, if fp8 { 14 } else { 24 }),
            Exact::Hopper => (32, if fp8 { 14 } else { 25 }),
        };
        let step = bytes / 4 * self.a.per_word();
        let (a_least, b_least) = (self.a.least_exponent(), self.b.least_exponent());
        for (row, sums) in left.iter().zip(sums) {
            for (n, sum) in sums.iter_mut().enumerate() {
                for start in (0..K).step_by(step) {
                    let terms = (start..K.min(start + step)).map(|k| (row[k], right[k][n]));
                    *sum = truncated_sum(terms, *sum, a_least, b_least, fraction);
                }
            }
        }
    }

    fn integers<const K: usize>(&self, a: &[Word], b: &[Word], c: &[Word], d: &mut [Word]) {
        let left: [[i32; K]; 16] = match self.a {
            Element::S8 => left_of(a, self.m, unpack_s8),
            Element::U8 => left_of(a, self.m, unpack_u8),
            Element::S4 => left_of(a, self.m, unpack_s4),
            _ => left_of(a, self.m, unpack_u4),
        };
        let right: [[i32; 8]; K] = match self.b {
            Element::S8 => right_of(b, unpack_s8),
            Element::U8 => right_of(b, unpack_u8),
            Element::S4 => right_of(b, unpack_s4),
            _ => right_of(b, unpack_u4),
        };
        // At most 64 products below 2^16 each: the sum of products is exact.
        let mut sums = [[0i32; 8]; 16];
        for (sums, row) in sums.iter_mut().zip(&left) {
            for (x, column) in row.iter().zip(&right) {
                for (sum, y) in sums.iter_mut().zip(column) {
                    *sum += x * y;
                }
            }
        }
        for half in 0..self.m / 8 {
            for lane in 0..32 {
                for i in 0..2 {
                    let sum = sums[lane / 4 + 8 * half][2 * (lane % 4) + i];
                    let addend = c[2 * half + i][lane] as i32;
                    let total =
                        if self.saturate { addend.saturating_add(sum) } else { addend.wrapping_add(sum) };
                    d[2 * half + i][lane] = total as u32;
                }
            }
        }
    }
}

#[inline(always)]
fn unpack_f16(word: u32) -> [f32; 2] {
    [f16_to_f32(word as u16), f16_to_f32((word >> 16) as u16)]
}

#[inline(always)]
fn unpack_bf16(word: u32) -> [f32; 2] {
    [bf16_to_f32(word as u16), bf16_to_f32((word >> 16) as u16)]
}

#[inline(always)]
fn unpack_tf32(word: u32) -> [f32; 1] {
    [f32::from_bits(word & !0x1fff)]
}

#[inline(always)]
fn unpack_fp8(word: u32, fp8: Fp8) -> [f32; 4] {
    word.to_le_bytes().map(|byte| fp8.to_f32(byte))
}

#[inline(always)]
fn unpack_s8(word: u32) -> [i32; 4] {
    word.to_le_bytes().map(|byte| i32::from(byte as i8))
}

#[inline(always)]
fn unpack_u8(word: u32) -> [i32; 4] {
    word.to_le_bytes().map(i32::from)
}

#[inline(always)]
fn unpack_s4(word: u32) -> [i32; 8] {
    std::array::from_fn(|i| (word << (28 - 4 * i)) as i32 >> 28)
}

#[inline(always)]
fn unpack_u4(word: u32) -> [i32; 8] {
    std::array::from_fn(|i| (word >> (4 * i) & 0xf) as i32)
}

/// The A fragment as a matrix; rows from `m` on are zero.
#[inline(always)]
fn left_of<T: Copy + Default, const K: usize, const P: usize>(
    words: &[Word],
    m: usize,
    unpack: impl Fn(u32) -> [T; P],
) -> [[T; K]; 16] {
    let mut matrix = [[T::default(); K]; 16];
    let halves = m / 8;
    for block in 0..K / (4 * P) {
        for half in 0..halves {
            let elements = unpack_word(&words[halves * block + half], &unpack);
            for g in 0..8 {
                let row = &mut matrix[g + 8 * half][4 * P * block..4 * P * (block + 1)];
                for (t, group) in row.chunks_exact_mut(P).enumerate() {
                    for i in 0..P {
                        group[i] = elements[i][4 * g + t];
                    }
                }
            }
        }
    }
    matrix
}

/// All lanes of a word, element by element: this order lets the conversion vectorise over the lanes.
#[inline(always)]
fn unpack_word<T: Copy + Default, const P: usize>(
    word: &Word,
    unpack: impl Fn(u32) -> [T; P],
) -> [[T; 32]; P] {
    let mut elements = [[T::default(); 32]; P];
    for lane in 0..32 {
        let unpacked = unpack(word[lane]);
        for i in 0..P {
            elements[i][lane] = unpacked[i];
        }
    }
    elements
}

/// The B fragment as a matrix, k by column.
#[inline(always)]
fn right_of<T: Copy + Default, const K: usize, const P: usize>(
    words: &[Word],
    unpack: impl Fn(u32) -> [T; P],
) -> [[T; 8]; K] {
    let mut matrix = [[T::default(); 8]; K];
    for block in 0..K / (4 * P) {
        let elements = unpack_word(&words[block], &unpack);
        for (i, elements) in elements.iter().enumerate() {
            for t in 0..4 {
                let row = &mut matrix[4 * P * block + P * t + i];
                for (n, element) in row.iter_mut().enumerate() {
                    *element = elements[4 * n + t];
                }
            }
        }
    }
    matrix
}

/// The accumulator fragment as a matrix; `packed` for f16.
#[inline(always)]
fn accumulators(c: &[Word], packed: bool) -> [[f32; 8]; 16] {
    let mut matrix = [[0.0; 8]; 16];
    for (half, rows) in matrix.chunks_exact_mut(8).enumerate() {
        // One slice check for each word, none for each lane.
        let (even, odd) = if packed { (&c[half], &c[half]) } else { (&c[2 * half], &c[2 * half + 1]) };
        for ((row, even), odd) in rows.iter_mut().zip(even.chunks_exact(4)).zip(odd.chunks_exact(4)) {
            for (t, pair) in row.chunks_exact_mut(2).enumerate() {
                let elements = if packed {
                    unpack_f16(even[t])
                } else {
                    [f32::from_bits(even[t]), f32::from_bits(odd[t])]
                };
                pair.copy_from_slice(&elements);
            }
        }
    }
    matrix
}

/// The inverse of [`accumulators`], NaN made canonical.
#[inline(always)]
fn store(sums: &[[f32; 8]; 16], d: &mut [Word], packed: bool) {
    for (half, rows) in sums.chunks_exact(8).enumerate() {
        if packed {
            for (words, row) in d[half].chunks_exact_mut(4).zip(rows) {
                for (word, pair) in words.iter_mut().zip(row.chunks_exact(2)) {
                    *word = u32::from(f16_from_f32(pair[1])) << 16 | u32::from(f16_from_f32(pair[0]));
                }
            }
            continue;
        }
        let [even, odd] = &mut d[2 * half..2 * half + 2] else { unreachable!("a range of two") };
        for ((row, even), odd) in rows.iter().zip(even.chunks_exact_mut(4)).zip(odd.chunks_exact_mut(4)) {
            let row: [u32; 8] = row.map(bits_f32);
            for t in 0..4 {
                (even[t], odd[t]) = (row[2 * t], row[2 * t + 1]);
            }
        }
    }
}

/// sums += left · right: the eight columns are the vector, k rises. Four rows at once hide the latency of the sums.
#[inline(always)]
fn multiply<const K: usize>(left: &[[f32; K]; 16], right: &[[f32; 8]; K], sums: &mut [[f32; 8]; 16]) {
    for (rows, out) in left.chunks_exact(4).zip(sums.chunks_exact_mut(4)) {
        let mut total = [out[0], out[1], out[2], out[3]];
        for k in 0..K {
            for (total, row) in total.iter_mut().zip(rows) {
                for n in 0..8 {
                    total[n] += row[k] * right[k][n];
                }
            }
        }
        out.copy_from_slice(&total);
    }
}

/// sign, exponent and 24-bit significand of a finite value, the exponent not below `least`. The value is
/// ±significand · 2^(exponent − 23).
fn decode(x: f32, least: i32) -> (bool, i32, i64) {
    let bits = x.to_bits();
    let field = (bits >> 23 & 0xff) as i32;
    let significand = i64::from(bits & 0x7f_ffff) | i64::from(field != 0) << 23;
    let exponent = field.max(1) - 127;
    // A subnormal number of a smaller format was normalised on the way to f32; no bit is lost on the way back.
    let exponent_there = exponent.max(least);
    (x.is_sign_negative(), exponent_there, significand >> (exponent_there - exponent).min(24))
}

/// One step of a tensor core: see [`Exact`]. A product's exponent is the sum of its factors', not normalised; zeros have none.
fn truncated_sum(
    terms: impl Iterator<Item = (f32, f32)> + Clone,
    addend: f32,
    a_least: i32,
    b_least: i32,
    fraction: i32,
) -> f32 {
    if !addend.is_finite() || terms.clone().any(|(a, b)| !a.is_finite() || !b.is_finite()) {
        // Infinities and NaN come out alike in any order; a finite overflow cannot hide them.
        let special = |x: f32| if x.is_finite() { 0.0 } else { x };
        let products = terms.map(|(a, b)| if a.is_finite() && b.is_finite() { 0.0 } else { a * b });
        return f32::from_bits(bits_f32(products.fold(special(addend), |sum, x| sum + x)));
    }
    let products = terms.map(|(a, b)| {
        let ((a_negative, a_exponent, x), (b_negative, b_exponent, y)) =
            (decode(a, a_least), decode(b, b_least));
        // 46 fraction bits.
        (a_negative != b_negative, a_exponent + b_exponent, x * y)
    });
    let (negative, exponent, significand) = decode(addend, -126);
    let addend_term = (negative, exponent, significand << 23);
    let all = products.chain([addend_term]);
    let Some(largest) = all.clone().filter(|term| term.2 != 0).map(|term| term.1).max() else {
        return if all.clone().all(|term| term.0) { -0.0 } else { 0.0 };
    };
    let sum: i64 = all
        .map(|(negative, exponent, significand)| {
            // A zero may have an exponent above the largest that counts.
            let shift = (largest - exponent).max(0) + 46 - fraction;
            let aligned = significand >> shift.min(63);
            if negative { -aligned } else { aligned }
        })
        .sum();
    let exact = exact::Exact {
        negative: sum < 0,
        exponent: largest - fraction,
        significand: u128::from(sum.unsigned_abs()),
    };
    f32::from_bits(exact.round(Format::F32, Rounding::Rz) as u32)
}

#[cfg(test)]
mod tests {
    use super::super::convert::{f32_to_fp8_x2, f32_to_half};
    use super::super::half::Half;
    use super::*;

    /// A small generator, so that the tests need no seed file.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u32 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as u32 ^ (self.0 >> 40) as u32
        }

        /// A multiple of 1/4 in [−4, 4): every format holds it, and every sum of products is exact.
        fn small(&mut self) -> f64 {
            f64::from(self.next() % 32) / 4.0 - 4.0
        }
    }

    fn element_bits(element: Element) -> usize {
        32 / element.per_word()
    }

    /// The bits of a small value in an element type.
    fn encode(x: f64, element: Element) -> u32 {
        let single = (x as f32).to_bits();
        let clamp = Default::default();
        match element {
            Element::F16 => u32::from(f32_to_half(single, Half::F16, Rounding::Rn, clamp)),
            Element::Bf16 => u32::from(f32_to_half(single, Half::Bf16, Rounding::Rn, clamp)),
            Element::Tf32 => single,
            Element::E4m3 => u32::from(f32_to_fp8_x2(0, single, Fp8::E4m3, false)),
            Element::E5m2 => u32::from(f32_to_fp8_x2(0, single, Fp8::E5m2, false)),
            _ => x as i32 as u32 & ((1u64 << element_bits(element)) - 1) as u32,
        }
    }

    fn put(fragment: &mut [Word], word: usize, lane: usize, position: usize, element: Element, x: f64) {
        fragment[word][lane] |= encode(x, element) << (position * element_bits(element));
    }

    /// Every form against a triple loop in f64. The lane and register of an element are written out per shape family from the
    /// layout's definition by element index, unlike the word-wise form of the code.
    fn check(
        shape: (usize, usize, usize),
        a: Element,
        b: Element,
        c: Accumulator,
        d: Accumulator,
        exact: Option<Exact>,
    ) {
        let mma = Mma::new(shape, a, b, c, d, false).unwrap();
        let (m, n, k) = shape;
        let (words_a, words_b, words_c, words_d) = mma.registers();
        let mut random = Random(7);
        let mut value = |element: Element| match element {
            Element::S8 => f64::from(random.next() as i8),
            Element::U8 => f64::from(random.next() as u8),
            Element::S4 => f64::from(random.next() % 16) - 8.0,
            Element::U4 => f64::from(random.next() % 16),
            // e5m2 has two fraction bits: halves in [−2, 2).
            Element::E4m3 | Element::E5m2 => f64::from(random.next() % 8) / 2.0 - 2.0,
            _ => random.small(),
        };
        let matrix_a: Vec<Vec<f64>> = (0..m).map(|_| (0..k).map(|_| value(a)).collect()).collect();
        let matrix_b: Vec<Vec<f64>> = (0..k).map(|_| (0..n).map(|_| value(b)).collect()).collect();
        let matrix_c: Vec<Vec<f64>> = (0..m).map(|_| (0..n).map(|_| value(Element::S8)).collect()).collect();
        let (mut fa, mut fb, mut fc) =
            (vec![[0; 32]; words_a], vec![[0; 32]; words_b], vec![[0; 32]; words_c]);
        for lane in 0..32 {
            let (group, thread) = (lane >> 2, lane & 3);
            let per = a.per_word();
            for i in 0..words_a * per {
                let upper = m == 16 && (i / per) % 2 == 1;
                let row = group + if upper { 8 } else { 0 };
                let column =
                    thread * per + i % per + if i / per >= m / 8 { 4 * per * (i / (per * m / 8)) } else { 0 };
                put(&mut fa, i / per, lane, i % per, a, matrix_a[row][column]);
            }
            let per = b.per_word();
            for i in 0..words_b * per {
                let row = thread * per + i % per + 4 * per * (i / per);
                put(&mut fb, i / per, lane, i % per, b, matrix_b[row][group]);
            }
            for i in 0..m / 4 {
                let x = matrix_c[if i < 2 { group } else { group + 8 }][thread * 2 + (i & 1)];
                match c {
                    Accumulator::F16 => put(&mut fc, i / 2, lane, i % 2, Element::F16, x),
                    Accumulator::F32 => fc[i][lane] = (x as f32).to_bits(),
                    _ => fc[i][lane] = x as i32 as u32,
                }
            }
        }
        let mut fd = vec![[0; 32]; words_d];
        mma.run(exact, &fa, &fb, &fc, &mut fd);
        let read = |word: usize, lane: usize| fd[word][lane];
        for lane in 0..32 {
            for i in 0..m / 4 {
                let (row, column) =
                    (if i < 2 { lane >> 2 } else { (lane >> 2) + 8 }, (lane & 3) * 2 + (i & 1));
                let expected: f64 = matrix_c[row][column]
                    + (0..k).map(|k| matrix_a[row][k] * matrix_b[k][column]).sum::<f64>();
                let got = match d {
                    Accumulator::F16 => f64::from(f16_to_f32((read(i / 2, lane) >> (16 * (i % 2))) as u16)),
                    Accumulator::F32 => f64::from(f32::from_bits(read(i, lane))),
                    _ => f64::from(read(i, lane) as i32),
                };
                let expected = if d == Accumulator::F16 {
                    f64::from(f16_to_f32(f16_from_f32(expected as f32)))
                } else {
                    expected
                };
                assert_eq!(got, expected, "{mma:?} {exact:?} row {row} column {column}");
            }
        }
    }

    #[test]
    fn float_fragments_match_a_triple_loop() {
        use Accumulator::{F16 as H, F32 as S};
        for exact in [None, Some(Exact::Ampere), Some(Exact::Hopper)] {
            for k in [8, 16] {
                check((16, 8, k), Element::F16, Element::F16, S, S, exact);
                check((16, 8, k), Element::F16, Element::F16, H, H, exact);
                check((16, 8, k), Element::Bf16, Element::Bf16, S, S, exact);
            }
            check((16, 8, 16), Element::F16, Element::F16, S, H, exact);
            check((16, 8, 4), Element::Tf32, Element::Tf32, S, S, exact);
            check((16, 8, 8), Element::Tf32, Element::Tf32, S, S, exact);
            for k in [16, 32] {
                for (a, b) in [
                    (Element::E4m3, Element::E5m2),
                    (Element::E5m2, Element::E4m3),
                    (Element::E4m3, Element::E4m3),
                ] {
                    check((16, 8, k), a, b, S, S, exact);
                    check((16, 8, k), a, b, H, H, exact);
                }
            }
        }
    }

    #[test]
    fn integer_fragments_match_a_triple_loop() {
        let s32 = Accumulator::S32;
        for (a, b) in [
            (Element::S8, Element::S8),
            (Element::U8, Element::S8),
            (Element::S8, Element::U8),
            (Element::U8, Element::U8),
        ] {
            for shape in [(8, 8, 16), (16, 8, 16), (16, 8, 32)] {
                check(shape, a, b, s32, s32, None);
            }
        }
        for (a, b) in [(Element::S4, Element::U4), (Element::U4, Element::S4)] {
            for shape in [(8, 8, 32), (16, 8, 32), (16, 8, 64)] {
                check(shape, a, b, s32, s32, None);
            }
        }
    }

    #[test]
    fn integer_accumulators_wrap_or_clamp() {
        for (saturate, expected) in [(false, i32::MIN as u32 + 15), (true, i32::MAX as u32)] {
            let mma =
                Mma::new((8, 8, 16), Element::S8, Element::S8, Accumulator::S32, Accumulator::S32, saturate)
                    .unwrap();
            let mut d = [[0; 32]; 2];
            mma.run(None, &[[0x0101_0101; 32]], &[[0x0101_0101; 32]], &[[i32::MAX as u32; 32]; 2], &mut d);
            assert_eq!(d, [[expected; 32]; 2]);
        }
    }

    #[test]
    fn f64_fragments_match_a_triple_loop() {
        for (m, k) in [(8, 4), (16, 4), (16, 8), (16, 16)] {
            let mma =
                Mma::new((m, 8, k), Element::F64, Element::F64, Accumulator::F64, Accumulator::F64, false)
                    .unwrap();
            let (words_a, words_b, words_c, words_d) = mma.registers();
            let mut random = Random(3);
            let mut fill = |words: usize| -> Vec<[u64; 32]> {
                (0..words).map(|_| std::array::from_fn(|_| random.small().to_bits())).collect()
            };
            let (a, b, c) = (fill(words_a), fill(words_b), fill(words_c));
            let mut d = vec![[0; 32]; words_d];
            mma.run_f64(&a, &b, &c, &mut d);
            // Scatter the fragments into matrices by element, then multiply.
            let (mut left, mut right) = (vec![vec![0.0; k]; m], vec![[0.0; 8]; k]);
            for lane in 0..32 {
                for (i, word) in a.iter().enumerate() {
                    let (row, column) = if m == 8 {
                        (lane / 4, lane % 4 + 4 * i)
                    } else {
                        (lane / 4 + 8 * (i % 2), lane % 4 + 4 * (i / 2))
                    };
                    left[row][column] = f64::from_bits(word[lane]);
                }
                for (i, word) in b.iter().enumerate() {
                    right[lane % 4 + 4 * i][lane / 4] = f64::from_bits(word[lane]);
                }
            }
            for lane in 0..32 {
                for i in 0..words_d {
                    let (row, column) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
                    let sum: f64 = (0..k).map(|k| left[row][k] * right[k][column]).sum();
                    assert_eq!(f64::from_bits(d[i][lane]), sum + f64::from_bits(c[i][lane]));
                }
            }
        }
    }

    /// The first element of a bf16 product whose first row and column are given.
    fn first(exact: Option<Exact>, row: &[f32], column: &[f32], addend: f32) -> f32 {
        let bf16 = |x: f32| x.to_bits() >> 16;
        let mma =
            Mma::new((16, 8, 16), Element::Bf16, Element::Bf16, Accumulator::F32, Accumulator::F32, false)
                .unwrap();
        let (mut a, mut b, mut c, mut d) = ([[0; 32]; 4], [[0; 32]; 2], [[0; 32]; 4], [[0; 32]; 4]);
        for (k, (&x, &y)) in row.iter().zip(column).enumerate() {
            a[2 * (k / 8)][k % 8 / 2] |= bf16(x) << (16 * (k % 2));
            b[k / 8][k % 8 / 2] |= bf16(y) << (16 * (k % 2));
        }
        c[0][0] = addend.to_bits();
        mma.run(exact, &a, &b, &c, &mut d);
        f32::from_bits(d[0][0])
    }

    #[test]
    fn tensor_cores_truncate_below_their_fraction() {
        let power = |e: i32| 2f32.powi(e);
        let one = [1.0; 16];
        let (ampere, hopper) = (Some(Exact::Ampere), Some(Exact::Hopper));
        // 1 + two halves of the last place: kept by 24 fraction bits, one bit further only by 25.
        let with = |e: i32, count: usize| {
            let mut row = [0.0; 16];
            row[0] = 1.0;
            row[1..=count].fill(power(e));
            row
        };
        assert_eq!(first(ampere, &with(-24, 2), &one, 0.0), 1.0 + power(-23));
        assert_eq!(first(ampere, &with(-25, 4), &one, 0.0), 1.0);
        assert_eq!(first(hopper, &with(-25, 4), &one, 0.0), 1.0 + power(-23));
        assert_eq!(first(hopper, &with(-26, 7), &one, 0.0), 1.0);
        // Toward zero, on both sides.
        assert_eq!(first(ampere, &with(-24, 1), &one, 0.0), 1.0);
        assert_eq!(first(ampere, &with(-24, 1).map(|x| -x), &one, 0.0), -1.0);
        // Ampere loses half a last place in each of its two steps; Hopper sums all 16 before it rounds.
        let mut row = [0.0; 16];
        (row[0], row[1], row[8]) = (1.0, power(-24), power(-24));
        assert_eq!((first(ampere, &row, &one, 0.0), first(hopper, &row, &one, 0.0)), (1.0, 1.0 + power(-23)));
        // The addend is aligned like a product.
        assert_eq!(first(ampere, &[power(-25); 4], &one, 1.0), 1.0);
        assert_eq!(first(ampere, &[1.0, -1.0], &one, power(-25)), 0.0);
        assert_eq!(first(None, &[1.0, -1.0], &one, 0.5), 0.5);
    }

    #[test]
    fn infinities_and_nan_pass_through() {
        for exact in [None, Some(Exact::Ampere), Some(Exact::Hopper)] {
            let bits = |row: &[f32], column: &[f32], c| first(exact, row, column, c).to_bits();
            assert_eq!(bits(&[f32::INFINITY], &[1.0], 1.0), 0x7f80_0000);
            assert_eq!(bits(&[f32::INFINITY], &[0.0], 1.0), 0x7fff_ffff);
            assert_eq!(bits(&[f32::INFINITY], &[1.0], f32::NEG_INFINITY), 0x7fff_ffff);
            assert_eq!(bits(&[1.0], &[1.0], f32::from_bits(0xffc0_0001)), 0x7fff_ffff);
        }
    }

    #[test]
    fn precision_is_that_of_products_and_sums() {
        use Accumulator::{F16 as H, F32 as S, F64 as D, S32};
        for (shape, element, c, d, precision) in [
            ((16, 8, 16), Element::Bf16, S, S, Precision::Half),
            ((16, 8, 16), Element::F16, S, S, Precision::Half),
            ((16, 8, 16), Element::F16, H, H, Precision::HalfToHalf),
            ((16, 8, 16), Element::F16, S, H, Precision::HalfToHalf),
            ((16, 8, 8), Element::Tf32, S, S, Precision::Tf32),
            ((16, 8, 32), Element::E4m3, S, S, Precision::Fp8),
            ((16, 8, 32), Element::E5m2, H, H, Precision::Fp8ToHalf),
            ((16, 8, 32), Element::U8, S32, S32, Precision::Int8),
            ((16, 8, 64), Element::S4, S32, S32, Precision::Int4),
            ((8, 8, 4), Element::F64, D, D, Precision::Double),
        ] {
            let mma = Mma::new(shape, element, element, c, d, false).unwrap();
            assert_eq!(mma.precision(), precision, "{element:?}");
        }
    }

    #[test]
    fn forms_that_ptx_lacks_are_refused() {
        use Accumulator::{F16 as H, F32 as S, S32};
        let none = |shape, a, b, c, d, saturate| assert_eq!(Mma::new(shape, a, b, c, d, saturate), None);
        none((16, 8, 32), Element::Bf16, Element::Bf16, S, S, false);
        none((16, 8, 16), Element::Bf16, Element::F16, S, S, false);
        none((16, 8, 16), Element::Bf16, Element::Bf16, H, H, false);
        none((16, 8, 16), Element::F16, Element::F16, S, S, true);
        none((16, 16, 16), Element::S8, Element::S8, S32, S32, false);
    }

    /// Not a bound on time, which tests cannot keep: printed for whoever runs the test with `--nocapture`.
    #[test]
    fn speed_of_the_common_form() {
        for element in [Element::Bf16, Element::F16] {
            let mma =
                Mma::new((16, 8, 16), element, element, Accumulator::F32, Accumulator::F32, false).unwrap();
            let (a, b) = ([[0x3c00_3c00; 32]; 4], [[0x3c00_3c00; 32]; 2]);
            let (mut c, mut d) = ([[0; 32]; 4], [[0; 32]; 4]);
            // The least of many short runs: what the machine takes when nothing else has it.
            let least = (0..200).map(|_| {
                let start = std::time::Instant::now();
                for _ in 0..500 {
                    mma.run(None, std::hint::black_box(&a), &b, &c, &mut d);
                    std::mem::swap(&mut c, &mut d);
                }
                start.elapsed().as_nanos() / 500
            });
            println!("{element:?}: {} ns", least.min().unwrap_or(0));
            assert_ne!(d, [[0; 32]; 4]);
        }
    }
}
