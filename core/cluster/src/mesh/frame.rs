//! What goes over a connection between two nodes, inside its seal. Pure.
//!
//! ```text
//! frame = length of the rest (u32) · kind (u8) · body        all numbers little-endian
//! 1 hello   version (u8) · the boot of who is meant (u64) · what it has (u64) · who greets (postcard)
//! 2 ack     the last event that was handed on (u64); the first one after a hello says where to go on
//! 3 event   number (u64) · length of the name (u8) · name · payload
//! 4 skip    number (u64): nothing up to here is for you
//! 5 gap     number (u64): what you do not have up to here is lost
//! 6 ping    nothing: say that you are there
//! 7 bye     nothing: this node leaves the cluster
//! ```
//!
//! Whoever says dials, so that each connection carries the events of one node and the acks for them. Events are
//! numbered without a hole: where one is for somebody else, a skip stands in its place.

use bytes::{Buf, Bytes, BytesMut};

use super::identity::Identity;
use crate::{LARGEST_EVENT, LONGEST_NAME};

/// Of these frames.
pub const VERSION: u8 = 1;

const HELLO: u8 = 1;
const ACK: u8 = 2;
const EVENT: u8 = 3;
const SKIP: u8 = 4;
const GAP: u8 = 5;
const PING: u8 = 6;
const BYE: u8 = 7;

/// Bytes of a frame at most: a largest event, and what stands before it.
const LONGEST: usize = LARGEST_EVENT + 16;
const LENGTH: usize = 4;
/// Where the name of an event begins, after its length.
const NAME: usize = LENGTH + 1 + 8 + 1;

/// One frame, as it comes in.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    Hello(Hello),
    Ack(u64),
    Events(Events),
    Skip(u64),
    Gap(u64),
    Ping,
    Bye,
}

/// Some events, one right after the other, as they came: nothing is taken apart before it is handed on.
#[derive(Clone, PartialEq, Eq)]
pub struct Events {
    /// The number of the first.
    pub first: u64,
    pub count: u64,
    frames: Bytes,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Events({} from {})", self.count, self.first)
    }
}

impl Events {
    /// Bytes of all of them.
    pub fn bytes(&self) -> usize {
        self.frames.len()
    }

    /// Leaves the first ones out.
    pub fn skip(&mut self, count: u64) {
        for _ in 0..count.min(self.count) {
            let length = length(&self.frames).unwrap_or(self.frames.len());
            self.frames.advance(length);
            self.first += 1;
            self.count -= 1;
        }
    }

    /// Number, name and payload of each.
    pub fn each(&self, mut with: impl FnMut(u64, Bytes, Bytes)) {
        let (mut at, mut seq) = (0, self.first);
        while let Some(length) = length(&self.frames[at..]) {
            let name = at + NAME + usize::from(self.frames[at + NAME - 1]);
            with(seq, self.frames.slice(at + NAME..name), self.frames.slice(name..at + length));
            (at, seq) = (at + length, seq + 1);
        }
    }
}

/// How a connection begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Who greets.
    pub from: Identity,
    /// Which life of the other it means.
    pub to_boot: u64,
    /// Up to where the other has everything, as far as is known here: for one that knows nothing.
    pub has: u64,
}

/// What no node of ours sends: the connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The frame's length cannot be.
    #[error("a frame of {0} bytes")]
    Length(usize),
    /// What is in it cannot be read.
    #[error("a frame that makes no sense: {0}")]
    Nonsense(&'static str),
    /// Another version of these frames.
    #[error("version {0} of the protocol; this node has {VERSION}: run the same zephserver on all nodes")]
    Version(u8),
    /// It is no answer to what came before.
    #[error("a frame out of place: {0}")]
    OutOfPlace(&'static str),
}

fn number(kind: u8, number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&9u32.to_le_bytes());
    out.push(kind);
    out.extend_from_slice(&number.to_le_bytes());
}

fn empty(kind: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(&1u32.to_le_bytes());
    out.push(kind);
}

/// Appends a hello.
pub fn hello(hello: &Hello, out: &mut Vec<u8>) {
    // Plain data: it cannot fail.
    let from = postcard::to_allocvec(&hello.from).unwrap_or_default();
    out.extend_from_slice(&(18 + from.len() as u32).to_le_bytes());
    out.extend_from_slice(&[HELLO, VERSION]);
    out.extend_from_slice(&hello.to_boot.to_le_bytes());
    out.extend_from_slice(&hello.has.to_le_bytes());
    out.extend_from_slice(&from);
}

