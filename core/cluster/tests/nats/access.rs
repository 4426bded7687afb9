//! Brokers that ask who comes, or lack something.

use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

use super::*;

#[test]
fn credentials_of_the_url_are_used_and_never_shown() {
    let broker = Broker::with(&["--user", "somebody", "--pass", "p@ss-w0rd"]);
    let url = |secret: &str| broker.url().replace("nats://", &format!("nats://{secret}@"));
    let start = |node: &str, secret: &str| {
        let options = Options { urls: vec![url(secret)], ..options(&broker, node) };
        assert!(!format!("{options:?}").contains("w0rd"));
        Nats::start(options).unwrap()
    };
    let (first, second) = (start("a", "somebody:p%40ss-w0rd"), start("b", "somebody:p%40ss-w0rd"));
    let of_second = Ear::of(&second);
    of_second.wait_change(&up("a"));
    say_numbers(&first, 0..10);
    assert_all(&of_second, &["a"], 10);
    assert_eq!(first.status().address, Some(broker.url()));
    let stranger = start("c", "somebody:wr0ng-w0rd");
    let line = format!("NATS broker {}: cannot connect: authorization violation", broker.url());
    wait_until("it says so", || logged().contains(&line));
    assert_eq!(stranger.say("event", b""), Ok(0));
    assert_eq!(up_count(&stranger), 0);
    assert!(!logged().contains("w0rd"), "a password is in the log");
}

#[test]
fn a_token_of_the_url_is_used() {
    let broker = Broker::with(&["--auth", "t0ken"]);
    let url = broker.url().replace("nats://", "nats://t0ken@");
    let node =
        |name: &str| Nats::start(Options { urls: vec![url.clone()], ..options(&broker, name) }).unwrap();
    let nodes = [node("a"), node("b")];
    wait_until("all know all others", || nodes.iter().all(|node| up_count(node) == 1));
    assert!(!logged().contains("t0ken"), "a token is in the log");
}

#[test]
fn a_broker_that_takes_too_little_at_a_time_is_told_what_to_set() {
    let mut broker = Broker::away();
    let settings = broker.folder().join("settings");
    std::fs::write(&settings, "max_payload: 32768\n").unwrap();
    broker.set_arguments(&["-c", settings.to_str().unwrap()]);
    broker.run();
    let (first, second) = (start(&broker, "a"), start(&broker, "b"));
    let of_second = Ear::of(&second);
    let line = format!("NATS broker {}: it takes 32768 bytes at a time: set `max_payload`", broker.url());
    wait_until("it says so", || logged().contains(&line));
    broker.kill();
    std::fs::write(&settings, "max_payload: 131072\n").unwrap();
    broker.run();
    of_second.wait_change(&up("a"));
    first.say("large", &vec![7; 1_000_000]).unwrap();
    assert_eq!(of_second.wait_events(1)[0].payload, vec![7; 1_000_000]);
}

#[test]
fn a_broker_without_jetstream_is_told_what_it_lacks() {
    let mut broker = Broker::away();
    broker.run_without_jetstream();
    let node = start(&broker, "a");
    let line = format!("NATS broker {}: it gives no stream ZEPH_zeph: ", broker.url());
    wait_until("it says so", || logged().contains(&line));
    assert!(logged().contains("see that it runs with JetStream"));
    assert_eq!(node.say("event", b""), Ok(0));
}

/// What the documents say that a node must be allowed.
const RIGHTS: [&str; 4] = ["zeph.events", "zeph.alive", "_INBOX.>", "$JS.API.>"];

