//! The edge is replaced under its peers: whatever is under way on a connection goes on in the next generation.

use serde_json::{Value, json};
use zephserver_testkit::{Build, Code, TestServer};

use crate::client::{BINARY, Client, EDGE, PING, PONG, Raw, TEXT, frame, head, in_room, stage};

fn reload(server: &mut TestServer) {
    server.wait("the edge is reloaded", |server| match server.ask("reload websocket") {
        Ok(_) => Some(()),
        Err(error) if matches!(error.code, Code::Busy | Code::Timeout) => None,
        Err(error) => panic!("{error}"),
    });
}

fn open_files(server: &TestServer) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count()
}

/// The answer to a request; notices that come before are passed over.
fn answer(raw: &mut Raw, id: u64) -> Value {
    loop {
        let frame = raw.read();
        if frame["id"] == id {
            return frame;
        }
    }
}

#[test]
fn what_is_half_here_is_whole_in_the_next_generation() {
    let mut server = stage("[server]\nwatch = false");
    // Half a head, half a frame, half a message of several frames, half a character of a text.
    let whole_head = head("/ws", "");
    let mut heads = Raw::open(&server);
    heads.write(&whole_head.as_bytes()[..40]);
    let mut frames = Raw::join(&server, "half", None);
    let echo = frame(TEXT, br#"{"task":"TaskEcho","data":"a","id":1}"#);
    frames.write(&echo[..11]);
    let mut pieces = Raw::join(&server, "half", None);
    let text = r#"{"task":"TaskEcho","data":"zéphyr","id":2}"#.as_bytes();
    let cut = text.iter().position(|byte| *byte == 0xc3).unwrap() + 1;
    pieces.send(TEXT & 0x7f, &text[..cut]);
    reload(&mut server);
    heads.write(&whole_head.as_bytes()[40..]);
    assert!(heads.read_head().starts_with("HTTP/1.1 101 "));
    frames.write(&echo[11..]);
    assert_eq!(answer(&mut frames, 1)["data"], "a");
    pieces.send(PING, b"between");
    while pieces.read_frame().expect("a pong comes") != (PONG, b"between".to_vec()) {}
    reload(&mut server);
    pieces.send(0x80, &text[cut..]);
    assert_eq!(answer(&mut pieces, 2)["data"], "zéphyr");
    // A message that came in no piece at all while nobody read.
    frames.send(BINARY, br#"{"task":"TaskEcho","id":3}"#);
    answer(&mut frames, 3);
}

#[test]
fn a_slow_reader_gets_everything_in_order() {
    let mut server = stage("[server]\nwatch = false\n[websocket]\nbacklog = 100_000_000");
    let mut slow = Raw::join(&server, "slow", None);
    let big = "x".repeat(200_000);
    let push = |server: &TestServer, from: u64, to: u64| {
        for number in from..to {
            let push = json!({"room": "slow", "task": "test", "data": [number, big]}).to_string();
            assert_eq!(server.call("room", "send_to_room/1", &push).unwrap(), 1);
        }
    };
    push(&server, 0, 60);
    reload(&mut server);
    push(&server, 60, 90);
    // An urgent frame finds its place between two others.
    slow.send(PING, b"now");
    reload(&mut server);
    push(&server, 90, 100);
    let (mut next, mut pongs) = (0, 0);
    while next < 100 {
        match slow.read_frame().expect("everything comes") {
            (TEXT, text) => {
                let frame: Value = serde_json::from_slice(&text).unwrap();
                assert_eq!(
                    (&frame["data"][0], frame["data"][1].as_str().map(str::len)),
                    (&json!(next), Some(200_000))
                );
                next += 1;
            }
            (PONG, _) => pongs += 1,
            other => panic!("{:#x}", other.0),
        }
    }
    if pongs == 0 {
        assert_eq!(slow.read_frame(), Some((PONG, b"now".to_vec())));
    }
}

#[test]
fn answers_find_whoever_asked_in_the_generation_before() {
    let mut server = stage("[server]\nwatch = false");
    let mut asking = Client::join_as(&server, "asking", "Ann");
    // On the pool, and one after the other; and somebody whose session is not known yet.
    asking.send(json!({"task": "Slow", "data": {"ms": 4000}, "id": 1}));
    for n in 0..10 {
        asking.send(json!({"task": "Step", "data": {"ms": 60, "n": n}, "id": 10 + n}));
    }
    let mut joining = Client::connect(&server);
    joining.hello("asking", "slow:Bob");
    server.wait_log("Slow began");
    reload(&mut server);
    asking.send(json!({"task": "TaskEcho", "id": 2}));
    let mut steps = Vec::new();
    let mut others = Vec::new();
    while steps.len() < 10 || others.len() < 2 {
        let frame = asking.read();
        match (frame["task"].as_str(), frame["id"].as_u64()) {
            (Some("Step"), Some(id)) => steps.push(id),
            (Some(_), Some(id)) => others.push(id),
            _ => {}
        }
    }
    assert_eq!((steps, others), ((10..20).collect(), vec![2, 1]));
    joining.until("its first list", |frame| frame["msgtype"] == "user_list");
    assert_eq!(in_room(&server, "asking"), 2);
}

#[test]
fn a_generation_that_cannot_take_the_sockets_leaves_them_where_they_are() {
    let mut server = stage("[server]\nwatch = false");
    let mut clients: Vec<Client> =
        (0..50).map(|n| Client::join_as(&server, "full", &format!("n{n}"))).collect();
    let limit = open_files(&server) + 30;
    let prlimit = std::process::Command::new("prlimit")
        .args(["--pid", &server.pid().to_string(), &format!("--nofile={limit}:{limit}")])
        .status();
    assert!(prlimit.unwrap().success());
    let before = open_files(&server);
    let error = server.wait("the reload fails for that reason", |server| {
        server.ask("reload websocket").err().filter(|error| error.text.contains("import_state"))
    });
    assert_eq!(error.code.name(), "busy", "the file is not to blame");
    assert!(
        error.text.contains("import_state of the new instance failed")
            && error.text.contains("Too many open files"),
        "{error}"
    );
    for client in &mut clients {
        client.request("TaskEcho", Value::Null);
    }
    let shown = server.service(EDGE);
    assert_eq!((&shown["generation"], &shown["failures"]), (&json!(1), &json!(0)));
    server.wait("nothing is left open", |server| (open_files(server) <= before).then_some(()));
    assert_eq!(in_room(&server, "full"), 50);
}

#[test]
fn twenty_generations_leave_no_socket_behind() {
    let mut server = stage("[server]\nwatch = false\n[websocket]\necho_path = \"/echo\"");
    let mut clients: Vec<Client> =
        (0..20).map(|n| Client::join_as(&server, "twenty", &format!("n{n}"))).collect();
    let mut echo = Client::connect_with(&server, "/echo", &[]).unwrap_or_else(|_| panic!("refused"));
    reload(&mut server);
    let settled = |server: &mut TestServer| {
        server.wait("the old ones are gone", |server| {
            let status = server.ask("status").unwrap();
            status["generations"]["draining"].as_array().unwrap().is_empty().then(|| open_files(server))
        })
    };
    let before = settled(&mut server);
    for _ in 0..20 {
        reload(&mut server);
        echo.send_text("still here");
        assert_eq!(echo.read_text(), "still here");
        clients[7].request("TaskEcho", Value::Null);
    }
    // What is written over the socket of the command itself comes and goes.
    server.wait("no descriptor is left over", |server| {
        let status = server.ask("status").unwrap();
        let is_settled = status["generations"]["draining"].as_array().unwrap().is_empty();
        (is_settled && open_files(server) <= before).then_some(())
    });
    for client in &mut clients {
        client.request("TaskEcho", Value::Null);
    }
    // Who goes now is heard of.
    clients.truncate(5);
    server.wait("the others are gone", |server| (in_room(server, "twenty") == 5).then_some(()));
    assert_eq!(server.service(EDGE)["generation"], 22);
}

#[test]
fn http_requests_and_new_peers_come_in_during_reloads() {
    let mut server = stage("[server]\nwatch = false");
    let (port, stop) = (server.port(EDGE), std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let coming = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            let mut count = 0;
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                use std::io::{Read, Write};
                let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
                stream.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
                stream.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
                count += 1;
            }
            count
        })
    };
    let mut clients = Vec::new();
    for n in 0..10 {
        reload(&mut server);
        clients.push(Client::join_as(&server, "new", &format!("n{n}")));
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(coming.join().unwrap() > 10);
    assert_eq!(in_room(&server, "new"), 10);
}

#[test]
fn a_build_that_keeps_nothing_says_goodbye() {
    // From a build whose state the next one cannot read, nothing passes: it is refused.
    let server = stage("[server]\nwatch = false");
    let mut client = Client::join_as(&server, "a", "Ann");
    server.install("websocket", &Build::of("websocket").truncated(100_000));
    server.ask("reload websocket").unwrap_err();
    client.request("TaskEcho", Value::Null);
    server.ask("restart websocket").unwrap();
    assert_eq!(client.closed_with().0, 1012);
}

#[test]
fn a_full_pool_does_not_keep_a_new_generation_from_serving() {
    let mut server = stage("[server]\nwatch = false\npool_threads = 2");
    let mut client = Client::join_as(&server, "busy", "Ann");
    for id in 0..6 {
        client.send(json!({"task": "Slow", "data": {"ms": 1500}, "id": id}));
    }
    server.wait_log("Slow began");
    reload(&mut server);
    client.send(json!({"task": "TaskEcho", "id": "quick"}));
    // It comes before the slow ones end.
    let first = client.until("an answer", |frame| !frame["id"].is_null());
    assert_eq!(first["id"], "quick");
    for _ in 0..6 {
        client.until("a slow answer", |frame| frame["task"] == "Slow");
    }
}
