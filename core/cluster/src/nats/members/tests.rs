//! Who is told to be up and down, and what of them is handed on, without a broker.

use super::*;
use crate::nats::life::PATIENCE;
use crate::nats::wire::parts;

const SILENCE: Duration = Duration::from_secs(5);

/// Members as the node `me` in life 5 sees them, and what is told of them.
struct Told {
    members: Members,
    now: Instant,
    news: Vec<News>,
}

impl Told {
    fn new() -> Self {
        let now = Instant::now();
        Self { members: Members::new("me".into(), 5, SILENCE, now), now, news: Vec::new() }
    }

    fn beat(&mut self, node: &str, boot: u64) -> Whose {
        self.members.beat(self.now, &Beat { node, boot, stored: 0 }, &mut self.news)
    }

    fn piece(&mut self, node: &str, boot: u64, kind: Kind, seq: u64) {
        self.piece_to("", node, boot, kind, seq);
    }

    fn piece_to(&mut self, to: &str, node: &str, boot: u64, kind: Kind, seq: u64) {
        let body = parts(to, "e", seq.to_string().as_bytes()).remove(0).body;
        self.members.piece(self.now, Piece { kind, boot, seq, node, body }, &mut self.news);
    }

    fn event(&mut self, node: &str, boot: u64, seq: u64) {
        self.piece(node, boot, Kind::Event, seq);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.members.silence(self.now, &mut self.news);
        self.members.give_up(self.now, &mut self.news);
    }

