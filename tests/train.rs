//! The trainer from outside: a text goes in, a checkpoint folder comes out, and bad input changes nothing.
#![cfg(feature = "train")]

use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use safetensors::{Dtype, SafeTensors};
use warploom::{
    Error,
    checkpoint::{Checkpoint, Dtype as Stored, Tensor},
    mask::Mask,
    train::{Curriculum, Documents, Mitigation, Objective, Settings, read_text, resume, train},
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
        "alarms.csv",
        "config.json",
        "generation_config.json",
        "log.csv",
        "loss.svg",
        "model.safetensors",
        "monitor.csv",
        "monitor.svg",
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

    let monitor = fs::read_to_string(folder.join("monitor.csv")).unwrap();
    let lines: Vec<Vec<&str>> = monitor.lines().map(|line| line.split(',').collect()).collect();
    assert!(lines.iter().all(|line| line.len() == lines[0].len()));
    let keys: Vec<(&str, &str)> = lines[1..].iter().map(|line| (line[0], line[1])).collect();
    let layers = ["embedding", "1", "2", "norm"];
    let expected: Vec<_> = ["3", "6"].iter().flat_map(|&step| layers.map(|layer| (step, layer))).collect();
    assert_eq!(keys, expected);
    let column = |name: &str| lines[0].iter().position(|&column| column == name).unwrap();
    let parameters: usize =
        lines[1..5].iter().map(|line| line[column("parameters")].parse::<usize>().unwrap()).sum();
    assert_eq!(parameters, 300 * 16 + 2 * (16 * 16 * 2 + 8 * 16 * 2 + 3 * 16 * 24 + 2 * 16) + 16);
    for line in &lines[1..] {
        let rms: f64 = line[column("rms_r")].parse().unwrap();
        assert!(rms > 0.0 && rms < 1.2, "an RMS of r of {rms}");
    }
    assert!(fs::read_to_string(folder.join("monitor.svg")).unwrap().contains("bimodality"));
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

/// Of runs that begin together in one new folder one goes on, and the others find out before they write.
#[test]
fn one_run_has_a_folder() {
    for _ in 0..8 {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("m");
        let begun = std::sync::Barrier::new(3);
        let done: Vec<Result<(), Error>> = std::thread::scope(|scope| {
            let run = |seed| {
                let (begun, folder) = (&begun, &folder);
                scope.spawn(move || {
                    begun.wait();
                    run(folder, &Settings { seed, steps: 40, ..settings() })
                })
            };
            let runs: Vec<_> = (0..3).map(run).collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        });
        // One that came when the first had ended has replaced it whole.
        assert!(done.iter().any(Result::is_ok));
        for error in done.into_iter().filter_map(Result::err) {
            let error = error.to_string();
            assert!(error.contains("by another process") || error.contains("an unfinished run"), "{error}");
        }
        let log = fs::read_to_string(folder.join("log.csv")).unwrap();
        assert!(log.lines().last().unwrap().starts_with("40,"), "{log}");
        assert!(!folder.join("training.state").exists() && folder.join("model.safetensors").is_file());
    }
}

/// A run may go on in another type; config.json then says so.
#[test]
fn another_type_is_written_down() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("m");
    let until = |step: usize| {
        move |progress: &warploom::train::Progress<'_>| match progress.step == step {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    train(&text(), &folder, &settings(), &mut until(2)).unwrap();
    let types = [(Stored::F32, "float32"), (Stored::F16, "float16")];
    for (step, (dtype, name)) in types.into_iter().enumerate() {
        let settings = Settings { dtype: Some(dtype), ..settings() };
        resume(&text(), &folder, &settings, &mut until(3 + step)).unwrap();
        let config = fs::read_to_string(folder.join("config.json")).unwrap();
        assert!(config.contains(&format!("\"torch_dtype\": \"{name}\"")), "{config}");
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let norm = checkpoint.tensor("model.norm.weight", &[16]).unwrap();
        assert_eq!((norm.dtype(), checkpoint.config.dtype), (dtype, Some(dtype)));
    }
    // What f16 cannot hold is not saved in it.
    let wild =
        Settings { learning_rate: 30000.0, clip: f32::INFINITY, dtype: Some(Stored::F16), ..settings() };
    let error = run(&root.path().join("wild"), &wild).unwrap_err().to_string();
    assert!(error.contains("f16 has no number as large as"), "{error}");
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
    bad("--log-every", &|s| s.log_every = 0);
    bad("--accumulate", &|s| s.accumulate = 0);
    bad("--warm-up", &|s| s.warm_up = Some(7)); // longer than the run
    bad("--clip", &|s| s.clip = f32::NAN);
    bad("--weight-decay", &|s| s.weight_decay = -1.0);
    bad("--beta1", &|s| s.beta1 = 1.0);
    bad("--beta2", &|s| s.beta2 = 0.5); // not over β₁²
    bad("--epsilon", &|s| s.epsilon = 0.0);
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

/// Every file of a folder and what is in it.
fn content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect()
}

fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (content(a), content(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in &a {
        assert!(*bytes == b[name], "{} differs", name.display());
    }
}

/// Settings in which everything that a state must hold is at work.
fn eventful() -> Settings {
    Settings {
        steps: 40,
        accumulate: 2,
        dropout: 0.3,
        exit_scale: 0.5,
        on_alarm: Some(Mitigation::LowerRate),
        validate_every: 7,
        log_every: 3,
        histogram_every: 10,
        save_every: 4,
        attention: "window:8".parse::<Mask>().unwrap(),
        ..settings()
    }
}

#[test]
fn a_run_that_is_broken_off_and_resumed_ends_as_if_it_had_not_been() {
    broken_and_resumed(&eventful());
    let masked = "blockwise:4+globals:1".parse::<Mask>().unwrap();
    broken_and_resumed(&Settings { objective: Objective::Masked, attention: masked, ..eventful() });
}

fn broken_and_resumed(settings: &Settings) {
    let root = tempfile::tempdir().unwrap();
    let (whole, broken) = (root.path().join("whole"), root.path().join("broken"));
    run(&whole, settings).unwrap();
    let mut breaks = [1, 2, 9, 20, 39].into_iter();
    let until = |step: usize| {
        move |progress: &warploom::train::Progress<'_>| match progress.step == step {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let first = breaks.next().unwrap();
    assert_eq!(train(&text(), &broken, settings, &mut until(first)).unwrap().step, first);
    for step in breaks {
        // How often it is saved changes nothing.
        let settings = Settings { save_every: step % 3, ..settings.clone() };
        assert_eq!(resume(&text(), &broken, &settings, &mut until(step)).unwrap().step, step);
        assert!(broken.join("training.state").is_file());
    }
    let last = resume(&text(), &broken, settings, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(last.step, 40);
    assert_same(&whole, &broken);
    let alarms = fs::read_to_string(whole.join("alarms.csv")).unwrap();
    assert!(settings.objective == Objective::Masked || alarms.contains("lower_rate"), "nothing happened");
}

#[test]
fn a_killed_process_resumes_to_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let text_file = root.path().join("text.txt");
    fs::write(&text_file, text()).unwrap();
    let command = |folder: &Path, resume: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warploom"));
        command.arg("train").arg("--text").arg(&text_file).arg("--out").arg(folder);
        let options = "--layers 3 --hidden 16 --heads 4 --kv-heads 2 --vocab 300 --steps 150 --batch 3 --sequence 16 \
                       --accumulate 2 --save-every 4 --validate-every 11 --log-every 3 --histogram-every 20 --seed 5";
        command.args(options.split_whitespace()).args(resume.then_some("--resume"));
        command.stderr(std::process::Stdio::piped());
        command
    };
    let (whole, killed) = (root.path().join("whole"), root.path().join("killed"));
    let done = command(&whole, false).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));

    // Other moments in every run of the test.
    let mut moment =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let (mut kills, mut begun) = (0, false);
    let finished = loop {
        let mut child = command(&killed, begun).spawn().unwrap();
        if kills == 12 {
            break child.wait_with_output().unwrap();
        }
        while !killed.join("training.state").is_file() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        begun = true;
        moment = moment.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(Duration::from_millis(u64::from(moment >> 24) / 4));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            break output;
        }
        kills += 1;
    };
    assert!(finished.status.success(), "{}", String::from_utf8_lossy(&finished.stderr));
    // What a kill leaves aside is replaced by the next checkpoint.
    assert_same(&whole, &killed);
}

