//! Events, timers, and what services ask of the server.

use serde_json::{Value, json};
use zephserver_testkit::TestServer;

fn pair() -> TestServer {
    TestServer::with(&["trouble/Trouble", "relay/Relay"]).start()
}

fn figures(server: &TestServer) -> Value {
    server.call("trouble", "figures/1", "").unwrap()
}

#[test]
fn what_is_published_is_heard_in_order() {
    let mut server = pair();
    for number in 0..50 {
        let order = json!({"path": "", "method": "trouble.event", "payload": number});
        assert_eq!(server.call("relay", "publish/1", &order.to_string()).unwrap(), 1);
    }
    let heard = server.wait("all are heard", |server| {
        let heard = figures(server)["heard"].clone();
        (heard.as_array().unwrap().len() == 50).then_some(heard)
    });
    let expected = (0..50).map(|number| format!("trouble.event {number}")).collect::<Vec<_>>();
    assert_eq!(heard, json!(expected));
}

#[test]
fn alone_a_say_succeeds_and_reaches_nobody() {
    let server = pair();
    let order = json!({"path": "", "method": "trouble.event", "payload": 1});
    assert_eq!(server.call("relay", "say/1", &order.to_string()).unwrap(), 0);
}

#[test]
fn timers_run_until_their_service_begins_anew() {
    let mut server = pair();
    server.call("trouble", "timer/1", "5").unwrap();
    server.wait("it has run", |server| (figures(server)["timers"].as_u64() > Some(2)).then_some(()));
    server.ask("restart trouble").unwrap();
    let before = figures(&server)["timers"].clone();
    std::thread::sleep(std::time::Duration::from_millis(30));
    assert_eq!(before, 0);
    assert_eq!(figures(&server)["timers"], 0, "the old instance's timer is gone");
}

#[test]
fn services_may_ask_for_control() {
    let server = pair();
    let order = json!({"path": "", "method": "version"});
    assert!(server.call("relay", "control/1", &order.to_string()).unwrap()["zephserver"].is_string());
}
