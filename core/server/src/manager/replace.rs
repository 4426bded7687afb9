//! The manager's part in a reload: it says which services run, leaves them alone for the last steps, and
//! makes the new instances the present ones when the reloader says so.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use zeph_abi::{Seat, ServiceId, StopReason};
use zeph_contract::Error;
use zeph_contract::event::Change;

use super::Manager;
use super::back::Watch;
use super::container::{Container, Life, Retired};
use crate::bus::Bus;
use crate::life;
use crate::loader::Loaded;
use crate::messages::{Candidate, Message, Replacing, Standing, Subject, Way};
use crate::supervisor::{Event, State};

fn subject(container: &Container) -> Option<Subject> {
    let life = container.life.as_ref()?;
    Some(Subject {
        id: life.id,
        slot: container.slot,
        path: container.path.clone(),
        loaded: life.loaded.clone(),
        values: container.settings.values.clone(),
        options: container.settings.options.clone(),
        instance: life.instance.clone()?,
        seat: life.seat?,
    })
}

impl Manager {
    pub(super) fn on_replacing(&mut self, step: Replacing) {
        match step {
            Replacing::Begin { library, but, ticket } => {
                let _ = ticket.send(self.subjects(&library, but));
            }
            Replacing::Hold { library, but, ids, ticket } => {
                let held = self.hold(&library, but, &ids);
                let _ = ticket.send(held);
            }
            Replacing::Candidate { id, events } => {
                self.candidates.insert(id, events);
            }
            Replacing::Commit { loaded, candidates, way, ticket } => {
                let done = self.commit(loaded, candidates, way);
                let _ = ticket.send(done);
            }
            Replacing::Abort { library, refused } => self.abort(&library, refused),
            Replacing::Unchanged { library } => {
                self.plugins.get_mut(&library).into_iter().for_each(|plugin| plugin.refused = None);
            }
            Replacing::Forget { id } => {
                self.candidates.remove(&id);
                if let Some(slot) = id.slot() {
                    self.bus.cancel_calls_by(slot, id.serial());
                    self.bus.clock.forget(slot, id.serial());
                    self.bus.subscriptions.forget(slot, id.serial());
                }
            }
        }
    }

    /// What is to be replaced, as it stands now, but for what runs with a generation. Nothing is held yet.
    fn subjects(&self, library: &str, but: Option<u32>) -> Result<Standing, Error> {
        let Some(plugin) = self.plugins.get(library) else {
            return Err(Error::not_found(format!(
                "plugin `{library}` is not loaded; start it: zephserver start {library}"
            )));
        };
        if self.is_stopping() || self.startup.is_some() {
            return Err(Error::unavailable("the server starts or stops; nothing is reloaded meanwhile"));
        }
        let (loaded, newest, refused) = (plugin.loaded.clone(), plugin.newest, plugin.refused.clone());
        let is_meant = |c: &&Container| but.is_none() || c.life.as_ref().map(|life| life.generation) != but;
        let mut subjects = Vec::new();
        for container in self.of_library(library).filter(is_meant) {
            match container.supervisor.state() {
                State::Enabled => subjects.extend(subject(container)),
                State::Starting | State::Stopping { .. } => {
                    let text = format!("{} is just starting or stopping; try again", container.path);
                    return Err(Error::busy(text));
                }
                State::Available | State::Ended | State::Waiting { .. } => {}
            }
        }
        Ok(Standing { loaded, newest, subjects, refused })
    }

    pub(super) fn of_library(&self, library: &str) -> impl Iterator<Item = &Container> {
        let containers = self.order.iter().filter_map(|slot| self.containers.get(slot));
        containers.filter(move |container| container.path.library == library)
    }

