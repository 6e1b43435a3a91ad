//! The `ptxsim` command: see `src/command`.
mod command;

use std::{any::Any, panic, process::ExitCode, sync::Mutex};

fn main() -> ExitCode {
    panic::set_hook(Box::new(|info| {
        if let (Some(location), Ok(mut place)) = (info.location(), PANIC_PLACE.lock()) {
            *place = location.to_string();
        }
    }));
    match panic::catch_unwind(command::run) {
        Ok(code) => code,
        Err(panic) => {
            command::output::note(&format!("error: {}", internal_error(&*panic)));
            ExitCode::FAILURE
        }
    }
}

/// Where the last panic was.
static PANIC_PLACE: Mutex<String> = Mutex::new(String::new());

/// A panic, here or in a dependency, as one line.
fn internal_error(panic: &(dyn Any + Send)) -> String {
    let message = panic.downcast_ref::<&str>().map(|text| text.to_string());
    let message = message.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    let place = PANIC_PLACE.lock().map_or(String::new(), |place| place.clone());
    format!("internal error at {place}: {}; please report it with the PTX file", message.escape_debug())
}
