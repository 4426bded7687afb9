//! Brings what other nodes say to the services that listen. Called on the engine's thread for handlers: it
//! only queues.

use std::sync::Arc;

use zeph_abi::EventKind;
use zeph_cluster::{Change, Handler, Watcher};
use zeph_contract::Error;
use zeph_contract::event::NodeChange;

use crate::bus::Bus;
use crate::mailbox::OwnedEvent;

/// Brings events of one name to the service in a slot.
pub fn handler(bus: Arc<Bus>, slot: u32, token: u64, event: &str) -> Handler {
    let name: Arc<str> = event.into();
    Arc::new(move |said| {
        let payload: Arc<[u8]> = said.payload[..].into();
        let event = OwnedEvent { token, number: token, ..OwnedEvent::news(EventKind::Said, &name, payload) };
        bus.post_said(slot, event, &said.node);
    })
}

/// Brings changes of the cluster to the service in a slot.
pub fn watcher(bus: Arc<Bus>, slot: u32, token: u64) -> Watcher {
    Arc::new(move |change| {
        let event = OwnedEvent { token, number: token, ..node_event(change) };
        if let Some(slot) = bus.registry.slot(u64::from(slot)) {
            bus.post(slot, event);
        }
    })
}

fn node_event(change: &Change) -> OwnedEvent {
    let (node, change) = match change {
        Change::Up(node) => (node, NodeChange::Up),
        Change::Down(node) => (node, NodeChange::Down),
        Change::Gap { node, .. } => (node, NodeChange::Gap),
        Change::Evicted(node) => (node, NodeChange::Evicted),
    };
    OwnedEvent::news(EventKind::Node, node, change.as_json().into())
}

/// A cluster's error as services and operators get it.
pub fn error(error: &zeph_cluster::Error) -> Error {
    use zeph_cluster::Error as Why;
    let text = error.to_string();
    match error {
        Why::NoSuchNode(_) => Error::not_found(text),
        Why::Busy => Error::busy(text),
        Why::TooLarge(_) | Why::BadName(_) => Error::invalid(text),
        Why::Closed => Error::unavailable(text),
    }
}
