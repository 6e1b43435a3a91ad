//! What every layer would say: final norm and head after each layer, over a prompt or a text.
//!
//! Start from [`exit_logits`] (one position, layer by layer: where the next token is decided) and [`evaluate`] (loss
//! and agreement with the last layer over many tokens: how well each layer would draft). An early exit is read
//! as in LayerSkip (arXiv 2404.16710): one final norm and one head serve every layer.

use std::{cmp::Ordering, ops::ControlFlow};

use rayon::prelude::*;

use super::sampling::argmax;
use crate::{
    backend::{Backend, Row},
    cache::Cache,
    error::{Error, Result},
    model::{Llama, Work},
};

/// Rows that go through a layer together: each weight, once it is read, meets them all.
const ROWS: usize = 64;
/// Room for the logits of one pass of the head; a large vocabulary takes several passes.
const LOGIT_BYTES: usize = 8 << 20;

/// The logits of one position at the early exit after `layer` layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// Layers that were run, 1 to L.
    pub layer: usize,
    /// The highest logits with their ids, the highest first; of equal ones the lower id first.
    pub top: Vec<(u32, f32)>,
    /// Mean over the vocabulary.
    pub mean: f64,
    /// Standard deviation over the vocabulary, with Bessel's correction (n − 1) as in PyTorch; 0 for a
    /// vocabulary of one.
    pub std: f64,
}

/// The logits after the last token of `prompt` at every exit, 1 to L layers, each with its `top` highest.
///
/// All tokens but the last are prefilled, as in generation, so exit n sees the keys and values that layers
/// 0..n compute in any run.
///
/// # Errors
/// [`Error::Argument`] for an empty prompt, one longer than the model's context, ids outside the vocabulary, and for
/// a `top` outside 1..=vocabulary; [`Error::NotFinite`]; [`Error::Capacity`].
pub fn exit_logits<B: Backend>(llama: &Llama<B>, prompt: &[u32], top: usize) -> Result<Vec<Exit>> {
    let config = llama.config();
    let (layers, vocab) = (config.layers, config.vocab);
    if !(1..=vocab).contains(&top) {
        return Err(Error::argument("--top", format!("{top} is outside 1..={vocab}, the vocabulary")));
    }
    let Some(last) = prompt.len().checked_sub(1) else {
        return Err(Error::argument("prompt", "is empty: give at least one token"));
    };
    if prompt.len() > config.context {
        return Err(Error::argument(
            "prompt",
            format!("its {} tokens are more than the model's context of {}", prompt.len(), config.context),
        ));
    }
    check_ids("prompt", prompt, vocab)?;
    let mut pass = Pass::new(llama, prompt.len())?;
    for chunk in prompt[..last].chunks(pass.work.rows()) {
        pass.push(chunk)?;
        pass.prefill()?;
    }
    pass.push(&prompt[last..])?;
    (0..layers)
        .map(|layer| {
            pass.forward(layer, layer + 1)?;
            let logits = llama.head(0, 1, &mut pass.work)?;
            argmax(logits).ok_or(Error::NotFinite { position: last })?;
            let mean = logits.iter().map(|x| f64::from(*x)).sum::<f64>() / vocab as f64;
            let squares = logits.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>();
            let std = (squares / (vocab - 1).max(1) as f64).sqrt();
            Ok(Exit { layer: layer + 1, top: highest(logits, top), mean, std })
        })
        .collect()
}

/// How [`evaluate`] cuts its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Most rows of a window, at most the model's context.
    pub context: usize,
    /// What stands before every window's first token, for models that were trained to begin with it.
    pub bos: Option<u32>,
}

/// Quality of every exit over a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Tokens that were predicted, each once.
    pub tokens: usize,
    /// Windows that were begun.
    pub windows: usize,
    /// One for each exit, 1 to L layers.
    pub exits: Vec<ExitQuality>,
    /// The last layer's most probable token for each token that was predicted.
    pub choices: Vec<u32>,
    /// Whether it was ended early: `tokens` is then only a part of the text.
    pub interrupted: bool,
}

