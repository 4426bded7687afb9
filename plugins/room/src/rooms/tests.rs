//! The rooms of one node.

use super::*;

fn join(cid: Cid, room: &str, name: Option<&str>) -> Join {
    let user = name.map(|name| User { id: format!("id-{name}"), username: name.into() });
    Join { cid, edge: "e/E".into(), instance: 1, room: room.into(), user, again: false, since: None }
}

/// A time after which every list is sent at once.
fn later(start: Instant, step: u32) -> Instant {
    start + LIST_PERIOD * step
}

fn restored(rooms: &Rooms, now: Instant) -> Rooms {
    let bytes = serde_json::to_vec(&rooms.snapshot(now)).unwrap();
    let mut back = Rooms::default();
    back.restore(serde_json::from_slice(&bytes).unwrap(), now);
    back
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
    assert_eq!(rooms.join(join(2, "b", Some("Ann")), later(start, 7)), [], "the same again changes nothing");
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
    let mut back = restored(&rooms, start);
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
    assert_eq!(restored(&rooms, start).next_list(), None);
    rooms.leave(1, start + LIST_PERIOD);
    assert_eq!(restored(&rooms, start).lists_due(start).len(), 1, "what was late is not forgotten");
}
