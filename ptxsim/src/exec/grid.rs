//! The CTAs of a launch.
//!
//! CTAs that do not communicate run at once, in waves of fixed size, each on its own view of memory; their writes
//! are put together in order of their numbers, and bytes that two of them touched, one writing, are a race. CTAs that do
//! communicate (atomics, volatile or scoped accesses, fences) run by turns on one view, as many at a time
//! as the GPU could hold, in an order that the schedule seeds.

use rayon::prelude::*;
use std::collections::HashMap;

use super::{
    Context, Footprint, Outcome, Random,
    cta::{Common, Cta, Turn},
};
use crate::{
    check::Kind,
    error::{Error, Result},
    launch::Schedule,
    memory::{
        GLOBAL_BASE, PAGE,
        arena::Arena,
        view::{Page, Touched, View, commit, conflict, merge},
    },
};

/// CTAs that run before their writes are put together: fixed, so that results do not depend on the machine.
const WAVE: u64 = 64;

/// CTAs that run by turns at first.
const WINDOW: u64 = 8;

/// Runs every CTA; memory holds the result even after an error.
pub(crate) fn run(context: &Context, arena: &mut Arena, resident: u64) -> Result<(Outcome, Footprint)> {
    let total: u64 = context.grid.iter().map(|n| u64::from(*n)).product();
    let agents = total.saturating_mul(u64::from(context.warps()));
    if agents >= 1 << 24 {
        return Err(Error::Launch(format!(
            "{agents} warps are more than the {} that are told apart",
            1 << 24
        )));
    }
    if context.kernel.communicates {
        by_turns(context, arena, total, resident)
    } else {
        in_waves(context, arena, total)
    }
}

fn in_waves(context: &Context, arena: &mut Arena, total: u64) -> Result<(Outcome, Footprint)> {
    let mut outcome = Outcome::new(context.kernel);
    let mut footprint = Sum::default();
    let mut first = 0;
    while first < total {
        let last = (first + WAVE).min(total);
        let shared: &Arena = arena;
        let results: Vec<Result<(Outcome, Vec<Page>)>> = (first..last)
            .into_par_iter()
            .map_init(
                || Some(View::new(shared, context.checked)),
                |view, number| {
                    let fresh = || View::new(shared, context.checked);
                    let common = Common {
                        view: view.take().unwrap_or_else(fresh),
                        published: HashMap::new(),
                        progress: 0,
                    };
                    let (mut outcome, mut back) = Cta::new(context, number).run(context, common)?;
                    outcome.findings.convict(&mut back.shadow);
                    let pages = back.take();
                    *view = Some(back);
                    Ok((outcome, pages))
                },
            )
            .collect();
        let mut stop = false;
        for (number, result) in (first..last).zip(results) {
            let (part, pages) = result?;
            outcome.merge(part);
            if context.checked {
                footprint.add(context, number, &pages, &mut outcome);
            }
            commit(arena, &pages);
            stop |= outcome.findings.stops();
        }
        if stop {
            break;
        }
        if outcome.steps > context.step_limit {
            return Err(outcome.beyond(context));
        }
        first = last;
    }
    Ok((outcome, footprint.pages))
}

fn by_turns(context: &Context, arena: &mut Arena, total: u64, resident: u64) -> Result<(Outcome, Footprint)> {
    let mut outcome = Outcome::new(context.kernel);
    let mut random = match context.schedule {
        Schedule::Random(seed) => Some(Random::new(seed)),
        _ => None,
    };
    let pages = {
        let mut common =
            Common { view: View::new(arena, context.checked), published: HashMap::new(), progress: 0 };
        let mut running: Vec<Cta> = vec![];
        let mut next = 0;
        // Few at a time, for the sake of memory, until they all wait for CTAs that have not begun.
        let mut window = WINDOW.min(resident).max(1);
        'grid: loop {
            while (running.len() as u64) < window && next < total {
                running.push(Cta::new(context, next));
                next += 1;
            }
            if running.is_empty() {
                break;
            }
            let mut order: Vec<usize> = (0..running.len()).collect();
            match (&mut random, context.schedule) {
                (Some(random), _) => {
                    for i in (1..order.len()).rev() {
                        order.swap(i, random.below(i as u64 + 1) as usize);
                    }
                }
                (None, Schedule::Reversed) => order.reverse(),
                _ => {}
            }
            let before = common.progress;
            let mut ran = false;
            for index in order {
                let (turn, back) = running[index].turn(context, common, 1)?;
                ran |= turn != Turn::Waits;
                common = back;
            }
            let mut left = vec![];
            let mut ended = vec![];
            for cta in running.drain(..) {
                if cta.is_done() { ended.push(cta) } else { left.push(cta) }
            }
            ended.sort_by_key(|cta| cta.number);
            for mut cta in ended {
                outcome.merge(cta.outcome());
            }
            running = left;
            if outcome.findings.stops() {
                break 'grid;
            }
            let stuck = !ran && common.progress == before;
            if stuck && next < total && window < resident {
                window = (2 * window).min(resident);
                continue;
            }
            if stuck && !running.iter_mut().any(Cta::force) {
                for cta in &mut running {
                    cta.deadlock(context);
                    outcome.merge(cta.outcome());
                }
                break 'grid;
            }
            if outcome.steps > context.step_limit {
                return Err(outcome.beyond(context));
            }
        }
        for mut cta in running {
            outcome.merge(cta.outcome());
        }
        outcome.findings.convict(&mut common.view.shadow);
        common.view.take()
    };
    commit(arena, &pages);
    let footprint =
        pages.into_iter().filter_map(|page| page.touched.map(|touched| (page.number, touched))).collect();
    Ok((outcome, footprint))
}

/// What the CTAs so far touched.
#[derive(Default)]
struct Sum {
    pages: Footprint,
}

impl Sum {
    fn add(&mut self, context: &Context, number: u64, pages: &[Page], outcome: &mut Outcome) {
        for page in pages {
            let Some(touched) = &page.touched else { continue };
            match self.pages.get_mut(&page.number) {
                None => {
                    self.pages.insert(page.number, touched.clone());
                }
                Some(before) => {
                    if let Some((byte, mine, other)) = conflict(touched, before) {
                        self.report(context, number, page, touched, byte, mine, other, outcome);
                    }
                    if let Some(before) = self.pages.get_mut(&page.number) {
                        merge(before, touched);
                    }
                }
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn report(
        &self,
        context: &Context,
        number: u64,
        page: &Page,
        touched: &Touched,
        byte: usize,
        mine: u32,
        other: u32,
        outcome: &mut Outcome,
    ) {
        let kernel = context.kernel;
        let place = context.place(number);
        let writes = touched.written[byte / 64] >> (byte % 64) & 1 == 1;
        outcome.findings.add(Kind::Race, mine, other, || {
            format!(
                "CTA ({}, {}, {}) {} global {:#x} at {}, which another CTA touches at {}, one of them writing, with nothing to order CTAs",
                place[0],
                place[1],
                place[2],
                if writes { "writes" } else { "reads" },
                GLOBAL_BASE + u64::from(page.number) * PAGE as u64 + byte as u64,
                kernel.site(mine),
                kernel.site(other),
            )
        });
    }
}
