//! What nodes write to one another through the broker. All of it comes from outside and is checked here.
//!
//! A piece is one message of the stream: version, kind, boot, number (big endian), the sender's name, then its
//! part of a body. A body is the receiver's name (empty: everybody), the event's name, the payload; names have
//! one byte of length before them. A body that is too long for one piece goes over several in a row, since a
//! broker takes no message of an event's largest size with anything before it.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{LARGEST_EVENT, LONGEST_NAME};

/// What others must know to read this.
const VERSION: u8 = 1;
/// The longest part of a body in one piece. Small enough that a window of pieces is no load for anybody's
/// memory, and that a broker with an eighth of the usual `max_payload` takes it.
pub const LONGEST_PART: usize = 64 * 1024;
/// The longest body: the largest event, the receiver's name, two lengths.
pub const LONGEST_BODY: usize = LARGEST_EVENT + LONGEST_NAME + 2;
/// What a broker must take at least: a part, the sender's name here and in the header, and the numbers.
pub const LEAST_MAX_PAYLOAD: usize = LONGEST_PART + 1024;

/// What a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first of a life: its number is 0.
    Hello = 0,
    /// A whole event.
    Event = 1,
    /// The beginning of one.
    First = 2,
    /// More of it.
    Middle = 3,
    /// Its end; its number is the event's.
    Last = 4,
    /// The last of a life.
    Bye = 5,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        let all = [Self::Hello, Self::Event, Self::First, Self::Middle, Self::Last, Self::Bye];
        all.get(usize::from(byte)).copied()
    }
}

/// What a sender puts into its log: a piece that has no number yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub kind: Kind,
    pub body: Bytes,
}

/// One message of the stream, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    pub kind: Kind,
    pub boot: u64,
    pub seq: u64,
    pub node: &'a str,
    pub body: Bytes,
}

/// A body, read.
#[derive(Debug, PartialEq, Eq)]
pub struct Body {
    /// Empty: everybody.
    pub to: Bytes,
    pub event: Bytes,
    pub payload: Bytes,
}

/// A sign of life.
#[derive(Debug, PartialEq, Eq)]
pub struct Beat<'a> {
    pub node: &'a str,
    pub boot: u64,
    /// The last of its pieces that the broker has.
    pub stored: u64,
}

/// The pieces of an event. The names were checked before: they fit a byte.
pub fn parts(to: &str, event: &str, payload: &[u8]) -> Vec<Part> {
    let mut body = BytesMut::with_capacity(2 + to.len() + event.len() + payload.len());
    put_name(&mut body, to);
    put_name(&mut body, event);
    body.put_slice(payload);
    let mut body = body.freeze();
    let count = body.len().div_ceil(LONGEST_PART);
    let kind_of = |index: usize| match index {
        _ if count == 1 => Kind::Event,
        0 => Kind::First,
        _ if index + 1 == count => Kind::Last,
        _ => Kind::Middle,
    };
    let take = |index| Part { kind: kind_of(index), body: body.split_to(body.len().min(LONGEST_PART)) };
    (0..count).map(take).collect()
}

/// A part with its number, as it goes into the stream.
pub fn encode(node: &str, boot: u64, seq: u64, part: &Part) -> Bytes {
    let mut bytes = BytesMut::with_capacity(19 + node.len() + part.body.len());
    bytes.put_u8(VERSION);
    bytes.put_u8(part.kind as u8);
    bytes.put_u64(boot);
    bytes.put_u64(seq);
    put_name(&mut bytes, node);
    bytes.put_slice(&part.body);
    bytes.freeze()
}

/// None: this is nothing of ours, or of another version.
pub fn decode(bytes: &Bytes) -> Option<Piece<'_>> {
    let mut rest = &bytes[..];
    let (version, kind) = (take_u8(&mut rest)?, take_u8(&mut rest)?);
    let (boot, seq) = (take_u64(&mut rest)?, take_u64(&mut rest)?);
    let node = take_node(&mut rest)?;
    let body = bytes.slice_ref(rest);
    (version == VERSION).then_some(())?;
    Some(Piece { kind: Kind::of(kind)?, boot, seq, node, body })
}

/// None: no sender of ours wrote this.
pub fn read_body(body: &Bytes) -> Option<Body> {
    let mut rest = &body[..];
    let to = body.slice_ref(take_name(&mut rest)?.as_bytes());
    let event = take_name(&mut rest)?;
    let fits = !event.is_empty() && event.len() + rest.len() <= LARGEST_EVENT;
    fits.then(|| Body { to, event: body.slice_ref(event.as_bytes()), payload: body.slice_ref(rest) })
}

