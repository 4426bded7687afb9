//! What clients and the server say to each other, frame by frame and to the letter.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use serde_json::{Value, json};
use tungstenite::Message;
use zephserver_testkit::TestServer;

use crate::client::{BINARY, CLOSE, Client, PING, PONG, Raw, TEXT, frame, frame_head, head, in_room, stage};

/// An error frame: its code, and its `name` and `id` where it has them.
fn check_error(text: &str, code: &str, name: Option<&str>, id: Option<&str>) {
    let start = format!(r#"{{"msgtype":"error","code":"{code}","text":""#);
    let name = name.map_or(String::new(), |name| format!(r#","name":{}"#, json!(name)));
    let id = id.map_or(String::new(), |id| format!(r#","id":{id}"#));
    // Raw: an id may be a number that no f64 can hold.
    let error: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text).unwrap();
    let what = error["text"].get();
    assert_eq!(text, format!("{start}{}{name}{id}}}", what.trim_start_matches('"')));
    assert_ne!(what, "\"\"", "it says what is wrong");
}

/// Messages, each with the code of the error that answers it, its name, and its id.
fn check_errors(peer: &mut Raw, cases: &[(&str, &str, Option<&str>, Option<&str>)]) {
    for (message, code, name, id) in cases {
        peer.text(message);
        check_error(&peer.read_text(), code, *name, *id);
    }
}

#[test]
fn who_comes_and_goes_is_told_in_exact_words_and_order() {
    let server = stage("");
    let mut ann = Client::connect(&server);
    ann.hello("lobby", "Ann");
    ann.expect(&[
        r#"{"msgtype":"join","username":"Ann","data":" joined the chat room."}"#,
        r#"{"msgtype":"user_list","data":["Ann"]}"#,
    ]);
    let mut bob = Client::connect(&server);
    bob.hello("lobby", "Bob \"ü\"");
    for peer in [&mut ann, &mut bob] {
        peer.expect(&[
            r#"{"msgtype":"join","username":"Bob \"ü\"","data":" joined the chat room."}"#,
            r#"{"msgtype":"user_list","data":["Ann","Bob \"ü\""]}"#,
        ]);
    }
    // Somebody anonymous is not named, but gets the list as everybody.
    let mut nobody = Client::connect(&server);
    nobody.send_text(r#"{"room":"lobby"}"#);
    for peer in [&mut ann, &mut bob, &mut nobody] {
        peer.expect(&[r#"{"msgtype":"user_list","data":["Ann","Bob \"ü\""]}"#]);
    }
    // A second window of the same user is a second entry.
    let mut window = Client::connect(&server);
    window.hello("lobby", "Ann");
    for peer in [&mut ann, &mut bob, &mut nobody, &mut window] {
        peer.expect(&[
            r#"{"msgtype":"join","username":"Ann","data":" joined the chat room."}"#,
            r#"{"msgtype":"user_list","data":["Ann","Bob \"ü\"","Ann"]}"#,
        ]);
    }
    // With a goodbye, and without.
    bob.socket.close(None).unwrap();
    for peer in [&mut ann, &mut nobody, &mut window] {
        peer.expect(&[
            r#"{"msgtype":"leave","username":"Bob \"ü\"","data":" left the chat room."}"#,
            r#"{"msgtype":"user_list","data":["Ann","Ann"]}"#,
        ]);
    }
    drop(ann);
    for peer in [&mut nobody, &mut window] {
        peer.expect(&[
            r#"{"msgtype":"leave","username":"Ann","data":" left the chat room."}"#,
            r#"{"msgtype":"user_list","data":["Ann"]}"#,
        ]);
    }
    drop(nobody);
    window.expect(&[r#"{"msgtype":"user_list","data":["Ann"]}"#]);
    window.expect_nothing();
}

#[test]
fn many_who_come_together_make_few_lists() {
    let server = stage("");
    let mut watcher = Client::join_as(&server, "lobby", "Watcher");
    let start = Instant::now();
    let mut peers: Vec<Client> = (0..40).map(|_| Client::connect(&server)).collect();
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.hello("lobby", &format!("P{number}"));
    }
    let (mut joined, mut lists) = (0, 0);
    loop {
        let frame = watcher.read();
        match frame["msgtype"].as_str().unwrap() {
            "join" => joined += 1,
            _ => lists += 1,
        }
        if frame["data"].as_array().is_some_and(|names| names.len() == 41) {
            break;
        }
    }
    assert_eq!(joined, 40, "nobody's coming is left out, and all come before the list that names them");
    let periods = start.elapsed().as_millis() / 50 + 2;
    assert!(lists <= periods, "{lists} lists in {} ms", start.elapsed().as_millis());
    watcher.expect_nothing();
}

#[test]
fn a_second_hello_moves_the_peer() {
    let server = stage("");
    let mut ann = Client::join_as(&server, "one", "Ann");
    let mut bob = Client::join_as(&server, "one", "Bob");
    ann.until_listed("Bob");
    bob.hello("two", "Bob");
    ann.expect(&[
        r#"{"msgtype":"leave","username":"Bob","data":" left the chat room."}"#,
        r#"{"msgtype":"user_list","data":["Ann"]}"#,
    ]);
    // Nothing of the old room: neither his leave nor its list.
    bob.expect(&[
        r#"{"msgtype":"join","username":"Bob","data":" joined the chat room."}"#,
        r#"{"msgtype":"user_list","data":["Bob"]}"#,
    ]);
    // No ghost stays behind.
    ann.request("chat.say", json!({"text": "in one"}));
    bob.expect_nothing();
    assert_eq!((in_room(&server, "one"), in_room(&server, "two")), (1, 1));
    assert_eq!(ann.read()["task"], "test");
    assert_eq!(bob.read()["task"], "test");
    // The same once more changes nothing.
    bob.hello("two", "Bob");
    bob.expect_nothing();
    ann.expect_nothing();
    // Somebody else in the same room is somebody else.
    let mut carl = Client::join_as(&server, "two", "Carl");
    bob.until_listed("Carl");
    bob.hello("two", "Rob");
    carl.until("Bob leaves", |frame| frame["msgtype"] == "leave" && frame["username"] == "Bob");
    carl.until("Rob comes", |frame| frame["msgtype"] == "join" && frame["username"] == "Rob");
    assert_eq!(carl.until_listed("Rob")["data"], json!(["Carl", "Rob"]));
    // And his end is told to the room that he is in, once.
    bob.until_listed("Rob");
    drop(bob);
    carl.expect(&[
        r#"{"msgtype":"leave","username":"Rob","data":" left the chat room."}"#,
        r#"{"msgtype":"user_list","data":["Carl"]}"#,
    ]);
    ann.expect_nothing();
}

#[test]
fn answers_and_pushes_have_exactly_their_keys() {
    let server = stage("");
    let mut peer = Raw::join(&server, "lobby", Some("Ann"));
    let said = r#"{"task":"chat.say","data":{"from":"Ann","text":"hi"}}"#;
    let cases: &[(&str, &[&str])] = &[
        (r#"{"task":"TaskEcho","data":1}"#, &[r#"{"task":"TaskEcho","data":1}"#]),
        (r#"{"task":"TaskEcho"}"#, &[r#"{"task":"TaskEcho","data":null}"#]),
        (r#"{"task":"TaskEcho","data":null,"id":1}"#, &[r#"{"task":"TaskEcho","data":null,"id":1}"#]),
        // Data is passed on byte for byte, whatever is around it.
        (
            " {\"id\" :\t\"a\\u0062 \", \"data\": {\"b\" : 1e400,\n\"a\":[ 0.10, \"\\u00e9é😀\"]} , \"task\":\"Task\\u0045cho\"} ",
            &[
                "{\"task\":\"TaskEcho\",\"data\":{\"b\" : 1e400,\n\"a\":[ 0.10, \"\\u00e9é😀\"]},\"id\":\"a\\u0062 \"}",
            ],
        ),
        // What is written here is compact UTF-8, without needless escapes.
        (
            r#"{"task":"chat.say","data":{"text":"h\u00e4 \ud83d\ude00 \/ \" \n"}}"#,
            &[r#"{"task":"chat.say","data":{"from":"Ann","text":"hä 😀 / \" \n"}}"#],
        ),
        // A request with an id is always answered; one without, not.
        (
            r#"{"task":"chat.say","data":{"text":"hi"},"id":2}"#,
            &[said, r#"{"task":"chat.say","data":null,"id":2}"#],
        ),
        (r#"{"task":"chat.say","data":{"text":"hi"}}"#, &[said]),
        (r#"{"task":"TaskPing","data":{},"id":"p"}"#, &[r#"{"task":"TaskPing","data":null,"id":"p"}"#]),
        (r#"{"task":"TaskPing","data":{}}"#, &[]),
        (
            r#"{"task":"Twice","id":3}"#,
            &[r#"{"task":"Twice","data":1,"id":3}"#, r#"{"task":"Twice","data":2,"id":3}"#],
        ),
        (r#"{"task":"Twice"}"#, &[r#"{"task":"Twice","data":1}"#, r#"{"task":"Twice","data":2}"#]),
        // To the user's own window.
        (
            r#"{"task":"chat.whisper","data":{"to":["id-Ann","id-nobody"],"text":"psst"}}"#,
            &[r#"{"task":"chat.whisper","data":{"from":"Ann","text":"psst"}}"#],
        ),
        // An id of null is none.
        (r#"{"task":"TaskEcho","data":4,"id":null}"#, &[r#"{"task":"TaskEcho","data":4}"#]),
    ];
    for opcode in [TEXT, BINARY] {
        for (message, frames) in cases {
            peer.send(opcode, message.as_bytes());
            for frame in *frames {
                assert_eq!(peer.read_text(), *frame, "{message}");
            }
        }
    }
    peer.text(r#"{"task":"TaskEcho","data":"the end"}"#);
    assert_eq!(peer.read_text(), r#"{"task":"TaskEcho","data":"the end"}"#);
}

#[test]
fn ids_come_back_as_they_were_sent() {
    let server = stage("");
    let mut peer = Raw::join(&server, "lobby", None);
    let long = format!("\"{}\"", "x".repeat(70_000));
    for id in [
        "0",
        "-0",
        "7",
        "9007199254740993",
        "18446744073709551616",
        "-1.50e+3",
        "1e999",
        "0.1000",
        r#""""#,
        r#""x""#,
        r#""\u00e9\\\"é""#,
        &long,
    ] {
        peer.text(&format!(r#"{{"id":{id},"task":"TaskEcho","data":[]}}"#));
        assert_eq!(peer.read_text(), format!(r#"{{"task":"TaskEcho","data":[],"id":{id}}}"#));
        // Later answers, too, and errors of every kind.
        peer.text(&format!(r#"{{"task":"Slow","id":{id},"data":{{"ms":0}}}}"#));
        assert_eq!(peer.read_text(), format!(r#"{{"task":"Slow","data":"done","id":{id}}}"#));
        peer.text(&format!(r#"{{"task":"nope","id":{id}}}"#));
        check_error(&peer.read_text(), "not_found", Some("nope"), Some(id));
        peer.text(&format!(r#"{{"task":["no name"],"id":{id}}}"#));
        check_error(&peer.read_text(), "invalid", None, Some(id));
        peer.text(&format!(r#"{{"room":"","id":{id}}}"#));
        check_error(&peer.read_text(), "invalid", None, Some(id));
    }
}

#[test]
fn what_makes_no_sense_is_invalid_and_the_connection_stays() {
    // More in a row than a peer may send.
    let server = stage("[websocket]\nbad_messages = 200");
    for joined in [false, true] {
        let mut peer = if joined { Raw::join(&server, "lobby", None) } else { Raw::connect(&server) };
        let nested = |depth: usize| {
            format!(r#"{{"task":"TaskEcho","data":{}{},"id":1}}"#, "[".repeat(depth), "]".repeat(depth))
        };
        let (deep, deeper) = (nested(1000), nested(100_000));
        for message in [
            "",
            " ",
            "x",
            "[]",
            "null",
            "7",
            "\"room\"",
            "{",
            "{}",
            "{\"room\"",
            "{room:\"a\"}",
            "{'room':'a'}",
            "{\"room\":\"a\"} {}",
            "{\"room\":\"a\",}",
            "{\"room\":\"a\" \"b\":1}",
            "{\"room\":\"\n\"}",
            "{\"room\":\"\\x\"}",
            "{\"room\":01}",
            r#"{"room":7}"#,
            r#"{"room":null}"#,
            r#"{"room":["a"]}"#,
            r#"{"room":""}"#,
            r#"{"session_id":"Ann"}"#,
            r#"{"task":null,"room":"a"}"#,
            r#"{"task":7}"#,
            r#"{"task":{}}"#,
            r#"{"task":true,"data":1}"#,
            r#"{"Task":"TaskEcho"}"#,
            r#"{"room":"a","id":true}"#,
            r#"{"room":"a","id":{}}"#,
            r#"{"task":"TaskEcho","id":[1]}"#,
            r#"{"task":"TaskEcho","data":nul}"#,
            r#"{"task":"TaskEcho","data":[1,]}"#,
            r#"{"task":"TaskEcho","data":NaN}"#,
        ] {
            for opcode in [TEXT, BINARY] {
                peer.send(opcode, message.as_bytes());
                let error = peer.read();
                assert_eq!(
                    (&error["msgtype"], &error["code"]),
                    (&json!("error"), &json!("invalid")),
                    "{message:?}"
                );
                assert_eq!(error.get("task"), None);
            }
        }
        for message in [&deep, &deeper] {
            peer.text(message);
            assert_eq!(peer.read()["code"], "invalid", "nested too deep");
        }
        for bytes in [&b"\xff"[..], b"{\"room\":\"\xe2\x82\"}", b"\0\0\0"] {
            peer.send(BINARY, bytes);
            check_error(&peer.read_text(), "invalid", None, None);
        }
        peer.text(&format!(r#"{{"room":"still here {joined}"}}"#));
        assert_eq!(peer.read_text(), r#"{"msgtype":"user_list","data":[]}"#);
        peer.text(r#"{"task":"TaskEcho"}"#);
        assert_eq!(peer.read_text(), r#"{"task":"TaskEcho","data":null}"#);
    }
}

#[test]
fn each_failure_has_its_code_name_and_id() {
    let server = stage("[room]\naccess = { attic = \"nobody\" }\n[router]\ndeadlines = { Quick = 0.1 }");
    let mut peer = Raw::connect(&server);
    check_errors(
        &mut peer,
        &[
            // Nobody is anywhere yet.
            (r#"{"task":"TaskEcho","id":1}"#, "refused", Some("TaskEcho"), Some("1")),
            (r#"{"task":"nope"}"#, "refused", Some("nope"), None),
            (r#"{"room":"attic","id":2}"#, "refused", None, Some("2")),
            (r#"{"room":"a","session_id":"refuse","id":"3"}"#, "refused", None, Some("\"3\"")),
            (r#"{"room":"a","session_id":4,"id":4}"#, "invalid", None, Some("4")),
            (r#"{"task":"TaskEcho","id":5}"#, "refused", Some("TaskEcho"), Some("5")),
        ],
    );
    // It may be tried again.
    peer.text(r#"{"room":"lobby","session_id":"Ann"}"#);
    assert_eq!(peer.read_text(), r#"{"msgtype":"join","username":"Ann","data":" joined the chat room."}"#);
    assert_eq!(peer.read_text(), r#"{"msgtype":"user_list","data":["Ann"]}"#);
    check_errors(
        &mut peer,
        &[
            (r#"{"task":"nope","id":1}"#, "not_found", Some("nope"), Some("1")),
            (r#"{"task":"","id":2}"#, "not_found", Some(""), Some("2")),
            (r#"{"task":"a\"\u0007é","id":3}"#, "not_found", Some("a\"\u{7}é"), Some("3")),
            (r#"{"task":"Nowhere"}"#, "not_found", Some("Nowhere"), None),
            (r#"{"task":"chat.say","data":{"text":5},"id":4}"#, "invalid", Some("chat.say"), Some("4")),
            (r#"{"task":"Moderators","id":5}"#, "refused", Some("Moderators"), Some("5")),
            (r#"{"task":"Quick","id":7,"data":{}}"#, "timeout", Some("Quick"), Some("7")),
            (r#"{"task":"Short","data":{}}"#, "timeout", Some("Short"), None),
            (r#"{"task":"TaskEcho","session_id":"refuse","id":8}"#, "refused", Some("TaskEcho"), Some("8")),
            (r#"{"task":"TaskEcho","session_id":[],"id":9}"#, "invalid", Some("TaskEcho"), Some("9")),
            (r#"{"room":"attic","id":10}"#, "refused", None, Some("10")),
            (r#"{"task":"Fall","id":6}"#, "panicked", Some("Fall"), Some("6")),
        ],
    );
    // After all that she is who she was, where she was; and whoever fell is up again.
    peer.text(r#"{"task":"Extra","id":1}"#);
    let told = peer.read();
    let told = &told["data"];
    assert_eq!((&told["room"], &told["user"]["username"]), (&json!("lobby"), &json!("Ann")));
    assert_eq!(server.service("stage/Tasks")["failures"], 1);
    for service in ["router/Router", "websocket/WebSocket"] {
        assert_eq!(server.service(service)["failures"], 0, "somebody else's panic");
    }
    server.ask("disable stage/Tasks").unwrap();
    check_errors(&mut peer, &[(r#"{"task":"Extra","id":1}"#, "unavailable", Some("Extra"), Some("1"))]);
}

#[test]
fn too_many_requests_that_wait_are_busy() {
    let mut server = stage("[websocket]\nrequests = 3");
    let mut peer = Raw::join(&server, "lobby", None);
    for id in 0..3 {
        peer.text(&format!(r#"{{"task":"Slow","data":{{"ms":10000}},"id":{id}}}"#));
    }
    check_errors(&mut peer, &[(r#"{"task":"TaskEcho","id":3}"#, "busy", Some("TaskEcho"), Some("3"))]);
    server.wait("they run", |server| (server.log().matches("Slow began").count() == 3).then_some(()));
    server.ask("restart stage/Tasks").unwrap();
    let mut answers: Vec<String> = (0..3).map(|_| peer.read_text()).collect();
    answers.sort();
    let expected: Vec<String> =
        (0..3).map(|id| format!(r#"{{"task":"Slow","data":"interrupted","id":{id}}}"#)).collect();
    assert_eq!(answers, expected);
    peer.text(r#"{"task":"TaskEcho"}"#);
    assert_eq!(peer.read_text(), r#"{"task":"TaskEcho","data":null}"#);
}

#[test]
fn inline_answers_in_order_pooled_side_by_side_ordered_one_by_one() {
    let server = stage("");
    let mut ann = Raw::join(&server, "lobby", None);
    let mut bob = Raw::join(&server, "elsewhere", None);
    let answer = |task: &str, data: Value, id: u64| format!(r#"{{"task":"{task}","data":{data},"id":{id}}}"#);
    let step = |ms: u64, n: u64| format!(r#"{{"task":"Step","data":{{"ms":{ms},"n":{n}}},"id":{n}}}"#);

    ann.text(r#"{"task":"Slow","data":{"ms":500},"id":1}"#);
    ann.text(r#"{"task":"Slow","data":{"ms":1},"id":2}"#);
    ann.text(r#"{"task":"TaskEcho","data":0,"id":3}"#);
    let answers: BTreeSet<String> = (0..2).map(|_| ann.read_text()).collect();
    let sooner = [answer("Slow", json!("done"), 2), answer("TaskEcho", json!(0), 3)];
    assert_eq!(answers, BTreeSet::from(sooner), "a slow one holds up nobody");
    assert_eq!(ann.read_text(), answer("Slow", json!("done"), 1));

    for (ms, n) in [(1500, 1), (0, 2), (20, 3), (0, 4)] {
        ann.text(&step(ms, n));
    }
    bob.text(&step(0, 5));
    assert_eq!(bob.read_text(), answer("Step", json!(5), 5));
    ann.text(r#"{"task":"TaskEcho","data":0,"id":6}"#);
    assert_eq!(ann.read_text(), answer("TaskEcho", json!(0), 6), "others do not queue behind them");
    for n in 1..=4 {
        assert_eq!(ann.read_text(), answer("Step", json!(n), n), "in the order asked");
    }
}

/// The limits as they are shipped.
#[test]
fn two_hundred_requests_and_fifty_mistakes_pass() {
    let server = stage("");
    let mut peer = Raw::join(&server, "lobby", None);
    for (task, is_in_order) in [("TaskEcho", true), ("Step", true), ("Slow", false)] {
        let ask = |id: u64| format!(r#"{{"task":"{task}","data":{{"ms":2,"n":{id}}},"id":{id}}}"#);
        let all: Vec<u8> = (0..200).flat_map(|id| frame(TEXT, ask(id).as_bytes())).collect();
        peer.write(&all);
        let answers: Vec<Value> = (0..200).map(|_| peer.read()).collect();
        let mut ids: Vec<u64> = answers.iter().filter_map(|answer| answer["id"].as_u64()).collect();
        if !is_in_order {
            ids.sort_unstable();
        }
        assert_eq!(ids, (0..200).collect::<Vec<_>>(), "{task}");
        assert!(answers.iter().all(|answer| answer["task"] == task), "{task}");
    }
    let mistakes: Vec<u8> = (0..50).flat_map(|_| frame(TEXT, b"{")).collect();
    peer.write(&mistakes);
    for _ in 0..50 {
        check_error(&peer.read_text(), "invalid", None, None);
    }
    peer.text(r#"{"task":"TaskEcho"}"#);
    assert_eq!(peer.read_text(), r#"{"task":"TaskEcho","data":null}"#);
}

#[test]
fn a_task_is_told_what_was_sent_and_who_sent_it() {
    let server = stage("");
    let mut peer = Raw::join(&server, "lobby", Some("Ann"));
    peer.text(r#"{"date":1445000000000,"task":"Extra","room":"not this","data":[1],"x":{"y" : 1.0},"session_id":"Ann"}"#);
    let answer = peer.read_text();
    let (before, cid) = answer.split_once(r#","cid":"#).unwrap();
    assert_eq!(
        before,
        r#"{"task":"Extra","data":{"extra":{"date":1445000000000,"room":"not this","session_id":"Ann","x":{"y" : 1.0}},"room":"lobby","user":{"id":"id-Ann","username":"Ann"}"#
    );
    cid.strip_suffix("}}").unwrap().parse::<u64>().unwrap();
    let mut nobody = Raw::join(&server, "other", None);
    nobody.text(r#"{"task":"Extra"}"#);
    let told = nobody.read();
    let told = &told["data"];
    assert_eq!((&told["extra"], &told["room"], &told["user"]), (&json!({}), &json!("other"), &Value::Null));
    // Who may ask for what.
    check_errors(
        &mut nobody,
        &[
            (r#"{"task":"Members","id":1}"#, "refused", Some("Members"), Some("1")),
            (r#"{"task":"Moderators","id":2}"#, "refused", Some("Moderators"), Some("2")),
        ],
    );
    peer.text(r#"{"task":"Members"}"#);
    assert_eq!(peer.read_text(), r#"{"task":"Members","data":"Ann"}"#);
    let mut moderator = Raw::join(&server, "third", Some("Mod"));
    moderator.text(r#"{"task":"Moderators"}"#);
    assert_eq!(moderator.read_text(), r#"{"task":"Moderators","data":"moderated"}"#);
}

#[test]
fn a_session_is_asked_once_for_each_token_and_holds_up_only_its_peer() {
    let mut server = stage("");
    let asked = |server: &TestServer| server.call("stage/Names", "asked/1", "").unwrap();
    let mut ann = Raw::join(&server, "lobby", Some("Ann"));
    for id in 0..20 {
        // As the client of 2015 does.
        ann.text(&format!(r#"{{"task":"TaskEcho","session_id":"Ann","room":"lobby","id":{id}}}"#));
        assert_eq!(ann.read_text(), format!(r#"{{"task":"TaskEcho","data":null,"id":{id}}}"#));
    }
    assert_eq!(asked(&server), 1);
    // The shape comes first: nobody is asked who sends what makes no sense.
    check_errors(
        &mut ann,
        &[
            (r#"{"task":5,"session_id":"Bea","id":1}"#, "invalid", None, Some("1")),
            (r#"{"room":5,"session_id":"Bea","id":2}"#, "invalid", None, Some("2")),
        ],
    );
    assert_eq!(asked(&server), 1);

    // Her messages wait for her session; others' do not.
    let mut hal = Raw::connect(&server);
    hal.text(r#"{"room":"lobby","session_id":"held:Hal"}"#);
    hal.text(r#"{"task":"Members","id":1}"#);
    hal.text(r#"{"task":"TaskEcho","data":2}"#);
    server
        .wait("he is held", |server| (server.call("stage/Names", "held/1", "").unwrap() == 1).then_some(()));
    let mut slow = Raw::connect(&server);
    slow.text(r#"{"room":"elsewhere","session_id":"slow:Sue"}"#);
    slow.text(r#"{"task":"Members"}"#);
    ann.text(r#"{"task":"TaskEcho","data":"meanwhile"}"#);
    assert_eq!(ann.read_text(), r#"{"task":"TaskEcho","data":"meanwhile"}"#);
    for expected in [
        r#"{"msgtype":"join","username":"Sue","data":" joined the chat room."}"#,
        r#"{"msgtype":"user_list","data":["Sue"]}"#,
        r#"{"task":"Members","data":"Sue"}"#,
    ] {
        assert_eq!(slow.read_text(), expected);
    }
    assert_eq!(server.call("stage/Names", "release/1", "").unwrap(), 1);
    for expected in [
        r#"{"msgtype":"join","username":"Hal","data":" joined the chat room."}"#,
        r#"{"msgtype":"user_list","data":["Ann","Hal"]}"#,
        r#"{"task":"Members","data":"Hal","id":1}"#,
        r#"{"task":"TaskEcho","data":2}"#,
    ] {
        assert_eq!(hal.read_text(), expected);
    }

    // Another token in the middle: from here on she is somebody else, and her room hears of it.
    ann.text(r#"{"task":"Members","session_id":"Bea","id":3}"#);
    while ann.read_text() != r#"{"task":"Members","data":"Bea","id":3}"# {}
    let told = [("leave", "Ann"), ("join", "Bea")];
    let mut seen = (0..).map(|_| hal.read()).filter(|frame| frame["msgtype"] != "user_list");
    for (msgtype, username) in told {
        let notice = seen.next().unwrap();
        assert_eq!((&notice["msgtype"], &notice["username"]), (&json!(msgtype), &json!(username)));
    }
}

#[test]
fn a_session_ends_when_it_says_so() {
    let server = stage("");
    let mut watcher = Client::join_as(&server, "lobby", "Watcher");
    let start = Instant::now();
    let mut eve = Raw::join(&server, "lobby", Some("expire:Eve:2"));
    watcher.until_listed("Eve");
    eve.text(r#"{"task":"Members","id":1}"#);
    assert_eq!(eve.read_text(), r#"{"task":"Members","data":"Eve","id":1}"#);
    check_error(&eve.read_text(), "refused", None, None);
    assert!(start.elapsed() > Duration::from_millis(900), "{:?}", start.elapsed());
    assert_eq!(eve.closed_with(), 4401);
    watcher.expect(&[
        r#"{"msgtype":"leave","username":"Eve","data":" left the chat room."}"#,
        r#"{"msgtype":"user_list","data":["Watcher"]}"#,
    ]);
}

#[test]
fn tasks_are_interrupted_at_their_deadline_and_at_a_stop() {
    // A task's own deadline counts less than the setting for its name, and more than that for all.
    let mut server = stage("[router]\ndeadline = 0.2\ndeadlines = { Quick = 20.0, Long = 20.0 }");
    let mut peer = Raw::join(&server, "lobby", None);
    let mut answer = |message: &str| {
        let start = Instant::now();
        peer.text(message);
        (peer.read(), start.elapsed())
    };
    let (error, after) = answer(r#"{"task":"Slow","data":{"ms":20000},"id":1}"#);
    assert_eq!((&error["code"], &error["id"]), (&json!("timeout"), &json!(1)));
    assert!(after >= Duration::from_millis(200) && after < Duration::from_secs(5), "{after:?}");
    server.wait_log("Slow was interrupted");
    let (error, after) = answer(r#"{"task":"Short","data":{},"id":2}"#);
    assert_eq!((&error["code"], &error["id"]), (&json!("timeout"), &json!(2)));
    assert!(after >= Duration::from_millis(300) && after < Duration::from_secs(5), "{after:?}");
    server.wait_log("Short was interrupted");
    let (answered, _) = answer(r#"{"task":"Long","data":{"ms":500},"id":3}"#);
    assert_eq!(answered, json!({"task": "Long", "data": "done", "id": 3}), "longer than its own deadline");

    peer.text(r#"{"task":"Quick","data":{"ms":15000},"id":4}"#);
    server.wait("it runs", |server| (server.log().matches("Slow began").count() == 2).then_some(()));
    let start = Instant::now();
    server.ask("restart stage/Tasks").unwrap();
    assert_eq!(peer.read_text(), r#"{"task":"Quick","data":"interrupted","id":4}"#);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // Answers that came too late go nowhere.
    peer.text(r#"{"task":"TaskEcho","id":5}"#);
    assert_eq!(peer.read_text(), r#"{"task":"TaskEcho","data":null,"id":5}"#);
}

#[test]
fn pages_of_other_origins_stay_outside() {
    let server = stage("[websocket]\norigins = [\"https://chat.example\"]\necho_path = \"/echo\"");
    let port = server.port("websocket/WebSocket");
    let status = |origin: &str| Client::connect_with(&server, "/ws", &[("Origin", origin)]).err();
    let own = |scheme: &str, host: &str| format!("{scheme}://{host}:{port}");
    for origin in ["https://chat.example", "https://chat.example:443", &own("http", "127.0.0.1")] {
        assert_eq!(status(origin), None, "{origin}");
    }
    for origin in [
        "http://127.0.0.1",
        "http://chat.example",
        "https://chat.example:444",
        "https://chat.example.evil.example",
        "https://sub.chat.example",
        "null",
        "evil",
        "",
        &own("https", "127.0.0.1"),
        &own("http", "localhost"),
        &format!("{}0", own("http", "127.0.0.1")),
        &format!("{}@evil.example", own("http", "127.0.0.1")),
    ] {
        assert_eq!(status(origin), Some(403), "{origin}");
    }
    assert_eq!(Client::connect_with(&server, "/ws", &[]).err(), None, "who is no page says no origin");
    assert_eq!(Client::connect_with(&server, "/ws?a=b", &[]).err(), None);
    for path in ["/", "/ws/", "/wss", "/Ws", "/other", "/health", "/zephclient.js", "/static/ws", "/ws%20"] {
        assert_eq!(Client::connect_with(&server, path, &[]).err(), Some(404), "{path}");
    }
    // The bare echo answers with the same bytes, in the same kind of frame.
    let mut echo = Client::connect_with(&server, "/echo", &[]).ok().unwrap();
    for message in [Message::text("no JSON ü"), Message::binary(vec![0u8, 255]), Message::text("")] {
        echo.socket.send(message.clone()).unwrap();
        assert_eq!(echo.socket.read().unwrap(), message);
    }
}

#[test]
fn a_head_that_is_no_upgrade_gets_its_status() {
    let server = stage("");
    let good = head("/ws", "");
    let (_, answer) = Raw::ask(&server, &good);
    assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
    let answer = answer.to_ascii_lowercase();
    for line in
        ["upgrade: websocket", "connection: upgrade", "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="]
    {
        assert!(answer.contains(&format!("\r\n{line}\r\n")), "{line}: {answer}");
    }
    assert!(!answer.contains("sec-websocket-extensions") && !answer.contains("sec-websocket-protocol"));
    for (head, status) in [
        (good.replace("GET", "POST"), 405),
        (good.replace("Upgrade: websocket\r\n", ""), 426),
        (good.replace("Connection: Upgrade\r\n", ""), 426),
        (good.replace("websocket\r\n", "h2c\r\n"), 426),
        (good.replace("Version: 13", "Version: 12"), 426),
        (good.replace("Sec-WebSocket-Key", "X-Key"), 400),
        (good.replace("dGhl", ""), 400),
        (good.replace("HTTP/1.1", "HTTP/9"), 400),
        (good.replace("/ws", "/nowhere"), 404),
    ] {
        let (mut raw, answer) = Raw::ask(&server, &head);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}{answer}");
        let rest = raw.read_rest();
        assert!(rest.ends_with('\n') && rest.len() > 10, "{status}: {rest:?} says what is wrong");
    }
    // An upgrade whose frames come with it, in one piece.
    let mut raw = Raw::open(&server);
    let mut bytes = good.into_bytes();
    bytes.extend(frame(TEXT, br#"{"room":"lobby"}"#));
    bytes.extend(frame(TEXT, br#"{"task":"TaskEcho"}"#));
    raw.write(&bytes);
    assert!(raw.read_head().starts_with("HTTP/1.1 101 "));
    assert_eq!(raw.read()["msgtype"], "user_list");
    assert_eq!(raw.read_text(), r#"{"task":"TaskEcho","data":null}"#);
}

#[test]
fn messages_come_in_any_number_of_pieces() {
    let server = stage("");
    let mut peer = Raw::join(&server, "lobby", None);
    let message = r#"{"task":"TaskEcho","data":"häß€😀"}"#;
    let bytes = message.as_bytes();
    let inside_of_a_character = bytes.iter().position(|byte| *byte == 0xc3).unwrap() + 1;
    for opcode in [1, 2] {
        for cut in [0, 1, inside_of_a_character, bytes.len()] {
            peer.send(opcode, &bytes[..cut]);
            // What is in between is answered in between.
            peer.send(PING, b"between");
            assert_eq!(peer.read_frame(), Some((PONG, b"between".to_vec())));
            peer.send(PONG, b"nobody asked");
            peer.send(0x00, b"");
            peer.send(0x80, &bytes[cut..]);
            assert_eq!(peer.read_text(), message);
        }
        for (at, byte) in bytes.iter().enumerate() {
            let first = if at == 0 { opcode } else { 0 };
            peer.send(if at + 1 == bytes.len() { first | 0x80 } else { first }, &[*byte]);
        }
        assert_eq!(peer.read_text(), message);
    }
    // Frames that come byte by byte, and many that come at once.
    for byte in frame(TEXT, bytes).into_iter().chain(frame(PING, b"")) {
        peer.write(&[byte]);
    }
    assert_eq!(peer.read_text(), message);
    assert_eq!(peer.read_frame(), Some((PONG, Vec::new())));
    let long = format!(r#"{{"task":"TaskEcho","data":"{}"}}"#, "x".repeat(70_000));
    for text in [&long[..], &format!(r#"{{"task":"TaskEcho","data":"{}"}}"#, "y".repeat(200)), message] {
        peer.text(text);
    }
    let lengths: Vec<usize> = (0..3).map(|_| peer.read_text().len()).collect();
    assert_eq!(lengths, [long.len(), 29 + 200, message.len()]);
    // As long as it may be, and no longer: what follows the head of the frame need not come.
    let longest = format!(r#"{{"task":"TaskEcho","data":"{}"}}"#, "z".repeat((1 << 20) - 29));
    peer.text(&longest);
    assert_eq!(peer.read_text(), longest);
    peer.write(&frame_head(TEXT, (1 << 20) + 1));
    assert_eq!(peer.closed_with(), 1009);
}

#[test]
fn violations_close_with_their_codes() {
    let server = stage("");
    let cases: &[(u16, &[&[u8]])] = &[
        (1002, &[&frame(0xc1, b"{}")]),
        (1002, &[&frame(0xa1, b"{}")]),
        (1002, &[&frame(0x91, b"{}")]),
        (1002, &[&frame(0x83, b"")]),
        (1002, &[&frame(0x8f, b"")]),
        (1002, &[&frame(0x09, b"half a ping")]),
        (1002, &[&frame(0x08, b"")]),
        (1002, &[&frame(PING, &[b'x'; 126])]),
        (1002, &[&frame(0x80, b"of nothing")]),
        (1002, &[&frame(0x00, b"of nothing")]),
        (1002, &[&frame(0x01, b"a"), &frame(TEXT, b"b")]),
        (1002, &[b"\x81\x02{}"]),
        (1002, &[&frame(CLOSE, b"\x03")]),
        (1002, &[&frame(CLOSE, b"\x03\xec")]),
        (1002, &[&frame(CLOSE, b"\x03\xed")]),
        (1002, &[&frame(CLOSE, b"\x03\xee")]),
        (1002, &[&frame(CLOSE, b"\x00\x00")]),
        (1002, &[&frame(CLOSE, b"\x13\x88")]),
        (1007, &[&frame(CLOSE, b"\x03\xe8\xff")]),
        (1007, &[&frame(TEXT, b"\xff")]),
        (1007, &[&frame(TEXT, b"{\"room\":\"\xed\xa0\x80\"}")]),
        (1007, &[&frame(0x01, b"\xe2\x82"), &frame(0x80, b"")]),
        // As soon as it cannot become UTF-8 any more.
        (1007, &[&frame(0x01, b"\xe2\x28")]),
        (1009, &[&frame(0x02, &[b' '; 1 << 19]), &frame_head(0x80, (1 << 19) + 1)]),
        // What a client says is what it is answered.
        (1000, &[&frame(CLOSE, b"")]),
        (1000, &[&frame(CLOSE, b"\x03\xe8bye")]),
        (1001, &[&frame(CLOSE, b"\x03\xe9")]),
        (4999, &[&frame(CLOSE, b"\x13\x87")]),
        // Nothing is done after a goodbye.
        (1000, &[&frame(CLOSE, b"\x03\xe8"), &frame(TEXT, br#"{"task":"TaskEcho"}"#)]),
    ];
    for (code, frames) in cases {
        let mut peer = Raw::join(&server, "lobby", None);
        peer.write(&frames.concat());
        assert_eq!(peer.closed_with(), *code, "{:x?}", &frames.concat()[..frames.concat().len().min(40)]);
    }
    // The end without a goodbye, in the middle of a frame, is nobody's problem.
    let mut peer = Raw::join(&server, "lobby", None);
    peer.write(&frame_head(TEXT, 100));
    peer.finish();
    assert_eq!(peer.read_rest(), "");
    assert_eq!(server.service("websocket")["failures"], 0);
}

#[test]
fn silent_peers_are_pinged_and_who_answers_stays() {
    let server = stage("[websocket]\nping = 0.4");
    let mut deaf = Raw::join(&server, "deaf", None);
    let threads: Vec<_> = (0..8)
        .map(|number| {
            let mut peer = Raw::join(&server, &format!("room {number}"), None);
            std::thread::spawn(move || {
                // Passive but alive, at any distance between its last words and the next look at it.
                for _ in 0..6 {
                    match peer.read_frame() {
                        Some((PING, payload)) => peer.send(PONG, &payload),
                        Some((first, payload)) => {
                            panic!("{first:#x} {:?} instead of a ping", String::from_utf8_lossy(&payload))
                        }
                        None => panic!("the end instead of a ping"),
                    }
                }
                peer.text(r#"{"task":"TaskEcho","id":1}"#);
                assert_eq!(peer.read_text(), r#"{"task":"TaskEcho","data":null,"id":1}"#);
            })
        })
        .collect();
    assert!(matches!(deaf.read_frame(), Some((PING, _))), "it is asked first");
    assert_eq!(deaf.closed_with(), 1008);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn many_rooms_and_peers_hear_only_their_own() {
    let server = stage("");
    let mut rooms: Vec<Vec<Client>> = Vec::new();
    for room in 0..5 {
        let name = format!("room {room}");
        rooms.push(
            (0..4).map(|number| Client::join_as(&server, &name, &format!("{room}.{number}"))).collect(),
        );
    }
    for (room, peers) in rooms.iter_mut().enumerate() {
        for (number, peer) in peers.iter_mut().enumerate() {
            peer.send(json!({"task": "chat.say", "data": {"text": format!("{room}.{number} says")}}));
        }
    }
    for (room, peers) in rooms.iter_mut().enumerate() {
        for peer in peers {
            let heard: BTreeSet<String> = (0..4)
                .map(|_| peer.until("something said", |frame| frame["task"] == "chat.say"))
                .map(|frame| format!("{}: {}", frame["data"]["from"], frame["data"]["text"]))
                .collect();
            let expected: BTreeSet<String> =
                (0..4).map(|number| format!("\"{room}.{number}\": \"{room}.{number} says\"")).collect();
            assert_eq!(heard, expected);
            peer.expect_nothing();
        }
    }
}
