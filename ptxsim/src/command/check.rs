//! `ptxsim check`: the same launch under every delivery of copies and several orders of warps, findings alone.

use std::{
    collections::hash_map::DefaultHasher,
    fmt::Write as _,
    hash::{Hash, Hasher},
};

use ptxsim::{Counters, Delivery, Finding, Kind, Launch, LineProfile, Schedule, param::PlacedBuffer};
use serde_json::json;

use super::{
    options::{Ended, Job, LaunchArgs, policy_name},
    output, report,
    source::Sources,
};

/// Launch a kernel under three deliveries of asynchronous copies and three orders of its warps; print what is wrong
/// with it, and fail if anything is
#[derive(clap::Args)]
#[command(
    long_about = "Launch a kernel under three deliveries of asynchronous copies and three orders of its warps, each \
        time on fresh memory; print what is wrong with it, and fail if anything is.\n\n--delivery and --schedule, which may \
        be repeated, choose others. Buffers are saved from the first launch. A buffer or counter that differs between \
        the launches is told, but is no fault by itself: floating-point atomics and polling may do that. So is a \
        buffer with bytes that nobody wrote, which a grid that is too small leaves, and so may scratch.\n\nThe exit code is \
        1 for findings and errors, 2 for arguments that cannot be read.",
    after_help = "Examples:
  ptxsim check fixed.ptx --block 128 --param buf:f32:128=random:1 --param buf:f32:1
  ptxsim check fixed.ptx --block 128 --param buf:f32:128=random:1 --param buf:f32:1 --schedule random:7 --json"
)]
pub struct CheckArgs {
    #[command(flatten)]
    launch: LaunchArgs,
}

/// What one launch left, to compare with others.
struct Trace {
    name: String,
    /// Which buffer, and a hash of what is in it.
    buffers: Vec<(String, u64)>,
    counters: Counters,
}

/// Runs the command. False if there are findings.
///
/// # Errors
/// As for `run`.
pub fn run(args: CheckArgs) -> Result<bool, String> {
    let Some(job) = args.launch.job()? else { return Ok(true) };
    let or = |given: &[Delivery]| match given {
        [] => vec![Delivery::Eager, Delivery::Lazy, Delivery::Random(1)],
        given => given.to_vec(),
    };
    let deliveries = or(&args.launch.delivery);
    let schedules = match &args.launch.schedule[..] {
        [] => vec![Schedule::InOrder, Schedule::Reversed, Schedule::Random(1)],
        given => given.to_vec(),
    };
    let mut found = Found::default();
    let mut traces = vec![];
    let mut first = None;
    for delivery in deliveries {
        for schedule in &schedules {
            let launch = Launch { delivery, schedule: *schedule, ..job.launch.clone() };
            let mut ended = job.launch(launch)?;
            found.add(&ended, &policy_name(delivery, *schedule));
            traces.push(trace(&job, &mut ended, policy_name(delivery, *schedule))?);
            first.get_or_insert(ended);
        }
    }
    let differences = differences(&traces);
    // What every launch leaves, since orders change nothing in a kernel that is right.
    let unwritten = first.as_ref().map(unwritten).transpose()?.unwrap_or_default();
    let text = if args.launch.json {
        let findings: Vec<&Finding> = found.findings.iter().map(|(finding, _)| finding).collect();
        let object = json!({
            "findings": findings, "differences": differences, "unwritten": unwritten, "launches": traces.len(),
        });
        format!("{object:#}\n")
    } else {
        let mut sources = Sources::new(&job.module, &job.text, &job.path, &args.launch.source);
        found.text(&traces, &[differences, unwritten].concat(), &mut sources)
    };
    output::write(&text)?;
    if let Some(ended) = &mut first {
        job.save(ended)?;
    }
    Ok(found.findings.is_empty())
}

