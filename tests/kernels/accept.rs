//! Whole rounds against a simulation on the host that has the same bits: begin, drafts, verification, acceptance.

use warploom::{
    decode::{MAX_DRAFT, sampling::Sampling},
    driver::Buffer,
    kernels::{
        AcceptArgs, AcceptLogits, BeginArgs, Dtype, RoundRows, Rows, RowsMut, Sample, SampleArgs, SamplePass,
        params::{
            WL_RUNNING, WL_STOP_EOS, WL_STOP_LENGTH, WL_STOP_NO_LOGITS, WL_STOP_NOT_FINITE, WlChoice, WlPlan,
            WlRound, WlSequence,
        },
    },
};

use super::{
    harness::{Random, Rig, assert_the_same_each_time, rig, rigs},
    sample::{
        ACCEPT, DRAFT, PLAIN, RESIDUAL, Twin, all_zeros, any_sampling, assert_same, draw, fits, mass,
        random_bits, read, sequence, table,
    },
};

/// A token, a position and a sequence for every row.
#[derive(Clone, Debug, PartialEq)]
struct Table(Vec<[i32; 3]>);

impl Table {
    fn dead(rows: usize) -> Table {
        Table(vec![[0, -1, 0]; rows])
    }

    fn column(&self, column: usize) -> Vec<i32> {
        self.0.iter().map(|row| row[column]).collect()
    }
}

/// Sizes of a round, and everything that is in memory.
#[derive(Clone)]
struct Round {
    vocab: usize,
    steps: usize,
    draft_rows: usize,
    verify_rows: usize,
    plans: Vec<WlPlan>,
    states: Vec<WlSequence>,
    rounds: Vec<WlRound>,
    seen: Vec<u32>,
    draft: Table,
    verify: Table,
    /// Keys by draft row, and by the plans' groups.
    lengths: [Vec<i32>; 2],
    draft_choices: Vec<WlChoice>,
    verify_choices: Vec<WlChoice>,
    /// `[steps, draft_rows, vocab]`; NaN where nobody may read.
    draft_logits: Vec<f32>,
    /// `[verify_rows, vocab]`
    verify_logits: Vec<f32>,
    /// Whether refused drafts are replaced from the residual, as they must be.
    residual: bool,
}

impl Round {
    fn new(
        vocab: usize,
        states: Vec<WlSequence>,
        steps: usize,
        draft_rows: usize,
        verify_rows: usize,
    ) -> Round {
        let slots = states.len();
        Round {
            vocab,
            steps,
            draft_rows,
            verify_rows,
            plans: vec![WlPlan { verify_row: -1, ..WlPlan::default() }; slots],
            states,
            rounds: vec![WlRound::default(); slots],
            seen: vec![0; slots * vocab.div_ceil(32)],
            draft: Table::dead(steps * draft_rows),
            verify: Table::dead(verify_rows),
            lengths: [vec![], vec![]],
            draft_choices: vec![WlChoice::default(); slots * MAX_DRAFT],
            verify_choices: vec![WlChoice::default(); verify_rows],
            draft_logits: vec![f32::NAN; steps * draft_rows * vocab],
            verify_logits: vec![f32::NAN; verify_rows * vocab],
            residual: true,
        }
    }

    /// Plans for all sequences, one after the other.
    fn plan(&mut self, asked: usize, threshold: f32) {
        let mut verify_row = 0;
        for (slot, plan) in self.plans.iter_mut().enumerate() {
            *plan = WlPlan {
                verify_row,
                draft_row: slot as i32,
                asked: asked as i32,
                exit_layer: 3,
                threshold,
                verify_group: slot as i32,
            };
            verify_row += asked as i32 + 1;
        }
    }

    fn seen(&self, slot: usize) -> &[u32] {
        let words = self.vocab.div_ceil(32);
        &self.seen[slot * words..][..words]
    }

    fn twin(&self, slot: usize, logits: &[f32], before: usize) -> Option<Twin> {
        Twin::new(logits, &self.states[slot], self.seen(slot), before)
    }

    fn begin(&mut self) {
        self.draft = Table::dead(self.steps * self.draft_rows);
        self.verify = Table::dead(self.verify_rows);
        self.lengths = [vec![0; self.draft_rows], vec![0; self.states.len()]];
        for (slot, (plan, state)) in self.plans.iter().zip(&mut self.states).enumerate() {
            state.verify_row = -1;
            let asked = plan.asked.clamp(0, MAX_DRAFT.min(self.steps - 1) as i32);
            let outside = plan.verify_row < 0
                || plan.verify_row.saturating_add(asked + 1) > self.verify_rows as i32
                || asked > 0 && !(0..self.draft_rows as i32).contains(&plan.draft_row)
                || plan.verify_group as usize >= self.plans.len();
            if outside || state.stop != WL_RUNNING || state.remaining < 1 {
                continue;
            }
            state.verify_row = plan.verify_row;
            state.draft_row = plan.draft_row;
            state.asked = plan.asked;
            state.exit_layer = plan.exit_layer;
            state.threshold = plan.threshold;
            state.limit = asked.min(state.remaining - 1);
            state.drafted = 0;
            state.rows = 1;
            state.closed = u32::from(state.limit == 0);
            let row = [state.token, state.length, slot as i32];
            let keys = state.length + state.limit + 1;
            if asked > 0 {
                self.draft.0[plan.draft_row as usize] = row;
                self.lengths[0][plan.draft_row as usize] = keys;
            }
            self.lengths[1][plan.verify_group as usize] = keys;
            self.verify.0[plan.verify_row as usize] = row;
        }
    }

    /// Draft step `step`, with logits from `logits(slot, step)`.
    fn draft(&mut self, step: usize, mut logits: impl FnMut(usize, usize) -> Vec<f32>) {
        for slot in 0..self.states.len() {
            let state = self.states[slot];
            if state.verify_row < 0 || state.closed == 1 || step as i32 >= state.limit {
                continue;
            }
            let row = step * self.draft_rows + state.draft_row as usize;
            let logits = logits(slot, step);
            self.draft_logits[row * self.vocab..][..self.vocab].copy_from_slice(&logits);
            let twin = self.twin(slot, &logits, step);
            let state = &mut self.states[slot];
            let choice = &mut self.draft_choices[slot * MAX_DRAFT + step];
            let Some(mut twin) = twin else {
                *choice = WlChoice { id: -1, ..WlChoice::default() };
                (state.closed, state.stop) = (1, WL_STOP_NOT_FINITE);
                state.failed_position = state.length + step as i32;
                continue;
            };
            let sure = if state.temperature > 0.0 {
                twin.draw(random_bits(state, state.length + step as i32, DRAFT));
                twin.choice.inverse
            } else if state.threshold > 0.0 {
                twin.choice.probability = twin.confidence(&logits);
                twin.choice.probability
            } else {
                0.0
            };
            *choice = twin.choice;
            let draft = twin.choice.id;
            state.drafts[step] = draft;
            state.confidence[step] = if state.threshold > 0.0 { sure } else { 0.0 };
            state.drafted += 1;
            if state.eos[..state.eos_count as usize].contains(&draft) || sure < state.threshold {
                state.closed = 1;
                continue;
            }
            state.rows += 1;
            let next = [draft, state.length + step as i32 + 1, slot as i32];
            self.draft.0[row + self.draft_rows] = next;
            self.verify.0[state.verify_row as usize + step + 1] = next;
        }
    }

