//! Sockets for an edge: readiness loops, connections, bounded outboxes. It moves bytes and knows no
//! frame: what they mean is the business of a [`Protocol`].
//!
//! Reading order: [`Protocol`] is what a user writes and [`Link`] what it is given; [`Loop`] is one
//! thread with its sockets; [`Outbox`] is how a connection is sent to, from any thread; [`Peers`] finds
//! outboxes by cid; [`Limits`] bounds all of it, and [`Figures`] counts what was refused or lost.
//!
//! Connections can be carried into the loops of another edge, such as the next generation of a plugin, while
//! their sockets stay open: [`Loop::carried`] describes them, [`Loop::adopt`] takes them in, and
//! [`Loop::abandon`] lets go of them without closing.
//!
//! One thread runs one loop, on edge-triggered readiness. A connection at rest has no task and no
//! buffer. Every whole frame of a read is handled, then one write is made: what the turns of a batch
//! send, to whomever, is gathered and goes out at the end of the batch.

#![forbid(unsafe_code)]

mod limits;
mod protocol;

mod accept;
mod connection;
mod outbox;
mod peers;
mod readiness;

pub use limits::{Figures, Limits};
pub use outbox::Outbox;
pub use peers::{Cid, Peers};
pub use protocol::{Link, Protocol, To};
pub use readiness::{Carried, CarriedPeers, Doors, Framing, Loop, Waking};
