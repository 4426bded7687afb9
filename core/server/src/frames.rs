//! Which calls each thread is in at this moment, readable from outside without stopping it.
//!
//! A direct call runs on its caller's thread and nobody can cut it short; but it can be named. Each
//! thread writes what it enters into a record of its own: a few plain stores, no clock. The watch
//! ([`crate::watch`]) reads all records now and then; what it finds unchanged after a second is slow.

use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use std::sync::{Mutex, PoisonError};

/// Calls nested deeper than this are made, but not shown.
const DEPTH: usize = 16;
/// Bytes of a method's name that are shown.
const NAME: usize = 40;

/// The record of one thread.
pub struct Thread {
    /// Nobody waits for the outermost call: its answer is an event, at its deadline at the latest.
    is_detached: AtomicBool,
    depth: AtomicUsize,
    sequence: AtomicU64,
    chains: AtomicU64,
    frames: [Frame; DEPTH],
}

struct Frame {
    /// Number of the call in this thread; 0 while the frame is being written.
    sequence: AtomicU64,
    server: AtomicU64,
    caller: AtomicU64,
    callee: AtomicU64,
    method: [AtomicU64; NAME / 8],
    method_length: AtomicUsize,
}

/// One call as it was seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which thread, and how deep: together with `sequence` the call's identity.
    pub place: (usize, usize),
    /// See `place`.
    pub sequence: u64,
    /// The [`zeph_abi::ServiceId`] that called.
    pub caller: u64,
    /// The slot that is called.
    pub callee: u32,
    /// The method's name, its first bytes.
    pub method: String,
}

static THREADS: Mutex<(Vec<&'static Thread>, Vec<&'static Thread>)> = Mutex::new((Vec::new(), Vec::new()));

/// Gives the record back for the next thread.
struct Lease(&'static Thread);

impl Lease {
    fn new() -> Self {
        let mut threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = threads.1.pop() {
            return Self(thread);
        }
        let number = threads.0.len() as u64;
        let thread: &'static Thread = Box::leak(Box::new(Thread {
            is_detached: AtomicBool::new(false),
            depth: AtomicUsize::new(0),
            sequence: AtomicU64::new(1),
            // Chains are numbered by thread, so that no two threads share a counter.
            chains: AtomicU64::new((number + 1) << 40),
            frames: std::array::from_fn(|_| Frame {
                sequence: AtomicU64::new(0),
                server: AtomicU64::new(0),
                caller: AtomicU64::new(0),
                callee: AtomicU64::new(0),
                method: std::array::from_fn(|_| AtomicU64::new(0)),
                method_length: AtomicUsize::new(0),
            }),
        }));
        threads.0.push(thread);
        Self(thread)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.depth.store(0, Relaxed);
        THREADS.lock().unwrap_or_else(PoisonError::into_inner).1.push(self.0);
    }
}

thread_local! {
    static THREAD: Lease = Lease::new();
}

/// While it lives, the thread is in the call it was made for.
pub struct Inside(&'static Thread);

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        let depth = self.0.depth.load(Relaxed);
        self.0.depth.store(depth.wrapping_sub(1), Release);
    }
}

/// Runs `f` with this thread's record. A thread that is just ending gets a record for this one time.
#[inline]
pub fn with<R>(f: impl FnOnce(&'static Thread) -> R) -> R {
    match THREAD.try_with(|lease| lease.0) {
        Ok(thread) => f(thread),
        Err(_) => {
            let lease = Lease::new();
            f(lease.0)
        }
    }
}

impl Thread {
    /// Runs `f`, whose outermost call nobody waits for.
    pub fn detached<R>(&self, f: impl FnOnce() -> R) -> R {
        self.is_detached.store(true, Relaxed);
        let result = f();
        self.is_detached.store(false, Relaxed);
        result
    }

    /// The number of a new chain of calls.
    #[inline]
    pub fn new_chain(&self) -> u64 {
        let chain = self.chains.load(Relaxed);
        self.chains.store(chain + 1, Relaxed);
        chain
    }

    /// The call that this thread, which asks, is in.
    pub fn innermost(&self, server: u64) -> Option<Seen> {
        let at = self.depth.load(Relaxed).checked_sub(1)?;
        self.frames.get(at)?.read(server, (0, at))
    }

    /// Notes a call that this thread now makes.
    #[inline]
    pub fn enter(&'static self, server: u64, caller: u64, callee: u32, method: &[u8]) -> Inside {
        let depth = self.depth.load(Relaxed);
        if let Some(frame) = self.frames.get(depth) {
            let sequence = self.sequence.load(Relaxed) + 1;
            self.sequence.store(sequence, Relaxed);
            frame.sequence.store(0, Relaxed);
            frame.server.store(server, Release);
            frame.caller.store(caller, Relaxed);
            frame.callee.store(u64::from(callee), Relaxed);
            frame.write_method(method);
            frame.sequence.store(sequence, Release);
        }
        self.depth.store(depth + 1, Release);
        Inside(self)
    }
}

impl Frame {
    #[inline]
    fn write_method(&self, method: &[u8]) {
        let length = method.len().min(NAME);
        let (words, rest) = method[..length].as_chunks::<8>();
        for (word, bytes) in self.method.iter().zip(words) {
            word.store(u64::from_le_bytes(*bytes), Relaxed);
        }
        if let Some(word) = self.method.get(words.len()) {
            // Byte by byte in a register: a copy that is read back in words would be waited for.
            let bytes = rest.iter().rev().fold(0, |bytes, byte| bytes << 8 | u64::from(*byte));
            word.store(bytes, Relaxed);
        }
        self.method_length.store(length, Relaxed);
    }

    fn read(&self, server: u64, place: (usize, usize)) -> Option<Seen> {
        let sequence = self.sequence.load(Acquire);
        let mut name = [0; NAME];
        for (word, bytes) in self.method.iter().zip(name.as_chunks_mut::<8>().0) {
            *bytes = word.load(Relaxed).to_le_bytes();
        }
        let length = self.method_length.load(Relaxed).min(NAME);
        let (caller, callee) = (self.caller.load(Relaxed), self.callee.load(Relaxed) as u32);
        let is_ours = self.server.load(Relaxed) == server;
        // Changed while we read: then it is not slow either.
        if sequence == 0 || !is_ours || self.sequence.load(Acquire) != sequence {
            return None;
        }
        let method = String::from_utf8_lossy(&name[..length]).into_owned();
        Some(Seen { place, sequence, caller, callee, method })
    }
}

/// Every call that some thread is in now and somebody waits for, for one server.
pub fn all(server: u64) -> Vec<Seen> {
    let threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner).0.clone();
    let mut seen = Vec::new();
    for (number, thread) in threads.iter().enumerate() {
        let depth = thread.depth.load(Acquire).min(DEPTH);
        let first = usize::from(thread.is_detached.load(Relaxed));
        seen.extend((first..depth).filter_map(|at| thread.frames[at].read(server, (number, at))));
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_seen_while_they_last() {
        let server = 77;
        let outer = with(|thread| thread.enter(server, 1, 2, b"greet/1"));
        let inner = with(|thread| thread.enter(server, 2, 3, &[b'x'; 60]));
        let seen = all(server);
        assert_eq!(seen.iter().map(|call| call.callee).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(seen[0].method, "greet/1");
        assert_eq!(seen[1].method.len(), NAME);
        drop(inner);
        assert_eq!(all(server).len(), 1);
        assert!(with(|thread| thread.detached(|| all(server))).is_empty(), "nobody waits for it");
        drop(outer);
        assert!(all(server).is_empty());
    }
}
