//! Revocations and kicks of the whole cluster.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use zephserver_testkit::TestServer;

use crate::client::Client;
use crate::cluster_rooms::{nodes, reload, until_list};
use crate::nodes::{node, wait_for_nodes};
use crate::sessions::{ANN, ANN_BEFORE, ANN_LATER, BOB, greeted, is_revoked, ring, session};

/// The shipped ring with tokens, as a node.
fn token_node(name: &str, seeds: &[&TestServer]) -> TestServer {
    ring().settings(&session("")).settings(&node(name, seeds)).start()
}

/// The settings of an edge whose peers are looked through one after the other.
const ONE_LOOP: &str = "[websocket]\nthreads = 1";

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn hello(server: &TestServer, token: &str) -> Client {
    let mut client = Client::connect(server);
    client.send(json!({"room": "lobby", "session_id": token}));
    client.until("its list", |frame| frame["msgtype"] == "user_list");
    client
}

#[test]
fn a_revocation_counts_on_all_nodes() {
    let mut a = token_node("a", &[]);
    let mut b = token_node("b", &[&a]);
    [&mut a, &mut b].into_iter().for_each(|node| wait_for_nodes(node, 1));
    let mut anns = [hello(&b, ANN), hello(&b, ANN_BEFORE), hello(&a, ANN)];
    a.ask("revoke 1").unwrap();
    for ann in &mut anns {
        ann.until("why", |frame| frame["text"] == "your session was revoked; log in again");
        assert_eq!(ann.closed_with().0, 4401);
    }
    is_revoked(&b, ANN);
    assert_eq!(greeted(&b, ANN_LATER)["username"], "Ann");
    assert_eq!(b.ask("revocations").unwrap(), a.ask("revocations").unwrap());
    // A node that comes later knows it, and keeps it.
    let c = ring();
    let file = c.path("revocations.json");
    let kept = || std::fs::read_to_string(&file).unwrap_or_default();
    let settings = session(&format!("revocations_file = {file:?}"));
    let mut c = c.settings(&settings).settings(&node("c", &[&a])).start();
    c.wait("it knows", |c| (c.ask("revocations").unwrap()["total"] == 1).then_some(()));
    is_revoked(&c, ANN);
    c.wait("it is in its file", |_| kept().contains("\"user\":\"1\"").then_some(()));
    // So does one that has forgotten it, and what it then revokes itself reaches the others.
    b.ask("restart session").unwrap();
    b.wait("it knows", |b| (b.ask("revocations").unwrap()["total"] == 1).then_some(()));
    reload(&mut b, "session");
    is_revoked(&b, ANN);
    b.ask("revoke 2").unwrap();
    for node in [&mut a, &mut c] {
        node.wait("it knows", |node| (node.ask("revocations").unwrap()["total"] == 2).then_some(()));
    }
    // One that could not hear for a while learns what was revoked meanwhile.
    c.signal("STOP");
    wait_for_nodes(&mut a, 1);
    a.ask("revoke 3").unwrap();
    c.signal("CONT");
    c.wait("it knows", |c| (c.ask("revocations").unwrap()["total"] == 3).then_some(()));
}

#[test]
fn a_revocation_that_is_learned_late_leaves_newer_sessions_alone() {
    let mut a = token_node("a", &[]);
    let b = ring().settings(&session("")).settings(ONE_LOOP).settings(&node("b", &[&a]));
    let mut b = b.start();
    [&mut a, &mut b].into_iter().for_each(|node| wait_for_nodes(node, 1));
    a.ask("revoke 1").unwrap();
    b.wait("it knows", |b| (b.ask("revocations").unwrap()["total"] == 1).then_some(()));
    let (mut ann, mut bob) = (hello(&b, ANN_LATER), hello(&b, BOB));
    b.ask("restart session").unwrap();
    b.wait("it knows again", |b| (b.ask("revocations").unwrap()["total"] == 1).then_some(()));
    // What is revoked after that reaches the edge after that.
    b.ask("revoke 2").unwrap();
    bob.until("why", |frame| frame["text"] == "your session was revoked; log in again");
    ann.request("TaskEcho", Value::Null);
    // The next build knows when her session was issued.
    reload(&mut b, "websocket");
    b.ask("restart session").unwrap();
    b.wait("it knows again", |b| (b.ask("revocations").unwrap()["total"] == 2).then_some(()));
    b.ask("revoke 1").unwrap();
    ann.request("TaskEcho", Value::Null);
}

#[test]
fn a_revocation_counts_where_the_clock_of_its_node_is_behind() {
    let mut a = token_node("a", &[]);
    let mut b = token_node("b", &[&a]);
    [&mut a, &mut b].into_iter().for_each(|node| wait_for_nodes(node, 1));
    let say = |user: &str, before: u64, fresh: bool| {
        let revoked = json!([{"user": user, "before": before}]);
        let told = json!({"node": "b", "revoked": revoked, "last": true, "fresh": fresh});
        b.ask(&format!("say session.revocations/1 {told}")).unwrap();
    };
    let known = |node: &TestServer, user: &str| {
        let list = node.ask("revocations").unwrap();
        let known = list["revocations"].as_array().unwrap().iter().find(|known| known["user"] == user);
        known.and_then(|known| known["before"].as_u64())
    };
    let now = seconds();
    say("old", now - 5, false);
    say("late", now - 100, true);
    say("behind", now - 10, true);
    let before = a.wait("it knows", |a| known(a, "behind"));
    assert!(before >= now, "what was issued until now counts no more");
    assert_eq!((known(&a, "old"), known(&a, "late")), (Some(now - 5), Some(now - 100)));
    // The node with that clock is told.
    let mut b = b;
    b.wait("it knows", |b| (known(b, "behind") == Some(before)).then_some(()));
    assert_eq!(known(&b, "old"), None, "what was only told again is not said once more");
    a.wait_log("the clock of node b is behind");
}

