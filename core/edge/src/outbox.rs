//! The sending side of a connection, usable from any thread. Written directly; kept only where the
//! socket would block, or where a loop gathers what its turns send. Bounded: a peer that does not read
//! is too slow, and is closed with a last frame that says so.
//!
//! The backlog always begins with a whole frame, of which `sent` bytes may be out already: so a last or
//! urgent frame can be put between two others, never into one.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mio::net::TcpStream;

use crate::peers::{Cid, Peers};
use crate::readiness::Home;

/// Bytes that are gathered for one write.
const GATHERED: usize = 64 * 1024;
/// A frame for fewer peers is sent to each of them at once.
const FEW: usize = 8;
/// Buffers that a thread keeps for the next turns, and how long they may be.
const SPARE: usize = 32;
const SPARE_SIZE: usize = 16 * 1024;

thread_local! {
    static GATHERS: Cell<Gathers> = const { Cell::new(Gathers::Nothing) };
    static GATHERING: RefCell<Gathering> = const {
        RefCell::new(Gathering { outboxes: Vec::new(), spare: Vec::new(), broadcast: None })
    };
}

/// What a thread gathers at present.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gathers {
    Nothing,
    Frames,
    /// And a broadcast that is in no outbox yet.
    Broadcast,
}

struct Gathering {
    outboxes: Vec<Arc<Outbox>>,
    spare: Vec<Vec<u8>>,
    broadcast: Option<Broadcast>,
}

/// Frames for the same peers.
struct Broadcast {
    peers: Arc<Peers>,
    cids: Vec<[u8; 8]>,
    frames: Vec<u8>,
    reached: u64,
}

/// See [`Peers::send`].
pub(crate) fn broadcast(peers: &Arc<Peers>, cids: &[[u8; 8]], frame: &[u8]) -> u64 {
    if GATHERS.get() == Gathers::Nothing || cids.len() < FEW {
        return peers.send_now(cids, frame);
    }
    let joined = GATHERING.with_borrow_mut(|gathering| {
        let broadcast = gathering.broadcast.as_mut()?;
        let is_same = Arc::ptr_eq(&broadcast.peers, peers) && broadcast.cids == cids;
        if !is_same || broadcast.frames.len() + frame.len() > GATHERED {
            return None;
        }
        broadcast.frames.extend_from_slice(frame);
        Some(broadcast.reached)
    });
    if let Some(reached) = joined {
        return reached;
    }
    flush_broadcast();
    let reached = peers.count(cids);
    let broadcast = Broadcast { peers: peers.clone(), cids: cids.into(), frames: frame.into(), reached };
    GATHERING.with_borrow_mut(|gathering| gathering.broadcast = Some(broadcast));
    GATHERS.set(Gathers::Broadcast);
    reached
}

/// Puts a gathered broadcast into its outboxes.
#[cold]
fn flush_broadcast() {
    if let Some(broadcast) = GATHERING.with_borrow_mut(|gathering| gathering.broadcast.take()) {
        GATHERS.set(Gathers::Frames);
        broadcast.peers.send_now(&broadcast.cids, &broadcast.frames);
    }
}

/// What this thread sends is gathered until [`flush_gathered`].
pub(crate) fn gather() {
    GATHERS.set(Gathers::Frames);
}

/// Writes what was gathered, one write for each connection.
pub(crate) fn flush_gathered() {
    flush_broadcast();
    GATHERS.set(Gathers::Nothing);
    let mut outboxes = GATHERING.with_borrow_mut(|gathering| std::mem::take(&mut gathering.outboxes));
    for outbox in outboxes.drain(..) {
        let mut state = outbox.state();
        state.is_gathered = false;
        outbox.flush_locked(&mut state);
    }
    // The list keeps its memory.
    GATHERING.with_borrow_mut(|gathering| gathering.outboxes = outboxes);
}

/// What a connection is to be sent.
pub struct Outbox {
    socket: TcpStream,
    home: Arc<Home>,
    cid: Cid,
    /// The socket takes no more at present: the loop writes on when it does. Changed under the lock.
    is_blocked: AtomicBool,
    state: Mutex<State>,
}

struct State {
    backlog: Vec<u8>,
    sent: usize,
    /// A frame that goes out before the others.
    urgent: Box<[u8]>,
    is_gathered: bool,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// Nothing is added; the sending side is shut when the backlog is out.
    Finishing,
    Gone,
}

