//! cp.async: copies from global to shared memory that run beside the threads.
//!
//! A copy under way is a [`Flight`]. When its bytes arrive is a matter of [`Delivery`]: at once, as late as a wait
//! permits, or at random; until the issuing thread has waited, nobody may touch the destination.

use super::{
    Context,
    access::Touch,
    cta::Env,
    warp::{Warp, lanes_of, thread_name},
};
use crate::{
    check::Kind,
    counters::Traffic,
    kernel::{Inst, Op},
    launch::Delivery,
    parse::Space,
};

/// A copy that its issuer has not waited for.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub warp: u32,
    pub lane: u32,
    /// The group that it belongs to, counted over the lane's groups.
    pub group: u32,
    pub source: usize,
    pub target: usize,
    /// Bytes read; the rest of `bytes` becomes zero.
    pub size: usize,
    pub bytes: usize,
    pub pc: u32,
    pub delivered: bool,
    pub number: u64,
}

/// The copies under way in a CTA, and for each word of shared memory which of them writes it.
#[derive(Default)]
pub(super) struct Flights {
    slots: Vec<Option<Flight>>,
    free: Vec<u32>,
    count: usize,
    /// Copies so far.
    number: u64,
    words: Vec<u32>,
}

impl Flights {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Notes a copy, and its number. One to just the place of another takes its place, so that as many copies are
    /// under way as shared memory has room for; that the first was not waited for has been reported.
    fn insert(&mut self, mut flight: Flight) -> (u32, u64) {
        let word = self.words.get(flight.target / 4).copied().unwrap_or(0);
        if let Some(place) = word.checked_sub(1)
            && self.slots[place as usize]
                .as_ref()
                .is_some_and(|f| f.target == flight.target && f.bytes == flight.bytes)
        {
            self.remove(place);
        }
        self.number += 1;
        flight.number = self.number;
        let (begin, end) =
            (flight.target / 4, flight.target.div_ceil(4).max((flight.target + flight.bytes) / 4));
        let place = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        if self.words.len() < end {
            self.words.resize(end, 0);
        }
        self.words[begin..end].fill(place + 1);
        self.slots[place as usize] = Some(flight);
        self.count += 1;
        (place, self.number)
    }

    fn remove(&mut self, place: u32) -> Option<Flight> {
        let flight = self.slots[place as usize].take()?;
        for word in &mut self.words[flight.target / 4..(flight.target + flight.bytes) / 4] {
            if *word == place + 1 {
                *word = 0;
            }
        }
        self.free.push(place);
        self.count -= 1;
        Some(flight)
    }

    /// The copy under way that writes one of these bytes.
    fn over(&self, at: usize, n: usize) -> Option<&Flight> {
        let end = (at + n).div_ceil(4).min(self.words.len());
        let word = self.words.get(at / 4..end)?.iter().find(|word| **word != 0)?;
        self.slots[*word as usize - 1].as_ref()
    }
}

