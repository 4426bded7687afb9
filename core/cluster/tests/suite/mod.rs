//! What every engine does alike. Each function makes nodes of a cluster of its own; `suite!` makes tests of them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use zeph_cluster::{Change, Engine, Error, LARGEST_EVENT, LONGEST_NAME, MemberState, SAY_TIMEOUT, Said};

use crate::ear::{
    DEADLINE, Ear, Heard, changes, check_stream, down, events, insist_numbers, say_numbers, up, wait_until,
};

/// Whether the nodes of a cluster reach one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Others,
    /// Each is alone.
    Nobody,
}

/// A cluster of its own, while it lives.
pub trait Cluster {
    fn reach(&self) -> Reach;

    /// A further node of it.
    fn node(&self, name: &str) -> Box<dyn Engine>;
}

/// Makes a test of each function of the suite, in a module: `suite!(mesh, Mesh::new)`.
#[macro_export]
macro_rules! suite {
    ($engine:ident, $cluster:expr) => {
        $crate::suite!($engine, $cluster,
            alone_every_say_succeeds_and_reaches_nobody
            bad_names_and_too_large_events_are_refused
            say_reaches_all_others_in_order_and_never_the_sayer
            many_senders_at_once_are_each_in_order
            tell_reaches_one_in_order_with_say
            tell_to_a_stranger_is_refused
            a_dropped_subscription_ends
            watch_tells_who_is_up
            a_later_watcher_is_told_who_is_up
            a_slow_handler_holds_up_no_other_node
            the_largest_event_passes
            a_handler_may_say_itself
            a_node_that_comes_again_has_a_new_life
            who_has_left_says_and_hears_nothing
            status_names_all_members
        );
    };
    ($engine:ident, $cluster:expr, $($name:ident)*) => {
        mod $engine {
            use super::*;
            $(
                #[test]
                fn $name() {
                    $crate::suite::$name(&$cluster);
                }
            )*
        }
    };
}

type Node = Box<dyn Engine>;

/// Nodes of these names, once each knows all others.
fn nodes(cluster: &dyn Cluster, names: &[&str]) -> Vec<Node> {
    let nodes: Vec<Node> = names.iter().map(|name| cluster.node(name)).collect();
    let others = match cluster.reach() {
        Reach::Others => names.len() - 1,
        Reach::Nobody => 0,
    };
    wait_until("all know all others", || nodes.iter().all(|node| up_count(&**node) == others));
    nodes
}

fn up_count(node: &dyn Engine) -> usize {
    node.status().members.iter().filter(|member| member.state == MemberState::Up).count()
}

/// How much of what others hear comes, as far as anything does.
fn reached(cluster: &dyn Cluster, count: usize) -> usize {
    match cluster.reach() {
        Reach::Others => count,
        Reach::Nobody => 0,
    }
}

pub fn alone_every_say_succeeds_and_reaches_nobody(cluster: &dyn Cluster) {
    let node = cluster.node("a");
    let ear = Ear::of(&*node);
    for _ in 0..1000 {
        assert_eq!(node.say("event", b"payload"), Ok(0));
    }
    assert_eq!((node.node(), node.status().said), ("a", 1000));
    assert_eq!((node.status().node.as_str(), node.status().members.len()), ("a", 0));
    node.leave();
    assert_eq!(ear.heard(), []);
}

pub fn bad_names_and_too_large_events_are_refused(cluster: &dyn Cluster) {
    let nodes = nodes(cluster, &["a", "b"]);
    let ear = Ear::of(&*nodes[1]);
    let long = "n".repeat(LONGEST_NAME + 1);
    let large = vec![0; LARGEST_EVENT];
    assert_eq!(nodes[0].say("", b""), Err(Error::BadName(0)));
    assert_eq!(nodes[0].say(&long, b""), Err(Error::BadName(LONGEST_NAME + 1)));
    assert_eq!(nodes[0].say("e", &large), Err(Error::TooLarge(LARGEST_EVENT + 1)));
    assert_eq!(nodes[0].tell("b", "", b""), Err(Error::BadName(0)));
    assert_eq!(nodes[0].tell("b", &long, b""), Err(Error::BadName(LONGEST_NAME + 1)));
    assert_eq!(nodes[0].tell("b", "e", &large), Err(Error::TooLarge(LARGEST_EVENT + 1)));
    assert_eq!(nodes[0].status().said, 0);
    // Neither did any of it take effect: the next one is the first that comes.
    assert_eq!(nodes[0].say(&long[1..], b"0"), Ok(reached(cluster, 1)));
    let heard = ear.wait_events(reached(cluster, 1));
    assert!(heard.iter().all(|said| said.event() == &long[1..] && said.payload == "0"));
}

