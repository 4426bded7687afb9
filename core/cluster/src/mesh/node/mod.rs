//! Everything that a node of the mesh decides: who is up, what goes where, what is handed on, whom nobody waits
//! for. Pure: it has no socket, no clock, no thread and no dice of its own. [`driver`](super::driver) runs it on real
//! sockets, the simulator of the tests on a network that it makes up.
//!
//! Whoever drives it does what [`Node::actions`] asks for, and hands [`Node::news`] on in their order, before
//! anything else is put in. [`lines`] has the connections, [`meeting`] who comes and goes.

mod lines;
mod meeting;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::{HashMap, HashMapExt};
use lines::wake;

use super::frame::Hello;
use super::identity::Identity;
use super::link::{Conn, Inlet};
use super::log::{Capacity, Log};
use super::members::Members;
use super::peer::Peer;
use super::waits::Waits;
use crate::hub::News;
use crate::{Change, SAY_TIMEOUT, Status};

/// A node that is down has its events kept for so long, and is listed.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Nodes that are remembered at most; then the one that is down for longest is forgotten.
const PEERS: usize = 1024;
/// Connections, silences and peers are looked at so often.
const ROUND: Duration = Duration::from_millis(50);
/// A node that is alone asks seeds so often.
const LONELY: Duration = Duration::from_millis(250);
/// A connection has so long until the other is known to be up.
const GREETING: Duration = Duration::from_secs(3);

/// What a node is made with.
#[derive(Clone, Debug)]
pub struct Config {
    pub identity: Identity,
    pub waits: Waits,
    pub capacity: Capacity,
    /// Addresses where other nodes may be.
    pub seeds: Vec<SocketAddr>,
    /// For its dice.
    pub dice: u64,
}

/// What a node wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a datagram.
    Datagram { to: SocketAddr, bytes: Vec<u8> },
    /// Make a connection: then [`Node::connected`], else [`Node::closed`].
    Dial { conn: Conn, to: SocketAddr },
    /// End a connection. It needs no [`Node::closed`].
    Close(Conn),
    /// There is something to [`Node::pull`].
    Wake(Conn),
}

/// Which end of which connection.
#[derive(Debug)]
enum End {
    /// Made here: what this node says goes out on it.
    Outlet(Arc<str>),
    /// Made there.
    Inlet(Arc<str>),
    /// Made there by somebody who has not greeted yet, or whose node is not known to be up.
    Door(Option<Hello>),
}

#[derive(Debug)]
struct Line {
    end: End,
    since: Instant,
    /// When anything came on it.
    heard: Instant,
    /// Nothing was left at the last pull.
    is_asleep: bool,
}

/// A node of the mesh.
pub struct Node {
    config: Config,
    name: Arc<str>,
    members: Members,
    log: Log,
    /// The other nodes by name.
    peers: BTreeMap<Arc<str>, Peer>,
    lines: HashMap<Conn, Line>,
    next_conn: Conn,
    next_announce: Instant,
    next_round: Instant,
    actions: Vec<Action>,
    news: Vec<News>,
    is_leaving: bool,
    /// Events that the log had no room for, while somebody lacked them.
    lost: u64,
}

impl Node {
    /// A node that begins to look for others at the first [`Node::tick`].
    pub fn new(config: Config, now: Instant) -> Self {
        Self {
            name: config.identity.node.as_ref().into(),
            members: Members::new(config.identity.clone(), &config.waits, config.dice, now),
            log: Log::new(config.capacity),
            peers: BTreeMap::new(),
            lines: HashMap::new(),
            next_conn: 1,
            next_announce: now,
            next_round: now,
            actions: Vec::new(),
            news: Vec::new(),
            is_leaving: false,
            lost: 0,
            config,
        }
    }

    /// Takes out what is to be done.
    pub fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Takes out what is to be handed on.
    pub fn news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// The number of the last event that was said.
    #[cfg(test)]
    pub fn said(&self) -> u64 {
        self.log.last()
    }

    /// Says an event to all, or tells it to one that is up. Answers how many are up; else until when to wait for
    /// room, or for less.
    pub fn say(
        &mut self,
        event: &str,
        payload: &[u8],
        to: Option<&Arc<str>>,
        now: Instant,
    ) -> Result<usize, Instant> {
        self.make_room(event.len() + payload.len(), now)?;
        self.log.push(event, payload, to.cloned(), now);
        let mut up = 0;
        for peer in self.peers.values() {
            up += usize::from(peer.is_up());
            if let Some(conn) = peer.outlet.conn().filter(|_| peer.outlet.is_open()) {
                wake(&mut self.lines, &mut self.actions, conn);
            }
        }
        if self.peers.values().all(|peer| peer.holds_log().is_none()) {
            self.log.forget(self.log.last());
        }
        Ok(up)
    }

    /// The name of a node that is up, as it is kept.
    pub fn up(&self, node: &str) -> Option<Arc<str>> {
        self.peers.get(node).filter(|peer| peer.is_up()).map(|peer| peer.name.clone())
    }

