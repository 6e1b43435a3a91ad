//! Sampling against a twin on the host that has the same bits, and against the CPU's sampler.

use ptxsim::Counters;
use warploom::{
    decode::{
        MAX_DRAFT, logits_hash,
        sampling::{Sampler, Sampling},
    },
    driver::Buffer,
    kernels::{
        Dtype, RoundRows, RowTable, Rows, RowsMut, Sample, SampleArgs, SamplePass,
        params::{WL_MAX_DRAFT, WL_SAMPLE_PART, WL_SAMPLE_ROWS, WL_STOP_NOT_FINITE, WlChoice, WlSequence},
    },
};

use super::harness::{Random, Rig, assert_the_same_each_time, rig, rigs};

pub const PLAIN: u32 = 0;
pub const DRAFT: u32 = 1;
pub const ACCEPT: u32 = 2;
pub const RESIDUAL: u32 = 3;

/// Philox4x32-10 (SC 2011, doi 10.1145/2063384.2063405), as the paper's text has it.
fn philox(mut x: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let product = |m: u32, x: u32| u64::from(m) * u64::from(x);
        let (a, b) = (product(0xd251_1f53, x[0]), product(0xcd9e_8d57, x[2]));
        x = [(b >> 32) as u32 ^ x[1] ^ key[0], b as u32, (a >> 32) as u32 ^ x[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    x
}

pub fn random_bits(state: &WlSequence, position: i32, purpose: u32) -> u64 {
    let counter = [position as u32, purpose, state.id as u32, (state.id >> 32) as u32];
    let x = philox(counter, [state.seed as u32, (state.seed >> 32) as u32]);
    u64::from(x[0]) | u64::from(x[1]) << 32
}

fn order(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    bits ^ if (bits as i32) < 0 { u32::MAX } else { 0x8000_0000 }
}

/// e^x by the same multiplications and additions as the kernels'.
fn exp(x: f32) -> f32 {
    if x.partial_cmp(&-87.0) != Some(std::cmp::Ordering::Greater) {
        return 0.0;
    }
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-1.428_606_8e-6, n.mul_add(-0.693_145_75, x));
    let terms = [5040.0f32, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0].map(|k| 1.0 / k);
    let y = terms[1..].iter().fold(terms[0], |y, term| y.mul_add(r, *term));
    f32::from_bits((y.to_bits() as i32 + ((n as i32) << 23)) as u32)
}

fn weight(score: f32, max: f32, temperature: f32) -> f32 {
    let inverse = (1.0 / temperature).min(f32::MAX);
    let difference = score - max;
    let x = difference * inverse;
    exp((-x).mul_add(temperature, difference).mul_add(inverse, x))
}

pub fn mass(weight: f32) -> u64 {
    (weight * (1u64 << 42) as f32) as u64
}

fn rank(weight: f32, id: usize) -> u64 {
    u64::from(weight.to_bits()) << 32 | u64::from(!(id as u32))
}

fn high_half(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

/// A row of logits worked out on the host.
#[derive(Clone, Debug)]
pub struct Twin {
    pub choice: WlChoice,
    scores: Vec<f32>,
    temperature: f32,
}

impl Twin {
    /// The distribution of a row behind `before` of the sequence's drafts; None if a logit is not finite.
    pub fn new(logits: &[f32], state: &WlSequence, seen: &[u32], before: usize) -> Option<Twin> {
        let penalty = state.repetition_penalty;
        let history = |id: usize| {
            seen[id / 32] >> (id % 32) & 1 == 1 || state.drafts[..before].iter().any(|d| *d as usize == id)
        };
        let score = |(id, &x): (usize, &f32)| match penalty != 1.0 && history(id) {
            true => (if x < 0.0 { x * penalty } else { x / penalty }).clamp(f32::MIN, f32::MAX),
            false => x,
        };
        if !logits.iter().all(|x| x.is_finite()) {
            return None;
        }
        let scores: Vec<f32> = logits.iter().enumerate().map(score).collect();
        let id = (0..scores.len()).max_by_key(|id| (order(scores[*id]), !*id))?;
        let max = scores[id] + 0.0;
        let greedy = state.temperature == 0.0;
        let temperature = if greedy { 1.0 } else { state.temperature };
        let weights: Vec<f32> = scores.iter().map(|x| weight(*x, max, temperature)).collect();
        let mut choice = WlChoice { max, id: id as i32, least: f32::MIN, ..WlChoice::default() };
        if greedy {
            choice = WlChoice { least: max, cut: rank(1.0, id), inverse: 1.0, ..choice };
            return Some(Twin { choice, scores, temperature });
        }
        let possible = |least: f32| -> Vec<usize> {
            (0..scores.len()).filter(|id| weights[*id] > 0.0 && scores[*id] >= least).collect()
        };
        let k = state.top_k as usize;
        if k > 0 && k < scores.len() {
            let mut best: Vec<u32> = possible(f32::MIN).iter().map(|id| order(scores[*id])).collect();
            best.sort_unstable_by(|a, b| b.cmp(a));
            if let Some(last) = best.get(k - 1) {
                choice.least = scores[(0..scores.len()).find(|id| order(scores[*id]) == *last)?] + 0.0;
            }
        }
        if state.top_p < 1.0 {
            let mut ranked = possible(choice.least);
            ranked.sort_unstable_by_key(|id| !rank(weights[*id], *id));
            let all: u64 = ranked.iter().map(|id| mass(weights[*id])).sum();
            let fraction = ((state.top_p * (1u64 << 63) as f32) as u64) << 1;
            let enough =
                high_half(fraction, all) + u64::from(fraction == 0 || fraction.wrapping_mul(all) != 0);
            let mut above = 0;
            for id in ranked {
                if above >= enough {
                    break;
                }
                choice.cut = rank(weights[id], id);
                above += mass(weights[id]);
            }
        }
        if state.min_p > 0.0 {
            choice.cut = choice.cut.max(u64::from(state.min_p.to_bits()) << 32);
        }
        let mut twin = Twin { choice, scores, temperature };
        let total: u64 = (0..twin.scores.len()).map(|id| twin.mass(id)).sum();
        twin.choice.inverse = (1u64 << 42) as f32 / total as f32;
        Some(twin)
    }

    fn kept_weight(&self, id: usize) -> f32 {
        let weight = weight(self.scores[id], self.choice.max, self.temperature);
        let kept = self.scores[id] >= self.choice.least && rank(weight, id) >= self.choice.cut;
        if kept { weight } else { 0.0 }
    }

    fn mass(&self, id: usize) -> u64 {
        mass(self.kept_weight(id))
    }

    pub fn probability(&self, id: usize) -> f32 {
        self.kept_weight(id) * self.choice.inverse
    }

    pub fn probabilities(&self) -> Vec<f32> {
        (0..self.scores.len()).map(|id| self.probability(id)).collect()
    }

    /// Makes the choice one that was drawn.
    pub fn draw(&mut self, bits: u64) {
        let id = draw(&(0..self.scores.len()).map(|id| self.mass(id)).collect::<Vec<_>>(), bits);
        self.choice.id = id as i32;
        self.choice.probability = self.probability(id);
    }

    /// How sure a greedy draft is of itself, under the softmax of the logits as they are.
    pub fn confidence(&self, logits: &[f32]) -> f32 {
        let max = logits.iter().copied().fold(f32::MIN, f32::max);
        let total: u64 = logits.iter().map(|x| mass(weight(*x, max, 1.0))).sum();
        weight(logits[self.choice.id as usize], max, 1.0) * ((1u64 << 42) as f32 / total as f32)
    }
}

/// The id that the random bits fall on when masses lie one after the other.
pub fn draw(masses: &[u64], bits: u64) -> usize {
    let mut left = high_half(bits, masses.iter().sum());
    for (id, mass) in masses.iter().enumerate() {
        if left < *mass {
            return id;
        }
        left -= mass;
    }
    unreachable!("the target is under the sum")
}

/// A sequence with these settings whose next row is a plain step.
pub fn sequence(sampling: Sampling, id: u64) -> WlSequence {
    WlSequence {
        seed: sampling.seed,
        id,
        temperature: sampling.temperature,
        top_k: sampling.top_k as i32,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        length: 100 + id as i32 % 1000,
        remaining: 1000,
        rows: 1,
        closed: 1,
        ..WlSequence::default()
    }
}

/// Rows of the verification, as many per sequence as its state says, and what is launched over them.
struct Case {
    vocab: usize,
    states: Vec<WlSequence>,
    seen: Vec<u32>,
    /// Row by row.
    logits: Vec<f32>,
    stride: usize,
}

struct Run {
    choices: Vec<WlChoice>,
    probabilities: Vec<f32>,
    states: Vec<WlSequence>,
    counters: Option<Counters>,
}

impl Case {
    fn new(vocab: usize, mut states: Vec<WlSequence>, logits: Vec<f32>) -> Case {
        let mut row = 0;
        for state in &mut states {
            state.verify_row = row;
            row += state.rows;
        }
        assert_eq!(logits.len(), row as usize * vocab);
        Case { vocab, seen: vec![0; states.len() * vocab.div_ceil(32)], states, logits, stride: vocab }
    }

    fn rows(&self) -> usize {
        self.logits.len() / self.stride
    }

    /// Positions and sequences.
    fn table(&self) -> (Vec<i32>, Vec<i32>) {
        let rows = self.states.iter().enumerate();
        rows.flat_map(|(s, state)| (0..state.rows).map(move |i| (state.length + i, s as i32))).unzip()
    }

    fn run(&self, rig: &Rig, full: bool) -> Run {
        let (positions, sequences) = self.table();
        self.run_rows(rig, full, &positions, &sequences)
    }

    fn run_rows(&self, rig: &Rig, full: bool, positions: &[i32], sequences: &[i32]) -> Run {
        let (rows, vocab) = (self.rows(), self.vocab);
        // NaN behind the last row, or nothing at all.
        let behind = if vocab % 2 == 0 { 8 } else { 0 };
        let logits = rig.upload(&[&self.logits[..], &[f32::NAN; 8][..behind]].concat());
        let mut tables = [
            rig.poisoned(16, Dtype::F32),
            rig.poisoned(16, Dtype::F32),
            rig.poisoned(16, Dtype::F32),
            rig.poisoned(rows, Dtype::F32),
            rig.upload(positions),
            rig.upload(sequences),
        ];
        let mut states = rig.upload(&self.states);
        let seen = rig.upload(&self.seen);
        let mut choices = rig.upload(&vec![UNTOUCHED; rows]);
        let mut probabilities = rig.poisoned(rows * vocab, Dtype::F32);
        let mut hashes = rig.upload(&vec![UNTOUCHED_HASH; rows]);
        let mut scratch = rig.upload(&vec![0u8; Sample::scratch_bytes(rows, vocab)]);
        let [a, b, c, d, e, f] = &mut tables;
        let args = SampleArgs {
            pass: SamplePass::Verify,
            rows: 0..rows,
            vocab,
            logits: Rows { view: logits.view(), stride: self.stride },
            round: RoundRows {
                steps: 1,
                draft_rows: 1,
                draft: table(a, b, c),
                verify_rows: rows,
                verify: table(d, e, f),
            },
            slots: self.states.len(),
            states: states.view_mut(),
            seen: Some(Rows { view: seen.view(), stride: vocab.div_ceil(32) }),
            choices: choices.view_mut(),
            probabilities: full.then(|| RowsMut { view: probabilities.view_mut(), stride: vocab }),
            hashes: full.then(|| hashes.view_mut()),
            scratch: scratch.view_mut(),
        };
        let mut reports = rig.reports(|| rig.kernels.sample.launch(&rig.stream, &args));
        let tickets = rig.bytes(&scratch);
        assert!(
            tickets[..4 * WL_SAMPLE_ROWS as usize].iter().all(|b| *b == 0),
            "tickets are left as they were found"
        );
        // Whose choice was made, that row was hashed.
        let (choices, hashes): (Vec<WlChoice>, Vec<u64>) = (read(rig, &choices), read(rig, &hashes));
        for (row, (choice, hash)) in choices.iter().zip(hashes).enumerate() {
            let alive = full && choice.id != UNTOUCHED.id;
            let logits = &self.logits[row * self.stride..][..vocab];
            let want = if alive { logits_hash(logits) } else { UNTOUCHED_HASH };
            assert_eq!(hash, want, "{}: vocab {vocab}, hash of row {row}", rig.name);
        }
        Run {
            choices,
            probabilities: if full { read(rig, &probabilities) } else { vec![] },
            states: read(rig, &states),
            counters: reports.pop().map(|r| r.counters),
        }
    }

    /// The row `i` of a sequence on the host.
    fn twin(&self, slot: usize, i: usize) -> Option<Twin> {
        let state = &self.states[slot];
        let row = state.verify_row as usize + i;
        let words = self.vocab.div_ceil(32);
        let seen = &self.seen[slot * words..][..words];
        let mut twin = Twin::new(&self.logits[row * self.stride..][..self.vocab], state, seen, i)?;
        if state.temperature > 0.0 && i == state.drafted as usize {
            twin.draw(random_bits(state, state.length + i as i32, PLAIN));
        }
        Some(twin)
    }

    fn check(&self, rig: &Rig) {
        let run = self.run(rig, true);
        for (slot, state) in self.states.iter().enumerate() {
            for i in 0..state.rows as usize {
                let row = state.verify_row as usize + i;
                let what = format!("{}: vocab {}, row {row}, {:?}", rig.name, self.vocab, settings(state));
                let Some(twin) = self.twin(slot, i) else {
                    assert_eq!(run.choices[row].id, -1, "{what}");
                    continue;
                };
                assert_same(&[run.choices[row]], &[twin.choice], &what);
                let want = twin.probabilities();
                let got = &run.probabilities[row * self.vocab..][..self.vocab];
                assert!(same_bits(got, &want), "{what}: probabilities");
                self.check_with_cpu(slot, i, &want, &what);
            }
        }
        assert_same(&run.states, &self.states, "a verification changes no state");
    }

    /// The same support as the CPU's sampler, and probabilities that differ by rounding.
    fn check_with_cpu(&self, slot: usize, i: usize, got: &[f32], what: &str) {
        let state = &self.states[slot];
        let words = self.vocab.div_ceil(32);
        let mut sampler = Sampler::new(settings(state), self.vocab).unwrap();
        for id in 0..self.vocab {
            if self.seen[slot * words + id / 32] >> (id % 32) & 1 == 1 {
                sampler.see(id as u32);
            }
        }
        state.drafts[..i].iter().for_each(|id| sampler.see(*id as u32));
        let logits = &self.logits[(state.verify_row as usize + i) * self.stride..][..self.vocab];
        let mut want = vec![0.0; self.vocab];
        let (top, _) = sampler.distribution(logits, &mut want).unwrap();
        // At high temperatures logits that differ may have one probability, or two that differ by rounding.
        let most = got.iter().copied().fold(0.0, f32::max);
        assert!(got[top as usize] >= most * (1.0 - 1e-6), "{what}: {top} is not the most probable token");
        // Of the tokens at the end of top-p, which of two is kept may turn on the last bit of a mass.
        let lost: f64 = difference(&want, got).sum();
        // The kernels' weights end at e^-87, 1e-38.
        let odd: Vec<_> = (0..got.len()).filter(|id| (got[*id] > 1e-37) != (want[*id] > 1e-37)).collect();
        if !odd.is_empty() {
            let kept: f64 = want.iter().map(|p| f64::from(*p)).filter(|p| *p > 0.0).sum();
            // Of a top-p next to 1 they may be many, each less than that bit.
            let moved: f64 = odd.iter().map(|id| f64::from(want[*id].max(got[*id]))).sum();
            let is_small = odd.len() <= 2 || moved <= 1e-6 * kept;
            assert!(state.top_p < 1.0 && is_small, "{what}: support differs at {odd:?}");
            assert!(lost <= 4.0 * f64::from(want[odd[0]].max(got[odd[0]])) + 1e-6 * kept, "{what}: {lost}");
            return;
        }
        for (id, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got - want).abs() <= 2e-6 * want + 1e-37, "{what}: id {id}: {got}, not {want}");
        }
    }
}

