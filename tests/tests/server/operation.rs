//! What an operator lives with: the log as it grows, and what monitoring sees.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use zephserver_testkit::{TestServer, built, deadline};

/// `zephserver logs` that runs until it is interrupted.
struct Follower {
    child: Child,
    printed: PathBuf,
}

fn logs(server: &TestServer, words: &[&str], stdout: impl Into<Stdio>) -> Child {
    let mut command = Command::new(built("zephserver"));
    command.arg("--settings").arg(server.path("settings.toml")).arg("logs").args(words);
    command.stdin(Stdio::null()).stdout(stdout).spawn().unwrap()
}

fn ended(server: &mut TestServer, child: &mut Child) -> Option<i32> {
    server.wait("`zephserver logs` ends", |_| child.try_wait().unwrap()).code()
}

impl Follower {
    fn start(server: &mut TestServer) -> Self {
        let printed = server.path("followed");
        let child = logs(server, &["-f", "-n", "1000"], File::create(&printed).unwrap());
        let follower = Self { child, printed };
        server.wait("it follows", |_| follower.text().contains("ready").then_some(()));
        follower
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.printed).unwrap()
    }

    /// As Ctrl-C does it. Answers the exit code.
    fn interrupt(mut self, server: &mut TestServer) -> Option<i32> {
        let sent = Command::new("kill").arg("-INT").arg(self.child.id().to_string()).status();
        assert!(sent.unwrap().success());
        ended(server, &mut self.child)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write_lines(server: &TestServer, who: &str, from: u64, count: u64) {
    let lines = json!({"who": who, "from": from, "count": count});
    server.call("trouble/Trouble", "log/1", &lines.to_string()).unwrap();
}

/// The files of the log, the oldest first.
fn files(server: &TestServer) -> Vec<String> {
    let old = (1..=100).rev().map(|number| server.path(&format!("logging.log.{number}")));
    let files = old.chain([server.path("logging.log")]).filter(|file| file.exists());
    files.map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

/// What somebody said, in the order in which it stands there.
fn said(text: &str, who: &str) -> Vec<u64> {
    let mark = format!(": {who} says ");
    text.lines().filter_map(|line| line.split_once(&mark)?.1.parse().ok()).collect()
}

#[test]
fn each_line_is_followed_once_while_the_log_is_rotated() {
    let mut server =
        TestServer::with(&["trouble/Trouble"]).settings("[server]\nlog_size = 8192\nlog_files = 100").start();
    let follower = Follower::start(&mut server);
    let writers = ["a", "b", "c"];
    std::thread::scope(|scope| {
        for who in writers {
            let server = &server;
            scope.spawn(move || (0..20).for_each(|burst| write_lines(server, who, burst * 100, 100)));
        }
    });
    server.wait("all lines are followed", |_| {
        let text = follower.text();
        writers.iter().all(|who| said(&text, who).len() >= 2000).then_some(())
    });
    let (files, followed) = (files(&server), follower.text());
    assert!(files.len() > 20, "{} files", files.len());
    assert!(files.iter().all(|file| file.len() <= 8192 && file.ends_with('\n')));
    for who in writers {
        assert!(said(&followed, who).into_iter().eq(0..2000), "{who}: not each line once, and in order");
    }
    assert!(followed == files.concat(), "what was followed is not what was written");
    assert_eq!(follower.interrupt(&mut server), Some(0));
    assert_eq!(server.ask("status").unwrap()["log_lines_lost"], 0);
}

#[test]
fn a_log_that_was_moved_away_is_followed_to_its_end_and_then_the_new_one() {
    let mut server = TestServer::with(&["trouble/Trouble"]).start();
    let follower = Follower::start(&mut server);
    std::fs::rename(server.path("logging.log"), server.path("old.log")).unwrap();
    write_lines(&server, "old", 0, 10);
    server.signal("HUP");
    server.wait("the log is back", |server| server.path("logging.log").exists().then_some(()));
    write_lines(&server, "new", 0, 10);
    server.wait("both are followed", |_| (said(&follower.text(), "new").len() >= 10).then_some(()));
    let old = std::fs::read_to_string(server.path("old.log")).unwrap();
    assert_eq!(said(&old, "old").len(), 10);
    assert_eq!(follower.text(), old + &server.log());
    assert_eq!(follower.interrupt(&mut server), Some(0));
}

#[test]
fn whoever_closes_the_pipe_wants_no_more() {
    let mut server = TestServer::with(&["trouble/Trouble"]).start();
    let mut child = logs(&server, &["--follow"], Stdio::piped());
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("zephserver"), "{line}");
    write_lines(&server, "a", 0, 1);
    assert_eq!(ended(&mut server, &mut child), Some(0));
}

#[test]
fn logs_of_one_name_also_when_the_server_is_down() {
    let mut server =
        TestServer::with(&["hello/Hello", "trouble/Trouble"]).settings("[server]\nlog_size = 2000").start();
    write_lines(&server, "a", 0, 100);
    server.stop();
    server.wait_ended();
    let shown = server.command(&["logs", "-n", "40", "trouble/Trouble"]);
    assert_eq!((shown.code, shown.stderr.as_str()), (Some(0), ""));
    assert_eq!(shown.stdout.lines().count(), 40);
    assert!(shown.stdout.lines().all(|line| line.contains(" INFO trouble/Trouble: ")), "{}", shown.stdout);
    assert!(said(&shown.stdout, "a").into_iter().eq(61..100), "{}", shown.stdout);
    assert!(shown.stdout.ends_with(" trouble/Trouble: stopped\n"), "{}", shown.stdout);
    let hello = server.command(&["logs", "hello"]).stdout;
    assert!(hello.contains("hello/Hello: ready") && hello.contains("hello/Hello: stopped"), "{hello}");
    assert!(!hello.contains("trouble"), "{hello}");
    assert_eq!(server.command(&["logs"]).stdout.lines().count(), 100);
    assert_eq!(server.command(&["logs", "-n1"]).stdout.lines().count(), 1);
}

#[test]
fn where_there_is_no_log_that_is_said() {
    let server = TestServer::with(&["hello/Hello"]);
    server.write_settings();
    let shown = server.command(&["logs"]);
    assert_eq!(shown.code, Some(5));
    assert!(shown.stderr.contains("logging.log"), "{shown:?}");
    assert_eq!(server.command(&["logs", "-n", "many"]).code, Some(2));
    let server = TestServer::with(&["hello/Hello"]).settings("LOG_PATH = \"\"");
    server.write_settings();
    let shown = server.command(&["logs", "-f"]);
    assert_eq!(shown.code, Some(5));
    assert!(shown.stderr.contains("LOG_PATH") && shown.stderr.contains("stderr"), "{shown:?}");
}

const HTTP: &str = "[server]\nhttp_address = \"127.0.0.1:0\"";

fn http_port(server: &mut TestServer) -> u16 {
    server.wait("the server says where it answers", |server| {
        let log = server.log();
        let line = log.lines().find(|line| line.contains("http: listens on 127.0.0.1:"))?;
        line.rsplit(':').next()?.parse().ok()
    })
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(deadline())).unwrap();
    stream
}

