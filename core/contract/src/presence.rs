//! Who is where on other nodes: what room services tell one another.
//!
//! Each keeps a count of its own changes. It says them in order ([`What::Changes`]), and whoever has the version
//! before has the one after; whoever has not asks for the whole ([`What::Ask`], [`What::Whole`]). Every message
//! names the sender's version, so that nothing that was lost stays unnoticed.

use serde::{Deserialize, Serialize};

use crate::peer::Cid;
use crate::session::User;

/// Name of the event by which room services say and tell one another who is where: [`Presence`] as JSON.
pub const PRESENCE: &str = "room.presence/1";

/// What a room service tells those of other nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// The node that it is on.
    pub node: String,
    /// How far it is, with this message.
    pub version: Version,
    /// What it tells.
    pub what: What,
}

/// How far a room service is: two that differ in it differ in who is where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// A number that no other beginning from nothing has. A reload is none.
    pub life: u64,
    /// Counts its changes.
    pub number: u64,
}

impl Version {
    /// The version before; None: there is none.
    pub fn before(self) -> Option<Self> {
        Some(Self { number: self.number.checked_sub(1)?, ..self })
    }
}

/// What a room service tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// Only its version.
    Beat,
    /// It asks for the whole, unless the other one is at this version: then a beat will do.
    Ask {
        /// What it has; None: nothing that it could go on with.
        have: Option<Version>,
    },
    /// All its peers that are in rooms, in parts one after the other.
    Whole {
        /// Which part: from 0.
        part: u32,
        /// The last part.
        last: bool,
        /// The members of this part.
        members: Vec<Member>,
    },
    /// What has changed since the version before, in order.
    Changes(Vec<Change>),
}

/// Somebody came, went, or is another one now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// A peer is in a room; out of the one it was in.
    Join(Member),
    /// A peer is gone.
    Leave(Cid),
}

/// A peer in a room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The peer.
    pub cid: Cid,
    /// When it came into the room: microseconds since 1970 by the clock of its node.
    pub since: u64,
    /// The room's name.
    pub room: String,
    /// Who it is; None: anonymous.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_looks_like_this() {
        let told = |what| {
            let version = Version { life: u64::MAX, number: 3 };
            let told = Presence { node: "a".into(), version, what };
            let json = serde_json::to_string(&told).unwrap();
            assert_eq!(serde_json::from_str::<Presence>(&json).unwrap(), told);
            let head = r#"{"node":"a","version":{"life":18446744073709551615,"number":3},"what":"#;
            json.strip_prefix(head).and_then(|rest| rest.strip_suffix('}')).unwrap().to_string()
        };
        assert_eq!(told(What::Beat), r#""beat""#);
        assert_eq!(told(What::Ask { have: None }), r#"{"ask":{"have":null}}"#);
        let user = Some(User { id: "7".into(), username: "Ann".into() });
        let ann = Member { cid: 5, since: 9, room: "lobby".into(), user };
        assert_eq!(
            told(What::Changes(vec![Change::Join(ann.clone()), Change::Leave(6)])),
            r#"{"changes":[{"join":{"cid":5,"since":9,"room":"lobby","user":{"id":"7","username":"Ann"}}},{"leave":6}]}"#
        );
        assert_eq!(
            told(What::Whole { part: 0, last: true, members: vec![Member { user: None, ..ann }] }),
            r#"{"whole":{"part":0,"last":true,"members":[{"cid":5,"since":9,"room":"lobby"}]}}"#
        );
    }

    #[test]
    fn a_version_has_one_before_it() {
        let version = Version { life: 1, number: 1 };
        assert_eq!(version.before(), Some(Version { life: 1, number: 0 }));
        assert_eq!(version.before().and_then(Version::before), None);
    }
}
