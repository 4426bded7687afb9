//! Events that the server itself tells its services.

use serde::{Deserialize, Serialize};

/// Name of the event that tells about a service: [`ServiceChanged`] as JSON.
pub const SERVICE_CHANGED: &str = "zephserver.service";

/// A service began or ceased to serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceChanged {
    /// Its path: `room/Room`.
    pub service: String,
    /// Which load of its library serves (or served).
    pub generation: u32,
    /// Which instance of the service serves (or served): they are counted from 1.
    #[serde(default)]
    pub instance: u32,
    /// What happened.
    pub change: Change,
}

/// What happened to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It serves, and begins from nothing or from a checkpoint: what others had told it may be lost.
    Ready,
    /// It serves in a new generation, with the state of the one before.
    Reloaded,
    /// It does not serve any more.
    Down,
}

/// What happened to another node of the cluster, or to what it said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeChange {
    /// It can be reached. Whoever asks to hear of nodes is told so of each that is up already; it may come
    /// again.
    Up,
    /// It cannot be reached any more, or has begun a new life: then `Up` follows.
    Down,
    /// Some of what it said was lost on the way, and nobody will bring it again: ask it anew. Comes before
    /// the next event of that node.
    Gap,
    /// It takes nothing: some of what was said here will not reach it. It will be told of a gap.
    Evicted,
}

impl NodeChange {
    /// As JSON.
    pub fn as_json(self) -> &'static [u8] {
        match self {
            Self::Up => b"\"up\"",
            Self::Down => b"\"down\"",
            Self::Gap => b"\"gap\"",
            Self::Evicted => b"\"evicted\"",
        }
    }
}

/// Seconds by which the clocks of two nodes may differ. Where a time of another node's clock decides something, it is
/// taken to be so much later at most.
pub const CLOCKS_DIFFER: u64 = 30;

/// The question of a service to its like on another node for what that knows. That tells it, in parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The node that asks.
    pub node: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_nodes_are_words() {
        for change in [NodeChange::Up, NodeChange::Down, NodeChange::Gap, NodeChange::Evicted] {
            assert_eq!(serde_json::to_vec(&change).unwrap(), change.as_json());
        }
    }
}
