//! What `benches/kernels.rs` and `benches/models.rs` share: a device, ceilings measured before anything else, rows measured by
//! criterion, and the results file.
//!
//! Start from [`main`]. Inputs are random. A row's launches rotate over as many copies of their inputs as exceed the L2 cache, and are
//! recorded in one graph, so that what is timed is the device; a sample is the time of whole replays between two events of the device, over
//! the launches in them. Medians are of 30 samples, after a warm-up.
#![allow(dead_code, reason = "each of the two uses its part")]

mod clock;
mod host;
mod options;
mod random;

use std::{
    cell::RefCell,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

pub use clock::{Clock, Queue};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use host::{clocks, commit, smi};
pub use options::Options;
#[allow(unused_imports, reason = "models alone are loaded")]
pub use random::checkpoint;
use warploom::{
    Error, Result,
    driver::{self, Buffer, Family, Launch, Stream},
    kernels::{CUDA_VERSION, Kernels},
    results::{Device, Kind, Row, Run, SCHEMA, Span, Spread, folder_name},
};

/// Samples of a row.
const SAMPLES: usize = 30;
/// Bytes that ceilings copy, and half of those that they read.
const CEILING_BYTES: usize = 2 << 30;
/// Launches of a graph that are few and short.
const LAUNCHES: usize = 20;
/// A launch that moves so much is long enough by itself.
const LONG_BYTES: u64 = 64 << 20;
const LONG_FLOP: u64 = 100_000_000_000;
/// Most copies of a row's inputs.
const MOST_COPIES: usize = 64;

/// A launch, over inputs of its own.
pub type Work = Box<dyn Fn(&Kernels, &Stream) -> Result<()>>;

/// Makes a launch over inputs that it allocates.
pub type Make = Box<dyn Fn(&Bench) -> Result<Work>>;

/// A row that is to be measured.
pub struct Case {
    /// Name, shape, bytes, FLOP and ceiling.
    pub row: Row,
    /// Bytes of inputs and outputs of one copy, for rotation.
    pub footprint: usize,
    /// Makes the launch of one more copy.
    pub make: Make,
}

/// A device while it is measured.
pub struct Bench {
    pub options: Options,
    pub queue: Arc<Queue>,
    pub kernels: Kernels,
    run: Run,
    path: std::path::PathBuf,
    /// What large buffers are filled with.
    noise: Vec<u8>,
    begun: Instant,
    /// Rows of this program's.
    kept: usize,
}

/// Which rows a benchmark makes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Section {
    Kernels,
    Models,
}

