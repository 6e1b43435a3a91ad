//! The table of integer arithmetic, logic and bit fields: opcode, type and modifiers to a function of lanes.

use super::{Opcode, lanes::lanes};
use crate::{
    kernel::{Class, Function},
    numerics::integer::{self, Overflow, Permute},
    parse::Type,
};

/// The function of an opcode on integers; None for other opcodes and for forms that do not exist.
pub(super) fn function(code: &mut Opcode, ty: Type) -> Option<(Function, Class)> {
    use Type::*;
    let signed = ty.signed();
    let bits = ty.bits();
    let function = match code.head {
        "add" | "sub" => {
            let add = code.head == "add";
            let sat = code.take("sat");
            match (add, sat, ty) {
                (true, false, U16 | S16 | B16) => lanes!(W2; |a: u16, b: u16| a.wrapping_add(b)),
                (false, false, U16 | S16 | B16) => lanes!(W2; |a: u16, b: u16| a.wrapping_sub(b)),
                (true, false, U32 | S32 | B32) => lanes!(W2; |a: u32, b: u32| a.wrapping_add(b)),
                (false, false, U32 | S32 | B32) => lanes!(W2; |a: u32, b: u32| a.wrapping_sub(b)),
                (true, false, U64 | S64 | B64) => lanes!(D2; |a: u64, b: u64| a.wrapping_add(b)),
                (false, false, U64 | S64 | B64) => lanes!(D2; |a: u64, b: u64| a.wrapping_sub(b)),
                (true, true, S32) => lanes!(W2; |a: u32, b: u32| integer::add_sat_s32(a, b)),
                (false, true, S32) => lanes!(W2; |a: u32, b: u32| integer::sub_sat_s32(a, b)),
                (true, false, U16x2 | S16x2) => lanes!(W2; |a: u32, b: u32| integer::add_16x2(a, b)),
                (false, false, U16x2 | S16x2) => lanes!(W2; |a: u32, b: u32| integer::sub_16x2(a, b)),
                (true, true, U16x2) => lanes!(W2; |a: u32, b: u32| integer::add_sat_u16x2(a, b)),
                (true, true, S16x2) => lanes!(W2; |a: u32, b: u32| integer::add_sat_s16x2(a, b)),
                (false, true, U16x2) => lanes!(W2; |a: u32, b: u32| integer::sub_sat_u16x2(a, b)),
                (false, true, S16x2) => lanes!(W2; |a: u32, b: u32| integer::sub_sat_s16x2(a, b)),
                _ => return None,
            }
        }
        "mul" => match (code.take_of(&[("lo", 0), ("hi", 1), ("wide", 2)])?, ty) {
            (0, U16 | S16) => lanes!(W2; |a: u16, b: u16| a.wrapping_mul(b)),
            (0, U32 | S32) => lanes!(W2; |a: u32, b: u32| a.wrapping_mul(b)),
            (0, U64 | S64) => lanes!(D2; |a: u64, b: u64| a.wrapping_mul(b)),
            (1, U16) => lanes!(W2; |a: u16, b: u16| integer::mul_hi_u16(a, b)),
            (1, S16) => lanes!(W2; |a: u16, b: u16| integer::mul_hi_s16(a, b)),
            (1, U32) => lanes!(W2; |a: u32, b: u32| integer::mul_hi_u32(a, b)),
            (1, S32) => lanes!(W2; |a: u32, b: u32| integer::mul_hi_s32(a, b)),
            (1, U64) => lanes!(D2; |a: u64, b: u64| integer::mul_hi_u64(a, b)),
            (1, S64) => lanes!(D2; |a: u64, b: u64| integer::mul_hi_s64(a, b)),
            (2, U16) => lanes!(W2; |a: u16, b: u16| u32::from(a) * u32::from(b)),
            (2, S16) => lanes!(W2; |a: i16, b: i16| i32::from(a) * i32::from(b)),
            (2, U32) => lanes!(DfromWW; |a: u32, b: u32| u64::from(a) * u64::from(b)),
            (2, S32) => lanes!(DfromWW; |a: i32, b: i32| i64::from(a) * i64::from(b)),
            _ => return None,
        },
        "mad" => match (code.take_of(&[("lo", 0), ("hi", 1), ("wide", 2)])?, code.take("sat"), ty) {
            (0, false, U16 | S16) => lanes!(W3; |a: u16, b: u16, c: u16| a.wrapping_mul(b).wrapping_add(c)),
            (0, false, U32 | S32) => lanes!(W3; |a: u32, b: u32, c: u32| a.wrapping_mul(b).wrapping_add(c)),
            (0, false, U64 | S64) => lanes!(D3; |a: u64, b: u64, c: u64| a.wrapping_mul(b).wrapping_add(c)),
            (1, false, U16) => lanes!(W3; |a: u16, b: u16, c: u16| integer::mul_hi_u16(a, b).wrapping_add(c)),
            (1, false, S16) => lanes!(W3; |a: u16, b: u16, c: u16| integer::mul_hi_s16(a, b).wrapping_add(c)),
            (1, false, U32) => lanes!(W3; |a: u32, b: u32, c: u32| integer::mul_hi_u32(a, b).wrapping_add(c)),
            (1, false, S32) => lanes!(W3; |a: u32, b: u32, c: u32| integer::mul_hi_s32(a, b).wrapping_add(c)),
            (1, true, S32) => lanes!(W3; |a: u32, b: u32, c: u32| integer::mad_hi_sat_s32(a, b, c)),
            (1, false, U64) => lanes!(D3; |a: u64, b: u64, c: u64| integer::mul_hi_u64(a, b).wrapping_add(c)),
            (1, false, S64) => lanes!(D3; |a: u64, b: u64, c: u64| integer::mul_hi_s64(a, b).wrapping_add(c)),
            (2, false, U16) => {
                lanes!(W3; |a: u16, b: u16, c: u32| (u32::from(a) * u32::from(b)).wrapping_add(c))
            }
            (2, false, S16) => {
                lanes!(W3; |a: i16, b: i16, c: i32| (i32::from(a) * i32::from(b)).wrapping_add(c))
            }
            (2, false, U32) => {
                lanes!(DfromWWD; |a: u32, b: u32, c: u64| (u64::from(a) * u64::from(b)).wrapping_add(c))
            }
            (2, false, S32) => {
                lanes!(DfromWWD; |a: i32, b: i32, c: i64| (i64::from(a) * i64::from(b)).wrapping_add(c))
            }
            _ => return None,
        },
        "mul24" | "mad24" => {
            let high = code.take_of(&[("lo", false), ("hi", true)])?;
            match (code.head, high, ty) {
                ("mul24", false, U32) => lanes!(W2; |a: u32, b: u32| integer::mul24_lo(a, b, false)),
                ("mul24", false, S32) => lanes!(W2; |a: u32, b: u32| integer::mul24_lo(a, b, true)),
                ("mul24", true, U32) => lanes!(W2; |a: u32, b: u32| integer::mul24_hi(a, b, false)),
                ("mul24", true, S32) => lanes!(W2; |a: u32, b: u32| integer::mul24_hi(a, b, true)),
                (_, false, U32) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::mul24_lo(a, b, false).wrapping_add(c))
                }
                (_, false, S32) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::mul24_lo(a, b, true).wrapping_add(c))
                }
                (_, true, U32) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::mul24_hi(a, b, false).wrapping_add(c))
                }
                (_, true, S32) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::mul24_hi(a, b, true).wrapping_add(c))
                }
                _ => return None,
            }
        }
        "sad" => match ty {
            U16 => lanes!(W3; |a: u16, b: u16, c: u16| integer::sad_u16(a, b, c)),
            S16 => lanes!(W3; |a: u16, b: u16, c: u16| integer::sad_s16(a, b, c)),
            U32 => lanes!(W3; |a: u32, b: u32, c: u32| integer::sad_u32(a, b, c)),
            S32 => lanes!(W3; |a: u32, b: u32, c: u32| integer::sad_s32(a, b, c)),
            U64 => lanes!(D3; |a: u64, b: u64, c: u64| integer::sad_u64(a, b, c)),
            S64 => lanes!(D3; |a: u64, b: u64, c: u64| integer::sad_s64(a, b, c)),
            _ => return None,
        },
        "div" => match ty {
            U16 => lanes!(W2; |a: u16, b: u16| integer::div_u16(a, b)),
            S16 => lanes!(W2; |a: u16, b: u16| integer::div_s16(a, b)),
            U32 => lanes!(W2; |a: u32, b: u32| integer::div_u32(a, b)),
            S32 => lanes!(W2; |a: u32, b: u32| integer::div_s32(a, b)),
            U64 => lanes!(D2; |a: u64, b: u64| integer::div_u64(a, b)),
            S64 => lanes!(D2; |a: u64, b: u64| integer::div_s64(a, b)),
            _ => return None,
        },
        "rem" => match ty {
            U16 => lanes!(W2; |a: u16, b: u16| integer::rem_u16(a, b)),
            S16 => lanes!(W2; |a: u16, b: u16| integer::rem_s16(a, b)),
            U32 => lanes!(W2; |a: u32, b: u32| integer::rem_u32(a, b)),
            S32 => lanes!(W2; |a: u32, b: u32| integer::rem_s32(a, b)),
            U64 => lanes!(D2; |a: u64, b: u64| integer::rem_u64(a, b)),
            S64 => lanes!(D2; |a: u64, b: u64| integer::rem_s64(a, b)),
            _ => return None,
        },
        "abs" => match ty {
            S16 => lanes!(W1; |a: i16| a.wrapping_abs()),
            S32 => lanes!(W1; |a: i32| a.wrapping_abs()),
            S64 => lanes!(D1; |a: i64| a.wrapping_abs()),
            _ => return None,
        },
        "neg" => match ty {
            S16 => lanes!(W1; |a: i16| a.wrapping_neg()),
            S32 => lanes!(W1; |a: i32| a.wrapping_neg()),
            S64 => lanes!(D1; |a: i64| a.wrapping_neg()),
            _ => return None,
        },
        "min" | "max" => {
            let min = code.head == "min";
            let relu = code.take("relu");
            match (min, relu, ty) {
                (true, false, U16) => lanes!(W2; |a: u16, b: u16| a.min(b)),
                (true, false, S16) => lanes!(W2; |a: i16, b: i16| a.min(b)),
                (true, false, U32) => lanes!(W2; |a: u32, b: u32| a.min(b)),
                (true, false, S32) => lanes!(W2; |a: i32, b: i32| a.min(b)),
                (true, true, S32) => lanes!(W2; |a: i32, b: i32| a.min(b).max(0)),
                (true, false, U64) => lanes!(D2; |a: u64, b: u64| a.min(b)),
                (true, false, S64) => lanes!(D2; |a: i64, b: i64| a.min(b)),
                (true, false, U16x2) => lanes!(W2; |a: u32, b: u32| integer::min_u16x2(a, b)),
                (true, false, S16x2) => lanes!(W2; |a: u32, b: u32| integer::min_s16x2(a, b, false)),
                (true, true, S16x2) => lanes!(W2; |a: u32, b: u32| integer::min_s16x2(a, b, true)),
                (false, false, U16) => lanes!(W2; |a: u16, b: u16| a.max(b)),
                (false, false, S16) => lanes!(W2; |a: i16, b: i16| a.max(b)),
                (false, false, U32) => lanes!(W2; |a: u32, b: u32| a.max(b)),
                (false, false, S32) => lanes!(W2; |a: i32, b: i32| a.max(b)),
                (false, true, S32) => lanes!(W2; |a: i32, b: i32| a.max(b).max(0)),
                (false, false, U64) => lanes!(D2; |a: u64, b: u64| a.max(b)),
                (false, false, S64) => lanes!(D2; |a: i64, b: i64| a.max(b)),
                (false, false, U16x2) => lanes!(W2; |a: u32, b: u32| integer::max_u16x2(a, b)),
                (false, false, S16x2) => lanes!(W2; |a: u32, b: u32| integer::max_s16x2(a, b, false)),
                (false, true, S16x2) => lanes!(W2; |a: u32, b: u32| integer::max_s16x2(a, b, true)),
                _ => return None,
            }
        }
        "and" if bits == 64 => lanes!(D2; |a: u64, b: u64| a & b),
        "or" if bits == 64 => lanes!(D2; |a: u64, b: u64| a | b),
        "xor" if bits == 64 => lanes!(D2; |a: u64, b: u64| a ^ b),
        "not" if bits == 64 => lanes!(D1; |a: u64| !a),
        "cnot" if bits == 64 => lanes!(D1; |a: u64| u64::from(a == 0)),
        "and" => lanes!(W2; |a: u32, b: u32| a & b),
        "or" => lanes!(W2; |a: u32, b: u32| a | b),
        "xor" => lanes!(W2; |a: u32, b: u32| a ^ b),
        "not" if bits == 16 => lanes!(W1; |a: u16| !a),
        "not" => lanes!(W1; |a: u32| !a),
        "cnot" if bits == 16 => lanes!(W1; |a: u16| u16::from(a == 0)),
        "cnot" => lanes!(W1; |a: u32| u32::from(a == 0)),
        "shl" => match bits {
            16 => lanes!(W2; |a: u16, n: u32| integer::shl_b16(a, n)),
            32 => lanes!(W2; |a: u32, n: u32| integer::shl_b32(a, n)),
            _ => lanes!(DfromDW; |a: u64, n: u32| integer::shl_b64(a, n)),
        },
        "shr" => match (bits, signed) {
            (16, false) => lanes!(W2; |a: u16, n: u32| integer::shr_u16(a, n)),
            (16, true) => lanes!(W2; |a: u16, n: u32| integer::shr_s16(a, n)),
            (32, false) => lanes!(W2; |a: u32, n: u32| integer::shr_u32(a, n)),
            (32, true) => lanes!(W2; |a: u32, n: u32| integer::shr_s32(a, n)),
            (_, false) => lanes!(DfromDW; |a: u64, n: u32| integer::shr_u64(a, n)),
            (_, true) => lanes!(DfromDW; |a: u64, n: u32| integer::shr_s64(a, n)),
        },
        "shf" if ty == B32 => {
            let left = code.take_of(&[("l", true), ("r", false)])?;
            let clamp = code.take_of(&[("clamp", true), ("wrap", false)])?;
            match (left, clamp) {
                (true, true) => lanes!(W3; |a: u32, b: u32, n: u32| integer::shf_l(a, b, n, Overflow::Clamp)),
                (true, false) => lanes!(W3; |a: u32, b: u32, n: u32| integer::shf_l(a, b, n, Overflow::Wrap)),
                (false, true) => {
                    lanes!(W3; |a: u32, b: u32, n: u32| integer::shf_r(a, b, n, Overflow::Clamp))
                }
                (false, false) => {
                    lanes!(W3; |a: u32, b: u32, n: u32| integer::shf_r(a, b, n, Overflow::Wrap))
                }
            }
        }
        "popc" if bits == 64 => lanes!(WfromD; |a: u64| a.count_ones()),
        "popc" => lanes!(W1; |a: u32| a.count_ones()),
        "clz" if bits == 64 => lanes!(WfromD; |a: u64| a.leading_zeros()),
        "clz" => lanes!(W1; |a: u32| a.leading_zeros()),
        "brev" if bits == 64 => lanes!(D1; |a: u64| a.reverse_bits()),
        "brev" => lanes!(W1; |a: u32| integer::brev_b32(a)),
        "bfind" => match (code.take("shiftamt"), ty) {
            (false, U32) => lanes!(W1; |a: u32| integer::bfind_u32(a, false)),
            (true, U32) => lanes!(W1; |a: u32| integer::bfind_u32(a, true)),
            (false, S32) => lanes!(W1; |a: u32| integer::bfind_s32(a, false)),
            (true, S32) => lanes!(W1; |a: u32| integer::bfind_s32(a, true)),
            (false, U64) => lanes!(WfromD; |a: u64| integer::bfind_u64(a, false)),
            (true, U64) => lanes!(WfromD; |a: u64| integer::bfind_u64(a, true)),
            (false, S64) => lanes!(WfromD; |a: u64| integer::bfind_s64(a, false)),
            (true, S64) => lanes!(WfromD; |a: u64| integer::bfind_s64(a, true)),
            _ => return None,
        },
        "fns" if ty == B32 => {
            lanes!(W3; |mask: u32, base: u32, offset: i32| integer::fns(mask, base, offset))
        }
        "bfe" => match ty {
            U32 => lanes!(W3; |a: u32, b: u32, c: u32| integer::bfe_u32(a, b, c)),
            S32 => lanes!(W3; |a: u32, b: u32, c: u32| integer::bfe_s32(a, b, c)),
            U64 => lanes!(DfromDWW; |a: u64, b: u32, c: u32| integer::bfe_u64(a, b, c)),
            S64 => lanes!(DfromDWW; |a: u64, b: u32, c: u32| integer::bfe_s64(a, b, c)),
            _ => return None,
        },
        "bfi" => match ty {
            B32 => lanes!(W4; |a: u32, b: u32, c: u32, d: u32| integer::bfi_b32(a, b, c, d)),
            B64 => lanes!(DfromDDWW; |a: u64, b: u64, c: u32, d: u32| integer::bfi_b64(a, b, c, d)),
            _ => return None,
        },
        "bmsk" if ty == B32 => match code.take_of(&[("clamp", true), ("wrap", false)])? {
            true => lanes!(W2; |a: u32, b: u32| integer::bmsk(a, b, Overflow::Clamp)),
            false => lanes!(W2; |a: u32, b: u32| integer::bmsk(a, b, Overflow::Wrap)),
        },
        "szext" => match (code.take_of(&[("clamp", true), ("wrap", false)])?, ty) {
            (true, U32) => lanes!(W2; |a: u32, b: u32| integer::szext(a, b, false, Overflow::Clamp)),
            (false, U32) => lanes!(W2; |a: u32, b: u32| integer::szext(a, b, false, Overflow::Wrap)),
            (true, S32) => lanes!(W2; |a: u32, b: u32| integer::szext(a, b, true, Overflow::Clamp)),
            (false, S32) => lanes!(W2; |a: u32, b: u32| integer::szext(a, b, true, Overflow::Wrap)),
            _ => return None,
        },
        "prmt" if ty == B32 => {
            let mode = code.take_of(&[
                ("f4e", Permute::F4e),
                ("b4e", Permute::B4e),
                ("rc8", Permute::Rc8),
                ("ecl", Permute::Ecl),
                ("ecr", Permute::Ecr),
                ("rc16", Permute::Rc16),
            ]);
            match mode {
                None => lanes!(W3; |a: u32, b: u32, c: u32| integer::prmt(a, b, c, Permute::Generic)),
                Some(Permute::F4e) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::prmt(a, b, c, Permute::F4e))
                }
                Some(Permute::B4e) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::prmt(a, b, c, Permute::B4e))
                }
                Some(Permute::Rc8) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::prmt(a, b, c, Permute::Rc8))
                }
                Some(Permute::Ecl) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::prmt(a, b, c, Permute::Ecl))
                }
                Some(Permute::Ecr) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::prmt(a, b, c, Permute::Ecr))
                }
                Some(_) => lanes!(W3; |a: u32, b: u32, c: u32| integer::prmt(a, b, c, Permute::Rc16)),
            }
        }
        // The one video instruction that CUDA's own headers still use: differences of bytes, or their sum and c.
        "vabsdiff4" if code.types == [U32; 3] => {
            if code.take("add") {
                lanes!(W3; |a: u32, b: u32, c: u32| {
                    let pairs = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
                    pairs.fold(c, |sum, (x, y)| sum.wrapping_add(u32::from(x.abs_diff(y))))
                })
            } else {
                lanes!(W3; |a: u32, b: u32, merged: u32| {
                    // All four bytes are written, so nothing of the third operand is left.
                    let _ = merged;
                    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
                    u32::from_le_bytes(std::array::from_fn(|i| a[i].abs_diff(b[i])))
                })
            }
        }
        "dp4a" | "dp2a" => {
            let (a, b) = match code.types[..] {
                [a, b] => (a == S32, b == S32),
                _ => return None,
            };
            if code.types.iter().any(|t| !matches!(t, U32 | S32)) {
                return None;
            }
            let high =
                if code.head == "dp2a" { Some(code.take_of(&[("lo", false), ("hi", true)])?) } else { None };
            match (high, a, b) {
                (None, false, false) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::dp4a(a, b, c, false, false))
                }
                (None, false, true) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::dp4a(a, b, c, false, true))
                }
                (None, true, false) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::dp4a(a, b, c, true, false))
                }
                (None, true, true) => lanes!(W3; |a: u32, b: u32, c: u32| integer::dp4a(a, b, c, true, true)),
                (Some(false), false, false) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::dp2a(a, b, c, false, false, false))
                }
                (Some(false), false, true) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::dp2a(a, b, c, false, true, false))
                }
                (Some(false), true, false) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::dp2a(a, b, c, true, false, false))
                }
                (Some(false), true, true) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::dp2a(a, b, c, true, true, false))
                }
                (Some(true), false, false) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::dp2a(a, b, c, false, false, true))
                }
                (Some(true), false, true) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::dp2a(a, b, c, false, true, true))
                }
                (Some(true), true, false) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::dp2a(a, b, c, true, false, true))
                }
                (Some(true), true, true) => {
                    lanes!(W3; |a: u32, b: u32, c: u32| integer::dp2a(a, b, c, true, true, true))
                }
            }
        }
        _ => return None,
    };
    Some((function, Class::Integer))
}
