//! Peers that mean no good, each beside others who chat on as if nothing were.

use std::io::{ErrorKind, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use zephserver_testkit::{TestServer, deadline};

use crate::client::{BINARY, CLOSE, Client, PING, PONG, Raw, TEXT, frame, frame_head, head, in_room, stage};

/// Those who chat say something at most so often.
const PACE: Duration = Duration::from_millis(2);
/// Longer nobody has to wait for what the other said, with all tests of the house at the same time.
const PATIENCE: Duration = Duration::from_secs(3);
/// Who took nothing for so long does not want to.
const STUCK: Duration = Duration::from_millis(300);

/// Two peers chat for as long as `act` does what it does. None of their words is lost, doubled or late.
fn beside<T>(server: &TestServer, act: impl FnOnce() -> T) -> T {
    let mut ann = Client::join(server, "bystanders");
    let mut bob = Client::join(server, "bystanders");
    let (stop, stopped) = mpsc::channel::<()>();
    let chat = std::thread::spawn(move || {
        let (mut said, mut slowest) = (0u64, Duration::ZERO);
        loop {
            let is_over = stopped.recv_timeout(PACE) != Err(RecvTimeoutError::Timeout);
            let start = Instant::now();
            let text = format!("word {said}");
            ann.send(json!({"task": "chat.say", "data": {"text": text}}));
            for peer in [&mut ann, &mut bob] {
                let heard = peer.until("what was said", |frame| frame["task"] == "chat.say");
                assert_eq!(heard, json!({"task": "chat.say", "data": {"from": null, "text": text}}));
            }
            slowest = slowest.max(start.elapsed());
            said += 1;
            if is_over {
                return (said, slowest);
            }
        }
    });
    let done = act();
    drop(stop);
    let (said, slowest) = chat.join().unwrap();
    assert!(slowest < PATIENCE, "one of {said} words took {slowest:?}");
    done
}

/// Writes until the other side takes no more for a while; answers how much it took.
fn stuff(peer: &Raw, bytes: &[u8]) -> usize {
    peer.stream.set_write_timeout(Some(STUCK)).unwrap();
    let mut taken = 0;
    while taken < bytes.len() {
        match (&peer.stream).write(&bytes[taken..]) {
            Ok(count) => taken += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(error) => panic!("{error} after {taken} bytes"),
        }
    }
    peer.stream.set_write_timeout(Some(deadline())).unwrap();
    taken
}

/// Writes on another thread, while this one reads.
fn write_meanwhile(peer: &Raw, bytes: Vec<u8>) -> std::thread::JoinHandle<()> {
    let mut writer = peer.stream.try_clone().unwrap();
    std::thread::spawn(move || writer.write_all(&bytes).unwrap())
}

#[test]
fn who_does_not_finish_its_head_is_sent_away() {
    let server = stage("");
    beside(&server, || {
        let start = Instant::now();
        let mut silent: Vec<Raw> = (0..50).map(|_| Raw::open(&server)).collect();
        let mut slow = Raw::open(&server);
        // A byte now and then, and never the last.
        let endless = head("/ws", &"X-Padding: x\r\n".repeat(30));
        let answer = endless.bytes().find_map(|byte| {
            slow.try_write(&[byte]);
            slow.read_head_within(Duration::from_millis(50))
        });
        let after = start.elapsed();
        assert!(answer.as_ref().is_some_and(|answer| answer.starts_with("HTTP/1.1 408 ")), "{answer:?}");
        assert!(after > Duration::from_secs(9) && after < Duration::from_secs(20), "{after:?}");
        for peer in &mut silent {
            assert!(peer.read_head().starts_with("HTTP/1.1 408 "));
            assert_eq!(peer.read_rest(), "");
        }
    });
}

#[test]
fn what_is_no_head_gets_its_status_and_the_end() {
    let server = stage("");
    beside(&server, || {
        let lines = |count: usize| "X-Line: x\r\n".repeat(count);
        let tls = [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], &[0xa5; 300]].concat();
        let cases: [(u16, Vec<u8>); 9] = [
            (400, tls),
            (400, vec![0xff; 100]),
            (400, vec![0; 100]),
            (400, b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()),
            (400, b"GET\r\n\r\n".to_vec()),
            (431, format!("GET /ws HTTP/1.1\r\nX: {}", "x".repeat(17_000)).into_bytes()),
            (431, head("/ws", &format!("X: {}\r\n", "x".repeat(17_000))).into_bytes()),
            (431, format!("GET /{} HTTP/1.1\r\n", "x".repeat(17_000)).into_bytes()),
            (431, head("/ws", &lines(100)).into_bytes()),
        ];
        for (status, bytes) in cases {
            let mut peer = Raw::open(&server);
            peer.try_write(&bytes);
            let answer = peer.read_head();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
            peer.read_rest();
        }
        // The same in small pieces, for as long as it is taken.
        let mut peer = Raw::open(&server);
        peer.try_write(b"GET /ws HTTP/1.1\r\n");
        let mut pieces = (0..2000).filter_map(|_| {
            peer.try_write(lines(3).as_bytes());
            peer.read_head_within(Duration::from_millis(1))
        });
        let answer = pieces.next().unwrap_or_default();
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer:?}");
        // Right heads are let in as ever.
        Raw::join(&server, "lobby", None);
    });
}