/// Runs a benchmark: ceilings, what `rows` measures, the results file.
pub fn main(rows: impl FnOnce(&mut Bench) -> Result<()>) -> ExitCode {
    let options = match Options::parse() {
        Ok(options) => options,
        Err((text, 0)) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
        Err((text, code)) => {
            eprintln!("{text}");
            return ExitCode::from(code);
        }
    };
    let done = Bench::new(options).and_then(|mut bench| {
        bench.ceilings()?;
        rows(&mut bench)?;
        bench.finish()
    });
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Bench {
    fn new(options: Options) -> Result<Bench> {
        // Cargo runs benchmarks in the package's folder; the archive of scripts/pack-gpu anywhere.
        let driver = driver::open(&options.device)?;
        let properties = driver.properties().clone();
        let stream = Stream::new(&driver)?;
        let kernels = Kernels::load(&driver)?;
        let (date, (commit, dirty)) = (today(), commit());
        let path = Run::path(&options.results, &properties.name, &date);
        let (major, minor) = properties.capability;
        let device = Device {
            kind: if options.device == "sim" { Kind::Sim } else { Kind::Cuda },
            capability: format!("{major}.{minor}"),
            multiprocessors: properties.multiprocessors,
            memory_bytes: properties.memory_bytes,
            l2_bytes: properties.l2_bytes,
            driver: smi(&options.device, "driver_version").map(|answer| answer.join(" ")),
            cuda: Some(format!("{}.{}", CUDA_VERSION / 1000, CUDA_VERSION % 1000 / 10)),
            name: properties.name,
        };
        let run = match path.exists() && !options.smoke {
            true => Run::read(&path)?,
            // A smoke run's of before is nothing to go on with.
            false => Run {
                schema: SCHEMA,
                date,
                commit: commit.clone(),
                dirty,
                quick: options.quick,
                device: device.clone(),
                clocks: Span::default(),
                ceilings: vec![],
                kernels: vec![],
                models: vec![],
                peers: vec![],
            },
        };
        if (&run.commit, run.dirty, run.quick) != (&commit, dirty, options.quick) {
            let of = |commit: &str, dirty: bool, quick: bool| {
                format!(
                    "{commit}{}{}",
                    if dirty { ", changed" } else { "" },
                    if quick { ", --quick" } else { "" }
                )
            };
            let reason = format!(
                "is of {}, and this is {}: move it away, or give another --results",
                of(&run.commit, run.dirty, run.quick),
                of(&commit, dirty, options.quick)
            );
            return Err(Error::File { path, reason });
        }
        let noise = random::noise(if options.smoke { 1 << 16 } else { 8 << 20 });
        let queue = Arc::new(Queue { driver, stream });
        let mut bench = Bench { options, queue, kernels, run, path, noise, begun: Instant::now(), kept: 0 };
        // One that another program began lacks some of it.
        bench.run.device = device;
        let clocks = clocks(&bench.options.device);
        bench.run.clocks.before = bench.run.clocks.before.take().or(clocks);
        Ok(bench)
    }

    /// Bytes of L2, at least.
    fn l2(&self) -> usize {
        self.queue.driver.properties().l2_bytes as usize
    }

    /// Free memory is not asked for: rows that need more than this of the device's are left out.
    pub fn most_bytes(&self) -> usize {
        (self.queue.driver.properties().memory_bytes / 2) as usize
    }

    /// Whether the filter leaves the row.
    pub fn is_asked_for(&self, name: &str, shape: &str) -> bool {
        self.options.filter.as_ref().is_none_or(|filter| format!("{name} {shape}").contains(filter.as_str()))
    }

    /// Random numbers: finite as bf16, f32 and e4m3, of magnitude 1 or a little less.
    pub fn random(&self, bytes: usize) -> Result<Buffer> {
        let mut buffer = Buffer::new(&self.queue.driver, bytes)?;
        let mut done = bytes.min(self.noise.len());
        let stream = &self.queue.stream;
        stream.upload(&mut buffer.view_mut().part(0..done), &self.noise[..done])?;
        while done < bytes {
            // An odd distance, so that rows are not those before them.
            let count = done.min(bytes - done);
            stream.copy_within(&mut buffer.view_mut(), 0..count, done)?;
            done += count;
        }
        Ok(buffer)
    }

    /// Sums of squares and other numbers that must be over 0.
    pub fn positive(&self, bytes: usize) -> Result<Buffer> {
        let mut buffer = Buffer::new(&self.queue.driver, bytes)?;
        self.queue.stream.fill(&mut buffer.view_mut(), 0x3c)?;
        Ok(buffer)
    }

    pub fn zeros(&self, bytes: usize) -> Result<Buffer> {
        let mut buffer = Buffer::new(&self.queue.driver, bytes)?;
        self.queue.stream.fill(&mut buffer.view_mut(), 0)?;
        Ok(buffer)
    }

    pub fn numbers(&self, numbers: impl IntoIterator<Item = usize>) -> Result<Buffer> {
        let numbers: Vec<i32> = numbers.into_iter().map(|n| n as i32).collect();
        Buffer::from_slice(&self.queue.stream, &numbers)
    }

    /// What the device can do. A product of the vendor's library is measured by `scripts/compare-torch`, into the same file.
    fn ceilings(&mut self) -> Result<()> {
        let bytes = if self.options.smoke { 1 << 20 } else { CEILING_BYTES };
        let shape = |bytes: usize| match bytes >> 30 {
            0 => format!("{} MiB", bytes >> 20),
            gib => format!("{gib} GiB"),
        };
        let uploaded = self.upload(bytes / 8, shape(bytes / 8))?;
        let (from, to) = (self.random(bytes)?, self.random(bytes)?);
        let row = Row {
            bytes: Some(2 * bytes as u64),
            ceiling: Some("copy".into()),
            ..Row::new("copy", shape(bytes))
        };
        let copied = self
            .measure(row, vec![Box::new(move |_, stream| stream.copy(from.view(), &mut to.view_to_share()))]);
        let sweep = Arc::new(ReadSweep::new(self, 2 * bytes)?);
        let row = Row {
            bytes: Some(2 * bytes as u64),
            ceiling: Some("read".into()),
            ..Row::new("read", shape(2 * bytes))
        };
        let launch = sweep.clone();
        let read = self.measure(row, vec![Box::new(move |_, stream| launch.launch(stream))]);
        sweep.check(&self.queue.stream)?;
        for mut row in [copied, read, uploaded] {
            if let Some(error) = row.error {
                return Err(Error::device(&self.run.device.name, format!("ceiling {}: {error}", row.name)));
            }
            // Of itself.
            row.share = Some(1.0);
            Run::put(&mut self.run.ceilings, [row]);
        }
        Ok(())
    }

    /// How fast memory of the host comes to the device, as weights do.
    fn upload(&self, bytes: usize, shape: String) -> Result<Row> {
        let row =
            Row { bytes: Some(bytes as u64), ceiling: Some("upload".into()), ..Row::new("upload", shape) };
        let data: Vec<u8> = self.noise.iter().copied().cycle().take(bytes).collect();
        let to = RefCell::new(Buffer::new(&self.queue.driver, bytes)?);
        Ok(self.sample(row, Clock::Events(self.queue.clone()), 1.0, |times| {
            let mut to = to.borrow_mut();
            self.queue
                .time(|| (0..times).try_for_each(|_| self.queue.stream.upload(&mut to.view_mut(), &data)))
        }))
    }

    /// Measures the rows that are asked for, one after the other.
    pub fn cases(&mut self, cases: Vec<Case>) -> Result<()> {
        let cases: Vec<Case> =
            cases.into_iter().filter(|case| self.is_asked_for(&case.row.name, &case.row.shape)).collect();
        let count = cases.len();
        for (i, Case { row, footprint, make }) in cases.into_iter().enumerate() {
            let copies = (2 * self.l2()).div_ceil(footprint.max(1)).clamp(1, MOST_COPIES);
            let works: Result<Vec<Work>> = (0..copies).map(|_| make(self)).collect();
            let row = match works {
                Ok(works) => self.measure(row, works),
                // Not enough memory, say: the other rows go on.
                Err(error) => Row { error: Some(error.to_string()), ..row },
            };
            self.keep(Section::Kernels, row, i + 1, count)?;
        }
        Ok(())
    }

    /// Keeps a row, shows it, and writes the file, so that a run that is cut off keeps what it has.
    pub fn keep(&mut self, section: Section, mut row: Row, number: usize, count: usize) -> Result<()> {
        row.settle(&self.run.ceilings);
        let seconds = self.begun.elapsed().as_secs();
        println!("[{number}/{count}, {}:{:02}] {}", seconds / 60, seconds % 60, self.line(&row));
        let rows = match section {
            Section::Kernels => &mut self.run.kernels,
            Section::Models => &mut self.run.models,
        };
        Run::put(rows, [row]);
        self.kept += 1;
        // A smoke run's file is written once, at the end.
        if self.options.smoke { Ok(()) } else { self.run.write(&self.path) }
    }

    /// A row for people.
    fn line(&self, row: &Row) -> String {
        let name = format!("{} {}", row.name, row.shape);
        if let Some(error) = &row.error {
            return format!("{name}: failed: {error}");
        }
        if self.options.smoke {
            return format!("{name}: ran");
        }
        let Some(spread) = row.seconds else { return name };
        let mut line =
            format!("{name}: {:.2} µs ± {:.0} %", 1e6 * spread.median, 50.0 * spread.relative_iqr());
        if let Some(tokens) = row.tokens_per_s() {
            line += &format!(", {tokens:.1} tokens/s");
        }
        match (row.flop_per_s(), row.bytes_per_s()) {
            (Some(rate), _) if row.ceiling.as_deref() == Some("matmul bf16") => {
                line += &format!(", {:.1} TFLOP/s", rate / 1e12)
            }
            (_, Some(rate)) => line += &format!(", {:.0} GB/s", rate / 1e9),
            _ => {}
        }
        match (row.share, &row.ceiling) {
            (Some(share), Some(ceiling)) => line += &format!(", {:.0} % of {ceiling}", 100.0 * share),
            (None, Some(ceiling)) => line += &format!(", no ceiling \"{ceiling}\" in this run"),
            _ => {}
        }
        line
    }

    /// Measures launches, used in turn, in one graph.
    fn measure(&self, row: Row, works: Vec<Work>) -> Row {
        let long = row.bytes.is_some_and(|bytes| bytes > LONG_BYTES)
            || row.flop.is_some_and(|flop| flop > LONG_FLOP);
        let launches = match (self.options.smoke, long) {
            (true, _) => works.len(),
            (_, true) => works.len(),
            (_, false) => works.len().max(LAUNCHES),
        };
        let stream = &self.queue.stream;
        let graph = stream
            .capture(|| works.iter().cycle().take(launches).try_for_each(|work| work(&self.kernels, stream)));
        let graph = match graph {
            Ok(graph) => graph,
            Err(error) => return Row { error: Some(error.to_string()), ..row },
        };
        let replay = |times: u64| {
            self.queue.time(|| {
                (0..times).try_for_each(|_| {
                    // SAFETY: what the launches address belongs to `works`, which outlives the graph, and all of it has
                    // run when `time` returns.
                    unsafe { stream.launch_graph(&graph) }
                })
            })
        };
        self.sample(row, Clock::Events(self.queue.clone()), launches as f64, replay)
    }

    /// Measures `run`, which does the row's work `per_run · n` times for n and says how long that took in seconds.
    pub fn sample(&self, mut row: Row, clock: Clock, per_run: f64, run: impl Fn(u64) -> Result<f64>) -> Row {
        let failed = RefCell::new(None);
        let samples = RefCell::new(vec![]);
        // Criterion counts in units of the row's work.
        let mut once = |count: u64| {
            let runs = (count as f64 / per_run).ceil().max(1.0);
            let seconds = match failed.borrow().is_none() {
                true => run(runs as u64),
                false => Ok(1.0),
            };
            let seconds = seconds.unwrap_or_else(|error| {
                *failed.borrow_mut() = Some(error.to_string());
                1.0
            });
            // The simulator's events may have come at once.
            let each = (seconds / (runs * per_run)).max(1e-12);
            samples.borrow_mut().push(each);
            Duration::from_secs_f64((each * count as f64).max(1e-9))
        };
        if self.options.smoke {
            once(1);
        } else {
            let (warm, measured) = if self.options.quick { (30, 120) } else { (100, 500) };
            let mut criterion = Criterion::default()
                .with_measurement(clock)
                .without_plots()
                .sample_size(SAMPLES)
                .warm_up_time(Duration::from_millis(warm))
                .measurement_time(Duration::from_millis(measured))
                .nresamples(1000);
            let mut group = criterion.benchmark_group(&row.name);
            group.sampling_mode(SamplingMode::Flat);
            // In what its ceiling is in.
            let computes = row.ceiling.as_deref() == Some("matmul bf16");
            match (row.flop.filter(|_| computes), row.bytes) {
                (Some(flop), _) => drop(group.throughput(Throughput::Elements(flop))),
                (None, Some(bytes)) => drop(group.throughput(Throughput::BytesDecimal(bytes))),
                _ => {}
            }
            group.bench_function(BenchmarkId::from_parameter(&row.shape), |b| b.iter_custom(&mut once));
            group.finish();
        }
        let (failed, samples) = (failed.into_inner(), samples.into_inner());
        // Those before were the warm-up.
        let samples = &samples[samples.len().saturating_sub(SAMPLES)..];
        match failed {
            Some(error) => row.error = Some(error),
            None => {
                row.seconds = Spread::of(samples);
                row.samples = samples.len() as u32;
            }
        }
        row
    }

    fn finish(mut self) -> Result<ExitCode> {
        if let (0, Some(filter)) = (self.kept, &self.options.filter) {
            return Err(Error::argument("FILTER", format!("no row's name and shape contain '{filter}'")));
        }
        self.run.clocks.after = clocks(&self.options.device);
        self.run.write(&self.path)?;
        let rows = self.run.kernels.iter().chain(&self.run.models);
        let failed: Vec<&Row> = rows.filter(|row| row.error.is_some()).collect();
        let (count, folder) =
            (self.run.kernels.len() + self.run.models.len(), folder_name(&self.run.device.name));
        println!("{count} rows of {folder}, {} of them failed: {}", failed.len(), self.path.display());
        Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Reads device memory and does nothing else.
struct ReadSweep {
    function: driver::Function,
    memory: Buffer,
    /// u32, one for a thread.
    sums: Buffer,
    ctas: u32,
}

const READ_THREADS: u32 = 256;
static READ_SWEEP: Family = Family {
    name: "read_sweep",
    // The driver takes PTX as well.
    fatbin: include_bytes!("read_sweep.ptx"),
    fatbin_ptx: "80",
    ptx: include_str!("read_sweep.ptx"),
    entries: &[],
};

impl ReadSweep {
    fn new(bench: &Bench, bytes: usize) -> Result<ReadSweep> {
        let driver = &bench.queue.driver;
        let function = driver::Module::load(driver, &READ_SWEEP)?.function("read_sweep")?;
        // Eight CTAs of 256 threads fill a multiprocessor.
        let ctas = if bench.options.smoke { 2 } else { 8 * driver.properties().multiprocessors };
        let memory = bench.random(bytes)?;
        Ok(ReadSweep { function, memory, sums: bench.zeros((4 * ctas * READ_THREADS) as usize)?, ctas })
    }

    fn launch(&self, stream: &Stream) -> Result<()> {
        let vectors = self.memory.bytes() as u64 / 16;
        let p = [self.memory.view().address(), vectors, self.sums.view().address()];
        let launch = Launch {
            grid: [self.ctas, 1, 1],
            block: [READ_THREADS, 1, 1],
            ..Launch::new(bytemuck::cast_slice(&p))
        };
        // SAFETY: the kernel reads `vectors` vectors of `memory` and writes one sum of each thread, for which there is room.
        unsafe { stream.launch(&self.function, &launch) }
    }

    /// Whether it read everything, and that once: the exclusive or of all.
    fn check(&self, stream: &Stream) -> Result<()> {
        let (mut sums, mut memory) = (vec![0u32; self.sums.bytes() / 4], vec![0u32; 1 << 18]);
        stream.download(self.sums.view(), &mut sums)?;
        let mut expected = 0;
        for begin in (0..self.memory.bytes()).step_by(size_of_val(&memory[..])) {
            memory.resize(memory.len().min((self.memory.bytes() - begin) / 4), 0);
            stream.download(self.memory.view().slice(begin..begin + 4 * memory.len()), &mut memory)?;
            expected ^= memory.iter().fold(0, |sum, x| sum ^ x);
        }
        match sums.iter().fold(0, |sum, x| sum ^ x) == expected {
            true => Ok(()),
            false => Err(Error::argument("read", "the sweep did not read what is there")),
        }
    }
}

/// `YYYY-MM-DD` in UTC: now, or at SOURCE_DATE_EPOCH, so that programs of one run write to one file.
fn today() -> String {
    let given = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse::<u64>().ok());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // A year that has four digits.
    let seconds = given.filter(|seconds| *seconds < 253_402_300_800).unwrap_or_else(now);
    let mut day = seconds / 86_400;
    let leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut year = 1970;
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    let days = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while day >= days[month] {
        day -= days[month];
        month += 1;
    }
    format!("{year}-{:02}-{:02}", month + 1, day + 1)
}
