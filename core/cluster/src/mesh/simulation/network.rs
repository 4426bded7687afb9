//! Connections of the made-up network: bytes in order, in pieces as they fall, with a window.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::BytesMut;

use super::super::link::Conn;

/// Bytes that may be under way in one direction.
pub const WINDOW: usize = 128 * 1024;

/// One end of a connection.
#[derive(Debug)]
pub struct End {
    pub machine: usize,
    /// Of which life of the machine.
    pub boot: u64,
    pub conn: Conn,
    /// It is open here.
    pub is_open: bool,
    /// What came and is not taken yet.
    pub buffer: BytesMut,
    /// What was sent from here and has not arrived.
    pub under_way: usize,
    /// It would send more, had it a window.
    pub is_blocked: bool,
    /// Pieces that came while nothing was read, or while the nodes were parted.
    pub held: VecDeque<Vec<u8>>,
    /// When the last piece that was sent from here arrives.
    pub last_at: Instant,
}

impl End {
    pub fn new(machine: usize, boot: u64, conn: Conn) -> Self {
        Self {
            machine,
            boot,
            conn,
            is_open: true,
            buffer: BytesMut::new(),
            under_way: 0,
            is_blocked: false,
            held: VecDeque::new(),
            last_at: super::world::epoch(),
        }
    }
}

/// A connection: who made it, who took it.
#[derive(Debug)]
pub struct Pipe {
    pub ends: [End; 2],
}