fn difference<'a>(a: &'a [f32], b: &'a [f32]) -> impl Iterator<Item = f64> + 'a {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs())
}

const UNTOUCHED_HASH: u64 = 0x7777;
const UNTOUCHED: WlChoice =
    WlChoice { cut: 7, max: 7.0, least: 7.0, inverse: 7.0, probability: 7.0, id: 7777, reserved: 7 };

/// Asserts that structs are the same bit for bit.
pub fn assert_same<T: bytemuck::NoUninit + std::fmt::Debug>(got: &[T], want: &[T], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: count");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let same = bytemuck::bytes_of(got) == bytemuck::bytes_of(want);
        assert!(same, "{what}: {i} is\n{got:?}, not\n{want:?}");
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

pub fn settings(state: &WlSequence) -> Sampling {
    Sampling {
        temperature: state.temperature,
        top_k: state.top_k as usize,
        top_p: state.top_p,
        min_p: state.min_p,
        repetition_penalty: state.repetition_penalty,
        seed: state.seed,
    }
}

pub fn table<'b>(
    tokens: &'b mut Buffer,
    positions: &'b mut Buffer,
    sequences: &'b mut Buffer,
) -> RowTable<'b> {
    RowTable { tokens: tokens.view_mut(), positions: positions.view_mut(), sequences: sequences.view_mut() }
}

