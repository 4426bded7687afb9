//! Who hears what on this node. Engines put in what comes; one thread hands it to handlers and watchers in that
//! order, so that none of them can hold up an engine.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::mesh::Events;
use crate::{Change, Handler, Said, Subscription, Watcher};

/// Events that may wait before engines take no more from others.
const EVENTS: usize = 16_384;
/// Bytes of them.
const BYTES: usize = 16 * 1024 * 1024;
/// What is taken from the queue at a time.
const BATCH: usize = 256;
/// Names of events whose handlers are known without asking.
const NAMES: usize = 4096;

/// One thing that came in.
#[derive(Debug)]
pub enum News {
    /// One alone.
    #[cfg(feature = "nats")]
    Said(Said),
    /// Some of one node, one right after the other.
    Events {
        node: Arc<str>,
        boot: u64,
        events: Events,
    },
    Change(Change),
    /// A watcher is to be told who is up.
    Greet(u64),
    /// A handler that came later hears what comes from here on: whoever watches before it subscribes has been
    /// told by then who is up.
    Hear(u64),
}

#[derive(Default)]
struct Queue {
    news: VecDeque<News>,
    events: usize,
    bytes: usize,
    has_ended: bool,
}

type Numbered<T> = Vec<(u64, T)>;

struct Watching {
    watcher: Watcher,
    /// It was told who is up. Changes from before that are in what it was told.
    is_greeted: bool,
}

#[derive(Default)]
struct Handlers {
    by_event: HashMap<Box<str>, Numbered<Handler>>,
    of_all: Numbered<Handler>,
}

/// The handlers of a node, and what waits for them.
#[derive(Default)]
pub struct Hub {
    queue: Mutex<Queue>,
    /// There is something to hand on.
    filled: Condvar,
    /// There is room again.
    room: Notify,
    handlers: RwLock<Handlers>,
    /// Counts changes of the handlers.
    changes: AtomicU64,
    watchers: RwLock<Numbered<Watching>>,
    numbers: AtomicU64,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Changes who hears what.
    fn change(&self, change: impl FnOnce(&mut Handlers)) {
        change(&mut write(&self.handlers));
        self.changes.fetch_add(1, Ordering::Release);
    }

    pub fn subscribe(self: &Arc<Self>, event: &str, handler: Handler) -> Subscription {
        let (number, event) = (self.number(), Box::<str>::from(event));
        self.change(|handlers| handlers.by_event.entry(event.clone()).or_default().push((number, handler)));
        self.put([News::Hear(number)]);
        let hub = self.clone();
        Subscription::new(move || {
            hub.change(|Handlers { by_event, .. }| {
                if let Some(handlers) = by_event.get_mut(&event) {
                    handlers.retain(|(known, _)| *known != number);
                    if handlers.is_empty() {
                        by_event.remove(&event);
                    }
                }
            });
        })
    }

    pub fn subscribe_all(self: &Arc<Self>, handler: Handler) -> Subscription {
        let number = self.number();
        self.change(|handlers| handlers.of_all.push((number, handler)));
        self.put([News::Hear(number)]);
        let hub = self.clone();
        Subscription::new(move || {
            hub.change(|handlers| handlers.of_all.retain(|(known, _)| *known != number));
        })
    }

    pub fn watch(self: &Arc<Self>, watcher: Watcher) -> Subscription {
        let number = self.number();
        write(&self.watchers).push((number, Watching { watcher, is_greeted: false }));
        let hub = self.clone();
        let greet = move || hub.put([News::Greet(number)]);
        greet();
        let hub = self.clone();
        let end = move || write(&hub.watchers).retain(|(known, _)| *known != number);
        Subscription::new(end).greets(greet)
    }

    /// Adds what came in. Never refuses: whoever brings much asks [`Hub::has_room`] before.
    pub fn put(&self, news: impl IntoIterator<Item = News>) {
        let mut queue = lock(&self.queue);
        if queue.has_ended {
            return;
        }
        let was_empty = queue.news.is_empty();
        for one in news {
            let (events, bytes) = one.size();
            queue.events += events;
            queue.bytes += bytes;
            queue.news.push_back(one);
        }
        let is_filled = was_empty && !queue.news.is_empty();
        // Whoever is woken finds the lock free.
        drop(queue);
        if is_filled {
            self.filled.notify_one();
        }
    }

