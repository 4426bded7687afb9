//! What this node said and the broker has not confirmed yet.
//!
//! Those who say put in and wait for room, one publisher reads in order and takes out what is confirmed. Numbers
//! are given here, so that the order of the numbers is the order in the log.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::wire::{Kind, Part};
use crate::{Error, SAY_TIMEOUT};

/// Pieces that may wait.
const PIECES: usize = 65_536;
/// Bytes of them.
const BYTES: usize = 64 * 1024 * 1024;

struct Entry {
    part: Part,
    is_confirmed: bool,
}

#[derive(Default)]
struct State {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The number of the first entry.
    first: u64,
    /// The number of the last event.
    said: u64,
    has_closed: bool,
}

/// How a log stands.
pub struct Standing {
    pub said: u64,
    pub pieces: usize,
    pub bytes: usize,
}

pub struct Log {
    state: Mutex<State>,
    /// Something was taken out, or the log was closed.
    taken: Condvar,
    /// Something was put in.
    filled: Notify,
}

impl Log {
    /// A log whose first piece is the hello of this life, with number 0.
    pub fn new() -> Self {
        let mut state = State::default();
        state.add(Part { kind: Kind::Hello, body: bytes::Bytes::new() });
        Self { state: Mutex::new(state), taken: Condvar::new(), filled: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts all pieces of an event in, one after another. Waits for room, up to [`SAY_TIMEOUT`].
    pub fn push(&self, parts: Vec<Part>) -> Result<(), Error> {
        let bytes: usize = parts.iter().map(|part| part.body.len()).sum();
        let is_full = |state: &mut State| !state.has_closed && !state.has_room(parts.len(), bytes);
        let waited = self.taken.wait_timeout_while(self.lock(), SAY_TIMEOUT, is_full);
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.has_closed {
            return Err(Error::Closed);
        }
        if waited.timed_out() {
            return Err(Error::Busy);
        }
        parts.into_iter().for_each(|part| state.add(part));
        state.said = state.first + state.entries.len() as u64 - 1;
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Nothing more is said, and the last piece is the farewell. False: it was closed before.
    pub fn close(&self) -> bool {
        let is_first = self.shut(|state| {
            // There is always room for this one.
            state.add(Part { kind: Kind::Bye, body: bytes::Bytes::new() });
        });
        self.filled.notify_one();
        is_first
    }

    /// Nothing more is said, not even farewell.
    pub fn abandon(&self) {
        self.shut(|_| {});
    }

    fn shut(&self, last: impl FnOnce(&mut State)) -> bool {
        let mut state = self.lock();
        if state.has_closed {
            return false;
        }
        last(&mut state);
        state.has_closed = true;
        drop(state);
        self.taken.notify_all();
        true
    }

    /// Waits until the broker has everything. Only after [`Log::close`].
    pub fn drain(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut state = self.lock();
        while !state.entries.is_empty() {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return };
            state = self.taken.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub fn has_closed(&self) -> bool {
        self.lock().has_closed
    }

    /// The number of the first piece that is not confirmed, or will be the next.
    pub fn first(&self) -> u64 {
        self.lock().first
    }

    /// Waits for pieces from a number on, and gives up to `most` of them.
    pub async fn from(&self, seq: u64, most: usize) -> Vec<Part> {
        loop {
            let filled = self.filled.notified();
            tokio::pin!(filled);
            filled.as_mut().enable();
            let parts = self.lock().from(seq, most);
            if !parts.is_empty() {
                return parts;
            }
            filled.await;
        }
    }

    /// The broker has this piece.
    pub fn confirm(&self, seq: u64) {
        let mut state = self.lock();
        state.confirm(seq);
        drop(state);
        self.taken.notify_all();
    }

    pub fn standing(&self) -> Standing {
        let state = self.lock();
        Standing { said: state.said, pieces: state.entries.len(), bytes: state.bytes }
    }
}

impl State {
    fn has_room(&self, pieces: usize, bytes: usize) -> bool {
        self.entries.len() + pieces <= PIECES && self.bytes + bytes <= BYTES
    }

    fn add(&mut self, part: Part) {
        self.bytes += part.body.len();
        self.entries.push_back(Entry { part, is_confirmed: false });
    }

    fn from(&self, seq: u64, most: usize) -> Vec<Part> {
        let skip = usize::try_from(seq.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.entries.iter().skip(skip).take(most).map(|entry| entry.part.clone()).collect()
    }

    fn confirm(&mut self, seq: u64) {
        let index = seq.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        if let Some(entry) = index.and_then(|index| self.entries.get_mut(index)) {
            entry.is_confirmed = true;
        }
        while self.entries.front().is_some_and(|entry| entry.is_confirmed) {
            let entry = self.entries.pop_front();
            self.bytes -= entry.map_or(0, |entry| entry.part.body.len());
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::wire::parts;

    #[test]
    fn what_is_confirmed_out_of_order_leaves_in_order() {
        let log = Log::new();
        log.push(parts("", "e", b"1")).unwrap();
        log.push(parts("", "e", b"2")).unwrap();
        assert_eq!(log.first(), 0);
        log.confirm(1);
        log.confirm(1);
        log.confirm(77);
        assert_eq!((log.first(), log.standing().pieces), (0, 3));
        log.confirm(0);
        assert_eq!((log.first(), log.standing().pieces, log.standing().said), (2, 1, 2));
        log.confirm(2);
        log.confirm(2);
        assert_eq!((log.first(), log.standing().bytes, log.standing().said), (3, 0, 2));
    }

    #[test]
    fn a_full_log_waits_and_then_refuses_whole_events() {
        let log = Log::new();
        let large = vec![0; 1024 * 1000];
        let mut count = 0;
        let refused = loop {
            match log.push(parts("", "e", &large)) {
                Ok(()) => count += 1,
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused, Error::Busy);
        assert_eq!(count, BYTES / large.len());
        let before = log.standing();
        assert_eq!(before.pieces, count * 16 + 1);
        // The room of one event, and somebody who waits for it.
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| log.push(parts("", "e", &large)));
            (0..17).for_each(|seq| log.confirm(seq));
            assert_eq!(waiting.join().unwrap(), Ok(()));
        });
        assert_eq!(log.standing().said, before.said + 16);
    }

    #[test]
    fn a_closed_log_takes_nothing_and_says_farewell() {
        let log = Log::new();
        log.push(parts("", "e", b"1")).unwrap();
        assert!(log.close());
        assert!(!log.close());
        assert_eq!(log.push(parts("", "e", b"2")), Err(Error::Closed));
        let kinds: Vec<_> = log.lock().from(0, 10).iter().map(|part| part.kind).collect();
        assert_eq!(kinds, [Kind::Hello, Kind::Event, Kind::Bye]);
        log.drain(Duration::from_millis(1));
        (0..3).for_each(|seq| log.confirm(seq));
        log.drain(Duration::from_secs(3600));
    }
}
