//! `warploom chat`: a conversation under the checkpoint's own template, turn by turn from stdin.

use std::{
    io::{BufRead, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::{Value, json};
use warploom::{
    Error, Result,
    backend::Backend,
    decode::{Finished, Generator, Limits, Observer, Request, Sampling, Stop},
    error::printable,
    model::Llama,
    text::{ChatTemplate, Message, StopStrings, TextStream, Tokenizer, ToolCall},
};

use super::{
    input, interrupt,
    model::{Job, Loaded, ModelArgs},
    options::{DraftArgs, Drafting, SamplingArgs},
    output, progress,
};

/// Positions of a conversation where `--context` does not say, if the model has as many.
const DEFAULT_CONTEXT: usize = 4096;
/// Most bytes of a turn.
const LINE_LIMIT: u64 = 1 << 20;
/// Most bytes of a tools file.
const TOOLS_LIMIT: u64 = 1 << 20;
/// Begins a line with a tool's answer.
const TOOL: &str = "/tool";

/// Talk to a model under its own chat template
///
/// Each line of stdin is a turn, blank lines apart; answers go to stdout. /exit or the end of stdin ends the
/// conversation, Ctrl-C an answer. What the cache holds of the conversation is not computed again.
///
/// With --tools the model may answer with calls, as JSON. Run them yourself, and give what each returned in a line
/// that begins with /tool: `/tool 22 degrees`. The model goes on when every call of its answer has its line, in order.
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
/// refuses or the context has no room for ([`Error::Capacity`]), unless a user at a terminal can try another. An answer
/// that fills the context ends the conversation with a note.
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
    let config = &loaded.checkpoint.config;
    let drafting = args.draft.drafting(config.layers, loaded.default_drafting())?;
    let context = loaded.context(DEFAULT_CONTEXT)?;
    let talk = Talk {
        tokenizer,
        template: &template,
        tools: tools.as_ref(),
        sampling,
        drafting,
        stops,
        eos: tokenizer.end_of_message_ids(&config.eos),
        max_tokens: args.max_tokens.unwrap_or(context),
        context,
        json: args.json,
        interrupt: interrupt::flag(),
        messages: args.system.map(|system| Message::new("system", system)).into_iter().collect(),
        unanswered: Vec::new(),
    };
    loaded.run(DEFAULT_CONTEXT, talk)
}

impl Job for Talk<'_> {
    type Output = ();
    fn run<B: Backend>(self, llama: &Llama<B>) -> Result<()> {
        let max_draft = self.drafting.max_draft(llama.config().layers)?;
        let limits = Limits { sequences: 1, context: self.context, max_draft };
        let mut generator = Generator::new(llama, limits)?;
        generator.interrupt_with(self.interrupt);
        let chat = Chat {
            talk: self,
            generator,
            slot: None,
            layers: llama.config().layers,
            positions: llama.config().context,
        };
        chat.run(&mut std::io::stdin().lock(), std::io::stdin().is_terminal())
    }
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

/// A conversation and all that its turns need but the model.
struct Talk<'a> {
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
    messages: Vec<Message>,
    /// Ids of the last answer's calls that wait for a tool's answer, the last one first.
    unanswered: Vec<String>,
}

/// A conversation with a model.
struct Chat<'a, 'm, B: Backend> {
    talk: Talk<'a>,
    generator: Generator<'m, B>,
    /// The conversation's place in the generator, from the first turn on.
    slot: Option<usize>,
    /// The model's layers.
    layers: usize,
    /// Most positions that the model has.
    positions: usize,
}

