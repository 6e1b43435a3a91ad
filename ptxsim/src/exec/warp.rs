//! One warp: its registers, and the loop that executes the instructions of one of its fragments.

use super::{
    Context, TraceLine,
    cta::Env,
    fragment::{Fragment, State},
};
use crate::{
    check::{Kind, clock::Clock},
    error::{Error, Result},
    kernel::{Carry, Inst, Kernel, Lanes, Lanes64, Op, Pred, Reg, Value},
    memory::{FUNCTION_BASE, window::Window},
    parse::Space,
};

/// A warp of a CTA.
pub(crate) struct Warp {
    pub index: u32,
    pub w: Vec<Lanes>,
    pub d: Vec<Lanes64>,
    pub p: Vec<u32>,
    /// For each register, the lanes that hold a value.
    pub w_set: Vec<u32>,
    pub d_set: Vec<u32>,
    pub p_set: Vec<u32>,
    pub fragments: Vec<Fragment>,
    /// Lanes that have not exited.
    pub live: u32,
    /// Local memory and call memory of the lanes, one after another.
    pub local: Window,
    pub call: Window,
    pub clock: Clock,
    /// Committed groups of asynchronous copies of each lane.
    pub groups: [u32; 32],
    /// Places and numbers of this warp's copies that no wait has covered.
    pub flights: Vec<(u32, u64)>,
    /// Instructions executed.
    pub steps: u64,
    /// Strong loads in a row that changed nothing, and the launch's progress when they began.
    pub polls: u32,
    /// It, or a warp that it met at a barrier since, has waited for the launches before.
    pub grid_waited: bool,
    /// Where it polled last: instruction and address.
    pub polled: [(u32, u64); 4],
    pub progress: u64,
}

/// Why a warp gave way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// All its lanes have exited.
    Done,
    /// Nothing of it can run.
    Blocked,
    /// It had its turn.
    Turn,
}

/// What follows an instruction.
pub(crate) enum Next {
    /// The next instruction.
    Step,
    /// Lanes have parted, met, exited or wait: look again at the fragments.
    Look,
    /// Give way to other warps.
    Yield,
}

impl Warp {
    pub fn new(context: &Context, cta: u64, index: u32) -> Self {
        let kernel = context.kernel;
        let warps = context.warps();
        let threads = context.threads() - index * 32;
        let live = if threads >= 32 { u32::MAX } else { (1 << threads) - 1 };
        let mut warp = Warp {
            index,
            w: vec![[0; 32]; kernel.words as usize],
            d: vec![[0; 32]; kernel.doubles as usize],
            p: vec![0; kernel.predicates as usize],
            w_set: vec![0; kernel.words as usize],
            d_set: vec![0; kernel.doubles as usize],
            p_set: vec![0; kernel.predicates as usize],
            fragments: vec![Fragment { pc: 0, mask: live, state: State::Ready, stack: vec![], rests: 0 }],
            live,
            local: Window::new(kernel.local_bytes as usize * 32),
            call: Window::new(kernel.call_bytes as usize * 32),
            clock: Clock::new((cta * u64::from(warps)) as u32, index as usize, warps as usize),
            groups: [0; 32],
            flights: vec![],
            steps: 0,
            polls: 0,
            grid_waited: false,
            polled: [(u32::MAX, 0); 4],
            progress: 0,
        };
        let place = context.place(cta);
        for (register, value) in &kernel.preset_words {
            warp.w[*register as usize] = match value {
                Value::Bits(bits) => [*bits as u32; 32],
                _ => std::array::from_fn(|lane| preset(context, place, index, lane, *value) as u32),
            };
            warp.w_set[*register as usize] = u32::MAX;
        }
        for (register, value) in &kernel.preset_doubles {
            warp.d[*register as usize] = match value {
                Value::Bits(bits) => [*bits; 32],
                _ => std::array::from_fn(|lane| preset(context, place, index, lane, *value)),
            };
            warp.d_set[*register as usize] = u32::MAX;
        }
        for (register, value) in &kernel.preset_predicates {
            warp.p[*register as usize] = if *value { u32::MAX } else { 0 };
            warp.p_set[*register as usize] = u32::MAX;
        }
        warp
    }

    #[inline]
    pub fn pred(&self, p: Pred) -> u32 {
        let mask = self.p[p.register as usize];
        if p.negated { !mask } else { mask }
    }

