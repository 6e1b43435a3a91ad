//! `warploom compare`: plain and speculative decoding of one prompt, side by side.

use std::{fmt::Write as _, process::ExitCode};

use serde_json::{Value, json};
use warploom::{
    Error, Result,
    backend::Backend,
    checkpoint::footprint::{Footprint, speedup},
    decode::{Finished, Generator, Limits, Observer, Policy, Request, Sampling, Stats, Stop, logits_hash},
    model::Llama,
    text::Tokenizer,
};

use super::{
    interrupt,
    model::{Job, Loaded},
    options::{DecodeArgs, Drafting},
    output,
    report::{hex, histogram},
};

/// The prompt where none is given.
const PROMPT: &str = "In the beginning";

/// Decode a prompt plainly and speculatively, and show whether the tokens are equal and what each cost
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  warploom compare -n 32
  warploom compare --prompt \"And it came to pass\" -n 24 --exit-layer 2 --draft 3 --runs 1 --json")]
pub struct CompareArgs {
    #[command(flatten)]
    decode: DecodeArgs,
    /// Timed runs of each kind, in turns after an untimed one; the medians are shown
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command. Its exit code is a failure if greedy outputs differ. Ctrl-C ends it with what has been
/// measured: of the tokens, those that both sides had generated are compared.
///
/// # Errors
/// Those of loading and decoding; [`Error::Argument`] for options out of range.
pub fn run(args: CompareArgs) -> Result<ExitCode> {
    let CompareArgs { decode, runs, json } = args;
    let sampling = decode.sampling.sampling()?;
    if !(1..=1000).contains(&runs) {
        return Err(Error::argument("--runs", format!("{runs} is out of range; allowed are 1 to 1000")));
    }
    if decode.max_tokens == 0 {
        return Err(Error::argument("-n", "0 tokens cannot be compared; ask for at least 1"));
    }
    let loaded = Loaded::open(&decode.model)?;
    let layers = loaded.checkpoint.config.layers;
    let default =
        Drafting { policy: Policy::Fixed, exit_layer: (layers / 4).max(1), draft: 4, threshold: None };
    let drafting = decode.drafting.drafting(layers, loaded.default_drafting().or(Some(default)))?;
    if drafting.policy == Policy::Off {
        return Err(Error::argument(
            "--policy",
            "off leaves nothing to compare; take fixed, length or confidence",
        ));
    }
    let prompt = match decode.prompt.ids(&loaded)? {
        Some(ids) => ids,
        None => loaded.tokenizer()?.encode_prompt(PROMPT)?,
    };
    let plan = Plan { prompt, max_tokens: decode.max_tokens, runs, sampling, drafting };
    let Some(comparison) = loaded.run(plan.needed(), BothSides { loaded: &loaded, plan: &plan })? else {
        output::note("interrupted before there was anything to compare");
        return Ok(ExitCode::FAILURE);
    };
    let text = if json {
        format!("{:#}\n", comparison.json())
    } else {
        comparison.table(loaded.optional_tokenizer.as_ref())?
    };
    output::write(&text)?;
    let failed = sampling.is_greedy() && !comparison.is_equal();
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// One way of decoding.
struct Side {
    /// Ids and costs of the untimed run; every run gives the same ids.
    finished: Finished,
    /// Hash of the logits that each id was chosen from.
    hashes: Vec<u64>,
    /// Decoded tokens per second of each timed run.
    rates: Vec<f64>,
}

impl Side {
    fn is_interrupted(&self) -> bool {
        self.finished.stop == Some(Stop::Interrupted)
    }

    /// Forgets the tokens after the first `count`.
    fn cut(&mut self, count: usize) {
        self.finished.ids.truncate(count);
        self.hashes.truncate(count);
        self.finished.logits_hash = self.hashes.last().copied().unwrap_or_default();
    }

    /// The median rate; of the untimed run, where there was no other.
    fn rate(&self) -> f64 {
        if self.rates.is_empty() {
            return self.stats().decode_tokens_per_s();
        }
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    }

    fn stats(&self) -> &Stats {
        &self.finished.stats
    }
}

/// What both sides gave.
struct Comparison {
    plain: Side,
    speculative: Side,
    layers: usize,
    drafting: Drafting,
    greedy: bool,
    /// Speed-up by the cost formula at the acceptance and mean draft length that were measured.
    predicted: f64,
    /// Whether Ctrl-C left out tokens or timed runs.
    interrupted: bool,
}

/// What to decode, how, and how often.
struct Plan {
    prompt: Vec<u32>,
    max_tokens: usize,
    runs: usize,
    sampling: Sampling,
    drafting: Drafting,
}

impl Plan {
    /// Positions that it takes.
    fn needed(&self) -> usize {
        self.prompt.len().saturating_add(self.max_tokens)
    }
}

/// Both sides of a plan. None if Ctrl-C came before both had generated something.
struct BothSides<'a> {
    loaded: &'a Loaded,
    plan: &'a Plan,
}

impl Job for BothSides<'_> {
    type Output = Option<Comparison>;
    fn run<B: Backend>(self, llama: &Llama<B>) -> Result<Option<Comparison>> {
        compare(llama, self.loaded, self.plan)
    }
}