pub fn say_reaches_all_others_in_order_and_never_the_sayer(cluster: &dyn Cluster) {
    let nodes = nodes(cluster, &["a", "b", "c", "d"]);
    let ears: Vec<_> = nodes.iter().map(|node| Ear::of(&**node)).collect();
    say_numbers(&*nodes[0], 0..10_000);
    for ear in &ears[1..] {
        let events = ear.wait_events(reached(cluster, 10_000));
        assert_eq!(events.len(), reached(cluster, 10_000));
        assert_eq!(check_stream(&ear.heard(), "a").0, Vec::from_iter(0..reached(cluster, 10_000) as u64));
        assert!(events.iter().all(|said| said.event() == "number" && *said.node == *"a"));
        assert!(events.iter().all(|said| said.boot == events[0].boot));
    }
    nodes[0].leave();
    assert_eq!(events(&ears[0].heard()), []);
}

pub fn many_senders_at_once_are_each_in_order(cluster: &dyn Cluster) {
    const EACH: u64 = 3_000;
    let names = ["a", "b", "c", "d"];
    let nodes = nodes(cluster, &names);
    let ears: Vec<_> = nodes.iter().map(|node| Ear::of(&**node)).collect();
    std::thread::scope(|scope| {
        for node in &nodes {
            scope.spawn(|| say_numbers(&**node, 0..EACH));
        }
    });
    for (ear, me) in ears.iter().zip(names) {
        let all = reached(cluster, 3 * EACH as usize);
        assert_eq!(ear.wait_events(all).len(), all);
        for other in names.iter().filter(|other| **other != me) {
            let (numbers, gaps) = check_stream(&ear.heard(), other);
            assert_eq!((numbers, gaps), (Vec::from_iter(0..reached(cluster, EACH as usize) as u64), 0));
        }
    }
}

pub fn tell_reaches_one_in_order_with_say(cluster: &dyn Cluster) {
    let nodes = nodes(cluster, &["a", "b", "c"]);
    let ears: Vec<_> = nodes.iter().map(|node| Ear::of(&**node)).collect();
    let told = match cluster.reach() {
        Reach::Others => Ok(()),
        Reach::Nobody => Err(Error::NoSuchNode("b".into())),
    };
    for number in 0..1000 {
        let payload = number.to_string();
        match number % 2 {
            0 => assert_eq!(nodes[0].say("said", payload.as_bytes()), Ok(reached(cluster, 2))),
            _ => assert_eq!(nodes[0].tell("b", "told", payload.as_bytes()), told),
        }
    }
    ears[1].wait_events(reached(cluster, 1000));
    assert_eq!(check_stream(&ears[1].heard(), "a").0, Vec::from_iter(0..reached(cluster, 1000) as u64));
    // The last one to all shows that nothing more is on its way.
    nodes[0].say("end", b"1000").unwrap();
    let heard = ears[2].wait_events(reached(cluster, 501));
    assert!(heard.iter().all(|said| said.event() != "told"), "c was told something");
    assert_eq!(heard.len(), reached(cluster, 501));
    assert!(heard.is_sorted_by_key(|said| said.seq));
    assert!(changes(&ears[2].heard()).iter().all(|change| !matches!(change, Change::Gap { .. })));
}

pub fn tell_to_a_stranger_is_refused(cluster: &dyn Cluster) {
    let nodes = nodes(cluster, &["a", "b"]);
    let refused = nodes[0].tell("nobody", "event", b"").unwrap_err();
    assert_eq!(refused, Error::NoSuchNode("nobody".into()));
    assert!(refused.to_string().contains("zephserver cluster"), "{refused}");
    // Oneself is no other node.
    assert_eq!(nodes[0].tell("a", "event", b""), Err(Error::NoSuchNode("a".into())));
    // Neither is one that has left.
    let ear = Ear::of(&*nodes[0]);
    nodes[1].leave();
    if cluster.reach() == Reach::Others {
        ear.wait_change(&down("b"));
    }
    assert_eq!(nodes[0].tell("b", "event", b""), Err(Error::NoSuchNode("b".into())));
    assert_eq!(nodes[0].status().said, 0);
}

