//! Damaged PTX: the files of tests/ptx with lines and tokens deleted, doubled, swapped and overwritten, and the fuzzer's
//! seeds. Whatever the text, there is an error or a run within its bounds.

use std::{fs, path::Path};

use proptest::prelude::*;
use ptxsim::{Argument, Delivery, Device, Gpu, Launch, Module, Schedule};

/// Instructions after which a launch is given up, and device memory: enough for a kernel to go wrong, little to wait for.
const STEPS: u64 = 3000;
const MEMORY: u64 = 16 << 20;

fn files(folder: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| {
            (path.file_name().expect("a name").to_string_lossy().into(), fs::read(&path).expect("a file"))
        })
        .collect();
    files.sort();
    files
}

/// Parses a text and runs every entry that can be decoded, with buffers for what may be an address.
fn survive(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(module) = Module::parse(&text) else { return };
    let names: Vec<String> = module.entries().map(str::to_string).collect();
    let mut device = Device::with_memory(Gpu::A100, MEMORY);
    let Ok(loaded) = device.load(module) else { return };
    let Ok(buffer) = device.allocate(4096) else { return };
    if device.write(buffer, &[1; 2048]).is_err() {
        return;
    }
    for (i, name) in names.iter().enumerate() {
        let Ok(sizes) = loaded.parameters(name) else { continue };
        let argument = |bytes: &u32| match bytes {
            8 => Argument::from(buffer),
            bytes => {
                Argument([&[17, 0, 0, 0][..], &vec![0; *bytes as usize]].concat()[..*bytes as usize].to_vec())
            }
        };
        let launch = Launch {
            grid: [2, 1, 1],
            block: [40, 1, 1],
            shared_bytes: 1024,
            arguments: sizes.iter().map(argument).collect(),
            checked: i % 4 != 3,
            delivery: [Delivery::Eager, Delivery::Lazy, Delivery::Random(1)][i % 3],
            schedule: [Schedule::InOrder, Schedule::Random(2)][i % 2],
            step_limit: STEPS,
            trace: Some((0, 0, 10)),
            ..Default::default()
        };
        if let Ok(report) = device.launch(&loaded, name, &launch) {
            // Two CTAs may each use up the limit before the sum is looked at, and a turn ends where it ends.
            assert!(
                report.counters.instructions <= 4 * STEPS + 20_000,
                "{} instructions",
                report.counters.instructions
            );
        }
    }
}

#[test]
fn the_seeds_of_the_fuzzer_survive() {
    let seeds = files("../fuzz/seeds/ptx");
    assert!(!seeds.is_empty());
    for (_, bytes) in seeds {
        survive(&bytes);
    }
}

#[test]
fn whole_files_survive() {
    for (_, bytes) in files("tests/ptx") {
        survive(&bytes);
    }
}

/// One damage to a text.
#[derive(Clone, Debug)]
enum Damage {
    DeleteLine(usize),
    DoubleLine(usize),
    SwapLines(usize, usize),
    DeleteToken(usize),
    DoubleToken(usize),
    SwapTokens(usize, usize),
    ReplaceToken(usize, String),
    SetByte(usize, u8),
    Cut(usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    use Damage::*;
    let at = any::<usize>;
    let token = prop_oneof![
        Just("0".to_string()),
        Just("-1".into()),
        Just("0x8000000000000000".into()),
        Just("18446744073709551615".into()),
        Just("99999999999999999999999".into()),
        Just("4294967295".into()),
        Just("0f7F800000".into()),
        Just("_".into()),
        Just("%r1".into()),
        Just("%rd1".into()),
        Just("%p1".into()),
        Just("{".into()),
        Just("}".into()),
        Just(";".into()),
        Just("[".into()),
        Just("@".into()),
        "[ -~]{0,6}",
    ];
    prop_oneof![
        at().prop_map(DeleteLine),
        at().prop_map(DoubleLine),
        (at(), at()).prop_map(|(a, b)| SwapLines(a, b)),
        at().prop_map(DeleteToken),
        at().prop_map(DoubleToken),
        (at(), at()).prop_map(|(a, b)| SwapTokens(a, b)),
        (at(), token).prop_map(|(a, t)| ReplaceToken(a, t)),
        (at(), any::<u8>()).prop_map(|(a, b)| SetByte(a, b)),
        at().prop_map(Cut),
    ]
}

/// Pieces of letters, digits and the like, and single characters between them.
fn tokens(text: &str) -> Vec<String> {
    let mut out: Vec<String> = vec![];
    let mut word = false;
    for c in text.chars() {
        let part = c.is_ascii_alphanumeric() || matches!(c, '_' | '%' | '$');
        match out.last_mut() {
            Some(last) if part && word => last.push(c),
            _ => out.push(c.to_string()),
        }
        word = part;
    }
    out
}

fn apply(text: &str, damage: &Damage) -> Vec<u8> {
    use Damage::*;
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    let mut parts = tokens(text);
    // Blanks and single characters are not worth a damage of their own.
    let words: Vec<usize> = (0..parts.len()).filter(|i| !parts[*i].trim().is_empty()).collect();
    if lines.is_empty() || words.is_empty() {
        return vec![];
    }
    let word = |i: &usize| words[i % words.len()];
    let line = |i: &usize| i % lines.len();
    match damage {
        DeleteLine(a) => drop(lines.remove(line(a))),
        DoubleLine(a) => lines.insert(line(a), lines[line(a)]),
        SwapLines(a, b) => {
            let (a, b) = (line(a), line(b));
            lines.swap(a, b);
        }
        DeleteToken(a) => drop(parts.remove(word(a))),
        DoubleToken(a) => parts.insert(word(a), parts[word(a)].clone()),
        SwapTokens(a, b) => parts.swap(word(a), word(b)),
        ReplaceToken(a, token) => parts[word(a)] = token.clone(),
        SetByte(a, byte) => {
            let mut bytes = text.as_bytes().to_vec();
            let at = a % bytes.len();
            bytes[at] = *byte;
            return bytes;
        }
        Cut(a) => return text.as_bytes()[..a % text.len()].to_vec(),
    }
    match damage {
        DeleteLine(_) | DoubleLine(_) | SwapLines(..) => lines.concat().into_bytes(),
        _ => parts.concat().into_bytes(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn damaged_files_never_panic(file in any::<usize>(), damages in prop::collection::vec(damage(), 1..6)) {
        thread_local! {
            static FILES: Vec<(String, Vec<u8>)> = files("tests/ptx");
        }
        let mut bytes = FILES.with(|files| files[file % files.len()].1.clone());
        for damage in &damages {
            bytes = apply(&String::from_utf8_lossy(&bytes), damage);
        }
        survive(&bytes);
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        survive(&bytes);
        survive(&[b".version 8.0\n.target sm_80\n.address_size 64\n", &bytes[..]].concat());
    }
}
