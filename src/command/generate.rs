//! `warploom generate`: text that goes on from a prompt, as it comes, and what it cost.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Read},
    path::{Path, PathBuf},
};

use clap::{Args, Command, error::ErrorKind};
use warploom::{
    Error, Result,
    backend::{Backend, Recordings},
    checkpoint::RopeScaling,
    model::Llama,
    text::StopStrings,
};

use super::{
    batch::{Batch, Listener, Outcome},
    interrupt,
    model::{Job, Loaded},
    options::DecodeArgs,
    output,
    report::{Run, Setting},
};

/// Largest file of prompts: their texts and ids are kept in memory.
const PROMPTS_LIMIT: u64 = 8 << 20;
/// Most prompts of a file.
const PROMPTS_MOST: usize = 100_000;

/// Generate text from a prompt, plainly or with early-exit self-speculative decoding
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  warploom generate --prompt \"In the beginning\" -n 32
  warploom generate --prompt \"And he said\" -n 16 --temperature 0.8 --top-p 0.9 --seed 7 --exit-layer 2 --draft 3 --json")]
pub struct GenerateArgs {
    #[command(flatten)]
    decode: DecodeArgs,
    /// File with a prompt a line, decoded as one batch; each text is what it would be alone
    #[arg(long, value_name = "FILE", conflicts_with = "one_prompt")]
    prompts: Option<PathBuf>,
    /// End the text before TEXT (may be given several times)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Print one JSON object, or one a line with --prompts, instead of the text
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Those of loading and decoding; [`Error::Argument`] for options out of range. Without a prompt it ends the process
/// with a usage error.
pub fn run(args: GenerateArgs) -> Result<()> {
    let decode = &args.decode;
    let sampling = decode.sampling.sampling()?;
    StopStrings::new(args.stop.clone())?;
    let lines = args.prompts.as_deref().map(read_lines).transpose()?;
    if lines.is_none() && decode.prompt.is_none() {
        GenerateArgs::augment_args(Command::new("warploom generate"))
            .error(
                ErrorKind::MissingRequiredArgument,
                "a prompt is needed, for example: warploom generate --prompt \"In the beginning\"",
            )
            .exit();
    }
    let loaded = Loaded::open(&decode.model)?;
    if !args.stop.is_empty() {
        // A stop string is looked for in the text, and there is none without a tokenizer.
        loaded.tokenizer()?;
    }
    let drafting = decode.drafting.drafting(loaded.checkpoint.config.layers, loaded.default_drafting())?;
    let prompts = match (&lines, decode.prompt.ids(&loaded)?) {
        (Some(lines), _) => {
            let encode = |(at, line): (usize, &String)| {
                loaded.encode("--prompts", &format!("line {}: ", at + 1), line)
            };
            lines.iter().enumerate().map(encode).collect::<Result<Vec<_>>>()?
        }
        (None, prompt) => prompt.into_iter().collect(),
    };
    let batch = Batch {
        prompts: &prompts,
        max_tokens: decode.max_tokens,
        sampling,
        drafting,
        stops: &args.stop,
        tokenizer: loaded.optional_tokenizer.as_ref(),
    };
    let context = loaded.context(batch.needed())?;
    if lines.is_some() {
        check_batch(&loaded, &batch, context)?;
    }
    interrupt::flag();
    let generation =
        Generation { loaded: &loaded, batch: &batch, context, json: args.json, streaming: lines.is_none() };
    loaded.run(batch.needed(), generation)
}

/// Decodes a batch and prints what comes of it.
struct Generation<'a> {
    loaded: &'a Loaded,
    batch: &'a Batch<'a>,
    context: usize,
    json: bool,
    streaming: bool,
}

impl Job for Generation<'_> {
    type Output = ();
    fn run<B: Backend>(self, llama: &Llama<B>) -> Result<()> {
        let Generation { loaded, batch, context, json, streaming } = self;
        let setting = Setting { loaded, backend: llama.backend().name(), drafting: batch.drafting };
        let mut printer = Printer {
            setting: &setting,
            prompts: batch.prompts,
            json,
            streaming,
            ended: BTreeMap::new(),
            next: 0,
            run: Run::default(),
            at_line_start: true,
        };
        let (seconds, recordings) = batch.run(llama, context, &mut printer)?;
        printer.close(seconds, recordings)
    }
}

