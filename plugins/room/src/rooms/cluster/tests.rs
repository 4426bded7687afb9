//! What several nodes tell one another, and what comes of it.

mod lost;
mod net;

use net::{Dice, Net};
use zephserver_plugin::contract::room::Join;
use zephserver_plugin::contract::session::User;

use super::super::Whereabouts;
use super::*;

const MOMENT: Duration = Duration::from_millis(200);

fn list(names: &[&str]) -> String {
    format!(r#"{{"msgtype":"user_list","data":{}}}"#, serde_json::to_string(names).unwrap())
}

fn moved(msgtype: &str, name: &str) -> String {
    let data = if msgtype == "join" { "joined" } else { "left" };
    format!(r#"{{"msgtype":"{msgtype}","username":"{name}","data":" {data} the chat room."}}"#)
}

#[test]
fn members_of_all_nodes_are_listed_in_one_order() {
    let mut net = Net::new(3);
    net.join(0, 1, "r", "Ann");
    net.run(MOMENT);
    assert_eq!(net.frames(0), [moved("join", "Ann"), list(&["Ann"])]);
    net.join(1, 2, "r", "Bob");
    // Who is here already is in the first list.
    assert_eq!(net.frames(1), [moved("join", "Bob"), list(&["Ann", "Bob"])]);
    net.run(MOMENT);
    assert_eq!(net.frames(0), [moved("join", "Bob"), list(&["Ann", "Bob"])]);
    net.join(2, 3, "r", "");
    net.join(0, 4, "r", "Cid");
    net.run(MOMENT);
    assert_eq!(net.list(2, "r"), ["Ann", "Bob", "Cid"]);
    net.leave(0, 1);
    net.run(MOMENT);
    assert_eq!(
        net.frames(1),
        [moved("join", "Cid"), list(&["Ann", "Bob", "Cid"]), moved("leave", "Ann"), list(&["Bob", "Cid"])]
    );
    net.check("all is told");
}

#[test]
fn a_node_that_comes_later_is_told_the_whole() {
    let mut net = Net::new(3);
    net.kill(2);
    for cid in 1..=5000 {
        net.join(0, cid, "r", &format!("user {cid} {}", "x".repeat(60)));
    }
    net.run(MOMENT);
    net.start(2);
    // More comes while the whole is on its way, which has several parts.
    net.due();
    while net.deliver(2, 0) || net.deliver(1, 0) {}
    assert!(net.wires[0][2].len() > 5, "{} parts", net.wires[0][2].len());
    net.leave(0, 7);
    net.join(0, 5001, "s", "last");
    net.run(MOMENT);
    net.check("with what came after the whole");
}

#[test]
fn a_node_that_is_answering_is_not_asked_again() {
    let mut net = Net::new(2);
    net.kill(1);
    for cid in 1..=5000 {
        net.join(0, cid, "r", &format!("user {cid} {}", "x".repeat(60)));
    }
    net.start(1);
    while net.deliver(1, 0) {}
    let parts = net.wires[0][1].len();
    assert!(parts > 2, "{parts} parts");
    // Each part takes its time.
    while net.deliver(0, 1) {
        net.now += Duration::from_millis(1900);
        let letters = net.nodes[1].rooms.due(net.now).letters;
        assert!(!letters.iter().any(|letter| matches!(letter.told.what, What::Ask { .. })));
    }
    net.check("all parts are there");
}

#[test]
fn changes_before_the_whole_are_in_it() {
    let mut net = Net::new(2);
    net.join(0, 1, "r", "Ann");
    net.kill(1);
    net.start(1);
    // Its question is under way while a change is said.
    net.join(0, 2, "r", "Bob");
    net.now += FLUSH;
    net.due();
    assert!(net.wires[0][1].iter().any(|told| matches!(told.what, What::Changes(_))));
    while net.deliver(0, 1) {}
    assert_eq!(net.list(1, "r"), [""; 0], "half of it is worth nothing");
    net.deliver_all();
    net.check("the change was in the whole");
    assert_eq!(net.list(1, "r"), ["Ann", "Bob"]);
}

#[test]
fn what_was_lost_is_asked_for_and_the_difference_told() {
    let mut net = Net::new(2);
    net.join(0, 1, "r", "Ann");
    net.join(0, 2, "r", "Bob");
    net.join(1, 9, "r", "Eve");
    net.run(MOMENT);
    net.frames(1);
    net.leave(0, 1);
    net.join(0, 3, "r", "Cid");
    net.now += FLUSH;
    net.due();
    net.wires[0][1].clear();
    net.hears_of(1, 0);
    net.run(MOMENT);
    let lists = list(&["Bob", "Eve", "Cid"]);
    assert_eq!(net.frames(1), [moved("leave", "Ann"), moved("join", "Cid"), lists]);
    // And where nobody says that something is lost, with the next change, or at the latest by a beat.
    for is_change in [true, false] {
        net.leave(0, 2);
        net.run(MOMENT);
        net.join(0, 2, "r", "Bob");
        net.now += FLUSH;
        net.due();
        net.wires[0][1].clear();
        if is_change {
            net.join(0, 4, "s", "Dan");
            net.run(MOMENT);
        } else {
            net.run(BEAT);
        }
        net.check("noticed");
    }
}

#[test]
fn a_question_or_an_answer_that_is_lost_is_repeated() {
    for lost in [(1, 0), (0, 1)] {
        let mut net = Net::new(2);
        net.join(0, 1, "r", "Ann");
        net.kill(1);
        net.start(1);
        if lost == (0, 1) {
            while net.deliver(1, 0) {}
        }
        net.wires[lost.0][lost.1].clear();
        net.run(Duration::from_secs(4));
        net.check("asked again");
        assert_eq!(net.list(1, "r"), ["Ann"]);
    }
}

#[test]
fn a_node_that_is_gone_takes_its_members_with_it() {
    let mut net = Net::new(3);
    net.join(0, 1, "r", "Ann");
    for (cid, name) in [(5, "Bob"), (6, "Bob"), (7, "")] {
        net.join(1, cid, "r", name);
    }
    net.join(1, 8, "elsewhere", "Eve");
    net.run(MOMENT);
    net.frames(0);
    net.kill(1);
    net.run(MOMENT);
    let mut frames = net.frames(0);
    assert_eq!(frames.pop(), Some(list(&["Ann"])));
    assert_eq!(frames, [moved("leave", "Bob"), moved("leave", "Bob")], "each of them, and one list");
    net.check("gone");
    net.start(1);
    net.join(1, 5, "r", "Bob");
    net.run(MOMENT);
    assert_eq!(net.frames(0), [moved("join", "Bob"), list(&["Ann", "Bob"])]);
}

#[test]
fn a_service_that_begins_from_nothing_takes_nobody_away() {
    let mut net = Net::new(2);
    for cid in 1..=20 {
        net.join(0, cid, "r", &format!("a{cid}"));
        net.join(1, cid + 100, "r", &format!("b{cid}"));
    }
    net.run(MOMENT);
    let before = net.list(1, "r");
    net.frames(0);
    net.frames(1);
    net.restart(0);
    net.leave(0, 3);
    net.join(0, 21, "r", "new");
    net.leave(1, 104);
    net.run(MOMENT);
    let left = before.into_iter().filter(|name| name != "b4");
    assert_eq!(net.list(1, "r"), left.collect::<Vec<_>>(), "until it knows its own again");
    net.run(Duration::from_secs(2));
    net.check("after the restart");
    // Nobody is said to come or go but who did.
    let frames = net.frames(1);
    let notices: Vec<_> = frames.iter().filter(|frame| !frame.contains("user_list")).collect();
    assert_eq!(notices, [&moved("leave", "b4"), &moved("leave", "a3"), &moved("join", "new")]);
    let frames = net.frames(0);
    let notices: Vec<_> = frames.iter().filter(|frame| !frame.contains("user_list")).collect();
    assert_eq!(notices, [&moved("leave", "a3"), &moved("join", "new")]);
    // Whom others saw go meanwhile they learn from the list.
    assert!(!frames.last().unwrap().contains("b4"), "{frames:?}");
    assert_eq!(net.list(0, "r").first().unwrap(), "a1", "they are as long here as before");
}

#[test]
fn a_reload_takes_along_who_is_elsewhere_and_what_is_not_said() {
    let mut net = Net::new(2);
    net.join(0, 1, "r", "Ann");
    net.join(1, 2, "r", "Bob");
    net.run(MOMENT);
    net.frames(0);
    net.frames(1);
    net.join(0, 3, "r", "Cid");
    let state = net.carry(0);
    // What comes meanwhile waits, and is the new one's.
    net.join(1, 4, "r", "Dan");
    net.now += FLUSH;
    let outcome = net.nodes[1].rooms.due(net.now);
    net.take(1, outcome);
    net.begin_with(0, &state);
    net.run(MOMENT);
    net.check("after the reload");
    assert_eq!(net.frames(1).iter().filter(|frame| frame.contains("Ann\",\"data")).count(), 0);
    let frames = net.frames(0);
    assert!(frames.contains(&moved("join", "Dan")) && !frames.contains(&moved("join", "Bob")), "{frames:?}");
}

#[test]
fn a_node_that_went_during_a_reload_does_not_stay() {
    let mut net = Net::new(2);
    net.join(0, 1, "r", "Ann");
    net.join(1, 2, "r", "Bob");
    net.run(MOMENT);
    let state = net.carry(0);
    net.kill(1);
    net.begin_with(0, &state);
    assert_eq!(net.list(0, "r"), ["Ann", "Bob"]);
    net.run(Duration::from_secs(3));
    net.check("it was asked, and is not there");
}

#[test]
fn state_of_a_build_that_tells_nobody_is_taken_and_left() {
    let mut net = Net::new(2);
    net.join(0, 1, "r", "Ann");
    net.join(0, 2, "r", "Bob");
    net.run(MOMENT);
    let state: serde_json::Value = serde_json::from_slice(&net.carry(0)).unwrap();
    // What such a build knew, and knows of this state: to it the rest is nothing.
    let mut old = state.clone();
    old.as_object_mut().unwrap().remove("cluster");
    for member in old["members"].as_object_mut().unwrap().values_mut() {
        member.as_object_mut().unwrap().remove("since");
    }
    assert_eq!(
        old["members"]["1"],
        serde_json::json!({
            "room": "r", "edge": "e/E", "instance": 1, "user": {"id": "id-Ann", "username": "Ann"}
        })
    );
    net.begin_with(0, &serde_json::to_vec(&old).unwrap());
    net.run(MOMENT);
    net.check("as if it had begun anew");
    assert_eq!(net.list(1, "r"), ["Ann", "Bob"]);
}

#[test]
fn many_changes_are_few_events_and_too_many_none() {
    let mut net = Net::new(2);
    for cid in 1..=10_000 {
        net.join(0, cid, "r", &format!("user {cid}"));
    }
    net.now += FLUSH;
    net.due();
    let said = net.wires[0][1].len();
    assert!((2..30).contains(&said), "{said} events");
    net.deliver_all();
    net.check("all came");
    net.frames.iter_mut().for_each(Vec::clear);
    for cid in 20_000..20_000 + PENDING as u64 + 10 {
        net.join(0, cid, "s", "");
    }
    assert!(net.nodes[0].rooms.cluster.pending.is_empty());
    net.now += FLUSH;
    net.due();
    assert_eq!(net.wires[0][1].len(), 1, "one that says that they are to ask");
    net.leave(0, 20_000);
    net.run(MOMENT);
    net.check("all came");
}

#[test]
fn a_cid_on_two_nodes_is_nobodys() {
    let mut net = Net::new(3);
    net.join(1, 7, "r", "Bob");
    net.run(MOMENT);
    assert_eq!(net.nodes[0].rooms.find(7), Whereabouts::Node("b".into()));
    assert_eq!(
        (net.nodes[1].rooms.find(7), net.nodes[0].rooms.find(8)),
        (Whereabouts::Here, Whereabouts::Here)
    );
    assert_eq!(net.nodes[0].rooms.remarks(), [""; 0]);
    for (at, seen_by) in [(2, [0, 1, 2]), (0, [0, 1, 2])] {
        net.join(at, 7, "r", "Other");
        net.run(MOMENT);
        for node in seen_by {
            let Whereabouts::Several(nodes) = net.nodes[node].rooms.find(7) else { panic!("{node}") };
            assert!(nodes.len() >= 2, "{nodes:?}");
        }
    }
    for node in 0..3 {
        let remarks = net.nodes[node].rooms.remarks();
        assert!(
            (1..=2).contains(&remarks.len()) && remarks[0].starts_with("cid 7 is that of"),
            "{remarks:?}"
        );
        assert_eq!(net.nodes[node].rooms.remarks(), [""; 0], "once");
    }
    net.leave(0, 7);
    net.leave(2, 7);
    net.run(MOMENT);
    assert_eq!(net.nodes[0].rooms.find(7), Whereabouts::Node("b".into()));
}

#[test]
fn nonsense_is_remarked_once_and_passed_over() {
    let mut net = Net::new(2);
    let version = net.nodes[1].rooms.cluster.version;
    let member = |room: &str, name: &str| Member {
        cid: 5,
        since: u64::MAX,
        room: room.into(),
        user: Some(User { id: "1".into(), username: name.into() }),
    };
    let after = Version { number: version.number + 1, ..version };
    let bad =
        [member("", "x"), member(&"r".repeat(LONGEST_NAME + 1), "x"), member("r", &"x".repeat(LONGEST_USER))];
    let changes = bad.iter().cloned().map(Change::Join).collect();
    let now = net.now;
    let told = |node: &str, version, what| Presence { node: node.into(), version, what };
    net.nodes[0].rooms.heard(told("b", after, What::Changes(changes)), now);
    net.nodes[0].rooms.heard(told("b", after, What::Whole { part: 0, last: true, members: bad.into() }), now);
    assert_eq!(net.nodes[0].rooms.remarks(), ["node b tells of a peer that cannot be"]);
    assert!(net.known(0, 1).is_empty());
    // It is not its own other node, and parts without a beginning are none.
    let own = told("a", after, What::Beat);
    assert!(net.nodes[0].rooms.heard(own, now).letters.is_empty());
    let members = vec![member("r", "Eve")];
    let part = What::Whole { part: 3, last: true, members };
    assert!(net.nodes[0].rooms.heard(told("b", after, part), now).letters.is_empty());
    net.run(Duration::from_secs(3));
    net.check("the truth is told");
}

#[test]
fn a_node_that_is_alone_sets_no_timer() {
    let mut rooms = Rooms::new("a".into(), 1);
    let now = Instant::now();
    let join = Join {
        cid: 1,
        edge: "e/E".into(),
        instance: 1,
        room: "r".into(),
        user: None,
        again: false,
        since: None,
    };
    rooms.join(join, now);
    assert_eq!((rooms.next_due(), rooms.cluster.pending.len()), (None, 0));
}

/// Whatever happens, in whatever order: a while after the last of it everybody knows what is true.
#[test]
fn whatever_happens_all_agree_in_the_end() {
    for seed in 1..=200 {
        let mut dice = Dice(seed * 0x9e37_79b9_7f4a_7c15);
        let mut net = Net::new(3);
        let mut states: Vec<Option<Vec<u8>>> = vec![None; 3];
        for _ in 0..300 {
            net.happen(&mut dice, &mut states);
        }
        net.run(SILENCE + BEAT + Duration::from_secs(45));
        net.check(&format!("seed {seed}"));
    }
}
