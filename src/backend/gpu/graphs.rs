//! Rounds as graphs: one call of the driver where there were hundreds of launches.
//!
//! Start from [`Graphs`]. A round whose shape comes the second time is recorded, and replayed from the third on: a shape that comes once,
//! such as that of the last round before a limit, is not worth a graph. What differs from round to round of a shape is in device memory:
//! plans, rows, lengths, page tables.

use super::Gpu;
use crate::{
    backend::{Recordings, RoundShape},
    driver::Graph,
    error::Result,
};

/// Most graphs at a time. A sequence by itself has one for each draft length and exit layer that its policy takes to.
const MOST: usize = 32;
/// Shapes that are remembered after they came once.
const SEEN: usize = 64;

/// The recorded rounds of a generator, and the shapes that may come again.
pub(super) struct Graphs {
    on: bool,
    recorded: Vec<Recorded>,
    /// Shapes that came once; the newest takes the place of the oldest.
    seen: Vec<Vec<RoundShape>>,
    next_seen: usize,
    /// Of the backend's scratch when the graphs were recorded.
    generation: u64,
    /// Counts rounds, so that the graph that has not been used the longest is known.
    clock: u64,
    replayed: u64,
}

struct Recorded {
    shape: Vec<RoundShape>,
    graph: Graph,
    used: u64,
}

impl Graphs {
    pub fn new(on: bool) -> Self {
        Graphs { on, recorded: vec![], seen: vec![], next_seen: 0, generation: 0, clock: 0, replayed: 0 }
    }

    /// Drops all graphs: something that they address is to go.
    pub fn clear(&mut self) {
        self.recorded.clear();
    }

    /// Runs the graph of a shape, if there is one.
    ///
    /// # Safety
    /// But for the backend's scratch, what the recorded launches address must still be there.
    pub unsafe fn replay(&mut self, gpu: &Gpu, shape: &[RoundShape]) -> Result<bool> {
        let generation = gpu.scratch().generation;
        if generation != self.generation {
            self.clear();
            self.generation = generation;
        }
        self.clock += 1;
        let Some(found) = self.recorded.iter_mut().find(|recorded| recorded.shape == shape) else {
            return Ok(false);
        };
        found.used = self.clock;
        self.replayed += 1;
        // SAFETY: the scratch has not been replaced, and the caller's promise.
        unsafe { gpu.stream.launch_graph(&found.graph)? };
        Ok(true)
    }

    /// Begins to record if the shape has been seen.
    pub fn begin(&mut self, gpu: &Gpu, shape: &[RoundShape]) -> Result<bool> {
        if !self.on {
            return Ok(false);
        }
        if let Some(at) = self.seen.iter().position(|seen| seen == shape) {
            self.seen[at].clear();
            self.on = gpu.stream.begin_capture().is_ok();
            return Ok(self.on);
        }
        if self.seen.len() < SEEN {
            self.seen.push(shape.to_vec());
        } else {
            let oldest = &mut self.seen[self.next_seen];
            oldest.clear();
            oldest.extend_from_slice(shape);
            self.next_seen = (self.next_seen + 1) % SEEN;
        }
        Ok(false)
    }

    /// Ends what [`Graphs::begin`] began, and runs it if it is whole. After a recording that failed there is no other.
    ///
    /// # Safety
    /// As [`Graphs::replay`].
    pub unsafe fn end(&mut self, gpu: &Gpu, shape: &[RoundShape], whole: bool) -> Result<bool> {
        let (true, Ok(graph)) = (whole, gpu.stream.end_capture()) else {
            self.on = false;
            return Ok(false);
        };
        // SAFETY: it has just been recorded, and the caller's promise.
        unsafe { gpu.stream.launch_graph(&graph)? };
        if self.recorded.len() == MOST
            && let Some(oldest) = (0..MOST).min_by_key(|at| self.recorded[*at].used)
        {
            self.recorded.swap_remove(oldest);
        }
        self.recorded.push(Recorded { shape: shape.to_vec(), graph, used: self.clock });
        Ok(true)
    }

    pub fn recordings(&self) -> Recordings {
        Recordings {
            graphs: self.recorded.len(),
            most: MOST,
            nodes: self.recorded.iter().map(|recorded| recorded.graph.nodes()).sum(),
            bytes: self.recorded.iter().map(|recorded| recorded.graph.bytes()).sum(),
            replayed: self.replayed,
        }
    }
}
