//! Kicks on all nodes: what this node's operators wished, and those of others.
//!
//! A kick is said to all nodes, and kept for a while: a node that was away asks for those of the meantime. Each is
//! done once on every node, since whoever was closed may be back.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use zephserver_plugin::cluster::{Inquiry, answer, parts};
use zephserver_plugin::contract::event::{Ask, NodeChange};
use zephserver_plugin::contract::peer::{ASK_KICKS, KICKS, Kick, Kicked, Kicks};
use zephserver_plugin::{Host, Result, tracing};

use crate::peer::since_1970;

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

/// The kicks of the last minutes, the oldest first. Pure.
#[derive(Debug, Default)]
pub struct Recent(VecDeque<(u64, Kicked, Instant)>);

impl Recent {
    /// Remembers a kick. False: it is known, or long over.
    pub fn add(&mut self, kick: &Kick, now: Instant) -> bool {
        self.forget(now);
        let age = Duration::from_millis(kick.age_ms);
        let at = now.checked_sub(age).filter(|_| age < KEPT && is_good(&kick.who));
        let Some(at) = at.filter(|_| self.0.iter().all(|(id, ..)| *id != kick.id)) else { return false };
        let place = self.0.partition_point(|(_, _, known)| *known <= at);
        self.0.insert(place, (kick.id, kick.who.clone(), at));
        if self.0.len() > MOST {
            self.0.pop_front();
        }
        true
    }

    /// All of them with their age.
    pub fn list(&mut self, now: Instant) -> Vec<Kick> {
        self.forget(now);
        let kick = |(id, who, at): &(u64, Kicked, Instant)| {
            let age_ms = now.saturating_duration_since(*at).as_millis() as u64;
            Kick { id: *id, who: who.clone(), age_ms }
        };
        self.0.iter().map(kick).collect()
    }

