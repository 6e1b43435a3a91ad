//! Bookkeeping of the paged KV cache: which page of the key and value buffers holds which positions of which
//! sequence. Start from [`Cache`].
//!
//! A page holds the keys and values of `page_size` consecutive positions in *every* layer, so one block table
//! per sequence serves draft, verify and plain decoding alike: cropping after a round is one integer per
//! sequence ([`Cache::truncate`]). Sequences that begin alike share pages ([`Cache::fork`]) until one of them
//! writes to a shared page; it then gets a copy of its own ([`PageCopy`]). Pages that a windowed model never
//! looks at again are given back before the sequence ends ([`Cache::release`]).
//!
//! Nothing here touches keys or values, and nothing here knows a device: the backend owns the buffers,
//! performs the copies and reads the tables. After "Efficient Memory Management for Large Language Model
//! Serving with PagedAttention" (arXiv 2309.06180).

mod pool;

use crate::error::{Error, Result};
use pool::Pool;

/// What a block table holds in place of a page that was given back by [`Cache::release`].
pub const RELEASED: u32 = u32::MAX;

/// A copy the backend must make, in every layer and for keys and values, before it writes to page `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// The shared page that was about to be written.
    pub from: u32,
    /// The page that takes its place in the sequence's block table.
    pub to: u32,
}

/// Block tables of a fixed number of sequences over a fixed number of pages.
///
/// Everything is allocated by [`Cache::new`]; no other call allocates unless it fails. A call that fails
/// changes nothing. A sequence is named by its slot, `0..sequences`; the slot of a dropped sequence is
/// used again by a later [`create`](Cache::create) or [`fork`](Cache::fork).
#[derive(Debug)]
pub struct Cache {
    page_size: usize,
    pages_per_sequence: usize,
    pool: Pool,
    /// (sequences, pages_per_sequence): page ids by block; the first `pages_for(len)` of a row are in use.
    tables: Vec<u32>,
    /// (sequences)
    sequences: Vec<Sequence>,
    /// Unused slots, the next one to hand out last. Its capacity is the number of sequences.
    vacant: Vec<usize>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sequence {
    live: bool,
    /// Positions written, or about to be by the rows that were appended last.
    len: usize,
    /// First block that was released; equal to `released_end` if none was.
    released_start: usize,
    /// One past the last block that was released. Blocks before it are not looked at again.
    released_end: usize,
}

impl Cache {
    /// Bookkeeping for `pages` pages of `page_size` positions, shared by up to `sequences` sequences of up to
    /// `pages_per_sequence` pages each. `pages` may be less than `sequences · pages_per_sequence`: then
    /// [`append`](Cache::append) can run out of pages.
    ///
    /// # Errors
    /// [`Error::Argument`] if one of the numbers is 0 or beyond what a page id can name, [`Error::Capacity`] if
    /// the tables do not fit into memory.
    pub fn new(pages: usize, page_size: usize, sequences: usize, pages_per_sequence: usize) -> Result<Self> {
        for (name, value) in [
            ("pages", pages),
            ("page_size", page_size),
            ("sequences", sequences),
            ("pages_per_sequence", pages_per_sequence),
        ] {
            // The largest u32 is RELEASED; the bound also keeps reference counts and the product below in range.
            if value == 0 || u32::try_from(value).map_or(true, |value| value == RELEASED) {
                return Err(Error::argument(
                    name,
                    format!("{value} is out of range; allowed are 1 to {}", RELEASED - 1),
                ));
            }
        }
        // The highest position must be a usize.
        if page_size.checked_mul(pages_per_sequence).is_none() {
            return Err(Error::argument(
                "pages_per_sequence",
                format!("{pages_per_sequence} pages of {page_size} positions exceed the address space"),
            ));
        }
        Self::allocate(pages as u32, page_size, sequences, pages_per_sequence).ok_or_else(|| {
            Error::Capacity {
                what: format!(
                    "the page tables of {sequences} sequences of up to {pages_per_sequence} pages over {pages} pages"
                ),
                needed: format!(
                    "{} bytes",
                    4 * (sequences as u128 * pages_per_sequence as u128 + 2 * pages as u128)
                ),
                available: "memory is short of that; lower --context or the number of sequences".to_string(),
            }
        })
    }

    /// `None` where memory is lacking.
    fn allocate(pages: u32, page_size: usize, sequences: usize, pages_per_sequence: usize) -> Option<Self> {
        let entries = sequences.checked_mul(pages_per_sequence)?;
        let (mut tables, mut slots, mut vacant) = (Vec::new(), Vec::new(), Vec::new());
        tables.try_reserve_exact(entries).ok()?;
        slots.try_reserve_exact(sequences).ok()?;
        vacant.try_reserve_exact(sequences).ok()?;
        let pool = Pool::new(pages)?;
        tables.resize(entries, RELEASED);
        slots.resize(sequences, Sequence::default());
        vacant.extend((0..sequences).rev());
        Some(Cache { page_size, pages_per_sequence, pool, tables, sequences: slots, vacant })
    }

