//! The settings file changes while the server runs: what has changed is changed, and nothing else is touched.

use std::net::TcpStream;

use serde_json::{Value, json};
use zephserver_testkit::{Build, TestServer};

use crate::caller::Caller;
use crate::client::{EDGE, RING, SETTINGS};

/// Nothing is applied but what the test asks for.
const UNWATCHED: &str = "[server]\nwatch = false";

/// A greeting service, and one that counts.
fn pair() -> TestServer {
    let server = TestServer::with(&["hello/Hello", "trouble/Counter"]).settings(UNWATCHED);
    let server = server.settings("[hello]\ngreeting = \"Moin\"").start();
    assert_eq!(server.call("trouble", "add/1", "3").unwrap(), 3);
    server
}

fn greeting(server: &TestServer) -> Value {
    server.call("hello", "greet/1", "\"Ann\"").unwrap()
}

fn copies(server: &TestServer) -> Value {
    server.ask("status").unwrap()["generations"].clone()
}

/// Of each change its name, what it is, what comes of it, and what became of it.
fn said(answer: &Value) -> Vec<String> {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
    let line =
        |change: &Value| ["name", "change", "effect", "outcome"].map(|key| word(&change[key])).join(" ");
    answer["changes"].as_array().unwrap().iter().map(line).collect()
}

#[test]
fn a_changed_setting_counts_and_nothing_else_is_touched() {
    let mut server = pair();
    let (counter, loaded) = (server.service("trouble"), copies(&server)["copies"].clone());
    server.edit_settings(|text| text.replace("Moin", "Servus"));
    let answer = server.ask("apply").unwrap();
    assert_eq!(said(&answer), ["hello/Hello settings replaced done"]);
    let keys = json!([{"key": "greeting", "from": "Moin", "to": "Servus"}]);
    assert_eq!((&answer["applied"], &answer["changes"][0]["keys"]), (&json!(true), &keys));
    assert_eq!(greeting(&server), "Servus, Ann!");
    assert_eq!(server.service("hello")["generation"], 1, "it is the same code");
    assert_eq!(copies(&server)["copies"], loaded);
    assert_eq!(server.service("trouble"), counter);
    assert_eq!(server.call("trouble", "get/1", "").unwrap(), 3);
    let shown = server.command(&["apply"]);
    assert_eq!((shown.code, shown.stdout.as_str()), (Some(0), "nothing has changed\n"));
    server.wait("the old instance is gone", |server| {
        copies(server)["draining"].as_array().unwrap().is_empty().then_some(())
    });
    // What comes later begins with the settings in force.
    server.ask("restart hello").unwrap();
    assert_eq!(greeting(&server), "Servus, Ann!");
    server.ask("reload hello").unwrap();
    assert_eq!(greeting(&server), "Servus, Ann!");
}

#[test]
fn a_dry_run_touches_nothing() {
    let server = pair();
    let before = (server.service("hello"), server.service("trouble"));
    server.edit_settings(|text| text.replace("Moin", "Servus"));
    let shown = server.command(&["apply", "--dry-run"]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.stdout.contains("hello/Hello: settings: replaced"), "{shown:?}");
    assert!(shown.stdout.contains("greeting: \"Moin\" → \"Servus\""), "{shown:?}");
    let answer = server.ask("apply --dry-run").unwrap();
    assert_eq!(answer["applied"], false);
    assert_eq!(said(&answer), ["hello/Hello settings replaced null"]);
    assert_eq!(greeting(&server), "Moin, Ann!");
    assert_eq!((server.service("hello"), server.service("trouble")), before);
    assert_eq!(server.ask("apply --now").unwrap_err().code.name(), "invalid");
}

