//! For services that know the same as their like on other nodes: whom they have asked for it, and answers that
//! are too long for one event.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use zeph_contract::event::{Ask as Question, NodeChange};

use crate::{Code, Host, Result, tracing};

/// A question that is not answered is asked again after this time, then after twice as long each time.
const FIRST: Duration = Duration::from_secs(2);
/// The longest time between two of the same.
const LONGEST: Duration = Duration::from_secs(30);
/// Bytes of a part, as [`parts`] counts them. As JSON they are six times as many at the very most: so a part is an
/// event still.
const PART: usize = 128 * 1024;

/// Which nodes were asked and have not answered. A question may be lost, and so may its answer: whoever restarts
/// meanwhile knows nothing of it. Pure: what time it is says the caller.
#[derive(Clone, Debug, Default)]
pub struct Asks(BTreeMap<String, Ask>);

#[derive(Clone, Copy, Debug)]
struct Ask {
    due: Instant,
    /// What is waited after that.
    pause: Duration,
}

impl Asks {
    /// A node is asked now.
    pub fn ask(&mut self, node: &str, now: Instant) {
        self.0.insert(node.into(), Ask { due: now + FIRST, pause: FIRST * 2 });
    }

    /// A node is to be asked at once: [`Asks::due`] names it.
    pub fn ask_soon(&mut self, node: &str, now: Instant) {
        self.0.insert(node.into(), Ask { due: now, pause: FIRST });
    }

    /// A part of a node's answer is here, and more of it will follow: it has time again for the next one.
    pub fn hear(&mut self, node: &str, now: Instant) {
        if let Some(ask) = self.0.get_mut(node) {
            ask.due = now + FIRST;
        }
    }

    /// A node has answered, or is gone.
    pub fn forget(&mut self, node: &str) {
        self.0.remove(node);
    }

    /// True for a node that has not answered.
    pub fn is_open(&self, node: &str) -> bool {
        self.0.contains_key(node)
    }

    /// Who is to be asked now, once more or for the first time.
    pub fn due(&mut self, now: Instant) -> Vec<String> {
        let due = self.0.iter_mut().filter(|(_, ask)| ask.due <= now);
        let again = due.map(|(node, ask)| {
            ask.due = now + ask.pause;
            ask.pause = (ask.pause * 2).min(LONGEST);
            node.clone()
        });
        again.collect()
    }

    /// When somebody is to be asked next.
    pub fn next(&self) -> Option<Instant> {
        self.0.values().map(|ask| ask.due).min()
    }
}

/// Asks every node that comes, or of which something was lost, for what it knows, until it answers. For services to
/// which it does not matter in which order they learn that.
#[derive(Debug, Default)]
pub struct Inquiry {
    asks: Mutex<Asks>,
    /// The timer for who has not answered; 0: none.
    timer: AtomicU64,
    /// Something that cannot be read was mentioned.
    unreadable: OnceLock<()>,
}

impl Inquiry {
    fn asks(&self) -> MutexGuard<'_, Asks> {
        self.asks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened to a node: for each [`Event::Node`](crate::Event::Node). [`Inquiry::ask`] is to follow.
    pub fn node(&self, name: &str, change: NodeChange) {
        match change {
            NodeChange::Up | NodeChange::Gap => self.asks().ask_soon(name, Instant::now()),
            NodeChange::Down => self.asks().forget(name),
            // It will be told of a gap, and ask.
            NodeChange::Evicted => {}
        }
    }

    /// A part of a node's answer is here.
    pub fn heard(&self, node: &str, is_last: bool) {
        match is_last {
            true => self.asks().forget(node),
            false => self.asks().hear(node, Instant::now()),
        }
    }

    /// What another node has said, as JSON. None where it cannot be read: the log says so once.
    pub fn read<T: DeserializeOwned>(&self, event: &str, payload: &[u8]) -> Option<T> {
        let mention = |error: &serde_json::Error| {
            self.unreadable.get_or_init(|| tracing::warn!("{event} of another node cannot be read: {error}"));
        };
        serde_json::from_slice(payload).inspect_err(mention).ok()
    }

    /// True for the timer that says when somebody is to be asked again: [`Inquiry::ask`] is to follow. Who asks on
    /// another thread than that of its events takes every timer for it that it does not know.
    pub fn is_timer(&self, token: u64) -> bool {
        token == self.timer.load(Ordering::Relaxed)
    }

