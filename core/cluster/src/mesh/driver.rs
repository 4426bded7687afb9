//! Runs a [`Node`] on sockets: a runtime of its own for connections and datagrams, and one thread for handlers.
//! What is decided, the node decides, under one lock that nobody waits with.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::datagram::{Opener, Sealer};
use super::link::Conn;
use super::node::{Action, Node};
use super::noise::{self, Reader, Sealed, Writer};
use super::seeds;
use crate::hub::{Hub, lock};
use crate::key::Keys;
use crate::life::unix_ms;
use crate::{Error, SAY_TIMEOUT};

/// Connections that whoever says writes to himself, at most.
const DIRECT: usize = 4;
/// And only so long after the event before: what comes faster is gathered, and written together.
const CALM: Duration = Duration::from_micros(300);
/// Connecting and the handshake may take so long.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// Handshakes of others under way; who comes then takes the place of whoever is at it for longest.
const STRANGERS: usize = 64;
/// A reader that waits for its handlers says so often that it is there.
const STILL_HERE: Duration = Duration::from_millis(500);
/// The log says of refusals at most so often.
const REFUSALS: Duration = Duration::from_secs(10);
/// The largest datagram that is looked at.
const DATAGRAM: usize = 2048;
/// Names of seeds are looked up again so often.
const LOOK_UP: Duration = Duration::from_secs(10);

/// What the tasks and threads of a node share.
pub struct Shared {
    node: Mutex<Node>,
    pub hub: Arc<Hub>,
    /// Somebody has taken something: there may be room to say more.
    room: Condvar,
    /// Threads that wait for room.
    sayers: AtomicUsize,
    pub has_left: AtomicBool,
    lines: Mutex<HashMap<Conn, Line>>,
    udp: UdpSocket,
    sealer: Mutex<Sealer>,
    keys: Keys,
    handle: Handle,
    /// When something was last said, in microseconds since the start.
    said: AtomicU64,
    /// What was refused at the door: counted beside the node, so that whoever knows no key takes nobody's time.
    refused: AtomicU64,
    /// When a refusal was last logged, in milliseconds since the start.
    logged: AtomicU64,
    start: Instant,
}

/// A connection, as it is reached from elsewhere.
struct Line {
    wake: Arc<Notify>,
    task: AbortHandle,
    /// Once it is sealed.
    writer: Option<Arc<Writer>>,
}

/// What comes on a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Brings {
    /// It was made there: what the other says.
    Events,
    /// It was made here: what the other has.
    Acks,
}

/// How far a connection has come.
enum Written {
    /// Nothing is left.
    All,
    /// There may be more.
    Some,
    /// There is more, and the socket takes none of it now.
    Full,
}

impl Shared {
    pub fn new(
        node: Node,
        hub: Arc<Hub>,
        udp: UdpSocket,
        sealer: Sealer,
        keys: Keys,
        handle: Handle,
    ) -> Self {
        Self {
            node: Mutex::new(node),
            hub,
            room: Condvar::new(),
            sayers: AtomicUsize::new(0),
            has_left: AtomicBool::new(false),
            lines: Mutex::default(),
            udp,
            sealer: Mutex::new(sealer),
            keys,
            handle,
            said: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            logged: AtomicU64::new(0),
            start: Instant::now(),
        }
    }

    /// Lets the node decide something, and does what it wants.
    pub fn with<T>(self: &Arc<Self>, what: impl FnOnce(&mut Node) -> T) -> T {
        let mut node = lock(&self.node);
        let done = what(&mut node);
        self.settle(node);
        done
    }

    fn settle(self: &Arc<Self>, mut node: MutexGuard<'_, Node>) {
        let wanted = self.hand_on(&mut node);
        drop(node);
        wanted.into_iter().for_each(|action| self.act(action));
    }

    /// Hands on what there is, under the lock: so it keeps its order. What else the node wants needs none.
    fn hand_on(&self, node: &mut Node) -> Vec<Action> {
        let news = node.news();
        if !news.is_empty() {
            self.hub.put(news);
        }
        if self.sayers.load(Ordering::Relaxed) > 0 {
            self.room.notify_all();
        }
        node.actions()
    }

