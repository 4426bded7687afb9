//! What every peer is to get and what it got: each answer and each word of its room, once and in order.
//! Nothing here knows a socket or a clock.

use std::collections::BTreeSet;

/// What went wrong. All of it is to be zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Connections that did not stay open.
    pub dropped: u64,
    /// Answers and words that did not come.
    pub lost: u64,
    /// Those that came again.
    pub doubled: u64,
    /// Those that came after a later one.
    pub reordered: u64,
    /// What was not to come at all: errors, notices, words of other rooms, answers to nothing.
    pub strange: u64,
}

impl Faults {
    /// Each of them by its name.
    pub fn each(&self) -> [(&'static str, u64); 5] {
        let Self { dropped, lost, doubled, reordered, strange } = *self;
        [
            ("dropped", dropped),
            ("lost", lost),
            ("doubled", doubled),
            ("reordered", reordered),
            ("strange", strange),
        ]
    }

    /// Adds those of others.
    pub fn add(&mut self, other: Self) {
        self.dropped += other.dropped;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.reordered += other.reordered;
        self.strange += other.strange;
    }
}

/// Everything that is numbered from 1 on and goes to one peer.
#[derive(Clone, Debug, Default)]
struct Stream {
    highest: u64,
    /// Lower numbers that have not come.
    missing: BTreeSet<u64>,
}

/// How a number came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    First,
    /// After a higher one.
    Late,
    Again,
}

impl Stream {
    fn take(&mut self, number: u64) -> Came {
        if number > self.highest {
            self.missing.extend(self.highest + 1..number);
            self.highest = number;
            Came::First
        } else if self.missing.remove(&number) {
            Came::Late
        } else {
            Came::Again
        }
    }

    /// How many of so many have not come.
    fn lost(&self, sent: u64) -> u64 {
        self.missing.len() as u64 + (sent - self.highest)
    }

    fn first_lost(&self, sent: u64) -> Option<u64> {
        let next = (self.highest < sent).then_some(self.highest + 1);
        self.missing.first().copied().or(next)
    }
}

/// One peer.
#[derive(Clone, Default)]
struct Record {
    asked: u64,
    answers: Stream,
    words: Stream,
    is_gone: bool,
}

/// Who asked and said what, and what came of it.
pub struct History {
    members: usize,
    records: Vec<Record>,
    /// Words that were said in each room.
    said: Vec<u64>,
    faults: Faults,
    first: Option<String>,
}

impl History {
    /// Nobody has said anything. Each room has so many members; peers go to them in their order.
    pub fn new(peers: usize, members: usize) -> Self {
        let rooms = peers.div_ceil(members);
        let records = vec![Record::default(); peers];
        Self { members, records, said: vec![0; rooms], faults: Faults::default(), first: None }
    }

    /// The room that a peer is in.
    pub fn room(&self, peer: usize) -> usize {
        peer / self.members
    }

    /// A peer asks: the id of its request.
    pub fn ask(&mut self, peer: usize) -> u64 {
        let asked = &mut self.records[peer].asked;
        *asked += 1;
        *asked
    }

    /// The next word is said in a room: its number.
    pub fn say(&mut self, room: usize) -> u64 {
        self.said[room] += 1;
        self.said[room]
    }

    /// A request was answered.
    pub fn answered(&mut self, peer: usize, id: u64) {
        let record = &mut self.records[peer];
        if !(1..=record.asked).contains(&id) {
            return self.strange(peer, &format!("an answer to {id}, which it never asked"));
        }
        let came = record.answers.take(id);
        self.count(peer, came, "answer", id);
    }

    /// A word of a room reached a peer.
    pub fn heard(&mut self, peer: usize, room: usize, number: u64) {
        let own = self.room(peer);
        if room != own || !(1..=self.said[own]).contains(&number) {
            return self.strange(peer, &format!("word {number} of room {room}; its own is {own}"));
        }
        let came = self.records[peer].words.take(number);
        self.count(peer, came, "word", number);
    }

    /// Something came that was not to come.
    pub fn strange(&mut self, peer: usize, what: &str) {
        self.faults.strange += 1;
        self.note(|| format!("peer {peer} got {what}"));
    }

    /// A connection has ended.
    pub fn dropped(&mut self, peer: usize, why: &str) {
        if !std::mem::replace(&mut self.records[peer].is_gone, true) {
            self.faults.dropped += 1;
            self.note(|| format!("the connection of peer {peer} has ended: {why}"));
        }
    }

    fn count(&mut self, peer: usize, came: Came, what: &str, number: u64) {
        let how = match came {
            Came::First => return,
            Came::Late => {
                self.faults.reordered += 1;
                "after a later one"
            }
            Came::Again => {
                self.faults.doubled += 1;
                "twice"
            }
        };
        self.note(|| format!("peer {peer} got {what} {number} {how}"));
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        self.first.get_or_insert_with(what);
    }

    /// True when nothing is missing.
    pub fn is_complete(&self) -> bool {
        (0..self.records.len()).all(|peer| self.lost(peer) == 0)
    }

    /// Whoever is gone hears no words, but was owed its answers.
    fn lost(&self, peer: usize) -> u64 {
        let record = &self.records[peer];
        let words = if record.is_gone { 0 } else { record.words.lost(self.said[self.room(peer)]) };
        record.answers.lost(record.asked) + words
    }

    /// What has gone wrong so far. Lost is what was overtaken and has not come since; the rest may be under
    /// way.
    pub fn so_far(&self) -> Faults {
        let overtaken = |record: &Record| record.answers.missing.len() + record.words.missing.len();
        let lost = self.records.iter().map(overtaken).sum::<usize>() as u64;
        Faults { lost, ..self.faults }
    }

