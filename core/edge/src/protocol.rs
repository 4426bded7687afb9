//! What the bytes of a connection mean: the part that the user of this crate writes.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connection::{Connection, Next};
use crate::outbox::Outbox;
use crate::peers::Cid;

/// Nothing is due later than this: then it is looked at again.
const FAR: Duration = Duration::from_secs(24 * 3600);

/// Turns bytes into frames and acts on them. One value for each loop; every method runs on the loop's
/// thread. A panic in a method that is given a link closes the connection that it was for and no other; a
/// panic in another method ends the loop.
pub trait Protocol: Send + Sized {
    /// What is kept of each connection.
    type Peer: Send;

    /// What other threads have for connections.
    type Note: Send;

    /// A connection is there. With it comes when [`Protocol::due`] is to be called first.
    fn opened(&mut self, cid: Cid) -> (Self::Peer, Duration);

    /// Bytes came, after those that were left the last time. Answers how many are done with; the rest
    /// is kept and comes again with more behind it.
    fn bytes(&mut self, link: &mut Link<'_, Self::Peer>, bytes: &mut [u8]) -> usize;

    /// The time that [`Link::due_in`] named has come. Nothing was heard of the peer for `silent`.
    fn due(&mut self, link: &mut Link<'_, Self::Peer>, silent: Duration);

    /// The loop was woken with [`Waking::wake`](crate::Waking::wake): takes what other threads have left
    /// for connections. Each of these gets it in a turn of its own.
    fn woken(&mut self) -> Vec<(To, Self::Note)>;

    /// A note for this connection.
    fn noted(&mut self, link: &mut Link<'_, Self::Peer>, note: &Self::Note);

    /// The loop is to end: say goodbye.
    fn ending(&mut self, link: &mut Link<'_, Self::Peer>);

    /// A turn of this peer panicked: say so; the connection is finished after that.
    fn panicked(&mut self, link: &mut Link<'_, Self::Peer>);

    /// A connection was given away with [`Link::detach`], with what was read of it.
    fn detached(&mut self, socket: TcpStream, bytes: Vec<u8>, peer: Self::Peer);

    /// The peer is gone, or nothing more is to be heard of it.
    fn closed(&mut self, cid: Cid, peer: Self::Peer);
}

/// Whom a note is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// One connection; if it has gone, nobody.
    One(Cid),
    /// All connections of the loop.
    All,
}

/// One connection, in its turn.
pub struct Link<'a, P> {
    /// Its number.
    pub cid: Cid,
    /// What the protocol keeps of it.
    pub peer: &'a mut P,
    /// Its sending side.
    pub outbox: &'a Arc<Outbox>,
    next: &'a mut Next,
    again: &'a mut bool,
    due: &'a mut Option<Instant>,
    now: Instant,
}

impl<'a, P> Link<'a, P> {
    /// None: it is finishing.
    pub(crate) fn of(cid: Cid, connection: &'a mut Connection<P>, now: Instant) -> Option<Self> {
        let Connection { peer, outbox, next, again, due, .. } = connection;
        Some(Self { cid, peer: peer.as_mut()?, outbox, next, again, due, now })
    }

    /// When this turn began.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Where the peer is.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.outbox.address()
    }

    /// Reads nothing more until [`Link::resume`].
    pub fn pause(&mut self) {
        if *self.next == Next::Read {
            *self.next = Next::Pause;
        }
    }

    /// Goes on after a pause.
    pub fn resume(&mut self) {
        if *self.next == Next::Pause {
            *self.next = Next::Read;
        }
    }

    /// True while the connection is read, after the frame at hand.
    pub fn goes_on(&self) -> bool {
        *self.next == Next::Read && !*self.again
    }

    /// True after [`Link::pause`].
    pub fn is_paused(&self) -> bool {
        *self.next == Next::Pause
    }

    /// False where nothing is heard of the peer because nothing is read: it is paused, or it leaves so much
    /// unread that its own bytes wait.
    pub fn is_read(&self) -> bool {
        *self.next == Next::Read && !self.outbox.is_held()
    }

    /// Ends this turn: the bytes that are not done with come again when others have had theirs.
    pub fn come_again(&mut self) {
        *self.again = true;
    }

    /// Ends it: what was sent goes out, then its end; what still comes is thrown away.
    pub fn finish(&mut self) {
        *self.next = Next::Finish;
    }

    /// Gives the socket away, with all bytes that are not done with.
    pub fn detach(&mut self) {
        *self.next = Next::Detach;
    }

    /// Calls [`Protocol::due`] after this time, if it is not to be called sooner.
    pub fn due_within(&mut self, time: Duration) {
        let at = self.now + time.min(FAR);
        *self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Calls [`Protocol::due`] after this time; takes the place of what was asked for before.
    pub fn due_in(&mut self, time: Duration) {
        *self.due = Some(self.now + time.min(FAR));
    }
}
