//! Loads and stores: addresses, bounds, alignment, what was written, who touched it last, sectors and banks.

use super::{
    Context,
    cta::Env,
    warp::{Next, Warp, lanes_of, thread_name},
};
use crate::{
    check::{
        Kind,
        clock::Epoch,
        shadow::{Conflict, Suspect},
    },
    counters::Traffic,
    decode::CALL_BASE,
    kernel::{Access, Address, Order, Reg},
    memory::{LOCAL_WINDOW, PAGE, PARAM_WINDOW, SHARED_WINDOW, WINDOW},
    parse::Space,
};

/// Where the generic addresses of a space begin.
pub(super) fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Global | Space::Const | Space::Generic => 0,
    }
}

/// Space and offset of an address; for global memory, which begins at `base`, the offset in the arena.
#[inline]
pub(super) fn resolve(base: u64, space: Space, address: u64) -> (Space, u64) {
    match space {
        Space::Global | Space::Const => (Space::Global, address.wrapping_sub(base)),
        Space::Shared => (Space::Shared, address),
        Space::Local => (Space::Local, address),
        Space::Param => (Space::Param, address),
        Space::Generic => {
            for space in [Space::Shared, Space::Local, Space::Param] {
                let offset = address.wrapping_sub(window(space));
                if offset < WINDOW {
                    return (space, offset);
                }
            }
            (Space::Global, address.wrapping_sub(base))
        }
    }
}

/// How an access enters the happens-before check.
#[derive(Clone, Copy)]
pub(super) struct Touch {
    pub pc: u32,
    pub lane: usize,
    pub write: bool,
    pub strong: bool,
}

impl Warp {
    /// The address in a lane.
    #[inline]
    pub(super) fn address(&self, address: &Address, lane: usize) -> u64 {
        self.value(address.base, lane).wrapping_add_signed(address.offset)
    }

    /// Where `n` bytes at an address lie, or None after a report if they are not all there.
    #[inline]
    #[allow(clippy::too_many_arguments)]
    pub(super) fn place(
        &self,
        context: &Context,
        env: &mut Env,
        pc: u32,
        lane: usize,
        space: Space,
        address: u64,
        n: u64,
        what: &str,
    ) -> Option<(Space, usize)> {
        let (found, at) = resolve(context.global_base, space, address);
        let within = |begin: u64, end: u64| at >= begin && at <= end && n <= end - at;
        let inside = match found {
            Space::Global => env.common.view.inside(at, n),
            Space::Shared => within(context.static_base, context.shared_end),
            Space::Local => within(0, context.kernel.local_bytes),
            _ => {
                within(0, context.parameters.len() as u64)
                    || within(CALL_BASE, CALL_BASE + u64::from(context.kernel.call_bytes))
            }
        };
        if !inside {
            self.out_of_bounds(context, env, pc, lane, found, address, n, what);
            return None;
        }
        if !at.is_multiple_of(n) {
            let (cta, warp) = (env.cta, self.index);
            env.report(Kind::Misaligned, pc, 0, || {
                format!(
                    "{} {what} {n} bytes at {address:#x}, which is no multiple of {n}",
                    thread_name(cta, warp, lane as u32)
                )
            });
            return None;
        }
        Some((found, at as usize))
    }

    #[cold]
    #[allow(clippy::too_many_arguments)]
    fn out_of_bounds(
        &self,
        context: &Context,
        env: &mut Env,
        pc: u32,
        lane: usize,
        space: Space,
        address: u64,
        n: u64,
        what: &str,
    ) {
        let (cta, warp) = (env.cta, self.index);
        let near = match space {
            Space::Global => {
                let at = address.wrapping_sub(context.global_base);
                let before =
                    (0..=4096u64).find_map(|back| env.common.view.arena.block(at.checked_sub(back)?));
                match before {
                    Some((begin, end)) if at >= end => format!(
                        "{} bytes past the end of the allocation of {} bytes at {:#x}",
                        at - end,
                        end - begin,
                        begin + context.global_base
                    ),
                    Some((begin, end)) => {
                        format!(
                            "over the end of the allocation of {} bytes at {:#x}",
                            end - begin,
                            begin + context.global_base
                        )
                    }
                    None => "in no allocation".into(),
                }
            }
            Space::Shared => format!(
                "outside the CTA's shared memory, {:#x} to {:#x}",
                context.static_base, context.shared_end
            ),
            Space::Local => {
                format!("outside the thread's {} bytes of local memory", context.kernel.local_bytes)
            }
            _ => "outside the parameters".into(),
        };
        env.report(Kind::OutOfBounds, pc, 0, || {
            format!("{} {what} {n} bytes at {address:#x}, {near}", thread_name(cta, warp, lane as u32))
        });
    }

