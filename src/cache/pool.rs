//! The pages themselves: who is free, and how often each of the others is referenced.

/// Reference counts of a fixed number of pages, and a stack of the free ones. Allocates at construction only.
#[derive(Debug)]
pub(super) struct Pool {
    /// (pages): how many block tables name the page; 0 for a free page.
    references: Vec<u32>,
    /// Free pages, the next one to hand out last. Its capacity is the number of pages.
    free: Vec<u32>,
}

impl Pool {
    /// A pool of free pages `0..pages`, or `None` where memory for the bookkeeping is lacking.
    pub(super) fn new(pages: u32) -> Option<Self> {
        let (mut references, mut free) = (Vec::new(), Vec::new());
        references.try_reserve_exact(pages as usize).ok()?;
        free.try_reserve_exact(pages as usize).ok()?;
        references.resize(pages as usize, 0);
        free.extend((0..pages).rev());
        Some(Pool { references, free })
    }

    pub(super) fn pages(&self) -> usize {
        self.references.len()
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Hands out a free page with one reference. The caller has checked that there is one.
    pub(super) fn take(&mut self) -> u32 {
        let page = self.free.pop().expect("the number of free pages was checked before taking one");
        self.references[page as usize] = 1;
        page
    }

    /// One more block table names `page`.
    pub(super) fn share(&mut self, page: u32) {
        self.references[page as usize] += 1;
    }

    /// Whether a write to `page` would be seen through another block table.
    pub(super) fn is_shared(&self, page: u32) -> bool {
        self.references[page as usize] > 1
    }

    /// One block table less names `page`; the last one frees it.
    pub(super) fn give(&mut self, page: u32) {
        let references = &mut self.references[page as usize];
        *references -= 1;
        if *references == 0 {
            self.free.push(page);
        }
    }
}