/// Appends an ack.
pub fn ack(last: u64, out: &mut Vec<u8>) {
    number(ACK, last, out);
}

/// Appends a skip.
pub fn skip(to: u64, out: &mut Vec<u8>) {
    number(SKIP, to, out);
}

/// Appends a gap.
pub fn gap(to: u64, out: &mut Vec<u8>) {
    number(GAP, to, out);
}

/// Appends a ping.
pub fn ping(out: &mut Vec<u8>) {
    empty(PING, out);
}

/// Appends a bye.
pub fn bye(out: &mut Vec<u8>) {
    empty(BYE, out);
}

/// An event, whose name has at most [`LONGEST_NAME`] bytes.
pub fn event(seq: u64, event: &str, payload: &[u8]) -> Vec<u8> {
    let length = 1 + 8 + 1 + event.len() + payload.len();
    let mut out = Vec::with_capacity(LENGTH + length);
    out.extend_from_slice(&(length as u32).to_le_bytes());
    out.push(EVENT);
    out.extend_from_slice(&seq.to_le_bytes());
    out.push(event.len() as u8);
    out.extend_from_slice(event.as_bytes());
    out.extend_from_slice(payload);
    out
}

/// Bytes of the frame at the beginning, with its length; None: it is not whole.
fn length(bytes: &[u8]) -> Option<usize> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH>()?;
    let length = u32::from_le_bytes(*length) as usize;
    (length <= rest.len()).then_some(LENGTH + length)
}

/// Takes the next whole frame, or whole events as far as they follow one another.
pub fn take(buffer: &mut BytesMut) -> Result<Option<Frame>, Violation> {
    let Some((rest, _)) = buffer.split_first_chunk::<LENGTH>() else { return Ok(None) };
    let rest = u32::from_le_bytes(*rest) as usize;
    // Before anything of this length is kept.
    if rest == 0 || rest > LONGEST {
        return Err(Violation::Length(rest));
    }
    let Some(length) = length(buffer) else { return Ok(None) };
    if buffer[LENGTH] == EVENT {
        return take_events(buffer).map(Frame::Events).map(Some);
    }
    buffer.advance(LENGTH);
    read(buffer.split_to(length - LENGTH).freeze()).map(Some)
}

fn take_events(buffer: &mut BytesMut) -> Result<Events, Violation> {
    let (first, mut end) = read_event(buffer, 0)?;
    let mut count = 1;
    while length(&buffer[end..]).is_some_and(|length| length > LENGTH && length - LENGTH <= LONGEST)
        && buffer[end + LENGTH] == EVENT
    {
        let (seq, next) = read_event(buffer, end)?;
        if Some(seq) != first.checked_add(count) {
            break;
        }
        (end, count) = (next, count + 1);
    }
    Ok(Events { first, count, frames: buffer.split_to(end).freeze() })
}

/// Looks whether there is an event at a place: its number, and where it ends.
fn read_event(buffer: &[u8], at: usize) -> Result<(u64, usize), Violation> {
    let frame = &buffer[at..];
    let end = length(frame).ok_or(Violation::Nonsense("half an event"))?;
    let Some((head, rest)) = frame[..end].split_at_checked(NAME) else {
        return Err(Violation::Nonsense("an event without a number"));
    };
    let mut seq = [0; 8];
    seq.copy_from_slice(&head[LENGTH + 1..NAME - 1]);
    let name = rest.get(..usize::from(head[NAME - 1])).filter(|name| !name.is_empty());
    let name = name.ok_or(Violation::Nonsense("an event without a name"))?;
    match std::str::from_utf8(name) {
        Ok(_) => Ok((numbered(u64::from_le_bytes(seq))?, at + end)),
        Err(_) => Err(Violation::Nonsense("the name of an event is not UTF-8")),
    }
}

/// No event has the last number there is: so whoever counts has one after each.
fn numbered(seq: u64) -> Result<u64, Violation> {
    match seq {
        u64::MAX => Err(Violation::Nonsense("no event has this number")),
        seq => Ok(seq),
    }
}

fn read(mut body: Bytes) -> Result<Frame, Violation> {
    let kind = body.get_u8();
    let number = |body: &mut Bytes| match body.len() {
        8 => Ok(body.get_u64_le()),
        _ => Err(Violation::Nonsense("a number has eight bytes")),
    };
    match kind {
        HELLO => read_hello(body).map(Frame::Hello),
        ACK => Ok(Frame::Ack(number(&mut body)?)),
        SKIP => Ok(Frame::Skip(numbered(number(&mut body)?)?)),
        GAP => Ok(Frame::Gap(numbered(number(&mut body)?)?)),
        PING if body.is_empty() => Ok(Frame::Ping),
        BYE if body.is_empty() => Ok(Frame::Bye),
        _ => Err(Violation::Nonsense("no kind of frame has this number")),
    }
}

