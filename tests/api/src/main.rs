//! Prints the public interface that a file of rustdoc's JSON describes, an item a line. What derives and blanket implementations add is left
//! out but for the traits that are derived; of Send and Sync, which most types are, those are told that are not.
use std::{collections::BTreeSet, env, path::Path, process::ExitCode};

use public_api::{Builder, PublicApi, Result};

/// The interface, with derived and automatic implementations or without.
fn interface(path: &Path, derived: bool) -> Result<PublicApi> {
    Builder::from_rustdoc_json(path)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(!derived)
        .omit_auto_derived_impls(!derived)
        .build()
}

fn lines(path: &Path) -> Result<BTreeSet<String>> {
    let (own, all) = (interface(path, false)?, interface(path, true)?);
    let mut lines: BTreeSet<String> = own.items().map(ToString::to_string).collect();
    let automatic = |line: &str| line.contains("core::marker::") || line.contains("core::panic::");
    let lacking = |line: &str| line.contains("!core::marker::Send") || line.contains("!core::marker::Sync");
    let is_told = |line: &String| line.starts_with("impl") && (!automatic(line) || lacking(line));
    lines.extend(all.items().map(ToString::to_string).filter(is_told));
    Ok(lines)
}

fn main() -> ExitCode {
    let Some(path) = env::args_os().nth(1) else {
        eprintln!("usage: warploom-api FILE.json");
        return ExitCode::from(2);
    };
    match lines(path.as_ref()) {
        Ok(lines) => {
            lines.iter().for_each(|line| println!("{line}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
