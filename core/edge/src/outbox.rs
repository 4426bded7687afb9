//! The sending side of a connection, usable from any thread. Written directly; kept only where the
//! socket would block, or where a loop gathers what its turns send. Bounded: a peer that does not read
//! is too slow, and is closed with a last frame that says so.
//!
//! Where the socket blocks it is known in which frame that was: so a last or urgent frame can be put
//! between two others, never into one.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mio::net::TcpStream;
use serde::{Deserialize, Serialize};

use crate::peers::{Cid, Peers};
use crate::readiness::Home;

/// Bytes that are gathered for one write.
const GATHERED: usize = 64 * 1024;
/// A frame for fewer peers is sent to each of them at once.
const FEW: usize = 8;
/// A peer that leaves so many bytes unread is not read either.
const UNREAD: usize = 256 * 1024;
/// Buffers that a thread keeps for the next turns, and how long they may be.
const SPARE: usize = 32;
const SPARE_SIZE: usize = 16 * 1024;

thread_local! {
    static GATHERS: Cell<Gathers> = const { Cell::new(Gathers::Nothing) };
    /// Whose frames are gathered: those of the loop's own edge. What goes to another edge goes at once, since
    /// that one may be carried away before this turn is over.
    static OWN: Cell<*const Peers> = const { Cell::new(std::ptr::null()) };
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

/// True where this thread gathers what goes to these peers.
#[inline]
fn gathers_for(peers: &Arc<Peers>) -> bool {
    GATHERS.get() != Gathers::Nothing && std::ptr::eq(OWN.get(), Arc::as_ptr(peers))
}

/// See [`Peers::send`].
pub(crate) fn broadcast(peers: &Arc<Peers>, cids: &[[u8; 8]], frame: &[u8]) -> u64 {
    if !gathers_for(peers) || cids.len() < FEW {
        // What came first goes first.
        flush_broadcast();
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
#[inline]
fn flush_broadcast() {
    if GATHERS.get() != Gathers::Broadcast {
        return;
    }
    if let Some(broadcast) = GATHERING.with_borrow_mut(|gathering| gathering.broadcast.take()) {
        GATHERS.set(Gathers::Frames);
        broadcast.peers.send_now(&broadcast.cids, &broadcast.frames);
    }
}

/// What this thread sends to these peers is gathered until [`flush_gathered`].
pub(crate) fn gather(peers: &Arc<Peers>) {
    OWN.set(Arc::as_ptr(peers));
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
    /// Something went out since this was asked.
    has_moved: AtomicBool,
    state: Mutex<State>,
}

struct State {
    backlog: Vec<u8>,
    /// Bytes of the backlog that are out.
    sent: usize,
    /// Where the frame begins that is half out, and where it ends. Known while the socket blocks.
    frame: (usize, usize),
    /// Bytes at the front that are no frame: the answer to an upgrade.
    unframed: usize,
    /// A frame that goes out before the others.
    urgent: Box<[u8]>,
    is_gathered: bool,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    Open,
    /// Nothing is added; the sending side is shut when the backlog is out.
    Finishing,
    Gone,
}

/// What an outbox has not sent, on its way to another edge.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Unsent {
    #[serde(with = "serde_bytes")]
    backlog: Vec<u8>,
    sent: usize,
    frame: (usize, usize),
    unframed: usize,
    #[serde(with = "serde_bytes")]
    urgent: Vec<u8>,
    end: End,
}

impl Outbox {
    pub(crate) fn new(socket: TcpStream, cid: Cid, home: Arc<Home>) -> Self {
        let state = State {
            backlog: Vec::new(),
            sent: 0,
            frame: (0, 0),
            unframed: 0,
            urgent: Box::default(),
            is_gathered: false,
            end: End::Open,
        };
        let (is_blocked, has_moved) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { socket, home, cid, is_blocked, has_moved, state: Mutex::new(state) }
    }

    /// What is not sent; None where there is nothing, and it is open. Nobody may send meanwhile.
    pub(crate) fn unsent(&self) -> Option<Unsent> {
        let state = self.state();
        if state.end == End::Open && state.backlog.len() == state.sent && state.urgent.is_empty() {
            return None;
        }
        Some(Unsent {
            backlog: state.backlog.clone(),
            sent: state.sent,
            frame: state.frame,
            unframed: state.unframed,
            urgent: state.urgent.to_vec(),
            end: state.end,
        })
    }

    /// Bytes that it keeps.
    pub(crate) fn waiting(&self) -> usize {
        self.state().backlog.len()
    }

    /// Goes on with what another outbox has not sent: as soon as the loop hears that the socket takes it.
    pub(crate) fn go_on_with(&self, unsent: Unsent) {
        let Unsent { backlog, sent, frame, unframed, urgent, end } = unsent;
        let mut state = self.state();
        self.is_blocked.store(sent < backlog.len() || !urgent.is_empty(), Ordering::SeqCst);
        (state.backlog, state.sent, state.frame, state.unframed) = (backlog, sent, frame, unframed);
        (state.urgent, state.end) = (urgent.into(), end);
        // Whether anything went out lately is not known here.
        self.has_moved.store(true, Ordering::Relaxed);
    }

    /// True for a peer that was too slow, and whose connection is not finished yet.
    pub(crate) fn is_finishing(&self) -> bool {
        self.state().end == End::Finishing
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
        // What came first goes first.
        flush_broadcast();
        self.send_now(append)
    }

    pub(crate) fn send_now(self: &Arc<Self>, append: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut state = self.state();
        if state.end != End::Open {
            return false;
        }
        if self.is_blocked() {
            let before = state.backlog.len();
            append(&mut state.backlog);
            return self.check(&mut state, before);
        }
        if !gathers_for(&self.home.peers) {
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

    /// Sends bytes that are no frame, before the first frame.
    pub fn send_unframed(self: &Arc<Self>, bytes: &[u8]) -> bool {
        self.send(|backlog| backlog.extend_from_slice(bytes)) && {
            let mut state = self.state();
            if state.backlog.len() > state.sent {
                state.unframed = state.backlog.len();
                state.frame = (0, state.unframed);
            }
            true
        }
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

    /// True for a peer that leaves much unread: it is not read either, so that its own requests wait.
    pub(crate) fn is_held(&self) -> bool {
        self.is_blocked() && {
            let state = self.state();
            state.backlog.len() - state.sent > UNREAD
        }
    }

    pub(crate) fn shut(&self) {
        self.state().end = End::Gone;
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// True where bytes went out since this was asked the last time.
    pub fn has_moved(&self) -> bool {
        self.has_moved.swap(false, Ordering::Relaxed)
    }

    /// The socket takes no more: finds the frame that is half out.
    fn find_frame(&self, state: &mut State) {
        if state.frame.1 == 0 {
            state.frame.1 = state.unframed;
        }
        while state.frame.1 <= state.sent {
            let start = state.frame.1;
            let length = (self.home.framing.length)(&state.backlog[start..]).unwrap_or(usize::MAX);
            state.frame = (start, start.saturating_add(length).min(state.backlog.len()));
        }
        // Forgets frames that are out whole.
        let whole = state.frame.0;
        if whole > GATHERED {
            state.backlog.drain(..whole);
            state.sent -= whole;
            state.frame = (0, state.frame.1 - whole);
            state.unframed = state.unframed.saturating_sub(whole);
        }
    }

    /// False: too much waits behind the frame that is half out. One frame alone never is too much.
    fn check(&self, state: &mut State, before: usize) -> bool {
        let place = state.frame.1;
        if before <= place || state.backlog.len() - place <= self.home.limits.backlog {
            return true;
        }
        state.backlog.truncate(place);
        state.backlog.extend_from_slice(&self.home.framing.too_slow);
        state.end = End::Finishing;
        self.home.peers.counters.too_slow.fetch_add(1, Ordering::Relaxed);
        self.home.door.too_slow(self.cid);
        false
    }

    fn flush_locked(&self, state: &mut State) {
        if !state.urgent.is_empty() {
            let place = state.frame.1.min(state.backlog.len());
            state.backlog.splice(place..place, std::mem::take(&mut state.urgent));
        }
        while state.sent < state.backlog.len() {
            match (&self.socket).write(&state.backlog[state.sent..]) {
                Ok(count) if count > 0 => {
                    state.sent += count;
                    self.has_moved.store(true, Ordering::Relaxed);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // Once more after it is known that we wait: what the loop heard before, it did not
                    // know to be for us.
                    if self.is_blocked.swap(true, Ordering::SeqCst) {
                        return self.find_frame(state);
                    }
                }
                Ok(_) | Err(_) => {
                    // Gone: the reading side hears of it.
                    state.sent = state.backlog.len();
                    state.end = End::Gone;
                }
            }
        }
        self.is_blocked.store(false, Ordering::SeqCst);
        (state.sent, state.frame, state.unframed) = (0, (0, 0), 0);
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
}
