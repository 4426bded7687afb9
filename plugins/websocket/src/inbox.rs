//! What other threads have for a loop: answers to its questions, and the wish to announce its peers.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use zephserver_plugin::Error;

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

/// Answers, by the cookie of their question.
#[derive(Default)]
pub struct Inbox(Mutex<Letters>);

/// What lies in an inbox.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Letters {
    answers: VecDeque<(u64, Answer)>,
    /// The room service has forgotten its peers.
    announce: bool,
}

impl Inbox {
    fn lock(&self) -> std::sync::MutexGuard<'_, Letters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What lies in it, to be carried.
    pub fn letters(&self) -> Letters {
        self.lock().clone()
    }

    /// Puts in what lay in another.
    pub fn add(&self, letters: Letters) {
        let mut inner = self.lock();
        inner.answers.extend(letters.answers);
        inner.announce |= letters.announce;
    }

    pub fn put(&self, cookie: u64, answer: Answer) {
        self.lock().answers.push_back((cookie, answer));
    }

    pub fn ask_to_announce(&self) {
        self.lock().announce = true;
    }

    pub fn take(&self) -> VecDeque<(u64, Answer)> {
        std::mem::take(&mut self.lock().answers)
    }

    pub fn take_announce(&self) -> bool {
        std::mem::take(&mut self.lock().announce)
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
