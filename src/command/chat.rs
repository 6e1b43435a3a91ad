//! `warploom chat`: a conversation under the checkpoint's own template, turn by turn from stdin.

use std::{
    io::{BufRead, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::{Value, json};
use warploom::{
    Error, Result,
    backend::Cpu,
    decode::{Finished, Generator, Limits, Observer, Request, Sampling, Stop},
    error::printable,
    model::Llama,
    text::{ChatTemplate, Message, StopStrings, TextStream, Tokenizer},
};

use super::{
    input, interrupt,
    model::{Loaded, ModelArgs},
    options::{DraftArgs, Drafting, SamplingArgs},
    output,
};

/// Positions of a conversation where `--context` does not say, if the model has as many.
const DEFAULT_CONTEXT: usize = 4096;
/// Most bytes of a turn.
const LINE_LIMIT: u64 = 1 << 20;
/// Most bytes of a tools file.
const TOOLS_LIMIT: u64 = 4 << 20;

/// Talk to a model under its own chat template
///
/// Each line of stdin is a turn, blank lines apart; answers go to stdout. /exit or the end of stdin ends the
/// conversation, Ctrl-C an answer. What the cache holds of the conversation is not computed again.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  warploom chat -n 60
  warploom chat --temperature 0.8 --top-p 0.95 --seed 7 --system \"And it came to pass\"")]
pub struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// System message that the conversation begins with
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tool definitions for the template: a JSON list
    #[arg(long, value_name = "FILE")]
    tools: Option<PathBuf>,
    /// Most tokens of an answer [default: what the context has room for]
    #[arg(short = 'n', long, value_name = "N")]
    max_tokens: Option<usize>,
    /// End an answer before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    draft: DraftArgs,
    /// Print one JSON object a turn instead of the answer's text as it comes
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Those of loading the model; [`Error::Argument`] for a checkpoint without a chat template; a turn that the template
/// refuses, unless a user at a terminal can try another; [`Error::Capacity`] for a turn that the context has no room
/// for. An answer that fills the context ends the conversation with a note.
pub fn run(args: ChatArgs) -> Result<()> {
    let sampling = args.sampling.sampling()?;
    let stops = StopStrings::new(args.stop)?;
    let tools = args.tools.as_deref().map(read_tools).transpose()?;
    let loaded = Loaded::open(&args.model)?;
    let Some(template) = loaded.chat_template()? else {
        let reason = "this checkpoint has no chat template, so it is no chat model; use warploom generate";
        return Err(Error::argument("--model", reason));
    };
    let tokenizer = loaded.tokenizer()?;
    let llama = loaded.llama(DEFAULT_CONTEXT)?;
    let drafting = args.draft.drafting(llama.config().layers, loaded.default_drafting())?;
    let context = loaded.context(DEFAULT_CONTEXT)?;
    let limits = Limits { sequences: 1, context, max_draft: drafting.max_draft() };
    let interrupt = interrupt::flag();
    loaded.pool.install(|| {
        let mut generator = Generator::new(&llama, limits)?;
        generator.interrupt_with(interrupt);
        let chat = Chat {
            llama: &llama,
            tokenizer,
            template: &template,
            tools: tools.as_ref(),
            sampling,
            drafting,
            stops,
            eos: tokenizer.end_of_message_ids(&llama.config().eos),
            max_tokens: args.max_tokens.unwrap_or(context),
            context,
            json: args.json,
            interrupt,
            generator,
            slot: None,
            messages: args.system.map(|system| Message::new("system", system)).into_iter().collect(),
        };
        chat.run(&mut std::io::stdin().lock(), std::io::stdin().is_terminal())
    })
}

/// Reads a JSON list of tool definitions.
fn read_tools(path: &Path) -> Result<Value> {
    let text = input::read_text(path, TOOLS_LIMIT)?;
    match serde_json::from_str(&text) {
        Ok(tools @ Value::Array(_)) => Ok(tools),
        Ok(_) => Err(Error::file(path, "is JSON, but no list; tools are a list of definitions")),
        Err(error) => Err(Error::file(path, format!("is not JSON: {}", printable(&error.to_string())))),
    }
}

/// A conversation and all that its turns need.
struct Chat<'a> {
    llama: &'a Llama<Cpu>,
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
    tools: Option<&'a Value>,
    sampling: Sampling,
    drafting: Drafting,
    /// Copied for each answer.
    stops: StopStrings,
    /// Ids that end a message.
    eos: Vec<u32>,
    max_tokens: usize,
    context: usize,
    json: bool,
    interrupt: &'a AtomicBool,
    generator: Generator<'a, Cpu>,
    /// The conversation's place in the generator, from the first turn on.
    slot: Option<usize>,
    messages: Vec<Message>,
}

