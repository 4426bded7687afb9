//! What several nodes make of one application: rooms, pushes, revocations and kicks of the whole cluster.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;

use serde_json::{Value, json};
use zephserver_testkit::{Code, TestServer};

use crate::client::{Client, in_room, stage, stage_with_room};
use crate::nodes::{node, wait_for_nodes};
use crate::sessions::{ANN, ANN_BEFORE, ANN_LATER, greeted, is_revoked, ring, session};

/// Rings of the fixture: sessions by name, tasks of every kind.
fn nodes<const COUNT: usize>(settings: &str) -> [TestServer; COUNT] {
    let mut nodes: Vec<TestServer> = Vec::new();
    for name in ["a", "b", "c"].into_iter().take(COUNT) {
        let seeds: Vec<&TestServer> = nodes.iter().take(1).collect();
        let node = stage(&format!("{settings}\n{}", node(name, &seeds)));
        nodes.push(node);
    }
    nodes.iter_mut().for_each(|node| wait_for_nodes(node, COUNT - 1));
    nodes.try_into().ok().expect("as many as were started")
}

/// Reads until a list has these names, in this order.
fn until_list(client: &mut Client, names: &[&str]) {
    let list = json!({"msgtype": "user_list", "data": names});
    client.until(&format!("the list of {names:?}"), |frame| *frame == list);
}

/// Reads until somebody joins or leaves.
fn until_moved(client: &mut Client, way: &str, name: &str) {
    client.until(&format!("{name}: {way}"), |frame| frame["msgtype"] == way && frame["username"] == name);
}

fn reload(server: &mut TestServer, library: &str) {
    server.wait(&format!("{library} is reloaded"), |server| match server.ask(&format!("reload {library}")) {
        Ok(_) => Some(()),
        Err(error) if matches!(error.code, Code::Busy | Code::Timeout) => None,
        Err(error) => panic!("{library}: {error}"),
    });
}

fn say(server: &TestServer, letter: Value) -> Value {
    server.call("router", "say/1", &letter.to_string()).unwrap()
}

#[test]
fn a_room_is_one_on_two_nodes() {
    let [a, b] = nodes("");
    let mut ann = Client::join_as(&a, "lobby", "Ann");
    let mut bob = Client::join_as(&b, "lobby", "Bob");
    let mut eve = Client::join_as(&b, "elsewhere", "Eve");
    until_moved(&mut ann, "join", "Bob");
    until_list(&mut ann, &["Ann", "Bob"]);
    // Whoever comes sees all at once; and a nameless one changes no list.
    let mut cid = Client::connect(&b);
    cid.hello("lobby", "Cid");
    until_list(&mut cid, &["Ann", "Bob", "Cid"]);
    until_list(&mut ann, &["Ann", "Bob", "Cid"]);
    let mut guest = Client::join(&a, "lobby");
    // Words of one reach the other, and nobody else.
    ann.send(json!({"task": "chat.say", "data": {"text": "hi"}}));
    for peer in [&mut ann, &mut bob, &mut cid, &mut guest] {
        let word = peer.until("her word", |frame| frame["task"] == "chat.say");
        assert_eq!(word["data"], json!({"from": "Ann", "text": "hi"}));
    }
    bob.send(json!({"task": "chat.whisper", "data": {"to": ["id-Ann"], "text": "psst"}}));
    ann.until("a whisper", |frame| frame["data"] == json!({"from": "Bob", "text": "psst"}));
    // Pushes by every address. What is answered counts the peers of that node.
    let news = |text: &str| json!({"task": "news", "data": text});
    let letter = |address: Value, text: &str| {
        let mut letter = address;
        letter.as_object_mut().unwrap().extend(news(text).as_object().unwrap().clone());
        letter
    };
    let number = bob.request("Extra", Value::Null)["data"]["cid"].clone();
    assert_eq!(say(&a, letter(json!({"room": "lobby"}), "room")), 2);
    assert_eq!(say(&a, letter(json!({"users": ["id-Bob", "id-Eve"]}), "users")), 0);
    assert_eq!(say(&b, letter(json!({"all": true}), "all")), 3);
    assert_eq!(say(&a, letter(json!({"cid": number}), "cid")), 0);
    assert_eq!(say(&b, letter(json!({"cid": number}), "here")), 1);
    let sent = a.call("room", "send_to_cid/1", &letter(json!({"cid": number}), "by the room").to_string());
    assert_eq!(sent.unwrap(), 0);
    let heard = |peer: &mut Client, expected: &[&str]| {
        // In whatever order those of two nodes come.
        let mut expected: Vec<Value> = expected.iter().map(|text| news(text)).collect();
        while !expected.is_empty() {
            let frame = peer.until("news", |frame| frame["task"] == "news");
            let place = expected.iter().position(|one| *one == frame);
            expected.remove(place.unwrap_or_else(|| panic!("{frame}, and not {expected:?}")));
        }
    };
    heard(&mut ann, &["room", "all"]);
    heard(&mut guest, &["room", "all"]);
    heard(&mut eve, &["users", "all"]);
    heard(&mut cid, &["room", "all"]);
    heard(&mut bob, &["room", "users", "all", "cid", "here", "by the room"]);
    // Whoever moves leaves one room and joins another.
    cid.hello("elsewhere", "Cid");
    until_moved(&mut ann, "leave", "Cid");
    until_list(&mut ann, &["Ann", "Bob"]);
    drop(bob);
    until_moved(&mut ann, "leave", "Bob");
    until_list(&mut ann, &["Ann"]);
    drop(ann);
    let mut dan = Client::join_as(&b, "lobby", "Dan");
    until_moved(&mut guest, "join", "Dan");
    until_list(&mut guest, &["Dan"]);
    drop(guest);
    dan.request("TaskEcho", Value::Null);
}

