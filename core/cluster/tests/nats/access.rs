//! Brokers that ask who comes, or lack something.

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
