//! What is printed for people: counters, findings, profile, trace, and the list of GPUs.

use std::{collections::BTreeMap, fmt::Write as _};

use ptxsim::{
    Counters, Finding, Global, Gpu, Kind, LineProfile, Shared, TraceLine, numerics::matrix::Precision,
};
use serde_json::json;

use super::{output::printable, source::Sources};

/// The counters of a launch with CTAs of so many threads. Kinds of memory that were not touched are left out.
pub fn counters(counters: &Counters, threads: u64) -> String {
    let c = counters;
    let mut out = String::new();
    let lanes = c.lane_instructions as f64 / c.instructions.max(1) as f64;
    let _ = writeln!(
        out,
        "{:<20} {:>14} of {threads} threads, {} bytes of shared memory",
        "CTAs", c.ctas, c.shared_bytes
    );
    let _ =
        writeln!(out, "{:<20} {:>14} with {lanes:.1} lanes on average", "warp instructions", c.instructions);
    let mut classes: Vec<(&&str, &u64)> = c.by_class.iter().collect();
    classes.sort_by_key(|(name, n)| (std::cmp::Reverse(**n), **name));
    for (name, n) in classes {
        let _ = writeln!(out, "  {name:<18} {n:>14}");
    }
    for (name, n) in [
        ("FLOP", c.flop),
        ("  of f16", c.flop_half),
        ("  of f64", c.flop_double),
        ("barrier arrivals", c.barriers),
    ] {
        if n > 0 {
            let _ = writeln!(out, "{name:<20} {n:>14}");
        }
    }
    if c.mma > 0 {
        let useful = c.mma_flop_useful as f64 / c.mma_flop.max(1) as f64 * 100.0;
        let _ = writeln!(out, "{:<20} {:>14} of {} FLOP, {useful:.1} % useful", "mma", c.mma, c.mma_flop);
    }
    let global = [
        ("global loads", &c.global_load),
        ("global stores", &c.global_store),
        ("global atomics", &c.global_atomic),
        ("cp.async", &c.copy),
        ("local", &c.local),
    ];
    let touched: Vec<&(&str, &Global)> = global.iter().filter(|(_, g)| g.requests > 0).collect();
    if !touched.is_empty() {
        let _ = writeln!(
            out,
            "\n{:<20} {:>14} {:>12} {:>14} {:>10}",
            "", "requests", "sectors", "bytes", "efficiency"
        );
    }
    for (name, g) in touched {
        let efficiency = g.efficiency() * 100.0;
        let _ = writeln!(
            out,
            "{name:<20} {:>14} {:>12} {:>14} {efficiency:>8.1} %",
            g.requests, g.sectors, g.bytes
        );
    }
    if let Some(sectors) = c.distinct_sectors.filter(|sectors| *sectors > 0) {
        let _ = writeln!(out, "{:<20} {:>14} {sectors:>12} {:>14}", "distinct sectors", "", sectors * 32);
    }
    let shared = [
        ("shared loads", &c.shared_load),
        ("shared stores", &c.shared_store),
        ("shared atomics", &c.shared_atomic),
        ("ldmatrix, stmatrix", &c.matrix),
    ];
    let touched: Vec<&(&str, &Shared)> = shared.iter().filter(|(_, s)| s.requests > 0).collect();
    if !touched.is_empty() {
        let _ = writeln!(
            out,
            "\n{:<20} {:>14} {:>12} {:>14} {:>10}",
            "", "requests", "wavefronts", "bytes", "conflicts"
        );
    }
    for (name, s) in touched {
        let conflicts = s.wavefronts.saturating_sub(s.ideal);
        let _ = writeln!(
            out,
            "{name:<20} {:>14} {:>12} {:>14} {conflicts:>10}",
            s.requests, s.wavefronts, s.bytes
        );
    }
    out
}

/// Findings of one kind at one source line, by their places in the report.
struct Group {
    kind: Kind,
    place: (u32, u32),
    members: Vec<usize>,
}

