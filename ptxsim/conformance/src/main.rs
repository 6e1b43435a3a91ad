//! The command `ptxsim-conformance`: exit code 0, 1 where results differ or nothing could run, 2 for usage.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
};

use clap::{Parser, Subcommand};
use ptxsim::Schedule;
use ptxsim_conformance::{
    Error, Gpu, Image, Recording, Result, Runner, Simulator, Suite, Summary, recordings,
};

/// Runs one-instruction kernels on the simulator and on GPUs, records what hardware gives, compares.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the cases: name, source, threads, inputs, outputs, instruction, and whether it is an approximation.
    List,
    /// Runs every case on a device and writes one file with the device's name.
    Record {
        /// cuda:N, or sim to try the recording itself.
        #[arg(long, value_name = "DEVICE", default_value = "cuda:0")]
        device: Choice,
        /// Folder to write to.
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
        /// Folder of fatbins to run in place of the PTX.
        #[arg(long, value_name = "FOLDER")]
        fatbins: Option<PathBuf>,
    },
    /// Runs the simulator and compares it with recordings, or with a device now.
    Compare {
        /// A recording or a folder of them.
        #[arg(long, value_name = "PATH", required_unless_present = "device", conflicts_with = "device")]
        against: Option<PathBuf>,
        /// cuda:N, or sim: the simulator again with its warps in another order.
        #[arg(long, value_name = "DEVICE")]
        device: Option<Choice>,
        /// Folder of fatbins to run in place of the PTX.
        #[arg(long, value_name = "FOLDER", requires = "device")]
        fatbins: Option<PathBuf>,
        /// Writes the results there, too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

#[derive(Clone, Copy)]
enum Choice {
    Simulator,
    Gpu(usize),
}

impl FromStr for Choice {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        match text.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(ordinal)) => Ok(Choice::Gpu(ordinal)),
            None if text == "sim" => Ok(Choice::Simulator),
            _ => Err("devices are sim, cuda:0, cuda:1, …"),
        }
    }
}

impl Choice {
    fn runner(self, fatbins: Option<PathBuf>) -> Result<Box<dyn Runner>> {
        Ok(match self {
            Choice::Simulator => Box::new(Simulator::new(None, Schedule::Reversed)),
            Choice::Gpu(ordinal) => Box::new(Gpu::new(ordinal, fatbins.map_or(Image::Ptx, Image::Fatbins))?),
        })
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all is well.
fn run(command: Command) -> Result<bool> {
    let suite = Suite::carried()?;
    match command {
        Command::List => {
            for case in &suite.cases {
                let inputs = case.input.len() * 8 / case.input_bits as usize;
                let kind = if case.tolerance().is_some() { "approximation" } else { "exact" };
                println!(
                    "{}\t{}\t{} threads\t{inputs} × {} bits in\t{} × {} bits out\t{kind}\t{}",
                    case.name,
                    case.source.name,
                    case.n,
                    case.input_bits,
                    case.output_count,
                    case.output_bits,
                    case.instruction
                );
            }
            Ok(true)
        }
        Command::Record { device, out, fatbins } => {
            let recording = Recording::of(&mut *device.runner(fatbins)?, &suite)?;
            let path = recording.write(&suite, &out)?;
            let bytes =
                fs::metadata(&path).map_err(|source| Error::File { path: path.clone(), source })?.len();
            println!("{}: {}, {} cases, {bytes} bytes", path.display(), title(&recording), suite.cases.len());
            Ok(true)
        }
        Command::Compare { against, device, fatbins, json } => {
            let expected = match (against, device) {
                (Some(path), _) => read(&path)?,
                (None, Some(device)) => vec![Recording::of(&mut *device.runner(fatbins)?, &suite)?],
                (None, None) => unreachable!("clap asks for one of them"),
            };
            let mut summaries = vec![];
            for expected in &expected {
                let got = Recording::of(&mut Simulator::like(&expected.identity), &suite)?;
                let mut summary =
                    Summary { expected: title(expected), got: title(&got), ..Summary::default() };
                for case in &suite.cases {
                    summary.add(case, &expected.outcome(case), &got.outcome(case));
                }
                println!("{summary}");
                summaries.push(summary);
            }
            if let Some(path) = json {
                let text = serde_json::to_string_pretty(&summaries).expect("plain data");
                fs::write(&path, text + "\n").map_err(|source| Error::File { path: path.clone(), source })?;
            }
            Ok(summaries.iter().all(Summary::agrees))
        }
    }
}

fn read(path: &Path) -> Result<Vec<Recording>> {
    if path.is_file() {
        return Ok(vec![Recording::read(path)?]);
    }
    let found: Vec<_> = recordings(path)?.into_iter().map(|(_, recording)| recording).collect();
    if found.is_empty() {
        let message = "no recording there: no GPU has been recorded yet; `record --device cuda:0 --out FOLDER` does on a machine with one";
        return Err(Error::Recording { path: path.into(), message: message.into() });
    }
    Ok(found)
}

fn title(recording: &Recording) -> String {
    let identity = &recording.identity;
    let driver = identity.driver.as_deref().map(|d| format!(", driver {d}")).unwrap_or_default();
    format!("{} ({}{driver})", identity.device, identity.code)
}
