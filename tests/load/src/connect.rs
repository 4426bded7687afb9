//! How a connection begins. Blocking, with deadlines: nothing is measured yet.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use crate::{DEADLINE, Result};

/// The longest head of an answer.
const LONGEST: usize = 16 * 1024;

/// Connects to a port of this machine.
pub fn open(port: u16) -> Result<TcpStream> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let socket = TcpStream::connect_timeout(&address, DEADLINE)
        .map_err(|error| format!("connect {address}: {error}"))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.set_write_timeout(Some(DEADLINE))?;
    Ok(socket)
}

/// Opens so many WebSockets beside each other; each comes with what was read behind its head.
pub fn websockets(port: u16, path: &str, count: usize) -> Result<Vec<(TcpStream, Vec<u8>)>> {
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let mut socket = open(port)?;
        ask(&mut socket, path)?;
        sockets.push(socket);
    }
    let with_rest = |mut socket: TcpStream| -> Result<(TcpStream, Vec<u8>)> {
        let rest = upgraded(&mut socket)?;
        Ok((socket, rest))
    };
    sockets.into_iter().map(with_rest).collect()
}

/// Asks for an upgrade to a WebSocket.
pub fn ask(socket: &mut TcpStream, path: &str) -> Result<()> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    Ok(socket.write_all(request.as_bytes())?)
}

/// Reads the answer to it; what came behind its head is given back.
pub fn upgraded(socket: &mut TcpStream) -> Result<Vec<u8>> {
    let end = Instant::now() + DEADLINE;
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let count = socket.read(&mut chunk).map_err(|error| format!("no answer to the upgrade: {error}"))?;
        head.extend_from_slice(&chunk[..count]);
        if let Some(at) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let behind = head.split_off(at + 4);
            if head.starts_with(b"HTTP/1.1 101 ") {
                return Ok(behind);
            }
            head.extend_from_slice(&behind);
            return Err(format!("the upgrade was refused: {}", String::from_utf8_lossy(&head)).into());
        }
        if count == 0 || head.len() > LONGEST || Instant::now() > end {
            return Err(
                format!("no whole answer to the upgrade: {:?}", String::from_utf8_lossy(&head)).into()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of an answer that is sent in pieces.
    fn answered(pieces: &'static [&'static [u8]]) -> Result<Vec<u8>> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        let mut socket = open(listener.local_addr()?.port())?;
        let (mut other, _) = listener.accept()?;
        ask(&mut socket, "/ws")?;
        for piece in pieces {
            other.write_all(piece)?;
        }
        // It stays open for reading: the request lies there unread.
        other.shutdown(std::net::Shutdown::Write)?;
        upgraded(&mut socket)
    }

    #[test]
    fn what_is_behind_the_head_is_kept() {
        let whole: &[&[u8]] = &[b"HTTP/1.1 101 Switching Protocols\r\nA: b\r", b"\n\r\n\x81\x01x"];
        assert_eq!(answered(whole).unwrap(), b"\x81\x01x");
        let refused = answered(&[b"HTTP/1.1 404 Not Found\r\n\r\nno such path"]).unwrap_err().to_string();
        assert!(refused.contains("404") && refused.contains("no such path"), "{refused}");
        assert!(answered(&[b"HTTP/1.1 101 "]).unwrap_err().to_string().contains("no whole answer"));
    }
}
