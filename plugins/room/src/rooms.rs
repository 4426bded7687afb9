//! Who is where. Pure: answers what is to be said to whom.

mod list;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use zephserver_plugin::contract::peer::Cid;
use zephserver_plugin::contract::room::{Address, Join};
use zephserver_plugin::contract::session::User;

pub use list::RoomList;

/// A room's list of users is sent at most this often.
pub const LIST_PERIOD: Duration = Duration::from_millis(50);

/// In a room of more members proportionally less often.
const BIG: usize = 1000;

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
}

#[derive(Debug)]
struct Member {
    room: Arc<str>,
    edge: u32,
    /// Which instance of the edge has told of it.
    instance: u32,
    user: Option<Arc<User>>,
}

#[derive(Debug, Default)]
struct Room {
    /// Members in the order they joined, each with its edge.
    members: Vec<(Cid, u32)>,
    /// When the list of users was sent last.
    listed: Option<Instant>,
    is_late: bool,
}

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
    /// A peer comes into a room; out of the one it is in, if it is in another.
    pub fn join(&mut self, join: Join, now: Instant) -> Vec<Notice> {
        let Join { cid, edge, instance, room, user, again } = join;
        let stays = |member: &Member| *member.room == *room && member.user.as_deref() == user.as_ref();
        if self.members.get(&cid).is_some_and(stays) {
            return Vec::new();
        }
        let mut notices = self.leave(cid, now);
        let edge = self.edge(edge);
        let room: Arc<str> = match self.rooms.get_key_value(room.as_str()) {
            Some((known, _)) => known.clone(),
            None => room.into(),
        };
        let user = user.map(Arc::new);
        self.rooms.entry(room.clone()).or_default().members.push((cid, edge));
        self.members.insert(cid, Member { room: room.clone(), edge, instance, user: user.clone() });
        if again {
            return notices;
        }
        if let Some(user) = user {
            notices.push(self.notice(&room, "join", Some(&user.username), " joined the chat room."));
        }
        notices.extend(self.list(&room, now));
        notices
    }

    /// A peer is gone.
    pub fn leave(&mut self, cid: Cid, now: Instant) -> Vec<Notice> {
        let Some(Member { room: name, user, .. }) = self.members.remove(&cid) else { return Vec::new() };
        let Some(room) = self.rooms.get_mut(&name) else { return Vec::new() };
        room.members.retain(|(known, _)| *known != cid);
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
        let mut left: BTreeMap<Arc<str>, Vec<Arc<User>>> = BTreeMap::new();
        self.members.retain(|_, member| {
            let is_lost = member.edge == place && member.instance <= instance;
            if is_lost {
                left.entry(member.room.clone()).or_default().extend(member.user.take());
            }
            !is_lost
        });
        let mut notices = Vec::new();
        for (name, users) in left {
            let Some(room) = self.rooms.get_mut(&name) else { continue };
            room.members.retain(|(cid, _)| self.members.contains_key(cid));
            if room.members.is_empty() {
                self.rooms.remove(&name);
                continue;
            }
            let to = Arc::new(self.at(&Address::Room(&name)));
            for user in users {
                let frame = frame("leave", Some(&user.username), " left the chat room.");
                notices.push(Notice { to: to.clone(), frame });
            }
            notices.extend(self.list(&name, now));
        }
        notices
    }

    /// Lists whose time has come.
    pub fn lists_due(&mut self, now: Instant) -> Vec<Notice> {
        let mut notices = Vec::new();
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
        self.late.first().map(|(at, _)| *at)
    }

    /// Who is at an address.
    pub fn at(&self, address: &Address<'_>) -> ByEdge {
        let all = |member: (&Cid, &Member)| (*member.0, member.1.edge);
        match address {
            Address::Room(room) => match self.rooms.get(*room) {
                Some(room) => self.by_edge(room.members.iter().copied()),
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
        if room.is_late {
            return None;
        }
        // A list costs what its room has members, for each of them.
        let period = LIST_PERIOD * (room.members.len() / BIG).max(1) as u32;
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

    /// One entry for each peer with a user, in the order they joined.
    fn user_list(&self, room: &str) -> Notice {
        let members = self.rooms.get(room).into_iter().flat_map(|room| &room.members);
        let user = |(cid, _): &(Cid, u32)| Some(self.members.get(cid)?.user.as_ref()?.username.as_str());
        let names: Vec<&str> = members.filter_map(user).collect();
        self.notice(room, "user_list", None, names)
    }
}

/// Rooms as they are handed over.
#[derive(Serialize, Deserialize)]
pub struct Snapshot {
    members: HashMap<Cid, Known>,
    rooms: HashMap<String, Vec<Cid>>,
    #[serde(default)]
    late: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Known {
    room: String,
    edge: String,
    #[serde(default)]
    instance: u32,
    user: Option<User>,
}

impl Rooms {
    pub fn snapshot(&self) -> Snapshot {
        let known = |(cid, member): (&Cid, &Member)| {
            let edge = self.edges[member.edge as usize].clone();
            let (room, instance) = (member.room.to_string(), member.instance);
            (*cid, Known { room, edge, instance, user: member.user.as_deref().cloned() })
        };
        let cids = |(name, room): (&Arc<str>, &Room)| {
            (name.to_string(), room.members.iter().map(|(cid, _)| *cid).collect())
        };
        Snapshot {
            members: self.members.iter().map(known).collect(),
            rooms: self.rooms.iter().map(cids).collect(),
            late: self.late.iter().map(|(_, name)| name.to_string()).collect(),
        }
    }

    pub fn restore(snapshot: Snapshot, now: Instant) -> Self {
        let mut rooms = Self::default();
        let Snapshot { mut members, rooms: names, late } = snapshot;
        for (name, cids) in names {
            for cid in cids {
                if let Some(Known { room, edge, instance, user }) = members.remove(&cid) {
                    rooms.join(Join { cid, edge, instance, room, user, again: true }, now);
                }
            }
            debug_assert!(rooms.rooms.contains_key(name.as_str()));
        }
        for name in late {
            let name: Arc<str> = name.into();
            if let Some(room) = rooms.rooms.get_mut(&name) {
                room.is_late = true;
                rooms.late.insert((now, name));
            }
        }
        rooms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(cid: Cid, room: &str, name: Option<&str>) -> Join {
        let user = name.map(|name| User { id: format!("id-{name}"), username: name.into() });
        Join { cid, edge: "e/E".into(), instance: 1, room: room.into(), user, again: false }
    }

    /// A time after which every list is sent at once.
    fn later(start: Instant, step: u32) -> Instant {
        start + LIST_PERIOD * step
    }

    fn frames(notices: &[Notice]) -> Vec<(Vec<Cid>, &str)> {
        notices
            .iter()
            .map(|notice| {
                (notice.to.values().flatten().copied().collect(), std::str::from_utf8(&notice.frame).unwrap())
            })
            .collect()
    }

    #[test]
    fn join_then_user_list_and_leave_then_user_list() {
        let mut rooms = Rooms::default();
        let start = Instant::now();
        rooms.join(join(1, "r", Some("Ann")), later(start, 1));
        let joined = rooms.join(join(2, "r", Some("Bob")), later(start, 2));
        assert_eq!(
            frames(&joined),
            [
                (vec![1, 2], r#"{"msgtype":"join","username":"Bob","data":" joined the chat room."}"#),
                (vec![1, 2], r#"{"msgtype":"user_list","data":["Ann","Bob"]}"#),
            ]
        );
        let left = rooms.leave(1, later(start, 13));
        assert_eq!(
            frames(&left),
            [
                (vec![2], r#"{"msgtype":"leave","username":"Ann","data":" left the chat room."}"#),
                (vec![2], r#"{"msgtype":"user_list","data":["Bob"]}"#),
            ]
        );
        assert_eq!(rooms.leave(2, later(start, 14)), []);
        assert!(rooms.rooms.is_empty() && rooms.members.is_empty());
    }

    #[test]
    fn anonymous_peers_are_not_named() {
        let mut rooms = Rooms::default();
        let start = Instant::now();
        assert_eq!(
            frames(&rooms.join(join(1, "r", None), later(start, 3))),
            [(vec![1], r#"{"msgtype":"user_list","data":[]}"#)]
        );
    }

    #[test]
    fn a_second_hello_leaves_no_ghost() {
        let mut rooms = Rooms::default();
        let start = Instant::now();
        rooms.join(join(1, "a", None), later(start, 4));
        rooms.join(join(2, "a", Some("Ann")), later(start, 5));
        let moved = rooms.join(join(2, "b", Some("Ann")), later(start, 6));
        assert_eq!(moved.len(), 4);
        assert_eq!(rooms.at(&Address::Room("a")).values().flatten().count(), 1);
        assert_eq!(
            rooms.join(join(2, "b", Some("Ann")), later(start, 7)),
            [],
            "the same again changes nothing"
        );
    }

    #[test]
    fn addresses() {
        let mut rooms = Rooms::default();
        let start = Instant::now();
        rooms.join(join(1, "a", Some("Ann")), later(start, 8));
        rooms.join(join(2, "b", Some("Ann")), later(start, 9));
        rooms.join(join(3, "b", None), later(start, 10));
        let count = |address| rooms.at(&address).values().flatten().count();
        assert_eq!(count(Address::Users(vec!["id-Ann", "nobody"])), 2);
        assert_eq!((count(Address::All), count(Address::Cid(3)), count(Address::Room("x"))), (3, 1, 0));
    }

    #[test]
    fn peers_of_a_lost_edge_are_gone() {
        let mut rooms = Rooms::default();
        let start = Instant::now();
        rooms.join(join(1, "a", None), later(start, 11));
        rooms.join(Join { edge: "other/E".into(), ..join(2, "a", None) }, later(start, 90));
        let notices = rooms.lose_edge("e/E", 1, later(start, 99));
        assert_eq!(frames(&notices), [(vec![2], r#"{"msgtype":"user_list","data":[]}"#)]);
        assert_eq!(rooms.at(&Address::All).values().flatten().count(), 1);
    }

    #[test]
    fn peers_of_a_later_instance_stay_when_the_news_comes_late() {
        let mut rooms = Rooms::default();
        let start = Instant::now();
        rooms.join(join(1, "a", None), later(start, 1));
        rooms.join(Join { instance: 2, ..join(2, "a", None) }, later(start, 20));
        let notices = rooms.lose_edge("e/E", 1, later(start, 40));
        assert_eq!(frames(&notices), [(vec![2], r#"{"msgtype":"user_list","data":[]}"#)]);
        assert_eq!(rooms.at(&Address::Room("a")).values().flatten().count(), 1);
        assert_eq!(rooms.lose_edge("e/E", 2, later(start, 60)), []);
        assert!(rooms.rooms.is_empty() && rooms.members.is_empty());
    }

    #[test]
    fn state_comes_back_as_it_was() {
        let mut rooms = Rooms::default();
        let start = Instant::now();
        rooms.join(join(1, "a", Some("Ann")), later(start, 12));
        rooms.join(join(2, "a", None), later(start, 1));
        let bytes = serde_json::to_vec(&rooms.snapshot()).unwrap();
        let mut back = Rooms::restore(serde_json::from_slice(&bytes).unwrap(), start);
        back.lists_due(start);
        assert_eq!(
            frames(&back.leave(2, later(start, 9))),
            [(vec![1], r#"{"msgtype":"user_list","data":["Ann"]}"#)]
        );
        assert_eq!(back.leave(1, start), []);
    }

    #[test]
    fn many_changes_at_once_make_two_lists() {
        let mut rooms = Rooms::default();
        let start = Instant::now();
        assert_eq!(rooms.join(join(1, "r", None), start).len(), 1, "at once");
        for cid in 2..50 {
            assert_eq!(rooms.join(join(cid, "r", None), start), [], "not again so soon");
        }
        assert_eq!(rooms.next_list(), Some(start + LIST_PERIOD));
        assert_eq!(rooms.lists_due(start), []);
        let late = rooms.lists_due(start + LIST_PERIOD);
        assert_eq!(late.len(), 1);
        assert_eq!(late[0].to.values().flatten().count(), 49);
        assert_eq!(rooms.next_list(), None);
        let restored = Rooms::restore(rooms.snapshot(), start);
        assert_eq!(restored.next_list(), None);
        rooms.leave(1, start + LIST_PERIOD);
        let mut restored = Rooms::restore(rooms.snapshot(), start);
        assert_eq!(restored.lists_due(start).len(), 1, "what was late is not forgotten");
    }
}
