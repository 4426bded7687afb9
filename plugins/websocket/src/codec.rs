//! WebSocket frames (RFC 6455, section 5), sans I/O: bytes in, messages out, in place where a message
//! is one whole frame. A message that comes in pieces is gathered, and a text is checked as it comes, so
//! that what cannot become UTF-8 any more ends at once.

use serde::{Deserialize, Serialize};

/// What bounds a message.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of a message.
    pub message: usize,
    /// Frames of a message.
    pub fragments: u32,
}

/// What a client sent, unmasked and whole.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
    Ping(&'a [u8]),
    Pong,
    /// With the code to answer.
    Close(u16),
}

/// What is wrong with a frame, as a close code and a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    pub code: u16,
    pub reason: &'static str,
}

const fn violation<T>(code: u16, reason: &'static str) -> Result<T, Violation> {
    Err(Violation { code, reason })
}

/// Reads frames of one connection. At rest it keeps nothing.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Decoder {
    kept: Option<Box<Kept>>,
}

/// A message of which not all is there.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    is_text: bool,
    #[serde(with = "serde_bytes")]
    data: Vec<u8>,
    /// So much of a text is known to be UTF-8.
    valid: usize,
    fragments: u32,
    /// What is still to come of the present frame.
    left: usize,
    mask: [u8; 4],
    is_last: bool,
    is_done: bool,
}

struct Header {
    is_last: bool,
    opcode: u8,
    mask: [u8; 4],
    length: usize,
    /// Where the payload begins.
    body: usize,
}

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// Where a message is.
enum Place {
    Here(std::ops::Range<usize>),
    Kept,
}

impl Decoder {
    /// Bytes that it keeps of a message.
    pub fn kept(&self) -> usize {
        self.kept.as_ref().map_or(0, |kept| kept.data.len())
    }

    /// The next message from `at` on; `at` moves behind what is done with. None: not before more comes.
    pub fn read<'a>(
        &'a mut self,
        bytes: &'a mut [u8],
        at: &mut usize,
        bounds: &Bounds,
    ) -> Result<Option<Message<'a>>, Violation> {
        if self.kept.as_ref().is_some_and(|kept| kept.is_done) {
            self.kept = None;
        }
        let Some((opcode, place)) = self.find(bytes, at, bounds)? else { return Ok(None) };
        let payload = match (place, &self.kept) {
            (Place::Here(range), _) => &bytes[range],
            (Place::Kept, Some(kept)) => kept.data.as_slice(),
            (Place::Kept, None) => &[],
        };
        Ok(Some(match opcode {
            TEXT => match std::str::from_utf8(payload) {
                Ok(text) => Message::Text(text),
                Err(_) => return violation(1007, "a text is UTF-8"),
            },
            BINARY => Message::Binary(payload),
            PING => Message::Ping(payload),
            PONG => Message::Pong,
            _ => Message::Close(close_code(payload)?),
        }))
    }

    fn find(
        &mut self,
        bytes: &mut [u8],
        at: &mut usize,
        bounds: &Bounds,
    ) -> Result<Option<(u8, Place)>, Violation> {
        loop {
            if let Some(kept) = self.kept.as_mut().filter(|kept| kept.left > 0 || kept.is_last) {
                *at += kept.gather(&mut bytes[*at..])?;
                if kept.is_done {
                    return Ok(Some((if kept.is_text { TEXT } else { BINARY }, Place::Kept)));
                }
                if kept.left > 0 {
                    return Ok(None);
                }
            }
            let Some(header) = header(bytes, *at)? else { return Ok(None) };
            if header.opcode >= CLOSE {
                let end = header.body + header.length;
                if bytes.len() < end {
                    return Ok(None);
                }
                unmask(&mut bytes[header.body..end], header.mask);
                *at = end;
                return Ok(Some((header.opcode, Place::Here(header.body..end))));
            }
            let so_far = self.kept.as_ref().map_or(0, |kept| kept.data.len());
            match (header.opcode, &self.kept) {
                (CONTINUATION, None) => return violation(1002, "a continuation of nothing"),
                (TEXT | BINARY, Some(_)) => return violation(1002, "a new message inside of another"),
                // A bound may have become smaller than what is here already.
                _ if header.length > bounds.message.saturating_sub(so_far) => {
                    return violation(1009, "the message is too big");
                }
                _ => {}
            }
            let end = header.body + header.length;
            if self.kept.is_none() && header.is_last && end <= bytes.len() {
                unmask(&mut bytes[header.body..end], header.mask);
                *at = end;
                return Ok(Some((header.opcode, Place::Here(header.body..end))));
            }
            *at = header.body;
            self.begin(&header, bounds)?;
        }
    }

    /// A frame whose payload is to be gathered begins.
    fn begin(&mut self, header: &Header, bounds: &Bounds) -> Result<(), Violation> {
        let kept = self.kept.get_or_insert_with(|| {
            Box::new(Kept {
                is_text: header.opcode == TEXT,
                data: Vec::new(),
                valid: 0,
                fragments: 0,
                left: 0,
                mask: [0; 4],
                is_last: false,
                is_done: false,
            })
        });
        kept.fragments += 1;
        if kept.fragments > bounds.fragments {
            return violation(1009, "the message has too many fragments");
        }
        (kept.left, kept.mask, kept.is_last) = (header.length, header.mask, header.is_last);
        Ok(())
    }
}

