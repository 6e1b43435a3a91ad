//! `warploom report`: the tables and plots of docs/performance.md, made from the results of benchmarks and nothing else.

mod plot;
mod tables;

use std::{
    fs,
    path::{Path, PathBuf},
};

use warploom::{
    Error, Result,
    results::{Folder, folder_name, write_aside},
};

use super::output;

/// Draw the tables and plots of docs/performance.md from the results of benchmarks
#[derive(clap::Args, Debug)]
#[command(
    after_help = "The page keeps what stands outside of lines such as <!-- report: targets --> and <!-- end -->. One that does not exist is made. For
each GPU a roofline goes beside it.

Examples:
  warploom report
  warploom report --results benches/results --page report.md"
)]
pub struct ReportArgs {
    /// Folder of <device>/<date>.json; of each device the newest counts
    #[arg(long, value_name = "FOLDER", default_value = "benches/results")]
    results: PathBuf,
    /// The page to write
    #[arg(long, value_name = "FILE", default_value = "docs/performance.md")]
    page: PathBuf,
    /// Write nothing; fail if anything would change
    #[arg(long)]
    check: bool,
}

/// What stands between a section's lines.
type Section = fn(&Folder) -> String;

/// The sections of a page, with the headings of a new one.
const SECTIONS: [(&str, &str, Section); 5] = [
    ("targets", "Targets", tables::targets),
    ("ceilings", "Ceilings", tables::ceilings),
    ("kernels", "Kernels", tables::kernels),
    ("models", "Models", tables::models),
    ("cpu", "On CPUs", tables::cpus),
];
const END: &str = "<!-- end -->";

/// Runs the command.
///
/// # Errors
/// Those of [`Folder::read`]; [`Error::File`] for a page without the lines that sections stand between, and with `--check` for
/// one that is not up to date; [`Error::Io`].
pub fn run(args: ReportArgs) -> Result<()> {
    let folder = Folder::read(&args.results)?;
    let old = match fs::read_to_string(&args.page) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !args.check => new_page(),
        Err(error) => return Err(Error::io(&args.page, error)),
    };
    let mut files = vec![(args.page.clone(), page(&args.page, &old, &folder)?)];
    let beside = args.page.parent().unwrap_or(Path::new(""));
    for run in &folder.gpus {
        if let Some(svg) = plot::roofline(run)? {
            files.push((beside.join(plot_name(&run.device.name)), svg));
        }
    }
    for (path, text) in &files {
        let is_fresh = fs::read_to_string(path).is_ok_and(|old| old == *text);
        match (is_fresh, args.check) {
            (true, _) => {}
            (false, true) => {
                return Err(Error::file(path, "is not what the results give: run warploom report"));
            }
            (false, false) => write_aside(path, text)?,
        }
    }
    if args.check {
        return Ok(());
    }
    let written: Vec<String> = files.iter().map(|(path, _)| path.display().to_string()).collect();
    let (gpus, cpus) = (folder.gpus.len(), folder.cpus.len());
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    output::note(&format!("{} of {} and {}", written.join(", "), count(gpus, "GPU"), count(cpus, "CPU")));
    Ok(())
}

/// The name of a device's plot.
fn plot_name(device: &str) -> String {
    format!("roofline-{}.svg", folder_name(device))
}

fn begin(name: &str) -> String {
    format!("<!-- report: {name} -->")
}

fn new_page() -> String {
    let mut text = "# Performance\n".to_string();
    for (name, heading, _) in SECTIONS {
        text += &format!("\n## {heading}\n\n{}\n{END}\n", begin(name));
    }
    text
}

/// The page with its sections made anew.
fn page(path: &Path, old: &str, folder: &Folder) -> Result<String> {
    let mut text = old.to_string();
    for (name, _, section) in SECTIONS {
        let begin = begin(name);
        let lacks = |line: &str| {
            Error::file(path, format!("has no line {line} where the section {name} is to stand"))
        };
        let from = text.find(&begin).ok_or_else(|| lacks(&begin))? + begin.len();
        let to = from + text[from..].find(END).ok_or_else(|| lacks(END))?;
        if text[from..to].contains("<!-- report:") {
            return Err(lacks(END));
        }
        text.replace_range(from..to, &format!("\n{}", section(folder)));
    }
    Ok(text)
}
