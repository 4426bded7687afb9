//! Kicks on all nodes: what this node's operators wished, and those of others.
//!
//! A kick is said to all nodes, and kept for a while: a node that was away asks for those of the meantime. Each is
//! done once on every node, since whoever was closed may be back.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use zephserver_plugin::cluster::{Inquiry, answer, parts};
use zephserver_plugin::contract::event::{Ask, CLOCKS_DIFFER, NodeChange};
use zephserver_plugin::contract::peer::{ASK_KICKS, Cid, KICKS, Kick, Kicked, Kicks};
use zephserver_plugin::{Host, Result, tracing};

use crate::peer::since_1970;
use crate::post::{Duty, Post, Working};

/// Kicks that are remembered at most, and for how long.
const MOST: usize = 1024;
const KEPT: Duration = Duration::from_secs(600);
/// Bytes of a user's id at most: it must be possible to remember it.
pub const LONGEST_ID: usize = 1024;

/// Peers to be closed by the word of another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closing {
    pub who: Kicked,
    /// Seconds since 1970: who came later stays.
    pub before: u64,
}

/// Of each of them the latest, so that one look at each peer is enough for however many.
#[derive(Debug, Default)]
pub struct Closings {
    cids: HashMap<Cid, u64>,
    users: HashMap<String, u64>,
}

impl FromIterator<Closing> for Closings {
    fn from_iter<I: IntoIterator<Item = Closing>>(all: I) -> Self {
        let mut closings = Self::default();
        for Closing { who, before } in all {
            let known = match who {
                Kicked::Cid(cid) => closings.cids.entry(cid).or_default(),
                Kicked::User(id) => closings.users.entry(id).or_default(),
            };
            *known = before.max(*known);
        }
        closings
    }
}

impl Closings {
    /// True for a peer that is among them, and was here then.
    pub fn mean(&self, cid: Cid, user: Option<&str>, since: u64) -> bool {
        let user = user.and_then(|user| self.users.get(user));
        self.cids.get(&cid).into_iter().chain(user).any(|before| since <= *before)
    }
}

/// How long ago a kick was, at least: its word may have been on its way for long.
fn age(kick: &Kick, since_1970: Duration) -> Duration {
    let by_clock = kick.said_at.map(|at| {
        let at_latest = Duration::from_secs(at.saturating_add(CLOCKS_DIFFER));
        since_1970.saturating_sub(at_latest)
    });
    Duration::from_millis(kick.age_ms).max(by_clock.unwrap_or_default())
}

/// The kicks of the last minutes, the oldest first. Pure.
#[derive(Debug, Default)]
pub struct Recent(VecDeque<(Kick, Instant)>);

impl Recent {
    /// Remembers a kick of so long ago. False: it is known, or long over.
    pub fn add(&mut self, kick: &Kick, age: Duration, now: Instant) -> bool {
        self.forget(now);
        let at = now.checked_sub(age).filter(|_| age < KEPT && is_good(&kick.who));
        let Some(at) = at.filter(|_| self.0.iter().all(|(known, _)| known.id != kick.id)) else {
            return false;
        };
        let place = self.0.partition_point(|(_, known)| *known <= at);
        self.0.insert(place, (kick.clone(), at));
        if self.0.len() > MOST {
            self.0.pop_front();
        }
        true
    }

    /// All of them with their age.
    pub fn list(&mut self, now: Instant) -> Vec<Kick> {
        self.forget(now);
        let kick = |(kick, at): &(Kick, Instant)| {
            let age_ms = now.saturating_duration_since(*at).as_millis() as u64;
            Kick { age_ms, ..kick.clone() }
        };
        self.0.iter().map(kick).collect()
    }

    fn forget(&mut self, now: Instant) {
        while self.0.front().is_some_and(|(_, at)| now.saturating_duration_since(*at) >= KEPT) {
            self.0.pop_front();
        }
    }
}

fn is_good(who: &Kicked) -> bool {
    !matches!(who, Kicked::User(id) if id.len() > LONGEST_ID)
}

/// The edge's part in the kicks of all nodes.
#[derive(Default)]
pub struct Desk {
    recent: Mutex<Recent>,
    /// The other nodes that are up.
    up: Mutex<BTreeSet<String>>,
    inquiry: Inquiry,
    post: Post,
}

impl Desk {
    /// Asks to hear of the kicks of other nodes.
    pub fn listen(&self, host: &Host) -> Result<()> {
        host.subscribe_members()?;
        host.subscribe_cluster(KICKS)?;
        host.subscribe_cluster(ASK_KICKS)?;
        Ok(())
    }

    /// What is to be known to the next generation: kicks, since it would do them again, and others could not ask for
    /// them; and who is up, since it may be asked to kick before it is told that.
    pub fn carried(&self) -> (Vec<Kick>, BTreeSet<String>) {
        (lock(&self.recent).list(Instant::now()), lock(&self.up).clone())
    }