    /// Asks who is to be asked now, by telling `event`: a [`Question`] as JSON. For each of them it may wait up to 2 s
    /// for room, as [`Host::tell`]; so it looks each time whether it still `goes_on`, and leaves the rest for the next
    /// time that they are due. On one thread at a time. A timer that is lost, since nobody takes events for long, is
    /// set anew by asking once more.
    pub fn ask(&self, host: &Host, event: &str, goes_on: impl Fn() -> bool) -> Result<()> {
        let due = self.asks().due(Instant::now());
        let question = serde_json::to_vec(&Question { node: host.node()? })?;
        for node in due.into_iter().take_while(|_| goes_on()) {
            match host.tell(&node, event, &question) {
                Ok(()) => {}
                // There is no room for what the others are asked either: it is waited for once.
                Err(error) if error.code == Code::Busy => {
                    tracing::debug!("{node} and others are asked again later: {error}");
                    break;
                }
                // Or it is gone, and the news of that on its way.
                Err(error) => tracing::debug!("{node} is asked again later: {error}"),
            }
        }
        let next = self.asks().next();
        let timer = match next {
            Some(next) => host.after(next.saturating_duration_since(Instant::now()))?,
            None => 0,
        };
        let before = self.timer.swap(timer, Ordering::Relaxed);
        if before != 0 {
            // It may be due already: then nobody knows it.
            let _ = host.cancel(before);
        }
        Ok(())
    }
}

/// Answers a node that asked, with one event for each part. Where that fails it asks again.
pub fn answer(host: &Host, node: &str, event: &str, parts: impl IntoIterator<Item = Vec<u8>>) {
    for part in parts {
        if let Err(error) = host.tell(node, event, &part) {
            return tracing::debug!("{node} gets no answer: {error}");
        }
    }
}

/// Cuts a long answer into parts for one event each: one at least, and of 128 KiB as `weight` counts the bytes of an
/// item, where no single one has more.
pub fn parts<T>(items: impl IntoIterator<Item = T>, weight: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut parts = vec![Vec::new()];
    let mut size = 0;
    for item in items {
        let more = weight(&item);
        if size > 0 && size + more > PART {
            parts.push(Vec::new());
            size = 0;
        }
        size += more;
        if let Some(part) = parts.last_mut() {
            part.push(item);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_is_asked_again_and_less_and_less_often() {
        let start = Instant::now();
        let mut asks = Asks::default();
        asks.ask("a", start);
        asks.ask("b", start);
        assert_eq!((asks.due(start), asks.next()), (vec![], Some(start + FIRST)));
        asks.forget("b");
        assert!(asks.is_open("a") && !asks.is_open("b"));
        let mut times = Vec::new();
        let mut now = start;
        while times.len() < 7 {
            now += Duration::from_secs(1);
            if asks.due(now) == ["a"] {
                times.push(now.duration_since(start).as_secs());
            }
        }
        assert_eq!(times, [2, 6, 14, 30, 60, 90, 120]);
        asks.ask("a", now);
        assert_eq!(asks.next(), Some(now + FIRST), "asked anew it begins anew");
        asks.ask_soon("c", now);
        assert_eq!(asks.due(now), ["c"]);
        assert_eq!(asks.next(), Some(now + FIRST));
    }

    #[test]
    fn who_answers_in_parts_has_time_for_each() {
        let start = Instant::now();
        let mut asks = Asks::default();
        asks.ask("a", start);
        let mut now = start;
        for _ in 0..5 {
            now += FIRST - Duration::from_millis(1);
            assert!(asks.due(now).is_empty(), "the part before is not long ago");
            asks.hear("a", now);
        }
        assert_eq!(asks.next(), Some(now + FIRST));
        now += FIRST;
        assert_eq!(asks.due(now), ["a"], "no more came");
        assert_eq!(asks.next(), Some(now + FIRST * 2), "it counts as asked for the second time");
        asks.hear("stranger", now);
        assert!(!asks.is_open("stranger"), "nobody asked it");
        let inquiry = Inquiry::default();
        inquiry.node("a", NodeChange::Up);
        let first = inquiry.asks().next();
        inquiry.heard("a", false);
        assert!(inquiry.asks().next() > first && inquiry.asks().is_open("a"));
        inquiry.heard("a", true);
        assert!(!inquiry.asks().is_open("a"));
    }

    #[test]
    fn parts_are_bounded_and_lose_nothing() {
        assert_eq!(parts(Vec::<u8>::new(), |_| 1), [Vec::<u8>::new()], "nothing is an answer, too");
        let cut = parts(0..10_000u32, |_| 100);
        assert!(cut.len() > 1 && cut.iter().all(|part| part.len() * 100 <= PART));
        assert_eq!(cut.concat(), (0..10_000).collect::<Vec<u32>>());
        let large = parts([PART * 2, 1, PART, 1], |size| *size);
        assert_eq!(large, [vec![PART * 2], vec![1], vec![PART], vec![1]]);
    }
}
