//! The trainer from outside: a text goes in, a checkpoint folder comes out, and bad input changes nothing.
#![cfg(feature = "train")]

use std::{fs, ops::ControlFlow, path::Path, process::Command};

use safetensors::{Dtype, SafeTensors};
use warploom::{
    Error,
    train::{Curriculum, Settings, read_text, train},
};

/// Two documents with enough repetition for merges and sequences.
fn text() -> String {
    let line =
        |i: usize| format!("The weaver {} drew thread number {i} through the loom.", ["Ada", "Bo"][i % 2]);
    let document = |from: usize| (from..from + 40).map(line).collect::<Vec<_>>().join("\n");
    format!("{}\n\n\n{}\n", document(0), document(40))
}

fn settings() -> Settings {
    Settings {
        layers: 2,
        hidden: 16,
        intermediate: 24,
        heads: 4,
        kv_heads: 2,
        vocab: 300,
        context: 32,
        steps: 6,
        batch: 2,
        sequence: 16,
        curriculum: Curriculum::Rotational { every: 2 },
        validate_every: 3,
        save_every: 2,
        ..Settings::default()
    }
}

fn run(folder: &Path, settings: &Settings) -> Result<(), Error> {
    train(&text(), folder, settings, &mut |_| ControlFlow::Continue(())).map(|_| ())
}

#[test]
fn a_run_leaves_a_checkpoint_a_log_and_a_picture() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("model");
    run(&folder, &settings()).unwrap();
    let mut names: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let expected = [
        "config.json",
        "generation_config.json",
        "log.csv",
        "loss.svg",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, expected);

    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["model_type"], "llama");
    assert_eq!(config["head_dim"], 4);
    assert_eq!(config["rms_norm_eps"], 1e-5);
    assert_eq!(config["tie_word_embeddings"], true);
    assert_eq!((&config["bos_token_id"], &config["eos_token_id"]), (&298.into(), &299.into()));

    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.len(), 2 + 2 * 9);
    for (name, tensor) in tensors.tensors() {
        assert_eq!(tensor.dtype(), Dtype::BF16, "{name}");
    }
    for (name, shape) in [
        ("model.embed_tokens.weight", vec![300, 16]),
        ("model.norm.weight", vec![16]),
        ("model.layers.1.self_attn.q_proj.weight", vec![16, 16]),
        ("model.layers.1.self_attn.v_proj.weight", vec![8, 16]),
        ("model.layers.0.mlp.down_proj.weight", vec![16, 24]),
        ("model.layers.0.mlp.up_proj.weight", vec![24, 16]),
    ] {
        assert_eq!(tensors.tensor(name).unwrap().shape(), shape, "{name}");
    }

    let tokenizer = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer.get_vocab_size(true), 300);
    let encoding = tokenizer.encode("The weaver Zoë drew\n", true).unwrap();
    assert_eq!(encoding.get_ids()[0], 298, "begins with the begin token");
    assert_eq!(tokenizer.decode(encoding.get_ids(), true).unwrap(), "The weaver Zoë drew\n");

    let log = fs::read_to_string(folder.join("log.csv")).unwrap();
    let lines: Vec<Vec<&str>> = log.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines[0][..6], ["step", "tokens", "learning_rate", "loss", "exit_1", "exit_2"]);
    assert_eq!(lines.iter().map(|line| line[0]).collect::<Vec<_>>(), ["step", "0", "3", "6"]);
    assert!(lines.iter().all(|line| line.len() == lines[0].len()));
    assert!(fs::read_to_string(folder.join("loss.svg")).unwrap().contains("exit 2"));
}

#[test]
fn the_same_seed_gives_the_same_weights_and_another_does_not() {
    let root = tempfile::tempdir().unwrap();
    let weights = |name: &str, seed: u64| {
        let folder = root.path().join(name);
        run(&folder, &Settings { seed, ..settings() }).unwrap();
        fs::read(folder.join("model.safetensors")).unwrap()
    };
    let first = weights("a", 1);
    assert!(first == weights("b", 1));
    assert!(first != weights("c", 2));
}

