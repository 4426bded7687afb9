//! The loop: one thread, its sockets, one protocol. Reads what is ready, gives it its turn, writes.

mod carry;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, ErrorKind, Read};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::accept::Acceptor;
use crate::connection::{Connection, Connections, Next};
use crate::limits::Limits;
use crate::outbox::{self, Outbox};
use crate::peers::{Cid, Peers, slot};
use crate::protocol::{Link, Protocol, To};

pub use carry::{Carried, CarriedPeers};

/// One buffer for all reads of the thread.
const READ: usize = 64 * 1024;
/// Full reads of one connection before others have their turn.
const READS: usize = 4;
/// Turns before what they sent is written.
const BATCH: usize = 32;
/// The loop looks at least so often whether it is to end.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
const FIRST: usize = 2;

/// What an edge knows of the frames that it sends.
pub struct Framing {
    /// Length of the frame that these bytes begin with; None: not even its header is whole.
    pub length: fn(&[u8]) -> Option<usize>,
    /// The last frame for a peer that is too slow.
    pub too_slow: Vec<u8>,
    /// What a connection beyond the limits is sent.
    pub refused: Vec<u8>,
}

/// What the connections of one loop share.
pub(crate) struct Home {
    pub limits: Limits,
    pub framing: Arc<Framing>,
    pub peers: Arc<Peers>,
    pub door: Arc<Door>,
}

/// The way into a loop from other threads.
pub struct Door {
    waker: Waker,
    left: Mutex<Left>,
}

/// What was left at the door.
#[derive(Default)]
struct Left {
    sockets: Vec<(TcpStream, IpAddr)>,
    too_slow: Vec<Cid>,
}

impl Door {
    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, leave: impl FnOnce(&mut Left)) {
        leave(&mut self.left());
        // It fails only where the loop has ended.
        let _ = self.waker.wake();
    }

    pub fn too_slow(&self, cid: Cid) {
        self.leave(|left| left.too_slow.push(cid));
    }
}

/// Wakes a loop: [`Protocol::woken`] is called soon.
#[derive(Clone)]
pub struct Waking(Arc<Door>);

impl Waking {
    /// Wakes it.
    pub fn wake(&self) {
        self.0.leave(|_| {});
    }
}

/// A loop that does not run yet, or one that runs.
pub struct Loop<P: Protocol> {
    poll: Poll,
    acceptor: Option<Acceptor>,
    /// The loops of this edge, this one among them.
    doors: Arc<[Arc<Door>]>,
    next_door: usize,
    home: Arc<Home>,
    connections: Connections<P::Peer>,
    timers: BinaryHeap<Reverse<(Instant, Cid)>>,
    /// Connections that have more to read than one turn takes.
    again: Vec<Cid>,
    now: Instant,
    is_ending: bool,
    /// Its connections are nobody else's: with the loop they end. Not so before it runs, and after it was
    /// abandoned.
    is_owner: bool,
    events: Events,
    buffer: Vec<u8>,
    protocol: P,
}

/// How far a readable socket is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// To a read that does not fill the buffer: it has emptied the socket, and the next byte is another
    /// event.
    Short,
    /// Until it would block or is closed: its end may be there already, and no event will follow.
    Closed,
}

/// The polls and doors of an edge's loops, before their protocols are there.
pub struct Doors(Vec<(Poll, Arc<Door>)>);

impl Doors {
    /// Makes `count` of them.
    pub fn open(count: usize) -> io::Result<Self> {
        let door = |_| {
            let poll = Poll::new()?;
            let waker = Waker::new(poll.registry(), WAKER)?;
            Ok((poll, Arc::new(Door { waker, left: Mutex::default() })))
        };
        (0..count.max(1)).map(door).collect::<io::Result<_>>().map(Self)
    }

    /// What wakes the loops, in their order.
    pub fn waking(&self) -> Vec<Waking> {
        self.0.iter().map(|(_, door)| Waking(door.clone())).collect()
    }

