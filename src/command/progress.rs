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

/// Shows how many of `total` bytes of weights are on the device, if stderr is a terminal and it may take a while, until the returned value
/// is dropped.
#[cfg(feature = "cuda")]
pub fn uploading(total: u64, uploaded: std::sync::Arc<std::sync::atomic::AtomicU64>) -> Uploading {
    use std::{
        io::IsTerminal,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        time::Duration,
    };
    /// What is on the device before anybody has read a line.
    const LONG: u64 = 1 << 30;
    let done = Arc::new(AtomicBool::new(false));
    let watch = (total >= LONG && std::io::stderr().is_terminal()).then(|| {
        let done = done.clone();
        std::thread::spawn(move || {
            let bar = ProgressBar::new(total);
            let style =
                "weights to the device {bar:30} {bytes}/{total_bytes}, {binary_bytes_per_sec}, {eta} left";
            if let Ok(style) = indicatif::ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            while !done.load(Ordering::Relaxed) {
                bar.set_position(uploaded.load(Ordering::Relaxed));
                std::thread::park_timeout(Duration::from_millis(100));
            }
            bar.finish_and_clear();
        })
    });
    Uploading { done, watch }
}

/// The bar is shown until this is dropped.
#[cfg(feature = "cuda")]
pub struct Uploading {
    done: std::sync::Arc<std::sync::atomic::AtomicBool>,
    watch: Option<std::thread::JoinHandle<()>>,
}

#[cfg(feature = "cuda")]
impl Drop for Uploading {
    fn drop(&mut self) {
        self.done.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(watch) = self.watch.take() {
            watch.thread().unpark();
            // It only draws: if it panicked, nothing else is wrong.
            let _ = watch.join();
        }
    }
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