impl Warp {
    pub(super) fn copy_async<const CHECKED: bool>(
        &mut self,
        context: &Context,
        env: &mut Env,
        pc: u32,
        inst: &Inst,
        lanes: u32,
    ) {
        let Op::CopyAsync { shared, global, bytes, size, ignore } = &inst.op else { return };
        let n = u64::from(*bytes);
        let mut read = Traffic::new(*bytes);
        let mut write = Traffic::new(*bytes);
        for lane in lanes_of(lanes) {
            let target = self.address(shared, lane);
            let source = self.address(global, lane);
            let mut take = size.map(|r| u64::from(self.w[r as usize][lane])).unwrap_or(n);
            if take > n {
                let (cta, warp) = (env.cta, self.index);
                env.report(Kind::OutOfBounds, pc, 0, || {
                    format!("{} copies {take} source bytes into {n}", thread_name(cta, warp, lane as u32))
                });
                take = n;
            }
            if ignore.is_some_and(|p| self.pred(p) >> lane & 1 == 1) {
                take = 0;
            }
            let Some((_, to)) = self.place(context, env, pc, lane, Space::Shared, target, n, "copies to")
            else {
                continue;
            };
            let mut from = 0;
            if take > 0 {
                // The source is read as one aligned piece even where part of it is left out.
                if !source.is_multiple_of(n) {
                    let (cta, warp) = (env.cta, self.index);
                    env.report(Kind::Misaligned, pc, 0, || {
                        format!(
                            "{} copies {n} bytes from {source:#x}, which is no multiple of {n}",
                            thread_name(cta, warp, lane as u32)
                        )
                    });
                    continue;
                }
                let at = source.wrapping_sub(context.global_base);
                if !env.common.view.inside(at, take) {
                    let (cta, warp) = (env.cta, self.index);
                    env.report(Kind::OutOfBounds, pc, 0, || {
                        format!(
                            "{} copies {take} bytes from {source:#x}, which is in no allocation to its end",
                            thread_name(cta, warp, lane as u32)
                        )
                    });
                    continue;
                }
                from = at as usize;
                read.add(lane, Space::Global, at);
                if CHECKED {
                    let touch = Touch { pc, lane, write: false, strong: false };
                    if let Some(conflict) =
                        self.touch(context, env, Space::Global, from, take as usize, touch)
                    {
                        self.race(context, env, Space::Global, from, touch, conflict);
                    }
                }
            }
            write.add(lane, Space::Shared, to as u64);
            if CHECKED {
                let touch = Touch { pc, lane, write: true, strong: false };
                if let Some(conflict) = self.touch(context, env, Space::Shared, to, n as usize, touch) {
                    self.race(context, env, Space::Shared, to, touch, conflict);
                }
            }
            let now = match context.delivery {
                Delivery::Eager => true,
                Delivery::Lazy => false,
                Delivery::Random(_) => env.own.random.below(2) == 0,
            };
            let mut flight = Flight {
                warp: self.index,
                lane: lane as u32,
                group: self.groups[lane],
                source: from,
                target: to,
                size: take as usize,
                bytes: n as usize,
                pc,
                delivered: false,
                number: 0,
            };
            if now {
                deliver(env, &mut flight);
                // Without checks nobody asks whether a copy that has arrived was waited for.
                if !CHECKED {
                    continue;
                }
            } else {
                env.own.shared.poison(to, n as usize);
            }
            let place = env.own.flights.insert(flight);
            self.flights.push(place);
            if self.flights.len() > 2 * env.own.flights.count + 64 {
                // Most of them were replaced.
                let slots = &env.own.flights.slots;
                self.flights.retain(|(place, number)| {
                    slots[*place as usize].as_ref().is_some_and(|flight| flight.number == *number)
                });
            }
        }
        if let Some(sectors) = &context.sectors {
            read.note(sectors, false);
        }
        env.own.outcome.counters.copy(&read, &write);
    }

    /// Completes the copies of `lanes` but for their last `left` groups; all copies for None.
    pub(super) fn wait_group<const CHECKED: bool>(
        &mut self,
        context: &Context,
        env: &mut Env,
        left: Option<u32>,
        lanes: u32,
    ) {
        let mut places = std::mem::take(&mut self.flights);
        places.retain(|(place, number)| {
            let Some(flight) = &mut env.own.flights.slots[*place as usize] else { return false };
            if flight.number != *number {
                return false;
            }
            let lane = flight.lane as usize;
            let due = lanes >> lane & 1 == 1
                && match left {
                    None => true,
                    // Groups are numbered from 0; the open one is the number of those committed.
                    Some(left) => flight.group + left < self.groups[lane],
                };
            if !due {
                let early = matches!(context.delivery, Delivery::Random(_)) && env.own.random.below(4) == 0;
                if early && !flight.delivered {
                    let mut copy = flight.clone();
                    deliver(env, &mut copy);
                    env.own.flights.slots[*place as usize] = Some(copy);
                }
                return true;
            }
            if let Some(mut flight) = env.own.flights.remove(*place) {
                deliver(env, &mut flight);
                if CHECKED {
                    // From here on the copy is a write of the thread that waited.
                    env.own.shadow.access(
                        &self.clock,
                        flight.lane,
                        flight.pc,
                        flight.target,
                        flight.bytes,
                        true,
                        false,
                    );
                }
            }
            false
        });
        self.flights = places;
    }

    /// Reports a touch of what a copy may still be writing.
    pub(super) fn check_flights(&self, context: &Context, env: &mut Env, at: usize, n: usize, touch: Touch) {
        let Some(flight) = env.own.flights.over(at, n) else { return };
        let (other_warp, other_lane, other) = (flight.warp, flight.lane, flight.pc);
        let (cta, warp) = (env.cta, self.index);
        let kernel = context.kernel;
        env.report(Kind::MissingWait, touch.pc, other, || {
            format!(
                "{} {} shared {at:#x} at {}, which the copy that warp {other_warp} lane {other_lane} began at {} may still be writing: no cp.async.wait covers it",
                thread_name(cta, warp, touch.lane as u32),
                if touch.write { "writes" } else { "reads" },
                kernel.site(touch.pc),
                kernel.site(other),
            )
        });
    }
}

fn deliver(env: &mut Env, flight: &mut Flight) {
    if flight.delivered {
        return;
    }
    flight.delivered = true;
    let mut data = [0u8; 16];
    let mut valid = true;
    if flight.size > 0 {
        data[..flight.size].copy_from_slice(env.common.view.bytes(flight.source, flight.size));
        valid = env.common.view.valid(flight.source, flight.size);
    }
    env.own.shared.write(flight.target, &data[..flight.bytes], valid);
}