    /// The verification, with logits from `logits(slot, row)`.
    fn verify(&mut self, mut logits: impl FnMut(&Round, usize, usize) -> Vec<f32>) {
        for slot in 0..self.states.len() {
            let state = self.states[slot];
            if state.verify_row < 0 || state.stop != WL_RUNNING {
                continue;
            }
            for i in 0..state.rows as usize {
                let row = state.verify_row as usize + i;
                let logits = logits(self, slot, i);
                self.verify_logits[row * self.vocab..][..self.vocab].copy_from_slice(&logits);
                self.verify_choices[row] = match self.twin(slot, &logits, i) {
                    None => WlChoice { id: -1, ..WlChoice::default() },
                    Some(mut twin) => {
                        if state.temperature > 0.0 && i as i32 == state.drafted {
                            twin.draw(random_bits(&state, state.length + i as i32, PLAIN));
                        }
                        twin.choice
                    }
                };
            }
        }
    }

    /// Draft by draft, as `accept_drafts` of the CPU's rounds.
    fn accept(&mut self) {
        for slot in 0..self.states.len() {
            let mut state = self.states[slot];
            if state.verify_row < 0 {
                continue;
            }
            let drafted = state.drafted as usize;
            let mut emitted: Vec<i32> = vec![];
            let mut accepted = 0;
            for i in 0..state.rows as usize {
                let position = state.length + i as i32;
                if state.stop != WL_RUNNING {
                    break;
                }
                let choice = self.verify_choices[state.verify_row as usize + i];
                if choice.id < 0 {
                    (state.stop, state.failed_position) = (WL_STOP_NOT_FINITE, position);
                    break;
                }
                let draft = state.drafts[..drafted].get(i).copied();
                let (id, kept) = match draft {
                    Some(draft) if state.temperature > 0.0 => self.judge(slot, i, draft as usize),
                    _ => (choice.id, draft == Some(choice.id)),
                };
                accepted += usize::from(kept);
                emitted.push(id);
                if state.eos[..state.eos_count as usize].contains(&id) {
                    state.stop = WL_STOP_EOS;
                } else if emitted.len() as i32 == state.remaining {
                    state.stop = WL_STOP_LENGTH;
                }
                if !kept {
                    break;
                }
            }
            let words = self.vocab.div_ceil(32);
            emitted.iter().for_each(|id| self.seen[slot * words + *id as usize / 32] |= 1 << (id % 32));
            state.remaining -= emitted.len() as i32;
            state.length += emitted.len() as i32;
            state.token = emitted.last().copied().unwrap_or(state.token);
            state.rounds += 1;
            state.verify_row = -1;
            let round = &mut self.rounds[slot];
            round.ids[..emitted.len()].copy_from_slice(&emitted);
            *round = WlRound {
                rounds: state.rounds,
                stop: state.stop,
                length: state.length,
                failed_position: state.failed_position,
                exit_layer: state.exit_layer,
                asked: state.asked,
                drafted: state.drafted,
                accepted: accepted as i32,
                matched: state.confidence[..accepted].iter().fold(0.0, |sum, c| sum + c),
                mismatched: if accepted < drafted { state.confidence[accepted] } else { 0.0 },
                emitted: emitted.len() as i32,
                ids: round.ids,
            };
            self.states[slot] = state;
        }
    }

    /// A sampled draft, or what replaces it.
    fn judge(&self, slot: usize, i: usize, draft: usize) -> (i32, bool) {
        let state = &self.states[slot];
        let row = |logits: &[f32], row: usize| logits[row * self.vocab..][..self.vocab].to_vec();
        let p_logits = row(&self.verify_logits, state.verify_row as usize + i);
        let q_logits = row(&self.draft_logits, i * self.draft_rows + state.draft_row as usize);
        let p = self.twin(slot, &p_logits, i).expect("finite").probabilities();
        let q = self.twin(slot, &q_logits, i).expect("finite").probabilities();
        let position = state.length + i as i32;
        let u = (random_bits(state, position, ACCEPT) >> 11) as f64 / (1u64 << 53) as f64;
        if u * f64::from(q[draft]) < f64::from(p[draft]) {
            return (draft as i32, true);
        }
        let subtract = if self.residual { 1.0 } else { 0.0 };
        let masses: Vec<u64> = p.iter().zip(&q).map(|(p, q)| mass((p - subtract * q).max(0.0))).collect();
        let masses =
            if masses.iter().all(|m| *m == 0) { p.iter().map(|p| mass(*p)).collect() } else { masses };
        (draw(&masses, random_bits(state, position, RESIDUAL)) as i32, false)
    }

    /// The round on a device: from this memory before it, with the logits of `after`, to that memory after it.
    fn run(&self, rig: &Rig, after: &Round, name: &str) {
        let device = Device::new(rig, self, after);
        let mut device = device.begun();
        let got = device.lengths.each_ref().map(|lengths| read::<i32>(rig, lengths));
        assert_eq!(got, after.lengths, "{name}: keys by draft row, and by group");
        let got_verify = device.verify_rows();
        for slot in 0..self.states.len() {
            let (plan, state) = (&self.plans[slot], &after.states[slot]);
            let row = plan.verify_row.max(0) as usize;
            if state.rounds > self.states[slot].rounds {
                assert_eq!(got_verify.0[row], after.verify.0[row], "{name}: first row of slot {slot}");
            }
        }
        (0..self.steps.saturating_sub(1)).for_each(|step| device.draft(step, 0..self.draft_rows));
        assert_eq!(device.draft_rows(), after.draft, "{name}: rows of the draft");
        assert_eq!(device.verify_rows(), after.verify, "{name}: rows of the verification");
        device.verify();
        device.accept(0..self.verify_rows, Some(self.steps - 1));
        device.check(after, name);
    }
}

/// The memory of a round on a device.
struct Device<'r> {
    rig: &'r Rig,
    sizes: Round,
    tables: [Buffer; 6],
    lengths: [Buffer; 2],
    plans: Buffer,
    states: Buffer,
    rounds: Buffer,
    seen: Buffer,
    draft_choices: Buffer,
    verify_choices: Buffer,
    draft_logits: Buffer,
    verify_logits: Buffer,
    scratch: Buffer,
}

