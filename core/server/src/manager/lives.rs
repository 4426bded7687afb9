//! What instances tell: made, ready, returned, crashed, gone.

use std::time::Instant;

use zeph_abi::{Failure, Readiness, ServiceId, StopReason, status::PANICKED};

use super::Manager;
use super::container::Retired;
use crate::history::{Entry, What};
use crate::life;
use crate::messages::Crash;
use crate::supervisor::{Event, State};

/// A panic, or an error that the service answered.
fn how(failure: &Failure) -> What {
    if failure.status == PANICKED { What::Crashed } else { What::Failed }
}

impl Manager {
    pub(super) fn on_life(&mut self, id: ServiceId, event: life::Event) {
        if let Some(candidate) = self.candidates.get(&id) {
            // The reload waits for it; gone means that it has given up.
            if candidate.try_send(event).is_err() {
                self.candidates.remove(&id);
            }
            return;
        }
        let Some(slot) = id.slot() else { return };
        if !self.containers.get(&slot).is_some_and(|container| container.is_now(id)) {
            return self.on_retired(id, event);
        }
        match event {
            life::Event::Created(instance) => {
                let stopping = self.with(slot, |container| container.created(instance)).unwrap_or(true);
                let order = match stopping {
                    true => life::Order::End(None),
                    false => life::Order::Start(self.checkpoint(slot)),
                };
                self.order(slot, order);
            }
            life::Event::Initialized => self.on_initialized(slot),
            life::Event::Failed { step, failure } => {
                tracing::error!("{}: {step} failed: {failure}", self.bus.registry.name(slot));
                self.with(slot, |container| {
                    container.main_runs(false);
                    container.fail(how(&failure), format!("{step}: {failure}"));
                });
                self.ended(slot, Event::Failed);
            }
            life::Event::Returned(result) => {
                self.with(slot, |container| container.main_runs(false));
                self.on_returned(slot, result);
            }
            life::Event::Ready => {}
            life::Event::Gone => {
                self.with(slot, |container| container.life = None);
                self.forget_dealings(slot, id);
                self.step(slot, Event::Gone);
            }
        }
    }

    /// What an instance that follows a failed one begins with, if its build can read that.
    pub(super) fn checkpoint(&self, slot: u32) -> Option<life::Inherited> {
        let container = self.containers.get(&slot)?;
        let checkpoint = container.checkpoint.clone()?;
        let plugin = self.plugins.get(&container.path.library)?;
        let declared = plugin.loaded.declaration.service(&container.path.kind)?;
        let reads = declared.reads(checkpoint.version);
        if !reads {
            let version = checkpoint.version;
            tracing::warn!(
                "{}: its checkpoint of state version {version} cannot be imported",
                container.path
            );
        }
        reads.then_some(checkpoint)
    }

    /// Keeps what a service wants to begin with after a crash.
    pub(super) fn on_checkpoint(&mut self, id: ServiceId, bytes: Vec<u8>) {
        let container = id.slot().and_then(|slot| self.containers.get_mut(&slot));
        let Some(container) = container.filter(|container| container.is_now(id)) else { return };
        let loaded = container.life.as_ref().map(|life| life.loaded.clone());
        let declared = loaded.as_ref().and_then(|loaded| loaded.declaration.service(&container.path.kind));
        let version = declared.map_or(0, |service| service.state_version);
        let state = zeph_abi::Exported { bytes, fds: Vec::new() };
        container.checkpoint = Some(life::Inherited { version, state });
    }