    #[inline]
    pub fn put_w(&mut self, d: u32, value: &Lanes, lanes: u32) {
        let register = &mut self.w[d as usize];
        if lanes == u32::MAX {
            *register = *value;
        } else {
            for lane in 0..32 {
                let keep = (lanes >> lane & 1).wrapping_sub(1);
                register[lane] = register[lane] & keep | value[lane] & !keep;
            }
        }
        self.w_set[d as usize] |= lanes;
    }

    #[inline]
    pub fn put_d(&mut self, d: u32, value: &Lanes64, lanes: u32) {
        let register = &mut self.d[d as usize];
        if lanes == u32::MAX {
            *register = *value;
        } else {
            for lane in 0..32 {
                if lanes >> lane & 1 == 1 {
                    register[lane] = value[lane];
                }
            }
        }
        self.d_set[d as usize] |= lanes;
    }

    #[inline]
    pub fn put_p(&mut self, d: u32, value: u32, lanes: u32) {
        let register = &mut self.p[d as usize];
        *register = *register & !lanes | value & lanes;
        self.p_set[d as usize] |= lanes;
    }

    /// A register's value in a lane.
    #[inline]
    pub fn value(&self, register: Reg, lane: usize) -> u64 {
        match register {
            Reg::W(i) => u64::from(self.w[i as usize][lane]),
            Reg::D(i) => self.d[i as usize][lane],
            Reg::P(i) => u64::from(self.p[i as usize] >> lane & 1),
            Reg::Sink => 0,
        }
    }

    /// Lanes in which a register holds a value.
    #[inline]
    pub fn set(&self, register: Reg) -> u32 {
        match register {
            Reg::W(i) => self.w_set[i as usize],
            Reg::D(i) => self.d_set[i as usize],
            Reg::P(i) => self.p_set[i as usize],
            Reg::Sink => u32::MAX,
        }
    }

    /// Says in which of `lanes` a register just written holds a value.
    #[inline]
    pub fn mark(&mut self, register: Reg, lanes: u32, set: u32) {
        let word = match register {
            Reg::W(i) => &mut self.w_set[i as usize],
            Reg::D(i) => &mut self.d_set[i as usize],
            Reg::P(i) => &mut self.p_set[i as usize],
            Reg::Sink => return,
        };
        *word = *word & !lanes | set & lanes;
    }

    /// Writes one lane of a register of any file.
    #[inline]
    pub fn put(&mut self, register: Reg, lane: usize, value: u64) {
        match register {
            Reg::W(i) => self.w[i as usize][lane] = value as u32,
            Reg::D(i) => self.d[i as usize][lane] = value,
            Reg::P(i) => {
                let bit = 1 << lane;
                let word = &mut self.p[i as usize];
                *word = if value & 1 == 1 { *word | bit } else { *word & !bit };
            }
            Reg::Sink => {}
        }
    }

    /// Runs until nothing of the warp can run, or its turn of `quantum` instructions is over.
    pub fn run(&mut self, context: &Context, env: &mut Env, quantum: u64) -> Result<Stop> {
        let end = self.steps + quantum;
        loop {
            let Some((current, bound)) = self.pick(context, env) else {
                return Ok(if self.live == 0 { Stop::Done } else { Stop::Blocked });
            };
            let next = if context.checked {
                self.advance::<true>(context, env, current, bound, end)?
            } else {
                self.advance::<false>(context, env, current, bound, end)?
            };
            if let Next::Yield = next {
                return Ok(if self.live == 0 { Stop::Done } else { Stop::Turn });
            }
        }
    }

