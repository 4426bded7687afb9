//! The events of the cluster that went by lately, for people who watch: `zephserver events`.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use zeph_contract::event::NodeChange;

/// Events that are kept.
const CAPACITY: usize = 1000;
/// Bytes of a payload that are kept.
const SHOWN: usize = 200;

/// One event, or a change of the cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Counted from 1 in this server.
    number: u64,
    /// Milliseconds since 1970.
    at: u64,
    /// Who said it, or whom it is about.
    node: String,
    #[serde(flatten)]
    what: What,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
#[serde(tag = "what")]
enum What {
    Said {
        event: String,
        /// Bytes of the payload.
        bytes: usize,
        /// Its beginning.
        payload: String,
    },
    Up,
    Down,
    Gap,
    Evicted,
}

/// The newest events.
#[derive(Default)]
pub struct Recent(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    entries: VecDeque<Entry>,
    /// All that ever went by.
    count: u64,
}

/// Some of the newest events.
#[derive(Debug, Serialize)]
pub struct Page {
    entries: Vec<Entry>,
    /// The number of the last event of all.
    last: u64,
    /// Events between what was asked for and the first that is still kept.
    missed: u64,
}

impl Recent {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, node: &str, what: What) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let mut kept = self.kept();
        kept.count += 1;
        if kept.entries.len() >= CAPACITY {
            kept.entries.pop_front();
        }
        let number = kept.count;
        kept.entries.push_back(Entry { number, at, node: node.into(), what });
    }

    /// An event was said.
    pub fn add(&self, node: &str, event: &str, payload: &[u8]) {
        let shown = &payload[..payload.len().min(SHOWN)];
        let payload_shown = String::from_utf8_lossy(shown).into_owned();
        self.put(node, What::Said { event: event.into(), bytes: payload.len(), payload: payload_shown });
    }

    /// Something happened to a node.
    pub fn add_change(&self, node: &str, change: NodeChange) {
        let what = match change {
            NodeChange::Up => What::Up,
            NodeChange::Down => What::Down,
            NodeChange::Gap => What::Gap,
            NodeChange::Evicted => What::Evicted,
        };
        self.put(node, what);
    }

    /// The newest `limit` of those after a number.
    pub fn page(&self, after: u64, limit: usize) -> Page {
        let kept = self.kept();
        let first = kept.entries.front().map_or(kept.count + 1, |entry| entry.number);
        let missed = first.saturating_sub(after.saturating_add(1));
        let newer = kept.entries.iter().filter(|entry| entry.number > after);
        let skip = newer.clone().count().saturating_sub(limit);
        Page { entries: newer.skip(skip).cloned().collect(), last: kept.count, missed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_follows_gets_each_event_once_or_is_told_how_many_it_missed() {
        let recent = Recent::default();
        recent.add("a", "chat", b"{\"x\":1}");
        recent.add_change("b", NodeChange::Down);
        let page = serde_json::to_value(recent.page(0, 10)).unwrap();
        assert_eq!((&page["last"], &page["missed"]), (&2.into(), &0.into()));
        assert_eq!(page["entries"][0]["payload"], "{\"x\":1}");
        assert_eq!(page["entries"][1]["what"], "down");
        for number in 0..CAPACITY {
            recent.add("a", "chat", &vec![b'x'; number]);
        }
        let page = recent.page(2, CAPACITY);
        assert_eq!((page.entries.len(), page.missed, page.last), (CAPACITY, 0, CAPACITY as u64 + 2));
        let page = serde_json::to_value(recent.page(0, 3)).unwrap();
        assert_eq!((&page["missed"], page["entries"].as_array().map(Vec::len)), (&2.into(), Some(3)));
        assert_eq!(page["entries"][2]["bytes"], CAPACITY - 1);
        assert!(page["entries"][2]["payload"].as_str().unwrap().len() == SHOWN);
        // Whatever number somebody asks with.
        let page = recent.page(u64::MAX, 3);
        assert_eq!((page.entries.len(), page.missed), (0, 0));
    }
}
