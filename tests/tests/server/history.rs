//! What happened, when and why: told by `history` and `why`, and known after a restart.

use std::collections::BTreeSet;

use serde_json::Value;
use zephserver_testkit::TestServer;

use crate::reload::build;

fn trouble(settings: &str) -> TestServer {
    TestServer::with(&["trouble/Trouble"]).settings(settings).start()
}

/// What happened, in order.
fn whats(entries: &Value) -> Vec<&str> {
    entries.as_array().unwrap().iter().map(|entry| entry["what"].as_str().unwrap()).collect()
}

fn cause(entry: &Value) -> &str {
    entry["cause"].as_str().unwrap_or_default()
}

fn last(entries: &Value) -> &Value {
    entries.as_array().unwrap().last().unwrap()
}

fn file(server: &TestServer) -> String {
    std::fs::read_to_string(server.path(".zephserver/history.jsonl")).unwrap_or_default()
}

#[test]
fn a_crash_is_told_with_text_file_and_line() {
    let mut server = trouble("[trouble]\nintensity = 1");
    for _ in 0..2 {
        assert_eq!(server.call("trouble", "panic/1", "").unwrap_err().code.name(), "panicked");
    }
    server.wait_service("trouble", "waits", |service| service["state"] == "waiting");
    let why = server.ask("why trouble").unwrap();
    assert_eq!((&why["service"], &why["state"]), (&"trouble/Trouble".into(), &"waiting".into()));
    assert_eq!((&why["generation"], why["hash"].as_str().unwrap().len()), (&1.into(), 12));
    let failure = cause(&why["last_failure"]);
    assert!(failure.starts_with("call panic/1"), "{failure}");
    assert!(failure.contains("tests/fixtures/trouble/src/lib.rs:"), "{failure}");
    assert!(failure.contains("told to panic in a call"), "{failure}");
    let began = ["loaded", "started", "ready", "crashed"];
    let went_on = ["started", "ready", "crashed", "waiting"];
    assert_eq!(whats(&why["entries"]), [began, went_on].concat());
    assert_eq!(cause(&why["entries"][1]), "the server starts");
    let waiting = last(&why["entries"]);
    let wait = waiting["retry_at"].as_u64().unwrap() - waiting["at"].as_u64().unwrap();
    assert!((29_000..=30_000).contains(&wait), "{wait} ms");
    assert_eq!(why["retry_at"], waiting["retry_at"]);

    let shown = server.command(&["why", "trouble"]).stdout;
    for part in
        ["trouble/Trouble: waiting since", "next try in", "last failure, 2", failure, "generation 1 ("]
    {
        assert!(shown.contains(part), "{part:?} not in:\n{shown}");
    }
    server.ask("start trouble").unwrap();
    let why = server.ask("why trouble").unwrap();
    assert_eq!((&why["state"], &why["retry_at"]), (&"enabled".into(), &Value::Null));
    let entries = server.ask("history trouble --limit 2").unwrap();
    assert_eq!((whats(&entries), cause(&entries[0])), (vec!["started", "ready"], "asked: start"));
}

#[test]
fn every_end_has_its_word_and_its_cause() {
    let mut server = trouble("[trouble]\nmain = \"fail\"");
    let entries = server.wait("main runs again", |server| {
        let entries = server.ask("history trouble/Trouble").unwrap();
        (entries.as_array().unwrap().len() == 4).then_some(entries)
    });
    assert_eq!(whats(&entries), ["started", "ready", "failed", "ready"]);
    assert!(cause(&entries[2]).contains("the fixture's main failed"), "{entries}");
    server.ask("restart trouble").unwrap();
    server.ask("disable trouble").unwrap();
    let entries = server.ask("history trouble/Trouble").unwrap();
    let stops = entries.as_array().unwrap().iter().filter(|entry| entry["what"] == "stopped");
    assert_eq!(stops.map(cause).collect::<Vec<_>>(), ["asked: restart", "asked: disable"]);
    assert_eq!(last(&entries)["what"], "stopped");

    let server = trouble("[trouble]\nmain = \"ignore_stop\"\nstop_timeout = 0.2");
    server.ask("disable trouble").unwrap();
    let entries = server.ask("history trouble/Trouble").unwrap();
    assert_eq!(last(&entries)["what"], "left_behind");
    let shown = server.command(&["history", "trouble"]).stdout;
    assert!(shown.contains("left behind") && shown.contains("did not stop within 0.2 s"), "{shown}");
}

