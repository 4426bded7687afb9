//! Start, stop, and everything that can come in between.

use std::time::Instant;

use zephserver_testkit::{Command, TestServer};

const NOTHING: Vec<String> = Vec::new();

#[test]
fn a_start_and_a_stop_leave_only_log_and_copies() {
    let mut server = TestServer::with(&["hello/Hello"]).start();
    assert_eq!(server.ask("status").unwrap()["state"], "ready");
    let stopped = server.stop();
    assert_eq!((stopped.code, stopped.stdout.as_str()), (Some(0), "Stopped\n"));
    assert_eq!(server.wait_ended(), Some(0));
    let mut left = server.left_behind();
    left.sort();
    assert_eq!(left, [".zephserver", "logging.log"]);
}

#[test]
fn signals_stop_it_in_order() {
    for signal in ["TERM", "INT"] {
        let mut server = TestServer::with(&["hello/Hello"]).start();
        server.signal(signal);
        assert_eq!(server.wait_ended(), Some(0));
        assert!(!server.path("server.lock").exists() && !server.socket().exists());
    }
}

#[test]
fn after_kill_9_the_next_start_just_works() {
    let mut server = TestServer::with(&["hello/Hello"]).start();
    server.signal("KILL");
    assert_eq!(server.wait_ended(), None);
    assert!(server.path("server.lock").exists() && server.socket().exists(), "nobody could clean up");
    server.launch_again();
    server.wait_ready();
    assert_eq!(server.call("hello", "greet/1", "\"Ann\"").unwrap(), "Hello, Ann!");
}

#[test]
fn a_second_start_names_the_first() {
    let server = TestServer::with(&["hello/Hello"]).start();
    let settings = server.path("settings.toml");
    let second = Command::new("zephserver-start").args(["--settings".as_ref(), settings.as_os_str()]).run();
    assert_eq!(second.code, Some(3));
    assert!(second.stderr.contains(&format!("pid {}", server.pid())), "{}", second.stderr);
    assert!(second.stderr.contains("zephserver-stop"), "{}", second.stderr);
    assert_eq!(server.call("hello", "greet/1", "\"Ann\"").unwrap(), "Hello, Ann!");
}

#[test]
fn a_service_that_cannot_start_fails_the_whole_start() {
    for (fail, part) in [
        ("create", "told to panic in create"),
        ("init", "told to panic in init"),
        ("refuse", "does not want to"),
    ] {
        let mut server = TestServer::with(&["hello/Hello", "trouble/Trouble"])
            .settings(&format!("[trouble]\nfail = \"{fail}\""))
            .launch();
        assert_eq!(server.wait_ended(), Some(1), "{}", server.log());
        let stderr = server.stderr();
        assert!(stderr.contains("trouble/Trouble") && stderr.contains(part), "{stderr}");
        assert!(!server.stdout().contains("Ready"));
        assert!(!server.path("server.lock").exists() && !server.socket().exists());
    }
}

#[test]
fn an_optional_service_may_fail() {
    let server = TestServer::with(&["trouble/Trouble", "hello/Hello"])
        .settings("[trouble]\nfail = \"refuse\"\noptional = true")
        .start();
    assert_eq!(server.call("hello", "greet/1", "\"Ann\"").unwrap(), "Hello, Ann!");
    let trouble = server.service("trouble/Trouble");
    assert_ne!(trouble["state"], "enabled");
    assert!(trouble["last_failure"].as_str().unwrap().contains("does not want to"), "{trouble}");
}

#[test]
fn a_hanging_start_can_be_seen_and_stopped() {
    for step in ["create", "init"] {
        let mut server = TestServer::with(&["hello/Hello", "trouble/Trouble"])
            .settings(&format!("[trouble]\nfail = \"hang_{step}\"\nstop_timeout = 0.2"))
            .launch();
        server.wait("control answers", |server| server.socket().exists().then_some(()));
        server.wait_service("trouble/Trouble", "starts", |service| service["state"] == "starting");
        assert_eq!(server.ask("status").unwrap()["state"], "starting");
        let stopped = server.stop();
        assert_eq!(stopped.code, Some(6), "{stopped:?}");
        assert!(stopped.stderr.contains("trouble/Trouble"), "{stopped:?}");
        assert_eq!(server.wait_ended(), Some(6));
    }
}

#[test]
fn a_start_that_takes_too_long_fails() {
    let mut server = TestServer::with(&["trouble/Trouble"])
        .settings("[trouble]\nfail = \"hang_init\"\nstart_timeout = 0.2\nstop_timeout = 0.2")
        .launch();
    assert_eq!(server.wait_ended(), Some(1));
    assert!(server.stderr().contains("it hangs in init"), "{}", server.stderr());
}

#[test]
fn who_ignores_its_stop_timeout_is_named_and_left_behind() {
    let mut server = TestServer::with(&["hello/Hello", "trouble/Trouble"])
        .settings("[trouble]\nmain = \"ignore_stop\"\nstop_timeout = 0.2")
        .start();
    let begin = Instant::now();
    let stopped = server.stop();
    assert_eq!(stopped.code, Some(6));
    assert!(stopped.stderr.contains("trouble/Trouble"), "{stopped:?}");
    assert_eq!(server.wait_ended(), Some(6));
    assert!(begin.elapsed() < zephserver_testkit::deadline());
    assert!(server.log().contains("did not stop within 0.2 s"));
    assert!(!server.path("server.lock").exists());
}

#[test]
fn services_start_in_order_and_needs_come_first() {
    let mut server = TestServer::with(&["relay/Relay", "hello/Hello"])
        .settings("[relay]\nneeds = [\"hello/Hello\"]")
        .start();
    let log = server.log();
    let at = |name: &str| log.find(&format!("{name}: ready")).unwrap_or_else(|| panic!("{name}: {log}"));
    assert!(at("hello/Hello") < at("relay/Relay"));
    server.stop();
    server.wait_ended();
    let log = server.log();
    let at = |name: &str| log.find(&format!("{name}: stopped")).unwrap_or_else(|| panic!("{name}: {log}"));
    assert!(at("relay/Relay") < at("hello/Hello"), "and stop in reverse");
}

/// Sockets of the net that a process has open.
pub fn net_sockets(pid: u32) -> Vec<String> {
    let sockets: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(Into::into))
        .collect();
    let is_ours = |line: &&str| {
        line.split_whitespace().nth(9).is_some_and(|inode| sockets.iter().any(|own| own == inode))
    };
    let table = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
    let tables = ["tcp", "tcp6", "udp", "udp6"].map(table);
    tables
        .iter()
        .flat_map(|table| table.lines().filter(is_ours).map(String::from).collect::<Vec<_>>())
        .collect()
}

#[test]
fn hello_alone_opens_no_port() {
    let server = TestServer::with(&["hello/Hello"]).start();
    assert_eq!(net_sockets(server.pid()), NOTHING);
}

#[test]
fn sighup_opens_the_log_anew() {
    let mut server = TestServer::with(&["hello/Hello"]).start();
    std::fs::rename(server.path("logging.log"), server.path("old.log")).unwrap();
    server.signal("HUP");
    server.wait("the log is back", |server| server.path("logging.log").exists().then_some(()));
    server.ask("restart hello").unwrap();
    server.wait_log("hello/Hello: ready");
}
