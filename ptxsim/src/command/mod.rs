//! The subcommands of `ptxsim`, one file each: its arguments and a `run` function.
//!
//! What they share: `options` (which kernel, launched how), `source` (the text of PTX and CUDA lines), `report` (tables)
//! and `output` (stdout and stderr).
mod check;
mod list;
mod options;
pub mod output;
mod report;
mod run;
mod source;

use std::process::ExitCode;

use clap::Parser;

/// Runs CUDA kernels' PTX on a CPU: every instruction that nvcc made, with race checks and exact counters
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
enum Cli {
    Run(run::RunArgs),
    Check(check::CheckArgs),
    List(list::ListArgs),
}

/// Runs the command that the arguments name. The exit code is 1 for an error and for the findings of `check`, 2 for
/// arguments that cannot be read.
pub fn run() -> ExitCode {
    let outcome = match Cli::parse() {
        Cli::Run(args) => run::run(args).map(|()| true),
        Cli::Check(args) => check::run(args),
        Cli::List(args) => list::run(args).map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            output::note(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}
