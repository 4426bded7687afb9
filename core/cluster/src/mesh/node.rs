//! Everything that a node of the mesh decides: who is up, what goes where, what is handed on, whom nobody waits
//! for. Pure: it has no socket, no clock, no thread and no dice of its own. [`super::driver`] runs it on real
//! sockets, the simulator of the tests on a network that it makes up.
//!
//! Whoever drives it does what [`Node::actions`] asks for, and hands [`Node::news`] on in their order, before
//! anything else is put in.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use foldhash::{HashMap, HashMapExt};

use super::frame::{self, Frame, Hello, Violation};
use super::identity::Identity;
use super::link::{Conn, Inlet};
use super::log::{Capacity, Log};
use super::members::{Members, Seen};
use super::peer::Peer;
use super::profile::Profile;
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
    pub profile: Profile,
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
    refused: u64,
    /// Events that the log had no room for, while somebody lacked them.
    lost: u64,
}

impl Node {
    /// A node that begins to look for others at the first [`Node::tick`].
    pub fn new(config: Config, now: Instant) -> Self {
        Self {
            name: config.identity.node.as_ref().into(),
            members: Members::new(config.identity.clone(), &config.profile, config.dice, now),
            log: Log::new(config.capacity),
            peers: BTreeMap::new(),
            lines: HashMap::new(),
            next_conn: 1,
            next_announce: now,
            next_round: now,
            actions: Vec::new(),
            news: Vec::new(),
            is_leaving: false,
            refused: 0,
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
        if self.peers.values().all(|peer| !peer.holds_log()) {
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
        let taken = self.members.datagram(bytes, now);
        self.settle(now);
        taken
    }

    /// A connection that was asked for stands.
    pub fn connected(&mut self, conn: Conn, now: Instant) {
        let Some(Line { end: End::Outlet(name), heard, since, .. }) = self.lines.get_mut(&conn) else {
            return;
        };
        (*heard, *since) = (now, now);
        if let Some(peer) = self.peers.get_mut(name) {
            peer.outlet.connected(now);
        }
        wake(&mut self.lines, &mut self.actions, conn);
    }

    /// Somebody has connected, and proven to know the key.
    pub fn accepted(&mut self, now: Instant) -> Conn {
        self.line(End::Door(None), now)
    }

    /// A connection has ended, or was never made.
    pub fn closed(&mut self, conn: Conn, now: Instant) {
        match self.lines.remove(&conn).map(|line| line.end) {
            Some(End::Outlet(name)) => {
                if let Some(peer) = self.peers.get_mut(&name) {
                    peer.outlet.closed(now);
                }
                self.dial(now);
            }
            Some(End::Inlet(name)) => {
                if let Some(inlet) = self.peers.get_mut(&name).and_then(|peer| peer.inlet.as_mut()) {
                    inlet.conn = None;
                }
            }
            Some(End::Door(_)) | None => {}
        }
    }

    /// Bytes came on a connection: takes all whole frames out of `buffer`. An error: the connection is to be
    /// closed, and [`Node::closed`] told.
    pub fn received(&mut self, conn: Conn, buffer: &mut BytesMut, now: Instant) -> Result<(), Violation> {
        let Some(line) = self.lines.get_mut(&conn) else { return Ok(()) };
        line.heard = now;
        match &line.end {
            End::Outlet(name) => {
                let name = name.clone();
                self.receive_acks(&name, buffer, now)
            }
            End::Inlet(name) => {
                let name = name.clone();
                self.receive_events(conn, &name, buffer, now)
            }
            End::Door(None) => match frame::take(buffer)? {
                Some(Frame::Hello(hello)) => self.greeted(conn, hello, now),
                Some(_) => Err(Violation::OutOfPlace("no hello at the beginning")),
                None => Ok(()),
            },
            // Nobody speaks before the first ack.
            End::Door(Some(_)) => Err(Violation::OutOfPlace("events before the first ack")),
        }
    }

    fn receive_acks(&mut self, name: &str, buffer: &mut BytesMut, now: Instant) -> Result<(), Violation> {
        let Some(peer) = self.peers.get_mut(name) else { return Ok(()) };
        peer.heard = Some(now);
        let mut last = None;
        while let Some(frame) = frame::take(buffer)? {
            let Frame::Ack(to) = frame else { return Err(Violation::OutOfPlace("not an ack")) };
            // The first one opens the way; of the others the last says it all.
            if !peer.outlet.is_open() {
                peer.outlet.ack(to, &self.log, now)?;
            }
            last = Some(to);
        }
        if let Some(to) = last {
            peer.outlet.ack(to, &self.log, now)?;
            let conn = peer.outlet.conn();
            self.trim();
            if let Some(conn) = conn {
                wake(&mut self.lines, &mut self.actions, conn);
            }
        }
        Ok(())
    }

    fn receive_events(
        &mut self,
        conn: Conn,
        name: &str,
        buffer: &mut BytesMut,
        now: Instant,
    ) -> Result<(), Violation> {
        let Some(peer) = self.peers.get_mut(name) else { return Ok(()) };
        peer.heard = Some(now);
        let Some(inlet) = peer.inlet.as_mut().filter(|inlet| inlet.conn == Some(conn)) else { return Ok(()) };
        let boot = peer.identity.boot;
        let (mut leaves, mut is_asked) = (false, false);
        inlet.came(buffer.len());
        while let Some(frame) = frame::take(buffer)? {
            match frame {
                Frame::Events(mut events) => {
                    events.skip(inlet.events(events.first, events.count)?);
                    if events.count > 0 {
                        self.news.push(News::Events { node: peer.name.clone(), boot, events });
                    }
                }
                Frame::Skip(to) => inlet.skip(to),
                Frame::Gap(to) => {
                    if let Some((from, to)) = inlet.gap(to) {
                        let node = peer.name.clone();
                        self.news.push(News::Change(Change::Gap { node, boot, from, to }));
                    }
                }
                Frame::Ping => is_asked = true,
                Frame::Bye => leaves = true,
                Frame::Hello(_) | Frame::Ack(_) => return Err(Violation::OutOfPlace("from whoever says")),
            }
        }
        // A little is acked by the next round: so that an ack for it holds up nothing.
        if is_asked || inlet.owes_much() {
            wake(&mut self.lines, &mut self.actions, conn);
        }
        if leaves {
            let identity = peer.identity.clone();
            self.members.farewell(identity, now);
            self.settle(now);
        }
        Ok(())
    }

    /// Somebody says who he is.
    fn greeted(&mut self, conn: Conn, hello: Hello, now: Instant) -> Result<(), Violation> {
        let own = self.members.own();
        if hello.to_boot != own.boot {
            return Err(Violation::OutOfPlace("a hello for another life of this node"));
        }
        if hello.from.node == own.node || hello.from.address == own.address {
            return Err(Violation::OutOfPlace("a hello from this node's own name or address"));
        }
        let from = hello.from.clone();
        if let Some(line) = self.lines.get_mut(&conn) {
            line.end = End::Door(Some(hello));
        }
        // Whoever greets, lives; membership may not have heard of it yet.
        self.members.vouch(from, now);
        self.settle(now);
        self.let_in(now);
        Ok(())
    }

    /// Lets those in who have greeted and are up.
    fn let_in(&mut self, now: Instant) {
        let waiting = self.lines.iter().filter_map(|(conn, line)| match &line.end {
            End::Door(Some(hello)) => Some((*conn, hello.clone())),
            _ => None,
        });
        let mut waiting: Vec<(Conn, Hello)> = waiting.collect();
        waiting.sort_unstable_by_key(|(conn, _)| *conn);
        for (conn, hello) in waiting {
            let Some(peer) = self.peers.get_mut(&*hello.from.node) else { continue };
            if !peer.is_up() || peer.identity.boot != hello.from.boot {
                continue;
            }
            peer.heard = Some(now);
            let inlet = peer.inlet.get_or_insert_with(|| Inlet::new(hello.has));
            inlet.came(0);
            let before = inlet.conn.replace(conn);
            let name = peer.name.clone();
            if let Some(line) = self.lines.get_mut(&conn) {
                line.end = End::Inlet(name);
            }
            // Two connections of one node: the one before is dead, or will be.
            before.into_iter().for_each(|before| self.close(before));
            wake(&mut self.lines, &mut self.actions, conn);
        }
    }

    /// Appends what is to be written on a connection. False: nothing, until it is woken.
    pub fn pull(&mut self, conn: Conn, out: &mut Vec<u8>, now: Instant) -> bool {
        let Some(line) = self.lines.get_mut(&conn) else { return false };
        let pulled = match &line.end {
            End::Outlet(name) => match self.peers.get_mut(name) {
                Some(peer) => {
                    let (to_boot, from) = (peer.identity.boot, self.members.own());
                    let greet = |has| Hello { from: from.clone(), to_boot, has };
                    let pulled = peer.outlet.pull(&peer.name, &self.log, greet, out);
                    if pulled {
                        peer.outlet.wrote(now);
                    }
                    pulled
                }
                None => false,
            },
            End::Inlet(name) => {
                let inlet = self.peers.get_mut(name).and_then(|peer| peer.inlet.as_mut());
                let last = inlet.filter(|inlet| inlet.conn == Some(conn)).and_then(Inlet::take_ack);
                last.inspect(|last| frame::ack(*last, out)).is_some()
            }
            End::Door(_) => false,
        };
        line.is_asleep = !pulled;
        pulled
    }

    /// A sign of life from a reader that waits for its handlers.
    pub fn still_here(&mut self, conn: Conn, now: Instant) {
        let Some(Line { end: End::Inlet(name), .. }) = self.lines.get(&conn) else { return };
        if let Some(inlet) = self.peers.get_mut(name).and_then(|peer| peer.inlet.as_mut()) {
            inlet.came(0);
        }
        if let Some(line) = self.lines.get_mut(&conn) {
            line.heard = now;
        }
        wake(&mut self.lines, &mut self.actions, conn);
    }

    /// When [`Node::tick`] is to be called next.
    pub fn due(&self) -> Instant {
        self.members.due().map_or(self.next_round, |due| due.min(self.next_round))
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        self.members.tick(now);
        if now >= self.next_announce {
            // Who knows nobody yet is in a hurry.
            let is_alone = !self.peers.values().any(Peer::is_up);
            let period = if is_alone { LONELY } else { self.config.profile.announce };
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
        let Profile { ping, silence, .. } = self.config.profile;
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
        }
        self.trim();
        self.dial(now);
    }

    /// Forgets events that nobody waits for.
    fn trim(&mut self) {
        let acked = self.peers.values().filter(|peer| peer.holds_log()).map(|peer| peer.outlet.acked()).min();
        self.log.forget(acked.unwrap_or(self.log.last()));
    }

    /// Dials whom it is time for.
    fn dial(&mut self, now: Instant) {
        if self.is_leaving {
            return;
        }
        let is_due = |peer: &&Peer| peer.is_up() && peer.outlet.dial_at().is_some_and(|at| at <= now);
        let due: Vec<Arc<str>> = self.peers.values().filter(is_due).map(|peer| peer.name.clone()).collect();
        for name in due {
            let conn = self.line(End::Outlet(name.clone()), now);
            if let Some(peer) = self.peers.get_mut(&name) {
                peer.outlet.dials(conn);
                self.actions.push(Action::Dial { conn, to: peer.identity.address });
            }
        }
    }

    fn line(&mut self, end: End, now: Instant) -> Conn {
        let conn = self.next_conn;
        self.next_conn += 1;
        self.lines.insert(conn, Line { end, since: now, heard: now, is_asleep: true });
        conn
    }

    fn close(&mut self, conn: Conn) {
        if self.lines.remove(&conn).is_some() {
            self.actions.push(Action::Close(conn));
        }
    }

    /// Does what follows from what membership found out.
    fn settle(&mut self, now: Instant) {
        for (to, bytes) in self.members.datagrams() {
            self.actions.push(Action::Datagram { to, bytes });
        }
        for seen in self.members.seen() {
            match seen {
                Seen::Up(identity) => self.came_up(identity, now),
                Seen::Down(identity) => self.went_down(&identity, now),
            }
        }
    }

    fn came_up(&mut self, identity: Identity, now: Instant) {
        if identity.node == self.config.identity.node {
            tracing::error!(
                "cluster: the server at {} calls itself `{}`, as this one does: give one of them another name, [cluster] node",
                identity.address,
                identity.node
            );
            return;
        }
        match self.peers.get_mut(&*identity.node) {
            Some(peer) if identity.boot < peer.identity.boot => return,
            Some(peer) if identity.boot == peer.identity.boot => {
                let was_down = peer.down_since.take().is_some();
                peer.is_given_up = false;
                peer.identity = identity;
                peer.outlet.hurry(now);
                if was_down {
                    self.news.push(News::Change(Change::Up(peer.name.clone())));
                }
            }
            known => {
                if let Some(before) = known {
                    let identity = before.identity.clone();
                    self.went_down(&identity, now);
                }
                self.forget_one();
                let peer = Peer::new(identity, self.log.last(), now);
                self.news.push(News::Change(Change::Up(peer.name.clone())));
                self.peers.insert(peer.name.clone(), peer);
            }
        }
        self.dial(now);
        self.let_in(now);
    }

    fn went_down(&mut self, identity: &Identity, now: Instant) {
        let Some(peer) = self.peers.get_mut(&*identity.node) else { return };
        let (known, gone) = (&peer.identity, identity);
        // News of a life, or of a return, that is over already.
        if !peer.is_up() || (known.boot, known.bump) > (gone.boot, gone.bump) {
            return;
        }
        peer.down_since = Some(now);
        self.news.push(News::Change(Change::Down(peer.name.clone())));
        // What it has stays known: only the connections go.
        let inlet = peer.inlet.as_mut().and_then(|inlet| inlet.conn.take());
        let outlet = peer.outlet.conn();
        peer.outlet.closed(now);
        inlet.into_iter().chain(outlet).for_each(|conn| self.close(conn));
    }

    /// Forgets the node that is down for longest where there are too many.
    fn forget_one(&mut self) {
        if self.peers.len() < PEERS {
            return;
        }
        let down = self.peers.values().filter_map(|peer| Some((peer.down_since?, peer.name.clone())));
        if let Some((_, name)) = down.min() {
            self.peers.remove(&name);
        }
    }

    /// Says farewell on the connections, after what they still owe. Whoever hears it closes them.
    pub fn farewell(&mut self) {
        self.is_leaving = true;
        for peer in self.peers.values_mut() {
            peer.outlet.bye();
            if let Some(conn) = peer.outlet.conn() {
                wake(&mut self.lines, &mut self.actions, conn);
            }
        }
    }

    /// True where no node is up that could still be told something.
    pub fn is_alone(&self) -> bool {
        !self.peers.values().any(|peer| peer.is_up() && peer.outlet.is_open())
    }

    /// Leaves the membership.
    pub fn leave(&mut self, now: Instant) {
        self.members.leave(now);
        self.settle(now);
    }

    /// Somebody is refused at the door. Answers how many were so far.
    pub fn refuse(&mut self) -> u64 {
        self.refused += 1;
        self.refused
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

    /// As people see it.
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
            refused: self.refused,
            lost: self.lost,
            members: self.peers.values().filter(is_listed).map(|peer| peer.member(&self.log, now)).collect(),
        }
    }
}

/// Has a connection pulled that sleeps.
fn wake(lines: &mut HashMap<Conn, Line>, actions: &mut Vec<Action>, conn: Conn) {
    if let Some(line) = lines.get_mut(&conn)
        && std::mem::take(&mut line.is_asleep)
    {
        actions.push(Action::Wake(conn));
    }
}
