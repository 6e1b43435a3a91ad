//! Which kernel is launched, and how: the options that `run` and `check` share.

use std::path::PathBuf;

use ptxsim::{
    Delivery, Device, Error, Gpu, Launch, Loaded, Module, Report, Schedule,
    numerics::matrix::Exact,
    param::{Inputs, Param, Placed},
};

use super::{
    output::{note, printable},
    source,
};

/// The kernel and its launch.
#[derive(clap::Args)]
pub struct LaunchArgs {
    /// PTX that nvcc made: nvcc --ptx -lineinfo kernel.cu
    #[arg(value_name = "KERNEL.PTX", required_unless_present = "gpu")]
    kernel: Option<PathBuf>,
    /// Entry to launch [default: the only one]
    #[arg(long, value_name = "NAME")]
    entry: Option<String>,
    /// CTAs along x, y, z
    #[arg(long, value_name = "X,Y,Z", default_value = "1", value_parser = sizes)]
    grid: [u32; 3],
    /// Threads of a CTA along x, y, z
    #[arg(long, value_name = "X,Y,Z", default_value = "32", value_parser = sizes)]
    block: [u32; 3],
    /// CTAs of a cluster along x, y, z
    #[arg(long, value_name = "X,Y,Z", default_value = "1", value_parser = sizes)]
    cluster: [u32; 3],
    /// Dynamic shared memory of a CTA in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    shared: u32,
    /// One parameter; repeat in order. TYPE:VALUE, bytes:HEX, buf:FILE.npy or
    /// buf:TYPE:COUNT[=fill:VALUE|=random:SEED|=FILE.npy] for a buffer, which without `=` nobody has written; with
    /// `>FILE.npy` at its end it is saved after the run. struct:[OFFSET@]MEMBER,... for a structure of these. Types: u8
    /// s8 u16 s16 u32 s32 u64 s64 f16 bf16 f32 f64; in a .npy file bf16 is <u2
    #[arg(long = "param", value_name = "PARAM", allow_hyphen_values = true)]
    params: Vec<Param>,
    /// GPU whose sizes and rates count: h100, h200, a100, l40s, rtx4090; or list, to print them
    #[arg(long, value_name = "NAME", default_value = "h100", value_parser = gpu)]
    gpu: Choice,
    /// Device memory in MiB, taken from this machine as it is used
    #[arg(long, value_name = "MIB", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    memory: u64,
    /// When asynchronous copies arrive: eager, lazy or random:SEED
    #[arg(long, value_name = "WHEN", value_parser = delivery)]
    pub delivery: Vec<Delivery>,
    /// Which warp runs next: in-order, reversed or random:SEED
    #[arg(long, value_name = "ORDER", value_parser = schedule)]
    pub schedule: Vec<Schedule>,
    /// Tensor cores that round as ampere's or hopper's do [default: plain f32 sums]
    #[arg(long, value_name = "ARCHITECTURE", value_parser = exact)]
    exact: Option<Exact>,
    /// Warp instructions after which a launch is given up
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Threads of this machine that run CTAs [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Folder with the CUDA sources, if they are not beside the PTX
    #[arg(long, value_name = "DIR")]
    pub source: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A GPU, or all of them.
#[derive(Clone)]
enum Choice {
    Of(Box<Gpu>),
    List,
}

/// One to three numbers with commas between them.
fn sizes(text: &str) -> Result<[u32; 3], String> {
    let mut sizes = [1; 3];
    let mut parts = text.split(',');
    for (size, part) in sizes.iter_mut().zip(&mut parts) {
        *size = part.trim().parse().map_err(|_| format!("{part:?} is no size"))?;
    }
    match parts.next() {
        None => Ok(sizes),
        Some(_) => Err("three sizes are the most: X,Y,Z".into()),
    }
}

fn gpu(name: &str) -> Result<Choice, String> {
    match Gpu::named(name) {
        _ if name == "list" => Ok(Choice::List),
        Some(gpu) => Ok(Choice::Of(Box::new(gpu))),
        None => Err(format!("no GPU of that name; there are {}", Gpu::ALL.map(|gpu| gpu.name).join(", "))),
    }
}

fn seed(text: &str) -> Option<u64> {
    text.strip_prefix("random:")?.parse().ok()
}

fn delivery(text: &str) -> Result<Delivery, String> {
    match text {
        "eager" => Ok(Delivery::Eager),
        "lazy" => Ok(Delivery::Lazy),
        _ => seed(text).map(Delivery::Random).ok_or_else(|| "eager, lazy or random:SEED".into()),
    }
}

fn schedule(text: &str) -> Result<Schedule, String> {
    match text {
        "in-order" => Ok(Schedule::InOrder),
        "reversed" => Ok(Schedule::Reversed),
        _ => seed(text).map(Schedule::Random).ok_or_else(|| "in-order, reversed or random:SEED".into()),
    }
}

fn exact(text: &str) -> Result<Exact, String> {
    match text {
        "ampere" => Ok(Exact::Ampere),
        "hopper" => Ok(Exact::Hopper),
        _ => Err("ampere or hopper".into()),
    }
}

/// `lazy delivery, random:1 schedule`, as the options write them.
pub fn policy_name(delivery: Delivery, schedule: Schedule) -> String {
    let delivery = match delivery {
        Delivery::Eager => "eager".into(),
        Delivery::Lazy => "lazy".into(),
        Delivery::Random(seed) => format!("random:{seed}"),
    };
    let schedule = match schedule {
        Schedule::InOrder => "in-order".into(),
        Schedule::Reversed => "reversed".into(),
        Schedule::Random(seed) => format!("random:{seed}"),
    };
    format!("{delivery} delivery, {schedule} schedule")
}

/// A kernel whose text, parameters and files have been read.
pub struct Job {
    pub path: PathBuf,
    pub text: String,
    pub module: Module,
    pub entry: String,
    pub gpu: Gpu,
    pub inputs: Inputs,
    pub launch: Launch,
    memory: u64,
    pool: rayon::ThreadPool,
}

/// A launch that has ended, and its memory.
pub struct Ended {
    pub report: Report,
    pub device: Device,
    pub placed: Placed,
}

impl LaunchArgs {
    /// Reads all that the launch needs. None if the list of GPUs was asked for instead, and has been printed.
    pub fn job(&self) -> Result<Option<Job>, String> {
        let gpu = match &self.gpu {
            Choice::Of(gpu) => (**gpu).clone(),
            Choice::List => {
                super::output::write(&super::report::gpus(self.json))?;
                return Ok(None);
            }
        };
        let Some(path) = self.kernel.clone() else {
            return Err("name a PTX file: ptxsim run KERNEL.PTX; --help shows examples".into());
        };
        let text = source::read(&path)?;
        let at = |e: Error| format!("{}: {e}", printable(&path.to_string_lossy()));
        let module = Module::parse(&text).map_err(at)?;
        let entry = match &self.entry {
            Some(entry) => entry.clone(),
            None => match module.entries().collect::<Vec<_>>()[..] {
                [one] => one.to_string(),
                [] => return Err(format!("{}: no entry in it", printable(&path.to_string_lossy()))),
                ref several => {
                    let names: Vec<String> = several.iter().take(8).map(|name| printable(name)).collect();
                    let more = if several.len() > 8 { ", …" } else { "" };
                    return Err(format!(
                        "choose one of the entries with --entry: {}{more}",
                        names.join(", ")
                    ));
                }
            },
        };
        module.entry(&entry).map_err(at)?;
        let memory = self.memory << 20;
        let inputs = Inputs::load(&self.params, memory).map_err(|e| e.to_string())?;
        let threads = usize::from(self.threads.unwrap_or(0));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let defaults = Launch::default();
        let launch = Launch {
            grid: self.grid,
            block: self.block,
            cluster: self.cluster,
            shared_bytes: self.shared,
            exact: self.exact,
            step_limit: self.steps.unwrap_or(defaults.step_limit),
            ..defaults
        };
        let pool = pool.map_err(|e| format!("cannot start threads: {e}"))?;
        Ok(Some(Job { path, text, module, entry, gpu, inputs, launch, memory, pool }))
    }
}

impl Job {
    /// Launches the kernel on a fresh device.
    pub fn launch(&self, launch: Launch) -> Result<Ended, String> {
        let at = |e: Error| match e {
            Error::Syntax { .. } | Error::Unsupported { .. } | Error::StepLimit { .. } => {
                format!("{}: {e}", printable(&self.path.to_string_lossy()))
            }
            Error::Memory(_) => format!("{e}; --memory gives the device more"),
            e => e.to_string(),
        };
        let mut device = Device::with_memory(self.gpu.clone(), self.memory);
        let loaded: Loaded = device.load(Module::parse(&self.text).map_err(at)?).map_err(at)?;
        let placed = self.inputs.place(&mut device).map_err(at)?;
        let launch = Launch { arguments: placed.arguments.clone(), ..launch };
        let report = self.pool.install(|| device.launch(&loaded, &self.entry, &launch)).map_err(at)?;
        Ok(Ended { report, device, placed })
    }

    /// Saves the buffers that are to be saved, with a warning for those that hold bytes which nobody wrote.
    pub fn save(&self, ended: &mut Ended) -> Result<(), String> {
        let unwritten = self.inputs.save(&mut ended.device, &ended.placed).map_err(|e| e.to_string())?;
        for path in unwritten {
            let path = printable(&path.to_string_lossy());
            note(&format!("warning: {path} holds bytes that nobody wrote; they are saved as 0xff"));
        }
        Ok(())
    }
}
