//! Whole models on a GPU: prompts, plain decoding and speculative rounds, in tokens per second:
//! `cargo bench --features cuda --bench models`, `-- --help` for more.
//!
//! **Llama 3.2 1B and 3 8B have random weights of their shapes here**, so that their speed can be measured without their weights. The time of
//! a step does not depend on the numbers, but how many drafts a round keeps does: acceptance is *scripted*, 1 to 4 of 4 drafts in every
//! round, whatever the model says (`Gpu::script_acceptance` tells what that does and does not show), and such rows say so. The demo's rows
//! are real: its own weights, its own acceptance, and speculative tokens that equal plain ones, or the row fails.
//!
//! Times are the host's clock around the rounds of a generation, its prompt left out: what a user waits for. Bytes are the weights and the
//! cached keys and values that those rounds read; a share is of the ceiling of reading.

mod device;

use std::{process::ExitCode, time::Instant};

use device::{Bench, Clock, Section};
use warploom::{
    Error, Result,
    backend::{Backend as _, Gpu, LibraryUse},
    checkpoint::{Checkpoint, Config, Published},
    decode::{Finished, Generator, Limits, Policy, Request, Sampling},
    model::Llama,
    results::{
        Row, shapes,
        targets::{GENERATION, SCRIPTED, scripted_exit},
    },
};

fn main() -> ExitCode {
    device::main(|bench| {
        let names: &[&str] = match (bench.options.smoke, bench.options.quick) {
            (true, _) => &["tiny"],
            (_, true) => &["llama3.2-1b"],
            _ => &["llama3.2-1b", "llama3-8b"],
        };
        for name in names {
            let json = match *name {
                "tiny" => TINY,
                name => Published::named(name)?.json(),
            };
            random(bench, name, json)?;
        }
        demo(bench)
    })
}

/// What a smoke run decodes instead of the published shapes.
const TINY: &str = r#"{"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 256,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300, "max_position_embeddings": 512}"#;

/// Prompts by the kernels, and by the device's library wherever that is faster.
const PREFILL: &str = "prefill";
const PREFILL_BY_LIBRARY: &str = "prefill, cuBLASLt where faster";

/// One generation, or several beside each other.
struct Task {
    name: &'static str,
    shape: String,
    sequences: usize,
    prompt: Vec<u32>,
    tokens: usize,
    /// Policy, exit layer and draft length; None: plainly.
    rounds: Option<(Policy, usize, usize)>,
    scripted: Option<usize>,
}

/// A model of random weights.
fn random(bench: &mut Bench, name: &str, json: &str) -> Result<()> {
    let config = &Config::from_json(name.as_ref(), json.as_bytes(), None)?;
    let smoke = bench.options.smoke;
    let (prompt, tokens) = if smoke { (6, 6) } else { GENERATION };
    let layers = config.layers;
    let ids = |count: usize| (0..count).map(|i| (i * 7919 % config.vocab) as u32).collect::<Vec<_>>();
    let plain = |sequences: usize, prompt: usize| Task {
        name: "plain decode",
        shape: shapes::generation(name, sequences, prompt, tokens),
        sequences,
        prompt: ids(prompt),
        tokens,
        rounds: None,
        scripted: None,
    };
    let (draft, kept) = SCRIPTED;
    let scripted = |kept: usize| {
        let task = plain(1, prompt);
        let exit = scripted_exit(layers);
        Task {
            name: "speculative decode",
            shape: shapes::rounds(&task.shape, exit, draft, kept),
            rounds: Some((Policy::Fixed, exit, draft)),
            scripted: Some(kept),
            ..task
        }
    };
    let mut tasks = vec![plain(1, prompt)];
    tasks.extend(kept.into_iter().map(scripted));
    if smoke {
        tasks.push(plain(2, prompt));
    } else if !bench.options.quick {
        tasks.extend([8, 64].map(|sequences| plain(sequences, prompt)));
        tasks.push(plain(1, 4096));
    }
    let prefills = [PREFILL, PREFILL_BY_LIBRARY];
    tasks.extend(prefills.map(|name| Task { name, ..plain(1, if smoke { 129 } else { 4097 }) }));
    tasks.retain(|task| bench.is_asked_for(task.name, &task.shape));
    if tasks.is_empty() {
        return Ok(());
    }
    let checkpoint = device::checkpoint(config, json)?;
    let driver = bench.queue.driver.clone();
    let context = config.context.min(8192);
    let count = tasks.len();
    let mut done = 0;
    // One model at a time: two may not fit.
    let (by_library, by_kernels): (Vec<_>, Vec<_>) =
        tasks.into_iter().partition(|task| task.name == PREFILL_BY_LIBRARY);
    for (library, tasks) in [(false, by_kernels), (true, by_library)] {
        if tasks.is_empty() {
            continue;
        }
        let mut gpu = Gpu::new(driver.clone(), &checkpoint)?;
        let missing = if library { gpu.use_library(LibraryUse::Faster).err() } else { None };
        let llama = match missing {
            None => Some(Llama::new(&checkpoint, gpu, context)?),
            Some(_) => None,
        };
        for task in tasks {
            let row = match (&llama, task.name) {
                (None, _) => {
                    let error = missing.as_ref().map(|error| error.to_string());
                    Row { error, ..Row::new(task.name, prompt_shape(name, &task)) }
                }
                (Some(llama), PREFILL | PREFILL_BY_LIBRARY) => prefill(bench, llama, name, task),
                (Some(llama), _) => generate(bench, llama, &task, None),
            };
            done += 1;
            bench.keep(Section::Models, row, done, count)?;
        }
    }
    Ok(())
}

