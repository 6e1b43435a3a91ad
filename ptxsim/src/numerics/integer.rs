//! Integer arithmetic, bit fields, permutation and dot products.
//!
//! Plain wrapping operations (`add`, `sub`, `mul.lo`, `and`, …) are one Rust operator and are written at the call site.

/// What an instruction does with a count or width beyond 31: `.clamp` or `.wrap`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// Counts beyond the width act as the width.
    Clamp,
    /// Only the low five bits count.
    Wrap,
}

/// `mul.hi.u16`.
#[inline]
pub fn mul_hi_u16(a: u16, b: u16) -> u16 {
    ((u32::from(a) * u32::from(b)) >> 16) as u16
}

/// `mul.hi.s16`.
#[inline]
pub fn mul_hi_s16(a: u16, b: u16) -> u16 {
    ((i32::from(a as i16) * i32::from(b as i16)) >> 16) as u16
}

/// `mul.hi.u32`.
#[inline]
pub fn mul_hi_u32(a: u32, b: u32) -> u32 {
    ((u64::from(a) * u64::from(b)) >> 32) as u32
}

/// `mul.hi.s32`.
#[inline]
pub fn mul_hi_s32(a: u32, b: u32) -> u32 {
    ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
}

/// `mul.hi.u64`.
#[inline]
pub fn mul_hi_u64(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

/// `mul.hi.s64`.
#[inline]
pub fn mul_hi_s64(a: u64, b: u64) -> u64 {
    ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
}

/// The exact 48-bit product of the low 24 bits of both operands, as `mul24` and `mad24` use it.
#[inline]
fn product24(a: u32, b: u32, signed: bool) -> u64 {
    if signed {
        (i64::from((a << 8) as i32 >> 8) * i64::from((b << 8) as i32 >> 8)) as u64
    } else {
        u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff)
    }
}

/// `mul24.lo`: bits 31..0 of the 48-bit product.
#[inline]
pub fn mul24_lo(a: u32, b: u32, signed: bool) -> u32 {
    product24(a, b, signed) as u32
}

/// `mul24.hi`: bits 47..16 of the 48-bit product.
#[inline]
pub fn mul24_hi(a: u32, b: u32, signed: bool) -> u32 {
    (product24(a, b, signed) >> 16) as u32
}

/// `add.sat.s32`.
#[inline]
pub fn add_sat_s32(a: u32, b: u32) -> u32 {
    (a as i32).saturating_add(b as i32) as u32
}

/// `sub.sat.s32`.
#[inline]
pub fn sub_sat_s32(a: u32, b: u32) -> u32 {
    (a as i32).saturating_sub(b as i32) as u32
}

/// `mad.hi.sat.s32` (and, with 24-bit operands, the sum of `mad24.hi.sat.s32`): the high half plus `c`, clamped.
#[inline]
pub fn mad_hi_sat_s32(a: u32, b: u32, c: u32) -> u32 {
    add_sat_s32(mul_hi_s32(a, b), c)
}

