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
    /// Which life of it: a later one has a larger number.
    pub boot: u64,
    /// How often it has come back after others took it for dead.
    pub bump: u16,
}

impl Identity {
    /// Whoever is at an address.
    pub fn at(address: SocketAddr) -> Self {
        Self { address, node: "".into(), boot: 0, bump: 0 }
    }
}

impl foca::Identity for Identity {
    type Addr = SocketAddr;

    fn renew(&self) -> Option<Self> {
        Some(Self { bump: self.bump.wrapping_add(1), ..self.clone() })
    }

    fn addr(&self) -> SocketAddr {
        self.address
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        (self.boot, self.bump) > (other.boot, other.bump)
    }
}
