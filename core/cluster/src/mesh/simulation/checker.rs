//! Knows what was said by whom to whom, and looks at what each node hands on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::super::node::Node;
use crate::hub::News;
use crate::{Change, Said};

/// A node in one of its lives: its number, and how often it was started.
pub type Life = (usize, u64);

/// What a node hands on of another: where it began, and what came since.
#[derive(Debug, Default)]
struct Heard {
    /// From here on everything is owed: the head of the sender when it saw the receiver come up.
    owed_after: Option<u64>,
    /// The last number that came or was declared lost.
    last: Option<u64>,
    events: u64,
    gaps: u64,
}

#[derive(Debug, Default)]
pub struct Checker {
    /// What a life said, from number 1 on: for whom, None: for all.
    said: BTreeMap<Life, Vec<Option<usize>>>,
    /// By receiver and sender.
    heard: BTreeMap<(Life, Life), Heard>,
    /// Whom a life believes to be up.
    up: BTreeMap<Life, BTreeSet<usize>>,
    /// Events handed on in all, and gaps.
    pub events: u64,
    pub gaps: u64,
    pub evictions: u64,
}

pub fn name(node: usize) -> String {
    format!("n{node:02}")
}

fn number(name: &str) -> usize {
    name[1..].parse().expect("names are made here")
}

impl Checker {
    /// A life has said something; its number was given by the log.
    pub fn said(&mut self, life: Life, seq: u64, to: Option<usize>) {
        let said = self.said.entry(life).or_default();
        said.push(to);
        assert_eq!(said.len() as u64, seq, "numbers have no hole");
    }

    /// What is said is its own proof.
    pub fn payload(life: Life, seq: u64) -> String {
        format!("{} {} {seq}", life.0, life.1)
    }

    /// A life hands something on.
    pub fn handed_on(&mut self, receiver: Life, node: &Node, news: &News) {
        match news {
            News::Events { node, boot, events } => events.each(|seq, event, payload| {
                let said = Said { node: node.clone(), boot: *boot, seq, event, payload };
                self.event(receiver, &said);
            }),
            News::Change(Change::Up(name)) => {
                let other = (number(name), node.boot_of(name));
                assert!(
                    self.up.entry(receiver).or_default().insert(other.0),
                    "{receiver:?}: {name} came up twice"
                );
                // From now on the other is owed what this one says.
                let heard = self.heard.entry((other, receiver)).or_default();
                heard.owed_after.get_or_insert(node.said());
            }
            News::Change(Change::Down(node)) => {
                let node = number(node);
                assert!(
                    self.up.entry(receiver).or_default().remove(&node),
                    "{receiver:?}: {node} went down twice"
                );
            }
            News::Change(Change::Gap { node, boot, from, to }) => {
                self.gaps += 1;
                self.must_be_up(receiver, node);
                let heard = self.heard.entry((receiver, (number(node), *boot))).or_default();
                assert!(from <= to, "a gap of nothing");
                heard.gaps += 1;
                if let Some(last) = heard.last {
                    // Between the two was nothing, or what was for others.
                    assert!(*from > last, "{receiver:?}: a gap begins after what was handed on");
                }
                heard.last = Some(*to);
            }
            News::Change(Change::Evicted(_)) => self.evictions += 1,
            #[cfg(feature = "nats")]
            News::Said(_) => {}
            News::Greet(_) | News::Hear(_) => {}
        }
    }

    fn must_be_up(&self, receiver: Life, node: &str) {
        let is_up = self.up.get(&receiver).is_some_and(|up| up.contains(&number(node)));
        assert!(is_up, "{receiver:?} hears of {node}, which is not up");
    }

    fn event(&mut self, receiver: Life, said: &Said) {
        self.must_be_up(receiver, &said.node);
        self.events += 1;
        let sender = (number(&said.node), said.boot);
        let seq = said.seq;
        let log = self.said.get(&sender).expect("only who said something is heard");
        assert_eq!(said.payload, Self::payload(sender, seq), "what was said under this number");
        let to = log[seq as usize - 1];
        assert!(to.is_none_or(|to| to == receiver.0), "{receiver:?} hears what was told to {to:?}");
        let heard = self.heard.entry((receiver, sender)).or_default();
        if let Some(last) = heard.last {
            assert!(seq > last, "{receiver:?} hears {sender:?}: {seq} after {last}: twice, or out of order");
            let lost = (last + 1..seq).find(|seq| is_for(log, *seq, receiver.0));
            assert_eq!(
                lost, None,
                "{receiver:?} hears {sender:?}: {seq} after {last}, and no word of what is between"
            );
        } else if let Some(owed_after) = heard.owed_after {
            let lost = (owed_after + 1..seq).find(|seq| is_for(log, *seq, receiver.0));
            assert_eq!(
                lost, None,
                "{receiver:?} hears {sender:?} from {seq} on, and was owed all after {owed_after}"
            );
        }
        heard.last = Some(seq);
        heard.events += 1;
    }

    /// After the peace: whoever lives has everything, or was told of a gap.
    pub fn end(&self, lives: &[(Life, &Node)], now: Instant) {
        for (receiver, _) in lives {
            for (sender, node) in lives.iter().filter(|(sender, _)| sender != receiver) {
                let heard = self.heard.get(&(*receiver, *sender));
                let owed_after = heard.and_then(|heard| heard.owed_after);
                let owed_after = owed_after.unwrap_or_else(|| panic!("{sender:?} never saw {receiver:?}"));
                let had = heard.and_then(|heard| heard.last).unwrap_or(owed_after);
                let empty = Vec::new();
                let log = self.said.get(sender).unwrap_or(&empty);
                let lost =
                    (had.max(owed_after) + 1..=log.len() as u64).find(|seq| is_for(log, *seq, receiver.0));
                assert_eq!(
                    lost,
                    None,
                    "{receiver:?} lacks this of {sender:?} at the end, and was told nothing: {:?}",
                    node.status(now).members.iter().find(|member| member.node == name(receiver.0))
                );
                // A gap is the log's fault, and nobody else's.
                if heard.is_some_and(|heard| heard.gaps > 0) {
                    let lost = node.status(now).lost;
                    assert!(lost > 0, "{receiver:?} was told of a gap in {sender:?}, whose log lost nothing");
                }
            }
            let up = self.up.get(receiver).map_or(0, BTreeSet::len);
            assert_eq!(up, lives.len() - 1, "{receiver:?} sees all others at the end");
        }
    }
}

/// Whether an event is for a node.
fn is_for(log: &[Option<usize>], seq: u64, receiver: usize) -> bool {
    log.get(seq as usize - 1).is_some_and(|to| to.is_none_or(|to| to == receiver))
}
