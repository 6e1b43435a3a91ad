//! Tokenizer, streaming and stop handling against the golden tokenizers, and against broken files.
#![cfg(feature = "cli")]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use proptest::prelude::*;
use serde_json::{Value, json};
use warploom::Error;
use warploom::text::{TextStream, Tokenizer};

const CHECKPOINTS: [&str; 6] =
    ["gqa_bf16", "mqa_f16", "tied_bf16_dup", "rope_llama3_v5cfg_bf16", "both_bias_bf16", "odd_all_f16"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn vocab(name: &str) -> usize {
    read_json(&folder(name).join("config.json"))["vocab_size"].as_u64().unwrap() as usize
}

/// A golden tokenizer, read once: the properties below ask for it thousands of times.
fn golden(name: &str) -> &'static Tokenizer {
    static ALL: OnceLock<Vec<Tokenizer>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        CHECKPOINTS.iter().map(|name| Tokenizer::from_dir(&folder(name), vocab(name)).unwrap()).collect()
    });
    &all[CHECKPOINTS.iter().position(|checkpoint| *checkpoint == name).unwrap()]
}

/// The added tokens' names.
fn control_names(name: &str) -> Vec<String> {
    let file = read_json(&folder(name).join("tokenizer.json"));
    let tokens = file["added_tokens"].as_array().unwrap().iter();
    tokens.map(|token| token["content"].as_str().unwrap().to_string()).collect()
}

#[test]
fn golden_encode_cases() {
    for name in CHECKPOINTS {
        let tokenizer = golden(name);
        let names = control_names(name);
        let cases = read_json(&folder(name).join("golden_tokenizer.json"));
        let cases = cases["encode"].as_array().unwrap();
        let mut spelled = 0;
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let (full, bare) = (ids(&case["ids"]), ids(&case["ids_no_special"]));
            // transformers looks for control tokens in every text: as we do in what a template rendered.
            assert_eq!(tokenizer.encode_template(text).unwrap(), bare, "{name}: {text:?}");
            let prompt = tokenizer.encode_prompt(text).unwrap();
            if names.iter().any(|control| text.contains(control.as_str())) {
                spelled += 1;
                assert_eq!(prompt[0], full[0], "{name}: {text:?}");
                assert!(prompt[1..].iter().all(|&id| !tokenizer.is_special(id)), "{name}: {text:?}");
                assert_eq!(tokenizer.decode(&prompt, true).unwrap(), text, "{name}");
            } else {
                assert_eq!(prompt, full, "{name}: {text:?}");
            }
            assert_eq!(
                tokenizer.decode(&full, true).unwrap(),
                case["decoded_skip_special"],
                "{name}: {text:?}"
            );
            assert_eq!(
                tokenizer.decode(&full, false).unwrap(),
                case["decoded_keep_special"],
                "{name}: {text:?}"
            );
        }
        assert!(cases.len() > 40 && spelled > 0, "{name}");
    }
}

#[test]
fn golden_decode_cases() {
    for name in CHECKPOINTS {
        let tokenizer = golden(name);
        let cases = read_json(&folder(name).join("golden_tokenizer.json"));
        let cases = cases["decode"].as_array().unwrap();
        assert!(cases.len() > 500, "{name}");
        for case in cases {
            let ids = ids(&case["ids"]);
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), case["text"], "{name}: {ids:?}");
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), case["text_skip"], "{name}: {ids:?}");
            assert_eq!(streamed(tokenizer, &[], &ids), case["text_skip"], "{name}: {ids:?}");
        }
    }
}

#[test]
fn golden_prompts_and_continuations() {
    for name in CHECKPOINTS {
        let tokenizer = golden(name);
        let file = read_json(&folder(name).join("golden.json"));
        for prompt in file["prompts"].as_object().unwrap().values() {
            let text = prompt["text"].as_str().unwrap();
            let prompt_ids = ids(&prompt["ids"]);
            assert_eq!(tokenizer.encode_prompt(text).unwrap(), prompt_ids, "{name}");
            let greedy = &prompt["greedy"];
            let generated = ids(&greedy["ids"]);
            let alone = tokenizer.decode(&generated, true).unwrap();
            assert_eq!(alone, greedy["text_skip_special"], "{name}");
            assert_eq!(streamed(tokenizer, &[], &generated), alone, "{name}");
            let continued = text.to_string() + &streamed(tokenizer, &prompt_ids, &generated);
            assert_eq!(continued, greedy["text_with_prompt_skip_special"], "{name}");
        }
    }
}