/// A token as `nsc` writes them.
fn jwt(issuer: &KeyPair, of: &KeyPair, claims: Value) -> String {
    let head = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let body =
        json!({"jti": "-", "iat": 0, "iss": issuer.public_key(), "sub": of.public_key(), "nats": claims});
    let signed = [head, body].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

/// A broker that lets in whoever an account vouches for; the account's key.
fn broker_of_an_account() -> (Broker, KeyPair) {
    let (operator, system, account) =
        (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
    let any = ["subs", "data", "payload", "imports", "exports", "conn", "leaf"];
    let stored = ["mem_storage", "disk_storage", "streams", "consumer"];
    let mut limits: Value = any.iter().chain(&stored).map(|name| (name.to_string(), json!(-1))).collect();
    limits["wildcards"] = json!(true);
    let of_operator = jwt(&operator, &operator, json!({"type": "operator", "version": 2}));
    let plain = json!({"type": "account", "version": 2});
    let of_system = jwt(&operator, &system, plain.clone());
    let mut limited = plain;
    limited["limits"] = limits;
    let of_account = jwt(&operator, &account, limited);
    let mut broker = Broker::away();
    let settings = broker.folder().join("settings");
    let [system, key] = [&system, &account].map(KeyPair::public_key);
    let text = format!(
        "operator: {of_operator}\nsystem_account: {system}\nresolver: MEMORY\n\
         resolver_preload: {{ {system}: {of_system}, {key}: {of_account} }}\n"
    );
    std::fs::write(&settings, text).unwrap();
    broker.set_arguments(&["-c", settings.to_str().unwrap()]);
    broker.run();
    (broker, account)
}

/// Writes a file with credentials of somebody new.
fn write_credentials(file: &Path, account: &KeyPair) -> String {
    let user = KeyPair::new_user();
    let allowed = json!({"allow": RIGHTS});
    let claims = json!({
        "type": "user", "version": 2, "pub": allowed, "sub": allowed, "subs": -1, "data": -1, "payload": -1
    });
    let (token, seed) = (jwt(account, &user, claims), user.seed().unwrap());
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    std::fs::write(file, text).unwrap();
    seed
}

#[test]
fn credentials_of_a_file_and_the_rights_of_the_documents_are_enough() {
    let (mut broker, account) = broker_of_an_account();
    let file = broker.folder().join("zeph.creds");
    let stranger = KeyPair::new_account();
    let mut seed = write_credentials(&file, &stranger);
    let start = |broker: &Broker, node: &str| {
        Nats::start(Options { credentials: Some(file.clone()), ..options(broker, node) }).unwrap()
    };
    let (first, second) = (start(&broker, "a"), start(&broker, "b"));
    let of_second = Ear::of(&second);
    let line = format!("NATS broker {}: cannot connect: authorization violation", broker.url());
    wait_until("it says so", || logged().contains(&line));
    // The file is read anew: nobody has to start again.
    for _ in 0..2 {
        assert!(!logged().contains(&seed), "a seed is in the log");
        seed = write_credentials(&file, &account);
        of_second.wait_change(&up("a"));
        broker.kill();
        of_second.wait_change(&down("a"));
        broker.run();
    }
    of_second.wait_change(&up("a"));
    say_numbers(&first, 0..10);
    first.say("large", &vec![7; 1_000_000]).unwrap();
    second.say("back", b"").unwrap();
    of_second.wait_events(11);
    assert!(!logged().contains("permissions violation"), "a right is missing");
}

fn openssl(folder: &Path, words: &str) {
    let mut command = Command::new("openssl");
    command.args(words.split_whitespace()).current_dir(folder).stdin(Stdio::null());
    let done = command.output().expect("openssl is missing; install it: apt-get install openssl");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn an_encrypted_broker_is_believed_when_somebody_known_has_signed_it() {
    let mut broker = Broker::away();
    let folder = broker.folder().to_path_buf();
    let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&folder, &format!("req -x509 {new_key} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority"));
    openssl(
        &folder,
        &format!(
            "req -x509 {new_key} -keyout broker.key -out broker.pem -days 2 -subj /CN=broker -CA ca.pem \
             -CAkey ca.key -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE"
        ),
    );
    let file = |name: &str| folder.join(name).to_str().unwrap().to_string();
    broker.set_arguments(&["--tls", "--tlscert", &file("broker.pem"), "--tlskey", &file("broker.key")]);
    broker.run();
    let url = broker.url().replace("nats://", "tls://");
    let start = |node: &str, authorities: Option<&str>| {
        let authorities = authorities.map(|name| folder.join(name));
        Nats::start(Options { urls: vec![url.clone()], authorities, ..options(&broker, node) }).unwrap()
    };
    let stranger = start("c", None);
    let line = format!("NATS broker {url}: cannot connect: ");
    wait_until("it says so", || {
        logged().lines().any(|said| said.contains(&line) && said.contains("ertificate"))
    });
    let (first, second) = (start("a", Some("ca.pem")), start("b", Some("ca.pem")));
    let of_second = Ear::of(&second);
    of_second.wait_change(&up("a"));
    say_numbers(&first, 0..10);
    assert_all(&of_second, &["a"], 10);
    assert_eq!(up_count(&stranger), 0);
}
