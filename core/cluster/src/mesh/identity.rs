//! Who a node is, as membership knows it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// One life of a node at an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Where it takes datagrams and connections.
    pub address: SocketAddr,
    /// Its name. Empty: whoever is at that address.
    pub node: Box<str>,
    /// Which life of it: no two have the same number.
    pub boot: u64,
    /// Who of those that were at an address, or had a name, came last: has the largest of them. It is as large as
    /// `boot` in the beginning, and so grows with the time; a node that others took for dead, or take for an earlier
    /// one since its clock went back, goes beyond.
    pub turn: u64,
}

impl Identity {
    /// A node that begins to live.
    pub fn new(address: SocketAddr, node: &str, boot: u64) -> Self {
        Self { address, node: node.into(), boot, turn: boot }
    }

    /// Whoever is at an address.
    pub fn at(address: SocketAddr) -> Self {
        Self::new(address, "", 0)
    }

    /// True where this one came after the other.
    pub fn is_after(&self, other: &Self) -> bool {
        (self.turn, self.boot) > (other.turn, other.boot)
    }

    /// The same, come after another. None: that one has the last number there is.
    pub fn come_after(&self, other: &Self) -> Option<Self> {
        Some(Self { turn: other.turn.checked_add(1)?, ..self.clone() })
    }
}

impl foca::Identity for Identity {
    type Addr = SocketAddr;

    fn renew(&self) -> Option<Self> {
        self.come_after(self)
    }

    fn addr(&self) -> SocketAddr {
        self.address
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        self.is_after(other)
    }
}