macro_rules! by_width {
    ($unsigned:ident, $signed:ident, $sad_u:ident, $sad_s:ident, $div_u:ident, $div_s:ident, $rem_u:ident, $rem_s:ident,
     $shl:ident, $shr_u:ident, $shr_s:ident, $u:literal, $s:literal, $b:literal) => {
        #[doc = concat!("`sad.", $u, "`: |a − b| + c, wrapping.")]
        #[inline]
        pub fn $sad_u(a: $unsigned, b: $unsigned, c: $unsigned) -> $unsigned {
            a.abs_diff(b).wrapping_add(c)
        }

        #[doc = concat!("`sad.", $s, "`: |a − b| + c, wrapping.")]
        #[inline]
        pub fn $sad_s(a: $unsigned, b: $unsigned, c: $unsigned) -> $unsigned {
            (a as $signed).abs_diff(b as $signed).wrapping_add(c)
        }

        #[doc = concat!("`div.", $u, "`. PTX leaves a zero divisor open; the result is then all ones.")]
        #[inline]
        pub fn $div_u(a: $unsigned, b: $unsigned) -> $unsigned {
            a.checked_div(b).unwrap_or($unsigned::MAX)
        }

        #[doc = concat!("`div.", $s, "`, toward zero. A zero divisor gives all ones, MIN / −1 gives MIN.")]
        #[inline]
        pub fn $div_s(a: $unsigned, b: $unsigned) -> $unsigned {
            if b == 0 { $unsigned::MAX } else { (a as $signed).wrapping_div(b as $signed) as $unsigned }
        }

        #[doc = concat!("`rem.", $u, "`. PTX leaves a zero divisor open; the result is then the dividend.")]
        #[inline]
        pub fn $rem_u(a: $unsigned, b: $unsigned) -> $unsigned {
            a.checked_rem(b).unwrap_or(a)
        }

        #[doc = concat!("`rem.", $s, "`, with the dividend's sign. A zero divisor gives the dividend, MIN % −1 is 0.")]
        #[inline]
        pub fn $rem_s(a: $unsigned, b: $unsigned) -> $unsigned {
            if b == 0 { a } else { (a as $signed).wrapping_rem(b as $signed) as $unsigned }
        }

        #[doc = concat!("`shl.", $b, "`: a count beyond the width gives 0.")]
        #[inline]
        pub fn $shl(a: $unsigned, count: u32) -> $unsigned {
            if count < $unsigned::BITS { a << count } else { 0 }
        }

        #[doc = concat!("`shr.", $u, "`: a count beyond the width gives 0.")]
        #[inline]
        pub fn $shr_u(a: $unsigned, count: u32) -> $unsigned {
            if count < $unsigned::BITS { a >> count } else { 0 }
        }

        #[doc = concat!("`shr.", $s, "`: a count beyond the width gives the sign in every bit.")]
        #[inline]
        pub fn $shr_s(a: $unsigned, count: u32) -> $unsigned {
            ((a as $signed) >> count.min($unsigned::BITS - 1)) as $unsigned
        }
    };
}

by_width!(
    u16, i16, sad_u16, sad_s16, div_u16, div_s16, rem_u16, rem_s16, shl_b16, shr_u16, shr_s16, "u16", "s16",
    "b16"
);
by_width!(
    u32, i32, sad_u32, sad_s32, div_u32, div_s32, rem_u32, rem_s32, shl_b32, shr_u32, shr_s32, "u32", "s32",
    "b32"
);
by_width!(
    u64, i64, sad_u64, sad_s64, div_u64, div_s64, rem_u64, rem_s64, shl_b64, shr_u64, shr_s64, "u64", "s64",
    "b64"
);

/// A mask of the low `bits` bits, all ones from 64 on.
#[inline]
fn low_mask(bits: u32) -> u64 {
    if bits < 64 { (1 << bits) - 1 } else { u64::MAX }
}

/// `bfe` on a field of `width` bits held in the low bits of `a`.
#[inline]
fn extract(a: u64, position: u32, length: u32, width: u32, signed: bool) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let field = shr_u64(a, position) & low_mask(length);
    // Bits past the top of the source read as the sign bit: the field's own, or the source's if the field ends later.
    let sign_position = (position + length).saturating_sub(1).min(width - 1);
    let negative = signed && length != 0 && (a >> sign_position) & 1 != 0;
    let taken = length.min(width.saturating_sub(position));
    if negative { field | !low_mask(taken) } else { field }
}

/// `bfe.u32`: `length` bits of `a` from `position`, zero-extended; bits past the top are 0.
#[inline]
pub fn bfe_u32(a: u32, position: u32, length: u32) -> u32 {
    extract(u64::from(a), position, length, 32, false) as u32
}

/// `bfe.s32`: `length` bits of `a` from `position`, sign-extended from the field's top bit or bit 31.
#[inline]
pub fn bfe_s32(a: u32, position: u32, length: u32) -> u32 {
    extract(u64::from(a), position, length, 32, true) as u32
}

/// `bfe.u64`.
#[inline]
pub fn bfe_u64(a: u64, position: u32, length: u32) -> u64 {
    extract(a, position, length, 64, false)
}

/// `bfe.s64`.
#[inline]
pub fn bfe_s64(a: u64, position: u32, length: u32) -> u64 {
    extract(a, position, length, 64, true)
}

/// `bfi.b64`: the low `length` bits of `a` inserted into `b` at `position`.
#[inline]
pub fn bfi_b64(a: u64, b: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let mask = shl_b64(low_mask(length), position);
    (b & !mask) | (shl_b64(a, position) & mask)
}

/// `bfi.b32`: the low `length` bits of `a` inserted into `b` at `position`.
#[inline]
pub fn bfi_b32(a: u32, b: u32, position: u32, length: u32) -> u32 {
    bfi_b64(u64::from(a), u64::from(b), position, length) as u32
}

/// `brev.b32`.
#[inline]
pub fn brev_b32(a: u32) -> u32 {
    a.reverse_bits()
}