#[test]
fn users_of_a_killed_node_leave_and_come_back_with_it() {
    let [mut a, mut b, mut c] = nodes("");
    let mut ann = Client::join_as(&a, "lobby", "Ann");
    let bob = Client::join_as(&b, "lobby", "Bob");
    let mut cid = Client::connect(&c);
    cid.hello("lobby", "Cid");
    until_list(&mut cid, &["Ann", "Bob", "Cid"]);
    until_list(&mut ann, &["Ann", "Bob", "Cid"]);
    b.signal("KILL");
    b.wait_ended();
    drop(bob);
    for peer in [&mut ann, &mut cid] {
        until_moved(peer, "leave", "Bob");
        until_list(peer, &["Ann", "Cid"]);
    }
    b.launch_again();
    b.wait_ready();
    [&mut a, &mut b, &mut c].into_iter().for_each(|node| wait_for_nodes(node, 2));
    let mut bob = Client::connect(&b);
    bob.hello("lobby", "Bob");
    for peer in [&mut ann, &mut cid, &mut bob] {
        until_list(peer, &["Ann", "Cid", "Bob"]);
    }
    // One that only sleeps for too long is back with all it had.
    b.signal("STOP");
    until_moved(&mut ann, "leave", "Bob");
    until_list(&mut ann, &["Ann", "Cid"]);
    let mut dan = Client::connect(&a);
    dan.hello("lobby", "Dan");
    b.signal("CONT");
    until_moved(&mut ann, "join", "Bob");
    for peer in [&mut ann, &mut cid, &mut bob, &mut dan] {
        until_list(peer, &["Ann", "Cid", "Bob", "Dan"]);
    }
    // One that stops in order is gone at once.
    b.stop();
    until_moved(&mut cid, "leave", "Bob");
}

/// Somebody who says numbered words all the time, and hears those of all others: none is left out, none comes twice.
struct Talker {
    client: Client,
    number: usize,
    said: u64,
    heard: BTreeMap<String, u64>,
}

/// What they have in common.
struct Talk {
    over: AtomicBool,
    /// Words that each has said, and had answered.
    said: Vec<AtomicU64>,
    /// All have said their last word.
    silence: Barrier,
}

impl Talker {
    fn name(number: usize) -> String {
        format!("talker {number}")
    }

    fn join(server: &TestServer, number: usize) -> Self {
        // One after the other, so that the order of the list is known.
        let client = Client::join_as(server, "talk", &Self::name(number));
        Self { client, number, said: 0, heard: BTreeMap::new() }
    }

    fn hear(&mut self, frame: &Value) {
        if frame["task"] == "chat.say" && frame["id"].is_null() {
            let (from, text) =
                (frame["data"]["from"].as_str().unwrap(), frame["data"]["text"].as_str().unwrap());
            let next = self.heard.entry(from.into()).or_default();
            assert_eq!(text, next.to_string(), "talker {} hears {from}", self.number);
            *next += 1;
        } else {
            let who = self.number;
            assert!(frame["msgtype"].is_null(), "talker {who}: {frame}: rooms and users are as they were");
        }
    }

    fn run(mut self, talk: &Talk) -> Self {
        while !talk.over.load(Ordering::SeqCst) {
            let said = self.said;
            let data = json!({"text": said.to_string()});
            self.client.send(json!({"task": "chat.say", "data": data, "id": said}));
            loop {
                let frame = self.client.read();
                if frame["id"] == said {
                    assert_ne!(frame["msgtype"], "error", "{frame}");
                    break;
                }
                self.hear(&frame);
            }
            self.said += 1;
            talk.said[self.number].store(self.said, Ordering::SeqCst);
        }
        talk.silence.wait();
        for speaker in 0..talk.said.len() {
            let (name, said) = (Self::name(speaker), talk.said[speaker].load(Ordering::SeqCst));
            while self.heard.get(&name).copied().unwrap_or_default() < said {
                let frame = self.client.read();
                self.hear(&frame);
            }
        }
        self
    }
}

