//! The engine of a node that is alone: every call succeeds and reaches nobody.

use std::sync::Arc;

use crate::{Engine, Error, Receiver, Subscription};

/// One node, no sockets.
#[derive(Debug)]
pub struct Local {
    node: String,
}

impl Local {
    /// The engine of a node of this name.
    pub fn new(node: impl Into<String>) -> Self {
        Self { node: node.into() }
    }
}

impl Engine for Local {
    fn node(&self) -> &str {
        &self.node
    }

    fn say(&self, _event: &str, _payload: &[u8]) -> Result<usize, Error> {
        Ok(0)
    }

    fn tell(&self, node: &str, _event: &str, _payload: &[u8]) -> Result<(), Error> {
        Err(Error::NoSuchNode(node.into()))
    }

    fn subscribe(&self, _event: &str, _receiver: Arc<dyn Receiver>) -> Subscription {
        Box::new(())
    }

    fn members(&self) -> Vec<String> {
        Vec::new()
    }

    fn leave(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alone_every_say_succeeds_and_reaches_nobody() {
        let engine = Local::new("a");
        assert_eq!(engine.say("x", b""), Ok(0));
        assert_eq!(engine.tell("b", "x", b""), Err(Error::NoSuchNode("b".into())));
        assert!(engine.members().is_empty());
    }
}
