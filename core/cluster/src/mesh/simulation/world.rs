//! The machines, the network between them, and what goes wrong with both.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::SmallRng;

use super::super::identity::Identity;
use super::super::link::Conn;
use super::super::log::Capacity;
use super::super::node::{Action, Config, Node};
use super::super::waits::Waits;
use super::checker::{Checker, Life, name};
use super::network::{End, Pipe, WINDOW};
use crate::SAY_TIMEOUT;

/// Datagrams that wait for a machine that is paused.
const DATAGRAMS: usize = 64;

/// Where nodes listen at first.
const PORT: u16 = 1000;

/// When the history begins.
pub fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

pub type PipeId = u64;

#[derive(Debug)]
pub enum Event {
    Tick {
        machine: usize,
        boot: u64,
    },
    Datagram {
        from: usize,
        to: usize,
        port: u16,
        bytes: Vec<u8>,
    },
    /// A connection arrives at whoever listens.
    Connect {
        pipe: PipeId,
        to: usize,
        port: u16,
    },
    /// The maker learns that it stands.
    Connected {
        pipe: PipeId,
        machine: usize,
        boot: u64,
        conn: Conn,
    },
    /// Nobody answered.
    Refused {
        machine: usize,
        boot: u64,
        conn: Conn,
    },
    Bytes {
        pipe: PipeId,
        to: usize,
        bytes: Vec<u8>,
    },
    /// One end learns that the other is gone.
    Closed {
        pipe: PipeId,
        to: usize,
    },
    /// A machine says something.
    Say {
        machine: usize,
        boot: u64,
        since: Option<Instant>,
    },
    Fault,
    Resume(usize),
    Wake(usize),
    Boot(usize),
    Join,
}

pub struct Machine {
    pub(super) node: Option<Node>,
    pub(super) boot: u64,
    /// Where its node listens.
    pub(super) port: u16,
    /// It is stopped: nothing of it runs, its kernel keeps what comes.
    pub(super) is_paused: bool,
    /// Its handlers are slow: it reads no connection.
    pub(super) is_slow: bool,
    /// What came while it was paused.
    pub(super) held: VecDeque<Event>,
    pub(super) conns: BTreeMap<Conn, (PipeId, usize)>,
}

pub struct World {
    pub(super) now: Instant,
    pub(super) dice: SmallRng,
    pub(super) queue: BinaryHeap<Reverse<(Instant, u64)>>,
    pub(super) events: BTreeMap<u64, Event>,
    pub(super) count: u64,
    pub(super) machines: Vec<Machine>,
    pub(super) pipes: BTreeMap<PipeId, Pipe>,
    /// Pairs that do not reach each other.
    pub(super) parted: BTreeSet<(usize, usize)>,
    /// Share of datagrams that are lost, in percent, and how late they are, in milliseconds.
    pub(super) loss: u32,
    pub(super) latency: u64,
    /// Mean time between two events of one machine, in milliseconds.
    pub(super) pace: u64,
    /// Small, so that logs overflow.
    pub(super) capacity: Capacity,
    pub(super) has_faults: bool,
    pub(super) checker: Checker,
}

fn address(machine: usize, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, machine as u8], port))
}

fn machine_of(address: SocketAddr) -> usize {
    match address {
        SocketAddr::V4(address) => usize::from(address.ip().octets()[3]),
        SocketAddr::V6(_) => unreachable!("addresses are made here"),
    }
}

impl World {
    pub fn new(count: usize, mut dice: SmallRng) -> Self {
        let (loss, latency) = (dice.random_range(0..15), dice.random_range(1..80));
        let pace = dice.random_range(5..400) * count as u64 / 4 + 1;
        let capacity = Capacity { events: dice.random_range(10..500), bytes: dice.random_range(500..20_000) };
        let machine = || Machine {
            node: None,
            boot: 0,
            port: PORT,
            is_paused: false,
            is_slow: false,
            held: VecDeque::new(),
            conns: BTreeMap::new(),
        };
        let mut world = Self {
            now: epoch(),
            dice,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            count: 0,
            machines: std::iter::repeat_with(machine).take(count).collect(),
            pipes: BTreeMap::new(),
            parted: BTreeSet::new(),
            loss,
            latency,
            pace,
            capacity,
            has_faults: false,
            checker: Checker::default(),
        };
        for machine in 0..count {
            let after = world.dice.random_range(0..3000);
            world.after(after, Event::Boot(machine));
        }
        world
    }

    pub(super) fn after(&mut self, ms: u64, event: Event) {
        self.at(self.now + Duration::from_millis(ms), event);
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.count += 1;
        self.queue.push(Reverse((at, self.count)));
        self.events.insert(self.count, event);
    }