    /// The first fault so far, in words.
    pub fn first(&self) -> Option<&str> {
        self.first.as_deref()
    }

    /// What has gone wrong when nothing more will come, and the first of it in words.
    pub fn at_the_end(mut self) -> (Faults, Option<String>) {
        for peer in 0..self.records.len() {
            self.faults.lost += self.lost(peer);
        }
        let lost = self.records.iter().enumerate().find_map(|(peer, record)| {
            let answer = record.answers.first_lost(record.asked).map(|id| format!("answer {id}"));
            let said = if record.is_gone { record.words.highest } else { self.said[self.room(peer)] };
            let word = || record.words.first_lost(said).map(|number| format!("word {number}"));
            Some(format!("peer {peer} never got {}", answer.or_else(word)?))
        });
        (self.faults, self.first.or(lost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rooms of two; everybody has asked three times, and three words were said in each room.
    fn talk() -> History {
        let mut history = History::new(4, 2);
        for peer in 0..4 {
            assert_eq!([0; 3].map(|_| history.ask(peer)), [1, 2, 3]);
        }
        for room in 0..2 {
            assert_eq!([0; 3].map(|_| history.say(room)), [1, 2, 3]);
        }
        history
    }

    /// Everything as it is to be, but for what one peer gets.
    fn with(peer: usize, answers: &[u64], words: &[u64]) -> History {
        let mut history = talk();
        for other in 0..4 {
            let (answers, words) =
                if other == peer { (answers, words) } else { (&[1, 2, 3][..], &[1, 2, 3][..]) };
            answers.iter().for_each(|id| history.answered(other, *id));
            let room = history.room(other);
            words.iter().for_each(|number| history.heard(other, room, *number));
        }
        history
    }

    fn ended(history: History) -> ([u64; 5], String) {
        let complete = history.is_complete();
        let (faults, first) = history.at_the_end();
        assert_eq!(complete, faults.lost == 0);
        (faults.each().map(|(_, count)| count), first.unwrap_or_default())
    }

    #[test]
    fn once_and_in_order_is_no_fault() {
        assert_eq!(ended(with(0, &[1, 2, 3], &[1, 2, 3])), ([0; 5], String::new()));
        assert_eq!(ended(History::new(15, 10)), ([0; 5], String::new()));
    }

    #[test]
    fn what_does_not_come_is_lost() {
        let words = [1, 2, 3];
        assert_eq!(ended(with(1, &[1, 2], &words)), ([0, 1, 0, 0, 0], "peer 1 never got answer 3".into()));
        assert_eq!(ended(with(1, &[1, 3], &words)), ([0, 1, 0, 0, 0], "peer 1 never got answer 2".into()));
        assert_eq!(ended(with(1, &words, &[])), ([0, 3, 0, 0, 0], "peer 1 never got word 1".into()));
        assert_eq!(ended(with(3, &[3], &[2])).0, [0, 4, 0, 0, 0]);
        assert_eq!(ended(talk()).0, [0, 24, 0, 0, 0]);
    }

    #[test]
    fn what_comes_again_is_doubled() {
        let words = [1, 2, 3];
        let twice = "peer 2 got answer 2 twice".to_string();
        assert_eq!(ended(with(2, &[1, 2, 2, 3], &words)), ([0, 0, 1, 0, 0], twice.clone()));
        assert_eq!(ended(with(2, &[1, 2, 3, 2], &words)), ([0, 0, 1, 0, 0], twice));
        assert_eq!(ended(with(2, &words, &[1, 2, 3, 1, 2, 3])).0, [0, 0, 3, 0, 0]);
    }

    #[test]
    fn what_is_overtaken_is_reordered_and_not_lost() {
        let words = [1, 2, 3];
        let late = "peer 0 got word 2 after a later one".to_string();
        assert_eq!(ended(with(0, &words, &[1, 3, 2])), ([0, 0, 0, 1, 0], late));
        assert_eq!(ended(with(0, &[3, 1, 2], &words)).0, [0, 0, 0, 2, 0]);
        // Late, and once more.
        assert_eq!(ended(with(0, &[2, 1, 1, 3], &words)).0, [0, 0, 1, 1, 0]);
    }

    #[test]
    fn what_nobody_waits_for_is_strange() {
        let whole = || with(0, &[1, 2, 3], &[1, 2, 3]);
        let mut history = whole();
        history.heard(0, 1, 2);
        assert_eq!(ended(history), ([0, 0, 0, 0, 1], "peer 0 got word 2 of room 1; its own is 0".into()));
        let mut history = whole();
        history.heard(3, 1, 4);
        history.heard(3, 1, 0);
        history.heard(3, 9, 1);
        history.answered(3, 4);
        history.answered(3, 0);
        history.strange(3, "a notice");
        assert_eq!(ended(history).0, [0, 0, 0, 0, 6]);
    }

    #[test]
    fn who_is_gone_was_owed_its_answers_only() {
        let mut history = with(1, &[1, 2], &[1]);
        history.dropped(1, "1012");
        history.dropped(1, "once more");
        let told = "the connection of peer 1 has ended: 1012".to_string();
        assert_eq!(ended(history), ([1, 1, 0, 0, 0], told));
    }

    #[test]
    fn what_is_under_way_is_not_lost_yet() {
        let mut history = talk();
        history.answered(0, 2);
        history.heard(3, 1, 3);
        assert_eq!(history.so_far(), Faults { lost: 3, ..Faults::default() });
        let mut sum = Faults { dropped: 1, ..Faults::default() };
        sum.add(history.so_far());
        assert_eq!((sum.dropped, sum.lost), (1, 3));
    }
}
