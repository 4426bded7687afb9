//! All peers of this edge, as other threads see them: by cid, with their outboxes.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use zephserver_plugin::contract::peer::Cid;

use crate::outbox::Outbox;

/// Outboxes by cid.
pub struct Peers {
    outboxes: RwLock<HashMap<Cid, Arc<Outbox>>>,
    next: AtomicU64,
}

impl Default for Peers {
    fn default() -> Self {
        // Another edge, or another generation of this one, begins somewhere else.
        let start = RandomState::new().build_hasher().finish() & 0x7fff_ffff_0000_0000;
        Self { outboxes: RwLock::default(), next: AtomicU64::new(start | 1) }
    }
}

impl Peers {
    /// A new cid.
    pub fn new_cid(&self) -> Cid {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub fn insert(&self, cid: Cid, outbox: Arc<Outbox>) {
        self.outboxes.write().unwrap_or_else(PoisonError::into_inner).insert(cid, outbox);
    }

    pub fn remove(&self, cid: Cid) {
        self.outboxes.write().unwrap_or_else(PoisonError::into_inner).remove(&cid);
    }

    /// Sends bytes to some peers; answers how many took them.
    pub fn send_raw(&self, cids: impl Iterator<Item = Cid>, bytes: &[u8]) -> u64 {
        let outboxes = self.outboxes.read().unwrap_or_else(PoisonError::into_inner);
        cids.filter_map(|cid| outboxes.get(&cid)).filter(|outbox| outbox.send_raw(bytes)).count() as u64
    }
}
