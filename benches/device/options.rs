//! What the benchmarks of a device are asked for.

use std::path::PathBuf;

/// The options.
pub struct Options {
    /// As `--device` of the command takes it.
    pub device: String,
    /// Everything once, scaled down: shows that it runs, measures nothing.
    pub smoke: bool,
    /// Fewer shapes and less time for each.
    pub quick: bool,
    /// Where `<device>/<date>.json` goes.
    pub results: PathBuf,
    /// Rows whose name and shape contain it.
    pub filter: Option<String>,
}

const HELP: &str = "\
Measures the CUDA kernels and models on a device, and writes benches/results/<device>/<date>.json.

    cargo bench --features cuda --bench kernels -- [OPTIONS] [FILTER]
    cargo bench --features cuda --bench models -- [OPTIONS] [FILTER]

    FILTER             rows whose \"name shape\" contains it
    --device DEVICE    cuda:0, cuda:1, … or sim [default: $WARPLOOM_DEVICE, or else cuda:0]
    --quick            fewer shapes, less time for each
    --smoke            every row once, scaled down, without timing anything; on the simulator unless --device says otherwise
    --results FOLDER   [default: benches/results; with --smoke target/smoke-results]

The commit in the results is $WARPLOOM_COMMIT, or else git's.";

impl Options {
    /// From the command line; Err: the text to show and the exit code.
    pub fn parse() -> Result<Options, (String, u8)> {
        let mut options = Options {
            device: std::env::var("WARPLOOM_DEVICE").unwrap_or_default(),
            smoke: false,
            quick: false,
            results: PathBuf::new(),
            filter: None,
        };
        let wrong = |text: String| Err((format!("error: {text}; see --help"), 2));
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value =
                || arguments.next().ok_or_else(|| (format!("error: {argument} what? see --help"), 2));
            match argument.as_str() {
                "-h" | "--help" => return Err((HELP.into(), 0)),
                "--device" => options.device = value()?,
                "--results" => options.results = value()?.into(),
                "--smoke" => options.smoke = true,
                "--quick" => options.quick = true,
                // Cargo says it to every benchmark.
                "--bench" => {}
                other if other.starts_with('-') => return wrong(format!("unknown option {other}")),
                other if options.filter.is_none() => options.filter = Some(other.into()),
                other => return wrong(format!("a second filter, {other}")),
            }
        }
        if options.device.is_empty() {
            options.device = if options.smoke { "sim" } else { "cuda:0" }.into();
        }
        if options.device == "sim" && !options.smoke {
            return wrong("the simulator measures nothing: it takes --smoke".into());
        }
        if options.results.as_os_str().is_empty() {
            options.results = if options.smoke { "target/smoke-results" } else { "benches/results" }.into();
        }
        Ok(options)
    }
}
