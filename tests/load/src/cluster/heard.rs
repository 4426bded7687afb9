//! What a node hears: how many, how late, and whether something is missing that nobody told of.

use serde::{Deserialize, Serialize};

use crate::figure::percentile;

/// What a node has heard since it was asked last.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Heard {
    /// Events.
    pub count: u64,
    /// When the last one came, in nanoseconds of the machine's clock.
    pub last: u64,
    /// Milliseconds from `say` to the handler.
    pub p50: f64,
    pub p99: f64,
    /// Events that it was told are lost.
    pub gapped: u64,
    /// Events that are missing, and nobody told.
    pub silent: u64,
}

/// Counts what comes.
#[derive(Default)]
pub struct Ear {
    heard: Heard,
    latencies: Vec<f64>,
    /// The last number that came or was told to be lost.
    seq: Option<u64>,
}

impl Ear {
    /// An event with its number, if it has one, that was said and came at these times.
    pub fn event(&mut self, seq: Option<u64>, said: u64, now: u64) {
        self.heard.count += 1;
        self.heard.last = now;
        self.latencies.push(now.saturating_sub(said) as f64 / 1e6);
        if let (Some(seq), Some(before)) = (seq, self.seq) {
            self.heard.silent += seq.saturating_sub(before + 1);
        }
        self.seq = seq.or(self.seq);
    }

    /// Events are lost.
    pub fn gap(&mut self, from: u64, to: u64) {
        let before = self.seq.unwrap_or(from - 1);
        self.heard.silent += from.saturating_sub(before + 1);
        self.heard.gapped += (to + 1).saturating_sub(from);
        self.seq = Some(to);
    }

    /// How many so far.
    pub fn count(&self) -> u64 {
        self.heard.count + self.heard.gapped
    }

    /// What it was, and begins anew.
    pub fn take(&mut self) -> Heard {
        let mut heard = std::mem::take(&mut self.heard);
        let mut latencies = std::mem::take(&mut self.latencies);
        latencies.sort_by(f64::total_cmp);
        if !latencies.is_empty() {
            heard.p50 = percentile(&latencies, 0.5);
            heard.p99 = percentile(&latencies, 0.99);
        }
        heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_silent_unless_somebody_told() {
        let mut ear = Ear::default();
        for seq in [5, 6, 9] {
            ear.event(Some(seq), 0, 1_000_000);
        }
        ear.gap(10, 12);
        ear.event(Some(13), 0, 2_000_000);
        ear.gap(15, 15);
        let heard = ear.take();
        assert_eq!((heard.count, heard.silent, heard.gapped), (4, 3, 4));
        assert_eq!((heard.p50, heard.p99, heard.last), (1.0, 2.0, 2_000_000));
        ear.event(Some(17), 0, 0);
        assert_eq!(ear.take().silent, 1, "numbers go on");
    }
}
