//! Rounds whose acceptance is set beforehand, for benchmarks.
//!
//! How fast a round is depends on how many drafts it keeps, and weights that were never trained keep none. A script overwrites, between
//! the last choice of the verification and the acceptance, what was drafted and what the verifier chose, so that exactly so many drafts are
//! kept. All other work of the round is done as ever: every layer, every head, every choice, the acceptance itself. What it does not show:
//! how many drafts a trained model would keep, and the tokens, which mean nothing. Two or more copies of a few bytes come on top.
//!
//! Without a script not an instruction of a round is different, and only `Gpu::script_acceptance` sets one.

use std::mem::offset_of;

use bytemuck::Zeroable;

use crate::{
    backend::RoundSizes,
    driver::{Buffer, Stream},
    error::{Error, Result},
    kernels::params::{WlChoice, WlSequence},
};

/// The verifier's choice in every row, and a draft that is another's.
const KEPT: i32 = 1;
const REFUSED: i32 = 2;

/// What a round's drafts and choices are overwritten with.
pub struct Script {
    /// i32, as `WlSequence` has them.
    drafts: Buffer,
    /// `WlChoice` `[slots · steps]`.
    choices: Buffer,
}

impl Script {
    /// Rounds keep `kept` drafts, or all where they have fewer.
    ///
    /// # Errors
    /// [`Error::Argument`] for a vocabulary without room for it; [`Error::Capacity`], [`Error::Device`].
    pub fn new(stream: &Stream, sizes: RoundSizes, kept: usize) -> Result<Script> {
        if sizes.vocab <= REFUSED as usize {
            let reason = format!("{} ids; scripted acceptance takes three", sizes.vocab);
            return Err(Error::argument("vocab_size", reason));
        }
        let mut drafts = WlSequence::zeroed().drafts;
        drafts.iter_mut().enumerate().for_each(|(i, draft)| *draft = if i < kept { KEPT } else { REFUSED });
        let choice = WlChoice { id: KEPT, ..WlChoice::zeroed() };
        let choices = vec![choice; sizes.slots * (sizes.max_draft + 1)];
        Ok(Script {
            drafts: Buffer::from_slice(stream, &drafts)?,
            choices: Buffer::from_slice(stream, &choices)?,
        })
    }

    /// Overwrites the drafts of all slots, whichever take part, and the first `rows` choices of the verification.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn overwrite(
        &self,
        stream: &Stream,
        states: &mut Buffer,
        rows: usize,
        choices: &mut Buffer,
    ) -> Result<()> {
        for slot in 0..states.bytes() / size_of::<WlSequence>() {
            let begin = slot * size_of::<WlSequence>() + offset_of!(WlSequence, drafts);
            let range = begin..begin + self.drafts.bytes();
            stream.copy(self.drafts.view(), &mut states.view_mut().part(range))?;
        }
        let range = 0..rows * size_of::<WlChoice>();
        stream.copy(self.choices.view().slice(range.clone()), &mut choices.view_mut().part(range))
    }
}
