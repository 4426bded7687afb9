//! Who a peer is: the calls that a session service answers.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::code::Error;
use crate::peer::Peer;

/// Session method: [`GetUserSession`] as JSON → [`Identity`] as JSON, or null for an anonymous peer. An
/// error is the answer to the peer's message. It may take its time: answer it later.
pub const GET_USER_SESSION: &str = "session.get_user_session/1";

/// The question who sent a message. Asked at each hello, and at each later message whose `session_id`
/// is another than the one before.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetUserSession {
    /// Who asks.
    pub peer: Peer,
    /// The whole message, as it came.
    pub message: Box<RawValue>,
}

impl GetUserSession {
    /// The question as JSON, of a [`Peer`] and a message that are JSON already.
    pub fn encode(peer: &[u8], message: &[u8]) -> Vec<u8> {
        [b"{\"peer\":", peer, b",\"message\":", message, b"}"].concat()
    }

    /// The token that the message brings: its `session_id`; None where that is absent or null. What is
    /// no text is an error, and never to be taken for no token.
    pub fn session_id(&self) -> Result<Option<String>, Error> {
        #[derive(Deserialize)]
        struct Message {
            #[serde(default)]
            session_id: Option<String>,
        }
        match serde_json::from_str::<Message>(self.message.get()) {
            Ok(message) => Ok(message.session_id),
            Err(_) => Err(Error::invalid("`session_id` is a text")),
        }
    }
}

/// A person or system behind peers. One user may have several.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct User {
    /// The same for as long as the user exists.
    pub id: String,
    /// As others see it.
    pub username: String,
}

/// A user, and how long the session says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Who it is.
    #[serde(flatten)]
    pub user: User,
    /// Seconds since 1970 at which the session ends, and the peer with it; None: it does not end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
}

impl From<User> for Identity {
    fn from(user: User) -> Self {
        Self { user, expires: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_a_user_with_an_end() {
        let identity = Identity { user: User { id: "1".into(), username: "Ann".into() }, expires: Some(9) };
        let json = serde_json::to_string(&identity).unwrap();
        assert_eq!(json, r#"{"id":"1","username":"Ann","expires":9}"#);
        assert_eq!(serde_json::from_str::<Identity>(&json).unwrap(), identity);
        let without: Identity = serde_json::from_str(r#"{"id":"1","username":"Ann"}"#).unwrap();
        assert_eq!(without, identity.user.into());
    }

    #[test]
    fn a_question_holds_its_parts_as_they_are() {
        let question =
            GetUserSession::encode(br#"{"cid":1,"address":"a"}"#, br#"{"room":"r","session_id":"t"}"#);
        let question: GetUserSession = serde_json::from_slice(&question).unwrap();
        assert_eq!((question.peer.cid, question.session_id().unwrap().as_deref()), (1, Some("t")));
        let session_id = |message: &str| {
            let question = GetUserSession::encode(br#"{"cid":1,"address":"a"}"#, message.as_bytes());
            serde_json::from_slice::<GetUserSession>(&question).unwrap().session_id()
        };
        assert_eq!((session_id("{}"), session_id(r#"{"session_id":null}"#)), (Ok(None), Ok(None)));
        assert!(session_id(r#"{"session_id":5}"#).is_err());
    }
}
