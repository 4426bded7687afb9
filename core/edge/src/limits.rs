//! What bounds an edge, and what it counts.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The bounds of one edge.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// Connections at a time from one IP address.
    pub connections_per_address: usize,
    /// Bytes that wait for one slow peer; with more it is too slow, and is closed.
    pub backlog: usize,
    /// How long a connection may take to end after the last bytes were sent to it.
    pub linger: Duration,
}

/// What happened at an edge since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Connections now.
    pub connections: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections refused because of a limit.
    pub refused: u64,
    /// Connections closed because they did not read.
    pub too_slow: u64,
    /// Turns that panicked; each closed its own connection.
    pub panicked: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub accepted: AtomicU64,
    pub refused: AtomicU64,
    pub too_slow: AtomicU64,
    pub panicked: AtomicU64,
    /// Connections of each address, and all of them.
    present: Mutex<(HashMap<IpAddr, usize>, usize)>,
}

/// Counters on their way to another edge.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Totals {
    accepted: u64,
    refused: u64,
    too_slow: u64,
    panicked: u64,
}

impl Counters {
    pub fn totals(&self) -> Totals {
        let Figures { accepted, refused, too_slow, panicked, .. } = self.figures();
        Totals { accepted, refused, too_slow, panicked }
    }

    pub fn restored(totals: &Totals) -> Self {
        let Totals { accepted, refused, too_slow, panicked } = *totals;
        Self {
            accepted: accepted.into(),
            refused: refused.into(),
            too_slow: too_slow.into(),
            panicked: panicked.into(),
            present: Mutex::default(),
        }
    }

    /// Counts in a connection that was within the limits when it came.
    pub fn take_in(&self, address: IpAddr) {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        *present.0.entry(address).or_default() += 1;
        present.1 += 1;
    }

    /// Counts a connection in; false: a limit is reached.
    pub fn admit(&self, address: IpAddr, limits: &Limits) -> bool {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let (by_address, all) = &mut *present;
        let here = by_address.entry(address).or_default();
        if *all >= limits.connections || *here >= limits.connections_per_address {
            if *here == 0 {
                by_address.remove(&address);
            }
            self.refused.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        *here += 1;
        *all += 1;
        self.accepted.fetch_add(1, Ordering::Relaxed);
        true
    }

    pub fn leave(&self, address: IpAddr) {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let (by_address, all) = &mut *present;
        *all -= 1;
        if let Some(here) = by_address.get_mut(&address) {
            *here -= 1;
            if *here == 0 {
                by_address.remove(&address);
            }
        }
    }

    pub fn figures(&self) -> Figures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            connections: self.present.lock().unwrap_or_else(PoisonError::into_inner).1 as u64,
            accepted: read(&self.accepted),
            refused: read(&self.refused),
            too_slow: read(&self.too_slow),
            panicked: read(&self.panicked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_and_all_together_are_bounded() {
        let limits =
            Limits { connections: 3, connections_per_address: 2, backlog: 0, linger: Duration::ZERO };
        let counters = Counters::default();
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        assert!(counters.admit(one, &limits) && counters.admit(one, &limits));
        assert!(!counters.admit(one, &limits), "two of one address");
        assert!(counters.admit(other, &limits));
        assert!(!counters.admit(other, &limits), "three in all");
        counters.leave(one);
        assert!(counters.admit(other, &limits));
        assert_eq!((counters.figures().connections, counters.figures().refused), (3, 2));
    }
}
