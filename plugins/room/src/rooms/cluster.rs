//! What room services of several nodes tell one another, so that each knows who is where on all of them. Pure:
//! answers what is to be told.
//!
//! * A change makes a new version of this node's members. Changes are gathered for a moment and said in order; who
//!   is at the version before an event is at its version after it.
//! * Who is not (a node that has just come, something was lost, another life of the service) asks that node for the
//!   whole, passes over its changes until it is there, and makes the difference known.
//! * Every message names the sender's version, and once in a while one is said only for that. So whatever was lost,
//!   and however, is noticed in [`BEAT`].
//! * Who says nothing for a while is asked: it answers, or there is no such node any more.
//! * A service that does not know the peers that its edges have is told of them again. Until they have come it keeps
//!   quiet ([`Rooms::settle`]): other nodes show what they know of it, and nobody sees them leave and join.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zephserver_plugin::cluster::{Asks, parts};
use zephserver_plugin::contract::presence::{Change, Member, Presence, Version, What};

use super::remote::{Move, Way};
use super::{LONGEST_NAME, Notice, Rooms};

/// Changes are said at most this often: those of the meantime together.
const FLUSH: Duration = Duration::from_millis(50);
/// The version is said at least this often.
const BEAT: Duration = Duration::from_secs(10);
/// Who has said nothing for so long is asked: the news that it is gone may have been lost.
const SILENCE: Duration = Duration::from_secs(3 * BEAT.as_secs());
/// Changes that wait to be said. With more of them, all other nodes ask for the whole.
const PENDING: usize = 65_536;
/// Bytes of a user's id and name: others are not told of one who has more.
const LONGEST_USER: usize = 16 * 1024;

/// What is to be told to other nodes, in this order.
#[derive(Debug, PartialEq, Eq)]
pub struct Letter {
    pub to: To,
    pub told: Presence,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    All,
    Node(String),
}

/// What is to be done.
#[derive(Debug, Default)]
pub struct Outcome {
    /// For peers of this node.
    pub notices: Vec<Notice>,
    /// For other nodes.
    pub letters: Vec<Letter>,
}

impl From<Vec<Notice>> for Outcome {
    fn from(notices: Vec<Notice>) -> Self {
        Self { notices, letters: Vec::new() }
    }
}

/// This node's dealings with others.
#[derive(Debug, Default)]
pub struct Cluster {
    pub node: String,
    pub(super) version: Version,
    /// What others are not told yet.
    pub(super) pending: Vec<Change>,
    /// There was more of it than is kept.
    pub(super) has_lost: bool,
    /// When it is said, and when that was last.
    pub(super) flush: Option<Instant>,
    flushed: Option<Instant>,
    pub(super) beat: Option<Instant>,
    /// The time at which this node begins to tell, and at which it does at the latest.
    pub(super) settling: Option<(Instant, Instant)>,
    /// Whom this node has asked for the whole.
    pub(super) asks: Asks,
}

impl Cluster {
    pub fn new(node: String, life: u64) -> Self {
        Self { node, version: Version { life, number: 0 }, ..Self::default() }
    }

    fn tell(&self, to: To, what: What) -> Letter {
        Letter { to, told: Presence { node: self.node.clone(), version: self.version, what } }
    }

    fn ask(&mut self, node: &str, have: Option<Version>, now: Instant) -> Letter {
        self.asks.ask(node, now);
        self.tell(To::Node(node.into()), What::Ask { have })
    }

    /// What has changed, in order.
    fn flush(&mut self, now: Instant) -> Vec<Letter> {
        self.flush = None;
        self.flushed = Some(now);
        let pending = std::mem::take(&mut self.pending);
        if std::mem::take(&mut self.has_lost) {
            self.version.number += 1;
            return vec![self.tell(To::All, What::Beat)];
        }
        let parts = parts(pending, weight_of).into_iter().filter(|changes| !changes.is_empty());
        let say = |changes| {
            self.version.number += 1;
            self.tell(To::All, What::Changes(changes))
        };
        parts.map(say).collect()
    }
}

/// Bytes of it on the wire, about.
fn weight(member: &Member) -> usize {
    let user = member.user.as_ref().map_or(0, |user| user.id.len() + user.username.len());
    128 + member.room.len() + user
}