    /// Positions per page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Slots of sequences, in use or not.
    pub fn sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Pages in all, free or not.
    pub fn pages(&self) -> usize {
        self.pool.pages()
    }

    /// Pages that no sequence uses.
    pub fn free_pages(&self) -> usize {
        self.pool.free()
    }

    /// The most positions one sequence can have.
    pub fn positions_per_sequence(&self) -> usize {
        self.pages_per_sequence * self.page_size
    }

    /// Pages that `positions` positions take up.
    pub fn pages_for(&self, positions: usize) -> usize {
        positions.div_ceil(self.page_size)
    }

    /// Starts an empty sequence and returns its slot.
    ///
    /// # Errors
    /// [`Error::Capacity`] if every slot is in use.
    pub fn create(&mut self) -> Result<usize> {
        let Some(seq) = self.vacant.pop() else {
            return Err(Error::Capacity {
                what: "another sequence".to_string(),
                needed: "a free slot".to_string(),
                available: format!(
                    "all {} are in use; drop a sequence or make the cache for more",
                    self.sequences.len()
                ),
            });
        };
        self.sequences[seq] = Sequence { live: true, ..Sequence::default() };
        Ok(seq)
    }

    /// Ends sequence `seq` and frees the pages that no other sequence shares.
    ///
    /// # Errors
    /// [`Error::Argument`] if `seq` is not a live sequence.
    pub fn drop_sequence(&mut self, seq: usize) -> Result<()> {
        self.truncate(seq, 0)?;
        self.sequences[seq].live = false;
        self.vacant.push(seq);
        Ok(())
    }

    /// Number of positions of sequence `seq`.
    ///
    /// # Errors
    /// [`Error::Argument`] if `seq` is not a live sequence.
    pub fn len(&self, seq: usize) -> Result<usize> {
        Ok(self.live(seq)?.len)
    }

    /// Block table of sequence `seq`: position `p` lies in page `table[p / page_size]` at row `p % page_size`;
    /// [`RELEASED`] marks blocks that were given back. Shape (`pages_for(len)`).
    ///
    /// # Errors
    /// [`Error::Argument`] if `seq` is not a live sequence.
    pub fn table(&self, seq: usize) -> Result<&[u32]> {
        let blocks = self.pages_for(self.live(seq)?.len);
        let row = seq * self.pages_per_sequence;
        Ok(&self.tables[row..row + blocks])
    }

    /// Makes the next `n` positions of sequence `seq` writable and counts them in its length.
    ///
    /// If the first of them lies in a page that another sequence shares, the page is replaced and a
    /// [`PageCopy`] pushed to `copies`, to be performed before the positions are written. A call pushes at most
    /// one: only the last page of a sequence can be both shared and written. With room for as many, `copies`
    /// does not allocate.
    ///
    /// # Errors
    /// [`Error::Capacity`] if the sequence would outgrow its table or there are not enough free pages,
    /// [`Error::Argument`] if `seq` is not a live sequence. Nothing has changed then.
    pub fn append(&mut self, seq: usize, n: usize, copies: &mut Vec<PageCopy>) -> Result<()> {
        let len = self.live(seq)?.len;
        let limit = self.positions_per_sequence();
        if n > limit - len {
            return Err(Error::Capacity {
                what: format!("sequence {seq}, {len} positions long and to grow by {n},"),
                needed: format!("{} positions", len as u128 + n as u128),
                available: format!(
                    "it can hold {limit} at most, of which {} are free (shorten the prompt or raise --context)",
                    limit - len
                ),
            });
        }
        let row = seq * self.pages_per_sequence;
        let blocks = self.pages_for(len)..self.pages_for(len + n);
        // The page that position `len` falls into, if it holds earlier positions, too.
        let partial = (n > 0 && !len.is_multiple_of(self.page_size)).then(|| row + len / self.page_size);
        let shared = partial.filter(|&entry| self.pool.is_shared(self.tables[entry]));
        let needed = blocks.len() + usize::from(shared.is_some());
        if needed > self.pool.free() {
            return Err(Error::Capacity {
                what: format!("sequence {seq}, {len} positions long and to grow by {n},"),
                needed: format!("{needed} more pages of {} positions", self.page_size),
                available: format!(
                    "{} of {} are free (drop a sequence or make the cache larger)",
                    self.pool.free(),
                    self.pool.pages()
                ),
            });
        }
        if let Some(entry) = shared {
            let (from, to) = (self.tables[entry], self.pool.take());
            self.pool.give(from);
            self.tables[entry] = to;
            copies.push(PageCopy { from, to });
        }
        for block in blocks {
            self.tables[row + block] = self.pool.take();
        }
        self.sequences[seq].len = len + n;
        Ok(())
    }

