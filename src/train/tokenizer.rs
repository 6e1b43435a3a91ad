//! The checkpoint's own tokenizer: byte-level BPE learned from the training text.

use tokenizers::{
    AddedToken, SplitDelimiterBehavior, Tokenizer,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
    },
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
    processors::template::TemplateProcessing,
};

use super::objective::Objective;
use crate::{Error, Result};

/// Begins every sequence.
pub const BEGIN: &str = "<|begin_of_text|>";
/// Ends every document.
pub const END: &str = "<|end_of_text|>";

/// Stands for a token that is hidden (masked-token loss alone).
pub const MASK: &str = "<|mask|>";

/// Pieces that merges never cross: words with their leading space, up to three digits, runs of punctuation,
/// white space.
const PIECES: &str = r" ?\p{L}+(?:['’]\p{L}+)*| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Learns a tokenizer of exactly `vocab` tokens from `documents`: 256 bytes, merges, then the special
/// tokens, [`MASK`] where the objective needs it, [`BEGIN`], which is added in front of every encoding, and [`END`].
///
/// # Errors
/// [`Error::Argument`] if the text does not hold enough repeated pairs for so many tokens.
pub fn learn(documents: &[&str], vocab: usize, objective: Objective) -> Result<Tokenizer> {
    let failed = |error: tokenizers::Error| Error::Text {
        what: "learning the tokenizer".into(),
        reason: error.to_string(),
    };
    let split = Split::new(SplitPattern::Regex(PIECES.into()), SplitDelimiterBehavior::Isolated, false);
    let bytes = ByteLevel::new(false, true, false);
    let pieces: Vec<PreTokenizerWrapper> = vec![split.map_err(failed)?.into(), bytes.into()];
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(pieces))).with_decoder(Some(bytes));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(vocab - objective.specials())
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build()
        .into();
    tokenizer.train(&mut trainer, documents.iter().flat_map(|text| cut(text))).map_err(failed)?;
    let mask = (objective == Objective::Masked).then_some(MASK);
    let specials = mask.into_iter().chain([BEGIN, END]).map(|token| AddedToken::from(token, true));
    tokenizer.add_special_tokens(specials.collect::<Vec<_>>()).map_err(failed)?;
    let size = tokenizer.get_vocab_size(true);
    if size != vocab {
        return Err(Error::argument(
            "--vocab",
            format!("the text yields only {size} tokens; give that or less"),
        ));
    }
    let template = TemplateProcessing::builder()
        .try_single(format!("{BEGIN} $A"))
        .and_then(|builder| builder.try_pair(format!("{BEGIN} $A {BEGIN} $B")))
        .map_err(|reason| Error::Text { what: "learning the tokenizer".into(), reason })?
        .special_tokens(vec![(BEGIN, vocab as u32 - 2)])
        .build()
        .map_err(|error| Error::Text { what: "learning the tokenizer".into(), reason: error.to_string() })?;
    tokenizer.with_post_processor(Some(template));
    Ok(tokenizer)
}

/// Longest word that is learned from as a whole, in bytes.
const LONGEST: usize = 1024;
/// From so many bytes on a part ends with its word: what learning takes beside the text grows with the parts that it looks at.
const PART: usize = 64 << 10;

/// A text in parts, cut between a word and the white space behind it, which changes no piece. But for words, and runs of white space, longer
/// than [`LONGEST`]: the time that a piece takes grows with the square of its length, and sequences of bases or of base64 are one word.
fn cut(text: &str) -> Vec<&str> {
    let (mut parts, mut begin, mut run, mut was_space) = (vec![], 0, 0, false);
    for (at, c) in text.char_indices() {
        if c.is_whitespace() != was_space {
            (was_space, run) = (!was_space, at);
            if was_space && at - begin >= PART {
                parts.push(&text[begin..at]);
                begin = at;
            }
        } else if at - run >= LONGEST {
            parts.push(&text[begin..at]);
            (begin, run) = (at, at);
        }
    }
    parts.push(&text[begin..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tokenizer has the same merges whatever the parts.
    #[test]
    fn parts_change_no_piece() {
        let split = Split::new(SplitPattern::Regex(PIECES.into()), SplitDelimiterBehavior::Isolated, false);
        let mut tokenizer = Tokenizer::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(split.unwrap()));
        let pieces = |text: &str| -> Vec<String> {
            let mut text = tokenizers::PreTokenizedString::from(text);
            tokenizers::PreTokenizer::pre_tokenize(tokenizer.get_pre_tokenizer().unwrap(), &mut text)
                .unwrap();
            let offsets = (tokenizers::OffsetReferential::Original, tokenizers::OffsetType::Byte);
            text.get_splits(offsets.0, offsets.1).into_iter().map(|(piece, ..)| piece.to_owned()).collect()
        };
        let text = "it's  a\n\n\ttest, of 12345 'things'\u{2003}and\r\n ends...   ".repeat(8000);
        let parts = cut(&text);
        assert!(parts.len() > 5 && parts.concat() == text);
        let cut: Vec<String> = parts.into_iter().flat_map(pieces).collect();
        assert!(cut == pieces(&text));
    }

    #[test]
    fn only_long_runs_are_cut() {
        let words = "in the beginning ".repeat(1000);
        assert_eq!(cut(&words), [&words]);
        assert_eq!(cut(""), [""]);
        let bases = "gà".repeat(5000);
        let parts = cut(&bases);
        assert_eq!(parts.concat(), bases);
        assert!(parts.len() > 10 && parts.iter().all(|part| part.len() <= LONGEST + 4));
        let spaces = format!("a{}b", " \n\t".repeat(1000));
        assert!(cut(&spaces).iter().all(|part| part.len() <= LONGEST + 4));
        assert_eq!(cut(&spaces).concat(), spaces);
    }
}
