//! A socket that never holds up its thread: what it does not take now is kept.

use std::io::{self, ErrorKind, Read, Write};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

/// One non-blocking socket.
pub struct Pipe {
    socket: TcpStream,
    unsent: Vec<u8>,
}

impl Pipe {
    /// Takes a socket.
    pub fn new(socket: TcpStream) -> Self {
        Self { socket, unsent: Vec::new() }
    }

    /// Lets a poll tell of it. An event that is given away does not come again.
    pub fn register(&mut self, registry: &Registry, token: usize) -> io::Result<()> {
        registry.register(&mut self.socket, Token(token), Interest::READABLE | Interest::WRITABLE)
    }

    /// Sends with one write, where the socket takes everything.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = if self.unsent.is_empty() { write(&mut self.socket, bytes)? } else { 0 };
        self.unsent.extend_from_slice(&bytes[written..]);
        Ok(())
    }

    /// Sends what was kept.
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.unsent.is_empty() {
            let written = write(&mut self.socket, &self.unsent)?;
            self.unsent.drain(..written);
        }
        Ok(())
    }

    /// One read. None: nothing is there; 0: the other side has closed.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.socket.read(buffer) {
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Writes what the socket takes now.
fn write(socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match socket.write(&bytes[written..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}
