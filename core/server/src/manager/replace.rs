//! The manager's part in a reload: it says which services run, leaves them alone for the last steps, and
//! makes the new instances the present ones when the reloader says so.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use zeph_abi::{Seat, ServiceId};
use zeph_contract::Error;
use zeph_contract::event::Change;

use super::Manager;
use super::back::Watch;
use super::container::{Container, Life, Retired};
use crate::bus::Bus;
use crate::history::What;
use crate::life;
use crate::loader::Loaded;
use crate::messages::{Candidate, Direction, Extent, Message, Replacing, Standing, Subject, Wanted};
use crate::settings::Reload;
use crate::supervisor::{Event, State};

/// Why a service starts that was not replaced.
const NEW_BUILD: &str = "a new build was loaded";

pub(super) fn subject(container: &Container) -> Option<Subject> {
    let life = container.life.as_ref()?;
    Some(Subject {
        id: life.id,
        slot: container.slot,
        path: container.path.clone(),
        loaded: life.loaded.clone(),
        values: container.settings.values.clone(),
        wanted: if container.settings_refused.is_some() { Wanted::Kept } else { Wanted::OfFile },
        options: container.settings.options.clone(),
        instance: life.instance.clone()?,
        steps: life.steps.clone(),
        seat: life.seat?,
    })
}

impl Manager {
    pub(super) fn on_replacing(&mut self, step: Replacing) {
        match step {
            Replacing::Begin { library, but, ticket } => {
                let _ = ticket.send(self.subjects(&library, but));
            }
            Replacing::Hold { library, extent, ids, ticket } => {
                let held = self.hold(&library, extent, &ids);
                let _ = ticket.send(held);
            }
            Replacing::Candidate { id, events } => {
                self.candidates.insert(id, events);
            }
            Replacing::Commit { loaded, direction, candidates, ticket } => {
                let done = self.commit(&loaded, direction, candidates);
                let _ = ticket.send(done);
            }
            Replacing::Abort { library, refused } => self.abort(&library, refused),
            Replacing::Unchanged { library } => {
                if let Some(plugin) = self.plugins.get_mut(&library) {
                    (plugin.refused, plugin.waiting) = (None, None);
                }
            }
            Replacing::Waits { library, hash } => self.let_wait(&library, hash),
            Replacing::Forget { id } => {
                self.candidates.remove(&id);
                self.forget_candidate(id);
            }
        }
    }