pub fn read<T: bytemuck::Pod>(rig: &Rig, buffer: &Buffer) -> Vec<T> {
    let mut data = vec![T::zeroed(); buffer.bytes() / size_of::<T>()];
    rig.stream.download(buffer.view(), &mut data).expect("download");
    data
}

/// Settings drawn at random, each of them often off.
pub fn any_sampling(random: &mut Random) -> Sampling {
    Sampling {
        temperature: random.pick(&[0.0, 0.05, 0.6, 1.0, 1.0, 1.7, 100.0]),
        top_k: random.pick(&[0, 0, 1, 2, 40, 300, 5000]),
        top_p: random.pick(&[1.0, 1.0, 0.0, 0.3, 0.9, 0.999, 0.999_999_94]),
        min_p: random.pick(&[0.0, 0.0, 1e-6, 0.05, 1.0]),
        repetition_penalty: random.pick(&[1.0, 1.0, 1.3, 0.7, 1e30]),
        seed: random.range(0, usize::MAX - 1) as u64,
    }
}

/// Logits as models have them, or flat, or with many ties.
pub fn any_logits(random: &mut Random, vocab: usize) -> Vec<f32> {
    let kind = random.range(0, 6);
    (0..vocab)
        .map(|_| match kind {
            0 => 0.0,
            1 => (random.normal() * 2.0).round() as f32,
            2 => random.normal() as f32 * 1e-3 - 5.0,
            3 => random.normal() as f32 * 30.0,
            4 => (random.normal() * 1e38).clamp(-3.4e38, 3.4e38) as f32,
            _ => random.normal() as f32 * 3.0,
        })
        .collect()
}

