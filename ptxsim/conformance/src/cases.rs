//! `list.json`: which kernel runs on which inputs. README.md describes the format.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{Error, Result, kernels::Source, tolerance::Tolerance};

/// More elements than this in one case are a mistake of the list.
const MOST_ELEMENTS: usize = 1 << 20;

/// All cases, in the list's order.
#[derive(Debug)]
pub struct Suite {
    /// The cases.
    pub cases: Vec<Case>,
}

/// One launch of one kernel `name(const T* in, U* out, int n)`.
#[derive(Clone, Debug)]
pub struct Case {
    /// A unique name.
    pub name: String,
    /// Where its kernel is.
    pub source: Source,
    /// Its kernel.
    pub entry: String,
    /// The instruction, as the kernel has it.
    pub instruction: String,
    /// Threads; also the third parameter.
    pub n: u32,
    /// Bits of an input element as the kernel reads it; it may hold several of the list's.
    pub input_bits: u32,
    /// The inputs, tightly packed, little-endian.
    pub input: Vec<u8>,
    /// Bits of an output element.
    pub output_bits: u32,
    /// Output elements.
    pub output_count: usize,
}

impl Case {
    /// Blocks of 32 threads.
    pub fn blocks(&self) -> u32 {
        self.n.div_ceil(32)
    }

    /// Bytes of the output.
    pub fn output_bytes(&self) -> usize {
        self.output_count * self.output_bits as usize / 8
    }

    /// The error that the instruction set allows it.
    pub fn tolerance(&self) -> Option<Tolerance> {
        Tolerance::of(&self.instruction)
    }

    /// The operands of a thread: elements j n + thread of the input.
    pub fn operands(&self, thread: usize) -> Vec<u64> {
        elements(&self.input, self.input_bits).skip(thread).step_by(self.n as usize).collect()
    }