#[test]
fn messages_that_are_too_big_close_with_1009() {
    let server = stage("");
    let size_before = resident_kb(&server);
    beside(&server, || {
        let mib = vec![b' '; 1 << 20];
        let flood = [frame(0x01, b"{"), frame(0x00, b"").repeat(20_000)].concat();
        let cases = [
            frame_head(BINARY, 1 << 40),
            frame_head(TEXT, 1 << 40),
            frame_head(BINARY, i64::MAX as u64),
            frame_head(BINARY, u64::MAX),
            frame_head(0x01, 1 << 40),
            frame(TEXT, &[&mib[..], b" "].concat()),
            [frame(0x01, &mib), frame(0x00, b" ")].concat(),
            flood,
        ];
        for (number, bytes) in cases.iter().enumerate() {
            let mut peer = Raw::join(&server, "hostile", None);
            // It may have had enough before the last byte.
            peer.try_write(bytes);
            assert_eq!(peer.closed_with(), 1009, "case {number}");
        }
        // Many who have begun something long, and do not go on.
        let begun: Vec<Raw> = (0..100)
            .map(|_| {
                let mut peer = Raw::connect(&server);
                peer.write(&frame_head(BINARY, 1 << 20));
                peer
            })
            .collect();
        let grown = resident_kb(&server).saturating_sub(size_before);
        assert!(grown < 100 * 1024, "memory for what was only announced: {grown} KiB more");
        drop(begun);
    });
}

/// What the server has in memory.
fn resident_kb(server: &TestServer) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn bytes_that_are_no_frames_close_with_1002() {
    let server = stage("");
    beside(&server, || {
        let cases: [&[u8]; 7] = [
            &[0xff; 4096],
            &[0x00; 4096],
            b"GET /ws HTTP/1.1\r\nHost: a\r\n\r\n",
            b"{\"room\":\"lobby\"}",
            &[0x70, 0x80, 0, 0, 0, 0],
            &[0x81, 0x00],
            &[0x8b, 0x80, 0, 0, 0, 0],
        ];
        for bytes in cases {
            let mut peer = Raw::join(&server, "hostile", None);
            peer.try_write(bytes);
            assert_eq!(peer.closed_with(), 1002, "{:x?}", &bytes[..bytes.len().min(10)]);
        }
    });
}

