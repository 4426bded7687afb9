//! The readiness loop: one thread, all sockets. It accepts, reads, and hands whole messages on. A
//! socket never holds it up; what the handler calls on this thread does.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use zephserver_plugin::Stop;
use zephserver_plugin::contract::peer::{Cid, Peer};

use crate::codec::{self, Opcode, Violation};
use crate::handshake::{self, Reading};
use crate::outbox::Outbox;
use crate::peers::Peers;

/// The longest message, in bytes.
const LONGEST: usize = 1024 * 1024;
/// The head of a request must be there within this time.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_secs(1);
/// One buffer for all reads of the thread.
const READ: usize = 64 * 1024;
/// Connections at most.
const CONNECTIONS: usize = 20_000;

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
const FIRST: usize = 2;

/// What the loop tells about its peers. Called on the loop's thread.
pub trait Handler {
    /// A peer has upgraded.
    fn opened(&mut self, peer: Peer, outbox: &Arc<Outbox>);
    /// A peer sent a text message.
    fn message(&mut self, cid: Cid, outbox: &Arc<Outbox>, text: &str) -> Flow;
    /// A peer is gone.
    fn closed(&mut self, cid: Cid);
    /// The waker was used: what came in from other threads. Answers the peers that go on.
    fn woken(&mut self) -> Vec<Cid>;
}

/// Whether the next message of a peer may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Go,
    /// Not before the handler names the peer in `woken`.
    Wait,
}

struct Connection {
    socket: Arc<TcpStream>,
    outbox: Arc<Outbox>,
    /// What was read and is not a whole frame yet. At rest it keeps no memory.
    unread: Vec<u8>,
    stage: Stage,
    waits: bool,
}

enum Stage {
    Head {
        since: Instant,
    },
    Open {
        cid: Cid,
    },
    /// Told to close: whatever still comes is thrown away.
    Closing {
        cid: Option<Cid>,
        since: Instant,
    },
}

/// The loop.
pub struct Edge<'a, H> {
    poll: Poll,
    listener: TcpListener,
    connections: HashMap<usize, Connection>,
    by_cid: HashMap<Cid, usize>,
    next: usize,
    path: &'a str,
    peers: &'a Peers,
    handler: H,
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

enum After {
    Keep,
    Drop,
}

impl<'a, H: Handler> Edge<'a, H> {
    pub fn new(
        poll: Poll,
        listener: std::net::TcpListener,
        path: &'a str,
        peers: &'a Peers,
        handler: H,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let (connections, by_cid) = (HashMap::new(), HashMap::new());
        Ok(Self { poll, listener, connections, by_cid, next: FIRST, path, peers, handler })
    }

    /// A waker for a loop on this poll.
    pub fn waker(poll: &Poll) -> io::Result<Waker> {
        Waker::new(poll.registry(), WAKER)
    }

