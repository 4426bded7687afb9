//! Several nodes that tell one another, with a wire that does as the test says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use zephserver_plugin::contract::peer::Cid;
use zephserver_plugin::contract::presence::{Member, Presence};
use zephserver_plugin::contract::room::Join;
use zephserver_plugin::contract::session::User;

use super::super::super::{Letter, Outcome, Rooms, To};

/// Who is where, on which node: cid, room, name.
pub type Who = BTreeSet<(Cid, String, String)>;

pub struct Node {
    pub rooms: Rooms,
    name: String,
    is_up: bool,
    /// What its edges know.
    pub edge: BTreeMap<Cid, Join>,
    lives: u64,
}

/// Some nodes, and what is on its way from one to the other.
pub struct Net {
    pub nodes: Vec<Node>,
    pub wires: Vec<Vec<VecDeque<Presence>>>,
    pub now: Instant,
    micros: u64,
    /// Frames that the peers of each node got.
    pub frames: Vec<Vec<String>>,
}

impl Net {
    pub fn new(count: usize) -> Self {
        let now = Instant::now();
        let node = |number: usize| {
            let name = ["a", "b", "c", "d"][number].to_string();
            let rooms = Rooms::new(name.clone(), number as u64 + 1);
            Node { rooms, name, is_up: true, edge: BTreeMap::new(), lives: 1 }
        };
        let wires = (0..count).map(|_| (0..count).map(|_| VecDeque::new()).collect()).collect();
        let nodes = (0..count).map(node).collect();
        let mut net = Self { nodes, wires, now, micros: 1_000_000, frames: vec![Vec::new(); count] };
        for at in 0..count {
            net.greet(at);
        }
        net.run(Duration::ZERO);
        net
    }

    pub fn join(&mut self, at: usize, cid: Cid, room: &str, name: &str) {
        self.micros += 1;
        let user = (!name.is_empty()).then(|| User { id: format!("id-{name}"), username: name.into() });
        let join = Join {
            cid,
            edge: "e/E".into(),
            instance: 1,
            room: room.into(),
            user,
            again: false,
            since: Some(self.micros),
        };
        self.nodes[at].edge.insert(cid, join.clone());
        let now = self.now;
        let notices = self.nodes[at].rooms.join(join, now);
        self.take(at, notices.into());
    }

    pub fn leave(&mut self, at: usize, cid: Cid) {
        self.nodes[at].edge.remove(&cid);
        let now = self.now;
        let notices = self.nodes[at].rooms.leave(cid, now);
        self.take(at, notices.into());
    }

    /// Puts letters on their wires, and frames where the test sees them.
    pub fn take(&mut self, at: usize, outcome: Outcome) {
        let here = outcome.notices.iter().map(|notice| String::from_utf8(notice.frame.clone()).unwrap());
        self.frames[at].extend(here);
        for Letter { to, told } in outcome.letters {
            let told: Presence = serde_json::from_slice(&serde_json::to_vec(&told).unwrap()).unwrap();
            for other in 0..self.nodes.len() {
                let is_meant = match &to {
                    To::All => other != at,
                    To::Node(name) => *name == self.nodes[other].name,
                };
                if is_meant && self.nodes[other].is_up {
                    self.wires[at][other].push_back(told.clone());
                } else if is_meant && to != To::All {
                    // As the engine answers: there is no such node now.
                    let (now, name) = (self.now, self.nodes[other].name.clone());
                    let outcome = self.nodes[at].rooms.down(&name, now);
                    self.take(at, outcome);
                }
            }
        }
    }

    /// A node hears of all that are up.
    pub fn greet(&mut self, at: usize) {
        for other in 0..self.nodes.len() {
            if other != at && self.nodes[other].is_up {
                self.hears_of(at, other);
            }
        }
    }

    /// A node hears that another one is up, or of a gap.
    pub fn hears_of(&mut self, at: usize, other: usize) {
        let (name, now) = (self.nodes[other].name.clone(), self.now);
        let outcome = self.nodes[at].rooms.up(&name, now);
        self.take(at, outcome);
    }

    /// Delivers one message. False: there is none.
    pub fn deliver(&mut self, from: usize, to: usize) -> bool {
        let Some(told) = self.wires[from][to].pop_front() else { return false };
        let now = self.now;
        let outcome = self.nodes[to].rooms.heard(told, now);
        self.take(to, outcome);
        true
    }

    pub fn deliver_all(&mut self) {
        let count = self.nodes.len();
        while (0..count * count).any(|wire| self.deliver(wire / count, wire % count)) {}
    }

    pub fn due(&mut self) {
        for at in 0..self.nodes.len() {
            let now = self.now;
            if self.nodes[at].is_up && self.nodes[at].rooms.next_due().is_some_and(|due| due <= now) {
                let outcome = self.nodes[at].rooms.due(now);
                self.take(at, outcome);
            }
        }
    }

