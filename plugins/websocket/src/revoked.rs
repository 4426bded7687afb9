//! Whose sessions were revoked, on the way to the peers, and which of them that closes.

use serde::{Deserialize, Serialize};
use zeph_edge::Link;
use zephserver_plugin::contract::session::{Identity, Revoked, is_revoked};
use zephserver_plugin::{Error, Result};

use crate::peer::{Peer, SESSION_OVER, close, send_error};

/// Revocations that somebody is still to hear of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Carried", into = "Carried")]
pub struct Revocations(pub Vec<Revoked>);

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
        Self(revoked.into_iter().zip(before).map(|(user, before)| Revoked { user, before }).collect())
    }
}

impl From<Revocations> for Carried {
    fn from(Revocations(all): Revocations) -> Self {
        let (revoked, revoked_before) = all.into_iter().map(|one| (one.user, one.before)).unzip();
        Self { revoked, revoked_before }
    }
}

impl Revocations {
    /// Refuses who was revoked: the answer that says who it is may be older than that.
    pub fn check(&self, identity: Option<&Identity>) -> Result<()> {
        let Some(Identity { user, issued, .. }) = identity else { return Ok(()) };
        match self.0.iter().any(|one| one.user == user.id && is_revoked(*issued, one.before)) {
            true => Err(refusal()),
            false => Ok(()),
        }
    }
}

fn refusal() -> Error {
    Error::refused("your session was revoked; log in again")
}

/// Closes a peer whose session this is about.
pub fn revoked(link: &mut Link<'_, Peer>, revoked: &Revoked) {
    let Peer::Open(open) = &*link.peer else { return };
    if open.user().is_some_and(|known| known.id == revoked.user) && is_revoked(open.issued, revoked.before) {
        send_error(link.outbox, &refusal(), None, None);
        close(link, SESSION_OVER, "the session was revoked");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use zephserver_plugin::contract::session::User;

    use super::*;
    use crate::dispatch::Asked;
    use crate::inbox::Letters;

    fn revocation(user: &str, before: u64) -> Revoked {
        Revoked { user: user.into(), before }
    }

    fn encoded(value: &impl Serialize) -> Vec<u8> {
        rmp_serde::to_vec_named(value).unwrap()
    }

    #[test]
    fn they_mean_sessions_that_may_be_older() {
        let revocations = Revocations(vec![revocation("7", 5), revocation("8", 9)]);
        let is_refused = |user: &str, issued| {
            let user = User { id: user.into(), username: "Ann".into() };
            revocations.check(Some(&Identity { issued, ..user.into() })).is_err()
        };
        assert!(is_refused("7", None) && is_refused("7", Some(5)) && is_refused("8", Some(6)));
        assert!(!is_refused("7", Some(6)) && !is_refused("9", None));
        assert!(revocations.check(None).is_ok(), "somebody anonymous");
    }

    #[test]
    fn the_next_generation_knows_them_whole() {
        let revoked = Revocations(vec![revocation("7", 5), revocation("8", 9)]);
        let asked = Asked::Again { cid: 1, text: "{}".into(), token: 2, revoked: revoked.clone() };
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
        let letters = Letters { revoked: Revocations(vec![revocation("7", 5)]), ..Letters::default() };
        let before: Before = rmp_serde::from_slice(&encoded(&letters)).unwrap();
        assert_eq!(before.revoked, ["7"]);
        let read: Letters = rmp_serde::from_slice(&encoded(&before)).unwrap();
        assert_eq!(read.revoked, Revocations(vec![revocation("7", u64::MAX)]));
        let hello = BeforeHello { room: "lobby".into(), revoked: vec!["7".into()], ..BeforeHello::default() };
        let read: Asked = rmp_serde::from_slice(&encoded(&HashMap::from([("Hello", hello)]))).unwrap();
        let Asked::Hello { revoked, .. } = read else { panic!("{read:?}") };
        assert_eq!(revoked, Revocations(vec![revocation("7", u64::MAX)]));
    }
}