    fn forget(&mut self, now: Instant) {
        while self.0.front().is_some_and(|(_, _, at)| now.saturating_duration_since(*at) >= KEPT) {
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
    inquiry: Inquiry,
    /// Something that cannot be read was mentioned.
    unreadable: OnceLock<()>,
}

impl Desk {
    /// Asks to hear of the kicks of other nodes.
    pub fn listen(&self, host: &Host) -> Result<()> {
        host.subscribe_cluster(KICKS)?;
        host.subscribe_cluster(ASK_KICKS)?;
        host.subscribe_members()?;
        Ok(())
    }

    /// Kicks that are to be known to the next generation: it would do them again, and others could not ask for them.
    pub fn carried(&self) -> Vec<Kick> {
        lock(&self.recent).list(Instant::now())
    }

    /// Those that the generation before knew.
    pub fn inherit(&self, kicks: &[Kick]) {
        let (mut recent, now) = (lock(&self.recent), Instant::now());
        for kick in kicks {
            // One that is over meanwhile is not.
            recent.add(kick, now);
        }
    }

    /// Says a kick to all other nodes; answers how many. So many peers were closed here.
    pub fn say(&self, host: &Host, who: &Kicked, closed: usize) -> Result<u64> {
        let kick = Kick { id: random(), who: who.clone(), age_ms: 0 };
        let said = Kicks { node: host.node()?, kicks: vec![kick.clone()], last: true, answers: false };
        let told = host.say(KICKS, &serde_json::to_vec(&said)?)?;
        if closed > 0 || told > 0 {
            lock(&self.recent).add(&kick, Instant::now());
        }
        Ok(told)
    }

    /// Another node says kicks: those that are new are to be done.
    pub fn heard(&self, payload: &[u8]) -> Vec<Closing> {
        let Some(Kicks { node, kicks, last, answers }) = self.read(KICKS, payload) else { return Vec::new() };
        if last && answers {
            self.inquiry.answered(&node);
        }
        let (mut recent, now) = (lock(&self.recent), Instant::now());
        let new = kicks.into_iter().filter(|kick| recent.add(kick, now));
        let closing = |Kick { who, age_ms, .. }: Kick| {
            tracing::info!("node {node} kicks {who:?}");
            let before = since_1970().saturating_sub(Duration::from_millis(age_ms)).as_secs();
            Closing { who, before }
        };
        new.map(closing).collect()
    }

    /// Another node asks for the kicks that are known here.
    pub fn asked(&self, host: &Host, payload: &[u8]) -> Result<()> {
        let Some(Ask { node }) = self.read(ASK_KICKS, payload) else { return Ok(()) };
        let weight = |kick: &Kick| match &kick.who {
            Kicked::Cid(_) => 96,
            Kicked::User(id) => 96 + id.len(),
        };
        let parts = parts(lock(&self.recent).list(Instant::now()), weight);
        let (own, count) = (host.node()?, parts.len());
        let part = |(part, kicks)| {
            let told = Kicks { node: own.clone(), kicks, last: part + 1 == count, answers: true };
            // Texts and numbers: always JSON.
            serde_json::to_vec(&told).unwrap_or_default()
        };
        answer(host, &node, KICKS, parts.into_iter().enumerate().map(part));
        Ok(())
    }

    /// A node came, or something of it was lost: kicks may be among it.
    pub fn node(&self, host: &Host, name: &str, change: NodeChange) -> Result<()> {
        self.inquiry.node(host, ASK_KICKS, (name, change))
    }

    /// A timer is due. False: another one's.
    pub fn timer(&self, host: &Host, token: u64) -> Result<bool> {
        self.inquiry.timer(host, ASK_KICKS, token)
    }

    fn read<T: serde::de::DeserializeOwned>(&self, event: &str, payload: &[u8]) -> Option<T> {
        let read = serde_json::from_slice(payload);
        let mention = |error: &serde_json::Error| {
            self.unreadable.get_or_init(|| tracing::warn!("{event} of another node cannot be read: {error}"));
        };
        read.inspect_err(mention).ok()
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

    fn kick(id: u64, age: u64) -> Kick {
        Kick { id, who: Kicked::Cid(id), age_ms: age * 1000 }
    }

    /// A clock that was started long before.
    fn now() -> Instant {
        Instant::now() + KEPT * 2
    }

    fn ids(recent: &mut Recent, now: Instant) -> Vec<u64> {
        recent.list(now).into_iter().map(|kick| kick.id).collect()
    }

    #[test]
    fn a_kick_is_done_once_and_forgotten_when_it_is_old() {
        let (mut recent, now) = (Recent::default(), now());
        assert!(recent.add(&kick(1, 0), now) && !recent.add(&kick(1, 0), now));
        assert!(recent.add(&kick(2, 599), now) && !recent.add(&kick(3, 600), now));
        assert!(!recent.add(&kick(4, u64::MAX / 1000), now), "as old as none can be");
        assert_eq!(ids(&mut recent, now), [2, 1], "the oldest first");
        let later = now + Duration::from_secs(1);
        assert_eq!(recent.list(later), [Kick { age_ms: 1000, ..kick(1, 0) }]);
        assert_eq!(ids(&mut recent, now + KEPT), [0; 0]);
    }

    #[test]
    fn the_oldest_make_room() {
        let (mut recent, now) = (Recent::default(), now());
        for id in 0..MOST as u64 + 5 {
            assert!(recent.add(&kick(id, 0), now));
        }
        assert_eq!((recent.0.len(), ids(&mut recent, now)[0]), (MOST, 5));
        let long = Kick { who: Kicked::User("x".repeat(LONGEST_ID + 1)), ..kick(9999, 0) };
        assert!(!recent.add(&long, now));
    }

    #[test]
    fn what_the_build_before_knew_is_known_with_its_age() {
        let desk = Desk::default();
        desk.inherit(&[kick(1, 5), kick(2, 1)]);
        let carried = desk.carried();
        assert_eq!(
            carried.iter().map(|kick| (kick.id, kick.age_ms / 1000)).collect::<Vec<_>>(),
            [(1, 5), (2, 1)]
        );
        let said = |kicks| {
            serde_json::to_vec(&Kicks { node: "b".into(), kicks, last: true, answers: true }).unwrap()
        };
        assert_eq!(desk.heard(&said(vec![kick(2, 1)])), [], "it was done");
        let [Closing { who: Kicked::Cid(3), before }] = desk.heard(&said(vec![kick(3, 60)]))[..] else {
            panic!()
        };
        assert!(since_1970().as_secs() - before >= 60);
        assert_eq!(desk.heard(b"nonsense"), []);
    }
}
