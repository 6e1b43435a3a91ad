//! The `warploom` command: see `src/command`.
mod command;

use std::{
    any::Any,
    panic::{catch_unwind, set_hook},
    process::ExitCode,
    sync::Mutex,
};

use clap::Parser;
use warploom::{Result, error::printable};

use command::{chat, compare, eval, export, generate, inspect, kernels, logits, output, performance, train};

/// Llama inference with exact early-exit self-speculative decoding: the first layers draft, the rest verify, and
/// the output equals that of plain decoding bit for bit
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
enum Cli {
    Generate(generate::GenerateArgs),
    Compare(compare::CompareArgs),
    Logits(logits::LogitsArgs),
    Chat(chat::ChatArgs),
    Eval(eval::EvalArgs),
    Inspect(inspect::InspectArgs),
    Train(train::TrainArgs),
    Kernels(kernels::KernelsArgs),
    Export(export::ExportArgs),
    Report(performance::ReportArgs),
}

fn run() -> Result<ExitCode> {
    match Cli::parse() {
        Cli::Generate(args) => generate::run(args)?,
        Cli::Compare(args) => return compare::run(args),
        Cli::Logits(args) => logits::run(args)?,
        Cli::Chat(args) => chat::run(args)?,
        Cli::Eval(args) => eval::run(args)?,
        Cli::Inspect(args) => inspect::run(args)?,
        Cli::Train(args) => train::run(args)?,
        Cli::Kernels(args) => kernels::run(args)?,
        Cli::Export(args) => export::run(args)?,
        Cli::Report(args) => performance::run(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    set_hook(Box::new(|info| {
        if let (Some(location), Ok(mut place)) = (info.location(), PANIC_PLACE.lock()) {
            *place = location.to_string();
        }
    }));
    let error = match catch_unwind(run) {
        Ok(Ok(code)) => return code,
        Ok(Err(error)) => error.to_string(),
        Err(panic) => internal_error(&*panic),
    };
    output::note(&format!("error: {error}"));
    ExitCode::FAILURE
}

/// Where the last panic was.
static PANIC_PLACE: Mutex<String> = Mutex::new(String::new());

/// A panic, here or in a dependency, as one line.
fn internal_error(panic: &(dyn Any + Send)) -> String {
    let message = panic.downcast_ref::<&str>().map(|text| text.to_string());
    let message = message.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    let place = PANIC_PLACE.lock().map_or(String::new(), |place| place.clone());
    format!("internal error at {place}: {}; please report it with the command line", printable(&message))
}