    /// Executes instructions of one fragment until lanes part or meet.
    fn advance<const CHECKED: bool>(
        &mut self,
        context: &Context,
        env: &mut Env,
        current: usize,
        bound: u32,
        end: u64,
    ) -> Result<Next> {
        let kernel = context.kernel;
        let mut pc = self.fragments[current].pc;
        let mask = self.fragments[current].mask;
        let mut forced = self.fragments[current].state == State::Forced;
        self.fragments[current].state = State::Ready;
        // The guards of `.sync` operations select their lanes, so what takes part is known only with the guard.
        loop {
            let inst = &kernel.code[pc as usize];
            if self.steps >= end {
                self.fragments[current].pc = pc;
                return Ok(Next::Yield);
            }
            self.steps += 1;
            let lanes = match inst.guard {
                None => mask,
                Some(guard) => {
                    if CHECKED {
                        self.check_set(Reg::P(guard.register), mask, env, pc, inst);
                    }
                    mask & self.pred(guard)
                }
            };
            env.own.outcome.hits[pc as usize] += 1;
            env.own.outcome.lanes[pc as usize] += u64::from(lanes.count_ones());
            if env.traced == Some(self.index) {
                self.trace(env, inst, lanes);
            }
            if CHECKED && inst.reads.0 != inst.reads.1 {
                for i in inst.reads.0..inst.reads.1 {
                    let register = kernel.reads[i as usize];
                    if self.set(register) & lanes != lanes {
                        self.check_set(register, lanes, env, pc, inst);
                    }
                }
            }
            let next = match &inst.op {
                Op::Apply { f, d, s } => {
                    self.apply(f, *d, s, lanes);
                    Next::Step
                }
                Op::SetP { f, p, q, s, with } => {
                    let mut holds = self.compare(f, s);
                    let mut opposite = !holds;
                    if let Some((op, with)) = with {
                        let with = self.pred(*with);
                        holds = op.apply(holds, with);
                        opposite = op.apply(opposite, with);
                    }
                    if let Reg::P(p) = p {
                        self.put_p(*p, holds, lanes);
                    }
                    if let Reg::P(q) = q {
                        self.put_p(*q, opposite, lanes);
                    }
                    Next::Step
                }
                Op::MoveW { d, a } => {
                    let (value, set) = (self.w[*a as usize], self.w_set[*a as usize]);
                    self.put_w(*d, &value, lanes);
                    if CHECKED {
                        self.mark(Reg::W(*d), lanes, set);
                    }
                    Next::Step
                }
                Op::MoveD { d, a } => {
                    let (value, set) = (self.d[*a as usize], self.d_set[*a as usize]);
                    self.put_d(*d, &value, lanes);
                    if CHECKED {
                        self.mark(Reg::D(*d), lanes, set);
                    }
                    Next::Step
                }
                Op::Branch { target } => {
                    if lanes == mask {
                        pc = *target;
                    } else if lanes == 0 {
                        pc += 1;
                    } else {
                        let stack = self.fragments[current].stack.clone();
                        self.fragments[current].pc = pc + 1;
                        self.fragments[current].mask = mask & !lanes;
                        // Whoever leaves a loop of waiting has its turn soon.
                        self.fragments[current].rests = 0;
                        self.fragments.push(Fragment {
                            pc: *target,
                            mask: lanes,
                            state: State::Ready,
                            stack,
                            rests: 0,
                        });
                        return Ok(Next::Look);
                    }
                    if bound != u32::MAX && pc >= bound || self.fragments.len() > 1 {
                        self.fragments[current].pc = pc;
                        return Ok(Next::Look);
                    }
                    continue;
                }
                _ => {
                    self.fragments[current].pc = pc;
                    self.other::<CHECKED>(context, env, current, inst, pc, mask, lanes, &mut forced)?
                }
            };
            match next {
                Next::Step => {
                    pc += 1;
                    if pc >= bound {
                        self.fragments[current].pc = pc;
                        return Ok(Next::Look);
                    }
                }
                Next::Look => return Ok(Next::Look),
                Next::Yield => {
                    if let Some(fragment) = self.fragments.get_mut(current) {
                        fragment.rests = fragment.rests.saturating_add(1);
                    }
                    return Ok(Next::Yield);
                }
            }
        }
    }

