//! A stream that loses something, and those who read it.

use super::*;

/// A node whose handlers do nothing until this is dropped.
fn stuck(node: &Nats) -> (mpsc::Sender<()>, Ear) {
    let (go_on, stuck) = mpsc::channel::<()>();
    let stuck = Mutex::new(stuck);
    (go_on, Ear::with(node, move |_| assert!(stuck.lock().unwrap().recv().is_err())))
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
