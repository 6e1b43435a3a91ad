//! The paged cache against a naive model in which every sequence owns a vector of values.

use proptest::prelude::*;
use warploom::Error;
use warploom::cache::{Cache, PageCopy, RELEASED};

const SEQUENCES: usize = 4;

#[derive(Clone, Debug)]
enum Operation {
    Create,
    Drop { seq: usize },
    Append { seq: usize, n: usize },
    Truncate { seq: usize, len: usize },
    Fork { seq: usize, len: usize },
    Release { seq: usize, horizon: usize },
}

fn operation() -> impl Strategy<Value = Operation> {
    // One slot more than there is, and lengths beyond any sequence's: errors are part of the walk.
    let seq = 0..SEQUENCES + 1;
    prop_oneof![
        2 => Just(Operation::Create),
        1 => seq.clone().prop_map(|seq| Operation::Drop { seq }),
        8 => (seq.clone(), 0..14usize).prop_map(|(seq, n)| Operation::Append { seq, n }),
        4 => (seq.clone(), 0..40usize).prop_map(|(seq, len)| Operation::Truncate { seq, len }),
        3 => (seq.clone(), 0..40usize).prop_map(|(seq, len)| Operation::Fork { seq, len }),
        2 => (seq, 0..40usize).prop_map(|(seq, horizon)| Operation::Release { seq, horizon }),
    ]
}

/// What must be the case: per slot, the value of every position, `None` where it was released.
struct Model {
    sequences: Vec<Option<Vec<Option<u64>>>>,
}

impl Model {
    fn get(&self, seq: usize) -> Option<&Vec<Option<u64>>> {
        self.sequences.get(seq).and_then(Option::as_ref)
    }

    fn vacancy(&self) -> bool {
        self.sequences.iter().any(Option::is_none)
    }
}

/// Free pages, and per slot the length and the block table of a live sequence.
type Snapshot = (usize, Vec<Option<(usize, Vec<u32>)>>);

/// The cache with the pages a backend would own.
struct Device {
    cache: Cache,
    /// (pages, page_size)
    pages: Vec<Vec<u64>>,
    copies: Vec<PageCopy>,
    /// Source of values that never repeat.
    clock: u64,
}

impl Device {
    fn append(&mut self, seq: usize, n: usize) -> Result<Vec<u64>, Error> {
        self.copies.clear();
        self.cache.append(seq, n, &mut self.copies)?;
        assert!(self.copies.len() <= 1, "an append copies one page at most: {:?}", self.copies);
        for copy in &self.copies {
            self.pages[copy.to as usize] = self.pages[copy.from as usize].clone();
        }
        let (len, page_size) = (self.cache.len(seq).unwrap(), self.cache.page_size());
        let table = self.cache.table(seq).unwrap();
        Ok((len - n..len)
            .map(|p| {
                self.clock += 1;
                self.pages[table[p / page_size] as usize][p % page_size] = self.clock;
                self.clock
            })
            .collect())
    }

    fn read(&self, seq: usize) -> Vec<Option<u64>> {
        let table = self.cache.table(seq).unwrap();
        let page_size = self.cache.page_size();
        (0..self.cache.len(seq).unwrap())
            .map(|p| match table[p / page_size] {
                RELEASED => None,
                page => Some(self.pages[page as usize][p % page_size]),
            })
            .collect()
    }

    /// Everything that can be seen of the bookkeeping.
    fn snapshot(&self) -> Snapshot {
        let sequence = |seq| Some((self.cache.len(seq).ok()?, self.cache.table(seq).ok()?.to_vec()));
        (self.cache.free_pages(), (0..SEQUENCES).map(sequence).collect())
    }

    /// Pages an append needs, counted from the tables alone.
    fn pages_needed(&self, seq: usize, n: usize) -> usize {
        let (len, page_size) = (self.cache.len(seq).unwrap(), self.cache.page_size());
        let fresh = (len + n).div_ceil(page_size) - len.div_ceil(page_size);
        if n == 0 || len % page_size == 0 {
            return fresh;
        }
        let last = *self.cache.table(seq).unwrap().last().unwrap();
        let owners = (0..SEQUENCES).filter_map(|s| self.cache.table(s).ok()).filter(|t| t.contains(&last));
        fresh + usize::from(owners.count() > 1)
    }
}