#[test]
fn it_is_known_after_a_restart() {
    let mut server = trouble("");
    server.call("trouble", "panic/1", "").unwrap_err();
    server.wait_service("trouble", "runs again", |service| service["state"] == "enabled");
    assert_eq!(server.stop().code, Some(0));
    assert_eq!(server.wait_ended(), Some(0));
    assert!(file(&server).ends_with('\n'));
    server.launch_again();
    server.wait_ready();
    let crashed = server.ask("why trouble").unwrap()["last_failure"].clone();
    assert!(cause(&crashed).contains("told to panic in a call"), "{crashed}");
    let entries = server.wait("the start is noted", |server| {
        let entries = server.ask("history zephserver").unwrap();
        (last(&entries)["what"] == "ready").then_some(entries)
    });
    assert_eq!(whats(&entries), ["started", "ready", "stopped", "started", "ready"]);
    assert!(!cause(&entries[3]).contains("died"), "{entries}");
    assert_eq!(server.ask("status").unwrap()["history_lines_lost"], 0);
}

#[test]
fn a_server_that_was_killed_is_told_by_the_next() {
    let mut server = trouble("");
    let is_noted = |line: &str| line.contains("\"zephserver\"") && line.contains("\"ready\"");
    server.wait("its start is on disk", |server| file(server).lines().any(is_noted).then_some(()));
    server.signal("KILL");
    server.wait_ended();
    // As a crash in the middle of a write leaves it.
    let torn = file(&server) + "{\"at\":17,\"na";
    std::fs::write(server.path(".zephserver/history.jsonl"), torn).unwrap();
    server.launch_again();
    server.wait_ready();
    let entries = server.ask("history zephserver").unwrap();
    assert_eq!(whats(&entries)[..3], ["started", "ready", "started"]);
    assert!(cause(&entries[2]).contains("was killed, or died"), "{entries}");
    assert!(server.log().contains("are left out: 1"), "{}", server.log());
    assert_eq!(server.stop().code, Some(0));
    server.wait_ended();
    let file = file(&server);
    let torn = file.lines().filter(|line| serde_json::from_str::<Value>(line).is_err()).count();
    assert_eq!(torn, 1, "the line after it is whole: {file}");
}

#[test]
fn reloads_and_refusals_have_hash_and_reason() {
    let server = trouble("[server]\nwatch = false");
    let file = server.library("trouble");
    build("name=two state=1 fail=init").put(&file);
    server.ask("reload trouble").unwrap_err();
    let why = server.ask("why trouble").unwrap();
    assert_eq!((&why["state"], &why["generation"]), (&"enabled".into(), &1.into()));
    assert!(cause(&why["refused"]).contains("told to panic in init"), "{why}");
    assert_eq!(last(&why["entries"]), &why["refused"]);
    assert!(why["refused"]["hash"].is_string() && why["refused"]["hash"] != why["hash"], "{why}");
    let shown = server.command(&["why", "trouble/Trouble"]).stdout;
    assert!(shown.contains("new build refused, 2") && shown.contains("told to panic in init"), "{shown}");

    build("name=three state=1").put(&file);
    server.ask("reload trouble").unwrap();
    let why = server.ask("why trouble").unwrap();
    assert_eq!((&why["refused"], &why["generation"]), (&Value::Null, &2.into()));
    assert_eq!(why["hash"], server.service("trouble")["hash"]);
    let entries = server.ask("history trouble --limit 3").unwrap();
    assert_eq!(whats(&entries), ["refused", "loaded", "reloaded"]);
    assert_eq!((&entries[1]["name"], &entries[2]["name"]), (&"trouble".into(), &"trouble/Trouble".into()));
    assert_eq!((&entries[2]["generation"], cause(&entries[2])), (&2.into(), "asked: reload"));
}

