//! Ctrl-C: the first ends what is being generated, cleanly; a second one ends the process.

use std::sync::{
    Once,
    atomic::{AtomicBool, Ordering},
};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The flag that Ctrl-C (or SIGTERM) sets from now on. Who has acted on it may clear it, as `chat` does between
/// turns.
pub fn flag() -> &'static AtomicBool {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // Where no handler can be set, Ctrl-C ends the process at once, which is no worse than before.
        let _ = ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                // What a shell reports for a process that SIGINT ended.
                std::process::exit(130);
            }
        });
    });
    &INTERRUPTED
}
