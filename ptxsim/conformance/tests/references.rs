//! The simulator's results against plain Rust that shares nothing with it. An empty result is one that the instruction set
//! leaves open.

use half::{bf16, f16};
use ptxsim::{Schedule, numerics::matrix::Exact};
use ptxsim_conformance::{Case, Outcome, Runner, Simulator, Suite};

const NAN: u64 = 0x7fff_ffff;

fn outputs(simulator: &mut Simulator, case: &Case) -> Vec<u64> {
    let outcome = simulator.run(case).unwrap();
    let Outcome::Output(output) = outcome else { panic!("{}: {outcome:?}", case.name) };
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
    output.chunks_exact(case.output_bits as usize / 8).map(word).collect()
}

/// Results of one thread from its operands.
type Scalar = fn(&[u64]) -> Vec<u64>;

/// Results of the 32 lanes of a warp, by result and lane, from operands by operand and lane.
type Warp = fn(&[[u64; 32]]) -> Vec<[u64; 32]>;

fn u(x: u64) -> u32 {
    x as u32
}

fn s(x: u64) -> i32 {
    x as i32
}

fn one(x: impl Into<u64>) -> Vec<u64> {
    vec![x.into()]
}

fn signed(x: i32) -> Vec<u64> {
    vec![u64::from(x as u32)]
}

fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

fn float(x: f32) -> Vec<u64> {
    vec![if x.is_nan() { NAN } else { u64::from(x.to_bits()) }]
}

/// f64 results that are NaN have no one form.
fn double(x: f64) -> Vec<u64> {
    if x.is_nan() { vec![] } else { vec![x.to_bits()] }
}

