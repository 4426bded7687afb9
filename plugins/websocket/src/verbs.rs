//! What operators want of the edge: who is here, and to be rid of somebody. The loops have the peers: each is
//! sent an errand, and says what it has found.

use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use serde::Serialize;
use zeph_edge::Link;
use zephserver_plugin::contract::page::{Page, Shown, Words};
use zephserver_plugin::contract::peer::{Cid, Digits, Kicked};
use zephserver_plugin::contract::session::User;
use zephserver_plugin::{Error, Result};

use crate::kicks::{Closings, LONGEST_ID};
use crate::peer::{Open, Peer, close};

/// How long the loops may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// What loops have found, and nobody has collected yet.
const FOUND: usize = 1024;
/// The close code of who is shown the door.
const KICKED: u16 = 4403;

/// What a loop is to do with each of its peers.
#[derive(Clone)]
pub struct Errand {
    who: Who,
    deed: Deed,
    found: SyncSender<Found>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Deed {
    Look,
    Close,
}

/// Whom it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    All,
    Some(Kicked),
}

/// A peer that an errand is about.
pub struct Found {
    cid: Cid,
    address: String,
    /// Seconds that it is here.
    seconds: u64,
    room: Option<String>,
    user: Option<User>,
}

impl Who {
    fn of(user: Option<String>) -> Self {
        user.map_or(Self::All, |id| Self::Some(Kicked::User(id)))
    }
}

fn is(who: &Kicked, cid: Cid, open: &Open) -> bool {
    match who {
        Kicked::Cid(known) => *known == cid,
        Kicked::User(id) => open.user().is_some_and(|user| user.id == *id),
    }
}

impl Errand {
    /// Does it with one peer.
    pub fn run(&self, link: &mut Link<'_, Peer>) {
        let address = link.address().map_or_else(|_| "-".into(), |address| address.to_string());
        let Peer::Open(open) = &*link.peer else { return };
        if matches!(&self.who, Who::Some(who) if !is(who, link.cid, open)) {
            return;
        }
        let room = open.joined.as_ref().map(|joined| joined.room.to_string());
        let (cid, seconds, user) = (link.cid, open.seconds(), open.user().cloned());
        // Whoever asked may not wait any more: then the rest is done all the same.
        let _ = self.found.send(Found { cid, address, seconds, room, user });
        if self.deed == Deed::Close {
            kick(link);
        }
    }
}

fn kick(link: &mut Link<'_, Peer>) {
    close(link, KICKED, "closed by the operator");
}

/// The operators of other nodes want peers closed: perhaps this one.
pub fn kicked(link: &mut Link<'_, Peer>, closings: &Closings) {
    let Peer::Open(open) = &*link.peer else { return };
    if closings.mean(link.cid, open.user().map(|user| &*user.id), open.since) {
        kick(link);
    }
}

/// Has `send` give every loop an errand, and collects what they find.
fn collect(who: Who, deed: Deed, send: impl FnOnce(Errand)) -> Result<Vec<Found>> {
    let (found, collected) = sync_channel(FOUND);
    send(Errand { who, deed, found });
    let deadline = Instant::now() + PATIENCE;
    let mut all = Vec::new();
    loop {
        match collected.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(one) => all.push(one),
            // Every loop is done with it.
            Err(RecvTimeoutError::Disconnected) => return Ok(all),
            Err(RecvTimeoutError::Timeout) => {
                let text = format!("a loop did not look through its peers in {} s", PATIENCE.as_secs());
                return Err(Error::timeout(text));
            }
        }
    }
}

/// Some of the peers, in the order of their cids: those that came first are first.
#[derive(Serialize)]
pub struct Peers {
    peers: Vec<PeerRow>,
    #[serde(flatten)]
    shown: Shown,
}

#[derive(Serialize)]
struct PeerRow {
    cid: Digits,
    address: String,
    seconds: u64,
    room: Option<String>,
    user: Option<String>,
    username: Option<String>,
}

