//! How services call each other: at once, later, in a stream, on the pool.

use serde_json::{Value, json};
use zephserver_testkit::{Error, TestServer};

fn pair() -> TestServer {
    TestServer::with(&["trouble/Trouble", "relay/Relay"]).start()
}

fn relay(server: &TestServer, method: &str, order: Value) -> Result<Value, Error> {
    server.call("relay", method, &order.to_string())
}

#[test]
fn at_once_and_with_an_error() {
    let server = pair();
    let order =
        |method: &str| json!({"path": "trouble/Trouble", "method": method, "payload": {"a": [1, "ü"]}});
    assert_eq!(relay(&server, "call/1", order("echo/1")).unwrap(), json!({"a": [1, "ü"]}));
    let error = relay(&server, "call/1", order("fail/1")).unwrap_err();
    assert_eq!((error.code.name(), error.text.as_str()), ("refused", "as you wish"));
    assert_eq!(relay(&server, "call/1", order("nope/1")).unwrap_err().code.name(), "unsupported");
    let unknown = json!({"path": "no/Body", "method": "x/1"});
    assert_eq!(relay(&server, "call/1", unknown).unwrap_err().code.name(), "not_found");
}

#[test]
fn a_deferred_answer_is_waited_for() {
    let server = pair();
    let order = json!({"path": "trouble/Trouble", "method": "later/1", "payload": {"ms": 30}});
    assert_eq!(relay(&server, "call/1", order).unwrap(), "one");
    let dropped = json!({"path": "trouble/Trouble", "method": "drop/1"});
    let error = relay(&server, "call/1", dropped).unwrap_err();
    assert!(error.text.contains("dropped this call"), "{error}");
    assert_eq!(server.ask("status").unwrap()["calls"]["pending"], 0);
}

#[test]
fn a_deferred_answer_comes_as_an_event_with_its_cookie() {
    let mut server = pair();
    let order = json!({"path": "trouble/Trouble", "method": "later/1", "payload": {"ms": 10}, "cookie": 77});
    assert!(relay(&server, "begin/1", order).unwrap()["pending"].is_u64());
    let at_once = json!({"path": "trouble/Trouble", "method": "echo/1", "payload": 5, "cookie": 78});
    assert_eq!(relay(&server, "begin/1", at_once).unwrap(), json!({"answered": "5"}));
    let events = wait_events(&mut server, 1);
    assert_eq!(events, json!([{"cookie": 77, "reply": "\"one\""}]));
}

fn wait_events(server: &mut TestServer, count: usize) -> Value {
    server.wait(&format!("{count} events have come"), |server| {
        let events = server.call("relay", "events/1", "").unwrap();
        (events.as_array().unwrap().len() >= count).then_some(events)
    })
}

#[test]
fn what_is_never_answered_ends_at_its_deadline() {
    let mut server = pair();
    let order = json!({"path": "trouble/Trouble", "method": "never/1", "cookie": 5, "within_ms": 50});
    relay(&server, "begin/1", order).unwrap();
    let events = wait_events(&mut server, 1);
    assert_eq!((&events[0]["cookie"], &events[0]["error"]), (&json!(5), &json!("timeout")));
    server.wait("the callee has heard of it", |server| {
        (server.call("trouble", "figures/1", "").unwrap()["cancelled"] == 1).then_some(())
    });
}

#[test]
fn a_cancel_reaches_the_callee() {
    let mut server = pair();
    let order = json!({"path": "trouble/Trouble", "method": "never/1", "within_ms": 60_000});
    assert_eq!(relay(&server, "cancel/1", order).unwrap(), true);
    server.wait("the callee has heard of it", |server| {
        (server.call("trouble", "figures/1", "").unwrap()["cancelled"] == 1).then_some(())
    });
    assert_eq!(server.ask("status").unwrap()["calls"]["pending"], 0);
}