impl<B: Backend> Chat<'_, '_, B> {
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
                self.talk.interrupt.store(false, Ordering::Relaxed);
            }
            let before = (self.talk.messages.clone(), self.talk.unanswered.clone());
            let prompt = match hear(&mut self.talk.messages, &mut self.talk.unanswered, line)
                .and_then(|whole| whole.then(|| self.prompt()).transpose())
            {
                Ok(Some(prompt)) => prompt,
                Ok(None) => continue,
                // A template that does not end is still running: only the end of the process ends it.
                Err(error) if terminal && !self.talk.template.is_stuck() => {
                    output::note(&format!("error: {error}"));
                    (self.talk.messages, self.talk.unanswered) = before;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if !self.turn(prompt, terminal)? || (!terminal && self.talk.interrupt.load(Ordering::Relaxed)) {
                break;
            }
        }
        Ok(())
    }

    /// The ids of the conversation.
    fn prompt(&self) -> Result<Vec<u32>> {
        // Room for an answer of one token at least.
        let most = self.talk.context - 1;
        let ids = self.talk.tokenizer.encode_chat_within(
            self.talk.template,
            &self.talk.messages,
            self.talk.tools,
            true,
            most,
        )?;
        ids.ok_or_else(|| self.full())
    }

    /// Answers the last message, whose conversation `prompt` is. False if nobody reads the answers any more.
    fn turn(&mut self, prompt: Vec<u32>, terminal: bool) -> Result<bool> {
        let request = Request {
            prompt: prompt.clone(),
            max_tokens: self.talk.max_tokens,
            sampling: self.talk.sampling,
            policy: self.talk.drafting.build(self.layers)?,
            eos: self.talk.eos.clone(),
        };
        progress::again();
        let slot = match self.slot {
            Some(slot) => {
                self.generator.resume(slot, request)?;
                slot
            }
            None => *self.slot.insert(self.generator.start(request)?),
        };
        let mut answer = Answer {
            stream: TextStream::new(self.talk.tokenizer),
            stops: self.talk.stops.clone(),
            text: String::new(),
            streamed: !self.talk.json,
            written: Ok(true),
        };
        while self.generator.stopped(slot).is_none() {
            self.generator.round(&mut answer)?;
        }
        let (text, mut reading) = answer.end()?;
        let Some(finished) = self.generator.peek(slot) else { return Ok(false) };
        if reading {
            let line = if self.talk.json {
                format!("{}\n", turn_json(&prompt, &text, &finished))
            } else {
                "\n".into()
            };
            reading = output::write(&line)?;
        }
        if terminal && !self.talk.json {
            output::note(&self.summary(&prompt, &finished));
        }
        self.talk.messages.push(Message::new("assistant", text));
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
            needed: format!("more than {} positions", self.talk.context),
            available: format!(
                "that is its context: shorten the message{}, begin a new one, or raise --context (at most {})",
                if self.talk.tools.is_some() { " or --tools" } else { "" },
                self.positions
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
            self.talk.context
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

    fn wants_logits(&self) -> bool {
        false
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

/// Adds what a line says to the conversation. False if calls of the last answer still wait for theirs,
/// whose ids `unanswered` holds, the last one first.
fn hear(messages: &mut Vec<Message>, unanswered: &mut Vec<String>, line: &str) -> Result<bool> {
    let answer = match line.strip_prefix(TOOL) {
        Some(rest) if rest.is_empty() || rest.starts_with(' ') => rest.trim(),
        _ => {
            unanswered.clear();
            messages.push(Message::new("user", line));
            return Ok(true);
        }
    };
    let known = messages.iter().map(|message| message.tool_calls.len()).sum();
    match messages.last_mut() {
        Some(last) if last.role == "assistant" => {
            let calls = ToolCall::parse(&last.content, known);
            if !calls.is_empty() {
                // Templates write calls in the form that the model was trained on.
                *unanswered = calls.iter().rev().map(|call| call.id.clone()).collect();
                (last.content, last.tool_calls) = (String::new(), calls);
            }
        }
        Some(last) if last.role == "tool" && !unanswered.is_empty() => {}
        _ => {
            let reason = "answers a call, and the model has made none: begin with a message of your own";
            return Err(Error::argument(TOOL, reason));
        }
    }
    let tool_call_id = unanswered.pop();
    messages.push(Message { tool_call_id, ..Message::new("tool", answer) });
    Ok(unanswered.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{Message, hear};

    #[test]
    fn every_call_is_answered_before_the_model_goes_on() {
        let calls = r#"[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"x": 1}}]"#;
        let mut messages = vec![Message::new("user", "Go"), Message::new("assistant", calls)];
        let mut unanswered = Vec::new();
        let mut say = |line: &str| hear(&mut messages, &mut unanswered, line);
        assert!(!say("/tool one").unwrap());
        assert!(say("/tool  two ").unwrap());
        assert!(say("/tool three").unwrap_err().to_string().contains("/tool"));
        let [_, asked, first, second] = &messages[..] else { panic!("{messages:?}") };
        assert_eq!((asked.content.as_str(), asked.tool_calls.len()), ("", 2));
        for (answer, call, content) in
            [(first, &asked.tool_calls[0], "one"), (second, &asked.tool_calls[1], "two")]
        {
            assert_eq!((answer.role.as_str(), answer.content.as_str()), ("tool", content));
            assert_eq!(answer.tool_call_id.as_ref(), Some(&call.id));
        }
        // A message of the user's own leaves the rest unanswered.
        messages.push(Message::new("assistant", calls));
        assert!(!hear(&mut messages, &mut unanswered, "/tool one").unwrap());
        assert_eq!((unanswered.len(), messages[4].tool_calls[0].id.as_str()), (1, "call00002"));
        assert!(hear(&mut messages, &mut unanswered, "Never mind").unwrap());
        assert!(unanswered.is_empty());
        assert!(hear(&mut messages, &mut unanswered, "/tool two").is_err());
    }
}
