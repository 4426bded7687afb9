//! Whose sessions were revoked, on the way to the peers, and which of them that closes.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use zeph_edge::Link;
use zephserver_plugin::contract::session::{Identity, Revoked, is_revoked};
use zephserver_plugin::{Error, Result};

use crate::peer::{Peer, SESSION_OVER, close, send_error};

/// Revocations that somebody is still to hear of: of each user the latest, so that however many come at once, one
/// look at each peer is enough.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Carried", into = "Carried")]
pub struct Revocations(HashMap<String, u64>);

/// As they are carried into the next generation. Builds before knew users alone, and close all peers of each.
#[derive(Serialize, Deserialize)]
struct Carried {
    revoked: Vec<String>,
    /// One for each, or none where such a build says it.
    #[serde(default)]
    revoked_before: Vec<u64>,
}

impl From<Carried> for Revocations {
    fn from(Carried { revoked, revoked_before }: Carried) -> Self {
        let before = revoked_before.into_iter().chain(std::iter::repeat(u64::MAX));
        revoked.into_iter().zip(before).map(|(user, before)| Revoked { user, before }).collect()
    }
}

impl From<Revocations> for Carried {
    fn from(Revocations(all): Revocations) -> Self {
        let (revoked, revoked_before) = all.into_iter().unzip();
        Self { revoked, revoked_before }
    }
}

impl FromIterator<Revoked> for Revocations {
    fn from_iter<I: IntoIterator<Item = Revoked>>(all: I) -> Self {
        let mut revocations = Self::default();
        all.into_iter().for_each(|one| revocations.add(one));
        revocations
    }
}

impl Revocations {
    pub fn add(&mut self, Revoked { user, before }: Revoked) {
        let known = self.0.entry(user).or_default();
        *known = before.max(*known);
    }

    pub fn extend(&mut self, others: Self) {
        others.0.into_iter().for_each(|(user, before)| self.add(Revoked { user, before }));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses who was revoked: the answer that says who it is may be older than that.
    pub fn check(&self, identity: Option<&Identity>) -> Result<()> {
        let is_meant = |one: &Identity| self.mean(&one.user.id, one.issued);
        if identity.is_some_and(is_meant) { Err(refusal()) } else { Ok(()) }
    }

    fn mean(&self, user: &str, issued: Option<u64>) -> bool {
        self.0.get(user).is_some_and(|before| is_revoked(issued, *before))
    }
}

/// What was revoked while questions of who somebody is are under way: kept once for all of them. Who asks notes
/// [`Lately::heard`], and its answer is checked against what came after that.
#[derive(Default)]
pub struct Lately {
    /// Of each user the latest, and with which batch the user came last.
    revoked: HashMap<String, (u64, u64)>,
    heard: u64,
}

impl Lately {
    /// How many batches have come.
    pub fn heard(&self) -> u64 {
        self.heard
    }

    /// One more batch. `oldest` is what the question has noted that is under way for longest; None: there is none.
    pub fn add(&mut self, batch: &Revocations, oldest: Option<u64>) {
        self.heard += 1;
        self.revoked.retain(|_, (_, heard)| oldest.is_some_and(|oldest| *heard > oldest));
        for (user, before) in batch.0.iter().filter(|_| oldest.is_some()) {
            let known = self.revoked.entry(user.clone()).or_default();
            *known = (known.0.max(*before), self.heard);
        }
    }

    /// Refuses who was revoked since the question noted that.
    pub fn check(&self, identity: Option<&Identity>, noted: u64) -> Result<()> {
        let is_meant = |one: &Identity| {
            let known = self.revoked.get(&one.user.id).filter(|(_, heard)| *heard > noted);
            known.is_some_and(|(before, _)| is_revoked(one.issued, *before))
        };
        if identity.is_some_and(is_meant) { Err(refusal()) } else { Ok(()) }
    }

