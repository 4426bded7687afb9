//! Several servers that are one cluster: what operators and services see of it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use serde_json::{Value, json};
use zephserver_testkit::{Code, Command, TestServer, built};

use crate::nodes::{address, node, wait_for_nodes};

/// A node whose relay hears events named `numbers`.
fn relay(name: &str, seeds: &[&TestServer]) -> TestServer {
    relay_with(name, seeds, "").start()
}

/// The same with settings of its relay, not started yet.
fn relay_with(name: &str, seeds: &[&TestServer], settings: &str) -> TestServer {
    let settings = format!("{}[relay]\nhears = [\"numbers\"]\n{settings}", node(name, seeds));
    TestServer::with(&["relay/Relay"]).settings(&settings)
}

fn heard(server: &TestServer) -> Vec<Value> {
    let events = server.call("relay/Relay", "events/1", "{}").unwrap();
    events.as_array().unwrap().clone()
}

/// Has a relay say so many numbers, and then an end.
fn say(server: &TestServer, count: u64) -> Value {
    let order = json!({"path": "", "method": "numbers", "payload": "end", "count": count});
    server.call("relay/Relay", "say/1", &order.to_string()).unwrap()
}

fn until_heard(server: &mut TestServer, what: Value) {
    server.wait(&format!("{what} is heard"), |server| heard(server).contains(&what).then_some(()));
}

