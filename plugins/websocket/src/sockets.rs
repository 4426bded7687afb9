//! What the bytes of a connection mean: a head, then frames, then messages for the dispatch.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use zeph_edge::{Cid, Link, Protocol, To};
use zephserver_plugin::Error;
use zephserver_plugin::contract::peer::Peer as Facts;

use crate::codec::{self, Message};
use crate::dispatch::{Dispatch, LONGEST, Note};
use crate::handshake::{self, Reading};
use crate::http::Visitors;
use crate::peer::{HEAD_DEADLINE, Open, Peer, SESSION_OVER, close, send_error};
use crate::settings::Settings;

/// Messages of one peer before others have their turn.
const MESSAGES: usize = 256;
/// How long until a peer that waits for its session is looked at again.
const RENEWAL: Duration = Duration::from_secs(1);

/// The protocol of one loop.
pub struct Sockets {
    pub settings: Arc<Settings>,
    pub dispatch: Dispatch,
    pub visitors: Visitors,
}

impl Protocol for Sockets {
    type Peer = Peer;
    type Note = Note;

    fn opened(&mut self, _: Cid) -> (Peer, Duration) {
        (Peer::Head, HEAD_DEADLINE)
    }

    fn bytes(&mut self, link: &mut Link<'_, Peer>, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        if matches!(link.peer, Peer::Head) {
            match self.head(link, bytes) {
                Some(length) => at = length,
                None => return 0,
            }
        }
        let decoder = match link.peer {
            Peer::Head => return at,
            Peer::Echo(echo) => &mut echo.decoder,
            Peer::Open(open) => &mut open.decoder,
        };
        // Out of the peer for the time of the turn, so that messages may change the peer.
        let mut decoder = std::mem::take(decoder);
        let mut left = MESSAGES;
        while link.goes_on() {
            if left == 0 {
                link.come_again();
                break;
            }
            left -= 1;
            match decoder.read(bytes, &mut at, &self.settings.bounds) {
                Ok(Some(message)) => self.message(link, message),
                Ok(None) => break,
                Err(violation) => close(link, violation.code, violation.reason),
            }
        }
        match link.peer {
            Peer::Head => {}
            Peer::Echo(echo) => echo.decoder = decoder,
            Peer::Open(open) => open.decoder = decoder,
        }
        at
    }

    fn due(&mut self, link: &mut Link<'_, Peer>, silent: Duration) {
        if link.is_paused() {
            // Its session may be under renewal: the answer says how it goes on.
            return link.due_in(RENEWAL);
        }
        match link.peer {
            Peer::Head => {
                link.outbox.send_unframed(handshake::TOO_LATE);
                link.finish();
            }
            Peer::Open(open) if open.remaining().is_some_and(|remaining| remaining.is_zero()) => {
                send_error(link.outbox, &Error::refused("your session is over; log in again"), None, None);
                close(link, SESSION_OVER, "the session is over");
            }
            Peer::Open(_) | Peer::Echo(_) => self.look_after(link, silent),
        }
    }

    fn woken(&mut self) -> Vec<(To, Note)> {
        self.dispatch.woken()
    }

    fn noted(&mut self, link: &mut Link<'_, Peer>, note: &Note) {
        self.dispatch.noted(link, note);
    }

    fn ending(&mut self, link: &mut Link<'_, Peer>) {
        if let Peer::Open(_) | Peer::Echo(_) = link.peer {
            close(link, 1012, "the service restarts");
        }
    }

    fn panicked(&mut self, link: &mut Link<'_, Peer>) {
        if let Peer::Open(_) | Peer::Echo(_) = link.peer {
            close(link, 1011, "a fault of the server");
        }
    }

    fn detached(&mut self, socket: TcpStream, bytes: Vec<u8>, _: Peer) {
        self.visitors.hand_over(socket, bytes);
    }

    fn closed(&mut self, cid: Cid, peer: Peer) {
        if let Peer::Open(open) = peer {
            self.dispatch.closed(cid, &open);
        }
    }
}

impl Sockets {
    /// Reads the head; answers its length where it was an upgrade.
    fn head(&mut self, link: &mut Link<'_, Peer>, bytes: &[u8]) -> Option<usize> {
        match handshake::read(bytes, &self.settings.entrance) {
            Reading::More => None,
            Reading::Other => {
                link.detach();
                None
            }
            Reading::Refuse { answer } => {
                link.outbox.send_unframed(&answer);
                link.finish();
                None
            }
            Reading::Upgrade { head, answer, is_echo } => {
                link.outbox.send_unframed(&answer);
                let address = link.address().map_or_else(|_| String::new(), |at| at.to_string());
                let facts = Facts { cid: link.cid, address, path: head.path, headers: head.headers };
                *link.peer = match is_echo {
                    true => Peer::Echo(Box::default()),
                    false => Peer::Open(Box::new(Open::new(&facts))),
                };
                self.look_after(link, Duration::ZERO);
                Some(head.length)
            }
        }
    }

    /// Pings a peer that is silent, closes one that does not answer, and says when to look again.
    fn look_after(&self, link: &mut Link<'_, Peer>, silent: Duration) {
        let (ping, now, is_read) = (self.settings.ping, link.now(), link.is_read());
        let (pinged, remaining) = match &mut *link.peer {
            Peer::Head => return,
            Peer::Echo(echo) => (&mut echo.pinged, None),
            Peer::Open(open) => {
                let remaining = open.remaining();
                (&mut open.pinged, remaining)
            }
        };
        let mut look = ping;
        if ping.is_zero() {
            look = LONGEST;
        } else if !is_read {
            // Nothing is heard of one that is not read; but it reads, or is gone.
            *pinged = None;
            if !link.outbox.has_moved() {
                return close(link, 1008, "too slow: nothing was read for long");
            }
        } else if silent < ping {
            *pinged = None;
            look = ping.saturating_sub(silent).max(ping / 8);
        } else if pinged.is_some_and(|at| silent >= now.saturating_duration_since(at)) {
            return close(link, 1008, "no answer to a ping");
        } else {
            *pinged = Some(now);
            link.outbox.send_bytes(codec::PING_FRAME);
        }
        link.due_in(remaining.map_or(look, |remaining| remaining.min(look)));
    }

    fn message(&mut self, link: &mut Link<'_, Peer>, message: Message<'_>) {
        let is_echo = matches!(link.peer, Peer::Echo(_));
        match message {
            Message::Ping(payload) => {
                let mut frame = Vec::with_capacity(payload.len() + 2);
                codec::write_pong(&mut frame, payload);
                link.outbox.send_urgent(&frame);
            }
            Message::Pong => {}
            Message::Close(code) => close(link, code, ""),
            Message::Text(text) if is_echo => {
                link.outbox.send(|buffer| codec::write_text(buffer, text.as_bytes()));
            }
            Message::Binary(bytes) if is_echo => {
                link.outbox.send(|buffer| codec::write_binary(buffer, bytes));
            }
            Message::Text(text) => self.dispatch.message(link, text),
            Message::Binary(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => self.dispatch.message(link, text),
                Err(_) => {
                    let error = Error::invalid("a message is JSON in UTF-8");
                    self.dispatch.bad(link, &error, None, None);
                }
            },
        }
    }
}