    /// The operations that are not on every kernel's hottest path.
    #[allow(clippy::too_many_arguments)]
    #[inline(never)]
    fn other<const CHECKED: bool>(
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
        let kernel = context.kernel;
        if lanes == 0 {
            return Ok(Next::Step);
        }
        match &inst.op {
            Op::Load { access, d, signed } => {
                let next = self.load::<CHECKED>(context, env, pc, access, d, *signed, lanes);
                self.fragments[current].pc = pc + 1;
                return Ok(next);
            }
            Op::Store { access, s } => self.store::<CHECKED>(context, env, pc, access, s, lanes),
            Op::Atomic { .. } => {
                let next = self.atomic::<CHECKED>(context, env, pc, inst, lanes);
                self.fragments[current].pc = pc + 1;
                return Ok(next);
            }
            Op::Fence { scope } => self.fence(*scope, lanes),
            Op::Hint | Op::Breakpoint => {}
            Op::LaunchDependents => env.own.outcome.released_early |= !self.grid_waited,
            Op::GridWait => {
                self.grid_waited = true;
                env.own.outcome.waited = 1;
            }
            Op::CopyAsync { .. } => self.copy_async::<CHECKED>(context, env, pc, inst, lanes),
            Op::CommitGroup => {
                for lane in lanes_of(lanes) {
                    self.groups[lane] += 1;
                }
            }
            Op::WaitGroup { left } => self.wait_group::<CHECKED>(context, env, *left, lanes),

            Op::Shuffle { .. }
            | Op::Vote { .. }
            | Op::Match { .. }
            | Op::Reduce { .. }
            | Op::Elect { .. }
            | Op::SyncWarp { .. }
            | Op::LoadMatrix { .. }
            | Op::StoreMatrix { .. }
            | Op::MoveMatrix { .. }
            | Op::Mma { .. }
            | Op::MmaD { .. }
            | Op::Barrier(_) => {
                return self.together::<CHECKED>(context, env, current, inst, pc, mask, lanes, forced);
            }

            Op::Convert { conversion, d, a, b } => {
                let limit = if matches!(d, Reg::D(_)) { u64::MAX } else { u64::from(u32::MAX) };
                for lane in lanes_of(lanes) {
                    let value = conversion.run(self.value(*a, lane), self.value(*b, lane));
                    self.put(*d, lane, value & limit);
                }
                self.mark(*d, lanes, lanes);
            }
            Op::Carry { f, d, s, sets } => {
                let carry_in = self.p[kernel.carry as usize];
                let mut carry = 0;
                for lane in 0..32 {
                    let held = carry_in >> lane & 1 == 1;
                    let out = match f {
                        Carry::W(f) => {
                            let [a, b, c] = s.map(|i| self.w[i as usize][lane]);
                            let (value, out) = f(a, b, c, held);
                            if lanes >> lane & 1 == 1 {
                                self.w[*d as usize][lane] = value;
                            }
                            out
                        }
                        Carry::D(f) => {
                            let [a, b, c] = s.map(|i| self.d[i as usize][lane]);
                            let (value, out) = f(a, b, c, held);
                            if lanes >> lane & 1 == 1 {
                                self.d[*d as usize][lane] = value;
                            }
                            out
                        }
                    };
                    carry |= u32::from(out) << lane;
                }
                let register = if matches!(f, Carry::W(_)) { Reg::W(*d) } else { Reg::D(*d) };
                self.mark(register, lanes, lanes);
                if *sets {
                    self.put_p(kernel.carry, carry, lanes);
                }
            }
            Op::MoveP { d, a } => {
                let (value, set) = (self.pred(*a), self.p_set[a.register as usize]);
                self.put_p(*d, value, lanes);
                self.mark(Reg::P(*d), lanes, set);
            }
            Op::LogicP { op, d, a, b } => {
                let value = op.apply(self.pred(*a), self.pred(*b));
                self.put_p(*d, value, lanes);
            }
            Op::SelectW { d, a, b, p } => {
                let p = self.pred(*p);
                let (x, y) = (self.w[*a as usize], self.w[*b as usize]);
                let value = std::array::from_fn(|l| {
                    let chosen = 0u32.wrapping_sub(p >> l & 1);
                    x[l] & chosen | y[l] & !chosen
                });
                let set = self.w_set[*a as usize] & p | self.w_set[*b as usize] & !p;
                self.put_w(*d, &value, lanes);
                self.mark(Reg::W(*d), lanes, set);
            }
            Op::SelectD { d, a, b, p } => {
                let p = self.pred(*p);
                let (x, y) = (self.d[*a as usize], self.d[*b as usize]);
                let value = std::array::from_fn(|l| if p >> l & 1 == 1 { x[l] } else { y[l] });
                let set = self.d_set[*a as usize] & p | self.d_set[*b as usize] & !p;
                self.put_d(*d, &value, lanes);
                self.mark(Reg::D(*d), lanes, set);
            }
            Op::Pack { d, parts, bits } => {
                let mut set = u32::MAX;
                let limit = if *bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
                let mut values = [0u64; 32];
                for (i, part) in parts.iter().enumerate() {
                    set &= self.set(*part);
                    for (lane, value) in values.iter_mut().enumerate() {
                        *value |= (self.value(*part, lane) & limit) << (i as u32 * bits);
                    }
                }
                for lane in lanes_of(lanes) {
                    self.put(*d, lane, values[lane]);
                }
                self.mark(*d, lanes, set);
            }
            Op::Unpack { parts, a, bits } => {
                let set = self.set(*a);
                let limit = if *bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
                let whole: Lanes64 = std::array::from_fn(|lane| self.value(*a, lane));
                for (i, part) in parts.iter().enumerate() {
                    for lane in lanes_of(lanes) {
                        self.put(*part, lane, whole[lane] >> (i as u32 * bits) & limit);
                    }
                    self.mark(*part, lanes, set);
                }
            }
            Op::SetP2 { low, high, p, q, s, with } => {
                let mut holds = [self.compare(low, s), self.compare(high, s)];
                if let Some((op, with)) = with {
                    let with = self.pred(*with);
                    holds = holds.map(|h| op.apply(h, with));
                }
                for (register, holds) in [p, q].into_iter().zip(holds) {
                    if let Reg::P(i) = register {
                        self.put_p(*i, holds, lanes);
                    }
                }
            }
            Op::Set { f, d, one, s, with } => {
                let mut holds = self.compare(f, s);
                if let Some((op, with)) = with {
                    holds = op.apply(holds, self.pred(*with));
                }
                let value = std::array::from_fn(|l| if holds >> l & 1 == 1 { *one } else { 0 });
                self.put_w(*d, &value, lanes);
            }
            Op::Set2 { low, high, d, one, s } => {
                let (low, high) = (self.compare(low, s), self.compare(high, s));
                let half = |holds: u32, lane: usize| if holds >> lane & 1 == 1 { *one } else { 0 };
                let value = std::array::from_fn(|l| half(low, l) | half(high, l) << 16);
                self.put_w(*d, &value, lanes);
            }
            Op::Clock { d } => {
                for lane in lanes_of(lanes) {
                    self.put(*d, lane, self.steps);
                }
                self.mark(*d, lanes, lanes);
            }
            Op::Activemask { d } => {
                self.put_w(*d, &[lanes; 32], lanes);
            }
            Op::ToGeneric { d, a, space } | Op::FromGeneric { d, a, space } => {
                let base = super::access::window(*space);
                let to = matches!(inst.op, Op::ToGeneric { .. });
                for lane in lanes_of(lanes) {
                    let value = self.value(*a, lane);
                    let value = if to { value.wrapping_add(base) } else { value.wrapping_sub(base) };
                    self.put(*d, lane, value);
                }
                self.mark(*d, lanes, lanes);
            }
            Op::IsSpace { d, a, space } => {
                let mut holds = 0;
                for lane in lanes_of(lanes) {
                    let (found, _) =
                        super::access::resolve(context.global_base, Space::Generic, self.value(*a, lane));
                    holds |= u32::from(found == *space) << lane;
                }
                self.put_p(*d, holds, lanes);
            }
            Op::BranchTable { index, targets } => {
                let stack = self.fragments[current].stack.clone();
                self.fragments[current].mask = mask & !lanes;
                self.fragments[current].pc = pc + 1;
                for lane in lanes_of(lanes) {
                    let at = self.w[*index as usize][lane] as usize;
                    let Some(target) = targets.get(at) else {
                        return Err(Error::Launch(format!(
                            "line {}: brx.idx takes index {at} of {} targets",
                            inst.line,
                            targets.len()
                        )));
                    };
                    let stack = stack.clone();
                    self.fragments.push(Fragment {
                        pc: *target,
                        mask: 1 << lane,
                        state: State::Ready,
                        stack,
                        rests: 0,
                    });
                }
                return Ok(Next::Look);
            }
            Op::Call(call) => return self.call(context, env, current, inst, pc, mask, lanes, call),
            Op::Return => {
                let Some(frame) = self.fragments[current].stack.last().cloned() else {
                    return Ok(self.exit(env, current, mask, lanes, pc));
                };
                self.copy_results(context, &frame, lanes);
                let mut stack = self.fragments[current].stack.clone();
                stack.pop();
                self.fragments[current].mask = mask & !lanes;
                self.fragments[current].pc = pc + 1;
                self.fragments.push(Fragment {
                    pc: frame.call + 1,
                    mask: lanes,
                    state: State::Ready,
                    stack,
                    rests: 0,
                });
                return Ok(Next::Look);
            }
            Op::Exit => return Ok(self.exit(env, current, mask, lanes, pc)),
            Op::Trap => {
                let (cta, warp) = (env.cta, self.index);
                env.report(Kind::Assertion, pc, 0, || {
                    format!("{} executes trap", thread_name(cta, warp, lanes.trailing_zeros()))
                });
                env.trapped = true;
                return Ok(Next::Yield);
            }
            Op::Sleep => {
                self.fragments[current].pc = pc + 1;
                return Ok(Next::Yield);
            }
            Op::Apply { .. } | Op::SetP { .. } | Op::MoveW { .. } | Op::MoveD { .. } | Op::Branch { .. } => {}
        }
        Ok(Next::Step)
    }

