//! The engine of a node that is alone: every call succeeds and reaches nobody.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{Engine, Error, Handler, Status, Subscription, Watcher, check_event};

/// One node, no sockets, no threads.
#[derive(Debug)]
pub struct Local {
    node: String,
    said: AtomicU64,
    has_left: AtomicBool,
}

impl Local {
    /// The engine of a node of this name.
    pub fn new(node: impl Into<String>) -> Self {
        Self { node: node.into(), said: AtomicU64::new(0), has_left: AtomicBool::new(false) }
    }

    fn check(&self, event: &str, payload: &[u8]) -> Result<(), Error> {
        check_event(event, payload)?;
        match self.has_left.load(Ordering::Relaxed) {
            true => Err(Error::Closed),
            false => Ok(()),
        }
    }
}

impl Engine for Local {
    fn node(&self) -> &str {
        &self.node
    }

    fn say(&self, event: &str, payload: &[u8]) -> Result<usize, Error> {
        self.check(event, payload)?;
        self.said.fetch_add(1, Ordering::Relaxed);
        Ok(0)
    }

    fn tell(&self, node: &str, event: &str, payload: &[u8]) -> Result<(), Error> {
        self.check(event, payload)?;
        Err(Error::NoSuchNode(node.into()))
    }

    fn subscribe(&self, _event: &str, _handler: Handler) -> Subscription {
        Subscription::default()
    }

    fn subscribe_all(&self, _handler: Handler) -> Subscription {
        Subscription::default()
    }

    fn watch(&self, _watcher: Watcher) -> Subscription {
        Subscription::default()
    }

    fn status(&self) -> Status {
        let said = self.said.load(Ordering::Relaxed);
        Status { engine: "local", node: self.node.clone(), said, ..Status::default() }
    }

    fn leave(&self) {
        self.has_left.store(true, Ordering::Relaxed);
    }
}