    /// Leaves these services alone from now on, if they are still the same, and all that run but for those of
    /// a generation.
    fn hold(&mut self, library: &str, but: u32, ids: &[ServiceId]) -> Result<(), Error> {
        if self.is_stopping() {
            return Err(Error::unavailable("the server stops"));
        }
        let is_same = |id: &ServiceId| {
            let container = id.slot().and_then(|slot| self.containers.get(&slot));
            container.is_some_and(|c| c.is_now(*id) && c.supervisor.state() == State::Enabled)
        };
        if let Some(changed) = ids.iter().find(|id| !is_same(id)) {
            return Err(Error::busy(format!("{} changed meanwhile; try again", self.bus.who(*changed))));
        }
        let runs = |c: &&Container| {
            c.life.as_ref().is_none_or(|life| life.generation != but)
                && matches!(c.supervisor.state(), State::Starting | State::Enabled | State::Stopping { .. })
        };
        if self.of_library(library).filter(runs).count() != ids.len() {
            return Err(Error::busy(format!("a service of {library} started meanwhile; try again")));
        }
        for slot in ids.iter().filter_map(|id| id.slot()) {
            self.with(slot, |container| container.reloading = true);
        }
        Ok(())
    }

    fn commit(
        &mut self,
        loaded: Arc<Loaded>,
        mut candidates: Vec<Candidate>,
        way: Way,
    ) -> Result<(), Vec<Candidate>> {
        let is_held = |candidate: &Candidate| {
            self.containers.get(&candidate.slot).is_some_and(|container| container.reloading)
        };
        if self.is_stopping() || !candidates.iter().all(is_held) {
            return Err(candidates);
        }
        if way != Way::Follow {
            let watch = self.begin_watch(&loaded, &mut candidates, way);
            self.make_present(&loaded, way, watch);
        }
        for candidate in candidates {
            self.take_over(&loaded, candidate);
        }
        if way != Way::Follow {
            self.renew_others(&loaded, |_| true);
        }
        // Last: what was postponed may be that the new build has failed already.
        self.release(&loaded.name);
        Ok(())
    }

    /// New instances are made of this build from now on.
    fn make_present(&mut self, loaded: &Arc<Loaded>, way: Way, watch: Option<Watch>) {
        let Some(plugin) = self.plugins.get_mut(&loaded.name) else { return };
        self.generations += 1;
        plugin.newest = plugin.newest.max(loaded.generation);
        plugin.loaded = loaded.clone();
        plugin.watch = watch;
        // A file that was refused before a rollback is so after it.
        plugin.refused = plugin.refused.take().filter(|(bad, _)| way == Way::Back && *bad != loaded.hash);
    }

    /// Has services of a library that are not handed over begin with its present build.
    pub(super) fn renew_others(&mut self, loaded: &Loaded, is_meant: impl Fn(&Container) -> bool) {
        let is_old = |c: &&Container| c.life.as_ref().is_none_or(|life| life.generation != loaded.generation);
        let others: Vec<(u32, State)> = self
            .of_library(&loaded.name)
            .filter(|container| is_old(container) && is_meant(container))
            .map(|container| (container.slot, container.supervisor.state()))
            .collect();
        for (slot, state) in others {
            self.renew(slot, state);
        }
    }

    fn renew(&mut self, slot: u32, state: State) {
        match state {
            // Who came to life during the last steps did so with the old build.
            State::Starting | State::Enabled => {
                self.step(slot, Event::Stop);
                self.step(slot, Event::Start);
            }
            // Whoever calls it next gets an instance of the new build.
            State::Ended => {
                self.discard(slot, StopReason::Replaced);
                self.with(slot, |container| container.supervisor.lost_instance());
            }
            // Who could not run with the old build may run with the new one.
            State::Waiting { .. } => {
                self.discard(slot, StopReason::Replaced);
                self.with(slot, |container| container.supervisor.lost_instance());
                self.step(slot, Event::Start);
            }
            State::Available | State::Stopping { .. } => {}
        }
    }