/// Runs both sides in turns on one generator: first with hashes of the logits, then against the clock.
fn compare<B: Backend>(llama: &Llama<B>, loaded: &Loaded, plan: &Plan) -> Result<Option<Comparison>> {
    let Plan { sampling, drafting, .. } = *plan;
    let needed = plan.needed();
    let config = llama.config();
    let context = loaded.context(needed)?.min(needed);
    let limits = Limits { sequences: 1, context, max_draft: drafting.max_draft(config.layers)? };
    let mut generator = Generator::new(llama, limits)?;
    generator.interrupt_with(interrupt::flag());
    let mut decode = |speculative: bool, observer: &mut dyn Observer| -> Result<Finished> {
        let policy = if speculative { drafting.build(config.layers)? } else { None };
        let slot = generator.start(Request {
            prompt: plan.prompt.clone(),
            max_tokens: plan.max_tokens,
            sampling,
            policy,
            eos: config.eos.clone(),
        })?;
        while generator.is_active() {
            generator.round(observer)?;
        }
        generator.finish(slot).ok_or_else(|| Error::argument("slot", "the sequence was lost"))
    };
    let mut checked = |speculative| -> Result<Side> {
        let mut hashes = Hashes(Vec::new());
        let finished = decode(speculative, &mut hashes)?;
        Ok(Side { finished, hashes: hashes.0, rates: Vec::new() })
    };
    let (mut plain, mut speculative) = (checked(false)?, checked(true)?);
    let mut interrupted = plain.is_interrupted() || speculative.is_interrupted();
    if interrupted {
        // Of the side that came further, what the other has not reached cannot be compared.
        let both = plain.finished.ids.len().min(speculative.finished.ids.len());
        if both == 0 {
            return Ok(None);
        }
        plain.cut(both);
        speculative.cut(both);
    }
    for _ in 0..plan.runs {
        if interrupted {
            break;
        }
        let (first, second) = (decode(false, &mut |_, _| None)?, decode(true, &mut |_, _| None)?);
        interrupted = [&first, &second].iter().any(|finished| finished.stop == Some(Stop::Interrupted));
        if !interrupted {
            plain.rates.push(first.stats.decode_tokens_per_s());
            speculative.rates.push(second.stats.decode_tokens_per_s());
        }
    }
    let footprint = Footprint::of_checkpoint(&loaded.checkpoint)?;
    let stats = speculative.stats();
    let draft = stats.drafted as f64 / stats.rounds.max(1) as f64;
    // a·d + 1 are the tokens of a round, but where a draft that ended the drafting is kept: its round ends with it. It also costs less, having
    // no row of its own, so that the formula is a lower bound there.
    let kept = if draft > 0.0 { (stats.tokens_per_round() - 1.0) / draft } else { 0.0 };
    let predicted = speedup(config.layers, footprint.head_in_layers(), stats.exit_layer, draft, kept);
    Ok(Some(Comparison {
        plain,
        speculative,
        layers: config.layers,
        drafting,
        greedy: sampling.is_greedy(),
        predicted,
        interrupted,
    }))
}

/// Hashes the logits of every token.
struct Hashes(Vec<u64>);

impl Observer for Hashes {
    fn token(&mut self, _slot: usize, _id: u32) -> Option<Stop> {
        None
    }

    fn logits(&mut self, _slot: usize, logits: &[f32]) {
        self.0.push(logits_hash(logits));
    }
}

impl Comparison {
    /// The first index at which `a` and `b` differ, the end of the shorter included.
    fn first_difference<T: PartialEq>(a: &[T], b: &[T]) -> Option<usize> {
        let equal = a.iter().zip(b).take_while(|(a, b)| a == b).count();
        (equal < a.len().max(b.len())).then_some(equal)
    }

    fn ids(&self) -> [&[u32]; 2] {
        [&self.plain.finished.ids, &self.speculative.finished.ids]
    }

    fn ids_differ_at(&self) -> Option<usize> {
        let [plain, speculative] = self.ids();
        Self::first_difference(plain, speculative)
    }

