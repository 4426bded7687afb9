//! Signed tokens through the whole ring, and what a revocation makes of them. The tokens were signed with
//! Python's hmac; those that are good end in the year 2100.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use zephserver_testkit::TestServer;

use crate::client::{Client, EDGE, SETTINGS, in_room};

const SECRET: &str = "a secret of more than thirty-two bytes";
pub const ANN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxIiwidXNlcm5hbWUiOiJBbm4iLCJleHAiOjQxMDI0NDQ4MDB9.fvKamhWP3yXgiI1ptPnyNlcMOUBE4Gc5BEOHcqD1l-A";
/// The same, issued long ago, and when the test is long over.
pub const ANN_BEFORE: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxIiwidXNlcm5hbWUiOiJBbm4iLCJleHAiOjQxMDI0NDQ4MDAsImlhdCI6MTAwMDAwMDAwMH0.37RfkP3N9QhV7brk8ar_oEFX6mb9hz66hckMmWItYLM";
pub const ANN_LATER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxIiwidXNlcm5hbWUiOiJBbm4iLCJleHAiOjQxMDI0NDQ4MDAsImlhdCI6NDEwMjQ0NDAwMH0.10438jZZ8izFZDeYZWVipLoI84QsHP8jEXKhVcQUzzU";
/// With a number for `sub`, and `name`.
pub const BOB: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOjIsIm5hbWUiOiJCb2IiLCJleHAiOjQxMDI0NDQ4MDB9.zWyYNoCSX_TxNomWmN_ZIxpu9H-Vqh1qFa2Exf6lmVI";
const EXPIRED: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxIiwidXNlcm5hbWUiOiJBbm4iLCJleHAiOjEwMDAwMDAwMDB9.BJEPFtSOy-ZuUd03YfLAlXyPxtR5kLsIJwYP5O8AwlI";
/// Signed with another secret.
const FORGED: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxIiwidXNlcm5hbWUiOiJBbm4iLCJleHAiOjQxMDI0NDQ4MDB9.rk1Q8PcW0D1mA48F8s800XDGkfaUbsiKLxWt7Sash2c";

fn server() -> TestServer {
    ring().settings(&session("")).start()
}

/// The ring without the settings of its session service.
pub fn ring() -> TestServer {
    TestServer::with(&["session/Session", "room/Room", "tasks/Tasks", "router/Router", EDGE])
        .settings(&format!("{SETTINGS}\n\"chat.whisper\" = \"tasks/ChatWhisper\""))
}

/// The settings of a session service that reads tokens, with further lines.
pub fn session(more: &str) -> String {
    format!(
        "[session]\nbackend = \"token\"\n{more}\n[session.token]\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\""
    )
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

/// What a new peer with this token gets: its name in the first notice, or the error.
pub fn greeted(server: &TestServer, token: &str) -> Value {
    let mut client = Client::connect(server);
    hello(&mut client, Some(token));
    client.read()
}

pub fn is_revoked(server: &TestServer, token: &str) {
    let error = greeted(server, token);
    assert_eq!((&error["msgtype"], &error["code"]), (&json!("error"), &json!("refused")));
    assert_eq!(error["text"], "the session was revoked; log in again");
}

#[test]
fn what_was_issued_before_a_revocation_counts_no_more() {
    let server = server();
    assert_eq!(greeted(&server, ANN)["username"], "Ann");
    let shown = server.command(&["revoke", "1", "--json"]);
    let revoked: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!((&revoked["user"], revoked["before"].is_u64()), (&json!("1"), true), "{shown:?}");
    // Without a time of issue it may be as old as any.
    is_revoked(&server, ANN);
    is_revoked(&server, ANN_BEFORE);
    assert_eq!(greeted(&server, ANN_LATER)["username"], "Ann");
    assert_eq!(greeted(&server, BOB)["username"], "Bob", "somebody else");
    // The next build knows it, and the one after that.
    for _ in 0..2 {
        server.ask("reload session").unwrap();
        is_revoked(&server, ANN_BEFORE);
    }
    // By its method, for other services; and who is revoked is listed, the newest first.
    server.call("session", "session.revoke/1", r#"{"user": "2 b"}"#).unwrap();
    let list = server.ask("revocations --limit 1").unwrap();
    assert_eq!((&list["total"], &list["next_offset"]), (&json!(2), &json!(1)), "{list}");
    let shown = server.command(&["revocations"]).stdout;
    assert!(shown.starts_with("total: 2\nbefore ") && shown.contains("2 b"), "{shown}");
    // Words that could mean something else revoke nobody.
    for words in [&["revoke"][..], &["revoke", "2", "3"], &["revocations", "2"]] {
        let shown = server.command(words);
        assert!(shown.code == Some(2) && shown.stderr.contains("usage: "), "{shown:?}");
    }
    assert_eq!(greeted(&server, BOB)["username"], "Bob");
}

#[test]
fn peers_of_a_revoked_user_are_closed_and_no_others() {
    let server = server();
    let mut anns: Vec<Client> = (0..3).map(|_| Client::connect(&server)).collect();
    for ann in &mut anns {
        hello(ann, Some(ANN_BEFORE));
        ann.until("its list", |frame| frame["msgtype"] == "user_list");
    }
    let mut bob = Client::connect(&server);
    hello(&mut bob, Some(BOB));
    bob.until_listed("Bob");
    let mut later = Client::connect(&server);
    hello(&mut later, Some(ANN_LATER));
    later.until("her list", |frame| frame["msgtype"] == "user_list");
    server.ask("revoke 1").unwrap();
    for ann in &mut anns {
        ann.until("why", |frame| frame["text"] == "your session was revoked; log in again");
        assert_eq!(ann.closed_with().0, 4401);
    }
    bob.request("TaskEcho", Value::Null);
    // Her session is newer than that.
    later.request("TaskEcho", Value::Null);
}

#[test]
fn revocations_in_a_file_outlive_the_server() {
    let server = ring();
    let file = server.path("revocations.json");
    let mut server = server.settings(&session(&format!("revocations_file = {file:?}"))).start();
    server.ask("revoke 1").unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    server.ask("restart session").unwrap();
    is_revoked(&server, ANN);
    server.stop();
    server.wait_ended();
    server.launch_again();
    server.wait_ready();
    is_revoked(&server, ANN);
    assert_eq!(greeted(&server, ANN_LATER)["username"], "Ann");
    // One that cannot be kept counts all the same, and that is said.
    std::fs::create_dir(server.path("revocations.json.new")).unwrap();
    let error = server.ask("revoke 2").unwrap_err();
    assert!(error.text.contains("revocations.json cannot be written"), "{error}");
    is_revoked(&server, BOB);
}

#[test]
fn where_nobody_has_a_session_none_is_revoked() {
    let server = TestServer::with(&["session/Session"]).start();
    let error = server.ask("revoke 1").unwrap_err();
    assert_eq!(error.code.name(), "invalid");
    assert!(error.text.contains("backend is \"anonymous\""), "{error}");
    assert_eq!(server.ask("revocations").unwrap(), json!({"revocations": [], "total": 0}));
}
