//! The two ends of what one node says to another: [`Outlet`] here, [`Inlet`] there. Pure.
//!
//! ```text
//! outlet   Idle ── dial ──► Dialing ── connected ──► Greeting ── ack: go on there ──► Open
//!           ▲                  │                        │                              │
//!           └── closed: dial again, at once the first time, then later and later ◄─────┘
//! ```
//!
//! The outlet knows what the other has (`acked`), the inlet what it has handed on (`last`). Both outlive every
//! connection and every time that the other was taken for dead; what is between the two goes out again on the next
//! connection, and what of it comes twice is dropped.

use std::time::{Duration, Instant};

use super::frame::{self, Violation};
use super::log::Log;

/// The first wait before a connection is tried again, and the longest.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// An ack for so many bytes does not wait for the next round.
const MUCH: usize = 16 * 1024;
/// An event goes out in one piece with others while there are fewer bytes than this.
pub const PIECE: usize = 64 * 1024;

/// Number of a connection, given by the node.
pub type Conn = u64;

/// Where the way to a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Idle {
        since: Instant,
        wait: Duration,
    },
    Dialing(Conn),
    /// `is_sent`: the hello went out.
    Greeting {
        conn: Conn,
        is_sent: bool,
    },
    Open(Conn),
}

/// This node's end of what it says to another.
#[derive(Debug)]
pub struct Outlet {
    /// The other has everything up to here, or was told that it is lost.
    acked: u64,
    /// Everything up to here went out on this connection.
    sent: u64,
    way: Way,
    /// When it last had more than before.
    progressed: Instant,
    /// When anything went out on this connection.
    wrote: Instant,
    owes_ping: bool,
    owes_bye: bool,
    has_said_bye: bool,
    /// The next wait before another try.
    back_off: Duration,
    /// Nobody waits for it any longer, until it takes something again.
    pub is_evicted: bool,
    /// For people.
    pub gaps: u64,
    pub evictions: u64,
    pub connections: u64,
}

impl Outlet {
    /// To a node that is to have everything after `head`.
    pub fn new(head: u64, now: Instant) -> Self {
        Self {
            acked: head,
            sent: head,
            way: Way::Idle { since: now, wait: Duration::ZERO },
            progressed: now,
            wrote: now,
            owes_ping: false,
            owes_bye: false,
            has_said_bye: false,
            back_off: BACK_OFF.0,
            is_evicted: false,
            gaps: 0,
            evictions: 0,
            connections: 0,
        }
    }

    /// The other has everything up to here.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// The connection, if there is one or will be.
    pub fn conn(&self) -> Option<Conn> {
        match self.way {
            Way::Idle { .. } => None,
            Way::Dialing(conn) | Way::Greeting { conn, .. } | Way::Open(conn) => Some(conn),
        }
    }

    /// True where events go out.
    pub fn is_open(&self) -> bool {
        matches!(self.way, Way::Open(_))
    }

    /// True from when the connection stands until the other says where to go on.
    pub fn is_greeting(&self) -> bool {
        matches!(self.way, Way::Greeting { .. })
    }

    /// When it is to be dialed; None: it is, or was.
    pub fn dial_at(&self) -> Option<Instant> {
        match self.way {
            Way::Idle { since, wait } => Some(since + wait),
            _ => None,
        }
    }

    /// Somebody dials.
    pub fn dials(&mut self, conn: Conn) {
        self.way = Way::Dialing(conn);
    }

    /// The connection stands.
    pub fn connected(&mut self, now: Instant) {
        if let Way::Dialing(conn) = self.way {
            self.way = Way::Greeting { conn, is_sent: false };
            self.wrote = now;
        }
    }

    /// There is no connection any more.
    pub fn closed(&mut self, now: Instant) {
        let wait = match self.way {
            // It worked until now: so it may at once again.
            Way::Open(_) => Duration::ZERO,
            _ => {
                let longer = (self.back_off * 2).min(BACK_OFF.1);
                std::mem::replace(&mut self.back_off, longer)
            }
        };
        self.way = Way::Idle { since: now, wait };
        self.owes_ping = false;
    }

    /// The other was seen: no reason to wait.
    pub fn hurry(&mut self, now: Instant) {
        self.back_off = BACK_OFF.0;
        if let Way::Idle { .. } = self.way {
            self.way = Way::Idle { since: now, wait: Duration::ZERO };
        }
        // Before, it could not take anything.
        self.progressed = now;
    }

    /// Since when it has not taken what waits for it. None: nothing does.
    pub fn stalled_since(&self, log: &Log) -> Option<Instant> {
        let waits = log.get((self.acked + 1).max(log.first()))?;
        Some(self.progressed.max(waits.at))
    }

    /// The other has everything up to `last`.
    pub fn ack(&mut self, last: u64, log: &Log, now: Instant) -> Result<(), Violation> {
        match self.way {
            Way::Greeting { conn, is_sent: true } => {
                if last > log.last() {
                    return Err(Violation::OutOfPlace("it claims to have what was never said"));
                }
                self.way = Way::Open(conn);
                // Less than was thought: it was forgotten here, and knows better itself.
                (self.sent, self.acked) = (last, self.acked.min(last));
                self.back_off = BACK_OFF.0;
                self.connections += 1;
            }
            Way::Open(_) if last <= self.sent => {}
            _ => return Err(Violation::OutOfPlace("an ack for what was not sent")),
        }
        if last > self.acked {
            self.acked = last;
            self.progressed = now;
            // What it missed is behind it.
            self.is_evicted &= self.acked + 1 < log.first();
        }
        Ok(())
    }

