//! `warploom logits`: the next token's likeliest candidates after each layer, and where it is decided.

use std::fmt::Write as _;

use serde_json::json;
use warploom::{
    Error, Result,
    backend::Backend,
    decode::exits::{Exit, exit_logits},
    error::printable,
    model::Llama,
    text::Tokenizer,
};

use super::{
    model::{Job, Loaded, ModelArgs},
    options::PromptArgs,
    output,
};

/// Show the next token's likeliest candidates after each layer: where it is decided
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("needed").required(true).args(["prompt", "prompt_ids"]))]
#[command(after_help = "Examples:
  warploom logits --prompt \"In the beginning\"
  warploom logits --prompt \"And God said, Let there be\" --top 20 --json")]
pub struct LogitsArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Candidates to show for each layer
    #[arg(long, value_name = "K", default_value_t = 5)]
    top: usize,
    /// Print one JSON object: ids, and for each exit its layer, top [[id, logit], …], mean and std
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Those of loading the model and of [`exit_logits`]; [`Error::Argument`] for a prompt longer than the context.
pub fn run(args: LogitsArgs) -> Result<()> {
    let loaded = Loaded::open(&args.model)?;
    // The group in LogitsArgs has made sure that there is one.
    let ids = args.prompt.ids(&loaded)?.unwrap_or_default();
    let context = loaded.context(ids.len())?;
    if ids.len() > context {
        let reason = format!("its {} tokens are more than the context of {context}", ids.len());
        return Err(Error::argument("prompt", reason));
    }
    let exits = loaded.run(ids.len(), Exits { prompt: &ids, top: args.top })?;
    let text = match args.json {
        true => json_text(&ids, &exits),
        false => table(&exits, loaded.optional_tokenizer.as_ref()),
    };
    output::write(&text).map(drop)
}

/// The logits at every exit.
struct Exits<'a> {
    prompt: &'a [u32],
    top: usize,
}

impl Job for Exits<'_> {
    type Output = Vec<Exit>;
    fn run<B: Backend>(self, llama: &Llama<B>) -> Result<Vec<Exit>> {
        exit_logits(llama, self.prompt, self.top)
    }
}

fn json_text(ids: &[u32], exits: &[Exit]) -> String {
    let exits: Vec<_> = exits
        .iter()
        .map(|exit| json!({ "layer": exit.layer, "top": exit.top, "mean": exit.mean, "std": exit.std }))
        .collect();
    format!("{}\n", json!({ "ids": ids, "exits": exits }))
}

/// A row for each exit: its candidates with their logits, the likeliest first.
fn table(exits: &[Exit], tokenizer: Option<&Tokenizer>) -> String {
    let name = |id: u32| match tokenizer {
        Some(tokenizer) => format!("'{}'", printable(&tokenizer.token_text(id))),
        None => id.to_string(),
    };
    let cells: Vec<Vec<String>> = exits
        .iter()
        .map(|exit| exit.top.iter().map(|(id, logit)| format!("{} {logit:.2}", name(*id))).collect())
        .collect();
    let width = cells.iter().flatten().map(|cell| cell.chars().count()).max().unwrap_or(0);
    let mut out = String::from("layer  candidates and their logits\n");
    for (exit, cells) in exits.iter().zip(&cells) {
        let row: Vec<_> = cells.iter().map(|cell| format!("{cell:<width$}")).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{:>5}  {}", exit.layer, row.join("  ").trim_end());
    }
    if let (Some(last), Some(layer)) = (exits.last(), decided(exits)) {
        let token = name(last.top[0].0);
        let _ = match layer == last.layer {
            true => writeln!(out, "\n{token} is decided by the last layer alone"),
            false => writeln!(out, "\n{token} is decided from layer {layer} on"),
        };
    }
    out
}

/// The first exit from which on all exits choose what the last one chooses.
fn decided(exits: &[Exit]) -> Option<usize> {
    let choice = exits.last()?.top[0].0;
    exits.iter().rev().take_while(|exit| exit.top[0].0 == choice).last().map(|exit| exit.layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_decided_where_it_is_not_given_up_again() {
        let exits = |choices: &[u32]| -> Vec<Exit> {
            let exit =
                |(layer, id): (usize, &u32)| Exit { layer, top: vec![(*id, 1.0)], mean: 0.0, std: 1.0 };
            (1..).zip(choices).map(exit).collect()
        };
        assert_eq!(decided(&exits(&[7, 3, 7, 7])), Some(3));
        assert_eq!(decided(&exits(&[7, 7])), Some(1));
        assert_eq!(decided(&exits(&[7, 8])), Some(2));
        assert!(table(&exits(&[7, 8]), None).contains("8 is decided by the last layer alone"));
        assert!(table(&exits(&[7, 8, 8]), None).contains("8 is decided from layer 2 on"));
    }
}
