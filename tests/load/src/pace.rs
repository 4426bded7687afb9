//! When a peer speaks again: always so long after its last answer.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Who is due when. The pause is the same for all, so those who come later are due later.
pub struct Pace {
    pause: Duration,
    waiting: VecDeque<(Instant, usize)>,
}

impl Pace {
    /// These peers begin, spread evenly over the first pause.
    pub fn begin(pause: Duration, peers: impl ExactSizeIterator<Item = usize>, now: Instant) -> Self {
        let count = peers.len().max(1) as u32;
        let waiting =
            peers.zip(0..).map(|(peer, at): (usize, u32)| (now + pause * at / count, peer)).collect();
        Self { pause, waiting }
    }

    /// A peer was answered just now.
    pub fn answered(&mut self, peer: usize, now: Instant) {
        self.waiting.push_back((now + self.pause, peer));
    }

    /// The next one whose time has come.
    pub fn due(&mut self, now: Instant) -> Option<usize> {
        let (_, peer) = *self.waiting.front().filter(|(at, _)| *at <= now)?;
        self.waiting.pop_front();
        Some(peer)
    }

    /// When somebody is due next.
    pub fn soonest(&self) -> Option<Instant> {
        self.waiting.front().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_due_a_pause_after_the_answer() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut pace = Pace::begin(Duration::from_millis(40), (0..40).step_by(10), start);
        assert_eq!((pace.due(start), pace.due(start), pace.soonest()), (Some(0), None, Some(at(10))));
        assert_eq!((pace.due(at(25)), pace.due(at(25)), pace.due(at(25))), (Some(10), Some(20), None));
        pace.answered(20, at(26));
        pace.answered(0, at(27));
        assert_eq!((pace.due(at(65)), pace.due(at(65)), pace.soonest()), (Some(30), None, Some(at(66))));
        assert_eq!((pace.due(at(70)), pace.due(at(70)), pace.soonest()), (Some(20), Some(0), None));
    }
}
