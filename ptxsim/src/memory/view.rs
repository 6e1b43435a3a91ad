//! What the CTAs of a launch see of device memory, and what they change.
//!
//! Writes go to copies of pages, so CTAs can run at once without seeing each other's: a kernel whose CTAs do not
//! communicate gives the same result whatever the number of threads, even if it has races. The pages also note
//! which bytes were read and written, from which races between CTAs follow.

use super::{Bits, PAGE, arena::Arena, run};
use crate::check::shadow::Shadow;

const WORDS: usize = PAGE / 64;
/// Bytes that share a note of who touched them last.
const SECTOR: usize = 32;

/// One page of device memory as a view knows it.
pub(crate) struct Page {
    pub number: u32,
    /// Its bytes, once written to, and which of them hold what somebody wrote.
    pub data: Option<Box<Data>>,
    /// Bytes read and written, noted when checks are on.
    pub touched: Option<Box<Touched>>,
}

pub(crate) struct Data {
    pub bytes: [u8; PAGE],
    pub valid: [u64; WORDS],
    /// Bytes written through this view.
    pub written: [u64; WORDS],
}

/// Bytes of a page that were read and written, and by which instruction last.
#[derive(Clone)]
pub(crate) struct Touched {
    pub read: [u64; WORDS],
    pub written: [u64; WORDS],
    pub reader: [u32; PAGE / SECTOR],
    pub writer: [u32; PAGE / SECTOR],
}

impl Touched {
    pub fn new() -> Box<Self> {
        Box::new(Touched {
            read: [0; WORDS],
            written: [0; WORDS],
            reader: [0; PAGE / SECTOR],
            writer: [0; PAGE / SECTOR],
        })
    }

    /// Sectors of which a byte was read, or written, or either.
    pub fn sectors(&self, read: bool, written: bool) -> u64 {
        let halves = |word: u64| u64::from(word as u32 != 0) + u64::from(word >> 32 != 0);
        let asked = |word: &u64, asked: bool| if asked { *word } else { 0 };
        self.read.iter().zip(&self.written).map(|(r, w)| halves(asked(r, read) | asked(w, written))).sum()
    }
}

/// A view of the arena.
pub(crate) struct View<'a> {
    pub arena: &'a Arena,
    /// For each page of the arena, 0 or one more than its place in `pages`.
    slots: Vec<u32>,
    pub pages: Vec<Page>,
    pub shadow: Shadow,
    checked: bool,
    /// The allocation that was found last.
    block: (u64, u64),
}

impl<'a> View<'a> {
    pub fn new(arena: &'a Arena, checked: bool) -> Self {
        View {
            arena,
            slots: vec![0; arena.bytes.len() / PAGE],
            pages: vec![],
            shadow: Shadow::new(if checked { arena.bytes.len() } else { 0 }),
            checked,
            block: (0, 0),
        }
    }

    /// Hands out what changed and forgets it.
    pub fn take(&mut self) -> Vec<Page> {
        for page in &self.pages {
            self.slots[page.number as usize] = 0;
        }
        self.shadow.clear();
        std::mem::take(&mut self.pages)
    }

    /// Whether `bytes` bytes at offset `at` lie within one allocation.
    #[inline]
    pub fn inside(&mut self, at: u64, bytes: u64) -> bool {
        let within = |(begin, end): (u64, u64)| at >= begin && at <= end && bytes <= end - at;
        if within(self.block) {
            return true;
        }
        match self.arena.block(at) {
            Some(block) => {
                self.block = block;
                within(block)
            }
            None => false,
        }
    }

    /// The bytes at an offset; they must lie within one allocation and one page.
    #[inline]
    pub fn bytes(&self, at: usize, n: usize) -> &[u8] {
        let slot = self.slots[at / PAGE];
        if slot != 0
            && let Some(data) = &self.pages[slot as usize - 1].data
        {
            return &data.bytes[at % PAGE..][..n];
        }
        &self.arena.bytes[at..at + n]
    }

    /// Whether somebody wrote every byte.
    pub fn valid(&self, at: usize, n: usize) -> bool {
        let slot = self.slots[at / PAGE];
        if slot != 0
            && let Some(data) = &self.pages[slot as usize - 1].data
        {
            let mask = run(at % 64, n);
            return data.valid[at % PAGE / 64] & mask == mask;
        }
        self.arena.written.all(at, n)
    }

    /// Whether somebody wrote one of the bytes.
    pub fn any_valid(&self, at: usize, n: usize) -> bool {
        let slot = self.slots[at / PAGE];
        if slot != 0
            && let Some(data) = &self.pages[slot as usize - 1].data
        {
            return data.valid[at % PAGE / 64] & run(at % 64, n) != 0;
        }
        self.arena.written.any(at, n)
    }

