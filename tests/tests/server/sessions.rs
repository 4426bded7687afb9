//! Signed tokens through the whole ring. The tokens were signed with Python's hmac; those that are good end
//! in the year 2100.

use serde_json::json;
use zephserver_testkit::TestServer;

use crate::client::{Client, EDGE, SETTINGS, in_room};

const SECRET: &str = "a secret of more than thirty-two bytes";
const ANN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxIiwidXNlcm5hbWUiOiJBbm4iLCJleHAiOjQxMDI0NDQ4MDB9.fvKamhWP3yXgiI1ptPnyNlcMOUBE4Gc5BEOHcqD1l-A";
/// With a number for `sub`, and `name`.
const BOB: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOjIsIm5hbWUiOiJCb2IiLCJleHAiOjQxMDI0NDQ4MDB9.zWyYNoCSX_TxNomWmN_ZIxpu9H-Vqh1qFa2Exf6lmVI";
const EXPIRED: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxIiwidXNlcm5hbWUiOiJBbm4iLCJleHAiOjEwMDAwMDAwMDB9.BJEPFtSOy-ZuUd03YfLAlXyPxtR5kLsIJwYP5O8AwlI";
/// Signed with another secret.
const FORGED: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxIiwidXNlcm5hbWUiOiJBbm4iLCJleHAiOjQxMDI0NDQ4MDB9.rk1Q8PcW0D1mA48F8s800XDGkfaUbsiKLxWt7Sash2c";

fn server() -> TestServer {
    let session = format!(
        "[session]\nbackend = \"token\"\n[session.token]\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\""
    );
    TestServer::with(&["session/Session", "room/Room", "tasks/Tasks", "router/Router", EDGE])
        .settings(&format!("{SETTINGS}\n\"chat.whisper\" = \"tasks/ChatWhisper\"\n{session}"))
        .start()
}

fn hello(client: &mut Client, token: Option<&str>) {
    client.send(json!({"room": "lobby", "session_id": token}));
}

#[test]
fn a_token_names_its_user_and_a_bad_one_joins_nothing() {
    let server = server();
    let mut client = Client::connect(&server);
    for (token, what) in
        [(EXPIRED, "expired"), (FORGED, "signature"), ("x", "cannot be read"), ("", "cannot be read")]
    {
        hello(&mut client, Some(token));
        let error = client.read();
        assert_eq!((&error["msgtype"], &error["code"]), (&json!("error"), &json!("refused")));
        assert!(error["text"].as_str().unwrap().contains(what), "{error}");
    }
    assert_eq!(in_room(&server, "lobby"), 0);
    client.send(json!({"room": "lobby", "session_id": 5}));
    assert_eq!(client.read()["code"], "invalid");
    hello(&mut client, Some(ANN));
    assert_eq!(client.read()["username"], "Ann");
    assert_eq!(client.read(), json!({"msgtype": "user_list", "data": ["Ann"]}));
    assert!(!server.log().contains(FORGED) && !server.log().contains(SECRET));
}

#[test]
fn no_token_is_anonymous_and_another_one_is_another_user() {
    let server = server();
    let mut client = Client::connect(&server);
    hello(&mut client, None);
    assert_eq!(client.read(), json!({"msgtype": "user_list", "data": []}));
    client.send(json!({"task": "chat.whisper", "data": {"to": [], "text": "x"}}));
    assert_eq!(client.read()["code"], "refused", "for users only");
    // A later message brings a token: its task runs as that user.
    client.send(json!({"task": "chat.say", "data": {"text": "a"}, "session_id": BOB}));
    client.until("her own words", |frame| frame["data"]["from"] == "Bob");
    client.send(json!({"task": "chat.say", "data": {"text": "b"}}));
    client.until("no token changes nothing", |frame| frame["data"] == json!({"from": "Bob", "text": "b"}));
    client.send(json!({"task": "chat.whisper", "data": {"to": [2], "text": "psst"}}));
    client.until("a whisper", |frame| frame["data"] == json!({"from": "Bob", "text": "psst"}));
    // One that is not good runs nothing, and changes nothing.
    client.send(json!({"task": "chat.say", "data": {"text": "c"}, "session_id": EXPIRED, "id": 9}));
    let error = client.until("a refusal", |frame| frame["msgtype"] == "error");
    assert_eq!(
        (&error["code"], &error["name"], &error["id"]),
        (&json!("refused"), &json!("chat.say"), &json!(9))
    );
    client.send(json!({"task": "chat.say", "data": {"text": "d"}, "session_id": ANN}));
    client.until("as somebody else", |frame| frame["data"] == json!({"from": "Ann", "text": "d"}));
}