    fn take_over(&mut self, loaded: &Arc<Loaded>, candidate: Candidate) {
        let Candidate { slot, id, orders, instance, values, inherits, events, returned, .. } = candidate;
        self.candidates.remove(&id);
        // This thread forwards them: whatever came before now is in the channel.
        let later = events.try_iter().filter_map(|event| match event {
            life::Event::Returned(result) => Some(result),
            _ => None,
        });
        let returned = returned.into_iter().chain(later).last();
        let main_runs = returned.is_none();
        let Some(place) = self.bus.registry.slot(u64::from(slot)) else { return };
        let Some(container) = self.containers.get_mut(&slot) else { return };
        let seat = place.gate.seat(instance.clone(), id.serial());
        let mut new = Life::new(id, loaded, orders);
        (new.instance, new.seat, new.main_runs, new.reported) = (Some(instance), Some(seat), main_runs, true);
        let old = container.life.replace(new);
        container.settings.values = values;
        // It was another build's.
        container.checkpoint = None;
        container.since = SystemTime::now();
        // What happened to the old instance meanwhile does not concern the new one; a wish to stop does.
        container.postponed.retain(|event| matches!(event, Event::Stop | Event::Start));
        container.supervisor.replaced(container.settings.options.clone());
        if !inherits {
            self.bus.subscriptions.keep_only(slot, id.serial());
            self.bus.clock.keep_only(slot, id.serial());
        }
        place.generation.store(loaded.generation, Ordering::Relaxed);
        place.gate.admit(seat);
        tracing::info!("{}: generation {} serves", place.name, loaded.generation);
        // Without state it begins from nothing, and others may have to tell it again what it knew.
        self.tell_change(slot, if inherits { Change::Reloaded } else { Change::Ready });
        if let Some(old) = old {
            self.drain(old);
        }
        if let Some(result) = returned {
            self.on_returned(slot, result);
        }
    }

    /// Lets an old instance finish its calls and jobs; then it is asked to stop.
    fn drain(&mut self, old: Life) {
        let (id, seat) = (old.id, old.seat);
        self.retired.insert(id, Retired::new(old));
        self.mark_stopping(id);
        let (bus, sender, limit) = (self.bus.clone(), self.sender.clone(), self.bus.limits.drain_timeout);
        let drained = std::thread::Builder::new().name("zephserver-drain".into()).spawn(move || {
            wait_until_drained(&bus, id, seat, limit);
            let _ = sender.send(Message::Drained(id));
        });
        if let Err(error) = drained {
            tracing::error!("{}: not drained: no thread: {error}", self.bus.who(id));
            self.on_drained(id);
        }
    }

    fn abort(&mut self, library: &str, refused: Option<(String, String)>) {
        if let (Some(plugin), Some(refused)) = (self.plugins.get_mut(library), refused) {
            plugin.refused = Some(refused);
        }
        self.release(library);
    }

    /// The reload is over, one way or the other: what was postponed happens now.
    pub(super) fn release(&mut self, library: &str) {
        let held: Vec<u32> = self
            .containers
            .values()
            .filter(|container| container.reloading && container.path.library == library)
            .map(|container| container.slot)
            .collect();
        for slot in held {
            let postponed = self.with(slot, |container| {
                container.reloading = false;
                std::mem::take(&mut container.postponed)
            });
            for event in postponed.into_iter().flatten() {
                self.step(slot, event);
            }
        }
    }
}

/// Waits until an instance has no call inside and no job left; cancels the jobs at the limit.
fn wait_until_drained(bus: &Bus, id: ServiceId, seat: Option<&'static Seat>, limit: Duration) {
    let deadline = Instant::now() + limit;
    let is_idle = || bus.pending.of_callee(id) == 0 && seat.is_none_or(|seat| seat.inside() == 0);
    while !is_idle() && Instant::now() < deadline {
        match seat {
            Some(seat) if seat.inside() > 0 => {
                seat.quiesce(deadline.min(Instant::now() + Duration::from_millis(20)));
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    if !is_idle() {
        let text =
            format!("{}: not done {} s after a new generation took over", bus.who(id), limit.as_secs());
        tracing::warn!("{text}");
        bus.fail_calls_of(id, &Error::cancelled(text));
    }
}