    /// Crops sequence `seq` to its first `len` positions: what rejected drafts need. Takes time in proportion
    /// to the pages dropped.
    ///
    /// # Errors
    /// [`Error::Argument`] if `seq` is not a live sequence, is shorter than `len`, or has released positions
    /// before `len` at a distance that the next row may look back to: `len` must lie at or after the last
    /// released block, or at or before the first. Nothing has changed then.
    pub fn truncate(&mut self, seq: usize, len: usize) -> Result<()> {
        let Sequence { len: old, released_start, released_end, .. } = *self.live(seq)?;
        if len > old {
            return Err(Error::argument(
                "len",
                format!("sequence {seq} has {old} positions and cannot be truncated to {len}"),
            ));
        }
        if len > released_start * self.page_size && len < released_end * self.page_size {
            return Err(Error::argument(
                "len",
                format!(
                    "sequence {seq} cannot be truncated to {len}: positions {} to {} were released",
                    released_start * self.page_size,
                    released_end * self.page_size - 1
                ),
            ));
        }
        let row = seq * self.pages_per_sequence;
        let blocks = self.pages_for(len);
        for entry in row + blocks..row + self.pages_for(old) {
            if self.tables[entry] != RELEASED {
                self.pool.give(self.tables[entry]);
            }
        }
        let sequence = &mut self.sequences[seq];
        sequence.len = len;
        if blocks < released_end {
            // Cropped before everything that was released.
            (sequence.released_start, sequence.released_end) = (0, 0);
        }
        Ok(())
    }

    /// Starts a sequence that shares the pages of the first `len` positions of `seq`, and returns its slot.
    /// Whichever of the two writes to a shared page first gets a copy of it (see [`append`](Cache::append)).
    /// The shared positions must have been written: rows still to be computed would be seen by both.
    ///
    /// # Errors
    /// [`Error::Argument`] if `seq` is not a live sequence, is shorter than `len`, or has released some of those
    /// positions; [`Error::Capacity`] if every slot is in use. Nothing has changed then.
    pub fn fork(&mut self, seq: usize, len: usize) -> Result<usize> {
        let Sequence { len: old, released_start, released_end, .. } = *self.live(seq)?;
        if len > old {
            return Err(Error::argument(
                "len",
                format!("sequence {seq} has {old} positions, of which {len} cannot be shared"),
            ));
        }
        if released_start < released_end && len > released_start * self.page_size {
            return Err(Error::argument(
                "len",
                format!(
                    "the first {len} positions of sequence {seq} cannot be shared: those from {} on were released",
                    released_start * self.page_size
                ),
            ));
        }
        let fork = self.create()?;
        let (from, to) = (seq * self.pages_per_sequence, fork * self.pages_per_sequence);
        let blocks = self.pages_for(len);
        self.tables.copy_within(from..from + blocks, to);
        for &page in &self.tables[to..to + blocks] {
            self.pool.share(page);
        }
        self.sequences[fork].len = len;
        Ok(fork)
    }

    /// Gives back the pages of sequence `seq` that lie wholly in `[prefix, horizon)`: positions that no later
    /// row sees, by [`Mask::horizon`](crate::mask::Mask::horizon) of the next row that may be computed, which
    /// after a round is the accepted length. Where layers differ, `prefix` is the largest and `horizon` the
    /// smallest of theirs. Positions from the sequence's length on are left alone.
    ///
    /// Calling it again with the same or a smaller horizon does nothing; over the life of a sequence it takes
    /// time in proportion to the pages it gave back. For that it does not return to blocks before the last one
    /// it released: `prefix` is taken to be the same in all calls.
    ///
    /// # Errors
    /// [`Error::Argument`] if `seq` is not a live sequence.
    pub fn release(&mut self, seq: usize, prefix: usize, horizon: usize) -> Result<()> {
        let Sequence { len, released_start, released_end, .. } = *self.live(seq)?;
        let start = self.pages_for(prefix).max(released_end);
        let end = horizon.min(len) / self.page_size;
        if start >= end {
            return Ok(());
        }
        let row = seq * self.pages_per_sequence;
        for entry in &mut self.tables[row + start..row + end] {
            self.pool.give(std::mem::replace(entry, RELEASED));
        }
        let sequence = &mut self.sequences[seq];
        if released_start == released_end {
            sequence.released_start = start;
        }
        sequence.released_end = end;
        Ok(())
    }

    fn live(&self, seq: usize) -> Result<&Sequence> {
        self.sequences.get(seq).filter(|sequence| sequence.live).ok_or_else(|| {
            Error::argument(
                "sequence",
                format!("slot {seq} of the cache holds no sequence (never created, or dropped)"),
            )
        })
    }
}