    /// The loops, each with a protocol of its own; the first of them listens.
    pub fn loops<P: Protocol>(
        self,
        listener: std::net::TcpListener,
        peers: &Arc<Peers>,
        limits: &Limits,
        framing: Framing,
        mut protocol: impl FnMut(usize) -> P,
    ) -> io::Result<Vec<Loop<P>>> {
        let mut acceptor = Some(Acceptor::new(listener, self.0[0].0.registry(), LISTENER)?);
        let doors: Arc<[Arc<Door>]> = self.0.iter().map(|(_, door)| door.clone()).collect();
        let framing = Arc::new(framing);
        let make = |(number, (poll, door)): (usize, (Poll, Arc<Door>))| {
            let (limits, framing, peers) = (limits.clone(), framing.clone(), peers.clone());
            Loop {
                poll,
                acceptor: acceptor.take(),
                doors: doors.clone(),
                next_door: 0,
                home: Arc::new(Home { limits, framing, peers, door }),
                connections: Connections::default(),
                timers: BinaryHeap::new(),
                again: Vec::new(),
                now: Instant::now(),
                is_ending: false,
                is_owner: false,
                events: Events::with_capacity(1024),
                buffer: vec![0; READ],
                protocol: protocol(number),
            }
        };
        Ok(self.0.into_iter().enumerate().map(make).collect())
    }
}

impl<P: Protocol> Loop<P> {
    /// Runs until `is_over`. The connections stay, for another run, or for [`Loop::end`].
    pub fn run(&mut self, is_over: impl Fn() -> bool) -> io::Result<()> {
        self.is_owner = true;
        while !is_over() {
            self.round(LONGEST_WAIT)?;
        }
        Ok(())
    }

    /// Says goodbye to everybody, and waits a moment for them to go.
    pub fn end(&mut self) -> io::Result<()> {
        (self.acceptor, self.is_ending) = (None, true);
        outbox::gather(&self.home.peers);
        for cid in self.cids() {
            self.act(cid, |protocol, link| {
                protocol.ending(link);
                link.finish();
            });
        }
        outbox::flush_gathered();
        self.now = Instant::now();
        let deadline = self.now + self.home.limits.linger.min(Duration::from_secs(1));
        while !self.connections.is_empty() && self.now < deadline {
            self.round(deadline - self.now)?;
        }
        self.remove_all();
        Ok(())
    }

    fn cids(&self) -> Vec<Cid> {
        self.connections.iter().map(|(cid, _)| cid).collect()
    }

    /// Waits for events, and lets everybody have a turn.
    fn round(&mut self, longest: Duration) -> io::Result<()> {
        let longest = self.wait().min(longest);
        match self.poll.poll(&mut self.events, Some(longest)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => other?,
        }
        self.now = Instant::now();
        // Out of the loop for the time of the round, so that turns may change it.
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let mut buffer = std::mem::take(&mut self.buffer);
        self.turns(&events, &mut buffer);
        (self.events, self.buffer) = (events, buffer);
        Ok(())
    }

    fn turns(&mut self, events: &Events, buffer: &mut [u8]) {
        let again = std::mem::take(&mut self.again);
        outbox::gather(&self.home.peers);
        for (count, event) in events.iter().enumerate() {
            self.event(event, buffer);
            if count % BATCH == BATCH - 1 {
                outbox::flush_gathered();
                outbox::gather(&self.home.peers);
            }
        }
        for cid in again {
            self.go_on(cid, buffer);
        }
        self.look_at_timers();
        outbox::flush_gathered();
        if self.acceptor.as_ref().is_some_and(|acceptor| acceptor.again.is_some_and(|at| at <= self.now)) {
            self.accept();
        }
    }

    /// How long nothing is to be done unless a socket says so.
    fn wait(&self) -> Duration {
        if !self.again.is_empty() {
            return Duration::ZERO;
        }
        let accept = self.acceptor.as_ref().and_then(|acceptor| acceptor.again);
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        let next = accept.into_iter().chain(timer).min();
        next.map_or(LONGEST_WAIT, |at| at.saturating_duration_since(Instant::now()))
    }

    fn event(&mut self, event: &Event, buffer: &mut [u8]) {
        match event.token() {
            LISTENER => self.accept(),
            WAKER => self.woken(buffer),
            Token(token) => {
                let Some(cid) = self.connections.at(token - FIRST) else { return };
                let Some(connection) = self.connections.get_mut(cid) else { return };
                let mut until = if event.is_read_closed() { Until::Closed } else { Until::Short };
                let mut is_readable = event.is_readable();
                if event.is_writable() && connection.outbox.is_blocked() {
                    connection.outbox.flush();
                    // It may not have been read for that.
                    (is_readable, until) = (true, Until::Closed);
                }
                if is_readable {
                    self.read(cid, buffer, until);
                }
            }
        }
    }

    fn accept(&mut self) {
        let Some(mut acceptor) = self.acceptor.take() else { return };
        let now = self.now;
        let home = self.home.clone();
        acceptor.accept(&home, now, |socket, address| {
            self.next_door = (self.next_door + 1) % self.doors.len();
            let door = &self.doors[self.next_door];
            if Arc::ptr_eq(door, &home.door) {
                self.add(socket, address);
            } else {
                door.leave(|left| left.sockets.push((socket, address)));
            }
        });
        self.acceptor = Some(acceptor);
    }