    /// A number that changes with the instruction, the inputs and the form of the output (FNV-1a, 64 bits).
    pub fn fingerprint(&self) -> u64 {
        let form = [u64::from(self.n), u64::from(self.output_bits), self.output_count as u64];
        let form = form.iter().flat_map(|v| v.to_le_bytes());
        let bytes = self.instruction.bytes().chain(form).chain(self.input.iter().copied());
        bytes
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

/// Packed little-endian elements as numbers.
pub(crate) fn elements(bytes: &[u8], bits: u32) -> impl Iterator<Item = u64> + '_ {
    bytes
        .chunks_exact(bits as usize / 8)
        .map(|element| element.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    tables: BTreeMap<String, Table>,
    cases: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    bits: u32,
    values: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    case: String,
    source: String,
    entry: String,
    n: u32,
    #[serde(rename = "in")]
    input: Vec<Segment>,
    out: Output,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Output {
    bits: u32,
    count: usize,
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Segment {
    Table { table: String, count: usize },
    Values { values: u32, hex: Vec<String>, count: usize },
    Cross { cross: String, arity: u32 },
    Ramp { ramp: u32, start: String, step: String, count: usize },
    Bits { bits: u32, seed: u64, count: usize },
    Pick { pick: String, seed: u64, count: usize },
    Float { float: Format, exponents: [i32; 2], seed: u64, count: usize },
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    F32,
    Tf32,
    F16,
    Bf16,
    E4m3,
    E5m2,
}

impl Format {
    /// Bits, mantissa bits as stored, the lowest mantissa bit that is used, bias.
    fn layout(self) -> (u32, u32, u32, i32) {
        match self {
            Format::F32 => (32, 23, 0, 127),
            Format::Tf32 => (32, 23, 13, 127),
            Format::F16 => (16, 10, 0, 15),
            Format::Bf16 => (16, 7, 0, 127),
            Format::E4m3 => (8, 3, 0, 7),
            Format::E5m2 => (8, 2, 0, 15),
        }
    }

    fn number(self, x: u64, exponents: [i32; 2]) -> u64 {
        let (bits, mantissa_bits, lowest, bias) = self.layout();
        let range = i64::from(exponents[1]) - i64::from(exponents[0]) + 1;
        let exponent = i64::from(exponents[0]) + (x >> 32 & 0x7fff_ffff) as i64 % range + i64::from(bias);
        let used = mantissa_bits - lowest;
        x >> 63 << (bits - 1) | (exponent as u64) << mantissa_bits | (x & ((1 << used) - 1)) << lowest
    }
}

/// SplitMix64.
struct Draws(u64);

impl Iterator for Draws {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(z ^ z >> 31)
    }
}

impl Suite {
    /// The suite that this program carries.
    ///
    /// # Errors
    /// [`Error::List`] if its list is broken.
    pub fn carried() -> Result<Suite> {
        Suite::parse(include_str!("../list.json"))
    }

    /// Reads a list and makes its inputs.
    ///
    /// # Errors
    /// [`Error::List`] naming the case.
    pub fn parse(json: &str) -> Result<Suite> {
        let list: List = serde_json::from_str(json).map_err(|e| Error::List(e.to_string()))?;
        let mut tables = BTreeMap::new();
        for (name, table) in &list.tables {
            let values = numbers(table.bits, &table.values)
                .map_err(|e| Error::List(format!("table {name:?}: {e}")))?;
            tables.insert(name.as_str(), (table.bits, values));
        }
        let mut names = std::collections::HashSet::new();
        let mut cases = Vec::with_capacity(list.cases.len());
        for entry in &list.cases {
            let broken = |message: String| Error::List(format!("case {:?}: {message}", entry.case));
            if !names.insert(&entry.case) {
                return Err(broken("a second case of that name".into()));
            }
            cases.push(case(entry, &tables).map_err(broken)?);
        }
        Ok(Suite { cases })
    }
}

type Tables<'a> = BTreeMap<&'a str, (u32, Vec<u64>)>;

fn case(entry: &Entry, tables: &Tables) -> std::result::Result<Case, String> {
    let source = Source::named(&entry.source).ok_or_else(|| format!("no source {:?}", entry.source))?;
    let instruction = source
        .instruction(&entry.entry)
        .ok_or_else(|| format!("{} has no entry {:?} with one instruction", entry.source, entry.entry))?;
    if entry.n == 0 || entry.n as usize > MOST_ELEMENTS {
        return Err(format!("{} threads; 1 to {MOST_ELEMENTS} make sense", entry.n));
    }
    check_bits(entry.out.bits)?;
    if entry.out.count == 0 || entry.out.count > MOST_ELEMENTS {
        return Err(format!("{} output elements; 1 to {MOST_ELEMENTS} make sense", entry.out.count));
    }
    let input_bits =
        source.loaded_bits(&entry.entry).ok_or_else(|| format!("{} reads no global memory", entry.entry))?;
    check_bits(input_bits)?;
    let mut input = vec![];
    for segment in &entry.input {
        let (bits, values) = segment.elements(tables)?;
        if values.len() > MOST_ELEMENTS - input.len() / 8 {
            return Err(format!("more than {MOST_ELEMENTS} input elements"));
        }
        input.extend(values.iter().flat_map(|v| v.to_le_bytes().into_iter().take(bits as usize / 8)));
    }
    if input.is_empty() || !input.len().is_multiple_of(input_bits as usize / 8) {
        return Err(format!("{} bytes of input for elements of {input_bits} bits", input.len()));
    }
    Ok(Case {
        name: entry.case.clone(),
        source,
        entry: entry.entry.clone(),
        instruction,
        n: entry.n,
        input_bits,
        input,
        output_bits: entry.out.bits,
        output_count: entry.out.count,
    })
}

fn check_bits(bits: u32) -> std::result::Result<(), String> {
    matches!(bits, 8 | 16 | 32 | 64).then_some(()).ok_or_else(|| format!("elements of {bits} bits"))
}

fn numbers(bits: u32, hex: &[String]) -> std::result::Result<Vec<u64>, String> {
    check_bits(bits)?;
    if hex.is_empty() {
        return Err("no values".into());
    }
    hex.iter().map(|text| number(bits, text)).collect()
}

fn number(bits: u32, hex: &str) -> std::result::Result<u64, String> {
    let value = u64::from_str_radix(hex, 16).map_err(|_| format!("{hex:?} is no hexadecimal number"))?;
    if bits < 64 && value >> bits != 0 {
        return Err(format!("{hex:?} has more than {bits} bits"));
    }
    Ok(value)
}

impl Segment {
    /// Bits and values.
    fn elements(&self, tables: &Tables) -> std::result::Result<(u32, Vec<u64>), String> {
        let table = |name: &String| tables.get(name.as_str()).ok_or_else(|| format!("no table {name:?}"));
        let enough = |count: usize| {
            (count <= MOST_ELEMENTS)
                .then_some(count)
                .ok_or_else(|| format!("more than {MOST_ELEMENTS} elements"))
        };
        Ok(match self {
            Segment::Table { table: name, count } => {
                let (bits, values) = table(name)?;
                (*bits, values.iter().copied().cycle().take(enough(*count)?).collect())
            }
            Segment::Values { values: bits, hex, count } => {
                (*bits, numbers(*bits, hex)?.into_iter().cycle().take(enough(*count)?).collect())
            }
            Segment::Cross { cross, arity } => {
                let (bits, values) = table(cross)?;
                let tuples =
                    values.len().checked_pow(*arity).and_then(|n| Some((n, n.checked_mul(*arity as usize)?)));
                let (n, _) = tuples.filter(|(_, all)| *all <= MOST_ELEMENTS).ok_or("too many tuples")?;
                let operand = |place: u32| {
                    let stride = values.len().pow(arity - 1 - place);
                    (0..n).map(move |tuple| values[tuple / stride % values.len()])
                };
                (*bits, (0..*arity).flat_map(operand).collect())
            }
            Segment::Ramp { ramp: bits, start, step, count } => {
                check_bits(*bits)?;
                let (start, step) = (number(*bits, start)?, number(*bits, step)?);
                // What does not fit an element falls away when it is packed.
                let value = |index: u64| start.wrapping_add(index.wrapping_mul(step));
                (*bits, (0..enough(*count)? as u64).map(value).collect())
            }
            Segment::Bits { bits, seed, count } => {
                check_bits(*bits)?;
                (*bits, Draws(*seed).take(enough(*count)?).map(|x| x >> (64 - bits)).collect())
            }
            Segment::Pick { pick, seed, count } => {
                let (bits, values) = table(pick)?;
                let value = |x| values[(x % values.len() as u64) as usize];
                (*bits, Draws(*seed).take(enough(*count)?).map(value).collect())
            }
            Segment::Float { float, exponents, seed, count } => {
                let (bits, mantissa_bits, _, bias) = float.layout();
                let most = (1i64 << (bits - 1 - mantissa_bits)) - 1;
                let [low, high] = exponents.map(|e| i64::from(e) + i64::from(bias));
                if low < 1 || high > most || low > high {
                    return Err(format!("exponents {exponents:?} are not those of normal numbers"));
                }
                (bits, Draws(*seed).take(enough(*count)?).map(|x| float.number(x, *exponents)).collect())
            }
        })
    }
}