    /// What was told since the last time; and what is counted is what is listed.
    fn told(&mut self) -> String {
        let listed = self.members.list(self.now);
        let up = listed.iter().filter(|member| member.state == MemberState::Up).count();
        assert_eq!(self.members.up(), up);
        let tell = |news: News| match news {
            News::Change(Change::Up(node)) => format!("+{node}"),
            News::Change(Change::Down(node)) => format!("-{node}"),
            News::Change(Change::Gap { node, from, to, .. }) => format!("{node}?{from}-{to}"),
            News::Said(said) => format!("{}:{}.{}", said.node, said.boot, said.seq),
            other => format!("{other:?}"),
        };
        self.news.drain(..).map(tell).collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn a_sign_of_life_or_an_event_is_up_and_silence_is_down() {
    let mut told = Told::new();
    assert_eq!((told.beat("a", 1), told.beat("me", 5)), (Whose::Others, Whose::Mine));
    told.event("b", 1, 7);
    assert_eq!(told.told(), "+a +b b:1.7");
    told.pass(SILENCE);
    told.beat("a", 1);
    told.pass(Duration::from_millis(1));
    assert_eq!(told.told(), "-b");
    assert!(told.members.is_up("a") && !told.members.is_up("b") && !told.members.is_up("me"));
    // It was away from the broker: it goes on where it was.
    told.beat("b", 1);
    told.event("b", 1, 7);
    told.event("b", 1, 8);
    assert_eq!(told.told(), "+b b:1.8");
    told.pass(SILENCE * 2);
    told.event("b", 1, 9);
    assert_eq!(told.told().split(' ').next_back(), Some("b:1.9"));
}

#[test]
fn a_farewell_is_down_at_once_and_for_good() {
    let mut told = Told::new();
    told.piece("a", 1, Kind::Hello, 0);
    told.event("a", 1, 1);
    told.piece("a", 1, Kind::Bye, 2);
    told.beat("a", 1);
    assert_eq!(told.told(), "+a a:1.1 -a");
    // A farewell of somebody unknown is none.
    told.piece("b", 1, Kind::Bye, 2);
    told.beat("b", 1);
    assert_eq!(told.told(), "");
    told.beat("a", 2);
    assert_eq!(told.told(), "+a");
}

#[test]
fn a_new_life_begins_in_line_with_the_old_one() {
    let mut told = Told::new();
    told.event("a", 1, 7);
    // Its signs of life are faster than what the old one said.
    told.beat("a", 2);
    told.event("a", 1, 8);
    told.piece("a", 2, Kind::Hello, 0);
    told.event("a", 2, 1);
    assert_eq!(told.told(), "+a a:1.7 a:1.8 -a +a a:2.1");
    // The old one has nothing more to say.
    told.event("a", 1, 9);
    assert_eq!((told.told().as_str(), told.members.refused()), ("", 1));
    // A clock that was set back: the hello counts.
    told.piece("a", 1, Kind::Hello, 0);
    told.event("a", 1, 1);
    assert_eq!(told.told(), "-a +a a:1.1");
}

#[test]
fn what_waits_goes_on_before_a_new_life() {
    let mut told = Told::new();
    told.event("a", 1, 1);
    told.event("a", 1, 3);
    told.piece("a", 2, Kind::Hello, 0);
    assert_eq!(told.told(), "+a a:1.1 a?2-2 a:1.3 -a +a");
    told.event("a", 2, 2);
    told.pass(PATIENCE);
    assert_eq!(told.told(), "-a +a a?1-1 a:2.2");
}

#[test]
fn what_waits_outlives_a_silence() {
    let mut told = Told::new();
    told.event("a", 1, 1);
    told.event("a", 1, 3);
    told.members.silence(told.now + SILENCE * 2, &mut told.news);
    assert_eq!(told.told(), "+a a:1.1 -a");
    told.now += SILENCE * 2;
    told.members.wait_anew(told.now);
    told.pass(PATIENCE / 2);
    told.event("a", 1, 2);
    assert_eq!(told.told(), "+a a:1.2 a:1.3");
}

#[test]
fn a_hole_is_told_of_all_that_miss_something() {
    let mut told = Told::new();
    told.event("a", 1, 1);
    told.event("b", 1, 1);
    told.members.tear();
    told.event("a", 1, 4);
    told.event("b", 1, 2);
    assert_eq!(told.told(), "+a a:1.1 +b b:1.1 a?2-3 a:1.4 b:1.2");
}

#[test]
fn what_is_for_others_counts_and_is_not_handed_on() {
    let mut told = Told::new();
    told.piece_to("me", "a", 1, Kind::Event, 1);
    told.piece_to("b", "a", 1, Kind::Event, 2);
    told.piece_to("", "a", 1, Kind::Event, 3);
    assert_eq!(told.told(), "+a a:1.1 a:1.3");
    let incoming = told.members.list(told.now)[0].incoming;
    assert_eq!((incoming.last, incoming.events, incoming.gaps), (3, 2, 0));
}

#[test]
fn ones_own_events_are_nobodys_and_a_twins_are_refused() {
    let mut told = Told::new();
    told.event("me", 5, 1);
    assert_eq!((told.told().as_str(), told.members.refused()), ("", 0));
    told.event("me", 6, 1);
    assert_eq!((told.told().as_str(), told.members.refused()), ("", 1));
    assert_eq!(told.members.list(told.now), []);
}

#[test]
fn nonsense_in_an_event_is_refused() {
    let mut told = Told::new();
    let piece = Piece { kind: Kind::Event, boot: 1, seq: 1, node: "a", body: b"\xff".as_slice().into() };
    told.members.piece(told.now, piece, &mut told.news);
    assert_eq!((told.told().as_str(), told.members.refused()), ("+a", 1));
}

#[test]
fn no_more_nodes_are_known_than_there_is_room_for_and_the_gone_are_forgotten() {
    let mut told = Told::new();
    for number in 0..NODES + 3 {
        told.beat(&number.to_string(), 1);
    }
    assert_eq!((told.members.list(told.now).len(), told.members.refused()), (NODES, 3));
    told.pass(FORGOTTEN - SILENCE);
    // While the broker was away nobody could be heard, and nobody is forgotten.
    told.members.wait_anew(told.now);
    told.pass(FORGOTTEN - SILENCE);
    assert_eq!((told.members.list(told.now).len(), told.members.up()), (NODES, 0));
    told.pass(SILENCE);
    assert_eq!(told.members.list(told.now).len(), 0);
    told.beat("new", 1);
    assert!(told.members.is_up("new"));
}