/// Applies one operation to both and says whether the cache refused it.
fn apply(device: &mut Device, model: &mut Model, prefix: usize, operation: &Operation) -> Result<(), Error> {
    let page_size = device.cache.page_size();
    match *operation {
        Operation::Create => {
            let expected = model.vacancy();
            let created = device.cache.create();
            assert_eq!(created.is_ok(), expected);
            let slot = &mut model.sequences[created?];
            assert!(slot.is_none(), "a live slot was handed out again");
            *slot = Some(Vec::new());
        }
        Operation::Drop { seq } => {
            let dropped = device.cache.drop_sequence(seq);
            assert_eq!(dropped.is_ok(), model.get(seq).is_some());
            dropped?;
            model.sequences[seq] = None;
        }
        Operation::Append { seq, n } => {
            let expected = model.get(seq).is_some_and(|values| {
                values.len() + n <= device.cache.positions_per_sequence()
                    && device.pages_needed(seq, n) <= device.cache.free_pages()
            });
            let appended = device.append(seq, n);
            assert_eq!(appended.is_ok(), expected, "{appended:?}");
            let values = appended?;
            model.sequences[seq].as_mut().unwrap().extend(values.into_iter().map(Some));
        }
        Operation::Truncate { seq, len } => {
            let expected = model.get(seq).is_some_and(|values| {
                let first = values.iter().position(Option::is_none);
                let last = values.iter().rposition(Option::is_none);
                len <= values.len() && first.zip(last).is_none_or(|(first, last)| len <= first || len > last)
            });
            let truncated = device.cache.truncate(seq, len);
            assert_eq!(truncated.is_ok(), expected, "{truncated:?}");
            truncated?;
            model.sequences[seq].as_mut().unwrap().truncate(len);
        }
        Operation::Fork { seq, len } => {
            let readable = model
                .get(seq)
                .is_some_and(|values| len <= values.len() && values[..len].iter().all(Option::is_some));
            let forked = device.cache.fork(seq, len);
            assert_eq!(forked.is_ok(), readable && model.vacancy(), "{forked:?}");
            let fork = forked?;
            let values = model.get(seq).unwrap()[..len].to_vec();
            assert!(model.sequences[fork].is_none(), "a live slot was handed out again");
            model.sequences[fork] = Some(values);
        }
        Operation::Release { seq, horizon } => {
            let released = device.cache.release(seq, prefix, horizon);
            assert_eq!(released.is_ok(), model.get(seq).is_some());
            released?;
            let values = model.sequences[seq].as_mut().unwrap();
            for page in values.chunks_exact_mut(page_size).enumerate() {
                let positions = page.0 * page_size..(page.0 + 1) * page_size;
                if positions.start >= prefix && positions.end <= horizon {
                    page.1.fill(None);
                }
            }
            let before = device.snapshot();
            device.cache.release(seq, prefix, horizon)?;
            assert_eq!(device.snapshot(), before, "a second release changed something");
        }
    }
    Ok(())
}