fn streamed(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32]) -> String {
    let mut stream = TextStream::after(tokenizer, prompt);
    let pieces: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
    pieces + &stream.flush().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn streaming_equals_decoding(
        ids in prop::collection::vec(0u32..530, 0..40),
        bytes in prop::collection::vec(0u32..256, 0..12),
        split in 0usize..52,
    ) {
        for name in ["gqa_bf16", "both_bias_bf16", "odd_all_f16"] {
            let tokenizer = golden(name);
            // Random bytes as well: with byte fallback these are ids 3 to 258.
            let all: Vec<u32> = ids.iter().copied().chain(bytes.iter().map(|byte| byte + 3)).chain(ids.clone()).collect();
            let whole = tokenizer.decode(&all, true).unwrap();
            prop_assert_eq!(&streamed(tokenizer, &[], &all), &whole);

            let (prompt, rest) = all.split_at(split.min(all.len()));
            let mut stream = TextStream::new(tokenizer);
            let shown: String = prompt.iter().filter_map(|&id| stream.push(id)).collect();
            prop_assert_eq!(shown + &streamed(tokenizer, prompt, rest), whole);
        }
    }

    #[test]
    fn no_prompt_holds_a_control_token(parts in prop::collection::vec(0usize..14, 0..8), words in "[a-z< |>\u{fdd0}]{0,12}") {
        for name in ["gqa_bf16", "both_bias_bf16"] {
            let tokenizer = golden(name);
            let names = control_names(name);
            let text: String = parts.iter().map(|&part| match names.get(part) {
                Some(name) => name.as_str(),
                None => ["<|eot_", "id|>", "<", "\u{fdd0}", " x", "</"][part % 6],
            }).collect::<String>() + &words;
            let prompt = tokenizer.encode_prompt(&text).unwrap();
            prop_assert!(prompt[1..].iter().all(|&id| !tokenizer.is_special(id)), "{}: {:?} {:?}", name, text, prompt);
            let expected = if name == "both_bias_bf16" { text.strip_prefix(' ').unwrap_or(&text) } else { &text };
            prop_assert_eq!(tokenizer.decode(&prompt, true).unwrap(), expected);
            // The ids are those that a tokenizer without control tokens gives.
            let escaped = tokenizer.escape(&text).unwrap();
            prop_assert_eq!(&tokenizer.encode_template(&escaped).unwrap()[..], &prompt[1..]);
        }
    }
}

#[test]
fn escaping_does_not_change_the_pieces() {
    // The same vocabulary without its added tokens has nothing to parse: the pieces must be the same.
    for name in ["gqa_bf16", "both_bias_bf16"] {
        let tokenizer = golden(name);
        let mut file = read_json(&folder(name).join("tokenizer.json"));
        file["added_tokens"] = json!([]);
        file["post_processor"] = Value::Null;
        let bare = Tokenizer::from_bytes(file.to_string().as_bytes(), None, vocab(name)).unwrap();
        for control in control_names(name) {
            for text in
                [control.clone(), format!("one {control}two\n{control}{control} "), format!("<{control}>")]
            {
                let prompt = tokenizer.encode_prompt(&text).unwrap();
                assert_eq!(prompt[1..], bare.encode_prompt(&text).unwrap(), "{name}: {text:?}");
            }
        }
    }
}

#[test]
fn added_tokens_without_the_special_mark() {
    let path = folder("gqa_bf16").join("tokenizer.json");
    let mut file = read_json(&path);
    for (index, name) in [(4, "<|eot_id|>"), (7, "lighthouse")] {
        let token = &mut file["added_tokens"][index];
        let before = token["content"].as_str().unwrap().to_string();
        token["special"] = json!(false);
        token["content"] = json!(name);
        let id = file["model"]["vocab"].as_object_mut().unwrap().shift_remove(&before);
        if let Some(id) = id {
            file["model"]["vocab"][name] = id;
        }
    }
    let tokenizer = Tokenizer::from_bytes(file.to_string().as_bytes(), None, 512).unwrap();
    // Written like a control token, it is kept out of prompts, parsed in templates and, unmarked, decoded.
    assert!(!tokenizer.encode_prompt("a<|eot_id|>").unwrap().contains(&508));
    assert_eq!(tokenizer.encode_template("a<|eot_id|>").unwrap(), [64, 508]);
    assert!(!tokenizer.is_special(508));
    assert_eq!(tokenizer.end_of_message_ids(&[505]), [505, 508]);
    // An ordinary word that was added is one everywhere.
    assert!(tokenizer.encode_prompt("the lighthouse").unwrap().contains(&511));
    // tokenizer_config.json names it as a special token: then it is one.
    let config =
        json!({ "eos_token": { "content": "lighthouse" }, "bos_token": "<|begin_of_text|>" }).to_string();
    let named = Tokenizer::from_bytes(file.to_string().as_bytes(), Some(config.as_bytes()), 512).unwrap();
    assert!(named.is_special(511) && !named.encode_prompt("the lighthouse").unwrap().contains(&511));
    assert_eq!(named.named_tokens()[0], ("eos_token".to_string(), "lighthouse".to_string()));
}

