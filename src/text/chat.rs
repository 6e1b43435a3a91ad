//! Chat templates: from a conversation to the text that the model was trained to continue.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind, State};
use serde::{Deserialize, Serialize};

use super::tokenizer::CONFIG_LIMIT;
use super::{guarded, json, read_file, text_error};
use crate::{Error, Result};

/// Work that one rendering may do: a unit per step and per 64 bytes, so 64 MB at most. A long conversation with
/// Llama 3.1's tools takes a hundredth.
const FUEL: u64 = 1_000_000;
/// Longest text that a template may give.
const OUTPUT_LIMIT: usize = 16 << 20;
/// Stack for a rendering. Dropping or printing a value takes stack in proportion to its nesting, which `FUEL` bounds;
/// pages that are not touched cost nothing.
const STACK: usize = 1 << 30;
/// Time for a rendering. A value that holds another many times over costs `FUEL` little to build and may take
/// forever to print or compare.
const TIME: Duration = Duration::from_secs(3);
/// Largest number in the template of a `str.format`: widths and precisions make text out of nothing.
const FORMAT_LIMIT: usize = 4096;

const WHAT: &str = "chat template";

/// One message of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or `tool`/`ipython` for a tool's answer.
    pub role: String,
    /// What is said.
    pub content: String,
    /// Calls of tools that an assistant's message makes, in place of a content.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Of a tool's answer, the [`ToolCall::id`] that it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A message of `role` saying `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }

    /// The message with `change` applied to every string that came from outside.
    pub(super) fn map_strings(&self, change: &impl Fn(&str) -> Result<String>) -> Result<Message> {
        let call = |call: &ToolCall| {
            let arguments = map_strings(&call.arguments, change)?;
            Ok(ToolCall { id: change(&call.id)?, name: change(&call.name)?, arguments })
        };
        Ok(Message {
            role: change(&self.role)?,
            content: change(&self.content)?,
            tool_calls: self.tool_calls.iter().map(call).collect::<Result<_>>()?,
            tool_call_id: self.tool_call_id.as_deref().map(change).transpose()?,
        })
    }
}

/// A call of a tool, as templates know it: `{"id": …, "type": "function", "function": {"name": …, "arguments": …}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Names the call in its answer. Mistral's templates want nine letters and digits.
    pub id: String,
    /// The tool.
    pub name: String,
    /// An object with the arguments.
    pub arguments: serde_json::Value,
}

impl ToolCall {
    /// The calls that a model's answer consists of: JSON objects with `name` and `arguments` (or `parameters`),
    /// one after another, in a list, or each within `<tool_call>` tags. Empty for any other answer. `first` is the
    /// number that the first call's id is made of.
    pub fn parse(answer: &str, first: usize) -> Vec<ToolCall> {
        let answer = answer.trim();
        let answer = answer.strip_prefix("[TOOL_CALLS]").unwrap_or(answer);
        let answer = answer.replace("<tool_call>", " ").replace("</tool_call>", " ");
        let Ok(values) = serde_json::Deserializer::from_str(&answer)
            .into_iter::<serde_json::Value>()
            .collect::<std::result::Result<Vec<_>, _>>()
        else {
            return Vec::new();
        };
        let values = values.into_iter().flat_map(|value| match value {
            serde_json::Value::Array(list) => list,
            other => vec![other],
        });
        let calls = values.zip(first..).map(|(value, number)| {
            let arguments = value.get("arguments").or(value.get("parameters"))?.clone();
            Some(ToolCall { id: format!("call{number:05}"), name: value["name"].as_str()?.into(), arguments })
        });
        calls.collect::<Option<_>>().unwrap_or_default()
    }
}

/// What a template is rendered with.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChatInput<'a> {
    /// The conversation so far.
    pub messages: &'a [Message],
    /// A JSON list of tool definitions, for templates that offer tools.
    pub tools: Option<&'a serde_json::Value>,
    /// Whether to end with the opening of an assistant's message, for the model to continue.
    pub add_generation_prompt: bool,
    /// `bos_token`, `eos_token` and so on with their texts
    /// ([`Tokenizer::named_tokens`](super::Tokenizer::named_tokens)).
    pub named_tokens: &'a [(String, String)],
}

/// The chat template of a checkpoint: Jinja, as transformers' `apply_chat_template` runs it.
///
/// Templates are untrusted programs. One that does not end, recurses without bound, writes without bound or makes
/// a namespace part of a value is an error. Differences from Python: `strftime_now` gives UTC, and unknown directives
/// of it are kept as they are.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    /// Whether there is a template of its own for conversations with tools.
    tool_use: bool,
    /// Whether contents are given as a list of typed parts instead of a string.
    parts: bool,
    /// Whether a rendering ran out of time.
    stuck: AtomicBool,
}

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

