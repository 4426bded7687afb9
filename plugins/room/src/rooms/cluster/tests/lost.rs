//! What is lost where nobody says so: that a node is gone, and what happened since an old state.

use super::*;

#[test]
fn a_node_whose_end_nobody_told_takes_its_members_with_it() {
    for is_reloaded in [false, true] {
        let mut net = Net::new(3);
        net.join(0, 1, "r", "Ann");
        net.join(1, 2, "r", "Bob");
        net.run(MOMENT);
        net.frames(0);
        net.kill_unseen(1);
        if is_reloaded {
            let state = net.carry(0);
            net.begin_with(0, &state);
        }
        net.run(SILENCE + BEAT + MOMENT);
        net.check("it was asked, and is not there");
        assert_eq!(net.frames(0), [moved("leave", "Bob"), list(&["Ann"])]);
        assert_eq!(net.nodes[0].rooms.remarks(), [""; 0]);
    }
}

#[test]
fn a_node_that_is_up_and_says_nothing_is_asked_on_and_on() {
    let mut net = Net::new(2);
    net.join(1, 2, "r", "Bob");
    net.run(MOMENT);
    let (mut asked, mut remarks) = (0, Vec::new());
    for _ in 0..600 {
        net.now += Duration::from_secs(1);
        let (now, rooms) = (net.now, &mut net.nodes[0].rooms);
        let letters = rooms.due(now).letters;
        asked += letters.iter().filter(|letter| matches!(letter.told.what, What::Ask { .. })).count();
        remarks.extend(rooms.remarks());
    }
    // After 30 s, then again after 2, 4, 8, 16 and each 30 s.
    assert!((20..26).contains(&asked), "{asked} times in ten minutes");
    assert!(remarks.len() == 1 && remarks[0].starts_with("node b is up and has not said"), "{remarks:?}");
    net.run(Duration::from_secs(40));
    net.check("it has answered");
    assert!(!net.nodes[0].rooms.cluster.asks.is_open("b"));
}

#[test]
fn a_build_that_is_taken_back_keeps_nobody_who_has_left() {
    let mut net = Net::new(2);
    for (cid, name) in [(1, "Ann"), (2, "Bob")] {
        net.join(0, cid, "r", name);
    }
    net.join(1, 9, "r", "Eve");
    net.run(MOMENT);
    let state = net.carry(0);
    net.leave(0, 2);
    net.join(0, 3, "r", "Cid");
    net.run(MOMENT);
    net.frames(0);
    net.frames(1);
    net.take_back(0, &state);
    assert_eq!(net.list(0, "r"), ["Ann", "Bob", "Eve"]);
    net.announce(0);
    net.run(MOMENT);
    assert_eq!(net.list(1, "r"), ["Ann", "Eve", "Cid"], "until that knows who is there");
    net.run(Duration::from_secs(2));
    net.check("after it was taken back");
    assert_eq!(net.frames(1), [""; 0], "nobody was seen to come or go there");
    assert_eq!(net.frames(0), [list(&["Ann", "Eve", "Cid"])], "that Bob left was seen when he did");
    // What happens from now on is told on.
    net.leave(0, 1);
    net.run(MOMENT);
    net.check("with what came after it");
}

#[test]
fn whom_a_state_of_some_time_ago_has_is_not_carried_on_before_an_edge_tells_of_it() {
    let mut net = Net::new(2);
    for (cid, name) in [(1, "Ann"), (2, "Bob"), (3, "Cid")] {
        net.join(0, cid, "r", name);
    }
    net.run(MOMENT);
    let state = net.carry(0);
    net.leave(0, 2);
    net.take_back(0, &state);
    // A reload while one of the edges has not told yet.
    let cid = net.nodes[0].rooms.members[&1].user.as_deref().cloned();
    let again = Join {
        cid: 1,
        edge: "e/E".into(),
        instance: 1,
        room: "r".into(),
        user: cid,
        again: true,
        since: None,
    };
    let now = net.now;
    net.nodes[0].rooms.join(again, now);
    let state = net.carry(0);
    net.begin_with(0, &state);
    assert_eq!(net.list(0, "r"), ["Ann"]);
    net.announce(0);
    net.run(Duration::from_secs(2));
    net.check("after the reload");
    assert_eq!(net.list(1, "r"), ["Ann", "Cid"]);
}

#[test]
fn a_straight_hand_over_keeps_everybody_though_no_edge_tells_again() {
    let mut net = Net::new(2);
    net.join(0, 1, "r", "Ann");
    net.run(MOMENT);
    for _ in 0..3 {
        let state = net.carry(0);
        net.begin_with(0, &state);
        net.run(BEAT);
        net.check("handed over");
    }
    assert_eq!(net.list(1, "r"), ["Ann"]);
}

#[test]
fn who_is_told_again_too_late_is_in_the_lists_all_the_same() {
    let mut net = Net::new(2);
    net.join(0, 1, "r", "Ann");
    net.join(0, 2, "r", "Bob");
    net.join(1, 9, "r", "Eve");
    net.run(MOMENT);
    let state = net.carry(0);
    net.take_back(0, &state);
    let edge = net.nodes[0].edge.clone();
    for (cid, names) in [(1, ["Ann", "Eve"].as_slice()), (2, &["Ann", "Bob", "Eve"])] {
        net.frames(0);
        let now = net.now;
        let notices = net.nodes[0].rooms.join(Join { again: true, ..edge[&cid].clone() }, now);
        assert_eq!(notices.len(), cid as usize - 1, "a list of those whom it lacked");
        net.run(Duration::from_secs(2));
        assert_eq!(net.list(0, "r"), names);
        assert_eq!(net.known(1, 0), net.here(0));
    }
}