impl Outbox {
    pub(crate) fn new(socket: TcpStream, cid: Cid, home: Arc<Home>) -> Self {
        let state = State {
            backlog: Vec::new(),
            sent: 0,
            urgent: Box::default(),
            is_gathered: false,
            end: End::Open,
        };
        Self { socket, home, cid, is_blocked: AtomicBool::new(false), state: Mutex::new(state) }
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub(crate) fn into_socket(self) -> TcpStream {
        self.socket
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }

    #[inline]
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one whole frame, which `append` writes behind what it is given. False: the peer is too slow, or
    /// gone.
    pub fn send(self: &Arc<Self>, append: impl FnOnce(&mut Vec<u8>)) -> bool {
        if GATHERS.get() == Gathers::Broadcast {
            // What came first goes first.
            flush_broadcast();
        }
        self.send_now(append)
    }

    pub(crate) fn send_now(self: &Arc<Self>, append: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut state = self.state();
        if state.end != End::Open {
            return false;
        }
        if self.is_blocked() {
            append(&mut state.backlog);
            return self.check(&mut state);
        }
        if GATHERS.get() == Gathers::Nothing {
            append(&mut state.backlog);
            self.flush_locked(&mut state);
            return true;
        }
        if !state.is_gathered {
            state.is_gathered = true;
            GATHERING.with_borrow_mut(|gathering| {
                if state.backlog.capacity() == 0
                    && let Some(spare) = gathering.spare.pop()
                {
                    state.backlog = spare;
                }
                gathering.outboxes.push(self.clone());
            });
        }
        append(&mut state.backlog);
        if state.backlog.len() > GATHERED {
            self.flush_locked(&mut state);
        }
        true
    }

    /// Sends one whole frame.
    pub fn send_bytes(self: &Arc<Self>, frame: &[u8]) -> bool {
        self.send(|backlog| backlog.extend_from_slice(frame))
    }

    /// Sends one whole frame before everything that waits, in place of another that does.
    pub fn send_urgent(self: &Arc<Self>, frame: &[u8]) -> bool {
        let mut state = self.state();
        if state.end == End::Open && self.is_blocked() {
            // Of several that wait the last one counts: an answer to an old ping says nothing new.
            state.urgent = frame.into();
            return true;
        }
        drop(state);
        self.send_bytes(frame)
    }

    /// Nothing is added after this; the sending side is shut when everything is out.
    pub(crate) fn finish(&self) {
        let mut state = self.state();
        if state.end == End::Open {
            state.end = End::Finishing;
            if !self.is_blocked() {
                self.flush_locked(&mut state);
            }
        }
    }

    /// Writes on, after the socket would have blocked.
    pub(crate) fn flush(&self) {
        let mut state = self.state();
        if self.is_blocked() {
            self.flush_locked(&mut state);
        }
    }

    #[inline]
    pub(crate) fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Relaxed)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state().end == End::Open
    }

    /// Bytes that wait because the peer does not read.
    pub(crate) fn waiting(&self) -> usize {
        let state = self.state();
        if self.is_blocked() { state.backlog.len() - state.sent } else { 0 }
    }

    pub(crate) fn shut(&self) {
        self.state().end = End::Gone;
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// The end of the frame that is half out.
    fn boundary(&self, state: &State) -> usize {
        let mut at = 0;
        while at < state.sent {
            match (self.home.framing.length)(&state.backlog[at..]) {
                Some(length) => at += length,
                None => return state.backlog.len(),
            }
        }
        at.min(state.backlog.len())
    }

    /// False: too much waits. One frame alone never is too much.
    fn check(&self, state: &mut State) -> bool {
        if state.backlog.len() - state.sent <= self.home.limits.backlog {
            return true;
        }
        let place = self.boundary(state);
        state.backlog.truncate(place);
        state.backlog.extend_from_slice(&self.home.framing.too_slow);
        state.end = End::Finishing;
        self.home.peers.counters.too_slow.fetch_add(1, Ordering::Relaxed);
        self.home.door.too_slow(self.cid);
        false
    }

    fn flush_locked(&self, state: &mut State) {
        if !state.urgent.is_empty() {
            let place = self.boundary(state);
            state.backlog.splice(place..place, std::mem::take(&mut state.urgent));
        }
        while state.sent < state.backlog.len() {
            match (&self.socket).write(&state.backlog[state.sent..]) {
                Ok(count) if count > 0 => state.sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.is_blocked.store(true, Ordering::Relaxed);
                    return self.drop_sent(state);
                }
                Ok(_) | Err(_) => {
                    // Gone: the reading side hears of it.
                    state.sent = state.backlog.len();
                    state.end = End::Gone;
                }
            }
        }
        self.is_blocked.store(false, Ordering::Relaxed);
        state.sent = 0;
        let mut buffer = std::mem::take(&mut state.backlog);
        if buffer.capacity() <= SPARE_SIZE && GATHERING.with_borrow(|gathering| gathering.spare.len() < SPARE)
        {
            buffer.clear();
            GATHERING.with_borrow_mut(|gathering| gathering.spare.push(buffer));
        }
        if state.end == End::Finishing {
            let _ = self.socket.shutdown(Shutdown::Write);
        }
    }

    /// Forgets frames that are out whole.
    fn drop_sent(&self, state: &mut State) {
        if state.sent < GATHERED {
            return;
        }
        let (mut at, mut whole) = (0, 0);
        while at <= state.sent {
            whole = at;
            match (self.home.framing.length)(&state.backlog[at..]) {
                Some(length) => at += length,
                None => break,
            }
        }
        state.backlog.drain(..whole);
        state.sent -= whole;
    }
}