fn weight_of(change: &Change) -> usize {
    match change {
        Change::Join(member) => weight(member),
        Change::Leave(_) => 32,
    }
}

/// False for whom others cannot be told of.
fn can_be_told(member: &Member) -> bool {
    let user = member.user.as_ref().map_or(0, |user| user.id.len() + user.username.len());
    !member.room.is_empty() && member.room.len() <= LONGEST_NAME && user <= LONGEST_USER
}

impl Rooms {
    /// Somebody here came or went: other nodes are to be told.
    pub(super) fn changed(&mut self, change: impl FnOnce() -> Change, now: Instant) {
        let cluster = &mut self.cluster;
        if cluster.settling.is_some() || self.remote.is_empty() {
            // Whoever comes is told the whole. It counts all the same: a node that believes to know this one learns by
            // that that it does not.
            cluster.version.number += 1;
            return;
        }
        let change = change();
        if matches!(&change, Change::Join(member) if !can_be_told(member)) {
            return self.remark(format!(
                "a user with more than {LONGEST_USER} bytes of id and name is not in the lists of other nodes"
            ));
        }
        if cluster.has_lost || cluster.pending.len() >= PENDING {
            cluster.has_lost = true;
            cluster.pending.clear();
        } else {
            cluster.pending.push(change);
        }
        let earliest = cluster.flushed.map_or(now, |flushed| flushed + FLUSH);
        cluster.flush.get_or_insert(earliest.max(now));
    }

    /// A node can be reached, or something of it was lost: is this node at its version?
    pub fn up(&mut self, node: &str, now: Instant) -> Outcome {
        let have = self.remote.node(node).map(|(_, node)| node.known);
        let Some(have) = have.filter(|_| node != self.cluster.node) else { return Outcome::default() };
        self.cluster.beat.get_or_insert(now + BEAT);
        let letters = vec![self.cluster.ask(node, have, now)];
        Outcome { letters, ..Outcome::default() }
    }

    /// A node is gone, and all its members with it.
    pub fn down(&mut self, node: &str, now: Instant) -> Outcome {
        self.cluster.asks.forget(node);
        let moves = self.remote.lose(node);
        self.tell_moves(moves, now).into()
    }

    /// What another node has told.
    pub fn heard(&mut self, told: Presence, now: Instant) -> Outcome {
        let Presence { node: name, version, what } = told;
        if name == self.cluster.node {
            return Outcome::default();
        }
        let Some((name, node)) = self.remote.node(&name) else {
            self.remark(format!("node {name:?} is not listened to: there are too many"));
            return Outcome::default();
        };
        self.cluster.beat.get_or_insert(now + BEAT);
        node.heard_at = Some(now);
        let known = node.known;
        let mut letters = Vec::new();
        let mut moves = Vec::new();
        match what {
            What::Ask { have } => {
                letters.extend(self.answer(&name, have, now));
                if known != Some(version) && !self.cluster.asks.is_open(&name) {
                    letters.push(self.lost(&name, now));
                }
            }
            What::Beat if known == Some(version) => self.cluster.asks.forget(&name),
            What::Beat => letters.push(self.lost(&name, now)),
            What::Changes(changes) => {
                if known.is_some() && known == version.before() {
                    node.known = Some(version);
                    self.take_changes(&name, changes, &mut moves);
                } else if known.is_some() || !self.cluster.asks.is_open(&name) {
                    letters.push(self.lost(&name, now));
                }
            }
            What::Whole { part, last, members } => {
                if let Some(members) = node.take(version, (part, last), members) {
                    node.known = Some(version);
                    self.cluster.asks.forget(&name);
                    self.take_whole(&name, members, &mut moves);
                } else {
                    self.cluster.asks.hear(&name, now);
                }
            }
        }
        Outcome { notices: self.tell_moves(moves, now), letters }
    }

