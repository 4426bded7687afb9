//! The generator: one thread, many connections, each with so many requests under way.

use std::io::ErrorKind;
use std::ops::Range;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

use crate::board::Board;
use crate::connection::Connection;
use crate::frames::{self, Counter, Frames};
use crate::raw::READ;
use crate::{DEADLINE, Result, connect};

/// Connections that are opened at a time: fewer than a listening socket lets wait.
pub const BATCH: usize = 64;

/// Notices have settled when none has come for so long: a room sends its list again some 50 ms after a join.
pub const QUIET: Duration = Duration::from_millis(250);

/// How long one look for events takes at most where the generator does not spin.
pub const WAIT: Duration = Duration::from_millis(10);

/// What to connect to, and what to say there.
#[derive(Clone, Debug)]
pub struct Plan {
    /// A port of this machine.
    pub port: u16,
    /// So many connections.
    pub connections: usize,
    /// The path of a WebSocket; None: bytes without frames.
    pub path: Option<&'static str>,
    /// So many rooms share the connections; None: nobody says hello.
    pub rooms: Option<usize>,
    /// The bytes of a request.
    pub request: Vec<u8>,
    /// Bytes of an answer: a frame's payload, or everything where there are no frames.
    pub answer: usize,
    /// So many requests are under way on each connection; of broadcasts, in all.
    pub depth: usize,
    /// The first connection sends, and every one gets it.
    pub is_broadcast: bool,
}

/// Open connections, and what is under way on them.
pub struct Load {
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    connections: Vec<Connection>,
    /// As many requests as may be under way, one behind the other.
    window: Vec<u8>,
    request: usize,
    depth: usize,
    board: Option<Board>,
    /// Requests that are not done.
    under_way: usize,
    answers: u64,
    wait: Duration,
}

/// What becomes of a request that is done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// There are none; notices come instead.
    Join,
    /// Another one goes out.
    Run,
    /// Nothing.
    End,
}