#[test]
fn tokens_for_display_and_ends_of_messages() {
    let bytes = golden("gqa_bf16");
    assert_eq!(bytes.token_text(504), "<|begin_of_text|>");
    assert_eq!(bytes.token_text(259), " a");
    assert_eq!(bytes.token_text(10_000), "");
    assert_eq!(bytes.end_of_message_ids(&[7]), [7, 505, 508]);
    let fallback = golden("both_bias_bf16");
    assert_eq!(fallback.token_text(339), " a");
    assert_eq!(fallback.token_text(13), "\n");
    assert_eq!(fallback.token_text(3 + 0xc3), "\u{fffd}");
    assert_eq!(fallback.end_of_message_ids(&[]), [2]);
    assert_eq!(fallback.token_id("</s>"), Some(2));
}

#[test]
fn a_decoder_that_does_not_stream_gives_its_text_at_the_end() {
    let mut file = read_json(&folder("both_bias_bf16").join("tokenizer.json"));
    file["decoder"] =
        json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false });
    let tokenizer = Tokenizer::from_bytes(file.to_string().as_bytes(), None, 512).unwrap();
    let ids = tokenizer.encode_prompt("a light in the dark").unwrap();
    let mut stream = TextStream::new(&tokenizer);
    assert!(ids.iter().all(|&id| stream.push(id).is_none()));
    assert_eq!(stream.flush().unwrap(), tokenizer.decode(&ids, true).unwrap());
}

#[test]
fn long_runs_encode_and_come_back() {
    for name in ["gqa_bf16", "both_bias_bf16"] {
        let tokenizer = golden(name);
        for run in ["x", "x ", "\n", "é", "<", "<|", "12"] {
            let text = "a".to_string() + &run.repeat(30_000);
            let ids = tokenizer.encode_prompt(&text).unwrap();
            assert!(tokenizer.decode(&ids, true).unwrap() == text, "{name}: {run:?}");
        }
    }
}

#[test]
fn a_continuation_keeps_its_leading_space() {
    let tokenizer = golden("both_bias_bf16");
    let prompt = tokenizer.encode_prompt("the lamp").unwrap();
    assert_eq!(streamed(tokenizer, &[], &[339]), "a");
    assert_eq!(streamed(tokenizer, &prompt, &[339]), " a");
}

#[test]
fn byte_runs_are_held_back_until_they_end() {
    let tokenizer = golden("both_bias_bf16");
    let byte = |byte: u32| byte + 3;
    let mut stream = TextStream::new(tokenizer);
    assert_eq!(stream.push(339), Some("a".into()));
    assert_eq!(stream.push(byte(0xe2)), None);
    assert_eq!(stream.push(byte(0x82)), None);
    assert_eq!(stream.push(byte(0xac)), None);
    assert_eq!(stream.push(339), Some("€ a".into()));
    assert_eq!(stream.push(byte(0xe2)), None);
    assert_eq!(stream.flush().unwrap(), "\u{fffd}");
}

fn refusal(tokenizer: &[u8], config: Option<&[u8]>, vocab: usize) -> String {
    match Tokenizer::from_bytes(tokenizer, config, vocab) {
        Ok(_) => panic!("accepted"),
        Err(error @ Error::Text { .. }) => error.to_string(),
        Err(other) => panic!("another kind of error: {other}"),
    }
}

