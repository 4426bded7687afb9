//! The control socket, and clients of every kind.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::Value;
use zephserver_testkit::TestServer;

fn hello() -> TestServer {
    TestServer::with(&["hello/Hello"]).start()
}

#[test]
fn only_its_owner_may_use_it() {
    let server = hello();
    let mode = std::fs::metadata(server.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn many_commands_on_one_connection_one_line_each() {
    let server = hello();
    let mut stream = server.connect();
    stream.write_all(b"version\nnonsense\n\nstatus\n").unwrap();
    let mut lines = BufReader::new(stream).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert!(next()["zephserver"].is_string());
    assert_eq!(next()["error"]["code"], "not_found");
    assert_eq!(next()["state"], "ready");
}

#[test]
fn a_command_ends_with_the_input_or_with_silence() {
    let server = hello();
    let mut stream = server.connect();
    stream.write_all(b"version").unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    assert!(line.contains("zephserver"), "after silence: {line}");
    let mut stream = server.connect();
    stream.write_all(b"version").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.contains("zephserver"), "after the end: {text}");
}

#[test]
fn garbage_gets_an_answer() {
    let server = hello();
    assert!(server.raw(b"\xff\xfe\xfd\n").contains("not UTF-8"));
    assert!(server.raw(&vec![b'x'; 1024 * 1024]).contains("at most"));
    assert!(server.raw(b"call hello greet/1 {not json\n").contains("no JSON"));
    assert!(server.raw(b"start\n").contains("usage: start NAME"));
    assert_eq!(server.ask("status").unwrap()["state"], "ready");
}

#[test]
fn stop_gets_through_a_crowd_of_silent_and_resetting_clients() {
    let mut server = hello();
    let silent: Vec<_> = (0..300).map(|_| server.connect()).collect();
    for _ in 0..50 {
        let mut stream = server.connect();
        stream.write_all(b"status\n").unwrap();
        drop(stream);
    }
    let mut half = server.connect();
    half.write_all(b"stat").unwrap();
    // The original's client sends no newline.
    let mut stop = server.connect();
    stop.write_all(b"stop").unwrap();
    let mut line = String::new();
    BufReader::new(stop).read_line(&mut line).unwrap();
    assert!(line.contains("\"stopped\""), "{line}");
    assert_eq!(server.wait_ended(), Some(0));
    drop(silent);
}

#[test]
fn stop_is_answered_when_everything_has_stopped() {
    let mut server = hello();
    let mut stop = server.connect();
    stop.write_all(b"stop\n").unwrap();
    let mut line = String::new();
    BufReader::new(stop).read_line(&mut line).unwrap();
    assert!(line.contains("\"stopped\""), "{line}");
    assert!(!server.socket().exists() && !server.path("server.lock").exists(), "{:?}", server.left_behind());
    assert_eq!(server.wait_ended(), Some(0));
}

#[test]
fn a_call_that_hangs_holds_up_nobody() {
    let mut server = TestServer::with(&["trouble/Trouble"]).settings("[server]\ncall_timeout = 0.3").start();
    let error = server.call("trouble", "sleep/1", "60000").unwrap_err();
    assert_eq!(error.code.name(), "timeout");
    assert!(error.text.contains("trouble/Trouble did not answer sleep/1 within 300 ms"), "{error}");
    let status = server.ask("status").unwrap();
    assert_eq!(status["pool"]["stuck"], 1, "{status}");
    assert_eq!(server.call("trouble", "echo/1", "1").unwrap(), 1);
    server.wait_log("slow call: the server waits for trouble/Trouble sleep/1");
    assert_eq!(server.service("trouble")["slow_calls"], 1);
}

#[test]
fn so_many_hanging_calls_leave_room_for_others() {
    let server = TestServer::with(&["trouble/Trouble"])
        .settings("[server]\ncall_timeout = 0.2\npool_threads = 2")
        .start();
    for _ in 0..6 {
        assert_eq!(server.call("trouble", "sleep/1", "60000").unwrap_err().code.name(), "timeout");
    }
    assert_eq!(server.call("trouble", "echo/1", "[]").unwrap(), serde_json::json!([]));
    let pool = &server.ask("status").unwrap()["pool"];
    assert_eq!((&pool["stuck"], &pool["stuck_ever"]), (&6.into(), &6.into()));
}

#[test]
fn plugins_declare_verbs() {
    let server = TestServer::with(&["trouble/Trouble"]).start();
    assert_eq!(server.ask("trouble one two").unwrap(), serde_json::json!(["one", "two"]));
    let help = server.ask("help").unwrap();
    assert!(
        help.as_array()
            .unwrap()
            .iter()
            .any(|verb| verb["verb"] == "trouble" && verb["of"] == "trouble/Trouble")
    );
    let error = server.ask("troubel").unwrap_err();
    assert!(error.text.contains("`trouble`"), "{error}");
}

#[test]
fn a_silent_client_is_dropped_and_a_slow_one_served() {
    let server = hello();
    let mut slow = server.connect();
    for part in [&b"ver"[..], b"sion", b"\n"] {
        slow.write_all(part).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut line = String::new();
    BufReader::new(slow).read_line(&mut line).unwrap();
    assert!(line.contains("zephserver"), "{line}");
}