    /// Enters an access to shared or global memory into the checks.
    #[inline]
    pub(super) fn touch(
        &self,
        context: &Context,
        env: &mut Env,
        space: Space,
        at: usize,
        n: usize,
        touch: Touch,
    ) -> Option<Conflict> {
        let Touch { pc, lane, write, strong } = touch;
        match space {
            Space::Shared => {
                if !env.own.flights.is_empty() {
                    self.check_flights(context, env, at, n, touch);
                }
                env.own.shadow.access(&self.clock, lane as u32, pc, at, n, write, strong)
            }
            Space::Global => {
                env.common.view.touch(at, n, write, pc);
                let overlap = if self.grid_waited { context.overlap_waited } else { context.overlap };
                if let Some(overlap) = overlap {
                    self.check_overlap(context, env, overlap, at, n, touch);
                }
                env.common.view.shadow.access(&self.clock, lane as u32, pc, at, n, write, strong)
            }
            _ => None,
        }
    }

    /// A launch that may run beside its predecessors must wait before it touches what they touch.
    #[cold]
    fn check_overlap(
        &self,
        context: &Context,
        env: &mut Env,
        overlap: &super::Footprint,
        at: usize,
        n: usize,
        touch: Touch,
    ) {
        let Some(page) = overlap.get(&((at / PAGE) as u32)) else { return };
        let mask = crate::memory::run(at % 64, n);
        let word = at % PAGE / 64;
        let theirs = if touch.write { page.written[word] | page.read[word] } else { page.written[word] };
        if theirs & mask == 0 {
            return;
        }
        let (cta, warp) = (env.cta, self.index);
        let waited = self.grid_waited;
        let site = context.kernel.site(touch.pc);
        env.report(Kind::Race, touch.pc, u32::MAX, || {
            format!(
                "{} {} {n} bytes at {:#x} at {site} {}, which an unfinished launch before this one {}",
                thread_name(cta, warp, touch.lane as u32),
                if touch.write { "writes" } else { "reads" },
                at as u64 + context.global_base,
                if waited {
                    "after a griddepcontrol.wait that does not cover it (the launch between did not wait)"
                } else {
                    "before its griddepcontrol.wait"
                },
                if page.written[word] & mask != 0 { "writes" } else { "reads" },
            )
        });
    }

