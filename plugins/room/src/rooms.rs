//! Who is where. Pure: answers what is to be said to whom.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::json;
use zephserver_plugin::contract::peer::Cid;
use zephserver_plugin::contract::room::{Address, Join};
use zephserver_plugin::contract::session::User;

/// Every room with its members.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Rooms {
    members: HashMap<Cid, Member>,
    /// Cids of each room in the order they joined. A room without members does not exist.
    rooms: HashMap<String, Vec<Cid>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Member {
    room: String,
    edge: String,
    user: Option<User>,
}

/// Cids by the edge that has them.
pub type ByEdge = BTreeMap<String, Vec<Cid>>;

/// One frame for some peers.
#[derive(Debug, PartialEq, Eq)]
pub struct Notice {
    pub to: ByEdge,
    pub frame: String,
}

impl Rooms {
    /// A peer comes into a room; out of the one it is in, if it is in another.
    pub fn join(&mut self, join: Join) -> Vec<Notice> {
        let Join { cid, edge, room, user, again } = join;
        let stays = self.members.get(&cid).is_some_and(|member| member.room == room && member.user == user);
        if stays {
            return Vec::new();
        }
        let mut notices = self.leave(cid);
        let username = user.as_ref().map(|user| user.username.clone());
        self.rooms.entry(room.clone()).or_default().push(cid);
        self.members.insert(cid, Member { room: room.clone(), edge, user });
        if again {
            return Vec::new();
        }
        if let Some(username) = username {
            notices.push(self.notice(
                &room,
                &json!({
                    "msgtype": "join", "username": username, "data": " joined the chat room."
                }),
            ));
        }
        notices.push(self.user_list(&room));
        notices
    }

    /// A peer is gone.
    pub fn leave(&mut self, cid: Cid) -> Vec<Notice> {
        let Some(Member { room, user, .. }) = self.members.remove(&cid) else { return Vec::new() };
        let Some(cids) = self.rooms.get_mut(&room) else { return Vec::new() };
        cids.retain(|known| *known != cid);
        if cids.is_empty() {
            self.rooms.remove(&room);
            return Vec::new();
        }
        let left = user.map(|user| {
            let notice =
                json!({"msgtype": "leave", "username": user.username, "data": " left the chat room."});
            self.notice(&room, &notice)
        });
        left.into_iter().chain([self.user_list(&room)]).collect()
    }

    /// All peers of an edge are gone.
    pub fn lose_edge(&mut self, edge: &str) -> Vec<Notice> {
        let lost = self.members.iter().filter(|(_, member)| member.edge == edge).map(|(cid, _)| *cid);
        let lost: Vec<Cid> = lost.collect();
        let mut notices: Vec<Notice> = lost.into_iter().flat_map(|cid| self.leave(cid)).collect();
        notices.iter_mut().for_each(|notice| drop(notice.to.remove(edge)));
        notices.retain(|notice| !notice.to.is_empty());
        notices
    }

    /// Who is at an address.
    pub fn at(&self, address: &Address<'_>) -> ByEdge {
        match address {
            Address::Room(room) => self.by_edge(self.rooms.get(*room).into_iter().flatten().copied()),
            Address::Cid(cid) => self.by_edge([*cid].into_iter()),
            Address::All => self.by_edge(self.members.keys().copied()),
            Address::Users(users) => {
                let is_one = |member: &Member| {
                    member.user.as_ref().is_some_and(|user| users.contains(&user.id.as_str()))
                };
                self.by_edge(self.members.iter().filter(|(_, member)| is_one(member)).map(|(cid, _)| *cid))
            }
        }
    }

    fn by_edge(&self, cids: impl Iterator<Item = Cid>) -> ByEdge {
        let mut by_edge = ByEdge::new();
        for (cid, member) in cids.filter_map(|cid| Some((cid, self.members.get(&cid)?))) {
            match by_edge.get_mut(&member.edge) {
                Some(cids) => cids.push(cid),
                None => {
                    by_edge.insert(member.edge.clone(), vec![cid]);
                }
            }
        }
        by_edge
    }

