//! One CTA: its warps, its shared memory, and who runs next.

use super::{
    Context, Outcome, Random,
    copies::Flights,
    fragment::State,
    sync::BarrierState,
    warp::{Stop, Warp},
};
use crate::{
    check::{Kind, clock::Vector, shadow::Shadow},
    error::{Error, Result},
    launch::Schedule,
    memory::{view::View, window::Window},
};
use std::{collections::HashMap, sync::Arc};

/// Instructions that a warp runs in a row.
const QUANTUM: u64 = 2000;
/// Polls in vain after which a warp counts as waiting for others.
const PATIENCE: u32 = 1 << 17;

/// What a warp sees of the world while it runs.
pub(crate) struct Env<'e, 'a> {
    pub common: &'e mut Common<'a>,
    pub own: &'e mut Own,
    pub cta: [u32; 3],
    pub communicates: bool,
    pub trapped: bool,
    /// The warp whose instructions are recorded.
    pub traced: Option<u32>,
    pub trace_limit: usize,
}

/// What CTAs that run by turns have in common.
pub(crate) struct Common<'a> {
    pub view: View<'a>,
    /// What strong writes left at global addresses for those who read them.
    pub published: HashMap<usize, Arc<Vector>>,
    /// Rises with everything that another warp may be waiting for.
    pub progress: u64,
}

/// What belongs to one CTA.
pub(crate) struct Own {
    pub shared: Window,
    pub shadow: Shadow,
    /// What strong writes left at shared addresses.
    pub published_shared: HashMap<usize, Arc<Vector>>,
    pub(super) barriers: [BarrierState; 16],
    pub(super) flights: Flights,
    /// Threads that have not exited.
    pub live: u32,
    pub random: Random,
    pub outcome: Outcome,
}

impl Env<'_, '_> {
    pub fn report(&mut self, kind: Kind, pc: u32, other: u32, message: impl FnOnce() -> String) {
        self.own.outcome.findings.add(kind, pc, other, message);
    }

    /// Threads have exited: barriers for all that live may be complete.
    pub fn threads_left(&mut self) {
        let live = self.own.live;
        for barrier in &mut self.own.barriers {
            if barrier.expected.is_none() && barrier.arrived > 0 && barrier.complete(live) {
                self.common.progress += 1;
            }
        }
    }
}

/// A CTA between its turns.
pub(crate) struct Cta {
    pub number: u64,
    pub is_done: bool,
    warps: Vec<Warp>,
    place: [u32; 3],
    own: Own,
}

/// What a turn of a CTA came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Done,
    /// Something ran.
    Ran,
    /// Every warp waits, or polls for what others must do.
    Waits,
}

impl<'a> Common<'a> {
    pub fn new(view: View<'a>) -> Self {
        Common { view, published: HashMap::new(), progress: 0 }
    }
}

impl Cta {
    pub fn new(context: &Context, number: u64) -> Self {
        let warps = (0..context.warps()).map(|i| Warp::new(context, number, i)).collect();
        let bytes = context.shared_end as usize;
        let seed = match (context.delivery, context.schedule) {
            (crate::launch::Delivery::Random(seed), _) | (_, Schedule::Random(seed)) => seed,
            _ => 0,
        };
        Cta {
            number,
            warps,
            place: context.place(number),
            is_done: false,
            own: Own {
                shared: Window::new(bytes),
                shadow: Shadow::new(if context.checked { bytes } else { 0 }),
                published_shared: HashMap::new(),
                barriers: Default::default(),
                flights: Flights::default(),
                live: context.threads(),
                random: Random::new(seed ^ number.wrapping_mul(0x9e37_79b9)),
                outcome: Outcome::new(context.kernel),
            },
        }
    }

    /// Runs to the end, alone.
    pub fn run(mut self, context: &Context, common: &mut Common) -> Result<Outcome> {
        loop {
            match self.turn(context, common, u64::MAX)? {
                Turn::Done => break,
                Turn::Ran => {}
                Turn::Waits if self.force() => {}
                Turn::Waits => {
                    self.deadlock(context);
                    break;
                }
            }
        }
        Ok(self.outcome())
    }

