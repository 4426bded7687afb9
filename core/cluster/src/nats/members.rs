//! Who is there, and what of each is handed on. Pure: time comes from the caller, news go to a list.
//!
//! A broker knows no members. So each node gives a sign of life twice or more in the time after which others
//! take it for gone. Signs of life come beside the stream, and may be faster than it: a new life of a node that is
//! up begins with its hello in the stream, so that nothing of the old life comes after it; a node that is not up
//! may begin with whatever comes first. A farewell is in the stream, too, behind everything that was said.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::life::{Life, Out, Seen};
use super::wire::{Beat, Kind, Piece, read_body};
use crate::hub::News;
use crate::{Change, Incoming, Member, MemberState, Outgoing, Said};

/// Nodes that are known at a time; more are strangers.
const NODES: usize = 1024;
/// A node that is down is forgotten after this much time with the broker: the stream holds nothing of it then.
const FORGOTTEN: Duration = Duration::from_secs(15 * 60);
/// Signs of life of another with the same name, before it is said.
const SIGNS_OF_A_TWIN: u32 = 3;

struct Node {
    name: Arc<str>,
    life: Life,
    state: MemberState,
    has_left: bool,
    heard: Instant,
    /// Signs of another life since the last one of this life.
    others: u32,
    /// How often signs of two lives alternated.
    alternations: u32,
}

/// Whose a sign of life is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// This node's own: the way through the broker is open.
    Mine,
    Others,
}

/// All other nodes.
pub struct Members {
    me: Arc<str>,
    boot: u64,
    silence: Duration,
    nodes: HashMap<Arc<str>, Node>,
    up: usize,
    refused: u64,
    twins: u32,
    /// Since when the way to the broker is open.
    connected: Instant,
}

impl Members {
    /// Of a node in this life; others are gone after this much silence.
    pub fn new(me: Arc<str>, boot: u64, silence: Duration, now: Instant) -> Self {
        Self { me, boot, silence, nodes: HashMap::new(), up: 0, refused: 0, twins: 0, connected: now }
    }

    /// How many are up.
    pub fn up(&self) -> usize {
        self.up
    }

    pub fn is_up(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(Node::is_up)
    }

    /// What was refused: strangers, nonsense, nodes with the name of another.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Counts something that could not be read.
    pub fn refuse(&mut self) {
        self.refused += 1;
    }

    /// A sign of life.
    pub fn beat(&mut self, now: Instant, beat: &Beat<'_>, news: &mut Vec<News>) -> Whose {
        if *beat.node == *self.me {
            if beat.boot == self.boot {
                return Whose::Mine;
            }
            self.twins += 1;
            warn_of_twin(beat.node, self.twins);
            return Whose::Others;
        }
        let Some(node) = node(&mut self.nodes, &mut self.refused, now, beat.node, beat.boot) else {
            return Whose::Others;
        };
        let was_up = node.is_up();
        if node.life.boot != beat.boot {
            if was_up {
                node.others += 1;
                return Whose::Others;
            }
            node.end(&self.me, news);
            node.begin(beat.boot);
        }
        node.life.was_stored(beat.stored);
        if !node.has_left {
            node.sign(now);
            node.rise(news);
        }
        self.up = self.up + usize::from(node.is_up()) - usize::from(was_up);
        Whose::Others
    }

    /// A piece of the stream.
    pub fn piece(&mut self, now: Instant, piece: Piece<'_>, news: &mut Vec<News>) {
        if *piece.node == *self.me {
            // An earlier life may have been about to say something; a twin is found by its signs of life.
            self.refused += u64::from(piece.boot != self.boot);
            return;
        }
        let Some(node) = node(&mut self.nodes, &mut self.refused, now, piece.node, piece.boot) else {
            return;
        };
        let was_up = node.is_up();
        if node.life.boot != piece.boot {
            let is_later = piece.boot > node.life.boot || piece.kind == Kind::Hello;
            if was_up && !is_later {
                self.refused += 1;
                return;
            }
            node.end(&self.me, news);
            node.begin(piece.boot);
        }
        let mut out = Vec::new();
        if node.life.take(now, piece.kind, piece.seq, piece.body, &mut out) == Seen::Never {
            node.heard = now;
            if piece.kind != Kind::Bye {
                node.rise(news);
            }
            self.refused += node.hand_on(&self.me, out, news);
        }
        self.up = self.up + usize::from(node.is_up()) - usize::from(was_up);
    }

    /// The stream has a hole here.
    pub fn tear(&mut self) {
        self.nodes.values_mut().for_each(|node| node.life.tear());
    }

    /// The way to the broker is open again, for others as well.
    pub fn wait_anew(&mut self, now: Instant) {
        self.connected = now;
        self.nodes.values_mut().for_each(|node| node.life.wait_anew(now));
    }

    /// Gives up what others did not send again, and forgets who is gone for long. Only while the way to the
    /// broker is open.
    pub fn give_up(&mut self, now: Instant, news: &mut Vec<News>) {
        for node in self.nodes.values_mut() {
            let mut out = Vec::new();
            node.life.tick(now, &mut out);
            if !out.is_empty() {
                let was_up = node.is_up();
                node.heard = now;
                node.rise(news);
                self.refused += node.hand_on(&self.me, out, news);
                self.up = self.up + usize::from(node.is_up()) - usize::from(was_up);
            }
        }
        let is_known = |node: &Node| now.duration_since(node.heard.max(self.connected)) < FORGOTTEN;
        self.nodes.retain(|_, node| node.is_up() || is_known(node));
    }

