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
        self.members.vouch(from.clone(), now);
        self.settle(now);
        self.replace(from, now);
        self.let_in(now);
        Ok(())
    }

    /// One has greeted from another address than the node of its name that is known. It is heard in its place where
    /// that one is down or started earlier: a clock that went back keeps nobody out.
    fn replace(&mut self, from: Identity, now: Instant) {
        let Some(peer) = self.peers.get(&*from.node) else { return };
        let (before, is_later) = (peer.identity.clone(), from.is_after(&peer.identity));
        if before.boot == from.boot || peer.is_up() && !is_later || !self.members.is_there(&from) {
            return;
        }
        if !is_later {
            tracing::info!(
                "cluster: `{}` at {} is heard now, though it started before the one at {}, which is down: the clock \
                 went back since, or two servers have this name",
                from.node,
                from.address,
                before.address
            );
        }
        self.went_down(&before, now);
        self.come(from, now);
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
            peer.before = None;
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
                Seen::Down(identity) => {
                    self.went_down(&identity, now);
                    self.succeed(&identity.node, now);
                }
            }
        }
    }

    /// A node is down: a life of it at another address may take its place, which was not let in beside it.
    fn succeed(&mut self, node: &str, now: Instant) {
        let Some(peer) = self.peers.get(node).filter(|peer| !peer.is_up()) else { return };
        if let Some(other) = self.members.other_life(&peer.identity) {
            self.came_up(other, now);
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
        if let Some(peer) = self.peers.get(&*identity.node).filter(|peer| peer.is_another(&identity)) {
            if peer.is_up() && peer.identity.is_after(&identity) {
                tracing::warn!(
                    "cluster: the server at {} calls itself `{}`, as the one at {} does, which started later: it is \
                     heard when that one is down. If both are to run give one another name, [cluster] node",
                    identity.address,
                    identity.node,
                    peer.identity.address
                );
            }
            // This may be old news. Whoever lives there greets; unless all that is known of the other is hearsay, too:
            // then both would wait for that, where both have moved.
            if peer.is_up() || peer.inlet.is_some() {
                return;
            }
        }
        self.come(identity, now);
    }

    /// A node is up, in a life that is known or in another one.
    fn come(&mut self, identity: Identity, now: Instant) {
        self.bring_back(&identity, now);
        match self.peers.get_mut(&*identity.node) {
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
                    let before = before.identity.clone();
                    self.went_down(&before, now);
                }
                self.begin(identity, now);
            }
        }
        self.dial(now);
        self.let_in(now);
    }

    /// Another life begins, or a node that was not known.
    fn begin(&mut self, identity: Identity, now: Instant) {
        self.forget_one();
        let mut peer = Peer::new(identity, self.log.last(), now);
        self.news.push(News::Change(Change::Up(peer.name.clone())));
        peer.before = self.peers.remove(&peer.name).filter(|before| !before.is_given_up).map(Box::new);
        if let Some(before) = &mut peer.before {
            before.before = None;
        }
        self.peers.insert(peer.name.clone(), peer);
    }

    /// Where a life is up again after which another one had begun: that was old news, and this one goes on.
    fn bring_back(&mut self, identity: &Identity, now: Instant) {
        let Some(peer) = self.peers.get_mut(&*identity.node) else { return };
        let Some(before) = peer.before.take_if(|before| before.identity.boot == identity.boot) else {
            return;
        };
        let other = peer.identity.clone();
        self.went_down(&other, now);
        self.peers.insert(before.name.clone(), *before);
    }

    fn went_down(&mut self, identity: &Identity, now: Instant) {
        let Some(peer) = self.peers.get_mut(&*identity.node) else { return };
        // News of another life, or of a time before a return.
        let is_of_now = peer.identity.boot == identity.boot && !peer.identity.is_after(identity);
        if !peer.is_up() || !is_of_now {
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