    fn exit(&mut self, env: &mut Env, current: usize, mask: u32, lanes: u32, pc: u32) -> Next {
        self.live &= !lanes;
        env.own.live -= lanes.count_ones();
        env.common.progress += 1;
        self.fragments[current].mask = mask & !lanes;
        self.fragments[current].pc = pc + 1;
        env.threads_left();
        Next::Look
    }

    /// Reports a computation with lanes of a register that hold nothing, once: then they count as holding something.
    #[cold]
    #[inline(never)]
    fn check_set(&mut self, register: Reg, lanes: u32, env: &mut Env, pc: u32, inst: &Inst) {
        let missing = lanes & !self.set(register);
        if missing == 0 {
            return;
        }
        let (warp, lane) = (self.index, missing.trailing_zeros());
        let cta = env.cta;
        env.report(Kind::Uninitialised, pc, 0, || {
            format!(
                "{} computes with a value that nobody wrote (PTX line {}), {} lanes",
                thread_name(cta, warp, lane),
                inst.line,
                missing.count_ones()
            )
        });
        self.mark(register, missing, missing);
    }

    #[cold]
    fn trace(&self, env: &mut Env, inst: &Inst, lanes: u32) {
        if env.own.outcome.trace.len() < env.trace_limit {
            env.own.outcome.trace.push(TraceLine { ptx_line: inst.line, source: inst.source, lanes });
        }
    }
}

