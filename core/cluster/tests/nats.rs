//! What a broker can do to the nodes around it: be away, die under load, lose what it stored.
#![cfg(feature = "nats")]

mod broker;
mod ear;

use std::io;
use std::sync::{LazyLock, Mutex, mpsc};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use broker::Broker;
use ear::{Ear, changes, check_stream, down, events, insist_numbers, say_numbers, up, wait_until};
use futures_util::TryStreamExt;
use zeph_cluster::nats::{Nats, Options};
use zeph_cluster::{Change, Engine, Error, MemberState, Profile, SAY_TIMEOUT};

/// What the engines of this process log.
static LOG: LazyLock<Mutex<Vec<u8>>> = LazyLock::new(|| {
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(|| ToLog)
        .with_max_level(tracing::Level::DEBUG)
        .init();
    Mutex::default()
});

struct ToLog;

impl io::Write for ToLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap().extend_from_slice(bytes);
        io::Write::write_all(&mut std::io::stderr(), bytes).unwrap();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn logged() -> String {
    String::from_utf8_lossy(&LOG.lock().unwrap()).into_owned()
}

fn options(broker: &Broker, node: &str) -> Options {
    LazyLock::force(&LOG);
    Options { profile: Profile::Fast, ..Options::new(node, broker.url()) }
}

fn start(broker: &Broker, node: &str) -> Nats {
    Nats::start(options(broker, node)).unwrap()
}

/// Nodes of these names, once each knows all others.
fn nodes(broker: &Broker, names: &[&str]) -> Vec<Nats> {
    let nodes: Vec<_> = names.iter().map(|name| start(broker, name)).collect();
    wait_until("all know all others", || nodes.iter().all(|node| up_count(node) == names.len() - 1));
    nodes
}

fn up_count(node: &Nats) -> usize {
    node.status().members.iter().filter(|member| member.state == MemberState::Up).count()
}

/// Does something with the broker that no node knows of.
fn admin<F: Future>(broker: &Broker, act: impl FnOnce(jetstream::Context) -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { act(jetstream::new(async_nats::connect(broker.url()).await.unwrap())).await })
}

/// Everything that was said, in order and once.
fn assert_all(ear: &Ear, from: &[&str], each: u64) {
    ear.wait_events(from.len() * each as usize);
    for node in from {
        let (numbers, gaps) = check_stream(&ear.heard(), node);
        assert!(numbers.iter().copied().eq(0..each), "{node}: {} of {each}", numbers.len());
        assert_eq!(gaps, 0, "{node}");
    }
}

/// The last of these numbers came from a node, in whatever state the rest is.
fn wait_number(ear: &Ear, node: &str, number: u64) {
    let is_it = |said: &zeph_cluster::Said| *said.node == *node && said.payload == number.to_string();
    let mut looked_at = 0;
    ear.wait(&format!("{number} of {node}"), |heard| {
        events(&heard[std::mem::replace(&mut looked_at, heard.len())..]).iter().any(is_it)
    });
}

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
fn consumers_that_somebody_removes_are_made_again() {
    const EACH: u64 = 40_000;
    let broker = Broker::start();
    let nodes = nodes(&broker, &["a", "b", "c"]);
    let ears: Vec<_> = nodes.iter().map(|node| Ear::of(node)).collect();
    let remove_all = || {
        admin(&broker, |context| async move {
            let stream = context.get_stream("ZEPH_zeph").await.unwrap();
            let names: Vec<_> = stream.consumer_names().try_collect().await.unwrap();
            for name in &names {
                // It may be gone already: a node makes another when it was slow.
                drop(stream.delete_consumer(name).await);
            }
            names.len()
        })
    };
    std::thread::scope(|scope| {
        scope.spawn(|| insist_numbers(&nodes[0], 0..EACH));
        for heard in [1_000, 10_000, 20_000] {
            ears[2].wait_events(heard);
            assert!(remove_all() >= 1);
        }
    });
    assert_all(&ears[1], &["a"], EACH);
    assert_all(&ears[2], &["a"], EACH);
    // And one that waits for nothing in particular.
    assert_eq!(remove_all(), 3);
    say_numbers(&nodes[0], EACH..EACH + 10);
    assert_all(&ears[1], &["a"], EACH + 10);
}

/// A node whose handlers do nothing until this is dropped.
fn stuck(node: &Nats) -> (mpsc::Sender<()>, Ear) {
    let (go_on, stuck) = mpsc::channel::<()>();
    let stuck = Mutex::new(stuck);
    (go_on, Ear::with(node, move |_| assert!(stuck.lock().unwrap().recv().is_err())))
}

