//! The README's commands print what it says, and the library example ends well.

use std::{path::Path, process::Command};

#[test]
fn the_commands_of_the_readme_print_what_it_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).expect("README.md");
    let mut run = 0;
    for block in readme.split("```console\n").skip(1) {
        let (block, _) = block.split_once("```").expect("the block ends");
        for part in block.split("$ ").filter(|part| part.starts_with("ptxsim ")) {
            let (command, expected) = part.split_once('\n').expect("output");
            let arguments = command.split_whitespace().skip(1);
            let mut ptxsim = Command::new(env!("CARGO_BIN_EXE_ptxsim"));
            let output = ptxsim.args(arguments).current_dir(root.join("examples")).output().expect("ptxsim");
            let printed = String::from_utf8(output.stdout).expect("UTF-8");
            let lines =
                |text: &str| text.lines().map(|l| l.trim_end().to_string()).collect::<Vec<_>>().join("\n");
            assert_eq!(lines(&printed), lines(expected), "{command}");
            assert_eq!(output.status.code(), Some(i32::from(command.contains("race.ptx"))), "{command}");
            run += 1;
        }
    }
    assert_eq!(run, 3);
}

#[test]
fn every_kind_of_finding_is_explained() {
    let readme = include_str!("../README.md");
    use ptxsim::Kind::*;
    for kind in [
        OutOfBounds,
        Misaligned,
        Uninitialised,
        Race,
        MissingWait,
        PartialMask,
        Deadlock,
        Assertion,
        MissingProxyFence,
        WgmmaMisuse,
        MbarrierMisuse,
    ] {
        assert!(readme.contains(&format!("`{}`", kind.name())), "{}", kind.name());
    }
}

#[path = "../examples/race.rs"]
#[allow(dead_code)]
mod race;

#[test]
fn the_library_example_runs() {
    race::check().expect("the example");
}
