//! Sixteen f32 lanes, three ways: AVX-512, AVX2 with FMA, and plain Rust.
//!
//! Kernels are written once over [`Lanes`] and compiled three times. Every operation here is one IEEE
//! operation per lane in a fixed order, so the three give the same bits. Start from [`Isa::run`].

use half::f16;

use crate::checkpoint::{Dtype, fp8::e4m3_bits};

/// Number of partial sums of every dot product, whatever the machine's vector width.
pub(super) const LANES: usize = 16;

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust; slow on a processor without fused multiply-add, since the result must be the same.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F.
    Avx512,
}

impl Isa {
    /// The best instruction set of this processor.
    pub fn detect() -> Isa {
        *Isa::available().last().expect("plain Rust is always there")
    }

    /// Every instruction set that this processor runs, slowest first.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut found = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if avx2 {
                found.push(Isa::Avx2);
            }
            if avx2 && is_x86_feature_detected!("avx512f") {
                found.push(Isa::Avx512);
            }
        }
        found
    }

    /// Runs `kernel`, compiled for this instruction set.
    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) {
        match self {
            Isa::Portable => kernel.run::<Portable>(),
            // SAFETY: a value other than `Portable` comes from `available`, which asked the processor
            // (the backend refuses any other).
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86::run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512 => unsafe { x86::run_avx512(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => kernel.run::<Portable>(),
        }
    }

    /// Its name as `--json` output and the benchmarks print it.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }
}

/// A piece of work that is compiled once per instruction set. `run` must be `#[inline(always)]`, as must
/// all that it calls, or it is compiled without the vector instructions.
pub(super) trait Kernel {
    /// Does the work with `L` for sixteen lanes.
    fn run<L: Lanes>(self);
}

/// Sixteen f32 lanes.
pub(super) trait Lanes: Copy {
    /// The lanes of one register, for products that keep many sums in registers.
    type Part: Part;
    /// Activation rows whose sums, for four weight rows, fit the registers of this instruction set.
    const ROWS: usize;
    /// Activation rows whose sums, for two registers of outputs, fit as well.
    const TILE: usize;
    /// Query rows of which four sums each fit.
    const QUERIES: usize;

    /// All lanes equal to `x`.
    fn splat(x: f32) -> Self;
    /// `from` in order.
    fn load(from: &[f32; LANES]) -> Self;
    /// Writes the lanes to `to` in order.
    fn store(self, to: &mut [f32; LANES]);
    /// `self · by + plus`, rounded once.
    fn mul_add(self, by: Self, plus: Self) -> Self;
    /// The sum of the lanes: i with i + 8, then i + 4, i + 2, i + 1.
    fn sum(self) -> f32;
    /// [`Lanes::sum`] of each of four, which cost little more than one together.
    fn sum4(of: [Self; 4]) -> [f32; 4];
    /// Writes the transpose of eight rows of eight floats, `from_stride` apart, to rows `to_stride` apart.
    ///
    /// # Safety
    /// Both blocks are there.
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize);
}

/// As many of the sixteen lanes as one register holds.
///
/// Pointers may have any alignment; each function touches `WIDTH` elements from where it is pointed.
pub(super) trait Part: Copy {
    /// Number of lanes; divides [`LANES`].
    const WIDTH: usize;
    /// All lanes 0.
    fn zero() -> Self;
    /// All lanes equal to `x`.
    fn splat(x: f32) -> Self;
    /// # Safety
    /// `WIDTH` floats are there.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `WIDTH` little-endian bf16 values are there.
    unsafe fn load_bf16(from: *const u8) -> Self;
    /// # Safety
    /// `WIDTH` little-endian f16 values are there.
    unsafe fn load_f16(from: *const u8) -> Self;
    /// # Safety
    /// `WIDTH` little-endian f32 values are there.
    unsafe fn load_f32(from: *const u8) -> Self;
    /// The numbers of e4m3 codes times 2⁻⁸, [`crate::checkpoint::fp8::E4M3_UNPACKED`].
    ///
    /// # Safety
    /// `WIDTH` codes are there.
    unsafe fn load_e4m3(from: *const u8) -> Self;
    /// # Safety
    /// There is room for `WIDTH` floats.
    unsafe fn store(self, to: *mut f32);
    /// `self · by + plus`, rounded once.
    fn mul_add(self, by: Self, plus: Self) -> Self;
    /// Asks for the cache line at `at`, which need not be an address of anything, into the second-level cache.
    fn prefetch(at: *const u8);
}

