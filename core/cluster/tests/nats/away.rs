//! A broker that is not there: not yet, for a while, or again and again.

use super::*;

#[test]
fn a_broker_that_is_killed_under_load_loses_nothing() {
    const EACH: u64 = 60_000;
    let mut broker = Broker::start();
    let names = ["a", "b", "c", "d", "e"];
    let nodes = nodes(&broker, &names);
    let ears: Vec<_> = nodes.iter().map(|node| Ear::of(node)).collect();
    std::thread::scope(|scope| {
        for node in &nodes[..3] {
            scope.spawn(|| insist_numbers(node, 0..EACH));
        }
        for heard in [10_000, 60_000] {
            ears[4].wait_events(heard);
            broker.kill();
            // As long as a broker is away when it is started anew.
            std::thread::sleep(Duration::from_secs(2));
            broker.run();
        }
    });
    for (ear, me) in ears.iter().zip(names) {
        let others: Vec<_> = names[..3].iter().filter(|name| **name != me).copied().collect();
        assert_all(ear, &others, EACH);
    }
    wait_until("nothing waits", || nodes.iter().all(|node| node.status().backlog == 0));
}

#[test]
fn a_node_comes_up_without_its_broker() {
    let mut broker = Broker::away();
    let (first, second) = (start(&broker, "a"), start(&broker, "b"));
    let (of_first, of_second) = (Ear::of(&first), Ear::of(&second));
    assert_eq!(first.say("number", b"0"), Ok(0));
    assert_eq!(first.tell("b", "number", b"1"), Err(Error::NoSuchNode("b".into())));
    let line = format!("NATS broker {}: cannot connect: ", broker.url());
    wait_until("it says so", || logged().contains(&line));
    assert!(logged().contains("see that `nats-server -js` runs there"));
    // The event and the hello before it.
    assert_eq!(first.status().backlog, 2);
    broker.run();
    of_first.wait_change(&up("b"));
    of_second.wait_change(&up("a"));
    wait_until("it was sent", || first.status().backlog == 0);
    say_numbers(&first, 1..100);
    wait_number(&of_second, "a", 99);
    let (numbers, gaps) = check_stream(&of_second.heard(), "a");
    // The first may have been before the other node was there.
    assert!(numbers.ends_with(&Vec::from_iter(1..100)) && gaps == 0, "{numbers:?} {gaps}");
    assert!(logged().contains(&format!("NATS broker {}: connected", broker.url())));
}

#[test]
fn a_broker_that_is_away_for_long_costs_patience_only() {
    let mut broker = Broker::start();
    let nodes = nodes(&broker, &["a", "b"]);
    let (of_a, of_b) = (Ear::of(&nodes[0]), Ear::of(&nodes[1]));
    say_numbers(&nodes[0], 0..10);
    of_b.wait_events(10);
    broker.kill();
    let mut count = 10;
    let began = loop {
        let began = Instant::now();
        match nodes[0].say("number", count.to_string().as_bytes()) {
            Ok(_) => count += 1,
            Err(error) => {
                assert_eq!(error, Error::Busy);
                break began;
            }
        }
    };
    assert!(began.elapsed() >= SAY_TIMEOUT);
    assert!(count > 65_000, "{count}");
    of_a.wait_change(&down("b"));
    of_b.wait_change(&down("a"));
    assert_eq!(nodes[0].tell("b", "number", b""), Err(Error::NoSuchNode("b".into())));
    let status = nodes[0].status();
    assert_eq!((status.said, status.members[0].state), (count, MemberState::Down));
    broker.run();
    insist_numbers(&nodes[0], count..count + 100);
    assert_all(&of_b, &["a"], count + 100);
    assert_eq!(changes(&of_b.heard())[..3], [up("a"), down("a"), up("a")]);
    of_a.wait("b again", |heard| changes(heard).ends_with(&[up("b")]));
}

#[test]
fn a_node_that_reconnects_often_is_as_exact() {
    const EACH: u64 = 60_000;
    let mut broker = Broker::start();
    let names = ["a", "b"];
    let nodes = nodes(&broker, &names);
    let ears: Vec<_> = nodes.iter().map(|node| Ear::of(node)).collect();
    std::thread::scope(|scope| {
        for node in &nodes {
            scope.spawn(|| insist_numbers(node, 0..EACH));
        }
        for heard in (2_000..EACH as usize - 10_000).step_by(4_000) {
            ears[1].wait_events(heard);
            broker.kill();
            broker.run();
        }
    });
    assert_all(&ears[0], &["b"], EACH);
    assert_all(&ears[1], &["a"], EACH);
    assert!(!changes(&ears[1].heard()).iter().any(|change| matches!(change, Change::Gap { .. })));
}

#[test]
fn a_leader_of_three_servers_that_is_killed_under_load_loses_nothing() {
    const EACH: u64 = 10_000;
    let mut brokers = Broker::three();
    let (name, subjects) = ("ZEPH_zeph".to_owned(), vec!["zeph.events".to_owned()]);
    let config = jetstream::stream::Config { name, subjects, num_replicas: 3, ..Default::default() };
    let mut leader = None;
    // As soon as they have found one another.
    wait_until("the stream has a leader", || {
        let config = config.clone();
        let stream = admin(&brokers[0], |context| async move { context.get_or_create_stream(config).await });
        leader = stream.ok().and_then(|stream| stream.cached_info().cluster.as_ref()?.leader.clone());
        leader.is_some()
    });
    let urls: Vec<_> = brokers.iter().map(Broker::url).collect();
    let node =
        |name: &&str| Nats::start(Options { urls: urls.clone(), ..options(&brokers[0], name) }).unwrap();
    let names = ["a", "b", "c"];
    let nodes: Vec<_> = names.iter().map(node).collect();
    wait_until("all know all others", || nodes.iter().all(|node| up_count(node) == 2));
    let ears: Vec<_> = nodes.iter().map(|node| Ear::of(node)).collect();
    let leader = brokers.iter_mut().find(|broker| broker.name() == leader.as_deref()).unwrap();
    std::thread::scope(|scope| {
        for node in &nodes[..2] {
            scope.spawn(|| insist_numbers(node, 0..EACH));
        }
        ears[2].wait_events(2_000);
        leader.kill();
        // The other two go on without it, and later with it.
        ears[2].wait_events(10_000);
        leader.run();
    });
    assert_all(&ears[2], &["a", "b"], EACH);
    assert_all(&ears[1], &["a"], EACH);
    assert_all(&ears[0], &["b"], EACH);
}

#[test]
fn one_of_several_servers_is_enough() {
    let (away, broker) = (Broker::away(), Broker::start());
    let urls = vec![away.url(), broker.url()];
    let node = |name: &str| Nats::start(Options { urls: urls.clone(), ..options(&broker, name) }).unwrap();
    let nodes = [node("a"), node("b")];
    wait_until("all know all others", || nodes.iter().all(|node| up_count(node) == 1));
    assert_eq!(nodes[0].status().address, Some(format!("{},{}", away.url(), broker.url())));
}

#[test]
fn who_leaves_without_a_broker_does_not_wait_for_it() {
    let mut broker = Broker::start();
    let nodes = nodes(&broker, &["a", "b"]);
    broker.kill();
    nodes[0].say("event", b"").unwrap();
    let began = Instant::now();
    nodes[0].leave();
    assert!(began.elapsed() < Duration::from_millis(2900), "{:?}", began.elapsed());
    assert_eq!(nodes[0].say("event", b""), Err(Error::Closed));
}