/// Two on each node.
fn talkers(nodes: &[TestServer]) -> Vec<Talker> {
    let mut talkers: Vec<Talker> =
        (0..nodes.len() * 2).map(|number| Talker::join(&nodes[number / 2], number)).collect();
    let names: Vec<String> = (0..talkers.len()).map(Talker::name).collect();
    // The last one was there when all were.
    let last = talkers.len() - 1;
    for talker in &mut talkers[..last] {
        let what = "the list of all";
        talker.client.until(what, |frame| {
            let listed = frame["data"].as_array().filter(|_| frame["msgtype"] == "user_list");
            listed.is_some_and(|listed| names.iter().all(|name| listed.iter().any(|one| *one == **name)))
        });
    }
    talkers
}

fn begin(talkers: Vec<Talker>) -> (Arc<Talk>, Vec<JoinHandle<Talker>>) {
    let said = talkers.iter().map(|_| AtomicU64::new(0)).collect();
    let talk = Arc::new(Talk { over: AtomicBool::new(false), said, silence: Barrier::new(talkers.len()) });
    let begin = |talker: Talker| {
        let talk = talk.clone();
        std::thread::spawn(move || talker.run(&talk))
    };
    let talking = talkers.into_iter().map(begin).collect();
    (talk, talking)
}

/// Waits until each has said some more.
fn until_all_have_talked(server: &mut TestServer, talk: &Talk, talking: &[JoinHandle<Talker>]) {
    let said = || talk.said.iter().map(|said| said.load(Ordering::SeqCst)).collect::<Vec<_>>();
    let before = said();
    server.wait("everybody talks on", |_| {
        assert!(!talking.iter().any(JoinHandle::is_finished), "one of those who talk has failed");
        said().iter().zip(&before).all(|(now, before)| *now >= before + 20).then_some(())
    });
}

#[test]
fn nothing_is_lost_while_everything_is_reloaded_on_one_node() {
    let mut nodes: [TestServer; 3] = nodes("[server]\nwatch = false");
    let (talk, talking) = begin(talkers(&nodes));
    for _ in 0..2 {
        for library in ["room", "router", "stage", "tasks", "websocket"] {
            reload(&mut nodes[1], library);
            until_all_have_talked(&mut nodes[1], &talk, &talking);
        }
    }
    talk.over.store(true, Ordering::SeqCst);
    let mut talkers: Vec<Talker> = talking.into_iter().map(|thread| thread.join().unwrap()).collect();
    // Lists are as they were, and somebody who comes now is in all of them.
    let mut late = Client::connect(&nodes[2]);
    late.hello("talk", "late");
    let names: Vec<String> = (0..6).map(Talker::name).chain(["late".into()]).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for talker in &mut talkers {
        until_moved(&mut talker.client, "join", "late");
        until_list(&mut talker.client, &names);
    }
    // A kill right after a reload: the next build knows who is elsewhere.
    reload(&mut nodes[1], "room");
    nodes[2].signal("KILL");
    nodes[2].wait_ended();
    until_list(&mut talkers[2].client, &names[..4]);
}

#[test]
fn a_restart_of_each_service_leaves_the_lists_right() {
    let mut nodes: [TestServer; 2] = nodes("[server]\nwatch = false");
    let mut ann = Client::join_as(&nodes[0], "lobby", "Ann");
    let mut bob = Client::join_as(&nodes[1], "lobby", "Bob");
    let mut cid = Client::connect(&nodes[0]);
    cid.hello("lobby", "Cid");
    for peer in [&mut ann, &mut bob, &mut cid] {
        until_list(peer, &["Ann", "Bob", "Cid"]);
    }
    for (round, service) in ["room", "router", "stage/Names", "room"].into_iter().enumerate() {
        let name = format!("of round {round}");
        nodes[1].ask(&format!("restart {service}")).unwrap();
        nodes[1].wait("the rooms are whole again", |node| (in_room(node, "lobby") == 1).then_some(()));
        // Talk goes on, both ways, once it is back; nobody was seen to leave and come.
        let mut peers = [&mut ann, &mut bob];
        for speaker in 0..2 {
            let text = format!("{round}.{speaker}");
            peers[speaker].send(json!({"task": "chat.say", "data": {"text": text}}));
            for peer in &mut peers {
                peer.until("the word", |frame| {
                    assert!(frame["msgtype"] != "join" && frame["msgtype"] != "leave", "{frame}");
                    frame["data"]["text"] == *text
                });
            }
        }
        let mut dan = Client::connect(&nodes[1]);
        dan.hello("lobby", &name);
        let list = ["Ann", "Bob", "Cid", &name];
        for peer in [&mut ann, &mut bob, &mut cid, &mut dan] {
            until_list(peer, &list);
        }
        drop(dan);
        for peer in [&mut ann, &mut bob] {
            until_moved(peer, "leave", &name);
            until_list(peer, &["Ann", "Bob", "Cid"]);
        }
    }
    // An edge that is restarted closes its peers.
    nodes[1].ask("restart websocket").unwrap();
    assert_eq!(bob.closed_with().0, 1012);
    until_moved(&mut ann, "leave", "Bob");
    until_list(&mut ann, &["Ann", "Cid"]);
    let mut bob = Client::connect(&nodes[1]);
    bob.hello("lobby", "Bob");
    for peer in [&mut ann, &mut cid, &mut bob] {
        until_list(peer, &["Ann", "Cid", "Bob"]);
    }
}