impl Kept {
    /// Takes what is there of the present frame; answers how much that is.
    fn gather(&mut self, bytes: &mut [u8]) -> Result<usize, Violation> {
        let count = self.left.min(bytes.len());
        let piece = &mut bytes[..count];
        unmask(piece, self.mask);
        self.data.extend_from_slice(piece);
        self.mask.rotate_left(count % 4);
        self.left -= count;
        self.is_done = self.left == 0 && self.is_last;
        if self.is_text {
            match std::str::from_utf8(&self.data[self.valid..]) {
                Ok(_) => self.valid = self.data.len(),
                Err(error) if error.error_len().is_none() && !self.is_done => {
                    self.valid += error.valid_up_to();
                }
                Err(_) => return violation(1007, "a text is UTF-8"),
            }
        }
        Ok(count)
    }
}

/// Reads a frame's header. None: it is not whole.
#[inline]
fn header(bytes: &[u8], at: usize) -> Result<Option<Header>, Violation> {
    let Some(&[first, second]) = bytes.get(at..at + 2) else { return Ok(None) };
    let (is_last, opcode) = (first & 0x80 != 0, first & 0x0f);
    if first & 0x70 != 0 {
        return violation(1002, "reserved bits are set");
    }
    if second & 0x80 == 0 {
        return violation(1002, "a client masks its frames");
    }
    let short = second & 0x7f;
    match opcode {
        CONTINUATION | TEXT | BINARY => {}
        CLOSE | PING | PONG if !is_last => return violation(1002, "a control frame is fragmented"),
        CLOSE | PING | PONG if short > 125 => return violation(1002, "a control frame is too long"),
        CLOSE | PING | PONG => {}
        _ => return violation(1002, "unknown opcode"),
    }
    let (length, start) = match short {
        126 => match bytes.get(at + 2..at + 4) {
            Some(&[a, b]) => (usize::from(u16::from_be_bytes([a, b])), at + 4),
            _ => return Ok(None),
        },
        127 => match bytes.get(at + 2..at + 10).and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => (usize::try_from(u64::from_be_bytes(bytes)).unwrap_or(usize::MAX), at + 10),
            None => return Ok(None),
        },
        short => (usize::from(short), at + 2),
    };
    let Some(mask) = bytes.get(start..start + 4).and_then(|mask| mask.try_into().ok()) else {
        return Ok(None);
    };
    Ok(Some(Header { is_last, opcode, mask, length, body: start + 4 }))
}

/// The code to answer a close frame with (RFC 6455, section 7.4).
fn close_code(payload: &[u8]) -> Result<u16, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return match payload {
            [] => Ok(1000),
            _ => violation(1002, "half a close code"),
        };
    };
    if std::str::from_utf8(reason).is_err() {
        return violation(1007, "a reason is UTF-8");
    }
    match u16::from_be_bytes(*code) {
        code @ (1000..=1003 | 1007..=1014 | 3000..=4999) => Ok(code),
        _ => violation(1002, "no such close code"),
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// Appends a frame with a text.
pub fn write_text(buffer: &mut Vec<u8>, payload: &[u8]) {
    write(buffer, TEXT, payload);
}

/// Appends a frame with bytes.
pub fn write_binary(buffer: &mut Vec<u8>, payload: &[u8]) {
    write(buffer, BINARY, payload);
}

/// A ping without a payload.
pub const PING_FRAME: &[u8] = &[0x80 | PING, 0];

/// Appends the answer to a ping.
pub fn write_pong(buffer: &mut Vec<u8>, payload: &[u8]) {
    write(buffer, PONG, payload);
}

/// A close frame.
pub fn close_frame(code: u16, reason: &str) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(&reason.as_bytes()[..reason.len().min(123)]);
    let mut frame = Vec::with_capacity(payload.len() + 2);
    write(&mut frame, CLOSE, &payload);
    frame
}

