//! Who is where. Pure: answers what is to be said to whom. [`remote`] knows the members of other nodes,
//! [`cluster`] what is told to those and asked of them, and [`settle`] how a service begins whose edges have peers.

mod carry;
mod cids;
mod cluster;
mod list;
mod remote;
mod settle;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use zephserver_plugin::contract::peer::Cid;
use zephserver_plugin::contract::presence::{Change, Member as Present};
use zephserver_plugin::contract::room::{Address, Join};
use zephserver_plugin::contract::session::User;

pub use cids::Whereabouts;
use cluster::Cluster;
pub use cluster::{Letter, Outcome, To};
pub use list::RoomList;
use remote::{Remote, Way};

/// The longest name of a room, in bytes.
pub const LONGEST_NAME: usize = 1024;

/// So many who come or go at once are named one by one; of more only the list tells.
const MOST_MOVES: usize = 100;

/// A room's list of users is sent at most this often.
pub const LIST_PERIOD: Duration = Duration::from_millis(50);

/// In a room of more members proportionally less often.
const BIG: usize = 1000;

/// What is remarked at most: each thing once.
const REMARKS: usize = 256;

/// Every room with its members.
#[derive(Debug, Default)]
pub struct Rooms {
    members: HashMap<Cid, Member>,
    /// A room without members does not exist.
    rooms: HashMap<Arc<str>, Room>,
    /// Paths of edges; members name them by their place here.
    edges: Vec<String>,
    /// Rooms whose list is to be sent at a time.
    late: BTreeSet<(Instant, Arc<str>)>,
    /// The latest time at which a member has come.
    latest: u64,
    remote: Remote,
    cluster: Cluster,
    /// Whom the instance before has left is believed only when an edge has told of it: see [`Rooms::doubt`].
    is_doubting: bool,
    /// What operators should know, and how much of it they were told.
    remarks: Vec<String>,
    remarked: usize,
}

#[derive(Debug)]
struct Member {
    /// When it came: microseconds since 1970. No two are the same, unless an edge has told of them again.
    since: u64,
    room: Arc<str>,
    edge: u32,
    /// Which instance of the edge has told of it.
    instance: u32,
    user: Option<Arc<User>>,
    /// The instance before has left it, and no edge has told this one of it yet.
    is_inherited: bool,
}

#[derive(Debug, Default)]
struct Room {
    /// Members in the order they joined.
    members: Vec<Seat>,
    /// When the list of users was sent last.
    listed: Option<Instant>,
    is_late: bool,
}

/// A member in its room.
#[derive(Clone, Copy, Debug)]
struct Seat {
    since: u64,
    cid: Cid,
    edge: u32,
}

/// Who came to a room, and who left.
type Moves = Vec<(Way, Arc<User>)>;

/// Cids by the edge that has them.
pub type ByEdge = BTreeMap<String, Vec<Cid>>;

/// One frame for some peers.
#[derive(Debug, PartialEq, Eq)]
pub struct Notice {
    /// Shared by the notices that one change makes.
    pub to: Arc<ByEdge>,
    pub frame: Vec<u8>,
}

/// A notice on the wire; keys in this order.
#[derive(Serialize)]
struct Frame<'a, D: Serialize> {
    msgtype: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<&'a str>,
    data: D,
}

fn frame(msgtype: &str, username: Option<&str>, data: impl Serialize) -> Vec<u8> {
    // Texts and lists of texts: always JSON.
    serde_json::to_vec(&Frame { msgtype, username, data }).unwrap_or_default()
}

impl Rooms {
    /// The rooms of a node of this name, which knows of nobody. `life` is a number that no other beginning has.
    pub fn new(node: String, life: u64) -> Self {
        Self { cluster: Cluster::new(node, life), ..Self::default() }
    }

    /// A peer comes into a room; out of the one it is in, if it is in another.
    pub fn join(&mut self, join: Join, now: Instant) -> Vec<Notice> {
        let (cid, again) = (join.cid, join.again);
        if again {
            self.settle_on(now);
        }
        let Some(mut notices) = self.seat(join, now) else { return Vec::new() };
        let Some(Member { room, user, .. }) = self.members.get(&cid) else { return notices };
        let (room, user) = (room.clone(), user.clone());
        // Nobody sees one come that is told of again. Once this has settled, that is one whom the lists lack.
        if !again && let Some(user) = user {
            notices.push(self.notice(&room, "join", Some(&user.username), " joined the chat room."));
        }
        if !again || self.cluster.settling.is_none() {
            notices.extend(self.list(&room, now));
        }
        notices
    }

