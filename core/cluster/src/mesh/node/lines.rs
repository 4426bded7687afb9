//! The connections of a node: what comes on them, what goes out on them.

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use foldhash::HashMap;

use super::{Action, End, Line, Node};
use crate::Change;
use crate::hub::News;
use crate::mesh::frame::{self, Frame, Hello, Violation};
use crate::mesh::link::{Conn, Inlet};
use crate::mesh::peer::Peer;

impl Node {
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

    /// Bytes came on a connection: takes all whole frames out of `buffer`. False: this node has no such connection
    /// any more. False or an error: it is to be closed, and [`Node::closed`] told.
    pub fn received(&mut self, conn: Conn, buffer: &mut BytesMut, now: Instant) -> Result<bool, Violation> {
        let Some(line) = self.lines.get_mut(&conn) else { return Ok(false) };
        line.heard = now;
        self.receive(conn, buffer, now)?;
        Ok(self.lines.contains_key(&conn))
    }

    fn receive(&mut self, conn: Conn, buffer: &mut BytesMut, now: Instant) -> Result<(), Violation> {
        let Some(line) = self.lines.get(&conn) else { return Ok(()) };
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

    /// Dials whom it is time for.
    pub(super) fn dial(&mut self, now: Instant) {
        let is_due = |peer: &&Peer| self.wants(peer) && peer.outlet.dial_at().is_some_and(|at| at <= now);
        let due: Vec<Arc<str>> = self.peers.values().filter(is_due).map(|peer| peer.name.clone()).collect();
        for name in due {
            let conn = self.line(End::Outlet(name.clone()), now);
            if let Some(peer) = self.peers.get_mut(&name) {
                peer.outlet.dials(conn);
                self.actions.push(Action::Dial { conn, to: peer.identity.address });
            }
        }
    }

    /// True where a connection is worth it.
    fn wants(&self, peer: &Peer) -> bool {
        peer.is_up() && !(self.is_leaving && peer.outlet.has_said_bye())
    }

    /// A connection that begins.
    pub(super) fn line(&mut self, end: End, now: Instant) -> Conn {
        let conn = self.next_conn;
        self.next_conn += 1;
        self.lines.insert(conn, Line { end, since: now, heard: now, is_asleep: true });
        conn
    }

    pub(super) fn close(&mut self, conn: Conn) {
        if self.lines.remove(&conn).is_some() {
            self.actions.push(Action::Close(conn));
        }
    }
}

/// Has a connection pulled that sleeps.
pub(super) fn wake(lines: &mut HashMap<Conn, Line>, actions: &mut Vec<Action>, conn: Conn) {
    if let Some(line) = lines.get_mut(&conn)
        && std::mem::take(&mut line.is_asleep)
    {
        actions.push(Action::Wake(conn));
    }
}