#[test]
fn a_changed_file_is_named_as_the_cause() {
    let mut server = trouble("");
    build("name=two state=1").put(&server.library("trouble"));
    server.wait_service("trouble", "reloaded", |service| service["generation"] == 2);
    let entries = server.ask("history trouble/Trouble --limit 1").unwrap();
    assert_eq!((whats(&entries), cause(&entries[0])), (vec!["reloaded"], "its file changed"));
}

#[test]
fn a_full_disk_costs_lines_and_nothing_else() {
    let server = TestServer::with(&["trouble/Trouble"]);
    std::fs::create_dir(server.path(".zephserver")).unwrap();
    let link = server.path(".zephserver/history.jsonl");
    std::os::unix::fs::symlink("/dev/full", &link).unwrap();
    let mut server = server.start();
    server.call("trouble", "panic/1", "").unwrap_err();
    assert_eq!(server.call("trouble", "echo/1", "1").unwrap(), 1);
    let entries = server.ask("history trouble/Trouble").unwrap();
    assert_eq!(whats(&entries)[..3], ["started", "ready", "crashed"]);
    server.wait("lost lines are counted", |server| {
        (server.ask("status").unwrap()["history_lines_lost"].as_u64().unwrap() > 3).then_some(())
    });
    assert_eq!(server.log().matches("cannot be written").count(), 1, "{}", server.log());
    std::fs::remove_file(&link).unwrap();
    server.ask("restart trouble").unwrap();
    server.wait_log("history.jsonl is written again");
    assert_eq!(server.stop().code, Some(0));
    assert_eq!(server.wait_ended(), Some(0));
    assert!(file(&server).lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    assert!(file(&server).contains("\"the server stops\""), "{}", file(&server));
}

#[test]
fn names_and_limits() {
    let mut server = TestServer::with(&["trouble/Trouble", "trouble/Counter", "hello/Hello"]).start();
    server.wait("the start is noted", |server| {
        (last(&server.ask("history").unwrap())["name"] == "zephserver").then_some(())
    });
    let all = server.ask("history").unwrap();
    assert_eq!(all.as_array().unwrap().len(), 1 + 2 + 3 * 2 + 1, "{all}");
    let names = |name: &str| {
        let entries = server.ask(&format!("history {name}")).unwrap();
        let names =
            entries.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap().to_string());
        names.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    assert_eq!(names("trouble"), ["trouble", "trouble/Counter", "trouble/Trouble"]);
    assert_eq!(names("hello/Hello"), ["hello/Hello"]);
    assert_eq!(server.command(&["history", "--limit", "1"]).stdout.lines().count(), 2);

    let unknown = server.command(&["history", "helo"]);
    assert!(unknown.code == Some(5) && unknown.stderr.contains("no service `helo`"), "{unknown:?}");
    assert_eq!(server.command(&["history", "--limit", "0"]).code, Some(2));
    let unknown = server.command(&["why", "hello/Helo"]);
    assert!(unknown.code == Some(5) && unknown.stderr.contains("`hello/Hello`"), "{unknown:?}");
    let several = server.command(&["why", "trouble"]);
    assert!(several.code == Some(2) && several.stderr.contains("trouble/Counter"), "{several:?}");
}

#[test]
fn a_check_writes_none() {
    let server = TestServer::with(&["hello/Hello"]);
    server.write_settings();
    assert_eq!(server.command(&["check"]).code, Some(0));
    assert!(server.left_behind().is_empty(), "{:?}", server.left_behind());
}
