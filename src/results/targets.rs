//! What the project wants to reach on an H100, line by line, and whether a run reached it.
//!
//! Start from [`TARGETS`]. Ceilings and peers are those of the same run: a line without them is not measured.

use super::{CpuRun, Row, Run, shapes};

/// One line.
pub struct Target {
    /// What is done.
    pub what: &'static str,
    /// What is to be reached.
    pub goal: &'static str,
    judge: Judge,
}

enum Judge {
    Gpu(fn(&Run) -> Option<Verdict>),
    Cpu(fn(&CpuRun) -> Option<Verdict>),
}

/// Whether a line was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// Measured, and reached.
    Met,
    /// Measured, and not reached.
    Short,
    /// Something of it was not measured.
    NotMeasured,
}

impl Met {
    /// As tables have it.
    pub fn name(self) -> &'static str {
        match self {
            Met::Met => "met",
            Met::Short => "short",
            Met::NotMeasured => "not measured",
        }
    }
}

/// Whether a line was reached, and by what figures.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Whether.
    pub met: Met,
    /// The figures, in the order of the line's shapes.
    pub figures: String,
}

impl Target {
    /// What a run on a GPU says of it; None for a line about CPUs.
    pub fn on_gpu(&self, run: &Run) -> Option<Verdict> {
        let Judge::Gpu(judge) = self.judge else { return None };
        Some(judge(run).unwrap_or_else(not_measured))
    }

    /// What a comparison on a CPU says of it; None for a line about GPUs.
    pub fn on_cpu(&self, run: &CpuRun) -> Option<Verdict> {
        let Judge::Cpu(judge) = self.judge else { return None };
        Some(judge(run).unwrap_or_else(not_measured))
    }

    /// Whether it is about GPUs.
    pub fn is_of_gpus(&self) -> bool {
        matches!(self.judge, Judge::Gpu(_))
    }
}

/// Heads of attention benchmarks with as many of keys as of queries, and of Llama 3 8B.
pub const D128: [usize; 3] = [16, 16, 128];
/// The same of width 64.
pub const D64: [usize; 3] = [32, 32, 64];
/// Llama 3 8B's.
pub const LLAMA3_8B_HEADS: [usize; 3] = [32, 8, 128];
/// Rows of a prompt's batch: sequences are as many as make so many.
pub const PROMPT_ROWS: usize = 16384;
/// Outputs and inputs of Llama 3 8B's products, the head last.
pub const LLAMA3_8B_PRODUCTS: [(usize, usize); 5] =
    [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)];
/// Prompt and tokens of a generation that is measured.
pub const GENERATION: (usize, usize) = (128, 128);
/// Draft length of scripted rounds, and how many of the drafts are kept.
pub const SCRIPTED: (usize, [usize; 4]) = (4, [1, 2, 3, 4]);

/// Exit layer of scripted rounds: an eighth of the layers, one at least.
pub fn scripted_exit(layers: usize) -> usize {
    (layers / 8).max(1)
}