    fn page(&mut self, number: usize) -> &mut Page {
        if self.slots[number] == 0 {
            let touched = self.checked.then(Touched::new);
            self.pages.push(Page { number: number as u32, data: None, touched });
            self.slots[number] = self.pages.len() as u32;
        }
        &mut self.pages[self.slots[number] as usize - 1]
    }

    /// Writes bytes that lie within one page and 64-byte line.
    #[inline]
    pub fn write(&mut self, at: usize, data: &[u8], valid: bool) {
        let arena = self.arena;
        let page = self.page(at / PAGE);
        let copy = page.data.get_or_insert_with(|| {
            let begin = at / PAGE * PAGE;
            let mut copy = Box::new(Data { bytes: [0; PAGE], valid: [0; WORDS], written: [0; WORDS] });
            copy.bytes.copy_from_slice(&arena.bytes[begin..begin + PAGE]);
            copy.valid.copy_from_slice(&arena.written.words()[begin / 64..begin / 64 + WORDS]);
            copy
        });
        let offset = at % PAGE;
        copy.bytes[offset..offset + data.len()].copy_from_slice(data);
        let (word, mask) = (offset / 64, run(offset % 64, data.len()));
        copy.written[word] |= mask;
        if valid {
            copy.valid[word] |= mask;
        } else {
            copy.valid[word] &= !mask;
        }
    }

    /// Notes an access of instruction `pc`.
    #[inline]
    pub fn touch(&mut self, at: usize, n: usize, write: bool, pc: u32) {
        let page = self.page(at / PAGE);
        let Some(touched) = &mut page.touched else { return };
        let offset = at % PAGE;
        let (word, mask) = (offset / 64, run(offset % 64, n));
        if write {
            touched.written[word] |= mask;
            touched.writer[offset / SECTOR] = pc;
        } else {
            touched.read[word] |= mask;
            touched.reader[offset / SECTOR] = pc;
        }
    }
}

/// Writes the pages of a view into the arena.
pub(crate) fn commit(arena: &mut Arena, pages: &[Page]) {
    for page in pages {
        let Some(data) = &page.data else { continue };
        let begin = page.number as usize * PAGE;
        for word in 0..WORDS {
            let mut bits = data.written[word];
            if bits == u64::MAX {
                let range = word * 64..word * 64 + 64;
                arena.bytes[begin + range.start..begin + range.end].copy_from_slice(&data.bytes[range]);
            } else {
                while bits != 0 {
                    let byte = word * 64 + bits.trailing_zeros() as usize;
                    arena.bytes[begin + byte] = data.bytes[byte];
                    bits &= bits - 1;
                }
            }
            arena.written.replace(begin / 64 + word, data.written[word], data.valid[word]);
        }
    }
}

impl Bits {
    /// Sets the bits of a word that `mask` names to those of `value`.
    fn replace(&mut self, word: usize, mask: u64, value: u64) {
        self.0[word] = self.0[word] & !mask | value & mask;
    }
}

/// The first byte in which two pages' accesses conflict, and the instructions: this one's and the other's.
pub(crate) fn conflict(now: &Touched, before: &Touched) -> Option<(usize, u32, u32)> {
    for word in 0..WORDS {
        let write = now.written[word] & (before.written[word] | before.read[word]);
        let read = now.read[word] & before.written[word];
        let bits = write | read;
        if bits != 0 {
            let byte = word * 64 + bits.trailing_zeros() as usize;
            let bit = 1 << (byte % 64);
            let sector = byte / SECTOR;
            let mine = if now.written[word] & bit != 0 { now.writer[sector] } else { now.reader[sector] };
            let other =
                if before.written[word] & bit != 0 { before.writer[sector] } else { before.reader[sector] };
            return Some((byte, mine, other));
        }
    }
    None
}

/// Adds what `from` touched.
pub(crate) fn merge(into: &mut Touched, from: &Touched) {
    for word in 0..WORDS {
        into.read[word] |= from.read[word];
        into.written[word] |= from.written[word];
    }
    for sector in 0..PAGE / SECTOR {
        let bits = |map: &[u64; WORDS]| map[sector / 2] >> (sector % 2 * 32) & 0xffff_ffff;
        if bits(&from.read) != 0 {
            into.reader[sector] = from.reader[sector];
        }
        if bits(&from.written) != 0 {
            into.writer[sector] = from.writer[sector];
        }
    }
}
