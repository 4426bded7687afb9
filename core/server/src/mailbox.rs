//! Events that wait for one service, in order. What comes from timers, publishers and other nodes goes
//! through here, so that nobody who tells an event is held up by whoever hears it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zeph_abi::{Event, EventKind};
use zeph_contract::event::NodeChange;

/// How many events wait for one service at most; what comes beyond is dropped and counted.
const CAPACITY: usize = 65_536;

/// An event that owns what it says.
#[derive(Clone, Debug)]
pub struct OwnedEvent {
    pub kind: EventKind,
    pub status: i32,
    pub token: u64,
    pub number: u64,
    pub name: Arc<str>,
    pub payload: Arc<[u8]>,
    /// Of the cluster: the node, and what is to be told of it where the event itself cannot be.
    pub node: Option<(Arc<str>, NodeChange)>,
    /// The epoch of the mailbox when it came in; of the cluster: when that was subscribed to.
    pub epoch: u32,
}

impl OwnedEvent {
    pub fn new(event: &Event<'_>) -> Self {
        Self {
            kind: event.kind,
            status: event.status,
            token: event.token,
            number: event.number,
            name: event.name.into(),
            payload: event.payload.into(),
            node: None,
            epoch: 0,
        }
    }

    fn news(kind: EventKind, name: Arc<str>, payload: Arc<[u8]>) -> Self {
        Self { kind, status: 0, token: 0, number: 0, name, payload, node: None, epoch: 0 }
    }

    /// What somebody of this node has published.
    pub fn published(name: Arc<str>, payload: Arc<[u8]>) -> Self {
        Self::news(EventKind::Published, name, payload)
    }

    /// What another node has said. Where it is lost, that is a gap in what that node says.
    pub fn said(node: &Arc<str>, name: Arc<str>, payload: Arc<[u8]>) -> Self {
        let node = Some((node.clone(), NodeChange::Gap));
        Self { node, ..Self::news(EventKind::Said, name, payload) }
    }

    /// What has happened to another node.
    pub fn change(node: &Arc<str>, change: NodeChange) -> Self {
        let event = Self::news(EventKind::Node, node.clone(), change.as_json().into());
        Self { node: Some((node.clone(), change)), ..event }
    }

    /// The same for a subscription, made in this epoch of the mailbox.
    pub fn to(self, subscription: u64, epoch: u32) -> Self {
        Self { token: subscription, number: subscription, epoch, ..self }
    }

    /// True for what concerns whoever lives under the name, whenever it began. Not what other nodes say: who begins
    /// anew asks those that are up for the whole.
    fn is_for_anybody(&self) -> bool {
        self.kind == EventKind::Published
    }

    /// True for what a service that rests is not brought back for: a call does that, news do not.
    pub fn wakes_nobody(&self) -> bool {
        use EventKind::{Node, Published, Said, Serving, Timer};
        matches!(self.kind, Published | Said | Node | Timer | Serving)
    }

    pub fn lend(&self) -> Event<'_> {
        Event {
            kind: self.kind,
            status: self.status,
            token: self.token,
            number: self.number,
            name: &self.name,
            payload: &self.payload,
        }
    }
}

/// The events that wait for one service.
#[derive(Default)]
pub struct Mailbox {
    queue: Mutex<Queue>,
    dropped: AtomicU64,
    /// Counts how often the service began anew from nothing.
    epoch: AtomicU32,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<OwnedEvent>,
    /// Somebody delivers, and will look again before going.
    attended: bool,
    /// Nobody takes events now. Of nodes only what still matters later is noted.
    rests: bool,
    /// What could not be told of nodes: the service hears it before anything else of them.
    missed: BTreeMap<Arc<str>, Vec<NodeChange>>,
}

impl Queue {
    /// Notes what is to be told of a node later. False: too many are noted.
    fn miss(&mut self, node: Arc<str>, change: NodeChange) -> bool {
        if self.missed.len() >= CAPACITY && !self.missed.contains_key(&node) {
            return false;
        }
        let changes = self.missed.entry(node).or_default();
        if change == NodeChange::Down {
            // Whatever else happened to it is over with that.
            changes.clear();
        }
        if !changes.contains(&change) {
            changes.push(change);
        }
        true
    }

