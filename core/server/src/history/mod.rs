//! What happened to each service and plugin: when, why, and with which build.
//!
//! The newest entries are in memory, where `history` and `why` read them. A thread of its own writes
//! each of them to disk, so that nobody waits for one, and the next start reads them again. A disk that
//! is full or slow costs lines there, which are counted, and nothing else.

mod writer;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Sender, TrySendError};
use serde::{Deserialize, Serialize};

use crate::loader::short;
pub use writer::Writer;

/// Entries that are kept in memory.
pub const CAPACITY: usize = 10_000;
/// The name in entries about the server itself.
pub const SERVER: &str = "zephserver";
/// Lines that wait for the disk; further ones are not written.
const WAITING: usize = 1024;
/// Letters of a cause; what is beyond them is cut off.
const LONGEST: usize = 2000;
/// How long the end of the server waits for its last lines.
const PATIENCE: Duration = Duration::from_secs(5);

/// What happened. On disk and in answers in small letters: `left_behind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A library is open, and its next instances are made of it.
    Loaded,
    /// A service is being made. The server: its libraries and settings are in order.
    Started,
    /// It serves. The server: all its services do.
    Ready,
    /// It has stopped, as it was asked to.
    Stopped,
    /// Its main returned without being asked to.
    Returned,
    /// It panicked.
    Crashed,
    /// It did not start, or its main ended with an error.
    Failed,
    /// It will be tried again, at `retry_at`.
    Waiting,
    /// A new build has taken over.
    Reloaded,
    /// A new build did not take over; the old one serves on.
    Refused,
    /// A new build had taken over, and the one before it serves again.
    RolledBack,
    /// It did not stop in time, and its thread was left alone.
    LeftBehind,
    /// It takes other settings.
    Applied,
    /// It is not known any more.
    Deleted,
}

impl What {
    /// True for what an author has to mend.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Crashed | Self::Failed | Self::LeftBehind)
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// To whom: a service's path, a library's name, or [`SERVER`].
    pub name: String,
    pub what: What,
    /// The build that it happened to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// The first letters of that build's hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// Why, or who asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// When it is tried again, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<u64>,
}

impl Entry {
    /// Something that happens now.
    pub fn new(name: impl Into<String>, what: What) -> Self {
        let at = milliseconds(SystemTime::now());
        Self { at, name: name.into(), what, generation: None, hash: None, cause: None, retry_at: None }
    }

    /// It happened to this build.
    pub fn of_build(self, generation: u32, hash: &str) -> Self {
        Self { generation: Some(generation), hash: Some(short(hash).into()), ..self }
    }

    /// It has this cause.
    pub fn because(self, cause: &str) -> Self {
        let cause = match cause.char_indices().nth(LONGEST) {
            None => cause.into(),
            Some((end, _)) => format!("{}…", &cause[..end]),
        };
        Self { cause: Some(cause), ..self }
    }

    /// True where NAME means it: the service itself, or the library that it belongs to.
    pub fn is_of(&self, name: &str) -> bool {
        self.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// A time as entries have it.
pub fn milliseconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The history of one server. Clones are the same history.
#[derive(Clone, Default)]
pub struct History(Arc<Past>);

#[derive(Default)]
struct Past {
    entries: Mutex<VecDeque<Entry>>,
    writer: OnceLock<Sender<Order>>,
    /// Lines that are not on disk.
    lost: AtomicU64,
    /// The disk is too slow at present, which was said.
    overrun: AtomicBool,
}

/// What the writer is told.
enum Order {
    Write(Entry),
    /// Everything before was the last; say when it is written.
    End(Sender<()>),
}

impl Past {
    fn entries(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, entry: Entry) {
        let mut entries = self.entries();
        if entries.len() >= CAPACITY {
            entries.pop_front();
        }
        entries.push_back(entry);
    }
}

impl History {
    /// Reads what the files in `folder` say. From now on entries are written there, by a thread that
    /// runs the writer. Without it a history is in memory only.
    pub fn open(&self, folder: &Path) -> Writer {
        writer::read(folder).into_iter().for_each(|entry| self.0.keep(entry));
        let (sender, orders) = crossbeam_channel::bounded(WAITING);
        let _ = self.0.writer.set(sender);
        Writer::new(folder, orders, self.0.clone())
    }

    /// Notes something. Never waits for a disk.
    pub fn record(&self, entry: Entry) {
        let past = &self.0;
        let order = past.writer.get().map(|writer| writer.try_send(Order::Write(entry.clone())));
        past.keep(entry);
        match order {
            Some(Ok(())) => past.overrun.store(false, Ordering::Relaxed),
            Some(Err(TrySendError::Full(_))) => {
                past.lost.fetch_add(1, Ordering::Relaxed);
                if !past.overrun.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "history: {WAITING} lines wait for the disk; further ones are not written"
                    );
                }
            }
            // After the end of the server nothing is written any more.
            Some(Err(TrySendError::Disconnected(_))) | None => {}
        }
    }

    /// Notes that the server starts, and whether the one before it had come to an end.
    pub fn server_starts(&self) {
        let (version, pid) = (env!("CARGO_PKG_VERSION"), std::process::id());
        let before = self.last(|entry| entry.name == SERVER).map(|entry| entry.what);
        let before = match before {
            Some(What::Started | What::Ready) => "; the server before it was killed, or died",
            _ => "",
        };
        let cause = format!("version {version}, pid {pid}{before}");
        self.record(Entry::new(SERVER, What::Started).because(&cause));
    }

    /// The newest entries that are wanted, the newest last.
    pub fn newest(&self, limit: usize, is_wanted: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let entries = self.0.entries();
        let mut found: Vec<Entry> =
            entries.iter().rev().filter(|entry| is_wanted(entry)).take(limit).cloned().collect();
        found.reverse();
        found
    }

    /// The newest of these entries.
    pub fn last(&self, is_wanted: impl Fn(&Entry) -> bool) -> Option<Entry> {
        self.newest(1, is_wanted).pop()
    }

    /// Lines that are not on disk.
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// Has everything written that was noted so far, and ends the writer. What comes later is in memory only.
    pub fn close(&self) {
        let Some(writer) = self.0.writer.get() else { return };
        let (done, written) = crossbeam_channel::bounded(1);
        let end = Instant::now() + PATIENCE;
        let is_written =
            writer.send_deadline(Order::End(done), end).is_ok() && written.recv_deadline(end).is_ok();
        if !is_written {
            tracing::warn!("history: its last lines were not written within {} s", PATIENCE.as_secs());
        }
    }
}

#[cfg(test)]
mod tests;