/// How well one exit predicts a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExitQuality {
    /// Layers that were run, 1 to L.
    pub layer: usize,
    /// Mean cross-entropy in nats.
    pub loss: f64,
    /// Share of positions where its most probable token is the last layer's.
    pub agreement: f64,
}

impl ExitQuality {
    /// Exponential of the loss.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// Loss and agreement with the last layer at every exit over `tokens`, a text's ids without BOS.
///
/// The text is cut into windows of `windows.context` rows that know nothing of each other. A window begins with BOS
/// or, without one, with the last token of the window before, which then only predicts. So every token is
/// predicted once, except the very first if there is no BOS; those early in a window have little to go by.
///
/// Rows attend only to what comes before them, so one pass over a window predicts all its tokens.
/// `progress` is told the number of tokens predicted and of all to predict; [`ControlFlow::Break`] ends the
/// evaluation with what there is.
///
/// # Errors
/// [`Error::Argument`] for a text without a token to predict, a context outside 1..=[`Config::context`], ids outside the
/// vocabulary; [`Error::NotFinite`]; [`Error::Capacity`].
///
/// [`Config::context`]: crate::checkpoint::Config::context
pub fn evaluate<B: Backend>(
    llama: &Llama<B>,
    tokens: &[u32],
    windows: Windows,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Evaluation> {
    let (layers, vocab) = (llama.config().layers, llama.config().vocab);
    let Windows { context, bos } = windows;
    if !(1..=llama.config().context).contains(&context) {
        let reason =
            format!("{context} is outside 1..={}, the positions of the model", llama.config().context);
        return Err(Error::argument("--context", reason));
    }
    check_ids("text", tokens, vocab)?;
    check_ids("BOS", bos.as_slice(), vocab)?;
    let (mut before, targets) = match (bos, tokens.split_first()) {
        (Some(bos), Some(_)) => (bos, tokens),
        (None, Some((first, rest))) if !rest.is_empty() => (*first, rest),
        _ => return Err(Error::argument("text", "is too short: there is no token to predict")),
    };

    let mut pass = Pass::new(llama, context.min(targets.len()))?;
    let rows = pass.work.rows();
    let mut sums = vec![Sums::default(); layers];
    // The choices of every exit, [layers, rows]: the last layer's are known last.
    let mut choices = vec![0; layers * rows];
    let mut chosen = Vec::with_capacity(targets.len());
    let (mut done, mut begun, mut interrupted) = (0, 0, false);
    'windows: for window in targets.chunks(context) {
        pass.restart()?;
        begun += 1;
        before = bos.unwrap_or(before);
        for predicted in window.chunks(rows) {
            // Each row is the token before the one that it predicts.
            let mut inputs = [0; ROWS];
            inputs[0] = before;
            inputs[1..predicted.len()].copy_from_slice(&predicted[..predicted.len() - 1]);
            before = predicted[predicted.len() - 1];
            pass.push(&inputs[..predicted.len()])?;
            for layer in 0..layers {
                pass.forward(layer, layer + 1)?;
                sums[layer].loss += pass.predict(predicted, &mut choices[layer * rows..])?;
            }
            let last = &choices[(layers - 1) * rows..][..predicted.len()];
            for (sum, choices) in sums.iter_mut().zip(choices.chunks(rows)) {
                sum.agreed += last.iter().zip(choices).filter(|(a, b)| a == b).count();
            }
            chosen.extend_from_slice(last);
            done += predicted.len();
            if progress(done, targets.len()).is_break() {
                interrupted = done < targets.len();
                break 'windows;
            }
        }
    }
    let exits = sums.iter().zip(1..).map(|(sum, layer)| ExitQuality {
        layer,
        loss: sum.loss / done as f64,
        agreement: sum.agreed as f64 / done as f64,
    });
    Ok(Evaluation { tokens: done, windows: begun, exits: exits.collect(), choices: chosen, interrupted })
}

/// What is added up for one exit.
#[derive(Clone, Copy, Default)]
struct Sums {
    loss: f64,
    agreed: usize,
}

/// One sequence and its buffers, on their way through the layers.
struct Pass<'m, B: Backend> {
    llama: &'m Llama<B>,
    cache: Cache,
    kv: B::Kv,
    work: Work<B>,
    sequence: usize,
    rows: Vec<Row>,
}

