//! The sending side of a peer, usable from any thread: written directly, and kept only where the
//! socket would block. Bounded.

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mio::net::TcpStream;

use crate::codec::{self, Opcode};

/// Bytes that wait for a slow peer at most; beyond that it is closed.
const BACKLOG: usize = 1024 * 1024;

/// Bytes that are gathered for one write.
const GATHERED: usize = 64 * 1024;

/// What a peer is to be sent.
pub struct Outbox {
    socket: Arc<TcpStream>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    backlog: Vec<u8>,
    /// Several frames are gathered for one write.
    corked: bool,
    /// Nothing more is sent; the socket is shut when the backlog is out.
    closing: bool,
}

impl Outbox {
    pub fn new(socket: Arc<TcpStream>) -> Self {
        Self { socket, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends bytes as they are. False: the peer is too slow, or gone.
    pub fn send_raw(&self, bytes: &[u8]) -> bool {
        self.send(|backlog| backlog.extend_from_slice(bytes))
    }

    /// Sends a frame. False: the peer is too slow, or gone.
    pub fn send_frame(&self, opcode: Opcode, payload: &[u8]) -> bool {
        self.send(|backlog| codec::write(backlog, opcode, payload))
    }

    fn send(&self, append: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut state = self.state();
        if state.closing {
            return false;
        }
        let waits = !state.backlog.is_empty();
        append(&mut state.backlog);
        if state.corked && state.backlog.len() > GATHERED {
            self.flush_locked(&mut state);
        }
        if waits || state.corked {
            return self.check(state);
        }
        self.flush_locked(&mut state);
        self.check(state)
    }

    fn check(&self, mut state: MutexGuard<'_, State>) -> bool {
        if state.backlog.len() > BACKLOG {
            // No room even for a close frame: whoever does not read would not read that either.
            state.backlog = Vec::new();
            state.closing = true;
            let _ = self.socket.shutdown(Shutdown::Both);
            return false;
        }
        true
    }

    /// Gathers frames until `uncork`.
    pub fn cork(&self) {
        self.state().corked = true;
    }

    /// Writes what was gathered.
    pub fn uncork(&self) {
        let mut state = self.state();
        state.corked = false;
        self.flush_locked(&mut state);
    }

    /// Writes what the socket takes now.
    pub fn flush(&self) {
        self.flush_locked(&mut self.state());
    }

    /// Sends a close frame, and shuts the socket when it is out.
    pub fn close(&self, code: u16, reason: &str) {
        let mut state = self.state();
        if !state.closing {
            codec::write_close(&mut state.backlog, code, reason);
            state.closing = true;
            state.corked = false;
            self.flush_locked(&mut state);
        }
    }

    /// Shuts the socket when everything is out.
    pub fn finish(&self) {
        let mut state = self.state();
        state.closing = true;
        self.flush_locked(&mut state);
    }

    fn flush_locked(&self, state: &mut State) {
        let mut written = 0;
        while written < state.backlog.len() {
            match (&*self.socket).write(&state.backlog[written..]) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    // Gone: the reading side hears of it.
                    written = state.backlog.len();
                    state.closing = true;
                }
            }
        }
        state.backlog.drain(..written);
        if state.backlog.is_empty() {
            // A peer at rest keeps no buffer.
            state.backlog = Vec::new();
            if state.closing {
                let _ = self.socket.shutdown(Shutdown::Write);
            }
        }
    }
}
