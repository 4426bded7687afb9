//! Events that the server itself publishes on its node.

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
