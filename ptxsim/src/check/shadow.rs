//! The last accesses to each word of a memory, and the verdict on the next.
//!
//! A cell covers four bytes; a cell that is accessed in smaller pieces is split into one for each byte. As in FastTrack, a cell
//! keeps one reader while reads are ordered and a list once they are not.

use std::collections::BTreeMap;

use super::clock::{Clock, Epoch};
use crate::memory::PAGE;

/// Bytes that a cell covers.
const CELL: usize = 4;
const CELLS: usize = PAGE / CELL;
/// Pages of cells that are kept for reuse.
const KEPT: usize = 256;

#[derive(Clone, Copy, Default)]
struct Cell {
    write: Epoch,
    /// A reader; or, when `readers` is not 0, nothing.
    read: Epoch,
    write_pc: u32,
    read_pc: u32,
    /// One more than the place in `Shadow::readers`.
    readers: u32,
    /// One more than the place in `Shadow::split`, under which the bytes have cells of their own.
    split: u32,
}

/// Readers of a cell that nothing orders, and where each read: few as a rule.
#[derive(Clone, Default)]
struct Readers {
    few: [(Epoch, u32); 4],
    count: usize,
    more: Vec<(Epoch, u32)>,
}

impl Readers {
    fn clear(&mut self) {
        self.count = 0;
        self.more.clear();
    }

    fn iter(&self) -> impl Iterator<Item = &(Epoch, u32)> {
        self.few[..self.count].iter().chain(&self.more)
    }

    fn push(&mut self, reader: (Epoch, u32)) {
        match self.few.get_mut(self.count) {
            Some(place) => {
                *place = reader;
                self.count += 1;
            }
            None => self.more.push(reader),
        }
    }

    /// Adds a read: it takes the place of those that it follows, and joins one of the same warp.
    fn read(&mut self, clock: &Clock, lane: u32, epoch: Epoch, pc: u32) {
        let mut kept = 0;
        for i in 0..self.count {
            if !clock.after(self.few[i].0, lane) {
                self.few[kept] = self.few[i];
                kept += 1;
            }
        }
        self.count = kept;
        self.more.retain(|(e, _)| !clock.after(*e, lane));
        let mine =
            self.few[..kept].iter_mut().chain(&mut self.more).find(|(e, _)| e.agent() == epoch.agent());
        match mine {
            Some(mine) => *mine = (epoch.with_many_lanes(), pc),
            None => self.push((epoch, pc)),
        }
    }
}

/// The access that another one conflicts with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conflict {
    pub epoch: Epoch,
    pub pc: u32,
    pub was_write: bool,
}

/// Accesses to a memory, in pages that exist once touched.
pub(crate) struct Shadow {
    /// For each page of the memory, 0 or one more than its place in `pages`.
    slots: Vec<u32>,
    /// Cells of the pages in use, and of some that were.
    pages: Vec<Box<[Cell; CELLS]>>,
    touched: Vec<u32>,
    readers: Vec<Readers>,
    free: Vec<u32>,
    split: Vec<[Cell; CELL]>,
    /// Plain reads beside atomics, by warp and word: races unless the warp goes on to compare-and-swap that word, as
    /// the customary loop around atom.cas does, which starts with a guess.
    suspects: BTreeMap<(u32, usize), Suspect>,
}

/// A race that may yet turn out to be none: the two instructions, and the report.
pub(crate) struct Suspect {
    pub pc: u32,
    pub other: u32,
    pub message: String,
}

/// Suspects that are kept; more are dropped, since one of each pair of instructions is enough.
const SUSPECTS: usize = 1 << 16;

impl Shadow {
    pub fn suspect(&mut self, agent: u32, at: usize, suspect: impl FnOnce() -> Suspect) {
        if self.suspects.len() < SUSPECTS {
            self.suspects.entry((agent, at / CELL)).or_insert_with(suspect);
        }
    }

    /// The warp compares and swaps the word.
    pub fn absolve(&mut self, agent: u32, at: usize) {
        if !self.suspects.is_empty() {
            self.suspects.remove(&(agent, at / CELL));
        }
    }

    /// Those that no compare-and-swap followed.
    pub fn convicted(&mut self) -> impl Iterator<Item = Suspect> + use<> {
        std::mem::take(&mut self.suspects).into_values()
    }

