//! Who needs others waits for them, and starts by itself as soon as they are ready.

use serde_json::{Value, json};
use zephserver_testkit::{Build, TestServer};

/// `trouble` needs `hello`.
fn needing() -> TestServer {
    TestServer::with(&["trouble/Trouble", "hello/Hello"])
        .settings("[trouble]\nneeds = [\"hello/Hello\"]")
        .start()
}

#[test]
fn a_failed_service_waits_for_what_it_needs_and_starts_by_itself() {
    let mut server = needing();
    server.ask("disable hello").unwrap();
    assert_eq!(server.call("trouble", "echo/1", "1").unwrap(), 1, "what runs goes on");
    server.call("trouble", "panic/1", "").unwrap_err();
    let waits = |service: &Value| service["waits_for"] == json!(["hello/Hello"]);
    let service = server.wait_service("trouble", "waits", waits);
    assert_eq!((&service["state"], &service["failures"]), (&json!("waiting"), &json!(1)));
    assert!(service["last_failure"].as_str().unwrap().contains("call panic/1"), "{service}");
    let error = server.call("trouble", "echo/1", "1").unwrap_err();
    assert!(error.text.contains("it waits for hello/Hello: it is disabled"), "{error}");
    let shown = server.command(&["services", "trouble"]);
    assert!(shown.stdout.contains("waits for hello/Hello"), "{shown:?}");
    server.ask("start hello").unwrap();
    let service = server.wait_service("trouble", "runs again", |service| service["state"] == "enabled");
    assert_eq!((&service["failures"], &service["waits_for"]), (&json!(1), &json!([])));
    assert_eq!(server.call("trouble", "echo/1", "1").unwrap(), 1);
}

#[test]
fn who_waits_can_be_disabled() {
    let mut server = needing();
    server.ask("disable hello").unwrap();
    server.call("trouble", "panic/1", "").unwrap_err();
    server.wait_service("trouble", "waits", |service| service["state"] == "waiting");
    server.ask("disable trouble").unwrap();
    server.ask("start hello").unwrap();
    assert_eq!(server.service("trouble")["state"], "available");
    assert_eq!(server.stop().code, Some(0));
}

#[test]
fn a_start_by_hand_starts_what_is_needed() {
    for verb in ["start", "restart"] {
        let server = needing();
        server.ask("disable trouble").unwrap();
        server.ask("disable hello").unwrap();
        server.ask(&format!("{verb} trouble")).unwrap();
        assert_eq!(server.service("hello")["state"], "enabled");
        assert_eq!(server.call("trouble", "echo/1", "1").unwrap(), 1);
        let log = server.log();
        assert!(log.rfind("hello/Hello: ready") < log.rfind("trouble/Trouble: ready"), "{log}");
    }
}

#[test]
fn a_start_by_hand_says_what_is_missing() {
    let server = TestServer::with(&["trouble/Trouble", "hello/Hello"])
        .settings(
            "[hello]\nneeds = [\"trouble\"]\noptional = true\n[trouble]\nfail = \"refuse\"\noptional = true",
        )
        .start();
    let error = server.ask("start hello").unwrap_err();
    assert!(error.text.contains("hello/Hello does not run: it waits for trouble/Trouble"), "{error}");
    assert!(error.text.contains("the fixture does not want to"), "{error}");
    let service = server.service("hello");
    assert_eq!((&service["state"], &service["waits_for"]), (&json!("waiting"), &json!(["trouble/Trouble"])));
    assert_eq!((&service["failures"], &service["last_failure"]), (&json!(0), &Value::Null));
}

#[test]
fn the_whole_start_fails_where_an_optional_service_is_needed_and_missing() {
    let mut server = TestServer::with(&["hello/Hello", "trouble/Trouble"])
        .settings("[hello]\nneeds = [\"trouble\"]\n[trouble]\nfail = \"refuse\"\noptional = true")
        .launch();
    assert_eq!(server.wait_ended(), Some(1), "{}", server.log());
    let stderr = server.stderr();
    assert!(stderr.contains("hello/Hello: it waits for trouble/Trouble"), "{stderr}");
    assert!(stderr.contains("the fixture does not want to"), "{stderr}");
}

#[test]
fn what_is_started_later_brings_its_needs_along() {
    let server = TestServer::with(&["hello/Hello"]).settings("[trouble]\nneeds = [\"relay\"]");
    server.install("trouble", &Build::of("trouble"));
    let server = server.start();
    let error = server.ask("start trouble/Trouble").unwrap_err();
    assert!(error.text.contains("trouble/Trouble needs relay, and there is no librelay.so"), "{error}");
    server.install("relay", &Build::of("relay"));
    server.ask("start trouble/Trouble").unwrap();
    assert_eq!(server.service("relay/Relay")["state"], "enabled");
    assert_eq!(server.call("trouble", "echo/1", "1").unwrap(), 1);
}

#[test]
fn a_circle_is_refused_also_when_it_comes_later() {
    let server = TestServer::with(&["trouble/Trouble", "hello/Hello"])
        .settings("[hello]\nneeds = [\"trouble\"]\n[\"trouble@late\"]\nneeds = [\"hello\"]")
        .start();
    let error = server.ask("start trouble/Counter@late").unwrap_err();
    let circle = "circle: trouble/Counter@late → hello/Hello → trouble/Counter@late";
    assert!(error.text.contains(circle), "{error}");
    assert_eq!(server.ask("services trouble/Counter@late").unwrap_err().code.name(), "not_found");
}

#[test]
fn a_circle_that_is_left_over_is_named() {
    let server = TestServer::with(&["trouble/Trouble", "hello/Hello"])
        .settings("[server]\nwatch = false\n[trouble]\nneeds = [\"hello\"]")
        .start();
    // The other way round. But the new instance of `trouble` fails, so that it still needs `hello`.
    let turned = "[trouble]\nfail = \"init\"\n[hello]\nneeds = [\"trouble\"]";
    server.edit_settings(|text| text.replace("[trouble]\nneeds = [\"hello\"]", turned));
    server.ask("apply").unwrap();
    server.ask("disable hello").unwrap();
    server.ask("disable trouble").unwrap();
    let error = server.ask("restart hello").unwrap_err();
    assert!(error.text.contains("in a circle"), "{error}");
    assert_eq!(server.service("hello")["waits_for"], json!(["trouble/Trouble"]));
    assert_eq!(server.service("trouble")["waits_for"], json!(["hello/Hello"]));
    assert_eq!(server.stop().code, Some(0));
}
