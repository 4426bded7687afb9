//! Brings what other nodes say to the services that listen.

use std::sync::Arc;

use zeph_abi::{EventKind, Scope};
use zeph_cluster::{Change, Receiver, Said};

use crate::bus::Bus;

/// Where an engine puts what comes in. It only queues.
pub struct Inbox(pub Arc<Bus>);

impl Receiver for Inbox {
    fn said(&self, said: Said) {
        self.0.spread(Scope::Cluster, EventKind::Said, &said.event, &said.event, &said.payload);
    }

    fn changed(&self, change: Change) {
        let (node, what) = match &change {
            Change::Up(node) => (node, "\"up\""),
            Change::Down(node) => (node, "\"down\""),
            Change::Gap(node) => (node, "\"gap\""),
        };
        self.0.spread(Scope::Members, EventKind::Node, "", node, what.as_bytes());
    }
}
