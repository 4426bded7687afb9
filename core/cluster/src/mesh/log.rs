//! What this node has said and others do not have yet: one copy for all of them. Pure.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::frame;

/// Events that are kept at most.
pub const EVENTS: usize = 65_536;
/// Bytes of them at most.
pub const BYTES: usize = 64 * 1024 * 1024;

/// How much a log keeps.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Events.
    pub events: usize,
    /// Bytes of them.
    pub bytes: usize,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { events: EVENTS, bytes: BYTES }
    }
}

/// One event.
#[derive(Debug)]
pub struct Entry {
    /// As it goes out.
    pub frame: Box<[u8]>,
    /// For whom; None: for all.
    pub to: Option<Arc<str>>,
    /// When it came in.
    pub at: Instant,
}

/// Events in the order they were said, numbered from 1.
#[derive(Debug)]
pub struct Log {
    /// The number of the first that is kept.
    first: u64,
    entries: VecDeque<Entry>,
    bytes: usize,
    capacity: Capacity,
}

impl Log {
    /// An empty one.
    pub fn new(capacity: Capacity) -> Self {
        Self { first: 1, entries: VecDeque::new(), bytes: 0, capacity }
    }

    /// The number of the first event that is kept, or will be.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The number of the last event; 0: nothing was said.
    pub fn last(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Events that are kept.
    pub fn events(&self) -> usize {
        self.entries.len()
    }

    /// True where one more of this size has its place. Alone, each has.
    pub fn has_room(&self, size: usize) -> bool {
        self.entries.is_empty()
            || self.entries.len() < self.capacity.events && self.bytes + size <= self.capacity.bytes
    }

    /// An event by its number, while it is kept.
    pub fn get(&self, seq: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(seq.checked_sub(self.first)?).ok()?)
    }

    /// Adds an event.
    pub fn push(&mut self, event: &str, payload: &[u8], to: Option<Arc<str>>, at: Instant) -> u64 {
        let seq = self.last() + 1;
        let frame = frame::event(seq, event, payload).into_boxed_slice();
        self.bytes += frame.len();
        self.entries.push_back(Entry { frame, to, at });
        seq
    }

    /// Forgets the first one.
    pub fn drop_first(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.frame.len();
            self.first += 1;
        }
    }

    /// Forgets everything up to an event.
    pub fn forget(&mut self, up_to: u64) {
        while self.first <= up_to && !self.entries.is_empty() {
            self.drop_first();
        }
    }
}
