//! The checkpoint's tokenizer: text to ids and back, with control tokens kept out of a user's reach.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizedString, PreTokenizer,
    PreTokenizerWrapper, TokenizerImpl,
};

use super::pieces::Pieces;
use super::stream::Decoding;
use super::{ChatTemplate, Message, chat, guarded, read_file, text_error};
use crate::error::printable;
use crate::{Error, Result};

/// Largest `tokenizer.json` that is read. Llama 3's has 9 MB.
const TOKENIZER_LIMIT: u64 = 64 << 20;
/// Largest `tokenizer_config.json` or chat template that is read.
pub(super) const CONFIG_LIMIT: u64 = 4 << 20;

/// Most times longer that normalizing and pre-tokenizing, or decoding, may make a text. Llama's make it 2 or 3.
const GROWTH_LIMIT: f64 = 256.0;

/// Marks the next character as plain text; see [`Tokenizer::escape`]. A Unicode noncharacter: it has no meaning in
/// interchanged text, no normalisation form changes it, and it is no white space that a template would trim.
const ESCAPE: char = '\u{fdd0}';

/// Names of the tokens that end a message in the chat formats of the Llama family.
const END_OF_MESSAGE: [&str; 4] = ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "</s>"];

type Pipeline =
    TokenizerImpl<ModelWrapper, NormalizerWrapper, Unescape, PostProcessorWrapper, DecoderWrapper>;

