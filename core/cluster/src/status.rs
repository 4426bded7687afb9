//! How an engine stands, for people.

use serde::Serialize;

/// An engine and the nodes that it knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Status {
    /// `local`, `mesh` or `nats`.
    pub engine: &'static str,
    /// The name of this node.
    pub node: String,
    /// Which life of it, in hex.
    pub boot: String,
    /// Where it listens, or its broker; None: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The last event that was said here.
    pub said: u64,
    /// Events that are kept for nodes that do not have them yet.
    pub backlog: usize,
    /// Bytes of them.
    pub backlog_bytes: usize,
    /// Events that were not kept any longer while somebody lacked them: who did gets a gap.
    pub lost: u64,
    /// Events of others that wait for this node's own handlers.
    pub waiting: usize,
    /// What was refused at the door: strangers, other keys, nonsense.
    pub refused: u64,
    /// The other nodes.
    pub members: Vec<Member>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Member {
    /// Its name.
    pub node: String,
    /// Where it listens; None: behind the broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Whether it can be reached.
    pub state: MemberState,
    /// Milliseconds since anything was heard of it; None: nothing yet.
    pub heard_ms: Option<u64>,
    /// What goes there.
    pub outgoing: Outgoing,
    /// What comes from there.
    pub incoming: Incoming,
}

/// Whether a node can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// It can.
    Up,
    /// It cannot.
    Down,
}

/// What goes to a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outgoing {
    /// The last event that it has.
    pub acked: u64,
    /// Events that it does not have yet.
    pub backlog: u64,
    /// Gaps that it was given.
    pub gaps: u64,
    /// How often others were not made to wait for it any longer.
    pub evictions: u64,
    /// How often the connection was made.
    pub connections: u64,
}

/// What comes from a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Incoming {
    /// The last event of it.
    pub last: u64,
    /// Events of it that were handed to handlers.
    pub events: u64,
    /// Gaps in what it said.
    pub gaps: u64,
    /// Events that came twice, and were handed on once.
    pub duplicates: u64,
}
