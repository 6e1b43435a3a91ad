//! One output held against another.

use std::fmt;

use serde::Serialize;

use crate::{
    Outcome,
    cases::{Case, elements},
};

/// How two outputs of a case compare.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The same bits.
    Equal,
    /// An approximation whose elements differ by what the instruction set allows; how many.
    Within(usize),
    /// They differ.
    Differs(Difference),
    /// One of them is missing, and why.
    Missing(String),
}

/// The first differing element of a case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The case.
    pub case: String,
    /// Its instruction.
    pub instruction: String,
    /// The element's index in the output.
    pub element: usize,
    /// The operands of that element's thread, in hexadecimal. Instructions of a whole warp read its other lanes' too.
    pub operands: Vec<String>,
    /// What the recording has.
    pub expected: String,
    /// What the device under test gave.
    pub got: String,
    /// How many elements differ.
    pub differing: usize,
    /// Of how many.
    pub elements: usize,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Difference { case, instruction, element, operands, expected, got, differing, elements } = self;
        writeln!(f, "{case}: {differing} of {elements} elements differ   {instruction}")?;
        write!(f, "    element {element}: inputs {}, expected {expected}, got {got}", operands.join(" "))
    }
}

/// Compares two outcomes of a case.
pub fn compare(case: &Case, expected: &Outcome, got: &Outcome) -> Verdict {
    let (expected, got) = match (expected, got) {
        (Outcome::Output(expected), Outcome::Output(got)) => (expected, got),
        (Outcome::NotRun(why), _) | (_, Outcome::NotRun(why)) => return Verdict::Missing(why.clone()),
    };
    if expected == got {
        return Verdict::Equal;
    }
    if expected.len() != got.len() {
        return Verdict::Missing(format!("an output of {} bytes, expected {}", got.len(), expected.len()));
    }
    let tolerance = case.tolerance();
    let mut within = 0;
    let mut differing = 0;
    let mut first = None;
    let pairs = elements(expected, case.output_bits).zip(elements(got, case.output_bits));
    for (element, (expected, got)) in pairs.enumerate().filter(|(_, (expected, got))| expected != got) {
        if tolerance.is_some_and(|t| t.admits(case, element, expected, got)) {
            within += 1;
            continue;
        }
        differing += 1;
        first.get_or_insert((element, expected, got));
    }
    let Some((element, expected, got)) = first else {
        return Verdict::Within(within);
    };
    let hex = |value: u64, bits: u32| format!("{value:0digits$x}", digits = bits as usize / 4);
    let operands = case.operands(element % case.n as usize);
    Verdict::Differs(Difference {
        case: case.name.clone(),
        instruction: case.instruction.clone(),
        element,
        operands: operands.into_iter().map(|v| hex(v, case.input_bits)).collect(),
        expected: hex(expected, case.output_bits),
        got: hex(got, case.output_bits),
        differing,
        elements: case.output_count,
    })
}

/// What a comparison of all cases came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Whose results were expected.
    pub expected: String,
    /// Whose were tested.
    pub got: String,
    /// Cases with the same bits.
    pub equal: usize,
    /// Cases of approximations that differ by no more than the instruction set allows.
    pub within_tolerance: usize,
    /// The others.
    pub differing: Vec<Difference>,
    /// Cases that the expected side does not have, and why.
    pub not_recorded: Vec<(String, String)>,
    /// Cases that the tested side could not run, and why.
    pub not_run: Vec<(String, String)>,
}

impl Summary {
    /// Adds a case.
    pub fn add(&mut self, case: &Case, expected: &Outcome, got: &Outcome) {
        match (expected, compare(case, expected, got)) {
            (_, Verdict::Equal) => self.equal += 1,
            (_, Verdict::Within(_)) => self.within_tolerance += 1,
            (_, Verdict::Differs(difference)) => self.differing.push(difference),
            (Outcome::NotRun(_), Verdict::Missing(why)) => self.not_recorded.push((case.name.clone(), why)),
            (Outcome::Output(_), Verdict::Missing(why)) => self.not_run.push((case.name.clone(), why)),
        }
    }

    /// Whether nothing differs and everything recorded ran.
    pub fn agrees(&self) -> bool {
        self.differing.is_empty() && self.not_run.is_empty()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for difference in &self.differing {
            writeln!(f, "{difference}")?;
        }
        for (case, why) in &self.not_run {
            writeln!(f, "{case}: not run: {why}")?;
        }
        write!(
            f,
            "{} against {}: {} cases equal, {} within the allowed error, {} differ",
            self.got,
            self.expected,
            self.equal,
            self.within_tolerance,
            self.differing.len()
        )?;
        if !self.not_run.is_empty() {
            write!(f, ", {} not run", self.not_run.len())?;
        }
        if let Some((_, why)) = self.not_recorded.first() {
            write!(f, ", {} not recorded ({why})", self.not_recorded.len())?;
        }
        Ok(())
    }
}