/// `brev.b64`.
#[inline]
pub fn brev_b64(a: u64) -> u64 {
    a.reverse_bits()
}

/// `bfind.u32`: position of the highest set bit, or with `shiftamt` the left shift that brings it to the top;
/// `0xffffffff` if there is none.
#[inline]
pub fn bfind_u32(a: u32, shiftamt: bool) -> u32 {
    match a {
        0 => u32::MAX,
        _ if shiftamt => a.leading_zeros(),
        _ => 31 - a.leading_zeros(),
    }
}

/// `bfind.s32`: as [`bfind_u32`] for the highest bit that differs from the sign.
#[inline]
pub fn bfind_s32(a: u32, shiftamt: bool) -> u32 {
    bfind_u32(a ^ ((a as i32) >> 31) as u32, shiftamt)
}

/// `bfind.u64`.
#[inline]
pub fn bfind_u64(a: u64, shiftamt: bool) -> u32 {
    match a {
        0 => u32::MAX,
        _ if shiftamt => a.leading_zeros(),
        _ => 63 - a.leading_zeros(),
    }
}

/// `bfind.s64`.
#[inline]
pub fn bfind_s64(a: u64, shiftamt: bool) -> u32 {
    bfind_u64(a ^ ((a as i64) >> 63) as u64, shiftamt)
}

/// `fns.b32`: the position of the `offset`-th set bit of `mask` seen from bit `base` (upwards if positive, downwards if
/// negative, `base` itself if 0), or `0xffffffff`. PTX leaves `base` > 31 open; the result is then `0xffffffff`.
#[inline]
pub fn fns(mask: u32, base: u32, offset: i32) -> u32 {
    if base > 31 {
        return u32::MAX;
    }
    let mut rest = match offset {
        0 => mask & (1 << base),
        1.. => mask & (u32::MAX << base),
        // Mirrored, a downward search is an upward one.
        _ => (mask & (u32::MAX >> (31 - base))).reverse_bits(),
    };
    for _ in 1..offset.unsigned_abs().min(33) {
        rest &= rest.wrapping_sub(1);
    }
    match rest {
        0 => u32::MAX,
        _ if offset < 0 => 31 - rest.trailing_zeros(),
        _ => rest.trailing_zeros(),
    }
}

/// `bmsk`: a mask of `width` ones from `position`. Clamped, counts beyond 31 reach (or pass) the top; wrapped, they are
/// taken modulo 32.
#[inline]
pub fn bmsk(position: u32, width: u32, overflow: Overflow) -> u32 {
    let (position, width) = match overflow {
        Overflow::Clamp => (position.min(32), width.min(32)),
        Overflow::Wrap => (position & 31, width & 31),
    };
    (low_mask(position + width) & !low_mask(position)) as u32
}

/// `szext`: the low `bits` bits of `a`, zero-extended or (`signed`) sign-extended. 0 bits give 0.
#[inline]
pub fn szext(a: u32, bits: u32, signed: bool, overflow: Overflow) -> u32 {
    let bits = match overflow {
        Overflow::Clamp => bits.min(32),
        Overflow::Wrap => bits & 31,
    };
    if bits == 0 {
        return 0;
    }
    let shift = 32 - bits;
    if signed { ((a << shift) as i32 >> shift) as u32 } else { a << shift >> shift }
}

/// The modes of `prmt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permute {
    /// No mode: each nibble of the control selects a byte, or replicates its sign.
    Generic,
    /// `.f4e`: forward 4 extract.
    F4e,
    /// `.b4e`: backward 4 extract.
    B4e,
    /// `.rc8`: replicate one byte.
    Rc8,
    /// `.ecl`: edge clamp left.
    Ecl,
    /// `.ecr`: edge clamp right.
    Ecr,
    /// `.rc16`: replicate one half word.
    Rc16,
}

