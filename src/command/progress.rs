//! What a simulated device is doing, on stderr where that is a terminal: it takes its time.
//!
//! [`show`] begins a line that the rest of the command need not know of: what is written through `output` makes room for
//! itself. Text that comes piece by piece ends the line, and [`again`] brings it back where another long silence begins.

use std::sync::{Mutex, MutexGuard};

use indicatif::ProgressBar;

static LINE: Mutex<Option<Line>> = Mutex::new(None);

struct Line {
    bar: ProgressBar,
    /// A bar like it.
    another: Box<dyn Fn() -> ProgressBar + Send>,
}

fn line() -> MutexGuard<'static, Option<Line>> {
    LINE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Shows how much `driver` has simulated, if it simulates and stderr is a terminal, until the returned value is dropped.
#[cfg(feature = "cuda")]
pub fn show(driver: &std::sync::Arc<dyn warploom::driver::Driver>) -> Shown {
    use std::io::IsTerminal;

    use indicatif::{ProgressState, ProgressStyle};
    if driver.simulated().is_some() && std::io::stderr().is_terminal() {
        let driver = driver.clone();
        let another = move || {
            let driver = driver.clone();
            let simulated = move |_: &ProgressState, to: &mut dyn std::fmt::Write| {
                if let Some((launches, instructions)) = driver.simulated() {
                    let millions = instructions as f64 / 1e6;
                    let _ = write!(to, "{launches} launches, {millions:.1} M warp instructions");
                }
            };
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} simulating: {simulated}") {
                bar.set_style(style.with_key("simulated", simulated));
            }
            bar.enable_steady_tick(std::time::Duration::from_millis(100));
            bar
        };
        *line() = Some(Line { bar: another(), another: Box::new(another) });
    }
    Shown
}

/// The line is shown until this is dropped.
#[cfg(feature = "cuda")]
pub struct Shown;

#[cfg(feature = "cuda")]
impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(line) = line().take() {
            line.bar.finish_and_clear();
        }
    }
}

/// Shows the line again that text has ended.
pub fn again() {
    if let Some(line) = &mut *line()
        && line.bar.is_finished()
    {
        line.bar = (line.another)();
    }
}

/// Writes something to the terminal. If the cursor does not stay `at_line_start`, the line is shown no more.
pub fn make_room<R>(at_line_start: bool, write: impl FnOnce() -> R) -> R {
    match &*line() {
        Some(line) if at_line_start => line.bar.suspend(write),
        Some(line) => {
            line.bar.finish_and_clear();
            write()
        }
        None => write(),
    }
}