impl Load {
    /// Opens the connections, and waits until all of them are where they are to be.
    pub fn connect(plan: &Plan, spin: bool) -> Result<Self> {
        let mut load = Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            buffer: vec![0; READ],
            connections: Vec::with_capacity(plan.connections),
            window: plan.request.repeat(plan.depth),
            request: plan.request.len(),
            depth: plan.depth,
            board: plan.is_broadcast.then(|| Board::new(plan.connections, plan.depth)),
            under_way: 0,
            answers: 0,
            wait: if spin { Duration::ZERO } else { WAIT },
        };
        for start in (0..plan.connections).step_by(BATCH) {
            load.add(plan, start..plan.connections.min(start + BATCH))?;
        }
        if plan.rooms.is_some() {
            load.wait_joined()?;
            load.settle()?;
        }
        Ok(load)
    }

    fn add(&mut self, plan: &Plan, batch: Range<usize>) -> Result<()> {
        let mut sockets = Vec::with_capacity(BATCH);
        for _ in batch.clone() {
            let mut socket = connect::open(plan.port)?;
            if let Some(path) = plan.path {
                connect::ask(&mut socket, path)?;
            }
            sockets.push(socket);
        }
        for (mut socket, at) in sockets.into_iter().zip(batch) {
            let (counter, read) = match plan.path {
                Some(_) => (Counter::Frames(Frames::new(plan.answer)), connect::upgraded(&mut socket)?),
                None => (Counter::Bytes { size: plan.answer, rest: 0 }, Vec::new()),
            };
            let mut connection = Connection::new(socket, counter, &read)?;
            connection.register(self.poll.registry(), at)?;
            if let Some(rooms) = plan.rooms {
                let hello = format!("{{\"room\":\"bench-{}\"}}", at % rooms);
                connection.send(&frames::client(hello.as_bytes()))?;
            }
            self.connections.push(connection);
        }
        // What came meanwhile does not pile up.
        self.turn(Duration::ZERO, Phase::Join)?;
        Ok(())
    }

    /// Waits until every connection has got a notice of its room.
    fn wait_joined(&mut self) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        let mut joined = 0;
        while let Some(at) = self.connections[joined..].iter().position(|one| !one.has_joined()) {
            // Those before it need not be looked at again.
            joined += at;
            self.turn(WAIT, Phase::Join)?;
            if Instant::now() > end {
                let seconds = DEADLINE.as_secs();
                return Err(format!("connection {joined} is in no room after {seconds} s").into());
            }
        }
        Ok(())
    }

    /// Waits until no notice comes any more.
    fn settle(&mut self) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        while self.turn(QUIET, Phase::Join)? {
            if Instant::now() > end {
                return Err(format!("notices still come after {} s", DEADLINE.as_secs()).into());
            }
        }
        Ok(())
    }

    /// Keeps as many requests under way as there may be, for a while; then waits for the last answer.
    /// Answers how many answers came.
    pub fn run(&mut self, time: Duration) -> Result<u64> {
        let before = self.answers;
        let senders = if self.board.is_some() { 1 } else { self.connections.len() };
        for connection in &mut self.connections[..senders] {
            connection.send(&self.window)?;
        }
        self.under_way = senders * self.depth;
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.turn(self.wait, Phase::Run)?;
        }
        let end = Instant::now() + DEADLINE;
        while self.under_way > 0 {
            self.turn(self.wait, Phase::End)?;
            if Instant::now() > end {
                let seconds = DEADLINE.as_secs();
                return Err(format!("{} requests are not done after {seconds} s", self.under_way).into());
            }
        }
        Ok(self.answers - before)
    }

    /// Looks for events once and handles them; false: there were none.
    fn turn(&mut self, wait: Duration, phase: Phase) -> Result<bool> {
        if let Err(error) = self.poll.poll(&mut self.events, Some(wait))
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error.into());
        }
        for event in self.events.iter() {
            let at = event.token().0;
            let connection = &mut self.connections[at];
            if event.is_writable() {
                connection.flush()?;
            }
            if !event.is_readable() {
                continue;
            }
            let counted = connection.read(&mut self.buffer, event.is_read_closed())?;
            if counted.others > 0 && phase != Phase::Join {
                return Err(format!("something came that is no answer{}", connection.last_words()).into());
            }
            self.answers += counted.answers as u64;
            let done = match &mut self.board {
                Some(board) => board.reached(at, counted.answers)?,
                None => counted.answers,
            };
            if done > self.depth || done > self.under_way {
                return Err(format!("connection {at} got more answers than it has asked for").into());
            }
            if phase != Phase::Run {
                self.under_way -= done;
            } else if done > 0 {
                let sender = if self.board.is_some() { 0 } else { at };
                self.connections[sender].send(&self.window[..done * self.request])?;
            }
        }
        Ok(!self.events.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use mio::net::TcpListener;

    use super::*;
    use crate::raw::{self, Work};

    fn run(work: Work, connections: usize, depth: usize) -> u64 {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        let peer = std::thread::spawn(move || raw::serve(&listener, work, connections).unwrap());
        let request = b"0123456789".to_vec();
        let (path, rooms, answer, is_broadcast) = (None, None, request.len(), work == Work::Send);
        let plan = Plan { port, connections, path, rooms, request, answer, depth, is_broadcast };
        let mut load = Load::connect(&plan, false).unwrap();
        let answers = load.run(Duration::from_millis(20)).unwrap();
        let again = load.run(Duration::from_millis(1)).unwrap();
        assert_eq!(load.under_way, 0);
        drop(load);
        peer.join().unwrap();
        answers + again
    }

    #[test]
    fn every_echo_is_counted() {
        for depth in [1, 16] {
            let answers = run(Work::Echo, 3, depth);
            assert!(answers >= 2 * 3 * depth as u64, "{answers}");
        }
    }

    #[test]
    fn a_broadcast_reaches_everybody() {
        for depth in [1, 8] {
            let deliveries = run(Work::Send, 100, depth);
            assert!(deliveries >= 2 * 100 * depth as u64, "{deliveries}");
            assert_eq!(deliveries % 100, 0);
        }
    }
}