    /// Gives a peer its place; what those are told whom it leaves. None: it has its place already.
    fn seat(&mut self, join: Join, now: Instant) -> Option<Vec<Notice>> {
        let Join { cid, edge, instance, room, user, again, since } = join;
        let stays = |member: &&mut Member| *member.room == *room && member.user.as_deref() == user.as_ref();
        if let Some(member) = self.members.get_mut(&cid).filter(stays) {
            member.is_inherited = false;
            return None;
        }
        let notices = self.leave(cid, now);
        let edge = self.edge(edge);
        let room: Arc<str> = match self.rooms.get_key_value(room.as_str()) {
            Some((known, _)) => known.clone(),
            None => room.into(),
        };
        let since = self.since(since, again);
        let user = user.map(Arc::new);
        self.rooms.entry(room.clone()).or_default().seat(Seat { since, cid, edge });
        let (name, known) = (room.clone(), user.clone());
        let member = Member { since, room: name, edge, instance, user: known, is_inherited: false };
        self.members.insert(cid, member);
        self.note_collision(cid, None);
        let present = || Present { cid, since, room: room.to_string(), user: user.as_deref().cloned() };
        self.changed(|| Change::Join(present()), now);
        Some(notices)
    }

    /// When a member came: each later than those before, whatever the clock does; who is told of again, when it
    /// came then.
    fn since(&mut self, since: Option<u64>, again: bool) -> u64 {
        let next = self.latest.saturating_add(1);
        let since = match since {
            Some(since) if again => since,
            since => since.unwrap_or_default().max(next),
        };
        self.latest = self.latest.max(since);
        since
    }

    /// A peer is gone.
    pub fn leave(&mut self, cid: Cid, now: Instant) -> Vec<Notice> {
        let Some(Member { room: name, user, .. }) = self.members.remove(&cid) else { return Vec::new() };
        self.changed(|| Change::Leave(cid), now);
        let Some(room) = self.rooms.get_mut(&name) else { return Vec::new() };
        room.members.retain(|seat| seat.cid != cid);
        if room.members.is_empty() {
            self.rooms.remove(&name);
            return Vec::new();
        }
        let left = user.map(|user| self.notice(&name, "leave", Some(&user.username), " left the chat room."));
        left.into_iter().chain(self.list(&name, now)).collect()
    }

    /// All peers of an edge are gone that this instance of it had: those that it, or one before it, has told of.
    pub fn lose_edge(&mut self, edge: &str, instance: u32, now: Instant) -> Vec<Notice> {
        let Some(place) = self.edges.iter().position(|known| known == edge) else { return Vec::new() };
        let place = place as u32;
        // First all are gone, then those who stay are told: nobody tells the lost of the lost.
        let left = self.take_out(|member| member.edge == place && member.instance <= instance, now);
        left.into_iter().flat_map(|(name, moves)| self.tell_room(&name, moves, now)).collect()
    }

    /// These peers are gone, all at once: who left each room in which somebody stays.
    fn take_out(&mut self, is_gone: impl Fn(&Member) -> bool, now: Instant) -> BTreeMap<Arc<str>, Moves> {
        let mut left: BTreeMap<Arc<str>, Moves> = BTreeMap::new();
        let mut cids = Vec::new();
        self.members.retain(|cid, member| {
            let is_gone = is_gone(member);
            if is_gone {
                let user = member.user.take().map(|user| (Way::Left, user));
                left.entry(member.room.clone()).or_default().extend(user);
                cids.push(*cid);
            }
            !is_gone
        });
        cids.into_iter().for_each(|cid| self.changed(|| Change::Leave(cid), now));
        left.retain(|name, _| {
            let Some(room) = self.rooms.get_mut(name) else { return false };
            room.members.retain(|seat| self.members.contains_key(&seat.cid));
            if room.members.is_empty() {
                self.rooms.remove(name);
                return false;
            }
            true
        });
        left
    }

    /// Tells the members of a room who came and went.
    fn tell_room(&mut self, name: &Arc<str>, moves: Moves, now: Instant) -> Vec<Notice> {
        if !self.rooms.contains_key(name) {
            return Vec::new();
        }
        if moves.len() > MOST_MOVES {
            // A node came or went: a notice for each of them to each of those who are here would be too much.
            return self.list(name, now).into_iter().collect();
        }
        let to = Arc::new(self.at(&Address::Room(name)));
        let told = moves.into_iter().map(|(way, user)| {
            let (msgtype, data) = match way {
                Way::Joined => ("join", " joined the chat room."),
                Way::Left => ("leave", " left the chat room."),
            };
            Notice { to: to.clone(), frame: frame(msgtype, Some(&user.username), data) }
        });
        let mut notices: Vec<Notice> = told.collect();
        notices.extend(self.list(name, now));
        notices
    }

