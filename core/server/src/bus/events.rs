//! Events on their way to services.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zeph_abi::{CallOptions, Closed, Entry, Event, EventKind, Failure, Scope, status};

use super::{Bus, STOP};
use crate::clock::Due;
use crate::frames;
use crate::mailbox::OwnedEvent;
use crate::registry::Slot;

impl Bus {
    /// Tells a service an event from a thread of the pool.
    pub fn mail(&self, slot: u32, event: &Event<'_>) {
        if let Some(slot) = self.registry.slot(u64::from(slot)) {
            self.post(slot, OwnedEvent::new(event));
        }
    }

    /// Tells a service an event: at once if nothing is in the way, else in its turn.
    pub fn deliver(&self, slot: u32, event: &Event<'_>) {
        let Some(slot) = self.registry.slot(u64::from(slot)) else { return };
        if slot.mailbox.is_idle()
            && let Ok(entry) = slot.gate.enter()
        {
            return self.tell(slot, &entry, event);
        }
        self.post(slot, OwnedEvent::new(event));
    }

    /// Tells a service that it serves. On a thread of its own: neither mail that waits nor a full pool may hold
    /// up a `main` that waits for it.
    pub fn tell_serving(self: &Arc<Self>, slot: u32) {
        self.registry.slot(u64::from(slot)).inspect(|slot| self.resume_mail(slot));
        let bus = self.clone();
        let told = std::thread::Builder::new().name("zephserver-serving".into()).spawn(move || {
            let Some(slot) = bus.registry.slot(u64::from(slot)) else { return };
            loop {
                match slot.gate.enter() {
                    Ok(entry) => return bus.tell(slot, &entry, &Event::new(EventKind::Serving)),
                    // A reload is under way: whoever serves after it is told.
                    Err(Closed::Shut) => slot.gate.wait(Instant::now() + Duration::from_secs(1)),
                    // It went down again. Nobody is brought back for this.
                    Err(Closed::Down) => return,
                }
            }
        });
        if told.is_err() {
            self.mail(slot, &Event::new(EventKind::Serving));
        }
    }

    /// See [`Bus::mail`].
    pub fn post(&self, slot: &Slot, event: OwnedEvent) {
        if slot.mailbox.push(event) {
            // Never full: each slot is in it once at most.
            let _ = self.mail.0.try_send(slot.number);
        }
    }

    /// A service takes events again: it is told what it missed.
    fn resume_mail(&self, slot: &Slot) {
        if slot.mailbox.resume() {
            let _ = self.mail.0.try_send(slot.number);
        }
    }

    /// Has mail delivered by the pool until `stop`. On a thread of its own.
    pub fn run_mail(self: &Arc<Self>) {
        while let Ok(slot) = self.mail.1.recv() {
            if slot == STOP {
                return;
            }
            let job = || {
                let bus = self.clone();
                move || bus.deliver_mail(slot)
            };
            while self.pool.spawn(job()).is_none() {
                // Full of calls: mail waits for its turn like everybody.
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Ends the bus's own threads.
    pub fn stop(&self) {
        self.clock.stop();
        let _ = self.mail.0.try_send(STOP);
    }

    /// Delivers what waits for a slot. On a thread of the pool.
    pub fn deliver_mail(&self, slot: u32) {
        let Some(slot) = self.registry.slot(u64::from(slot)) else { return };
        while let Some(event) = slot.mailbox.pop() {
            let brings_back = !event.wakes_nobody();
            let error = match self.wait_to_enter(slot, None, &CallOptions::WAIT, brings_back) {
                Ok(_) if !slot.mailbox.is_wanted(&event) => continue,
                Ok(entry) => {
                    self.tell(slot, &entry, &event.lend());
                    continue;
                }
                Err(error) => error,
            };
            tracing::debug!("an event finds nobody: {}", error.text);
            slot.mailbox.miss(event);
            if slot.gate.is_up() {
                // It came up in between: nobody else would say so.
                slot.mailbox.resume();
            }
        }
    }

    pub(super) fn tell(&self, slot: &Slot, entry: &Entry, event: &Event<'_>) {
        let method: Cow<'static, str> = match event.kind {
            EventKind::Reply => "event reply".into(),
            EventKind::Item => "event item".into(),
            EventKind::Credit => "event credit".into(),
            EventKind::Cancelled => "event cancelled".into(),
            EventKind::Timer => "event timer".into(),
            EventKind::Published | EventKind::Said => format!("event {}", event.name).into(),
            EventKind::Node => "event node".into(),
            EventKind::Serving => "event serving".into(),
            EventKind::Unknown => "event".into(),
        };
        let _inside = frames::with(|thread| thread.enter(self.id, 0, slot.number, method.as_bytes()));
        match entry.event(event) {
            Ok(()) => {}
            Err(Failure { status: status::PANICKED, .. }) => self.report_crash(slot, entry, method.into()),
            Err(failure) => tracing::warn!("{}: {method}: {failure}", slot.name),
        }
    }

    /// Tells everybody of this node who listens; answers how many.
    pub fn publish(&self, event: &str, payload: &[u8]) -> u64 {
        let subscribers = self.subscriptions.of(Scope::Node, event);
        let (name, payload): (Arc<str>, Arc<[u8]>) = (event.into(), payload.into());
        for (slot, token) in &subscribers {
            if let Some(slot) = self.registry.slot(u64::from(*slot)) {
                self.post(slot, OwnedEvent::published(name.clone(), payload.clone()).to(*token, 0));
            }
        }
        subscribers.len() as u64
    }

    /// Does what becomes due until the clock is stopped. On a thread of its own.
    pub fn run_clock(&self) {
        while let Some(due) = self.clock.next() {
            match due {
                Due::Timer { token, slot } => {
                    let timer = Event { token, ..Event::new(EventKind::Timer) };
                    if let Some(slot) = self.registry.slot(u64::from(slot)) {
                        self.post(slot, OwnedEvent::new(&timer));
                    }
                }
                Due::Call { token } => self.end_overdue(token),
            }
        }
    }
}
