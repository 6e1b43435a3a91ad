//! The rows of a pass in device memory, as every kernel of it reads them.

use std::{ops::Range, sync::Arc};

use super::SLICE;
use crate::{
    backend::{Angles, Heads, Row, RowClass},
    cache::Cache,
    driver::{Buffer, Driver, Stream, View},
    error::Result,
};

/// Numbers that begin at multiples of 16 bytes.
pub(super) fn padded(count: usize) -> usize {
    count.next_multiple_of(4)
}

/// i32 numbers somewhere in device memory.
#[derive(Clone)]
pub(super) struct Place {
    pub memory: Arc<Buffer>,
    /// In bytes.
    pub range: Range<usize>,
}

impl Place {
    /// `count` numbers from number `begin` on.
    pub fn new(memory: &Arc<Buffer>, begin: usize, count: usize) -> Self {
        Place { memory: memory.clone(), range: 4 * begin..4 * (begin + count) }
    }

    pub fn view(&self) -> View<'_> {
        self.memory.view().slice(self.range.clone())
    }

    /// Some of the numbers.
    pub fn view_of(&self, numbers: Range<usize>) -> View<'_> {
        self.view().slice(4 * numbers.start..4 * numbers.end)
    }

    /// `count` of the numbers, from number `begin` on.
    pub fn part(&self, begin: usize, count: usize) -> Place {
        let first = self.range.start + 4 * begin;
        debug_assert!(first + 4 * count <= self.range.end, "{begin} and {count} of {:?}", self.range);
        Place { memory: self.memory.clone(), range: first..first + 4 * count }
    }
}

/// The frequencies that rows are rotated by, f32 `[padded / 2]`, and the magnitude.
pub(super) struct Rotary {
    pub frequencies: Buffer,
    pub magnitude: f32,
}

impl Rotary {
    pub fn new(stream: &Stream, heads: Heads, angles: &Angles) -> Result<Arc<Self>> {
        let mut frequencies = angles.frequencies().to_vec();
        frequencies.resize(heads.padded / 2, 0.0);
        let frequencies = Buffer::from_slice(stream, &frequencies)?;
        Ok(Arc::new(Rotary { frequencies, magnitude: angles.magnitude() }))
    }
}

/// The rows of a pass. Rows of one sequence that follow each other are a group, which attention computes together.
pub struct PassRows {
    /// `[rows]`
    pub(super) tokens: Place,
    /// `[rows]`
    pub(super) positions: Place,
    /// `[rows]`: rows of the page table.
    pub(super) slots: Place,
    /// `[groups + 1]`: first rows of the groups.
    pub(super) offsets: Place,
    /// `[groups]`: keys of the groups' sequences.
    pub(super) lengths: Place,
    /// `[groups]`: rows of the page table.
    pub(super) group_slots: Place,
    pub(super) rotary: Arc<Rotary>,
    pub(super) count: usize,
    pub(super) groups: usize,
    /// Most rows of a group.
    pub(super) group_rows: usize,
    /// Most keys of a group; graphs have it in them, so it is one of few numbers.
    pub(super) max_keys: usize,
    /// Whether all rows may be dead: a draft that ends by its confidence.
    pub(super) may_be_dead: bool,
    pub(super) class: RowClass,
    /// What is uploaded, where the host makes the rows.
    host: Vec<i32>,
    most: usize,
}

impl PassRows {
    /// Room for `rows` rows that the host makes.
    pub(super) fn new(driver: &Arc<dyn Driver>, rows: usize, rotary: Arc<Rotary>) -> Result<Self> {
        let part = padded(rows + 1);
        let memory = Arc::new(Buffer::new(driver, 4 * 6 * part)?);
        let place = |index| Place::new(&memory, index * part, part);
        Ok(PassRows {
            tokens: place(0),
            positions: place(1),
            slots: place(2),
            offsets: place(3),
            lengths: place(4),
            group_slots: place(5),
            rotary,
            count: 0,
            groups: 0,
            group_rows: 0,
            max_keys: 0,
            may_be_dead: false,
            class: RowClass::Decode,
            host: vec![0; 6 * part],
            most: part,
        })
    }

    /// Rows that kernels make, over places that others own.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn at(
        tokens: Place,
        positions: Place,
        slots: Place,
        offsets: Place,
        lengths: Place,
        group_slots: Place,
        rotary: Arc<Rotary>,
    ) -> Self {
        PassRows {
            tokens,
            positions,
            slots,
            offsets,
            lengths,
            group_slots,
            rotary,
            count: 0,
            groups: 0,
            group_rows: 0,
            max_keys: 0,
            may_be_dead: false,
            class: RowClass::Decode,
            host: vec![],
            most: 0,
        }
    }

    /// Makes `list` the rows.
    pub(super) fn set(
        &mut self,
        stream: &Stream,
        list: &[Row],
        class: RowClass,
        cache: &Cache,
    ) -> Result<()> {
        let most = self.most;
        let slice = if class == RowClass::Decode { SLICE } else { usize::MAX };
        self.class = class;
        let [tokens, positions, slots, offsets, lengths, group_slots] =
            [0, 1, 2, 3, 4, 5].map(|index| index * most);
        (self.count, self.groups, self.group_rows, self.max_keys) = (list.len(), 0, 0, 0);
        let mut begun = 0;
        for (i, row) in list.iter().enumerate() {
            self.host[tokens + i] = row.token as i32;
            self.host[positions + i] = row.position as i32;
            self.host[slots + i] = row.sequence as i32;
            if i == 0 || list[i - 1].sequence != row.sequence || i - begun == slice {
                let keys = cache.len(row.sequence)?;
                self.host[offsets + self.groups] = i as i32;
                self.host[lengths + self.groups] = keys as i32;
                self.max_keys = self.max_keys.max(keys.next_power_of_two());
                self.host[group_slots + self.groups] = row.sequence as i32;
                self.groups += 1;
                begun = i;
            }
            self.group_rows = self.group_rows.max(i + 1 - begun);
        }
        self.host[offsets + self.groups] = list.len() as i32;
        stream.upload(&mut self.tokens.memory.view_to_share(), &self.host)
    }
}