fn write(buffer: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    write_header(buffer, opcode, payload.len());
    buffer.extend_from_slice(payload);
}

/// The longest header of a server's frame.
const HEADER: usize = 10;

#[inline]
fn write_header(buffer: &mut Vec<u8>, opcode: u8, length: usize) {
    buffer.reserve(length + HEADER);
    buffer.push(0x80 | opcode);
    match length {
        0..126 => buffer.push(length as u8),
        126..65_536 => {
            buffer.push(126);
            buffer.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            buffer.push(127);
            buffer.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// Appends a frame with a text of known length, which `append` writes.
pub fn write_text_with(buffer: &mut Vec<u8>, length: usize, append: impl FnOnce(&mut Vec<u8>)) {
    write_header(buffer, TEXT, length);
    let start = buffer.len();
    append(buffer);
    debug_assert_eq!(buffer.len() - start, length);
}

/// Length of the server's frame that these bytes begin with. None: not even its header is whole.
pub fn frame_length(bytes: &[u8]) -> Option<usize> {
    let short = usize::from(*bytes.get(1)? & 0x7f);
    match short {
        126 => Some(4 + usize::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?))),
        127 => usize::try_from(u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?)).ok()?.checked_add(10),
        short => Some(2 + short),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { message: 100_000, fragments: 8 };

    /// A client's frame.
    fn masked(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let mut frame = Vec::new();
        write(&mut frame, TEXT, payload);
        (frame[0], frame[1]) = (first, frame[1] | 0x80);
        let header = frame.len() - payload.len();
        frame.splice(header..header, mask);
        for (byte, mask) in frame[header + 4..].iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        frame
    }

    /// All messages in pieces of a stream, as text, and how it ended.
    fn decode(pieces: &[&[u8]], bounds: &Bounds) -> (Vec<String>, Option<u16>) {
        let (mut decoder, mut found, mut unread) = (Decoder::default(), Vec::new(), Vec::new());
        for piece in pieces {
            unread.extend_from_slice(piece);
            let mut at = 0;
            loop {
                match decoder.read(&mut unread, &mut at, bounds) {
                    Ok(Some(message)) => found.push(format!("{message:?}")),
                    Ok(None) => break,
                    Err(violation) => return (found, Some(violation.code)),
                }
            }
            unread.drain(..at);
            assert!(unread.len() < 140, "payload is not left over: {}", unread.len());
        }
        (found, None)
    }

    fn frame() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let mask = any::<[u8; 4]>();
        let text = prop_oneof!["\\PC{0,40}", "[a-zäß€😀]{0,400}"];
        prop_oneof![
            (text.clone(), mask).prop_map(|(text, mask)| vec![masked(0x81, text.as_bytes(), mask)]),
            (proptest::collection::vec(any::<u8>(), 0..300), mask)
                .prop_map(|(data, mask)| vec![masked(0x82, &data, mask)]),
            (proptest::collection::vec(any::<u8>(), 0..125), mask)
                .prop_map(|(data, mask)| vec![masked(0x89, &data, mask)]),
            // A text in three fragments, cut anywhere, with a ping between them.
            (text, mask, any::<(prop::sample::Index, prop::sample::Index)>()).prop_map(
                |(text, mask, cuts)| {
                    let length = text.len() + 1;
                    let (a, b) = (cuts.0.index(length), cuts.1.index(length));
                    let (a, b) = (a.min(b), a.max(b));
                    vec![
                        masked(0x01, &text.as_bytes()[..a], mask),
                        masked(0x89, b"between", mask),
                        masked(0x00, &text.as_bytes()[a..b], mask),
                        masked(0x80, &text.as_bytes()[b..], mask),
                    ]
                }
            ),
        ]
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_gives_the_same_messages(
            frames in proptest::collection::vec(frame(), 1..6),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let stream: Vec<u8> = frames.concat().concat();
            let whole = decode(&[&stream], &BOUNDS);
            prop_assert_eq!(whole.1, None);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]).collect();
            prop_assert_eq!(&decode(&pieces, &BOUNDS), &whole);
            let bytes: Vec<&[u8]> = stream.chunks(1).collect();
            prop_assert_eq!(&decode(&bytes, &BOUNDS), &whole);
        }

        #[test]
        fn whatever_comes_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let whole = decode(&[&bytes], &BOUNDS);
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(decode(&single, &BOUNDS), whole);
        }

        #[test]
        fn lengths_of_own_frames(payload in proptest::collection::vec(any::<u8>(), 0..70_000)) {
            let mut frame = Vec::new();
            write_binary(&mut frame, &payload);
            prop_assert_eq!(frame_length(&frame), Some(frame.len()));
        }
    }

    #[test]
    fn every_length_comes_out_as_it_went_in() {
        for length in [0, 1, 3, 4, 7, 8, 9, 125, 126, 127, 65_535, 65_536] {
            let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let (found, end) = decode(&[&masked(0x82, &payload, [7, 11, 13, 17])], &BOUNDS);
            assert_eq!((found, end), (vec![format!("{:?}", Message::Binary(&payload))], None));
        }
    }

    #[test]
    fn violations_have_their_codes() {
        let mask = [1, 2, 3, 4];
        let code = |frames: &[Vec<u8>]| decode(&[&frames.concat()], &BOUNDS).1;
        assert_eq!(code(&[vec![0x81, 0x00]]), Some(1002), "not masked");
        assert_eq!(code(&[vec![0xc1, 0x80]]), Some(1002), "reserved bit");
        assert_eq!(code(&[vec![0x83, 0x80]]), Some(1002), "opcode");
        assert_eq!(code(&[vec![0x09, 0x80]]), Some(1002), "fragmented ping");
        assert_eq!(code(&[masked(0x89, &[0; 126], mask)]), Some(1002), "long ping");
        assert_eq!(code(&[masked(0x80, b"x", mask)]), Some(1002), "continuation of nothing");
        assert_eq!(
            code(&[masked(0x01, b"x", mask), masked(0x81, b"y", mask)]),
            Some(1002),
            "message in a message"
        );
        assert_eq!(code(&[masked(0x82, &[0; 100_001], mask)]), Some(1009));
        let parts = [masked(0x02, &[0; 60_000], mask), masked(0x80, &[0; 60_000], mask)];
        assert_eq!(code(&parts), Some(1009), "too big in sum");
        let mut many = vec![masked(0x01, b"", mask)];
        many.extend((0..8).map(|_| masked(0x00, b"", mask)));
        assert_eq!(code(&many), Some(1009), "too many fragments");
        assert_eq!(code(&[masked(0x81, b"\xff", mask)]), Some(1007));
        assert_eq!(
            code(&[masked(0x01, b"\xe2\x82", mask), masked(0x80, b"", mask)]),
            Some(1007),
            "half a character"
        );
    }

    #[test]
    fn what_cannot_become_utf8_ends_at_once() {
        // A frame of 1,000 bytes, of which the first three have come.
        let mut frame = masked(0x81, &[0xce, 0xba, 0xff], [0; 4]);
        frame.splice(1..2, [0x80 | 126, 3, 232]);
        assert_eq!(decode(&[&frame], &BOUNDS).1, Some(1007));
    }

    #[test]
    fn close_codes() {
        let code = |payload: &[u8]| {
            let mut frame = masked(0x88, payload, [9; 4]);
            let read =
                Decoder::default().read(&mut frame, &mut 0, &BOUNDS).map(|message| format!("{message:?}"));
            read.map_err(|violation| violation.code)
        };
        assert_eq!(code(&[]), Ok("Some(Close(1000))".into()));
        assert_eq!(code(&[0x0f, 0xa0]), Ok("Some(Close(4000))".into()));
        assert_eq!(code(&[0x03]), Err(1002));
        for wrong in [0u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000] {
            assert_eq!(code(&wrong.to_be_bytes()), Err(1002), "{wrong}");
        }
        assert_eq!(code(&[0x03, 0xe8, 0xff]), Err(1007));
    }
}