#[test]
fn broken_files_are_refused() {
    let path = folder("gqa_bf16").join("tokenizer.json");
    let bytes = std::fs::read(&path).unwrap();
    let good = read_json(&path);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut file = good.clone();
        change(&mut file);
        refusal(file.to_string().as_bytes(), None, 512)
    };

    assert!(
        Tokenizer::from_bytes(&bytes, None, 512).is_ok() && Tokenizer::from_bytes(&bytes, None, 600).is_ok()
    );
    assert!(refusal(&bytes, None, 511).contains("vocabulary of 511"));
    for cut in [0, 1, 100, bytes.len() / 2, bytes.len() - 2] {
        refusal(&bytes[..cut], None, 512);
    }
    let mut not_utf8 = bytes.clone();
    not_utf8[bytes.len() / 2] = 0xff;
    refusal(&not_utf8, None, 512);
    for text in ["", "null", "[]", "3", "{}", "\"x\"", "{\"model\":3}"] {
        refusal(text.as_bytes(), None, 512);
    }
    for open in ["[", "{\"a\":"] {
        refusal(open.repeat(100_000).as_bytes(), None, 512);
        let nested = format!("{{\"decoder\":{}", open.repeat(100_000));
        refusal(nested.as_bytes(), None, 512);
    }

    with(&|file| file["model"]["merges"][0] = json!(["no such", "token"]));
    with(&|file| file["model"]["merges"] = json!("t h"));
    with(&|file| file["model"]["vocab"] = json!([]));
    with(&|file| file["model"]["vocab"]["!"] = json!(-1));
    with(&|file| file["model"]["vocab"]["!"] = json!("zero"));
    assert!(with(&|file| file["model"]["vocab"]["!"] = json!(4_000_000_000_u32)).contains("4000000000"));
    with(&|file| file["model"]["type"] = json!("Markov"));
    with(&|file| file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("(unclosed"));
    with(&|file| file["decoder"] = json!({ "type": "Nonsense" }));
    with(&|file| file["added_tokens"][0]["id"] = json!(3));
    with(&|file| file["added_tokens"] = json!({}));
    // A BOS that the post-processor knows by an id of its own.
    let bos = "/post_processor/processors/1/special_tokens/<|begin_of_text|>/ids/0";
    assert!(with(&|file| *file.pointer_mut(bos).unwrap() = json!(9_999)).contains("9999"));

    assert!(refusal(&bytes, Some(b"{"), 512).contains("tokenizer_config.json"));
    assert!(refusal(&bytes, Some(b"[]"), 512).contains("tokenizer_config.json"));
}

#[test]
fn a_folder_names_the_file_at_fault() {
    let dir = tempfile::tempdir().unwrap();
    let message = |dir: &Path| Tokenizer::from_dir(dir, 512).unwrap_err().to_string();
    assert!(message(dir.path()).contains("tokenizer.json: does not exist"));
    std::fs::create_dir(dir.path().join("tokenizer.json")).unwrap();
    assert!(message(dir.path()).contains("not a regular file"));
    std::fs::remove_dir(dir.path().join("tokenizer.json")).unwrap();
    let file = std::fs::File::create(dir.path().join("tokenizer.json")).unwrap();
    file.set_len((64 << 20) + 1).unwrap();
    assert!(message(dir.path()).contains("larger than 64 MiB"));
    std::fs::write(dir.path().join("tokenizer.json"), "{").unwrap();
    assert!(message(dir.path()).contains(&dir.path().display().to_string()));
}

/// A few hundred mutations of a good file, by a fixed rule: none may panic, and what is accepted must work.
#[test]
fn mutated_files_do_not_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let (mut accepted, mut refused) = (0, 0);
    for name in ["gqa_bf16", "both_bias_bf16"] {
        let good = std::fs::read(folder(name).join("tokenizer.json")).unwrap();
        let replacements: [&[u8]; 12] = [
            b"null",
            b"[]",
            b"{}",
            b"-1",
            b"1e9",
            b"4294967295",
            b"\"\"",
            b"true",
            b"\\u0000",
            b"}",
            b",",
            b"\xff",
        ];
        for _ in 0..200 {
            let mut bytes = good.clone();
            for _ in 0..1 + random(2) {
                let at = random(bytes.len());
                match random(6) {
                    0 => bytes[at] ^= 1 << random(8),
                    // A digit for a digit, so that the JSON stays whole and the meaning does not.
                    4 | 5 => {
                        let digit =
                            bytes[at..].iter().position(u8::is_ascii_digit).map_or(at, |next| at + next);
                        bytes[digit] = b'0' + random(10) as u8;
                    }
                    1 => {
                        let end = (at + random(40)).min(bytes.len());
                        bytes.drain(at..end);
                    }
                    2 => {
                        // A value replaced by another: from a colon to the next comma.
                        let from =
                            bytes[at..].iter().position(|&b| b == b':').map_or(at, |next| at + next + 1);
                        let to =
                            bytes[from..].iter().position(|&b| b == b',').map_or(from, |next| from + next);
                        bytes.splice(from..to, replacements[random(12)].iter().copied());
                    }
                    _ => {
                        let from = random(bytes.len());
                        let copy: Vec<u8> = bytes[from..(from + random(60)).min(bytes.len())].to_vec();
                        bytes.splice(at..at, copy);
                    }
                }
            }
            match Tokenizer::from_bytes(&bytes, None, 512) {
                Err(_) => refused += 1,
                Ok(tokenizer) => {
                    accepted += 1;
                    if let Ok(ids) = tokenizer.encode_prompt("Once upon a time, ünd <s> 12") {
                        assert!(ids.iter().all(|&id| id < 512));
                        if let Ok(text) = tokenizer.decode(&ids, true) {
                            assert_eq!(streamed(&tokenizer, &[], &ids), text);
                        }
                    }
                }
            }
        }
    }
    assert!(accepted > 20 && refused > 100, "{accepted} accepted, {refused} refused");
}

