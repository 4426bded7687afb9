//! Users of a Django site, a real one: whoever has logged in there is known here.

mod postgres;
mod site;

use std::time::{SystemTime, UNIX_EPOCH};

use postgres::Postgres;
use serde_json::{Value, json};
use site::{SECRET, Site};
use zephserver_testkit::{Code, Error, TestServer};

use crate::client::{Client, EDGE, SETTINGS};

const SESSION: &str = "session_django/Session";
/// The same after the site's key was changed: it knows the key in use until then as a fallback.
const ROTATED: &str = "session_django/Session@rotated";

/// Two servers with the users of one site.
struct Servers {
    /// Sessions come by the cookie.
    by_cookie: TestServer,
    /// Sessions come in the messages.
    by_message: TestServer,
}

impl Servers {
    fn start(site: &Site) -> Self {
        let ring = [SESSION, "room/Room", "tasks/Tasks", "router/Router", EDGE];
        let server = |services: &[&str], same_domain: bool, more: &str| {
            let names = format!("MY_SESSION_HANDLER = \"{SESSION}\"\nSAME_DOMAIN = {same_domain}");
            let server = TestServer::with(services).settings(&names).settings(SETTINGS);
            server.settings(&site.settings()).settings(more).start()
        };
        let new_key = site.secret_file("new_key", "the site has another key now");
        let rotated = format!(
            "[\"session_django@rotated\"]\nsecret_key_file = \"{new_key}\"\nsecret_key_fallbacks = [\"{SECRET}\"]"
        );
        Self {
            by_cookie: server(&ring, true, ""),
            by_message: server(&[&ring[..], &[ROTATED][..]].concat(), false, &rotated),
        }
    }

    fn by_cookie(&self, session: &str) -> Result<Value, Error> {
        who(&self.by_cookie, SESSION, Some(session), None)
    }

    fn by_message(&self, session: &str) -> Result<Value, Error> {
        who(&self.by_message, SESSION, None, Some(session))
    }

    /// Whoever has this session is anonymous, however it comes.
    fn is_anonymous(&self, session: &str) {
        assert_eq!(self.by_cookie(session), Ok(Value::Null));
        assert_eq!(self.by_message(session), Ok(Value::Null));
    }

    /// This session is none: a guest by the cookie, an error in a message.
    fn is_refused(&self, session: &str, why: &str) {
        assert_eq!(self.by_cookie(session), Ok(Value::Null));
        let error = self.by_message(session).unwrap_err();
        assert_eq!(error.code, Code::Refused);
        assert!(error.text.contains(why) && error.text.contains("log in again"), "{error}");
    }
}

/// What a service says of a peer with this cookie that sends a message with this `session_id`.
fn who(
    server: &TestServer,
    service: &str,
    cookie: Option<&str>,
    session_id: Option<&str>,
) -> Result<Value, Error> {
    let headers: Vec<_> =
        cookie.iter().map(|cookie| ["cookie".to_string(), format!("sessionid={cookie}")]).collect();
    let question = json!({
        "peer": {"cid": 1, "address": "127.0.0.1:1", "headers": headers},
        "message": {"room": "lobby", "session_id": session_id},
    });
    server.call(service, "session.get_user_session/1", &question.to_string())
}

/// Another last letter.
fn forged(session: &str) -> String {
    let (rest, last) = session.split_at(session.len() - 1);
    format!("{rest}{}", if last == "a" { 'b' } else { 'a' })
}

/// Joins a room, and sees who is there.
fn join(server: &TestServer, cookie: Option<&str>, session_id: Option<&str>, names: &[&str]) -> Client {
    let cookie = cookie.map(|cookie| format!("sessionid={cookie}"));
    let headers: Vec<_> = cookie.iter().map(|cookie| ("cookie", cookie.as_str())).collect();
    let mut client = Client::connect_with(server, "/ws", &headers).unwrap();
    client.send(json!({"room": "lobby", "session_id": session_id}));
    client.until(&format!("the list {names:?}"), |frame| {
        frame["msgtype"] == "user_list" && frame["data"] == json!(names)
    });
    client
}

