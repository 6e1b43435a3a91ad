//! What several tests share: the golden checkpoints, and generating from a loaded model.
#![allow(dead_code)]

pub mod distribution;
pub mod reference;

use std::path::{Path, PathBuf};

use serde_json::Value;
use warploom::{
    backend::{Backend, Cpu, Row},
    cache::Cache,
    checkpoint::Checkpoint,
    decode::{Finished, Generator, Limits, Observer, Request, Sampling, Stop},
    model::Llama,
};

/// The folders of `tests/golden`.
pub const GOLDEN: [&str; 6] =
    ["gqa_bf16", "mqa_f16", "tied_bf16_dup", "rope_llama3_v5cfg_bf16", "both_bias_bf16", "odd_all_f16"];

/// The repository; where tests were packed for another machine, what was packed of it.
pub fn repository() -> PathBuf {
    std::env::var_os("WARPLOOM_SOURCES").map_or(env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

pub fn golden_dir(name: &str) -> PathBuf {
    repository().join("tests/golden").join(name)
}

pub fn extra_dir(name: &str) -> PathBuf {
    repository().join("tests/golden_extra").join(name)
}

pub fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list of ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

pub fn load(dir: &Path, context: usize) -> Llama<Cpu> {
    let checkpoint = Checkpoint::open(dir).unwrap_or_else(|e| panic!("{e}"));
    Llama::new(&checkpoint, Cpu::new(), context).unwrap_or_else(|e| panic!("{e}"))
}

/// A greedy request without EOS, so that it runs to its length.
pub fn greedy(prompt: &[u32], max_tokens: usize) -> Request {
    Request { prompt: prompt.to_vec(), max_tokens, sampling: Sampling::default(), policy: None, eos: vec![] }
}

/// A hash of the bits of `logits`.
pub fn bits_hash(logits: &[f32]) -> u64 {
    logits.iter().fold(7u64, |h, x| (h ^ u64::from(x.to_bits())).wrapping_mul(0x100_0000_01b3))
}

/// Every row of logits that a token was chosen from, as bits.
#[derive(Default)]
pub struct Recorder {
    pub rows: Vec<Vec<u64>>,
}

impl Observer for Recorder {
    fn token(&mut self, _slot: usize, _id: u32) -> Option<Stop> {
        None
    }
    fn logits(&mut self, slot: usize, logits: &[f32]) {
        let hash = bits_hash(logits);
        if self.rows.len() <= slot {
            self.rows.resize(slot + 1, Vec::new());
        }
        self.rows[slot].push(hash);
    }
}

/// Runs `requests` as one batch; what came of each, and the hashes of its rows of logits.
pub fn run<B: Backend>(
    llama: &Llama<B>,
    requests: Vec<Request>,
    context: usize,
) -> Vec<(Finished, Vec<u64>)> {
    let max_draft =
        requests.iter().filter_map(|r| r.policy.as_ref().map(|p| p.max_draft())).max().unwrap_or(0);
    let limits = Limits { sequences: requests.len(), context, max_draft };
    let mut generator = Generator::new(llama, limits).unwrap_or_else(|e| panic!("{e}"));
    let count = requests.len();
    generator.start_all(requests).unwrap_or_else(|e| panic!("{e}"));
    let mut recorder = Recorder { rows: vec![Vec::new(); count] };
    while generator.is_active() {
        generator.round(&mut recorder).unwrap_or_else(|e| panic!("{e}"));
    }
    (0..count)
        .map(|slot| (generator.finish(slot).expect("a sequence"), std::mem::take(&mut recorder.rows[slot])))
        .collect()
}

/// Logits of every position of `ids` by the first `layers` layers, computed as decode rows.
pub fn logits<B: Backend>(llama: &Llama<B>, ids: &[u32], layers: usize) -> Vec<Vec<f32>> {
    let page = llama.backend().page_size();
    let pages = ids.len().div_ceil(page);
    let mut cache = Cache::new(pages, page, 1, pages).unwrap();
    let mut kv = llama.kv(&cache).unwrap();
    let mut work = llama.work(ids.len(), ids.len()).unwrap();
    let sequence = cache.create().unwrap();
    cache.append(sequence, ids.len(), &mut Vec::new()).unwrap();
    let rows: Vec<Row> =
        ids.iter().enumerate().map(|(position, token)| Row { token: *token, position, sequence }).collect();
    llama.forward(0..layers, &rows, &mut kv, &cache, &mut work).unwrap();
    let vocab = llama.config().vocab;
    llama.head(0, ids.len(), &mut work).unwrap().chunks(vocab).map(<[f32]>::to_vec).collect()
}