/// A tokenizer in Hugging Face's `tokenizer.json` form: Llama 3 (byte-level BPE), Llama 2 and Mistral (BPE with
/// byte fallback), and whatever else the `tokenizers` crate reads.
///
/// Two kinds of added tokens are told apart. *Control tokens* are those marked `special`, those that
/// `tokenizer_config.json` names (as its BOS, EOS, … token), and those written like one (`<…>`, `[…]`) even if the
/// file forgot the mark. They are never found in a user's text. Other added tokens are ordinary words of the
/// vocabulary and are found everywhere.
#[derive(Debug)]
pub struct Tokenizer {
    pipeline: Pipeline,
    decoding: Decoding,
    /// How many times longer a text can become before it is split.
    growth: f64,
    /// What the post-processor puts before and after every text (BOS, EOS).
    around: (Vec<u32>, Vec<u32>),
    /// Rows of the model's embedding; every id is below it.
    vocab: usize,
    /// Names of the control tokens by their first character.
    control_names: HashMap<char, Vec<String>>,
    control_ids: BTreeSet<u32>,
    /// What the model emits for characters that it cannot express; the one control id that plain text may give.
    unknown: Option<u32>,
    /// `bos_token` and so on, by the names that chat templates use.
    named: Vec<(String, String)>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, if it is there, `tokenizer_config.json` of a checkpoint folder.
    ///
    /// `vocab` is the model's vocabulary size (rows of the embedding).
    ///
    /// # Errors
    /// A missing, unreadable, oversized (64 MiB) or malformed file; an id that the model does not have.
    pub fn from_dir(dir: &Path, vocab: usize) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let json = read_file(&path, TOKENIZER_LIMIT)?.ok_or_else(|| {
            Error::file(&path, "does not exist; without a tokenizer, prompts must be given as ids")
        })?;
        let config = read_file(&dir.join("tokenizer_config.json"), CONFIG_LIMIT)?;
        Self::from_bytes(&json, config.as_deref(), vocab).map_err(|error| match error {
            Error::Text { what, reason } => Error::file(dir.join(what), reason),
            other => other,
        })
    }

    /// As [`from_dir`](Self::from_dir), from the content of the two files.
    pub fn from_bytes(tokenizer_json: &[u8], tokenizer_config: Option<&[u8]>, vocab: usize) -> Result<Self> {
        const WHAT: &str = "tokenizer.json";
        let declared: Declared =
            serde_json::from_slice(tokenizer_json).map_err(|error| text_error(WHAT, error))?;
        let encoded = growth(&declared.normalizer) * growth(&declared.pre_tokenizer);
        if encoded > GROWTH_LIMIT || growth(&declared.decoder) > GROWTH_LIMIT {
            let reason = format!(
                "its normalizer, pre_tokenizer or decoder can make a text over {GROWTH_LIMIT} times longer"
            );
            return Err(text_error(WHAT, reason));
        }
        let named = match tokenizer_config {
            Some(bytes) => named_tokens(bytes)?,
            None => Vec::new(),
        };
        let mut pipeline = guarded(WHAT, || {
            serde_json::from_slice::<Pipeline>(tokenizer_json).map_err(|error| text_error(WHAT, error))
        })?;
        for token in &declared.added_tokens {
            let actual = pipeline.token_to_id(&token.content);
            if actual != Some(token.id) {
                let name = printable(&token.content);
                let actual = actual.map_or("none".to_string(), |id| id.to_string());
                return Err(text_error(
                    WHAT,
                    format!(
                        "added token {name} is declared with id {}, but its place gives it {actual}",
                        token.id
                    ),
                ));
            }
        }
        guarded(WHAT, || {
            // Cutting and padding are for batches of training data; a prompt is neither cut nor padded.
            pipeline.with_padding(None);
            pipeline.with_truncation(None).map_err(|error| text_error(WHAT, error))?;
            if pipeline.get_pre_tokenizer().is_none() {
                pipeline.with_pre_tokenizer(Some(Unescape(None)));
            }
            // A token that tokenizer_config.json names is special whatever tokenizer.json says of it.
            let known: Vec<AddedToken> =
                named.iter().filter_map(|(_, name)| special(&pipeline, name)).collect();
            pipeline.add_special_tokens(known).map_err(|error| text_error(WHAT, error))?;
            Ok(())
        })?;
        check_ids(&pipeline, vocab)?;

        let mut control_names: HashMap<char, Vec<String>> = HashMap::new();
        let mut control_ids = BTreeSet::new();
        for (id, token) in pipeline.get_added_vocabulary().get_added_tokens_decoder() {
            if let Some(first) = token.content.chars().next()
                && is_control(token)
            {
                control_names.entry(first).or_default().push(token.content.clone());
                control_ids.insert(*id);
            }
        }
        let unknown = match pipeline.get_model() {
            ModelWrapper::BPE(bpe) => bpe.unk_token.as_ref().and_then(|name| pipeline.token_to_id(name)),
            ModelWrapper::WordPiece(model) => pipeline.token_to_id(&model.unk_token),
            ModelWrapper::WordLevel(model) => pipeline.token_to_id(&model.unk_token),
            ModelWrapper::Unigram(_) => None,
        };
        let decoding = Decoding::of(pipeline.get_decoder())?;
        let mut tokenizer = Self {
            pipeline,
            decoding,
            growth: encoded,
            around: Default::default(),
            vocab,
            control_names,
            control_ids,
            unknown,
            named,
        };
        // The post-processor carries ids of its own; an empty text shows them, any other where they stand.
        tokenizer.around.0 = tokenizer.encode_escaped("", true)?;
        if let (Ok(bare), Ok(all)) =
            (tokenizer.encode_escaped("a", false), tokenizer.encode_escaped("a", true))
            && let Some(at) = (0..=all.len()).find(|&at| all[at..].starts_with(&bare))
        {
            tokenizer.around = (all[..at].to_vec(), all[at + bare.len()..].to_vec());
        }
        Ok(tokenizer)
    }

    /// The ids of a prompt, with what the post-processor adds (BOS). Names of control tokens in `text` are
    /// ordinary characters. Memory is bounded for a text of any length.
    ///
    /// # Errors
    /// A text that this tokenizer cannot write without a control token; a stretch of some 500 KiB without a space or a
    /// line's end.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encode_prompt_within(text, usize::MAX)?.unwrap_or_default())
    }

    /// As [`encode_prompt`](Self::encode_prompt), but `None` for a prompt of more than `most` tokens, which is found out
    /// before all of it is encoded.
    pub fn encode_prompt_within(&self, text: &str, most: usize) -> Result<Option<Vec<u32>>> {
        let (before, after) = &self.around;
        let ids = self.plain_ids(&self.escape(text)?, most)?;
        let ids = ids.map(|ids| [before, &ids[..], after].concat());
        Ok(ids.filter(|ids| ids.len() <= most))
    }

    /// The ids of a text as in a prompt, without what the post-processor adds.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.plain_ids(&self.escape(text)?, usize::MAX)?.unwrap_or_default())
    }

    /// What the post-processor puts before every prompt: BOS, or nothing.
    pub fn leading_ids(&self) -> &[u32] {
        &self.around.0
    }

    fn plain_ids(&self, escaped: &str, most: usize) -> Result<Option<Vec<u32>>> {
        self.pieces(escaped, |piece| self.encode_escaped(piece, false)).ids(most)
    }

    fn pieces<'a, F: Fn(&str) -> Result<Vec<u32>>>(&self, text: &'a str, encode: F) -> Pieces<'a, F> {
        Pieces { text, growth: self.growth, bound: ESCAPE, encode }
    }

    /// The ids of a text in which names of control tokens stand for those tokens: what a chat template rendered.
    ///
    /// Nothing is added at the front: a template writes BOS itself (as in transformers, whose
    /// `apply_chat_template` tokenizes with `add_special_tokens=False`). Text that came from outside must have gone
    /// through [`escape`](Self::escape), as [`encode_chat`](Self::encode_chat) does.
    pub fn encode_template(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encode_template_within(text, usize::MAX)?.unwrap_or_default())
    }

    fn encode_template_within(&self, text: &str, most: usize) -> Result<Option<Vec<u32>>> {
        let encode = |piece: &str| self.in_vocabulary(self.encode(piece, false)?.get_ids());
        self.pieces(text, encode).ids(most)
    }

    /// The ids of a conversation under the checkpoint's template. Roles, contents and every string of `tools` (a
    /// JSON list of tool definitions) are plain text, even where they spell a control token's name.
    pub fn encode_chat(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        tools: Option<&serde_json::Value>,
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        let ids = self.encode_chat_within(template, messages, tools, add_generation_prompt, usize::MAX)?;
        Ok(ids.unwrap_or_default())
    }

    /// As [`encode_chat`](Self::encode_chat), but `None` for a conversation of more than `most` tokens, which is found
    /// out before all of it is encoded.
    pub fn encode_chat_within(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        tools: Option<&serde_json::Value>,
        add_generation_prompt: bool,
        most: usize,
    ) -> Result<Option<Vec<u32>>> {
        let escaped = |text: &str| -> Result<String> {
            let escaped = self.escape(text)?;
            if escaped != text {
                // Rare, so the text is worth encoding a second time, alone, for the check on plain text.
                self.plain_ids(&escaped, most)?;
            }
            Ok(escaped)
        };
        let messages =
            messages.iter().map(|message| message.map_strings(&escaped)).collect::<Result<Vec<_>>>()?;
        let tools = tools.map(|tools| chat::map_strings(tools, &escaped)).transpose()?;
        let text = template.render(&super::ChatInput {
            messages: &messages,
            tools: tools.as_ref(),
            add_generation_prompt,
            named_tokens: &self.named,
        })?;
        self.encode_template_within(&text, most)
    }

    /// `text` with every occurrence of a control token's name broken by an escape character, which
    /// [`encode_template`](Self::encode_template) takes out again after it has looked for control tokens. The
    /// escape character itself (the noncharacter U+FDD0) is doubled.
    ///
    /// # Errors
    /// The text holds a control token whose name is a single character: it cannot be told from that token.
    pub fn escape(&self, text: &str) -> Result<String> {
        let mut escaped = String::with_capacity(text.len());
        for (at, c) in text.char_indices() {
            escaped.push(c);
            let rest = &text[at..];
            let starts = self
                .control_names
                .get(&c)
                .is_some_and(|names| names.iter().any(|name| rest.starts_with(name.as_str())));
            if starts && self.control_names[&c].iter().any(|name| name.chars().count() == 1) {
                return Err(text_error(
                    "prompt",
                    format!(
                        "the character {c:?} is a control token of this tokenizer and cannot be written as text"
                    ),
                ));
            }
            if starts || c == ESCAPE {
                escaped.push(ESCAPE);
            }
        }
        Ok(escaped)
    }

    /// The text of `ids`, as transformers' `decode` gives it without cleaning up spaces: a sequence's leading
    /// `▁` is no space (Llama 2), bytes that are no UTF-8 become U+FFFD, ids without a token give nothing.
    /// `skip_special` leaves special tokens out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        const WHAT: &str = "decoding";
        guarded(WHAT, || self.pipeline.decode(ids, skip_special).map_err(|error| text_error(WHAT, error)))
    }

    /// One token as text, for display: its characters with a leading space kept, U+FFFD for a part of a
    /// character, the name of a special token, nothing for an id without a token.
    pub fn token_text(&self, id: u32) -> String {
        self.token(id).map_or(String::new(), |token| self.decoding.token_text(&token))
    }

    /// Whether `id` is a special token, which decoding with `skip_special` leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        self.token(id).is_some_and(|token| self.is_special_token(&token))
    }

    /// The id of the token called `name`, control tokens included.
    pub fn token_id(&self, name: &str) -> Option<u32> {
        self.pipeline.token_to_id(name)
    }

    /// The ids that end a message: `eos` (the checkpoint's list) and the Llama family's end-of-message tokens
    /// that this tokenizer has as control tokens. Sorted, each once.
    pub fn end_of_message_ids(&self, eos: &[u32]) -> Vec<u32> {
        let known = END_OF_MESSAGE.iter().filter_map(|name| self.token_id(name));
        let known = known.filter(|id| self.control_ids.contains(id));
        eos.iter().copied().chain(known).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The special tokens that `tokenizer_config.json` names, as (`bos_token`, `<s>`) and so on.
    pub fn named_tokens(&self) -> &[(String, String)] {
        &self.named
    }

    pub(super) fn decoding(&self) -> &Decoding {
        &self.decoding
    }

    /// The token as decoding sees it.
    pub(super) fn token(&self, id: u32) -> Option<String> {
        self.pipeline.id_to_token(id)
    }

    pub(super) fn is_special_token(&self, token: &str) -> bool {
        self.pipeline.get_added_vocabulary().is_special_token(token)
    }

    fn encode(&self, text: &str, post_process: bool) -> Result<tokenizers::Encoding> {
        const WHAT: &str = "encoding";
        guarded(WHAT, || {
            self.pipeline.encode_fast(text, post_process).map_err(|error| text_error(WHAT, error))
        })
    }

    /// Encodes escaped text and checks that no control token came of it but by the post-processor's doing.
    fn encode_escaped(&self, text: &str, post_process: bool) -> Result<Vec<u32>> {
        let encoding = self.encode(text, post_process)?;
        let from_text = encoding.get_ids().iter().zip(encoding.get_special_tokens_mask());
        let control = from_text
            .filter(|&(_, &added)| added == 0)
            .map(|(&id, _)| id)
            .find(|id| self.control_ids.contains(id) && Some(*id) != self.unknown);
        if let Some(id) = control {
            // The vocabulary's merges lead to a control token: hiding its name was of no use.
            let name = printable(&self.token(id).unwrap_or_default());
            return Err(text_error("prompt", format!("this tokenizer cannot write {name} as text")));
        }
        self.in_vocabulary(encoding.get_ids())
    }

    fn in_vocabulary(&self, ids: &[u32]) -> Result<Vec<u32>> {
        match ids.iter().find(|&&id| id as usize >= self.vocab) {
            Some(&id) => Err(beyond_vocabulary(id, self.vocab)),
            None => Ok(ids.to_vec()),
        }
    }
}