/// The prompts of a file, one a line.
fn read_lines(path: &Path) -> Result<Vec<String>> {
    let metadata = std::fs::metadata(path).map_err(|error| Error::io(path, error))?;
    if !metadata.is_file() {
        return Err(Error::file(path, "is not a regular file"));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| Error::io(path, error))?;
    file.take(PROMPTS_LIMIT + 1).read_to_end(&mut bytes).map_err(|error| Error::io(path, error))?;
    if bytes.len() as u64 > PROMPTS_LIMIT {
        return Err(Error::file(path, format!("is larger than {} MiB; split it", PROMPTS_LIMIT >> 20)));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        Error::file(path, format!("is not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
    })?;
    if text.lines().count() > PROMPTS_MOST {
        return Err(Error::file(path, format!("has more than {PROMPTS_MOST} lines; split it")));
    }
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if lines.is_empty() {
        return Err(Error::file(path, "holds no prompt; write one a line"));
    }
    match lines.iter().position(String::is_empty) {
        Some(empty) => {
            Err(Error::file(path, format!("line {} is empty; a prompt needs some text", empty + 1)))
        }
        None => Ok(lines),
    }
}

/// Finds what is wrong with a batch before any of it is decoded.
fn check_batch(loaded: &Loaded, batch: &Batch, context: usize) -> Result<()> {
    if let Some(long) = batch.prompts.iter().position(|prompt| prompt.len() >= context) {
        let tokens = batch.prompts[long].len();
        let reason = format!(
            "line {}: its {tokens} tokens leave no room in a context of {context}: shorten it or raise --context",
            long + 1
        );
        return Err(Error::argument("--prompts", reason));
    }
    let config = &loaded.checkpoint.config;
    let stretches = matches!(config.rope.scaling, RopeScaling::Dynamic { .. });
    if stretches && context > config.max_positions && !loaded.has_context() {
        let reason = format!(
            "is needed: beyond {} positions the angles of dynamic RoPE scaling depend on the context, \
             which would depend on the longest prompt",
            config.max_positions
        );
        return Err(Error::argument("--context", reason));
    }
    Ok(())
}

/// Prints texts or objects in the order of the prompts.
struct Printer<'a> {
    setting: &'a Setting<'a>,
    prompts: &'a [Vec<u32>],
    json: bool,
    /// Print text as it comes; of several prompts each is printed when it and those before it have ended.
    streaming: bool,
    ended: BTreeMap<usize, Outcome>,
    next: usize,
    run: Run,
    at_line_start: bool,
}

impl Printer<'_> {
    fn print(&mut self, text: &str) -> Result<bool> {
        if let Some(last) = text.chars().last() {
            self.at_line_start = last == '\n';
        }
        output::write(text)
    }

    /// Prints the outcomes that are next in order.
    fn print_ended(&mut self) -> Result<bool> {
        while let Some(outcome) = self.ended.remove(&self.next) {
            let index = self.next;
            self.next += 1;
            let text = match (self.json, self.streaming) {
                (true, _) => {
                    let prompt = &self.prompts[index];
                    format!("{}\n", self.setting.json(prompt, &outcome.finished, outcome.text.as_deref()))
                }
                (false, true) => continue,
                (false, false) => outcome.continuation.unwrap_or_else(|| join(&outcome.finished.ids)) + "\n",
            };
            if !self.print(&text)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn close(mut self, seconds: f64, recordings: Option<Recordings>) -> Result<()> {
        if self.next < self.prompts.len() {
            // The reader of stdout has gone.
            return Ok(());
        }
        // stdout carries the generated text alone, but a shell's prompt belongs on a line of its own.
        if !self.at_line_start && std::io::stdout().is_terminal() {
            self.print("\n")?;
        }
        if self.json {
            return Ok(());
        }
        // So does the summary, also where both streams end in one pipe.
        if !self.at_line_start {
            output::note("");
        }
        self.run.seconds = seconds;
        self.run.recordings = recordings;
        output::note(&self.setting.summary(&self.run));
        Ok(())
    }
}

impl Listener for Printer<'_> {
    fn text(&mut self, _index: usize, text: &str) -> Result<bool> {
        if self.streaming && !self.json { self.print(text) } else { Ok(true) }
    }

    fn ids(&mut self, _index: usize, ids: &[u32]) -> Result<bool> {
        if !self.streaming || self.json {
            return Ok(true);
        }
        let separator = if self.at_line_start { "" } else { "," };
        let text = format!("{separator}{}", join(ids));
        self.print(&text)
    }

    fn ended(&mut self, index: usize, outcome: Outcome) -> Result<bool> {
        self.run.add(&outcome.finished);
        self.ended.insert(index, outcome);
        self.print_ended()
    }
}

/// Ids as `--prompt-ids` takes them.
fn join(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}
