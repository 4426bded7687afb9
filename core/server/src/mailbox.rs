//! Events that wait for one service, in order. What comes from timers, publishers and other nodes goes
//! through here, so that nobody who tells an event is held up by whoever hears it.

use std::collections::{BTreeSet, VecDeque};
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
    /// The epoch of the mailbox when it came in.
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
            epoch: 0,
        }
    }

    /// An event of the cluster, as its subscribers get it.
    pub fn news(kind: EventKind, name: &Arc<str>, payload: Arc<[u8]>) -> Self {
        Self { kind, status: 0, token: 0, number: 0, name: name.clone(), payload, epoch: 0 }
    }

    /// True for what concerns whoever lives under the name, whenever it began.
    fn is_news(&self) -> bool {
        matches!(self.kind, EventKind::Published | EventKind::Said | EventKind::Node)
    }

    /// True for what a service that rests is not brought back for: a call does that, news do not.
    pub fn wakes_nobody(&self) -> bool {
        self.is_news() || matches!(self.kind, EventKind::Timer | EventKind::Serving)
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

impl Queue {
    /// Tells of what found no room.
    fn take_gaps(&mut self, epoch: u32) {
        for node in std::mem::take(&mut self.gaps) {
            let gap = OwnedEvent::news(EventKind::Node, &node, NodeChange::Gap.as_json().into());
            self.events.push_back(OwnedEvent { epoch, ..gap });
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
    /// Nodes of which an event found no room: the service is told before it gets the next one.
    gaps: BTreeSet<Arc<str>>,
}

impl Mailbox {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when nothing waits and nobody delivers: an event may go straight in.
    pub fn is_idle(&self) -> bool {
        !self.queue().attended
    }

    /// Adds an event. True: the caller must see to it that somebody delivers.
    pub fn push(&self, event: OwnedEvent) -> bool {
        let mut queue = self.queue();
        let event = OwnedEvent { epoch: self.epoch.load(Ordering::Relaxed), ..event };
        // Whatever happens to a node is told: all that depends on it would stay wrong.
        if queue.events.len() >= CAPACITY && event.kind != EventKind::Node {
            drop(queue);
            self.lose(&event);
            return false;
        }
        queue.events.push_back(event);
        !std::mem::replace(&mut queue.attended, true)
    }

    /// Adds what another node has said. What finds no room is a gap in what that node says. True: as
    /// [`Mailbox::push`].
    pub fn push_said(&self, event: OwnedEvent, node: &Arc<str>) -> bool {
        let mut queue = self.queue();
        if queue.events.len() + queue.gaps.len() >= CAPACITY {
            queue.gaps.insert(node.clone());
            drop(queue);
            self.lose(&event);
            return false;
        }
        let epoch = self.epoch.load(Ordering::Relaxed);
        queue.take_gaps(epoch);
        queue.events.push_back(OwnedEvent { epoch, ..event });
        !std::mem::replace(&mut queue.attended, true)
    }

    /// The next event; None ends the delivery.
    pub fn pop(&self) -> Option<OwnedEvent> {
        let mut queue = self.queue();
        if queue.events.is_empty() {
            // Also where nothing more is said after what was lost.
            let epoch = self.epoch.load(Ordering::Relaxed);
            queue.take_gaps(epoch);
        }
        let event = queue.events.pop_front();
        queue.attended = event.is_some();
        event
    }

    /// Throws away what only the instance that is gone could use: its timers, and what belongs to calls.
    pub fn forget_dealings(&self) {
        let mut queue = self.queue();
        self.epoch.fetch_add(1, Ordering::Relaxed);
        queue.events.retain(OwnedEvent::is_news);
    }

    /// False for what only an instance that is gone could use.
    pub fn is_wanted(&self, event: &OwnedEvent) -> bool {
        event.is_news() || event.epoch == self.epoch.load(Ordering::Relaxed)
    }

    /// Counts an event that nobody could take. That an instance serves is no news once it does not.
    pub fn lose(&self, event: &OwnedEvent) {
        if event.kind != EventKind::Serving {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Events that were lost.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}