/// Some of the users who are here, by id.
#[derive(Serialize)]
pub struct Sessions {
    sessions: Vec<SessionRow>,
    /// Peers without a user.
    anonymous: usize,
    #[serde(flatten)]
    shown: Shown,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct SessionRow {
    user: String,
    username: String,
    peers: usize,
    /// Seconds that the first of them is here.
    seconds: u64,
}

/// `peers [USER]`
pub fn peers(words: Words, send: impl FnOnce(Errand)) -> Result<Peers> {
    let mut found = collect(Who::of(words.name), Deed::Look, send)?;
    found.sort_unstable_by_key(|one| one.cid);
    let total = found.len();
    let row = |one: Found| {
        let (user, username) = one.user.map(|user| (user.id, user.username)).unzip();
        let Found { cid, address, seconds, room, .. } = one;
        PeerRow { cid: Digits(cid), address, seconds, room, user, username }
    };
    Ok(Peers { peers: words.page.of(found).map(row).collect(), shown: words.page.shown(total) })
}

/// `sessions [USER]`
pub fn sessions(words: Words, send: impl FnOnce(Errand)) -> Result<Sessions> {
    let found = collect(Who::of(words.name), Deed::Look, send)?;
    Ok(by_user(found, words.page))
}

fn by_user(found: Vec<Found>, page: Page) -> Sessions {
    let mut users: BTreeMap<String, SessionRow> = BTreeMap::new();
    let mut anonymous = 0;
    for Found { user, seconds, .. } in found {
        let Some(User { id, username }) = user else {
            anonymous += 1;
            continue;
        };
        let new = || SessionRow { user: id.clone(), username, peers: 0, seconds: 0 };
        let row = users.entry(id.clone()).or_insert_with(new);
        row.peers += 1;
        row.seconds = row.seconds.max(seconds);
    }
    let total = users.len();
    Sessions { sessions: page.of(users.into_values()).collect(), anonymous, shown: page.shown(total) }
}

/// Whom `kick CID` and `kick --user ID` are about.
pub fn whom(words: &[String]) -> Result<Kicked> {
    match words {
        [option, id] if option == "--user" && id.len() > LONGEST_ID => {
            Err(Error::invalid(format!("the id of a user to be kicked has at most {LONGEST_ID} bytes")))
        }
        [option, id] if option == "--user" => Ok(Kicked::User(id.clone())),
        [cid] if !cid.starts_with("--") => Ok(Kicked::Cid(cid.parse::<Digits>()?.0)),
        _ => Err(Error::invalid("usage: kick CID, or kick --user ID; `peers` lists both")),
    }
}

/// Closes peers of this node: how many.
pub fn close_all(who: &Kicked, send: impl FnOnce(Errand)) -> Result<usize> {
    Ok(collect(Who::Some(who.clone()), Deed::Close, send)?.len())
}

/// Has `say` tell the other nodes of a kick, whatever became of it here, unless it was one peer and is found. It is
/// given whether this node has done something, and answers how many were told; None: nothing is said, and nobody is
/// closed anywhere. Answers how many were closed here, and how many nodes were told.
pub fn tell_others(
    who: &Kicked,
    closed: Result<usize>,
    say: impl FnOnce(bool) -> Result<Option<u64>>,
) -> Result<(usize, u64)> {
    if let (Ok(closed @ 1..), Kicked::Cid(_)) = (&closed, who) {
        return Ok((*closed, 0));
    }
    let said = say(closed != Ok(0));
    match (closed, said) {
        (Ok(0), Ok(None)) => Err(Error::not_found("no such peer is here; `peers` lists who is")),
        (Ok(closed), Ok(told)) => Ok((closed, told.unwrap_or(0))),
        (Ok(closed), Err(error)) => {
            let text =
                format!("{closed} closed here, but the other nodes were not told: {error}; kick again");
            Err(Error::new(error.code, text))
        }
        (Err(late), Ok(told)) => {
            let told = told.unwrap_or(0);
            Err(Error::new(
                late.code,
                format!("{late}; it closes them later, and {told} other nodes were told"),
            ))
        }
        (Err(late), Err(error)) => {
            let text = format!("{late}; and the other nodes were not told: {error}; kick again");
            Err(Error::new(late.code, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(cid: Cid, user: Option<&str>) -> Found {
        let user = user.map(|id| User { id: id.into(), username: format!("name of {id}") });
        Found { cid, address: "127.0.0.1:1".into(), seconds: cid, room: None, user }
    }

    fn words(name: Option<&str>, page: Page) -> Words {
        Words { name: name.map(Into::into), page }
    }

    const ALL: Page = Page { offset: 0, limit: 100 };

    #[test]
    fn peers_come_in_pages_in_the_order_they_came() {
        let send = |errand: Errand| {
            for cid in [3, 1, 2] {
                errand.found.send(found(cid, Some("a"))).unwrap();
            }
        };
        let page = Page { offset: 1, limit: 1 };
        let listed = serde_json::to_value(peers(words(None, page), send).unwrap()).unwrap();
        assert_eq!((&listed["peers"][0]["cid"], &listed["total"]), (&"2".into(), &3.into()));
        assert_eq!(listed["next_offset"], 2);
    }

    #[test]
    fn users_are_counted_with_their_peers() {
        let all = vec![found(5, Some("b")), found(7, None), found(9, Some("b")), found(1, Some("a"))];
        let Sessions { sessions, anonymous, shown } = by_user(all, ALL);
        assert_eq!((anonymous, shown.total), (1, 2));
        let shown: Vec<_> = sessions.iter().map(|row| (row.user.as_str(), row.peers, row.seconds)).collect();
        assert_eq!(shown, [("a", 1, 1), ("b", 2, 9)]);
    }

    #[test]
    fn a_kick_names_one_peer_or_one_user() {
        let whom = |words: &[&str]| whom(&words.iter().map(|word| word.to_string()).collect::<Vec<_>>());
        assert_eq!(whom(&["17"]), Ok(Kicked::Cid(17)));
        assert_eq!(whom(&["--user", "7"]), Ok(Kicked::User("7".into())));
        for wrong in [&[][..], &["--user"], &["a", "b"], &["Ann"], &["--user", &"x".repeat(LONGEST_ID + 1)]] {
            assert_eq!(whom(wrong).unwrap_err().code.name(), "invalid");
        }
    }

    #[test]
    fn whom_a_kick_is_about_is_closed() {
        let send = |errand: Errand| {
            assert!(errand.deed == Deed::Close && errand.who == Who::Some(Kicked::Cid(17)));
            (0..2).for_each(|_| errand.found.send(found(17, None)).unwrap());
        };
        assert_eq!(close_all(&Kicked::Cid(17), send), Ok(2));
    }

    #[test]
    fn a_kick_is_said_to_others_unless_the_peer_is_found() {
        let kick = |who: &Kicked, closed: Result<usize>, told: Result<Option<u64>>| {
            let is_done = closed != Ok(0);
            tell_others(who, closed, |done| {
                assert_eq!(done, is_done);
                told
            })
        };
        let (cid, user) = (Kicked::Cid(17), Kicked::User("7".into()));
        assert_eq!(kick(&cid, Ok(1), Err(Error::internal("nobody is to be told"))), Ok((1, 0)));
        assert_eq!(kick(&cid, Ok(0), Ok(Some(2))), Ok((0, 2)));
        assert_eq!(kick(&user, Ok(3), Ok(Some(2))), Ok((3, 2)));
        assert_eq!(kick(&user, Ok(3), Ok(Some(0))), Ok((3, 0)));
        assert_eq!(kick(&cid, Ok(0), Ok(None)).unwrap_err().code.name(), "not_found");
        // It was said, though the last other node went at that moment: it may come back, and close somebody.
        assert_eq!(kick(&user, Ok(0), Ok(Some(0))), Ok((0, 0)));
        let error = kick(&user, Ok(3), Err(Error::busy("full"))).unwrap_err();
        assert!(error.code.name() == "busy" && error.text.starts_with("3 closed here, but"), "{error}");
    }

    #[test]
    fn a_kick_is_said_to_others_though_this_node_is_late() {
        let late = || Err(Error::timeout("a loop is late"));
        for who in [Kicked::Cid(17), Kicked::User("7".into())] {
            let error = tell_others(&who, late(), |is_done| Ok(is_done.then_some(2))).unwrap_err();
            assert_eq!(error.code.name(), "timeout");
            assert!(error.text.ends_with("2 other nodes were told"), "{error}");
        }
        let error = tell_others(&Kicked::User("7".into()), late(), |_| Err(Error::busy("full"))).unwrap_err();
        assert!(error.text.contains("a loop is late; and the other nodes were not told: "), "{error}");
    }
}
