//! The CTAs of a launch.
//!
//! CTAs that do not communicate run at once, in waves of fixed size, each on its own view of memory; their writes
//! are put together in order of their numbers, and bytes that two of them touched, one writing, are a race. CTAs that do
//! communicate (atomics, volatile or scoped accesses, fences) run by turns on one view, as many at a time
//! as the GPU could hold, in an order that the schedule seeds.

use rayon::prelude::*;

use super::{
    Context, Footprint, Outcome, Random,
    cta::{Common, Cta, Turn},
};
use crate::{
    check::Kind,
    error::{Error, Result},
    launch::Schedule,
    memory::{
        PAGE,
        arena::Arena,
        view::{Page, Touched, View, commit, conflict, merge},
    },
};

/// CTAs that run before their writes are put together: fixed, so that results do not depend on the machine.
const WAVE: u64 = 64;

/// CTAs that run by turns at first.
const WINDOW: u64 = 8;

/// Runs every CTA. After an error, memory may hold a part of the result.
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
                || Common::new(View::new(shared, context.checked)),
                |common, number| {
                    let mut outcome = Cta::new(context, number).run(context, common);
                    if let Ok(outcome) = &mut outcome {
                        outcome.findings.convict(&mut common.view.shadow);
                    }
                    // The next CTA of this thread starts afresh, whatever became of this one.
                    let pages = common.view.take();
                    common.published.clear();
                    common.progress = 0;
                    Ok((outcome?, pages))
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
    let mut random = Random::new(match context.schedule {
        Schedule::Random(seed) => seed,
        _ => 0,
    });
    let pages = {
        let mut common = Common::new(View::new(arena, context.checked));
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
            let before = common.progress;
            let mut ran = false;
            for index in random.order(context.schedule, running.len()) {
                ran |= running[index].turn(context, &mut common, 1)? != Turn::Waits;
            }
            let (ended, left): (Vec<Cta>, Vec<Cta>) = running.drain(..).partition(|cta| cta.is_done);
            for cta in ended {
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
                running.iter_mut().for_each(|cta| cta.deadlock(context));
                break 'grid;
            }
            if outcome.steps > context.step_limit {
                return Err(outcome.beyond(context));
            }
        }
        for cta in running {
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
                context.global_base + u64::from(page.number) * PAGE as u64 + byte as u64,
                kernel.site(mine),
                kernel.site(other),
            )
        });
    }
}
