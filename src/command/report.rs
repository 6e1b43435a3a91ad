//! What a generation cost, for people (stderr) and for scripts (`--json`).

use serde_json::{Value, json};
use warploom::{
    backend::Recordings,
    decode::{Finished, Policy, Stats, Stop},
};

use super::{model::Loaded, options::Drafting};

/// What is the same for all sequences of a run.
pub struct Setting<'a> {
    /// The model and its threads.
    pub loaded: &'a Loaded,
    /// The backend's name for itself: an instruction set, or a GPU's.
    pub backend: String,
    /// How rounds draft.
    pub drafting: Drafting,
}

impl Setting<'_> {
    fn layers(&self) -> usize {
        self.loaded.checkpoint.config.layers
    }

    /// The JSON object of one sequence.
    pub fn json(&self, prompt: &[u32], finished: &Finished, text: Option<&str>) -> Value {
        let Finished { ids, stop, stats, .. } = finished;
        json!({
            "prompt_ids": prompt,
            "ids": ids,
            "text": text,
            "stop": stop.map(Stop::name),
            "prefill_tokens_per_s": stats.prefill_tokens_per_s(),
            "decode_tokens_per_s": stats.decode_tokens_per_s(),
            "rounds": stats.rounds,
            "drafted": stats.drafted,
            "accepted": stats.accepted,
            "acceptance": stats.acceptance(),
            "tokens_per_round": stats.tokens_per_round(),
            "accepted_histogram": stats.histogram,
            "policy": self.drafting.policy.name(),
            "exit_layer": stats.exit_layer,
            "draft": stats.draft,
            "bytes_per_s": stats.bytes_per_s(),
            "logits_hash": hex(finished.logits_hash),
            "device": self.loaded.device(),
            "isa": self.backend,
            "threads": self.loaded.threads(),
        })
    }

    /// The few lines under a text.
    pub fn summary(&self, run: &Run) -> String {
        let stats = &run.stats;
        let mut out = format!(
            "prefill   {:>6} tokens  {:>9.1} tokens/s\n\
             decode    {:>6} tokens  {:>9.1} tokens/s  {:.2} GB/s, {}\n\
             rounds    {:>6}         {:>9.2} tokens/round",
            stats.prefill_tokens,
            stats.prefill_tokens_per_s(),
            stats.generated,
            if run.seconds > 0.0 { stats.generated as f64 / run.seconds } else { 0.0 },
            stats.bytes_per_s() / 1e9,
            run.ends(),
            stats.rounds,
            stats.tokens_per_round(),
        );
        if let Some(acceptance) = stats.acceptance() {
            out += &format!(
                "  exit layer {} of {}, draft {} ({})\n\
                 accepted  {:>6} of {} drafts, {:.0} %: {}",
                stats.exit_layer,
                self.layers(),
                stats.draft,
                self.drafting.policy,
                stats.accepted,
                stats.drafted,
                100.0 * acceptance,
                histogram(&stats.histogram),
            );
        } else if self.drafting.policy == Policy::Off {
            out += "  no drafts";
        }
        if let Some(Recordings { graphs, most, nodes, bytes, replayed }) = run.recordings {
            out += &format!(
                "\ngraphs    {graphs:>6} of {most} at most, {nodes} launches and copies, {:.1} MiB; {replayed} rounds were replayed",
                bytes as f64 / f64::from(1 << 20),
            );
        }
        out + &format!(
            "\nlogits    {}  {} {}, {} threads",
            hex(run.logits_hash),
            self.loaded.device(),
            self.backend,
            self.loaded.threads()
        )
    }
}

/// Sums over the sequences of a run.
#[derive(Default)]
pub struct Run {
    /// Sums; the seconds are those of the sequences, which in a batch overlap.
    stats: Stats,
    /// Seconds that decoding took.
    pub seconds: f64,
    /// On a device, the rounds that are graphs.
    pub recordings: Option<Recordings>,
    /// Of one sequence, the hash of its last logits; of several, all of them folded.
    logits_hash: u64,
    stops: Vec<Stop>,
}

impl Run {
    /// Adds a sequence.
    pub fn add(&mut self, finished: &Finished) {
        let stats = &finished.stats;
        let sum = &mut self.stats;
        sum.prefill_tokens += stats.prefill_tokens;
        sum.prefill_seconds += stats.prefill_seconds;
        sum.decode_seconds += stats.decode_seconds;
        sum.decode_bytes += stats.decode_bytes;
        sum.generated += stats.generated;
        sum.rounds += stats.rounds;
        sum.drafted += stats.drafted;
        sum.accepted += stats.accepted;
        for (sum, count) in sum.histogram.iter_mut().zip(stats.histogram) {
            *sum += count;
        }
        if stats.exit_layer > 0 {
            (sum.exit_layer, sum.draft) = (stats.exit_layer, stats.draft);
        }
        self.logits_hash = self.logits_hash.rotate_left(1) ^ finished.logits_hash;
        self.stops.extend(finished.stop);
    }

    /// `stop: eos`, or how many sequences ended in which way.
    fn ends(&self) -> String {
        if let [stop] = self.stops[..] {
            return format!("stop: {}", stop.name());
        }
        let every = [Stop::Eos, Stop::Length, Stop::Context, Stop::String, Stop::Interrupted];
        let count = |stop: &Stop| self.stops.iter().filter(|other| *other == stop).count();
        let counts = every.iter().filter(|stop| count(stop) > 0);
        let counts: Vec<_> = counts.map(|stop| format!("{} {}", count(stop), stop.name())).collect();
        format!("{} prompts: {}", self.stops.len(), counts.join(", "))
    }
}

/// Rounds by number of accepted drafts, as bars and as numbers: `▂▄█ 0×3 1×5 2×9`.
pub fn histogram(counts: &[usize]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let used = counts.iter().rposition(|&count| count > 0).map_or(0, |last| last + 1);
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    // The lowest bar is no round at all; one round is seen to be there.
    let bar = |count: usize| BARS[(count * (BARS.len() - 1)).div_ceil(most)];
    let bars: String = counts[..used].iter().map(|&count| bar(count)).collect();
    let numbers = counts[..used].iter().enumerate().filter(|(_, count)| **count > 0);
    numbers.fold(bars, |text, (accepted, count)| format!("{text} {accepted}×{count}"))
}

/// A hash as it is printed.
pub fn hex(hash: u64) -> String {
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_show_every_count() {
        assert_eq!(histogram(&[1, 0, 8, 0]), "▂▁█ 0×1 2×8");
        assert_eq!(histogram(&[0, 0]), "");
        assert_eq!(histogram(&[5]), "█ 0×5");
    }
}
