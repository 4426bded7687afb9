//! What happens when a service fails.

use serde_json::json;
use zephserver_testkit::TestServer;

#[test]
fn a_panic_in_a_call_stays_there() {
    let mut server = TestServer::with(&["trouble/Trouble", "relay/Relay", "hello/Hello"]).start();
    let order = json!({"path": "trouble/Trouble", "method": "panic/1"});
    let error = server.call("relay", "call/1", &order.to_string()).unwrap_err();
    assert_eq!(error.code.name(), "panicked");
    assert!(error.text.contains("tests/fixtures/trouble/src/lib.rs:"), "{error}");
    assert!(error.text.contains("told to panic in a call"), "{error}");
    // Whoever calls next gets the new instance.
    assert_eq!(server.call("trouble", "echo/1", "1").unwrap(), 1);
    let service = server.wait_service("trouble", "runs again", |service| service["state"] == "enabled");
    assert_eq!((&service["restarts"], &service["failures"]), (&json!(1), &json!(1)));
    assert!(service["last_failure"].as_str().unwrap().contains("call panic/1"), "{service}");
    assert_eq!(server.service("hello")["restarts"], 0);
    assert_eq!(server.service("relay")["restarts"], 0, "it only passed the error on");
}

#[test]
fn callers_under_way_do_not_notice_a_resurrection() {
    let mut server = TestServer::with(&["trouble/Trouble", "relay/Relay"])
        .settings("[server]\ncall_timeout = 120")
        .start();
    let order = json!({"path": "trouble/Trouble", "method": "echo/1", "payload": 1, "count": 2_000_000});
    let callers: Vec<_> = (0..2)
        .map(|_| {
            let (socket, line) = (server.socket(), format!("call relay time/1 {order}"));
            std::thread::spawn(move || zephserver::client::ask(&socket, &line).unwrap())
        })
        .collect();
    server.wait("they call", |server| (server.ask("status").unwrap()["pool"]["threads"] == 2).then_some(()));
    for _ in 0..2 {
        assert_eq!(server.call("trouble", "panic/1", "").unwrap_err().code.name(), "panicked");
    }
    for caller in callers {
        let answer = caller.join().unwrap();
        assert!(answer.is_number(), "{answer}");
    }
    assert_eq!(server.service("trouble")["failures"], 2);
}

#[test]
fn panics_in_every_entry_are_contained() {
    for (fail, act) in [("main", ""), ("event", "publish"), ("disable", "restart"), ("drop", "restart")] {
        let mut server = TestServer::with(&["trouble/Trouble", "relay/Relay"])
            .settings(&format!("[trouble]\nfail = \"{fail}\"\noptional = true\nstop_timeout = 0.5"))
            .start();
        match act {
            "publish" => {
                let order = json!({"path": "", "method": "trouble.event", "payload": 1});
                server.call("relay", "publish/1", &order.to_string()).unwrap();
            }
            "restart" => {
                server.ask("restart trouble").unwrap();
            }
            _ => {}
        }
        server.wait_log(&format!("told to panic in {fail}"));
        assert_eq!(server.ask("status").unwrap()["state"], "ready");
        assert!(server.log().contains("tests/fixtures/trouble/src/lib.rs:"), "{}", server.log());
    }
}

#[test]
fn a_new_instance_begins_with_the_last_checkpoint() {
    let mut server = TestServer::with(&["trouble/Counter"]).start();
    server.call("trouble", "add/1", "7").unwrap();
    server.call("trouble", "checkpoint/1", "").unwrap();
    server.call("trouble", "add/1", "1").unwrap();
    server.call("trouble", "panic/1", "").unwrap_err();
    server.wait_service("trouble", "runs again", |service| service["state"] == "enabled");
    assert_eq!(server.call("trouble", "get/1", "").unwrap(), 7);
    server.ask("restart trouble").unwrap();
    assert_eq!(server.call("trouble", "get/1", "").unwrap(), 0, "a start in order begins from nothing");
}

#[test]
fn main_that_returns_runs_again_in_the_same_instance() {
    for main in ["return", "fail"] {
        let mut server =
            TestServer::with(&["trouble/Trouble"]).settings(&format!("[trouble]\nmain = \"{main}\"")).start();
        server.wait("main ran twice", |server| {
            (server.call("trouble", "figures/1", "").unwrap()["mains"] == 2).then_some(())
        });
        assert_eq!(server.service("trouble")["state"], "enabled");
    }
}