    /// Of a memory of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Shadow {
            slots: vec![0; bytes.div_ceil(PAGE)],
            pages: vec![],
            touched: vec![],
            readers: vec![],
            free: vec![],
            split: vec![],
            suspects: BTreeMap::new(),
        }
    }

    /// Forgets every access.
    pub fn clear(&mut self) {
        for page in self.touched.drain(..) {
            self.slots[page as usize] = 0;
        }
        // A few pages are kept for the next time.
        self.pages.truncate(KEPT);
        self.readers.clear();
        self.free.clear();
        self.split.clear();
        self.suspects.clear();
    }

    #[cold]
    fn open(&mut self, page: usize) {
        self.touched.push(page as u32);
        let place = self.touched.len();
        match self.pages.get_mut(place - 1) {
            Some(cells) => cells.fill(Cell::default()),
            None => self.pages.push(Box::new([Cell::default(); CELLS])),
        }
        self.slots[page] = place as u32;
    }

    /// Notes an access to the bytes at..at + n by `lane` at instruction `pc`, and returns what it conflicts with.
    #[allow(clippy::too_many_arguments)]
    pub fn access(
        &mut self,
        clock: &Clock,
        lane: u32,
        pc: u32,
        at: usize,
        n: usize,
        write: bool,
        strong: bool,
    ) -> Option<Conflict> {
        let mut found = None;
        let epoch = Epoch::new(clock.agent, lane, clock.now, strong);
        let (mut byte, end) = (at, at + n);
        if at.is_multiple_of(CELL) && n.is_multiple_of(CELL) {
            byte += CELL * self.words(clock, lane, pc, at, n, write, epoch);
        }
        while byte < end {
            let cell = byte / CELL;
            let upto = end.min(cell * CELL + CELL);
            let whole = byte % CELL == 0 && upto == cell * CELL + CELL;
            let page = cell / CELLS;
            if self.slots[page] == 0 {
                self.open(page);
            }
            let cells = &mut self.pages[self.slots[page] as usize - 1];
            let slot = &mut cells[cell % CELLS];
            if slot.split == 0 && whole {
                let conflict = one(slot, &mut self.readers, &mut self.free, clock, lane, epoch, pc, write);
                found = found.or(conflict);
            } else {
                if slot.split == 0 {
                    // Each byte inherits the word's past; a list of readers is shared by giving each its own copy.
                    let mut bytes = [*slot; CELL];
                    if slot.readers != 0 {
                        for byte in &mut bytes[1..] {
                            let copy = self.readers[slot.readers as usize - 1].clone();
                            self.readers.push(copy);
                            byte.readers = self.readers.len() as u32;
                        }
                    }
                    self.split.push(bytes);
                    *slot = Cell { split: self.split.len() as u32, ..Cell::default() };
                }
                let bytes = &mut self.split[slot.split as usize - 1];
                for cell in &mut bytes[byte % CELL..byte % CELL + (upto - byte)] {
                    let conflict =
                        one(cell, &mut self.readers, &mut self.free, clock, lane, epoch, pc, write);
                    found = found.or(conflict);
                }
            }
            byte = upto;
        }
        found
    }

    /// The beginning of an access to whole words, as far as the words' past is simple and in order: the number of words
    /// that are done. Words side by side mostly have the same past, so each epoch is looked up once.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    fn words(
        &mut self,
        clock: &Clock,
        lane: u32,
        pc: u32,
        at: usize,
        n: usize,
        write: bool,
        epoch: Epoch,
    ) -> usize {
        let page = at / PAGE;
        if self.slots[page] == 0 {
            self.open(page);
        }
        let first = at % PAGE / CELL;
        let last = (first + n / CELL).min(CELLS);
        let cells = &mut self.pages[self.slots[page] as usize - 1][first..last];
        let (mut written, mut read) = (Epoch::default(), Epoch::default());
        for (done, cell) in cells.iter_mut().enumerate() {
            if cell.split != 0 || cell.readers != 0 {
                return done;
            }
            if cell.write != written {
                if !cell.write.is_none() && !clock.after(cell.write, lane) {
                    return done;
                }
                written = cell.write;
            }
            if cell.read != read {
                if !cell.read.is_none() && !clock.after(cell.read, lane) {
                    return done;
                }
                read = cell.read;
            }
            if write {
                cell.write = epoch;
                cell.write_pc = pc;
                cell.read = Epoch::default();
            } else {
                cell.read = epoch;
                cell.read_pc = pc;
            }
        }
        cells.len()
    }
}

/// An access to one cell.
#[allow(clippy::too_many_arguments)]
#[inline]
fn one(
    cell: &mut Cell,
    readers: &mut Vec<Readers>,
    free: &mut Vec<u32>,
    clock: &Clock,
    lane: u32,
    epoch: Epoch,
    pc: u32,
    write: bool,
) -> Option<Conflict> {
    let strong = epoch.strong();
    // Two strong accesses never race; any other pair with a write does unless ordered.
    let ordered = |e: Epoch| e.is_none() || strong && e.strong() || clock.after(e, lane);
    let mut found = None;
    if !ordered(cell.write) {
        found = Some(Conflict { epoch: cell.write, pc: cell.write_pc, was_write: true });
    }
    if write {
        if cell.readers != 0 {
            let list = &mut readers[cell.readers as usize - 1];
            if found.is_none()
                && let Some((e, pc)) = list.iter().find(|(e, _)| !ordered(*e))
            {
                found = Some(Conflict { epoch: *e, pc: *pc, was_write: false });
            }
            list.clear();
            free.push(cell.readers);
            cell.readers = 0;
        } else if found.is_none() && !ordered(cell.read) {
            found = Some(Conflict { epoch: cell.read, pc: cell.read_pc, was_write: false });
        }
        cell.read = Epoch::default();
        cell.write = epoch;
        cell.write_pc = pc;
        return found;
    }
    if cell.readers != 0 {
        readers[cell.readers as usize - 1].read(clock, lane, epoch, pc);
        return found;
    }
    if cell.read.is_none()
        || cell.read.lane() == lane && cell.read.agent() == epoch.agent()
        || clock.after(cell.read, lane)
    {
        cell.read = epoch;
    } else if cell.read.agent() == epoch.agent() {
        // Several lanes of one warp: whoever writes next must come after all.
        cell.read =
            Epoch::new(epoch.agent(), super::clock::MANY, epoch.clock(), strong && cell.read.strong());
    } else {
        let place = free.pop().unwrap_or_else(|| {
            readers.push(Readers::default());
            readers.len() as u32
        });
        let list = &mut readers[place as usize - 1];
        list.clear();
        list.push((cell.read, cell.read_pc));
        list.push((epoch, pc));
        cell.readers = place;
    }
    cell.read_pc = pc;
    found
}