fn random_case(random: &mut Random, vocab: usize, sequences: usize) -> Case {
    let (mut states, mut logits) = (vec![], vec![]);
    for _ in 0..sequences {
        let mut state = sequence(any_sampling(random), random.range(0, usize::MAX - 1) as u64);
        state.length = random.range(0, 1 << 20) as i32;
        state.drafted = random.range(0, 2) as i32;
        state.rows = state.drafted + random.range(0, 1) as i32;
        state.rows = state.rows.max(1);
        for draft in &mut state.drafts {
            *draft = random.range(0, vocab - 1) as i32;
        }
        (0..state.rows).for_each(|_| logits.extend(any_logits(random, vocab)));
        states.push(state);
    }
    let mut case = Case::new(vocab, states, logits);
    for _ in 0..vocab.min(40) * sequences {
        let (slot, id) = (random.range(0, sequences - 1), random.range(0, vocab - 1));
        case.seen[slot * vocab.div_ceil(32) + id / 32] |= 1 << (id % 32);
    }
    case
}

#[test]
fn the_random_numbers_are_philox() {
    // Random123's published vectors for philox4x32 with ten rounds (kat_vectors; also numpy's and PyTorch's generator).
    let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
    for (counter, key, want) in [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
    ] {
        assert_eq!(philox(counter, key), want);
    }
}

#[test]
fn any_settings_and_vocabulary() {
    let mut random = Random::new("sample any");
    let rigs = rigs();
    for vocab in [1, 2, 3, 31, 32, 127, 130, 2048] {
        for rig in &rigs {
            random_case(&mut random, vocab, 8).check(rig);
        }
    }
    for _ in 0..6 {
        let vocab = random.range(1, 12000);
        random_case(&mut random, vocab, 6).check(random.one_of(&rigs));
    }
    random_case(&mut random, 32000, 5).check(random.one_of(&rigs));
}

