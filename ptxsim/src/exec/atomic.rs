//! Atomics, and what strong accesses and fences carry from one warp to another.
//!
//! A strong write or an atomic leaves at its address what its warp published: the past at the last fence, or at the operation
//! itself if it releases. A strong read takes that over at once if it acquires, else at the next fence.

use super::{
    Context,
    access::Touch,
    cta::Env,
    warp::{Next, Warp, lanes_of},
};
use std::sync::Arc;

use crate::{
    check::clock::Vector,
    counters::Traffic,
    kernel::{Atomic, Inst, Op, Reg, Scope},
    numerics::{
        float::{self, Extremum},
        half::{self, Flags, Half},
    },
    parse::{Space, Type},
};

/// The past that a write publishes.
pub(super) struct Past {
    all: Option<Arc<Vector>>,
    cta: Option<Arc<Vector>>,
}

/// Strong reads without a change before a warp gives way.
const POLLS: u32 = 8;

impl Warp {
    /// What a strong write makes visible: to all, and to its CTA.
    pub(super) fn publish(&mut self, releases: bool, scope: Scope) -> Past {
        if releases {
            let past = Some(Arc::new(self.clock.release()));
            let all = if scope > Scope::Cta { past.clone() } else { self.clock.published.clone() };
            return Past { all, cta: past };
        }
        Past { all: self.clock.published.clone(), cta: self.clock.published_cta.clone() }
    }

