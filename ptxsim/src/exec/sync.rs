//! What lanes of a warp, and warps of a CTA, do together.

use super::{
    Context,
    cta::Env,
    fragment::{Fragment, State},
    warp::{Next, Warp, lanes_of, thread_name},
};
use crate::{
    check::{Kind, clock::Vector},
    error::Result,
    kernel::{Barrier, BarrierKind, Inst, Logic, Op, Reg},
};
use std::{collections::VecDeque, sync::Arc};

/// One of a CTA's sixteen barriers.
#[derive(Default)]
pub(super) struct BarrierState {
    /// How often it has completed.
    pub phase: u64,
    /// Threads that have arrived in this phase, and how many it takes; None for all that live.
    pub arrived: u32,
    pub expected: Option<u32>,
    /// Warps that have arrived in this phase.
    members: u32,
    /// One of them has waited for the launches before this one.
    grid_waited: bool,
    /// Joined past of the arrivals.
    past: Option<Vector>,
    published: Option<Arc<Vector>>,
    seen: Option<Vector>,
    published_cta: Option<Arc<Vector>>,
    seen_cta: Option<Vector>,
    /// Arrivals whose predicate held.
    held: u32,
    counted: u32,
    /// What the last phases ended with, for those that have not looked yet.
    results: VecDeque<Released>,
}

struct Released {
    phase: u64,
    past: Option<Vector>,
    published: Option<Arc<Vector>>,
    seen: Option<Vector>,
    published_cta: Option<Arc<Vector>>,
    seen_cta: Option<Vector>,
    grid_waited: bool,
    held: u32,
    counted: u32,
}

impl BarrierState {
    /// Ends the phase if all have arrived.
    pub fn complete(&mut self, live: u32) -> bool {
        if self.arrived == 0 || self.arrived < self.expected.unwrap_or(live) {
            return false;
        }
        let released = Released {
            phase: self.phase,
            past: self.past.take(),
            published: self.published.take(),
            seen: self.seen.take(),
            published_cta: self.published_cta.take(),
            seen_cta: self.seen_cta.take(),
            grid_waited: std::mem::take(&mut self.grid_waited),
            held: self.held,
            counted: self.counted,
        };
        self.results.push_back(released);
        if self.results.len() > 64 {
            self.results.pop_front();
        }
        self.phase += 1;
        self.arrived = 0;
        self.expected = None;
        self.held = 0;
        self.counted = 0;
        self.members = 0;
        true
    }
}