    /// Has what was missed told next.
    fn tell_missed(&mut self, epoch: u32) {
        for (node, changes) in std::mem::take(&mut self.missed) {
            let told = changes.iter().map(|change| OwnedEvent::change(&node, *change));
            self.events.extend(told.map(|event| OwnedEvent { epoch, ..event }));
        }
    }
}

impl Mailbox {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often the service began anew from nothing.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// True when nothing waits and nobody delivers: an event may go straight in.
    pub fn is_idle(&self) -> bool {
        !self.queue().attended
    }

    /// Adds an event. True: the caller must see to it that somebody delivers.
    pub fn push(&self, event: OwnedEvent) -> bool {
        let mut queue = self.queue();
        let epoch = self.epoch();
        if event.node.is_none() {
            let event = OwnedEvent { epoch, ..event };
            if queue.events.len() >= CAPACITY {
                self.lose(&event);
                return false;
            }
            queue.events.push_back(event);
        } else {
            if event.epoch != epoch {
                // Whoever asked for it is gone.
                return false;
            }
            if queue.rests || queue.events.len() + queue.missed.len() >= CAPACITY {
                self.miss_in(&mut queue, event);
                return false;
            }
            queue.tell_missed(epoch);
            queue.events.push_back(event);
        }
        !std::mem::replace(&mut queue.attended, true)
    }

    /// The next event; None ends the delivery.
    pub fn pop(&self) -> Option<OwnedEvent> {
        let mut queue = self.queue();
        if queue.events.is_empty() && !queue.rests {
            // Also where nothing more is said after what was lost.
            queue.tell_missed(self.epoch());
        }
        let event = queue.events.pop_front();
        queue.attended = event.is_some();
        event
    }

    /// An event found nobody to take it. One of a node is counted, and later told as what it means for that
    /// node; until [`Mailbox::resume`] nothing more of nodes is kept.
    pub fn miss(&self, event: OwnedEvent) {
        if event.node.is_none() {
            return self.lose(&event);
        }
        let mut queue = self.queue();
        if event.epoch != self.epoch() {
            return;
        }
        queue.rests = true;
        // What waits came before what was noted already, and after this one. Nothing of a node may be told before what
        // is missing of it.
        let noted = std::mem::take(&mut queue.missed);
        let (of_nodes, others): (VecDeque<_>, _) =
            std::mem::take(&mut queue.events).into_iter().partition(|event| event.node.is_some());
        queue.events = others;
        self.miss_in(&mut queue, event);
        of_nodes.into_iter().for_each(|event| self.miss_in(&mut queue, event));
        for (node, changes) in noted {
            for change in changes {
                queue.miss(node.clone(), change);
            }
        }
    }

    fn miss_in(&self, queue: &mut Queue, event: OwnedEvent) {
        let is_kept = match &event.node {
            Some((node, change)) => queue.miss(node.clone(), *change) && event.kind == EventKind::Node,
            None => false,
        };
        if !is_kept {
            self.lose(&event);
        }
    }

    /// Somebody takes events again. True: as [`Mailbox::push`].
    pub fn resume(&self) -> bool {
        let mut queue = self.queue();
        if !std::mem::take(&mut queue.rests) || queue.missed.is_empty() {
            return false;
        }
        queue.tell_missed(self.epoch());
        !std::mem::replace(&mut queue.attended, true)
    }

    /// Throws away what only the instance that is gone could use: its timers, what belongs to calls, and what it
    /// asked to hear of other nodes.
    pub fn forget_dealings(&self) {
        let mut queue = self.queue();
        self.epoch.fetch_add(1, Ordering::Relaxed);
        queue.missed.clear();
        queue.events.retain(|event| {
            if event.kind == EventKind::Said {
                self.lose(event);
            }
            event.is_for_anybody()
        });
    }

    /// False for what only an instance that is gone could use.
    pub fn is_wanted(&self, event: &OwnedEvent) -> bool {
        event.is_for_anybody() || event.epoch == self.epoch()
    }