/// Status and body, and the whole answer.
fn request(port: u16, method: &str, path: &str, host: &str) -> (u16, String, String) {
    let mut stream = connect(port);
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_string());
    (status.unwrap_or_else(|| panic!("{answer:?}")), body.unwrap_or_default(), answer)
}

fn get(port: u16, path: &str) -> (u16, String) {
    let (status, body, _) = request(port, "GET", path, &format!("127.0.0.1:{port}"));
    (status, body)
}

fn health(port: u16) -> (u16, Value) {
    let (status, body) = get(port, "/health");
    (status, serde_json::from_str(&body).unwrap())
}

#[test]
fn health_and_metrics_tell_who_is_down() {
    let services = ["trouble/Trouble", "trouble/Trouble@extra"];
    let settings = "[trouble]\nintensity = 1\n[\"@extra\"]\nfail = \"refuse\"\noptional = true";
    let mut server = TestServer::with(&services).settings(HTTP).settings(settings).start();
    let port = http_port(&mut server);
    assert_eq!(health(port), (200, json!({"status": "ok"})), "who is optional does not count");
    let has = |line: &str| get(port, "/metrics").1.lines().any(|other| other == line);
    assert!(has("zephserver_service_state{service=\"trouble/Trouble\",state=\"enabled\"} 1"));
    assert!(has("zephserver_service_failures_total{service=\"trouble/Trouble\"} 0"));

    for _ in 0..2 {
        server.call("trouble/Trouble", "panic/1", "").unwrap_err();
    }
    server.wait_service("trouble/Trouble", "waits", |service| service["state"] == "waiting");
    let (status, said) = health(port);
    assert_eq!((status, &said["status"]), (503, &json!("degraded")));
    let down = said["services"].as_array().unwrap();
    assert_eq!((down.len(), &down[0]["name"]), (1, &json!("trouble/Trouble")));
    assert_eq!(down[0]["state"], "waiting");
    assert!(down[0]["last_failure"].as_str().unwrap().contains("told to panic"), "{said}");
    assert!(has("zephserver_service_state{service=\"trouble/Trouble\",state=\"waiting\"} 1"));
    assert!(has("zephserver_service_failures_total{service=\"trouble/Trouble\"} 2"));

    server.ask("start trouble/Trouble").unwrap();
    assert_eq!(health(port).0, 200);
    server.ask("disable trouble/Trouble").unwrap();
    assert_eq!(health(port).0, 200, "who was disabled is not missed");
    assert!(has("zephserver_service_state{service=\"trouble/Trouble\",state=\"available\"} 1"));
}