#[test]
fn a_room_service_that_falls_takes_nobody_away_on_other_nodes() {
    let mut a = stage(&node("a", &[]));
    let mut b = stage_with_room("falling/Falling", &node("b", &[&a]));
    [&mut a, &mut b].into_iter().for_each(|node| wait_for_nodes(node, 1));
    let mut ann = Client::join_as(&a, "lobby", "Ann");
    let mut bob = Client::join_as(&b, "lobby", "Bob");
    let mut cid = Client::connect(&b);
    cid.hello("lobby", "Cid");
    for peer in [&mut ann, &mut bob, &mut cid] {
        until_list(peer, &["Ann", "Bob", "Cid"]);
    }
    for round in 1..=2 {
        b.call("falling", "fall/1", "").unwrap_err();
        b.wait_service("falling", "serves again", |service| {
            service["state"] == "enabled" && service["restarts"] == round
        });
        // Somebody comes on the other node while it does not know its own yet.
        let name = format!("of round {round}");
        let mut dan = Client::connect(&a);
        dan.hello("lobby", &name);
        let is_quiet = |frame: &Value, name: &str| {
            let is_moved = frame["msgtype"] == "join" || frame["msgtype"] == "leave";
            assert!(!is_moved || frame["username"] == name, "{frame}");
        };
        for peer in [&mut dan, &mut ann, &mut bob, &mut cid] {
            let list = json!({"msgtype": "user_list", "data": ["Ann", "Bob", "Cid", name]});
            peer.until("the list of all", |frame| {
                is_quiet(frame, &name);
                *frame == list
            });
        }
        drop(dan);
        for peer in [&mut ann, &mut bob, &mut cid] {
            until_moved(peer, "leave", &name);
            until_list(peer, &["Ann", "Bob", "Cid"]);
        }
    }
}

#[test]
fn three_hundred_joins_are_few_events() {
    let [a, mut b] = nodes("[room.access]\nbig = \"anyone\"");
    let mut ann = Client::join_as(&a, "big", "Ann");
    let said = |server: &TestServer| server.ask("cluster").unwrap()["said"].as_u64().unwrap();
    let before = said(&b);
    let crowd: Vec<Client> = (0..300)
        .map(|number| {
            let mut client = Client::connect(&b);
            client.hello("big", &number.to_string());
            client
        })
        .collect();
    b.wait("all are there", |b| (in_room(b, "big") == 300).then_some(()));
    ann.until("the list of all", |frame| frame["data"].as_array().is_some_and(|names| names.len() == 301));
    let events = said(&b) - before;
    assert!(events < 150, "{events} events");
    drop(crowd);
    until_list(&mut ann, &["Ann"]);
}

/// The shipped ring with tokens, as a node.
fn token_node(name: &str, seeds: &[&TestServer]) -> TestServer {
    ring().settings(&session("")).settings(&node(name, seeds)).start()
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
    let [mut a, mut b] = nodes("[server]\nwatch = false");
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
    // One that could not hear it learns it afterwards.
    let mut eve = Client::join_as(&b, "lobby", "Eve");
    b.signal("STOP");
    wait_for_nodes(&mut a, 0);
    let error = a.ask("kick --user id-Eve").unwrap_err();
    assert_eq!(error.code.name(), "not_found", "nobody was told: {error}");
    let mut other = Client::join_as(&a, "lobby", "Eve");
    assert_eq!(a.ask("kick --user id-Eve").unwrap(), json!({"closed": 1, "told": 0}));
    assert_eq!(other.closed_with().0, 4403);
    b.signal("CONT");
    assert_eq!(eve.closed_with().0, 4403);
}