    pub(super) fn on_initialized(&mut self, slot: u32) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        container.main_runs(true);
        let stopping = matches!(container.supervisor.state(), State::Stopping { .. });
        let kind = container.path.kind.clone();
        let is_ready = container.life.as_ref().is_some_and(|life| life.reported);
        let readiness = self.declared(slot, &kind);
        if stopping {
            self.ask_stop(slot, StopReason::Disabled);
        } else if readiness == Readiness::Initialized || is_ready {
            self.step(slot, Event::Ready);
        }
    }

    pub(super) fn declared(&self, slot: u32, kind: &str) -> Readiness {
        let container = self.containers.get(&slot);
        let plugin = container.and_then(|container| self.plugins.get(&container.path.library));
        let service = plugin.and_then(|plugin| plugin.loaded.declaration.service(kind));
        service.map_or(Readiness::Initialized, |service| service.readiness)
    }

    pub(super) fn on_ready(&mut self, id: ServiceId) {
        let Some(slot) = id.slot() else { return };
        if let Some(candidate) = self.candidates.get(&id) {
            let _ = candidate.try_send(life::Event::Ready);
            return;
        }
        let initialized = self
            .containers
            .get_mut(&slot)
            .filter(|container| container.is_now(id))
            .and_then(|container| container.life.as_mut())
            .map(|life| {
                life.reported = true;
                life.main_runs
            });
        if initialized == Some(true) {
            self.step(slot, Event::Ready);
        }
    }

    pub(super) fn on_returned(&mut self, slot: u32, result: Result<(), Failure>) {
        let name = self.bus.registry.name(slot).to_string();
        let stopping = self
            .containers
            .get(&slot)
            .is_some_and(|container| matches!(container.supervisor.state(), State::Stopping { .. }));
        let event = match &result {
            Ok(()) if stopping => Event::Returned { well: true },
            Ok(()) => {
                tracing::warn!("{name}: main returned without being asked to");
                self.with(slot, |container| container.record(What::Returned, None));
                Event::Returned { well: true }
            }
            Err(failure) if failure.status == PANICKED => {
                tracing::error!("{name}: crashed in main: {failure}");
                self.with(slot, |container| container.fail(What::Crashed, format!("main {failure}")));
                Event::Crashed
            }
            Err(failure) => {
                tracing::error!("{name}: main failed: {failure}");
                self.with(slot, |container| container.fail(What::Failed, format!("main: {failure}")));
                Event::Returned { well: false }
            }
        };
        self.ended(slot, event);
    }

    /// `main` is over, or never began: the thread waits for its next order.
    pub(super) fn ended(&mut self, slot: u32, event: Event) {
        let state = self.containers.get(&slot).map(|container| container.supervisor.state());
        if matches!(state, Some(State::Stopping { .. })) {
            let seat = self.containers.get_mut(&slot).and_then(|container| container.close());
            return self.order(slot, life::Order::End(seat));
        }
        self.step(slot, event);
    }

    /// An instance that was discarded or replaced, or is left behind, ends on its own.
    pub(super) fn on_retired(&mut self, id: ServiceId, event: life::Event) {
        match event {
            life::Event::Gone => {
                if self.retired.remove(&id).is_none() {
                    // It was to serve and never did. Its init may have asked for more since that was forgotten.
                    self.forget_candidate(id);
                }
                self.left.remove(&id);
                self.go_on();
            }
            life::Event::Returned(_) | life::Event::Failed { .. } | life::Event::Created(_) => {
                // Its thread is to be the last owner of the instance.
                drop(event);
                self.retired.get_mut(&id).into_iter().for_each(Retired::main_ended);
            }
            life::Event::Initialized | life::Event::Ready => {}
        }
    }

    pub(super) fn on_crash(&mut self, crash: Crash) {
        let id = ServiceId::instance(crash.slot, crash.serial);
        if !self.containers.get(&crash.slot).is_some_and(|container| container.is_now(id)) {
            return self.on_crash_of_old(id, &crash);
        }
        tracing::error!("{}: crashed in {}: {}", self.bus.registry.name(crash.slot), crash.step, crash.text);
        let reason = format!("{} {}", crash.step, crash.text);
        self.with(crash.slot, |container| container.fail(What::Crashed, reason));
        self.step(crash.slot, Event::Crashed);
    }

    fn on_crash_of_old(&self, id: ServiceId, crash: &Crash) {
        let name = self.bus.registry.name(crash.slot);
        tracing::error!("{name}: an instance that was replaced {} in {}", crash.text, crash.step);
        // Of many calls that panic in one instance the first has told what there is to tell.
        if let Some(retired) = self.retired.get(&id).filter(|retired| retired.drains()) {
            let (generation, hash) = retired.build();
            let cause = format!("{} of a replaced instance {}", crash.step, crash.text);
            self.history.record(Entry::new(name, What::Crashed).of_build(generation, hash).because(&cause));
        }
    }

    /// Names who was told to end and has not in time. It is waited for no more, and ends when it ends.
    pub(super) fn name_overdue(&mut self, now: Instant) {
        let before = self.left.len();
        for (id, retired) in &mut self.retired {
            let Some(limit) = retired.overdue(now) else { continue };
            let (name, limit) = (self.bus.who(*id), limit.as_secs_f64());
            let (generation, hash) = retired.build();
            let cause =
                format!("a replaced instance did not end within {limit} s (stop_timeout); left behind");
            tracing::error!("{name}: generation {generation} ({hash}): {cause}");
            let entry = Entry::new(name, What::LeftBehind);
            self.history.record(entry.of_build(generation, hash).because(&cause));
            self.left.insert(*id, format!("{name} (a replaced instance)"));
        }
        if self.left.len() > before {
            self.go_on();
        }
    }

    pub(super) fn on_drained(&mut self, id: ServiceId) {
        let name = self.bus.who(id).to_string();
        if let Some(retired) = self.retired.get_mut(&id) {
            retired.stop(&name, StopReason::Replaced);
        }
    }
}
