//! Who a peer is: the calls that a session service answers.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::code::Error;
use crate::peer::Peer;

/// Session method: [`GetUserSession`] as JSON → [`Identity`] as JSON, or null for an anonymous peer. An
/// error is the answer to the peer's message. It may take its time: answer it later.
pub const GET_USER_SESSION: &str = "session.get_user_session/1";
/// Session method: [`Revoke`] as JSON → [`Revoked`] as JSON. What was issued to that user until now names
/// nobody any more: whoever brings it is refused. A service that cannot tell when a session was issued
/// answers `unsupported`.
pub const REVOKE: &str = "session.revoke/1";
/// Name of the event that tells the node of it: [`Revoked`] as JSON. An edge closes the peers of that user
/// whose sessions it ends, by [`is_revoked`]. The session service tells it once it refuses: a question asked
/// later gets the new answer, one under way meanwhile perhaps the old one.
pub const REVOKED: &str = "session.revoked";

/// Name of the event by which a session service says, or tells one other node, whose sessions have ended:
/// [`Revocations`] as JSON. Who hears it refuses those sessions as well, and tells its own node.
pub const REVOCATIONS: &str = "session.revocations/1";
/// Name of the event by which a session service asks another node for those that it knows:
/// [`Ask`](crate::event::Ask) as JSON. The answer is [`REVOCATIONS`], in parts.
pub const ASK_REVOCATIONS: &str = "session.ask_revocations/1";

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

/// A user, and from when until when the session says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Who it is.
    #[serde(flatten)]
    pub user: User,
    /// Seconds since 1970 at which the session ends, and the peer with it; None: it does not end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// Seconds since 1970 at which the session was issued; None: nobody knows. See [`is_revoked`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued: Option<u64>,
}

impl From<User> for Identity {
    fn from(user: User) -> Self {
        Self { user, expires: None, issued: None }
    }
}

/// True where a session that was issued at a time counts no more, by a revocation of what was issued
/// [`before`](Revoked::before). The one rule, for those who refuse sessions and for those who close peers.
pub fn is_revoked(issued: Option<u64>, before: u64) -> bool {
    // Of that very second, nobody knows which came first. What does not say when it was issued may be as old as any.
    issued.is_none_or(|issued| issued <= before)
}

/// The wish that all sessions of a user end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoke {
    /// The user's id.
    pub user: String,
}

/// The sessions of a user have ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// The user's id.
    pub user: String,
    /// Seconds since 1970. What was issued before, or in that very second, counts no more.
    pub before: u64,
}

/// Whose sessions have ended, as nodes tell one another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocations {
    /// The node that says so.
    pub node: String,
    /// Of each user the latest.
    pub revoked: Vec<Revoked>,
    /// No further part of it follows.
    pub last: bool,
    /// It is the answer to a question, with all that is known there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answers: bool,
    /// They were revoked just now, on that node. Whose clock is ahead of that one's makes them later
    /// ([`CLOCKS_DIFFER`](crate::event::CLOCKS_DIFFER)), and says them again, without this.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_a_user_with_an_end() {
        let user = User { id: "1".into(), username: "Ann".into() };
        let identity = Identity { user, expires: Some(9), issued: Some(5) };
        let json = serde_json::to_string(&identity).unwrap();
        assert_eq!(json, r#"{"id":"1","username":"Ann","expires":9,"issued":5}"#);
        assert_eq!(serde_json::from_str::<Identity>(&json).unwrap(), identity);
        let without: Identity = serde_json::from_str(r#"{"id":"1","username":"Ann"}"#).unwrap();
        assert_eq!(without, identity.user.into());
        assert_eq!(serde_json::to_string(&without).unwrap(), r#"{"id":"1","username":"Ann"}"#);
    }

    #[test]
    fn what_was_issued_until_then_is_revoked_and_what_may_have_been() {
        for (issued, is_so) in
            [(None, true), (Some(0), true), (Some(9), true), (Some(10), false), (Some(u64::MAX), false)]
        {
            assert_eq!(is_revoked(issued, 9), is_so, "{issued:?}");
        }
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

    #[test]
    fn a_revocation_names_the_user_by_id() {
        let revoked = Revoked { user: "7".into(), before: 9 };
        assert_eq!(serde_json::to_string(&revoked).unwrap(), r#"{"user":"7","before":9}"#);
        let revoke: Revoke = serde_json::from_str(r#"{"user":"7"}"#).unwrap();
        assert_eq!(revoke.user, revoked.user);
        let (node, revoked) = ("a".into(), vec![revoked]);
        let told = Revocations { node, revoked, last: true, answers: false, fresh: true };
        let json = serde_json::to_string(&told).unwrap();
        assert_eq!(json, r#"{"node":"a","revoked":[{"user":"7","before":9}],"last":true,"fresh":true}"#);
        // As builds before say it.
        let json = json.replace(r#","fresh":true"#, "");
        assert_eq!(serde_json::from_str::<Revocations>(&json).unwrap(), Revocations { fresh: false, ..told });
    }
}
