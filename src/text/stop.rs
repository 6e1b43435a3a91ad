//! Stop strings: ending a text before a given string, even one that spans tokens.

use crate::{Error, Result};

/// Watches a text that arrives in pieces for strings that end it.
///
/// Text that could be the beginning of a stop string is withheld until it is clear that it is not. Of several
/// stop strings the one complete first ends the text (of two complete at once, the longer one), however the text
/// is cut into pieces.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    withheld: String,
    stopped: bool,
}

/// What [`StopStrings::push`] makes of a piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// Text that may be shown now.
    pub text: String,
    /// Index of the stop string that was met; the text ends before it.
    pub stop: Option<usize>,
}

impl StopStrings {
    /// A watch for `stops`; none at all is allowed and lets every text through.
    ///
    /// # Errors
    /// An empty stop string, which would end every text before its first character.
    pub fn new(stops: Vec<String>) -> Result<Self> {
        if stops.iter().any(String::is_empty) {
            return Err(Error::argument("--stop", "a stop string must not be empty"));
        }
        Ok(Self { stops, withheld: String::new(), stopped: false })
    }

    /// Takes the next piece of the text. After a stop string was met, nothing more comes out.
    pub fn push(&mut self, text: &str) -> Stopped {
        if self.stopped {
            return Stopped { text: String::new(), stop: None };
        }
        self.withheld.push_str(text);
        let met = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            let start = self.withheld.find(stop)?;
            Some((start + stop.len(), start, index))
        });
        if let Some((_, start, index)) = met.min() {
            self.stopped = true;
            self.withheld.truncate(start);
            return Stopped { text: std::mem::take(&mut self.withheld), stop: Some(index) };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.withheld, stop)).max().unwrap_or(0);
        let rest = self.withheld.split_off(self.withheld.len() - keep);
        Stopped { text: std::mem::replace(&mut self.withheld, rest), stop: None }
    }

    /// What was withheld, once it is known that no more text comes.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.withheld)
    }
}

/// Length in bytes of the longest end of `text` that is a beginning of `stop`, but not all of it. Both are UTF-8, so
/// such an end begins with a whole character.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    let matches = |length: &usize| text.as_bytes().ends_with(&stop.as_bytes()[..*length]);
    (1..=longest).rev().find(matches).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
        let mut watch = StopStrings::new(stops.iter().map(|stop| stop.to_string()).collect()).unwrap();
        let mut text = String::new();
        for piece in pieces {
            let step = watch.push(piece);
            text += &step.text;
            if step.stop.is_some() {
                return (text, step.stop);
            }
        }
        (text + &watch.flush(), None)
    }

    #[test]
    fn a_stop_string_may_span_pieces() {
        assert_eq!(run(&["\n\n"], &["one\n", "two\n", "\nthree"]), ("one\ntwo".into(), Some(0)));
        assert_eq!(run(&["STOP"], &["a S", "T", "OP b"]), ("a ".into(), Some(0)));
        assert_eq!(run(&["STOP"], &["a S", "TO"]), ("a STO".into(), None));
        assert_eq!(run(&[], &["a", "b"]), ("ab".into(), None));
    }

    #[test]
    fn text_that_begins_a_stop_string_is_withheld_and_released() {
        let mut watch = StopStrings::new(vec!["aab".into()]).unwrap();
        assert_eq!(watch.push("xaa"), Stopped { text: "x".into(), stop: None });
        assert_eq!(watch.push("a"), Stopped { text: "a".into(), stop: None });
        assert_eq!(watch.push("b!"), Stopped { text: "".into(), stop: Some(0) });
        assert_eq!(watch.push("more"), Stopped { text: "".into(), stop: None });
        assert_eq!(watch.flush(), "");
    }

    #[test]
    fn cutting_does_not_matter() {
        let text = "ünî ab abc abcd é—–";
        for stops in [vec!["abcd", "bc"], vec!["c", "bc", "abc"], vec!["é—"], vec!["–—"], vec!["abd"]]
        {
            let whole = run(&stops, &[text]);
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let pieces: Vec<&str> = chars.iter().map(String::as_str).collect();
            assert_eq!(run(&stops, &pieces), whole, "{stops:?}");
        }
        assert_eq!(run(&["c", "bc", "abc"], &[text]), ("ünî ab ".into(), Some(2)));
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert!(StopStrings::new(vec!["x".into(), String::new()]).is_err());
    }
}
