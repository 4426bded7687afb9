//! Events between nodes.
//!
//! An [`Engine`] says an event to all other nodes, tells one to a single node, and brings in what others say.
//! There are three: [`Local`] is a node that is alone, `Mesh` a few dozen nodes that need nothing beside
//! themselves, `Nats` (feature `nats`) many nodes around a broker. What they guarantee, and what not, is in
//! `docs/cluster.md`.

mod hub;
mod key;
mod life;
mod local;
mod mesh;
#[cfg(feature = "nats")]
pub mod nats;
mod profile;
mod status;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use key::{KeyError, Keys};
pub use local::Local;
pub use mesh::{Mesh, MeshError, MeshOptions};
#[cfg(feature = "nats")]
pub use nats::Nats;
pub use profile::Profile;
pub use status::{Incoming, Member, MemberState, Outgoing, Status};

/// The largest event: name and payload, in bytes.
pub const LARGEST_EVENT: usize = 1024 * 1024;
/// The longest name of an event or a node, in bytes.
pub const LONGEST_NAME: usize = 255;
/// How long [`Engine::say`] waits for room at most: a node that takes nothing for so long holds it up no longer.
pub const SAY_TIMEOUT: Duration = Duration::from_secs(2);

/// One event from another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The node that said it.
    pub node: Arc<str>,
    /// Which life of that node: a number that no other start of it has.
    pub boot: u64,
    /// Its place among all that this node has said in this life.
    pub seq: u64,
    event: Bytes,
    /// What it says.
    pub payload: Bytes,
}

impl Said {
    /// The event's name.
    pub fn event(&self) -> &str {
        // Checked where it was made.
        std::str::from_utf8(&self.event).unwrap_or_default()
    }
}

/// What an engine tells beside the events themselves. Events of a node come only after it is `Up` and before it
/// is `Down`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A node can be reached.
    Up(Arc<str>),
    /// A node cannot be reached any more.
    Down(Arc<str>),
    /// Events of a node were lost on their way here, and nobody will bring them again. Comes before the next
    /// event of that node.
    Gap {
        /// The node that said them.
        node: Arc<str>,
        /// Which life of that node.
        boot: u64,
        /// The first one lost.
        from: u64,
        /// The last one lost. Some between the two may have been for other nodes.
        to: u64,
    },
    /// A node takes nothing. From now on others do not wait for it; it will get a gap.
    Evicted(Arc<str>),
}

/// Takes events. Called on a thread of the engine that does nothing else: a slow one holds up the other
/// handlers of this node and in the end those who say, never the engine itself.
pub type Handler = Arc<dyn Fn(&Said) + Send + Sync>;

/// Takes changes, on the same thread as the handlers and in order with them.
pub type Watcher = Arc<dyn Fn(&Change) + Send + Sync>;

/// Ends a subscription when dropped. A handler that is running then is not waited for.
#[must_use = "dropped, it ends the subscription"]
#[derive(Default)]
pub struct Subscription {
    greet: Option<Box<dyn Fn() + Send + Sync>>,
    end: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Subscription {
    fn new(end: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self { greet: None, end: Some(Box::new(end)) }
    }

    fn greets(mut self, greet: impl Fn() + Send + Sync + 'static) -> Self {
        self.greet = Some(Box::new(greet));
        self
    }

    /// Tells a watcher once more that each node is up that is up now: in its turn, so that no change is lost
    /// to it. A handler of events is told nothing.
    pub fn greet(&self) {
        self.greet.iter().for_each(|greet| greet());
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            end();
        }
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subscription")
    }
}

/// Why an engine could not do what it was asked. Nothing was said then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No node of that name is a member.
    #[error("no node `{0}` is in the cluster now; `zephserver cluster` lists the members")]
    NoSuchNode(String),
    /// What goes to others still waits, and nobody takes it.
    #[error("events that wait for other nodes fill the memory for them; waited {} s", SAY_TIMEOUT.as_secs())]
    Busy,
    /// The event is too large.
    #[error("an event has {LARGEST_EVENT} bytes at most, with its name; this one has {0}")]
    TooLarge(usize),
    /// The name is empty or too long.
    #[error("the name of an event has 1 to {LONGEST_NAME} bytes, this one {0}")]
    BadName(usize),
    /// This node has left the cluster.
    #[error("this node has left the cluster")]
    Closed,
}

/// Checks what every engine asks of an event.
fn check_event(event: &str, payload: &[u8]) -> Result<(), Error> {
    if event.is_empty() || event.len() > LONGEST_NAME {
        return Err(Error::BadName(event.len()));
    }
    match event.len() + payload.len() {
        size if size > LARGEST_EVENT => Err(Error::TooLarge(size)),
        _ => Ok(()),
    }
}

/// The way to other nodes.
pub trait Engine: Send + Sync {
    /// The name of this node.
    fn node(&self) -> &str;

    /// Says an event to all other nodes; answers how many are up. Ok means that it is kept for them, not that they
    /// have it. Waits up to [`SAY_TIMEOUT`] where they do not take what was said before.
    fn say(&self, event: &str, payload: &[u8]) -> Result<usize, Error>;

    /// Tells one other node that is up, in order with what is said to all.
    fn tell(&self, node: &str, event: &str, payload: &[u8]) -> Result<(), Error>;

    /// Hands what other nodes say under a name to a handler, until the answer is dropped.
    fn subscribe(&self, event: &str, handler: Handler) -> Subscription;

    /// Hands everything that other nodes say to a handler.
    fn subscribe_all(&self, handler: Handler) -> Subscription;

    /// Tells a watcher that each node is up that is up now, then every change.
    fn watch(&self, watcher: Watcher) -> Subscription;

    /// How everything stands, with every other node that is known.
    fn status(&self) -> Status;

    /// Leaves the cluster: what was said goes out, as far as others take it in a second; others are told.
    /// Nothing comes in afterwards.
    fn leave(&self);
}