    /// Runs until the service is to stop; then everybody is told to go.
    pub fn run(&mut self, stop: &Stop) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; READ];
        let mut looked = Instant::now();
        while !stop.is_set() {
            match self.poll.poll(&mut events, Some(TICK)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    WAKER => self.woken(&mut buffer),
                    Token(token) => {
                        if event.is_writable()
                            && let Some(connection) = self.connections.get(&token)
                        {
                            connection.outbox.flush();
                        }
                        if event.is_readable() {
                            let until = if event.is_read_closed() { Until::Closed } else { Until::Short };
                            self.readable(token, &mut buffer, until);
                        }
                    }
                }
            }
            if looked.elapsed() >= TICK {
                looked = Instant::now();
                self.end_overdue();
            }
        }
        for connection in self.connections.values() {
            connection.outbox.close(1012, "the service restarts");
        }
        let tokens: Vec<usize> = self.connections.keys().copied().collect();
        tokens.into_iter().for_each(|token| drop(self.leave(token)));
        Ok(())
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    if self.connections.len() < CONNECTIONS {
                        // A socket that fails here is gone already.
                        let _ = self.add(socket);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    zephserver_plugin::tracing::warn!("accept: {error}");
                    return;
                }
            }
        }
    }

    fn add(&mut self, mut socket: TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let token = self.next;
        self.next += 1;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut socket, Token(token), interest)?;
        let socket = Arc::new(socket);
        let outbox = Arc::new(Outbox::new(socket.clone()));
        let stage = Stage::Head { since: Instant::now() };
        self.connections
            .insert(token, Connection { socket, outbox, unread: Vec::new(), stage, waits: false });
        Ok(())
    }

    /// Reads until the socket would block; handles every whole frame of each read, then writes once.
    fn readable(&mut self, token: usize, buffer: &mut [u8], until: Until) {
        loop {
            let Some(connection) = self.connections.get_mut(&token) else { return };
            if connection.waits {
                return;
            }
            match (&*connection.socket).read(buffer) {
                Ok(0) => return self.remove(token),
                Ok(count) => {
                    let full = count == buffer.len();
                    if let After::Drop = self.turn(token, &mut buffer[..count]) {
                        return self.remove(token);
                    }
                    if !full && until == Until::Short {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.remove(token),
            }
        }
    }

    /// One peer's turn: what was left over, and what was read now.
    fn turn(&mut self, token: usize, read: &mut [u8]) -> After {
        let Some(connection) = self.connections.get_mut(&token) else { return After::Keep };
        let outbox = connection.outbox.clone();
        let mut unread = std::mem::take(&mut connection.unread);
        outbox.cork();
        let (after, used) = if unread.is_empty() {
            let (after, used) = self.consume(token, read);
            unread.extend_from_slice(&read[used..]);
            (after, 0)
        } else {
            unread.extend_from_slice(read);
            self.consume(token, &mut unread)
        };
        unread.drain(..used);
        outbox.uncork();
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.unread = if unread.is_empty() { Vec::new() } else { unread };
        }
        after
    }

    /// Handles what is complete; answers how much that was.
    fn consume(&mut self, token: usize, bytes: &mut [u8]) -> (After, usize) {
        let Some(connection) = self.connections.get_mut(&token) else { return (After::Drop, 0) };
        let (cid, mut used) = match connection.stage {
            Stage::Open { cid } => (cid, 0),
            Stage::Closing { .. } => return (After::Keep, bytes.len()),
            Stage::Head { .. } => match handshake::read(bytes, self.path) {
                Reading::More => return (After::Keep, 0),
                Reading::Refuse { answer } => {
                    connection.outbox.send_raw(&answer);
                    connection.outbox.uncork();
                    connection.outbox.finish();
                    connection.stage = Stage::Closing { cid: None, since: Instant::now() };
                    return (After::Keep, bytes.len());
                }
                Reading::Upgrade { head, answer } => {
                    connection.outbox.send_raw(&answer);
                    (self.open(token, head.path, head.headers), head.length)
                }
            },
        };
        loop {
            let frame = match codec::read(bytes, used, LONGEST) {
                Ok(Some(frame)) => frame,
                Ok(None) => return (After::Keep, used),
                Err(violation) => return (self.violated(token, violation), bytes.len()),
            };
            used = frame.end;
            match self.frame(token, cid, frame.opcode, &bytes[frame.payload]) {
                Ok(Flow::Go) => {}
                Ok(Flow::Wait) => return (After::Keep, used),
                Err(after) => return (after, bytes.len()),
            }
        }
    }

    fn open(&mut self, token: usize, path: String, headers: Vec<(String, String)>) -> Cid {
        let cid = self.peers.new_cid();
        self.by_cid.insert(cid, token);
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.stage = Stage::Open { cid };
            let address = connection.socket.peer_addr().map_or_else(|_| String::new(), |at| at.to_string());
            let outbox = connection.outbox.clone();
            self.peers.insert(cid, outbox.clone());
            self.handler.opened(Peer { cid, address, path, headers }, &outbox);
        }
        cid
    }

    fn frame(&mut self, token: usize, cid: Cid, opcode: Opcode, payload: &[u8]) -> Result<Flow, After> {
        let Some(connection) = self.connections.get_mut(&token) else { return Err(After::Drop) };
        let outbox = connection.outbox.clone();
        let violated = |edge: &mut Self, code, reason| Err(edge.violated(token, Violation { code, reason }));
        match opcode {
            Opcode::Text => match std::str::from_utf8(payload) {
                Ok(text) => {
                    let flow = self.handler.message(cid, &outbox, text);
                    if let (Flow::Wait, Some(connection)) = (flow, self.connections.get_mut(&token)) {
                        connection.waits = true;
                    }
                    Ok(flow)
                }
                Err(_) => violated(self, 1007, "a text is UTF-8"),
            },
            Opcode::Binary => violated(self, 1003, "binary messages are not taken"),
            Opcode::Ping => {
                outbox.send_frame(Opcode::Pong, payload);
                Ok(Flow::Go)
            }
            Opcode::Pong => Ok(Flow::Go),
            Opcode::Close => {
                let code = match payload.first_chunk().map_or(1000, |code| u16::from_be_bytes(*code)) {
                    code @ (1000..=1003 | 1007..=1014 | 3000..=4999) => code,
                    _ => 1002,
                };
                Err(self.violated(token, Violation { code, reason: "" }))
            }
        }
    }

    /// Sends a close frame; the connection ends when the peer has closed, too, or at the deadline.
    fn violated(&mut self, token: usize, violation: Violation) -> After {
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.outbox.close(violation.code, violation.reason);
            let cid = match connection.stage {
                Stage::Open { cid } => Some(cid),
                Stage::Head { .. } | Stage::Closing { .. } => None,
            };
            connection.stage = Stage::Closing { cid: None, since: Instant::now() };
            cid.into_iter().for_each(|cid| self.forget(cid));
        }
        After::Keep
    }

    fn forget(&mut self, cid: Cid) {
        self.by_cid.remove(&cid);
        self.peers.remove(cid);
        self.handler.closed(cid);
    }

    fn remove(&mut self, token: usize) {
        if let Some(socket) = self.leave(token) {
            // The last owner closes it; an outbox in another thread's hands must not keep it open.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    /// A connection is no longer one of ours.
    fn leave(&mut self, token: usize) -> Option<Arc<TcpStream>> {
        let connection = self.connections.remove(&token)?;
        match connection.stage {
            Stage::Open { cid } | Stage::Closing { cid: Some(cid), .. } => self.forget(cid),
            Stage::Head { .. } | Stage::Closing { cid: None, .. } => {}
        }
        Some(connection.socket)
    }

    fn woken(&mut self, buffer: &mut [u8]) {
        for cid in self.handler.woken() {
            let Some(&token) = self.by_cid.get(&cid) else { continue };
            if let Some(connection) = self.connections.get_mut(&token) {
                connection.waits = false;
            }
            // First what had been read already, then what came since.
            match self.turn(token, &mut []) {
                After::Keep => self.readable(token, buffer, Until::Closed),
                After::Drop => self.remove(token),
            }
        }
    }

    fn end_overdue(&mut self) {
        let now = Instant::now();
        let is_over = |since: Instant| now.saturating_duration_since(since) > HEAD_DEADLINE;
        let overdue = self.connections.iter().filter(|(_, connection)| match connection.stage {
            Stage::Head { since } | Stage::Closing { since, .. } => is_over(since),
            Stage::Open { .. } => false,
        });
        let overdue: Vec<usize> = overdue.map(|(token, _)| *token).collect();
        overdue.into_iter().for_each(|token| self.remove(token));
    }
}