/// The demo with its own weights and its own acceptance.
fn demo(bench: &mut Bench) -> Result<()> {
    let checkpoint = Checkpoint::from_bytes(
        include_bytes!("../assets/demo/config.json"),
        Some(include_bytes!("../assets/demo/generation_config.json")),
        include_bytes!("../assets/demo/model.safetensors"),
    )?;
    let driver = bench.queue.driver.clone();
    let context = checkpoint.config.context.min(256);
    let llama = Llama::new(&checkpoint, Gpu::new(driver, &checkpoint)?, context)?;
    let tokens = if bench.options.smoke { 3 } else { 128 };
    let prompt = vec![checkpoint.config.bos.unwrap_or(0), 40, 300, 200, 100];
    let shape = shapes::generation("demo", 1, prompt.len(), tokens);
    let plain = Task {
        name: "plain decode",
        shape: shape.clone(),
        sequences: 1,
        prompt: prompt.clone(),
        tokens,
        rounds: None,
        scripted: None,
    };
    let mut tasks = vec![plain];
    let layers = checkpoint.config.layers;
    let policies = Policy::ALL.into_iter().filter(|policy| *policy != Policy::Off);
    tasks.extend(policies.map(|policy| Task {
        name: "speculative decode",
        shape: format!("{shape} {}", policy.name()),
        sequences: 1,
        prompt: prompt.clone(),
        tokens,
        rounds: Some((policy, layers / 3, 4)),
        scripted: None,
    }));
    let expected = decode(&llama, &tasks[0])?.first.ids;
    tasks.retain(|task| bench.is_asked_for(task.name, &task.shape));
    let count = tasks.len();
    for (i, task) in tasks.iter().enumerate() {
        let row = generate(bench, &llama, task, Some(&expected));
        bench.keep(Section::Models, row, i + 1, count)?;
    }
    Ok(())
}

/// What a generation took, in seconds, and what came of its first sequence.
struct Took {
    prompt: f64,
    rounds: f64,
    first: Finished,
}

/// Decodes once.
fn decode(llama: &Llama<Gpu>, task: &Task) -> Result<Took> {
    let mut generator = generator(llama, task)?;
    run(&mut generator, llama, task)
}

fn generator<'m>(llama: &'m Llama<Gpu>, task: &Task) -> Result<Generator<'m, Gpu>> {
    llama.backend().script_acceptance(task.scripted);
    let page = llama.backend().page_size();
    let context = (task.prompt.len() + task.tokens + 1).next_multiple_of(page).min(llama.config().context);
    let max_draft = task.rounds.map_or(0, |(_, _, draft)| draft.max(most_draft(task)));
    Generator::new(llama, Limits { sequences: task.sequences, context, max_draft })
}

/// Policies may draft further than they begin with.
fn most_draft(task: &Task) -> usize {
    match task.rounds {
        Some((Policy::Fixed, _, draft)) => draft,
        Some(_) => warploom::decode::MAX_DRAFT,
        None => 0,
    }
}