    /// Who was silent for too long is down.
    pub fn silence(&mut self, now: Instant, news: &mut Vec<News>) {
        for node in self.nodes.values_mut() {
            if node.is_up() && now.duration_since(node.heard) > self.silence {
                self.up -= 1;
                // What waits for missing pieces goes on waiting.
                node.sink(news);
            }
        }
    }

    /// This node is leaving: it knows nothing of others any more.
    pub fn leave(&mut self) {
        self.nodes.values_mut().for_each(|node| node.state = MemberState::Down);
        self.up = 0;
    }

    /// All that are known, by name.
    pub fn list(&self, now: Instant) -> Vec<Member> {
        let mut members: Vec<_> = self.nodes.values().map(|node| node.member(now)).collect();
        members.sort_by(|one, other| one.node.cmp(&other.node));
        members
    }
}

/// The node of this name; a new one where there is room.
fn node<'a>(
    nodes: &'a mut HashMap<Arc<str>, Node>,
    refused: &mut u64,
    now: Instant,
    name: &str,
    boot: u64,
) -> Option<&'a mut Node> {
    if !nodes.contains_key(name) {
        if nodes.len() >= NODES {
            *refused += 1;
            return None;
        }
        let name: Arc<str> = name.into();
        nodes.insert(name.clone(), Node::new(name, boot, now));
    }
    nodes.get_mut(name)
}

impl Node {
    fn new(name: Arc<str>, boot: u64, heard: Instant) -> Self {
        let (life, state) = (Life::new(boot), MemberState::Down);
        Self { name, life, state, has_left: false, heard, others: 0, alternations: 0 }
    }

    fn is_up(&self) -> bool {
        self.state == MemberState::Up
    }

    /// A sign of life of the life that is known.
    fn sign(&mut self, now: Instant) {
        self.heard = now;
        if std::mem::take(&mut self.others) > 0 {
            self.alternations += 1;
            warn_of_twin(&self.name, self.alternations);
        }
    }

    /// Up, where it was not.
    fn rise(&mut self, news: &mut Vec<News>) {
        if !self.is_up() {
            self.state = MemberState::Up;
            news.push(News::Change(Change::Up(self.name.clone())));
        }
    }

    /// Down, where it was not.
    fn sink(&mut self, news: &mut Vec<News>) {
        if self.is_up() {
            self.state = MemberState::Down;
            news.push(News::Change(Change::Down(self.name.clone())));
        }
    }

    /// Ends a life: what waits for missing pieces waits no longer.
    fn end(&mut self, me: &str, news: &mut Vec<News>) {
        let mut out = Vec::new();
        self.life.give_up(&mut out);
        if !out.is_empty() {
            self.rise(news);
            self.hand_on(me, out, news);
        }
        self.sink(news);
    }

    /// Begins a new life, where the old one has ended.
    fn begin(&mut self, boot: u64) {
        let incoming = Incoming { last: 0, ..self.life.incoming };
        self.life = Life::new(boot);
        self.life.incoming = incoming;
        self.has_left = false;
        self.others = 0;
    }

    /// Hands on what is for this node; answers how much of it was nonsense.
    fn hand_on(&mut self, me: &str, out: Vec<Out>, news: &mut Vec<News>) -> u64 {
        let mut refused = 0;
        for one in out {
            match one {
                Out::Gap(from, to) => {
                    news.push(News::Change(Change::Gap {
                        node: self.name.clone(),
                        boot: self.life.boot,
                        from,
                        to,
                    }));
                }
                Out::Bye => {
                    self.has_left = true;
                    self.sink(news);
                }
                Out::Event(seq, body) => match read_body(&body) {
                    None => refused += 1,
                    Some(body) if body.to.is_empty() || body.to == me.as_bytes() => {
                        self.life.incoming.events += 1;
                        let (node, boot) = (self.name.clone(), self.life.boot);
                        let (event, payload) = (body.event, body.payload);
                        news.push(News::Said(Said { node, boot, seq, event, payload }));
                    }
                    // For another node.
                    Some(_) => {}
                },
            }
        }
        refused
    }

    fn member(&self, now: Instant) -> Member {
        Member {
            node: self.name.to_string(),
            address: None,
            state: self.state,
            heard_ms: Some(u64::try_from(now.duration_since(self.heard).as_millis()).unwrap_or(u64::MAX)),
            outgoing: Outgoing::default(),
            incoming: self.life.incoming,
        }
    }
}

fn warn_of_twin(node: &str, count: u32) {
    // Now and then again, for those who look into the log later.
    if count == SIGNS_OF_A_TWIN || count.is_multiple_of(600) {
        tracing::error!(
            "two nodes of the cluster are called `{node}`, and what one of them says is lost: give one another \
             name, `[cluster] node`, and start it again"
        );
    }
}

#[cfg(test)]
mod tests;
