//! Which task: the calls that a router and a task service answer.

use crate::code::Error;
use crate::peer::Cid;
use crate::wire::{Reader, Writer};

/// Router method: [`Request`] → [`answers`]. Not found where no task has that name.
pub const ROUTE: &str = "router.route/1";
/// Router method: [`room::Push`](crate::room::Push) → the number of local peers reached, as u64. Said
/// to the other nodes, too, unless it is addressed by cid; also the name of that event.
pub const SAY: &str = "router.say/1";
/// Router method: the same with [`room::Letter`](crate::room::Letter) as JSON → the number as JSON.
pub const SAY_JSON: &str = "say/1";
/// Task service method: nothing → the tasks that it runs, as JSON (the `tasks` of its declaration).
pub const LIST: &str = "task.list/1";
/// Task service method: [`Run`] → [`answers`].
pub const RUN: &str = "task.run/1";

/// One task to be run for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The peer that asks.
    pub cid: Cid,
    /// The task's short name, as clients know it.
    pub task: &'a str,
    /// The room that the peer is in.
    pub room: &'a str,
    /// Id and name of the user; None: anonymous.
    pub user: Option<(&'a str, &'a str)>,
    /// The whole message as the peer sent it: a JSON object.
    pub message: &'a [u8],
    /// Where in the message its `data` is; empty where it has none.
    pub data: (u32, u32),
}

impl<'a> Request<'a> {
    /// Appends the encoded request.
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        let (id, username) = self.user.unwrap_or_default();
        Writer(buffer)
            .bytes(self.task.as_bytes())
            .u64(self.cid)
            .u32(self.user.is_some() as u32)
            .bytes(id.as_bytes())
            .bytes(username.as_bytes())
            .bytes(self.room.as_bytes())
            .u32(self.data.0)
            .u32(self.data.1)
            .bytes(self.message);
    }

    /// Reads a request.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader(payload);
        let task = reader.text()?;
        let (cid, known) = (reader.u64()?, reader.u32()?);
        let user = (reader.text()?, reader.text()?);
        let room = reader.text()?;
        let data = (reader.u32()?, reader.u32()?);
        let message = reader.bytes()?;
        if data.0 > data.1 || data.1 as usize > message.len() {
            return Err(Error::invalid("a request's data does not lie in its message"));
        }
        Ok(Self { cid, task, room, user: (known == 1).then_some(user), message, data })
    }

    /// JSON as the peer sent it; `null` where it sent none.
    pub fn data(&self) -> &'a [u8] {
        match &self.message[self.data.0 as usize..self.data.1 as usize] {
            [] => b"null",
            data => data,
        }
    }
}

/// A request with what its router knows of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run<'a> {
    /// The task's name in its library.
    pub kind: &'a str,
    /// Path of the service through which the task may push: [`SAY`].
    pub say: &'a str,
    /// The request, encoded.
    pub request: &'a [u8],
}

impl<'a> Run<'a> {
    /// Appends the encoded order to run a task.
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        Writer(buffer).bytes(self.kind.as_bytes()).bytes(self.say.as_bytes());
        buffer.extend_from_slice(self.request);
    }

    /// Reads an order to run a task.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader(payload);
        Ok(Self { kind: reader.text()?, say: reader.text()?, request: reader.0 })
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
        let message = br#"{"task":"echo","data":[1]}"#;
        let user = Some(("1", "Ann"));
        let request = Request { cid: 9, task: "echo", room: "r", user, message, data: (22, 25) };
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        assert_eq!(Request::decode(&bytes).unwrap(), request);
        assert_eq!((request.data(), Request { data: (0, 0), ..request }.data()), (&b"[1]"[..], &b"null"[..]));
        assert!(Request::decode(&bytes[..bytes.len() - 1]).is_err());
        let mut wrong = Vec::new();
        Request { data: (22, 99), ..request }.encode(&mut wrong);
        assert!(Request::decode(&wrong).is_err(), "data outside of the message");
        let mut run = Vec::new();
        Run { kind: "TaskEcho", say: "router/Router", request: &bytes }.encode(&mut run);
        let run = Run::decode(&run).unwrap();
        assert_eq!((run.kind, run.say, run.request), ("TaskEcho", "router/Router", &bytes[..]));
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
