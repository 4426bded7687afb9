//! What is told to other nodes one by one: on a thread of its own, since a node that takes nothing may hold that up for
//! seconds, and the thread that events come on brings the peers their answers.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Nodes that wait for an answer at most. They ask again.
const MOST: usize = 1024;

/// What is to be done.
#[derive(Default)]
pub struct Post {
    state: Mutex<State>,
    changed: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Perhaps somebody is to be asked.
    ask: bool,
    /// Nodes that have asked: each is answered once, however often it did.
    answer: BTreeSet<String>,
    has_ended: bool,
}

/// What the thread does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Duty {
    Ask,
    Answer(String),
}

impl Post {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody is to be asked, now or later.
    pub fn ask(&self) {
        self.state().ask = true;
        self.changed.notify_one();
    }

    /// A node has asked. False: so many have that this one must ask again, which is counted.
    pub fn answer(&self, node: String) -> bool {
        let mut state = self.state();
        let has_room = state.answer.len() < MOST || state.answer.contains(&node);
        if has_room {
            state.answer.insert(node);
            self.changed.notify_one();
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }

    /// Questions of other nodes for which there was no room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// From now on there is somebody who does what is to be done, until what this answers is dropped.
    pub fn begin(&self) -> Working<'_> {
        self.state().has_ended = false;
        Working(self)
    }

    /// Waits for what is to be done next; None: nothing any more.
    pub fn next(&self) -> Option<Duty> {
        let is_idle = |state: &mut State| !state.has_ended && !state.ask && state.answer.is_empty();
        let waited = self.changed.wait_while(self.state(), is_idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.has_ended {
            return None;
        }
        if std::mem::take(&mut state.ask) {
            return Some(Duty::Ask);
        }
        state.answer.pop_first().map(Duty::Answer)
    }

    /// True once nothing is to be done any more.
    pub fn has_ended(&self) -> bool {
        self.state().has_ended
    }
}

/// Dropped, it ends the work.
pub struct Working<'a>(&'a Post);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.state().has_ended = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    use super::*;

    /// Nobody is to wait for so long.
    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn whoever_has_something_to_be_told_never_waits_for_that() {
        let post = Post::default();
        let (begun, has_begun) = sync_channel(0);
        let (done, is_done) = sync_channel(0);
        std::thread::scope(|scope| {
            let (working, post) = (post.begin(), &post);
            scope.spawn(move || {
                while let Some(duty) = post.next() {
                    begun.send(duty).unwrap();
                    // A node that takes nothing.
                    is_done.recv_timeout(LONG).unwrap();
                }
            });
            assert!(post.answer("a".into()));
            assert_eq!(has_begun.recv_timeout(LONG).unwrap(), Duty::Answer("a".into()));
            for _ in 0..3 {
                post.ask();
                assert!(post.answer("b".into()) && post.answer("a".into()));
            }
            for next in [Duty::Ask, Duty::Answer("a".into()), Duty::Answer("b".into())] {
                done.send(()).unwrap();
                assert_eq!(has_begun.recv_timeout(LONG).unwrap(), next);
            }
            drop(working);
            assert!(post.has_ended());
            done.send(()).unwrap();
        });
        assert_eq!(post.next(), None);
        post.ask();
        let _working = post.begin();
        assert_eq!(post.next(), Some(Duty::Ask), "what came meanwhile is done by the next one");
    }

    #[test]
    fn those_that_find_no_room_are_counted() {
        let post = Post::default();
        for node in 0..MOST {
            assert!(post.answer(node.to_string()));
        }
        assert!(!post.answer("one more".into()) && post.answer("0".into()));
        assert_eq!(post.dropped(), 1);
    }
}
