//! What services need before they start: who waits for whom, and what is made and started for them.
//!
//! A need counts for a start only. A service that is up reaches others by name, and goes on when one of
//! them goes down.

use std::collections::HashSet;

use serde_json::{Map, Value};
use zeph_contract::Error;

use super::order::{circle, is_meant};
use super::{Container, Manager};
use crate::registry::Down;
use crate::settings::ServicePath;
use crate::supervisor::{Event, Needs, State};

/// Something that is needed and not ready.
struct Lack {
    /// The service's path; the need itself, where nothing of it is there.
    name: String,
    slot: Option<u32>,
}

/// Why a service cannot be made just now.
pub(super) enum Obstacle {
    /// This library must be opened first.
    Closed(String),
    /// It cannot be made at all.
    Refused(Error),
}

impl From<Error> for Obstacle {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// A way along needs, from a service to what it needs in the end.
#[derive(Default)]
pub(super) struct Way {
    /// From the first to the one that is looked at now.
    chain: Vec<ServicePath>,
    /// These are in order.
    seen: HashSet<ServicePath>,
}

/// The same along what blocked services lack, by slot. Each is looked at once: whoever is in `seen` and no
/// longer in the chain is on its way.
#[derive(Default)]
struct Lacking {
    chain: Vec<u32>,
    seen: HashSet<u32>,
}

fn is_ready(container: &Container) -> bool {
    matches!(container.supervisor.state(), State::Enabled | State::Ended)
}

impl Manager {
    /// Whether everything that a service needs is ready.
    pub(super) fn needs(&self, slot: u32) -> Needs {
        if self.lacks(slot).is_empty() { Needs::Met } else { Needs::Missing }
    }

    /// What a blocked service waits for.
    pub(super) fn waits_for(&self, container: &Container) -> Vec<String> {
        match container.supervisor.state() {
            State::Blocked => self.lacks(container.slot).into_iter().map(|lack| lack.name).collect(),
            _ => Vec::new(),
        }
    }

    fn meant(&self, need: &str) -> Vec<u32> {
        let of_need = |slot: &&u32| self.containers.get(slot).is_some_and(|c| is_meant(need, &c.path));
        self.order.iter().filter(of_need).copied().collect()
    }

    fn lacks(&self, slot: u32) -> Vec<Lack> {
        let Some(container) = self.containers.get(&slot) else { return Vec::new() };
        let mut lacks = Vec::new();
        for need in &container.needs {
            let meant = self.meant(need);
            if meant.is_empty() {
                lacks.push(Lack { name: need.clone(), slot: None });
            }
            let containers = meant.iter().filter_map(|slot| self.containers.get(slot));
            lacks.extend(
                containers
                    .filter(|container| !is_ready(container))
                    .map(|container| Lack { name: container.path.to_string(), slot: Some(container.slot) }),
            );
        }
        lacks
    }

    /// Why a blocked service will not start soon. None: everything that it waits for is on its way.
    pub(super) fn standstill(&self, slot: u32) -> Option<String> {
        self.look_for_standstill(slot, &mut Lacking::default())
    }

    fn look_for_standstill(&self, slot: u32, way: &mut Lacking) -> Option<String> {
        if let Some(start) = way.chain.iter().position(|known| *known == slot) {
            let path = |slot: &u32| self.containers.get(slot).map(|container| &container.path);
            return Some(circle(way.chain[start..].iter().filter_map(path)));
        }
        if !way.seen.insert(slot) {
            return None;
        }
        way.chain.push(slot);
        let reason = self.lacks(slot).into_iter().find_map(|lack| {
            let reason = match lack.slot {
                Some(slot) => self.why_not_ready(slot, way)?,
                None => "nothing of this name is there".into(),
            };
            Some(format!("it waits for {}: {reason}", lack.name))
        });
        way.chain.pop();
        reason
    }

    /// Why a service is not about to get ready.
    fn why_not_ready(&self, slot: u32, way: &mut Lacking) -> Option<String> {
        let container = self.containers.get(&slot)?;
        match container.supervisor.state() {
            State::Starting | State::Stopping { again: true } => None,
            State::Blocked => self.look_for_standstill(slot, way),
            _ => match self.bus.registry.slot(u64::from(slot)).map(|place| place.down()) {
                Some(Down::Off(reason)) => Some(reason),
                _ => Some(container.failure.clone().unwrap_or_else(|| "it does not run".into())),
            },
        }
    }