    /// What a new instance had asked for that never served is void.
    pub(super) fn forget_candidate(&self, id: ServiceId) {
        if let Some(slot) = id.slot() {
            self.bus.cancel_calls_by(slot, id.serial());
            self.bus.clock.forget(slot, id.serial());
            self.bus.subscriptions.forget(slot, id.serial());
            self.listeners.forget(self.bus.registry.name(slot), id.serial());
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
                State::Available | State::Blocked | State::Ended | State::Waiting { .. } => {}
            }
        }
        let is_manual = |container: &Container| container.settings.options.reload == Reload::Manual;
        let reload = if self.of_library(library).any(is_manual) { Reload::Manual } else { Reload::Automatic };
        Ok(Standing { loaded, newest, subjects, refused, reload })
    }

    pub(super) fn of_library(&self, library: &str) -> impl Iterator<Item = &Container> {
        let containers = self.order.iter().filter_map(|slot| self.containers.get(slot));
        containers.filter(move |container| container.path.library == library)
    }

    /// Leaves these services alone from now on, if they are still the same, and all that is to be replaced.
    fn hold(&mut self, library: &str, extent: Extent, ids: &[ServiceId]) -> Result<(), Error> {
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
        if let Extent::Library { but } = extent {
            let runs = |c: &&Container| {
                c.life.as_ref().is_none_or(|life| life.generation != but)
                    && matches!(
                        c.supervisor.state(),
                        State::Starting | State::Enabled | State::Stopping { .. }
                    )
            };
            if self.of_library(library).filter(runs).count() != ids.len() {
                return Err(Error::busy(format!("a service of {library} started meanwhile; try again")));
            }
        }
        for slot in ids.iter().filter_map(|id| id.slot()) {
            self.with(slot, |container| container.reloading = true);
        }
        Ok(())
    }

    fn commit(
        &mut self,
        loaded: &Arc<Loaded>,
        direction: Direction,
        mut candidates: Vec<Candidate>,
    ) -> Result<(), Error> {
        let is_held = |candidate: &Candidate| {
            self.containers.get(&candidate.slot).is_some_and(|container| container.reloading)
        };
        if self.is_stopping() || !candidates.iter().all(is_held) {
            return Err(Error::unavailable("the server stops"));
        }
        if direction != Direction::Follow {
            let watch = self.begin_watch(loaded, &mut candidates, direction);
            self.make_present(loaded, direction, watch);
        }
        for candidate in candidates {
            self.take_over(loaded, direction.in_history(), candidate);
        }
        if direction != Direction::Follow {
            // Who failed with the old build, rests with it, or came to life during the last steps.
            self.renew_others(loaded, NEW_BUILD, |_| true);
        }
        // Last: what was postponed may be that the new build has failed already.
        self.release(&loaded.name);
        Ok(())
    }

    /// New instances are made of this build from now on.
    fn make_present(&mut self, loaded: &Arc<Loaded>, direction: Direction, watch: Option<Watch>) {
        let (_, cause) = direction.in_history();
        self.note_loaded(loaded, cause);
        let Some(plugin) = self.plugins.get_mut(&loaded.name) else { return };
        plugin.newest = plugin.newest.max(loaded.generation);
        plugin.loaded = loaded.clone();
        plugin.watch = watch;
        // A file that was refused, or waited, before a rollback does so after it.
        let stays = |hash: &String| direction == Direction::Back && *hash != loaded.hash;
        plugin.refused = plugin.refused.take().filter(|(bad, _)| stays(bad));
        plugin.waiting = plugin.waiting.take().filter(stays);
        // Who is carried over gets its own with the new instance; all others begin with these some day.
        self.renew_settings(loaded, &HashMap::new());
    }

    /// Has services of a library that are not handed over begin with its present build.
    pub(super) fn renew_others(
        &mut self,
        loaded: &Loaded,
        reason: &'static str,
        is_meant: impl Fn(&Container) -> bool,
    ) {
        let is_other = |c: &&Container| {
            c.life.as_ref().is_none_or(|life| life.generation != loaded.generation)
                && c.supervisor.state() != State::Available
                && is_meant(c)
        };
        let others: Vec<u32> = self.of_library(&loaded.name).filter(is_other).map(|c| c.slot).collect();
        for slot in others {
            self.wish(slot, Event::NewBuild, reason);
        }
    }

    pub(super) fn take_over(
        &mut self,
        loaded: &Arc<Loaded>,
        (what, cause): (What, &str),
        candidate: Candidate,
    ) {
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
        let (old, stop_timeout) = (container.replace_life(new), container.settings.options.stop_timeout);
        container.record(what, Some(cause));
        container.settings.values = values;
        // It was another build's.
        container.checkpoint = None;
        container.since = SystemTime::now();
        // What happened to the old instance meanwhile does not concern the new one; a wish to stop does.
        container.postponed.keep_wishes();
        if inherits {
            self.bus.subscriptions.inherit(slot, id.serial());
        } else {
            self.bus.subscriptions.keep_only(slot, id.serial());
            self.bus.clock.keep_only(slot, id.serial());
        }
        place.generation.store(loaded.generation, Ordering::Relaxed);
        place.instance.store(id.serial(), Ordering::Relaxed);
        place.gate.admit(seat);
        self.bus.tell_serving(slot);
        if !inherits {
            // When it asked who is up, the one before was told.
            self.bus.subscriptions.greet(slot);
        }
        tracing::info!("{}: generation {} serves", place.name, loaded.generation);
        // Without state it begins from nothing, and others may have to tell it again what it knew.
        self.tell_change(slot, if inherits { Change::Reloaded } else { Change::Ready });
        self.renew_needs(slot);
        if let Some(old) = old {
            self.drain(old, stop_timeout);
        }
        if let Some(result) = returned {
            self.on_returned(slot, result);
        }
    }

    /// Lets an old instance finish its calls and jobs; then it is asked to stop.
    fn drain(&mut self, old: Life, stop_timeout: Duration) {
        let (id, seat) = (old.id, old.seat);
        self.retired.insert(id, Retired::new(old, stop_timeout));
        self.mark_stopping(id);
        let (bus, sender, limit) =
            (self.bus.clone(), self.sender.clone(), self.bus.settings.look().limits.drain_timeout);
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
            (plugin.refused, plugin.waiting) = (Some(refused), None);
        }
        self.release(library);
    }

    /// A newer file is there, and an operator wants to say when it is loaded.
    fn let_wait(&mut self, library: &str, hash: String) {
        let Some(plugin) = self.plugins.get_mut(library) else { return };
        plugin.refused = None;
        if plugin.waiting.as_ref() != Some(&hash) {
            plugin.waiting = Some(hash);
            tracing::info!("{library}: new build {}", plugin.waiting_build().unwrap_or_default());
        }
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
            self.with(slot, |container| container.reloading = false);
            // Not taken as a whole: until a stop has had its turn, who waits for it is to wait on.
            while let Some(event) = self.with(slot, |container| container.postponed.take_first()).flatten() {
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