impl ChatTemplate {
    /// The template of a checkpoint folder: `chat_template.jinja`, else the `chat_template` of
    /// `tokenizer_config.json`. `None` if the checkpoint has none.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("chat_template.jinja");
        if let Some(bytes) = read_file(&path, CONFIG_LIMIT)? {
            let source = String::from_utf8(bytes).map_err(|error| Error::file(&path, error.to_string()))?;
            return Self::new(&source).map(Some);
        }
        match read_file(&dir.join("tokenizer_config.json"), CONFIG_LIMIT)? {
            Some(bytes) => Self::from_config(&bytes),
            None => Ok(None),
        }
    }

    /// The template in the content of a `tokenizer_config.json`: a string, or a list of named ones of which
    /// `default` is used, and `tool_use` where there are tools. `None` if there is none.
    pub fn from_config(tokenizer_config: &[u8]) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Config {
            chat_template: Option<Templates>,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Templates {
            One(String),
            Named(Vec<Named>),
        }
        #[derive(Deserialize)]
        struct Named {
            name: String,
            template: String,
        }
        let config: Config = serde_json::from_slice(tokenizer_config)
            .map_err(|error| text_error("tokenizer_config.json", error))?;
        match config.chat_template {
            None => Ok(None),
            Some(Templates::One(source)) => Self::new(&source).map(Some),
            Some(Templates::Named(list)) => {
                let find =
                    |name: &str| list.iter().find(|entry| entry.name == name).map(|entry| &*entry.template);
                match (find(DEFAULT), find(TOOL_USE)) {
                    (Some(default), tool_use) => Self::build(default, tool_use).map(Some),
                    (None, _) => Err(text_error(
                        "tokenizer_config.json",
                        "chat_template is a list without an entry named default",
                    )),
                }
            }
        }
    }

    /// A template from its Jinja source.
    ///
    /// # Errors
    /// The source is not Jinja, or uses what transformers does not offer.
    pub fn new(source: &str) -> Result<Self> {
        Self::build(source, None)
    }

    fn build(default: &str, tool_use: Option<&str>) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax =
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(refused)?;
        environment.set_syntax(syntax.clone());
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(unknown_method);
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", |reason: String| -> std::result::Result<Value, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason))
        });
        environment.add_function("strftime_now", |format: String| {
            strftime(&format, SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()))
        });
        on_large_stack(|| {
            let sources = [(DEFAULT, Some(default)), (TOOL_USE, tool_use)];
            for (name, source) in sources.into_iter().filter_map(|(name, source)| Some((name, source?))) {
                check_namespaces(source, &syntax)?;
                environment.add_template_owned(name, plain_jinja(source, &syntax)?).map_err(refused)?;
            }
            Ok(())
        })?;
        Ok(Self {
            environment: Arc::new(environment),
            tool_use: tool_use.is_some(),
            parts: wants_parts(default),
            stuck: AtomicBool::new(false),
        })
    }

    /// The text of a conversation. Contents are put in as they are: to keep control tokens out of them, use
    /// [`Tokenizer::encode_chat`](super::Tokenizer::encode_chat).
    ///
    /// # Errors
    /// The template refuses the conversation (`raise_exception`), fails, or breaks a bound. One that did not end in
    /// time ([`is_stuck`](Self::is_stuck)) is not run again.
    pub fn render(&self, input: &ChatInput) -> Result<String> {
        if self.is_stuck() {
            return Err(out_of_time());
        }
        let mut context = serde_json::Map::new();
        for (name, text) in input.named_tokens {
            context.insert(name.clone(), text.clone().into());
        }
        let messages = input.messages.iter().map(|message| self.message(message)).collect::<Vec<_>>();
        context.insert("messages".into(), messages.into());
        // Present but none where there are no tools, as transformers passes it.
        context.insert("tools".into(), input.tools.cloned().unwrap_or_default());
        context.insert("documents".into(), serde_json::Value::Null);
        context.insert("add_generation_prompt".into(), input.add_generation_prompt.into());

        let name = if input.tools.is_some() && self.tool_use { TOOL_USE } else { DEFAULT };
        let environment = Arc::clone(&self.environment);
        let rendered = within_time(move || {
            let template = environment.get_template(name).map_err(refused)?;
            let mut output = Bounded(Vec::new());
            template.render_captured_to(Value::from(Serde(context)), &mut output).map_err(refused)?;
            String::from_utf8(output.0).map_err(|error| text_error(WHAT, error))
        });
        rendered.unwrap_or_else(|| {
            self.stuck.store(true, Ordering::Relaxed);
            Err(out_of_time())
        })
    }

    /// Whether a rendering ran out of time. Its thread cannot be stopped and goes on taking processor time and memory
    /// until the process ends, which should then be soon.
    pub fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed)
    }

    fn message(&self, message: &Message) -> serde_json::Value {
        let mut value = serde_json::json!({ "role": message.role, "content": message.content });
        if self.parts {
            value["content"] = serde_json::json!([{ "type": "text", "text": message.content }]);
        }
        // Templates ask whether these are there, not whether they are empty.
        if !message.tool_calls.is_empty() {
            let calls = message.tool_calls.iter().map(|call| {
                let function = serde_json::json!({ "name": call.name, "arguments": call.arguments });
                serde_json::json!({ "id": call.id, "type": "function", "function": function })
            });
            value["tool_calls"] = calls.collect();
        }
        if let Some(id) = &message.tool_call_id {
            value["tool_call_id"] = id.as_str().into();
        }
        value
    }
}