    fn watch(&self, socket: &mut TcpStream, cid: Cid) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(socket, Token(slot(cid) + FIRST), interest)
    }

    /// Takes an accepted socket in.
    fn add(&mut self, mut socket: TcpStream, address: IpAddr) {
        // It fails for a socket that is gone already: the first read will say so.
        let _ = socket.set_nodelay(true);
        let Some(cid) = self.home.peers.reserve() else { return self.home.peers.counters.leave(address) };
        if let Err(error) = self.watch(&mut socket, cid) {
            tracing::warn!("a connection of {address} cannot be watched: {error}");
            self.home.peers.remove(cid);
            return self.home.peers.counters.leave(address);
        }
        let outbox = Arc::new(Outbox::new(socket, cid, self.home.clone()));
        self.home.peers.fill(cid, &outbox);
        let (peer, due) = self.protocol.opened(cid);
        let connection = Connection {
            outbox,
            peer: Some(peer),
            unread: Vec::new(),
            next: Next::Read,
            again: false,
            due: Some(self.now + due),
            timer: None,
            heard: self.now,
            address,
        };
        self.connections.insert(cid, connection);
        self.settle(cid);
    }

    /// Reads a connection that is ready, and gives it a turn for each read.
    fn read(&mut self, cid: Cid, buffer: &mut [u8], until: Until) {
        for _ in 0..READS {
            let Some(connection) = self.connections.get_mut(cid) else { return };
            if connection.next == Next::Pause || connection.again || connection.outbox.is_held() {
                return;
            }
            match connection.outbox.socket().read(buffer) {
                Ok(0) => return self.remove(cid),
                Ok(count) => {
                    connection.heard = self.now;
                    let is_full = count == buffer.len();
                    self.turn(cid, &mut buffer[..count]);
                    if !is_full && until == Until::Short {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.remove(cid),
            }
        }
        if let Some(connection) = self.connections.get_mut(cid) {
            connection.again = true;
            self.again.push(cid);
        }
    }

    /// The next turn of a connection that has more: first what was read already, then what came since.
    fn go_on(&mut self, cid: Cid, buffer: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(cid) else { return };
        connection.again = false;
        if connection.next == Next::Read {
            self.turn(cid, &mut []);
            self.read(cid, buffer, Until::Closed);
        }
    }

    /// One peer's turn: what was left over, and what was read now.
    fn turn(&mut self, cid: Cid, read: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(cid) else { return };
        let mut unread = std::mem::take(&mut connection.unread);
        if unread.is_empty() {
            let used = self.bytes(cid, read);
            unread.extend_from_slice(&read[used..]);
        } else {
            unread.extend_from_slice(read);
            let used = self.bytes(cid, &mut unread);
            unread.drain(..used);
        }
        let Some(connection) = self.connections.get_mut(cid) else { return };
        if connection.peer.is_some() {
            connection.unread = if unread.is_empty() { Vec::new() } else { unread };
        }
        if connection.again {
            self.again.push(cid);
        }
        self.settle(cid);
    }

    fn bytes(&mut self, cid: Cid, bytes: &mut [u8]) -> usize {
        let length = bytes.len();
        self.guarded(cid, |protocol, link| protocol.bytes(link, bytes)).unwrap_or(length)
    }

    /// Lets the protocol do something with a connection, and does what it wished after that.
    fn act(&mut self, cid: Cid, act: impl FnOnce(&mut P, &mut Link<'_, P::Peer>)) {
        self.guarded(cid, act);
        self.settle(cid);
    }

    /// A panic is the end of this connection alone.
    fn guarded<R>(&mut self, cid: Cid, act: impl FnOnce(&mut P, &mut Link<'_, P::Peer>) -> R) -> Option<R> {
        let connection = self.connections.get_mut(cid)?;
        let mut link = Link::of(cid, connection, self.now)?;
        let protocol = &mut self.protocol;
        let done = catch_unwind(AssertUnwindSafe(|| act(protocol, &mut link)));
        if done.is_err() {
            self.home.peers.counters.panicked.fetch_add(1, Ordering::Relaxed);
            protocol.panicked(&mut link);
            link.finish();
        }
        done.ok()
    }

    /// Does what is to be done with a connection after its turn.
    fn settle(&mut self, cid: Cid) {
        let Some(connection) = self.connections.get_mut(cid) else { return };
        if let Some(due) = connection.due
            && connection.timer.is_none_or(|timer| due < timer)
        {
            connection.timer = Some(due);
            self.timers.push(Reverse((due, cid)));
        }
        match connection.next {
            Next::Read | Next::Pause => {}
            Next::Finish => self.finish(cid),
            Next::Detach => self.detach(cid),
        }
    }

    /// Nothing more is sent to it or heard of it; it is gone when the peer has closed, too, or at the
    /// deadline.
    fn finish(&mut self, cid: Cid) {
        let Some(connection) = self.connections.get_mut(cid) else { return };
        let Some(peer) = connection.peer.take() else { return };
        connection.unread = Vec::new();
        connection.next = Next::Read;
        connection.outbox.finish();
        connection.due = Some(self.now + self.home.limits.linger);
        self.protocol.closed(cid, peer);
        self.settle(cid);
    }

    fn remove_all(&mut self) {
        self.cids().into_iter().for_each(|cid| self.remove(cid));
        self.turn_away();
    }

    /// Closes the sockets that were left at the door of a loop that ends.
    fn turn_away(&self) {
        for (_, address) in self.home.door.left().sockets.drain(..) {
            self.home.peers.counters.leave(address);
        }
    }

    fn remove(&mut self, cid: Cid) {
        let Some(connection) = self.connections.remove(cid) else { return };
        self.home.peers.remove(cid);
        self.home.peers.counters.leave(connection.address);
        // The last owner closes it; an outbox in another thread's hands must not keep it open.
        connection.outbox.shut();
        if let Some(peer) = connection.peer {
            self.protocol.closed(cid, peer);
        }
    }

    fn detach(&mut self, cid: Cid) {
        let Some(Connection { outbox, peer: Some(peer), unread, address, .. }) = self.connections.remove(cid)
        else {
            return;
        };
        self.home.peers.remove(cid);
        self.home.peers.counters.leave(address);
        if let Some(mut socket) = Arc::into_inner(outbox).map(Outbox::into_socket)
            && self.poll.registry().deregister(&mut socket).is_ok()
        {
            self.protocol.detached(socket.into(), unread, peer);
        }
    }

    fn woken(&mut self, buffer: &mut [u8]) {
        if self.is_ending {
            self.turn_away();
        }
        self.take_in();
        let too_slow = std::mem::take(&mut self.home.door.left().too_slow);
        too_slow.into_iter().for_each(|cid| self.finish(cid));
        for (to, note) in self.protocol.woken() {
            match to {
                To::One(cid) => self.note(cid, &note, buffer),
                To::All => self.cids().into_iter().for_each(|cid| self.note(cid, &note, buffer)),
            }
        }
    }

    /// Takes in the sockets that the loop that accepts has left here.
    fn take_in(&mut self) {
        let sockets = std::mem::take(&mut self.home.door.left().sockets);
        sockets.into_iter().for_each(|(socket, address)| self.add(socket, address));
    }

    /// Gives a connection its note, and reads on where that has ended its pause. All others are read when their
    /// sockets say so: a note for all is not to cost a read of each.
    fn note(&mut self, cid: Cid, note: &P::Note, buffer: &mut [u8]) {
        let was_paused = |connection: &mut Connection<P::Peer>| connection.next == Next::Pause;
        let was_paused = self.connections.get_mut(cid).is_some_and(was_paused);
        self.act(cid, |protocol, link| protocol.noted(link, note));
        let Some(connection) = self.connections.get_mut(cid) else { return };
        if was_paused && connection.next == Next::Read && !connection.again {
            self.go_on(cid, buffer);
        }
    }

    fn look_at_timers(&mut self) {
        while let Some(Reverse((at, cid))) = self.timers.peek().copied()
            && at <= self.now
        {
            self.timers.pop();
            let Some(connection) = self.connections.get_mut(cid) else { continue };
            if connection.timer != Some(at) {
                continue;
            }
            connection.timer = None;
            if connection.due.is_some_and(|due| due > self.now) {
                // It was set to a later time meanwhile.
                self.settle(cid);
                continue;
            }
            connection.due = None;
            if connection.peer.is_none() {
                self.remove(cid);
                continue;
            }
            let silent = self.now.saturating_duration_since(connection.heard);
            self.act(cid, |protocol, link| protocol.due(link, silent));
        }
    }
}

/// A loop that ends by an error or a panic leaves nothing behind either.
impl<P: Protocol> Drop for Loop<P> {
    fn drop(&mut self) {
        if !self.is_owner {
            return self.abandon();
        }
        // A second panic here would end the process.
        let _ = catch_unwind(AssertUnwindSafe(|| self.remove_all()));
    }
}
