//! Builds that wait until an operator has them loaded.

use serde_json::{Value, json};
use zephserver_testkit::TestServer;

use crate::reload::build;

#[test]
fn a_changed_file_waits_where_the_settings_say_so() {
    let mut server = TestServer::with(&["trouble/Trouble", "trouble/Counter@two"])
        .settings("[\"@two\"]\nreload = \"manual\"")
        .start();
    server.install("trouble", &build("name=two state=1"));
    let service = server
        .wait_service("trouble/Trouble", "a build waits", |service| service["waiting_build"].is_string());
    let waiting = service["waiting_build"].as_str().unwrap();
    assert!(waiting.contains("zephserver reload trouble"), "{waiting}");
    assert_eq!((&service["generation"], &service["refused"]), (&json!(1), &Value::Null));
    assert_eq!(server.call("trouble/Trouble", "build/1", "").unwrap(), "one");
    let plugins = server.ask("plugins").unwrap();
    assert_eq!(plugins[0]["waiting_build"].as_str(), Some(waiting), "the hash of the file: {plugins}");
    let shown = server.command(&["plugins"]);
    assert!(shown.stdout.contains(&format!("new build {waiting}")), "{shown:?}");
    assert!(server.log().contains(&format!("trouble: new build {waiting}")), "{}", server.log());

    // A restart begins with what is loaded.
    server.ask("restart trouble/Trouble").unwrap();
    assert_eq!(server.call("trouble/Trouble", "build/1", "").unwrap(), "one");
    let answer = server.ask("reload trouble").unwrap();
    assert!(waiting.starts_with(answer["to"]["hash"].as_str().unwrap()), "{answer}, not {waiting}");
    assert_eq!(server.call("trouble/Trouble", "build/1", "").unwrap(), "two");
    assert_eq!(server.service("trouble/Trouble")["waiting_build"], Value::Null);
}

#[test]
fn a_file_that_is_put_back_waits_no_more() {
    let mut server =
        TestServer::with(&["trouble/Trouble"]).settings("[trouble]\nreload = \"manual\"").start();
    server.install("trouble", &build("name=two state=1"));
    server.wait_service("trouble", "a build waits", |service| service["waiting_build"].is_string());
    server.install("trouble", &zephserver_testkit::Build::of("trouble"));
    server.wait_service("trouble", "nothing waits", |service| service["waiting_build"].is_null());
    assert_eq!(server.service("trouble")["generation"], 1);
}

#[test]
fn a_waiting_build_that_is_bad_is_refused_when_it_is_asked_for() {
    let mut server =
        TestServer::with(&["trouble/Trouble"]).settings("[trouble]\nreload = \"manual\"").start();
    server.install("trouble", &build("name=two fail=init"));
    server.wait_service("trouble", "a build waits", |service| service["waiting_build"].is_string());
    server.ask("reload trouble").unwrap_err();
    let service = server.service("trouble");
    assert!(service["refused"].as_str().unwrap().contains("told to panic in init"), "{service}");
    assert_eq!((&service["waiting_build"], &service["state"]), (&Value::Null, &json!("enabled")));
}