impl<'m, B: Backend> Pass<'m, B> {
    /// An empty sequence with room for `positions`.
    fn new(llama: &'m Llama<B>, positions: usize) -> Result<Self> {
        let page = llama.backend().page_size();
        let pages = positions.div_ceil(page);
        let mut cache = Cache::new(pages, page, 1, pages)?;
        let sequence = cache.create()?;
        let rows = ROWS.min(positions);
        let logit_rows = (LOGIT_BYTES / (4 * llama.config().vocab)).clamp(1, rows);
        Ok(Pass {
            kv: llama.kv(&cache)?,
            work: llama.work(rows, logit_rows)?,
            llama,
            cache,
            sequence,
            rows: Vec::with_capacity(rows),
        })
    }

    /// Forgets all positions.
    fn restart(&mut self) -> Result<()> {
        self.cache.truncate(self.sequence, 0)
    }

    /// Makes `tokens` the rows of the next passes, at the positions after those that were pushed before.
    fn push(&mut self, tokens: &[u32]) -> Result<()> {
        let first = self.cache.len(self.sequence)?;
        // No other sequence shares its pages, so none has to be copied.
        self.cache.append(self.sequence, tokens.len(), &mut Vec::new())?;
        self.rows.clear();
        let sequence = self.sequence;
        self.rows.extend(tokens.iter().zip(first..).map(|(&token, position)| Row {
            token,
            position,
            sequence,
        }));
        Ok(())
    }

    /// Computes the keys and values of the rows in every layer, as rows of a prompt.
    fn prefill(&mut self) -> Result<()> {
        self.llama.prefill(&self.rows, &mut self.kv, &self.cache, &mut self.work)
    }

    /// Runs layers `from..to` over the rows, as decode rows.
    fn forward(&mut self, from: usize, to: usize) -> Result<()> {
        self.llama.forward(from..to, &self.rows, &mut self.kv, &self.cache, &mut self.work)
    }

    /// Reads out the rows where they are: their most probable tokens go to `choices`, and the sum of their
    /// cross-entropies against `targets` is returned.
    fn predict(&mut self, targets: &[u32], choices: &mut [u32]) -> Result<f64> {
        let vocab = self.llama.config().vocab;
        let slice = self.work.logit_rows();
        let mut sum = 0.0;
        for (from, targets) in (0..).step_by(slice).zip(targets.chunks(slice)) {
            let logits = self.llama.head(from, targets.len(), &mut self.work)?;
            let read: Vec<_> =
                logits.par_chunks(vocab).zip(targets).map(|(row, t)| cross_entropy(row, *t)).collect();
            for (row, read) in (from..).zip(read) {
                let (choice, loss) = read.ok_or(Error::NotFinite { position: self.rows[row].position })?;
                choices[row] = choice;
                // In the order of the rows, so that the sum does not depend on the threads.
                sum += loss;
            }
        }
        Ok(sum)
    }
}

/// The most probable id and −log softmax(logits)[target]; `None` if a logit is not finite.
fn cross_entropy(logits: &[f32], target: u32) -> Option<(u32, f64)> {
    let (choice, max) = argmax(logits)?;
    let sum: f64 = logits.iter().map(|x| f64::from((x - max).exp())).sum();
    Some((choice, sum.ln() + f64::from(max) - f64::from(logits[target as usize])))
}

/// The `count` highest of finite `logits`, the highest first, the lower id first among equals.
fn highest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    let order =
        |a: &(u32, f32), b: &(u32, f32)| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0));
    if count < all.len() {
        all.select_nth_unstable_by(count, order);
        all.truncate(count);
    }
    all.sort_unstable_by(order);
    all
}

fn check_ids(what: &str, ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocab) {
        Some(id) => Err(Error::argument(what, format!("id {id} is outside the vocabulary of {vocab}"))),
        None => Ok(()),
    }
}
