//! The start and the stop of all services, one after the other.

use std::collections::VecDeque;
use std::time::Instant;

use crossbeam_channel::Sender;
use zeph_abi::{ServiceId, StopReason};
use zeph_contract::Error;

use super::Manager;
use crate::settings::ServiceOptions;
use crate::supervisor::{Event, State};

/// The start of the whole server.
pub struct Startup {
    /// Still to be started, in order.
    rest: VecDeque<u32>,
    current: Option<u32>,
    ticket: Sender<Result<(), String>>,
}

/// How the start of one service goes.
enum Progress {
    Done,
    Waits,
    Failed(String),
}

/// The stop of the whole server.
pub struct Shutdown {
    rest: Vec<u32>,
    current: Option<u32>,
    /// Until when replaced instances are waited for, once all services have stopped.
    pub until: Option<Instant>,
    ticket: Sender<Vec<String>>,
}

impl Manager {
    pub(super) fn start_all(&mut self, ticket: Sender<Result<(), String>>) {
        if self.is_stopping() {
            let _ = ticket.send(Err("it was stopped while it started".into()));
            return;
        }
        self.startup = Some(Startup { rest: self.order.iter().copied().collect(), current: None, ticket });
        self.go_on();
    }

    pub(super) fn stop_all(&mut self, ticket: Sender<Vec<String>>) {
        if let Some(startup) = self.startup.take() {
            let _ = startup.ticket.send(Err("it was stopped while it started".into()));
        }
        // A reload that is under way is over: its commit will be refused.
        let libraries: Vec<String> = self.plugins.keys().cloned().collect();
        libraries.iter().for_each(|library| self.release(library));
        let names: Vec<(ServiceId, String)> =
            self.retired.keys().map(|id| (*id, self.bus.who(*id).to_string())).collect();
        for (id, name) in names {
            self.bus.fail_calls_of(id, &Error::cancelled("the server stops"));
            self.retired
                .get_mut(&id)
                .into_iter()
                .for_each(|retired| retired.stop(&name, StopReason::Replaced));
        }
        self.shutdown = Some(Shutdown { rest: self.order.clone(), current: None, until: None, ticket });
        self.go_on();
    }

    /// Goes on with the start or the stop of the whole server.
    pub(super) fn go_on(&mut self) {
        // What it does leads here again, for each of perhaps thousands of services: they take turns.
        if std::mem::replace(&mut self.goes_on, true) {
            return;
        }
        self.go_on_starting();
        self.go_on_stopping();
        self.goes_on = false;
    }

    fn go_on_starting(&mut self) {
        while let Some(current) = self.startup.as_ref().map(|startup| startup.current) {
            match current.map_or(Progress::Done, |slot| self.progress(slot)) {
                Progress::Waits => return,
                Progress::Failed(reason) => return self.end_start(Err(reason)),
                Progress::Done => {}
            }
            let Some(startup) = &mut self.startup else { return };
            startup.current = startup.rest.pop_front();
            match startup.current {
                Some(slot) if !self.containers.contains_key(&slot) => {}
                Some(slot) => self.wish(slot, Event::Start, "the server starts"),
                None => self.end_start(Ok(())),
            }
        }
    }

    fn end_start(&mut self, result: Result<(), String>) {
        if let Some(startup) = self.startup.take() {
            let _ = startup.ticket.send(result);
        }
    }

    /// How the start of a service goes that is part of the start of the whole.
    fn progress(&self, slot: u32) -> Progress {
        let Some(container) = self.containers.get(&slot) else { return Progress::Done };
        let reason = match container.supervisor.state() {
            State::Enabled | State::Ended => return Progress::Done,
            State::Starting if container.failure_count == 0 => return Progress::Waits,
            State::Blocked => match self.standstill(slot) {
                Some(reason) => reason,
                None => return Progress::Waits,
            },
            _ => container.failure.clone().unwrap_or_else(|| "it did not start".into()),
        };
        if container.settings.options.optional {
            return Progress::Done;
        }
        Progress::Failed(format!("{}: {reason}", container.path))
    }

    fn go_on_stopping(&mut self) {
        while let Some(shutdown) = &mut self.shutdown {
            if let Some(slot) = shutdown.current {
                match self.containers.get(&slot).map(|container| container.supervisor.state()) {
                    Some(State::Available) | None => shutdown.current = None,
                    Some(_) => return,
                }
            }
            match shutdown.rest.pop() {
                Some(slot) => {
                    shutdown.current = Some(slot);
                    self.wish(slot, Event::Stop, "the server stops");
                }
                None => {
                    let now = Instant::now();
                    let until = *shutdown.until.get_or_insert(now + ServiceOptions::default().stop_timeout);
                    let ending = |id: &ServiceId| !self.left.contains_key(id);
                    let names: Vec<String> = self
                        .retired
                        .keys()
                        .filter(|id| ending(id))
                        .map(|id| format!("{} (a replaced instance)", self.bus.who(*id)))
                        .collect();
                    if !names.is_empty() && now < until {
                        return;
                    }
                    let left = self.left.values().cloned().chain(names).collect();
                    let _ = shutdown.ticket.send(left);
                    self.shutdown = None;
                }
            }
        }
    }
}
