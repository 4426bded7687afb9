//! Which task: the calls that a router and a task service answer.

use crate::code::Error;
use crate::peer::Cid;
use crate::wire::{Reader, Writer};

/// Router method: [`Request`] → [`answers`]. Not found where no task has that name.
pub const ROUTE: &str = "router.route/1";
/// Router method: [`room::Push`](crate::room::Push) → the number of local peers reached, as u64. Said
/// to the other nodes, too, unless it is addressed by cid; also the name of that event.
pub const SAY: &str = "router.say/1";
/// Task service method: nothing → the tasks that it runs, as JSON (the `tasks` of its declaration).
pub const LIST: &str = "task.list/1";
/// Task service method: [`Request`] → [`answers`].
pub const RUN: &str = "task.run/1";

/// One task to be run for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The peer that asks.
    pub cid: Cid,
    /// The task's short name, as clients know it.
    pub task: &'a str,
    /// Its name in its library; the router fills it in.
    pub kind: &'a str,
    /// JSON as the peer sent it; `null` where it sent none.
    pub data: &'a [u8],
    /// The room that the peer is in.
    pub room: &'a str,
    /// Id and name of the user; None: anonymous.
    pub user: Option<(&'a str, &'a str)>,
    /// Path of the service through which the task may push: [`SAY`].
    pub say: &'a str,
}

impl<'a> Request<'a> {
    /// Appends the encoded request.
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        let (id, username) = self.user.unwrap_or_default();
        Writer(buffer)
            .u64(self.cid)
            .u32(self.user.is_some() as u32)
            .bytes(self.task.as_bytes())
            .bytes(self.kind.as_bytes())
            .bytes(self.data)
            .bytes(self.room.as_bytes())
            .bytes(id.as_bytes())
            .bytes(username.as_bytes())
            .bytes(self.say.as_bytes());
    }

    /// Reads a request.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader(payload);
        let (cid, known) = (reader.u64()?, reader.u32()?);
        let (task, kind) = (reader.text()?, reader.text()?);
        let (data, room) = (reader.bytes()?, reader.text()?);
        let user = (reader.text()?, reader.text()?);
        Ok(Self { cid, task, kind, data, room, user: (known == 1).then_some(user), say: reader.text()? })
    }
}

/// The answers in a reply: JSON values, each of which becomes one frame to the peer that asked.
pub fn answers(reply: &[u8]) -> impl Iterator<Item = Result<&[u8], Error>> {
    let mut reader = Reader(reply);
    std::iter::from_fn(move || {
        if reader.is_empty() {
            return None;
        }
        let answer = reader.bytes();
        if answer.is_err() {
            reader = Reader(&[]);
        }
        Some(answer)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_comes_out_as_it_went_in() {
        let request = Request {
            cid: 9,
            task: "echo",
            kind: "TaskEcho",
            data: b"[1]",
            room: "r",
            user: Some(("1", "Ann")),
            say: "router/Router",
        };
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        assert_eq!(Request::decode(&bytes).unwrap(), request);
        assert!(Request::decode(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn answers_end_at_the_first_fault() {
        let mut reply = Vec::new();
        Writer(&mut reply).bytes(b"1").bytes(b"2");
        assert_eq!(answers(&reply).collect::<Result<Vec<_>, _>>().unwrap(), [b"1", b"2"]);
        reply.pop();
        assert_eq!(answers(&reply).filter(Result::is_err).count(), 1);
    }
}