impl<'r> Device<'r> {
    fn new(rig: &'r Rig, before: &Round, after: &Round) -> Device<'r> {
        let rows = before.draft_rows.max(before.verify_rows);
        let column = |table: &Table, i| rig.upload(&table.column(i));
        // Rows of an earlier round, alive: begin must clear them.
        let stale = |rows: usize| Table(vec![[1, 5, 0]; rows]);
        let (draft, verify) = (stale(before.steps * before.draft_rows), stale(before.verify_rows));
        Device {
            rig,
            sizes: before.clone(),
            tables: [
                column(&draft, 0),
                column(&draft, 1),
                column(&draft, 2),
                column(&verify, 0),
                column(&verify, 1),
                column(&verify, 2),
            ],
            lengths: [before.draft_rows, before.states.len()].map(|count| rig.poisoned(count, Dtype::F32)),
            plans: rig.upload(&before.plans),
            states: rig.upload(&before.states),
            rounds: rig.upload(&before.rounds),
            seen: rig.upload(&before.seen),
            draft_choices: rig.upload(&before.draft_choices),
            verify_choices: rig.upload(&before.verify_choices),
            draft_logits: rig.upload(&after.draft_logits),
            verify_logits: rig.upload(&after.verify_logits),
            scratch: rig.upload(&vec![0u8; Sample::scratch_bytes(rows, before.vocab)]),
        }
    }

    fn begun(mut self) -> Self {
        let Round { steps, draft_rows, verify_rows, .. } = self.sizes;
        let [a, b, c, d, e, f] = &mut self.tables;
        let args = BeginArgs {
            slots: self.sizes.states.len(),
            plans: self.plans.view(),
            states: self.states.view_mut(),
            round: RoundRows {
                steps,
                draft_rows,
                draft: table(a, b, c),
                verify_rows,
                verify: table(d, e, f),
            },
            draft_lengths: Some(self.lengths[0].view_to_share()),
            verify_lengths: Some(self.lengths[1].view_to_share()),
        };
        self.rig.reports(|| self.rig.kernels.accept.begin(&self.rig.stream, &args));
        self
    }

    fn sample(&mut self, pass: SamplePass, rows: std::ops::Range<usize>, logits_row: usize) {
        let Round { vocab, steps, draft_rows, verify_rows, .. } = self.sizes;
        let (logits, choices) = match pass {
            SamplePass::Draft { .. } => (&self.draft_logits, &mut self.draft_choices),
            SamplePass::Verify => (&self.verify_logits, &mut self.verify_choices),
        };
        let from = logits_row * vocab * 4;
        let [a, b, c, d, e, f] = &mut self.tables;
        let args = SampleArgs {
            pass,
            rows,
            vocab,
            logits: Rows { view: logits.view().slice(from..logits.bytes()), stride: vocab },
            round: RoundRows {
                steps,
                draft_rows,
                draft: table(a, b, c),
                verify_rows,
                verify: table(d, e, f),
            },
            slots: self.sizes.states.len(),
            states: self.states.view_mut(),
            seen: Some(Rows { view: self.seen.view(), stride: vocab.div_ceil(32) }),
            choices: choices.view_mut(),
            probabilities: None,
            hashes: None,
            scratch: self.scratch.view_mut(),
        };
        self.rig.reports(|| self.rig.kernels.sample.launch(&self.rig.stream, &args));
    }

    fn draft(&mut self, step: usize, rows: std::ops::Range<usize>) {
        let row = step * self.sizes.draft_rows + rows.start;
        self.sample(SamplePass::Draft { step }, rows, row);
    }

    fn verify(&mut self) {
        self.sample(SamplePass::Verify, 0..self.sizes.verify_rows, 0);
    }

    /// Ends the round for the sequences whose rows lie in `rows`, with the logits of this many draft steps.
    fn accept(&mut self, rows: std::ops::Range<usize>, steps: Option<usize>) -> Option<ptxsim::Counters> {
        let Round { vocab, draft_rows, .. } = self.sizes;
        let choices = self.verify_choices.view();
        let logits = self.verify_logits.view();
        let args = AcceptArgs {
            slots: self.sizes.states.len(),
            vocab,
            states: self.states.view_mut(),
            rounds: self.rounds.view_mut(),
            seen: Some(RowsMut { view: self.seen.view_mut(), stride: vocab.div_ceil(32) }),
            draft_choices: self.draft_choices.view(),
            verify_first: rows.start,
            verify_rows: rows.len(),
            verify_choices: choices.slice(32 * rows.start..choices.bytes()),
            logits: steps.map(|steps| AcceptLogits {
                steps,
                draft_rows,
                draft: Rows { view: self.draft_logits.view(), stride: vocab },
                draft_step_stride: draft_rows * vocab,
                verify: Rows { view: logits.slice(4 * vocab * rows.start..logits.bytes()), stride: vocab },
            }),
        };
        let mut reports = self.rig.reports(|| self.rig.kernels.accept.launch(&self.rig.stream, &args));
        reports.pop().map(|r| r.counters)
    }

    /// The rounds of the sequences in `done` are those of `after`, the others' those of `before`.
    fn check_rounds(&self, before: &Round, after: &Round, done: &[usize]) {
        let want: Vec<WlRound> = (0..before.rounds.len())
            .map(|slot| if done.contains(&slot) { after.rounds[slot] } else { before.rounds[slot] })
            .collect();
        assert_same(&read::<WlRound>(self.rig, &self.rounds), &want, "rows in pieces");
    }

    fn table(&self, first: usize) -> Table {
        let columns: Vec<Vec<i32>> =
            self.tables[first..first + 3].iter().map(|b| read(self.rig, b)).collect();
        Table((0..columns[0].len()).map(|i| [columns[0][i], columns[1][i], columns[2][i]]).collect())
    }

    fn draft_rows(&self) -> Table {
        self.table(0)
    }

    fn verify_rows(&self) -> Table {
        self.table(3)
    }

    fn check(&self, after: &Round, name: &str) {
        let rig = self.rig;
        assert_same(
            &read::<WlChoice>(rig, &self.draft_choices),
            &after.draft_choices,
            &format!("{name}: drafts"),
        );
        assert_same(
            &read::<WlChoice>(rig, &self.verify_choices),
            &after.verify_choices,
            &format!("{name}: verification"),
        );
        assert_same(&read::<WlRound>(rig, &self.rounds), &after.rounds, &format!("{name}: rounds"));
        assert_same(&read::<WlSequence>(rig, &self.states), &after.states, &format!("{name}: states"));
        assert_eq!(read::<u32>(rig, &self.seen), after.seen, "{name}: seen");
    }
}

/// Plays a round on the host: its logits are random, those of the verification near those of the draft.
fn play(before: &Round, random: &mut Random, noise: f64, not_finite: bool) -> Round {
    let mut after = before.clone();
    after.draft_logits.fill(f32::NAN);
    after.verify_logits.fill(f32::NAN);
    after.begin();
    let vocab = after.vocab;
    let bad = |random: &mut Random, mut x: Vec<f32>| {
        if not_finite && random.range(0, 9) == 0 {
            x[random.range(0, vocab - 1)] = random.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        }
        x
    };
    for step in 0..after.steps - 1 {
        after.draft(step, |_, _| {
            let x = (0..vocab).map(|_| random.normal() as f32 * 2.0).collect();
            bad(random, x)
        });
    }
    after.verify(|round, slot, i| {
        let state = &round.states[slot];
        let x = (0..vocab).map(|_| random.normal()).collect::<Vec<_>>();
        if i as i32 >= state.drafted {
            return bad(random, x.iter().map(|x| *x as f32 * 2.0).collect());
        }
        let row = i * round.draft_rows + state.draft_row as usize;
        let near = round.draft_logits[row * vocab..][..vocab].iter().zip(&x);
        bad(random, near.map(|(q, x)| q + (x * noise) as f32).collect())
    });
    after.accept();
    after
}

/// Sequences, plans and sizes of all kinds.
fn random_round(random: &mut Random, vocab: usize, slots: usize) -> Round {
    let steps = random.pick(&[1, 2, 4, 7, MAX_DRAFT + 1]);
    let mut states = vec![];
    for id in 0..slots {
        let mut sampling = any_sampling(random);
        if random.range(0, 1) == 0 {
            sampling.temperature = random.pick(&[0.0, 1.0]);
        }
        let mut state = sequence(sampling, id as u64 + 77);
        state.length = random.range(0, 5000) as i32;
        state.token = random.range(0, vocab - 1) as i32;
        state.remaining = random.pick(&[1, 2, 3, 5, 100, 100, 100]);
        state.eos_count = random.range(0, 3) as i32;
        state.eos.iter_mut().for_each(|id| *id = random.range(0, vocab - 1) as i32);
        states.push(state);
    }
    let draft_rows = slots + random.range(0, 3);
    Round::new(vocab, states, steps, draft_rows, slots * steps + 8)
}

fn random_plans(random: &mut Random, round: &mut Round) {
    let mut free: Vec<i32> = (0..round.draft_rows as i32).collect();
    let mut groups: Vec<i32> = (0..round.plans.len() as i32).collect();
    let mut verify_row = 0;
    for plan in &mut round.plans {
        let asked = random.range(0, round.steps - 1) as i32;
        let out = random.range(0, 9) == 0;
        verify_row += random.range(0, 1) as i32 * i32::from(verify_row < 8);
        *plan = WlPlan {
            verify_row: if out { -1 } else { verify_row },
            draft_row: free.swap_remove(random.range(0, free.len() - 1)),
            asked,
            exit_layer: random.range(1, 30) as i32,
            threshold: random.pick(&[0.0, 0.0, 0.2, 0.5]),
            verify_group: groups.swap_remove(random.range(0, groups.len() - 1)),
        };
        verify_row += asked + 1;
    }
}

#[test]
fn sample_and_accept_play_the_rounds_of_the_host() {
    let mut random = Random::new("accept rounds");
    let rigs = rigs();
    let mut seen = [0; 5];
    for case in 0..24 {
        let vocab = random.pick(&[1, 2, 8, 20, 40, 44, 100]);
        let slots = random.range(1, 6);
        let mut round = random_round(&mut random, vocab, slots);
        let noise = random.pick(&[0.0, 0.3, 1.0, 3.0]);
        for turn in 0..3 {
            random_plans(&mut random, &mut round);
            let after = play(&round, &mut random, noise, case % 4 == 3);
            let rig = random.one_of(&rigs);
            round.run(rig, &after, &format!("{}, case {case}.{turn}", rig.name));
            after.states.iter().for_each(|s| seen[s.stop as usize] += 1);
            round = after;
        }
    }
    for stop in [WL_RUNNING, WL_STOP_EOS, WL_STOP_LENGTH, WL_STOP_NOT_FINITE] {
        assert!(seen[stop as usize] > 0, "the cases are poor: {seen:?}");
    }
}

#[test]
fn a_larger_vocabulary() {
    let mut random = Random::new("accept large");
    for rig in rigs() {
        let mut round = random_round(&mut random, 9000, 2);
        round.steps = round.steps.min(4);
        round.draft = Table::dead(round.steps * round.draft_rows);
        round.draft_logits.truncate(round.steps * round.draft_rows * 9000);
        for state in &mut round.states {
            state.remaining = 100;
        }
        round.states[0].temperature = 1.0;
        random_plans(&mut random, &mut round);
        let after = play(&round, &mut random, 2.0, false);
        round.run(&rig, &after, &rig.name);
    }
}

/// A round of one sequence: what becomes of drafts that are all accepted, cut short by an id that ends the sequence, by
/// the threshold, or by the limit.
#[test]
fn sample_and_accept_by_hand() {
    let rig = rig();
    let vocab = 8;
    // A logit row that says `id` with a probability of nearly 1, or of about 0.46.
    let says = |id: usize, sure: bool| {
        let mut row = vec![0.0; vocab];
        row[id] = if sure { 20.0 } else { 1.8 };
        row
    };
    let state = WlSequence { eos_count: 1, ..sequence(Sampling::default(), 9) };
    let state = WlSequence { eos: [7; 16], length: 10, token: 1, ..state };
    let play = |state: WlSequence, threshold, drafts: &[Vec<f32>], verify: &[usize]| {
        let mut before = Round::new(vocab, vec![state], 4, 1, 4);
        before.plan(3, threshold);
        let mut after = before.clone();
        after.begin();
        (0..3).for_each(|step| after.draft(step, |_, step| drafts[step].clone()));
        after.verify(|_, _, i| says(verify[i], true));
        after.accept();
        before.run(&rig, &after, "by hand");
        (after.rounds[0], after.states[0])
    };
    let sure = |ids: [usize; 3]| ids.map(|id| says(id, true));
    let (round, after) = play(state, 0.0, &sure([2, 3, 4]), &[2, 3, 4, 5]);
    assert_eq!((&round.ids[..4], round.accepted, round.emitted), (&[2, 3, 4, 5][..], 3, 4));
    assert_eq!((after.length, after.token, after.stop, round.drafted), (14, 5, WL_RUNNING, 3));
    let (round, after) = play(state, 0.0, &sure([2, 3, 4]), &[2, 6, 4, 5]);
    assert_eq!((&round.ids[..2], round.accepted, round.emitted), (&[2, 6][..], 1, 2));
    assert_eq!((after.length, after.token), (12, 6));
    // The draft ends with 7, which needs no row: no token follows it.
    let (round, after) = play(state, 0.0, &sure([2, 7, 4]), &[2, 7, 4, 5]);
    assert_eq!((&round.ids[..2], round.drafted, round.emitted), (&[2, 7][..], 2, 2));
    assert_eq!((after.rows, after.stop), (2, WL_STOP_EOS));
    // So does one that is unsure of itself; the sequence goes on.
    let unsure = [says(2, true), says(3, false), says(4, true)];
    let (round, after) = play(state, 0.6, &unsure, &[2, 3, 4, 5]);
    assert_eq!((&round.ids[..2], round.drafted, round.accepted), (&[2, 3][..], 2, 2));
    assert_eq!((after.rows, after.stop, after.length), (2, WL_RUNNING, 12));
    assert!((round.matched - 1.463).abs() < 0.01 && round.mismatched == 0.0, "{round:?}");
    let (round, _) = play(state, 0.6, &unsure, &[2, 5, 4, 5]);
    assert!((round.matched - 1.0).abs() < 0.01 && (round.mismatched - 0.463).abs() < 0.01, "{round:?}");
    let (round, after) = play(WlSequence { remaining: 2, ..state }, 0.0, &sure([2, 3, 4]), &[2, 3, 4, 5]);
    assert_eq!((&round.ids[..2], round.drafted, round.emitted), (&[2, 3][..], 1, 2));
    assert_eq!((after.stop, after.remaining), (WL_STOP_LENGTH, 0));
    // No room for a draft: the row takes the same way, and the round is a plain step.
    let (round, after) = play(WlSequence { remaining: 1, ..state }, 0.0, &sure([2, 3, 4]), &[2, 3, 4, 5]);
    assert_eq!((round.ids[0], round.drafted, round.emitted, after.stop), (2, 0, 1, WL_STOP_LENGTH));
    let (round, _) = play(WlSequence { stop: WL_STOP_EOS, ..state }, 0.0, &sure([2, 3, 4]), &[2, 3, 4, 5]);
    assert_eq!(round.rounds, 0, "an ended sequence has no round");
}

/// A row's penalty takes in the drafts before it, in p, in q and in the residual: q is fond of one token, p less so,
/// and without their penalties p / q would be 0.2 in place of 0.8.
#[test]
fn sample_and_accept_penalise_drafts() {
    let sampling = Sampling { temperature: 1.0, repetition_penalty: 3.0, ..Sampling::default() };
    for (favourite, rig) in [0, 3, 5, 6].into_iter().zip(rigs().iter().cycle()) {
        let states = (0..30).map(|id| sequence(sampling, id)).collect();
        let mut round = Round::new(7, states, 4, 30, 120);
        round.plan(3, 0.0);
        let row = |logit: f32| (0..7).map(|id| if id == favourite { logit } else { 0.0 }).collect::<Vec<_>>();
        let mut after = round.clone();
        after.begin();
        (0..3).for_each(|step| after.draft(step, |_, _| row(6.0)));
        after.verify(|_, _, _| row(4.0));
        after.accept();
        round.run(rig, &after, &rig.name);
    }
}

/// A draft or the row behind the drafts is not finite: what was kept stays and counts once, and the position is told.
#[test]
fn rows_that_are_not_finite() {
    let rig = rig();
    for (temperature, bad_draft) in [(0.0, false), (1.0, false), (0.0, true), (1.0, true)] {
        let sampling = Sampling { temperature, ..Sampling::default() };
        let mut round = Round::new(4, vec![sequence(sampling, 1)], 3, 1, 3);
        round.plan(2, 0.0);
        let row = |bad: bool| vec![if bad { f32::NAN } else { 0.0 }, 90.0, 0.0, 0.0];
        let mut after = round.clone();
        after.begin();
        (0..2).for_each(|step| after.draft(step, |_, _| row(bad_draft && step == 1)));
        after.verify(|_, _, i| row(i == 2));
        after.accept();
        let (end, position) = (&after.rounds[0], after.states[0].failed_position - round.states[0].length);
        assert_eq!(end.stop, WL_STOP_NOT_FINITE);
        assert_eq!((end.accepted, position), if bad_draft { (0, 1) } else { (2, 2) });
        round.run(&rig, &after, &format!("temperature {temperature}, draft {bad_draft}"));
    }
}

/// What a round emits first is distributed as p, and accepted as often as min(p, q) says, whatever the draft. Without
/// the residual it is not.
#[test]
fn drafts_do_not_show_in_the_distribution() {
    let vocab = 6;
    let sampling = Sampling { temperature: 0.9, top_p: 0.97, min_p: 0.01, ..Sampling::default() };
    let slots = 150;
    let q = [vec![1.5, -0.5, 0.0, 0.7, -1.0, 0.2], vec![-1.0, 0.3, 1.2, 0.0, 0.9, -2.0]];
    let p = [vec![-0.5, 1.5, 0.6, 0.0, 0.2, -9.0], vec![0.8, 0.4, -1.0, 1.4, 0.0, 0.3]];
    let bonus = vec![0.0, 1.0, -1.0, 0.5, 0.3, -0.2];
    let round = |seed: u64, residual: bool| {
        let states = (0..slots).map(|id| sequence(Sampling { seed, ..sampling }, id as u64)).collect();
        let mut before = Round { residual, ..Round::new(vocab, states, 3, slots, 3 * slots) };
        before.plan(2, 0.0);
        let mut after = before.clone();
        after.begin();
        (0..2).for_each(|step| after.draft(step, |_, step| q[step].clone()));
        after.verify(|_, _, i| if i < 2 { p[i].clone() } else { bonus.clone() });
        after.accept();
        (before, after)
    };
    let (before, after) = round(1, true);
    before.run(&rig(), &after, "150 sequences");

    let known = |row: &Vec<f32>| -> Vec<f64> {
        let twin = Twin::new(row, &before.states[0], &[0], 0).unwrap();
        twin.probabilities().iter().map(|p| f64::from(*p)).collect()
    };
    let (p, q) = ([known(&p[0]), known(&p[1])], [known(&q[0]), known(&q[1])]);
    for residual in [true, false] {
        let mut counts = [vec![0; vocab], vec![0; vocab], vec![0; vocab]];
        // Accepted or not, and the first token.
        let mut joint = vec![0; 2 * vocab];
        for seed in 0..100 {
            for result in &round(seed, residual).1.rounds {
                joint[vocab * result.accepted.min(1) as usize + result.ids[0] as usize] += 1;
                (0..result.emitted as usize).for_each(|i| counts[i][result.ids[i] as usize] += 1);
            }
        }
        let least: Vec<f64> = (0..vocab).map(|x| p[0][x].min(q[0][x])).collect();
        let expected: Vec<f64> =
            (0..2 * vocab).map(|i| if i < vocab { p[0][i] - least[i] } else { least[i - vocab] }).collect();
        assert_eq!(fits(&joint, &expected), residual, "{joint:?} of {expected:?}");
        assert_eq!(fits(&counts[0], &p[0]), residual, "{counts:?} of {p:?}");
        assert_eq!(fits(&counts[1], &p[1]), residual, "{counts:?} of {p:?}");
        assert!(fits(&counts[2], &known(&bonus)), "{counts:?}");
    }
}

/// The same bits each time, in any slot, rows and company, and when the rows of the verification come in pieces.
#[test]
fn a_sequence_depends_on_itself_alone() {
    let mut random = Random::new("accept company");
    let rig = rig();
    let vocab = 32;
    let mut round = random_round(&mut random, vocab, 3);
    round = Round::new(vocab, round.states, 4, 3, 12);
    for state in &mut round.states {
        (state.temperature, state.remaining, state.eos_count) = (0.8, 50, 0);
    }
    round.plan(3, 0.0);
    let after = play(&round, &mut random, 1.5, false);
    for _ in 0..100 / 4 {
        round.run(&rig, &after, "again");
    }
    // In pieces: rows of the draft one by one, sequences one by one.
    let mut device = Device::new(&rig, &round, &after).begun();
    for step in 0..3 {
        [2, 0, 1].into_iter().for_each(|row| device.draft(step, row..row + 1));
    }
    device.verify();
    let mut done = vec![];
    for slot in [1, 2, 0] {
        for rows in [4 * slot + 1..4 * slot + 4, 4 * slot..4 * slot + 3] {
            device.accept(rows, Some(3));
        }
        device.check_rounds(&round, &after, &done);
        for _ in 0..2 {
            device.accept(4 * slot..4 * slot + 4, Some(3));
        }
        done.push(slot);
        device.check_rounds(&round, &after, &done);
    }
    device.check(&after, "in pieces");
    // Alone, in another slot and other rows.
    for slot in 0..3 {
        let mut alone = Round::new(vocab, vec![round.states[slot]; 2], 4, 5, 9);
        alone.states[0].stop = WL_STOP_EOS;
        alone.seen = [vec![0], round.seen(slot).to_vec()].concat();
        alone.plans[1] = WlPlan { verify_row: 5, draft_row: 4, verify_group: 1, ..round.plans[slot] };
        let mut end = alone.clone();
        end.begin();
        for step in 0..3 {
            let row = (step * 3 + slot) * vocab;
            end.draft(step, |_, _| after.draft_logits[row..][..vocab].to_vec());
        }
        end.verify(|_, _, i| after.verify_logits[(4 * slot + i) * vocab..][..vocab].to_vec());
        end.accept();
        alone.run(&rig, &end, "alone");
        assert_same(&end.rounds[1..], &after.rounds[slot..=slot], "alone");
    }
}

/// Confidence is that of the logits as they are, without the penalty, and of tokens there are: all are under zero.
#[test]
fn sample_is_as_sure_as_the_logits() {
    let sampling = Sampling { repetition_penalty: 1.5, ..Sampling::default() };
    let mut round = Round::new(6, vec![sequence(sampling, 1)], 2, 1, 2);
    round.seen[0] = 1 << 2;
    round.plan(1, 0.2);
    let row = || vec![-5.0, -4.5, -4.0, -6.0, -5.5, -5.0];
    let mut after = round.clone();
    after.begin();
    after.draft(0, |_, _| row());
    after.verify(|_, _, _| row());
    after.accept();
    assert_eq!(after.rounds[0].ids[0], 1, "the penalty takes token 2 from the top");
    rigs().iter().for_each(|rig| round.run(rig, &after, &rig.name));
}

/// A draft step leaves a sequence alone, with all its rows, where any number of its round does not fit.
#[test]
fn sample_leaves_alone_what_does_not_fit() {
    let rig = rig();
    let spoil: [fn(&mut WlSequence); 11] = [
        |s| s.closed = 1,
        |s| s.limit = 0,
        |s| s.drafted = 1,
        |s| (s.length, s.drafted) = (11, -1),
        |s| (s.length, s.drafted, s.limit) = (9, 1, 9),
        |s| s.draft_row = -1,
        |s| s.draft_row = 11,
        |s| s.verify_row = -1,
        |s| s.verify_row = 22,
        |s| s.verify_row = i32::MAX,
        |s| s.stop = WL_STOP_EOS,
    ];
    let sampled = Sampling { temperature: 1.0, ..Sampling::default() };
    let states = spoil.iter().enumerate().map(|(slot, spoil)| {
        let (draft_row, verify_row) = (slot as i32, slot as i32 * 2);
        let mut state = WlSequence { draft_row, verify_row, closed: 0, limit: 1, ..sequence(sampled, 1) };
        state.length = 10;
        spoil(&mut state);
        state
    });
    let mut round = Round::new(5, states.collect(), 2, 11, 23);
    round.draft_logits.fill(0.0);
    round.draft =
        Table([(0..11).map(|slot| [1, 10, slot]).collect::<Vec<_>>(), vec![[0, -1, 0]; 11]].concat());
    let mut device = Device::new(&rig, &round, &round);
    (0..3).for_each(|i| device.tables[i] = rig.upload(&round.draft.column(i)));
    let verify = device.verify_rows();
    device.draft(0, 0..11);
    assert_eq!((device.draft_rows(), device.verify_rows()), (round.draft.clone(), verify));
    device.check(&round, "draft");

    // One that fits, but for the number of ids that end it: those there is room for are looked at.
    let state = WlSequence { eos_count: 1000, eos: [7; 16], ..sequence(sampled, 1) };
    let mut round = Round::new(5, vec![state], 2, 1, 2);
    round.draft_logits.fill(0.0);
    round.plan(1, 0.0);
    let mut device = Device::new(&rig, &round, &round).begun();
    device.draft(0, 0..1);
    let states: Vec<WlSequence> = read(&rig, &device.states);
    assert_eq!((states[0].drafted, states[0].rows), (1, 2));
}

#[test]
fn plans_that_do_not_fit_sit_out() {
    let rig = rig();
    let mut states: Vec<_> = (0..12).map(|id| sequence(Sampling::default(), id)).collect();
    states[9].remaining = 0;
    let mut round = Round::new(4, states, 3, 2, 11);
    round.plan(2, 0.0);
    for plan in &mut round.plans {
        (plan.verify_row, plan.draft_row) = (0, 1);
    }
    round.plans[1].verify_row = 9;
    round.plans[2].verify_row = i32::MAX;
    round.plans[3].draft_row = 2;
    round.plans[4].draft_row = -1;
    round.plans[5].verify_row = i32::MIN;
    round.plans[6] = WlPlan { verify_row: 6, draft_row: 0, asked: i32::MAX, ..round.plans[6] };
    // Plain steps, whose row of the draft nobody reads.
    round.plans[7] = WlPlan { verify_row: 3, draft_row: 99, asked: 0, ..round.plans[7] };
    round.plans[8] = WlPlan { verify_row: 10, draft_row: -99, asked: -3, ..round.plans[8] };
    round.plans[10].verify_group = 12;
    round.plans[11].verify_group = -1;
    let mut after = round.clone();
    after.begin();
    assert_eq!(after.states.iter().filter(|s| s.verify_row >= 0).count(), 4);
    let device = Device::new(&rig, &round, &after).begun();
    assert_eq!((device.draft_rows(), device.verify_rows()), (after.draft.clone(), after.verify.clone()));
    assert_eq!(read::<i32>(&rig, &device.lengths[1]), after.lengths[1]);
    device.check(&after, "begin");
}

#[test]
fn drafts_that_were_drawn_need_their_logits() {
    let rig = rig();
    let sampled = Sampling { temperature: 1.0, ..Sampling::default() };
    let states = vec![sequence(sampled, 1), sequence(Sampling::default(), 2)];
    let mut round = Round::new(8, states, 3, 2, 6);
    round.plan(2, 0.0);
    let after = play(&round, &mut Random::new("accept logits"), 0.0, false);
    for steps in [None, Some(1)] {
        let mut device = Device::new(&rig, &round, &after).begun();
        (0..2).for_each(|step| device.draft(step, 0..2));
        device.verify();
        device.accept(0..6, steps);
        let rounds: Vec<WlRound> = read(&rig, &device.rounds);
        assert_eq!((rounds[0].stop, rounds[0].emitted), (WL_STOP_NO_LOGITS, 0));
        assert_same(&rounds[1..], &after.rounds[1..], "a greedy sequence needs none");
    }
}

/// A number of zeros keeps no draft that the verifier gives no probability.
#[test]
fn an_impossible_draft_is_never_kept() {
    let (id, length) = all_zeros(ACCEPT);
    let sampling = Sampling { temperature: 1.0, min_p: 0.5, seed: 1, ..Sampling::default() };
    let mut round = Round::new(8, vec![WlSequence { length, ..sequence(sampling, id) }], 2, 1, 2);
    assert_eq!(random_bits(&round.states[0], length, ACCEPT), 0);
    round.plan(1, 0.0);
    let mut after = round.clone();
    let one = |id: usize| (0..8).map(|i| if i == id { 9.0 } else { 0.0 }).collect::<Vec<f32>>();
    after.begin();
    after.draft(0, |_, _| one(3));
    after.verify(|_, _, _| one(5));
    after.accept();
    assert_eq!((after.rounds[0].accepted, after.rounds[0].ids[0]), (0, 5));
    round.run(&rig(), &after, "impossible");
}

/// Where p and q differ by rounding alone, a refused draft leaves no residual: the token is drawn from p.
#[test]
fn without_a_residual_the_verifier_draws() {
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    let state = |seed| sequence(Sampling { seed, ..sampling }, 1);
    let twin = |logit: f32| Twin::new(&[0.0, logit], &state(0), &[0], 0).unwrap();
    // Two neighbouring logits for which the sum of the weights is rounded differently.
    let inverse = |bits: u32| twin(f32::from_bits(bits)).choice.inverse;
    let (mut high, mut low) = ((-15.5f32).to_bits(), (-16.0f32).to_bits());
    while low - high > 1 {
        let middle = high + (low - high) / 2;
        if inverse(middle) == inverse(low) { low = middle } else { high = middle }
    }
    let logit = f32::from_bits(low);
    let (p, q) = (twin(logit.next_up()).probability(0), twin(logit).probability(0));
    assert!(p < q);
    let refused = |state: &WlSequence| {
        let u = (random_bits(state, state.length, ACCEPT) >> 11) as f64 / (1u64 << 53) as f64;
        u * f64::from(q) >= f64::from(p)
    };
    let seed = (0..).find(|seed| refused(&state(*seed))).unwrap();
    let mut round = Round::new(2, vec![state(seed)], 2, 1, 2);
    round.plan(1, 0.0);
    let mut after = round.clone();
    after.begin();
    after.draft(0, |_, _| vec![0.0, logit]);
    after.verify(|_, _, _| vec![0.0, logit.next_up()]);
    after.accept();
    assert_eq!((after.rounds[0].accepted, after.rounds[0].ids[0]), (0, 0), "drawn, not kept");
    rigs().iter().for_each(|rig| round.run(rig, &after, &rig.name));
}

/// Whatever a state holds, nothing is read or written out of bounds.
#[test]
fn states_that_make_no_sense_do_no_harm() {
    let rig = rig();
    let sampled = Sampling { temperature: 1.0, repetition_penalty: 1.1, ..Sampling::default() };
    let good = WlSequence { rows: 2, drafted: 1, ..sequence(sampled, 1) };
    let mut states = vec![good; 11];
    states[0].rows = 0;
    states[1].rows = i32::MIN;
    (states[2].rows, states[2].drafted) = (i32::MAX, i32::MAX);
    states[3].drafted = -7;
    states[4].drafts[0] = i32::MAX;
    states[5].drafts[0] = -1;
    states[6].draft_row = -1;
    (states[7].eos_count, states[7].length) = (1000, i32::MAX - 20);
    states[8].draft_row = 1;
    states[9].verify_row = -1;
    states[10].verify_row = i32::MIN;
    let mut round = Round::new(5, states, 2, 1, 4);
    round.draft_logits.fill(0.0);
    round.verify_logits.fill(0.0);
    round.verify_choices.fill(WlChoice { id: i32::MAX, inverse: 0.2, ..WlChoice::default() });
    round.draft_choices.fill(WlChoice { inverse: 0.2, ..WlChoice::default() });
    let mut device = Device::new(&rig, &round, &round);
    device.accept(0..4, Some(1));
    let rounds: Vec<WlRound> = read(&rig, &device.rounds);
    assert_same(&rounds[..3], &[WlRound::default(); 3], "rounds without rows, or with too many");
    assert_same(&rounds[9..], &[WlRound::default(); 2], "sequences outside the round");
    assert!(rounds.iter().all(|r| (0..=17).contains(&r.emitted)), "{rounds:?}");
    assert_eq!([rounds[6].stop, rounds[8].stop], [WL_STOP_NO_LOGITS; 2], "rows that the draft has not");

    // More drafts than a round has, all of them kept.
    let many = WlSequence { rows: 20, drafted: 20, drafts: [3; 16], ..sequence(Sampling::default(), 1) };
    let mut round = Round::new(5, vec![many], 2, 1, 24);
    round.verify_choices.fill(WlChoice { id: 3, ..WlChoice::default() });
    let mut device = Device::new(&rig, &round, &round);
    device.accept(0..24, Some(1));
    let rounds: Vec<WlRound> = read(&rig, &device.rounds);
    assert_eq!((rounds[0].drafted, rounds[0].accepted, rounds[0].emitted), (16, 16, 17));
}

/// Choices that are no distribution, or not of a token, and temperatures that are none: a row fails, or what is drawn
/// is one of the tokens.
#[test]
fn choices_that_make_no_sense_do_no_harm() {
    let vocab = 128;
    type Spoil = fn(&mut WlSequence, &mut WlChoice, &mut WlChoice);
    // Of the sequence, of p and of q: what fails, what draws, what takes the verifier's choice.
    let fail: &[Spoil] = &[
        |_, p, _| p.inverse = 0.0,
        |_, p, _| p.inverse = f32::NAN,
        |_, p, _| p.inverse = -1.0,
        |_, p, _| p.cut = u64::MAX,
        |_, p, _| p.least = f32::NAN,
        |_, p, _| p.max = f32::NAN,
        |_, p, _| p.max = f32::INFINITY,
        |_, p, _| p.max = f32::NEG_INFINITY,
        |s, p, _| (s.temperature, p.inverse) = (f32::INFINITY, 0.0),
        |_, p, _| p.id = 128,
        |_, p, _| p.id = i32::MAX,
        |_, p, _| p.id = i32::MIN,
        |s, p, _| (s.temperature, s.drafts[0], p.id) = (0.0, 128, 128),
    ];
    // Masses whose sum would not fit, for sequences that draw other numbers.
    let large: Spoil = |_, p, _| p.inverse = 524_288.0;
    let draw: &[Spoil] = &[
        |_, _, q| q.inverse = f32::NAN,
        |_, _, q| q.inverse = f32::INFINITY,
        |_, _, q| q.max = f32::NAN,
        |_, p, _| p.inverse = f32::INFINITY,
        large,
        large,
        large,
        large,
        large,
        large,
        large,
        large,
    ];
    let greedy: &[Spoil] = &[|s, _, _| s.temperature = f32::NAN, |s, _, _| s.temperature = -1e-30];
    let spoil = [fail, draw, greedy].concat();
    let slots = spoil.len();
    let sampled = Sampling { temperature: 1.0, ..Sampling::default() };
    let states = (0..slots).map(|slot| WlSequence {
        rows: 2,
        drafted: 1,
        draft_row: slot as i32,
        verify_row: 2 * slot as i32,
        ..sequence(sampled, slot as u64)
    });
    let mut round = Round::new(vocab, states.collect(), 2, slots, 2 * slots);
    // The draft, token 0, has no probability in p: it is refused.
    round.draft_logits.fill(0.0);
    round.verify_logits.fill(0.0);
    round.verify_logits.iter_mut().step_by(vocab).for_each(|x| *x = -200.0);
    let choice = WlChoice { least: f32::MIN, inverse: 1.0 / 128.0, id: 3, ..WlChoice::default() };
    round.verify_choices.fill(choice);
    round.draft_choices.fill(choice);
    for (slot, spoil) in spoil.iter().enumerate() {
        let (p, q) = (&mut round.verify_choices[2 * slot], &mut round.draft_choices[slot * MAX_DRAFT]);
        spoil(&mut round.states[slot], p, q);
    }
    for rig in rigs() {
        let mut device = Device::new(&rig, &round, &round);
        device.accept(0..2 * slots, Some(1));
        for (slot, got) in read::<WlRound>(&rig, &device.rounds).iter().enumerate() {
            let what = format!("{}, slot {slot}: {got:?}", rig.name);
            if slot < fail.len() {
                let end = (got.stop, got.emitted, got.failed_position);
                assert_eq!(end, (WL_STOP_NOT_FINITE, 0, round.states[slot].length), "{what}");
            } else {
                let ids = if slot < fail.len() + draw.len() { 1..128 } else { 3..4 };
                assert!(got.emitted == 1 && ids.contains(&got.ids[0]), "{what}");
            }
        }
    }
}

/// 100 rounds of drafts, verification and acceptance, refusals among them.
#[test]
fn the_same_round_gives_the_same_bits() {
    let sampled = Sampling { temperature: 1.0, top_p: 0.9, ..Sampling::default() };
    let states = (0..3).map(|id| sequence(sampled, id)).collect();
    let mut round = Round::new(40, states, 4, 3, 12);
    round.plan(3, 0.0);
    let after = play(&round, &mut Random::new("accept repeats"), 2.0, false);
    assert_the_same_each_time(&rigs(), |rig| {
        let mut device = Device::new(rig, &round, &after).begun();
        (0..3).for_each(|step| device.draft(step, 0..3));
        device.verify();
        device.accept(0..12, Some(3));
        [&device.draft_choices, &device.verify_choices, &device.rounds, &device.states, &device.seen]
            .map(|buffer| rig.bytes(buffer))
    });
}

/// A refusal reads both rows once and a sixteenth; all else reads no more than the tokens in question.
#[test]
fn logits_are_read_for_refusals_alone() {
    let rig = rig();
    let vocab = 16384;
    for (refused, temperature) in [(false, 1.0), (true, 1.0), (true, 0.0)] {
        let sampling = Sampling { temperature, ..Sampling::default() };
        let mut round = Round::new(vocab, vec![sequence(sampling, 1)], 2, 1, 2);
        round.plan(1, 0.0);
        let mut after = round.clone();
        let row = |id: usize| (0..vocab).map(|i| if i == id { 30.0 } else { 0.0 }).collect::<Vec<f32>>();
        after.begin();
        after.draft(0, |_, _| row(1));
        after.verify(|_, _, _| row(if refused { 2 } else { 1 }));
        after.accept();
        let mut device = Device::new(&rig, &round, &after).begun();
        device.draft(0, 0..1);
        device.verify();
        let Some(counters) = device.accept(0..2, Some(1)) else { return };
        device.check(&after, "refusal");
        let drawn = refused && temperature > 0.0;
        let rows = if drawn { 2.0 * 4.0 * vocab as f64 * (1.0 + 1.0 / 16.0 + 1.0 / 256.0) } else { 0.0 };
        let bytes = (counters.global_load.sectors * 32) as f64;
        assert!(bytes >= rows && bytes <= rows * 1.05 + 32768.0, "{bytes} for {rows}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let rig = rig();
    let words = |count: usize| rig.poisoned(count, Dtype::F32);
    let (mut states, mut rounds, mut seen) = (words(3 * 74), words(3 * 28), words(6));
    let (draft_choices, verify_choices) = (words(3 * 16 * 8), words(6 * 8));
    let (draft_logits, verify_logits) = (words(2 * 3 * 40), words(6 * 40));
    let mut refused = |change: &dyn Fn(&mut AcceptArgs), wanted: &str| {
        let mut args = AcceptArgs {
            slots: 3,
            vocab: 40,
            states: states.view_mut(),
            rounds: rounds.view_mut(),
            seen: Some(RowsMut { view: seen.view_mut(), stride: 2 }),
            draft_choices: draft_choices.view(),
            verify_first: 0,
            verify_rows: 6,
            verify_choices: verify_choices.view(),
            logits: Some(AcceptLogits {
                steps: 2,
                draft_rows: 3,
                draft: Rows { view: draft_logits.view(), stride: 40 },
                draft_step_stride: 120,
                verify: Rows { view: verify_logits.view(), stride: 40 },
            }),
        };
        change(&mut args);
        let error = rig.kernels.accept.launch(&rig.stream, &args).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    };
    fn logits<'a, 'b>(args: &'a mut AcceptArgs<'b>) -> &'a mut AcceptLogits<'b> {
        args.logits.as_mut().unwrap()
    }
    refused(&|a| a.slots = 4, "states: 888 bytes do not hold 4 elements of 296 bytes");
    refused(&|a| a.slots = usize::MAX, "slots: ");
    refused(&|a| a.vocab = 0, "vocab: 0");
    refused(&|a| a.vocab = 65, "seen: rows 2 elements apart overlap; 3 at least");
    refused(&|a| a.vocab = 41, "draft_logits: rows 40 elements apart overlap; 41 at least");
    refused(&|a| a.verify_first = 70000, "verify_first: 70000");
    refused(&|a| a.verify_rows = 7, "verify_choices: 192 bytes do not hold 7 elements of 32 bytes");
    refused(&|a| logits(a).steps = 17, "draft_steps: 17; supported are 0 to 16");
    refused(&|a| logits(a).steps = 3, "draft_logits: 960 bytes do not hold 360 elements");
    refused(
        &|a| logits(a).draft_rows = 4,
        "draft_step_stride: rows 120 elements apart overlap; 160 at least",
    );
    refused(&|a| logits(a).draft_step_stride = usize::MAX / 2, "draft_step_stride: 2 rows of stride");
    refused(&|a| logits(a).verify.stride = 39, "verify_logits: rows 39 elements apart overlap; 40 at least");

    let (plans, mut rows) = (words(3 * 6), [(); 6].map(|()| words(12)));
    let (draft_lengths, verify_lengths) = (words(4), words(3));
    let mut refused = |change: &dyn Fn(&mut BeginArgs), wanted: &str| {
        let [a, b, c, d, e, f] = &mut rows;
        let mut args = BeginArgs {
            slots: 3,
            plans: plans.view(),
            states: states.view_mut(),
            round: RoundRows {
                steps: 3,
                draft_rows: 4,
                draft: table(a, b, c),
                verify_rows: 12,
                verify: table(d, e, f),
            },
            draft_lengths: Some(draft_lengths.view_to_share()),
            verify_lengths: Some(verify_lengths.view_to_share()),
        };
        change(&mut args);
        let error = rig.kernels.accept.begin(&rig.stream, &args).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    };
    refused(&|a| a.slots = 4, "plans: 72 bytes do not hold 4 elements of 24 bytes");
    refused(&|a| a.round.steps = 4, "draft.tokens: 48 bytes do not hold 16 elements");
    refused(&|a| a.round.verify_rows = 13, "verify.tokens: 48 bytes do not hold 13 elements");
    refused(&|a| a.round.verify_rows = 65536, "verify_rows: 65536; supported are 0 to 65535");
    refused(
        &|a| (a.round.draft_rows, a.round.steps) = (5, 2),
        "draft_lengths: 16 bytes do not hold 5 elements",
    );
    refused(
        &|a| a.verify_lengths = a.draft_lengths.take().map(|v| v.part(0..8)),
        "verify_lengths: 8 bytes do not hold 3",
    );
}