fn run(generator: &mut Generator<Gpu>, llama: &Llama<Gpu>, task: &Task) -> Result<Took> {
    let request = || {
        let layers = llama.config().layers;
        let policy = task.rounds.map(|(policy, exit, draft)| policy.build(layers, exit, draft, None));
        Ok(Request {
            prompt: task.prompt.clone(),
            max_tokens: task.tokens,
            sampling: Sampling::default(),
            policy: policy.transpose()?.flatten(),
            // So that all tokens come.
            eos: vec![],
        })
    };
    let requests = (0..task.sequences).map(|_| request()).collect::<Result<Vec<_>>>()?;
    // The host only enqueues a prompt: each part of the time ends when the device has come to its end.
    let gpu = llama.backend();
    gpu.synchronize()?;
    let begun = Instant::now();
    let slots = generator.start_all(requests)?;
    gpu.synchronize()?;
    let prompt = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    while generator.is_active() {
        generator.round(&mut |_: usize, _: u32| None)?;
    }
    gpu.synchronize()?;
    let rounds = begun.elapsed().as_secs_f64();
    let mut finished = slots.into_iter().map(|slot| generator.finish(slot));
    let first = finished.next().flatten();
    finished.for_each(drop);
    let none = || Error::argument("sequences", "there are none");
    first.map(|first| Took { prompt, rounds, first }).ok_or_else(none)
}

/// Measures a task. `expected`: the ids that it must give.
fn generate(bench: &Bench, llama: &Llama<Gpu>, task: &Task, expected: Option<&[u32]>) -> Row {
    let mut row = Row { ceiling: Some("read".into()), ..Row::new(task.name, &task.shape) };
    let prepared = generator(llama, task).and_then(|mut generator| {
        let first = run(&mut generator, llama, task)?.first;
        Ok((generator, first))
    });
    let (generator, first) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return Row { error: Some(error.to_string()), ..row },
    };
    if let Some(fault) = fault(task, &first, expected) {
        return Row { error: Some(fault), ..row };
    }
    let stats = &first.stats;
    row.tokens = Some((task.sequences * task.tokens) as u64);
    row.bytes = Some(stats.decode_bytes);
    row.note = match (task.scripted, stats.acceptance()) {
        (Some(kept), _) => Some(format!(
            "scripted acceptance, random weights: a round keeps {kept} drafts whatever the model says"
        )),
        (None, Some(acceptance)) => {
            Some(format!("acceptance {acceptance:.2}, {:.2} tokens a round", stats.tokens_per_round()))
        }
        _ if expected.is_none() => Some("random weights".into()),
        _ => None,
    };
    let generator = std::cell::RefCell::new(generator);
    let row = bench.sample(row, Clock::Wall, 1.0, |times| {
        let mut seconds = 0.0;
        for _ in 0..times {
            seconds += run(&mut generator.borrow_mut(), llama, task)?.rounds;
        }
        Ok(seconds)
    });
    llama.backend().script_acceptance(None);
    row
}

/// What is wrong with what a task gave.
fn fault(task: &Task, first: &Finished, expected: Option<&[u32]>) -> Option<String> {
    let stats = &first.stats;
    if first.ids.len() != task.tokens {
        return Some(format!("{} tokens came, not {}", first.ids.len(), task.tokens));
    }
    if expected.is_some_and(|expected| first.ids != expected) {
        return Some("the tokens are not those of plain decoding".into());
    }
    let (Some(kept), Some((_, _, draft))) = (task.scripted, task.rounds) else { return None };
    // The last round may have room for fewer.
    let others: usize = (0..stats.histogram.len()).filter(|i| *i != kept).map(|i| stats.histogram[i]).sum();
    let is_scripted = others <= 1 && kept <= draft;
    (!is_scripted).then(|| format!("rounds kept {:?} drafts, not {kept} each", stats.histogram))
}

/// A prompt's last token is the first round's.
fn prompt_shape(name: &str, task: &Task) -> String {
    format!("{name} B1 P{}", task.prompt.len() - 1)
}

/// Tokens of a prompt.
fn prefill(bench: &Bench, llama: &Llama<Gpu>, name: &str, task: Task) -> Row {
    let count = task.prompt.len() - 1;
    let bytes = llama.bytes(0..llama.config().layers) as u64;
    let mut row = Row::new(task.name, prompt_shape(name, &task));
    row.tokens = Some(count as u64);
    row.flop = Some(bytes * count as u64);
    row.ceiling = Some("matmul bf16".into());
    let task = Task { tokens: 1, ..task };
    let generator = match generator(llama, &task) {
        Ok(generator) => std::cell::RefCell::new(generator),
        Err(error) => return Row { error: Some(error.to_string()), ..row },
    };
    let mut row = bench.sample(row, Clock::Wall, 1.0, |times| {
        let mut seconds = 0.0;
        for _ in 0..times {
            seconds += run(&mut generator.borrow_mut(), llama, &task)?.prompt;
        }
        Ok(seconds)
    });
    let mut note = "random weights; FLOP of the layers' products alone".to_string();
    if let Some((library, choices)) = llama.backend().library() {
        let taken = choices.iter().filter(|choice| choice.library).count();
        note += &format!("; {taken} of {} shapes by {library}", choices.len());
    }
    row.note = Some(note);
    row
}