#[test]
fn too_many_mistakes_in_a_row_are_too_many() {
    let server = stage("");
    beside(&server, || {
        let mistakes = |count: usize| frame(TEXT, b"{\"room\"").repeat(count);
        let mut peer = Raw::connect(&server);
        for round in 0..4 {
            peer.write(&mistakes(50));
            for _ in 0..50 {
                assert_eq!(peer.read()["code"], "invalid");
            }
            // Something right in between: they are not in a row.
            peer.text(&format!(r#"{{"room":"round {round}"}}"#));
            assert_eq!(peer.read()["msgtype"], "user_list");
        }
        peer.try_write(&mistakes(20_000));
        let mut answered = 0;
        let code = loop {
            match peer.read_frame() {
                Some((TEXT, text)) => {
                    let error: Value = serde_json::from_slice(&text).unwrap();
                    assert_eq!(error["code"], "invalid");
                    answered += 1;
                }
                Some((CLOSE, payload)) => break u16::from_be_bytes([payload[0], payload[1]]),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(code, 1008);
        assert_eq!(peer.read_rest(), "");
        assert!((50..1000).contains(&answered), "{answered} mistakes were answered");
    });
}

#[test]
fn who_does_not_read_is_too_slow_and_hears_so_in_the_end() {
    let server = stage("");
    beside(&server, || {
        let mut sloth = Raw::join(&server, "loud", Some("Sloth"));
        let mut loud = Client::join_as(&server, "loud", "Loud");
        let long = "x".repeat(200_000);
        let (mut said, mut has_left) = (0, false);
        while !has_left {
            assert!(said < 500, "100 MB wait for somebody who does not read");
            loud.send(json!({"task": "chat.say", "data": {"text": format!("{said} {long}")}}));
            said += 1;
            loud.until("her own words, or that he has left", |frame| {
                has_left |= frame["msgtype"] == "leave" && frame["username"] == "Sloth";
                frame["task"] == "chat.say"
            });
        }
        // All that was sent before is whole and in order, and the last frame says why it is the last.
        let mut heard = 0;
        let code = loop {
            match sloth.read_frame() {
                Some((TEXT, text)) if text.starts_with(b"{\"task\"") => {
                    let expected =
                        format!(r#"{{"task":"chat.say","data":{{"from":"Loud","text":"{heard} {long}"}}}}"#);
                    assert!(text == expected.as_bytes(), "word {heard} is not whole or not in order");
                    heard += 1;
                }
                Some((TEXT, _)) => {}
                Some((CLOSE, payload)) => break u16::from_be_bytes([payload[0], payload[1]]),
                other => panic!("{:?}", other.map(|(first, _)| first)),
            }
        };
        assert_eq!(code, 1008);
        assert_eq!(sloth.read_rest(), "");
        assert!(heard > 0 && heard < said, "{heard} of {said}");
        assert_eq!(in_room(&server, "loud"), 1);
    });
}

#[test]
fn who_asks_and_does_not_read_waits_and_loses_nothing() {
    let server = stage("");
    beside(&server, || {
        let mut peer = Raw::join(&server, "hostile", None);
        let count = 30_000;
        let long = "x".repeat(1000);
        let answer = |id: usize| format!(r#"{{"task":"TaskEcho","data":"{long}","id":{id}}}"#);
        let mut bytes: Vec<u8> = (0..count).flat_map(|id| frame(TEXT, answer(id).as_bytes())).collect();
        let taken = stuff(&peer, &bytes);
        assert!(taken < bytes.len(), "the server takes whatever comes, and keeps the answers");
        let writer = write_meanwhile(&peer, bytes.split_off(taken));
        for id in 0..count {
            let text = peer.read_text();
            assert!(text == answer(id), "answer {id} is not whole or not in order");
        }
        writer.join().unwrap();
    });
}

#[test]
fn a_flood_of_pings_whose_pongs_nobody_reads_piles_up_nothing() {
    let server = stage("");
    beside(&server, || {
        let mut peer = Raw::join(&server, "hostile", None);
        let ping = |number: usize| frame(PING, format!("{number:0>100}").as_bytes());
        let (count, length) = (300_000, ping(0).len());
        let mut bytes: Vec<u8> = (0..count).flat_map(ping).collect();
        let taken = stuff(&peer, &bytes);
        // The ping that is half out, and a goodbye.
        let sent = taken.div_ceil(length);
        bytes.truncate(sent * length);
        let mut rest = bytes.split_off(taken);
        rest.extend(frame(CLOSE, &1000u16.to_be_bytes()));
        let writer = write_meanwhile(&peer, rest);
        let mut seen = vec![false; sent];
        let code = loop {
            match peer.read_frame() {
                Some((PONG, payload)) => {
                    let number: usize = String::from_utf8(payload).unwrap().parse().unwrap();
                    assert!(!std::mem::replace(&mut seen[number], true), "ping {number} was answered twice");
                }
                Some((CLOSE, payload)) => break u16::from_be_bytes([payload[0], payload[1]]),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(code, 1000);
        assert_eq!(peer.read_rest(), "");
        assert!(seen[sent - 1], "at least the last one is answered");
        writer.join().unwrap();
    });
}

#[test]
fn each_address_has_so_many_connections() {
    let mut server = stage("[websocket]\nconnections_per_address = 5");
    // Two of them chat.
    let third = beside(&server, || {
        let third = Client::join(&server, "lobby");
        let fourth = Raw::join(&server, "lobby", None);
        let _silent = Raw::open(&server);
        for _ in 0..20 {
            // Whether it says something or waits to be spoken to.
            let mut refused = Raw::open(&server);
            assert!(refused.read_head().starts_with("HTTP/1.1 503 "));
            assert_eq!(refused.read_rest(), "");
            let mut refused = Raw::open(&server);
            refused.try_write(head("/ws", "").as_bytes());
            assert!(refused.read_head().starts_with("HTTP/1.1 503 "));
        }
        drop(fourth);
        third
    });
    // Whoever goes makes room.
    server.wait("there is room again", |server| {
        let mut peer = Raw::open(server);
        peer.try_write(head("/ws", "").as_bytes());
        peer.read_head().starts_with("HTTP/1.1 101 ").then_some(())
    });
    drop(third);
}

#[test]
fn who_never_stays_leaves_nothing_behind() {
    let mut server = stage("");
    beside(&server, || {
        let hello = frame(TEXT, br#"{"room":"hostile","session_id":"Gone"}"#);
        let slow = frame(TEXT, br#"{"room":"hostile","session_id":"slow:Gone"}"#);
        let ask = frame(TEXT, br#"{"task":"Slow","data":{"ms":50},"id":1}"#);
        for round in 0..100 {
            let mut peer = Raw::open(&server);
            let bytes =
                [head("/ws", "").as_bytes(), if round % 2 == 0 { &hello } else { &slow }, &ask].concat();
            // Gone at once, with or without a last word, here and there in the middle of one.
            let length = if round % 3 == 0 { bytes.len() - round / 2 } else { bytes.len() };
            peer.try_write(&bytes[..length]);
            if round % 5 == 0 {
                peer.finish();
            }
        }
    });
    server.wait("nobody is there", |server| (in_room(server, "hostile") == 0).then_some(()));
    let mut peer = Client::join_as(&server, "hostile", "Ann");
    assert_eq!(peer.request("TaskEcho", json!(1))["data"], 1);
    for service in ["stage/Names", "room/Room", "stage/Tasks", "router/Router", "websocket/WebSocket"] {
        assert_eq!(server.service(service)["failures"], 0, "{service}");
    }
}
