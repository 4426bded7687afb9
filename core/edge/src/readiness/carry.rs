//! Connections on their way from the loops of one edge to those of another: all that is known of them, but
//! for the socket, which goes beside it as a descriptor. Times are carried as distances from now.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use serde::{Deserialize, Serialize};

use super::Loop;
use crate::connection::{Connection, Next};
use crate::limits::Totals;
use crate::outbox::{Outbox, Unsent};
use crate::peers::Cid;
use crate::protocol::Protocol;

/// One connection, as its loop leaves it. `P` is what the protocol keeps of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Carried<P> {
    cid: Cid,
    address: IpAddr,
    /// None: it is finishing.
    peer: Option<P>,
    #[serde(with = "serde_bytes")]
    unread: Vec<u8>,
    next: Next,
    /// It has more to be handled than one turn takes.
    again: bool,
    /// When it is to be looked at.
    due: Option<Duration>,
    /// How long nothing was heard of it.
    silent: Duration,
    unsent: Option<Unsent>,
}

/// What the connections of an edge have in common: how they are numbered, and what was counted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CarriedPeers {
    pub(crate) salt: u64,
    pub(crate) serial: u64,
    pub(crate) totals: Totals,
}

impl<P> Carried<P> {
    /// Its number.
    pub fn cid(&self) -> Cid {
        self.cid
    }
}

impl<P> Connection<P> {
    fn carried(&self, cid: Cid, now: Instant) -> Carried<&P> {
        Carried {
            cid,
            address: self.address,
            peer: self.peer.as_ref(),
            unread: self.unread.clone(),
            next: self.next,
            again: self.again,
            due: self.due.map(|due| due.saturating_duration_since(now)),
            silent: now.saturating_duration_since(self.heard),
            unsent: self.outbox.unsent(),
        }
    }
}

impl<P: Protocol> Loop<P> {
    /// Lends everything that another loop needs to go on with the connections; answers what `take` makes of it,
    /// and their sockets in the same order, which stay this loop's. Nobody may send to them any more, unless
    /// this loop runs again.
    pub fn carried<R>(
        &mut self,
        take: impl FnOnce(Vec<Carried<&P::Peer>>, &P) -> R,
    ) -> (R, Vec<BorrowedFd<'_>>) {
        self.now = Instant::now();
        self.take_in();
        let carried = self.connections.iter().map(|(cid, one)| one.carried(cid, self.now)).collect();
        let sockets = self.connections.iter().map(|(_, one)| one.outbox.socket().as_fd()).collect();
        (take(carried, &self.protocol), sockets)
    }

    /// Bytes that go with the connections: what is unread and unsent, and what `weigh` says of each peer.
    pub fn weight(&self, weigh: impl Fn(&P::Peer) -> usize) -> usize {
        let connections = self.connections.iter().map(|(_, one)| one);
        connections
            .map(|one| one.unread.len() + one.outbox.waiting() + one.peer.as_ref().map_or(0, &weigh))
            .sum()
    }

    /// Takes connections in that another loop carries, before this one runs. Until then they are the other's
    /// still: where this one is dropped before, they stay open.
    pub fn adopt(&mut self, carried: Vec<(OwnedFd, Carried<P::Peer>)>) -> io::Result<()> {
        self.now = Instant::now();
        carried.into_iter().try_for_each(|(socket, one)| self.adopt_one(socket, one))
    }

    fn adopt_one(&mut self, socket: OwnedFd, carried: Carried<P::Peer>) -> io::Result<()> {
        let Carried { cid, address, peer, unread, next, again, due, silent, unsent } = carried;
        let mut socket = TcpStream::from_std(socket.into());
        self.watch(&mut socket, cid)?;
        let outbox = Arc::new(Outbox::new(socket, cid, self.home.clone()));
        if let Some(unsent) = unsent {
            outbox.go_on_with(unsent);
        }
        self.home.peers.fill(cid, &outbox);
        self.home.peers.counters.take_in(address);
        if peer.is_some() && outbox.is_finishing() {
            self.home.door.too_slow(cid);
        }
        if again {
            self.again.push(cid);
        }
        let (due, heard) = (due.map(|due| self.now + due), self.now.checked_sub(silent).unwrap_or(self.now));
        let connection = Connection { outbox, peer, unread, next, again, due, timer: None, heard, address };
        self.connections.insert(cid, connection);
        self.settle(cid);
        Ok(())
    }

    /// Lets go of all connections without closing them: another loop has adopted them.
    pub fn abandon(&mut self) {
        self.is_owner = false;
        self.acceptor = None;
        for cid in self.cids() {
            self.home.peers.remove(cid);
            drop(self.connections.remove(cid));
        }
    }
}
