//! New connections: within the limits, and spread over the loops.

use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

use crate::readiness::Home;

/// How long to wait when the process has no descriptor left.
const PAUSE: Duration = Duration::from_millis(200);
/// Connections accepted before others have their turn.
const AT_ONCE: usize = 64;

/// The listener of an edge.
pub struct Acceptor {
    listener: TcpListener,
    /// Not all that wait were accepted: at this time, on again.
    pub again: Option<Instant>,
    warned: Option<Instant>,
}

impl Acceptor {
    pub fn new(listener: std::net::TcpListener, registry: &Registry, token: Token) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        registry.register(&mut listener, token, Interest::READABLE)?;
        Ok(Self { listener, again: None, warned: None })
    }

    /// Accepts what waits, and hands on what is within the limits.
    pub fn accept(&mut self, home: &Home, now: Instant, mut add: impl FnMut(TcpStream, IpAddr)) {
        self.again = None;
        for _ in 0..AT_ONCE {
            match self.listener.accept() {
                Ok((mut socket, address)) => {
                    if home.peers.counters.admit(address.ip(), &home.limits) {
                        add(socket, address.ip());
                    } else {
                        // Best effort: a new socket has room for a line.
                        let _ = socket.write(&home.framing.refused);
                        self.warn(now, "a limit of connections is reached; refused one");
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    // Such as no descriptors left: whoever waits, waits a little longer.
                    home.peers.counters.refused.fetch_add(1, Ordering::Relaxed);
                    self.warn(now, &format!("cannot accept: {error}"));
                    self.again = Some(now + PAUSE);
                    return;
                }
            }
        }
        self.again = Some(now);
    }

    /// Says it once a second at most: the figures count the rest.
    fn warn(&mut self, now: Instant, text: &str) {
        if self.warned.is_none_or(|last| now - last > Duration::from_secs(1)) {
            self.warned = Some(now);
            tracing::warn!("{text}");
        }
    }
}
