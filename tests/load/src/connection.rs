//! One connection of the generator: requests go out, answers are counted.

use std::io;

use mio::Registry;
use mio::net::TcpStream;

use crate::Result;
use crate::frames::{Counted, Counter};
use crate::pipe::Pipe;

/// A connection that is ready to be used.
pub struct Connection {
    pipe: Pipe,
    counter: Counter,
    /// Frames so far that were no answers.
    others: u64,
}

impl Connection {
    /// Takes a socket, and what was read of it already.
    pub fn new(socket: std::net::TcpStream, mut counter: Counter, read: &[u8]) -> Result<Self> {
        socket.set_nonblocking(true)?;
        let others = counter.feed(read)?.others as u64;
        Ok(Self { pipe: Pipe::new(TcpStream::from_std(socket)), counter, others })
    }

    /// Lets a poll tell of it.
    pub fn register(&mut self, registry: &Registry, token: usize) -> io::Result<()> {
        self.pipe.register(registry, token)
    }

    /// Sends, or keeps what the socket does not take.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pipe.send(bytes)
    }

    /// Sends what was kept.
    pub fn flush(&mut self) -> io::Result<()> {
        self.pipe.flush()
    }

    /// Reads until the socket is empty; until the other side's end where `is_closed`.
    pub fn read(&mut self, buffer: &mut [u8], is_closed: bool) -> Result<Counted> {
        let mut counted = Counted::default();
        while let Some(count) = self.pipe.read(buffer)? {
            if count == 0 {
                return Err(format!("the other side has closed a connection{}", self.last_words()).into());
            }
            let now = self.counter.feed(&buffer[..count])?;
            counted.answers += now.answers;
            counted.others += now.others;
            // It has emptied the socket; the next byte is another event.
            if count < buffer.len() && !is_closed {
                break;
            }
        }
        self.others += counted.others as u64;
        Ok(counted)
    }

    /// True when a frame has come that was no answer: the first notice of a room.
    pub fn has_joined(&self) -> bool {
        self.others > 0
    }

    /// The last frame that was no answer, for the end of a message.
    pub fn last_words(&self) -> String {
        let other = self.counter.other();
        if other.is_empty() { other } else { format!("; it said: {other}") }
    }
}