/// `prmt.b32`: four bytes picked out of the eight bytes of `b:a` (`a` holds bytes 0 to 3) as `control` says.
#[inline]
pub fn prmt(a: u32, b: u32, control: u32, mode: Permute) -> u32 {
    let i = control & 3;
    let bytes: [u32; 4] = match mode {
        Permute::Generic => [control, control >> 4, control >> 8, control >> 12],
        Permute::F4e => [i, i + 1, i + 2, i + 3],
        Permute::B4e => [i, (i + 7) & 7, (i + 6) & 7, (i + 5) & 7],
        Permute::Rc8 => [i; 4],
        Permute::Ecl => [0, 1, 2, 3].map(|byte: u32| byte.max(i)),
        Permute::Ecr => [0, 1, 2, 3].map(|byte: u32| byte.min(i)),
        Permute::Rc16 => [2 * (i & 1), 2 * (i & 1) + 1, 2 * (i & 1), 2 * (i & 1) + 1],
    };
    let source = u64::from(b) << 32 | u64::from(a);
    let mut result = 0;
    for (n, selector) in bytes.into_iter().enumerate() {
        let byte = (source >> (8 * (selector & 7))) as u8;
        let byte = if selector & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
        result |= u32::from(byte) << (8 * n);
    }
    result
}

/// `lop3.b32`: the boolean function of three inputs whose truth table is `table` (bit 4a + 2b + c).
#[inline]
pub fn lop3(a: u32, b: u32, c: u32, table: u8) -> u32 {
    // Eight minterms, each selected by its bit: no branch, so a loop over lanes vectorises.
    let select = |bit: u32| 0u32.wrapping_sub((u32::from(table) >> bit) & 1);
    (!a & !b & !c & select(0))
        | (!a & !b & c & select(1))
        | (!a & b & !c & select(2))
        | (!a & b & c & select(3))
        | (a & !b & !c & select(4))
        | (a & !b & c & select(5))
        | (a & b & !c & select(6))
        | (a & b & c & select(7))
}

#[inline]
fn funnel_count(count: u32, overflow: Overflow) -> u32 {
    match overflow {
        Overflow::Clamp => count.min(32),
        Overflow::Wrap => count & 31,
    }
}

/// `shf.l.b32`: the high word of `b:a` shifted left (`a` is the low word).
#[inline]
pub fn shf_l(a: u32, b: u32, count: u32, overflow: Overflow) -> u32 {
    (((u64::from(b) << 32 | u64::from(a)) << funnel_count(count, overflow)) >> 32) as u32
}

/// `shf.r.b32`: the low word of `b:a` shifted right (`a` is the low word).
#[inline]
pub fn shf_r(a: u32, b: u32, count: u32, overflow: Overflow) -> u32 {
    ((u64::from(b) << 32 | u64::from(a)) >> funnel_count(count, overflow)) as u32
}

/// Byte `index` of a word, sign- or zero-extended.
#[inline]
fn byte(word: u32, index: u32, signed: bool) -> u32 {
    let byte = (word >> (8 * index)) as u8;
    if signed { byte as i8 as u32 } else { u32::from(byte) }
}

/// `dp4a`: `c` plus the dot product of four bytes, wrapping.
#[inline]
pub fn dp4a(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    (0..4).fold(c, |sum, i| sum.wrapping_add(byte(a, i, a_signed).wrapping_mul(byte(b, i, b_signed))))
}

/// `dp2a.lo` and, with `high`, `dp2a.hi`: `c` plus the dot product of the two half words of `a` with the two low (high)
/// bytes of `b`, wrapping.
#[inline]
pub fn dp2a(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool, high: bool) -> u32 {
    (0..2).fold(c, |sum, i| {
        let half = (a >> (16 * i)) as u16;
        let half = if a_signed { half as i16 as u32 } else { u32::from(half) };
        sum.wrapping_add(half.wrapping_mul(byte(b, i + 2 * u32::from(high), b_signed)))
    })
}

#[inline]
fn halves(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16 | u32::from(f(a as u16, b as u16))
}

/// `add.u16x2` and `add.s16x2`.
#[inline]
pub fn add_16x2(a: u32, b: u32) -> u32 {
    halves(a, b, u16::wrapping_add)
}

/// `sub.u16x2` and `sub.s16x2`.
#[inline]
pub fn sub_16x2(a: u32, b: u32) -> u32 {
    halves(a, b, u16::wrapping_sub)
}

/// `add.sat.u16x2`.
#[inline]
pub fn add_sat_u16x2(a: u32, b: u32) -> u32 {
    halves(a, b, u16::saturating_add)
}

/// `add.sat.s16x2`.
#[inline]
pub fn add_sat_s16x2(a: u32, b: u32) -> u32 {
    halves(a, b, |x, y| (x as i16).saturating_add(y as i16) as u16)
}

/// `sub.sat.u16x2`.
#[inline]
pub fn sub_sat_u16x2(a: u32, b: u32) -> u32 {
    halves(a, b, u16::saturating_sub)
}

