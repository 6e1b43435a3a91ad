//! One CTA: its warps, its shared memory, and who runs next.

use super::{
    Context, Outcome, Random,
    copies::Flights,
    sync::BarrierState,
    warp::{State, Stop, Warp},
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

/// What a CTA's warps share, with the view of device memory lent to it while it runs.
pub(crate) struct Env<'a> {
    pub view: View<'a>,
    /// What strong writes left at global and shared addresses for those who read them.
    pub published: HashMap<usize, Arc<Vector>>,
    pub published_shared: HashMap<usize, Arc<Vector>>,
    pub cta: [u32; 3],
    pub shared: Window,
    pub shadow: Shadow,
    pub(super) barriers: [BarrierState; 16],
    pub(super) flights: Flights,
    pub outcome: Outcome,
    /// Threads that have not exited.
    pub live: u32,
    /// Rises with everything that another warp may be waiting for.
    pub progress: u64,
    pub communicates: bool,
    pub trapped: bool,
    pub random: Random,
    /// The warp whose instructions are recorded.
    pub traced: Option<u32>,
    pub trace_limit: usize,
}

impl Env<'_> {
    pub fn report(&mut self, kind: Kind, pc: u32, other: u32, message: impl FnOnce() -> String) {
        self.outcome.findings.add(kind, pc, other, message);
    }

    /// Threads have exited: barriers for all that live may be complete.
    pub fn threads_left(&mut self) {
        let live = self.live;
        for barrier in &mut self.barriers {
            if barrier.expected.is_none() && barrier.arrived > 0 && barrier.complete(live) {
                self.progress += 1;
            }
        }
    }
}

/// A CTA between its turns.
pub(crate) struct Cta {
    pub number: u64,
    warps: Vec<Warp>,
    place: [u32; 3],
    state: Option<Kept>,
    done: bool,
}

/// The parts of [`Env`] that belong to the CTA alone.
struct Kept {
    shared: Window,
    shadow: Shadow,
    barriers: [BarrierState; 16],
    flights: Flights,
    published_shared: HashMap<usize, Arc<Vector>>,
    live: u32,
    random: Random,
    outcome: Outcome,
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

/// What CTAs that run by turns have in common.
pub(super) struct Common<'a> {
    pub view: View<'a>,
    pub published: HashMap<usize, Arc<Vector>>,
    pub progress: u64,
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
            state: Some(Kept {
                shared: Window::new(bytes),
                shadow: Shadow::new(if context.checked { bytes } else { 0 }),
                barriers: Default::default(),
                flights: Flights::default(),
                published_shared: HashMap::new(),
                live: context.threads(),
                random: Random::new(seed ^ number.wrapping_mul(0x9e37_79b9)),
                outcome: Outcome::new(context.kernel),
            }),
            done: false,
        }
    }

    /// Runs to the end, alone.
    pub fn run<'a>(mut self, context: &Context, common: Common<'a>) -> Result<(Outcome, View<'a>)> {
        let mut common = Some(common);
        loop {
            let (turn, back) = self.turn(context, common.take().expect("handed back"), u64::MAX)?;
            match turn {
                Turn::Done => return Ok((self.outcome(), back.view)),
                Turn::Ran => {}
                Turn::Waits => {
                    if !self.force() {
                        self.deadlock(context);
                        return Ok((self.outcome(), back.view));
                    }
                }
            }
            common = Some(back);
        }
    }

    pub fn outcome(&mut self) -> Outcome {
        let Some(mut kept) = self.state.take() else { return Outcome::default() };
        kept.outcome.findings.convict(&mut kept.shadow);
        kept.outcome
    }

    /// Gives each warp a turn, until all have ended or wait, or `rounds` rounds are over.
    pub fn turn<'a>(
        &mut self,
        context: &Context,
        common: Common<'a>,
        rounds: u64,
    ) -> Result<(Turn, Common<'a>)> {
        let Some(kept) = self.state.take() else { return Ok((Turn::Done, common)) };
        let traced = context.trace.filter(|t| u64::from(t.0) == self.number).map(|t| t.1);
        let mut env = Env {
            view: common.view,
            published: common.published,
            published_shared: kept.published_shared,
            cta: self.place,
            shared: kept.shared,
            shadow: kept.shadow,
            barriers: kept.barriers,
            flights: kept.flights,
            outcome: kept.outcome,
            live: kept.live,
            progress: common.progress,
            communicates: context.kernel.communicates,
            trapped: false,
            random: kept.random,
            traced,
            trace_limit: context.trace.map_or(0, |t| t.2),
        };
        let mut turn = Turn::Ran;
        let mut round = 0;
        while round < rounds {
            round += 1;
            let mut ran = false;
            let order = self.order(context, &mut env);
            for index in order {
                let warp = &mut self.warps[index];
                if warp.live == 0 {
                    continue;
                }
                let quantum = match context.schedule {
                    Schedule::Random(_) => 1 + env.random.below(64),
                    _ => QUANTUM,
                };
                let (steps, progress) = (warp.steps, env.progress);
                let stop = warp.run(context, &mut env, quantum)?;
                let executed = warp.steps - steps;
                env.outcome.steps += executed;
                let polls = warp.polls > PATIENCE && warp.progress == env.progress;
                ran |= stop == Stop::Done || progress != env.progress || executed > 0 && !polls;
                if env.trapped {
                    break;
                }
                if env.outcome.steps > context.step_limit {
                    let pc = warp.fragments.first().map_or(0, |f| f.pc);
                    let line = context.kernel.code.get(pc as usize).map_or(0, |inst| inst.line);
                    return Err(Error::StepLimit { limit: context.step_limit, line });
                }
            }
            if env.trapped || env.live == 0 {
                turn = Turn::Done;
                break;
            }
            if !ran {
                turn = Turn::Waits;
                break;
            }
        }
        self.done = turn == Turn::Done;
        self.state = Some(Kept {
            shared: env.shared,
            shadow: env.shadow,
            barriers: env.barriers,
            flights: env.flights,
            published_shared: env.published_shared,
            live: env.live,
            random: env.random,
            outcome: env.outcome,
        });
        if self.done {
            self.warps.clear();
        }
        Ok((turn, Common { view: env.view, published: env.published, progress: env.progress }))
    }

    fn order(&self, context: &Context, env: &mut Env) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.warps.len()).collect();
        match context.schedule {
            Schedule::InOrder => {}
            Schedule::Reversed => order.reverse(),
            Schedule::Random(_) => {
                for i in (1..order.len()).rev() {
                    order.swap(i, env.random.below(i as u64 + 1) as usize);
                }
            }
        }
        order
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
        let Some(kept) = &mut self.state else { return };
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
                        let barrier = &kept.barriers[id as usize];
                        let expected = barrier.expected.unwrap_or(kept.live);
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
        kept.outcome.findings.add(Kind::Deadlock, first, 0, || {
            format!(
                "nothing can run any more in CTA ({}, {}, {}): {}{}",
                place[0],
                place[1],
                place[2],
                waiters.join("; "),
                if count > waiters.len() { "; …" } else { "" }
            )
        });
        self.done = true;
    }

    pub fn is_done(&self) -> bool {
        self.done
    }
}