#[test]
fn a_service_that_ended_comes_back_when_it_is_called() {
    let mut server = TestServer::with(&["trouble/Trouble"])
        .settings("[trouble]\nmain = \"return\"\nrestart = \"temporary\"")
        .start();
    server.wait_service("trouble", "has ended", |service| service["state"] == "available");
    assert_eq!(server.call("trouble", "echo/1", "1").unwrap(), 1);
}

#[test]
fn events_do_not_bring_back_who_rests() {
    let mut server = TestServer::with(&["trouble/Trouble", "relay/Relay"])
        .settings("[trouble]\nmain = \"return\"\nrestart = \"temporary\"")
        .start();
    server.wait_service("trouble", "has ended", |service| service["state"] == "available");
    let order = json!({"path": "", "method": "trouble.event", "payload": 1});
    assert_eq!(server.call("relay", "publish/1", &order.to_string()).unwrap(), 1);
    let service =
        server.wait_service("trouble", "has lost the event", |service| service["events_dropped"] == 1);
    assert_eq!(service["state"], "available");
}

#[test]
fn an_instance_that_is_late_ends_without_having_served() {
    let mut server = TestServer::with(&["trouble/Trouble"])
        .settings(
            "[trouble]\nfail = \"slow_init\"\noptional = true\nrestart = \"temporary\"\nstart_timeout = 0.1",
        )
        .start();
    let service = server.service("trouble");
    assert!(service["last_failure"].as_str().unwrap().contains("it hangs in init"), "{service}");
    server.wait_log("init is done");
    let stopped = server.stop();
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    assert_eq!(server.wait_ended(), Some(0));
}

#[test]
fn a_crash_loop_backs_off_and_a_manual_start_works() {
    let mut server = TestServer::with(&["trouble/Trouble"]).settings("[trouble]\nintensity = 1").start();
    for _ in 0..2 {
        assert_eq!(server.call("trouble", "panic/1", "").unwrap_err().code.name(), "panicked");
    }
    server.wait_service("trouble", "waits", |service| service["state"] == "waiting");
    let error = server.call("trouble", "echo/1", "1").unwrap_err();
    assert_eq!(error.code.name(), "unavailable");
    assert!(error.text.contains("tried again in"), "{error}");
    server.ask("start trouble").unwrap();
    assert_eq!(server.call("trouble", "echo/1", "1").unwrap(), 1);
}

#[test]
fn who_waits_for_a_service_that_crashes_gets_an_error() {
    let mut server = TestServer::with(&["trouble/Trouble", "relay/Relay"]).start();
    let order = json!({"path": "trouble/Trouble", "method": "never/1", "cookie": 9, "within_ms": 60_000});
    server.call("relay", "begin/1", &order.to_string()).unwrap();
    server.call("trouble", "panic/1", "").unwrap_err();
    let events = server.wait("the answer has come", |server| {
        let events = server.call("relay", "events/1", "").unwrap();
        (!events.as_array().unwrap().is_empty()).then_some(events)
    });
    assert_eq!((&events[0]["cookie"], &events[0]["error"]), (&json!(9), &json!("unavailable")));
}

#[test]
fn calls_that_run_while_another_panics_end_in_peace() {
    let mut server = TestServer::with(&["trouble/Trouble"]).start();
    let socket = server.socket();
    let sleeper =
        std::thread::spawn(move || zephserver::client::ask(&socket, "call trouble sleep/1 300").unwrap());
    server.wait("the call is inside", |server| {
        (server.ask("status").unwrap()["pool"]["threads"] == 1).then_some(())
    });
    server.call("trouble", "panic/1", "").unwrap_err();
    assert_eq!(server.call("trouble", "echo/1", "1").unwrap(), 1);
    assert_eq!(sleeper.join().unwrap(), serde_json::Value::Null);
}

#[test]
fn a_replaced_instance_that_does_not_end_is_named() {
    let settings = "[server]\nwatch = false\n[trouble]\nmain = \"ignore_stop\"\nstop_timeout = 0.2";
    let mut server = TestServer::with(&["trouble/Trouble"]).settings(settings).start();
    server.ask("reload trouble").unwrap();
    server.wait_log("a replaced instance did not end within 0.2 s");
    let named = server.ask("status").unwrap()["left_behind"].clone();
    assert_eq!(named, json!(["trouble/Trouble (a replaced instance)"]));
    assert_eq!(server.service("trouble")["state"], "enabled");
}
