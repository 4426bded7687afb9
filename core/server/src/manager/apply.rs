//! The manager's part in `apply`: it says what lives, and makes new settings the ones in force, for one
//! service at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use zeph_contract::Error;

use super::Manager;
use super::container::Container;
use super::replace::subject;
use crate::history::What;
use crate::loader::Loaded;
use crate::messages::{Applying, Candidate, Subject, ToReplace, Wanted, World};
use crate::phase::Phase;
use crate::settings::{Living, ServiceOptions, ServicePath, ServiceSettings, Stance};
use crate::supervisor::{Event, State};

fn living(container: &Container) -> Living {
    let stance = match container.supervisor.state() {
        State::Enabled => Stance::Serves,
        State::Waiting { .. } | State::Blocked => Stance::Waits,
        State::Available | State::Ended => Stance::Rests,
        State::Starting | State::Stopping { .. } => Stance::Moves,
    };
    Living { path: container.path.clone(), settings: container.settings.clone(), stance }
}

fn gone(path: &ServicePath) -> Error {
    Error::not_found(format!("{path} is gone meanwhile"))
}

impl Manager {
    pub(super) fn on_applying(&mut self, step: Applying) {
        // Whoever asked may have gone: then nobody wants the answer.
        match step {
            Applying::Begin(ticket) => {
                let _ = ticket.send(self.world());
            }
            Applying::Opened(loaded) => {
                if !self.plugins.contains_key(&loaded.name) {
                    self.register(loaded, "a service of it was added");
                }
            }
            Applying::Options { path, options, ticket } => {
                let _ = ticket.send(self.set_options(&path, options));
            }
            Applying::Settings { path, settings, ticket } => {
                let _ = ticket.send(self.want_settings(&path, settings));
            }
            Applying::Commit { loaded, candidate, options, ticket } => {
                let _ = ticket.send(self.commit_settings(&loaded, candidate, options));
            }
            Applying::End { order, refused } => self.end_applying(&order, refused),
        }
    }

    fn world(&self) -> Result<World, Error> {
        if self.phases.now() != Phase::Ready {
            let text = "the server starts or stops; settings are not applied meanwhile";
            return Err(Error::unavailable(text));
        }
        let plugins = self.plugins.values().map(|plugin| plugin.loaded.clone()).collect();
        let containers = self.order.iter().filter_map(|slot| self.containers.get(slot));
        Ok(World { plugins, services: containers.map(living).collect() })
    }

    fn set_options(&mut self, path: &ServicePath, options: ServiceOptions) -> Result<(), Error> {
        let container = self.containers.values_mut().find(|container| container.path == *path);
        let container = container.ok_or_else(|| gone(path))?;
        container.set_options(options);
        let slot = container.slot;
        self.renew_needs(slot);
        Ok(())
    }

    /// A service that serves is to be replaced; any other one begins with these settings when it begins.
    fn want_settings(&mut self, path: &ServicePath, settings: ServiceSettings) -> Result<ToReplace, Error> {
        let container = self.containers.values_mut().find(|container| container.path == *path);
        let container = container.ok_or_else(|| gone(path))?;
        let busy = || Error::busy(format!("{path} is just starting or stopping; try again"));
        let (slot, state) = (container.slot, container.supervisor.state());
        match state {
            State::Starting | State::Stopping { .. } => return Err(busy()),
            State::Enabled => {
                let subject = subject(container).ok_or_else(busy)?;
                let plugin = self.plugins.get(&path.library).ok_or_else(|| gone(path))?;
                let ServiceSettings { values, options } = settings;
                let subject = Subject { wanted: Wanted::These(values), options, ..subject };
                return Ok(Some((plugin.loaded.clone(), subject)));
            }
            State::Available | State::Ended | State::Blocked | State::Waiting { .. } => {}
        }
        container.set_options(settings.options);
        container.settings.values = settings.values;
        self.renew_needs(slot);
        if state != State::Available {
            // There may be an instance with the old ones; who could not run with those may run with these.
            self.wish(slot, Event::NewBuild, "its settings changed");
        }
        Ok(None)
    }

    fn commit_settings(
        &mut self,
        loaded: &Arc<Loaded>,
        candidate: Candidate,
        options: ServiceOptions,
    ) -> Result<(), Error> {
        let (slot, serial) = (candidate.slot, candidate.id.serial());
        let container = self.containers.get_mut(&slot).filter(|container| container.reloading);
        let is_stopping = self.phases.now() == Phase::Stopping;
        let Some(container) = container.filter(|_| !is_stopping) else {
            return Err(Error::unavailable("the server stops"));
        };
        container.set_options(options);
        self.take_over(loaded, (What::Applied, "its settings changed"), candidate);
        // With other settings it may listen elsewhere. Before what was postponed may give it a successor.
        self.listeners.keep_only(self.bus.registry.name(slot), serial);
        self.release(&loaded.name);
        Ok(())
    }

    fn end_applying(&mut self, order: &[ServicePath], mut refused: BTreeMap<ServicePath, String>) {
        for container in self.containers.values_mut() {
            container.settings_refused = refused.remove(&container.path);
        }
        // The stop goes the other way round. Who is not listed came later than all who are.
        let containers = &self.containers;
        let place = |slot: &u32| {
            let path = containers.get(slot).map(|container| &container.path);
            order.iter().position(|listed| Some(listed) == path).unwrap_or(usize::MAX)
        };
        self.order.sort_by_key(place);
    }
}
