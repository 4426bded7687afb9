//! Whose sessions count no more. Pure: what time it is says the caller, in seconds since 1970.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde::Serialize;
use zephserver_plugin::contract::event::CLOCKS_DIFFER;
use zephserver_plugin::contract::page::{Page, Shown};
use zephserver_plugin::contract::session::{self, Revoked};

/// Users that are remembered at most; then the oldest revocation makes room.
pub const MOST: usize = 100_000;

/// Seconds that the clock of another node may be ahead.
const AHEAD: u64 = 60;

/// Users whose sessions were revoked, and when.
#[derive(Debug)]
pub struct Revocations {
    before: HashMap<Arc<str>, u64>,
    /// The same, the oldest first.
    by_time: BTreeSet<(u64, Arc<str>)>,
    /// Seconds for which a revocation counts: no token is to last longer.
    kept: u64,
}

/// Some of all revocations, the newest first.
#[derive(Debug, Serialize)]
pub struct List {
    revocations: Vec<Revoked>,
    #[serde(flatten)]
    shown: Shown,
}

impl Revocations {
    /// None yet.
    pub fn new(kept: u64) -> Self {
        Self { before: HashMap::new(), by_time: BTreeSet::new(), kept }
    }

    /// Those that another instance, or a file, has kept.
    pub fn restore(kept: u64, revoked: Vec<Revoked>) -> Self {
        let mut revocations = Self::new(kept);
        for Revoked { user, before } in revoked {
            revocations.insert(user.into(), before);
        }
        revocations
    }

    /// What is to be kept, the oldest first.
    pub fn snapshot(&self) -> Vec<Revoked> {
        self.by_time.iter().map(revoked).collect()
    }

    /// What a user was issued until now counts no more. Also answers who was forgotten for that, if somebody
    /// had to be.
    pub fn revoke(&mut self, user: &str, now: u64) -> (Revoked, Option<Revoked>) {
        self.forget_expired(now);
        // Made by a clock that is ahead of this one: other nodes know it, too, and are to see that this is another.
        let later = self.before.get(user).filter(|known| **known > now).map(|known| known.saturating_add(1));
        let (before, forgotten) = self.insert(user.into(), later.unwrap_or(now));
        (Revoked { user: user.into(), before }, forgotten)
    }

    /// Takes over what another node knows; answers what is new here, and who was forgotten for it.
    pub fn merge(&mut self, revoked: Vec<Revoked>, now: u64) -> (Vec<Revoked>, Vec<Revoked>) {
        self.forget_expired(now);
        let (mut new, mut forgotten) = (Vec::new(), Vec::new());
        for mut one in revoked {
            // A clock that is ahead must not lock anybody out for longer than that.
            one.before = one.before.min(now.saturating_add(AHEAD));
            let is_known = self.before.get(one.user.as_str()).is_some_and(|known| *known >= one.before);
            // Where all is full of later ones it would be the first to be forgotten.
            let is_oldest = self.before.len() >= MOST
                && !self.before.contains_key(one.user.as_str())
                && self.by_time.first().is_some_and(|(before, _)| *before >= one.before);
            if !is_known && !is_oldest && !self.is_expired(one.before, now) {
                forgotten.extend(self.insert(one.user.as_str().into(), one.before).1);
                new.push(one);
            }
        }
        (new, forgotten)
    }

    /// Those that count, the oldest first.
    pub fn current(&mut self, now: u64) -> Vec<Revoked> {
        self.forget_expired(now);
        self.snapshot()
    }

    /// True where what was issued to a user at a time counts no more.
    pub fn is_revoked(&self, user: &str, issued: Option<u64>, now: u64) -> bool {
        let before = self.before.get(user).filter(|before| !self.is_expired(**before, now));
        before.is_some_and(|before| session::is_revoked(issued, *before))
    }

    /// A page of them.
    pub fn list(&mut self, page: Page, now: u64) -> List {
        self.forget_expired(now);
        let revocations = page.of(self.by_time.iter().rev()).map(revoked).collect();
        List { revocations, shown: page.shown(self.by_time.len()) }
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.before.is_empty()
    }

    fn insert(&mut self, user: Arc<str>, before: u64) -> (u64, Option<Revoked>) {
        let known = self.before.remove(&user);
        let forgotten = match known {
            Some(known) => {
                self.by_time.remove(&(known, user.clone()));
                None
            }
            None if self.before.len() >= MOST => self.forget_oldest(),
            None => None,
        };
        // A clock that was set back takes no revocation back.
        let before = known.map_or(before, |known| known.max(before));
        self.before.insert(user.clone(), before);
        self.by_time.insert((before, user));
        (before, forgotten)
    }

    fn forget_oldest(&mut self) -> Option<Revoked> {
        let oldest = self.by_time.pop_first()?;
        self.before.remove(&oldest.1);
        Some(revoked(&oldest))
    }

