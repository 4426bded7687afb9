//! WebSocket frames (RFC 6455, section 5), sans I/O: bytes in, frames out, in place.

/// What a client can send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// One whole frame, its payload unmasked, as a range of the buffer that it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub opcode: Opcode,
    pub payload: std::ops::Range<usize>,
    /// Where the next frame begins.
    pub end: usize,
}

/// What is wrong with a frame, as a close code and a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    pub code: u16,
    pub reason: &'static str,
}

const fn violation(code: u16, reason: &'static str) -> Violation {
    Violation { code, reason }
}

/// Reads the frame that begins at `start`. None: it is not complete yet.
pub fn read(buffer: &mut [u8], start: usize, limit: usize) -> Result<Option<Frame>, Violation> {
    let Some(&[first, second]) = buffer.get(start..start + 2) else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(violation(1002, "reserved bits are set"));
    }
    if second & 0x80 == 0 {
        return Err(violation(1002, "a client masks its frames"));
    }
    let opcode = match first & 0x0f {
        0x1 => Opcode::Text,
        0x2 => Opcode::Binary,
        0x8 => Opcode::Close,
        0x9 => Opcode::Ping,
        0xa => Opcode::Pong,
        0x0 => return Err(violation(1003, "fragmented messages are not taken")),
        _ => return Err(violation(1002, "unknown opcode")),
    };
    let is_control = matches!(opcode, Opcode::Close | Opcode::Ping | Opcode::Pong);
    if first & 0x80 == 0 {
        return Err(match is_control {
            true => violation(1002, "a control frame is fragmented"),
            false => violation(1003, "fragmented messages are not taken"),
        });
    }
    let (length, header) = match second & 0x7f {
        126 => match buffer.get(start + 2..start + 4) {
            Some(&[a, b]) => (usize::from(u16::from_be_bytes([a, b])), 4),
            _ => return Ok(None),
        },
        127 => match buffer.get(start + 2..start + 10).and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => (usize::try_from(u64::from_be_bytes(bytes)).unwrap_or(usize::MAX), 10),
            None => return Ok(None),
        },
        length => (usize::from(length), 2),
    };
    if is_control && length > 125 {
        return Err(violation(1002, "a control frame is too long"));
    }
    if length > limit {
        return Err(violation(1009, "the message is too big"));
    }
    let body = start + header + 4;
    let end = body + length;
    if buffer.len() < end {
        return Ok(None);
    }
    let (head, rest) = buffer.split_at_mut(body);
    let mut mask = [0; 4];
    mask.copy_from_slice(&head[body - 4..]);
    unmask(&mut rest[..length], mask);
    Ok(Some(Frame { opcode, payload: body..end, end }))
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask) {
        *byte ^= mask;
    }
    // At most seven bytes are left: the mask begins anew after the fourth.
    for (byte, mask) in rest.iter_mut().skip(4).zip(mask) {
        *byte ^= mask;
    }
}

/// Appends a server's frame.
pub fn write(buffer: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    let opcode = match opcode {
        Opcode::Text => 0x1,
        Opcode::Binary => 0x2,
        Opcode::Close => 0x8,
        Opcode::Ping => 0x9,
        Opcode::Pong => 0xa,
    };
    buffer.push(0x80 | opcode);
    match payload.len() {
        length @ 0..126 => buffer.push(length as u8),
        length @ 126..65_536 => {
            buffer.push(126);
            buffer.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            buffer.push(127);
            buffer.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    buffer.extend_from_slice(payload);
}

/// Appends a close frame.
pub fn write_close(buffer: &mut Vec<u8>, code: u16, reason: &str) {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(&reason.as_bytes()[..reason.len().min(123)]);
    write(buffer, Opcode::Close, &payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [7, 11, 13, 17];
        let mut frame = Vec::new();
        write(&mut frame, Opcode::Text, payload);
        frame[0] = opcode;
        frame[1] |= 0x80;
        let header = frame.len() - payload.len();
        frame.splice(header..header, mask);
        for (at, byte) in frame[header + 4..].iter_mut().enumerate() {
            *byte ^= mask[at % 4];
        }
        frame
    }

    #[test]
    fn every_length_comes_out_as_it_went_in_however_it_is_cut() {
        for length in [0, 1, 3, 4, 7, 8, 9, 125, 126, 127, 65_535, 65_536] {
            let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let frame = masked(0x82, &payload);
            for cut in [0, 1, 2, 3, 5, 9, 13, frame.len() - 1] {
                assert_eq!(read(&mut frame[..cut.min(frame.len() - 1)].to_vec(), 0, 1 << 20), Ok(None));
            }
            let mut buffer = frame.clone();
            let read = read(&mut buffer, 0, 1 << 20).unwrap().unwrap();
            assert_eq!((read.opcode, read.end), (Opcode::Binary, frame.len()));
            assert_eq!(buffer[read.payload], payload);
        }
    }

    #[test]
    fn violations_have_their_codes() {
        let code = |mut frame: Vec<u8>| read(&mut frame, 0, 1000).unwrap_err().code;
        assert_eq!(code(vec![0x81, 0x00]), 1002, "not masked");
        assert_eq!(code(vec![0xc1, 0x80]), 1002, "reserved bit");
        assert_eq!(code(vec![0x83, 0x80]), 1002, "opcode");
        assert_eq!(code(vec![0x09, 0x80]), 1002, "fragmented ping");
        assert_eq!(code(masked(0x89, &[0; 126])), 1002, "long ping");
        assert_eq!(code(masked(0x81, &[0; 1001])), 1009);
        assert_eq!(code(vec![0x01, 0x80]), 1003, "fragment");
    }
}
