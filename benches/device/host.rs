//! What nvidia-smi says of the GPU, and git of the sources.

use std::process::Command;

use warploom::results::Clocks;

/// `fields` of a device, `cuda:N` as CUDA counts; None without nvidia-smi, and where it does not know one of them.
pub fn smi(device: &str, fields: &str) -> Option<Vec<String>> {
    let index = device.strip_prefix("cuda")?.trim_start_matches(':');
    let mut gpu = if index.is_empty() { "0" } else { index };
    // CUDA counts among those that this names, by index or UUID; nvidia-smi takes both.
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    if !visible.is_empty() {
        gpu = visible.split(',').nth(gpu.parse().ok()?)?.trim();
    }
    let arguments = [&format!("--query-gpu={fields}"), "--format=csv,noheader,nounits", "-i", gpu];
    let output = Command::new("nvidia-smi").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    Some(text.trim().split(',').map(|field| field.trim().to_string()).collect())
}

/// Clocks of a device; None where nothing tells them.
pub fn clocks(device: &str) -> Option<Clocks> {
    let fields = "clocks.sm,clocks.mem,power.limit,temperature.gpu";
    // The same by its new and by its old name: no nvidia-smi needs to know both.
    let answer = ["clocks_event_reasons.active", "clocks_throttle_reasons.active"]
        .into_iter()
        .find_map(|reasons| smi(device, &format!("{fields},{reasons}")))?;
    let number = |i: usize| answer.get(i)?.parse::<f64>().ok();
    Some(Clocks {
        sm_mhz: number(0)?,
        memory_mhz: number(1)?,
        power_limit_w: number(2)?,
        temperature_c: number(3)?,
        throttle: answer.get(4)?.clone(),
    })
}

/// The commit that is measured, and whether something differs from it, as `scripts/find-commit` says.
pub fn commit() -> (String, bool) {
    let git = |arguments: &[&str]| Command::new("git").args(arguments).output().ok();
    let describe = || {
        let output =
            git(&["describe", "--always", "--abbrev=12"]).filter(|output| output.status.success())?;
        // What measuring changes makes nothing dirty.
        let sources = ["--", ".", ":!docs", ":!benches/results"];
        let is_clean = git(&[&["diff", "--quiet", "HEAD"][..], &sources[..]].concat())?.status.success();
        let dirty = if is_clean { "" } else { "-dirty" };
        Some(format!("{}{dirty}", String::from_utf8_lossy(&output.stdout).trim()))
    };
    let named = std::env::var("WARPLOOM_COMMIT").ok().filter(|commit| !commit.is_empty());
    let named = named.or_else(describe).unwrap_or_else(|| "unknown".into());
    match named.strip_suffix("-dirty") {
        Some(commit) => (commit.into(), true),
        None => (named, false),
    }
}