/// [`Lanes`] in plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

impl Lanes for Portable {
    type Part = Portable;
    const ROWS: usize = 2;
    const TILE: usize = 2;
    const QUERIES: usize = 1;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Portable([x; LANES])
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        Portable(*from)
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }
    #[inline(always)]
    fn mul_add(self, by: Self, plus: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i].mul_add(by.0[i], plus.0[i])))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut v = self.0;
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                v[i] += v[i + width];
            }
            width /= 2;
        }
        v[0]
    }
    #[inline(always)]
    fn sum4(of: [Self; 4]) -> [f32; 4] {
        [of[0].sum(), of[1].sum(), of[2].sum(), of[3].sum()]
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for i in 0..8 {
            for j in 0..8 {
                // SAFETY: the caller's.
                unsafe { *to.add(j * to_stride + i) = *from.add(i * from_stride + j) }
            }
        }
    }
}

impl Part for Portable {
    const WIDTH: usize = LANES;

    #[inline(always)]
    fn zero() -> Self {
        Portable([0.0; LANES])
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Portable([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's: sixteen floats are there.
        Portable(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: the caller's: sixteen values of two bytes are there.
        let bytes = unsafe { from.cast::<[[u8; 2]; LANES]>().read_unaligned() };
        Portable(bytes.map(|b| bf16_bits(u16::from_le_bytes(b))))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: as above.
        let bytes = unsafe { from.cast::<[[u8; 2]; LANES]>().read_unaligned() };
        Portable(bytes.map(|b| f16::from_le_bytes(b).to_f32()))
    }
    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> Self {
        // SAFETY: the caller's: sixteen values of four bytes are there.
        let bytes = unsafe { from.cast::<[[u8; 4]; LANES]>().read_unaligned() };
        Portable(bytes.map(f32::from_le_bytes))
    }
    #[inline(always)]
    unsafe fn load_e4m3(from: *const u8) -> Self {
        // SAFETY: the caller's: sixteen codes are there.
        let codes = unsafe { from.cast::<[u8; LANES]>().read_unaligned() };
        Portable(codes.map(|code| f16::from_bits(e4m3_bits(code)).to_f32()))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's: there is room for sixteen floats.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    fn mul_add(self, by: Self, plus: Self) -> Self {
        Lanes::mul_add(self, by, plus)
    }
    #[inline(always)]
    fn prefetch(_at: *const u8) {}
}

#[inline(always)]
fn bf16_bits(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// How a stored weight becomes f32. Data of a file may lie at any address, so elements are read from bytes.
pub(super) trait Element {
    /// Bytes of one element.
    const SIZE: usize;
    /// The elements at `from`, one for each lane of `P`.
    ///
    /// # Safety
    /// So many are there.
    unsafe fn load<P: Part>(from: *const u8) -> P;
    /// Element `i` of `from`.
    fn get(from: &[u8], i: usize) -> f32;
}

macro_rules! element {
    ($name:ident, $size:literal, $load:ident, |$bytes:ident| $get:expr) => {
        pub(super) struct $name;
        impl Element for $name {
            const SIZE: usize = $size;
            #[inline(always)]
            unsafe fn load<P: Part>(from: *const u8) -> P {
                // SAFETY: the caller's.
                unsafe { P::$load(from) }
            }
            #[inline(always)]
            fn get(from: &[u8], i: usize) -> f32 {
                let $bytes: [u8; $size] = from[i * $size..][..$size].try_into().expect("one element");
                $get
            }
        }
    };
}
element!(Bf16, 2, load_bf16, |b| bf16_bits(u16::from_le_bytes(b)));
element!(F16, 2, load_f16, |b| f16::from_le_bytes(b).to_f32());
element!(F32, 4, load_f32, |b| f32::from_le_bytes(b));
// Times 2⁻⁸: whoever scales the sums makes up for it.
element!(E4m3, 1, load_e4m3, |b| f16::from_bits(e4m3_bits(b[0])).to_f32());

/// Element `i` of a vector stored as `dtype`.
#[inline(always)]
pub(super) fn element(dtype: Dtype, bytes: &[u8], i: usize) -> f32 {
    match dtype {
        Dtype::Bf16 => Bf16::get(bytes, i),
        Dtype::F16 => F16::get(bytes, i),
        Dtype::F32 => F32::get(bytes, i),
        Dtype::E4m3 => E4m3::get(bytes, i),
    }
}

/// e^x for x ≤ 88, within 2 units in the last place: x·log2(e) is split into a whole and a rest in
/// [−½, ½]; a polynomial gives 2^rest, the whole goes into the exponent. Below −87 the result is 0. Each step is one IEEE
/// operation, so a loop over this function vectorises and still gives the same bits on every machine.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts: the first has few bits, so its product with a whole number is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // 1.5 · 2²³: adding it leaves the nearest whole number in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped.mul_add(LOG2_E, ROUND);
    let whole = shifted - ROUND;
    let rest = (-whole).mul_add(LN2_LOW, (-whole).mul_add(LN2_HIGH, clamped));
    // Taylor's series up to rest⁷/7!: |rest| ≤ 0.35, so what is left out is under 6e-9.
    let mut p = 1.0 / 5040.0;
    p = rest.mul_add(p, 1.0 / 720.0);
    p = rest.mul_add(p, 1.0 / 120.0);
    p = rest.mul_add(p, 1.0 / 24.0);
    p = rest.mul_add(p, 1.0 / 6.0);
    p = rest.mul_add(p, 0.5);
    p = rest.mul_add(p, 1.0);
    p = rest.mul_add(p, 1.0);
    let power = f32::from_bits((shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23);
    if x < -87.0 { 0.0 } else { p * power }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Kernel, LANES, Lanes, Part};

    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) {
        kernel.run::<Avx2>();
    }

    /// # Safety
    /// The processor has AVX-512 F, AVX2, FMA and F16C.
    #[target_feature(enable = "avx512f,avx2,fma,f16c")]
    pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) {
        kernel.run::<Avx512>();
    }

    #[derive(Clone, Copy)]
    pub(super) struct Avx512(__m512);

    // SAFETY of every block below: the type is private to this module and used only under `run_avx512`, so
    // the processor has the instructions; the references are to as many floats as each load or store touches.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Lanes for Avx512 {
        type Part = Avx512;
        // 24 sums, 6 activations and a weight of 32 registers.
        const ROWS: usize = 6;
        // 24 sums, two weights and an activation.
        const TILE: usize = 12;
        const QUERIES: usize = 6;

        #[inline(always)]
        fn splat(x: f32) -> Self {
            Avx512(unsafe { _mm512_set1_ps(x) })
        }
        #[inline(always)]
        fn load(from: &[f32; LANES]) -> Self {
            Avx512(unsafe { _mm512_loadu_ps(from.as_ptr()) })
        }
        #[inline(always)]
        fn store(self, to: &mut [f32; LANES]) {
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
        }
        #[inline(always)]
        fn mul_add(self, by: Self, plus: Self) -> Self {
            Avx512(unsafe { _mm512_fmadd_ps(self.0, by.0, plus.0) })
        }
        #[inline(always)]
        fn sum(self) -> f32 {
            unsafe {
                let low = _mm512_castps512_ps256(self.0);
                let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0)));
                sum8(_mm256_add_ps(low, high))
            }
        }
        #[inline(always)]
        fn sum4(of: [Self; 4]) -> [f32; 4] {
            unsafe {
                let mut eight = [_mm256_setzero_ps(); 4];
                for i in 0..4 {
                    let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(of[i].0));
                    eight[i] = _mm256_add_ps(_mm512_castps512_ps256(of[i].0), _mm256_castpd_ps(high));
                }
                sum8x4(eight)
            }
        }
        #[inline(always)]
        unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
            unsafe { transpose8(from, from_stride, to, to_stride) }
        }
    }

    // SAFETY of every block below: as above; the pointers are the caller's.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Part for Avx512 {
        const WIDTH: usize = 16;

        #[inline(always)]
        fn zero() -> Self {
            Avx512(unsafe { _mm512_setzero_ps() })
        }
        #[inline(always)]
        fn splat(x: f32) -> Self {
            Lanes::splat(x)
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            Avx512(unsafe { _mm512_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u8) -> Self {
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u8) -> Self {
            Avx512(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
        }
        #[inline(always)]
        unsafe fn load_f32(from: *const u8) -> Self {
            Avx512(unsafe { _mm512_loadu_ps(from.cast()) })
        }
        #[inline(always)]
        unsafe fn load_e4m3(from: *const u8) -> Self {
            unsafe {
                let wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(from.cast()));
                let sign = _mm256_and_si256(_mm256_slli_epi16::<8>(wide), _mm256_set1_epi16(i16::MIN));
                let rest = _mm256_and_si256(_mm256_slli_epi16::<7>(wide), _mm256_set1_epi16(0x3f80));
                Avx512(_mm512_cvtph_ps(_mm256_or_si256(sign, rest)))
            }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        fn mul_add(self, by: Self, plus: Self) -> Self {
            Lanes::mul_add(self, by, plus)
        }
        #[inline(always)]
        fn prefetch(at: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
        }
    }

    #[derive(Clone, Copy)]
    pub(super) struct Avx2(__m256, __m256);

    // SAFETY of every block below: as for `Avx512`, under `run_avx2`.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Lanes for Avx2 {
        type Part = Avx2Half;
        // 12 sums, 3 activations and a weight of 16 registers.
        const ROWS: usize = 3;
        // 12 sums, two weights and an activation.
        const TILE: usize = 6;
        const QUERIES: usize = 1;

        #[inline(always)]
        fn splat(x: f32) -> Self {
            unsafe { Avx2(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
        }
        #[inline(always)]
        fn load(from: &[f32; LANES]) -> Self {
            unsafe { Avx2(_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))) }
        }
        #[inline(always)]
        fn store(self, to: &mut [f32; LANES]) {
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), self.0);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), self.1);
            }
        }
        #[inline(always)]
        fn mul_add(self, by: Self, plus: Self) -> Self {
            unsafe { Avx2(_mm256_fmadd_ps(self.0, by.0, plus.0), _mm256_fmadd_ps(self.1, by.1, plus.1)) }
        }
        #[inline(always)]
        fn sum(self) -> f32 {
            unsafe { sum8(_mm256_add_ps(self.0, self.1)) }
        }
        #[inline(always)]
        fn sum4(of: [Self; 4]) -> [f32; 4] {
            unsafe {
                let mut eight = [_mm256_setzero_ps(); 4];
                for i in 0..4 {
                    eight[i] = _mm256_add_ps(of[i].0, of[i].1);
                }
                sum8x4(eight)
            }
        }
        #[inline(always)]
        unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
            unsafe { transpose8(from, from_stride, to, to_stride) }
        }
    }

    #[derive(Clone, Copy)]
    pub(super) struct Avx2Half(__m256);

    // SAFETY of every block below: as for `Avx2`; the pointers are the caller's.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Part for Avx2Half {
        const WIDTH: usize = 8;

        #[inline(always)]
        fn zero() -> Self {
            Avx2Half(unsafe { _mm256_setzero_ps() })
        }
        #[inline(always)]
        fn splat(x: f32) -> Self {
            Avx2Half(unsafe { _mm256_set1_ps(x) })
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            Avx2Half(unsafe { _mm256_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u8) -> Self {
            unsafe {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                Avx2Half(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u8) -> Self {
            Avx2Half(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
        }
        #[inline(always)]
        unsafe fn load_f32(from: *const u8) -> Self {
            Avx2Half(unsafe { _mm256_loadu_ps(from.cast()) })
        }
        #[inline(always)]
        unsafe fn load_e4m3(from: *const u8) -> Self {
            unsafe {
                let wide = _mm_cvtepu8_epi16(_mm_loadl_epi64(from.cast()));
                let sign = _mm_and_si128(_mm_slli_epi16::<8>(wide), _mm_set1_epi16(i16::MIN));
                let rest = _mm_and_si128(_mm_slli_epi16::<7>(wide), _mm_set1_epi16(0x3f80));
                Avx2Half(_mm256_cvtph_ps(_mm_or_si128(sign, rest)))
            }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm256_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        fn mul_add(self, by: Self, plus: Self) -> Self {
            Avx2Half(unsafe { _mm256_fmadd_ps(self.0, by.0, plus.0) })
        }
        #[inline(always)]
        fn prefetch(at: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
        }
    }

    /// [`Lanes::transpose`]: pairs of rows interleave, then pairs of pairs, then halves change places.
    ///
    /// # Safety
    /// The processor has AVX2, and both blocks are there.
    #[inline(always)]
    unsafe fn transpose8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the caller's.
        unsafe {
            let mut rows = [_mm256_setzero_ps(); 8];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm256_loadu_ps(from.add(i * from_stride));
            }
            let mut pairs = [_mm256_setzero_ps(); 8];
            for i in (0..8).step_by(2) {
                pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
                pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
            }
            let mut quads = [_mm256_setzero_ps(); 8];
            for i in (0..8).step_by(4) {
                quads[i] = _mm256_shuffle_ps::<0b01_00_01_00>(pairs[i], pairs[i + 2]);
                quads[i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(pairs[i], pairs[i + 2]);
                quads[i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(pairs[i + 1], pairs[i + 3]);
                quads[i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(pairs[i + 1], pairs[i + 3]);
            }
            for j in 0..4 {
                let low = _mm256_permute2f128_ps::<0x20>(quads[j], quads[j + 4]);
                let high = _mm256_permute2f128_ps::<0x31>(quads[j], quads[j + 4]);
                _mm256_storeu_ps(to.add(j * to_stride), low);
                _mm256_storeu_ps(to.add((j + 4) * to_stride), high);
            }
        }
    }

    /// Lanes i and i + 4, then i + 2, then i + 1.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[inline(always)]
    unsafe fn sum8(v: __m256) -> f32 {
        // SAFETY: the caller's.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    /// [`sum8`] of each of four: lanes of two are added as the halves of one register, then of all four.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[inline(always)]
    unsafe fn sum8x4([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        // SAFETY: the caller's.
        unsafe {
            // i with i + 4: a in the low half, b in the high one.
            let fold4 = |a, b| {
                _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b))
            };
            let (ab, cd) = (fold4(a, b), fold4(c, d));
            // i with i + 2: two lanes of a, two of c; and of b and d.
            let two = _mm256_add_ps(
                _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd),
                _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd),
            );
            // i with i + 1.
            let one = _mm256_add_ps(
                _mm256_shuffle_ps::<0b10_00_10_00>(two, two),
                _mm256_shuffle_ps::<0b11_01_11_01>(two, two),
            );
            let mut lanes = [0.0; 8];
            _mm256_storeu_ps(lanes.as_mut_ptr(), one);
            [lanes[0], lanes[4], lanes[1], lanes[5]]
        }
    }
}
