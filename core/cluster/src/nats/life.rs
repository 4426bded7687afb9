//! What one life of another node said, put in order. Pure: time comes from the caller.
//!
//! The stream of the broker keeps what it stores in order, and a sender begins again at the first piece that was
//! not confirmed, so pieces come twice now and then: they are dropped and counted. Pieces can also come out of
//! order: a broker that refuses one (a full disk, a change of the leader) may have stored what was sent behind
//! it. So a piece that is too early is held until the missing ones come, which the sender is about to send again.
//! They are given up for lost after [`PATIENCE`], or where more is held than a sender can have under way; or at
//! once where the stream itself is known to have a hole.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::WINDOW;
use super::wire::{Kind, LONGEST_BODY};
use crate::Incoming;

/// How long missing pieces are waited for. Their sender notices within [`super::ACK_DEADLINE`] and sends them
/// again, and goes on trying: what does not come by then was in the log of one that has died.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What comes out, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Out {
    /// A whole event: its number and body.
    Event(u64, Bytes),
    /// These are lost.
    Gap(u64, u64),
    /// There is nothing more.
    Bye,
}

/// Whether a piece was seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Never,
    Before,
}

/// The event of which some pieces have come.
enum Assembly {
    Nothing,
    Some(BytesMut),
    /// Some of it was lost.
    Broken,
}

pub struct Life {
    pub boot: u64,
    pub incoming: Incoming,
    last: Option<u64>,
    /// What the broker had of this life when it was first heard of.
    stored: Option<u64>,
    /// The stream has a hole behind the last piece: whatever misses is lost.
    is_torn: bool,
    assembly: Assembly,
    held: BTreeMap<u64, (Kind, Bytes)>,
    held_since: Option<Instant>,
}

impl Life {
    pub fn new(boot: u64) -> Self {
        Self {
            boot,
            stored: None,
            incoming: Incoming::default(),
            last: None,
            is_torn: false,
            assembly: Assembly::Nothing,
            held: BTreeMap::new(),
            held_since: None,
        }
    }

    /// What the broker has of this life, as it says itself. Only the first word counts: what comes after it is
    /// what this node must get.
    pub fn was_stored(&mut self, stored: u64) {
        self.stored.get_or_insert(stored);
    }

    /// A piece of the stream.
    pub fn take(&mut self, now: Instant, kind: Kind, seq: u64, body: Bytes, out: &mut Vec<Out>) -> Seen {
        let next = self.next(seq);
        if seq < next || self.held.contains_key(&seq) {
            self.incoming.duplicates += 1;
            return Seen::Before;
        }
        if seq == next {
            self.accept(kind, seq, body, out);
            self.release(out);
            return Seen::Never;
        }
        self.held.insert(seq, (kind, body));
        self.held_since.get_or_insert(now);
        if self.is_torn || self.held.len() >= WINDOW {
            self.give_up(out);
        }
        Seen::Never
    }

    /// The stream has a hole: what misses now does not come any more.
    pub fn tear(&mut self) {
        self.is_torn = true;
    }

    /// Begins to wait anew for what misses: its sender could not send it until now.
    pub fn wait_anew(&mut self, now: Instant) {
        self.held_since = self.held_since.map(|_| now);
    }