/// All lines.
pub const TARGETS: [Target; 15] = [
    gpu("attention, prompts, D 128 causal, 4k / 8k / 16k", "≥ the best backend of torch SDPA", |run| {
        beats(run, &prompts("causal", D128, &[4096, 8192, 16384]), "sdpa")
    }),
    gpu("attention, prompts, D 128 not causal, 4k / 8k / 16k", "≥ the best backend of torch SDPA", |run| {
        beats(run, &prompts("full", D128, &[4096, 8192, 16384]), "sdpa")
    }),
    gpu("attention, prompts, D 64 causal, 8k / 16k", "≥ the best backend of torch SDPA", |run| {
        beats(run, &prompts("causal", D64, &[8192, 16384]), "sdpa")
    }),
    gpu(
        "attention, prompts, window 1024 in 16k, D 128",
        "≤ 1.15 × the window's share of causal attention's pairs, and faster than FlexAttention",
        window,
    ),
    gpu("attention, prompts, sm_80 kernels on Hopper, causal 16k", "≥ FlashAttention-2", |run| {
        beats(run, &prompts("causal", D128, &[16384]), "sdpa flash")
    }),
    gpu("attention, decode, GQA 32/8, D 128, batch 32, 4k", "≥ 85 % of the read ceiling", |run| {
        shares(
            run,
            &run.kernels,
            &[("attention_decode", shapes::decode(LLAMA3_8B_HEADS, 32, 1, 4096))],
            "read",
            0.85,
        )
    }),
    gpu("attention, decode, batch 1, 1k / 4k / 16k", "≤ 7 / 10 / 18 µs", |run| {
        let of = |keys, most| (("attention_decode", shapes::decode(LLAMA3_8B_HEADS, 1, 1, keys)), most);
        within(run, &[of(1024, 7e-6), of(4096, 10e-6), of(16384, 18e-6)])
    }),
    gpu("RMSNorm, N 4096 / 8192", "≥ 95 % of the copy ceiling", |run| {
        let of = |width| ("rms_norm", shapes::matrix(PROMPT_ROWS, width));
        shares(run, &run.kernels, &[of(4096), of(8192)], "copy", 0.95)
    }),
    gpu(
        "SwiGLU; RoPE with writing of K and V",
        "≥ 90 % of the copy ceiling; ≤ 3 µs at one token",
        |run| {
            let [q, kv, d] = LLAMA3_8B_HEADS;
            let of = |rows| {
                [("swiglu", shapes::matrix(rows, 14336)), ("rope_append", shapes::rotation(rows, q, kv, d))]
            };
            let [swiglu, rope] = of(1);
            both(
                shares(run, &run.kernels, &of(PROMPT_ROWS), "copy", 0.9)?,
                within(run, &[(swiglu, 3e-6), (rope, 3e-6)])?,
            )
        },
    ),
    gpu(
        "skinny linear, 1 to 16 rows, Llama 3 8B's products",
        "≥ 90 % of the read ceiling; 16 rows ≤ 1.1 × 1 row",
        skinny,
    ),
    gpu("Llama 3 8B shape, bf16, batch 1, decode", "≥ 85 % of the read roofline", |run| {
        plain(run, "llama3-8b", 0.85)
    }),
    gpu("Llama 3.2 1B shape, batch 1, decode", "≥ 80 % of the read roofline", |run| {
        plain(run, "llama3.2-1b", 0.8)
    }),
    gpu(
        "a speculative round, Llama 3 8B shape, scripted acceptance",
        "≤ 1.05 × its bytes over the read ceiling",
        |run| {
            let rows: Vec<_> = scripted("llama3-8b", 32).map(|shape| ("speculative decode", shape)).collect();
            shares(run, &run.models, &rows, "read", 1.0 / 1.05)
        },
    ),
    gpu(
        "self-speculative speed-up, Llama 3 8B shape, at scripted acceptances of 1 to 4 of 4",
        "≥ 95 % of what the bytes say, plain decoding at its own target",
        speedups,
    ),
    Target {
        what: "on a CPU, beside transformers: decode, prompts, early exit",
        goal: "faster",
        judge: Judge::Cpu(cpu),
    },
];

const fn gpu(what: &'static str, goal: &'static str, judge: fn(&Run) -> Option<Verdict>) -> Target {
    Target { what, goal, judge: Judge::Gpu(judge) }
}

fn not_measured() -> Verdict {
    Verdict { met: Met::NotMeasured, figures: String::new() }
}

fn verdict(met: bool, figures: Vec<String>) -> Verdict {
    Verdict { met: if met { Met::Met } else { Met::Short }, figures: figures.join(", ") }
}

fn both(a: Verdict, b: Verdict) -> Option<Verdict> {
    Some(verdict(a.met == Met::Met && b.met == Met::Met, vec![a.figures, b.figures]))
}

/// A name and a shape.
type Wanted = (&'static str, String);

fn prompts(mask: &str, heads: [usize; 3], rows: &[usize]) -> Vec<Wanted> {
    let shape = |rows: &usize| shapes::prompt(mask, heads, PROMPT_ROWS / rows, *rows);
    rows.iter().map(|rows| ("attention_prefill", shape(rows))).collect()
}

fn find<'r>(rows: &'r [Row], wanted: &Wanted) -> Option<&'r Row> {
    Run::ours(rows, wanted.0, &wanted.1)
}

fn median(row: &Row) -> Option<f64> {
    row.seconds.map(|spread| spread.median)
}

/// Our time is at most that of the fastest peer whose name begins so.
fn beats(run: &Run, wanted: &[Wanted], peer: &str) -> Option<Verdict> {
    let mut figures = vec![];
    let mut met = true;
    for wanted in wanted {
        let ours = median(find(&run.kernels, wanted)?)?;
        let peers = run.peers_of(wanted.0, &wanted.1).filter(|row| row.engine.starts_with(peer));
        let best = peers.filter_map(median).reduce(f64::min)?;
        met &= ours <= best;
        figures.push(format!("{:.2}×", best / ours));
    }
    Some(verdict(met, figures))
}

/// The share of a ceiling is at least so much.
fn shares(run: &Run, rows: &[Row], wanted: &[Wanted], ceiling: &str, least: f64) -> Option<Verdict> {
    let mut figures = vec![];
    let mut met = true;
    for wanted in wanted {
        let mut row = find(rows, wanted)?.clone();
        row.ceiling = Some(ceiling.into());
        row.settle(&run.ceilings);
        met &= row.share? >= least;
        figures.push(percent(row.share?));
    }
    Some(verdict(met, figures))
}