    /// What the generation before knew. Who goes meanwhile is told to this one.
    pub fn inherit(&self, kicks: &[Kick], up: BTreeSet<String>) {
        lock(&self.up).extend(up);
        let (mut recent, now, clock) = (lock(&self.recent), Instant::now(), since_1970());
        for kick in kicks {
            // One that is over meanwhile is not.
            recent.add(kick, age(kick, clock), now);
        }
    }

    /// Says a kick that was wished for at that time to all other nodes; answers how many. None: no other node is up,
    /// and nobody is closed by it here; so it is not said, and nobody will be.
    pub fn say(&self, host: &Host, who: &Kicked, since: Instant, is_done: bool) -> Result<Option<u64>> {
        if !is_done && lock(&self.up).is_empty() {
            return Ok(None);
        }
        let age = since.elapsed();
        let said_at = Some(since_1970().saturating_sub(age).as_secs());
        let kick = Kick { id: random(), who: who.clone(), age_ms: age.as_millis() as u64, said_at };
        let said = Kicks { node: host.node()?, kicks: vec![kick.clone()], last: true, answers: false };
        let told = host.say(KICKS, &serde_json::to_vec(&said)?)?;
        lock(&self.recent).add(&kick, since.elapsed(), Instant::now());
        Ok(Some(told))
    }

    /// Another node says kicks: those that are new are to be done.
    pub fn heard(&self, payload: &[u8]) -> Vec<Closing> {
        let Some(Kicks { node, kicks, last, answers }) = self.inquiry.read(KICKS, payload) else {
            return Vec::new();
        };
        if answers {
            self.inquiry.heard(&node, last);
        }
        let (mut recent, now, clock) = (lock(&self.recent), Instant::now(), since_1970());
        let closing = |kick: Kick| {
            let age = age(&kick, clock);
            if !recent.add(&kick, age, now) {
                if age >= KEPT && !answers {
                    let age = age.as_secs();
                    tracing::warn!(
                        "node {node} kicked {:?} {age} s ago: nobody is closed any more",
                        kick.who
                    );
                }
                return None;
            }
            tracing::info!("node {node} kicks {:?}, {} s ago", kick.who, age.as_secs());
            Some(Closing { who: kick.who, before: clock.saturating_sub(age).as_secs() })
        };
        kicks.into_iter().filter_map(closing).collect()
    }

    /// Another node asks for the kicks that are known here: it is told by [`Desk::run`].
    pub fn asked(&self, payload: &[u8]) {
        if let Some(Ask { node }) = self.inquiry.read(ASK_KICKS, payload) {
            self.post.answer(node);
        }
    }

    /// A node came or went, or something of it was lost: kicks may be among it.
    pub fn node(&self, name: &str, change: NodeChange) {
        match change {
            NodeChange::Up => drop(lock(&self.up).insert(name.into())),
            NodeChange::Down => drop(lock(&self.up).remove(name)),
            NodeChange::Gap | NodeChange::Evicted => {}
        }
        self.inquiry.node(name, change);
        self.post.ask();
    }

    /// A timer is due, or may be lost: somebody may have to be asked again.
    pub fn timer(&self) {
        self.post.ask();
    }

    /// Questions of other nodes that found no room here.
    pub fn dropped(&self) -> u64 {
        self.post.dropped()
    }

    /// Lets [`Desk::run`] run, until what this answers is dropped.
    pub fn begin(&self) -> Working<'_> {
        self.post.begin()
    }

    /// Tells other nodes what is told to one at a time, on a thread that has nothing else to do.
    pub fn run(&self, host: &Host) {
        while let Some(duty) = self.post.next() {
            let done = match duty {
                Duty::Ask => self.inquiry.ask(host, ASK_KICKS, || !self.post.has_ended()),
                Duty::Answer(node) => self.answer(host, &node),
            };
            done.unwrap_or_else(|error| tracing::warn!("kicks of other nodes: {error}"));
        }
    }

    fn answer(&self, host: &Host, node: &str) -> Result<()> {
        let weight = |kick: &Kick| match &kick.who {
            Kicked::Cid(_) => 128,
            Kicked::User(id) => 128 + id.len(),
        };
        let parts = parts(lock(&self.recent).list(Instant::now()), weight);
        let (own, count) = (host.node()?, parts.len());
        let part = |(part, kicks)| {
            let told = Kicks { node: own.clone(), kicks, last: part + 1 == count, answers: true };
            // Texts and numbers: always JSON.
            serde_json::to_vec(&told).unwrap_or_default()
        };
        let parts = parts.into_iter().enumerate().map(part);
        answer(host, node, KICKS, parts.take_while(|_| !self.post.has_ended()));
        Ok(())
    }
}

fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn kick(id: u64, age: u64) -> Kick {
        Kick { id, who: Kicked::Cid(id), age_ms: age * 1000, said_at: None }
    }

    /// A clock that was started long before.
    fn now() -> Instant {
        Instant::now() + KEPT * 2
    }

    fn add(recent: &mut Recent, kick: &Kick, now: Instant) -> bool {
        recent.add(kick, age(kick, Duration::from_secs(NOW)), now)
    }

    fn ids(recent: &mut Recent, now: Instant) -> Vec<u64> {
        recent.list(now).into_iter().map(|kick| kick.id).collect()
    }

    #[test]
    fn a_kick_is_as_old_as_its_age_or_its_time_says() {
        let age =
            |age_s, said_at| age(&Kick { said_at, ..kick(1, age_s) }, Duration::from_secs(NOW)).as_secs();
        assert_eq!((age(5, None), age(5, Some(NOW - 5))), (5, 5));
        assert_eq!(age(0, Some(NOW - 100)), 100 - CLOCKS_DIFFER, "its word was on its way for long");
        assert_eq!(age(0, Some(NOW - CLOCKS_DIFFER)), 0, "the clock there may be behind");
        assert_eq!((age(0, Some(NOW + 50)), age(7, Some(u64::MAX))), (0, 7), "or ahead");
        assert_eq!(age(200, Some(NOW - 100)), 200, "the time is passed on with it");
    }

    #[test]
    fn a_kick_is_done_once_and_forgotten_when_it_is_old() {
        let (mut recent, now) = (Recent::default(), now());
        assert!(add(&mut recent, &kick(1, 0), now) && !add(&mut recent, &kick(1, 0), now));
        assert!(add(&mut recent, &kick(2, 599), now) && !add(&mut recent, &kick(3, 600), now));
        assert!(!add(&mut recent, &kick(4, u64::MAX / 1000), now), "as old as none can be");
        let late = Kick { said_at: Some(NOW - 1000), ..kick(5, 0) };
        assert!(!add(&mut recent, &late, now), "it is over");
        assert_eq!(ids(&mut recent, now), [2, 1], "the oldest first");
        let later = now + Duration::from_secs(1);
        assert_eq!(recent.list(later), [Kick { age_ms: 1000, ..kick(1, 0) }]);
        assert_eq!(ids(&mut recent, now + KEPT), [0; 0]);
        // Whoever asks is told when it was, by the clock of where it was said.
        let late = Kick { said_at: Some(NOW - 100), ..kick(6, 0) };
        assert!(add(&mut recent, &late, now + KEPT));
        assert_eq!(recent.list(now + KEPT), [Kick { age_ms: 70_000, ..late }]);
    }

    #[test]
    fn of_many_at_once_the_latest_counts() {
        let user = |before| Closing { who: Kicked::User("7".into()), before };
        let all = [user(5), user(9), user(2), Closing { who: Kicked::Cid(1), before: 3 }];
        let closings: Closings = all.into_iter().collect();
        assert!(closings.mean(5, Some("7"), 9) && !closings.mean(5, Some("7"), 10));
        assert!(closings.mean(1, Some("8"), 3) && !closings.mean(1, None, 4));
        assert!(!closings.mean(5, None, 0), "somebody else");
    }

    #[test]
    fn the_oldest_make_room() {
        let (mut recent, now) = (Recent::default(), now());
        for id in 0..MOST as u64 + 5 {
            assert!(add(&mut recent, &kick(id, 0), now));
        }
        assert_eq!((recent.0.len(), ids(&mut recent, now)[0]), (MOST, 5));
        let long = Kick { who: Kicked::User("x".repeat(LONGEST_ID + 1)), ..kick(9999, 0) };
        assert!(!add(&mut recent, &long, now));
    }

    #[test]
    fn what_the_build_before_knew_is_known_with_its_age() {
        let desk = Desk::default();
        desk.inherit(&[kick(1, 5), kick(2, 1)], BTreeSet::from(["b".into()]));
        let (carried, up) = desk.carried();
        assert_eq!(up, BTreeSet::from(["b".into()]), "so a kick is said to it at once");
        assert_eq!(
            carried.iter().map(|kick| (kick.id, kick.age_ms / 1000)).collect::<Vec<_>>(),
            [(1, 5), (2, 1)]
        );
        let said = |kicks| {
            serde_json::to_vec(&Kicks { node: "b".into(), kicks, last: true, answers: true }).unwrap()
        };
        assert_eq!(desk.heard(&said(vec![kick(2, 1)])), [], "it was done");
        let late = Kick { said_at: Some(since_1970().as_secs() - 90), ..kick(3, 0) };
        let [Closing { who: Kicked::Cid(3), before }] = desk.heard(&said(vec![late]))[..] else { panic!() };
        assert!(since_1970().as_secs() - before >= 60);
        assert_eq!(desk.heard(b"nonsense"), []);
    }
}