#[test]
fn a_large_vocabulary() {
    let mut random = Random::new("sample large");
    let vocab = 128256;
    let sampling = Sampling { temperature: 0.8, top_k: 50, top_p: 0.9, ..Sampling::default() };
    let states = vec![sequence(Sampling::default(), 1), sequence(sampling, 2)];
    let logits = (0..2 * vocab).map(|_| random.normal() as f32 * 3.0).collect();
    Case::new(vocab, states, logits).check(&rig());
}

/// More ties than candidates or rivals have room for: every digit of a rank decides somewhere.
#[test]
fn ties_go_to_the_lowest_ids() {
    let rigs = rigs();
    let base = Sampling { temperature: 1.0, ..Sampling::default() };
    for (vocab, rig) in [(600, &rigs[0]), (6000, &rigs[rigs.len() - 1])] {
        let steps: Vec<f32> = (0..vocab).map(|id| -((id % 5) as f32)).collect();
        // Weights that differ in their last bits alone.
        let close: Vec<f32> = (0..vocab).map(|id| ((id * 7919) % vocab) as f32 * -2e-7).collect();
        let (mut states, mut logits) = (vec![], vec![]);
        // Scores that differ where hundreds of weights do not: top-p ranks by weight and id, but only what top-k left.
        let closer: Vec<f32> = (0..vocab).map(|id| ((id * 7919) % vocab) as f32 * -2e-10).collect();
        let zeros = (0..vocab).map(|id| if id % 2 == 0 { -0.0 } else { 0.0 }).collect();
        for row in [vec![0.0; vocab], zeros, steps, close, closer] {
            for sampling in [
                Sampling { temperature: 0.0, ..base },
                Sampling { top_p: 0.5, ..base },
                Sampling { top_k: 3, ..base },
                Sampling { top_k: vocab / 2, top_p: 0.25, ..base },
                Sampling { min_p: (-1.0f32).exp(), top_p: 0.9, ..base },
                Sampling { top_k: vocab / 2, top_p: 0.999_99, ..base },
            ] {
                states.push(sequence(sampling, states.len() as u64));
                logits.extend(&row);
            }
        }
        let case = Case::new(vocab, states, logits);
        case.check(rig);
        // By hand: of equal tokens top-p keeps the first half, top-k all.
        let run = case.run(rig, true);
        let kept = |row: usize| {
            let p = &run.probabilities[row * vocab..][..vocab];
            (0..vocab).filter(|id| p[*id] > 0.0).collect::<Vec<_>>()
        };
        assert_eq!([run.choices[0].id, run.choices[6].id], [0, 0], "zeros of both signs are one");
        assert_eq!(kept(1), (0..vocab / 2).collect::<Vec<_>>());
        assert_eq!(kept(2).len(), vocab);
        assert_eq!(kept(3), (0..vocab / 4).collect::<Vec<_>>());
        assert_eq!(kept(14), (0..vocab).filter(|id| id % 5 == 0).collect::<Vec<_>>(), "top-k's last tie");
    }
}

/// A row with 400 tokens over the 2^-14 that makes candidates: filters that end among them, at the last and past it.
#[test]
fn filters_end_among_candidates_or_past_them() {
    let vocab = 700;
    let base = Sampling { temperature: 1.0, ..Sampling::default() };
    let row: Vec<f32> = (0..vocab).map(|id| (id * 3 % vocab) as f32 * (-9.7 / 400.0)).collect();
    let settings = [
        Sampling { top_k: 399, ..base },
        Sampling { top_k: 400, ..base },
        Sampling { top_k: 401, ..base },
        Sampling { top_k: 600, top_p: 0.99, ..base },
        Sampling { top_p: 0.99, ..base },
        Sampling { top_p: 0.99999, ..base },
        Sampling { min_p: 0.01, ..base },
        Sampling { min_p: 1e-6, ..base },
        Sampling { temperature: 1e-40, ..base },
    ];
    let states = (1..).zip(settings).map(|(id, sampling)| sequence(sampling, id)).collect();
    let case = Case::new(vocab, states, row.repeat(settings.len()));
    rigs().iter().for_each(|rig| case.check(rig));
}

#[test]
fn logits_that_are_not_finite_are_told() {
    let vocab = WL_SAMPLE_PART as usize + 9;
    for (i, rig) in rigs().iter().enumerate() {
        let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][i % 3];
        for at in [0, 5, WL_SAMPLE_PART as usize - 1, vocab - 1] {
            let sampling = Sampling { temperature: 0.7, repetition_penalty: 1.5, ..Sampling::default() };
            let states = vec![sequence(Sampling::default(), 1), sequence(sampling, 2), sequence(sampling, 3)];
            let mut logits = vec![1.0; 3 * vocab];
            logits[at] = bad;
            logits[vocab + at] = bad;
            let mut case = Case::new(vocab, states, logits);
            // A token that was seen is looked at before the penalty.
            case.seen.fill(u32::MAX);
            let run = case.run(rig, false);
            assert_eq!([run.choices[0].id, run.choices[1].id], [-1, -1], "{bad} at {at}");
            assert!(run.choices[2].id >= 0, "of its own row alone");
        }
    }
}