pub fn a_dropped_subscription_ends(cluster: &dyn Cluster) {
    let nodes = nodes(cluster, &["a", "b"]);
    let ear = Ear::of(&*nodes[1]);
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let handler = Arc::new(move |said: &Said| {
        assert_eq!(said.event(), "one");
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let (first, second) = (nodes[1].subscribe("one", handler.clone()), nodes[1].subscribe("one", handler));
    let say_both = || {
        for event in ["one", "other"] {
            assert_eq!(nodes[0].say(event, b""), Ok(reached(cluster, 1)));
        }
    };
    say_both();
    ear.wait_events(reached(cluster, 2));
    // Handlers of a name come before those of everything: this one is through.
    assert_eq!(count.load(Ordering::SeqCst), reached(cluster, 2));
    drop(first);
    say_both();
    ear.wait_events(reached(cluster, 4));
    assert_eq!(count.load(Ordering::SeqCst), reached(cluster, 3));
    drop(second);
    say_both();
    ear.wait_events(reached(cluster, 6));
    assert_eq!(count.load(Ordering::SeqCst), reached(cluster, 3));
}

pub fn watch_tells_who_is_up(cluster: &dyn Cluster) {
    let first = cluster.node("a");
    let ear = Ear::of(&*first);
    let second = cluster.node("b");
    let third = cluster.node("c");
    let others = Ear::of(&*third);
    if cluster.reach() == Reach::Others {
        ear.wait_change(&up("b"));
        ear.wait_change(&up("c"));
        others.wait_change(&up("b"));
        wait_until("b knows both", || up_count(&*second) == 2);
    }
    assert_eq!(second.say("last", b"0"), Ok(reached(cluster, 2)));
    second.leave();
    if cluster.reach() == Reach::Nobody {
        assert_eq!((ear.heard(), others.heard()), (vec![], vec![]));
        return;
    }
    let heard = ear.wait_change(&down("b"));
    others.wait_change(&down("b"));
    let of_b = |one: &&Heard| match one {
        Heard::Said(said) => *said.node == *"b",
        Heard::Change(change) => *change == up("b") || *change == down("b"),
    };
    // What it said last came before it was down.
    let last = heard.iter().filter(of_b).map(|one| matches!(one, Heard::Said(_))).collect::<Vec<_>>();
    assert_eq!(last, [false, true, false]);
    assert_eq!(up_count(&*first), 1);
    assert!(!changes(&heard).contains(&down("c")));
}

pub fn a_later_watcher_is_told_who_is_up(cluster: &dyn Cluster) {
    let nodes = nodes(cluster, &["a", "b", "c"]);
    let ear = Ear::of(&*nodes[0]);
    let heard = ear.wait("who is up", |heard| heard.len() >= reached(cluster, 2));
    let mut names: Vec<_> = changes(&heard).into_iter().map(|change| format!("{change:?}")).collect();
    names.sort();
    assert_eq!(names, ["Up(\"b\")", "Up(\"c\")"][..reached(cluster, 2)]);
}

/// More events than a node takes, holds back and keeps for one that is stuck.
pub fn a_slow_handler_holds_up_no_other_node(cluster: &dyn Cluster) {
    const COUNT: u64 = 90_000;
    let nodes = nodes(cluster, &["a", "b", "stuck"]);
    let (go_on, stuck) = mpsc::channel::<()>();
    let stuck = Mutex::new(stuck);
    // Until the other end is dropped.
    let slow = Ear::with(&*nodes[2], move |_| assert!(stuck.lock().unwrap().recv().is_err()));
    let (of_a, of_b) = (Ear::of(&*nodes[0]), Ear::of(&*nodes[1]));
    let began = std::time::Instant::now();
    insist_numbers(&*nodes[0], 0..COUNT);
    assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
    let all = Vec::from_iter(0..reached(cluster, COUNT as usize) as u64);
    of_b.wait_events(all.len());
    assert_eq!(check_stream(&of_b.heard(), "a"), (all.clone(), 0));
    for (ear, other) in [(&of_a, "b"), (&of_b, "a")] {
        assert!(!changes(&ear.heard()).contains(&down(other)), "{other} was taken for gone");
    }
    drop(go_on);
    // All that comes, and whatever does not is in a gap.
    insist_numbers(&*nodes[0], COUNT..COUNT + 1);
    let mut looked_at = 0;
    let heard = slow.wait("the last event", |heard| {
        let mut new = heard[std::mem::replace(&mut looked_at, heard.len())..].iter();
        let is_last = |one: &Heard| matches!(one, Heard::Said(said) if said.payload == COUNT.to_string());
        cluster.reach() == Reach::Nobody || new.any(is_last)
    });
    let (numbers, gaps) = check_stream(&heard, "a");
    assert!(gaps > 0 || numbers.len() == reached(cluster, COUNT as usize + 1), "{} {gaps}", numbers.len());
}

pub fn the_largest_event_passes(cluster: &dyn Cluster) {
    let nodes = nodes(cluster, &["a", "b"]);
    let ear = Ear::of(&*nodes[1]);
    let event = "e".repeat(LONGEST_NAME);
    let payload: Vec<u8> = (0..LARGEST_EVENT - event.len()).map(|index| index as u8).collect();
    for _ in 0..3 {
        assert_eq!(nodes[0].say(&event, &payload), Ok(reached(cluster, 1)));
        assert_eq!(nodes[0].say("small", b"0"), Ok(reached(cluster, 1)));
    }
    let heard = ear.wait_events(reached(cluster, 6));
    for pair in heard.chunks(2) {
        assert_eq!((pair[0].event(), pair[1].event()), (event.as_str(), "small"));
        assert!(pair[0].payload == payload, "another payload");
        assert!(pair[0].seq < pair[1].seq);
    }
}

pub fn a_handler_may_say_itself(cluster: &dyn Cluster) {
    let nodes: Vec<Arc<dyn Engine>> = nodes(cluster, &["a", "b"]).into_iter().map(Arc::from).collect();
    let ear = Ear::of(&*nodes[0]);
    let echo = Arc::downgrade(&nodes[1]);
    let _echoes = nodes[1].subscribe(
        "call",
        Arc::new(move |said| {
            let node = echo.upgrade().unwrap();
            node.say("heard", &said.payload).unwrap();
            node.tell(&said.node, "answer", &said.payload).unwrap();
        }),
    );
    for number in 0..100 {
        nodes[0].say("call", number.to_string().as_bytes()).unwrap();
    }
    let heard = ear.wait_events(reached(cluster, 200));
    for (index, pair) in heard.chunks(2).enumerate() {
        assert_eq!((pair[0].event(), pair[1].event()), ("heard", "answer"));
        assert!(pair.iter().all(|said| said.payload == index.to_string()));
    }
}

pub fn a_node_that_comes_again_has_a_new_life(cluster: &dyn Cluster) {
    let first = cluster.node("a");
    let ear = Ear::of(&*first);
    let old = cluster.node("b");
    let is_up = |node: &Node| cluster.reach() == Reach::Nobody || up_count(&**node) == 1;
    wait_until("b knows a", || is_up(&old) && is_up(&first));
    let old_boot = old.status().boot;
    say_numbers(&*old, 0..10);
    old.leave();
    drop(old);
    let new = cluster.node("b");
    wait_until("the new b knows a", || is_up(&new));
    say_numbers(&*new, 0..10);
    if cluster.reach() == Reach::Nobody {
        assert_eq!(ear.heard(), []);
        return;
    }
    assert_ne!(new.status().boot, old_boot);
    let events = ear.wait_events(20);
    assert!(events[9].boot < events[10].boot, "{} then {}", events[9].boot, events[10].boot);
    let heard = ear.heard();
    assert_eq!(check_stream(&heard, "b").0, Vec::from_iter((0..10).chain(0..10)));
    assert_eq!(changes(&heard), [up("b"), down("b"), up("b")]);
}

pub fn who_has_left_says_and_hears_nothing(cluster: &dyn Cluster) {
    let nodes = nodes(cluster, &["a", "b"]);
    let (of_a, of_b) = (Ear::of(&*nodes[0]), Ear::of(&*nodes[1]));
    say_numbers(&*nodes[0], 0..100);
    nodes[0].leave();
    // What was said before it left comes all the same.
    of_b.wait_events(reached(cluster, 100));
    assert_eq!(nodes[0].say("event", b""), Err(Error::Closed));
    assert_eq!(nodes[0].tell("b", "event", b""), Err(Error::Closed));
    assert_eq!(nodes[0].say("", b""), Err(Error::BadName(0)));
    if cluster.reach() == Reach::Others {
        of_b.wait_change(&down("a"));
    }
    let heard = of_a.heard();
    assert_eq!(nodes[1].say("event", b""), Ok(0));
    nodes[1].leave();
    // Twice is no harm.
    nodes[0].leave();
    assert_eq!(of_a.heard(), heard);
    assert_eq!(events(&heard), []);
}

pub fn status_names_all_members(cluster: &dyn Cluster) {
    let nodes = nodes(cluster, &["a", "b", "c"]);
    let ear = Ear::of(&*nodes[1]);
    say_numbers(&*nodes[0], 0..50);
    ear.wait_events(reached(cluster, 50));
    let status = nodes[0].status();
    assert_eq!((status.node.as_str(), status.said, status.refused), ("a", 50, 0));
    wait_until("nothing waits for others", || {
        let status = nodes[0].status();
        (status.backlog, status.backlog_bytes, status.waiting) == (0, 0, 0)
    });
    let members = nodes[1].status().members;
    let names: Vec<_> = members.iter().map(|member| member.node.as_str()).collect();
    assert_eq!(names, ["a", "c"][..reached(cluster, 2)]);
    for member in &members {
        assert_eq!(member.state, MemberState::Up);
        let heard = Duration::from_millis(member.heard_ms.expect("it was heard"));
        assert!(heard < SAY_TIMEOUT * 3, "{heard:?}");
        let (incoming, count) = (member.incoming, if member.node == "a" { 50 } else { 0 });
        assert_eq!((incoming.events, incoming.last), (count, count));
        assert_eq!((incoming.gaps, incoming.duplicates), (0, 0));
    }
}
