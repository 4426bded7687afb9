//! Connections of the made-up network: bytes in order, in pieces as they fall, with a window.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rand::RngExt;

use super::super::frame::Violation;
use super::super::link::Conn;
use super::world::{Event, World, machine_of};

/// Bytes that may be under way in one direction.
pub const WINDOW: usize = 128 * 1024;

/// Number of a connection.
pub type PipeId = u64;

/// One end of a connection.
#[derive(Debug)]
pub struct End {
    pub machine: usize,
    /// Of which life of the machine.
    pub boot: u64,
    pub conn: Conn,
    /// It is open here.
    pub is_open: bool,
    /// What came and is not taken yet.
    pub buffer: BytesMut,
    /// What was sent from here and has not arrived.
    pub under_way: usize,
    /// It would send more, had it a window.
    pub is_blocked: bool,
    /// Pieces that came while nothing was read, or while the nodes were parted.
    pub held: VecDeque<Vec<u8>>,
    /// When the last piece that was sent from here arrives.
    pub last_at: Instant,
}

impl End {
    pub fn new(machine: usize, boot: u64, conn: Conn) -> Self {
        Self {
            machine,
            boot,
            conn,
            is_open: true,
            buffer: BytesMut::new(),
            under_way: 0,
            is_blocked: false,
            held: VecDeque::new(),
            last_at: super::world::epoch(),
        }
    }
}

/// A connection: who made it, who took it.
#[derive(Debug)]
pub struct Pipe {
    pub ends: [End; 2],
}

impl World {
    /// A node asks for a connection.
    pub(super) fn dial(&mut self, machine: usize, conn: Conn, to: SocketAddr, latency: u64) {
        let boot = self.machines[machine].boot;
        self.count += 1;
        let pipe = self.count;
        let (to, port) = (machine_of(to), to.port());
        let ends = [End::new(machine, boot, conn), End::new(to, 0, 0)];
        self.pipes.insert(pipe, Pipe { ends });
        self.after(latency, Event::Connect { pipe, to, port });
    }

    /// It arrives at whoever listens there.
    pub(super) fn connect(&mut self, pipe: PipeId, to: usize, port: u16) {
        let Some(End { machine, boot, conn, .. }) = self.pipes.get(&pipe).map(|pipe| &pipe.ends[0]) else {
            return;
        };
        let (machine, boot, conn) = (*machine, *boot, *conn);
        if !self.reaches(machine, to) {
            self.pipes.remove(&pipe);
            return self.after(3000, Event::Refused { machine, boot, conn });
        }
        let is_there = self.machines[to].port == port;
        let listening = self.machines[to].node.as_mut().filter(|_| is_there);
        let Some(node) = listening else {
            self.pipes.remove(&pipe);
            return self.after(1, Event::Refused { machine, boot, conn });
        };
        let accepted = node.accepted(self.now);
        let boot_there = self.machines[to].boot;
        self.machines[to].conns.insert(accepted, (pipe, 1));
        if let Some(pipe) = self.pipes.get_mut(&pipe) {
            pipe.ends[1] = End::new(to, boot_there, accepted);
        }
        let latency = self.dice.random_range(0..=self.latency);
        self.after(latency, Event::Connected { pipe, machine, boot, conn });
        self.settle(to);
    }

    /// Whoever asked for it learns that it stands.
    pub(super) fn connected(&mut self, pipe: PipeId, machine: usize, boot: u64, conn: Conn) {
        if !self.pipes.contains_key(&pipe) {
            return self.after(3000, Event::Refused { machine, boot, conn });
        }
        if self.machines[machine].boot != boot || self.machines[machine].node.is_none() {
            return self.tell_closed(pipe, 1);
        }
        self.machines[machine].conns.insert(conn, (pipe, 0));
        if let Some(node) = &mut self.machines[machine].node {
            node.connected(conn, self.now);
        }
        self.settle(machine);
    }

    /// A node writes what it has, as far as the window is open.
    pub(super) fn pull(&mut self, machine: usize, conn: Conn) {
        let Some((id, side)) = self.machines[machine].conns.get(&conn).copied() else { return };
        loop {
            let Some(end) = self.pipes.get_mut(&id).map(|pipe| &mut pipe.ends[side]) else { return };
            if end.under_way >= WINDOW {
                end.is_blocked = true;
                return;
            }
            let Some(node) = &mut self.machines[machine].node else { return };
            let mut out = Vec::new();
            if !node.pull(conn, &mut out, self.now) {
                return;
            }
            end.under_way += out.len();
            self.send(id, side, &out);
        }
    }

    fn send(&mut self, id: PipeId, side: usize, mut bytes: &[u8]) {
        // In pieces, one after the other: the first is the latest.
        let mut latency = self.dice.random_range(0..=self.latency);
        while !bytes.is_empty() {
            let most = bytes.len().min(4000);
            let (piece, rest) = bytes.split_at(self.dice.random_range(1..=most));
            let at = self.now + Duration::from_millis(latency);
            // Never before what was sent earlier: the queue keeps the order of the same time.
            let at = at.max(self.pipes[&id].ends[side].last_at);
            if let Some(pipe) = self.pipes.get_mut(&id) {
                pipe.ends[side].last_at = at;
            }
            self.at(at, Event::Bytes { pipe: id, to: 1 - side, bytes: piece.to_vec() });
            bytes = rest;
            latency += u64::from(self.dice.random_range(0..10) == 0);
        }
    }

