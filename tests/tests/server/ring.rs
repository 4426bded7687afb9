//! The whole ring under reload: many peers talk on while every part behind the edge is replaced, by new
//! builds and by other services.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use serde_json::{Value, json};
use zephserver_testkit::{Build, Code, TestServer};

use crate::client::{Client, Raw, in_room, stage, stage_with_room};

const ROOMS: usize = 20;
/// Peers in each room.
const MEMBERS: usize = 10;
const THREADS: usize = 4;

/// Reloads a library; a moment at which that cannot be is waited out.
fn reload(server: &mut TestServer, library: &str) {
    server.wait(&format!("{library} is reloaded"), |server| match server.ask(&format!("reload {library}")) {
        Ok(_) => Some(()),
        Err(error) if matches!(error.code, Code::Busy | Code::Timeout) => None,
        Err(error) => panic!("{library}: {error}"),
    });
}

/// One of many who talk. The first of each room speaks to the others.
struct Talker {
    client: Client,
    name: String,
    room: usize,
    is_speaker: bool,
    /// Words that it said, if it speaks, and words that it heard.
    said: u64,
    heard: u64,
    last_id: u64,
    /// What is not answered yet.
    asked: VecDeque<u64>,
}

impl Talker {
    fn join(server: &TestServer, number: usize) -> Self {
        let (room, member) = (number / MEMBERS, number % MEMBERS);
        let name = format!("{room}.{member}");
        let mut client = Client::connect(server);
        client.hello(&format!("room {room}"), &name);
        let (is_speaker, asked) = (member == 0, VecDeque::new());
        Self { client, name, room, is_speaker, said: 0, heard: 0, last_id: 0, asked }
    }

    /// Waits until its room is full: after that nobody is to come or go.
    fn until_full(&mut self) {
        self.client.until("the list of all", |frame| {
            frame["msgtype"] == "user_list" && frame["data"].as_array().unwrap().len() == MEMBERS
        });
    }

    fn id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Asks for something on the loop, something on the pool and, if it speaks, says a word.
    fn ask(&mut self) {
        let (echo, step) = (self.id(), self.id());
        self.client.send(json!({"task": "TaskEcho", "data": [echo], "id": echo}));
        self.client.send(json!({"task": "Step", "data": {"ms": 0, "n": step}, "id": step}));
        self.asked.extend([echo, step]);
        if self.is_speaker {
            let id = self.id();
            self.client.send(json!({"task": "chat.say", "data": {"text": self.said.to_string()}, "id": id}));
            self.said += 1;
            self.asked.push_back(id);
        }
    }

    /// Reads until everything is answered, once, and in order but for what runs on the pool. `key`: how
    /// the build of now calls the speaker, where that is known.
    fn read_answers(&mut self, key: Option<&str>) {
        while !self.asked.is_empty() {
            let frame = self.client.read();
            let Some(id) = frame["id"].as_u64() else {
                self.hear(&frame, key);
                continue;
            };
            let (place, expected) = match frame["task"].as_str() {
                Some("TaskEcho") => (0, json!([id])),
                Some("Step") => (self.asked.iter().position(|asked| *asked == id).unwrap_or(0), json!(id)),
                // At most the step is still under way.
                Some("chat.say") => (self.asked.len().min(2) - 1, Value::Null),
                _ => panic!("{}: {frame}", self.name),
            };
            assert_eq!(self.asked.remove(place), Some(id), "{}: {frame}: out of order, or again", self.name);
            assert_eq!(frame["data"], expected, "{}: {frame}", self.name);
            let is_said = frame["task"] == "chat.say";
            assert!(!is_said || self.heard == self.said, "{}: its own word comes before that", self.name);
        }
    }

    /// The next word of its room: none is left out, none comes twice.
    fn hear(&mut self, frame: &Value, key: Option<&str>) {
        assert_eq!(frame["task"], "chat.say", "{}: {frame}: rooms and users are as they were", self.name);
        let said = &frame["data"];
        assert_eq!(said["text"], self.heard.to_string(), "{}: {frame}", self.name);
        let speaker = format!("{}.0", self.room);
        match key.filter(|_| self.is_speaker) {
            Some(key) => assert_eq!(said[key], speaker, "an answer of the build before: {frame}"),
            None => assert!(said["from"] == speaker || said["born"] == speaker, "{frame}"),
        }
        self.heard += 1;
    }
}

struct Talk {
    over: AtomicBool,
    /// The new build of the tasks serves.
    renewed: AtomicBool,
    rounds: [AtomicU64; THREADS],
}

