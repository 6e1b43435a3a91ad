//! The tables of a report, as Markdown.

use std::fmt::Write as _;

use warploom::results::{
    Folder, OURS, Row, Run, Spread,
    targets::{Met, TARGETS, Verdict},
};

use super::{plot, plot_name};

const NO_GPU: &str = "No GPU has been measured.\n";

/// Every line of the targets on every device that was measured.
pub fn targets(folder: &Folder) -> String {
    let mut text =
        "| what | target on an H100 | measured on | figures | |\n|---|---|---|---|---|\n".to_string();
    for target in &TARGETS {
        let mut verdicts: Vec<(String, Verdict)> = vec![];
        for run in &folder.gpus {
            verdicts.extend(target.on_gpu(run).map(|verdict| (title(run), verdict)));
        }
        for run in &folder.cpus {
            let title = format!("{} ({})", run.device, run.date);
            verdicts.extend(target.on_cpu(run).map(|verdict| (title, verdict)));
        }
        if verdicts.is_empty() {
            let verdict = Verdict { met: Met::NotMeasured, figures: String::new() };
            verdicts.push((String::new(), verdict));
        }
        for (device, Verdict { met, figures }) in verdicts {
            let device = if met == Met::NotMeasured { String::new() } else { device };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                cell(target.what),
                cell(target.goal),
                cell(&device),
                cell(&figures),
                met.name()
            );
        }
    }
    text
}

/// What each GPU can do.
pub fn ceilings(folder: &Folder) -> String {
    let table = |run: &Run| {
        let mut text = about(run) + "\n| ceiling | size | by | rate | spread |\n|---|---|---|---|---|\n";
        for row in &run.ceilings {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                cell(&row.name),
                cell(&row.shape),
                cell(&row.engine),
                rate(row),
                spread(row)
            );
        }
        if !run.ceilings.iter().any(|row| row.flop.is_some()) {
            text += "\nNo product of the vendor's library was measured: shares of arithmetic are left out.\n";
        }
        text
    };
    each(folder, table)
}

/// What a run ran on.
fn about(run: &Run) -> String {
    let device = &run.device;
    let mut text = format!(
        "Compute capability {}, {} multiprocessors, {:.1} GB, L2 {:.0} MB",
        cell(&device.capability),
        device.multiprocessors,
        device.memory_bytes as f64 / 1e9,
        device.l2_bytes as f64 / 1e6
    );
    for (what, version) in [("driver", &device.driver), ("kernels compiled by CUDA", &device.cuda)] {
        if let Some(version) = version {
            let _ = write!(text, ", {what} {}", cell(version));
        }
    }
    if let (Some(before), Some(after)) = (&run.clocks.before, &run.clocks.after) {
        let _ = write!(
            text,
            "; {:.0} MHz before and {:.0} MHz after, memory {:.0} MHz, {:.0} W at most, {:.0} and {:.0} °C, throttled by {}",
            before.sm_mhz,
            after.sm_mhz,
            after.memory_mhz,
            after.power_limit_w,
            before.temperature_c,
            after.temperature_c,
            cell(&after.throttle)
        );
    }
    text + ".\n"
}

/// Every launch that was measured, beside the fastest peer of the same shape.
pub fn kernels(folder: &Folder) -> String {
    let table = |run: &Run| {
        let mut text = match plot::points(run).is_empty() {
            true => String::new(),
            false => format!("![Roofline]({})\n", plot_name(&run.device.name)),
        };
        let mut names: Vec<&str> = vec![];
        for row in &run.kernels {
            if !names.contains(&row.name.as_str()) {
                names.push(&row.name);
            }
        }
        for name in names {
            let rows: Vec<&Row> = run.kernels.iter().filter(|row| row.name == name).collect();
            let _ = writeln!(
                text,
                "\n<details><summary>{}: {} shapes</summary>\n\n| shape | median | spread | rate | of its ceiling | fastest peer |\n|---|---|---|---|---|---|",
                cell(name),
                rows.len()
            );
            for row in rows {
                let _ = writeln!(
                    text,
                    "| {} | {} | {} | {} | {} | {} |",
                    cell(&row.shape),
                    time(row),
                    spread(row),
                    rate(row),
                    share(row),
                    peer(run, row)
                );
            }
            text += "\n</details>\n";
        }
        text
    };
    each(folder, table)
}