impl Warp {
    /// An operation that lanes execute together: waits for them, or says that they will not come.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn together<const CHECKED: bool>(
        &mut self,
        context: &Context,
        env: &mut Env,
        current: usize,
        inst: &Inst,
        pc: u32,
        mask: u32,
        lanes: u32,
        forced: &mut bool,
    ) -> Result<Next> {
        let needed = self.partners(inst, lanes);
        if needed & self.live & !mask != 0 && !*forced {
            self.fragments[current].state = State::Lanes;
            return Ok(Next::Look);
        }
        *forced = false;
        match &inst.op {
            Op::Barrier(barrier) => {
                self.check_partners(env, pc, lanes, needed & self.live);
                return Ok(self.barrier(env, current, barrier, pc, mask, lanes));
            }
            Op::LoadMatrix { .. } | Op::StoreMatrix { .. } => {
                // A matrix needs even lanes that have exited.
                self.check_partners(env, pc, lanes, needed);
                self.matrix_access::<CHECKED>(context, env, pc, inst, lanes);
            }
            Op::MoveMatrix { .. } | Op::Mma { .. } | Op::MmaD { .. } => {
                self.check_partners(env, pc, lanes, needed);
                self.matrix(context, env, inst, lanes);
            }
            op => {
                let Some(register) = op.member_mask() else { return Ok(Next::Step) };
                let masks = self.w[register as usize];
                let mut left = lanes;
                while left != 0 {
                    let mask = masks[left.trailing_zeros() as usize];
                    let group = lanes_of(left).fold(0, |g, l| g | u32::from(masks[l] == mask) << l);
                    left &= !group;
                    self.check_partners(env, pc, group, mask & self.live);
                    self.check_member(env, pc, group, mask);
                    match op {
                        Op::SyncWarp { .. } => self.clock.meet(group, self.live),
                        _ => self.shuffle::<CHECKED>(env, inst, pc, group),
                    }
                }
            }
        }
        Ok(Next::Step)
    }

    /// Reports lanes that should take part and do not.
    fn check_partners(&self, env: &mut Env, pc: u32, lanes: u32, needed: u32) {
        if needed & !lanes == 0 {
            return;
        }
        let (cta, warp) = (env.cta, self.index);
        env.report(Kind::PartialMask, pc, 0, || {
            format!(
                "{} executes with lanes {lanes:#010x} what lanes {needed:#010x} must execute together",
                thread_name(cta, warp, lanes.trailing_zeros())
            )
        });
    }

    /// Reports a lane that is not in the mask that it names.
    fn check_member(&self, env: &mut Env, pc: u32, lanes: u32, mask: u32) {
        let stranger = lanes & !mask;
        if stranger == 0 {
            return;
        }
        let (cta, warp) = (env.cta, self.index);
        env.report(Kind::PartialMask, pc, 1, || {
            format!(
                "{} is not in the mask {mask:#010x} that it executes with",
                thread_name(cta, warp, stranger.trailing_zeros())
            )
        });
    }

    #[allow(clippy::too_many_arguments)]
    fn barrier(
        &mut self,
        env: &mut Env,
        current: usize,
        barrier: &Barrier,
        pc: u32,
        mask: u32,
        lanes: u32,
    ) -> Next {
        let lane = lanes.trailing_zeros() as usize;
        let (cta, warp) = (env.cta, self.index);
        let id = self.value(barrier.id, lane) as u32;
        let threads = barrier.threads.map(|register| self.value(register, lane) as u32);
        let bad = match threads {
            _ if id > 15 => Some(format!("barrier {id}: a CTA has 0 to 15")),
            Some(n) if n == 0 || n % 32 != 0 => Some(format!("a barrier of {n} threads: not whole warps")),
            _ => None,
        };
        if let Some(bad) = bad {
            env.report(Kind::Deadlock, pc, 1, || {
                format!("{} arrives at {bad}", thread_name(cta, warp, lane as u32))
            });
            env.trapped = true;
            return Next::Yield;
        }
        let state = &mut env.own.barriers[id as usize];
        let me = 1u32 << (self.index % 32);
        if barrier.kind == BarrierKind::Arrive && barrier.aligned && state.members & me != 0 {
            self.fragments[current].state = State::Again { id, phase: state.phase };
            return Next::Look;
        }
        state.members |= me;
        if state.arrived > 0 && state.expected != threads {
            let expected = state.expected;
            env.report(Kind::Deadlock, pc, 2, || {
                format!(
                    "{} arrives at barrier {id} for {} threads, others for {}",
                    thread_name(cta, warp, lane as u32),
                    threads.map_or("all".into(), |n| n.to_string()),
                    expected.map_or("all".into(), |n| n.to_string()),
                )
            });
        }
        let state = &mut env.own.barriers[id as usize];
        state.expected = threads;
        // With a count, a warp counts as a whole.
        state.arrived += match threads {
            Some(_) if barrier.aligned || lanes == self.live => 32,
            _ => lanes.count_ones(),
        };
        if let Some(p) = barrier.input {
            state.held += (self.pred(p) & lanes).count_ones();
        }
        state.counted += lanes.count_ones();
        // What the lanes did so far is what the barrier's waiters will know.
        let past = self.clock.release();
        match &mut state.past {
            Some(there) => there.join(&past),
            there @ None => *there = Some(past),
        }
        // What one thread's fence published, or its strong read saw, holds for all behind the barrier.
        publish(&mut state.published, &self.clock.published);
        publish(&mut state.published_cta, &self.clock.published_cta);
        join(&mut state.seen_cta, &self.clock.seen_cta);
        join(&mut state.seen, &self.clock.seen);
        state.grid_waited |= self.grid_waited;
        let phase = state.phase;
        env.own.outcome.counters.barriers += 1;
        if state.complete(env.own.live) {
            env.common.progress += 1;
        }
        if barrier.kind == BarrierKind::Arrive {
            return Next::Step;
        }
        let stack = self.fragments[current].stack.clone();
        self.fragments[current].mask = mask & !lanes;
        self.fragments[current].pc = pc + 1;
        self.fragments.push(Fragment {
            pc: pc + 1,
            mask: lanes,
            state: State::Barrier { id, phase },
            stack,
            rests: 0,
        });
        Next::Look
    }

    /// A fragment goes on behind a barrier that has completed.
    pub(super) fn leave_barrier(
        &mut self,
        context: &Context,
        env: &mut Env,
        fragment: usize,
        id: u32,
        phase: u64,
    ) {
        self.fragments[fragment].state = State::Ready;
        let (pc, lanes) = (self.fragments[fragment].pc, self.fragments[fragment].mask);
        let Some(result) = env.own.barriers[id as usize].results.iter().find(|r| r.phase == phase) else {
            return;
        };
        if let Some(past) = &result.past {
            self.clock.acquire(past, lanes);
        }
        publish(&mut self.clock.published, &result.published);
        publish(&mut self.clock.published_cta, &result.published_cta);
        join(&mut self.clock.seen_cta, &result.seen_cta);
        join(&mut self.clock.seen, &result.seen);
        self.grid_waited |= result.grid_waited;
        self.clock.meet(lanes, self.live);
        if let Op::Barrier(barrier) = &context.kernel.code[pc as usize - 1].op {
            let (held, counted) = (result.held, result.counted);
            let value = match barrier.kind {
                BarrierKind::Count => u64::from(held),
                BarrierKind::Reduce(Logic::And) => u64::from(held == counted),
                _ => u64::from(held > 0),
            };
            if barrier.output != Reg::Sink {
                for lane in lanes_of(lanes) {
                    self.put(barrier.output, lane, value);
                }
                self.mark(barrier.output, lanes, lanes);
            }
        }
    }
}

fn join(into: &mut Option<Vector>, from: &Option<Vector>) {
    match (into, from) {
        (Some(into), Some(from)) => into.join(from),
        (into @ None, Some(from)) => *into = Some(from.clone()),
        (_, None) => {}
    }
}

/// Joins what is shared; the same past is not joined with itself.
pub(super) fn publish(into: &mut Option<Arc<Vector>>, from: &Option<Arc<Vector>>) {
    match (into, from) {
        (Some(into), Some(from)) if Arc::ptr_eq(into, from) => {}
        (Some(into), Some(from)) => Arc::make_mut(into).join(from),
        (into @ None, Some(from)) => *into = Some(from.clone()),
        (_, None) => {}
    }
}