#[test]
fn call_within_is_answered_at_its_deadline() {
    let mut server = pair();
    let order = json!({"path": "trouble/Trouble", "method": "until_cancelled/1", "within_ms": 50});
    let error = relay(&server, "within/1", order).unwrap_err();
    assert_eq!(error.code.name(), "timeout");
    server.wait("the callee has seen the flag", |server| {
        (server.call("trouble", "figures/1", "").unwrap()["cancelled"] == 1).then_some(())
    });
    server.wait("its thread is free again", |server| {
        (server.ask("status").unwrap()["pool"]["stuck"] == 0).then_some(())
    });
    let quick = json!({"path": "trouble/Trouble", "method": "echo/1", "payload": 1, "within_ms": 5000});
    assert_eq!(relay(&server, "within/1", quick).unwrap(), 1);
}

#[test]
fn a_call_on_the_pool_is_answered_by_event() {
    let mut server = pair();
    let order = |method: &str, payload: Value, cookie: u64| json!({"path": "trouble/Trouble", "method": method, "payload": payload, "cookie": cookie, "within_ms": 100});
    relay(&server, "begin_pool/1", order("echo/1", json!(3), 1)).unwrap();
    assert_eq!(wait_events(&mut server, 1)[0], json!({"cookie": 1, "reply": "3"}));
    relay(&server, "begin_pool/1", order("sleep/1", json!(60_000), 2)).unwrap();
    assert_eq!(wait_events(&mut server, 2)[1]["error"], "timeout");
}

#[test]
fn a_stream_comes_in_order_within_its_credit() {
    let server = pair();
    let order = |take: usize| {
        json!({"path": "trouble/Trouble", "method": "later/1", "payload": {"ms": 0, "items": 100},
               "credit": 3, "within_ms": 20_000, "take": take})
    };
    let items = relay(&server, "stream/1", order(0)).unwrap();
    assert_eq!(items, json!((0..100).map(|item| item.to_string()).collect::<Vec<_>>()));
    // Dropped early: the sender hears of it, and nothing stays behind.
    assert_eq!(relay(&server, "stream/1", order(5)).unwrap().as_array().unwrap().len(), 5);
    assert_eq!(server.ask("status").unwrap()["calls"]["pending"], 0);
}

#[test]
fn a_caller_that_takes_no_stream_gets_none() {
    let server = pair();
    let order = json!({"path": "trouble/Trouble", "method": "later/1", "payload": {"ms": 0, "items": 1}});
    assert_eq!(relay(&server, "call/1", order).unwrap_err().code.name(), "refused");
}

#[test]
fn a_slow_direct_call_is_named_and_counted() {
    let mut server = pair();
    let order = json!({"path": "trouble/Trouble", "method": "sleep/1", "payload": 1500});
    relay(&server, "call/1", order).unwrap();
    server.wait_log("slow call: relay/Relay waits for trouble/Trouble sleep/1");
    assert_eq!(server.service("trouble")["slow_calls"], 1);
}

#[test]
fn create_is_pure() {
    let mut server = TestServer::with(&["hello/Hello", "trouble/Trouble"])
        .settings("[trouble]\nfail = \"call_in_create\"")
        .launch();
    assert_eq!(server.wait_ended(), Some(1));
    assert!(server.stderr().contains("is refused while a service is made"), "{}", server.stderr());
}

#[test]
fn ensure_makes_what_does_not_live_yet() {
    let server = TestServer::with(&["relay/Relay"]);
    server.install("hello", &zephserver_testkit::Build::of("hello"));
    let server = server.start();
    let order = json!({"path": "hello/Hello@made", "method": "", "settings": {"greeting": "Ahoy"}});
    relay(&server, "ensure/1", order.clone()).unwrap();
    relay(&server, "ensure/1", order).unwrap();
    assert_eq!(server.call("hello/Hello@made", "greet/1", "\"Ann\"").unwrap(), "Ahoy, Ann!");
}