type Talking = JoinHandle<Vec<Talker>>;

fn begin(talkers: Vec<Talker>, talk: &Arc<Talk>) -> Vec<Talking> {
    let mut shares: Vec<Vec<Talker>> = (0..THREADS).map(|_| Vec::new()).collect();
    for (number, talker) in talkers.into_iter().enumerate() {
        shares[number % THREADS].push(talker);
    }
    let begin = |(number, mut share): (usize, Vec<Talker>)| {
        let talk = talk.clone();
        std::thread::spawn(move || {
            while !talk.over.load(Ordering::SeqCst) {
                let key = talk.renewed.load(Ordering::SeqCst).then_some("born");
                share.iter_mut().for_each(Talker::ask);
                share.iter_mut().for_each(|talker| talker.read_answers(key));
                talk.rounds[number].fetch_add(1, Ordering::SeqCst);
            }
            share
        })
    };
    shares.into_iter().enumerate().map(begin).collect()
}

/// Waits until everybody has talked, from the first word to the last answer, after now.
fn until_all_have_talked(server: &mut TestServer, talk: &Talk, talking: &[Talking]) {
    let rounds = || talk.rounds.each_ref().map(|rounds| rounds.load(Ordering::SeqCst));
    let before = rounds();
    server.wait("everybody talks on", |_| {
        assert!(!talking.iter().any(JoinHandle::is_finished), "one of those who talk has failed");
        // The round that is under way, and a whole one.
        rounds().iter().zip(&before).all(|(now, before)| *now >= before + 2).then_some(())
    });
}

#[test]
fn two_hundred_peers_talk_on_while_everything_is_reloaded() {
    let mut server = stage("[server]\nwatch = false");
    let mut talkers: Vec<Talker> = (0..ROOMS * MEMBERS).map(|number| Talker::join(&server, number)).collect();
    talkers.iter_mut().for_each(Talker::until_full);
    let talk = Arc::new(Talk {
        over: AtomicBool::new(false),
        renewed: AtomicBool::new(false),
        rounds: [const { AtomicU64::new(0) }; THREADS],
    });
    let talking = begin(talkers, &talk);
    until_all_have_talked(&mut server, &talk, &talking);
    for _ in 0..3 {
        // The session and the slower tasks, the rooms, the quick tasks, the router, and the sockets themselves.
        for library in ["stage", "room", "tasks", "router", "websocket"] {
            reload(&mut server, library);
        }
        until_all_have_talked(&mut server, &talk, &talking);
    }
    // Another build of the same library: its answers have another key.
    server.install("tasks", &Build::of("tasks").replaced("from", "born"));
    reload(&mut server, "tasks");
    talk.renewed.store(true, Ordering::SeqCst);
    until_all_have_talked(&mut server, &talk, &talking);
    talk.over.store(true, Ordering::SeqCst);
    let mut talkers: Vec<Talker> = talking.into_iter().flat_map(|thread| thread.join().unwrap()).collect();

    // Everybody has heard every word of the room, and is who it was, where it was.
    let mut said = [0; ROOMS];
    talkers.iter().filter(|talker| talker.is_speaker).for_each(|speaker| said[speaker.room] = speaker.said);
    for talker in &mut talkers {
        while talker.heard < said[talker.room] {
            let frame = talker.client.read();
            talker.hear(&frame, None);
        }
        let told = talker.client.request("Extra", Value::Null);
        let (room, user) = (format!("room {}", talker.room), format!("id-{}", talker.name));
        assert_eq!((&told["data"]["room"], &told["data"]["user"]["id"]), (&json!(room), &json!(user)));
    }
    for room in 0..ROOMS {
        assert_eq!(in_room(&server, &format!("room {room}")), MEMBERS as u64);
        let letter = json!({"task": "t", "data": 0, "users": [format!("id-{room}.3")]});
        assert_eq!(server.call("router", "say/1", &letter.to_string()).unwrap(), 1);
    }
    for (service, generation) in [
        ("stage/Names", 4),
        ("stage/Tasks", 4),
        ("room/Room", 4),
        ("tasks/Tasks", 5),
        ("router/Router", 4),
        ("websocket/WebSocket", 4),
    ] {
        let shown = server.service(service);
        assert_eq!((&shown["generation"], &shown["failures"]), (&json!(generation), &json!(0)), "{service}");
    }
}