/// The findings of all launches, each told once, with the launches that it appeared in.
#[derive(Default)]
struct Found {
    findings: Vec<(Finding, Vec<String>)>,
    profile: Vec<LineProfile>,
}

impl Found {
    fn add(&mut self, ended: &Ended, launch: &str) {
        // A fault that meets several others is told for each in the first launch that finds it; launches in other
        // orders name the same pairs the other way round.
        let known: Vec<(Kind, u32)> = self.findings.iter().map(|(f, _)| (f.kind, f.ptx_line)).collect();
        for finding in &ended.report.findings {
            if known.contains(&(finding.kind, finding.ptx_line)) {
                for (_, launches) in self
                    .findings
                    .iter_mut()
                    .filter(|(f, _)| (f.kind, f.ptx_line) == (finding.kind, finding.ptx_line))
                {
                    if launches.last().is_none_or(|last| last != launch) {
                        launches.push(launch.into());
                    }
                }
            } else {
                self.findings.push((finding.clone(), vec![launch.into()]));
            }
        }
        self.profile.extend_from_slice(&ended.report.profile);
        self.profile.sort_by_key(|line| line.source);
        self.profile.dedup_by_key(|line| line.source);
    }

    fn text(&self, traces: &[Trace], notes: &[String], sources: &mut Sources) -> String {
        let findings: Vec<Finding> = self.findings.iter().map(|(finding, _)| finding.clone()).collect();
        let launches: Vec<String> = self
            .findings
            .iter()
            .map(|(_, launches)| match launches.len() {
                n if n == traces.len() => String::new(),
                n => format!(", in {n} of {} launches, the first with {}", traces.len(), launches[0]),
            })
            .collect();
        let mut text = report::findings(&findings, &launches, &self.profile, sources);
        for note in notes {
            let _ = writeln!(text, "note: {note}");
        }
        let _ = writeln!(text, "{} launches: deliveries of copies × orders of warps", traces.len());
        text
    }
}

/// A buffer as the notes call it.
fn name_of(buffer: &PlacedBuffer) -> String {
    match buffer.offset {
        0 => format!("parameter {}", buffer.parameter),
        offset => format!("parameter {}'s buffer at byte {offset}", buffer.parameter),
    }
}

/// Which buffers hold bytes that nobody wrote: a grid may have been too small for them.
fn unwritten(ended: &Ended) -> Result<Vec<String>, String> {
    let mut out = vec![];
    for buffer in &ended.placed.buffers {
        let first =
            ended.device.unwritten(buffer.address, buffer.bytes as usize).map_err(|e| e.to_string())?;
        if let Some(first) = first {
            out.push(format!(
                "{} ends with bytes that nobody wrote, from byte {} on",
                name_of(buffer),
                first - buffer.address
            ));
        }
    }
    Ok(out)
}

fn trace(job: &Job, ended: &mut Ended, name: String) -> Result<Trace, String> {
    let mut buffers = vec![];
    for buffer in &ended.placed.buffers {
        let data = ended.device.read(buffer.address, buffer.bytes as usize);
        let mut hasher = DefaultHasher::new();
        data.map_err(|e| format!("{}: {e}", job.entry))?.hash(&mut hasher);
        buffers.push((name_of(buffer), hasher.finish()));
    }
    Ok(Trace { name, buffers, counters: ended.report.counters.clone() })
}

/// In what the launches differ from the first.
fn differences(traces: &[Trace]) -> Vec<String> {
    let Some((first, others)) = traces.split_first() else { return vec![] };
    let mut out = vec![];
    for (index, buffer) in first.buffers.iter().enumerate() {
        if let Some(other) = others.iter().find(|other| other.buffers[index] != *buffer) {
            out.push(format!("{} ends differently under {} and under {}", buffer.0, first.name, other.name));
        }
    }
    if let Some(other) = others.iter().find(|other| other.counters != first.counters) {
        out.push(format!("the counters differ under {} and under {}", first.name, other.name));
    }
    out
}
