//! The bundled demo: what it weighs and that it writes words.
#![cfg(feature = "cli")]

use std::{collections::HashSet, path::Path, process::Command};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_demo_is_small() {
    let files = std::fs::read_dir(root().join("assets/demo")).unwrap();
    let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= 8_000_000, "{bytes} bytes");
}

/// In 1,000 sampled tokens at least 95 of 100 words of four letters or more are words of the training text.
#[test]
fn sampled_text_is_made_of_words() {
    let list = std::fs::read_to_string(root().join("tests/data/demo_words.txt")).unwrap();
    let known: HashSet<&str> = list.lines().collect();
    let elsewhere = tempfile::tempdir().unwrap();
    let (mut tokens, mut text) = (0, String::new());
    // A sample may end of itself: as many as it takes. Strange words come in clusters, in lists of names: one sample has none, another many.
    for seed in 1.. {
        let output = Command::new(env!("CARGO_BIN_EXE_warploom"))
            .args([
                "generate",
                "--prompt",
                "In the beginning",
                "-n",
                "1000",
                "--temperature",
                "1",
                "--json",
                "--seed",
            ])
            .arg(seed.to_string())
            .current_dir(elsewhere.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        tokens += result["ids"].as_array().unwrap().len();
        let sample = result["text"].as_str().unwrap().to_lowercase();
        // The last word may be cut off by the limit.
        text += sample.rsplit_once(' ').map_or("", |(whole, _)| whole);
        text += " ";
        if tokens >= 5000 {
            break;
        }
        assert!(seed < 100, "{tokens} tokens in {seed} samples");
    }
    let mut words: Vec<&str> = text.split(|c: char| !c.is_ascii_lowercase()).collect();
    words.retain(|word| word.len() >= 4);
    let strange: Vec<&str> = words.iter().filter(|word| !known.contains(*word)).copied().collect();
    assert!(words.len() > 1000, "{} words", words.len());
    assert!(strange.len() * 20 <= words.len(), "{} of {}: {strange:?}", strange.len(), words.len());
}