/// Removes the escapes of [`Tokenizer::escape`] once control tokens have been looked for, then does what the
/// checkpoint's own pre-tokenizer does.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
struct Unescape(Option<PreTokenizerWrapper>);

impl PreTokenizer for Unescape {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        text.normalize(|part| {
            if part.get().contains(ESCAPE) {
                let escaped = Cell::new(false);
                part.filter(|c| {
                    let keep = c != ESCAPE || escaped.get();
                    escaped.set(!keep);
                    keep
                });
            }
            Ok(())
        })?;
        self.0.as_ref().map_or(Ok(()), |inner| inner.pre_tokenize(text))
    }
}

/// What the file says of added tokens: the `tokenizers` crate gives out ids by itself and only warns if they differ.
#[derive(Deserialize)]
struct Declared {
    #[serde(default)]
    added_tokens: Vec<DeclaredToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
}

/// How many times longer a step of a `tokenizer.json`, or a sequence of them, can make a text, in bytes.
fn growth(step: &Value) -> f64 {
    for steps in ["normalizers", "pretokenizers", "decoders"] {
        if let Some(steps) = step[steps].as_array() {
            return steps.iter().map(growth).product();
        }
    }
    match step["type"].as_str() {
        Some("Replace") => {
            let content = step["content"].as_str().map_or(0, str::len) as f64;
            match step["pattern"]["String"].as_str().map_or(0, str::len) {
                // A regex, which may match nothing at all, everywhere.
                0 => content + 1.0,
                pattern => (content / pattern as f64).max(1.0),
            }
        }
        // U+FDFA has 3 bytes and becomes 33.
        Some("NFKC" | "NFKD" | "Precompiled") => 11.0,
        Some("NFC" | "NFD" | "Lowercase" | "BertNormalizer" | "Metaspace") => 3.0,
        Some("ByteLevel") => 2.0,
        _ => 1.0,
    }
}

