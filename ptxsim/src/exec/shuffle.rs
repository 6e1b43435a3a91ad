//! Shuffles, votes, matches and reductions over the lanes of a warp.

use super::{
    cta::Env,
    warp::{Warp, lanes_of, thread_name},
};
use crate::{
    check::Kind,
    kernel::{Inst, Op, Reduce, Reg, Shuffle, Vote},
};

impl Warp {
    /// Executes one of them; `lanes` take part.
    pub(super) fn shuffle<const CHECKED: bool>(&mut self, env: &mut Env, inst: &Inst, pc: u32, lanes: u32) {
        match &inst.op {
            Op::Shuffle { mode, d, p, a, b, c, .. } => {
                let source = self.w[*a as usize];
                let set = self.w_set[*a as usize];
                let (b, c) = (self.w[*b as usize], self.w[*c as usize]);
                let mut value = source;
                let (mut inside, mut defined) = (0u32, set);
                for lane in lanes_of(lanes) {
                    let (from, ok) = source_lane(*mode, lane as i32, b[lane], c[lane]);
                    inside |= u32::from(ok) << lane;
                    value[lane] = source[from];
                    let there = lanes >> from & 1 == 1;
                    if CHECKED && !there {
                        let (cta, warp) = (env.cta, self.index);
                        env.report(Kind::PartialMask, pc, 2, || {
                            format!(
                                "{} takes the value of lane {from}, which does not take part",
                                thread_name(cta, warp, lane as u32)
                            )
                        });
                    }
                    defined = defined & !(1 << lane) | (set >> from & 1 | u32::from(!there)) << lane;
                }
                self.put_w(*d, &value, lanes);
                self.mark(Reg::W(*d), lanes, defined);
                if let Reg::P(p) = p {
                    self.put_p(*p, inside, lanes);
                }
            }
            Op::Vote { mode, d, a, .. } => {
                let holds = self.pred(*a) & lanes;
                let value = match mode {
                    Vote::All => u32::from(holds == lanes),
                    Vote::Any => u32::from(holds != 0),
                    Vote::Uniform => u32::from(holds == 0 || holds == lanes),
                    Vote::Ballot => holds,
                };
                match d {
                    Reg::P(d) => self.put_p(*d, 0u32.wrapping_sub(value), lanes),
                    Reg::W(d) => self.put_w(*d, &[value; 32], lanes),
                    _ => {}
                }
            }
            Op::Match { all, d, p, a, .. } => {
                let mut out = [0; 32];
                let first = self.value(*a, lanes.trailing_zeros() as usize % 32);
                let same = lanes_of(lanes).all(|lane| self.value(*a, lane) == first);
                for lane in lanes_of(lanes) {
                    out[lane] = if *all {
                        if same { lanes } else { 0 }
                    } else {
                        let mine = self.value(*a, lane);
                        lanes_of(lanes).fold(0, |m, l| m | u32::from(self.value(*a, l) == mine) << l)
                    };
                }
                self.put_w(*d, &out, lanes);
                if let Reg::P(p) = p {
                    self.put_p(*p, if same { u32::MAX } else { 0 }, lanes);
                }
            }
            Op::Reduce { op, d, a, .. } => {
                let source = self.w[*a as usize];
                let f: fn(u32, u32) -> u32 = match op {
                    Reduce::Add => u32::wrapping_add,
                    Reduce::MinU => u32::min,
                    Reduce::MaxU => u32::max,
                    Reduce::MinS => |a, b| (a as i32).min(b as i32) as u32,
                    Reduce::MaxS => |a, b| (a as i32).max(b as i32) as u32,
                    Reduce::And => |a, b| a & b,
                    Reduce::Or => |a, b| a | b,
                    Reduce::Xor => |a, b| a ^ b,
                };
                let value = lanes_of(lanes).map(|lane| source[lane]).reduce(f).unwrap_or(0);
                self.put_w(*d, &[value; 32], lanes);
            }
            Op::Elect { d, p, .. } => {
                let leader = lanes.trailing_zeros();
                if let Reg::W(d) = d {
                    self.put_w(*d, &[leader; 32], lanes);
                }
                self.put_p(*p, 1 << leader, lanes);
            }
            _ => {}
        }
    }
}

/// The lane that a shuffle takes its value from, and whether that lies within the bounds that `c` sets: its low five
/// bits clamp, bits 8 to 12 cut the warp into segments.
fn source_lane(mode: Shuffle, lane: i32, b: u32, c: u32) -> (usize, bool) {
    let (b, clamp, segment) = ((b & 31) as i32, (c & 31) as i32, (c >> 8 & 31) as i32);
    let last = lane & segment | clamp & !segment;
    let first = lane & segment;
    let (from, ok) = match mode {
        Shuffle::Up => (lane - b, lane - b >= last),
        Shuffle::Down => (lane + b, lane + b <= last),
        Shuffle::Butterfly => (lane ^ b, lane ^ b <= last),
        Shuffle::Index => {
            let from = first | b & !segment;
            (from, from <= last)
        }
    };
    if ok { ((from & 31) as usize, true) } else { (lane as usize, false) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffles_clamp_as_the_isa_says() {
        // __shfl_up_sync(…, 1) over 32 lanes: c = 0; lane 0 keeps its own.
        assert_eq!(source_lane(Shuffle::Up, 0, 1, 0), (0, false));
        assert_eq!(source_lane(Shuffle::Up, 5, 1, 0), (4, true));
        // __shfl_down_sync(…, 1): c = 31.
        assert_eq!(source_lane(Shuffle::Down, 31, 1, 31), (31, false));
        assert_eq!(source_lane(Shuffle::Down, 30, 1, 31), (31, true));
        // Width 8: the segment mask is 32 − 8 in bits 8 to 12.
        let c = (32 - 8) << 8 | 31;
        assert_eq!(source_lane(Shuffle::Down, 7, 1, c), (7, false));
        assert_eq!(source_lane(Shuffle::Down, 6, 1, c), (7, true));
        assert_eq!(source_lane(Shuffle::Index, 13, 2, c), (10, true));
        assert_eq!(source_lane(Shuffle::Butterfly, 13, 4, c), (9, true));
        // A butterfly that leaves its segment keeps its own value, unless the partner is below.
        assert_eq!(source_lane(Shuffle::Butterfly, 5, 8, c), (5, false));
        assert_eq!(source_lane(Shuffle::Butterfly, 13, 8, c), (5, true));
    }
}