/// Ports that are free now.
fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    let listeners = std::array::from_fn::<_, COUNT, _>(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

#[test]
fn without_others_there_is_no_cluster_and_every_say_succeeds() {
    let one = "CLUSTER_SERVER_LIST = [{ hostname = \"a\", address = \"127.0.0.1\", port = 1 }]\n";
    for settings in ["", one] {
        let server = TestServer::with(&["relay/Relay"]).settings(settings).start();
        assert_eq!(server.ask("cluster").unwrap()["engine"], "local");
        assert_eq!(say(&server, 3), 0);
        let told = server.call("relay/Relay", "tell/1", r#"{"path": "b", "method": "x"}"#);
        assert_eq!(told.unwrap_err().code, Code::NotFound);
        assert!(crate::lifecycle::net_sockets(server.pid()).is_empty(), "no socket of the net is open");
        let shown = server.command(&["cluster"]);
        assert!(shown.stdout.contains("no cluster: this node is alone"), "{}", shown.stdout);
    }
}

#[test]
fn two_nodes_of_a_list_on_one_machine() {
    let [a, b] = free_ports();
    let list = |node: &str| {
        format!(
            "CLUSTER_SERVER_LIST = [\n  {{ hostname = \"a\", address = \"127.0.0.1\", port = {a} }},\n  \
             {{ hostname = \"b\", address = \"localhost\", port = {b} }},\n]\n[cluster]\nnode = \"{node}\"\n"
        )
    };
    let mut one = TestServer::with(&["relay/Relay"]).settings(&list("a")).start();
    let mut two = TestServer::with(&["relay/Relay"]).settings(&list("b")).start();
    wait_for_nodes(&mut one, 1);
    wait_for_nodes(&mut two, 1);
    assert_eq!(say(&one, 0), 1);
    let shown = one.command(&["cluster"]);
    assert!(
        shown.stdout.contains("a: mesh at 127.0.0.1:") && shown.stdout.contains("b     up"),
        "{}",
        shown.stdout
    );
    let three = TestServer::with(&["relay/Relay"]).settings(&list("c")).launch();
    let mut three = three;
    assert_eq!(three.wait_ended(), Some(2));
    let told = three.stderr();
    assert!(
        told.contains("no entry for this node, `c`; it has a, b") && told.contains("[cluster] node"),
        "{told}"
    );
}

#[test]
fn services_hear_what_others_say_and_who_is_there() {
    let mut a = relay("a", &[]);
    let mut b = relay("b", &[&a]);
    let mut c = relay("c", &[&a]);
    for server in [&mut a, &mut b, &mut c] {
        wait_for_nodes(server, 2);
    }
    assert_eq!(say(&a, 1000), 2);
    for server in [&mut b, &mut c] {
        until_heard(server, json!({"said": "numbers", "payload": "\"end\""}));
        let heard = heard(server);
        let numbers =
            heard.iter().filter(|event| event["said"] == "numbers").map(|event| event["payload"].clone());
        let expected = (0..1000).map(|number| Value::from(number.to_string())).chain([json!("\"end\"")]);
        assert_eq!(numbers.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        assert!(heard.contains(&json!({"node": "a", "change": "up"})));
    }
    assert!(heard(&a).iter().all(|event| event.get("said").is_none()), "nobody hears himself");
    b.call("relay/Relay", "tell/1", r#"{"path": "c", "method": "numbers", "payload": 7}"#).unwrap();
    until_heard(&mut c, json!({"said": "numbers", "payload": "7"}));
    assert!(!heard(&a).contains(&json!({"said": "numbers", "payload": "7"})));
    c.signal("KILL");
    until_heard(&mut a, json!({"node": "c", "change": "down"}));
    let told = b.call("relay/Relay", "tell/1", r#"{"path": "c", "method": "numbers"}"#);
    assert!(told.is_ok() || told.unwrap_err().code == Code::NotFound);
    assert_eq!(b.stop().code, Some(0));
    until_heard(&mut a, json!({"node": "b", "change": "down"}));
    let too_large = "x".repeat(100);
    let told = a.ask(&format!("say {} 1", too_large.repeat(3)));
    assert!(told.unwrap_err().text.contains("1 to 255 bytes"));
}

#[test]
fn a_swapped_service_misses_nothing() {
    let a = relay("a", &[]);
    let mut b = relay("b", &[&a]);
    wait_for_nodes(&mut b, 1);
    const ROUNDS: usize = 4;
    const NUMBERS: usize = 10_000;
    let ends = |server: &TestServer| server.log().matches("heard numbers \"end\".").count();
    for round in 1..=ROUNDS {
        std::thread::scope(|scope| {
            scope.spawn(|| say(&a, NUMBERS as u64));
            let reloaded = b.ask("reload relay");
            assert!(reloaded.is_ok(), "{reloaded:?}");
        });
        b.wait("all was heard", |b| (ends(b) == round).then_some(()));
        // The new one kept nothing of what the one before knew.
        until_heard(&mut b, json!({"node": "a", "change": "up"}));
    }
    let mut counts = vec![0; NUMBERS];
    let log = b.log();
    let heard = log
        .lines()
        .filter_map(|line| line.split_once("heard numbers ")?.1.trim_end_matches('.').parse().ok());
    heard.for_each(|number: usize| counts[number] += 1);
    assert!(counts.iter().all(|count| *count == ROUNDS), "each once in each round");
}

#[test]
fn a_service_that_rests_is_told_afterwards_what_it_missed() {
    let mut a = relay("a", &[]);
    let mut c = relay("c", &[&a]);
    let mut b = relay_with("b", &[&a], "rests = true\nrestart = \"temporary\"").start();
    b.wait_service("relay", "rests", |service| service["state"] == "available");
    [&mut a, &mut b, &mut c].into_iter().for_each(|server| wait_for_nodes(server, 2));
    say(&a, 2);
    say(&c, 1);
    b.wait_service("relay", "has missed it", |service| service["events_dropped"] == 5);
    c.signal("KILL");
    c.wait_ended();
    wait_for_nodes(&mut b, 1);
    assert_eq!(b.service("relay")["state"], "available", "news bring nobody back");
    // A call does.
    until_heard(&mut b, json!({"node": "a", "change": "gap"}));
    until_heard(&mut b, json!({"node": "c", "change": "down"}));
    say(&a, 0);
    until_heard(&mut b, json!({"said": "numbers", "payload": "\"end\""}));
}

#[test]
fn a_service_that_starts_slowly_has_no_silent_hole() {
    let mut a = relay("a", &[]);
    // Longer than two events in turn are waited with.
    let mut b = relay_with("b", &[&a], "starts_ms = 5000").launch();
    b.wait_log("it has subscribed");
    wait_for_nodes(&mut a, 1);
    for _ in 0..10 {
        say(&a, 1);
    }
    b.wait_ready();
    // Told or not: but not without a word, and after that the node is up.
    b.wait("it is said", |b| {
        let heard = heard(b);
        let said = heard.iter().filter(|event| event["said"] == "numbers").count();
        (said == 20 || heard.contains(&json!({"node": "a", "change": "gap"}))).then_some(())
    });
    assert_eq!(heard(&b)[0], json!({"node": "a", "change": "up"}));
}

#[test]
fn what_goes_by_is_seen() {
    let mut a = relay("a", &[]);
    let mut b = relay("b", &[&a]);
    wait_for_nodes(&mut a, 1);
    let printed = b.path("followed");
    let follower = std::process::Command::new(built("zephserver"))
        .arg("--settings")
        .arg(b.path("settings.toml"))
        .args(["events", "--follow"])
        .stdin(Stdio::null())
        .stdout(File::create(&printed).unwrap())
        .spawn();
    let mut follower = follower.unwrap();
    let followed = || fs::read_to_string(&printed).unwrap();
    b.wait("it follows", |_| followed().contains("a  (up)").then_some(()));
    let said = a.command(&["say", "numbers", "{\"x\": 1}"]);
    assert_eq!((said.code, said.stdout.trim()), (Some(0), "numbers: said to 1 nodes"));
    b.wait("it is shown", |_| followed().contains("a  numbers 8 B  {\"x\": 1}").then_some(()));
    let sent = std::process::Command::new("kill").arg("-INT").arg(follower.id().to_string()).status();
    assert!(sent.unwrap().success());
    assert_eq!(follower.wait().unwrap().code(), Some(0));
    let events = b.command(&["events", "--limit", "1"]).stdout;
    assert!(events.lines().count() == 1 && events.contains("a  numbers 8 B"), "{events}");
    let own = a.ask("events").unwrap();
    assert_eq!(own["entries"].as_array().unwrap().last().unwrap()["event"], "numbers");
    assert_eq!(a.command(&["say", "numbers", "{"]).code, Some(2));
    assert_eq!(a.command(&["events", "--limit", "0"]).code, Some(2));
    let status = a.ask("status").unwrap();
    assert_eq!((&status["cluster"]["up"], &status["cluster"]["said"]), (&json!(1), &json!(1)));
    assert!(b.log().contains("cluster: node a is up"));
}

#[test]
fn a_cluster_beyond_this_machine_needs_its_key() {
    let folder = TestServer::with(&[]);
    let key = folder.path("cluster.key");
    let made = |file: &str| Command::new("zephserver").args(["cluster", "key", file]).run();
    let made_once = made(key.to_str().unwrap());
    assert_eq!(made_once.code, Some(0), "{}", made_once.stderr);
    assert!(made_once.stdout.contains("key_file = "));
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(made(key.to_str().unwrap()).code, Some(1), "a key is never replaced");
    let ends = |settings: &str| {
        let mut server = TestServer::with(&["relay/Relay"]).settings(settings).launch();
        (server.wait_ended(), server.stderr())
    };
    let (code, told) = ends("[cluster]\nengine = \"mesh\"\nlisten = \"192.0.2.1:22631\"\n");
    assert_eq!(code, Some(2));
    assert!(told.contains("has no key") && told.contains("zephserver cluster key FILE"), "{told}");
    let own = "[cluster]\nengine = \"mesh\"\nlisten = \"127.0.0.1:0\"\nkey_file = \"cluster.key\"\n";
    let (code, told) = ends(own);
    assert!(code == Some(1) && told.contains("cluster.key") && told.contains("make one with"), "{told}");
    let with_key = |name: &str, seeds: &[&TestServer], mode: u32| {
        let settings = format!("{}key_file = \"cluster.key\"", node(name, seeds));
        let server = TestServer::with(&["relay/Relay"]).settings(&settings);
        let file = server.path("cluster.key");
        fs::copy(&key, &file).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        server.launch()
    };
    let mut open = with_key("open", &[], 0o644);
    assert_eq!(open.wait_ended(), Some(1));
    assert!(open.stderr().contains("chmod 600"), "{}", open.stderr());
    let mut a = with_key("a", &[], 0o600);
    a.wait_ready();
    let mut b = with_key("b", &[&a], 0o600);
    b.wait_ready();
    wait_for_nodes(&mut a, 1);
    let mut stranger = relay("stranger", &[&a]);
    stranger.wait("it is refused", |_| (a.ask("cluster").unwrap()["refused"] != 0).then_some(()));
    let members = a.ask("cluster").unwrap()["members"].clone();
    let names: BTreeSet<&str> =
        members.as_array().unwrap().iter().filter_map(|m| m["node"].as_str()).collect();
    assert_eq!(names, BTreeSet::from(["b"]));
    let text = fs::read_to_string(&key).unwrap();
    for server in [&a, &b] {
        assert!(!server.log().contains(text.trim()), "a secret is never printed");
    }
    assert!(address(&a).starts_with("127.0.0.1:"));
}