    /// True where handlers keep up.
    pub fn has_room(&self) -> bool {
        lock(&self.queue).has_room()
    }

    /// Waits until handlers keep up again.
    pub async fn room(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.has_room() {
                return;
            }
            room.await;
        }
    }

    /// What waits for handlers.
    pub fn waiting(&self) -> usize {
        lock(&self.queue).events
    }

    /// Nothing more comes; what waits is thrown away.
    pub fn end(&self) {
        let mut queue = lock(&self.queue);
        *queue = Queue { has_ended: true, ..Queue::default() };
        self.filled.notify_all();
        self.room.notify_waiters();
    }

    /// Hands on until [`Hub::end`]. On a thread of its own.
    pub fn run(&self) {
        // Who is up, as the watchers know it.
        let mut up: Vec<Arc<str>> = Vec::new();
        let mut batch = Vec::with_capacity(BATCH);
        let mut known = Known::default();
        while self.take(&mut batch) {
            for news in batch.drain(..) {
                match news {
                    #[cfg(feature = "nats")]
                    News::Said(said) => known.hand_on(self, &said),
                    News::Events { node, boot, events } => {
                        let mut said =
                            Said { node, boot, seq: 0, event: Bytes::new(), payload: Bytes::new() };
                        events.each(|seq, event, payload| {
                            (said.seq, said.event, said.payload) = (seq, event, payload);
                            known.hand_on(self, &said);
                        });
                    }
                    News::Change(change) => {
                        match &change {
                            Change::Up(node) => up.push(node.clone()),
                            Change::Down(node) => up.retain(|known| known != node),
                            Change::Gap { .. } | Change::Evicted(_) => {}
                        }
                        let watchers: Vec<Watcher> = read(&self.watchers)
                            .iter()
                            .filter(|(_, watching)| watching.is_greeted)
                            .map(|(_, watching)| watching.watcher.clone())
                            .collect();
                        watchers.iter().for_each(|watcher| call(|| watcher(&change)));
                    }
                    News::Hear(number) => known.begin(number),
                    News::Greet(number) => {
                        let greet = |watchers: &mut Numbered<Watching>| {
                            let (_, watching) = watchers.iter_mut().find(|(known, _)| *known == number)?;
                            watching.is_greeted = true;
                            Some(watching.watcher.clone())
                        };
                        let watcher = greet(&mut write(&self.watchers));
                        for (watcher, node) in
                            watcher.iter().flat_map(|watcher| up.iter().map(move |n| (watcher, n)))
                        {
                            call(|| watcher(&Change::Up(node.clone())));
                        }
                    }
                }
            }
        }
    }

    /// Waits for news. False: nothing more comes.
    fn take(&self, batch: &mut Vec<News>) -> bool {
        let queue = lock(&self.queue);
        let is_idle = |queue: &mut Queue| queue.news.is_empty() && !queue.has_ended;
        let mut queue = self.filled.wait_while(queue, is_idle).unwrap_or_else(PoisonError::into_inner);
        let was_full = !queue.has_room();
        let count = queue.news.len().min(BATCH);
        batch.extend(queue.news.drain(..count));
        for (events, bytes) in batch.iter().map(News::size) {
            queue.events -= events;
            queue.bytes -= bytes;
        }
        if was_full && queue.has_room() {
            self.room.notify_waiters();
        }
        !queue.has_ended
    }
}

/// Who hears what, as the thread that hands on knows it: nobody else is asked while nothing changes.
#[derive(Default)]
struct Known {
    changes: u64,
    by_event: foldhash::HashMap<Bytes, Arc<[Handler]>>,
    /// Handlers up to this number hear.
    begun: u64,
}

impl Known {
    fn begin(&mut self, number: u64) {
        // Numbers of two threads may come out of order: then one hears a moment earlier, after all that its own
        // thread had asked for before.
        self.begun = self.begun.max(number);
        self.by_event.clear();
    }

