//! Vector clocks: what each warp knows to have happened.
//!
//! A warp's own clock moves at every operation that orders its lanes or publishes what it did. An access is an
//! [`Epoch`]: who, which lane, at which clock. It happened before a warp's present if that warp's vector holds the accessor at
//! that clock or later.

use std::{collections::BTreeMap, sync::Arc};

/// One access: warp (numbered over the grid), lane, the warp's clock. 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Epoch(pub u64);

/// The lane of an epoch that stands for several.
pub(crate) const MANY: u32 = 32;

impl Epoch {
    pub fn new(agent: u32, lane: u32, clock: u32, strong: bool) -> Self {
        Epoch(u64::from(clock) << 32 | u64::from(agent) << 8 | u64::from(lane) << 1 | u64::from(strong))
    }
    pub fn is_none(self) -> bool {
        self.0 == 0
    }
    pub fn agent(self) -> u32 {
        (self.0 >> 8) as u32 & 0xff_ffff
    }
    pub fn lane(self) -> u32 {
        (self.0 >> 1) as u32 & 63
    }
    pub fn clock(self) -> u32 {
        (self.0 >> 32) as u32
    }
    /// Of a volatile, relaxed or atomic access, or one with acquire or release.
    pub fn strong(self) -> bool {
        self.0 & 1 != 0
    }
    pub fn with_many_lanes(self) -> Self {
        Epoch(self.0 & !(63 << 1) | u64::from(MANY) << 1)
    }
}

/// Clocks of warps: those of one's own CTA in a row, others by number.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Vector {
    /// First warp of the CTA.
    pub base: u32,
    pub own: Vec<u32>,
    pub others: Option<Arc<BTreeMap<u32, u32>>>,
}

impl Vector {
    pub fn new(base: u32, warps: usize) -> Self {
        Vector { base, own: vec![0; warps], others: None }
    }

    pub fn get(&self, agent: u32) -> u32 {
        match agent.checked_sub(self.base) {
            Some(i) if (i as usize) < self.own.len() => self.own[i as usize],
            _ => self.others.as_ref().and_then(|o| o.get(&agent)).copied().unwrap_or(0),
        }
    }

    /// Takes over what `from` knows.
    pub fn join(&mut self, from: &Vector) {
        if self.base == from.base {
            for (mine, theirs) in self.own.iter_mut().zip(&from.own) {
                *mine = (*mine).max(*theirs);
            }
        } else {
            for (i, clock) in from.own.iter().enumerate() {
                self.raise(from.base + i as u32, *clock);
            }
        }
        match (&mut self.others, &from.others) {
            (_, None) => {}
            (Some(mine), Some(theirs)) if Arc::ptr_eq(mine, theirs) => {}
            (mine @ None, Some(theirs)) if self.base == from.base => *mine = Some(theirs.clone()),
            (_, Some(theirs)) => {
                for (agent, clock) in theirs.iter() {
                    self.raise(*agent, *clock);
                }
            }
        }
    }

    fn raise(&mut self, agent: u32, clock: u32) {
        if clock == 0 {
            return;
        }
        if let Some(i) = agent.checked_sub(self.base)
            && (i as usize) < self.own.len()
        {
            let mine = &mut self.own[i as usize];
            *mine = (*mine).max(clock);
            return;
        }
        let others = Arc::make_mut(self.others.get_or_insert_with(Default::default));
        let mine = others.entry(agent).or_insert(0);
        *mine = (*mine).max(clock);
    }
}

/// A warp's place in time.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    pub agent: u32,
    /// The present; starts at 1, so that no epoch is 0.
    pub now: u32,
    pub known: Vector,
    /// Up to which clock every lane knows what all others did.
    pub met: u32,
    /// Up to which clock a lane (first index) knows what another one did, once some of the warp's lanes have met without
    /// the others.
    pub lanes: Option<Box<[[u32; 32]; 32]>>,
    /// What the last fence published, and what strong reads saw but no fence has taken over yet.
    pub published: Option<Arc<Vector>>,
    pub seen: Option<Vector>,
    /// The same of fences and reads that hold for the CTA alone.
    pub published_cta: Option<Arc<Vector>>,
    pub seen_cta: Option<Vector>,
}

impl Clock {
    pub fn new(base: u32, index: usize, warps: usize) -> Self {
        let mut known = Vector::new(base, warps);
        known.own[index] = 1;
        Clock {
            agent: base + index as u32,
            now: 1,
            known,
            met: 0,
            lanes: None,
            published: None,
            seen: None,
            published_cta: None,
            seen_cta: None,
        }
    }

    /// Whether the access happened before what `lane` does now.
    pub fn after(&self, epoch: Epoch, lane: u32) -> bool {
        if epoch.agent() == self.agent {
            let (other, then) = (epoch.lane(), epoch.clock());
            if other == lane || then <= self.met {
                return true;
            }
            let Some(lanes) = &self.lanes else { return false };
            let known = &lanes[lane as usize];
            return match known.get(other as usize) {
                Some(until) => then <= *until,
                // Which lanes they were is forgotten: take them for those that it met.
                None => known.iter().enumerate().any(|(l, until)| l as u32 != lane && then <= *until),
            };
        }
        epoch.clock() <= self.known.get(epoch.agent())
    }

    /// Time moves on.
    pub fn tick(&mut self) {
        self.now = self.now.saturating_add(1);
        let index = (self.agent - self.known.base) as usize;
        self.known.own[index] = self.now;
    }

    /// The lanes of `mask`, of those that live, meet: what each did or knows of is before what each does next.
    pub fn meet(&mut self, mask: u32, live: u32) {
        let now = self.now;
        self.tick();
        if live & !mask == 0 {
            self.met = now;
            self.lanes = None;
            return;
        }
        let met = self.met;
        let lanes = self.lanes.get_or_insert_with(|| Box::new([[met; 32]; 32]));
        let members = || (0..32).filter(|lane| mask >> lane & 1 == 1);
        let mut joined = [0; 32];
        for lane in members() {
            for (mine, theirs) in joined.iter_mut().zip(&lanes[lane]) {
                *mine = (*mine).max(*theirs);
            }
        }
        for lane in members() {
            joined[lane] = now;
        }
        for lane in members() {
            lanes[lane] = joined;
        }
    }

    /// The past as others may learn it. What is done from now on is not in it.
    pub fn release(&mut self) -> Vector {
        let past = self.known.clone();
        self.tick();
        past
    }

    /// The lanes of `mask` take over what others published. What lanes of this warp published is known to these lanes
    /// alone.
    pub fn acquire(&mut self, from: &Vector, mask: u32) {
        self.known.join(from);
        let own = from.get(self.agent);
        if own > self.met {
            let met = self.met;
            let lanes = self.lanes.get_or_insert_with(|| Box::new([[met; 32]; 32]));
            for (lane, known) in lanes.iter_mut().enumerate() {
                if mask >> lane & 1 == 1 {
                    known.iter_mut().for_each(|until| *until = (*until).max(own));
                }
            }
        }
    }
}
