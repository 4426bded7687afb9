//! What is measured: the cells of `bench websocket`.

use crate::frames;
use crate::load::Plan;
use crate::raw::Work;

/// One figure with its limit.
pub struct Cell {
    /// What `--only` names.
    pub key: &'static str,
    /// What the table says.
    pub name: &'static str,
    /// The highest value that is in order.
    pub limit: f64,
    /// How it is taken.
    pub kind: Kind,
}

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The edge alone sends 20 bytes back.
    Echo {
        /// Requests under way on each connection.
        depth: usize,
    },
    /// `TaskEcho` with 20 bytes: edge, router, task and back.
    Ring {
        /// Requests under way on each connection.
        depth: usize,
    },
    /// `chat.say` with 100 bytes, to everybody in the room.
    Broadcast {
        /// Broadcasts under way.
        depth: usize,
    },
    /// Nothing: peers sit in their rooms.
    Idle,
}

const fn cell(key: &'static str, name: &'static str, limit: f64, kind: Kind) -> Cell {
    Cell { key, name, limit, kind }
}

/// Every cell, in the order of the table.
pub static CELLS: [Cell; 7] = [
    cell("echo-1", "bare echo, 20 B, 100 connections, depth 1", 1.10, Kind::Echo { depth: 1 }),
    cell("echo-16", "bare echo, 20 B, 100 connections, depth 16", 1.25, Kind::Echo { depth: 16 }),
    cell("ring-1", "TaskEcho, 20 B, 100 connections, depth 1", 1.20, Kind::Ring { depth: 1 }),
    cell("ring-16", "TaskEcho, 20 B, 100 connections, depth 16", 2.2, Kind::Ring { depth: 16 }),
    cell("broadcast-1", "broadcast, 100 B to 1,000, 1 under way", 1.25, Kind::Broadcast { depth: 1 }),
    cell("broadcast-8", "broadcast, 100 B to 1,000, 8 under way", 1.25, Kind::Broadcast { depth: 8 }),
    cell("idle", "memory of an idle peer, 10,000 of them in rooms", 1.5, Kind::Idle),
];

impl Cell {
    /// True when a word of `--only` means it: its key, or the first part of that.
    pub fn is_meant(&self, only: &str) -> bool {
        self.key == only || self.key.split('-').next() == Some(only)
    }
}

impl Kind {
    /// What the clients of the server do.
    pub fn ours(self, port: u16) -> Plan {
        let plan = Plan {
            port,
            connections: 100,
            path: Some("/ws"),
            rooms: Some(10),
            request: Vec::new(),
            answer: 0,
            depth: 1,
            is_broadcast: false,
        };
        let echoed = |text: &str, plan: Plan| Plan {
            request: frames::client(text.as_bytes()),
            answer: text.len(),
            ..plan
        };
        let word = "e".repeat(20);
        let task = format!("{{\"task\":\"TaskEcho\",\"data\":\"{word}\"}}");
        match self {
            Self::Echo { depth } => echoed(&word, Plan { path: Some("/echo"), rooms: None, depth, ..plan }),
            Self::Ring { depth } => echoed(&task, Plan { depth, ..plan }),
            Self::Broadcast { depth } => {
                let text = "b".repeat(100);
                let say = format!("{{\"task\":\"chat.say\",\"data\":{{\"text\":\"{text}\"}}}}");
                let said =
                    format!("{{\"task\":\"chat.say\",\"data\":{{\"from\":null,\"text\":\"{text}\"}}}}");
                Plan {
                    connections: 1000,
                    rooms: Some(1),
                    request: frames::client(say.as_bytes()),
                    answer: said.len(),
                    depth,
                    is_broadcast: true,
                    ..plan
                }
            }
            // A hundred in each room: a join tells a hundred peers, not ten thousand.
            Self::Idle => echoed(&task, Plan { connections: 10_000, rooms: Some(100), ..plan }),
        }
    }

    /// The same without a protocol: as many bytes as the frames that it is compared with.
    pub fn raw(self, port: u16) -> Plan {
        let ours = self.ours(port);
        let size = if ours.is_broadcast { frames::server_size(ours.answer) } else { ours.request.len() };
        Plan { path: None, rooms: None, request: vec![b'x'; size], answer: size, ..ours }
    }

    /// What the raw peer does.
    pub fn work(self) -> Work {
        match self {
            Self::Echo { .. } | Self::Ring { .. } | Self::Idle => Work::Echo,
            Self::Broadcast { .. } => Work::Send,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_messages_are_as_long_as_ours() {
        let sizes = |kind: Kind| {
            let (ours, raw) = (kind.ours(1), kind.raw(2));
            assert_eq!((raw.port, raw.connections, raw.depth), (2, ours.connections, ours.depth));
            (ours.request.len(), ours.answer, raw.request.len(), raw.answer)
        };
        assert_eq!(sizes(Kind::Echo { depth: 16 }), (26, 20, 26, 26));
        assert_eq!(sizes(Kind::Ring { depth: 1 }), (55, 49, 55, 55));
        // {"task":"chat.say","data":{"from":null,"text":"…"}} in a frame with a length of two bytes
        assert_eq!(sizes(Kind::Broadcast { depth: 8 }), (146, 150, 154, 154));
    }

    #[test]
    fn cells_are_found_by_key_and_by_group() {
        let found = |only: &str| CELLS.iter().filter(|cell| cell.is_meant(only)).count();
        assert_eq!((found("echo"), found("echo-1"), found("idle"), found("ech")), (2, 1, 1, 0));
    }
}
