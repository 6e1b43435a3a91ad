//! The lanes of a warp that stand at the same instruction, and which of these fragments runs next.
//!
//! Where lanes part, the fragment in the deepest call and then at the smallest program counter goes first, one that gave way in
//! vain after the others; fragments that meet again become one. A `.sync` operation waits until all lanes that it names are in
//! one fragment.

use super::{
    Context,
    cta::Env,
    warp::{Warp, lanes_of},
};
use crate::kernel::{Inst, Op};

/// Lanes that stand at the same place.
#[derive(Clone, Debug)]
pub(crate) struct Fragment {
    pub pc: u32,
    pub mask: u32,
    pub state: State,
    pub stack: Vec<Frame>,
    /// How often it gave way in vain: others of the warp go first.
    pub rests: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// For the other lanes that its operation names.
    Lanes,
    /// It may go on without them: they will not come.
    Forced,
    /// At a CTA barrier, in the phase that it arrived in; `pc` is already behind it.
    Barrier {
        id: u32,
        phase: u64,
    },
    /// Before a bar.arrive at a barrier at which it has arrived in this phase already.
    Again {
        id: u32,
        phase: u64,
    },
}

/// A call that has not returned: the instruction of the call, and the function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub call: u32,
    pub routine: usize,
}

impl Warp {
    /// The fragment to run, and the program counter at which another one waits to be joined.
    pub(super) fn pick(&mut self, context: &Context, env: &mut Env) -> Option<(usize, u32)> {
        if let [only] = &self.fragments[..]
            && only.state == State::Ready
            && only.mask != 0
        {
            return Some((0, u32::MAX));
        }
        for i in (0..self.fragments.len()).rev() {
            if self.fragments[i].mask == 0 {
                self.fragments.swap_remove(i);
                continue;
            }
            if let State::Barrier { id, phase } = self.fragments[i].state
                && env.own.barriers[id as usize].phase > phase
            {
                self.leave_barrier(context, env, i, id, phase);
            }
            if let State::Again { id, phase } = self.fragments[i].state
                && env.own.barriers[id as usize].phase > phase
            {
                self.fragments[i].state = State::Ready;
            }
        }
        // Fragments at one place become one.
        let mut i = 0;
        while i < self.fragments.len() {
            let mut j = i + 1;
            while j < self.fragments.len() {
                let (a, b) = (&self.fragments[i], &self.fragments[j]);
                let open = |s: State| matches!(s, State::Ready | State::Lanes);
                if a.pc == b.pc && a.stack == b.stack && open(a.state) && open(b.state) {
                    let other = self.fragments.swap_remove(j);
                    self.fragments[i].mask |= other.mask;
                    self.fragments[i].state = State::Ready;
                    self.fragments[i].rests = 0;
                } else {
                    j += 1;
                }
            }
            i += 1;
        }
        let live = self.live;
        for i in 0..self.fragments.len() {
            if self.fragments[i].state == State::Lanes {
                let fragment = &self.fragments[i];
                let inst = &context.kernel.code[fragment.pc as usize];
                let needed = self.partners(inst, fragment.mask) & live;
                if needed & !fragment.mask == 0 {
                    self.fragments[i].state = State::Ready;
                }
            }
        }
        self.meet_apart(context);
        let runs = |s: State| matches!(s, State::Ready | State::Forced);
        let current =
            (0..self.fragments.len()).filter(|i| runs(self.fragments[*i].state)).min_by_key(|i| {
                let f = &self.fragments[*i];
                (f.rests, usize::MAX - f.stack.len(), f.pc)
            })?;
        let me = &self.fragments[current];
        let bound = self
            .fragments
            .iter()
            .enumerate()
            .filter(|(i, f)| {
                *i != current
                    && matches!(f.state, State::Ready | State::Lanes)
                    && f.stack.len() == me.stack.len()
                    && f.pc > me.pc
            })
            .map(|(_, f)| f.pc)
            .min()
            .unwrap_or(u32::MAX);
        Some((current, bound))
    }

    /// Lanes may meet at `bar.warp.sync` instructions in different places, as long as they name the same lanes.
    fn meet_apart(&mut self, context: &Context) {
        let mut masks = [(0u32, 0u32); 32];
        let mut count = 0;
        let at = |warp: &Self, f: &Fragment| match &context.kernel.code.get(f.pc as usize)?.op {
            Op::SyncWarp { mask } if f.state == State::Lanes => {
                Some(warp.w[*mask as usize][f.mask.trailing_zeros() as usize % 32])
            }
            _ => None,
        };
        for fragment in &self.fragments {
            let Some(mask) = at(self, fragment) else { continue };
            match masks[..count].iter_mut().find(|(m, _)| *m == mask) {
                Some((_, lanes)) => *lanes |= fragment.mask,
                None if count < 32 => {
                    masks[count] = (mask, fragment.mask);
                    count += 1;
                }
                None => {}
            }
        }
        for (mask, lanes) in masks[..count].iter().copied() {
            if mask & self.live & !lanes != 0 {
                continue;
            }
            for i in 0..self.fragments.len() {
                if at(self, &self.fragments[i]) == Some(mask) {
                    self.fragments[i].state = State::Ready;
                    self.fragments[i].pc += 1;
                }
            }
            self.clock.meet(lanes, self.live);
        }
    }

    /// The lanes that must execute an instruction together with those of `mask`.
    pub fn partners(&self, inst: &Inst, mask: u32) -> u32 {
        match &inst.op {
            Op::LoadMatrix { .. }
            | Op::StoreMatrix { .. }
            | Op::MoveMatrix { .. }
            | Op::Mma { .. }
            | Op::MmaD { .. } => u32::MAX,
            Op::Barrier(barrier) if barrier.aligned => u32::MAX,
            op => match op.member_mask() {
                // Groups of lanes may execute one instruction side by side, each with its own mask.
                Some(register) => {
                    let masks = &self.w[register as usize];
                    lanes_of(mask).fold(0, |all, lane| all | masks[lane])
                }
                None => 0,
            },
        }
    }
}