#[test]
fn one_fault_and_nothing_is_applied() {
    let server = pair();
    server.edit_settings(|text| text.replace("Moin", "Servus") + "[trouble]\nfial = \"init\"\n");
    let refused = server.command(&["apply"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    for part in ["settings.toml:11", "[trouble] fial", "`fail`"] {
        assert!(refused.stderr.contains(part), "{part:?} not in: {refused:?}");
    }
    for (wrong, part) in [
        ("[trouble", "not TOML"),
        ("[trouble]\nneeds = [\"hello\"]\n[relay]\n", "unknown key relay"),
        ("[trouble]\nneeds = [\"nobody\"]\n", "trouble/Counter needs nobody"),
        ("[trouble]\nneeds = [\"trouble\"]\n", "circle"),
    ] {
        let own = |text: String| text.split("[trouble").next().unwrap_or_default().to_string();
        server.edit_settings(|text| own(text) + wrong);
        let error = server.ask("apply").unwrap_err();
        assert_eq!(error.code.name(), "invalid", "{error}");
        assert!(error.text.contains(part), "{part:?} not in: {error}");
    }
    assert_eq!(greeting(&server), "Moin, Ann!");
    assert!(server.log().contains("the settings are not applied, the old ones stay in force"));
}

#[test]
fn services_come_and_go_with_the_list() {
    let server = TestServer::with(&["hello/Hello", "relay/Relay"]).settings(UNWATCHED).start();
    server.install("trouble", &Build::of("trouble"));
    server.install("broken", &Build::of("trouble").truncated(1000));
    let (hello, before) = (server.service("hello"), copies(&server)["copies"].as_u64().unwrap());
    server.edit_settings(|text| text.replace("\"relay/Relay\"", "\"broken/Broken\""));
    let error = server.ask("apply").unwrap_err();
    assert!(error.text.contains("broken/Broken") && error.text.contains("not complete"), "{error}");
    assert_eq!(server.service("relay")["state"], "enabled");

    let both = "\"trouble/Trouble\",\"trouble/Counter\"";
    server.edit_settings(|text| text.replace("\"broken/Broken\"", both));
    server.ask("apply --dry-run").unwrap();
    server.ask("apply --dry-run").unwrap();
    assert_eq!(
        said(&server.ask("apply").unwrap()),
        [
            "trouble/Trouble added started done",
            "trouble/Counter added started done",
            "relay/Relay removed stopped done"
        ]
    );
    assert_eq!(copies(&server)["copies"], before + 1, "it was opened once");
    assert_eq!(server.call("trouble/Counter", "add/1", "2").unwrap(), 2);
    assert_eq!(server.ask("services relay").unwrap_err().code.name(), "not_found");
    assert_eq!(server.service("hello"), hello);
    assert_eq!(server.stop().code, Some(0));
}

#[test]
fn options_do_not_touch_the_instance() {
    let mut server = pair();
    let before = server.service("trouble");
    server.edit_settings(|text| text + "[trouble]\nrestart = \"temporary\"\nstop_timeout = 1\n");
    let answer = server.ask("apply").unwrap();
    assert_eq!(said(&answer), ["trouble/Counter options at once done"]);
    assert_eq!(
        answer["changes"][0]["keys"],
        json!([
            {"key": "restart", "from": "permanent", "to": "temporary"},
            {"key": "stop_timeout", "from": 5, "to": 1},
        ])
    );
    assert_eq!(server.service("trouble"), before);
    assert_eq!(server.call("trouble", "get/1", "").unwrap(), 3);
    server.call("trouble", "panic/1", "").unwrap_err();
    server.wait_service("trouble", "is not started again", |service| service["state"] == "available");
}

#[test]
fn a_new_instance_that_fails_leaves_the_old_one_and_the_others_go_on() {
    let server = pair();
    server.edit_settings(|text| text.replace("Moin", "Servus") + "[trouble]\nfail = \"init\"\n");
    let shown = server.command(&["apply"]);
    assert_eq!(shown.code, Some(1), "{shown:?}");
    assert!(shown.stdout.contains("trouble/Counter: settings: failed:"), "{shown:?}");
    assert!(shown.stdout.contains("told to panic in init"), "{shown:?}");
    assert!(shown.stdout.contains("hello/Hello: settings: replaced"), "{shown:?}");
    assert_eq!(greeting(&server), "Servus, Ann!");
    let refused = |server: &TestServer| {
        assert_eq!(server.call("trouble", "get/1", "").unwrap(), 3);
        assert_eq!(server.call("trouble", "setting/1", "").unwrap(), "");
        let service = server.service("trouble");
        assert_eq!(service["state"], "enabled");
        service["settings_refused"].as_str().unwrap_or_default().contains("init of the new instance")
    };
    assert!(refused(&server));
    // A new build gets what is in force, and not what was refused.
    server.ask("reload trouble").unwrap();
    assert!(refused(&server));
    assert_eq!(
        said(&server.ask("apply --dry-run").unwrap()),
        ["trouble/Counter settings replaced null"],
        "it is not forgotten"
    );
    server.edit_settings(|text| text.replace("fail = \"init\"", "fail = \"\""));
    assert_eq!(said(&server.ask("apply").unwrap()), Vec::<String>::new());
    assert!(server.service("trouble")["settings_refused"].is_null());
}

#[test]
fn state_is_handed_over_and_no_call_is_lost() {
    let server = TestServer::with(&["trouble/Trouble", "trouble/Counter@two"]);
    let server = server.settings(UNWATCHED).settings("[\"@two\"]\nfail = \"round-0\"");
    let mut server = server.start();
    let before = (server.service("trouble/Trouble"), copies(&server)["copies"].clone());
    let callers = Caller::crew(&server, "call trouble/Counter@two add/1 1", 4);
    for round in 1..=8 {
        server.edit_settings(|text| text.replace(&format!("round-{}", round - 1), &format!("round-{round}")));
        assert_eq!(said(&server.ask("apply").unwrap()), ["trouble/Counter@two settings replaced done"]);
        callers.iter().for_each(|caller| caller.goes_on(&mut server));
    }
    let added: u64 = callers.into_iter().map(Caller::end).sum();
    let name = "trouble/Counter@two";
    assert_eq!(server.call(name, "get/1", "").unwrap(), added);
    assert_eq!(server.call(name, "setting/1", "").unwrap(), "round-8");
    assert_eq!(
        (&server.service(name)["generation"], &server.service(name)["failures"]),
        (&json!(1), &json!(0))
    );
    assert_eq!((server.service("trouble/Trouble"), copies(&server)["copies"].clone()), before);
}

#[test]
fn who_does_not_serve_begins_with_the_new_settings() {
    let mut server = TestServer::with(&["hello/Hello", "trouble/Trouble"])
        .settings(UNWATCHED)
        .settings("[hello]\ngreeting = \"Moin\"")
        .settings("[trouble]\nfail = \"refuse\"\noptional = true\nintensity = 1")
        .start();
    server.wait_service("trouble", "waits", |service| service["state"] == "waiting");
    server.ask("disable hello").unwrap();
    server.edit_settings(|text| text.replace("Moin", "Servus").replace("\"refuse\"", "\"\""));
    assert_eq!(
        said(&server.ask("apply").unwrap()),
        ["hello/Hello settings at once done", "trouble/Trouble settings started done"]
    );
    assert_eq!(server.call("trouble", "echo/1", "1").unwrap(), 1);
    assert_eq!(server.service("hello")["state"], "available", "it stays as it was");
    server.ask("start hello").unwrap();
    assert_eq!(greeting(&server), "Servus, Ann!");
}

#[test]
fn a_changed_file_is_applied_by_itself() {
    let settings = "[hello]\ngreeting = \"Moin\"";
    let mut server = TestServer::with(&["hello/Hello"]).settings(settings).start();
    server.edit_settings(|text| text.replace("Moin", "Servus"));
    server.wait("the new greeting", |server| (greeting(server) == "Servus, Ann!").then_some(()));
    server.wait_log("settings: hello/Hello settings (replaced): greeting \"Moin\" → \"Servus\"");
    server.edit_settings(|text| text.replace("greeting =", "greetin ="));
    server.wait_log("the settings are not applied, the old ones stay in force");
    assert!(server.log().contains("settings.toml:7: unknown key [hello] greetin"), "{}", server.log());
    assert_eq!(greeting(&server), "Servus, Ann!");
    server.edit_settings(|text| text.replace("greetin =", "greeting =").replace("Servus", "Salve"));
    server.wait("the next greeting", |server| (greeting(server) == "Salve, Ann!").then_some(()));
}

#[test]
fn keys_of_the_server_count_at_once_or_at_the_next_start() {
    let mut server = TestServer::with(&["hello/Hello", "trouble/Trouble"]).settings(UNWATCHED).start();
    let ready = |server: &TestServer| server.log().matches("hello/Hello: ready").count();
    server.edit_settings(|text| {
        text.replace("\"INFO\"", "\"ERROR\"")
            .replace("server.lock", "other.lock")
            .replace("watch = false", "watch = false\ncall_timeout = 0.2")
    });
    let answer = server.ask("apply").unwrap();
    assert_eq!(said(&answer), ["zephserver server at once done", "zephserver server next start null"]);
    assert_eq!(answer["changes"][1]["keys"][0]["key"], "LOCK_FILE");
    assert!(server.path("server.lock").exists() && !server.path("other.lock").exists());
    let error = server.call("trouble", "sleep/1", "2000").unwrap_err();
    assert!(error.text.contains("within 200 ms"), "{error}");
    server.ask("restart hello").unwrap();
    assert_eq!(ready(&server), 1, "only errors are logged");
    server.edit_settings(|text| text.replace("\"ERROR\"", "\"INFO\""));
    let shown = server.command(&["apply"]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(
        shown.stdout.contains("zephserver: settings: at once\n  LOG_LEVEL: \"ERROR\" → \"INFO\""),
        "{shown:?}"
    );
    assert!(shown.stdout.contains("zephserver: settings: they count at the next start only"), "{shown:?}");
    server.ask("restart hello").unwrap();
    server.wait("it is logged again", |server| (ready(server) == 2).then_some(()));
}

#[test]
fn an_edge_moves_to_another_address() {
    let settings = format!("{SETTINGS}\n{UNWATCHED}\n[websocket]\naddress = \"127.0.0.1\"");
    let mut server = TestServer::with(&RING).settings(&settings).start();
    let old = server.port(EDGE);
    server.edit_settings(|text| text.replace("\"127.0.0.1\"", "\"127.0.0.2\""));
    assert_eq!(said(&server.ask("apply").unwrap()), ["websocket/WebSocket settings replaced done"]);
    let log = server.log();
    let (_, after) = log.split_once("listens on 127.0.0.2:").expect("it listens elsewhere");
    let port: u16 = after.lines().next().unwrap().trim().parse().unwrap();
    TcpStream::connect(("127.0.0.2", port)).unwrap();
    server.wait("nobody listens at the old address", |_| {
        TcpStream::connect(("127.0.0.1", old)).is_err().then_some(())
    });
}

#[test]
fn who_is_told_of_another_handler_needs_that_one() {
    let server = TestServer::with(&RING).settings(&format!("{SETTINGS}\n{UNWATCHED}")).start();
    server.install("stage", &Build::of("stage"));
    server.edit_settings(|text| {
        text.replace("\"session/Session\"", "\"stage/Names\"")
            .replace("PORT_ZEPH = 0", "PORT_ZEPH = 0\nMY_SESSION_HANDLER = \"stage/Names\"")
    });
    assert_eq!(
        said(&server.ask("apply").unwrap()),
        [
            "stage/Names added started done",
            "websocket/WebSocket settings replaced done",
            "session/Session removed stopped done"
        ]
    );
    server.ask("restart websocket").unwrap();
    assert_eq!(server.service("websocket")["state"], "enabled");
    assert_eq!(server.ask("services session").unwrap_err().code.name(), "not_found");
}
