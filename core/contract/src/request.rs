//! Which task: the calls that a router and a task service answer.

use crate::code::Error;
use crate::peer::Cid;
use crate::wire::Reader;

/// Router method: [`Request`] → [`answers`]. Not found where no task has that name.
pub const ROUTE: &str = "router.route/1";
/// Router method: [`room::Push`](crate::room::Push) → the number of local peers reached, as u64. Said
/// to the other nodes, too, unless it is addressed by cid: that the room service finds. Also the name of that
/// event.
pub const SAY: &str = "router.say/1";
/// Router method: the same with [`room::Letter`](crate::room::Letter) as JSON → the number as JSON.
pub const SAY_JSON: &str = "say/1";
/// Task service method: nothing → the tasks that it runs, as JSON (the `tasks` of its declaration).
pub const LIST: &str = "task.list/1";
/// Task service method, before the task's name in its library (`task.run/1:TaskEcho`): [`Request`] →
/// [`answers`]. The caller is the router through which the task may push: [`SAY`].
pub const RUN: &str = "task.run/1:";

/// One task to be run for a peer.
///
/// On the wire: cid (8 bytes), start and end of the data in the message, lengths of task, room, user id
/// and username (4 bytes each; an id of 2^32 - 1 bytes: anonymous), then those four, then the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The peer that asks.
    pub cid: Cid,
    /// The task's short name, as clients know it: UTF-8.
    pub task: &'a [u8],
    /// The room that the peer is in: UTF-8.
    pub room: &'a [u8],
    /// Id and name of the user, UTF-8; None: anonymous.
    pub user: Option<(&'a [u8], &'a [u8])>,
    /// The whole message as the peer sent it: a JSON object.
    pub message: &'a [u8],
    /// Where in the message its `data` is; empty where it has none.
    pub data: (u32, u32),
}

const ANONYMOUS: u32 = u32::MAX;

impl<'a> Request<'a> {
    /// Appends the encoded request.
    #[inline]
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        let (id, username) = self.user.unwrap_or_default();
        let length = |bytes: &[u8]| (bytes.len() as u32).to_le_bytes();
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&self.cid.to_le_bytes());
        head[8..12].copy_from_slice(&self.data.0.to_le_bytes());
        head[12..16].copy_from_slice(&self.data.1.to_le_bytes());
        head[16..20].copy_from_slice(&length(self.task));
        head[20..24].copy_from_slice(&length(self.room));
        head[24..28].copy_from_slice(&self.user.map_or(ANONYMOUS.to_le_bytes(), |_| length(id)));
        head[28..].copy_from_slice(&length(username));
        let texts = [&head, self.task, self.room, id, username, self.message];
        buffer.reserve(texts.iter().map(|text| text.len()).sum());
        texts.iter().for_each(|text| buffer.extend_from_slice(text));
    }

    /// Reads a request.
    #[inline]
    pub fn decode(payload: &'a [u8]) -> Result<Self, Error> {
        Self::read(payload).ok_or_else(|| Error::invalid("the payload is no request of a task"))
    }

    #[inline]
    fn read(payload: &'a [u8]) -> Option<Self> {
        let (head, mut rest) = payload.split_first_chunk::<HEAD>()?;
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let mut take = |length: u32| {
            let (taken, left) = rest.split_at_checked(length as usize)?;
            rest = left;
            Some(taken)
        };
        let (task, room) = (take(number(16))?, take(number(20))?);
        let user = match number(24) {
            ANONYMOUS => None,
            length => Some((take(length)?, take(number(28))?)),
        };
        let (message, data) = (rest, (number(8), number(12)));
        let is_inside = data.0 <= data.1 && data.1 as usize <= message.len();
        let cid = u64::from(number(0)) | u64::from(number(4)) << 32;
        is_inside.then_some(Self { cid, task, room, user, message, data })
    }

    /// JSON as the peer sent it; `null` where it sent none.
    #[inline]
    pub fn data(&self) -> &'a [u8] {
        match &self.message[self.data.0 as usize..self.data.1 as usize] {
            [] => b"null",
            data => data,
        }
    }
}

/// Bytes before the first text.
const HEAD: usize = 32;

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
    use crate::wire::Writer;

    #[test]
    fn a_request_comes_out_as_it_went_in() {
        let message = br#"{"task":"echo","data":[1]}"#;
        let user = Some((&b"1"[..], &b"Ann"[..]));
        let request = Request { cid: 9 << 40, task: b"echo", room: b"r", user, message, data: (22, 25) };
        for request in
            [request, Request { user: None, ..request }, Request { user: Some((b"", b"")), ..request }]
        {
            let mut bytes = Vec::new();
            request.encode(&mut bytes);
            assert_eq!(Request::decode(&bytes).unwrap(), request);
            for cut in 0..bytes.len() {
                assert!(Request::decode(&bytes[..cut]).is_err() || cut >= bytes.len() - 1, "cut at {cut}");
            }
        }
        assert_eq!((request.data(), Request { data: (0, 0), ..request }.data()), (&b"[1]"[..], &b"null"[..]));
        let mut wrong = Vec::new();
        Request { data: (22, 99), ..request }.encode(&mut wrong);
        assert!(Request::decode(&wrong).is_err(), "data outside of the message");
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
