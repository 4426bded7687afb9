//! Who is there.

use super::*;

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