    fn forget_expired(&mut self, now: u64) {
        while self.by_time.first().is_some_and(|(before, _)| self.is_expired(*before, now)) {
            self.forget_oldest();
        }
    }

    fn is_expired(&self, before: u64, now: u64) -> bool {
        before.saturating_add(self.kept) <= now
    }
}

/// What another node has revoked just now: where its clock is behind this one, more was issued until now than its time
/// says, and it is made later. What is older than clocks may differ was on its way for long, and stays as it is. False:
/// so does all of it.
pub fn by_own_clock(revoked: &mut [Revoked], now: u64) -> bool {
    // By a single second clocks that agree differ as well.
    let is_behind = |one: &&mut Revoked| (2..=CLOCKS_DIFFER).contains(&now.saturating_sub(one.before));
    let mut is_later = false;
    for one in revoked.iter_mut().filter(is_behind) {
        one.before = now;
        is_later = true;
    }
    is_later
}

fn revoked((before, user): &(u64, Arc<str>)) -> Revoked {
    Revoked { user: user.to_string(), before: *before }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: u64 = 60;
    const NOW: u64 = 1_000_000;

    fn users(revocations: &Revocations) -> Vec<String> {
        revocations.snapshot().into_iter().map(|revoked| revoked.user).collect()
    }

    #[test]
    fn what_was_issued_until_then_counts_no_more() {
        let mut revocations = Revocations::new(KEPT);
        assert!(!revocations.is_revoked("7", None, NOW));
        let revoked = Revoked { user: "7".into(), before: NOW };
        assert_eq!(revocations.revoke("7", NOW), (revoked, None));
        for (issued, is_revoked) in [(None, true), (Some(0), true), (Some(NOW), true), (Some(NOW + 1), false)]
        {
            assert_eq!(revocations.is_revoked("7", issued, NOW), is_revoked, "{issued:?}");
            assert!(!revocations.is_revoked("8", issued, NOW), "somebody else");
        }
    }

    #[test]
    fn a_revocation_ends_when_no_token_can_be_so_old() {
        let mut revocations = Revocations::new(KEPT);
        revocations.revoke("7", NOW);
        revocations.revoke("8", NOW + 1);
        assert!(revocations.is_revoked("7", None, NOW + KEPT - 1));
        assert!(!revocations.is_revoked("7", None, NOW + KEPT));
        assert_eq!(users(&revocations), ["7", "8"], "looking changes nothing");
        revocations.revoke("9", NOW + KEPT);
        assert_eq!(users(&revocations), ["8", "9"]);
    }

    #[test]
    fn a_later_revocation_replaces_the_one_before_and_never_the_other_way() {
        let mut revocations = Revocations::new(KEPT);
        revocations.revoke("7", NOW);
        assert_eq!(revocations.revoke("7", NOW + 5).0.before, NOW + 5);
        assert_eq!(revocations.revoke("7", NOW + 5).0.before, NOW + 5, "of that very second it is the same");
        assert_eq!(revocations.revoke("7", NOW + 2).0.before, NOW + 6, "the clock was set back");
        assert_eq!(revocations.snapshot(), [Revoked { user: "7".into(), before: NOW + 6 }]);
    }

    #[test]
    fn no_revocation_is_without_effect_where_a_clock_is_behind() {
        let revoked = |user: &str, before| Revoked { user: user.into(), before };
        // On the node with the right clock; the other one is behind by ten seconds.
        let (mut right, mut behind) = (Revocations::new(KEPT), Revocations::new(KEPT));
        let first = right.revoke("7", NOW).0;
        assert_eq!(behind.merge(vec![first], NOW - 10).0.len(), 1);
        // The user logs in anew, and is revoked there.
        let (issued, now) = (NOW + 5, NOW + 7);
        assert!(!right.is_revoked("7", Some(issued), now));
        let mut said = [behind.revoke("7", now - 10).0];
        assert_eq!(said, [revoked("7", NOW + 1)], "another than that which all know");
        assert!(by_own_clock(&mut said, now));
        let new = right.merge(said.to_vec(), now).0;
        assert_eq!(new, [revoked("7", now)]);
        assert!(right.is_revoked("7", Some(issued), now));
        // What that node says again reaches the one that is behind.
        assert_eq!(behind.merge(new, now - 10).0, [revoked("7", now)]);
        assert!(behind.is_revoked("7", Some(issued), now - 10));
    }

    #[test]
    fn a_fresh_revocation_is_made_later_where_its_clock_is_behind_and_not_by_much() {
        let later = |before, now| {
            let mut revoked = [Revoked { user: "7".into(), before }];
            let is_later = by_own_clock(&mut revoked, now);
            (revoked[0].before, is_later)
        };
        assert_eq!(later(NOW, NOW), (NOW, false));
        assert_eq!(later(NOW, NOW + 1), (NOW, false), "the second has just passed");
        assert_eq!(later(NOW, NOW - 5), (NOW, false), "the other clock is ahead");
        assert_eq!(later(NOW, NOW + 2), (NOW + 2, true));
        assert_eq!(later(NOW, NOW + CLOCKS_DIFFER), (NOW + CLOCKS_DIFFER, true));
        assert_eq!(later(NOW, NOW + CLOCKS_DIFFER + 1), (NOW, false), "it was on its way for long");
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut revocations = Revocations::new(u64::MAX);
        for user in 0..MOST as u64 {
            assert_eq!(revocations.revoke(&user.to_string(), NOW + user).1, None);
        }
        // Who is known already needs no room.
        assert_eq!(revocations.revoke("0", NOW + MOST as u64).1, None);
        // Whatever the time, it is never the new one that is forgotten.
        let (_, forgotten) = revocations.revoke("new", 0);
        assert_eq!(forgotten, Some(Revoked { user: "1".into(), before: NOW + 1 }));
        assert!(revocations.is_revoked("new", None, 1) && !revocations.is_revoked("1", None, 1));
        assert_eq!(revocations.snapshot().len(), MOST);
    }

    #[test]
    fn what_another_node_knows_is_merged_and_the_later_one_counts() {
        let revoked = |user: &str, before| Revoked { user: user.into(), before };
        let mut revocations = Revocations::new(KEPT);
        revocations.revoke("7", NOW);
        revocations.revoke("8", NOW);
        let told =
            vec![revoked("7", NOW + 3), revoked("8", NOW - 3), revoked("9", NOW), revoked("old", NOW - KEPT)];
        let new = vec![revoked("7", NOW + 3), revoked("9", NOW)];
        assert_eq!(revocations.merge(told.clone(), NOW), (new, vec![]));
        assert_eq!(revocations.merge(told, NOW), (vec![], vec![]), "again it is nothing new");
        let all = [revoked("8", NOW), revoked("9", NOW), revoked("7", NOW + 3)];
        assert_eq!(revocations.current(NOW), all);
        assert_eq!(revocations.current(NOW + KEPT), all[2..]);
        assert_eq!(revocations.merge(vec![revoked("8", NOW)], NOW + KEPT).0, [], "it is over");
        let ahead = Revocations::new(KEPT).merge(vec![revoked("x", u64::MAX)], NOW).0;
        assert_eq!(ahead, [revoked("x", NOW + AHEAD)], "a clock that is ahead locks nobody out for long");
    }

    #[test]
    fn of_more_than_can_be_remembered_the_latest_are() {
        let revoked = |user: u64, before| Revoked { user: user.to_string(), before };
        let mut revocations = Revocations::new(u64::MAX);
        let many = (0..MOST as u64).map(|user| revoked(user, NOW + user)).collect();
        let last = MOST as u64;
        let now = NOW + last;
        assert_eq!(revocations.merge(many, now).1, []);
        let (new, forgotten) =
            revocations.merge(vec![revoked(last, NOW - 1), revoked(last + 1, NOW + last)], now);
        assert_eq!((new, forgotten), (vec![revoked(last + 1, NOW + last)], vec![revoked(0, NOW)]));
        assert_eq!(revocations.current(now).len(), MOST);
    }

    #[test]
    fn what_was_kept_comes_back_as_it_was() {
        let mut revocations = Revocations::new(KEPT);
        revocations.revoke("b", NOW);
        revocations.revoke("a", NOW + 1);
        let bytes = serde_json::to_vec(&revocations.snapshot()).unwrap();
        assert_eq!(bytes, br#"[{"user":"b","before":1000000},{"user":"a","before":1000001}]"#);
        let back = Revocations::restore(KEPT, serde_json::from_slice(&bytes).unwrap());
        assert_eq!(back.snapshot(), revocations.snapshot());
        assert!(back.is_revoked("a", None, NOW + 2) && !back.is_empty());
        assert!(Revocations::restore(KEPT, Vec::new()).is_empty());
    }

    #[test]
    fn the_newest_are_listed_first() {
        let mut revocations = Revocations::new(KEPT);
        for (user, at) in [("a", 0), ("b", 1), ("c", 2)] {
            revocations.revoke(user, NOW + at);
        }
        let mut list = |offset, limit, now| {
            serde_json::to_string(&revocations.list(Page { offset, limit }, now)).unwrap()
        };
        assert_eq!(
            list(0, 2, NOW + 3),
            r#"{"revocations":[{"user":"c","before":1000002},{"user":"b","before":1000001}],"total":3,"next_offset":2}"#
        );
        assert_eq!(
            list(0, 2, NOW + KEPT + 1),
            r#"{"revocations":[{"user":"c","before":1000002}],"total":1}"#
        );
    }
}