    /// Appends what is to go out now, up to [`PIECE`] and one event. False: nothing.
    pub fn pull(
        &mut self,
        to: &str,
        log: &Log,
        greet: impl FnOnce(u64) -> frame::Hello,
        out: &mut Vec<u8>,
    ) -> bool {
        let before = out.len();
        match &mut self.way {
            Way::Greeting { is_sent, .. } if !*is_sent => {
                *is_sent = true;
                frame::hello(&greet(self.acked), out);
            }
            Way::Open(_) => self.pull_events(to, log, out),
            _ => {}
        }
        if self.is_open() && std::mem::take(&mut self.owes_ping) {
            frame::ping(out);
        }
        if self.is_open() && self.sent == log.last() && std::mem::take(&mut self.owes_bye) {
            self.has_said_bye = true;
            frame::bye(out);
        }
        out.len() > before
    }

    fn pull_events(&mut self, to: &str, log: &Log, out: &mut Vec<u8>) {
        let limit = out.len() + PIECE;
        if self.sent + 1 < log.first() {
            self.sent = log.first() - 1;
            self.gaps += 1;
            frame::gap(self.sent, out);
        }
        let mut skipped = false;
        while out.len() < limit
            && let Some(entry) = log.get(self.sent + 1)
        {
            if entry.to.as_deref().is_none_or(|node| node == to) {
                if std::mem::take(&mut skipped) {
                    frame::skip(self.sent, out);
                }
                out.extend_from_slice(&entry.frame);
            } else {
                skipped = true;
            }
            self.sent += 1;
        }
        if skipped {
            frame::skip(self.sent, out);
        }
    }

    /// Something went out.
    pub fn wrote(&mut self, now: Instant) {
        self.wrote = now;
    }

    /// Asks for a sign of life where nothing went out for so long. True: there is something to pull.
    pub fn ping(&mut self, period: Duration, now: Instant) -> bool {
        let is_due = self.is_open() && now >= self.wrote + period;
        self.owes_ping |= is_due;
        is_due
    }

    /// True where everything is out, the farewell as well, and the other has it, or has closed the connection
    /// since.
    pub fn is_over(&self, log: &Log) -> bool {
        self.has_said_bye && (self.acked == log.last() || !self.is_open())
    }

    /// True once the farewell is out.
    pub fn has_said_bye(&self) -> bool {
        self.has_said_bye
    }

    /// Says farewell after everything else.
    pub fn bye(&mut self) {
        self.owes_bye = true;
    }
}

/// This node's end of what another says.
#[derive(Debug)]
pub struct Inlet {
    /// The last event that was handed on, or is lost for good.
    last: u64,
    /// The connection that it comes on.
    pub conn: Option<Conn>,
    owes_ack: bool,
    /// Bytes that came since the last ack.
    unacked: usize,
    /// For people.
    pub events: u64,
    pub gaps: u64,
    pub duplicates: u64,
}

impl Inlet {
    /// From a node of which this one is to have everything after `has`.
    pub fn new(has: u64) -> Self {
        Self { last: has, conn: None, owes_ack: false, unacked: 0, events: 0, gaps: 0, duplicates: 0 }
    }

    /// The last event that was handed on.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Bytes came: also a part of a frame is acked, to say that this node is there and takes it.
    pub fn came(&mut self, bytes: usize) {
        self.owes_ack = true;
        self.unacked += bytes;
    }

    /// True where so much came that the ack is not to wait.
    pub fn owes_much(&self) -> bool {
        self.unacked >= MUCH
    }

    /// The connection on which an ack is owed.
    pub fn owes_ack_on(&self) -> Option<Conn> {
        self.conn.filter(|_| self.owes_ack)
    }

    /// Takes the wish for an ack: the last event that was handed on.
    pub fn take_ack(&mut self) -> Option<u64> {
        self.unacked = 0;
        std::mem::take(&mut self.owes_ack).then_some(self.last)
    }

    /// Events come, one right after the other: how many of them were here already.
    pub fn events(&mut self, first: u64, count: u64) -> Result<u64, Violation> {
        let next = self.last.saturating_add(1);
        if first > next {
            return Err(Violation::OutOfPlace("an event is missing before this one"));
        }
        let end =
            first.checked_add(count).ok_or(Violation::OutOfPlace("more events than there are numbers"))?;
        let twice = (next - first).min(count);
        self.duplicates += twice;
        self.events += count - twice;
        self.last = self.last.max(end.saturating_sub(1));
        Ok(twice)
    }

    /// What comes up to `to` is for others.
    pub fn skip(&mut self, to: u64) {
        self.last = self.last.max(to);
    }

    /// What was not here yet up to `to` is lost: from where to where.
    pub fn gap(&mut self, to: u64) -> Option<(u64, u64)> {
        let from = self.last.saturating_add(1);
        if to < from || to == self.last {
            return None;
        }
        self.last = to;
        self.gaps += 1;
        Some((from, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_at_their_end_are_refused_and_change_nothing() {
        let mut inlet = Inlet::new(u64::MAX - 3);
        assert_eq!(inlet.events(u64::MAX - 2, 2), Ok(0));
        assert_eq!((inlet.last(), inlet.events), (u64::MAX - 1, 2));
        for count in [1, 2, u64::MAX] {
            assert!(inlet.events(u64::MAX, count).is_err());
        }
        assert_eq!(inlet.events(u64::MAX - 2, 2), Ok(2), "they came before");
        assert_eq!((inlet.last(), inlet.events, inlet.duplicates), (u64::MAX - 1, 2, 2));
        assert_eq!(inlet.gap(u64::MAX - 1), None);
        // Whoever claims to have everything is told of nothing any more, and does no harm.
        let mut full = Inlet::new(u64::MAX);
        assert_eq!((full.events(1, 5), full.gap(u64::MAX)), (Ok(5), None));
        full.skip(7);
        assert_eq!(full.last(), u64::MAX);
    }
}
