//! A server's frames, read from bytes that are cut anywhere.

use crate::frames::payload_length;

/// The longest frame that is read.
const LONGEST: usize = 1024 * 1024;

/// What a server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A text of one frame.
    Text(&'a [u8]),
    /// To be answered with the same bytes.
    Ping(&'a [u8]),
    /// The last one: two bytes of a code, then a reason.
    Close(&'a [u8]),
    /// What this server never sends, by its first byte.
    Other(u8),
}

/// Reads what comes on one connection.
#[derive(Default)]
pub struct Reader {
    /// The beginning of a frame that is not complete.
    rest: Vec<u8>,
}

impl Reader {
    /// Takes what was read, and hands on each whole frame.
    pub fn feed(&mut self, bytes: &[u8], mut take: impl FnMut(Frame<'_>)) -> Result<(), String> {
        if self.rest.is_empty() {
            let used = whole_frames(bytes, &mut take)?;
            self.rest.extend_from_slice(&bytes[used..]);
        } else {
            self.rest.extend_from_slice(bytes);
            let used = whole_frames(&self.rest, &mut take)?;
            self.rest.drain(..used);
        }
        Ok(())
    }
}

/// Answers how many bytes the frames had.
fn whole_frames(bytes: &[u8], take: &mut impl FnMut(Frame<'_>)) -> Result<usize, String> {
    let mut used = 0;
    while let Some((head, length)) = lengths(&bytes[used..])? {
        let Some(payload) = bytes.get(used + head..used + head + length) else { break };
        take(match bytes[used] {
            0x81 => Frame::Text(payload),
            0x89 => Frame::Ping(payload),
            0x88 => Frame::Close(payload),
            other => Frame::Other(other),
        });
        used += head + length;
    }
    Ok(used)
}

/// Lengths of head and payload; None: the head is not complete.
fn lengths(bytes: &[u8]) -> Result<Option<(usize, usize)>, String> {
    for head in [2, 4, 10] {
        let Some(header) = bytes.get(..head) else { return Ok(None) };
        match payload_length(header)? {
            Some(length) if length > LONGEST => return Err(format!("a frame of {length} bytes")),
            Some(length) => return Ok(Some((head, length))),
            None => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..126 => frame.push(length as u8),
            length @ 126..65_536 => {
                frame.push(126);
                frame.extend((length as u16).to_be_bytes());
            }
            length => {
                frame.push(127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(payload);
        frame
    }

    fn read(pieces: &[&[u8]]) -> Result<Vec<String>, String> {
        let (mut reader, mut frames) = (Reader::default(), Vec::new());
        for piece in pieces {
            reader.feed(piece, |frame| {
                frames.push(match frame {
                    Frame::Text(text) => format!("text {}", String::from_utf8_lossy(text)),
                    Frame::Ping(payload) => format!("ping {payload:?}"),
                    Frame::Close(payload) => format!("close {payload:?}"),
                    Frame::Other(first) => format!("other {first:#x}"),
                });
            })?;
        }
        Ok(frames)
    }

    #[test]
    fn frames_are_read_wherever_they_are_cut() {
        for length in [0, 1, 125, 126, 300, 65_535, 65_536] {
            let text = "a".repeat(length);
            let parts = [frame(0x81, text.as_bytes()), frame(0x89, &[7]), frame(0x81, b"end")];
            let stream = parts.concat();
            let expected = vec![format!("text {text}"), "ping [7]".into(), "text end".into()];
            let cuts = (0..stream.len()).filter(|cut| *cut < 20 || cut % 997 == 0 || cut + 20 > stream.len());
            for cut in cuts {
                let (start, end) = stream.split_at(cut);
                assert_eq!(read(&[start, end]).unwrap(), expected, "{length} bytes, cut at {cut}");
            }
            if length < 1000 {
                let single: Vec<&[u8]> = stream.chunks(1).collect();
                assert_eq!(read(&single).unwrap(), expected, "{length} bytes, byte by byte");
            }
        }
    }

    #[test]
    fn every_kind_of_frame_is_told() {
        let stream = [frame(0x88, &[3, 0xe8]), frame(0x82, b"x"), frame(0x8a, b"")].concat();
        assert_eq!(read(&[&stream]).unwrap(), ["close [3, 232]", "other 0x82", "other 0x8a"]);
    }

    #[test]
    fn what_no_server_sends_is_an_error() {
        assert!(read(&[&[0x81, 0x83]]).unwrap_err().contains("mask"));
        let long = [[0x81u8, 127].as_slice(), &(1u64 << 40).to_be_bytes()].concat();
        assert!(read(&[&long]).unwrap_err().contains("a frame of"));
    }
}
