//! The waits of a mesh, by how soon a node is to be taken for dead. Pure.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use foca::PeriodicParams;

use crate::Profile;

/// Nodes that dissemination is reckoned for.
const NODES: u32 = 50;
/// A datagram with its seal fits into what networks take undivided.
const DATAGRAM: usize = 1300;

/// The waits of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// Each node asks one other in this time.
    probe: Duration,
    /// An answer takes so long at most.
    answer: Duration,
    /// Who does not answer has so long to object.
    suspicion: Duration,
    /// Seeds that are no members are asked so often.
    pub announce: Duration,
    /// A connection on which nothing comes for so long is asked.
    pub ping: Duration,
    /// A connection on which nothing comes for so long is given up.
    pub silence: Duration,
}

impl Waits {
    // Until all know that a node is dead: some rounds of questions until one of them asks it (of five nodes, 19 times of
    // 20, at most two, hardly ever more than three), one until that has failed, the suspicion, one until it is told on.

    pub const LAN: Self = Self {
        probe: Duration::from_millis(800),
        answer: Duration::from_millis(400),
        suspicion: Duration::from_millis(2800),
        announce: Duration::from_millis(3000),
        ping: Duration::from_millis(2000),
        silence: Duration::from_millis(6000),
    };

    pub const FAST: Self = Self {
        probe: Duration::from_millis(300),
        answer: Duration::from_millis(120),
        suspicion: Duration::from_millis(1300),
        announce: Duration::from_millis(1000),
        ping: Duration::from_millis(700),
        silence: Duration::from_millis(2500),
    };

    pub fn of(profile: Profile) -> Self {
        match profile {
            Profile::Lan => Self::LAN,
            Profile::Fast => Self::FAST,
        }
    }

    /// As membership wants it.
    pub(super) fn membership(&self) -> foca::Config {
        let one = NonZeroUsize::MIN;
        let usual = foca::Config::new_lan(NonZeroU32::new(NODES).unwrap_or(NonZeroU32::MIN));
        foca::Config {
            probe_period: self.probe,
            probe_rtt: self.answer,
            suspect_to_down_after: self.suspicion,
            // A node that comes back has a new number; what is known of the dead is not to grow.
            remove_down_after: Some(Duration::from_secs(600)),
            max_packet_size: NonZeroUsize::new(DATAGRAM).unwrap_or(one),
            periodic_announce: Some(PeriodicParams { frequency: self.announce * 10, num_members: one }),
            // So that two halves of a cluster find together again, whoever the seeds are.
            periodic_announce_to_down_members: Some(PeriodicParams {
                frequency: self.announce,
                num_members: NonZeroUsize::new(2).unwrap_or(one),
            }),
            ..usual
        }
    }
}
