//! Who a peer is: the calls that a session service answers.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::peer::Peer;

/// Session method: [`GetUser`] as JSON → [`User`] as JSON, or null for an anonymous peer. It may take
/// its time: answer it later.
pub const GET_USER: &str = "session.get_user/1";

/// The question who sent a message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetUser {
    /// Who asks.
    pub peer: Peer,
    /// The whole message, as it came.
    pub message: Box<RawValue>,
}

/// A person or system behind peers. One user may have several.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct User {
    /// The same for as long as the user exists.
    pub id: String,
    /// As others see it.
    pub username: String,
}