    /// Whoever says writes to connections at rest himself, where they are few: to wake somebody who does it takes
    /// longer than the writing. False: somebody has to be woken.
    fn write_here(&self, action: &Action) -> bool {
        let Action::Wake(conn) = action else { return false };
        let writer = lock(&self.lines).get(conn).and_then(|line| line.writer.clone());
        let Some(writer) = writer else { return false };
        let Some(mut sealing) = writer.try_lock() else { return false };
        let mut bytes = Vec::new();
        // What others say meanwhile is not this one's to write.
        for _ in 0..2 {
            bytes.clear();
            if !sealing.is_empty() {
                return false;
            }
            if !lock(&self.node).pull(*conn, &mut bytes, Instant::now()) {
                return true;
            }
            // What fails here fails again in the connection's own task.
            if sealing.seal(&bytes).is_err() || writer.try_flush(&mut sealing).is_err() {
                return false;
            }
        }
        false
    }

    pub(super) fn act(self: &Arc<Self>, action: Action) {
        match action {
            Action::Datagram { to, bytes } => {
                let sealed = lock(&self.sealer).seal(&bytes, unix_ms());
                // One that is lost is not missed: that is what membership is made for.
                let _ = self.udp.try_send_to(&sealed, to);
            }
            Action::Dial { conn, to } => {
                let shared = self.clone();
                self.line(conn, |wake| shared.dial(conn, to, wake));
            }
            Action::Close(conn) => {
                if let Some(line) = lock(&self.lines).remove(&conn) {
                    line.task.abort();
                }
            }
            Action::Wake(conn) => {
                if let Some(line) = lock(&self.lines).get(&conn) {
                    line.wake.notify_one();
                }
            }
        }
    }

