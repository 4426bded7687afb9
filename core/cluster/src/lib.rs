//! Events between nodes.
//!
//! An [`Engine`] says an event to all other nodes, tells it to one, and brings in what others say. The
//! server asks it for nothing else, and starts it after the control socket and before the services.
//! [`Local`] is the engine of a node that is alone.

mod local;

use std::sync::Arc;

pub use local::Local;

/// One event from another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The node that said it.
    pub node: String,
    /// The event's name.
    pub event: String,
    /// What it says.
    pub payload: Vec<u8>,
}

/// What an engine tells its node beside the events themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A node can be reached.
    Up(String),
    /// A node cannot be reached any more.
    Down(String),
    /// Events of a node were lost, and nobody will bring them again.
    Gap(String),
}

/// Whoever takes what comes in. Called on a thread of the engine: it must only queue.
pub trait Receiver: Send + Sync {
    /// Another node said something.
    fn said(&self, said: Said);
    /// Membership changed, or events were lost.
    fn changed(&self, change: Change);
}

/// Ends a subscription when dropped.
pub type Subscription = Box<dyn Send + Sync>;

/// Why an engine could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No node of that name is a member.
    #[error("no node `{0}` is in the cluster now")]
    NoSuchNode(String),
    /// A queue towards other nodes is full.
    #[error("the queue towards node `{0}` is full")]
    Full(String),
}

/// The way to other nodes.
pub trait Engine: Send + Sync {
    /// The name of this node.
    fn node(&self) -> &str;
    /// Says an event to all other nodes; answers to how many it goes out.
    fn say(&self, event: &str, payload: &[u8]) -> Result<usize, Error>;
    /// Tells one node.
    fn tell(&self, node: &str, event: &str, payload: &[u8]) -> Result<(), Error>;
    /// Brings in an event's name from now on, until the answer is dropped.
    fn subscribe(&self, event: &str, receiver: Arc<dyn Receiver>) -> Subscription;
    /// The other nodes that can be reached now.
    fn members(&self) -> Vec<String>;
    /// Leaves the cluster. Nothing comes in any more afterwards.
    fn leave(&self);
}
