//! Peers that talk: what each says, and what becomes of it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use mio::Registry;
use mio::net::TcpStream;

use crate::history::History;
use crate::pace::Pace;
use crate::pipe::Pipe;
use crate::reader::{Frame, Reader};
use crate::silence::Silence;
use crate::speech::{self, Heard};
use crate::{Result, frames};

/// Peers in each room. The first of them says words to all.
pub const MEMBERS: usize = 10;

/// So much of a strange text is told.
const TOLD: usize = 200;

/// How many talk, and how fast.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// So many peers.
    pub peers: usize,
    /// From an answer to a peer's next request.
    pub request_pause: Duration,
    /// From the answer to a word to the next word of a room.
    pub word_pause: Duration,
}

/// Peers that load two cores well, and leave them time: more of them are slower.
const FULL: usize = 1000;

impl Plan {
    /// Some 13,000 requests and 2,000 words a second in all, and fewer of fewer peers.
    pub fn talking(peers: usize) -> Self {
        let share = peers.max(FULL) as f64 / FULL as f64;
        let pause = |ms: u64| Duration::from_millis(ms).mul_f64(share);
        Self { peers, request_pause: pause(75), word_pause: pause(50) }
    }
}

/// What a peer asks for. It keeps one of each under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Echo,
    Word,
}

/// A request that is not answered.
struct Request {
    id: u64,
    kind: Kind,
    sent: Instant,
}

struct Peer {
    pipe: Pipe,
    reader: Reader,
    asked: VecDeque<Request>,
    /// When the last request was sent that is answered.
    talked: Option<Instant>,
    has_joined: bool,
    is_open: bool,
}

/// What the crowd does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Notices come, and nothing else.
    Joining,
    /// Everybody speaks a pause after the last answer.
    Talking,
    /// Nobody asks any more.
    Over,
}

/// All peers.
pub struct Crowd {
    peers: Vec<Peer>,
    phase: Phase,
    echoes: Pace,
    words: Pace,
    history: History,
    /// The longest times to an answer.
    pub silence: Silence,
    /// Answers and words that came.
    pub messages: u64,
}

/// The bits of a peer's own number in an id.
const ID: u64 = u32::MAX as u64;

/// An id as it is sent: it names its peer, so that an answer which another one gets is seen.
fn written(at: usize, id: u64) -> u64 {
    (at as u64) << 32 | id
}

impl Crowd {
    /// Nobody is there yet.
    pub fn new(plan: &Plan) -> Self {
        let nobody = |pause| Pace::begin(pause, 0..0, Instant::now());
        Self {
            peers: Vec::with_capacity(plan.peers),
            phase: Phase::Joining,
            echoes: nobody(plan.request_pause),
            words: nobody(plan.word_pause),
            history: History::new(plan.peers, MEMBERS),
            silence: Silence::new(plan.peers),
            messages: 0,
        }
    }

    /// The next peer comes, on a socket from which this was read already, and says hello.
    pub fn add(&mut self, socket: std::net::TcpStream, read: &[u8], registry: &Registry) -> Result<()> {
        socket.set_nonblocking(true)?;
        let at = self.peers.len();
        let mut pipe = Pipe::new(TcpStream::from_std(socket));
        pipe.register(registry, at)?;
        let (reader, asked) = (Reader::default(), VecDeque::with_capacity(2));
        self.peers.push(Peer { pipe, reader, asked, talked: None, has_joined: false, is_open: true });
        self.take(at, read, Instant::now());
        self.send(at, &frames::client(speech::hello(self.history.room(at)).as_bytes()));
        Ok(())
    }

    /// The first peer from this one on that is in no room yet.
    pub fn outside(&self, from: usize) -> Option<usize> {
        self.peers.iter().skip(from).position(|peer| peer.is_open && !peer.has_joined).map(|at| from + at)
    }

    /// Everybody begins to talk.
    pub fn begin(&mut self, plan: &Plan, now: Instant) {
        self.phase = Phase::Talking;
        self.echoes = Pace::begin(plan.request_pause, 0..plan.peers, now);
        self.words = Pace::begin(plan.word_pause, (0..plan.peers).step_by(MEMBERS), now);
    }

    /// Nobody begins anything any more.
    pub fn finish(&mut self) {
        self.phase = Phase::Over;
    }

    /// When somebody is due to speak.
    pub fn next_due(&self) -> Option<Instant> {
        let first = [self.echoes.soonest(), self.words.soonest()].into_iter().flatten().min();
        first.filter(|_| self.phase == Phase::Talking)
    }

    /// Whoever is due speaks.
    pub fn speak(&mut self, now: Instant) {
        if self.phase != Phase::Talking {
            return;
        }
        while let Some(at) = self.echoes.due(now) {
            self.ask(at, Kind::Echo);
        }
        while let Some(at) = self.words.due(now) {
            self.ask(at, Kind::Word);
        }
    }

    fn ask(&mut self, at: usize, kind: Kind) {
        if !self.peers[at].is_open {
            return;
        }
        let id = self.history.ask(at);
        let written = written(at, id);
        let text = match kind {
            Kind::Echo => speech::echo(written),
            Kind::Word => {
                let room = self.history.room(at);
                speech::say(room, self.history.say(room), written)
            }
        };
        let frame = frames::client(text.as_bytes());
        // Also where the socket does not take it at once.
        let sent = Instant::now();
        self.peers[at].asked.push_back(Request { id, kind, sent });
        self.send(at, &frame);
    }