    /// Gives up what was missing for too long.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Out>) {
        if self.held_since.is_some_and(|since| now.duration_since(since) >= PATIENCE) {
            self.give_up(out);
        }
    }

    /// Gives up what misses, and everything that waited for it goes on.
    pub fn give_up(&mut self, out: &mut Vec<Out>) {
        self.held_since = None;
        for (seq, (kind, body)) in std::mem::take(&mut self.held) {
            let next = self.next(seq);
            if next < seq {
                self.incoming.gaps += 1;
                self.assembly = Assembly::Broken;
                out.push(Out::Gap(next, seq - 1));
            }
            self.accept(kind, seq, body, out);
        }
    }

    /// The number that should come, where this one did. The first of all is right whatever it is (what was said
    /// before is history), but for a hole that came after the node was seen.
    fn next(&self, seq: u64) -> u64 {
        match (self.last, self.stored) {
            (Some(last), _) => last + 1,
            (None, Some(stored)) if self.is_torn => seq.min(stored + 1),
            (None, _) => seq,
        }
    }

    fn release(&mut self, out: &mut Vec<Out>) {
        while let Some(first) = self.held.first_entry() {
            if self.last.is_some_and(|last| *first.key() > last + 1) {
                return;
            }
            let (seq, (kind, body)) = first.remove_entry();
            self.accept(kind, seq, body, out);
        }
        self.held_since = None;
    }

    fn accept(&mut self, kind: Kind, seq: u64, body: Bytes, out: &mut Vec<Out>) {
        self.last = Some(seq);
        self.incoming.last = seq;
        self.is_torn = false;
        match (kind, std::mem::replace(&mut self.assembly, Assembly::Nothing)) {
            (Kind::Hello, _) => {}
            (Kind::Event, _) => out.push(Out::Event(seq, body)),
            (Kind::First, _) => self.assembly = Assembly::Some(BytesMut::from(&body[..])),
            (Kind::Middle | Kind::Last, Assembly::Some(parts)) => self.assemble(kind, seq, parts, &body, out),
            (Kind::Middle, assembly) => self.assembly = assembly,
            // The numbers of the lost pieces were reported, the event's own is this one.
            (Kind::Last, Assembly::Broken) => {
                self.incoming.gaps += 1;
                out.push(Out::Gap(seq, seq));
            }
            // It began before this node was here.
            (Kind::Last, Assembly::Nothing) => {}
            (Kind::Bye, _) => out.push(Out::Bye),
        }
    }

    fn assemble(&mut self, kind: Kind, seq: u64, mut parts: BytesMut, body: &[u8], out: &mut Vec<Out>) {
        if parts.len() + body.len() > LONGEST_BODY {
            // No sender of ours makes such an event; what it is is found out, and counted, by who reads the body.
            return out.push(Out::Event(seq, Bytes::new()));
        }
        parts.extend_from_slice(body);
        match kind {
            Kind::Last => out.push(Out::Event(seq, parts.freeze())),
            _ => self.assembly = Assembly::Some(parts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A life whose numbers are told as they come out.
    struct Told {
        life: Life,
        now: Instant,
        out: Vec<Out>,
    }

    impl Told {
        fn new(stored: Option<u64>) -> Self {
            let mut life = Life::new(1);
            stored.into_iter().for_each(|stored| life.was_stored(stored));
            Self { life, now: Instant::now(), out: Vec::new() }
        }

        fn piece(&mut self, kind: Kind, seq: u64) -> &mut Self {
            self.life.take(self.now, kind, seq, Bytes::from(seq.to_string()), &mut self.out);
            self
        }

        fn events(&mut self, numbers: impl IntoIterator<Item = u64>) -> &mut Self {
            numbers.into_iter().for_each(|seq| {
                self.piece(Kind::Event, seq);
            });
            self
        }

        fn out(&mut self) -> String {
            let tell = |out: Out| match out {
                Out::Event(seq, body) => format!("{seq}={}", String::from_utf8_lossy(&body)),
                Out::Gap(from, to) => format!("gap {from}-{to}"),
                Out::Bye => "bye".into(),
            };
            self.out.drain(..).map(tell).collect::<Vec<_>>().join(" ")
        }
    }

    #[test]
    fn what_comes_twice_goes_on_once() {
        let mut told = Told::new(None);
        assert_eq!(told.events([5, 6, 5, 6, 7, 4]).out(), "5=5 6=6 7=7");
        assert_eq!((told.life.incoming.duplicates, told.life.incoming.last), (3, 7));
    }

    #[test]
    fn what_comes_early_waits() {
        let mut told = Told::new(None);
        assert_eq!(told.events([0, 3, 4, 3, 1]).out(), "0=0 1=1");
        assert_eq!(told.events([2]).out(), "2=2 3=3 4=4");
        assert_eq!((told.life.incoming.duplicates, told.life.incoming.gaps), (1, 0));
        told.now += PATIENCE * 2;
        told.life.tick(told.now, &mut told.out);
        assert_eq!(told.out(), "");
    }

    #[test]
    fn what_never_comes_is_a_gap_in_the_end() {
        let mut told = Told::new(None);
        assert_eq!(told.events([0, 2, 5]).out(), "0=0");
        told.now += PATIENCE / 2;
        told.life.tick(told.now, &mut told.out);
        assert_eq!(told.out(), "");
        told.life.wait_anew(told.now);
        told.now += PATIENCE / 2;
        told.life.tick(told.now, &mut told.out);
        assert_eq!(told.out(), "");
        told.now += PATIENCE / 2;
        told.life.tick(told.now, &mut told.out);
        assert_eq!(told.out(), "gap 1-1 2=2 gap 3-4 5=5");
        assert_eq!(told.events([1, 6]).out(), "6=6");
        assert_eq!((told.life.incoming.duplicates, told.life.incoming.gaps), (1, 2));
    }

    #[test]
    fn no_more_is_held_than_can_be_under_way() {
        let mut told = Told::new(None);
        let last = WINDOW as u64 + 1;
        assert_eq!(told.events([0]).events(2..last).out(), "0=0");
        assert!(told.events([last]).out().starts_with("gap 1-1 2=2 3=3"));
    }

    #[test]
    fn a_hole_in_the_stream_is_a_gap_at_once() {
        let mut told = Told::new(None);
        told.events([1]).life.tear();
        assert_eq!(told.events([4]).out(), "1=1 gap 2-3 4=4");
        // And only one.
        assert_eq!(told.events([6, 5]).out(), "5=5 6=6");
        told.life.tear();
        assert_eq!(told.events([7]).out(), "7=7");
    }

    #[test]
    fn a_hole_before_the_first_event_is_a_gap_too() {
        let mut told = Told::new(Some(7));
        told.life.tear();
        assert_eq!(told.events([10]).out(), "gap 8-9 10=10");
        let mut told = Told::new(Some(7));
        assert_eq!(told.events([10]).out(), "10=10");
        let mut told = Told::new(Some(7));
        told.life.tear();
        assert_eq!(told.events([3]).out(), "3=3");
    }

    #[test]
    fn pieces_become_one_event() {
        let mut told = Told::new(None);
        told.piece(Kind::Hello, 0).piece(Kind::First, 1).piece(Kind::Middle, 2).piece(Kind::Last, 3);
        assert_eq!(told.piece(Kind::Bye, 4).out(), "3=123 bye");
    }

    #[test]
    fn an_event_that_began_before_is_history() {
        let mut told = Told::new(None);
        told.piece(Kind::Middle, 7).piece(Kind::Last, 8).events([9]);
        assert_eq!(told.out(), "9=9");
    }

    #[test]
    fn an_event_without_all_its_pieces_is_a_gap() {
        let mut told = Told::new(None);
        told.piece(Kind::First, 1).life.tear();
        assert_eq!(told.piece(Kind::Middle, 3).piece(Kind::Last, 4).events([5]).out(), "gap 2-2 gap 4-4 5=5");
        told.life.tear();
        assert_eq!(told.piece(Kind::Last, 8).events([9]).out(), "gap 6-7 gap 8-8 9=9");
        told.piece(Kind::First, 10).life.tear();
        assert_eq!(told.events([12]).out(), "gap 11-11 12=12");
    }
}
