//! A crew: threads that stay at hand for a whole forward pass and share the work of each operation.
//!
//! A decode step is dozens of operations of some microseconds each. Waking a sleeping thread for one, and joining
//! it, costs as much as the operation itself. So [`muster`] gathers the pool's threads once around a pass; between
//! operations they watch one number, the *order*, and [`for_each`] costs what it takes to move a cache line
//! between two cores.
//!
//! One task's life, the leader on the left, each helper on the right:
//!
//! ```text
//! write task, next = 0
//! order: even → odd  ─────────────▶  sees a new odd order
//! claim shares till none is left     present += 1; if the order still stands: claim shares till none is left
//! order: odd → even                  present −= 1
//! wait until present = 0 ◀─────────
//! ```
//!
//! The leader claims shares like everybody else and never waits for a helper to come, only for one at work to
//! finish. So a pass needs no helper at all: on a busy machine, or in a pool whose threads all lead passes of their
//! own, it is merely slower.

use std::{
    cell::{Cell, UnsafeCell},
    ptr::null,
    sync::atomic::{AtomicUsize, Ordering},
};

use rayon::prelude::*;

/// Looks at a number before a waiting thread offers its core to others: some tens of microseconds, longer than any
/// serial operation between two shared ones.
const SPINS: usize = 1 << 10;
/// The order that ends a crew.
const DISMISSED: usize = usize::MAX;

/// A number that threads watch, on cache lines of its own (the prefetcher fetches them in pairs).
#[repr(align(128))]
struct Line(AtomicUsize);

struct Crew {
    /// Odd while a task is open, even between two: each change is one up. [`DISMISSED`] at the end.
    order: Line,
    /// Helpers that may be at the open task.
    present: Line,
    /// The next share of the open task.
    next: Line,
    task: UnsafeCell<Task>,
}

// SAFETY: `task` alone is not Sync by itself. The leader writes it while the order is even and no helper is present;
// helpers read it after they have entered themselves as present and found the order still odd.
unsafe impl Sync for Crew {}

/// A `Fn(usize)` without its type and lifetime, to be called for each share.
#[derive(Clone, Copy)]
struct Task {
    run: unsafe fn(*const (), usize),
    data: *const (),
    shares: usize,
}

thread_local! {
    /// The crew that this thread leads.
    static LED: Cell<*const Crew> = const { Cell::new(null()) };
}

/// Runs `pass` on a thread of the current rayon pool, with the others at hand for its calls of [`for_each`].
///
/// # Panics
/// If `pass` or a share does: a helper's panic goes on here once `pass` has returned.
pub(super) fn muster<R: Send>(cores: usize, pass: impl FnOnce() -> R + Send) -> R {
    // More threads than cores would wait for one another.
    let helpers = rayon::current_num_threads().min(cores) - 1;
    // A pass within a pass goes on with the crew that is there.
    if helpers == 0 || !LED.get().is_null() { pass() } else { lead(helpers, pass) }
}

/// [`muster`] with up to `helpers` of the pool's threads, at least one.
fn lead<R: Send>(helpers: usize, pass: impl FnOnce() -> R + Send) -> R {
    let crew = Crew::new();
    let pass = || {
        // Ends the crew when the pass ends, by a panic too.
        struct Dismiss<'c>(&'c Crew, *const Crew);
        impl Drop for Dismiss<'_> {
            fn drop(&mut self) {
                LED.set(self.1);
                self.0.order.0.store(DISMISSED, Ordering::SeqCst);
            }
        }
        let _dismiss = Dismiss(&crew, LED.replace(&crew));
        pass()
    };
    rayon::join(pass, || crew.gather(helpers)).0
}

/// Calls `run` for each of `0..shares`, in any order and on several threads, and returns when all are done. Within
/// [`muster`] on its crew, elsewhere on the current rayon pool.
pub(super) fn for_each<F: Fn(usize) + Sync>(shares: usize, run: F) {
    // A share that shares out work of its own finds no crew: this one is busy.
    let crew = LED.replace(null());
    // SAFETY: a thread's `LED` is null or the crew of a `muster` that is still on its stack.
    match unsafe { crew.as_ref() } {
        Some(crew) => crew.share(shares, &run),
        None => (0..shares).into_par_iter().for_each(&run),
    }
}

impl Crew {
    fn new() -> Self {
        let line = || Line(AtomicUsize::new(0));
        let nothing = Task { run: |_, _| (), data: null(), shares: 0 };
        Crew { order: line(), present: line(), next: line(), task: UnsafeCell::new(nothing) }
    }

    /// Lets up to `helpers` threads of the pool take part until the crew is dismissed.
    fn gather(&self, helpers: usize) {
        if helpers == 1 {
            self.help();
        } else {
            rayon::join(|| self.help(), || self.gather(helpers - 1));
        }
    }