    #[cold]
    pub(super) fn race(
        &self,
        context: &Context,
        env: &mut Env,
        space: Space,
        at: usize,
        touch: Touch,
        conflict: Conflict,
    ) {
        let (cta, warp) = (env.cta, self.index);
        let kernel = context.kernel;
        let warps = context.warps();
        let who = |epoch: Epoch| {
            let lane = match epoch.lane() {
                lane if lane < 32 => format!("lane {lane}"),
                _ => "several lanes".into(),
            };
            let (other, w) = (u64::from(epoch.agent() / warps), epoch.agent() % warps);
            let place = context.place(other);
            if place == cta {
                format!("warp {w} {lane}")
            } else {
                format!("CTA ({}, {}, {}) warp {w} {lane}", place[0], place[1], place[2])
            }
        };
        let verb = |write| if write { "writes" } else { "reads" };
        let message = || {
            let (name, address) = match space {
                Space::Shared => ("shared", at as u64),
                _ => ("global", at as u64 + context.global_base),
            };
            format!(
                "{} {} {name} {address:#x} at {}, and {} {} it at {} with nothing to order the two",
                thread_name(cta, warp, touch.lane as u32),
                verb(touch.write),
                kernel.site(touch.pc),
                who(conflict.epoch),
                verb(conflict.was_write),
                kernel.site(conflict.pc),
            )
        };
        // A plain read beside an atomic may be the guess of a compare-and-swap loop.
        let reader = match (touch.write, conflict.was_write) {
            (false, true) if conflict.epoch.strong() => Some(self.clock.agent),
            (true, false) if touch.strong => Some(conflict.epoch.agent()),
            _ => None,
        };
        match reader {
            Some(reader) => {
                let suspect = || Suspect { pc: touch.pc, other: conflict.pc, message: message() };
                let shadow =
                    if space == Space::Shared { &mut env.own.shadow } else { &mut env.common.view.shadow };
                shadow.suspect(reader, at, suspect);
            }
            None => env.report(Kind::Race, touch.pc, conflict.pc, message),
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn load<const CHECKED: bool>(
        &mut self,
        context: &Context,
        env: &mut Env,
        pc: u32,
        access: &Access,
        d: &[Reg],
        signed: bool,
        lanes: u32,
    ) -> Next {
        let n = access.bytes as usize * access.count as usize;
        let element = access.bytes as usize;
        let strong = access.order != Order::Weak;
        let mut addresses = [0; 32];
        for (lane, address) in addresses.iter_mut().enumerate() {
            *address = self.address(&access.address, lane);
        }
        let mut traffic = Traffic::new(n as u32);
        // Lanes in which each element holds a value.
        let mut valid = [0u32; 8];
        let mut changed = false;
        for lane in lanes_of(lanes) {
            let mut data = [0xffu8; 32];
            let place = self.place(context, env, pc, lane, access.space, addresses[lane], n as u64, "reads");
            if let Some((space, at)) = place {
                // Constants come through a cache of their own.
                if access.space != Space::Const {
                    traffic.add(lane, space, at as u64);
                }
                // A value of which some byte was written counts as written: copies of structures move their padding too.
                let mut elements = u32::MAX;
                let each = |any: &dyn Fn(usize) -> bool| {
                    (0..d.len()).fold(0, |all, i| all | u32::from(any(i * element)) << i)
                };
                match space {
                    Space::Global => {
                        data[..n].copy_from_slice(env.common.view.bytes(at, n));
                        if CHECKED {
                            elements = each(&|i| env.common.view.any_valid(at + i, element));
                        }
                    }
                    Space::Shared => {
                        data[..n].copy_from_slice(&env.own.shared.bytes[at..at + n]);
                        if CHECKED {
                            elements = each(&|i| env.own.shared.written.any(at + i, element));
                        }
                    }
                    Space::Local => {
                        let at = lane * context.kernel.local_bytes as usize + at;
                        data[..n].copy_from_slice(&self.local.bytes[at..at + n]);
                        elements = each(&|i| self.local.written.any(at + i, element));
                    }
                    _ if at < context.parameters.len() => {
                        data[..n].copy_from_slice(&context.parameters[at..at + n]);
                    }
                    _ => {
                        let at = lane * context.kernel.call_bytes as usize + at - CALL_BASE as usize;
                        data[..n].copy_from_slice(&self.call.bytes[at..at + n]);
                        elements = each(&|i| self.call.written.any(at + i, element));
                    }
                }
                if CHECKED {
                    let touch = Touch { pc, lane, write: false, strong };
                    if let Some(conflict) = self.touch(context, env, space, at, n, touch) {
                        self.race(context, env, space, at, touch, conflict);
                    }
                }
                if strong {
                    self.strong_read(env, lane, space, at, access.order.acquires(), access.scope);
                }
                for (i, valid) in valid.iter_mut().enumerate().take(d.len()) {
                    *valid |= (elements >> i & 1) << lane;
                }
            } else {
                // What is not there was reported; it does not count as unwritten too.
                valid.iter_mut().for_each(|valid| *valid |= 1 << lane);
            }
            for (register, data) in d.iter().zip(data.chunks_exact(element)) {
                let value = match element {
                    4 => u64::from(u32::from_le_bytes([data[0], data[1], data[2], data[3]])),
                    8 => u64::from_le_bytes(data.try_into().unwrap_or_default()),
                    2 => u64::from(u16::from_le_bytes([data[0], data[1]])),
                    _ => u64::from(data[0]),
                };
                let value = if signed { extend(value, element, *register) } else { value };
                if strong && self.value(*register, lane) != value {
                    changed = true;
                }
                self.put(*register, lane, value);
            }
        }
        for (register, valid) in d.iter().zip(valid) {
            self.mark(*register, lanes, valid);
        }
        if let Some(sectors) = &context.sectors {
            traffic.note(sectors, false);
        }
        env.own.outcome.counters.load(&traffic);
        let place = (pc, addresses[lanes.trailing_zeros() as usize % 32]);
        if strong { self.polled(env, changed, place) } else { Next::Step }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn store<const CHECKED: bool>(
        &mut self,
        context: &Context,
        env: &mut Env,
        pc: u32,
        access: &Access,
        s: &[Reg],
        lanes: u32,
    ) {
        let n = access.bytes as usize * access.count as usize;
        let element = access.bytes as usize;
        let strong = access.order != Order::Weak;
        let mut traffic = Traffic::new(n as u32);
        let (mut all, mut any) = (u32::MAX, 0);
        for register in s {
            all &= self.set(*register);
            any |= self.set(*register);
        }
        let past = if strong { Some(self.publish(access.order.releases(), access.scope)) } else { None };
        for lane in lanes_of(lanes) {
            let address = self.address(&access.address, lane);
            let place = self.place(context, env, pc, lane, access.space, address, n as u64, "writes");
            let Some((space, at)) = place else { continue };
            traffic.add(lane, space, at as u64);
            let mut data = [0u8; 32];
            for (register, data) in s.iter().zip(data.chunks_exact_mut(element)) {
                let value = self.value(*register, lane).to_le_bytes();
                data.copy_from_slice(&value[..element]);
            }
            let written = all >> lane & 1 == 1;
            let unwritten = any >> lane & 1 == 0;
            if CHECKED {
                let touch = Touch { pc, lane, write: true, strong };
                if let Some(conflict) = self.touch(context, env, space, at, n, touch)
                    && !self.same_store(access, s, lanes, lane, address, conflict.epoch, conflict.was_write)
                {
                    self.race(context, env, space, at, touch, conflict);
                }
            }
            if CHECKED && unwritten && space == Space::Global {
                let (cta, warp) = (env.cta, self.index);
                env.report(Kind::Uninitialised, pc, 0, || {
                    format!(
                        "{} stores a value that nobody wrote to {address:#x}",
                        thread_name(cta, warp, lane as u32)
                    )
                });
            }
            match space {
                Space::Global => {
                    if env.communicates && env.common.view.bytes(at, n) != &data[..n] {
                        env.common.progress += 1;
                    }
                    env.common.view.write(at, &data[..n], written);
                }
                Space::Shared => {
                    if strong && env.own.shared.bytes[at..at + n] != data[..n] {
                        env.common.progress += 1;
                    }
                    env.own.shared.write(at, &data[..n], written);
                }
                Space::Local => {
                    let at = lane * context.kernel.local_bytes as usize + at;
                    self.local.write(at, &data[..n], written);
                }
                _ if at as u64 >= CALL_BASE => {
                    let at = lane * context.kernel.call_bytes as usize + at - CALL_BASE as usize;
                    self.call.write(at, &data[..n], written);
                }
                // An entry's parameters are constant; ptxas refuses the store.
                _ => {}
            }
            // Elements without a value leave none behind.
            if CHECKED && !written && !unwritten {
                for (i, register) in s.iter().enumerate() {
                    if self.set(*register) >> lane & 1 == 1 {
                        let piece = &data[i * element..][..element];
                        match space {
                            Space::Global => env.common.view.write(at + i * element, piece, true),
                            Space::Shared => env.own.shared.write(at + i * element, piece, true),
                            _ => {}
                        }
                    }
                }
            }
            if let Some(past) = &past {
                self.strong_write(env, space, at, past, false);
            }
        }
        if let Some(sectors) = &context.sectors {
            traffic.note(sectors, true);
        }
        env.own.outcome.counters.store(&traffic);
    }

    /// Whether another lane stored the same value to the same place with this very instruction, which harms nobody.
    #[cold]
    #[allow(clippy::too_many_arguments)]
    fn same_store(
        &self,
        access: &Access,
        s: &[Reg],
        lanes: u32,
        lane: usize,
        address: u64,
        epoch: Epoch,
        was_write: bool,
    ) -> bool {
        let other = epoch.lane() as usize;
        was_write
            && epoch.agent() == self.clock.agent
            && epoch.clock() == self.clock.now
            && other < lane
            && lanes >> other & 1 == 1
            && self.address(&access.address, other) == address
            && s.iter().all(|register| self.value(*register, other) == self.value(*register, lane))
    }
}

/// A signed value of `bytes` bytes as wide as its register.
fn extend(value: u64, bytes: usize, register: Reg) -> u64 {
    let shift = 64 - 8 * bytes as u32;
    let wide = ((value << shift) as i64 >> shift) as u64;
    match register {
        Reg::D(_) => wide,
        // A 16-bit register's upper half is never looked at; a 32-bit one takes the whole.
        _ => u64::from(wide as u32),
    }
}
