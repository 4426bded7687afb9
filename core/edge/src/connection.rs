//! The connections of one loop.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::outbox::Outbox;
use crate::peers::{Cid, slot};

/// What is to happen with a connection after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Next {
    Read,
    Pause,
    Finish,
    Detach,
}

pub struct Connection<P> {
    pub outbox: Arc<Outbox>,
    /// None: it is finishing, and what still comes is thrown away.
    pub peer: Option<P>,
    /// What was read and is not done with. At rest it keeps no memory.
    pub unread: Vec<u8>,
    pub next: Next,
    /// It has more to read, or to be handled, than one turn takes: it is on the loop's list, and has no turn
    /// before that one.
    pub again: bool,
    pub due: Option<Instant>,
    /// Its earliest entry among the loop's timers.
    pub timer: Option<Instant>,
    /// When bytes came last.
    pub heard: Instant,
    pub address: IpAddr,
}

type Numbered<P> = (Cid, Connection<P>);

/// Connections by cid, through the slot that it names.
pub struct Connections<P> {
    slots: Vec<Option<Box<Numbered<P>>>>,
    count: usize,
}

impl<P> Default for Connections<P> {
    fn default() -> Self {
        Self { slots: Vec::new(), count: 0 }
    }
}

impl<P> Connections<P> {
    pub fn insert(&mut self, cid: Cid, connection: Connection<P>) {
        let slot = slot(cid);
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        self.slots[slot] = Some(Box::new((cid, connection)));
        self.count += 1;
    }

    pub fn get_mut(&mut self, cid: Cid) -> Option<&mut Connection<P>> {
        let (known, connection) = &mut **self.slots.get_mut(slot(cid))?.as_mut()?;
        (*known == cid).then_some(connection)
    }

    /// The cid in a slot.
    pub fn at(&self, slot: usize) -> Option<Cid> {
        Some(self.slots.get(slot)?.as_ref()?.0)
    }

    pub fn remove(&mut self, cid: Cid) -> Option<Connection<P>> {
        self.get_mut(cid)?;
        self.count -= 1;
        self.slots[slot(cid)].take().map(|known| known.1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Cid, &Connection<P>)> {
        self.slots.iter().flatten().map(|known| (known.0, &known.1))
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}