    /// What it came to.
    pub fn outcome(mut self) -> Outcome {
        self.own.outcome.findings.convict(&mut self.own.shadow);
        self.own.outcome
    }

    /// Gives each warp a turn, until all have ended or wait, or `rounds` rounds are over.
    pub fn turn(&mut self, context: &Context, common: &mut Common, rounds: u64) -> Result<Turn> {
        let mut env = Env {
            common,
            own: &mut self.own,
            cta: self.place,
            communicates: context.kernel.communicates,
            trapped: false,
            traced: context.trace.filter(|t| u64::from(t.0) == self.number).map(|t| t.1),
            trace_limit: context.trace.map_or(0, |t| t.2),
        };
        for _ in 0..rounds {
            let mut ran = false;
            for index in env.own.random.order(context.schedule, self.warps.len()) {
                let warp = &mut self.warps[index];
                if warp.live == 0 {
                    continue;
                }
                let quantum = match context.schedule {
                    Schedule::Random(_) => 1 + env.own.random.below(64),
                    _ => QUANTUM,
                };
                let (steps, progress) = (warp.steps, env.common.progress);
                let stop = warp.run(context, &mut env, quantum)?;
                let executed = warp.steps - steps;
                env.own.outcome.steps += executed;
                let polls = warp.polls > PATIENCE && warp.progress == env.common.progress;
                ran |= stop == Stop::Done || progress != env.common.progress || executed > 0 && !polls;
                if env.trapped {
                    break;
                }
                if env.own.outcome.steps > context.step_limit {
                    let pc = warp.fragments.first().map_or(0, |f| f.pc);
                    let line = context.kernel.code.get(pc as usize).map_or(0, |inst| inst.line);
                    return Err(Error::StepLimit { limit: context.step_limit, line });
                }
            }
            if env.trapped || env.own.live == 0 {
                self.is_done = true;
                self.warps.clear();
                return Ok(Turn::Done);
            }
            if !ran {
                return Ok(Turn::Waits);
            }
        }
        Ok(Turn::Ran)
    }

    /// Lets a fragment that waits in vain for other lanes of its warp go on, with a report when it does. False if there
    /// is none.
    pub fn force(&mut self) -> bool {
        for warp in &mut self.warps {
            if let Some(fragment) = warp.fragments.iter_mut().find(|f| f.state == State::Lanes && f.mask != 0)
            {
                fragment.state = State::Forced;
                return true;
            }
        }
        false
    }

    /// Reports what each warp waits for.
    pub fn deadlock(&mut self, context: &Context) {
        let mut waiters = vec![];
        let mut first = u32::MAX;
        for warp in &self.warps {
            for fragment in warp.fragments.iter().filter(|f| f.mask != 0) {
                let lanes = match fragment.mask {
                    u32::MAX => String::new(),
                    mask => format!(" lanes {mask:#010x}"),
                };
                let (pc, why) = match fragment.state {
                    State::Barrier { id, .. } => {
                        let barrier = &self.own.barriers[id as usize];
                        let expected = barrier.expected.unwrap_or(self.own.live);
                        let why =
                            format!("at barrier {id}, where {} of {expected} threads are", barrier.arrived);
                        (fragment.pc - 1, why)
                    }
                    State::Again { id, .. } => {
                        (fragment.pc, format!("before its next arrival at barrier {id}"))
                    }
                    _ => (fragment.pc, "polling".into()),
                };
                first = first.min(pc);
                waiters.push(format!("warp {}{lanes} {why}, {}", warp.index, context.kernel.site(pc)));
            }
        }
        let place = self.place;
        let count = waiters.len();
        waiters.truncate(16);
        self.own.outcome.findings.add(Kind::Deadlock, first, 0, || {
            format!(
                "nothing can run any more in CTA ({}, {}, {}): {}{}",
                place[0],
                place[1],
                place[2],
                waiters.join("; "),
                if count > waiters.len() { "; …" } else { "" }
            )
        });
        self.is_done = true;
    }
}
