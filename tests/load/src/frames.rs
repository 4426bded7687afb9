//! Client frames, built beforehand, and what comes back, counted without being kept.

/// None of its bytes is 0: to unmask is real work.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// So much of a frame that is no answer is kept, for a message to the user.
const KEPT: usize = 200;

/// A masked text frame.
pub fn client(text: &[u8]) -> Vec<u8> {
    let mut frame = header(text.len());
    frame[1] |= 0x80;
    frame.extend_from_slice(&MASK);
    frame.extend(text.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A masked pong, for a ping with this payload.
pub fn pong(payload: &[u8]) -> Vec<u8> {
    let mut frame = client(payload);
    frame[0] = 0x8a;
    frame
}

/// How many bytes a server's frame with a text of this length has.
pub fn server_size(length: usize) -> usize {
    header(length).len() + length
}

fn header(length: usize) -> Vec<u8> {
    let mut header = vec![0x81];
    match length {
        0..126 => header.push(length as u8),
        126..65_536 => {
            header.push(126);
            header.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            header.push(127);
            header.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    header
}

/// What some bytes brought to their end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Answers to requests, or pushes.
    pub answers: usize,
    /// Frames that are neither, such as notices.
    pub others: usize,
}

/// Counts what comes on one connection.
pub enum Counter {
    /// Every `size` bytes are an answer; `rest` have come of the next.
    Bytes {
        /// Bytes of an answer.
        size: usize,
        /// Bytes of an answer that is not complete.
        rest: usize,
    },
    /// WebSocket frames.
    Frames(Frames),
}

impl Counter {
    /// Takes what was read, cut anywhere.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Counted, String> {
        match self {
            Self::Bytes { size, rest } => {
                let sum = *rest + bytes.len();
                *rest = sum % *size;
                Ok(Counted { answers: sum / *size, others: 0 })
            }
            Self::Frames(frames) => frames.feed(bytes),
        }
    }

    /// The last frame that was no answer.
    pub fn other(&self) -> String {
        match self {
            Self::Bytes { .. } => String::new(),
            Self::Frames(frames) => String::from_utf8_lossy(&frames.other).into_owned(),
        }
    }
}

/// Counts a server's frames. A text of `answer` bytes is an answer.
pub struct Frames {
    answer: usize,
    header: [u8; 10],
    /// So many bytes of the header are there.
    have: usize,
    /// Bytes of the payload to come; None: the header is not complete.
    left: Option<usize>,
    is_answer: bool,
    other: Vec<u8>,
}

impl Frames {
    /// At the beginning of a frame.
    pub fn new(answer: usize) -> Self {
        Self { answer, header: [0; 10], have: 0, left: None, is_answer: false, other: Vec::new() }
    }

    fn feed(&mut self, mut bytes: &[u8]) -> Result<Counted, String> {
        let mut counted = Counted::default();
        while let Some((&first, behind)) = bytes.split_first() {
            let left = match self.left {
                Some(left) => left,
                None => {
                    bytes = behind;
                    self.header[self.have] = first;
                    self.have += 1;
                    match payload_length(&self.header[..self.have])? {
                        Some(length) => self.begin(length),
                        None => continue,
                    }
                }
            };
            let taken = left.min(bytes.len());
            if !self.is_answer {
                let kept = taken.min(KEPT.saturating_sub(self.other.len()));
                self.other.extend_from_slice(&bytes[..kept]);
            }
            bytes = &bytes[taken..];
            if taken < left {
                self.left = Some(left - taken);
                continue;
            }
            (self.left, self.have) = (None, 0);
            if self.is_answer {
                counted.answers += 1;
            } else {
                counted.others += 1;
            }
        }
        Ok(counted)
    }

    fn begin(&mut self, length: usize) -> usize {
        self.left = Some(length);
        self.is_answer = self.header[0] == 0x81 && length == self.answer;
        if !self.is_answer {
            self.other.clear();
        }
        length
    }
}

/// The length that a header of a server's frame tells; None: it is not complete.
pub fn payload_length(header: &[u8]) -> Result<Option<usize>, String> {
    match *header {
        [_, second, ..] if second & 0x80 != 0 => Err("the server masks a frame".into()),
        [_, length @ 0..126] => Ok(Some(usize::from(length))),
        [_, 126, a, b] => Ok(Some(usize::from(u16::from_be_bytes([a, b])))),
        [_, 127, a, b, c, d, e, f, g, h] => {
            let length = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
            usize::try_from(length).map(Some).map_err(|_| format!("a frame of {length} bytes"))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &[u8]) -> Vec<u8> {
        [header(text.len()), text.to_vec()].concat()
    }

    fn sum(counter: &mut Counter, pieces: &[&[u8]]) -> (usize, usize) {
        let counted = pieces.iter().map(|piece| counter.feed(piece).unwrap());
        counted.fold((0, 0), |(answers, others), one| (answers + one.answers, others + one.others))
    }

    #[test]
    fn frames_are_counted_wherever_they_are_cut() {
        for length in [0, 1, 20, 125, 126, 300, 65_535, 65_536] {
            let stream =
                [server(&vec![b'a'; length]), server(b"notice"), server(&vec![b'b'; length])].concat();
            let cuts = (0..stream.len()).filter(|cut| *cut < 40 || cut % 997 == 0 || cut + 40 > stream.len());
            for cut in cuts {
                let mut counter = Counter::Frames(Frames::new(length));
                let (start, end) = stream.split_at(cut);
                assert_eq!(sum(&mut counter, &[start, end]), (2, 1), "{length} bytes, cut at {cut}");
                assert_eq!(counter.other(), "notice");
            }
            let mut counter = Counter::Frames(Frames::new(length));
            let single: Vec<&[u8]> = stream.chunks(1).collect();
            assert_eq!(sum(&mut counter, &single), (2, 1), "{length} bytes, byte by byte");
        }
    }

    #[test]
    fn a_frame_counts_when_its_last_byte_is_there() {
        let mut counter = Counter::Frames(Frames::new(3));
        let frame = server(b"abc");
        assert_eq!(sum(&mut counter, &[&frame[..4]]), (0, 0));
        assert_eq!(sum(&mut counter, &[&frame[4..]]), (1, 0));
    }

    #[test]
    fn only_texts_of_the_right_length_are_answers() {
        let mut counter = Counter::Frames(Frames::new(3));
        let close = [0x88, 3, 3, 0xe8, b'x'];
        assert_eq!(sum(&mut counter, &[&server(b"ab"), &close, &server(b"abc")]), (1, 2));
        assert!(counter.feed(&[0x81, 0x83]).unwrap_err().contains("mask"));
    }

    #[test]
    fn raw_answers_are_counted_by_bytes() {
        let mut counter = Counter::Bytes { size: 10, rest: 0 };
        assert_eq!(sum(&mut counter, &[&[0; 9]]), (0, 0));
        assert_eq!(sum(&mut counter, &[&[0; 1], &[0; 25], &[0; 5]]), (4, 0));
    }

    #[test]
    fn client_frames_are_masked() {
        let frame = client(b"hello");
        assert_eq!(frame[..6], [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d]);
        let text: Vec<u8> =
            frame[6..].iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        assert_eq!(text, b"hello");
        assert_eq!(pong(b"hello"), [&[0x8a][..], &frame[1..]].concat());
        assert_eq!(client(&[b'x'; 126])[..4], [0x81, 0xfe, 0, 126]);
        assert_eq!((server_size(125), server_size(126), server_size(65_536)), (127, 130, 65_546));
    }
}