    /// Counts an event that nobody could take. That an instance serves is no news once it does not.
    fn lose(&self, event: &OwnedEvent) {
        if event.kind != EventKind::Serving {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Events that were lost.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(node: &str) -> OwnedEvent {
        OwnedEvent::said(&node.into(), "event".into(), Arc::default())
    }

    fn change(node: &str, change: NodeChange) -> OwnedEvent {
        OwnedEvent::change(&node.into(), change)
    }

    fn take(mailbox: &Mailbox) -> Vec<String> {
        let text = |event: OwnedEvent| format!("{} {}", event.name, String::from_utf8_lossy(&event.payload));
        std::iter::from_fn(|| mailbox.pop()).map(text).collect()
    }

    #[test]
    fn who_rests_is_told_later_what_became_of_each_node() {
        let mailbox = Mailbox::default();
        for event in [said("a"), change("b", NodeChange::Down), said("c")] {
            mailbox.push(event);
        }
        let first = mailbox.pop().unwrap();
        mailbox.miss(first);
        assert_eq!(take(&mailbox), [""; 0], "it rests");
        for event in [
            said("a"),
            change("b", NodeChange::Up),
            said("b"),
            change("c", NodeChange::Up),
            change("c", NodeChange::Down),
        ] {
            assert!(!mailbox.push(event));
        }
        // What is not of nodes comes in its turn.
        assert!(mailbox.push(OwnedEvent::published("here".into(), Arc::default())));
        assert_eq!(take(&mailbox), ["here "]);
        assert!(mailbox.resume(), "somebody must deliver");
        mailbox.push(said("a"));
        assert_eq!(
            take(&mailbox),
            ["a \"gap\"", "b \"down\"", "b \"up\"", "b \"gap\"", "c \"down\"", "event "]
        );
        assert_eq!(mailbox.dropped(), 4, "what was said and not told");
        assert!(!mailbox.resume(), "nothing was missed since");
    }

    #[test]
    fn what_waits_comes_before_what_found_no_room() {
        use NodeChange::{Down, Up};
        for (waits, late) in [(Down, Up), (Up, Down)] {
            let mailbox = Mailbox::default();
            mailbox.push(said("b"));
            mailbox.push(change("a", waits));
            for _ in 2..CAPACITY {
                mailbox.push(said("b"));
            }
            mailbox.push(change("a", late));
            let first = mailbox.pop().unwrap();
            mailbox.miss(first);
            assert_eq!(take(&mailbox), [""; 0]);
            mailbox.resume();
            let told = take(&mailbox);
            let of_a: Vec<&str> = told.iter().filter_map(|told| told.strip_prefix("a ")).collect();
            // A node that is down has no earlier life that matters.
            let expected: &[&str] = if late == Up { &["\"down\"", "\"up\""] } else { &["\"down\""] };
            assert_eq!(of_a, expected);
        }
    }

    #[test]
    fn who_begins_anew_hears_nothing_that_another_asked_for() {
        let mailbox = Mailbox::default();
        for event in [said("a"), change("a", NodeChange::Up), said("a")] {
            mailbox.push(event);
        }
        mailbox.push(OwnedEvent::published("here".into(), Arc::default()));
        let (first, second) = (mailbox.pop().unwrap(), mailbox.pop().unwrap());
        mailbox.miss(first);
        mailbox.forget_dealings();
        // Somebody is still at it.
        assert!(!mailbox.is_wanted(&second));
        mailbox.miss(second);
        mailbox.push(said("a"));
        mailbox.resume();
        mailbox.push(OwnedEvent { epoch: 1, ..said("b") });
        assert_eq!(take(&mailbox), ["here ", "event "]);
        assert_eq!(mailbox.dropped(), 2);
    }

    #[test]
    fn what_finds_no_room_is_a_gap() {
        let mailbox = Mailbox::default();
        for _ in 0..CAPACITY {
            mailbox.push(said("a"));
        }
        mailbox.push(said("b"));
        mailbox.push(change("c", NodeChange::Down));
        assert_eq!(mailbox.dropped(), 1);
        mailbox.pop();
        mailbox.push(said("b"));
        mailbox.pop();
        mailbox.pop();
        mailbox.push(said("a"));
        let told = take(&mailbox);
        assert_eq!(told[told.len() - 3..], ["b \"gap\"", "c \"down\"", "event "]);
        assert_eq!(mailbox.dropped(), 2);
    }
}