/// Whole models; peers' rows stand under ours.
pub fn models(folder: &Folder) -> String {
    let table = |run: &Run| {
        let head =
            "| what | shape | by | tokens/s | spread | of its ceiling | |\n|---|---|---|---|---|---|---|\n";
        let mut text = head.to_string();
        for row in &run.models {
            let peers = run.peers_of(&row.name, &row.shape);
            for row in std::iter::once(row).chain(peers) {
                let _ = writeln!(
                    text,
                    "| {} | {} | {} | {} | {} | {} | {} |",
                    cell(&row.name),
                    cell(&row.shape),
                    cell(&row.engine),
                    row.tokens_per_s().map_or("failed".into(), |speed| format!("{speed:.1}")),
                    spread(row),
                    share(row),
                    cell(row.error.as_deref().or(row.note.as_deref()).unwrap_or_default())
                );
            }
        }
        text
    };
    each(folder, table)
}

/// What `scripts/compare-transformers` measured.
pub fn cpus(folder: &Folder) -> String {
    let mut text = String::new();
    for run in &folder.cpus {
        let versions: Vec<String> =
            run.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let _ = writeln!(
            text,
            "### {}\n\n{}, {} threads, {}; {}; {}. Median tokens per second, smallest to largest; ratios are warploom's median over\n\
             the peer's.\n\n| model | task | engine | tokens/s | smallest to largest | ratio |\n|---|---|---|---|---|---|",
            cell(&run.device),
            cell(&run.machine),
            run.threads,
            cell(&run.dtype),
            run.date,
            cell(&versions.join(", "))
        );
        for model in &run.models {
            for row in &model.rows {
                let [median, smallest, largest] = row.tokens_per_s;
                let ours = model.rows.iter().find(|ours| ours.engine == OURS && ours.task == row.task);
                let ratio = ours.filter(|_| row.engine != OURS).map(|ours| ours.tokens_per_s[0] / median);
                let _ = writeln!(
                    text,
                    "| {} | {} | {} | {median:.1} | {smallest:.1} to {largest:.1} | {} |",
                    cell(&model.name),
                    cell(&row.task),
                    cell(&row.engine),
                    ratio.map_or(String::new(), |ratio| format!("{ratio:.2}×"))
                );
            }
        }
        text += "\n";
    }
    if text.is_empty() { "No CPU has been measured.\n".into() } else { text.trim_end().to_string() + "\n" }
}

/// A part for each GPU, under its name.
fn each(folder: &Folder, part: impl Fn(&Run) -> String) -> String {
    if folder.gpus.is_empty() {
        return NO_GPU.into();
    }
    let parts: Vec<String> =
        folder.gpus.iter().map(|run| format!("### {}\n\n{}", cell(&title(run)), part(run))).collect();
    parts.join("\n")
}

fn title(run: &Run) -> String {
    let changed = if run.dirty { ", changed" } else { "" };
    let quick = if run.quick { ", a quick run" } else { "" };
    format!("{} ({}, {}{changed}{quick})", run.device.name, run.date, run.commit)
}

fn time(row: &Row) -> String {
    match (row.seconds, &row.error) {
        (Some(Spread { median, .. }), _) if median < 1e-3 => format!("{:.2} µs", 1e6 * median),
        (Some(Spread { median, .. }), _) => format!("{:.2} ms", 1e3 * median),
        (None, error) => format!("failed: {}", cell(error.as_deref().unwrap_or_default())),
    }
}

/// The distance of the quartiles.
fn spread(row: &Row) -> String {
    row.seconds.map_or(String::new(), |spread| format!("± {:.1} %", 50.0 * spread.relative_iqr()))
}

/// In what its ceiling is in.
fn rate(row: &Row) -> String {
    let computes = row.flop.is_some() && row.ceiling.as_deref().is_none_or(|name| name.starts_with("matmul"));
    match (row.flop_per_s(), row.bytes_per_s()) {
        (Some(flop), _) if computes => format!("{:.1} TFLOP/s", flop / 1e12),
        (_, Some(bytes)) => format!("{:.0} GB/s", bytes / 1e9),
        _ => String::new(),
    }
}

fn share(row: &Row) -> String {
    match (row.share, &row.ceiling) {
        (Some(share), Some(ceiling)) => format!("{:.0} % of {}", 100.0 * share, cell(ceiling)),
        _ => String::new(),
    }
}

fn peer(run: &Run, row: &Row) -> String {
    let median = |row: &Row| row.seconds.map_or(f64::INFINITY, |spread| spread.median);
    let peers = run.peers_of(&row.name, &row.shape);
    let best = peers.min_by(|a, b| median(a).total_cmp(&median(b)));
    let ratio = |peer: &Row| format!("{}: {:.2}×", cell(&peer.engine), median(peer) / median(row));
    best.filter(|_| row.seconds.is_some()).map_or(String::new(), ratio)
}

/// Text that ends no cell and begins no markup.
fn cell(text: &str) -> String {
    let escape = |c: char| match c {
        '|' => "\\|".to_string(),
        '<' => "&lt;".into(),
        c if c.is_control() => " ".into(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}