impl Chat<'_> {
    /// Takes turns from `stdin` until it ends, or says `/exit`.
    fn run(mut self, stdin: &mut dyn BufRead, terminal: bool) -> Result<()> {
        for number in 1.. {
            if terminal {
                // Where stderr is closed, there is only no prompt.
                let _ = write!(std::io::stderr(), "> ").and_then(|()| std::io::stderr().flush());
            }
            let Some(line) = read_line(stdin, number)? else { break };
            let line = line.trim_end_matches(['\n', '\r']);
            match line.trim() {
                "" => continue,
                "/exit" => break,
                _ => {}
            }
            // Ctrl-C at the prompt was meant for no answer.
            if terminal {
                self.interrupt.store(false, Ordering::Relaxed);
            }
            self.messages.push(Message::new("user", line));
            let prompt = match self.tokenizer.encode_chat(self.template, &self.messages, self.tools, true) {
                Ok(prompt) => prompt,
                Err(error) if terminal => {
                    output::note(&format!("error: {error}"));
                    self.messages.pop();
                    continue;
                }
                Err(error) => return Err(error),
            };
            if !self.turn(prompt, terminal)? || (!terminal && self.interrupt.load(Ordering::Relaxed)) {
                break;
            }
        }
        Ok(())
    }

    /// Answers the last message, whose conversation `prompt` is. False if nobody reads the answers any more.
    fn turn(&mut self, prompt: Vec<u32>, terminal: bool) -> Result<bool> {
        if prompt.len() >= self.context {
            return Err(self.full());
        }
        let request = Request {
            prompt: prompt.clone(),
            max_tokens: self.max_tokens,
            sampling: self.sampling,
            policy: self.drafting.build(self.llama.config().layers)?,
            eos: self.eos.clone(),
        };
        let slot = match self.slot {
            Some(slot) => {
                self.generator.resume(slot, request)?;
                slot
            }
            None => *self.slot.insert(self.generator.start(request)?),
        };
        let mut answer = Answer {
            stream: TextStream::new(self.tokenizer),
            stops: self.stops.clone(),
            text: String::new(),
            streamed: !self.json,
            written: Ok(true),
        };
        while self.generator.stopped(slot).is_none() {
            self.generator.round(&mut answer)?;
        }
        let (text, mut reading) = answer.end()?;
        let Some(finished) = self.generator.peek(slot) else { return Ok(false) };
        if reading {
            let line =
                if self.json { format!("{}\n", turn_json(&prompt, &text, &finished)) } else { "\n".into() };
            reading = output::write(&line)?;
        }
        if terminal && !self.json {
            output::note(&self.summary(&prompt, &finished));
        }
        self.messages.push(Message::new("assistant", text));
        match finished.stop {
            Some(Stop::Context) => {
                output::note(&format!("note: {}", self.full()));
                Ok(false)
            }
            _ => Ok(reading),
        }
    }

    fn full(&self) -> Error {
        Error::Capacity {
            what: "the conversation".into(),
            needed: format!("more than {} positions", self.context),
            available: format!(
                "that is its context: begin a new one, or raise --context (at most {})",
                self.llama.config().context
            ),
        }
    }

    fn summary(&self, prompt: &[u32], finished: &Finished) -> String {
        let stats = &finished.stats;
        let kept = stats
            .acceptance()
            .map_or(String::new(), |kept| format!(", {:.0} % of drafts kept", 100.0 * kept));
        format!(
            "[{} tokens, {:.1} tokens/s{kept}; {} of {} positions]",
            finished.ids.len(),
            stats.decode_tokens_per_s(),
            prompt.len() + finished.ids.len(),
            self.context
        )
    }
}

fn turn_json(prompt: &[u32], text: &str, finished: &Finished) -> Value {
    let stats = &finished.stats;
    json!({
        "prompt_ids": prompt,
        "ids": finished.ids,
        "text": text,
        "stop": finished.stop.map(Stop::name),
        "prefill_tokens": stats.prefill_tokens,
        "prefill_tokens_per_s": stats.prefill_tokens_per_s(),
        "decode_tokens_per_s": stats.decode_tokens_per_s(),
        "rounds": stats.rounds,
        "drafted": stats.drafted,
        "accepted": stats.accepted,
    })
}

/// An answer on its way from ids to stdout.
struct Answer<'a> {
    stream: TextStream<'a>,
    stops: StopStrings,
    text: String,
    /// Whether the text is shown as it comes.
    streamed: bool,
    /// Whether stdout still takes text.
    written: Result<bool>,
}

impl Observer for Answer<'_> {
    fn token(&mut self, _slot: usize, id: u32) -> Option<Stop> {
        let piece = self.stream.push(id)?;
        let stopped = self.stops.push(&piece);
        self.show(&stopped.text);
        match (stopped.stop, &self.written) {
            (Some(_), _) => Some(Stop::String),
            (None, Ok(true)) => None,
            // Nobody reads on.
            (None, _) => Some(Stop::Interrupted),
        }
    }
}

impl Answer<'_> {
    fn show(&mut self, text: &str) {
        self.text += text;
        if self.streamed && matches!(self.written, Ok(true)) {
            self.written = output::write(text);
        }
    }

    /// Shows what was held back. Returns the whole text, and whether stdout still takes more.
    fn end(self) -> Result<(String, bool)> {
        let Answer { stream, mut stops, mut text, streamed, mut written } = self;
        let rest = stops.push(&stream.flush()?).text + &stops.flush();
        text += &rest;
        if streamed && matches!(written, Ok(true)) {
            written = output::write(&rest);
        }
        Ok((text, written?))
    }
}

/// The next line of `stdin`, line `number` for errors; None at its end.
fn read_line(stdin: &mut dyn BufRead, number: usize) -> Result<Option<String>> {
    let refuse = |reason: String| Error::argument(format!("line {number} of stdin"), reason);
    let mut line = Vec::new();
    let mut bounded = stdin.take(LINE_LIMIT + 1);
    bounded.read_until(b'\n', &mut line).map_err(|error| Error::io("stdin", error))?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() as u64 > LINE_LIMIT {
        return Err(refuse(format!("is longer than {} MiB, the most for a turn", LINE_LIMIT >> 20)));
    }
    let text = String::from_utf8(line);
    text.map(Some)
        .map_err(|error| refuse(format!("is not UTF-8 (byte {})", error.utf8_error().valid_up_to())))
}