/// Findings with the text of their lines, those of one kind and source line together. `launches` says of each, where there
/// were several launches, in which it appeared.
pub fn findings(
    findings: &[Finding],
    launches: &[String],
    profile: &[LineProfile],
    sources: &mut Sources,
) -> String {
    if findings.is_empty() {
        return "no findings\n".into();
    }
    let mut groups: Vec<Group> = vec![];
    for (i, finding) in findings.iter().enumerate() {
        let (kind, place) = (finding.kind, sources.place(finding, profile));
        match groups.iter_mut().find(|group| group.kind == kind && group.place == place) {
            Some(group) => group.members.push(i),
            None => groups.push(Group { kind, place, members: vec![i] }),
        }
    }
    let mut out = match groups.len() {
        1 => "1 finding\n".to_string(),
        n => format!("{n} findings\n"),
    };
    for Group { kind, place, members } in groups {
        let first = &findings[members[0]];
        let times = match members.iter().map(|i| findings[*i].count).sum() {
            1u64 => "once".into(),
            n => format!("{n} times"),
        };
        let at = match first.ptx_line {
            0 => "the launch".into(),
            ptx_line if place.0 == 0 => format!("PTX line {ptx_line}"),
            ptx_line => format!("{} (PTX line {ptx_line})", sources.name(place)),
        };
        let launches = launches.get(members[0]).map_or("", String::as_str);
        let _ = writeln!(out, "{} at {at}, {times}{launches}", kind.name());
        let _ = writeln!(out, "    {}", printable(&first.message));
        if members.len() > 1 {
            let _ = writeln!(out, "    and {} more at this line; --json has them all", members.len() - 1);
        }
        let text = sources.text(place);
        if !text.is_empty() {
            let _ = writeln!(out, "    > {text}");
        }
    }
    out
}

/// The lines that most warp instructions belong to, of so many in all.
pub fn profile(lines: &[LineProfile], instructions: u64, sources: &mut Sources) -> String {
    let mut out = format!("\n{:<8} {:>14} {:>6}  hottest lines\n", "share", "instructions", "lanes");
    for line in lines {
        let share = line.instructions as f64 / instructions.max(1) as f64 * 100.0;
        let lanes = line.lanes as f64 / line.instructions.max(1) as f64;
        let text = format!("{}  {}", sources.name(line.source), sources.text(line.source));
        let _ = writeln!(out, "{share:>6.1} % {:>14} {lanes:>6.1}  {}", line.instructions, text.trim_end());
    }
    out
}

/// Executed instructions, each under the source line that it belongs to.
pub fn trace(lines: &[TraceLine], limit: usize, sources: &mut Sources) -> String {
    let mut out = format!("{:<10} {:>7}  instruction\n", "lanes", "line");
    let mut before = (0, 0);
    for line in lines {
        if line.source != before && line.source.0 != 0 {
            let _ = writeln!(out, "{:>18}  {}", sources.name(line.source), sources.text(line.source));
        }
        before = line.source;
        let _ =
            writeln!(out, "{:08x}   {:>7}      {}", line.lanes, line.ptx_line, sources.ptx(line.ptx_line));
    }
    if lines.len() == limit {
        let _ = writeln!(out, "… the first {limit}; --trace CTA,WARP,COUNT shows more");
    }
    out.push('\n');
    out
}

/// The GPUs that are known by name.
pub fn gpus(as_json: bool) -> String {
    if as_json {
        let list = Gpu::ALL.map(|gpu| {
            json!({
                "name": gpu.name,
                "sm_count": gpu.sm_count,
                "clock_ghz": gpu.clock,
                "bandwidth_gb_s": gpu.bandwidth,
                "tensor_tflop_s": Precision::ALL
                    .map(|precision| (precision, gpu.tensor.of(precision)))
                    .into_iter()
                    .collect::<BTreeMap<_, _>>(),
                "shared_bytes": gpu.shared_bytes,
            })
        });
        return format!("{:#}\n", json!({ "gpus": list }));
    }
    let mut out = format!(
        "{:<10} {:>4} {:>6} {:>7} {:>15} {:>12}\n",
        "", "SMs", "GHz", "GB/s", "bf16 TFLOP/s", "shared KiB"
    );
    for gpu in Gpu::ALL {
        let _ = writeln!(
            out,
            "{:<10} {:>4} {:>6} {:>7} {:>15} {:>12}",
            gpu.name,
            gpu.sm_count,
            gpu.clock,
            gpu.bandwidth,
            gpu.tensor.half,
            gpu.shared_bytes >> 10
        );
    }
    out
}