/// Sequences read as the model says, and every page is either free or named by a table.
fn check(device: &Device, model: &Model) {
    let mut used = std::collections::BTreeSet::new();
    for (seq, values) in model.sequences.iter().enumerate() {
        match values {
            Some(values) => {
                assert_eq!(&device.read(seq), values, "sequence {seq}");
                used.extend(
                    device.cache.table(seq).unwrap().iter().copied().filter(|&page| page != RELEASED),
                );
            }
            None => assert!(matches!(device.cache.table(seq), Err(Error::Argument { .. }))),
        }
    }
    assert_eq!(
        used.len() + device.cache.free_pages(),
        device.cache.pages(),
        "a page was leaked or freed twice"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_sequence_of_operations_equals_the_naive_model(
        (pages, page_size, blocks, prefix) in (1..24usize, 1..6usize, 1..10usize, 0..12usize),
        operations in prop::collection::vec(operation(), 1..80),
    ) {
        let mut device = Device {
            cache: Cache::new(pages, page_size, SEQUENCES, blocks).unwrap(),
            pages: vec![vec![0; page_size]; pages],
            copies: Vec::with_capacity(1),
            clock: 0,
        };
        let mut model = Model { sequences: vec![None; SEQUENCES] };
        for operation in &operations {
            let before = device.snapshot();
            if apply(&mut device, &mut model, prefix, operation).is_err() {
                prop_assert_eq!(device.snapshot(), before, "a failed call changed something");
            }
            check(&device, &model);
        }
        for seq in 0..SEQUENCES {
            if model.get(seq).is_some() {
                device.cache.drop_sequence(seq).unwrap();
            }
        }
        prop_assert_eq!(device.cache.free_pages(), pages);
    }
}

#[test]
fn a_shared_page_is_copied_once_and_by_the_first_writer() {
    let mut cache = Cache::new(8, 4, 2, 4).unwrap();
    let mut copies = Vec::new();
    let first = cache.create().unwrap();
    cache.append(first, 6, &mut copies).unwrap();
    let second = cache.fork(first, 5).unwrap();
    assert_eq!(cache.table(first).unwrap(), cache.table(second).unwrap());
    assert_eq!(cache.free_pages(), 6);

    let shared = cache.table(first).unwrap()[1];
    cache.append(first, 1, &mut copies).unwrap();
    assert_eq!(copies, [PageCopy { from: shared, to: cache.table(first).unwrap()[1] }]);
    assert_eq!(cache.table(second).unwrap()[1], shared);
    // The page that was shared is the second's alone now; the full page before it stays shared.
    cache.append(second, 1, &mut copies).unwrap();
    assert_eq!(copies.len(), 1);
    assert_eq!(cache.table(first).unwrap()[0], cache.table(second).unwrap()[0]);
    assert_eq!(cache.free_pages(), 5);
}

#[test]
fn a_window_bounds_the_pages_in_use() {
    let (window, page_size) = (32, 8);
    let mut cache = Cache::new(window / page_size + 2, page_size, 1, 1 << 20).unwrap();
    let mut copies = Vec::new();
    let seq = cache.create().unwrap();
    for position in 0..10_000usize {
        cache.append(seq, 1, &mut copies).unwrap();
        cache.release(seq, 5, (position + 2).saturating_sub(window)).unwrap();
    }
    let table = cache.table(seq).unwrap();
    assert_ne!(table[0], RELEASED, "the page of the prefix is kept");
    assert!(table[1..10_000 / page_size - window / page_size].iter().all(|&page| page == RELEASED));
    // Back to where the window is whole, but not into what was released.
    cache.truncate(seq, 9_999).unwrap();
    assert!(matches!(cache.truncate(seq, 5_000), Err(Error::Argument { .. })));
    assert!(matches!(cache.fork(seq, 9_000), Err(Error::Argument { .. })));
    cache.truncate(seq, 8).unwrap();
    assert_eq!(cache.free_pages(), cache.pages() - 1);
}

#[test]
fn running_out_says_what_was_needed_and_what_is_free() {
    let mut copies = Vec::new();
    let mut cache = Cache::new(3, 16, 2, 4).unwrap();
    let seq = cache.create().unwrap();
    cache.append(seq, 20, &mut copies).unwrap();
    let message = cache.append(seq, 40, &mut copies).unwrap_err().to_string();
    assert!(
        message.contains("2 more pages of 16 positions") && message.contains("1 of 3 are free"),
        "{message}"
    );
    let message = cache.append(seq, 45, &mut copies).unwrap_err().to_string();
    assert!(message.contains("65 positions") && message.contains("64 at most"), "{message}");
    assert!(matches!(cache.append(seq, usize::MAX, &mut copies), Err(Error::Capacity { .. })));
    assert_eq!((cache.len(seq).unwrap(), cache.free_pages()), (20, 1));
}

#[test]
fn absurd_sizes_are_refused() {
    for (pages, page_size, sequences, blocks) in [
        (0, 1, 1, 1),
        (1, 0, 1, 1),
        (1, 1, 0, 1),
        (1, 1, 1, 0),
        (usize::MAX, 1, 1, 1),
        (u32::MAX as usize, 1, 1, 1),
    ] {
        let error = Cache::new(pages, page_size, sequences, blocks).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error:?}");
    }
    let most = u32::MAX as usize - 1;
    let error = Cache::new(1, 1, most, most).unwrap_err();
    assert!(matches!(error, Error::Capacity { .. }), "{error:?}");
}