    pub(super) fn any(&mut self) -> usize {
        self.dice.random_range(0..self.machines.len())
    }

    pub fn run_with_faults(&mut self, time: Duration) {
        self.has_faults = true;
        self.after(4000, Event::Fault);
        self.run(time);
    }

    /// No more faults, and the end of those that are.
    pub fn heal(&mut self) {
        self.has_faults = false;
        self.parted.clear();
        self.loss = 0;
        // There and back is less than any profile's wait for an answer.
        self.latency = self.latency.min(50);
        for machine in 0..self.machines.len() {
            self.happen(Event::Resume(machine));
            self.happen(Event::Wake(machine));
            if self.machines[machine].node.is_none() {
                self.happen(Event::Boot(machine));
            }
        }
        self.flush();
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(Reverse((at, number))) = self.queue.peek().copied() {
            if at > end {
                break;
            }
            self.queue.pop();
            self.now = at;
            if let Some(event) = self.events.remove(&number) {
                self.happen(event);
            }
        }
        self.now = end;
    }

    /// Says no more, lets everything arrive, and looks whether it did.
    pub fn check_end(&mut self) {
        self.pace = 0;
        self.run(Duration::from_secs(10));
        let lives: Vec<(Life, &Node)> = self
            .machines
            .iter()
            .enumerate()
            .filter_map(|(number, machine)| Some(((number, machine.boot), machine.node.as_ref()?)))
            .collect();
        self.checker.end(&lives, self.now);
        assert!(self.checker.events > 0, "a history without events shows nothing");
        let Checker { events, gaps, evictions, .. } = &self.checker;
        eprintln!(
            "{} nodes, {events} events handed on, {gaps} gaps, {evictions} evictions",
            self.machines.len()
        );
    }

