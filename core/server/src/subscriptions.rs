//! Who hears of which events. A subscription belongs to a service's name.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use zeph_abi::Scope;
use zeph_cluster::Subscription as Brought;
use zeph_contract::Error;

/// Subscriptions of one server at most.
const CAPACITY: usize = 100_000;

struct Subscriber {
    token: u64,
    slot: u32,
    /// The instances that asked for it.
    serials: Vec<u32>,
    /// Brings the event in from other nodes for as long as it is kept.
    brought: Option<Brought>,
}

/// All subscriptions of a server.
#[derive(Default)]
pub struct Subscriptions {
    by_event: Mutex<HashMap<(u32, String), Vec<Subscriber>>>,
}

impl Subscriptions {
    fn by_event(&self) -> MutexGuard<'_, HashMap<(u32, String), Vec<Subscriber>>> {
        self.by_event.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscribes a slot. The same slot and event again: the same token, now of this instance. `bring` has
    /// what is not of this node brought in under a token.
    pub fn add(
        &self,
        token: u64,
        slot: u32,
        serial: u32,
        (scope, event): (Scope, &str),
        bring: impl FnOnce(u64) -> Result<Option<Brought>, Error>,
    ) -> Result<u64, Error> {
        let mut by_event = self.by_event();
        if by_event.values().map(Vec::len).sum::<usize>() >= CAPACITY {
            return Err(Error::busy(format!("this server has {CAPACITY} subscriptions; no more are taken")));
        }
        let subscribers = by_event.entry((scope as u32, event.into())).or_default();
        if let Some(known) = subscribers.iter_mut().find(|known| known.slot == slot) {
            if !known.serials.contains(&serial) {
                known.serials.push(serial);
            }
            if scope == Scope::Members {
                // Who is up is news for a new instance. What comes meanwhile is told as before.
                known.brought.iter().for_each(Brought::greet);
            }
            return Ok(known.token);
        }
        subscribers.push(Subscriber { token, slot, serials: vec![serial], brought: bring(token)? });
        Ok(token)
    }

    /// Tells a slot that watches nodes once more who is up.
    pub fn greet(&self, slot: u32) {
        let by_event = self.by_event();
        let watching = by_event.get(&(Scope::Members as u32, String::new()));
        let own = watching.into_iter().flatten().filter(|subscriber| subscriber.slot == slot);
        own.filter_map(|subscriber| subscriber.brought.as_ref()).for_each(Brought::greet);
    }

    /// Ends a subscription. False: there is no such one.
    pub fn cancel(&self, token: u64) -> bool {
        self.retain(|subscriber| subscriber.token != token)
    }

    /// An instance has taken over what those before it had: all of a slot's are its own.
    pub fn inherit(&self, slot: u32, serial: u32) {
        for subscriber in self.by_event().values_mut().flatten().filter(|subscriber| subscriber.slot == slot)
        {
            subscriber.serials = vec![serial];
        }
    }

    /// Ends the subscriptions of a slot that other instances than this one made.
    pub fn keep_only(&self, slot: u32, serial: u32) {
        self.retain(|subscriber| {
            if subscriber.slot == slot {
                subscriber.serials.retain(|known| *known == serial);
            }
            !subscriber.serials.is_empty()
        });
    }

    /// Ends what an instance asked for, unless another one did, too; serial 0: any instance of the slot.
    pub fn forget(&self, slot: u32, serial: u32) {
        self.retain(|subscriber| {
            if subscriber.slot == slot {
                subscriber.serials.retain(|known| serial != 0 && *known != serial);
            }
            !subscriber.serials.is_empty()
        });
    }

    fn retain(&self, keep: impl Fn(&mut Subscriber) -> bool) -> bool {
        let mut by_event = self.by_event();
        let count = |by_event: &HashMap<_, Vec<Subscriber>>| by_event.values().map(Vec::len).sum::<usize>();
        let before = count(&by_event);
        by_event.retain(|_, subscribers| {
            subscribers.retain_mut(&keep);
            !subscribers.is_empty()
        });
        count(&by_event) < before
    }

    /// Slot and token of everybody who hears of an event.
    pub fn of(&self, scope: Scope, event: &str) -> Vec<(u32, u64)> {
        let by_event = self.by_event();
        let subscribers = by_event.get(&(scope as u32, event.into()));
        subscribers.into_iter().flatten().map(|known| (known.slot, known.token)).collect()
    }
}
