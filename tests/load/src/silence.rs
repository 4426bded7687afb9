//! How long peers went without an answer while something else happened.

use std::time::{Duration, Instant};

/// The longest time from a request to its answer, of each peer, in a window of time.
pub struct Silence {
    window: Window,
    /// None: no request of this peer was in the window.
    longest: Vec<Option<Duration>>,
}

/// Which requests count.
#[derive(Clone, Copy)]
enum Window {
    None,
    /// All that are answered from now on: also those that were under way when it began.
    All,
    /// Those that were sent before.
    SentBefore(Instant),
}

impl Silence {
    /// No window is open.
    pub fn new(peers: usize) -> Self {
        Self { window: Window::None, longest: vec![None; peers] }
    }

    /// Opens a window.
    pub fn begin(&mut self) {
        self.window = Window::All;
        self.longest.fill(None);
    }

    /// Its end: requests that are under way count when they are answered, those sent later do not.
    pub fn end(&mut self, now: Instant) {
        self.window = Window::SentBefore(now);
    }

    /// A peer was answered.
    pub fn answered(&mut self, peer: usize, sent: Instant, now: Instant) {
        let counts = match self.window {
            Window::None => false,
            Window::All => true,
            Window::SentBefore(end) => sent < end,
        };
        if counts {
            let longest = &mut self.longest[peer];
            *longest = (*longest).max(Some(now.saturating_duration_since(sent)));
        }
    }

    /// Shuts the window: the longest time of each peer that has one.
    pub fn take(&mut self) -> Vec<Duration> {
        self.window = Window::None;
        self.longest.iter_mut().filter_map(Option::take).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_time_of_each_peer_in_the_window_counts() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut silence = Silence::new(4);
        silence.answered(0, start, start + ms(90));
        silence.begin();
        // Under way when it began.
        silence.answered(0, start, start + ms(30));
        silence.answered(0, start + ms(40), start + ms(41));
        silence.answered(1, start + ms(20), start + ms(25));
        silence.end(start + ms(50));
        silence.answered(1, start + ms(49), start + ms(70));
        silence.answered(2, start + ms(50), start + ms(90));
        assert_eq!(silence.take(), [ms(30), ms(21)]);
        silence.answered(0, start, start + ms(90));
        assert!(silence.take().is_empty());
    }
}
