//! The fuzzers' seeds (`fuzz/seeds`) and thousands of damaged copies of them, through the same functions as
//! the fuzz targets call.

use std::path::{Path, PathBuf};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use warploom::checkpoint::{Config, check_index, check_safetensors};

use super::allocations::most_held;

/// Damaged copies of each seed.
const COPIES: usize = 300;

/// The files of `fuzz/seeds/<target>`.
fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut seeds: Vec<_> = std::fs::read_dir(folder)
        .expect("fuzz/seeds")
        .map(|entry| entry.expect("entry").path())
        .map(|path| (path.clone(), std::fs::read(path).expect("readable")))
        .collect();
    seeds.sort();
    assert!(seeds.len() >= 4, "{target} has only {} seeds", seeds.len());
    seeds
}

/// One way of damaging `bytes`.
fn damage(bytes: &mut Vec<u8>, random: &mut ChaCha8Rng) {
    // Bytes that mean something to JSON, numbers at the edges of ranges.
    const WORDS: [&[u8]; 10] =
        [b"\"", b"{", b"]", b"0", b"-1", b"18446744073709551615", b"1e308", b"null", b"\xff", b"\\u0000"];
    let mut below = |n: usize| (random.next_u64() % n.max(1) as u64) as usize;
    let at = below(bytes.len());
    match below(4) {
        0 => bytes.truncate(at),
        1 if !bytes.is_empty() => bytes[at] ^= 1 << below(8),
        2 => {
            let end = (at + below(8)).min(bytes.len());
            bytes.splice(at..end, WORDS[below(WORDS.len())].iter().copied());
        }
        _ => {
            let end = (at + below(32)).min(bytes.len());
            let copy = bytes[at..end].to_vec();
            let to = below(bytes.len());
            bytes.splice(to..to, copy);
        }
    }
}

/// Runs `check` on every seed and on damaged copies of it. A panic fails the test, and so does memory out
/// of proportion to the input. Returns how many inputs were valid.
fn run(target: &str, check: impl Fn(&[u8]) -> bool) -> usize {
    let mut valid = 0;
    for (number, (path, seed)) in seeds(target).into_iter().enumerate() {
        let mut random = ChaCha8Rng::seed_from_u64(number as u64);
        for copy in 0..=COPIES {
            let mut bytes = seed.clone();
            for _ in 0..copy % 4 {
                damage(&mut bytes, &mut random);
            }
            let (accepted, held) = most_held(|| check(&bytes));
            assert!(held < (1 << 17) + 64 * bytes.len(), "{}: {held} bytes held", path.display());
            valid += usize::from(accepted);
        }
    }
    valid
}

#[test]
fn configs() {
    let path = Path::new("config.json");
    // With a generation_config.json that is the same file: it has the same keys.
    assert!(run("config", |bytes| Config::from_json(path, bytes, Some(bytes)).is_ok()) > 0);
}

#[test]
fn safetensors() {
    assert!(run("safetensors", |bytes| check_safetensors(Path::new("model.safetensors"), bytes).is_ok()) > 0);
}

#[test]
fn indexes() {
    assert!(run("index", |bytes| check_index(Path::new("model.safetensors.index.json"), bytes).is_ok()) > 0);
}