/// Settings that make no sense are taken as the nearest that do. A token comes of any.
#[test]
fn settings_that_make_no_sense_do_no_harm() {
    let mut random = Random::new("sample settings");
    let base = Sampling { temperature: 1.0, ..Sampling::default() };
    let (hot, min_p) = (|temperature| Sampling { temperature, ..base }, |min_p| Sampling { min_p, ..base });
    let top_p = |top_p| Sampling { top_p, ..base };
    let pairs = [
        (hot(f32::NAN), hot(0.0)),
        (hot(-1e-30), hot(0.0)),
        (hot(-1.0), hot(0.0)),
        (hot(f32::NEG_INFINITY), hot(0.0)),
        (hot(f32::INFINITY), hot(f32::MAX)),
        (min_p(1.5), min_p(1.0)),
        (min_p(2.0), min_p(1.0)),
        (min_p(f32::INFINITY), min_p(1.0)),
        (min_p(f32::NAN), base),
        (min_p(-1.0), base),
        (top_p(f32::NAN), base),
        (top_p(2.0), base),
        (top_p(-1.0), top_p(0.0)),
        (top_p(f32::NEG_INFINITY), top_p(0.0)),
    ];
    for vocab in [700, WL_SAMPLE_PART as usize + 300] {
        let row: Vec<f32> = (0..vocab).map(|_| random.normal() as f32 * 3.0).collect();
        let case = |settings: Vec<Sampling>| {
            let states: Vec<_> = (0..).zip(&settings).map(|(id, s)| sequence(*s, id)).collect();
            Case::new(vocab, states, row.repeat(settings.len()))
        };
        let odd = case(pairs.iter().map(|p| p.0).collect());
        let even = case(pairs.iter().map(|p| p.1).collect());
        let penalties = [f32::NAN, f32::INFINITY, 0.0, -1.0].map(|repetition_penalty| {
            [0.0, 1.0].map(|temperature| Sampling { repetition_penalty, temperature, ..base })
        });
        let mut penalised = case(penalties.into_iter().flatten().collect());
        penalised.seen.iter_mut().for_each(|word| *word = random.range(0, u32::MAX as usize) as u32);
        (penalised.states[1].top_k, penalised.states[3].top_k) = (-1, i32::MIN);
        for rig in rigs() {
            let (got, want) = (odd.run(&rig, true), even.run(&rig, true));
            assert_same(&got.choices, &want.choices, &rig.name);
            assert!(same_bits(&got.probabilities, &want.probabilities), "{}", rig.name);
            let choices = [got.choices, penalised.run(&rig, true).choices].concat();
            for choice in choices {
                assert!((0..vocab as i32).contains(&choice.id) && choice.inverse > 0.0, "{choice:?}");
            }
        }
    }
}

/// 100 launches of everything there is.
#[test]
fn the_same_launch_gives_the_same_bits() {
    let case = random_case(&mut Random::new("sample repeats"), WL_SAMPLE_PART as usize + 300, 3);
    assert_the_same_each_time(&rigs(), |rig| {
        let run = case.run(rig, false);
        bytemuck::cast_slice::<_, u8>(&run.choices).to_vec()
    });
}

#[test]
fn rows_that_nobody_asks_for_are_left_alone() {
    let rig = rig();
    let state = sequence(Sampling { temperature: 1.0, ..Sampling::default() }, 5);
    let mut ended = state;
    ended.stop = WL_STOP_NOT_FINITE;
    let out = WlSequence { verify_row: -1, ..state };
    let mut case = Case::new(40, vec![state; 8], vec![f32::NAN; 8 * 40]);
    case.states[0].length = -1;
    case.states[5] = ended;
    case.states[6] = out;
    case.states[7].rows = i32::MAX;
    let at = state.length;
    // Dead; a slot that there is none of; a position before and behind the round; ended; not in the round; a row that
    // no round has.
    let positions = [-1, at, at, at - 1, at + 1, at, at, at + 1 + MAX_DRAFT as i32];
    let sequences = [0, 8, -3, 3, 4, 5, 6, 7];
    let run = case.run_rows(&rig, false, &positions, &sequences);
    assert_same(&run.choices, &[UNTOUCHED; 8], "dead rows");
}

/// A row has the same bits in any slot, row and company.
#[test]
fn a_row_depends_on_itself_alone() {
    let mut random = Random::new("sample company");
    let rig = rig();
    let vocab = 300;
    let mut case = random_case(&mut random, vocab, 5);
    for state in &mut case.states {
        state.temperature = 0.9;
    }
    let whole = case.run(&rig, false).choices;
    for slot in 0..5 {
        let state = case.states[slot];
        let (first, rows) = (state.verify_row as usize, state.rows as usize);
        let mut alone = Case::new(vocab, vec![state], case.logits[first * vocab..][..rows * vocab].to_vec());
        alone.seen.copy_from_slice(&case.seen[slot * vocab.div_ceil(32)..][..vocab.div_ceil(32)]);
        assert_same(&alone.run(&rig, false).choices, &whole[first..][..rows], "alone");
    }
}