    /// A task for a connection.
    fn line<F>(&self, conn: Conn, task: impl FnOnce(Arc<Notify>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let wake = Arc::new(Notify::new());
        let mut lines = lock(&self.lines);
        let task = self.handle.spawn(task(wake.clone())).abort_handle();
        lines.insert(conn, Line { wake, task, writer: None });
    }

    /// Says an event, or tells it to one node. Waits for room.
    pub fn say(self: &Arc<Self>, event: &str, payload: &[u8], to: Option<&str>) -> Result<usize, Error> {
        let began = Instant::now();
        let mut now = began;
        let mut node = lock(&self.node);
        loop {
            if self.has_left.load(Ordering::Relaxed) {
                return Err(Error::Closed);
            }
            let told = match to {
                Some(name) => Some(node.up(name).ok_or_else(|| Error::NoSuchNode(name.into()))?),
                None => None,
            };
            let until = match node.say(event, payload, told.as_ref(), now) {
                Ok(up) => {
                    let wanted = self.hand_on(&mut node);
                    drop(node);
                    let since_start = now.duration_since(self.start).as_micros() as u64;
                    let before = self.said.swap(since_start, Ordering::Relaxed);
                    let is_calm = since_start >= before + CALM.as_micros() as u64;
                    let goes_here = is_calm && wanted.len() <= DIRECT;
                    for action in wanted {
                        if !(goes_here && self.write_here(&action)) {
                            self.act(action);
                        }
                    }
                    return Ok(up);
                }
                Err(until) => until,
            };
            self.hub.put(node.news());
            let last = began + SAY_TIMEOUT + Duration::from_millis(100);
            if now >= last {
                return Err(Error::Busy);
            }
            self.sayers.fetch_add(1, Ordering::Relaxed);
            let wait = until.min(last).saturating_duration_since(now).max(Duration::from_millis(1));
            node = self.room.wait_timeout(node, wait).unwrap_or_else(PoisonError::into_inner).0;
            now = Instant::now();
            self.sayers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Makes a connection and serves it.
    async fn dial(self: Arc<Self>, conn: Conn, to: SocketAddr, wake: Arc<Notify>) {
        let made = timeout(HANDSHAKE, async {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            noise::dial(stream, &self.keys).await
        });
        match made.await {
            Ok(Ok(sealed)) => {
                self.with(|node| node.connected(conn, Instant::now()));
                self.serve(conn, sealed, wake, Brings::Acks).await;
            }
            Ok(Err(error)) => tracing::debug!("cluster: no connection to {to}: {error}"),
            Err(_) => tracing::debug!("cluster: no connection to {to} in {} s", HANDSHAKE.as_secs()),
        }
        self.closed(conn);
    }

    fn closed(self: &Arc<Self>, conn: Conn) {
        lock(&self.lines).remove(&conn);
        self.with(|node| node.closed(conn, Instant::now()));
    }

    /// Takes connections of others in.
    pub async fn listen(self: Arc<Self>, listener: TcpListener) {
        // Dropped, each of these ends its handshake.
        let mut strangers: VecDeque<oneshot::Sender<()>> = VecDeque::with_capacity(STRANGERS);
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely.
                    tracing::warn!("cluster: no connection can be taken in: {error}");
                    sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            strangers.retain(|stranger| !stranger.is_closed());
            if strangers.len() >= STRANGERS {
                // A node says who it is within milliseconds: whoever is here for longest is none, most likely. Were
                // the new one refused instead, a few silent sockets would keep all nodes out.
                strangers.pop_front();
            }
            let (place, is_taken) = oneshot::channel();
            strangers.push_back(place);
            tokio::spawn(self.clone().meet(stream, from, is_taken));
        }
    }

    /// Has somebody say who he is, until his place is taken.
    async fn meet(self: Arc<Self>, stream: TcpStream, from: SocketAddr, is_taken: oneshot::Receiver<()>) {
        let sealed = timeout(HANDSHAKE, async {
            stream.set_nodelay(true)?;
            noise::accept(stream, &self.keys).await
        });
        let late = |why: String| Err(io::Error::new(io::ErrorKind::TimedOut, why));
        let sealed = tokio::select! {
            biased;
            sealed = sealed => sealed.unwrap_or_else(|_| late("it does not say who it is".into())),
            _ = is_taken => {
                late(format!("it had not said who it is when {STRANGERS} others came after it"))
            }
        };
        match sealed {
            Ok(sealed) => self.accepted(sealed),
            Err(error) => self.refuse(format_args!("a connection from {from}: {error}")),
        }
    }

    fn accepted(self: &Arc<Self>, sealed: Sealed) {
        let conn = self.with(|node| node.accepted(Instant::now()));
        let shared = self.clone();
        self.line(conn, |wake| async move {
            shared.serve(conn, sealed, wake, Brings::Events).await;
            shared.closed(conn);
        });
    }

    async fn serve(self: &Arc<Self>, conn: Conn, sealed: Sealed, wake: Arc<Notify>, brings: Brings) {
        let Sealed { reader, writer } = sealed;
        if let Some(line) = lock(&self.lines).get_mut(&conn) {
            line.writer = Some(writer.clone());
        }
        let ended = tokio::select! {
            ended = self.read(conn, reader, brings) => ended,
            ended = self.write(conn, &writer, &wake) => ended,
        };
        if let Err(error) = ended {
            tracing::debug!("cluster: connection {conn} ended: {error}");
        }
    }

    async fn read(self: &Arc<Self>, conn: Conn, mut reader: Reader, brings: Brings) -> io::Result<()> {
        loop {
            match self.with(|node| node.received(conn, &mut reader.opened, Instant::now())) {
                Ok(true) => {}
                // Closed before there was a task to end.
                Ok(false) => return Ok(()),
                Err(violation) => {
                    self.refuse(format_args!("{violation}"));
                    return Err(io::Error::new(io::ErrorKind::InvalidData, violation));
                }
            }
            // What is not read is not acked: so whoever says waits for the handlers here.
            while brings == Brings::Events && !self.hub.has_room() {
                let _ = timeout(STILL_HERE, self.hub.room()).await;
                self.with(|node| node.still_here(conn, Instant::now()));
            }
            reader.more().await?;
        }
    }

    async fn write(self: &Arc<Self>, conn: Conn, writer: &Writer, wake: &Notify) -> io::Result<()> {
        let mut bytes = Vec::new();
        loop {
            match self.write_some(conn, writer, &mut bytes)? {
                Written::All => wake.notified().await,
                Written::Some => tokio::task::yield_now().await,
                Written::Full => writer.writable().await?,
            }
        }
    }

    /// One piece after what is not out yet.
    fn write_some(&self, conn: Conn, writer: &Writer, bytes: &mut Vec<u8>) -> io::Result<Written> {
        let mut sealing = writer.lock();
        if sealing.is_empty() {
            bytes.clear();
            if !lock(&self.node).pull(conn, bytes, Instant::now()) {
                return Ok(Written::All);
            }
            sealing.seal(bytes)?;
        }
        Ok(if writer.try_flush(&mut sealing)? { Written::Some } else { Written::Full })
    }

    /// Takes datagrams in.
    pub async fn hear(self: Arc<Self>, mut opener: Opener) {
        let mut buffer = [0; DATAGRAM];
        loop {
            let (length, from) = match self.udp.recv_from(&mut buffer).await {
                Ok(received) => received,
                // What somebody else's machine said of a datagram of ours.
                Err(_) => {
                    sleep(Duration::from_millis(1)).await;
                    continue;
                }
            };
            match opener.open(&buffer[..length], unix_ms()) {
                Ok(content) => {
                    if let Err(error) = self.with(|node| node.datagram(&content, Instant::now())) {
                        self.refuse(format_args!("a datagram from {from}: {error}"));
                    }
                }
                Err(refusal) => self.refuse(format_args!("from {from}: {refusal}")),
            }
        }
    }

    /// Does what is due, again and again.
    pub async fn tick(self: Arc<Self>) {
        loop {
            let due = self.with(|node| {
                node.tick(Instant::now());
                node.due()
            });
            tokio::time::sleep_until(due.into()).await;
        }
    }

    /// Looks up the names of seeds.
    pub async fn look_up(self: Arc<Self>, seeds: Vec<String>) {
        let ask = |name| async move { tokio::net::lookup_host::<String>(name).await.map(Iterator::collect) };
        seeds::follow(seeds, LOOK_UP, ask, move |addresses| self.with(|node| node.set_seeds(addresses)))
            .await;
    }

    /// Counts a refusal, and logs it where the last line is long ago. Before that nothing is written: anybody can
    /// send a million of them.
    fn refuse(&self, what: fmt::Arguments<'_>) {
        let count = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        let now = self.start.elapsed().as_millis() as u64 + 1;
        let logged = self.logged.load(Ordering::Relaxed);
        let is_due = logged == 0 || now >= logged + REFUSALS.as_millis() as u64;
        if is_due && self.logged.compare_exchange(logged, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            tracing::warn!("cluster: refused {what} ({count} refused so far)");
        }
    }

    /// How many were refused at the door.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Ends all connections, as a network does that forgets them.
    #[cfg(test)]
    pub fn cut(self: &Arc<Self>) {
        let lines: Vec<(Conn, Line)> = lock(&self.lines).drain().collect();
        for (conn, line) in lines {
            line.task.abort();
            self.with(|node| node.closed(conn, Instant::now()));
        }
    }

    /// Lets out what is owed, tells the others, and takes nothing more.
    pub fn leave(self: &Arc<Self>, patience: Duration) {
        if self.has_left.swap(true, Ordering::Relaxed) {
            return;
        }
        self.room.notify_all();
        self.with(Node::farewell);
        let end = Instant::now() + patience;
        while Instant::now() < end && !self.with(|node| node.is_drained()) {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.with(|node| node.leave(Instant::now()));
        self.hub.end();
    }
}