    pub(super) fn strong_write(&mut self, env: &mut Env, space: Space, at: usize, past: &Past, atomic: bool) {
        // Shared memory is the CTA's: what holds for it alone holds there.
        let (map, past) = if space == Space::Shared {
            (&mut env.own.published_shared, &past.cta)
        } else {
            (&mut env.common.published, &past.all)
        };
        match (map.get_mut(&at), past) {
            // An atomic continues what others began at this address.
            (Some(there), Some(past)) if atomic => {
                if !Arc::ptr_eq(there, past) {
                    Arc::make_mut(there).join(past);
                }
            }
            (Some(_), None) if atomic => {}
            (_, Some(past)) => {
                map.insert(at, past.clone());
            }
            (Some(_), None) => {
                map.remove(&at);
            }
            (None, None) => {}
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn strong_read(
        &mut self,
        env: &mut Env,
        lane: usize,
        space: Space,
        at: usize,
        acquires: bool,
        scope: Scope,
    ) {
        let shared = space == Space::Shared;
        let map = if shared { &env.own.published_shared } else { &env.common.published };
        let Some(there) = map.get(&at) else { return };
        if acquires && (shared || scope > Scope::Cta) {
            self.clock.acquire(there, 1 << lane);
            return;
        }
        let seen = if shared { &mut self.clock.seen_cta } else { &mut self.clock.seen };
        match seen {
            Some(seen) => seen.join(there),
            seen @ None => *seen = Some((**there).clone()),
        }
    }

    /// A fence takes over what strong reads saw and publishes what is done so far; one of CTA scope does both for
    /// the CTA alone.
    pub(super) fn fence(&mut self, scope: Scope, lanes: u32) {
        if let Some(seen) = self.clock.seen_cta.take() {
            self.clock.acquire(&seen, lanes);
        }
        if scope > Scope::Cta
            && let Some(seen) = self.clock.seen.take()
        {
            self.clock.acquire(&seen, lanes);
        }
        let past = Some(Arc::new(self.clock.release()));
        if scope > Scope::Cta {
            self.clock.published = past.clone();
        }
        self.clock.published_cta = past;
    }

    /// A strong read that saw nothing new is a poll; a warp that only polls gives way to the others.
    pub(super) fn polled(&mut self, env: &Env, changed: bool, place: (u32, u64)) -> Next {
        // Looking at ever new places is not polling.
        let known = self.polled.contains(&place);
        if !known {
            self.polled.rotate_right(1);
            self.polled[0] = place;
        }
        if changed || !known || self.progress != env.common.progress {
            self.polls = 0;
            self.progress = env.common.progress;
        }
        self.polls += 1;
        if self.polls.is_multiple_of(POLLS) { Next::Yield } else { Next::Step }
    }

    pub(super) fn atomic<const CHECKED: bool>(
        &mut self,
        context: &Context,
        env: &mut Env,
        pc: u32,
        inst: &Inst,
        lanes: u32,
    ) -> Next {
        let Op::Atomic { access, op, ty, d, b, c } = &inst.op else { return Next::Step };
        let n = access.bytes as usize;
        let whole = n * access.count as usize;
        let mut traffic = Traffic::new(whole as u32);
        let past = self.publish(access.order.releases(), access.scope);
        let mut changed = false;
        let mut addresses = [0; 32];
        for (lane, address) in addresses.iter_mut().enumerate() {
            *address = self.address(&access.address, lane);
        }
        for lane in lanes_of(lanes) {
            let address = addresses[lane];
            let place = self.place(context, env, pc, lane, access.space, address, whole as u64, "updates");
            let Some((space, at)) = place else { continue };
            traffic.add(lane, space, at as u64);
            if CHECKED {
                let touch = Touch { pc, lane, write: true, strong: true };
                if let Some(conflict) = self.touch(context, env, space, at, whole, touch) {
                    self.race(context, env, space, at, touch, conflict);
                }
                if *op == Atomic::CompareExchange {
                    let shadow = if space == Space::Shared {
                        &mut env.own.shadow
                    } else {
                        &mut env.common.view.shadow
                    };
                    shadow.absolve(self.clock.agent, at);
                }
                let written = match space {
                    Space::Shared => env.own.shared.written.all(at, whole),
                    _ => env.common.view.valid(at, whole),
                };
                if !written && *op != Atomic::Exchange {
                    let (cta, warp) = (env.cta, self.index);
                    env.report(crate::Kind::Uninitialised, pc, 0, || {
                        format!(
                            "{} updates {whole} bytes at {address:#x} that nobody wrote",
                            super::warp::thread_name(cta, warp, lane as u32)
                        )
                    });
                }
            }
            for i in 0..access.count as usize {
                let at = at + i * n;
                let mut raw = [0u8; 8];
                match space {
                    Space::Shared => raw[..n].copy_from_slice(&env.own.shared.bytes[at..at + n]),
                    _ => raw[..n].copy_from_slice(env.common.view.bytes(at, n)),
                }
                let old = u64::from_le_bytes(raw);
                let operand = self.value(b[i], lane);
                let compare = c.map(|c| self.value(c, lane)).unwrap_or(0);
                let mask = if n == 8 { u64::MAX } else { (1 << (8 * n)) - 1 };
                let flush = space == Space::Global && *ty == Type::F32 && *op == Atomic::Add;
                let new = update(*op, *ty, old, operand & mask, compare & mask, flush) & mask;
                let data = new.to_le_bytes();
                match space {
                    Space::Shared => env.own.shared.write(at, &data[..n], true),
                    _ => env.common.view.write(at, &data[..n], true),
                }
                if new != old {
                    changed = true;
                    env.common.progress += 1;
                }
                if d[i] != Reg::Sink {
                    self.put(d[i], lane, old);
                    self.mark(d[i], 1 << lane, 1 << lane);
                }
            }
            // Atomics read before they write.
            if d.iter().any(|d| *d != Reg::Sink) {
                self.strong_read(env, lane, space, at, access.order.acquires(), access.scope);
            }
            self.strong_write(env, space, at, &past, true);
        }
        if let Some(sectors) = &context.sectors {
            traffic.note(sectors, true);
        }
        env.own.outcome.counters.atomic(&traffic);
        let place = (pc, addresses[lanes.trailing_zeros() as usize % 32]);
        if changed { Next::Step } else { self.polled(env, false, place) }
    }
}

/// The new value. `flush`: atom.add.f32 on global memory takes subnormals for zeros; on shared memory it does not.
fn update(op: Atomic, ty: Type, old: u64, operand: u64, compare: u64, flush: bool) -> u64 {
    use Type::*;
    let (o, v) = (old as u32, operand as u32);
    match (op, ty) {
        (Atomic::Exchange, _) => operand,
        // atom.cas: b is compared, c stored.
        (Atomic::CompareExchange, _) => {
            if old == operand {
                compare
            } else {
                old
            }
        }
        (Atomic::And, _) => old & operand,
        (Atomic::Or, _) => old | operand,
        (Atomic::Xor, _) => old ^ operand,
        (Atomic::Increment, _) => u64::from(if o >= v { 0 } else { o + 1 }),
        (Atomic::Decrement, _) => u64::from(if o == 0 || o > v { v } else { o - 1 }),
        (Atomic::Add, F32) => {
            let of = |bits| if flush { float::flush_f32(bits) } else { bits };
            let sum = float::bits_f32(f32::from_bits(of(o)) + f32::from_bits(of(v)));
            u64::from(of(sum))
        }
        (Atomic::Add, F64) => (f64::from_bits(old) + f64::from_bits(operand)).to_bits(),
        (_, F16 | Bf16) => {
            let f = pair(op, ty);
            u64::from(f(o, v) & 0xffff)
        }
        (_, F16x2 | Bf16x2) => u64::from(pair(op, ty)(o, v)),
        (Atomic::Add, U32 | S32) => u64::from(o.wrapping_add(v)),
        (Atomic::Add, _) => old.wrapping_add(operand),
        (Atomic::Min, U32) => u64::from(o.min(v)),
        (Atomic::Max, U32) => u64::from(o.max(v)),
        (Atomic::Min, S32) => u64::from((o as i32).min(v as i32) as u32),
        (Atomic::Max, S32) => u64::from((o as i32).max(v as i32) as u32),
        (Atomic::Min, S64) => (old as i64).min(operand as i64) as u64,
        (Atomic::Max, S64) => (old as i64).max(operand as i64) as u64,
        (Atomic::Min, _) => old.min(operand),
        (Atomic::Max, _) => old.max(operand),
    }
}

/// The operation on pairs of 16-bit floats.
fn pair(op: Atomic, ty: Type) -> fn(u32, u32) -> u32 {
    const ADD: Flags = Flags { ftz: false, sat: false, relu: false };
    macro_rules! of {
        ($half:expr) => {
            match op {
                Atomic::Min => {
                    |a, b| half::pair(a, b, |a, b| $half.extremum(a, b, Extremum::Min, false, false, false))
                }
                Atomic::Max => {
                    |a, b| half::pair(a, b, |a, b| $half.extremum(a, b, Extremum::Max, false, false, false))
                }
                _ => |a, b| half::pair(a, b, |a, b| $half.add(a, b, ADD)),
            }
        };
    }
    if matches!(ty, Type::Bf16 | Type::Bf16x2) { of!(Half::Bf16) } else { of!(Half::F16) }
}