    /// Lists whose time has come.
    pub fn lists_due(&mut self, now: Instant) -> Vec<Notice> {
        let mut notices = Vec::new();
        if self.is_doubting {
            return notices;
        }
        while self.late.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, name)) = self.late.pop_first()
        {
            if let Some(room) = self.rooms.get_mut(&name) {
                room.is_late = false;
                room.listed = Some(now);
                notices.push(self.user_list(&name));
            }
        }
        notices
    }

    /// When a list is to be sent next.
    pub fn next_list(&self) -> Option<Instant> {
        self.late.first().map(|(at, _)| *at).filter(|_| !self.is_doubting)
    }

    /// What operators should know and were not told yet.
    pub fn remarks(&mut self) -> Vec<String> {
        let new = self.remarks[self.remarked..].to_vec();
        self.remarked = self.remarks.len();
        new
    }

    /// Something that operators should know. Each is said once.
    fn remark(&mut self, remark: String) {
        if self.remarks.len() < REMARKS && !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }

    /// Everybody who is in a room here.
    fn present(&self) -> impl Iterator<Item = Present> {
        self.members.iter().map(|(cid, member)| Present {
            cid: *cid,
            since: member.since,
            room: member.room.to_string(),
            user: member.user.as_deref().cloned(),
        })
    }

    /// Who is at an address, on this node.
    pub fn at(&self, address: &Address<'_>) -> ByEdge {
        let all = |member: (&Cid, &Member)| (*member.0, member.1.edge);
        match address {
            Address::Room(room) => match self.rooms.get(*room) {
                Some(room) => self.by_edge(room.members.iter().map(|seat| (seat.cid, seat.edge))),
                None => ByEdge::new(),
            },
            Address::Cid(cid) => self.by_edge(self.members.get_key_value(cid).map(all).into_iter()),
            Address::All => self.by_edge(self.members.iter().map(all)),
            Address::Users(users) => {
                let is_one = |member: &Member| {
                    member.user.as_ref().is_some_and(|user| users.contains(&user.id.as_str()))
                };
                self.by_edge(self.members.iter().filter(|(_, member)| is_one(member)).map(all))
            }
        }
    }

    fn edge(&mut self, path: String) -> u32 {
        let place = self.edges.iter().position(|known| *known == path);
        place.unwrap_or_else(|| {
            self.edges.push(path);
            self.edges.len() - 1
        }) as u32
    }

    fn by_edge(&self, members: impl Iterator<Item = (Cid, u32)>) -> ByEdge {
        let mut by_place: Vec<Vec<Cid>> = vec![Vec::new(); self.edges.len()];
        for (cid, edge) in members {
            by_place[edge as usize].push(cid);
        }
        let some = self.edges.iter().zip(by_place).filter(|(_, cids)| !cids.is_empty());
        some.map(|(edge, cids)| (edge.clone(), cids)).collect()
    }

    fn notice(&self, room: &str, msgtype: &str, username: Option<&str>, data: impl Serialize) -> Notice {
        Notice { to: Arc::new(self.at(&Address::Room(room))), frame: frame(msgtype, username, data) }
    }

    /// The list of users now, or later where one was sent just before.
    fn list(&mut self, name: &Arc<str>, now: Instant) -> Option<Notice> {
        let room = self.rooms.get_mut(name)?;
        // Who is in doubt is in no list: each room gets one when this has settled.
        if room.is_late || self.is_doubting {
            return None;
        }
        // A list costs what it has names, for each member here.
        let names = room.members.len() + self.remote.count(name);
        let period = LIST_PERIOD * (names / BIG).max(1) as u32;
        match room.listed.map(|listed| listed + period) {
            Some(at) if at > now => {
                room.is_late = true;
                self.late.insert((at, name.clone()));
                None
            }
            _ => {
                room.listed = Some(now);
                Some(self.user_list(name))
            }
        }
    }

    /// One entry for each peer with a user, in the order they joined, on whatever node: the same list on all.
    fn user_list(&self, room: &str) -> Notice {
        let members = self.rooms.get(room).into_iter().flat_map(|room| &room.members);
        let here = members.filter_map(|seat| Some((seat, self.members.get(&seat.cid)?.user.as_ref()?)));
        let mut here = here.peekable();
        let mut away = self.remote.named(room).peekable();
        let mut names: Vec<&str> = Vec::new();
        loop {
            let is_here_first = match (here.peek(), away.peek()) {
                (None, None) => return self.notice(room, "user_list", None, names),
                (Some((seat, _)), Some(((since, node, cid), _))) => {
                    (seat.since, &*self.cluster.node, seat.cid) < (*since, &**node, *cid)
                }
                (here, _) => here.is_some(),
            };
            let user = match is_here_first {
                true => here.next().map(|(_, user)| user),
                false => away.next().map(|(_, user)| user),
            };
            names.extend(user.map(|user| user.username.as_str()));
        }
    }
}

impl Room {
    fn seat(&mut self, seat: Seat) {
        // Who comes is the last one, unless an edge tells again of those it has.
        let after = |known: &Seat| (known.since, known.cid) < (seat.since, seat.cid);
        let place = if self.members.last().is_none_or(after) {
            self.members.len()
        } else {
            self.members.partition_point(after)
        };
        self.members.insert(place, seat);
    }
}

#[cfg(test)]
mod tests;