    /// What came since the oldest question noted that.
    pub fn since(&self, oldest: Option<u64>) -> Revocations {
        let is_later = |heard: u64| oldest.is_some_and(|oldest| heard > oldest);
        let all = self.revoked.iter().filter(|(_, (_, heard))| is_later(*heard));
        all.map(|(user, (before, _))| Revoked { user: user.clone(), before: *before }).collect()
    }
}

fn refusal() -> Error {
    Error::refused("your session was revoked; log in again")
}

/// Closes a peer whose session is among these.
pub fn revoked(link: &mut Link<'_, Peer>, revoked: &Revocations) {
    let Peer::Open(open) = &*link.peer else { return };
    if open.user().is_some_and(|user| revoked.mean(&user.id, open.issued)) {
        send_error(link.outbox, &refusal(), None, None);
        close(link, SESSION_OVER, "the session was revoked");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use zephserver_plugin::contract::session::User;

    use super::*;
    use crate::asked::Asked;
    use crate::inbox::Letters;

    fn revocation(user: &str, before: u64) -> Revoked {
        Revoked { user: user.into(), before }
    }

    fn all(all: &[(&str, u64)]) -> Revocations {
        all.iter().map(|(user, before)| revocation(user, *before)).collect()
    }

    fn identity(user: &str, issued: Option<u64>) -> Identity {
        let user = User { id: user.into(), username: "Ann".into() };
        Identity { issued, ..user.into() }
    }

    fn encoded(value: &impl Serialize) -> Vec<u8> {
        rmp_serde::to_vec_named(value).unwrap()
    }

    #[test]
    fn they_mean_sessions_that_may_be_older() {
        let mut revocations = all(&[("7", 5), ("8", 9), ("8", 2)]);
        revocations.extend(all(&[("7", 1)]));
        assert_eq!(revocations, all(&[("7", 5), ("8", 9)]), "the latest of each");
        let is_refused = |user: &str, issued| revocations.check(Some(&identity(user, issued))).is_err();
        assert!(is_refused("7", None) && is_refused("7", Some(5)) && is_refused("8", Some(6)));
        assert!(!is_refused("7", Some(6)) && !is_refused("9", None));
        assert!(revocations.check(None).is_ok(), "somebody anonymous");
    }

    #[test]
    fn an_answer_is_checked_against_what_came_after_its_question() {
        let mut lately = Lately::default();
        lately.add(&all(&[("7", 5)]), None);
        assert_eq!(lately.since(Some(0)), Revocations::default(), "nobody had asked");
        let first = lately.heard();
        lately.add(&all(&[("7", 5), ("8", 9)]), Some(first));
        let second = lately.heard();
        lately.add(&all(&[("8", 3)]), Some(first));
        let is_refused = |lately: &Lately, user: &str, issued, noted| {
            lately.check(Some(&identity(user, Some(issued))), noted).is_err()
        };
        assert!(is_refused(&lately, "7", 5, first) && !is_refused(&lately, "7", 6, first));
        assert!(!is_refused(&lately, "7", 5, second), "who answered that knew it");
        assert!(is_refused(&lately, "8", 9, second), "the latest counts");
        assert!(lately.check(None, 0).is_ok(), "somebody anonymous");
        assert_eq!(lately.since(Some(first)), all(&[("7", 5), ("8", 9)]));
        assert_eq!((lately.since(Some(second)), lately.since(None)), (all(&[("8", 9)]), all(&[])));
        lately.add(&all(&[("9", 1)]), Some(second));
        assert_eq!(lately.revoked.len(), 2, "what every question under way knew is forgotten");
    }

    #[test]
    fn the_next_generation_knows_them_whole() {
        let revoked = all(&[("7", 5), ("8", 9)]);
        let asked = Asked::Again { cid: 1, text: "{}".into(), token: 2, noted: 0, revoked: revoked.clone() };
        let letters = Letters { revoked: revoked.clone(), announce: true, ..Letters::default() };
        let read: Asked = rmp_serde::from_slice(&encoded(&asked)).unwrap();
        assert!(matches!(read, Asked::Again { cid: 1, token: 2, revoked: read, .. } if read == revoked));
        let read: Letters = rmp_serde::from_slice(&encoded(&letters)).unwrap();
        assert!(read.announce && read.revoked == revoked);
    }

    /// Letters and a hello of builds that knew users alone.
    #[derive(Default, Serialize, Deserialize)]
    struct Before {
        answers: Vec<(u64, Result<Vec<u8>>)>,
        announce: bool,
        revoked: Vec<String>,
    }

    #[derive(Default, Serialize)]
    struct BeforeHello {
        cid: u64,
        room: String,
        id: Option<String>,
        token: u64,
        revoked: Vec<String>,
    }

    #[test]
    fn builds_before_read_the_users_and_theirs_mean_all_sessions() {
        let letters = Letters { revoked: all(&[("7", 5)]), ..Letters::default() };
        let before: Before = rmp_serde::from_slice(&encoded(&letters)).unwrap();
        assert_eq!(before.revoked, ["7"]);
        let read: Letters = rmp_serde::from_slice(&encoded(&before)).unwrap();
        assert_eq!(read.revoked, all(&[("7", u64::MAX)]));
        let hello = BeforeHello { room: "lobby".into(), revoked: vec!["7".into()], ..BeforeHello::default() };
        let read: Asked = rmp_serde::from_slice(&encoded(&HashMap::from([("Hello", hello)]))).unwrap();
        let Asked::Hello { revoked, .. } = read else { panic!("{read:?}") };
        assert_eq!(revoked, all(&[("7", u64::MAX)]));
    }
}
