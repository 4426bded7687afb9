//! Who comes and goes: what follows from what membership finds out, and from who greets.

use std::time::Instant;

use super::lines::wake;
use super::{Action, End, Node, PEERS};
use crate::Change;
use crate::hub::News;
use crate::mesh::frame::{Hello, Violation};
use crate::mesh::identity::Identity;
use crate::mesh::link::{Conn, Inlet};
use crate::mesh::members::Seen;
use crate::mesh::peer::Peer;

impl Node {
    /// Somebody says who he is.
    pub(super) fn greeted(&mut self, conn: Conn, hello: Hello, now: Instant) -> Result<(), Violation> {
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

    /// Does what follows from what membership found out.
    pub(super) fn settle(&mut self, now: Instant) {
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

    /// True where every node that is up has everything, and knows that this one goes.
    pub fn is_drained(&self) -> bool {
        let mut up = self.peers.values().filter(|peer| peer.holds_say());
        up.all(|peer| peer.outlet.is_over(&self.log))
    }

    /// Leaves the membership.
    pub fn leave(&mut self, now: Instant) {
        self.members.leave(now);
        self.settle(now);
    }
}
