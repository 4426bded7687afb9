//! What one build leaves to the next.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use zephserver_plugin::contract::peer::Cid;
use zephserver_plugin::contract::presence::{Change, Member as Present, Version};
use zephserver_plugin::contract::room::Join;
use zephserver_plugin::contract::session::User;

use super::cluster::Cluster;
use super::remote::Node;
use super::settle::LONGEST_SETTLING;
use super::{Member, Room, Rooms};

/// Rooms as they are handed over: version 1. What came to it later may be absent, and builds that do not know it pass
/// over it: so old state is imported, and going back to such a build stays possible. That one tells other nodes nothing;
/// the next one that does begins with a new life, which has them ask.
#[derive(Serialize, Deserialize)]
pub struct Snapshot {
    members: HashMap<Cid, Known>,
    rooms: HashMap<String, Vec<Cid>>,
    #[serde(default)]
    late: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster: Option<Carried>,
}

#[derive(Serialize, Deserialize)]
struct Known {
    room: String,
    edge: String,
    #[serde(default)]
    instance: u32,
    user: Option<User>,
    #[serde(default)]
    since: Option<u64>,
}

impl Rooms {
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let known = |(cid, member): (&Cid, &Member)| {
            let edge = self.edges[member.edge as usize].clone();
            let (room, instance, since) = (member.room.to_string(), member.instance, Some(member.since));
            (*cid, Known { room, edge, instance, user: member.user.as_deref().cloned(), since })
        };
        let cids = |(name, room): (&Arc<str>, &Room)| {
            (name.to_string(), room.members.iter().map(|seat| seat.cid).collect())
        };
        // Who is in doubt is not left to the next one: if it is there, an edge is about to tell of it.
        let is_sure = |(_, member): &(&Cid, &Member)| !(self.is_doubting && member.is_inherited);
        Snapshot {
            members: self.members.iter().filter(is_sure).map(known).collect(),
            rooms: self.rooms.iter().map(cids).collect(),
            late: self.late.iter().map(|(_, name)| name.to_string()).collect(),
            cluster: Some(self.carried(now)),
        }
    }

    /// Takes over what another build has left, in place of what is known: nothing.
    pub fn restore(&mut self, snapshot: Snapshot, now: Instant) {
        let Snapshot { mut members, rooms: names, late, cluster } = snapshot;
        for cids in names.into_values() {
            for cid in cids {
                if let Some(Known { room, edge, instance, user, since }) = members.remove(&cid) {
                    self.seat(Join { cid, edge, instance, room, user, again: true, since }, now);
                }
            }
        }
        self.members.values_mut().for_each(|member| member.is_inherited = true);
        for name in late {
            let name: Arc<str> = name.into();
            if let Some(room) = self.rooms.get_mut(&name) {
                room.is_late = true;
                self.late.insert((now, name));
            }
        }
        if let Some(carried) = cluster {
            self.carry_on(carried, now);
        }
    }
}

/// Dealings with other nodes, as they are handed over.
#[derive(Serialize, Deserialize)]
struct Carried {
    version: Version,
    pending: Vec<Change>,
    nodes: BTreeMap<String, KnownNode>,
    /// Milliseconds for which this node waits for its edges still.
    settling: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct KnownNode {
    known: Option<Version>,
    members: Vec<Present>,
}

impl Rooms {
    fn carried(&self, now: Instant) -> Carried {
        let Cluster { version, pending, settling, has_lost, .. } = &self.cluster;
        let known = |(name, node): (&Arc<str>, &Node)| {
            (name.to_string(), KnownNode { known: node.known, members: self.remote.members(name).collect() })
        };
        let left = |(until, _): &(Instant, Instant)| until.saturating_duration_since(now).as_millis() as u64;
        Carried {
            // What was lost counts as said: by the next version that they hear of, others notice it.
            version: Version { number: version.number + u64::from(*has_lost), ..*version },
            pending: pending.clone(),
            nodes: self.remote.nodes().map(known).collect(),
            settling: settling.as_ref().map(left),
        }
    }

    /// Goes on with the dealings of the build before. Each node is asked whether it is there still, and still as it
    /// is known: the state may be older than the last that was heard of it.
    fn carry_on(&mut self, carried: Carried, now: Instant) {
        let Carried { version, pending, nodes, settling } = carried;
        for (name, KnownNode { known, members }) in nodes {
            let Some((name, node)) = self.remote.node(&name) else { continue };
            node.known = known;
            self.remote.replace(&name, members, &mut Vec::new());
            self.cluster.asks.ask_soon(&name, now);
        }
        self.cluster.version = version;
        self.cluster.flush = (!pending.is_empty()).then_some(now);
        self.cluster.pending = pending;
        self.cluster.beat = Some(now);
        self.cluster.settling =
            settling.map(|left| (now + Duration::from_millis(left), now + LONGEST_SETTLING));
    }
}