#[test]
fn a_state_is_resumed_only_with_what_it_was_begun_with() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("m");
    let settings = eventful();
    let stop = |text: &str, folder: &Path, settings: &Settings| {
        train(text, folder, settings, &mut |progress| match progress.step == 9 {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
        .unwrap();
    };
    stop(&text(), &folder, &settings);
    let before = content(&folder);
    let refused = |what: &str, text: &str, settings: &Settings| {
        let error = resume(text, &folder, settings, &mut |_| panic!("{what}: a step was made"));
        let error = error.expect_err(what).to_string();
        assert!(error.contains(what), "{what}: {error}");
        error
    };
    let changed = |what: &str, change: &dyn Fn(&mut Settings)| {
        let mut settings = settings.clone();
        change(&mut settings);
        refused(what, &text(), &settings);
        assert!(content(&folder) == before, "{what}: something was written");
    };
    changed("--lr", &|s| s.learning_rate *= 2.0);
    changed("--steps", &|s| s.steps = 50);
    changed("--seed", &|s| s.seed = 2);
    changed("--batch", &|s| s.batch = 3);
    changed("--accumulate", &|s| s.accumulate = 1);
    changed("--layers", &|s| s.layers = 3);
    changed("--dropout", &|s| s.dropout = 0.1);
    changed("--documents", &|s| s.documents = Documents::Joined);
    changed("--curriculum", &|s| s.curriculum = Curriculum::Gradual);
    changed("--attention", &|s| s.attention = Mask::CAUSAL);
    changed("--on-alarm", &|s| s.on_alarm = None);
    changed("--log-every", &|s| s.log_every = 4);
    changed("--epsilon", &|s| s.epsilon = 1e-7);
    refused("--text", &text().replace("Ada", "Eva"), &settings);

    // A state or a log that is cut or another's, and files that were changed meanwhile.
    let bad = |what: &str, name: &str, change: &dyn Fn(&[u8]) -> Vec<u8>| {
        let path = folder.join(name);
        fs::write(&path, change(&before[Path::new(name)])).unwrap();
        let damaged = content(&folder);
        refused(what, &text(), &settings);
        assert!(content(&folder) == damaged, "{name}: something was written");
        fs::write(&path, &before[Path::new(name)]).unwrap();
    };
    for cut in [0, 7, 500, 20_000] {
        bad("training.state", "training.state", &|bytes| bytes[..cut].to_vec());
    }
    bad("training.state", "training.state", &|bytes| bytes[..bytes.len() - 1].to_vec());
    bad("training.state", "training.state", &|_| before[Path::new("model.safetensors")].clone());
    // One bit of a number, and a counter.
    for back in [1, 3000] {
        let flip = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let at = bytes.len() - back;
            bytes[at] ^= 1;
            bytes
        };
        bad("holds other numbers", "training.state", &flip);
    }
    let counter = |bytes: &[u8]| {
        let at = bytes.windows(6).position(|w| w == b"step\\\"").expect("the step is there");
        let digit = at + bytes[at..].iter().position(u8::is_ascii_digit).expect("a number");
        let mut bytes = bytes.to_vec();
        bytes[digit] ^= 1;
        bytes
    };
    bad("holds other numbers", "training.state", &counter);
    bad("log.csv", "log.csv", &|bytes| bytes[..bytes.len() - 1].to_vec());
    bad("log.csv", "log.csv", &|bytes| String::from_utf8_lossy(bytes).replacen("0.", "1.", 1).into_bytes());
    bad("monitor.csv", "monitor.csv", &|_| b"step,layer\n".to_vec());
    bad("config.json", "config.json", &|bytes| [b"{ \"note\": 1, ", &bytes[1..]].concat());
    bad("config.json", "tokenizer.json", &|bytes| [bytes, b" "].concat());

    // Another process at work in it.
    let log = fs::File::open(&folder).unwrap();
    log.lock().unwrap();
    refused("another process", &text(), &settings);
    drop(log);

    // Another model's state in this folder.
    let other = root.path().join("other");
    stop(&text(), &other, &Settings { hidden: 24, ..settings.clone() });
    let others = fs::read(other.join("training.state")).unwrap();
    bad("--hidden", "training.state", &|_| others.clone());

    // A new run would overwrite it.
    let error = run(&folder, &settings).unwrap_err().to_string();
    assert!(error.contains("--resume"), "{error}");
    assert!(content(&folder) == before);
    resume(&text(), &folder, &settings, &mut |_| ControlFlow::Continue(())).unwrap();
    let error =
        resume(&text(), &folder, &settings, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.contains("no run to resume"), "{error}");
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The elements of a tensor of one of the half types.
fn values(tensor: &Tensor) -> impl Iterator<Item = f32> {
    tensor.bytes().as_chunks::<2>().0.iter().map(|&bytes| match tensor.dtype() {
        warploom::checkpoint::Dtype::F16 => half::f16::from_le_bytes(bytes).to_f32(),
        _ => half::bf16::from_le_bytes(bytes).to_f32(),
    })
}

/// Settings to train the model in a folder further.
fn further(dir: &Path, steps: usize) -> Settings {
    let mut further = Settings { from: Some(dir.to_owned()), steps, ..settings() };
    further.adopt(&Checkpoint::open(dir).unwrap().config);
    further
}

#[test]
fn a_checkpoint_is_trained_further_and_keeps_what_it_is() {
    let root = tempfile::tempdir().unwrap();
    for name in ["gqa_bf16", "both_bias_bf16", "mqa_f16", "rope_llama3_v5cfg_bf16", "tied_bf16_dup"] {
        let (dir, folder) = (golden(name), root.path().join(name));
        if !dir.join("tokenizer.json").is_file() {
            continue;
        }
        // Steps too small to change a rounded weight: what is left is the checkpoint.
        let still = Settings { learning_rate: 1e-30, ..further(&dir, 2) };
        run(&folder, &still).unwrap();
        let (before, after) = (Checkpoint::open(&dir).unwrap(), Checkpoint::open(&folder).unwrap());
        let mut config = after.config.clone();
        config.dtype = before.config.dtype;
        assert_eq!(config, before.config, "{name}");
        for (tensor, shape) in before.config.tensors() {
            let (a, b) = (before.tensor(&tensor, &shape).unwrap(), after.tensor(&tensor, &shape).unwrap());
            assert_eq!(a.dtype(), b.dtype(), "{name}: {tensor}");
            for (a, b) in values(&a).zip(values(&b)) {
                assert!((a - b).abs() < 1e-20, "{name}: {tensor}: {a} became {b}");
            }
        }
        assert_eq!(
            fs::read(dir.join("tokenizer.json")).unwrap(),
            fs::read(folder.join("tokenizer.json")).unwrap()
        );

        // And steps that are not: broken off and resumed, even where the folder that it came from is gone.
        let (whole, broken) = (root.path().join("whole"), root.path().join("broken"));
        run(&whole, &further(&dir, 5)).unwrap();
        train(&text(), &broken, &further(&dir, 5), &mut |p| match p.step {
            2 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
        .unwrap();
        let mut settings = further(&broken, 5);
        settings.from = Some("gone".into());
        resume(&text(), &broken, &settings, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_same(&whole, &broken);
        let weights = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
        assert!(weights(&whole) != weights(&folder), "{name}: nothing was learned");
        for folder in [whole, broken] {
            fs::remove_dir_all(folder).unwrap();
        }
    }
}

#[test]
fn a_folder_that_cannot_be_trained_further_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("never");
    let refused = |what: &str, settings: &Settings| {
        let error = run(&out, settings).expect_err(what).to_string();
        assert!(error.contains(what), "{what}: {error}");
        assert!(!out.exists(), "{what}");
    };
    let good = further(&golden("gqa_bf16"), 2);
    refused("--layers", &Settings { layers: good.layers + 1, ..good.clone() });
    refused("--vocab", &Settings { vocab: good.vocab + 1, ..good.clone() });
    refused("nowhere", &Settings { from: Some(root.path().join("nowhere")), ..good.clone() });

    // A copy of the folder with one thing changed.
    let copy = root.path().join("copy");
    let changed = |what: &str, change: &dyn Fn(&Path)| {
        fs::create_dir_all(&copy).unwrap();
        for (name, bytes) in content(&golden("gqa_bf16")) {
            fs::write(copy.join(name), bytes).unwrap();
        }
        change(&copy);
        refused(what, &Settings { from: Some(copy.clone()), ..good.clone() });
    };
    changed("tokenizer.json", &|dir| fs::remove_file(dir.join("tokenizer.json")).unwrap());
    changed("truncated", &|dir| {
        let path = dir.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
    });
    changed("fp8", &|dir| {
        let path = dir.join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(
            path,
            text.replacen('{', "{\"quantization_config\": {\"quant_method\": \"fbgemm_fp8\"},", 1),
        )
        .unwrap();
    });

    // The model's own folder as output: its weights would be gone before they were better.
    let own = root.path().join("own");
    run(&own, &settings()).unwrap();
    let before = content(&own);
    let error = run(&own, &further(&own, 2)).unwrap_err().to_string();
    assert!(error.contains("--from"), "{error}");
    assert!(content(&own) == before);
}

#[test]
fn the_plan_is_printed_and_nothing_written() {
    let root = tempfile::tempdir().unwrap();
    let (text_file, out) = (root.path().join("text.txt"), root.path().join("model"));
    fs::write(&text_file, text()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_warploom"));
    command.arg("train").arg("--text").arg(&text_file).arg("--out").arg(&out).arg("--plan");
    let options = "--layers 2 --hidden 16 --heads 4 --kv-heads 2 --intermediate 24 --vocab 300 --steps 3 --batch 2 --sequence 16";
    let output = command.args(options.split_whitespace()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for part in
        ["parameters", "weights", "moments", "gradients", "activations", "logits", "operations a step"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(
        text.contains(&(300 * 16 + 2 * (16 * 16 * 2 + 8 * 16 * 2 + 3 * 16 * 24 + 2 * 16) + 16).to_string()),
        "{text}"
    );
    assert!(!out.exists());
}

/// An encoder has a mask token and says what it is; the commands that decode refuse it and its masks with a cause.
#[test]
fn an_encoder_is_trained_and_not_decoded() {
    let root = tempfile::tempdir().unwrap();
    let (text_file, out) = (root.path().join("text.txt"), root.path().join("encoder"));
    fs::write(&text_file, text()).unwrap();
    let command = |subcommand: &str, options: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warploom"));
        command.arg(subcommand).args(options.split_whitespace());
        if subcommand == "train" {
            command.arg("--text").arg(&text_file).arg("--out").arg(&out);
        }
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let small = "--layers 2 --hidden 16 --heads 4 --kv-heads 2 --vocab 300 --steps 3 --batch 2 --sequence 16";
    let (code, message) = command("train", &format!("{small} --attention block:4"));
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("--objective masked"), "{message}");
    let (code, message) = command("train", &format!("{small} --objective masked --attention chunk:4"));
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("blockwise:B") && !out.exists(), "{message}");

    let masked = format!("{small} --objective masked --attention blockwise:8+globals:1");
    let (code, message) = command("train", &masked);
    assert_eq!(code, Some(0), "{message}");
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(out.join(name)).unwrap()).unwrap()
    };
    let config = json("config.json");
    assert_eq!(config["architectures"][0], "LlamaForMaskedLM");
    assert_eq!(config["attention"], "blockwise:8+globals:1");
    assert_eq!((&config["mask_token_id"], &config["bos_token_id"]), (&297.into(), &298.into()));
    assert_eq!(json("tokenizer_config.json")["mask_token"], "<|mask|>");
    let tokenizer = tokenizers::Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
    assert_eq!((tokenizer.get_vocab_size(true), tokenizer.token_to_id("<|mask|>")), (300, Some(297)));
    let log = fs::read_to_string(out.join("log.csv")).unwrap();
    let last: Vec<&str> = log.lines().last().unwrap().split(',').collect();
    let column = |name: &str| log.lines().next().unwrap().split(',').position(|c| c == name).unwrap();
    for name in ["loss", "validation_1", "validation_2"] {
        let loss: f64 = last[column(name)].parse().unwrap();
        assert!((4.0..6.5).contains(&loss), "{name} is {loss}; of 300 tokens alike it would be 5.7");
    }

    let (code, message) = command("generate", &format!("--model {} --prompt a", out.display()));
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("encoder") && message.contains("--objective next"), "{message}");
    let (code, message) = command("generate", "--prompt a --attention block:8");
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("block:8 lets rows see what comes after them"), "{message}");
}