/// `sub.sat.s16x2`.
#[inline]
pub fn sub_sat_s16x2(a: u32, b: u32) -> u32 {
    halves(a, b, |x, y| (x as i16).saturating_sub(y as i16) as u16)
}

/// `min.u16x2`.
#[inline]
pub fn min_u16x2(a: u32, b: u32) -> u32 {
    halves(a, b, u16::min)
}

/// `max.u16x2`.
#[inline]
pub fn max_u16x2(a: u32, b: u32) -> u32 {
    halves(a, b, u16::max)
}

/// `min.s16x2`, with `.relu` if set (negative results become 0).
#[inline]
pub fn min_s16x2(a: u32, b: u32, relu: bool) -> u32 {
    let floor = if relu { 0 } else { i16::MIN };
    halves(a, b, |x, y| (x as i16).min(y as i16).max(floor) as u16)
}

/// `max.s16x2`, with `.relu` if set (negative results become 0).
#[inline]
pub fn max_s16x2(a: u32, b: u32, relu: bool) -> u32 {
    let floor = if relu { 0 } else { i16::MIN };
    halves(a, b, |x, y| (x as i16).max(y as i16).max(floor) as u16)
}

macro_rules! carry_forms {
    ($word:ident, $wide:ident, $signed_wide:ident, $signed:ident, $addc:ident, $subc:ident, $madc_lo:ident,
     $madc_hi_u:ident, $madc_hi_s:ident, $bits:literal) => {
        #[doc = concat!("`add.cc` (carry false) and `addc.cc` on ", $bits, " bits: the sum and the carry out.")]
        #[inline]
        pub fn $addc(a: $word, b: $word, carry: bool) -> ($word, bool) {
            let sum = a as $wide + b as $wide + carry as $wide;
            (sum as $word, sum >> $word::BITS != 0)
        }

        #[doc = concat!("`sub.cc` (borrow false) and `subc.cc` on ", $bits, " bits: the difference and the borrow out.")]
        #[inline]
        pub fn $subc(a: $word, b: $word, borrow: bool) -> ($word, bool) {
            let (difference, first) = a.overflowing_sub(b);
            let (difference, second) = difference.overflowing_sub(borrow as $word);
            (difference, first | second)
        }

        #[doc = concat!("`mad.lo.cc` (carry false) and `madc.lo.cc` on ", $bits, " bits.")]
        #[inline]
        pub fn $madc_lo(a: $word, b: $word, c: $word, carry: bool) -> ($word, bool) {
            $addc(a.wrapping_mul(b), c, carry)
        }

        #[doc = concat!("`mad.hi.cc` (carry false) and `madc.hi.cc` on unsigned ", $bits, " bits.")]
        #[inline]
        pub fn $madc_hi_u(a: $word, b: $word, c: $word, carry: bool) -> ($word, bool) {
            $addc(((a as $wide * b as $wide) >> $word::BITS) as $word, c, carry)
        }

        #[doc = concat!("`mad.hi.cc` (carry false) and `madc.hi.cc` on signed ", $bits, " bits.")]
        #[inline]
        pub fn $madc_hi_s(a: $word, b: $word, c: $word, carry: bool) -> ($word, bool) {
            let product = a as $signed as $signed_wide * b as $signed as $signed_wide;
            $addc((product >> $word::BITS) as $word, c, carry)
        }
    };
}