/// The median is at most so many seconds.
fn within(run: &Run, wanted: &[(Wanted, f64)]) -> Option<Verdict> {
    let mut figures = vec![];
    let mut met = true;
    for (wanted, most) in wanted {
        let seconds = median(find(&run.kernels, wanted)?)?;
        met &= seconds <= *most;
        figures.push(format!("{:.1} µs", 1e6 * seconds));
    }
    Some(verdict(met, figures))
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

fn window(run: &Run) -> Option<Verdict> {
    let [windowed, causal] =
        ["window 1024", "causal"].map(|mask| ("attention_prefill", shapes::prompt(mask, D128, 1, 16384)));
    let (row, full) = (find(&run.kernels, &windowed)?, find(&run.kernels, &causal)?);
    // Both count the pairs that are visible.
    let pairs = row.flop? as f64 / full.flop? as f64;
    let growth = median(row)? / median(full)? / pairs;
    let flex = beats(run, &[windowed], "flex")?;
    let growth = verdict(growth <= 1.15, vec![format!("{growth:.2} × its share")]);
    both(growth, Verdict { figures: format!("FlexAttention {}", flex.figures), ..flex })
}

fn skinny(run: &Run) -> Option<Verdict> {
    let of =
        |rows| LLAMA3_8B_PRODUCTS.map(|(outputs, inputs)| ("linear", shapes::product(rows, outputs, inputs)));
    let mut met = true;
    let mut least = f64::INFINITY;
    for rows in [1, 2, 4, 8, 16] {
        for wanted in of(rows) {
            let mut row = find(&run.kernels, &wanted)?.clone();
            row.ceiling = Some("read".into());
            row.settle(&run.ceilings);
            least = least.min(row.share?);
        }
    }
    met &= least >= 0.9;
    let mut most: f64 = 0.0;
    for (one, sixteen) in of(1).iter().zip(&of(16)) {
        most = most.max(median(find(&run.kernels, sixteen)?)? / median(find(&run.kernels, one)?)?);
    }
    met &= most <= 1.1;
    Some(verdict(
        met,
        vec![format!("{} at least", percent(least)), format!("16 rows {most:.2} × 1 row at most")],
    ))
}

/// The shape of a plain generation.
fn generation(model: &str) -> String {
    shapes::generation(model, 1, GENERATION.0, GENERATION.1)
}

/// Shapes of generations in scripted rounds.
fn scripted(model: &str, layers: usize) -> impl Iterator<Item = String> {
    let (draft, kept) = SCRIPTED;
    let generation = generation(model);
    kept.into_iter().map(move |kept| shapes::rounds(&generation, scripted_exit(layers), draft, kept))
}

fn plain(run: &Run, model: &str, least: f64) -> Option<Verdict> {
    let wanted = ("plain decode", generation(model));
    let verdict = shares(run, &run.models, std::slice::from_ref(&wanted), "read", least)?;
    let speed = find(&run.models, &wanted)?.tokens_per_s()?;
    Some(Verdict { figures: format!("{}, {speed:.0} tokens/s", verdict.figures), ..verdict })
}

/// Tokens per second over those of plain decoding, against tokens per byte over those of plain decoding.
fn speedups(run: &Run) -> Option<Verdict> {
    let own = plain(run, "llama3-8b", 0.85)?;
    let plain = find(&run.models, &("plain decode", generation("llama3-8b")))?;
    let mut figures = vec![];
    let mut met = own.met == Met::Met;
    for shape in scripted("llama3-8b", 32) {
        let row = find(&run.models, &("speculative decode", shape))?;
        let speed = row.tokens_per_s()? / plain.tokens_per_s()?;
        let per_byte = |row: &Row| Some(row.tokens? as f64 / row.bytes? as f64);
        let says = per_byte(row)? / per_byte(plain)?;
        met &= speed >= 0.95 * says;
        figures.push(format!("{speed:.2}× of {says:.2}×"));
    }
    figures.push(format!("plain decoding {}", own.met.name()));
    Some(verdict(met, figures))
}

/// Every task of every model, against the same of transformers.
fn cpu(run: &CpuRun) -> Option<Verdict> {
    let mut ratios = vec![];
    for row in run.models.iter().flat_map(|model| model.rows.iter().map(move |row| (model, row))) {
        let (model, row) = row;
        if row.engine != "transformers" {
            continue;
        }
        let ours = model.rows.iter().find(|ours| ours.engine == super::OURS && ours.task == row.task)?;
        ratios.push(ours.tokens_per_s[0] / row.tokens_per_s[0]);
    }
    let least = ratios.iter().copied().reduce(f64::min)?;
    Some(verdict(least > 1.0, vec![format!("{least:.1}× at least, of {} comparisons", ratios.len())]))
}
