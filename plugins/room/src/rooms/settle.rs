//! How a service begins while its edges have peers that it does not know, or not all of them. They tell it of each
//! again; until they have, it tells other nodes nothing, and those go on with what they know. Pure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use zephserver_plugin::contract::presence::Version;

use super::{Notice, Rooms};

/// Edges tell of their peers one after the other: after so long a pause there is nobody more.
const SETTLED: Duration = Duration::from_secs(1);
/// They are not waited for any longer.
pub(super) const LONGEST_SETTLING: Duration = Duration::from_secs(10);

impl Rooms {
    /// It waits for its edges before it tells other nodes.
    pub fn settle(&mut self, now: Instant) {
        self.cluster.settling = Some((now + SETTLED, now + LONGEST_SETTLING));
    }

    /// What was left to it is of some time ago: others have come and gone since. It begins a life of its own with
    /// that, so that other nodes ask for the whole, and keeps whom it knows until its edges have told who is there.
    pub fn doubt(&mut self, life: u64, now: Instant) {
        let cluster = &mut self.cluster;
        cluster.version = Version { life, number: 0 };
        cluster.pending.clear();
        (cluster.has_lost, cluster.flush) = (false, None);
        self.is_doubting = true;
        self.settle(now);
    }

    /// An edge has told again of a peer: there may be more.
    pub(super) fn settle_on(&mut self, now: Instant) {
        if let Some((until, latest)) = &mut self.cluster.settling {
            *until = (now + SETTLED).min(*latest);
        }
    }

    /// When the edges have told of all: who was left to it and is not among them is gone, and each room gets its list.
    pub(super) fn settled(&mut self, now: Instant) -> Vec<Notice> {
        if self.cluster.settling.is_none_or(|(until, _)| until > now) {
            return Vec::new();
        }
        let is_doubting = std::mem::take(&mut self.is_doubting);
        if is_doubting {
            // Nobody sees them leave: that may be long ago, and was seen then. Before it tells other nodes again: they are
            // told the whole, not this.
            self.take_out(|member| member.is_inherited, now);
        }
        self.cluster.settling = None;
        self.cluster.beat = Some(now);
        let is_due = |room: &super::Room| room.listed != Some(now);
        let rooms = self.rooms.iter().filter(|(_, room)| is_due(room));
        let names: Vec<Arc<str>> = rooms.map(|(name, _)| name.clone()).collect();
        names.iter().filter_map(|name| self.list(name, now)).collect()
    }
}
