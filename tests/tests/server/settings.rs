//! Settings that cannot be: line, reason, nearest known name, exit 2, nothing left behind.

use zephserver_testkit::{Command, TestServer};

fn refused(services: &[&str], settings: &str, parts: &[&str]) {
    let server = TestServer::with(services).settings(settings);
    refused_by(server, parts);
}

fn refused_by(server: TestServer, parts: &[&str]) {
    let file = server.write_settings();
    for words in [vec!["zephserver-start"], vec!["zephserver", "check"]] {
        let command =
            Command::new(words[0]).args(&words[1..]).args(["--settings".as_ref(), file.as_os_str()]);
        let finished = command.run();
        assert_eq!(finished.code, Some(2), "{words:?}: {finished:?}");
        for part in parts {
            assert!(finished.stderr.contains(part), "{words:?}: {part:?} not in: {}", finished.stderr);
        }
        assert!(server.left_behind().is_empty(), "{words:?} left {:?}", server.left_behind());
    }
}

#[test]
fn an_unknown_key() {
    refused(&["hello/Hello"], "LOG_PAHT = \"x\"", &["settings.toml:6", "LOG_PAHT", "`LOG_PATH`"]);
}

#[test]
fn an_unknown_table() {
    refused(&["hello/Hello"], "[helo]\ngreeting = \"x\"", &["settings.toml:6", "helo", "`hello`"]);
}

#[test]
fn an_unknown_option_of_a_plugin() {
    refused(
        &["hello/Hello"],
        "[hello]\ngreetin = \"x\"",
        &["settings.toml:7", "[hello] greetin", "`greeting`"],
    );
}

#[test]
fn a_wrong_type() {
    refused(
        &["hello/Hello"],
        "[hello]\ngreeting = 3",
        &["settings.toml:7", "a whole number", "expected a text"],
    );
}

#[test]
fn an_address_that_others_can_reach() {
    refused(
        &["hello/Hello"],
        "[server]\nhttp_address = \"0.0.0.0:9100\"",
        &["settings.toml:7", "0.0.0.0:9100", "no loopback address", "proxy", "127.0.0.1:9100"],
    );
}

#[test]
fn a_service_named_twice() {
    refused(&["hello/Hello", "hello/Hello"], "", &["settings.toml:5", "named twice", "hello/Hello@two"]);
}

#[test]
fn a_missing_library() {
    let server = TestServer::with(&["hello/Hello"]);
    std::fs::rename(server.library("hello"), server.library("helo")).unwrap();
    refused_by(server, &["settings.toml:5", "no libhello.so", "`helo`"]);
}

#[test]
fn an_unknown_kind_of_service() {
    refused(&["hello/Helo"], "", &["settings.toml:5", "no service `Helo`", "`Hello`"]);
}

#[test]
fn an_alias_and_its_option_together() {
    let services = ["websocket/WebSocket", "session/Session", "room/Room", "router/Router"];
    refused(&services, "PORT_ZEPH = 0\n[websocket]\nport = 0", &["PORT_ZEPH", "line 6", "line 8"]);
}

#[test]
fn needs_in_a_circle() {
    let settings = "[relay]\nneeds = [\"hello\"]\n[hello]\nneeds = [\"relay\"]";
    refused(
        &["relay/Relay", "hello/Hello"],
        settings,
        &["circle", "relay/Relay → hello/Hello → relay/Relay"],
    );
}

#[test]
fn not_toml_and_no_file() {
    refused(&["hello/Hello"], "[hello", &["settings.toml:6", "not TOML"]);
    let missing = Command::new("zephserver-start").args(["--settings", "/nonexistent/settings.toml"]).run();
    assert_eq!(missing.code, Some(2));
    assert!(missing.stderr.contains("/nonexistent/settings.toml"), "{}", missing.stderr);
}

#[test]
fn what_has_no_effect_is_said_once() {
    let mut server = TestServer::with(&["hello/Hello"]).settings("PORT_ZEPH = 8080\n[websocket]\nport = 1");
    server.install("websocket", &zephserver_testkit::Build::of("websocket"));
    server = server.start();
    let log = server.log();
    assert_eq!(log.matches("PORT_ZEPH has no effect").count(), 1, "{log}");
    assert_eq!(log.matches("table [websocket] has no effect").count(), 1, "{log}");
}

#[test]
fn a_second_instance_has_settings_of_its_own() {
    let settings = "[hello]\ngreeting = \"Moin\"\n[\"@two\"]\ngreeting = \"Servus\"";
    let server = TestServer::with(&["hello/Hello", "hello/Hello@two"]).settings(settings).start();
    assert_eq!(server.call("hello/Hello", "greet/1", "\"Ann\"").unwrap(), "Moin, Ann!");
    assert_eq!(server.call("hello/Hello@two", "greet/1", "\"Ann\"").unwrap(), "Servus, Ann!");
}