    /// What is to be done by now.
    pub fn due(&mut self, now: Instant) -> Outcome {
        let mut notices = self.settled(now);
        notices.extend(self.lists_due(now));
        let mut letters = Vec::new();
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.cluster.flush) {
            letters.extend(self.cluster.flush(now));
        }
        if is_due(self.cluster.beat) {
            let is_heard = !self.remote.is_empty();
            self.cluster.beat = is_heard.then_some(now + BEAT);
            if is_heard && self.cluster.settling.is_none() {
                letters.push(self.cluster.tell(To::All, What::Beat));
            }
            letters.extend(self.ask_silent(now));
        }
        for node in self.cluster.asks.due(now) {
            let have = self.remote.node(&node).and_then(|(_, node)| node.known);
            letters.push(self.cluster.tell(To::Node(node), What::Ask { have }));
        }
        Outcome { notices, letters }
    }

    /// When something is to be done next.
    pub fn next_due(&self) -> Option<Instant> {
        let Cluster { flush, beat, settling, asks, .. } = &self.cluster;
        let times = [self.next_list(), *flush, *beat, settling.map(|(until, _)| until), asks.next()];
        times.into_iter().flatten().min()
    }

    /// Answers a node that asks. While this one settles it does not know its own members, and is asked again.
    fn answer(&mut self, node: &str, have: Option<Version>, now: Instant) -> Vec<Letter> {
        if self.cluster.settling.is_some() {
            return Vec::new();
        }
        let mut letters = self.cluster.flush(now);
        let to = To::Node(node.into());
        if have == Some(self.cluster.version) {
            letters.push(self.cluster.tell(to, What::Beat));
            return letters;
        }
        let members = self.present().filter(can_be_told);
        let parts = parts(members, weight);
        let count = parts.len();
        letters.extend(parts.into_iter().enumerate().map(|(part, members)| {
            let whole = What::Whole { part: part as u32, last: part + 1 == count, members };
            self.cluster.tell(to.clone(), whole)
        }));
        letters
    }

    /// Something of a node was lost: it is asked for the whole.
    fn lost(&mut self, node: &str, now: Instant) -> Letter {
        if let Some((_, node)) = self.remote.node(node) {
            node.known = None;
        }
        self.cluster.ask(node, None, now)
    }

    /// Asks those who have said nothing for too long. Where there is no such node, telling it fails: it is down then.
    /// Where there is, it is asked until it answers.
    fn ask_silent(&mut self, now: Instant) -> Vec<Letter> {
        let mut letters = Vec::new();
        for (name, known, has_members) in self.remote.silent(SILENCE, now) {
            if !self.cluster.asks.is_open(&name) {
                letters.push(self.cluster.ask(&name, known, now));
            } else if has_members {
                self.remark(format!(
                    "node {name} is up and has not said who is there for {} s: its members stay in the lists as they \
                     were; see there: zephserver status",
                    SILENCE.as_secs()
                ));
            }
        }
        letters
    }

    fn take_changes(&mut self, node: &Arc<str>, changes: Vec<Change>, moves: &mut Vec<Move>) {
        for change in changes {
            match change {
                Change::Join(member) if can_be_told(&member) && !self.is_full(node) => {
                    self.note_collision(member.cid, Some(node));
                    self.remote.join(node, member, moves);
                }
                Change::Join(_) => self.remark(format!("node {node} tells of a peer that cannot be")),
                Change::Leave(cid) => self.remote.leave(node, cid, moves),
            }
        }
    }

    fn take_whole(&mut self, node: &Arc<str>, mut members: Vec<Member>, moves: &mut Vec<Move>) {
        let count = members.len();
        members.retain(can_be_told);
        if members.len() < count {
            self.remark(format!("node {node} tells of a peer that cannot be"));
        }
        members.iter().for_each(|member| self.note_collision(member.cid, Some(node)));
        self.remote.replace(node, members, moves);
    }

    fn is_full(&mut self, node: &str) -> bool {
        self.remote.node(node).is_none_or(|(_, node)| node.is_full())
    }

    /// Tells the members of rooms here who came and went on other nodes. While this node settles, they get a list
    /// when that is over.
    fn tell_moves(&mut self, moves: Vec<Move>, now: Instant) -> Vec<Notice> {
        let mut by_room: BTreeMap<_, Vec<(Way, _)>> = BTreeMap::new();
        let moves = moves.into_iter().filter(|_| self.cluster.settling.is_none());
        for Move { room, user, way } in moves {
            by_room.entry(room).or_default().push((way, user));
        }
        by_room.into_iter().flat_map(|(room, moves)| self.tell_room(&room, moves, now)).collect()
    }
}

#[cfg(test)]
mod tests;
