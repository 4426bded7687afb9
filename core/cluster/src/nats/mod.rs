//! The engine that goes through a NATS broker: every node writes into one stream (JetStream), and reads it.
//!
//! One thread drives the broker's client, with a runtime of its own for each connection; another hands on to
//! handlers (`Hub`). What is said goes into a log first (`log`), so `say` never waits for the broker, and a
//! node comes up without it.
//!
//! **Order and duplicates.** The client's library would connect again by itself, and then send what it had
//! queued, behind pieces that were lost with the old connection. So a connection is used once: when it is lost,
//! or anything on it goes wrong, the library's tasks are thrown away with their runtime, and the next one begins
//! with the first piece that is not confirmed. Thus each connection brings pieces without a hole from a place
//! that the stream has, and since the broker drops what it has already (`Nats-Msg-Id`), even bytes of the old
//! connection that it reads late cannot bring anything out of order. What it does not drop (a refused piece in
//! the middle, a break that was longer than its memory for duplicates) is put right by the receiver (`life`).
//!
//! **Reading.** The engine owns its place in the stream (`place`), and makes a consumer there for each
//! connection: the first piece that comes must be the one that came last, else the stream is not the one it was,
//! and reading begins at that time instead. Where pieces are gone the next event of each sender that is not in
//! line comes after a gap.
//!
//! **Members.** A broker knows none: signs of life beside the stream (`members`).
//!
//! **Recovery** is one way for everything: no confirmation, no sign of life of our own, no heartbeat of the
//! consumer, a refusal, a lost connection: the session ends with a reason, and the next one begins after a pause.

mod life;
mod log;
mod members;
mod options;
mod place;
mod publish;
mod read;
mod session;
mod trouble;
mod wire;

use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;

pub use options::{Options, StartError};

use self::log::Log;
use self::members::Members;
use self::options::Broker;
use crate::hub::{Hub, News};
use crate::life::new_boot;
use crate::{Engine, Error, Handler, Profile, Status, Subscription, Watcher, check_event};

/// Pieces that are under way to the broker at a time.
const WINDOW: usize = 256;
/// The broker confirms something within this, or is taken for lost.
const ACK_DEADLINE: Duration = Duration::from_secs(5);
/// How long one attempt to connect takes at most.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// How long the broker may take for an answer that is no event.
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);
/// Between two attempts: doubles from the one to the other.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long [`Engine::leave`] waits for what was said to go out.
const LEAVE_DEADLINE: Duration = Duration::from_secs(1);
/// How long the threads are waited for; a handler that takes longer ends by itself.
const END_DEADLINE: Duration = Duration::from_secs(1);
/// A connection that lasts for this was a good one: the next pause is short again.
const STEADY: Duration = Duration::from_secs(5);
/// The same trouble is said again after this.
const SAID_AGAIN: Duration = Duration::from_secs(60);

/// Many nodes around a broker.
pub struct Nats {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    /// Each ends with its thread.
    threads: Mutex<Vec<mpsc::Receiver<()>>>,
}

/// What the engine's thread and its callers have in common.
struct Shared {
    node: Arc<str>,
    boot: u64,
    broker: Broker,
    profile: Profile,
    log: Log,
    hub: Arc<Hub>,
    members: Mutex<Members>,
}

impl Shared {
    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known of others, and tells the hub what came of it.
    fn with_members<T>(&self, change: impl FnOnce(&mut Members, &mut Vec<News>) -> T) -> T {
        let mut news = Vec::new();
        let mut members = self.members();
        let answer = change(&mut members, &mut news);
        // With the lock still held: news are in the order of the changes.
        if !news.is_empty() {
            self.hub.put(news);
        }
        answer
    }
}

impl Nats {
    /// Starts a node. It is up whether or not the broker can be reached: what is said waits for it.
    pub fn start(options: Options) -> Result<Self, StartError> {
        let broker = options.check()?;
        let (node, boot): (Arc<str>, u64) =
            (options.node.into(), new_boot().map_err(|error| StartError::Thread(error.into()))?);
        let members = Members::new(node.clone(), boot, options.profile.silence(), Instant::now());
        let shared = Arc::new(Shared {
            node,
            boot,
            broker,
            profile: options.profile,
            log: Log::new(),
            hub: Arc::new(Hub::default()),
            members: Mutex::new(members),
        });
        let (stop, stopped) = watch::channel(false);
        // From here on, whatever fails, dropping it ends what was started.
        let engine = Self { shared: shared.clone(), stop, threads: Mutex::default() };
        let hub = shared.hub.clone();
        engine.spawn("hub", move || hub.run())?;
        engine.spawn("nats", move || session::run(&shared, stopped))?;
        Ok(engine)
    }

    fn spawn(&self, kind: &str, run: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
        let (running, ended) = mpsc::channel();
        let name = format!("{kind}-{}", self.shared.node);
        let run = move || {
            // Dropped at the end, however that comes.
            let _running: mpsc::Sender<()> = running;
            run();
        };
        thread::Builder::new().name(name).spawn(run).map_err(StartError::Thread)?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(ended);
        Ok(())
    }

    /// Ends both threads and waits for them, unless a handler takes its time.
    fn end(&self) {
        self.stop.send_replace(true);
        self.shared.log.abandon();
        self.shared.hub.end();
        self.shared.members().leave();
        let limit = Instant::now() + END_DEADLINE;
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for ended in threads {
            // Ends with the thread, not with a message.
            let _ = ended.recv_timeout(limit.saturating_duration_since(Instant::now()));
        }
    }

    fn push(&self, to: &str, event: &str, payload: &[u8]) -> Result<(), Error> {
        self.shared.log.push(wire::parts(to, event, payload))
    }
}

impl Engine for Nats {
    fn node(&self) -> &str {
        &self.shared.node
    }

    fn say(&self, event: &str, payload: &[u8]) -> Result<usize, Error> {
        check_event(event, payload)?;
        self.push("", event, payload)?;
        Ok(self.shared.members().up())
    }

    fn tell(&self, node: &str, event: &str, payload: &[u8]) -> Result<(), Error> {
        check_event(event, payload)?;
        if self.shared.log.has_closed() {
            return Err(Error::Closed);
        }
        if !self.shared.members().is_up(node) {
            return Err(Error::NoSuchNode(node.into()));
        }
        self.push(node, event, payload)
    }

    fn subscribe(&self, event: &str, handler: Handler) -> Subscription {
        self.shared.hub.subscribe(event, handler)
    }

    fn subscribe_all(&self, handler: Handler) -> Subscription {
        self.shared.hub.subscribe_all(handler)
    }

    fn watch(&self, watcher: Watcher) -> Subscription {
        self.shared.hub.watch(watcher)
    }

    fn status(&self) -> Status {
        let log = self.shared.log.standing();
        let members = self.shared.members();
        Status {
            engine: "nats",
            node: self.shared.node.to_string(),
            boot: format!("{:x}", self.shared.boot),
            address: Some(self.shared.broker.address.clone()),
            said: log.said,
            backlog: log.pieces,
            backlog_bytes: log.bytes,
            lost: 0,
            waiting: self.shared.hub.waiting(),
            refused: members.refused(),
            members: members.list(Instant::now()),
        }
    }

    fn leave(&self) {
        if self.shared.log.close() {
            self.shared.log.drain(LEAVE_DEADLINE);
        }
        self.end();
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.end();
    }
}

impl std::fmt::Debug for Nats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nats").field("node", &self.shared.node).finish_non_exhaustive()
    }
}
