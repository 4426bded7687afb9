//! Rooms and members as people read them, a page at a time. What takes long is done with what was collected,
//! so that nobody who joins or speaks waits for it.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Serialize;
use zephserver_plugin::contract::page::{Page, Shown};
use zephserver_plugin::contract::peer::Digits;
use zephserver_plugin::contract::session::User;

use super::{Rooms, Seat};

/// Some of all rooms, by name.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct RoomList {
    rooms: Vec<RoomRow>,
    #[serde(flatten)]
    shown: Shown,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct RoomRow {
    room: String,
    peers: usize,
    /// Whoever has several peers there counts once.
    users: usize,
}

/// Some members of a room, in the order they joined.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct MemberList {
    room: String,
    members: Vec<MemberRow>,
    #[serde(flatten)]
    shown: Shown,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct MemberRow {
    cid: Digits,
    /// Its id; None: anonymous.
    user: Option<String>,
    username: Option<String>,
    edge: String,
}

/// Who is in a room.
#[derive(Debug)]
pub struct Crowd {
    peers: usize,
    /// One for each peer with a user.
    users: Vec<Arc<User>>,
}

impl RoomList {
    /// A page of the rooms of these names. Who is in a room is asked only for those that are on it.
    pub fn new(mut names: Vec<Arc<str>>, page: Page, crowd: impl Fn(&str) -> Option<Crowd>) -> Self {
        names.sort_unstable();
        let row = |name: &Arc<str>| {
            // None: the last one has left meanwhile.
            let Crowd { peers, users } = crowd(name)?;
            let ids: HashSet<&str> = users.iter().map(|user| user.id.as_str()).collect();
            Some(RoomRow { room: name.to_string(), peers, users: ids.len() })
        };
        Self { rooms: page.of(&names).filter_map(row).collect(), shown: page.shown(names.len()) }
    }
}

impl Rooms {
    /// The names of all rooms, in no order.
    pub fn names(&self) -> Vec<Arc<str>> {
        self.rooms.keys().cloned().collect()
    }

    /// Who is in a room; None: nobody, so there is no such room.
    pub fn crowd(&self, room: &str) -> Option<Crowd> {
        let members = &self.rooms.get(room)?.members;
        let user = |seat: &Seat| self.members.get(&seat.cid)?.user.clone();
        Some(Crowd { peers: members.len(), users: members.iter().filter_map(user).collect() })
    }

    /// A page of the members of a room; None: there is no such room.
    pub fn members(&self, room: &str, page: Page) -> Option<MemberList> {
        let members = &self.rooms.get(room)?.members;
        let row = |Seat { cid, edge, .. }: &Seat| {
            let user = self.members.get(cid).and_then(|member| member.user.as_deref());
            MemberRow {
                cid: Digits(*cid),
                user: user.map(|user| user.id.clone()),
                username: user.map(|user| user.username.clone()),
                edge: self.edges[*edge as usize].clone(),
            }
        };
        let shown = page.shown(members.len());
        Some(MemberList { room: room.into(), members: page.of(members).map(row).collect(), shown })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;
    use zephserver_plugin::contract::peer::Cid;
    use zephserver_plugin::contract::room::Join;

    use super::*;

    const ALL: Page = Page { offset: 0, limit: 100 };

    fn rooms() -> Rooms {
        let mut rooms = Rooms::default();
        let user = |name: &str| Some(User { id: format!("id-{name}"), username: name.into() });
        for (cid, room, user) in [
            (1, "b", user("Ann")),
            (2, "b", user("Ann")),
            (3, "b", None),
            (Cid::MAX, "a", user("Bob")),
            (5, "c", None),
        ] {
            let join = Join {
                cid,
                edge: "e/E".into(),
                instance: 1,
                room: room.into(),
                user,
                again: true,
                since: None,
            };
            rooms.join(join, Instant::now());
        }
        rooms
    }

    fn listed(rooms: &Rooms, page: Page) -> serde_json::Value {
        let list = RoomList::new(rooms.names(), page, |name| rooms.crowd(name));
        serde_json::to_value(&list).unwrap()
    }

    #[test]
    fn rooms_come_by_name_and_users_count_once() {
        let list = json!({
            "rooms": [
                {"room": "a", "peers": 1, "users": 1},
                {"room": "b", "peers": 3, "users": 1},
                {"room": "c", "peers": 1, "users": 0},
            ],
            "total": 3,
        });
        assert_eq!(listed(&rooms(), ALL), list);
    }

    #[test]
    fn a_page_asks_for_its_own_rooms_only() {
        let rooms = rooms();
        let asked = std::cell::RefCell::new(Vec::new());
        let page = Page { offset: 1, limit: 1 };
        let list = RoomList::new(rooms.names(), page, |name| {
            asked.borrow_mut().push(name.to_string());
            rooms.crowd(name)
        });
        assert_eq!(*asked.borrow(), ["b"]);
        assert_eq!(list.shown, Shown { total: 3, next_offset: Some(2) });
    }

    #[test]
    fn a_room_that_is_gone_meanwhile_is_left_out() {
        let mut rooms = rooms();
        let names = rooms.names();
        rooms.leave(5, Instant::now());
        let list = RoomList::new(names, ALL, |name| rooms.crowd(name));
        assert_eq!(list.rooms.len(), 2);
    }

    #[test]
    fn members_come_in_the_order_they_joined() {
        let rooms = rooms();
        let members = |room, page| serde_json::to_value(rooms.members(room, page)).unwrap();
        assert_eq!(
            members("b", Page { offset: 1, limit: 2 }),
            json!({
                "room": "b",
                "members": [
                    {"cid": "2", "user": "id-Ann", "username": "Ann", "edge": "e/E"},
                    {"cid": "3", "user": null, "username": null, "edge": "e/E"},
                ],
                "total": 3,
            })
        );
        assert_eq!(members("b", Page { offset: 0, limit: 2 })["next_offset"], 2);
        assert_eq!(members("a", ALL)["members"][0]["cid"], "18446744073709551615");
        assert_eq!(members("nowhere", ALL), json!(null));
    }

    #[test]
    fn the_last_page_of_many_rooms_says_so() {
        let mut rooms = Rooms::default();
        for cid in 0..10_000 {
            let room = format!("room-{cid:05}");
            let join =
                Join { cid, edge: "e/E".into(), instance: 1, room, user: None, again: true, since: None };
            rooms.join(join, Instant::now());
        }
        let list = listed(&rooms, Page { offset: 9_900, limit: 100 });
        assert_eq!((&list["total"], &list["rooms"][99]["room"]), (&json!(10_000), &json!("room-09999")));
        assert_eq!(list["next_offset"], json!(null));
    }
}