    fn logits_differ_at(&self) -> Option<usize> {
        Self::first_difference(&self.plain.hashes, &self.speculative.hashes)
    }

    fn is_equal(&self) -> bool {
        self.ids_differ_at().is_none() && self.logits_differ_at().is_none()
    }

    fn speedup(&self) -> f64 {
        self.speculative.rate() / self.plain.rate()
    }

    fn json(&self) -> Value {
        let side = |side: &Side| {
            let stats = side.stats();
            json!({
                "ids": side.finished.ids,
                "stop": side.finished.stop.map(Stop::name),
                "decode_tokens_per_s": side.rate(),
                "runs": side.rates,
                "rounds": stats.rounds,
                "drafted": stats.drafted,
                "accepted": stats.accepted,
                "acceptance": stats.acceptance(),
                "tokens_per_round": stats.tokens_per_round(),
                "logits_hash": hex(side.finished.logits_hash),
            })
        };
        json!({
            "equal": self.is_equal(),
            "interrupted": self.interrupted,
            "first_difference": self.ids_differ_at(),
            "logits_first_difference": self.logits_differ_at(),
            "speedup": self.speedup(),
            "predicted_speedup": self.predicted,
            "policy": self.drafting.policy.name(),
            "exit_layer": self.drafting.exit_layer,
            "draft": self.drafting.draft,
            "plain": side(&self.plain),
            "speculative": side(&self.speculative),
        })
    }

    fn table(&self, tokenizer: Option<&Tokenizer>) -> Result<String> {
        let mut out = String::new();
        let mut row = |label: &str, plain: String, speculative: String, note: String| {
            let line = format!("{label:<16}{plain:>18}{speculative:>18}   {note}");
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{}", line.trim_end());
        };
        let (plain, speculative) = (self.plain.stats(), self.speculative.stats());
        let Drafting { policy, exit_layer, draft, .. } = self.drafting;
        row("", "plain".into(), "speculative".into(), String::new());
        row(
            "decode tokens/s",
            format!("{:.1}", self.plain.rate()),
            format!("{:.1}", self.speculative.rate()),
            format!("{:.2}×, by the formula {:.2}×", self.speedup(), self.predicted),
        );
        row("tokens", plain.generated.to_string(), speculative.generated.to_string(), String::new());
        row(
            "rounds",
            plain.rounds.to_string(),
            speculative.rounds.to_string(),
            format!("exit layer {exit_layer} of {}, draft {draft} ({policy})", self.layers),
        );
        row(
            "tokens/round",
            format!("{:.2}", plain.tokens_per_round()),
            format!("{:.2}", speculative.tokens_per_round()),
            format!("accepted {}", histogram(&speculative.histogram)),
        );
        let acceptance = speculative.acceptance().map_or("none".into(), |a| format!("{a:.2}"));
        row(
            "acceptance",
            String::new(),
            acceptance,
            format!("{} of {} drafts", speculative.accepted, speculative.drafted),
        );
        row(
            "last logits",
            hex(self.plain.finished.logits_hash),
            hex(self.speculative.finished.logits_hash),
            String::new(),
        );
        out += "\n";
        if self.interrupted {
            let runs = self.plain.rates.len();
            let _ = writeln!(
                out,
                "interrupted after {runs} timed runs; compared is what both sides had generated"
            );
        }
        out += &self.verdict(tokenizer)?;
        Ok(out)
    }

    /// Whether both are equal, or where they part.
    fn verdict(&self, tokenizer: Option<&Tokenizer>) -> Result<String> {
        let [plain, speculative] = self.ids();
        let Some(at) = self.ids_differ_at() else {
            return Ok(match self.logits_differ_at() {
                None => {
                    format!("equal: {} ids, and the logits behind each of them bit for bit\n", plain.len())
                }
                Some(at) => {
                    format!("different: the ids are equal, but not the logits from token {} on\n", at + 1)
                }
            });
        };
        let mut out = match self.greedy {
            true => format!("different at token {}:\n", at + 1),
            false => format!(
                "sampled: the texts part at token {}; both are draws from the same distribution\n",
                at + 1
            ),
        };
        for (label, ids) in [("plain", plain), ("speculative", speculative)] {
            let id = ids.get(at).map_or("the end".into(), u32::to_string);
            let (token, text) = match tokenizer {
                Some(tokenizer) => {
                    let token = ids.get(at).map(|id| tokenizer.token_text(*id));
                    (token.map_or(String::new(), |token| format!(" {token:?}")), tokenizer.decode(ids, true)?)
                }
                None => (String::new(), format!("{ids:?}")),
            };
            let _ = writeln!(out, "  {label:<12} {id}{token} in: {text:?}");
        }
        Ok(out)
    }
}
