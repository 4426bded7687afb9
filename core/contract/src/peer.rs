//! Peers: live connections at an edge. And the calls that an edge answers.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::code::Error;
use crate::wire::{Reader, Writer};

/// Number of a peer, unique on its node for as long as the server runs. `cid` in requests.
pub type Cid = u64;

/// A cid as people and their tools see it: a text of decimal digits, since many tools round a JSON number
/// above 2^53. Read as that or as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digits(pub Cid);

impl FromStr for Digits {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let cid =
            text.parse().map_err(|_| Error::invalid(format!("`{text}` is no cid: a cid is a number")))?;
        Ok(Self(cid))
    }
}

impl Serialize for Digits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digits {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(Cid),
            Text(String),
        }
        match Written::deserialize(value)? {
            Written::Number(cid) => Ok(Self(cid)),
            Written::Text(text) => text.parse::<Self>().map_err(|error| serde::de::Error::custom(error.text)),
        }
    }
}

/// What an edge knows of a peer: the facts of its connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its number.
    pub cid: Cid,
    /// Where it comes from: `IP:port`.
    pub address: String,
    /// The path that it asked for.
    #[serde(default)]
    pub path: String,
    /// The headers of its upgrade, names in lower case, in the order they came.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
}

impl Peer {
    /// The value of a header; its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The cookies that came with the upgrade: names and values.
    pub fn cookies(&self) -> impl Iterator<Item = (&str, &str)> {
        let lines = self.headers.iter().filter(|(name, _)| name == "cookie");
        let pairs = lines.flat_map(|(_, value)| value.split(';'));
        pairs
            .filter_map(|pair| pair.trim().split_once('='))
            .map(|(name, value)| (name, value.trim_matches('"')))
    }

    /// The value of a cookie.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.cookies().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// The page that a browser connects from: `https://example.org`. Native clients send none.
    pub fn origin(&self) -> Option<&str> {
        self.header("origin")
    }
}

/// Edge method: [`Delivery`] → the number of peers that it reached, as u64.
pub const SEND: &str = "edge.send/1";

/// One encoded frame for some peers of an edge.
pub struct Delivery<'a> {
    /// The frame's payload: UTF-8 text.
    pub frame: &'a [u8],
    /// For whom: cids as eight little-endian bytes each.
    cids: &'a [u8],
}

impl<'a> Delivery<'a> {
    /// Encodes a delivery.
    pub fn encode(buffer: &mut Vec<u8>, frame: &[u8], cids: impl ExactSizeIterator<Item = Cid>) {
        buffer.reserve(frame.len() + 8 * cids.len() + 4);
        Writer(buffer).bytes(frame);
        cids.for_each(|cid| buffer.extend_from_slice(&cid.to_le_bytes()));
    }

    /// Reads a delivery.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader(payload);
        let frame = reader.bytes()?;
        Ok(Self { frame, cids: reader.0 })
    }

    /// For whom it is: little-endian cids.
    pub fn cids(&self) -> &'a [[u8; 8]] {
        self.cids.as_chunks().0
    }
}

/// Name of the event by which an edge says, or tells one other node, whose peers are to be closed: [`Kicks`] as JSON.
pub const KICKS: &str = "edge.kicks/1";
/// Name of the event by which an edge asks another node for the kicks that it knows: [`Ask`](crate::event::Ask) as
/// JSON. The answer is [`KICKS`], in parts.
pub const ASK_KICKS: &str = "edge.ask_kicks/1";

/// Whose peers an operator has closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kicks {
    /// The node that says so.
    pub node: String,
    /// Kicks that are not long ago.
    pub kicks: Vec<Kick>,
    /// No further part of it follows.
    pub last: bool,
    /// It is the answer to a question, with all that is known there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answers: bool,
}

/// A kick: peers that were connected at that time are closed, where it is heard of for the first time. When that was
/// is known by two things, and whoever hears it goes by the earlier one, since a word may be on its way for minutes:
/// `age_ms` before now, and [`CLOCKS_DIFFER`](crate::event::CLOCKS_DIFFER) after `said_at`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kick {
    /// A number that no other kick has.
    pub id: u64,
    /// Whom it is about.
    pub who: Kicked,
    /// How many milliseconds ago it was, when this was sent.
    pub age_ms: u64,
    /// Seconds since 1970 at which it was, by the clock of the node of the operator; None: a build before did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said_at: Option<u64>,
}

/// Whom a kick is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kicked {
    /// One peer.
    Cid(Cid),
    /// All peers of the user with this id.
    User(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kick_looks_like_this() {
        let kick = |id, who, said_at| Kick { id, who, age_ms: 5, said_at };
        let kicks = vec![kick(1, Kicked::Cid(7), None), kick(2, Kicked::User("7".into()), Some(9))];
        let told = Kicks { node: "a".into(), kicks, last: true, answers: false };
        let json = serde_json::to_string(&told).unwrap();
        let (one, two) = (
            r#"{"id":1,"who":{"cid":7},"age_ms":5}"#,
            r#"{"id":2,"who":{"user":"7"},"age_ms":5,"said_at":9}"#,
        );
        assert_eq!(json, format!(r#"{{"node":"a","kicks":[{one},{two}],"last":true}}"#));
        assert_eq!(serde_json::from_str::<Kicks>(&json).unwrap(), told);
    }

    #[test]
    fn cookies_and_origin_are_in_the_headers() {
        let header = |name: &str, value: &str| (name.to_string(), value.to_string());
        let headers = vec![
            header("origin", "http://a:1"),
            header("cookie", "a=1; sessionid=\"x=y\""),
            header("cookie", "b=2"),
        ];
        let peer = Peer { headers, ..Peer::default() };
        assert_eq!(peer.cookie("sessionid"), Some("x=y"));
        assert_eq!(peer.cookies().count(), 3);
        assert_eq!((peer.cookie("c"), peer.origin()), (None, Some("http://a:1")));
    }

    #[test]
    fn a_cid_for_people_loses_no_digit() {
        let cid = Digits(Cid::MAX);
        let text = serde_json::to_string(&cid).unwrap();
        assert_eq!(text, "\"18446744073709551615\"");
        assert_eq!(serde_json::from_str::<Digits>(&text).unwrap(), cid);
        assert_eq!(serde_json::from_str::<Digits>("18446744073709551615").unwrap(), cid);
        for wrong in ["\"\"", "\"x\"", "-1", "1.5", "null"] {
            assert!(serde_json::from_str::<Digits>(wrong).is_err(), "{wrong}");
        }
        assert!("7x".parse::<Digits>().unwrap_err().text.contains("`7x` is no cid"));
    }
}