    fn reaches(&self, one: usize, other: usize) -> bool {
        !self.parted.contains(&(one.min(other), one.max(other)))
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick { machine, .. }
            | Event::Datagram { to: machine, .. }
            | Event::Connect { to: machine, .. }
            | Event::Connected { machine, .. }
            | Event::Refused { machine, .. }
            | Event::Say { machine, .. }
                if self.machines[machine].is_paused =>
            {
                let held = &mut self.machines[machine].held;
                let datagrams = held.iter().filter(|held| matches!(held, Event::Datagram { .. })).count();
                if !matches!(event, Event::Datagram { .. }) || datagrams < DATAGRAMS {
                    held.push_back(event);
                }
            }
            Event::Tick { machine, boot } => self.tick(machine, boot),
            Event::Datagram { from, to, port, bytes } => {
                if self.reaches(from, to)
                    && self.machines[to].port == port
                    && let Some(node) = &mut self.machines[to].node
                {
                    node.datagram(&bytes, self.now).expect("nobody sends nonsense here");
                    self.settle(to);
                }
            }
            Event::Connect { pipe, to, port } => self.connect(pipe, to, port),
            Event::Connected { pipe, machine, boot, conn } => self.connected(pipe, machine, boot, conn),
            Event::Refused { machine, boot, conn } => {
                if self.machines[machine].boot == boot
                    && let Some(node) = &mut self.machines[machine].node
                {
                    node.closed(conn, self.now);
                    self.settle(machine);
                }
            }
            Event::Bytes { pipe, to, bytes } => self.arrive(pipe, to, bytes),
            Event::Closed { pipe, to } => self.closed(pipe, to),
            Event::Say { machine, boot, since } => self.say(machine, boot, since),
            Event::Fault => self.fault(),
            Event::Resume(machine) => self.resume(machine),
            Event::Wake(machine) => {
                self.machines[machine].is_slow = false;
                self.read_all(machine);
            }
            Event::Boot(machine) => self.boot(machine),
            Event::Join => {
                self.parted.clear();
                self.flush();
            }
        }
    }

    fn boot(&mut self, machine: usize) {
        if self.machines[machine].node.is_some() {
            return;
        }
        self.machines[machine].boot += 1;
        let boot = self.machines[machine].boot;
        // The first two are seeds: none of them has to be there, but where they are does not change.
        let seeds = vec![address(0, PORT), address(1, PORT)];
        if machine >= seeds.len() && self.dice.random_range(0..4) == 0 {
            self.machines[machine].port += 1;
        }
        let address = address(machine, self.machines[machine].port);
        // Clocks are wrong: a later life may count as the earlier one.
        let turn = self.dice.random_range(1..u64::MAX / 2);
        let identity = Identity { turn, ..Identity::new(address, &name(machine), boot) };
        let waits = if self.count.is_multiple_of(2) { Waits::LAN } else { Waits::FAST };
        let dice = self.dice.random_range(0..u64::MAX);
        let config = Config { identity, waits, capacity: self.capacity, seeds, dice };
        self.machines[machine].node = Some(Node::new(config, self.now));
        self.tick(machine, boot);
        let after = self.dice.random_range(0..self.pace.max(1));
        self.after(after, Event::Say { machine, boot, since: None });
    }

    fn tick(&mut self, machine: usize, boot: u64) {
        if self.machines[machine].boot != boot {
            return;
        }
        let Some(node) = &mut self.machines[machine].node else { return };
        node.tick(self.now);
        let due = node.due().max(self.now + Duration::from_millis(1));
        if self.machines[machine].is_slow {
            // As readers do that wait for their handlers.
            let conns: Vec<Conn> = self.machines[machine].conns.keys().copied().collect();
            for conn in conns {
                if let Some(node) = &mut self.machines[machine].node {
                    node.still_here(conn, self.now);
                }
            }
        }
        self.at(due, Event::Tick { machine, boot });
        self.settle(machine);
    }

    fn say(&mut self, machine: usize, boot: u64, since: Option<Instant>) {
        let others = self.machines.len();
        let told = self.dice.random_range(0..4) == 0;
        let other = self.dice.random_range(0..others);
        if self.machines[machine].boot != boot || self.pace == 0 {
            return;
        }
        let (now, life) = (self.now, (machine, boot));
        let Some(node) = &mut self.machines[machine].node else { return };
        let to = if told { node.up(&name(other)) } else { None };
        let payload = Checker::payload(life, node.said() + 1);
        let after = match node.say("event", payload.as_bytes(), to.as_ref(), now) {
            Ok(_) => {
                let seq = node.said();
                self.checker.said(life, seq, to.map(|_| other));
                Event::Say { machine, boot, since: None }
            }
            Err(until) => {
                let since = since.unwrap_or(now);
                assert!(until > now, "a wait for the past");
                // Others may make room meanwhile, and become the one to wait for.
                let patience = SAY_TIMEOUT * 2 * others as u32;
                assert!(now < since + patience, "{life:?} waits for ever for room");
                Event::Say { machine, boot, since: Some(since) }
            }
        };
        let wait = self.dice.random_range(0..2 * self.pace);
        self.after(wait, after);
        self.settle(machine);
    }

    /// Does what a node wants, and shows what it hands on.
    fn settle(&mut self, machine: usize) {
        loop {
            let Some(node) = &mut self.machines[machine].node else { return };
            let (news, actions) = (node.news(), node.actions());
            if news.is_empty() && actions.is_empty() {
                return;
            }
            let life = (machine, self.machines[machine].boot);
            if let Some(node) = &self.machines[machine].node {
                news.iter().for_each(|news| self.checker.handed_on(life, node, news));
            }
            actions.into_iter().for_each(|action| self.act(machine, action));
        }
    }

    fn act(&mut self, machine: usize, action: Action) {
        let latency = self.dice.random_range(0..=self.latency);
        match action {
            Action::Datagram { to, bytes } => {
                if self.dice.random_range(0..100) >= self.loss {
                    let (to, port) = (machine_of(to), to.port());
                    self.after(latency, Event::Datagram { from: machine, to, port, bytes });
                }
            }
            Action::Dial { conn, to } => {
                let boot = self.machines[machine].boot;
                self.count += 1;
                let pipe = self.count;
                let (to, port) = (machine_of(to), to.port());
                let ends = [End::new(machine, boot, conn), End::new(to, 0, 0)];
                self.pipes.insert(pipe, Pipe { ends });
                self.after(latency, Event::Connect { pipe, to, port });
            }
            Action::Close(conn) => self.close(machine, conn),
            Action::Wake(conn) => self.pull(machine, conn),
        }
    }

    fn connect(&mut self, pipe: PipeId, to: usize, port: u16) {
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

    fn connected(&mut self, pipe: PipeId, machine: usize, boot: u64, conn: Conn) {
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
    fn pull(&mut self, machine: usize, conn: Conn) {
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

    fn arrive(&mut self, id: PipeId, to: usize, bytes: Vec<u8>) {
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

    fn closed(&mut self, id: PipeId, to: usize) {
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
    fn flush(&mut self) {
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

    fn read_all(&mut self, machine: usize) {
        let ids: Vec<PipeId> = self.machines[machine].conns.values().map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.flush_one(id));
    }

    fn resume(&mut self, machine: usize) {
        self.machines[machine].is_paused = false;
        for event in std::mem::take(&mut self.machines[machine].held) {
            self.happen(event);
        }
        self.read_all(machine);
        let conns: Vec<Conn> = self.machines[machine].conns.keys().copied().collect();
        conns.into_iter().for_each(|conn| self.pull(machine, conn));
    }
}

fn is_honest(violation: &super::super::frame::Violation) -> bool {
    let text = violation.to_string();
    text.contains("another life")
}
