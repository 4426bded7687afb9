//! What other threads have for a loop: answers to its questions, the wish to announce its peers, whose session
//! was revoked, whom other nodes want closed, and errands of operators.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use zephserver_plugin::Error;
use zephserver_plugin::contract::session::Revoked;

use crate::kicks::Closing;
use crate::revoked::Revocations;
use crate::verbs::Errand;

/// A question's number: which loop asked is in its upper bits, below the SDK's own.
const LOOP_SHIFT: u32 = 56;

/// The first number of a loop's questions.
pub fn first_cookie(number: usize, random: u64) -> u64 {
    (number as u64) << LOOP_SHIFT | random >> 9 & !0xffff
}

/// The loop that asked a question.
pub fn asker(cookie: u64) -> usize {
    (cookie >> LOOP_SHIFT) as usize
}

/// What a service answered.
pub type Answer = Result<Vec<u8>, Error>;

/// What waits for a loop.
#[derive(Default)]
pub struct Inbox(Mutex<Letters>);

/// What lies in an inbox.
#[derive(Default, Serialize, Deserialize)]
pub struct Letters {
    /// By the cookie of their question.
    pub answers: VecDeque<(u64, Answer)>,
    /// The room service has forgotten its peers.
    pub announce: bool,
    /// Whose sessions were revoked.
    #[serde(flatten)]
    pub revoked: Revocations,
    /// Whom operators of other nodes want closed.
    #[serde(default)]
    pub closing: Vec<Closing>,
    /// Not carried: whoever waits for them hears that, and may ask again.
    #[serde(skip)]
    pub errands: Vec<Errand>,
}

impl Inbox {
    fn lock(&self) -> std::sync::MutexGuard<'_, Letters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What lies in it, to be carried.
    pub fn letters(&self) -> Letters {
        // Errands are held by nobody else, so that who waits for them hears when they are done.
        let inner = self.lock();
        let (answers, revoked) = (inner.answers.clone(), inner.revoked.clone());
        let closing = inner.closing.clone();
        Letters { answers, announce: inner.announce, revoked, closing, errands: Vec::new() }
    }

    /// Puts in what lay in another.
    pub fn add(&self, letters: Letters) {
        let mut inner = self.lock();
        inner.answers.extend(letters.answers);
        inner.announce |= letters.announce;
        inner.revoked.extend(letters.revoked);
        inner.closing.extend(letters.closing);
    }

    pub fn put(&self, cookie: u64, answer: Answer) {
        self.lock().answers.push_back((cookie, answer));
    }

    pub fn ask_to_announce(&self) {
        self.lock().announce = true;
    }

    pub fn revoke(&self, revoked: Revoked) {
        self.lock().revoked.add(revoked);
    }

    pub fn close(&self, closing: &[Closing]) {
        self.lock().closing.extend_from_slice(closing);
    }

    pub fn send(&self, errand: Errand) {
        self.lock().errands.push(errand);
    }

    /// Empties it.
    pub fn take(&self) -> Letters {
        std::mem::take(&mut self.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_names_its_loop_and_leaves_the_highest_bit() {
        for random in [0, 1, u64::MAX] {
            assert_eq!(asker(first_cookie(63, random) + 0xffff), 63);
            assert_eq!(first_cookie(63, random) >> 63, 0);
        }
    }
}