#[test]
fn a_purged_stream_leaves_a_gap() {
    // More than a node takes before its handlers did anything.
    const COUNT: u64 = 30_000;
    let broker = Broker::start();
    let nodes = nodes(&broker, &["a", "b", "stuck"]);
    let of_b = Ear::of(&nodes[1]);
    let (go_on, slow) = stuck(&nodes[2]);
    insist_numbers(&nodes[0], 0..COUNT);
    assert_all(&of_b, &["a"], COUNT);
    admin(&broker, |context| async move {
        context.get_stream("ZEPH_zeph").await.unwrap().purge().await.unwrap();
    });
    drop(go_on);
    say_numbers(&nodes[0], COUNT..COUNT + 10);
    wait_number(&slow, "a", COUNT + 9);
    let (numbers, gaps) = check_stream(&slow.heard(), "a");
    assert!(gaps == 1 && numbers.len() < COUNT as usize, "{gaps} {}", numbers.len());
    assert!(numbers.ends_with(&Vec::from_iter(COUNT..COUNT + 10)));
    let member = |node: &Nats| node.status().members.into_iter().find(|member| member.node == "a").unwrap();
    assert_eq!(member(&nodes[2]).incoming.gaps, 1);
    // Who had it all misses nothing.
    assert_all(&of_b, &["a"], COUNT + 10);
}

#[test]
fn who_is_slower_than_the_stream_is_long_gets_a_gap() {
    const COUNT: u64 = 30_000;
    let broker = Broker::start();
    admin(&broker, |context| async move {
        let (name, subjects) = ("ZEPH_zeph".to_owned(), vec!["zeph.events".to_owned()]);
        let config = jetstream::stream::Config { name, subjects, max_messages: 1000, ..Default::default() };
        context.create_stream(config).await.unwrap();
    });
    let nodes = nodes(&broker, &["a", "b", "stuck"]);
    assert!(logged().contains(&format!("NATS broker {}: stream ZEPH_zeph: ", broker.url())));
    assert!(logged().contains("max_msgs is 1000, not -1"));
    let of_b = Ear::of(&nodes[1]);
    let (go_on, slow) = stuck(&nodes[2]);
    for number in 0..COUNT {
        insist_numbers(&nodes[0], number..number + 1);
        if number % 200 == 199 {
            // Not faster than the others read.
            of_b.wait_events(number as usize + 1);
        }
    }
    assert_all(&of_b, &["a"], COUNT);
    drop(go_on);
    wait_number(&slow, "a", COUNT - 1);
    let (numbers, gaps) = check_stream(&slow.heard(), "a");
    assert!(gaps >= 1 && numbers.len() < COUNT as usize, "{gaps} {}", numbers.len());
}

/// What was sent behind a refused event is stored before it.
#[test]
fn an_event_that_the_broker_refuses_for_a_while_keeps_its_place() {
    let broker = Broker::start();
    let (name, subjects) = ("ZEPH_zeph".to_owned(), vec!["zeph.events".to_owned()]);
    let config = jetstream::stream::Config { name, subjects, max_message_size: 1000, ..Default::default() };
    let small = config.clone();
    admin(&broker, |context| async move { drop(context.create_stream(small).await.unwrap()) });
    let nodes = nodes(&broker, &["a", "b"]);
    let of_b = Ear::of(&nodes[1]);
    let say = |event, size| assert_eq!(nodes[0].say(event, &vec![b'x'; size]), Ok(1));
    say("first", 10);
    of_b.wait_events(1);
    for _ in 0..50 {
        say("before", 10);
    }
    say("large", 2000);
    for _ in 0..50 {
        say("after", 10);
    }
    let line = format!("NATS broker {}: it does not store an event: ", broker.url());
    wait_until("it says so", || logged().contains(&line));
    admin(&broker, |context| async move {
        let config = jetstream::stream::Config { max_message_size: -1, ..config };
        context.update_stream(config).await.unwrap();
    });
    let heard: Vec<_> = of_b.wait_events(102).iter().map(|said| said.event().to_owned()).collect();
    let expected = [&["first"][..], &["before"; 50], &["large"], &["after"; 50]].concat();
    assert_eq!(heard, expected);
    assert_eq!(changes(&of_b.heard()), [up("a")]);
}