/// The lanes of a mask, in order.
pub(super) fn lanes_of(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (mask != 0).then(|| {
            let lane = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            lane
        })
    })
}

/// How reports name a thread.
pub(super) fn thread_name(cta: [u32; 3], warp: u32, lane: u32) -> String {
    format!("CTA ({}, {}, {}) warp {warp} lane {lane}", cta[0], cta[1], cta[2])
}

fn preset(context: &Context, place: [u32; 3], warp: u32, lane: usize, value: Value) -> u64 {
    let thread = warp * 32 + lane as u32;
    let [bx, by, _] = context.block;
    let lanemask = 1u32 << lane;
    match value {
        Value::Bits(bits) => bits,
        Value::Tid(0) => u64::from(thread % bx),
        Value::Tid(1) => u64::from(thread / bx % by),
        Value::Tid(_) => u64::from(thread / (bx * by)),
        Value::Ntid(i) => u64::from(context.block[i]),
        Value::Ctaid(i) => u64::from(place[i]),
        Value::Nctaid(i) => u64::from(context.grid[i]),
        Value::LaneId => lane as u64,
        Value::WarpId => u64::from(warp),
        Value::Nwarpid => u64::from(context.warps()),
        Value::LanemaskEq => u64::from(lanemask),
        Value::LanemaskLt => u64::from(lanemask - 1),
        Value::LanemaskLe => u64::from((lanemask - 1) | lanemask),
        Value::LanemaskGt => u64::from(!((lanemask - 1) | lanemask)),
        Value::LanemaskGe => u64::from(!(lanemask - 1)),
        Value::GridId => context.grid_id,
        Value::Workspace(upper) => {
            if upper {
                context.workspace >> 32
            } else {
                context.workspace & 0xffff_ffff
            }
        }
        Value::SmId => {
            let linear = u64::from(place[0])
                + u64::from(context.grid[0])
                    * (u64::from(place[1]) + u64::from(context.grid[1]) * u64::from(place[2]));
            linear % u64::from(context.sm_count)
        }
        Value::NsmId => u64::from(context.sm_count),
        Value::Shared(at) => context.static_base.wrapping_add(at),
        Value::DynamicShared => context.dynamic_base,
        Value::DynamicSharedBytes => context.shared_end - context.dynamic_base,
        Value::TotalSharedBytes => context.shared_end,
        Value::Global(index) => context.globals[index],
        Value::Local(at) | Value::Param(at) => at,
        Value::Function(index) => FUNCTION_BASE + index as u64 * 16,
    }
}

impl Kernel {
    /// The text that reports use for an instruction.
    pub fn site(&self, pc: u32) -> String {
        match self.code.get(pc as usize) {
            Some(inst) if inst.source.1 != 0 => format!("line {} (PTX line {})", inst.source.1, inst.line),
            Some(inst) => format!("PTX line {}", inst.line),
            None => "an unknown line".into(),
        }
    }
}
