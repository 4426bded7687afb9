//! The whole ring, with a client that we did not write.

use std::net::TcpStream;

use serde_json::json;
use tungstenite::Message;
use zephserver_testkit::{Build, TestServer};

use crate::client::{Client, EDGE, RING, SETTINGS, in_room};

fn ring() -> TestServer {
    TestServer::with(&RING).settings(SETTINGS).start()
}

#[test]
fn echo_and_chat() {
    let server = ring();
    let mut ann = Client::join(&server, "lobby");
    let mut bob = Client::join(&server, "lobby");
    assert_eq!(ann.read(), json!({"msgtype": "user_list", "data": []}));
    let mut other = Client::join(&server, "elsewhere");
    ann.send(json!({"task": "TaskEcho", "data": {"a": [1, 2]}}));
    assert_eq!(ann.read_text(), r#"{"task":"TaskEcho","data":{"a":[1,2]}}"#);
    bob.send(json!({"task": "chat.say", "data": {"text": "hi"}, "room": "ignored"}));
    for client in [&mut ann, &mut bob] {
        assert_eq!(client.read_text(), r#"{"task":"chat.say","data":{"from":null,"text":"hi"}}"#);
    }
    other.send(json!({"task": "TaskEcho", "data": 1, "id": "x"}));
    assert_eq!(other.read_text(), r#"{"task":"TaskEcho","data":1,"id":"x"}"#, "heard nothing of the lobby");
    drop(bob);
    assert_eq!(ann.read(), json!({"msgtype": "user_list", "data": []}));
}

#[test]
fn what_cannot_be_done_is_said() {
    let server = ring();
    let mut client = Client::connect(&server);
    client.send(json!({"task": "TaskEcho"}));
    assert_eq!(client.read()["code"], "refused");
    client.send(json!({"no": "room"}));
    assert_eq!(client.read()["code"], "invalid");
    client.send(json!({"room": "a"}));
    assert_eq!(client.read()["msgtype"], "user_list");
    client.send(json!({"task": "nope", "id": 3}));
    let error = client.read();
    assert_eq!(
        (&error["code"], &error["name"], &error["id"]),
        (&json!("not_found"), &json!("nope"), &json!(3))
    );
    client.socket.send(Message::text("{")).unwrap();
    assert_eq!(client.read()["code"], "invalid");
    client.socket.send(Message::Ping(vec![1].into())).unwrap();
    client.send(json!({"task": "TaskEcho"}));
    assert_eq!(client.read_text(), r#"{"task":"TaskEcho","data":null}"#);
    client.socket.close(None).unwrap();
    assert!(matches!(client.socket.read(), Ok(Message::Close(_))));
}

#[test]
fn a_client_keeps_its_connection_while_tasks_are_rebuilt() {
    let mut server = ring();
    let mut client = Client::join(&server, "lobby");
    client.send(json!({"task": "chat.say", "data": {"text": "a"}}));
    assert_eq!(client.read()["data"]["text"], "a");
    // Another build of the same library: its answers have another key.
    server.install("tasks", &Build::of("tasks").replaced("from", "born"));
    server.wait_service("tasks/Tasks", "reloaded", |service| service["generation"] == 2);
    client.send(json!({"task": "chat.say", "data": {"text": "b"}}));
    assert_eq!(client.read_text(), r#"{"task":"chat.say","data":{"born":null,"text":"b"}}"#);
}

#[test]
fn a_peer_that_says_hello_and_goes_at_once_leaves_no_ghost() {
    let mut server = ring();
    let mut ann = Client::join(&server, "lobby");
    let hello = br#"{"room":"lobby"}"#;
    let mut bytes = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        .to_vec();
    // Masked with zeros: the payload stays readable.
    bytes.extend_from_slice(&[0x81, 0x80 | hello.len() as u8, 0, 0, 0, 0]);
    bytes.extend_from_slice(hello);
    for _ in 0..20 {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port(EDGE))).unwrap();
        std::io::Write::write_all(&mut stream, &bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    }
    server.wait("they came and went", |server| (in_room(server, "lobby") == 1).then_some(()));
    let list = json!({"msgtype": "user_list", "data": []});
    assert!(std::iter::repeat_with(|| ann.read()).any(|frame| frame == list), "somebody came");
}

#[test]
fn a_disabled_edge_refuses_connections_and_comes_back() {
    let server = ring();
    let mut client = Client::join(&server, "lobby");
    server.ask("disable websocket").unwrap();
    assert_eq!(client.closed_with(), (1012, "the service restarts".into()));
    assert!(TcpStream::connect(("127.0.0.1", server.port(EDGE))).is_err());
    server.ask("start websocket").unwrap();
    let log = server.log();
    let line = log.lines().rfind(|line| line.contains("websocket/WebSocket: listens on")).unwrap();
    let port: u16 = line.rsplit(':').next().unwrap().parse().unwrap();
    TcpStream::connect(("127.0.0.1", port)).unwrap();
}

#[test]
fn rooms_and_members_outlive_reload_and_crash_of_every_service_behind_the_edge() {
    let mut server = ring();
    let mut ann = Client::join(&server, "lobby");
    let mut bob = Client::join(&server, "lobby");
    ann.read();
    for library in ["session", "room", "tasks", "router"] {
        server.ask(&format!("reload {library}")).unwrap();
        ann.send(json!({"task": "chat.say", "data": {"text": library}}));
        assert_eq!(bob.read()["data"]["text"], library);
        assert_eq!(ann.read()["data"]["text"], library);
    }
    // The room service forgets everything: the edge tells it again.
    server.ask("restart room").unwrap();
    server.wait("the rooms are whole again", |server| (in_room(server, "lobby") == 2).then_some(()));
    ann.send(json!({"task": "chat.say", "data": {"text": "again"}}));
    for client in [&mut ann, &mut bob] {
        // After the list that follows on a restart, or before it.
        let said = client.until("what she says", |frame| frame["task"] == "chat.say");
        assert_eq!(said["data"]["text"], "again");
    }
}