/// All that may become of a session of a site.
fn sessions_are_those_of(site: &Site) {
    let servers = Servers::start(site);
    let ann = site.login("ann");

    let identity = servers.by_cookie(&ann).unwrap();
    assert_eq!(identity["username"], "ann");
    assert!(identity["id"].is_string(), "{identity}");
    assert_eq!(servers.by_message(&ann), Ok(identity.clone()));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let left = identity["expires"].as_u64().unwrap() - now;
    assert!((1_209_000..=1_209_600).contains(&left), "two weeks: {left}");
    assert_eq!(who(&servers.by_message, ROTATED, None, Some(&ann)), Ok(identity));

    // Each looks at its own way only.
    assert_eq!(who(&servers.by_cookie, SESSION, None, Some(&ann)), Ok(Value::Null));
    assert_eq!(who(&servers.by_message, SESSION, Some(&ann), None), Ok(Value::Null));

    let _ann = join(&servers.by_cookie, Some(&ann), None, &["ann"]);
    join(&servers.by_cookie, None, None, &["ann"]);
    join(&servers.by_cookie, Some(&forged(&ann)), None, &["ann"]);
    let bob = site.login("bob");
    join(&servers.by_cookie, Some(&bob), None, &["ann", "bob"]);
    let _ann = join(&servers.by_message, None, Some(&ann), &["ann"]);
    let mut forger = join(&servers.by_message, None, None, &["ann"]);
    forger.send(json!({"room": "lobby", "session_id": forged(&ann), "id": 1}));
    let error = forger.until("an error", |frame| frame["msgtype"] == "error");
    assert_eq!((&error["code"], &error["id"]), (&json!("refused"), &json!(1)));

    // Where to go instead is said.
    let revoke = servers.by_cookie.command(&["revoke", "1"]);
    assert_eq!(revoke.code, Some(2), "{revoke:?}");
    assert!(revoke.stderr.contains("changepassword") && revoke.stderr.contains("kick"), "{revoke:?}");

    servers.is_anonymous(&site.ask("visit", "", "").session);
    let why = if site.keeps_rows() { "no such session" } else { "wrong signature" };
    servers.is_refused(&forged(&ann), why);
    servers.is_refused("abcdefgh", why);

    // We are asked before Django, which throws such sessions away when it sees them.
    site.ask("password", &bob, "password=another");
    servers.is_anonymous(&bob);
    assert_eq!(site.who(&bob), "");
    let carol = site.login("carol");
    site.ask("deactivate", &carol, "");
    servers.is_anonymous(&carol);
    assert_eq!(site.who(&carol), "");

    assert_eq!(site.who(&ann), "ann", "the others' troubles are not hers");
    if site.keeps_rows() {
        let dave = site.login("dave");
        site.ask("expire", &dave, "");
        servers.is_refused(&dave, "expired");
        site.ask("logout", &ann, "");
        servers.is_refused(&ann, "no such session");
    }
    for server in [&servers.by_cookie, &servers.by_message] {
        assert!(!server.log().contains(SECRET) && !server.log().contains(&bob), "{}", server.log());
    }
}

#[test]
fn sessions_in_sqlite() {
    sessions_are_those_of(&Site::start("db", None));
}

#[test]
fn sessions_in_signed_cookies() {
    sessions_are_those_of(&Site::start("signed_cookies", None));
}

#[test]
fn sessions_in_postgresql_that_goes_and_comes_back() {
    let mut postgres = Postgres::create();
    sessions_are_those_of(&Site::start("db", Some(&postgres)));
    let site = Site::start("signed_cookies", Some(&postgres));
    sessions_are_those_of(&site);

    let mut servers = Servers::start(&site);
    let ann = site.login("ann");
    let is_ann = |servers: &Servers| assert_eq!(servers.by_cookie(&ann).unwrap()["username"], "ann");
    is_ann(&servers);
    postgres.stop();
    postgres.start();
    // Of each worker the connection is dead, and nobody hears of it.
    (0..8).for_each(|_| is_ann(&servers));

    postgres.stop();
    let error = servers.by_cookie(&ann).unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert_eq!(error.text, "the database of users does not answer; try again later");
    servers.is_refused(&forged(&ann), "wrong signature");
    servers.by_cookie.wait_log("the database of users does not answer: ");
    let log = servers.by_cookie.log();
    assert!(!log.contains(postgres::PASSWORD) && !log.contains(&ann), "{log}");
    postgres.start();
    is_ann(&servers);
}
