//! Many copies of a plugin in one process, and the thread keys that they take.

use serde_json::{Value, json};
use zephserver_testkit::TestServer;

use crate::caller::Caller;

/// More than the C library has keys.
const RELOADS: u64 = 1100;

fn server() -> TestServer {
    TestServer::with(&["trouble/Trouble"]).settings("[server]\nwatch = false").start()
}

fn generations(server: &TestServer) -> Value {
    server.ask("status").unwrap()["generations"].clone()
}

/// A new copy takes the place of one that has started a thread, and has taken a key with it.
fn reload_after_a_thread(server: &TestServer) {
    assert_eq!(server.call("trouble", "later/1", r#"{"ms":0}"#).unwrap(), "one");
    server.ask("reload trouble").unwrap();
}

#[test]
fn one_process_loads_more_copies_than_there_are_thread_keys() {
    let mut server = server();
    assert_eq!(generations(&server)["key_hook"], true);
    let callers = Caller::crew(&server, "call trouble echo/1 7", 2);
    for _ in 0..RELOADS {
        reload_after_a_thread(&server);
    }
    let calls: u64 = callers.into_iter().map(Caller::end).sum();
    assert!(calls > 0);
    let end = server.wait("all old copies have given their keys back", |server| {
        let generations = generations(server);
        (generations["keys_freed"].as_u64().unwrap() >= RELOADS).then_some(generations)
    });
    assert!(end["keys_in_use"].as_u64().unwrap() < 100, "{end}");
    assert_eq!((&end["copies"], &end["retired"]), (&json!(RELOADS + 1), &json!(RELOADS)));
    assert_eq!((&end["held"], &end["draining"]), (&json!([]), &json!([])));
    assert_eq!(server.call("trouble", "later/1", r#"{"ms":0}"#).unwrap(), "one");
}

#[test]
fn a_copy_whose_threads_live_on_keeps_its_keys_and_is_named() {
    let mut server = server();
    let wait_held = |server: &mut TestServer, count: usize, freed: u64| {
        server.wait(&format!("{count} copies are held, {freed} keys were given back"), |server| {
            let generations = generations(server);
            let is_so =
                generations["held"].as_array().unwrap().len() == count && generations["keys_freed"] == freed;
            is_so.then_some(generations)
        })
    };
    server.call("trouble", "linger/1", "3600000").unwrap();
    server.ask("reload trouble").unwrap();
    let shown = wait_held(&mut server, 1, 0);
    let held = &shown["held"][0];
    assert_eq!((&held["threads"], &shown["retired"]), (&json!(1), &json!(1)), "{shown}");
    assert!(held["copy"].as_str().unwrap().starts_with("trouble/0001-"), "{shown}");
    // Those after it are not held up.
    reload_after_a_thread(&server);
    wait_held(&mut server, 1, 1);
    // And who ends late gives back late.
    server.call("trouble", "linger/1", "3000").unwrap();
    server.ask("reload trouble").unwrap();
    wait_held(&mut server, 2, 1);
    let shown = wait_held(&mut server, 1, 2);
    assert_eq!(shown["held"][0], *held, "{shown}");
    let text = server.command(&["status"]).stdout;
    assert!(text.contains("plugin copies 4 of 10000") && text.contains("1 held by threads"), "{text}");
}