#[test]
fn what_is_under_way_passes_a_reload() {
    let mut server = stage("[server]\nwatch = false");
    let mut asking = Raw::join(&server, "asking", None);
    // One runs and the others wait for it: in the router, which is replaced meanwhile.
    for n in 0..20 {
        let ms = if n == 0 { 500 } else { 1 };
        asking.text(&format!(r#"{{"task":"Step","data":{{"ms":{ms},"n":{n}}},"id":{n}}}"#));
    }
    asking.text(r#"{"task":"Slow","data":{"ms":1000},"id":20}"#);
    asking.text(r#"{"task":"TaskEcho","id":21}"#);
    assert_eq!(asking.read_text(), r#"{"task":"TaskEcho","data":null,"id":21}"#);
    server.wait_log("Slow began");
    let mut joining: Vec<Client> = (0..20).map(|_| Client::connect(&server)).collect();
    for (number, peer) in joining.iter_mut().enumerate() {
        peer.hello("joining", &format!("slow:{number}"));
        peer.send(json!({"task": "Members", "id": 0}));
    }
    for library in ["router", "stage", "room", "router"] {
        reload(&mut server, library);
    }
    for (number, peer) in joining.iter_mut().enumerate() {
        let told = peer.until("who it is", |frame| frame["id"] == 0);
        assert_eq!(told["data"], number.to_string());
    }
    let mut steps = Vec::new();
    let mut slow = 0;
    while steps.len() + slow < 21 {
        let answer = asking.read();
        match answer["task"].as_str() {
            Some("Step") => steps.push(answer["id"].as_u64().unwrap()),
            Some("Slow") => {
                assert_eq!(answer["data"], "done", "it is not interrupted: it ends where it began");
                slow += 1;
            }
            _ => panic!("{answer}"),
        }
    }
    assert_eq!((steps, slow), ((0..20).collect::<Vec<u64>>(), 1));
    assert_eq!(in_room(&server, "joining"), 20);
}

#[test]
fn a_room_is_for_whom_the_settings_say() {
    let access =
        r#"{ attic = "nobody", "staff-*" = "authenticated", "staff-open" = "anyone", club = ["id-Ann"] }"#;
    let mut server = stage(&format!("[room]\naccess = {access}"));
    for round in 0..2 {
        let lobby = format!("lobby {round}");
        let mut ann = Client::join_as(&server, &lobby, "Ann");
        let mut bob = Client::join_as(&server, &lobby, "Bob");
        let mut nobody = Client::join(&server, &lobby);
        ann.until_listed("Bob");
        let refused = |peer: &mut Client, hello: Value| {
            peer.send(hello);
            let error = peer.until("the refusal", |frame| frame["msgtype"] == "error");
            assert_eq!((&error["code"], &error["id"]), (&json!("refused"), &json!(9)));
            // It is where it was.
            assert_eq!(peer.request("Extra", Value::Null)["data"]["room"], lobby);
        };
        for room in ["attic", "staff-1", "staff-", "club"] {
            refused(&mut nobody, json!({"room": room, "id": 9}));
        }
        for room in ["attic", "club"] {
            refused(&mut bob, json!({"room": room, "session_id": "Bob", "id": 9}));
        }
        refused(&mut ann, json!({"room": "attic", "session_id": "Ann", "id": 9}));
        assert_eq!(in_room(&server, &lobby), 3, "nobody has left");
        nobody.send(json!({"room": "staff-open"}));
        bob.hello("staff-1", "Bob");
        ann.hello("club", "Ann");
        for (peer, room) in [(&mut nobody, "staff-open"), (&mut bob, "staff-1"), (&mut ann, "club")] {
            assert_eq!(peer.request("Extra", Value::Null)["data"]["room"], room);
            assert_eq!(in_room(&server, room), 1);
        }
        assert_eq!(in_room(&server, "attic") + in_room(&server, &lobby), 0);
        drop((nobody, bob, ann));
        server.wait("all are gone", |server| {
            let rooms = ["staff-open", "staff-1", "club"];
            rooms.iter().all(|room| in_room(server, room) == 0).then_some(())
        });
        // A new build has the same rules.
        reload(&mut server, "room");
    }
}

#[test]
fn a_word_goes_to_whom_it_is_addressed() {
    let server = stage("");
    let mut ann = Client::join_as(&server, "one", "Ann");
    let mut window = Client::join_as(&server, "two", "Ann");
    let mut bob = Client::join_as(&server, "two", "Bob");
    window.until_listed("Bob");
    let cid = bob.request("Extra", Value::Null)["data"]["cid"].clone();
    let say = |address: Value| {
        let mut letter = address;
        letter["task"] = json!("news ä");
        letter["data"] = json!({"a": [1]});
        server.call("router", "say/1", &letter.to_string())
    };
    let frame = r#"{"task":"news ä","data":{"a":[1]}}"#;
    let mut hear = |ears: [bool; 3]| {
        for (peer, hears) in [&mut ann, &mut window, &mut bob].into_iter().zip(ears) {
            if hears {
                peer.expect(&[frame]);
            }
            peer.expect_nothing();
        }
    };
    for (address, count, ears) in [
        (json!({"room": "two"}), 2, [false, true, true]),
        (json!({"users": ["id-Ann"]}), 2, [true, true, false]),
        (json!({"users": ["id-Ann", "id-Ann", "id-Bob", "nobody"]}), 3, [true; 3]),
        (json!({"all": true}), 3, [true; 3]),
        (json!({"cid": cid}), 1, [false, false, true]),
        // Of several one counts: room before users before all before cid.
        (json!({"cid": cid, "all": 1, "users": ["id-Bob"], "room": "one"}), 1, [true, false, false]),
        (json!({"cid": cid, "all": 1, "users": ["id-Ann"]}), 2, [true, true, false]),
        (json!({"cid": cid, "all": null}), 3, [true; 3]),
        // The address that counts reaches nobody: so nobody hears it.
        (json!({"room": "three", "all": 1}), 0, [false; 3]),
        (json!({"users": [], "all": 1}), 0, [false; 3]),
        (json!({"users": ["nobody"]}), 0, [false; 3]),
        (json!({"cid": 1}), 0, [false; 3]),
    ] {
        assert_eq!(say(address.clone()).unwrap(), count, "{address}");
        hear(ears);
    }
    // Whoever is gone is not counted.
    drop(window);
    bob.until("she leaves", |frame| frame["msgtype"] == "leave" && frame["username"] == "Ann");
    assert_eq!(say(json!({"room": "two"})).unwrap(), 1);
    assert_eq!(say(json!({"users": ["id-Ann"]})).unwrap(), 1);
    // And through a task, by a user.
    bob.send(json!({"task": "chat.whisper", "data": {"to": ["id-Ann"], "text": "psst"}}));
    ann.expect(&[frame, r#"{"task":"chat.whisper","data":{"from":"Bob","text":"psst"}}"#]);
}

#[test]
fn another_session_and_another_room_take_their_places() {
    let mut server = stage_with_room("stage/Hall", "");
    let count = |server: &TestServer| server.call("stage/Hall", "count/1", "").unwrap();
    let mut ann = Client::connect(&server);
    ann.hello("one", "Ann");
    let mut bob = Client::connect(&server);
    bob.hello("two", "Bob");
    // This room tells nobody who comes; who they are the other session says.
    for (peer, room, name) in [(&mut ann, "one", "Ann"), (&mut bob, "two", "Bob")] {
        peer.expect_nothing();
        let told = peer.request("Extra", Value::Null);
        assert_eq!((&told["data"]["room"], &told["data"]["user"]["username"]), (&json!(room), &json!(name)));
    }
    // It is one hall, whatever they call it: the router and the tasks push through it, too.
    let word = r#"{"task":"chat.say","data":{"from":"Ann","text":"hi"}}"#;
    ann.send(json!({"task": "chat.say", "data": {"text": "hi"}}));
    ann.expect(&[word]);
    bob.expect(&[word]);
    let letter = json!({"task": "news", "data": 1, "users": ["id-Bob"]});
    assert_eq!(server.call("router", "say/1", &letter.to_string()).unwrap(), 1);
    bob.expect(&[r#"{"task":"news","data":1}"#]);
    assert_eq!(count(&server), json!({"here": 2, "joined": 2, "left": 0, "sent": 2}));
    // What it knows passes to a new build; what it forgot the edge tells it again.
    reload(&mut server, "stage");
    assert_eq!(count(&server), json!({"here": 2, "joined": 2, "left": 0, "sent": 2}));
    server.ask("restart stage/Hall").unwrap();
    server.wait("all are here again", |server| (count(server)["here"] == 2).then_some(()));
    assert_eq!(count(&server), json!({"here": 2, "joined": 2, "left": 0, "sent": 0}));
    drop(bob);
    server.wait("Bob has left", |server| (count(server)["left"] == 1).then_some(()));
    ann.send(json!({"task": "chat.say", "data": {"text": "hi"}}));
    ann.expect(&[word]);
    ann.expect_nothing();
}