    /// A piece comes to the machine of an end, which may not take it now.
    pub(super) fn arrive(&mut self, id: PipeId, to: usize, bytes: Vec<u8>) {
        let Some(pipe) = self.pipes.get(&id) else { return };
        let (from, machine) = (pipe.ends[1 - to].machine, pipe.ends[to].machine);
        let machine_state = &self.machines[machine];
        let is_there = machine_state.node.is_some() && machine_state.boot == pipe.ends[to].boot;
        let has_order = pipe.ends[to].held.is_empty();
        if !has_order || machine_state.is_paused || machine_state.is_slow || !self.reaches(from, machine) {
            if let Some(pipe) = self.pipes.get_mut(&id) {
                pipe.ends[to].held.push_back(bytes);
            }
            return;
        }
        if !is_there || !pipe.ends[to].is_open {
            // Nobody knows that connection: its sender is told so.
            return self.tell_closed(id, 1 - to);
        }
        self.take(id, to, &bytes);
    }

    /// A node takes bytes off a connection.
    fn take(&mut self, id: PipeId, to: usize, bytes: &[u8]) {
        let Some(pipe) = self.pipes.get_mut(&id) else { return };
        pipe.ends[1 - to].under_way = pipe.ends[1 - to].under_way.saturating_sub(bytes.len());
        let was_blocked = std::mem::take(&mut pipe.ends[1 - to].is_blocked);
        let (sender, sender_conn) = (pipe.ends[1 - to].machine, pipe.ends[1 - to].conn);
        let end = &mut pipe.ends[to];
        end.buffer.extend_from_slice(bytes);
        let (machine, conn) = (end.machine, end.conn);
        let mut buffer = std::mem::take(&mut end.buffer);
        if let Some(node) = &mut self.machines[machine].node {
            let received = node.received(conn, &mut buffer, self.now);
            if let Err(violation) = &received {
                // The two may differ in whom they take for which life: never in the order of what they say.
                assert!(is_honest(violation), "{violation}");
            }
            if !received.unwrap_or(false) {
                node.closed(conn, self.now);
                self.close(machine, conn);
            }
        }
        if let Some(pipe) = self.pipes.get_mut(&id) {
            pipe.ends[to].buffer = buffer;
        }
        self.settle(machine);
        if was_blocked && !self.machines[sender].is_paused {
            self.pull(sender, sender_conn);
        }
    }

    /// A node closes a connection.
    pub(super) fn close(&mut self, machine: usize, conn: Conn) {
        let Some((id, side)) = self.machines[machine].conns.remove(&conn) else { return };
        let Some(pipe) = self.pipes.get_mut(&id) else { return };
        pipe.ends[side].is_open = false;
        let (one, other) = (pipe.ends[0].machine, pipe.ends[1].machine);
        if self.reaches(one, other) {
            self.tell_closed(id, 1 - side);
        }
    }

    pub(super) fn tell_closed(&mut self, pipe: PipeId, to: usize) {
        let latency = self.dice.random_range(0..=self.latency);
        // What is under way may come before, or is lost.
        self.after(latency, Event::Closed { pipe, to });
    }

    /// An end learns that the other is gone.
    pub(super) fn closed(&mut self, id: PipeId, to: usize) {
        let Some(pipe) = self.pipes.get_mut(&id) else { return };
        let (machine, boot, conn) = (pipe.ends[to].machine, pipe.ends[to].boot, pipe.ends[to].conn);
        if self.machines[machine].is_paused {
            return self.machines[machine].held.push_back(Event::Closed { pipe: id, to });
        }
        self.pipes.remove(&id);
        if self.machines[machine].boot != boot || self.machines[machine].conns.remove(&conn).is_none() {
            return;
        }
        if let Some(node) = &mut self.machines[machine].node {
            node.closed(conn, self.now);
        }
        self.settle(machine);
    }

    /// What was held because nobody read, or because the nodes were parted, goes on.
    pub(super) fn flush(&mut self) {
        let ids: Vec<PipeId> = self.pipes.keys().copied().collect();
        ids.into_iter().for_each(|id| self.flush_one(id));
    }

    fn flush_one(&mut self, id: PipeId) {
        for to in 0..2 {
            let Some(pipe) = self.pipes.get_mut(&id) else { return };
            let (from, machine) = (pipe.ends[1 - to].machine, pipe.ends[to].machine);
            if self.machines[machine].is_paused
                || self.machines[machine].is_slow
                || !self.reaches(from, machine)
            {
                continue;
            }
            let Some(pipe) = self.pipes.get_mut(&id) else { return };
            for bytes in std::mem::take(&mut pipe.ends[to].held) {
                self.arrive(id, to, bytes);
            }
        }
    }

    pub(super) fn read_all(&mut self, machine: usize) {
        let ids: Vec<PipeId> = self.machines[machine].conns.values().map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.flush_one(id));
    }
}

fn is_honest(violation: &Violation) -> bool {
    let text = violation.to_string();
    text.contains("another life")
}