#[derive(Deserialize)]
struct DeclaredToken {
    id: u32,
    content: String,
}

/// The `…_token` entries of `tokenizer_config.json` that hold a token: a string, or an object with `content`.
fn named_tokens(config: &[u8]) -> Result<Vec<(String, String)>> {
    let config: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(config).map_err(|error| text_error("tokenizer_config.json", error))?;
    let named = config.iter().filter(|(key, _)| key.ends_with("_token")).filter_map(|(key, value)| {
        let token = value.as_str().or_else(|| value.get("content")?.as_str())?;
        Some((key.clone(), token.to_string()))
    });
    Ok(named.collect())
}

/// The token called `name`, marked special, if the tokenizer has it without that mark.
fn special(pipeline: &Pipeline, name: &str) -> Option<AddedToken> {
    let id = pipeline.token_to_id(name)?;
    let added = pipeline.get_added_vocabulary().get_added_tokens_decoder().get(&id).cloned();
    match added {
        Some(token) if token.special => None,
        Some(token) => Some(token.special(true)),
        None => Some(AddedToken::from(name, true)),
    }
}

fn is_control(token: &AddedToken) -> bool {
    let name = token.content.trim();
    let bracketed = |open, close| name.len() > 2 && name.starts_with(open) && name.ends_with(close);
    token.special || bracketed('<', '>') || bracketed('[', ']')
}

fn check_ids(pipeline: &Pipeline, vocab: usize) -> Result<()> {
    match pipeline.get_vocab(true).into_values().max() {
        Some(id) if id as usize >= vocab => Err(beyond_vocabulary(id, vocab)),
        Some(_) => Ok(()),
        None => Err(text_error("tokenizer.json", "has an empty vocabulary")),
    }
}

fn beyond_vocabulary(id: u32, vocab: usize) -> Error {
    text_error(
        "tokenizer.json",
        format!(
            "token {id} lies beyond the model's vocabulary of {vocab}: the tokenizer belongs to another checkpoint"
        ),
    )
}
