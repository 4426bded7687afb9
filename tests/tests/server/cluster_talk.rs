//! Whoever talks across nodes hears every word once while services are reloaded.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;

use serde_json::{Value, json};
use zephserver_testkit::TestServer;

use crate::client::Client;
use crate::cluster_rooms::{nodes, reload, until_list, until_moved};

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