fn read_hello(mut body: Bytes) -> Result<Hello, Violation> {
    if body.len() < 17 {
        return Err(Violation::Nonsense("a short hello"));
    }
    match body.get_u8() {
        VERSION => {}
        other => return Err(Violation::Version(other)),
    }
    let (to_boot, has) = (body.get_u64_le(), body.get_u64_le());
    let from: Identity =
        postcard::from_bytes(&body).map_err(|_| Violation::Nonsense("a hello from nobody"))?;
    if from.node.is_empty() || from.node.len() > LONGEST_NAME {
        return Err(Violation::Nonsense("a hello from a node without a name"));
    }
    Ok(Hello { from, to_boot, has })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all() -> Vec<u8> {
        let mut out = Vec::new();
        let from = Identity::new(([127, 0, 0, 1], 7).into(), "a", 5);
        hello(&Hello { from, to_boot: 9, has: 3 }, &mut out);
        ack(1, &mut out);
        out.extend(event(2, "name", b"payload"));
        skip(3, &mut out);
        gap(u64::MAX - 1, &mut out);
        ping(&mut out);
        bye(&mut out);
        out
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let bytes = all();
        for cut in 1..bytes.len() {
            let mut buffer = BytesMut::new();
            let mut frames = Vec::new();
            for part in bytes.chunks(cut) {
                buffer.extend_from_slice(part);
                while let Some(frame) = take(&mut buffer).unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(frames.len(), 7);
            let Frame::Events(events) = &frames[2] else { panic!("{:?}", frames[2]) };
            events.each(|seq, name, payload| {
                assert_eq!((seq, &name[..], &payload[..]), (2, &b"name"[..], &b"payload"[..]))
            });
            assert_eq!(frames[4], Frame::Gap(u64::MAX - 1));
        }
    }

    #[test]
    fn events_that_follow_one_another_come_together() {
        let numbers = [5, 6, 7, 9, 10];
        let mut buffer =
            BytesMut::from(&numbers.map(|seq| event(seq, "e", seq.to_string().as_bytes())).concat()[..]);
        let mut came = Vec::new();
        while let Some(Frame::Events(mut events)) = take(&mut buffer).unwrap() {
            let first = events.first;
            events.skip(1);
            assert_eq!(events.first, first + 1);
            events.each(|seq, _, payload| came.push((seq, payload)));
        }
        assert_eq!(came, [6, 7, 10].map(|seq| (seq, Bytes::from(seq.to_string()))));
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_before_it_is_waited_for() {
        for length in [0, LONGEST as u32 + 1, u32::MAX] {
            let mut buffer = BytesMut::from(&length.to_le_bytes()[..]);
            assert_eq!(take(&mut buffer), Err(Violation::Length(length as usize)));
        }
    }

    #[test]
    fn the_last_number_there_is_belongs_to_no_event() {
        let last = |with: fn(u64, &mut Vec<u8>)| {
            let mut out = Vec::new();
            with(u64::MAX, &mut out);
            out
        };
        let after_another = [event(u64::MAX - 1, "e", b""), event(u64::MAX, "e", b"")].concat();
        for bytes in [event(u64::MAX, "e", b""), after_another, last(skip), last(gap)] {
            assert!(matches!(take(&mut BytesMut::from(&bytes[..])), Err(Violation::Nonsense(_))));
        }
        let mut before = BytesMut::from(&event(u64::MAX - 1, "e", b"")[..]);
        let Ok(Some(Frame::Events(mut events))) = take(&mut before) else { panic!() };
        events.each(|seq, _, _| assert_eq!(seq, u64::MAX - 1));
        events.skip(1);
        assert_eq!(events.count, 0);
    }

    #[test]
    fn another_version_says_so() {
        let mut bytes = all();
        bytes[5] = 2;
        assert_eq!(take(&mut BytesMut::from(&bytes[..])), Err(Violation::Version(2)));
    }

    proptest! {
        #[test]
        fn whatever_comes_nothing_falls(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take(&mut buffer) {}
        }

        #[test]
        fn a_changed_byte_is_a_frame_or_an_error(at in 0usize..150, byte in any::<u8>()) {
            let mut bytes = all();
            let at = at % bytes.len();
            bytes[at] = byte;
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take(&mut buffer) {}
        }
    }
}
