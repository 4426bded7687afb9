//! What a node hears, in order, and waiting for it.
#![allow(dead_code, reason = "each test binary uses its part of it")]

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use zeph_cluster::{Change, Engine, Error, Said, Subscription};

/// How long anything may take in a test.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// One thing that a node heard.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    Said(Said),
    Change(Change),
}

#[derive(Default)]
struct Notes {
    heard: Mutex<Vec<Heard>>,
    more: Condvar,
}

/// Listens to everything that a node hears.
pub struct Ear {
    notes: Arc<Notes>,
    _subscriptions: [Subscription; 2],
}

impl Ear {
    pub fn of(engine: &dyn Engine) -> Self {
        Self::with(engine, |_| {})
    }

    /// Runs something before each event is noted, as a handler that takes its time.
    pub fn with(engine: &dyn Engine, before: impl Fn(&Said) + Send + Sync + 'static) -> Self {
        let notes = Arc::new(Notes::default());
        let (said, changed) = (notes.clone(), notes.clone());
        let events = engine.subscribe_all(Arc::new(move |event: &Said| {
            before(event);
            said.note(Heard::Said(event.clone()));
        }));
        let changes = engine.watch(Arc::new(move |change: &Change| {
            changed.note(Heard::Change(change.clone()));
        }));
        Self { notes, _subscriptions: [events, changes] }
    }

    /// Waits until what was heard satisfies, and gives it.
    pub fn wait(&self, what: &str, mut is_enough: impl FnMut(&[Heard]) -> bool) -> Vec<Heard> {
        let end = Instant::now() + DEADLINE;
        let mut heard = self.notes.heard.lock().unwrap();
        while !is_enough(&heard) {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for {what}; last heard: {}", last(&heard));
            heard = self.notes.more.wait_timeout(heard, left).unwrap().0;
        }
        heard.clone()
    }

    /// Waits for that many events.
    pub fn wait_events(&self, count: usize) -> Vec<Said> {
        let mut seen = (0, 0);
        let heard = self.wait(&format!("{count} events"), |heard| {
            // Only what is new is looked at: there may be many.
            seen.1 += heard[seen.0..].iter().filter(|one| matches!(one, Heard::Said(_))).count();
            seen.0 = heard.len();
            seen.1 >= count
        });
        events(&heard)
    }

    pub fn wait_change(&self, change: &Change) -> Vec<Heard> {
        self.wait(&format!("{change:?}"), |heard| {
            heard.iter().any(|one| matches!(one, Heard::Change(known) if known == change))
        })
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.notes.heard.lock().unwrap().clone()
    }
}

impl Notes {
    fn note(&self, heard: Heard) {
        self.heard.lock().unwrap().push(heard);
        self.more.notify_all();
    }
}

fn last(heard: &[Heard]) -> String {
    let last = heard.iter().rev().take(5).rev().map(|one| match one {
        Heard::Said(said) => format!("{}:{} {}", said.node, said.seq, said.event()),
        Heard::Change(change) => format!("{change:?}"),
    });
    format!("{} of {}", last.collect::<Vec<_>>().join(", "), heard.len())
}

pub fn events(heard: &[Heard]) -> Vec<Said> {
    heard
        .iter()
        .filter_map(|one| if let Heard::Said(said) = one { Some(said.clone()) } else { None })
        .collect()
}

pub fn changes(heard: &[Heard]) -> Vec<Change> {
    heard
        .iter()
        .filter_map(|one| if let Heard::Change(change) = one { Some(change.clone()) } else { None })
        .collect()
}

pub fn up(node: &str) -> Change {
    Change::Up(node.into())
}

pub fn down(node: &str) -> Change {
    Change::Down(node.into())
}

/// The number that a payload is.
pub fn number(said: &Said) -> u64 {
    std::str::from_utf8(&said.payload).unwrap().parse().unwrap()
}

/// Says numbers, each as an event; the first that is refused panics.
pub fn say_numbers(engine: &dyn Engine, numbers: std::ops::Range<u64>) {
    for number in numbers {
        engine.say("number", number.to_string().as_bytes()).unwrap();
    }
}

/// The same, and again where there is no room for one.
pub fn insist_numbers(engine: &dyn Engine, numbers: std::ops::Range<u64>) {
    for number in numbers {
        while let Err(error) = engine.say("number", number.to_string().as_bytes()) {
            assert_eq!(error, Error::Busy);
        }
    }
}

/// Waits until something holds that no node hears of.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a node heard of another: every event between its `Up` and its `Down`, in order and once, and where
/// numbers miss a gap before the next one. Gives the payloads' numbers, and how many gaps there were.
pub fn check_stream(heard: &[Heard], node: &str) -> (Vec<u64>, usize) {
    let (mut is_up, mut last, mut reported, mut gaps) = (false, None::<Said>, 0, 0);
    let mut numbers = Vec::new();
    for one in heard {
        match one {
            Heard::Change(Change::Up(name)) if **name == *node => is_up = true,
            Heard::Change(Change::Down(name)) if **name == *node => is_up = false,
            Heard::Change(Change::Gap { node: name, from, to, .. }) if **name == *node => {
                assert!(is_up, "a gap of {node}, which is not up");
                assert!(from <= to, "{from} to {to}");
                reported = *to;
                gaps += 1;
            }
            Heard::Said(said) if *said.node == *node => {
                assert!(is_up, "{}:{} came and the node is not up", said.node, said.seq);
                if let Some(last) = last.replace(said.clone()).filter(|last| last.boot == said.boot) {
                    assert!(said.seq > last.seq, "{} after {} of {node}", said.seq, last.seq);
                    let follows = number(said) == number(&last) + 1;
                    assert!(
                        follows || reported > last.seq,
                        "a hole without a gap: {} after {} of {node}",
                        number(said),
                        number(&last)
                    );
                }
                numbers.push(number(said));
            }
            _ => {}
        }
    }
    (numbers, gaps)
}