/// Ids drawn at many positions of many sequences: the device's are the twin's, and the twin's fit the distribution.
#[test]
fn draws_are_distributed_as_told() {
    let mut random = Random::new("sample draws");
    let rig = rig();
    let vocab = 12;
    let sampling = Sampling { temperature: 0.8, top_p: 0.95, seed: 11, ..Sampling::default() };
    let row: Vec<f32> = (0..vocab).map(|_| random.normal() as f32 * 2.0).collect();
    let draws = 300;
    let mut states = vec![];
    for i in 0..draws {
        let mut state = sequence(sampling, i as u64 / 10);
        state.length = (i % 10) as i32;
        states.push(state);
    }
    let case = Case::new(vocab, states, row.repeat(draws));
    let run = case.run(&rig, false);
    for slot in 0..draws {
        assert_same(&run.choices[slot..=slot], &[case.twin(slot, 0).unwrap().choice], "a draw");
    }
    let mut twin = case.twin(0, 0).unwrap();
    let p = twin.probabilities();
    for purpose in [PLAIN, DRAFT, RESIDUAL] {
        let mut counts = vec![0; vocab];
        for i in 0..20000 {
            let state = sequence(Sampling { seed: i % 3, ..sampling }, i / 100);
            twin.draw(random_bits(&state, (i % 100) as i32, purpose));
            counts[twin.choice.id as usize] += 1;
        }
        let p: Vec<f64> = p.iter().map(|p| f64::from(*p)).collect();
        assert!(fits(&counts, &p), "{counts:?} of {p:?}");
        let wrong: Vec<f64> = p.iter().map(|p| 0.9 * p + 0.1 / vocab as f64).collect();
        assert!(!fits(&counts, &wrong), "the test would not tell a wrong distribution");
    }
}

/// At this position of this sequence, under seed 1, Philox gives 64 zeros for `purpose`: found by running its rounds
/// backwards, as 2^33 sequences had to be tried.
pub fn all_zeros(purpose: u32) -> (u64, i32) {
    match purpose {
        PLAIN => (0x0b76_d2b0_28dd_4a3a, 651_090_212),
        ACCEPT => (0xc823_f12e_1702_290d, 999_876_760),
        _ => panic!("nobody looked for those"),
    }
}

/// Likewise 64 ones, for a plain draw.
const ALL_ONES: (u64, i32) = (0x7ce3_fd45_73e2_78e8, 580_322_922);

/// A number of zeros only falls on the first token that has any probability, one of ones only on the last.
#[test]
fn the_ends_of_the_random_numbers_are_tokens_with_probability() {
    let vocab = 4000;
    let sampling = Sampling { temperature: 1.0, min_p: 0.5, seed: 1, ..Sampling::default() };
    let mut states = vec![];
    let mut logits = vec![];
    for (first, last) in [(0, 3999), (1, 3), (2501, 2700), (3999, 3999), (3, 2431), (2432, 2560)] {
        for (id, length) in [all_zeros(PLAIN), ALL_ONES] {
            states.push(WlSequence { length, ..sequence(sampling, id) });
            logits.extend((0..vocab).map(|id| if (first..=last).contains(&id) { 3.0 } else { -3.0 }));
            let bits = random_bits(&states[states.len() - 1], length, PLAIN);
            assert!(bits == 0 || bits == u64::MAX);
        }
    }
    let case = Case::new(vocab, states, logits);
    for rig in rigs() {
        let ids: Vec<i32> = case.run(&rig, false).choices.iter().map(|c| c.id).collect();
        assert_eq!(ids, [0, 3999, 1, 3, 2501, 2700, 3999, 3999, 3, 2431, 2432, 2560]);
    }
    // So large that a warp looks for the token in two steps: the first token, and the last, are in the second.
    let vocab = 40000;
    let states =
        [all_zeros(PLAIN), ALL_ONES].map(|(id, length)| WlSequence { length, ..sequence(sampling, id) });
    let row = |range: std::ops::Range<usize>| {
        (0..vocab).map(move |id| if range.contains(&id) { 3.0 } else { -3.0 })
    };
    let case = Case::new(vocab, states.to_vec(), row(130..500).chain(row(100..250)).collect());
    let choices = case.run(&rig(), false).choices;
    assert_eq!([choices[0].id, choices[1].id], [130, 249]);
}

/// Pearson's test at about 1e-9: whether counts may come from these probabilities.
pub fn fits(counts: &[usize], p: &[f64]) -> bool {
    let (n, total): (f64, f64) = (counts.iter().sum::<usize>() as f64, p.iter().sum());
    let (mut statistic, mut cells) = (0.0, 0);
    let (mut rare, mut rare_count) = (0.0, 0.0);
    for (count, p) in counts.iter().zip(p) {
        let expected = n * p / total;
        if expected < 5.0 {
            rare += expected;
            rare_count += *count as f64;
            if expected == 0.0 && *count > 0 {
                return false;
            }
            continue;
        }
        statistic += (*count as f64 - expected).powi(2) / expected;
        cells += 1;
    }
    if rare > 0.0 {
        statistic += (rare_count - rare).powi(2) / rare.max(5.0);
        cells += 1;
    }
    // Wilson and Hilferty's approximation of the quantile at six standard deviations.
    let k = f64::from((cells - 1).max(1));
    statistic <= k * (1.0 - 2.0 / (9.0 * k) + 6.0 * (2.0 / (9.0 * k)).sqrt()).powi(3)
}