/// Whether a template takes contents only as lists of parts (`{"type": "text", "text": …}`), as some Llama Guard
/// versions do: it asks for the type of a part and never whether a content is a string.
fn wants_parts(source: &str) -> bool {
    let asks_type = ["['type']", "[\"type\"]"].iter().any(|access| {
        ["content", "part", "item", "chunk"].iter().any(|name| source.contains(&format!("{name}{access}")))
    });
    asks_type && !source.contains("is string")
}

/// `value` with `change` applied to every string in it, keys included.
pub(super) fn map_strings(
    value: &serde_json::Value,
    change: &impl Fn(&str) -> Result<String>,
) -> Result<serde_json::Value> {
    use serde_json::Value::{Array, Object, String};
    Ok(match value {
        String(text) => String(change(text)?),
        Array(list) => Array(list.iter().map(|value| map_strings(value, change)).collect::<Result<_>>()?),
        Object(map) => {
            let entries = map.iter().map(|(key, value)| Ok((change(key)?, map_strings(value, change)?)));
            Object(entries.collect::<Result<_>>()?)
        }
        other => other.clone(),
    })
}

/// Runs a piece of template work where neither deep nesting nor a panic can end the process.
fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || guarded(WHAT, work));
        let thread = thread.map_err(|error| text_error(WHAT, format!("no thread to render in: {error}")))?;
        thread.join().unwrap_or_else(|_| Err(text_error(WHAT, "the rendering thread ended early")))
    })
}

/// [`on_large_stack`] for work that may never end: `None` after [`TIME`], when it is left to itself.
fn within_time<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Option<Result<T>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || {
        // Nobody waits any more after a timeout.
        let _ = sender.send(guarded(WHAT, work));
    });
    if let Err(error) = thread {
        return Some(Err(text_error(WHAT, format!("no thread to render in: {error}"))));
    }
    receiver.recv_timeout(TIME).ok()
}

fn out_of_time() -> Error {
    text_error(WHAT, format!("did not end within {} seconds", TIME.as_secs()))
}