#[test]
fn a_removed_stream_is_made_again() {
    const COUNT: u64 = 30_000;
    let broker = Broker::start();
    let nodes = nodes(&broker, &["a", "b", "c"]);
    let ears: Vec<_> = nodes.iter().map(|node| Ear::of(node)).collect();
    std::thread::scope(|scope| {
        for node in &nodes[..2] {
            scope.spawn(|| insist_numbers(node, 0..COUNT));
        }
        ears[2].wait_events(5_000);
        admin(&broker, |context| async move {
            context.delete_stream("ZEPH_zeph").await.unwrap();
        });
    });
    for (ear, from) in [(&ears[1], "a"), (&ears[2], "a"), (&ears[2], "b")] {
        wait_number(ear, from, COUNT - 1);
        check_stream(&ear.heard(), from);
    }
}

#[test]
fn a_broker_that_lost_everything_goes_on() {
    let mut broker = Broker::start();
    let nodes = nodes(&broker, &["a", "b"]);
    let of_b = Ear::of(&nodes[1]);
    say_numbers(&nodes[0], 0..1000);
    assert_all(&of_b, &["a"], 1000);
    broker.kill();
    broker.forget();
    say_numbers(&nodes[0], 1000..1100);
    broker.run();
    assert_all(&of_b, &["a"], 1100);
    say_numbers(&nodes[0], 1100..1200);
    assert_all(&of_b, &["a"], 1200);
    assert!(logged().contains(&format!("NATS broker {}: it has lost the stream", broker.url())));
}

/// As after a loss of power: what it stored last is gone, and its places are given to other events.
#[test]
fn a_broker_that_lost_the_last_events_goes_on() {
    // Nothing, less than was lost, more.
    for others in [0, 100, 1000] {
        let mut broker = Broker::start();
        let nodes = nodes(&broker, &["a", "b", "c"]);
        let ears = [Ear::of(&nodes[1]), Ear::of(&nodes[2])];
        say_numbers(&nodes[0], 0..1000);
        ears.iter().for_each(|ear| assert_all(ear, &["a"], 1000));
        broker.kill();
        broker.keep();
        broker.run();
        say_numbers(&nodes[0], 1000..1500);
        ears.iter().for_each(|ear| assert_all(ear, &["a"], 1500));
        wait_until("all are stored", || nodes[0].status().backlog == 0);
        broker.kill();
        broker.restore();
        broker.elsewhere(|broker| {
            admin(broker, |context| async move {
                for number in 0..others {
                    let payload = format!("something else {number}");
                    context.publish("zeph.events", payload.into()).await.unwrap().await.unwrap();
                }
            });
        });
        say_numbers(&nodes[0], 1500..1600);
        broker.run();
        ears.iter().for_each(|ear| assert_all(ear, &["a"], 1600));
        wait_until("all is read", || nodes.iter().all(|node| node.status().refused == others));
        let line = format!("NATS broker {}: it has lost the stream", broker.url());

        // The two that had read it all have noticed. The first kill may have had the same effect: a broker
        // delivers before it has stored.
        assert!(logged().matches(&line).count() >= 2, "{others}");
    }
}

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
fn one_of_several_servers_is_enough() {
    let (away, broker) = (Broker::away(), Broker::start());
    let urls = vec![away.url(), broker.url()];
    let node = |name: &str| Nats::start(Options { urls: urls.clone(), ..options(&broker, name) }).unwrap();
    let nodes = [node("a"), node("b")];
    wait_until("all know all others", || nodes.iter().all(|node| up_count(node) == 1));
    assert_eq!(nodes[0].status().address, Some(format!("{},{}", away.url(), broker.url())));
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
        tracing::warn!("KILL");
        // The other two go on without it, and later with it.
        ears[2].wait_events(10_000);
        leader.run();
        tracing::warn!("RUN");
    });
    assert_all(&ears[2], &["a", "b"], EACH);
    assert_all(&ears[1], &["a"], EACH);
    assert_all(&ears[0], &["b"], EACH);
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

#[test]
fn two_nodes_of_one_name_are_told_apart() {
    let broker = Broker::start();
    let (witness, first, second) = (start(&broker, "w"), start(&broker, "same-a"), start(&broker, "same-a"));
    wait_until("it says so", || {
        let lines = logged();
        // Each of the two, and the third that sees both.
        lines.matches("two nodes of the cluster are called `same-a`").count() >= 3
    });
    assert!(logged().contains("`[cluster] node`"));
    assert_eq!(up_count(&witness), 1);
    assert_eq!((up_count(&first), up_count(&second)), (1, 1));
}

