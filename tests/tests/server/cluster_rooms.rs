//! Rooms of the whole cluster: who is in them, and who is left when a node or a service goes.

use serde_json::{Value, json};
use zephserver_testkit::{Build, Code, TestServer};

use crate::client::{Client, in_room, stage, stage_with_room};
use crate::nodes::{node, wait_for_nodes};

/// Rings of the fixture: sessions by name, tasks of every kind.
pub fn nodes<const COUNT: usize>(settings: &str) -> [TestServer; COUNT] {
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
pub fn until_list(client: &mut Client, names: &[&str]) {
    let list = json!({"msgtype": "user_list", "data": names});
    client.until(&format!("the list of {names:?}"), |frame| *frame == list);
}

/// Reads until somebody joins or leaves.
pub fn until_moved(client: &mut Client, way: &str, name: &str) {
    client.until(&format!("{name}: {way}"), |frame| frame["msgtype"] == way && frame["username"] == name);
}

/// The same; nobody but this one is seen to come or go until then.
fn until_list_of(client: &mut Client, names: &[&str], newcomer: &str) {
    let list = json!({"msgtype": "user_list", "data": names});
    client.until(&format!("the list of {names:?}"), |frame| {
        let is_moved = frame["msgtype"] == "join" || frame["msgtype"] == "leave";
        assert!(!is_moved || frame["username"] == newcomer, "{frame}");
        *frame == list
    });
}

pub fn reload(server: &mut TestServer, library: &str) {
    until_done(server, &format!("reload {library}"));
}

/// Asks until the server is not too busy for it.
fn until_done(server: &mut TestServer, command: &str) {
    server.wait(&format!("{command} is done"), |server| match server.ask(command) {
        Ok(_) => Some(()),
        Err(error) if matches!(error.code, Code::Busy | Code::Timeout) => None,
        Err(error) => panic!("{command}: {error}"),
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
        for peer in [&mut dan, &mut ann, &mut bob, &mut cid] {
            until_list_of(peer, &["Ann", "Bob", "Cid", &name], &name);
        }
        drop(dan);
        for peer in [&mut ann, &mut bob, &mut cid] {
            until_moved(peer, "leave", &name);
            until_list(peer, &["Ann", "Bob", "Cid"]);
        }
    }
}

#[test]
fn a_room_build_that_is_taken_back_begins_with_nobody_who_left_meanwhile() {
    let settings = |node: String| format!("[server]\nwatch = false\nwatch_after_reload = 600\n{node}");
    let mut a = stage(&settings(node("a", &[])));
    let mut b = stage_with_room("falling/Falling", &settings(node("b", &[&a])));
    [&mut a, &mut b].into_iter().for_each(|node| wait_for_nodes(node, 1));
    let mut ann = Client::join_as(&a, "lobby", "Ann");
    let mut bob = Client::join_as(&b, "lobby", "Bob");
    let cid = Client::join_as(&b, "lobby", "Cid");
    until_list(&mut ann, &["Ann", "Bob", "Cid"]);
    let other = Build::of("falling").replaced("the room was told to fall", "the ROOM was told to fall");
    b.install("falling", &other);
    reload(&mut b, "falling");
    // One goes and one comes, so that the state of the reload is wrong in both ways.
    drop(cid);
    until_moved(&mut ann, "leave", "Cid");
    let mut dan = Client::join_as(&b, "lobby", "Dan");
    for peer in [&mut ann, &mut bob] {
        until_list(peer, &["Ann", "Bob", "Dan"]);
    }
    b.call("falling", "fall/1", "").unwrap_err();
    b.wait_service("falling", "the build before serves", |service| {
        service["generation"] == 1 && service["state"] == "enabled"
    });
    b.wait("those who are there are in the room", |b| {
        let list = b.call("falling", "rooms/1", r#"["lobby"]"#).ok()?;
        let members = list["members"].as_array()?;
        members.iter().map(|member| &member["username"]).eq(["Bob", "Dan"]).then_some(())
    });
    let mut eve = Client::connect(&a);
    eve.hello("lobby", "Eve");
    for peer in [&mut bob, &mut dan, &mut eve] {
        until_list(peer, &["Ann", "Bob", "Dan", "Eve"]);
    }
    // Who left is not seen to come back.
    until_list_of(&mut ann, &["Ann", "Bob", "Dan", "Eve"], "Eve");
    // What it is told from now on is told on.
    drop(dan);
    for peer in [&mut ann, &mut bob, &mut eve] {
        until_moved(peer, "leave", "Dan");
        until_list(peer, &["Ann", "Bob", "Eve"]);
    }
    // By hand the state of now goes back with it: nobody is seen to come or go.
    reload(&mut b, "falling");
    drop(eve);
    for peer in [&mut ann, &mut bob] {
        until_moved(peer, "leave", "Eve");
        until_list(peer, &["Ann", "Bob"]);
    }
    until_done(&mut b, "rollback falling");
    let mut gus = Client::connect(&b);
    gus.hello("lobby", "Gus");
    for peer in [&mut ann, &mut bob, &mut gus] {
        until_list_of(peer, &["Ann", "Bob", "Gus"], "Gus");
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