fn d(x: u64) -> f64 {
    f64::from_bits(x)
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

fn saturate(x: f32) -> f32 {
    // NaN and −0 become +0.
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

fn half(x: f16) -> Vec<u64> {
    one(if x.is_nan() { 0x7fff } else { x.to_bits() })
}

fn brain(x: bf16) -> Vec<u64> {
    one(if x.is_nan() { 0x7fff } else { x.to_bits() })
}

/// −0 is below +0; a NaN yields to a number.
fn minimum(a: f32, b: f32) -> Vec<u64> {
    match (a.is_nan(), b.is_nan()) {
        (true, _) => float(b),
        (_, true) => float(a),
        _ if a == b => one(a.to_bits().max(b.to_bits())),
        _ => float(a.min(b)),
    }
}

fn maximum(a: f32, b: f32) -> Vec<u64> {
    match (a.is_nan(), b.is_nan()) {
        (true, _) => float(b),
        (_, true) => float(a),
        _ if a == b => one(a.to_bits().min(b.to_bits())),
        _ => float(a.max(b)),
    }
}

fn funnel(low: u64, high: u64) -> u64 {
    u64::from(u(high)) << 32 | u64::from(u(low))
}

fn extract(a: u64, position: u64, length: u64, sign: bool) -> Vec<u64> {
    let (position, length) = (position & 0xff, length & 0xff);
    let bit = |i: u64| u(a) >> i.min(31) & 1;
    let fill = if sign && length > 0 { bit(position + length - 1) } else { 0 };
    one((0..32)
        .fold(0, |out, i| out | if i < length && position + i < 32 { bit(position + i) } else { fill } << i))
}

fn insert(a: u64, b: u64, position: u64, length: u64) -> Vec<u64> {
    let (position, length) = (position & 0xff, length & 0xff);
    let places = (0..length.min(32)).filter(|i| position + i < 32);
    one(places.fold(u(b), |out, i| out & !(1 << (position + i)) | (u(a) >> i & 1) << (position + i)))
}

fn mask(position: u32, width: u32) -> Vec<u64> {
    one((0..32)
        .filter(|i| (position..position.saturating_add(width)).contains(i))
        .fold(0u32, |out, i| out | 1 << i))
}

/// Four bytes of the eight of b and a.
fn permute(a: u64, b: u64, bytes: [u32; 4]) -> Vec<u64> {
    one((0..4).fold(0, |out, i| out | u(funnel(a, b) >> (8 * bytes[i])) << 24 >> (24 - 8 * i)))
}

fn lookup(x: &[u64], table: u32) -> Vec<u64> {
    let index = |i: u32| (u(x[0]) >> i & 1) << 2 | (u(x[1]) >> i & 1) << 1 | u(x[2]) >> i & 1;
    one((0..32).fold(0, |out, i| out | (table >> index(i) & 1) << i))
}

fn nth_set(x: &[u64]) -> Vec<u64> {
    let (mask, base, offset) = (u(x[0]), u(x[1]), s(x[2]));
    if base > 31 {
        return vec![];
    }
    let set = |i: &u32| mask >> i & 1 == 1;
    let count = offset.unsigned_abs() as usize;
    one(match offset.signum() {
        0 => Some(base).filter(set),
        1 => (base..32).filter(set).nth(count - 1),
        _ => (0..=base).rev().filter(set).nth(count - 1),
    }
    .unwrap_or(u32::MAX))
}

fn bytes(x: u64, sign: bool) -> [i64; 4] {
    u(x).to_le_bytes().map(|b| if sign { i64::from(b as i8) } else { i64::from(b) })
}

fn dot(a: [i64; 4], b: [i64; 4], c: u64) -> Vec<u64> {
    one(u((0..4).fold(c as i64, |sum, i| sum.wrapping_add(a[i] * b[i])) as u64))
}

fn sign_free(x: u64) -> u32 {
    if s(x) < 0 { !u(x) } else { u(x) }
}

fn scalar(entry: &str) -> Option<Scalar> {
    let reference: Scalar = match entry {
        "add_sat_s32" => |x| signed(s(x[0]).saturating_add(s(x[1]))),
        "sub_sat_s32" => |x| signed(s(x[0]).saturating_sub(s(x[1]))),
        "mul_hi_u32" => |x| one((x[0] * x[1]) >> 32),
        "mul_hi_s32" => |x| signed(((i64::from(s(x[0])) * i64::from(s(x[1]))) >> 32) as i32),
        "mul24_lo_u32" => |x| one(u((x[0] & 0xff_ffff) * (x[1] & 0xff_ffff))),
        "mul24_hi_s32" => {
            |x| signed(((i64::from(s(x[0]) << 8 >> 8) * i64::from(s(x[1]) << 8 >> 8)) >> 16) as i32)
        }
        "div_s32" => |x| if x[1] == 0 { vec![] } else { signed(s(x[0]).wrapping_div(s(x[1]))) },
        "rem_s32" => |x| if x[1] == 0 { vec![] } else { signed(s(x[0]).wrapping_rem(s(x[1]))) },
        "div_u32" => |x| x[0].checked_div(x[1]).into_iter().collect(),
        "rem_u32" => |x| x[0].checked_rem(x[1]).into_iter().collect(),
        "rem_s64" => |x| if x[1] == 0 { vec![] } else { one((x[0] as i64).wrapping_rem(x[1] as i64) as u64) },
        "mad_hi_sat_s32" => {
            |x| signed((((i64::from(s(x[0])) * i64::from(s(x[1]))) >> 32) as i32).saturating_add(s(x[2])))
        }
        "sad_s32" => |x| one(s(x[0]).abs_diff(s(x[1])).wrapping_add(u(x[2]))),
        "mul_hi_u64" => |x| one(((u128::from(x[0]) * u128::from(x[1])) >> 64) as u64),
        "mul_hi_s64" => |x| one(((i128::from(x[0] as i64) * i128::from(x[1] as i64)) >> 64) as u64),
        "mad_carry_chain" => |x| {
            let product = u128::from(funnel(x[0], x[1])) * u128::from(funnel(x[2], x[3]));
            (0..4).map(|i| u64::from((product >> (32 * i)) as u32)).collect()
        },
        "sub_borrow_chain" => |x| {
            let (difference, borrow) = funnel(x[0], x[1]).overflowing_sub(funnel(x[2], x[3]));
            vec![u64::from(u(difference)), difference >> 32, if borrow { 0xffff_ffff } else { 0 }]
        },
        "shl_b32" => |x| one(u(x[0]).checked_shl(u(x[1])).unwrap_or(0)),
        "shr_u32" => |x| one(u(x[0]).checked_shr(u(x[1])).unwrap_or(0)),
        "shr_s32" => |x| signed(s(x[0]) >> u(x[1]).min(31)),
        "shl_b64" => |x| one(x[0].checked_shl(u(x[1])).unwrap_or(0)),
        "shr_u64" => |x| one(x[0].checked_shr(u(x[1])).unwrap_or(0)),
        "shr_s64" => |x| one((x[0] as i64 >> u(x[1]).min(63)) as u64),
        "shf_l_wrap_b32" => |x| one(funnel(x[0], x[1]) << (x[2] & 31) >> 32),
        "shf_l_clamp_b32" => |x| one(funnel(x[0], x[1]) << x[2].min(32) >> 32),
        "shf_r_wrap_b32" => |x| one(u(funnel(x[0], x[1]) >> (x[2] & 31))),
        "shf_r_clamp_b32" => |x| one(u(funnel(x[0], x[1]) >> x[2].min(32))),
        "bfe_u32" => |x| extract(x[0], x[1], x[2], false),
        "bfe_s32" => |x| extract(x[0], x[1], x[2], true),
        "bfi_b32" => |x| insert(x[0], x[1], x[2], x[3]),
        "bmsk_clamp_b32" => |x| mask(u(x[0]), u(x[1])),
        "bmsk_wrap_b32" => |x| mask(u(x[0]) & 31, u(x[1]) & 31),
        "szext_clamp_s32" => |x| match u(x[1]) {
            0 => one(0u32),
            n => signed(s(x[0]) << (32 - n.min(32)) >> (32 - n.min(32))),
        },
        "szext_wrap_u32" => |x| one(u(x[0]) & ((1 << (x[1] & 31)) - 1)),
        "bfind_u32" => |x| signed(31 - u(x[0]).leading_zeros() as i32),
        "bfind_s32" => |x| signed(31 - sign_free(x[0]).leading_zeros() as i32),
        "bfind_shiftamt_u32" => |x| signed(if u(x[0]) == 0 { -1 } else { u(x[0]).leading_zeros() as i32 }),
        "brev_b32" => |x| one(u(x[0]).reverse_bits()),
        "clz_b32" => |x| one(u(x[0]).leading_zeros()),
        "popc_b32" => |x| one(u(x[0]).count_ones()),
        "abs_s32" => |x| signed(s(x[0]).wrapping_abs()),
        "fns_b32" => nth_set,
        "prmt_b32" => |x| {
            let selected = permute(x[0], x[1], [0, 4, 8, 12].map(|at| u(x[2]) >> at & 7));
            // A selector's highest bit repeats the byte's sign.
            let fill = |byte: u32| if s(selected[0]) >> (8 * byte + 7) & 1 == 1 { 0xff } else { 0 };
            one((0..4).fold(u(selected[0]), |out, i| match u(x[2]) >> (4 * i + 3) & 1 {
                1 => out & !(0xff << (8 * i)) | fill(i) << (8 * i),
                _ => out,
            }))
        },
        "prmt_f4e_b32" => |x| permute(x[0], x[1], [0, 1, 2, 3].map(|i| (u(x[2]) & 3) + i)),
        "prmt_b4e_b32" => |x| permute(x[0], x[1], [8, 7, 6, 5].map(|i| ((u(x[2]) & 3) + i) % 8)),
        "prmt_rc8_b32" => |x| permute(x[0], x[1], [u(x[2]) & 3; 4]),
        "prmt_ecl_b32" => |x| permute(x[0], x[1], [0, 1, 2, 3].map(|i| i.max(u(x[2]) & 3))),
        "prmt_ecr_b32" => |x| permute(x[0], x[1], [0, 1, 2, 3].map(|i| i.min(u(x[2]) & 3))),
        "prmt_rc16_b32" => |x| permute(x[0], x[1], [0, 1, 0, 1].map(|i| (u(x[2]) & 1) * 2 + i)),
        "lop3_b32_96" => |x| one(u(x[0] ^ x[1] ^ x[2])),
        "lop3_b32_e8" => |x| one(u(x[0] & x[1] | x[0] & x[2] | x[1] & x[2])),
        "lop3_b32_1d" => |x| lookup(x, 0x1d),
        "dp4a_s32_s32" => |x| dot(bytes(x[0], true), bytes(x[1], true), x[2]),
        "dp4a_u32_u32" => |x| dot(bytes(x[0], false), bytes(x[1], false), x[2]),
        "dp4a_s32_u32" => |x| dot(bytes(x[0], true), bytes(x[1], false), x[2]),
        "dp2a_lo_s32_s32" => |x| {
            let [low, high] = [0, 16].map(|at| i64::from((x[0] >> at) as i16));
            dot([low, high, 0, 0], bytes(x[1], true), x[2])
        },
        "dp2a_hi_u32_u32" => |x| {
            let [low, high] = [0, 16].map(|at| i64::from((x[0] >> at) as u16));
            dot([0, 0, low, high], bytes(x[1], false), x[2])
        },
        "add_f32" => |x| float(f(x[0]) + f(x[1])),
        "add_ftz_f32" => |x| float(flush(flush(f(x[0])) + flush(f(x[1])))),
        "add_sat_f32" => |x| float(saturate(f(x[0]) + f(x[1]))),
        "mul_f32" => |x| float(f(x[0]) * f(x[1])),
        "mul_ftz_f32" => |x| float(flush(flush(f(x[0])) * flush(f(x[1])))),
        "fma_rn_f32" => |x| float(f(x[0]).mul_add(f(x[1]), f(x[2]))),
        "fma_rn_sat_f32" => |x| float(saturate(f(x[0]).mul_add(f(x[1]), f(x[2])))),
        "div_rn_f32" => |x| float(f(x[0]) / f(x[1])),
        "rcp_rn_f32" => |x| float(1.0 / f(x[0])),
        "sqrt_rn_f32" => |x| float(f(x[0]).sqrt()),
        "min_f32" => |x| minimum(f(x[0]), f(x[1])),
        "max_f32" => |x| maximum(f(x[0]), f(x[1])),
        "min_ftz_f32" => |x| minimum(flush(f(x[0])), flush(f(x[1]))),
        "max_nan_f32" => |x| match f(x[0]).is_nan() || f(x[1]).is_nan() {
            true => one(NAN),
            false => maximum(f(x[0]), f(x[1])),
        },
        "copysign_f32" => |x| one(x[0] & 0x8000_0000 | x[1] & 0x7fff_ffff),
        "setp_lt_f32" => |x| one(f(x[0]) < f(x[1])),
        "setp_ltu_f32" => |x| one(f(x[0]).partial_cmp(&f(x[1])).is_none_or(|o| o.is_lt())),
        "setp_ne_f32" => |x| one(f(x[0]) < f(x[1]) || f(x[0]) > f(x[1])),
        "setp_equ_ftz_f32" => |x| one(flush(f(x[0])).partial_cmp(&flush(f(x[1]))).is_none_or(|o| o.is_eq())),
        "setp_num_f32" => |x| one(!f(x[0]).is_nan() && !f(x[1]).is_nan()),
        "setp_nan_f32" => |x| one(f(x[0]).is_nan() || f(x[1]).is_nan()),
        "testp_subnormal_f32" => |x| one(f(x[0]).is_subnormal()),
        "add_f64" => |x| double(d(x[0]) + d(x[1])),
        "mul_rn_f64" => |x| double(d(x[0]) * d(x[1])),
        "div_rn_f64" => |x| double(d(x[0]) / d(x[1])),
        "sqrt_rn_f64" => |x| double(d(x[0]).sqrt()),
        // An f32 sum of two f16 has bits enough for one more rounding to be the only one.
        "add_f16" => |x| {
            half(f16::from_f32(f16::from_bits(x[0] as u16).to_f32() + f16::from_bits(x[1] as u16).to_f32()))
        },
        "cvt_rn_f16_f32" => |x| half(f16::from_f32(f(x[0]))),
        "cvt_rn_bf16_f32" => |x| brain(bf16::from_f32(f(x[0]))),
        "cvt_rn_bf16x2_f32" => {
            |x| one(brain(bf16::from_f32(f(x[0])))[0] << 16 | brain(bf16::from_f32(f(x[1])))[0])
        }
        "cvt_rn_f16x2_f32" => {
            |x| one(half(f16::from_f32(f(x[0])))[0] << 16 | half(f16::from_f32(f(x[1])))[0])
        }
        "cvt_f32_f16" => |x| float(f16::from_bits(x[0] as u16).to_f32()),
        "cvt_rni_f32_f32" => |x| float(f(x[0]).round_ties_even()),
        "cvt_rzi_f32_f32" => |x| float(f(x[0]).trunc()),
        "cvt_rmi_f32_f32" => |x| float(f(x[0]).floor()),
        "cvt_rpi_f32_f32" => |x| float(f(x[0]).ceil()),
        "cvt_sat_f32_f32" => |x| float(saturate(f(x[0]))),
        "cvt_rni_s32_f32" => |x| signed(f(x[0]).round_ties_even() as i32),
        "cvt_rzi_s32_f32" => |x| signed(f(x[0]) as i32),
        "cvt_rmi_s32_f32" => |x| signed(f(x[0]).floor() as i32),
        "cvt_rpi_s32_f32" => |x| signed(f(x[0]).ceil() as i32),
        "cvt_rzi_u32_f32" => |x| one(f(x[0]) as u32),
        // What a NaN becomes in 64 bits is for hardware to say.
        "cvt_rzi_s64_f32" => |x| if f(x[0]).is_nan() { vec![] } else { one(f(x[0]) as i64 as u64) },
        "cvt_rzi_u64_f32" => |x| if f(x[0]).is_nan() { vec![] } else { one(f(x[0]) as u64) },
        "cvt_rn_f32_s32" => |x| float(s(x[0]) as f32),
        "cvt_rn_f32_u32" => |x| float(u(x[0]) as f32),
        "cvt_rn_f32_s64" => |x| float(x[0] as i64 as f32),
        "cvt_rn_f32_u64" => |x| float(x[0] as f32),
        "cvt_rn_f64_u64" => |x| double(x[0] as f64),
        "cvt_rn_f32_f64" => |x| float(d(x[0]) as f32),
        "cvt_f64_f32" => |x| double(f64::from(f(x[0]))),
        "cvt_s32_s8" => |x| signed(i32::from(x[0] as i8)),
        "cvt_u32_u8" => |x| one(x[0] as u8),
        "cvt_sat_s8_s32" => |x| signed(s(x[0]).clamp(-128, 127)),
        "cvt_sat_u8_s32" => |x| signed(s(x[0]).clamp(0, 255)),
        "cvt_sat_u16_s32" => |x| signed(s(x[0]).clamp(0, 65535)),
        "cvt_sat_u32_s64" => |x| one((x[0] as i64).clamp(0, i64::from(u32::MAX)) as u64),
        "cvt_s64_s32" => |x| one(i64::from(s(x[0])) as u64),
        _ => return None,
    };
    Some(reference)
}

fn fold(x: &[[u64; 32]], combine: fn(u32, u32) -> u32) -> Vec<[u64; 32]> {
    vec![[u64::from(x[0].into_iter().map(u).reduce(combine).unwrap()); 32]]
}

/// `shfl.sync`: which lane is read, and whether it is in range, given the lane, b, c's clamp and its segment mask.
fn shuffle(x: &[[u64; 32]], place: fn(u32, u32, u32, u32) -> (u32, bool)) -> Vec<[u64; 32]> {
    let mut out = [[0; 32]; 2];
    for lane in 0..32 {
        let (b, c) = (u(x[1][lane]) & 31, u(x[2][lane]));
        let (source, in_range) = place(lane as u32, b, c & 31, c >> 8 & 31);
        out[0][lane] = x[0][if in_range { source as usize } else { lane }];
        out[1][lane] = u64::from(in_range);
    }
    out.to_vec()
}

/// The last lane that may be read: the clamp within the lane's segment.
fn last(lane: u32, clamp: u32, segment: u32) -> u32 {
    lane & segment | clamp & !segment
}

fn lanes(x: [u64; 32], test: impl Fn(u64) -> bool) -> u32 {
    (0..32).filter(|lane| test(x[*lane])).fold(0, |mask, lane| mask | 1 << lane)
}

/// m16n8k32 of s8: rows and columns of the fragments as the instruction set draws them.
fn integer_product(x: &[[u64; 32]]) -> Vec<[u64; 32]> {
    let byte = |register: usize, lane: usize, b: usize| i32::from((x[register][lane] >> (8 * b)) as i8);
    let mut a = [[0; 32]; 16];
    let mut b = [[0; 8]; 32];
    for lane in 0..32 {
        let (group, thread) = (lane / 4, lane % 4);
        for i in 0..4 {
            for register in 0..4 {
                a[group + 8 * (register & 1)][4 * thread + i + 16 * (register >> 1)] =
                    byte(register, lane, i);
            }
            for register in 0..2 {
                b[4 * thread + i + 16 * register][group] = byte(4 + register, lane, i);
            }
        }
    }
    let mut out = [[0; 32]; 4];
    for register in 0..4 {
        for lane in 0..32 {
            let (row, column) = (lane / 4 + 8 * (register >> 1), 2 * (lane % 4) + (register & 1));
            let sum =
                (0..32).fold(s(x[6 + register][lane]), |sum, k| sum.wrapping_add(a[row][k] * b[k][column]));
            out[register][lane] = u64::from(sum as u32);
        }
    }
    out.to_vec()
}

fn warp(entry: &str) -> Option<Warp> {
    let reference: Warp = match entry {
        "redux_add_s32" => |x| fold(x, u32::wrapping_add),
        "redux_min_s32" => |x| fold(x, |a, b| (a as i32).min(b as i32) as u32),
        "redux_max_s32" => |x| fold(x, |a, b| (a as i32).max(b as i32) as u32),
        "redux_min_u32" => |x| fold(x, u32::min),
        "redux_max_u32" => |x| fold(x, u32::max),
        "redux_and_b32" => |x| fold(x, |a, b| a & b),
        "redux_or_b32" => |x| fold(x, |a, b| a | b),
        "redux_xor_b32" => |x| fold(x, |a, b| a ^ b),
        "vote_all" => |x| vec![[u64::from(lanes(x[0], |v| v & 1 == 1) == u32::MAX); 32]],
        "vote_any" => |x| vec![[u64::from(lanes(x[0], |v| v & 1 == 1) != 0); 32]],
        "vote_uni" => |x| vec![[u64::from(matches!(lanes(x[0], |v| v & 1 == 1), 0 | u32::MAX)); 32]],
        "vote_ballot" => |x| vec![[u64::from(lanes(x[0], |v| v & 1 == 1)); 32]],
        "match_any_b32" => |x| vec![x[0].map(|own| u64::from(lanes(x[0], |v| v & 7 == own & 7)))],
        "shfl_up" => |x| {
            shuffle(x, |lane, b, clamp, segment| {
                (
                    lane.wrapping_sub(b),
                    i64::from(lane) - i64::from(b) >= i64::from(last(lane, clamp, segment)),
                )
            })
        },
        "shfl_down" => {
            |x| shuffle(x, |lane, b, clamp, segment| (lane + b, lane + b <= last(lane, clamp, segment)))
        }
        "shfl_bfly" => {
            |x| shuffle(x, |lane, b, clamp, segment| (lane ^ b, lane ^ b <= last(lane, clamp, segment)))
        }
        "shfl_idx" => |x| {
            shuffle(x, |lane, b, clamp, segment| {
                let source = lane & segment | b & !segment;
                (source, source <= last(lane, clamp, segment))
            })
        },
        "movmatrix_trans" => |x| {
            let element =
                |row: usize, column: usize| x[0][4 * row + column / 2] >> (16 * (column % 2)) & 0xffff;
            let lane = |i: usize| element(2 * (i % 4), i / 4) | element(2 * (i % 4) + 1, i / 4) << 16;
            vec![std::array::from_fn(lane)]
        },
        "mma_m16n8k32_s32_s8" => integer_product,
        _ => return None,
    };
    Some(reference)
}

#[test]
fn scalar_instructions() {
    let suite = Suite::carried().unwrap();
    let mut simulator = Simulator::new(None, Schedule::InOrder);
    let mut entries = std::collections::BTreeSet::new();
    for case in &suite.cases {
        let Some(reference) = scalar(&case.entry) else { continue };
        entries.insert(&case.entry);
        let output = outputs(&mut simulator, case);
        let n = case.n as usize;
        for thread in 0..n {
            let operands = case.operands(thread);
            for (j, expected) in reference(&operands).into_iter().enumerate() {
                let got = output[j * n + thread];
                assert_eq!(got, expected, "{} {operands:x?}: {got:x}, expected {expected:x}", case.name);
            }
        }
    }
    assert_eq!(entries.len(), 115);
}

#[test]
fn warp_instructions() {
    let suite = Suite::carried().unwrap();
    let mut simulator = Simulator::new(None, Schedule::InOrder);
    let mut entries = std::collections::BTreeSet::new();
    for case in &suite.cases {
        let Some(reference) = warp(&case.entry) else { continue };
        entries.insert(&case.entry);
        let output = outputs(&mut simulator, case);
        let n = case.n as usize;
        for first in (0..n).step_by(32) {
            let by_lane: Vec<_> = (first..first + 32).map(|thread| case.operands(thread)).collect();
            let operand = |j: usize| std::array::from_fn(|lane| by_lane[lane][j]);
            let operands: Vec<[u64; 32]> = (0..by_lane[0].len()).map(operand).collect();
            for (j, expected) in reference(&operands).into_iter().enumerate() {
                let got = &output[j * n + first..][..32];
                assert_eq!(got, expected, "{} result {j} of the warp from thread {first}", case.name);
            }
        }
    }
    assert_eq!(entries.len(), 19);
}

/// m16n8k16 of bf16, summed in f64: every order and rounding stays near it.
#[test]
fn float_products_are_near_the_exact_sums() {
    let suite = Suite::carried().unwrap();
    let case = suite.cases.iter().find(|c| c.name == "mma_m16n8k16_f32_bf16:near").unwrap();
    for exact in [None, Some(Exact::Ampere), Some(Exact::Hopper)] {
        let output = outputs(&mut Simulator::new(exact, Schedule::InOrder), case);
        let n = case.n as usize;
        for first in (0..n).step_by(32) {
            let registers: Vec<_> = (first..first + 32).map(|thread| case.operands(thread)).collect();
            let value = |register: usize, lane: usize, at: usize| {
                bf16::from_bits((registers[lane][register] >> (16 * (at % 2))) as u16).to_f64()
            };
            for (result, lane) in (0..4).flat_map(|r| (0..32).map(move |l| (r, l))) {
                let (row, column) = (lane / 4 + 8 * (result / 2), 2 * (lane % 4) + result % 2);
                let products = (0..16).map(|k| {
                    let a = value(row / 8 + 2 * (k / 8), row % 8 * 4 + k % 8 / 2, k);
                    a * value(4 + k / 8, column * 4 + k % 8 / 2, k)
                });
                let addend = f64::from(f(registers[lane][6 + result]));
                let (sum, size) =
                    products.fold((addend, addend.abs()), |(sum, size), p| (sum + p, size + p.abs()));
                let got = f64::from(f(output[result * n + first + lane]));
                assert!((got - sum).abs() <= size * 2e-6, "{exact:?} ({row}, {column}): {got}, near {sum}");
            }
        }
    }
}

#[test]
fn approximations_keep_the_error_that_is_allowed() {
    let suite = Suite::carried().unwrap();
    let mut simulator = Simulator::new(None, Schedule::InOrder);
    let mut compared = 0;
    for case in &suite.cases {
        let Some(tolerance) = case.tolerance() else { continue };
        let opcode = case.entry.split('_').next().unwrap();
        let output = outputs(&mut simulator, case);
        for (thread, got) in output.into_iter().enumerate() {
            let operands = case.operands(thread);
            for lane in 0..case.output_bits / tolerance.lane_bits {
                let part = |x: u64| tolerance.value(x >> (lane * tolerance.lane_bits));
                let (x, got) = (part(operands[0]), part(got));
                let expected = match opcode {
                    "ex2" => x.exp2(),
                    "lg2" => x.log2(),
                    "rcp" => 1.0 / x,
                    "rsqrt" => 1.0 / x.sqrt(),
                    "sqrt" => x.sqrt(),
                    "sin" => x.sin(),
                    "cos" => x.cos(),
                    "tanh" => x.tanh(),
                    "div" => x / part(operands[1]),
                    _ => panic!("{}: no reference", case.name),
                };
                // Where a subnormal number is read or made, or none can hold the result, flushing and overflow have a say.
                let (least, most) = match tolerance.lane_bits {
                    16 => (f64::exp2(-14.0), 65504.0),
                    32 => (f64::exp2(-126.0), f64::from(f32::MAX)),
                    _ => (f64::MIN_POSITIVE, f64::MAX),
                };
                let plain = |v: f64| (least..=most).contains(&v.abs());
                let fits = plain(x) && plain(expected) && operands.get(1).is_none_or(|b| plain(part(*b)));
                // div.approx gives up where the reciprocal of its divisor is subnormal.
                let small = opcode != "div" || part(operands[1]).abs() <= f64::exp2(126.0);
                let (true, true, Some((relative, absolute))) = (fits, small, tolerance.bounds(x)) else {
                    continue;
                };
                compared += 1;
                let rounding =
                    expected.abs() * if tolerance.lane_bits == 16 { f64::exp2(-11.0) } else { 0.0 };
                let error = (got - expected).abs();
                assert!(
                    error <= relative * expected.abs() + absolute + rounding,
                    "{} of {x:e}: {got:e}, near {expected:e}",
                    case.name
                );
            }
        }
    }
    assert!(compared > 60_000, "{compared}");
}