/// Python's methods, without formats that ask for more text than a template needs.
fn unknown_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> std::result::Result<Value, minijinja::Error> {
    if method == "format"
        && let Some(format) = value.as_str()
    {
        // A width may also be an argument: `'{:>{}}'.format(5, 1000000000)`.
        let nested = format
            .split('}')
            .any(|part| part.replace("{{", "").split_once('{').is_some_and(|(_, field)| field.contains('{')));
        let numbers = format.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
        let asked =
            numbers.fold(0, |sum: usize, number| sum.saturating_add(number.parse().unwrap_or(usize::MAX)));
        let given: usize = args.iter().filter_map(Value::as_str).map(str::len).sum();
        let repeated = given.saturating_mul(format.matches('{').count());
        if nested || asked > FORMAT_LIMIT || repeated > OUTPUT_LIMIT {
            let reason = format!(
                "a format may hold no field within a field, numbers up to {FORMAT_LIMIT} in all, and give {} MiB",
                OUTPUT_LIMIT >> 20
            );
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason));
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// Refuses a template in which a namespace could become part of a value. Namespaces are all that a template can change
/// once they are made, so without this a value could hold itself, and printing, comparing or dropping it would
/// overflow the stack.
fn check_namespaces(source: &str, syntax: &SyntaxConfig) -> Result<()> {
    use Token::{Assign, BlockEnd, BlockStart, BracketClose, BracketOpen, Dot, Ident, ParenClose, ParenOpen};
    let tokens = tokenize(source, false, syntax.clone()).map(|token| Ok(token.map_err(refused)?.0));
    let tokens = tokens.collect::<Result<Vec<_>>>()?;
    let refuse = |name: &str| {
        let reason =
            "a namespace may only be made as {% set name = namespace(…) %} and used as name.attribute";
        Err(text_error(WHAT, format!("{name}: {reason}")))
    };
    let mut names = BTreeSet::new();
    for (at, token) in tokens.iter().enumerate() {
        if !matches!(token, Ident("namespace")) || (at > 0 && matches!(tokens[at - 1], Dot)) {
            continue;
        }
        let Some([BlockStart, Ident("set"), Ident(name), Assign]) = tokens[..at].last_chunk() else {
            return refuse("namespace");
        };
        let mut depth = 0;
        let end = tokens[at + 1..].iter().position(|token| {
            depth += i32::from(matches!(token, ParenOpen)) - i32::from(matches!(token, ParenClose));
            depth <= 0
        });
        let ends = end.is_some_and(|end| end > 0 && matches!(tokens.get(at + 2 + end), Some(BlockEnd)));
        if !ends {
            return refuse(name);
        }
        names.insert(*name);
    }
    for (at, token) in tokens.iter().enumerate() {
        let Ident(name) = token else { continue };
        let before = at.checked_sub(1).map(|before| &tokens[before]);
        let allowed = match &tokens[at + 1..] {
            [Dot | Ident("is"), ..] | [BracketOpen, Token::Str(_) | Token::String(_), BracketClose, ..] => {
                true
            }
            [Assign, ..] => matches!(before, Some(Ident("set"))),
            _ => false,
        };
        if names.contains(name) && !allowed && !matches!(before, Some(Dot)) {
            return refuse(name);
        }
    }
    Ok(())
}

/// The source without transformers' own `{% generation %}` tags, which mark what an assistant says and render as
/// their content.
fn plain_jinja(source: &str, syntax: &SyntaxConfig) -> Result<String> {
    let tokens = tokenize(source, false, syntax.clone()).map(|token| token.map_err(refused));
    let tokens = tokens.collect::<Result<Vec<_>>>()?;
    let mut plain = String::with_capacity(source.len());
    let mut copied = 0;
    for window in tokens.windows(3) {
        let [(Token::BlockStart, _), (Token::Ident(name), span), (Token::BlockEnd, _)] = window else {
            continue;
        };
        let tag = match *name {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        plain += &source[copied..span.start_offset as usize];
        plain += tag;
        copied = span.end_offset as usize;
    }
    Ok(plain + &source[copied..])
}

fn refused(error: minijinja::Error) -> Error {
    if error.kind() == ErrorKind::OutOfFuel {
        return text_error(WHAT, format!("did not end within {FUEL} steps"));
    }
    text_error(WHAT, format!("{error:#}"))
}

/// Collects a template's output up to `OUTPUT_LIMIT`.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_LIMIT {
            let reason = format!("the text is longer than {} MiB", OUTPUT_LIMIT >> 20);
            return Err(std::io::Error::other(reason));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Python's `strftime` in the C locale for a time in seconds since 1970, in UTC.
fn strftime(format: &str, seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let days = seconds / 86_400;
    let (year, month, day, day_of_year) = civil_date(days);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[(days % 7) as usize]);
    let hour12 = (hour + 11) % 12 + 1;
    let half = if hour < 12 { "AM" } else { "PM" };
    let date = format!("{year:04}-{month:02}-{day:02}");
    let time = format!("{hour:02}:{minute:02}:{second:02}");

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out += &match chars.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('j') => format!("{day_of_year:03}"),
            Some('B') => month_name.to_string(),
            Some('b' | 'h') => month_name[..3].to_string(),
            Some('A') => day_name.to_string(),
            Some('a') => day_name[..3].to_string(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{hour12:02}"),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('p') => half.to_string(),
            Some('F') => date.clone(),
            Some('T') => time.clone(),
            Some('Z') => "UTC".to_string(),
            Some('z') => "+0000".to_string(),
            Some('n') => "\n".to_string(),
            Some('t') => "\t".to_string(),
            Some('%') => "%".to_string(),
            Some(other) => format!("%{other}"),
            None => "%".to_string(),
        };
    }
    out
}

/// Year, month (1 to 12), day of the month and day of the year (from 1) of a day counted from 1970-01-01.
fn civil_date(mut days: u64) -> (u64, usize, u64, u64) {
    // The calendar repeats after 400 years, which have 146,097 days; the rest is counted out.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let day_of_year = days + 1;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month + 1, days + 1, day_of_year)
}

#[cfg(test)]
mod tests {
    use super::strftime;

    #[test]
    fn dates() {
        assert_eq!(strftime("%d %b %Y", 0), "01 Jan 1970");
        assert_eq!(
            strftime("%A %d %B %Y %H:%M:%S %j", 1_709_210_096),
            "Thursday 29 February 2024 12:34:56 060"
        );
        assert_eq!(
            strftime("%F %T %I %p %a %y 100%% %q %", 4_102_444_799),
            "2099-12-31 23:59:59 11 PM Thu 99 100% %q %"
        );
        assert_eq!(strftime("%F", 13_574_563_200), "2400-02-29");
    }
}
