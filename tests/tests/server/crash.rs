//! A service that keeps state falls, with peers that live: nobody is disconnected, and everything is whole again.

use serde_json::{Value, json};

use crate::client::{Client, EDGE, stage_with_room};

const ROOMS: usize = 100;
const PEERS: usize = 1000;

/// The test itself holds as many sockets as there are peers.
fn raise_open_files() {
    let pid = std::process::id().to_string();
    let raised = std::process::Command::new("prlimit").args(["--pid", &pid, "--nofile=4096:"]).status();
    assert!(raised.unwrap().success());
}

#[test]
fn a_room_service_that_falls_with_a_thousand_peers_is_whole_again() {
    raise_open_files();
    let mut server = stage_with_room("falling/Falling", "");
    let mut clients: Vec<Client> = (0..PEERS)
        .map(|number| {
            let mut client = Client::connect(&server);
            client.hello(&format!("room {}", number % ROOMS), &format!("{number}"));
            client
        })
        .collect();
    // The last ones to join are listed last.
    clients.iter_mut().for_each(|client| {
        client.until("the list of all", |frame| {
            frame["data"].as_array().is_some_and(|names| names.len() == PEERS / ROOMS)
        });
    });
    for round in 1..=2 {
        let error = server.call("falling", "fall/1", "").unwrap_err();
        assert!(
            error.text.contains("the room was told to fall") && error.text.contains("lib.rs:"),
            "{error}"
        );
        server.wait_service("falling", "serves again", |service| {
            service["state"] == "enabled" && service["restarts"] == round
        });
        // Each is told of again, without notices to anybody, and as who it was.
        for room in 0..ROOMS {
            let name = format!("room {room}");
            server.wait(&format!("{name} is whole"), |server| {
                let push = json!({"room": name, "task": "test", "data": null}).to_string();
                let reached = server.call("falling", "send_to_room/1", &push).ok()?;
                (reached == PEERS / ROOMS).then_some(())
            });
        }
        for (number, client) in clients.iter_mut().enumerate() {
            let extra = client.request("Extra", Value::Null);
            assert_eq!(extra["data"]["user"]["id"], format!("id-{number}"), "{extra}");
            assert_eq!(extra["data"]["room"], format!("room {}", number % ROOMS), "{extra}");
        }
        let letter = json!({"task": "test", "data": 0, "users": ["id-7", "id-993"]}).to_string();
        assert_eq!(server.call("router", "say/1", &letter).unwrap(), 2);
    }
    // Whoever goes now is gone from its room, and those who stay are told.
    drop(clients.remove(0));
    let heard = clients[ROOMS - 1].until("word of who has left", |frame| frame["msgtype"] == "leave");
    assert_eq!(heard["username"], "0");
    let edge = server.service(EDGE);
    assert_eq!((&edge["restarts"], &edge["failures"]), (&json!(0), &json!(0)));
    let shown = server.command(&["why", "falling"]);
    assert!(shown.stdout.contains("the room was told to fall"), "{shown:?}");
}