/// The logits are read once for a greedy choice; to sample, once more and a sixteenth.
#[test]
fn logits_are_read_as_often_as_said() {
    let mut random = Random::new("sample bytes");
    let rig = rig();
    let vocab = 32768;
    let sampled = Sampling { temperature: 0.7, ..Sampling::default() };
    for (sampling, reads) in [
        (Sampling::default(), 1.0),
        (sampled, 2.0 + 1.0 / 16.0 + 1.0 / 256.0),
        (Sampling { top_k: 40, top_p: 0.9, min_p: 0.01, ..sampled }, 2.0 + 1.0 / 16.0 + 1.0 / 256.0),
    ] {
        let logits = (0..vocab).map(|_| random.normal() as f32 * 4.0).collect();
        let case = Case::new(vocab, vec![sequence(sampling, 1)], logits);
        let Some(counters) = case.run(&rig, false).counters else { return };
        let bytes = (counters.global_load.sectors * 32) as f64;
        let want = reads * 4.0 * vocab as f64;
        assert!(bytes >= want && bytes < want * 1.25, "{bytes} for {want} ({sampling:?})");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let rig = rig();
    let words = |count: usize| rig.poisoned(count, Dtype::F32);
    let (mut a, mut b, mut c) = (words(12), words(12), words(12));
    let (mut d, mut e, mut f) = (words(10), words(10), words(10));
    let (logits, seen, mut full) = (words(320), words(8), words(320));
    let (mut states, mut choices, mut scratch) = (words(4 * 80), words(4 * 16 * 8), words(100));
    let mut refused = |change: &dyn Fn(&mut SampleArgs), wanted: &str| {
        let mut args = SampleArgs {
            pass: SamplePass::Draft { step: 1 },
            rows: 0..4,
            vocab: 40,
            logits: Rows { view: logits.view(), stride: 40 },
            round: RoundRows {
                steps: 3,
                draft_rows: 4,
                draft: table(&mut a, &mut b, &mut c),
                verify_rows: 10,
                verify: table(&mut d, &mut e, &mut f),
            },
            slots: 4,
            states: states.view_mut(),
            seen: Some(Rows { view: seen.view(), stride: 2 }),
            choices: choices.view_mut(),
            probabilities: Some(RowsMut { view: full.view_mut(), stride: 40 }),
            hashes: None,
            scratch: scratch.view_mut(),
        };
        change(&mut args);
        let error = rig.kernels.sample.launch(&rig.stream, &args).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}, not {wanted}");
    };
    refused(&|a| a.vocab = 0, "vocab: 0; supported are 1 to 2097152");
    refused(&|a| a.vocab = 2097153, "vocab: 2097153");
    refused(&|a| a.vocab = 81, "logits: rows 40 elements apart overlap; 81 at least");
    refused(&|a| a.rows = 0..5, "rows: from 0 to before 5; there are 4");
    refused(&|a| a.rows = std::ops::Range { start: 3, end: 2 }, "rows: from 3 to before 2");
    refused(&|a| a.pass = SamplePass::Draft { step: 2 }, "step: 2; supported are 0 to 1");
    refused(&|a| a.round.steps = 18, "steps: 18; supported are 1 to 17");
    refused(&|a| a.round.steps = 0, "steps: 0");
    refused(&|a| a.round.draft_rows = 5, "draft.tokens: 48 bytes do not hold 15 elements");
    refused(&|a| a.round.draft_rows = usize::MAX, "draft_rows: ");
    refused(&|a| a.round.verify_rows = 11, "verify.tokens: 40 bytes do not hold 11 elements");
    refused(&|a| a.slots = 5, "states: 1280 bytes do not hold 5 elements of 296 bytes");
    refused(&|a| a.slots = 70000, "slots: 70000");
    refused(&|a| a.slots = usize::MAX, "slots: ");
    refused(&|a| a.seen.as_mut().unwrap().stride = 1, "seen: rows 1 elements apart overlap; 2 at least");
    refused(&|a| a.seen.as_mut().unwrap().stride = 3, "seen: 32 bytes do not hold 11 elements");
    refused(&|a| a.probabilities.as_mut().unwrap().stride = 1000, "probabilities: ");
    refused(&|a| a.logits.view = a.logits.view.slice(2..1280), "logits: address");
    refused(&|a| a.logits.stride = usize::MAX / 2, "logits: ");
    let (mut small, mut hashes) = (words(5), words(18));
    let error = {
        let mut args = SampleArgs {
            pass: SamplePass::Verify,
            rows: 0..4,
            vocab: 40,
            logits: Rows { view: logits.view(), stride: 40 },
            round: RoundRows {
                steps: 1,
                draft_rows: 0,
                draft: table(&mut a, &mut b, &mut c),
                verify_rows: 10,
                verify: table(&mut d, &mut e, &mut f),
            },
            slots: 4,
            states: states.view_mut(),
            seen: None,
            choices: choices.view_mut(),
            probabilities: None,
            hashes: Some(hashes.view_mut()),
            scratch: small.view_mut(),
        };
        args.rows = 6..10;
        let error = rig.kernels.sample.launch(&rig.stream, &args).expect_err("hashes").to_string();
        assert!(error.contains("hashes: 72 bytes do not hold 10 elements of 8 bytes"), "{error}");
        args.hashes = None;
        rig.kernels.sample.launch(&rig.stream, &args).expect_err("scratch").to_string()
    };
    assert!(error.contains("scratch: 20 bytes; 16448 are needed"), "{error}");
    assert_eq!(WL_MAX_DRAFT as usize, MAX_DRAFT);
}