/// A sign of life, as it is sent.
pub fn encode_beat(beat: &Beat<'_>) -> Bytes {
    let mut bytes = BytesMut::with_capacity(18 + beat.node.len());
    bytes.put_u8(VERSION);
    bytes.put_u64(beat.boot);
    bytes.put_u64(beat.stored);
    put_name(&mut bytes, beat.node);
    bytes.freeze()
}

/// None: this is nothing of ours, or of another version.
pub fn decode_beat(mut bytes: &[u8]) -> Option<Beat<'_>> {
    (take_u8(&mut bytes)? == VERSION).then_some(())?;
    let (boot, stored) = (take_u64(&mut bytes)?, take_u64(&mut bytes)?);
    let node = take_node(&mut bytes)?;
    bytes.is_empty().then_some(Beat { node, boot, stored })
}

fn put_name(bytes: &mut BytesMut, name: &str) {
    debug_assert!(name.len() <= LONGEST_NAME);
    bytes.put_u8(name.len() as u8);
    bytes.put_slice(name.as_bytes());
}

fn take_u8(rest: &mut &[u8]) -> Option<u8> {
    let (first, others) = rest.split_first()?;
    *rest = others;
    Some(*first)
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (number, others) = rest.split_first_chunk()?;
    *rest = others;
    Some(u64::from_be_bytes(*number))
}

fn take_name<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let length = usize::from(take_u8(rest)?);
    let (name, others) = rest.split_at_checked(length)?;
    *rest = others;
    std::str::from_utf8(name).ok()
}

fn take_node<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    take_name(rest).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(parts: &[Part]) -> Bytes {
        parts.iter().flat_map(|part| part.body.iter().copied()).collect()
    }

    #[test]
    fn an_event_comes_back_as_it_went() {
        let parts = parts("b", "chat", b"hello");
        assert_eq!(parts.len(), 1);
        let bytes = encode("a", 7, 9, &parts[0]);
        let piece = decode(&bytes).unwrap();
        assert_eq!((piece.kind, piece.boot, piece.seq, piece.node), (Kind::Event, 7, 9, "a"));
        let body = read_body(&piece.body).unwrap();
        assert_eq!(
            (&body.to[..], &body.event[..], &body.payload[..]),
            (&b"b"[..], &b"chat"[..], &b"hello"[..])
        );
    }

    #[test]
    fn a_large_event_goes_in_pieces_that_a_broker_takes() {
        let payload = vec![5; LARGEST_EVENT - 255];
        let (to, event) = ("t".repeat(255), "e".repeat(255));
        let parts = parts(&to, &event, &payload);
        let kinds: Vec<_> = parts.iter().map(|part| part.kind).collect();
        assert_eq!((kinds[0], kinds[1], *kinds.last().unwrap()), (Kind::First, Kind::Middle, Kind::Last));
        assert_eq!(kinds.len(), LONGEST_BODY.div_ceil(LONGEST_PART));
        let node = "n".repeat(255);
        for part in &parts {
            let header = format!("NATS/1.0\r\nNats-Msg-Id: {node}:{:x}:{}\r\n\r\n", u64::MAX, u64::MAX);
            assert!(encode(&node, 1, 2, part).len() + header.len() <= LEAST_MAX_PAYLOAD);
        }
        let body = joined(&parts);
        assert_eq!(body.len(), LONGEST_BODY);
        assert_eq!(read_body(&body).unwrap().payload.len(), payload.len());
    }

    #[test]
    fn nonsense_is_refused_wherever_it_is_cut() {
        let whole = encode("node", 1, 2, &parts("to", "event", b"payload")[0]);
        for length in 0..23 {
            assert_eq!(decode(&whole.slice(..length)), None, "{length}");
        }
        assert!(decode(&whole.slice(..23)).is_some_and(|piece| read_body(&piece.body).is_none()));
        let mut other_version = whole.to_vec();
        other_version[0] = 2;
        assert_eq!(decode(&other_version.into()), None);
        let mut other_kind = whole.to_vec();
        other_kind[1] = 6;
        assert_eq!(decode(&other_kind.into()), None);
        let beat = encode_beat(&Beat { node: "node", boot: 3, stored: 4 });
        assert_eq!(decode_beat(&beat), Some(Beat { node: "node", boot: 3, stored: 4 }));
        for length in 0..beat.len() {
            assert_eq!(decode_beat(&beat[..length]), None, "{length}");
        }
    }

    #[test]
    fn an_event_without_a_name_or_too_large_is_refused() {
        assert_eq!(read_body(&joined(&parts("", "", b"x"))), None);
        assert_eq!(read_body(&joined(&parts("", "e", &vec![0; LARGEST_EVENT]))), None);
    }
}
