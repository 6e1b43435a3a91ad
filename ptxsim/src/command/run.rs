//! `ptxsim run`: one launch, its counters, its findings and what bounds it.

use std::fmt::Write as _;

use ptxsim::{Delivery, Launch, Schedule};
use serde_json::json;

use super::{options::LaunchArgs, output, report, source::Sources};

/// Lines that --profile prints.
const HOTTEST: usize = 20;
/// Instructions that --trace prints where it says no number.
const TRACED: usize = 1000;

/// Launch a kernel; print what it did, what is wrong with it and what would bound it on a GPU
#[derive(clap::Args)]
#[command(after_help = "Examples:
  ptxsim run race.ptx --block 128 --param buf:f32:128=random:1 --param buf:f32:1 --profile
  ptxsim run race.ptx --block 128 --param buf:f32:128=fill:1 --param 'buf:f32:1>sum.npy' --trace 0,1,20 --json")]
pub struct RunArgs {
    #[command(flatten)]
    launch: LaunchArgs,
    /// Look for nothing but bounds, alignment and deadlocks, which is faster
    #[arg(long)]
    unchecked: bool,
    /// Print each instruction that a warp executes, 1000 or COUNT of them
    #[arg(long, value_name = "CTA,WARP[,COUNT]", value_parser = trace)]
    trace: Option<(u32, u32, usize)>,
    /// Print the source lines that most warp instructions belong to
    #[arg(long)]
    profile: bool,
}

fn trace(text: &str) -> Result<(u32, u32, usize), String> {
    let numbers: Option<Vec<u32>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
    match numbers.as_deref() {
        Some([cta, warp]) => Ok((*cta, *warp, TRACED)),
        Some([cta, warp, count]) => Ok((*cta, *warp, *count as usize)),
        _ => Err("two or three numbers: CTA,WARP or CTA,WARP,COUNT".into()),
    }
}

/// Runs the command. Findings do not make it fail; that is for `check`.
///
/// # Errors
/// For files that cannot be read or written, PTX that cannot be run, and a launch that a GPU would refuse.
pub fn run(args: RunArgs) -> Result<(), String> {
    let Some(job) = args.launch.job()? else { return Ok(()) };
    let one = "run is one launch: give --delivery and --schedule once, or use check";
    let delivery = match args.launch.delivery[..] {
        [] => Delivery::Eager,
        [one] => one,
        _ => return Err(one.into()),
    };
    let schedule = match args.launch.schedule[..] {
        [] => Schedule::InOrder,
        [one] => one,
        _ => return Err(one.into()),
    };
    let launch =
        Launch { checked: !args.unchecked, delivery, schedule, trace: args.trace, ..job.launch.clone() };
    let block: u64 = launch.block.iter().map(|n| u64::from(*n)).product();
    if let Some((cta, warp, _)) = args.trace {
        let ctas: u64 = launch.grid.iter().map(|n| u64::from(*n)).product();
        if u64::from(cta) >= ctas || u64::from(warp) >= block.div_ceil(32) {
            return Err(format!(
                "--trace {cta},{warp}: there are {ctas} CTAs of {} warps",
                block.div_ceil(32)
            ));
        }
    }
    let mut ended = job.launch(launch)?;
    let result = &ended.report;
    let roofline = job.gpu.roofline(&result.counters);
    let mut sources = Sources::new(&job.module, &job.text, &job.path, &args.launch.source);
    let mut profile = result.profile.clone();
    profile.sort_by_key(|line| (std::cmp::Reverse(line.instructions), line.source));
    profile.truncate(HOTTEST);
    let text = if args.launch.json {
        let mut object = json!({
            "findings": result.findings,
            "counters": result.counters,
            "roofline": roofline,
            "output": result.output,
        });
        if args.profile {
            let lines = profile.iter().map(|line| {
                json!({
                    "place": sources.name(line.source),
                    "instructions": line.instructions,
                    "lanes": line.lanes,
                    "text": sources.text(line.source),
                })
            });
            object["profile"] = lines.collect();
        }
        if args.trace.is_some() {
            let lines = result.trace.iter().map(|line| {
                json!({
                    "ptx_line": line.ptx_line,
                    "ptx": sources.ptx(line.ptx_line),
                    "lanes": line.lanes,
                    "place": (line.source.0 != 0).then(|| sources.name(line.source)),
                })
            });
            object["trace"] = lines.collect();
        }
        format!("{object:#}\n")
    } else {
        let mut text = result.output.clone();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        if let Some((_, _, limit)) = args.trace {
            text.push_str(&report::trace(&result.trace, limit, &mut sources));
        }
        text.push_str(&report::counters(&result.counters, block));
        if args.profile {
            text.push_str(&report::profile(&profile, result.counters.instructions, &mut sources));
        }
        let _ = write!(text, "\n{roofline}\n");
        text.push_str(&report::findings(&result.findings, &[], &result.profile, &mut sources));
        text
    };
    output::write(&text)?;
    job.save(&mut ended)
}