    /// Lets time pass, and everything arrive.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.due();
            self.deliver_all();
            if self.now >= end {
                return;
            }
            self.now += Duration::from_millis(50);
        }
    }

    /// The room service of a node begins from nothing; its edges tell it again.
    pub fn restart(&mut self, at: usize) {
        let now = self.now;
        let node = &mut self.nodes[at];
        node.lives += 1;
        node.rooms = Rooms::new(node.name.clone(), node.lives * 100 + at as u64);
        node.rooms.settle(now);
        for join in node.edge.clone().into_values() {
            assert_eq!(node.rooms.join(Join { again: true, ..join }, now), []);
        }
        self.greet(at);
    }

    pub fn carry(&mut self, at: usize) -> Vec<u8> {
        serde_json::to_vec(&self.nodes[at].rooms.snapshot(self.now)).unwrap()
    }

    /// A build begins with a state.
    pub fn begin_with(&mut self, at: usize, state: &[u8]) {
        let now = self.now;
        let node = &mut self.nodes[at];
        node.lives += 1;
        node.rooms = Rooms::new(node.name.clone(), node.lives * 100 + at as u64);
        node.rooms.restore(serde_json::from_slice(state).unwrap(), now);
        self.greet(at);
    }

    /// A build has failed: the one before begins with the state of then.
    pub fn take_back(&mut self, at: usize, state: &[u8]) {
        self.begin_with(at, state);
        let (now, node) = (self.now, &mut self.nodes[at]);
        node.lives += 1;
        node.rooms.doubt(node.lives * 100 + at as u64, now);
    }

    pub fn kill(&mut self, at: usize) {
        self.kill_unseen(at);
        let (now, name) = (self.now, self.nodes[at].name.clone());
        for other in (0..self.nodes.len()).filter(|other| *other != at) {
            let outcome = self.nodes[other].rooms.down(&name, now);
            self.take(other, outcome);
        }
    }

    /// A node is gone, and none of the others is told so.
    pub fn kill_unseen(&mut self, at: usize) {
        self.nodes[at].is_up = false;
        self.nodes[at].edge.clear();
        for other in 0..self.nodes.len() {
            self.wires[at][other].clear();
            self.wires[other][at].clear();
        }
    }

    /// A server starts with nothing on a node that was killed.
    pub fn start(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        (node.is_up, node.lives) = (true, node.lives + 1);
        node.rooms = Rooms::new(node.name.clone(), node.lives * 100 + at as u64);
        self.greet(at);
        for other in 0..self.nodes.len() {
            if other != at && self.nodes[other].is_up {
                self.hears_of(other, at);
            }
        }
    }

    pub fn list(&self, at: usize, room: &str) -> Vec<String> {
        let frame = self.nodes[at].rooms.user_list(room).frame;
        let frame: serde_json::Value = serde_json::from_slice(&frame).unwrap();
        serde_json::from_value(frame["data"].clone()).unwrap()
    }

    pub fn frames(&mut self, at: usize) -> Vec<String> {
        std::mem::take(&mut self.frames[at])
    }

    pub fn known(&self, at: usize, other: usize) -> Who {
        self.nodes[at].rooms.remote.members(&self.nodes[other].name).map(who).collect()
    }

    pub fn here(&self, at: usize) -> Who {
        self.nodes[at].rooms.present().map(who).collect()
    }

    /// Whom the edges of a node have.
    fn connected(&self, at: usize) -> Who {
        let who = |join: &Join| {
            let name = join.user.as_ref().map(|user| user.username.clone()).unwrap_or_default();
            (join.cid, join.room.clone(), name)
        };
        self.nodes[at].edge.values().map(who).collect()
    }

    /// Every node knows of itself and of every other one what is true, and the lists are the same everywhere.
    pub fn check(&self, what: &str) {
        for (at, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.is_up) {
            assert_eq!(self.here(at), self.connected(at), "{what}: {} of itself", node.name);
            for (other, that) in self.nodes.iter().enumerate().filter(|(other, _)| *other != at) {
                let is = if that.is_up { self.here(other) } else { Who::new() };
                assert_eq!(self.known(at, other), is, "{what}: {} of {}", node.name, that.name);
            }
            for room in ["r", "s"] {
                assert_eq!(self.list(at, room), self.list(self.first(), room), "{what}: {room}");
            }
        }
    }

    pub fn first(&self) -> usize {
        self.nodes.iter().position(|node| node.is_up).unwrap()
    }
}

fn who(member: Member) -> (Cid, String, String) {
    (member.cid, member.room, member.user.map(|user| user.username).unwrap_or_default())
}

impl Net {
    pub fn happen(&mut self, dice: &mut Dice, states: &mut [Option<Vec<u8>>]) {
        let (at, other) = (dice.roll(3), dice.roll(3));
        let cid = (at * 100 + dice.roll(20)) as Cid;
        let what = dice.roll(100);
        let is_alone = self.nodes.iter().filter(|node| node.is_up).count() == 1;
        match (what, self.nodes[at].is_up) {
            (0, true) => self.restart(at),
            (1, true) if !is_alone && dice.roll(2) == 0 => self.kill_unseen(at),
            (1, true) if !is_alone => self.kill(at),
            (1..=4, false) => self.start(at),
            (2, true) => {
                let state = self.carry(at);
                self.begin_with(at, &state);
                states[at] = Some(state);
            }
            (3, true) => {
                if let Some(state) = states[at].take() {
                    self.take_back(at, &state);
                    self.announce(at);
                }
            }
            (4, true) if at != other && self.nodes[other].is_up => self.hears_of(at, other),
            // Something is lost, and nobody says so.
            (5..=12, _) => drop(self.wires[at][other].pop_front()),
            (13..=45, true) => {
                self.join(at, cid, ["r", "s"][dice.roll(2)], ["", "Ann", "Bob", "Cid"][dice.roll(4)]);
            }
            (46..=60, true) => self.leave(at, cid),
            (61..=80, _) => drop(self.deliver(at, other)),
            (81..=90, _) => self.due(),
            _ => self.now += Duration::from_millis(dice.roll(100) as u64),
        }
    }

    /// The edges of a node tell of their peers again.
    pub fn announce(&mut self, at: usize) {
        let now = self.now;
        for join in self.nodes[at].edge.clone().into_values() {
            let notices = self.nodes[at].rooms.join(Join { again: true, ..join }, now);
            self.take(at, notices.into());
        }
    }
}

/// Numbers that look as if they came by chance, the same each time.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }
}