    /// Starts who has what it needs by now, and says of the others why they do not start.
    pub(super) fn see_to_blocked(&mut self) {
        if self.is_stopping() {
            return;
        }
        let containers = self.containers.values();
        let blocked = containers.filter(|container| container.supervisor.state() == State::Blocked);
        let blocked: Vec<u32> = blocked.map(|container| container.slot).collect();
        for slot in blocked {
            match self.needs(slot) {
                Needs::Met => self.step(slot, Event::NeedsReady),
                Needs::Missing => self.say_why_blocked(slot),
            }
        }
    }

    fn say_why_blocked(&mut self, slot: u32) {
        let reason = self.standstill(slot);
        let down = reason.clone().map_or(Down::Coming, Down::Off);
        let place = self.bus.registry.slot(u64::from(slot));
        if let Some(place) = place.filter(|place| place.down() != down) {
            place.set_down(down);
        }
        if let Some(reason) = reason {
            self.with(slot, |container| container.fail_starts(&reason));
        }
    }

    /// Starts what a service needs and what does not run, the first of it first.
    pub(super) fn start_needs(&mut self, slot: u32) {
        self.start_lacking(slot, &mut HashSet::from([slot]));
    }

    fn start_lacking(&mut self, slot: u32, seen: &mut HashSet<u32>) {
        for needed in self.lacks(slot).into_iter().filter_map(|lack| lack.slot) {
            if seen.insert(needed) {
                self.start_lacking(needed, seen);
                self.wish(needed, Event::Start, format!("{} needs it", self.bus.registry.name(slot)));
            }
        }
    }

    /// Makes a service that is not there yet, after all that it needs. It does not run then. `extra` are
    /// settings that count more than those of the file.
    pub(super) fn make(
        &mut self,
        name: &str,
        extra: Map<String, Value>,
        way: &mut Way,
    ) -> Result<u32, Obstacle> {
        let library = name.split('/').next().unwrap_or(name);
        let Some(plugin) = self.plugins.get(library) else {
            return Err(Obstacle::Closed(library.into()));
        };
        let loaded = plugin.loaded.clone();
        let path = self.path_in(name, &loaded)?;
        let listed = super::listed(&self.settings.get(), path, &loaded, extra)
            .map_err(|faults| Error::invalid(faults.to_string()))?;
        self.make_needs(&listed.path, &listed.needs, way)?;
        let slot = self.add(listed)?;
        self.note(slot, State::Available);
        Ok(slot)
    }

    /// Makes what the services of these slots need, where it is not there.
    pub(super) fn make_needs_of(&mut self, slots: &[u32]) -> Result<(), Obstacle> {
        let mut way = Way::default();
        for slot in slots {
            if let Some((path, needs)) = self.with(*slot, |c| (c.path.clone(), c.needs.clone())) {
                self.make_needs(&path, &needs, &mut way)?;
            }
        }
        Ok(())
    }

    fn make_needs(&mut self, path: &ServicePath, needs: &[String], way: &mut Way) -> Result<(), Obstacle> {
        way.chain.push(path.clone());
        for need in needs {
            if let Some(start) = way.chain.iter().position(|known| is_meant(need, known)) {
                return Err(Error::invalid(circle(way.chain[start..].iter())).into());
            }
            let meant = self.meant(need);
            if meant.is_empty() {
                self.make_need(path, need, way)?;
            }
            for slot in meant {
                let next = self.with(slot, |container| (container.path.clone(), container.needs.clone()));
                if let Some((path, needs)) = next.filter(|(path, _)| !way.seen.contains(path)) {
                    self.make_needs(&path, &needs, way)?;
                }
            }
        }
        way.seen.extend(way.chain.pop());
        Ok(())
    }

    fn make_need(&mut self, path: &ServicePath, need: &str, way: &mut Way) -> Result<(), Obstacle> {
        let library = need.split('/').next().unwrap_or(need);
        if !self.plugins.contains_key(library) && self.settings.get().library_file(library).is_none() {
            let text = format!("{path} needs {need}, and there is no lib{library}.so in PLUGIN_PATH");
            return Err(Error::not_found(text).into());
        }
        match self.make(need, Map::new(), way) {
            Ok(_) => Ok(()),
            Err(Obstacle::Refused(error)) => {
                Err(Error { text: format!("{path} needs {need}: {}", error.text), ..error }.into())
            }
            Err(closed) => Err(closed),
        }
    }
}
