//! All connections of an edge, as every thread finds them: outboxes by cid.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, PoisonError, RwLock};

use crate::limits::{Counters, Figures};
use crate::outbox::{self, Outbox};
use crate::readiness::CarriedPeers;

/// Number of a connection: 16 bits of its edge, 28 bits that count up, 20 bits of its slot. Not used
/// again before the slot was used 2^28 times.
pub type Cid = u64;

const SLOT_BITS: u32 = 20;
const SERIAL_BITS: u32 = 28;

/// Connections that the numbers have room for.
pub(crate) const MOST: usize = 1 << SLOT_BITS;

/// The slot that a cid names.
pub(crate) fn slot(cid: Cid) -> usize {
    (cid & ((1 << SLOT_BITS) - 1)) as usize
}

/// Outboxes by cid.
pub struct Peers {
    salt: u64,
    slots: RwLock<Slots>,
    pub(crate) counters: Counters,
}

#[derive(Default)]
struct Slots {
    outboxes: Vec<Option<(Cid, Arc<Outbox>)>>,
    free: Vec<usize>,
    serial: u64,
}

/// Another edge, or another life of this one, gives other numbers.
fn fresh_salt() -> u64 {
    RandomState::new().build_hasher().finish() << (SLOT_BITS + SERIAL_BITS)
}

impl Default for Peers {
    fn default() -> Self {
        Self { salt: fresh_salt(), slots: RwLock::default(), counters: Counters::default() }
    }
}

impl Peers {
    /// What another edge needs to go on numbering and counting.
    pub fn carried(&self) -> CarriedPeers {
        let serial = self.slots.read().unwrap_or_else(PoisonError::into_inner).serial;
        CarriedPeers { salt: self.salt, serial, totals: self.counters.totals() }
    }

    /// Goes on where another edge was, with places for the connections that will be adopted.
    pub fn restored(carried: &CarriedPeers, cids: impl Iterator<Item = Cid>) -> Self {
        let mut taken: Vec<usize> = cids.map(slot).collect();
        taken.sort_unstable();
        let count = taken.last().map_or(0, |last| last + 1);
        let free = (0..count).rev().filter(|slot| taken.binary_search(slot).is_err()).collect();
        let outboxes = (0..count).map(|_| None).collect();
        // Where nobody is carried, the state may be an old one: its numbers may have been given out since.
        let salt = if taken.is_empty() { fresh_salt() } else { carried.salt };
        Self {
            salt,
            slots: RwLock::new(Slots { outboxes, free, serial: carried.serial }),
            counters: Counters::restored(&carried.totals),
        }
    }

    /// Tells the connections of this life of the edge from those of others.
    pub fn salt(&self) -> u64 {
        self.salt
    }

    /// A number for a new connection. None: there are too many.
    pub(crate) fn reserve(&self) -> Option<Cid> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.free.pop().unwrap_or(slots.outboxes.len());
        if slot >= MOST {
            return None;
        }
        if slot == slots.outboxes.len() {
            slots.outboxes.push(None);
        }
        slots.serial = (slots.serial + 1) & ((1 << SERIAL_BITS) - 1);
        Some(self.salt | slots.serial << SLOT_BITS | slot as u64)
    }

    /// The connection of a number that was reserved.
    pub(crate) fn fill(&self, cid: Cid, outbox: &Arc<Outbox>) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.outboxes[slot(cid)] = Some((cid, outbox.clone()));
    }

    /// A number that was reserved is free again.
    pub(crate) fn remove(&self, cid: Cid) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.outboxes[slot(cid)] = None;
        slots.free.push(slot(cid));
    }

    /// Sends a whole frame to some peers, whose cids are given as little-endian bytes; answers how many
    /// took it. In a loop's turn, frames for the same peers one after the other are put together first:
    /// a peer that is too slow for a later one of them is counted for it still.
    pub fn send(self: &Arc<Self>, cids: &[[u8; 8]], frame: &[u8]) -> u64 {
        outbox::broadcast(self, cids, frame)
    }

    pub(crate) fn send_now(&self, cids: &[[u8; 8]], frame: &[u8]) -> u64 {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let outboxes = cids.iter().filter_map(|cid| slots.find(Cid::from_le_bytes(*cid)));
        outboxes.filter(|outbox| outbox.send_now(|backlog| backlog.extend_from_slice(frame))).count() as u64
    }

    /// How many of them are here.
    pub(crate) fn count(&self, cids: &[[u8; 8]]) -> u64 {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let outboxes = cids.iter().filter_map(|cid| slots.find(Cid::from_le_bytes(*cid)));
        outboxes.filter(|outbox| outbox.is_open()).count() as u64
    }

    /// What happened here so far.
    pub fn figures(&self) -> Figures {
        self.counters.figures()
    }
}

impl Slots {
    fn find(&self, cid: Cid) -> Option<&Arc<Outbox>> {
        match self.outboxes.get(slot(cid)) {
            Some(Some((known, outbox))) if *known == cid => Some(outbox),
            _ => None,
        }
    }
}