carry_forms!(u32, u64, i64, i32, addc_32, subc_32, madc_lo_32, madc_hi_u32, madc_hi_s32, "32");
carry_forms!(u64, u128, i128, i64, addc_64, subc_64, madc_lo_64, madc_hi_u64, madc_hi_s64, "64");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EDGES: [u32; 12] =
        [0, 1, 2, 7, 31, 32, 33, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, 0xffff_fffe, 0xffff_ffff];

    /// `bfe` bit by bit.
    fn bfe_reference(a: u64, position: u32, length: u32, width: u32, signed: bool) -> u64 {
        let (position, length) = (position & 0xff, length & 0xff);
        let bit = |i: u32| a >> i & 1;
        let sign = if !signed || length == 0 { 0 } else { bit((position + length - 1).min(width - 1)) };
        (0..width)
            .map(|i| if i < length && position + i < width { bit(position + i) << i } else { sign << i })
            .fold(0, |all, b| all | b)
    }

    proptest! {
        #[test]
        fn bit_fields_match_bit_loops(a: u64, b: u64, position in 0u32..300, length in 0u32..300) {
            let narrow = a as u32;
            prop_assert_eq!(bfe_u64(a, position, length), bfe_reference(a, position, length, 64, false));
            prop_assert_eq!(bfe_s64(a, position, length), bfe_reference(a, position, length, 64, true));
            prop_assert_eq!(
                u64::from(bfe_u32(narrow, position, length)),
                bfe_reference(u64::from(narrow), position, length, 32, false)
            );
            prop_assert_eq!(
                u64::from(bfe_s32(narrow, position, length)),
                bfe_reference(u64::from(narrow), position, length, 32, true)
            );
            let (position, length) = (position & 0xff, length & 0xff);
            for width in [32u32, 64] {
                let mut expected = if width == 32 { b & 0xffff_ffff } else { b };
                for i in (0..length).take_while(|i| position + i < width) {
                    expected = expected & !(1 << (position + i)) | (a.checked_shr(i).unwrap_or(0) & 1) << (position + i);
                }
                let got = if width == 32 {
                    u64::from(bfi_b32(a as u32, b as u32, position, length))
                } else {
                    bfi_b64(a, b, position, length)
                };
                prop_assert_eq!(got, expected);
            }
        }

        #[test]
        fn find_nth_set_matches_a_walk(mask: u32, base in 0u32..32, offset in -40i32..40) {
            let mut expected = u32::MAX;
            let mut left = offset.abs().max(1);
            let mut position = base as i32;
            while (0..32).contains(&position) {
                left -= (mask >> position & 1) as i32;
                if left == 0 && mask >> position & 1 == 1 {
                    expected = position as u32;
                    break;
                }
                if offset == 0 {
                    break;
                }
                position += offset.signum();
            }
            prop_assert_eq!(fns(mask, base, offset), expected);
        }

        #[test]
        fn lop3_matches_its_table(a: u32, b: u32, c: u32, table: u8) {
            for bit in 0..32 {
                let index = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1);
                prop_assert_eq!(lop3(a, b, c, table) >> bit & 1, u32::from(table) >> index & 1);
            }
        }

        #[test]
        fn wide_products_and_carries_match_128_bits(a: u64, b: u64, c: u64, carry: bool) {
            let sum = u128::from(a) + u128::from(b) + u128::from(carry);
            prop_assert_eq!(addc_64(a, b, carry), (sum as u64, sum > u128::from(u64::MAX)));
            let difference = i128::from(a) - i128::from(b) - i128::from(carry);
            prop_assert_eq!(subc_64(a, b, carry), (difference as u64, difference < 0));
            let (x, y, z) = (a as u32, b as u32, c as u32);
            let low = u64::from(x.wrapping_mul(y)) + u64::from(z) + u64::from(carry);
            prop_assert_eq!(madc_lo_32(x, y, z, carry), (low as u32, low >> 32 != 0));
            let high = ((u64::from(x) * u64::from(y)) >> 32) + u64::from(z) + u64::from(carry);
            prop_assert_eq!(madc_hi_u32(x, y, z, carry), (high as u32, high >> 32 != 0));
            let (high, _) = madc_hi_s64(a, b, c, carry);
            let product = i128::from(a as i64) * i128::from(b as i64);
            prop_assert_eq!(high, ((product >> 64) as u64).wrapping_add(c).wrapping_add(u64::from(carry)));
            prop_assert_eq!(mul_hi_s64(a, b), (product >> 64) as u64);
        }

        #[test]
        fn dot_products_match_integers(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool, high: bool) {
            let bytes = |word: u32, signed: bool| word.to_le_bytes().map(|x| if signed { i64::from(x as i8) } else { i64::from(x) });
            let (va, vb) = (bytes(a, a_signed), bytes(b, b_signed));
            let dot: i64 = (0..4).map(|i| va[i] * vb[i]).sum();
            prop_assert_eq!(dp4a(a, b, c, a_signed, b_signed), (dot + i64::from(c)) as u32);
            let half = |x: u16| if a_signed { i64::from(x as i16) } else { i64::from(x) };
            let first = if high { 2 } else { 0 };
            let dot = half(a as u16) * vb[first] + half((a >> 16) as u16) * vb[first + 1];
            prop_assert_eq!(dp2a(a, b, c, a_signed, b_signed, high), (dot + i64::from(c)) as u32);
        }

        #[test]
        fn halves_do_not_reach_into_each_other(a: u32, b: u32) {
            let (ah, bh) = ((a >> 16) as i16, (b >> 16) as i16);
            let (al, bl) = (a as i16, b as i16);
            let pack = |h: i32, l: i32| (h as u32) << 16 | (l as u32 & 0xffff);
            let clamp = |x: i32| x.clamp(-32768, 32767);
            let (ah, bh, al, bl) = (i32::from(ah), i32::from(bh), i32::from(al), i32::from(bl));
            prop_assert_eq!(add_16x2(a, b), pack(ah + bh, al + bl));
            prop_assert_eq!(sub_16x2(a, b), pack(ah - bh, al - bl));
            prop_assert_eq!(add_sat_s16x2(a, b), pack(clamp(ah + bh), clamp(al + bl)));
            prop_assert_eq!(sub_sat_s16x2(a, b), pack(clamp(ah - bh), clamp(al - bl)));
            prop_assert_eq!(min_s16x2(a, b, false), pack(ah.min(bh), al.min(bl)));
            prop_assert_eq!(max_s16x2(a, b, true), pack(ah.max(bh).max(0), al.max(bl).max(0)));
        }
    }

    #[test]
    fn unsigned_halves_saturate_and_order() {
        assert_eq!(add_sat_u16x2(0xffff_0001, 0x0001_0001), 0xffff_0002);
        assert_eq!(sub_sat_u16x2(0x0001_0005, 0x0002_0001), 0x0000_0004);
        assert_eq!(min_u16x2(0xffff_0001, 0x0001_8000), 0x0001_0001);
        assert_eq!(max_u16x2(0xffff_0001, 0x0001_8000), 0xffff_8000);
    }

    #[test]
    fn products_of_edge_values() {
        for a in EDGES {
            for b in EDGES {
                let product = i64::from(a as i32) * i64::from(b as i32);
                assert_eq!(mul_hi_s32(a, b), (product >> 32) as u32);
                assert_eq!(mul_hi_u32(a, b), ((u128::from(a) * u128::from(b)) >> 32) as u32);
                assert_eq!(mul_hi_u64(u64::from(a) << 32, u64::from(b) << 32), u64::from(a) * u64::from(b));
                let sign =
                    |x: u32| i64::from((x & 0xff_ffff) as i32) - if x & 0x80_0000 != 0 { 1 << 24 } else { 0 };
                assert_eq!(mul24_lo(a, b, true), (sign(a) * sign(b)) as u32);
                assert_eq!(mul24_hi(a, b, true), ((sign(a) * sign(b)) >> 16) as u32);
                let sum = (product >> 32) + i64::from(a as i32);
                assert_eq!(mad_hi_sat_s32(a, b, a), sum.clamp(i32::MIN.into(), i32::MAX.into()) as u32);
            }
        }
        assert_eq!(mul24_hi(0xffff_ffff, 0xffff_ffff, false), 0xffff_fe00);
        assert_eq!((mul_hi_u16(0xffff, 0xffff), mul_hi_s16(0x8000, 0x7fff)), (0xfffe, 0xc000));
    }

    #[test]
    fn division_is_total() {
        assert_eq!((div_u32(7, 0), rem_u32(7, 0), div_s32(7, 0), rem_s32(7, 0)), (u32::MAX, 7, u32::MAX, 7));
        assert_eq!((div_s32(0x8000_0000, u32::MAX), rem_s32(0x8000_0000, u32::MAX)), (0x8000_0000, 0));
        assert_eq!((div_s64(1 << 63, u64::MAX), rem_s64(1 << 63, u64::MAX)), (1 << 63, 0));
        assert_eq!((div_s16(0x8000, 0xffff), rem_s16(0xfff9, 2)), (0x8000, 0xffff));
        assert_eq!((div_u64(9, 2), div_s32(-7i32 as u32, 2)), (4, -3i32 as u32));
    }

    #[test]
    fn differences_and_shifts() {
        assert_eq!(sad_s32(i32::MIN as u32, i32::MAX as u32, 1), 0);
        assert_eq!((sad_u32(3, 5, 10), sad_s16(0xffff, 1, 0), sad_u64(1, 0, u64::MAX)), (12, 2, 0));
        for count in [0, 1, 15, 16, 31, 32, 63, 64, 65, u32::MAX] {
            let wide = u128::from(0x8000_0001u32);
            let by = count.min(127);
            assert_eq!(shl_b32(0x8000_0001, count), (wide.checked_shl(by).unwrap_or(0)) as u32);
            assert_eq!(shr_u32(0x8000_0001, count), (wide >> by) as u32);
            assert_eq!(shr_s32(0x8000_0001, count), (i128::from(0x8000_0001u32 as i32) >> by) as u32);
            assert_eq!(shr_s64(1 << 63, count), (i128::from(i64::MIN) >> by) as u64);
            assert_eq!(shr_s16(0x8001, count), (i128::from(0x8001u16 as i16) >> by) as u16);
            assert_eq!(shl_b16(0x8001, count), (0x8001u128.checked_shl(by.min(100)).unwrap_or(0)) as u16);
            assert_eq!(shr_u64(u64::MAX, count), (u128::from(u64::MAX) >> by) as u64);
        }
        let (a, b) = (0x0123_4567, 0x89ab_cdef);
        assert_eq!(shf_l(a, b, 8, Overflow::Wrap), 0xabcd_ef01);
        assert_eq!(shf_r(a, b, 8, Overflow::Wrap), 0xef01_2345);
        assert_eq!((shf_l(a, b, 32, Overflow::Wrap), shf_l(a, b, 40, Overflow::Clamp)), (b, a));
        assert_eq!((shf_r(a, b, 32, Overflow::Wrap), shf_r(a, b, 40, Overflow::Clamp)), (a, b));
    }

    #[test]
    fn masks_and_extensions() {
        assert_eq!(bmsk(4, 8, Overflow::Clamp), 0xff0);
        assert_eq!((bmsk(4, 0, Overflow::Clamp), bmsk(28, 8, Overflow::Clamp)), (0, 0xf000_0000));
        assert_eq!((bmsk(32, 1, Overflow::Clamp), bmsk(32, 1, Overflow::Wrap)), (0, 1));
        assert_eq!((bmsk(1, 32, Overflow::Clamp), bmsk(1, 32, Overflow::Wrap)), (0xffff_fffe, 0));
        assert_eq!(bmsk(u32::MAX, u32::MAX, Overflow::Clamp), 0);
        assert_eq!(
            (szext(0x8f, 8, true, Overflow::Clamp), szext(0x8f, 8, false, Overflow::Clamp)),
            (0xffff_ff8f, 0x8f)
        );
        assert_eq!((szext(7, 0, true, Overflow::Clamp), szext(7, 32, true, Overflow::Wrap)), (0, 0));
        assert_eq!(szext(0x8000_0007, 40, false, Overflow::Clamp), 0x8000_0007);
        assert_eq!(szext(0x8000_0017, 36, true, Overflow::Wrap), 7);
    }

    #[test]
    fn highest_bits() {
        assert_eq!(
            (bfind_u32(0, false), bfind_u32(0, true), bfind_s32(u32::MAX, true)),
            (u32::MAX, u32::MAX, u32::MAX)
        );
        assert_eq!((bfind_u32(0x100, false), bfind_u32(0x100, true)), (8, 23));
        assert_eq!((bfind_s32(0xffff_ff00, false), bfind_s32(0x7fff_ffff, true)), (7, 1));
        assert_eq!((bfind_u64(1 << 40, false), bfind_s64(!(1 << 40), true)), (40, 23));
        assert_eq!((brev_b32(1), brev_b64(2)), (0x8000_0000, 1 << 62));
    }

    #[test]
    fn permutations() {
        let (a, b) = (0x3322_1100, 0xf766_5544);
        assert_eq!(prmt(a, b, 0x7310, Permute::Generic), 0xf733_1100);
        assert_eq!(prmt(a, b, 0xfb87, Permute::Generic), 0xff00_00f7);
        // One row for each control 0 to 3, as bytes from the top.
        let table = [
            (Permute::F4e, [0x3322_1100, 0x4433_2211, 0x5544_3322, 0x6655_4433]),
            (Permute::B4e, [0x5566_f700, 0x66f7_0011, 0xf700_1122, 0x0011_2233]),
            (Permute::Rc8, [0x0000_0000, 0x1111_1111, 0x2222_2222, 0x3333_3333]),
            (Permute::Ecl, [0x3322_1100, 0x3322_1111, 0x3322_2222, 0x3333_3333]),
            (Permute::Ecr, [0x0000_0000, 0x1111_1100, 0x2222_1100, 0x3322_1100]),
            (Permute::Rc16, [0x1100_1100, 0x3322_3322, 0x1100_1100, 0x3322_3322]),
        ];
        for (mode, rows) in table {
            for (control, row) in rows.into_iter().enumerate() {
                assert_eq!(prmt(a, b, control as u32 | 0xf0, mode), row, "{mode:?} {control}");
            }
        }
    }
}