    /// Makes room for an event: whoever takes nothing for too long is waited for no longer. An error: until when
    /// somebody may still take something.
    fn make_room(&mut self, size: usize, now: Instant) -> Result<(), Instant> {
        while !self.log.has_room(size) {
            let first = self.log.first();
            let lacks = |peer: &&mut Peer| peer.holds_say() && peer.outlet.acked() < first;
            let mut wait: Option<Instant> = None;
            for peer in self.peers.values_mut().filter(lacks) {
                let until = peer.outlet.stalled_since(&self.log).unwrap_or(now) + SAY_TIMEOUT;
                if now < until {
                    wait = Some(wait.map_or(until, |wait| wait.min(until)));
                    continue;
                }
                peer.outlet.is_evicted = true;
                peer.outlet.evictions += 1;
                self.news.push(News::Change(Change::Evicted(peer.name.clone())));
            }
            if let Some(until) = wait {
                return Err(until);
            }
            // Only those lack it whom nobody waits for: they will get a gap.
            self.log.drop_first();
            self.lost += 1;
        }
        Ok(())
    }

    /// A datagram came, its seal opened. An error: it makes no sense.
    pub fn datagram(&mut self, bytes: &[u8], now: Instant) -> Result<(), foca::Error> {
        if self.is_leaving {
            // Whoever knows already that this node goes would have it come back.
            return Ok(());
        }
        let taken = self.members.datagram(bytes, now);
        self.settle(now);
        taken
    }

    /// When [`Node::tick`] is to be called next.
    pub fn due(&self) -> Instant {
        let due = self.members.due().filter(|_| !self.is_leaving);
        due.map_or(self.next_round, |due| due.min(self.next_round))
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        if !self.is_leaving {
            self.members.tick(now);
        }
        if now >= self.next_announce && !self.is_leaving {
            // Who knows nobody yet is in a hurry.
            let is_alone = !self.peers.values().any(Peer::is_up);
            let period = if is_alone { LONELY } else { self.config.waits.announce };
            self.next_announce = now + period;
            for seed in self.config.seeds.clone() {
                if seed != self.config.identity.address && !self.members.is_at(seed) {
                    self.members.announce(seed, now);
                }
            }
        }
        if now >= self.next_round {
            self.next_round = now + ROUND;
            self.round(now);
        }
        self.settle(now);
    }

    fn round(&mut self, now: Instant) {
        let Waits { ping, silence, .. } = self.config.waits;
        let mut ended = Vec::new();
        for (conn, line) in &self.lines {
            let is_over = match &line.end {
                // Whoever makes the connection bounds that wait.
                End::Outlet(name) => self.peers.get(name).is_some_and(|peer| match peer.outlet.is_open() {
                    true => now >= line.heard + silence,
                    false => peer.outlet.is_greeting() && now >= line.since + GREETING,
                }),
                End::Inlet(_) => now >= line.heard + silence,
                End::Door(_) => now >= line.since + GREETING,
            };
            if is_over {
                ended.push(*conn);
            }
        }
        ended.sort_unstable();
        for conn in ended {
            self.actions.push(Action::Close(conn));
            self.closed(conn, now);
        }
        for peer in self.peers.values_mut() {
            if let Some(conn) = peer.inlet.as_ref().and_then(Inlet::owes_ack_on) {
                wake(&mut self.lines, &mut self.actions, conn);
            }
            if peer.outlet.ping(ping, now)
                && let Some(conn) = peer.outlet.conn()
            {
                wake(&mut self.lines, &mut self.actions, conn);
            }
            peer.is_given_up = peer.down_since.is_some_and(|since| now >= since + REMEMBERED);
            if peer.is_given_up {
                peer.before = None;
            }
        }
        self.trim();
        self.dial(now);
    }

    /// Forgets events that nobody waits for.
    fn trim(&mut self) {
        let acked = self.peers.values().filter_map(Peer::holds_log).min();
        self.log.forget(acked.unwrap_or(self.log.last()));
    }

    /// Where other nodes may be.
    pub fn set_seeds(&mut self, seeds: Vec<SocketAddr>) {
        if self.config.seeds != seeds {
            self.config.seeds = seeds;
            // At the next tick.
            self.next_announce = self.next_round;
        }
    }

    /// Which life of another node is known here.
    #[cfg(test)]
    pub fn boot_of(&self, node: &str) -> u64 {
        self.peers[node].identity.boot
    }

    /// As people see it. What waits for handlers, and what was refused, knows whoever drives the node.
    pub fn status(&self, now: Instant) -> Status {
        let is_listed = |peer: &&Peer| !peer.is_given_up;
        Status {
            engine: "mesh",
            node: self.name.to_string(),
            boot: format!("{:016x}", self.config.identity.boot),
            address: Some(self.config.identity.address.to_string()),
            said: self.log.last(),
            backlog: self.log.events(),
            backlog_bytes: self.log.bytes(),
            waiting: 0,
            refused: 0,
            lost: self.lost,
            members: self.peers.values().filter(is_listed).map(|peer| peer.member(&self.log, now)).collect(),
        }
    }
}