#[test]
fn training_learns_the_text() {
    let root = tempfile::tempdir().unwrap();
    let settings = Settings { steps: 150, learning_rate: 1e-2, ..settings() };
    let last = train(&text(), &root.path().join("m"), &settings, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(last.loss[1] < 2.0, "held-out loss {} after a beginning at ln 300 = 5.7", last.loss[1]);
    assert_eq!(last.agreement[1], 1.0, "the last exit agrees with itself");
}

#[test]
fn a_run_that_is_broken_off_leaves_its_weights() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("m");
    let settings = Settings { steps: 1000, save_every: 0, ..settings() };
    let last = train(&text(), &folder, &settings, &mut |progress| {
        if progress.step == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(last.unwrap().step, 4);
    assert!(folder.join("model.safetensors").is_file());
}

#[test]
fn a_folder_with_other_things_is_left_alone_and_a_previous_output_replaced() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("m");
    run(&folder, &settings()).unwrap();
    run(&folder, &Settings { seed: 7, ..settings() }).unwrap();

    let other = root.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("model.safetensors"), "precious").unwrap();
    let error = run(&other, &settings()).unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
    assert_eq!(fs::read(other.join("model.safetensors")).unwrap(), b"precious");
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1);

    let error = run(&other.join("model.safetensors"), &settings()).unwrap_err().to_string();
    assert!(error.contains("no folder"), "{error}");
}

#[test]
fn settings_that_cannot_be_trained_are_refused_before_anything_is_written() {
    let root = tempfile::tempdir().unwrap();
    let bad = |option: &str, change: &dyn Fn(&mut Settings)| {
        let mut settings = settings();
        change(&mut settings);
        let folder = root.path().join("never");
        let error = run(&folder, &settings).expect_err(option).to_string();
        assert!(error.contains(option), "{option}: {error}");
        assert!(!folder.exists(), "{option}");
    };
    bad("--layers", &|s| s.layers = 0);
    bad("--hidden", &|s| s.hidden = 0);
    bad("--heads", &|s| s.heads = 0);
    bad("--heads", &|s| s.heads = 3);
    bad("--heads", &|s| s.heads = 16); // heads of width 1
    bad("--kv-heads", &|s| s.kv_heads = 3);
    bad("--kv-heads", &|s| s.kv_heads = 0);
    bad("--intermediate", &|s| s.intermediate = 0);
    bad("--vocab", &|s| s.vocab = 257);
    bad("--vocab", &|s| s.vocab = 5000); // more than the text yields
    bad("--steps", &|s| s.steps = 0);
    bad("--batch", &|s| s.batch = 0);
    bad("--sequence", &|s| s.sequence = 1);
    bad("--sequence", &|s| (s.sequence, s.context) = (4000, 4000)); // longer than the text
    bad("--context", &|s| s.context = 8);
    bad("--lr", &|s| s.learning_rate = f32::NAN);
    bad("--dropout", &|s| s.dropout = 1.0);
    bad("--dropout", &|s| s.dropout = f64::NAN);
    bad("--exit-scale", &|s| s.exit_scale = -1.0);
    bad("--logit-scale", &|s| s.logit_scale = 0.0);
    bad("--rotation", &|s| s.curriculum = Curriculum::Rotational { every: 0 });
    bad("--rotation", &|s| s.curriculum = Curriculum::Rotational { every: 3 });
    bad("--validate-every", &|s| s.validate_every = 0);
    bad("training", &|s| s.layers = usize::MAX);
    bad("training", &|s| s.batch = usize::MAX);
    bad("training", &|s| (s.hidden, s.heads, s.kv_heads) = (1 << 40, 2, 2));
}

#[test]
fn text_that_is_none_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("text");
    assert!(matches!(read_text(&path), Err(Error::Io { .. })));
    assert!(read_text(root.path()).unwrap_err().to_string().contains("regular file"));
    for (bytes, reason) in [
        (&b""[..], "no text"),
        (b" \n\t\n", "no text"),
        (b"abc\0def", "binary"),
        (b"abc\xff\xfedef", "not UTF-8 from byte 3"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = read_text(&path).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn the_command_trains_and_refuses() {
    let root = tempfile::tempdir().unwrap();
    let (text_file, out) = (root.path().join("text.txt"), root.path().join("model"));
    fs::write(&text_file, text()).unwrap();
    let command = |options: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warploom"));
        command.arg("train").arg("--text").arg(&text_file).arg("--out").arg(&out);
        command.args(options.split_whitespace()).output().unwrap()
    };
    let small = "--layers 2 --hidden 16 --heads 4 --kv-heads 2 --vocab 300 --steps 3 --batch 2 --sequence 16";

    let refused = command(&format!("{small} --kv-heads 3").replace("--kv-heads 2 ", ""));
    assert_eq!(refused.status.code(), Some(1));
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(message.contains("3 key/value heads do not divide 4 query heads"), "{message}");
    assert!(!out.exists());
    assert_eq!(command("--curriculum spiral").status.code(), Some(2));

    let done =
        command(&format!("{small} --attention window:8 --curriculum gradual --seed 3 --lr 1e-3 --threads 1"));
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(done.stdout.is_empty());
    let config = fs::read_to_string(out.join("config.json")).unwrap();
    assert!(
        config.contains("\"sliding_window\": 8") && config.contains("\"intermediate_size\": 64"),
        "{config}"
    );
}