    fn hand_on(&mut self, hub: &Hub, said: &Said) {
        let changes = hub.changes.load(Ordering::Acquire);
        if changes != self.changes || self.by_event.len() >= NAMES {
            self.changes = changes;
            self.by_event.clear();
        }
        if !self.by_event.contains_key(&said.event) {
            let handlers = read(&hub.handlers);
            let of_event = handlers.by_event.get(said.event()).into_iter().flatten();
            let all = of_event.chain(&handlers.of_all).filter(|(number, _)| *number <= self.begun);
            let all = all.map(|(_, handler)| handler.clone()).collect();
            // A copy: the name is part of a larger piece.
            self.by_event.insert(Bytes::copy_from_slice(&said.event), all);
        }
        if let Some(handlers) = self.by_event.get(&said.event) {
            handlers.iter().for_each(|handler| call(|| handler(said)));
        }
    }
}

/// A handler that panics has lost this event, and nobody else anything.
fn call(handler: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(handler)).is_err() {
        tracing::error!("a handler of a cluster event panicked");
    }
}

impl Queue {
    fn has_room(&self) -> bool {
        self.events < EVENTS && self.bytes < BYTES
    }
}

impl News {
    /// How many events, and bytes of them.
    fn size(&self) -> (usize, usize) {
        match self {
            #[cfg(feature = "nats")]
            Self::Said(said) => (1, said.payload.len()),
            Self::Events { events, .. } => (events.count as usize, events.bytes()),
            Self::Change(_) | Self::Greet(_) | Self::Hear(_) => (1, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::one_event;

    #[test]
    fn a_watcher_hears_of_each_node_once_that_was_up_before() {
        let hub = Arc::new(Hub::default());
        let up = |node: &str| Change::Up(node.into());
        // It comes while this waits to be handed on.
        hub.put([News::Change(up("a"))]);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let noted = heard.clone();
        let ended = hub.clone();
        let _watching = hub.watch(Arc::new(move |change| {
            lock(&noted).push(change.clone());
            if *change == Change::Down("a".into()) {
                ended.end();
            }
        }));
        hub.put([News::Change(up("b")), News::Change(Change::Down("a".into()))]);
        hub.run();
        assert_eq!(*lock(&heard), [up("a"), up("b"), Change::Down("a".into())]);
    }
    /// Everything that is told goes into one list, until a node named `end` is up.
    fn hear_all(hub: &Arc<Hub>) -> (Arc<Mutex<Vec<String>>>, Watcher, Handler) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (of_changes, of_events, ended) = (heard.clone(), heard.clone(), hub.clone());
        let watcher: Watcher = Arc::new(move |change| match change {
            Change::Up(node) if &**node == "end" => ended.end(),
            change => lock(&of_changes).push(format!("{change:?}")),
        });
        let handler: Handler = Arc::new(move |said| lock(&of_events).push(format!("said {}", said.node)));
        (heard, watcher, handler)
    }

    #[test]
    fn who_is_greeted_again_misses_nothing_in_between() {
        let hub = Arc::new(Hub::default());
        let up = |node: &str| News::Change(Change::Up(node.into()));
        let (heard, watcher, _) = hear_all(&hub);
        let watching = hub.watch(watcher);
        hub.put([up("a"), up("b"), News::Change(Change::Down("a".into()))]);
        watching.greet();
        hub.put([up("end")]);
        hub.run();
        assert_eq!(*lock(&heard), ["Up(\"a\")", "Up(\"b\")", "Down(\"a\")", "Up(\"b\")"]);
    }

    #[test]
    fn who_watches_first_hears_a_node_after_it_is_up() {
        let hub = Arc::new(Hub::default());
        let up = |node: &str| News::Change(Change::Up(node.into()));
        let said = || News::Events { node: "a".into(), boot: 1, events: one_event("event") };
        // These wait to be handed on when the service comes.
        hub.put([up("a"), said()]);
        let (heard, watcher, handler) = hear_all(&hub);
        let _watching = hub.watch(watcher);
        let _hearing = hub.subscribe("event", handler);
        hub.put([said(), up("end")]);
        hub.run();
        assert_eq!(*lock(&heard), ["Up(\"a\")", "said a"]);
    }
}