    /// The leader's part of one task.
    fn share<F: Fn(usize) + Sync>(&self, shares: usize, run: &F) {
        unsafe fn call<F: Fn(usize)>(data: *const (), share: usize) {
            // SAFETY: `data` is the `run` below, which lives until every helper has left the task.
            unsafe { (*data.cast::<F>())(share) }
        }
        // Closes the task, when a share panics too: nobody may run it once `run` is gone.
        struct Close<'c>(&'c Crew);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                let Close(crew) = *self;
                crew.order.0.fetch_add(1, Ordering::SeqCst);
                wait(|| crew.present.0.load(Ordering::SeqCst) == 0);
                LED.set(crew);
            }
        }
        let task = Task { run: call::<F>, data: std::ptr::from_ref(run).cast(), shares };
        // SAFETY: the order is even and no helper is present: none reads the task.
        unsafe { *self.task.get() = task };
        self.next.0.store(0, Ordering::Relaxed);
        self.order.0.fetch_add(1, Ordering::SeqCst);
        let _close = Close(self);
        self.claim(task);
    }

    /// A helper's part of all tasks.
    fn help(&self) {
        // Leaves the task, when a share panics too: the leader waits for it.
        struct Leave<'c>(&'c Crew);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.present.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let mut order = 0;
        loop {
            let last = order;
            wait(|| {
                order = self.order.0.load(Ordering::Acquire);
                order % 2 == 1 && order != last
            });
            if order == DISMISSED {
                return;
            }
            // These two and the leader's two have one total order: the order has changed here, or the leader finds
            // this helper present.
            self.present.0.fetch_add(1, Ordering::SeqCst);
            let _leave = Leave(self);
            if self.order.0.load(Ordering::SeqCst) == order {
                // SAFETY: the leader keeps the task as it is until this helper has left.
                self.claim(unsafe { *self.task.get() });
            }
        }
    }

    /// Runs shares of the open task until none is left.
    fn claim(&self, task: Task) {
        loop {
            let share = self.next.0.fetch_add(1, Ordering::Relaxed);
            if share >= task.shares {
                return;
            }
            // SAFETY: whoever claims is the leader, inside `share`, or a helper that the leader waits for there.
            unsafe { (task.run)(task.data, share) }
        }
    }
}

/// Returns once `done` is true; offers the core to others if that takes long.
fn wait(mut done: impl FnMut() -> bool) {
    loop {
        for _ in 0..SPINS {
            if done() {
                return;
            }
            std::hint::spin_loop();
        }
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;

    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    /// Many short tasks, each share of which must have run once, by the time that its task returns.
    fn count_shares(helpers: usize, tasks: usize) {
        lead(helpers, || {
            for task in 0..tasks {
                let counts: [AtomicUsize; 7] = Default::default();
                for_each(task % 8, |share| {
                    counts[share].fetch_add(1, Ordering::Relaxed);
                });
                for (share, count) in counts.iter().enumerate() {
                    assert_eq!(count.load(Ordering::Relaxed), usize::from(share < task % 8), "task {task}");
                }
            }
        });
    }

    #[test]
    fn every_share_runs_once() {
        // With fewer threads than helpers, and with more threads than cores.
        for (threads, helpers) in [(1, 1), (2, 1), (3, 2), (5, 4), (2, 4), (8, 7)] {
            pool(threads).install(|| count_shares(helpers, 2000));
        }
        count_shares(1, 100);
    }

    /// Passes whose helpers are the leaders of other passes, and one in a task of the caller's.
    #[test]
    fn leaders_at_once() {
        let pool = pool(2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| pool.install(|| count_shares(1, 50))));
            }
        });
        pool.install(|| (0..8).into_par_iter().for_each(|_| count_shares(1, 200)));
    }

    #[test]
    fn a_share_may_share_out() {
        let sum = AtomicUsize::new(0);
        let inner = |_| {
            for_each(5, |share| {
                sum.fetch_add(share, Ordering::Relaxed);
            })
        };
        pool(3).install(|| lead(2, || muster(3, || for_each(4, inner))));
        assert_eq!(sum.into_inner(), 40);
    }

    /// Whichever thread panics, the pass ends with it, and the pool goes on.
    #[test]
    fn panics_arrive() {
        let pool = pool(3);
        for round in 0..100 {
            let by_leader = round % 2 == 0;
            let pass = || {
                let leader = std::thread::current().id();
                let panicked = std::sync::atomic::AtomicBool::new(false);
                for_each(10, |_| {
                    if (std::thread::current().id() == leader) == by_leader {
                        panicked.store(true, Ordering::Relaxed);
                        panic!("a share's");
                    }
                    // Leaves the other shares to those who are to panic.
                    wait(|| panicked.load(Ordering::Relaxed));
                });
            };
            let caught = std::panic::catch_unwind(AssertUnwindSafe(|| pool.install(|| lead(2, pass))));
            assert!(caught.is_err(), "round {round}");
        }
        pool.install(|| count_shares(2, 100));
    }
}