    fn notice(&self, room: &str, frame: &serde_json::Value) -> Notice {
        Notice { to: self.at(&Address::Room(room)), frame: frame.to_string() }
    }

    /// One entry for each peer with a user, in the order they joined.
    fn user_list(&self, room: &str) -> Notice {
        let names: Vec<&str> = self
            .rooms
            .get(room)
            .into_iter()
            .flatten()
            .filter_map(|cid| Some(self.members.get(cid)?.user.as_ref()?.username.as_str()))
            .collect();
        self.notice(room, &json!({"msgtype": "user_list", "data": names}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(cid: Cid, room: &str, name: Option<&str>) -> Join {
        let user = name.map(|name| User { id: format!("id-{name}"), username: name.into() });
        Join { cid, edge: "e/E".into(), room: room.into(), user, again: false }
    }

    fn frames(notices: &[Notice]) -> Vec<(Vec<Cid>, &str)> {
        notices
            .iter()
            .map(|notice| (notice.to.values().flatten().copied().collect(), notice.frame.as_str()))
            .collect()
    }

    #[test]
    fn join_then_user_list_and_leave_then_user_list() {
        let mut rooms = Rooms::default();
        rooms.join(join(1, "r", Some("Ann")));
        let joined = rooms.join(join(2, "r", Some("Bob")));
        assert_eq!(
            frames(&joined),
            [
                (vec![1, 2], r#"{"data":" joined the chat room.","msgtype":"join","username":"Bob"}"#),
                (vec![1, 2], r#"{"data":["Ann","Bob"],"msgtype":"user_list"}"#),
            ]
        );
        let left = rooms.leave(1);
        assert_eq!(
            frames(&left),
            [
                (vec![2], r#"{"data":" left the chat room.","msgtype":"leave","username":"Ann"}"#),
                (vec![2], r#"{"data":["Bob"],"msgtype":"user_list"}"#),
            ]
        );
        assert_eq!(rooms.leave(2), []);
        assert!(rooms.rooms.is_empty() && rooms.members.is_empty());
    }

    #[test]
    fn anonymous_peers_are_not_named() {
        let mut rooms = Rooms::default();
        assert_eq!(
            frames(&rooms.join(join(1, "r", None))),
            [(vec![1], r#"{"data":[],"msgtype":"user_list"}"#)]
        );
    }

    #[test]
    fn a_second_hello_leaves_no_ghost() {
        let mut rooms = Rooms::default();
        rooms.join(join(1, "a", None));
        rooms.join(join(2, "a", Some("Ann")));
        let moved = rooms.join(join(2, "b", Some("Ann")));
        assert_eq!(moved.len(), 4);
        assert_eq!(rooms.at(&Address::Room("a")).values().flatten().count(), 1);
        assert_eq!(rooms.join(join(2, "b", Some("Ann"))), [], "the same again changes nothing");
    }

    #[test]
    fn addresses() {
        let mut rooms = Rooms::default();
        rooms.join(join(1, "a", Some("Ann")));
        rooms.join(join(2, "b", Some("Ann")));
        rooms.join(join(3, "b", None));
        let count = |address| rooms.at(&address).values().flatten().count();
        assert_eq!(count(Address::Users(vec!["id-Ann", "nobody"])), 2);
        assert_eq!((count(Address::All), count(Address::Cid(3)), count(Address::Room("x"))), (3, 1, 0));
    }

    #[test]
    fn peers_of_a_lost_edge_are_gone() {
        let mut rooms = Rooms::default();
        rooms.join(join(1, "a", None));
        rooms.join(Join { edge: "other/E".into(), ..join(2, "a", None) });
        let notices = rooms.lose_edge("e/E");
        assert_eq!(frames(&notices), [(vec![2], r#"{"data":[],"msgtype":"user_list"}"#)]);
        assert_eq!(rooms.at(&Address::All).values().flatten().count(), 1);
    }

    #[test]
    fn state_comes_back_as_it_was() {
        let mut rooms = Rooms::default();
        rooms.join(join(1, "a", Some("Ann")));
        let bytes = serde_json::to_vec(&rooms).unwrap();
        let mut back: Rooms = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(back.leave(1), []);
    }
}