#[test]
fn metrics_are_in_the_format_of_prometheus() {
    let mut server = TestServer::with(&["hello/Hello"]).settings(HTTP).start();
    let port = http_port(&mut server);
    let (status, body, answer) = request(port, "GET", "/metrics", "localhost");
    assert_eq!(status, 200);
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    assert!(body.contains("\nzephserver_up 1\n") && body.contains("\nzephserver_pool_threads "), "{body}");
    let memory = body.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    assert!(memory.unwrap().parse::<u64>().unwrap() > 1_000_000, "{body}");
}

#[test]
fn a_start_that_hangs_is_seen() {
    let mut server = TestServer::with(&["hello/Hello", "trouble/Trouble"])
        .settings(HTTP)
        .settings("[trouble]\nfail = \"hang_init\"\nstop_timeout = 0.2")
        .launch();
    let port = http_port(&mut server);
    server.wait_service("trouble/Trouble", "starts", |service| service["state"] == "starting");
    let (status, said) = health(port);
    assert_eq!((status, &said["status"]), (503, &json!("starting")));
    assert_eq!(said["services"][0]["name"], "trouble/Trouble", "{said}");
    assert_eq!(server.stop().code, Some(6));
}

#[test]
fn strangers_names_and_other_requests_are_refused() {
    let mut server = TestServer::with(&["hello/Hello"]).settings(HTTP).start();
    let port = http_port(&mut server);
    for (method, path, host, status) in [
        ("GET", "/health", "rebound.example:9100", 403),
        ("GET", "/metrics", "localhost.example", 403),
        ("GET", "/health", "localhost", 200),
        ("GET", "/health?full", "[::1]:9100", 200),
        ("HEAD", "/metrics", "127.0.0.1", 200),
        ("POST", "/metrics", "127.0.0.1", 405),
        ("DELETE", "/health", "127.0.0.1", 405),
        ("GET", "/", "127.0.0.1", 404),
        ("GET", "/health/", "127.0.0.1", 404),
    ] {
        let (got, _, answer) = request(port, method, path, host);
        assert_eq!(got, status, "{method} {path} {host}: {answer}");
    }
}

#[test]
fn silent_connections_make_room() {
    let mut server = TestServer::with(&["hello/Hello"]).settings(HTTP).start();
    let port = http_port(&mut server);
    let silent: Vec<_> = (0..80).map(|_| connect(port)).collect();
    assert_eq!(health(port).0, 200);
    drop(silent);
}

#[test]
fn an_address_that_is_taken_fails_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let address = address.as_str();
    let settings = format!("[server]\nhttp_address = \"{address}\"");
    let mut server = TestServer::with(&["hello/Hello"]).settings(&settings).launch();
    assert_eq!(server.wait_ended(), Some(1));
    let stderr = server.stderr();
    for part in [address, "http_address", "in use", "ss -ltnp"] {
        assert!(stderr.contains(part), "{part:?} not in: {stderr}");
    }
    assert!(!server.socket().exists() && !server.path("server.lock").exists());
}
