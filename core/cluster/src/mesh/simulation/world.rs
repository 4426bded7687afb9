//! The machines: what happens when, and what their nodes do then. Datagrams go from one to another here; connections
//! have a [module](super::connections) of their own.

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
use super::connections::{Pipe, PipeId};
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

pub fn machine_of(address: SocketAddr) -> usize {
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

    pub(super) fn at(&mut self, at: Instant, event: Event) {
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

    pub(super) fn reaches(&self, one: usize, other: usize) -> bool {
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
    pub(super) fn settle(&mut self, machine: usize) {
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
            Action::Dial { conn, to } => self.dial(machine, conn, to, latency),
            Action::Close(conn) => self.close(machine, conn),
            Action::Wake(conn) => self.pull(machine, conn),
        }
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
