//! Where peers are: the calls that a room service answers.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::code::Error;
use crate::peer::{Cid, Digits};
use crate::session::User;
use crate::wire::{Reader, Writer};

/// Room method: [`Join`] as JSON → nothing. A peer that is in another room leaves that first.
pub const JOIN: &str = "room.join/1";
/// Room method: [`Leave`] as JSON → nothing.
pub const LEAVE: &str = "room.leave/1";
/// Room method: [`Push`] → the number of local peers that it reached, as u64. One to a cid finds that on
/// whatever node it is. Also the name of the event by which one room service tells another such a push.
pub const SEND: &str = "room.send/1";

/// A peer comes into a room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The peer.
    pub cid: Cid,
    /// Path of the edge service that has it.
    pub edge: String,
    /// Which instance of the edge tells it. When an instance goes down, the peers that it or one before it
    /// told of are gone; those of a later one are not, however late the news of it comes.
    #[serde(default)]
    pub instance: u32,
    /// The room's name.
    pub room: String,
    /// Who it is; None: anonymous.
    pub user: Option<User>,
    /// True when the edge only repeats what the room service forgot: others are told nothing.
    #[serde(default)]
    pub again: bool,
    /// Where it repeats that: when the peer came into the room, in microseconds since 1970. None: now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
}

/// A peer is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leave {
    /// The peer.
    pub cid: Cid,
}

/// To whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address<'a> {
    /// Every peer of a room.
    Room(&'a str),
    /// Every peer of these users, by user id.
    Users(Vec<&'a str>),
    /// Every peer.
    All,
    /// One peer.
    Cid(Cid),
}

/// A frame for an address: `{"task": task, "data": data}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push<'a> {
    /// To whom.
    pub address: Address<'a>,
    /// The task's name, as its receivers subscribe to it.
    pub task: &'a str,
    /// JSON.
    pub data: &'a [u8],
}

impl<'a> Push<'a> {
    /// Appends the encoded push.
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        let mut writer = Writer(buffer);
        writer.bytes(self.task.as_bytes()).bytes(self.data);
        match &self.address {
            Address::Room(room) => writer.u32(1).bytes(room.as_bytes()),
            Address::Users(users) => {
                writer.u32(2);
                users.iter().for_each(|user| {
                    writer.bytes(user.as_bytes());
                });
                &mut writer
            }
            Address::All => writer.u32(3),
            Address::Cid(cid) => writer.u32(4).u64(*cid),
        };
    }

    /// Reads a push.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader(payload);
        let (task, data) = (reader.text()?, reader.bytes()?);
        let address = match reader.u32()? {
            1 => Address::Room(reader.text()?),
            2 => {
                let mut users = Vec::new();
                while !reader.is_empty() {
                    users.push(reader.text()?);
                }
                Address::Users(users)
            }
            3 => Address::All,
            4 => Address::Cid(reader.u64()?),
            other => return Err(Error::invalid(format!("no kind of address has the number {other}"))),
        };
        Ok(Self { address, task, data })
    }
}

/// A push as JSON. Of several addresses one counts: room before users before all before cid.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Letter {
    /// The task's name, as its receivers subscribe to it.
    pub task: String,
    /// What they get.
    pub data: Box<RawValue>,
    /// A room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<String>,
    /// User ids: texts, or numbers.
    #[serde(default, deserialize_with = "ids", skip_serializing_if = "Option::is_none")]
    pub users: Option<Vec<String>>,
    /// Everybody, whatever the value.
    #[serde(default, deserialize_with = "is_there", skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// One peer: a number, or its digits as a text.
    #[serde(default, deserialize_with = "cid", skip_serializing_if = "Option::is_none")]
    pub cid: Option<Cid>,
}

fn cid<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Cid>, D::Error> {
    let cid: Option<Digits> = Option::deserialize(value)?;
    Ok(cid.map(|Digits(cid)| cid))
}

/// User ids as people write them: many systems number their users.
pub fn ids<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Id {
        Text(String),
        Number(i64),
    }
    let ids: Option<Vec<Id>> = Option::deserialize(value)?;
    let text = |id| match id {
        Id::Text(id) => id,
        Id::Number(id) => id.to_string(),
    };
    Ok(ids.map(|ids| ids.into_iter().map(text).collect()))
}

fn is_there<'de, D: serde::Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(value).map(|_| true)
}

impl Letter {
    /// The push that it means. Without an address it is invalid.
    pub fn push(&self) -> Result<Push<'_>, Error> {
        let address = match (&self.room, &self.users, self.all, self.cid) {
            (Some(room), ..) => Address::Room(room),
            (_, Some(users), ..) => Address::Users(users.iter().map(String::as_str).collect()),
            (_, _, true, _) => Address::All,
            (.., Some(cid)) => Address::Cid(cid),
            _ => return Err(Error::invalid("no address: give one of `room`, `users`, `all`, `cid`")),
        };
        Ok(Push { address, task: &self.task, data: self.data.get().as_bytes() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_addresses_one_counts() {
        let address = |text: &str| {
            let letter: Letter = serde_json::from_str(&format!(r#"{{"task":"t","data":1{text}}}"#)).unwrap();
            format!("{:?}", letter.push().map(|push| push.address))
        };
        assert_eq!(address(r#","cid":1,"all":null,"users":["u"],"room":"r""#), r#"Ok(Room("r"))"#);
        assert_eq!(address(r#","cid":1,"all":null,"users":["u"]"#), r#"Ok(Users(["u"]))"#);
        assert_eq!(address(r#","users":[7,"a"]"#), r#"Ok(Users(["7", "a"]))"#);
        assert_eq!(address(r#","cid":1,"all":null"#), "Ok(All)", "its presence is enough");
        assert_eq!(address(r#","cid":1"#), "Ok(Cid(1))");
        assert_eq!(address(r#","cid":"18446744073709551615""#), "Ok(Cid(18446744073709551615))");
        assert!(address("").starts_with("Err"));
    }

    #[test]
    fn a_push_comes_out_as_it_went_in() {
        for address in
            [Address::Room("a b"), Address::Users(vec!["1", "zwei"]), Address::All, Address::Cid(7)]
        {
            let push = Push { address, task: "chat.say", data: b"{\"x\":1}" };
            let mut bytes = Vec::new();
            push.encode(&mut bytes);
            assert_eq!(Push::decode(&bytes).unwrap(), push);
            for cut in 0..bytes.len().min(20) {
                assert!(Push::decode(&bytes[..cut]).is_err(), "cut at {cut}");
            }
        }
    }
}