    fn send(&mut self, at: usize, frame: &[u8]) {
        if let Err(error) = self.peers[at].pipe.send(frame) {
            self.drop_peer(at, &error.to_string());
        }
    }

    /// Sends what a socket did not take before.
    pub fn flush(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        if peer.is_open
            && let Err(error) = peer.pipe.flush()
        {
            self.drop_peer(at, &error.to_string());
        }
    }

    /// Reads until the socket is empty; until the other side's end where `is_closed`.
    pub fn read(&mut self, at: usize, buffer: &mut [u8], is_closed: bool) {
        while self.peers[at].is_open {
            match self.peers[at].pipe.read(buffer) {
                Ok(None) => return,
                Ok(Some(0)) => self.drop_peer(at, "it was closed without a close frame"),
                Err(error) => self.drop_peer(at, &error.to_string()),
                Ok(Some(count)) => {
                    self.take(at, &buffer[..count], Instant::now());
                    // It has emptied the socket; the next byte is another event.
                    if count < buffer.len() && !is_closed {
                        return;
                    }
                }
            }
        }
    }

    fn take(&mut self, at: usize, bytes: &[u8], now: Instant) {
        // Taken out for as long as the crowd looks at its frames.
        let mut reader = std::mem::take(&mut self.peers[at].reader);
        let fed = reader.feed(bytes, |frame| self.frame(at, frame, now));
        self.peers[at].reader = reader;
        if let Err(error) = fed {
            self.drop_peer(at, &error);
        }
    }

    fn frame(&mut self, at: usize, frame: Frame<'_>, now: Instant) {
        match frame {
            Frame::Text(text) => self.hear(at, text, now),
            Frame::Ping(payload) => self.send(at, &frames::pong(payload)),
            Frame::Close(payload) => {
                let (code, reason) = payload.split_at(payload.len().min(2));
                let code = code.iter().fold(0, |code, byte| (code << 8) | u32::from(*byte));
                self.drop_peer(at, &format!("close code {code} {}", String::from_utf8_lossy(reason)));
            }
            Frame::Other(first) => self.history.strange(at, &format!("a frame that begins with {first:#x}")),
        }
    }

    fn hear(&mut self, at: usize, text: &[u8], now: Instant) {
        let heard = Heard::read(text);
        if self.phase == Phase::Joining && heard == Heard::Notice {
            self.peers[at].has_joined = true;
            return;
        }
        self.messages += 1;
        match heard {
            Heard::Echo(id) => self.answered(at, id, Some(Kind::Echo), now),
            Heard::Said(id) => self.answered(at, id, Some(Kind::Word), now),
            Heard::Word { room, number } => self.history.heard(at, room, number),
            Heard::Failed(id) => {
                self.strange(at, text);
                self.answered(at, id, None, now);
            }
            Heard::Notice | Heard::Other => self.strange(at, text),
        }
    }

    fn strange(&mut self, at: usize, text: &[u8]) {
        let text = &text[..text.len().min(TOLD)];
        self.history.strange(at, &String::from_utf8_lossy(text));
    }

    /// A request was answered; None: by an error, which may come for either kind.
    fn answered(&mut self, at: usize, written: u64, kind: Option<Kind>, now: Instant) {
        let id = written & ID;
        if written != self::written(at, id) {
            return self.history.strange(at, &format!("the answer to {written}, which another peer asked"));
        }
        self.history.answered(at, id);
        let peer = &mut self.peers[at];
        // Where it is not there it was answered before, or never asked: the history has counted it.
        let Some(place) = peer.asked.iter().position(|request| request.id == id) else { return };
        let Some(request) = peer.asked.remove(place) else { return };
        peer.talked = peer.talked.max(Some(request.sent));
        self.silence.answered(at, request.sent, now);
        if kind.is_some_and(|kind| kind != request.kind) {
            self.history.strange(at, &format!("the answer to another task for {id}"));
        }
        match request.kind {
            Kind::Echo => self.echoes.answered(at, now),
            Kind::Word => self.words.answered(at, now),
        }
    }

    fn drop_peer(&mut self, at: usize, why: &str) {
        self.peers[at].is_open = false;
        self.history.dropped(at, why);
    }

    /// The first peer from this one on that has got no answer to what it asked since.
    pub fn silent_since(&self, since: Instant, from: usize) -> Option<usize> {
        let is_silent = |peer: &Peer| peer.is_open && peer.talked.is_none_or(|talked| talked < since);
        self.peers.iter().skip(from).position(is_silent).map(|at| from + at)
    }

    /// What was said and heard.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The same at the end, with the number of messages.
    pub fn into_history(self) -> (History, u64) {
        (self.history, self.messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_peers_are_slower() {
        let pauses = |peers| {
            let Plan { request_pause, word_pause, .. } = Plan::talking(peers);
            (request_pause.as_millis(), word_pause.as_millis())
        };
        assert_eq!((pauses(100), pauses(1000), pauses(10_000)), ((75, 50), (75, 50), (750, 500)));
    }
}