#[test]
fn nonsense_of_another_node_is_logged_once_and_hurts_nobody() {
    let mut a = token_node("a", &[]);
    let mut b = token_node("b", &[&a]);
    [&mut a, &mut b].into_iter().for_each(|node| wait_for_nodes(node, 1));
    let mut ann = hello(&a, ANN);
    let events = [
        "room.presence/1",
        "room.send/1",
        "session.revocations/1",
        "session.ask_revocations/1",
        "edge.kicks/1",
        "edge.ask_kicks/1",
        "router.say/1",
    ];
    for _ in 0..2 {
        for event in events {
            for payload in
                ["", "{}", "[1]", r#"{"node":"a"}"#, r#"{"node":"nobody","kicks":5,"revoked":[{}]}"#]
            {
                b.ask(&format!("say {event} {payload}")).unwrap();
            }
        }
    }
    // It names a node that is none.
    let stranger =
        json!({"node": "x", "version": {"life": 1, "number": 1}, "what": {"changes": [{"leave": 1}]}});
    b.ask(&format!("say room.presence/1 {stranger}")).unwrap();
    // What comes behind all that is heard.
    b.ask("revoke 2").unwrap();
    a.wait("it knows", |a| (a.ask("revocations").unwrap()["total"] == 1).then_some(()));
    let mut bob = Client::connect(&b);
    bob.send(json!({"room": "lobby", "session_id": ANN_LATER}));
    until_list(&mut ann, &["Ann", "Ann"]);
    for service in ["room/Room", "session/Session", "websocket/WebSocket"] {
        let log = a.log();
        let is_remark =
            |line: &&str| line.contains(service) && line.contains("of another node cannot be read");
        assert_eq!(log.lines().filter(is_remark).count(), 1, "{service}\n{log}");
    }
    for service in ["room", "session", "websocket", "router"] {
        assert_eq!(a.service(service)["failures"], 0, "{service}");
    }
}

#[test]
fn a_kick_reaches_the_peers_of_all_nodes() {
    let [mut a, mut b] = nodes(&format!("[server]\nwatch = false\n{ONE_LOOP}"));
    let mut anns = [Client::join_as(&a, "lobby", "Ann"), Client::join_as(&b, "lobby", "Ann")];
    let mut bob = Client::join_as(&b, "lobby", "Bob");
    let cid = bob.request("Extra", Value::Null)["data"]["cid"].to_string();
    assert_eq!(a.ask("kick --user id-Ann").unwrap(), json!({"closed": 1, "told": 1}));
    for ann in &mut anns {
        assert_eq!(ann.closed_with(), (4403, "closed by the operator".into()));
    }
    // Who comes back stays, though the kick is told again.
    let mut ann = Client::join_as(&b, "lobby", "Ann");
    b.ask("restart tasks").unwrap();
    reload(&mut b, "websocket");
    ann.request("TaskEcho", Value::Null);
    assert_eq!(a.ask(&format!("kick {cid}")).unwrap(), json!({"closed": 0, "told": 1}));
    assert_eq!(bob.closed_with().0, 4403);
    let here = ann.request("Extra", Value::Null)["data"]["cid"].to_string();
    assert_eq!(b.ask(&format!("kick {here}")).unwrap(), json!({"closed": 1, "told": 0}));
    assert_eq!(ann.closed_with().0, 4403);
    // One that could not hear it learns it afterwards, unless the answer was that nobody is kicked.
    let [mut eve, mut eva] = ["Eve", "Eva"].map(|name| Client::join_as(&b, "lobby", name));
    b.signal("STOP");
    a.wait("its edge is alone", |a| a.ask("kick --user id-Nobody").is_err().then_some(()));
    let error = a.ask("kick --user id-Eva").unwrap_err();
    assert_eq!(error.code.name(), "not_found", "nobody was told: {error}");
    let mut other = Client::join_as(&a, "lobby", "Eve");
    assert_eq!(a.ask("kick --user id-Eve").unwrap(), json!({"closed": 1, "told": 0}));
    assert_eq!(other.closed_with().0, 4403);
    b.signal("CONT");
    assert_eq!(eve.closed_with().0, 4403);
    eva.request("TaskEcho", Value::Null);
}

#[test]
fn a_kick_that_comes_late_leaves_alone_who_came_after_it() {
    let [a, b] = nodes(ONE_LOOP);
    let [mut ann, mut bob] = ["Ann", "Bob"].map(|name| Client::join_as(&a, "lobby", name));
    let kick = |id: u64, user: &str, said_at: u64| json!({"id": id, "who": {"user": user}, "age_ms": 0, "said_at": said_at});
    let kicks = [kick(1, "id-Ann", seconds() - 100), kick(2, "id-Bob", seconds())];
    b.ask(&format!("say edge.kicks/1 {}", json!({"node": "b", "kicks": kicks, "last": true}))).unwrap();
    assert_eq!(bob.closed_with().0, 4403);
    ann.request("TaskEcho", Value::Null);
}