#[test]
fn a_node_that_falls_silent_is_down_and_ends_its_threads() {
    let broker = Broker::start();
    let mut nodes = nodes(&broker, &["a", "silent"]);
    let ear = Ear::of(&nodes[0]);
    say_numbers(&nodes[1], 0..10);
    ear.wait_events(10);
    let threads = || {
        let names = std::fs::read_dir("/proc/self/task").unwrap();
        // One that ends while it is read has no name any more.
        let names = names.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.ends_with("-silent\n")).count()
    };
    assert_eq!(threads(), 2);
    let began = Instant::now();
    // As if it had been killed: it says no farewell.
    drop(nodes.pop());
    wait_until("its threads have ended", || threads() == 0);
    let heard = ear.wait_change(&down("silent"));
    let took = began.elapsed();
    assert!((Duration::from_millis(1500)..Duration::from_secs(10)).contains(&took), "{took:?}");
    assert_eq!(changes(&heard), [up("silent"), down("silent")]);
    assert_eq!(nodes[0].status().members[0].state, MemberState::Down);
}

#[test]
fn a_node_that_is_started_again_at_once_is_down_and_up() {
    let broker = Broker::start();
    // A silence would take twice as long.
    let patient = Options { profile: Profile::Lan, ..options(&broker, "a") };
    let (first, second) = (Nats::start(patient).unwrap(), start(&broker, "b"));
    wait_until("both know the other", || up_count(&first) + up_count(&second) == 2);
    let ear = Ear::of(&first);
    say_numbers(&second, 0..1000);
    ear.wait_events(1000);
    drop(second);
    let began = Instant::now();
    let again = start(&broker, "b");
    say_numbers(&again, 0..1000);
    let heard = ear.wait("the second life", |heard| events(heard).len() == 2000);
    assert!(began.elapsed() < Duration::from_millis(3500), "{:?}", began.elapsed());
    assert_eq!(changes(&heard), [up("b"), down("b"), up("b")]);
    assert_eq!(check_stream(&heard, "b"), (Vec::from_iter((0..1000).chain(0..1000)), 0));
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

#[test]
fn who_comes_later_hears_what_is_said_from_then_on() {
    let broker = Broker::start();
    let mut nodes = nodes(&broker, &["a", "b"]);
    let of_b = Ear::of(&nodes[1]);
    say_numbers(&nodes[0], 0..100);
    of_b.wait_events(100);
    nodes.push(start(&broker, "late"));
    let late = Ear::of(&nodes[2]);
    wait_until("a knows it", || up_count(&nodes[0]) == 2);
    say_numbers(&nodes[0], 100..200);
    wait_number(&late, "a", 199);
    assert_eq!(check_stream(&late.heard(), "a"), (Vec::from_iter(100..200), 0));
}

#[test]
fn clusters_of_other_names_do_not_see_one_another() {
    let broker = Broker::start();
    let other = |node: &str| Options { cluster: "other".into(), ..options(&broker, node) };
    let (first, second) = (start(&broker, "a"), start(&broker, "b"));
    let (third, fourth) = (Nats::start(other("a")).unwrap(), Nats::start(other("c")).unwrap());
    wait_until("each knows one", || {
        [&first, &second, &third, &fourth].iter().all(|node| up_count(node) == 1)
    });
    let (of_second, of_fourth) = (Ear::of(&second), Ear::of(&fourth));
    first.say("number", b"0").unwrap();
    third.say("number", b"1").unwrap();
    assert_eq!(of_second.wait_events(1)[0].payload, "0");
    assert_eq!(of_fourth.wait_events(1)[0].payload, "1");
    assert_eq!(second.status().members.len(), 1);
}

#[test]
fn nonsense_of_strangers_is_counted_and_harms_nobody() {
    let broker = Broker::start();
    let nodes = nodes(&broker, &["a", "b"]);
    let of_b = Ear::of(&nodes[1]);
    say_numbers(&nodes[0], 0..10);
    admin(&broker, |context| async move {
        for nonsense in [&b""[..], b"\x01", &[0xff; 100], b"\x01\x01aaaaaaaabbbbbbbb\x01z\x00\x01ep"] {
            context.publish("zeph.events", nonsense.into()).await.unwrap().await.unwrap();
            context.client().publish("zeph.alive", nonsense.into()).await.unwrap();
        }
        context.client().flush().await.unwrap();
    });
    say_numbers(&nodes[0], 10..20);
    // The last is no nonsense: a stranger that knows the format is a node.
    of_b.wait_change(&up("z"));
    wait_number(&of_b, "a", 19);
    assert_eq!(check_stream(&of_b.heard(), "a"), (Vec::from_iter(0..20), 0));
    wait_until("all of it is counted", || nodes[1].status().refused == 7);
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