#[test]
fn steps_that_lengthen_a_text_without_bound_are_refused() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gqa_bf16");
    let json = std::fs::read(dir.join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let replace = serde_json::json!({ "type": "Replace", "pattern": { "String": "l" }, "content": "ll" });
    json["normalizer"] = serde_json::json!({ "type": "Sequence", "normalizers": vec![replace; 40] });
    let error = Tokenizer::from_bytes(json.to_string().as_bytes(), None, 512).unwrap_err().to_string();
    assert!(error.contains("times longer"), "{error}");
}

/// Prose, code, tables, Chinese and long runs of blanks and signs, in an order that repeats nothing.
fn long_text() -> String {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["README.md", "docs/demo.md", "src/text/tokenizer.rs", "tests/text.rs", "docs/demo-log.csv"];
    let mut lines: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let text = std::fs::read_to_string(root.join(file)).unwrap();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    lines.extend([
        "起初，神创造天地。地是空虚混沌，渊面黑暗。".into(),
        " ".repeat(99),
        "-".repeat(500),
        "🦀👩‍👩‍👧 é\r".into(),
    ]);
    let (mut text, mut state) = (String::new(), 1u64);
    while text.len() < 200 << 10 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let line = &lines[(state >> 33) as usize % lines.len()];
        text += line;
        // Some stretches have no line's end at all.
        text += if text.len() >> 16 == 1 { " " } else { "\n" };
    }
    text
}

#[test]
fn a_long_text_has_the_ids_of_the_whole() {
    let marked = long_text();
    // Without names of control tokens, which only a template's text may hold.
    let text = marked.replace('<', "(");
    // Llama 2 as it was converted first: the space in front is a normalizer's, and all text is one word.
    let mut prepending = read_json(&folder("mqa_f16").join("tokenizer.json"));
    prepending["normalizer"] = serde_json::json!({ "type": "Sequence", "normalizers": [
        { "type": "Prepend", "prepend": "▁" },
        { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
    ] });
    prepending["pre_tokenizer"] = serde_json::Value::Null;
    let mut files: Vec<Vec<u8>> =
        CHECKPOINTS.iter().map(|name| std::fs::read(folder(name).join("tokenizer.json")).unwrap()).collect();
    files.push(prepending.to_string().into_bytes());
    files.push(std::fs::read("assets/demo/tokenizer.json").unwrap());
    for file in files {
        let ours = Tokenizer::from_bytes(&file, None, 4096).unwrap();
        let theirs = tokenizers::Tokenizer::from_bytes(&file).unwrap();
        let whole = theirs.encode_fast(text.as_str(), false).unwrap();
        assert!(ours.encode_text(&text).unwrap() == whole.get_ids(), "plain text");
        let template = theirs.encode_fast(marked.as_str(), false).unwrap();
        assert!(ours.encode_template(&marked).unwrap() == template.get_ids(), "a template's text");
        let whole = theirs.encode_fast(text.as_str(), true).unwrap();
        assert!(ours.encode_prompt(&text).unwrap() == whole.get_ids(), "a prompt");
        assert_eq!(ours.leading_ids(), &whole.get_ids()[..ours.leading_ids().len()]);
        let count = whole.get_ids().len();
        assert_eq!(ours.encode_prompt_within(&text, count).unwrap().map(|ids| ids.len()), Some(count));
        assert_eq!(ours.encode_prompt_within(&text, count - 1).unwrap(), None);
        assert_eq!(ours.encode_prompt_within(&text, 100).unwrap(), None);
        let endless = ours.encode_prompt(&"a".repeat(1 << 20)).unwrap_err().to_string();
        assert!(endless.contains("no place where it can be cut"), "{endless}");
    }
}
